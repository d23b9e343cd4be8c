-- SPDX-License-Identifier: MIT
-- What the echo servers share: the loads, the clients, and how the server's CPU time becomes a figure.

local measure = require "measure"

local echo = {}

-- A load is its name, connections, bytes of a message, messages.
echo.loads = {{"echo_50", 50, 64, 100000}, {"echo_500", 500, 64, 100000}, {"echo_16k", 50, 16384, 50000}}

local rounds <const> = 20000

-- A client is told what to do when a server starts it: start(port, load) -> its pipe.
local function start(arguments)
  local program = assert(os.getenv "BENCH_CLIENT", "BENCH_CLIENT: not set")
  return assert(io.popen(program .. " " .. arguments))
end

function echo.start(port, load)
  if load[1] == "latency" then
    return start(("latency %d %d"):format(port, rounds))
  end
  return start(("client %d %d %d %d"):format(port, load[2], load[3], load[4]))
end

-- Calls serve(load) for each; it returns the client when all connections have been closed again.
function echo.measure(serve)
  for _, load in ipairs(echo.loads) do
    collectgarbage()
    local before = os.clock()
    local pipe = serve(load)
    local span = (os.clock() - before) * 1e9
    measure.expect(pipe:read("a"), "fine\n", "client")
    pipe:close()
    measure.report(load[1], span, load[4])
  end
end

-- The median time of a message to come back, as the client has seen it on its one connection.
function echo.measure_latency(serve)
  local pipe = serve {"latency", 1}
  local said = pipe:read("a")
  pipe:close()
  measure.report("latency", assert(tonumber(said:match("^fine (%d+)\n$")), "client: " .. said), 1)
end

return echo
