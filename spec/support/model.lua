-- SPDX-License-Identifier: MIT
--- A model of tasks, locks, queues, timeouts and cancels: what an operation will end with, before it is tried.
--
-- Way    m:lock(t, ...) -> a wait `w`, whose outcome is there at once, or comes when another operation, a deadline
--        (m:tick) or a cancel decides it; the real operation must end with that outcome, and not before
-- Keep   the rules are those of the manual, written as plainly as they can be. Time is counted in ticks, and no two
--        deadlines are equal. Outcomes: "done" (with w.value), "timeout", "closed", "cancelling", "misuse".

local Model = {}
Model.__index = Model

local model = {}

function model.new()
  return setmetatable({ now = 0, due = {}, armed = 0, unresumed = 0, unborn = 0, live = 0, tasks = {} }, Model)
end

-- ---- deadlines ------------------------------------------------------------------------------------------------

--- The next number of ticks, from k up, at which nothing is due yet.
function Model:free_ticks(k)
  while self.due[self.now + k] do k = k + 1 end
  return k
end

function Model:arm(what, ticks)
  what.deadline = self.now + ticks
  assert(not self.due[what.deadline])
  self.due[what.deadline] = what
  self.armed = self.armed + 1
end

function Model:disarm(what)
  if not what.deadline then return end
  self.due[what.deadline] = nil
  self.armed = self.armed - 1
  what.deadline = nil
end

--- Moves to the next deadline; returns how many ticks that was, or nil when there is none.
function Model:tick()
  if self.armed == 0 then return end
  local ticks = 1
  while not self.due[self.now + ticks] do ticks = ticks + 1 end
  self.now = self.now + ticks
  local what = self.due[self.now]
  self:disarm(what)
  if what.is_scope then
    what.expired = true
    self:deliver(what.task)
  else
    self:end_wait(what, what.kind == "sleep" and "done" or "timeout")
  end
  return ticks
end

-- ---- waits ----------------------------------------------------------------------------------------------------

local function at_once(outcome, value) return { outcome = outcome, value = value, at_once = true } end

local function leave(queue, w)
  for i = 1, #queue do
    if queue[i] == w then return table.remove(queue, i) end
  end
  error "not in the queue"
end

