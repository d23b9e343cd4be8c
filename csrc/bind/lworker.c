/* SPDX-License-Identifier: MIT
 * Jobs in Lua, where they are done: in a thread of the pool.
 *
 * Way      aioL_work_run -> the worker's state -> the parcel unpacked -> the function called -> what it returns packed
 * Threads  a worker, with its own state; it touches nothing of the caller's.
 * Keep     a worker's state lasts as long as its thread, unless memory ran out in it: then the next job has a new one.
 *          A job like the last one, with arguments that nothing can go wrong with, is called without much ado. */
#include <lualib.h>
#include <stdlib.h>

#include "lwork.h"

enum { HANDLER = 1, FEW = LUA_MINSTACK / 2 }; /* the message handler's place on the stack; values for which there is room */

typedef struct LWorker {
  lua_State *L;
  LCode *code; /* of the last function; NULL: it was another kind of function */
  int fn;      /* registry: that function, loaded; whatever it has done to its _ENV, the next job finds the globals */
} LWorker;

static const char traceback_key; /* registry: that of the last error */

static int traceback(lua_State *L) { /* stack: error -> error */
  luaL_traceback(L, L, NULL, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &traceback_key);
  return 1;
}

static void keep_job(lua_State *L, LWorker *k, LCode *code) { /* [-0, +0, m] the function on top */
  lua_pushvalue(L, -1);
  lua_rawseti(L, LUA_REGISTRYINDEX, k->fn);
  aioL_code_unref(k->code);
  k->code = aioL_code_ref(code);
}

/* stack: LWorker (light), LWork (light). Returns what the function returns. */
static int call_job(lua_State *L) {
  LWorker *k = lua_touserdata(L, 1);
  const LWork *w = lua_touserdata(L, 2);
  LCode *code = aioL_parcel_code(w->in);
  lua_settop(L, 0);
  if (code) aioL_push_job(L, code), keep_job(L, k, code);
  int n = aioL_parcel_unpack(L, w->in, code ? 1 : 0); /* function, arguments */
  lua_call(L, n - 1, LUA_MULTRET);
  return code ? lua_gettop(L) - 1 : lua_gettop(L);
}

static void close_worker(void *worker) {
  LWorker *k = worker;
  lua_close(k->L);
  aioL_code_unref(k->code);
  free(k);
}

/* stack: LWorker (light), LWork (light) */
static int open_state(lua_State *L) {
  LWorker *k = lua_touserdata(L, 1);
  const LWork *w = lua_touserdata(L, 2);
  luaL_openlibs(L);
  lua_getglobal(L, "package");
  lua_pushstring(L, w->paths->text);
  lua_setfield(L, -2, "path");
  lua_pushstring(L, w->paths->text + w->paths->cpath);
  lua_setfield(L, -2, "cpath");
  lua_pushboolean(L, 0);
  k->fn = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_pushboolean(L, 0);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &traceback_key); /* its place: there is one when memory has run out */
  return 0;
}

static void push_call(LWorker *k, lua_CFunction fn, LWork *w) {
  lua_pushcfunction(k->L, fn);
  lua_pushlightuserdata(k->L, k);
  lua_pushlightuserdata(k->L, w);
}

static LWorker *worker_of(LWork *w) { /* NULL: no memory */
  LWorker *k = aio_pool_local();
  if (k) return k;
  k = malloc(sizeof *k);
  if (!k) return NULL;
  *k = (LWorker){.L = luaL_newstate()};
  if (!k->L) return free(k), NULL;
  push_call(k, open_state, w);
  if (lua_pcall(k->L, 2, 0, 0) != LUA_OK) return close_worker(k), NULL;
  lua_pushcfunction(k->L, traceback);
  aio_pool_set_local(k, close_worker);
  return k;
}

static int call(LWorker *k, LWork *w) { /* [-0, +n, -] results, or the error */
  lua_State *L = k->L;
  if (k->code && aioL_parcel_code(w->in) == k->code) {
    lua_rawgeti(L, LUA_REGISTRYINDEX, k->fn);
    int n = aioL_is_plain(L, -1) ? aioL_parcel_unpack_rest(L, w->in, FEW) : -1; /* the last job may have changed its _ENV */
    if (n >= 0) return lua_pcall(L, n, LUA_MULTRET, HANDLER);
    lua_settop(L, HANDLER);
  }
  push_call(k, call_job, w);
  return lua_pcall(L, 2, LUA_MULTRET, HANDLER);
}

void aioL_work_run(void *work) {
  LWork *w = work;
  LWorker *k = worker_of(w);
  bool copied = true;
  if (!k) {
    w->lost = "not enough memory for a Lua state";
    return;
  }
  int status = call(k, w);
  w->failed = status != LUA_OK;
  if (w->failed) lua_rawgetp(k->L, LUA_REGISTRYINDEX, &traceback_key);
  w->out = aioL_parcel_pack_safe(k->L, HANDLER + 1, w->failed ? "error" : "result", &w->in, &copied);
  w->failed |= !copied; /* what cannot be copied is an error, and so is what is said of that */
  if (!w->out) w->lost = "not enough memory to copy what the job returned";
  if (status == LUA_ERRMEM || status == LUA_ERRERR) {
    aio_pool_set_local(NULL, NULL);
    close_worker(k);
  }
}
