/* SPDX-License-Identifier: MIT
 * What a context does and tells: poll, run, stop, errors, the time, and what an outer loop asks it for.
 *
 * Way      ctx:poll -> aioL_turn -> aio_poll -> callbacks; ctx:run -> run_protected -> aioL_turns -> the same until
 *          `finished`. Then the first collected error is raised.
 * Owner    a running `run` counts the LContext and has its task on its stack: a callback may close the one and drop the
 *          other.
 * Keep     `runs` and `stopping` are put right however a run ends; what it returns or raises comes after that. */
#include "lbind.h"

/***
@submodule aioloop.context */

/* ---- one turn ---- */

static int64_t poll_limit(lua_State *L, int idx) {
  if (lua_isnoneornil(L, idx)) return AIO_FOREVER;
  if (lua_isboolean(L, idx)) return lua_toboolean(L, idx) ? AIO_FOREVER : 0;
  int64_t ns = aioL_check_ns(L, idx);
  return ns < 0 ? 0 : ns;
}

/*** One turn of the loop. May be called from any callback and inside a task (which it does not suspend).
@function context:poll
@tparam[opt=true] boolean|number wait true: until there is progress or a notification; false: not at all; a number: seconds at most
@treturn boolean whether a callback other than an idle one ran
@raise the first error of a callback, if this is the outermost poll and no on_error handler is set */
static int ctx_poll(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  int64_t limit = poll_limit(L, 2);
  lua_settop(L, 1);
  luaL_checkstack(L, 20, "too many nested polls");
  bool progress = aioL_turn(L, c, limit);
  aioL_raise(L, c);
  lua_pushboolean(L, progress);
  return 1;
}

/* ---- running ---- */

static bool finished(const LContext *c, const LTask *main) {
  if (c->closed || c->stopping) return true;
  if (main && !aioL_task_ended(main)) return false;
  if (main && (c->runs > 1 || main->state == L_BROKEN)) return true;
  return !c->live;
}

typedef struct LRun {
  const LTask *main; /* NULL: until nothing is left */
  bool stuck;        /* nothing could wake those that are */
} LRun;

/* stack: context, LRun (light) */
static int run_protected(lua_State *L) {
  LContext *c = ((LContextBox *)lua_touserdata(L, 1))->c;
  LRun *run = lua_touserdata(L, 2);
  const LTask *main = run->main;
  while (!finished(c, main)) {
    run->stuck = !aio_context_can_wake(c->core) && !aio_source_attached(c->core);
    if (run->stuck) aioL_deadlock(L, c);
    aioL_turns(L, c, finished, main);
    aioL_raise(L, c);
  }
  while ((c->failed.first || c->awaited.first) && !c->closed && !c->reporting)
    aioL_turn(L, c, 0); /* a handle was collected since, say */
  if (!c->closed) aioL_raise(L, c);                /* or something went wrong outside of any turn */
  return 0;
}

static bool left_behind(const LTask *t, const LTask *main) {
  return t && !aioL_task_ended(t) && (int32_t)(t->born - main->born) >= 0;
}

static bool nothing_left(const LContext *c, const LTask *main) {
  for (uint32_t i = 1; i < c->nslots && !c->closed; i++)
    if (left_behind(aioL_task_at(c, i), main)) return false;
  return true;
}

/* What was spawned since main was: the function has failed, or will never end. */
static void cancel_left(lua_State *L, LContext *c, const LTask *main) {
  for (uint32_t i = 1; i < c->nslots && !c->closed; i++)
    if (left_behind(aioL_task_at(c, i), main)) aioL_cancel_quietly(aioL_task_at(c, i));
  while (!nothing_left(c, main) && aio_context_can_wake(c->core)) aioL_turns(L, c, nothing_left, main);
}

/*** Runs the loop until nothing referenced is left, or `ctx:stop`.
@function context:run
@tparam[opt] function fn run as a task; inside a running `run`, the call returns when it has ended
@param ... its arguments
@return the results of fn
@raise the error of fn, or deadlock, when the tasks that it left behind have been cancelled and have ended; the first error
  of a callback or of a task that nobody joined */