function Model:wait(t, w, queue, ticks)
  w.task, w.queue, t.wait = t, queue, w
  if queue then queue[#queue + 1] = w end
  if ticks then self:arm(w, ticks) end
  return w
end

function Model:decide(w, outcome, value)
  assert(not w.outcome)
  w.outcome, w.value = outcome, value
  self:disarm(w)
  self.unresumed = self.unresumed + 1
end

--- Ends a wait from outside: a deadline, a cancel. It leaves its queue.
function Model:end_wait(w, outcome)
  if w.kind == "group end" then
    w.cut = true
    return self:cancel_all(w.group)
  end
  if w.kind == "condition" then return self:retake(w, outcome) end
  if w.mutex then return end -- a condition's, which has its outcome and waits for the mutex
  if w.queue then leave(w.queue, w) end
  self:decide(w, outcome)
  if w.lock then self:pass_on(w.lock) end
end

--- The waiting operation has returned.
function Model:resume(t, w)
  if w.at_once then return end
  assert(t.wait == w, "resumed in another wait")
  assert(w.outcome, "nothing has ended this wait")
  t.wait = nil
  self.unresumed = self.unresumed - 1
end

-- ---- tasks, cancels, scopes -----------------------------------------------------------------------------------

function Model:spawn(t, group)
  t.scopes, t.joiners, t.holds = {}, {}, {}
  self.unborn, self.live = self.unborn + 1, self.live + 1
  t.index = self.live
  self.tasks[t.index] = t
  if group then
    t.group = group
    table.insert(group.members, t)
    if group.cancelled then self:cancel_quietly(t) end
  end
end

function Model:start(t)
  assert(not t.born and not t.state, "started twice, or after its end")
  t.born = true
  self.unborn = self.unborn - 1
end

--- What a wait of this task would raise: "task", or the outermost expired scope; nil: nothing.
function Model:cancelled(t) -- luacheck: no self
  local found
  for i = #t.scopes, 1, -1 do
    if t.scopes[i].shield then return found end
    if t.scopes[i].expired then found = t.scopes[i] end
  end
  return t.cancelled and "task" or found
end

function Model:deliver(t)
  if t.wait and not t.wait.outcome and self:cancelled(t) then self:end_wait(t.wait, "cancelling") end
end

function Model:cancel_quietly(t)
  t.cancelled = true
  if not t.born then
    self.unborn = self.unborn - 1
    self:finish(t, "cancelled")
  else
    self:deliver(t)
  end
end

--- What task:cancel returns.
function Model:cancel(t, reason)
  if t.state then return false end
  if not t.cancelled then
    t.reason = reason
    self:cancel_quietly(t)
  end
  return true
end

function Model:finish(t, state, result)
  assert(not t.state, "ended twice")
  t.state, t.result = state, result
  local last = self.tasks[self.live]
  self.tasks[t.index], last.index = last, t.index
  self.tasks[self.live] = nil
  self.live = self.live - 1
  t.was_joined = #t.joiners > 0
  for _, w in ipairs(t.joiners) do self:decide(w, "done") end
  t.joiners = {}
  for lock in pairs(t.holds) do self:unlock(t, lock) end
  local g = t.group
  if not g then return end
  leave(g.members, t)
  if state == "failed" then
    table.insert(g.failed, result)
    if not g.cancelled then self:cancel_all(g) end
  end
  if #g.members > 0 then return end
  local waiters = g.waiters
  g.waiters = {}
  for _, w in ipairs(waiters) do self:decide(w, "done") end
end

function Model:join(t, other, ticks)
  if other == t then return at_once "misuse" end
  if self:cancelled(t) then return at_once "cancelling" end
  if other.state then return at_once "done" end
  return self:wait(t, { kind = "join" }, other.joiners, ticks)
end

function Model:sleep(t, ticks)
  if self:cancelled(t) then return at_once "cancelling" end
  return self:wait(t, { kind = "sleep" }, nil, ticks)
end

function Model:open(t, scope, ticks)
  scope.task, scope.is_scope = t, true
  table.insert(t.scopes, scope)
  if ticks == 0 then scope.expired = true elseif ticks then self:arm(scope, ticks) end
end

function Model:shut(t, scope)
  assert(table.remove(t.scopes) == scope)
  self:disarm(scope)
end

-- ---- groups ---------------------------------------------------------------------------------------------------

function Model:group() return { members = {}, failed = {}, waiters = {} } end -- luacheck: no self

-- A group inside of another is cancelled after it: its owner's turn comes when all beside the owner have been told.
function Model:cancel_all(g)
  g.cancelled = true
  if self.cancelling then
    self.cancelling[#self.cancelling + 1] = g
    return
  end
  self.cancelling = { g }
  for _, group in ipairs(self.cancelling) do -- which grows
    for _, t in ipairs { table.unpack(group.members) } do
      if not t.state then self:cancel_quietly(t) end
    end
  end
  self.cancelling = nil
end

function Model:group_wait(t, g, ticks)
  if self:cancelled(t) then return at_once "cancelling" end
  if #g.members == 0 then return at_once "done" end
  return self:wait(t, { kind = "group" }, g.waiters, ticks)
end

function Model:group_end(t, g, failing)
  local cut = #g.members > 0 and self:cancelled(t) ~= nil
  if failing or cut then self:cancel_all(g) end
  local w = #g.members == 0 and at_once "done" or self:wait(t, { kind = "group end", group = g }, g.waiters)
  w.cut = cut
  return w
end

-- ---- locks ----------------------------------------------------------------------------------------------------

function Model:new_lock() return { queue = {}, holds = {}, n = 0 } end -- luacheck: no self

local function compatible(l, mode) return l.n == 0 or mode == "r" and not l.writer end

local function hold(l, t, mode)
  l.holds[t], t.holds[l] = mode, mode
  l.n = l.n + 1
  l.writer = mode == "w"
end

function Model:pass_on(l)
  while l.queue[1] and compatible(l, l.queue[1].mode) do
    local w = table.remove(l.queue, 1)
    hold(l, w.task, w.mode)
    self:decide(w, w.after or "done")
  end
end

function Model:is_free(l, mode) return #l.queue == 0 and compatible(l, mode) end -- luacheck: no self

function Model:lock(t, l, mode, ticks)
  if self:cancelled(t) then return at_once "cancelling" end
  if not self:is_free(l, mode) then
    if l.holds[t] then return at_once "misuse" end
    if ticks == 0 then return at_once "timeout" end
    return self:wait(t, { kind = "lock", mode = mode, lock = l }, l.queue, ticks)
  end
  hold(l, t, mode)
  return at_once "done"
end

--- false: the caller does not hold it.
function Model:unlock(t, l)
  if not l.holds[t] then return false end
  l.holds[t], t.holds[l] = nil, nil
  l.n = l.n - 1
  if l.n == 0 then l.writer = false end
  self:pass_on(l)
  return true
end

function Model:upgrade(t, l, ticks)
  if l.holds[t] ~= "r" then return at_once "misuse" end
  if self:cancelled(t) then return at_once "cancelling" end
  self:unlock(t, l)
  return self:lock(t, l, "w", ticks)
end

function Model:downgrade(t, l)
  if l.holds[t] ~= "w" then return false end
  l.holds[t], t.holds[l], l.writer = "r", "r", false
  self:pass_on(l)
  return true
end

-- ---- conditions -----------------------------------------------------------------------------------------------

function Model:new_condition(mutex) return { queue = {}, mutex = mutex } end -- luacheck: no self

function Model:condition_wait(t, c, ticks)
  if not c.mutex.holds[t] then return at_once "misuse" end
  if self:cancelled(t) then return at_once "cancelling" end
  local w = self:wait(t, { kind = "condition", mutex = c.mutex }, c.queue, ticks)
  self:unlock(t, c.mutex)
  return w
end

function Model:retake(w, outcome)
  leave(w.queue, w)
  self:disarm(w)
  w.kind, w.queue, w.mode, w.after = "retake", w.mutex.queue, "w", outcome
  table.insert(w.queue, w)
  self:pass_on(w.mutex)
end

function Model:signal(c)
  if c.queue[1] then self:retake(c.queue[1], "done") end
end

function Model:broadcast(c)
  while c.queue[1] do self:signal(c) end
end

-- ---- semaphores, events ---------------------------------------------------------------------------------------

function Model:new_semaphore(n) return { queue = {}, permits = n } end -- luacheck: no self

function Model:acquire(t, s, ticks)
  if self:cancelled(t) then return at_once "cancelling" end
  if s.permits > 0 then
    s.permits = s.permits - 1
    return at_once "done"
  end
  if ticks == 0 then return at_once "timeout" end
  return self:wait(t, { kind = "semaphore" }, s.queue, ticks)
end

function Model:release(s)
  local w = table.remove(s.queue, 1)
  if w then self:decide(w, "done") else s.permits = s.permits + 1 end
end

function Model:new_event() return { queue = {} } end -- luacheck: no self

function Model:event_wait(t, e, ticks)
  if self:cancelled(t) then return at_once "cancelling" end
  if e.set then return at_once "done" end
  if ticks == 0 then return at_once "timeout" end
  return self:wait(t, { kind = "event" }, e.queue, ticks)
end

function Model:set(e)
  e.set = true
  for _, w in ipairs(e.queue) do self:decide(w, "done") end
  e.queue = {}
end

-- ---- queues ---------------------------------------------------------------------------------------------------

function Model:new_queue(capacity) -- luacheck: no self
  return { items = {}, getters = {}, putters = {}, capacity = capacity or math.huge }
end

function Model:put(t, q, value, ticks)
  if self:cancelled(t) then return at_once "cancelling" end
  if q.closed then return at_once "closed" end
  local w = table.remove(q.getters, 1)
  if w then
    self:decide(w, "done", value)
  elseif #q.items < q.capacity then
    table.insert(q.items, value)
  elseif ticks == 0 then
    return at_once "timeout"
  else
    return self:wait(t, { kind = "put", item = value }, q.putters, ticks)
  end
  return at_once "done"
end

function Model:get(t, q, ticks)
  if self:cancelled(t) then return at_once "cancelling" end
  local value = table.remove(q.items, 1)
  if value or q.putters[1] then
    local w = table.remove(q.putters, 1) -- there is room for one now
    if w then
      self:decide(w, "done")
      if value then table.insert(q.items, w.item) else value = w.item end
    end
    return at_once("done", value)
  end
  if q.closed then return at_once "closed" end
  if ticks == 0 then return at_once "timeout" end
  return self:wait(t, { kind = "get" }, q.getters, ticks)
end

function Model:close(q)
  q.closed = true
  for _, side in ipairs { "getters", "putters" } do
    for _, w in ipairs(q[side]) do self:decide(w, "closed") end
    q[side] = {}
  end
end

return model
