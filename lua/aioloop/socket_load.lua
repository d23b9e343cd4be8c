--- How libraries written for LuaSocket get aioloop.socket in its place.
-- SPDX-License-Identifier: MIT
-- Way     install: package.loaded. require: package.path -> a chunk of its own, whose `require` is this one again
-- Yields  what the library does when it is loaded.
-- @module aioloop.socket

local M = {}

-- The parts of LuaSocket that have taken the real one in when they were loaded.
local PARTS <const> = { "socket.http", "socket.smtp", "socket.ftp", "socket.tp", "socket.url", "socket.headers" }

function M.new(face)
  local own = { socket = face, ["socket.core"] = face, ["socket.unix"] = face.unix }
  local loaded = {}
  local env

  local function load_file(name, path)
    local chunk, message = loadfile(path, "bt", env)
    if not chunk then error(("error loading module '%s' from file '%s':\n\t%s"):format(name, path, message), 3) end
    local value = chunk(name, path)
    if value ~= nil then loaded[name] = value end
    if loaded[name] == nil then loaded[name] = true end
    return loaded[name], path
  end

  --- Loads a library once more, for itself alone, with this module for its LuaSocket: so are all Lua modules that it
  -- requires, also later. Modules in C, those of aioloop and what Lua has built in are the ones of everybody else. Its
  -- coroutines may wait, as those of `aio.wrap`; globals that it sets are everybody's.
  -- @tparam string name as for Lua's require
  -- @return what Lua's require returns
  local function require_with_face(name)
    if type(name) ~= "string" then
      error(("bad argument #1 to 'require' (string expected, got %s)"):format(type(name)), 2)
    end
    if own[name] ~= nil then return own[name] end
    if loaded[name] ~= nil then return loaded[name] end
    if name == "aioloop" or name:find "^aioloop%." then return require(name) end
    local path = not package.preload[name] and package.searchpath(name, package.path)
    if not path then return require(name) end -- in C, built in, or not there
    return load_file(name, path)
  end

  env = setmetatable({
    require = require_with_face,
    package = setmetatable({ loaded = setmetatable(loaded, { __index = own }) }, { __index = package }),
    coroutine = require "aioloop.socket_coroutine",
  }, { __index = _G, __newindex = _G })
  rawset(env, "_G", env) -- what it sets otherwise goes to the globals of all

  return require_with_face, own
end

--- Puts the face in LuaSocket's place for whatever is required from now on.
function M.install(own)
  for name, module in pairs(own) do package.loaded[name] = module end
  for _, name in ipairs(PARTS) do package.loaded[name] = nil end
  return own.socket
end

return M
