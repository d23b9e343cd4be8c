-- SPDX-License-Identifier: MIT
--- lua-redis, unchanged, in tasks: against a real Redis server.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local redis = require "spec.support.redis"
local tasks = require "spec.support.tasks"

local run = tasks.run

if redis.missing then
  describe("lua-redis", function() pending("runs unchanged: " .. redis.missing) end)
  return
end

describe("lua-redis", function()
  local server, library

  setup(function()
    server = redis.server()
    library = redis.library(aio.socket.require)
  end)

  teardown(function() server:close() end)

  local function connect(on_path)
    if on_path then return library.connect("unix://" .. server.path) end
    return library.connect("127.0.0.1", server.port)
  end

  local function quit(...)
    for _, client in ipairs { ... } do client:quit() end
  end

  drivers.each(function(d)
    local ctx, before

    before_each(function()
      ctx = d.context()
      run(d, ctx, aio.yield)
      tasks.collect()
      before = fds.count()
      run(d, ctx, function()
        local client = connect(true)
        client:flushdb()
        quit(client)
      end)
    end)

    local function nothing_is_left()
      tasks.collect()
      assert.equal(before, fds.count())
      tasks.is_quiet(ctx)
    end

    it("asks and is answered, over TCP and over a Unix socket", function()
      run(d, ctx, function()
        for _, on_path in ipairs { false, true } do
          local client = connect(on_path)
          local large = ("\r\n\0x"):rep(100000)
          assert.is_true(client:ping())
          assert.is_true(client:set("key", large))
          assert.is_true(client:get "key" == large)
          assert.is_nil(client:get "none")
          assert.is_true(client:hmset("hash", { a = "1", b = "2" }))
          assert.same({ a = "1", b = "2" }, client:hgetall "hash")
          for i = 1, 10 do client:rpush("list" .. tostring(on_path), i) end
          assert.same({ "3", "4" }, client:lrange("list" .. tostring(on_path), 2, 3))
          local ok, err = pcall(client.incr, client, "hash")
          assert.is_false(ok)
          assert.matches("WRONGTYPE", err)
          quit(client)
        end
      end)
      nothing_is_left()
    end)

    it("a hundred tasks at once, each with a connection of its own", function()
      local most, now = 0, 0
      run(d, ctx, function()
        local group <close> = aio.group()
        for i = 1, 100 do
          group:spawn(function()
            local client = connect(i % 2 == 0)
            now = now + 1
            most = math.max(most, now)
            for k = 1, 10 do
              local key, value = ("key:%d:%d"):format(i, k), ("value %d of %d"):format(k, i)
              assert.is_true(client:set(key, value))
              assert.equal(value, client:get(key))
              client:incrby("sum", i)
            end
            now = now - 1
            quit(client)
          end)
        end
        group:wait()
        local client = connect()
        assert.equal(tostring(10 * 100 * 101 // 2), client:get "sum")
        assert.equal(1001, client:dbsize())
        quit(client)
      end)
      assert.is_true(most > 50, most)
      nothing_is_left()
    end)

    it("one that blocks in BLPOP holds up no other", function()
      run(d, ctx, function()
        local waiting, worker = connect(), connect(true)
        local popped = aio.spawn(waiting.blpop, waiting, "queue", 0)
        local n = 0
        for i = 1, 200 do
          worker:set("n", i)
          n = n + tonumber(worker:get "n")
          assert.not_equal("ended", popped:status())
        end
        assert.equal(20100, n)
        worker:rpush("queue", "item")
        assert.same({ "queue", "item" }, aio.await(popped))

        -- and is not waited for any longer than its task is wanted
        local result, why = aio.timeout(0.01, waiting.blpop, waiting, "queue", 0)
        assert.same({ nil, "timeout" }, { result, why })
        waiting.network.socket:close()
        quit(worker)
      end)
      nothing_is_left()
    end)

    it("its time limit is LuaSocket's", function()
      run(d, ctx, function()
        local client = library.connect { host = "127.0.0.1", port = server.port, timeout = 0.01 }
        assert.is_true(client:ping())
        local ok, err = pcall(client.blpop, client, "queue", 0)
        assert.is_false(ok)
        assert.matches("timeout", err)
        client.network.socket:close()
      end)
      nothing_is_left()
    end)

    it("subscribers wait in an iterator", function()
      run(d, ctx, function()
        local subscriber, publisher = connect(), connect(true)
        local got = {}
        local reading = aio.spawn(function()
          for message, abort in subscriber:pubsub { subscribe = "channel" } do
            got[#got + 1] = message.payload
            if message.payload == "3" then abort() end
          end
        end)
        while publisher:publish("channel", "0") == 0 do aio.sleep(0.001) end
        for i = 1, 3 do publisher:publish("channel", i) end
        reading:join()
        assert.same({ 1, "0", "1", "2", "3" }, { table.unpack(got) })
        quit(subscriber, publisher)
      end)
      nothing_is_left()
    end)

    it("transactions, of many tasks on one key", function()
      run(d, ctx, function()
        aio.map({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, function()
          local client = connect()
          local options = { watch = "balance", cas = true, retry = 1000 }
          local replies = client:transaction(options, function(t)
            local balance = tonumber(t:get "balance" or 0)
            t:multi()
            t:set("balance", balance + 1)
            t:rpush("log", balance)
          end)
          assert.equal(2, #replies)
          quit(client)
        end)
        local client = connect()
        assert.equal("10", client:get "balance")
        assert.same({ "0", "1", "2", "3", "4", "5", "6", "7", "8", "9" }, client:lrange("log", 0, -1))
        quit(client)
      end)
      nothing_is_left()
    end)
  end)

  it("works in the main chunk", function()
    local client = connect()
    assert.is_true(client:set("main", "chunk"))
    assert.equal("chunk", client:get "main")
    quit(client)
  end)
end)
