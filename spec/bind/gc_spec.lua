-- SPDX-License-Identifier: MIT
--- The collector: at every step, in every mode; finalisers in any order, by hand, twice; a creator that is gone.

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local tasks = require "spec.support.tasks"
local fds = require "fds"

local function nop() end

local collect = tasks.collect

-- Makes one active object of each kind; each calls `note` with its name when its time has come.
local kinds = { "bh", "idle bh", "timer", "watch", "task", "sleeping task", "coroutine" }
local make = {
  bh = function(ctx, note)
    local bh = ctx:bh(note, "bh")
    bh:schedule()
    return bh
  end,
  ["idle bh"] = function(ctx, note)
    local bh = ctx:bh(note, "idle bh")
    bh:schedule_idle()
    return bh
  end,
  timer = function(ctx, note) return ctx:timer(note, "timer"):arm(0.001) end,
  watch = function(ctx, note)
    local _, w = drivers.pipe()
    local weak = setmetatable({}, { __mode = "v" })
    weak[1] = assert(ctx:watch(w, { write = function()
      if weak[1] then weak[1]:close() end
      note "watch"
    end }))
    return weak[1]
  end,
  task = function(ctx, note) return ctx:spawn(note, "task") end,
  ["sleeping task"] = function(ctx, note)
    return ctx:spawn(function()
      aio.sleep(0.001)
      note "sleeping task"
    end)
  end,
  coroutine = function(ctx, note)
    local co = coroutine.create(function(...) note(...) end)
    ctx:co_schedule(co, "coroutine")
    return co
  end,
}

-- Runs fn with the collector at work all the time.
local function stressed(mode, fn)
  local function step()
    collectgarbage(mode == "generational" and "step" or "collect")
  end
  if mode == "incremental, pause 0" then
    collectgarbage("incremental", 0, 1000, 4)
  elseif mode == "generational" then
    collectgarbage("generational")
  else
    debug.sethook(step, "c")
  end
  local ok, err = pcall(fn)
  debug.sethook()
  collectgarbage("incremental", 200, 100, 13)
  if not ok then error(err, 0) end
end

-- A life of many things at once; every call is made with the collector at work.
local function life(d)
  local ctx, log = d.context(), {}
  local function note(name) log[name] = (log[name] or 0) + 1 end
  for _, kind in ipairs(kinds) do make[kind](ctx, note) end
  local r, w = drivers.pipe()
  local reader = ctx:spawn(function()
    assert(aio.wait_readable(r, 20))
    return fds.read(r), aio.suspend(0.001)
  end):name "reader"
  ctx:schedule(fds.write, w, "hello")
  local joined = ctx:spawn(function(...)
    aio.yield()
    local inner <close> = aio.context()
    return ..., reader:join(), inner:run(function() aio.sleep(0) return "inner" end)
  end, 1)
  local failed = ctx:spawn(error, {}):keep()
  d.wait(ctx, function() return joined:status() == "ended" and log["idle bh"] and log["sleeping task"] end)
  d.wait(ctx, function() return log.timer and log.watch end)
  local _, one, ok, inner = joined:join()
  assert(one == 1 and ok == true and inner == "inner")
  assert(failed:join() == false)
  for _, kind in ipairs(kinds) do assert(log[kind] == 1, kind) end
end

