-- SPDX-License-Identifier: MIT
--- Functions for workers, made where _ENV is the globals table, which a spec's is not under busted; and a gate at which
--- they wait, so that a spec decides how long they run.
--
-- Way    local gate <close> = jobs.gate() -> aio.work(jobs.pass, gate.at, ...) -> gate:await(d, ctx, n) -> gate:open()
-- Owner  whoever makes a gate closes it, which opens it: before its contexts, which wait for what runs.

local aio = require "aioloop"
local fds = require "fds"

local jobs = {}

local up = { 1, 2 }
function jobs.sum(a, b, ...) return a + b, up[2], select("#", ...), nil, tostring(_G) end

function jobs.fail() error "in a worker" end
function jobs.fail_with(value) error(value) end
function jobs.thread() return coroutine.create(print) end
function jobs.same(...) return ... end
function jobs.require(name) return (require(name)) end

-- Of every kind that differs on the way: without upvalues, with some, in another function, with a table, a long string.
local factor = 3
jobs.mixed = {
  function(a, b) return a + b end,
  function(a, b) return a - b, nil, a == b end,
  function(a) return a * factor end,
  function(a, b) return { a, { b, tostring(a) } } end,
  function(a) return ("x"):rep(a % 50) end,
  function(a, b) return (function(x) return x .. b end)(a), a < b end,
  function(a, b) error(a * 1000 + b, 0) end,
}

--- Rings at a gate, and waits there until it is open.
function jobs.pass(at, ...)
  io.open(at.bell, "w"):write("x"):close()
  local door <close> = io.open(at.door)
  door:read "a"
  return ...
end

--- Rings at a gate when it begins, and so much later when it ends.
function jobs.linger(at, seconds)
  io.open(at.bell, "w"):write("x"):close()
  os.execute("sleep " .. seconds)
  io.open(at.bell, "w"):write("x"):close()
end

-- ---- the gate ----------------------------------------------------------------------------------------------

local Gate = {}
Gate.__index = Gate

function jobs.gate()
  local bell, ring = assert(fds.pipe())
  local door, latch = assert(fds.pipe())
  local path = "/proc/self/fd/%d" -- opened anew by who waits, and so blocking
  return setmetatable({
    at = { bell = path:format(ring), door = path:format(door) },
    heard = path:format(bell), bell = bell, ring = ring, door = door, latch = latch, rung = 0,
  }, Gate)
end

--- How often they have rung, so far.
function Gate:count()
  self.rung = self.rung + #(fds.read(self.bell) or "")
  return self.rung
end

--- Takes turns until they have rung so often.
function Gate:await(d, ctx, n)
  local watch = ctx:watch(self.bell, { read = function() self:count() end })
  d.wait(ctx, function() return self.rung >= n end)
  watch:close()
end

--- The same without any turn.
function Gate:await_outside(n)
  local bell <close> = io.open(self.heard)
  self.rung = self.rung + #bell:read(n - self.rung)
end

--- They go on, and whoever comes later does not wait.
function Gate:open()
  if self.latch then fds.close(self.latch) end
  self.latch = nil
end

function Gate:__close()
  self:open()
  for _, fd in ipairs { self.bell, self.ring, self.door } do fds.close(fd) end
end

--- Waits without any turn until the context has something to do.
function jobs.until_ready(ctx)
  local limit = aio.now() + 30
  repeat assert(aio.now() < limit, "no job was done") until ctx:timeout() == 0
end

return jobs
