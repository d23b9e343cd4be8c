-- SPDX-License-Identifier: MIT
-- Writes the file that the file rows read, 64 MiB: every 8 bytes of a page of 4 KiB are that page's offset.

local file <close> = assert(io.open(arg[1], "wb"))
for offset = 0, (64 << 20) - 1, 4096 do
  assert(file:write(string.pack("j", offset):rep(512)))
end
