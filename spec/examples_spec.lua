-- SPDX-License-Identifier: MIT
--- The examples, with peers that are not ours: curl, socat, bash. What those cannot send is sent by hand.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local shell = require "spec.support.shell"
local tasks = require "spec.support.tasks"

local httpd, chat, proxy = dofile "examples/httpd.lua", dofile "examples/chat.lua", dofile "examples/proxy.lua"
local run = tasks.run

local CURL = "curl -q -sS --noproxy '*' --max-time 20 "

-- Runs fn(site, port) with a site that is stopped after it, and has left nothing behind.
local function with_site(d, handler, limits, fn)
  local ctx = d.context()
  local log = {}
  run(d, ctx, function()
    local server = assert(aio.listen("127.0.0.1", 0))
    local site = httpd.new(server, handler, limits, function(message) log[#log + 1] = message end)
    local serving = aio.spawn(site.serve, site)
    fn(site, select(2, server:getsockname()), log)
    site:stop(5)
    aio.await(serving)
  end)
  tasks.is_quiet(ctx)
  ctx:close()
end

local function dial(port)
  return assert(aio.connect("127.0.0.1", port, { timeout = 5 })):settimeout(10)
end

-- Sends bytes as they are, and returns all that comes back, up to the end.
local function talk(port, bytes, ends)
  local stream <close> = dial(port)
  stream:write(bytes)
  if ends then stream:shutdown() end
  return assert(stream:read "a")
end

local function status_of(answer) return tonumber(answer:match "^HTTP/1%.1 (%d%d%d) ") end

local function echo(request)
  return 200, ("%s %s %s"):format(request.method, request.target, request:body())
end

describe("examples/httpd.lua", function()
  drivers.each(function(d)
    it("answers curl, on one connection as long as that can be", function()
      with_site(d, echo, nil, function(site, port)
        local url = ("http://127.0.0.1:%d"):format(port)
        local out = shell.run(CURL .. "-w ' %%{http_code} %%{num_connects}\\n' %s/a?b=c -d one %s/x", url, url)
        assert.equal("POST /a?b=c one 200 1\nPOST /x one 200 0\n", out)
        assert.equal(1, site.stats.connections)

        out = shell.run(CURL .. "-0 -w ' %%{num_connects}\\n' %s/a %s/b", url, url)
        assert.equal("GET /a  1\nGET /b  1\n", out)
        assert.equal(3, site.stats.connections)

        out = shell.run(CURL .. "-I %s/a", url)
        assert.matches("^HTTP/1.1 200 OK\r\nDate: %a%a%a, .- GMT\r\nContent%-Length: 8\r\n\r\n$", out)

        out = shell.run(CURL .. "-H 'Transfer-Encoding: chunked' -d two -H 'Connection: close' -i %s/c", url)
        assert.matches("^HTTP/1.1 200 OK\r\n.*\r\nConnection: close\r\n\r\nPOST /c two$", out)
        assert.equal(0, site.stats.refused)
      end)
    end)

    it("asks for a body when the client wants to be asked", function()
      with_site(d, echo, { body = 3 << 20 }, function(site, port)
        local send = CURL .. "-v -o /dev/null -T - http://127.0.0.1:%d/ 2>&1 | grep '^< HTTP'"
        local out = shell.run("head -c 2000000 /dev/zero | " .. send, port)
        assert.equal("< HTTP/1.1 100 Continue\r\n< HTTP/1.1 200 OK\r\n", out)
        out = shell.run("head -c 4000000 /dev/zero 2>/dev/null | " .. send, port)
        assert.equal("< HTTP/1.1 100 Continue\r\n< HTTP/1.1 413 Content Too Large\r\n", out)
        out = shell.run([[head -c 4000000 /dev/zero >/tmp/$$; %s -v -o /dev/null -H 'Expect: 100-continue' -T /tmp/$$ \
          http://127.0.0.1:%d/ 2>&1 | grep '^< HTTP'; rm /tmp/$$]], CURL, port)
        assert.equal("< HTTP/1.1 413 Content Too Large\r\n", out)
        assert.equal(2, site.stats.refused)

        local stream <close> = dial(port)
        stream:write "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        assert.equal("HTTP/1.1 100 Continue", stream:read { until_ = "\r\n\r\n" })
        stream:write "abc"
        assert.matches("^HTTP/1.1 200 ", stream:read { until_ = "\r\n\r\n" })
        assert.equal("PUT / abc", stream:read(9))
        stream:write "GET / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n"
        assert.equal(417, status_of(stream:read "a"))
      end)
    end)

    it("answers what was sent in a row in its order, however it was cut, and not for ever", function()
      with_site(d, echo, { requests = 30 }, function(site, port)
        local requests, answers = {}, {}
        for i = 1, 40 do
          requests[i] = i % 3 == 0 and ("GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"):format(i)
            or i % 3 == 1 and ("\r\nPOST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"):format(i)
            or ("PUT /%d HTTP/1.1\r\nHost:\r\ntransfer-encoding: Chunked\r\n\r\n"):format(i)
              .. "2;a=b\r\nbo\r\n02\r\ndy\r\n0\r\nTrailer: x\r\n\r\n"
          local method = i % 3 == 0 and "GET" or i % 3 == 1 and "POST" or "PUT"
          answers[i] = ("%s /%d %s"):format(method, i, i % 3 == 0 and "" or "body")
        end
        local bytes = table.concat(requests)
        for _, n in ipairs { #bytes, 1000, 7 } do
          local stream <close> = dial(port)
          local writer = aio.spawn(function()
            for at = 1, #bytes, n do
              if not stream:write(bytes:sub(at, at + n - 1)) then break end
              if n < 1000 then aio.yield() end
            end
          end)
          for i = 1, 30 do
            local head = assert(stream:read { until_ = "\r\n\r\n" })
            assert.equal(answers[i], stream:read(tonumber(head:match "Content%-Length: (%d+)")))
            assert.equal(i == 30, head:find "Connection: close" ~= nil)
          end
          assert.same({ nil, "eof" }, { stream:read(1) })
          writer:join()
        end
        assert.equal(90, site.stats.requests)
        local out = shell.run([[for i in 1 2 3; do printf 'GET /%%d HTTP/1.1\r\nHost: x\r\n\r\n' $i; done |
          socat -t 10 - TCP:127.0.0.1:%d | grep -a /]], port)
        assert.matches("^.-GET /1 .-GET /2 .-GET /3 \n?$", out)
      end)
    end)

    it("refuses what can be read in two ways, or is too large, and ends", function()
      local function get(more) return "GET / HTTP/1.1\r\nHost: x\r\n" .. more .. "\r\n" end
      local chunked = "Transfer-Encoding: chunked\r\n\r\n"
      local cases = {
        { 400, get "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n" },
        { 400, get "Content-Length: 3\r\nContent-Length: 3\r\n" },
        { 400, get "Content-Length: 3\r\nContent-Length: 4\r\n" },
        { 400, get "Content-Length: 3, 3\r\n" }, { 400, get "Content-Length: +3\r\n" },
        { 400, get "Content-Length: -3\r\n" }, { 400, get "Content-Length: 0x3\r\n" },
        { 400, get "Content-Length: 3 3\r\n" }, { 400, get "Content-Length: \r\n" },
        { 413, get "Content-Length: 101\r\n" }, { 413, get "Content-Length: 99999999999999999999\r\n" },
        { 501, get "Transfer-Encoding: gzip, chunked\r\n" }, { 501, get "Transfer-Encoding: identity\r\n" },
        { 501, get "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" },
        { 501, get "Transfer-Encoding: chunked, x\r\n" }, { 400, get "Transfer-Encoding : chunked\r\n" },
        { 400, "GET / HTTP/1.0\r\n" .. chunked }, { 400, get "X: a\r\n b\r\n" }, { 400, get " X: a\r\n" },
        { 400, get "X : a\r\n" }, { 400, get "X\r\n" }, { 400, get ": a\r\n" }, { 400, get "X: a\nY: b\r\n" },
        { 400, get "X: a\rb\r\n" }, { 400, get "X: a\0b\r\n" }, { 400, get "X\0: a\r\n" }, { 400, get "Host: y\r\n" },
        { 400, "GET / HTTP/1.1\r\n\r\n" }, { 400, "GET / HTTP/1.1\r\nHost: a b\r\n\r\n" }, { 400, "GET /\r\n\r\n" },
        { 400, "GET  / HTTP/1.1\r\nHost: x\r\n\r\n" }, { 400, "GET / x HTTP/1.1\r\nHost: x\r\n\r\n" },
        { 400, " GET / HTTP/1.1\r\nHost: x\r\n\r\n" }, { 400, "G(T / HTTP/1.1\r\nHost: x\r\n\r\n" },
        { 400, "\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n" }, { 400, "\22\3\1\2\0\1\0\1\252\3\3\r\n\r\n" },
        { 505, "GET / HTTP/2.0\r\nHost: x\r\n\r\n" }, { 431, get("X: " .. ("x"):rep(1000) .. "\r\n") },
        { 431, ("x"):rep(100000) },
      }
      for _, body in ipairs { "g\r\n", "-1\r\n", "0x1\r\na\r\n", " 1\r\na\r\n", "1 \r\na\r\n", "1\nab\r\n", "\r\n",
        "1;a\nb\r\n", "1\r\nab\r\n", "1\r\na\n\r\n", "1234567890abc\r\n", "1;" .. ("x"):rep(500) .. "\r\n" } do
        cases[#cases + 1] = { 400, get(chunked:sub(1, -3)) .. body }
      end
      cases[#cases + 1] = { 413, get(chunked:sub(1, -3)) .. "65\r\n" }
      cases[#cases + 1] = { 413, get(chunked:sub(1, -3)) .. "40\r\n" .. ("x"):rep(64) .. "\r\n25\r\n" }
      cases[#cases + 1] = { 431, get(chunked:sub(1, -3)) .. "0\r\n" .. ("X: y\r\n"):rep(200) .. "\r\n" }
      local called = 0
      local function handler(request)
        if request.headers["transfer-encoding"] then request:body() end
        called = called + 1
        return 200, "fine"
      end
      with_site(d, handler, { head = 500, body = 100 }, function(site, port, log)
        for i, case in ipairs(cases) do
          local answer = talk(port, case[2] .. get "")
          assert.equal(case[1], status_of(answer), ("%d: %q"):format(i, case[2]:sub(1, 80)))
          assert.matches("\r\nConnection: close\r\n", answer)
          assert.equal(2, select(2, answer:gsub("%d%d%d %u", ""))) -- no second one
        end
        assert.same({ #cases, #cases, 0, 0 }, { site.stats.refused, site.stats.requests, called, #log })
        assert.equal(400, status_of(talk(port, "GET / HTTP/1.1\r\nHost: x\r\n", true))) -- ends in its midst
        assert.equal("", talk(port, "", true))
        assert.equal(200, status_of(talk(port, get "x-a: \t b \t\r\nX-A:\r\nX-B:c\r\n", true)))
        assert.equal(1, called)
      end)
    end)

    it("does not wait for ever", function()
      with_site(d, echo, { idle = 0.05, patience = 0.1 }, function(_, port)
        assert.equal("", talk(port, ""))
        assert.equal(408, status_of(talk(port, "GET / HT")))
        assert.equal(408, status_of(talk(port, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab")))
        local stream <close> = dial(port)
        for _ = 1, 20 do -- one byte at a time is no way to stay
          stream:write "X"
          aio.sleep(0.01)
        end
        assert.equal(408, status_of(stream:read "a"))
      end)
    end)

    it("survives its handlers", function()
      local closed = 0
      local function handler(request)
        local path = request.path
        if path == "/error" then error "out of order" end
        if path == "/late" then return 200, function() error "too late" end end
        if path == "/status" then error { status = 403 } end
        if path == "/split" then return 200, "", { ["X-A"] = "b\r\nSet-Cookie: c" } end
        if path == "/short" then return 200, io.lines "/dev/null", { ["Content-Length"] = 5 } end
        if path == "/long" then return 200, function() return "abcdef" end, { ["Content-Length"] = 5 } end
        if path == "/empty" then return 204 end
        if path == "/pieces" then
          local n = 0
          local object = setmetatable({}, { __close = function() closed = closed + 1 end })
          return 200, function()
            n = n + 1
            aio.sleep(0.001)
            return n < 4 and ("piece %d,"):format(n) or nil
          end, nil, object
        end
        if path == "/unread" then return 200, "fine" end
      end
      with_site(d, handler, nil, function(site, port, log)
        local url = ("http://127.0.0.1:%d"):format(port)
        local function status(path)
          return tonumber((shell.run(CURL .. "-o /dev/null -w '%%{http_code}' %s%s", url, path)))
        end
        assert.equal(500, status "/error")
        assert.matches("httpd.lua:.*out of order.*traceback", (log[1]:gsub("examples_spec", "httpd")))
        assert.equal(403, status "/status")
        assert.equal(404, status "/")
        assert.equal(500, status "/split")
        assert.equal(204, status "/empty")
        assert.equal(2, #log)
        assert.equal(18, select(2, shell.run(CURL .. "%s/short", url)))
        assert.equal(18, select(2, shell.run(CURL .. "%s/late", url)))
        assert.equal(18, select(2, shell.run(CURL .. "%s/long", url)))
        assert.equal(5, #log)
        assert.equal("piece 1,piece 2,piece 3,", (shell.run(CURL .. "%s/pieces", url)))
        assert.equal("piece 1,piece 2,piece 3,", (shell.run(CURL .. "-0 %s/pieces", url)))
        assert.equal(0, select(2, shell.run(CURL .. "-I %s/pieces", url)))
        assert.equal(3, closed)
        -- A body that nobody read: a small one that is there is no reason to end, another one is.
        local post = "POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        local before = site.stats.requests
        local answer = talk(port, (post:format(4) .. "GET ") .. "GET /unread HTTP/1.1\r\nHost: x\r\n\r\n", true)
        assert.equal(2, select(2, answer:gsub("fine", "")))
        answer = talk(port, (post:format(90) .. "GET ") .. "GET /unread HTTP/1.1\r\nHost: x\r\n\r\n", true)
        assert.equal(1, select(2, answer:gsub("fine", "")))
        assert.matches("\r\nConnection: close\r\n", answer)
        assert.equal(before + 3, site.stats.requests)
      end)
    end)

    it("lets present requests end when it is stopped, for a while", function()
      local ctx = d.context()
      local gate, present = aio.event(), 0
      run(d, ctx, function()
        local server = assert(aio.listen("127.0.0.1", 0))
        local _, port = server:getsockname()
        local site = httpd.new(server, function(request)
          present = present + 1
          if request.path == "/gate" then gate:wait() end
          if request.path == "/never" then aio.sleep(60) end
          return 200, "done"
        end)
        local serving = aio.spawn(site.serve, site)
        local idle, busy, stuck = dial(port), dial(port), dial(port)
        idle:write "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        busy:write "GET /gate HTTP/1.1\r\nHost: x\r\n\r\n"
        stuck:write "GET /never HTTP/1.1\r\nHost: x\r\n\r\n"
        assert.equal(200, status_of(idle:read { until_ = "done", keep = true }))
        while present < 3 do aio.sleep(0.001) end
        local stopping = aio.spawn(site.stop, site, 0.3)
        aio.yield()
        assert.is_nil((aio.connect("127.0.0.1", port)))
        assert.same({ nil, "eof" }, { idle:read() })
        gate:set()
        assert.matches("\r\nConnection: close\r\n\r\ndone$", busy:read "a")
        busy:close()
        assert.equal("", stuck:read "a")
        aio.await(stopping)
        aio.await(serving)
      end)
      tasks.is_quiet(ctx)
    end)

    it("serves others while one reads slowly, or has gone", function()
      local large, folder <close> = ("0123456789abcdef"):rep(1 << 19), shell.folder()
      local function handler(request) return 200, request.path == "/large" and large or "small" end
      with_site(d, handler, nil, function(_, port)
        local gone = dial(port)
        gone:write "GET /large HTTP/1.1\r\nHost: x\r\n\r\n"
        assert(gone:read(100))
        -- Its output is taken no further until the gate is opened.
        local gate = folder.path .. "/gate"
        local slow = aio.spawn(shell.run, [[mkfifo %s
          %s http://127.0.0.1:%d/large | { head -c 100000; read x <%s; cat; } | sha256sum]], gate, CURL, port, gate)
        for n = 1, 10 do
          assert.equal(200, status_of(talk(port, "GET / HTTP/1.0\r\n\r\n")))
          if n == 5 then gone:close() end
        end
        assert.is_false(tasks.over(slow))
        local opened <close> = shell.patiently(io.open, gate, "r+")
        opened:write "\n"
        opened:flush()
        local expected = shell.run("printf '0123456789abcdef%.0s' $(seq 524288) | sha256sum")
        assert.equal(expected, select(2, slow:join()))
      end)
    end)
  end)

  it("is a script that serves a folder, on a port or a path", function()
    local folder <close> = shell.folder()
    local ctx = aio.context()
    local d = drivers.new "poll"
    run(d, ctx, function()
      for _, place in ipairs { "0", folder.path .. "/socket" } do
        local script <close> = shell.start("exec $LUA examples/httpd.lua %s %s", place, folder.path)
        local url = assert(script.stream:read())
        local at = place == "0" and url or "--unix-socket " .. url .. " http://localhost/"
        local out = shell.run([[cd %s; seq 100000 >one; %s -f -T one %stwo && cmp one two && echo same
          %s -f %stwo | cmp - one && echo same; for name in none ..%%%%2fone .one 'one?x'; do
          %s -X POST -o /dev/null -w '%%{http_code} ' %s$name; done; %s %s.. %sone | wc -l]],
          folder.path, CURL, at, CURL, at, CURL, at, CURL, at, at)
        assert.equal("201 Created\nsame\nsame\n405 404 404 405 100001\n", out)
        assert.equal("409", (shell.run("cd %s; mkdir a; %s -o /dev/null -w '%%{http_code}' -T one %sa; rmdir a",
          folder.path, CURL, at)))
        os.execute(("rm -f %s/two"):format(folder.path))
        script.kill "TERM"
        assert.equal(0, script.finish())
      end
      assert.equal("one\n", (shell.run("ls " .. folder.path)))
    end)
    ctx:close()
  end)
end)

describe("examples/chat.lua", function()
  drivers.each(function(d)
    it("lets people talk, in bash", function()
      local ctx = d.context()
      run(d, ctx, function()
        local server = assert(aio.listen("127.0.0.1", 0))
        local room = chat.new(server)
        local serving = aio.spawn(room.serve, room)
        local out, code = shell.run([[
          say() { echo "$2" >&$1; }
          hear() { read -r -t 10 line <&$1 && echo "$1 hears $line" || echo "$1 hears nothing: $?"; }
          ask() { hear $1; say $1 "$2"; }
          exec 3<>/dev/tcp/127.0.0.1/%d; ask 3 ann; hear 3
          exec 4<>/dev/tcp/127.0.0.1/%d; ask 4 ann; ask 4 "b b"; ask 4 bob; hear 4; hear 3
          say 4 hello; hear 3; say 3 $'hi\r'; hear 4
          exec 3>&-; hear 4
          say 4 "$(head -c 600 /dev/zero | tr '\0' x)"; hear 4; hear 4]],
          select(2, server:getsockname()), select(2, server:getsockname()))
        assert.same({ [[
3 hears What is your name?
3 hears * here:
4 hears What is your name?
4 hears That name is taken.
4 hears One word of letters and digits, please.
4 hears * here: ann
3 hears * bob is here
3 hears bob: hello
4 hears ann: hi
4 hears * ann has left
4 hears * bob talks too much
4 hears nothing: 1
]], 0 }, { out, code })
        room:close()
        aio.await(serving)
      end)
      tasks.is_quiet(ctx)
    end)

    it("does not wait for a slow client, and tells it so", function()
      local ctx = d.context()
      local folder <close> = shell.folder()
      run(d, ctx, function()
        local server = assert(aio.listen(folder.path .. "/chat"))
        local room = chat.new(server, { line = 20000, backlog = 10, pause = 0, patience = 10 })
        local serving = aio.spawn(room.serve, room)
        local function join(name)
          local stream = assert(aio.connect(folder.path .. "/chat"))
          stream:write(name, "\n")
          repeat until assert(stream:read()):find "^%* here:"
          return stream
        end
        local slow, listener, speaker = join "slow", join "listener", join "speaker"
        local said = ("x"):rep(10000)
        local heard = aio.spawn(function()
          local n, news = 0, {}
          for line in listener:lines() do
            if line == "speaker: " .. said then n = n + 1 else news[#news + 1] = line end
            if n == 80 then return table.concat(news, "; ") end
          end
        end)
        for _ = 1, 80 do
          speaker:write(said, "\n")
          aio.sleep(0.001)
        end
        assert.equal("* speaker is here; * slow is too slow", aio.await(heard))
        local lines, last = 0, nil
        for line in slow:lines() do
          lines = lines + 1
          last = line
        end
        assert.equal("* slow is too slow", last)
        assert.is_true(lines < 70)
        slow:close()
        for _, stream in ipairs { listener, speaker } do stream:close() end
        room:close()
        aio.await(serving)
      end)
      tasks.is_quiet(ctx)
    end)
  end)
end)

describe("examples/proxy.lua", function()
  -- Runs fn(self, port) with a proxy in front of a target.
  local function with_proxy(d, host, port, limits, fn)
    local ctx = d.context()
    run(d, ctx, function()
      local server = assert(aio.listen("127.0.0.1", 0))
      local self = proxy.new(server, host, port, limits)
      local serving = aio.spawn(self.serve, self)
      fn(self, select(2, server:getsockname()))
      server:close()
      aio.await(serving)
      assert.equal(0, self.stats.open)
    end)
    tasks.is_quiet(ctx)
    ctx:close()
  end

  drivers.each(function(d)
    it("lets who has sent all be answered, from socat to socat", function()
      local folder <close> = shell.folder()
      local path = folder.path .. "/target"
      with_proxy(d, path, nil, nil, function(self, port)
        local target <close> = shell.start("exec socat UNIX-LISTEN:%s SYSTEM:sha256sum", path)
        assert(target)
        shell.patiently(function() return os.execute("test -S " .. path) end)
        local out = shell.run("seq 2000000 | socat -t 10 - TCP:127.0.0.1:%d; seq 2000000 | sha256sum", port)
        local one, other = out:match "^(.-\n)(.*)$"
        assert.equal(other, one)
        assert.same({ connections = 1, open = 0, refused = 0, broken = 0, sent = 14888896, received = #one },
          self.stats)
      end)
    end)

    it("passes HTTP on, and its ends in the other direction", function()
      with_site(d, echo, nil, function(site, port)
        local server = assert(aio.listen("127.0.0.1", 0))
        local self = proxy.new(server, "127.0.0.1", port)
        local serving = aio.spawn(self.serve, self)
        local url = ("http://127.0.0.1:%d"):format(select(2, server:getsockname()))
        assert.equal("POST /a oneGET /b ", (shell.run(CURL .. "%s/a -d one; %s -0 %s/b", url, CURL, url)))
        assert.equal(2, site.stats.connections)
        server:close()
        aio.await(serving)
        assert.equal(site.stats.bytes, self.stats.received)
      end)
    end)

    it("takes no more from one side than the other one takes", function()
      local back = assert(aio.listen("127.0.0.1", 0))
      with_proxy(d, "127.0.0.1", select(2, back:getsockname()), nil, function(self, port)
        local sender = dial(port)
        local target = assert(back:accept())
        local piece, n = ("x"):rep(1 << 20), 0
        sender:settimeout(0.3)
        while n < 64 and sender:write(piece) do n = n + 1 end
        assert.is_true(n < 64)
        assert.is_true(self.stats.sent < 64 << 20)
        sender:settimeout()
        local done = aio.spawn(function() return sender:shutdown() and sender:read "a" end)
        local buffer, total = aio.buffer(1 << 20), 0
        while target:readinto(buffer) do total = total + #buffer end
        target:write "got it"
        target:close()
        assert.equal("got it", aio.await(done))
        assert.equal(total, self.stats.sent)
        assert.is_true(total >= n << 20 and total <= (n + 1) << 20)
        sender:close()
      end)
      back:close()
    end)

    it("gives up a target that is not there, or does not answer, and a link on which nothing moves", function()
      local folder <close> = shell.folder()
      local path = folder.path .. "/full"
      with_proxy(d, path, nil, { connect = 0.05, idle = 0.3 }, function(self, port)
        assert.equal("", talk(port, ""))
        local full = assert(aio.listen(path, { backlog = 0 }))
        local first = assert(aio.connect(path))
        assert.equal("", talk(port, ""))
        assert.equal(2, self.stats.refused)
        full:accept()
        local stream = dial(port)
        local target = assert(full:accept())
        for i = 1, 8 do -- one direction is silent for long, the other is not
          stream:write(i, "\n")
          assert.equal(tostring(i), target:read())
          aio.sleep(0.05)
        end
        assert.equal("", stream:read "a")
        assert.equal(1, self.stats.broken)
        for _, object in ipairs { full, first, stream, target } do object:close() end
      end)
    end)
  end)

  it("is a script that tells its numbers", function()
    local folder <close> = shell.folder()
    local ctx = aio.context()
    run(drivers.new "poll", ctx, function()
      local target = assert(aio.listen(folder.path .. "/target"))
      local script <close> = shell.start("exec $LUA examples/proxy.lua %s/socket %s/target", folder.path, folder.path)
      assert.equal(folder.path .. "/socket", script.stream:read())
      local client = assert(aio.connect(folder.path .. "/socket"))
      local peer = assert(target:accept())
      client:write "hello\n"
      assert.equal("hello", peer:read())
      script.kill "INT"
      assert.equal("connections 1, refused 0, broken 0, sent 6, received 0, ",
        (script.stream:read "a":gsub(" +", " "):gsub("\n", ", ")))
      assert.equal(0, script.finish())
      for _, object in ipairs { target, client, peer } do object:close() end
    end)
    ctx:close()
    assert.same({ "127.0.0.1", 80 }, { proxy.place "80" })
    assert.same({ "example.org", 80 }, { proxy.place "example.org:80" })
    assert.same({ "::1", "http" }, { proxy.place "[::1]:http" })
    assert.same({ "/tmp/a:b/c:1" }, { proxy.place "/tmp/a:b/c:1" })
    assert.same({ "@name" }, { proxy.place "@name" })
  end)
end)
