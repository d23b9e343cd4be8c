-- SPDX-License-Identifier: MIT
--- Watches: readiness, replacing and closing at awkward moments, fds that go behind our back, many fds.

local aio = require "aioloop"
local fds = require "fds"
local drivers = require "spec.support.drivers"
local logger = require "spec.support.logger"

local pipe, socketpair, close = drivers.pipe, drivers.socketpair, drivers.close

local function nop() end

describe("watch", function()
  drivers.each_backend(function(d)
    it("calls read while there is something to read, and write while there is room", function()
      local ctx, reads, writes = d.context(), 0, 0
      local a, b = socketpair()
      local watch = ctx:watch(a, {
        read = function() reads = reads + 1 end,
        write = function() writes = writes + 1 end,
      })
      d.turns(ctx, 3)
      assert.equal(0, reads)
      assert.equal(3, writes)
      fds.write(b, "x")
      d.turns(ctx, 3)
      assert.equal(3, reads) -- level-triggered: nobody consumed it
      assert.equal("x", fds.read(a))
      d.turns(ctx, 3)
      assert.equal(3, reads)
      fds.fill(a)
      writes = 0
      d.turns(ctx, 3)
      assert.equal(0, writes)
      watch:close()
      fds.read(b)
      d.turns(ctx, 3)
      assert.equal(0, writes)
    end)

    it("ends a wait, and calls without arguments", function()
      local ctx, got = d.context(), nil
      local r, w = pipe()
      ctx:watch(r, {
        read = function(...)
          assert.equal(0, select("#", ...))
          got = fds.read(r)
        end,
      })
      -- Its sleep lets the wait begin: nothing else can tell when that is.
      local child <close> = assert(io.popen(("sleep 0.01; echo done >/proc/%d/fd/%d"):format(drivers.pid(), w)))
      d.wait(ctx, function() return got end)
      assert.equal("done\n", got)
      assert(child)
    end)

    it("a handler that signals itself again runs once in each turn", function()
      local ctx, runs = d.context(), 0
      local r, w = pipe()
      ctx:watch(r, {
        read = function()
          runs = runs + 1
          fds.read(r)
          if runs < 10 then fds.write(w, "x") end
        end,
      })
      fds.write(w, "x")
      for turn = 1, 10 do
        d.turn(ctx)
        assert.equal(turn, runs)
      end
      d.turns(ctx, 3)
      assert.equal(10, runs)
    end)

    it("counts exactly with two of them", function()
      local ctx, counts = d.context(), { 0, 0 }
      local ends = {}
      for i = 1, 2 do
        local r, w = pipe()
        ends[i] = w
        ctx:watch(r, { read = function() counts[i] = counts[i] + #fds.read(r) end })
      end
      for i = 1, 20 do
        fds.write(ends[1], "x")
        if i % 4 == 0 then fds.write(ends[2], "x") end
        d.turn(ctx)
      end
      assert.same({ 20, 5 }, counts)
    end)

    it("what is written before the wait is not lost", function()
      local ctx, got = d.context(), ""
      local r, w = pipe()
      fds.write(w, "early")
      ctx:watch(r, { read = function() got = got .. fds.read(r) end })
      d.wait(ctx, function() return got == "early" end)
    end)

    it("set replaces all callbacks; none leaves the fd alone", function()
      local ctx = d.context()
      local log, note = logger()
      local a, b = socketpair()
      fds.write(b, "x")
      local watch = ctx:watch(a, { read = function() note "r1" end, write = function() note "w1" end })
      assert.equal(watch, watch:set { read = function() note "r2" end })
      d.turn(ctx)
      assert.same({ "r2" }, log)
      assert.equal(watch, watch:set {})
      d.turns(ctx, 3)
      assert.same({ "r2" }, log)
      watch:set { write = function() note "w2" end }
      d.turn(ctx)
      assert.same({ "r2", "w2" }, log)
    end)

    it("replaced by a neighbour while ready, only the new callback runs", function()
      local ctx = d.context()
      local log, note = logger()
      local watches = {}
      for i = 1, 2 do
        local r, w = pipe()
        fds.write(w, "x")
        watches[i] = ctx:watch(r, {
          read = function()
            note("old " .. i)
            watches[3 - i]:set { read = function() note("new " .. 3 - i) end }
            watches[i]:set {}
          end,
        })
      end
      d.turns(ctx, 3)
      local first = log[1] == "old 1" and 1 or 2
      assert.equal("old " .. first, log[1])
      for i = 2, #log do assert.equal("new " .. 3 - first, log[i]) end
      assert.is_true(#log >= 2)
    end)

    it("closed by a neighbour while ready, does not run", function()
      local ctx, runs, watches = d.context(), 0, {}
      for i = 1, 5 do
        local r, w = pipe()
        fds.write(w, "x")
        watches[i] = ctx:watch(r, {
          read = function()
            runs = runs + 1
            for j = 1, 5 do watches[j]:close() end
          end,
        })
      end
      d.turns(ctx, 3)
      assert.equal(1, runs)
      assert.matches("closed", tostring(watches[1]))
      assert.error_matches(function() watches[1]:set {} end, "closed watch")
    end)

    it("closed in its read, is not called for the write that is pending too", function()
      local ctx = d.context()
      local log, note = logger()
      local a, b = socketpair()
      local watch
      local function ending(what)
        return function()
          note(what)
          watch:close()
          watch:close()
        end
      end
      watch = ctx:watch(a, { read = ending "read", write = ending "write" })
      fds.write(b, "x")
      d.turns(ctx, 3)
      assert.same({ "read" }, log)
      close(a) -- the fd is ours, and still open
    end)

    it("on an end that was closed by its peer is readable: the end", function()
      local ctx, got = d.context(), nil
      local r, w = pipe()
      local watch
      watch = ctx:watch(r, {
        read = function()
          got = fds.read(r)
          watch:close()
        end,
      })
      close(w)
      d.wait(ctx, function() return got end)
      assert.equal("", got)
    end)

    it("data before a hang-up are all delivered", function()
      local ctx, got = d.context(), {}
      local a, b = socketpair()
      fds.write(b, "0123456789")
      close(b)
      local watch
      watch = ctx:watch(a, {
        read = function()
          local piece = fds.read(a, 4)
          got[#got + 1] = piece
          if piece == "" then watch:close() end
        end,
      })
      d.wait(ctx, function() return got[#got] == "" end)
      assert.same({ "0123", "4567", "89", "" }, got)
    end)

    it("a hang-up is told to a writer when nobody reads", function()
      local ctx, calls = d.context(), 0
      local a, b = socketpair()
      fds.fill(a)
      local watch
      watch = ctx:watch(a, {
        write = function()
          calls = calls + 1
          watch:close()
        end,
      })
      d.turns(ctx, 3)
      assert.equal(0, calls)
      close(b)
      d.wait(ctx, function() return calls > 0 end)
      assert.equal(1, calls)
      local r, w = pipe()
      fds.fill(w)
      watch = ctx:watch(w, {
        write = function()
          calls = calls + 1
          watch:close()
        end,
      })
      close(r)
      d.wait(ctx, function() return calls > 1 end)
    end)

    it("a hang-up that nobody wants does not make the loop spin", function()
      local ctx = d.context()
      local a, b = socketpair()
      local watch = ctx:watch(a, { read = nop })
      d.turns(ctx, 2)
      watch:set {}
      close(b)
      local turns = d.pass(ctx, 0.05)
      assert.is_true(turns <= 7, turns .. " turns")
      watch:set { read = function() watch:close() end }
      d.wait(ctx, function() return tostring(watch):find "closed" end)
    end)

    it("read and write of one fd may belong to different watches", function()
      local ctx = d.context()
      local log, note = logger()
      local a, b = socketpair()
      local reader = ctx:watch(a, { read = function() note "read" end })
      local writer = ctx:watch(a, { write = function() note "write" end })
      fds.write(b, "x")
      d.turn(ctx)
      assert.same({ "read", "write" }, log)
      reader:close()
      d.turn(ctx)
      assert.same({ "read", "write", "write" }, log)
      reader = ctx:watch(a, { read = function() note "again" end })
      writer:close()
      d.turn(ctx)
      assert.equal("again", log[4])
      assert.equal(4, #log)
      reader:close()
    end)

    it("a second one for the same direction raises, and changes nothing", function()
      local ctx, reads = d.context(), 0
      local a, b = socketpair()
      local first = ctx:watch(a, { read = function() reads = reads + 1 end })
      assert.error_matches(function() ctx:watch(a, { read = nop }) end, "fd %d+ has a watch for that direction")
      assert.error_matches(function() ctx:watch(a, { write = nop, read = nop }) end, "has a watch")
      local writer = ctx:watch(a, { write = nop }) -- the failed one left its write direction free
      assert.error_matches(function() writer:set { read = nop } end, "has a watch")
      fds.write(b, "x")
      d.turn(ctx)
      assert.equal(1, reads)
      first:close()
      ctx:watch(a, { read = nop }):close()
    end)

    it("a regular file is refused: nil, message, errno", function()
      local ctx = d.context()
      local file <close> = assert(io.open "Makefile")
      local watch, message, errno = ctx:watch(file, { read = nop })
      assert.is_nil(watch)
      assert.matches("regular file", message)
      assert.equal(1, errno) -- EPERM
      assert.equal(0, ctx:stats().watches)
    end)

    it("a number that is no open fd is refused", function()
      local ctx = d.context()
      local r, w = pipe()
      close(r)
      close(w)
      for _, fd in ipairs { r, 1000000 } do
        local watch, _, errno = ctx:watch(fd, { read = nop })
        assert.is_nil(watch)
        assert.equal(9, errno) -- EBADF
      end
      assert.has_error(function() ctx:watch(-1, { read = nop }) end)
      assert.equal(0, ctx:stats().watches)
    end)

    it("not consumed, is not entered again by a nested turn", function()
      local ctx, depth, deepest, runs = d.context(), 0, 0, 0
      local other = 0
      local r, w = pipe()
      local r2, w2 = pipe()
      fds.write(w, "x")
      ctx:watch(r, {
        read = function()
          runs = runs + 1
          depth = depth + 1
          deepest = math.max(deepest, depth)
          if runs == 1 then fds.write(w2, "y") end
          d.turns(ctx, 3)
          depth = depth - 1
        end,
      })
      ctx:watch(r2, { read = function() other = other + #fds.read(r2) end })
      d.turn(ctx)
      assert.equal(1, deepest)
      assert.equal(1, runs)
      assert.equal(1, other) -- but everybody else is served
      d.turns(ctx, 2)
      assert.equal(3, runs) -- and it is still ready
      assert.equal(1, deepest)
    end)

    it("not consumed, does not make a nested wait spin", function()
      local ctx, turns = d.context(), nil
      local r, w = pipe()
      fds.write(w, "x")
      ctx:watch(r, {
        read = function()
          turns = turns or d.pass(ctx, 0.03)
          fds.read(r)
        end,
      })
      d.turn(ctx)
      assert.is_true(turns <= 6, turns .. " turns")
    end)

    describe("whose fd is closed behind its back", function()
      -- ctx with a watch on an fd, and what was reported
      local function watched(fd)
        local ctx, reports = d.context(), {}
        local reads = 0
        ctx:on_error(function(err, where) reports[#reports + 1] = where .. ": " .. err end)
        local watch = ctx:watch(fd, { read = function() reads = reads + 1 end })
        return ctx, watch, reports, function() return reads end
      end

      local function reported_once(ctx, watch, reports, fd)
        d.wait(ctx, function() return #reports > 0 end)
        local turns = d.pass(ctx, 0.06)
        assert.equal(1, #reports)
        assert.matches("^watch: .*fd " .. fd .. " was closed while it was watched", reports[1])
        assert.matches("closed", tostring(watch))
        assert.equal(0, ctx:stats().watches)
        assert.is_true(turns <= 7, turns .. " turns")
      end

      it("reports once, and is closed", function()
        local r = pipe()
        local ctx, watch, reports = watched(r)
        d.turns(ctx, 2)
        close(r)
        reported_once(ctx, watch, reports, r)
      end)

      it("by a callback, reports once, and is closed", function()
        local r = pipe()
        local ctx, watch, reports = watched(r)
        ctx:schedule(close, r)
        reported_once(ctx, watch, reports, r)
      end)

      it("reports once for both directions", function()
        local ctx, reports = d.context(), 0
        ctx:on_error(function() reports = reports + 1 end)
        local a = socketpair()
        local watch = ctx:watch(a, { read = nop, write = function() close(a) end })
        d.wait(ctx, function() return reports > 0 end)
        d.turns(ctx, 3)
        assert.equal(1, reports)
        assert.matches("closed", tostring(watch))
      end)

      it("while a duplicate keeps it open and full, is called 5 times at most", function()
        local r, w = pipe()
        local ctx, watch, reports, reads = watched(r)
        d.turns(ctx, 2)
        fds.write(w, "x")
        drivers.dup(r)
        close(r)
        reported_once(ctx, watch, reports, r)
        assert.is_true(reads() <= 5, reads() .. " calls")
      end)

      it("gives its number to a new watch, which gets nothing meant for the old one", function()
        local r, w = pipe()
        local ctx, watch, reports, reads = watched(r)
        d.turns(ctx, 2)
        fds.write(w, "x")
        close(r)
        close(w)
        local news = 0
        local r2, w2 = pipe()
        assert.equal(r, r2)
        ctx:watch(r2, { read = function() news = news + #fds.read(r2) end })
        d.turns(ctx, 3)
        assert.equal(0, news)
        assert.equal(0, reads())
        fds.write(w2, "abc")
        d.wait(ctx, function() return news > 0 end)
        assert.equal(3, news)
        assert.equal(1, #reports)
        assert.matches("closed", tostring(watch))
      end)
    end)

    it("a number closed and used again within a batch gets no event of its former owner", function()
      local ctx, wrong, right, watches, ends = d.context(), 0, 0, {}, {}
      local function neighbour_of(i)
        return function()
          local old = ends[3 - i]
          watches[3 - i]:close()
          watches[i]:close()
          close(old[1])
          close(old[2])
          local r, w = pipe() -- the same numbers
          assert.equal(old[1], r)
          ctx:watch(r, {
            read = function()
              if fds.read(r) == "new" then right = right + 1 else wrong = wrong + 1 end
            end,
          })
          ctx:schedule(fds.write, w, "new")
        end
      end
      for i = 1, 2 do
        ends[i] = { pipe() }
        fds.write(ends[i][2], "old")
        watches[i] = ctx:watch(ends[i][1], { read = neighbour_of(i) })
      end
      d.wait(ctx, function() return right > 0 end)
      d.turns(ctx, 3)
      assert.equal(1, right)
      assert.equal(0, wrong)
    end)

    it("a number closed and used again later is a new fd, ten times", function()
      local ctx = d.context()
      for i = 1, 10 do
        local r, w = pipe()
        local got
        local watch = ctx:watch(r, { read = function() got = fds.read(r) end })
        fds.write(w, "turn " .. i)
        d.wait(ctx, function() return got end)
        assert.equal("turn " .. i, got)
        watch:close()
        close(r)
        close(w)
        if i % 2 == 0 then d.turn(ctx) end
      end
      assert.equal(0, ctx:stats().watches)
    end)

    it("a duplicate may be watched beside the original", function()
      local ctx = d.context()
      local log, note = logger()
      local r, w = pipe()
      local twin = drivers.dup(r)
      local one = ctx:watch(r, { read = function() note "original" end })
      ctx:watch(twin, { read = function() note "twin" end })
      fds.write(w, "x")
      d.turn(ctx)
      table.sort(log)
      assert.same({ "original", "twin" }, log)
      one:close()
      close(r)
      d.turn(ctx)
      assert.equal("twin", log[3])
      assert.equal(3, #log)
    end)

    it("closed and watched again, over and over, loses nothing", function()
      local ctx, got = d.context(), 0
      local r, w = pipe()
      for _ = 1, 100 do
        local watch = ctx:watch(r, { read = function() got = got + #fds.read(r) end })
        fds.write(w, "x")
        d.turn(ctx)
        watch:close()
        d.turn(ctx)
      end
      assert.equal(100, got)
    end)

    it("an error in a handler leaves the others to run in the same turn", function()
      local ctx, errors, runs = d.context(), 0, 0
      ctx:on_error(function() errors = errors + 1 end)
      for _ = 1, 3 do
        local r, w = pipe()
        fds.write(w, "x")
        ctx:watch(r, {
          read = function()
            runs = runs + 1
            error "oops"
          end,
        })
      end
      d.turn(ctx)
      assert.equal(3, runs)
      assert.equal(3, errors)
    end)

    it("a watch is held while it has a callback, and the object of its fd with it", function()
      local ctx, got = d.context(), nil
      local weak = setmetatable({}, { __mode = "v" })
      local r, w = pipe()
      local function make()
        weak.object = { getfd = function() return r end }
        weak.watch = ctx:watch(weak.object, { read = function() got = fds.read(r) end })
      end
      make()
      collectgarbage()
      collectgarbage()
      assert.is_not_nil(weak.object)
      fds.write(w, "x")
      d.wait(ctx, function() return got end)
      weak.watch:close()
      collectgarbage()
      collectgarbage()
      assert.is_nil(weak.watch)
      assert.is_nil(weak.object)
    end)
  end)

  describe("of many fds", function()
    after_each(drivers.cleanup)

    -- n socket pairs, both ends watched; each end hears from the other
    local function hear_from_all(d, n)
      local ctx, left, ends = d.context(), 2 * n, {}
      for i = 1, n do
        local a, b = socketpair()
        ends[i] = { a, b }
        for j = 1, 2 do
          local fd = ends[i][j]
          assert(ctx:watch(fd, { read = function() left = left - #fds.read(fd) end }))
        end
      end
      assert.equal(2 * n, ctx:stats().watches)
      for i = n, 1, -1 do
        for j = 1, 2 do fds.write(ends[i][j], "x") end
      end
      d.wait(ctx, function() return left == 0 end)
      d.turns(ctx, 2)
      assert.equal(0, left)
      return math.max(ends[n][1], ends[n][2])
    end

    local limit = fds.limit(5100)
    for _, name in ipairs { "poll", "glib" } do
      for _, backend in ipairs(drivers.backends) do
        local n = math.min(limit - 100, 5000) // 2
        if name == "glib" and backend == "poll" then n = math.min(n, 600) end -- GLib's own lists are quadratic in them
        it(("hears from %d fds through %s on %s #slow"):format(2 * n, name, backend), function()
          local highest = hear_from_all(drivers.new(name, backend), n)
          if limit > 1200 then assert.is_true(highest >= 1024) end
        end)
      end
    end
  end)

  describe("with a test for adaptive polling", function()
    after_each(drivers.cleanup)

    it("needs read=", function()
      local ctx = drivers.context()
      local r = pipe()
      assert.error_matches(function() ctx:watch(r, { poll = nop }) end, "poll= needs read=")
      assert.has_error(function() ctx:watch(r, { poll = nop, write = nop }) end)
      local watch = ctx:watch(r, { read = nop })
      assert.error_matches(function() watch:set { poll = nop } end, "poll= needs read=")
    end)

    for _, backend in ipairs(drivers.backends) do
      it("is asked while the loop spins, and then read is called, on " .. backend, function()
        local ctx = drivers.context { backend = backend, poll_max_ns = 50000000 }
        local asked, reads, ready = 0, 0, false
        local r = pipe()
        ctx:watch(r, {
          poll = function()
            asked = asked + 1
            return ready
          end,
          read = function() reads = reads + 1 end,
        })
        local timer = ctx:timer(function() ready = asked > 0 end):arm(0.001, 0.001)
        while not ready do ctx:poll(1) end
        timer:disarm()
        assert.equal(0, reads)
        assert.is_true(ctx:poll(true)) -- would sleep for ever, were it not asked
        assert.equal(1, reads)
      end)
    end

    it("is not asked when polling is off, and never while its handler runs", function()
      local ctx = drivers.context()
      local asked, reads = 0, 0
      local r, w = pipe()
      ctx:watch(r, {
        poll = function()
          asked = asked + 1
          return true
        end,
        read = function()
          reads = reads + 1
          local before = asked
          assert.is_false(ctx:poll(0.002))
          assert.equal(before, asked)
        end,
      })
      assert.is_false(ctx:poll(0.005))
      assert.equal(0, asked)
      ctx:set_polling { max_ns = 1000000 }
      assert.is_true(ctx:poll(0.1))
      assert.equal(1, reads)
      assert.is_true(asked > 0)
      assert(w)
    end)

    it("may raise, or close its own watch", function()
      local ctx, errors = drivers.context { poll_max_ns = 1000000 }, 0
      ctx:on_error(function() errors = errors + 1 end)
      local r, w = pipe()
      local watch = ctx:watch(r, { poll = function() error "oops" end, read = nop })
      ctx:poll(0.002)
      assert.is_true(errors > 0)
      watch:close()
      watch = ctx:watch(r, {
        poll = function()
          watch:close()
          return true
        end,
        read = function() error "called" end,
      })
      errors = 0
      ctx:poll(0.002)
      ctx:poll(false)
      assert.equal(0, errors)
      assert.matches("closed", tostring(watch))
      assert(w)
    end)

    it("does not keep fds without one waiting", function()
      local ctx = drivers.context { poll_max_ns = 1000000000 }
      local r, w = pipe()
      local r2, w2 = pipe()
      local got
      ctx:watch(r, { poll = function() return false end, read = nop })
      ctx:watch(r2, { read = function() got = fds.read(r2) end })
      for _ = 1, 20 do -- learn to spin
        ctx:timer(nop):arm(0.0005)
        ctx:poll(1)
      end
      fds.write(w2, "x")
      while not got do ctx:poll(1) end
      assert.equal("x", got)
      assert(w)
    end)
  end)

  describe("arguments", function()
    after_each(drivers.cleanup)

    it("of the wrong kind raise", function()
      local ctx = drivers.context()
      local r = pipe()
      for _, wrong in ipairs { "0", "", 1.5, -1, {}, nop, true, 2 ^ 40 } do
        assert.has_error(function() ctx:watch(wrong, { read = nop }) end)
      end
      for _, wrong in ipairs { 1, "x", nop, true } do
        assert.has_error(function() ctx:watch(r, wrong) end)
        assert.has_error(function() ctx:watch(r, { read = wrong == nop and 1 or wrong }) end)
      end
      assert.has_error(function() ctx:watch(r) end)
      assert.has_error(function() ctx:watch() end)
      assert.equal(0, ctx:stats().watches)
      ctx:watch(r, { read = nop }):close()
    end)

    it("may be a file of io's, and an object with getfd, fileno or pollfd", function()
      local ctx, got = drivers.context(), nil
      local file <close> = assert(io.popen "echo hello")
      local watch
      watch = ctx:watch(file, {
        read = function()
          got = file:read "l"
          watch:close()
        end,
      })
      while not got do ctx:poll(10) end
      assert.equal("hello", got)
      for _, method in ipairs { "getfd", "fileno", "pollfd" } do
        local r, w = pipe()
        fds.write(w, method)
        local object = { [method] = function() return r end }
        got = nil
        ctx:watch(object, { read = function() got = fds.read(r) end })
        while not got do ctx:poll(10) end
        assert.equal(method, got)
      end
    end)

    it("a closed file raises, and what an object answers is checked", function()
      local ctx = drivers.context()
      local file = assert(io.popen "true")
      file:close()
      assert.error_matches(function() ctx:watch(file, { read = nop }) end, "closed")
      for _, answer in ipairs { "x", -1, 1.5, {} } do
        assert.has_error(function() ctx:watch({ getfd = function() return answer end }, { read = nop }) end)
      end
      assert.error_matches(function() ctx:watch({ getfd = function() error "mine" end }, { read = nop }) end, "mine")
    end)

    it("a terminal and a character device are watched", function()
      local ctx, calls = drivers.context(), 0
      local master <close> = io.open("/dev/ptmx", "r+")
      if master then
        local watch <close> = assert(ctx:watch(master, { write = function() calls = calls + 1 end }))
        ctx:poll(1)
        assert.is_true(calls > 0)
        assert(watch)
      end
    end)
  end)
end)

describe("adaptive polling", function()
  after_each(drivers.cleanup)

  -- One wait, for about so long. Not a timer's: that may be due before the wait begins, and then there is none.
  local function wait(ctx, seconds)
    ctx:poll(false) -- takes the notification
    ctx:poll(seconds)
    return ctx:stats().poll_ns
  end

  it("is off unless asked for", function()
    local ctx = drivers.context()
    for _ = 1, 3 do assert.equal(0, wait(ctx, 0.001)) end
  end)

  it("learns: starts at 4 us, doubles up to the maximum, drops when a wait was longer", function()
    local ctx = drivers.context { poll_max_ns = 300000000 }
    assert.equal(4000, wait(ctx, 0.001))
    assert.equal(8000, wait(ctx, 0.001))
    assert.equal(16000, wait(ctx, 0.001))
    assert.equal(0, wait(ctx, 0.301))
    assert.equal(4000, wait(ctx, 0.001))
  end)

  it("grows and shrinks by the factors given, and forgets when they change", function()
    local ctx = drivers.context { poll_max_ns = 300000000, poll_grow = 10, poll_shrink = 4 }
    assert.equal(4000, wait(ctx, 0.002))
    assert.equal(40000, wait(ctx, 0.002))
    assert.equal(10000, wait(ctx, 0.301))
    ctx:set_polling { max_ns = 300000000, grow = 3 }
    assert.equal(0, ctx:stats().poll_ns)
    assert.equal(4000, wait(ctx, 0.002))
    assert.equal(12000, wait(ctx, 0.002))
    ctx:set_polling {}
    assert.equal(0, wait(ctx, 0.001))
  end)

  it("neither fires a timer early nor leaves it late", function()
    local ctx = drivers.context { poll_max_ns = 1000000000 }
    for _ = 1, 20 do
      local due, at = aio.now() + 0.001, nil
      ctx:timer(function() at = aio.now() end):arm(0.001)
      while not at do ctx:poll(true) end
      assert.is_true(at >= due)
    end
  end)

  it("parameters are checked", function()
    local ctx = drivers.context()
    for _, name in ipairs { "max_ns", "grow", "shrink" } do
      for _, wrong in ipairs { -1, "1", {}, 0 / 0, math.huge } do
        assert.error_matches(function() ctx:set_polling { [name] = wrong } end, name)
      end
    end
    assert.has_error(function() ctx:set_polling() end)
    assert.has_error(function() aio.context { poll_max_ns = -1 } end)
  end)
end)
