-- SPDX-License-Identifier: MIT
--- A context as a GSource: attach and detach, what starts in GLib's own callbacks, errors with nobody to raise to.

local aio = require "aioloop"
local glib = require "aioloop.glib"
local fds = require "fds"
local foreign = require "foreign"
local drivers = require "spec.support.drivers"
local tasks = require "spec.support.tasks"

local function nop() end

-- A context with a GMainContext to drive it: the default one, or the one given.
local function attached(...)
  local ctx = drivers.context()
  assert.is_true(ctx:attach(...))
  return ctx
end

-- Iterates, asleep in between, until done() is true.
local function iterate_until(done)
  local alarm <close> = drivers.alarm(drivers.limit)
  local n = 0
  while not done() do
    glib.iterate(true)
    foreign.check()
    n = n + 1
    if alarm.rung then error("what the scenario waits for never happened", 2) end
  end
  return n
end

-- Iterates for so long; returns how often that was, and how often something was dispatched.
local function iterate_for(seconds)
  local alarm <close> = drivers.alarm(seconds)
  local n, dispatched = 0, 0
  while not alarm.rung do
    if glib.iterate(true) then dispatched = dispatched + 1 end
    foreign.check()
    n = n + 1
  end
  return n, dispatched
end

-- What fn prints to the standard error output.
local function stderr_of(fn)
  local r, w = drivers.pipe()
  local saved = drivers.dup(2)
  assert(fds.dup2(w, 2))
  local ok, err = pcall(fn)
  assert(fds.dup2(saved, 2))
  assert(ok, err)
  return fds.read(r) or ""
end

