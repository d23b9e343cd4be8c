-- SPDX-License-Identifier: MIT
-- HTTP with a parser that only looks for the end of the head: with a coroutine for each connection, or a callback.
-- http.lua tasks|callbacks

local http = require "http"
local aio = require "aioloop"
local head <const>, answer <const> = {until_ = "\r\n\r\n", max = 8192}, http.answer

local function listen()
  return assert(aio.listen("127.0.0.1", 0, {backlog = 1024}))
end

local function tasks(load)
  local client, served = nil, 0
  local function attend(stream)
    while true do
      local request = stream:read(head)
      if not request or request:sub(1, 4) ~= "GET " then break end
      served = served + 1
      stream:write(answer)
    end
    stream:close()
  end
  aio.run(function()
    local server <close> = listen()
    client = http.start(select(2, server:getsockname()), load)
    local group <close> = aio.group()
    for _ = 0, http.connections do group:spawn(attend, assert(server:accept())) end
  end)
  return client, served
end

-- Nothing waits in a callback: what is not there yet comes with the next one, what the kernel does not take is queued.
local function callbacks(load)
  local ctx, server, left, served, accepting = aio.default(), listen(), 1 + http.connections, 0, nil
  local function attend(stream)
    local watch
    stream:settimeout(0)
    stream:setbound(1 << 20)
    watch = assert(ctx:watch(stream, {read = function()
      local request, why = stream:read(head)
      if request and request:sub(1, 4) == "GET " then
        served = served + 1
        stream:write(answer)
      elseif why ~= "timeout" then
        watch:close()
        stream:close()
      end
    end}))
  end
  accepting = assert(ctx:watch(server, {read = function()
    attend(assert(server:accept(0)))
    left = left - 1
    if left == 0 then accepting:close() end
  end}))
  local client = http.start(select(2, server:getsockname()), load)
  ctx:run()
  server:close()
  return client, served
end

http.measure(({tasks = tasks, callbacks = callbacks})[arg[1]])
