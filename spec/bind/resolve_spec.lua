-- SPDX-License-Identifier: MIT
--- aio.getaddrinfo: its answers are the system's, whoever asks.

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local tasks = require "spec.support.tasks"

local over = tasks.all_over

local function getent(name)
  local list = {}
  for line in io.popen("getent ahosts " .. name):lines() do
    local addr, kind = line:match "^(%S+)%s+(%u+)"
    if kind == "STREAM" then list[#list + 1] = addr end
  end
  return list
end

local function addresses(list)
  local got = {}
  for i, a in ipairs(list) do got[i] = a.addr end
  return got
end

describe("aio.getaddrinfo", function()
  drivers.each(function(d)
    it("answers as getent does, for all names that the hosts file knows", function()
      local ctx, names = d.context(), { "localhost" }
      for line in io.lines "/etc/hosts" do
        for name in line:gsub("#.*", ""):gsub("^%s*%S+", ""):gmatch "%S+" do names[#names + 1] = name end
      end
      local task = ctx:spawn(aio.map, names, function(name) return assert(aio.getaddrinfo(name, "http")) end, 4)
      d.wait(ctx, over(task))
      local lists = select(2, assert(task:join()))
      for i, name in ipairs(names) do
        assert.same(getent(name), addresses(lists[i]))
        for _, a in ipairs(lists[i]) do
          assert.same({ 80, "stream", a.addr:find ":" and "inet6" or "inet" }, { a.port, a.socktype, a.family })
        end
      end
    end)

    it("says what the system says of a name that is none", function()
      local ctx = d.context()
      local task = ctx:spawn(aio.getaddrinfo, "no.such.host.invalid")
      d.wait(ctx, over(task))
      local got = table.pack(task:join())
      assert.same({ 4, true, nil, "string" }, { got.n, got[1], got[2], type(got[3]) })
      assert.equal("integer", math.type(got[4]))
    end)
  end)

  -- In a namespace of its own, where the system allows that: a hosts file of ours in place of the system's.
  it("answers as getent does, for many names of every kind", function()
    if not os.execute "unshare -m true 2>/dev/null" then return print "skipped: no mount namespace to be had" end
    local hosts = os.tmpname()
    local file <close> = assert(io.open(hosts, "w"))
    for i = 1, 40 do
      file:write(("10.1.0.%d four%d alias%d.example\n"):format(i, i, i))
      file:write(("fd00::%x six%d both%d\n192.0.2.%d both%d\n"):format(i, i, i, i, i))
    end
    file:close()
    local it = child.run([[
      local aio = require "aioloop"
      local function getent(name)
        local list = {}
        for line in io.popen("getent ahosts " .. name):lines() do
          local addr, kind = line:match "^(%S+)%s+(%u+)"
          if kind == "STREAM" then list[#list + 1] = addr end
        end
        return table.concat(list, " ")
      end
      local names = {}
      for i = 1, 40 do
        for _, kind in ipairs { "four%d", "six%d", "both%d", "alias%d.example" } do
          names[#names + 1] = kind:format(i)
        end
      end
      aio.run(function()
        local lists = aio.map(names, function(name) return assert(aio.getaddrinfo(name)) end, 32)
        for i, name in ipairs(names) do
          local got = {}
          for k, a in ipairs(lists[i]) do got[k] = a.addr end
          assert(#got > 0 and table.concat(got, " ") == getent(name), name)
        end
      end)
      print(#names)
    ]], 60, ("unshare -m sh -c 'mount --bind %s /etc/hosts && exec \"$@\"' -"):format(hosts))
    os.remove(hosts)
    assert.same({ 0, "160\n" }, { it.code, it.out .. it.err })
  end)

  it("needs no thread for numbers", function()
    local ctx <close> = aio.context()
    local polls = ctx:stats().polls
    assert.same({ { family = "inet", addr = "127.0.0.1", port = 80, socktype = "stream" } },
      aio.getaddrinfo("127.0.0.1", 80))
    assert.same({ { family = "inet6", addr = "::1", port = 53, socktype = "dgram" } },
      aio.getaddrinfo("::1", "53", { socktype = "dgram" }))
    assert.equal(polls, ctx:stats().polls)
    assert.is_truthy(aio.getaddrinfo(nil, 80, { passive = true, family = "inet" }))
  end)

  it("knows no port beyond 65535, where the system takes what is left of one", function()
    local EAI_SERVICE = -8
    local said = { nil, "Servname not supported for ai_socktype", EAI_SERVICE }
    local fine = { family = "inet", addr = "127.0.0.1", port = 65535, socktype = "stream" }
    assert.same({ fine }, aio.getaddrinfo("127.0.0.1", 65535))
    assert.same({ fine }, aio.getaddrinfo("127.0.0.1", "65535"))
    for _, port in ipairs { 65536, "65536", 70000, "-1", -1, "4294967376", ("9"):rep(100), math.maxinteger } do
      assert.same(said, { aio.getaddrinfo("127.0.0.1", port) })
      if type(port) == "string" then
        assert.same(said, { aio.listen("127.0.0.1", port) })
        assert.same(said, { aio.listen("*", port) })
        assert.same(said, { aio.connect("127.0.0.1", port) })
        local udp <close> = aio.udp()
        assert.same(said, { udp:bind("127.0.0.1", port) })
        assert.same(said, { udp:connect("127.0.0.1", port) })
      end
    end
    aio.default():close()
  end)

  it("refuses nonsense", function()
    for _, bad in ipairs { { nil }, { {} }, { "a\0b" }, { "x", "y", 1 }, { "x", 1, { family = "ipx" } } } do
      assert.error(function() aio.getaddrinfo(table.unpack(bad, 1, 3)) end)
    end
  end)
end)

describe("aio.getnameinfo", function()
  it("names hosts and services", function()
    assert.same({ "localhost", "http" }, { aio.getnameinfo("127.0.0.1", 80) })
    assert.equal("localhost", (aio.getnameinfo "127.0.0.1"))
    assert.same({ "192.0.2.1", "65432" }, { aio.getnameinfo("192.0.2.1", 65432) }) -- nobody's
    assert.is_string((aio.getnameinfo("::1", 53)))
  end)

  it("refuses nonsense", function()
    for _, bad in ipairs { { nil }, { {} }, { "localhost" }, { "" }, { "127.0.0.1", -1 }, { "127.0.0.1", 65536 },
      { "127.0.0.1", "x" }, { "127.0.0.1", 1.5 } } do
      assert.error(function() aio.getnameinfo(table.unpack(bad, 1, 2)) end)
    end
  end)

  it("is at work in a thread, which a closed context ends", function()
    local ctx = aio.context()
    local task = ctx:spawn(aio.getnameinfo, "127.0.0.1", 80)
    ctx:poll(false)
    assert.equal("waiting", task:status())
    ctx:close()
    assert.not_equal("waiting", task:status())
  end)
end)

describe("the canonical name", function()
  it("is there when it was asked for", function()
    assert.equal("localhost", aio.getaddrinfo("localhost", nil, { canonname = true }).canonname)
    assert.is_nil(aio.getaddrinfo("localhost").canonname)
    assert.is_string(aio.getaddrinfo("127.0.0.1", nil, { canonname = true }).canonname)
  end)
end)
