-- SPDX-License-Identifier: MIT
-- Bytes per idle TCP connection with a coroutine that waits to read from it, in cqueues.

local measure = require "measure"
local cqueues = require "cqueues"
local socket = require "cqueues.socket"
local tcp = require "limit_tcp"

local n <const> = 8000
local loop, started, ended, dialled = cqueues.new(), 0, 0, {}
local function serve(stream)
  started = started + 1
  measure.expect(stream:read(1), "x", "message")
  stream:close()
  ended = ended + 1
end

local server = assert(socket.listen {host = "127.0.0.1", port = 0, nodelay = true})
assert(server:listen())
local _, _, port = server:localname()
local before = measure.rss()
for i = 1, n do
  dialled[i] = assert(tcp.dial(port))
  local stream = assert(server:accept())
  stream:setmode("b", "bn")
  loop:wrap(serve, stream)
end
while started < n do assert(loop:step(0)) end
measure.report("mem_conn", measure.rss() - before, n)
measure.expect(ended, 0, "ended")
for i = 1, n do measure.expect(tcp.write(dialled[i], "x"), 1, "bytes written") end
assert(loop:loop())
measure.expect(ended, n, "ended")
os.exit(true)
