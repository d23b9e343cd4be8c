-- SPDX-License-Identifier: MIT
-- Messages between threads, to and fro, through the socket that cqueues gives to each of its threads. `cross.lua [two]`

local measure = require "measure"
local cqueues = require "cqueues"
local thread = require "cqueues.thread"
local two_cpus <const> = arg[1] == "two"
local rounds <const> = two_cpus and 20000 or 50000

local function answer(con, path, cpath, cpu)
  package.path, package.cpath = path, cpath
  local loop = require "cqueues".new()
  if cpu ~= "" then require "limit_cpu" (cpu) end
  con:setmode("b", "bn")
  loop:wrap(function()
    while true do
      local byte = con:read(1)
      if not byte then break end
      con:write(byte)
    end
  end)
  assert(loop:loop())
end

if two_cpus then require "limit_cpu" "BENCH_CPU" end
local loop, got, span = cqueues.new(), 0, nil
local other, con = assert(thread.start(answer, package.path, package.cpath, two_cpus and "BENCH_OTHER_CPU" or ""))
con:setmode("b", "bn")
loop:wrap(function()
  local begin = cqueues.monotime()
  for i = 1, rounds do
    local byte = string.char(i & 255)
    con:write(byte)
    measure.expect(con:read(1), byte, "message")
    got = got + 1
  end
  span = (cqueues.monotime() - begin) * 1e9
  con:shutdown("w")
  measure.expect(con:read(1), nil, "end")
end)
assert(loop:loop())
assert(other:join())
measure.expect(got, rounds, "messages")
measure.report("cross", span, 2 * rounds)
