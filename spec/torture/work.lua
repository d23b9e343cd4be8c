-- SPDX-License-Identifier: MIT
-- Jobs of every kind for the pool, for a host without memory: what cannot be begun, or told, is an error, and no more.

local aio = require "aioloop"

local function same(...) return ... end
local function fail(value) error(value) end
local step = 2
local function next_of(x) return x + step end

local function jobs()
  for _ = 1, 2 do
    pcall(aio.work, same, 1, 2.5, true, nil)
    pcall(aio.work, same, "text", ("long"):rep(20))
    pcall(aio.work, same, { 1, { 2 }, x = "y" }, same)
    pcall(aio.work, next_of, 1)
    pcall(aio.work, fail, "reason")
    pcall(aio.work, fail, { "reason" })
    pcall(aio.work, same, print)
    pcall(aio.getaddrinfo, "localhost", 80)
  end
  local task = aio.spawn(aio.work, same, "nobody hears")
  aio.yield()
  task:cancel()
  pcall(task.join, task)
  package.path = package.path .. ";"
  pcall(aio.timeout, 1, aio.work, same, "another path")
end

local work = {}

function work.scenario()
  local ok, ctx = pcall(aio.context)
  if not ok or not ctx then return end
  local _ <close> = ctx
  pcall(ctx.on_error, ctx, function() end)
  pcall(ctx.set_threads, ctx, 1, 2)
  pcall(ctx.run, ctx, jobs)
end

function work.usable()
  collectgarbage()
  local ctx <close> = aio.context()
  local a, b = ctx:run(aio.work, same, "a", { "b" })
  return a == "a" and b[1] == "b" and ctx:run(aio.work, next_of, 1) == 3
end

return work
