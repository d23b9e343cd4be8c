-- SPDX-License-Identifier: MIT
-- Persistent bottom halves through the C queue of limit/bh.c.

local measure = require "measure"
local now_ns = require "limit_clock"
local queue = require("limit_bh").queue()

local function chain(n)
  local left, bh = n, nil
  bh = queue:bh(function()
    left = left - 1
    if left > 0 then
      bh:schedule()
    end
  end)
  local begin = now_ns()
  bh:schedule()
  queue:run()
  local span = now_ns() - begin
  measure.expect(left, 0, "callbacks left")
  return span
end

local function batches(count, size)
  local ran, bhs = 0, {}
  local function step()
    ran = ran + 1
  end
  for i = 1, size do
    bhs[i] = queue:bh(step)
  end
  local begin = now_ns()
  for _ = 1, count do
    for i = 1, size do
      bhs[i]:schedule()
    end
    queue:run()
  end
  local span = now_ns() - begin
  measure.expect(ran, count * size, "callbacks")
  return span
end

chain(1e4)
measure.report("persistent_chain", chain(2e6), 2e6)
batches(10, 1000)
measure.report("persistent_batch", batches(2000, 1000), 2e6)
