-- SPDX-License-Identifier: MIT
-- Firing 10^5 timers that are due at once, in aioloop.

local measure = require "measure"
local aio = require "aioloop"
local ctx = aio.default()

local n <const> = 100000
local delays = measure.delays_s(n, 1, 20)
local timers, fired = {}, 0
local function fire()
  fired = fired + 1
end

for i = 1, n do
  timers[i] = ctx:timer(fire)
  timers[i]:arm(delays[i])
end
measure.spin_until(aio.now_ns, aio.now_ns() + 25000000)

local begin = aio.now_ns()
ctx:run()
measure.report("timer_fire", aio.now_ns() - begin, n)

measure.expect(fired, n, "fired")
for i = 1, n do
  measure.expect(timers[i]:armed(), false, "armed")
end
