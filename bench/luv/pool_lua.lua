-- SPDX-License-Identifier: MIT
-- Lua jobs in luv's thread pool, whose callback queues the next: 256 in flight, and 1.

local measure = require "measure"
local uv = require "luv"

local function job(i)
  return i + 1
end

local function jobs(count, depth)
  local begun, ended, sum, work = 0, 0, 0, nil
  local function queue()
    begun = begun + 1
    assert(work:queue(begun))
  end
  work = uv.new_work(job, function(result)
    sum = sum + result
    ended = ended + 1
    if begun < count then
      queue()
    end
  end)
  local begin = uv.hrtime()
  for _ = 1, depth do
    queue()
  end
  uv.run()
  local span = uv.hrtime() - begin
  measure.expect(ended, count, "jobs")
  measure.expect(sum, count * (count + 3) // 2, "sum of the results")
  return span
end

jobs(10000, 256)
measure.report("pool_256", jobs(200000, 256), 200000)
measure.report("pool_1", jobs(20000, 1), 20000)
