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

-- Calls it with each address in place of the host and the port, which stand behind what is to be sent.
local function try_each(list, method, self, data)
  local ok, message, errno
  for _, a in ipairs(list) do
    if method == "sendto" then
      ok, message, errno = methods.sendto(self, data, a.addr, a.port)
    else
      ok, message, errno = methods[method](self, a.addr, a.port)
    end
    if ok then return ok end
    if not useless[errno] then break end
  end
  return nil, message, errno
end

local function resolve(host, port, method, ...)
  local list, message, code = core.getaddrinfo(host, port, { socktype = "dgram", passive = method == "bind" })
  if not list then return nil, message, code end
  if not host then table.sort(list, function(a, b) return a.family > b.family end) end -- IPv6 is IPv4 as well
  return try_each(list, method, ...)
end

local M
M, methods = core.udps(function(method, timeout, ...)
  local host, port = select(method == "sendto" and 3 or 2, ...)
  if method == "bind" and host == "*" then
    if math.type(port) == "integer" then
      return try_each({ { addr = "::", port = port }, { addr = "0.0.0.0", port = port } }, method, ...)
    end
    host = nil
  end
  if timeout then return core.timeout(timeout, resolve, host, port, method, ...) end
  return resolve(host, port, method, ...)
end)

return M
