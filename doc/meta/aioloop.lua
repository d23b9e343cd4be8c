---@meta aioloop
-- SPDX-License-Identifier: MIT
-- What lua-language-server needs to know of the module; never loaded by a program.
error("not a module: for editors only")

---@class aioloop.options
---@field name? string
---@field backend? "auto"|"epoll"|"poll"|"io_uring"
---@field poll_max_ns? number
---@field poll_grow? number
---@field poll_shrink? number
---@field clock? "monotonic"|"realtime"|"boottime"|"virtual"
---@field shuffle? number
---@field ring_entries? integer
---@field aio_batch? integer

---@class aioloop.context
local context = {}
---@param wait? boolean|number true: until progress; false: not at all; a number: seconds at most
---@return boolean progress
function context:poll(wait) end
---@param fn? function
---@param ... any
---@return any ...
function context:run(fn, ...) end
function context:stop() end
function context:notify() end
function context:close() end
function context:acquire() end
function context:release() end
---@return table
function context:stats() end
---@return integer? fd, string? message, integer? errno
function context:pollfd() end
---@return string
function context:events() end
---@return number? seconds
function context:timeout() end
---@param parameters {max_ns?: number, grow?: number, shrink?: number}
function context:set_polling(parameters) end
---@param fn? fun(err: any, where: string)
function context:on_error(fn) end
---@param main_context? lightuserdata
---@param priority? integer
---@return boolean? ok, string? message, integer? errno
function context:attach(main_context, priority) end
function context:detach() end
---@return lightuserdata? source, string? message, integer? errno
function context:source() end
---@param fn function
---@param ... any
function context:schedule(fn, ...) end
---@param fn function
---@param ... any
---@return aioloop.bh
function context:bh(fn, ...) end
---@param fn function|table
---@param ... any
---@return aioloop.timer
function context:timer(fn, ...) end
---@param fd any integer, file, or an object with getfd, fileno or pollfd
---@param callbacks {read?: function, write?: function, poll?: fun(): boolean}
---@return aioloop.watch? watch, string? message, integer? errno
function context:watch(fd, callbacks) end
---@param fn function
---@param ... any
---@return aioloop.task
function context:spawn(fn, ...) end
---@return aioloop.task[]
function context:tasks() end
---@param min integer
---@param max integer
---@return true? ok, string? message, integer? errno
function context:set_threads(min, max) end
---@param signo integer|string
---@param fn function
---@param ... any
---@return aioloop.signal? signal, string? message, integer? errno
function context:signal(signo, fn, ...) end
---@param co aioloop.task|thread
---@param ... any
---@return true
function context:co_schedule(co, ...) end

---@class aioloop.bh
local bh = {}
function bh:schedule() end
function bh:schedule_idle() end
function bh:cancel() end
---@return boolean
function bh:scheduled() end
function bh:close() end
---@return aioloop.bh
function bh:ref() end
---@return aioloop.bh
function bh:unref() end

---@class aioloop.timer
local timer = {}
---@param after number seconds
---@param every? number seconds
---@return aioloop.timer
function timer:arm(after, every) end
---@param t number seconds on its clock
---@return aioloop.timer
function timer:arm_at(t) end
function timer:disarm() end
---@return boolean
function timer:armed() end
---@return number? seconds
function timer:remaining() end
---@return integer
function timer:missed() end
function timer:close() end
---@return aioloop.timer
function timer:ref() end
---@return aioloop.timer
function timer:unref() end

---@class aioloop.watch
local watch = {}
---@param callbacks {read?: function, write?: function, poll?: fun(): boolean}
---@return aioloop.watch? watch, string? message, integer? errno
function watch:set(callbacks) end
function watch:close() end
---@return aioloop.watch
function watch:ref() end
---@return aioloop.watch
function watch:unref() end

---@class aioloop.signal
local signal = {}
function signal:close() end
---@return aioloop.signal
function signal:ref() end
---@return aioloop.signal
function signal:unref() end

---@class aioloop.group
local group = {}
---@param fn function
---@param ... any
---@return aioloop.task
function group:spawn(fn, ...) end
---@param reason? any
function group:cancel(reason) end
---@param timeout? number
---@return boolean? ok, string? why
function group:wait(timeout) end
---@return table errors
function group:errors() end

---@class aioloop.mutex
local mutex = {}
---@param timeout? number
---@return boolean? ok, string? why
function mutex:lock(timeout) end
function mutex:unlock() end
---@param timeout? number
---@return aioloop.mutex? held, string? why
function mutex:guard(timeout) end
---@return boolean
function mutex:locked() end

