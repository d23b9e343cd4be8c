-- SPDX-License-Identifier: MIT
-- Runs the benchmark programs turn by turn and prints one table: lua5.4 bench/run.lua [row-pattern] [--rounds N]
--
-- Way:  rows.lua -> command per column -> rounds of A B C D -> figures.lua -> table, and which goals are missed
-- Keep: a ratio is the median of the ratios within each round, so that a machine that drifts does not move it.
--       A column whose program fails, or hangs, shows "missing"; the run goes on and exits 1.

local here = arg[0]:match("^(.*)/") or "."
package.path = here .. "/?.lua;" .. package.path
local figures = require "figures"
local packages = require "packages"
local columns = {"aioloop", "limit", "luv", "cqueues", "node"}

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

---- What programs find around them

local function quote(s)
  return "'" .. s:gsub("'", "'\\''") .. "'"
end

-- The first CPU that we may use at all, and the next; the same where there is but one.
local function two_cpus()
  local list = {}
  for line in io.lines("/proc/self/status") do
    for first, last in (line:match("^Cpus_allowed_list:%s*(.*)") or ""):gmatch("(%d+)%-?(%d*)") do
      for cpu = tonumber(first), tonumber(last) or tonumber(first) do
        list[#list + 1] = cpu
      end
    end
  end
  return list[1], list[2] or list[1]
end

local cpu, other_cpu = two_cpus()

-- Clients run on the other CPU.
local function environment()
  local path = os.getenv("LUA_PATH") or ("%s/../lua/?.lua;%s/../lua/?/init.lua;;"):format(here, here)
  local cpath = os.getenv("LUA_CPATH") or ("%s/../build/?.so;;"):format(here)
  local variables, on_other = {}, ("taskset -c %d "):format(other_cpu)
  for name, value in pairs {
    LUA_PATH = path:gsub(";;$", "") .. ";" .. here .. "/?.lua;;",
    LUA_CPATH = here .. "/build/?.so;" .. cpath,
    BENCH_DATA = here .. "/build/data",
    BENCH_CPU = tostring(cpu),
    BENCH_OTHER_CPU = tostring(other_cpu),
    BENCH_CLIENT = on_other .. quote(here .. "/build/limit_echo"),
    BENCH_WRK = on_other .. "wrk -t1 -c64 -s " .. quote(here .. "/wrk.lua"),
  } do
    variables[#variables + 1] = name .. "=" .. quote(value)
  end
  return table.concat(variables, " ")
end

---- Commands

local function exists(path)
  local file <close> = io.open(path)
  return file ~= nil
end

-- The command of a column in a row, or nil where that column has no equivalent. What is not in a script is in C.
local function command(row, column)
  if row.name == "require" then
    return (column == "aioloop" or column == "luv" or column == "cqueues") and
           quote(here .. "/build/startup") .. " " .. column or nil
  end
  local name, arguments = (row[column] or row.name):match("^(%S+)(.*)")
  local program, line = ("%s/%s/%s"):format(here, column, name), nil
  if exists(program .. ".lua") then
    line = "lua5.4 " .. quote(program .. ".lua") .. arguments
  elseif exists(program .. ".js") then
    line = "node " .. quote(program .. ".js") .. arguments
  elseif exists(program .. ".c") then
    line = quote(("%s/build/%s_%s"):format(here, column, name)) .. arguments
  end
  return line and (row.one_cpu and ("taskset -c %d "):format(cpu) or "") .. line
end

---- Running

-- The `name value` lines a program prints; or nil and whatever else it had to say.
local function run(line, env)
  -- The rings of pairs and the connections of mem_conn need many descriptors.
  local files = "ulimit -n 20000 2>/dev/null || ulimit -n $(ulimit -Hn)"
  local pipe = assert(io.popen(("%s; %s timeout -k 5 300 %s 2>&1"):format(files, env, line)))
  local values, said = {}, {}
  for text in pipe:lines() do
    local name, value = text:match("^([%w_]+) (%-?[%d.]+)$")
    if name then
      values[name] = tonumber(value)
    else
      said[#said + 1] = text
    end
  end
  local fine, _, code = pipe:close()
  if fine then
    return values
  end
  return nil, code == 124 and "took more than 300 s" or said[1] or "failed without a word"
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

local function run_row(row, rounds, env, missing)
  local commands, results, failures = {}, {}, {}
  for _, column in ipairs(columns) do
    commands[column] = command(row, column)
    for _, package in pairs {packages.of_column[column], row.needs} do
      if commands[column] and missing[package] then
        failures[column] = "needs the package " .. package
      end
    end
  end
  for _ = 1, rounds do
    run_round(row, results, commands, env, failures)
  end
  local lacking = figures.lacking(row, results[#results])
  if lacking and not failures.aioloop then
    failures.aioloop = "printed no " .. lacking
  end
  return results, failures
end

---- The table

-- Name, our figure; of each peer the figure and the ratio.
local layout = "%-33s %9s" .. ("  %9s %5s"):rep(#figures.peers) .. "  %s"

local function print_metric(metric, value, ratio, goals, failures)
  local cells, missed = {metric[2]}, {}
  for _, column in ipairs(columns) do
    local number = value[column]
    cells[#cells + 1] = failures[column] and "missing" or number and ("%.0f"):format(number) or "-"
    if column ~= "aioloop" then
      cells[#cells + 1] = ratio[column] and ("%.2f"):format(ratio[column]) or ""
    end
  end
  for _, goal in ipairs(goals) do
    missed[#missed + 1] = goal[2] ~= "met" and (goal[2] == "missed" and "no: " or "?: ") .. goal[1] or nil
  end
  cells[#cells + 1] = #goals == 0 and "" or #missed == 0 and "yes" or table.concat(missed, ", ")
  print((layout:format(table.unpack(cells)):gsub("%s+$", "")))
end

-- How many goals there are of each kind, and every one that is not met.
local function print_summary(seen)
  local count, lines = {met = 0, missed = 0, unknown = 0}, {}
  for _, entry in ipairs(seen) do
    local title, goal = entry[1], entry[2]
    count[goal[2]] = count[goal[2]] + 1
    local form = goal[1] == "max" and "%s (at most %g)" or "%s (at least %g)"
    local figure = goal[3] and (goal[1] == "max" and "%.0f" or "%.2f"):format(goal[3]) or "?"
    lines[#lines + 1] = goal[2] ~= "met" and
                        ("  %-7s  %-33s %-8s "):format(goal[2], title, goal[1]) .. form:format(figure, goal[4]) or nil
  end
  print(("\n%d goals met, %d missed, %d unknown"):format(count.met, count.missed, count.unknown))
  for _, line in ipairs(lines) do
    print(line)
  end
end

---- All of it

local pattern, rounds = options(arg)
local missing = packages.check()
if not missing or not os.execute("make -s -C " .. quote(here .. "/limit") .. " >&2") then
  os.exit(1)
end

local env, complaints, seen = environment(), {}, {}
local heads = {"ns per operation; theirs / ours", "aioloop"}
for _, peer in ipairs(figures.peers) do
  heads[#heads + 1] = peer
  heads[#heads + 1] = "ratio"
end
print(layout:format(table.unpack(table.move({"goals"}, 1, 1, #heads + 1, heads))))
for _, row in ipairs(require "rows") do
  if row.name:find(pattern) then
    local results, failures = run_row(row, rounds, env, missing)
    for _, metric in ipairs(row) do
      local value, ratio = figures.of(metric, results)
      local goals = figures.goals(metric, value, ratio)
      print_metric(metric, value, ratio, goals, failures)
      for _, goal in ipairs(goals) do
        seen[#seen + 1] = {metric[2], goal}
      end
    end
    for column, why in pairs(failures) do
      complaints[#complaints + 1] = ("missing: %s of %s: %s"):format(column, row.name, why)
    end
  end
end
print_summary(seen)
table.sort(complaints)
for _, complaint in ipairs(complaints) do
  print(complaint)
end
os.exit(#complaints == 0)
