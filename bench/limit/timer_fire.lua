-- SPDX-License-Identifier: MIT
-- Firing 10^5 timers that are due at once, from the C heap of limit/timer.c.

local measure = require "measure"
local now_ns = require "limit_clock"
local timer = require "limit_timer"

local n <const> = 100000
local delays = measure.delays_s(n, 1, 20)
local timers, fired = {}, 0
local function fire()
  fired = fired + 1
end

for i = 1, n do
  timers[i] = timer.new(fire)
  timers[i]:arm(delays[i])
end
measure.spin_until(now_ns, now_ns() + 25000000)

local begin = now_ns()
timer.run()
measure.report("timer_fire", now_ns() - begin, n)

measure.expect(fired, n, "fired")
for i = 1, n do
  measure.expect(timers[i]:armed(), false, "armed")
end
