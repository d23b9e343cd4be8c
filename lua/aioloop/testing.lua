--- Helpers for tests: specs that wait, time that jumps, orders drawn by lot, and a look at what was left behind.
-- They serve busted, and anything else that calls a function and catches its error.
-- SPDX-License-Identifier: MIT
-- Way     it("…", testing.async(fn)) -> run_on a fresh context -> ctx:run(fn) beside a guard -> settle -> leaks
-- Yields: `leaks` what its function yields; what the others make runs a context of its own until its test is over.
-- Keep    the context that a test gets holds nothing but the guard's two timers, which are unreferenced and run on the
--         monotonic clock. What is left is counted when the guard is closed.
-- @module aioloop.testing

local aio = require "aioloop"

local testing = {}

local SECONDS = 5
local TURNS = 100 -- given to what ends without waiting any longer
local TICK = 0.02 -- of the guard, which looks for a deadlock

-- ---- what there is -------------------------------------------------------------------------------------------

local kinds = {
  { "tasks", "tasks that have not ended" },
  { "timers_armed", "armed timers" },
  { "watches", "watches" },
  { "bhs_pending", "scheduled bottom halves" },
  { "live", "things that keep run alive" },
}

local function stats_of(ctx)
  local open, stats = pcall(ctx.stats, ctx)
  return open and stats or {}
end

local function busier(before, ctx)
  local now = stats_of(ctx)
  for _, kind in ipairs(kinds) do
    if (now[kind[1]] or 0) > (before[kind[1]] or 0) then return true end
  end
  return false
end

-- Opening what /proc/self/fd names would open the thing itself, and might wait for it.
local function open_fds()
  local fds = { n = 0 }
  local status <close> = io.open "/proc/self/status"
  local size = status and tonumber(status:read "a":match "FDSize:%s*(%d+)") or 0
  if status then status:close() end
  for fd = 0, size - 1 do
    local info <close> = io.open("/proc/self/fdinfo/" .. fd)
    if info then
      fds[fd] = true
      fds.n = fds.n + 1
    end
  end
  return fds
end

local function name_of_fd(fd)
  local stat <close> = io.open "/proc/self/stat"
  local link <close> = io.popen(("readlink /proc/%d/fd/%d"):format(stat:read "n", fd))
  return link:read "l" or "?"
end

-- What luaL_ref keeps; a free place holds a number.
local function references()
  local refs = { n = 0 }
  for key, value in next, debug.getregistry() do
    if math.type(key) == "integer" and type(value) ~= "number" then
      refs[key] = type(value)
      refs.n = refs.n + 1
    end
  end
  return refs
end

local function count(t)
  local n = 0
  for _ in pairs(t) do n = n + 1 end
  return n
end

local function look()
  local ctx = aio.current()
  return {
    ctx = ctx,
    stats = stats_of(ctx),
    fds = open_fds(),
    references = references(),
    modules = count(package.loaded),
  }
end

-- ---- what is left --------------------------------------------------------------------------------------------

