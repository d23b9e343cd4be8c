-- SPDX-License-Identifier: MIT
--- Contexts: making and dropping them, poll and run, stop, errors, statistics, fairness.

local aio = require "aioloop"
local fds = require "fds"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local logger = require "spec.support.logger"
local tasks = require "spec.support.tasks"

local function nop() end

-- The error of a call, as it is: luassert would cut off its position.
local function failure(fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok)
  return err
end

describe("context", function()
  after_each(drivers.cleanup)

  describe("made", function()
    it("has the backend asked for, and the best one by itself", function()
      for _, backend in ipairs(drivers.backends) do
        assert.equal(backend, drivers.context({ backend = backend }):stats().backend)
      end
      local auto = drivers.context({ backend = "auto" }):stats().backend
      assert.equal(auto, drivers.context():stats().backend)
      assert.is_true(auto == "epoll" or auto == "io_uring")
    end)

    it("is refused a backend that is not there, and raises for one nobody knows", function()
      local ctx, message, errno = aio.context { backend = "io_uring" }
      if not ctx then
        assert.is_string(message)
        assert.is_true(math.type(errno) == "integer")
      else
        ctx:close()
      end
      assert.error_matches(function() aio.context { backend = "kqueue" } end, "kqueue")
      for _, wrong in ipairs { 1, "x", true, nop } do
        assert.has_error(function() aio.context(wrong) end)
      end
      assert.has_error(function() aio.context { backend = 1 } end)
      assert.has_error(function() aio.context { name = {} } end)
      assert.error_matches(function() aio.context { clock = "sundial" } end, "sundial")
    end)

    it("is told apart by type, name and state", function()
      local ctx = drivers.context { name = "mine" }
      assert.equal("context", aio.type(ctx))
      assert.equal("mine", ctx:stats().name)
      assert.matches("^aioloop.context %(open%)", tostring(ctx))
      assert.equal("aioloop.context", getmetatable(ctx).__name)
      ctx:close()
      assert.matches("^aioloop.context %(closed%)", tostring(ctx))
      assert.is_nil(aio.type(1))
      assert.is_nil(aio.type(io.stdout))
    end)

    it("is refused when there are no fds left, and leaves none behind #slow", function()
      local run = child.run [[
        local aio, fds = require "aioloop", require "fds"
        local before, all = fds.count(), {}
        aio.default() -- not to be in want of one later
        before = fds.count()
        local keep = {}
        while true do
          local r, w = fds.pipe()
          if not r then break end
          keep[#keep + 1], keep[#keep + 2] = r, w
        end
        for room = 0, 2 do -- a context needs two
          local ctx, message, errno = aio.context { backend = "epoll" }
          if ctx then
            print(room, "made")
            ctx:close()
          else
            print(room, message, errno)
          end
          fds.close(table.remove(keep))
        end
        for _, fd in ipairs(keep) do fds.close(fd) end
        collectgarbage()
        print(fds.count() == before)
      ]]
      assert.equal(0, run.code, run.err)
      local lines = {}
      for line in run.out:gmatch "[^\n]+" do lines[#lines + 1] = line end
      assert.matches("^0\t.*\t24$", lines[1]) -- EMFILE
      assert.equal("2\tmade", lines[3])
      assert.equal("true", lines[4])
    end)

    it("without free descriptors does not keep a part of the module from being read later", function()
      local run = child.run([[
        local aio = require "aioloop"
        local keep = {}
        repeat keep[#keep + 1] = io.open "/dev/null" until not io.open "/dev/null"
        print(aio.udp())
        print((pcall(function() return aio.socket end)))
        keep = nil
        collectgarbage()
        local a, b = aio.socketpair()
        keep = {}
        repeat keep[#keep + 1] = io.open "/dev/null" until not io.open "/dev/null"
        print(a:starttls {})
        keep = nil
        collectgarbage()
        print(aio.type((aio.udp())), type(aio.socket))
        b:close()
        print(a:starttls {})
      ]], 20, "ulimit -n 40;")
      assert.equal(0, run.code, run.err)
      local refused <const> = "nil\tToo many open files\t24\n"
      assert.equal(refused .. "false\n" .. refused .. "udp\ttable\nnil\tBroken pipe\t32\n", run.out)
    end)

    it("a thousand times and dropped, leaves fds and memory as they were #slow", function()
      local function round(n)
        for i = 1, n do
          local ctx = assert(aio.context { backend = drivers.backends[i % #drivers.backends + 1] })
          local r, w = fds.pipe()
          ctx:watch(r, { read = nop })
          ctx:timer(nop):arm(1000, 1000)
          ctx:bh(nop):schedule()
          ctx:bh(nop):schedule_idle()
          ctx:schedule(nop, 1, 2, 3)
          ctx:spawn(function() aio.sleep(1000) end)
          if i % 3 == 0 then ctx:poll(false) end
          if i % 5 == 0 then ctx:close() end
          ctx = nil -- luacheck: ignore
          fds.close(r)
          fds.close(w)
          if i % 50 == 0 then collectgarbage() end
        end
        collectgarbage()
        collectgarbage()
        local file <close> = assert(io.open "/proc/self/statm")
        local _, resident = file:read("n", "n")
        return fds.count() - 1, collectgarbage "count", resident * 4
      end
      round(200)
      local open, lua_kb, kb = round(200)
      local open_after, lua_kb_after, kb_after = round(1000)
      assert.equal(open, open_after)
      assert.is_true(lua_kb_after < lua_kb + 200, lua_kb_after - lua_kb .. " KB of Lua's")
      if not os.getenv "ASAN_OPTIONS" then -- which puts off every free
        assert.is_true(kb_after < kb + 4000, kb_after - kb .. " KB of the process")
      end
    end)
  end)

  describe("closed", function()
    it("may be closed again, drops what was pending, and its handles say so", function()
      local ctx, runs = drivers.context(), 0
      local function count() runs = runs + 1 end
      local bh, timer = ctx:bh(count), ctx:timer(count):arm(0)
      local r, w = drivers.pipe()
      fds.write(w, "x")
      local watch = ctx:watch(r, { read = count })
      bh:schedule()
      ctx:schedule(count)
      ctx:close()
      ctx:close()
      assert.equal(0, runs)
      for _, handle in ipairs { bh, timer, watch } do
        assert.matches("closed", tostring(handle))
        handle:close()
      end
      assert.is_false(bh:scheduled())
      assert.is_false(timer:armed())
      for _, method in ipairs { "poll", "run", "stop", "notify", "stats", "timeout", "attach" } do
        assert.error_matches(function() ctx[method](ctx) end, "closed context")
      end
      assert.has_error(function() ctx:schedule(nop) end)
      assert.has_error(function() timer:arm(1) end)
    end)

    it("is closed at the end of its scope", function()
      local outer
      do
        local ctx <close> = assert(aio.context())
        outer = ctx
      end
      assert.matches("closed", tostring(outer))
    end)
  end)

  drivers.each(function(d)
    for _, kind in ipairs { "schedule", "bh", "idle bh", "timer", "watch" } do
      it("closed in a callback of kind " .. kind .. " runs nothing more", function()
        local ctx, after = d.context(), 0
        local function count() after = after + 1 end
        local closed = false
        local function close()
          if closed then return count() end
          closed = true
          ctx:close()
        end
        local r, w = drivers.pipe()
        fds.write(w, "x")
        if kind == "schedule" then
          ctx:schedule(close)
          ctx:schedule(count)
          ctx:timer(count):arm(0)
          ctx:watch(r, { read = count })
        elseif kind == "bh" then
          ctx:bh(close):schedule()
          ctx:bh(count):schedule()
          ctx:timer(count):arm(0)
        elseif kind == "idle bh" then
          ctx:bh(close):schedule_idle()
          ctx:bh(count):schedule_idle()
          ctx:timer(count):arm(1)
        elseif kind == "timer" then
          ctx:timer(close):arm(0)
          ctx:timer(count):arm(0)
        else
          ctx:watch(r, { read = close })
          local r2, w2 = drivers.pipe()
          fds.write(w2, "x")
          ctx:watch(r2, { read = close })
          ctx:timer(count):arm(1000)
        end
        while not closed do d.turn(ctx, true) end
        if d.is_glib then require "aioloop.glib".iterate(false) end
        assert.equal(0, after)
        assert.matches("closed", tostring(ctx))
      end)
    end

    it("is fair: beside a bottom half, a zero timer and a writer that never rest, all runs within 3 turns", function()
      local ctx, turn, late = d.context(), 0, {}
      local bh, timer
      bh = ctx:bh(function() bh:schedule() end)
      bh:schedule()
      timer = ctx:timer(function() timer:arm(0) end):arm(0)
      local a, b = drivers.socketpair()
      local writes = 0
      ctx:watch(a, { write = function() writes = writes + 1 end })
      assert(b)
      local r, w = drivers.pipe()
      local since
      ctx:watch(r, {
        read = function()
          fds.read(r)
          late[#late + 1] = turn - since
          since = nil
        end,
      })
      local other = ctx:timer(function() late[#late + 1] = turn - since.timer end)
      for _ = 1, 30 do
        d.turns(ctx, 5)
        since = turn
        fds.write(w, "x")
        while since do
          turn = turn + 1
          d.turn(ctx)
          assert.is_true(turn < 1000)
        end
        since = { timer = turn }
        local n = #late
        other:arm(0)
        ctx:schedule(function() late[#late + 1] = turn - since.timer end)
        while #late < n + 2 do
          turn = turn + 1
          d.turn(ctx)
          assert.is_true(turn < 1000)
        end
      end
      assert.equal(90, #late)
      assert.is_true(math.max(table.unpack(late)) <= 3, math.max(table.unpack(late)) .. " turns")
      assert.is_true(writes > 30)
    end)

    it("takes nested turns from every kind of callback", function()
      local ctx = d.context()
      local log, note = logger()
      local function nested(what)
        return function()
          local inner = 0
          ctx:schedule(function() inner = inner + 1 end)
          d.turns(ctx, 2)
          assert.equal(1, inner)
          note(what)
        end
      end
      local r, w = drivers.pipe()
      fds.write(w, "x")
      ctx:schedule(nested "schedule")
      ctx:bh(nested "bh"):schedule()
      ctx:bh(nested "idle"):schedule_idle()
      ctx:timer(nested "timer"):arm(0)
      local watch
      watch = ctx:watch(r, {
        read = function()
          nested "watch"()
          watch:close()
        end,
      })
      ctx:spawn(nested "task")
      d.wait(ctx, function() return #log == 6 end)
      table.sort(log)
      assert.same({ "bh", "idle", "schedule", "task", "timer", "watch" }, log)
    end)

    it("is the current one while its turn runs, in nested turns of another too", function()
      local one, two = d.context(), d.context()
      local seen
      one:schedule(function()
        assert.equal(one, aio.current())
        two:schedule(function() seen = aio.current() end)
        two:poll(false)
        assert.equal(two, seen)
        assert.equal(one, aio.current())
      end)
      d.wait(one, function() return seen end)
      assert.equal(aio.default(), aio.current())
    end)

    it("tells errors to on_error, with the place they came from, the very value or a string with traceback", function()
      local ctx, told = d.context(), {}
      ctx:on_error(function(err, where) told[where] = { err } end)
      local value = setmetatable({}, { __tostring = function() error "never asked" end })
      ctx:schedule(error, value)
      ctx:bh(error, nil):schedule()
      ctx:timer(error, "oops", 0):arm(0)
      local r, w = drivers.pipe()
      fds.write(w, "x")
      local watch
      watch = ctx:watch(r, {
        read = function()
          watch:close()
          error(false)
        end,
      })
      d.wait(ctx, function() return told.schedule and told.bh and told.timer and told.watch end)
      assert.equal(value, told.schedule[1])
      assert.is_nil(told.bh[1])
      assert.matches("^oops\nstack traceback:\n", told.timer[1])
      assert.equal(false, told.watch[1])
      assert.same({}, ctx:stats().errors)
    end)
  end)

  describe("polled", function()
    it("never waits when told so, waits at most so long, or until there is something", function()
      local ctx = drivers.context()
      assert.is_false(ctx:poll(false))
      assert.is_false(ctx:poll(0))
      assert.is_false(ctx:poll(-1))
      drivers.calm(ctx)
      local start = aio.now()
      assert.is_false(ctx:poll(0.003))
      assert.is_true(aio.now() - start >= 0.003)
      ctx:timer(nop):arm(0.003)
      while not ctx:poll() do end
      assert.is_true(aio.now() - start >= 0.006)
      ctx:schedule(nop)
      assert.is_true(ctx:poll(math.huge))
      for _, wrong in ipairs { "1", {}, nop, 0 / 0 } do
        assert.has_error(function() ctx:poll(wrong) end)
      end
    end)

    it("a notification before or in the wait ends it, once, without progress", function()
      local ctx = drivers.context()
      drivers.calm(ctx)
      ctx:notify()
      ctx:notify()
      assert.is_false(ctx:poll(true))
      local start = aio.now()
      assert.is_false(ctx:poll(0.003))
      assert.is_true(aio.now() - start >= 0.003)
      ctx:timer(function() ctx:notify() end):arm(0)
      assert.is_true(ctx:poll(true))
      assert.is_false(ctx:poll(true))
    end)

    it("with the lock held by the same thread, works", function()
      local ctx = drivers.context()
      ctx:acquire()
      ctx:acquire()
      ctx:schedule(nop)
      assert.is_true(ctx:poll(true))
      ctx:release()
      ctx:release()
    end)
  end)

  describe("run", function()
    it("without a function returns when nothing referenced is left", function()
      local ctx = drivers.context()
      local log, note = logger()
      ctx:run()
      ctx:schedule(note, "schedule")
      ctx:bh(note, "bh"):schedule()
      ctx:bh(note, "idle"):schedule_idle()
      ctx:timer(note, "timer"):arm(0.002)
      local r, w = drivers.pipe()
      local watch
      watch = ctx:watch(r, {
        read = function()
          note "watch"
          watch:close()
        end,
      })
      ctx:timer(fds.write, w, "x"):arm(0.004)
      ctx:run()
      table.sort(log)
      assert.same({ "bh", "idle", "schedule", "timer", "watch" }, log)
    end)

    it("does not wait for what is not referenced", function()
      local ctx = drivers.context()
      local r = drivers.pipe()
      local watch = ctx:watch(r, { read = nop })
      assert.equal(watch, watch:unref())
      local timer = ctx:timer(nop):arm(1000)
      assert.equal(timer, timer:unref())
      ctx:timer(nop):unref():arm(1000)
      local bh = ctx:bh(nop)
      assert.equal(bh, bh:unref())
      bh:schedule()
      ctx:run()
      assert.is_true(timer:armed())
      watch:close()
    end)

    it("waits again for what was referenced again", function()
      local ctx, fired = drivers.context(), false
      local timer = ctx:timer(function() fired = true end):unref():arm(0.003)
      ctx:run()
      assert.is_false(fired)
      assert.equal(timer, timer:ref())
      ctx:run()
      assert.is_true(fired)
    end)

    it("a watch without a callback, a disarmed timer, a cancelled bottom half are not referenced", function()
      local ctx = drivers.context()
      local r = drivers.pipe()
      ctx:watch(r, {})
      ctx:watch(r, { read = nop }):set {}
      ctx:timer(nop):arm(1000):disarm()
      ctx:timer(nop):arm(1000):close()
      local bh = ctx:bh(nop)
      bh:schedule()
      bh:cancel()
      ctx:run()
    end)

    it("what is dropped while referenced by the loop alone keeps it running to its end", function()
      local ctx, fired = drivers.context(), false
      ctx:timer(function() fired = true end):arm(0.002)
      collectgarbage()
      collectgarbage()
      ctx:run()
      assert.is_true(fired)
    end)

    it("with a function returns its results, after what is referenced has ended", function()
      local ctx, fired = drivers.context(), false
      local got = table.pack(ctx:run(function(...)
        ctx:timer(function() fired = true end):arm(0.002)
        return select("#", ...), nil, "x", nil
      end, nil, nil, nil))
      assert.same({ n = 4, 3, nil, "x", nil }, got)
      assert.is_true(fired)
    end)

    it("with a function raises its error", function()
      local ctx, value = drivers.context(), {}
      assert.equal(value, failure(ctx.run, ctx, function() error(value) end))
      assert.matches("^oops\nstack traceback:", failure(ctx.run, ctx, function() error("oops", 0) end))
    end)

    it("inside a run waits for its function alone, and without one is an error that tells what to do", function()
      local ctx = drivers.context()
      local message, inner
      ctx:run(function()
        local ok
        ok, message = pcall(ctx.run, ctx)
        assert.is_false(ok)
      end)
      assert.matches("ctx:run%(fn%)", message)
      ctx:schedule(function()
        inner = ctx:run(function()
          aio.sleep(0.001)
          return "inner"
        end)
      end)
      local timer = ctx:timer(nop):arm(1000)
      ctx:timer(function() timer:disarm() end):arm(0.005)
      ctx:run()
      assert.equal("inner", inner)
    end)

    it("is stopped from a callback, at the end of the turn", function()
      local ctx = drivers.context()
      local log, note = logger()
      ctx:timer(nop):arm(1000)
      ctx:schedule(function()
        ctx:stop()
        note "stopped"
      end)
      ctx:schedule(note, "the same turn")
      ctx:run()
      assert.same({ "stopped", "the same turn" }, log)
      ctx:timer(function() ctx:stop() end):arm(0.001)
      ctx:run()
    end)

    it("stop ends the innermost run alone", function()
      local ctx = drivers.context()
      local log, note = logger()
      ctx:schedule(function()
        ctx:schedule(function() ctx:stop() end)
        ctx:run(function() aio.sleep(1000) end)
        note "inner"
      end)
      ctx:timer(function()
        note "outer goes on"
        ctx:stop()
      end):arm(0.005)
      ctx:run()
      assert.same({ "inner", "outer goes on" }, log)
    end)

    it("a stop when nothing runs is not remembered", function()
      local ctx, fired = drivers.context(), false
      ctx:stop()
      ctx:timer(function() fired = true end):arm(0.002)
      ctx:run()
      assert.is_true(fired)
    end)

    it("of the module acts on the current context", function()
      local fired = false
      local result = aio.run(function(x)
        assert.equal(aio.default(), aio.current())
        aio.default():timer(function() fired = true end):arm(0.001)
        return x
      end, 42)
      assert.equal(42, result)
      assert.is_true(fired)
      assert.equal("called", aio(function() return "called" end))
      aio.default():timer(nop):arm(1000)
      aio.default():schedule(aio.stop)
      aio.run()
      aio.default():close()
      assert.matches("open", tostring(aio.default())) -- a new one
    end)
  end)

  describe("an error of a callback", function()
    it("is raised by poll when the turn has finished, with a traceback; the others are in stats().errors", function()
      local ctx = drivers.context()
      local log, note = logger()
      local second = {}
      ctx:schedule(function() error("first", 0) end)
      ctx:schedule(error, second)
      ctx:schedule(note, 1)
      ctx:timer(error, nil):arm(0)
      ctx:timer(note, 2):arm(0)
      local err = failure(ctx.poll, ctx, false)
      assert.matches("^first\nstack traceback:\n.*context_spec.lua:%d+: in function", err)
      assert.same({ 1, 2 }, log)
      local errors = ctx:stats().errors
      assert.equal(err, errors[1])
      assert.equal(second, errors[2])
      assert.is_false(ctx:poll(false)) -- raised once
    end)

    it("is raised as the very value when it is no string", function()
      local ctx = drivers.context()
      for _, value in ipairs { {}, 42, true, nop, io.stdout } do
        ctx:schedule(error, value)
        assert.equal(value, failure(ctx.poll, ctx, false))
      end
      ctx:schedule(error, nil)
      assert.is_nil(failure(ctx.poll, ctx, false))
      ctx:schedule(error, false)
      assert.equal(false, failure(ctx.poll, ctx, false))
    end)

    it("is raised by the outermost poll", function()
      local ctx, inner = drivers.context(), nil
      ctx:schedule(function()
        ctx:schedule(error, "deep", 0)
        inner = pcall(ctx.poll, ctx, false)
      end)
      assert.matches("^deep\n", failure(ctx.poll, ctx, false))
      assert.is_true(inner)
    end)

    it("is raised by run and by a wait outside of tasks; the loop stays usable", function()
      local ctx, fired = drivers.context(), false
      ctx:timer(function() fired = true end):arm(0.002)
      ctx:schedule(error, "oops", 0)
      assert.matches("^oops\n", failure(ctx.run, ctx))
      ctx:run()
      assert.is_true(fired)
      aio.default():schedule(error, "oops", 0)
      assert.matches("^oops\n", failure(aio.sleep, 0.001))
      assert.is_true(aio.sleep(0))
    end)

    it("of on_error itself is reported with the one it was handling", function()
      local ctx = drivers.context()
      ctx:on_error(function(err) error("handler of " .. err, 0) end)
      ctx:schedule(function() error { toString = nop } end) -- cannot be concatenated
      assert.is_table(failure(ctx.poll, ctx, false))
      assert.equal(2, #ctx:stats().errors)
      assert.matches("attempt to concatenate", ctx:stats().errors[2])
      ctx:schedule(error, "oops", 0)
      assert.matches("^oops\n", failure(ctx.poll, ctx, false))
      assert.matches("^handler of oops", ctx:stats().errors[2])
    end)

    it("goes nowhere else when on_error is set, and back when it is taken away", function()
      local ctx = drivers.context()
      local log, note = logger()
      ctx:on_error(note)
      ctx:schedule(error, 1)
      assert.is_true(ctx:poll(false))
      assert.same({ 1 }, log)
      ctx:on_error(nil)
      ctx:schedule(error, 2)
      assert.equal(2, failure(ctx.poll, ctx, false))
      assert.has_error(function() ctx:on_error(1) end)
      assert.has_error(function() ctx:on_error {} end)
    end)

    it("a hundred thousand times leaves nothing behind #slow", function()
      local ctx, errors, bh = drivers.context(), 0, nil
      ctx:on_error(function() errors = errors + 1 end)
      local n, value = 0, {}
      bh = ctx:bh(function()
        n = n + 1
        bh:schedule()
        if n % 2 == 0 then error(value) end
      end)
      bh:schedule()
      for _ = 1, 1000 do ctx:poll(false) end
      collectgarbage()
      local before = collectgarbage "count"
      for _ = 1, 100000 do ctx:poll(false) end
      collectgarbage()
      assert.equal(50500, errors)
      assert.is_true(collectgarbage "count" < before + 50)
    end)
  end)

  describe("tells", function()
    it("what it has done and has", function()
      local ctx = drivers.context()
      local r, w = drivers.pipe()
      fds.write(w, "x")
      local before = ctx:stats()
      for _, name in ipairs { "polls", "wakeups", "bhs", "timers", "watches", "tasks", "poll_ns" } do
        assert.equal("integer", math.type(before[name]), name)
        assert.equal(0, before[name], name)
      end
      assert.same({}, before.errors)
      ctx:watch(r, { read = nop })
      ctx:timer(nop):arm(0)
      ctx:timer(nop):arm(1000)
      ctx:schedule(nop)
      local task = ctx:spawn(function() aio.suspend() end)
      local planned = ctx:stats()
      assert.equal(1, planned.watches)
      assert.equal(2, planned.timers_armed)
      assert.equal(1, planned.tasks)
      for _ = 1, 3 do ctx:poll(false) end
      local after = ctx:stats()
      assert.equal(3, after.polls)
      assert.equal(1, after.bhs)
      assert.equal(1, after.timers)
      assert.equal(1, after.timers_armed)
      assert.is_true(after.fds >= 2)
      task:wake()
      ctx:poll(false)
      assert.equal(0, ctx:stats().tasks)
    end)

    for _, backend in ipairs(drivers.pollable) do
      it("by events, pollfd and timeout when it wants a turn, on " .. backend, function()
        local ctx = drivers.context { backend = backend }
        local outer = drivers.context()
        local readable = 0
        outer:watch(ctx, { read = function() readable = readable + 1 end })
        local function wants()
          readable = 0
          outer:poll(false)
          return readable > 0
        end
        -- The second turn finds nothing: it clears what had woken the other loop.
        local function serve()
          ctx:poll(false)
          assert.is_false(ctx:poll(false))
        end
        assert.equal("r", ctx:events())
        assert.equal("integer", math.type(ctx:pollfd()))
        assert.is_nil(ctx:timeout())
        assert.is_false(wants())

        ctx:schedule(nop)
        assert.equal(0, ctx:timeout())
        assert.is_true(wants())
        serve()
        assert.is_nil(ctx:timeout())
        assert.is_false(wants())

        local timer = ctx:timer(nop):arm(100)
        assert.is_true(wants()) -- the outer loop must ask for the timeout again
        serve()
        assert.is_true(ctx:timeout() > 99 and ctx:timeout() <= 100)
        assert.is_false(wants())
        timer:arm(0)
        assert.equal(0, ctx:timeout())
        timer:disarm()
        serve()
        assert.is_nil(ctx:timeout())

        local r, w = drivers.pipe()
        local watch = ctx:watch(r, { read = nop })
        serve()
        assert.is_false(wants())
        fds.write(w, "x")
        assert.is_true(wants())
        watch:close()
        serve()
        assert.is_false(wants())

        local bh = ctx:bh(nop)
        bh:schedule_idle()
        assert.is_true(ctx:timeout() <= 0.01)
        bh:cancel()
        ctx:notify()
        assert.is_true(wants())
      end)
    end

    it("that backend poll has no pollfd", function()
      local fd, message, errno = drivers.context({ backend = "poll" }):pollfd()
      assert.is_nil(fd)
      assert.is_string(message)
      assert.equal("integer", math.type(errno))
    end)
  end)

  it("survives a second require, which finds the same world", function()
    local first = package.loaded["aioloop.core"]
    local ctx, runs = drivers.context(), 0
    package.loaded["aioloop.core"] = nil
    local second = require "aioloop.core"
    package.loaded["aioloop.core"] = first
    assert.are_not.equal(first, second)
    assert.equal("context", second.type(ctx))
    assert.equal(first.default(), second.default())
    ctx:schedule(function() runs = runs + 1 end)
    collectgarbage()
    ctx:poll(false)
    assert.equal(1, runs)
    local other <close> = assert(second.context())
    other:schedule(function() runs = runs + 1 end)
    other:poll(false)
    assert.equal(2, runs)
    assert.equal("context", first.type(other))
  end)

  it("callbacks do not need the coroutine that registered them", function()
    local ctx, runs = drivers.context(), 0
    local function count() runs = runs + 1 end
    local r, w = drivers.pipe()
    fds.write(w, "x")
    tasks.call_in_passing(function()
      ctx:schedule(count)
      ctx:bh(count):schedule()
      ctx:timer(count):arm(0)
      ctx:watch(r, { read = count })
    end)
    while runs < 4 do ctx:poll(5) end
  end)

  it("time goes on, in seconds and nanoseconds, and the wall clock is the wall clock", function()
    local s, ns = aio.now(), aio.now_ns()
    assert.equal("float", math.type(s))
    assert.equal("integer", math.type(ns))
    assert.is_true(aio.now() >= s and aio.now_ns() >= ns)
    assert.is_true(math.abs(ns / 1e9 - s) < 10)
    assert.is_true(math.abs(aio.time() - os.time()) < 10)
    assert.matches("^%d+%.%d+", aio.version)
  end)
end)
