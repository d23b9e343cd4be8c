/* SPDX-License-Identifier: MIT
 * The task behind a value: itself, a thread's, or one made for a plain coroutine, which is thereby adopted.
 *
 * Way      task; thread -> adopted before? -> a spawned task's? -> adopted
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

/* Or NULL: never adopted, or its context is gone. */
static LTask *adopted(lua_State *L, LRuntime *rt, int idx) { /* [-0, +0, -] */
  LTask *t = aioL_willed(L, rt, idx);
  return t && !t->c->closed ? t : NULL;
}

static LTask *adopt(lua_State *L, LContext *c, int idx, lua_State *co) { /* [-0, +0, e] */
  LTask *t = aioL_new_task(L, c->rt);
  lua_pushvalue(L, idx);
  lua_setiuservalue(L, -2, 1);
  t->adopted = true;
  t->state = L_WAITING;
  aioL_begin_task(t, c, co);
  aioL_make_will(L, lua_gettop(L));
  aioL_check_open(L, c); /* a finaliser may have closed it */
  t->born = ++c->born;
  lua_pop(L, 1);
  return t;
}

/* Any coroutine; the loop's own main chunk is none. */
LTask *aioL_check_co(lua_State *L, int idx, LContext *c) {
  LTask *t = aioL_test_task(L, idx);
  if (t) return t;
  lua_State *co = lua_tothread(L, idx);
  luaL_argexpected(L, co, idx, "task or coroutine");
  luaL_argcheck(L, co != c->rt->main, idx, "the main chunk is not a coroutine");
  t = adopted(L, c->rt, idx);
  if (!t) t = spawned(L, c, co);
  if (t) return t;
  if (!aioL_resumable(co) && !aioL_dead(co) && co != L) luaL_argerror(L, idx, "the coroutine is running and not the loop's");
  return adopt(L, c, idx, co);
}
