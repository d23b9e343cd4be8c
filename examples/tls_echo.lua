-- SPDX-License-Identifier: MIT
--- An echo server over TLS: what a client sends, it is sent back.
--
--   lua5.4 examples/tls_echo.lua CERTIFICATE KEY [port]   and then   openssl s_client -quiet -connect localhost:PORT
--
-- Way     accept -> a task for each client: the handshake under a limit, then readinto -> write until its end
-- Owner   the context of LuaSec is made once and serves all; a client's stream is its task's
-- Yields  in accept, starttls, readinto, write
local aio = require "aioloop"

local HANDSHAKE <const>, IDLE <const> = 5, 60 -- seconds
local CLIENTS <const> = 1000 -- at a time

local function complain(...) io.stderr:write(table.concat({ ... }, ": "), "\n") end

local function echo(stream, context)
  stream:settimeout(HANDSHAKE)
  local ok, message = stream:starttls(context)
  if not ok then return complain("handshake", message) end
  stream:settimeout(IDLE)
  local buffer = aio.buffer(16384)
  while true do
    local n, why = stream:readinto(buffer)
    if not n then return why ~= "eof" and complain("client", why) end
    ok, why = stream:write(buffer)
    if not ok then return complain("client", why) end
  end
end

local function main(certificate, key, port)
  local context, message = require "ssl".newcontext {
    mode = "server", protocol = "any", options = { "no_sslv3", "no_tlsv1", "no_tlsv1_1" },
    certificate = certificate, key = key,
  }
  if not context then return complain(certificate, message) end
  local server <close> = assert(aio.listen("*", port or 0))
  print(("It listens at port %d"):format((select(2, server:getsockname()))))
  io.stdout:flush()

  local free = aio.semaphore(CLIENTS)
  for stream in server:clients() do
    free:acquire()
    aio.spawn(function()
      local _ <close> = stream
      local done <close> = setmetatable({}, { __close = function() free:release() end }) -- luacheck: ignore
      echo(stream, context)
    end)
  end
end

if not arg[2] then
  complain("usage", "lua5.4 examples/tls_echo.lua CERTIFICATE KEY [port]")
  os.exit(2)
end
aio.run(main, arg[1], arg[2], tonumber(arg[3]))
