-- SPDX-License-Identifier: MIT
--- Files: the same with every engine, wherever one waits; given up, closed and cut short in every state; system calls.

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local files = require "spec.support.files"
local jobs = require "spec.support.jobs"
local tasks = require "spec.support.tasks"

local over = tasks.all_over

-- Those that never do it at once, in the page cache.
local engines = { table.unpack(files.engines, 2) }

local folder

local function open(name, mode, options) return assert(aio.open(folder:path(name), mode, options)) end

local function settle(d, ctx)
  d.wait(ctx, function() return ctx:stats().live == 0 end)
  tasks.is_quiet(ctx)
end

-- The leak checker needs a thread of its own, and stumbles over those of others where a state is not closed.
local without_leaks = "ASAN_OPTIONS=exitcode=99:detect_leaks=0"

-- One for each, made together.
local root, folders

setup(function()
  root = files.folder()
  folders = root:folders(400)
end)

before_each(function() folder = table.remove(folders) end)
teardown(function() getmetatable(root).__close(root) end)

describe("a file", function()
  drivers.each(function(d)
    for _, engine in ipairs(files.engines) do
      describe("with engine " .. engine.name, function()
        for _, scenario in ipairs(files.scenarios) do
          it(scenario.name, function()
            local ctx = d.context()
            tasks.run(d, ctx, files.run, scenario, ctx, folder, engine.options)
            settle(d, ctx)
          end)
        end
      end)
    end
  end)

  it("is the same in the main chunk, in a callback and in a generator", function()
    local ctx = aio.default()
    local ways = {
      function(fn, ...) fn(...) end,
      function(...)
        ctx:schedule(...)
        ctx:poll()
      end,
      function(fn, ...) ctx:run(aio.wrap(fn), ...) end,
    }
    local inside = folder:folders(#files.scenarios * #ways)
    for n, scenario in ipairs(files.scenarios) do
      for i, way in ipairs(ways) do
        local engine = files.engines[(n + i) % #files.engines + 1]
        way(files.run, scenario, ctx, table.remove(inside), engine.options)
      end
    end
    assert.equal(0, ctx:stats().live)
    ctx:close()
  end)

  it("is not waited for where nobody can wait", function()
    local file <close> = open("a", "w+", { engine = "threads" })
    local function reads() return file:pread(1, 0) end
    assert.error_matches(coroutine.wrap(reads), "cannot wait inside a coroutine that the loop does not run")
    local task = aio.spawn(function() table.sort({ 1, 2, 3 }, reads) end):keep()
    local ok, err = task:join()
    assert.is_false(ok)
    assert.matches("cannot wait inside C function 'table.sort'", err)
    aio.default():close()
  end)

  it("has a path without zero bytes, a known mode and known options", function()
    local path = folder:path "none"
    for _, bad in ipairs {
      {}, { {} }, { "a\0b" }, { path, 1 }, { path, "" }, { path, "x" }, { path, "rx" }, { path, "r++" },
      { path, "w\0" }, { path, "r", 1 }, { path, "w", { engine = "aio" } }, { path, "w", { engine = 1 } },
      { path, "w", { perm = -1 } }, { path, "w", { perm = "x" } }, { path, "w", { perm = 1.5 } },
    } do
      assert.error(function() aio.open(table.unpack(bad, 1, 3)) end)
    end
    assert.is_nil(io.open(path))
    local err = select(2, pcall(aio.open, path, "x"))
    assert.matches("^%S*file_spec.lua:%d+: bad argument #2 to 'open' %(invalid mode%)", select(2, pcall(function()
      local file = aio.open(path, "x")
      return file
    end)))
    assert.matches("bad argument #2", err)
  end)

  it("refuses what is no format, count or offset, and has not moved then", function()
    local file <close> = open("a", "w+")
    file:write "text"
    file:seek "set"
    for _, bad in ipairs { { "x" }, { "" }, { "*" }, { -1 }, { 1.5 }, { {} }, { "l", "?" }, { 0 / 0 },
      { (1 << 38) + 1 } } do
      assert.error(function() file:read(table.unpack(bad)) end)
    end
    for _, bad in ipairs { {}, { 1 }, { -1, 0 }, { 1, -1 }, { 1, 0.5 }, { "x", 0 }, { {}, 0 }, { io.stderr, 0 } } do
      assert.error(function() file:pread(table.unpack(bad)) end)
    end
    for _, bad in ipairs { {}, { "x" }, { "x", -1 }, { {}, 0 }, { nil, 0 }, { io.stderr, 0 } } do
      assert.error(function() file:pwrite(table.unpack(bad, 1, 2)) end)
    end
    for _, bad in ipairs { { {} }, { "x", nil, "y" }, { true } } do
      assert.error(function() file:write(table.unpack(bad, 1, 3)) end)
    end
    for _, bad in ipairs { { "middle" }, { "set", "x" }, { "set", 0.5 }, { 1 } } do
      assert.error(function() file:seek(table.unpack(bad)) end)
    end
    for _, bad in ipairs { {}, { -1 }, { 0.5 }, { "x" } } do
      assert.error(function() file:truncate(table.unpack(bad)) end)
    end
    assert.equal(0, file:seek())
    assert.equal("text", file:read())
  end)

  it("is read in as many pieces as one asks for", function()
    local file <close> = open("a", "w+")
    file:write(("x"):rep(240))
    file:seek "set"
    local ones = {}
    for i = 1, 240 do ones[i] = 1 end
    assert.equal(240, select("#", file:read(table.unpack(ones))))
  end)

  it("asks for no memory that it has no bytes for", function()
    local file <close> = open("a", "w+")
    file:write(("x"):rep(100000))
    file:seek "set"
    assert.equal(100000, #file:read(1 << 38))
    local zeros <close> = assert(aio.open "/dev/zero")
    assert.equal(100, #zeros:read(100))
  end)

  it("that nobody holds is closed", function()
    local ctx <close> = aio.context()
    ctx:run(open, "a", "w")
    tasks.collect()
    local before = fds.count()
    for _, engine in ipairs(files.engines) do ctx:run(open, "a", "w", engine.options) end
    assert.is_true(fds.count() >= before + #files.engines)
    tasks.collect()
    assert.equal(before, fds.count())
  end)
end)

-- ---- in flight ---------------------------------------------------------------------------------------------

local SIZE = 1 << 18

-- Every operation that waits. The file has these bytes, before and afterwards.
local data = files.bytes(SIZE)
local operations = {
  { "pread", function(file) return file:pread(SIZE, 0) == data end },
  { "pread", function(file) return file:pread(aio.buffer(SIZE), 0) == SIZE end },
  { "pwrite", function(file) return file:pwrite(data, 0) == SIZE end },
  { "pwrite", function(file) return file:pwrite(aio.buffer(SIZE):set(data), 0) == SIZE end },
  { "read", function(file) return file:seek "set" and file:read "a" == data end },
  { "write", function(file) return file:seek "set" and file:write(data) == file end },
  { "sync", function(file) return file:sync() end },
  { "datasync", function(file) return file:datasync() end },
  { "truncate", function(file) return file:truncate(SIZE) end },
  { "stat", function(file) return file:stat().size == SIZE end },
}

-- Begins all of them, each on a file of its own; fn(call) is done with each in a task.
local function begin(ctx, list, fn)
  local calls = {}
  for i, file in ipairs(list) do
    local call = { name = operations[i][1], file = file }
    call.task = ctx:spawn(function()
      call.co = coroutine.running()
      return fn(call, operations[i][2], file)
    end):keep()
    calls[i] = call
  end
  return calls
end

local function all_over(d, ctx, calls)
  for _, call in ipairs(calls) do d.wait(ctx, over(call.task)) end
end

local function refusal(errno, ...)
  local got = table.pack(...)
  assert.is_nil(got[1])
  assert.equal(errno, got[3])
end

describe("what a file is doing", function()
  drivers.each(function(d)
    for _, engine in ipairs(engines) do
      local function prepare(opts)
        local ctx = d.context(opts)
        folder:put("a", data)
        return ctx, tasks.run(d, ctx, open, "a", "r+", engine.options)
      end

      local function open_all(ctx)
        return tasks.run(d, ctx, function()
          return aio.map(operations, function() return open("a", "r+", engine.options) end)
        end)
      end

      it(("with engine %s ends with closed when the file is closed"):format(engine.name), function()
        local ctx, file = prepare()
        tasks.run(d, ctx, operations[1][2], file) -- whatever fds that takes
        local before = fds.count()
        local list = open_all(ctx)
        local calls = begin(ctx, list, function(call, fn)
          local spy = setmetatable({}, { __index = function(spy, name)
            return function(_, ...)
              if name ~= call.name then return call.file[name](call.file, ...) end
              call.results = table.pack(call.file[name](call.file, ...))
              return spy
            end
          end })
          pcall(fn, spy)
        end)
        for _, open_file in ipairs(list) do ctx:spawn(open_file.close, open_file) end -- in the same turn
        all_over(d, ctx, calls)
        for _, call in ipairs(calls) do assert.same({ n = 2, nil, "closed" }, call.results, call.name) end
        settle(d, ctx)
        assert.equal(before, fds.count())
        assert.is_true(folder:get "a" == data)
        file:close()
      end)

      it(("with engine %s can be cancelled and timed out at any moment"):format(engine.name), function()
        local ctx, file = prepare()
        local list = open_all(ctx)
        for turns = 1, 4 do
          local calls = begin(ctx, list, function(_, fn, f) return fn(f) end)
          d.turns(ctx, turns)
          for _, call in ipairs(calls) do call.task:cancel() end
          all_over(d, ctx, calls)
          for _, call in ipairs(calls) do
            assert.is_true(call.task:status() == "cancelled" or select(2, call.task:join()) == true, call.name)
          end
          calls = begin(ctx, list, function(_, fn, f) return aio.timeout((turns - 1) / 5000, fn, f) end)
          all_over(d, ctx, calls)
          for _, call in ipairs(calls) do
            local got = table.pack(call.task:join())
            assert.is_true(got[2] == true or got[2] == nil and got[3] == "timeout", call.name)
          end
        end
        settle(d, ctx)
        for _, f in ipairs(list) do assert.equal(0, f:seek "set") end -- nobody uses the position
        assert.is_true(folder:get "a" == data)
        file:close()
      end)

      it(("with engine %s stands it that the file is closed at any moment"):format(engine.name), function()
        local ctx, file = prepare()
        for turns = 1, 4 do
          local list = open_all(ctx)
          local calls = begin(ctx, list, function(_, fn, f) return pcall(fn, f) end)
          d.turns(ctx, turns)
          for _, f in ipairs(list) do f:close() end
          all_over(d, ctx, calls)
        end
        settle(d, ctx)
        assert.is_true(folder:get "a" == data)
        file:close()
      end)

      it(("with engine %s stands it that its coroutine is closed"):format(engine.name), function() -- not by the loop
        local ctx, file = prepare()
        local list = open_all(ctx)
        for turns = 1, 4 do
          local calls = begin(ctx, list, function(_, fn, f) return fn(f) end)
          d.turns(ctx, turns)
          for _, call in ipairs(calls) do
            if call.task:status() == "waiting" then coroutine.close(call.co) end
          end
          settle(d, ctx)
          for _, f in ipairs(list) do assert.equal(0, f:seek "set") end
        end
        assert.is_true(folder:get "a" == data)
        file:close()
      end)

      it(("with engine %s stands it that the context is closed at any moment"):format(engine.name), function()
        for turns = 0, 4 do
          aio.default():close()
          tasks.collect()
          local before = fds.count()
          local ctx, file = prepare()
          local list = open_all(ctx)
          local calls = begin(ctx, list, function(_, fn, f) return fn(f) end)
          d.turns(ctx, turns)
          ctx:close()
          for _, call in ipairs(calls) do
            assert.is_true(call.task:status() == "cancelled" or call.task:status() == "ended")
          end
          assert.is_true(folder:get "a" == data)
          for _, f in ipairs(list) do -- another context finds it usable
            assert.equal(0, f:seek "set")
            assert.equal(data:sub(1, 10), f:read(10))
            f:close()
          end
          file:close()
          aio.default():close()
          assert.equal(before, fds.count(), turns .. " turns")
        end
      end)

      it(("with engine %s leaves a buffer alone once nobody waits for it"):format(engine.name), function()
        local ctx, file = prepare()
        local pattern = ("p"):rep(SIZE)
        for turns = 1, 4 do
          for _, at_once in ipairs { true, false } do
            local buffer = aio.buffer(SIZE):set(pattern)
            local task = ctx:spawn(file.pread, file, buffer, 0)
            d.turns(ctx, turns)
            if task:status() == "waiting" then
              assert.error_matches(function() buffer:set "x" end, "the buffer is being read into or written from")
              assert.error_matches(function() buffer:tostring() end, "being read into")
              assert.error_matches(function() return #buffer end, "being read into")
            end
            task:cancel()
            d.wait(ctx, over(task))
            if task:status() == "cancelled" then
              if at_once then
                assert.equal(0, #buffer)
                buffer:set(pattern)
              end
              settle(d, ctx)
              assert.is_true(buffer:tostring() == (at_once and pattern or ""))
            else
              assert.is_true(buffer:tostring() == data)
            end
          end
        end
        file:close()
      end)

      it(("with engine %s writes what a buffer had, which keeps it when nobody waits"):format(engine.name), function()
        local ctx, file = prepare()
        for turns = 1, 4 do
          local buffer = aio.buffer(SIZE):set(data)
          local task = ctx:spawn(file.pwrite, file, buffer, 0)
          d.turns(ctx, turns)
          if task:status() == "waiting" then
            assert.error_matches(function() buffer:set "x" end, "being read into or written from")
          end
          task:cancel()
          d.wait(ctx, over(task))
          assert.is_true(buffer:tostring() == data)
          buffer:set(("?"):rep(SIZE))
          settle(d, ctx)
          assert.is_true(buffer:tostring() == ("?"):rep(SIZE))
          assert.is_true(folder:get "a" == data)
        end
        file:close()
      end)

      it(("with engine %s: a read that is given up has taken nothing"):format(engine.name), function()
        local ctx, file = prepare()
        folder:put("a", "one\ntwo\n" .. ("x"):rep(100000) .. "\nlast\n")
        assert.equal("one", tasks.run(d, ctx, file.read, file))
        for turns = 1, 4 do
          local task = ctx:spawn(file.read, file, "l", "l", "l", "l", "l")
          d.turns(ctx, turns)
          task:cancel()
          d.wait(ctx, over(task))
          if task:status() == "cancelled" then
            assert.equal(4, file:seek())
          else
            file:seek("set", 4)
          end
        end
        local rest = tasks.join(d, ctx, file.read, file, "l", "l", "l")
        assert.same({ n = 4, true, "two", ("x"):rep(100000), "last" }, rest)
        settle(d, ctx)
        file:close()
      end)

      it(("with engine %s: the position is used by one task at a time"):format(engine.name), function()
        local ctx, file = prepare()
        local first = ctx:spawn(file.read, file, "a")
        local said = {}
        ctx:spawn(function()
          said[1] = select(2, pcall(file.read, file))
          said[2] = select(2, pcall(file.write, file, "x"))
          said[3] = select(2, pcall(file.seek, file))
          said[4] = file:pread(10, 0)
        end)
        d.wait(ctx, over(first))
        d.wait(ctx, function() return #said == 4 end)
        assert.matches("file:read: another task is in file:read, which uses the file's position", said[1])
        assert.matches("file:write: another task is in file:read", said[2])
        assert.matches("file:seek: another task is in file:read", said[3])
        assert.equal(data:sub(1, 10), said[4])
        settle(d, ctx)
        file:close()
      end)

      it(("with engine %s: what is read beside a write is not kept"):format(engine.name), function()
        local ctx, file = prepare()
        for round = 1, 30 do
          folder:put("a", "first\n" .. ("old\n"):rep(500))
          tasks.run(d, ctx, file.seek, file, "set")
          local reader = ctx:spawn(file.read, file)
          local writer = ctx:spawn(file.pwrite, file, ("new\n"):rep(500), 6)
          if round % 2 == 0 then reader, writer = writer, reader end
          d.wait(ctx, over(reader, writer))
          assert.equal("new", tasks.run(d, ctx, file.read, file))
        end
        settle(d, ctx)
        file:close()
      end)
    end

    it("waits behind other jobs, and is taken back when it is cancelled or closed there", function()
      local ctx, gate <close> = d.context(), jobs.gate()
      folder:put("a", data)
      local file = tasks.run(d, ctx, open, "a", "r+", { engine = "threads" })
      assert(ctx:set_threads(0, 1))
      local holder = ctx:spawn(aio.work, jobs.pass, gate.at)
      gate:await(d, ctx, 1)
      local cancelled, list, closed = {}, {}, {}
      for _, operation in ipairs(operations) do
        if operation[1] ~= "read" and operation[1] ~= "write" then
          cancelled[#cancelled + 1] = ctx:spawn(operation[2], file)
        end
      end
      cancelled[#cancelled + 1] = ctx:spawn(operations[5][2], file)
      cancelled[#cancelled + 1] = ctx:spawn(aio.open, folder:path "never made", "w")
      d.turns(ctx, 3)
      for _, task in ipairs(cancelled) do assert.is_true(task:cancel()) end
      d.wait(ctx, over(table.unpack(cancelled)))
      for _, task in ipairs(cancelled) do assert.equal("cancelled", task:status()) end
      for i, call in ipairs { "pread", "pwrite", "sync", "datasync", "truncate", "stat", "write" } do
        list[i] = ctx:spawn(function()
          closed[i] = table.pack(file[call](file, table.unpack(call == "pwrite" and { "x", 0 } or { 1, 0 })))
        end)
      end
      d.turns(ctx, 3)
      file:close()
      d.wait(ctx, over(table.unpack(list)))
      for i = 1, #list do assert.same({ n = 2, nil, "closed" }, closed[i]) end
      gate:open()
      d.wait(ctx, over(holder))
      settle(d, ctx)
      refusal(2, tasks.run(d, ctx, aio.open, folder:path "never made"))
      assert.is_true(folder:get "a" == data)
    end)
  end)

  it("is over, and a callback closes its context and fails: that is raised, and nothing else happens", function()
    folder:put("a", data)
    local function read(file) return file:pread(10, 0) end
    local function work() return aio.work(jobs.same, 1) end
    for _, call in ipairs { read, work } do
      local ok, err
      repeat -- it may be over a turn earlier, when there is nothing to raise yet
        local ctx = aio.default()
        local file <close> = open("a", "r", { engine = "threads" })
        ctx:schedule(function()
          jobs.until_ready(ctx) -- the job is done, and told in the next turn, before timers run
          ctx:schedule(function()
            ctx:timer(function()
              ctx:close()
              error "the reason"
            end):arm(0)
          end)
        end)
        ok, err = pcall(call, file)
        ctx:close()
      until not ok
      assert.matches("the reason", err)
    end
  end)
end)

-- ---- system calls ------------------------------------------------------------------------------------------

-- Which engine works for a file that asks for this one, here.
local function granted(ctx, options)
  return ctx:run(function()
    local file <close> = open("granted", "w", options)
    return file:engine()
  end)
end

describe("the requests of a file", function()
  it("are done by the engine that it names, and counted", function()
    for _, engine in ipairs(engines) do
      local ctx <close> = aio.context()
      local name = granted(ctx, engine.options)
      if not engine.options.direct then assert.is_true(name == engine.name or name == "threads", name) end
      assert.same({ io_uring = 0, ["linux-aio"] = 0, threads = 1, inline = 0 }, ctx:stats().files)
      ctx:run(function()
        local file <close> = open("a", "w+", engine.options)
        for i = 0, 9 do assert.equal(4096, file:pwrite(("x"):rep(4096), i * 4096)) end
      end)
      local done = ctx:stats().files
      done.threads = done.threads - 2
      -- Those of Linux AIO go past the page cache; what cannot is done by threads.
      local expected = { io_uring = 0, ["linux-aio"] = 0, threads = 0, inline = 0 }
      local actual = name == "linux-aio" and done.threads == 10 and "threads" or name
      expected[actual] = 10
      if name ~= "linux-aio" or actual == "linux-aio" then assert.same(expected, done) end
    end
  end)

  it("are done at once where the page cache has it, so much in a turn", function()
    local ctx <close> = aio.context()
    ctx:run(function()
      local file <close> = open("a", "w+")
      file:write(("x"):rep(1 << 20))
      file:pread(1 << 20, 0)
      local before = ctx:stats()
      file:pread(10, 0)
      if ctx:stats().files.inline == before.files.inline then return end -- not on this file system
      aio.yield()
      before = ctx:stats()
      for _ = 1, 1000 do file:pread(1000, 0) end
      local after = ctx:stats()
      assert.is_true(after.polls > before.polls) -- others had their turns
      assert.is_true(after.files.inline > before.files.inline + 900)
    end)
  end)

  for _, name in ipairs { "io_uring", "linux-aio" } do
    it(("of one turn are one submission to %s"):format(name), function()
      local ctx <close> = aio.context()
      local options = { engine = name, direct = true }
      if granted(ctx, options) ~= name then return pending("not granted here") end
      ctx:run(function()
        local file <close> = open("a", "w+", options)
        file:write(("x"):rep(4096 * 20))
        local buffers, group = {}, aio.group()
        for i = 1, 20 do buffers[i] = aio.buffer(4096) end
        local before = ctx:stats()
        for i = 1, 20 do group:spawn(file.pread, file, buffers[i], (i - 1) * 4096) end
        group:wait()
        local after = ctx:stats()
        assert.equal(20, after.files[name] - before.files[name])
        assert.equal(1, after.submits - before.submits)
      end)
    end)

    it(("are more than fit into the queue of %s"):format(name), function()
      local ctx <close> = aio.context { ring_entries = 8, aio_batch = 4 }
      local options = { engine = name, direct = true }
      if granted(ctx, options) ~= name then return pending("not granted here") end
      local block = files.bytes(4096)
      ctx:run(function()
        local file <close> = open("a", "w+", options)
        file:write(("x"):rep(4096 * 1000)) -- what makes a file longer is written one after the other
        local group = aio.group()
        for i = 0, 999 do
          group:spawn(function() assert(file:pwrite(aio.buffer(4096):set(block), i * 4096) == 4096) end)
        end
        group:wait()
        local done = ctx:stats()
        assert.is_true(done.files[name] >= 1001)
        assert.is_true(done.submits >= 60 and done.submits <= 1000, done.submits .. " submissions")
      end)
      assert.is_true(folder:get "a" == block:rep(1000))
    end)
  end

  it("may be so many at a time as the options say, and no others", function()
    for _, name in ipairs { "ring_entries", "aio_batch" } do
      for _, bad in ipairs { 0, -1, 1.5, 5000, "8", {}, 0 / 0, math.huge } do
        assert.error_matches(function() aio.context { [name] = bad } end, name .. " must be an integer from 1 to %d+")
      end
    end
    aio.context { ring_entries = 4096, aio_batch = 256 }:close()
  end)
end)

-- ---- refusals ----------------------------------------------------------------------------------------------

-- Whoever runs this may be refused some of it already.
describe("where the system refuses", function()
  local ctx = aio.context()
  local path = os.tmpname()
  local function can(engine)
    local file <close> = assert(ctx:run(aio.open, path, "w", { engine = engine }))
    return file:engine() == engine
  end
  local all = can "io_uring" and can "linux-aio"
  ctx:close()
  os.remove(path)

  for _, case in ipairs {
    { "io_uring", { io_uring_setup = "EPERM" }, uring = "threads", direct = "linux-aio" },
    { "io_uring, once there is a ring", { io_uring_enter = "EPERM" }, uring = "threads", direct = "linux-aio" },
    { "io_uring, again and again", { io_uring_enter = "EAGAIN" }, uring = "io_uring", laio = "linux-aio",
      done = "inline threads" },
    { "memory for io_uring, and room for Linux AIO", { io_uring_setup = "ENOMEM", io_setup = "EAGAIN" } },
    { "both", { io_uring_setup = "ENOSYS", io_setup = "ENOSYS" } },
    { "both, once they are there", { io_uring_enter = "ENOSYS", io_submit = "EPERM" } },
    { "threads", { clone = "EAGAIN", clone3 = "EAGAIN" }, uring = "io_uring", laio = "linux-aio",
      done = "inline io_uring" },
    { "everything", { io_uring_setup = "EPERM", io_setup = "EAGAIN", clone = "EAGAIN", clone3 = "EAGAIN" },
      done = "inline" },
    { "to look into the page cache", { preadv2 = "EPERM", pwritev2 = "EPERM" }, uring = "io_uring", laio = "linux-aio",
      done = "io_uring threads" },
  } do
    it(case[1] .. ", another engine does all that files do", function()
      if not all then return pending("refused already") end
      local calls = {}
      for call, err in pairs(case[2]) do calls[#calls + 1] = ("%s = %q"):format(call, err) end
      local it = child.run(("io.write(require('spec.support.refused').run(%q, { %s }))"):format(
        folder:path "in", table.concat(calls, ", ")), 60, case[2].clone and without_leaks)
      assert.equal("", it.err)
      assert.equal(0, it.code)
      local uring, direct = case.uring or "threads", case.direct or case.uring or "threads"
      local laio = case.laio or case.direct or "threads"
      for name, has in pairs { io_uring = uring, ["linux-aio"] = laio, direct = direct } do
        assert.is_truthy(it.out:find(("%s is %s:"):format(name, has), 1, true), it.out)
      end
      if case.done then assert.matches("io_uring is [%w_]+: " .. case.done .. "\n", it.out) end
    end)
  end
end)

-- ---- against other programs --------------------------------------------------------------------------------

local function sum_of(command)
  local pipe <close> = assert(io.popen(command .. " 2>&1 | sha256sum"))
  return pipe:read "a"
end

describe("a large file", function()
  local mib = tonumber(os.getenv "FILE_MIB" or 64)
  local piece = 1 << 18

  -- One of those who copy it, each the next piece that nobody has begun.
  local function copy(from, to, at)
    local buffer = aio.buffer(piece)
    while at.next < at.size do
      local offset = at.next
      at.next = offset + piece
      assert(from:pread(buffer, offset) == piece)
      assert(to:pwrite(buffer, offset) == piece)
    end
  end

  local function copy_all(options, size)
    local from <close> = open("large", "r", options)
    local to <close> = open("copy", "w", options)
    local group, at = aio.group(), { next = 0, size = size }
    for _ = 1, 32 do group:spawn(copy, from, to, at) end
    group:wait()
  end

  it("copied by 32 tasks has the same sum, whoever does it #slow", function()
    local large, made = folder:path "large", folder:path "copy"
    assert(os.execute(("head -c %dM /dev/urandom >%s"):format(mib, large)))
    for _, engine in ipairs(files.engines) do
      local ctx <close> = aio.context()
      local past_cache = engine.options.direct or engine.name == "linux-aio"
      local size = (past_cache and mib // 4 or mib) << 20 -- a disk may be slow
      ctx:run(copy_all, engine.options, size)
      local sum = sum_of(("head -c %d %s"):format(size, large))
      assert.equal(sum, sum_of("cat " .. made), engine.name)
      local dd = ("dd if=%s iflag=direct bs=1M status=none"):format(made)
      if past_cache and os.execute(dd .. " count=1 >/dev/null 2>&1") then assert.equal(sum, sum_of(dd)) end
      os.remove(made)
    end
  end)
end)

-- The kernel's threads show themselves among ours. Small pieces, however many, need none, unless the file system has
-- them for all.
it("what is large, beyond 1 MiB of a turn, is copied by the kernel's threads", function()
  local script = [[
    local aio, path = require "aioloop", %q
    local file = assert(aio.open(path, "r", { engine = "io_uring" }))
    if file:engine() ~= "io_uring" then print "none" os.exit(0, true) end
    local function kernel_threads()
      local pipe <close> = io.popen("cat /proc/$PPID/task/*/comm")
      return select(2, pipe:read("a"):gsub("iou%%-wrk", "")) > 0
    end
    local function read(n, size)
      local list = {}
      for i = 1, n do list[i] = (i - 1) * size %% (2 << 20) end
      aio.run(aio.map, list, function(at)
        local data = assert(file:pread(size, at))
        assert(#data == size and data:sub(1, 16) == "0123456789abcdef" and data:sub(-16) == "0123456789abcdef")
      end)
      return kernel_threads()
    end
    print(read(120, 65536), read(1, 1 << 20), read(8, 1 << 20))
    os.exit(0, true)
  ]]
  folder:put("large", ("0123456789abcdef"):rep(1 << 17))
  local got = child.run(script:format(folder:path "large"), 20, without_leaks)
  assert.same({ 0, "" }, { got.code, got.err })
  if got.out ~= "none\n" then assert.matches("^(%l+)\t%1\ttrue\n$", got.out) end
end)

-- ---- the end of a state ------------------------------------------------------------------------------------

describe("the end of a state with files at work", function()
  local work = [[
    local aio, jobs = require "aioloop", require "spec.support.jobs"
    local ctx, gate = aio.default(), jobs.gate()
    local path, kept = %q, {}
    for _, options in ipairs { {}, { engine = "io_uring" }, { engine = "linux-aio" }, { engine = "threads" } } do
      for _, ready in ipairs { true, false } do
        ctx:spawn(function()
          local file = aio.open(path, "r+", options)
          kept[#kept + 1] = file
          local function try(name, ...) ctx:spawn(file[name], file, ...) end
          for i = 0, 7 do
            try("pread", 65536, i * 65536)
            try("pread", aio.buffer(65536), i * 65536)
            try("pwrite", ("x"):rep(4096), i * 4096)
          end
          try "sync" try "datasync" try "stat" try("truncate", 1 << 20) try("read", "a")
          ctx:spawn(aio.open, path)
          if ready then file:pread(1 << 20, 0) end
          ctx:spawn(aio.readfile, path):cancel()
          if ready then ctx:spawn(file.close, file) end
        end)
      end
    end
    local function finish()
      io.open(path .. " ends", "w"):write(aio.now()):close()
      %s
    end
    %s
  ]]
  local ends = { { "os.exit(3, true)", 3 }, { "error 'the reason'", 1 }, { "os.exit(4)", 4 }, { "", 0 } }
  local places = {
    ["before a turn"] = "finish()",
    ["after a turn"] = "ctx:poll(false) finish()",
    ["after a few turns"] = "for _ = 1, 3 do ctx:poll() end finish()",
    ["in a task"] = [[
      local over
      ctx:spawn(function()
        aio.readfile(path)
        over = true
        finish()
      end)
      while not over do ctx:poll() end]],
    ["in a callback"] = "for _ = 1, 4 do ctx:poll(0.001) end ctx:schedule(finish) ctx:poll(false)",
    ["with jobs that run before them"] = "ctx:set_threads(0, 1) ctx:spawn(aio.work, jobs.linger, gate.at, 0.02)"
      .. " ctx:poll(false) gate:await_outside(1) ctx:poll(0.001) finish()",
  }
  for place, code in pairs(places) do
    it(place .. " is quick and quiet", function()
      folder:put("a", ("a"):rep(1 << 20))
      for _, way in ipairs(ends) do
        local it = child.run(work:format(folder:path "a", way[1], code), 20, way[2] == 4 and without_leaks)
        assert.equal(way[2], it.code, it.err)
        assert.equal("", it.out)
        assert.matches(way[1]:find "reason" and "the reason" or "^$", it.err)
        assert.is_true(aio.now() - tonumber(folder:get "a ends") < 1) -- the clock is the same in all processes
      end
    end)
  end
end)
