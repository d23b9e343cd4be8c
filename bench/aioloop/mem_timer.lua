-- SPDX-License-Identifier: MIT
-- Bytes per armed timer of aioloop.

local measure = require "measure"
local aio = require "aioloop"
local ctx = aio.default()

local n <const> = 100000
local last
local function never()
  error("fired")
end

local before = measure.rss()
for _ = 1, n do
  last = ctx:timer(never)
  last:arm(1e6)
end
measure.report("mem_timer", measure.rss() - before, n)

measure.expect(last:armed(), true, "armed")
os.exit(true)
