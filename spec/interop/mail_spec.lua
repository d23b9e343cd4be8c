-- SPDX-License-Identifier: MIT
--- LuaSocket's own socket.smtp and socket.ftp, unchanged, in tasks: against responders made of streams.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local tasks = require "spec.support.tasks"

local run = tasks.run
local smtp = aio.socket.require "socket.smtp"
local ftp = aio.socket.require "socket.ftp"
local ltn12 = aio.socket.require "ltn12"

-- Serves a dialogue of lines: talk[command](say, argument, read) by the command's name.
local function converse(stream, greeting, talk)
  local _ <close> = stream
  local function say(...) stream:write(table.concat({ ... }, "\r\n"), "\r\n") end
  local function read() return stream:read { until_ = "\r\n" } end
  say(greeting)
  for line in read do
    local command, argument = line:match "^(%a+) ?(.*)"
    local name = command:lower()
    if talk[name] then talk[name](say, argument, read) else say "500 unknown" end
    if name == "quit" then return end
  end
end

local function with_server(greeting, new_talk, fn)
  local server <close> = assert(aio.listen("127.0.0.1", 0))
  local group <close> = aio.group()
  group:spawn(function()
    for stream in server:clients() do group:spawn(converse, stream, greeting, new_talk()) end
  end)
  fn((select(2, server:getsockname())))
  server:close()
  group:cancel()
end

describe("socket.smtp", function()
  local mails

  local function new_talk()
    local mail = { to = {} }
    local function fine(say) say "250 fine" end
    return {
      ehlo = function(say) say("250-here", "250 8BITMIME") end,
      mail = function(say, argument) mail.from = argument fine(say) end,
      rcpt = function(say, argument)
        if argument:find "nobody" then return say "550 no such user" end
        table.insert(mail.to, argument)
        fine(say)
      end,
      data = function(say, _, read)
        say "354 go on"
        aio.sleep(0.01)
        local lines = {}
        for line in read do
          if line == "." then break end
          lines[#lines + 1] = line
        end
        mail.text = table.concat(lines, "\n")
        table.insert(mails, mail)
        fine(say)
      end,
      quit = function(say) say "221 bye" end,
    }
  end

  drivers.each(function(d)
    it("sends, several mails at once", function()
      local ctx = d.context()
      mails = {}
      run(d, ctx, with_server, "220 ready", new_talk, function(port)
        aio.map({ 1, 2, 3, 4, 5, 6, 7, 8 }, function(i)
          assert(smtp.send {
            from = "<me@example.org>", rcpt = { "<a@example.org>", ("<b%d@example.org>"):format(i) },
            server = "127.0.0.1", port = port,
            source = smtp.message {
              headers = { subject = "Mail " .. i }, body = "Hello\r\n.\r\n" .. ("x"):rep(100000),
            },
          })
        end)
        local sent, why = smtp.send {
          from = "<me@example.org>", rcpt = "<nobody@example.org>", server = "127.0.0.1", port = port,
          source = smtp.message { headers = {}, body = "" },
        }
        assert.same({ nil, "550 no such user" }, { sent, why })
      end)
      assert.equal(8, #mails)
      local seen = {}
      for _, mail in ipairs(mails) do
        local i = mail.text:match "[Ss]ubject: Mail (%d)"
        seen[i] = true
        assert.same({ "TO:<a@example.org>", ("TO:<b%s@example.org>"):format(i) }, mail.to)
        assert.equal("FROM:<me@example.org>", mail.from)
        assert.is_true(mail.text:find("\n\nHello\n..\n" .. ("x"):rep(100000), 1, true) ~= nil)
      end
      for i = 1, 8 do assert.is_true(seen[tostring(i)]) end
      tasks.is_quiet(ctx)
    end)
  end)
end)

describe("socket.ftp", function()
  local files

  local function new_talk()
    local data
    local function fine(say) say "200 fine" end
    local function passive(say)
      data = assert(aio.listen("127.0.0.1", 0))
      local _, port = data:getsockname()
      return say, port
    end
    local function transfer(say, fn)
      say "150 here it comes"
      local stream <close> = assert(data:accept())
      data:close()
      fn(stream)
      stream:close()
      say "226 done"
    end
    return {
      user = function(say) say "331 and?" end, pass = function(say) say "230 welcome" end,
      type = fine, cwd = fine,
      epsv = function(say)
        local _, port = passive(say)
        say(("229 passive (|||%d|)"):format(port))
      end,
      pasv = function(say)
        local _, port = passive(say)
        say(("227 passive (127,0,0,1,%d,%d)"):format(port // 256, port % 256))
      end,
      retr = function(say, name) transfer(say, function(stream) stream:write(files[name]) end) end,
      stor = function(say, name) transfer(say, function(stream) files[name] = stream:read "a" end) end,
      quit = function(say) say "221 bye" end,
    }
  end

  drivers.each(function(d)
    it("puts and gets, several files at once", function()
      local ctx = d.context()
      files = {}
      run(d, ctx, with_server, "220 ready", new_talk, function(port)
        aio.map({ 1, 2, 3, 4, 5, 6 }, function(i)
          local content = ("file %d\n"):format(i):rep(50000)
          local name = ("file%d"):format(i)
          assert(ftp.put {
            host = "127.0.0.1", port = port, path = "/" .. name, type = "i", source = ltn12.source.string(content),
          })
          assert.is_true(files[name] == content)
          local got = {}
          assert(ftp.get {
            host = "127.0.0.1", port = port, path = "/" .. name, type = "i", sink = ltn12.sink.table(got),
          })
          assert.is_true(table.concat(got) == content)
        end)
      end)
      tasks.is_quiet(ctx)
    end)
  end)
end)
