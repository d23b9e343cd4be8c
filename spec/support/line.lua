-- SPDX-License-Identifier: MIT
--- Scenarios for what tasks wait for in a line: there is one token; take(t) waits for it, give() passes it on.
--
-- Way    line.scenarios("a mutex", { new = f, take = f, give = f, op = "mutex:lock" }); `by_holder`: only who took it
--        may give it; `stays`: what was taken for one who is gone stays taken, as an item in a queue does
-- Keep   after each scenario the token is where it belongs: exactly one can be taken, without waiting.

local assert = require "luassert"
local busted = require "busted"
local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local tasks = require "spec.support.tasks"

local describe, it = busted.describe, busted.it

local line = {}

-- Whoever leaves the line without the token: each waits with take(object, timeout of this way), until leave(waiter).
local ways = {
  ["by its timeout"] = { timeout = 0.002, results = { n = 2, nil, "timeout" } },
  ["by a cancel"] = { leave = function(w) w.task:cancel "enough" end },
  ["by a scope around it"] = { scope = 0.002 },
  ["by coroutine.close"] = { leave = function(w) assert.is_true(coroutine.close(w.co)) end },
}

function line.scenarios(name, kind)
  local take, give = kind.take, kind.give

  -- n tasks in line behind the one who has the token; served[i] is the i-th to get it, results[i] what i was told.
  local function queue_up(d, ctx, object, n, first)
    local waiters = { served = {}, list = {} }
    for i = 1, n do
      local w, how = {}, first and first[i] or {}
      local function wait()
        w.results = table.pack(take(object, how.timeout))
        if not w.results[1] then return end
        table.insert(waiters.served, i)
        if w.after then w.after() end
        give(object)
      end
      w.task = ctx:spawn(function()
        w.co = coroutine.running()
        if how.scope then
          w.results = table.pack(aio.timeout(how.scope, wait))
        else
          wait()
        end
      end)
      waiters[i], waiters.list[i] = w, w.task
      tasks.settle(d, ctx, { w.task })
    end
    return waiters
  end

  -- A task that has the token until it is woken, and then passes it on.
  local function hold(ctx, object, and_then)
    return ctx:spawn(function()
      assert(take(object))
      aio.suspend()
      give(object)
      if and_then then and_then() end
    end)
  end

  -- The token is there, once.
  local function check_free(object)
    assert.is_true(take(object, 0) and true)
    assert.same({ n = 2, nil, "timeout" }, table.pack(take(object, 0)))
    give(object)
    assert.is_true(take(object, 0) and true)
    give(object)
  end
  if kind.by_holder then -- one who has it may not ask again
    function check_free(object)
      assert.is_true(take(object, 0) and true)
      local other = aio.spawn(function() assert.same({ n = 2, nil, "timeout" }, table.pack(take(object, 0))) end)
      aio.await(other)
      give(object)
    end
  end
  local function free_after(d, ctx, object) tasks.run(d, ctx, check_free, object) end

  describe(name .. ", as a line of tasks,", function()
    drivers.each(function(d)
      it("admits one at a time: a contended counter", function()
        local ctx, object, n, inside, most = d.context(), kind.new(), 0, 0, 0
        local list = {}
        for i = 1, 8 do
          list[i] = ctx:spawn(function()
            for k = 1, 50 do
              assert(take(object))
              inside = inside + 1
              most = math.max(most, inside)
              local seen = n
              if (i + k) % 3 == 0 then aio.sleep(0) else aio.yield() end
              n = seen + 1
              inside = inside - 1
              give(object)
            end
          end)
        end
        tasks.finish(d, ctx, list)
        assert.same({ 400, 1 }, { n, most })
        free_after(d, ctx, object)
      end)

      it("hands over first come, first served, and nobody jumps in", function()
        local ctx, object = d.context(), kind.new()
        local waiters
        local holder = ctx:spawn(function()
          assert(take(object))
          assert(aio.suspend())
          give(object)
          assert.same({ n = 2, nil, "timeout" }, table.pack(take(object, 0))) -- it is not his any more
          assert(take(object)) -- behind all of them
          table.insert(waiters.served, "holder")
          give(object)
        end)
        tasks.settle(d, ctx, { holder })
        waiters = queue_up(d, ctx, object, 6)
        d.turns(ctx, 3)
        assert.same({}, waiters.served)
        holder:wake(true)
        tasks.finish(d, ctx, waiters.list)
        tasks.finish(d, ctx, { holder })
        assert.same({ 1, 2, 3, 4, 5, 6, "holder" }, waiters.served)
        for i = 1, 6 do assert.equal(1, waiters[i].results.n) end
        free_after(d, ctx, object)
      end)

      it("tries with a timeout of 0 or less, without waiting", function()
        local ctx, object = d.context(), kind.new()
        local order = {}
        tasks.run(d, ctx, function()
          assert.is_true(take(object, 0) and true)
          local other = aio.spawn(function()
            for _, t in ipairs { 0, -1, -math.huge } do
              assert.same({ n = 2, nil, "timeout" }, table.pack(take(object, t)))
            end
            order[#order + 1] = "tried"
          end)
          aio.spawn(function() order[#order + 1] = "another" end)
          aio.await(other)
          give(object)
        end)
        assert.equal("tried", order[1])
      end)

      it("gives up after the timeout, never before", function()
        local ctx, object = d.context(), kind.new()
        tasks.run(d, ctx, function()
          assert(take(object))
          aio.await(aio.spawn(function()
            local from = aio.now()
            assert.same({ n = 2, nil, "timeout" }, table.pack(take(object, 0.003)))
            assert.is_true(aio.now() - from >= 0.003)
          end))
          give(object)
          check_free(object)
        end)
        assert.equal(0, ctx:stats().timers_armed)
      end)

      for way, how in pairs(ways) do
        for position = 1, kind.stays and way == "by coroutine.close" and 0 or 4 do
          it(("is left %s from place %d of 4, and the rest is served"):format(way, position), function()
            local ctx, object = d.context(), kind.new()
            local holder = hold(ctx, object)
            tasks.settle(d, ctx, { holder })
            local waiters = queue_up(d, ctx, object, 4, { [position] = how })
            local leaver = waiters[position]
            if how.leave then
              how.leave(leaver)
            else
              d.wait(ctx, tasks.all_over(leaver.task))
            end
            d.turns(ctx, 3)
            assert.same({}, waiters.served) -- nothing was passed on
            holder:wake()
            local rest, expected = {}, {}
            for i = 1, 4 do
              if i ~= position then
                rest[#rest + 1] = waiters[i].task
                expected[#expected + 1] = i
              end
            end
            tasks.finish(d, ctx, rest)
            assert.same(expected, waiters.served)
            if how.results then assert.same(how.results, leaver.results) end
            if way == "by a cancel" then
              assert.equal("cancelled", leaver.task:status())
              assert.equal("enough", select(2, leaver.task:join()).reason)
            elseif how.scope then
              assert.same({ n = 2, nil, "timeout" }, leaver.results)
            end
            free_after(d, ctx, object)
          end)
        end
      end

      it("keeps what was given to one who is cancelled before it runs, till its next wait", function()
        local ctx, object = d.context(), kind.new()
        local waiters
        local holder = hold(ctx, object, function() waiters[1].task:cancel() end)
        tasks.settle(d, ctx, { holder })
        waiters = queue_up(d, ctx, object, 2)
        waiters[1].after = function()
          local ok, err = pcall(aio.sleep, 0)
          assert.is_false(ok)
          assert.is_true(aio.is_cancelled(err))
          aio.shield(give, object)
          error(err)
        end
        holder:wake()
        tasks.finish(d, ctx, waiters.list)
        assert.same({ 1, 2 }, waiters.served)
        assert.equal(1, waiters[1].results.n)
        assert.equal("cancelled", waiters[1].task:status())
        free_after(d, ctx, object)
      end)

      local if_it_comes_back = kind.stays and function() end or it

      if_it_comes_back("passes on what was given to one who is closed before it runs", function()
        local ctx, object = d.context(), kind.new()
        local waiters
        local holder = hold(ctx, object, function()
          assert.is_true(coroutine.close(waiters[1].co))
          assert.is_true(coroutine.close(waiters[2].co))
        end)
        tasks.settle(d, ctx, { holder })
        waiters = queue_up(d, ctx, object, 4)
        holder:wake()
        tasks.finish(d, ctx, { waiters[3].task, waiters[4].task })
        assert.same({ 3, 4 }, waiters.served)
        assert.equal("cancelled", waiters[1].task:status())
        free_after(d, ctx, object)
      end)

      if_it_comes_back("is free when all who were given it are closed before they run", function()
        local ctx, object = d.context(), kind.new()
        local waiters
        local holder = hold(ctx, object, function() for i = 1, 3 do coroutine.close(waiters[i].co) end end)
        tasks.settle(d, ctx, { holder })
        waiters = queue_up(d, ctx, object, 3)
        holder:wake()
        tasks.finish(d, ctx, { holder })
        d.wait(ctx, function() return waiters[3].task:status() == "cancelled" end)
        assert.same({}, waiters.served)
        free_after(d, ctx, object)
      end)

      it("is waited for in callbacks, by polling", function()
        local ctx, object, log = d.context(), kind.new(), {}
        local holder = hold(ctx, object, function() log[#log + 1] = "given" end)
        tasks.settle(d, ctx, { holder })
        ctx:schedule(function()
          ctx:schedule(holder.wake, holder)
          assert.same({ n = 2, nil, "timeout" }, table.pack(take(object, 0)))
          assert(take(object))
          log[#log + 1] = "taken"
          give(object)
        end)
        d.wait(ctx, function() return #log == 2 end)
        assert.same({ "given", "taken" }, log)
        ctx:schedule(function()
          assert(take(object))
          ctx:timer(function()
            log[#log + 1] = "timer"
            give(object)
          end):arm(0.001)
        end)
        tasks.run(d, ctx, function()
          aio.yield()
          assert(take(object))
          log[#log + 1] = "task"
          give(object)
        end)
        assert.same({ "given", "taken", "timer", "task" }, log)
        free_after(d, ctx, object)
      end)

      it("has room for tasks of two contexts", function()
        local a, b, object, served = d.context(), d.context(), kind.new(), {}
        local list = {}
        for i = 1, 20 do
          local ctx = i % 2 == 0 and a or b
          list[i] = ctx:spawn(function()
            assert(take(object, 20))
            assert.equal(ctx, aio.current())
            served[#served + 1] = i
            aio.yield()
            assert.equal(i, served[#served])
            give(object)
          end)
        end
        tasks.alternate(d, { a, b }, tasks.all_over(table.unpack(list)))
        for i = 1, 20 do aio.await(list[i]) end
        table.sort(served)
        for i = 1, 20 do assert.equal(i, served[i]) end
        free_after(d, a, object)
      end)

      it("goes on with the others when the context of some who wait is closed", function()
        local a, b, object = d.context(), d.context(), kind.new()
        local holder = hold(a, object)
        tasks.settle(d, a, { holder })
        local lost = queue_up(d, b, object, 2)
        local waiters = queue_up(d, a, object, 2)
        b:close()
        holder:wake()
        tasks.finish(d, a, waiters.list)
        assert.same({ 1, 2 }, waiters.served)
        assert.same({}, lost.served)
        free_after(d, a, object)
      end)

      if_it_comes_back("passes on what was given to one whose context is closed before it runs", function()
        local a, b, object = d.context(), d.context(), kind.new()
        local holder = hold(a, object, function() b:close() end)
        tasks.settle(d, a, { holder })
        local lost = queue_up(d, b, object, 1)
        local waiters = queue_up(d, a, object, 1)
        holder:wake()
        tasks.finish(d, a, waiters.list)
        assert.same({ 1 }, waiters.served)
        assert.same({}, lost.served)
        free_after(d, a, object)
      end)

      it("may be cleared away with all who stand in it", function()
        local weak = setmetatable({}, { __mode = "v" })
        do
          local ctx, object = d.context(), kind.new()
          ctx:spawn(function()
            assert(take(object))
            aio.suspend()
          end)
          local waiters = queue_up(d, ctx, object, 3)
          d.turns(ctx, 2)
          weak.object, weak.task = object, waiters[1].task
          ctx:close()
        end
        drivers.cleanup() -- which holds the contexts
        collectgarbage()
        collectgarbage()
        assert.is_nil(weak.object)
        assert.is_nil(weak.task)
      end)

      it("lives on while somebody waits in it", function()
        local ctx, weak = d.context(), setmetatable({}, { __mode = "v" })
        local holder, waiter
        do
          local object = kind.new()
          weak.object = object
          holder = ctx:spawn(function()
            assert(take(object))
            aio.suspend()
            give(object)
          end)
          tasks.settle(d, ctx, { holder })
          waiter = ctx:spawn(function() return take(weak.object) and true end)
          tasks.settle(d, ctx, { waiter })
        end
        for _ = 1, 3 do collectgarbage() end
        holder:wake()
        tasks.finish(d, ctx, { holder, waiter })
        assert.is_true(aio.await(waiter))
        waiter, holder = nil, nil -- luacheck: ignore
        for _ = 1, 3 do collectgarbage() end
        assert.is_nil(weak.object)
      end)

      it("cannot be joined where nobody can wait, and is not disturbed by the attempt", function()
        local ctx, object = d.context(), kind.new()
        tasks.run(d, ctx, function()
          assert(take(object))
          aio.await(aio.spawn(function()
            local function compare() return take(object) end
            assert.error_matches(function() table.sort({ 1, 2 }, compare) end, "cannot wait inside")
            assert.error_matches(coroutine.wrap(function() take(object) end), "cannot wait inside a coroutine")
          end))
          give(object)
          check_free(object)
        end)
      end)

      it("lets waiters in wrapped coroutines in", function()
        local ctx, object, log = d.context(), kind.new(), {}
        tasks.run(d, ctx, function()
          assert(take(object))
          local other = aio.spawn(function()
            for v in aio.wrap(function()
              assert(take(object))
              coroutine.yield "in"
              give(object)
              coroutine.yield "out"
            end) do log[#log + 1] = v end
          end)
          aio.yield()
          assert.same({}, log)
          give(object)
          aio.await(other)
        end)
        assert.same({ "in", "out" }, log)
      end)
    end)

    it("is waited for at top level, by turns of the default context", function()
      local object, log, go = kind.new(), {}, aio.event()
      local holder = aio.spawn(function()
        assert(take(object))
        go:wait()
        log[#log + 1] = "given"
        give(object)
      end)
      aio.sleep(0)
      assert.same({ n = 2, nil, "timeout" }, table.pack(take(object, 0)))
      assert.same({ n = 2, nil, "timeout" }, table.pack(take(object, 0.0005)))
      aio.default():timer(go.set, go):arm(0.001)
      assert(take(object))
      assert.same({ "given" }, log)
      give(object)
      holder:join()
      aio.run(check_free, object)
    end)

    it("is left by a waiter at top level whom an error of a callback ends", function()
      local object, err = kind.new(), {}
      local holder = hold(aio.default(), object)
      aio.sleep(0)
      aio.default():schedule(error, err)
      local ok, got = pcall(take, object)
      assert.is_false(ok)
      assert.equal(err, got)
      holder:wake()
      aio.await(holder)
      aio.run(check_free, object)
    end)

    local if_it_comes_back = kind.stays and function() end or it

    if_it_comes_back("is left by a waiter at top level who was given it in the turn that ended in an error", function()
      local object, err = kind.new(), {}
      local holder = hold(aio.default(), object, function() error(err) end)
      aio.sleep(0)
      aio.default():schedule(function() holder:wake() end)
      local ok, got = pcall(take, object)
      assert.is_false(ok)
      assert.equal(err, got)
      aio.run(check_free, object)
    end)

    it("for ever, where nobody could pass the token on, is a deadlock that names it", function()
      local object = kind.new()
      local ok, err = pcall(aio.run, function()
        assert(take(object))
        aio.await(aio.spawn(function() take(object) end))
      end)
      assert.is_false(ok)
      assert.matches("deadlock", err)
      assert.matches(kind.op, err, 1, true)
      aio.default():close()
      assert.error_matches(function()
        local other = kind.new()
        if kind.by_holder then
          aio.spawn(function()
            assert(take(other))
            aio.suspend()
          end):unref()
          aio.sleep(0)
        else
          assert(take(other))
        end
        take(other)
      end, "deadlock: " .. kind.op:gsub("%p", "%%%0"))
      aio.default():close()
    end)
  end)
end

return line
