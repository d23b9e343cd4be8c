-- SPDX-License-Identifier: MIT
-- What becomes of the rounds of a row: medians, ratios, and whether the goals are met.

local figures = {peers = {"limit", "luv", "cqueues", "node"}}

local function median(list)
  table.sort(list)
  local middle = #list // 2
  if #list % 2 == 1 then
    return list[middle + 1]
  end
  return #list > 0 and (list[middle] + list[middle + 1]) / 2 or nil
end

-- The median over the rounds of what `pick` makes of a round; rounds where it makes nothing do not count.
local function over_rounds(results, pick)
  local list = {}
  for _, round in ipairs(results) do
    list[#list + 1] = pick(round)
  end
  return median(list)
end

-- What a column has printed for a metric, maybe under a name of its own.
local function value_in(round, column, metric)
  return round[column] and round[column][metric.from and metric.from[column] or metric[1]]
end

-- The medians of all columns, and the ratios to aioloop's.
function figures.of(metric, results)
  local value, ratio = {}, {}
  value.aioloop = over_rounds(results, function(round)
    return value_in(round, "aioloop", metric)
  end)
  for _, peer in ipairs(figures.peers) do
    value[peer] = over_rounds(results, function(round)
      return value_in(round, peer, metric)
    end)
    ratio[peer] = over_rounds(results, function(round)
      local theirs, ours = value_in(round, peer, metric), value_in(round, "aioloop", metric)
      return theirs and ours and theirs / ours
    end)
  end
  return value, ratio
end

-- Each goal of a metric in turn: its name, "met", "missed" or "unknown", and what was seen beside what was wanted.
function figures.goals(metric, value, ratio)
  local list = {}
  local function add(name, seen, met, wanted)
    list[#list + 1] = {name, not seen and "unknown" or met and "met" or "missed", seen, wanted}
  end
  if metric.max then
    add("max", value.aioloop, value.aioloop and value.aioloop <= metric.max, metric.max)
  end
  for _, peer in ipairs(figures.peers) do
    if metric[peer] then
      add(peer, ratio[peer], ratio[peer] and ratio[peer] >= metric[peer], metric[peer])
    end
  end
  return list
end

-- A program that runs but leaves out a figure its row promises has failed too. Peers may lack one.
function figures.lacking(row, round)
  for _, metric in ipairs(row) do
    if not value_in(round, "aioloop", metric) then
      return metric[1]
    end
  end
end

return figures
