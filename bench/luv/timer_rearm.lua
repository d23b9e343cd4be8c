-- SPDX-License-Identifier: MIT
-- Re-arming one timer, alone and among 10^6 active ones, in luv.

local measure = require "measure"
local uv = require "luv"

local live <const>, times <const> = 1000000, 1000000
local delays = measure.delays_ms(live, 1000000, 2000000)
local function never()
  error("fired")
end

local function rearm(t)
  local begin = uv.hrtime()
  for i = 1, times do
    t:start(delays[(i & 1023) + 1], 0, never)
  end
  local span = uv.hrtime() - begin
  measure.expect(t:is_active(), true, "active")
  t:stop()
  measure.expect(t:is_active(), false, "active")
  return span
end

measure.report("rearm_alone", rearm(uv.new_timer()), times)

local others = {}
for i = 1, live do
  others[i] = uv.new_timer()
  others[i]:start(delays[i], 0, never)
end
measure.report("rearm_million", rearm(uv.new_timer()), times)
measure.expect(others[live]:is_active(), true, "the others active")
os.exit(true)
