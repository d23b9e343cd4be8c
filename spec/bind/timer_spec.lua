-- SPDX-License-Identifier: MIT
--- Timers and clocks: nothing early, order, repetition without drift, the virtual clock.

local aio = require "aioloop"
local fds = require "fds"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local logger = require "spec.support.logger"

local virtual = aio.clock.virtual

local function nop() end

-- Virtual seconds since then, exact to a microsecond: the clock has a past with odd nanoseconds in it.
local function since(start) return (virtual:now() - start + 5e-7) // 1e-6 / 1e6 end

-- Keeps the thread busy, so that the loop falls behind.
local function hold_up(seconds)
  local deadline = aio.now() + seconds
  repeat until aio.now() >= deadline
end

describe("timer", function()
  drivers.each(function(d)
    it("fires once, not early, and may be armed again", function()
      local ctx, fired = d.context(), {}
      local timer = ctx:timer(function() fired[#fired + 1] = aio.now() end)
      assert.is_false(timer:armed())
      for i = 1, 3 do
        local due = aio.now() + 0.005
        assert.equal(timer, timer:arm(0.005))
        assert.is_true(timer:armed())
        d.wait(ctx, function() return #fired == i end)
        assert.is_true(fired[i] >= due)
        assert.is_false(timer:armed())
      end
      d.turns(ctx, 5)
      assert.equal(3, #fired)
    end)

    it("10,000 of them fire at random deadlines, none early, with at most one wake-up each #slow", function()
      local ctx, left, early = d.context(), 10000, 0
      local order_broken, last = 0, 0
      math.randomseed(42)
      for _ = 1, left do
        local due
        local function fire()
          local now = aio.now_ns()
          left = left - 1
          if now < due then early = early + 1 end
          if due < last then order_broken = order_broken + 1 end
          last = due
        end
        local timer = ctx:timer(fire)
        local after = math.random() * 0.3
        due = aio.now_ns() + math.floor(after * 1e9) -- a little before the deadline that arm computes
        timer:arm(after)
      end
      local turns = d.wait(ctx, function() return left == 0 end)
      assert.equal(0, early)
      assert.is_true(turns <= 10001, turns .. " turns")
      assert.is_true(order_broken < 2000) -- `due` is read before arm reads it, so neighbours may seem to swap
    end)

    it("equal deadlines fire in the order of arming, and arming again goes to the end", function()
      local ctx = d.context()
      local log, note = logger()
      local at = aio.now() + 0.005
      local timers = {}
      for i = 1, 5 do timers[i] = ctx:timer(note, i):arm_at(at) end
      timers[2]:arm_at(at)
      d.wait(ctx, function() return #log == 5 end)
      assert.same({ 1, 3, 4, 5, 2 }, log)
    end)

    it("fire by deadline, whatever the order of arming", function()
      local ctx = d.context()
      local log, note = logger()
      local now = aio.now()
      for _, ms in ipairs { 5, 1, 4, 2, 3 } do ctx:timer(note, ms):arm_at(now + ms / 1000) end
      hold_up(0.006)
      d.turn(ctx)
      assert.same({ 1, 2, 3, 4, 5 }, log)
    end)

    it("armed in the past by its own callback waits for the next turn", function()
      local ctx, runs, timer = d.context(), 0, nil
      timer = ctx:timer(function()
        runs = runs + 1
        timer:arm_at(0)
      end)
      timer:arm_at(0)
      for turn = 1, 10 do
        d.turn(ctx)
        assert.equal(turn, runs)
      end
    end)

    it("two that arm one another in the past do not livelock", function()
      local ctx, runs = d.context(), 0
      local a, b
      a = ctx:timer(function()
        runs = runs + 1
        b:arm(-1)
      end)
      b = ctx:timer(function()
        runs = runs + 1
        a:arm(-1)
      end)
      a:arm(0)
      d.turns(ctx, 10)
      assert.equal(10, runs)
    end)

    it("negative is now", function()
      local ctx = d.context()
      local log, note = logger()
      ctx:timer(note, 1):arm(-5)
      ctx:timer(note, 2):arm(-math.huge)
      ctx:timer(note, 3):arm(-2 ^ 40)
      ctx:timer(note, 4):arm_at(-1)
      ctx:timer(note, 5):arm_at(-math.huge)
      d.turn(ctx)
      table.sort(log)
      assert.same({ 1, 2, 3, 4, 5 }, log)
    end)

    it("infinite, and whatever does not fit, is never", function()
      local ctx = d.context()
      local log, note = logger()
      ctx:timer(note, 1):arm(math.huge)
      ctx:timer(note, 2):arm(2 ^ 40)
      ctx:timer(note, 3):arm(1e300)
      ctx:timer(note, 4):arm(math.maxinteger)
      ctx:timer(note, 5):arm_at(math.huge)
      ctx:timer(note, 6):arm_at(2 ^ 40)
      local turns = d.pass(ctx, 0.02)
      assert.same({}, log)
      assert.is_true(turns <= 5, turns .. " turns") -- and never a busy loop
      local timer = ctx:timer(note, 7):arm(0)
      timer:arm(math.huge) -- takes it back
      assert.is_false(timer:armed())
      d.turns(ctx, 3)
      assert.same({}, log)
    end)

    it("25 hours, and 200 years, are waited for", function()
      local ctx = d.context()
      local log, note = logger()
      local hours = ctx:timer(note, 1):arm(25 * 3600)
      local years = ctx:timer(note, 2):arm(200 * 365 * 86400)
      local turns = d.pass(ctx, 0.02)
      assert.same({}, log)
      assert.is_true(turns <= 5, turns .. " turns")
      assert.is_true(hours:armed() and years:armed())
      assert.is_true(hours:remaining() <= 90000 and hours:remaining() > 89900)
      assert.is_true(years:remaining() > 199 * 365 * 86400)
    end)

    it("is disarmed by a neighbour that fires before it, and closed", function()
      local ctx = d.context()
      local log, note = logger()
      local b, c = ctx:timer(note, "b"), ctx:timer(note, "c")
      ctx:timer(function()
        note "a"
        b:disarm()
        c:close()
      end):arm_at(0)
      b:arm_at(0)
      c:arm_at(0)
      ctx:timer(note, "d"):arm_at(0)
      d.turns(ctx, 3)
      assert.same({ "a", "d" }, log)
      assert.is_false(b:armed())
      assert.error_matches(function() c:arm(0) end, "closed timer")
    end)

    it("closes itself in its own callback", function()
      local ctx, runs, timer = d.context(), 0, nil
      timer = ctx:timer(function()
        runs = runs + 1
        timer:close()
      end)
      timer:arm(0, 0.001)
      d.wait(ctx, function() return runs > 0 end)
      d.pass(ctx, 0.01)
      assert.equal(1, runs)
      assert.matches("closed", tostring(timer))
    end)

    it("repeats without drift, and counts the ticks it missed", function()
      local ctx, calls, every = d.context(), {}, 0.005
      local timer = ctx:timer(function() calls[#calls + 1] = aio.now() end)
      local before = aio.now()
      timer:arm(every, every)
      local after = aio.now()
      hold_up(0.023)
      local ticks = 0
      for i = 1, 6 do
        local asked = aio.now()
        d.wait(ctx, function() return #calls == i end)
        local returned = aio.now()
        ticks = ticks + 1 + timer:missed()
        assert.is_true(calls[i] >= before + ticks * every - 1e-9, "early")
        -- every tick that was over when the turn began is part of this call or an earlier one
        assert.is_true(asked < after + (ticks + 1) * every, "a tick was neither called nor counted")
        assert.is_true(calls[i] <= returned)
        if i == 1 then assert.is_true(timer:missed() >= 3, timer:missed() .. " missed") end
        if i == 3 then hold_up(0.012) end
      end
      timer:disarm()
      local n = #calls
      d.pass(ctx, 0.015)
      assert.equal(n, #calls)
    end)

    it("a repeating one may be changed by its callback: disarmed, or armed for once", function()
      local ctx, runs, timer = d.context(), 0, nil
      timer = ctx:timer(function()
        runs = runs + 1
        if runs == 2 then timer:arm(0.001) end
      end)
      timer:arm(0.001, 0.001)
      d.wait(ctx, function() return runs == 3 end)
      assert.is_false(timer:armed())
      d.pass(ctx, 0.01)
      assert.equal(3, runs)
    end)

    it("passes its arguments, also 250 of them", function()
      local ctx, got, values = d.context(), {}, {}
      for i = 1, 250 do values[i] = i end
      local function keep(...) got[#got + 1] = table.pack(...) end
      ctx:timer(keep, nil, "x", nil):arm_at(0)
      ctx:timer({ clock = "monotonic", keep, 1, false }):arm_at(0)
      ctx:timer(keep, table.unpack(values)):arm_at(0)
      d.turn(ctx)
      table.sort(got, function(a, b) return a.n < b.n end)
      assert.same({ n = 2, 1, false }, got[1])
      assert.same({ n = 3, nil, "x", nil }, got[2])
      values.n = 250
      assert.same(values, got[3])
    end)

    it("runs after the bottom halves and the fd handlers of its turn", function()
      local ctx, turn, all = d.context(), nil, 0
      local r, w = drivers.pipe()
      assert(fds.write(w, "x"))
      local timer = ctx:timer(function() turn = turn .. "timer " end)
      local bh = ctx:bh(function() turn = turn .. "bh " end)
      ctx:watch(r, { read = function() turn = turn .. "fd " end })
      for _ = 1, 10 do
        timer:arm_at(0)
        bh:schedule()
        turn = ""
        d.turn(ctx)
        if turn == "bh fd timer " then
          all = all + 1
        else
          assert.equal("bh timer ", turn) -- while bottom halves keep coming, fds are asked for now and then
        end
      end
      assert.equal(5, all)
    end)

    it("an hour of the wall clock, and of the clock that runs in suspend, are told apart from 5 ms", function()
      local ctx = d.context()
      local log, note = logger()
      local due, at, boot = aio.time() + 0.005, nil, false
      ctx:timer({ clock = "realtime", function() at = aio.time() end }):arm_at(due)
      ctx:timer({ clock = "realtime", note, "late" }):arm(3600)
      ctx:timer({ clock = "boottime", function() boot = true end }):arm(0.002)
      ctx:timer({ clock = "boottime", note, "late" }):arm(3600)
      d.wait(ctx, function() return at and boot end)
      d.turns(ctx, 3)
      assert.same({}, log)
      assert.is_true(at >= due)
    end)

    it("stays alive while it is armed, and goes when it is not", function()
      local ctx, runs = d.context(), 0
      local weak = setmetatable({}, { __mode = "v" })
      local function make() weak.timer = ctx:timer(function() runs = runs + 1 end):arm(0.001) end
      make()
      collectgarbage()
      collectgarbage()
      assert.is_not_nil(weak.timer)
      d.wait(ctx, function() return runs == 1 end)
      collectgarbage()
      collectgarbage()
      assert.is_nil(weak.timer)
    end)

    describe("on the virtual clock", function()
      it("fires when the clock is advanced to its deadline, at each in turn", function()
        local ctx = d.context { clock = "virtual" }
        local log, start = {}, virtual:now()
        local function note(x) log[#log + 1] = { x, since(start) } end
        ctx:timer(note, "c"):arm(3)
        ctx:timer(note, "a"):arm(1)
        ctx:timer(function()
          note "b"
          ctx:timer(note, "new"):arm(0.5)
        end):arm(2)
        virtual:advance(0.5)
        assert.same({}, log)
        virtual:advance(2)
        assert.same({ { "a", 1 }, { "b", 2 }, { "new", 2.5 } }, log)
        virtual:advance(0.5)
        assert.same({ "c", 3 }, log[4])
        assert.equal(3, since(start))
      end)

      it("repeats once for each deadline of a long leap, and misses none", function()
        local ctx = d.context { clock = "virtual" }
        local start, times, timer = virtual:now(), {}, nil
        timer = ctx:timer(function()
          assert.equal(0, timer:missed())
          times[#times + 1] = since(start)
        end)
        timer:arm(1, 1)
        virtual:advance(5.5)
        assert.same({ 1, 2, 3, 4, 5 }, times)
        virtual:advance(3600)
        assert.equal(5 + 3600, #times)
      end)

      it("stands still while paused, and waits without a busy loop", function()
        local ctx, runs = d.context { clock = "virtual" }, 0
        local timer = ctx:timer(function() runs = runs + 1 end):arm(0.001)
        local turns = d.pass(ctx, 0.02)
        assert.equal(0, runs)
        assert.is_true(turns <= 5, turns .. " turns")
        assert.is_true(math.abs(timer:remaining() - 0.001) < 1e-6)
      end)

      it("runs like a real one when resumed, and stands still when paused again", function()
        local ctx, at = d.context { clock = "virtual" }, nil
        local start, real = virtual:now(), aio.now()
        ctx:timer(function() at = virtual:now() end):arm(0.01)
        virtual:resume()
        d.wait(ctx, function() return at end)
        assert.is_true(at >= start + 0.01)
        assert.is_true(aio.now() >= real + 0.01)
        virtual:pause()
        local stopped = virtual:now()
        ctx:timer(function() at = nil end):arm(0.001)
        d.pass(ctx, 0.01)
        assert.equal(stopped, virtual:now())
        assert.is_not_nil(at)
      end)

      it("jumps to the next deadline when the loop would sleep", function()
        local ctx = d.context { clock = "virtual" }
        local start, real, log = virtual:now(), aio.now(), {}
        for _, hours in ipairs { 3, 1, 2 } do
          ctx:timer(function() log[#log + 1] = since(start) / 3600 end):arm(hours * 3600)
        end
        virtual:autojump(true)
        d.wait(ctx, function() return #log == 3 end)
        assert.same({ 1, 2, 3 }, log)
        assert.is_true(aio.now() - real < 600)
      end)

      it("does not jump while there is something else to do", function()
        local ctx = d.context { clock = "virtual" }
        local log, note = logger()
        local bh, turns = nil, 0
        bh = ctx:bh(function()
          turns = turns + 1
          if turns < 10 then bh:schedule() else note "quiet" end
        end)
        bh:schedule()
        ctx:timer(note, "timer"):arm(1)
        virtual:autojump(true)
        d.wait(ctx, function() return #log == 2 end)
        assert.same({ "quiet", "timer" }, log)
      end)

      it("and real ones live side by side on one context", function()
        local ctx = d.context()
        local log, note = logger()
        ctx:timer({ clock = "virtual", note, "virtual" }):arm(1)
        ctx:timer(note, "real"):arm(0.002)
        d.wait(ctx, function() return #log == 1 end)
        assert.same({ "real" }, log)
        virtual:advance(1)
        assert.same({ "real", "virtual" }, log)
      end)
    end)
  end)

  describe("arguments", function()
    after_each(drivers.cleanup)

    it("that are no numbers raise, and NaN", function()
      local timer = drivers.context():timer(nop)
      for _, method in ipairs { "arm", "arm_at" } do
        for _, wrong in ipairs { "10", "", {}, true, nop, 0 / 0 } do
          assert.has_error(function() timer[method](timer, wrong) end)
          assert.is_false(timer:armed())
        end
        assert.has_error(function() timer[method](timer) end)
      end
    end)

    it("an interval must be a number greater than 0; an infinite one is once", function()
      local timer = drivers.context():timer(nop)
      for _, wrong in ipairs { 0, -1, "1", 0 / 0, -math.huge, {} } do
        assert.has_error(function() timer:arm(1, wrong) end)
        assert.is_false(timer:armed())
      end
      timer:arm(0, math.huge)
      assert.is_true(timer:armed())
    end)

    it("a wrong call leaves what was armed as it was", function()
      local timer = drivers.context():timer(nop):arm(100)
      assert.has_error(function() timer:arm("1") end)
      assert.is_true(timer:remaining() > 99)
    end)

    it("an unknown clock raises", function()
      local ctx = drivers.context()
      assert.error_matches(function() ctx:timer { clock = "sundial", nop } end, "sundial")
      assert.has_error(function() ctx:timer { clock = 1, nop } end)
      assert.has_error(function() ctx:timer {} end)
      assert.has_error(function() ctx:timer() end)
    end)
  end)

  it("tells how long it is until it fires", function()
    local ctx <close> = assert(aio.context { clock = "virtual" })
    local timer = ctx:timer(nop)
    assert.is_nil(timer:remaining())
    timer:arm(2)
    assert.is_true(math.abs(timer:remaining() - 2) < 1e-6)
    virtual:advance(0.5)
    assert.is_true(math.abs(timer:remaining() - 1.5) < 1e-6)
    virtual:advance(1.5)
    assert.is_nil(timer:remaining())
    timer:close()
    assert.has_error(function() timer:remaining() end)
    assert.is_false(timer:armed())
  end)

  it("is progress of a poll", function()
    local ctx <close> = assert(aio.context())
    ctx:timer(nop):arm(0.001)
    while not ctx:poll(1) do end
    assert.is_false(ctx:poll(false))
  end)
end)

describe("virtual clock", function()
  after_each(drivers.cleanup)

  it("starts paused at 0", function()
    local it = child.run [[
      local aio = require "aioloop"
      local start = aio.now()
      repeat until aio.now() > start + 0.002
      print(aio.clock.virtual:now())
    ]]
    assert.same({ code = 0, out = "0.0\n", err = "" }, it)
  end)

  it("visits the deadlines of all contexts in one order", function()
    local a, b = drivers.context { clock = "virtual" }, drivers.context { clock = "virtual" }
    local log, note = logger()
    a:timer(note, 1):arm(1)
    b:timer(note, 2):arm(2)
    a:timer(note, 3):arm(3)
    b:timer(note, 4):arm(4)
    virtual:advance(10)
    assert.same({ 1, 2, 3, 4 }, log)
  end)

  it("is the time of a context made with it", function()
    local ctx, seen = drivers.context { clock = "virtual" }, nil
    local start = virtual:now()
    ctx:timer(function() seen = aio.now() end):arm(7)
    virtual:advance(10)
    assert.is_true(math.abs(seen - start - 7) < 1e-6)
  end)

  it("runs bottom halves between deadlines", function()
    local ctx = drivers.context { clock = "virtual" }
    local log, note = logger()
    ctx:schedule(note, "before")
    ctx:timer(function() ctx:schedule(note, "between") end):arm(1)
    ctx:timer(note, "after"):arm(2)
    virtual:advance(2)
    assert.same({ "before", "between", "after" }, log)
  end)

  it("advances from within a callback", function()
    local ctx = drivers.context { clock = "virtual" }
    local log, note = logger()
    ctx:timer(note, 2):arm(2)
    ctx:timer(function()
      note "1 begins"
      virtual:advance(1)
      note "1 ends"
    end):arm(1)
    virtual:advance(1)
    assert.same({ "1 begins", 2, "1 ends" }, log)
  end)

  it("raises the first error of a callback when it has arrived", function()
    local ctx = drivers.context { clock = "virtual" }
    local start, runs = virtual:now(), 0
    ctx:timer(error, "oops", 0):arm(1)
    ctx:timer(function() runs = runs + 1 end):arm(2)
    local ok, err = pcall(virtual.advance, virtual, 5)
    assert.is_false(ok)
    assert.matches("^oops\nstack traceback:\n", err)
    assert.equal(1, runs)
    assert.equal(5, since(start))
    virtual:advance(1)
  end)

  it("raises it at any depth of the C stack", function()
    local ctx = drivers.context { clock = "virtual" }
    local function nest(depth, fn, ...)
      if depth == 0 then return fn(...) end
      local got
      string.gsub("x", "x", function(_, ...) got = table.pack(nest(depth - 1, fn, ...)) end, ...)
      return table.unpack(got, 1, got.n)
    end
    local deepest, raised = 0, 0
    for depth = 100, 200 do
      local _ <close> = ctx:timer(error, "oops", 0):arm(1)
      local there, fine, err = pcall(nest, depth, function() return pcall(virtual.advance, virtual, 2) end)
      if not there then break end
      deepest = depth
      assert.is_false(fine, depth)
      assert.is_truthy(err:find "^oops" or err:find "C stack overflow", err)
      raised = raised + (err:find "^oops" and 1 or 0)
    end
    assert.is_true(deepest > 150 and deepest < 200 and raised > 50)
  end)

  it("does not go back, and takes numbers", function()
    assert.has_error(function() virtual:advance(-1) end)
    assert.has_error(function() virtual:advance("1") end)
    assert.has_error(function() virtual:advance(0 / 0) end)
    assert.has_error(function() virtual:autojump() end)
    assert.is_false(virtual:autojump(true))
    assert.is_true(virtual:autojump(true))
    assert.is_true(virtual:autojump(false))
    assert.is_false(virtual:autojump(false))
    local now = virtual:now()
    virtual:advance(0)
    assert.equal(now, virtual:now())
  end)

  it("lets tasks sleep for days", function()
    local ctx = drivers.context { clock = "virtual" }
    local start = virtual:now()
    virtual:autojump(true)
    local slept = ctx:run(function()
      aio.sleep(86400)
      return aio.now() - start
    end)
    assert.is_true(math.abs(slept - 86400) < 1e-6)
  end)
end)
