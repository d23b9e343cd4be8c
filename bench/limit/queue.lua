-- SPDX-License-Identifier: MIT
-- The main chunk and a bare coroutine with a ring between them: who gets resumes who puts when the ring is empty, who
-- yields when it is full.

local measure = require "measure"
local now_ns = require "limit_clock"

local function pass(capacity, count)
  local yield, resume = coroutine.yield, coroutine.resume
  local ring, head, tail, sum, got = {}, 0, 0, 0, 0
  local begin = now_ns()
  local putter = coroutine.create(function()
    for i = 1, count do
      if tail - head == capacity then
        yield()
      end
      ring[tail % capacity] = i
      tail = tail + 1
    end
  end)
  while got < count do
    if head == tail then
      resume(putter)
    end
    sum = sum + ring[head % capacity]
    head = head + 1
    got = got + 1
  end
  local span = now_ns() - begin
  measure.expect(got, count, "items")
  measure.expect(sum, count * (count + 1) // 2, "sum of the items")
  return span
end

pass(1, 10000)
measure.report("queue_1", pass(1, 1000000), 1000000)
measure.report("queue_16", pass(16, 1000000), 1000000)
