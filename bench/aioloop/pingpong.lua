-- SPDX-License-Identifier: MIT
-- 1-byte messages over raw socketpairs watched by aioloop: one pair both ways, and a ring of 1,000 pairs with
-- 100 bytes going round.

local measure = require "measure"
local aio = require "aioloop"
local pair = require "limit_pair"
local ctx, read, write = assert(aio.context {backend = os.getenv "AIO_BACKEND"}), pair.read, pair.write

-- Reads from `from`, writes what came to `to`; after `hops` messages nothing is passed on.
local function pass(state, from, to)
  local watch = assert(ctx:watch(from, {read = function()
    local data = assert(read(from, 1))
    state.hops = state.hops + 1
    if state.hops < state.limit then
      assert(write(to, data))
    else
      state.bytes = state.bytes .. data
      state.active = state.active - #data
      if state.active == 0 then
        ctx:stop()
      end
    end
  end}))
  state.watches[#state.watches + 1] = watch
end

local function sorted(s)
  local bytes = table.pack(s:byte(1, -1))
  table.sort(bytes)
  return string.char(table.unpack(bytes))
end

local function measured(name, state, sent)
  local begin = aio.now_ns()
  ctx:run()
  local span = aio.now_ns() - begin
  measure.expect(sorted(state.bytes), sorted(sent), "bytes that came round")
  measure.report(name, span, state.hops)
  for _, watch in ipairs(state.watches) do
    watch:close()
  end
end

local function one_pair(hops)
  local state = {hops = 0, limit = hops, bytes = "", active = 1, watches = {}}
  local a, b = assert(pair.socketpair())
  pass(state, a, a)
  pass(state, b, b)
  assert(write(a, "a"))
  measured("pingpong_1", state, "a")
end

local function ring(count, active, hops)
  local state = {hops = 0, limit = hops, bytes = "", active = active, watches = {}}
  local ins, outs, sent = {}, {}, ""
  for i = 1, count do
    ins[i], outs[i] = assert(pair.socketpair())
  end
  for i = 1, count do
    pass(state, ins[i], outs[i % count + 1])
  end
  for i = 1, active do
    local byte = string.char(97 + i % 26)
    assert(write(outs[i * (count // active)], byte))
    sent = sent .. byte
  end
  measured("pingpong_1000", state, sent)
end

one_pair(200000)
ring(1000, 100, 200000)
os.exit(true)
