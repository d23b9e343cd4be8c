-- SPDX-License-Identifier: MIT
--- aioloop.testing: what passes, and above all what does not.

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local testing = require "aioloop.testing"

local HERE = "^[^\n]*testing_spec%.lua:%d+: "

-- Runs a made test that has to fail; returns its error.
local function failure(test)
  local ok, err = pcall(test)
  assert.is_false(ok, "it passed")
  return err
end

local function idle_timer(ctx) return ctx:timer(print):arm(60) end

describe("testing.async", function()
  it("runs its function as a task on a context of its own, which is the current one", function()
    local outer, inner, task = aio.current(), nil, nil
    local results = table.pack(testing.async(function(ctx, ...)
      inner, task = ctx, aio.self()
      assert.equal(ctx, aio.current())
      assert.not_equal(outer, ctx)
      assert.equal(0, select("#", ...))
      aio.sleep(0.001)
      return "not for the runner"
    end)())
    assert.equal(0, results.n)
    assert.equal("ended", task:status())
    assert.error_matches(function() inner:poll(false) end, "closed context")
    assert.equal(outer, aio.current())
  end)

  it("may be called again, each time afresh", function()
    local seen = {}
    local test = testing.async(function(ctx) seen[#seen + 1] = ctx end)
    test()
    test()
    assert.equal(2, #seen)
    assert.not_equal(seen[1], seen[2])
  end)

  it("passes on options to the context", function()
    testing.async(function(ctx)
      assert.equal("poll", ctx:stats().backend)
      assert.equal("named", ctx:stats().name)
    end, { backend = "poll", name = "named" })()
  end)

  it("fails with the function's own error, the very value; a string has its traceback", function()
    local err = {}
    assert.equal(err, failure(testing.async(function() error(err) end)))
    local function culprit() error "text" end
    local message = failure(testing.async(function()
      aio.sleep(0)
      culprit()
    end))
    assert.match(HERE .. "text\nstack traceback:\n", message)
    assert.match("in upvalue 'culprit'", message)
  end)

  it("lets busted tell failures and pending tests from errors", function()
    local _, plain = pcall(function() assert.equal(1, 2) end)
    local err = failure(testing.async(function() assert.equal(1, 2) end))
    assert.equal(debug.getmetatable(plain), debug.getmetatable(err))
    assert.match(HERE, tostring(err))
    err = failure(testing.async(function() pending "later" end))
    assert.equal("later", tostring(err))
    assert.not_equal(debug.getmetatable(plain), debug.getmetatable(err))
  end)

  it("fails with the error of a callback, and of a task that nobody joined", function()
    local err = {}
    assert.equal(err, failure(testing.async(function(ctx)
      ctx:schedule(error, err)
      aio.sleep(0.001)
    end)))
    assert.equal(err, failure(testing.async(function()
      aio.spawn(error, err)
      aio.sleep(0.001)
    end)))
    assert.equal(err, failure(testing.async(function() aio.spawn(error, err) end)), "in its last turn")
  end)

  it("checks its arguments where it is called", function()
    for _, case in ipairs {
      { "async", "function expected, got nil" },
      { "async", "options are a number", print, "5" },
      { "async", "greater than 0", print, 0 },
      { "async", "greater than 0", print, { seconds = 0 / 0 } },
      { "virtual", "function expected, got table", {} },
      { "virtual", "greater than 0", print, -1 },
      { "shuffled", "integer of at least 1", 0, print },
      { "shuffled", "integer of at least 1", 1.5, print },
      { "shuffled", "function expected", 1 },
      { "each_seed", "integer of at least 1", nil, print },
      { "each_seed", "#2 to 'each_seed'", 1, "f" },
      { "it_async", "#2 to 'it_async'", "name" },
    } do
      local _, message = pcall(function() testing[case[1]](table.unpack(case, 3, 4)) end)
      assert.match(HERE, message)
      assert.match(case[2], message, 1, true)
    end
    assert.error_matches(testing.async(print, { backend = "none" }), "unknown backend")
  end)
end)

describe("the time limit", function()
  it("shows the tasks, what they wait in and where, and names the test", function()
    local start = aio.now()
    local message = failure(testing.async(function(ctx)
      ctx:spawn(function() aio.queue():get() end):name "consumer"
      aio.sleep(60)
    end, 0.03))
    assert.is_true(aio.now() - start >= 0.03)
    assert.match(HERE .. "not over after 0%.03 s\n2 tasks on aioloop%.context", message)
    assert.match("'the test': waiting in aio%.sleep for %d", message)
    assert.match("'consumer': waiting in queue:get for %d", message)
    assert.match("\n[^\n]*testing_spec%.lua:%d+: in function", message)
    assert.match("spawned at [^\n]*testing_spec%.lua:%d+", message)
  end)

  -- None of these ends by itself.
  local endless = {
    ["waits"] = function() aio.sleep(60) end,
    ["waits for an fd"] = function() aio.wait_readable((drivers.pipe())) end,
    ["waits in a shield"] = function() aio.shield(aio.sleep, 60) end,
    ["only yields"] = function() while true do aio.yield() end end,
    ["catches every cancel"] = function() while true do pcall(aio.sleep, 1) end end,
    ["polls by itself"] = function(ctx)
      local _ <close> = idle_timer(ctx)
      while true do ctx:poll() end
    end,
    ["runs its own loop"] = function(ctx) while true do ctx:run(aio.sleep, 60) end end,
    ["fails and leaves one that catches every cancel"] = function(ctx)
      ctx:spawn(function() while true do pcall(aio.sleep, 1) end end)
      aio.sleep(0.001)
      error "in the function"
    end,
    ["has a callback that waits"] = function(ctx)
      ctx:schedule(aio.sleep, 60)
      aio.sleep(0)
    end,
    ["makes work for ever"] = function(ctx)
      local function again() ctx:schedule(again) end
      again()
      aio.sleep(60)
    end,
  }
  for name, fn in pairs(endless) do
    it("ends a test that " .. name, function()
      local message = failure(testing.async(fn, 0.03))
      assert.match(HERE .. "not over after", message)
      drivers.cleanup()
    end)
  end

  it("lets <close> variables run", function()
    local closed
    failure(testing.async(function()
      local _ <close> = setmetatable({}, { __close = function() closed = true end })
      aio.sleep(60)
    end, 0.01))
    assert.is_true(closed)
  end)

  it("does not strike a test that is over in time", function()
    testing.async(function() aio.sleep(0.01) end, 20)()
  end)

  it("need not be waited for when nothing can end the wait any more", function()
    local start = aio.now()
    for _, fn in ipairs {
      function() aio.suspend() end,
      function(ctx) while true do ctx:poll() end end,
      function(ctx) ctx:schedule(aio.suspend) aio.suspend() end,
      function() coroutine.yield() end,
    } do
      local message = failure(testing.async(fn, 20))
      assert.match(HERE .. "deadlock: nothing is left that could wake\n", message)
      assert.match("'the test'", message)
    end
    assert.is_true(aio.now() - start < 10)
  end)

  it("takes nothing for a deadlock that an fd, a timer, or work still to do can end", function()
    local r, w = drivers.pipe()
    testing.async(function(ctx)
      local got
      local watch = ctx:watch(r, { read = function() got = fds.read(r) end })
      -- Time in which nothing happens, and that is no deadlock: here, and in the two tests below.
      local writer = assert(io.popen(("sleep 0.1; echo x >/proc/%d/fd/%d"):format(drivers.pid(), w)))
      while not got do ctx:poll() end
      watch:close()
      writer:close()
    end, 20)()
    testing.async(function() aio.sleep(0.1) end, 20)()
    testing.async(function() aio.suspend(0.1) end, 20)()
    drivers.cleanup()
  end)
end)

describe("the look at what a test left behind", function()
  -- What is left, and how it is called.
  local kept = {}
  local leaks = {
    ["a task"] = { function(ctx) ctx:spawn(aio.suspend):name "forgotten" end, "\n\ttasks that have not ended: 1\n",
      "'forgotten': waiting in aio%.suspend" },
    ["three tasks"] = { function(ctx)
      for _ = 1, 3 do ctx:spawn(aio.suspend) end
    end, "\n\ttasks that have not ended: 3\n" },
    ["an unreferenced task"] = { function(ctx) ctx:spawn(aio.suspend):unref() end, "tasks that have not ended: 1" },
    ["a timer"] = { idle_timer, "armed timers: 1$" },
    ["a repeating timer"] = { function(ctx) ctx:timer(function() end):arm(0, 0.001) end, "armed timers: 1$" },
    ["an unreferenced timer"] = { function(ctx) idle_timer(ctx):unref() end, "armed timers: 1$" },
    ["a watch"] = { function(ctx) ctx:watch(kept.fd, { read = function() end }) end, "watches: 1$" },
    ["a bottom half that never rests"] = { function(ctx)
      local function again() ctx:schedule(again) end
      again()
    end, "scheduled bottom halves: 1$" },
    ["an fd"] = { function() kept.file = assert(io.open "/dev/null") end, "\n\tfd %d+ %(/dev/null%)$" },
    ["a reference in the registry"] = { function()
      kept.ctx = aio.default()
      kept.ctx:on_error(print)
      local registry = debug.getregistry()
      registry[#registry + 1] = kept
      kept.key = #registry
    end, "\n\ta reference in Lua's registry: %d+, a table$" },
    ["something on the default context"] = { function()
      kept.timer = idle_timer(aio.default())
    end, "armed timers: 1$" },
  }
  for name, leak in pairs(leaks) do
    it("finds " .. name, function()
      kept = { fd = drivers.pipe() }
      local message = failure(testing.async(leak[1]))
      assert.match(HERE .. "left behind:\n\t", message)
      for i = 2, #leak do assert.match(leak[i], message) end
      if kept.file then kept.file:close() end
      if kept.timer then kept.timer:close() end
      if kept.ctx then kept.ctx:on_error(nil) end
      if kept.key then table.remove(debug.getregistry(), kept.key) end
      drivers.cleanup()
    end)
  end

  it("finds nothing where there is nothing, closed, ended or collected", function()
    local r, w = drivers.pipe()
    testing.async(function(ctx)
      local timer, done = idle_timer(ctx), aio.event()
      timer:close()
      ctx:timer(print)
      ctx:bh(print)
      assert(ctx:watch(r, { read = print })):close()
      ctx:spawn(function() done:wait() end) -- woken, and ends without waiting any more
      aio.yield()
      done:set()
      local garbage = io.open "/dev/null" -- luacheck: ignore
      aio.context()
      assert(aio.wait_writable(w))
      local g <close> = aio.group()
      g:spawn(aio.sleep, 0.001)
    end)()
    drivers.cleanup()
  end)

  it("takes what a new module keeps for the module's", function()
    local registry = debug.getregistry()
    testing.async(function()
      registry[#registry + 1] = {}
      package.loaded["a new module"] = true
    end)()
    table.remove(registry)
    package.loaded["a new module"] = nil
  end)

  it("is not taken when the test fails anyway", function()
    local err = {}
    assert.equal(err, failure(testing.async(function(ctx)
      ctx:spawn(aio.suspend)
      error(err)
    end)))
  end)
end)

describe("testing.leaks", function()
  it("returns the function's results, nils too, and passes its arguments on", function()
    assert.same({ n = 4, 2, 1, nil, nil }, table.pack(testing.leaks(function(a, b) return b, a, nil, nil end, 1, 2)))
  end)

  it("passes on its error", function()
    local err = {}
    assert.equal(err, select(2, pcall(testing.leaks, error, err)))
  end)

  it("works at top level and in a task, and counts only what is new", function()
    testing.async(function(ctx)
      local _ <close> = idle_timer(ctx)
      local before <const> = ctx:spawn(aio.suspend)
      assert.equal("fine", testing.leaks(function()
        aio.spawn(aio.yield)
        return "fine"
      end))
      local timer
      local message = failure(function() testing.leaks(function() timer = idle_timer(ctx) end) end)
      assert.match(HERE .. "left behind:\n\tarmed timers: 1$", message)
      timer:close()
      before:cancel()
    end)()
    local timer
    local message = failure(function() testing.leaks(function() timer = idle_timer(aio.default()) end) end)
    assert.match("armed timers: 1$", message)
    timer:close()
  end)

  it("finds fds", function()
    local r
    local message = failure(function() testing.leaks(function() r = drivers.pipe() end) end)
    assert.match(("\n\tfd %d %%(pipe:%%[%%d+%%]%%)\n\tfd %%d+ %%(pipe"):format(r), message)
    drivers.cleanup()
  end)
end)

describe("testing.virtual", function()
  it("takes no time for a day", function()
    local clock, start = aio.clock.virtual, aio.now()
    testing.virtual(function(ctx)
      local from, ticks = aio.now(), 0
      local timer <close> = ctx:timer(function() ticks = ticks + 1 end):arm(3600, 3600)
      assert.equal(true, aio.sleep(86400.5))
      assert.near(86400.5, aio.now() - from, 1e-6)
      assert.near(aio.now(), clock:now(), 1e-6)
      assert.equal(24, ticks)
      assert.same({ nil, "timeout" }, { aio.timeout(3600, aio.suspend) })
      timer:close()
    end)()
    assert.is_true(aio.now() - start < 5)
  end)

  it("leaves a clock that does not jump", function()
    for _, fn in ipairs { function() aio.sleep(1) end, error } do
      pcall(testing.virtual(fn))
      local ctx <close> = aio.context { clock = "virtual" }
      local fired
      ctx:timer(function() fired = true end):arm(1)
      ctx:poll(0.001)
      assert.is_nil(fired)
    end
  end)

  it("leaves a clock that jumps, where it did", function()
    local start, slept = aio.now(), 0
    testing.virtual(function()
      testing.virtual(function() aio.sleep(3600) end)()
      slept = slept + 1
      aio.sleep(3600)
      slept = slept + 1
    end)()
    assert.equal(2, slept)
    assert.is_true(aio.now() - start < 5)
    assert.is_false(aio.clock.virtual:autojump(false))
  end)

  it("has a limit of real time, whatever the clock says", function()
    local start = aio.now()
    local message = failure(testing.virtual(function() while true do aio.sleep(3600) end end, 0.03))
    assert.match(HERE .. "not over after 0%.03 s\n", message)
    assert.is_true(aio.now() - start < 5)
    message = failure(testing.virtual(function() aio.wait_readable((drivers.pipe())) end, 0.03))
    assert.match(HERE .. "not over after", message)
    drivers.cleanup()
  end)

  it("finds a deadlock and what was left behind", function()
    assert.match(HERE .. "deadlock", failure(testing.virtual(function() aio.suspend() end, 20)))
    assert.match("armed timers: 1$", failure(testing.virtual(idle_timer)))
  end)

  it("is async on such a context", function()
    testing.async(function() aio.sleep(3600) end, { clock = "virtual" })()
  end)
end)

describe("testing.shuffled", function()
  -- The order in which ten tasks run, and ten bottom halves.
  local function order_with(seed)
    local order = {}
    testing.shuffled(seed, function(ctx, given)
      assert.equal(seed, given)
      for i = 1, 10 do
        ctx:spawn(function() order[#order + 1] = "task " .. i end)
        ctx:schedule(function() order[#order + 1] = "bh " .. i end)
      end
      aio.sleep(0.001)
    end)()
    assert.equal(20, #order)
    return table.concat(order, ", ")
  end

  it("runs in the same order with the same seed, and in others with others", function()
    local orders, n = {}, 0
    for seed = 1, 20 do
      local order = order_with(seed)
      assert.equal(order, order_with(seed))
      if not orders[order] then n = n + 1 end
      orders[order] = true
    end
    assert.equal(20, n)
  end)

  it("names the seed when it fails, and says how to repeat it", function()
    local prefix = "^with seed 7 %(AIOLOOP_SEED=7 repeats it%): "
    assert.match(prefix .. HERE:sub(2) .. "text\n", failure(testing.shuffled(7, function() error "text" end)))
    assert.match(prefix .. HERE:sub(2) .. "left behind", failure(testing.shuffled(7, idle_timer)))
    assert.match(prefix .. "nil$", failure(testing.shuffled(7, function() error(nil) end)))
    local _, plain = pcall(function() assert.equal(1, 2) end)
    local err = failure(testing.shuffled(7, function() assert.equal(1, 2) end))
    assert.equal(debug.getmetatable(plain), debug.getmetatable(err))
    assert.match(prefix .. HERE:sub(2), tostring(err))
  end)

  it("shares the other options: a time limit, a clock", function()
    assert.match("not over after 0.01 s", failure(testing.shuffled(1, function() aio.sleep(60) end, 0.01)), 1, true)
    testing.shuffled(1, function() aio.sleep(3600) end, { clock = "virtual" })()
  end)
end)

describe("testing.each_seed", function()
  it("runs with the seeds from 1, until one fails", function()
    local seeds = {}
    local test = testing.each_seed(5, function(_, seed)
      seeds[#seeds + 1] = seed
      if seed == 4 then error "unlucky" end
    end)
    local message = failure(test)
    assert.same({ 1, 2, 3, 4 }, seeds)
    assert.match("^with seed 4 ", message)
    assert.match("unlucky", message)
    seeds = {}
    testing.each_seed(3, function(_, seed) seeds[#seeds + 1] = seed end)()
    assert.same({ 1, 2, 3 }, seeds)
  end)

  it("finds a bug that hangs on the order", function()
    local message = failure(testing.each_seed(100, function(ctx)
      local value
      ctx:spawn(function() value = "set" end)
      local reader = ctx:spawn(function() return value end)
      assert.equal("set", (aio.await(reader)))
    end))
    assert.match("^with seed %d+ ", tostring(message))
  end)

  it("runs with the seed of AIOLOOP_SEED alone, and refuses what is none", function()
    local source = [[
      local testing = require "aioloop.testing"
      local ok, err = pcall(testing.each_seed(3, function(_, seed) io.write(seed, " ") end))
      io.write(tostring(ok), " ", tostring(err))
    ]]
    assert.equal("1 2 3 true nil", child.run(source).out)
    assert.equal("42 true nil", child.run(source, 20, "AIOLOOP_SEED=42").out)
    assert.equal("false AIOLOOP_SEED is an integer of at least 1, and not 'x'",
      child.run(source, 20, "AIOLOOP_SEED=x").out)
  end)
end)

describe("testing.it_async", function()
  local ran
  testing.it_async("declares a test with busted's it", function(ctx)
    assert.equal(ctx, aio.current())
    aio.sleep(0.001)
    ran = true
  end)

  it("which has run", function() assert.is_true(ran) end)

  it("works without busted: with a global it, or not at all, which it says", function()
    local result = child.run [[
      local testing = require "aioloop.testing"
      print(pcall(testing.it_async, "a name", print))
      it = function(name, fn) print(name, fn()) return "declared" end
      print(testing.it_async("a name", function() print "ran" end))
      assert(not package.loaded.busted)
    ]]
    assert.match("^false\t[^\n]*'it_async' finds no 'it'[^\n]*\nran\na name\ndeclared\n$", result.out)
    assert.equal("", result.err)
  end)

  it("is seen by busted where it was written, and so is its failure", function()
    local path = os.tmpname()
    local file = assert(io.open(path .. "_spec.lua", "w"))
    file:write [[
      local testing = require "aioloop.testing"
      describe("d", function()
        testing.it_async("good", function() end)
        testing.it_async("bad", function() assert.equal(1, 2) end)
        testing.it_async("ugly", function() error "text" end)
      end)
    ]]
    file:close()
    local run = assert(io.popen(("lua5.4 /usr/bin/busted --ignore-lua -o TAP %s_spec.lua 2>&1"):format(path)))
    local output = run:read "a"
    run:close()
    os.remove(path)
    os.remove(path .. "_spec.lua")
    assert.match("ok 1 %- d good\nnot ok 2 %- d bad\n# [^\n]*_spec%.lua @ 4\n", output)
    assert.match("# Failure message: [^\n]*_spec%.lua:4: ", output)
    assert.match("not ok 3 %- d ugly\n# [^\n]*_spec%.lua @ 5\n# Failure message: [^\n]*_spec%.lua:5: text", output)
  end)
end)
