--- An event loop for Lua: bottom halves, timers, fds, tasks, GLib.
-- SPDX-License-Identifier: MIT
-- What a script requires: the functions of the C module, and the comfort that a user could have written.
-- Yields: what the C functions yield.
-- @module aioloop

local core = require "aioloop.core"
local load = require "aioloop.load"

local aio = {}
for name, value in pairs(core) do aio[name] = value end

-- These files are read when something of theirs is first asked for: all of them would take longer than all the rest.
local places = {}
for file, names in pairs {
  ["aioloop.combine"] = { "gather", "race", "map", "from_callback" },
  ["aioloop.report"] = { "tasks", "dump", "dump_on" },
  ["aioloop.file"] = { "open", "buffer", "readfile", "writefile" },
  ["aioloop.stream"] = { "connect", "listen", "pipe", "socketpair", "stream" },
  ["aioloop.udp"] = { "udp" },
} do
  for _, name in ipairs(names) do places[name] = file end
end

aio.glib_iterate = nil -- see aioloop.glib
-- see aioloop.file, aioloop.stream, aioloop.udp and aioloop.socket
aio.files, aio.streams, aio.udps, aio.sockets = nil, nil, nil, nil
local call = core.call
aio.call = nil -- aio(fn, ...) is aio.run(fn, ...)

--- The version of this module.
aio.version = "0.1.0"

local function find(_, name)
  local file = places[name]
  if not file then
    if name == "socket" then aio.socket = assert(load "aioloop.socket") end -- a module of its own
    return rawget(aio, name)
  end
  local module, message, errno = load(file)
  if not module then return function() return nil, message, errno end end
  aio[name] = module[name]
  return aio[name]
end

-- Whoever wants to see all that there is.
local function list()
  for name in pairs(places) do local _ = aio[name] end
  return next, aio, nil
end

return setmetatable(aio, { __call = call, __index = find, __pairs = list })
