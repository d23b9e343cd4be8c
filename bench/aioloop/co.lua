-- SPDX-License-Identifier: MIT
-- Coroutine switches through the loop of aioloop: aio.yield().

local measure = require "measure"
local aio = require "aioloop"

local function switch(coroutines, times)
  local yield, switched = aio.yield, 0
  for _ = 1, coroutines do
    aio.spawn(function()
      for _ = 1, times do
        yield()
        switched = switched + 1
      end
    end)
  end
  local begin = aio.now_ns()
  aio.default():run()
  local span = aio.now_ns() - begin
  measure.expect(switched, coroutines * times, "switches")
  return span
end

switch(1, 1e4)
measure.report("co_1", switch(1, 2e6), 2e6)
measure.report("co_1000", switch(1000, 2000), 2e6)
