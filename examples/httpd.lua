-- SPDX-License-Identifier: MIT
--- An HTTP/1.1 server on streams: a task for each connection, limits on whatever a client may make large or slow.
--
--   lua5.4 examples/httpd.lua [port|path] [folder]     8080, or a Unix socket; the files of a folder (GET, HEAD, PUT)
--
--   local site = httpd.new(assert(aio.listen("127.0.0.1", 8080)), function(request) return 200, "hello\n" end)
--   site:serve()
--
-- Way     site:serve -> converse (one connection) -> exchange (one request) -> read_head, frame -> the handler, which
--         may call request:read -> answer
-- Yields  everywhere: the handler runs in its connection's task, and may wait, too.
-- Keep    a request that could be read in two ways is read in none: it is refused, and its connection ends. So does one
--         of which the body was not read: what follows would be taken for a request.
local aio = require "aioloop"

local httpd = {}

httpd.limits = {
  requests = 1000,   -- in a row on one connection
  head = 16 << 10,   -- bytes of a request's line and headers, and of a chunked body's trailer
  body = 1 << 20,    -- bytes of its body
  idle = 60,         -- seconds between two requests
  patience = 10,     -- seconds for the head; for each piece of a body, coming or going
}

local PIECE = 64 << 10
local LINGER = 2 -- seconds

local reasons = {
  [200] = "OK", [201] = "Created", [204] = "No Content", [304] = "Not Modified", [400] = "Bad Request",
  [403] = "Forbidden", [404] = "Not Found", [405] = "Method Not Allowed", [408] = "Request Timeout", [409] = "Conflict",
  [413] = "Content Too Large", [417] = "Expectation Failed", [431] = "Request Header Fields Too Large",
  [500] = "Internal Server Error", [501] = "Not Implemented", [503] = "Service Unavailable",
  [505] = "HTTP Version Not Supported",
}

--- Ends the request with this status. A handler may do so, too: error { status = 403 }.
local function refuse(status) error({ status = status }, 0) end

-- What a read returned, or the end of the request.
local function must(data, why)
  if data then return data end
  return refuse(why == "timeout" and 408 or why == "too long" and 431 or 400)
end

local function has_token(list, token)
  return list and ("," .. list:lower():gsub("[ \t]", "") .. ","):find("," .. token .. ",", 1, true)
end

-- ---- reading ------------------------------------------------------------------------------------------------------

local REQUEST_LINE = "^([%w!#$%%&'*+.^_`|~-]+) ([!-~]+) HTTP/(%d)%.(%d)()\r\n"
local FIELD = "^\r\n([%w!#$%%&'*+.^_`|~-]+):[ \t]*([^\0-\8\10-\31\127]*)"

-- The fields from `at` on, up to the empty line at the end: all of it is fields, or it is refused. Names in lower case.
local function read_fields(head, at)
  local fields = {}
  while at < #head - 3 do
    local _, last, name, value = head:find(FIELD, at)
    if not last then refuse(400) end
    name, value = name:lower(), value:match "^(.*[^ \t])" or ""
    fields[name] = fields[name] and fields[name] .. ", " .. value or value
    at = last + 1
  end
  return fields
end

-- A last piece at the end of a stream comes without the delimiter: that is no head.
local function read_head(request, format)
  local head = must(request.stream:read(format))
  if head:sub(-4) ~= "\r\n\r\n" then refuse(400) end
  local first = head:sub(1, 2) == "\r\n" and 3 or 1 -- an empty line before it is ignored
  local method, target, major, minor, at = head:match(REQUEST_LINE, first)
  if not method then refuse(400) end
  if major ~= "1" then refuse(505) end
  request.method, request.target, request.old = method, target, minor == "0"
  request.path = target:match "^https?://[^/?]*(/[^?]*)" or target:match "^[^?]*"
  request.headers = read_fields(head, at)
end

-- How long the body is, and whether the client stays.
local function frame(request, limit)
  local fields = request.headers
  local coding, length, host = fields["transfer-encoding"], fields["content-length"], fields.host
  local connection = fields.connection
  request.close = has_token(connection, "close") or request.old and not has_token(connection, "keep-alive")
  if host and host:find "[,%s]" or not host and not request.old then refuse(400) end
  if coding then
    if length or request.old then refuse(400) end
    if coding:lower() ~= "chunked" then refuse(501) end
    request.chunked = true
  elseif length then
    if length:find "%D" or length == "" then refuse(400) end
    if #length > 15 or tonumber(length) > limit then refuse(413) end
    request.left = tonumber(length)
  end
  if fields.expect and not request.old then
    if fields.expect:lower() ~= "100-continue" then refuse(417) end
    request.expects = request.chunked or request.left > 0
  end
end

--- @type Request   method, target, path, headers (names in lower case)
local Request = {}
Request.__index = Request

