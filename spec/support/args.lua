-- SPDX-License-Identifier: MIT
--- Calls one function with all that it was not made for. Runs in a child process: a crash is seen from there.
--
-- Way   args.names() -> for each, in a child: args.try(name) -> every list of values -> call, in main and in a task
-- Keep  every context has a watchdog that closes it, so that a call which rightly waits for ever comes back.
--       One whose source was asked for is never collected: what is left is closed before a limit of 1024 fds is met.

local aio = require "aioloop"
local glib = require "aioloop.glib"

local args = {}

local pipe = require "fds".pipe()
local quiet = aio.context() -- without a watchdog
local WATCHDOG = 0.001
local contexts = setmetatable({}, { __mode = "k" })
local function nop() end

-- ---- what there is to call --------------------------------------------------------------------------------

local kinds = {
  "bh", "buffer", "clock", "condition", "context", "event", "file", "group", "mutex", "queue", "rwlock", "semaphore",
  "server", "signal", "stream", "task", "timer", "udp", "watch",
}

local function new_context(opts)
  local ctx = assert(aio.context(opts))
  contexts[ctx] = true
  ctx:timer(ctx.close, ctx):arm(WATCHDOG)
  ctx:on_error(nop)
  return ctx
end

local make = {
  context = function() return new_context() end,
  bh = function(ctx) return ctx:bh(nop) end,
  timer = function(ctx) return ctx:timer(nop) end,
  watch = function(ctx) return assert(ctx:watch(pipe, {})) end,
  task = function(ctx) return ctx:spawn(nop) end,
  clock = function() return aio.clock.virtual end,
  group = function() return aio.group() end,
  signal = function(ctx) return assert(ctx:signal("USR1", nop)) end,
  mutex = function() return aio.mutex() end,
  rwlock = function() return aio.rwlock() end,
  condition = function() return aio.condition() end,
  semaphore = function() return aio.semaphore(0) end,
  event = function() return aio.event() end,
  queue = function() return aio.queue(1) end,
  buffer = function() return aio.buffer(8) end,
  file = function() return assert(quiet:run(aio.open, "/dev/null", "r+")) end,
  stream = function() return (aio.socketpair()) end,
  server = function() return assert(aio.listen("127.0.0.1", 0)) end,
  udp = function() return assert(aio.udp():bind("127.0.0.1", 0)) end,
}

local function methods_of(kind) return getmetatable(make[kind](new_context())) end

