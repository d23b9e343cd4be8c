-- SPDX-License-Identifier: MIT
--- Locks between tasks: mutex, reader-writer lock, condition.

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local line = require "spec.support.line"
local tasks = require "spec.support.tasks"

local run, settle, finish = tasks.run, tasks.settle, tasks.finish

-- A context whose reports are noted.
local function reporting(d)
  local ctx, reports = d.context(), {}
  ctx:on_error(function(err, where) reports[#reports + 1] = { err = err, where = where } end)
  return ctx, reports
end

-- A task that waits until it is woken, between begin() and rest().
local function paused(ctx, begin, rest)
  return ctx:spawn(function()
    begin()
    aio.suspend()
    if rest then rest() end
  end)
end

line.scenarios("a mutex", {
  new = aio.mutex, op = "mutex:lock", by_holder = true,
  take = function(m, t) return m:lock(t) end,
  give = function(m) m:unlock() end,
})

line.scenarios("a mutex with guards", {
  new = aio.mutex, op = "mutex:guard", by_holder = true,
  take = function(m, t)
    local held, why = m:guard(t)
    if not held then return held, why end
    assert.equal(m, held)
    return true
  end,
  give = function(m) getmetatable(m).__close(m) end,
})

line.scenarios("a rwlock to be written", {
  new = aio.rwlock, op = "rwlock", by_holder = true,
  take = function(rw, t) return rw:wrlock(t) end,
  give = function(rw) rw:unlock() end,
})

describe("mutex", function()
  drivers.each(function(d)
    it("is not recursive", function()
      local ctx, m = d.context(), aio.mutex()
      run(d, ctx, function()
        assert.is_true(m:lock())
        for _, t in ipairs { 0, 1, -1 } do
          assert.error_matches(function() m:lock(t) end, "deadlock: the caller holds this mutex already")
          assert.error_matches(function() m:guard(t) end, "deadlock")
        end
        assert.error_matches(function() m:lock() end, "deadlock")
        m:unlock()
        assert.is_false(m:locked()) -- it was held once
        assert.error(function() m:unlock() end)
      end)
    end)

    it("is unlocked by nobody but its holder", function()
      local ctx, m = d.context(), aio.mutex()
      local refused = "attempt to unlock a mutex that the caller does not hold"
      assert.error_matches(function() m:unlock() end, refused)
      local holder = paused(ctx, function() m:lock() end, function() m:unlock() end)
      settle(d, ctx, { holder })
      assert.error_matches(function() m:unlock() end, refused)
      local tried
      ctx:schedule(function()
        assert.error_matches(function() m:unlock() end, refused)
        tried = true
      end)
      run(d, ctx, function()
        assert.error_matches(function() m:unlock() end, refused)
        getmetatable(m).__close(m) -- a guard that is not one lets go of nothing
      end)
      assert.is_true(tried)
      assert.is_true(m:locked())
      local waiter = ctx:spawn(function()
        m:lock()
        m:unlock()
      end)
      settle(d, ctx, { waiter })
      assert.error_matches(function() m:unlock() end, refused)
      holder:wake()
      finish(d, ctx, { holder, waiter })
      assert.is_false(m:locked())
    end)

    it("knows whether it is locked, also between two holders", function()
      local ctx, m = d.context(), aio.mutex()
      run(d, ctx, function()
        assert.is_false(m:locked())
        m:lock()
        local other = aio.spawn(function()
          m:lock()
          m:unlock()
        end)
        aio.yield()
        m:unlock()
        assert.is_true(m:locked()) -- it is the other's already
        assert.error(function() m:unlock() end)
        aio.await(other)
        assert.is_false(m:locked())
      end)
    end)

    it("of a task that ends, fails or is cancelled is passed on, and each is reported once", function()
      local ctx, reports = reporting(d)
      local err = {}
      local endings = {
        ended = function() end,
        failed = function() error(err) end,
        cancelled = function() aio.suspend() end,
      }
      for status, ending in pairs(endings) do
        local m, n = aio.mutex(), aio.mutex()
        local holder = ctx:spawn(function()
          m:lock()
          n:lock()
          aio.yield()
          ending()
        end):name "careless"
        local got = ctx:spawn(function()
          m:lock()
          n:lock()
          n:unlock()
          m:unlock()
          return true
        end)
        settle(d, ctx, { got })
        if status == "cancelled" then
          settle(d, ctx, { holder })
          holder:cancel()
        end
        d.wait(ctx, tasks.all_over(holder))
        finish(d, ctx, { got })
        assert.equal(status, holder:status())
        assert.is_false(m:locked() or n:locked())
        local locks = 0
        for _, report in ipairs(reports) do
          if report.where == "lock" then
            assert.equal("task 'careless' ended while it held a mutex", report.err)
            locks = locks + 1
          else
            assert.same({ "failed", err, "task 'careless'" }, { status, report.err, report.where })
          end
        end
        assert.equal(2, locks)
        assert.equal(status == "failed" and 3 or 2, #reports)
        for i = #reports, 1, -1 do reports[i] = nil end
      end
    end)

    it("of a task that is closed by others is passed on and reported", function()
      local ctx, reports = reporting(d)
      local m, co = aio.mutex(), nil
      local holder = paused(ctx, function()
        co = coroutine.running()
        m:lock()
      end)
      local waiter = ctx:spawn(function()
        m:lock()
        m:unlock()
      end)
      settle(d, ctx, { holder, waiter })
      coroutine.close(co)
      holder:cancel()
      finish(d, ctx, { waiter })
      assert.equal(1, #reports)
      assert.matches("ended while it held a mutex", reports[1].err)
    end)

    it("is let go of by a guard at the end of its block, whatever ends it", function()
      local ctx, m = d.context(), aio.mutex()
      run(d, ctx, function()
        local err = {}
        for i = 1, 3 do
          local held <close> = m:guard()
          assert.equal(m, held)
          assert.is_true(m:locked())
          if i == 3 then break end
        end
        assert.is_false(m:locked())
        assert.equal(err, select(2, pcall(function()
          local _ <close> = m:guard()
          error(err)
        end)))
        assert.is_false(m:locked())
        assert.equal("result", (function()
          local _ <close> = m:guard()
          return "result"
        end)())
        assert.is_false(m:locked())
        do
          local _ <close> = m:guard()
          m:unlock() -- early
        end
        local other = aio.spawn(function()
          local _ <close> = m:guard()
          aio.suspend()
        end)
        aio.yield()
        assert.is_true(m:locked())
        do
          local nothing <close>, why = m:guard(0), "is nil"
          assert.is_nil(nothing, why)
        end
        assert.is_true(m:locked())
        other:cancel()
        assert.is_false((other:join()))
        assert.is_false(m:locked())
      end)
    end)

    it("is still held while what a guard protects waits, also when a cancel unwinds it", function()
      local ctx, m, log = d.context(), aio.mutex(), {}
      local holder = ctx:spawn(function()
        local _ <close> = m:guard()
        local _ <close> = setmetatable({}, { __close = function()
          aio.shield(aio.sleep, 0.001)
          log[#log + 1] = m:locked()
        end })
        aio.suspend()
      end)
      settle(d, ctx, { holder })
      local waiter = ctx:spawn(function()
        m:lock()
        log[#log + 1] = "mine"
        m:unlock()
      end)
      settle(d, ctx, { waiter })
      holder:cancel()
      finish(d, ctx, { holder, waiter })
      assert.same({ true, "mine" }, log)
    end)

    it("of a cancelled task cannot be taken, though it be free", function()
      local ctx, m = d.context(), aio.mutex()
      local task
      task = ctx:spawn(function()
        task:cancel()
        for _, try in ipairs { m.lock, m.guard } do
          local ok, err = pcall(try, m, 0)
          assert.is_false(ok)
          assert.is_true(aio.is_cancelled(err))
        end
        assert.is_false(m:locked())
        assert.is_true(aio.shield(m.lock, m))
        m:unlock()
        return "done"
      end)
      finish(d, ctx, { task })
      assert.same({ true, "done" }, { task:join() })
    end)

    it("counts callbacks and the main chunk as one holder", function()
      local ctx, m = d.context(), aio.mutex()
      assert.is_true(m:lock(0))
      local unlocked
      local waiter = ctx:spawn(function() return m:lock(20), m:unlock() end)
      settle(d, ctx, { waiter })
      ctx:schedule(function()
        assert.error_matches(function() m:lock() end, "deadlock")
        m:unlock()
        unlocked = true
      end)
      d.wait(ctx, function() return unlocked end)
      finish(d, ctx, { waiter })
      assert.is_false(m:locked())
    end)

    it("among many, each of 1,000 tasks holds at its time", function()
      local ctx, locks, held, list = d.context(), {}, {}, {}
      for i = 1, 7 do locks[i], held[i] = aio.mutex(), 0 end
      for i = 1, 1000 do
        list[i] = ctx:spawn(function()
          local a, b = i % 7 + 1, i * 31 % 7 + 1
          if a == b then b = b % 7 + 1 end
          if a > b then a, b = b, a end
          local _ <close> = locks[a]:guard()
          local _ <close> = locks[b]:guard()
          for _, k in ipairs { a, b } do
            assert.equal(0, held[k])
            held[k] = 1
          end
          aio.yield()
          held[a], held[b] = 0, 0
        end)
      end
      finish(d, ctx, list)
      for i = 1, 7 do assert.is_false(locks[i]:locked()) end
    end)
  end)

  it("refuses what is no time and no mutex", function()
    local m = aio.mutex()
    for _, bad in ipairs { "1", {}, true, 0 / 0, print } do
      assert.error(function() m:lock(bad) end)
      assert.error(function() m:guard(bad) end)
    end
    for _, method in ipairs { "lock", "unlock", "guard", "locked" } do
      for _, bad in ipairs { 1, "m", {}, aio.rwlock(), aio.condition(), io.stdout } do
        assert.error(function() m[method](bad) end)
      end
      assert.error(function() m[method]() end)
    end
    assert.is_false(m:locked())
  end)
end)

describe("rwlock", function()
  drivers.each(function(d)
    -- Tasks that lock in the order of `plan` ("r" or "w"), hold until they are let go of, and note when they come in.
    local function line_up(ctx, rw, plan)
      local l = { log = {} }
      for i, mode in ipairs(plan) do
        l[i] = ctx:spawn(function()
          assert(mode == "r" and rw:rdlock() or rw:wrlock())
          table.insert(l.log, mode .. i)
          aio.suspend()
          rw:unlock()
        end)
        settle(d, ctx, { l[i] })
      end
      function l.leave(...)
        for _, i in ipairs { ... } do
          assert.is_true(l[i]:wake())
          d.wait(ctx, tasks.all_over(l[i]))
        end
        d.turns(ctx, 3)
        return table.concat(l.log, " ")
      end
      function l.entered()
        d.turns(ctx, 3)
        return table.concat(l.log, " ")
      end
      return l
    end

    it("lets readers share, and a writer exclude all others", function()
      local ctx, rw = d.context(), aio.rwlock()
      local l = line_up(ctx, rw, { "r", "r", "r" })
      assert.equal("r1 r2 r3", l.entered())
      run(d, ctx, function() assert.same({ n = 2, nil, "timeout" }, table.pack(rw:wrlock(0))) end)
      l.leave(2, 1, 3)
      l = line_up(ctx, rw, { "w" })
      run(d, ctx, function()
        assert.same({ n = 2, nil, "timeout" }, table.pack(rw:wrlock(0)))
        assert.same({ n = 2, nil, "timeout" }, table.pack(rw:rdlock(0)))
        assert.same({ n = 2, nil, "timeout" }, table.pack(rw:rdlock(0.001)))
      end)
      l.leave(1)
      run(d, ctx, function()
        assert.is_true(rw:wrlock(0))
        rw:unlock()
      end)
    end)

    it("makes readers wait behind a writer that waits, and keeps the order", function()
      local ctx, rw = d.context(), aio.rwlock()
      local l = line_up(ctx, rw, { "r", "r", "w", "r", "r", "w", "w", "r" })
      assert.equal("r1 r2", l.entered())
      run(d, ctx, function() assert.same({ n = 2, nil, "timeout" }, table.pack(rw:rdlock(0))) end)
      assert.equal("r1 r2", l.leave(1))
      assert.equal("r1 r2 w3", l.leave(2))
      assert.equal("r1 r2 w3 r4 r5", l.leave(3))
      assert.equal("r1 r2 w3 r4 r5", l.leave(5))
      assert.equal("r1 r2 w3 r4 r5 w6", l.leave(4))
      assert.equal("r1 r2 w3 r4 r5 w6 w7", l.leave(6))
      assert.equal("r1 r2 w3 r4 r5 w6 w7 r8", l.leave(7))
      l.leave(8)
    end)

    for way, how in pairs {
      ["by its timeout"] = { timeout = 0.002 },
      ["by a cancel"] = {},
      ["by a scope around it"] = { scope = 0.002 },
    } do
      it("lets in the readers behind a waiting writer that leaves " .. way, function()
        local ctx, rw = d.context(), aio.rwlock()
        local reader = line_up(ctx, rw, { "r" })
        local writer = ctx:spawn(function()
          if how.scope then return aio.timeout(how.scope, rw.wrlock, rw) end
          return rw:wrlock(how.timeout)
        end)
        settle(d, ctx, { writer })
        local log = {}
        local others = {}
        for i, mode in ipairs { "r", "r", "w", "r" } do
          others[i] = ctx:spawn(function()
            local _ <close> = rw:guard(mode)
            log[#log + 1] = mode .. i
            aio.suspend()
          end)
        end
        if way == "by a cancel" then
          settle(d, ctx, others)
          writer:cancel()
        end
        d.wait(ctx, tasks.all_over(writer))
        settle(d, ctx, others)
        d.turns(ctx, 3)
        assert.same({ "r1", "r2" }, log) -- the first reader holds it still
        reader.leave(1)
        others[1]:wake()
        others[2]:wake()
        d.wait(ctx, function() return #log == 3 end)
        others[3]:wake()
        d.wait(ctx, function() return #log == 4 end)
        others[4]:wake()
        finish(d, ctx, others)
        assert.same({ "r1", "r2", "w3", "r4" }, log)
      end)
    end

    it("is upgraded at once by the only reader", function()
      local ctx, rw = d.context(), aio.rwlock()
      run(d, ctx, function()
        rw:rdlock()
        assert.same({ n = 1, true }, table.pack(rw:upgrade(0)))
        local other = aio.spawn(function() return rw:rdlock(0) end)
        assert.is_nil(aio.await(other))
        rw:unlock()
        assert.error(function() rw:unlock() end)
      end)
    end)

    it("upgraded behind a writer that waits, is another's in between", function()
      local ctx, rw, log = d.context(), aio.rwlock(), {}
      local value = 0
      local upgrader = ctx:spawn(function()
        rw:rdlock()
        local seen = value
        aio.suspend()
        assert.is_true(rw:upgrade())
        log[#log + 1] = ("upgraded, saw %d, now %d"):format(seen, value)
        rw:unlock()
      end)
      settle(d, ctx, { upgrader })
      local writer = ctx:spawn(function()
        rw:wrlock()
        value = 7
        log[#log + 1] = "writer"
        aio.yield()
        rw:unlock()
      end)
      settle(d, ctx, { writer })
      upgrader:wake()
      finish(d, ctx, { upgrader, writer })
      assert.same({ "writer", "upgraded, saw 0, now 7" }, log)
    end)

    it("upgraded by two readers at once ends well: one after the other", function()
      local ctx, rw, inside, log = d.context(), aio.rwlock(), 0, {}
      local list = {}
      for i = 1, 2 do
        list[i] = ctx:spawn(function()
          rw:rdlock()
          aio.yield()
          assert.is_true(rw:upgrade())
          inside = inside + 1
          assert.equal(1, inside)
          log[#log + 1] = i
          aio.yield()
          inside = inside - 1
          rw:unlock()
        end)
      end
      finish(d, ctx, list)
      assert.same({ 1, 2 }, log)
    end)

    it("upgraded in vain is not held: after a timeout, after a cancel", function()
      local ctx, rw = d.context(), aio.rwlock()
      local reader = line_up(ctx, rw, { "r" })
      run(d, ctx, function()
        for _, t in ipairs { 0, 0.001 } do
          rw:rdlock()
          assert.same({ n = 2, nil, "timeout" }, table.pack(rw:upgrade(t)))
          assert.error_matches(function() rw:unlock() end, "does not hold")
        end
        local task = aio.spawn(function()
          rw:rdlock()
          rw:upgrade()
        end)
        aio.yield()
        task:cancel()
        assert.is_false((task:join()))
      end)
      reader.leave(1)
      run(d, ctx, function()
        assert.is_true(rw:wrlock(0))
        rw:unlock()
      end)
    end)

    it("cancelled before its upgrade is still held for reading", function()
      local ctx, rw = d.context(), aio.rwlock()
      local task
      task = ctx:spawn(function()
        rw:rdlock()
        task:cancel()
        assert.is_true(aio.is_cancelled(select(2, pcall(rw.upgrade, rw))))
        rw:unlock()
        return true
      end)
      finish(d, ctx, { task })
      assert.is_true(aio.await(task))
    end)

    it("downgraded never waits, and lets the readers at the front in", function()
      local ctx, rw, log = d.context(), aio.rwlock(), {}
      local writer = ctx:spawn(function()
        rw:wrlock()
        aio.suspend()
        local ran
        ctx:schedule(function() ran = true end)
        assert.is_true(rw:downgrade())
        assert.is_nil(ran)
        log[#log + 1] = "downgraded"
        assert.error_matches(function() rw:downgrade() end, "only who holds it for writing")
        aio.suspend()
        rw:unlock()
      end)
      settle(d, ctx, { writer })
      local l = line_up(ctx, rw, { "r", "r", "w", "r" })
      assert.equal("", l.entered())
      writer:wake()
      assert.equal("r1 r2", l.entered())
      assert.same({ "downgraded" }, log)
      assert.equal("r1 r2", l.leave(1, 2)) -- who has downgraded reads still
      writer:wake()
      finish(d, ctx, { writer })
      assert.equal("r1 r2 w3", l.entered())
      assert.equal("r1 r2 w3 r4", l.leave(3))
      l.leave(4)
    end)

    it("downgraded with a writer first in line lets nobody in", function()
      local ctx, rw = d.context(), aio.rwlock()
      local writer = ctx:spawn(function()
        rw:wrlock()
        aio.suspend()
        rw:downgrade()
        aio.suspend()
        rw:unlock()
      end)
      settle(d, ctx, { writer })
      local l = line_up(ctx, rw, { "w", "r" })
      writer:wake()
      assert.equal("", l.entered())
      writer:wake()
      finish(d, ctx, { writer })
      assert.equal("w1", l.entered())
      assert.equal("w1 r2", l.leave(1))
      l.leave(2)
    end)

    it("says who may do what", function()
      local ctx, rw = d.context(), aio.rwlock()
      run(d, ctx, function()
        assert.error_matches(function() rw:unlock() end, "attempt to unlock a rwlock that the caller does not hold")
        assert.error_matches(function() rw:upgrade() end, "only who holds it for reading")
        assert.error_matches(function() rw:downgrade() end, "only who holds it for writing")
        rw:rdlock()
        assert.error_matches(function() rw:downgrade() end, "only who holds it for writing")
        assert.error_matches(function() rw:wrlock() end, "deadlock: the caller holds this rwlock already")
        local other = aio.spawn(function()
          assert.error(function() rw:unlock() end)
          assert.error(function() rw:upgrade() end)
        end)
        aio.await(other)
        rw:unlock()
        rw:wrlock()
        assert.error_matches(function() rw:upgrade() end, "only who holds it for reading")
        assert.error_matches(function() rw:rdlock() end, "deadlock")
        assert.error_matches(function() rw:wrlock(0) end, "deadlock")
        rw:unlock()
        for _, bad in ipairs { "x", "", 1, {} } do assert.error(function() rw:guard(bad) end) end
        assert.error(function() rw:guard() end)
        assert.error(function() rw:guard("r", "1") end)
        assert.is_true(rw:wrlock(0))
        rw:unlock()
      end)
    end)

    it("is let go of by guards of both kinds", function()
      local ctx, rw, err = d.context(), aio.rwlock(), {}
      run(d, ctx, function()
        for _, mode in ipairs { "r", "w" } do
          assert.equal(err, select(2, pcall(function()
            local held <close> = rw:guard(mode)
            assert.equal(rw, held)
            assert.is_nil(aio.await(aio.spawn(rw.wrlock, rw, 0)))
            local reader = aio.await(aio.spawn(function()
              local nothing <close> = rw:guard("r", 0)
              return nothing ~= nil
            end))
            assert.equal(mode == "r", reader)
            error(err)
          end)))
          assert.is_true(rw:wrlock(0))
          rw:unlock()
        end
        local writer = aio.spawn(function()
          local _ <close> = rw:guard "w"
          aio.suspend()
        end)
        aio.yield()
        assert.same({ n = 2, nil, "timeout" }, table.pack(rw:guard("r", 0.001)))
        writer:cancel()
        local _ <close> = rw:guard("w", 20)
      end)
    end)

    it("of readers that end without letting go is passed on, and each is reported once", function()
      local ctx, reports = reporting(d)
      local rw = aio.rwlock()
      local readers = {}
      for i = 1, 3 do readers[i] = paused(ctx, function() rw:rdlock() end):name("reader " .. i) end
      settle(d, ctx, readers)
      local writer = ctx:spawn(function()
        rw:wrlock()
        rw:unlock()
      end)
      settle(d, ctx, { writer })
      for i = 1, 3 do
        readers[i]:wake()
        d.wait(ctx, function() return #reports == i end)
        assert.equal(("task 'reader %d' ended while it held a rwlock"):format(i), reports[i].err)
        d.turns(ctx, 2)
        assert.equal(i < 3 and "waiting" or "ended", writer:status())
      end
      finish(d, ctx, { writer })
      assert.equal(3, #reports)
    end)

    it("passes on what was given to readers who are closed before they run", function()
      local ctx, rw, cos, log = d.context(), aio.rwlock(), {}, {}
      local writer = paused(ctx, function() rw:wrlock() end, function()
        rw:unlock()
        coroutine.close(cos[1])
        coroutine.close(cos[2])
      end)
      settle(d, ctx, { writer })
      local readers = {}
      for i = 1, 3 do
        readers[i] = ctx:spawn(function()
          cos[i] = coroutine.running()
          rw:rdlock()
          log[#log + 1] = i
          aio.suspend()
          rw:unlock()
        end)
      end
      settle(d, ctx, readers)
      local next_writer = ctx:spawn(function()
        rw:wrlock()
        log[#log + 1] = "writer"
        rw:unlock()
      end)
      settle(d, ctx, { next_writer })
      writer:wake()
      finish(d, ctx, { writer, readers[1], readers[2] })
      d.turns(ctx, 3)
      assert.same({ 3 }, log)
      readers[3]:wake()
      finish(d, ctx, { next_writer, readers[3] })
      assert.same({ 3, "writer" }, log)
    end)

    it("never mixes readers and writers, in a crowd", function()
      local ctx, rw, readers, writers, most, list = d.context(), aio.rwlock(), 0, 0, 0, {}
      local x = 1
      local function random(n)
        x = x * 48271 % 0x7fffffff
        return x % n
      end
      for i = 1, 60 do
        list[i] = ctx:spawn(function()
          for _ = 1, 20 do
            local write = random(4) == 0
            local got = write and rw:wrlock(random(3) == 0 and 0.0001 or nil) or not write and rw:rdlock()
            if got then
              if write then writers = writers + 1 else readers = readers + 1 end
              most = math.max(most, readers)
              assert.is_true(writers == 0 or writers == 1 and readers == 0)
              aio.yield()
              if write and random(2) == 0 then
                rw:downgrade()
                writers, readers = writers - 1, readers + 1
                write = false
                aio.yield()
              elseif not write and random(4) == 0 then
                readers = readers - 1
                assert.is_true(rw:upgrade())
                writers = writers + 1
                write = true
                assert.same({ 0, 1 }, { readers, writers })
                aio.yield()
              end
              if write then writers = writers - 1 else readers = readers - 1 end
              rw:unlock()
            end
          end
        end)
      end
      finish(d, ctx, list)
      assert.is_true(most > 1)
      assert.same({ 0, 0 }, { readers, writers })
    end)
  end)
end)

describe("condition", function()
  drivers.each(function(d)
    -- n tasks that wait with the mutex; log tells what each got, and that it held the mutex then.
    local function waiters(ctx, cond, m, n, timeouts)
      local w = { log = {} }
      for i = 1, n do
        w[i] = ctx:spawn(function()
          local _ <close> = m:guard()
          local got = table.pack(pcall(cond.wait, cond, m, timeouts and timeouts[i] or nil))
          assert.error_matches(function() aio.shield(m.lock, m, 0) end, "deadlock") -- it has it again
          local result = not got[1] and tostring(got[2]) or got[2] and "signalled" or got[3]
          table.insert(w.log, i .. " " .. result)
        end)
        settle(d, ctx, { w[i] })
      end
      return w
    end

    it("wakes one for a signal, first come, first served", function()
      local ctx, cond, m = d.context(), aio.condition(), aio.mutex()
      local w = waiters(ctx, cond, m, 3)
      assert.is_false(m:locked()) -- it was let go of
      for i = 1, 3 do
        cond:signal()
        d.wait(ctx, tasks.all_over(w[i]))
        d.turns(ctx, 2)
        assert.equal(i, #w.log)
      end
      finish(d, ctx, w)
      assert.same({ "1 signalled", "2 signalled", "3 signalled" }, w.log)
    end)

    it("forgets a signal without a waiter", function()
      local ctx, cond, m = d.context(), aio.condition(), aio.mutex()
      cond:signal()
      cond:broadcast()
      run(d, ctx, function()
        cond:signal()
        local _ <close> = m:guard()
        cond:signal()
        assert.same({ n = 2, nil, "timeout" }, table.pack(cond:wait(m, 0.002)))
        assert.same({ n = 2, nil, "timeout" }, table.pack(cond:wait(m, 0)))
      end)
    end)

    it("wakes all for a broadcast, one after the other under the mutex, and none that comes later", function()
      local ctx, cond, m = d.context(), aio.condition(), aio.mutex()
      local w = waiters(ctx, cond, m, 5)
      local later
      run(d, ctx, function()
        local _ <close> = m:guard()
        cond:broadcast()
        aio.yield()
        assert.same({}, w.log) -- the mutex is held
        later = ctx:spawn(function()
          local _ <close> = m:guard()
          return cond:wait(m)
        end)
      end)
      finish(d, ctx, w)
      assert.same({ "1 signalled", "2 signalled", "3 signalled", "4 signalled", "5 signalled" }, w.log)
      settle(d, ctx, { later })
      d.turns(ctx, 3)
      assert.equal("waiting", later:status())
      cond:signal()
      finish(d, ctx, { later })
    end)

    it("retakes the mutex after its timeout, which takes as long as it takes", function()
      local ctx, cond, m, log = d.context(), aio.condition(), aio.mutex(), {}
      local waiter = ctx:spawn(function()
        local _ <close> = m:guard()
        local from = aio.now()
        assert.same({ n = 2, nil, "timeout" }, table.pack(cond:wait(m, 0.002)))
        assert.is_true(aio.now() - from >= 0.006)
        assert.error_matches(function() m:lock() end, "deadlock")
        log[#log + 1] = "waiter"
      end)
      settle(d, ctx, { waiter })
      run(d, ctx, function()
        local _ <close> = m:guard()
        aio.sleep(0.006)
        cond:signal() -- too late: it does not wait any more
        aio.yield()
        log[#log + 1] = "holder"
      end)
      finish(d, ctx, { waiter })
      assert.same({ "holder", "waiter" }, log)
    end)

    it("gives a signal to the next when the first has timed out, though he waits for the mutex still", function()
      local ctx, cond, m = d.context(), aio.condition(), aio.mutex()
      local w = waiters(ctx, cond, m, 3, { [1] = 0.001 })
      local timed_out
      local holder = ctx:spawn(function()
        local _ <close> = m:guard()
        local timer = ctx:timer(function() timed_out = true end):arm(0.002)
        aio.suspend()
        timer:close()
        cond:signal()
      end)
      d.wait(ctx, function() return timed_out end)
      holder:wake()
      finish(d, ctx, { w[1], w[2] })
      assert.same({ "1 timeout", "2 signalled" }, w.log)
      d.turns(ctx, 2)
      assert.equal("waiting", w[3]:status())
      cond:signal()
      finish(d, ctx, w)
    end)

    it("raises a cancel only when the mutex is retaken, in its turn", function()
      local ctx, cond, m, log = d.context(), aio.condition(), aio.mutex(), {}
      local waiter = ctx:spawn(function()
        local _ <close> = m:guard()
        local ok, err = pcall(cond.wait, cond, m)
        assert.is_false(ok)
        assert.is_true(aio.is_cancelled(err))
        assert.equal("why", err.reason)
        assert.error_matches(function() aio.shield(m.lock, m) end, "deadlock") -- it has it
        log[#log + 1] = "cancelled"
        error(err)
      end)
      settle(d, ctx, { waiter })
      local second
      run(d, ctx, function()
        local _ <close> = m:guard()
        second = ctx:spawn(function()
          local _ <close> = m:guard()
          log[#log + 1] = "second"
        end)
        settle(d, ctx, { second })
        waiter:cancel "why"
        aio.yield()
        aio.sleep(0)
        assert.equal("waiting", waiter:status())
        log[#log + 1] = "holder"
      end)
      finish(d, ctx, { waiter, second })
      assert.same({ "holder", "second", "cancelled" }, log)
      assert.equal("cancelled", waiter:status())
      assert.is_false(m:locked())
    end)

    it("raises the end of a scope only when the mutex is retaken", function()
      local ctx, cond, m = d.context(), aio.condition(), aio.mutex()
      run(d, ctx, function()
        local _ <close> = m:guard()
        assert.same({ n = 2, nil, "timeout" }, table.pack(aio.timeout(0.002, cond.wait, cond, m)))
        assert.error_matches(function() m:lock() end, "deadlock")
      end)
      assert.is_false(m:locked())
    end)

    it("keeps a signal that came before a timeout or a cancel, while the mutex is waited for", function()
      local ctx, cond, m = d.context(), aio.condition(), aio.mutex()
      local w = waiters(ctx, cond, m, 2, { 0.002 })
      run(d, ctx, function()
        local _ <close> = m:guard()
        cond:broadcast()
        w[2]:cancel()
        aio.sleep(0.004)
        assert.same({}, w.log)
      end)
      finish(d, ctx, w)
      assert.same({ "1 signalled", "2 signalled" }, w.log)
    end)

    for position = 1, 3 do
      for _, way in ipairs { "timeout", "cancelled" } do
        local title = "is left from place %d of 3 by one who is %s, and the rest gets its signals"
        it(title:format(position, way), function()
          local ctx, cond, m = d.context(), aio.condition(), aio.mutex()
          local w = waiters(ctx, cond, m, 3, way == "timeout" and { [position] = 0.001 })
          if way == "cancelled" then w[position]:cancel() end
          d.wait(ctx, tasks.all_over(w[position]))
          local expected = { position .. " " .. way }
          assert.same(expected, w.log)
          cond:signal()
          cond:signal()
          finish(d, ctx, w)
          for i = 1, 3 do
            if i ~= position then expected[#expected + 1] = i .. " signalled" end
          end
          assert.same(expected, w.log)
          assert.is_false(m:locked())
        end)
      end
    end

    it("mixes signals, timeouts and cancels: each ends once, under the mutex", function()
      local ctx, cond, m = d.context(), aio.condition(), aio.mutex()
      local w = waiters(ctx, cond, m, 6, { [2] = 0.001, [5] = 0.001 })
      w[3]:cancel()
      cond:signal() -- the first
      d.wait(ctx, tasks.all_over(w[2], w[5], w[3]))
      cond:broadcast()
      finish(d, ctx, w)
      table.sort(w.log)
      assert.same({ "1 signalled", "2 timeout", "3 cancelled", "4 signalled", "5 timeout", "6 signalled" }, w.log)
    end)

    it("needs the mutex, held by the caller, and the same for all", function()
      local ctx, cond, m, other = d.context(), aio.condition(), aio.mutex(), aio.mutex()
      local w = waiters(ctx, cond, m, 1)
      run(d, ctx, function()
        assert.error_matches(function() cond:wait(m) end, "needs the mutex held by the caller")
        for _, bad in ipairs { 1, "m", {}, aio.rwlock(), cond } do assert.error(function() cond:wait(bad) end) end
        assert.error(function() cond:wait() end)
        local _ <close> = m:guard()
        assert.error(function() cond:wait(m, "1") end)
        local _ <close> = other:guard()
        assert.error_matches(function() cond:wait(other) end, "others wait on this condition with another mutex")
        assert.is_true(other:locked())
      end)
      cond:signal()
      finish(d, ctx, w)
      run(d, ctx, function()
        local _ <close> = other:guard()
        assert.is_nil(cond:wait(other, 0.001)) -- now that nobody waits
      end)
    end)

    it("of a cancelled task does not wait, and keeps the mutex", function()
      local ctx, cond, m = d.context(), aio.condition(), aio.mutex()
      local task
      task = ctx:spawn(function()
        m:lock()
        task:cancel()
        assert.is_true(aio.is_cancelled(select(2, pcall(cond.wait, cond, m))))
        m:unlock()
        return true
      end)
      finish(d, ctx, { task })
      assert.is_true(aio.await(task))
    end)

    it("makes a bounded buffer", function()
      local ctx, m, not_empty, not_full = d.context(), aio.mutex(), aio.condition(), aio.condition()
      local buffer, got, list = {}, {}, {}
      for p = 1, 4 do
        list[p] = ctx:spawn(function()
          for i = 1, 50 do
            local _ <close> = m:guard()
            while #buffer == 3 do not_full:wait(m) end
            table.insert(buffer, { p, i })
            assert.is_true(#buffer <= 3)
            not_empty:signal()
            if i % 7 == 0 then aio.yield() end
          end
        end)
      end
      for c = 5, 7 do
        list[c] = ctx:spawn(function()
          while true do
            local _ <close> = m:guard()
            while #buffer == 0 and #got < 200 do not_empty:wait(m) end
            if #got == 200 then break end
            got[#got + 1] = table.remove(buffer, 1)
            not_full:signal()
            if #got == 200 then not_empty:broadcast() end
          end
        end)
      end
      finish(d, ctx, list)
      local last = { 0, 0, 0, 0 }
      for _, item in ipairs(got) do
        assert.equal(last[item[1]] + 1, item[2])
        last[item[1]] = item[2]
      end
      assert.same({ 50, 50, 50, 50 }, last)
    end)

    it("is waited on in a callback, by polling, and the mutex is retaken", function()
      local ctx, cond, m, log = d.context(), aio.condition(), aio.mutex(), {}
      ctx:schedule(function()
        m:lock()
        assert.same({ n = 2, nil, "timeout" }, table.pack(cond:wait(m, 0.001)))
        ctx:spawn(function()
          local _ <close> = m:guard()
          cond:signal()
          aio.yield()
          log[#log + 1] = "signaller"
        end)
        assert.is_true(cond:wait(m))
        log[#log + 1] = "callback"
        m:unlock()
      end)
      d.wait(ctx, function() return #log == 2 end)
      assert.same({ "signaller", "callback" }, log)
      assert.is_false(m:locked())
    end)

    it("is waited on by tasks of two contexts", function()
      local a, b, cond, m, log = d.context(), d.context(), aio.condition(), aio.mutex(), {}
      local list = {}
      for i = 1, 8 do
        list[i] = (i % 2 == 0 and a or b):spawn(function()
          local _ <close> = m:guard()
          assert.is_true(cond:wait(m))
          log[#log + 1] = i
          aio.yield()
          assert.equal(i, log[#log])
        end)
        settle(d, i % 2 == 0 and a or b, { list[i] })
      end
      cond:broadcast()
      tasks.alternate(d, { a, b }, function() return #log == 8 and not m:locked() end)
      assert.same({ 1, 2, 3, 4, 5, 6, 7, 8 }, log)
    end)

    it("goes on with the others when the context of some who wait is closed", function()
      local a, b, cond, m = d.context(), d.context(), aio.condition(), aio.mutex()
      local lost = waiters(b, cond, m, 2)
      local w = waiters(a, cond, m, 2)
      b:close()
      cond:signal()
      cond:signal()
      finish(d, a, w)
      assert.same({}, lost.log)
      assert.is_false(m:locked())
    end)

    it("passes the mutex on when one who was signalled is closed before it runs", function()
      local ctx, reports = reporting(d)
      local cond, m, co = aio.condition(), aio.mutex(), nil
      local closed = ctx:spawn(function()
        co = coroutine.running()
        m:lock()
        cond:wait(m)
      end)
      settle(d, ctx, { closed })
      run(d, ctx, function()
        cond:signal()
        assert.is_true(m:locked())
        coroutine.close(co)
        local _ <close> = m:guard()
      end)
      assert.is_false(m:locked())
      assert.same({}, reports)
    end)

    it("may be cleared away with all who wait on it", function()
      local weak = setmetatable({}, { __mode = "v" })
      do
        local ctx, cond, m = d.context(), aio.condition(), aio.mutex()
        weak.task = waiters(ctx, cond, m, 3)[1]
        weak.cond, weak.m = cond, m
        ctx:close()
      end
      drivers.cleanup()
      for _ = 1, 3 do collectgarbage() end
      assert.is_nil(next(weak))
    end)
  end)

  it("is waited on at top level", function()
    local cond, m, log = aio.condition(), aio.mutex(), {}
    m:lock()
    local task = aio.spawn(function()
      local _ <close> = m:guard()
      cond:signal()
      aio.sleep(0.001)
      log[#log + 1] = "task"
    end)
    assert.is_true(cond:wait(m))
    assert.same({ "task" }, log)
    assert.is_true(m:locked())
    assert.same({ n = 2, nil, "timeout" }, table.pack(cond:wait(m, 0.001)))
    m:unlock()
    aio.await(task)
    assert.is_false(m:locked())
  end)

  it("survives a finaliser that unlocks the mutex while the wait is made ready", function()
    local it = child.run [[
      local aio = require "aioloop"
      local cond, m = aio.condition(), aio.mutex()
      collectgarbage "stop"
      for _ = 1, 100 do
        m:lock()
        setmetatable({}, { __gc = function() pcall(m.unlock, m) end })
        collectgarbage("generational", 1, 1)
        collectgarbage "restart"
        local ok, err = pcall(cond.wait, cond, m, 0)
        collectgarbage "stop"
        assert(ok or err:match "held by the caller", err)
        pcall(m.unlock, m)
        assert(not m:locked())
      end
    ]]
    assert.same({ code = 0, out = "", err = "" }, it)
  end)

  it("for ever, with nobody who could signal, is a deadlock that names it", function()
    local cond, m = aio.condition(), aio.mutex()
    assert.error_matches(function()
      aio.run(function()
        local _ <close> = m:guard()
        cond:wait(m)
      end)
    end, "condition:wait")
    aio.default():close()
  end)
end)

describe("locks of a context that is closed", function()
  drivers.each(function(d)
    it("are free for those of another, and for the main chunk", function()
      local a, b, reports = d.context(), d.context(), {}
      a:on_error(function(err) reports[#reports + 1] = err end)
      local m, rw = aio.mutex(), aio.rwlock()
      local holder = paused(a, function()
        m:lock()
        rw:rdlock()
      end)
      settle(d, a, { holder })
      local waiter = b:spawn(function()
        m:lock()
        rw:wrlock()
        rw:unlock()
        m:unlock()
        return true
      end)
      settle(d, b, { waiter })
      a:close()
      finish(d, b, { waiter })
      assert.is_true(aio.await(waiter))
      assert.is_true(m:lock(0))
      m:unlock()
    end)
  end)
end)

describe("rwlock:upgrade", function()
  it("of one who holds it twice is an error, and changes nothing", function()
    local ctx <close> = assert(aio.context())
    ctx:run(function()
      local lock = aio.rwlock()
      lock:rdlock()
      lock:rdlock()
      assert.error_matches(function() lock:upgrade() end, "holds this rwlock twice")
      lock:unlock()
      assert.is_true(lock:upgrade())
      lock:unlock()
      assert.error_matches(function() lock:unlock() end, "does not hold")
    end)
  end)
end)

describe("condition:wait outside of tasks", function()
  it("has its mutex again when the error of a callback ends it", function()
    local function check(how)
      local mutex, condition = aio.mutex(), aio.condition()
      mutex:lock()
      aio.default():timer(function()
        if how == "signal" then condition:signal() end
        error("callback", 0)
      end):arm(0.002)
      local ok, err = pcall(condition.wait, condition, mutex, how == "timeout" and 0.002 or nil)
      assert.is_false(ok)
      assert.match("^callback", err)
      mutex:unlock()
      assert.is_false(mutex:locked())
    end
    for _, how in ipairs { "signal", "timeout", "neither" } do check(how) end
  end)
end)
