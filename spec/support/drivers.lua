-- SPDX-License-Identifier: MIT
--- Runs one list of scenarios through ctx:poll and through a GLib main context, and where fds matter on every backend.
--
-- Way    drivers.each(function(d) it("…", function() local ctx = d.context() … d.turn(ctx) … end) end)
-- Keep   what a scenario made is closed after it; an error in a callback fails the scenario under either driver; a wait
--        ends by its event, and only a broken loop meets the limit.

local busted = require "busted"
local aio = require "aioloop"
local glib = require "aioloop.glib"
local fds = require "fds"
local foreign = require "foreign"

local drivers = { limit = 30 }

-- ---- what a scenario leaves behind -------------------------------------------------------------------------

local contexts, numbers, failures = {}, {}, {}

local function track(...)
  for _, fd in ipairs { ... } do numbers[fd] = true end
  return ...
end

function drivers.pipe() return track(assert(fds.pipe())) end
function drivers.socketpair() return track(assert(fds.socketpair())) end
function drivers.dup(fd) return track(assert(fds.dup(fd))) end

function drivers.close(fd)
  numbers[fd] = nil
  assert(fds.close(fd))
end

function drivers.cleanup()
  aio.clock.virtual:pause()
  aio.clock.virtual:autojump(false)
  for _, ctx in ipairs(contexts) do ctx:close() end
  for fd in pairs(numbers) do fds.close(fd) end
  contexts, numbers, failures = {}, {}, {}
  foreign.check()
end

--- A context that is closed after the scenario.
function drivers.context(opts)
  local ctx = assert(aio.context(opts))
  contexts[#contexts + 1] = ctx
  return ctx
end

--- Ends a wait of GLib's from outside of the loop.
function drivers.alarm(seconds)
  local alarm = { rung = false }
  local id = foreign.timeout(math.ceil(seconds * 1000), function() alarm.rung = true end)
  return setmetatable(alarm, {
    __close = function()
      if not alarm.rung then foreign.remove(id) end
    end,
  })
end

-- ---- drivers --------------------------------------------------------------------------------------------

--- A driver, "poll" or "glib", on a backend.
function drivers.new(name, backend)
  local d = { name = name, backend = backend, is_glib = name == "glib", polls = name == "poll" }

  local function raise()
    local failure = table.remove(failures, 1)
    if failure then error(failure.err, 0) end
    foreign.check()
  end

  --- A context under this driver.
  function d.context(opts)
    local copy = { backend = backend }
    for k, v in pairs(opts or {}) do copy[k] = v end
    local ctx = drivers.context(copy)
    if d.is_glib then
      assert(ctx:attach())
      ctx:on_error(function(err) failures[#failures + 1] = { err = err } end)
    end
    return ctx
  end

  --- One turn; it waits if `blocking` is true.
  function d.turn(ctx, blocking)
    if d.polls then return ctx:poll(blocking or false) end
    local dispatched = glib.iterate(blocking or false)
    raise()
    return dispatched
  end

  --- So many turns that do not wait.
  function d.turns(ctx, n)
    for _ = 1, n do d.turn(ctx) end
  end

  local function wait(ctx, seconds, done)
    local start, n = aio.now(), 0
    local guard <close> = d.is_glib and drivers.alarm(seconds)
    while not done() do
      local left = start + seconds - aio.now()
      if d.polls and left <= 0 or d.is_glib and guard.rung then break end
      if d.polls then ctx:poll(left) else d.turn(ctx, true) end
      n = n + 1
    end
    return n, aio.now() - start
  end

  --- Takes turns that wait, for so long; returns how many, and how long it was.
  function d.pass(ctx, seconds) return wait(ctx, seconds, function() return false end) end

  --- Takes turns that wait until done() is true; returns how many.
  function d.wait(ctx, done)
    local n = wait(ctx, drivers.limit, done)
    if not done() then error("what the scenario waits for never happened", 2) end
    return n
  end

  return d
end

--- Describes the same scenarios once for each driver.
function drivers.each(scenarios)
  for _, name in ipairs { "poll", "glib" } do
    busted.describe("through " .. name, function()
      busted.after_each(drivers.cleanup)
      scenarios(drivers.new(name))
    end)
  end
end

--- The backends that the kernel grants, and those of them that have a pollfd.
drivers.backends, drivers.pollable = { "epoll", "poll" }, { "epoll" }
local ring, refusal = aio.context { backend = "io_uring" }
if ring then
  ring:close()
  table.insert(drivers.backends, "io_uring")
  table.insert(drivers.pollable, "io_uring")
end

--- The same once for each driver and backend. Rings come last: the kernel interrupts a thread once, some ms later, for
--- each that it has closed, and epoll_wait shows that.
function drivers.each_backend(scenarios)
  if refusal then busted.pending("on io_uring: refused here, " .. refusal) end
  for _, backend in ipairs(drivers.backends) do
    for _, name in ipairs { "poll", "glib" } do
      busted.describe(("through %s on %s"):format(name, backend), function()
        busted.after_each(drivers.cleanup)
        scenarios(drivers.new(name, backend))
      end)
    end
  end
end

--- Waits until no interrupt of that kind is left to come.
function drivers.calm(ctx)
  repeat
    local start = aio.now()
    ctx:poll(0.03)
  until aio.now() - start >= 0.03
end

--- Where datagrams to localhost go: IPv4 or IPv6, as this machine has it.
drivers.localhost = assert(aio.getaddrinfo("localhost", nil, { socktype = "dgram" }))[1].addr
aio.default():close()

--- This process, for what others write into /proc.
function drivers.pid() return assert(tonumber((io.open "/proc/self/stat":read "a"):match "%d+")) end

return drivers
