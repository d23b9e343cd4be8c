-- SPDX-License-Identifier: MIT
--- The pool: aio.work, waited for, cancelled, timed out, and left behind in every state.

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local jobs = require "spec.support.jobs"
local tasks = require "spec.support.tasks"

local over = tasks.all_over

describe("aio.work", function()
  drivers.each(function(d)
    it("returns what its function returns, in another Lua state", function()
      local ctx, here = d.context(), tostring(_G)
      local task = ctx:spawn(aio.work, jobs.sum, 2, 3, nil, nil)
      d.wait(ctx, over(task))
      local got = table.pack(task:join())
      assert.same({ true, 5, 2, 2, nil }, { table.unpack(got, 1, 5) })
      assert.equal(6, got.n)
      assert.not_equal(here, got[6])
      assert.equal(0, ctx:stats().live)
    end)

    it("has no thread before it is needed", function()
      local ctx = d.context()
      assert.same({ threads = 0, idle = 0, min = 0, max = 64, queued = 0, jobs = 0 }, ctx:stats().pool)
    end)

    it("runs side by side with others, and the loop goes on", function()
      local ctx, ticks = d.context(), 0
      local gate <close> = jobs.gate()
      local task = ctx:spawn(aio.map, { 1, 2, 3, 4, 5, 6 }, function(i) return aio.work(jobs.pass, gate.at, i * i) end)
      gate:await(d, ctx, 6)
      local pool = ctx:stats().pool
      assert.same({ 6, 0, 6, 0, 64 }, { pool.threads, pool.queued, pool.jobs, pool.min, pool.max })
      local timer = ctx:timer(function() ticks = ticks + 1 end):arm(0.001, 0.001)
      d.wait(ctx, function() return ticks >= 5 end)
      timer:close()
      gate:open()
      d.wait(ctx, over(task))
      assert.same({ n = 6, 1, 4, 9, 16, 25, 36 }, select(2, task:join()))
      assert.equal(0, ctx:stats().pool.jobs)
    end)

    it("has a new worker find modules where package.path says by then", function()
      local ctx, path, folder = d.context(), package.path, os.tmpname()
      local gate <close> = jobs.gate()
      local first = ctx:spawn(aio.work, jobs.pass, gate.at, 1)
      gate:await(d, ctx, 1)
      assert(os.remove(folder) and os.execute("mkdir " .. folder))
      assert(io.open(folder .. "/late_module.lua", "w")):write("return 42"):close()
      package.path = folder .. "/?.lua;" .. path
      local second = ctx:spawn(aio.work, jobs.require, "late_module")
      d.wait(ctx, over(second))
      package.path = path
      os.execute("rm -r " .. folder)
      assert.same({ true, 42 }, { second:join() })
      gate:open()
      d.wait(ctx, over(first))
    end)

    it("raises the error of its function, with the worker's traceback or as a copy", function()
      local ctx = d.context()
      local function fails(fn, ...)
        local task = ctx:spawn(aio.work, fn, ...):keep()
        d.wait(ctx, over(task))
        local ok, err = task:join()
        assert.is_false(ok)
        return err
      end
      local err = fails(jobs.fail)
      assert.matches("jobs.lua:%d+: in a worker\nin a worker, stack traceback:", err)
      assert.same({ code = 7 }, fails(jobs.fail_with, { code = 7 }))
      assert.is_nil(fails(jobs.fail_with, nil))
      assert.matches("cannot copy a thread: result 1", fails(jobs.thread))
      assert.matches("argument 2%.jobs%.file", fails(jobs.same, { jobs = { file = io.stderr } }))
    end)

    it("is taken back while it is queued, and left alone while it runs", function()
      local ctx, gate <close> = d.context(), jobs.gate()
      assert(ctx:set_threads(0, 1))
      local running = ctx:spawn(aio.work, jobs.pass, gate.at)
      gate:await(d, ctx, 1)
      local queued = ctx:spawn(aio.work, jobs.pass, gate.at)
      local limited = ctx:spawn(aio.timeout, 0.001, aio.work, jobs.same)
      d.wait(ctx, function() return limited:status() == "waiting" end)
      running:cancel()
      queued:cancel()
      d.wait(ctx, over(limited))
      assert.same({ "cancelled", "cancelled" }, { running:status(), queued:status() })
      assert.same({ n = 3, true, nil, "timeout" }, table.pack(limited:join()))
      gate:open()
      local last = ctx:spawn(aio.work, jobs.same, "last")
      d.wait(ctx, over(last))
      assert.same({ true, "last" }, { last:join() })
      assert.equal(1, gate:count())
      assert.equal(0, ctx:stats().live)
    end)

    it("keeps a result that was there before the cancel", function()
      local ctx, got = d.context(), nil
      local task = ctx:spawn(function()
        got = table.pack(aio.work(jobs.same, 1))
        aio.yield()
      end)
      d.turns(ctx, 1)
      jobs.until_ready(ctx)
      ctx:schedule(function() ctx:schedule(function() task:cancel() end) end)
      d.wait(ctx, over(task))
      assert.same({ n = 1, 1 }, got)
    end)

    it("of a context that is closed: what runs has run by then", function()
      local ctx, gate <close> = d.context(), jobs.gate()
      local got
      -- It takes its time: only that shows whether close waits for it.
      ctx:spawn(function() got = table.pack(aio.work(jobs.linger, gate.at, 0.05)) end)
      gate:await(d, ctx, 1)
      ctx:close()
      assert.equal(2, gate:count())
      assert.is_nil(got) -- its task went with the context
    end)
  end)

  it("does many of many kinds, one after the other in a worker's state, each as if it were alone", function()
    local seed = tonumber(os.getenv "RANDOM_SEED") or os.time()
    local ctx <close> = aio.context()
    ctx:set_threads(0, 3)
    math.randomseed(seed)
    local list = {}
    for i = 1, 3000 do list[i] = { jobs.mixed[math.random(#jobs.mixed)], math.random(99), math.random(99) } end
    local done = 0
    ctx:run(aio.map, list, function(job)
      local here, there = table.pack(pcall(table.unpack(job))), table.pack(pcall(aio.work, table.unpack(job)))
      assert.same(here, there, ("RANDOM_SEED=%d, job %d"):format(seed, done + 1))
      done = done + 1
    end, 40)
    assert.equal(#list, done)
  end)

  describe("its functions and buffers", function()
    local ctx
    before_each(function()
      ctx = aio.context()
      ctx:set_threads(1, 1) -- what a job leaves in its state is there for the next
    end)
    after_each(function() ctx:close() end)

    local function work(...) return ctx:run(aio.work, ...) end
    local function fn(source) return assert(load("return function(...) " .. source .. " end", "=fn"))() end

    it("find the globals, whatever the job before has made of its _ENV", function()
      local forgets = fn "local had = print ~= nil; _ENV = {}; return had"
      for _ = 1, 3 do assert.is_true(work(forgets)) end
      assert.equal("function", work(fn "return type(print)"))
    end)

    it("have the _ENV of the moment at which they are given", function()
      local f = fn "return x"
      debug.setupvalue(f, 1, _G)
      assert.is_nil(work(f))
      debug.setupvalue(f, 1, { x = 5 })
      assert.equal(5, work(f))
      assert.equal(5, work(f))
      debug.setupvalue(f, 1, _G)
      assert.is_nil(work(f))
    end)

    it("are new ones each time they come back, with an _ENV of their own", function()
      local give = fn "return function() return x end"
      local first, second = work(give), work(give)
      assert.not_equal(first, second)
      debug.setupvalue(first, 1, { x = 1 })
      assert.same({ 1 }, { first(), second() })
      assert.is_nil(work(give)())
    end)

    it("are one where they were one", function()
      local f = fn "local f, g = ...; return f == g, f"
      assert.is_true((work(f, print and f, f)))
      assert.is_true(work(fn "local f, g, t = ...; return f == g and f == t[1]", f, f, { f }))
      assert.is_true(work(fn "return debug.getinfo(1, 'f').func == ...", nil) == false)
      local own = fn "return debug.getinfo(1, 'f').func == ..."
      assert.is_true(work(own, own))
    end)

    it("are kept apart, job by job: those that came, that go back, and that are new", function()
      local swap = fn "local a, b = ...; return require 'aioloop'.buffer(5000):set 'new', b"
      for _ = 1, 20 do
        local new, b = work(swap, aio.buffer(4096):set "a", aio.buffer(4096):set "b")
        assert.same({ "new", "b" }, { new:tostring(), b:tostring() })
      end
    end)

    it("move, or are left as they were if something cannot be copied", function()
      local a, b = aio.buffer(10):set "a", aio.buffer(10)
      assert.is_false((pcall(work, jobs.same, a, print)))
      assert.equal("a", a:tostring())
      local x, y, z, none = work(jobs.same, a, b, a, aio.buffer(0))
      assert.same({ "a", "", 0, true, 0 }, { x:tostring(), y:tostring(), #none, x == z, #a })
      assert.same({ 10, 10 }, { x:capacity(), y:capacity() })
    end)

    it("are refused if a finalizer has used them meanwhile", function()
      local a = aio.buffer(10):set "a"
      collectgarbage("incremental", 100, 100, 1) -- a step of it whenever there may be one
      local ok, err
      for _ = 1, 20000 do -- until it is collected while the new function, which comes after the buffer, is dumped
        setmetatable({}, { __gc = function() a:set "bb" end })
        ok, err = pcall(work, function(...) return a, ... end, a, fn "return")
        if not ok then break end
        a = err:set "a"
      end
      collectgarbage("incremental", 200, 100, 13)
      assert.is_false(ok)
      assert.matches("finalizer uses", err)
      assert.equal("bb", a:tostring())
    end)

    local plain = not os.getenv "LD_PRELOAD" -- or a tool keeps memory
    ;(plain and it or pending)("count as garbage where they have arrived", function()
      local mib = 1 << 20
      local function resident() return tonumber(io.open("/proc/self/statm"):read "a":match "%d+ (%d+)") * 4096 end
      local make, take = fn "return require 'aioloop'.buffer(1 << 20):set(('x'):rep(1 << 20))", fn "return #..."
      local text, before = ("x"):rep(mib), resident()
      for _ = 1, 300 do work(make) end
      assert.is_true(resident() - before < 100 * mib, (resident() - before) // mib)
      for _ = 1, 300 do work(take, aio.buffer(mib):set(text)) end
      assert.is_true(resident() - before < 200 * mib, (resident() - before) // mib)
    end)
  end)

  it("waits at top level too, and refuses to where it cannot", function()
    assert.equal(3, aio.work(jobs.same, 3))
    assert.error_matches(coroutine.wrap(function() aio.work(jobs.same) end), "cannot wait")
    assert.error(function() aio.work(1) end)
    aio.default():close()
  end)

  it("can be resized, and refuses nonsense", function()
    local ctx <close> = aio.context()
    assert.is_true(ctx:set_threads(2, 4))
    for _, bad in ipairs { { -1, 1 }, { 2, 1 }, { 0, 0 }, { "x", 1 }, { 1 } } do
      assert.error(function() ctx:set_threads(table.unpack(bad)) end)
    end
  end)

  for name, ending in pairs {
    ["os.exit"] = "os.exit(3, true)", ["an error"] = "error 'end'", ["the end of the script"] = "",
  } do
    it("in every state when it ends with " .. name .. ": the exit code is right", function()
      local it = child.run(([[
        local aio, jobs = require "aioloop", require "spec.support.jobs"
        local ctx, gate = aio.default(), jobs.gate()
        ctx:set_threads(0, 2)
        assert(ctx:run(aio.work, jobs.same, "done"))
        ctx:spawn(aio.work, jobs.same, "done, and not fetched")
        -- Two that run, and will for a while: the end must come before theirs.
        for i = 1, 2 do ctx:spawn(aio.work, jobs.linger, gate.at, 0.05) end
        for i = 1, 2 do ctx:spawn(aio.work, jobs.same, "queued") end
        ctx:poll(false)
        gate:await_outside(2)
        print(aio.now())
        %s
      ]]):format(ending), 20)
      assert.is_true(aio.now() - tonumber(it.out) < 1 + 0.05) -- the clock is the same in all processes
      assert.equal(ending == "" and 0 or ending:match "exit" and 3 or 1, it.code)
    end)
  end
end)
