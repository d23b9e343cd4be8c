/* SPDX-License-Identifier: MIT
 * aio.work: a Lua function run by a thread of the pool, in that thread's own Lua state.
 *
 * Way      aio.work -> parcel of function and arguments (lparcel.c) -> aio_pool_submit -> aioL_work_run (lworker.c), in the
 *          worker -> done, in the loop -> the caller's ticket -> unpack -> results, or the error raised
 * Threads  home.
 * Owner    an LWork is malloc'ed: freed by who takes its results, by done when nobody waits any more, or with the context;
 *          a few are kept, with a parcel, to be used again. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "lwork.h"

/*** The thread pool.
@module aioloop.pool */

enum { SPARE_MAX = 16 };

/* What a job is made of that was so for the last one, too. Upvalues of aio.work keep what is known by its address. */
typedef struct LJobs {
  LPaths *paths;
  const char *path, *cpath; /* the strings that they were made of */
  lua_Integer looked_in;    /* and when they were last looked at: id of the context, */
  uint64_t looked_at;       /* its turn */
  const void *fn;           /* the last function, and its code */
  LCode *code;
  LWork *spare;
  unsigned nspare;
} LJobs;

/* ---- at home: any job for which somebody waits ---- */

void aioL_flight_begin(lua_State *L, LFlight *f, LContext *c, void (*cancel)(LFlight *f), void (*free_flight)(LFlight *f)) {
  *f = (LFlight){.c = c, .cancel = cancel, .free = free_flight};
  if (c->closed) free_flight(f);
  aioL_check_open(L, c);
  list_append(&c->flights, &f->link);
}

void aioL_flight_wait(LFlight *f, LTicket *tk) {
  f->c->live++;
  f->tk = tk;
  tk->op = f;
}

/* Making the results may run finalisers, which may close the context. */
LFlight *aioL_flight_fetch(LTicket *tk) {
  LFlight *f = tk->op;
  if (f) list_unlink(&f->link);
  return f;
}

