-- SPDX-License-Identifier: MIT
-- A flood of messages from another thread into a Lua function, through the socket that cqueues gives to its threads,
-- which gathers what is written, and reads it ahead.

local measure = require "measure"
local cqueues = require "cqueues"
local thread = require "cqueues.thread"
local messages <const> = 1000000

local function flood(con, count)
  local loop = require "cqueues".new()
  con:setmode("b", "bf")
  loop:wrap(function()
    for n = 1, tonumber(count) do
      assert(con:write(string.pack("j", n)))
    end
    assert(con:flush())
    con:shutdown("w")
  end)
  assert(loop:loop())
end

local last = 0
local function arrived(n)
  measure.expect(n, last + 1, "message")
  last = n
end

local loop, span = cqueues.new(), nil
local begin = cqueues.monotime()
local other, con = assert(thread.start(flood, tostring(messages)))
con:setmode("b", "bn")
loop:wrap(function()
  while true do
    local message = con:read(8)
    if not message then break end
    arrived((string.unpack("j", message)))
  end
  span = (cqueues.monotime() - begin) * 1e9
end)
assert(loop:loop())
assert(other:join())
measure.expect(last, messages, "messages")
measure.report("flood", span, messages)
