-- SPDX-License-Identifier: MIT
--- LuaSocket's own socket.http, unchanged, in tasks: against a server of streams, and against busybox httpd.

local aio = require "aioloop"
local child = require "spec.support.child"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local ltn12 = require "ltn12"
local tasks = require "spec.support.tasks"

local run = tasks.run
local http = aio.socket.require "socket.http"

-- ---- a server --------------------------------------------------------------------------------------------------

local LARGE <const> = ("0123456789abcdef"):rep(1 << 16)

local answers = {}

local function answer(stream, status, headers, body)
  local lines = { "HTTP/1.1 " .. status }
  for name, value in pairs(headers) do lines[#lines + 1] = name .. ": " .. value end
  stream:write(table.concat(lines, "\r\n"), "\r\n\r\n", body or "")
end

function answers.length(stream) answer(stream, "200 OK", { ["Content-Length"] = #LARGE }, LARGE) end
function answers.close(stream) answer(stream, "200 OK", { Connection = "close" }, "to the end") end
function answers.missing(stream) answer(stream, "404 Not Found", { ["Content-Length"] = 4 }, "none") end
function answers.redirect(stream) answer(stream, "302 Found", { Location = "/length" }) end

function answers.chunked(stream)
  answer(stream, "200 OK", { ["Transfer-Encoding"] = "chunked" })
  for i = 1, 20 do
    local piece = ("piece %d;"):format(i)
    stream:write(("%x\r\n"):format(#piece), piece, "\r\n")
    aio.yield()
  end
  stream:write "0\r\nX-Trailer: yes\r\n\r\n"
end

function answers.slow(stream)
  aio.sleep(0.05)
  answer(stream, "200 OK", { ["Content-Length"] = 4 }, "slow")
end

function answers.never() aio.sleep(60) end
function answers.cut(stream) answer(stream, "200 OK", { ["Content-Length"] = 100 }, "cut") end

function answers.post(stream, headers)
  local body
  if headers["transfer-encoding"] == "chunked" then
    local pieces = {}
    repeat
      local n = tonumber(stream:read { until_ = "\r\n" }, 16)
      pieces[#pieces + 1] = stream:read(n > 0 and n or 0)
      stream:read { until_ = "\r\n" }
    until n == 0
    body = table.concat(pieces)
  else
    body = stream:read(tonumber(headers["content-length"]))
  end
  answer(stream, "200 OK", { ["Content-Length"] = #body }, body)
end

local function serve(stream)
  local _ <close> = stream
  local what = stream:read { until_ = "\r\n" }:match "^%u+ /(%a*)"
  local headers = {}
  for line in function() return stream:read { until_ = "\r\n" } end do
    if line == "" then break end
    local name, value = line:match "^(.-): (.*)"
    headers[name:lower()] = value
  end
  answers[what](stream, headers)
end

-- Calls fn with the URL of a server.
local function with_server(fn)
  local server <close> = assert(aio.listen("127.0.0.1", 0, { backlog = 512 }))
  local _, port = server:getsockname()
  local group <close> = aio.group()
  group:spawn(function()
    for stream in server:clients() do group:spawn(serve, stream) end
  end)
  fn(("http://127.0.0.1:%d/"):format(port), group)
  server:close()
  group:cancel()
end

describe("socket.http", function()
  drivers.each(function(d)
    local ctx, before

    before_each(function()
      ctx = d.context()
      run(d, ctx, aio.yield)
      tasks.collect()
      before = fds.count()
    end)

    local function nothing_is_left()
      tasks.collect()
      assert.equal(before, fds.count())
      tasks.is_quiet(ctx)
    end

    it("gets and posts, in all the ways there are", function()
      run(d, ctx, with_server, function(url)
        local function expect(body, code, what, post)
          local got, status = http.request(url .. what, post)
          assert.equal(code, status)
          assert.is_true(got == body, what)
        end
        expect(LARGE, 200, "length")
        expect("to the end", 200, "close")
        expect("none", 404, "missing")
        expect(LARGE, 200, "redirect")
        local all = {}
        for i = 1, 20 do all[i] = ("piece %d;"):format(i) end
        expect(table.concat(all), 200, "chunked")
        expect("a=1&b=2", 200, "post", "a=1&b=2")

        local pieces = {}
        assert.equal(1, (http.request {
          url = url .. "post", method = "POST", source = ltn12.source.string(LARGE), sink = ltn12.sink.table(pieces),
        }))
        assert.is_true(table.concat(pieces) == LARGE)
      end)
      nothing_is_left()
    end)

    it("many requests at once overlap", function()
      run(d, ctx, with_server, function(url)
        local start = aio.now()
        local list = {}
        for i = 1, 100 do list[i] = url .. "slow" end
        for _, body in ipairs(aio.map(list, http.request)) do assert.equal("slow", body) end
        local took = aio.now() - start -- one after the other they take 5 s
        assert.is_true(took >= 0.05 and took < 2.5, took)
      end)
      nothing_is_left()
    end)

    it("says what went wrong, as LuaSocket does", function()
      run(d, ctx, with_server, function(url)
        assert.same({ n = 2, nil, "closed" }, table.pack(http.request(url .. "cut")))
        assert.same({ n = 2, nil, "connection refused" }, table.pack(http.request "http://127.0.0.1:1/"))
        assert.is_nil((http.request "http://no.such.host.invalid/"))
        assert.is_nil((http.request "http://"))
        local old = http.TIMEOUT
        http.TIMEOUT = 0.02
        local got = table.pack(http.request(url .. "never"))
        http.TIMEOUT = old
        assert.same({ nil, "timeout" }, { got[1], got[2] })
      end)
      nothing_is_left()
    end)

    it("ends by a limit or a cancel of ours", function()
      run(d, ctx, with_server, function(url)
        assert.same({ n = 2, nil, "timeout" }, table.pack(aio.timeout(0.01, http.request, url .. "never")))
        local index, body = aio.race(function() return http.request(url .. "never") end, function()
          return http.request(url .. "close")
        end)
        assert.same({ 2, "to the end" }, { index, body })
        local task = aio.spawn(http.request, url .. "never"):keep()
        aio.sleep(0.01)
        task:cancel()
        local ok, err = task:join()
        assert.is_true(not ok and aio.is_cancelled(err))
      end)
      nothing_is_left()
    end)
  end)

  it("works in the main chunk, and where it is installed for all", function()
    local it = child.run [[
      local aio = require "aioloop"
      aio.socket.install()
      local http = require "socket.http"
      local server = assert(aio.listen("127.0.0.1", 0))
      local _, port = server:getsockname()
      aio.spawn(function()
        for stream in server:clients() do
          stream:read { until_ = "\r\n\r\n" }
          stream:write "HTTP/1.0 200 OK\r\n\r\nhello"
          stream:close()
        end
      end)
      io.write((http.request(("http://127.0.0.1:%d/"):format(port))))
      server:close()
    ]]
    assert.same({ 0, "hello", "" }, { it.code, it.out, it.err })
  end)
end)

-- ---- a server of others ------------------------------------------------------------------------------------------

if not os.execute "busybox --list 2>/dev/null | grep -qx httpd" then
  describe("socket.http", function() pending "fetches files from busybox httpd: there is none" end)
  return
end

describe("socket.http against busybox httpd", function()
  local folder, pid, url

  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    assert(os.execute("mkdir " .. folder))
    for i = 1, 20 do assert(aio.writefile(("%s/%d.txt"):format(folder, i), ("%d\n"):format(i):rep(i * 5000))) end
    local server = assert(aio.listen("127.0.0.1", 0))
    local _, port = server:getsockname()
    server:close()
    url = ("http://127.0.0.1:%d/"):format(port)
    local command = "busybox httpd -f -p 127.0.0.1:%d -h %s >/dev/null 2>&1 & echo $!"
    local pipe <close> = assert(io.popen(command:format(port, folder)))
    pid = pipe:read "n"
    for _ = 1, 500 do
      local stream <close> = aio.connect("127.0.0.1", port)
      if stream then return end
      aio.sleep(0.01)
    end
    error "busybox httpd does not answer"
  end)

  teardown(function()
    os.execute("kill " .. pid)
    os.execute("rm -r " .. folder)
  end)

  drivers.each(function(d)
    it("forty requests, eight at a time: it has a short queue", function()
      local ctx = d.context()
      run(d, ctx, function()
        local list = {}
        for i = 1, 40 do list[i] = (i - 1) % 20 + 1 end
        local bodies = aio.map(list, function(i)
          local body, code = http.request(("%s%d.txt"):format(url, i))
          assert.equal(200, code)
          return body
        end, 8)
        for i, n in ipairs(list) do assert.is_true(bodies[i] == ("%d\n"):format(n):rep(n * 5000)) end
        assert.equal(404, select(2, http.request(url .. "none.txt")))
      end)
      tasks.is_quiet(ctx)
    end)
  end)
end)