describe("source", function()
  after_each(drivers.cleanup)

  it("attached, lets GLib run everything", function()
    local ctx, log = attached(), {}
    local function note(x) log[x] = true end
    local r, w = drivers.pipe()
    fds.write(w, "x")
    ctx:schedule(note, "schedule")
    ctx:bh(note, "idle"):schedule_idle()
    ctx:timer(note, "timer"):arm(0.002)
    local watch
    watch = ctx:watch(r, {
      read = function()
        note "watch"
        watch:close()
      end,
    })
    ctx:spawn(function()
      aio.sleep(0.003)
      note "task"
    end)
    iterate_until(function() return log.schedule and log.idle and log.timer and log.watch and log.task end)
  end)

  it("sleeps when there is nothing to do, on every backend", function()
    for _, backend in ipairs(drivers.backends) do
      local ctx = drivers.context { backend = backend }
      ctx:attach()
      ctx:watch(drivers.pipe(), { read = nop })
      ctx:watch(drivers.socketpair(), { read = nop })
      ctx:timer(nop):arm(1000)
      local n = iterate_for(0.05)
      assert.is_true(n <= 8, n .. " iterations on " .. backend)
      ctx:close()
    end
  end)

  it("a timer wakes it once, not early and not by a busy loop", function()
    local ctx, at = attached(), nil
    local due = aio.now() + 0.0105
    ctx:timer(function() at = aio.now() end):arm(0.0105)
    local n = iterate_until(function() return at end)
    assert.is_true(at >= due)
    assert.is_true(n <= 6, n .. " iterations")
  end)

  it("an idle bottom half does not make it ready, nor loop", function()
    local ctx, runs, bh = attached(), 0, nil
    bh = ctx:bh(function()
      runs = runs + 1
      bh:schedule_idle()
    end)
    bh:schedule_idle()
    local start = aio.now()
    local n = iterate_for(0.2)
    assert.is_true(runs >= 2)
    assert.is_true(runs <= (aio.now() - start) / 0.01 + 1, runs .. " runs")
    assert.is_true(n <= 2 * runs + 8, n .. " iterations for " .. runs .. " runs")
  end)

  describe("with sources of others beside it", function()
    it("what is started in a foreign callback is delivered without a further event", function()
      for _, backend in ipairs(drivers.backends) do
        for _, kind in ipairs { "schedule", "bh", "idle", "timer", "watch", "spawn" } do
          local ctx, done = drivers.context { backend = backend }, false
          local function finish() done = true end
          ctx:attach()
          iterate_for(0.001) -- it has been asleep
          foreign.timeout(1, function()
            if kind == "schedule" then
              ctx:schedule(finish)
            elseif kind == "bh" then
              ctx:bh(finish):schedule()
            elseif kind == "idle" then
              ctx:bh(finish):schedule_idle()
            elseif kind == "timer" then
              ctx:timer(finish):arm(0.001)
            elseif kind == "spawn" then
              ctx:spawn(finish)
            else
              local r, w = drivers.pipe()
              fds.write(w, "x")
              local watch
              watch = ctx:watch(r, {
                read = function()
                  watch:close()
                  finish()
                end,
              })
            end
          end)
          local n = iterate_until(function() return done end)
          assert.is_true(n <= 12, ("%d iterations for %s on %s"):format(n, kind, backend))
          ctx:close()
        end
      end
    end)

    it("an earlier timer armed in a foreign callback fires at its time", function()
      local ctx, at, due = attached(), nil, nil
      local timer = ctx:timer(function() at = aio.now() end):arm(1000)
      foreign.timeout(1, function()
        due = aio.now() + 0.002
        timer:arm(0.002)
      end)
      iterate_until(function() return at end)
      assert.is_true(at >= due)
    end)

    it("a task is woken by a foreign callback", function()
      local ctx, got = attached(), nil
      local task = ctx:spawn(function() got = table.pack(aio.suspend()) end)
      iterate_until(function() return task:status() == "waiting" end)
      foreign.idle(function() task:wake(1, nil, 3) end)
      iterate_until(function() return got end)
      assert.same({ n = 3, 1, nil, 3 }, got)
    end)

    it("and polled by hand in a foreign callback, it still gets what comes later", function()
      local ctx, runs = attached(), 0
      local function count() runs = runs + 1 end
      foreign.idle(function()
        ctx:schedule(count)
        ctx:poll(false)
        ctx:schedule(count)
        ctx:timer(count):arm(0.001)
      end)
      iterate_until(function() return runs == 3 end)
    end)

    it("does not starve them, nor they it", function()
      local ctx, ours, theirs, bh = attached(), 0, 0, nil
      bh = ctx:bh(function()
        ours = ours + 1
        bh:schedule()
      end)
      bh:schedule()
      foreign.timeout(0, function()
        theirs = theirs + 1
        return theirs < 50
      end)
      iterate_until(function() return theirs >= 50 and ours >= 50 end)
    end)
  end)

  describe("detached", function()
    it("is GLib's no more, and may be attached again", function()
      local ctx, runs = attached(), 0
      ctx:schedule(function() runs = runs + 1 end)
      ctx:detach()
      ctx:detach()
      for _ = 1, 5 do glib.iterate(false) end
      assert.equal(0, runs)
      ctx:poll(false)
      assert.equal(1, runs)
      ctx:attach()
      ctx:schedule(function() runs = runs + 1 end)
      iterate_until(function() return runs == 2 end)
    end)

    for _, kind in ipairs { "schedule", "idle bh", "timer", "watch", "task" } do
      it("inside a callback of kind " .. kind .. ", lets that finish and nothing else come", function()
        local ctx, finished, after = attached(), false, 0
        local function detach()
          ctx:detach()
          collectgarbage()
          finished = true
        end
        local r, w = drivers.pipe()
        fds.write(w, "x")
        if kind == "schedule" then
          ctx:schedule(detach)
        elseif kind == "idle bh" then
          ctx:bh(detach):schedule_idle()
        elseif kind == "timer" then
          ctx:timer(detach):arm(0)
        elseif kind == "task" then
          ctx:spawn(detach)
        else
          local watch
          watch = ctx:watch(r, {
            read = function()
              watch:close()
              detach()
            end,
          })
        end
        iterate_until(function() return finished end)
        ctx:schedule(function() after = after + 1 end)
        for _ = 1, 5 do glib.iterate(false) end
        assert.equal(0, after)
        ctx:poll(false)
        assert.equal(1, after)
        ctx:attach()
        ctx:schedule(function() after = after + 1 end)
        iterate_until(function() return after == 2 end)
      end)
    end

    it("and attached anew inside a callback, goes on", function()
      local ctx, runs, bh = attached(), 0, nil
      bh = ctx:bh(function()
        runs = runs + 1
        ctx:detach()
        ctx:attach()
        if runs < 5 then bh:schedule() end
      end)
      bh:schedule()
      iterate_until(function() return runs == 5 end)
    end)

    it("in a nested iteration of its own callback", function()
      local ctx, finished = attached(), false
      ctx:schedule(function()
        ctx:schedule(function() ctx:detach() end)
        glib.iterate(false)
        finished = true
      end)
      iterate_until(function() return finished end)
      assert.is_nil((ctx:detach()))
    end)

    it("or closed, leaves no fds behind", function()
      local before = fds.count()
      for i = 1, 20 do
        local ctx = attached()
        ctx:schedule(nop)
        glib.iterate(false)
        if i % 2 == 0 then ctx:detach() end
        ctx:close()
      end
      assert.equal(before, fds.count())
    end)
  end)

  it("attached twice raises, and stays attached", function()
    local ctx, runs = attached(), 0
    assert.error_matches(function() ctx:attach() end, "attached already")
    ctx:schedule(function() runs = runs + 1 end)
    iterate_until(function() return runs == 1 end)
  end)

  it("takes a main context and a priority, which are checked", function()
    local ctx = drivers.context()
    for _, wrong in ipairs { 1, "x", {}, nop, true } do
      assert.has_error(function() ctx:attach(wrong) end)
    end
    for _, wrong in ipairs { 2 ^ 40, "x", {}, 1.5 } do
      assert.has_error(function() ctx:attach(nil, wrong) end)
    end
    assert.is_true(ctx:attach(nil, 150))
    assert.equal(150, foreign.source_priority(ctx:source()))
    local log = {}
    local urgent = attached(nil, -50)
    ctx:schedule(function() log[#log + 1] = "later" end)
    urgent:schedule(function() log[#log + 1] = "sooner" end)
    iterate_until(function() return #log == 2 end)
    assert.same({ "sooner", "later" }, log)
  end)

  it("attached to another main context is driven by that alone", function()
    local main = foreign.context_new()
    local ctx, runs = attached(main), 0
    ctx:schedule(function() runs = runs + 1 end)
    for _ = 1, 3 do glib.iterate(false) end
    assert.equal(0, runs)
    glib.iterate(false, main)
    assert.equal(1, runs)
    ctx:timer(function() runs = runs + 1 end):arm(0.001)
    while runs < 2 do glib.iterate(true, main) end
    foreign.context_unref(main) -- takes its sources with it
    ctx:schedule(function() runs = runs + 1 end)
    ctx:poll(false)
    assert.equal(3, runs)
    ctx:attach()
    ctx:schedule(function() runs = runs + 1 end)
    iterate_until(function() return runs == 4 end)
  end)

  it("is lent as a pointer, to be attached by other means, always the same one", function()
    local ctx, runs = drivers.context(), 0
    local source = ctx:source()
    assert.equal("userdata", type(source))
    assert.equal(source, ctx:source())
    foreign.source_attach(source, nil)
    assert.error_matches(function() ctx:attach() end, "attached already")
    ctx:schedule(function() runs = runs + 1 end)
    iterate_until(function() return runs == 1 end)
    foreign.source_destroy(source)
    ctx:schedule(function() runs = runs + 1 end)
    for _ = 1, 3 do glib.iterate(false) end
    assert.equal(1, runs)
    ctx:attach()
    iterate_until(function() return runs == 2 end)
  end)

  it("keeps its context alive while attached, and lets it go after", function()
    local weak, runs = setmetatable({}, { __mode = "v" }), 0
    local function make()
      local ctx = assert(aio.context())
      weak.ctx = ctx
      ctx:attach()
      ctx:timer(function() runs = runs + 1 end):arm(0.001)
    end
    make()
    collectgarbage()
    collectgarbage()
    assert.is_not_nil(weak.ctx)
    iterate_until(function() return runs == 1 end)
    weak.ctx:detach()
    collectgarbage()
    collectgarbage()
    assert.is_nil(weak.ctx)
  end)

  it("two of them live beside one another, and poll one another", function()
    local one, two = attached(), attached()
    local log = {}
    one:schedule(function()
      two:schedule(function() log[#log + 1] = "two" end)
      two:poll(false)
      log[#log + 1] = "one"
      two:schedule(function() log[#log + 1] = "later" end)
    end)
    iterate_until(function() return #log == 3 end)
    assert.same({ "two", "one", "later" }, log)
  end)

  it("recurses: iterations nested in a callback run its other callbacks", function()
    local ctx, depth, deepest = attached(), 0, 0
    local function dive()
      depth = depth + 1
      deepest = math.max(deepest, depth)
      if depth < 20 then
        ctx:schedule(dive)
        glib.iterate(false)
      end
      depth = depth - 1
    end
    ctx:schedule(dive)
    iterate_until(function() return deepest == 20 end)
    assert.equal(0, depth)
  end)

  describe("an error of a callback", function()
    it("becomes a g_warning with traceback when nobody else is there", function()
      local ctx = attached()
      local warning = stderr_of(function()
        ctx:schedule(error, "oops", 0)
        ctx:timer(error, "second oops", 0):arm(0)
        for _ = 1, 5 do glib.iterate(false) end
      end)
      assert.matches("aioloop%-WARNING", warning)
      assert.matches("oops\nstack traceback:", warning)
      assert.matches("second oops\nstack traceback:", warning)
      local runs = 0
      ctx:schedule(function() runs = runs + 1 end)
      iterate_until(function() return runs == 1 end)
      assert.equal("", stderr_of(function() glib.iterate(false) end)) -- once
    end)

    it("is any value: nil, a table, one whose __tostring raises", function()
      local ctx = attached()
      local warning = stderr_of(function()
        ctx:schedule(error, nil)
        ctx:schedule(error, setmetatable({}, { __tostring = function() return "my own words" end }))
        ctx:schedule(error, setmetatable({}, { __tostring = function() error "no words" end }))
        for _ = 1, 5 do glib.iterate(false) end
      end)
      assert.matches("nil", warning)
      assert.matches("my own words", warning)
    end)

    it("of a task that nobody joined too", function()
      local ctx = attached()
      local warning = stderr_of(function()
        ctx:spawn(function() error("oops", 0) end)
        for _ = 1, 5 do glib.iterate(false) end
      end)
      assert.matches("oops\nstack traceback:", warning)
    end)

    it("goes to on_error when there is one, and not to GLib", function()
      local ctx, told = attached(), nil
      ctx:on_error(function(err) told = err end)
      local warning = stderr_of(function()
        ctx:schedule(error, "oops", 0)
        for _ = 1, 5 do glib.iterate(false) end
      end)
      assert.equal("", warning)
      assert.matches("^oops\n", told)
    end)
  end)

  it("iterate says whether something was dispatched", function()
    local ctx = attached()
    assert.is_false(glib.iterate(false))
    ctx:schedule(nop)
    assert.is_true(glib.iterate(false))
    assert.is_false(glib.iterate(false))
  end)

  it("callbacks do not need the coroutine that attached it", function()
    local ctx, runs = drivers.context(), 0
    tasks.call_in_passing(function()
      ctx:attach()
      ctx:timer(function() runs = runs + 1 end):arm(0.001)
    end)
    iterate_until(function() return runs == 1 end)
  end)
end)
