-- SPDX-License-Identifier: MIT
--- For busted's --helper: runs the specs with the collector at work all the time, in the mode that GC_MODE names.

local mode = os.getenv "GC_MODE"
if mode == "generational" then
  collectgarbage("generational", 1, 1)
elseif mode == "incremental" then
  collectgarbage("incremental", 0, 1000, 4)
else
  error "GC_MODE is generational or incremental"
end
