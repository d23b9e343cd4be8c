/* SPDX-License-Identifier: MIT
 * aio.work: a Lua function run by a thread of the pool, in that thread's own Lua state.
 *
 * Way      aio.work -> parcel of function and arguments (lparcel.c) -> aio_pool_submit -> run, in the worker -> unpack, call,
 *          pack -> done, in the loop -> the caller's ticket -> unpack -> results, or the error raised
 * Threads  run and what it calls: a worker, with its own state; it touches nothing of the caller's. The rest: home.
 * Owner    an LWork is malloc'ed: freed by who takes its results, by done when nobody waits any more, or with the context.
 * Keep     a worker's state lasts as long as its thread, unless memory ran out in it: then the next job has a new one. */
#include <errno.h>
#include <lualib.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "lbind.h"

/*** The thread pool.
@module aioloop.pool */

typedef struct LPaths { /* package.path and package.cpath */
  atomic_uint refs;
  size_t size, cpath; /* bytes in all; where the second begins */
  char text[];
} LPaths;

typedef struct LWork {
  LFlight f;
  AioJob job;
  LPaths *paths;     /* for a new state */
  LParcel *in, *out; /* out: what the function returned, or its error and traceback */
  const char *lost;  /* why there is no `out` */
  bool failed;
} LWork;

/* ---- in the worker ---- */

static int traceback(lua_State *L) { /* stack: error -> error; the traceback goes to the registry */
  luaL_traceback(L, L, NULL, 1);
  lua_setfield(L, LUA_REGISTRYINDEX, "aioloop.traceback");
  return 1;
}

/* stack: LWork (light). Returns what the function returns. */
static int call_job(lua_State *L) {
  LWork *w = lua_touserdata(L, 1);
  lua_settop(L, 0);
  int n = aioL_parcel_unpack(L, w->in); /* function, arguments */
  lua_call(L, n - 1, LUA_MULTRET);
  return lua_gettop(L);
}

static void close_state(void *state) { lua_close(state); }

/* stack: LWork (light) */
static int open_state(lua_State *L) {
  const LWork *w = lua_touserdata(L, 1);
  luaL_openlibs(L);
  lua_getglobal(L, "package");
  lua_pushstring(L, w->paths->text);
  lua_setfield(L, -2, "path");
  lua_pushstring(L, w->paths->text + w->paths->cpath);
  lua_setfield(L, -2, "cpath");
  return 0;
}

static lua_State *worker_state(LWork *w) { /* NULL: no memory */
  lua_State *L = aio_pool_local();
  if (L) return L;
  L = luaL_newstate();
  if (!L) return NULL;
  lua_pushcfunction(L, open_state);
  lua_pushlightuserdata(L, w);
  if (lua_pcall(L, 1, 0, 0) != LUA_OK) return lua_close(L), NULL;
  aio_pool_set_local(L, close_state);
  return L;
}

static void replace_state(lua_State *L) {
  aio_pool_set_local(NULL, NULL);
  lua_close(L);
}

static void run(void *opaque) {
  LWork *w = opaque;
  lua_State *L = worker_state(w);
  bool copied = true;
  if (!L) {
    w->lost = "not enough memory for a Lua state";
    return;
  }
  lua_settop(L, 0);
  lua_pushcfunction(L, traceback);
  lua_pushcfunction(L, call_job);
  lua_pushlightuserdata(L, w);
  int status = lua_pcall(L, 1, LUA_MULTRET, 1);
  lua_remove(L, 1);
  w->failed = status != LUA_OK;
  if (w->failed) lua_getfield(L, LUA_REGISTRYINDEX, "aioloop.traceback");
  w->out = aioL_parcel_pack_safe(L, 1, w->failed ? "error" : "result", &w->in, &copied);
  w->failed |= !copied; /* what cannot be copied is an error, and so is what is said of that */
  if (!w->out) w->lost = "not enough memory to copy what the job returned";
  if (status == LUA_ERRMEM || status == LUA_ERRERR) replace_state(L);
}

