-- SPDX-License-Identifier: MIT
--- Runs a script in an interpreter of its own: what would end or hang this one is seen from outside.
--
-- Way   child.run(source) -> a file -> timeout lua5.4 -> { code, out, err }
-- Keep  code is the exit code; 124 means that it hung, 128 + n that signal n ended it.

local child = {}

local function take(name)
  local file <close> = assert(io.open(name, "rb"))
  return file:read "a"
end

--- Runs a script with this interpreter's modules; `seconds` is when it counts as hung, `env` stands before the command.
function child.run(source, seconds, env)
  local script, out, err = os.tmpname(), os.tmpname(), os.tmpname()
  local file <close> = assert(io.open(script, "w"))
  file:write(("package.path, package.cpath = %q, %q "):format(package.path, package.cpath), source)
  file:close()
  local command = ("%s timeout -k 2 %d lua5.4 %s >%s 2>%s"):format(env or "", seconds or 60, script, out, err)
  local _, kind, code = os.execute(command)
  local result = { code = kind == "exit" and code or 128 + code, out = take(out), err = take(err) }
  for _, name in ipairs { script, out, err } do os.remove(name) end
  return result
end

return child
