-- SPDX-License-Identifier: MIT
-- Persistent callbacks in luv: an idle handle (one turn per callback), and 1,000 async handles sent once a batch.
-- Async coalesces, so what is counted are callbacks, not sends.

local measure = require "measure"
local uv = require "luv"

local function chain(n)
  local left, idle = n, uv.new_idle()
  local begin = uv.hrtime()
  idle:start(function()
    left = left - 1
    if left == 0 then
      idle:stop()
    end
  end)
  uv.run()
  local span = uv.hrtime() - begin
  measure.expect(left, 0, "callbacks left")
  return span
end

local function batches(count, size)
  local ran, asyncs = 0, {}
  local function step()
    ran = ran + 1
  end
  for i = 1, size do
    asyncs[i] = uv.new_async(step)
  end
  local begin = uv.hrtime()
  for batch = 1, count do
    for i = 1, size do
      asyncs[i]:send()
    end
    repeat
      uv.run("nowait")
    until ran == batch * size
  end
  return uv.hrtime() - begin
end

chain(1e4)
measure.report("persistent_chain", chain(1e6), 1e6)
measure.report("persistent_batch", batches(500, 1000), 5e5)
