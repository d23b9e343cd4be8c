-- SPDX-License-Identifier: MIT
-- TCP echo with cqueues' coroutines. `echo.lua latency`: one connection.

local echo = require "echo"
local cqueues = require "cqueues"
local socket = require "cqueues.socket"

local function serve(load)
  local loop = cqueues.new()
  local server = assert(socket.listen {host = "127.0.0.1", port = 0, nodelay = true})
  assert(server:listen())
  local _, _, port = server:localname()
  local client = echo.start(port, load)
  loop:wrap(function()
    for _ = 1, load[2] do
      local stream = assert(server:accept {nodelay = true})
      stream:setmode("b", "bn")
      loop:wrap(function()
        while true do
          local some = stream:read(-16384)
          if not some then break end
          stream:write(some)
        end
        stream:close()
      end)
    end
  end)
  assert(loop:loop())
  server:close()
  return client
end

if arg[1] == "latency" then
  echo.measure_latency(serve)
else
  echo.measure(serve)
end
