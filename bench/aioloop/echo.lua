-- SPDX-License-Identifier: MIT
-- TCP echo: with a coroutine for each connection, which reads strings, or into a buffer of its own; or with a callback
-- for each. echo.lua strings|buffers|callbacks, or latency: one connection, a coroutine, adaptive polling.

local echo = require "echo"
local aio = require "aioloop"

local function listen()
  return assert(aio.listen("127.0.0.1", 0, {backlog = 1024}))
end

---- Coroutines

local function strings(stream)
  while true do
    local some = stream:readsome()
    if not some then break end
    stream:write(some)
  end
  stream:close()
end

local function buffers(stream)
  local buffer = aio.buffer(16384 + 1) -- a buffer that is not full shows that there is no more
  while stream:readinto(buffer) do stream:write(buffer) end
  stream:close()
end

local function tasks(fn)
  return function(load)
    local client
    aio.run(function()
      local server <close> = listen()
      client = echo.start(select(2, server:getsockname()), load)
      local group <close> = aio.group()
      for _ = 1, load[2] do group:spawn(fn, assert(server:accept())) end
    end)
    return client
  end
end

---- Callbacks

-- Nothing waits in a callback: what is not there yet comes with the next one, what the kernel does not take is queued.
local function attend(stream)
  local watch
  stream:settimeout(0)
  stream:setbound(1 << 20)
  watch = assert(aio.current():watch(stream, {read = function()
    local some, why = stream:readsome()
    if some then
      stream:write(some)
    elseif why ~= "timeout" then
      watch:close()
      stream:close()
    end
  end}))
end

local function callbacks(load)
  local ctx, server, left, accepting = aio.default(), listen(), load[2], nil
  accepting = assert(ctx:watch(server, {read = function()
    attend(assert(server:accept(0)))
    left = left - 1
    if left == 0 then accepting:close() end
  end}))
  local client = echo.start(select(2, server:getsockname()), load)
  ctx:run()
  server:close()
  return client
end

if arg[1] == "latency" then
  aio.default():set_polling {max_ns = 200000}
  echo.measure_latency(tasks(strings))
else
  echo.measure(({strings = tasks(strings), buffers = tasks(buffers), callbacks = callbacks})[arg[1]])
end
