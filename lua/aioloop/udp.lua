-- Datagrams: names in place of addresses.
-- SPDX-License-Identifier: MIT
-- Way: bind, connect, sendto with a name (csrc/bind/ludp.c) -> by_name -> getaddrinfo -> the method again, in numbers.
-- Yields: by_name does.

local core = require "aioloop.core"

-- Errors of an address that this socket, or this machine, can do nothing with: the next one is tried.
local EAFNOSUPPORT, EADDRNOTAVAIL, ENETUNREACH, EHOSTUNREACH = 97, 99, 101, 113
local useless = {
  [EAFNOSUPPORT] = true, [EADDRNOTAVAIL] = true, [ENETUNREACH] = true, [EHOSTUNREACH] = true,
}

local methods

local function addresses(method, host, port)
  local passive = method == "bind"
  if passive and host == "*" then host = nil end
  local list, message, code = core.getaddrinfo(host, port, { socktype = "dgram", passive = passive })
  -- Of all that this machine has: IPv6 first, for it is IPv4 as well.
  if list and not host then table.sort(list, function(a, b) return a.family > b.family end) end
  return list, message, code
end

-- The host comes behind what is to be sent.
local function try_each(method, self, ...)
  local fn, data, host, port = methods[method], ...
  if method ~= "sendto" then host, port = ... end
  local list, message, errno = addresses(method, host, port)
  if not list then return nil, message, errno end
  local ok
  for _, a in ipairs(list) do
    if method == "sendto" then
      ok, message, errno = fn(self, data, a.addr, a.port)
    else
      ok, message, errno = fn(self, a.addr, a.port)
    end
    if ok then return ok end
    if not useless[errno] then break end
  end
  return nil, message, errno
end

local M
M, methods = core.udps(function(method, timeout, ...)
  if timeout then return core.timeout(timeout, try_each, method, ...) end
  return try_each(method, ...)
end)

return M
