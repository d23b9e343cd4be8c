-- SPDX-License-Identifier: MIT
-- TCP echo with luv's callbacks; try_write is its fastest way out. `echo.lua latency`: one connection.

local echo = require "echo"
local uv = require "luv"

local function serve(load)
  local server, open, seen = uv.new_tcp(), 0, 0
  assert(server:bind("127.0.0.1", 0))
  assert(server:listen(1024, function()
    local stream = uv.new_tcp()
    assert(server:accept(stream))
    stream:nodelay(true)
    open, seen = open + 1, seen + 1
    stream:read_start(function(_, data)
      if not data then
        stream:close()
        open = open - 1
        if open == 0 and seen == load[2] then server:close() end
        return
      end
      local n = stream:try_write(data) or 0
      if n < #data then stream:write(data:sub(n + 1)) end
    end)
  end))
  local client = echo.start(server:getsockname().port, load)
  uv.run()
  return client
end

if arg[1] == "latency" then
  echo.measure_latency(serve)
else
  echo.measure(serve)
end
