/* SPDX-License-Identifier: MIT
 * The task behind a value: a handle's, a thread's, or one made for a plain coroutine, which is thereby adopted.
 *
 * Way      handle -> its task; thread -> adopted before? -> a spawned task's? -> adopted
 * Owner    as in lco.c, but an adopted thread is anchored only while it is scheduled or waits (aioL_revive, park).
 * Keep     one task a coroutine, whatever it is found by. */
#include "lbind.h"

static LTask *task_in(const LContext *c, const lua_State *co) {
  for (uint32_t i = 1; i < c->nslots; i++)
    if (aioL_task_at(c, i) && aioL_task_at(c, i)->L == co) return aioL_task_at(c, i);
  return NULL;
}

/* A spawned task by its thread, of whatever context. Nobody has got hold of the thread before it began. */
static LTask *spawned(lua_State *L, LContext *c, lua_State *co) { /* [-0, +0, -] */
  LRuntime *rt = c->rt;
  if (rt->task && rt->task->L == co) return rt->task;
  if (aioL_fresh(co)) return NULL;
  LTask *t = task_in(c, co);
  if (t) return t;
  int top = lua_gettop(L);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->anchors);
  for (lua_pushnil(L); !t && lua_next(L, -2);) {
    const LContextBox *other = lua_touserdata(L, -1); /* NULL: an anchor table */
    if (other && other->c && !other->c->closed) t = task_in(other->c, co);
    lua_pop(L, 1);
  }
  lua_settop(L, top);
  return t;
}

/* Or NULL: never adopted, or its handle is gone, or its context. */
static LTask *adopted(lua_State *L, LRuntime *rt, int idx) { /* [-0, +0, -] */
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->threads);
  lua_pushvalue(L, idx);
  LTask *t = lua_rawget(L, -2) == LUA_TUSERDATA ? ((LTaskBox *)lua_touserdata(L, -1))->t : NULL;
  lua_pop(L, 2);
  return t && !t->c->closed ? t : NULL;
}

static LTask *adopt(lua_State *L, LContext *c, int idx, lua_State *co) { /* [-0, +0, m] */
  lua_pushvalue(L, idx);
  LTaskBox *box = aioL_new_handle(L, c->rt);
  LTask *t = aioL_new_task(L, c, co);
  t->adopted = true;
  t->born = ++c->born;
  t->state = L_WAITING;
  box->t = t;
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->rt->threads); /* stack: thread, handle, table */
  lua_insert(L, -3);
  lua_rawset(L, -3);
  lua_pop(L, 1);
  return t;
}

/* Any coroutine; the loop's own main chunk is none. */
LTask *aioL_check_co(lua_State *L, int idx, LContext *c) {
  LTaskBox *box = aioL_test(L, idx, L_TASK);
  if (box) {
    if (!box->t) luaL_error(L, "attempt to use a closed task");
    return box->t;
  }
  lua_State *co = lua_tothread(L, idx);
  luaL_argexpected(L, co, idx, "task or coroutine");
  luaL_argcheck(L, co != c->rt->main, idx, "the main chunk is not a coroutine");
  LTask *t = adopted(L, c->rt, idx);
  if (!t) t = spawned(L, c, co);
  if (t) return t;
  if (!aioL_resumable(co) && !aioL_dead(co) && co != L) luaL_argerror(L, idx, "the coroutine is running and not the loop's");
  return adopt(L, c, idx, co);
}
