-- SPDX-License-Identifier: MIT
-- Coroutine switches in luv: every coroutine re-arms a zero timer of its own that resumes it.

local measure = require "measure"
local uv = require "luv"

local function switch(coroutines, times)
  local yield, switched = coroutine.yield, 0
  for _ = 1, coroutines do
    local timer, resume = uv.new_timer(), nil
    resume = coroutine.wrap(function()
      for _ = 1, times do
        timer:start(0, 0, resume)
        yield()
        switched = switched + 1
      end
    end)
    timer:start(0, 0, resume)
  end
  local begin = uv.hrtime()
  uv.run()
  local span = uv.hrtime() - begin
  measure.expect(switched, coroutines * times, "switches")
  return span
end

switch(1, 1e4)
measure.report("co_1", switch(1, 1e6), 1e6)
measure.report("co_1000", switch(1000, 500), 5e5)
