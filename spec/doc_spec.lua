-- SPDX-License-Identifier: MIT
-- Every sample of the README runs, and the file for editors names what there is, no more and no less.

local aio = require "aioloop"

local function read(path)
  local file <close> = assert(io.open(path))
  return file:read("a")
end

-- Runs a script in a process of its own; returns what it printed, and whether it ended well.
local function run(source)
  local path = os.tmpname()
  local file = assert(io.open(path, "w"))
  file:write(source)
  file:close()
  local pipe = assert(io.popen("timeout 20 lua5.4 " .. path .. " 2>&1"))
  local output = pipe:read("a")
  local ok = pipe:close()
  os.remove(path)
  return output, ok
end

describe("README", function()
  local n = 0
  for sample in read("README.md"):gmatch("```lua\n(.-)```") do
    n = n + 1
    it("sample " .. n .. " runs", function()
      local output, ok = run(sample)
      assert.is_true(ok, output)
    end)
  end

  it("has samples", function()
    assert.is_true(n >= 5)
  end)

  it("names files that are there", function()
    for path in read("README.md"):gmatch("`(csrc/[%w_/]+%.[ch])`") do
      read(path)
    end
  end)
end)

describe("doc/meta/aioloop.lua", function()
  local described = {}
  for class, name in read("doc/meta/aioloop.lua"):gmatch("\nfunction (%w+)[.:]([%w_]+)") do
    described[class .. "." .. name] = true
  end

  -- Marks what is there as seen; fails for what nobody described.
  local function seen(class, object)
    for name in pairs(object) do
      if not name:find("^__") and name ~= "version" and name ~= "clock" then
        assert.is_true(described[class .. "." .. name], class .. "." .. name .. " is not described")
        described[class .. "." .. name] = nil
      end
    end
  end

  it("describes every function and method, and no other", function()
    local ctx <close> = aio.context()
    local pipe = io.popen("true")
    local objects = {
      context = ctx,
      bh = ctx:bh(print),
      timer = ctx:timer(print),
      watch = ctx:watch(pipe, {}),
      task = ctx:spawn(print),
      clock = aio.clock.virtual,
      signal = ctx:signal("USR1", print),
      group = aio.group(),
      mutex = aio.mutex(),
      rwlock = aio.rwlock(),
      condition = aio.condition(),
      semaphore = aio.semaphore(1),
      event = aio.event(),
      queue = aio.queue(),
    }
    seen("aio", aio)
    for class, object in pairs(objects) do
      seen(class, getmetatable(object).__index)
    end
    assert.is_nil(next(described))
    pipe:close()
  end)
end)
