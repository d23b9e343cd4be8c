-- SPDX-License-Identifier: MIT
--- Datagrams: whole or known to be cut, in turn, to names and groups; who waits, and what ends that.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local jobs = require "spec.support.jobs"
local tasks = require "spec.support.tasks"

local run, finish, settle = tasks.run, tasks.finish, tasks.settle
local closed, timeout = { n = 2, nil, "closed" }, { n = 2, nil, "timeout" }
local EACCES, EINVAL, EMSGSIZE, EDESTADDRREQ, EAFNOSUPPORT, ENOTCONN, ECONNREFUSED = 13, 22, 90, 89, 97, 107, 111

local pack = table.pack

local function port_of(sock) return (select(2, sock:getsockname())) end

-- A name in the abstract namespace that nobody else has.
local names = 0
local function new_name()
  names = names + 1
  return ("@aioloop-udp-%d-%d"):format(drivers.pid(), names)
end

local has_ipv6 = (function()
  local sock <close> = aio.udp()
  return sock:bind("::1", 0) ~= nil
end)()

local hosts = { "127.0.0.1", has_ipv6 and "::1" or nil }

local function new_pair(host)
  local a, b = assert(aio.udp():bind(host or "127.0.0.1", 0)), assert(aio.udp():bind(host or "127.0.0.1", 0))
  return a, b
end

local function connect_pair(host)
  local a, b = new_pair(host)
  assert(a:connect(b:getsockname()))
  assert(b:connect(a:getsockname()))
  return a, b
end

-- Unix sockets; the second has no room.
local function new_full(connected)
  local name = new_name()
  local to, from = assert(aio.udp():bind(name)):settimeout(0), aio.udp():settimeout(0)
  if connected then assert(from:connect(name)) end
  local n = 0
  while from:sendto("filler", name) do n = n + 1 end
  return from:settimeout(), to, name, n
end

