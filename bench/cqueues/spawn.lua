-- SPDX-License-Identifier: MIT
-- Tasks of cqueues: a promise of a function, which it runs in a coroutine of its own, and its result.

local measure = require "measure"
local cqueues = require "cqueues"
local promise = require "cqueues.promise"

local function job(i)
  return i + 1
end

-- The ns that fn takes inside of a loop.
local function within(fn)
  local loop, span = cqueues.new(), nil
  loop:wrap(function()
    local begin = cqueues.monotime()
    fn()
    span = (cqueues.monotime() - begin) * 1e9
  end)
  assert(loop:loop())
  return span
end

local function one_by_one(count)
  local sum = 0
  local span = within(function()
    for i = 1, count do
      sum = sum + promise.new(job, i):get()
    end
  end)
  measure.expect(sum, count * (count + 3) // 2, "sum of the results")
  return span
end

local function batches(count, size)
  local sum = 0
  local span = within(function()
    local promises = {}
    for _ = 1, count do
      for i = 1, size do
        promises[i] = promise.new(job, i)
      end
      for i = 1, size do
        sum = sum + promises[i]:get()
      end
    end
  end)
  measure.expect(sum, count * (size * (size + 3) // 2), "sum of the results")
  return span
end

one_by_one(5000)
measure.report("spawn_1", one_by_one(50000), 50000)
measure.report("spawn_1000", batches(50, 1000), 50000)
