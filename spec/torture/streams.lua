-- SPDX-License-Identifier: MIT
-- Streams in a host without memory: whatever fails, no fd is left open, nobody is forgotten, no byte is lost.

local aio = require "aioloop"

-- A step may fail; the next one is tried all the same.
local function try(...) return pcall(...) end

local BIG = ("0123456789abcdef"):rep(20000) -- more than a socket has room for
local LIMIT = 0.05
local name = ("@aioloop-torture-%s"):format(tostring {})

-- The number that is free next: anything that was left open is below it, or has it.
local function free_number()
  local r, w = aio.pipe()
  local sum = r:getfd() + w:getfd()
  r:close()
  w:close()
  return sum
end

local before = free_number()

-- What is noted later has its place already.
local function new_life(id)
  local life = { id = id, sent = "", got = { "", "", "", "", "", "", "", "" }, ngot = 0, buffer = false,
    broken = false, whole = false, left = false, waiting = { false, false, false },
    server = false, peer = false, client = false, loose = false, number = false }
  for _, key in ipairs { "read", "whole", "left", "closed" } do
    life[key .. "_in"], life[key .. "_out"] = false, false
  end
  return life
end

local lives = { new_life(1), new_life(2) }

local function pair(life, key)
  local ok, a, b = try(aio.socketpair)
  if not ok then return end
  a:settimeout(LIMIT)
  b:settimeout(LIMIT)
  life[key .. "_in"], life[key .. "_out"] = b, a
  return a, b
end

-- ---- reading: what was taken, and what is left ---------------------------------------------------------------

local function put(life, text)
  local sent = life.sent .. text
  local ok, written = try(life.read_out.write, life.read_out, text)
  if ok and written then life.sent = sent end
end

local function take(life, method, ...)
  local stream = life.read_in
  local buffered = stream:buffered() > 0
  local ok, first, second = try(stream[method], stream, ...)
  for i = 1, 2 do
    local piece = i == 1 and first or second
    if not ok or type(piece) ~= "string" or not first then break end
    life.ngot = life.ngot + 1
    life.got[life.ngot] = piece
  end
  if not ok and method == "readsome" and not buffered then life.broken = true end -- its bytes had no place
end

local function read(life)
  if not pair(life, "read") then return end
  put(life, "one\ntwo;three\nfour")
  take(life, "read", "L")
  take(life, "read", { until_ = ";", keep = true }, 2)
  try(life.read_in.read, life.read_in, "n")
  local spawned, task = try(aio.spawn, take, life, "read", "L", 3)
  try(aio.sleep, 0)
  put(life, " five\nsix")
  if spawned then try(task.join, task, LIMIT) end
  take(life, "readsome", 2)
  spawned, task = try(aio.spawn, take, life, "readsome")
  try(aio.sleep, 0)
  put(life, "seven")
  if spawned then try(task.join, task, LIMIT) end
  try(function()
    local buffer = aio.buffer(4)
    put(life, "eight")
    if life.read_in:readinto(buffer) then life.buffer = buffer end
  end)
end

local function nothing_lost(life)
  local a, b = life.read_out, life.read_in
  if not a or life.broken then return end
  a:shutdown()
  local got = table.concat(life.got) .. (life.buffer and life.buffer:tostring() or "") .. assert(b:read "a")
  assert(got == life.sent, got .. " is not " .. life.sent)
end

-- ---- writing that waits --------------------------------------------------------------------------------------

local function write(life, key, bound)
  local a, b = pair(life, key)
  if not a then return end
  a:setbound(bound)
  local first, task = try(aio.spawn, a.write, a, BIG, "end")
  local second, other = try(aio.spawn, a.write, a, BIG)
  try(aio.sleep, 0)
  local ended, last = try(aio.spawn, a.shutdown, a)
  local ok, got = try(b.read, b, "a")
  if ok and got then life[key] = got end
  for _, spawned in ipairs { first and task, second and other, ended and last } do
    if spawned then try(spawned.join, spawned, LIMIT) end
  end
end

local function write_all(life, key, bound)
  try(write, life, key, bound)
  if life[key .. "_out"] then life[key .. "_out"]:close() end -- or run would go on for what nobody has read
