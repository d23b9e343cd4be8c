-- SPDX-License-Identifier: MIT
--- Arguments: every function and method with all that it was not made for: an error or a refusal, never a signal.

local args = require "spec.support.args"
local child = require "spec.support.child"

describe("whatever it is given, it comes back:", function()
  for _, name in ipairs(args.names()) do
    it(name, function()
      local it = child.run(("io.write(require 'spec.support.args'.try %q)"):format(name), 60)
      assert.equal("", it.err:sub(1, 2000))
      assert.equal(0, it.code)
      assert.is_true(tonumber(it.out:match "%d+$") > 100, it.out)
    end)
  end

  it("all of them are there", function()
    local there = {}
    for _, name in ipairs(args.names()) do there[name] = true end
    local promised = {
      ["aio."] = "context default current run stop now now_ns time type spawn await sleep sleep_until yield"
        .. " self suspend wake enter wait_readable wait_writable timeout shield is_cancelled group gather race map"
        .. " from_callback wrap mutex rwlock condition semaphore event queue tasks dump dump_on"
        .. " wait_signal work getaddrinfo getnameinfo open buffer readfile writefile connect listen pipe socketpair"
        .. " stream udp",
      ["glib."] = "iterate",
      ["context:"] = "poll run stop notify close acquire release stats pollfd events timeout set_polling"
        .. " on_error attach detach source schedule bh timer watch spawn tasks signal set_threads co_schedule",
      ["bh:"] = "schedule schedule_idle cancel scheduled close ref unref",
      ["timer:"] = "arm arm_at disarm armed remaining missed close ref unref",
      ["watch:"] = "set close ref unref",
      ["signal:"] = "close ref unref",
      ["group:"] = "spawn cancel wait errors",
      ["mutex:"] = "lock unlock guard locked",
      ["rwlock:"] = "rdlock wrlock unlock guard upgrade downgrade",
      ["condition:"] = "wait signal broadcast",
      ["semaphore:"] = "acquire release",
      ["event:"] = "wait set clear is_set",
      ["queue:"] = "put get close iter",
      ["file:"] = "read write pread pwrite seek lines sync datasync truncate stat engine getfd close",
      ["buffer:"] = "set tostring capacity",
      ["stream:"] = "read readsome readinto buffered lines write writesome shutdown settimeout setbound getpeername"
        .. " getsockname getfd setfd close",
      ["server:"] = "accept clients getsockname getfd setfd close",
      ["udp:"] = "bind connect sendto send recvfrom recv recvinto join leave settimeout getpeername getsockname"
        .. " getfd close",
      ["task:"] = "join cancel info status name traceback wake keep ref unref",
      ["clock:"] = "pause resume advance autojump",
    }
    for prefix, all in pairs(promised) do
      for what in all:gmatch "[%w_]+" do assert.is_true(there[prefix .. what] or false, prefix .. what) end
    end
  end)
end)

describe("a table of options", function()
  local aio = require "aioloop"

  local function readable()
    local reader, writer = aio.pipe()
    writer:close()
    return reader
  end

  -- Each takes a table: its name, which argument that is, and what calls it (no tail call: the caller is named).
  local calls = {
    { "context", 1, function(options) return (aio.context(options)) end },
    { "set_polling", 1, function(options) return (aio.default():set_polling(options)) end },
    { "watch", 2, function(options) return (aio.default():watch(0, options)) end },
    { "timer", 1, function(options) return (aio.default():timer(options)) end },
    { "listen", 3, function(options) return (aio.listen("127.0.0.1", 0, options)) end },
    { "listen", 2, function(options) return (aio.listen("@options", options)) end },
    { "connect", 3, function(options) return (aio.connect("127.0.0.1", 1, options)) end },
    { "connect", 2, function(options) return (aio.connect("@options", options)) end },
    { "udp", 1, function(options) return (aio.udp(options)) end },
    { "getaddrinfo", 3, function(options) return (aio.getaddrinfo("127.0.0.1", nil, options)) end },
    { "open", 3, function(options) return (aio.open("/dev/null", "r", options)) end },
    { "read", 1, function(options) return (readable():read(options)) end },
  }
  for _, call in ipairs(calls) do
    local name, arg, fn = table.unpack(call)
    it(("of %s, argument %d, knows its names"):format(name, arg), function()
      for _, wrong in ipairs { "nmae", 9, true } do
        local ok, err = pcall(fn, { [wrong] = false })
        assert.is_false(ok)
        local what = wrong == true and "boolean" or wrong
        local said = ("args_spec.lua:%%d+: bad argument #%d to '%s' %%(unknown option '%s'; there are %%l")
        assert.matches(said:format(arg, name, what), err)
      end
    end)
  end

  it("may have its function and arguments in a list, if it is a timer's", function()
    local ctx <close> = assert(aio.context())
    local seen
    ctx:timer({ clock = "boottime", function(...) seen = { n = select("#", ...), ... } end, 1, "two" }):arm(0)
    ctx:run()
    assert.same({ n = 2, 1, "two" }, seen)
    local ok, err = pcall(ctx.timer, ctx, { print, [3] = "beyond a hole" })
    assert.is_false(ok)
    assert.matches("unknown option '3'", err)
  end)
end)

describe("what the module has", function()
  it("is all seen by pairs, and nothing else", function()
    local there, count = {}, 0
    for name, value in pairs(require "aioloop") do
      there[name], count = value, count + 1
    end
    for name in ("connect udp open gather dump run context"):gmatch "%l+" do
      assert.equal("function", type(there[name]), name)
      assert.equal(require "aioloop"[name], there[name])
    end
    assert.is_true(count > 50)
    assert.is_nil(require "aioloop".nothing)
  end)
end)
