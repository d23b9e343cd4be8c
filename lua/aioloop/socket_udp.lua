--- The datagram objects of aioloop.socket: LuaSocket's own ones, non-blocking, whose fds are waited for on the loop.
-- SPDX-License-Identifier: MIT
-- Way     method -> the object's own one, with a time limit of 0 -> "timeout": wait for its fd, and again
-- Yields  receive, receivefrom, send, sendto; setsockname and setpeername with a name.
-- Keep    the object is never asked to wait, nor to look up a name.
-- @module aioloop.socket

local core = require "aioloop.core"
local names = require "aioloop.socket_dns"

local raw <const> = core.sockets()
local READ <const>, WRITE <const> = 1, 2

local M, classes, makers = {}, {}, {}

-- A function of its C library, whatever package.loaded has under that name by now.
local function maker_of(library, name)
  local loaded = package.loaded[library]
  if type(loaded) == "table" and loaded[name] ~= M[name] then return loaded[name] end
  local path, message = package.searchpath(library, package.cpath)
  local open = path and package.loadlib(path, "luaopen_" .. library:gsub("%.", "_"))
  if not open then error("datagrams need LuaSocket: " .. (message or path), 4) end
  return open(library, path)[name]
end

local function make(library, name)
  makers[name] = makers[name] or maker_of(library, name)
  return makers[name]()
end

local function check(self, name)
  local udp = classes[getmetatable(self)] and self.udp
  if udp then return udp end
  error(("bad argument #1 to '%s' (udp{any} expected)"):format(name), 3)
end

-- ---- waiting ----------------------------------------------------------------------------------------------------

local function limit_of(self)
  local block, total = self.block, self.total
  if block < 0 then return total >= 0 and total or nil end
  return total >= 0 and total < block and total or block
end

local function insist(self, want, method, ...)
  local udp, limit = self.udp, limit_of(self)
  local deadline = limit and core.now() + limit
  while true do
    if not raw.may_try() then core.yield() end -- who always finds something lets others have a turn
    if self.closed then return nil, "closed" end -- else one without an fd gets it when it first sends
    local results = table.pack(method(udp, ...))
    if results[1] ~= nil or results[2] ~= "timeout" then return table.unpack(results, 1, results.n) end
    local fd = udp:getfd() // 1 | 0
    local left = deadline and math.max(deadline - core.now(), 0)
    if limit == 0 then core.yield() end
    if left == 0 then return nil, "timeout" end
    local ok, why = raw.wait_any({ fd }, { want }, left)
    if not ok and why ~= "timeout" then return nil, why end
  end
end

local methods = {}

-- The object makes room for as much as it is asked for; no datagram is as long as this.
local function sane(size)
  local n = tonumber(size)
  if not n then return size end
  return n > 0 and math.min(n, 1 << 24) or 0 -- not a number: 0
end

for name, want in pairs { receive = READ, receivefrom = READ, send = WRITE, sendto = WRITE } do
  methods[name] = function(self, ...)
    local udp = check(self, name)
    if want == READ then return insist(self, want, udp[name], sane((...))) end
    return insist(self, want, udp[name], ...)
  end
end

-- ---- names ------------------------------------------------------------------------------------------------------

for name, passive in pairs { setsockname = true, setpeername = false, bind = true, connect = false } do
  methods[name] = function(self, host, port, ...)
    local udp = check(self, name)
    local method = udp[name] or error(("%s has no method '%s'"):format(tostring(udp), name), 2)
    local numeric = self.kind == "unix" or host == "*" or type(host) ~= "string" or port == nil
    if numeric then return method(udp, host, port, ...) end
    local list, message, code = core.getaddrinfo(host, tostring(port), { socktype = "dgram", passive = passive })
    if not list then return nil, names.unresolved(message, code) end
    local ok, why
    for _, a in ipairs(list) do
      ok, why = method(udp, a.addr, a.port, ...)
      if ok then break end
    end
    return ok, why
  end
end

-- ---- the rest ---------------------------------------------------------------------------------------------------

function methods:settimeout(value, mode)
  check(self, "settimeout")
  value = value == nil and -1 or tonumber(value)
  if not value or value ~= value then error("bad argument #2 to 'settimeout' (number expected)", 2) end
  if mode ~= nil and mode ~= "b" and mode ~= "t" and mode ~= "r" then
    error("bad argument #3 to 'settimeout' (invalid timeout mode)", 2)
  end
  self[(mode or "b") == "b" and "block" or "total"] = value
  return 1
end

function methods:gettimeout()
  check(self, "gettimeout")
  return self.block, self.total
end

function methods:close()
  local udp = check(self, "close")
  raw.closing(math.max(udp:getfd() // 1 | 0, -1))
  self.closed = true
  return udp:close()
end

function methods:getfd() return check(self, "getfd"):getfd() // 1 | 0 end

for _, name in ipairs {
  "dirty", "getfamily", "getoption", "getpeername", "getsockname", "setfd", "setoption",
} do
  methods[name] = function(self, ...)
    local udp = check(self, name)
    local method = udp[name] or error(("%s has no method '%s'"):format(tostring(udp), name), 2)
    return method(udp, ...)
  end
end

local function text(self) return tostring(self.udp) end

local function make_class()
  local meta = { __index = {}, __name = "udp{any}", __tostring = text, __close = methods.close }
  for name, method in pairs(methods) do meta.__index[name] = method end
  classes[meta] = true
  return meta
end

local Datagrams <const> = make_class()

local function wrap(kind, udp, why)
  if not udp then return nil, why end
  udp:settimeout(0)
  return setmetatable({ kind = kind, udp = udp, block = -1, total = -1 }, Datagrams)
end

-- Sockets of datagrams, as LuaSocket's udp, udp4, udp6 and socket.unix.dgram make them.
for _, name in ipairs { "udp", "udp4", "udp6" } do
  M[name] = function() return wrap("udp", make("socket.core", name)) end
end

function M.dgram() return wrap("unix", make("socket.unix", "dgram")) end

return M
