-- SPDX-License-Identifier: MIT
--- A program: many clients of a port at once. All are connected before the first one speaks, and stay until the last
--- one was answered.
--
-- Way   lua5.4 spec/support/crowd.lua PORT N -> each sends its number, and wants it back reversed

local aio = require "aioloop"
local fds = require "fds"

local port, n = math.tointeger(arg[1]), math.tointeger(arg[2])
assert(fds.limit(n + 100) >= n + 100, "the limit of open files")

aio.run(function()
  local numbers = {}
  for i = 1, n do numbers[i] = i end
  local streams = aio.map(numbers, function() return assert(aio.connect("127.0.0.1", port)) end, 100)
  aio.map(streams, function(stream, i)
    assert(stream:write(i, "\n"))
    assert(stream:read() == tostring(i):reverse())
  end)
  for _, stream in ipairs(streams) do stream:close() end
end)
print(n .. " answered")
