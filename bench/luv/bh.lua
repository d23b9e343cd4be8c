-- SPDX-License-Identifier: MIT
-- One-shot callbacks in luv: zero timers. The chain never looks at fds (libuv runs it in one pass).

local measure = require "measure"
local uv = require "luv"

local function chain(n)
  local left, timer = n, uv.new_timer()
  local function step()
    left = left - 1
    if left > 0 then
      timer:start(0, 0, step)
    end
  end
  local begin = uv.hrtime()
  timer:start(0, 0, step)
  uv.run()
  local span = uv.hrtime() - begin
  measure.expect(left, 0, "callbacks left")
  return span
end

local function batches(count, size)
  local ran, timers = 0, {}
  local function step()
    ran = ran + 1
  end
  for i = 1, size do
    timers[i] = uv.new_timer()
  end
  local begin = uv.hrtime()
  for _ = 1, count do
    for i = 1, size do
      timers[i]:start(0, 0, step)
    end
    uv.run()
  end
  local span = uv.hrtime() - begin
  measure.expect(ran, count * size, "callbacks")
  return span
end

chain(1e4)
measure.report("bh_chain", chain(1e6), 1e6)
batches(10, 1000)
measure.report("bh_batch", batches(500, 1000), 5e5)
