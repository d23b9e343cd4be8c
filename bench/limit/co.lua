-- SPDX-License-Identifier: MIT
-- Coroutine switches through the C queue of limit/co.c.

local measure = require "measure"
local now_ns = require "limit_clock"
local loop = require "limit_co"

local function switch(coroutines, times)
  local yield, switched, hold = loop.yield, 0, {}
  for i = 1, coroutines do
    hold[i] = coroutine.create(function()
      for _ = 1, times do
        yield()
        switched = switched + 1
      end
    end)
    loop.start(hold[i])
  end
  local begin = now_ns()
  local resumes = loop.run()
  local span = now_ns() - begin
  measure.expect(switched, coroutines * times, "switches")
  measure.expect(resumes, coroutines * (times + 1), "resumes")
  return span
end

switch(1, 1e4)
measure.report("co_1", switch(1, 2e6), 2e6)
measure.report("co_1000", switch(1000, 2000), 2e6)
