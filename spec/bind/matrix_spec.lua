-- SPDX-License-Identifier: MIT
--- Every waiting operation, cancelled and timed out, before, while and after it waits, wherever a waiter can be.

local aio = require "aioloop"
local drivers = require "spec.support.drivers"
local waits = require "spec.support.waits"

local SPAN = 1000 -- virtual seconds that a sleep lasts
local virtual = aio.clock.virtual

-- ---- cells -----------------------------------------------------------------------------------------------------

local phases = { "before", "before, with no need to wait", "while", "ready" }

-- The limit, in virtual seconds and in real ones.
local limits = {
  ["before"] = { 0, 0 },
  ["before, with no need to wait"] = { 0, 0 },
  ["while"] = { 1, 0.0005 },
  ["ready"] = { 2 * SPAN, 0.002 },
}

local function spin(until_)
  while aio.now() <= until_ do end
end

-- Calls fn so many turns later.
local function later(ctx, turns, fn)
  ctx:schedule(function()
    if turns > 1 then later(ctx, turns - 1, fn) else fn() end
  end)
end

-- From outside of the task that waits, or is about to.
local function act_on_waiter(d, cell, crowd, act)
  cell.turn_until_waiting(d.turn)
  crowd()
  if cell.brief then return act() end
  d.turns(cell.ctx, 3)
  cell.ctx:schedule(act)
end

-- Each brings a waiter to its wait, calls `crowd`, some turns later `act`, and returns when cell.over.
local positions = {
  { name = "in the main chunk", real = true, polls = true, stage = function(_, cell, waiter, crowd, act)
    cell.ctx:schedule(crowd)
    later(cell.ctx, 4, act)
    waiter()
  end },

  { name = "in a callback", polls = true, stage = function(_, cell, waiter, crowd, act)
    cell.ctx:schedule(function()
      cell.ctx:schedule(crowd)
      later(cell.ctx, 4, act)
      waiter()
    end)
  end },

  { name = "in a task", stage = function(d, cell, waiter, crowd, act)
    cell.ctx:spawn(waiter)
    act_on_waiter(d, cell, crowd, act)
  end },

  { name = "in a task under a nested poll", stage = function(_, cell, waiter, crowd, act)
    local ctx = cell.ctx
    ctx:spawn(function()
      ctx:spawn(waiter)
      cell.turn_until_waiting(ctx.poll)
      crowd()
      if cell.brief then
        act()
      else
        for _ = 1, 3 do ctx:poll(false) end
        ctx:schedule(act)
      end
      cell.wait_until_over(function() ctx:poll(0.01) end)
    end)
  end },

  { name = "in a nested task", stage = function(d, cell, waiter, crowd, act)
    cell.ctx:spawn(function()
      local group <close> = aio.group()
      group:spawn(function()
        local inner <close> = aio.group()
        inner:spawn(waiter)
      end)
    end)
    act_on_waiter(d, cell, crowd, act)
  end },
}

local function excluded(row, kind, phase, position)
  local without = row.without or {}
  local gap = phase == "ready" and not position.polls -- between ready and resumed
  return kind == "cancel" and position.polls -- that is no task
    or phase == "before, with no need to wait" and (row.fresh or row.forgets)
    or gap and row.instant
    or gap and row.ready and kind == "timeout" -- in a coroutine no time limit ends before those that were woken run
    or without[phase] or without[kind .. " " .. phase]
    or without[position.name] or without[phase .. " " .. position.name]
end

-- ---- one cell --------------------------------------------------------------------------------------------------

local function helper()
  for fn in aio.suspend do fn() end
end

local function by_hand(d, cell, fn)
  if not fn then return end
  if cell.polls then
    assert.is_true(cell.o.helper:wake(function() fn(cell.o) end))
  elseif aio.current() == cell.ctx then
    fn(cell.o)
  else
    cell.ctx:schedule(fn, cell.o)
    d.turns(cell.ctx, 1)
  end
end

local function expect(row, o, results)
  if type(row.result) == "function" then return row.result(o, results) end
  assert.same(row.result, results)
end

local function raised(results, first)
  assert.equal(2, results.n)
  assert.is_false(results[1])
  assert.is_true(aio.is_cancelled(results[2]))
  if first then assert.is_true(rawequal(first, results[2])) end
end