---@class aioloop.rwlock
local rwlock = {}
---@param timeout? number
---@return boolean? ok, string? why
function rwlock:rdlock(timeout) end
---@param timeout? number
---@return boolean? ok, string? why
function rwlock:wrlock(timeout) end
function rwlock:unlock() end
---@param mode "r"|"w"
---@param timeout? number
---@return aioloop.rwlock? held, string? why
function rwlock:guard(mode, timeout) end
---@param timeout? number
---@return boolean? ok, string? why
function rwlock:upgrade(timeout) end
---@return true
function rwlock:downgrade() end

---@class aioloop.condition
local condition = {}
---@param m aioloop.mutex
---@param timeout? number
---@return boolean? ok, string? why
function condition:wait(m, timeout) end
function condition:signal() end
function condition:broadcast() end

---@class aioloop.semaphore
local semaphore = {}
---@param timeout? number
---@return boolean? ok, string? why
function semaphore:acquire(timeout) end
function semaphore:release() end

---@class aioloop.event
local event = {}
---@param timeout? number
---@return boolean? ok, string? why
function event:wait(timeout) end
function event:set() end
function event:clear() end
---@return boolean
function event:is_set() end

---@class aioloop.queue
local queue = {}
---@param value any
---@param timeout? number
---@return boolean? ok, string? why
function queue:put(value, timeout) end
---@param timeout? number
---@return any value, string? why
function queue:get(timeout) end
function queue:close() end
---@return fun(): any
function queue:iter() end

---@class aioloop.task
local task = {}
---@param timeout? number seconds
---@return boolean? ok, any ...
function task:join(timeout) end
---@param reason? any
---@return boolean
function task:cancel(reason) end
---@return {id: integer, parent?: integer, name?: string, status: string, waiting?: string, since?: number}
function task:info() end
---@return "scheduled"|"running"|"waiting"|"ended"|"failed"|"cancelled"
function task:status() end
---@param name? string
---@return string|aioloop.task|nil
function task:name(name) end
---@return string
function task:traceback() end
---@param ... any
---@return boolean? ok, string? message
function task:wake(...) end
---@return aioloop.task
function task:keep() end
---@return aioloop.task
function task:ref() end
---@return aioloop.task
function task:unref() end

---@alias aioloop.engine "auto"|"io_uring"|"linux-aio"|"threads"

---@class aioloop.file
local file = {}
---@param ... string|integer
---@return string|number? piece, any ...
function file:read(...) end
---@param ... string|number|aioloop.buffer
---@return aioloop.file? file, string? message, integer? errno
function file:write(...) end
---@param n integer|aioloop.buffer
---@param offset integer
---@return string|integer? data, string? message, integer? errno
function file:pread(n, offset) end
---@param data string|number|aioloop.buffer
---@param offset integer
---@return integer? written, string? message, integer? errno
function file:pwrite(data, offset) end
---@param whence? "set"|"cur"|"end"
---@param offset? integer
---@return integer? position, string? message, integer? errno
function file:seek(whence, offset) end
---@param ... string|integer
---@return fun(): string|number?, any ...
function file:lines(...) end
---@return boolean? ok, string? message, integer? errno
function file:sync() end
---@return boolean? ok, string? message, integer? errno
function file:datasync() end
---@param size integer
---@return boolean? ok, string? message, integer? errno
function file:truncate(size) end
---@return table? stat, string? message, integer? errno
function file:stat() end
---@return "io_uring"|"linux-aio"|"threads"
function file:engine() end
---@return integer
function file:getfd() end
---@return boolean
function file:close() end

---@class aioloop.buffer
---@operator len: integer
local buffer = {}
---@param s string
---@return aioloop.buffer
function buffer:set(s) end
---@param i? integer
---@param j? integer
---@return string
function buffer:tostring(i, j) end
---@return integer
function buffer:capacity() end

---@alias aioloop.format string|integer|{until_: string, max?: integer, keep?: boolean}

