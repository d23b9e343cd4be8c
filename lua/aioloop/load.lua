--- Files that are read when something of theirs is first asked for.
-- SPDX-License-Identifier: MIT
-- Way     load(module) -> what it returns; nil, message, errno: there is no descriptor to read it with, and the next
--         time there may be
-- @module aioloop

-- As require, but for that; any other error is raised.
local function load(name)
  local module
  for _ = 1, 2 do -- finalizers may have closed some meanwhile
    local found
    found, module = pcall(require, name)
    if found then return module end
    local null, message, errno = io.open "/dev/null"
    if not null then return nil, (message:gsub("^/dev/null: ", "")), errno end
    null:close()
  end
  error(module, 0)
end

return load
