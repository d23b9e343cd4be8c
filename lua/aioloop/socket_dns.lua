--- What aioloop.socket says of names and of errors: LuaSocket's words for them.
-- SPDX-License-Identifier: MIT
-- Yields: every function of `dns` but gethostname.
-- @module aioloop.socket

local core = require "aioloop.core"
local raw = core.sockets()

local M, dns = {}, {}
M.dns = dns

-- Where LuaSocket has words of its own; all the others are the system's.
local by_errno = {
  [13] = "permission denied", [32] = "closed", [98] = "address already in use", [103] = "closed", [104] = "closed",
  [106] = "already connected", [110] = "timeout", [111] = "connection refused",
}
local by_code = {
  [-2] = "host or service not provided, or not known", [-3] = "temporary failure in name resolution",
  [-4] = "non-recoverable failure in name resolution", [-5] = "host or service not provided, or not known",
  [-8] = "service not supported for socket type",
}

--- What an operation on a stream was refused with.
function M.refusal(why, errno)
  if why == "eof" then return "closed" end
  return by_errno[errno] or why
end

function M.unresolved(message, code) return by_code[code] or message end

local function check_string(value, i, name)
  if type(value) == "string" or type(value) == "number" then return tostring(value) end
  local got = value == nil and "no value" or type(value)
  error(("bad argument #%d to '%s' (string expected, got %s)"):format(i, name, got), 3)
end
M.check_string = check_string

local function not_found(message, code)
  if code == -2 or code == -5 then return nil, "host not found" end
  return nil, M.unresolved(message, code)
end

local function name_of(addr)
  local name = core.getnameinfo(addr)
  if name and name ~= addr then return name end
end

-- The name and the IPv4 addresses of a host.
local function look_up(host)
  local list, message, code = core.getaddrinfo(host, nil, { family = "inet", canonname = true })
  if not list then return not_found(message, code) end
  local resolved = { name = list.canonname or host, alias = {}, ip = {} }
  for i, a in ipairs(list) do resolved.ip[i] = a.addr end
  if resolved.ip[1] == host then resolved.name = name_of(host) or host end
  return resolved
end

--- The first IPv4 address of a host.
-- @tparam string host a name or an address
-- @treturn string address; or nil, message
-- @treturn table name, alias (empty), ip (list)
function dns.toip(host)
  local resolved, message = look_up(check_string(host, 1, "toip"))
  if not resolved then return nil, message end
  return resolved.ip[1], resolved
end

--- The name of a host.
-- @tparam string host a name or an address
-- @treturn string name; or nil, message
-- @treturn table as for `toip`
function dns.tohostname(host)
  host = check_string(host, 1, "tohostname")
  local resolved, message = look_up(host)
  if not resolved then return nil, message end
  if resolved.name == resolved.ip[1] then return nil, "host not found" end
  return resolved.name, resolved
end

--- The addresses of a host.
-- @tparam string host
-- @treturn {table,...} of family, addr; or nil, message
function dns.getaddrinfo(host)
  local list, message, code = core.getaddrinfo(check_string(host, 1, "getaddrinfo"))
  if not list then return nil, M.unresolved(message, code) end
  local found = {}
  for i, a in ipairs(list) do found[i] = { family = a.family, addr = a.addr } end
  return found
end

--- The names of a host, and of a service.
-- @tparam ?string host
-- @tparam ?string service a name or a port
-- @return a list of names, if there is a host, and the service's name, if there is one; or nil, message
function dns.getnameinfo(host, service)
  if host == nil and service == nil then error("host and serv cannot be both nil", 2) end
  if host ~= nil then host = check_string(host, 1, "getnameinfo") end
  if service ~= nil then service = check_string(service, 2, "getnameinfo") end
  local list, message, code = core.getaddrinfo(host, service)
  if not list then return nil, M.unresolved(message, code) end
  local names, of_service = {}, nil
  for i, a in ipairs(list) do
    names[i], of_service = core.getnameinfo(a.addr, a.port)
    if not names[i] then return nil, of_service end
  end
  if not host then return {}, of_service end
  if not service then return names end
  return names, of_service
end

--- The name of this host.
-- @treturn string
function dns.gethostname() return raw.hostname() end

return M
