-- SPDX-License-Identifier: MIT
--- Errors: each arrives in exactly one place, as the very value, whatever it is and wherever it comes from.

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"

-- What may be thrown; `same` says whether what arrived is it.
local function identical(want)
  return function(got) return rawequal(want, got) end
end

local function begins(want)
  return function(got) return type(got) == "string" and got:sub(1, #want) == want end
end

local spiteful = setmetatable({}, { __tostring = function() error "tostring" end, __name = 7, __index = error })
local closed_file = io.tmpfile()
closed_file:close()

local values = {
  ["nil"] = { nil, identical(nil) },
  ["false"] = { false, identical(false) },
  ["a table"] = { {} },
  ["a number"] = { 42 },
  ["a function"] = { print },
  ["a coroutine"] = { coroutine.create(print) },
  ["a table with a throwing __tostring"] = { spiteful },
  ["a userdata"] = { closed_file },
  ["our userdata"] = { aio.clock.virtual },
  ["a string"] = { "text", begins "text" },
  ["a string with zeros"] = { "a\0b", function(got) return type(got) == "string" and got:sub(1, 1) == "a" end },
  ["an empty string"] = { "", begins "" },
}
for _, value in pairs(values) do value[2] = value[2] or identical(value[1]) end

-- Where it may be thrown: sets it up so that fail() is called once by the loop.
local places = {
  schedule = function(ctx, fail) ctx:schedule(fail) return "schedule" end,
  bh = function(ctx, fail) ctx:bh(fail):schedule() return "bh" end,
  ["idle bh"] = function(ctx, fail) ctx:bh(fail):schedule_idle() return "bh" end,
  timer = function(ctx, fail) ctx:timer(fail):arm(0) return "timer" end,
  watch = function(ctx, fail)
    local _, w = drivers.pipe()
    local watch
    watch = ctx:watch(w, { write = function()
      watch:close()
      fail()
    end })
    return "watch"
  end,
  task = function(ctx, fail) ctx:spawn(fail):name "t" return "task 't'" end,
  ["sleeping task"] = function(ctx, fail)
    ctx:spawn(function()
      aio.sleep(0.001)
      fail()
    end):name "t"
    return "task 't'"
  end,
  ["plain coroutine"] = function(ctx, fail) ctx:co_schedule(coroutine.create(fail)) return "task '" end,
}

describe("an error of a callback or a task", function()
  for place, set_up in pairs(places) do
    for name, value in pairs(values) do
      it(("goes to on_error, once: %s in %s"):format(name, place), function()
        local ctx, got, n = drivers.context(), nil, 0
        local where = set_up(ctx, function() error(value[1], 0) end)
        ctx:on_error(function(...)
          n = n + 1
          got = table.pack(...)
        end)
        while n == 0 do ctx:poll() end
        assert.is_true(value[2](got[1]))
        assert.equal(2, got.n)
        assert.equal(where, got[2]:sub(1, #where))
        for _ = 1, 3 do ctx:poll(false) end
        assert.equal(1, n)
        assert.same({}, ctx:stats().errors)
        drivers.cleanup()
      end)

      it(("is raised by poll, once: %s in %s"):format(name, place), function()
        local ctx = drivers.context()
        set_up(ctx, function() error(value[1], 0) end)
        local ok, err
        repeat ok, err = pcall(ctx.poll, ctx) until not ok
        assert.is_true(value[2](err))
        for _ = 1, 3 do ctx:poll(false) end
        drivers.cleanup()
      end)
    end

    it("under GLib goes to on_error: " .. place, function()
      local ctx, err, got = drivers.context(), {}, {}
      if not ctx:attach() then return pending "no GLib" end
      set_up(ctx, function() error(err) end)
      ctx:on_error(function(e) got[#got + 1] = e end)
      local glib = require "aioloop.glib"
      while #got == 0 do glib.iterate(true) end
      for _ = 1, 3 do glib.iterate(false) end
      assert.equal(1, #got)
      assert.equal(err, got[1])
      drivers.cleanup()
    end)
  end

  it("has a traceback when it is a string, and only then", function()
    local ctx = drivers.context()
    local function culprit() error "text" end
    for _, how in ipairs { "schedule", "spawn" } do
      ctx[how](ctx, function() culprit() end)
      local ok, err = pcall(ctx.poll, ctx, false)
      assert.is_false(ok)
      assert.match("^[^\n]*error_spec%.lua:%d+: text\nstack traceback:\n", err)
      assert.match("in upvalue 'culprit'", err)
    end
    drivers.cleanup()
  end)

  it("that is a stack overflow arrives as such", function()
    local ctx = drivers.context()
    local function deep() return 1 + deep() end
    local function c_deep(s) return (s:gsub(".", c_deep)) end
    local indexed = setmetatable({}, {})
    getmetatable(indexed).__index = function(t, k) return t[k .. "x"] end
    for _, how in ipairs { "schedule", "spawn" } do
      for _, fn in ipairs { deep, function() c_deep "x" end, function() return indexed.x end } do
        ctx[how](ctx, fn)
        local ok, err = pcall(ctx.poll, ctx, false)
        assert.is_false(ok)
        assert.match("overflow", err)
      end
    end
    local fine
    ctx:schedule(function() fine = true end)
    ctx:poll(false)
    assert.is_true(fine)
    drivers.cleanup()
  end)

  it("does not keep the rest of the turn from running; the others are in stats().errors", function()
    local ctx, log, errs = drivers.context(), {}, {}
    for i = 1, 5 do errs[i] = {} end
    ctx:schedule(error, errs[1])
    ctx:schedule(function() log[#log + 1] = "bh" end)
    ctx:spawn(function() log[#log + 1] = "task" end)
    ctx:schedule(error, errs[2])
    ctx:timer(function() log[#log + 1] = "timer" end):arm(0)
    ctx:timer(error, errs[3]):arm(0)
    ctx:schedule(error, nil)
    ctx:spawn(error, errs[4])
    local ok, err = pcall(ctx.poll, ctx, false)
    assert.is_false(ok)
    assert.equal(errs[1], err)
    assert.same({ "bh", "task", "timer" }, log)
    local collected = ctx:stats().errors
    assert.equal(errs[1], collected[1])
    assert.equal(errs[2], collected[2])
    assert.is_nil(collected[3])
    assert.equal(errs[3], collected[4])
    assert.equal(errs[4], collected[5])
    assert.is_true((pcall(ctx.poll, ctx, false)))
    drivers.cleanup()
  end)

  it("of nested turns is raised by the outermost", function()
    local ctx, err, inner = drivers.context(), {}, nil
    ctx:schedule(function()
      ctx:schedule(error, err)
      inner = table.pack(pcall(ctx.poll, ctx, false))
    end)
    local ok, got = pcall(ctx.poll, ctx, false)
    assert.same({ n = 2, true, true }, inner)
    assert.is_false(ok)
    assert.equal(err, got)
    drivers.cleanup()
  end)

  it("of another context's turns is raised by that context", function()
    local a, b, err = drivers.context(), drivers.context(), {}
    local inner
    a:schedule(function()
      b:schedule(error, err)
      inner = table.pack(pcall(b.poll, b, false))
    end)
    assert.is_true((pcall(a.poll, a, false)))
    assert.is_false(inner[1])
    assert.equal(err, inner[2])
    drivers.cleanup()
  end)

  it("of on_error itself comes after the one it was told of", function()
    local ctx, first, own = drivers.context(), {}, {}
    ctx:on_error(function() error(own) end)
    ctx:schedule(error, first)
    local ok, got = pcall(ctx.poll, ctx, false)
    assert.is_false(ok)
    assert.equal(first, got)
    assert.same({ first, own }, ctx:stats().errors)
    assert.equal(own, ctx:stats().errors[2])
    ctx:on_error(nil)
    ctx:schedule(error, own)
    ok, got = pcall(ctx.poll, ctx, false)
    assert.is_false(ok)
    assert.equal(own, got)
    drivers.cleanup()
  end)

  it("of on_error may be a stack overflow, and on_error may poll, wait, close and replace itself", function()
    local ctx, n = drivers.context(), 0
    local function deep() return 1 + deep() end
    ctx:on_error(deep)
    ctx:schedule(error, "first")
    local _, first = pcall(ctx.poll, ctx, false)
    assert.match("^first", first)
    ctx:on_error(function()
      n = n + 1
      ctx:schedule(function() n = n + 10 end)
      ctx:poll(false)
      aio.sleep(0)
      ctx:on_error(function()
        n = n + 100
        ctx:close()
      end)
    end)
    ctx:schedule(error, "x")
    ctx:poll(false)
    assert.equal(11, n)
    ctx:schedule(error, "y")
    ctx:schedule(error, "z")
    ctx:poll(false)
    assert.equal(111, n)
    drivers.cleanup()
  end)

  it("at the limit of the C stack is not lost", function()
    local ctx, deepest = drivers.context(), 0
    local function down(i)
      deepest = i
      ctx:schedule(down, i + 1)
      ctx:poll(false)
    end
    ctx:schedule(down, 1)
    local _, err = pcall(ctx.poll, ctx, false)
    assert.match("C stack overflow", err)
    assert.is_true(deepest > 20 and deepest < 250)
    drivers.cleanup()
  end)

  it("of a poll= test is reported like a watch's", function()
    local ctx, err = drivers.context { poll_max_ns = 1000000 }, {}
    ctx:set_polling { max_ns = 1000000 }
    local r = drivers.pipe()
    ctx:watch(r, { read = print, poll = function() error(err) end })
    local ok, got
    for _ = 1, 1000 do
      ok, got = pcall(ctx.poll, ctx, 0.002)
      if not ok then break end
    end
    assert.is_false(ok)
    assert.equal(err, got)
    drivers.cleanup()
  end)

  it("of a poll= test ends the turn, like any other", function()
    local ctx, told = aio.context(), 0
    ctx:set_polling { max_ns = 50000000, grow = 1000 }
    local r = drivers.pipe()
    local fails
    ctx:watch(r, { read = print, poll = function() if fails then error "oops" end end })
    for _ = 1, 5 do ctx:poll(0.002) end -- it has learned to spin
    ctx:on_error(function() told = told + 1 end)
    fails = true
    for i = 1, 10 do
      local start = aio.now()
      ctx:poll(5)
      assert.equal(i, told)
      assert.is_true(aio.now() - start < 1)
    end
    ctx:close()
    drivers.cleanup()
  end)
end)

describe("an error of a task", function()
  drivers.each(function(d)
    it("that somebody is joining goes there, and nowhere else", function()
      local ctx, err, told = d.context(), {}, 0
      ctx:on_error(function() told = told + 1 end)
      local task = ctx:spawn(function()
        aio.suspend()
        error(err)
      end)
      local joiner = ctx:spawn(function() return task:join() end)
      local awaiter = ctx:spawn(function() return pcall(aio.await, task) end)
      d.turns(ctx, 3)
      task:wake()
      d.wait(ctx, function() return joiner:status() == "ended" and awaiter:status() == "ended" end)
      for _, t in ipairs { joiner, awaiter } do
        local _, ok, got = t:join()
        assert.is_false(ok)
        assert.equal(err, got)
      end
      d.turns(ctx, 3)
      assert.equal(0, told)
    end)

    it("that is joined in the same turn is not reported", function()
      local ctx, told = d.context(), 0
      ctx:on_error(function() told = told + 1 end)
      local task = ctx:spawn(error, "x")
      local got
      ctx:schedule(function() got = table.pack(task:join()) end)
      d.wait(ctx, function() return got end)
      assert.same({ n = 2, false, "x" }, got)
      d.turns(ctx, 3)
      assert.equal(0, told)
    end)

    it("that was reported can still be joined", function()
      local ctx, err, told = d.context(), {}, {}
      ctx:on_error(function(e) told[#told + 1] = e end)
      local task = ctx:spawn(error, err)
      d.wait(ctx, function() return told[1] end)
      for _ = 1, 2 do assert.same({ false, err }, { task:join() }) end
      assert.equal(err, select(2, task:join()))
      assert.same({ err }, told)
    end)

    it("that is kept is not reported, unless its handle is collected unjoined", function()
      local ctx, told = d.context(), {}
      ctx:on_error(function(...) told[#told + 1] = table.pack(...) end)
      local err = {}
      local joined = ctx:spawn(error, err):keep()
      local kept = { ctx:spawn(error, err):keep():name "lonely" } -- luacheck: ignore
      d.turns(ctx, 3)
      assert.same({}, told)
      assert.equal(err, select(2, joined:join()))
      joined, kept = nil, nil -- luacheck: ignore
      collectgarbage()
      collectgarbage()
      d.turns(ctx, 3)
      assert.equal(1, #told)
      assert.equal(err, told[1][1])
      assert.equal("task 'lonely'", told[1][2])
    end)

    it("keeps its traceback, as it was when it failed", function()
      local ctx = d.context()
      local function culprit() error "text" end
      local task = ctx:spawn(function() culprit() end):keep()
      d.turns(ctx, 3)
      assert.match("upvalue 'culprit'", task:traceback())
      local ok, err = task:join()
      assert.is_false(ok)
      assert.match("error_spec%.lua:%d+: text$", err) -- joined, it is the very value
    end)

    it("runs its <close> variables, and the error of one of them replaces it", function()
      local ctx, log = d.context(), {}
      local function closing(fn) return setmetatable({}, { __close = fn }) end
      local second = {}
      local task = ctx:spawn(function()
        local _ <close> = closing(function(_, e) log[1] = e error(second) end)
        aio.sleep(0)
        error "first"
      end):keep()
      d.wait(ctx, function() return log[1] end)
      d.turns(ctx, 2)
      assert.match("first", log[1])
      assert.equal(second, select(2, task:join()))
    end)
  end)

  it("in the function of run is raised by run, as the very value, and by nothing else", function()
    local ctx, told = drivers.context(), 0
    ctx:on_error(function() told = told + 1 end)
    for _, value in pairs(values) do
      local ok, err = pcall(ctx.run, ctx, function()
        aio.sleep(0)
        error(value[1], 0)
      end)
      assert.is_false(ok)
      assert.is_true(value[2](err))
    end
    assert.equal(0, told)
    drivers.cleanup()
  end)

  it("is raised by run, which can be called again", function()
    local ctx, err = drivers.context(), {}
    local after
    ctx:spawn(error, err)
    ctx:spawn(function()
      aio.sleep(0.001)
      after = true
    end)
    local ok, got = pcall(ctx.run, ctx)
    assert.is_false(ok)
    assert.equal(err, got)
    ctx:run()
    assert.is_true(after)
    drivers.cleanup()
  end)
end)

describe("under GLib, without on_error", function()
  it("an error is a warning with its traceback, once", function()
    local it = child.run [[
      local aio, glib = require "aioloop", require "aioloop.glib"
      local ctx = aio.context()
      if not ctx:attach() then os.exit(77, true) end
      local function culprit() error "text" end
      ctx:schedule(function() culprit() end)
      ctx:spawn(function() error(setmetatable({}, { __tostring = function() error "again" end })) end)
      ctx:timer(function() error(nil) end):arm(0)
      while glib.iterate(false) do end
      local ran
      ctx:schedule(function() ran = true end)
      while glib.iterate(false) do end
      assert(ran)
      io.write "end"
    ]]
    if it.code == 77 then return pending "no GLib" end
    assert.same({ code = 0, out = "end", err = it.err }, it)
    local _, n = it.err:gsub("text\nstack traceback:", "")
    assert.equal(1, n)
    assert.match("WARNING", it.err)
    assert.match("nil", it.err)
  end)
end)

describe("10^5 callbacks, half of which fail,", function()
  local function count(kind)
    return ([[
      local aio = require "aioloop"
      local ctx, N, told, ran = aio.context(), 100000, 0, 0
      ctx:on_error(function() told = told + 1 end)
      local err = {}
      local function fn(i)
        ran = ran + 1
        if i %% 2 == 0 then error(err) end
      end
      local function batch(from, to)
        for i = from, to do %s end
        while ctx:poll(false) do end
      end
      local function used()
        collectgarbage()
        collectgarbage()
        return collectgarbage "count"
      end
      local before
      for from = 1, N, 1000 do
        batch(from, from + 999)
        collectgarbage()
        if from == 10001 then before = used() end -- tables have the size they need by now
      end
      local after = used()
      assert(ran == N and told == N / 2, ran)
      assert(after - before < 20, after - before)
      io.write "flat"
    ]]):format(kind)
  end
  for name, kind in pairs {
    schedule = "ctx:schedule(fn, i)",
    task = "ctx:spawn(fn, i)",
    timer = "ctx:timer(fn, i):arm(0)",
    coroutine = "ctx:co_schedule(coroutine.create(fn), i)",
  } do
    it("leave nothing on a stack or in memory: " .. name, function()
      assert.same({ code = 0, out = "flat", err = "" }, child.run(count(kind)))
    end)
  end

  it("in one turn, nested or not, do not use up the stack", function()
    local ctx, n = drivers.context(), 0
    ctx:on_error(function() n = n + 1 end)
    for _ = 1, 10000 do ctx:schedule(error, nil) end
    ctx:schedule(function()
      for _ = 1, 10000 do ctx:schedule(error, ctx) end
      ctx:poll(false)
    end)
    ctx:poll(false)
    assert.equal(20000, n)
    drivers.cleanup()
  end)
end)

local function said(ok, err)
  assert.is_false(ok)
  return (tostring(err):gsub("\n.*", ""))
end

describe("an error is not lost", function()
  it("when the run of the function that raises it has ended before", function()
    local ctx <close> = assert(aio.context())
    local function late() aio.sleep(0.005) error("late", 0) end
    ctx:schedule(function() ctx:schedule(ctx.stop, ctx) end)
    ctx:run(late)
    assert.equal("late", said(pcall(ctx.run, ctx)))
    ctx:schedule(function() ctx:schedule(error, "callback") end)
    assert.equal("callback", said(pcall(ctx.run, ctx, late)))
    assert.equal("late", said(pcall(ctx.run, ctx)))
    local told
    ctx:on_error(function(err) told = err end)
    ctx:schedule(function() ctx:schedule(ctx.stop, ctx) end)
    ctx:run(late)
    ctx:run()
    assert.match("^late", told)
  end)

  it("when the context is closed later in the turn", function()
    local ctx = assert(aio.context())
    ctx:spawn(error, "of the task")
    ctx:schedule(ctx.close, ctx)
    assert.equal("of the task", said(pcall(ctx.poll, ctx)))
    local told
    ctx = assert(aio.context())
    ctx:on_error(function(err) told = err end)
    ctx:spawn(error, "of the task")
    ctx:schedule(ctx.close, ctx)
    ctx:poll()
    assert.match("^of the task", told)
  end)

  it("when a join that polls ends with another one", function()
    local ctx <close> = assert(aio.context())
    local task = ctx:spawn(function() error("of the task", 0) end)
    ctx:schedule(error, "callback")
    assert.equal("callback", said(pcall(task.join, task)))
    assert.equal("of the task", said(pcall(ctx.run, ctx)))
    assert.is_false((task:join()))
    task = ctx:spawn(function() error("joined", 0) end)
    assert.is_false((task:join()))
    ctx:run()
  end)

  it("when a finaliser collects one at the same time", function()
    local it = child.run [[
      local aio = require "aioloop"
      local ctx, now, fired, both = aio.default(), false, false, 0
      local function fin()
        if now then
          now = false
          ctx:schedule(function() error("inner", 0) end)
          ctx:poll(false)
          fired = true
        end
        setmetatable({}, { __gc = fin })
      end
      collectgarbage("incremental", 1, 1000, 30)
      setmetatable({}, { __gc = fin })
      for i = 1, 3000 do
        for _ = 1, i % 50 do local _ = {} end
        fired = false
        ctx:schedule(function() local err = {} now = true error(err) end)
        pcall(ctx.poll, ctx)
        now = false
        if fired then
          assert(#ctx:stats().errors == 2, #ctx:stats().errors)
          both = both + 1
        end
      end
      io.write(both > 0 and "fine" or "not tried")
    ]]
    assert.same({ 0, "fine", "" }, { it.code, it.out, it.err })
  end)

  it("of a coroutine that was entered outside of any turn", function()
    local ctx <close> = assert(aio.context())
    local mutex = aio.mutex()
    ctx:run(function() end)
    local co = coroutine.create(function() mutex:lock() end)
    aio.wake(co)
    assert.match("ended while it held a mutex", said(pcall(aio.run)))
  end)

  it("of a second context that fails in the same advance", function()
    local clock = aio.clock.virtual
    local one <close> = aio.context { clock = "virtual" }
    local two <close> = aio.context { clock = "virtual" }
    one:timer(error, "one"):arm(1)
    two:timer(error, "two"):arm(1)
    assert.equal("one", said(pcall(clock.advance, clock, 1)))
    assert.equal("two", said(pcall(two.poll, two, false)))
  end)
end)

describe("the error of a task whose joiner was killed", function()
  local function told_by(ctx)
    local told = {}
    ctx:on_error(function(err) told[#told + 1] = tostring(err):match "^%w+" end)
    return told
  end

  local function failing(after)
    for _ = 1, after do aio.yield() end
    error("lost", 0)
  end

  it("in the turn in which many end, is reported in the order of their ends", function()
    local ctx <close> = assert(aio.context())
    local told, joiners = {}, {}
    ctx:on_error(function(err) told[#told + 1] = tonumber(tostring(err):match "^%d+") end)
    for i = 1, 5 do
      local task = ctx:spawn(function()
        aio.yield()
        aio.yield()
        error(tostring(i), 0)
      end)
      ctx:spawn(function()
        joiners[i] = coroutine.running()
        task:join()
      end)
    end
    ctx:spawn(function()
      aio.yield()
      aio.yield() -- those that fail have failed, and those that join have not run
      for _, co in ipairs(joiners) do coroutine.close(co) end
    end)
    ctx:run()
    assert.same({ 1, 2, 3, 4, 5 }, told)
  end)

  it("before, or between its end and the joiner's turn, is reported", function()
    for kill = 0, 3 do
      local ctx <close> = assert(aio.context())
      local told, co = told_by(ctx), nil
      local task = ctx:spawn(failing, 2)
      ctx:spawn(function()
        co = coroutine.running()
        task:join()
      end)
      ctx:spawn(function()
        for _ = 1, kill do aio.yield() end
        coroutine.close(co)
      end)
      ctx:run()
      assert.same(kill < 3 and { "lost" } or {}, told)
      assert.is_false((task:join()))
    end
  end)

  it("is held until it is", function()
    local it = child.run [[
      local aio = require "aioloop"
      local ctx, co = aio.default(), nil
      ctx:on_error(function() end)
      ctx:spawn(function()
        co = coroutine.running()
        return aio.spawn(function() aio.yield() error {} end):join()
      end)
      ctx:spawn(function()
        aio.yield()
        aio.yield()
        coroutine.close(co)
        collectgarbage()
        collectgarbage()
        junk = {}
        for i = 200, 400 do for k = 1, 5 do junk[#junk + 1] = ("\4"):rep(i) .. k end end
      end)
      ctx:run()
      local task = ctx:spawn(function() error {} end):keep()
      ctx:on_error(function()
        ctx:close()
        collectgarbage()
        collectgarbage()
      end)
      ctx:poll(false)
      task = nil
      collectgarbage()
      collectgarbage()
      ctx:close()
      io.write "fine"
    ]]
    assert.same({ 0, "fine", "" }, { it.code, it.out, it.err })
  end)

  it("that the script has closed is not nil", function()
    for _, rob in ipairs { coroutine.close, coroutine.resume } do
      local ctx <close> = assert(aio.context())
      local co, err
      ctx:on_error(function(e) err = e end)
      ctx:spawn(function()
        co = coroutine.running()
        error {}
      end)
      ctx:spawn(function() rob(co) end)
      ctx:poll(false)
      assert.match("the error is gone", err)
      local cancelled = ctx:spawn(function()
        co = coroutine.running()
        aio.sleep(10)
      end)
      ctx:poll(false)
      cancelled:cancel "why"
      ctx:poll(false)
      rob(co)
      err = select(2, cancelled:join())
      assert.is_true(aio.is_cancelled(err))
      assert.equal("why", err.reason)
    end
  end)
end)

describe("tasks that fail together", function()
  it("are reported in their order, also when the handler polls", function()
    local ctx <close> = assert(aio.context())
    local told = {}
    ctx:on_error(function(err)
      told[#told + 1] = err:match "^e%d"
      ctx:poll(false)
    end)
    for i = 1, 4 do ctx:spawn(function() error("e" .. i, 0) end) end
    ctx:run()
    assert.same({ "e1", "e2", "e3", "e4" }, told)
  end)
end)

describe("a run whose function leaves sleepers behind", function()
  it("raises the deadlock when they have been cancelled and have ended", function()
    local ctx <close> = assert(aio.context())
    local left
    assert.match("deadlock", said(pcall(ctx.run, ctx, function() left = aio.spawn(aio.suspend) end)))
    assert.equal("cancelled", left:status())
    assert.equal(0, #ctx:tasks())
    assert.equal(7, ctx:run(function() return 7 end))
  end)
end)
