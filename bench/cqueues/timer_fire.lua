-- SPDX-License-Identifier: MIT
-- Waking 10^5 sleeping coroutines that are due at once, in cqueues.

local measure = require "measure"
local cqueues = require "cqueues"

local n <const> = 100000
local delays = measure.delays_s(n, 1000, 1020)
local loop, started, fired = cqueues.new(), 0, 0
local function asleep(seconds)
  started = started + 1
  cqueues.sleep(seconds)
  fired = fired + 1
end

local due = cqueues.monotime() + 1.05
for i = 1, n do
  loop:wrap(asleep, delays[i])
end
assert(loop:step(0))
measure.expect(started, n, "started")
measure.expect(fired, 0, "fired early")
measure.spin_until(cqueues.monotime, due + 0.1)

local begin = cqueues.monotime()
assert(loop:loop())
measure.report("timer_fire", (cqueues.monotime() - begin) * 1e9, n)
measure.expect(fired, n, "fired")
