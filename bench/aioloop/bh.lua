-- SPDX-License-Identifier: MIT
-- One-shot bottom halves in aioloop: a chain of one, and batches of 1,000.

local measure = require "measure"
local aio = require "aioloop"
local ctx = aio.default()

local function chain(n)
  local left = n
  local function step()
    left = left - 1
    if left > 0 then
      ctx:schedule(step)
    end
  end
  local begin = aio.now_ns()
  ctx:schedule(step)
  ctx:run()
  local span = aio.now_ns() - begin
  measure.expect(left, 0, "callbacks left")
  return span
end

local function batches(count, size)
  local ran = 0
  local function step()
    ran = ran + 1
  end
  local begin = aio.now_ns()
  for _ = 1, count do
    for _ = 1, size do
      ctx:schedule(step)
    end
    ctx:run()
  end
  local span = aio.now_ns() - begin
  measure.expect(ran, count * size, "callbacks")
  return span
end

chain(1e4)
measure.report("bh_chain", chain(2e6), 2e6)
batches(10, 1000)
measure.report("bh_batch", batches(2000, 1000), 2e6)
