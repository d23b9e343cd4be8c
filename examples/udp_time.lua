-- SPDX-License-Identifier: MIT
--- A time server: whoever sends it a datagram, be it empty, is sent date and time as a line of text (RFC 867, daytime).
--
--   lua5.4 examples/udp_time.lua [port]     and then     echo | socat -t 1 - UDP:localhost:PORT
--
-- Way     bind -> recvfrom -> sendto, one after the other: none of it takes long
-- Yields  in recvfrom
local aio = require "aioloop"

aio.run(function()
  local sock <close> = assert(aio.udp():bind("*", arg[1] or 0))
  local _, port = sock:getsockname()
  print(("It is %s at port %d"):format(os.date "!%T", port))
  io.stdout:flush()

  while true do
    local _, host, from = assert(sock:recvfrom(0)) -- what they send is of no interest
    sock:sendto(os.date "!%Y-%m-%d %H:%M:%S UTC\n", host, from)
  end
end)