static int ctx_run(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  LTask *t = NULL;
  if (lua_isnoneornil(L, 2)) {
    if (c->runs) return luaL_error(L, "run is running already: ctx:run(fn) waits for fn alone, ctx:poll takes one turn");
    lua_settop(L, 1);
    lua_pushnil(L);
  } else {
    t = aioL_spawn(L, c, 2, "aio.run");
    t->keep = t->joined = true; /* its error is raised here */
  }
  luaL_checkstack(L, 20, "too many nested runs");
  aioL_context_ref(c);
  c->runs++;
  lua_pushcfunction(L, run_protected);
  lua_pushvalue(L, 1);
  LRun run = {.main = t};
  lua_pushlightuserdata(L, &run);
  int status = lua_pcall(L, 2, 0, 0);
  if (--c->runs == 0 || c->stopping) c->stopping = false;
  bool over = t && aioL_task_ended(t), asleep = t && !over && status != LUA_OK && !c->closed && !aio_context_can_wake(c->core);
  if (!c->closed && !c->runs && (asleep || (t && run.stuck) || (over && t->state != L_ENDED))) cancel_left(L, c, t);
  if (t && !aioL_task_ended(t)) t->joined = false, t->keep = t->willed; /* it goes on without us */
  aioL_context_unref(L, c);
  if (status != LUA_OK && !(over && t->state == L_BROKEN)) return lua_error(L); /* the function's own comes first */
  if (!t) return 0;
  if (!aioL_task_ended(t)) return 0; /* stopped */
  if (t->state == L_BROKEN) return aioL_task_push_error(L, t), lua_error(L);
  return aioL_task_results(L, t, true) - 1;
}

/*** The same on the current context.
@function run
@tparam[opt] function fn
@param ... its arguments
@return the results of fn */
static int mod_run(lua_State *L) {
  aioL_push_current(L);
  lua_insert(L, 1);
  return ctx_run(L);
}

static int mod_call(lua_State *L) { /* aio(fn, ...) */
  lua_remove(L, 1);
  return mod_run(L);
}

/*** Makes the innermost `run` return when this turn ends.
@function context:stop */
static int ctx_stop(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  if (c->runs) c->stopping = true;
  aio_notify(c->core); /* a turn under another driver looks up */
  return 0;
}

/*** The same on the current context.
@function stop */
static int mod_stop(lua_State *L) {
  lua_settop(L, 0);
  aioL_push_current(L);
  return ctx_stop(L);
}

/*** Sets who is told of errors in callbacks and unjoined tasks.
@function context:on_error
@tparam function|nil fn called with the error and where it came from; nil: the outermost poll or run raises the first */
static int ctx_on_error(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  luaL_argexpected(L, lua_isnoneornil(L, 2) || lua_isfunction(L, 2), 2, "function or nil");
  lua_settop(L, 2);
  aioL_push_side(L, c);
  lua_insert(L, 2);
  lua_rawseti(L, 2, SIDE_ON_ERROR);
  return 0;
}

/* ---- beside other threads ---- */

/*** Makes a sleeping poll, or the next one, return and look at everything again.
@function context:notify */
static int ctx_notify(lua_State *L) {
  aio_notify(aioL_context(L, 1)->core);
  return 0;
}

/*** Takes the context's recursive lock, for C threads that share it.
@function context:acquire */
static int ctx_acquire(lua_State *L) {
  aio_context_acquire(aioL_context(L, 1)->core);
  return 0;
}

/*** Gives the lock back.
@function context:release */
static int ctx_release(lua_State *L) {
  aio_context_release(aioL_context(L, 1)->core);
  return 0;
}

/* ---- what it tells ---- */

typedef struct Count {
  const char *name;
  uint64_t value;
} Count;

static void push_counts(lua_State *L, const Count *counts, size_t n, int more) { /* [-0, +1, m] a table with room for more */
  lua_createtable(L, 0, (int)n + more);
  for (size_t i = 0; i < n; i++) {
    lua_pushinteger(L, (lua_Integer)counts[i].value);
    lua_setfield(L, -2, counts[i].name);
  }
}

/*** What the context has done, and has now.
@function context:stats
@treturn table backend, polls, wakeups, asks, bhs, timers, fds, entries (counts of callbacks and coroutine entries),
  bhs_pending, timers_armed, watches, tasks, live, poll_ns, name; files: how many requests io_uring, linux-aio and threads have
  done, and "inline" at once; submits (system calls that handed over requests); pool: threads, idle, min, max, queued and
  jobs (not fetched yet) of the thread pool; and errors: the list that was collected when the last one was raised */
