--- GLib's default main context, for scripts without a GLib binding.
-- SPDX-License-Identifier: MIT
-- Yields: never; an attached context's callbacks run inside `iterate`.
-- @module aioloop.glib

local core = require "aioloop.core"

--- Runs one iteration of the default GMainContext.
-- @function iterate
-- @tparam[opt=false] boolean may_block
-- @treturn boolean whether something was dispatched; or nil, message, errno when there is no GLib
return { iterate = core.glib_iterate }
