-- SPDX-License-Identifier: MIT
-- Tasks of aioloop: spawn one and join it; spawn 1,000 and join them all.

local measure = require "measure"
local aio = require "aioloop"

local function job(i)
  return i + 1
end

local function one_by_one(count)
  local sum = 0
  local span = aio.run(function()
    local begin = aio.now_ns()
    for i = 1, count do
      local _, result = aio.spawn(job, i):join()
      sum = sum + result
    end
    return aio.now_ns() - begin
  end)
  measure.expect(sum, count * (count + 3) // 2, "sum of the results")
  return span
end

local function batches(count, size)
  local sum = 0
  local span = aio.run(function()
    local tasks, begin = {}, aio.now_ns()
    for _ = 1, count do
      for i = 1, size do
        tasks[i] = aio.spawn(job, i)
      end
      for i = 1, size do
        local _, result = tasks[i]:join()
        sum = sum + result
      end
    end
    return aio.now_ns() - begin
  end)
  measure.expect(sum, count * (size * (size + 3) // 2), "sum of the results")
  return span
end

one_by_one(10000)
measure.report("spawn_1", one_by_one(300000), 300000)
measure.report("spawn_1000", batches(300, 1000), 300000)
