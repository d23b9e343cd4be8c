-- SPDX-License-Identifier: MIT
--- A log, and the function that notes its first argument there.

return function()
  local log = {}
  return log, function(x) log[#log + 1] = x end
end
