-- SPDX-License-Identifier: MIT
-- Messages between threads, to and fro, through a pair of luv's pipes: async handles cannot be handed to a thread that
-- is running, and on one CPU take ten times as long. `cross.lua [two]`

local measure = require "measure"
local uv = require "luv"
local two_cpus <const> = arg[1] == "two"
local rounds <const> = two_cpus and 20000 or 100000

local function answer(fd, path, cpath, cpu)
  package.path, package.cpath = path, cpath
  local thread_uv = require "luv"
  if cpu then require "limit_cpu" (cpu) end
  local pipe = thread_uv.new_pipe(false)
  assert(pipe:open(fd))
  pipe:read_start(function(err, data)
    assert(not err, err)
    if data then
      assert(pipe:try_write(data))
    else
      pipe:close()
    end
  end)
  thread_uv.run()
end

if two_cpus then require "limit_cpu" "BENCH_CPU" end
local fds = assert(uv.socketpair("stream", nil, {nonblock = true}, {nonblock = true}))
local thread = uv.new_thread(answer, fds[2], package.path, package.cpath, two_cpus and "BENCH_OTHER_CPU" or nil)
local pipe, got, begin, span = uv.new_pipe(false), 0, uv.hrtime(), nil
assert(pipe:open(fds[1]))
pipe:read_start(function(err, data)
  assert(not err, err)
  measure.expect(data, string.char(got & 255), "message")
  got = got + 1
  if got < rounds then
    assert(pipe:try_write(string.char(got & 255)))
  else
    span = uv.hrtime() - begin
    pipe:close()
  end
end)
assert(pipe:try_write("\0"))
uv.run()
thread:join()
measure.expect(got, rounds, "messages")
measure.report("cross", span, 2 * rounds)
