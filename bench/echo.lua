-- SPDX-License-Identifier: MIT
-- What the echo servers share: the loads, the client, and how the server's CPU time becomes a figure.

local measure = require "measure"

local echo = {}

-- A load is its name, connections, bytes of a message, messages.
echo.loads = {{"echo_50", 50, 64, 100000}, {"echo_500", 500, 64, 100000}, {"echo_16k", 50, 16384, 50000}}

local client = assert(package.searchpath("limit_pair", package.cpath)):match("^(.*)/") .. "/limit_echo"

function echo.start(port, load)
  return assert(io.popen(("%s client %d %d %d %d && echo fine"):format(client, port, load[2], load[3], load[4])))
end

-- Calls serve(load) for each, or the first `count`; it returns the client when all connections have been closed again.
function echo.measure(serve, suffix, count)
  for i = 1, count or #echo.loads do
    local load = echo.loads[i]
    collectgarbage()
    local before = os.clock()
    local pipe = serve(load)
    local span = (os.clock() - before) * 1e9
    measure.expect(pipe:read("a"), "fine\n", "client")
    pipe:close()
    measure.report(load[1] .. (suffix or ""), span, load[4])
  end
end

return echo
