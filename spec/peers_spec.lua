-- SPDX-License-Identifier: MIT
--- Streams and programs that are not ours: socat on every kind of socket and on a terminal, pipes of the shell, and
--- curl with as much as 100 MiB.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local shell = require "spec.support.shell"
local tasks = require "spec.support.tasks"

local httpd = dofile "examples/httpd.lua"
local run = tasks.run

local SIZE = 100 << 20
local EIO = 5

-- Tells one client how many bytes it has sent, once they have ended.
local function count(server)
  local stream <close> = assert(server:accept(20))
  local buffer, bytes = aio.buffer(100000), 0
  local n, why
  repeat
    bytes = bytes + (n or 0)
    n, why = stream:readinto(buffer)
  until not n
  assert.equal("eof", why)
  assert(stream:write(bytes, " bytes\n"))
end

describe("socat", function()
  drivers.each(function(d)
    it("sends, ends, and is answered: TCP, a path, the abstract namespace", function()
      local folder <close> = shell.folder()
      local ctx = d.context()
      run(d, ctx, function()
        local abstract = "@" .. folder.path
        for _, place in ipairs { { "127.0.0.1", 0 }, { "*", 0 }, { folder.path .. "/socket" }, { abstract } } do
          local server <close> = assert(aio.listen(table.unpack(place)))
          local _, port = server:getsockname()
          local to = port and "TCP:127.0.0.1:" .. port or place[1] == abstract and "ABSTRACT-CONNECT:" .. folder.path
            or "UNIX-CONNECT:" .. place[1]
          local counter = aio.spawn(count, server)
          assert.equal("1288895 bytes\n", (shell.run("seq 200000 | socat -t 10 - %s", to)))
          aio.await(counter)
        end
      end)
      tasks.is_quiet(ctx)
    end)

    it("answers us, when we have ended: TCP, a path, the abstract namespace", function()
      local folder <close> = shell.folder()
      local text = ("to be counted\n"):rep(100000)
      local ctx = d.context()
      run(d, ctx, function()
        local abstract = "@" .. folder.path
        for _, place in ipairs { "TCP", folder.path .. "/socket", abstract } do
          local listen = place == "TCP" and "-d -d TCP-LISTEN:0,bind=127.0.0.1"
            or place == abstract and "ABSTRACT-LISTEN:" .. folder.path or "UNIX-LISTEN:" .. place
          local peer <close> = shell.start("exec socat %s SYSTEM:'wc -c'", listen)
          local port = place == "TCP" and peer.stream:read():match ":(%d+)$"
          local stream <close> = port and assert(aio.connect("127.0.0.1", tonumber(port)))
            or shell.patiently(aio.connect, place)
          assert.equal(stream, stream:write(text))
          stream:shutdown()
          assert.equal(#text, tonumber((stream:read "a")))
        end
      end)
      tasks.is_quiet(ctx)
    end)

    it("at the other end of a terminal is a stream like others", function()
      local folder <close> = shell.folder()
      local path = folder.path .. "/terminal"
      local ctx = d.context()
      run(d, ctx, function()
        local peer <close> = shell.start("exec socat PTY,link=%s,rawer,wait-slave,pty-interval=0.01 EXEC:cat", path)
        local file = shell.patiently(io.open, path, "r+")
        local terminal <close> = assert(aio.stream(file))
        file:close()
        -- It is there before socat has made it raw, and says more until then.
        terminal:settimeout(0.05)
        repeat
          terminal:write "raw\n"
          local first, more = terminal:read(), false
          while terminal:read() do more = true end
        until first == "raw" and not more
        terminal:settimeout()
        for i = 1, 3 do
          terminal:write("line ", i, "\n")
          assert.equal("line " .. i, terminal:read())
        end
        terminal:settimeout(0.01)
        assert.same({ nil, "timeout" }, { terminal:read() })
        terminal:settimeout()
        local reader = aio.spawn(terminal.read, terminal)
        aio.yield()
        peer.kill "TERM"
        assert.same({ true, nil, "eof" }, { reader:join() })
        assert.equal(EIO, select(3, terminal:write "x"))
      end)
      tasks.is_quiet(ctx)
    end)
  end)
end)

describe("a pipe of the shell", function()
  -- The command that runs a script as a task of another process, under this driver.
  local function script(d, body)
    local drive = d.polls and "aio.run(main)" or [[
      local glib = require "aioloop.glib"
      aio.default():attach()
      local task = aio.spawn(main)
      while task:status() ~= "ended" do glib.iterate(true) end]]
    local source = 'local aio = require "aioloop" local function main() %s end %s'
    return ("$LUA -e '%s'"):format(source:format(body, drive))
  end

  local function halves(text) return text:match "^(.-\n)(.*)$" end

  drivers.each(function(d)
    it("is read from the standard input, and written to from the standard output", function()
      local ctx = d.context()
      run(d, ctx, function()
        local upper = script(d, [[
          local input, output = assert(aio.stream(0)), assert(aio.stream(io.stdout))
          for line in input:lines("L") do assert(output:write(line:upper())) end]])
        local out, code = shell.run("set -o pipefail; echo x | %s | cat", upper)
        assert.same({ "X\n", 0 }, { out, code })
        local one, other = halves((shell.run("{ seq 20000; printf end; } | %s | sha256sum; \
          { seq 20000; printf END; } | sha256sum", upper)))
        assert.equal(other, one)
        local copy = script(d, [[
          local input, output, buffer = assert(aio.stream(0)), assert(aio.stream(1)), aio.buffer(65536)
          while input:readinto(buffer) do assert(output:write(buffer)) end]])
        one, other = halves((shell.run("seq 1000000 | %s | %s | sha256sum; seq 1000000 | sha256sum", copy, copy)))
        assert.equal(other, one)
      end)
    end)

    it("whose reader has gone is an error, and neither a signal nor a wait", function()
      local ctx = d.context()
      run(d, ctx, function()
        local yes = script(d, [[
          local output, ok, message, errno = assert(aio.stream(1))
          repeat ok, message, errno = output:write "yes\n" until not ok
          io.stderr:write(message, " ", errno)]])
        assert.equal("yes\nBroken pipe 32, 0\n", (shell.run('{ %s; echo ", $?" >&2; } | head -n 1', yes)))
      end)
    end)

    it("that was read from by a stream is blocking again for who reads on", function()
      local ctx = d.context()
      run(d, ctx, function()
        local first = script(d, [[assert(aio.stream(0):readsome(4) == "one\n")]])
        local out = shell.run("{ echo one; sleep 0.3; echo two; } | { %s; read -r second; echo $second $?; }", first)
        assert.equal("two 0\n", out)
      end)
    end)
  end)
end)

describe("curl", function()
  local folder, sum

  setup(function()
    folder = shell.folder()
    local make = "unset LD_PRELOAD; head -c %d /dev/urandom | tee %s/data | sha256sum"
    local pipe <close> = io.popen(make:format(SIZE, folder.path))
    sum = pipe:read()
  end)

  teardown(function() getmetatable(folder).__close() end)

  -- Goes to sha256sum, through a pipe.
  local function sum_of(request)
    local path = os.tmpname()
    local pipe = io.popen("unset LD_PRELOAD; sha256sum >" .. path, "w")
    local stream <close> = assert(aio.stream(pipe))
    for piece in request.read, request do assert(stream:write(piece)) end
    stream:close()
    pipe:close()
    local file <close> = io.open(path)
    os.remove(path)
    return 200, file:read "a"
  end

  drivers.each(function(d)
    for _, kind in ipairs { "TCP", d.polls and "a Unix socket" or nil } do
      it("brings and takes 100 MiB, over " .. kind, function()
        local ctx = d.context()
        run(d, ctx, function()
          local get = httpd.folder(folder.path)
          local server = assert(kind == "TCP" and aio.listen("127.0.0.1", 0) or aio.listen(folder.path .. "/socket"))
          local host, port = server:getsockname()
          local site = httpd.new(server, function(request)
            if request.method == "PUT" then return sum_of(request) end
            return get(request)
          end, { body = SIZE })
          local serving = aio.spawn(site.serve, site)
          local url = port and ("http://%s:%d/data"):format(host, port) or "--unix-socket " .. host .. " http://x/data"
          local curl = "curl -q -sS --noproxy '*' --max-time 20 "
          local out = shell.run(curl .. "-T %s/data %s", folder.path, url)
          assert.equal(sum .. "\n", out)
          out = shell.run(curl .. "%s | sha256sum", url)
          assert.equal(sum .. "\n", out)
          site:stop(1)
          aio.await(serving)
          assert.same({ 2, 0 }, { site.stats.requests, site.stats.refused })
        end)
        tasks.is_quiet(ctx)
      end)
    end
  end)
end)
