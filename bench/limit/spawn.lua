-- SPDX-License-Identifier: MIT
-- Bare coroutines: create one, resume it to its end and take its result; the same for 1,000 at a time.

local measure = require "measure"
local now_ns = require "limit_clock"

local function job(i)
  return i + 1
end

local function one_by_one(count)
  local create, resume, sum = coroutine.create, coroutine.resume, 0
  local begin = now_ns()
  for i = 1, count do
    local _, result = resume(create(job), i)
    sum = sum + result
  end
  local span = now_ns() - begin
  measure.expect(sum, count * (count + 3) // 2, "sum of the results")
  return span
end

local function batches(count, size)
  local create, resume, sum, hold = coroutine.create, coroutine.resume, 0, {}
  local begin = now_ns()
  for _ = 1, count do
    for i = 1, size do
      hold[i] = create(job)
    end
    for i = 1, size do
      local _, result = resume(hold[i], i)
      sum = sum + result
    end
  end
  local span = now_ns() - begin
  measure.expect(sum, count * (size * (size + 3) // 2), "sum of the results")
  return span
end

one_by_one(10000)
measure.report("spawn_1", one_by_one(300000), 300000)
measure.report("spawn_1000", batches(300, 1000), 300000)