-- What waits: once as the cell says, and then once more.
local function new_waiter(row, kind, phase, cell)
  local o = cell.o
  local token = {}
  cell.weak[#cell.weak + 1] = token

  local function call()
    if kind == "cancel" then return row.wait(o) end
    return aio.timeout(cell.limit, function()
      cell.armed = aio.now()
      local results = table.pack(row.wait(o))
      cell.inner = table.pack(pcall(aio.yield))
      return table.unpack(results, 1, results.n)
    end)
  end

  return function()
    cell.weak[#cell.weak + 1] = aio.self()
    cell.task = aio.self()
    token.here = true -- or it would not be an upvalue
    if row.enter then row.enter(o) end
    cell.from = aio.now()
    if kind == "cancel" and phase:find "^before" then assert.is_true(aio.self():cancel "why") end
    cell.first = table.pack(pcall(call))
    cell.second = table.pack(pcall(aio.yield))
    if cell.first[1] and (cell.kept or row.late) then
      local fine, wrong = pcall(expect, row, o, table.pack(table.unpack(cell.first, 2, cell.first.n)))
      if not fine then cell.wrong = wrong end
      if fine and row.undo then aio.shield(row.undo, o) end
    end
    if row.leave then row.leave(o) end
    cell.over, cell.task = true, nil
  end
end

local function new_rival(row, cell, i)
  return function()
    local o = cell.o
    if row.enter then row.enter(o) end
    expect(row, o, table.pack(row.wait(o)))
    cell.order[#cell.order + 1] = i
    if row.undo then row.undo(o) end
    if row.leave then row.leave(o) end
  end
end

-- The waiter itself has looked at a result that it kept.
local function check_results(row, kind, cell)
  if cell.wrong then error(cell.wrong, 0) end
  local kept = cell.kept or row.late
  local first = cell.first
  if kept then
    assert.is_true(first[1])
  elseif kind == "timeout" then
    assert.same({ n = 3, true, nil, "timeout" }, first)
  else
    raised(first)
    assert.equal("why", first[2].reason)
  end
  if kind == "timeout" then
    assert.same({ n = 1, true }, cell.second)
    if kept then raised(cell.inner) else assert.is_nil(cell.inner) end
  else
    raised(cell.second, not kept and first[2] or nil)
  end
end

local fields = { "tasks", "live", "timers_armed", "watches", "bhs_pending" }

local function counts(ctx)
  local stats, list = ctx:stats(), {}
  for _, field in ipairs(fields) do list[field] = stats[field] end
  return list
end

local function new_cell(d, row, phase, position, weak, patience)
  local ctx = position.real and aio.default() or d.context { clock = "virtual" }
  if position.real and d.is_glib then assert(ctx:attach()) end
  local o = { ctx = ctx, span = SPAN, helper = ctx:spawn(helper) }
  local cell = { ctx = ctx, o = o, order = {}, weak = weak, polls = position.polls, brief = row.brief }
  cell.limit = limits[phase][position.real and 2 or 1] * patience
  cell.kept = phase == "ready" and not row.unseen
  weak[#weak + 1] = o

  function o.pass() virtual:advance(SPAN) end
  if position.real then
    o.span = phase == "ready" and 0.001 or 60
    function o.pass() spin((cell.from or aio.now()) + 0.001) end
  end

  function cell.wait_until_over(turn)
    for _ = 1, 1000 do
      if cell.over then return end
      turn()
    end
    error "what the cell waits for never happened"
  end

  function cell.turn_until_waiting(turn)
    for _ = 1, 10 do
      if cell.from then return end
      turn(ctx, false)
    end
  end

  return cell, o, ctx
end

local function run(d, row, kind, phase, position, weak, patience)
  local cell, o, ctx = new_cell(d, row, phase, position, weak, patience or 1)
  local early = phase:find "^before" ~= nil
  d.turns(ctx, 2)
  local before = counts(ctx)
  by_hand(d, cell, row.new)
  d.turns(ctx, 2)

  local function rivals(from, to)
    for i = from, to do ctx:spawn(new_rival(row, cell, i)) end
  end

  local function crowd()
    if row.shared and not early then rivals(1, 2) end
  end

  local function strike()
    if kind == "cancel" then
      assert.is_true(cell.task:cancel "why")
      assert.is_true(cell.task:cancel "again")
    elseif position.real then
      spin(cell.armed + cell.limit)
    else
      virtual:advance(cell.limit)
    end
  end

  -- What is due at the same time is called in one go, in the order in which it was armed: first this, then the limit.
  local in_one_go = kind == "timeout" and phase == "ready" and not position.real and (row.unseen or not position.polls)
  local timer = in_one_go and ctx:timer(function() row.free(o) end):arm(cell.limit)

  local function act()
    if early then return end
    cell.spoilt = cell.spoilt or phase == "ready" and position.real and aio.now() >= cell.from + cell.limit
    by_hand(d, cell, row.held)
    if phase == "while" or timer then
      strike()
    elseif row.ready then
      row.ready(o, strike)
    else
      by_hand(d, cell, function()
        row.free(o)
        strike()
      end)
    end
    by_hand(d, cell, row.let)
  end

  if phase == "before, with no need to wait" then by_hand(d, cell, row.free) end
  position.stage(d, cell, new_waiter(row, kind, phase, cell), crowd, act)
  d.wait(ctx, function() return cell.over end)
  if phase == "ready" and position.real then
    d.turns(ctx, 5)
    -- This machine is slower than that, or was just now; what is wrong stays wrong, however long the limit.
    if cell.spoilt or (patience or 1) < 4096 and not pcall(check_results, row, kind, cell) then
      ctx:close()
      return run(d, row, kind, phase, position, weak, (patience or 1) * 4)
    end
  end
  check_results(row, kind, cell)

  -- what it waited for, and the loop, are as if it had never waited, or had been served like any other
  d.turns(ctx, 5)
  local n = row.shared and not early and 2 or 0
  if position.real then o.span = 0.0005 end
  rivals(n + 1, n + (row.shared and 2 or 1))
  n = n + (row.shared and 2 or 1)
  d.turns(ctx, 4)
  cell.from = nil
  if row.fresh or row.forgets or phase == "before" or phase == "while" then by_hand(d, cell, row.free) end
  d.wait(ctx, function() return #cell.order == n end)
  for i = 1, n do assert.equal(i, cell.order[i]) end
  by_hand(d, cell, row.clean)
  d.turns(ctx, 4)
  assert.same(before, counts(ctx))

  o.helper:wake()
  assert.equal("ended", o.helper:status())
  if not position.real then
    ctx:close()
  elseif d.is_glib then
    ctx:detach()
  end
end

-- ---- all of them -----------------------------------------------------------------------------------------------

local passed = {}

local function count(row, kind, phase)
  local line = passed[row.name] or {}
  passed[row.name] = line
  local column = kind .. " " .. phase
  line[column] = (line[column] or 0) + 1
end

local function collect(weak)
  for _ = 1, 2 do collectgarbage() end
  return next(weak)
end

describe("a wait that is cancelled or timed out #slow", function()
  local columns = {}
  for _, kind in ipairs { "cancel", "timeout" } do
    for _, phase in ipairs(phases) do columns[#columns + 1] = kind .. " " .. phase end
  end

  lazy_teardown(function()
    if not os.getenv "MATRIX" then return end
    io.write(("\n%-42s"):format "passed cells")
    for i = 1, #columns do io.write(("  (%d)"):format(i), i == #columns and "\n" or "") end
    local total = 0
    for _, row in ipairs(waits) do
      io.write(("%-42s"):format(row.name))
      for _, column in ipairs(columns) do
        local n = passed[row.name] and passed[row.name][column] or 0
        total = total + n
        io.write(("%5d"):format(n))
      end
      io.write "\n"
    end
    for i, column in ipairs(columns) do io.write(("(%d) %s  "):format(i, column)) end
    io.write(("\n%d cells\n"):format(total))
  end)

  drivers.each(function(d)
    for _, row in ipairs(waits) do
      for _, kind in ipairs { "cancel", "timeout" } do
        it(("%s: %s"):format(kind, row.name), function()
          local weak = setmetatable({}, { __mode = "v" })
          for _, phase in ipairs(phases) do
            for _, position in ipairs(positions) do
              if not excluded(row, kind, phase, position) then
                local ok, err = xpcall(run, debug.traceback, d, row, kind, phase, position, weak)
                if not ok then
                  aio.default():close()
                  error(("%s, %s: %s"):format(phase, position.name, tostring(err)), 0)
                end
                count(row, kind, phase)
              end
            end
          end
          assert.is_nil(collect(weak))
        end)
      end
    end
  end)
end)
