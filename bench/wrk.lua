-- SPDX-License-Identifier: MIT
-- Runs in wrk: says "fine", and how many requests were answered, or what went wrong. After `-- check` every response is
-- looked at, which takes wrk's time.

local threads = {}

function setup(thread)
  threads[#threads + 1] = thread
end

function init(args)
  bad = 0
  if args[1] == "check" then
    function response(status, _, body)
      if status ~= 200 or body ~= "Hello, world!" then
        bad = bad + 1
      end
    end
  end
end

function done(summary)
  local wrong = 0
  for _, count in pairs(summary.errors) do
    wrong = wrong + count
  end
  for _, thread in ipairs(threads) do
    wrong = wrong + thread:get "bad"
  end
  if wrong > 0 or summary.requests == 0 then
    print(("%d requests, %d went wrong"):format(summary.requests, wrong))
  else
    print(("fine %d"):format(summary.requests))
  end
end
