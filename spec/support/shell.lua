-- SPDX-License-Identifier: MIT
--- Runs programs of the shell beside the loop: their output is a stream, so that what they talk to goes on meanwhile.
--
-- Way   shell.run(command) -> a file -> timeout sh -> aio.stream of its output -> output, exit code
-- Keep  one that hangs ends after 25 seconds, with 124. What is preloaded here is for Lua alone: $LUA in a command.

local aio = require "aioloop"

local shell = {}

local function start(command)
  local path = os.tmpname()
  local file <close> = assert(io.open(path, "w"))
  file:write("exec 2>&1\n", 'LUA="env ${PRELOAD:+LD_PRELOAD=$PRELOAD} lua5.4"\n', command, "\n")
  file:close()
  local run = 'exec env -u LD_PRELOAD PRELOAD="$LD_PRELOAD" timeout -k 2 25 bash %s </dev/null'
  return path, assert(io.popen(run:format(path)))
end

--- Runs it until its end, in a task; returns what it printed, errors and all, and its exit code.
function shell.run(command, ...)
  if ... then command = command:format(...) end
  local path, pipe = start(command)
  local stream <close> = assert(aio.stream(pipe))
  local output = assert(stream:read "a")
  local _, _, code = pipe:close()
  os.remove(path)
  return output, code
end

--- Starts it; returns its output as a stream. When that is closed the program gets a SIGTERM, if it still runs, and
--- is waited for.
function shell.start(command, ...)
  if ... then command = command:format(...) end
  local path, pipe = start("echo $$\n" .. command)
  local stream = assert(aio.stream(pipe))
  local pid = assert(stream:read())
  local program = { stream = stream, pid = pid }
  function program.kill(signal) os.execute(("kill -%s %s 2>/dev/null"):format(signal, pid)) end
  --- Returns its exit code.
  function program.finish()
    stream:close()
    local _, kind, code = pipe:close()
    os.remove(path)
    return kind == "exit" and code or 128 + code
  end
  return setmetatable(program, { __close = function()
    if io.type(pipe) ~= "file" then return end
    program.kill "TERM"
    program.finish()
  end })
end

--- A folder of its own; it is removed when the variable is closed.
function shell.folder()
  local pipe <close> = io.popen "mktemp -d"
  local folder = { path = assert(pipe:read()) }
  return setmetatable(folder, { __close = function() os.execute("rm -rf " .. folder.path) end })
end

--- Calls fn again and again, while it returns nil, with pauses.
function shell.patiently(fn, ...)
  local limit = aio.now() + 20
  repeat
    local result, why = fn(...)
    if result then return result end
    assert(aio.now() < limit, why)
    aio.sleep(0.01)
  until false
end

return shell
