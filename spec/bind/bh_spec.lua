-- SPDX-License-Identifier: MIT
--- Bottom halves: order, coalescing, re-entry, idle ones.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local logger = require "spec.support.logger"

describe("bh", function()
  drivers.each(function(d)
    it("runs once for one scheduling, then is quiet", function()
      local ctx, runs = d.context(), 0
      local bh = ctx:bh(function() runs = runs + 1 end)
      d.turns(ctx, 3)
      assert.equal(0, runs)
      bh:schedule()
      assert.is_true(bh:scheduled())
      d.turn(ctx)
      assert.equal(1, runs)
      assert.is_false(bh:scheduled())
      d.turns(ctx, 5)
      assert.equal(1, runs)
    end)

    it("scheduled five times before it runs is one run", function()
      local ctx, runs = d.context(), 0
      local bh = ctx:bh(function() runs = runs + 1 end)
      for _ = 1, 5 do bh:schedule() end
      d.turns(ctx, 5)
      assert.equal(1, runs)
    end)

    it("runs in the order of scheduling, objects and one-shots alike", function()
      local ctx = d.context()
      local log, note = logger()
      local a, b, c = ctx:bh(note, "a"), ctx:bh(note, "b"), ctx:bh(note, "c")
      c:schedule()
      ctx:schedule(note, 1)
      a:schedule()
      ctx:schedule(note, 2)
      b:schedule()
      c:schedule() -- keeps its place
      d.turn(ctx)
      assert.same({ "c", 1, "a", 2, "b" }, log)
    end)

    it("that schedules itself runs once in each of ten turns", function()
      local ctx, runs, bh = d.context(), 0, nil
      bh = ctx:bh(function()
        runs = runs + 1
        if runs < 10 then bh:schedule() end
      end)
      bh:schedule()
      for turn = 1, 10 do
        d.turn(ctx)
        assert.equal(turn, runs)
      end
      d.turns(ctx, 5)
      assert.equal(10, runs)
    end)

    it("does not run when cancelled, and once when scheduled again, at its new place", function()
      local ctx = d.context()
      local log, note = logger()
      local a, b = ctx:bh(note, "a"), ctx:bh(note, "b")
      a:schedule()
      b:schedule()
      a:cancel()
      a:cancel()
      assert.is_false(a:scheduled())
      a:schedule()
      d.turns(ctx, 3)
      assert.same({ "b", "a" }, log)
      a:schedule()
      a:cancel()
      d.turns(ctx, 3)
      assert.same({ "b", "a" }, log)
    end)

    it("is cancelled by a neighbour that runs before it", function()
      local ctx = d.context()
      local log, note = logger()
      local b = ctx:bh(note, "b")
      ctx:schedule(function() b:cancel() end)
      b:schedule()
      ctx:schedule(note, "c")
      d.turns(ctx, 3)
      assert.same({ "c" }, log)
    end)

    it("closes itself in its own callback", function()
      local ctx, runs, bh = d.context(), 0, nil
      bh = ctx:bh(function()
        runs = runs + 1
        bh:schedule()
        bh:close()
        bh:close()
      end)
      bh:schedule()
      d.turns(ctx, 3)
      assert.equal(1, runs)
      assert.is_false(bh:scheduled())
      assert.matches("closed", tostring(bh))
      assert.error_matches(function() bh:schedule() end, "closed bh")
    end)

    it("four of them close themselves after different counts", function()
      local ctx, counts, bhs = d.context(), { 0, 0, 0, 0 }, {}
      for i = 1, 4 do
        bhs[i] = ctx:bh(function()
          counts[i] = counts[i] + 1
          if counts[i] == i then bhs[i]:close() else bhs[i]:schedule() end
        end)
        bhs[i]:schedule()
      end
      d.turns(ctx, 8)
      assert.same({ 1, 2, 3, 4 }, counts)
    end)

    it("closes a pending neighbour, before it and after it in the batch", function()
      local ctx = d.context()
      local log, note = logger()
      local a, c = ctx:bh(note, "a"), ctx:bh(note, "c")
      a:schedule()
      ctx:schedule(function()
        a:close()
        c:close()
      end)
      c:schedule()
      ctx:schedule(note, "end")
      d.turns(ctx, 3)
      assert.same({ "a", "end" }, log)
    end)

    it("scheduled while others run waits for the next turn", function()
      local ctx = d.context()
      local log, note = logger()
      local late = ctx:bh(note, "late")
      ctx:schedule(function()
        note "first"
        late:schedule()
        ctx:schedule(note, "later")
      end)
      ctx:schedule(note, "second")
      d.turn(ctx)
      assert.same({ "first", "second" }, log)
      d.turn(ctx)
      assert.same({ "first", "second", "late", "later" }, log)
    end)

    it("a nested turn runs the rest of the batch, then its own, and nothing twice", function()
      local ctx = d.context()
      local log, note = logger()
      ctx:schedule(function()
        note "a begins"
        ctx:schedule(note, "new")
        d.turn(ctx)
        note "a ends"
      end)
      ctx:schedule(note, "b")
      ctx:schedule(note, "c")
      d.turns(ctx, 3)
      assert.same({ "a begins", "b", "c", "new", "a ends" }, log)
    end)

    it("nests ten deep in order", function()
      local ctx = d.context()
      local log, note = logger()
      for i = 1, 10 do
        ctx:schedule(function()
          note(i)
          d.turn(ctx)
          note(-i)
        end)
      end
      d.turn(ctx)
      assert.same({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -10, -9, -8, -7, -6, -5, -4, -3, -2, -1 }, log)
    end)

    it("the one whose callback takes a nested turn is run again there only if scheduled again", function()
      local ctx, runs, depth, bh = d.context(), 0, 0, nil
      bh = ctx:bh(function()
        runs = runs + 1
        depth = depth + 1
        d.turns(ctx, 2)
        if runs < 3 then
          bh:schedule()
          d.turn(ctx)
        end
        depth = depth - 1
      end)
      bh:schedule()
      d.turns(ctx, 3)
      assert.equal(3, runs)
      assert.equal(0, depth)
    end)

    it("an error leaves the rest of the batch to run in the same turn", function()
      local ctx = d.context()
      local log, note = logger()
      ctx:on_error(note)
      ctx:schedule(note, 1)
      ctx:schedule(error, { "oops" })
      ctx:schedule(note, 2)
      d.turn(ctx)
      assert.same({ 1, { "oops" }, 2 }, log)
    end)

    it("passes its arguments, nils among them and at the end", function()
      local ctx, got = d.context(), {}
      local function keep(...) got[#got + 1] = table.pack(...) end
      ctx:bh(keep, nil, 1, nil, "x", nil):schedule()
      ctx:schedule(keep, nil, false, nil)
      ctx:schedule(keep)
      ctx:schedule(keep, nil)
      d.turn(ctx)
      assert.same({ { n = 5, nil, 1, nil, "x", nil }, { n = 3, nil, false, nil }, { n = 0 }, { n = 1 } }, got)
    end)

    it("passes 250 arguments, each time", function()
      local ctx, sum, count, values = d.context(), 0, 0, {}
      for i = 1, 250 do values[i] = i end
      local function add(...)
        count = count + select("#", ...)
        for _, v in ipairs { ... } do sum = sum + v end
      end
      local bh = ctx:bh(add, table.unpack(values))
      ctx:schedule(add, table.unpack(values))
      for _ = 1, 3 do
        bh:schedule()
        d.turn(ctx)
      end
      assert.equal(4 * 250, count)
      assert.equal(4 * 250 * 251 // 2, sum)
    end)

    it("stays alive while it is scheduled, and goes when it is not", function()
      local ctx, runs = d.context(), 0
      local weak = setmetatable({}, { __mode = "v" })
      local function make()
        weak.bh = ctx:bh(function() runs = runs + 1 end)
        weak.bh:schedule()
      end
      make()
      collectgarbage()
      collectgarbage()
      assert.is_not_nil(weak.bh)
      d.turn(ctx)
      collectgarbage()
      collectgarbage()
      assert.equal(1, runs)
      assert.is_nil(weak.bh)
    end)

    describe("idle", function()
      -- Schedules itself whenever it runs, and counts.
      local function restless(ctx)
        local idle = { runs = 0 }
        idle.bh = ctx:bh(function()
          idle.runs = idle.runs + 1
          idle.bh:schedule_idle()
        end)
        idle.bh:schedule_idle()
        return idle
      end

      it("runs, once", function()
        local ctx, runs = d.context(), 0
        local bh = ctx:bh(function() runs = runs + 1 end)
        bh:schedule_idle()
        assert.is_true(bh:scheduled())
        d.wait(ctx, function() return runs > 0 end)
        assert.is_false(bh:scheduled())
        d.turns(ctx, 5)
        assert.equal(1, runs)
      end)

      it("runs about a hundred times a second when it schedules itself, without a busy loop", function()
        local ctx = d.context()
        local idle = restless(ctx)
        local turns, elapsed = d.pass(ctx, 0.3)
        local runs = idle.runs
        assert.is_true(runs >= 3, runs .. " runs")
        assert.is_true(runs <= elapsed / 0.01 + 1, ("%d runs in %f s"):format(runs, elapsed))
        assert.is_true(turns <= 2 * runs + 5, ("%d turns for %d runs"):format(turns, runs))
      end)

      it("does not run again for turns that do not wait", function()
        local ctx, start = d.context(), aio.now()
        local idle = restless(ctx)
        d.turns(ctx, 1000)
        assert.is_true(idle.runs <= (aio.now() - start) / 0.01 + 1, idle.runs .. " runs")
      end)

      it("is upgraded by a normal scheduling, to one run in the next turn", function()
        local ctx = d.context()
        local log, note = logger()
        local bh = ctx:bh(note, "bh")
        ctx:schedule(function() -- from in here an idle one would have to wait
          bh:schedule_idle()
          bh:schedule()
          ctx:schedule(note, "after")
        end)
        d.turns(ctx, 2)
        assert.same({ "bh", "after" }, log)
        d.pass(ctx, 0.03)
        assert.same({ "bh", "after" }, log)
      end)

      it("is what a normal one becomes when it is scheduled idle", function()
        local ctx, runs, bh = d.context(), 0, nil
        bh = ctx:bh(function()
          runs = runs + 1
          bh:schedule()
          bh:schedule_idle()
        end)
        bh:schedule()
        bh:schedule_idle()
        local _, elapsed = d.pass(ctx, 0.1)
        assert.is_true(runs >= 2, runs .. " runs")
        assert.is_true(runs <= elapsed / 0.01 + 1, ("%d runs in %f s"):format(runs, elapsed))
      end)

      it("is cancelled and closed like any other", function()
        local ctx, runs = d.context(), 0
        local a, b = ctx:bh(function() runs = runs + 1 end), ctx:bh(function() runs = runs + 1 end)
        a:schedule_idle()
        b:schedule_idle()
        a:cancel()
        b:close()
        d.pass(ctx, 0.03)
        assert.equal(0, runs)
      end)
    end)
  end)

  describe("and progress", function()
    after_each(drivers.cleanup)

    it("is made by a normal one, not by an idle one, and by one upgraded to normal", function()
      local ctx, runs = drivers.context(), 0
      local bh = ctx:bh(function() runs = runs + 1 end)
      assert.is_false(ctx:poll(false))
      bh:schedule()
      assert.is_true(ctx:poll(false))
      assert.is_false(ctx:poll(false))
      bh:schedule_idle()
      assert.is_false(ctx:poll(true)) -- woken by the idle one
      assert.equal(2, runs)
      bh:schedule_idle()
      bh:schedule()
      assert.is_true(ctx:poll(false))
      bh:schedule()
      bh:schedule_idle()
      assert.is_false(ctx:poll(true))
      assert.equal(4, runs)
    end)

    it("a poll with a limit comes back at a limit, not before", function()
      local ctx = drivers.context()
      local start = aio.now()
      assert.is_false(ctx:poll(0.02))
      assert.is_true(aio.now() - start >= 0.02)
    end)

    it("an idle one ends a wait within 10 ms", function()
      local ctx, at = drivers.context(), nil
      ctx:bh(function() at = aio.now() end):schedule_idle()
      local start = aio.now()
      while not at do assert.is_false(ctx:poll(5)) end
      assert.is_true(at - start < 1)
    end)
  end)
end)