describe("the collector", function()
  drivers.each(function(d)
    for _, mode in ipairs { "at every call", "generational", "incremental, pause 0" } do
      it("may work " .. mode, function()
        for _ = 1, mode == "at every call" and 1 or 50 do
          stressed(mode, function() life(d) end)
          drivers.cleanup()
        end
      end)
    end

    it("does not take what is active, and does take what is idle or over", function()
      local ctx, log = d.context(), {}
      local function note(name) log[name] = true end
      local weak = setmetatable({}, { __mode = "k" })
      for _, kind in ipairs(kinds) do weak[make[kind](ctx, note)] = kind end
      for _, idle in ipairs { ctx:bh(nop), ctx:timer(nop), ctx:watch(drivers.pipe(), {}) } do weak[idle] = "idle" end
      local armed = ctx:timer(nop)
      weak[armed:arm(100)] = "disarmed"
      armed:disarm()
      armed = nil -- luacheck: ignore
      collect()
      for _, what in pairs(weak) do assert.is_true(what ~= "idle" and what ~= "disarmed") end
      d.wait(ctx, function()
        for _, kind in ipairs(kinds) do if not log[kind] then return false end end
        return true
      end)
      d.turns(ctx, 2)
      collect()
      assert.is_nil(next(weak))
      assert.equal(0, ctx:stats().live)
    end)

    it("may take the coroutine that made a thing before the thing is called", function()
      for _, how in ipairs { "dies", "is killed", "is forgotten" } do
        local ctx, log = d.context(), {}
        for _, kind in ipairs(kinds) do
          local co = coroutine.create(function()
            make[kind](ctx, function(name)
              log[name] = true
              return coroutine.isyieldable()
            end)
            if how ~= "dies" then coroutine.yield() end
          end)
          assert(coroutine.resume(co))
          if how == "is killed" then assert(coroutine.close(co)) end
        end
        collect()
        d.wait(ctx, function()
          for _, kind in ipairs(kinds) do if not log[kind] then return false end end
          return true
        end)
        drivers.cleanup()
      end
    end)

    it("may take the coroutine in which a turn runs, once the turn is over", function()
      local ctx, n = d.context(), 0
      for _ = 1, 5 do
        coroutine.wrap(function()
          ctx:schedule(function() n = n + 1 end)
          ctx:timer(function() n = n + 1 end):arm(0)
          ctx:spawn(function()
            aio.yield()
            n = n + 1
          end)
          d.turns(ctx, 3)
        end)()
        collect()
      end
      d.turns(ctx, 3)
      assert.equal(15, n)
    end)
  end)

  it("may take a context with all that is active on it, and its fds", function()
    collect()
    local before = fds.count()
    for _ = 1, 50 do
      local ctx = aio.context()
      for _, kind in ipairs(kinds) do
        if kind ~= "watch" then make[kind](ctx, nop) end
      end
      ctx:spawn(aio.suspend)
      ctx:poll(false)
      ctx = nil -- luacheck: ignore
    end
    collect()
    assert.equal(before, fds.count())
  end)

  it("survives 1,000 contexts", function()
    collect()
    local before = fds.count()
    for i = 1, 1000 do
      local ctx = aio.context()
      assert.equal(i, ctx:run(function()
        aio.sleep(0)
        return i
      end))
      if i % 2 == 0 then ctx:close() end
      if i % 50 == 0 then collect() end
    end
    collect()
    assert.equal(before, fds.count())
  end)

  it("may take an attached context's thread only when its turn is over", function()
    local it = child.run [[
      local aio, glib = require "aioloop", require "aioloop.glib"
      for _, how in ipairs { "schedule", "spawn" } do
        for _, leave in ipairs { "detach", "close" } do
          local ctx, n = aio.context(), 0
          if not ctx:attach() then os.exit(77, true) end
          ctx:on_error(function() n = n + 1 end)
          ctx[how](ctx, function()
            coroutine.wrap(function()
              ctx[leave](ctx)
              for _ = 1, 3 do collectgarbage() end
              local t = {}
              for i = 1, 1000 do t[i] = { tostring(i) } end
            end)()
            local t = {}
            for i = 1, 1000 do t[i] = { tostring(i) } end
            if leave == "detach" then assert(ctx:attach()) ctx:detach() end
            error {}
          end)
          while glib.iterate(false) do end
          for _ = 1, 3 do collectgarbage() end
          assert(n == 1)
        end
      end
    ]]
    if it.code == 77 then return pending "no GLib" end
    assert.same({ code = 0, out = "", err = "" }, it)
  end)

  it("may take a context whose finaliser-bearing neighbour still uses it", function()
    local seen = {}
    do
      local ctx = aio.context()
      ctx:timer(nop):arm(100)
      ctx:spawn(aio.sleep, 100)
      setmetatable({}, { __gc = function()
        for _, method in ipairs { "poll", "run", "spawn", "schedule", "stats", "close" } do
          seen[#seen + 1] = method
          pcall(ctx[method], ctx, method == "run" and nop or method == "poll" and false or nop)
        end
        pcall(ctx.run, ctx)
      end })
    end
    collect()
    assert.equal(6, #seen)
  end)

  it("closes the timers of a context that went, and they stay closed when another has come in its place", function()
    local timers = {}
    for i = 1, 10 do timers[i] = aio.context():timer(nop):arm(100) end
    collect()
    local contexts = {}
    for i = 1, 10 do contexts[i] = aio.context() end
    for _, timer in ipairs(timers) do
      assert.is_false(timer:armed())
      assert.matches("closed", tostring(timer))
      assert.error_matches(function() timer:arm(1) end, "closed timer")
      timer:close()
    end
    for _, ctx in ipairs(contexts) do
      assert.equal(0, ctx:stats().live)
      ctx:close()
    end
  end)

  it("leaves a task usable when its context is gone and another has come in its place", function()
    local list, err = {}, {}
    for i = 1, 10 do
      local ctx = aio.context()
      local one, other = ctx:spawn(function() return i end), ctx:spawn(error, err):keep()
      list[i] = { ended = one, failed = other, asleep = ctx:spawn(aio.sleep, 100) }
      ctx:poll(false)
      list[i].unborn = ctx:spawn(nop)
    end
    collect()
    local contexts = {}
    for i = 1, 10 do contexts[i] = aio.context() end
    for i, task in ipairs(list) do
      assert.same({ n = 2, true, i }, table.pack(task.ended:join()))
      assert.same({ n = 2, false, err }, table.pack(task.failed:join()))
      for _, name in ipairs { "asleep", "unborn" } do
        local it = task[name]
        local ok, why = it:join()
        assert.is_false(ok)
        assert.is_true(aio.is_cancelled(why))
        assert.is_false(it:cancel())
        assert.equal("cancelled", it:status())
        assert.equal(it, it:keep():ref():unref())
        assert.same({ nil, "not suspended" }, { it:wake() })
        assert.equal(it, it:name "old")
        assert.is_string(it:traceback())
        assert.is_number(it:info().id)
      end
    end
    list = nil -- luacheck: ignore
    collect()
    for _, ctx in ipairs(contexts) do
      ctx:poll(false)
      assert.same({ live = 0, tasks = 0 }, { live = ctx:stats().live, tasks = ctx:stats().tasks })
      ctx:close()
    end
  end)

  it("takes a coroutine that somebody joined and then was closed", function()
    local ctx, weak = drivers.context(), setmetatable({}, { __mode = "v" })
    local joiner, waits
    do
      local task
      aio.default():close()
      ctx:schedule(function()
        aio.wake(coroutine.create(function()
          task = aio.self()
          weak.task = task
          coroutine.yield()
        end))
      end)
      ctx:poll(false)
      joiner = ctx:spawn(function()
        waits = coroutine.running()
        local it = task
        task = nil
        return it:join(100)
      end)
      ctx:poll(false)
    end
    coroutine.close(waits)
    waits = nil -- luacheck: ignore
    collect()
    for _ = 1, 3 do ctx:poll(false) end
    collect()
    assert.is_nil(weak.task)
    assert.equal("cancelled", joiner:status())
    drivers.cleanup()
  end)

  it("takes a task that was closed while it slept and was scheduled", function()
    local ctx, co = drivers.context(), nil
    ctx:spawn(function()
      co = coroutine.running()
      ctx:co_schedule(co)
      aio.sleep(0.01)
    end)
    ctx:spawn(function() coroutine.close(co) end)
    for _ = 1, 3 do ctx:poll(false) end
    co = nil -- luacheck: ignore
    collect()
    local stop = aio.now() + 0.02
    while aio.now() < stop do ctx:poll(0.005) end
    assert.equal(0, ctx:stats().timers_armed)
    drivers.cleanup()
  end)

  it("takes a bottom half and a one-shot that have run, though they had scheduled themselves again before", function()
    local ctx, weak, runs = drivers.context(), setmetatable({}, { __mode = "v" }), 0
    do
      local bh
      local function once()
        runs = runs + 1
        if runs < 6 then ctx:schedule(once) end
      end
      bh = ctx:bh(function()
        runs = runs + 1
        if runs < 4 then bh:schedule() end
      end)
      bh:schedule()
      ctx:schedule(once)
      weak.bh, weak.once = bh, once
    end
    for _ = 1, 8 do ctx:poll(false) end
    collect()
    assert.is_true(runs >= 6)
    assert.is_nil(weak.bh)
    assert.is_nil(weak.once)
    drivers.cleanup()
  end)
end)

describe("finalisers", function()
  -- Everything there is a __gc for, and timers and tasks, which do without.
  local objects = {
    context = function() return aio.context() end,
    ["busy context"] = function(_)
      local ctx = aio.context()
      ctx:schedule(nop)
      ctx:timer(nop):arm(100)
      ctx:spawn(aio.suspend)
      ctx:poll(false)
      return ctx
    end,
    bh = function(ctx) return ctx:bh(nop) end,
    ["scheduled bh"] = function(ctx)
      local bh = ctx:bh(nop)
      bh:schedule()
      return bh
    end,
    timer = function(ctx) return ctx:timer(nop) end,
    ["armed timer"] = function(ctx) return ctx:timer(nop):arm(0, 0.001) end,
    watch = function(ctx) return assert(ctx:watch(select(2, drivers.pipe()), { write = nop })) end,
    task = function(ctx) return ctx:spawn(aio.suspend) end,
    ["waiting task"] = function(ctx)
      local task = ctx:spawn(aio.sleep, 100)
      ctx:poll(false)
      return task
    end,
    ["ended task"] = function(ctx)
      local task = ctx:spawn(nop)
      ctx:poll(false)
      return task
    end,
    ["failed task"] = function(ctx)
      local task = ctx:spawn(error, {}):keep()
      ctx:poll(false)
      task:join()
      return task
    end,
    ["joined task"] = function(ctx)
      local task = ctx:spawn(aio.suspend)
      ctx:spawn(task.join, task)
      ctx:spawn(task.join, task, 100)
      ctx:poll(false)
      return task
    end,
    coroutine = function(ctx)
      local handle
      aio.wake(coroutine.create(function()
        handle = aio.self()
        coroutine.yield()
      end))
      return handle, ctx
    end,
  }
  local names = {}
  for name in pairs(objects) do names[#names + 1] = name end
  table.sort(names)

  local function by_hand(object)
    local meta = getmetatable(object)
    return (meta.__gc or meta.__close or nop)(object)
  end

  local function exercise(object)
    for method in ("schedule arm set join status wake poll spawn ref unref close"):gmatch "%a+" do
      if object[method] then pcall(object[method], object, false) end
    end
    assert.is_string(tostring(object))
    assert.is_string(aio.type(object))
  end

  it("may be called by hand, twice, and the object be used afterwards", function()
    for _, name in ipairs(names) do
      local ctx = drivers.context()
      local object = objects[name](ctx)
      by_hand(object)
      by_hand(object)
      exercise(object)
      by_hand(object)
      for _ = 1, 3 do ctx:poll(false) end
      object = nil -- luacheck: ignore
      collect()
      for _ = 1, 3 do ctx:poll(false) end
      ctx:close()
    end
    drivers.cleanup()
  end)

  it("may be called by hand from inside every callback, also the object's own", function()
    for _, name in ipairs(names) do
      local ctx = drivers.context()
      local object = objects[name](ctx)
      for _, how in ipairs { "schedule", "spawn" } do
        ctx[how](ctx, function()
          by_hand(object)
          exercise(object)
          collect()
          by_hand(object)
        end)
        for _ = 1, 3 do ctx:poll(false) end
      end
      ctx:close()
    end
    local own = drivers.context()
    local n = 0
    local bh, timer, watch, task
    local function finalise(what)
      return function()
        n = n + 1
        by_hand(what())
        by_hand(what())
        collect()
        exercise(what())
      end
    end
    bh = own:bh(finalise(function() return bh end))
    bh:schedule()
    timer = own:timer(finalise(function() return timer end)):arm(0, 0.001)
    watch = own:watch(select(2, drivers.pipe()), { write = finalise(function() return watch end) })
    task = own:spawn(finalise(function() return task end))
    own:spawn(function()
      by_hand(aio.self())
      collect()
      aio.self():status()
      aio.sleep(0)
      assert.equal("running", aio.self():status())
      n = n + 1
    end)
    for _ = 1, 5 do own:poll(false) end
    assert.equal(5, n)
    local context = aio.context()
    context:schedule(finalise(function() return context end))
    context:poll(false)
    context = aio.context()
    context:spawn(finalise(function() return context end))
    pcall(context.poll, context, false)
    context = aio.context()
    pcall(context.run, context, function()
      by_hand(aio.self())
      aio.sleep(0)
    end)
    collect()
    drivers.cleanup()
  end)

  it("of every pair of kinds, in both orders, may run together", function()
    for _, first in ipairs(names) do
      for _, second in ipairs(names) do
        -- Collected at once; the one that is made later is finalised first.
        local ctx = aio.context()
        local cycle = { objects[first](ctx), objects[second](ctx), ctx }
        cycle[4] = cycle
        assert.equal(4, #cycle)
        cycle, ctx = nil, nil -- luacheck: ignore
        collectgarbage()
      end
      drivers.cleanup()
      collect()
    end
  end)

  it("of every pair, by hand, in both orders, with turns in between", function()
    for _, first in ipairs(names) do
      for _, second in ipairs(names) do
        local ctx <close> = aio.context()
        local a, b = objects[first](ctx), objects[second](ctx)
        by_hand(a)
        pcall(ctx.poll, ctx, false)
        by_hand(b)
        pcall(ctx.poll, ctx, false)
      end
      drivers.cleanup()
    end
    collect()
  end)

  it("of the script may close, poll and make what they like", function()
    local log = 0
    local ctx = drivers.context()
    ctx:run(function()
      for _ = 1, 20 do
        setmetatable({}, { __gc = function()
          log = log + 1
          local inner <close> = aio.context()
          inner:schedule(function() log = log + 1 end)
          inner:poll(false)
          ctx:poll(false)
          ctx:spawn(function() log = log + 1 end)
          pcall(aio.sleep, 0)
          assert.is_false((pcall(aio.yield)))
        end })
      end
      collect()
      aio.sleep(0.001)
    end)
    assert.is_true(log >= 40, log)
    drivers.cleanup()
  end)

  it("may find a coroutine whose handle is finalised already", function()
    local woke = false
    do
      local co = coroutine.create(function()
        coroutine.yield()
        woke = true
      end)
      aio.wake(co)
      setmetatable({ co }, { __gc = function(self) woke = pcall(aio.wake, self[1]) and woke end })
      setmetatable({ co }, { __gc = function(self) pcall(aio.enter, self[1]) end })
    end
    collect()
    for _ = 1, 3 do aio.default():poll(false) end
    assert.is_boolean(woke)
  end)
end)
