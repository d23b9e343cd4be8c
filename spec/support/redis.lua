-- SPDX-License-Identifier: MIT
--- A Redis server of the spec's own, on a path and a port that are its alone, with nothing on disk.
--
-- Way   redis.server() -> { path, port, library }, which <close> ends
-- Keep  where there is none, or no client library, redis.missing says what.

local aio = require "aioloop"

local redis = {}

-- Debian has the library for other versions of Lua; it is the same file.
local FOLDERS <const> = ";/usr/share/lua/5.3/?.lua;/usr/share/lua/5.1/?.lua"

local function search(name) return package.searchpath(name, package.path .. FOLDERS) end

if not os.execute "command -v redis-server >/dev/null" then
  redis.missing = "there is no redis-server"
elseif not search "redis" then
  redis.missing = "there is no lua-redis"
end

--- The client library, on a LuaSocket given by a loader as socket.require is one.
function redis.library(require)
  local path = package.path
  package.path = path .. FOLDERS
  local ok, library = pcall(require, "redis")
  package.path = path
  if not ok then error(library, 0) end
  return library
end

local function free_port()
  local server <close> = assert(aio.listen("127.0.0.1", 0))
  return (select(2, server:getsockname()))
end

local Server = {}
Server.__index = Server

function Server:close()
  os.execute("kill " .. self.pid)
  os.execute("rm -rf " .. self.folder)
end
Server.__close = Server.close

--- Starts one, and waits until it answers.
function redis.server()
  local folder = os.tmpname()
  os.remove(folder)
  assert(os.execute("mkdir -m 700 " .. folder))
  local self = setmetatable({ folder = folder, path = folder .. "/redis.sock", port = free_port() }, Server)
  local command = ("redis-server --save '' --appendonly no --dir %s --bind 127.0.0.1 --port %d --unixsocket %s"
    .. " --daemonize no >%s/log 2>&1 & echo $!"):format(folder, self.port, self.path, folder)
  local pipe <close> = assert(io.popen(command))
  self.pid = pipe:read "n"
  for _ = 1, 500 do
    local stream <close> = aio.connect(self.path)
    if stream then return self end
    aio.sleep(0.01)
  end
  self:close()
  error "the Redis server does not answer"
end

return redis
