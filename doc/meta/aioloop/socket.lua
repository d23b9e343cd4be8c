---@meta aioloop.socket

-- The interface is LuaSocket's, and its manual describes it; `aio.socket` in a script.

---@class aioloop.socket.object
---@field class string "tcp{master}", "tcp{client}", "tcp{server}"; "unixstream{…}"
local object = {}
---@return aioloop.socket.object? client, string? why
function object:accept() end
---@param host string "*": all; or a path
---@param port? integer|string
---@return integer? ok, string? why
function object:bind(host, port) end
---@return integer
function object:close() end
---@param host string or a path
---@param port? integer|string
---@return integer? ok, string? why
function object:connect(host, port) end
---@return boolean
function object:dirty() end
---@return "inet4"|"inet6"
function object:getfamily() end
---@return integer
function object:getfd() end
---@param option string
---@return any value, string? why
function object:getoption(option) end
---@return string? host, integer|string? port, string? family
function object:getpeername() end
---@return string? host, integer|string? port, string? family
function object:getsockname() end
---@return integer received, integer sent, number age
function object:getstats() end
---@return number block, number total
function object:gettimeout() end
---@param backlog? integer
---@return integer? ok, string? why
function object:listen(backlog) end
---@param pattern? "*l"|"*a"|integer
---@param prefix? string
---@return string? data, string? why, string? part
function object:receive(pattern, prefix) end
---@param data string
---@param i? integer
---@param j? integer
---@return integer? last, string? why, integer? last_sent
function object:send(data, i, j) end
---@param fd integer
function object:setfd(fd) end
---@param option string
---@param value any
---@return integer? ok, string? why
function object:setoption(option, value) end
function object:setpeername(host, port) end
function object:setsockname(host, port) end
---@param received? integer
---@param sent? integer
---@param age? number
---@return integer
function object:setstats(received, sent, age) end
---@param value? number seconds
---@param mode? "b"|"t"
---@return integer
function object:settimeout(value, mode) end
---@param how? "both"|"send"|"receive"
---@return integer
function object:shutdown(how) end

---@class aioloop.socket.datagrams
local datagrams = {}
---@param host string
---@param port? integer|string
---@return integer? ok, string? why
function datagrams:bind(host, port) end
---@return integer
function datagrams:close() end
---@param host string
---@param port? integer|string
---@return integer? ok, string? why
function datagrams:connect(host, port) end
---@return boolean
function datagrams:dirty() end
---@return "inet4"|"inet6"
function datagrams:getfamily() end
---@return integer
function datagrams:getfd() end
---@param option string
---@return any value, string? why
function datagrams:getoption(option) end
---@return string? host, integer|string? port, string? family
function datagrams:getpeername() end
---@return string? host, integer|string? port, string? family
function datagrams:getsockname() end
---@return number block, number total
function datagrams:gettimeout() end
---@param size? integer
---@return string? data, string? why
function datagrams:receive(size) end
---@param size? integer
---@return string? data, string? host, integer? port
function datagrams:receivefrom(size) end
---@param data string
---@return integer? sent, string? why
function datagrams:send(data) end
---@param data string
---@param host string
---@param port integer
---@return integer? sent, string? why
function datagrams:sendto(data, host, port) end
---@param fd integer
function datagrams:setfd(fd) end
---@param option string
---@param value any
---@return integer? ok, string? why
function datagrams:setoption(option, value) end
---@param host string "*": none
---@param port? integer|string
---@return integer? ok, string? why
function datagrams:setpeername(host, port) end
---@param host string
---@param port integer|string
---@return integer? ok, string? why
function datagrams:setsockname(host, port) end
---@param value? number seconds
---@param mode? "b"|"t"
---@return integer
function datagrams:settimeout(value, mode) end

---@class aioloop.socket.dns
local dns = {}
---@param host string
---@return {family: string, addr: string}[]? list, string? why
function dns.getaddrinfo(host) end
---@return string
function dns.gethostname() end
---@param host? string
---@param service? string|integer
---@return string[]|string? names, string? service
function dns.getnameinfo(host, service) end
---@param host string
---@return string? name, table|string? resolved
function dns.tohostname(host) end
---@param host string
---@return string? address, table|string? resolved
function dns.toip(host) end

---@class aioloop.socket
---@field dns aioloop.socket.dns
---@field unix {stream: fun(): aioloop.socket.object, dgram: fun(): aioloop.socket.datagrams}
---@field BLOCKSIZE integer
---@field sinkt table<string, function>
---@field sourcet table<string, function>
local socket = {}
---@param host string
---@param port integer|string
---@param backlog? integer
---@return aioloop.socket.object? server, string? why
function socket.bind(host, port, backlog) end
---@param list table<string, function>
---@return function
function socket.choose(list) end
---@param address string
---@param port integer|string
---@param local_address? string
---@param local_port? integer|string
---@param family? "inet"|"inet6"
---@return aioloop.socket.object? client, string? why
function socket.connect(address, port, local_address, local_port, family) end
function socket.connect4(address, port, local_address, local_port) end
function socket.connect6(address, port, local_address, local_port) end
---@return number seconds since 1970
function socket.gettime() end
---@return aioloop.socket
function socket.install() end
---@param finaliser? function
---@return function
function socket.newtry(finaliser) end
---@param fn function
---@return function
function socket.protect(fn) end
---@param name string
---@return any module, string? path
function socket.require(name) end
---@param readers? any[] objects with getfd()
---@param writers? any[]
---@param timeout? number seconds
---@return table readers, table writers, string? why
function socket.select(readers, writers, timeout) end
---@param name string|any
---@param ... any
---@return function
function socket.sink(name, ...) end
---@param n integer
---@param ... any
---@return any ...
function socket.skip(n, ...) end
---@param seconds number
function socket.sleep(seconds) end
---@param name string|any
---@param ... any
---@return function
function socket.source(name, ...) end
---@return aioloop.socket.object
function socket.tcp() end
---@return aioloop.socket.object? object, string? why
function socket.tcp4() end
---@return aioloop.socket.object? object, string? why
function socket.tcp6() end
---@param ... any
---@return any ...
function socket.try(...) end
---@return aioloop.socket.datagrams? object, string? why
function socket.udp() end
---@return aioloop.socket.datagrams? object, string? why
function socket.udp4() end
---@return aioloop.socket.datagrams? object, string? why
function socket.udp6() end

return socket
