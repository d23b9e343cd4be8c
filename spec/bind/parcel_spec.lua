-- SPDX-License-Identifier: MIT
--- Values that are copied to another lua_State, and back.

local parcel = require "parcel"

local roundtrip, there = parcel.roundtrip, parcel.there

local function one(v)
  local copy = table.pack(roundtrip(v))
  assert.equal(1, copy.n)
  return copy[1]
end

-- What the function `body` returns over there for these arguments.
local function at(body, ...) return there("return function(...) " .. body .. " end", ...) end

-- A function whose globals are those of the state: a spec's own are a table with a metatable.
local function fn(source) return assert(load("return " .. source, "=fn"))() end

-- The copy must be refused with that text, where this spec asks for it.
local function refused(message, ...)
  local ok, err = pcall(roundtrip, ...)
  assert.is_false(ok)
  assert.equal("cannot copy " .. message, err)
end

describe("parcel", function()
  local before
  before_each(function() before = parcel.blocks() end)
  after_each(function() assert.equal(before, parcel.blocks()) end)

  describe("values", function()
    it("may be none at all", function()
      assert.equal(0, select("#", roundtrip()))
      assert.equal(0, at("return select('#', ...)"))
    end)

    it("keep their number, also where they are nil", function()
      local t = table.pack(roundtrip(nil, false, nil, true, nil))
      assert.same({ n = 5, nil, false, nil, true, nil }, t)
      assert.equal(5, at("return select('#', ...)", nil, false, nil, true, nil))
    end)

    it("may be many", function()
      local list = {}
      for i = 1, 20000 do list[i] = i % 3 == 0 and {} or i end
      local back = table.pack(roundtrip(table.unpack(list)))
      assert.equal(20000, back.n)
      assert.equal(19999, back[19999])
      assert.same({}, back[18000])
    end)

    it("are integers", function()
      for _, i in ipairs { 0, 1, -1, math.maxinteger, math.mininteger, 255, 256, 1 << 40 } do
        assert.equal(i, one(i))
        assert.equal("integer", math.type(one(i)))
      end
    end)

    it("are floats, with NaN, infinities and the sign of zero", function()
      for _, x in ipairs { 0.0, 1.0, 1.5, -2.25, 1e308, 5e-324, math.pi, math.huge, -math.huge, 2.0 ^ 63 } do
        assert.equal(x, one(x))
        assert.equal("float", math.type(one(x)))
      end
      local nan = one(0 / 0)
      assert.is_true(nan ~= nan)
      assert.equal(-math.huge, 1 / one(-0.0))
      assert.equal(math.huge, 1 / one(0.0))
      assert.equal("float", at("return math.type(...)", 3.0))
    end)

    it("are strings of every length", function()
      for n = 0, 300 do
        local s = ("\0x\255%"):rep(n):sub(1, n)
        assert.equal(s, one(s))
      end
      local big = ("0123456789abcde\0"):rep(1 << 18) -- 4 MB
      assert.is_true(big == one(big))
      assert.equal(#big, at("return #...", big))
    end)

    it("copy a long string once", function()
      local s, list = ("x"):rep(1 << 20), {}
      for i = 1, 500 do list[i] = s end
      collectgarbage()
      local back = one(list)
      assert.equal(500, #back)
      assert.equal(s, back[500])
    end)
  end)

  describe("tables", function()
    it("are arrays, hashes and both", function()
      assert.same({}, one {})
      assert.same({ 1, 2, 3 }, one { 1, 2, 3 })
      local t = { 1, 2, nil, 4, x = "y", [1.5] = 2, [true] = false, [-1] = "m", [1 << 40] = "far", ["a b"] = { "z" } }
      assert.same(t, one(t))
      local list = {}
      for i = 1, 10000 do list[i] = i * i end
      assert.same(list, one(list))
    end)

    it("are sparse without taking the room of what is not there", function()
      local t = {}
      for i = 0, 61 do t[1 << i] = i end
      assert.same(t, one(t))
    end)

    it("are other tables over there", function()
      local t = { {} }
      local copy = one(t)
      assert.not_equal(t, copy)
      assert.not_equal(t[1], copy[1])
    end)

    it("keep what they share, between arguments too", function()
      local shared = { "s" }
      local a, b, c = roundtrip({ shared, { shared } }, shared, { x = shared })
      assert.is_true(a[1] == b and a[2][1] == b and c.x == b)
      assert.equal("s", b[1])
      assert.is_true(at("local a, b = ... return a == b", shared, shared))
      assert.is_true(at("local a, b = ... return rawequal(a.x, b.y)", { x = shared }, { y = shared }))
      assert.is_false(at("local a, b = ... return a == b", {}, {}))
    end)

    it("keep cycles", function()
      local t = { name = "t" }
      t.self, t[1], t[t] = t, { back = t }, t
      local copy = one(t)
      assert.is_true(copy.self == copy and copy[1].back == copy and copy[copy] == copy)
      local a, b = {}, {}
      a.b, b.a = b, a
      a, b = roundtrip(a, b)
      assert.is_true(a.b == b and b.a == a)
    end)

    it("have keys of every kind that can be copied", function()
      local key, call = { "key" }, function() return "called" end
      local copy, k, f = roundtrip({ [key] = 1, [call] = 2, [0.5] = 3, [("l"):rep(100)] = 4, [false] = 5 }, key, call)
      assert.equal(1, copy[k])
      assert.equal(2, copy[f])
      assert.equal(3, copy[0.5])
      assert.equal(4, copy[("l"):rep(100)])
      assert.equal(5, copy[false])
    end)

    it("nest 100,000 deep", function()
      local deep, bottom = {}, { "bottom" }
      local t = deep
      for _ = 1, 100000 do
        t.n = {}
        t = t.n
      end
      t.n = bottom
      local copy, b = roundtrip(deep, bottom)
      local levels = 0
      while copy.n do copy, levels = copy.n, levels + 1 end
      assert.equal(100001, levels)
      assert.is_true(copy == b)
    end)

    it("nest 100,000 deep by their keys", function()
      local t = {}
      for _ = 1, 100000 do t = { [t] = true } end
      local copy, levels = one(t), 0
      while next(copy) do copy, levels = next(copy), levels + 1 end
      assert.equal(100000, levels)
    end)

    it("are what they were: the sender's do not change", function()
      local t = { 1, { 2 }, x = { y = "z" } }
      at("local t = ... t[1], t[2], t.x.y = nil, nil, nil", t)
      assert.same({ 1, { 2 }, x = { y = "z" } }, t)
    end)
  end)

  describe("functions", function()
    it("run over there", function()
      assert.equal(42, at("local f, x = ... return f(x)", function(x) return x * 2 end, 21))
      assert.same({ 1, 2, n = 2 }, at("local f = ... return f(1, 2)", fn "function(...) return table.pack(...) end"))
    end)

    it("take what their upvalues hold with them", function()
      local n, s, t, none = 1, "s", { 2 }, nil
      local r = at("return (...)()", function() return { n, s, t[1], none == nil } end)
      assert.same({ 1, "s", 2, true }, r)
    end)

    it("are one if they were, and not if they were not", function()
      local function f() return 1 end
      local a, b, t = roundtrip(f, f, { f })
      assert.is_true(a == b and t[1] == a)
      local function make(x) return function() return x end end
      local c, d = roundtrip(make(1), make(2))
      assert.is_false(c == d)
      assert.equal(1, c())
      assert.equal(2, d())
    end)

    it("may have themselves as an upvalue, or one another", function()
      local function fib(n) return n < 2 and n or fib(n - 1) + fib(n - 2) end
      assert.equal(55, at("local f = ... return f(10)", fib))
      assert.equal(55, one(fib)(10))
      local odd
      local function even(n) return n == 0 or odd(n - 1) end
      function odd(n) return n ~= 0 and even(n - 1) end
      assert.is_true(at("local even = ... return even(10) and not even(7)", even))
    end)

    it("find the globals over there", function()
      assert.equal("there", at("marker = 'there' return (...)()", fn "function() return marker end"))
      assert.equal("set", at("(...)() return over", fn "function() over = 'set' end"))
      assert.is_true(at("return (...)() == _G", fn "function() return _ENV end"))
      assert.is_true(one(fn "function() return _ENV end")() == _G)
      local globals = _G
      assert.is_true(at("return (...)() == _G", function() return globals end))
    end)

    it("have an _ENV of their own if it is a table of their own", function()
      local f = load("x = (x or 0) + 1 return x", "own", "t", { x = 5 })
      assert.equal(6, at("return (...)()", f))
      assert.equal(7, at("local f = ... f() return f()", f))
      assert.equal(6, f()) -- that of this side
    end)

    it("share a variable over there as they do here", function()
      local n = 5
      local function add() n = n + 1 end
      local function get() return n end
      assert.equal(7, at("local add, get = ... add() add() return get()", add, get))
      assert.equal(7, at("local t = ... t.add() t.add() return t.get()", { add = add, get = get }))
      assert.equal(5, n)
      local back_add, back_get = roundtrip(add, get)
      back_add()
      assert.equal(6, back_get())
      assert.equal(5, get())
    end)

    it("do not share variables that only hold the same", function()
      local function counter(n) return function() n = n + 1 return n end end
      local a, b = roundtrip(counter(0), counter(0))
      assert.same({ 1, 2, 1 }, { a(), a(), b() })
    end)

    it("share the table in two of their variables", function()
      local t = { 0 }
      local u = t
      assert.is_true(at("return (...)()", function() return t == u end))
    end)

    it("have up to 255 upvalues", function()
      local source = { "local a0 = 1000" }
      for i = 1, 127 do source[#source + 1] = ("local a%d = %d"):format(i, i) end
      source[#source + 1] = "return function() return function() return a0 + a1"
      for i = 2, 127 do source[#source + 1] = " + a" .. i end
      source[#source + 1] = " end end"
      local f = load(table.concat(source, "\n"))()
      assert.equal(1000 + 127 * 64, at("return (...)()()", f))
    end)

    it("keep their lines, and what is nested in them", function()
      local f = fn "function()\n return function() error 'here' end end"
      assert.equal("fn:2: here", at("return select(2, pcall((...)()))", f))
    end)

    it("may be stripped", function()
      local t = { 3 }
      local function f() return t[1] end
      local bare = load(string.dump(f, true))
      debug.setupvalue(bare, 1, t)
      assert.equal(3, at("return (...)()", bare))
    end)

    it("hang on one another 100,000 long", function()
      local function link(f) return function() return f end end
      local f = function() return nil end
      for _ = 1, 100000 do f = link(f) end
      local copy, n = one(f), 0
      while copy() do copy, n = copy(), n + 1 end
      assert.equal(100000, n)
    end)

    it("that run may be copied, with variables still open", function()
      local x = 1
      local function f() return x end
      x = 2
      local g = one(f)
      x = 3
      assert.equal(2, g())
    end)
  end)

  describe("refuses", function()
    local co = coroutine.create(function() end)

    it("what cannot be copied, by its kind", function()
      refused("a thread: argument 1", co)
      refused("a C function: argument 1", print)
      refused("a userdata: argument 1", io.stdout)
      refused("a light userdata: argument 1", parcel.light())
      refused("a table with a metatable: argument 1", setmetatable({}, {}))
      refused("the globals table: argument 1", _G)
    end)

    it("with the number of the argument", function()
      refused("a thread: argument 3", 1, nil, co)
      refused("a thread: argument 2.jobs[3].co", 1, { jobs = { {}, {}, { co = co } } })
    end)

    it("with the way through keys of every kind", function()
      refused("a thread: argument 1[1]", { co })
      refused("a thread: argument 1[-7]", { [-7] = co })
      refused("a thread: argument 1[1.5]", { [1.5] = co })
      refused("a thread: argument 1[true]", { [true] = co })
      refused('a thread: argument 1["a b"]', { ["a b"] = co })
      refused('a thread: argument 1["7up"]', { ["7up"] = co })
      refused('a thread: argument 1[""]', { [""] = co })
      refused("a thread: argument 1._x9", { _x9 = co })
      refused("a thread: argument 1[a string]", { [("x"):rep(1000)] = co })
      refused("a thread: argument 1[a string]", { ["a\0b"] = co })
      refused("a thread: argument 1[a table]", { [{}] = co })
      refused("a thread: argument 1[a function].x", { [function() end] = { x = co } })
    end)

    it("keys", function()
      refused("a thread: argument 1 (a key)", { [co] = 1 })
      refused("a thread: argument 1.t (a key)[1]", { t = { [{ co }] = 1 } })
    end)

    it("upvalues", function()
      local log, lib = print, { sub = { f = print } }
      refused("a C function: argument 1 (upvalue log)", function() log() end)
      refused("a C function: argument 1.f (upvalue lib).sub.f", { f = function() return lib end })
      local function inner() return co end
      refused("a thread: argument 2 (upvalue inner) (upvalue co)", 1, function() return inner end)
    end)

    it("the globals table but as an upvalue", function()
      refused("the globals table: argument 1.env", { env = _G })
      local t = { _G }
      refused("the globals table: argument 1 (upvalue t)[1]", function() return t end)
    end)

    it("tables with a metatable, however it looks", function()
      refused("a table with a metatable: argument 1.x", { x = setmetatable({}, { __metatable = "no" }) })
      refused("a table with a metatable: argument 1.x", { x = setmetatable({}, { __mode = "k" }) })
    end)

    it("what is met first, by the way on which it was met", function()
      local shared = { co }
      refused("a thread: argument 1[1]", shared, { shared })
      refused("a thread: argument 2[1]", { { { shared } } }, shared)
      local cycle = {}
      cycle.again = cycle
      cycle.z = { cycle, co }
      refused("a thread: argument 1.z[2]", cycle)
    end)

    it("with the last steps only, from a depth", function()
      local t = { co }
      for _ = 1, 100000 do t = { n = t } end
      refused("a thread: argument 2 ... " .. (".n"):rep(15) .. "[1]", 0, t)
      t = { co }
      for _ = 1, 15 do t = { n = t } end
      refused("a thread: argument 1" .. (".n"):rep(15) .. "[1]", t)
    end)

    it("results too, over there", function()
      local ok, err = pcall(at, "return 1, {print}")
      assert.is_false(ok)
      assert.equal("cannot copy a C function: argument 2[1]", err)
    end)

    it("naming the line that asks for it", function()
      local _, err = pcall(function() roundtrip(co) return 1 end)
      assert.matches("^%S+parcel_spec.lua:%d+: cannot copy a thread: argument 1$", err)
    end)
  end)

  it("that cannot raise holds the message instead", function()
    assert.same({ true, 1, { 2 }, n = 3 }, table.pack(parcel.safe("result", 1, { 2 })))
    assert.same({ true, n = 1 }, table.pack(parcel.safe "result"))
    assert.same({ false, "cannot copy a C function: result 2.f", n = 2 },
      table.pack(parcel.safe("result", 1, { f = print })))
  end)

  it("calls no metamethod and leaves the sender's tables alone", function()
    local t = { 1, 2, 3, x = { y = 1 } }
    local keys = 0
    for _ = 1, 100 do roundtrip(t) end
    for _ in pairs(t) do keys = keys + 1 end
    assert.equal(4, keys)
  end)

  it("that ends too early raises", function()
    local n, s = 5, ("long"):rep(50)
    local function f() n = n + 1 return n, s end
    local function g() return n, f end
    local raised, tried = parcel.cut({ f, g, s, [0.5] = { true } }, f, nil, -1, 1.5, s)
    assert.is_true(tried > 500)
    assert.equal(tried, raised)
  end)

  describe("lasts", function()
    local function world()
      local n, list = 0, {}
      local function count() n = n + 1 return n end
      for i = 1, 50 do
        list[i] = { i, name = ("name"):rep(i), count = count, list = list, get = function() return n, i end }
      end
      return list
    end

    local function check(copy)
      assert.equal(50, #copy)
      for i, e in ipairs(copy) do
        assert.equal(i, e[1])
        assert.equal(("name"):rep(i), e.name)
        assert.is_true(e.list == copy and e.count == copy[1].count)
        assert.equal(i, e.count())
        local n, self = e.get()
        assert.same({ i, i }, { n, self })
      end
    end

    for _, mode in ipairs { "incremental", "generational" } do
      it("while the collector is at work, " .. mode, function()
        collectgarbage(mode)
        for _ = 1, 20 do
          local copy = one(world())
          collectgarbage "step"
          check(copy)
          collectgarbage()
        end
        collectgarbage "incremental"
      end)
    end

    it("while the collector is at work all the time over there", function()
      local eager = "collectgarbage('setpause', 0) collectgarbage('setstepmul', 1000) "
      for _, mode in ipairs { "incremental", "generational" } do
        local source = eager .. "collectgarbage '" .. mode .. "' return function(...) return ... end"
        for _ = 1, 5 do check(there(source, world())) end
      end
    end)

    it("while finalizers change what is copied", function()
      local t, live = {}, true
      local function trouble()
        if not live then return end
        t[#t + 1] = {}
        t[1] = nil
        setmetatable({}, { __gc = trouble })
      end
      for i = 1, 100 do t[i] = { i } end
      trouble()
      for _ = 1, 200 do
        collectgarbage "step"
        local ok, err = pcall(roundtrip, t)
        assert.is_true(ok or err:find("invalid key to 'next'", 1, true) ~= nil, err)
      end
      live = false
      collectgarbage()
    end)

    it("and leaves nothing behind", function()
      local list, bad = world(), { world(), coroutine.create(print) }
      local function some(n)
        for _ = 1, n do
          roundtrip(list)
          pcall(roundtrip, bad)
        end
        collectgarbage()
        collectgarbage()
        return collectgarbage "count"
      end
      local first = some(20)
      assert.is_true(some(200) < first + 20)
    end)
  end)

  describe("without memory", function()
    local source = [[
      local n, s = 0, ("long"):rep(100)
      local function f() n = n + 1 return n, s, f end
      local t = { 1, 2, 3, f = f, { s, s }, g = function() return n, print end }
      t.t = t
      for i = 1, 100 do t[i] = { i } end
      return t, f, s, 1, nil, ("x"):rep(3000)
    ]]

    it("raises, packing and unpacking, and leaks nothing", function()
      local pack, safe, unpack, leaked = parcel.poor(source)
      assert.equal(0, leaked)
      assert.is_true(pack > 10 and safe > 10 and unpack > 50, pack .. " " .. safe .. " " .. unpack)
    end)

    it("for a moment, raises or packs the message, and leaks nothing", function()
      local pack, safe, _, leaked = parcel.poor(source, true)
      assert.equal(0, leaked)
      assert.is_true(pack > 3 and safe > 3, pack .. " " .. safe)
    end)
  end)
end)
