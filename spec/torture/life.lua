-- SPDX-License-Identifier: MIT
-- A life of everything at once, for a host without memory: whatever fails, the loop goes on and nothing is left behind.

local aio = require "aioloop"

local function nop() end

-- A step may fail; the next one is tried all the same.
local function try(...) return pcall(...) end

local function callbacks(ctx)
  try(ctx.schedule, ctx, nop, 1, 2)
  local _, bh = try(ctx.bh, ctx, nop, "x")
  try(function() bh:schedule() end)
  local _, timer = try(ctx.timer, ctx, nop)
  try(function() timer:arm(0, 0.0001) end)
  local file = io.popen("true")
  local _, watch = try(ctx.watch, ctx, file, { read = nop })
  for _ = 1, 3 do try(ctx.poll, ctx, false) end
  try(function() watch:close() end)
  try(function() timer:close() end)
  try(function() file:close() end)
end

local function tasks()
  local m, q, sem, ev = aio.mutex(), aio.queue(1), aio.semaphore(0), aio.event()
  local cond, rw = aio.condition(), aio.rwlock()
  local group <close> = aio.group()
  group:spawn(function()
    local _ <close> = m:guard()
    cond:wait(m, 0.001)
  end)
  group:spawn(function()
    for i = 1, 3 do q:put(i) end
    q:close()
  end)
  group:spawn(function()
    for _ in q:iter() do aio.yield() end
    sem:release()
    ev:set()
  end)
  group:spawn(function()
    aio.timeout(0.0005, aio.sleep, 1)
    sem:acquire()
    local _ <close> = rw:guard("r")
    rw:upgrade()
  end)
  local cancelled = group:spawn(aio.sleep, 10)
  local generator = aio.wrap(function()
    aio.sleep(0)
    coroutine.yield(1)
  end)
  generator()
  cancelled:cancel("reason")
  cancelled:join()
  aio.gather(function() return ev:wait() end, function() return 1 end)
  aio.race(function() aio.sleep(0) end, function() aio.suspend() end)
  aio.map({ 1, 2, 3 }, function(x) return x end, 2)
  aio.shield(aio.sleep, 0)
  local plain = coroutine.create(function() coroutine.yield() end)
  aio.wake(plain)
  aio.wake(plain)
  aio.spawn(error, "nobody joins")
  aio.dump { write = nop }
  group:wait()
end

local life = {}

function life.scenario()
  local ok, ctx = try(aio.context, { name = "tortured" })
  if not ok or not ctx then return end
  local _ <close> = ctx
  try(ctx.on_error, ctx, nop)
  callbacks(ctx)
  try(ctx.run, ctx, tasks)
  try(ctx.on_error, ctx, nil)
  try(ctx.run, ctx, tasks)
end

function life.usable()
  collectgarbage()
  local ctx <close> = aio.context()
  local log = {}
  ctx:run(function()
    local t = aio.spawn(function()
      aio.sleep(0)
      log[#log + 1] = "slept"
    end)
    ctx:schedule(function() log[#log + 1] = "bh" end)
    aio.await(t)
  end)
  return #log == 2 and #ctx:tasks() == 0
end

return life