end

-- What has begun is written whole, or to a point after which nothing comes.
local function nothing_mixed(life, key)
  local b = life[key .. "_in"]
  if not b then return end
  local got = (life[key] or "") .. assert(b:read "a")
  local expected = BIG .. "end" .. BIG
  local second = got == BIG:sub(1, #got) -- without the first
  assert(second or got == expected:sub(1, #got), "bytes are mixed")
end

-- ---- servers, and who is closed while he waits -----------------------------------------------------------------

local function accept(life)
  local ok, server = try(aio.listen, name .. life.id, { timeout = LIMIT })
  if not ok or not server then return end
  life.server = server
  local function wait() life.peer = server:accept() or life.peer end
  local spawned, task = try(aio.spawn, wait)
  try(aio.sleep, 0)
  local _, client = try(aio.connect, name .. life.id, { timeout = LIMIT })
  life.client = _ and client
  if spawned then try(task.join, task, LIMIT) end
  if not life.peer then try(wait) end
  local listening, tcp = try(aio.listen, "127.0.0.1", 0)
  if not listening or not tcp then return end
  try(function()
    local _, port = tcp:getsockname()
    aio.connect("127.0.0.1", port):close()
    tcp:clients()():close()
  end)
  try(tcp.close, tcp)
end

local function nobody_lost(life)
  if not life.client then return end
  local peer = life.peer or assert(life.server:accept(5))
  peer:settimeout(5)
  assert(life.client:write "here" and peer:read(4) == "here")
  peer:close()
  life.client:close()
end

local function close_waiters(life)
  local a = pair(life, "closed")
  local ok, server = try(aio.listen, name .. "closed")
  if not a or not ok or not server then return end
  a:settimeout()
  local reads, reader = try(aio.spawn, a.read, a)
  local writes, writer = try(aio.spawn, a.write, a, BIG)
  local accepts, acceptor = try(aio.spawn, server.accept, server)
  try(aio.sleep, 0)
  a:close()
  server:close()
  life.waiting[1], life.waiting[2], life.waiting[3] = reads and reader, writes and writer, accepts and acceptor
end

local function nobody_waits(life)
  for _, task in ipairs(life.waiting) do
    if task then assert(select(2, aio.timeout(5, task.join, task)) ~= "timeout") end
  end
end

-- ---- descriptors that change hands -----------------------------------------------------------------------------

local function adopt(life)
  local ok, r, w = try(aio.pipe)
  if not ok then return end
  life.loose = r:getfd()
  r:setfd(-1)
  ok, r = try(aio.stream, life.loose)
  if ok and r then life.loose = false end
  try(function()
    local twin <close> = aio.stream(io.stdin)
    return tostring(twin), twin:getpeername()
  end)
  try(w.getsockname, w)
  life.number = w:getfd()
  w:setfd(-1)
  if w:setfd(life.number) then life.number = false end
end

-- ---- the scenario ----------------------------------------------------------------------------------------------

local function use(life)
  try(read, life)
  write_all(life, "whole", 0)
  write_all(life, "left", 2 * #BIG)
  try(accept, life)
  try(close_waiters, life)
  try(adopt, life)
end

local streams = {}

function streams.scenario()
  try(use, lives[1])
  try(aio.run, use, lives[2])
end

local function check(life)
  nothing_lost(life)
  nothing_mixed(life, "whole")
  nothing_mixed(life, "left")
  nobody_lost(life)
  nobody_waits(life)
  for _, number in ipairs { life.loose or life.number, life.loose and life.number } do
    if number then assert(aio.stream(number)):close() end
  end
end

function streams.usable()
  collectgarbage()
  try(aio.run, function() end) -- until those have ended whom nobody could join
  for _, life in ipairs(lives) do check(life) end
  aio.default():close()
  for i = 1, 2 do
    for _, value in pairs(lives[i]) do
      if type(value) == "userdata" and value.close then value:close() end
    end
    lives[i] = nil
  end
  for _ = 1, 2 do collectgarbage() end
  assert(free_number() == before, "a descriptor was left open")
  return true
end

return streams
