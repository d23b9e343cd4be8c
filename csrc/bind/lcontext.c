/* SPDX-License-Identifier: MIT
 * Contexts as Lua sees them: making, closing, and the table that holds what is active. lrun.c makes them turn.
 *
 * Way      aio.context -> new_context -> aio_context_new; ctx:close or its collection -> close_context -> aio_context_close
 * Owner    the userdata and each handle but timers count the LContext; the anchor table is the userdata's user value, so
 *          a context that nobody can reach goes together with all that is active on it.
 * Keep     anchor[0] is the side table, anchor[slot] an active object, false in a free place (so the array stays one). */
#include <errno.h>
#include <string.h>

#include "lbind.h"

/*** Contexts: making and closing one, one turn, run, and what a loop tells of itself.
@module aioloop.context */

/* ---- LContext ---- */

LContext *aioL_context_ref(LContext *c) {
  c->refs++;
  return c;
}

static void drop_slots(lua_State *L, LContext *c) {
  aioL_alloc(L, c->slots, c->nslots * sizeof *c->slots, 0);
  c->slots = NULL;
  c->nslots = c->free_slot = 0;
}

void aioL_context_unref(lua_State *L, LContext *c) {
  if (--c->refs) return;
  if (c->rt->erred == c) c->rt->erred = NULL;
  drop_slots(L, c);
  c->life++;
  c->next_spare = c->rt->spare;
  c->rt->spare = c;
}

static void add_spare(lua_State *L, LRuntime *rt) { /* [-0, +0, m] */
  LContext *c = lua_newuserdatauv(L, sizeof *c, 0);
  *c = (LContext){.life = 0};
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->contexts);
  lua_insert(L, -2);
  luaL_ref(L, -2); /* for ever: see LContext */
  lua_pop(L, 1);
  c->next_spare = rt->spare;
  c->next_made = rt->made;
  rt->spare = rt->made = c;
}

void aioL_contexts_drop(lua_State *L, LRuntime *rt) {
  for (LContext *c = rt->made; c; c = c->next_made) drop_slots(L, c);
}

bool aioL_push_anchor(lua_State *L, LContext *c) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->rt->anchors);
  if (lua_rawgeti(L, -1, c->id) != LUA_TTABLE) {
    lua_pop(L, 2);
    return false;
  }
  lua_replace(L, -2);
  return true;
}

void aioL_push_box(lua_State *L, LContext *c) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->rt->anchors);
  lua_rawgeti(L, -1, -c->id);
  lua_remove(L, -2);
}

void aioL_push_side(lua_State *L, LContext *c) {
  if (!aioL_push_anchor(L, c)) {
    lua_newtable(L);
    return;
  }
  lua_rawgeti(L, -1, 0);
  lua_replace(L, -2);
}

void aioL_check_open(lua_State *L, const LContext *c) {
  if (c->closed) luaL_error(L, "attempt to use a closed context");
}

static void grow_slots(lua_State *L, LContext *c) {
  uint32_t n = c->nslots ? c->nslots * 2 : 16;
  LSlot *bigger = aioL_alloc(L, c->slots, c->nslots * sizeof *bigger, n * sizeof *bigger);
  if (!bigger) luaL_error(L, "not enough memory");
  for (uint32_t i = n; i-- > (c->nslots ? c->nslots : 1);) {
    bigger[i].next_free = c->free_slot;
    c->free_slot = i;
  }
  c->slots = bigger;
  c->nslots = n;
}

uint32_t aioL_anchor(lua_State *L, LContext *c, int idx, LTask *task) {
  idx = lua_absindex(L, idx);
  if (lua_rawgeti(L, L_ANCHORS, c->id) != LUA_TTABLE) luaL_error(L, "attempt to use a closed context");
  if (!c->free_slot) grow_slots(L, c);
  uint32_t slot = c->free_slot;
  lua_pushvalue(L, idx);
  lua_rawseti(L, -2, slot);
  c->free_slot = (uint32_t)c->slots[slot].next_free;
  c->slots[slot].task = task;
  lua_pop(L, 1);
  return slot;
}

static void free_slot(LContext *c, uint32_t *slot) {
  c->slots[*slot].next_free = c->free_slot;
  c->free_slot = *slot;
  *slot = 0;
}

