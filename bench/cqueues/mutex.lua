-- SPDX-License-Identifier: MIT
-- cqueues has no mutex. Its nearest: a line of conditions, one for each waiter, since one condition wakes its waiters
-- in no promised order. To unlock is to signal the first.

local measure = require "measure"
local cqueues = require "cqueues"
local condition = require "cqueues.condition"

local function new_mutex()
  local mutex, locked, line, first, last = {}, false, {}, 1, 0
  function mutex.lock(mine) -- mine: the caller's condition
    if not locked then
      locked = true
      return
    end
    last = last + 1
    line[last] = mine
    mine:wait() -- it is the caller's when it returns
  end
  function mutex.unlock()
    local heir = line[first]
    if not heir then
      locked = false
      return
    end
    line[first] = nil
    first = first + 1
    heir:signal()
  end
  return mutex
end

local function hand_over(tasks, times)
  local loop, mutex, held, last, moved = cqueues.new(), new_mutex(), 0, nil, 0
  mutex.lock()
  for i = 1, tasks do
    loop:wrap(function()
      local mine = condition.new()
      for _ = 1, times do
        mutex.lock(mine)
        held = held + 1
        if last ~= i then
          moved = moved + 1
        end
        last = i
        mutex.unlock()
      end
    end)
  end
  loop:step(0)
  local begin = cqueues.monotime()
  mutex.unlock()
  assert(loop:loop())
  local span = (cqueues.monotime() - begin) * 1e9
  measure.expect(held, tasks * times, "times it was held")
  measure.expect(moved, tasks * times, "times it changed hands")
  return span
end

hand_over(2, 5000)
measure.report("mutex_2", hand_over(2, 100000), 200000)
measure.report("mutex_100", hand_over(100, 2000), 200000)
