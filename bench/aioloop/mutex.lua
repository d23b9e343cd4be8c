-- SPDX-License-Identifier: MIT
-- A mutex of aioloop handed to and fro: whoever has let go of it waits for it again, so every lock is a hand-over.

local measure = require "measure"
local aio = require "aioloop"

local function hand_over(tasks, times)
  local mutex, held, last, moved = aio.mutex(), 0, nil, 0
  local span = aio.run(function()
    mutex:lock()
    local all = {}
    for i = 1, tasks do
      all[i] = aio.spawn(function()
        for _ = 1, times do
          mutex:lock()
          held = held + 1
          if last ~= i then
            moved = moved + 1
          end
          last = i
          mutex:unlock()
        end
      end)
    end
    aio.yield()
    local begin = aio.now_ns()
    mutex:unlock()
    for i = 1, tasks do
      all[i]:join()
    end
    return aio.now_ns() - begin
  end)
  measure.expect(held, tasks * times, "times it was held")
  measure.expect(moved, tasks * times, "times it changed hands")
  return span
end

hand_over(2, 10000)
measure.report("mutex_2", hand_over(2, 500000), 1000000)
measure.report("mutex_100", hand_over(100, 10000), 1000000)