--- "aio.sleep", "glib.iterate", "timer:arm"…
function args.names()
  local names = {}
  for name, f in pairs(aio) do
    if type(f) == "function" then names[#names + 1] = "aio." .. name end
  end
  for name in pairs(glib) do names[#names + 1] = "glib." .. name end
  for _, kind in ipairs(kinds) do
    for name, f in pairs(methods_of(kind)) do
      if type(f) == "function" then names[#names + 1] = kind .. ":" .. name end
    end
  end
  table.sort(names)
  return names
end

local makes_files = { ["aio.open"] = true, ["aio.writefile"] = true }

local function in_folder(fn, folder)
  return function(path, ...)
    if type(path) == "string" or type(path) == "number" then path = folder:path(path) end
    return fn(path, ...)
  end
end

-- Numbers are names and addresses, too; a server far away would be asked for them.
local function at_home(fn)
  return function(host, ...) return fn(tonumber(host) and "127.0.0.1" or host, ...) end
end

local function find(name, folder)
  local where, sep, what = name:match "^(%w+)([.:])([%w_]+)$"
  if sep == ":" then return methods_of(where)[what], where end
  local fn = (where == "aio" and aio or glib)[what]
  if name == "aio.getnameinfo" or name == "aio.getaddrinfo" then return at_home(fn) end
  return folder and in_folder(fn, folder) or fn
end

-- ---- what to call it with -----------------------------------------------------------------------------------

local NOTHING = {} -- the list of arguments ends before it

local function closed(kind)
  local object = make[kind](new_context())
  local finalise = object.close or getmetatable(object).__gc
  if finalise then finalise(object) end
  return object
end

local function of_closed_context(kind)
  local ctx = new_context()
  local object = make[kind](ctx)
  ctx:close()
  return object
end

local values = {
  function() return NOTHING end, function() return nil end, function() return -1 end, function() return 2 ^ 40 end,
  function() return 2 ^ 40 | 0 end, function() return 0 / 0 end, function() return math.huge end,
  function() return -math.huge end, function() return 0 end, function() return 0.5 end,
  function() return math.mininteger end, function() return math.maxinteger end, function() return "" end,
  function() return "10" end, function() return true end,
  function() return false end, function() return {} end, function() return nop end, function() return io.stderr end,
  function() return coroutine.create(nop) end, function() return coroutine.running() end,
  function()
    local dead = coroutine.create(nop)
    coroutine.resume(dead)
    return dead
  end,
  function() return io.tmpfile() end,
  function()
    local file = io.tmpfile()
    file:close()
    return file
  end,
  function() return setmetatable({}, { __index = error, __tostring = error, __len = error }) end,
  function() return { getfd = function() return "x" end } end,
  function() return { getfd = function() return -1 end, pollfd = error } end,
  function() return { fileno = function() error {} end } end,
  function() return { clock = 1, nop } end,
  function() return { read = 1, max_ns = -1, poll_max_ns = 0 / 0, backend = 1, name = {} } end,
  function() return { read = nop, poll = 1, max_ns = "1", poll_max_ns = -1, backend = "none" } end,
  function() return { poll = nop, max_ns = math.huge, poll_max_ns = 9e99, backend = "io_uring", clock = "none" } end,
  function() return { family = "unix", ttl = 0, sndbuf = 0.5, multicast_interface = {}, timeout = "1" } end,
  function() return { family = "inet6", ttl = 255, rcvbuf = 1, multicast_interface = "none", timeout = -1 } end,
  function() return { clock = "virtual", max_ns = 1e18, grow = 1e18, shrink = 1e18 } end,
}
for _, kind in ipairs(kinds) do
  values[#values + 1] = function() return make[kind](new_context()) end
  values[#values + 1] = function() return closed(kind) end
  values[#values + 1] = function() return of_closed_context(kind) end
end

-- ---- calling ----------------------------------------------------------------------------------------------

-- How it came back: it raised, refused, or did something.
local function judge(name, list, ok, first, message, errno)
  if not ok or first ~= nil or message == nil then return end
  local fine = type(message) == "string" and (errno == nil or math.type(errno) == "integer")
  if name:match "suspend" or name:match "join" or name:match "run" or name:match "await" then fine = true end -- results
  if not fine then error(("%s(%s) returned nil, %s, %s"):format(name, list, tostring(message), tostring(errno)), 0) end
end

local function evaluate(makers)
  local list, n = {}, 0
  for _, maker in ipairs(makers) do
    local value = maker()
    if value == NOTHING then break end
    n = n + 1
    list[n] = value
  end
  return list, n
end

local function refresh_default()
  aio.default():close()
  local ctx = aio.default()
  ctx:timer(ctx.close, ctx):arm(WATCHDOG)
  ctx:on_error(nop)
  return ctx
end

local function call_in_main(name, fn, makers)
  local ctx = refresh_default()
  if name:match "^glib" then ctx:attach() end
  local list, n = evaluate(makers)
  judge(name, n, pcall(fn, table.unpack(list, 1, n)))
end

local function call_in_task(name, fn, makers)
  local ctx = refresh_default()
  if name:match "^glib" then ctx:attach() end
  local over = false
  ctx:spawn(function()
    local list, n = evaluate(makers)
    judge(name, n, pcall(fn, table.unpack(list, 1, n)))
    over = true
  end)
  repeat
    local open = pcall(ctx.poll, ctx)
  until over or not open
end

local function usable()
  local ctx = aio.context()
  local got = ctx:run(function()
    aio.sleep(0)
    return "usable"
  end)
  assert(got == "usable")
  ctx:close()
end

local function close_what_is_left()
  collectgarbage()
  for ctx in pairs(contexts) do ctx:close() end
end

local function each_list(kind, visit)
  local receiver = kind and function() return make[kind](new_context()) end
  local function with(...)
    visit(receiver and { receiver, ... } or { ... })
  end
  for _, a in ipairs(values) do
    with(a)
    with(function() return nop end, a)
    with(function() return 0 end, a)
    with(function() return io.stderr end, a)
    with(function() return nil end, a)
    with(function() return nop end, function() return nil end, a)
    with(function() return 1 end, function() return 1 end, a)
    if kind then visit { a } end
    if kind then visit { a, function() return nop end } end
  end
end

--- Returns how many calls were made, which all came back.
function args.try(name)
  local folder <close> = makes_files[name] and require "spec.support.files".folder()
  local fn, kind = find(name, folder)
  local n = 0
  aio.clock.virtual:autojump(false)
  -- Where it writes to.
  if name == "aio.dump" then io.stderr = io.tmpfile() end -- luacheck: ignore
  for _, call in ipairs { call_in_main, call_in_task } do
    each_list(kind, function(makers)
      call(name, fn, makers)
      n = n + 1
      if n % 50 == 0 then close_what_is_left() end
    end)
  end
  close_what_is_left()
  usable()
  if kind then -- whatever is no receiver is refused
    for _, value in ipairs(values) do
      local v = value()
      if v ~= NOTHING and aio.type(v) ~= kind then
        local ok = pcall(fn, v)
        assert(not ok, name .. " took a " .. tostring(aio.type(v) or type(v)) .. " for its object")
      end
    end
  end
  return n
end

return args
