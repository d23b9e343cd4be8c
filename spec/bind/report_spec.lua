-- SPDX-License-Identifier: MIT
--- What tasks tell: tracebacks and who spawned whom, the tree of tasks, who waits for what; and that the error of a
--- task arrives once, in one place.

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local testing = require "aioloop.testing"
local it_async = testing.it_async

local FILE = "spec/bind/report_spec%.lua"

local function line() return debug.getinfo(2, "l").currentline end
local function at(n) return FILE .. ":" .. n end

local function times(text, pattern) return select(2, text:gsub(pattern, "")) end

-- Whether the patterns are found in the text one after the other.
local function in_order(text, ...)
  local from = 1
  for _, pattern in ipairs { ... } do
    local _, last = text:find(pattern, from)
    assert.is_truthy(last, ("no '%s' in its place in\n%s"):format(pattern, text))
    from = last + 1
  end
end

-- Lets the others run until they wait, end or fail.
local function settle()
  for _ = 1, 5 do aio.yield() end
end

describe("task:traceback", function()
  it_async("of the running task shows where it is, and where it was spawned", function()
    local here, text
    local function inner()
      here = line() + 1
      return aio.self():traceback() .. ""
    end
    local spawned = line() + 1
    aio.await(aio.spawn(function() text = inner() .. "" end))
    in_order(text, "^stack traceback:", at(here), "'inner'", at(spawned), "\n\tspawned at " .. at(spawned))
    assert.equal(0, times(text, "waiting"))
    assert.equal(0, times(text, "%[C%]: in %?")) -- the loop's own function below it
  end)

  it_async("of a waiting one says in what, for how long, and where", function()
    local here
    local function inner()
      here = line() + 1
      aio.suspend()
      return here
    end
    local spawned = line() + 1
    local task = aio.spawn(function() inner() end)
    aio.sleep(0.02)
    local text = task:traceback()
    in_order(text, "^waiting in aio%.suspend for [%d.]+ s\nstack traceback:", "%[C%]: in function 'aioloop%.", at(here),
      "\n\tspawned at " .. at(spawned))
    local seconds = tonumber(text:match "for ([%d.]+) s")
    assert.is_true(seconds >= 0.01 and seconds < 5, text)
    assert.equal(0, times(text, "%[C%]: in %?"))
    task:wake()
  end)

  it_async("of one that waits in coroutine.yield says so", function()
    local task = aio.spawn(function() coroutine.yield() end)
    settle()
    assert.match("^waiting in coroutine%.yield for ", task:traceback())
    task:cancel()
  end)

  it_async("of one that has not begun shows where it was spawned", function()
    local spawned = line() + 1
    local task = aio.spawn(function() end)
    assert.equal("scheduled", task:status())
    in_order(task:traceback(), "^stack traceback:", "\n\tspawned at " .. at(spawned))
    assert.equal(0, times(task:traceback(), "waiting"))
  end)

  it_async("of a failed one shows the stack as it was, whoever has unwound it since", function()
    local failed
    local function culprit(err)
      failed = line() + 1
      error(err)
    end
    for _, err in ipairs { "text", {}, false } do
      local spawned = line() + 1
      local task = aio.spawn(function() culprit(err) end):keep()
      task:join()
      in_order(task:traceback(), type(err) == "string" and "^[^\n]*: text\nstack traceback:" or "^stack traceback:",
        at(failed), "'culprit'", "\n\tspawned at " .. at(spawned))
    end
  end)

  it_async("of a failed one shows where the error was made, and not who passed it on", function()
    local made
    local function culprit()
      made = line() + 1
      error {}
    end
    local task = aio.spawn(function()
      aio.timeout(5, function() aio.shield(function() culprit() end) end)
    end):keep()
    task:join()
    in_order(task:traceback(), at(made), "'culprit'", "aioloop%.[%w.]*shield", "aioloop%.[%w.]*timeout", "spawned at")
  end)

  it_async("of an ended or a cancelled one is a string too", function()
    local ended, cancelled = aio.spawn(function() end), aio.spawn(aio.suspend)
    settle()
    cancelled:cancel()
    local unborn = aio.spawn(print)
    unborn:cancel()
    settle()
    for status, task in pairs { ended = ended, cancelled = cancelled } do
      assert.equal(status, task:status())
      assert.match("^stack traceback:", task:traceback())
    end
    assert.equal("cancelled", unborn:status())
    assert.match("^stack traceback:", unborn:traceback())
  end)

  it_async("of an adopted coroutine shows its own stack, and no spawner", function(ctx)
    local here
    local self
    local co = coroutine.create(function()
      self = aio.self()
      here = line() + 1
      aio.suspend()
    end)
    ctx:co_schedule(co)
    settle()
    in_order(self:traceback(), "^waiting in aio%.suspend", at(here))
    assert.equal(0, times(self:traceback(), "spawned at"))
    self:wake()
  end)

  it_async("inside aio.wrap shows the generator, and all that called it", function()
    local waits, calls, outer_calls
    local function inner()
      return aio.wrap(function()
        waits = line() + 1
        aio.suspend()
        coroutine.yield(1)
      end)
    end
    local function outer()
      return aio.wrap(function()
        calls = line() + 1
        for v in inner() do coroutine.yield(v) end
      end)
    end
    local task = aio.spawn(function()
      local generate = outer()
      outer_calls = line() + 1
      generate()
    end)
    settle()
    local text = task:traceback()
    in_order(text, "^waiting in aio%.suspend", at(waits), "\n\tcalled through aio%.wrap", at(calls),
      "\n\tcalled through aio%.wrap", at(outer_calls), "\n\tspawned at ")
    assert.equal(2, times(text, "called through aio%.wrap"))
    task:wake()
    task:join()
  end)

  it_async("of an error inside aio.wrap shows the generator", function()
    local failed, calls
    local task = aio.spawn(function()
      local generate = aio.wrap(function()
        aio.sleep(0)
        failed = line() + 1
        error "text"
      end)
      calls = line() + 1
      generate()
    end):keep()
    local _, err = task:join()
    assert.match(at(failed) .. ": text$", err)
    in_order(task:traceback(), at(failed), "called through aio%.wrap", at(calls), "spawned at")
  end)

  it_async("of 100,000 calls on one another is short, and does not disturb them", function()
    local function down(n)
      if n == 0 then return aio.suspend() end
      return (down(n - 1))
    end
    local spawned = line() + 1
    local task = aio.spawn(down, 100000)
    settle()
    local text = task:traceback()
    in_order(text, "^waiting in aio%.suspend", "%.%.%.", "\n\tspawned at " .. at(spawned))
    assert.is_true(#text < 5000)
    task:wake "up"
    assert.equal("up", aio.await(task))
  end)

  it("of a task whose context is closed is no crash", function()
    local ctx = aio.context()
    local task = ctx:spawn(aio.suspend)
    ctx:poll(false)
    ctx:close()
    assert.is_string(task:traceback())
    assert.equal("cancelled", task:info().status)
  end)
end)

describe("the chain of those who spawned it", function()
  it_async("is told from the task outwards, place by place", function()
    local a, b, c, text
    a = line() + 1
    aio.await(aio.spawn(function()
      b = line() + 1
      aio.await(aio.spawn(function()
        c = line() + 1
        aio.await(aio.spawn(function() text = aio.self():traceback() end))
      end))
    end))
    in_order(text, "\n\tspawned at " .. at(c), "\n\tspawned at " .. at(b), "\n\tspawned at " .. at(a))
  end)

  it_async("outlives those who spawned it", function()
    local a, b, last
    a = line() + 1
    aio.spawn(function()
      b = line() + 1
      aio.spawn(function()
        last = aio.spawn(aio.suspend)
      end)
    end)
    settle()
    collectgarbage()
    collectgarbage()
    in_order(last:traceback(), "spawned at " .. at(b + 1), "spawned at " .. at(b), "spawned at " .. at(a))
    last:cancel()
  end)

  it("begins with the place in a callback, in the main chunk, and in a group", function()
    local ctx <close> = aio.context()
    local tasks, lines = {}, {}
    local function note(task) tasks[#tasks + 1] = task end
    lines[1] = line() + 1
    note(ctx:spawn(aio.suspend))
    ctx:schedule(function()
      lines[2] = line() + 1
      note(aio.spawn(aio.suspend))
    end)
    ctx:timer(function()
      lines[3] = line() + 1
      note(aio.spawn(aio.suspend))
    end):arm(0)
    local group = aio.group()
    ctx:schedule(function()
      lines[4] = line() + 1
      note(group:spawn(aio.suspend))
    end)
    while #tasks < 4 do ctx:poll() end
    ctx:poll(false)
    for _, task in ipairs(tasks) do
      local text = task:traceback()
      local place = tonumber(text:match("spawned at " .. FILE .. ":(%d+)"))
      assert.equal(1, times(text, "spawned at"))
      local found
      for i = 1, 4 do
        if lines[i] == place then
          found = true
          lines[i] = nil
        end
      end
      assert.is_true(found, text)
    end
  end)

  it_async("is told of a spawn by a C function as well", function()
    local _, task = pcall(aio.spawn, aio.suspend)
    settle()
    assert.match("\n\tspawned at %[C%]", task:traceback())
    task:cancel()
  end)

  it_async("names every place of a loop that spawns, not the last alone", function()
    local tasks, lines = {}, {}
    for i = 1, 3 do
      lines[i] = line() + (i == 1 and 1 or i == 2 and 2 or 3)
      if i == 1 then tasks[i] = aio.spawn(aio.suspend)
      elseif i == 2 then tasks[i] = aio.spawn(aio.suspend)
      else tasks[i] = aio.spawn(aio.suspend) end
    end
    settle()
    for i = 1, 3 do
      assert.match("\n\tspawned at " .. at(lines[i]), tasks[i]:traceback())
      tasks[i]:cancel()
    end
  end)

  -- A chain of so many tasks, each of which spawns the next and ends; `visit` sees each task from within.
  local function chain(n, visit)
    local over = aio.event()
    local function link(i)
      visit(i)
      if i == n then over:set() else aio.spawn(link, i + 1) end
    end
    aio.spawn(link, 1)
    over:wait()
  end

  it_async("is bounded", function()
    local most, least = 0, math.huge
    chain(200, function(i)
      local n = times(aio.self():traceback(), "\n\tspawned at")
      most = math.max(most, n)
      if i > 1 then least = math.min(least, n) end
    end)
    assert.is_true(most >= 8 and most <= 20, most)
    assert.is_true(least >= 1, least)
  end)

  it("of 100,000 tasks that each spawn the next takes no memory", function()
    local it = child.run [[
      local aio = require "aioloop"
      local function used()
        collectgarbage()
        collectgarbage()
        return collectgarbage "count"
      end
      local before = used()
      aio.run(function()
        local over = aio.event()
        local function link(i)
          if i == 100000 then over:set() else aio.spawn(link, i + 1) end
        end
        aio.spawn(link, 1)
        over:wait()
        io.write(used() - before)
      end)
    ]]
    assert.equal("", it.err)
    assert.is_true(tonumber(it.out) < 3000, it.out) -- of a table that grew between two collections; else it were 20,000
  end)
end)

describe("task:info", function()
  it_async("tells of each state what there is to tell", function()
    local me = aio.self()
    local waiting = aio.spawn(function() aio.suspend() end):name "sleeper"
    local ended = aio.spawn(function() return aio.self():info() end)
    local failed = aio.spawn(error, {}):keep()
    local inside = aio.await(ended)
    failed:join()
    local unborn = aio.spawn(print)
    local my_id = me:info().id
    assert.equal("integer", math.type(my_id))

    local info = waiting:info()
    assert.equal("number", type(info.since))
    assert.is_true(info.since >= 0 and info.since < 5)
    info.since = nil
    assert.same({ id = my_id + 1, parent = my_id, name = "sleeper", status = "waiting", waiting = "aio.suspend" }, info)
    assert.same({ id = my_id + 2, parent = my_id, status = "running" }, inside)
    assert.same({ id = my_id + 4, parent = my_id, status = "scheduled" }, unborn:info())
    for status, task in pairs { ended = ended, failed = failed } do
      info = task:info()
      assert.equal(status, info.status)
      assert.is_nil(info.waiting)
      assert.is_nil(info.since)
    end
    assert.equal(my_id + 3, failed:info().id)
    waiting:cancel()
    settle()
    assert.equal("cancelled", waiting:info().status)
    assert.is_nil(waiting:info().waiting)
  end)

  it("knows no parent of a task that no task spawned, nor of an adopted coroutine", function()
    local ctx <close> = aio.context()
    local main, called, adopted = ctx:spawn(aio.suspend), nil, nil
    ctx:schedule(function() called = aio.spawn(aio.suspend) end)
    ctx:co_schedule(coroutine.create(function()
      adopted = aio.self()
      aio.suspend()
    end))
    while not (called and adopted) do ctx:poll() end
    for _, task in ipairs { main, called, adopted } do
      assert.is_nil(task:info().parent)
      assert.equal("integer", math.type(task:info().id))
    end
    assert.not_equal(called:info().id, main:info().id)
    assert.not_equal(adopted:info().id, main:info().id)
  end)

  it_async("knows the parent when that has ended", function()
    local parent, task
    parent = aio.spawn(function() task = aio.spawn(aio.suspend) end)
    local id = parent:info().id
    parent:join()
    settle()
    parent = nil -- luacheck: ignore
    collectgarbage()
    collectgarbage()
    assert.equal(id, task:info().parent)
    task:cancel()
  end)

  it_async("counts the time since the present wait began", function()
    local task = aio.spawn(function()
      aio.suspend()
      aio.suspend()
    end)
    aio.sleep(0.03)
    local first = task:info().since
    assert.is_true(first >= 0.02, first)
    task:wake()
    settle()
    assert.equal("waiting", task:status())
    assert.is_true(task:info().since < first)
    task:wake()
  end)

  -- Each begins one wait; `what` is how it is called.
  local waits = {
    ["aio.sleep"] = function() aio.sleep(60) end,
    ["aio.suspend"] = function() aio.suspend(60) end,
    ["coroutine.yield"] = function() coroutine.yield() end,
    ["task:join"] = function(s) s.task:join() end,
    ["aio.await"] = function(s) aio.await(s.task) end,
    ["group:wait"] = function(s) s.group:wait() end,
    ["the end of a group"] = function(s)
      local group <close> = aio.group()
      group:spawn(function() s.event:wait() end)
    end,
    ["mutex:lock"] = function(s) s.mutex:lock() end,
    ["mutex:guard"] = function(s) s.mutex:guard() end,
    ["rwlock:rdlock"] = function(s) s.rwlock:rdlock() end,
    ["rwlock:wrlock"] = function(s) s.rwlock:wrlock() end,
    ["condition:wait"] = function(s)
      local own <close> = s.own:guard()
      s.condition:wait(s.own)
      return own
    end,
    ["semaphore:acquire"] = function(s) s.semaphore:acquire() end,
    ["event:wait"] = function(s) s.event:wait() end,
    ["queue:get"] = function(s) s.empty:get() end,
    ["queue:put"] = function(s) s.full:put(2) end,
    ["aio.wait_readable"] = function(s) aio.wait_readable(s.fd) end,
  }
  for what, wait in pairs(waits) do
    it_async("names the wait: " .. what, function()
      local s = {
        group = aio.group(), mutex = aio.mutex(), own = aio.mutex(), rwlock = aio.rwlock(),
        condition = aio.condition(), semaphore = aio.semaphore(0), event = aio.event(),
        empty = aio.queue(), full = aio.queue(1), fd = drivers.pipe(),
      }
      s.task = s.group:spawn(function() s.event:wait() end)
      s.mutex:lock()
      s.rwlock:wrlock()
      s.full:put(1)
      local task = aio.spawn(wait, s)
      settle()
      assert.equal(what, task:info().waiting)
      assert.match("^waiting in " .. what:gsub("%.", "%%.") .. " for ", task:traceback())
      task:cancel() -- before it could get what it waits for
      s.event:set()
      task:join()
      s.rwlock:unlock()
      s.mutex:unlock()
      drivers.cleanup()
    end)
  end
end)

describe("aio.tasks", function()
  it_async("lists those that have not ended, in the order in which they were spawned", function()
    local me, tasks = aio.self(), {}
    for i = 1, 40 do tasks[i] = aio.spawn(aio.suspend) end
    settle()
    assert.same({ me, table.unpack(tasks) }, aio.tasks())
    local want = { me }
    for i, task in ipairs(tasks) do
      if i % 3 == 0 then want[#want + 1] = task else task:wake() end
    end
    settle()
    for i = 1, 30 do -- they take the places of those that have ended
      tasks[i] = aio.spawn(aio.suspend)
      want[#want + 1] = tasks[i]
    end
    assert.same(want, aio.tasks())
    for i, task in ipairs(aio.tasks()) do
      assert.equal(want[i], task)
      if task ~= me then task:cancel() end
    end
    settle()
    assert.same({ me }, aio.tasks())
  end)

  it("is of the current context", function()
    local ctx <close> = aio.context()
    local task = ctx:spawn(function() return aio.tasks() end)
    assert.same({}, aio.tasks())
    assert.same({ task }, ctx:tasks())
    while task:status() ~= "ended" do ctx:poll() end
    assert.same({ task }, (select(2, task:join())))
    assert.same({}, ctx:tasks())
  end)
end)

describe("aio.dump", function()
  local function dump_lines()
    local file = assert(io.tmpfile())
    local n = aio.dump(file)
    file:seek "set"
    local lines = {}
    for text in file:lines() do lines[#lines + 1] = text end
    file:close()
    return lines, n
  end

  it_async("writes the tree: who spawned whom, name, state, what each waits in, since when, where", function()
    local event, places = aio.event(), {}
    aio.self():name "main"
    aio.spawn(function()
      places.grandchild = line() + 1
      aio.spawn(function() event:wait() end):name "grandchild"
      aio.sleep(60)
    end):name "child"
    aio.spawn(aio.suspend)
    settle()
    aio.sleep(0.02)
    aio.spawn(print):name "unborn":unref()
    local lines, n = dump_lines()
    assert.equal(5, n)
    assert.match("^5 tasks on aioloop%.context %(polling%): ", lines[1])
    local text = table.concat(lines, "\n")
    in_order(text,
      "\n  task %d+ 'main': running\n    ", "spawned at",
      "\n      task %d+ 'child': waiting in aio%.sleep for 0%.0[1-9]%d s\n        ", FILE .. ":%d+: in function",
      "\n          task %d+ 'grandchild': waiting in event:wait for %d%.%d%d%d s\n            ", at(places.grandchild),
      "\n            spawned at " .. at(places.grandchild),
      "\n      task %d+ %(no name%): waiting in aio%.suspend for %d",
      "\n      task %d+ 'unborn': scheduled\n        spawned at " .. FILE)
    for _, task in ipairs(aio.tasks()) do
      if task ~= aio.self() then task:cancel() end
    end
  end)

  it_async("puts a task whose parent has ended at the root, and lists ids that info tells", function()
    local task
    aio.await(aio.spawn(function() task = aio.spawn(aio.suspend):name "orphan" end))
    settle()
    local lines = dump_lines()
    local found
    for _, text in ipairs(lines) do
      local indent, id = text:match "^( *)task (%d+) 'orphan'"
      if indent then
        found = true
        assert.equal("  ", indent)
        assert.equal(task:info().id, tonumber(id))
      end
    end
    assert.is_true(found)
    task:cancel()
  end)

  it("of a context without tasks says that there are none", function()
    local lines, n = dump_lines()
    assert.equal(0, n)
    assert.equal(1, #lines)
    assert.match("^0 tasks on aioloop%.context", lines[1])
  end)

  it("writes to stderr, or to anything with a method write, whose error is passed on", function()
    local it = child.run [[
      local aio = require "aioloop"
      aio.run(function() aio.dump() end)
    ]]
    assert.match("^1 tasks on aioloop%.context %(polling%): [^\n]*\n  task 1 %(no name%): running\n", it.err)
    assert.equal("", it.out)
    local err = {}
    local ok, got = pcall(aio.dump, { write = function() error(err) end })
    assert.is_false(ok)
    assert.equal(err, got)
  end)
end)

describe("the label of a failing task", function()
  -- What on_error is told of it.
  local function label(make)
    local where, n = nil, 0
    testing.async(function(ctx)
      ctx:on_error(function(_, w)
        where = w
        n = n + 1
      end)
      make(ctx)
      aio.sleep(0.001)
      collectgarbage()
      settle()
    end)()
    assert.equal(1, n)
    return where
  end

  it("is its name, or else the place of its function", function()
    assert.equal("task 'named'", label(function(ctx) ctx:spawn(error, 1):name "named" end))
    assert.equal("task 'second'", label(function(ctx) ctx:spawn(error, 1):name "first":name "second" end))
    local here = line() + 1
    local function fn() error(1) end
    assert.match("^task '" .. at(here) .. "'$", label(function(ctx) ctx:spawn(fn) end))
    assert.match("^task '" .. at(here) .. "'$", label(function(ctx)
      ctx:spawn(fn)
      collectgarbage()
    end))
  end)

  it("is known of one that named itself, waited, was adopted, or runs a C function", function()
    assert.equal("task 'own'", label(function(ctx)
      ctx:spawn(function()
        aio.self():name "own"
        aio.sleep(0)
        error {}
      end)
    end))
    local here = line() + 2
    assert.match("^task '" .. at(here) .. "'$", label(function(ctx)
      ctx:co_schedule(coroutine.create(function()
        aio.yield()
        error(nil)
      end))
    end))
    assert.match("^task '.+'$", label(function(ctx) ctx:spawn(error, "x") end))
  end)
end)

describe("a deadlock", function()
  -- What run says of it.
  local function report(fn)
    local ctx <close> = aio.context()
    local ok, message = pcall(ctx.run, ctx, fn)
    assert.is_false(ok)
    assert.match("^deadlock: nothing is left that could wake\n", message)
    return message
  end

  it("names every task, the operation and the place", function()
    local places = {}
    local message = report(function()
      aio.self():name "main"
      local mutex, queue = aio.mutex(), aio.queue()
      aio.spawn(function()
        places.consumer = line() + 1
        queue:get()
      end):name "consumer"
      aio.spawn(function()
        mutex:lock()
        places.owner = line() + 1
        aio.suspend()
      end):name "owner"
      local here = line() + 1
      aio.spawn(function()
        places.unnamed = line() + 1
        mutex:lock()
      end)
      places.unnamed_task = here
      places.main = line() + 1
      aio.event():wait()
    end)
    for _, want in ipairs {
      { "main", "event:wait", places.main }, { "consumer", "queue:get", places.consumer },
      { "owner", "aio%.suspend", places.owner }, { at(places.unnamed_task), "mutex:lock", places.unnamed },
    } do
      assert.match(("\n\ttask '%s', which waits in %s at %s"):format(want[1], want[2], at(want[3])), message)
    end
    assert.equal(4, times(message, "\n\ttask "))
  end)

  it("names the place inside a generator", function()
    local here
    local message = report(function()
      local generate = aio.wrap(function()
        here = line() + 1
        aio.suspend()
      end)
      generate()
    end)
    assert.match("which waits in aio%.suspend at " .. at(here), message)
  end)

  it("of very many lists a hundred, and says that there are more", function()
    local message = report(function()
      for _ = 1, 500 do aio.spawn(aio.suspend) end
      aio.suspend()
    end)
    assert.equal(100, times(message, "\n\ttask "))
    assert.match("\n\t%.%.%.$", message)
  end)

  it("outside of tasks names the operation", function()
    local it = child.run [[
      local aio = require "aioloop"
      for _, wait in ipairs { aio.suspend, function() aio.queue():get() end, function() aio.event():wait() end } do
        print(select(2, pcall(wait)))
      end
    ]]
    assert.equal("", it.err)
    in_order(it.out, "deadlock: aio%.suspend waits", "deadlock: queue:get waits", "deadlock: event:wait waits")
  end)
end)

-- ---- errors --------------------------------------------------------------------------------------------------

local function identical(want)
  return function(got) return rawequal(want, got) end
end

local function matching(pattern)
  return function(got) return type(got) == "string" and got:find(pattern) ~= nil end
end

local spiteful = io.tmpfile()
spiteful:close()
debug.setmetatable(spiteful, { __tostring = function() error "tostring" end, __name = 7, __index = error })

local function thrown(value)
  return { function() error(value) end, identical(value) }
end

-- What fails, and whether what arrived is it.
local failures = {
  ["nil"] = thrown(nil),
  ["false"] = thrown(false),
  ["a table"] = thrown {},
  ["a userdata whose __tostring throws"] = thrown(spiteful),
  ["a string"] = { function() error("text", 0) end, matching "^text" },
  ["a C stack overflow"] = { function()
    local function deep(s) return (s:gsub(".", deep)) end
    deep "x"
  end, matching "C stack overflow" },
  ["an error in an error handler"] = { function()
    local function handler(e) error(e) end
    local _, err = xpcall(error, handler, "x")
    error(err, 0)
  end, matching "^error in error handling" },
  ["an error of a <close> variable in place of another"] = { function()
    local err <const> = spiteful
    local _ <close> = setmetatable({}, { __close = function() error(err) end })
    error "first"
  end, identical(spiteful) },
}

-- Where it ought to arrive: makes the task, and hands what arrives to `arrive` until it is all over. Each runs in a
-- task.
local ways = {
  ["joined"] = function(_, fail, arrive)
    local ok, err = aio.spawn(fail):join()
    assert.is_false(ok)
    arrive(err)
  end,
  ["joined later, since it was kept"] = function(_, fail, arrive)
    local task = aio.spawn(fail):keep()
    settle()
    assert.equal("failed", task:status())
    local ok, err = task:join()
    assert.is_false(ok)
    arrive(err)
  end,
  ["awaited"] = function(_, fail, arrive)
    local ok, err = pcall(aio.await, aio.spawn(fail))
    assert.is_false(ok)
    arrive(err)
  end,
  ["in a group that is waited for"] = function(_, fail, arrive)
    local group = aio.group()
    group:spawn(fail)
    local ok, err = pcall(group.wait, group)
    assert.is_false(ok)
    arrive(err)
    assert.equal(1, group:errors().n)
    assert.is_true(rawequal(err, group:errors()[1]))
    assert.is_true(group:wait()) -- it has been told
  end,
  ["in a group at whose end it is"] = function(_, fail, arrive)
    local ok, err = pcall(function()
      local group <close> = aio.group()
      group:spawn(fail)
    end)
    assert.is_false(ok)
    arrive(err)
  end,
  ["in the function of a nested run"] = function(ctx, fail, arrive)
    local ok, err = pcall(ctx.run, ctx, fail)
    assert.is_false(ok)
    arrive(err)
  end,
  ["in one of gather's"] = function(_, fail, arrive)
    local ok, err = pcall(aio.gather, fail, aio.suspend)
    assert.is_false(ok)
    arrive(err)
  end,
}

-- Where it ought to be reported, since nobody is there to be told. Each runs in a task.
local reports = {
  ["not joined"] = function(_, fail) aio.spawn(fail) end,
  ["not joined, and not referenced"] = function(_, fail) aio.spawn(fail):unref() end,
  ["kept, but its handle is lost"] = function(_, fail) aio.spawn(fail):keep() end,
  ["kept, but its handle is lost before it fails"] = function(_, fail)
    aio.spawn(function()
      aio.sleep(0.005)
      fail()
    end):keep()
    settle()
    collectgarbage()
    collectgarbage()
  end,
  ["in a group that is lost"] = function(_, fail) aio.group():spawn(fail) end,
  ["adopted"] = function(ctx, fail) ctx:co_schedule(coroutine.create(fail)) end,
  ["joined by one that gave up"] = function(_, fail)
    local task = aio.spawn(function()
      aio.sleep(0.005)
      fail()
    end)
    assert.same({ nil, "timeout" }, { task:join(0.0001) })
  end,
}

local function pass()
  aio.sleep(0.01)
  for _ = 1, 3 do
    collectgarbage()
    settle()
  end
end

describe("an error of a task", function()
  for what, failure in pairs(failures) do
    local fail, is_it = failure[1], failure[2]

    for way, make in pairs(ways) do
      it_async(("that is %s arrives there, once, and nowhere else: %s"):format(way, what), function(ctx)
        local arrived, told = {}, 0
        ctx:on_error(function() told = told + 1 end)
        make(ctx, fail, function(err) arrived[#arrived + 1] = { err } end)
        pass()
        assert.equal(1, #arrived)
        assert.is_true(is_it(arrived[1][1]))
        assert.equal(0, told)
        assert.same({}, ctx:stats().errors)
      end)
    end

    for way, make in pairs(reports) do
      it_async(("that is %s goes to on_error, once: %s"):format(way, what), function(ctx)
        local told = {}
        ctx:on_error(function(...) told[#told + 1] = table.pack(...) end)
        make(ctx, fail)
        pass()
        assert.equal(1, #told)
        assert.equal(2, told[1].n)
        assert.is_true(is_it(told[1][1]))
        assert.match("^task '", told[1][2])
        assert.same({}, ctx:stats().errors)
      end)

      it(("that is %s is raised by run, once: %s"):format(way, what), function()
        local ctx <close> = aio.context()
        local n = 0
        local function run(...)
          local ok, err = pcall(ctx.run, ctx, ...)
          if ok then return end
          n = n + 1
          assert.is_true(is_it(err))
        end
        run(function()
          make(ctx, fail)
          pass()
        end)
        for _ = 1, 3 do
          collectgarbage()
          run()
        end
        assert.equal(1, n)
      end)
    end
  end

  it_async("that was reported can still be joined, and is not told again for that", function(ctx)
    local told, err = 0, {}
    ctx:on_error(function() told = told + 1 end)
    local task = aio.spawn(error, err)
    settle()
    assert.equal(1, told)
    for _ = 1, 2 do assert.equal(err, (select(2, task:join()))) end
    pass()
    assert.equal(1, told)
  end)

  it_async("that is an overflow of Lua's stack arrives where it is joined, and nowhere else", function(ctx)
    local told = 0
    ctx:on_error(function() told = told + 1 end)
    local function deep() return 1 + deep() end
    local ok, err = aio.spawn(deep):join()
    assert.is_false(ok)
    assert.match("stack overflow", err)
    pass()
    assert.equal(0, told)
  end, 30) -- 200,000 calls, which a traceback counts more than once

  it_async("one of three in a group: the first is raised, group:errors has all, nobody else hears", function(ctx)
    local told, errs, begun = 0, { {}, {}, {} }, aio.event()
    ctx:on_error(function() told = told + 1 end)
    local group = aio.group()
    for i = 1, 3 do
      group:spawn(function()
        local _ <close> = setmetatable({}, { __close = function() error(errs[i]) end })
        if i == 1 then begun:wait() end
        if i == 1 then error "replaced" end
        aio.suspend()
      end)
      settle()
    end
    begun:set()
    local ok, err = pcall(group.wait, group)
    assert.is_false(ok)
    assert.equal(errs[1], err)
    assert.equal(3, group:errors().n)
    for i = 1, 3 do assert.equal(errs[i], group:errors()[i]) end
    pass()
    assert.equal(0, told)
  end)
end)

describe("the report of a deadlock", function()
  it("survives a finaliser that closes the context", function()
    local it = child.run [[
      local aio = require "aioloop"
      local ctx = aio.context()
      for _ = 1, 50 do ctx:spawn(function() aio.suspend() end) end
      collectgarbage()
      collectgarbage("incremental", 1, 1000, 30)
      local now
      local function arm()
        setmetatable({}, { __gc = function() if now then ctx:close() else arm() end end })
      end
      for _ = 1, 2000 do local _ = {} end
      ctx:schedule(function()
        now = true
        arm()
      end)
      local ok, err = pcall(ctx.run, ctx)
      assert(not ok and err:find "deadlock", err)
      assert(not err:find "waits in nothing", err)
      io.write "fine"
    ]]
    assert.same({ 0, "fine", "" }, { it.code, it.out, it.err })
  end)
end)
