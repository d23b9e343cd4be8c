-- SPDX-License-Identifier: MIT
-- Bytes per coroutine asleep on a luv timer of its own.

local measure = require "measure"
local uv = require "luv"

local n <const> = 100000
local started = 0
local function sleep(ms)
  local timer, co = uv.new_timer(), coroutine.running()
  timer:start(ms, 0, function()
    timer:close()
    coroutine.resume(co)
  end)
  coroutine.yield()
end
local function idle()
  started = started + 1
  sleep(1e9)
end

local before = measure.rss()
for _ = 1, n do
  coroutine.resume(coroutine.create(idle))
end
measure.report("mem_co", measure.rss() - before, n)

measure.expect(started, n, "started")
os.exit(true)
