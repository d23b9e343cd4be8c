-- SPDX-License-Identifier: MIT
-- A time limit of aioloop that is not reached: aio.timeout around a function that returns at once, or waits once.

local measure = require "measure"
local aio = require "aioloop"

local function limited(count, job)
  local timeout, sum = aio.timeout, 0
  local span = aio.run(function()
    local begin = aio.now_ns()
    for i = 1, count do
      sum = sum + timeout(10, job, i)
    end
    return aio.now_ns() - begin
  end)
  measure.expect(sum, count * (count + 3) // 2, "sum of the results")
  measure.expect(aio.default():stats().timers_armed, 0, "timers left")
  return span
end

local function at_once(i)
  return i + 1
end

local function waits(i)
  aio.yield()
  return i + 1
end

limited(10000, at_once)
measure.report("timeout_0", limited(1000000, at_once), 1000000)
measure.report("timeout_1", limited(1000000, waits), 1000000)
