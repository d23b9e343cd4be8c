--- LuaSocket's interface on the loop: what was written for LuaSocket waits as a task, and holds up nobody.
--
-- `aio.socket` has the functions and objects of LuaSocket 3.1, which are described there. In a task they suspend the
-- task, elsewhere they poll the loop. A cancel, and a limit of `aio.timeout`, end their waits as any other; `protect`
-- and `newtry` let them through.
--
-- Otherwise than there: connect's time limit is also for the search for the host's name; where both limits are set
-- ("b" and "t"), the shorter one counts; names are looked up by other threads; select knows no largest fd; the port of
-- getsockname is a number; a number is wanted where an option is one.
-- SPDX-License-Identifier: MIT
-- Yields: whatever waits in LuaSocket.
-- @module aioloop.socket

local core = require "aioloop.core"
local names = require "aioloop.socket_dns"
local tcp = require "aioloop.socket_tcp"
local udp = require "aioloop.socket_udp"

local socket = {
  _VERSION = "LuaSocket 3.0.0 (aioloop)",
  _SETSIZE = 1 << 20,
  _DATAGRAMSIZE = 8192,
  _SOCKETINVALID = -1,
  BLOCKSIZE = 2048,
  dns = names.dns,
  tcp = tcp.tcp, tcp4 = tcp.tcp4, tcp6 = tcp.tcp6,
  udp = udp.udp, udp4 = udp.udp4, udp6 = udp.udp6,
  select = require "aioloop.socket_select".select,
  gettime = core.time,
}

--- The module `socket.unix`: a call makes a Unix stream socket.
socket.unix = setmetatable({ stream = tcp.stream, tcp = tcp.stream, dgram = udp.dgram, udp = udp.dgram }, {
  __call = tcp.stream,
})

--- Sleeps.
-- @tparam number seconds
function socket.sleep(seconds)
  if not tonumber(seconds) then
    error(("bad argument #1 to 'sleep' (number expected, got %s)"):format(type(seconds)), 2)
  end
  core.sleep(tonumber(seconds))
end

--- Leaves out the first n of its other arguments.
-- @tparam integer n
function socket.skip(n, ...) return select(n + 1, ...) end

-- ---- exceptions ---------------------------------------------------------------------------------------------

local Refusal = { __tostring = function(self) return tostring(self[1]) end }

--- Makes a function that returns its arguments if the first is true, and else calls the finaliser and raises the second
-- for `protect` to return.
-- @tparam[opt] function finaliser
-- @treturn function
function socket.newtry(finaliser)
  return function(...)
    if ... then return ... end
    if finaliser then finaliser() end
    local _, why = ...
    error(setmetatable({ why }, Refusal), 0)
  end
end

socket.try = socket.newtry()

local function finish(ok, ...)
  if ok then return ... end
  local err = ...
  if getmetatable(err) == Refusal then return nil, err[1] end
  error(err, 0)
end

--- Makes a function that returns nil and the message where the given one raises what a `try` has raised. Any other
-- error passes, and so does a cancel.
-- @tparam function fn
-- @treturn function
function socket.protect(fn)
  return function(...) return finish(pcall(fn, ...)) end
end

-- ---- connecting and serving ------------------------------------------------------------------------------------

local makers <const> = { inet = tcp.tcp4, inet6 = tcp.tcp6 }

--- Connects a TCP object.
-- @tparam string address
-- @tparam integer|string port
-- @tparam[opt] string local_address
-- @tparam[opt] integer|string local_port
-- @tparam[opt] string family "inet", "inet6"
-- @treturn tcp{client} or nil, message
function socket.connect(address, port, local_address, local_port, family)
  local sock, why = (makers[family] or tcp.tcp)()
  local ok
  if not sock then return nil, why end
  if local_address ~= nil then
    ok, why = sock:bind(local_address, local_port or 0)
    if not ok then return sock:close() and nil, why end
  end
  ok, why = sock:connect(address, port)
  if not ok then return sock:close() and nil, why end
  return sock
end

function socket.connect4(address, port, local_address, local_port)
  return socket.connect(address, port, local_address, local_port, "inet")
end

function socket.connect6(address, port, local_address, local_port)
  return socket.connect(address, port, local_address, local_port, "inet6")
end

local function serve(family, address, port, backlog)
  local sock, why = makers[family]()
  if not sock then return nil, why end
  local ok
  sock:setoption("reuseaddr", true)
  ok, why = sock:bind(address, port)
  if ok then ok, why = sock:listen(backlog) end
  if ok then return sock end
  sock:close()
  return nil, why
end

--- Binds a TCP object and listens.
-- @tparam string host "*": all addresses of IPv4
-- @tparam integer|string port
-- @tparam[opt=32] integer backlog
-- @treturn tcp{server} or nil, message
function socket.bind(host, port, backlog)
  local list, why = names.dns.getaddrinfo(host == "*" and "0.0.0.0" or host)
  if not list then return nil, why end
  local sock
  why = "no info on address"
  for _, a in ipairs(list) do
    sock, why = serve(a.family, a.addr, port, backlog)
    if sock then return sock end
  end
  return nil, why
end

-- ---- sources and sinks, after LTN12 ----------------------------------------------------------------------------

--- Makes a function that calls another one by its name in a table, "default" where the first argument is no name.
function socket.choose(list)
  return function(name, ...)
    if type(name) ~= "string" then return socket.choose(list)("default", name, ...) end
    local make = list[name]
    if not make then error(("unknown key (%s)"):format(name), 3) end
    return make(...)
  end
end

-- A function that can be waited for as its socket can.
local function of_socket(sock, fn)
  return setmetatable({
    getfd = function() return sock:getfd() end,
    dirty = function() return sock:dirty() end,
  }, { __call = function(_, ...) return fn(...) end })
end

socket.sinkt, socket.sourcet = {}, {}

socket.sinkt["close-when-done"] = function(sock)
  return of_socket(sock, function(chunk)
    if chunk then return sock:send(chunk) end
    sock:close()
    return 1
  end)
end

socket.sinkt["keep-open"] = function(sock)
  return of_socket(sock, function(chunk)
    if chunk then return sock:send(chunk) end
    return 1
  end)
end

socket.sourcet["by-length"] = function(sock, length)
  return of_socket(sock, function()
    if length <= 0 then return nil end
    local chunk, why = sock:receive(math.min(socket.BLOCKSIZE, length))
    if why then return nil, why end
    length = length - #chunk
    return chunk
  end)
end

socket.sourcet["until-closed"] = function(sock)
  local done = false
  return of_socket(sock, function()
    if done then return nil end
    local chunk, why, part = sock:receive(socket.BLOCKSIZE)
    if not why then return chunk end
    if why ~= "closed" then return nil, why end
    done = true
    sock:close()
    return part
  end)
end

socket.sinkt.default, socket.sourcet.default = socket.sinkt["keep-open"], socket.sourcet["until-closed"]
socket.sink, socket.source = socket.choose(socket.sinkt), socket.choose(socket.sourcet)

-- ---- in LuaSocket's place ---------------------------------------------------------------------------------------

local loader = require "aioloop.socket_load"
local own
socket.require, own = loader.new(socket)

--- Puts this module in LuaSocket's place (`socket`, `socket.core`, `socket.unix` of package.loaded), for whatever is
-- required from now on. LuaSocket's own parts, such as `socket.http`, will be loaded anew; who has the old ones keeps
-- them.
-- @treturn table this module
function socket.install() return loader.install(own) end

return socket
