-- SPDX-License-Identifier: MIT
-- Reads of 4 KiB with luv, each callback begins the next: 1 in flight, and 32. It has no buffers to read into.
-- file.lua [cold]

local measure = require "measure"
local uv = require "luv"
local path, _, size = measure.data()
local cold <const> = arg[1] == "cold"

local function reads(count, depth)
  local offsets, begun, ended = measure.scattered(count, 0, size // 4096 - 1), 0, 0
  local fd = assert(uv.fs_open(path, "r", 0))
  local function read()
    begun = begun + 1
    local offset = offsets[begun] * 4096
    assert(uv.fs_read(fd, 4096, offset, function(err, data)
      measure.page(assert(data, err), offset)
      ended = ended + 1
      if begun < count then
        read()
      end
    end))
  end
  if cold then measure.out_of_cache(path) end
  local begin = uv.hrtime()
  for _ = 1, depth do
    read()
  end
  uv.run()
  local span = uv.hrtime() - begin
  assert(uv.fs_close(fd))
  measure.expect(ended, count, "reads")
  return span
end

reads(1000, 32)
local few <const>, many <const> = cold and 5000 or 30000, cold and 5000 or 100000
measure.report("file_1", reads(few, 1), few)
measure.report("file_32", reads(many, 32), many)
