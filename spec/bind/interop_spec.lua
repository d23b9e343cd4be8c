-- SPDX-License-Identifier: MIT
--- Living with others: LuaSocket's objects, contexts inside one another, other loops.

local socket = require "socket"
local aio = require "aioloop"
local fds = require "fds"
local drivers = require "spec.support.drivers"
local jobs = require "spec.support.jobs"

local function nop() end

describe("LuaSocket", function()
  drivers.each_backend(function(d)
    local open

    before_each(function() open = {} end)
    after_each(function()
      for _, object in ipairs(open) do object:close() end
    end)

    local function keep(object)
      object:settimeout(0)
      open[#open + 1] = object
      return object
    end

    local function listen()
      local server = keep(assert(socket.bind("127.0.0.1", 0, 128)))
      return server, select(2, server:getsockname())
    end

    it("TCP servers and clients are watched as they are", function()
      local ctx, got, answer = d.context(), nil, nil
      local server, port = listen()
      ctx:watch(server, {
        read = function()
          local peer = keep(assert(server:accept()))
          local watch
          watch = ctx:watch(peer, {
            read = function()
              got = assert(peer:receive "*l")
              watch:set {
                write = function()
                  peer:send "pong\n"
                  watch:close()
                end,
              }
            end,
          })
        end,
      })
      local client = keep(assert(socket.tcp()))
      client:connect("127.0.0.1", port)
      local watch
      watch = ctx:watch(client, {
        write = function()
          assert(client:send "ping\n")
          watch:set {
            read = function()
              answer = client:receive "*l"
              watch:close()
            end,
          }
        end,
      })
      d.wait(ctx, function() return answer end)
      assert.equal("ping", got)
      assert.equal("pong", answer)
    end)

    it("UDP sockets too", function()
      local ctx, got = d.context(), nil
      local a, b = keep(socket.udp()), keep(socket.udp())
      assert(a:setsockname("127.0.0.1", 0))
      local _, port = a:getsockname()
      ctx:watch(a, { read = function() got = a:receive() end })
      assert(b:sendto("datagram", "127.0.0.1", port))
      d.wait(ctx, function() return got end)
      assert.equal("datagram", got)
    end)

    it("a refused connection is told", function()
      local ctx, told = d.context(), nil
      local server, port = listen()
      server:close()
      local client = keep(assert(socket.tcp()))
      client:connect("127.0.0.1", port)
      local watch
      watch = ctx:watch(client, {
        write = function()
          local _, err = client:connect("127.0.0.1", port)
          told = err
          watch:close()
        end,
      })
      d.wait(ctx, function() return told end)
      assert.matches("refused", told)
    end)

    it("the end of a stream is told, after its data", function()
      local ctx, got = d.context(), nil
      local server, port = listen()
      local client = keep(assert(socket.tcp()))
      client:settimeout(5)
      assert(client:connect("127.0.0.1", port))
      server:settimeout(5)
      local peer = assert(server:accept())
      peer:send "the last words"
      peer:close()
      client:settimeout(0)
      local pieces, watch = {}, nil
      watch = ctx:watch(client, {
        read = function()
          local all, err, part = client:receive(5)
          pieces[#pieces + 1] = all or part
          if err == "closed" then
            got = table.concat(pieces)
            watch:close()
          end
        end,
      })
      d.wait(ctx, function() return got end)
      assert.equal("the last words", got)
    end)

    it("tasks wait for them", function()
      local ctx, lines = d.context(), {}
      local server, port = listen()
      ctx:spawn(function()
        assert(aio.wait_readable(server, 10))
        local peer = keep(assert(server:accept()))
        for i = 1, 3 do
          assert(aio.wait_writable(peer, 10))
          peer:send(i .. "\n")
          aio.sleep(0.001)
        end
        peer:close()
      end)
      ctx:spawn(function()
        local client = keep(assert(socket.tcp()))
        client:connect("127.0.0.1", port)
        assert(aio.wait_writable(client, 10))
        local err
        repeat
          local line
          assert(aio.wait_readable(client, 10))
          line, err = client:receive "*l"
          lines[#lines + 1] = line
        until err == "closed"
        lines.done = true
      end)
      d.wait(ctx, function() return lines.done end)
      assert.equal("1 2 3", table.concat(lines, " "))
    end)

    it("one that is closed raises instead of being watched", function()
      local ctx = d.context()
      local server = listen()
      server:close()
      assert.has_error(function() ctx:watch(server, { read = nop }) end)
      assert.equal(0, ctx:stats().watches)
    end)

    it("one that is closed while watched is reported once", function()
      local ctx, reports = d.context(), 0
      ctx:on_error(function() reports = reports + 1 end)
      local server = listen()
      local watch = ctx:watch(server, { read = nop })
      d.turns(ctx, 2)
      server:close()
      d.wait(ctx, function() return reports > 0 end)
      d.pass(ctx, 0.03)
      assert.equal(1, reports)
      assert.matches("closed", tostring(watch))
    end)

    it("hundred connections, each echoed", function()
      local ctx, echoes = d.context(), 0
      local server, port = listen()
      ctx:watch(server, {
        read = function()
          local peer = server:accept()
          if not peer then return end
          keep(peer)
          ctx:watch(peer, {
            read = function() peer:send(assert(peer:receive "*l") .. "\n") end,
          })
        end,
      })
      for i = 1, 100 do
        local client = keep(assert(socket.tcp()))
        client:connect("127.0.0.1", port)
        local watch
        watch = ctx:watch(client, {
          write = function()
            client:send(i .. "\n")
            watch:set {
              read = function()
                assert.equal(tostring(i), client:receive "*l")
                echoes = echoes + 1
                watch:close()
              end,
            }
          end,
        })
      end
      d.wait(ctx, function() return echoes == 100 end)
    end)
  end)
end)

describe("a context inside another", function()
  drivers.each_backend(function(d)
    for _, backend in ipairs(drivers.pollable) do
      it("is served when it is readable, and by its timeout, on " .. backend, function()
        local outer, inner = d.context(), drivers.context { backend = backend }
        local log = {}
        local function note(x) log[#log + 1] = x end
        outer:spawn(function()
          while #log < 4 do
            aio.wait_readable(inner) -- also when its own deadline has come
            while inner:poll(false) do end
          end
        end)
        d.turns(outer, 2)
        inner:schedule(note, "schedule")
        d.wait(outer, function() return #log == 1 end)
        local due = aio.now() + 0.003
        inner:timer(function()
          assert(aio.now() >= due)
          note "timer"
        end):arm(0.003)
        d.wait(outer, function() return #log == 2 end)
        local r, w = drivers.pipe()
        local watch
        watch = inner:watch(r, {
          read = function()
            note "watch"
            watch:close()
          end,
        })
        fds.write(w, "x")
        d.wait(outer, function() return #log == 3 end)
        inner:bh(note, "idle"):schedule_idle()
        d.wait(outer, function() return #log == 4 end)
        assert.same({ "schedule", "timer", "watch", "idle" }, log)
      end)

      it("is told of whatever other threads bring, on " .. backend, function()
        local outer, inner, over = d.context(), drivers.context { backend = backend }, 0
        outer:watch(inner, { read = function() inner:poll(false) end })
        local function caller(n)
          for i = 1, n do
            assert(aio.work(jobs.same, i) == i)
            over = over + 1
          end
        end
        for tasks = 1, 4, 3 do -- one alone has nobody whose wake-up would do for its own
          over = 0
          for _ = 1, tasks do inner:spawn(caller, 100) end
          d.wait(outer, function() return over == tasks * 100 end)
        end
      end)

      it("sleeps as the outer one does, on " .. backend, function()
        local outer, inner = d.context(), drivers.context { backend = backend }
        outer:watch(inner, { read = function() inner:poll(false) end })
        inner:watch(drivers.pipe(), { read = nop })
        inner:timer(nop):arm(1000)
        d.turns(outer, 3)
        local turns = d.pass(outer, 0.05)
        assert.is_true(turns <= 7, turns .. " turns")
      end)
    end
  end)

  describe("and so on", function()
    after_each(drivers.cleanup)

    it("as deep as the kernel nests epolls; one level more is refused, naming the limit", function()
      local chain, message, errno = { drivers.context { backend = "epoll" } }, nil, nil
      while not message do
        local ctx = drivers.context { backend = "epoll" }
        local inner = chain[#chain]
        local watch
        watch, message, errno = ctx:watch(inner, { read = function() inner:poll(false) end })
        if watch then chain[#chain + 1] = ctx end
        assert.is_true(#chain < 50)
      end
      assert.is_true(#chain >= 4, "only " .. #chain .. " deep")
      assert.matches("limit", message)
      assert.equal("integer", math.type(errno))

      local log = {}
      local r, w = drivers.pipe()
      local innermost, outermost = chain[1], chain[#chain]
      innermost:watch(r, { read = function() log[#log + 1] = fds.read(r) end })
      while outermost:poll(false) do end
      assert.same({}, log)
      fds.write(w, "through all of them")
      while #log == 0 do outermost:poll(10) end
      innermost:schedule(function() log[#log + 1] = "and a bottom half" end)
      while #log == 1 do outermost:poll(10) end
      assert.same({ "through all of them", "and a bottom half" }, log)
    end)

    it("is not watched in a circle, which epoll alone finds out", function()
      local a, b = drivers.context { backend = "epoll" }, drivers.context { backend = "epoll" }
      assert(a:watch(b, { read = nop }))
      local watch, message = b:watch(a, { read = nop })
      assert.is_nil(watch)
      assert.is_string(message)
    end)

    for _, backend in ipairs(drivers.pollable) do
      it("is not watched by itself, on " .. backend, function()
        local ctx = drivers.context { backend = backend }
        local watch, message = ctx:watch(ctx, { read = nop })
        assert.is_nil(watch)
        assert.is_string(message)
      end)

      it("closed while watched by the other is reported there, on " .. backend, function()
        local outer, inner = drivers.context { backend = backend }, drivers.context { backend = backend }
        local reports = 0
        outer:on_error(function() reports = reports + 1 end)
        outer:watch(inner, { read = nop })
        outer:poll(false)
        inner:close()
        while reports == 0 do outer:poll(1) end
        for _ = 1, 3 do outer:poll(false) end
        assert.equal(1, reports)
      end)
    end
  end)
end)

local has_cqueues, cqueues = pcall(require, "cqueues")

if has_cqueues then
  describe("cqueues", function()
    after_each(drivers.cleanup)

    it("inside a context: its controller is waited for like an fd", function()
      local ctx, cq, log = drivers.context(), cqueues.new(), {}
      cq:wrap(function()
        for i = 1, 3 do
          cqueues.sleep(0.002) -- its own time limit, which no fd tells of
          log[#log + 1] = i
        end
      end)
      ctx:run(function()
        while not cq:empty() do
          aio.wait_readable(cq)
          assert(cq:step(0))
        end
      end)
      assert.same({ 1, 2, 3 }, log)
    end)

    for _, backend in ipairs(drivers.pollable) do
      it("around a context: it is polled by a cqueues coroutine, on " .. backend, function()
        local ctx, cq, log = drivers.context { backend = backend }, cqueues.new(), {}
        local r, w = drivers.pipe()
        local fired = require "cqueues.condition".new()
        ctx:timer(function()
          log[#log + 1] = "timer"
          fired:signal()
        end):arm(0.004)
        ctx:schedule(function() log[#log + 1] = "schedule" end)
        ctx:watch(r, { read = function() log[#log + 1] = fds.read(r) end })
        cq:wrap(function()
          while #log < 3 do
            cqueues.poll(ctx)
            ctx:poll(false)
          end
        end)
        cq:wrap(function()
          fired:wait()
          fds.write(w, "watch")
        end)
        assert(cq:loop())
        assert.same({ "schedule", "timer", "watch" }, log)
      end)
    end
  end)
end
