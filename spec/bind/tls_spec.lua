-- SPDX-License-Identifier: MIT
--- TLS on streams: that they are streams as before, whom they trust, and what the ends of it all look like. Openssl at
--- the other end: spec/openssl_spec.lua.
--
-- Keep  `make shim` runs these with OpenSSL reading and writing a byte at a time, but for what needs full sockets
--       (#whole): less data then, and TCP, for a Unix socket is full of 278 bytes that were written one by one.

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local pki = require "spec.support.pki"
local tasks = require "spec.support.tasks"

local run, finish = tasks.run, tasks.finish
local pack = table.pack
local EPROTO, ECONNRESET, EPIPE, EALREADY, ENOTSOCK, EOPNOTSUPP = 71, 104, 32, 114, 88, 95
local closed, eof, timeout = { n = 2, nil, "closed" }, { n = 2, nil, "eof" }, { n = 2, nil, "timeout" }

local shimmed = os.getenv "SHIM"
local MUCH = shimmed and 1 << 14 or 1 << 20

local function tcp_pair()
  local server <close> = assert(aio.listen("127.0.0.1", 0))
  local client = assert(aio.connect("127.0.0.1", select(2, server:getsockname())))
  return client, assert(server:accept())
end

local socketpair = shimmed and tcp_pair or aio.socketpair

-- Both ends speak TLS; in a task.
local function pair(client_params, server_params)
  local client, server = socketpair()
  local other = aio.spawn(function() return server:starttls(pki.server(server_params)) end):keep()
  local got = pack(client:starttls(pki.client(client_params)))
  local theirs = pack(aio.await(other))
  return client, server, got, theirs
end

local function connected(client_params, server_params)
  local client, server, got, theirs = pair(client_params, server_params)
  assert.equal(client, got[1], got[2])
  assert.equal(server, theirs[1], theirs[2])
  return client, server
end

local function close(...)
  for _, stream in ipairs { ... } do stream:close() end
end

-- Spawns one that will wait; returns it when it does.
local function waiting(fn, ...)
  local task = aio.spawn(fn, ...):keep()
  repeat aio.yield() until task:status() == "waiting"
  return task
end

-- Text in which every place is another.
local function text(size)
  local parts = {}
  for i = 1, size // 8 do parts[i] = ("%07d\n"):format(i) end
  return table.concat(parts)
end

describe("stream:starttls", function()
  drivers.each(function(d)
    for _, version in ipairs { "tlsv1_2", "tlsv1_3" } do
      it("leaves a stream that reads and writes as before: " .. version, function()
        local ctx = d.context()
        run(d, ctx, function()
          local a, b = connected { protocol = version }
          assert.equal(a, a:write("one\n", 2, "\nthree"))
          assert.same({ "one", 2 }, { b:read("l", "n") })
          assert.equal("\nth", b:read(3))
          assert.equal("r", b:readsome(1))
          local buffer = aio.buffer(100):set "four"
          assert.equal(a, a:write(buffer))
          assert.equal(2, b:readinto(buffer))
          assert.equal("ee", buffer:tostring())
          assert.equal("fo", b:read { until_ = "u" })
          assert.equal(a, a:write "")
          assert.equal(3, a:writesome "xyz")
          assert.equal("rxyz", b:read(4))
          b:write "1\n2\n3\n"
          b:close()
          local lines = {}
          for line in a:lines() do lines[#lines + 1] = line end
          assert.same({ "1", "2", "3" }, lines)
          assert.same(eof, pack(a:read()))
          a:close()
        end)
        tasks.is_quiet(ctx)
      end)

      it("carries much, both ways at once: " .. version, function()
        local ctx = d.context()
        local data = text(MUCH)
        run(d, ctx, function()
          local a, b = connected { protocol = version }
          local function send(stream) return assert(stream:write(data, data, data, data)) end
          local function receive(stream) return stream:read(#data, #data, 2 * #data) end
          local senders = { aio.spawn(send, a), aio.spawn(send, b) }
          for _, stream in ipairs { a, b } do
            aio.spawn(function()
              local one, two, rest = receive(stream)
              assert.is_true(one == data and two == data and rest == data .. data)
            end):join()
          end
          for _, sender in ipairs(senders) do sender:join() end
          close(a, b)
        end)
        tasks.is_quiet(ctx)
      end)
    end

    it("speaks over TCP and with a hundred at a time", function()
      local ctx = d.context()
      run(d, ctx, function()
        local context = require "ssl".newcontext(pki.server { protocol = "any" })
        local server = assert(aio.listen("127.0.0.1", 0))
        local serving = aio.spawn(function()
          local group <close> = aio.group()
          for stream in server:clients() do
            group:spawn(function()
              assert(stream:starttls(context))
              for line in stream:lines "L" do stream:write(line) end
              stream:close()
            end)
          end
          group:wait()
        end)
        local _, port = server:getsockname()
        local group <close> = aio.group()
        for i = 1, 100 do
          group:spawn(function()
            local stream <close> = assert(aio.connect("127.0.0.1", port))
            assert(stream:starttls(pki.client { sni = "www.example.org" }))
            for k = 1, 10 do
              assert(stream:write(i, " ", k, "\n"))
              assert.equal(i .. " " .. k, stream:read())
            end
          end)
        end
        group:wait()
        server:close()
        serving:join()
      end)
      tasks.is_quiet(ctx)
    end)

    it("goes on after a plain beginning, of which nothing may be left #whole", function()
      local ctx = d.context()
      run(d, ctx, function()
        local client, server = socketpair()
        local other = aio.spawn(function()
          assert.equal("STARTTLS", server:read())
          server:write "OK\n"
          assert(server:starttls(pki.server()))
          return server:read()
        end):keep()
        client:write "STARTTLS\n"
        assert.equal("OK", client:read())
        assert(client:starttls(pki.client()))
        client:write "secret\n"
        assert.equal("secret", aio.await(other))
        close(client, server)

        client, server = socketpair()
        server:write "OK\ninjected"
        assert.equal("OK", client:read())
        assert.same({ n = 3, nil, "8 bytes have arrived before TLS has begun, and are not read", EPROTO },
          pack(client:starttls(pki.client())))
        assert.equal("injected", client:readsome())
        close(client, server)
      end)
    end)

    it("ends a handshake with its time limit, a scope, a cancel, or the closing of the stream", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = socketpair()
        a:settimeout(0.01)
        assert.same(timeout, pack(a:starttls(pki.client())))
        assert.equal(-1, a:getfd())
        b:close()

        a, b = socketpair()
        assert.same(timeout, pack(aio.timeout(0.01, a.starttls, a, pki.client())))
        assert.equal(-1, a:getfd())
        b:close()

        a, b = socketpair()
        local task = waiting(a.starttls, a, pki.client())
        task:cancel "enough"
        assert.is_true(aio.is_cancelled(select(2, task:join())))
        assert.equal(-1, a:getfd())
        b:close()

        a, b = socketpair()
        task = waiting(a.starttls, a, pki.server())
        assert.error_matches(function() a:read() end, "another task is reading")
        assert.equal(EALREADY, select(3, a:write "too soon"))
        a:close()
        assert.same({ n = 3, true, nil, "closed" }, pack(task:join()))
        b:close()
      end)
      tasks.is_quiet(ctx)
    end)

    it("fails where the other end does not speak it, or goes away", function()
      local ctx = d.context()
      run(d, ctx, function()
        for _, words in ipairs { "SSH-2.0-x\r\n", ("x"):rep(100), "\22\3\1\0\5hello" } do
          for _, params in ipairs { pki.client(), pki.server() } do
            local a, b = socketpair()
            b:write(words)
            local ok, message, errno = a:starttls(params)
            assert.is_nil(ok)
            assert.is_string(message)
            assert.equal(EPROTO, errno)
            assert.equal(-1, a:getfd())
            b:close()
          end
        end
        for _, before in ipairs { "", "\22\3\1" } do
          for _, params in ipairs { pki.client(), pki.server() } do
            local a, b = socketpair()
            local task = waiting(a.starttls, a, params)
            b:write(before)
            b:close()
            local _, ok, message, errno = task:join()
            assert.is_nil(ok)
            assert.is_string(message)
            assert.is_true(errno == EPROTO or errno == ECONNRESET or errno == EPIPE, errno)
          end
        end
      end)
      tasks.is_quiet(ctx)
    end)

    it("trusts whom it was told to", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b, got, theirs = pair { cafile = pki.path "other.pem" }
        assert.same({ n = 3, nil, "certificate verify failed", EPROTO }, got)
        assert.is_nil(theirs[1])
        assert.matches("unknown ca", theirs[2])
        assert.same({ -1, -1 }, { a:getfd(), b:getfd() })

        close(connected { cafile = pki.path "other.pem", verify = "none" })

        local asks = { verify = { "peer", "fail_if_no_peer_cert" }, cafile = pki.path "ca.pem" }
        a, b, got, theirs = pair({ protocol = "tlsv1_2" }, asks)
        assert.is_nil(got[1])
        assert.is_nil(theirs[1])
        assert.equal("peer did not return a certificate", theirs[2])
        close(a, b)

        a, b = connected({ certificate = pki.path "client.pem", key = pki.path "client.key" }, asks)
        assert.equal("client.test", b:tls():getpeercertificate():subject()[1].value)
        assert.is_true(b:tls():getpeerverification())
        close(a, b)
      end)
    end)

    it("wants the certificate to be the server's that it asks for", function()
      local ctx = d.context()
      run(d, ctx, function()
        for _, name in ipairs { "localhost", "LOCALHOST", "a.example.org", "www.example.org." } do
          close(connected { sni = name })
        end
        for _, name in ipairs {
          "example.org", "a.b.example.org", "localhost.example.com", "server.test", "127.0.0.1",
        } do
          local a, b, got = pair { sni = name }
          if name == "127.0.0.1" then
            assert.equal(a, got[1])
          else
            assert.same({ n = 3, nil, ("the certificate is not for '%s'"):format(name), EPROTO }, got)
            assert.equal(-1, a:getfd())
          end
          close(a, b)
        end
        close(connected { sni = "example.org", host = "localhost" })
        close(connected { sni = "example.org", host = false })
        close(connected({ sni = "old.test" }, { certificate = pki.path "old.pem", key = pki.path "old.key" }))
        local a, b, got = pair({ host = "other" }, { certificate = pki.path "old.pem", key = pki.path "old.key" })
        assert.same({ n = 3, nil, "the certificate is not for 'other'", EPROTO }, got)
        close(a, b)
      end)
    end)

    it("passes names of servers and of protocols on", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = connected({ alpn = { "x/2", "x/1" } }, { alpn = { "x/1", "y" } })
        assert.same({ "x/1", "x/1" }, { a:tls():getalpn(), b:tls():getalpn() })
        assert.equal("localhost", b:tls():getsniname())
        close(a, b)

        local asked
        a, b = connected({ alpn = { "x/2", "x/1" } }, { alpn = function(list)
          asked = list
          return "x/2"
        end })
        assert.same({ { "x/2", "x/1" }, "x/2" }, { asked, a:tls():getalpn() })
        close(a, b)

        local names = { ["old.test"] = { certificate = pki.path "old.pem", key = pki.path "old.key" } }
        a, b = connected({ sni = "old.test" }, { sni = names, strict = true })
        assert.equal("old.test", a:tls():getpeercertificate():subject()[1].value)
        close(a, b)
        close(connected({ sni = "localhost" }, { sni = names }))
        local got
        a, b, got = pair({ sni = "localhost" }, { sni = names, strict = true })
        assert.is_nil(got[1])
        close(a, b)
      end)
    end)

    it("survives a callback in the handshake that ends all who know of it, and collects garbage", function()
      for _, fn in ipairs {
        function(ctx) ctx:close() end,
        function(ctx, task) task:cancel() ctx:poll(false) ctx:poll(false) end,
        function(_, task) task:cancel() end,
      } do
        local ctx <close> = aio.context()
        local client, server = socketpair()
        local fd, called, task = server:getfd(), false, nil
        local params = pki.server { alpn = function()
          called = true
          fn(ctx, task)
          task = nil
          for _ = 1, 4 do collectgarbage() end
          return "x"
        end }
        do
          local mine = server -- it is the task's alone
          task = ctx:spawn(function()
            local it = mine
            mine = nil
            it:starttls(params)
          end)
        end
        server = nil -- luacheck: ignore
        ctx:spawn(client.starttls, client, pki.client { alpn = "x" })
        local limit = aio.now() + 5
        while not called and aio.now() < limit do ctx:poll(0.01) end
        assert.is_true(called)
        task, params = nil, nil -- luacheck: ignore
        for _ = 1, 4 do collectgarbage() end
        assert.is_nil((fds.read(fd)))
        client:close()
      end
    end)

    it("survives what callbacks in the handshake do", function()
      local ctx = d.context()
      run(d, ctx, function()
        local server
        local function shut() server:close() end
        for _, fn in ipairs {
          shut,
          function() aio.sleep(0) end,
          function() error "refused" end,
          function() coroutine.yield() end,
          function() server:read() end,
        } do
          local client
          client, server = socketpair()
          local said
          local other = aio.spawn(function()
            return server:starttls(pki.server { alpn = function()
              local ok, message = pcall(fn)
              said = { ok, message }
              return "x"
            end })
          end):keep()
          aio.timeout(5, client.starttls, client, pki.client { alpn = "x" })
          aio.await(other)
          assert.is_table(said)
          assert.is_true(server:getfd() == -1 or fn ~= shut)
          close(client, server)
        end
      end)
      tasks.is_quiet(ctx)
    end)

    it("keeps its time limit, in however small portions a record comes", function()
      local ctx = d.context()
      run(d, ctx, function()
        local client, near = socketpair()
        local far, server = socketpair()
        local slow = false
        local function carry(from, to)
          for bytes in function() return from:readsome() end do
            if not slow then to:write(bytes) end
            for i = 1, slow and #bytes or 0 do
              to:write(bytes:sub(i, i))
              aio.sleep(0.02)
            end
          end
        end
        local group <close> = aio.group()
        group:spawn(carry, near, far)
        group:spawn(carry, far, near)
        local other = group:spawn(server.starttls, server, pki.server { protocol = "tlsv1_2" })
        assert(client:starttls(pki.client { protocol = "tlsv1_2" }))
        assert(other:join())
        slow = true
        client:settimeout(0.1)
        group:spawn(server.write, server, ("x"):rep(100)) -- takes two seconds to arrive
        for _, read in ipairs {
          function() return client:readsome() end,
          function() return client:readinto(aio.buffer(10)) end,
          function() return client:read(1) end,
        } do
          local begun = aio.now()
          assert.same(timeout, pack(read()))
          assert.is_true(aio.now() - begun < 0.5)
        end
        client:settimeout()
        assert.equal(("x"):rep(100), client:read(100))
        group:cancel()
        close(client, server, near, far)
      end)
    end)

    it("finishes or forgets a write that is given up while LuaSec has it #whole", function()
      local ctx = d.context()
      local active, hits, writers = true, 0, {}
      local function set_trap() -- a finaliser that runs in LuaSec's thread: no task's, nor the main one
        setmetatable({}, { __gc = function()
          local _, is_main = coroutine.running()
          if active and not is_main and not aio.self() then
            hits = hits + 1
            for _, task in ipairs(writers) do task:cancel() end
          end
          if active then set_trap() end
        end })
      end
      run(d, ctx, function()
        for round = 1, 6 do
          local a, b = connected()
          local before = aio.spawn(a.write, a, ("x"):rep(300000))
          writers = {}
          for i = 1, 4 do writers[i] = aio.spawn(a.write, a, ("y"):rep(100000 + round)) end
          repeat aio.yield() until writers[4]:status() == "waiting"
          collectgarbage("generational", 1, 100)
          set_trap()
          b:settimeout(0.05)
          local parts = {}
          for bytes in function() return b:readsome() end do parts[#parts + 1] = bytes end
          collectgarbage "incremental"
          assert(before:join())
          local rest = table.concat(parts):match "^x*(y*)$"
          assert.equal(0, #rest % (100000 + round))
          close(a, b)
        end
      end)
      active = false
      assert.is_true(hits > 0)
    end)

    it("tells the end from a break", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = connected()
        a:write "the end"
        a:close()
        assert.same({ n = 1, "the end" }, pack(b:read "a"))
        assert.same(eof, pack(b:read()))
        b:close()

        -- Its fd goes, and nobody says goodbye.
        for _, wanted in ipairs { "a", 10, "l" } do
          b, a = connected()
          a:write "half"
          assert.equal("half", b:read(4))
          local nothing = fds.dup(0)
          fds.dup2(nothing, a:getfd())
          fds.close(nothing)
          local got = pack(b:read(wanted))
          assert.is_nil(got[1])
          assert.same({ n = 3, nil, "unexpected eof while reading", EPROTO }, got)
          assert.same(got, pack(b:read(wanted)))
          close(b)
          a:close()
        end
      end)
    end)

    for _, version in ipairs { "tlsv1_2", "tlsv1_3" } do
      it("brings over all that was written before it was closed, though nothing was ever read: " .. version, function()
        local ctx = d.context()
        run(d, ctx, function()
          local server, data = assert(aio.listen("127.0.0.1", 0)), text(2 * MUCH)
          local reader = aio.spawn(function()
            local stream <close> = server:accept()
            assert(stream:starttls(pki.server { protocol = version }))
            aio.sleep(0.05) -- the socket is full by then
            local got = assert(stream:read "a")
            return got, select(2, stream:read())
          end)
          local stream = assert(aio.connect("127.0.0.1", select(2, server:getsockname())))
          assert(stream:starttls(pki.client { protocol = version }))
          assert(stream:write(data))
          stream:close()
          local got, err = aio.await(reader)
          assert.is_true(got == data)
          assert.equal("eof", err)
          server:close()
        end)
        tasks.is_quiet(ctx)
      end)
    end

    -- Writes until its socket is nearly full, and then closes it.
    local function fill(stream)
      local total, fd = 0, stream:getfd()
      local function full() return not aio.wait_writable(fd, 0) end
      for _ = 1, 10000 do
        if full() then break end
        total = total + assert(stream:writesome(("x"):rep(1000)))
      end
      assert.is_true(full())
      assert.is_true(stream:close())
      assert.equal(-1, stream:getfd())
      return total
    end

    it("says goodbye when there is room for that, if there was none when it was closed #whole", function()
      local ctx = d.context()
      for _, version in ipairs { "tlsv1_2", "tlsv1_3" } do
        run(d, ctx, function()
          local a, b = connected { protocol = version }
          local live = ctx:stats().live
          local total = fill(a)
          assert.equal(live + 1, ctx:stats().live)
          local got = assert(b:read "a")
          assert.equal(total, #got)
          assert.same(eof, pack(b:read()))
          b:close()
        end)
        tasks.is_quiet(ctx)
      end
    end)

    it("says goodbye to nobody, then #whole", function()
      local ctx = d.context()
      run(d, ctx, function() -- the other end goes
        local a, b = connected()
        fill(a)
        b:close()
        aio.sleep(0.01)
      end)
      tasks.is_quiet(ctx)
      local a, b
      run(d, ctx, function()
        a, b = connected()
        fill(a)
        a = nil
      end)
      tasks.collect()
      assert.equal(1, ctx:stats().live)
      ctx:close() -- nobody would look any more
      local other = d.context()
      run(d, other, function()
        assert.is_nil((b:read(1 << 22)))
        b:close()
      end)
      tasks.is_quiet(other)
    end)

    it("wakes who waits when it is closed, and says then that it is", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = connected()
        local reader = waiting(a.read, a)
        local writer = waiting(a.write, a, ("x"):rep(10 << 20))
        assert.same({ "waiting", "waiting" }, { reader:status(), writer:status() })
        local session = a:tls()
        assert.equal("TLSv1.3", session:info "protocol")
        a:close()
        assert.same({ n = 3, true, nil, "closed" }, pack(reader:join()))
        assert.same({ n = 3, true, nil, "closed" }, pack(writer:join()))
        assert.same({ closed, closed, closed }, { pack(a:read()), pack(a:write "x"), pack(session:info()) })
        assert.is_nil(a:tls())
        b:close()
      end)
      tasks.is_quiet(ctx)
    end)

    it("finishes what it has begun, though its writer has given up #whole", function()
      local ctx = d.context()
      run(d, ctx, function()
        local big, small = text(4 << 20), text(8000)
        for _, give_up in ipairs {
          function(stream)
            stream:settimeout(0.01)
            assert.same(timeout, pack(stream:write(big)))
            stream:settimeout()
          end,
          function(stream) assert.same(timeout, pack(aio.timeout(0.01, stream.write, stream, big))) end,
          function(stream)
            local task = waiting(stream.write, stream, big)
            task:cancel()
            task:join()
          end,
          function(stream) assert.equal(stream, stream:setbound(8 << 20):write(big)) end,
        } do
          local a, b = connected()
          give_up(a)
          local rest = aio.spawn(function() return assert(a:write(small)) end)
          local got, after = b:read(#big, #small)
          assert.is_true(got == big)
          assert.equal(small, after)
          rest:join()
          close(a, b)
        end
      end)
      tasks.is_quiet(ctx)
    end)

    it("writes some, and never the same twice", function()
      local ctx = d.context()
      run(d, ctx, function()
        local data, sent = text(3 * MUCH), 0
        local a, b = connected()
        local reader = aio.spawn(b.read, b, #data)
        for turn = 1, math.huge do
          if sent == #data then break end
          a:settimeout(turn % 3 == 0 and 0 or turn % 3 == 1 and 0.0001 or nil)
          local n, message = a:writesome(data, sent + 1)
          assert.is_true(n ~= nil or message == "timeout", message)
          sent = sent + (n or 0)
          assert.is_true(not n or n <= 16384)
        end
        assert.is_true(aio.await(reader) == data)
        close(a, b)
      end)
      tasks.is_quiet(ctx)
    end)

    it("keeps what has arrived for the next, when a reader gives up", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = connected()
        for i = 1, 20 do
          local size = i * 3000
          a:write(("x"):rep(size))
          b:settimeout(0.002)
          assert.same(timeout, pack(b:read(size + 1)))
          b:settimeout()
          a:write "y"
          assert.equal(("x"):rep(size) .. "y", b:read(size + 1))
        end
        close(a, b)
      end)
      tasks.is_quiet(ctx)
    end)

    it("takes turns with others also while much is there #whole", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = connected()
        local ticks, over = 0, false
        local writer = aio.spawn(function()
          while not over do a:write(("x"):rep(100000)) end
        end)
        local ticker = aio.spawn(function()
          while not over do
            ticks = ticks + 1
            aio.sleep(0)
          end
        end)
        for _ = 1, 5000 do assert.equal("x", b:read(1)) end
        for _ = 1, 500 do assert.equal(4000, #b:read(4000)) end
        over = true
        assert.is_true(ticks > 20, ticks)
        b:close()
        finish(d, ctx, { ticker })
        assert(writer:join() ~= nil)
        a:close()
      end)
    end)

    it("is refused where it makes no sense", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = socketpair()
        for _, params in ipairs { 1, "client", true } do
          assert.error_matches(function() a:starttls(params) end, "table or context expected")
        end
        assert.error_matches(function() a:starttls() end, "table or context expected, got nil")
        assert.error_matches(function() a.starttls({}, {}) end, "aioloop.stream expected")
        assert.error_matches(function() a:starttls { sni = 1 } end, "a client's sni must be a name")
        assert.error_matches(function() a:starttls { mode = "server", sni = "x" } end, "a server's sni must be a table")
        assert.error_matches(function() a:starttls { host = 1 } end, "host must be a string or false")
        assert.is_nil((a:starttls { mode = "neither" }))
        assert.is_nil((a:starttls { protocol = "tlsv9" }))
        assert.is_nil((a:starttls { mode = "server", key = "/nowhere" }))
        assert.is_nil((a:starttls { mode = "server", sni = { x = { key = "/nowhere" } } }))
        assert.is_nil(a:tls())
        local reader = waiting(a.read, a)
        assert.error_matches(function() a:starttls(pki.client()) end, "somebody waits for")
        assert.equal(b, b:write "still plain\n")
        assert.equal("still plain", aio.await(reader))
        close(a, b)
        assert.same(closed, pack(a:starttls(pki.client())))

        local r, w = aio.pipe()
        assert.equal(ENOTSOCK, select(3, r:starttls(pki.client())))
        close(r, w)

        a, b = connected()
        assert.error_matches(function() a:starttls(pki.client()) end, "speaks TLS already")
        assert.error_matches(function() a:setfd(-1) end, "that speaks TLS")
        assert.equal(EOPNOTSUPP, select(3, a:shutdown()))
        assert.equal(a, a:write "x\n")
        assert.equal("x", b:read())
        close(a, b)
      end)
    end)

    it("closes the connection when nobody holds it any more", function()
      local ctx = d.context()
      tasks.collect()
      local before = fds.count()
      run(d, ctx, function()
        local b
        aio.await(aio.spawn(function()
          local a
          a, b = connected()
          a:write "last words\n"
        end))
        tasks.collect()
        assert.equal("last words", b:read())
        assert.same(eof, pack(b:read()))
        b:close()
      end)
      tasks.collect()
      assert.equal(before, fds.count())
    end)
  end)

  it("waits at top level, too", function()
    local client, server = socketpair()
    local other = aio.spawn(function()
      assert(server:starttls(pki.server()))
      server:write(server:read "L")
    end)
    assert.equal(client, client:starttls(pki.client()))
    client:write "hello\n"
    assert.equal("hello", client:read())
    other:join()
    close(client, server)
    aio.default():close()
  end)

  it("does not hold up the end of the program", function()
    local source = [[
      local aio = require "aioloop"
      local client, server = aio.socketpair()
      local how = %q
      aio.run(function()
        local other = aio.spawn(server.starttls, server, { mode = "server", certificate = %q, key = %q })
        if how == "shaking" then repeat aio.yield() until other:status() == "waiting" end
        if how ~= "shaking" then assert(client:starttls {}) end
        if how == "full" then
          client:settimeout(0.01)
          print(client:write(("x"):rep(10 << 20)))
        end
        io.stdout:write "there\n"
        if how == "shaking" then os.exit(true, true) end
        other:join()
        if how == "exit" then os.exit(true, true) end
      end)
    ]]
    for _, how in ipairs { "idle", "exit", "full", "shaking" } do
      local got = child.run(source:format(how, pki.path "server.pem", pki.path "server.key"), 10)
      assert.same({ 0, "" }, { got.code, got.err }, how)
      assert.matches("there", got.out)
    end
  end)

  it("says so where LuaSec is missing", function()
    local got = child.run [[
      package.preload.ssl = function() error "not here" end
      local aio = require "aioloop"
      local a, b = aio.socketpair()
      print(pcall(a.starttls, a, {}))
      a:write "plain\n"
      print(b:read())
    ]]
    assert.equal("", got.err)
    assert.matches("^false\t.*starttls needs LuaSec.*not here.*plain\n$", got.out)
  end)
end)
