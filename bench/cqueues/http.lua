-- SPDX-License-Identifier: MIT
-- HTTP with cqueues' coroutines, and a parser that only looks for the end of the head.

local http = require "http"
local cqueues = require "cqueues"
local socket = require "cqueues.socket"
local answer <const> = http.answer

local function serve(load)
  local loop, served = cqueues.new(), 0
  local server = assert(socket.listen {host = "127.0.0.1", port = 0, nodelay = true})
  assert(server:listen())
  local _, _, port = server:localname()
  local client = http.start(port, load)
  local function attend(stream)
    local rest = ""
    while true do
      local from, to = rest:find("\r\n\r\n", 1, true)
      if from then
        local request = rest:sub(1, from - 1)
        if request:sub(1, 4) ~= "GET " then break end
        rest = rest:sub(to + 1)
        served = served + 1
        stream:write(answer)
      else
        local some = stream:read(-8192)
        if not some then break end
        rest = rest .. some
      end
    end
    stream:close()
  end
  loop:wrap(function()
    for _ = 0, http.connections do
      local stream = assert(server:accept {nodelay = true})
      stream:setmode("b", "bn")
      stream:onerror(function(_, _, code) return code end) -- wrk ends by resets
      loop:wrap(attend, stream)
    end
  end)
  assert(loop:loop())
  server:close()
  return client, served
end

http.measure(serve)
