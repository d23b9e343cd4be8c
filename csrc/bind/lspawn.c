/* SPDX-License-Identifier: MIT
 * Spawning: a function becomes a task, in a coroutine of its own.
 *
 * Way      task and thread -> the task anchored -> aioL_task_main (lreport.c), function and arguments onto the thread's
 *          stack -> aio_co_schedule
 * Keep     whatever can raise comes before the task is the loop's. */
#include "lbind.h"

/*** Tasks: coroutines that the loop runs.
@module aioloop.task */

LTask *aioL_spawn(lua_State *L, LContext *c, int first, const char *who) {
  luaL_checktype(L, first, LUA_TFUNCTION);
  int n = lua_gettop(L) - first + 1, at = first + n; /* of the task */
  bool many = n > LUA_MINSTACK - 12; /* else there is room enough: asking costs */
  if (many) luaL_checkstack(L, n + 12, "too many arguments");
  LTask *t = aioL_new_task(L, c->rt);
  lua_State *co = lua_newthread(L);
  lua_setiuservalue(L, at, 1);
  if (many && !lua_checkstack(co, n + 12)) luaL_error(L, "too many arguments");
  lua_pushvalue(L, at);
  aioL_push_site(L, c); /* stack: fn, args..., task, task, the site */
  aioL_check_open(L, c); /* a finaliser may have closed it */
  uint32_t slot = aioL_anchor(L, c, at, NULL);
  lua_pushcfunction(co, aioL_task_main);
  lua_xmove(L, co, 4);
  lua_pushcfunction(co, aioL_traceback);
  for (int i = 0; i < n; i++) lua_pushvalue(L, first + i);
  lua_xmove(L, co, n);
  lua_replace(L, first);
  lua_settop(L, first);
  aioL_begin_task(t, c, co);
  t->slot = slot;
  t->born = ++c->born;
  t->nargs = n + 5;
  c->slots[slot].task = t;
  c->live++;
  aio_co_schedule(&t->co, who);
  return t;
}

/*** Makes a task, to be started in the next turn.
@function spawn
@tparam function fn
@param ... its arguments
@treturn task */
static int mod_spawn(lua_State *L) {
  aioL_spawn(L, aioL_current(L), 1, "aio.spawn");
  return 1;
}

/*** The same on a given context.
@function context:spawn
@tparam function fn
@param ... its arguments
@treturn task */
int aioL_ctx_spawn(lua_State *L) {
  aioL_spawn(L, aioL_context(L, 1), 2, "ctx:spawn");
  return 1;
}

void aioL_open_spawn(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg functions[] = {{"spawn", mod_spawn}, {NULL, NULL}};
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
