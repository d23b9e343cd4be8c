--- Files: what needs no more than the C functions.
-- SPDX-License-Identifier: MIT
-- Yields: readfile, writefile and the iterator of file:lines do.
-- @module aioloop.file

local core = require "aioloop.core"

local M, methods = core.files()

local function bad_argument(n, name, expected, value)
  local got = core.type(value) or type(value)
  error(("bad argument #%d to '%s' (%s expected, got %s)"):format(n, name, expected, got), 3)
end

--- Iterates over the lines of a file, from its position on, as io.lines does; an error is raised.
-- @function file:lines
-- @tparam[opt="l"] string|integer ... formats, as for `read`
-- @treturn function iterator
function methods:lines(...)
  if core.type(self) ~= "file" then bad_argument(1, "lines", "aioloop.file", self) end
  local read, formats = self.read, table.pack(...)
  local function check(...)
    local value, message, errno = ...
    if value == nil and (message == "closed" or math.type(errno) == "integer") then error(message, 3) end
    return ...
  end
  return function() return check(read(self, table.unpack(formats, 1, formats.n))) end
end

--- Reads a whole file.
-- @function readfile
-- @tparam string path
-- @treturn string or nil, message, errno
function M.readfile(path)
  local file <close>, message, errno = M.open(path)
  if not file then return nil, message, errno end
  return file:read "a"
end

--- Writes a whole file, in place of what was there.
-- @function writefile
-- @tparam string path
-- @tparam string|number|buffer data
-- @treturn boolean true; or nil, message, errno
function M.writefile(path, data)
  local kind = core.type(data) or type(data)
  if kind ~= "string" and kind ~= "number" and kind ~= "buffer" then
    bad_argument(2, "writefile", "string, number or buffer", data)
  end
  local file <close>, message, errno = M.open(path, "w")
  if not file then return nil, message, errno end
  local written
  written, message, errno = file:write(data)
  if not written then return nil, message, errno end
  return true
end

return M
