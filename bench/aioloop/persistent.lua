-- SPDX-License-Identifier: MIT
-- Persistent bottom halves in aioloop: one that schedules itself, and 1,000 scheduled per batch.

local measure = require "measure"
local aio = require "aioloop"
local ctx = aio.default()

local function chain(n)
  local left, bh = n, nil
  bh = ctx:bh(function()
    left = left - 1
    if left > 0 then
      bh:schedule()
    end
  end)
  local begin = aio.now_ns()
  bh:schedule()
  ctx:run()
  local span = aio.now_ns() - begin
  measure.expect(left, 0, "callbacks left")
  return span
end

local function batches(count, size)
  local ran, bhs = 0, {}
  local function step()
    ran = ran + 1
  end
  for i = 1, size do
    bhs[i] = ctx:bh(step)
  end
  local begin = aio.now_ns()
  for _ = 1, count do
    for i = 1, size do
      bhs[i]:schedule()
    end
    ctx:run()
  end
  local span = aio.now_ns() - begin
  measure.expect(ran, count * size, "callbacks")
  return span
end

chain(1e4)
measure.report("persistent_chain", chain(2e6), 2e6)
batches(10, 1000)
measure.report("persistent_batch", batches(2000, 1000), 2e6)
