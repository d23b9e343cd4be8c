/* SPDX-License-Identifier: MIT
 * The one way up: every callback and every coroutine is called from here (or by lco.c's resume), and every error ends here.
 *
 * Way      aioL_enter (whose stack) -> core -> aioL_call -> Lua; error -> aioL_report -> on_error, or collected
 *          -> aioL_raise by the outermost poll, run or wait
 * Keep     between aioL_enter and aioL_leave c->L is a state with room for a callback, the anchor table at c->base and the
 *          message handler above it. Nothing here raises except aioL_raise, which runs when the core has returned. */
#include <string.h>

#include "lbind.h"

/* [-1, +1, m] a string gets a traceback, any other value stays what it is */
static int message_handler(lua_State *L) {
  if (lua_type(L, 1) == LUA_TSTRING) luaL_traceback(L, L, lua_tostring(L, 1), 1);
  return 1;
}

bool aioL_enter(lua_State *L, LContext *c, LFrame *f) {
  LRuntime *rt = c->rt;
  if (!lua_checkstack(L, 16) || !aioL_push_anchor(L, c)) return false;
  lua_pushcfunction(L, message_handler);
  *f = (LFrame){c, rt->current, c->L, rt->base, rt->task, rt->flow, c->base};
  rt->flow = (LFlow){NULL, NULL};
  c->L = rt->base = L;
  c->base = lua_gettop(L) - 1;
  rt->current = c;
  rt->task = NULL;
  c->depth++;
  return true;
}

void aioL_leave(lua_State *L, LFrame *f) {
  LContext *c = f->c;
  c->rt->current = f->current;
  c->rt->base = f->base_L;
  c->rt->task = f->task;
  c->rt->flow = f->flow;
  c->L = f->L;
  c->base = f->base;
  if (--c->depth == 0 && c->closed && c->core) { /* closed by a callback */
    aio_context_unref(c->core);
    c->core = NULL;
    aioL_anchors_clear(L, c);
  }
  if (c->depth == 0 && c->glib_over) aioL_glib_drop(L, c);
}

/* stack: side table, error, where (light userdata), task (light userdata) or nil */
static int collect(lua_State *L) {
  const char *where = lua_touserdata(L, 3);
  LTask *task = lua_touserdata(L, 4);
  if (lua_rawgeti(L, 1, SIDE_ON_ERROR) != LUA_TNIL) {
    lua_pushvalue(L, 2);
    if (task)
      aioL_task_label(L, task);
    else
      lua_pushstring(L, where);
    lua_pushcfunction(L, message_handler);
    lua_replace(L, 4);
    if (lua_pcall(L, 2, 0, 4) == LUA_OK) return lua_pushinteger(L, 0), 1;
    lua_replace(L, 3); /* the handler's own error, behind the one it was handling */
    lua_settop(L, 3);
  } else {
    lua_settop(L, 2);
  }
  int n = lua_gettop(L) - 1;
  lua_rawgeti(L, 1, SIDE_ERRORS);
  for (int i = 1; i <= n; i++) {
    lua_createtable(L, 0, 1); /* boxed: an error may be nil */
    lua_pushvalue(L, 1 + i);
    lua_setfield(L, -2, "error");
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1); /* only now: a finaliser may have collected one */
  }
  lua_pushinteger(L, n);
  return 1;
}

/* stack: side table, error -> side table. The first one wins; its place is there already, so that this cannot fail. */
static void keep_for_later(lua_State *L, LContext *c) {
  if (c->lost)
    lua_pop(L, 1);
  else
    lua_rawseti(L, -2, SIDE_LOST);
  c->lost = true;
}

void aioL_report(LContext *c, const char *where, LTask *task) {
  lua_State *L = c->L;
  if (!lua_checkstack(L, 8)) {
    aioL_push_side(L, c);
    lua_insert(L, -2);
    keep_for_later(L, c);
    lua_pop(L, 1);
    return;
  }
  if (task) lua_pop(L, 1), aioL_task_push_error(L, task);
  aioL_push_side(L, c);       /* not by c->base: a wake from within a callback has a frame of its own */
  lua_insert(L, -2);          /* stack: side, error */
  lua_pushcfunction(L, collect);
  lua_pushvalue(L, -3);
  lua_pushvalue(L, -3);
  lua_pushlightuserdata(L, (void *)(uintptr_t)where);
  lua_pushlightuserdata(L, task);
  bool collected = lua_pcall(L, 4, 1, 0) == LUA_OK;
  if (collected) c->errors += (unsigned)lua_tointeger(L, -1);
  lua_pop(L, 1);
  if (collected)
    lua_pop(L, 2);
  else
    keep_for_later(L, c), lua_pop(L, 1);
}

void aioL_report_in(lua_State *L, LContext *c, LTask *task) {
  lua_State *outer = c->L;
  if (!lua_checkstack(L, 1)) return;
  c->L = L;
  lua_pushnil(L);
  aioL_report(c, NULL, task);
  c->L = outer;
}

