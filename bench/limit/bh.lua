-- SPDX-License-Identifier: MIT
-- One-shot bottom halves through the C queue of limit/bh.c.

local measure = require "measure"
local now_ns = require "limit_clock"
local queue = require("limit_bh").queue()

local function chain(n)
  local left = n
  local function step()
    left = left - 1
    if left > 0 then
      queue:schedule(step)
    end
  end
  local begin = now_ns()
  queue:schedule(step)
  local ran = queue:run()
  local span = now_ns() - begin
  measure.expect(left, 0, "callbacks left")
  measure.expect(ran, n, "callbacks")
  return span
end

local function batches(count, size)
  local ran = 0
  local function step()
    ran = ran + 1
  end
  local begin = now_ns()
  for _ = 1, count do
    for _ = 1, size do
      queue:schedule(step)
    end
    queue:run()
  end
  local span = now_ns() - begin
  measure.expect(ran, count * size, "callbacks")
  return span
end

chain(1e4)
measure.report("bh_chain", chain(2e6), 2e6)
batches(10, 1000)
measure.report("bh_batch", batches(2000, 1000), 2e6)
