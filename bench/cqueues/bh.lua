-- SPDX-License-Identifier: MIT
-- One-shot callbacks in cqueues: a wrapped function per callback.

local measure = require "measure"
local cqueues = require "cqueues"
local loop = cqueues.new()

local function now_ns()
  return cqueues.monotime() * 1e9
end

local function chain(n)
  local left = n
  local function step()
    left = left - 1
    if left > 0 then
      loop:wrap(step)
    end
  end
  local begin = now_ns()
  loop:wrap(step)
  assert(loop:loop())
  local span = now_ns() - begin
  measure.expect(left, 0, "callbacks left")
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
      loop:wrap(step)
    end
    assert(loop:loop())
  end
  local span = now_ns() - begin
  measure.expect(ran, count * size, "callbacks")
  return span
end

chain(1e4)
measure.report("bh_chain", chain(3e5), 3e5)
batches(10, 1000)
measure.report("bh_batch", batches(300, 1000), 3e5)
