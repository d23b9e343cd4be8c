-- SPDX-License-Identifier: MIT
--- What specs of files share: the engines, a folder of their own, and a list of scenarios that must go the same way
--- with every engine, under every driver, in a task, outside of any, and where the system refuses an engine.
--
-- Way    local folder <close> = files.folder() -> files.run(scenario, ctx, folder, options)
-- Keep   a scenario knows nothing of engines; it opens its files by o.open(name, mode).

local assert = require "luassert"
local aio = require "aioloop"

local files = {}

-- What `aio.open` is told for each.
files.engines = {
  { name = "auto", options = {} },
  { name = "io_uring", options = { engine = "io_uring" } },
  { name = "linux-aio", options = { engine = "linux-aio" } },
  { name = "threads", options = { engine = "threads" } },
  { name = "direct", options = { direct = true } },
}

-- ---- a folder ------------------------------------------------------------------------------------------------

local Folder = {}
Folder.__index = Folder

function files.folder()
  local path = os.tmpname()
  os.remove(path)
  return files.folder_at(path)
end

function files.folder_at(path)
  assert(os.execute("mkdir " .. path))
  return setmetatable({ root = path }, Folder)
end

--- Many inside of it, which go with it.
function Folder:folders(n)
  local list = {}
  assert(os.execute(("cd %s && mkdir $(seq %d)"):format(self.root, n)))
  for i = 1, n do list[i] = setmetatable({ root = self:path(i) }, Folder) end
  return list
end

function Folder:path(name) return self.root .. "/" .. name end

--- Writes a file as the io library does it.
function Folder:put(name, data)
  local file <close> = assert(io.open(self:path(name), "wb"))
  assert(file:write(data))
end

--- Reads it as the io library does it.
function Folder:get(name)
  local file <close> = assert(io.open(self:path(name), "rb"))
  return file:read "a"
end

function Folder:__close() os.execute("rm -rf " .. self.root) end

-- ---- contents ----------------------------------------------------------------------------------------------

local block
do
  local random, words = 88172645463325252, {}
  for i = 1, 512 do
    random = random ~ random << 13
    random = random ~ random >> 7
    random = random ~ random << 17
    words[i] = string.pack("<i8", random)
  end
  block = table.concat(words)
end

--- Bytes of which no stretch is like another one, nor like those of another seed.
function files.bytes(n, seed)
  local list = {}
  for i = 0, n // #block do list[#list + 1] = string.pack("<I4I4", i, seed or 0) .. block:sub(9) end
  return table.concat(list):sub(1, n)
end

local function refusal(errno, ...)
  local got = table.pack(...)
  assert.is_nil(got[1])
  assert.equal("string", type(got[2]))
  assert.equal(errno, got[3])
end

local function eof(...) assert.same({ n = 2, nil, "eof" }, table.pack(...)) end

local ENOENT, EBADF, EEXIST, EISDIR, EINVAL, ENOSPC, ESPIPE = 2, 9, 17, 21, 22, 28, 29

-- ---- reading as the io library does ------------------------------------------------------------------------

local pieces = {
  "\n", "\n", "\n\n", " ", "\t\r\n ", "x", "line\n", "\0", "a\0b\n", "-", "+1", "12", " 3.5e2 ", "0x1p4", "0x",
  "0x.8p1 ", "1e", "..", "-.5", "1e+5\n", "99999999999999999999", "nan", "inf\n",
  "0x7fffffffffffffff\n", ("7"):rep(199) .. " ",
  ("8"):rep(200), ("8"):rep(201), ("x"):rep(3000), ("long"):rep(9000) .. "\n", (" "):rep(500),
}

local formats = { "l", "L", "n", "n", "a", 0, 1, 2, 5, 100, 4096, 20000, "*l", "lines" }

