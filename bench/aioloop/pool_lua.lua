-- SPDX-License-Identifier: MIT
-- Lua jobs in the pool of aioloop: 256 tasks that call aio.work again and again, or 1.

local measure = require "measure"
local aio = require "aioloop"

local function job(i)
  return i + 1
end

local function jobs(count, depth)
  local begun, ended, sum = 0, 0, 0
  local function caller()
    while begun < count do
      begun = begun + 1
      local result = aio.work(job, begun)
      sum = sum + result
      ended = ended + 1
    end
  end
  local span = aio.run(function()
    local tasks, begin = {}, aio.now_ns()
    for i = 1, depth do
      tasks[i] = aio.spawn(caller)
    end
    for i = 1, depth do
      assert(tasks[i]:join())
    end
    return aio.now_ns() - begin
  end)
  measure.expect(ended, count, "jobs")
  measure.expect(sum, count * (count + 3) // 2, "sum of the results")
  return span
end

jobs(10000, 256)
measure.report("pool_256", jobs(200000, 256), 200000)
measure.report("pool_1", jobs(20000, 1), 20000)