describe("a datagram", function()
  drivers.each_backend(function(d)
    after_each(tasks.collect)

    it("arrives as it was sent, with its sender", function()
      local ctx = d.context()
      run(d, ctx, function()
        for _, host in ipairs(hosts) do
          local a, b = new_pair(host)
          local from = { a:getsockname() }
          assert.equal(host, from[1])
          local large = ("0123456789abcdef"):rep(3750)
          for _, data in ipairs { "text", "", "\0", 12, 1.5, aio.buffer(10):set "buffer", aio.buffer(10), large } do
            assert.equal(a, a:sendto(data, host, port_of(b)))
            local want = aio.type(data) == "buffer" and data:tostring() or tostring(data)
            assert.same({ n = 3, want, from[1], from[2] }, pack(b:recvfrom()))
          end
          assert.equal(b, b:sendto("back", from[1], from[2]))
          assert.same({ n = 3, "back", host, port_of(b) }, pack(a:recv()))
          assert.equal(EMSGSIZE, select(3, a:sendto(("x"):rep(65536), host, port_of(b))))
        end
      end)
      tasks.is_quiet(ctx)
    end)

    it("arrives while somebody waits, also an empty one", function()
      local ctx = d.context()
      for _, host in ipairs(hosts) do
        local a, b = new_pair(host)
        local buffer = aio.buffer(4):set "old"
        for _, data in ipairs { "", "1234", ("x"):rep(60000) } do
          local waiter = ctx:spawn(b.recvfrom, b)
          settle(d, ctx, { waiter })
          run(d, ctx, a.sendto, a, data, host, port_of(b))
          finish(d, ctx, { waiter })
          assert.same({ n = 4, true, data, host, port_of(a) }, pack(waiter:join()))
          waiter = ctx:spawn(b.recvinto, b, buffer)
          settle(d, ctx, { waiter })
          run(d, ctx, a.sendto, a, data, host, port_of(b))
          finish(d, ctx, { waiter })
          local n = math.min(#data, 4)
          assert.same({ true, n, host, port_of(a), #data > 4 and #data or nil }, { waiter:join() })
          assert.equal(data:sub(1, 4), buffer:tostring())
        end
      end
      tasks.is_quiet(ctx)
    end)

    it("that is longer than was asked for is cut, and its length told", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = connect_pair()
        local host, port = a:getsockname()
        local buffer = aio.buffer(3)
        for _ = 1, 3 do a:send "12345" end
        assert.same({ n = 4, "12", host, port, 5 }, pack(b:recvfrom(2)))
        assert.same({ n = 4, "", host, port, 5 }, pack(b:recvfrom(0)))
        assert.same({ n = 4, 3, host, port, 5 }, pack(b:recvinto(buffer)))
        assert.equal("123", buffer:tostring())
        a:send "12345"
        assert.same({ n = 3, "12345", host, port }, pack(b:recvfrom(5)))
        a:send ""
        assert.same({ n = 3, "", host, port }, pack(b:recvfrom(0)))
        local name = new_name()
        local to, from = assert(aio.udp():bind(name)), aio.udp()
        from:sendto(("x"):rep(70000), name)
        local data, path, none, length = to:recvfrom(1 << 40)
        assert.same({ 65536, "", 70000 }, { #data, path, length })
        assert.is_nil(none)
        from:sendto("xyz", name)
        assert.same({ n = 2, "xyz", "" }, pack(to:recvfrom()))
      end)
    end)

    it("is one of 1,000 that go back and forth", function()
      local ctx = d.context()
      local a, b = connect_pair()
      local echo = ctx:spawn(function()
        local buffer = aio.buffer(2000)
        for i = 1, 1000 do
          if i % 2 == 0 then
            assert(b:recvinto(buffer))
            assert(b:send(buffer))
          else
            assert(b:send((assert(b:recv()))))
          end
        end
      end)
      local asker = ctx:spawn(function()
        for i = 1, 1000 do
          local text = ("%d:%s"):format(i, ("x"):rep(i * 7 % 1500))
          assert(a:send(text))
          assert.equal(text, (a:recv()))
        end
      end)
      finish(d, ctx, { echo, asker })
      tasks.is_quiet(ctx)
    end)

    it("does not keep others waiting, however many there are", function()
      local ctx = d.context()
      local a, b = connect_pair()
      local n, ticks = 0, 0
      local reader = ctx:spawn(function()
        while b:recv() do n = n + 1 end
      end)
      local writer = ctx:spawn(function()
        while a:send "x" do end -- luacheck: ignore
      end)
      local function tick()
        ticks = ticks + 1
        ctx:schedule(tick)
      end
      ctx:schedule(tick)
      d.wait(ctx, function() return ticks >= 300 and n > 1000 end)
      assert.is_true(n <= ticks * 64, n)
      reader:cancel()
      writer:cancel()
      finish(d, ctx, { reader, writer })
    end)

    it("goes to those who wait in their order", function()
      local ctx = d.context()
      local a, b = connect_pair()
      local order, list = {}, {}
      for i = 1, 5 do
        list[i] = ctx:spawn(function() order[i] = (b:recvfrom()) end)
      end
      settle(d, ctx, list)
      list[2]:cancel()
      run(d, ctx, function()
        for i = 1, 5 do a:send("to " .. i) end
        assert.equal("to 5", (b:recv())) -- behind them
      end)
      finish(d, ctx, list)
      assert.same({ "to 1", nil, "to 2", "to 3", "to 4" }, order)
      tasks.is_quiet(ctx)
    end)

    it("goes to the next also while the one before polls for it", function()
      local ctx = d.context()
      local a, b = connect_pair()
      local from, to, name = new_full()
      local n = 0
      local function wait_for_both()
        n = n + 1
        while n < 2 do ctx:poll() end
      end
      local list = {}
      for i = 1, 2 do
        list[i] = ctx:spawn(function()
          b:recv()
          wait_for_both()
        end)
      end
      settle(d, ctx, list)
      run(d, ctx, function()
        a:send "1"
        a:send "2"
      end)
      finish(d, ctx, list)
      n = 0
      for i = 1, 2 do
        list[i] = ctx:spawn(function()
          from:sendto("x", name)
          wait_for_both()
        end)
      end
      settle(d, ctx, list)
      run(d, ctx, function() repeat until not to:recv() end)
      finish(d, ctx, list)
      tasks.is_quiet(ctx)
    end)

    it("is kept for the next when its time is over, or it is cancelled", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = connect_pair()
        b:settimeout(0.001)
        assert.same(timeout, pack(b:recvfrom()))
        b:settimeout(0)
        assert.same(timeout, pack(b:recvinto(aio.buffer(1))))
        b:settimeout()
        local task = ctx:spawn(b.recvfrom, b)
        aio.sleep(0.001)
        task:cancel()
        task:join()
        a:send "x"
        assert.equal("x", (b:settimeout(10):recvfrom()))
      end)
      tasks.is_quiet(ctx)
    end)

    it("waits for room, in its order, as it was when it was sent", function()
      local ctx = d.context()
      for _, connected in ipairs { false, true } do
        local from, to, name, fillers = new_full(connected)
        local list, order = {}, {}
        for i = 1, 8 do
          list[i] = ctx:spawn(function()
            local data = i % 2 == 0 and aio.buffer(9):set("buffer " .. i) or "string " .. i
            if connected then
              assert.equal(from, from:send(data))
            else
              assert.equal(from, from:sendto(data, name))
            end
            order[#order + 1] = i
          end)
        end
        settle(d, ctx, list)
        list[3]:cancel()
        collectgarbage()
        assert.same(timeout, pack(run(d, ctx, function() return from:settimeout(0):sendto("x", name) end)))
        local got = {}
        while #got < fillers + 7 do
          local data = run(d, ctx, function() return (to:recv()) end)
          if data then got[#got + 1] = data else d.turn(ctx, true) end
        end
        finish(d, ctx, list)
        assert.same({ 1, 2, 4, 5, 6, 7, 8 }, order)
        assert.same({ "string 1", "buffer 2", "buffer 4", "string 5", "buffer 6", "string 7", "buffer 8" },
          { table.unpack(got, fillers + 1) })
        tasks.is_quiet(ctx)
        from:close()
        to:close()
      end
    end)

    it("that finds no room does not keep the loop busy", function()
      local ctx = d.context()
      for _, connected in ipairs { false, true } do
        local from, to, name = new_full(connected)
        local task = ctx:spawn(from.sendto, from, "x", name)
        settle(d, ctx, { task })
        local polls = ctx:stats().polls
        run(d, ctx, aio.sleep, 0.1)
        assert.is_true(ctx:stats().polls - polls < 100, ctx:stats().polls - polls)
        task:cancel()
        finish(d, ctx, { task })
        tasks.is_quiet(ctx)
        from:close()
        to:close()
      end
    end)
  end)
end)

describe("a socket of datagrams", function()
  drivers.each_backend(function(d)
    after_each(tasks.collect)

    it("that is closed says so to all who wait, and ever after", function()
      local ctx = d.context()
      local _, b = new_pair()
      local from, _, name = new_full()
      local list = {}
      for i = 1, 3 do list[i] = ctx:spawn(b.recvfrom, b) end
      list[4] = ctx:spawn(b.recvinto, b, aio.buffer(1))
      for i = 5, 7 do list[i] = ctx:spawn(from.sendto, from, "x", name) end
      settle(d, ctx, list)
      assert.is_true(b:close())
      assert.is_true(b:close())
      from:close()
      finish(d, ctx, list)
      for _, task in ipairs(list) do assert.same({ n = 3, true, nil, "closed" }, pack(task:join())) end
      run(d, ctx, function()
        for _, got in ipairs { pack(b:recvfrom()), pack(b:recv()), pack(b:recvinto(aio.buffer(1))), pack(b:send "x"),
          pack(b:sendto("x", "127.0.0.1", 9)), pack(b:sendto("x", "localhost", 9)), pack(b:bind("127.0.0.1", 0)),
          pack(b:connect "@x"), pack(b:getsockname()), pack(b:getpeername()), pack(b:join "239.255.77.2") } do
          assert.same(closed, got)
        end
      end)
      assert.equal(-1, b:getfd())
      assert.matches("^aioloop.udp %(closed%)", tostring(b))
      tasks.is_quiet(ctx)
    end)

    it("is closed by whoever it serves", function()
      local ctx = d.context()
      local a, b = connect_pair()
      local first = ctx:spawn(function()
        b:recv()
        b:close()
      end)
      local second = ctx:spawn(b.recv, b)
      settle(d, ctx, { first, second })
      run(d, ctx, function()
        a:send "1"
        a:send "2"
      end)
      finish(d, ctx, { first, second })
      assert.same({ n = 3, true, nil, "closed" }, pack(second:join()))
    end)

    it("hears once that nobody is there, and goes on", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, gone = new_pair()
        local host, port = gone:getsockname()
        gone:close()
        assert(a:connect(host, port))
        assert(a:send "x")
        a:settimeout(5)
        local refused = pack(a:recv())
        assert.same({ n = 3, nil, refused[2], ECONNREFUSED }, refused)
        assert.matches("refused", refused[2])
        assert.same(timeout, pack(a:settimeout(0):recv()))
        -- also to who waits already
        local waiter = ctx:spawn(function() return a:settimeout(5):recv() end)
        aio.yield()
        assert(a:send "x")
        assert.equal(ECONNREFUSED, (select(4, waiter:join())))
        local back = assert(aio.udp():bind(host, port))
        assert(a:send "now")
        local data, from, from_port = back:settimeout(5):recv()
        assert.equal("now", data)
        back:sendto("and back", from, from_port)
        assert.equal("and back", (a:recv()))
      end)
      tasks.is_quiet(ctx)
    end)

    it("that is connected hears nobody else", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = connect_pair()
        local c = aio.udp()
        assert.same({ b:getsockname() }, { a:getpeername() })
        assert(c:sendto("stranger", a:getsockname()))
        assert(b:send "friend")
        assert.equal("friend", (a:recv()))
        assert.same(timeout, pack(a:settimeout(0):recv()))
        assert.equal(a, a:connect("127.0.0.1", port_of(c))) -- another friend
        assert(a:send "for c")
        assert.equal("for c", (c:recv()))
        assert(a:sendto("past the peer", b:getsockname()))
        assert.equal("past the peer", (b:recv()))
      end)
    end)

    it("works without a task", function()
      local ctx = d.context()
      local a, b = connect_pair()
      local from, to, name = new_full()
      local got
      ctx:spawn(function()
        aio.sleep(0.005)
        a:send "1"
        a:send "22"
        aio.sleep(0.005)
        to:recv()
      end)
      ctx:schedule(function()
        local buffer = aio.buffer(5)
        got = { (b:recv()), (b:recvinto(buffer)), buffer:tostring(), from:sendto("x", name) == from }
      end)
      d.wait(ctx, function() return got end)
      assert.same({ "1", 2, "22", true }, got)
    end)

    it("is nobody's: one context after the other, and one at a time", function()
      local one, two = d.context(), d.context()
      local a, b = connect_pair()
      local waiter = one:spawn(b.recv, b)
      settle(d, one, { waiter })
      run(d, two, function()
        local ok, err = pcall(b.recv, b)
        assert.is_false(ok)
        assert.matches("another context", err)
        a:send "to one"
      end)
      finish(d, one, { waiter })
      assert.equal("to one", (select(2, waiter:join())))
      waiter = two:spawn(b.recv, b)
      settle(d, two, { waiter })
      run(d, one, a.send, a, "to two")
      finish(d, two, { waiter })
      assert.equal("to two", (select(2, waiter:join())))
      tasks.is_quiet(one)
      tasks.is_quiet(two)
    end)

    it("outlives the context in which somebody waited", function()
      local ctx, other = d.context(), d.context()
      local a, b = connect_pair()
      local from, to, name = new_full()
      for _ = 1, 2 do
        ctx:spawn(b.recv, b)
        ctx:spawn(from.sendto, from, "lost", name)
      end
      d.turns(ctx, 5)
      ctx:close()
      run(d, other, function()
        a:send "x"
        assert.equal("x", (b:recv()))
        repeat until not to:recv()
        assert.equal(from, from:sendto("y", name))
        assert.equal("y", (to:recv()))
      end)
      tasks.is_quiet(other)
    end)

    it("of which the fd was closed behind our back says closed, and leaves the number alone", function()
      local ctx = d.context()
      for _, direction in ipairs { "in", "out" } do
        local from, to, name = new_full(true)
        local sock = direction == "in" and to:settimeout() or from
        if direction == "in" then repeat until not to:settimeout(0):recv() end
        local fd = sock:getfd()
        local task = ctx:spawn(function()
          if direction == "in" then return to:settimeout():recv() end
          return from:sendto("x", name)
        end)
        settle(d, ctx, { task })
        fds.close(fd)
        finish(d, ctx, { task })
        assert.same({ n = 3, true, nil, "closed" }, pack(task:join()))
        local r <close> = aio.socketpair()
        sock:close()
        assert.is_true(fds.is_open(r:getfd()))
        from:close()
        to:close()
      end
      tasks.is_quiet(ctx)
    end)

    it("gives what a killed coroutine waited for to the next", function()
      local ctx = d.context()
      local a, b = connect_pair()
      local from, to, name = new_full()
      for _, fn in ipairs { function() b:recv() end, function() from:sendto("from the dead", name) end } do
        local co = coroutine.create(fn)
        ctx:co_schedule(co)
        d.turns(ctx, 3)
        coroutine.close(co)
      end
      collectgarbage()
      local heir, sender = ctx:spawn(b.recv, b), ctx:spawn(from.sendto, from, "alive", name)
      settle(d, ctx, { heir, sender })
      run(d, ctx, a.send, a, "inherited")
      run(d, ctx, to.recv, to)
      finish(d, ctx, { heir, sender })
      assert.equal("inherited", (select(2, heir:join())))
      local last
      repeat
        local data = run(d, ctx, function() return (to:recv()) end)
        last = data or last
      until not data
      assert.equal("alive", last)
    end)

    it("goes when nobody holds it", function()
      local ctx = d.context()
      tasks.collect()
      local before = fds.count()
      tasks.call_in_passing(function()
        local a, b = connect_pair()
        local _, c = new_pair()
        local task = ctx:spawn(b.recv, b)
        ctx:spawn(c.recv, c) -- for ever
        settle(d, ctx, { task })
        run(d, ctx, a.send, a, "x")
        finish(d, ctx, { task })
        aio.udp { family = "inet" } -- luacheck: ignore
        run(d, ctx, new_full)
      end)
      ctx:close()
      ctx = nil -- luacheck: ignore
      tasks.collect()
      assert.is_true(fds.count() <= before)
    end)

    it("is used by finalisers in the midst of its own work", function()
      local a, b = connect_pair()
      a:settimeout(0)
      b:settimeout(0)
      local got, sent = {}, 0
      local function receive()
        local data, from, port = b:recv()
        if not data then return end
        local text = ("%s %s %d"):format(data, from, port) -- a finaliser may run here
        got[#got + 1] = text
      end
      local function send()
        sent = sent + 1
        assert(a:send(("%05d"):format(sent)))
      end
      local function litter()
        setmetatable({}, { __gc = function()
          send()
          receive()
        end })
      end
      for _ = 1, 300 do -- in no task, for a finaliser cannot be suspended
        litter()
        send()
        receive()
        local _ = ("garbage"):rep(50) .. sent
      end
      tasks.collect()
      b:settimeout(10) -- even on this machine they are under way for a time
      for _ = #got + 1, 600 do receive() end
      assert.equal(600, sent)
      assert.equal(600, #got)
      local seen = {}
      for _, text in ipairs(got) do
        assert.is_nil(seen[text])
        seen[text] = true
      end
    end)
  end)
end)

describe("the address of a datagram", function()
  drivers.each(function(d)
    after_each(tasks.collect)

    it("says what kind of socket it is to be", function()
      local ctx = d.context()
      run(d, ctx, function()
        local path = os.tmpname()
        os.remove(path)
        for _, at in ipairs { { "127.0.0.1", 0 }, { "localhost", 0 }, { "*", 0 }, { "*", "0" }, { new_name() },
          { path }, has_ipv6 and { "::1", 0 } or nil } do
          local sock <close> = aio.udp()
          assert.equal(-1, sock:getfd())
          assert.matches("^aioloop.udp %(new%)", tostring(sock))
          assert.equal(ENOTCONN, select(3, sock:getsockname()))
          assert.equal(ENOTCONN, select(3, sock:getpeername()))
          assert.equal(EDESTADDRREQ, select(3, sock:send "x"))
          assert.has_error(function() sock:recv() end)
          assert.equal(sock, sock:bind(table.unpack(at)))
          assert.matches("^aioloop.udp %(open, fd %d+%)", tostring(sock))
          assert.equal("udp", aio.type(sock))
          local host, port = sock:getsockname()
          local client <close> = aio.udp()
          local to = ({ ["0.0.0.0"] = "127.0.0.1", ["::"] = has_ipv6 and "::1" or "127.0.0.1" })[host] or host
          assert.equal(client, client:connect(to, port))
          assert.equal(client, client:send "x")
          local data, from, from_port = sock:recv()
          assert.equal("x", data)
          if at[2] then
            assert.equal(sock, sock:sendto("y", from, from_port))
            assert.equal("y", (client:recv()))
          end
        end
        assert.is_nil(io.open(path)) -- it was removed
      end)
    end)

    it("is IPv4 for a socket of IPv6, too, unless it is to be of that only", function()
      if not has_ipv6 then return pending "no IPv6 here" end
      local ctx = d.context()
      run(d, ctx, function()
        local four, six = assert(aio.udp():bind("127.0.0.1", 0)), assert(aio.udp():bind("*", 0))
        assert.equal("::", (six:getsockname()))
        assert(six:sendto("to four", four:getsockname()))
        local data, host, port = four:recv()
        assert.equal("to four", data)
        assert(four:sendto("back", host, port))
        data, host, port = six:recv()
        assert.same({ "back", "::ffff:127.0.0.1" }, { data, host })
        assert(six:sendto("again", host, port))
        assert.equal("again", (four:recv()))
        local only = assert(aio.udp { family = "inet6", v6only = true })
        assert.is_nil((only:sendto("x", four:getsockname())))
        assert.equal(EAFNOSUPPORT, select(3, four:sendto("x", "::1", 9)))
        assert.equal(EAFNOSUPPORT, select(3, only:bind("127.0.0.1", 0)))
        assert.equal(EAFNOSUPPORT, select(3, only:sendto("x", "@path")))
        -- A name has addresses of both: the one that fits is found.
        assert(four:sendto("by name", "localhost", port_of(four)))
        assert.equal("by name", (four:recv()))
      end)
    end)

    it("may be a name, which is asked for without holding up the loop", function()
      local ctx = d.context()
      assert(ctx:set_threads(0, 1))
      local gate = jobs.gate()
      local ticks, timed_out, over = 0, false, false
      local sock = assert(aio.udp():bind(drivers.localhost, 0))
      ctx:spawn(aio.work, jobs.pass, gate.at)
      local task = ctx:spawn(function()
        assert(aio.udp():sendto("in numbers", drivers.localhost, port_of(sock))) -- no thread is needed for that
        local other = aio.udp { timeout = 0.001 }
        assert.same(timeout, pack(other:connect("localhost", port_of(sock))))
        timed_out = true
        other:settimeout()
        assert(other:connect("localhost", port_of(sock)))
        assert(other:send "by name")
        assert(aio.udp():sendto("once more", "localhost", tostring(port_of(sock))))
        over = true
      end)
      local function tick()
        ticks = ticks + 1
        if timed_out and ticks >= 300 then gate:open() end
        if not over then ctx:schedule(tick) end
      end
      ctx:schedule(tick)
      finish(d, ctx, { task })
      assert.is_true(ticks >= 300)
      run(d, ctx, function()
        for _, want in ipairs { "in numbers", "by name", "once more" } do assert.equal(want, (sock:recv())) end
        assert.is_nil((sock:sendto("x", "no-such-host.invalid", 9)))
        assert.is_nil((sock:sendto("x", "", 9)))
        assert.is_nil((aio.udp():bind("localhost", "no such service")))
      end)
      getmetatable(gate).__close(gate)
    end)

    it("is one of this machine, which nobody is asked for", function()
      assert.is_true(port_of(assert(aio.udp { timeout = 0 }:bind("*", 0))) > 0)
      local anywhere = coroutine.wrap(function() return assert(aio.udp():bind("*", 0)) end) -- where one cannot wait
      assert.is_true(port_of(anywhere()) > 0)
      assert.same(timeout, pack(aio.udp { timeout = 0 }:bind("localhost", 0)))
    end)

    it("is refused, and leaves nothing behind", function()
      local ctx = d.context()
      tasks.collect()
      local before = fds.count()
      run(d, ctx, function()
        local a = assert(aio.udp():bind("127.0.0.1", 0))
        local sock = aio.udp()
        assert.equal(98, select(3, sock:bind("127.0.0.1", port_of(a)))) -- EADDRINUSE
        assert.is_nil((sock:bind("192.0.2.99", 0)))
        assert.equal(EINVAL, select(3, sock:bind ""))
        assert.equal(36, select(3, sock:sendto("x", ("x"):rep(200)))) -- ENAMETOOLONG
        assert.equal(2, select(3, sock:sendto("x", "/no/such/path"))) -- ENOENT
        assert.equal(EACCES, select(3, sock:sendto("x", "127.255.255.255", 9)))
        assert.is_nil((sock:join "127.0.0.1"))
        assert.is_nil((sock:join("239.255.77.3", "no-such-if")))
        assert.equal(-1, sock:getfd())
        assert.equal(sock, sock:bind("127.0.0.1", 0)) -- and is none the worse for it
        assert.equal(EINVAL, select(3, sock:bind("127.0.0.1", 0)))
        assert.is_true(sock:getfd() >= 0)
        a:close()
        sock:close()
      end)
      assert.equal(before, fds.count())
    end)

    it("and the data, the maximum and the options are checked", function()
      local sock <close> = assert(aio.udp():bind("127.0.0.1", 0))
      for _, bad in ipairs { { "bind" }, { "bind", 1, 1 }, { "bind", "x", {} }, { "bind", "x", -1 },
        { "bind", "x", 65536 },
        { "bind", "x", 1.5 }, { "bind", "x\0", 1 }, { "connect" }, { "connect", {}, 1 }, { "sendto" },
        { "sendto", "x" },
        { "sendto", {}, "x", 1 }, { "sendto", nil, "x", 1 }, { "sendto", "x", "x", {} }, { "send" }, { "send", {} },
        { "send", true }, { "recvfrom", -1 }, { "recvfrom", "x" }, { "recvfrom", {} }, { "recvinto" },
        { "recvinto", 1 },
        { "recvinto", aio.buffer(0) }, { "settimeout", "1" }, { "settimeout", 0 / 0 }, { "join" }, { "join", "x" },
        { "join", "239.1.1.1", {} }, { "join", "239.1.1.1", -1 }, { "leave", 1 } } do
        assert.has_error(function() sock[bad[1]](sock, table.unpack(bad, 2, 4)) end)
      end
      for _, bad in ipairs { 1, "x", { family = "unix" }, { family = 4 }, { ttl = 0 }, { ttl = 256 }, { ttl = "7" },
        { ttl = 1.5 }, { multicast_ttl = -1 }, { broadcast = 1 }, { reuseaddr = "x" }, { reuseport = 0 },
        { v6only = {} },
        { multicast_loop = 1 }, { sndbuf = 0 }, { rcvbuf = 2 ^ 31 }, { multicast_interface = {} },
        { multicast_interface = -1 }, { timeout = "1" }, { timeout = 0 / 0 } } do
        assert.has_error(function() aio.udp(bad) end)
      end
      assert.equal(19, select(3, aio.udp { multicast_interface = "no-such-if" })) -- ENODEV
    end)
  end)
end)

describe("datagrams to many", function()
  drivers.each(function(d)
    after_each(tasks.collect)

    it("are broadcast where that is allowed", function()
      local ctx = d.context()
      run(d, ctx, function()
        local any = assert(aio.udp { family = "inet", timeout = 5 }:bind("*", 0))
        assert.equal("0.0.0.0", (any:getsockname()))
        assert.equal("0.0.0.0", (assert(aio.udp { family = "inet" }:bind("*", "0")):getsockname()))
        local timid, loud = aio.udp(), aio.udp { broadcast = true }
        assert.equal(EACCES, select(3, timid:sendto("x", "127.255.255.255", port_of(any))))
        assert(loud:sendto("all", "127.255.255.255", port_of(any)))
        assert.equal("all", (any:recv()))
      end)
    end)

    it("reach all members of a group, and those who left no more", function()
      local ctx = d.context()
      run(d, ctx, function()
        local group = "239.255.77.4"
        local options = { reuseaddr = true, multicast_interface = "lo", multicast_ttl = 1, timeout = 5 }
        local a = assert(aio.udp(options):bind("0.0.0.0", 0))
        local b = assert(aio.udp(options):bind("0.0.0.0", port_of(a)))
        for _, member in ipairs { a, b } do assert.equal(member, member:join(group, "lo")) end
        assert.equal(a, a:sendto("to all", group, port_of(a)))
        assert.equal("to all", (a:recv()))
        assert.equal("to all", (b:recv()))
        assert.equal(b, b:leave(group, "lo"))
        assert.is_nil((b:leave(group, "lo")))
        assert(a:sendto("to one", group, port_of(a)))
        assert.equal("to one", (a:recv()))
        assert.same(timeout, pack(b:settimeout(0):recv()))
      end)
    end)

    it("reach members of a group of IPv6", function()
      if not has_ipv6 then return pending "no IPv6 here" end
      local ctx = d.context()
      local group, reached = "ff02::a10a:1", false
      run(d, ctx, function()
        local seen = {}
        for line in io.lines "/proc/net/if_inet6" do
          local name = line:match "(%S+)%s*$"
          if not seen[name] and not reached then
            seen[name] = true
            local sock <close> = assert(aio.udp { family = "inet6", multicast_interface = name, timeout = 5 })
            assert(sock:bind("::", 0))
            assert.equal(sock, sock:join(group, name))
            if sock:sendto("to all", group, port_of(sock)) then
              local data, host = sock:recv()
              assert.equal("to all", data)
              assert.matches(":", host, 1, true)
              reached = true
            end
            assert.equal(sock, sock:leave(group, name))
          end
        end
      end)
      if not reached then return pending "no interface here sends to groups of IPv6" end
    end)
  end)
end)

describe("a peer that is no aioloop", function()
  local socat = "env -u LD_PRELOAD socat "

  -- The pid of a program that is about to run, and its output.
  local function start(command)
    local pipe = assert(io.popen("echo $$; exec timeout 20 " .. command))
    local out = assert(aio.stream(pipe))
    return pipe, out, assert(out:read())
  end

  drivers.each(function(d)
    after_each(tasks.collect)

    for _, of in ipairs { { "UDP4", "127.0.0.1", "127.0.0.1" }, { "UDP6", "::1", "[::1]" } } do
      it("asks by " .. of[1], function()
        if of[1] == "UDP6" and not has_ipv6 then return pending "no IPv6 here" end
        local ctx = d.context()
        run(d, ctx, function()
          local sock = assert(aio.udp { timeout = 10 }:bind(of[2], 0))
          -- What it gets goes through head and comes back.
          local pipe, out = start((socat .. "-t 0.01 %s:%s:%d SYSTEM:'printf hello; head -c 12'"):format(
            of[1], of[3], port_of(sock)))
          local data, host, port = assert(sock:recvfrom())
          assert.same({ "hello", of[2] }, { data, host })
          assert(sock:sendto("there and ", host, port))
          assert(sock:sendto("back", host, port))
          local got = ""
          while #got < 12 do got = got .. assert(sock:recv()) end
          assert.equal("there and ba", got)
          assert.equal("", out:read "a")
          pipe:close()
        end)
      end)

      it("answers by " .. of[1], function()
        if of[1] == "UDP6" and not has_ipv6 then return pending "no IPv6 here" end
        local ctx = d.context()
        run(d, ctx, function()
          local free = assert(aio.udp():bind(of[2], 0))
          local port = port_of(free)
          free:close()
          local pipe, out, pid = start((socat .. "%s-LISTEN:%d,bind=%s PIPE 2>&1"):format(of[1], port, of[3]))
          local sock = assert(aio.udp { timeout = 0.05 }:connect(of[2], port))
          local data
          aio.timeout(10, function()
            repeat -- until it is there
              sock:send "hello"
              data = sock:recv()
              if not data then aio.sleep(0.01) end
            until data
          end)
          assert.equal("hello", data)
          sock:settimeout(0.1)
          repeat until not sock:recv() -- what it was sent more than once
          sock:settimeout(10)
          for i = 1, 50 do
            local text = ("%d "):format(i):rep(i)
            assert(sock:send(text))
            assert.equal(text, (sock:recv()))
          end
          os.execute("kill " .. pid)
          out:read "a"
          pipe:close()
        end)
      end)
    end

    it("asks the example for the time", function()
      local ctx = d.context()
      run(d, ctx, function()
        local server, out, pid = start "lua5.4 examples/udp_time.lua"
        local port = assert(tonumber(out:read():match "^It is %d%d:%d%d:%d%d at port (%d+)$"))
        for _, to in ipairs { "UDP4:127.0.0.1", has_ipv6 and "UDP6:[::1]" or nil } do
          local client, answer = start(
            (socat .. "-t 0.01 %s:%d SYSTEM:'echo; head -n 1 >&3' 3>&1"):format(to, port))
          assert.matches("^%d%d%d%d%-%d%d%-%d%d %d%d:%d%d:%d%d UTC$", answer:read())
          answer:close()
          client:close()
        end
        os.execute("kill " .. pid)
        out:close()
        server:close()
      end)
    end)
  end)
end)
