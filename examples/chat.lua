-- SPDX-License-Identifier: MIT
--- A chat for terminals: whoever connects gives a name, and what one says all the others read.
--
--   lua5.4 examples/chat.lua [port|path]     7000, or a Unix socket; then, as often as you like: nc 127.0.0.1 7000
--
-- Way     room:serve -> visit (one client) -> greet; listen: a line is read -> room:say -> the queue of each client
--         -> visit writes it
-- Yields  the two tasks of a client do: listen reads, visit writes.
-- Keep    nobody waits for a slow client: what is said goes into queues, without waiting. Whose queue is full has to
--         leave, and is told so behind what is in it, if that is read soon.
local aio = require "aioloop"

local chat = {}

chat.limits = {
  line = 500,       -- bytes
  backlog = 100,    -- messages that a client may be behind
  pause = 0.05,     -- seconds between two lines of one client: no one can flood the room
  name = 30,        -- seconds to give a name
  idle = 3600,      -- seconds without a word
  patience = 5,     -- seconds that one who has to leave may take to read the rest
}

local farewells = { timeout = "has fallen asleep", ["too long"] = "talks too much", slow = "is too slow" }

--- @type Room
local Room = {}
Room.__index = Room

--- A room; it is open when `serve` is called.
-- @param server what aio.listen returned
-- @param limits a table with what is to be different from chat.limits
function chat.new(server, limits)
  limits = setmetatable(limits or {}, { __index = chat.limits })
  return setmetatable({ server = server, limits = limits, clients = {} }, Room)
end

--- Says something to all but one.
function Room:say(text, but)
  local slow = {}
  for _, client in pairs(self.clients) do
    if client ~= but and not client.queue:put(text .. "\n", 0) then slow[#slow + 1] = client end
  end
  for _, client in ipairs(slow) do self:leave(client, "slow") end
end

--- Takes a client off the list. It may still read what is in its queue, but not take its time over it.
function Room:leave(client, why)
  if self.clients[client.name] ~= client then return end
  self.clients[client.name] = nil
  client.farewell = farewells[why] or "has left"
  client.queue:close()
  client.timer:arm(self.limits.patience)
  self:say(("* %s %s"):format(client.name, client.farewell))
end

local function greet(room, stream)
  stream:write "What is your name?\n"
  while true do
    local name = stream:read("l", 40)
    if not name then return nil end
    name = name:match "^%s*(%w+)%s*$"
    if name and not room.clients[name] then return name end
    stream:write(name and "That name is taken.\n" or "One word of letters and digits, please.\n")
  end
end

local function names_of(clients)
  local names = {}
  for name in pairs(clients) do names[#names + 1] = name end
  table.sort(names)
  return table.concat(names, " ")
end

local function listen(room, client)
  local stream, limits = client.stream, room.limits
  local line, why = stream:read("l", limits.line)
  while line and room.clients[client.name] == client do
    if line:find "%S" then room:say(client.name .. ": " .. line:gsub("%c", ""), client) end
    aio.sleep(limits.pause)
    line, why = stream:read("l", limits.line)
  end
  room:leave(client, why)
  while stream:readsome() do end -- to the end: closing while something is unread takes back what was written last
end

local function visit(room, stream)
  local _ <close> = stream
  local name = aio.timeout(room.limits.name, greet, room, stream)
  if not name then return end
  local timer <close> = aio.current():timer(stream.close, stream)
  local client = { name = name, stream = stream:settimeout(room.limits.idle), timer = timer,
    queue = aio.queue(room.limits.backlog) }
  client.queue:put(("* here: %s\n"):format(names_of(room.clients)))
  room:say(("* %s is here"):format(name))
  room.clients[name] = client
  local group <close> = aio.group()
  group:spawn(listen, room, client):name(name)
  for text in client.queue:iter() do
    if not stream:write(text) then break end
  end
  room:leave(client)
  stream:write("* ", name, " ", client.farewell, "\n")
  stream:shutdown()
end

--- Serves until the server is closed, and the last client has left.
function Room:serve()
  local group <close> = aio.group()
  for stream in self.server:clients() do group:spawn(visit, self, stream):name "visitor" end
end

--- Sends all clients away, and takes no more.
function Room:close()
  self.server:close()
  for _, client in pairs(self.clients) do self:leave(client) end
end

local function main(place)
  local port = tonumber(place or 7000)
  local server = assert(aio.listen(port and "127.0.0.1" or place, port))
  io.stdout:write(table.concat({ server:getsockname() }, " "), "\n"):flush()
  local room = chat.new(server)
  local serving = aio.spawn(room.serve, room):name "room"
  aio.race(function() aio.wait_signal "TERM" end, function() aio.wait_signal "INT" end)
  room:close()
  if serving:join(room.limits.patience) == nil then serving:cancel() end -- they have not even told their names
end

if arg and arg[0]:match "chat%.lua$" then aio.run(main, ...) end

return chat
