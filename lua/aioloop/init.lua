--- An event loop for Lua: bottom halves, timers, fds, tasks, GLib.
-- SPDX-License-Identifier: MIT
-- What a script requires: the functions of the C module, and the comfort that a user could have written.
-- Yields: what the C functions yield.
-- @module aioloop

local core = require "aioloop.core"

local aio = {}
for name, value in pairs(core) do aio[name] = value end

-- What a file of ours returns; nil, message, errno when there is no descriptor to read it with.
local function load(file)
  local found, module = pcall(require, file)
  if found then return module end
  local null, message, errno = io.open "/dev/null"
  if not null then return nil, (message:gsub("^/dev/null: ", "")), errno end
  null:close()
  error(module, 0)
end

-- These files are read when they are first needed: reading them all would take longer than all the rest.
for file, names in pairs {
  ["aioloop.combine"] = { "gather", "race", "map", "from_callback" },
  ["aioloop.report"] = { "tasks", "dump", "dump_on" },
  ["aioloop.file"] = { "open", "buffer", "readfile", "writefile" },
  ["aioloop.stream"] = { "connect", "listen", "pipe", "socketpair", "stream" },
  ["aioloop.udp"] = { "udp" },
} do
  for _, name in ipairs(names) do
    aio[name] = function(...)
      local module, message, errno = load(file)
      if not module then return nil, message, errno end
      aio[name] = module[name] -- an error of its own says where it was called
      return aio[name](...)
    end
  end
end

aio.glib_iterate = nil -- see aioloop.glib
-- see aioloop.file, aioloop.stream, aioloop.udp and aioloop.socket
aio.files, aio.streams, aio.udps, aio.sockets = nil, nil, nil, nil
local call = core.call
aio.call = nil -- aio(fn, ...) is aio.run(fn, ...)

--- The version of this module.
aio.version = "0.1.0"

-- A module of its own, read when it is first needed.
local function find(_, name)
  if name ~= "socket" then return nil end
  aio.socket = require "aioloop.socket"
  return aio.socket
end

return setmetatable(aio, { __call = call, __index = find })
