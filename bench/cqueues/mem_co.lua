-- SPDX-License-Identifier: MIT
-- Bytes per coroutine asleep in cqueues.

local measure = require "measure"
local cqueues = require "cqueues"

local n <const> = 100000
local loop, started = cqueues.new(), 0
local function idle()
  started = started + 1
  cqueues.sleep(1e6)
end

local before = measure.rss()
for _ = 1, n do
  loop:wrap(idle)
end
assert(loop:step(0))
measure.report("mem_co", measure.rss() - before, n)
measure.expect(started, n, "started")
measure.expect(loop:count(), n, "asleep")
os.exit(true)
