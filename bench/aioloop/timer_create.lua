-- SPDX-License-Identifier: MIT
-- Creating and arming 10^6 timers, then disarming them, in aioloop.

local measure = require "measure"
local aio = require "aioloop"
local ctx = aio.default()

local n <const> = 1000000
local delays = measure.delays_s(n, 1000000, 2000000)
local timers = table.move(delays, 1, n, 1, {})
local function never()
  error("fired")
end

local begin = aio.now_ns()
for i = 1, n do
  local t = ctx:timer(never)
  t:arm(delays[i])
  timers[i] = t
end
measure.report("timer_create", aio.now_ns() - begin, n)
measure.expect(timers[n]:armed(), true, "armed")

begin = aio.now_ns()
for i = 1, n do
  timers[i]:disarm()
end
measure.report("timer_cancel", aio.now_ns() - begin, n)

for i = 1, n do
  measure.expect(timers[i]:armed(), false, "armed")
end
os.exit(true)
