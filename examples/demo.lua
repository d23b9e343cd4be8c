-- SPDX-License-Identifier: MIT
--- One loop, many kinds of work: an HTTP server on streams, a repeating timer, a BH and an idle BH, while a real curl
-- sends it 2,000 requests over 8 connections. Every answer is compared byte for byte.
--
--   make demo                 the loop waits by itself
--   make demo DRIVER=glib     the same program, driven by GLib's default main context
--
-- Way  main: httpd.new -> start_curl -> (requests are served) -> curl's GET /done/<exit code> wakes main -> site:stop
--      -> verify
local here = arg[0]:match "^(.*)/" or "."
package.path = here .. "/?.lua;" .. package.path
local aio = require "aioloop"
local httpd = require "httpd"

local REQUESTS = 2000
local CONNECTIONS = 8
local PATIENCE = 60 -- seconds until the watchdog gives up

local ctx = aio.default()
ctx:set_polling { max_ns = 50000 }

--- The answer to request n. Each is unlike all others, and some are larger than a socket buffer.
local function body_of(n)
  local lines = n % 250 == 0 and 200000 or n % 50 + 1
  return ("answer %d\n"):format(n):rep(lines)
end

--- Starts curl in the background; when it has ended, its exit code is reported as one more request.
local function start_curl(port, folder)
  local site = ("http://127.0.0.1:%s/"):format(port)
  local config <close> = assert(io.open(folder .. "/config", "w"))
  for n = 1, REQUESTS do
    config:write(('url = "%s%d"\noutput = "%s/%d"\n'):format(site, n, folder, n))
  end
  config:close()
  local many = ("curl -q -sS --no-progress-meter --fail --noproxy '*' --parallel --parallel-immediate"
    .. " --parallel-max %d --config %s/config"):format(CONNECTIONS, folder)
  local last = ("curl -q -sS --noproxy '*' %sdone/$?"):format(site)
  assert(os.execute(("{ %s; %s; } >%s/curl.log 2>&1 &"):format(many, last, folder)))
end

--- Returns how many answers arrived as they were meant.
local function verify(folder)
  local right = 0
  for n = 1, REQUESTS do
    local file <close> = io.open(("%s/%d"):format(folder, n), "rb")
    if file and file:read "a" == body_of(n) then right = right + 1 end
  end
  return right
end

local function main(folder)
  local count = { requests = 0, batches = 0, idle = 0, ticks = 0, busiest = 0, learned = 0 }
  local started = aio.now()
  local me = aio.self()

  -- A BH gathers: however many answers one turn gives, it runs once.
  local batch = ctx:bh(function() count.batches = count.batches + 1 end)

  -- An idle BH fills the gaps, here with a step of the collector each time.
  local idle
  idle = ctx:bh(function()
    count.idle = count.idle + 1
    collectgarbage "step"
    idle:schedule_idle()
  end)
  idle:schedule_idle()

  local before = 0
  local ticker = ctx:timer(function()
    count.ticks = count.ticks + 1
    count.busiest = math.max(count.busiest, count.requests - before)
    count.learned = math.max(count.learned, ctx:stats().poll_ns)
    before = count.requests
  end)
  ticker:arm(0.05, 0.05)

  local server = assert(aio.listen("127.0.0.1", 0, { backlog = 4 * CONNECTIONS }))
  local site = httpd.new(server, function(request)
    local n = tonumber(request.path:sub(2))
    if n then
      count.requests = count.requests + 1
      batch:schedule()
      return 200, body_of(n)
    end
    local code = request.path:match "^/done/(%d+)$"
    if code then
      me:wake(code)
      return 200, "thank you\n"
    end
  end, { requests = REQUESTS })
  local serving = aio.spawn(site.serve, site):name "site"

  local _, port = server:getsockname()
  start_curl(port, folder)
  local code = aio.suspend()
  site:stop(5) -- the last answer is on its way
  aio.await(serving)

  count.elapsed = aio.now() - started
  count.connections = site.stats.connections
  count.bytes = site.stats.bytes
  count.curl = code
  ticker:close()
  idle:close()
  return count
end

--- Runs fn in a task until it has ended, and returns its results.
local function by_itself(fn, ...)
  return ctx:run(fn, ...)
end

local function by_glib(fn, ...)
  local glib = require "aioloop.glib"
  ctx:attach()
  local task = ctx:spawn(fn, ...)
  task:keep()
  local unfinished = { scheduled = true, running = true, waiting = true }
  while unfinished[task:status()] do glib.iterate(true) end
  local ok, result = task:join()
  ctx:detach()
  if not ok then error(result, 0) end
  return result
end

local function report(driver, count, right)
  local stats = ctx:stats()
  local function row(name, value, note) print(("%-12s %9s  %s"):format(name, value, note or "")) end
  row("driver", driver, stats.backend)
  row("requests", count.requests, ("%d of %d answers right"):format(right, REQUESTS))
  row("connections", count.connections, "kept alive by curl, and one to say that it is done")
  row("MB sent", ("%.1f"):format(count.bytes / 1e6), "to clients that read when they please")
  row("fd events", stats.fds, "ends of waits for a connection, a request, or room to write")
  row("timer ticks", count.ticks, ("every 50 ms; the busiest saw %d requests"):format(count.busiest))
  row("BH runs", count.batches, "one for all the answers of a turn")
  row("idle runs", count.idle)
  row("polls", stats.polls, "turns of the loop")
  row("wake-ups", stats.wakeups, "waits that a notification ended")
  row("polling", ("%d us"):format(count.learned // 1000), "the longest busy wait that it learned, of 50 us")
  row("elapsed", ("%.2f s"):format(count.elapsed))
end

local driver = os.getenv "DRIVER"
local drive = driver == "glib" and by_glib or by_itself
local pipe <close> = assert(io.popen "mktemp -d")
local folder = assert(pipe:read "l", "no temporary folder")

local function finish(code)
  if code ~= 0 then os.execute(("cat %s/curl.log >&2"):format(folder)) end
  os.execute("rm -rf " .. folder)
  os.exit(code, true)
end

local watchdog = ctx:timer(function()
  io.stderr:write(("not finished after %d s\n"):format(PATIENCE))
  finish(1)
end)
watchdog:arm(PATIENCE)
watchdog:unref()

local ok, result = xpcall(drive, debug.traceback, main, folder)
if not ok then
  io.stderr:write(tostring(result), "\n")
  finish(1)
end
local right = verify(folder)
report(drive == by_glib and "GLib" or "itself", result, right)
finish(result.curl == "0" and result.requests == REQUESTS and right == REQUESTS and 0 or 1)
