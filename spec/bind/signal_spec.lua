-- SPDX-License-Identifier: MIT
--- Signals: callbacks, waits, dumps of the task tree, and what is left when nobody listens any more.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local child = require "spec.support.child"

local pid = io.open("/proc/self/stat"):read("n")

local function send(name)
  assert(os.execute(("kill -%s %d"):format(name, pid)))
end

describe("a signal", function()
  drivers.each(function(d)
    it("calls its function with its arguments, once for many", function()
      local ctx, got = d.context(), {}
      local handle = assert(ctx:signal("USR1", function(...) got[#got + 1] = table.pack(...) end, 1, nil))
      send "USR1"
      send "USR1"
      d.wait(ctx, function() return #got > 0 end)
      assert.same({ { n = 2, 1 } }, got)
      assert.equal("signal", aio.type(handle))
      handle:close()
      handle:close()
      assert.matches("closed", tostring(handle))
      assert.error_matches(function() handle:ref() end, "closed signal")
    end)

    it("is told to all who listen, on any context", function()
      local a, b, told = d.context(), d.context(), { a = 0, b = 0 }
      a:signal("SIGUSR1", function() told.a = told.a + 1 end)
      b:signal(10, function() told.b = told.b + 1 end)
      send "USR1"
      d.wait(a, function() return told.a == 1 end)
      d.wait(b, function() return told.b == 1 end)
    end)

    it("that a task waits for ends the wait; timeout and cancel do so too", function()
      local ctx = d.context()
      local keep <close> = ctx:signal("USR1", function() end)
      local waiter = ctx:spawn(aio.wait_signal, "USR1")
      local late = ctx:spawn(aio.wait_signal, "USR2", 0.001)
      local cancelled = ctx:spawn(aio.wait_signal, "USR2")
      d.turns(ctx, 2)
      cancelled:cancel()
      send "USR1"
      d.wait(ctx, function() return waiter:status() == "ended" and late:status() == "ended" end)
      d.wait(ctx, function() return cancelled:status() == "cancelled" end)
      assert.same({ true, true }, { waiter:join() })
      assert.same({ n = 3, true, nil, "timeout" }, table.pack(late:join()))
      assert.equal(1, ctx:stats().watches)
      assert.is_truthy(keep)
    end)
  end)

  it("keeps run going until it is closed or unref'ed", function()
    local ctx <close> = aio.context()
    local handle = ctx:signal("USR1", function() end)
    assert.equal(1, ctx:stats().live)
    handle:unref():unref()
    ctx:run()
    handle:ref()
    ctx:timer(handle.close, handle):arm(0.001)
    ctx:run()
  end)

  it("that cannot be handled is refused", function()
    local ctx <close> = aio.context()
    for _, bad in ipairs { "KILLER", 11, 0, -1, 1000, 1.5, {}, true } do
      assert.error(function() ctx:signal(bad, print) end)
      assert.error(function() aio.wait_signal(bad) end)
    end
    assert.error(function() ctx:signal("TERM", 1) end)
    local handle, message, errno = ctx:signal(9, print)
    assert.same({ n = 3, nil, "Invalid argument", 22 }, table.pack(handle, message, errno))
  end)

  it("writes the tree of tasks when dump_on asked for it", function()
    local ctx <close>, text = aio.context(), {}
    local file = { write = function(_, ...) text[#text + 1] = table.concat { ... } end }
    ctx:run(function()
      aio.self():name "boss"
      local handle <close> = aio.dump_on("USR2", file)
      send "USR2"
      repeat aio.sleep(0.001) until #text > 0
      assert.is_truthy(handle)
    end)
    assert.matches("1 tasks on aioloop%.context", table.concat(text))
    assert.matches("task 1 'boss': waiting in aio%.sleep", table.concat(text))
  end)

  it("does again what it did before, and leaves a child process alone", function()
    local it = child.run([[
      local aio = require "aioloop"
      local pid = io.open("/proc/self/stat"):read("n")
      local ctx = aio.default()
      local handle = ctx:signal("TERM", function() io.write "told " end)
      os.execute("kill -TERM " .. pid)
      ctx:poll()
      io.write(tostring(os.execute("kill -TERM $$")), " ") -- the shell dies of it
      handle:close()
      io.stdout:flush()
      os.execute("kill -TERM " .. pid)
      ctx:poll(5)
      io.write "survived"
    ]], 20)
    assert.equal("told nil ", it.out)
  end)
end)
