--- The objects of aioloop.socket: LuaSocket's tcp{…} and unixstream{…}, made of streams and servers.
-- SPDX-License-Identifier: MIT
-- Way     master -> connect: client; master -> bind, listen: server -> accept: client. `io` is a stream, or the server.
-- Yields  connect, accept, send, receive, and bind with a name. With a time limit of 0 they do not wait, but what finds
--         nothing to do lets others run, since its caller is going to try again.
-- Keep    what receive returns is taken, also the part that came before an error; what send counts is with the kernel.
-- @module aioloop.socket

local core = require "aioloop.core"
local streams = require "aioloop.stream"
local names = require "aioloop.socket_dns"

local raw <const> = core.sockets()
local refusal <const>, check_string <const> = names.refusal, names.check_string
local EAGAIN <const>, ECONNABORTED <const>, EINPROGRESS <const> = 11, 103, 115
local RETRY <const> = 0.005 -- a Unix socket with a full backlog tells nobody when there is room
local now <const> = core.now

local M, methods, classes, roles = {}, {}, {}, {}

local function bad_argument(i, name, message) error(("bad argument #%d to '%s' (%s)"):format(i, name, message), 3) end

local function check_number(value, i, name, default)
  if value == nil and default ~= nil then return default end
  local n = tonumber(value)
  if n and n == n then return n end
  bad_argument(i, name, ("number expected, got %s"):format(n and "NaN" or value == nil and "no value" or type(value)))
end

local function new(kind, role, io, family)
  return setmetatable({
    kind = kind, io = io, family = family, block = -1, total = -1, received = 0, sent = 0, born = core.time(),
  }, classes[kind][role])
end

local function set_role(self, role) setmetatable(self, classes[self.kind][role]) end

local function check_role(self, role, name)
  local is = roles[getmetatable(self)]
  if is == role or is and role == "any" then return end
  local kind = is and self.class:match "^%a+" or "tcp"
  error(("bad argument #1 to '%s' (%s{%s} expected)"):format(name, kind, role), 3)
end

local function fd_of(self) return self.io and self.io:getfd() or -1 end

-- ---- time limits -----------------------------------------------------------------------------------------------

-- How long a call may take: seconds; nil: for ever.
local function limit_of(self)
  local block, total = self.block, self.total
  if block < 0 then return total >= 0 and total or nil end
  return total >= 0 and total < block and total or block
end

local function left_until(deadline)
  if not deadline then return nil end
  local left = deadline - now()
  return left > 0 and left or 0
end

local function give_way(limit)
  if limit == 0 then core.yield() end
end

-- Sees to it that a call without time finds what is there, and that who always finds something lets others run.
local function prepare(limit)
  if limit == 0 and not raw.may_try() then core.yield() end
end

function methods:settimeout(value, mode)
  check_role(self, "any", "settimeout")
  value = value ~= nil and check_number(value, 2, "settimeout") or -1
  mode = mode == nil and "b" or mode
  if mode == "b" then
    self.block = value
  elseif mode == "t" or mode == "r" then
    self.total = value
  else
    bad_argument(3, "settimeout", "invalid timeout mode")
  end
  return 1
end

function methods:gettimeout()
  check_role(self, "any", "gettimeout")
  return self.block, self.total
end

-- ---- receiving and sending --------------------------------------------------------------------------------------

-- What has come of a piece that is not complete.
local function take_rest(self)
  local stream = self.io
  local n = stream:buffered()
  local part = n > 0 and stream:readsome(n) or ""
  self.received = self.received + #part
  return part
end

local function read(self, format)
  local stream, limit = self.io, limit_of(self)
  prepare(limit)
  stream:settimeout(limit)
  local data, why, errno = stream:read(format)
  if data then
    self.received = self.received + #data
    return data
  end
  local part = why ~= "closed" and take_rest(self) or ""
  if why == "timeout" then give_way(limit) end
  return nil, refusal(why, errno), part
end

local function without_ends(line) return (line:gsub("[\r\n]", "")) end

local function receive_line(self, prefix)
  local line, why, part = read(self, "L")
  if not line then return nil, why, prefix .. without_ends(part) end
  if line:byte(-1) ~= 10 then return nil, "closed", prefix .. without_ends(line) end
  return prefix .. without_ends(line), nil, nil
