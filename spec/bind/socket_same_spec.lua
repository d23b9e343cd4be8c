-- SPDX-License-Identifier: MIT
--- aio.socket beside LuaSocket: the same script of operations on both has the same results.
--
-- Way    script(s, log), with s = LuaSocket, in blocking mode; with s = aio.socket, in a task and without one
-- Keep   a script is its own peer, so it does only what a single thread can without waiting for itself for ever.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local real = require "socket"
real.unix = require "socket.unix"
local ltn12 = require "ltn12"
local tasks = require "spec.support.tasks"

local face = aio.socket

-- Numbers without regard to their subtype, objects by their class.
local function plain(value)
  if type(value) == "number" then return math.tointeger(value) or value end
  local class = (type(value) == "userdata" or type(value) == "table") and value.class
  if class then return class end
  if type(value) == "string" then value = value:gsub("^.-:%d+: ", ""):gsub("to '[^']*'", "to '?'") end
  return value
end

local function results_of(script, s)
  local lines, socks = {}, {}
  local function log(...)
    local line = table.pack(...)
    for i = 1, line.n do line[i] = plain(line[i]) end
    lines[#lines + 1] = line
  end
  script(s, log, function(sock)
    socks[#socks + 1] = sock
    return sock
  end)
  for _, sock in ipairs(socks) do sock:close() end
  return lines
end

local function port_of(sock) return math.tointeger(tonumber((select(2, sock:getsockname())))) end

local function new_pair(s, keep)
  local server = assert(s.bind("127.0.0.1", 0))
  local client = keep(assert(s.connect("127.0.0.1", port_of(server))))
  server:settimeout(5)
  local peer = keep(assert(server:accept()))
  server:close()
  client:settimeout(1)
  return client, peer
end

local scripts = {}

scripts["a master, without a socket yet"] = function(s, log, keep)
  local t = keep(s.tcp())
  log(t, t:getfd(), t:getfamily())
  log(t:getsockname())
  log(t:getpeername())
  log(t:setoption("reuseaddr", true))
  log(t:getoption "reuseaddr")
  log(t:listen())
  for _, method in ipairs { "receive", "send", "accept", "getstats", "setstats", "shutdown" } do
    log(pcall(t[method], t, "x"))
  end
  log(t:settimeout(1), t:settimeout(2, "t"))
  log(t:gettimeout())
  log(t:settimeout(-5), t:settimeout(nil, "t"))
  log(pcall(t.settimeout, t, 1, "x"))
  log(t:dirty())
  log(t:close(), t:close(), t:getfd(), t)
end

scripts["from master to server"] = function(s, log, keep)
  for _, make in ipairs { s.tcp, s.tcp4 } do
    local t = keep(make())
    log(t:bind("127.0.0.1", 0))
    log(t, t:getfamily(), t:getfd() > 2, (t:getsockname()))
    log(pcall(t.accept, t))
    log(t:listen(5))
    log(t)
    t:settimeout(0.001)
    log(t:accept())
    t:settimeout(0)
    log(t:accept())
    log(pcall(t.receive, t))
    log(t:close())
    log(t:accept())
    log(t, t:getfd())
  end
  local any = keep(s.tcp())
  log(any:bind("*", 0))
  log((any:getsockname()))
end

scripts["refusals"] = function(s, log, keep)
  local server = keep(assert(s.bind("127.0.0.1", 0)))
  local port = port_of(server)
  log(s.bind("127.0.0.1", port))
  log(s.bind("192.0.2.1", 0))
  log(s.bind("no.such.host.invalid", 0))
  local t = keep(s.tcp())
  log(t:bind("127.0.0.1", port))
  log(t)
  server:close()
  log(t:connect("127.0.0.1", port))
  log(t)
  log(s.connect("127.0.0.1", port))
  log(s.connect("no.such.host.invalid", port))
  log(s.connect("127.0.0.1", port, "192.0.2.1", 0))
  local zero = keep(s.tcp())
  zero:settimeout(0)
  log(zero:connect("127.0.0.1", port))
  log((zero:connect("127.0.0.1", port)))
end

scripts["connecting without time"] = function(s, log, keep)
  local server = keep(assert(s.bind("127.0.0.1", 0)))
  local t = keep(s.tcp())
  t:settimeout(0)
  log(t:connect("127.0.0.1", port_of(server)))
  log(t)
  local _, writable = s.select(nil, { t }, 1)
  log(#writable, writable[1] == t)
  log(t:connect("127.0.0.1", port_of(server)))
  log(t:connect("127.0.0.1", port_of(server)))
  log(t:send "x")
end

scripts["names of both ends"] = function(s, log, keep)
  local client, peer = new_pair(s, keep)
  local function ends(sock)
    local host, port, family = sock:getsockname()
    local other, other_port, other_family = sock:getpeername()
    return host, family, other, other_family, tonumber(port), tonumber(other_port)
  end
  local a, b = table.pack(ends(client)), table.pack(ends(peer))
  log(a[1], a[2], a[3], a[4], a[5] == b[6], a[6] == b[5])
  log(client, peer, client:getfamily())
  log(s.connect("127.0.0.1", 1, "127.0.0.1", 0))
  client:close()
  log(client:getsockname())
  log(client:getpeername())
end

scripts["lines, numbers and prefixes"] = function(s, log, keep)
  local client, peer = new_pair(s, keep)
  log(peer:send "abc\r\nde\rf\n\n\r\nrest of it")
  for _ = 1, 4 do log(client:receive()) end
  log(client:receive(2))
  log(client:receive("2", "abc"))
  log(client:receive(4, "abc"))
  log(client:receive(0, "abc"))
  log(client:receive(1.9))
  client:settimeout(0.001)
  log(client:receive("*l", "pre"))
  log(client:receive("*a", "pre"))
  log(client:receive(5, "pre"))
  log(client:receive(0))
  peer:send "more"
  log(client:receive(6, "p"))
  peer:send "and\rmore\r"
  log(client:receive("*l", "p"))
  for _, bad in ipairs { "l", "*x", {}, -1, "a", true } do log(pcall(client.receive, client, bad)) end
  log(pcall(client.receive, client, "*l", {}))
end

scripts["the end"] = function(s, log, keep)
  local client, peer = new_pair(s, keep)
  peer:send "line\nlast"
  peer:close()
  log(client:receive())
  log(client:receive())
  log(client:receive())
  log(client:receive(5, "p"))
  log(client:receive "*a")
  client, peer = new_pair(s, keep)
  peer:send "all of it"
  peer:close()
  log(client:receive("*a", "p"))
  log(client:receive("*a", "p"))
  log(client:receive(0))
  client, peer = new_pair(s, keep)
  peer:send "short"
  peer:close()
  log(client:receive(10, "p"))
  log(client:getstats() == 5)
  client:close()
  log(client:receive "*a")
  log(client:send "x")
  log(client:settimeout(1), client:shutdown(), client:close(), client:getfd(), client)
  log(client:setoption("keepalive", true))
  log(client:getoption "keepalive")
end

scripts["a connection that is reset"] = function(s, log, keep)
  local client, peer = new_pair(s, keep)
  peer:setoption("linger", { on = true, timeout = 0 })
  peer:close()
  log(client:receive())
  log(client:receive())
  log(client:send "x")
  client, peer = new_pair(s, keep)
  client:send "never read"
  peer:send "some"
  peer:close()
  log(client:receive "*a")
  client, peer = new_pair(s, keep)
  peer:close()
  client:send "x"
  real.sleep(0.01)
  log(client:send "x")
  log(client:send("xyz", 2))
end

scripts["what is sent"] = function(s, log, keep)
  local client, peer = new_pair(s, keep)
  for _, range in ipairs { {}, { 2 }, { 2, 3 }, { -2 }, { -3, -2 }, { 5 }, { 3, 1 }, { 0, 2 }, { -10, 2 }, { 1, 10 },
    { "2", "3" }, { 1.5 } } do
    log(client:send("abcd", table.unpack(range)))
  end
  log(client:send "", client:send(12))
  log(pcall(client.send, client))
  log(pcall(client.send, client, {}))
  log(pcall(client.send, client, "x", {}))
  client:shutdown "send"
  log(client:send "x")
  log(peer:receive "*a")
  log(peer:send "still")
  log(client:receive(5))
  log(pcall(client.shutdown, client, "x") == false)
  log(client:shutdown "receive")
  log(client:receive())
end

scripts["what does not fit"] = function(s, log, keep)
  local client, peer = new_pair(s, keep)
  client:settimeout(0.01)
  local text = ("0123456789abcdef"):rep(1 << 20)
  local got, why, last = client:send(text)
  log(got, why, last > 0 and last < #text)
  peer:settimeout(1)
  local head = peer:receive(last)
  log(head == text:sub(1, last))
  peer:settimeout(0)
  log(peer:receive(1))
end

scripts["options"] = function(s, log, keep)
  for _, option in ipairs { "keepalive", "reuseaddr", "reuseport", "tcp-nodelay" } do
    local t = keep(s.tcp4())
    log(option, t:getoption(option), t:setoption(option, true))
    log(t:getoption(option), t:setoption(option, false))
    log(t:getoption(option))
    log(pcall(t.setoption, t, option, 1))
    log(pcall(t.setoption, t, option))
  end
  for _, option in ipairs { "tcp-keepidle", "tcp-keepcnt", "tcp-keepintvl", "recv-buffer-size", "send-buffer-size" } do
    local t = keep(s.tcp4())
    log(option, t:getoption(option))
    log(t:setoption(option, 20))
    log(t:getoption(option))
  end
  local t = keep(s.tcp6() or s.tcp4())
  log(t, t:getfamily(), t:setoption("ipv6-v6only", true))
  t = keep(s.tcp4())
  log(t:setoption("linger", { on = true, timeout = 3 }))
  local linger = t:getoption "linger"
  log(linger.on, linger.timeout)
  log(pcall(t.setoption, t, "linger", true))
  log(pcall(t.setoption, t, "linger", { on = 1, timeout = 1 }))
  log(t:getoption "error")
  log(pcall(t.setoption, t, "error", true))
  log(pcall(t.setoption, t, "none", true))
  log(pcall(t.getoption, t, "none"))
  log(t:setoption("tcp-fastopen", 1), t:setoption("tcp-defer-accept", 1))
end

scripts["an error is kept as an option"] = function(s, log, keep)
  local server = keep(assert(s.bind("127.0.0.1", 0)))
  local port = port_of(server)
  server:close()
  local t = keep(s.tcp())
  t:settimeout(0)
  t:connect("127.0.0.1", port)
  s.select(nil, { t }, 1)
  log(t:getoption "error")
  log(t:getoption "error")
end

scripts["statistics"] = function(s, log, keep)
  local client, peer = new_pair(s, keep)
  client:send("abcdef", 2)
  peer:send "line\r\nmore"
  client:receive()
  client:receive(2)
  client:settimeout(0)
  client:receive(10)
  local received, sent, age = client:getstats()
  log(received, sent, age >= 0 and age < 5)
  log(client:setstats(1, 2, 30))
  received, sent, age = client:getstats()
  log(received, sent, age >= 30 and age < 35)
  log(client:setstats())
  log((client:getstats()))
end

scripts["select"] = function(s, log, keep)
  local client, peer = new_pair(s, keep)
  local function show(...)
    local r, w, why = s.select(...)
    log(#r, #w, why, r[1] == client, r[client], w[1] == client, w[client], select("#", s.select(...)))
  end
  show({}, {}, 0)
  show(nil, nil, 0.001)
  show({ client }, nil, 0)
  show({ client }, {}, 0.001)
  show({ client }, { client }, 0)
  show(nil, { client })
  peer:send "1\n2\n"
  show({ client }, { client }, 1)
  show({ client, peer }, nil, 1)
  client:receive()
  show({ client }, nil, 1) -- its buffer has something
  client:receive()
  show({ client }, nil, 0)
  peer:close()
  show({ client }, nil, 1)
  client:close()
  show({ client }, nil, 0)
  show({ {}, setmetatable({ getfd = function() return -1 end }, {}) }, nil, 0)
  log((pcall(s.select, 1)))
  log((pcall(s.select, {}, 1)))
  log((pcall(s.select, {}, {}, "x")))
end

scripts["a Unix socket"] = function(s, log, keep)
  local path = os.tmpname()
  os.remove(path)
  local server = keep(s.unix())
  log(server, s.unix.stream())
  log(server:bind(path))
  log(server:listen())
  log(server, server:getsockname() == path)
  local client = keep(s.unix.stream())
  log(client:connect(path))
  log(client)
  local peer = keep(server:accept())
  log(peer)
  log(client:send "hello\r\nyou")
  log(peer:receive())
  client:close()
  log(peer:receive())
  log(pcall(client.connect, client, path))
  server:close()
  log(io.open(path) == nil, os.remove(path)) -- it is there, and is no file
  log(keep(s.unix()):connect(path))
  log(keep(s.unix()):bind "/no/such/folder/socket")
  log(keep(s.unix()):connect(("x"):rep(200)) == nil)
end

scripts["exceptions"] = function(s, log)
  local try = s.newtry(function() log "finalised" end)
  log(try(1, nil, 3))
  log(s.protect(function(...)
    try(...)
    return "never"
  end)(nil, "why", 2))
  log(s.protect(function() s.try(false, "why") end)())
  log(s.protect(function() s.try() end)())
  log(s.protect(function() s.try(nil, { class = "table" }) end)())
  log(s.protect(function(...) return ... end)(1, nil, nil))
  log(select("#", s.protect(function() end)()))
  log(pcall(s.protect(error), "message", 0))
  log(pcall(s.protect(error), nil))
  log(pcall(s.protect(function() error({ class = "table" }) end)))
  log(pcall(s.protect(function() s.newtry(error)(nil) end)))
  log(type(select(2, pcall(s.try, nil, "why"))))
  log(s.protect(function() return s.protect(function() s.try(nil, "inner") end)() end)())
  log(s.skip(1, 2, 3), s.skip(3, 1, 2))
end

scripts["sources and sinks"] = function(s, log, keep)
  local client, peer = new_pair(s, keep)
  local function pump(source, sink)
    log(ltn12.pump.all(source, sink))
  end
  local function collect(source)
    local pieces = {}
    log(ltn12.pump.all(source, (ltn12.sink.table(pieces))))
    log(table.concat(pieces))
  end
  pump(ltn12.source.string(("x"):rep(5000)), s.sink("keep-open", peer))
  collect(s.source("by-length", client, 3000))
  collect(s.source("by-length", client, 2000))
  collect(s.source("by-length", client, 0))
  pump(ltn12.source.string "the end", s.sink("close-when-done", peer))
  collect(s.source("until-closed", client))
  log(client:getfd(), peer:getfd())
  client, peer = new_pair(s, keep)
  log(s.sink(peer):getfd() == peer:getfd(), s.source(client):dirty())
  peer:send "short"
  peer:close()
  local source = s.source("by-length", client, 10)
  log(source())
  log(pcall(s.sink, "none", peer))
  local choose = s.choose { default = function(...) return "default", ... end, x = function(...) return "x", ... end }
  log(choose("x", 1, 2))
  log(choose(client, 2))
end

scripts["names and addresses"] = function(s, log)
  local function show(first, resolved)
    if not resolved or type(resolved) == "string" then return log(first, resolved) end
    log(first, resolved.name, table.concat(resolved.ip, " "), type(resolved.alias))
  end
  show(s.dns.toip "localhost")
  show(s.dns.toip "127.0.0.1")
  show(s.dns.tohostname "127.0.0.1")
  show(s.dns.tohostname "localhost")
  show(s.dns.toip "no.such.host.invalid")
  show(s.dns.tohostname "no.such.host.invalid")
  log(s.dns.getaddrinfo "no.such.host.invalid")
  for _, host in ipairs { "localhost", "127.0.0.1", "::1" } do
    local list = assert(s.dns.getaddrinfo(host))
    for _, a in ipairs(list) do log(a.family, a.addr) end
  end
  local found, service = s.dns.getnameinfo("127.0.0.1", "80")
  log(table.concat(found, " "), service)
  log(table.concat(s.dns.getnameinfo "localhost", " "))
  log(s.dns.getnameinfo "no.such.host.invalid")
  log((pcall(s.dns.getnameinfo)))
  log(s.dns.gethostname())
  log(math.abs(s.gettime() - os.time()) < 5, select("#", s.sleep(0)), select("#", s.sleep(-1)))
end

-- Any number of operations on a pair, drawn by lot.
local function random_script(seed)
  return function(s, log, keep)
    local state = seed
    local function draw(n) -- another generator in between would not disturb it
      state = (state * 1103515245 + 12345) % 2147483648
      return state // 65536 % n
    end
    local function text()
      local letters = {}
      for i = 1, draw(30) do letters[i] = ("abc\r\n"):sub(draw(5) + 1, -1):sub(1, 1) end
      return table.concat(letters)
    end
    local client, peer = new_pair(s, keep)
    client:settimeout(0.002)
    local operations = {
      function() return peer:send(text()) end,
      function() return peer:send(text(), draw(20) - 10, draw(20) - 10) end,
      function() return client:receive() end,
      function() return client:receive("*l", text()) end,
      function() return client:receive(1 + draw(20)) end,
      function() return client:receive(draw(20), text() .. "x") end,
      function() return draw(4) == 0 and client:receive "*a" end,
      function() return client:send(text()) end,
      function() return peer:settimeout(0), peer:receive(draw(10) + 1) end,
      function() return client:settimeout(draw(2) / 500, draw(2) == 0 and "b" or "t") end,
      function() return #s.select({ client }, { client }, 0) end,
      function() return draw(30) == 0 and peer:shutdown "send" end,
      function() return draw(50) == 0 and peer:close() end,
      function() return draw(50) == 0 and client:close() end,
    }
    for _ = 1, 100 do
      local i = draw(#operations) + 1
      log(i, operations[i]())
      if client:getfd() < 0 or peer:getfd() < 0 then break end -- LuaSocket's buffer outlives its socket
    end
    client:settimeout(0.002)
    if client:getfd() >= 0 then log(client:receive "*a") end
    log((client:getstats()))
    log((select(2, client:getstats())))
  end
end

for seed = 1, 20 do scripts["drawn by lot, seed " .. seed] = random_script(seed) end

describe("aio.socket does as LuaSocket:", function()
  local names, expected = {}, {}
  for name in pairs(scripts) do names[#names + 1] = name end
  table.sort(names)

  -- Once each, and before anything is counted.
  setup(function()
    for _, name in ipairs(names) do expected[name] = results_of(scripts[name], real) end
    tasks.collect()
  end)

  local function check(name, got)
    for i, line in ipairs(expected[name]) do assert.same(line, got[i], "in line " .. i) end
    assert.equal(#expected[name], #got)
    assert.is_true(#got > 0)
  end

  drivers.each(function(d)
    for _, name in ipairs(names) do
      it(name, function()
        local ctx = d.context()
        tasks.run(d, ctx, aio.yield)
        local before = fds.count()
        check(name, tasks.run(d, ctx, results_of, scripts[name], face))
        tasks.collect()
        assert.equal(before, fds.count())
        tasks.is_quiet(ctx)
      end)
    end
  end)

  for _, name in ipairs(names) do
    it(name .. ", without a task", function() check(name, results_of(scripts[name], face)) end)
  end
end)
