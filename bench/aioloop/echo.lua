-- SPDX-License-Identifier: MIT
-- TCP echo with a coroutine for each connection: what was read as a string, and into a buffer of the connection's own.

local echo = require "echo"
local aio = require "aioloop"

local function strings(stream)
  while true do
    local some = stream:readsome()
    if not some then break end
    stream:write(some)
  end
  stream:close()
end

local function buffers(stream)
  local buffer = aio.buffer(16384 + 1) -- a buffer that is not full shows that there is no more
  while stream:readinto(buffer) do stream:write(buffer) end
  stream:close()
end

local function serve_with(fn)
  return function(load)
    local client
    aio.run(function()
      local server <close> = assert(aio.listen("127.0.0.1", 0, {backlog = 1024}))
      client = echo.start(select(2, server:getsockname()), load)
      local group <close> = aio.group()
      for _ = 1, load[2] do group:spawn(fn, assert(server:accept())) end
    end)
    return client
  end
end

echo.measure(serve_with(strings))
echo.measure(serve_with(buffers), "_buffer")
