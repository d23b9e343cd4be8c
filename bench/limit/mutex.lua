-- SPDX-License-Identifier: MIT
-- Bare coroutines that hand over control, which is the lock: a scheduler in Lua resumes one after the other.

local measure = require "measure"
local now_ns = require "limit_clock"

local function hand_over(tasks, times)
  local resume, yield = coroutine.resume, coroutine.yield
  local all, held, last, moved = {}, 0, nil, 0
  for i = 1, tasks do
    all[i] = coroutine.create(function()
      for _ = 1, times do
        held = held + 1
        if last ~= i then
          moved = moved + 1
        end
        last = i
        yield()
      end
    end)
  end
  local begin = now_ns()
  for _ = 1, times do
    for i = 1, tasks do
      resume(all[i])
    end
  end
  local span = now_ns() - begin
  measure.expect(held, tasks * times, "times it was held")
  measure.expect(moved, tasks * times, "times it changed hands")
  return span
end

hand_over(2, 10000)
measure.report("mutex_2", hand_over(2, 500000), 1000000)
measure.report("mutex_100", hand_over(100, 10000), 1000000)
