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

--- The version of this module.
aio.version = "0.1.0"

--- Runs the current context until nothing referenced is left, or `stop`.
-- @tparam[opt] function fn run as a task
-- @param ... its arguments
-- @return the results of fn
-- @raise as `context:run`
function aio.run(...) return aio.current():run(...) end

--- Makes the innermost `run` of the current context return.
function aio.stop() aio.current():stop() end

return setmetatable(aio, {
  __call = function(_, ...) return aio.run(...) end,
})
