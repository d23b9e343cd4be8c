-- SPDX-License-Identifier: MIT
-- Files in a host without memory: whatever fails, no fd is left open, nobody is locked out, and the bytes are right.

local aio = require "aioloop"

local path = os.tmpname()

-- A step may fail; the next one is tried all the same.
local function try(...) return pcall(...) end

local kept

local function use(file)
  try(file.write, file, "one\n", 2, "\n3 4 5\n")
  try(file.seek, file, "set")
  try(file.read, file)
  try(file.read, file, "n", "l", "n", "n", "a")
  local ok, buffer = try(aio.buffer, 5000)
  if ok then
    try(file.pread, file, buffer, 0)
    try(file.pwrite, file, buffer, 100)
    try(buffer.set, buffer, "x")
    try(file.write, file, buffer, 1.5)
  end
  try(file.pread, file, 10, 0)
  try(file.sync, file)
  try(file.truncate, file, 5)
  try(file.stat, file)
  try(function() for _ in file:lines() do file:seek() end end)
end

local function all(options)
  local ok, file = try(aio.open, path, "w+", options)
  if not ok or not file then return end
  kept = kept or file
  use(file)
  if file ~= kept then file:close() end
  try(aio.writefile, path, "x")
  try(aio.readfile, path)
end

local files = {}

function files.scenario()
  try(all, { engine = "threads" })
  try(aio.run, all, {})
  try(aio.run, all, { engine = "io_uring", direct = true })
end

function files.usable()
  collectgarbage()
  if kept then
    assert(kept:seek "set" == 0)
    assert(kept:write("text", 1))
    assert(kept:seek "set" == 0)
    assert(kept:read "a":sub(1, 5) == "text1")
    kept:close()
  end
  aio.default():close()
  local file <close> = assert(aio.open(path, "w+"))
  assert(file:write "usable")
  os.remove(path)
  return file:pread(10, 0) == "usable"
end

return files
