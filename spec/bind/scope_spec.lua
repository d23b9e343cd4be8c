-- SPDX-License-Identifier: MIT
--- Time limits and what is made of tasks: timeout, gather, race, map, from_callback; errors and cancels through them.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local tasks = require "spec.support.tasks"

local over, in_task, is_quiet = tasks.all_over, tasks.join, tasks.is_quiet

local function timed_out(...) assert.same({ n = 2, nil, "timeout" }, table.pack(...)) end

-- A time limit that is over, and with it every wait.
local function expired(fn) return aio.timeout(0, fn) end

describe("timeout", function()
  drivers.each(function(d)
    it("returns what the function returns, nils and all, and takes its arguments", function()
      local ctx = d.context()
      local got = in_task(d, ctx, function()
        assert.equal(0, select("#", aio.timeout(60, function() end)))
        return aio.timeout(60, function(...)
          aio.yield()
          return select("#", ...), ...
        end, nil, "a", nil, nil)
      end)
      assert.same({ n = 6, true, 4, nil, "a", nil, nil }, got)
      is_quiet(ctx)
    end)

    it("passes 100,000 values #slow", function()
      local ctx = d.context()
      local values = table.move({ "first" }, 1, 1, 1, { n = 100000 })
      values[100000] = "last"
      local got = in_task(d, ctx, function()
        return aio.timeout(60, function(...)
          aio.yield()
          return ...
        end, table.unpack(values, 1, values.n))
      end)
      assert.equal(100001, got.n)
      assert.equal("first", got[2])
      assert.equal("last", got[100001])
    end)

    it("ends the wait that goes on, not before its time", function()
      local ctx, err, from, to = d.context(), nil, nil, nil
      local got = in_task(d, ctx, function()
        from = aio.now()
        return aio.timeout(0.002, function()
          local _ <close> = setmetatable({}, { __close = function(_, e) err, to = e, aio.now() end })
          aio.sleep(60)
        end)
      end)
      assert.same({ n = 3, true, nil, "timeout" }, got)
      assert.is_true(aio.is_cancelled(err))
      assert.equal("timeout", err.reason)
      assert.equal("cancelled: timeout", tostring(err))
      assert.is_true(to - from >= 0.002)
      is_quiet(ctx)
    end)

    it("of nothing, or less, lets what does not wait run, and ends the first wait", function()
      local ctx, log = d.context(), {}
      in_task(d, ctx, function()
        for _, s in ipairs { 0, -1, -math.huge } do
          assert.equal("done", aio.timeout(s, function() return "done" end))
          timed_out(aio.timeout(s, function()
            log[#log + 1] = "before"
            aio.yield()
            log[#log + 1] = "never"
          end))
        end
      end)
      assert.same({ "before", "before", "before" }, log)
      is_quiet(ctx)
    end)

    it("for ever is no limit", function()
      local ctx = d.context()
      assert.same({ n = 2, true, true }, in_task(d, ctx, aio.timeout, math.huge, aio.sleep, 0.001))
    end)

    it("goes on ending the waits of one that catches the error, and keeps its results", function()
      local ctx, caught = d.context(), 0
      local got = in_task(d, ctx, function()
        return aio.timeout(0.001, function()
          for _ = 1, 5 do
            local ok, err = pcall(aio.sleep, 60)
            assert.is_false(ok)
            assert.is_true(aio.is_cancelled(err))
            caught = caught + 1
          end
          return "stubborn"
        end)
      end)
      assert.same({ n = 2, true, "stubborn" }, got)
      assert.equal(5, caught)
    end)

    it("ends a loop of yields", function()
      local ctx, n = d.context(), 0
      local got = in_task(d, ctx, aio.timeout, 0.001, function()
        while true do
          aio.yield()
          n = n + 1
        end
      end)
      assert.same({ n = 3, true, nil, "timeout" }, got)
      assert.is_true(n > 0)
    end)

    it("nested: the inner one is over first", function()
      local ctx = d.context()
      local got = in_task(d, ctx, function()
        return aio.timeout(60, function()
          timed_out(aio.timeout(0.001, aio.suspend))
          aio.yield() -- the outer one does not mind
          return "outer"
        end)
      end)
      assert.same({ n = 2, true, "outer" }, got)
      is_quiet(ctx)
    end)

    it("nested: the outer one is over first, and the inner one passes its error on", function()
      local ctx, log = d.context(), {}
      local got = in_task(d, ctx, function()
        return aio.timeout(0.001, function()
          log[1] = select(2, pcall(aio.timeout, 60, function()
            log[2] = select(2, pcall(aio.suspend))
            error(log[2])
          end))
          error(log[1])
        end)
      end)
      assert.same({ n = 3, true, nil, "timeout" }, got)
      assert.is_true(rawequal(log[1], log[2]))
      is_quiet(ctx)
    end)

    it("nested: when all are over the outermost ends them all", function()
      local ctx, log = d.context(), {}
      local got = in_task(d, ctx, function()
        return expired(function()
          expired(function()
            expired(aio.yield)
            log[#log + 1] = "never"
          end)
          log[#log + 1] = "never"
        end)
      end)
      assert.same({ n = 3, true, nil, "timeout" }, got)
      assert.same({}, log)
      is_quiet(ctx)
    end)

    it("inside of one that was cancelled is no timeout: the cancel goes through", function()
      local ctx, err = d.context(), nil
      local task = ctx:spawn(function()
        aio.timeout(60, function() err = select(2, pcall(aio.timeout, 60, aio.suspend)) error(err) end)
      end)
      d.turns(ctx, 2)
      task:cancel "outside"
      d.wait(ctx, over(task))
      assert.equal("cancelled", task:status())
      assert.equal("outside", err.reason)
      is_quiet(ctx)
    end)

    it("passes errors on as the very values, nil and cancels of others among them", function()
      local ctx = d.context()
      local other = ctx:spawn(aio.suspend)
      other:cancel()
      local _, foreign = table.unpack(in_task(d, ctx, function() return select(2, other:join()) end))
      local mine = {}
      in_task(d, ctx, function()
        for _, err in ipairs { mine, foreign, 42, false } do
          local ok, got = pcall(aio.timeout, 60, function()
            aio.yield()
            error(err)
          end)
          assert.is_false(ok)
          assert.is_true(rawequal(err, got))
        end
        assert.same({ n = 2, false, nil }, table.pack(pcall(aio.timeout, 60, error, nil)))
        local _, text = pcall(aio.timeout, 60, error, "text", 0)
        assert.equal("text", text)
      end)
    end)

    it("is over with the one that it was for: neither a later one nor the task hears of it", function()
      local ctx, log = d.context(), {}
      in_task(d, ctx, function()
        local stale
        timed_out(aio.timeout(0, function()
          stale = select(2, pcall(aio.yield))
          error(stale)
        end))
        log[1] = select(2, pcall(aio.timeout, 60, error, stale))
        log[2] = aio.sleep(0)
        assert.is_true(rawequal(stale, log[1]))
      end)
      assert.is_true(log[2])
      is_quiet(ctx)
    end)

    it("does not end the tasks that were spawned inside, unless something waits for them", function()
      local ctx, child, awaited = d.context(), nil, nil
      in_task(d, ctx, function()
        timed_out(aio.timeout(0.001, function()
          child = aio.spawn(aio.suspend)
          awaited = aio.spawn(aio.suspend)
          aio.await(awaited)
        end))
      end)
      assert.equal("waiting", child:status())
      assert.equal("waiting", awaited:status())
    end)

    it("in a callback ends a wait that polls", function()
      local ctx, got = d.context(), {}
      ctx:schedule(function()
        got[1] = table.pack(aio.timeout(0.001, aio.sleep, 60))
        got[2] = table.pack(aio.timeout(60, aio.sleep, 0))
        got[3] = table.pack(expired(aio.yield))
        got[4] = table.pack(aio.timeout(0.001, function() return aio.timeout(60, aio.sleep, 60) end))
      end)
      d.wait(ctx, function() return got[4] end)
      local out = { n = 2, nil, "timeout" }
      assert.same({ out, { n = 1, true }, out, out }, got)
      is_quiet(ctx)
    end)

    it("in a callback has no hold on the task under whose poll it runs, nor the other way round", function()
      local ctx, inner, outer = d.context(), nil, nil
      local task = ctx:spawn(function()
        outer = table.pack(aio.timeout(0.001, function()
          ctx:schedule(function() inner = table.pack(aio.timeout(60, aio.sleep, 0.003)) end)
          repeat ctx:poll() until inner
          aio.yield()
        end))
      end)
      d.wait(ctx, over(task))
      assert.same({ n = 1, true }, inner)
      assert.same({ n = 2, nil, "timeout" }, outer)
      is_quiet(ctx)
    end)

    it("goes with the coroutine that is closed behind its back", function()
      local ctx, co = d.context(), nil
      local task = ctx:spawn(function()
        co = coroutine.running()
        aio.timeout(0.05, aio.timeout, 60, aio.suspend)
      end)
      d.turns(ctx, 2)
      assert.is_true(coroutine.close(co))
      local passed
      ctx:timer(function() passed = true end):arm(0.06)
      d.wait(ctx, function() return passed end)
      d.turns(ctx, 2)
      task:cancel()
      d.turns(ctx, 2)
      assert.equal("cancelled", task:status())
      is_quiet(ctx)
    end)

    it("runs on the virtual clock where the context does", function()
      local ctx, got = d.context { clock = "virtual" }, {}
      local task = ctx:spawn(function()
        got[1] = table.pack(aio.timeout(3600, aio.sleep, 7200))
        got[2] = table.pack(aio.timeout(7200, aio.sleep, 3600))
      end)
      d.turns(ctx, 2)
      aio.clock.virtual:advance(3599)
      d.turns(ctx, 2)
      assert.is_nil(got[1])
      aio.clock.virtual:advance(1)
      d.turns(ctx, 2)
      assert.same({ n = 2, nil, "timeout" }, got[1])
      aio.clock.virtual:advance(3600)
      d.wait(ctx, over(task))
      assert.same({ n = 1, true }, got[2])
    end)

    it("10,000 at a time, of which every second is over", function()
      local ctx, n, done, late = d.context(), 10000, 0, 0
      for i = 1, n do
        ctx:spawn(function()
          local _, why = aio.timeout(i % 2 == 0 and 0.001 or 60, aio.sleep, i % 2 == 0 and 60 or 0.001)
          done = done + 1
          if why == "timeout" then late = late + 1 end
        end)
      end
      d.wait(ctx, function() return done == n end)
      assert.equal(n / 2, late)
      is_quiet(ctx)
    end)
  end)

  it("in the main chunk", function()
    assert.equal("v", aio.timeout(60, function()
      aio.sleep(0)
      return "v"
    end))
    timed_out(aio.timeout(0.001, aio.sleep, 60))
    timed_out(aio.timeout(0.001, aio.timeout, 60, aio.sleep, 60))
    timed_out(aio.timeout(60, aio.timeout, 0.001, aio.sleep, 60))
    timed_out(expired(aio.yield))
    local err = {}
    local ok, got = pcall(aio.timeout, 60, error, err)
    assert.is_false(ok)
    assert.equal(err, got)
    assert.is_true(aio.sleep(0))
    is_quiet(aio.default())
  end)

  it("refuses what is no number of seconds or no function", function()
    for _, bad in ipairs { "1", {}, true, 0 / 0, print } do assert.error(function() aio.timeout(bad, print) end) end
    assert.error(function() aio.timeout(1) end)
    assert.error(function() aio.timeout(1, {}) end)
    assert.error(function() aio.timeout() end)
  end)

  it("refuses a coroutine that the loop does not run", function()
    aio.run(function()
      local ok, message = coroutine.wrap(function() return pcall(aio.timeout, 1, print) end)()
      assert.is_false(ok)
      assert.match("aio%.wrap", message)
    end)
    local ok, message = coroutine.wrap(function() return pcall(aio.timeout, 1, print) end)()
    assert.is_false(ok)
    assert.match("aio%.wrap", message)
  end)

  it("ends when its context is closed under it", function()
    local ctx, got = aio.context(), nil
    ctx:schedule(function()
      ctx:schedule(function() ctx:close() end)
      got = table.pack(aio.timeout(60, aio.sleep, 60))
    end)
    ctx:poll()
    assert.same({ n = 2, nil, "closed" }, got)
  end)
end)

describe("gather", function()
  drivers.each(function(d)
    it("runs side by side and returns the first result of each, in order", function()
      local ctx, running, most = d.context(), 0, 0
      local function job(s, ...)
        local results = table.pack(...)
        return function()
          running = running + 1
          most = math.max(most, running)
          aio.sleep(s)
          running = running - 1
          return table.unpack(results, 1, results.n)
        end
      end
      local got = in_task(d, ctx, function()
        assert.equal(0, select("#", aio.gather()))
        return aio.gather(job(0.003, 1, "more"), job(0.001, nil), job(0.002), job(0, 4))
      end)
      assert.same({ n = 5, true, 1, nil, nil, 4 }, got)
      assert.equal(4, most)
      is_quiet(ctx)
    end)

    it("raises the first error, the very value, when all have ended", function()
      local ctx, err, log = d.context(), {}, {}
      local got = in_task(d, ctx, function()
        return pcall(aio.gather, function()
          local _ <close> = setmetatable({}, { __close = function()
            aio.shield(aio.sleep, 0.001)
            log[#log + 1] = "cleaned up"
          end })
          aio.suspend()
        end, function()
          aio.yield()
          error(err)
        end)
      end)
      assert.same({ n = 3, true, false, err }, got)
      assert.equal(err, got[3])
      assert.same({ "cleaned up" }, log)
      is_quiet(ctx)
    end)

    it("cancelled or timed out ends all of them", function()
      local ctx, closed = d.context(), 0
      local function job()
        local _ <close> = setmetatable({}, { __close = function() closed = closed + 1 end })
        aio.suspend()
      end
      local task = ctx:spawn(aio.gather, job, job, job)
      d.turns(ctx, 3)
      task:cancel()
      d.wait(ctx, over(task))
      assert.equal("cancelled", task:status())
      assert.equal(3, closed)
      assert.same({ n = 3, true, nil, "timeout" }, in_task(d, ctx, aio.timeout, 0.001, aio.gather, job, job))
      assert.equal(5, closed)
      is_quiet(ctx)
    end)

    it("of 1,000", function()
      local ctx, fns = d.context(), {}
      for i = 1, 1000 do
        fns[i] = function()
          aio.yield()
          return i
        end
      end
      local got = in_task(d, ctx, function() return { aio.gather(table.unpack(fns)) } end)
      for i = 1, 1000 do assert.equal(i, got[2][i]) end
    end)

    it("nests", function()
      local ctx = d.context()
      local got = in_task(d, ctx, aio.gather, function() return (aio.gather(function() return 1 end)) end, function()
        return select(2, aio.gather(aio.yield, function() return 2 end))
      end)
      assert.same({ n = 3, true, 1, 2 }, got)
    end)
  end)

  it("in the main chunk", function()
    assert.same({ 1, 2 }, { aio.gather(function() aio.sleep(0) return 1 end, function() return 2 end) })
  end)

  it("refuses what is no function before anything runs", function()
    local ran
    local ok, message = pcall(aio.gather, function() ran = true end, 1)
    assert.is_false(ok)
    assert.match("bad argument #2 to 'gather'", message)
    aio.default():poll(false)
    assert.is_nil(ran)
  end)
end)

describe("race", function()
  drivers.each(function(d)
    it("returns the number and the results of the first, and the others have ended", function()
      local ctx, closed = d.context(), 0
      local function loser()
        local _ <close> = setmetatable({}, { __close = function()
          aio.shield(aio.yield)
          closed = closed + 1
        end })
        aio.sleep(60)
      end
      local got = in_task(d, ctx, function()
        local results = table.pack(aio.race(loser, function()
          aio.sleep(0.001)
          return "won", nil, 3, nil
        end, loser))
        assert.equal(2, closed)
        return table.unpack(results, 1, results.n)
      end)
      assert.same({ n = 6, true, 2, "won", nil, 3, nil }, got)
      is_quiet(ctx)
    end)

    it("of those that end at once is won by the first", function()
      local ctx, ran = d.context(), 0
      local function runner()
        ran = ran + 1
        return ran
      end
      assert.same({ n = 3, true, 1, 1 }, in_task(d, ctx, aio.race, runner, runner, runner))
      assert.same({ n = 2, true, 1 }, in_task(d, ctx, aio.race, function() end))
    end)

    it("raises the error of the first when that is how it ends", function()
      local ctx, err = d.context(), {}
      local got = in_task(d, ctx, pcall, aio.race, aio.suspend, function()
        aio.yield()
        error(err)
      end)
      assert.same({ n = 3, true, false, err }, got)
      assert.equal(err, got[3])
      is_quiet(ctx)
    end)

    it("cancelled or timed out ends all of them", function()
      local ctx = d.context()
      local task = ctx:spawn(aio.race, aio.suspend, aio.suspend)
      d.turns(ctx, 3)
      task:cancel()
      d.wait(ctx, over(task))
      assert.equal("cancelled", task:status())
      local got = in_task(d, ctx, aio.timeout, 0.001, aio.race, aio.suspend, aio.suspend)
      assert.same({ n = 3, true, nil, "timeout" }, got)
      is_quiet(ctx)
    end)
  end)

  it("in the main chunk", function()
    assert.same({ 2, "v" }, { aio.race(function() aio.sleep(60) end, function() return "v" end) })
    is_quiet(aio.default())
  end)

  it("refuses nothing at all, and what is no function", function()
    assert.error_matches(function() aio.race() end, "bad argument #1 to 'race'")
    assert.error_matches(function() aio.race(print, {}) end, "bad argument #2 to 'race'")
  end)
end)

describe("map", function()
  drivers.each(function(d)
    it("gives a list in order, whatever order they end in", function()
      local ctx = d.context()
      local got = in_task(d, ctx, aio.map, { 3, 1, 2 }, function(x, i)
        aio.sleep(x / 1000)
        return x * 10 + i, "more"
      end)
      assert.same({ n = 2, true, { n = 3, 31, 12, 23 } }, got)
      is_quiet(ctx)
    end)

    it("runs at most so many at a time, and as many as it may", function()
      for _, limit in ipairs { 1, 3, 10, 1000 } do
        local ctx, list, running, most = d.context(), {}, 0, 0
        for i = 1, 20 do list[i] = i end
        local got = in_task(d, ctx, aio.map, list, function(x)
          running = running + 1
          most = math.max(most, running)
          for _ = 1, x % 3 + 1 do aio.yield() end
          running = running - 1
          return x
        end, limit)
        list.n = 20
        assert.same(list, got[2])
        assert.equal(math.min(limit, 20), most)
      end
    end)

    it("of an empty list is one, and results may be nil", function()
      local ctx = d.context()
      assert.same({ n = 2, true, { n = 0 } }, in_task(d, ctx, aio.map, {}, error))
      assert.same({ n = 2, true, { n = 3, nil, 2, nil } }, in_task(d, ctx, aio.map, { 1, 2, 3 }, function(x)
        if x == 2 then return x end
      end))
    end)

    it("raises the first error, and calls no more", function()
      local ctx, err, called = d.context(), {}, 0
      local got = in_task(d, ctx, pcall, aio.map, { 1, 2, 3, 4, 5, 6 }, function(x)
        called = called + 1
        aio.yield()
        if x == 2 then error(err) end
        aio.suspend()
      end, 2)
      assert.equal(err, got[3])
      assert.equal(2, called)
      is_quiet(ctx)
    end)

    it("cancelled or timed out ends all of them, and calls no more", function()
      local ctx, called = d.context(), 0
      local function job()
        called = called + 1
        aio.suspend()
      end
      local task = ctx:spawn(aio.map, { 1, 2, 3, 4 }, job, 2)
      d.turns(ctx, 3)
      task:cancel()
      d.wait(ctx, over(task))
      assert.equal("cancelled", task:status())
      assert.equal(2, called)
      assert.same({ n = 3, true, nil, "timeout" }, in_task(d, ctx, aio.timeout, 0.001, aio.map, { 1, 2 }, job))
      assert.equal(4, called)
      is_quiet(ctx)
    end)
  end)

  it("refuses wrong arguments", function()
    assert.error_matches(function() aio.map(1, print) end, "#1 to 'map'")
    assert.error_matches(function() aio.map({}, 1) end, "#2 to 'map'")
    for _, limit in ipairs { 0, -1, 1.5, "2", math.huge } do
      assert.error_matches(function() aio.map({ 1 }, print, limit) end, "#3 to 'map'")
    end
  end)
end)

describe("from_callback", function()
  drivers.each(function(d)
    it("passes the arguments and a callback, and returns what that was given", function()
      local ctx = d.context()
      local got = in_task(d, ctx, aio.from_callback, function(...)
        local args = table.pack(...)
        assert.equal(4, args.n)
        assert.same({ 1, nil, "three" }, { args[1], args[2], args[3] })
        ctx:timer(args[4], "a", nil, nil):arm(0.001)
      end, 1, nil, "three")
      assert.same({ n = 4, true, "a", nil, nil }, got)
      is_quiet(ctx)
    end)

    it("does not mind to be called at once, or with nothing", function()
      local ctx = d.context()
      assert.same({ n = 3, true, 7, nil }, in_task(d, ctx, aio.from_callback, function(callback) callback(7, nil) end))
      assert.same({ n = 1, true }, in_task(d, ctx, aio.from_callback, function(callback) callback() end))
    end)

    it("takes the first call, and none that comes later", function()
      local ctx, callback = d.context(), nil
      local got = in_task(d, ctx, function()
        local first = aio.from_callback(function(cb)
          callback = cb
          ctx:schedule(function()
            cb "first"
            cb "second"
          end)
        end)
        ctx:schedule(function() callback "late" end)
        aio.sleep(0.001)
        callback "later"
        return first, aio.from_callback(function(cb) ctx:schedule(cb, "next") end)
      end)
      assert.same({ n = 3, true, "first", "next" }, got)
    end)

    it("raises the error of the function", function()
      local ctx, err = d.context(), {}
      local got = in_task(d, ctx, pcall, aio.from_callback, function() error(err) end)
      assert.equal(err, got[3])
    end)

    it("may be cancelled or time out, and the callback comes too late", function()
      local ctx, callback = d.context(), nil
      local function start(cb) callback = cb end
      local task = ctx:spawn(aio.from_callback, start)
      d.turns(ctx, 2)
      task:cancel()
      d.wait(ctx, over(task))
      callback "late"
      assert.equal("cancelled", task:status())
      local got = in_task(d, ctx, function()
        timed_out(aio.timeout(0.001, aio.from_callback, start))
        callback "late"
        return aio.suspend(0.001)
      end)
      assert.same({ n = 3, true, nil, "timeout" }, got)
      is_quiet(ctx)
    end)

    it("in a callback polls", function()
      local ctx, got = d.context(), nil
      ctx:schedule(function() got = aio.from_callback(function(cb) ctx:timer(cb, "v"):arm(0.001) end) end)
      d.wait(ctx, function() return got end)
      assert.equal("v", got)
    end)
  end)

  it("in the main chunk", function()
    assert.equal("v", aio.from_callback(function(cb) aio.default():schedule(cb, "v") end))
    assert.error_matches(function() aio.from_callback(1) end, "bad argument #1 to 'from_callback'")
  end)
end)

describe("a time limit in the main chunk or a callback", function()
  it("holds for a task of another context", function()
    local other <close> = assert(aio.context())
    local event = aio.event()
    local slow = other:spawn(function() event:wait() end)
    local begin = aio.now()
    timed_out(aio.timeout(0.01, slow.join, slow))
    timed_out(aio.timeout(5, aio.timeout, 0.01, slow.join, slow))
    local ctx <close> = assert(aio.context())
    local got
    ctx:schedule(function() got = table.pack(aio.timeout(0.01, slow.join, slow)) end)
    ctx:run()
    timed_out(table.unpack(got, 1, got.n))
    assert.is_true(aio.now() - begin < 2)
    -- and of the current one again, after that
    timed_out(aio.timeout(0.02, function()
      timed_out(aio.timeout(0.005, slow.join, slow))
      aio.sleep(10)
    end))
    slow:cancel()
    other:run()
  end)
end)
