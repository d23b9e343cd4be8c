-- SPDX-License-Identifier: MIT
-- Firing 10^5 timers that are due at once, in luv.

local measure = require "measure"
local uv = require "luv"

local n <const> = 100000
local delays = measure.delays_ms(n, 1, 20)
local timers, fired = {}, 0
local function fire()
  fired = fired + 1
end

for i = 1, n do
  timers[i] = uv.new_timer()
  timers[i]:start(delays[i], 0, fire)
end
measure.spin_until(uv.hrtime, uv.hrtime() + 25e6)

local begin = uv.hrtime()
uv.run()
measure.report("timer_fire", uv.hrtime() - begin, n)

measure.expect(fired, n, "fired")
for i = 1, n do
  measure.expect(timers[i]:is_active(), false, "active")
end
os.exit(true)
