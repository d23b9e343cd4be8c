--- What a loop is doing: the tree of its tasks.
-- SPDX-License-Identifier: MIT
-- Yields: never.
-- @module aioloop

local core = require "aioloop.core"

local report = {}

--- The tasks of the current context that have not ended.
-- @treturn table a list of tasks, in the order in which they were spawned
function report.tasks()
  local list, id = core.current():tasks(), {}
  for _, task in ipairs(list) do id[task] = task:info().id end
  table.sort(list, function(a, b) return id[a] < id[b] end)
  return list
end

-- The first line of a task: its name, what it does, and since when.
local function headline(info)
  local line = ("task %d %s: %s"):format(info.id, info.name and "'" .. info.name .. "'" or "(no name)", info.status)
  if info.waiting then line = ("%s in %s for %.3f s"):format(line, info.waiting, info.since) end
  return line
end

--- Writes the tree of the current context's tasks: who spawned whom, name, state, what each waits on and since when,
-- and its Lua stack.
-- @tparam[opt=io.stderr] file file anything with a method `write`
-- @treturn integer how many tasks there are
function report.dump(file)
  file = file or io.stderr
  local tasks, info, children, known = report.tasks(), {}, {}, {}
  for _, task in ipairs(tasks) do
    info[task] = task:info()
    known[info[task].id] = true
  end
  for _, task in ipairs(tasks) do
    local parent = info[task].parent
    parent = parent and known[parent] and parent or 0 -- the parent may have ended
    children[parent] = children[parent] or {}
    table.insert(children[parent], task)
  end
  local function write(parent, indent)
    for _, task in ipairs(children[parent] or {}) do
      file:write(indent, headline(info[task]), "\n")
      for line in task:traceback():gmatch("[^\n]+") do
        if line:find("^\t") then file:write(indent, "  ", (line:gsub("^\t", "")), "\n") end
      end
      write(info[task].id, indent .. "    ")
    end
  end
  file:write(("%d tasks on %s\n"):format(#tasks, tostring(core.current())))
  write(0, "  ")
  return #tasks
end

--- Writes that tree whenever a signal comes.
-- @tparam integer|string signal as for `context:signal`
-- @tparam[opt=io.stderr] file file anything with a method `write`
-- @treturn signal which does not keep `run` going; or nil, message, errno
function report.dump_on(signal, file)
  local handle, message, errno = core.current():signal(signal, report.dump, file)
  if not handle then return handle, message, errno end
  return handle:unref()
end

return report
