-- SPDX-License-Identifier: MIT
-- Bytes per idle TCP connection with a coroutine that waits to read from it, in aioloop.

local measure = require "measure"
local aio = require "aioloop"
local tcp = require "limit_tcp"

local n <const> = 8000
local started, ended, dialled = 0, 0, {}
local function serve(stream)
  started = started + 1
  measure.expect(stream:read(1), "x", "message")
  stream:close()
  ended = ended + 1
end

aio.run(function()
  local server <close> = assert(aio.listen("127.0.0.1", 0))
  local _, port = server:getsockname()
  local before = measure.rss()
  for i = 1, n do
    dialled[i] = assert(tcp.dial(port))
    aio.spawn(serve, assert(server:accept()))
  end
  while started < n do aio.yield() end
  measure.report("mem_conn", measure.rss() - before, n)
  measure.expect(ended, 0, "ended")
  for i = 1, n do measure.expect(tcp.write(dialled[i], "x"), 1, "bytes written") end
end)
measure.expect(ended, n, "ended")
os.exit(true)
