-- SPDX-License-Identifier: MIT
-- A flood of messages from another thread into a Lua function, through a pipe of luv: async handles lose messages, or
-- rather make one of many. A write for each message; what has come together is read together.

local measure = require "measure"
local uv = require "luv"
local messages <const> = 200000

local function flood(fd, count)
  local thread_uv = require "luv"
  local pipe, pack = thread_uv.new_pipe(false), string.pack
  assert(pipe:open(fd))
  local n = 0
  local function next_one(err)
    assert(not err, err)
    while n < count do
      n = n + 1
      local message = pack("j", n)
      local written = pipe:try_write(message) or 0
      if written < #message then
        pipe:write(message:sub(written + 1), next_one)
        return
      end
    end
    pipe:close()
  end
  next_one()
  thread_uv.run()
end

local last = 0
local function arrived(n)
  measure.expect(n, last + 1, "message")
  last = n
end

local fds = assert(uv.socketpair("stream", nil, {nonblock = true}, {nonblock = true}))
local pipe, rest, unpack = uv.new_pipe(false), "", string.unpack
assert(pipe:open(fds[1]))
pipe:read_start(function(err, data)
  assert(not err, err)
  if not data then return pipe:close() end
  rest = rest == "" and data or rest .. data
  for at = 1, #rest - 7, 8 do
    arrived((unpack("j", rest, at)))
  end
  rest = rest:sub(#rest // 8 * 8 + 1)
end)
local begin = uv.hrtime()
local thread = uv.new_thread(flood, fds[2], messages)
uv.run()
local span = uv.hrtime() - begin
thread:join()
measure.expect(last, messages, "messages")
measure.report("flood", span, messages)