void aioL_unanchor(lua_State *L, LContext *c, uint32_t *slot) {
  if (!*slot) return;
  if (L == c->L && lua_topointer(L, c->base) == c->anchor) { /* else a wake from within a callback has a frame of its own */
    lua_pushboolean(L, 0);
    lua_rawseti(L, c->base, *slot);
  } else if (aioL_push_anchor(L, c)) {
    lua_pushboolean(L, 0);
    lua_rawseti(L, -2, *slot);
    lua_pop(L, 1);
  }
  free_slot(c, slot);
}

void aioL_unanchor_here(LContext *c, uint32_t *slot) {
  if (!*slot) return;
  lua_pushboolean(c->L, 0);
  lua_rawseti(c->L, c->base, *slot);
  free_slot(c, slot);
}

const char aioL_context_magic;

static LContextBox *check_box(lua_State *L, int idx) {
  LContextBox *box = lua_touserdata(L, idx);
  if (box && lua_rawlen(L, idx) == sizeof *box && box->magic == &aioL_context_magic) return box;
  return aioL_check(L, idx, L_CONTEXT);
}

LContext *aioL_context(lua_State *L, int idx) {
  LContext *c = check_box(L, idx)->c;
  if (!c || c->closed) luaL_error(L, "attempt to use a closed context");
  return c;
}

/* stack on return: context userdata on top. rc < 0: nothing pushed */
static int new_context(lua_State *L, LRuntime *rt, const AioOptions *opts, AioClock clock) {
  LContextBox *box = lua_newuserdatauv(L, sizeof *box, 1);
  *box = (LContextBox){.magic = &aioL_context_magic};
  aioL_set_class(L, rt, L_CONTEXT);
  lua_createtable(L, 4, 1); /* anchor */
  const void *anchor = lua_topointer(L, -1);
  lua_createtable(L, 8, 0); /* side */
  lua_newtable(L);
  lua_rawseti(L, -2, SIDE_ERRORS);
  lua_newtable(L);
  lua_rawseti(L, -2, SIDE_LAST_ERRORS);
  lua_pushboolean(L, 0);
  lua_rawseti(L, -2, SIDE_LOST); /* never nil, so that its place stays: see keep_for_later in lcall.c */
  lua_rawseti(L, -2, 0);
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, -3, 1);
  if (!rt->spare) add_spare(L, rt);
  LContext *c = rt->spare; /* nothing below runs a finaliser, which could make a context too */
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->anchors);
  lua_insert(L, -2);
  lua_rawseti(L, -2, ++rt->last_id);
  lua_pushvalue(L, -2);
  lua_rawseti(L, -2, -rt->last_id); /* see aioL_push_box */
  lua_pop(L, 1);
  AioContext *core;
  int rc = aio_context_new(&core, opts);
  if (rc < 0) {
    lua_pop(L, 1);
    return rc;
  }
  rt->spare = c->next_spare;
  *c = (LContext){.core = core, .rt = rt, .id = rt->last_id, .refs = 1, .life = c->life, .next_made = c->next_made};
  c->anchor = anchor;
  c->clock = clock;
  c->glib = LUA_NOREF;
  list_init(&c->flights);
  list_init(&c->partings);
  aio_context_set_home(c->core);
  aio_context_set_around(c->core, aioL_around, c);
  box->c = c;
  return 0;
}

static LContext *default_context(lua_State *L, LRuntime *rt) { /* [-0, +1, m] */
  if (rt->def != LUA_NOREF) {
    lua_rawgeti(L, LUA_REGISTRYINDEX, rt->def);
    LContext *c = ((LContextBox *)lua_touserdata(L, -1))->c;
    if (c && !c->closed) return c;
    luaL_unref(L, LUA_REGISTRYINDEX, rt->def); /* the script closed it: the next one is new */
    rt->def = LUA_NOREF;
    lua_pop(L, 1);
  }
  AioOptions opts = {.vclock = rt->vclock};
  int rc = new_context(L, rt, &opts, AIO_CLOCK_MONOTONIC);
  if (rc < 0) {
    aioL_fail(L, rc);
    luaL_error(L, "cannot make the default context: %s", lua_tostring(L, -2));
  }
  lua_pushvalue(L, -1);
  rt->def = luaL_ref(L, LUA_REGISTRYINDEX);
  return ((LContextBox *)lua_touserdata(L, -1))->c;
}

LContext *aioL_current(lua_State *L) {
  LRuntime *rt = aioL_runtime(L);
  if (rt->current && !rt->current->closed) return rt->current;
  LContext *c = default_context(L, rt);
  lua_pop(L, 1);
  return c;
}

/* ---- closing ---- */

