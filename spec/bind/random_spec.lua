-- SPDX-License-Identifier: MIT
--- Tasks that do anything at random, on a virtual clock: each operation ends as a model has said, and at its time.
--
-- Way    RANDOM_SEED=n RANDOM_OPS=n. Steps of tasks -> model -> the real operation -> compared. When nothing is ready,
--        the clock moves to the model's next deadline; when there is none, somebody is cancelled.
-- Keep   a failure prints the seed and the last operations, and the same seed fails in the same way.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local model = require "spec.support.model"

local TICK <const> = 2.0 ^ -9 -- seconds: exact in binary and in ns
local unpack = table.unpack

-- One run of so many tasks at a time: returns what was done, how often; raises when something was not as it should be.
local function run(seed, budget, crowd)
  local M = model.new()
  local ctx = drivers.context { clock = "virtual" }
  local virtual = aio.clock.virtual
  local counts, trace, ops, last_id, last_item = {}, {}, 0, 0, 0
  local failure
  local raised = setmetatable({}, { __mode = "k" }) -- error value of a cancel -> "task", or the scope
  local told = {}      -- error values of failed tasks: "told", "reported", or what must come
  local leftovers = 0  -- reports of locks that are due
  local ended = {}
  local main = { scopes = {}, holds = {}, id = 0 } -- whoever is no task

  -- ---- chance

  local state = seed * 64 + crowd
  local function random(n) -- 0 .. n - 1
    state = state * 6364136223846793005 + 1442695040888963407
    return (state >> 33) % n
  end
  local function chance(percent) return random(100) < percent end
  local function pick(list) return list[1 + random(#list)] end

  -- ---- failing

  local function fail(message, ...)
    if failure then error(failure, 0) end
    local lines = {}
    for i = math.max(1, ops - 30), ops do lines[#lines + 1] = trace[i % 64] end
    failure = ("%d tasks, RANDOM_SEED=%d RANDOM_OPS=%d, after %d operations, at tick %d: %s\n%s"):format(crowd, seed,
      budget, ops, M.now, message:format(...), table.concat(lines, "\n"))
    error(failure, 0)
  end
  local function expect(ok, ...)
    if not ok then fail(...) end
  end
  local function note(t, name, what)
    ops = ops + 1
    counts[name] = (counts[name] or 0) + 1
    trace[ops % 64] = ("  %d task %d: %s %s"):format(ops, t.id, name, what or "")
  end

  -- ---- objects

  local mutexes, rwlocks, conditions, semaphores, events, queues = {}, {}, {}, {}, {}, {}
  for i = 1, 3 do mutexes[i] = { real = aio.mutex(), m = M:new_lock(), i = i } end
  for i = 1, 2 do rwlocks[i] = { real = aio.rwlock(), m = M:new_lock(), i = i } end
  for i = 1, 3 do
    local mutex = mutexes[math.min(i, 2)]
    conditions[i] = { real = aio.condition(), m = M:new_condition(mutex.m), mutex = mutex, i = i }
  end
  for i, n in ipairs { 1, 3 } do semaphores[i] = { real = aio.semaphore(n), m = M:new_semaphore(n), i = i, n = n } end
  for i = 1, 2 do events[i] = { real = aio.event(), m = M:new_event(), i = i } end
  local function new_queue(i)
    local capacity = ({ nil, 0, 1, 3 })[i]
    queues[i] = { real = aio.queue(capacity), m = M:new_queue(capacity), i = i }
  end
  for i = 1, 4 do new_queue(i) end

  -- What can be seen of an object is what the model says.
  local function check_lock(o) expect(o.real:locked() == (o.m.n > 0), "mutex %d: locked is wrong", o.i) end
  local function check_queue(o)
    expect(#o.real == #o.m.items, "queue %d has %d items, not %d", o.i, #o.real, #o.m.items)
  end
  local function check_event(o) expect(o.real:is_set() == (o.m.set or false), "event %d: is_set is wrong", o.i) end

  -- ---- an operation that may wait

  local function describe(got)
    local parts = {}
    for i = 1, got.n do parts[i] = tostring(got[i]) end
    return table.concat(parts, ", ")
  end

  local function expect_cancel(t, err)
    local target = M:cancelled(t)
    expect(target, "cancelled, but nobody did it")
    expect(aio.is_cancelled(err), "an error in place of a cancel: %s", tostring(err))
    local reason = "timeout"
    if target == "task" then reason = t.reason end
    expect(err.reason == reason, "cancelled for %s, not for %s", tostring(err.reason), tostring(reason))
    raised[err] = target
    error(err, 0)
  end

  -- Calls fn, which must end as the wait `w` says; returns the outcome. A cancel is raised on.
  local function perform(t, w, fn, ...)
    local got = table.pack(pcall(fn, ...))
    if failure then error(failure, 0) end
    local ok, why = pcall(M.resume, M, t, w)
    expect(ok, "task %d, %s: %s, and got %s", t.id, w.kind, why, describe(got))
    local outcome = w.outcome
    local what = w.kind or "operation"
    local met = (w.at_once and "at once " or "later ") .. outcome
    counts[met] = (counts[met] or 0) + 1
    if outcome == "cancelling" then
      expect(not got[1], "task %d, %s: got %s, not a cancel", t.id, what, describe(got))
      expect_cancel(t, got[2])
    elseif outcome == "misuse" then
      expect(not got[1] and type(got[2]) == "string", "misuse is allowed: %s", describe(got))
    elseif outcome == "done" then
      if w.check then return outcome, got end
      local value = w.value == nil and true or w.value
      expect(got[1] and got.n == 2 and got[2] == value, "task %d, %s: got %s, not %s", t.id, what, describe(got),
        tostring(value))
    else
      expect(got[1] and got.n == 3 and got[2] == nil and got[3] == outcome, "task %d, %s: got %s, not %s", t.id, what,
        describe(got), outcome)
    end
    return outcome, got
  end

  -- A time limit: none, to try, or some ticks. Who is shielded does not wait for ever: nobody could help.
  local function shielded(t)
    for _, scope in ipairs(t.scopes) do
      if scope.shield then return true end
    end
    return false
  end
  local function limit(t, never_zero)
    if t == main then return 0, 0 end
    local kind = random(10)
    if kind < 2 and not never_zero then return 0, 0 end
    if kind < 6 and not shielded(t) then return nil, nil end
    local ticks = M:free_ticks(1 + random(12))
    return ticks, ticks * TICK
  end

  -- ---- the steps: what a task may do

  local step, steps, spawn
  local act = {}
  local weights = {}
  local function action(name, weight, fn)
    act[name] = fn
    for _ = 1, weight do weights[#weights + 1] = name end
  end

  local function drop(t, entry)
    for i, other in ipairs(t.have) do
      if other == entry then return table.remove(t.have, i) end
    end
  end
  local function have(t, kind, o)
    for _, entry in ipairs(t.have) do
      if entry.kind == kind and entry.o == o then return entry end
    end
  end
  local function let_go(t, entry)
    drop(t, entry)
    if entry.kind == "permit" then
      M:release(entry.o.m)
      entry.o.real:release()
    else
      expect(M:unlock(t, entry.o.m), "the model does not know this holder")
      entry.o.real:unlock()
      if entry.kind == "mutex" then check_lock(entry.o) end
    end
  end

  -- What waits for a mutex on its way out of a condition cannot be cancelled, nor can the end of a group: whoever waits
  -- so holds no mutex, or there could be a deadlock that nobody can end.
  local function let_go_of_mutexes(t, except)
    for i = #t.have, 1, -1 do
      local entry = t.have[i]
      if entry.kind == "mutex" and entry.o ~= except then let_go(t, entry) end
    end
  end

  action("lock", 14, function(t)
    local o = pick(mutexes)
    local ticks, s = limit(t)
    local w = M:lock(t, o.m, "w", ticks)
    if perform(t, w, o.real.lock, o.real, s) == "done" then table.insert(t.have, { kind = "mutex", o = o }) end
    check_lock(o)
  end)

  action("rwlock", 14, function(t)
    local o, mode = pick(rwlocks), chance(60) and "r" or "w"
    if have(t, "rwlock", o) and M:is_free(o.m, mode) then return end
    local ticks, s = limit(t)
    local w = M:lock(t, o.m, mode, ticks)
    local fn = mode == "r" and o.real.rdlock or o.real.wrlock
    if perform(t, w, fn, o.real, s) == "done" then table.insert(t.have, { kind = "rwlock", o = o }) end
  end)

  action("upgrade", 3, function(t)
    local o = pick(rwlocks)
    local ticks, s = limit(t)
    local entry = have(t, "rwlock", o)
    local w = M:upgrade(t, o.m, ticks)
    if o.m.holds[t] == nil and entry then drop(t, entry) end -- until it has it again
    local outcome = perform(t, w, o.real.upgrade, o.real, s)
    if outcome == "done" and not have(t, "rwlock", o) then table.insert(t.have, entry) end
  end)

  action("downgrade", 3, function(t)
    local o = pick(rwlocks)
    local may = M:downgrade(t, o.m)
    expect(pcall(o.real.downgrade, o.real) == may, "downgrade %s", may and "is refused" or "is allowed")
  end)

  action("acquire", 10, function(t)
    local o = pick(semaphores)
    local ticks, s = limit(t)
    if perform(t, M:acquire(t, o.m, ticks), o.real.acquire, o.real, s) == "done" then
      table.insert(t.have, { kind = "permit", o = o })
    end
  end)

  action("let go", 36, function(t)
    if #t.have > 0 then let_go(t, pick(t.have)) end
  end)

  action("unlock what is another's", 1, function(t)
    local o = pick { pick(mutexes), pick(rwlocks) }
    if o.m.holds[t] then return end
    expect(not pcall(o.real.unlock, o.real), "an unlock is allowed to who does not hold it")
  end)

  action("condition wait", 12, function(t)
    local o = pick(conditions)
    if not have(t, "mutex", o.mutex) and chance(90) then
      local ticks, s = limit(t)
      if o.mutex.m.holds[t] then return end
      local w = M:lock(t, o.mutex.m, "w", ticks)
      if perform(t, w, o.mutex.real.lock, o.mutex.real, s) ~= "done" then return end
      table.insert(t.have, { kind = "mutex", o = o.mutex })
    end
    let_go_of_mutexes(t, o.mutex)
    local ticks, s = limit(t, true)
    perform(t, M:condition_wait(t, o.m, ticks), o.real.wait, o.real, o.mutex.real, s)
    check_lock(o.mutex)
  end)

  action("signal", 10, function()
    local o = pick(conditions)
    M:signal(o.m)
    o.real:signal()
  end)

  action("broadcast", 3, function()
    local o = pick(conditions)
    M:broadcast(o.m)
    o.real:broadcast()
  end)

  action("event wait", 6, function(t)
    local o = pick(events)
    local ticks, s = limit(t)
    perform(t, M:event_wait(t, o.m, ticks), o.real.wait, o.real, s)
  end)

  action("set", 3, function()
    local o = pick(events)
    M:set(o.m)
    o.real:set()
    check_event(o)
  end)

  action("clear", 3, function()
    local o = pick(events)
    o.m.set = false
    o.real:clear()
    check_event(o)
  end)

  action("put", 20, function(t)
    local o = pick(queues)
    last_item = last_item + 1
    local ticks, s = limit(t)
    perform(t, M:put(t, o.m, last_item, ticks), o.real.put, o.real, last_item, s)
    check_queue(o)
  end)

  action("get", 20, function(t)
    local o = pick(queues)
    local ticks, s = limit(t)
    perform(t, M:get(t, o.m, ticks), o.real.get, o.real, s)
    check_queue(o)
  end)

  action("close", 1, function(t)
    local o = pick(queues)
    new_queue(o.i)
    M:close(o.m)
    o.real:close()
    while perform(t, M:get(t, o.m, 0), o.real.get, o.real, 0) == "done" do check_queue(o) end
    perform(t, M:put(t, o.m, 0), o.real.put, o.real, 0)
  end)

  action("sleep", 8, function(t)
    local ticks = M:free_ticks(1 + random(20))
    perform(t, M:sleep(t, ticks), aio.sleep, ticks * TICK)
  end)

  action("yield", 8, function(t)
    local ok, err = pcall(aio.yield)
    if failure then error(failure, 0) end
    expect(ok == not M:cancelled(t), "a yield and a cancel: %s", tostring(err))
    if not ok then expect_cancel(t, err) end
  end)

  -- What a join of `other`, which has ended, returns.
  local function check_join(other, got, raises)
    local first = raises and 1 or 2
    if other.state == "ended" then
      expect(got[1] and (raises or got[2] == true) and got[first + 1] == other.result, "joined: %s", describe(got))
      return
    end
    local told_so = got[1] == not raises and (raises or got[2] == false)
    expect(told_so, "joined a task that %s: %s", other.state, describe(got))
    local err = got[first + 1]
    if other.state == "cancelled" then
      expect(aio.is_cancelled(err) and err.reason == other.reason, "joined a cancelled one: %s", describe(got))
    else
      expect(err == other.result, "joined a failed one: %s", describe(got))
      if told[err] ~= "reported" then told[err] = "told" end
    end
  end

  action("join", 6, function(t)
    local other = pick(M.tasks)
    if #ended > 0 and chance(20) then other = pick(ended) end
    if other == t and chance(90) then return end
    local raises = chance(30)
    local ticks, s = limit(t, true)
    if raises then ticks = nil end
    if raises and shielded(t) then return end
    local w = M:join(t, other, ticks)
    w.check = true
    local outcome, got
    if raises then
      outcome, got = perform(t, w, aio.await, other.handle)
    else
      outcome, got = perform(t, w, other.handle.join, other.handle, s)
    end
    if outcome == "done" then check_join(other, got, raises) end
  end)

  local function cancel(other)
    local reason = chance(50) and "reason " .. random(100) or nil
    local unborn = not other.state and not other.born
    local expected = M:cancel(other, reason)
    expect(other.handle:cancel(reason) == expected, "cancel does not return %s", expected)
    if unborn then
      ended[#ended + 1] = other
      local status = other.handle:status()
      expect(status == "cancelled", "a task that had not begun was cancelled, and is %s", status)
    end
  end

  action("cancel", 2, function(t)
    local other = pick(M.tasks)
    if other and (other ~= t or chance(20)) then cancel(other) end
  end)

  action("spawn", 3, function()
    if M.live < 60 then spawn() end
  end)

  action("collect", 1, function()
    if chance(5) then collectgarbage() else collectgarbage "step" end
  end)

  local function nested(t) return #t.scopes + t.groups >= 3 end

  -- Runs steps inside of `around`, which calls the function that it is given; opened and shut in the model.
  local function within(t, scope, ticks, around, ...)
    local inner, inner_err
    M:open(t, scope, ticks)
    local n = select("#", ...)
    local args = { ... }
    args[n + 1] = function()
      inner, inner_err = pcall(steps, t, 1 + random(5))
      if failure then error(failure, 0) end
      M:shut(t, scope)
      if not inner then error(inner_err, 0) end
      return "through"
    end
    local got = table.pack(pcall(around, unpack(args, 1, n + 1)))
    if failure then error(failure, 0) end
    if inner then
      expect(got[1] and got.n == 2 and got[2] == "through", "a scope that was left returns %s", describe(got))
    elseif raised[inner_err] == scope then
      local timed_out = got[1] and got.n == 3 and got[2] == nil and got[3] == "timeout"
      expect(timed_out, "an expired scope returns %s", describe(got))
    else
      expect(not got[1] and got[2] == inner_err, "a scope changes an error: %s", describe(got))
      error(inner_err, 0)
    end
  end

  action("timeout", 7, function(t)
    if nested(t) then return end
    local ticks = chance(5) and 0 or M:free_ticks(1 + random(15))
    within(t, {}, ticks, aio.timeout, ticks * TICK)
  end)

  action("shield", 3, function(t)
    if not nested(t) then within(t, { shield = true }, nil, aio.shield) end
  end)

  local function group_errors(g, got, first)
    local errors = g.m.failed
    g.m.failed, g.m.cancelled = {}, false
    if not errors[1] then return false end
    expect(not got[1] and got[2] == errors[1], "a group with errors ends with %s", describe(got))
    local list = g.real:errors()
    for i, err in ipairs(errors) do
      expect(list[i] == err, "group:errors is wrong")
      told[err] = told[err] == "reported" and fail "an error of a group was reported" or "told"
    end
    return first or true
  end

  local function in_group(t, g)
    for _ = 1, 1 + random(3) do
      if M.live < 80 then spawn(g) end
    end
    steps(t, random(4))
    if chance(15) then
      M:cancel_all(g.m)
      g.real:cancel()
    end
    if chance(30) then
      local ticks, s = limit(t, true)
      local w = M:group_wait(t, g.m, ticks)
      w.check = true
      local outcome, got = perform(t, w, g.real.wait, g.real, s)
      if outcome == "done" and not group_errors(g, got) then
        expect(got[1] and got[2] == true, "a group's wait returns %s", describe(got))
      end
      if chance(30) then spawn(g) end
    end
  end

  action("group", 4, function(t)
    if nested(t) or M.live > 60 then return end
    local g = { real = aio.group(), m = M:group() }
    local ok, err, w
    t.groups = t.groups + 1
    local got = table.pack(pcall(function()
      local _ <close> = g.real
      ok, err = pcall(in_group, t, g)
      if failure then error(failure, 0) end
      let_go_of_mutexes(t)
      w = M:group_end(t, g.m, not ok)
      if not ok then error(err, 0) end
    end))
    if failure then error(failure, 0) end
    t.groups = t.groups - 1
    local fine, why = pcall(M.resume, M, t, w)
    expect(fine, "the end of a group: %s, and got %s", why, describe(got))
    if group_errors(g, got) then return end
    if ok and w.cut then
      expect(not got[1], "the end of a group that was cancelled returns")
      expect_cancel(t, got[2])
    end
    expect(got[1] == ok and got[2] == err, "a group ends with %s", describe(got))
    if not ok then error(err, 0) end
  end)

  -- ---- tasks

  function step(t)
    local name = pick(weights)
    note(t, name)
    act[name](t)
  end

  function steps(t, n)
    for _ = 1, n do
      if ops >= budget then return end
      local ok, err = pcall(step, t)
      if failure then error(failure, 0) end
      if not ok then
        if not raised[err] then fail("%s", tostring(err)) end
        for _ = 1, chance(25) and random(6) or 0 do -- it does not give up at once
          local _, again = pcall(step, t)
          if failure then error(failure, 0) end
          if again and not raised[again] then fail("%s", tostring(again)) end
        end
        error(err, 0)
      end
    end
  end

  local function body(t)
    M:start(t)
    local ok, err = pcall(steps, t, 5 + random(40))
    if failure then return end
    while #t.have > 0 do
      if t.have[1].kind ~= "permit" and chance(2) then
        table.remove(t.have, 1) -- the end of the task lets go of it
        leftovers = leftovers + 1
      else
        let_go(t, t.have[1])
      end
    end
    ended[#ended + 1] = t
    if not ok then
      if raised[err] ~= "task" then fail("task %d ends with %s", t.id, tostring(err)) end
      M:finish(t, "cancelled")
      error(err, 0)
    end
    if chance(6) then
      err = { id = t.id }
      M:finish(t, "failed", err)
      told[err] = t.group and "group" or t.was_joined and "joined" or "unjoined"
      error(err, 0)
    end
    M:finish(t, "ended", t.id)
    return t.id
  end

  function spawn(g)
    last_id = last_id + 1
    local t = { id = last_id, have = {}, groups = 0 }
    if g then
      t.handle = g.real:spawn(body, t)
    else
      t.handle = ctx:spawn(body, t)
    end
    M:spawn(t, g and g.m)
    if t.state then ended[#ended + 1] = t end -- the group had been cancelled
  end

  ctx:on_error(function(err, where)
    if where == "lock" then
      leftovers = leftovers - 1
      if not err:find "ended while it held a" then pcall(fail, "%s", err) end
    elseif failure then
      return
    elseif told[err] == "unjoined" then
      told[err] = "reported"
    else
      pcall(fail, "reported by %s: %s, which is %s", where, tostring(err), tostring(told[err]))
    end
  end)

  -- ---- the world around them

  local outside = { "signal", "broadcast", "set", "clear", "put", "get", "acquire", "cancel" }
  local function from_outside()
    if ops >= budget or M.live == 0 then return end
    local name = pick(outside)
    note(main, name)
    act[name](main)
    if main.have[1] then let_go(main, main.have[1]) end
  end
  main.have = {}

  local function settled()
    local turns = 0
    while ctx:poll(false) do
      turns = turns + 1
      if turns > 10000 then fail "it does not come to rest" end
    end
    if failure then error(failure, 0) end
    expect(M.unresumed == 0, "%d waits are over, but nobody was resumed", M.unresumed)
    expect(M.unborn == 0, "%d tasks have not begun", M.unborn)
    expect(leftovers == 0, "%d locks left held by tasks that ended, not reported", leftovers)
    expect(ctx:stats().timers_armed == M.armed, "%d timers, not %d", ctx:stats().timers_armed, M.armed)
    for _, t in ipairs(ended) do
      expect(t.handle:status() == t.state, "task %d is %s, not %s", t.id, t.handle:status(), t.state)
      if t.state == "failed" and told[t.result] == "unjoined" then
        fail("task %d failed, and nobody heard of it", t.id)
      end
      if not (t.group and t.state == "failed") then -- or its group would not tell it
        check_join(t, table.pack(pcall(t.handle.join, t.handle)))
        if t.state == "failed" then told[t.result] = nil end
      end
    end
    ended = {}
  end

  while not failure do
    settled()
    if ops < budget then
      while M.live < crowd do spawn() end
    elseif M.live == 0 then
      break
    end
    if chance(30) then from_outside() end
    if chance(30) then
      ctx:schedule(from_outside)
    elseif M.unborn == 0 and M.unresumed == 0 then
      local ticks = M:tick()
      if ticks then
        virtual:advance(ticks * TICK)
      else
        cancel(pick(M.tasks))
      end
    end
  end

  -- ---- nothing is left, and nothing is lost

  if failure then error(failure, 0) end
  for _, o in ipairs(mutexes) do check_lock(o) end
  for _, o in ipairs(semaphores) do
    for _ = 1, o.n do expect(o.real:acquire(0), "semaphore %d has lost a permit", o.i) end
    expect(not o.real:acquire(0), "semaphore %d has won a permit", o.i)
  end
  for _, o in ipairs(rwlocks) do expect(o.real:wrlock(0), "rwlock %d is not free", o.i) end
  for _, o in ipairs(queues) do
    for _, item in ipairs(o.m.items) do expect(o.real:get(0) == item, "queue %d has lost an item", o.i) end
    expect(not o.real:get(0), "queue %d has won an item", o.i)
  end
  expect(ctx:stats().tasks == 0, "tasks are left")
  expect(ctx:stats().timers_armed == 0, "timers are left")
  counts.ticks, counts.tasks, counts.operations = M.now, last_id, ops
  return counts
end

describe("random operations #slow", function()
  after_each(drivers.cleanup)

  local seed = math.tointeger(tonumber(os.getenv "RANDOM_SEED")) or os.time()
  local budget = math.tointeger(tonumber(os.getenv "RANDOM_OPS")) or 7000 -- for each crowd
  local met = {}

  for _, crowd in ipairs { 3, 12, 40 } do
    it(("of %d tasks end as the model says"):format(crowd), function()
      local counts = run(seed, budget, crowd)
      assert.is_true(counts.operations >= budget)
      for what, n in pairs(counts) do met[what] = (met[what] or 0) + n end
    end)
  end

  it("are of all kinds, and end in all ways", function()
    if os.getenv "RANDOM_SHOW" then
      for what, n in pairs(met) do print(what, n) end
    end
    if budget < 5000 then return end
    for _, outcome in ipairs { "done", "timeout", "closed", "cancelling" } do
      assert.is_true((met["later " .. outcome] or 0) > 3, outcome)
    end
    assert.is_true(met["at once cancelling"] > 3)
    assert.is_true(met["at once misuse"] > 3)
  end)
end)
