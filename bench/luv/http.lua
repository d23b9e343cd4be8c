-- SPDX-License-Identifier: MIT
-- HTTP with luv's callbacks, and a parser that only looks for the end of the head.

local http = require "http"
local uv = require "luv"
local answer <const> = http.answer

local function serve(load)
  local server, open, seen, served = uv.new_tcp(), 0, 0, 0
  assert(server:bind("127.0.0.1", 0))
  local function attend(stream)
    local rest = ""
    local function close()
      stream:close()
      open = open - 1
      if open == 0 and seen > http.connections then server:close() end
    end
    stream:read_start(function(_, data)
      if not data then return close() end
      rest = rest == "" and data or rest .. data
      while true do
        local from, to = rest:find("\r\n\r\n", 1, true)
        if not from then break end
        local request = rest:sub(1, from - 1)
        if request:sub(1, 4) ~= "GET " then return close() end
        rest = rest:sub(to + 1)
        served = served + 1
        local n = stream:try_write(answer) or 0
        if n < #answer then stream:write(answer:sub(n + 1)) end
      end
    end)
  end
  assert(server:listen(1024, function()
    local stream = uv.new_tcp()
    assert(server:accept(stream))
    stream:nodelay(true)
    open, seen = open + 1, seen + 1
    attend(stream)
  end))
  local client = http.start(server:getsockname().port, load)
  uv.run()
  return client, served
end

http.measure(serve)