-- The line that says how long the next chunk is; after the last one, the trailer, which nobody wants.
local function next_chunk(request)
  local stream, limits = request.stream, request.limits
  if request.size > 0 and must(stream:read(2)) ~= "\r\n" then refuse(400) end
  local line, why = stream:read { until_ = "\r\n", max = 256, keep = true }
  if why == "too long" then refuse(400) end
  must(line, why)
  local digits = line:match "^(%x+)\r\n$" or line:match "^(%x+)[ \t]*;[^%c]*\r\n$"
  if not digits or #digits > 12 then refuse(400) end
  request.left = tonumber(digits, 16)
  request.size = request.size + request.left
  if request.size > limits.body then refuse(413) end
  if request.left > 0 then return end
  request.chunked = false
  local room = limits.head
  repeat
    line = must(stream:read { until_ = "\r\n", max = room, keep = true })
    room = room - #line
    if room < 0 then refuse(431) end
  until line == "\r\n"
end

--- The next piece of the body; nil at its end. `for piece in request.read, request do`
function Request:read()
  if self.expects then
    self.expects = false
    if not self.stream:write "HTTP/1.1 100 Continue\r\n\r\n" then refuse(400) end
  end
  if self.left == 0 and self.chunked then next_chunk(self) end
  if self.left == 0 then return nil end
  local piece = must(self.stream:readsome(math.min(self.left, PIECE)))
  self.left = self.left - #piece
  return piece
end