void aioL_flight_end(LFlight *f) {
  if (list_linked(&f->link)) list_unlink(&f->link);
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

void aioL_jobs_drop(LRuntime *rt) {
  LJobs *j = rt->jobs;
  rt->jobs = NULL;
  if (!j) return;
  paths_unref(j->paths);
  aioL_code_unref(j->code);
  for (LWork *w = j->spare, *next; w; w = next) {
    next = w->next_spare;
    aioL_parcel_free(w->in);
    free(w);
  }
  free(j);
}

static void free_work(LFlight *f) {
  LWork *w = container_of(f, LWork, f);
  LJobs *j = f->c->rt->jobs;
  paths_unref(w->paths);
  if (!w->in) w->in = w->out, w->out = NULL; /* the worker has used it again, and so may others */
  aioL_parcel_free(w->out);
  if (!j || j->nspare == SPARE_MAX || !w->in || !aioL_parcel_clear(w->in)) {
    aioL_parcel_free(w->in);
    free(w);
    return;
  }
  w->next_spare = j->spare;
  j->spare = w;
  j->nspare++;
}

static void cancel_work(LFlight *f) { aio_pool_cancel(&container_of(f, LWork, f)->job); }
static void done(void *opaque) { aioL_flight_done(&((LWork *)opaque)->f); }

/* stack: ..., LWork (light) -> results, or error and traceback */
static int unpack(lua_State *L) {
  LWork *w = lua_touserdata(L, 1);
  lua_settop(L, 0);
  return aioL_parcel_unpack(L, w->out, 0);
}

static int results(lua_State *L, LTicket *tk) {
  LFlight *f = aioL_flight_fetch(tk);
  if (!f) return aioL_closed(L);
  LWork *w = container_of(f, LWork, f);
  bool failed = w->failed;
  int n = w->out && !failed ? aioL_parcel_unpack_plain(L, w->out, LUA_MINSTACK / 2) : -1; /* there is room for so many */
  if (n >= 0) return aioL_flight_end(&w->f), n;
  int base = lua_gettop(L);
  luaL_checkstack(L, 4, NULL);
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

/* ---- what is as it was the last time ---- */

enum { U_PACKAGE = 3, U_PATH, U_CPATH, U_LAST_PATH, U_LAST_CPATH, U_LAST_FN, UPVALUES = U_LAST_FN }; /* of aio.work */

static const char *path_of(lua_State *L, int field) { /* [-0, +1, -] kept alive by what is pushed */
  lua_pushvalue(L, lua_upvalueindex(field));
  lua_rawget(L, lua_upvalueindex(U_PACKAGE));
  return lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
}

static LPaths *new_paths(const char *path, const char *cpath) { /* NULL: no memory */
  size_t len = strlen(path), clen = strlen(cpath);
  LPaths *p = malloc(sizeof *p + len + clen + 2);
  if (!p) return NULL;
  atomic_init(&p->refs, 1);
  p->size = len + clen + 2;
  p->cpath = len + 1;
  memcpy(p->text, path, len + 1);
  memcpy(p->text + p->cpath, cpath, clen + 1);
  return p;
}

static void look_at_paths(lua_State *L, LJobs *j) { /* [-0, +0, -] as a rule they are those of last time */
  const char *path = path_of(L, U_PATH), *cpath = path_of(L, U_CPATH);
  if (!j->paths || path != j->path || cpath != j->cpath) {
    paths_unref(j->paths);
    j->paths = new_paths(path, cpath);
    j->path = path;
    j->cpath = cpath;
    lua_copy(L, -2, lua_upvalueindex(U_LAST_PATH));
    lua_copy(L, -1, lua_upvalueindex(U_LAST_CPATH));
  }
  lua_pop(L, 2);
}

/* [-0, +0, -] Those of this turn, counted: a worker's state sees no later change anyway. NULL: no memory. */
static LPaths *current_paths(lua_State *L, const LContext *c, LJobs *j) {
  uint64_t turn = aio_context_turns(c->core);
  if (!j->paths || turn != j->looked_at || c->id != j->looked_in) look_at_paths(L, j);
  j->looked_at = turn;
  j->looked_in = c->id;
  if (j->paths) atomic_fetch_add_explicit(&j->paths->refs, 1, memory_order_relaxed);
  return j->paths;
}

/* [-0, +0, -] The code of the function at 1, counted; NULL: it has none yet, or may not have any. */
static LCode *code_of(lua_State *L, LJobs *j) {
  if (!aioL_is_plain(L, 1)) return NULL; /* any more */
  if (lua_topointer(L, 1) == j->fn) return aioL_code_ref(j->code);
  LCode *code = aioL_known_code(L, 1);
  if (!code) return NULL;
  aioL_code_unref(j->code);
  j->code = aioL_code_ref(code);
  j->fn = lua_topointer(L, 1);
  lua_copy(L, 1, lua_upvalueindex(U_LAST_FN));
  return code;
}

/* stack: function, arguments -> */
static LWork *new_work(lua_State *L, LContext *c, LJobs *j) { /* [-n, +0, e] */
  LWork *w = j->spare;
  LParcel *in = aioL_parcel_pack_small(L, 1, code_of(L, j), w ? &w->in : NULL);
  if (!in) in = aioL_parcel_pack(L, 1);
  w = j->spare; /* packing may have run finalisers */
  if (w) {
    j->spare = w->next_spare;
    j->nspare--;
    if (w->in != in) aioL_parcel_free(w->in);
  } else if (!(w = malloc(sizeof *w))) {
    aioL_parcel_free(in);
    luaL_error(L, "not enough memory");
    return NULL;
  }
  *w = (LWork){.in = in};
  aioL_flight_begin(L, &w->f, c, cancel_work, free_work);
  w->paths = current_paths(L, c, j);
  if (!w->paths) {
    aioL_flight_end(&w->f);
    luaL_error(L, "not enough memory");
  }
  return w;
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
  if (!c->rt->jobs) return luaL_error(L, "attempt to use a closed context");
  LWork *w = new_work(L, c, c->rt->jobs);
  LTicket *tk = aioL_ticket(L, c, &work_ops);
  int rc = aio_pool_submit(c->core, &w->job, aioL_work_run, done, w);
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

static void push_package(lua_State *L) { /* [-0, +1, m] an empty table, where scripts have none */
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  lua_getfield(L, -1, "package");
  if (!lua_istable(L, -1)) lua_pop(L, 1), lua_newtable(L);
  lua_remove(L, -2);
}

void aioL_open_pool(lua_State *L, LRuntime *rt, int module) {
  if (!rt->jobs) { /* else it is required again */
    rt->jobs = malloc(sizeof *rt->jobs);
    if (!rt->jobs) luaL_error(L, "not enough memory");
    *rt->jobs = (LJobs){.fn = NULL};
  }
  aioL_push_runtime(L, rt);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->anchors);
  push_package(L);
  lua_pushliteral(L, "path");
  lua_pushliteral(L, "cpath");
  for (int i = U_LAST_PATH; i <= UPVALUES; i++) lua_pushnil(L);
  lua_pushcclosure(L, mod_work, UPVALUES);
  lua_setfield(L, module, "work");
}