/* ---- at home: any job for which somebody waits ---- */

void aioL_flight_begin(LFlight *f, LContext *c, void (*cancel)(LFlight *f), void (*free_flight)(LFlight *f)) {
  *f = (LFlight){.c = c, .cancel = cancel, .free = free_flight};
  list_append(&c->flights, &f->link);
}

void aioL_flight_wait(LFlight *f, LTicket *tk) {
  f->c->live++;
  f->tk = tk;
  tk->op = f;
}

void aioL_flight_end(LFlight *f) {
  list_unlink(&f->link);
  f->free(f);
}

void aioL_flight_done(LFlight *f) {
  f->over = true;
  f->c->live--;
  if (f->tk)
    aioL_take(f->tk, L_DONE, 0);
  else
    aioL_flight_end(f);
}

/* Whoever does not wait any more: a job that runs is left alone, one that is queued is taken back. */
void aioL_flight_leave(LTicket *tk) {
  LFlight *f = tk->op;
  if (f->over) return;
  f->tk = NULL;
  f->cancel(f);
}

void aioL_flight_revoke(lua_State *L, LTicket *tk) {
  UNUSED(L);
  if (tk->op) aioL_flight_end(tk->op); /* else its context was closed before anybody looked */
}

/* The pool has been closed: nothing runs any more, and done is not called. */
void aioL_flights_drop(LContext *c) {
  while (!list_empty(&c->flights)) {
    LFlight *f = container_of(c->flights.next, LFlight, link);
    if (f->tk && f->over)
      f->tk->op = NULL; /* its results have not been fetched */
    else if (f->tk)
      aioL_take_quietly(f->tk, L_CLOSED, 0);
    aioL_flight_end(f);
  }
}

/* ---- aio.work ---- */

static void paths_unref(LPaths *p) {
  if (p && atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) == 1) free(p);
}

void aioL_paths_drop(LRuntime *rt) {
  paths_unref(rt->paths);
  rt->paths = NULL;
}

static void free_work(LFlight *f) {
  LWork *w = container_of(f, LWork, f);
  aioL_parcel_free(w->in);
  aioL_parcel_free(w->out);
  paths_unref(w->paths);
  free(w);
}

static void cancel_work(LFlight *f) { aio_pool_cancel(&container_of(f, LWork, f)->job); }
static void done(void *opaque) { aioL_flight_done(&((LWork *)opaque)->f); }

/* stack: ..., LWork (light) -> results, or error and traceback */
static int unpack(lua_State *L) {
  LWork *w = lua_touserdata(L, 1);
  lua_settop(L, 0);
  return aioL_parcel_unpack(L, w->out);
}

static int results(lua_State *L, LTicket *tk) {
  if (!tk->op) return aioL_closed(L);
  LWork *w = container_of((LFlight *)tk->op, LWork, f);
  int base = lua_gettop(L);
  bool failed = w->failed;
  luaL_checkstack(L, 4, NULL);
  if (w->out && !failed && aioL_parcel_is_simple(w->out)) {
    int n = aioL_parcel_unpack(L, w->out);
    aioL_flight_end(&w->f);
    return n;
  }
  lua_pushcfunction(L, unpack);
  lua_pushlightuserdata(L, w);
  if (w->lost) {
    lua_pop(L, 2);
    lua_pushstring(L, w->lost);
    aioL_flight_end(&w->f);
    return lua_error(L);
  }
  int status = lua_pcall(L, 1, LUA_MULTRET, 0);
  aioL_flight_end(&w->f);
  if (status != LUA_OK) return lua_error(L);
  if (!failed) return lua_gettop(L) - base;
  lua_settop(L, base + 2);
  if (lua_type(L, base + 1) == LUA_TSTRING && lua_isstring(L, base + 2)) {
    lua_pushfstring(L, "%s\nin a worker, %s", lua_tostring(L, base + 1), lua_tostring(L, base + 2));
    return lua_error(L);
  }
  lua_settop(L, base + 1);
  return lua_error(L);
}

