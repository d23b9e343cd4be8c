--- socket.select of aioloop.socket.
-- SPDX-License-Identifier: MIT
-- Way     collect: fds, and what is wanted of each -> ready now? -> wait_any -> collect again
-- Yields  select does; with a time limit of 0 it does not wait, but lets others run where nothing is ready.
-- Keep    an object that is closed meanwhile is ready: its caller is to find that out.
-- @module aioloop.socket

local core = require "aioloop.core"

local raw <const> = core.sockets()
local READ <const>, WRITE <const> = 1, 2

local function fd_of(object)
  local getfd = object.getfd
  local fd = getfd and getfd(object)
  return math.type(fd) == "float" and math.tointeger(fd) or fd or -1
end

-- Objects and what is wanted of them.
local function list_entries(readers, writers)
  local entries = {}
  local function add(list, i, want)
    if list == nil then return end
    if type(list) ~= "table" then
      error(("bad argument #%d to 'select' (table expected, got %s)"):format(i, type(list)), 4)
    end
    for _, object in ipairs(list) do
      entries[#entries + 1] = { object = object, want = want, began = fd_of(object) >= 0 }
    end
  end
  add(readers, 1, READ)
  add(writers, 2, WRITE)
  return entries
end

local function is_dirty(entry)
  local dirty = entry.want == READ and entry.object.dirty
  return dirty and dirty(entry.object) or false
end

-- The fds to ask the kernel for, each once; marks who is ready without asking.
local function collect(entries)
  local fds, wants, index, any = {}, {}, {}, false
  for _, entry in ipairs(entries) do
    local fd = fd_of(entry.object)
    entry.ready = fd < 0 and entry.began or fd >= 0 and is_dirty(entry)
    entry.at = nil
    any = any or entry.ready
    if fd >= 0 then
      local at = index[fd] or #fds + 1
      index[fd], fds[at], wants[at] = at, fd, (wants[at] or 0) | entry.want
      entry.at = at
    end
  end
  return fds, wants, any
end

local function results(entries, got)
  local lists = { [READ] = {}, [WRITE] = {} }
  for _, entry in ipairs(entries) do
    local list = lists[entry.want]
    local ready = entry.ready or got and entry.at and got[entry.at] & entry.want ~= 0
    if ready and not list[entry.object] then -- else it is named twice
      list[#list + 1] = entry.object
      list[entry.object] = #list
    end
  end
  return lists[READ], lists[WRITE]
end

local function look(entries)
  local fds, wants, any = collect(entries)
  local got, message = raw.ready(fds, wants)
  if message then error("select failed: " .. message, 0) end
  return any or got, got, fds, wants
end

--- Waits until something can be done with one of the objects.
-- @tparam ?table readers list of objects with getfd(), of which something is to be received
-- @tparam ?table writers list of those to send to
-- @tparam[opt] number timeout seconds; none, or negative: for ever
-- @treturn table those of the readers that are ready: a list, and with each object as a key
-- @treturn table the same of the writers
-- @treturn ?string "timeout"
local function select(readers, writers, timeout)
  if timeout ~= nil and (not tonumber(timeout) or tonumber(timeout) ~= tonumber(timeout)) then
    error(("bad argument #3 to 'select' (number expected, got %s)"):format(type(timeout)), 2)
  end
  timeout = tonumber(timeout)
  if timeout and timeout < 0 then timeout = nil end
  local deadline = timeout and core.now() + timeout
  local entries = list_entries(readers, writers)
  if not raw.may_try() then core.yield() end -- who always finds something lets others have a turn
  while true do
    local any, got, fds, wants = look(entries)
    if any then return results(entries, got) end
    if timeout == 0 then core.yield() break end
    local left = deadline and math.max(deadline - core.now(), 0)
    if left == 0 then break end
    local ok, why = raw.wait_any(fds, wants, left)
    if not ok and why ~= "timeout" then error("select failed: " .. why, 0) end
  end
  return {}, {}, "timeout"
end

return { select = select }
