-- SPDX-License-Identifier: MIT
-- cqueues has no queue. Its nearest: a table with two conditions, not full and not empty.

local measure = require "measure"
local cqueues = require "cqueues"
local condition = require "cqueues.condition"

local function pass(capacity, count)
  local loop, not_full, not_empty = cqueues.new(), condition.new(), condition.new()
  local ring, head, tail, sum, got = {}, 0, 0, 0, 0
  local function put(value)
    while tail - head == capacity do
      not_full:wait()
    end
    ring[tail % capacity] = value
    tail = tail + 1
    not_empty:signal()
  end
  local function get()
    while tail == head do
      not_empty:wait()
    end
    local value = ring[head % capacity]
    head = head + 1
    not_full:signal()
    return value
  end
  loop:wrap(function()
    for i = 1, count do
      put(i)
    end
  end)
  loop:wrap(function()
    for _ = 1, count do
      sum = sum + get()
      got = got + 1
    end
  end)
  local begin = cqueues.monotime()
  assert(loop:loop())
  local span = (cqueues.monotime() - begin) * 1e9
  measure.expect(got, count, "items")
  measure.expect(sum, count * (count + 1) // 2, "sum of the items")
  return span
end

pass(1, 5000)
measure.report("queue_1", pass(1, 100000), 100000)
measure.report("queue_16", pass(16, 200000), 200000)
