-- SPDX-License-Identifier: MIT
-- Runs the benchmark programs turn by turn and prints one table: lua5.4 bench/run.lua [row-pattern] [--rounds N]
--
-- Way:  rows.lua -> command per column -> rounds of A B C D -> medians and ratios -> table
-- Keep: a ratio is the median of the ratios within each round, so that a machine that drifts does not move it.
--       A column whose program fails shows "missing"; the run goes on and exits 1.

local here = arg[0]:match("^(.*)/") or "."
local columns = {"aioloop", "limit", "luv", "cqueues"}
local peers = {"limit", "luv", "cqueues"}

local function options(args)
  local pattern, rounds, i = "", 5, 1
  while i <= #args do
    if args[i] == "--rounds" then
      rounds = math.tointeger(tonumber(args[i + 1]))
      i = i + 1
    else
      pattern = args[i]
    end
    i = i + 1
  end
  if not rounds or rounds < 1 then
    io.stderr:write("usage: lua5.4 bench/run.lua [row-pattern] [--rounds N]\n")
    os.exit(2)
  end
  return pattern, rounds
end

---- Commands

local function quote(s)
  return "'" .. s:gsub("'", "'\\''") .. "'"
end

local function environment()
  local path = os.getenv("LUA_PATH") or ("%s/../lua/?.lua;%s/../lua/?/init.lua;;"):format(here, here)
  local cpath = os.getenv("LUA_CPATH") or ("%s/../build/?.so;;"):format(here)
  return ("LUA_PATH=%s LUA_CPATH=%s BENCH_DATA=%s"):format(
    quote(path:gsub(";;$", "") .. ";" .. here .. "/?.lua;;"), quote(here .. "/build/?.so;" .. cpath),
    quote(here .. "/build/data"))
end

local function exists(path)
  local file <close> = io.open(path)
  return file ~= nil
end

-- The first CPU that we may use at all.
local function one_cpu()
  for line in io.lines("/proc/self/status") do
    local first = line:match("^Cpus_allowed_list:%s*(%d+)")
    if first then
      return "taskset -c " .. first .. " "
    end
  end
end

-- The command of a column in a row, or nil where that column has no equivalent. What is not in Lua is in C.
local function command(row, column)
  if row.name == "require" then
    return column ~= "limit" and quote(here .. "/build/startup") .. " " .. column or nil
  end
  local name, arguments = (row[column] or row.name):match("^(%S+)(.*)")
  local program, line = ("%s/%s/%s"):format(here, column, name), nil
  if exists(program .. ".lua") then
    line = "lua5.4 " .. quote(program .. ".lua") .. arguments
  elseif exists(program .. ".c") then
    line = quote(("%s/build/%s_%s"):format(here, column, name)) .. arguments
  end
  return line and (row.one_cpu and one_cpu() or "") .. line
end

---- Running

-- The `name value` lines a program prints; or nil and whatever else it had to say.
local function run(line, env)
  -- The ring of pairs needs 2,000 descriptors.
  local pipe = assert(io.popen(("ulimit -n 4096 2>/dev/null; %s %s 2>&1"):format(env, line)))
  local values, said = {}, {}
  for text in pipe:lines() do
    local name, value = text:match("^([%w_]+) (%-?[%d.]+)$")
    if name then
      values[name] = tonumber(value)
    else
      said[#said + 1] = text
    end
  end
  if pipe:close() then
    return values
  end
  return nil, said[1] or "failed without a word"
end

local function run_round(row, results, commands, env, failures)
  local round = {}
  for _, column in ipairs(columns) do
    if commands[column] and not failures[column] then
      round[column], failures[column] = run(commands[column], env)
    end
  end
  results[#results + 1] = round
  io.stderr:write(("%s %d\n"):format(row.name, #results))
end

local function run_row(row, rounds, env)
  local commands, results, failures = {}, {}, {}
  for _, column in ipairs(columns) do
    commands[column] = command(row, column)
  end
  for _ = 1, rounds do
    run_round(row, results, commands, env, failures)
  end
  return results, failures
end

---- Figures

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

local function value_in(round, column, name)
  return round[column] and round[column][name]
end

local function figures(metric, results)
  local name, value, ratio = metric[1], {}, {}
  for _, column in ipairs(columns) do
    value[column] = over_rounds(results, function(round)
      return value_in(round, column, name)
    end)
  end
  for _, peer in ipairs(peers) do
    ratio[peer] = over_rounds(results, function(round)
      local theirs, ours = value_in(round, peer, name), value_in(round, "aioloop", name)
      return theirs and ours and theirs / ours
    end)
  end
  return value, ratio
end

local function goal_text(metric)
  local parts = {}
  if metric.max then
    parts[1] = ("<=%d"):format(metric.max)
  end
  for _, peer in ipairs(peers) do
    if metric[peer] then
      parts[#parts + 1] = ("%s>=%g"):format(peer, metric[peer])
    end
  end
  return table.concat(parts, " ")
end

-- "yes", or the names of the goals that were missed, or "?" when a figure is wanting.
local function verdict(metric, value, ratio)
  local missed = {}
  if not value.aioloop then
    return "?"
  end
  if metric.max and value.aioloop > metric.max then
    missed[1] = "max"
  end
  for _, peer in ipairs(peers) do
    if metric[peer] and not ratio[peer] then
      return "?"
    elseif metric[peer] and ratio[peer] < metric[peer] then
      missed[#missed + 1] = peer
    end
  end
  return #missed == 0 and "yes" or "no: " .. table.concat(missed, " ")
end

---- The table

local layout = "%-29s %9s %9s %9s %9s  %7s %7s %7s  %-34s %s"

local function print_metric(metric, results, failures)
  local value, ratio = figures(metric, results)
  local cells = {metric[2]}
  for _, column in ipairs(columns) do
    local number = value[column]
    cells[#cells + 1] = failures[column] and "missing" or number and ("%.0f"):format(number) or "-"
  end
  for _, peer in ipairs(peers) do
    cells[#cells + 1] = ratio[peer] and ("%.2f"):format(ratio[peer]) or "-"
  end
  cells[#cells + 1] = goal_text(metric)
  cells[#cells + 1] = verdict(metric, value, ratio)
  print(layout:format(table.unpack(cells)))
end

-- A program that runs but leaves out a figure its row promises has failed too. Peers may lack one.
local function require_figures(row, results, failures)
  for _, metric in ipairs(row) do
    if not failures.aioloop and not value_in(results[#results], "aioloop", metric[1]) then
      failures.aioloop = "printed no " .. metric[1]
    end
  end
end

local pattern, rounds = options(arg)
if not os.execute("make -s -C " .. quote(here .. "/limit") .. " >&2") then
  os.exit(1)
end

package.path = here .. "/?.lua;" .. package.path
local env, complaints = environment(), {}
print(layout:format("ns per operation", "aioloop", "limit", "luv", "cqueues",
  "lim/aio", "luv/aio", "cq/aio", "goal", "met?"))
for _, row in ipairs(require "rows") do
  if row.name:find(pattern) then
    local results, failures = run_row(row, rounds, env)
    require_figures(row, results, failures)
    for _, metric in ipairs(row) do
      print_metric(metric, results, failures)
    end
    for column, why in pairs(failures) do
      complaints[#complaints + 1] = ("missing: %s of %s: %s"):format(column, row.name, why)
    end
  end
end
table.sort(complaints)
for _, complaint in ipairs(complaints) do
  print(complaint)
end
os.exit(#complaints == 0)
