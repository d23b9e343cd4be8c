-- SPDX-License-Identifier: MIT
--- The end of a Lua state, of every kind and from every kind of callback, with everything pending: in child processes.

local child = require "spec.support.child"

-- Things that are pending at the end. Whatever of it would run after the end prints LATE.
local pending = [[
  local aio = require "aioloop"
  local glib = require "aioloop.glib"
  local fds = require "fds"
  local ENDING = false
  local function late() if ENDING then io.stdout:write "LATE" end end
  local ctx = aio.default()
  local r, w = fds.pipe()
  local kept = {} -- for a kept task whose handle is lost is reported
  local function litter(ctx)
    local r, w = fds.pipe()
    ctx:schedule(late)
    ctx:bh(late):schedule()
    local bh bh = ctx:bh(function() late() bh:schedule() end) bh:schedule()
    ctx:bh(late):schedule_idle()
    ctx:timer(late):arm(0)
    ctx:timer(late):arm(0, 0.001)
    ctx:timer(late):arm(1000)
    ctx:timer { clock = "virtual", late }:arm(1)
    ctx:watch(w, { write = late })
    ctx:watch(r, { read = late, poll = function() late() return false end })
    local sleeper = ctx:spawn(function() aio.sleep(100) late() end)
    ctx:spawn(function() sleeper:join() late() end)
    ctx:spawn(function() sleeper:join(100) late() end)
    ctx:spawn(function() aio.suspend() late() end)
    ctx:spawn(function() local r = fds.pipe() aio.wait_readable(r, 100) late() end)
    ctx:spawn(function() local r, w = fds.socketpair() aio.wait_readable(r) late() end)
    ctx:spawn(function() while true do aio.yield() late() end end)
    kept[#kept + 1] = ctx:spawn(error, "unjoined"):keep()
    ctx:co_schedule(coroutine.create(function() coroutine.yield() late() end))
    ctx:spawn(function()
      local _ <close> = setmetatable({}, { __close = late })
      aio.sleep(100)
    end)
    ctx:spawn(late)
  end
  litter(ctx)
  local other = aio.context { clock = "virtual" }
  litter(other)
  local polled = aio.context { backend = "poll", poll_max_ns = 100000 }
  litter(polled)
  for _, c in ipairs { ctx, other, polled } do c:poll(false) end
]]

-- The ways to end; all are followed by `finish()` being called in the place.
local ends = {
  ["os.exit(0, true)"] = { "os.exit(0, true)", 0 },
  ["os.exit(3, true)"] = { "os.exit(3, true)", 3 },
  ["os.exit(true, true) after a collection"] = { "collectgarbage() os.exit(true, true)", 0 },
  ["os.exit(4)"] = { "os.exit(4)", 4 },
}

-- The places where it happens.
local places = {
  ["the main chunk"] = "finish()",
  schedule = "ctx:schedule(finish) ctx:run()",
  bh = "ctx:bh(finish):schedule() ctx:run()",
  ["idle bh"] = "ctx:bh(finish):schedule_idle() ctx:run()",
  timer = "ctx:timer(finish):arm(0) ctx:run()",
  ["repeating timer"] = "ctx:timer(finish):arm(0, 0.001) ctx:run()",
  ["virtual timer"] = "other:timer(finish):arm(0.001) aio.clock.virtual:resume() other:run()",
  watch = "ctx:watch(select(2, fds.pipe()), { write = finish }) ctx:run()",
  ["watch on backend poll"] = "polled:watch(select(2, fds.pipe()), { write = finish }) polled:run()",
  ["poll= test"] = [[local quiet = aio.context { poll_max_ns = 10000000 }
    quiet:watch(r, { read = late, poll = finish })
    quiet:timer(function() end):arm(0, 0.0002)
    while true do quiet:poll() end]],
  task = "ctx:spawn(finish) ctx:run()",
  ["the function of run"] = "aio.run(finish)",
  ["sleeping task"] = "ctx:spawn(function() aio.sleep(0.001) finish() end) ctx:run()",
  ["plain coroutine"] = "ctx:co_schedule(coroutine.create(finish)) ctx:run()",
  ["inner coroutine of a task"] = "ctx:spawn(function() coroutine.wrap(finish)() end) ctx:run()",
  ["nested poll"] = "ctx:schedule(function() ctx:schedule(finish) ctx:poll() end) ctx:run()",
  ["nested run in a task"] = "aio.run(function() other:run(function() aio.yield() finish() end) end)",
  ["nested wait in a callback"] = "ctx:schedule(function() ctx:timer(finish):arm(0.001) aio.sleep(100) end) ctx:run()",
  ["wake from the main chunk"] = "local t = ctx:spawn(function() aio.suspend() finish() end) ctx:poll(false) t:wake()",
  on_error = "ctx:on_error(finish) ctx:schedule(error, 1) ctx:run()",
  ["GSource dispatch"] = "ctx:attach() ctx:timer(finish):arm(0.001) while true do glib.iterate(true) end",
  ["task in GSource dispatch"] = [[ctx:attach()
    ctx:spawn(function() aio.sleep(0.001) finish() end)
    while true do glib.iterate(true) end]],
  __gc = "ctx:schedule(function() setmetatable({}, { __gc = finish }) collectgarbage() collectgarbage() end) ctx:run()",
  __close = "ctx:spawn(function() local _ <close> = setmetatable({}, { __close = finish }) aio.yield() end) ctx:run()",
  ["an unwinding __close"] = [[ctx:spawn(function()
    local _ <close> = setmetatable({}, { __close = finish })
    error "unwinding"
  end) ctx:run()]],
  __index = "ctx:schedule(function() return setmetatable({}, { __index = finish }).x end) ctx:run()",
  ["table.sort in a task"] = "ctx:spawn(function() table.sort({ 2, 1, 3 }, finish) end) ctx:run()",
}

describe("the end of a state", function()
  for place, code in pairs(places) do
    for name, way in pairs(ends) do
      it(("by %s in %s is quiet"):format(name, place), function()
        local it = child.run(("%s local function finish() ENDING = true %s end %s"):format(pending, way[1], code), 20)
        assert.same({ code = way[2], out = "", err = "" }, it)
      end)
    end
  end

  it("by falling off the main chunk", function()
    assert.same({ code = 0, out = "", err = "" }, child.run(pending .. "ENDING = true"))
    assert.same({ code = 0, out = "", err = "" }, child.run(pending .. "ctx:attach() other:source() ENDING = true"))
  end)

  it("by an error of the main chunk, inside and outside of a turn", function()
    for _, code in ipairs {
      "error 'the reason'",
      "ctx:schedule(error, 'the reason') ctx:poll(false)",
      "aio.run(function() error 'the reason' end)",
      "aio.run(function() aio.sleep(0) error 'the reason' end)",
      "ctx:spawn(function() ctx:schedule(error, 'the reason') ctx:poll(false) aio.sleep(1000) end) ctx:run()",
      "ctx:schedule(error, 'the reason') aio.sleep(100)",
    } do
      local it = child.run(pending .. code, 20)
      assert.equal(1, it.code)
      assert.match("^lua5%.4: .*the reason", it.err)
    end
  end)

  it("after the loop was closed, in any order", function()
    for _, code in ipairs {
      "END() ctx:close() other:close() polled:close()",
      "polled:close() ctx:schedule(function() END() other:close() ctx:close() os.exit(0, true) end) ctx:run()",
      "ctx:spawn(function() END() ctx:close() os.exit(0, true) end) ctx:run()",
      "ctx:attach() ctx:schedule(function() END() ctx:detach() ctx:close() os.exit(0, true) end)"
        .. " while true do glib.iterate(true) end",
      "ctx:attach() ctx:spawn(function() END() ctx:detach() collectgarbage() os.exit(0, true) end)"
        .. " while true do glib.iterate(true) end",
      "other:close() polled:close() ctx:close() ctx = aio.context { clock = 'virtual' } END()"
        .. " ctx:timer(os.exit, 0, true):arm(1) aio.clock.virtual:advance(1)",
    } do
      local it = child.run(pending .. "local function END() ENDING = true end " .. code, 20)
      assert.same({ code = 0, out = "", err = "" }, it)
    end
  end)

  it("with the module required again", function()
    local it = child.run(pending .. ([[
      for _ = 1, 3 do
        for name in pairs(package.loaded) do
          if name:match "^aioloop" then package.loaded[name] = nil end
        end
        local again = require "aioloop"
        assert(again ~= aio and again.default() == ctx and again.type(ctx) == "context")
        assert(again.run(function() again.sleep(0) return 1 end) == 1)
      end
    ]]):gsub("again%.run%(", "again.context():run("), 20)
    assert.same({ code = 0, out = "", err = "" }, it)
  end)
end)

describe("finalisers of the script", function()
  -- One that was there before the module is called after ours, one that came later before.
  local body = [[function()
    ENDING = true
    local function try(f, ...) return pcall(f, ...) end
    for _, c in ipairs { CTX, OTHER } do
      try(c.poll, c, false) try(c.schedule, c, print)
      try(c.spawn, c, print) try(c.bh, c, print) try(c.timer, c, print) try(c.stats, c) try(c.close, c) tostring(c)
      try(c.attach, c) try(c.notify, c) try(c.source, c)
    end
    for _, o in ipairs { BH, TIMER, WATCH, TASK } do
      for _, m in ipairs { "schedule", "arm", "set", "join", "wake", "status", "close", "ref", "unref", "remaining" } do
        if o[m] then try(o[m], o, 0) end
      end
      tostring(o)
    end
    for _, f in pairs(aio) do
      if type(f) == "function" and f ~= aio.run and f ~= aio.suspend and f ~= aio.dump then try(f) end
    end
    for _, m in ipairs { "now", "pause", "resume", "pause" } do try(aio.clock.virtual[m], aio.clock.virtual) end
    try(aio.clock.virtual.advance, aio.clock.virtual, 1)
    try(aio.sleep, 0) try(aio.suspend, 0) try(aio.wake, CO) try(aio.enter, CO)
    local c = aio.context { clock = "virtual" }
    if c then try(c.poll, c, false) try(c.run, c, function() aio.sleep(0) end) end
    io.stdout:write "."
  end]]
  local use = [[
    CTX, OTHER = aio.default(), aio.context { clock = "virtual" }
    BH, TIMER = CTX:bh(print), CTX:timer(print):arm(100)
    WATCH = CTX:watch(select(2, require "fds".pipe()), { write = function() end })
    CO = coroutine.create(coroutine.yield)
    TASK = CTX:spawn(aio.sleep, 100)
    CTX:co_schedule(CO)
    CTX:poll(false)
  ]]
  for name, code in pairs {
    ["made before the module"] = "KEEP = setmetatable({}, { __gc = %s }) aio = require 'aioloop' %s",
    ["made after everything"] = "aio = require 'aioloop' %s KEEP = setmetatable({}, { __gc = %s })",
    ["made between"] = "aio = require 'aioloop' aio.default() KEEP = setmetatable({}, { __gc = %s }) %s",
  } do
    it("may use all of it: " .. name, function()
      local first, second = body, use
      if name:match "everything" then first, second = use, body end
      local it = child.run((code:gsub("%%s", function()
        local now = first
        first = second
        return now
      end)), 20, "ASAN_OPTIONS=exitcode=99:detect_leaks=0") -- Lua lets go of nothing that lua_close sees made
      assert.equal("", it.err)
      assert.equal(0, it.code)
      assert.equal(".", it.out:sub(-1))
    end)
  end
end)