---@class aioloop.stream
local stream = {}
---@param ... aioloop.format
---@return string|number? piece, any ...
function stream:read(...) end
---@param max? integer
---@return string? data, string? message, integer? errno
function stream:readsome(max) end
---@param buf aioloop.buffer
---@return integer? n, string? message, integer? errno
function stream:readinto(buf) end
---@return integer
function stream:buffered() end
---@param ... aioloop.format
---@return fun(): string|number?, any ...
function stream:lines(...) end
---@param ... string|number|aioloop.buffer
---@return aioloop.stream? stream, string? message, integer? errno
function stream:write(...) end
---@param data string|number|aioloop.buffer
---@param i? integer
---@param j? integer
---@return integer? n, string? message, integer? errno
function stream:writesome(data, i, j) end
---@param how? "w"
---@return aioloop.stream? stream, string? message, integer? errno
function stream:shutdown(how) end
---@param params table|userdata
---@return aioloop.stream? stream, string? message, integer? errno
function stream:starttls(params) end
---@return table? session
function stream:tls() end
---@param seconds? number
---@return aioloop.stream
function stream:settimeout(seconds) end
---@param n integer
---@return aioloop.stream
function stream:setbound(n) end
---@return string? host, integer|string? port, integer? errno
function stream:getpeername() end
---@return string? host, integer|string? port, integer? errno
function stream:getsockname() end
---@return integer
function stream:getfd() end
---@param fd integer
---@return aioloop.stream? stream, string? message, integer? errno
function stream:setfd(fd) end
---@return boolean
function stream:close() end

---@class aioloop.listen_options
---@field backlog? integer
---@field reuseaddr? boolean
---@field reuseport? boolean
---@field nodelay? boolean
---@field keepalive? boolean|integer
---@field v6only? boolean
---@field timeout? number

---@class aioloop.server
local server = {}
---@param timeout? number
---@return aioloop.stream? client, string? message, integer? errno
function server:accept(timeout) end
---@return fun(): aioloop.stream?
function server:clients() end
---@return string? host, integer|string? port, integer? errno
function server:getsockname() end
---@return integer
function server:getfd() end
---@param fd integer
---@return aioloop.server? server, string? message, integer? errno
function server:setfd(fd) end
---@return boolean
function server:close() end

---@class aioloop.udp_options
---@field family? "inet"|"inet6"
---@field broadcast? boolean
---@field reuseaddr? boolean
---@field reuseport? boolean
---@field v6only? boolean
---@field ttl? integer
---@field multicast_ttl? integer
---@field multicast_loop? boolean
---@field multicast_interface? string|integer
---@field sndbuf? integer bytes
---@field rcvbuf? integer bytes
---@field timeout? number seconds

---@class aioloop.udp
local udp = {}
---@param host string
---@param port? integer|string
---@return aioloop.udp? self, string? message, integer? errno
function udp:bind(host, port) end
---@param host string
---@param port? integer|string
---@return aioloop.udp? self, string? message, integer? errno
function udp:connect(host, port) end
---@param data string|number|aioloop.buffer
---@param host string
---@param port? integer|string
---@return aioloop.udp? self, string? message, integer? errno
function udp:sendto(data, host, port) end
---@param data string|number|aioloop.buffer
---@return aioloop.udp? self, string? message, integer? errno
function udp:send(data) end
---@param max? integer bytes
---@return string? data, string host, integer? port, integer? length the true one, of a datagram that was cut
function udp:recvfrom(max) end
---@param max? integer bytes
---@return string? data, string host, integer? port, integer? length the true one, of a datagram that was cut
function udp:recv(max) end
---@param buf aioloop.buffer
---@return integer? n, string host, integer? port, integer? length the true one, of a datagram that was cut
function udp:recvinto(buf) end
---@param seconds? number
---@return aioloop.udp
function udp:settimeout(seconds) end
---@param group string
---@param interface? string|integer
---@return aioloop.udp? self, string? message, integer? errno
function udp:join(group, interface) end
---@param group string
---@param interface? string|integer
---@return aioloop.udp? self, string? message, integer? errno
function udp:leave(group, interface) end
---@return string? host, integer|string? port, integer? errno
function udp:getsockname() end
---@return string? host, integer|string? port, integer? errno
function udp:getpeername() end
---@return integer
function udp:getfd() end
---@return boolean
function udp:close() end

---@class aioloop.clock
local clock = {}
function clock:pause() end
function clock:resume() end
---@param seconds number
function clock:advance(seconds) end
---@param on boolean
---@return boolean before
function clock:autojump(on) end
---@return number seconds
function clock:now() end

