-- SPDX-License-Identifier: MIT
--- aio.connect: to addresses, names and paths, in time or not, and nothing is left of what fails.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local tasks = require "spec.support.tasks"

local run, finish, settle = tasks.run, tasks.finish, tasks.settle
local timeout = { n = 2, nil, "timeout" }
local ECONNREFUSED, ENOENT, EINVAL = 111, 2, 22

local pack = table.pack
local function port_of(server) return (select(2, server:getsockname())) end

-- A server that accepts nobody, and has no room for another: TCP drops what comes, a Unix socket says "again".
local function full_server(ctx, d, name)
  local server = name and aio.listen(name, { backlog = 0 }) or aio.listen("127.0.0.1", 0, { backlog = 0 })
  local clients = {}
  run(d, ctx, function()
    for i = 1, 10 do
      local limit = { timeout = 0.05 }
      local client = name and aio.connect(name, limit) or aio.connect("127.0.0.1", port_of(server), limit)
      if not client then break end
      clients[i] = client
    end
  end)
  return server, clients
end

describe("aio.connect", function()
  drivers.each_backend(function(d)
    before_each(tasks.collect)

    it("connects to names and services", function()
      local ctx = d.context()
      run(d, ctx, function()
        local server <close> = assert(aio.listen("127.0.0.1", 0))
        for _, host in ipairs { "127.0.0.1", "localhost" } do
          for _, options in ipairs { {}, { timeout = 5 }, { nodelay = false, keepalive = true }, { keepalive = 30 } } do
            local client = assert(aio.connect(host, port_of(server), options))
            assert(server:accept()):write "x"
            assert.equal("x", client:readsome())
            client:close()
          end
        end
        local client = assert(aio.connect("127.0.0.1", tostring(port_of(server))))
        client:close()
      end)
      tasks.is_quiet(ctx)
    end)

    it("says why it cannot", function()
      local ctx = d.context()
      local before = fds.count()
      run(d, ctx, function()
        local server = assert(aio.listen("127.0.0.1", 0))
        local port = port_of(server)
        server:close()
        assert.equal(ECONNREFUSED, select(3, aio.connect("127.0.0.1", port)))
        assert.equal(ECONNREFUSED, select(3, aio.connect("localhost", port)))
        assert.equal(ECONNREFUSED, select(3, aio.connect "@aioloop-spec-nobody"))
        assert.equal(ENOENT, select(3, aio.connect "/no/such/socket"))
        assert.equal(EINVAL, select(3, aio.connect ""))
        local nothing, message, code = aio.connect("no.such.host.invalid", 80)
        assert.same({ nil, "string", true }, { nothing, type(message), math.type(code) == "integer" })
      end)
      assert.equal(before, fds.count())
      for _, bad in ipairs { {}, { 1, 2 }, { {}, 1 }, { "x", -1 }, { "x", 65536 }, { "x", 1.5 }, { "x", true },
        { "x", 1, 2 }, { "x", {}, {} },
        { "@x", { timeout = "1" } }, { "@x", { timeout = true } }, { "@x", { nodelay = 1 } } } do
        assert.has_error(function() aio.connect(table.unpack(bad, 1, 3)) end)
      end
      tasks.is_quiet(ctx)
    end)

    it("gives up in time, or when it is cancelled, and leaves nothing", function()
      local ctx = d.context()
      for _, name in ipairs { false, "@aioloop-spec-full-" .. tostring(ctx) } do
        local server, clients = full_server(ctx, d, name)
        local before = fds.count()
        local place = name and { name } or { "127.0.0.1", port_of(server) }
        run(d, ctx, function()
          place[#place + 1] = { timeout = 0.03 }
          local from = aio.now()
          assert.same(timeout, pack(aio.connect(table.unpack(place))))
          assert.is_true(aio.now() - from >= 0.03)
        end)
        place[#place] = nil
        local task = ctx:spawn(aio.connect, table.unpack(place))
        settle(d, ctx, { task })
        task:cancel()
        finish(d, ctx, { task })
        tasks.is_quiet(ctx)
        tasks.collect()
        assert.equal(before, fds.count())
        local waiting = ctx:spawn(aio.connect, table.unpack(place))
        settle(d, ctx, { waiting })
        run(d, ctx, function()
          for _ = 1, #clients do assert(server:accept(1)):close() end
          if name then assert(server:accept(1)):write "x" end
        end)
        if name then
          finish(d, ctx, { waiting })
          local client = select(2, waiting:join())
          assert.equal("x", run(d, ctx, client.readsome, client))
        else
          waiting:cancel()
          finish(d, ctx, { waiting })
        end
        for _, client in ipairs(clients) do client:close() end
        server:close()
      end
      tasks.is_quiet(ctx)
    end)

    it("is closed with its context", function()
      local ctx = d.context()
      local server, clients = full_server(ctx, d)
      local before = fds.count()
      local other = d.context()
      local task = other:spawn(aio.connect, "127.0.0.1", port_of(server))
      settle(d, other, { task })
      other:close()
      tasks.collect()
      assert.is_true(fds.count() <= before)
      for _, client in ipairs(clients) do client:close() end
      server:close()
    end)

    it("works without a task", function()
      local ctx = d.context()
      local server <close> = assert(aio.listen("127.0.0.1", 0))
      local got
      ctx:schedule(function()
        local client = assert(aio.connect("localhost", port_of(server), { timeout = 5 }))
        assert(server:accept()):write "x"
        got = client:readsome()
      end)
      d.wait(ctx, function() return got end)
      assert.equal("x", got)
    end)

    it("makes and drops 500 connections", function()
      local ctx = d.context()
      local before = fds.count()
      run(d, ctx, function()
        local server <close> = assert(aio.listen("127.0.0.1", 0))
        for i = 1, 500 do
          local client <close> = assert(aio.connect("127.0.0.1", port_of(server)))
          local peer <close> = assert(server:accept())
          if i % 2 == 0 then peer:write "x" else client:write "y" end
        end
      end)
      assert.equal(before, fds.count())
      tasks.is_quiet(ctx)
    end)
  end)
end)
