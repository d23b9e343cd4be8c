-- SPDX-License-Identifier: MIT
-- Bytes per suspended coroutine of bare Lua, held in a table.

local measure = require "measure"

local n <const> = 100000
local started = 0
local function idle()
  started = started + 1
  coroutine.yield()
end

local before = measure.rss()
local hold = {}
for i = 1, n do
  hold[i] = coroutine.create(idle)
  coroutine.resume(hold[i])
end
measure.report("mem_co", measure.rss() - before, n)

measure.expect(started, n, "started")
measure.expect(coroutine.status(hold[n]), "suspended", "status")
os.exit(true)
