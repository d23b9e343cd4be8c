-- SPDX-License-Identifier: MIT
-- What every benchmark program shares: reporting, checking, delays drawn from a fixed sequence, resident memory.

local measure = {}

-- One `name value` line for the driver; the operation count turns a span of ns into ns per operation.
function measure.report(name, span, operations)
  print(("%s %.1f"):format(name, span / operations))
end

function measure.expect(got, want, what)
  if got ~= want then
    error(("%s: got %s, want %s"):format(what, got, want), 2)
  end
end

-- `count` whole milliseconds in [low, high], the same ones in every program, in no order.
function measure.delays_ms(count, low, high)
  local delays, x = {}, 12345
  for i = 1, count do
    x = (x * 1103515245 + 12345) & 0x7fffffff
    delays[i] = low + (x >> 8) % (high - low + 1)
  end
  return delays
end

function measure.delays_s(count, low, high)
  local delays = measure.delays_ms(count, low, high)
  for i = 1, count do
    delays[i] = delays[i] / 1000
  end
  return delays
end

function measure.spin_until(now_ns, deadline)
  repeat until now_ns() >= deadline
end

-- Resident bytes, after whatever garbage there was is gone.
function measure.rss()
  collectgarbage()
  collectgarbage()
  local file <close> = assert(io.open("/proc/self/statm"))
  local _, pages = file:read("n", "n")
  return pages * 4096
end

return measure
