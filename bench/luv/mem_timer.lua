-- SPDX-License-Identifier: MIT
-- Bytes per active luv timer.

local measure = require "measure"
local uv = require "luv"

local n <const> = 100000
local last
local function never()
  error("fired")
end

local before = measure.rss()
for _ = 1, n do
  last = uv.new_timer()
  last:start(1e9, 0, never)
end
measure.report("mem_timer", measure.rss() - before, n)

measure.expect(last:is_active(), true, "active")
os.exit(true)