static void close_context(lua_State *L, LContext *c) {
  if (c->closed) return;
  c->closed = true;
  aioL_tasks_drop(L, c);
  aioL_partings_drop(c);
  aio_context_close(c->core);
  aioL_flights_drop(c);
  aioL_oneshots_drop(L, c);
  aioL_glib_drop(L, c);
  c->live = 0;
  if (!c->depth) {
    aio_context_unref(c->core);
    c->core = NULL;
  }
}

/* Not while a turn is running, since callbacks and tasks that run are held by them. */
void aioL_anchors_clear(lua_State *L, LContext *c) {
  if (!aioL_push_anchor(L, c)) return;
  for (uint32_t i = 1; i < c->nslots; i++) {
    lua_pushboolean(L, 0);
    if (lua_rawgeti(L, -2, i) == LUA_TNIL) /* never used: not worth growing the table for */
      lua_pop(L, 2);
    else
      lua_pop(L, 1), lua_rawseti(L, -2, i);
  }
  lua_pop(L, 1);
}

/*** Closes the context: whatever is pending on it is dropped without being called. Also `<close>`; twice is fine.
@function context:close */
static int ctx_close(lua_State *L) {
  LContext *c = ((LContextBox *)aioL_check(L, 1, L_CONTEXT))->c;
  if (!c) return 0;
  aioL_report_closing(L, c);
  close_context(L, c);
  if (!c->depth) aioL_anchors_clear(L, c);
  return 0;
}

static int ctx_gc(lua_State *L) {
  LContextBox *box = aioL_check(L, 1, L_CONTEXT);
  LContext *c = box->c;
  if (!c) return 0;
  close_context(L, c);
  if (c->depth) return 0; /* lua_close from inside a turn: its frames are still looking at it */
  box->c = NULL;
  aioL_context_unref(L, c);
  return 0;
}

/* ---- making ---- */

static int64_t ns_field(lua_State *L, const char *name) { /* [-0, +0, e] */
  int64_t value = 0;
  if (lua_getfield(L, 1, name) != LUA_TNIL) {
    lua_Number n = lua_tonumber(L, -1);
    if (lua_type(L, -1) != LUA_TNUMBER || !(n >= 0 && n < 9e18)) luaL_error(L, "%s must be a number of at least 0", name);
    value = (int64_t)n;
  }
  lua_pop(L, 1);
  return value;
}

static unsigned count_field(lua_State *L, const char *name, lua_Integer max) { /* [-0, +0, e] 0: absent */
  lua_Integer n = 0;
  int exact;
  if (lua_getfield(L, 1, name) != LUA_TNIL) {
    n = lua_tointegerx(L, -1, &exact);
    if (lua_type(L, -1) != LUA_TNUMBER || !exact || n < 1 || n > max) luaL_error(L, "%s must be an integer from 1 to %I", name, (LUAI_UACINT)max);
  }
  lua_pop(L, 1);
  return (unsigned)n;
}

static const char *string_field(lua_State *L, const char *name) { /* [-0, +1, e] the string stays on the stack */
  int type = lua_getfield(L, 1, name);
  if (type != LUA_TNIL && type != LUA_TSTRING) luaL_error(L, "%s must be a string", name);
  return lua_tostring(L, -1);
}

