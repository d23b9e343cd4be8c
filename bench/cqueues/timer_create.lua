-- SPDX-License-Identifier: MIT
-- Creating 10^6 sleeping coroutines in cqueues, which has no timer of its own and no way to cancel a sleep.

local measure = require "measure"
local cqueues = require "cqueues"

local n <const> = 1000000
local delays = measure.delays_s(n, 1000000, 2000000)
local loop, started = cqueues.new(), 0
local function asleep(seconds)
  started = started + 1
  cqueues.sleep(seconds)
end

local begin = cqueues.monotime()
for i = 1, n do
  loop:wrap(asleep, delays[i])
end
assert(loop:step(0))
measure.report("timer_create", (cqueues.monotime() - begin) * 1e9, n)
measure.expect(started, n, "started")
measure.expect(loop:count(), n, "asleep")
os.exit(true)
