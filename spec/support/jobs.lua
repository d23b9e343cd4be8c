-- SPDX-License-Identifier: MIT
--- Functions for workers: made where _ENV is the globals table, which a spec's is not under busted.

local jobs = {}

local up = { 1, 2 }
function jobs.sum(a, b, ...) return a + b, up[2], select("#", ...), nil, tostring(_G) end

function jobs.slow_square(x)
  os.execute "sleep 0.2"
  return x * x
end

function jobs.sleep(seconds) os.execute("sleep " .. seconds) end
function jobs.sign_and_sleep(name, seconds)
  io.open(name, "w"):write("ran"):close()
  os.execute("sleep " .. seconds)
end

function jobs.fail() error "in a worker" end
function jobs.fail_with(value) error(value) end
function jobs.thread() return coroutine.create(print) end
function jobs.same(...) return ... end
function jobs.touch(name) io.open(name, "w"):write("ran"):close() end

return jobs
