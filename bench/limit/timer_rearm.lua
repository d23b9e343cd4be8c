-- SPDX-License-Identifier: MIT
-- Re-arming one timer, alone and among 10^6 armed ones, in the C heap of limit/timer.c.

local measure = require "measure"
local now_ns = require "limit_clock"
local new = require("limit_timer").new

local live <const>, times <const> = 1000000, 2000000
local delays = measure.delays_s(live, 1000000, 2000000)
local function never()
  error("fired")
end

local function rearm(t)
  local begin = now_ns()
  for i = 1, times do
    t:arm(delays[(i & 1023) + 1])
  end
  local span = now_ns() - begin
  measure.expect(t:armed(), true, "armed")
  t:disarm()
  measure.expect(t:armed(), false, "armed")
  return span
end

measure.report("rearm_alone", rearm(new(never)), times)

local others = {}
for i = 1, live do
  others[i] = new(never)
  others[i]:arm(delays[i])
end
measure.report("rearm_million", rearm(new(never)), times)
measure.expect(others[live]:armed(), true, "the others armed")
os.exit(true)