static const LWaitOps work_ops = {.name = "aio.work", .leave = aioL_flight_leave, .results = results,
                                  .revoke = aioL_flight_revoke};

static const char *path_of(lua_State *L, const char *field, size_t *len) { /* [-0, +1, -] kept alive by package */
  *len = 0;
  if (!lua_istable(L, -1)) return lua_pushnil(L), "";
  lua_pushstring(L, field);
  lua_rawget(L, -2);
  return lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, len) : "";
}

static bool are_same(const LPaths *p, const char *path, size_t len, const char *cpath, size_t clen) {
  return p && p->cpath == len + 1 && p->size == len + clen + 2 && !memcmp(p->text, path, len) && !memcmp(p->text + len + 1, cpath, clen);
}

/* [-0, +0, m] Those of now, counted; as a rule they are those of last time. NULL: no memory. */
static LPaths *current_paths(lua_State *L, LRuntime *rt) {
  size_t len, clen;
  luaL_checkstack(L, 4, NULL);
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  lua_getfield(L, -1, "package");
  const char *path = path_of(L, "path", &len);
  lua_insert(L, -2); /* stack: loaded, path, package */
  const char *cpath = path_of(L, "cpath", &clen);
  if (!are_same(rt->paths, path, len, cpath, clen)) {
    aioL_paths_drop(rt);
    LPaths *p = rt->paths = malloc(sizeof *p + len + clen + 2);
    if (p) {
      atomic_init(&p->refs, 1);
      p->size = len + clen + 2;
      p->cpath = len + 1;
      memcpy(p->text, path, len + 1);
      memcpy(p->text + p->cpath, cpath, clen + 1);
    }
  }
  lua_pop(L, 4);
  if (rt->paths) atomic_fetch_add_explicit(&rt->paths->refs, 1, memory_order_relaxed);
  return rt->paths;
}

/*** Calls a function in a thread of the pool, in a Lua state of its own, and waits for it. Function, arguments and results
are copied: nil, booleans, numbers, strings, tables, and Lua functions whose upvalues can be copied.
@function work
@tparam function fn
@param ... its arguments
@return its results
@raise its error: a copy, a string with the worker's traceback; what cannot be copied, by its path */
static int mod_work(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  LContext *c = aioL_waits_in(L); /* raises where waiting is impossible, before there is anything to lose */
  LParcel *in = aioL_parcel_pack(L, 1);
  LWork *w = malloc(sizeof *w);
  if (w) *w = (LWork){.in = in};
  if (w) aioL_flight_begin(&w->f, c, cancel_work, free_work);
  if (!w) aioL_parcel_free(in);
  if (!w || !(w->paths = current_paths(L, c->rt))) {
    if (w) aioL_flight_end(&w->f);
    return luaL_error(L, "not enough memory");
  }
  LTicket *tk = aioL_ticket(L, c, &work_ops);
  int rc = aio_pool_submit(c->core, &w->job, run, done, w);
  if (rc < 0) {
    aioL_ticket_drop(tk);
    aioL_flight_end(&w->f);
    return aioL_fail(L, rc);
  }
  aioL_flight_wait(&w->f, tk);
  return aioL_wait(L, tk, AIO_FOREVER);
}

/*** Says how many threads the context's pool has.
@function context:set_threads
@tparam integer min stay when there is nothing to do (0)
@tparam integer max run at most (64)
@treturn boolean true; or nil, message, errno */
int aioL_ctx_set_threads(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  lua_Integer min = luaL_checkinteger(L, 2), max = luaL_checkinteger(L, 3);
  luaL_argcheck(L, min >= 0, 2, "at least 0");
  luaL_argcheck(L, max > 0 && max >= min && max <= 4096, 3, "at least 1, and no less than min");
  int rc = aio_pool_set_threads(c->core, (int)min, (int)max);
  if (rc < 0) return aioL_fail(L, rc);
  return lua_pushboolean(L, 1), 1;
}

void aioL_open_pool(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg functions[] = {{"work", mod_work}, {NULL, NULL}};
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
