-- SPDX-License-Identifier: MIT
-- Datagrams in a host without memory: whatever fails, no fd is left open, nobody is forgotten, and no datagram is lost.

local aio = require "aioloop"

-- A step may fail; the next one is tried all the same.
local function try(...) return pcall(...) end

local lives = { { sent = 0, got = 0 }, { sent = 0, got = 0 } }

local function send(life, data)
  local ok, sock = try(life.from.sendto, life.from, data, "127.0.0.1", life.port)
  if ok and sock then life.sent = life.sent + 1 end
end

local function receive(life, method, ...)
  local ok, data = try(life.to[method], life.to, ...)
  if ok and data then life.got = life.got + 1 end
end

local function open(life)
  life.from, life.to = aio.udp { ttl = 3 }, aio.udp { timeout = 0.05 }
  assert(life.to:bind("127.0.0.1", 0))
  local _, port = life.to:getsockname()
  life.port = port
end

local function use(life)
  if not try(open, life) then return end
  send(life, "text")
  send(life, 12)
  try(life.from.sendto, life.from, "x", "localhost", "no such service")
  if life.sent > 0 then receive(life, "recvfrom") end
  local made, buffer = try(aio.buffer, 10)
  if made and life.sent > life.got then receive(life, "recvinto", buffer) end
  -- Somebody waits already.
  local spawned, task = try(aio.spawn, receive, life, "recvfrom")
  try(aio.sleep, 0)
  send(life, "late")
  if spawned then try(task.join, task, 0.05) end
  try(life.to.join, life.to, "239.255.77.9", "lo")
  try(tostring, life.to)
end

local udp = {}

function udp.scenario()
  try(use, lives[1])
  try(aio.run, use, lives[2])
end

function udp.usable()
  collectgarbage()
  aio.default():close()
  for _, life in ipairs(lives) do
    if life.port then
      life.to:settimeout(5)
      for _ = life.got + 1, life.sent do assert(life.to:recvfrom()) end
      assert(life.from:sendto("usable", "127.0.0.1", life.port))
      assert(life.to:recvfrom() == "usable")
      life.to:close()
      life.from:close()
    end
  end
  return true
end

return udp
