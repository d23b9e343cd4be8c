-- SPDX-License-Identifier: MIT
--- Runs the scenarios of files where system calls are refused, and tells what has done them. In a child process.

local aio = require "aioloop"
local files = require "spec.support.files"
local seccomp = require "seccomp"

local refused = {}

local function run_all(engine, folders)
  local ctx <close> = aio.context()
  return ctx:run(function()
    for _, scenario in ipairs(files.scenarios) do
      if not scenario.processes then files.run(scenario, ctx, table.remove(folders), engine.options) end
    end
    local file <close> = assert(aio.open(table.remove(folders):path "x", "w", engine.options))
    assert(file:write "x")
    local done = {}
    for name, count in pairs(ctx:stats().files) do
      if count > 0 then done[#done + 1] = name end
    end
    table.sort(done)
    return ("%s is %s: %s"):format(engine.name, file:engine(), table.concat(done, " "))
  end)
end

--- refused.run(root, { ["system call"] = "error" }) -> a line for each way to open a file: which engine it has, and
-- what has done its requests. The folder is to be removed by others: there may be no more processes.
function refused.run(root, calls)
  local folders, lines = files.folder_at(root):folders(#files.engines * (#files.scenarios + 1)), {}
  for call, err in pairs(calls) do assert(seccomp.refuse(call, err)) end
  for _, engine in ipairs(files.engines) do
    -- With "auto" it is io_uring as well, and threads are always there.
    if engine.name ~= "auto" and engine.name ~= "threads" then lines[#lines + 1] = run_all(engine, folders) end
  end
  return table.concat(lines, "\n")
end

return refused
