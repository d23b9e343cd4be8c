--- An event loop for Lua: bottom halves, timers, fds, tasks, GLib.
-- SPDX-License-Identifier: MIT
-- What a script requires: the functions of the C module, and the comfort that a user could have written.
-- Yields: what the C functions yield.
-- @module aioloop

local core = require "aioloop.core"

local aio = {}
for _, part in ipairs { core, (require "aioloop.combine"), (require "aioloop.report") } do
  for name, value in pairs(part) do aio[name] = value end
end
aio.glib_iterate = nil -- see aioloop.glib
local call = core.call
aio.call = nil -- aio(fn, ...) is aio.run(fn, ...)

--- The version of this module.
aio.version = "0.1.0"

return setmetatable(aio, { __call = call })
