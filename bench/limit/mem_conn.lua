-- SPDX-License-Identifier: MIT
-- Bytes per accepted descriptor with a suspended coroutine of bare Lua, held in a table under its number.

local measure = require "measure"
local tcp = require "limit_tcp"

local n <const> = 8000
local started, hold = 0, {}
local function serve(fd)
  started = started + 1
  measure.expect(coroutine.yield(), fd, "descriptor")
end

local server, port = assert(tcp.listen())
local before = measure.rss()
for _ = 1, n do
  assert(tcp.dial(port))
  local fd = assert(tcp.accept(server))
  hold[fd] = coroutine.create(serve)
  assert(coroutine.resume(hold[fd], fd))
end
measure.report("mem_conn", measure.rss() - before, n)
measure.expect(started, n, "started")
for fd, co in pairs(hold) do assert(coroutine.resume(co, fd)) end
os.exit(true)
