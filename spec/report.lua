-- SPDX-License-Identifier: MIT
--- busted output handler for spec/run.sh: what plainTerminal prints, and a file that says how it went.
--
-- While a spec runs the file holds its name, so that a crash tells where; at the end "passed failed".
-- Keep  nothing is read from the output: a spec may print what it likes.
return function(options)
  local busted = require "busted"
  local handler = require "busted.outputHandlers.plainTerminal"(options)

  local function note(text)
    local file <close> = assert(io.open(options.arguments[1], "w"))
    file:write(text, "\n")
    return nil, true -- busted: go on to the next subscriber
  end

  busted.subscribe({ "test", "start" }, function(element)
    return note(handler.getFullName(element))
  end)

  busted.subscribe({ "suite", "end" }, function()
    return note(("%d %d"):format(handler.successesCount, handler.failuresCount + handler.errorsCount))
  end)

  return handler
end
