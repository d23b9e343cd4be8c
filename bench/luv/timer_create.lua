-- SPDX-License-Identifier: MIT
-- Creating and starting 10^6 timers, then stopping them, in luv.

local measure = require "measure"
local uv = require "luv"

local n <const> = 1000000
local delays = measure.delays_ms(n, 1000000, 2000000)
local timers = table.move(delays, 1, n, 1, {})
local function never()
  error("fired")
end

local begin = uv.hrtime()
for i = 1, n do
  local t = uv.new_timer()
  t:start(delays[i], 0, never)
  timers[i] = t
end
measure.report("timer_create", uv.hrtime() - begin, n)
measure.expect(timers[n]:is_active(), true, "active")

begin = uv.hrtime()
for i = 1, n do
  timers[i]:stop()
end
measure.report("timer_cancel", uv.hrtime() - begin, n)

for i = 1, n do
  measure.expect(timers[i]:is_active(), false, "active")
end
os.exit(true)
