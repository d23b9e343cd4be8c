-- SPDX-License-Identifier: MIT
-- Coroutine switches in cqueues: sleep(0).

local measure = require "measure"
local cqueues = require "cqueues"

local function now_ns()
  return cqueues.monotime() * 1e9
end

local function switch(coroutines, times)
  local loop, sleep, switched = cqueues.new(), cqueues.sleep, 0
  for _ = 1, coroutines do
    loop:wrap(function()
      for _ = 1, times do
        sleep(0)
        switched = switched + 1
      end
    end)
  end
  local begin = now_ns()
  assert(loop:loop())
  local span = now_ns() - begin
  measure.expect(switched, coroutines * times, "switches")
  return span
end

switch(1, 1e4)
measure.report("co_1", switch(1, 5e5), 5e5)
measure.report("co_1000", switch(1000, 500), 5e5)
