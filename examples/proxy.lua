-- SPDX-License-Identifier: MIT
--- A TCP proxy: whatever comes in on one place goes on to another one, and back.
--
--   lua5.4 examples/proxy.lua 8080 example.org:80
--   lua5.4 examples/proxy.lua /tmp/socket [::1]:5432        a place: port, host:port, or the path of a Unix socket
--
-- Way     proxy:serve -> relay (one connection) -> aio.connect -> pump, in both directions: readinto, write, shutdown
-- Yields  a task for each direction does. As long as one side takes nothing, nothing is read from the other.
-- Keep    each direction has an end of its own: who has sent all may still be answered. An error ends both.
local aio = require "aioloop"

local proxy = {}

proxy.limits = {
  connect = 5,     -- seconds
  idle = 600,      -- seconds in which nothing moves, either way
  piece = 64 << 10 -- bytes of memory for each direction
}

--- @type Proxy   stats: open, connections, refused (the target was not there), broken, sent, received (bytes)
local Proxy = {}
Proxy.__index = Proxy

--- A proxy; it works when `serve` is called.
-- @param server what aio.listen returned
-- @param host, port of the target; or a path and nil
-- @param limits a table with what is to be different from proxy.limits
function proxy.new(server, host, port, limits)
  local stats = { open = 0, connections = 0, refused = 0, broken = 0, sent = 0, received = 0 }
  limits = setmetatable(limits or {}, { __index = proxy.limits })
  return setmetatable({ server = server, host = host, port = port, limits = limits, stats = stats }, Proxy)
end

-- Until `from` ends; then `to` is told. Returns nil when either side is broken, or nothing moves any more.
local function pump(self, link, from, to, count)
  local stats, buffer = self.stats, aio.buffer(self.limits.piece)
  while true do
    local n, why = from:readinto(buffer)
    if why == "eof" then return to:shutdown() end
    local silence = aio.now() - link.moved
    if n then
      link.moved = aio.now()
      if not to:write(buffer) then return nil end
      stats[count] = stats[count] + n
    elseif why ~= "timeout" or silence >= self.limits.idle then
      return nil
    end
  end
end

local function relay(self, client)
  local _ <close> = client
  local stats, limits = self.stats, self.limits
  local target <close> = aio.connect(self.host, self.port, { timeout = limits.connect })
  if not target then
    stats.refused = stats.refused + 1
    return
  end
  local link = { moved = aio.now() }
  local function direction(...)
    if pump(self, link, ...) then return end
    stats.broken = stats.broken + (client:getfd() < 0 and 0 or 1)
    client:close() -- which wakes the other direction, too
    target:close()
  end
  local both <close> = aio.group()
  both:spawn(direction, client:settimeout(limits.idle), target, "sent")
  both:spawn(direction, target:settimeout(limits.idle), client, "received")
end

--- Serves until the server is closed, and the last connection has ended.
function Proxy:serve()
  local group <close> = aio.group()
  local stats = self.stats
  for client in self.server:clients() do
    stats.connections = stats.connections + 1
    stats.open = stats.open + 1
    group:spawn(function()
      local _ <close> = setmetatable({}, { __close = function() stats.open = stats.open - 1 end })
      relay(self, client)
    end):name("connection " .. stats.connections)
  end
end

--- host, port; or a path
function proxy.place(text)
  if tonumber(text) then return "127.0.0.1", tonumber(text) end
  local host, port = text:match "^%[?([^/]-)%]?:(%w+)$"
  if host then return host, tonumber(port) or port end
  return text, nil
end

local function main(from, to)
  local host, port = proxy.place(from)
  local server = assert(aio.listen(host, port))
  local self = proxy.new(server, proxy.place(to))
  io.stdout:write(table.concat({ server:getsockname() }, " "), "\n"):flush()
  local serving = aio.spawn(self.serve, self):name "proxy"
  aio.race(function() aio.wait_signal "TERM" end, function() aio.wait_signal "INT" end)
  serving:cancel()
  serving:join()
  for _, name in ipairs { "connections", "refused", "broken", "sent", "received" } do
    io.stdout:write(("%-12s %d\n"):format(name, self.stats[name]))
  end
end

if arg and arg[0]:match "proxy%.lua$" then
  if #arg ~= 2 then
    io.stderr:write "lua5.4 examples/proxy.lua FROM TO\n"
    os.exit(2)
  end
  aio.run(main, ...)
end

return proxy
