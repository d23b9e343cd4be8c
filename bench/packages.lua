-- SPDX-License-Identifier: MIT
-- The Debian packages that the benchmarks need, each with a command that succeeds when it is there.

local packages = {}

-- Nothing can be measured without these.
local needed = {
  {"gcc", "command -v cc"},
  {"make", "command -v make"},
  {"pkg-config", "command -v pkg-config"},
  {"liblua5.4-dev", "pkg-config --exists lua5.4"},
  {"liburing-dev", "test -e /usr/include/liburing.h"},
}

-- A column or a row is missing without these.
local wanted = {
  {"lua-luv", [[lua5.4 -e 'require "luv"']]},
  {"lua-cqueues", [[lua5.4 -e 'require "cqueues"']]},
  {"nodejs", "command -v node"},
  {"wrk", "command -v wrk"},
}

packages.of_column = {luv = "lua-luv", cqueues = "lua-cqueues", node = "nodejs"}

local function missing(list)
  local names = {}
  for _, entry in ipairs(list) do
    if not os.execute(entry[2] .. " >/dev/null 2>&1") then
      names[#names + 1] = entry[1]
      names[entry[1]] = true
    end
  end
  return names
end

-- Names what is not there, and returns a set of it, or nil when that is too much.
function packages.check()
  local vital, others = missing(needed), missing(wanted)
  local names = table.move(others, 1, #others, #vital + 1, {table.unpack(vital)})
  if #names > 0 then
    io.stderr:write("missing packages: " .. table.concat(names, " ") .. "\n")
  end
  return #vital == 0 and others or nil
end

return packages