--- The whole body.
function Request:body()
  local pieces = {}
  for piece in self.read, self do pieces[#pieces + 1] = piece end
  return table.concat(pieces)
end

-- Takes what the handler left of the body, if it is there already; else the connection has to end.
local function skip_body(request)
  local stream, all = request.stream, false
  if not request.expects and request.left <= PIECE then
    stream:settimeout(0)
    all = pcall(request.body, request)
    stream:settimeout(request.limits.patience)
  end
  request.close = request.close or not all
end

-- ---- answering ----------------------------------------------------------------------------------------------------

local second, date

local function now()
  local time = os.time()
  if time ~= second then second, date = time, os.date("!%a, %d %b %Y %H:%M:%S GMT", time) end
  return date
end

local function send(request, ...)
  if not request.stream:write(...) then refuse(nil) end -- nobody is there to be told
  local stats = request.stats
  for i = 1, select("#", ...) do stats.bytes = stats.bytes + #select(i, ...) end
end

-- In pieces, so that a slow client has its patience for each of them.
local function send_string(request, head, body)
  send(request, head, #body > PIECE and body:sub(1, PIECE) or body)
  for at = PIECE + 1, #body, PIECE do send(request, body:sub(at, at + PIECE - 1)) end
end

local function send_pieces(request, head, body, length, chunked)
  local sent = 0
  send(request, head)
  for piece in body do
    sent = sent + #piece
    if length and sent > length then break end
    if not chunked then
      send(request, piece)
    elseif #piece > 0 then
      send(request, ("%x\r\n"):format(#piece), piece, "\r\n")
    end
  end
  if chunked then send(request, "0\r\n\r\n") end
  if length and sent ~= length then error("the body has another length than was said", 0) end
end

local function head_of(request, status, fields, headers)
  local lines = { ("HTTP/1.1 %d %s\r\nDate: %s\r\n"):format(status, reasons[status] or "Other", now()), fields }
  for name, value in pairs(headers) do
    if (name .. value):find "[\r\n\0]" then error("a header has more than one line: " .. name, 0) end
    lines[#lines + 1] = ("%s: %s\r\n"):format(name, value)
  end
  lines[#lines + 1] = request.close and "Connection: close\r\n\r\n"
    or request.old and "Connection: keep-alive\r\n\r\n" or "\r\n"
  return table.concat(lines)
end

local nothing = {}

-- What the handler returned: a status (none: 404); a string, or a function that returns piece after piece, and then
-- nil; headers; what is to be closed after it.
local function answer(request, status, body, headers, closing)
  local _ <close> = closing
  status, headers = status or 404, headers or nothing
  body = body or status >= 200 and ("%d %s\n"):format(status, reasons[status] or "")
  local empty = status == 204 or status == 304
  local is_string, length = type(body) == "string", headers["Content-Length"]
  local chunked = not is_string and not length and not request.old
  if not is_string and not length and request.old then request.close = true end
  local fields = empty and "" or is_string and ("Content-Length: %d\r\n"):format(#body)
    or chunked and "Transfer-Encoding: chunked\r\n" or ""
  local head = head_of(request, status, fields, headers)
  request.answered = true
  if empty or request.method == "HEAD" then
    send(request, head)
  elseif is_string then
    send_string(request, head, body)
  else
    send_pieces(request, head, body, length, chunked)
  end
end

-- ---- connections --------------------------------------------------------------------------------------------------

-- Who closes while something unread is there, or on its way, takes back the answer: the client would see a reset.
local function linger(stream)
  stream:settimeout(LINGER)
  if stream:shutdown() then
    aio.timeout(LINGER, function()
      while stream:readsome() do end
    end)
  end
end

local function exchange(site, request)
  read_head(request, site.format)
  frame(request, site.limits.body)
  local results = table.pack(site.handler(request))
  if request.chunked or request.left > 0 then skip_body(request) end
  if site.stopping or request.last then request.close = true end
  answer(request, table.unpack(results, 1, 4))
end

local function with_traceback(err) return type(err) == "string" and debug.traceback(err, 2) or err end

local function failed(site, request, err)
  if aio.is_cancelled(err) then error(err, 0) end
  local status = 500
  if type(err) == "table" then status = err.status else site.log(err) end
  site.stats.refused = site.stats.refused + 1
  request.close = true
  if status and not request.answered then pcall(answer, request, status) end
end

local function converse(site, stream)
  local _ <close> = stream
  local limits, stats = site.limits, site.stats
  for n = 1, limits.requests do
    site.idle[stream] = true
    local there = not site.stopping and stream:settimeout(limits.idle):read(0) -- its first byte, which stays there
    site.idle[stream] = nil
    if not there then return end
    stream:settimeout(limits.patience)
    local request = setmetatable({ stream = stream, limits = limits, stats = stats, last = n == limits.requests,
      left = 0, size = 0 }, Request) -- left: bytes of the body, or of the chunk; size: of the chunks so far
    local ok, err = xpcall(exchange, with_traceback, site, request)
    stats.requests = stats.requests + 1
    if not ok then failed(site, request, err) end
    if request.close then return linger(stream) end
  end
end

-- ---- sites --------------------------------------------------------------------------------------------------------

--- @type Site   stats: connections, requests, refused, bytes (sent)
local Site = {}
Site.__index = Site

--- A site, which serves when `serve` is called.
-- @param server what aio.listen returned
-- @param handler function(request) -> status, body, headers, closing (see `answer`)
-- @param limits a table with what is to be different from httpd.limits
-- @param log function(message): is told of errors of the handler
function httpd.new(server, handler, limits, log)
  limits = setmetatable(limits or {}, { __index = httpd.limits })
  return setmetatable({
    server = server, handler = handler, limits = limits, idle = {}, over = aio.event(),
    log = log or function(message) io.stderr:write(tostring(message), "\n") end,
    format = { until_ = "\r\n\r\n", max = limits.head, keep = true },
    stats = { connections = 0, requests = 0, refused = 0, bytes = 0 },
  }, Site)
end

--- Serves until the site is stopped, and the last connection has ended.
function Site:serve()
  local _ <close> = setmetatable({}, { __close = function() self.over:set() end })
  local group <close> = aio.group()
  self.group = group
  for stream in self.server:clients() do
    self.stats.connections = self.stats.connections + 1
    group:spawn(converse, self, stream):name("connection " .. self.stats.connections)
  end
end

--- Takes no more connections and lets the present requests end; after so many seconds, ends them. Waits for that.
function Site:stop(grace)
  self.stopping = true
  self.server:close()
  for stream in pairs(self.idle) do stream:close() end
  if self.group and not self.over:wait(grace) then
    self.group:cancel "stopped"
    self.over:wait()
  end
end

-- ---- a folder -----------------------------------------------------------------------------------------------------

local puts = 0

-- The file has its name when all of it is there.
local function put(request, path)
  puts = puts + 1
  local part, done = ("%s.part%d"):format(path, puts), false
  local _ <close> = setmetatable({}, { __close = function() if not done then os.remove(part) end end })
  local file <close> = aio.open(part, "w")
  if not file then return 403 end
  for piece in request.read, request do assert(file:write(piece)) end
  file:close()
  done = os.rename(part, path)
  return done and 201 or 409 -- a folder has that name
end

local function get(path)
  local file = aio.open(path)
  local stat = file and assert(file:stat())
  if not stat or stat.type ~= "file" then return 404, nil, nil, file end
  local function pieces() return (file:read(PIECE)) end
  return 200, pieces, { ["Content-Length"] = stat.size, ["Content-Type"] = "application/octet-stream" }, file
end

--- A handler for the files of a folder; there is no way into another one.
function httpd.folder(folder)
  return function(request)
    local name = request.path:match "^/([%w_-][%w._-]*)$"
    if not name then return 404 end
    if request.method == "PUT" then return put(request, folder .. "/" .. name) end
    if request.method == "GET" or request.method == "HEAD" then return get(folder .. "/" .. name) end
    return 405, nil, { Allow = "GET, HEAD, PUT" }
  end
end

-- ---- as a script --------------------------------------------------------------------------------------------------

local function main(place, folder)
  local port = tonumber(place or 8080)
  local server = assert(aio.listen(port and "127.0.0.1" or place, port))
  local host, number = server:getsockname()
  local site = httpd.new(server, httpd.folder(folder or "."), { body = 1 << 30 })
  local serving = aio.spawn(site.serve, site):name "site"
  io.stdout:write(number and ("http://%s:%d/\n"):format(host, number) or host .. "\n"):flush()
  aio.race(function() aio.wait_signal "TERM" end, function() aio.wait_signal "INT" end)
  site:stop(5)
  aio.await(serving)
end

if arg and arg[0]:match "httpd%.lua$" then aio.run(main, ...) end

return httpd
