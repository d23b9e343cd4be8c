-- SPDX-License-Identifier: MIT
--- What tasks pass to one another: semaphore, event, queue.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local line = require "spec.support.line"
local tasks = require "spec.support.tasks"

local run, settle, finish = tasks.run, tasks.settle, tasks.finish
local timeout, closed = { n = 2, nil, "timeout" }, { n = 2, nil, "closed" }

line.scenarios("a semaphore", {
  new = function() return aio.semaphore(1) end, op = "semaphore:acquire",
  take = function(s, t) return s:acquire(t) end,
  give = function(s) s:release() end,
})

line.scenarios("a queue to get from", {
  new = function()
    local q = aio.queue()
    q:put "token"
    return q
  end,
  op = "queue:get",
  take = function(q, t) return q:get(t) end,
  give = function(q) assert(q:put "token") end,
})

line.scenarios("a queue to put into", {
  new = function() return aio.queue(1) end, op = "queue:put", stays = true,
  take = function(q, t) return q:put("token", t) end,
  give = function(q) assert.equal("token", q:get(0)) end,
})

describe("semaphore", function()
  drivers.each(function(d)
    it("admits as many as it has permits", function()
      for n = 1, 4 do
        local ctx, s, inside, most, list = d.context(), aio.semaphore(n), 0, 0, {}
        for i = 1, 12 do
          list[i] = ctx:spawn(function()
            for _ = 1, 10 do
              assert.is_true(s:acquire())
              inside = inside + 1
              most = math.max(most, inside)
              aio.yield()
              inside = inside - 1
              s:release()
            end
          end)
        end
        finish(d, ctx, list)
        assert.same({ 0, n }, { inside, most })
        run(d, ctx, function()
          for _ = 1, n do assert.is_true(s:acquire(0)) end
          assert.same(timeout, table.pack(s:acquire(0)))
        end)
      end
    end)

    it("keeps permits that were given before anybody asked, and by anybody", function()
      local ctx, s = d.context(), aio.semaphore(0)
      for _ = 1, 3 do s:release() end
      ctx:schedule(s.release, s)
      run(d, ctx, function()
        for _ = 1, 4 do assert.is_true(s:acquire()) end
        assert.same(timeout, table.pack(s:acquire(0.001)))
        assert.same(timeout, table.pack(s:acquire(0)))
      end)
    end)

    it("gives each release to one waiter, in order", function()
      local ctx, s, log, list = d.context(), aio.semaphore(0), {}, {}
      for i = 1, 5 do
        list[i] = ctx:spawn(function()
          s:acquire()
          log[#log + 1] = i
        end)
      end
      settle(d, ctx, list)
      for i = 1, 5 do
        s:release()
        d.wait(ctx, function() return #log >= i end)
        d.turns(ctx, 2)
        assert.equal(i, #log)
      end
      assert.same({ 1, 2, 3, 4, 5 }, log)
    end)

    it("loses no permit, whoever leaves, and whenever", function()
      local ctx, s, x = d.context(), aio.semaphore(3), 7
      local function random(n)
        x = x * 48271 % 0x7fffffff
        return x % n
      end
      local list, cos, inside, finished = {}, {}, 0, 0
      for i = 1, 100 do
        list[i] = ctx:spawn(function()
          cos[i] = coroutine.running()
          local _ <close> = setmetatable({}, { __close = function() finished = finished + 1 end })
          for _ = 1, 5 do
            if s:acquire(random(3) == 0 and random(5) / 10000 or nil) then
              inside = inside + 1
              local _ <close> = setmetatable({}, { __close = function()
                inside = inside - 1
                s:release()
              end })
              assert.is_true(inside <= 3)
              aio.yield()
            end
          end
        end)
      end
      local vandal = ctx:spawn(function()
        for _ = 1, 60 do
          local i = 1 + random(100)
          if random(2) == 0 then
            list[i]:cancel()
          elseif cos[i] and coroutine.status(cos[i]) == "suspended" then
            coroutine.close(cos[i])
          end
          aio.yield()
        end
        for i = 1, 50 do list[i]:cancel() end
      end)
      finish(d, ctx, { vandal })
      d.wait(ctx, function() return finished == 100 end)
      assert.equal(0, inside)
      d.turns(ctx, 5)
      run(d, ctx, function()
        for _ = 1, 3 do assert.is_true(s:acquire(0)) end
        assert.same(timeout, table.pack(s:acquire(0)))
      end)
    end)
  end)

  it("refuses what is no number of permits", function()
    for _, bad in ipairs { -1, 0.5, "x", {}, true, math.huge } do
      assert.error(function() aio.semaphore(bad) end)
    end
    assert.error(function() aio.semaphore() end)
    local s = aio.semaphore(math.maxinteger - 1)
    s:release()
    assert.is_true(s:acquire(0))
  end)
end)

describe("event", function()
  drivers.each(function(d)
    it("lets all go on who wait, and those who come later, until it is cleared", function()
      local ctx, e, log, list = d.context(), aio.event(), {}, {}
      assert.is_false(e:is_set())
      for i = 1, 4 do
        list[i] = ctx:spawn(function()
          assert.same({ n = 1, true }, table.pack(e:wait()))
          log[#log + 1] = i
        end)
      end
      settle(d, ctx, list)
      d.turns(ctx, 2)
      assert.same({}, log)
      e:set()
      assert.is_true(e:is_set())
      finish(d, ctx, list)
      assert.same({ 1, 2, 3, 4 }, log)
      run(d, ctx, function()
        for _, t in ipairs { 0, 1, -1 } do assert.is_true(e:wait(t)) end
        e:set()
        assert.is_true(e:wait())
        e:clear()
        e:clear()
        assert.is_false(e:is_set())
        assert.same(timeout, table.pack(e:wait(0)))
        local from = aio.now()
        assert.same(timeout, table.pack(e:wait(0.002)))
        assert.is_true(aio.now() - from >= 0.002)
      end)
    end)

    it("set and cleared at once still lets go on who waited", function()
      local ctx, e = d.context(), aio.event()
      local waiters = { ctx:spawn(e.wait, e), ctx:spawn(e.wait, e, 20) }
      settle(d, ctx, waiters)
      e:set()
      e:clear()
      local late = ctx:spawn(e.wait, e, 0.001)
      finish(d, ctx, waiters)
      for i = 1, 2 do assert.same({ true, true }, { waiters[i]:join() }) end
      finish(d, ctx, { late })
      assert.same({ n = 3, true, nil, "timeout" }, table.pack(late:join()))
    end)

    for _, way in ipairs { "timeout", "cancel", "scope", "close" } do
      it("is left by " .. way .. " without disturbing the others", function()
        local ctx, e, cos, list = d.context(), aio.event(), {}, {}
        for i = 1, 3 do
          list[i] = ctx:spawn(function()
            cos[i] = coroutine.running()
            if i == 2 and way == "scope" then return aio.timeout(0.001, e.wait, e) end
            return e:wait(i == 2 and way == "timeout" and 0.001 or nil)
          end)
        end
        settle(d, ctx, list)
        if way == "close" then coroutine.close(cos[2]) end
        if way == "cancel" then list[2]:cancel() end
        if way ~= "close" then d.wait(ctx, tasks.all_over(list[2])) end
        d.turns(ctx, 2)
        e:set()
        finish(d, ctx, list)
        assert.same({ true, true }, { list[1]:join() })
        assert.same({ true, true }, { list[3]:join() })
        local got = table.pack(list[2]:join())
        if way == "timeout" or way == "scope" then
          assert.same({ n = 3, true, nil, "timeout" }, got)
        else
          assert.is_true(aio.is_cancelled(got[2]))
        end
        assert.equal(0, ctx:stats().timers_armed)
      end)
    end

    it("is waited for in callbacks, and by tasks of two contexts", function()
      local a, b, e, n = d.context(), d.context(), aio.event(), 0
      local function wait()
        assert.is_true(e:wait())
        n = n + 1
      end
      a:spawn(wait)
      b:spawn(wait)
      a:schedule(function()
        b:timer(e.set, e):arm(0.001)
        a:timer(function() b:poll(false) end):arm(0.001, 0.001):unref()
        wait()
      end)
      tasks.alternate(d, { a, b }, function() return n == 3 end)
    end)

    it("goes with its waiters when their context is closed", function()
      local a, b, e = d.context(), d.context(), aio.event()
      local lost, kept = a:spawn(e.wait, e), b:spawn(e.wait, e)
      settle(d, a, { lost })
      settle(d, b, { kept })
      a:close()
      e:set()
      finish(d, b, { kept })
      assert.equal("cancelled", lost:status())
    end)
  end)

  it("is waited for at top level", function()
    local e = aio.event()
    aio.default():timer(e.set, e):arm(0.001)
    assert.same(timeout, table.pack(e:wait(0)))
    assert.is_true(e:wait())
    e:clear()
    assert.same(timeout, table.pack(e:wait(0.001)))
    assert.error_matches(function() e:wait() end, "deadlock: event:wait")
    aio.default():schedule(function() aio.default():close() end)
    assert.same(closed, table.pack(e:wait()))
  end)
end)

describe("queue", function()
  drivers.each(function(d)
    for _, capacity in ipairs { false, 0, 1, 2, 7 } do
      local name = capacity and "with a capacity of " .. capacity or "without a capacity"

      it(name .. " brings every item once and in order, between many", function()
        local ctx, q, got, list = d.context(), aio.queue(capacity or nil), {}, {}
        for p = 1, 5 do
          list[p] = ctx:spawn(function()
            for i = 1, 40 do
              assert.is_true(q:put { p, i })
              assert.is_true(not capacity or #q <= capacity)
              if (i + p) % 5 == 0 then aio.yield() end
            end
          end)
        end
        for c = 6, 8 do
          list[c] = ctx:spawn(function()
            local last = { 0, 0, 0, 0, 0 }
            for item in q:iter() do
              assert.is_true(item[2] > last[item[1]])
              last[item[1]] = item[2]
              got[#got + 1] = item
              if #got == 200 then q:close() end
            end
          end)
        end
        finish(d, ctx, list)
        local seen = {}
        for _, item in ipairs(got) do
          local key = item[1] * 100 + item[2]
          assert.is_nil(seen[key])
          seen[key] = true
        end
        assert.equal(200, #got)
        assert.equal(0, #q)
      end)

      it(name .. " makes whoever puts too much wait", function()
        local ctx, q, put = d.context(), aio.queue(capacity or nil), 0
        local putter = ctx:spawn(function()
          for i = 1, 10 do
            q:put(i)
            put = i
          end
        end)
        settle(d, ctx, { putter })
        d.turns(ctx, 3)
        assert.equal(capacity or 10, put)
        assert.equal(capacity or 10, #q)
        run(d, ctx, function()
          for i = 1, 10 do
            assert.equal(i, q:get())
            aio.yield()
            assert.equal(capacity and math.min(10, i + capacity) or 10, put)
          end
          assert.same(timeout, table.pack(q:get(0)))
        end)
        finish(d, ctx, { putter })
      end)

      it(name .. " still brings after close what was put before, and then says so", function()
        local ctx, q = d.context(), aio.queue(capacity or nil)
        local n = capacity or 3
        run(d, ctx, function()
          for i = 1, n do assert.is_true(q:put(i, 0)) end
          q:close()
          q:close()
          assert.same(closed, table.pack(q:put("late")))
          assert.same(closed, table.pack(q:put("late", 0)))
          assert.equal(n, #q)
          for i = 1, n do assert.equal(i, q:get()) end
          for _ = 1, 2 do
            assert.same(closed, table.pack(q:get()))
            assert.same(closed, table.pack(q:get(0)))
            assert.same(closed, table.pack(q:get(1)))
          end
          for _ in q:iter() do error "nothing is left" end
        end)
      end)
    end

    it("keeps the order as it grows and shrinks", function()
      local q, list, first, state = aio.queue(), {}, 1, 7
      local function random(n)
        state = (state * 1103515245 + 12345) % 2147483648
        return state // 65536 % n
      end
      for round = 1, 60 do
        for _ = 1, random(2 * round) do
          list[#list + 1] = #list + 1
          assert.is_true(q:put(#list, 0))
        end
        for _ = 1, random(2 * round) do
          if #q > 0 then
            assert.equal(first, q:get(0))
            first = first + 1
          end
        end
        assert.equal(#list - first + 1, #q)
      end
      for i = first, #list do assert.equal(i, q:get(0)) end
      assert.is_true(first > 200)
    end)

    for _, more in ipairs { 3, 15, 16, 17, 32 } do
      it("has an item back from who was closed before he saw it, in front of " .. more, function()
        local ctx, q = d.context(), aio.queue()
        local getter = coroutine.create(function() q:get() end)
        ctx:co_schedule(getter)
        run(d, ctx, function()
          aio.yield()
          assert.is_true(q:put(0))
          for i = 1, more do q:put(i) end
          assert.is_true(coroutine.close(getter))
        end)
        for i = 0, more do assert.equal(i, q:get(0)) end
        assert.equal(0, #q)
      end)
    end

    -- Its ring is of 16 or 64, and grows to 128; what has been taken is to be collected.
    for _, case in ipairs { { 1, 3 }, { 1, 40 }, { 17, 80 }, { 60, 10 }, { 100, 50 } } do
      local capacity, back = table.unpack(case)
      it(("that holds %d has %d items back, and nobody puts before they are gone"):format(capacity, back), function()
        local ctx, q, getters = d.context(), aio.queue(capacity), {}
        local weak = setmetatable({}, { __mode = "v" })
        for i = 1, back do
          getters[i] = coroutine.create(function() q:get() end)
          ctx:co_schedule(getters[i])
        end
        run(d, ctx, function()
          aio.yield()
          for i = 1, back + capacity do
            weak[i] = { i }
            assert.is_true(q:put(weak[i], 0))
          end
          assert.equal(capacity, #q)
          for i = 1, back do assert.is_true(coroutine.close(getters[i])) end
          local putter = ctx:spawn(q.put, q, "last")
          aio.yield()
          for i = 1, back + capacity do
            assert.equal(back + capacity + (i > back + 1 and 1 or 0), #q + i - 1)
            assert.same({ i }, q:get(0))
          end
          assert.equal("last", q:get(0))
          assert.same({ true, true }, { putter:join() })
          collectgarbage()
          collectgarbage()
          assert.is_nil(next(weak))
        end)
      end)
    end

    it("closed tells all who wait", function()
      local ctx, full, empty = d.context(), aio.queue(1), aio.queue()
      full:put "first"
      local list = {}
      for i = 1, 3 do
        list[i] = ctx:spawn(function() return full:put(i) end)
        list[i + 3] = ctx:spawn(function() return empty:get(i == 2 and 20 or nil) end)
      end
      settle(d, ctx, list)
      full:close()
      empty:close()
      finish(d, ctx, list)
      for i = 1, 6 do assert.same({ n = 3, true, nil, "closed" }, table.pack(list[i]:join())) end
      run(d, ctx, function() -- the refused ones are not in it
        assert.equal("first", full:get())
        assert.same(closed, table.pack(full:get()))
      end)
      assert.equal(0, ctx:stats().timers_armed)
    end)

    it("closed when one was given his item but has not run yet, brings it", function()
      local ctx, q = d.context(), aio.queue()
      local getter = ctx:spawn(q.get, q)
      settle(d, ctx, { getter })
      q:put "item"
      q:close()
      finish(d, ctx, { getter })
      assert.same({ true, "item" }, { getter:join() })
    end)

    it("ends its loops", function()
      local ctx, q, got = d.context(), aio.queue(2), {}
      local reader = ctx:spawn(function()
        for v in q:iter() do got[#got + 1] = v end
        return "over"
      end)
      run(d, ctx, function()
        for i = 1, 10 do q:put(i) end
        q:close()
      end)
      finish(d, ctx, { reader })
      assert.same({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, got)
      assert.same({ true, "over" }, { reader:join() })
    end)

    it("serves getters and putters first come, first served", function()
      local ctx, q, got, list = d.context(), aio.queue(0), {}, {}
      for i = 1, 5 do
        list[i] = ctx:spawn(function() got[i] = q:get() end)
        settle(d, ctx, { list[i] })
      end
      for i = 1, 5 do assert.is_true(q:put(i * 11, 0)) end
      finish(d, ctx, list)
      assert.same({ 11, 22, 33, 44, 55 }, got)
      local done = {}
      for i = 1, 5 do
        list[i] = ctx:spawn(function()
          q:put(i)
          done[#done + 1] = i
        end)
        settle(d, ctx, { list[i] })
      end
      run(d, ctx, function()
        for i = 1, 5 do assert.equal(i, q:get(0)) end
        assert.same(timeout, table.pack(q:get(0)))
      end)
      finish(d, ctx, list)
      assert.same({ 1, 2, 3, 4, 5 }, done)
    end)

    for position = 1, 4 do
      for _, way in ipairs { "timeout", "cancel", "scope" } do
        it(("takes nothing from a putter who leaves by %s from place %d of 4"):format(way, position), function()
          local ctx, p, list = d.context(), aio.queue(1), {}
          p:put "first"
          for i = 1, 4 do
            list[i] = ctx:spawn(function()
              if i == position and way == "scope" then return aio.timeout(0.001, p.put, p, i) end
              return p:put(i, i == position and way == "timeout" and 0.001 or nil)
            end)
            settle(d, ctx, { list[i] })
          end
          if way == "cancel" then list[position]:cancel() end
          d.wait(ctx, tasks.all_over(list[position]))
          run(d, ctx, function()
            local got = {}
            for v in function() return p:get(0) end do got[#got + 1] = v end
            local expected = { "first", 1, 2, 3, 4 }
            table.remove(expected, position + 1)
            assert.same(expected, got)
          end)
          finish(d, ctx, list)
        end)
      end
    end

    it("lets nobody put and get for nothing: a timeout of 0 tries", function()
      local ctx, q, rendezvous = d.context(), aio.queue(1), aio.queue(0)
      run(d, ctx, function()
        for _, t in ipairs { 0, -1, -math.huge } do
          assert.same(timeout, table.pack(q:get(t)))
          assert.same(timeout, table.pack(rendezvous:get(t)))
          assert.same(timeout, table.pack(rendezvous:put(1, t)))
        end
        assert.is_true(q:put(1, 0))
        assert.same(timeout, table.pack(q:put(2, 0)))
        local from = aio.now()
        assert.same(timeout, table.pack(q:put(3, 0.002)))
        assert.is_true(aio.now() - from >= 0.002)
        assert.equal(1, q:get(0))
        from = aio.now()
        assert.same(timeout, table.pack(q:get(0.002)))
        assert.is_true(aio.now() - from >= 0.002)
        assert.equal(0, #q)
      end)
    end)

    it("refuses nil, and nothing else", function()
      local ctx, q = d.context(), aio.queue()
      run(d, ctx, function()
        assert.error_matches(function() q:put(nil) end, "a queue holds no nil")
        assert.error(function() q:put() end)
        assert.error(function() q:put(nil, 0) end)
        local values = { false, true, 0, -0.0, "", {}, print, coroutine.running(), q, io.stdout, 0 / 0 }
        for i = 1, #values do q:put(values[i]) end
        assert.equal(#values, #q)
        for i = 1, #values - 1 do assert.equal(values[i], (q:get())) end
        local nan = q:get()
        assert.is_true(nan ~= nan)
        assert.same({ n = 1 }, { n = select("#", q:put(1)) })
      end)
    end)

    it("brings false also to one who waits", function()
      local ctx, q = d.context(), aio.queue(0)
      local getter = ctx:spawn(q.get, q)
      settle(d, ctx, { getter })
      assert.is_true(q:put(false, 0))
      finish(d, ctx, { getter })
      assert.same({ n = 2, true, false }, table.pack(getter:join()))
    end)

    it("gives an item back to the front when its getter is closed before it runs", function()
      local ctx, q, cos, list = d.context(), aio.queue(), {}, {}
      for i = 1, 2 do
        list[i] = ctx:spawn(function()
          cos[i] = coroutine.running()
          q:get()
        end)
        settle(d, ctx, { list[i] })
      end
      q:put "a"
      q:put "b"
      q:put "c"
      assert.equal(1, #q)
      coroutine.close(cos[2])
      coroutine.close(cos[1])
      d.wait(ctx, tasks.all_over(list[1], list[2]))
      local got = {}
      run(d, ctx, function()
        for _ = 1, 3 do got[#got + 1] = q:get(0) end
        assert.same(timeout, table.pack(q:get(0)))
      end)
      table.sort(got)
      assert.same({ "a", "b", "c" }, got)
    end)

    it("is no worse for a putter who is closed while he waits", function()
      local ctx, q, cos, list = d.context(), aio.queue(1), {}, {}
      q:put(0)
      for i = 1, 4 do
        list[i] = ctx:spawn(function()
          cos[i] = coroutine.running()
          q:put(i)
        end)
        settle(d, ctx, { list[i] })
      end
      coroutine.close(cos[2])
      local got = {}
      run(d, ctx, function()
        repeat
          local v = q:get(0.001)
          got[#got + 1] = v ~= 2 and v or nil -- whether his is among them is not said
        until not v
      end)
      finish(d, ctx, { list[1], list[3], list[4] })
      assert.same({ 0, 1, 3, 4 }, got)
    end)

    it("works in callbacks, by polling", function()
      local ctx, q, log = d.context(), aio.queue(1), {}
      ctx:schedule(function()
        ctx:schedule(function()
          log[#log + 1] = "put"
          q:put(1)
        end)
        assert.equal(1, q:get())
        q:put(2)
        ctx:spawn(function() log[#log + 1] = q:get() end)
        assert.is_true(q:put(3)) -- waits for the task
        log[#log + 1] = "done"
      end)
      d.wait(ctx, function() return #log == 3 end)
      assert.same({ "put", 2, "done" }, log)
      assert.equal(1, #q)
    end)

    it("goes between two contexts", function()
      local a, b, q, n = d.context(), d.context(), aio.queue(2), 0
      local putter = a:spawn(function()
        for i = 1, 100 do q:put(i) end
        q:close()
      end)
      local getter = b:spawn(function()
        for v in q:iter() do
          n = n + 1
          assert.equal(n, v)
          assert.equal(b, aio.current())
        end
      end)
      tasks.alternate(d, { a, b }, tasks.all_over(putter, getter))
      aio.await(putter)
      aio.await(getter)
      assert.equal(100, n)
    end)

    it("drops what a closed context's task waits to put", function()
      local a, b, q = d.context(), d.context(), aio.queue(1)
      q:put(1)
      local lost, kept = a:spawn(q.put, q, "lost"), b:spawn(q.put, q, "kept")
      settle(d, a, { lost })
      settle(d, b, { kept })
      a:close()
      run(d, b, function()
        assert.equal(1, q:get())
        assert.equal("kept", q:get())
        assert.same(timeout, table.pack(q:get(0)))
      end)
    end)

    it("holds its values no longer than they are in it", function()
      local ctx, q, weak = d.context(), aio.queue(2), setmetatable({}, { __mode = "v" })
      run(d, ctx, function()
        local function put(name, t)
          local v = {}
          weak[name] = v
          return q:put(v, t)
        end
        put "one"
        put "two"
        assert.same(timeout, table.pack(put("timed out", 0.001)))
        assert.same(timeout, table.pack(put("tried", 0)))
        local cancelled = aio.spawn(put, "cancelled")
        aio.yield()
        cancelled:cancel()
        cancelled:join()
        local waiting = aio.spawn(put, "waiting")
        aio.yield()
        for _ = 1, 2 do collectgarbage() end
        assert.is_table(weak.one)
        assert.is_table(weak.two)
        assert.is_table(weak.waiting)
        assert.is_nil(weak["timed out"])
        assert.is_nil(weak.tried)
        assert.is_nil(weak.cancelled)
        for _ = 1, 3 do q:get() end
        aio.await(waiting)
      end)
      for _ = 1, 3 do collectgarbage() end
      assert.is_nil(next(weak))
      assert.equal(0, #q)
    end)

    it("is collected with its values, and in a cycle with itself", function()
      local ctx, weak = d.context(), setmetatable({}, { __mode = "v" })
      do
        local q, r = aio.queue(), aio.queue(1)
        q:put(q)
        q:put(r)
        r:put(function() return q, r end)
        weak.q, weak.r = q, r
        local getter = ctx:spawn(function()
          local mine <const> = aio.queue()
          weak.mine = mine
          mine:get(0.001)
          mine:put(mine)
        end)
        finish(d, ctx, { getter })
      end
      for _ = 1, 4 do collectgarbage() end
      assert.is_nil(next(weak))
    end)

    it("may be cleared away with getters, putters and what they were given", function()
      local weak = setmetatable({}, { __mode = "v" })
      do
        local ctx, full, empty = d.context(), aio.queue(1), aio.queue()
        full:put "first"
        for i = 1, 3 do
          weak[i] = ctx:spawn(function() full:put { full } end)
          weak[i + 3] = ctx:spawn(function() empty:get() end)
        end
        settle(d, ctx, { table.unpack(weak, 1, 6) })
        weak.item = { empty }
        empty:put(weak.item)
        weak.full, weak.empty = full, empty
        ctx:close()
      end
      drivers.cleanup()
      for _ = 1, 4 do collectgarbage() end
      assert.is_nil(next(weak))
    end)

    it("holds many, and many wait", function()
      local ctx, q, sum, list = d.context(), aio.queue(), 0, {}
      for i = 1, 20000 do q:put(i) end
      assert.equal(20000, #q)
      for i = 1, 1000 do
        list[i] = ctx:spawn(function()
          for v in q:iter() do
            sum = sum + v
            aio.yield()
          end
        end)
      end
      d.wait(ctx, function() return #q == 0 end)
      q:close()
      finish(d, ctx, list)
      assert.equal(20000 * 20001 // 2, sum)
    end)
  end)

  it("is used at top level", function()
    local q = aio.queue(1)
    assert.is_true(q:put(1))
    assert.same(timeout, table.pack(q:put(2, 0)))
    assert.same(timeout, table.pack(q:put(2, 0.001)))
    aio.default():timer(function() assert.equal(1, q:get(0)) end):arm(0.001)
    assert.is_true(q:put(3))
    assert.equal(3, q:get())
    aio.default():timer(q.put, q, "late"):arm(0.001)
    assert.equal("late", q:get())
    aio.default():timer(q.close, q):arm(0.001)
    assert.same(closed, table.pack(q:get()))
    assert.same(closed, table.pack(q:get()))
  end)

  it("refuses what is no capacity and no time", function()
    for _, bad in ipairs { -1, 0.5, "x", {}, true, math.huge } do
      assert.error(function() aio.queue(bad) end)
    end
    local q = aio.queue()
    for _, bad in ipairs { "1", {}, true, 0 / 0, print } do
      assert.error(function() q:put(1, bad) end)
      assert.error(function() q:get(bad) end)
    end
    assert.equal(0, #q)
    for _, method in ipairs { "put", "get", "close", "iter" } do
      for _, bad in ipairs { 1, "q", {}, aio.event(), io.stdout } do
        assert.error(function() q[method](bad, 1) end)
      end
      assert.error(function() q[method]() end)
    end
  end)
end)

-- Each try lets the collector come somewhere else, also between the look at what is waited for and the wait.
describe("what a finaliser brings while a wait outside of tasks begins", function()
  local function lost(prepare)
    local mode = collectgarbage("incremental", 100, 400, 40) -- a whole cycle in each step
    local missed = 0
    for try = 1, 80 do
      local bring, wait = prepare()
      local brought = math.huge
      do local _ = setmetatable({}, { __gc = function() brought = aio.now() bring() end }) end
      for k = 1, try % 40 do local _ = ("x"):rep(50 + k) end
      local begun = aio.now()
      if not wait(0.001) and brought < begun + 0.0005 then missed = missed + 1 end -- else it came when time was up
    end
    collectgarbage("incremental", 200, 100, 13) -- as it was
    collectgarbage(mode)
    return missed
  end

  it("is seen by semaphores, events and queues", function()
    assert.equal(0, lost(function()
      local s = aio.semaphore(0)
      return function() s:release() end, function(t) return s:acquire(t) end
    end))
    assert.equal(0, lost(function()
      local e = aio.event()
      return function() e:set() end, function(t) return e:wait(t) end
    end))
    assert.equal(0, lost(function()
      local q = aio.queue()
      return function() q:put(1) end, function(t) return q:get(t) end
    end))
  end)
end)
