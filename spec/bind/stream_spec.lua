-- SPDX-License-Identifier: MIT
--- Streams: what is read and written, in whatever portions it comes, and what ends it.
--
-- Keep  `make shim` runs these a byte at a time, but for what counts on how much a turn moves (#whole), and, where
--       calls are refused by lot, on a first one that succeeds (#first).

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local tasks = require "spec.support.tasks"

local run, finish, settle = tasks.run, tasks.finish, tasks.settle
local eof, closed, timeout = { n = 2, nil, "eof" }, { n = 2, nil, "closed" }, { n = 2, nil, "timeout" }
local EPIPE, ECONNRESET, EMSGSIZE, ENOTSOCK, EINVAL = 32, 104, 90, 88, 22

local pack = table.pack

-- Much, by which a write has to wait; a byte at a time (spec/torture/shim.c) so much is enough.
local MUCH = os.getenv "SHIM" and 1 << 12 or 1 << 20

-- A stream whose peer writes `text` in portions of n bytes, each in a turn of its own, and then shuts down.
local function fed(ctx, text, n)
  local a, b = aio.socketpair()
  ctx:spawn(function()
    for i = 1, #text, n do
      a:write(text:sub(i, i + n - 1))
      aio.yield()
    end
    a:shutdown()
  end)
  return b, a
end

-- What io.read says of the same text, format by format.
local function by_io(text, formats)
  local file = io.tmpfile()
  file:write(text)
  file:seek "set"
  local results = {}
  for _, f in ipairs(formats) do
    local got = file:read(f)
    results[#results + 1] = got == nil and "nil" or got
  end
  file:close()
  return results
end

describe("stream:read", function()
  drivers.each_backend(function(d)
    after_each(tasks.collect)

    it("reads as io.read does, however small the portions", function()
      local texts = { "", "\n", "one", "one\n", "one\ntwo\n\nthree",
        ("x"):rep(MUCH // 200) .. "\n" .. ("y"):rep(MUCH // 100), "1\n0x1F\n -2.5e1rest\n" }
      local formats = { { "l", "l", "l", "l", "l" }, { "L", "L", "L", "L", "L" }, { 1, 2, 3, "l", 4000, 0 },
        { "a", "a" }, { "l", "a", "a" }, { 3, "a" }, { 0, "l", 0 } }
      for _, text in ipairs(texts) do
        for _, list in ipairs(formats) do
          for _, n in ipairs { 1, 3, 4096, 1 << 20 } do
            if n > 1 or #text < 100 then
              local ctx = d.context()
              run(d, ctx, function()
                local s, peer = fed(ctx, text, n)
                local results = {}
                for i, f in ipairs(list) do
                  local got = s:read(f)
                  results[i] = got == nil and "nil" or got
                end
                assert.same(by_io(text, list), results)
                assert.equal(-1, s:close() and s:getfd())
                peer:close()
              end)
              ctx:close()
            end
          end
        end
      end
    end)

    it("reads numerals", function()
      local ctx = d.context()
      run(d, ctx, function()
        local s = fed(ctx, " 12 0x1F\n-2.5e1rest\nnone 7", 1)
        assert.same({ n = 3, 12, 31, -25.0 }, pack(s:read("n", "n", "n")))
        assert.equal("rest", s:read())
        assert.same({ n = 2, nil, "not a number" }, pack(s:read("n", "l")))
      end)
    end)

    it("takes several pieces together, or none", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = aio.socketpair()
        b:settimeout(0.01)
        a:write "12345\nli"
        assert.same(timeout, pack(b:read(2, 3, "l", "l")))
        a:write "ne\n"
        assert.same({ n = 4, "12", "345", "", "line" }, pack(b:read(2, 3, "l", "l")))
        a:write "last"
        a:shutdown()
        assert.same({ n = 3, "last", nil, "eof" }, pack(b:read(10, "l")))
      end)
    end)

    it("reads up to a delimiter", function()
      local ctx = d.context()
      run(d, ctx, function()
        local head = ("h: x\r\n"):rep(300)
        for _, n in ipairs { 1, 2, 3, 1000, 1 << 20 } do
          local s = fed(ctx, head .. "\r\nbody\r\n\r\rend", n)
          assert.equal(head:sub(1, -3), s:read { until_ = "\r\n\r\n" })
          assert.equal("body\r\n", s:read { until_ = "\r\n", keep = true })
          assert.same({ n = 2, "", "\rend" }, pack(s:read({ until_ = "\r" }, { until_ = "none" })))
          assert.same(eof, pack(s:read { until_ = "x" }))
          s:close()
        end
      end)
    end)

    it("refuses what is too long, and takes nothing of it", function()
      local ctx = d.context()
      run(d, ctx, function()
        local too_long = { n = 3, nil, "too long", EMSGSIZE }
        for _, n in ipairs { 1, 100 } do
          local s = fed(ctx, "12345\nmore and more\n", n)
          assert.same(too_long, pack(s:read("l", 4)))
          assert.same(too_long, pack(s:read("L", 4)))
          assert.same(too_long, pack(s:read({ until_ = "\n", max = 4 })))
          assert.same(too_long, pack(s:read("a", 10)))
          assert.equal("12345", s:read("l", 5))
          assert.equal("more and more\n", s:read("a", 100))
          s:close()
        end
      end)
    end)

    it("takes nil for no maximum", function()
      local ctx = d.context()
      run(d, ctx, function()
        local s = fed(ctx, "12345\nmore\nabc", 4)
        assert.equal("12345", s:read("l", nil))
        assert.equal("more", s:read({ until_ = "\n" }, nil))
        assert.equal("abc", s:read("a", nil))
        assert.has_error(function() s:read(nil) end)
        assert.has_error(function() s:read("a", "a", nil) end)
        assert.has_error(function() s:read("a", nil, "a") end)
      end)
    end)

    it("of no bytes waits until there is one, and leaves it there", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = aio.socketpair()
        assert.same(timeout, pack(b:settimeout(0.001):read(0)))
        local reader = ctx:spawn(b.read, b:settimeout(), 0)
        aio.yield()
        a:write "x\n"
        assert.same({ n = 2, true, "" }, pack(reader:join()))
        assert.equal("", b:read(0))
        assert.equal("x", b:read())
        a:close()
        assert.same(eof, pack(b:read(0)))
      end)
    end)

    it("returns what came before the end, then the end", function()
      local ctx = d.context()
      run(d, ctx, function()
        local s = fed(ctx, "abc", 1)
        assert.equal("abc", s:read(10))
        assert.same(eof, pack(s:read(10)))
        assert.same(eof, pack(s:readsome()))
        assert.same(eof, pack(s:read "l"))
        assert.equal("", s:read "a")
      end)
    end)

    it("reads much, in whatever way", function()
      local ctx = d.context()
      run(d, ctx, function()
        local part = {}
        for i = 1, MUCH // 256 do part[i] = ("%07d\n"):format(i) end
        local text = table.concat(part):rep(128)
        local buffer = aio.buffer(100000)
        local ways = {
          function(s) return s:read "a" end,
          function(s) return s:read(#text) end,
          function(s)
            local got = {}
            for some in function() return s:readsome() end do got[#got + 1] = some end
            return table.concat(got)
          end,
          function(s)
            local got = {}
            for n in function() return s:readinto(buffer) end do
              assert.equal(n, #buffer)
              got[#got + 1] = buffer:tostring()
            end
            return table.concat(got)
          end,
        }
        for _, way in ipairs(ways) do
          local a, b = aio.socketpair()
          local writer = ctx:spawn(function()
            assert.equal(a, a:write(text))
            a:shutdown()
          end)
          assert.is_true(way(b) == text)
          aio.await(writer)
        end
        local a, b = aio.pipe()
        ctx:spawn(function()
          for line in text:sub(1, MUCH):gmatch "[^\n]*\n" do b:write(line) end
          b:close()
        end)
        local n = 0
        for line in a:lines() do
          n = n + 1
          if (n - 1) % #part + 1 ~= tonumber(line) then error(line) end
        end
        assert.equal(MUCH // 8, n)
      end)
    end)

    it("goes on while the one before polls for it", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      local reads = { function() return b:read(1) end, function() return b:readsome(1) end,
        function() return b:readinto(aio.buffer(1)) end }
      for _, read in ipairs(reads) do
        local second
        local first = ctx:spawn(function()
          assert(read())
          second = ctx:spawn(read)
          tasks.poll_until(ctx, tasks.all_over(second))
        end)
        settle(d, ctx, { first })
        run(d, ctx, function()
          a:write "1"
          aio.sleep(0)
          a:write "2"
        end)
        finish(d, ctx, { first, second })
      end
      tasks.is_quiet(ctx)
    end)

    it("works without a task", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      local log = {}
      ctx:spawn(function()
        for i = 1, 300 do
          a:write(tostring(i % 10))
          if i % 100 == 0 then a:write "\n" end
          aio.yield()
        end
        a:close()
      end)
      ctx:schedule(function()
        log[1] = #b:read()
        log[2] = #b:read(50)
        log[3], log[4] = "", ""
        repeat log[3] = log[3] .. b:readsome(7 - #log[3]) until #log[3] == 7
        local buffer = aio.buffer(3)
        assert.equal(1, b:readinto(aio.buffer(1)))
        repeat
          local n = b:readinto(buffer)
          assert.equal(n, #buffer)
          log[4] = log[4] .. buffer:tostring()
        until #log[4] >= 3
        log[4] = 1 + #log[4] + #b:read "a"
        log[5] = select(2, b:read())
      end)
      d.wait(ctx, function() return log[5] end)
      assert.same({ 100, 50, "1234567", 145, "eof" }, log)
    end)

    it("lets one read at a time", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      local first = ctx:spawn(b.read, b)
      settle(d, ctx, { first })
      for _, name in ipairs { "read", "readsome" } do
        local second = ctx:spawn(b[name], b):keep()
        d.wait(ctx, tasks.all_over(second))
        local ok, err = second:join()
        assert.is_false(ok)
        assert.matches("another task is reading", err)
      end
      a:write "x\n"
      finish(d, ctx, { first })
      assert.same({ n = 2, true, "x" }, pack(first:join()))
    end)

    it("keeps what has arrived when its time is over, or it is cancelled #first", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = aio.socketpair()
        a:write "par"
        b:settimeout(0.001)
        assert.same(timeout, pack(b:read()))
        b:settimeout(0)
        assert.same(timeout, pack(b:read(10)))
        assert.same(timeout, pack(aio.timeout(0.001, b.settimeout(b).read, b)))
        local task = ctx:spawn(b.read, b)
        aio.sleep(0.001)
        task:cancel()
        task:join()
        a:write "tial\n"
        assert.equal("partial", b:read())
        assert.same(timeout, pack(b:settimeout(0):readsome()))
        a:write "x"
        assert.equal("x", b:readsome())
      end)
    end)

    it("without time finds what is there, however often it is asked #first", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = aio.socketpair()
        b:settimeout(0)
        for _ = 1, 100 do
          a:write "x\ny"
          assert.equal("x", b:read())
          assert.equal("y", b:readsome())
          assert.same(timeout, pack(b:readsome()))
        end
      end)
    end)

    it("does not keep others waiting, however much there is #whole", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      local n, ticks = 0, 0
      local reader = ctx:spawn(function()
        while true do n = n + #b:readsome(1) end
      end)
      local writer = ctx:spawn(function()
        while true do a:write(("x"):rep(1000)) end
      end)
      local function tick()
        ticks = ticks + 1
        ctx:schedule(tick)
      end
      ctx:schedule(tick)
      d.wait(ctx, function() return ticks == 300 and n > 1000 end)
      assert.is_true(n <= 300 * 64, n)
      reader:cancel()
      writer:cancel()
      finish(d, ctx, { reader, writer })
    end)

    it("refuses formats that are none, and changes nothing", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = aio.socketpair()
        a:write "x\n"
        for _, bad in ipairs { "x", "", {}, { until_ = "" }, { until_ = 1 }, { until_ = "x", max = -1 },
          { until_ = "x", max = "1" }, -1, 1.5, true, print, 1 << 60 } do
          assert.has_error(function() b:read(bad) end)
          assert.has_error(function() b:read("l", bad) end)
        end
        assert.has_error(function() b:read("n", 5) end)
        assert.has_error(function() b:readsome(0) end)
        assert.has_error(function() b:readinto(10) end)
        assert.has_error(function() b:readinto(aio.buffer(0)) end)
        assert.equal("x", b:read())
      end)
    end)
  end)
end)

describe("stream:write", function()
  drivers.each_backend(function(d)
    after_each(tasks.collect)

    it("writes pieces of all kinds as one", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = aio.socketpair()
        local buffer = aio.buffer(10):set "buffer"
        assert.equal(a, a:write("string", 1, 2.5, buffer, "", "\0"))
        assert.equal(a, a:write())
        assert.equal(a, a:write("", ""))
        local many = {}
        for i = 1, 5000 do many[i] = i % 3 == 0 and "" or i end
        local reader = ctx:spawn(b.read, b, "a")
        assert.equal(a, a:write(table.unpack(many)))
        a:shutdown()
        assert.equal("string12.5buffer\0" .. table.concat(many), aio.await(reader))
        assert.has_error(function() a:write("x", {}) end)
        assert.has_error(function() a:write(nil) end)
      end)
    end)

    it("waits for a slow reader, and mixes nothing", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      local list, order = {}, {}
      for i = 1, 20 do
        list[i] = ctx:spawn(function()
          local c = string.char(96 + i)
          local n = MUCH // 7
          assert.equal(a, a:write(c:rep(n), aio.buffer(2 * n):set(c:rep(2 * n)), c:rep(n), "\n"))
          order[#order + 1] = i
        end)
      end
      settle(d, ctx, list)
      collectgarbage()
      run(d, ctx, function()
        for i = 1, 20 do
          aio.yield()
          assert.equal(string.char(96 + i):rep(MUCH // 7 * 4), b:read())
        end
      end)
      finish(d, ctx, list)
      for i = 1, 20 do assert.equal(i, order[i]) end
      tasks.is_quiet(ctx)
    end)

    it("goes on while the one before polls for it", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      local filled, written = fds.fill(a:getfd()), false
      local first = ctx:spawn(function()
        a:write "x"
        tasks.poll_until(ctx, function() return written end)
      end)
      local second = ctx:spawn(function()
        a:write(("y"):rep(MUCH))
        written = true
      end)
      settle(d, ctx, { first, second })
      run(d, ctx, b.read, b, filled + 1 + MUCH)
      finish(d, ctx, { first, second })
      tasks.is_quiet(ctx)
    end)

    it("leaves nothing behind when it is given up before its first byte", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      local filled = fds.fill(a:getfd())
      local cancelled, limited = ctx:spawn(a.write, a, ("c"):rep(10)), ctx:spawn(aio.timeout, 0.001, a.write, a, "t")
      local good = ctx:spawn(a.write, a, "good")
      settle(d, ctx, { cancelled, limited, good })
      cancelled:cancel()
      finish(d, ctx, { cancelled, limited })
      assert.same({ n = 3, true, nil, "timeout" }, pack(limited:join()))
      run(d, ctx, function() assert.equal(filled, #b:read(filled)) end)
      finish(d, ctx, { good })
      run(d, ctx, function()
        a:write "!"
        assert.equal("good!", b:read(5))
      end)
      tasks.is_quiet(ctx)
    end)

    it("is finished by the loop when it is given up in its midst #first", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      local text, buffer = ("t"):rep(MUCH), aio.buffer(MUCH):set(("b"):rep(MUCH))
      for _, give_up in ipairs {
        function(task) task:cancel() end,
        function() a:settimeout(0.001) end,
        function() a:settimeout(0) end,
      } do
        a:settimeout()
        local task
        if give_up then
          task = ctx:spawn(function()
            if not task then give_up() end
            return a:write(text, buffer, "end\n")
          end)
          settle(d, ctx, { task })
          give_up(task)
          d.wait(ctx, function() return tasks.over(task) or task:cancel() end)
        end
        buffer:set "changed"
        collectgarbage()
        a:settimeout()
        local after = ctx:spawn(a.write, a, "after\n")
        run(d, ctx, function()
          local got = b:read()
          assert.equal(2 * MUCH + 3, #got)
          assert.is_true(got == text .. ("b"):rep(MUCH) .. "end")
          assert.equal("after", b:read())
        end)
        finish(d, ctx, { after })
        buffer:set(("b"):rep(MUCH))
        tasks.is_quiet(ctx)
      end
    end)

    it("leaves to the loop as much as it may", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      a:setbound(4 * MUCH)
      local text = ("x"):rep(MUCH)
      run(d, ctx, function()
        for _ = 1, 4 do assert.equal(a, a:write(text)) end
      end)
      a = nil -- luacheck: ignore 331
      tasks.collect()
      assert.equal(1, ctx:stats().live)
      run(d, ctx, function() assert.equal(4 * MUCH, #b:read(4 * MUCH)) end)
      d.wait(ctx, function() return ctx:stats().live == 0 end)
      tasks.collect()
      run(d, ctx, function() assert.same(eof, pack(b:read())) end)
    end)

    it("tells a later write of an error that nobody waited for", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      a:setbound(8 * MUCH)
      run(d, ctx, function()
        a:write(("x"):rep(4 * MUCH))
        b:close()
        aio.sleep(0.01)
        assert.equal(EPIPE, select(3, a:write "x"))
        assert.equal(EPIPE, select(3, a:shutdown()))
      end)
    end)

    it("returns the error of a peer that is gone, and raises no signal", function()
      local result = child.run [[
        local aio = require "aioloop"
        aio.run(function()
          local a, b = aio.socketpair()
          b:close()
          assert(select(3, a:write "x") == 32)
          local r, w = aio.pipe()
          r:close()
          assert(select(3, w:write("x", "y")) == 32)
          local r2, w2 = aio.pipe()
          local t = aio.spawn(w2.write, w2, ("x"):rep(1 << 20))
          aio.sleep(0.01)
          r2:close()
          local ok, _, _, errno = t:join()
          assert(ok and errno == 32)
          io.write "alive"
        end)
      ]]
      assert.same({ "alive", "", 0 }, { result.out, result.err, result.code })
      assert(d)
    end)

    it("leaves a signal alone that somebody else is to get", function()
      local ctx, n = d.context(), 0
      ctx:signal("PIPE", function() n = n + 1 end)
      run(d, ctx, function()
        local r, w = aio.pipe()
        r:close()
        assert.equal(EPIPE, select(3, w:write "x"))
        aio.sleep(0.01)
        assert.equal(0, n)
        os.execute("kill -PIPE " .. drivers.pid())
      end)
      d.wait(ctx, function() return n == 1 end)
      ctx:close()
    end)
  end)
end)

describe("a stream", function()
  drivers.each_backend(function(d)
    after_each(tasks.collect)

    it("that is closed wakes whoever waits for it", function()
      local ctx = d.context()
      for _, name in ipairs { "close", "__close", "__gc" } do
        local a, b = aio.socketpair()
        local list = {}
        for i, wait in ipairs {
          function() return a:read() end,
          function() return a:write(("x"):rep(1 << 20)) end,
          function() return a:write "y" end,
          function() return a:shutdown() end,
        } do
          list[i] = ctx:spawn(wait)
        end
        settle(d, ctx, list)
        getmetatable(a)[name](a)
        finish(d, ctx, list)
        for _, task in ipairs(list) do assert.same({ n = 3, true, nil, "closed" }, pack(task:join())) end
        run(d, ctx, function()
          assert.is_true(a:close())
          for _, method in ipairs { "read", "readsome", "write", "shutdown", "getpeername", "getsockname" } do
            assert.same(closed, pack(a[method](a)), method)
          end
          assert.equal(-1, a:getfd())
          b:close()
        end)
        tasks.is_quiet(ctx)
      end
    end)

    it("that is closed in the moment it is ready has no more for its reader", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      local reader = ctx:spawn(b.read, b)
      settle(d, ctx, { reader })
      ctx:spawn(function()
        a:write "line\n"
        b:close()
      end)
      finish(d, ctx, { reader })
      assert.same({ n = 3, true, nil, "closed" }, pack(reader:join()))
    end)

    it("that nobody holds is closed", function()
      local ctx = d.context()
      local function make()
        local list = {}
        for i = 1, 10 do
          aio.socketpair()
          aio.pipe()
          list[i] = ctx:spawn(function() aio.timeout(0.001, function() return (aio.pipe()):read() end) end)
        end
        finish(d, ctx, list)
      end
      make() -- the first time something may be made that stays
      tasks.collect()
      local before = fds.count()
      make()
      tasks.collect()
      assert.equal(before, fds.count())
    end)

    it("outlives the context in which somebody waited for it #first", function()
      local a, b = aio.socketpair()
      local first = d.context()
      local reader, writer = first:spawn(b.read, b), first:spawn(b.write, b, ("x"):rep(MUCH))
      settle(d, first, { reader, writer })
      first:close()
      local ctx = d.context()
      run(d, ctx, function()
        a:write "line\n"
        assert.equal("line", b:read())
        assert.equal(125, select(3, b:write "x")) -- the rest of what had begun is lost
        b:close()
        a:close()
      end)
      tasks.is_quiet(ctx)
    end)

    it("can be read by one task while another one writes", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      local text = ("x"):rep(3 * MUCH)
      local list = {}
      for _, s in ipairs { a, b } do
        list[#list + 1] = ctx:spawn(s.write, s, text)
        list[#list + 1] = ctx:spawn(function() assert.equal(#text, #s:read(#text)) end)
      end
      finish(d, ctx, list)
      tasks.is_quiet(ctx)
    end)

    it("survives its coroutines being closed from outside", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      fds.fill(b:getfd())
      for _, name in ipairs { "read", "write", "readsome" } do
        local function fn() b[name](b, name == "write" and "w" or 1) end
        local co = coroutine.create(fn)
        ctx:co_schedule(co)
        d.turns(ctx, 3)
        coroutine.close(co)
      end
      collectgarbage()
      a:write "x\n"
      fds.read(a:getfd())
      d.turns(ctx, 5)
      b:close()
      a:close()
      d.turns(ctx, 5)
    end)

    it("of which the fd was closed behind our back says closed, and leaves the number alone", function()
      local ctx = d.context()
      for _, direction in ipairs { "read", "write" } do
        local a = aio.socketpair()
        local fd = a:getfd()
        fds.fill(fd)
        local task = ctx:spawn(a[direction], a, direction == "write" and "x" or "l")
        settle(d, ctx, { task })
        fds.close(fd)
        finish(d, ctx, { task })
        assert.same({ n = 3, true, nil, "closed" }, pack(task:join()))
        local r = aio.socketpair()
        a:close()
        assert.is_true(fds.is_open(r:getfd()))
      end
      tasks.is_quiet(ctx)
    end)

    it("takes a number that was used again for what it is", function()
      local ctx = d.context()
      run(d, ctx, function()
        for _ = 1, 20 do
          local a, b = aio.socketpair()
          local n = a:getfd()
          local reader = ctx:spawn(a.readsome, a)
          aio.yield()
          a:close()
          local c, e = aio.socketpair()
          assert.is_true(c:getfd() == n or e:getfd() == n or true)
          local reader2 = ctx:spawn(c.read, c, 3)
          aio.yield()
          e:write "new"
          assert.same({ n = 3, true, nil, "closed" }, pack(reader:join()))
          assert.same({ n = 2, true, "new" }, pack(reader2:join()))
          b:close()
          c:close()
          e:close()
        end
      end)
    end)

    it("delivers what came before a reset", function()
      local ctx = d.context()
      local server = assert(aio.listen("127.0.0.1", 0))
      run(d, ctx, function()
        local client = assert(aio.connect("127.0.0.1", (select(2, server:getsockname()))))
        local peer = server:accept()
        peer:write "to be lost"
        client:write "abc\npart"
        assert.equal("abc", peer:read())
        client:close() -- with something unread: a reset
        local got = pack(peer:read())
        assert.same({ n = 3, nil, got[2], ECONNRESET }, got)
        assert.same("part", peer:readsome(100))
        assert.equal(ECONNRESET, select(3, peer:readsome()))
        assert.is_nil(peer:write "x")
      end)
    end)

    it("says who it is", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = aio.socketpair()
        local r, w = aio.pipe()
        assert.same({ n = 1, "" }, pack(a:getsockname()))
        assert.equal(ENOTSOCK, select(3, r:getpeername()))
        assert.equal(ENOTSOCK, select(3, w:shutdown()))
        assert.equal("stream", aio.type(a))
        assert.matches("^aioloop.stream %(open, fd %d+%)", tostring(b))
        a:close()
        assert.matches("^aioloop.stream %(closed%)", tostring(a))
      end)
    end)

    it("gives its fd away, and takes another", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = aio.socketpair()
        local c, e = aio.socketpair()
        local fd = a:getfd()
        assert.equal(a, a:setfd(c:getfd()))
        assert.equal(c, c:setfd(-1))
        e:write "x"
        assert.equal("x", a:readsome())
        assert.is_true(fds.is_open(fd))
        local other = assert(aio.stream(fd))
        b:write "y"
        assert.equal("y", other:readsome())
        local task = ctx:spawn(a.read, a)
        aio.yield()
        assert.has_error(function() a:setfd(-1) end)
        a:close()
        task:join()
        assert.has_error(function() a:setfd(-2) end)
        assert.has_error(function() a:setfd "x" end)
      end)
    end)

    it("is made of an fd, of a file and of an object", function()
      local ctx = d.context()
      run(d, ctx, function()
        local r, w = fds.pipe()
        local reader, writer = assert(aio.stream(r)), assert(aio.stream(w))
        writer:write "one"
        assert.equal("one", reader:read(3))
        writer:close()
        assert.is_false(fds.is_open(w))
        reader:close()

        local pipe <close> = assert(io.popen("echo from a child; cat >/dev/null", "r"))
        local out <close> = assert(aio.stream(pipe))
        assert.equal("from a child", out:read())
        assert.same(eof, pack(out:read()))

        local a, b = aio.socketpair()
        local object = { getfd = function() return a:getfd() end }
        local copy = assert(aio.stream(object))
        assert.not_equal(a:getfd(), copy:getfd())
        b:write "x"
        assert.equal("x", copy:read(1))
        copy:close()
        assert.equal(a, a:write "still open")

        local file <close> = io.tmpfile()
        assert.equal(EINVAL, select(3, aio.stream(file)))
        assert.same({ nil, 9 }, { aio.stream(1000000), select(3, aio.stream(1000000)) })
        assert.has_error(function() aio.stream {} end)
        assert.has_error(function() aio.stream(-1) end)
      end)
    end)

    it("makes an fd non-blocking for as long as it is open", function()
      local function blocking(fd)
        for line in io.lines(("/proc/self/fdinfo/%d"):format(fd)) do
          local flags = line:match "flags:%s*(%d+)"
          if flags then return tonumber(flags, 8) & tonumber("4000", 8) == 0 end
        end
      end
      local ctx = d.context()
      run(d, ctx, function()
        local pipe <close> = assert(io.popen("cat >/dev/null", "w"))
        local s = assert(aio.stream(pipe))
        local fd = s:getfd()
        assert.is_false(blocking(fd))
        local copy = assert(fds.dup(fd))
        assert.equal(s, s:write "x")
        s:close()
        assert.is_true(blocking(copy))
        fds.close(copy)
        assert.is_truthy(pipe:write "y")
      end)
    end)

    it("waits by itself, whoever makes its file block #whole", function()
      local ctx = d.context()
      run(d, ctx, function()
        local r, w = fds.pipe()
        local one, two = assert(aio.stream { getfd = function() return r end }), assert(aio.stream(r))
        local out = assert(aio.stream { getfd = function() return w end })
        local ticks = 0
        local _ <close> = aio.current():timer(function()
          ticks = ticks + 1
          if ticks == 3 then fds.write(w, "x") end
        end):arm(0.005, 0.005)
        fds.block(r)
        fds.block(w)
        assert.equal("x", two:read(1)) -- it has not been read yet, so it is tried at once
        assert.is_true(ticks >= 3)
        one:close() -- the flag is of both
        local reader = aio.spawn(two.read, two, 1)
        ticks = 0
        aio.sleep(0.002)
        assert.equal("waiting", reader:status())
        assert.same({ true, "x" }, { reader:join() })
        fds.block(w)
        local writer = aio.spawn(out.write, out, ("y"):rep(1 << 20))
        aio.sleep(0.002)
        assert.equal("waiting", writer:status())
        assert.equal(1 << 20, #two:read(1 << 20))
        assert.is_true((writer:join()))
        two:close()
        out:close()
        fds.close(w)
      end)
      tasks.is_quiet(ctx)
    end)

    it("is made of a device that cannot be watched, and never waits for it", function()
      local ctx = d.context()
      run(d, ctx, function()
        local function device(path, mode)
          local file <close> = assert(io.open(path, mode or "r"))
          return assert(aio.stream(file))
        end
        local random, zero, null = device "/dev/urandom", device "/dev/zero", device "/dev/null"
        local sink, full = device("/dev/null", "w"), device("/dev/full", "w")
        local others = 0
        local ticker = aio.spawn(function()
          while true do
            others = others + 1
            aio.yield()
          end
        end):keep()
        for _ = 1, 200 do assert.equal(10, #random:readsome(10)) end
        assert.is_true(others > 1)
        assert.equal(1 << 20, #random:read(1 << 20))
        assert.equal(("\0"):rep(1 << 18), zero:read(1 << 18))
        assert.same({ n = 2, nil, "timeout" }, pack(aio.timeout(0.02, zero.read, zero, 1 << 33)))
        local endless = aio.spawn(zero.read, zero, "a"):keep()
        aio.sleep(0.01)
        endless:cancel()
        assert.is_false((endless:join()))
        for _ = 1, 100 do
          assert.same({ n = 2, nil, "eof" }, pack(null:read()))
          assert.equal(sink, sink:write "x")
          assert.equal("No space left on device", select(2, full:write "x"))
        end
        assert.equal(sink, sink:write(("x"):rep(1 << 20)))
        ticker:cancel()
        ticker:join()
        for _, stream in ipairs { random, zero, null, sink, full } do stream:close() end
      end)
      tasks.is_quiet(ctx)
    end)

    it("is not made of a socket of records, of which bytes would be lost", function()
      local a, b = fds.socketpair "seqpacket"
      assert.same({ n = 3, nil, ("fd %d is no stream"):format(a), 22 }, pack(aio.stream(a)))
      assert.is_true(fds.is_open(a))
      fds.close(a)
      fds.close(b)
    end)

  end)
end)

describe("stream:writesome", function()
  drivers.each_backend(function(d)
    after_each(tasks.collect)

    it("writes what is meant by i and j, as string.sub has them #whole", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = aio.socketpair()
        local text = "abcdef"
        local ends = { false, 1, 2, 3, 6, 7, 0, -1, -2, -6, -7, math.maxinteger, math.mininteger }
        for _, data in ipairs { text, aio.buffer(10):set(text) } do
          for _, i in ipairs(ends) do
            for _, j in ipairs(ends) do
              local want = text:sub(i or 1, j or -1)
              assert.equal(#want, a:writesome(data, i or nil, j or nil))
              assert.same(#want > 0 and { n = 1, want } or timeout, pack(b:settimeout(0):readsome()))
            end
          end
        end
        assert.equal(2, a:writesome(12))
        for _, bad in ipairs { {}, true, print } do
          assert.has_error(function() a:writesome(bad) end)
          assert.has_error(function() a:writesome("x", bad) end)
        end
        assert.has_error(function() a:writesome() end)
      end)
    end)

    it("takes no more than the kernel does, and waits for it to take anything #first", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      local text, n = ("0123456789"):rep(1 << 17), 0
      local writer = ctx:spawn(function()
        local parts = 0
        while n < #text do
          n = n + a:writesome(text, n + 1)
          parts = parts + 1
        end
        a:shutdown()
        return parts
      end)
      settle(d, ctx, { writer })
      assert.is_true(n > 0 and n < #text)
      assert.is_true(run(d, ctx, b.read, b, "a") == text)
      finish(d, ctx, { writer })
      assert.is_true(select(2, writer:join()) > 1)
      tasks.is_quiet(ctx)
    end)

    it("keeps its place in line, and has written nothing when it is given up", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      local filled = fds.fill(a:getfd())
      local first = ctx:spawn(a.write, a, "1")
      settle(d, ctx, { first })
      local second, given_up = ctx:spawn(a.writesome, a, "2"), ctx:spawn(a.writesome, a, "x")
      settle(d, ctx, { second, given_up })
      local third = ctx:spawn(a.write, a, "3")
      settle(d, ctx, { third })
      given_up:cancel()
      finish(d, ctx, { given_up })
      a:settimeout(0)
      assert.same(timeout, pack(a:writesome "y"))
      run(d, ctx, b.read, b, filled)
      finish(d, ctx, { first, second, third })
      assert.equal("123", run(d, ctx, b.read, b, 3))
      assert.same({ n = 2, true, 1 }, pack(second:join()))
    end)

    it("is told of a close, and of an end", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      fds.fill(a:getfd())
      local writer = ctx:spawn(a.writesome, a, "x")
      settle(d, ctx, { writer })
      ctx:schedule(a.close, a)
      finish(d, ctx, { writer })
      assert.same({ n = 3, true, nil, "closed" }, pack(writer:join()))
      assert.same(closed, pack(a:writesome "x"))
      local c, e = aio.socketpair()
      fds.fill(c:getfd())
      writer = ctx:spawn(c.writesome, c, "x")
      settle(d, ctx, { writer })
      e:close()
      finish(d, ctx, { writer })
      assert.equal(EPIPE, select(4, writer:join()))
      b:close()
      c:close()
    end)
  end)
end)

describe("stream:buffered", function()
  it("says what has arrived of something that is not complete", function()
    local a, b = aio.socketpair()
    b:settimeout(0.001)
    assert.equal(0, b:buffered())
    a:write "12345"
    assert.equal(0, b:buffered()) -- nobody has looked
    assert.same(timeout, pack(b:read()))
    assert.equal(5, b:buffered())
    assert.equal("12", b:readsome(2))
    assert.equal(3, b:buffered())
    b:close()
    assert.equal(0, b:buffered())
    a:close()
  end)
end)

describe("a stream", function()
  it("that was used on a context goes on with one in its place, on another backend", function()
    for _, backend in ipairs { "poll", "epoll", "poll", "epoll" } do
      local a, b = aio.socketpair()
      for _, first in ipairs { "epoll", "poll" } do
        local ctx = assert(aio.context { backend = first })
        a:settimeout(0.001)
        ctx:run(function() assert.same({ n = 2, nil, "timeout" }, table.pack(a:readsome())) end)
        ctx:close()
        ctx = nil -- luacheck: ignore
        collectgarbage()
        collectgarbage()
        local other <close> = assert(aio.context { backend = backend })
        a:settimeout(5)
        other:run(function()
          aio.spawn(function()
            aio.yield()
            b:write "hi"
          end)
          assert.equal("hi", a:readsome())
        end)
      end
      a:close()
      b:close()
    end
  end)

  it("forgets a lost write with its fd", function()
    local ctx <close> = assert(aio.context())
    ctx:run(function()
      local a, b = aio.socketpair()
      local c, d = aio.socketpair()
      a:setbound(1 << 24)
      a:write(("x"):rep(1 << 22))
      b:close()
      while a:write "y" do aio.yield() end
      local fd = c:getfd()
      c:setfd(-1)
      assert.equal(a, a:setfd(fd))
      assert.equal(a, a:write "hello")
      assert.equal("hello", d:readsome())
      a:close()
      d:close()
    end)
  end)

  it("writes no memory that a finaliser has freed", function()
    local it = child.run [[
      local aio = require "aioloop"
      local function full(bytes)
        local a, b = aio.socketpair()
        a:setbound(1 << 26)
        a:write(("x"):rep(bytes))
        return a, b
      end
      for _, queued in ipairs { 0, 1 << 19 } do
        local a, b = full(queued)
        local elsewhere = full(1 << 19)
        local buffer = aio.buffer(5000)
        buffer:set(("z"):rep(5000))
        local target
        local meta = {}
        function meta.__gc()
          if target then
            local it = target
            target = nil
            elsewhere:write(it)
            it:set "CHANGED"
            elsewhere:close()
          end
          setmetatable({}, meta)
        end
        local number = 1 + 0.5
        setmetatable({}, meta)
        collectgarbage("incremental", 1, 1000, 40)
        collectgarbage()
        target = buffer
        local ok, err = pcall(a.write, a, buffer, number, "tail")
        assert(ok or err:find "was changed while", err)
        target = nil
        collectgarbage("incremental", 200, 100, 13)
        b:settimeout(0.05)
        local got = {}
        local some
        repeat
          some = b:readsome()
          got[#got + 1] = some
        until not some
        got = table.concat(got):sub(queued + 1)
        assert(got == "" or got == "CHANGED1.5tail" or got == ("z"):rep(5000) .. "1.5tail", #got)
      end
      io.write "fine"
    ]]
    assert.same({ 0, "fine", "" }, { it.code, it.out, it.err })
  end)
end)
