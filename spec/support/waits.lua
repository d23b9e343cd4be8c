-- SPDX-License-Identifier: MIT
--- Every waiting operation, one row each, for specs that try something on all of them.
--
-- Way    new(o), held(o) by the hand, which holds what the waiter wants -> enter(o), wait(o) by the waiter
--        -> free(o) by the hand ends one wait -> undo(o) by who got it passes it on -> clean(o) by the hand
-- Owner  the hand of a waiter that is a task is a callback; the hand of one that is none is a task
-- Keep   a row says nothing of cancels and time limits: what those must leave behind is the same for all.
--
-- A row has
--   name, wait(o)   the operation; whatever several of them share is in o
--   result          what it returns, packed; or a function(o, results) that asserts
--   free(o)         ends one wait. In o are ctx, helper (a task that calls the functions it is woken with),
--                   span (seconds a sleep lasts) and pass() (lets that time go by)
-- and may have
--   new(o)          by the hand, before anybody waits
--   enter(o), leave(o)  by the waiter, before it waits, and after the wait however it ended
--   held(o), let(o)     by the hand, once all wait, and after one wait has been decided
--   undo(o)         passes on what a successful wait got
--   clean(o)        by the hand, when all is over: asserts that nothing was lost or made up
--   ready(o, gap)   ends one wait and calls gap(), in the helper, before the waiter goes on; without it the hand
--                   does free(o), gap()
--   shared          several can wait at a time, first come, first served
--   fresh           every wait needs a free(o) of its own, which must come while it waits
--   forgets         a free(o) that finds nobody waiting is lost
--   late            it ends with its result also when it is cancelled; the next wait raises
--   unseen          it is not ready until the loop has looked
--   instant         a task that waits in it goes on in the moment it is ready
--   brief           the next turn ends it
--   without         { [phase, "kind phase", position, "phase position"] = true }: no such thing there

local assert = require "luassert"
local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local fds = require "fds"
local jobs = require "spec.support.jobs"
local pki = require "spec.support.pki"

local yes = { n = 1, true }
local values = { n = 3, 1, nil, 3 }

-- A child that waits to be woken; the function it is woken with is called in the moment before it ends.
local function child(o, ...)
  o.child = aio.self()
  local last_words = aio.suspend()
  if last_words then last_words() end
  return ...
end

local function end_child(o) assert.is_true(o.child:wake()) end

-- What it wakes before it ends runs before those who wait for its end.
local function end_child_then(o, gap)
  assert.is_true(o.child:wake(function() assert.is_true(o.helper:wake(gap)) end))
end

local function after_child(row)
  row.free, row.ready = end_child, end_child_then
  return row
end

local function new_child(o) o.child = o.ctx:spawn(child, o, 1, nil, 3) end

local function new_event(o) o.event = aio.event() end
local function set_event(o) o.event:set() end

local function is_lock(o, results) assert.same({ n = 1, o.lock }, results) end
local function unlock(o) o.lock:unlock() end
local function unlock_if_held(o) getmetatable(o.lock).__close(o.lock) end

local function new_mutex(o)
  o.lock = aio.mutex()
  o.lock:lock()
end

local function mutex_is_free(o) assert.is_false(o.lock:locked()) end

local function held_rwlock(mode)
  return function(o)
    o.lock = aio.rwlock()
    o.lock:guard(mode)
  end
end

local function rwlock_is_free(o)
  assert.is_true(o.lock:wrlock(0))
  o.lock:unlock()
end

local function new_condition(o) o.lock, o.condition = aio.mutex(), aio.condition() end
local function lock(o) o.lock:lock() end
local function signal(o) o.condition:signal() end
local function wait_condition(o) return o.condition:wait(o.lock) end

-- Items are numbered; who gets one must get the next.
local function new_source(o) o.queue, o.made, o.got = aio.queue(), 0, 0 end

local function make_item(o)
  o.made = o.made + 1
  o.queue:put(o.made)
end

local function is_next(o, results)
  o.got = o.got + 1
  assert.same({ n = 1, o.got }, results)
end

