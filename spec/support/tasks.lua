-- SPDX-License-Identifier: MIT
--- What specs of tasks share: until they wait, until they have ended, and with what.

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

--- Until each of them waits for something, or has ended.
function tasks.settle(d, ctx, list)
  d.wait(ctx, function()
    return all(list, function(task) return task:status() == "waiting" or tasks.over(task) end)
  end)
end

--- Until they have ended; the first error of one that was not cancelled is raised.
function tasks.finish(d, ctx, list)
  d.wait(ctx, function() return all(list, tasks.over) end)
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

--- Turns that do not wait, on several contexts, until done().
function tasks.alternate(d, contexts, done)
  local limit = aio.now() + 30
  while not done() do
    for _, ctx in ipairs(contexts) do d.turn(ctx) end
    assert(aio.now() < limit, "what the scenario waits for never happened")
  end
end

return tasks
