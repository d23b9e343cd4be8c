-- SPDX-License-Identifier: MIT
-- A call without a time limit: pcall of a function that returns at once, or yields once, in a bare coroutine.

local measure = require "measure"
local now_ns = require "limit_clock"

local function limited(count, job)
  local resume, sum = coroutine.resume, 0
  local co = coroutine.create(function()
    for i = 1, count do
      local _, result = pcall(job, i)
      sum = sum + result
    end
  end)
  local begin = now_ns()
  while coroutine.status(co) ~= "dead" do
    assert(resume(co))
  end
  local span = now_ns() - begin
  measure.expect(sum, count * (count + 3) // 2, "sum of the results")
  return span
end

local function at_once(i)
  return i + 1
end

local function waits(i)
  coroutine.yield()
  return i + 1
end

limited(10000, at_once)
measure.report("timeout_0", limited(1000000, at_once), 1000000)
measure.report("timeout_1", limited(1000000, waits), 1000000)
