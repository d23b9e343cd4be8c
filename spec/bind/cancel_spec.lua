-- SPDX-License-Identifier: MIT
--- task:cancel and aio.shield: what is raised, where, how often, what it leaves behind, and who is told.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"

local over = require("spec.support.tasks").all_over

local function is_cancel(err, reason)
  assert.is_true(aio.is_cancelled(err))
  assert.equal(reason, err.reason)
end

-- Something to close at the end of a block.
local function closing(fn) return setmetatable({}, { __close = function(_, err) fn(err) end }) end

describe("cancel", function()
  drivers.each(function(d)
    it("of a task that has not begun: it never begins", function()
      local ctx, ran = d.context(), false
      local task = ctx:spawn(function() ran = true end)
      assert.is_true(task:cancel "early")
      assert.equal("cancelled", task:status())
      d.turns(ctx, 3)
      assert.is_false(ran)
      assert.equal(0, ctx:stats().live)
      assert.equal(0, ctx:stats().tasks)
      local joiner = ctx:spawn(function() return task:join() end)
      d.wait(ctx, over(joiner))
      local _, ok, err = joiner:join()
      assert.is_false(ok)
      is_cancel(err, "early")
    end)

    it("of a task that has not begun lets go of its arguments", function()
      local ctx, weak = d.context(), setmetatable({ {} }, { __mode = "v" })
      local task = ctx:spawn(function() end, weak[1])
      task:cancel()
      d.turns(ctx, 2)
      collectgarbage()
      collectgarbage()
      assert.is_nil(weak[1])
      assert.equal("cancelled", task:status())
    end)

    it("raises a value with the reason, whatever that is, and a string for it", function()
      local reason = setmetatable({}, { __tostring = function() return "because" end })
      for _, case in ipairs { { nil, "cancelled" }, { "x", "cancelled: x" }, { 42, "cancelled: 42" },
        { false, "cancelled: false" }, { reason, "cancelled: because" } } do
        local ctx, got = d.context(), nil
        local task = ctx:spawn(function()
          local _
          _, got = pcall(aio.suspend)
        end)
        d.turns(ctx, 2)
        assert.is_true(task:cancel(case[1]))
        d.wait(ctx, over(task))
        is_cancel(got, case[1])
        assert.equal(case[2], tostring(got))
        assert.equal("userdata", type(got))
      end
    end)

    it("is delivered once the caller has yielded, and in the order of the calls", function()
      local ctx, log = d.context(), {}
      local tasks = {}
      for i = 1, 3 do
        tasks[i] = ctx:spawn(function()
          pcall(aio.suspend)
          log[#log + 1] = i
        end)
      end
      d.turns(ctx, 2)
      local canceller = ctx:spawn(function()
        for i = 3, 1, -1 do tasks[i]:cancel() end
        log[#log + 1] = "called"
      end)
      d.wait(ctx, over(canceller, table.unpack(tasks)))
      assert.same({ "called", 3, 2, 1 }, log)
    end)

    it("from a callback does not run the task within the call", function()
      local ctx, log = d.context(), {}
      local task = ctx:spawn(function()
        pcall(aio.suspend)
        log[#log + 1] = "task"
      end)
      d.turns(ctx, 2)
      ctx:schedule(function()
        task:cancel()
        log[#log + 1] = "callback"
      end)
      d.wait(ctx, over(task))
      assert.same({ "callback", "task" }, log)
    end)

    it("twice is one cancel, with the first reason; of one that has ended it is false", function()
      local ctx, errors = d.context(), {}
      local task = ctx:spawn(function()
        for i = 1, 3 do errors[i] = select(2, pcall(aio.suspend)) end
      end)
      d.turns(ctx, 2)
      assert.is_true(task:cancel "first")
      assert.is_true(task:cancel "second")
      d.wait(ctx, over(task))
      is_cancel(errors[1], "first")
      assert.is_true(rawequal(errors[1], errors[2]) and rawequal(errors[1], errors[3]))
      assert.equal("ended", task:status())
      assert.is_false(task:cancel())
      local cancelled = ctx:spawn(function() end)
      cancelled:cancel()
      assert.is_false(cancelled:cancel())
      local failed = ctx:spawn(error, "no"):keep()
      d.wait(ctx, over(failed))
      assert.is_false(failed:cancel())
      assert.is_false((failed:join()))
    end)

    it("of oneself is raised by the next wait", function()
      local ctx, log = d.context(), {}
      local task = ctx:spawn(function()
        assert.is_true(aio.self():cancel "me")
        log[#log + 1] = "goes on"
        aio.yield()
        log[#log + 1] = "never"
      end)
      d.wait(ctx, over(task))
      assert.same({ "goes on" }, log)
      assert.equal("cancelled", task:status())
    end)

    it("of one that runs on without a wait has no effect", function()
      local ctx = d.context()
      local task = ctx:spawn(function()
        aio.self():cancel()
        return "done"
      end)
      d.wait(ctx, over(task))
      assert.equal("ended", task:status())
      assert.same({ true, "done" }, { task:join() })
    end)

    it("gives every joiner false and the same value, and await raises it", function()
      local ctx = d.context()
      local task = ctx:spawn(aio.suspend)
      local before = ctx:spawn(function() return task:join() end)
      local awaiting = ctx:spawn(function() return pcall(aio.await, task) end)
      d.turns(ctx, 2)
      assert.is_true(task:cancel "gone")
      d.wait(ctx, over(before, awaiting))
      local ok, err = task:join()
      assert.is_false(ok)
      is_cancel(err, "gone")
      assert.equal("cancelled", task:status())
      for _, joiner in ipairs { before, awaiting } do
        local _, joined, same = joiner:join()
        assert.is_false(joined)
        assert.is_true(rawequal(err, same))
      end
      assert.is_true(rawequal(err, (select(2, task:join()))))
    end)

    it("of a joiner leaves whom it joins alone", function()
      local ctx = d.context()
      local task = ctx:spawn(aio.suspend)
      local joiner = ctx:spawn(function() return task:join() end)
      d.turns(ctx, 2)
      joiner:cancel()
      d.wait(ctx, over(joiner))
      assert.equal("waiting", task:status())
      task:wake "result"
      d.wait(ctx, over(task))
      assert.same({ true, "result" }, { task:join() })
    end)

    it("is not reported as an error, nobody having joined", function()
      local ctx, reported = d.context(), {}
      ctx:on_error(function(err) reported[#reported + 1] = err end)
      local tasks = { ctx:spawn(aio.suspend), ctx:spawn(function() end), ctx:spawn(function()
        pcall(aio.suspend)
        aio.sleep(1)
      end) }
      tasks[2]:cancel()
      d.turns(ctx, 2)
      for _, task in ipairs(tasks) do task:cancel() end
      d.wait(ctx, over(table.unpack(tasks)))
      d.turns(ctx, 3)
      for _, task in ipairs(tasks) do assert.equal("cancelled", task:status()) end
      assert.same({}, reported)
    end)

    it("that ends in an error of another kind is a failure", function()
      local ctx, reported, mine = d.context(), {}, {}
      ctx:on_error(function(err) reported[#reported + 1] = err end)
      local task = ctx:spawn(function()
        local _ <close> = closing(function() error(mine) end)
        aio.suspend()
      end)
      d.turns(ctx, 2)
      task:cancel()
      d.wait(ctx, over(task))
      d.turns(ctx, 2)
      assert.equal("failed", task:status())
      assert.equal(1, #reported)
      assert.equal(mine, reported[1])
    end)

    it("of another task that is passed on is a failure too", function()
      local ctx, reported = d.context(), {}
      ctx:on_error(function(err) reported[#reported + 1] = err end)
      local child = ctx:spawn(aio.suspend)
      local task = ctx:spawn(function() aio.await(child) end)
      d.turns(ctx, 2)
      child:cancel "child"
      d.wait(ctx, over(task))
      d.turns(ctx, 2)
      assert.equal("cancelled", child:status())
      assert.equal("failed", task:status())
      assert.equal(1, #reported)
      is_cancel(reported[1], "child")
    end)

    it("is raised again by every later wait, and others go on meanwhile", function()
      local ctx, caught, turns, stop = d.context(), 0, 0, false
      local stubborn = ctx:spawn(function()
        while not stop do
          local ok, err = pcall(aio.sleep, 60)
          assert.is_false(ok)
          is_cancel(err)
          caught = caught + 1
        end
      end)
      d.turns(ctx, 2)
      stubborn:cancel()
      local timed
      ctx:timer(function() timed = true end):arm(0.002)
      local other = ctx:spawn(function()
        for _ = 1, 5 do
          aio.yield()
          turns = turns + 1
        end
        aio.sleep(0.001)
      end)
      d.wait(ctx, function() return timed and over(other)() end)
      stop = true
      d.wait(ctx, over(stubborn))
      assert.equal(5, turns)
      assert.is_true(caught > 2)
      assert.equal("ended", stubborn:status())
    end)

    it("is raised by waits that would not have to wait, and these take nothing", function()
      local ctx = d.context()
      local m, s, e, q, g = aio.mutex(), aio.semaphore(1), aio.event(), aio.queue(), aio.group()
      local ended = ctx:spawn(function() end)
      e:set()
      q:put "item"
      d.wait(ctx, over(ended))
      local waits = {
        function() m:lock() end, function() m:guard() end, function() s:acquire() end, function() e:wait() end,
        function() q:get() end, function() q:put "other" end, function() g:wait() end, function() ended:join() end,
        function() aio.await(ended) end, function() aio.sleep(0) end, aio.yield, function() s:acquire(0) end,
      }
      local task = ctx:spawn(function()
        aio.self():cancel()
        for i, wait in ipairs(waits) do
          local ok, err = pcall(wait)
          assert.is_false(ok, i)
          is_cancel(err)
        end
      end)
      d.wait(ctx, over(task))
      assert.same({ true }, { task:join() })
      assert.is_false(m:locked())
      assert.is_true(s:acquire(0))
      assert.equal(1, #q)
      assert.equal("item", q:get(0))
    end)

    it("runs <close> variables, the last first, with the error", function()
      local ctx, log = d.context(), {}
      local function note(x)
        return closing(function(err) log[#log + 1] = { x, err } end)
      end
      local task = ctx:spawn(function()
        local _ <close> = note "outer"
        local _ <close> = note "middle"
        do
          local _ <close> = note "inner"
          aio.suspend()
        end
      end)
      d.turns(ctx, 2)
      task:cancel "r"
      d.wait(ctx, over(task))
      assert.equal(3, #log)
      for i, name in ipairs { "inner", "middle", "outer" } do
        assert.equal(name, log[i][1])
        is_cancel(log[i][2], "r")
      end
    end)

    it("reaches a plain coroutine.yield", function()
      local ctx, got, log = d.context(), nil, {}
      local task = ctx:spawn(function()
        local _ <close> = closing(function(err) got = err end)
        coroutine.yield()
        log[#log + 1] = "never"
      end)
      d.turns(ctx, 2)
      assert.is_true(task:cancel "plain")
      d.wait(ctx, over(task))
      is_cancel(got, "plain")
      assert.same({}, log)
      assert.equal("cancelled", task:status())
    end)

    it("that was raised in a plain coroutine.yield leaves no debug hook behind", function()
      local ctx, hook = d.context(), "none"
      local task = ctx:spawn(function()
        assert.is_false((pcall(function()
          coroutine.yield()
          return true -- not a tail call
        end)))
        hook = debug.gethook()
      end)
      d.turns(ctx, 2)
      task:cancel()
      d.wait(ctx, over(task))
      assert.is_nil(hook)
      assert.equal("ended", task:status())
    end)

    it("of a task whose waiter was woken keeps the values, and the next wait raises", function()
      local ctx, got, err = d.context(), nil, nil
      local task = ctx:spawn(function()
        got = table.pack(aio.suspend())
        err = select(2, pcall(aio.yield))
      end)
      d.turns(ctx, 2)
      local waker = ctx:spawn(function()
        task:wake(1, nil)
        task:cancel "after"
      end)
      d.wait(ctx, over(task, waker))
      assert.same({ n = 2, 1, nil }, got)
      is_cancel(err, "after")
    end)

    it("after coroutine.close from outside, and the other way round, is survived", function()
      local ctx = d.context()
      for _, first in ipairs { "cancel", "close" } do
        local co, closed
        local task = ctx:spawn(function()
          co = coroutine.running()
          local _ <close> = closing(function() closed = (closed or 0) + 1 end)
          aio.suspend()
        end)
        d.turns(ctx, 2)
        if first == "cancel" then
          task:cancel()
          assert.is_true(coroutine.close(co))
        else
          assert.is_true(coroutine.close(co))
          task:cancel()
        end
        d.turns(ctx, 3)
        assert.equal(1, closed)
        assert.equal("cancelled", task:status())
        local ok, err = task:join()
        assert.is_false(ok)
        assert.is_true(aio.is_cancelled(err))
      end
      assert.equal(0, ctx:stats().live)
      assert.equal(0, ctx:stats().tasks)
    end)

    it("of the task of run(fn) makes run raise it", function()
      local ctx = d.polls and d.context() or drivers.context()
      local ok, err = pcall(ctx.run, ctx, function()
        aio.self():cancel "run"
        aio.sleep(60)
      end)
      assert.is_false(ok)
      is_cancel(err, "run")
      assert.equal(7, ctx:run(function() return 7 end))
    end)

    it("with 10,000 timers and waits of one kind leaves nothing #slow", function()
      local ctx, tasks = d.context(), {}
      local q, before = aio.queue(), ctx:stats()
      for i = 1, 10000 do
        tasks[i] = i % 2 == 0 and ctx:spawn(aio.sleep, 60) or ctx:spawn(q.get, q, 60)
      end
      d.turns(ctx, 2)
      assert.equal(10000, ctx:stats().timers_armed)
      for i = 1, 10000 do tasks[i]:cancel() end
      d.wait(ctx, over(tasks[10000]))
      d.turns(ctx, 2)
      local after = ctx:stats()
      for _, field in ipairs { "tasks", "live", "timers_armed", "bhs_pending" } do
        assert.equal(before[field], after[field])
      end
      q:put(1)
      assert.equal(1, #q)
    end)
  end)

  it("of a chain of 100,000 tasks that join each other is neither nested nor quadratic #slow", function()
    local function chain(n)
      local ctx <close> = aio.context()
      local task, last
      for i = 1, n do
        local inner = task
        task = ctx:spawn(function()
          if inner then aio.await(inner) else aio.suspend() end
        end):keep()
        if i == 1 then last = task end
      end
      ctx:on_error(function() end)
      ctx:poll(false)
      ctx:poll(false)
      local from = os.clock()
      last:cancel()
      while task:status() == "waiting" do ctx:poll() end
      local seconds = os.clock() - from
      assert.equal("failed", task:status())
      assert.is_true(aio.is_cancelled(select(2, task:join())))
      return seconds
    end
    local few, many = chain(10000), chain(100000)
    assert.is_true(many < 40 * few + 0.5, ("%g s for 10,000, %g s for 100,000"):format(few, many))
  end)

  it("of 100,000 waiting tasks in one go #slow", function()
    local ctx <close> = aio.context()
    local n, event, tasks = 100000, aio.event(), {}
    for i = 1, n do tasks[i] = ctx:spawn(event.wait, event) end
    ctx:poll(false)
    ctx:poll(false)
    ctx:spawn(function()
      for i = 1, n do tasks[i]:cancel() end
    end)
    while ctx:stats().live > 0 do ctx:poll() end
    for i = 1, n, 999 do assert.equal("cancelled", tasks[i]:status()) end
    assert.equal("cancelled", tasks[n]:status())
  end)

  it("of a task of a closed context is false", function()
    local ctx = aio.context()
    local task = ctx:spawn(aio.suspend)
    ctx:poll(false)
    ctx:close()
    assert.is_false(task:cancel())
    assert.is_false((task:join()))
  end)

  it("by a task of another context is delivered by the task's own", function()
    local a <close>, b = aio.context(), drivers.context()
    local got
    local task = b:spawn(function() got = select(2, pcall(aio.suspend)) end)
    b:poll(false)
    a:run(function()
      task:cancel "far"
      aio.yield()
      assert.is_nil(got)
    end)
    while not got do b:poll() end
    is_cancel(got, "far")
    drivers.cleanup()
  end)
end)

describe("the error value", function()
  local err
  setup(function()
    local ctx <close> = aio.context()
    ctx:run(function()
      aio.self():cancel { 1 }
      err = select(2, pcall(aio.yield))
    end)
  end)

  it("cannot be made or changed by others", function()
    assert.is_true(aio.is_cancelled(err))
    assert.is_false(pcall(function() err.reason = 1 end))
    assert.is_nil(err.other)
    assert.is_nil(err[1])
    local metatable = getmetatable(err)
    assert.is_not_table(metatable)
    assert.is_false(pcall(setmetatable, err, {}))
    for _, fake in ipairs { {}, "cancelled", setmetatable({ reason = 1 }, { __name = "aioloop.cancelled" }), io.stdout,
      aio.event(), aio.group(), 0, print, coroutine.create(print) } do
      assert.is_false(aio.is_cancelled(fake))
    end
    assert.is_false(aio.is_cancelled(nil))
    assert.is_false(aio.is_cancelled(false))
    assert.error(function() aio.is_cancelled() end)
  end)

  it("raised by hand elsewhere is an error like any other", function()
    local ctx <close> = aio.context()
    local got
    ctx:on_error(function(e) got = e end)
    local task = ctx:spawn(error, err)
    while not got do ctx:poll() end
    assert.is_true(rawequal(err, got))
    assert.equal("failed", task:status())
    local ok, same = pcall(aio.timeout, 60, error, err)
    assert.is_false(ok)
    assert.is_true(rawequal(err, same))
  end)
end)

describe("shield", function()
  drivers.each(function(d)
    it("keeps a cancel from the waits inside; the next one after it raises", function()
      local ctx, log = d.context(), {}
      local task = ctx:spawn(function()
        log[1] = table.pack(aio.shield(function(...)
          aio.sleep(0.001)
          return aio.suspend(), ...
        end, "a", nil))
        log[2] = select(2, pcall(aio.yield))
      end)
      d.turns(ctx, 2)
      task:cancel "shielded"
      d.wait(ctx, function() return task:info().waiting == "aio.suspend" end)
      assert.is_true(task:wake(1))
      d.wait(ctx, over(task))
      assert.same({ n = 3, 1, "a", nil }, log[1])
      is_cancel(log[2], "shielded")
    end)

    it("of one that is cancelled already lets it wait", function()
      local ctx, waited = d.context(), nil
      local task = ctx:spawn(function()
        aio.self():cancel()
        waited = aio.shield(aio.sleep, 0.001)
        aio.shield(aio.shield, aio.yield)
        assert.is_true(waited)
        aio.yield()
      end)
      d.wait(ctx, over(task))
      assert.is_true(waited)
      assert.equal("cancelled", task:status())
    end)

    it("nests, and ends with the outermost", function()
      local ctx, log = d.context(), {}
      local task = ctx:spawn(function()
        aio.self():cancel()
        aio.shield(function()
          aio.shield(aio.yield)
          log[#log + 1] = pcall(aio.yield)
        end)
        log[#log + 1] = pcall(aio.yield)
      end)
      d.wait(ctx, over(task))
      assert.same({ true, false }, log)
    end)

    it("lets a time limit inside of it end the wait", function()
      local ctx, log = d.context(), {}
      local task = ctx:spawn(function()
        aio.self():cancel()
        log[1] = table.pack(aio.shield(aio.timeout, 0.001, aio.suspend))
        log[2] = table.pack(aio.shield(aio.suspend, 0))
      end)
      d.wait(ctx, over(task))
      assert.same({ { n = 2, nil, "timeout" }, { n = 2, nil, "timeout" } }, log)
    end)

    it("passes errors on as they are, and is over then", function()
      local ctx, mine, log = d.context(), {}, {}
      local task = ctx:spawn(function()
        aio.self():cancel()
        log[1] = select(2, pcall(aio.shield, error, mine))
        log[2] = select(2, pcall(aio.yield))
      end)
      d.wait(ctx, over(task))
      assert.equal(mine, log[1])
      is_cancel(log[2])
    end)

    it("lets <close> variables wait, one after the other, while a cancel unwinds", function()
      local ctx, log = d.context(), {}
      local function slow(name)
        return closing(function(err)
          is_cancel(err, "r")
          aio.shield(function()
            log[#log + 1] = name .. " begins"
            aio.sleep(0.0005)
            aio.yield()
            log[#log + 1] = name .. " ends"
          end)
        end)
      end
      local task = ctx:spawn(function()
        local _ <close> = slow "outer"
        local _ <close> = slow "inner"
        aio.suspend()
      end)
      d.turns(ctx, 2)
      task:cancel "r"
      d.wait(ctx, over(task))
      assert.same({ "inner begins", "inner ends", "outer begins", "outer ends" }, log)
      assert.equal("cancelled", task:status())
    end)

    it("in a generator of aio.wrap holds for what the generator does", function()
      local ctx, log = d.context(), {}
      local task = ctx:spawn(function()
        aio.self():cancel()
        local generator = aio.wrap(function()
          coroutine.yield(aio.shield(aio.sleep, 0.0005))
          log[2] = pcall(aio.yield)
        end)
        log[1] = generator()
        generator()
      end)
      d.wait(ctx, over(task))
      assert.same({ true, false }, log)
    end)
  end)

  it("in the main chunk and in a callback keeps a time limit away", function()
    local log = {}
    local function shielded()
      return aio.timeout(0.001, function()
        log[#log + 1] = aio.shield(aio.sleep, 0.003)
        return "kept"
      end)
    end
    assert.equal("kept", shielded())
    aio.default():schedule(function()
      local result = shielded()
      log[#log + 1] = result
    end)
    while #log < 3 do aio.default():poll() end
    assert.same({ true, true, "kept" }, log)
  end)

  it("refuses what is no function, and a coroutine that the loop does not run", function()
    assert.error(function() aio.shield() end)
    assert.error(function() aio.shield(1) end)
    aio.run(function()
      local ok, message = coroutine.wrap(function() return pcall(aio.shield, print) end)()
      assert.is_false(ok)
      assert.match("aio%.wrap", message)
    end)
  end)
end)
