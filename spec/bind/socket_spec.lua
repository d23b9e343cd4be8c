-- SPDX-License-Identifier: MIT
--- aio.socket on the loop: who waits holds up nobody, and what ends a wait leaves nothing behind.

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local jobs = require "spec.support.jobs"
local real = require "socket"
local tasks = require "spec.support.tasks"

local socket = aio.socket
local run, finish, settle = tasks.run, tasks.finish, tasks.settle
local pack = table.pack

local function port_of(sock) return (select(2, sock:getsockname())) end

local function new_server(backlog) return assert(socket.bind("127.0.0.1", 0, backlog)) end

local function new_pair(server)
  local own = server or new_server()
  local client = assert(socket.connect("127.0.0.1", port_of(own)))
  local peer = assert(own:accept())
  if not server then own:close() end
  return client, peer
end

-- A server that has no room for another connection.
local function full_server(ctx, d)
  local server, clients = new_server(0), {}
  run(d, ctx, function()
    for i = 1, 10 do
      clients[i] = socket.tcp()
      clients[i]:settimeout(0.05)
      if not clients[i]:connect("127.0.0.1", port_of(server)) then break end
    end
  end)
  return server, setmetatable({}, { __close = function()
    for _, client in ipairs(clients) do client:close() end
    server:close()
  end })
end

-- Every wait: prepare(ctx, d) -> what it waits with, close(); wait(o) -> its results; closed: those when o was closed.
local function pair_waits(wait, closed, more)
  return {
    prepare = function(ctx, d)
      local client, peer = run(d, ctx, new_pair)
      if more then run(d, ctx, more, client, peer) end
      return { sock = client, peer = peer }
    end,
    wait = wait, closed = closed,
  }
end

-- Until nothing more goes in, though the kernel may still make room.
local function fill(client)
  local some, idle = ("x"):rep(1 << 20), 0
  client:settimeout(0.001)
  repeat
    local _, _, n = client:send(some)
    idle = n == 0 and idle + 1 or 0
  until idle == 5
  client:settimeout()
end

local waits = {
  ["receive a line"] = pair_waits(function(o) return o.sock:receive() end, { n = 3, nil, "closed", "" }),
  ["receive bytes"] = pair_waits(function(o) return o.sock:receive(5, "p") end, { n = 3, nil, "closed", "p" }),
  ["receive all"] = pair_waits(function(o) return o.sock:receive "*a" end, { n = 3, nil, "closed", "" }),
  ["send"] = pair_waits(function(o) return o.sock:send "abc" end, { n = 3, nil, "closed", 0 }, fill),
  ["select"] = {
    prepare = function(ctx, d)
      local client, peer = run(d, ctx, new_pair)
      return { sock = client, peer = peer }
    end,
    wait = function(o)
      local r, w, why = socket.select({ o.sock }, nil)
      return r[1] == o.sock, #w, why
    end,
    closed = { n = 3, true, 0, nil },
  },
  ["accept"] = {
    prepare = function() return { sock = new_server() } end,
    wait = function(o) return o.sock:accept() end,
    closed = { n = 2, nil, "closed" },
  },
  ["connect"] = {
    prepare = function(ctx, d)
      local server, clients = full_server(ctx, d)
      return { sock = socket.tcp4(), port = port_of(server), clients = clients }
    end,
    wait = function(o) return o.sock:connect("127.0.0.1", o.port) end,
    closed = { n = 2, nil, "closed" },
  },
  ["receive a datagram"] = {
    prepare = function()
      local udp = assert(socket.udp4())
      assert(udp:setsockname("127.0.0.1", 0))
      return { sock = udp }
    end,
    wait = function(o) return o.sock:receive() end,
    closed = { n = 2, nil, "closed" },
  },
}

local function drop(o)
  o.sock:close()
  if o.peer then o.peer:close() end
  if o.clients then getmetatable(o.clients).__close() end
end

local is_timeout = {
  ["select"] = function(got) assert.same({ n = 4, true, false, 0, "timeout" }, got) end,
}

