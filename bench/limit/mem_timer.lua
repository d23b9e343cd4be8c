-- SPDX-License-Identifier: MIT
-- Bytes per armed timer of limit/timer.c: a userdata with a user value, a heap entry, an anchor.

local measure = require "measure"
local new = require("limit_timer").new

local n <const> = 100000
local last
local function never()
  error("fired")
end

local before = measure.rss()
for _ = 1, n do
  last = new(never)
  last:arm(1e6)
end
measure.report("mem_timer", measure.rss() - before, n)

measure.expect(last:armed(), true, "armed")
os.exit(true)
