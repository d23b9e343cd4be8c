-- SPDX-License-Identifier: MIT
-- What the HTTP servers share: the answer, wrk, and how the server's CPU time becomes a figure.

local measure = require "measure"

local http = {connections = 64}

http.answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"

-- A load is seconds, and more of wrk's arguments.
function http.start(port, load)
  local wrk = assert(os.getenv "BENCH_WRK", "BENCH_WRK: not set")
  return assert(io.popen(("%s -d%ds http://127.0.0.1:%d/ %s"):format(wrk, load[1], port, load[2])))
end

-- Calls serve(load), which returns wrk and the number of requests when all connections have been closed again: wrk
-- opens one to see whether there is a server, closes it, and then opens those that it uses. First all answers are
-- looked at.
function http.measure(serve)
  for _, load in ipairs {{1, "-- check"}, {2, ""}} do
    collectgarbage()
    local before = os.clock()
    local pipe, served = serve(load)
    local span = (os.clock() - before) * 1e9
    local said = pipe:read("a")
    local counted = tonumber(said:match("\nfine (%d+)\n"))
    pipe:close()
    if not counted or served < counted or served > counted + http.connections then
      error(("%d requests served, wrk says: %s"):format(served, said:match("([^\n]*)\n*$")))
    elseif load[2] == "" then
      measure.report("http", span, served)
    end
  end
end

return http