local function one_is_left(o)
  assert.equal(1, #o.queue)
  assert.equal(o.got + 1, o.queue:get(0))
end

-- Every put is numbered; those that succeeded, and no others, must come out, in their order.
local function new_sink(capacity)
  return function(o)
    o.queue, o.tried, o.put, o.taken = aio.queue(capacity), 0, {}, {}
    for i = 1, capacity do
      o.queue:put(-i)
      o.put[i] = -i
    end
  end
end

local function put_item(o)
  o.tried = o.tried + 1
  local item = o.tried
  local results = table.pack(o.queue:put(item))
  o.put[#o.put + 1] = item
  return table.unpack(results, 1, results.n)
end

local function take_item(o) o.taken[#o.taken + 1] = o.queue:get(0) end

local function all_came_out(o)
  repeat
    local item = o.queue:get(0)
    o.taken[#o.taken + 1] = item
  until item == nil
  assert.same(o.put, o.taken)
end

-- Takes turns until a task of its own has called fn: the hand cannot be suspended.
local function now(o, fn, ...)
  local task = o.ctx:spawn(fn, ...):keep()
  while task:status() ~= "ended" and task:status() ~= "failed" do o.ctx:poll() end
  return aio.await(task)
end

-- The pool has one thread, which is held at a gate; what else is asked of it waits behind that.
local function hold_pool(o)
  assert(o.ctx:set_threads(0, 1))
  o.gate = jobs.gate()
  o.ctx:spawn(aio.work, jobs.pass, o.gate.at)
end

local function open_gate(o) o.gate:open() end

-- What has been given up is over too when a job that came later is.
local function let_pool_go(o)
  open_gate(o)
  now(o, aio.work, jobs.same)
  getmetatable(o.gate).__close(o.gate)
  assert(o.ctx:set_threads(0, 64))
end

local function in_pool(row)
  local new, clean = row.new, row.clean
  function row.new(o)
    if new then new(o) end
    hold_pool(o)
  end
  function row.clean(o)
    let_pool_go(o)
    if clean then clean(o) end
  end
  row.free, row.unseen = open_gate, true
  return row
end

local CONTENT = "line 1\nline 2\nline 3\nline 4\nline 5\nline 6\n"

-- A file whose operations are done by the pool.
local function on_file(row)
  local clean = row.clean
  function row.new(o)
    o.path, o.got = os.tmpname(), 0
    o.file = now(o, function()
      assert(aio.writefile(o.path, CONTENT))
      return assert(aio.open(o.path, "r+", { engine = "threads" }))
    end)
  end
  function row.clean(o)
    if clean then clean(o) end
    o.file:close()
    os.remove(o.path)
  end
  return in_pool(row)
end

local function is_next_line(o, results)
  o.got = o.got + 1
  assert.same({ n = 1, "line " .. o.got }, results)
end

local function next_line_is_left(o) assert.equal("line " .. o.got + 1, now(o, o.file.read, o.file)) end

local function is_open_file(_, results)
  assert.equal(1, results.n)
  assert.matches("^aioloop.file %(open%)", tostring(results[1]))
  results[1]:close()
end

local USR2 = 12

local function new_stream(o) o.stream, o.peer = aio.socketpair() end

local function send(text)
  return function(o) assert(o.peer:write(text)) end
end

local function nothing_is_left(o)
  o.stream:settimeout(0)
  assert.same({ n = 2, nil, "timeout" }, table.pack(o.stream:readsome()))
  o.stream:close()
  o.peer:close()
end

-- The stream is the server: clients are sent more than they ask for.
local function new_tls(o)
  now(o, function()
    new_stream(o)
    local client = aio.spawn(o.peer.starttls, o.peer, pki.client())
    assert(o.stream:starttls(pki.server()))
    assert(aio.await(client))
  end)
end

-- All that has come to the peer.
local function take_all(o)
  local pieces, piece = {}, ""
  repeat
    pieces[#pieces + 1] = piece
    piece = o.peer:settimeout(0):readsome()
  until not piece
  return table.concat(pieces)
end

-- An object of aio.socket; its peer sends lines.
local function new_socket(o)
  now(o, function()
    local server = assert(aio.socket.bind("127.0.0.1", 0))
    o.client = assert(aio.socket.connect("127.0.0.1", (select(2, server:getsockname()))))
    o.peer = assert(server:accept())
    server:close()
  end)
end

local function no_line_is_left(o)
  o.client:settimeout(0)
  assert.same({ n = 3, nil, "timeout", "" }, table.pack(o.client:receive()))
  o.client:close()
  o.peer:close()
end

local function connect_client(o) o.clients[#o.clients + 1] = assert(aio.connect("@" .. tostring(o))) end

-- Datagrams: one more for each that is free(o), or passed on by who got it; one is left in the end.
local function new_udp(o)
  o.sock, o.peer = assert(aio.udp():bind("127.0.0.1", 0)), assert(aio.udp():bind("127.0.0.1", 0))
  assert(o.peer:connect(o.sock:getsockname()))
  o.from = table.pack(o.peer:getsockname())
end

local function send_datagram(o) assert(o.peer:send "datagram") end

local function one_datagram_is_left(o)
  assert.equal("datagram", (o.sock:recv()))
  assert.same({ n = 2, nil, "timeout" }, table.pack(o.sock:settimeout(0):recv()))
  o.sock:close()
  o.peer:close()
end

-- A Unix socket whose receiver has no room: through UDP of this machine everything is received as it is sent.
local function new_full_receiver(o)
  o.name, o.sent, o.left = "@" .. tostring(o), 0, 0
  o.peer, o.sock = assert(aio.udp():bind(o.name)):settimeout(0), aio.udp():settimeout(0)
  while o.sock:sendto("filler", o.name) do o.left = o.left + 1 end
  o.sock:settimeout()
end

local function sent_datagram(o, results)
  assert.same({ n = 1, o.sock }, results)
  o.sent = o.sent + 1
end

local function take_filler(o)
  assert.equal("filler", (o.peer:recv()))
  o.left = o.left - 1
end

local function all_were_sent(o)
  while o.left > 0 do take_filler(o) end
  o.peer:settimeout()
  for _ = 1, o.sent do assert.equal("datagram", (o.peer:recv())) end
  assert.same({ n = 2, nil, "timeout" }, table.pack(o.peer:settimeout(0):recv()))
  o.sock:close()
  o.peer:close()
end

return {
  { name = "sleep", wait = function(o) return aio.sleep(o.span) end, result = yes,
    fresh = true, instant = true, free = function(o) o.pass() end },

  { name = "sleep_until", wait = function(o) return aio.sleep_until(aio.now() + o.span) end, result = yes,
    fresh = true, instant = true, free = function(o) o.pass() end },

  { name = "yield", wait = function() return aio.yield() end, result = { n = 0 }, fresh = true, brief = true,
    free = function() end,
    without = {
      ["ready"] = true, ["timeout while"] = true, ["in the main chunk"] = true, ["in a callback"] = true,
    } },

  { name = "suspend", result = values, fresh = true,
    wait = function(o)
      o.task = aio.self()
      return aio.suspend()
    end,
    free = function(o) o.ctx:co_schedule(o.task, 1, nil, 3) end,
    without = { ["ready in the main chunk"] = true, ["ready in a callback"] = true } }, -- nobody can wake those

  { name = "coroutine.yield", result = values, fresh = true,
    wait = function(o)
      o.task = aio.self()
      return coroutine.yield()
    end,
    free = function(o) o.ctx:co_schedule(o.task, 1, nil, 3) end,
    without = { ["before"] = true, ["in the main chunk"] = true, ["in a callback"] = true } },

  after_child { name = "task:join", new = new_child, result = { n = 4, true, 1, nil, 3 }, shared = true,
    wait = function(o) return o.child:join() end },

  after_child { name = "task:join with a time limit", new = new_child, shared = true,
    result = { n = 4, true, 1, nil, 3 },
    wait = function(o) return o.child:join(10 ^ 6) end },

  after_child { name = "await", new = new_child, result = values, shared = true,
    wait = function(o) return aio.await(o.child) end },

  { name = "wait_readable", result = yes, unseen = true,
    new = function(o) o.r, o.w = drivers.pipe() end,
    wait = function(o) return aio.wait_readable(o.r) end,
    free = function(o) fds.write(o.w, "x") end,
    clean = function(o)
      assert.equal("x", fds.read(o.r))
      drivers.close(o.r)
      drivers.close(o.w)
    end },

  { name = "wait_writable", result = yes, unseen = true,
    new = function(o)
      o.r, o.w = drivers.pipe()
      fds.fill(o.w)
    end,
    wait = function(o) return aio.wait_writable(o.w) end,
    free = function(o) fds.read(o.r) end,
    clean = function(o)
      drivers.close(o.r)
      drivers.close(o.w)
    end },

  -- Whoever waits to write has found no room; what is written is counted in the end.
  { name = "stream:write", shared = true, unseen = true,
    new = function(o)
      o.r, o.w = aio.pipe()
      o.written, o.passed = 0, fds.fill(o.w:getfd())
    end,
    wait = function(o) return o.w:write("ab", "c", 1) end,
    result = function(o, results)
      assert.same({ n = 1, o.w }, results)
      o.written = o.written + 4
    end,
    free = function(o) o.passed = o.passed - #(fds.read(o.r:getfd()) or "") end,
    clean = function(o)
      local rest = fds.read(o.r:getfd())
      assert.equal(("abc1"):rep(o.written // 4), rest)
      assert.equal(0, o.passed)
      o.r:close()
      o.w:close()
    end },

  { name = "stream:writesome", shared = true, unseen = true,
    new = function(o)
      o.r, o.w = aio.pipe()
      o.written, o.passed = 0, fds.fill(o.w:getfd())
    end,
    wait = function(o) return o.w:writesome("xabcx", 2, -2) end,
    result = function(o, results)
      assert.same({ n = 1, 3 }, results)
      o.written = o.written + 3
    end,
    free = function(o) o.passed = o.passed - #(fds.read(o.r:getfd()) or "") end,
    clean = function(o)
      assert.equal(("abc"):rep(o.written // 3), fds.read(o.r:getfd()))
      assert.equal(0, o.passed)
      o.r:close()
      o.w:close()
    end },

  { name = "stream:read", new = new_stream, free = send "123\n", unseen = true, result = { n = 2, "1", "23" },
    wait = function(o) return o.stream:read(1, { until_ = "\n" }) end, clean = nothing_is_left },

  { name = "stream:read of a part", unseen = true, result = { n = 1, "12345" },
    new = function(o)
      new_stream(o)
      o.peer:write "12"
    end,
    wait = function(o) return o.stream:read(5) end,
    free = send "345",
    undo = function(o) o.peer:write "12" end,
    clean = function(o)
      o.stream:readsome(2)
      nothing_is_left(o)
    end },

  { name = "stream:readsome", new = new_stream, free = send "a", unseen = true, result = { n = 1, "a" },
    wait = function(o) return o.stream:readsome(1) end, clean = nothing_is_left },

  { name = "stream:readinto", unseen = true, result = { n = 1, 1 }, free = send "a",
    new = function(o)
      new_stream(o)
      o.buffer = aio.buffer(1)
    end,
    wait = function(o) return o.stream:readinto(o.buffer) end, clean = nothing_is_left },

  { name = "stream:shutdown", unseen = true,
    new = function(o)
      o.stream, o.peer = aio.socketpair()
      fds.fill(o.stream:getfd())
      o.stream:setbound(1):write "x"
    end,
    wait = function(o) return o.stream:shutdown() end,
    result = function(o, results) assert.same({ n = 1, o.stream }, results) end,
    free = function(o) repeat until not fds.read(o.peer:getfd()) end,
    clean = function(o)
      o.stream:close()
      o.peer:close()
    end },

  -- Nobody answers, until somebody answers with what is no TLS.
  { name = "stream:starttls", fresh = true, forgets = true, unseen = true,
    new = function(o) o.streams = {} end,
    wait = function(o)
      new_stream(o)
      table.insert(o.streams, o.stream)
      table.insert(o.streams, o.peer)
      return o.stream:starttls(pki.server())
    end,
    free = function(o) o.peer:write "no TLS" end,
    result = function(_, results) assert.same({ 3, nil, 71 }, { results.n, results[1], results[3] }) end, -- EPROTO
    clean = function(o)
      for _, stream in ipairs(o.streams) do stream:close() end
    end },

  { name = "stream:read of TLS", new = new_tls, free = send "123\n", unseen = true, result = { n = 2, "1", "23" },
    wait = function(o) return o.stream:read(1, { until_ = "\n" }) end, clean = nothing_is_left },

  { name = "stream:readsome of TLS", new = new_tls, free = send "a", unseen = true, result = { n = 1, "a" },
    wait = function(o) return o.stream:readsome(1) end, clean = nothing_is_left },

  { name = "stream:write of TLS", shared = true, unseen = true,
    new = function(o)
      new_tls(o)
      o.written, o.got = 0, ""
      repeat until not o.stream:settimeout(0):write(("x"):rep(10000))
      o.stream:settimeout()
    end,
    wait = function(o) return o.stream:write("ab", "c", 1) end,
    result = function(o, results)
      assert.same({ n = 1, o.stream }, results)
      o.written = o.written + 4
    end,
    free = function(o) o.got = o.got .. take_all(o) end,
    clean = function(o)
      repeat -- what has begun is finished by the loop
        o.got = o.got .. take_all(o)
        o.ctx:poll(0)
      until select(2, o.stream:settimeout(0):shutdown()) ~= "timeout"
      o.got = o.got .. take_all(o)
      assert.equal(("abc1"):rep(o.written // 4), (o.got:gsub("^x+", "")))
      o.stream:close()
      o.peer:close()
    end },

  { name = "server:accept", shared = true, unseen = true,
    new = function(o)
      o.server = assert(aio.listen("@" .. tostring(o)))
      o.clients = {}
    end,
    wait = function(o) return o.server:accept() end,
    result = function(_, results)
      assert.same({ 1, "stream" }, { results.n, aio.type(results[1]) })
      results[1]:close()
    end,
    free = connect_client, undo = connect_client,
    clean = function(o)
      assert(o.server:accept(0)):close()
      assert.same({ n = 2, nil, "timeout" }, table.pack(o.server:accept(0)))
      for _, client in ipairs(o.clients) do client:close() end
      o.server:close()
    end },

  { name = "udp:recvfrom", new = new_udp, shared = true, unseen = true,
    wait = function(o) return o.sock:recvfrom() end,
    result = function(o, results) assert.same({ n = 3, "datagram", o.from[1], o.from[2] }, results) end,
    free = send_datagram, undo = send_datagram, clean = one_datagram_is_left },

  { name = "udp:recvinto", new = new_udp, shared = true, unseen = true,
    wait = function(o) return o.sock:recvinto(aio.buffer(4)) end,
    result = function(o, results) assert.same({ n = 4, 4, o.from[1], o.from[2], 8 }, results) end,
    free = send_datagram, undo = send_datagram, clean = one_datagram_is_left },

  { name = "udp:sendto", new = new_full_receiver, shared = true, unseen = true, result = sent_datagram,
    wait = function(o) return o.sock:sendto("datagram", o.name) end,
    free = take_filler, undo = take_filler, clean = all_were_sent },

  { name = "udp:send", shared = true, unseen = true, result = sent_datagram,
    new = function(o)
      new_full_receiver(o)
      assert(o.sock:connect(o.name))
    end,
    wait = function(o) return o.sock:send "datagram" end,
    free = take_filler, undo = take_filler, clean = all_were_sent },

  in_pool { name = "udp:sendto with a name", shared = true,
    new = function(o)
      o.sent, o.left = 0, 0
      o.sock, o.peer = aio.udp(), assert(aio.udp { timeout = 0 }:bind(drivers.localhost, 0))
      o.port = select(2, o.peer:getsockname())
    end,
    wait = function(o) return o.sock:sendto("datagram", "localhost", o.port) end,
    result = sent_datagram, clean = all_were_sent },
  { name = "socket:receive", new = new_socket, unseen = true, result = { n = 3, "line" },
    wait = function(o) return o.client:receive() end,
    free = function(o) assert(o.peer:send "line\r\n") end, clean = no_line_is_left },

  { name = "socket.select", new = new_socket, unseen = true,
    wait = function(o) return aio.socket.select({ o.client }, nil) end,
    result = function(o, results)
      assert.same({ 2, { o.client, [o.client] = 1 }, {} }, { results.n, results[1], results[2] })
      assert.equal("line", o.client:receive())
    end,
    free = function(o) assert(o.peer:send "line\n") end,
    undo = function() end,
    clean = function(o)
      while o.client:settimeout(0) and o.client:receive() do end -- those of waits that were given up
      no_line_is_left(o)
    end },

  { name = "mutex:lock", new = new_mutex, result = yes, shared = true,
    wait = function(o) return o.lock:lock() end,
    free = unlock, undo = unlock, clean = mutex_is_free },

  { name = "mutex:lock with a time limit", new = new_mutex, result = yes, shared = true,
    wait = function(o) return o.lock:lock(10 ^ 6) end,
    free = unlock, undo = unlock, clean = mutex_is_free },

  { name = "mutex:guard", new = new_mutex, result = is_lock, shared = true,
    wait = function(o) return o.lock:guard() end,
    free = unlock, undo = unlock, clean = mutex_is_free },

  { name = "rwlock:rdlock", new = held_rwlock "w", result = yes, shared = true,
    wait = function(o) return o.lock:rdlock() end,
    free = unlock, undo = unlock, clean = rwlock_is_free },

  { name = "rwlock:wrlock", new = held_rwlock "w", result = yes, shared = true,
    wait = function(o) return o.lock:wrlock() end,
    free = unlock, undo = unlock, clean = rwlock_is_free },

  { name = "rwlock:wrlock behind a reader", new = held_rwlock "r", result = yes, shared = true,
    wait = function(o) return o.lock:wrlock() end,
    free = unlock, undo = unlock, clean = rwlock_is_free },

  { name = "rwlock:guard of a reader", new = held_rwlock "w", result = is_lock, shared = true,
    wait = function(o) return o.lock:guard "r" end,
    free = unlock, undo = unlock, clean = rwlock_is_free },

  { name = "rwlock:guard of a writer", new = held_rwlock "w", result = is_lock, shared = true,
    wait = function(o) return o.lock:guard "w" end,
    free = unlock, undo = unlock, clean = rwlock_is_free },

  { name = "rwlock:upgrade", new = held_rwlock "r", result = yes,
    enter = function(o) o.lock:rdlock() end,
    wait = function(o) return o.lock:upgrade() end,
    leave = unlock_if_held,
    free = unlock, clean = rwlock_is_free },

  { name = "condition:wait", new = new_condition, result = yes, shared = true,
    enter = lock, wait = wait_condition, leave = unlock,
    free = signal, undo = signal, clean = mutex_is_free, forgets = true },

  { name = "condition:wait while the mutex is taken", new = new_condition, result = yes, shared = true,
    enter = lock, wait = wait_condition, leave = unlock, held = lock, let = unlock,
    free = signal, undo = signal, clean = mutex_is_free, forgets = true, without = { ["ready"] = true } },

  { name = "semaphore:acquire", result = yes, shared = true,
    new = function(o) o.semaphore = aio.semaphore(0) end,
    wait = function(o) return o.semaphore:acquire() end,
    free = function(o) o.semaphore:release() end,
    undo = function(o) o.semaphore:release() end,
    clean = function(o)
      assert.is_true(o.semaphore:acquire(0))
      assert.same({ n = 2, nil, "timeout" }, table.pack(o.semaphore:acquire(0)))
    end },

  { name = "event:wait", new = new_event, result = yes, shared = true,
    wait = function(o) return o.event:wait() end, free = set_event },

  { name = "queue:get", new = new_source, result = is_next, shared = true,
    wait = function(o) return o.queue:get() end,
    free = make_item, undo = make_item, clean = one_is_left },

  { name = "queue:get with a time limit", new = new_source, result = is_next, shared = true,
    wait = function(o) return o.queue:get(10 ^ 6) end,
    free = make_item, undo = make_item, clean = one_is_left },

  { name = "queue:iter", new = new_source, result = is_next, shared = true,
    wait = function(o)
      for item in o.queue:iter() do -- luacheck: ignore 512
        return item
      end
    end,
    free = make_item, undo = make_item, clean = one_is_left },

  { name = "queue:put", new = new_sink(1), result = yes, shared = true, wait = put_item,
    free = take_item, undo = take_item, clean = all_came_out },

  { name = "queue:put without room", new = new_sink(0), result = yes, shared = true, wait = put_item,
    free = take_item, undo = take_item, clean = all_came_out, forgets = true },

  after_child { name = "group:wait", result = yes, shared = true,
    new = function(o)
      o.group = aio.group()
      o.group:spawn(child, o)
    end,
    wait = function(o) return o.group:wait() end },

  after_child { name = "the end of a group", result = { n = 1, "over" }, fresh = true,
    wait = function(o)
      do
        local group <close> = aio.group()
        group:spawn(child, o)
        group:spawn(child, {}):cancel()
      end
      return "over"
    end },

  { name = "from_callback", result = values, fresh = true,
    wait = function(o) return aio.from_callback(function(_, callback) o.callback = callback end, 1) end,
    free = function(o) o.callback(1, nil, 3) end },

  after_child { name = "gather", result = values, fresh = true,
    wait = function(o)
      return aio.gather(function() return child(o, 1) end, function() end, function() return 3, 4 end)
    end },

  after_child { name = "race", result = { n = 4, 2, "won", nil, 3 }, fresh = true,
    wait = function(o) return aio.race(aio.suspend, function() return child(o, "won", nil, 3) end) end },

  after_child { name = "map", result = { n = 1, { n = 3, 10, 20, 30 } }, fresh = true,
    wait = function(o)
      return aio.map({ 1, 2, 3 }, function(x)
        if x == 3 then child(o) end
        return x * 10
      end, 2)
    end },

  { name = "a generator of aio.wrap", new = new_event, result = { n = 3, true, "in", nil },
    wait = function(o)
      return aio.wrap(function(...)
        coroutine.yield(o.event:wait(), ...)
      end)("in", nil)
    end,
    free = set_event },

  { name = "a generator in a generator", new = new_event, result = yes,
    wait = function(o)
      local outer = aio.wrap(function()
        for got in aio.wrap(function() coroutine.yield(o.event:wait()) end) do coroutine.yield(got) end
      end)
      return outer()
    end,
    free = set_event },

  { name = "aio.timeout", new = new_event, result = yes, shared = true,
    wait = function(o) return aio.timeout(10 ^ 6, o.event.wait, o.event) end, free = set_event },

  { name = "pcall, a metamethod and <close>", new = new_event, result = yes, shared = true,
    wait = function(o)
      local object = setmetatable({}, {
        __index = function()
          local _ <close> = setmetatable({}, { __close = function() end })
          return o.event:wait()
        end,
      })
      local ok, result = pcall(function() return object.field end)
      if not ok then error(result, 0) end
      return result
    end,
    free = set_event },

  in_pool { name = "work", result = values, shared = true,
    wait = function() return aio.work(jobs.same, 1, nil, 3) end },

  in_pool { name = "getaddrinfo", shared = true,
    result = function(_, results)
      assert.equal(1, results.n)
      assert.equal(80, results[1][1].port)
    end,
    wait = function() return aio.getaddrinfo("localhost", 80) end },

  in_pool { name = "getnameinfo", shared = true, result = { n = 2, "localhost", "http" },
    wait = function() return aio.getnameinfo("127.0.0.1", 80) end },

  on_file { name = "open", result = is_open_file, shared = true, wait = function(o) return aio.open(o.path) end },

  on_file { name = "readfile", result = { n = 1, CONTENT }, shared = true,
    wait = function(o) return aio.readfile(o.path) end },

  on_file { name = "file:read", result = is_next_line, wait = function(o) return o.file:read() end,
    clean = next_line_is_left },

  on_file { name = "file:lines", result = is_next_line, wait = function(o) return o.file:lines()() end,
    clean = next_line_is_left },

  on_file { name = "file:write", wait = function(o) return o.file:write "LINE" end,
    result = function(o, results) assert.same({ n = 1, o.file }, results) end,
    -- What was given up had not begun, or it is done all the same.
    clean = function(o) assert.matches("^LINE", now(o, o.file.pread, o.file, 100, 0)) end },

  on_file { name = "file:pread", result = { n = 1, CONTENT }, shared = true,
    wait = function(o) return o.file:pread(100, 0) end },

  on_file { name = "file:pread into a buffer", result = { n = 1, #CONTENT }, shared = true,
    wait = function(o) return o.file:pread(aio.buffer(100), 0) end },

  on_file { name = "file:pwrite", result = { n = 1, 4 }, shared = true,
    wait = function(o) return o.file:pwrite("LINE", 7) end,
    clean = function(o) assert.equal("line 1\nLINE 2", now(o, o.file.pread, o.file, 13, 0)) end },

  on_file { name = "file:sync", result = yes, shared = true, wait = function(o) return o.file:sync() end },

  on_file { name = "file:datasync", result = yes, shared = true, wait = function(o) return o.file:datasync() end },

  on_file { name = "file:truncate", result = yes, shared = true, wait = function(o) return o.file:truncate(6) end,
    clean = function(o) assert.equal("line 1", now(o, o.file.pread, o.file, 100, 0)) end },

  on_file { name = "file:stat", shared = true, wait = function(o) return o.file:stat() end,
    result = function(_, results) assert.same({ 1, #CONTENT }, { results.n, results[1].size }) end },

  { name = "wait_signal", result = yes, unseen = true, forgets = true,
    new = function(o) o.handle = assert(o.ctx:signal(USR2, function() end)) end, -- it would be fatal else
    wait = function() return aio.wait_signal(USR2) end,
    free = function() assert(fds.kill(USR2)) end,
    clean = function(o) o.handle:close() end },
}
