-- SPDX-License-Identifier: MIT
-- 1-byte messages over raw socketpairs polled by cqueues, a coroutine per end: one pair both ways, and a ring
-- of 1,000 pairs with 100 bytes going round.

local measure = require "measure"
local cqueues = require "cqueues"
local pair = require "limit_pair"
local read, write = pair.read, pair.write

-- Reads from `from`, writes what came to `to`; after `hops` messages nothing is passed on.
local function pass(state, from, to)
  local poll, source = cqueues.poll, {pollfd = from, events = "r"}
  while state.active > 0 do
    poll(source)
    local data = read(from, 1)
    if data then
      state.hops = state.hops + 1
      if state.hops < state.limit then
        assert(write(to, data))
      else
        state.bytes = state.bytes .. data
        state.active = state.active - #data
      end
    end
  end
end

local function sorted(s)
  local bytes = table.pack(s:byte(1, -1))
  table.sort(bytes)
  return string.char(table.unpack(bytes))
end

local function measured(name, loop, state, sent)
  local begin = cqueues.monotime()
  while state.active > 0 do
    assert(loop:step())
  end
  local span = (cqueues.monotime() - begin) * 1e9
  measure.expect(sorted(state.bytes), sorted(sent), "bytes that came round")
  measure.report(name, span, state.hops)
end

local function one_pair(hops)
  local loop, state = cqueues.new(), {hops = 0, limit = hops, bytes = "", active = 1}
  local a, b = assert(pair.socketpair())
  loop:wrap(pass, state, a, a)
  loop:wrap(pass, state, b, b)
  assert(write(a, "a"))
  measured("pingpong_1", loop, state, "a")
end

local function ring(count, active, hops)
  local loop, state = cqueues.new(), {hops = 0, limit = hops, bytes = "", active = active}
  local ins, outs, sent = {}, {}, ""
  for i = 1, count do
    ins[i], outs[i] = assert(pair.socketpair())
  end
  for i = 1, count do
    loop:wrap(pass, state, ins[i], outs[i % count + 1])
  end
  for i = 1, active do
    local byte = string.char(97 + i % 26)
    assert(write(outs[i * (count // active)], byte))
    sent = sent .. byte
  end
  measured("pingpong_1000", loop, state, sent)
end

one_pair(200000)
ring(1000, 100, 200000)
os.exit(true)
