-- SPDX-License-Identifier: MIT
--- A small HTTP/1.1 server with keep-alive: plain LuaSocket objects, one coroutine per connection.
--
-- Way     listen -> accept -> serve -> read_request, respond(path), send
-- Yields  in aio.wait_readable and aio.wait_writable, wherever LuaSocket says "timeout"
local aio = require "aioloop"
local socket = require "socket"

local httpd = {}

local function read_line(sock)
  local line, err, partial
  repeat
    line, err, partial = sock:receive("*l", partial)
    if err == "timeout" then aio.wait_readable(sock) end
  until err ~= "timeout"
  return line, err
end

--- Returns the method, the path and whether the client keeps the connection; nil at its end.
local function read_request(sock)
  local first = read_line(sock)
  if not first then return nil end
  local method, path, version = first:match "^(%u+) (%S+) HTTP/(1%.[01])$"
  local keep = version == "1.1"
  repeat
    local line = read_line(sock)
    if not line then return nil end
    if line:lower():match "^connection:%s*close" then keep = false end
  until line == ""
  return method, path, keep
end

local function send(sock, data)
  local next_byte = 1
  repeat
    local last, err, partial = sock:send(data, next_byte)
    next_byte = (last or partial) + 1
    if err == "timeout" then aio.wait_writable(sock) elseif err then return nil, err end
  until next_byte > #data
  return true
end

local function serve(sock, respond)
  while true do
    local method, path, keep = read_request(sock)
    if not method then break end
    local body = method == "GET" and respond(path)
    local status = body and "200 OK" or "404 Not Found"
    body = body or "no such thing\n"
    local head = ("HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n"):format(
      status, #body, keep and "keep-alive" or "close")
    if not send(sock, head .. body) or not keep then break end
  end
  sock:close()
end

--- Serves 127.0.0.1 on a free port for as long as the loop runs, but is no reason for it to go on.
-- @param respond function(path) -> body, or nil for 404; runs in the connection's coroutine
-- @return port, stats (stats.connections is counted up)
function httpd.listen(respond)
  local server = assert(socket.bind("127.0.0.1", 0, 128))
  server:settimeout(0)
  local _, port = server:getsockname()
  local stats = { connections = 0 }

  local function accept()
    while true do
      local sock = server:accept()
      if sock then
        stats.connections = stats.connections + 1
        sock:settimeout(0)
        sock:setoption("tcp-nodelay", true)
        aio.spawn(serve, sock, respond):name("connection " .. stats.connections)
      else
        aio.wait_readable(server)
      end
    end
  end

  aio.spawn(accept):unref()
  return port, stats
end

return httpd
