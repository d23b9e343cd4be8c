-- SPDX-License-Identifier: MIT
--- Groups: all tasks end before the scope does, whichever way it is left; the first failure ends the others.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local tasks = require "spec.support.tasks"

local over, in_task, is_quiet, collect = tasks.all_over, tasks.join, tasks.is_quiet, tasks.collect

-- A child that waits, and says in log how it ended; its clean-up takes a while.
local function child(log, name)
  local ok
  local _ <close> = setmetatable({}, { __close = function()
    aio.shield(aio.sleep, 0.0005)
    log[#log + 1] = name .. (ok and " ends" or " cancelled")
  end })
  ok = aio.suspend() or true
end

describe("group", function()
  drivers.each(function(d)
    it("waits at the end of its block for all of its tasks", function()
      local ctx, log = d.context(), {}
      in_task(d, ctx, function()
        do
          local group <close> = aio.group()
          local start = aio.now()
          for i = 1, 3 do
            local task = group:spawn(function(a, b)
              aio.sleep_until(start + a / 200)
              log[#log + 1] = b
            end, 4 - i, i)
            assert.equal("task", aio.type(task))
          end
        end
        log[#log + 1] = "after"
      end)
      assert.same({ 3, 2, 1, "after" }, log)
      is_quiet(ctx)
    end)

    it("without tasks, or whose tasks have ended, does not wait", function()
      local ctx = d.context()
      in_task(d, ctx, function()
        local log = {}
        aio.spawn(function() log[#log + 1] = "other" end)
        do
          local _ <close> = aio.group()
        end
        log[#log + 1] = "empty"
        do
          local group <close> = aio.group()
          local task = group:spawn(function() return 1 end)
          aio.yield()
          aio.yield()
          assert.same({ true, 1 }, { task:join() })
          assert.is_true(group:wait())
        end
        assert.same({ "empty", "other" }, log)
      end)
    end)

    it("wait returns true, any number of times, and more may be spawned after it", function()
      local ctx, n = d.context(), 0
      in_task(d, ctx, function()
        local group <close> = aio.group()
        for i = 1, 3 do
          group:spawn(function()
            aio.yield()
            n = n + 1
          end)
          assert.same({ n = 1, true }, table.pack(group:wait()))
          assert.same({ n = 1, true }, table.pack(group:wait()))
          assert.equal(i, n)
        end
      end)
    end)

    it("wait takes a time limit, and the tasks go on", function()
      local ctx = d.context()
      in_task(d, ctx, function()
        local group <close> = aio.group()
        local task = group:spawn(aio.suspend)
        assert.same({ n = 2, nil, "timeout" }, table.pack(group:wait(0.001)))
        assert.same({ n = 2, nil, "timeout" }, table.pack(group:wait(0)))
        assert.equal("waiting", task:status())
        task:wake()
        assert.is_true(group:wait(60))
      end)
      is_quiet(ctx)
    end)

    it("can be waited for by several", function()
      local ctx, group, log = d.context(), aio.group(), {}
      local task
      in_task(d, ctx, function() task = group:spawn(aio.suspend) end)
      local waiters = {}
      for i = 1, 3 do
        waiters[i] = ctx:spawn(function()
          local ok = group:wait()
          log[#log + 1] = { i, ok }
        end)
      end
      d.turns(ctx, 2)
      task:wake()
      d.wait(ctx, over(table.unpack(waiters)))
      assert.same({ { 1, true }, { 2, true }, { 3, true } }, log)
    end)

    it("cancels the others at the first failure, and raises that when all have ended", function()
      local ctx, err, log = d.context(), {}, {}
      in_task(d, ctx, function()
        local ok, got = pcall(function()
          local group <close> = aio.group()
          group:spawn(child, log, "a")
          group:spawn(child, log, "b")
          group:spawn(function()
            aio.yield()
            error(err)
          end)
        end)
        assert.is_false(ok)
        assert.equal(err, got)
        table.sort(log)
        assert.same({ "a cancelled", "b cancelled" }, log)
      end)
      is_quiet(ctx)
    end)

    it("raises whatever was thrown as the very value", function()
      local ctx = d.context()
      for _, boxed in ipairs { { nil }, { false }, { {} }, { 42 }, { print }, { "text" } } do
        in_task(d, ctx, function()
          local results = table.pack(pcall(function()
            local group <close> = aio.group()
            group:spawn(function() error(boxed[1], 0) end)
          end))
          assert.equal(2, results.n)
          assert.is_false(results[1])
          assert.is_true(rawequal(boxed[1], results[2]))
        end)
      end
    end)

    it("wait raises the first error, and errors has them all", function()
      local ctx, first, second = d.context(), {}, {}
      in_task(d, ctx, function()
        local group <close> = aio.group()
        assert.same({ n = 0 }, group:errors())
        group:spawn(function()
          local _ <close> = setmetatable({}, { __close = function() error(second) end })
          aio.suspend()
        end)
        group:spawn(function()
          local _ <close> = setmetatable({}, { __close = function() error(nil) end })
          aio.suspend()
        end)
        group:spawn(aio.suspend)
        group:spawn(function()
          aio.yield()
          error(first)
        end)
        local ok, got = pcall(group.wait, group)
        assert.is_false(ok)
        assert.equal(first, got)
        local errors = group:errors()
        assert.equal(3, errors.n)
        assert.equal(first, errors[1])
        assert.equal(second, errors[2])
        assert.is_nil(errors[3])
        assert.is_true(group:wait()) -- told already
      end)
      is_quiet(ctx)
    end)

    it("reports no error of a task elsewhere, and lets it be joined too", function()
      local ctx, reported, err = d.context(), {}, {}
      ctx:on_error(function(e) reported[#reported + 1] = e end)
      in_task(d, ctx, function()
        local group <close> = aio.group()
        local task = group:spawn(error, err)
        assert.equal(err, select(2, pcall(group.wait, group)))
        local ok, got = task:join()
        assert.is_false(ok)
        assert.equal(err, got)
      end)
      collect()
      d.turns(ctx, 3)
      assert.same({}, reported)
    end)

    it("left by an error cancels its tasks, waits for them, and passes the error on", function()
      local ctx, err, log = d.context(), {}, {}
      in_task(d, ctx, function()
        local ok, got = pcall(function()
          local group <close> = aio.group()
          group:spawn(child, log, "a")
          group:spawn(child, log, "b")
          aio.yield()
          aio.yield()
          error(err)
        end)
        assert.is_false(ok)
        assert.equal(err, got)
        assert.equal(2, #log)
        table.sort(log)
        assert.same({ "a cancelled", "b cancelled" }, log)
      end)
      is_quiet(ctx)
    end)

    it("left by an error reports those of its tasks elsewhere, each once", function()
      local ctx, reported, mine, theirs = d.context(), {}, {}, {}
      ctx:on_error(function(e) reported[#reported + 1] = e end)
      in_task(d, ctx, function()
        local ok, got = pcall(function()
          local group <close> = aio.group()
          group:spawn(function()
            local _ <close> = setmetatable({}, { __close = function() error(theirs) end })
            aio.suspend()
          end)
          aio.yield()
          aio.yield()
          error(mine)
        end)
        assert.is_false(ok)
        assert.equal(mine, got)
      end)
      collect()
      d.turns(ctx, 3)
      assert.equal(1, #reported)
      assert.equal(theirs, reported[1])
    end)

    it("left by an error before its tasks have begun: they never begin", function()
      local ctx, ran = d.context(), false
      in_task(d, ctx, function()
        assert.is_false(pcall(function()
          local group <close> = aio.group()
          group:spawn(function() ran = true end)
          error "now"
        end))
      end)
      assert.is_false(ran)
      is_quiet(ctx)
    end)

    it("left by break, goto and return waits like at the end of the block", function()
      local ctx = d.context()
      in_task(d, ctx, function()
        local log = {}
        local function job(name)
          aio.sleep(0.0005)
          log[#log + 1] = name
        end
        for _ = 1, 3 do -- luacheck: ignore 512
          local group <close> = aio.group()
          group:spawn(job, "break")
          break
        end
        assert.same({ "break" }, log)
        do
          local group <close> = aio.group()
          group:spawn(job, "goto")
          goto out
        end
        ::out::
        assert.same({ "break", "goto" }, log)
        local function returning(...)
          local group <close> = aio.group()
          group:spawn(job, "return")
          return ...
        end
        assert.same({ n = 3, 1, nil, 3 }, table.pack(returning(1, nil, 3)))
        assert.same({ "break", "goto", "return" }, log)
      end)
    end)

    it("cancel ends its tasks with the reason, and those that are spawned until it has been waited for", function()
      local ctx, errors, ran = d.context(), {}, false
      in_task(d, ctx, function()
        local group <close> = aio.group()
        for i = 1, 2 do
          group:spawn(function() errors[i] = select(2, pcall(aio.suspend)) end)
        end
        aio.yield()
        aio.yield()
        group:cancel "enough"
        local late = group:spawn(function() ran = true end)
        assert.equal("cancelled", late:status())
        assert.is_true(group:wait())
        group:spawn(function() ran = "again" end)
        assert.is_true(group:wait())
      end)
      assert.equal("enough", errors[1].reason)
      assert.equal("enough", errors[2].reason)
      assert.equal("again", ran)
      is_quiet(ctx)
    end)

    it("cancel is no failure, and one cancelled task is none either", function()
      local ctx = d.context()
      in_task(d, ctx, function()
        local group <close> = aio.group()
        local one, other = group:spawn(aio.suspend), group:spawn(aio.suspend)
        aio.yield()
        aio.yield()
        one:cancel()
        aio.yield()
        aio.yield()
        assert.equal("cancelled", one:status())
        assert.equal("waiting", other:status())
        group:cancel()
        assert.is_true(group:wait())
        assert.equal("cancelled", other:status())
        assert.same({ n = 0 }, group:errors())
      end)
    end)

    -- The block has one child, and is left by nothing else.
    local function check_cancelled_owner(block)
      local ctx, log = d.context(), {}
      local owner = ctx:spawn(block, log)
      d.turns(ctx, 3)
      owner:cancel()
      d.wait(ctx, over(owner))
      assert.same({ "a cancelled" }, log)
      assert.equal("cancelled", owner:status())
      is_quiet(ctx)
    end

    it("whose owner is cancelled at the end of the block cancels its tasks and waits for them", function()
      check_cancelled_owner(function(log)
        do
          local group <close> = aio.group()
          group:spawn(child, log, "a")
        end
        log[#log + 1] = "never"
      end)
    end)

    it("whose owner is cancelled in the block cancels its tasks and waits for them", function()
      check_cancelled_owner(function(log)
        local group <close> = aio.group()
        group:spawn(child, log, "a")
        aio.suspend()
      end)
    end)

    it("whose owner's time is up cancels its tasks and waits for them", function()
      local ctx, log = d.context(), {}
      local got = in_task(d, ctx, aio.timeout, 0.001, function()
        local group <close> = aio.group()
        group:spawn(child, log, "a")
        aio.suspend()
      end)
      assert.same({ n = 3, true, nil, "timeout" }, got)
      assert.same({ "a cancelled" }, log)
      is_quiet(ctx)
    end)

    it("in a shield hears nothing of a cancel of its owner", function()
      local ctx, log = d.context(), {}
      local owner = ctx:spawn(function()
        aio.shield(function()
          local group <close> = aio.group()
          group:spawn(function()
            log[#log + 1] = aio.sleep(0.001)
          end)
        end)
        aio.yield()
      end)
      d.turns(ctx, 3)
      owner:cancel()
      d.wait(ctx, over(owner))
      assert.same({ true }, log)
      assert.equal("cancelled", owner:status())
    end)

    it("takes tasks while it waits at its end, also from its tasks", function()
      local ctx, log = d.context(), {}
      in_task(d, ctx, function()
        do
          local group <close> = aio.group()
          local function generation(n)
            aio.yield()
            log[#log + 1] = n
            if n > 1 then group:spawn(generation, n - 1) end
          end
          group:spawn(generation, 4)
        end
        log[#log + 1] = "after"
      end)
      assert.same({ 4, 3, 2, 1, "after" }, log)
      is_quiet(ctx)
    end)

    it("nests: a failure deep inside ends all of them, from the inside out", function()
      local ctx, err, log = d.context(), {}, {}
      in_task(d, ctx, function()
        local ok, got = pcall(function()
          local outer <close> = aio.group()
          outer:spawn(child, log, "outer")
          outer:spawn(function()
            local _ <close> = setmetatable({}, { __close = function() log[#log + 1] = "middle" end })
            local inner <close> = aio.group()
            inner:spawn(child, log, "inner")
            inner:spawn(function()
              aio.yield()
              error(err)
            end)
          end)
        end)
        assert.is_false(ok)
        assert.equal(err, got)
      end)
      assert.same({ "inner cancelled", "middle", "outer cancelled" }, log)
      is_quiet(ctx)
    end)

    it("nests: a cancel from outside goes all the way in", function()
      local ctx, log = d.context(), {}
      local owner = ctx:spawn(function()
        local group <close> = aio.group()
        group:spawn(function()
          local inner <close> = aio.group()
          inner:spawn(child, log, "innermost")
          inner:spawn(child, log, "innermost")
        end)
      end)
      d.turns(ctx, 4)
      owner:cancel()
      d.wait(ctx, over(owner))
      assert.same({ "innermost cancelled", "innermost cancelled" }, log)
      is_quiet(ctx)
    end)

    it("that is collected lets its tasks go on, as any others", function()
      local ctx, reported, err, ran = d.context(), {}, {}, false
      ctx:on_error(function(e) reported[#reported + 1] = e end)
      local weak = setmetatable({}, { __mode = "k" })
      in_task(d, ctx, function()
        local group = aio.group()
        weak[group] = true
        group:spawn(function()
          aio.sleep(0.001)
          ran = true
        end)
        group:spawn(function()
          aio.sleep(0.001)
          error(err)
        end)
      end)
      collect()
      assert.is_nil(next(weak))
      d.wait(ctx, function() return ran and #reported > 0 end)
      assert.equal(1, #reported)
      assert.equal(err, reported[1])
      is_quiet(ctx)
    end)

    it("that is collected when a task of it has failed unseen reports that", function()
      local ctx, reported, err = d.context(), {}, {}
      ctx:on_error(function(e) reported[#reported + 1] = e end)
      in_task(d, ctx, function()
        aio.group():spawn(error, err)
        aio.yield()
        aio.yield()
      end)
      collect()
      d.wait(ctx, function() return #reported > 0 end)
      assert.equal(1, #reported)
      assert.equal(err, reported[1])
    end)

    it("of 10,000 tasks #slow", function()
      local ctx, n, ran = d.context(), 10000, 0
      in_task(d, ctx, function()
        local group <close> = aio.group()
        for _ = 1, n do
          group:spawn(function()
            aio.yield()
            ran = ran + 1
          end)
        end
        group:wait()
        assert.equal(n, ran)
        for _ = 1, n do group:spawn(aio.suspend) end
        aio.yield()
        aio.yield()
        group:cancel()
      end)
      is_quiet(ctx)
    end)

    it("of 10,000 tasks one of which fails #slow", function()
      local ctx, err = d.context(), {}
      in_task(d, ctx, function()
        local ok, got = pcall(function()
          local group <close> = aio.group()
          for i = 1, 10000 do
            group:spawn(i == 5000 and function()
              aio.sleep(0.001)
              error(err)
            end or aio.suspend)
          end
        end)
        assert.is_false(ok)
        assert.equal(err, got)
      end)
      is_quiet(ctx)
    end)

    it("in a callback waits by polling", function()
      local ctx, log = d.context(), {}
      ctx:schedule(function()
        do
          local group <close> = aio.group()
          group:spawn(function()
            aio.sleep(0.001)
            log[#log + 1] = "task"
          end)
        end
        log[#log + 1] = "after"
      end)
      d.wait(ctx, function() return #log == 2 end)
      assert.same({ "task", "after" }, log)
    end)

    it("survives that its task is closed behind its back", function()
      local ctx = d.context()
      in_task(d, ctx, function()
        local group <close> = aio.group()
        local co
        local task = group:spawn(function()
          co = coroutine.running()
          aio.suspend()
        end)
        aio.yield()
        aio.yield()
        assert.is_true(coroutine.close(co))
        aio.timeout(5, function()
          task:cancel()
          group:wait()
        end)
        assert.equal("cancelled", task:status())
      end)
      is_quiet(ctx)
    end)
  end)

  it("in the main chunk", function()
    local log, err = {}, {}
    do
      local group <close> = aio.group()
      group:spawn(function()
        aio.sleep(0.001)
        log[#log + 1] = "task"
      end)
    end
    log[#log + 1] = "after"
    assert.same({ "task", "after" }, log)
    local ok, got = pcall(function()
      local group <close> = aio.group()
      group:spawn(aio.suspend)
      group:spawn(error, err)
    end)
    assert.is_false(ok)
    assert.equal(err, got)
  end)

  it("whose context is closed ends, and its waiter is told", function()
    local ctx, got = aio.context(), nil
    local group = aio.group()
    ctx:schedule(function()
      group:spawn(aio.suspend)
      ctx:schedule(function() ctx:close() end)
      got = table.pack(pcall(group.wait, group))
    end)
    ctx:poll()
    assert.equal("boolean", type(got[1]))
    local task = group:spawn(function() end)
    assert.is_true(group:wait())
    assert.equal("ended", task:status())
  end)

  it("has a string, a type of its own, and refuses what is wrong", function()
    local group = aio.group()
    assert.match("^aioloop%.group", tostring(group))
    assert.error(function() group:spawn() end)
    assert.error(function() group:spawn(1) end)
    assert.error(function() group:wait "1" end)
    assert.error(function() group.spawn({}, print) end)
    assert.error(function() group.wait(aio.event()) end)
    assert.error(function() group.errors() end)
  end)
end)

describe("a group that several wait for", function()
  drivers.each(function(d)
    it("tells each of them of the first error, and its block, too", function()
      local ctx, seen = d.context(), {}
      tasks.run(d, ctx, function()
        local group = aio.group()
        group:spawn(function() aio.sleep(0.001) error("child", 0) end)
        local waits = {}
        for i = 1, 3 do waits[i] = aio.spawn(group.wait, group) end
        for i = 1, 3 do seen[i] = select(2, waits[i]:join()) end
        assert.is_true(group:wait()) -- who comes later hears nothing
        local beside
        local ok, err = pcall(function()
          local block <close> = aio.group()
          block:spawn(function() aio.sleep(0.001) error("child", 0) end)
          beside = aio.spawn(pcall, block.wait, block)
          aio.yield()
        end)
        assert.same({ false, "child" }, { ok, err })
        assert.same({ true, false, "child" }, { beside:join() })
      end)
      assert.same({ "child", "child", "child" }, seen)
    end)
  end)
end)

describe("a function that is cancelled by itself", function()
  it("is no result of map or gather", function()
    local ctx <close> = assert(aio.context())
    ctx:run(function()
      local function itself(x)
        if x == 2 then aio.self():cancel() aio.yield() end
        return x
      end
      assert.error_matches(function() aio.map({ 1, 2, 3, 4 }, itself, 1) end, "map: a call was cancelled by itself")
      assert.error_matches(function()
        aio.gather(function() return 1 end, function() return itself(2) end)
      end, "gather: a function was cancelled by itself")
      assert.same({ 1, 3, n = 2 }, aio.map({ 1, 3 }, itself))
    end)
  end)
end)
