-- SPDX-License-Identifier: MIT
-- Bytes per coroutine asleep in aioloop.

local measure = require "measure"
local aio = require "aioloop"

local n <const> = 100000
local started = 0
local function idle()
  started = started + 1
  aio.sleep(1e6)
end

local before = measure.rss()
for _ = 1, n do
  aio.spawn(idle)
end
while started < n do
  aio.default():poll(false)
end
measure.report("mem_co", measure.rss() - before, n)

measure.expect(started, n, "started")
os.exit(true)
