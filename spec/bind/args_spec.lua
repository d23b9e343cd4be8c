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