end

local function receive_all(self, prefix)
  local data, why, part = read(self, "a")
  if not data then return nil, why, prefix .. part end
  if data == "" then return nil, "closed", prefix end
  return prefix .. data, nil, nil
end

local function receive_bytes(self, n, prefix)
  if #prefix > 0 and n <= #prefix then return prefix, nil, nil end
  local wanted = n - #prefix
  local data, why, part = read(self, wanted)
  if not data then return nil, why, prefix .. part end
  if #data < wanted then return nil, "closed", prefix .. data end
  return prefix .. data, nil, nil
end

function methods:receive(pattern, prefix)
  check_role(self, "client", "receive")
  prefix = prefix ~= nil and check_string(prefix, 3, "receive") or ""
  local n = tonumber(pattern)
  if n and n >= 0 then return receive_bytes(self, n // 1 | 0, prefix) end
  local kind = pattern == nil and "*l" or type(pattern) == "string" and pattern:sub(1, 2) -- "*line" is fine
  if kind == "*l" then return receive_line(self, prefix) end
  if kind == "*a" then return receive_all(self, prefix) end
  if not n then check_string(pattern, 2, "receive") end
  bad_argument(2, "receive", "invalid receive pattern")
end

-- The bytes that are meant by i and j, as LuaSocket reads them.
local function range(size, i, j)
  if i < 0 then i = size + i + 1 end
  if j < 0 then j = size + j + 1 end
  return i < 1 and 1 or i, j > size and size or j
end

function methods:send(data, i, j)
  check_role(self, "client", "send")
  data = check_string(data, 2, "send")
  local at, last = range(#data, check_number(i, 3, "send", 1) // 1 | 0, check_number(j, 4, "send", -1) // 1 | 0)
  local stream, limit = self.io, limit_of(self)
  local deadline = limit and limit > 0 and now() + limit or nil
  prepare(limit)
  stream:settimeout(limit)
  while at <= last do
    local n, why, errno = stream:writesome(data, at, last)
    if not n then
      if why == "timeout" then give_way(limit) end
      return nil, refusal(why, errno), at - 1
    end
    at = at + n
    self.sent = self.sent + n
    if deadline and at <= last then stream:settimeout(left_until(deadline)) end
  end
  return at - 1, nil, nil
end

function methods:dirty()
  check_role(self, "any", "dirty")
  return core.type(self.io) == "stream" and self.io:buffered() > 0
end

function methods:getstats()
  check_role(self, "client", "getstats")
  return self.received, self.sent, core.time() - self.born
end

function methods:setstats(received, sent, age)
  check_role(self, "client", "setstats")
  self.received = check_number(received, 2, "setstats", self.received)
  self.sent = check_number(sent, 3, "setstats", self.sent)
  if age ~= nil then self.born = core.time() - check_number(age, 4, "setstats") end
  return 1
end

-- ---- connecting -------------------------------------------------------------------------------------------------

-- A port or a service; arithmetic may have made the port a float.
local function check_port(port, i, who) return check_string(math.tointeger(port) or port, i, who) end

-- A socket that was refused says so once more, as an abort, before it can be used again.
local function begin(io, name, port)
  local ok, why, errno = raw.begin(io, name, port)
  if errno ~= ECONNABORTED then return ok, why, errno end
  return raw.begin(io, name, port)
end

-- One address, or path: true; or nil, why.
local function connect_one(self, limit, deadline, name, port)
  local io = self.io
  while true do
    local ok, why, errno = begin(io, name, port)
    if ok then return true end
    if errno ~= EINPROGRESS and errno ~= EAGAIN then return nil, refusal(why, errno) end
    if limit == 0 then return nil, "timeout" end
    if errno == EINPROGRESS then
      ok, why, errno = raw.connected(io:settimeout(left_until(deadline)))
      if ok then return true end
      return nil, refusal(why, errno)
    end
    local left = left_until(deadline)
    if left == 0 then return nil, "timeout" end
    core.sleep(left and left < RETRY and left or RETRY)
  end
end

-- The addresses in their order, on sockets of their family.
local function resolve(self, host, port, limit, passive)
  local options = { family = self.family, passive = passive }
  local list, message, code
  if limit and limit > 0 then
    list, message, code = core.timeout(limit, core.getaddrinfo, host, port, options)
  else
    list, message, code = core.getaddrinfo(host, port, options)
  end
  if not list then return nil, names.unresolved(message, code) end
  return list
end

local function suit(self, family)
  if self.io and self.family == family and fd_of(self) >= 0 then return true end
  local io, why, errno = raw.make(family)
  if not io then return nil, refusal(why, errno) end
  if self.io then self:close() end
  self.io, self.family = io, family
  return true
end

local function connect_tcp(self, host, port)
  host, port = check_string(host, 2, "connect"), check_port(port, 3, "connect")
  local limit = limit_of(self)
  local deadline = limit and limit > 0 and now() + limit or nil
  local list, why = resolve(self, host, port, limit)
  local ok, family = nil, self.family
  for _, a in ipairs(list or {}) do
    ok, why = suit(self, a.family)
    if ok then ok, why = connect_one(self, limit, deadline, a.addr, a.port) end
    if ok or limit == 0 or why == "timeout" then break end
  end
  if not ok and limit ~= 0 then self.family = family end -- where it had none, the next call makes another socket
  set_role(self, "client") -- also a connection under way is one
  return ok, why, limit
end

-- LuaSocket knows no abstract names.
local function path_of(path) return path:sub(1, 1) == "@" and "./" .. path or path end

local function connect_unix(self, path)
  path = path_of(check_string(path, 2, "connect"))
  local limit = limit_of(self)
  local deadline = limit and limit > 0 and now() + limit or nil
  local ok, why = connect_one(self, limit, deadline, path)
  if ok then set_role(self, "client") end
  return ok, why, limit
end

function methods:connect(host, port)
  check_role(self, self.kind == "tcp" and "any" or "master", "connect")
  if self.kind == "tcp" and core.type(self.io) == "server" then return nil, "already connected" end
  local ok, why, limit = (self.kind == "tcp" and connect_tcp or connect_unix)(self, host, port)
  if ok then return 1 end
  if why == "timeout" then give_way(limit) end
  return nil, why
end

-- ---- serving ----------------------------------------------------------------------------------------------------

local function bind_tcp(self, host, port)
  host, port = check_string(host, 2, "bind"), check_port(port, 3, "bind")
  local list, why = resolve(self, host ~= "*" and host or nil, port, nil, true)
  local ok, errno
  for _, a in ipairs(list or {}) do
    ok, why = suit(self, a.family)
    if ok then ok, why, errno = raw.bind(self.io, a.addr, a.port) end
    if ok then break end
  end
  return ok, refusal(why, errno)
end

local function bind_unix(self, path)
  local ok, why, errno = raw.bind(self.io, path_of(check_string(path, 2, "bind")))
  return ok, refusal(why, errno)
end

function methods:bind(host, port)
  check_role(self, "master", "bind")
  local ok, why = (self.kind == "tcp" and bind_tcp or bind_unix)(self, host, port)
  if ok then return 1 end
  return nil, why
end

function methods:listen(backlog)
  check_role(self, "master", "listen")
  backlog = check_number(backlog, 2, "listen", 32)
  if fd_of(self) < 0 then return nil, "Bad file descriptor" end
  local server, why, errno = raw.hear(self.io, backlog // 1 | 0)
  if not server then return nil, refusal(why, errno) end
  self.io = server
  set_role(self, "server")
  return 1
end

function methods:accept()
  check_role(self, "server", "accept")
  local limit = limit_of(self)
  local stream, why, errno = self.io:accept(limit)
  if stream then return new(self.kind, "client", stream, self.family) end
  if why == "timeout" then give_way(limit) end
  return nil, refusal(why, errno)
end

-- ---- names and descriptors --------------------------------------------------------------------------------------

local function name(self, of)
  if fd_of(self) < 0 then return nil, "Bad file descriptor" end
  local host, port, errno = of(self.io)
  if not host then return nil, refusal(port, errno) end
  if not port then return host end
  return host, port, host:find(":", 1, true) and "inet6" or "inet"
end

function methods:getsockname()
  check_role(self, "any", "getsockname")
  return name(self, self.io and self.io.getsockname)
end

function methods:getpeername()
  check_role(self, "any", "getpeername")
  if core.type(self.io) == "server" then return nil, "Transport endpoint is not connected" end
  return name(self, self.io and self.io.getpeername)
end

function methods:getfamily()
  check_role(self, "any", "getfamily")
  return self.family == "inet6" and "inet6" or "inet4"
end

function methods:getfd()
  check_role(self, "any", "getfd")
  return fd_of(self)
end

function methods:setfd(fd)
  check_role(self, "any", "setfd")
  fd = check_number(fd, 2, "setfd") // 1 | 0
  local old = fd_of(self)
  if old >= 0 then raw.closing(old) end
  if self.io then
    self.io:setfd(fd)
  elseif fd >= 0 then
    self.io = streams.stream(fd)
  end
end

function methods:close()
  check_role(self, "any", "close")
  local fd = fd_of(self)
  if fd >= 0 then
    raw.closing(fd)
    self.io:close()
  end
  return 1
end

function methods:shutdown(how)
  check_role(self, "client", "shutdown")
  if how ~= nil and how ~= "both" and how ~= "send" and how ~= "receive" then
    bad_argument(2, "shutdown", ("invalid option '%s'"):format(how))
  end
  raw.shutdown(fd_of(self), how or "both")
  return 1
end

-- ---- options ----------------------------------------------------------------------------------------------------

local function check_option(option, set, who)
  local kind = raw.kind(check_string(option, 2, who), set)
  if kind then return kind end
  error(("bad argument #2 to '%s' (unsupported option `%s')"):format(who, option), 3)
end

local function expected(what, value)
  return ("%s expected, got %s"):format(what, value == nil and "no value" or type(value))
end

local function linger_fields(value)
  if type(value) ~= "table" then return expected("table", value) end
  if type(value.on) ~= "boolean" then return "boolean 'on' field expected" end
  if type(value.timeout) ~= "number" then return "number 'timeout' field expected" end
  return nil, value.on, value.timeout
end

function methods:setoption(option, value)
  check_role(self, "any", "setoption")
  local kind = check_option(option, true, "setoption")
  local bad, first, second = nil, value, nil
  if kind == "linger" then
    bad, first, second = linger_fields(value)
  elseif kind == "boolean" and type(value) ~= "boolean" then
    bad = expected("boolean", value)
  elseif kind == "number" and type(value) ~= "number" then
    bad = expected("number", value)
  end
  if bad then bad_argument(3, "setoption", bad) end
  if raw.setoption(fd_of(self), option, first, second) then return 1 end
  return nil, "setsockopt failed"
end

function methods:getoption(option)
  check_role(self, "any", "getoption")
  local kind = check_option(option, false, "getoption")
  local first, second = raw.getoption(fd_of(self), option)
  if not first then return nil, "getsockopt failed" end
  if kind == "boolean" then return first ~= 0 end
  if kind == "linger" then return { on = first ~= 0, timeout = second } end
  if kind == "error" then return first ~= 0 and refusal(second, first) or nil end
  return first
end

methods.setpeername, methods.setsockname = methods.connect, methods.bind

-- ---- classes ----------------------------------------------------------------------------------------------------

local function text(self) return ("%s: %p"):format(self.class, self) end

local function make_classes(kind, prefix)
  classes[kind] = {}
  for _, role in ipairs { "master", "client", "server" } do
    local class = { class = ("%s{%s}"):format(prefix, role) }
    for key, method in pairs(methods) do class[key] = method end
    local meta = { __index = class, __name = class.class, __tostring = text, __close = methods.close }
    classes[kind][role] = meta
    roles[meta] = role
  end
end

make_classes("tcp", "tcp")
make_classes("unix", "unixstream")

local function made(kind, family)
  local io, why, errno = raw.make(family)
  if not io then return nil, refusal(why, errno) end
  return new(kind, "master", io, family ~= "unix" and family or nil)
end

--- A TCP object without a socket, which it gets with its first address.
function M.tcp() return new("tcp", "master") end

--- One with a socket of that family.
function M.tcp4() return made("tcp", "inet") end
function M.tcp6() return made("tcp", "inet6") end

--- A Unix stream socket.
function M.stream() return made("unix", "unix") end

return M
