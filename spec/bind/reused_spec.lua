-- SPDX-License-Identifier: MIT
--- Streams and servers of which others close the fd, behind their back, and use its number again.
--
-- Keep  no wait hangs, no loop spins, and what has the number now is neither read nor closed by who has waited for the
--       old.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local tasks = require "spec.support.tasks"

local run, finish, settle = tasks.run, tasks.finish, tasks.settle
local closed = { n = 2, nil, "closed" }
local EBADF = 9

local pack = table.pack

-- Another file gets the stream's number; returns the end that it is talked to by.
local function take_number(stream)
  local a, b = fds.socketpair()
  assert(fds.dup2(a, stream:getfd()))
  fds.close(a)
  return b
end

-- Ping-pong for a while, so that nothing is asked of the kernel but bytes.
local function warm_up(a, b, read)
  local reader = aio.spawn(function()
    for _ = 1, 5 do assert(read(a)) end
  end)
  for _ = 1, 5 do
    aio.sleep(0)
    b:write "x"
    aio.sleep(0)
  end
  aio.await(reader)
end

-- Until they wait, and the kernel knows it.
local function wait_all(d, ctx, ...)
  settle(d, ctx, { ... })
  d.turns(ctx, 2)
end

local function is_untouched(fd, peer)
  assert.is_true(fds.is_open(fd))
  assert.equal(7, fds.write(peer, "to whom"))
  assert.equal("to whom", fds.read(fd))
  fds.close(fd)
  fds.close(peer)
end

local reads = {
  function(s) return s:read(1) end,
  function(s) return s:readsome(1) end,
  function(s) return s:readinto(aio.buffer(1)) end,
}

describe("a number that others have used again", function()
  drivers.each_backend(function(d)
    after_each(tasks.collect)

    it("between two reads ends the next one that waits", function()
      local ctx = d.context()
      for _, read in ipairs(reads) do
        local a, b = aio.socketpair()
        run(d, ctx, warm_up, a, b, read)
        local fd, peer = a:getfd(), take_number(a)
        assert.same(closed, pack(run(d, ctx, read, a)))
        assert.equal(-1, a:getfd())
        a:close()
        is_untouched(fd, peer)
        b:close()
      end
      tasks.is_quiet(ctx)
    end)

    it("while somebody waits to read ends that, or is what he reads", function()
      local ctx = d.context()
      for _, read in ipairs(reads) do
        local a, b = aio.socketpair()
        local task = ctx:spawn(read, a)
        wait_all(d, ctx, task)
        local fd, peer = a:getfd(), take_number(a)
        if d.backend == "poll" then
          fds.write(peer, "x")
          finish(d, ctx, { task })
          assert.is_true(select(2, task:join()) ~= nil)
          a:close()
          fds.close(peer)
        else
          finish(d, ctx, { task })
          assert.same({ n = 3, true, nil, "closed" }, pack(task:join()))
          a:close()
          is_untouched(fd, peer)
        end
        b:close()
      end
      tasks.is_quiet(ctx)
    end)

    it("while somebody waits to write does not keep him", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      fds.fill(a:getfd())
      local first, second = ctx:spawn(a.write, a, "one"), ctx:spawn(a.shutdown, a)
      wait_all(d, ctx, first, second)
      local fd, peer = a:getfd(), take_number(a)
      finish(d, ctx, { first, second })
      if d.backend == "poll" then -- the new file can be written to
        assert.equal("one", fds.read(peer))
        a:close()
        fds.close(peer)
      else
        assert.same({ n = 3, true, nil, "closed" }, pack(first:join()))
        assert.same({ n = 3, true, nil, "closed" }, pack(second:join()))
        a:close()
        is_untouched(fd, peer)
      end
      b:close()
      tasks.is_quiet(ctx)
    end)

    it("while a duplicate keeps the old file does not make the loop spin", function()
      local ctx = d.context()
      local a, b = aio.socketpair()
      run(d, ctx, warm_up, a, b, reads[2])
      local twin = fds.dup(a:getfd())
      local fd, peer = a:getfd(), take_number(a)
      local task = ctx:spawn(a.readsome, a)
      run(d, ctx, b.write, b, "for the twin")
      finish(d, ctx, { task })
      assert.same({ n = 3, true, nil, "closed" }, pack(task:join()))
      assert.is_true(d.pass(ctx, 0.05) < 20)
      a:close()
      is_untouched(fd, peer)
      assert.equal("for the twin", fds.read(twin))
      fds.close(twin)
    end)

    it("while somebody waits in accept ends that #first", function()
      local ctx = d.context()
      for _, waits in ipairs { true, false } do
        local name = "@aioloop-spec-reused-" .. tostring(ctx)
        local server = assert(aio.listen(name))
        run(d, ctx, function()
          for _ = 1, 3 do
            local task = aio.spawn(server.accept, server)
            aio.sleep(0)
            local client <close> = assert(aio.connect(name))
            local peer <close> = assert(aio.await(task))
            assert.is_true(client ~= peer)
          end
        end)
        local task = waits and ctx:spawn(server.accept, server)
        if waits then wait_all(d, ctx, task) end
        local fd, peer = server:getfd(), take_number(server)
        if not waits then
          local got = pack(run(d, ctx, server.accept, server)) -- accept(2) says what it is
          assert.is_nil(got[1])
          assert.is_true(fds.is_open(fd))
          server:close() -- whose number it takes to be its own
          fds.close(peer)
        elseif d.backend == "poll" then
          fds.write(peer, "x")
          finish(d, ctx, { task })
          assert.is_nil((select(2, task:join())))
          server:close()
          fds.close(peer)
        else
          finish(d, ctx, { task })
          assert.same({ n = 3, true, nil, "closed" }, pack(task:join()))
          server:close()
          is_untouched(fd, peer)
        end
      end
      tasks.is_quiet(ctx)
    end)

    it("is not closed again by who was told that it is closed #first", function()
      local ctx = d.context()
      run(d, ctx, function()
        local a, b = aio.socketpair()
        b:write "rest"
        assert.same({ n = 2, nil, "timeout" }, pack(a:settimeout(0):read()))
        local fd = a:getfd()
        fds.close(fd)
        for _ = 1, 2 do assert.same(closed, pack(a:read())) end -- no line, and no end
        assert.equal("rest", a:read(4))
        assert.same(closed, pack(a:readsome()))
        assert.same(closed, pack(a:write "x"))
        local c = aio.socketpair()
        assert.equal(fd, c:getfd())
        a:close()
        assert.is_true(fds.is_open(fd))
        assert.same(closed, pack(a:read()))

        local w, peer = aio.socketpair()
        fd = w:getfd()
        fds.close(fd)
        assert.same(closed, pack(w:write "x"))
        assert.equal(-1, w:getfd())
        local e = aio.socketpair()
        assert.equal(fd, e:getfd())
        w:close()
        assert.is_true(fds.is_open(fd))

        local server = assert(aio.listen "@aioloop-spec-reused")
        fd = server:getfd()
        fds.close(fd)
        assert.same(closed, pack(server:accept()))
        local f = aio.socketpair()
        assert.equal(fd, f:getfd())
        server:close()
        assert.is_true(fds.is_open(fd))

        local r, other = aio.pipe() -- of which the number is its own, whatever the error
        assert.equal(EBADF, select(3, r:write "x"))
        other:write "y"
        assert.equal("y", r:readsome())
        for _, s in ipairs { b, c, e, f, peer, r, other } do s:close() end
      end)
    end)
  end)
end)
