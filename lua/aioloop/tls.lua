--- TLS for streams: what LuaSec is asked for.
-- SPDX-License-Identifier: MIT
-- Way     stream:starttls -> context, connection (in LuaSec's thread, csrc/bind/ltls.c) -> begin -> shake -> check_host
-- Yields  start does.
-- @module aioloop.stream

local load = require "aioloop.load"

local EPROTO <const> = 71

-- Of a connection, what only tells.
local TELLING <const> = {
  "info", "getpeercertificate", "getpeerchain", "getlocalcertificate", "getpeerverification", "getpeerfinished",
  "getfinished", "getsniname", "getalpn", "exportkeyingmaterial", "getstats",
}

local function luasec() -- or nil, message, errno
  local found, ssl, message, errno = pcall(load, "ssl")
  if not found then error("starttls needs LuaSec:\n" .. tostring(ssl), 3) end
  if not ssl then return nil, message, errno end
  return ssl, require "ssl.core"
end

-- It has no fd yet; without this number LuaSec would not know that.
local function wrap(ssl, ctx)
  return ssl.wrap({ getfd = function() return -1 end, setfd = function() end }, ctx)
end

local function bad(message) error("bad argument #2 to 'starttls' (" .. message .. ")", 4) end

-- ---- whom a certificate is for

local function add_all(list, names)
  for _, name in ipairs(names or {}) do list[#list + 1] = name end
end

-- Names of hosts, and addresses. Where there are none, the common name is a host's, as ever.
local function names_of(cert)
  local hosts, addresses = {}, {}
  for _, extension in pairs(cert:extensions() or {}) do
    add_all(hosts, extension.dNSName)
    add_all(addresses, extension.iPAddress)
  end
  if #hosts == 0 then
    for _, entry in ipairs(cert:subject() or {}) do
      if entry.name == "commonName" then hosts[#hosts + 1] = entry.value end
    end
  end
  return hosts, addresses
end

-- RFC 6125: a wildcard is all of the leftmost label, and stands for one label.
local function is_host(pattern, name)
  pattern, name = pattern:lower():gsub("%.$", ""), name:lower():gsub("%.$", "")
  if pattern == name then return true end
  local rest = pattern:match "^%*(%.[^.]+%..+)$"
  return rest ~= nil and name:match "^[^.]+(%..+)$" == rest
end

local function is_address(name) return name:find ":" ~= nil or name:match "^%d+%.%d+%.%d+%.%d+$" ~= nil end

local function check_host(connection, name)
  local cert = connection:getpeercertificate()
  if not cert then return nil, "the other end has no certificate" end
  local hosts, addresses = names_of(cert)
  local matches = function(pattern) return is_host(pattern, name) end
  if is_address(name) then
    hosts, matches = addresses, function(address) return address:lower() == name:lower() end
  end
  for _, host in ipairs(hosts) do
    if matches(host) then return true end
  end
  return nil, ("the certificate is not for '%s'"):format(name)
end

-- ---- parameters

local function has(verify, what)
  if type(verify) ~= "table" then return verify == what end
  for _, v in ipairs(verify) do
    if v == what then return true end
  end
  return false
end

local function host_to_check(params)
  local host = params.host
  if params.mode == "server" or host == false then return nil end
  if host ~= nil and type(host) ~= "string" then bad "host must be a string or false" end
  return host or (has(params.verify, "peer") and params.sni) or nil
end

local function check_sni(sni, is_server)
  if sni == nil then return end
  if is_server and type(sni) ~= "table" then bad "a server's sni must be a table" end
  if is_server then return end
  if type(sni) ~= "string" or sni == "" or sni:find "\0" then bad "a client's sni must be a name" end
end

-- In LuaSec's thread.
local function context(ssl, params, mode)
  if type(params) ~= "table" then return params end
  return ssl.newcontext(setmetatable({
    mode = params.mode or mode or "client",
    protocol = params.protocol or "any",
  }, { __index = params }))
end

local function contexts(ssl, list)
  local made = {}
  for name, params in pairs(list) do
    local ctx, message = context(ssl, params, "server")
    if not ctx then return nil, ("%s: %s"):format(name, message) end
    made[name] = ctx
  end
  return made
end

-- In LuaSec's thread; it gets the fd when there is nothing left that could fail.
local function connect(ssl, params)
  local own = type(params) == "table" and params or {}
  local ctx, message = context(ssl, params)
  if not ctx then return nil, message end
  local sni = own.sni
  if type(sni) == "table" then
    sni, message = contexts(ssl, sni)
    if not sni then return nil, message end
  end
  local connection
  connection, message = wrap(ssl, ctx)
  if not connection then return nil, message end
  connection:settimeout(0)
  if sni then connection:sni(sni, own.strict) end
  return connection
end

-- ---- the two functions

local function fail(message, errno)
  if errno then return nil, message, errno end
  return nil, message
end

return function(open)
  local M = {}
  local tls, ssl
  local sessions = setmetatable({}, { __mode = "k" })

  local function begin() -- true; or nil, message, errno
    local found, ssl_core, errno = luasec()
    if not found then return nil, ssl_core, errno end
    ssl = found
    local ctx = assert(ssl.newcontext { mode = "client", protocol = "any" })
    local connection = assert(wrap(ssl, ctx))
    tls = open(getmetatable(connection).__index, ssl_core.setfd)
    return true
  end

  function M.start(stream, params)
    if type(params) ~= "table" and type(params) ~= "userdata" then
      error(("bad argument #1 to 'starttls' (table or context expected, got %s)"):format(type(params)), 3)
    end
    local host
    if type(params) == "table" then
      check_sni(params.sni, params.mode == "server")
      host = host_to_check(params)
    end
    local ok, message, errno
    if not tls then ok, message, errno = begin() end
    if not tls then return ok, message, errno end
    ok, message, errno = tls.fresh(stream)
    if not ok then return fail(message, errno) end
    local connection
    connection, message = tls.call(connect, ssl, params)
    if not connection then return nil, message, EPROTO end
    ok, message, errno = tls.begin(stream, connection)
    if not ok then return fail(message, errno) end
    local done = false
    local _ <close> = setmetatable({}, { __close = function() if not done then stream:close() end end })
    ok, message, errno = tls.shake(stream)
    if not ok then return fail(message, errno) end
    if host then
      ok, message = check_host(connection, host)
      if not ok then return nil, message, EPROTO end
    end
    done = true
    return stream
  end

  function M.session(stream)
    local connection = tls and tls.connection(stream)
    if not connection then return nil end
    local session = sessions[stream]
    if session then return session end
    session = {}
    for _, name in ipairs(TELLING) do
      local method = connection[name]
      session[name] = method and function(_, ...)
        if tls.connection(stream) ~= connection then return nil, "closed" end -- LuaSec may not survive it
        return method(connection, ...)
      end
    end
    sessions[stream] = session
    return session
  end

  return M
end
