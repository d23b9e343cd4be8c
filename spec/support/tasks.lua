-- SPDX-License-Identifier: MIT
--- What specs of tasks share: until they wait, until they have ended, with what, and that nothing is left of them.

local assert = require "luassert"
local aio = require "aioloop"

local tasks = {}

local over = { ended = true, failed = true, cancelled = true }

function tasks.over(task) return over[task:status()] or false end

local function all(list, ok)
  for _, task in ipairs(list) do
    if not ok(task) then return false end
  end
  return true
end

--- For d.wait: whether all of these have ended.
function tasks.all_over(...)
  local list = { ... }
  return function() return all(list, tasks.over) end
end

--- Until each of them waits for something, or has ended.
function tasks.settle(d, ctx, list)
  d.wait(ctx, function()
    return all(list, function(task) return task:status() == "waiting" or tasks.over(task) end)
  end)
end

--- Until they have ended; the first error of one that was not cancelled is raised.
function tasks.finish(d, ctx, list)
  d.wait(ctx, tasks.all_over(table.unpack(list)))
  for _, task in ipairs(list) do
    if task:status() ~= "cancelled" then aio.await(task) end
  end
end

--- Runs a function as a task until it has ended, and returns its results.
function tasks.run(d, ctx, fn, ...)
  local task = ctx:spawn(fn, ...)
  tasks.finish(d, ctx, { task })
  return aio.await(task)
end

--- The same, but returns what join does, packed.
function tasks.join(d, ctx, fn, ...)
  local task = ctx:spawn(fn, ...):keep()
  d.wait(ctx, tasks.all_over(task))
  local got = table.pack(task:join())
  if not got[1] then error(got[2], 0) end
  return got
end

--- Nothing is left to be done.
function tasks.is_quiet(ctx)
  local stats = ctx:stats()
  for _, field in ipairs { "live", "tasks", "timers_armed", "bhs_pending", "watches" } do
    assert.equal(0, stats[field], field)
  end
end

--- What nobody holds is gone after this, also what only finalisers have held.
function tasks.collect()
  for _ = 1, 3 do collectgarbage() end
end

local function call_in_coroutine(fn)
  local co = coroutine.create(function()
    fn()
    coroutine.yield()
  end)
  assert(coroutine.resume(co))
  assert(coroutine.close(co))
end

--- Calls a function in a coroutine that is gone afterwards.
function tasks.call_in_passing(fn)
  call_in_coroutine(fn)
  tasks.collect()
end

--- Turns of the context itself, from within a task or a callback, until done().
function tasks.poll_until(ctx, done)
  local limit = aio.now() + 10
  while not done() do
    ctx:poll(1)
    assert(aio.now() < limit, "what is polled for never happened")
  end
end

--- Turns that do not wait, on several contexts, until done().
function tasks.alternate(d, contexts, done)
  local limit = aio.now() + 30
  while not done() do
    for _, ctx in ipairs(contexts) do d.turn(ctx) end
    assert(aio.now() < limit, "what the scenario waits for never happened")
  end
end

return tasks
