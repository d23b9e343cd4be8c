--- Streams: what needs no more than the C functions.
-- SPDX-License-Identifier: MIT
-- Yields: connect, listen with a name, starttls, and the iterators do.
-- @module aioloop.stream

local core = require "aioloop.core"
local load = require "aioloop.load"

local M, stream, server = core.streams()
local connect_to, listen_at, check_table = M.connect_to, M.listen_at, M.check_options
local open_tls = M.tls
M.connect_to, M.listen_at, M.check_options, M.tls = nil, nil, nil, nil

local function check_self(self, kind, name)
  if core.type(self) == kind then return end
  error(("bad argument #1 to '%s' (aioloop.%s expected, got %s)"):format(name, kind, core.type(self) or type(self)), 3)
end

local function check_options(options, idx, name)
  if options == nil then return end
  local fine, message = pcall(check_table, options)
  if not fine then error(message:gsub("#1 to '.-'", ("#%d to '%s'"):format(idx, name), 1), 3) end
end

local function check_host(host, port, name)
  if type(host) ~= "string" then
    error(("bad argument #1 to '%s' (string expected, got %s)"):format(name, type(host)), 3)
  elseif type(port) ~= "string" and not (math.type(port) == "integer" and port >= 0 and port <= 65535) then
    error(("bad argument #2 to '%s' (port expected)"):format(name), 3)
  end
end

local function connect_host(host, port, options)
  local list, message, errno = core.getaddrinfo(host, port)
  if not list then return nil, message, errno end
  return connect_to(list, options)
end

--- Connects: to a host, whose addresses are tried in their order, IPv6 and IPv4 by turns, the next one when the one
-- before has failed or takes longer than 250 ms; or to a Unix socket.
-- @function connect
-- @tparam string host a name or an address; or the path of a Unix socket; "@name" is in the abstract namespace
-- @tparam integer|string|nil port a number or a service; nil: host is a path
-- @tparam[opt] table options timeout (seconds, of all this together), nodelay (true), keepalive (false; true, or
--   seconds of silence before the first probe)
-- @treturn stream or nil, "timeout"; or nil, message, errno (where the name could not be resolved: code of getaddrinfo)
function M.connect(host, port, options)
  if port == nil or type(port) == "table" and options == nil then
    options = port or options
    port = nil
  end
  check_options(options, port and 3 or 2, "connect")
  if port == nil then
    if type(host) ~= "string" then check_host(host, 0, "connect") end
  else
    check_host(host, port, "connect")
  end
  local timeout = options and rawget(options, "timeout")
  local fn = port == nil and connect_to or connect_host
  if timeout == nil then
    if port == nil then return connect_to(host, options) end
    return connect_host(host, port, options)
  elseif port == nil then
    return core.timeout(timeout, fn, host, options)
  end
  return core.timeout(timeout, fn, host, port, options)
end

--- Listens: at an address, or at the path of a Unix socket, which is removed when the server is closed. One that was
-- left behind by a server that has died is replaced.
-- @function listen
-- @tparam ?string host an address, or a name; "*": all of this machine's; or the path of a Unix socket; "@name" is in
--   the abstract namespace
-- @tparam integer|string|nil port a number (0: any that is free) or a service; nil: host is a path
-- @tparam[opt] table options backlog (128), reuseaddr (true), reuseport (false), nodelay (true), keepalive (false;
--   true, or seconds of silence before the first probe), v6only (boolean), timeout (seconds, of each accept)
-- @treturn server or nil, message, errno
function M.listen(host, port, options)
  if port == nil or type(port) == "table" and options == nil then
    options = port or options
    check_options(options, 2, "listen")
    check_host(host, 0, "listen")
    return listen_at(host, nil, options)
  end
  check_options(options, 3, "listen")
  check_host(host, port, "listen")
  if host == "*" then
    if type(port) == "string" then
      local list, message, errno = core.getaddrinfo(nil, port, { passive = true })
      if not list then return nil, message, errno end
      port = list[1].port
    end
    local any, message, errno = listen_at("::", port, options)
    if any or errno ~= 97 then return any, message, errno end -- EAFNOSUPPORT
    host = "0.0.0.0"
  end
  local list, message, errno = core.getaddrinfo(host, port, { passive = true })
  if not list then return nil, message, errno end
  local result
  for _, a in ipairs(list) do
    result, message, errno = listen_at(a.addr, a.port, options)
    if result then break end
  end
  return result, message, errno
end

--- Iterates over what `read` returns, up to the end; an error is raised, and so is "timeout".
-- @function stream:lines
-- @tparam[opt="l"] string|integer|table ... formats, as for `read`
-- @treturn function iterator
function stream:lines(...)
  check_self(self, "stream", "lines")
  local read, formats = stream.read, table.pack(...)
  local function check(value, message, errno, ...)
    if value == nil and message ~= nil and message ~= "eof" then error(message, 3) end
    return value, message, errno, ...
  end
  return function() return check(read(self, table.unpack(formats, 1, formats.n))) end
end

local tls -- read when it is first needed

--- Speaks TLS from here on, through LuaSec: shakes hands, as client or as server, and then reads and writes as before.
-- Nothing may be left unread, or to be written. A handshake that fails, is cancelled or reaches its time limit closes
-- the stream. `close` says goodbye to the other end (close_notify); what ends without that is read as an error.
-- `shutdown` fails, for LuaSec cannot end one half alone; `setfd` raises; `writesome` takes at most 16384 bytes, and
-- all of those will be sent. Callbacks in the parameters cannot wait.
-- @function stream:starttls
-- @tparam table|userdata params the parameters of LuaSec's `ssl.newcontext`, where mode is "client" and protocol "any"
--   if they are absent; or a context made of them, as a server does that has many clients. In the table besides:
--   sni (client: the name of the server that it asks for; server: a table, name -> parameters or context),
--   strict (boolean: a server refuses other names), host (client: for which name the certificate must be; absent: the
--   one in sni if verify has "peer"; false: for any)
-- @treturn stream itself; or nil, message, errno; or nil, "timeout"; or nil, "closed"
-- @raise when somebody waits for it, when it speaks TLS already, or without LuaSec
function stream:starttls(params)
  check_self(self, "stream", "starttls")
  if not tls then
    local open, message, errno = load "aioloop.tls"
    if not open then return nil, message, errno end
    tls = open(open_tls)
  end
  return tls.start(self, params)
end

--- What is known of the TLS that it speaks: an object with LuaSec's methods info, getpeercertificate, getpeerchain,
-- getlocalcertificate, getpeerverification, getpeerfinished, getfinished, getsniname, getalpn, exportkeyingmaterial and
-- getstats, as far as this LuaSec has them.
-- @function stream:tls
-- @treturn ?table nil: it speaks none
function stream:tls()
  check_self(self, "stream", "tls")
  return tls and tls.session(self)
end

--- Iterates over connections until the server is closed; an error is raised, and so is "timeout".
-- @function server:clients
-- @treturn function iterator
function server:clients()
  check_self(self, "server", "clients")
  local accept = server.accept
  return function()
    local client, message = accept(self)
    if client == nil and message ~= "closed" then error(message, 2) end
    return client
  end
end

return M
