-- SPDX-License-Identifier: MIT
-- 1-byte messages over luv pipes (try_write is its fastest way out): one pair both ways, and a ring of 1,000 pairs
-- with 100 bytes going round.

local measure = require "measure"
local uv = require "luv"

local function open_pair()
  local fds = assert(uv.socketpair("stream", nil, {nonblock = true}, {nonblock = true}))
  local a, b = uv.new_pipe(false), uv.new_pipe(false)
  assert(a:open(fds[1]))
  assert(b:open(fds[2]))
  return a, b
end

-- Reads from `from`, writes what came to `to`; after `hops` messages nothing is passed on.
local function pass(state, from, to)
  from:read_start(function(err, data)
    assert(not err, err)
    state.hops = state.hops + 1
    if state.hops < state.limit then
      assert(to:try_write(data))
    else
      state.bytes = state.bytes .. data
      state.active = state.active - #data
      if state.active == 0 then
        uv.stop()
      end
    end
  end)
end

local function sorted(s)
  local bytes = table.pack(s:byte(1, -1))
  table.sort(bytes)
  return string.char(table.unpack(bytes))
end

local function measured(name, state, sent)
  local begin = uv.hrtime()
  uv.run()
  local span = uv.hrtime() - begin
  measure.expect(sorted(state.bytes), sorted(sent), "bytes that came round")
  measure.report(name, span, state.hops)
end

local function one_pair(hops)
  local state = {hops = 0, limit = hops, bytes = "", active = 1}
  local a, b = open_pair()
  pass(state, a, a)
  pass(state, b, b)
  a:write("a")
  measured("pingpong_1", state, "a")
  a:close()
  b:close()
end

local function ring(count, active, hops)
  local state = {hops = 0, limit = hops, bytes = "", active = active}
  local ins, outs, sent = {}, {}, ""
  for i = 1, count do
    ins[i], outs[i] = open_pair()
  end
  for i = 1, count do
    pass(state, ins[i], outs[i % count + 1])
  end
  for i = 1, active do
    local byte = string.char(97 + i % 26)
    outs[i * (count // active)]:write(byte)
    sent = sent .. byte
  end
  measured("pingpong_1000", state, sent)
end

one_pair(200000)
ring(1000, 100, 200000)
os.exit(true)
