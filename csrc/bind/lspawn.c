/* SPDX-License-Identifier: MIT
 * Spawning: a function becomes a task, in a coroutine of its own.
 *
 * Way      handle and task -> the thread anchored -> aioL_task_main (lreport.c), function and arguments onto its stack
 *          -> aio_co_schedule
 * Owner    the handle frees the task until the loop counts it too.
 * Keep     whatever can raise comes before the task is the loop's. */
#include "lbind.h"

/*** Tasks: coroutines that the loop runs.
@module aioloop.task */

LTask *aioL_spawn(lua_State *L, LContext *c, int first, const char *who) {
  luaL_checktype(L, first, LUA_TFUNCTION);
  int n = lua_gettop(L) - first + 1;
  luaL_checkstack(L, 12, "too many arguments");
  lua_State *co = lua_newthread(L);
  if (!lua_checkstack(co, n + 8)) luaL_error(L, "too many arguments");
  LTaskBox *box = aioL_new_handle(L, c->rt); /* stack: fn, args..., thread, handle */
  aioL_push_handles(L, c);
  aioL_push_site(L, c);
  aioL_check_open(L, c); /* a finaliser may have closed it */
  LTask *t = box->t = aioL_new_task(L, c, co); /* from here on the handle frees it */
  uint32_t slot = aioL_anchor(L, c, first + n, NULL);
  lua_pushcfunction(co, aioL_task_main);
  lua_xmove(L, co, 3); /* the site */
  lua_pushvalue(L, -2);
  lua_rawseti(L, -2, slot);
  lua_pop(L, 1);
  t->refs = 2;
  t->slot = slot;
  t->born = ++c->born;
  c->slots[slot].task = t;
  c->live++;
  lua_insert(L, first); /* stack: handle, fn, args..., thread */
  lua_pop(L, 1);
  lua_xmove(L, co, n);
  t->nargs = n + 3;
  aio_co_schedule(&t->co, who);
  return t;
}

/*** Makes a task, to be started in the next turn.
@function spawn
@tparam function fn
@param ... its arguments
@treturn task */
static int mod_spawn(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
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
