-- SPDX-License-Identifier: MIT
-- Reads of 4 KiB through aioloop, by 1 task and by 32, into strings and into a buffer per task:
-- file.lua [engine [direct|cold]]

local measure = require "measure"
local aio = require "aioloop"
local path, marks, size = measure.data()
local engine, direct, cold = arg[1] ~= "auto" and arg[1], arg[2] == "direct", arg[2] == "cold"

local function read_string(file, offset)
  measure.page(assert(file:pread(4096, offset)), offset)
end

local function read_buffer(file, offset, buffer)
  measure.expect(file:pread(buffer, offset), 4096, "bytes read")
  local mark = marks[offset]
  if buffer:tostring(1, 8) ~= mark or buffer:tostring(4089, 4096) ~= mark then
    error("wrong bytes at " .. offset)
  end
end

local function open()
  local file = assert(aio.open(path, "r", {engine = engine or nil, direct = direct}))
  if engine then
    measure.expect(file:engine(), engine, "engine")
  end
  return file
end

local function reads(count, depth, read)
  local offsets, begun, ended = measure.scattered(count, 0, size // 4096 - 1), 0, 0
  local span = aio.run(function()
    local file, tasks = open(), {}
    local function reader()
      local buffer = aio.buffer(4096)
      while begun < count do
        begun = begun + 1
        read(file, offsets[begun] * 4096, buffer)
        ended = ended + 1
      end
    end
    if cold then measure.out_of_cache(path) end
    local begin = aio.now_ns()
    for i = 1, depth do
      tasks[i] = aio.spawn(reader)
    end
    for i = 1, depth do
      assert(tasks[i]:join())
    end
    local taken = aio.now_ns() - begin
    file:close()
    return taken
  end)
  measure.expect(ended, count, "reads")
  return span
end

local count = (direct or cold) and 5000 or 100000
reads(1000, 32, read_string)
if not direct then
  measure.report("file_1", reads(count, 1, read_string), count)
  measure.report("file_buffer_1", reads(count, 1, read_buffer), count)
end
measure.report("file_32", reads(count, 32, read_string), count)
measure.report("file_buffer_32", reads(count, 32, read_buffer), count)