describe("aio.socket", function()
  drivers.each(function(d)
    before_each(tasks.collect)

    for name, kind in pairs(waits) do
      describe(name, function()
        local ctx, o, before
        before_each(function()
          ctx = d.context()
          tasks.run(d, ctx, aio.yield)
          before = fds.count()
          o = kind.prepare(ctx, d)
        end)

        local function over()
          drop(o)
          o = nil
          tasks.collect()
          assert.equal(before, fds.count())
          tasks.is_quiet(ctx)
        end

        it("holds up nobody", function()
          local ticks = 0
          local waiting = ctx:spawn(kind.wait, o)
          run(d, ctx, function()
            for _ = 1, 10 do
              aio.sleep(0.0001)
              ticks = ticks + 1
            end
          end)
          assert.equal("waiting", waiting:status())
          waiting:cancel()
          finish(d, ctx, { waiting })
          over()
        end)

        it("ends by a cancel, also within protect and try", function()
          local finalised, after
          local try = socket.newtry(function() finalised = true end)
          local waiting = ctx:spawn(socket.protect(function()
            local got = pack(try(kind.wait(o)))
            after = got
          end))
          settle(d, ctx, { waiting })
          waiting:cancel "enough"
          finish(d, ctx, { waiting })
          local ok, err = waiting:join()
          assert.is_false(ok)
          assert.is_true(aio.is_cancelled(err))
          assert.equal("enough", err.reason)
          assert.same({}, { after, finalised })
          over()
        end)

        it("ends by the limit of a scope", function()
          local got = tasks.join(d, ctx, aio.timeout, 0.001, socket.protect(kind.wait), o)
          assert.same({ n = 3, true, nil, "timeout" }, got)
          over()
        end)

        it("ends by its own limit", function()
          local start = aio.now()
          local got
          if name == "select" then
            got = tasks.join(d, ctx, function()
              local r, w, why = socket.select({ o.sock }, nil, 0.002)
              return r[1] == o.sock, #w, why
            end)
          else
            o.sock:settimeout(0.002)
            got = tasks.join(d, ctx, kind.wait, o)
          end
          assert.is_true(aio.now() - start >= 0.002)
          if is_timeout[name] then
            is_timeout[name](got)
          else
            assert.same({ true, nil, "timeout" }, { got[1], got[2], got[3] })
          end
          over()
        end)

        it("does not wait without time, but lets others run", function()
          local others = 0
          ctx:spawn(function()
            for _ = 1, 100 do
              others = others + 1
              aio.yield()
            end
          end)
          if name ~= "select" then o.sock:settimeout(0) end
          run(d, ctx, function()
            for i = 1, 5 do
              local why
              if name == "select" then
                why = select(3, socket.select({ o.sock }, nil, 0))
              else
                why = select(2, kind.wait(o))
              end
              -- a connection under way says so
              assert.is_true(why == "timeout" or name == "connect" and why:find "progress" ~= nil, why)
              assert.is_true(name == "connect" or others >= i)
            end
          end)
          d.turns(ctx, 200)
          over()
        end)

        it("ends when another task closes the object", function()
          local waiting = ctx:spawn(function() return kind.wait(o) end)
          settle(d, ctx, { waiting })
          ctx:schedule(function() o.sock:close() end)
          finish(d, ctx, { waiting })
          local got = pack(waiting:join())
          assert.is_true(table.remove(got, 1))
          got.n = got.n - 1
          assert.same(kind.closed, got)
          over()
        end)

        it("waits by polling in a callback", function()
          local got
          if name ~= "select" then o.sock:settimeout(0.002) end
          ctx:schedule(function()
            if name == "select" then
              got = pack(socket.select({ o.sock }, nil, 0.002))
            else
              got = pack(kind.wait(o))
            end
          end)
          d.wait(ctx, function() return got end)
          assert.equal("timeout", got[name == "select" and 3 or 2])
          over()
        end)

        it("keeps what it needs from the collector, and nothing else", function()
          local waiting = ctx:spawn(kind.wait, o)
          settle(d, ctx, { waiting })
          tasks.collect()
          assert.equal("waiting", waiting:status())
          waiting:cancel()
          finish(d, ctx, { waiting })
          waiting = nil -- luacheck: ignore
          if o.peer then o.peer:close() end
          if o.clients then getmetatable(o.clients).__close() end
          o = { sock = { close = function() end } } -- its finaliser closes it
          tasks.collect()
          over()
        end)
      end)
    end

    it("a cancelled receive takes no byte", function()
      local ctx = d.context()
      run(d, ctx, function()
        local client, peer = new_pair()
        for _, pattern in ipairs { "*l", "*a", 100 } do
          peer:send "par"
          local task = aio.spawn(client.receive, client, pattern)
          aio.sleep(0.001)
          task:cancel()
          task:join()
        end
        peer:send "\n"
        assert.equal("parparpar", client:receive())
        client:close()
        peer:close()
      end)
      tasks.is_quiet(ctx)
    end)

    it("a send that timed out says where to go on", function()
      local ctx = d.context()
      run(d, ctx, function()
        local client, peer = new_pair()
        local text = ("01234567"):rep(1 << 20)
        client:settimeout(0.001)
        local rounds, at = 0, 0
        local reader = aio.spawn(function()
          local pieces, n = {}, 0
          while n < #text do
            aio.sleep(0.002)
            local piece = assert(peer:receive(math.min(1 << 20, #text - n)))
            pieces[#pieces + 1] = piece
            n = n + #piece
          end
          return table.concat(pieces)
        end)
        repeat
          local last, why, sent = client:send(text, at + 1)
          assert.is_true(last == #text or why == "timeout")
          at = last or sent
          rounds = rounds + 1
        until last
        assert.is_true(rounds > 1)
        assert.is_true(aio.await(reader) == text)
        assert.same({ #text, #text }, { select(2, client:getstats()), (peer:getstats()) })
        client:close()
        peer:close()
      end)
      tasks.is_quiet(ctx)
    end)

    it("limits what a call takes, not each of its waits", function()
      local ctx = d.context()
      run(d, ctx, function()
        local client, peer = new_pair()
        local trickle = aio.spawn(function()
          while true do
            peer:send "x"
            aio.sleep(0.001)
          end
        end)
        for _, mode in ipairs { "b", "t" } do
          client:settimeout(0.02, mode)
          local start = aio.now()
          local line, why, part = client:receive()
          local took = aio.now() - start
          assert.same({ nil, "timeout" }, { line, why })
          assert.is_true(took >= 0.02 and #part > 0)
          client:settimeout(nil, mode)
        end
        client:settimeout(10, "b")
        client:settimeout(0.01, "t")
        assert.equal("timeout", select(2, client:receive()))
        trickle:cancel()
        client:close()
        peer:close()
      end)
    end)

    it("a task that asks again and again without time does not starve others", function()
      local ctx = d.context()
      run(d, ctx, function()
        local client, peer = new_pair()
        client:settimeout(0)
        aio.spawn(function()
          aio.sleep(0.001)
          peer:send "at last\n"
        end)
        local all, why = ""
        repeat
          local line, reason, part = client:receive()
          all, why = all .. (line or part), reason
        until why ~= "timeout"
        assert.same({ "at last" }, { all, why })

        -- nor does one who always finds something
        local ticks = 0
        local ticker = aio.spawn(function()
          while true do
            ticks = ticks + 1
            aio.yield()
          end
        end)
        local udp = assert(socket.udp4())
        assert(udp:setsockname("127.0.0.1", 0))
        local host, port = udp:getsockname()
        for _ = 1, 200 do
          assert(udp:sendto("x", host, port))
          assert.equal("x", udp:receive())
          peer:send "x"
          assert.equal("x", client:settimeout(1) and client:receive(1))
          socket.select({ client }, { client }, 0)
        end
        assert.is_true(ticks > 3, ticks)
        ticker:cancel()
        udp:close()
        client:close()
        peer:close()
      end)
    end)

    it("serves a hundred clients at once", function()
      local ctx = d.context()
      local most, now = 0, 0
      run(d, ctx, function()
        local server = new_server(128)
        local group <close> = aio.group()
        group:spawn(function()
          for _ = 1, 100 do
            local peer = assert(server:accept())
            group:spawn(function()
              now = now + 1
              most = math.max(most, now)
              for line in function() return (peer:receive()) end do
                aio.sleep(0.001)
                assert(peer:send(line:upper() .. "\r\n"))
              end
              now = now - 1
              peer:close()
            end)
          end
          server:close()
        end)
        for i = 1, 100 do
          group:spawn(function()
            local client = assert(socket.connect("localhost", port_of(server)))
            for k = 1, 3 do
              assert(client:send(("client %d line %d\n"):format(i, k)))
              assert.equal(("CLIENT %d LINE %d"):format(i, k), client:receive())
            end
            client:shutdown "send"
            assert.equal("closed", select(2, client:receive()))
            client:close()
          end)
        end
      end)
      assert.equal(0, now)
      assert.is_true(most > 50, most)
      tasks.is_quiet(ctx)
    end)

    it("reads and writes one object in two tasks", function()
      local ctx = d.context()
      run(d, ctx, function()
        local client, peer = new_pair()
        local text = ("line\n"):rep(200000)
        local function sender(sock)
          return function()
            assert.equal(#text, sock:send(text))
            sock:shutdown "send"
          end
        end
        local function receiver(sock)
          return function() return sock:receive "*a" == text end
        end
        local _, a, _, b = aio.gather(sender(client), receiver(client), sender(peer), receiver(peer))
        assert.same({ true, true }, { a, b })
        client:close()
        peer:close()
      end)
    end)

    it("is waited for by all that waits for an fd", function()
      local ctx = d.context()
      run(d, ctx, function()
        local server = new_server()
        local client = assert(socket.connect("127.0.0.1", port_of(server)))
        assert.is_true(aio.wait_readable(server))
        local peer = assert(server:accept())
        assert.is_true(aio.wait_writable(client))
        peer:send "x\n"
        assert.is_true(aio.wait_readable(client))
        local seen
        local watch = ctx:watch(client, { read = function() seen = true end })
        while not seen do aio.yield() end
        watch:close()
        assert.equal("x", client:receive())
        local stream <close> = assert(aio.stream(client)) -- a duplicate
        peer:send "y\n"
        assert.equal("y", stream:read())
        for _, sock in ipairs { server, client, peer } do sock:close() end
      end)
    end)

    it("gives its fd away, and takes others", function()
      local ctx = d.context()
      run(d, ctx, aio.yield)
      local before = fds.count()
      run(d, ctx, function()
        local client, peer = new_pair()
        local fd = client:getfd()
        client:setfd(-1) -- as who wraps it does
        assert.equal(-1, client:getfd())
        assert.same({ n = 3, nil, "closed", "" }, pack(client:receive()))
        client:close()
        client = nil -- luacheck: ignore
        tasks.collect() -- and what was its object is gone
        peer:send "still there\n"
        local other = socket.tcp()
        other:setfd(fd)
        assert.equal(fd, other:getfd())
        local third = assert(socket.connect("127.0.0.1", port_of(new_server())))
        third:close()
        local stream <close> = assert(aio.stream(other))
        assert.equal("still there", stream:read())
        other:close()
        peer:close()

        local server = new_server()
        local port = port_of(server)
        local heir = new_server()
        local old = heir:getfd()
        heir:setfd(server:getfd())
        server:setfd(-1)
        drivers.close(old)
        assert.equal(port, port_of(heir))
        local caller = assert(socket.connect("127.0.0.1", port))
        assert(heir:accept()):close()
        heir:close()
        caller:close()

        local a, b = new_pair()
        local waiting = aio.spawn(a.receive, a)
        aio.yield()
        assert.has_error(function() a:setfd(-1) end)
        b:send "line\n"
        assert.equal("line", aio.await(waiting))
        a:close()
        b:close()
      end)
      tasks.collect()
      assert.equal(before, fds.count())
    end)

    it("selects among all that has getfd", function()
      local ctx = d.context()
      run(d, ctx, function()
        local client, peer = new_pair()
        local r, w = drivers.pipe()
        local pipe = { getfd = function() return r end }
        local theirs = assert(real.bind("127.0.0.1", 0))
        local a, b = aio.socketpair()
        local all = { pipe, client, theirs, a }
        local function ready_after(fn)
          aio.spawn(fn)
          local readable = socket.select(all, nil, 10)
          assert.equal(1, #readable)
          assert.equal(1, readable[readable[1]])
          return readable[1]
        end
        assert.equal(client, ready_after(function() peer:send "x\n" end))
        client:receive()
        assert.equal(pipe, ready_after(function() fds.write(w, "x") end))
        fds.read(r)
        assert.equal(a, ready_after(function() b:write "x" end))
        a:readsome()
        local caller
        assert.equal(theirs, ready_after(function() caller = socket.connect("127.0.0.1", port_of(theirs)) end))
        theirs:accept():close()
        caller:close()

        -- two of them, a duplicate, both directions
        peer:send "x"
        b:write "y"
        local readable, writable = socket.select({ a, client, client, pipe }, { client, a }, 1)
        assert.same({ 2, 2 }, { #readable, #writable }) -- each once
        assert.equal(a, readable[1])

        -- each in a task of its own
        client:receive(1)
        a:readsome()
        local one, two = ctx:spawn(socket.select, { client }), ctx:spawn(socket.select, { a })
        aio.yield()
        local also = ctx:spawn(socket.select, { a }) -- and for the same object
        aio.yield()
        assert.same({ "waiting", "waiting" }, { two:status(), also:status() })
        b:write "x"
        assert.equal(a, select(2, two:join())[1])
        assert.equal(a, select(2, also:join())[1])
        assert.equal("waiting", one:status())
        peer:close()
        assert.equal(client, select(2, one:join())[1])
        client:close()
        theirs:close()
        a:close()
        b:close()
      end)
      tasks.is_quiet(ctx)
    end)

    it("an object that another task reads, before or after, is selected all the same", function()
      local ctx = d.context()
      run(d, ctx, function()
        local client, peer = new_pair()
        client:settimeout(20)
        local function watching() return #socket.select({ client }, nil, 20) end
        for _, order in ipairs { { client.receive, watching }, { watching, client.receive } } do
          local one = ctx:spawn(order[1], client)
          aio.yield()
          local two = ctx:spawn(order[2], client)
          aio.sleep(0.01)
          assert.same({ "waiting", "waiting" }, { one:status(), two:status() })
          peer:send "ab" -- no line
          local watcher, reader = order[1] == watching and one or two, order[1] == watching and two or one
          aio.sleep(0.02)
          assert.equal("waiting", reader:status())
          peer:send "c\n\n" -- more than a line
          assert.same({ true, "abc" }, { reader:join() })
          assert.same({ true, 1 }, { watcher:join() })
          assert.equal("", client:receive())
        end
        client:close()
        peer:close()
      end)
      tasks.is_quiet(ctx)
    end)

    it("an fd closed and taken by another meanwhile is not selected", function()
      local ctx = d.context()
      run(d, ctx, function()
        local client, peer = new_pair()
        local fd = client:getfd()
        local waiting = ctx:spawn(function()
          local r = socket.select({ client }, nil)
          return #r, r[1] == client
        end)
        aio.yield()
        client:close()
        local socks = {}
        repeat -- one of them has its number
          local a, b = new_pair()
          table.insert(socks, a)
          table.insert(socks, b)
          local found = a:getfd() == fd or b:getfd() == fd
          local one, other = found and b:getfd() == fd and b or a, found and b:getfd() == fd and a or b
          other:send "x\n"
          assert.equal("x", one:receive())
        until found
        assert.same({ n = 3, true, 1, true }, pack(waiting:join()))
        for _, sock in ipairs(socks) do sock:close() end
        peer:close()
      end)
      tasks.is_quiet(ctx)
    end)

    it("datagrams come and go", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = assert(socket.udp4()), assert(socket.udp4())
        assert.matches("^udp{unconnected}", tostring(a))
        assert(a:setsockname("localhost", 0))
        local host, port = a:getsockname()
        aio.spawn(function()
          aio.sleep(0.001)
          b:sendto("hello", host, port)
        end)
        local text, from, back = a:receivefrom()
        assert.equal("hello", text)
        assert(b:setpeername(host, port))
        assert.matches("^udp{connected}", tostring(b))
        assert(a:sendto("answer", from, back))
        assert.equal("answer", b:receive())
        assert(b:send "")
        assert.equal("", a:receive())
        assert.has_error(function() b:connect("localhost", 1) end) -- LuaSocket has no such method
        a:settimeout(0.001)
        assert.same({ n = 2, nil, "timeout" }, pack(a:receivefrom()))
        assert.same({ 0.001, -1 }, { a:gettimeout() })

        -- a cancelled task takes none
        local taker = ctx:spawn(a.receive, a)
        aio.yield()
        taker:cancel()
        b:send "kept"
        taker:join()
        assert.equal("kept", a:receive())
        a:close()
        b:close()

        local path = os.tmpname()
        os.remove(path)
        local c, e = socket.unix.dgram(), socket.unix.dgram()
        assert(c:bind(path))
        assert(e:connect(path))
        assert(e:send "unix")
        assert.equal("unix", c:receive())
        c:close()
        e:close()
        os.remove(path)
      end)
      tasks.is_quiet(ctx)
    end)

    it("names are looked up by other threads", function()
      local ctx = d.context()
      assert(ctx:set_threads(0, 1))
      local gate <close> = jobs.gate()
      ctx:spawn(aio.work, jobs.pass, gate.at) -- the only one is busy
      run(d, ctx, function()
        local client = socket.tcp()
        client:settimeout(0.001)
        assert.same({ n = 2, nil, "timeout" }, pack(client:connect("localhost", 80)))
        client:close()
        local look = aio.spawn(socket.dns.toip, "localhost")
        local tick = 0
        while look:status() ~= "waiting" do aio.yield() end
        for _ = 1, 10 do
          aio.yield()
          tick = tick + 1
        end
        assert.equal("waiting", look:status())
        gate:open()
        assert.equal("127.0.0.1", (aio.await(look)))
        assert.equal("localhost", (socket.dns.tohostname "127.0.0.1"))
        local server = new_server()
        client = socket.tcp()
        client:settimeout(5)
        assert.equal(1, client:connect("localhost", port_of(server)))
        client:close()
        server:close()
        for _, host in ipairs { "no.such.host.invalid", "" } do
          assert.is_nil((socket.connect(host, 80)))
        end
      end)
    end)
  end)

  it("connects again after it was refused", function()
    local server, none = new_server(), new_server()
    local nobody, port = port_of(none), port_of(server)
    none:close()
    for _, new in ipairs { socket.tcp, socket.tcp4 } do
      for _, bound in ipairs { false, true } do
        local client = new()
        client:settimeout(5)
        if bound then assert.equal(1, client:bind("127.0.0.1", 0)) end
        for _ = 1, 3 do
          assert.same({ nil, "connection refused" }, { client:connect("127.0.0.1", nobody) })
        end
        assert.equal(1, client:connect("127.0.0.1", port))
        local peer = server:accept()
        peer:send "hello\n"
        assert.equal("hello", client:receive())
        client:close()
        peer:close()
      end
    end
    server:close()
  end)

  it("works in the main chunk", function()
    local server = new_server()
    local done
    aio.default():schedule(function()
      local peer = server:accept()
      peer:send "hello\n"
      peer:close()
      done = true
    end)
    local client = assert(socket.connect("127.0.0.1", port_of(server)))
    assert.equal("hello", client:receive())
    assert.is_true(done)
    client:close()
    server:close()
  end)

  it("refuses to wait where nobody can", function()
    local server = new_server()
    local co = coroutine.wrap(function() return pcall(server.accept, server) end)
    local ok, err = co()
    assert.is_false(ok)
    assert.matches("aio.wrap", err)
    server:close()
  end)

  it("comes back, whatever it is given", function()
    local x = ("x"):rep(64) -- too long for a name that a server could be asked for
    local function values()
      return { false, true, -1, 0, 0.5, 2 ^ 53, 1 << 62, 0 / 0, math.huge, -math.huge, "", x, "10", {}, print,
        coroutine.create(print), io.stderr, setmetatable({}, { __index = error }), socket.tcp(), socket.udp(),
        aio.socketpair(), real.tcp(), setmetatable({ getfd = function() return "x" end }, {}) }
    end
    local closed = socket.tcp4()
    closed:close()
    local function receivers()
      local server = new_server()
      local client, peer = new_pair(server)
      local master, udp = socket.tcp(), socket.udp()
      local all = { server, client, peer, master, socket.unix(), udp, closed }
      for _, object in ipairs(all) do object:settimeout(0) end
      return all
    end
    local safe = { setfd = true } -- numbers are others' fds
    local n = 0
    local function try(fn, ...)
      local ok, err = pcall(fn, ...)
      if not ok then assert.is_true(type(err) == "string" or type(err) == "table", tostring(err)) end
      n = n + 1
    end
    local function all()
      for _, object in ipairs(receivers()) do
        for name, method in pairs(getmetatable(object).__index) do
          if type(method) == "function" and not safe[name] and not name:find "^settimeout" then
            for _, value in ipairs(values()) do
              object:settimeout(0)
              try(method, object, value)
              try(method, object, x, value)
              try(method, value)
            end
          end
        end
        object:close()
      end
      for name, fn in pairs(socket) do
        if type(fn) == "function" and name ~= "install" and name ~= "sleep" and name ~= "select" then
          for _, value in ipairs(values()) do
            try(fn, value)
            try(fn, "127.0.0.1", value)
          end
        end
      end
      for _, value in ipairs(values()) do
        try(socket.select, { value }, nil, 0)
        try(socket.select, nil, { value, value }, 0)
        try(socket.select, {}, nil, tonumber(value) and 0 or value)
      end
    end
    local d = drivers.new "poll"
    run(d, d.context(), all)
    assert.is_true(n > 1000)
    drivers.cleanup()
    for _, value in ipairs(values()) do -- names that Unix sockets were bound to
      if type(value) == "string" or type(value) == "number" then os.remove(value) end
    end
  end)

  it("is loaded when it is asked for", function()
    local it = child.run [[
      local aio = require "aioloop"
      assert(not package.loaded["aioloop.socket"] and rawget(aio, "socket") == nil)
      assert(aio.socket == require "aioloop.socket" and rawget(aio, "socket") == aio.socket)
      assert(aio.nothing == nil)
      io.write(tostring(aio.socket.tcp():getfd()))
    ]]
    assert.same({ 0, "-1", "" }, { it.code, it.out, it.err })
  end)
end)

describe("aio.socket.require", function()
  it("gives a library the face, and leaves everybody else alone", function()
    local before, theirs = {}, require "socket.http"
    for name, module in pairs(package.loaded) do before[name] = module end
    local http, path = socket.require "socket.http"
    assert.matches("socket/http.lua$", path)
    assert.equal(http, socket.require "socket.http")
    assert.not_equal(http, theirs)
    assert.equal(theirs, require "socket.http")
    assert.equal(socket.http, http)
    assert.equal(real.http, theirs)
    assert.equal(socket, socket.require "socket")
    assert.equal(socket, socket.require "socket.core")
    assert.equal(socket.unix, socket.require "socket.unix")
    assert.equal(string, socket.require "string")
    assert.equal(aio, socket.require "aioloop")
    for _, name in ipairs { "socket", "socket.core", "socket.http", "ltn12", "string" } do
      assert.equal(before[name], package.loaded[name])
    end
    assert.equal(real, require "socket")
    assert.equal(real.url, package.loaded["socket.url"])
  end)

  local function with_module(source, fn)
    local folder = os.tmpname()
    os.remove(folder)
    assert(os.execute("mkdir " .. folder))
    local file = assert(io.open(folder .. "/face_spec_module.lua", "w"))
    file:write(source)
    file:close()
    local path = package.path
    package.path = folder .. "/?.lua;" .. path
    local ok, err = pcall(fn)
    package.path = path
    os.execute("rm -r " .. folder)
    if not ok then error(err, 0) end
  end

  it("does as require does", function()
    with_module("the_global = { ... } local late = function() return require 'socket' end return late", function()
      local late, path = socket.require "face_spec_module"
      assert.equal(socket, late())
      assert.same({ "face_spec_module", path }, the_global) -- luacheck: ignore
      the_global = nil -- luacheck: ignore
      assert.equal(_G, _G._G)
      assert.is_nil(package.loaded.face_spec_module)
      assert.equal(late, socket.require "face_spec_module")
    end)
    with_module("package.loaded[...] = 'by itself'", function()
      assert.equal("by itself", (require "aioloop.socket_load".new(socket)) "face_spec_module")
    end)
    with_module("assert(_G.require == require and package.loaded.socket == require 'socket')", function()
      assert.equal(true, (require "aioloop.socket_load".new(socket)) "face_spec_module")
    end)
    with_module("error 'on purpose'", function()
      assert.has_error(function() require "aioloop.socket_load".new(socket) "face_spec_module" end)
    end)
    with_module("this is no Lua", function()
      local _, err = pcall(require "aioloop.socket_load".new(socket), "face_spec_module")
      assert.matches("error loading module 'face_spec_module'", err)
    end)
    local _, err = pcall(socket.require, "no.such.module")
    assert.matches("module 'no.such.module' not found", err)
    assert.has_error(function() socket.require() end)
  end)

  it("gives it coroutines that may wait", function()
    with_module([[
      return {
        iterate = function(sock) return coroutine.wrap(function()
          for line in function() return (sock:receive()) end do coroutine.yield(line) end
        end) end,
        create = coroutine.create, resume = coroutine.resume, status = coroutine.status,
      }
    ]], function()
      local lib = require "aioloop.socket_load".new(socket) "face_spec_module"
      local d = drivers.new "poll"
      local ctx = d.context()
      run(d, ctx, function()
        local client, peer = new_pair()
        aio.spawn(function()
          for i = 1, 3 do
            aio.sleep(0.001)
            peer:send(i .. "\n")
          end
          peer:close()
        end)
        local got = {}
        for line in lib.iterate(client) do got[#got + 1] = line end
        assert.equal("1 2 3", table.concat(got, " "))
        client:close()

        local co
        co = lib.create(function(...)
          assert.equal("running", lib.status(co))
          local second = coroutine.yield(select("#", ...))
          aio.sleep(0.001)
          return second, nil
        end)
        assert.equal("suspended", lib.status(co))
        assert.same({ n = 2, true, 3 }, pack(lib.resume(co, nil, nil, nil)))
        assert.equal("suspended", lib.status(co))
        assert.same({ n = 3, true, "x" }, pack(lib.resume(co, "x")))
        assert.equal("dead", lib.status(co))
        assert.same({ n = 2, false, "cannot resume dead coroutine" }, pack(lib.resume(co)))
        co = lib.create(function(why) error(why, 0) end)
        assert.same({ n = 2, false, "why" }, pack(lib.resume(co, "why")))
        assert.equal("dead", lib.status(co))
        local theirs = coroutine.create(function() return 1 end)
        assert.same({ n = 2, true, 1 }, pack(lib.resume(theirs)))
        assert.equal("dead", lib.status(theirs))

        local after
        local task = ctx:spawn(function()
          lib.resume(lib.create(aio.sleep), 60)
          after = true
        end)
        aio.sleep(0.001)
        task:cancel()
        task:join()
        assert.equal("cancelled", task:status())
        assert.is_nil(after)
      end)
      drivers.cleanup()
    end)
  end)
end)

describe("aio.socket.install", function()
  it("is LuaSocket for what is required afterwards", function()
    local it = child.run [[
      local aio = require "aioloop"
      local old, old_http = require "socket", require "socket.http"
      assert(aio.socket.install() == aio.socket)
      assert(require "socket" == aio.socket and require "socket.core" == aio.socket)
      assert(require "socket.unix" == aio.socket.unix)
      local http = require "socket.http"
      assert(http ~= old_http and http == aio.socket.http and old.http == old_http)
      assert(require "socket.url" == aio.socket.url)
      local udp = aio.socket.udp() -- LuaSocket's, all the same
      assert(udp:setsockname("127.0.0.1", 0))
      udp:settimeout(0)
      assert(select(2, udp:receive()) == "timeout")
      assert(old.tcp() ~= nil and type(old.tcp()) == "userdata")
      io.write "fine"
    ]]
    assert.same({ 0, "fine", "" }, { it.code, it.out, it.err })
  end)
end)

describe("as in LuaSocket", function()
  it("a fresh udp socket sends, and then has an fd", function()
    local ctx <close> = assert(aio.context())
    ctx:run(function()
      local receiver = aio.socket.udp()
      assert(receiver:setsockname("127.0.0.1", 0))
      local _, port = receiver:getsockname()
      local sender = aio.socket.udp()
      assert.equal(-1, sender:getfd())
      assert.equal(5, sender:sendto("hello", "127.0.0.1", port))
      assert.is_true(sender:getfd() >= 0)
      assert.equal("hello", (receiver:receivefrom()))
      sender:close()
      assert.same({ n = 2, nil, "closed" }, table.pack(sender:sendto("x", "127.0.0.1", port)))
      receiver:close()
    end)
  end)

  it("only the first two characters of a pattern count", function()
    local ctx <close> = assert(aio.context())
    ctx:run(function()
      local server = new_server()
      local a, b = new_pair(server)
      assert(a:send "one\ntwo\nrest")
      a:close()
      assert.equal("one", b:receive "*line")
      assert.equal("two", b:receive "*l")
      assert.equal("rest", b:receive "*all")
      assert.error_matches(function() b:receive "line" end, "invalid receive pattern")
      b:close()
      server:close()
    end)
  end)
end)
