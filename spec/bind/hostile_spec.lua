-- SPDX-License-Identifier: MIT
--- Finalisers that do the worst they can in the middle of an operation: what runs outlives it, and the loop goes on.
--
-- Way    RANDOM_SEED=n. Garbage with finalisers -> the collector, at work all the time -> one of them, drawn by lot,
--        closes the context, or cancels, or closes what the operation works on. That nothing is touched afterwards is
--        what the address sanitizer sees.

local aio = require "aioloop"
local files = require "spec.support.files"
local jobs = require "spec.support.jobs"

local seed = tonumber(os.getenv "RANDOM_SEED") or os.time()
local ROUNDS <const>, TRAPS <const>, WATCHDOG <const> = 10, 300, 0.2
local big = {}
for i = 1, 300 do big[i] = { tostring(i) .. ("z"):rep(50), { i } } end

local function closed_at_the_end(own, object, ...)
  if object then own(object) end
  return object, ...
end

-- Each is given the path of a file, and a function for what may be closed meanwhile.
local operations = {
  ["a job"] = function() return aio.work(jobs.same, big) end,
  ["a job that fails"] = function() return pcall(aio.work, jobs.fail) end,
  ["name resolution"] = function() return aio.getaddrinfo("localhost", "http"), aio.getnameinfo("127.0.0.1", 80) end,
  ["reading a file"] = function(path, own)
    for _, engine in ipairs { "auto", "threads", "io_uring" } do
      local file = closed_at_the_end(own, aio.open(path, "r", { engine = engine }))
      file:read("l", "n", 20000)
      file:pread(50000, 0)
      file:stat()
      for line in file:lines() do if #line > 100 then break end end
    end
  end,
  ["writing a file"] = function(path, own)
    for _, engine in ipairs { "auto", "threads", "io_uring" } do
      local file = closed_at_the_end(own, aio.open(path .. engine, "w+", { engine = engine }))
      file:write("a", ("b"):rep(30000), 3)
      file:pwrite("xyz", 5)
      file:sync()
      file:truncate(10)
    end
  end,
  ["whole files"] = function(path) return aio.writefile(path .. 2, aio.readfile(path)) end,
  ["streams"] = function(_, own)
    local a, b = closed_at_the_end(own, aio.socketpair())
    own(b)
    local buffer = aio.buffer(5000)
    local writer = aio.spawn(function()
      for i = 1, 20 do b:write("line " .. i .. "\n", ("x"):rep(3000), "\n") end
      b:write(("y"):rep(300000))
      b:close()
    end)
    for _ = 1, 5 do
      a:read("l", "L")
      a:read { until_ = "x\n", max = 10000 }
      a:readsome()
      a:readinto(buffer)
    end
    a:read "a"
    writer:join()
  end,
  ["connecting"] = function(_, own)
    local server = closed_at_the_end(own, aio.listen("127.0.0.1", 0))
    local _, port = server:getsockname()
    local task = aio.spawn(function()
      for client in server:clients() do closed_at_the_end(own, client):write "hello\n" end
    end)
    for _ = 1, 3 do closed_at_the_end(own, aio.connect("127.0.0.1", port)):read(6) end
    server:close()
    task:join()
  end,
  ["datagrams"] = function(_, own)
    local udp = closed_at_the_end(own, aio.udp { family = "inet" })
    udp:bind("127.0.0.1", 0)
    local _, port = udp:getsockname()
    for _ = 1, 5 do
      udp:sendto(("d"):rep(100), "127.0.0.1", port)
      udp:recvfrom()
    end
  end,
  ["a queue"] = function()
    local queue = aio.queue(2)
    local task = aio.spawn(function()
      for i = 1, 30 do queue:put { i } end
      queue:close()
    end)
    for item in queue:iter() do item[2] = { item } end
    task:join()
  end,
  ["tasks"] = function()
    aio.gather(function() aio.sleep(0) return {} end, function() aio.yield() return {} end)
    aio.map({ 1, 2, 3, 4 }, function(x) aio.sleep(0.0001) return { x } end, 2)
    pcall(aio.timeout, 0.0001, aio.sleep, 1)
    local numbers = aio.wrap(function() for i = 1, 3 do aio.sleep(0) coroutine.yield { i } end end)
    for _ = 1, 3 do numbers() end
    local group <close> = aio.group()
    for i = 1, 5 do group:spawn(function() aio.sleep(0.0001 * i) return {} end) end
    group:wait()
    aio.dump { write = function() end }
    aio.spawn(error, {}):keep():join()
  end,
  ["locks"] = function()
    local mutex, condition, lock, semaphore = aio.mutex(), aio.condition(), aio.rwlock(), aio.semaphore(1)
    aio.map({ "r", "w", "r" }, function(how)
      local _ <close> = mutex:guard()
      aio.yield()
      condition:wait(mutex, 0.0005)
      local _ <close> = lock:guard(how)
      semaphore:acquire()
      semaphore:release()
    end)
  end,
}

local misdeeds = {
  ["closes the context"] = function(ctx) ctx:close() end,
  ["cancels the task"] = function(_, task) task:cancel() end,
  ["cancels all tasks"] = function(ctx) for _, task in ipairs(ctx:tasks()) do task:cancel() end end,
  ["cancels the task and takes a turn"] = function(ctx, task) task:cancel() ctx:poll(false) end,
  ["closes what it works on"] = function(_, _, objects) for _, object in ipairs(objects) do object:close() end end,
}

local function sorted(t)
  local names = {}
  for name in pairs(t) do names[#names + 1] = name end
  table.sort(names)
  return names
end

describe("a finaliser", function()
  local folder = files.folder()
  teardown(function() getmetatable(folder).__close(folder) end)

  -- Whether the finaliser had its turn.
  local function attempt(operation, misdeed)
    local ctx, task, objects, count, live = aio.context(), nil, {}, 0, true
    local at = math.random(TRAPS)
    local function set_trap()
      setmetatable({}, { __gc = function()
        if not live then return end
        count = count + 1
        if count == at then pcall(misdeed, ctx, task, objects) end
        set_trap()
      end })
    end
    ctx:on_error(function() end)
    ctx:timer(ctx.close, ctx):arm(WATCHDOG) -- closed, an object may leave its task waiting
    collectgarbage("incremental", 1, 100, 1)
    pcall(ctx.run, ctx, function()
      task = aio.self()
      for _ = 1, TRAPS do set_trap() end
      repeat collectgarbage("step", 0) until count > 0
      count = 0
      pcall(operation, folder:path "text", function(object) objects[#objects + 1] = object end)
      ctx:stop()
    end)
    live = false
    collectgarbage("incremental", 200, 100, 13)
    ctx:close()
    for _, object in ipairs(objects) do object:close() end
    return count >= at
  end

  for _, what in ipairs(sorted(misdeeds)) do
    it("that " .. what .. " leaves the loop usable", function()
      math.randomseed(seed)
      folder:put("text", ("12 of many lines\n"):rep(3000))
      local hits = 0
      for _, name in ipairs(sorted(operations)) do
        for _ = 1, ROUNDS do
          if attempt(operations[name], misdeeds[what]) then hits = hits + 1 end
        end
        local ctx <close> = aio.context()
        assert.equal("fine", ctx:run(function()
          aio.sleep(0)
          return aio.work(jobs.same, "fine")
        end), name)
      end
      assert.is_true(hits > 3, ("RANDOM_SEED=%d: %d"):format(seed, hits))
    end)
  end
end)
