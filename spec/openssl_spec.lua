-- SPDX-License-Identifier: MIT
--- TLS with openssl at the other end: s_client and s_server, of TLS 1.2 and 1.3.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local pki = require "spec.support.pki"
local shell = require "spec.support.shell"
local tasks = require "spec.support.tasks"

local run = tasks.run
local pack = table.pack
local EPROTO = 71
local versions = { tls1_2 = "TLSv1.2", tls1_3 = "TLSv1.3" }

local function port_of(server) return (select(2, server:getsockname())) end

local function lines_of(from, to)
  local lines = {}
  for i = from, to do lines[#lines + 1] = i end
  return table.concat(lines, "\n") .. "\n"
end

-- It serves one client after the other; its commands come from a file. The program ends when the variable is closed.
local function s_server(folder, options)
  local commands = folder.path .. "/commands"
  local program = shell.start("mkfifo %s && exec openssl s_server -accept 127.0.0.1:0 -cert %s -key %s %s <>%s",
    commands, pki.path "server.pem", pki.path "server.key", options, commands)
  repeat program.port = tonumber(assert(program.stream:read()):match "^ACCEPT .*:(%d+)$") until program.port
  program.commands = assert(io.open(commands, "w"))
  program.commands:setvbuf "no"
  return program
end

-- What it prints up to a line that matches.
local function read_until(program, pattern)
  local lines = {}
  repeat
    lines[#lines + 1] = assert(program.stream:read())
  until lines[#lines]:find(pattern)
  return lines
end

describe("openssl", function()
  drivers.each(function(d)
    for option, version in pairs(versions) do
      it("s_client is served: " .. version, function()
        local ctx = d.context()
        run(d, ctx, function()
          local server <close> = assert(aio.listen("127.0.0.1", 0))
          local serving = aio.spawn(function()
            local stream <close> = assert(server:accept(20))
            assert(stream:starttls(pki.server { alpn = { "x/1" } }))
            for _ = 1, 20000 do
              local line = assert(stream:read "L")
              assert(stream:write(line))
            end
            return { stream:tls():info "protocol", stream:tls():getalpn(), stream:tls():getsniname() }
          end)
          local output, code = shell.run([[
            seq 20000 | openssl s_client -%s -quiet -verify_quiet -connect 127.0.0.1:%d -CAfile %s \
              -verify_return_error -servername localhost -verify_hostname localhost -alpn x/1]],
            option, port_of(server), pki.path "ca.pem")
          assert.same({ version, "x/1", "localhost" }, aio.await(serving))
          assert.equal(0, code, output)
          assert.is_true(output == lines_of(1, 20000), output:sub(1, 300))
        end)
        tasks.is_quiet(ctx)
      end)

      it("s_client that does not know our authority is told of: " .. version, function()
        local ctx = d.context()
        run(d, ctx, function()
          local server <close> = assert(aio.listen("127.0.0.1", 0))
          local serving = aio.spawn(function()
            local stream <close> = assert(server:accept(20))
            local got = pack(stream:starttls(pki.server()))
            return got[1] and pack(stream:read()) or got -- in TLS 1.3 the client answers when all is done
          end)
          local output, code = shell.run(
            "openssl s_client -%s -connect 127.0.0.1:%d -CAfile %s -verify_return_error </dev/null", option,
            port_of(server), pki.path "other.pem")
          assert.equal(1, code)
          assert.matches("verify error", output)
          local got = aio.await(serving)
          assert.same({ 3, nil, EPROTO }, { got.n, got[1], got[3] })
          assert.matches("unknown ca", got[2])
        end)
        tasks.is_quiet(ctx)
      end)

      it("s_server is a server like ours: " .. version, function()
        local ctx, folder <close> = d.context(), shell.folder()
        run(d, ctx, function()
          local program <close> = s_server(folder, "-rev -" .. option)
          local stream <close> = assert(aio.connect("127.0.0.1", program.port))
          assert(stream:starttls(pki.client()))
          assert.equal(version, stream:tls():info "protocol")
          for i = 1000, 1100 do
            assert(stream:write(i, "\n"))
            assert.equal(tostring(i):reverse(), stream:read())
          end
        end)
        tasks.is_quiet(ctx)
      end)

      it("s_server of an authority that we do not know is refused: " .. version, function()
        local ctx, folder <close> = d.context(), shell.folder()
        run(d, ctx, function()
          local program <close> = s_server(folder, "-" .. option)
          local stream <close> = assert(aio.connect("127.0.0.1", program.port))
          assert.same({ n = 3, nil, "certificate verify failed", EPROTO },
            pack(stream:starttls(pki.client { cafile = pki.path "other.pem" })))
          read_until(program, "unknown ca")
        end)
        tasks.is_quiet(ctx)
      end)

      it("s_server may shake hands again, or change its keys, while much is on its way: " .. version, function()
        local ctx, folder <close> = d.context(), shell.folder()
        run(d, ctx, function()
          local program <close> = s_server(folder, "-" .. option)
          local stream <close> = assert(aio.connect("127.0.0.1", program.port))
          assert(stream:starttls(pki.client()))
          -- It prints what it has done in the middle of lines; what it reads at once counts as one command.
          local printed, shaken = "", aio.event()
          local printing = aio.spawn(function()
            local seen = 0
            repeat
              printed = printed .. assert(program.stream:readsome())
              local _, n = printed:gsub("SSL_do_handshake %-> 1\n", "")
              if n > seen then shaken:set() end
              seen = n
            until printed:find "the end\n$"
          end)
          local sent = {}
          for i = 1, 5 do
            sent[i] = lines_of(i * 10000, i * 10000 + 9999)
            local writing = aio.spawn(stream.write, stream, sent[i])
            program.commands:write(option == "tls1_2" and "r\n" or "K\n")
            shaken:wait()
            shaken:clear()
            program.commands:write("answer ", i, "\n")
            assert.equal("answer " .. i, stream:read())
            assert.equal(stream, aio.await(writing))
          end
          stream:write "the end\n"
          aio.await(printing)
          printed = printed:gsub("SSL_do_handshake %-> 1\n", ""):gsub("Read BLOCK\n", "")
          assert.is_true(printed:find(table.concat(sent) .. "the end\n", 1, true) ~= nil)
        end)
        tasks.is_quiet(ctx)
      end)
    end

    it("s_client is echoed by the example", function()
      local ctx = d.context()
      run(d, ctx, function()
        local server <close> = shell.start("exec $LUA examples/tls_echo.lua %s %s", pki.path "server.pem",
          pki.path "server.key")
        local port = assert(server.stream:read()):match "^It listens at port (%d+)$"
        local plain <close> = assert(aio.connect("127.0.0.1", tonumber(port)))
        plain:write "GET / HTTP/1.0\r\n\r\n"
        assert.matches("^handshake: .*http request", server.stream:read())
        local echoed = shell.run([[
          coproc C { exec openssl s_client -quiet -connect localhost:%s -CAfile %s -verify_return_error 2>/dev/null; }
          seq 2000 >&${C[1]}
          head -n 2000 <&${C[0]}
          kill $C_PID]], port, pki.path "ca.pem")
        assert.is_true(echoed == lines_of(1, 2000), echoed:sub(1, 200))
      end)
      tasks.is_quiet(ctx)
    end)
  end)
end)
