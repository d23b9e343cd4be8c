-- SPDX-License-Identifier: MIT
-- cqueues has time limits for single waits, none around a function. Its nearest: a promise of the function, which runs
-- in a coroutine of its own, waited for with a time limit. That cannot end the function, and is not asked to here.

local measure = require "measure"
local cqueues = require "cqueues"
local promise = require "cqueues.promise"

local function limited(count, job)
  local loop, sum, span = cqueues.new(), 0, nil
  loop:wrap(function()
    local begin = cqueues.monotime()
    for i = 1, count do
      local done = promise.new(job, i):wait(10)
      sum = sum + done:get()
    end
    span = (cqueues.monotime() - begin) * 1e9
  end)
  assert(loop:loop())
  measure.expect(sum, count * (count + 3) // 2, "sum of the results")
  return span
end

local function at_once(i)
  return i + 1
end

local function waits(i)
  cqueues.sleep(0)
  return i + 1
end

limited(5000, at_once)
measure.report("timeout_0", limited(50000, at_once), 50000)
measure.report("timeout_1", limited(50000, waits), 50000)
