-- SPDX-License-Identifier: MIT
--- Tasks and adopted coroutines: spawn, join, await, yield, self, suspend, wake, enter, co_schedule, run, deadlock.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"

local function logger()
  local log = {}
  return log, function(...)
    for i = 1, select("#", ...) do log[#log + 1] = (select(i, ...)) end
  end
end

local ended = require("spec.support.tasks").all_over

-- Turns until nothing more can happen by itself.
local function settle(d, ctx) d.turns(ctx, 6) end

local function line() return debug.getinfo(2, "l").currentline end

describe("task", function()
  drivers.each(function(d)
    it("starts in the next turn, in order, with its arguments", function()
      local ctx, log, note = d.context(), logger()
      local tasks = {}
      for i = 1, 3 do tasks[i] = ctx:spawn(note, i, i * 10) end
      assert.same({}, log)
      assert.equal("scheduled", tasks[1]:status())
      d.wait(ctx, ended(table.unpack(tasks)))
      assert.same({ 1, 10, 2, 20, 3, 30 }, log)
    end)

    it("passes nils, 250 and 100,000 values through spawn, wake and join", function()
      for _, n in ipairs { 0, 3, 250, 100000 } do
        local ctx = d.context()
        local values = table.pack()
        for i = 1, n, 2 do values[i] = i end
        values.n = n
        local function same(...)
          assert.equal(n, select("#", ...))
          for _, i in ipairs { 1, 2, n - 1, n } do assert.equal(values[i], (select(i, ...))) end
          return ...
        end
        if n == 0 then same = function(...) assert.equal(0, select("#", ...)) return ... end end
        local task = ctx:spawn(function(...)
          same(...)
          return same(aio.suspend())
        end, table.unpack(values, 1, n))
        settle(d, ctx)
        assert.equal("waiting", task:status())
        assert.is_true(task:wake(table.unpack(values, 1, n)))
        d.wait(ctx, ended(task))
        local got = table.pack(task:join())
        assert.equal(n + 1, got.n)
        assert.is_true(got[1])
        same(table.unpack(got, 2, got.n))
        ctx:close()
      end
    end)

    it("gives way with yield, each in its turn", function()
      local ctx, log, note = d.context(), logger()
      local function body(name)
        for i = 1, 3 do
          note(name .. i)
          assert.equal(0, select("#", aio.yield()))
        end
      end
      d.wait(ctx, ended(ctx:spawn(body, "a"), ctx:spawn(body, "b")))
      assert.same({ "a1", "b1", "a2", "b2", "a3", "b3" }, log)
    end)

    it("knows itself, also from its own inner coroutine, and nobody does in a callback", function()
      local ctx, inner, outer, callback = d.context()
      local task = ctx:spawn(function()
        outer = aio.self()
        inner = coroutine.wrap(function() return aio.self() end)()
        aio.yield()
      end)
      ctx:schedule(function() callback = aio.self() end)
      d.wait(ctx, ended(task))
      assert.equal(task, outer)
      assert.equal(task, inner)
      assert.is_nil(callback)
      assert.is_nil(aio.self())
    end)

    it("knows itself after its handle was collected", function()
      local ctx, handles = d.context(), {}
      ctx:spawn(function()
        handles[1] = tostring(aio.self())
        aio.yield()
        collectgarbage()
        collectgarbage()
        handles[2] = aio.self()
        assert.equal("running", handles[2]:status())
      end)
      collectgarbage()
      collectgarbage()
      d.wait(ctx, function() return handles[2] and handles[2]:status() == "ended" end)
      assert.is_true((handles[2]:join()))
    end)

    it("tells what it is doing", function()
      local ctx = d.context()
      local good = ctx:spawn(function()
        assert.equal("running", aio.self():status())
        aio.suspend()
      end)
      local bad = ctx:spawn(error, "no"):keep()
      assert.equal("scheduled", good:status())
      settle(d, ctx)
      assert.equal("waiting", good:status())
      assert.equal("failed", bad:status())
      good:wake()
      settle(d, ctx)
      assert.equal("ended", good:status())
      assert.is_false((bad:join()))
    end)

    it("has a name, a traceback and a describing string", function()
      local ctx = d.context()
      local task = ctx:spawn(function() aio.suspend() end)
      assert.is_nil(task:name())
      assert.equal(task, task:name "worker")
      assert.equal("worker", task:name())
      settle(d, ctx)
      assert.match("co_spec.lua:%d+", task:traceback())
      assert.match("suspend", task:traceback())
      assert.match("^aioloop%.task %(waiting%): ", tostring(task))
      assert.equal("task", aio.type(task))
      assert.equal("aioloop.task", getmetatable(task).__name)
    end)

    it("is not referenced after unref, and is again after ref", function()
      local ctx, order, note = d.context(), logger()
      local task = ctx:spawn(function()
        aio.suspend()
        note "woken"
      end)
      settle(d, ctx)
      assert.equal(1, ctx:stats().live)
      assert.equal(task, task:unref())
      assert.equal(task, task:unref())
      assert.equal(0, ctx:stats().live)
      assert.equal(task, task:ref())
      assert.equal(1, ctx:stats().live)
      task:unref()
      task:wake()
      settle(d, ctx)
      assert.same({ "woken" }, order)
      assert.equal(0, ctx:stats().live)
      task:ref()
      assert.equal(0, ctx:stats().live)
    end)
  end)
end)

describe("wake", function()
  drivers.each(function(d)
    local function sleeper(ctx, log, name, then_)
      return ctx:spawn(function()
        log(name .. tostring((aio.suspend())))
        if then_ then then_() end
      end)
    end

    it("from a task queues, depth first: A wakes B, D; B wakes C: B C D", function()
      local ctx, log, note = d.context(), logger()
      local C = sleeper(ctx, note, "C")
      local B = sleeper(ctx, note, "B", function()
        C:wake(2)
        note "b"
      end)
      local D = sleeper(ctx, note, "D")
      settle(d, ctx)
      local A = ctx:spawn(function()
        B:wake(1)
        D:wake(3)
        note "a"
      end)
      d.wait(ctx, ended(A, B, C, D))
      assert.same({ "a", "B1", "b", "C2", "D3" }, log)
    end)

    it("from a callback enters at once", function()
      local ctx, log, note = d.context(), logger()
      local task = sleeper(ctx, note, "in")
      settle(d, ctx)
      ctx:schedule(function()
        note "before"
        aio.wake(task, 1)
        note "after"
      end)
      d.wait(ctx, ended(task))
      assert.same({ "before", "in1", "after" }, log)
    end)

    it("from the main chunk enters at once", function()
      local ctx, log, note = d.context(), logger()
      local task = sleeper(ctx, note, "in")
      settle(d, ctx)
      assert.is_true(task:wake(1))
      assert.same({ "in1" }, log)
    end)

    it("of one that is running, scheduled, sleeping, joining or ended refuses and disturbs nothing", function()
      local ctx, log, note = d.context(), logger()
      local fd = drivers.pipe()
      local never = ctx:spawn(aio.suspend)
      local cases = {
        running = ctx:spawn(function()
          local ok, why = aio.self():wake(1)
          note(ok == nil and why)
          aio.yield()
        end),
        sleeping = ctx:spawn(function() return aio.sleep(0.02) end),
        joining = ctx:spawn(function() return never:join(0.02) end),
        reading = ctx:spawn(function() return aio.wait_readable(fd, 0.02) end),
        scheduled = ctx:spawn(function() return "mine" end, "mine"),
      }
      local function refuse(task)
        local got = table.pack(task:wake "stray")
        assert.same({ n = 2, nil, "not suspended" }, got)
        assert.same(got, table.pack(aio.wake(task, "stray")))
      end
      refuse(cases.scheduled)
      d.turn(ctx)
      for _, task in pairs(cases) do refuse(task) end
      d.wait(ctx, ended(cases.running, cases.sleeping, cases.joining, cases.reading, cases.scheduled))
      assert.same({ "not suspended" }, log)
      assert.same({ true, true }, { cases.sleeping:join() })
      assert.same({ n = 3, true, nil, "timeout" }, table.pack(cases.joining:join()))
      assert.same({ n = 3, true, nil, "timeout" }, table.pack(cases.reading:join()))
      assert.same({ true, "mine" }, { cases.scheduled:join() })
      refuse(cases.sleeping)
      never:wake()
    end)

    it("twice before it runs is refused the second time", function()
      local ctx = d.context()
      local task = ctx:spawn(aio.suspend)
      settle(d, ctx)
      local waker = ctx:spawn(function() return task:wake(1), (task:wake(2)) end)
      d.wait(ctx, ended(task, waker))
      assert.same({ n = 3, true, true, nil }, table.pack(waker:join()))
      assert.same({ true, 1 }, { task:join() })
    end)

    it("25,000 times between two needs no stack", function()
      local ctx, n = d.context(), 0
      local a, b
      local function body(other)
        while n < 25000 do
          n = n + 1
          other():wake()
          if n < 25000 then aio.suspend() end
        end
        other():wake()
      end
      a = ctx:spawn(function()
        aio.suspend()
        body(function() return b end)
      end)
      b = ctx:spawn(function()
        aio.suspend()
        body(function() return a end)
      end)
      settle(d, ctx)
      a:wake()
      d.wait(ctx, ended(a, b))
      assert.equal(25000, n)
    end)

    it("takes the next of 100,000 in a chain", function()
      local ctx, tasks, last = d.context(), {}, nil
      local N = 100000
      for i = N, 1, -1 do
        tasks[i] = ctx:spawn(function()
          last = aio.suspend()
          if i < N then tasks[i + 1]:wake(i + 1) end
        end)
      end
      d.wait(ctx, function() return tasks[1]:status() == "waiting" end)
      tasks[1]:wake(1)
      d.wait(ctx, function() return last == N end)
      assert.equal("ended", tasks[N]:status())
    end)

    it("ends a suspend with a time limit, once", function()
      local ctx = d.context()
      local task = ctx:spawn(function()
        local first = table.pack(aio.suspend(0.001))
        local second = table.pack(aio.suspend(30))
        return first, second
      end)
      d.wait(ctx, function() return task:status() == "waiting" and ctx:stats().timers == 1 end)
      assert.is_true(task:wake("x", nil))
      d.wait(ctx, ended(task))
      local _, first, second = task:join()
      assert.same({ n = 2, nil, "timeout" }, first)
      assert.same({ n = 2, "x", nil }, second)
      assert.equal(0, ctx:stats().timers_armed)
    end)
  end)
end)

describe("a plain coroutine", function()
  drivers.each(function(d)
    it("becomes the loop's: co_schedule starts it, coroutine.yield suspends it", function()
      local ctx, log, note = d.context(), logger()
      local co = coroutine.create(function(...)
        note(...)
        note(coroutine.yield "nobody sees this")
        note(coroutine.yield())
        assert(aio.sleep(0.001))
        note "slept"
      end)
      ctx:co_schedule(co, 1, 2)
      assert.same({}, log)
      settle(d, ctx)
      assert.same({ 1, 2 }, log)
      assert.equal("suspended", coroutine.status(co))
      ctx:co_schedule(co, 3, 4)
      settle(d, ctx)
      ctx:schedule(function() note(aio.wake(co, 5)) end)
      d.wait(ctx, function() return coroutine.status(co) == "dead" end)
      assert.same({ 1, 2, 3, 4, 5, true, "slept" }, log)
      assert.same({ n = 2, nil, "not suspended" }, table.pack(aio.wake(co)))
      assert.equal(0, ctx:stats().live)
    end)

    it("may itself ask to be scheduled, and then yields", function()
      local ctx, log, note = d.context(), logger()
      local co = coroutine.create(function()
        note(1)
        ctx:co_schedule((coroutine.running()))
        note(2)
        note(select("#", coroutine.yield()))
      end)
      ctx:co_schedule(co)
      d.wait(ctx, function() return coroutine.status(co) == "dead" end)
      assert.same({ 1, 2, 0 }, log)
    end)

    it("has a task like any other", function()
      local ctx, task = d.context(), nil
      local co = coroutine.create(function()
        task = aio.self()
        coroutine.yield()
        return "result"
      end)
      ctx:co_schedule(co)
      settle(d, ctx)
      assert.equal("waiting", task:status())
      local joiner = ctx:spawn(function() return task:join() end)
      settle(d, ctx)
      assert.is_true(task:wake())
      d.wait(ctx, ended(joiner))
      assert.same({ true, true, "result" }, { joiner:join() })
    end)

    it("that merely sleeps is the script's: it can be collected", function()
      local ctx = d.context()
      local weak = setmetatable({}, { __mode = "k" })
      do
        local co = coroutine.create(function() coroutine.yield() end)
        weak[co] = true
        ctx:co_schedule(co)
      end
      settle(d, ctx)
      for _ = 1, 3 do collectgarbage() end
      assert.is_nil(next(weak))
      assert.equal(0, ctx:stats().tasks)
    end)

    it("that fails is reported, with its origin", function()
      local ctx, got = d.context(), nil
      ctx:on_error(function(err, where) got = { err, where } end)
      local err = {}
      local at = line() + 1
      ctx:co_schedule(coroutine.create(function() error(err) end))
      settle(d, ctx)
      assert.equal(err, got[1])
      assert.equal(("task './spec/bind/co_spec.lua:%d'"):format(at):gsub("%./", ""), (got[2]:gsub("%./", "")))
    end)

    it("may be used again on another context when the first is closed", function()
      local first, second, log, note = d.context(), d.context(), logger()
      local co = coroutine.create(function()
        note(1)
        coroutine.yield()
        note(2)
      end)
      first:co_schedule(co)
      settle(d, first)
      first:close()
      second:co_schedule(co)
      settle(d, second)
      assert.same({ 1, 2 }, log)
    end)

    it("wakes in a chain of 25,000", function()
      local ctx, cos, n = d.context(), {}, 0
      for i = 25000, 1, -1 do
        cos[i] = coroutine.create(function()
          n = n + 1
          if cos[i + 1] then aio.wake(cos[i + 1]) end
        end)
      end
      ctx:co_schedule(cos[1])
      d.wait(ctx, function() return n == 25000 end)
    end)
  end)

  it("that is not the loop's and is running, or dead, or the main chunk, is refused", function()
    local ctx <close> = aio.context()
    local main = coroutine.running()
    assert.error_matches(function() ctx:co_schedule(main) end, "main chunk")
    assert.error_matches(function() aio.enter(main) end, "main chunk")
    local dead = coroutine.create(function() end)
    coroutine.resume(dead)
    assert.error_matches(function() ctx:co_schedule(dead) end, "dead")
    assert.error_matches(function() aio.enter(dead) end, "dead")
    assert.same({ n = 2, nil, "not suspended" }, table.pack(aio.wake(dead)))
    coroutine.wrap(function()
      local running = coroutine.running()
      coroutine.wrap(function()
        assert.error_matches(function() ctx:co_schedule(running) end, "running")
      end)()
    end)()
  end)
end)

describe("co_schedule", function()
  it("of one that is scheduled already names who did it first, and where", function()
    local ctx <close> = aio.context()
    local co = coroutine.create(function() end)
    local at = line() + 1
    ctx:co_schedule(co)
    local message = "already scheduled by ctx:co_schedule at .*co_spec%.lua:" .. at
    assert.error_matches(function() ctx:co_schedule(co) end, message)
    assert.error_matches(function() aio.enter(co) end, message)
    local task = ctx:spawn(function() end)
    assert.error_matches(function() ctx:co_schedule(task) end, "already scheduled by ctx:spawn")
    while ctx:poll(false) do end
    assert.equal("ended", task:status())
  end)

  it("does not name a place where something else scheduled it", function()
    local ctx <close> = aio.context()
    local task = ctx:spawn(function()
      aio.suspend()
      aio.yield()
    end)
    ctx:poll(false)
    ctx:co_schedule(task)
    ctx:poll(false)
    local _, message = pcall(ctx.co_schedule, ctx, task)
    assert.match("already scheduled by aio%.yield$", message)
    ctx:run()
  end)

  it("names what another one waits in", function()
    local ctx <close> = aio.context()
    local task = ctx:spawn(function() aio.sleep(60) end)
    ctx:poll(false)
    assert.error_matches(function() ctx:co_schedule(task) end, "waits in aio%.sleep")
    assert.error_matches(function() aio.enter(task) end, "waits in aio%.sleep")
  end)

  it("refuses a coroutine of another context", function()
    local a <close> = aio.context()
    local b <close> = aio.context()
    local task = a:spawn(function() aio.suspend() end)
    a:poll(false)
    assert.error_matches(function() b:co_schedule(task) end, "another context")
    assert.is_true(a:co_schedule(task))
  end)
end)

describe("enter", function()
  it("runs a suspended one as wake does", function()
    local ctx <close> = aio.context()
    local log, note = logger()
    local co = coroutine.create(function(x)
      note(x)
      note(coroutine.yield())
    end)
    ctx:schedule(function()
      note(aio.enter(co, 1))
      note(aio.enter(co, 2))
    end)
    ctx:poll(false)
    assert.same({ 1, true, 2, true }, log)
  end)
end)

describe("join", function()
  drivers.each(function(d)
    it("any number of times, from any number of tasks, before and after the end", function()
      local ctx, joiners, err = d.context(), {}, {}
      local good = ctx:spawn(function()
        aio.suspend()
        return 1, nil, 3, nil
      end)
      local bad = ctx:spawn(function()
        aio.suspend()
        error(err)
      end)
      for i = 1, 50 do
        joiners[i] = ctx:spawn(function()
          for _ = 1, 3 do
            assert.same({ n = 5, true, 1, nil, 3, nil }, table.pack(good:join()))
            local got = table.pack(bad:join())
            assert.equal(2, got.n)
            assert.is_false(got[1])
            assert.equal(err, got[2])
            assert.same({ n = 4, 1, nil, 3, nil }, table.pack(aio.await(good)))
            local ok, thrown = pcall(aio.await, bad)
            assert.is_false(ok)
            assert.equal(err, thrown)
          end
        end)
      end
      settle(d, ctx)
      good:wake()
      settle(d, ctx)
      bad:wake()
      d.wait(ctx, ended(table.unpack(joiners)))
      for _, joiner in ipairs(joiners) do assert.is_true((joiner:join())) end
      assert.same({ n = 5, true, 1, nil, 3, nil }, table.pack(good:join()))
    end)

    it("goes on when all that was due with the task has run, and before what comes then", function()
      local ctx, log = d.context(), {}
      local function say(what) log[#log + 1] = what end
      local tasks = {}
      local joiner = ctx:spawn(function()
        for i = 1, 3 do
          tasks[i]:join()
          say("joined " .. i)
        end
      end)
      for i = 1, 3 do
        tasks[i] = ctx:spawn(function()
          say("task " .. i)
          ctx:schedule(say, "later " .. i)
        end)
      end
      ctx:schedule(say, "callback")
      d.wait(ctx, function() return #log == 10 and joiner:status() == "ended" end)
      local ran <const> = "task 1,task 2,task 3,callback,"
      assert.equal(ran .. "joined 1,joined 2,joined 3,later 1,later 2,later 3", table.concat(log, ","))
    end)

    it("is not kept back by two that wake each other for ever", function()
      local ctx = d.context()
      local a, b
      a = ctx:spawn(function() while true do aio.suspend() b:wake() end end)
      b = ctx:spawn(function()
        a:wake()
        while true do
          aio.suspend()
          a:wake()
        end
      end)
      local task = ctx:spawn(function() aio.sleep(0.001) end)
      local joiner = ctx:spawn(task.join, task)
      d.wait(ctx, ended(joiner))
      a:cancel()
      b:cancel()
      d.wait(ctx, ended(a, b))
    end)

    it("is in time for tasks that fail together and are joined one after the other", function()
      local ctx, heard, seen = d.context(), {}, {}
      ctx:on_error(function(err) heard[#heard + 1] = err end)
      local joiner = ctx:spawn(function()
        local tasks = {}
        for i = 1, 3 do tasks[i] = ctx:spawn(error, i) end
        for i = 1, 3 do seen[i] = select(2, tasks[i]:join()) end
      end)
      d.wait(ctx, ended(joiner))
      assert.same({ 1, 2, 3 }, seen)
      assert.same({}, heard)
    end)

    it("gives up after its time limit, and the task goes on", function()
      local ctx = d.context()
      local slow = ctx:spawn(function() return aio.suspend() end)
      local log = {}
      local joiner = ctx:spawn(function()
        log[1] = table.pack(slow:join(0.001))
        log[2] = table.pack(slow:join(0))
        log[3] = table.pack(slow:join(-1))
        log[4] = table.pack(slow:join(30))
      end)
      d.wait(ctx, function() return log[3] end)
      settle(d, ctx)
      slow:wake "done"
      d.wait(ctx, ended(joiner))
      for i = 1, 3 do assert.same({ n = 2, nil, "timeout" }, log[i]) end
      assert.same({ n = 2, true, "done" }, log[4])
    end)

    it("outlives the context, and whoever resumes the coroutine afterwards", function()
      local ctx = d.context()
      local task = ctx:spawn(function() return aio.suspend() end)
      local co
      ctx:spawn(function() co = coroutine.running() aio.suspend() end)
      local joiner = ctx:spawn(function() return pcall(task.join, task) end)
      settle(d, ctx)
      ctx:close()
      collectgarbage()
      assert.is_false(coroutine.resume(co) and coroutine.status(co) == "dead")
      assert.equal("cancelled", task:status())
      assert.equal("cancelled", joiner:status())
    end)
  end)

  it("of itself is an error", function()
    local ctx <close> = aio.context()
    ctx:run(function()
      assert.error_matches(function() aio.self():join() end, "cannot join itself")
      assert.error_matches(function() aio.await(aio.self()) end, "cannot join itself")
    end)
  end)

  it("at top level polls the task's own context", function()
    local ctx <close> = aio.context()
    local task = ctx:spawn(function()
      aio.sleep(0.001)
      return "x"
    end)
    assert.same({ true, "x" }, { task:join() })
    assert.same({ true, "x" }, { task:join() })
    local never = ctx:spawn(aio.suspend)
    assert.same({ n = 2, nil, "timeout" }, table.pack(never:join(0.001)))
    assert.error_matches(function() never:join() end, "deadlock: task:join")
  end)

  it("in a callback polls, nested", function()
    local ctx <close> = aio.context()
    local task, got = ctx:spawn(function()
      aio.sleep(0.001)
      return "x"
    end), nil
    ctx:schedule(function() got = { task:join() } end)
    ctx:run()
    assert.same({ true, "x" }, got)
  end)
end)

describe("run", function()
  it("returns the results of its function, nils too", function()
    local ctx <close> = aio.context()
    assert.same({ n = 0 }, table.pack(ctx:run(function() end)))
    assert.same({ n = 4, nil, 1, nil, nil }, table.pack(ctx:run(function(...)
      aio.sleep(0.001)
      return ...
    end, nil, 1, nil, nil)))
    assert.same({ 1, 2 }, { aio.run(function() return 1, 2 end) })
    assert.same({ 1, 2 }, { aio(function() return 1, 2 end) })
    assert.equal(100000, select("#", ctx:run(function(...) return ... end, table.unpack({}, 1, 100000))))
  end)

  it("waits for what is referenced, and for nothing else", function()
    local ctx <close> = aio.context()
    local log, note = logger()
    ctx:spawn(function()
      aio.sleep(0.005)
      note "task"
    end)
    ctx:spawn(aio.suspend):unref()
    local idle = ctx:bh(note, "idle")
    idle:schedule_idle()
    local timer = ctx:timer(note, "never"):arm(60)
    timer:unref()
    assert.equal("r", ctx:run(function() return "r" end))
    table.sort(log)
    assert.same({ "idle", "task" }, log)
    ctx:run()
    timer:close()
  end)

  it("inside a running run waits for its function alone; without one it is refused", function()
    local ctx <close> = aio.context()
    local slow = ctx:spawn(function() aio.suspend() end)
    local results = table.pack(ctx:run(function()
      assert.error_matches(function() ctx:run() end, "ctx:run%(fn%).*ctx:poll")
      local inner = table.pack(ctx:run(function()
        aio.sleep(0.001)
        return nil, "inner", nil
      end))
      local ok, err = pcall(ctx.run, ctx, function() error "inner error" end)
      slow:wake()
      return inner, ok, err
    end))
    assert.same({ n = 3, nil, "inner", nil }, results[1])
    assert.is_false(results[2])
    assert.match("inner error", results[3])
  end)

  it("is left by stop, innermost first", function()
    local ctx <close> = aio.context()
    local log, note = logger()
    ctx:spawn(aio.suspend)
    ctx:run(function()
      ctx:schedule(function() ctx:stop() end)
      note(select("#", ctx:run(aio.suspend)))
      note "outer goes on"
      ctx:stop()
    end)
    assert.same({ 0, "outer goes on" }, log)
  end)

  it("raises a deadlock and lists who waits for what, and where", function()
    local ctx <close> = aio.context()
    local at1, at2
    local first = ctx:spawn(function()
      at1 = line() + 1
      aio.suspend()
    end):name "first"
    ctx:spawn(function()
      at2 = line() + 1
      first:join()
    end):name "second"
    ctx:spawn(aio.suspend):unref():name "not counted"
    local ok, message = pcall(ctx.run, ctx)
    assert.is_false(ok)
    assert.match("^deadlock", message)
    assert.match("task 'first', which waits in aio%.suspend at [^\n]*co_spec%.lua:" .. at1, message)
    assert.match("task 'second', which waits in task:join at [^\n]*co_spec%.lua:" .. at2, message)
    assert.not_match("not counted", message)
    first:wake()
    ctx:run()
    assert.equal("ended", first:status())
  end)

  it("raises a deadlock of a coroutine that merely yielded, by its origin", function()
    local ctx <close> = aio.context()
    local at = line() + 1
    local ok, message = pcall(ctx.run, ctx, function() coroutine.yield() end)
    assert.is_false(ok)
    assert.match("co_spec%.lua:" .. at .. "', which waits in coroutine%.yield at [^\n]*co_spec%.lua:" .. at, message)
  end)
end)

describe("nesting", function()
  it("of poll in a task does not suspend the task", function()
    local ctx <close> = aio.context()
    local log, note = logger()
    ctx:run(function()
      ctx:spawn(note, "other")
      note(ctx:poll(false))
      note "here"
      aio.sleep(0)
    end)
    assert.same({ "other", true, "here" }, log)
  end)

  it("of poll ends in a clean error near Lua's limit, and the loop stays usable", function()
    local ctx <close> = aio.context()
    for _, as in ipairs { "callback", "task" } do
      local depth, deepest = 0, 0
      local function down()
        depth = depth + 1
        deepest = math.max(depth, deepest)
        if depth < 250 then
          if as == "task" then ctx:spawn(down) else ctx:schedule(down) end
          local polled, err = pcall(ctx.poll, ctx, false)
          depth = depth - 1
          if not polled then error(err, 0) end
        end
      end
      if as == "task" then ctx:spawn(down) else ctx:schedule(down) end
      local ok, err = pcall(ctx.poll, ctx, false)
      assert.is_false(ok)
      assert.match("C stack overflow", err)
      assert.is_true(deepest > 20 and deepest < 250, deepest)
      local ran
      while ctx:poll(false) do end
      ctx:schedule(function() ran = true end)
      assert.is_true(ctx:poll(false))
      assert.is_true(ran)
      assert.equal("fine", ctx:run(function()
        aio.sleep(0)
        return "fine"
      end))
    end
  end)

  it("of wakes in callbacks of nested polls keeps its order", function()
    local ctx <close> = aio.context()
    local log, note = logger()
    local sleepers = {}
    for i = 1, 20 do
      sleepers[i] = ctx:spawn(function() note((aio.suspend())) end)
    end
    ctx:poll(false)
    local function down(i)
      if i > 20 then return end
      ctx:schedule(down, i + 1)
      ctx:poll(false)
      sleepers[i]:wake(i)
    end
    ctx:schedule(down, 1)
    ctx:poll(false)
    local want = {}
    for i = 20, 1, -1 do want[#want + 1] = i end
    assert.same(want, log)
  end)
end)

describe("two contexts", function()
  drivers.each(function(d)
    it("tasks in one wake and join tasks in the other", function()
      local a, b = d.context { name = "a" }, d.context { name = "b" }
      local sleeper = b:spawn(function() return aio.suspend() end)
      d.turn(b)
      d.turn(a)
      local waker = a:spawn(function()
        sleeper:wake("from a", nil)
        return sleeper:join()
      end)
      local joiner = b:spawn(function() return waker:join() end)
      for _ = 1, 12 do
        d.turn(a)
        d.turn(b)
      end
      assert.same({ n = 4, true, true, "from a", nil }, table.pack(waker:join()))
      assert.same({ n = 5, true, true, true, "from a", nil }, table.pack(joiner:join()))
    end)

    it("a coroutine known by its thread is found on its own context", function()
      local a, b, co = d.context(), d.context(), nil
      local task = a:spawn(function()
        co = coroutine.running()
        return aio.suspend()
      end)
      d.turn(a)
      b:schedule(function() assert.is_true(aio.wake(co, 7)) end)
      for _ = 1, 4 do
        d.turn(b)
        d.turn(a)
      end
      assert.same({ true, 7 }, { task:join() })
    end)

    it("a coroutine known by its thread is woken with its values, in its own context too", function()
      local a, co = d.context(), nil
      local task = a:spawn(function()
        co = coroutine.running()
        return aio.suspend()
      end)
      d.turn(a)
      assert.is_true(aio.wake(co, 7, nil, 8))
      d.wait(a, ended(task))
      assert.same({ n = 4, true, 7, nil, 8 }, table.pack(task:join()))
    end)

    it("a task that joins one of a context that is closed is told", function()
      local a, b = d.context(), d.context()
      local task = b:spawn(aio.suspend)
      d.turn(b)
      d.turn(a)
      local joiner = a:spawn(function() return task:join() end)
      local limited = a:spawn(function() return task:join(60) end)
      for _ = 1, 3 do d.turn(a) end
      a:schedule(function() b:close() end)
      d.wait(a, ended(joiner, limited))
      local cancelled = table.pack(joiner:join())
      assert.same({ n = 3, true, false }, { n = cancelled.n, cancelled[1], cancelled[2] })
      assert.is_true(aio.is_cancelled(cancelled[3]))
      cancelled = table.pack(limited:join())
      assert.same({ n = 3, true, false }, { n = cancelled.n, cancelled[1], cancelled[2] })
      assert.is_true(aio.is_cancelled(cancelled[3]))
      assert.equal(0, a:stats().timers_armed)
    end)
  end)

  it("poll one another, nested, several deep", function()
    local contexts, log, note = {}, logger()
    for i = 1, 5 do contexts[i] = aio.context() end
    for i = 1, 5 do
      contexts[i]:spawn(function()
        assert.equal(contexts[i], aio.current())
        if i < 5 then contexts[i + 1]:run(function() aio.sleep(0.001) end) end
        assert.equal(contexts[i], aio.current())
        aio.yield()
        note(i)
      end)
    end
    contexts[1]:run()
    assert.same({ 5, 4, 3, 2, 1 }, log)
    for i = 1, 5 do contexts[i]:close() end
  end)

  it("a task suspended in one is not resumed by a nested poll of the other inside it", function()
    local a <close> = aio.context()
    local b <close> = aio.context()
    local log, note = logger()
    local task = a:spawn(function()
      b:schedule(function() note(aio.self() == nil and "none") end)
      b:poll(false)
      note(aio.self() and "self")
      aio.sleep(0.001)
      note "slept"
    end)
    a:run()
    assert.same({ "none", "self", "slept" }, log)
    assert.equal("ended", task:status())
  end)
end)

describe("closing a context", function()
  drivers.each(function(d)
    local kinds = {
      schedule = function(ctx, close) ctx:schedule(close) end,
      bh = function(ctx, close) ctx:bh(close):schedule() end,
      ["idle bh"] = function(ctx, close) ctx:bh(close):schedule_idle() end,
      timer = function(ctx, close) ctx:timer(close):arm(0) end,
      ["repeating timer"] = function(ctx, close) ctx:timer(close):arm(0, 0.001) end,
      watch = function(ctx, close)
        local fd = select(2, drivers.pipe())
        ctx:watch(fd, { write = close })
      end,
      task = function(ctx, close) ctx:spawn(close) end,
      ["sleeping task"] = function(ctx, close)
        ctx:spawn(function()
          aio.sleep(0.001)
          close()
        end)
      end,
      ["plain coroutine"] = function(ctx, close) ctx:co_schedule(coroutine.create(close)) end,
      ["inner coroutine of a task"] = function(ctx, close)
        ctx:spawn(function() coroutine.wrap(close)() end)
      end,
      ["nested poll"] = function(ctx, close)
        ctx:schedule(function()
          ctx:schedule(close)
          pcall(ctx.poll, ctx, false)
        end)
      end,
    }
    for kind, start in pairs(kinds) do
      it("in a " .. kind .. " is safe, and what was pending never runs", function()
        local ctx, closed, after = d.context(), false, 0
        local guard = d.context()
        local function late() if closed then after = after + 1 end end
        start(ctx, function()
          if closed then after = after + 1 end
          closed = true
          ctx:close()
          collectgarbage()
          assert.is_nil(aio.self())
          assert.error_matches(function() ctx:poll(false) end, "closed context")
        end)
        local r, w = drivers.pipe()
        ctx:timer(late):arm(0.001, 0.001)
        ctx:watch(w, { write = late })
        ctx:spawn(function() aio.wait_readable(r) late() end)
        ctx:spawn(function() while true do aio.yield() late() end end)
        ctx:spawn(function() aio.suspend() late() end)
        if d.is_glib then
          d.wait(guard, function() return closed end)
        else
          repeat ctx:poll() until closed
        end
        guard:timer(function() end):arm(0.003)
        d.wait(guard, function() return guard:stats().timers > 0 end)
        assert.equal(0, after)
        assert.match("closed", tostring(ctx))
        ctx:close()
      end)
    end
  end)

  it("in the function of run still returns its results, or raises its error", function()
    local ctx, err = aio.context(), {}
    assert.same({ n = 3, 1, nil, 3 }, table.pack(ctx:run(function()
      ctx:close()
      return 1, nil, 3
    end)))
    ctx = aio.context()
    local ok, got = pcall(ctx.run, ctx, function()
      ctx:close()
      error(err)
    end)
    assert.is_false(ok)
    assert.equal(err, got)
  end)

  it("then an error: it is raised all the same", function()
    for _, how in ipairs { "schedule", "spawn" } do
      local ctx, err = aio.context(), {}
      ctx[how](ctx, function()
        ctx:close()
        error(err)
      end)
      local ok, got = pcall(ctx.poll, ctx, false)
      assert.is_false(ok)
      assert.equal(err, got)
    end
  end)

  it("leaves its tasks unable to wait, and nobody hanging", function()
    local ctx, log, note = aio.context(), logger()
    ctx:spawn(function()
      ctx:close()
      for _, wait in ipairs { "sleep", "yield", "suspend" } do note(select(2, pcall(aio[wait], 0))) end
    end)
    ctx:poll(false)
    assert.equal(3, #log)
    for _, message in ipairs(log) do assert.match("closed context", message) end
  end)
end)

describe("every object", function()
  it("tells what it is, open and closed", function()
    local r = drivers.pipe()
    local ctx = aio.context { name = "named" }
    local function nop() end
    local objects = {
      context = ctx,
      bh = ctx:bh(nop),
      timer = ctx:timer(nop),
      watch = assert(ctx:watch(r, { read = nop })),
      task = ctx:spawn(nop),
      clock = aio.clock.virtual,
    }
    local states = {
      context = { "open", "closed" },
      bh = { "idle", "closed" },
      timer = { "idle", "closed" },
      watch = { "active, fd %d+", "closed, fd %d+" },
      task = { "scheduled", "cancelled" },
      clock = { "virtual", "virtual" },
    }
    for kind, object in pairs(objects) do
      assert.equal(kind, aio.type(object))
      assert.equal("aioloop." .. kind, getmetatable(object).__name)
      assert.match("^aioloop%." .. kind .. " %(" .. states[kind][1], tostring(object))
    end
    for _, kind in ipairs { "bh", "timer", "watch", "context" } do
      objects[kind]:close()
      objects[kind]:close()
    end
    for kind, object in pairs(objects) do
      assert.equal(kind, aio.type(object))
      assert.match("^aioloop%." .. kind .. " %(" .. states[kind][2], tostring(object))
    end
    for _, other in ipairs { 1, "x", io.stdout, {}, nop, coroutine.create(nop), true } do
      assert.is_nil(aio.type(other))
    end
    assert.is_nil(aio.type(nil))
    drivers.cleanup()
  end)
end)

describe("the coroutine of a task that has ended", function()
  local function ended_one(ctx, fn, kept)
    local co
    local task = ctx:spawn(function()
      co = coroutine.running()
      return fn()
    end)
    if kept then task:keep() end
    pcall(ctx.run, ctx)
    return co, task
  end

  it("is not begun again, whatever it has returned", function()
    local ctx <close> = assert(aio.context())
    local called = false
    local function check(fn, kept)
      local co, task = ended_one(ctx, fn, kept)
      local before = table.pack(task:join())
      assert.same({ n = 2, nil, "not suspended" }, table.pack(aio.wake(co, "data")))
      assert.has_error(function() aio.enter(co) end)
      assert.has_error(function() ctx:co_schedule(co) end)
      ctx:run()
      assert.same(before, table.pack(task:join()))
      assert.is_false(called)
    end
    for _, fn in ipairs {
      function() return "result" end,
      function() return function() called = true end end,
      function() error { "failed" } end,
    } do
      check(fn, false)
      check(fn, true)
    end
  end)

  it("is dead for whoever resumes it, and join says what has become of the results", function()
    local ctx <close> = assert(aio.context())
    local co, task = ended_one(ctx, function() return print end)
    assert.same({ n = 2, false, "cannot resume dead coroutine" }, table.pack(coroutine.resume(co)))
    assert.error_matches(function() task:join() end, "the results are gone")
    co, task = ended_one(ctx, function() return 1 end)
    coroutine.close(co)
    assert.error_matches(function() task:join() end, "the results are gone")
    co, task = ended_one(ctx, error)
    coroutine.close(co)
    assert.match("the error is gone", select(2, task:join()))
  end)
end)

describe("an adopted coroutine", function()
  it("that is cancelled before it begins never begins", function()
    local ctx <close> = assert(aio.context())
    local begun = false
    local co = coroutine.create(function() begun = true end)
    ctx:co_schedule(co)
    local task = ctx:tasks()[1]
    task:cancel "why"
    assert.equal("cancelled", task:status())
    ctx:run()
    assert.is_false(begun)
    assert.equal("dead", coroutine.status(co))
    assert.equal("why", select(2, task:join()).reason)
    assert.equal(0, #ctx:tasks())
  end)

  it("that a finaliser wakes while it is being scheduled is not entered twice", function()
    local it = require("spec.support.child").run [[
      local aio = require "aioloop"
      local ctx, now, hits, calls = aio.default(), false, 0, 0
      local co
      local function fin()
        if now then
          now = false
          hits = hits + 1
          aio.wake(co, "from the finaliser")
        end
        setmetatable({}, { __gc = fin })
      end
      collectgarbage("incremental", 1, 1000, 30)
      setmetatable({}, { __gc = fin })
      for try = 1, 400 do
        co = coroutine.create(function()
          coroutine.yield()
          return function() calls = calls + 1 end
        end)
        local schedule = load("local ctx, co = ... return ctx:co_schedule(co, 'a', 'b')", "=chunk" .. try)
        aio.wake(co)
        for _ = 1, 100 do local _ = {} end
        now = true
        local ok, err = pcall(schedule, ctx, co)
        now = false
        assert(ok or err:find "cannot enter" or err:find "already", err)
        ctx:run()
      end
      assert(hits > 0 and calls == 0, calls)
      io.write "fine"
    ]]
    assert.same({ 0, "fine", "" }, { it.code, it.out, it.err })
  end)
end)
