/* SPDX-License-Identifier: MIT
 * aio.wrap: coroutine.wrap for generators whose code may wait, since a wait inside passes through to the loop.
 *
 * Way      call -> resume the inner coroutine; it yields values -> results. It waits -> the caller yields too, and so on up
 *          to the task, which the loop resumes -> go_on -> resume the inner one -> results of the wait
 * Owner    the LWrap is an upvalue of the function that aio.wrap returns, and holds the inner thread as a user value; the
 *          thread, which the script may have, too, holds the LWrap.
 * Keep     a flow's `wrap` is the innermost of those that run; a generator left by coroutine.yield is in no flow, nor are
 *          the scopes that it has open. */
#include "lbind.h"

/*** Generators that may wait.
@module aioloop.wrap */

int aioL_suspend(lua_State *L, LTask *t, lua_KContext ctx, lua_KFunction k) {
  if (L != t->L) t->ties->flow.wrap->waits = true;
  return lua_yieldk(L, 0, ctx, k);
}

static LFlow *flow_of(lua_State *L, LRuntime *rt) { return rt->task ? &aioL_ties(L, rt->task)->flow : &rt->flow; }

static int go_on(lua_State *L, int status, lua_KContext ctx);

/* Together with those inside of it, if there are any: their caller was closed behind our back. */
static void leave(lua_State *L, LWrap *w) {
  if (!w->flow) {
    w->running = false;
    aioL_scopes_pass(w->scopes, NULL);
  }
  while (w->running) {
    LWrap *in = w->flow->wrap;
    w->flow->wrap = in->outer;
    in->running = false;
    in->outer = NULL;
    if (in == w)
      aioL_scopes_pass(in->scopes, NULL);
    else
      aioL_scopes_drop(L, &in->scopes);
  }
}

/* stack: LWrap, message handler, results or error */
static int body_over(lua_State *L, int status, lua_KContext ctx) {
  if (status == LUA_OK || status == LUA_YIELD) return lua_gettop(L) - 2;
  ((LWrap *)ctx)->failed = true;
  return 1;
}

/* Under this call <close> variables may wait also when an error unwinds them. */
static int wrap_main(lua_State *L) { /* stack: LWrap, function, arguments */
  LWrap *w = lua_touserdata(L, 1);
  int nargs = lua_gettop(L) - 2;
  lua_pushcfunction(L, aioL_traceback);
  lua_insert(L, 2);
  return body_over(L, lua_pcallk(L, nargs, LUA_MULTRET, 2, (lua_KContext)w, body_over), (lua_KContext)w);
}

/* Its error, which may be one that only the thread itself could catch: it was closed behind our back, say. */
static int broken(lua_State *L, LRuntime *rt, LWrap *w) {
  luaL_checkstack(L, 4, NULL);
  leave(L, w);
  aioL_scopes_drop(L, &w->scopes);
  if (!w->failed && rt->task) aioL_ticket_abandon(L, &rt->task->ticket);
  if (!w->failed) aioL_reset_thread(w->co, L); /* leaves the error */
  if (lua_gettop(w->co)) /* else it was dead already */
    lua_xmove(w->co, L, 1);
  else
    lua_pushliteral(L, "the generator was closed");
  return lua_error(L);
}

static int resume(lua_State *L, LRuntime *rt, LWrap *w, int nargs) {
  int n;
  int status = lua_resume(w->co, L, nargs, &n);
  if (status == LUA_YIELD && w->waits) {
    w->waits = false;
    if (n) lua_pop(w->co, n);
    if (w->outer) w->outer->waits = true;
    return lua_yieldk(L, 0, (lua_KContext)w, go_on);
  }
  if ((status != LUA_OK && status != LUA_YIELD) || w->failed) return broken(L, rt, w);
  leave(L, w);
  if (!lua_checkstack(L, n + 1)) {
    lua_pop(w->co, n);
    return luaL_error(L, "too many results");
  }
  lua_xmove(w->co, L, n);
  return n;
}

static int go_on(lua_State *L, int status, lua_KContext ctx) {
  LWrap *w = (LWrap *)ctx;
  LRuntime *rt = aioL_runtime(L);
  LTask *t = rt->task;
  UNUSED(status);
  if (!t || !t->ties || !w->running || w->flow != &t->ties->flow || w->from != L)
    return lua_yieldk(L, 0, ctx, go_on); /* somebody else's coroutine.resume */
  int nargs = t->ties->flow.wrap == w ? t->nargs : 0, top = lua_gettop(w->co);
  if (t->ties->flow.wrap == w) t->nargs = 0;
  return resume(L, rt, w, nargs < top ? nargs : top);
}

/* the function that aio.wrap returns; upvalue 3: the LWrap */
static int call(lua_State *L) {
  LRuntime *rt = aioL_runtime(L);
  LWrap *w = lua_touserdata(L, lua_upvalueindex(3));
  int nargs = lua_gettop(L);
  if (w->running) return luaL_error(L, "cannot resume a generator that is running");
  if (!aioL_resumable(w->co)) return luaL_error(L, "cannot resume dead coroutine");
  if (!lua_checkstack(w->co, nargs)) return luaL_error(L, "too many arguments");
  LFlow *flow = flow_of(L, rt);
  const lua_State *innermost = flow->wrap ? flow->wrap->co : rt->task ? rt->task->L : rt->base ? rt->base : rt->main;
  w->from = L;
  w->running = true;
  w->flow = L == innermost ? flow : NULL; /* NULL: the caller cannot be suspended by the loop, so nothing can wait here */
  w->outer = w->flow ? flow->wrap : NULL;
  if (w->flow) flow->wrap = w;
  aioL_scopes_pass(w->scopes, rt->task);
  lua_xmove(L, w->co, nargs);
  if (aioL_fresh(w->co)) nargs += 2; /* LWrap and function, which are there */
  return resume(L, rt, w, nargs);
}

static int wrap_gc(lua_State *L) {
  LWrap *w = lua_touserdata(L, 1);
  if (w->running && w->flow) /* its task was closed behind our back, and has not been told */
    for (LWrap **at = &w->flow->wrap; *at; at = &(*at)->outer)
      if (*at == w) {
        *at = w->outer;
        break;
      }
  aioL_scopes_drop(L, &w->scopes);
  return 0;
}

/*** As `coroutine.wrap`, but the function may wait: a generator that reads from a stream, say.
@function wrap
@tparam function fn
@treturn function resumes fn with its arguments, and returns what fn yields */
static int mod_wrap(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_pushvalue(L, lua_upvalueindex(2));
  LWrap *w = lua_newuserdatauv(L, sizeof *w, 1);
  *w = (LWrap){.co = lua_newthread(L)};
  lua_setiuservalue(L, -2, 1);
  aioL_set_class(L, aioL_runtime(L), L_WRAP);
  lua_pushcfunction(w->co, wrap_main);
  lua_pushvalue(L, -1);
  lua_pushvalue(L, 1);
  lua_xmove(L, w->co, 2);
  lua_pushcclosure(L, call, 3);
  return 1;
}

void aioL_open_wrap(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"__gc", wrap_gc}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"wrap", mod_wrap}, {NULL, NULL}};
  aioL_class(L, rt, L_WRAP, methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