-- The tree of a context's tasks; aio.dump writes that of the current one.
local function tree(ctx)
  local text = {}
  local file = { write = function(_, ...) text[#text + 1] = table.concat { ... } end }
  if aio.current() == ctx then
    aio.dump(file)
  else
    ctx:schedule(aio.dump, file)
    pcall(ctx.poll, ctx, false)
  end
  return table.concat(text)
end

local function add_handles(report, before, ctx)
  local now, any = stats_of(ctx), false
  for _, kind in ipairs(kinds) do
    local more = (now[kind[1]] or 0) - (before[kind[1]] or 0)
    if more > 0 and not (any and kind[1] == "live") then
      any = true
      report[#report + 1] = ("%s: %d"):format(kind[2], more)
    end
  end
  if (now.tasks or 0) > (before.tasks or 0) then report[#report + 1] = tree(ctx):gsub("\n$", ""):gsub("\n", "\n\t") end
end

local function grown(before, name)
  if name == "references" and count(package.loaded) > before.modules then return {} end -- a new module may keep them
  local find = name == "fds" and open_fds or references
  local new, now = {}, find()
  if now.n > before[name].n then
    collectgarbage()
    collectgarbage()
    now = find()
  end
  if now.n <= before[name].n then return {} end
  for key, value in pairs(now) do
    if not before[name][key] then new[#new + 1] = { key, value } end
  end
  table.sort(new, function(a, b) return a[1] < b[1] end)
  return new
end

local function add_process(report, before)
  for _, fd in ipairs(grown(before, "fds")) do
    report[#report + 1] = ("fd %d (%s)"):format(fd[1], name_of_fd(fd[1]))
  end
  for _, ref in ipairs(grown(before, "references")) do
    report[#report + 1] = ("a reference in Lua's registry: %d, a %s"):format(ref[1], ref[2])
  end
end

local function place_of(fn)
  local info = debug.getinfo(fn, "S")
  return ("%s:%d: "):format(info.short_src, info.linedefined)
end

local function complain(report, fn)
  if #report > 0 then error(place_of(fn) .. "left behind:\n\t" .. table.concat(report, "\n\t"), 0) end
end

--- Calls a function and looks at what it left behind: tasks, armed timers, watches and scheduled bottom halves of the
-- current context, fds (where there is a /proc), references in Lua's registry. What ends or is collected without any
-- more waiting counts as gone; so does what a module keeps that was loaded meanwhile.
-- Nothing else should be at work on the context.
-- @tparam function fn
-- @param ... its arguments
-- @return the results of fn
-- @raise the error of fn; or a string, with the place of fn, that lists what is left
function testing.leaks(fn, ...)
  local before = look()
  local results = table.pack(fn(...))
  for _ = 1, TURNS do
    if not busier(before.stats, before.ctx) then break end
    aio.yield()
  end
  local report = {}
  add_handles(report, before.stats, before.ctx)
  add_process(report, before)
  complain(report, fn)
  return table.unpack(results, 1, results.n)
end

-- ---- running a test ------------------------------------------------------------------------------------------

local Guard = {}
Guard.__index = Guard

-- Ends a test: by cancelling its tasks, and if it minds neither that nor its loop's stop, by closing the context
-- under it.
function Guard:strike(why)
  self.strikes = self.strikes + 1
  if self.strikes == 1 then
    self.report = why .. "\n" .. tree(self.ctx):gsub("\n$", "")
    for _, task in ipairs(self.ctx:tasks()) do task:cancel "the test is over" end
    self.limit:arm(0, 0.001)
  end
  self.ctx:stop()
  if self.strikes == 100 then self.ctx:close() end
end

-- Whether all has been still since the last time, and nothing but the guard is left that could wake the loop.
function Guard:look()
  local now, last = self.ctx:stats(), self.last
  self.last = now
  if last and now.entries == last.entries and now.bhs == last.bhs and now.fds == last.fds
    and now.timers_armed == 2 and now.watches == 0 and now.bhs_pending == 0 and now.live <= now.tasks then
    self:strike "deadlock: nothing is left that could wake"
  end
end

function Guard:close()
  self.limit:close()
  self.tick:close()
end
Guard.__close = Guard.close

local function guard(ctx, seconds)
  local self = setmetatable({ ctx = ctx, strikes = 0 }, Guard)
  local why = ("not over after %g s"):format(seconds)
  self.limit = ctx:timer { clock = "monotonic", Guard.strike, self, why }:arm(seconds):unref()
  self.tick = ctx:timer { clock = "monotonic", Guard.look, self }:arm(TICK, TICK):unref()
  return self
end

-- With the guard still in its place: a callback may wait.
local function settle(ctx)
  for _ = 1, TURNS do
    if not busier({ timers_armed = 2 }, ctx) then break end
    ctx:poll(false)
  end
end

-- On a context of its own, without what it may leave elsewhere.
local function run_on(ctx, fn, seconds, ...)
  local watch <close> = guard(ctx, seconds)
  local ok, err = pcall(ctx.run, ctx, function(...)
    aio.self():name "the test"
    fn(...)
    ctx:stop() -- what is left is no reason to wait
  end, ctx, ...)
  local settled, later = pcall(settle, ctx)
  watch:close()
  if watch.report then error(place_of(fn) .. watch.report, 0) end
  if ok then ok, err = settled, later end
  if not ok then
    if type(err) == "string" and not err:match "^[^\n]-:%d+:" then err = place_of(fn) .. err end
    error(err, 0)
  end
  local report = {}
  add_handles(report, {}, ctx)
  return report
end

local function jumping(on)
  if not on then return nil end
  local before <const> = aio.clock.virtual:autojump(true)
  return setmetatable({}, { __close = function() aio.clock.virtual:autojump(before) end })
end

-- The options of a test, as a table of their own, and those of its context.
local function read_options(options, who)
  if options == nil then options = SECONDS end
  if type(options) == "number" then options = { seconds = options } end
  if type(options) ~= "table" then
    error(("bad argument to '%s' (options are a number of seconds or a table, got %s)"):format(who, type(options)), 3)
  end
  local copy = {}
  for key, value in pairs(options) do copy[key] = value end
  local seconds = copy.seconds or SECONDS
  if type(seconds) ~= "number" or seconds ~= seconds or seconds <= 0 then
    error(("bad argument to '%s' (seconds must be a number greater than 0)"):format(who), 3)
  end
  copy.seconds = nil
  return seconds, copy
end

local function check_function(fn, i, who)
  if type(fn) == "function" then return end
  error(("bad argument #%d to '%s' (function expected, got %s)"):format(i, who, type(fn)), 3)
end

local function check_count(n, who, what)
  if math.type(n) == "integer" and n >= 1 then return end
  error(("bad argument #1 to '%s' (%s is an integer of at least 1)"):format(who, what), 3)
end

local function test(fn, seconds, options, ...)
  local before <const> = look()
  local report
  do
    local ctx <close> = assert(aio.context(options))
    local _ <close> = jumping(options.clock == "virtual")
    report = run_on(ctx, fn, seconds, ...)
  end
  add_handles(report, before.stats, before.ctx)
  add_process(report, before)
  complain(report, fn)
end

--- Makes a test of a function that waits: `it("waits", testing.async(function(ctx) … end))`. Each call runs it as a
-- task on a fresh context, which is the current one meanwhile. The test is over when the function is: what is left then
-- of tasks, armed timers, watches, scheduled bottom halves, fds and references (see `leaks`) fails it.
--
-- The error of the function, of a callback, or of a task that nobody joined is the test's, the very value; a deadlock
-- is found at once. When the time limit strikes, the test's tasks are cancelled. A function that computes for ever, or
-- waits in the kernel or on another context, is not ended by it.
-- @tparam function fn called with the context
-- @tparam[opt=5] number|table options the time limit in seconds of real time; or a table of it, as `seconds`, and of
--   options for `aio.context`. With clock="virtual" the virtual clock jumps meanwhile, as for `virtual`.
-- @treturn function without arguments or results
-- @raise (the made function) the test's error; what it left behind; "not over after 5 s" with the tree of its tasks, as
--   `aio.dump` writes it; both strings begin with the place of fn
function testing.async(fn, options)
  check_function(fn, 1, "async")
  local seconds <const>, opts <const> = read_options(options, "async")
  return function() test(fn, seconds, opts) end
end

--- The same on the virtual clock, which jumps to the next deadline whenever the loop would sleep: an hour takes no
-- time. What comes from outside (an fd, a process) takes real time, and is late for any deadline. The time limit is of
-- real time. Afterwards the virtual clock jumps by itself only if it did so before.
-- @tparam function fn called with the context
-- @tparam[opt=5] number|table options as for `async`
-- @treturn function without arguments or results
function testing.virtual(fn, options)
  check_function(fn, 1, "virtual")
  local seconds <const>, opts <const> = read_options(options, "virtual")
  opts.clock = "virtual"
  return function() test(fn, seconds, opts) end
end

-- busted knows its own failures by their metatable.
local function name_seed(err, seed)
  local prefix <const> = ("with seed %d (AIOLOOP_SEED=%d repeats it): "):format(seed, seed)
  if type(err) == "table" and type(rawget(err, "message")) == "string" then
    err.message = prefix .. err.message
    return err
  end
  return prefix .. tostring(err)
end

local function with_seed(fn, seconds, options, seed)
  options.shuffle = seed
  local ok, err = pcall(test, fn, seconds, options, seed)
  if not ok then error(name_seed(err, seed), 0) end
end

--- As `async`, on a context that runs what is ready at the same time in an order drawn by lot: same seed, same order.
-- @tparam integer seed at least 1
-- @tparam function fn called with the context and the seed
-- @tparam[opt=5] number|table options as for `async`
-- @treturn function without arguments or results; its errors name the seed
function testing.shuffled(seed, fn, options)
  check_count(seed, "shuffled", "the seed")
  check_function(fn, 2, "shuffled")
  local seconds <const>, opts <const> = read_options(options, "shuffled")
  return function() with_seed(fn, seconds, opts, seed) end
end

--- As `shuffled`, with the seeds 1 to n one after the other, or with the one that the environment variable
-- AIOLOOP_SEED holds when the test runs.
-- @tparam integer n at least 1
-- @tparam function fn called with the context and the seed, n times
-- @tparam[opt=5] number|table options as for `async`; the time limit is of each call
-- @treturn function without arguments or results; its errors name the seed
function testing.each_seed(n, fn, options)
  check_count(n, "each_seed", "the number of seeds")
  check_function(fn, 2, "each_seed")
  local seconds <const>, opts <const> = read_options(options, "each_seed")
  return function()
    local text = os.getenv "AIOLOOP_SEED"
    local only = text and (math.tointeger(tonumber(text)) or 0)
    if only and only < 1 then error("AIOLOOP_SEED is an integer of at least 1, and not '" .. text .. "'", 0) end
    for seed = only or 1, only or n do with_seed(fn, seconds, opts, seed) end
  end
end

--- `it(name, testing.async(fn, options))`, with the `it` of busted or, where there is no busted, the global one.
-- @tparam string name
-- @tparam function fn called with the context
-- @tparam[opt=5] number|table options as for `async`
function testing.it_async(name, fn, options)
  local busted = package.loaded.busted
  local it = busted and busted.it or rawget(_G, "it")
  if not it then error("'it_async' finds no 'it': is this run by busted?", 2) end
  check_function(fn, 2, "it_async")
  return it(name, testing.async(fn, options))
end

return testing
