--- The coroutine library that `aio.socket.require` gives to libraries: in its coroutines one may wait.
-- SPDX-License-Identifier: MIT
-- Yields: resume, and what wrap returns, do when the coroutine waits.
-- Keep    what create returns is no thread for others: only resume and status of this library know it.
-- @module aioloop.socket

local core = require "aioloop.core"

local M = setmetatable({ wrap = core.wrap }, { __index = coroutine })
local Thread = { __name = "thread" }

--- As coroutine.create; the function may wait.
function M.create(fn)
  local self = setmetatable({ status = "suspended" }, Thread)
  local function ended(...)
    self.ended = true
    return ...
  end
  self.go_on = core.wrap(function(...) return ended(fn(...)) end)
  return self
end

local function finish(self, ok, ...)
  self.status = ok and not self.ended and "suspended" or "dead"
  if not ok and core.is_cancelled((...)) then error((...), 0) end -- the cancel is the resumer's as well
  return ok, ...
end

--- As coroutine.resume; a cancel is raised.
function M.resume(co, ...)
  if getmetatable(co) ~= Thread then return coroutine.resume(co, ...) end
  if co.status ~= "suspended" then return false, ("cannot resume %s coroutine"):format(co.status) end
  co.status = "running"
  return finish(co, pcall(co.go_on, ...))
end

--- As coroutine.status.
function M.status(co)
  if getmetatable(co) ~= Thread then return coroutine.status(co) end
  return co.status
end

return M