/*** Makes a context.
@function context
@tparam[opt] table options name, backend ("auto", "epoll", "poll", "io_uring"), poll_max_ns, poll_grow, poll_shrink,
  shuffle (for tests: what is ready at the same time runs in an order drawn from this number),
  ring_entries (128: of the queues through which files and backend "io_uring" ask the kernel), aio_batch (32, at most 256: requests that Linux AIO is
  handed together),
  clock ("monotonic" or "virtual": what its sleeps, timeouts and timers run on unless they name another)
@treturn context or nil, message, errno */
static int mod_context(lua_State *L) {
  LRuntime *rt = aioL_runtime(L);
  AioOptions opts = {.vclock = rt->vclock};
  AioClock clock = AIO_CLOCK_MONOTONIC;
  if (lua_isnoneornil(L, 1)) {
    lua_settop(L, 0);
    lua_newtable(L);
  }
  static const char *const names[] = {"name", "backend", "clock", "poll_max_ns", "poll_grow", "poll_shrink", "shuffle",
                                      "ring_entries", "aio_batch", NULL};
  aioL_check_names(L, 1, 0, names);
  lua_settop(L, 1);
  opts.poll_max_ns = ns_field(L, "poll_max_ns");
  opts.poll_grow = ns_field(L, "poll_grow");
  opts.poll_shrink = ns_field(L, "poll_shrink");
  opts.shuffle = (uint64_t)ns_field(L, "shuffle");
  opts.ring_entries = count_field(L, "ring_entries", 4096);
  opts.laio_batch = count_field(L, "aio_batch", 256);
  const char *name = string_field(L, "name");
  opts.backend = string_field(L, "backend");
  static const char *const backends[] = {"auto", "epoll", "poll", "io_uring"};
  bool known = !opts.backend;
  for (size_t i = 0; opts.backend && i < sizeof backends / sizeof *backends; i++) known |= !strcmp(opts.backend, backends[i]);
  if (!known) luaL_error(L, "unknown backend '%s' (auto, epoll, poll or io_uring)", opts.backend);
  if (string_field(L, "clock")) aioL_check_clock(L, -1, &clock);
  int rc = new_context(L, rt, &opts, clock);
  if (rc < 0) return aioL_fail(L, rc);
  if (name) {
    aioL_push_side(L, ((LContextBox *)lua_touserdata(L, -1))->c);
    lua_pushstring(L, name);
    lua_rawseti(L, -2, SIDE_NAME);
    lua_pop(L, 1);
  }
  return 1;
}

/*** Adaptive busy polling: before sleeping, spin for a learned time. Off by default.
@function context:set_polling
@tparam table parameters max_ns (0: off), grow (factor, 0: 2), shrink (divisor, 0: to nothing) */
static int ctx_set_polling(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  static const char *const names[] = {"max_ns", "grow", "shrink", NULL};
  aioL_check_names(L, 2, 0, names);
  lua_settop(L, 2);
  lua_insert(L, 1); /* stack: parameters, context */
  int64_t max = ns_field(L, "max_ns"), grow = ns_field(L, "grow"), shrink = ns_field(L, "shrink");
  aioL_check_open(L, c); /* a metamethod may have closed it */
  aio_set_polling(c->core, max, grow, shrink);
  return 0;
}

/* ---- finding ---- */

/*** The default context of this Lua state, made at first use.
@function default
@treturn context */
static int mod_default(lua_State *L) {
  default_context(L, aioL_runtime(L));
  return 1;
}

/*** The context that is being polled, else the default one.
@function current
@treturn context */
static int mod_current(lua_State *L) { return aioL_push_current(L), 1; }

void aioL_push_current(lua_State *L) {
  LRuntime *rt = aioL_runtime(L);
  if (rt->current && !rt->current->closed)
    aioL_push_box(L, rt->current);
  else
    default_context(L, rt);
}

static int ctx_tostring(lua_State *L) {
  const LContext *c = ((LContextBox *)aioL_check(L, 1, L_CONTEXT))->c;
  const char *state = !c || c->closed ? "closed" : c->depth ? "polling" : "open";
  lua_pushfstring(L, "aioloop.context (%s): %p", state, lua_topointer(L, 1));
  return 1;
}

/* ---- module ---- */

/*** What a value is.
@function type
@param x any value
@treturn string "context", "bh", "timer", "watch", "task", "clock", "group", "mutex" ..., or nil for anything else */
static int mod_type(lua_State *L) {
  luaL_checkany(L, 1);
  for (int k = 0; k < L_KINDS; k++) {
    if (!aioL_test(L, 1, (LKind)k)) continue;
    lua_pushstring(L, aioL_kind_name((LKind)k));
    return 1;
  }
  luaL_pushfail(L);
  return 1;
}

void aioL_open_context(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"close", ctx_close}, {"set_polling", ctx_set_polling},
    {"schedule", aioL_ctx_schedule}, {"bh", aioL_ctx_bh}, {"timer", aioL_ctx_timer}, {"watch", aioL_ctx_watch}, {"signal", aioL_ctx_signal},
    {"set_threads", aioL_ctx_set_threads},
    {"spawn", aioL_ctx_spawn}, {"tasks", aioL_ctx_tasks}, {"co_schedule", aioL_ctx_co_schedule}, {"attach", aioL_ctx_attach},
    {"detach", aioL_ctx_detach}, {"source", aioL_ctx_source}, {"__gc", ctx_gc}, {"__close", ctx_close},
    {"__tostring", ctx_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"context", mod_context}, {"default", mod_default}, {"current", mod_current},
    {"type", mod_type}, {NULL, NULL}};
  aioL_class(L, rt, L_CONTEXT, methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