void aioL_call(LContext *c, int nargs, const char *where) {
  lua_State *L = c->L;
  if (lua_pcall(L, nargs, 0, c->base + 1) != LUA_OK) aioL_report(c, where, NULL);
}

/* [-0, +1, m] the side table is at `side`; a fresh list takes the place of the collected errors, which become the last */
static void take_errors(lua_State *L, LContext *c, int side) {
  c->errors = 0; /* now, for with the table c may be collected */
  lua_newtable(L);
  lua_rawgeti(L, side, SIDE_ERRORS);
  lua_pushvalue(L, -1);
  lua_rawseti(L, side, SIDE_LAST_ERRORS);
  lua_insert(L, -2);
  lua_rawseti(L, side, SIDE_ERRORS);
}

void aioL_raise(lua_State *L, LContext *c) {
  if (c->depth) return; /* an outer turn will */
  if (!c->errors && !c->lost) return;
  luaL_checkstack(L, 8, NULL);
  if (!aioL_push_anchor(L, c)) { /* vclock:advance can outlive it */
    c->errors = c->lost = 0;
    luaL_error(L, "an error in a callback was lost: its context was collected");
  }
  lua_rawgeti(L, -1, 0);
  if (c->lost) {
    c->lost = false;
    lua_rawgeti(L, -1, SIDE_LOST);
    lua_pushboolean(L, 0);
    lua_rawseti(L, -3, SIDE_LOST);
    lua_error(L);
  }
  take_errors(L, c, lua_gettop(L));
  lua_rawgeti(L, -1, 1);
  lua_getfield(L, -1, "error");
  lua_error(L);
}

/* stack: side table, context (light userdata) */
static int warn_all(lua_State *L) {
  LContext *c = lua_touserdata(L, 2);
  if (c->lost) {
    c->lost = false;
    lua_rawgeti(L, 1, SIDE_LOST);
    lua_pushboolean(L, 0);
    lua_rawseti(L, 1, SIDE_LOST);
    aio_source_warn(luaL_tolstring(L, -1, NULL));
    lua_settop(L, 2);
  }
  take_errors(L, c, 1);
  lua_Integer n = (lua_Integer)lua_rawlen(L, -1);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, -1, i);
    lua_getfield(L, -1, "error");
    aio_source_warn(luaL_tolstring(L, -1, NULL));
    lua_pop(L, 3);
  }
  return 0;
}

void aioL_warn_errors(LContext *c) {
  lua_State *L = c->L;
  if ((!c->errors && !c->lost) || !lua_checkstack(L, 8)) return;
  lua_pushcfunction(L, warn_all);
  lua_rawgeti(L, c->base, 0);
  lua_pushlightuserdata(L, c);
  if (lua_pcall(L, 2, 0, 0) != LUA_OK) lua_pop(L, 1);
}

typedef struct Until {
  LContext *c;
  bool (*done)(const LContext *, const LTask *);
  const LTask *main;
} Until;

static bool turned(void *opaque) {
  const Until *u = opaque;
  aioL_report_unjoined(u->c->L, u->c);
  return ((u->c->errors || u->c->lost) && u->c->depth == 1) || u->done(u->c, u->main);
}

void aioL_turns(lua_State *L, LContext *c, bool (*done)(const LContext *, const LTask *), const LTask *main) {
  LFrame f;
  Until until = {c, done, main};
  int top = lua_gettop(L);
  if (!aioL_enter(L, c, &f)) luaL_error(L, "attempt to use a closed context");
  aio_context_set_home(c->core);
  aio_run(c->core, turned, &until);
  aioL_leave(L, &f);
  lua_settop(L, top);
}

bool aioL_turn(lua_State *L, LContext *c, int64_t limit_ns) {
  LFrame f;
  int top = lua_gettop(L);
  if (!aioL_enter(L, c, &f)) return luaL_error(L, "attempt to use a closed context"); /* it is being collected */
  aio_context_set_home(c->core);
  bool progress = aio_poll(c->core, limit_ns);
  aioL_report_unjoined(L, c);
  aioL_leave(L, &f);
  lua_settop(L, top);
  return progress;
}

/* Under GLib the state is an anchored one and there is nobody to raise to; in vclock:advance it is the caller's. */
void aioL_around(AioFn *turn, void *turn_opaque, void *opaque) {
  LContext *c = opaque;
  LFrame f;
  lua_State *lent = c->rt->lent, *L = lent ? lent : c->glib_L;
  if (!L) return;
  int top = lua_gettop(L);
  if (!lua_checkstack(L, 2)) return;
  aioL_push_box(L, c); /* a callback may detach it */
  if (!aioL_enter(L, c, &f)) {
    lua_settop(L, top);
    return;
  }
  aioL_context_ref(c);
  turn(turn_opaque);
  aioL_report_unjoined(L, c);
  if (!lent && c->depth == 1) aioL_warn_errors(c);
  if (lent && (c->errors || c->lost) && !c->rt->erred) c->rt->erred = c;
  aioL_leave(L, &f);
  lua_settop(L, top);
  aioL_context_unref(L, c);
}
