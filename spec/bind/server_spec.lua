-- SPDX-License-Identifier: MIT
--- Servers: who is accepted, by whom, and what happens when that is not possible.

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local tasks = require "spec.support.tasks"

local run, finish, settle = tasks.run, tasks.finish, tasks.settle
local closed, timeout = { n = 2, nil, "closed" }, { n = 2, nil, "timeout" }
local EADDRINUSE, EINVAL, ENAMETOOLONG = 98, 22, 36

local pack = table.pack

local function port_of(server) return (select(2, server:getsockname())) end

-- A name in the abstract namespace that nobody else has.
local names = 0
local function new_name()
  names = names + 1
  return ("@aioloop-spec-%d-%d"):format(drivers.pid(), names)
end

local has_ipv6 = (function()
  local server <close> = aio.listen("::1", 0)
  return server ~= nil
end)()

describe("aio.listen", function()
  drivers.each(function(d)
    it("serves at addresses, names and paths", function()
      local ctx = d.context()
      local path = os.tmpname()
      os.remove(path)
      local places = { { "127.0.0.1", 0 }, { "localhost", 0 }, { "0.0.0.0", 0 }, { "*", 0 }, { new_name() },
        { "\0" .. new_name() }, { path } }
      if has_ipv6 then places[#places + 1] = { "::1", 0 } end
      run(d, ctx, function()
        for _, place in ipairs(places) do
          local server = assert(aio.listen(table.unpack(place)))
          local host, port = server:getsockname()
          local to = { host, port }
          if host == "0.0.0.0" then to[1] = "127.0.0.1" end
          if host == "::" then to[1] = has_ipv6 and "::1" or "127.0.0.1" end
          if not place[2] then to = { place[1] } end
          local client = assert(aio.connect(table.unpack(to)))
          local peer = assert(server:accept())
          client:write("hello from ", place[1], "\n")
          assert.equal("hello from " .. place[1], peer:read())
          assert.same(pack(client:getsockname()), pack(peer:getpeername()))
          assert.same(pack(client:getpeername()), pack(peer:getsockname()))
          client:close()
          peer:close()
          server:close()
          assert.is_nil((aio.connect(table.unpack(to))))
        end
        assert.is_nil(io.open(path))
      end)
      tasks.is_quiet(ctx)
    end)

    it("refuses an address in use, and one that is none", function()
      local server <close> = assert(aio.listen("127.0.0.1", 0))
      assert.equal(EADDRINUSE, select(3, aio.listen("127.0.0.1", port_of(server))))
      local one <close> = assert(aio.listen("127.0.0.1", 0, { reuseport = true }))
      local two <close> = assert(aio.listen("127.0.0.1", port_of(one), { reuseport = true }))
      assert.equal(port_of(one), port_of(two))
      assert.equal(EINVAL, select(3, aio.listen ""))
      assert.equal(EINVAL, select(3, aio.listen "a\0b"))
      assert.equal(ENAMETOOLONG, select(3, aio.listen(("x"):rep(200))))
      assert.is_nil((aio.listen("192.0.2.1", 0)))
      assert.is_nil((aio.listen "/no/such/folder/socket"))
      for _, bad in ipairs { { 1, 2 }, { "x", {}, {} }, { "127.0.0.1", -1 }, { "127.0.0.1", 65536 },
        { "127.0.0.1", 1.5 }, { nil, 1 }, {}, { 8080 }, { "*", 1.5 },
        { "@x", { backlog = -1 } }, { "@x", { backlog = "x" } }, { "@x", { nodelay = 1 } }, { "@x", { keepalive = 0 } },
        { "@x", { keepalive = 1.5 } }, { "@x", { v6only = 1 } }, { "@x", { timeout = "1" } },
        { "@x", { timeout = 0 / 0 } }, { "@x", nil, 1 } } do
        assert.has_error(function() aio.listen(table.unpack(bad, 1, 3)) end)
      end
    end)

    it("replaces the path of a server that has died, and no other", function()
      local path = os.tmpname()
      assert.equal(EADDRINUSE, select(3, aio.listen(path))) -- a file
      os.remove(path)
      local result = child.run(([[
        local aio = require "aioloop"
        assert(aio.listen(%q))
        os.exit(0)
      ]]):format(path))
      assert.equal(0, result.code)
      local ctx = d.context()
      run(d, ctx, function()
        local server = assert(aio.listen(path))
        assert.equal(EADDRINUSE, select(3, aio.listen(path)))
        assert(aio.connect(path)):close()
        os.remove(path)
        local other = assert(aio.listen(path))
        server:close() -- whose path it is not any more
        assert(aio.connect(path)):close()
        other:close()
        assert.is_nil((aio.connect(path)))
      end)
    end)
  end)
end)

describe("server:accept", function()
  drivers.each_backend(function(d)
    it("gives each connection to one, first come, first served", function()
      local ctx = d.context()
      local name = new_name()
      local server <close> = assert(aio.listen(name))
      local list, order = {}, {}
      for i = 1, 5 do
        list[i] = ctx:spawn(function()
          local stream <close> = assert(server:accept())
          order[#order + 1] = { i, stream:read() }
        end)
      end
      settle(d, ctx, list)
      run(d, ctx, function()
        for i = 1, 5 do
          local client <close> = assert(aio.connect(name))
          client:write("client ", i, "\n")
          client:shutdown()
          aio.await(list[i])
        end
      end)
      for i = 1, 5 do assert.same({ i, "client " .. i }, order[i]) end
      tasks.is_quiet(ctx)
    end)

    it("gives one to the next also while the one before polls for it", function()
      local ctx = d.context()
      local name = new_name()
      local server <close> = assert(aio.listen(name))
      local list, n = {}, 0
      for i = 1, 2 do
        list[i] = ctx:spawn(function()
          local _ <close> = assert(server:accept())
          n = n + 1
          tasks.poll_until(ctx, function() return n == 2 end)
        end)
      end
      settle(d, ctx, list)
      run(d, ctx, function()
        for _ = 1, 2 do
          local _ <close> = assert(aio.connect(name))
        end
      end)
      finish(d, ctx, list)
      tasks.is_quiet(ctx)
    end)

    it("serves 300 clients at once", function()
      local ctx = d.context()
      local server = assert(aio.listen("127.0.0.1", 0, { backlog = 300 }))
      local served = 0
      local acceptor = ctx:spawn(function()
        for client in server:clients() do
          ctx:spawn(function()
            for line in client:lines() do client:write(line:upper(), "\n") end
            client:close()
            served = served + 1
          end)
        end
      end)
      local list = {}
      for i = 1, 300 do
        list[i] = ctx:spawn(function()
          local client <close> = assert(aio.connect("127.0.0.1", port_of(server)))
          for k = 1, 5 do
            client:write("line ", i, " ", k, "\n")
            assert.equal(("LINE %d %d"):format(i, k), client:read())
          end
        end)
      end
      finish(d, ctx, list)
      d.wait(ctx, function() return served == 300 end)
      server:close()
      finish(d, ctx, { acceptor })
      tasks.is_quiet(ctx)
    end)

    it("has limits", function()
      local ctx = d.context()
      run(d, ctx, function()
        local server = assert(aio.listen(new_name(), { timeout = 0.001 }))
        assert.same(timeout, pack(server:accept()))
        assert.same(timeout, pack(server:accept(0)))
        local list = {}
        for i = 1, 3 do list[i] = ctx:spawn(server.accept, server, 10) end
        aio.yield()
        server:close()
        server:close()
        for i = 1, 3 do assert.same({ n = 3, true, nil, "closed" }, pack(list[i]:join())) end
        assert.same(closed, pack(server:accept()))
        assert.same(closed, pack(server:getsockname()))
        assert.equal(-1, server:getfd())
        assert.is_nil(server:clients()())
        assert.matches("^aioloop.server %(closed%)", tostring(server))
      end)
    end)

    it("waits when there are no descriptors left, tells once, and goes on", function()
      local result = child.run(([[
        local aio, fds = require "aioloop", require "fds"
        local ctx = assert(aio.context { backend = %q })
        local told = 0
        ctx:on_error(function(err, where)
          told = told + 1
          assert(where == "server" and tostring(err):match "Too many open files", err)
        end)
        ctx:run(function()
          local name = "@aioloop-spec-" .. tostring(ctx)
          local server = assert(aio.listen(name))
          local acceptor = aio.spawn(function() return assert(server:accept()) end)
          aio.sleep(0)
          local client, list = assert(aio.connect(name)), {}
          while true do
            local a, b = fds.pipe()
            if not a then break end
            list[#list + 1], list[#list + 2] = a, b
          end
          local last = fds.dup(0)
          local polls = ctx:stats().polls
          aio.sleep(0.25)
          assert(ctx:stats().polls - polls < 50, "a busy loop")
          assert(told == 1, told)
          for _, fd in ipairs(list) do fds.close(fd) end
          if last then fds.close(last) end
          local stream = aio.await(acceptor)
          client:write "x"
          assert(stream:readsome() == "x")
          assert(told == 1)
        end)
        io.write "fine"
      ]]):format(d.backend), 20, "ulimit -n 40;")
      assert.same({ "fine", "", 0 }, { result.out, result.err, result.code })
    end)

    it("keeps a client from a killed coroutine, for whoever comes next or waits already", function()
      local ctx = d.context()
      local name = new_name()
      local server = assert(aio.listen(name))
      local co = coroutine.create(function() server:accept() end)
      ctx:co_schedule(co)
      d.turns(ctx, 2)
      run(d, ctx, function()
        local client = assert(aio.connect(name))
        coroutine.close(co)
        aio.yield()
        aio.yield()
        assert(server:accept()):write "x"
        assert.equal("x", client:readsome())

        local killed = coroutine.create(function() server:accept() end)
        aio.enter(killed)
        local waits = aio.spawn(function() return assert(server:accept()):write "y" end)
        aio.yield()
        aio.yield()
        coroutine.close(killed)
        client = assert(aio.connect(name))
        assert.equal("y", client:readsome())
        assert.is_true((waits:join()))
      end)
      server:close()
    end)

    it("works without a task", function()
      local ctx = d.context()
      local name, got = new_name(), nil
      local server = assert(aio.listen(name))
      ctx:spawn(function()
        aio.sleep(0.005)
        assert(aio.connect(name)):write "x"
      end)
      ctx:schedule(function() got = assert(server:accept()):readsome() end)
      d.wait(ctx, function() return got end)
      assert.equal("x", got)
    end)

    it("closes what nobody holds", function()
      local ctx = d.context()
      tasks.collect()
      local before = fds.count()
      tasks.call_in_passing(function()
        local name = new_name()
        local server = assert(aio.listen(name))
        local task = ctx:spawn(server.accept, server)
        run(d, ctx, function() aio.connect(name) end)
        finish(d, ctx, { task })
        aio.listen(new_name())
      end)
      ctx:close()
      ctx = nil -- luacheck: ignore
      tasks.collect()
      assert.is_true(fds.count() <= before)
    end)
  end)
end)

describe("a server of streams", function()
  drivers.each(function(d)
    it("talks to curl", function()
      local ctx = d.context()
      local server = assert(aio.listen("127.0.0.1", 0))
      local times = os.getenv "SHIM" and 300 or 10000 -- a byte at a time takes long
      local body = ("0123456789abcdef"):rep(times)
      ctx:spawn(function()
        for client in server:clients() do
          ctx:spawn(function()
            while true do
              local head = client:read({ until_ = "\r\n\r\n", max = 10000 })
              if not head then break end
              local length = tonumber(head:match "[Ll]ength: (%d+)") or 0
              local got = length > 0 and client:read(length) or body
              client:write("HTTP/1.1 200 OK\r\nContent-Length: ", #got, "\r\n\r\n", got)
            end
            client:close()
          end)
        end
      end)
      local url = ("http://127.0.0.1:%d/"):format(port_of(server))
      local posted = os.tmpname()
      local file <close> = assert(io.open(posted, "w"))
      file:write(("posted "):rep(3 * times))
      file:close()
      local command = "unset LD_PRELOAD; curl -s -m 20 %s %s; "
        .. "curl -s -m 20 -H Expect: --data-binary @%s %s | cmp - %s && echo same"
      local curl = assert(io.popen(command:format(url, url, posted, url, posted)))
      local reader = assert(aio.stream(curl))
      local got = run(d, ctx, reader.read, reader, "a")
      assert.is_true(got == body .. body .. "same\n")
      server:close()
      reader:close()
      curl:close()
      os.remove(posted)
    end)

    it("takes over a connection of LuaSocket", function()
      local socket = require "socket"
      local ctx = d.context()
      local server <close> = assert(aio.listen("127.0.0.1", 0))
      local conn = assert(socket.connect("127.0.0.1", port_of(server)))
      run(d, ctx, function()
        local peer = assert(server:accept())
        local stream = assert(aio.stream(conn))
        stream:write "over a copy\n"
        assert.equal("over a copy", peer:read())
        peer:write "back\n"
        assert.equal("back", stream:read())
        stream:close()
        conn:settimeout(1)
        assert.equal(3, conn:send "own")
        assert.equal("own", peer:read(3))
        conn:close()
        assert.is_nil((peer:read()))
      end)
    end)
  end)
end)

describe("server:setfd", function()
  drivers.each_backend(function(d)
    it("gives its fd away, and takes another", function()
      local ctx = d.context()
      local path = os.tmpname()
      os.remove(path)
      local a, b = assert(aio.listen("127.0.0.1", 0)), assert(aio.listen(path))
      local port, fd = port_of(a), a:getfd()
      assert.same(timeout, pack(run(d, ctx, a.accept, a, 0.001))) -- it has been watched
      assert.equal(a, a:setfd(-1))
      assert.equal(-1, a:getfd())
      assert.same(closed, pack(run(d, ctx, a.accept, a)))
      local old = b:getfd()
      assert.equal(b, b:setfd(fd))
      assert.equal(port, port_of(b))
      fds.close(old)
      assert.is_true(os.remove(path)) -- it was left
      run(d, ctx, function()
        local client <close> = assert(aio.connect("127.0.0.1", port))
        local peer <close> = assert(b:accept())
        peer:write "x"
        assert.equal("x", client:readsome())
      end)

      local waiting = ctx:spawn(b.accept, b)
      settle(d, ctx, { waiting })
      assert.has_error(function() b:setfd(-1) end)
      waiting:cancel()
      finish(d, ctx, { waiting })
      local r, w = aio.pipe()
      assert.equal(88, select(3, b:setfd(r:getfd()))) -- ENOTSOCK
      assert.equal(-1, b:getfd())
      local c <close> = aio.socketpair()
      assert.equal(EINVAL, select(3, b:setfd(c:getfd())))
      assert.equal(9, select(3, b:setfd(1000000)))
      for _, bad in ipairs { -2, 1.5, "x", {}, 1 << 40 } do assert.has_error(function() b:setfd(bad) end) end
      fds.close(fd)
      r:close()
      w:close()
      tasks.is_quiet(ctx)
    end)
  end)
end)

describe("aio.listen", function()
  it("takes a service for all addresses of the machine, too", function()
    local name
    for line in io.lines "/etc/services" do
      local found, port = line:match "^([%w-]+)%s+(%d+)/tcp"
      if found and tonumber(port) > 1024 then
        local server, _, errno = aio.listen("*", found)
        if server then
          assert.equal(tonumber(port), (select(2, server:getsockname())))
          server:close()
          name = found
          break
        end
        assert.equal(98, errno) -- EADDRINUSE: the next one
      end
    end
    assert.is_string(name)
    assert.is_nil((aio.listen("*", "no-such-service")))
  end)
end)
