-- SPDX-License-Identifier: MIT
-- What every benchmark program shares: reporting, checking, numbers drawn from a fixed sequence, resident
-- memory, the file to read.

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

-- `count` integers in [low, high], the same ones in every program, in no order.
function measure.scattered(count, low, high)
  local numbers, x = {}, 12345
  for i = 1, count do
    x = (x * 1103515245 + 12345) & 0x7fffffff
    numbers[i] = low + (x >> 8) % (high - low + 1)
  end
  return numbers
end

measure.delays_ms = measure.scattered

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

-- The file that data.lua has written: its path, the 8 bytes that fill the page at each offset, its size. It is in the
-- page cache afterwards.
function measure.data()
  local path, marks, offset = assert(os.getenv "BENCH_DATA", "BENCH_DATA: not set"), {}, 0
  for page in io.lines(path, 4096) do
    marks[offset] = string.pack("j", offset)
    measure.expect(page, marks[offset]:rep(512), "page")
    offset = offset + 4096
  end
  return path, marks, offset
end

-- A page that was read at the offset says so in its first and last word; asked without tables or new strings, whose
-- cost would be taken for that of the read.
local unpack = string.unpack
function measure.page(data, offset)
  if unpack("j", data) ~= offset or unpack("j", data, -8) ~= offset then
    error("wrong bytes at " .. offset)
  end
end

-- So that the next reads come from the disk; an error where the file system is in memory.
function measure.out_of_cache(path)
  require "limit_cache" (path)
end

return measure