local function random_content(random)
  local list = {}
  for i = 1, random(0, 30) do list[i] = pieces[random(#pieces)] end
  return table.concat(list)
end

local function random_formats(random)
  local list = {}
  for i = 1, random(0, 4) do list[i] = formats[random(#formats)] end
  return list
end

-- Up to the first nil, which says more here than there.
local function values(...)
  local list = table.pack(...)
  for i = 1, list.n do
    if list[i] == nil then
      list.n = i
      list[i + 1], list[i + 2] = nil, nil
      break
    end
  end
  return list
end

local function same_number(a, b) return a == b and math.type(a) == math.type(b) or a ~= a and b ~= b end

local function check_same(expected, got, what)
  assert.equal(expected.n, got.n, what)
  for i = 1, expected.n do assert.is_true(same_number(expected[i], got[i]), what .. ", result " .. i) end
end

local function read_both_ways(o, rounds, seed)
  math.randomseed(seed)
  for round = 1, rounds do
    o.folder:put("both", random_content(math.random))
    local theirs <close> = assert(io.open(o.folder:path "both", "rb"))
    local ours <close> = o.open("both", "rb")
    for step = 1, 12 do
      local list = random_formats(math.random)
      local what = ("seed %d, round %d, step %d: read(%s)"):format(seed, round, step, table.concat(list, ", "))
      check_same(values(theirs:read(table.unpack(list))), values(ours:read(table.unpack(list))), what)
      check_same({ n = 1, theirs:seek() }, { n = 1, ours:seek() }, what .. ": position")
      if math.random(6) == 1 then
        local at = math.random(0, 3000)
        assert.equal(theirs:seek("set", at), ours:seek("set", at))
      end
    end
  end
end

-- ---- scenarios ---------------------------------------------------------------------------------------------

local list = {}
files.scenarios = list

local function scenario(name, fn) list[#list + 1] = { name = name, fn = fn } end

-- One that starts processes.
local function with_processes(name, fn) list[#list + 1] = { name = name, fn = fn, processes = true } end

scenario("what was written is read, by every format", function(o)
  local file <close> = o.open("a", "w+")
  assert.equal(file, file:write("one\n", 2, "\n0x10 rest", 1.5, "\n"))
  assert.equal(file, file:write())
  assert.equal(19, file:seek())
  eof(file:read())
  assert.equal(0, file:seek "set")
  assert.same({ "one", "2\n", 16, " re", "" }, { file:read("l", "L", "n", 3, 0) })
  assert.equal("st1.5", file:read())
  assert.equal("", file:read "a")
  eof(file:read(1))
  eof(file:read(0))
  eof(file:read("n"))
  assert.equal("one\n2\n0x10 rest1.5\n", o.folder:get "a")
end)

scenario("it is read as the io library reads it", function(o) read_both_ways(o, 5, o.seed) end)

scenario("at any offset and of any length", function(o)
  local data = files.bytes(70000)
  o.folder:put("b", data)
  local file <close> = o.open("b", "r+")
  for _, at in ipairs { 0, 1, 511, 512, 4095, 4096, 8192, 65535, 69999 } do
    for _, n in ipairs { 1, 2, 512, 4096, 8192, 10000, 69999, 70000, 100000 } do
      assert.is_true(file:pread(n, at) == data:sub(at + 1, at + n))
    end
  end
  assert.equal("", file:pread(0, 10))
  eof(file:pread(1, 70000))
  eof(file:pread(4096, 1 << 40))
  assert.equal(0, file:seek())
  assert.equal(0, file:pwrite("", 5))
  for _, at in ipairs { 0, 3, 4096, 12288, 30001 } do
    for _, n in ipairs { 1, 100, 4096, 8192, 12345 } do
      local piece = files.bytes(n, at + n)
      assert.equal(n, file:pwrite(piece, at))
      data = data:sub(1, at) .. piece .. data:sub(at + n + 1)
    end
  end
  assert.is_true(o.folder:get "b" == data)
  assert.equal(5, file:pwrite(12345, 0))
  assert.equal(3, file:pwrite("end", 80000))
  assert.equal(80003, file:stat().size)
  assert.equal(("\0"):rep(10000) .. "end", file:pread(20000, 70000))
end)

scenario("beyond 4 GiB, in a file with a hole", function(o)
  local file <close> = o.open("sparse", "w+")
  local far = (1 << 32) + 4096 * 3
  assert.equal(6, file:pwrite("beyond", far + 5))
  assert.equal("\0\0\0\0\0beyond", file:pread(100, far))
  assert.equal(far, file:seek("set", far))
  assert.equal("\0\0\0\0\0beyond", file:read())
  assert.equal(far + 11, file:seek("end"))
  assert.equal(file, file:write "more")
  assert.equal(far + 15, file:stat().size)
  assert.equal("\0", file:pread(1, 1 << 31))
  assert.is_true(file:truncate(0))
end)

scenario("megabytes at once", function(o)
  local data = files.bytes(3 * 1024 * 1024 + 17)
  local file <close> = o.open("large", "w+")
  assert.equal(file, file:write(data))
  assert.is_true(file:pread(#data, 0) == data)
  assert.is_true(file:pread(#data + 100, 1) == data:sub(2))
  file:seek "set"
  assert.is_true(file:read "a" == data)
  file:seek("set", 1000001)
  assert.is_true(file:read(2000000) == data:sub(1000002, 3000001))
  assert.is_true(o.folder:get "large" == data)
end)

scenario("into a buffer and out of it", function(o)
  local data = files.bytes(20000)
  o.folder:put("c", data)
  local file <close> = o.open("c", "r+")
  local buffer = aio.buffer(8192)
  for at = 0, 19999, 8192 do
    assert.equal(math.min(8192, 20000 - at), file:pread(buffer, at))
    assert.is_true(buffer:tostring() == data:sub(at + 1, at + 8192))
  end
  assert.equal(20000 - 16384, #buffer)
  eof(file:pread(buffer, 20000))
  assert.equal(0, #buffer)
  buffer:set "from a buffer"
  assert.equal(13, file:pwrite(buffer, 20000))
  file:seek "set"
  assert.equal(file, file:write(buffer, "|", buffer))
  assert.equal("from a buffer|from a buffer", o.folder:get "c":sub(1, 27))
  assert.equal("from a buffer", file:pread(100, 20000))
  assert.equal(0, file:pread(aio.buffer(0), 0))
end)

scenario("a mode allows what it says", function(o)
  o.folder:put("d", "12345")
  do
    local file <close> = o.open("d", "r")
    refusal(EBADF, file:write "x")
    refusal(EBADF, file:pwrite("x", 0))
    assert.equal("12345", file:read())
    refusal(EINVAL, file:truncate(0))
  end
  do
    local file <close> = o.open("d", "r+")
    assert.equal(file, file:write "ab")
    assert.equal("345", file:read())
  end
  refusal(EEXIST, o.try("d", "wx"))
  refusal(EEXIST, o.try("d", "a+x"))
  assert.equal("ab345", o.folder:get "d")
  do
    local file <close> = o.open("d", "w")
    refusal(EBADF, file:read())
    refusal(EBADF, file:pread(1, 0))
  end
  assert.equal("", o.folder:get "d")
  local file <close> = o.open("new", "w+bx")
  assert.equal(file, file:write "x")
  refusal(ENOENT, o.try("none", "r"))
  refusal(ENOENT, o.try("none", "r+"))
  refusal(ENOENT, o.try("none/x", "w"))
  assert.matches("/none: No such file", select(2, o.try("none", "r")), 1, true)
end)

scenario("what is appended goes to the end", function(o)
  o.folder:put("e", "12345")
  local file <close> = o.open("e", "a+")
  assert.equal("12", file:read(2))
  assert.equal(file, file:write "67")
  assert.equal(7, file:seek())
  do
    local other <close> = assert(io.open(o.folder:path "e", "a"))
    other:write "89"
  end
  assert.equal("89", file:read())
  file:seek("set", 1)
  assert.equal(file, file:write "0")
  assert.equal(10, file:seek())
  file:seek "set"
  assert.equal("1234567890", file:read())
end)

scenario("the position is where it was left", function(o)
  o.folder:put("f", "0123456789")
  local file <close> = o.open("f", "r+")
  assert.equal("01", file:read(2))
  assert.equal("89", file:pread(5, 8))
  assert.equal("2", file:read(1))
  assert.equal(file, file:write "xy")
  assert.equal("56", file:read(2))
  assert.equal(7, file:seek "cur")
  assert.equal(5, file:seek("cur", -2))
  assert.equal("5", file:read(1))
  assert.equal(8, file:seek("end", -2))
  refusal(EINVAL, file:seek("set", -1))
  refusal(EINVAL, file:seek("cur", math.mininteger))
  refusal(EINVAL, file:seek("cur", math.maxinteger))
  assert.equal("89", file:read "a")
  assert.equal(12, file:seek("set", 12))
  eof(file:read())
  assert.equal("", file:read "a")
  assert.equal(file, file:write "z")
  assert.equal("012xy56789\0\0z", o.folder:get "f")
  refusal(EINVAL, file:pread(1, math.maxinteger))
  assert.equal("0", file:pread(1, 0))
end)

scenario("what was read ahead is forgotten when it is written", function(o)
  o.folder:put("g", "line 1\nline 2\nline 3\n")
  local file <close> = o.open("g", "r+")
  assert.equal("line 1", file:read())
  assert.equal(6, file:pwrite("LINE 2", 7))
  assert.equal("LINE 2", file:read())
  assert.is_true(file:truncate(19))
  assert.equal("line ", file:read())
  eof(file:read())
  assert.is_true(file:truncate(25))
  assert.equal(("\0"):rep(6), file:read())
  file:seek "set"
  assert.equal(file, file:write "L")
  assert.equal("ine 1", file:read())
end)

scenario("a file grows and shrinks while it is read", function(o)
  o.folder:put("h", "first")
  local file <close> = o.open("h", "r")
  assert.equal("first", file:read "a")
  eof(file:read(1))
  do
    local other <close> = assert(io.open(o.folder:path "h", "a"))
    other:write "\nsecond\nthird"
  end
  assert.same({ "", "second", "third" }, { file:read("l", "l", "l") })
  o.folder:put("h", "1")
  eof(file:read())
  assert.equal(0, file:seek "set")
  assert.equal("1", file:read "a")
end)

scenario("synced, cut off, and looked at", function(o)
  local file <close> = o.open("i", "w+")
  file:write(("x"):rep(10000))
  assert.is_true(file:sync())
  assert.is_true(file:datasync())
  assert.is_true(file:truncate(5000))
  assert.is_true(file:truncate(20000))
  refusal(EINVAL, o.open("i", "r"):truncate(1))
  local stat = file:stat()
  assert.same({ "file", 20000, 1 }, { stat.type, stat.size, stat.nlink })
end)

with_processes("what stat says is what the command says", function(o)
  local file <close> = o.open("i", "w+")
  file:write "x"
  file:sync() -- only then it has its blocks
  local stat = file:stat()
  local told <close> = assert(io.popen("stat -c '%i %d %s %b %u %g %a %Y' " .. o.folder:path "i"))
  local ino, dev, size, blocks, uid, gid, mode, mtime = told:read("n", "n", "n", "n", "n", "n", 4, "n")
  assert.same({ ino, dev, size, blocks, uid, gid, tonumber(mode, 8) },
    { stat.ino, stat.dev, stat.size, stat.blocks, stat.uid, stat.gid, stat.mode })
  assert.equal(mtime, stat.mtime // 1)
end)

scenario("permissions are those asked for, less the umask", function(o)
  local file <close> = o.open("perm", "w", { perm = tonumber("600", 8) })
  assert.equal(tonumber("600", 8), file:stat().mode)
end)

scenario("lines, one after the other", function(o)
  o.folder:put("j", "one\n\n3\n" .. ("x"):rep(50000) .. "\nlast")
  local file <close> = o.open("j", "r")
  local lines = {}
  for line in file:lines() do lines[#lines + 1] = #line end
  assert.same({ 3, 0, 1, 50000, 4 }, lines)
  file:seek "set"
  assert.same({ "one\n", "\n", 3 }, { file:lines("L", 1, "n")() })
  local writer <close> = o.open("j2", "w")
  assert.error_matches(function() writer:lines()() end, "Bad file descriptor")
  writer:close()
  assert.error_matches(function() writer:lines()() end, "the file is closed")
end)

scenario("devices, folders and what is made as it is read", function(o)
  local function open(name, mode) return aio.open(name, mode, o.options) end
  do
    local file <close> = assert(open("/dev/full", "r+"))
    refusal(ENOSPC, file:write "x")
    refusal(ENOSPC, file:pwrite(("x"):rep(100000), 0))
    assert.equal("\0\0", file:read(2))
  end
  do
    local file <close> = assert(open("/dev/null", "r+"))
    eof(file:read(1))
    eof(file:read())
    assert.equal("", file:read "a")
    assert.equal(file, file:write(("x"):rep(100000)))
    assert.equal("char", file:stat().type)
  end
  do
    local file <close> = assert(open "/dev/zero")
    assert.is_true(file:read(200000) == ("\0"):rep(200000))
    assert.is_true(file:pread(100000, 1 << 33) == ("\0"):rep(100000))
  end
  do
    local folder <close> = assert(open(o.folder.root))
    refusal(EISDIR, folder:read())
    refusal(EISDIR, folder:pread(10, 0))
    assert.equal("directory", folder:stat().type)
  end
  refusal(EISDIR, open(o.folder.root, "w"))
  do
    local file <close> = assert(open "/proc/self/status")
    assert.matches("^lua", file:read "l":match "%s(.*)")
    assert.matches("^%a+:", file:read "l")
    file:seek "set"
    assert.matches("^Name.*\nThreads:", file:read "a")
  end
end)

with_processes("a FIFO is refused, and nobody waits for its other end", function(o)
  os.execute("mkfifo " .. o.folder:path "fifo")
  refusal(ESPIPE, o.try("fifo", "r"))
  refusal(ESPIPE, o.try("fifo", "w"))
  refusal(ESPIPE, o.try("fifo", "r+"))
end)

scenario("a hundred at once", function(o)
  local data = files.bytes(100 * 5000)
  local file <close> = o.open("k", "w+")
  local numbers = {}
  for i = 1, 100 do numbers[i] = i end
  aio.map(numbers, function(i)
    assert.equal(5000, file:pwrite(data:sub((i - 1) * 5000 + 1, i * 5000), (i - 1) * 5000))
  end)
  assert.is_true(o.folder:get "k" == data)
  local got = aio.map(numbers, function(i) return file:pread(5000, (i - 1) * 5000) end)
  assert.is_true(table.concat(got) == data)
  assert.is_true(file:sync())
end)

scenario("a whole file by a single call", function(o)
  local path, data = o.folder:path "whole", files.bytes(100000)
  assert.is_true(aio.writefile(path, data))
  assert.is_true(aio.readfile(path) == data)
  assert.is_true(aio.writefile(path, 12))
  assert.equal("12", aio.readfile(path))
  assert.is_true(aio.writefile(path, aio.buffer(5):set "short"))
  assert.equal("short", aio.readfile(path))
  assert.error_matches(function() aio.writefile(path, {}) end, "string, number or buffer expected, got table")
  assert.error_matches(function() aio.writefile(path) end, "got nil")
  assert.equal("short", aio.readfile(path))
  assert.is_true(aio.writefile(path, ""))
  assert.equal("", aio.readfile(path))
  refusal(ENOENT, aio.readfile(o.folder:path "none"))
  refusal(EISDIR, aio.readfile(o.folder.root))
  refusal(ENOENT, aio.writefile(o.folder:path "none/x", "x"))
  refusal(ENOSPC, aio.writefile("/dev/full", "x"))
end)

scenario("once closed, it is closed", function(o)
  local file = o.open("l", "w")
  assert.matches("^aioloop.file %(open%)", tostring(file))
  assert.equal("integer", math.type(file:getfd()))
  assert.is_true(file:close())
  assert.is_true(file:close())
  assert.matches("^aioloop.file %(closed%)", tostring(file))
  assert.equal("file", aio.type(file))
  for _, call in ipairs { "read", "write", "seek", "sync", "datasync", "stat", "engine", "getfd" } do
    assert.error_matches(function() file[call](file) end, "the file is closed", nil, nil, call)
  end
  assert.error_matches(function() file:pread(1, 0) end, "the file is closed")
  assert.error_matches(function() file:pwrite("x", 0) end, "the file is closed")
  assert.error_matches(function() file:truncate(0) end, "the file is closed")
end)

--- Runs a scenario, from wherever this is called; options are those of aio.open.
function files.run(it, ctx, folder, options)
  local o = { ctx = ctx, folder = folder, options = options, seed = os.getenv "FILE_SEED" or os.time() }
  local function all(more)
    local copy = {}
    for _, from in ipairs { options, more } do
      for k, v in pairs(from) do copy[k] = v end
    end
    return copy
  end
  function o.try(name, mode, more) return aio.open(folder:path(name), mode, all(more or {})) end
  function o.open(...) return assert(o.try(...)) end
  it.fn(o)
end

return files