---@class aioloop
---@field version string
---@field clock {virtual: aioloop.clock}
---@field socket aioloop.socket
---@overload fun(fn?: function, ...: any): any
local aio = {}
---@param options? aioloop.options
---@return aioloop.context? ctx, string? message, integer? errno
function aio.context(options) end
---@return aioloop.context
function aio.default() end
---@return aioloop.context
function aio.current() end
---@param fn? function
---@param ... any
---@return any ...
function aio.run(fn, ...) end
function aio.stop() end
---@return number seconds
function aio.now() end
---@return integer ns
function aio.now_ns() end
---@return number seconds since 1970
function aio.time() end
---@param x any
---@return "context"|"bh"|"timer"|"watch"|"task"|"clock"|nil
function aio.type(x) end
---@param fn function
---@param ... any
---@return aioloop.task
function aio.spawn(fn, ...) end
---@param task aioloop.task
---@return any ...
function aio.await(task) end
---@param seconds number
---@return boolean? ok, string? message
function aio.sleep(seconds) end
---@param t number seconds on the clock of aio.now
---@return boolean? ok, string? message
function aio.sleep_until(t) end
function aio.yield() end
---@return aioloop.task?
function aio.self() end
---@param timeout? number seconds
---@return any ...
function aio.suspend(timeout) end
---@param co aioloop.task|thread
---@param ... any
---@return boolean? ok, string? message
function aio.wake(co, ...) end
---@param co aioloop.task|thread
---@param ... any
---@return true
function aio.enter(co, ...) end
---@param fd any integer, file, or an object with getfd, fileno or pollfd
---@param timeout? number seconds
---@return boolean? ok, string? message, integer? errno
function aio.wait_readable(fd, timeout) end
---@param fd any integer, file, or an object with getfd, fileno or pollfd
---@param timeout? number seconds
---@return boolean? ok, string? message, integer? errno
function aio.wait_writable(fd, timeout) end
---@return aioloop.group
function aio.group() end
---@return aioloop.mutex
function aio.mutex() end
---@return aioloop.rwlock
function aio.rwlock() end
---@return aioloop.condition
function aio.condition() end
---@param n integer
---@return aioloop.semaphore
function aio.semaphore(n) end
---@return aioloop.event
function aio.event() end
---@param capacity? integer
---@return aioloop.queue
function aio.queue(capacity) end
---@param seconds number
---@param fn function
---@param ... any
---@return any ...
function aio.timeout(seconds, fn, ...) end
---@param fn function
---@param ... any
---@return any ...
function aio.shield(fn, ...) end
---@param err any
---@return boolean
function aio.is_cancelled(err) end
---@param fn function
---@return function
function aio.wrap(fn) end
---@param ... function
---@return any ...
function aio.gather(...) end
---@param ... function
---@return integer index, any ...
function aio.race(...) end
---@param list any[]
---@param fn fun(element: any, index: integer): any
---@param limit? integer
---@return any[]
function aio.map(list, fn, limit) end
---@param fn function
---@param ... any
---@return any ...
function aio.from_callback(fn, ...) end
---@return aioloop.task[]
function aio.tasks() end
---@param file? file*
---@return integer
function aio.dump(file) end
---@param signo integer|string
---@param timeout? number
---@return boolean? ok, string? why, integer? errno
function aio.wait_signal(signo, timeout) end
---@param signo integer|string
---@param file? file*
---@return aioloop.signal? signal, string? message, integer? errno
function aio.dump_on(signo, file) end
---@param fn function
---@param ... any
---@return any ...
function aio.work(fn, ...) end
---@param host? string
---@param service? string|integer
---@param options? {family?: "inet"|"inet6", socktype?: "stream"|"dgram", passive?: boolean, canonname?: boolean}
---@return {family: string, addr: string, port: integer, socktype: string}[]? list, string? message, integer? code
function aio.getaddrinfo(host, service, options) end
---@param addr string
---@param port? integer
---@return string? host, string? service, integer? code
function aio.getnameinfo(addr, port) end
---@param path string
---@param mode? string
---@param options? {engine?: aioloop.engine, direct?: boolean, perm?: integer}
---@return aioloop.file? file, string? message, integer? errno
function aio.open(path, mode, options) end
---@param n integer
---@return aioloop.buffer
function aio.buffer(n) end
---@param path string
---@return string? data, string? message, integer? errno
function aio.readfile(path) end
---@param path string
---@param data string|number|aioloop.buffer
---@return boolean? ok, string? message, integer? errno
function aio.writefile(path, data) end
---@param host string
---@param port? integer|string|table
---@param options? {timeout?: number, nodelay?: boolean, keepalive?: boolean|integer}
---@return aioloop.stream? stream, string? message, integer? errno
function aio.connect(host, port, options) end
---@param host? string
---@param port? integer|string|table
---@param options? aioloop.listen_options
---@return aioloop.server? server, string? message, integer? errno
function aio.listen(host, port, options) end
---@return aioloop.stream? r, aioloop.stream|string? w, integer? errno
function aio.pipe() end
---@return aioloop.stream? a, aioloop.stream|string? b, integer? errno
function aio.socketpair() end
---@param fd any integer, file, or an object with getfd, fileno or pollfd
---@return aioloop.stream? stream, string? message, integer? errno
function aio.stream(fd) end
---@param options? aioloop.udp_options
---@return aioloop.udp? sock, string? message, integer? errno
function aio.udp(options) end

return aio
