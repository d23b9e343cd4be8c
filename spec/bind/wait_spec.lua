-- SPDX-License-Identifier: MIT
--- Waits: sleep, sleep_until, wait_readable, wait_writable; in tasks, at top level, in callbacks, where they cannot be.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local tasks = require "spec.support.tasks"

local function done(task)
  return function()
    local status = task:status()
    return status == "ended" or status == "failed"
  end
end

describe("sleep", function()
  drivers.each(function(d)
    it("in a task is never short", function()
      local ctx = d.context()
      local task = ctx:spawn(function()
        for i = 0, 8 do
          local from = aio.now()
          assert.same({ true }, { aio.sleep(i / 2000) })
          assert.is_true(aio.now() >= from + i / 2000)
          local at = aio.now() + i / 2000
          assert.same({ true }, { aio.sleep_until(at) })
          assert.is_true(aio.now() >= at)
        end
      end)
      d.wait(ctx, done(task))
      assert.same({ true }, { task:join() })
    end)

    it("of nothing, less than nothing, or until a time past lets others run", function()
      local ctx, log = d.context(), {}
      local task = ctx:spawn(function()
        for _, s in ipairs { 0, -1, -math.huge, -2 ^ 70 } do
          local other = ctx:spawn(function() log[#log + 1] = s end)
          assert.is_true(aio.sleep(s))
          assert.is_true(aio.sleep(s))
          assert.equal(s, log[#log])
          aio.await(other)
        end
        aio.sleep_until(0)
        aio.sleep_until(-1)
      end)
      d.wait(ctx, done(task))
      assert.same({ true }, { task:join() })
    end)

    it("of 1,000 tasks ends in the order of their deadlines", function()
      local ctx, order, n = d.context(), {}, 1000
      local base = aio.now() + 0.05
      for i = 1, n do
        local at = base + (i * 7919 % n) / 100000
        ctx:spawn(function()
          aio.sleep_until(at)
          order[#order + 1] = at
        end)
      end
      d.wait(ctx, function() return #order == n end)
      for i = 2, n do assert.is_true(order[i] >= order[i - 1]) end
    end)

    it("in a callback polls, nested, and other things go on", function()
      local ctx, log = d.context(), {}
      ctx:schedule(function()
        ctx:schedule(function() log[#log + 1] = "inner" end)
        assert.is_true(aio.sleep(0.002))
        log[#log + 1] = "outer"
      end)
      d.wait(ctx, function() return #log == 2 end)
      assert.same({ "inner", "outer" }, log)
    end)

    it("in callbacks of every kind", function()
      local ctx, n = d.context(), 0
      local _, w = drivers.pipe()
      local function wait()
        assert.is_true(aio.sleep(0.001))
        n = n + 1
      end
      ctx:bh(wait):schedule()
      ctx:timer(wait):arm(0)
      local watch
      watch = ctx:watch(w, { write = function()
        wait()
        watch:close()
      end })
      d.wait(ctx, function() return n >= 3 end)
      assert.equal(3, n)
    end)
  end)

  it("at top level runs the default context's turns", function()
    local ran
    aio.default():schedule(function() ran = true end)
    local from = aio.now()
    assert.is_true(aio.sleep(0.005))
    assert.is_true(aio.now() >= from + 0.005)
    assert.is_true(ran)
    assert.is_true(aio.sleep_until(aio.now() + 0.001))
  end)

  it("for ever, where nothing could wake, is a deadlock", function()
    for _, s in ipairs { math.huge, 1e300 } do
      assert.error_matches(function() aio.sleep(s) end, "deadlock: aio%.sleep")
      assert.error_matches(function() aio.run(aio.sleep, s) end, "deadlock")
      aio.default():close()
    end
  end)

  it("refuses what is no number of seconds", function()
    for _, bad in ipairs { "1", {}, true, 0 / 0, print } do
      assert.error(function() aio.sleep(bad) end)
      assert.error(function() aio.sleep_until(bad) end)
    end
    assert.error(function() aio.sleep() end)
    assert.error(function() aio.sleep(nil) end)
  end)

  it("at top level ends with closed when a callback closes the context", function()
    local ctx = aio.default()
    ctx:schedule(function() ctx:close() end)
    assert.same({ n = 2, nil, "closed" }, table.pack(aio.sleep(60)))
    assert.is_true(aio.sleep(0)) -- a new default context
  end)

  it("at top level ends when a callback fails, by its error", function()
    local err = {}
    aio.default():schedule(error, err)
    local ok, got = pcall(aio.sleep, 60)
    assert.is_false(ok)
    assert.equal(err, got)
    assert.equal(0, aio.default():stats().timers_armed)
    assert.is_true(aio.sleep(0))
  end)

  it("runs on the virtual clock where the context does", function()
    local ctx <close> = aio.context { clock = "virtual" }
    local virtual = aio.clock.virtual
    local log = {}
    local task = ctx:spawn(function()
      local from = aio.now()
      aio.sleep(3600)
      log[1] = aio.now() - from
      log[2] = select(2, aio.suspend(1800))
      aio.sleep_until(aio.now() + 1800)
      log[3] = aio.now() - from
    end)
    ctx:poll(false)
    for _ = 1, 3 do virtual:advance(1800 * 2) end
    assert.is_true(done(task)())
    assert.same({ 3600, "timeout" }, { log[1], log[2] })
    assert.is_true(log[3] >= 7200)
  end)
end)

describe("waiting for an fd", function()
  drivers.each_backend(function(d)
    it("in a task ends when it can be read or written", function()
      local ctx = d.context()
      local r, w = drivers.pipe()
      local reader = ctx:spawn(function()
        assert.same({ true }, { aio.wait_readable(r) })
        return fds.read(r)
      end)
      local writer = ctx:spawn(function()
        assert.same({ true }, { aio.wait_writable(w) })
        aio.sleep(0.002)
        fds.write(w, "hello")
      end)
      d.wait(ctx, done(reader))
      assert.same({ true, "hello" }, { reader:join() })
      assert.is_true((writer:join()))
      assert.equal(0, ctx:stats().watches)
    end)

    it("says what is so now, where they may take no time", function()
      local ctx = d.context()
      tasks.run(d, ctx, function()
        local a, b = fds.socketpair()
        for _ = 1, 3 do
          assert.same({ true }, { aio.wait_writable(a, 0) })
          assert.same({ true }, { aio.wait_writable(a, -1) })
          assert.same({ nil, "timeout" }, { aio.wait_readable(a, 0) })
        end
        fds.write(b, "x")
        for _ = 1, 3 do assert.same({ true }, { aio.wait_readable(a, 0) }) end
        fds.read(a)
        assert.same({ nil, "timeout" }, { aio.wait_readable(a, 0) })
        fds.fill(a)
        assert.same({ nil, "timeout" }, { aio.wait_writable(a, 0) })
        fds.close(b)
        assert.same({ true, true }, { aio.wait_readable(a, 0), (aio.wait_writable(a, 0)) })
        local file <close> = io.tmpfile()
        local _, message, errno = aio.wait_readable(file, 0)
        assert.same({ "string", 1 }, { type(message), errno })
        fds.close(a)
        local task = aio.spawn(function() return aio.wait_writable(a, 0) end):keep()
        task:cancel()
        assert.is_false((task:join()))
      end)
      tasks.is_quiet(ctx)
    end)

    it("ends at its time limit, and leaves nothing behind", function()
      local ctx = d.context()
      local r, w = drivers.pipe()
      local task = ctx:spawn(function()
        local a = table.pack(aio.wait_readable(r, 0.001))
        local b = table.pack(aio.wait_readable(r, 0))
        local c = table.pack(aio.wait_writable(w, 0.5))
        return a, b, c
      end)
      d.wait(ctx, done(task))
      local _, a, b, c = task:join()
      assert.same({ n = 2, nil, "timeout" }, a)
      assert.same({ n = 2, nil, "timeout" }, b)
      assert.same({ n = 1, true }, c)
      assert.equal(0, ctx:stats().watches)
      assert.equal(0, ctx:stats().timers_armed)
    end)

    it("ends at the end of the stream, and at a reset", function()
      local ctx = d.context()
      local r, w = drivers.pipe()
      local a, b = drivers.socketpair()
      local one = ctx:spawn(aio.wait_readable, r)
      local two = ctx:spawn(aio.wait_readable, a)
      d.turns(ctx, 2)
      drivers.close(w)
      drivers.close(b)
      d.wait(ctx, done(one))
      d.wait(ctx, done(two))
      assert.same({ true, true }, { one:join() })
      assert.same({ true, true }, { two:join() })
    end)

    it("one task may wait to read and another to write, and no second for either", function()
      local ctx = d.context()
      local a, b = drivers.socketpair()
      local reader = ctx:spawn(aio.wait_readable, a)
      d.turns(ctx, 2)
      local second = ctx:spawn(function() return pcall(aio.wait_readable, a) end)
      local writer = ctx:spawn(aio.wait_writable, a)
      d.wait(ctx, done(writer))
      d.wait(ctx, done(second))
      local _, ok, message = second:join()
      assert.is_false(ok)
      assert.match("has a watch for that direction already", message)
      fds.write(b, "x")
      d.wait(ctx, done(reader))
      assert.same({ true, true }, { reader:join() })
    end)

    it("refuses an fd that is not open or cannot be watched", function()
      local ctx = d.context()
      local file <close> = assert(io.open("Makefile"))
      local task = ctx:spawn(function()
        return table.pack(aio.wait_readable(2 ^ 20 | 0)), table.pack(aio.wait_readable(file))
      end)
      d.wait(ctx, done(task))
      local _, not_open, regular = task:join()
      assert.is_nil(not_open[1])
      assert.equal("string", type(not_open[2]))
      assert.equal(9, not_open[3]) -- EBADF
      if d.backend ~= "poll" then
        assert.is_nil(regular[1])
        assert.match("regular file", regular[2])
        assert.equal(1, regular[3]) -- EPERM
      end
      assert.equal(0, ctx:stats().watches)
    end)

    it("ends as closed when the fd is closed meanwhile", function()
      local ctx = d.context()
      local r = drivers.pipe()
      local task = ctx:spawn(aio.wait_readable, r, 20)
      d.turns(ctx, 2)
      ctx:schedule(drivers.close, r)
      d.wait(ctx, done(task))
      assert.same({ n = 3, true, nil, "closed" }, table.pack(task:join()))
    end)

    it("accepts files and objects with getfd, fileno or pollfd", function()
      local ctx = d.context()
      local _, w = drivers.pipe()
      local pipe <close> = io.popen("true", "r")
      local task = ctx:spawn(function()
        for _, method in ipairs { "getfd", "fileno", "pollfd" } do
          assert.is_true(aio.wait_writable { [method] = function() return w end })
          assert.is_true(aio.wait_writable(setmetatable({}, { __index = { [method] = function() return w end } })))
        end
        assert.is_true(aio.wait_readable(pipe, 20))
      end)
      d.wait(ctx, done(task))
      assert.same({ true }, { task:join() })
    end)

    it("in a callback polls, nested", function()
      local ctx, got = d.context(), nil
      local r, w = drivers.pipe()
      ctx:schedule(function()
        ctx:timer(fds.write, w, "x"):arm(0.001)
        got = { aio.wait_readable(r, 20), fds.read(r) }
      end)
      d.wait(ctx, function() return got end)
      assert.same({ true, "x" }, got)
    end)
  end)

  it("at top level runs turns until it is ready", function()
    local r, w = drivers.pipe()
    aio.default():timer(fds.write, w, "x"):arm(0.001)
    assert.same({ true }, { aio.wait_writable(w) })
    assert.same({ true }, { aio.wait_readable(r) })
    assert.equal("x", fds.read(r))
    assert.same({ n = 2, nil, "timeout" }, table.pack(aio.wait_readable(r, 0.001)))
    drivers.cleanup()
  end)
end)

describe("a wait where none can be", function()
  local waits = {
    sleep = function() aio.sleep(0) end,
    yield = aio.yield,
    suspend = function() aio.suspend(1) end,
    join = function() aio.spawn(aio.suspend):unref():join(0) end,
    wait_writable = function() aio.wait_writable(2, 0) end,
  }
  for name, wait in pairs(waits) do
    it(("inside a coroutine of the script's own names the remedy: %s"):format(name), function()
      aio.run(function()
        local ok, message = coroutine.wrap(function() return pcall(wait) end)()
        assert.is_false(ok)
        assert.match("aio%.spawn", message)
        assert.match("aio%.wrap", message)
      end)
      local ok, message = coroutine.wrap(function() return pcall(wait) end)()
      assert.is_false(ok)
      assert.match("aio%.wrap", message)
      aio.default():close()
    end)

    it(("inside a C function names it and the remedy: %s"):format(name), function()
      local across = {
        sort = function(f) table.sort({ 1, 2 }, f) end,
        gsub = function(f) string.gsub("x", "x", f) end,
      }
      for culprit, call in pairs(across) do
        aio.run(function()
          local ok, message = pcall(call, wait)
          assert.is_false(ok)
          assert.match("'" .. culprit .. "'", message:gsub("'[%w_]+%.", "'"), nil)
          assert.match("before or after it", message)
        end)
      end
      aio.default():close()
    end)
  end

  it("may be inside pcall, xpcall, a metamethod, an iterator, <close>", function()
    local log = {}
    local function note(x)
      aio.sleep(0)
      log[#log + 1] = x
    end
    aio.run(function()
      pcall(note, 1)
      xpcall(note, print, 2)
      local object = setmetatable({}, {
        __index = function(_, k) note(k) return k end,
        __add = function() note(4) return 4 end,
        __close = function() note(7) end,
      })
      assert.equal(3, object[3])
      assert.equal(4, object + 1)
      for i in function(_, i) note(5) return not i and 5 or nil end do log[#log + 1] = i end
      do
        local _ <close> = object
      end
      pcall(function()
        local _ <close> = object
        error "unwinding"
      end)
    end)
    assert.same({ 1, 2, 3, 4, 5, 5, 5, 7, 7 }, log)
  end)
end)

describe("a coroutine that the script meddles with", function()
  drivers.each(function(d)
    local function sleeping(ctx, wait)
      local it = {}
      it.task = ctx:spawn(function()
        it.co = coroutine.running()
        it.got = table.pack(wait())
        it.after = table.pack(aio.suspend())
      end)
      d.turns(ctx, 2)
      return it
    end

    local cases = {
      sleep = { function() return aio.sleep(0.01) end, { n = 1, true } },
      suspend = { function() return aio.suspend(0.01) end, { n = 2, nil, "timeout" } },
      join = { function() return aio.spawn(aio.suspend):unref():join(0.01) end, { n = 2, nil, "timeout" } },
      yield = { function()
        for _ = 1, 20 do aio.yield() end
      end, { n = 0 } },
    }
    for name, case in pairs(cases) do
      it("is not resumed by it: " .. name, function()
        local ctx = d.context()
        local s = sleeping(ctx, case[1])
        for _ = 1, 5 do
          assert.same({ true }, { coroutine.resume(s.co, "stray", 1, 2) })
          assert.is_nil(s.got)
        end
        d.wait(ctx, function() return s.got end)
        assert.same(case[2], s.got)
        d.turns(ctx, 2)
        coroutine.resume(s.co, "stray")
        assert.is_nil(s.after)
        assert.is_true(s.task:wake("real", nil))
        d.wait(ctx, done(s.task))
        assert.same({ n = 2, "real", nil }, s.after)
      end)
    end

    it("keeps the values of its waker, whatever it is resumed with before and after", function()
      local ctx = d.context()
      local s = sleeping(ctx, aio.suspend)
      coroutine.resume(s.co, "before", "before")
      ctx:spawn(function()
        s.task:wake(1, 2, 3)
        coroutine.resume(s.co, "after", "after")
      end)
      d.wait(ctx, function() return s.got end)
      assert.same({ n = 3, 1, 2, 3 }, s.got)
    end)

    it("may be resumed by it in coroutine.yield, and the loop does not mind", function()
      local ctx, log = d.context(), {}
      local co = coroutine.create(function(...)
        log[#log + 1] = select("#", ...)
        for _ = 1, 3 do log[#log + 1] = table.pack(coroutine.yield()) end
      end)
      ctx:co_schedule(co, 1)
      d.turns(ctx, 2)
      ctx:spawn(function()
        aio.wake(co, "a", "b", "c")
        coroutine.resume(co, "script")
      end)
      d.turns(ctx, 3)
      assert.same({ 1, { n = 1, "script" }, { n = 0 } }, log)
      coroutine.resume(co)
      assert.equal("dead", coroutine.status(co))
    end)

    for name, wait in pairs {
      sleep = function() aio.sleep(0.003) end,
      suspend = function() aio.suspend(0.003) end,
      wait_readable = function(fd) aio.wait_readable(fd, 0.003) end,
      yield = function() aio.yield() end,
      ["coroutine.yield"] = coroutine.yield,
    } do
      it("may be closed by it: " .. name, function()
        local ctx, co, after, closed = d.context(), nil, 0, 0
        local fd, w = drivers.pipe()
        local task = ctx:spawn(function()
          co = coroutine.running()
          local _ <close> = setmetatable({}, { __close = function() closed = closed + 1 end })
          wait(fd)
          after = after + 1
        end)
        d.turn(ctx)
        assert.is_true(coroutine.close(co))
        assert.equal(1, closed)
        fds.write(w, "late")
        task:wake()
        local passed
        ctx:timer(function() passed = true end):arm(0.006)
        d.wait(ctx, function() return passed end)
        assert.equal(0, after)
        assert.is_nil((task:wake()))
        assert.same({ "dead" }, { coroutine.status(co) })
      end)
    end

    it("closed after it was woken, with values, never runs, and its joiner is told", function()
      local ctx = d.context()
      local s = sleeping(ctx, aio.suspend)
      local joiner = ctx:spawn(function() return s.task:join() end)
      d.turns(ctx, 2)
      ctx:spawn(function()
        s.task:wake(1, 2, 3)
        coroutine.close(s.co)
      end)
      d.wait(ctx, done(joiner))
      assert.is_nil(s.got)
      local cancelled = table.pack(joiner:join())
      assert.same({ n = 3, true, false }, { n = cancelled.n, cancelled[1], cancelled[2] })
      assert.is_true(aio.is_cancelled(cancelled[3]))
    end)

    it("resumed after its context is gone just waits on", function()
      local ctx = d.context()
      local s = sleeping(ctx, function() return aio.sleep(60) end)
      ctx:close()
      drivers.cleanup() -- or it would hold the context
      s.task, ctx = nil, nil -- luacheck: ignore
      collectgarbage()
      collectgarbage()
      for _ = 1, 3 do assert.same({ true }, { coroutine.resume(s.co, 1, 2) }) end
      assert.is_nil(s.got)
      assert.is_true(coroutine.close(s.co))
    end)
  end)
end)

describe("a late completion", function()
  drivers.each(function(d)
    it("never ends the next wait", function()
      local ctx = d.context()
      local r, w = drivers.pipe()
      local child = ctx:spawn(aio.suspend)
      local task
      task = ctx:spawn(function()
        for i = 1, 20 do
          local first
          if i % 3 == 0 then
            first = { aio.wait_readable(r, 0) }
          elseif i % 3 == 1 then
            first = { child:join(0) }
          else
            first = { aio.suspend(0) }
          end
          assert.equal("timeout", first[2])
          -- what would have ended the wait happens now, while another one is on
          if i % 3 == 0 then fds.write(w, "x") end
          if i == 19 then child:wake() end
          local from = aio.now()
          assert.same({ true }, { aio.sleep(0.001) })
          assert.is_true(aio.now() - from >= 0.001)
          if i % 3 == 0 then
            assert.is_true(aio.wait_readable(r))
            fds.read(r)
          end
          if i == 19 then
            assert.same({ true }, { child:join() })
            child = ctx:spawn(aio.suspend):unref()
          end
        end
      end)
      d.wait(ctx, done(task))
      assert.same({ true }, { task:join() })
    end)

    it("in the same turn as the time limit gives one result and one resumption", function()
      local ctx, log = d.context(), {}
      local list = {}
      for i = 1, 50 do
        list[i] = ctx:spawn(function()
          local got = aio.suspend(0.002)
          log[#log + 1] = got == nil and "timeout" or got
          assert.same({ n = 2, nil, "timeout" }, table.pack(aio.suspend(0.004)))
        end)
      end
      ctx:timer(function()
        for i = 1, 50 do list[i]:wake "woken" end
      end):arm(0.002)
      d.wait(ctx, function()
        for i = 1, 50 do if not done(list[i])() then return false end end
        return true
      end)
      assert.equal(50, #log)
      for i = 1, 50 do assert.same({ true }, { list[i]:join() }) end
    end)
  end)
end)
