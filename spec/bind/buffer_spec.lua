-- SPDX-License-Identifier: MIT
--- Buffers: what they hold, what they refuse, and that they give their memory back.

local aio = require "aioloop"

describe("a buffer", function()
  it("is empty at first, and holds what it was given", function()
    local buffer = aio.buffer(10)
    assert.same({ 0, 10, "" }, { #buffer, buffer:capacity(), buffer:tostring() })
    assert.equal(buffer, buffer:set "0123456789")
    assert.same({ 10, 10, "0123456789" }, { #buffer, buffer:capacity(), buffer:tostring() })
    assert.equal("a\0b", buffer:set("a\0b"):tostring())
    assert.equal("12", buffer:set(12):tostring())
    assert.equal("", buffer:set(""):tostring())
    assert.equal("buffer", aio.type(buffer))
    assert.matches("^aioloop.buffer %(0 of 10 bytes%): ", tostring(buffer))
  end)

  it("refuses what does not fit, and keeps what it has", function()
    local buffer = aio.buffer(3):set "abc"
    assert.error_matches(function() buffer:set "abcd" end, "bad argument #1 to 'set' %(does not fit into the buffer%)")
    assert.error(function() buffer:set {} end)
    assert.error(function() buffer:set() end)
    assert.error(function() buffer:set(buffer) end)
    assert.equal("abc", buffer:tostring())
    for _, bad in ipairs { -1, 1.5, math.maxinteger, math.mininteger, (1 << 38) + 1, 0 / 0, "x", {} } do
      assert.error(function() aio.buffer(bad) end)
    end
    assert.error(function() aio.buffer() end)
  end)

  it("may have no room", function()
    local buffer = aio.buffer(0)
    assert.same({ 0, 0, "" }, { #buffer:set "", buffer:capacity(), buffer:tostring() })
    assert.error(function() buffer:set "x" end)
  end)

  it("is cut as string.sub cuts", function()
    local places = { 0, 1, 2, 3, 4, 5, 6, 100, -1, -2, -3, -4, -5, -6, -100, math.maxinteger, math.mininteger }
    for _, s in ipairs { "", "x", "abcd" } do
      local buffer = aio.buffer(4):set(s)
      for _, i in ipairs(places) do
        assert.equal(s:sub(i), buffer:tostring(i))
        for _, j in ipairs(places) do assert.equal(s:sub(i, j), buffer:tostring(i, j)) end
      end
    end
    local buffer = aio.buffer(4):set "abcd"
    assert.equal("abcd", buffer:tostring(nil, nil))
    assert.error(function() buffer:tostring(1.5) end)
    assert.error(function() buffer:tostring(1, {}) end)
  end)

  it("is the same object to its methods alone", function()
    local buffer = aio.buffer(1)
    for name, method in pairs(getmetatable(buffer)) do
      if type(method) == "function" then
        for _, bad in ipairs { 1, "x", {}, io.stderr, aio.mutex() } do
          assert.error(function() method(bad) end, nil, name)
        end
      end
    end
  end)

  it("that was finalised by hand is empty, and can be used again", function()
    local buffer = aio.buffer(100000):set "x"
    getmetatable(buffer).__gc(buffer)
    getmetatable(buffer).__gc(buffer)
    assert.equal("", buffer:tostring())
    assert.equal(0, #buffer)
    assert.equal("y", buffer:set("y"):tostring())
  end)

  it("that nobody holds is collected long before there are very many, however little Lua sees of them", function()
    local size, there = 1 << 18, setmetatable({}, { __mode = "v" })
    local most = 0
    for i = 1, 600 do
      there[i] = aio.buffer(size):set(("x"):rep(size))
      if i % 20 == 0 then
        local n = 0
        for _ in pairs(there) do n = n + 1 end
        most = math.max(most, n)
      end
    end
    assert.is_true(most < 200, most .. " buffers")
  end)
end)
