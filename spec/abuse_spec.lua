-- SPDX-License-Identifier: MIT
--- Streams and servers among peers who mean no good, or too much of it: very many, very much, very slow, gone at any
--- moment.
--
-- Keep  what others have done to a stream's fd is in reused_spec.lua, a server without descriptors in server_spec.lua.

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local shell = require "spec.support.shell"
local socket = require "socket"
local tasks = require "spec.support.tasks"

local run, finish, settle = tasks.run, tasks.finish, tasks.settle
local eof, timeout = { n = 2, nil, "eof" }, { n = 2, nil, "timeout" }
local EPIPE, ECONNREFUSED, ECONNRESET = 32, 111, 104

local pack = table.pack
local MiB = 1 << 20
local plain = not os.getenv "LD_PRELOAD" -- or a tool has memory of its own

local function listen(options)
  local server = assert(aio.listen("127.0.0.1", 0, options))
  return server, (select(2, server:getsockname()))
end

local function resident() -- bytes
  local file <close> = assert(io.open "/proc/self/statm")
  return 4096 * select(2, file:read("n", "n"))
end

local function does_not_grow(by, fn)
  tasks.collect()
  local before = resident()
  fn()
  if plain then assert.is_true(resident() - before < by, ("%d MiB more"):format((resident() - before) // MiB)) end
end

describe("very many", function()
  drivers.each_backend(function(d)
    it("are served: 10,000 clients of another process at a time", function()
      local n = 10000
      local limit = fds.limit(n + 100)
      if limit < n + 100 then return pending(("%d files may be open here"):format(limit)) end
      local ctx = d.context()
      local server, port = listen { backlog = 4096 }
      local open, most = 0, 0
      local acceptor = ctx:spawn(function()
        for client in server:clients() do
          open = open + 1
          most = math.max(most, open)
          ctx:spawn(function()
            for line in client:lines() do client:write(line:reverse(), "\n") end
            client:close()
            open = open - 1
          end)
        end
      end)
      local output, code = run(d, ctx, shell.run, "exec $LUA spec/support/crowd.lua %d %d", port, n)
      assert.same({ "10000 answered\n", 0 }, { output, code })
      d.wait(ctx, function() return open == 0 end)
      assert.equal(n, most)
      server:close()
      finish(d, ctx, { acceptor })
      tasks.is_quiet(ctx)
    end)

    it("bytes are one message: 256 MiB", function() -- where a tool counts each byte: 32
      local ctx = d.context()
      local server, port = listen()
      local blocks, pieces, n = {}, {}, plain and 256 or 32
      for i = 1, 7 do blocks[i] = string.pack("I4", i * 0x01234567):rep(MiB // 4) end
      for i = 1, n do pieces[i] = blocks[i % 7 + 1] end
      does_not_grow(64 * MiB, function()
        run(d, ctx, function()
          local writer = aio.spawn(function()
            local peer <close> = assert(server:accept())
            assert.equal(peer, peer:write(table.unpack(pieces)))
          end)
          local client <close> = assert(aio.connect("127.0.0.1", port))
          for i = 1, n do assert(client:read(MiB) == pieces[i], i) end
          assert.same(eof, pack(client:read(1)))
          aio.await(writer)
        end)
      end)
      server:close()
    end)
  end)
end)

describe("very little", function()
  drivers.each_backend(function(d)
    it("is a message of one byte, or of none", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      local empty, n = aio.buffer(10), 20000
      run(d, ctx, function()
        for _ = 1, 3 do assert.equal(a, a:write("", empty, "")) end
        assert.same({ n = 1, 0 }, pack(a:writesome ""))
        assert.same(timeout, pack(b:settimeout(0):readsome())) -- nothing came of it
        b:settimeout()
        local writer = aio.spawn(function()
          for i = 1, n do assert(a:write("", string.char(i % 256), empty)) end
          a:shutdown()
        end)
        local reads = { function() return b:read(1) end, function() return b:readsome(1) end, function()
          local got = b:read(0, 1)
          return got and select(2, got, b:buffered()) and got
        end }
        for i = 1, n do
          local got = reads[i % 2 + 1]()
          if got ~= string.char(i % 256) then error(("byte %d is %q"):format(i, got)) end
        end
        assert.same(eof, pack(b:read(0)))
        aio.await(writer)
      end)
      tasks.is_quiet(ctx)
    end)
  end)
end)

-- ---- gone ------------------------------------------------------------------------------------------------------

-- A peer whose close is a reset, whatever is under way.
local function rude_peer(port)
  local peer = assert(socket.connect("127.0.0.1", port))
  assert(peer:setoption("linger", { on = true, timeout = 0 }))
  return peer
end

local function is_reset(first, message, errno)
  assert.is_nil(first)
  assert.is_true(errno == ECONNRESET or errno == EPIPE, message)
end

local function until_they_wait(...)
  for _, task in ipairs { ... } do
    while task:status() ~= "waiting" do aio.sleep(0) end
  end
end

-- What a task of ours does while its peer goes; called with the stream, and what makes that happen.
local moments = {
  ["before it reads"] = function(stream, go)
    go()
    is_reset(stream:read(10))
    is_reset(stream:write "x")
  end,
  ["in the midst of what it reads"] = function(stream, go, peer)
    peer:send "five."
    aio.spawn(go)
    is_reset(stream:read(10))
    assert.same({ n = 1, "five." }, pack(stream:readsome()))
    is_reset(stream:readsome())
  end,
  ["while it waits for a line, or for anything"] = function(stream, go)
    local reader = aio.spawn(stream.readinto, stream, aio.buffer(10))
    until_they_wait(reader)
    go()
    is_reset(select(2, reader:join()))
    is_reset(stream:read())
  end,
  ["while it waits to write"] = function(stream, go)
    local group <close> = aio.group()
    local writer = group:spawn(stream.write, stream, ("x"):rep(32 * MiB))
    local second = group:spawn(stream.write, stream, "y")
    local last = group:spawn(stream.shutdown, stream)
    until_they_wait(writer, second, last)
    go()
    is_reset(select(2, writer:join()))
    is_reset(select(2, second:join()))
    is_reset(select(2, last:join()))
    is_reset(stream:write "z")
  end,
  ["while it reads and writes"] = function(stream, go)
    local group <close> = aio.group()
    local reader = group:spawn(stream.read, stream, "a")
    local writer = group:spawn(stream.write, stream, ("x"):rep(32 * MiB))
    until_they_wait(reader, writer)
    go()
    is_reset(select(2, reader:join()))
    is_reset(select(2, writer:join()))
  end,
  ["while the loop writes"] = function(stream, go)
    assert.equal(stream, stream:setbound(64 * MiB):write(("x"):rep(32 * MiB)))
    aio.spawn(go)
    is_reset(stream:shutdown())
    is_reset(stream:write "z")
  end,
}

describe("a peer that resets the connection", function()
  drivers.each_backend(function(d)
    for when, fn in pairs(moments) do
      it(when, function()
        local ctx = d.context()
        local server <close>, port = listen()
        local peer = rude_peer(port)
        run(d, ctx, function()
          local stream <close> = assert(server:accept())
          fn(stream, function() peer:close() end, peer)
        end)
        tasks.is_quiet(ctx)
      end)
    end

    it("before it is accepted, harms nobody", function()
      local ctx = d.context()
      local server, port = listen()
      local served = 0
      local acceptor = ctx:spawn(function()
        for client in server:clients() do
          ctx:spawn(function()
            local stream <close> = client
            for line in function() return (stream:read()) end do
              served = served + 1
              stream:write(line, "\n")
            end
          end)
        end
      end)
      run(d, ctx, function()
        for i = 1, 20 do
          for _ = 1, 3 do rude_peer(port):close() end
          local client <close> = assert(aio.connect("127.0.0.1", port))
          client:write(i, "\n")
          assert.equal(tostring(i), client:read())
        end
      end)
      assert.equal(20, served)
      server:close()
      finish(d, ctx, { acceptor })
    end)

    it("while we connect is told", function()
      local ctx = d.context()
      local name = "@aioloop-spec-abuse-" .. tostring(ctx)
      local places = { { name } }
      if d.backend == "epoll" then places[2] = { "127.0.0.1", 0 } end -- which asks again after a second
      for _, place in ipairs(places) do
        local server = assert(aio.listen(place[1], place[2], { backlog = 0 }))
        if place[2] then place[2] = select(2, server:getsockname()) end
        local first, list = ctx:spawn(aio.connect, table.unpack(place)), {}
        finish(d, ctx, { first })
        for i = 1, 6 do -- for the last one there is no room
          list[i] = ctx:spawn(aio.connect, table.unpack(place))
          settle(d, ctx, { list[i] })
        end
        d.turns(ctx, 3)
        assert.equal("waiting", list[6]:status())
        server:close()
        finish(d, ctx, list)
        is_reset(run(d, ctx, function() return aio.await(first):read() end))
        assert.equal(ECONNREFUSED, select(4, list[6]:join()))
      end
      tasks.is_quiet(ctx)
    end)
  end)
end)

-- ---- slow ------------------------------------------------------------------------------------------------------

-- Sends a byte as often as it can without being a nuisance, and never an end of the line; returns when it is cut off.
local function drip(port)
  local stream <close> = assert(aio.connect("127.0.0.1", port))
  local sent = 0
  while stream:write "x" do
    sent = sent + 1
    aio.sleep(0.002)
  end
  return sent
end

local function echo_once(port)
  local stream <close> = assert(aio.connect("127.0.0.1", port))
  stream:write "hello\n"
  return stream:read()
end

-- How a server gets rid of who never finishes a line.
local limits = {
  ["stream:settimeout"] = function(stream) return stream:settimeout(0.05):read() end,
  ["aio.timeout"] = function(stream) return aio.timeout(0.05, stream.read, stream) end,
  ["a maximum"] = function(stream) return stream:read("l", 20) end,
}

describe("a peer that is slow", function()
  drivers.each_backend(function(d)
    for name, read in pairs(limits) do
      it("is cut off by " .. name .. ", and others are served meanwhile", function()
        local ctx = d.context()
        local server, port = listen()
        local cut, reasons = 0, {}
        local acceptor = ctx:spawn(function()
          for client in server:clients() do
            ctx:spawn(function()
              local stream <close> = client
              local line, why = read(stream)
              if line then
                stream:write(line, "\n")
              else
                cut = cut + 1
                reasons[why] = true
              end
            end)
          end
        end)
        run(d, ctx, function()
          local slow = {}
          for i = 1, 50 do slow[i] = aio.spawn(drip, port) end
          while cut == 0 do assert.equal("hello", echo_once(port)) end
          for _, task in ipairs(slow) do assert.is_true(aio.await(task) >= 2) end
          assert.equal("hello", echo_once(port))
        end)
        assert.equal(50, cut)
        assert.same({ [name == "a maximum" and "too long" or "timeout"] = true }, reasons)
        server:close()
        finish(d, ctx, { acceptor })
        tasks.is_quiet(ctx)
      end)
    end

    it("to read holds up the one who writes to it, and nothing else", function()
      local ctx = d.context()
      local server, port = listen()
      local block, sent, ended = ("x"):rep(MiB), 0, {}
      local peers, writers = {}, {}
      local ways = {
        function(stream) return stream:settimeout(0.05):write(block) end,
        function(stream) return aio.timeout(0.05, stream.write, stream, block) end,
        function(stream) return stream:setbound(MiB):settimeout(0.05):write(block) end,
        function(stream) return stream:write(block) end, -- until it is cancelled
      }
      does_not_grow(64 * MiB, function()
        run(d, ctx, function()
          for i = 1, 20 do
            peers[i] = aio.spawn(aio.connect, "127.0.0.1", port)
            local stream = assert(server:accept())
            peers[i] = aio.await(peers[i])
            writers[i] = ctx:spawn(function()
              local _ <close> = stream
              while not ended[i] do
                local ok, why = ways[i % 4 + 1](stream)
                if ok then sent = sent + 1 end
                ended[i] = why
              end
            end)
          end
          for i = 1, 20 do
            if i % 4 ~= 3 then aio.await(writers[i]) end
          end
          local echo = aio.spawn(echo_once, port)
          local stream <close> = assert(server:accept())
          stream:write(stream:read "L")
          assert.equal("hello", aio.await(echo))
          for i = 3, 20, 4 do
            assert.equal("waiting", writers[i]:status())
            writers[i]:cancel()
            writers[i]:join()
            assert.equal("cancelled", writers[i]:status())
          end
        end)
      end)
      for i = 1, 20 do
        if i % 4 ~= 3 then assert.equal("timeout", ended[i]) end
        peers[i]:close()
      end
      assert.is_true(sent < 20 * 16, sent)
      server:close()
      tasks.is_quiet(ctx)
    end)
  end)
end)

-- ---- none left -------------------------------------------------------------------------------------------------

describe("the limit of", function()
  it("watches ends what waits with an error, and the fds stay open", function()
    local result = child.run([[
      local aio, fds, seccomp = require "aioloop", require "fds", require "seccomp"
      local ctx = assert(aio.context { backend = "epoll" })
      local told
      ctx:on_error(function(err) told = tostring(err) end)
      local a, b = aio.socketpair()
      fds.fill(a:getfd())
      local server, udp = assert(aio.listen "@aioloop-spec-abuse"), assert(aio.udp():bind("127.0.0.1", 0))
      local c, d = aio.socketpair()
      local e, f = aio.pipe()
      local tasks = { ctx:spawn(a.read, a), ctx:spawn(a.write, a, "x"), ctx:spawn(a.shutdown, a),
        ctx:spawn(server.accept, server), ctx:spawn(server.accept, server), ctx:spawn(udp.recv, udp),
        ctx:spawn(c.readsome, c), ctx:spawn(aio.wait_readable, d) }
      ctx:watch(e, { read = print })
      -- What has outlived its number makes the loop take in all fds anew.
      local r, w = fds.pipe()
      local twin = fds.dup(r)
      local stale = ctx:watch(r, { read = print })
      for _ = 1, 3 do ctx:poll(false) end
      for _, task in ipairs(tasks) do assert(task:status() == "waiting") end
      stale:close()
      fds.close(r)
      assert(seccomp.refuse("epoll_ctl", "ENOSPC"))
      fds.write(w, "x")
      for i, task in ipairs(tasks) do
        while task:status() == "waiting" do ctx:poll(1) end
        local ok, first, _, errno = task:join()
        assert(ok and not first and errno == 28, i)
      end
      assert(told:match "fd %d+ cannot be watched any more: No space left on device", told)
      b:write "hello\n"
      assert(a:settimeout(0):read() == "hello")
      for _, object in ipairs { a, b, server, udp, c, d } do
        local fd = object:getfd()
        assert(fds.is_open(fd))
        object:close()
        assert(not fds.is_open(fd))
      end
      io.write "fine"
    ]], 20)
    assert.same({ "fine", "", 0 }, { result.out, result.err, result.code })
  end)

  it("descriptors is told by whatever makes one, and leaves nothing behind", function()
    local result = child.run([[
      local aio, fds = require "aioloop", require "fds"
      aio.run(function()
        local server = assert(aio.listen "@aioloop-spec-abuse-full")
        local tcp = assert(aio.listen("127.0.0.1", 0))
        local _, port = tcp:getsockname()
        local list = {}
        aio.udp():close() -- its file is read when it is first needed
        for _ = 1, 2 do
          repeat
            local fd = fds.dup(0)
            list[#list + 1] = fd
          until not fd
          for i, refused in ipairs {
            table.pack(aio.pipe()), table.pack(aio.socketpair()), table.pack(aio.connect "@aioloop-spec-abuse-full"),
            table.pack(aio.connect("127.0.0.1", port)), table.pack(aio.listen "@aioloop-spec-abuse-other"),
            table.pack(aio.stream(io.stdin)), table.pack(aio.udp():bind("127.0.0.1", 0)), table.pack(aio.context()) } do
            assert(refused[1] == nil and refused[3] == 24, i)
          end
          assert(aio.connect("127.0.0.1", port) == nil)
          fds.close(table.remove(list))
          assert(not aio.pipe()) -- two are needed: the first is given back
          local one = fds.dup(0)
          assert(one and not fds.dup(0))
          fds.close(one)
          while list[1] do fds.close(table.remove(list)) end
          local client = assert(aio.connect "@aioloop-spec-abuse-full")
          local peer = assert(server:accept())
          client:close()
          peer:close()
        end
      end)
      io.write "fine"
    ]], 20, "ulimit -n 40;")
    assert.same({ "fine", "", 0 }, { result.out, result.err, result.code })
  end)
end)