static int ctx_stats(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  AioStats s;
  AioPoolStats p;
  const char *backend = aio_context_backend(c->core);
  aio_context_stats(c->core, &s); /* all that is asked of the core: below, a finaliser may close it */
  aio_pool_stats(c->core, &p);
  const Count pool[] = {{"threads", (uint64_t)p.threads}, {"idle", (uint64_t)p.idle}, {"min", (uint64_t)p.min},
    {"max", (uint64_t)p.max}, {"queued", p.queued}, {"jobs", p.jobs}};
  const Count counts[] = {
    {"polls", s.polls}, {"wakeups", s.wakeups}, {"asks", s.asks}, {"bhs", s.bhs}, {"timers", s.timers}, {"fds", s.fds},
    {"entries", s.entries}, {"bhs_pending", s.bhs_pending}, {"timers_armed", s.timers_armed}, {"watches", s.watches},
    {"live", c->live}, {"poll_ns", (uint64_t)s.poll_ns}, {"submits", s.submits}};
  push_counts(L, counts, sizeof counts / sizeof *counts, 6);
  push_counts(L, pool, sizeof pool / sizeof *pool, 0);
  lua_setfield(L, -2, "pool");
  lua_createtable(L, 0, 4);
  for (int e = AIO_ENGINE_URING; e < AIO_ENGINES; e++) {
    lua_pushinteger(L, (lua_Integer)s.file_ops[e]);
    lua_setfield(L, -2, aio_engine_name((AioEngine)e));
  }
  lua_setfield(L, -2, "files");
  lua_Integer tasks = 0;
  for (uint32_t i = 1; i < c->nslots; i++) tasks += aioL_task_at(c, i) != NULL;
  lua_pushinteger(L, tasks);
  lua_setfield(L, -2, "tasks");
  lua_pushstring(L, backend);
  lua_setfield(L, -2, "backend");
  aioL_push_side(L, c);
  lua_rawgeti(L, -1, SIDE_NAME);
  lua_setfield(L, -3, "name");
  lua_newtable(L);
  lua_rawgeti(L, -2, SIDE_LAST_ERRORS);
  for (lua_Integer i = (lua_Integer)lua_rawlen(L, -1); i > 0; i--) {
    lua_rawgeti(L, -1, i);
    lua_getfield(L, -1, "error");
    lua_rawseti(L, -4, i);
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  lua_setfield(L, -3, "errors");
  lua_pop(L, 1);
  return 1;
}

/*** An fd that is readable when a turn would find work, for other loops.
@function context:pollfd
@treturn integer fd, or nil, message, errno (backend "poll" has none) */
static int ctx_pollfd(lua_State *L) {
  int fd = aio_context_pollfd(aioL_context(L, 1)->core);
  if (fd < 0) return aioL_fail(L, fd);
  lua_pushinteger(L, fd);
  return 1;
}

/*** What to wait for on `pollfd`, as cqueues has it.
@function context:events
@treturn string "r" */
static int ctx_events(lua_State *L) {
  aioL_context(L, 1);
  lua_pushliteral(L, "r");
  return 1;
}

/*** How long another loop may sleep on `pollfd`.
@function context:timeout
@treturn number seconds, 0 when a turn would find work, nil for ever */
static int ctx_timeout(lua_State *L) {
  int64_t ns = aio_context_timeout(aioL_context(L, 1)->core);
  if (ns == AIO_FOREVER) return luaL_pushfail(L), 1;
  aioL_push_seconds(L, ns);
  return 1;
}

/* ---- the time ---- */

static int64_t now_ns(lua_State *L) {
  const LRuntime *rt = aioL_runtime(L);
  bool virtual = rt->vclock && rt->current && rt->current->clock == AIO_CLOCK_VIRTUAL;
  return virtual ? aio_vclock_now(rt->vclock) : aio_clock_now(AIO_CLOCK_MONOTONIC);
}

/*** The time on the current context's clock.
@function now
@treturn number seconds, monotonic (or virtual, inside a context made with clock="virtual") */
static int mod_now(lua_State *L) {
  aioL_push_seconds(L, now_ns(L));
  return 1;
}

/*** The same in ns.
@function now_ns
@treturn integer */
static int mod_now_ns(lua_State *L) {
  lua_pushinteger(L, now_ns(L));
  return 1;
}

/*** Wall clock time.
@function time
@treturn number seconds since 1970 */
static int mod_time(lua_State *L) {
  aioL_push_seconds(L, aio_clock_now(AIO_CLOCK_REALTIME));
  return 1;
}


/* ---- module ---- */

void aioL_open_run(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"poll", ctx_poll}, {"run", ctx_run}, {"stop", ctx_stop}, {"notify", ctx_notify},
    {"acquire", ctx_acquire}, {"release", ctx_release}, {"stats", ctx_stats}, {"pollfd", ctx_pollfd},
    {"events", ctx_events}, {"timeout", ctx_timeout}, {"on_error", ctx_on_error}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"run", mod_run}, {"call", mod_call}, {"stop", mod_stop},
    {"now", mod_now}, {"now_ns", mod_now_ns}, {"time", mod_time}, {NULL, NULL}};
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->meta_ref[L_CONTEXT]);
  aioL_functions(L, rt, methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 2);
}
