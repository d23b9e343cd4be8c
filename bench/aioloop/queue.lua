-- SPDX-License-Identifier: MIT
-- A queue of aioloop between two tasks: one puts, one gets, and it holds 1 item, or 16.

local measure = require "measure"
local aio = require "aioloop"

local function pass(capacity, count)
  local queue, sum, got = aio.queue(capacity), 0, 0
  local span = aio.run(function()
    local begin = aio.now_ns()
    local putter = aio.spawn(function()
      for i = 1, count do
        queue:put(i)
      end
      queue:close()
    end)
    for i in queue:iter() do
      sum = sum + i
      got = got + 1
    end
    putter:join()
    return aio.now_ns() - begin
  end)
  measure.expect(got, count, "items")
  measure.expect(sum, count * (count + 1) // 2, "sum of the items")
  return span
end

pass(1, 10000)
measure.report("queue_1", pass(1, 1000000), 1000000)
measure.report("queue_16", pass(16, 1000000), 1000000)
