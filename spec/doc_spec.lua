-- SPDX-License-Identifier: MIT
-- Every sample of the README and the cookbook runs; the files for editors name what there is, no more and no less.

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

-- Each sample of a page is a script by itself, and goes by the heading above it. Returns how many there are.
local function samples_run(page)
  local n, heading = 0, nil
  for before, sample in read(page):gmatch("(.-)```lua\n(.-)```") do
    heading = before:match(".*\n#+ ([^\n]*)") or before:match("^# ([^\n]*)") or heading
    n = n + 1
    it(("sample %d runs: %s"):format(n, heading), function()
      local output, ok = run(sample)
      assert.is_true(ok, output)
    end)
  end
  return n
end

describe("README", function()
  local n = samples_run("README.md")

  it("has samples", function()
    assert.is_true(n >= 5)
  end)

  it("names files that are there", function()
    local there = {}
    local list <close> = assert(io.popen("find csrc lua spec doc examples -name '*.*'"))
    for path in list:lines() do there[path:match("[^/]+$")] = true end
    local named = 0
    for name in read("README.md"):gmatch("`[%w_/]-([%w_]+%.%a+)`") do
      if name:find("%.[ch]$") or name:find("%.lua$") or name:find("%.md$") then
        assert.is_true(there[name], name .. " is not there")
        named = named + 1
      end
    end
    assert.is_true(named >= 30)
  end)
end)

describe("doc/cookbook.md", function()
  local n = samples_run("doc/cookbook.md")

  it("has samples", function()
    assert.is_true(n >= 10)
  end)
end)

-- The functions that a file for editors describes, as "class.name".
local function described_in(page)
  local described = {}
  for class, name in read(page):gmatch("\nfunction (%w+)[.:]([%w_]+)") do
    described[class .. "." .. name] = true
  end
  return described
end

local constants = { version = true, clock = true, socket = true, BLOCKSIZE = true, class = true }

-- Takes off the list what is there; fails for what nobody described.
local function seen(described, class, object)
  for name in pairs(object) do
    if not name:find("^_") and not constants[name] then
      assert.is_true(described[class .. "." .. name], class .. "." .. name .. " is not described")
      described[class .. "." .. name] = nil
    end
  end
end

describe("doc/meta/aioloop.lua", function()
  local described = described_in("doc/meta/aioloop.lua")

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
      file = assert(aio.open "README.md"),
      buffer = aio.buffer(1),
      stream = aio.pipe(),
      server = assert(aio.listen("127.0.0.1", 0)),
      udp = assert(aio.udp()),
    }
    seen(described, "aio", aio)
    for class, object in pairs(objects) do
      seen(described, class, getmetatable(object).__index)
    end
    assert.is_nil(next(described))
    pipe:close()
  end)
end)

describe("doc/meta/aioloop/testing.lua", function()
  it("describes every function, and no other", function()
    local described = described_in("doc/meta/aioloop/testing.lua")
    seen(described, "testing", require "aioloop.testing")
    assert.is_nil(next(described))
  end)
end)

describe("doc/meta/aioloop/socket.lua", function()
  it("describes every function and method, and no other", function()
    local described = described_in("doc/meta/aioloop/socket.lua")
    local socket = require "aioloop.socket"
    local face = {}
    for name, value in pairs(socket) do
      -- what libraries add is theirs
      if type(value) == "function" then face[name] = value end
    end
    seen(described, "socket", face)
    seen(described, "dns", socket.dns)
    seen(described, "object", getmetatable(socket.tcp()).__index)
    seen(described, "datagrams", getmetatable(socket.udp()).__index)
    assert.is_nil(next(described))
  end)
end)
