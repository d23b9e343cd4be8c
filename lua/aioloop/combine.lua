--- What is made of tasks and groups: gather, race, map, and callbacks turned into waits.
-- SPDX-License-Identifier: MIT
-- Yields: all of these wait; cancelled or failed, they end with every task that they made.
-- @module aioloop

local core = require "aioloop.core"

local combine = {}

--- Runs functions side by side.
-- @tparam function ... without arguments
-- @return the first result of each, in order
-- @raise the first error; the others are cancelled
function combine.gather(...)
  local results <const>, n <const>, returned = {}, select("#", ...), 0
  local function runner(i, fn)
    results[i] = (fn())
    returned = returned + 1
  end
  for i = 1, n do
    local fn = select(i, ...)
    if type(fn) ~= "function" then
      error(("bad argument #%d to 'gather' (function expected, got %s)"):format(i, type(fn)), 2)
    end
  end
  local group <close> = core.group()
  for i = 1, n do group:spawn(runner, i, (select(i, ...))) end
  group:wait()
  if returned < n then error("gather: a function was cancelled by itself", 2) end
  return table.unpack(results, 1, n)
end

--- Runs functions side by side until the first has ended; the others are cancelled, and end before this returns.
-- @tparam function ... without arguments
-- @return the number of the first, and its results
-- @raise the first error
function combine.race(...)
  local n <const> = select("#", ...)
  if n == 0 then error("bad argument #1 to 'race' (function expected, got no value)", 2) end
  for i = 1, n do
    local fn = select(i, ...)
    if type(fn) ~= "function" then
      error(("bad argument #%d to 'race' (function expected, got %s)"):format(i, type(fn)), 2)
    end
  end
  local over <const> = core.event()
  local finish <const> = setmetatable({}, { __close = function() over:set() end })
  local winner
  local function runner(i, fn)
    local _ <close> = finish -- also when it fails
    local results = table.pack(fn())
    if not winner then
      winner = results
      winner.index = i
    end
  end
  do
    local group <close> = core.group()
    for i = 1, n do group:spawn(runner, i, (select(i, ...))) end
    over:wait()
    group:cancel()
    core.shield(group.wait, group) -- who has a result keeps it
  end
  if not winner then error("race: the first function to end was cancelled by itself", 2) end
  return winner.index, table.unpack(winner, 1, winner.n)
end

--- Calls a function for each element of a list, in so many tasks at a time.
-- @tparam table list
-- @tparam function fn called with the element and its index
-- @tparam[opt=#list] integer limit how many at a time, at least 1
-- @treturn table the first result of each call, in the order of the list; `n` is their number
-- @raise the first error; the other calls are cancelled
function combine.map(list, fn, limit)
  if type(list) ~= "table" then error("bad argument #1 to 'map' (table expected, got " .. type(list) .. ")", 2) end
  if type(fn) ~= "function" then error("bad argument #2 to 'map' (function expected, got " .. type(fn) .. ")", 2) end
  local n = #list
  if limit ~= nil and (math.type(limit) ~= "integer" or limit < 1) then
    error("bad argument #3 to 'map' (the limit is an integer of at least 1)", 2)
  end
  local results, next_index, returned = { n = n }, 0, 0
  local function worker()
    while next_index < n do
      next_index = next_index + 1
      local i = next_index
      results[i] = (fn(list[i], i))
      returned = returned + 1
    end
  end
  local group <close> = core.group()
  for _ = 1, math.min(limit or n, n) do group:spawn(worker) end
  group:wait()
  if returned < n then error("map: a call was cancelled by itself", 2) end
  return results
end

--- Turns a function that calls back into one that waits.
-- @tparam function fn called with the arguments and a callback after them
-- @param ... its arguments
-- @return what the callback was given the first time
function combine.from_callback(fn, ...)
  if type(fn) ~= "function" then
    error("bad argument #1 to 'from_callback' (function expected, got " .. type(fn) .. ")", 2)
  end
  local called <const> = core.event()
  local results
  local args = table.pack(...)
  args[args.n + 1] = function(...)
    if results then return end
    results = table.pack(...)
    called:set()
  end
  fn(table.unpack(args, 1, args.n + 1))
  local ok, why = called:wait()
  if not ok then return nil, why end -- the context was closed
  return table.unpack(results, 1, results.n)
end

return combine
