-- SPDX-License-Identifier: MIT
--- aio.wrap: generators that may wait; nested, failing, abandoned, cancelled, at top level, across what cannot wait.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local tasks = require "spec.support.tasks"

local over, in_task, is_quiet, collect = tasks.all_over, tasks.join, tasks.is_quiet, tasks.collect

-- Yields 1 to n, and waits before each.
local function counter(n)
  return aio.wrap(function()
    for i = 1, n do
      aio.sleep(0)
      coroutine.yield(i)
    end
  end)
end

describe("a generator", function()
  drivers.each(function(d)
    it("waits between its values, while others run", function()
      local ctx, others = d.context(), 0
      in_task(d, ctx, function()
        local other = aio.spawn(function()
          while true do
            aio.yield()
            others = others + 1
          end
        end)
        local sum = 0
        for i in counter(10) do sum = sum + i end
        other:cancel()
        assert.equal(55, sum)
      end)
      assert.is_true(others >= 5)
      d.turns(ctx, 2)
      is_quiet(ctx)
    end)

    it("passes values both ways, nils and all, and what its function returns last", function()
      local ctx = d.context()
      in_task(d, ctx, function()
        local generator = aio.wrap(function(...)
          assert.same({ n = 3, "a", nil, nil }, table.pack(...))
          aio.yield()
          assert.same({ n = 2, nil, "b" }, table.pack(coroutine.yield(1, nil)))
          assert.is_true(aio.sleep(0))
          assert.same({ n = 0 }, table.pack(coroutine.yield()))
          aio.yield()
          return nil, "last", nil
        end)
        assert.same({ n = 2, 1, nil }, table.pack(generator("a", nil, nil)))
        assert.same({ n = 0 }, table.pack(generator(nil, "b")))
        assert.same({ n = 3, nil, "last", nil }, table.pack(generator()))
      end)
    end)

    it("passes 100,000 values both ways, and 250 through a wake", function()
      local ctx = d.context()
      local many = table.move({}, 1, 1, 1, { n = 100000 })
      many[1], many[100000] = "first", "last"
      local function check(...)
        assert.equal(100000, select("#", ...))
        assert.equal("first", (...))
        assert.equal("last", (select(100000, ...)))
        return ...
      end
      local task = ctx:spawn(function()
        local generator = aio.wrap(function(...)
          check(...)
          aio.yield()
          coroutine.yield(check(coroutine.yield(...)))
          return aio.suspend()
        end)
        check(generator(table.unpack(many, 1, many.n)))
        check(generator(table.unpack(many, 1, many.n)))
        return generator()
      end)
      d.wait(ctx, function() return task:info().waiting == "aio.suspend" end)
      local values = table.move({}, 1, 1, 1, { n = 250 })
      values[2], values[250] = 2, 250
      assert.is_true(task:wake(table.unpack(values, 1, 250)))
      d.wait(ctx, over(task))
      local got = table.pack(task:join())
      assert.equal(251, got.n)
      assert.same({ nil, 2, nil, 250 }, { got[2], got[3], got[4], got[251] })
    end)

    it("may wait in everything a task may wait in", function()
      local ctx = d.context()
      in_task(d, ctx, function()
        local queue, mutex, event, self = aio.queue(), aio.mutex(), aio.event(), aio.self()
        local helper = aio.spawn(function()
          for i = 1, 3 do
            aio.yield()
            queue:put(i)
          end
          queue:close()
          event:set()
          return "joined"
        end)
        local generator = aio.wrap(function()
          assert.equal(self, aio.self())
          local held <close> = mutex:guard()
          for item in queue:iter() do coroutine.yield(item) end
          event:wait()
          coroutine.yield(aio.await(helper))
          coroutine.yield(aio.gather(function() return "g" end))
          coroutine.yield((select(2, aio.timeout(0.0005, aio.suspend))))
          assert.is_true(held:locked())
        end)
        local got = {}
        for value in generator do got[#got + 1] = value end
        assert.same({ 1, 2, 3, "joined", "g", "timeout" }, got)
        assert.is_false(mutex:locked())
      end)
      is_quiet(ctx)
    end)

    it("in a generator, 50 deep, waits and yields through all of them", function()
      local ctx = d.context()
      local function nested(depth)
        if depth == 0 then return counter(3) end
        return aio.wrap(function()
          for i in nested(depth - 1) do
            aio.yield()
            coroutine.yield(i)
          end
        end)
      end
      in_task(d, ctx, function()
        local got = {}
        for i in nested(50) do got[#got + 1] = i end
        assert.same({ 1, 2, 3 }, got)
      end)
      is_quiet(ctx)
    end)

    it("raises its error in the caller, the very value, and is dead then", function()
      local ctx = d.context()
      in_task(d, ctx, function()
        for _, boxed in ipairs { { {} }, { nil }, { false }, { 42 } } do
          local generator = aio.wrap(function()
            aio.yield()
            coroutine.yield(1)
            aio.yield()
            error(boxed[1])
          end)
          assert.equal(1, generator())
          local results = table.pack(pcall(generator))
          assert.equal(2, results.n)
          assert.is_false(results[1])
          assert.is_true(rawequal(boxed[1], results[2]))
          local ok, message = pcall(generator)
          assert.is_false(ok)
          assert.match("dead coroutine", message)
        end
      end)
      is_quiet(ctx)
    end)

    it("runs its <close> variables when it fails", function()
      local ctx, log = d.context(), {}
      in_task(d, ctx, function()
        local err = {}
        local generator = aio.wrap(function()
          local _ <close> = setmetatable({}, { __close = function(_, e) log[#log + 1] = e end })
          aio.yield()
          error(err)
        end)
        assert.equal(err, select(2, pcall(generator)))
        assert.equal(err, log[1])
        assert.equal(1, #log)
      end)
    end)

    it("that has ended is dead", function()
      local ctx = d.context()
      in_task(d, ctx, function()
        local generator = aio.wrap(function() aio.yield() end)
        generator()
        for _ = 1, 2 do assert.error_matches(generator, "cannot resume dead coroutine") end
      end)
    end)

    it("that calls itself gets an error", function()
      local ctx = d.context()
      in_task(d, ctx, function()
        local generator, inner
        generator = aio.wrap(function()
          aio.yield()
          inner = table.pack(pcall(generator))
          aio.yield()
          coroutine.yield "fine"
        end)
        assert.equal("fine", generator())
        assert.is_false(inner[1])
        assert.match("running", inner[2])
      end)
    end)

    it("that waits cannot be called by another task", function()
      local ctx = d.context()
      in_task(d, ctx, function()
        local event, got = aio.event(), nil
        local generator = aio.wrap(function()
          event:wait()
          coroutine.yield "mine"
        end)
        local other = aio.spawn(function()
          got = table.pack(pcall(generator))
          event:set()
        end)
        assert.equal("mine", generator())
        aio.await(other)
        assert.is_false(got[1])
        assert.match("running", got[2])
      end)
    end)

    it("may go from one task to another between its values", function()
      local ctx = d.context()
      local generator, got = counter(6), {}
      local function take()
        for _ = 1, 2 do
          local value = generator()
          got[#got + 1] = value
        end
      end
      for _ = 1, 3 do in_task(d, ctx, take) end
      assert.same({ 1, 2, 3, 4, 5, 6 }, got)
      is_quiet(ctx)
    end)

    it("left in the middle is collected, and what it held open goes with it", function()
      local ctx, weak = d.context(), setmetatable({}, { __mode = "k" })
      in_task(d, ctx, function()
        local generator = aio.wrap(function()
          local token = {}
          weak[token] = true
          aio.timeout(60, function()
            aio.yield()
            coroutine.yield(token)
          end)
        end)
        weak[generator] = true
        weak[generator()] = true
        generator = nil -- luacheck: ignore
      end)
      collect()
      assert.is_nil(next(weak))
      is_quiet(ctx)
    end)

    it("left by coroutine.yield in a time limit or a shield takes them with it", function()
      local ctx = d.context()
      in_task(d, ctx, function()
        local limited = aio.wrap(function()
          return aio.timeout(0.001, function()
            coroutine.yield "limited"
            aio.suspend()
          end)
        end)
        local shielded = aio.wrap(function()
          aio.shield(function()
            coroutine.yield "shielded"
            assert.is_true(aio.sleep(0.0005))
          end)
          return "over"
        end)
        assert.equal("limited", limited())
        assert.equal("shielded", shielded())
        assert.is_true(aio.sleep(0.002)) -- the limit is over, and not ours
        assert.same({ n = 2, nil, "timeout" }, table.pack(limited()))
        local results = table.pack(aio.timeout(0, function()
          assert.equal("over", shielded())
          aio.yield()
        end))
        assert.same({ n = 2, nil, "timeout" }, results)
      end)
      is_quiet(ctx)
    end)

    it("is ended by a cancel of its task, from the inside out, and is dead then", function()
      local ctx, log = d.context(), {}
      local function noting(name)
        return setmetatable({}, { __close = function(_, err)
          aio.shield(aio.yield)
          log[#log + 1] = name .. " " .. tostring(err)
        end })
      end
      local inner
      local task = ctx:spawn(function()
        local _ <close> = noting "task"
        local outer = aio.wrap(function()
          local ok, err = pcall(function()
            inner = aio.wrap(function()
              pcall(aio.suspend)
              aio.suspend()
            end)
            inner()
          end)
          assert.is_false(ok)
          log[#log + 1] = "outer " .. tostring(err)
          error(err, 0)
        end)
        outer()
      end)
      d.turns(ctx, 2)
      task:cancel "c"
      d.wait(ctx, over(task))
      assert.same({ "outer cancelled: c", "task cancelled: c" }, log)
      assert.equal("cancelled", task:status())
      assert.error_matches(inner, "dead coroutine")
      is_quiet(ctx)
    end)

    it("goes with a task that is closed behind its back", function()
      local ctx, co, closed = d.context(), nil, 0
      local generator
      local task = ctx:spawn(function()
        co = coroutine.running()
        local _ <close> = setmetatable({}, { __close = function() closed = closed + 1 end })
        generator = aio.wrap(function() aio.timeout(60, aio.suspend) end)
        generator()
      end)
      d.turns(ctx, 2)
      assert.is_true(coroutine.close(co))
      assert.equal(1, closed)
      task:cancel()
      d.turns(ctx, 3)
      assert.equal("cancelled", task:status())
      is_quiet(ctx)
      assert.equal("function", type(generator))
      generator = nil -- luacheck: ignore
      collect()
      d.turns(ctx, 2)
    end)

    it("names itself in the traceback of its task", function()
      local ctx = d.context()
      local task = ctx:spawn(function()
        local generator = aio.wrap(function() aio.suspend() end)
        generator()
      end)
      d.turns(ctx, 2)
      local text = task:traceback()
      assert.match("aio%.suspend", text)
      assert.match("called through aio%.wrap", text)
      assert.match("wrap_spec%.lua:%d+", text)
      task:cancel()
      d.wait(ctx, over(task))
    end)

    it("does not wait across a C function that cannot be suspended, and says so", function()
      local ctx = d.context()
      in_task(d, ctx, function()
        local generator = counter(3)
        local ok, message = pcall(function()
          table.sort({ 3, 2, 1 }, function() return generator() and false end)
        end)
        assert.is_false(ok)
        assert.match("sort", message)
        assert.match("before or after it", message)
        ok, message = pcall(function()
          return (string.gsub("x", "x", aio.wrap(function() aio.yield() end)))
        end)
        assert.is_false(ok)
        assert.match("gsub", message)
        -- one that waits before it gets there is fine, and so is one that does not wait
        local list = { 3, 1, 2 }
        local less = aio.wrap(function(a, b)
          while true do a, b = coroutine.yield(a < b) end
        end)
        table.sort(list, less)
        assert.same({ 1, 2, 3 }, list)
        assert.is_true(aio.sleep(0))
      end)
      is_quiet(ctx)
    end)

    it("in a callback polls", function()
      local ctx, got = d.context(), {}
      ctx:schedule(function()
        for i in counter(3) do got[#got + 1] = i end
        got.over = true
      end)
      d.wait(ctx, function() return got.over end)
      assert.same({ 1, 2, 3, over = true }, got)
    end)

    it("that waits by polling is not in the way of the tasks that run meanwhile", function()
      local ctx, got, other = d.context(), nil, nil
      ctx:schedule(function()
        ctx:spawn(function()
          local sum = 0
          for i in counter(3) do sum = sum + i end
          other = sum
        end)
        for _ in aio.wrap(function()
          while not other do aio.sleep(0.0005) end
          coroutine.yield(1)
        end) do got = true end
      end)
      d.wait(ctx, function() return got end)
      assert.equal(6, other)
    end)

    it("1,000 at a time", function()
      local ctx, sum, n = d.context(), 0, 1000
      for _ = 1, n do
        ctx:spawn(function()
          for i in counter(5) do sum = sum + i end
          n = n - 1
        end)
      end
      d.wait(ctx, function() return n == 0 end)
      assert.equal(15000, sum)
      d.turns(ctx, 2)
      is_quiet(ctx)
    end)
  end)

  it("at top level waits by polling", function()
    local got = {}
    for i in counter(3) do got[#got + 1] = i end
    assert.same({ 1, 2, 3 }, got)
    local results = table.pack(aio.timeout(0.001, aio.wrap(function() aio.sleep(60) end)))
    assert.same({ n = 2, nil, "timeout" }, results)
    assert.is_true(aio.sleep(0))
    is_quiet(aio.default())
  end)

  it("that does not wait is like one of coroutine.wrap, with a loop or without", function()
    for _, wrap in ipairs { coroutine.wrap, aio.wrap } do
      local generator = wrap(function(...)
        local x = coroutine.yield(...)
        return x, coroutine.isyieldable()
      end)
      assert.same({ n = 2, 1, nil }, table.pack(generator(1, nil)))
      assert.same({ n = 2, "x", true }, table.pack(generator "x"))
      assert.error_matches(generator, "cannot resume dead coroutine")
    end
  end)

  it("is made of a function", function()
    assert.error(function() aio.wrap() end)
    assert.error(function() aio.wrap {} end)
    assert.equal("function", type(aio.wrap(print)))
  end)
end)

describe("a generator whose coroutine the script has kept", function()
  it("may be gone before that ends", function()
    local it = require("spec.support.child").run [[
      local aio = require "aioloop"
      for _, last in ipairs { error, tostring } do
        local co
        local generator = aio.wrap(function() co = coroutine.running() coroutine.yield(1) last "x" end)
        assert(generator() == 1)
        generator = nil
        collectgarbage()
        collectgarbage()
        for i = 1, 100 do local _ = ("junk"):rep(i) end
        assert(coroutine.resume(co))
        assert(coroutine.status(co) ~= "running")
      end
      io.write "fine"
    ]]
    assert.same({ 0, "fine", "" }, { it.code, it.out, it.err })
  end)
end)
