-- SPDX-License-Identifier: MIT
-- The rows of the table: one program per row and column, what each prints, and the goals.

-- `limit`, `luv`, `cqueues`: the least ratio of that column to aioloop. `max`: the most aioloop itself may show.
return {
  {name = "bh",
    {"bh_chain", "one-shot BH, chained", limit = 0.80, luv = 2.5, cqueues = 8},
    {"bh_batch", "one-shot BH, 1,000 a batch", limit = 0.80, luv = 4.5, cqueues = 8}},
  {name = "persistent",
    {"persistent_chain", "persistent BH, chained", limit = 0.80, luv = 3},
    {"persistent_batch", "persistent BH, 1,000 a batch", limit = 0.80, luv = 3}},
  {name = "co",
    {"co_1", "coroutine switch, 1", limit = 0.70, luv = 3.5},
    {"co_1000", "coroutine switch, 1,000", limit = 0.80, luv = 5}},
  {name = "timer_create",
    {"timer_create", "timer create + arm, 10^6", limit = 0.90, luv = 2.7},
    {"timer_cancel", "timer cancel, 10^6", limit = 0.90, luv = 1.8}},
  {name = "timer_rearm",
    {"rearm_alone", "timer re-arm, alone", limit = 0.85, luv = 2},
    {"rearm_million", "timer re-arm, among 10^6", limit = 0.85, luv = 2.4}},
  {name = "timer_fire",
    {"timer_fire", "timer fire, 10^5 due at once", limit = 0.80, luv = 5}},
  {name = "pingpong",
    {"pingpong_1", "fd ping-pong, 1 pair", limit = 0.88, luv = 1.15, cqueues = 1.6},
    {"pingpong_1000", "fd ping-pong, 1,000 pairs", limit = 0.80, luv = 1.15, cqueues = 1.6}},
  {name = "mem_co",
    {"mem_co", "bytes per sleeping coroutine", max = 1290}},
  {name = "mem_timer",
    {"mem_timer", "bytes per armed timer", max = 160}},
  {name = "require",
    {"require", "require, over bare lua5.4", max = 400000, luv = 1}},
}
