-- SPDX-License-Identifier: MIT
-- Bytes per idle TCP connection with a coroutine that waits to read from it, in luv.

local measure = require "measure"
local uv = require "luv"
local tcp = require "limit_tcp"

local n <const> = 8000
local started, ended, dialled = 0, 0, {}
local function read(stream)
  local co = coroutine.running()
  stream:read_start(function(_, data)
    stream:read_stop()
    assert(coroutine.resume(co, data))
  end)
  return coroutine.yield()
end
local function serve(stream)
  started = started + 1
  measure.expect(read(stream), "x", "message")
  stream:close()
  ended = ended + 1
end

local server = uv.new_tcp()
assert(server:bind("127.0.0.1", 0))
assert(server:listen(128, function()
  local stream = uv.new_tcp()
  assert(server:accept(stream))
  assert(coroutine.resume(coroutine.create(serve), stream))
  if started == n then server:close() end
end))
local port = server:getsockname().port
local before = measure.rss()
for i = 1, n do
  dialled[i] = assert(tcp.dial(port))
  while started < i do uv.run("once") end
end
measure.report("mem_conn", measure.rss() - before, n)
measure.expect(ended, 0, "ended")
for i = 1, n do measure.expect(tcp.write(dialled[i], "x"), 1, "bytes written") end
uv.run()
measure.expect(ended, n, "ended")
os.exit(true)
