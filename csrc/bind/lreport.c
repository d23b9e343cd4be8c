/* SPDX-License-Identifier: MIT
 * What tasks tell of themselves: tracebacks, who spawned whom, who waits on what, and the report of a deadlock.
 *
 * Way      spawn -> aioL_push_site, three values near the bottom of the task's stack -> aioL_task_main -> body
 *          error -> aioL_note -> record {error, traceback, label} in the side table -> task_over -> results of the thread
 * Owner    all of it is Lua values, held by the task's thread or weakly by thread in the side table.
 * Keep     the stack of a suspended coroutine is looked at and never changed for longer than a call. */
#include <string.h>

#include "lbind.h"

/*** What a loop is doing.
@module aioloop.report */

const char *const aioL_state_names[] = {"scheduled", "running", "waiting", "ended", "failed", "cancelled"};

/* The task is the first value on its thread's stack, its site comes next, its function after the message handler. */
enum { SITE = 3, SITE_AT = 2, HANDLER_AT = SITE_AT + SITE, MAX_CHAIN = 16 }; /* values of a site; spawners that are remembered */

/* Calls on its stack, of which there may be 200,000: asking for one costs as much as it is deep. */
static int depth_of(lua_State *co) {
  lua_Debug ar;
  int some = 0, none = 1;
  while (lua_getstack(co, none, &ar)) some = none, none *= 2;
  while (none - some > 1) {
    int middle = some + (none - some) / 2;
    if (lua_getstack(co, middle, &ar))
      some = middle;
    else
      none = middle;
  }
  return lua_getstack(co, some, &ar) ? none : 0;
}

/* ---- who spawned it ---- */

/* stack: ... -> ..., function, line, record of the spawner. Only spawned tasks have a site. */
static bool push_site_of(lua_State *L, const LTask *t) { /* [-0, +3 or 0, m] */
  lua_State *co = t->L;
  lua_Debug ar;
  if (t->adopted || aioL_task_ended(t) || !lua_checkstack(co, SITE + 1)) return false;
  luaL_checkstack(L, SITE + 4, NULL);
  if (aioL_fresh(co)) {
    for (int i = 0; i < SITE; i++) lua_pushvalue(co, 1 + SITE_AT + i); /* above aioL_task_main */
  } else {
    int levels = depth_of(co);
    if (!levels || !lua_getstack(co, levels - 1, &ar)) return false;
    for (int i = 0; i < SITE; i++)
      if (!lua_getlocal(co, &ar, SITE_AT + i)) return lua_settop(co, -1 - i), false;
  }
  if (co != L) lua_xmove(co, L, SITE);
  return true;
}

/* Made at its first spawn: {function, line, spawner's record, length of the chain, id} */
static void make_record(lua_State *L, LTask *t) { /* [-0, +1, m] or nil */
  aioL_push_weak(L, t->c, SIDE_SITES, "k");
  aioL_push_thread(L, t);
  if (lua_rawget(L, -2) == LUA_TNIL && push_site_of(L, t)) { /* stack: sites, nil, function, line, up */
    lua_Integer length = 1;
    if (lua_istable(L, -1)) {
      lua_rawgeti(L, -1, 4);
      length = lua_tointeger(L, -1) + 1;
      lua_pop(L, 1);
      if (length > MAX_CHAIN) lua_pop(L, 1), lua_pushnil(L), length = 1;
    }
    lua_createtable(L, 5, 0);
    lua_insert(L, -4);
    for (int i = SITE; i > 0; i--) lua_rawseti(L, -1 - i, i);
    lua_pushinteger(L, length);
    lua_rawseti(L, -2, 4);
    lua_pushinteger(L, t->born);
    lua_rawseti(L, -2, 5);
    lua_remove(L, -2); /* the nil */
    aioL_push_thread(L, t);
    lua_pushvalue(L, -2);
    lua_rawset(L, -4);
  }
  lua_remove(L, -2);
}

/* Of a task that spawns. */
static void push_record(lua_State *L, LTask *t) { /* [-0, +1, m] or false */
  LRuntime *rt = t->c->rt;
  if (rt->record_of == t->c->id && rt->record_born == t->born) {
    lua_rawgeti(L, LUA_REGISTRYINDEX, rt->record);
    return;
  }
  make_record(L, t);
  if (lua_isnil(L, -1)) lua_pop(L, 1), lua_pushboolean(L, 0); /* its place in the registry must stay */
  lua_pushvalue(L, -1);
  lua_rawseti(L, LUA_REGISTRYINDEX, rt->record);
  rt->record_of = t->c->id;
  rt->record_born = t->born;
}

void aioL_forget_site(lua_State *L, const LTask *t) {
  LRuntime *rt = t->c->rt;
  if (rt->record_of != t->c->id || rt->record_born != t->born) return;
  lua_pushboolean(L, 0);
  lua_rawseti(L, LUA_REGISTRYINDEX, rt->record);
  rt->record_of = 0;
}

void aioL_push_site(lua_State *L, LContext *c) {
  lua_Debug ar;
  LTask *t = c->rt->task;
  if (lua_getstack(L, 1, &ar) && lua_getinfo(L, "fl", &ar)) {
    lua_pushinteger(L, ar.currentline);
  } else {
    lua_pushnil(L);
    lua_pushinteger(L, -1);
  }
  if (t && !t->c->closed)
    push_record(L, t);
  else
    lua_pushnil(L);
}

/* stack: ..., function, line -> ..., "file:line" */
static void name_place(lua_State *L) {
  lua_Debug ar;
  lua_Integer line = lua_tointeger(L, -1);
  lua_pop(L, 1);
  if (!lua_isfunction(L, -1)) {
    lua_pop(L, 1);
    lua_pushliteral(L, "[C]");
    return;
  }
  lua_getinfo(L, ">S", &ar);
  if (line > 0)
    lua_pushfstring(L, "%s:%I", ar.short_src, line);
  else
    lua_pushstring(L, ar.short_src);
}

/* "\n\tspawned at a.lua:3\n\tspawned at main.lua:1", or "" */
static void push_chain(lua_State *L, const LTask *t) { /* [-0, +1, m] */
  lua_pushliteral(L, "");
  if (!push_site_of(L, t)) return;
  for (;;) { /* stack: text, function, line, up */
    lua_insert(L, -3);
    name_place(L); /* stack: text, up, place */
    lua_pushfstring(L, "%s\n\tspawned at %s", lua_tostring(L, -3), lua_tostring(L, -1));
    lua_replace(L, -4);
    lua_pop(L, 1);
    if (!lua_istable(L, -1)) break;
    for (int i = 1; i <= SITE; i++) lua_rawgeti(L, -i, i);
    lua_remove(L, -1 - SITE);
  }
  lua_pop(L, 1);
}

/* ---- tracebacks ---- */

/* Of the state `co`, in which the task's code runs or waits, and of all that called it. */
static void push_traceback(lua_State *L, const LTask *t, lua_State *co, const char *message) { /* [-0, +1, m] */
  static const char bottom[] = "\n\t[C]: in ?";
  const LWrap *w = t->ties ? t->ties->flow.wrap : NULL;
  luaL_traceback(L, co, message, co == L);
  for (bool inside = false; w; w = w->outer) {
    inside |= w->co == co;
    if (inside) luaL_traceback(L, w->from, "\n\tcalled through aio.wrap", 0), lua_concat(L, 2);
  }
  size_t len, tail = sizeof bottom - 1;
  const char *text = lua_tolstring(L, -1, &len);
  if (!t->adopted && len > tail && !strcmp(text + len - tail, bottom)) { /* aioL_task_main */
    lua_pushlstring(L, text, len - tail);
    lua_remove(L, -2);
  }
  push_chain(L, t);
  lua_concat(L, 2);
}

void aioL_push_origin(lua_State *L, lua_State *co) {
  lua_Debug ar;
  int levels = depth_of(co);
  bool found = levels > 0 && lua_getstack(co, levels - 1, &ar) && lua_getinfo(co, "S", &ar);
  if (found && *ar.what == 'C' && levels > 1) found = lua_getstack(co, levels - 2, &ar) && lua_getinfo(co, "S", &ar);
  if (!levels && lua_tocfunction(co, 1) == aioL_task_main && lua_checkstack(co, 1)) {
    lua_pushvalue(co, 2 + HANDLER_AT);
    found = lua_getinfo(co, ">S", &ar);
  }
  if (found)
    lua_pushfstring(L, "%s:%d", ar.short_src, ar.linedefined);
  else
    lua_pushnil(L);
}

/* The first to see an error sees the whole stack: who passes it on leaves the record alone. */
void aioL_note(lua_State *L, lua_State *co) { /* stack: ..., error */
  LRuntime *rt = aioL_find_runtime(L);
  LTask *t = rt ? rt->task : NULL;
  if (!t || t->c->closed || aioL_is_cancel(L, -1)) return;
  int err = lua_gettop(L);
  aioL_push_weak(L, t->c, SIDE_TRACES, "k");
  aioL_push_thread(L, t);
  if (lua_rawget(L, -2) == LUA_TTABLE) {
    lua_rawgeti(L, -1, 1);
    if (lua_rawequal(L, -1, err)) {
      lua_settop(L, err);
      return;
    }
    lua_pop(L, 1);
  }
  lua_pop(L, 1); /* stack: error, traces */
  lua_createtable(L, 3, 0);
  lua_pushvalue(L, err);
  lua_rawseti(L, -2, 1);
  push_traceback(L, t, co, lua_type(L, err) == LUA_TSTRING ? lua_tostring(L, err) : NULL);
  lua_rawseti(L, -2, 2);
  aioL_push_origin(L, t->L);
  lua_rawseti(L, -2, 3);
  aioL_push_thread(L, t);
  lua_insert(L, -2);
  lua_rawset(L, -3);
  lua_settop(L, err);
}

int aioL_traceback(lua_State *L) {
  lua_settop(L, 1);
  aioL_note(L, L);
  return 1;
}

/* Its code runs, and it is the loop that runs it. */
static bool runs(const LTask *t) { return t->c->rt->task == t; }

/* stack: task, site, message handler, error -> error, traceback, label; or the error value of a cancel */
static int failed(lua_State *L, LTask *t) {
  if (!runs(t)) return lua_error(L); /* somebody else has resumed it */
  if (t->cancelled && aioL_is_own_cancel(L, t)) {
    t->ending = L_CANCELLED;
    return 1;
  }
  int err = lua_gettop(L);
  aioL_push_weak(L, t->c, SIDE_TRACES, "k");
  aioL_push_thread(L, t);
  lua_rawget(L, -2);
  bool known = lua_istable(L, -1);
  if (known) {
    lua_rawgeti(L, -1, 1);
    known = lua_rawequal(L, -1, err);
    lua_pop(L, 1);
  }
  for (int i = 2; i <= 3; i++)
    if (known)
      lua_rawgeti(L, err + 2, i);
    else
      lua_pushnil(L);
  lua_pushvalue(L, err);
  lua_insert(L, -3);
  t->ending = L_BROKEN;
  return 3;
}

/* A task without a name that ends with a lock in its hand is called after where it was spawned. */
static void name_culprit(lua_State *L, const LTask *t) {
  if (!t->ties || list_empty(&t->ties->held) || !runs(t) || t->c->closed) return;
  luaL_checkstack(L, 8, NULL);
  aioL_push_weak(L, t->c, SIDE_TASK_NAMES, "k");
  lua_pushthread(L);
  if (lua_rawget(L, -2) == LUA_TNIL) {
    lua_pushthread(L);
    lua_pushvalue(L, SITE_AT);
    lua_pushvalue(L, SITE_AT + 1);
    name_place(L);
    lua_rawset(L, -4);
  }
  lua_pop(L, 2);
}

static int task_over(lua_State *L, int status, lua_KContext ctx) {
  LTask *t = (LTask *)ctx; /* on the stack */
  name_culprit(L, t);
  return status == LUA_OK || status == LUA_YIELD ? lua_gettop(L) - HANDLER_AT : failed(L, t);
}

/* Under this call <close> variables may wait also when an error unwinds them. */
int aioL_task_main(lua_State *L) { /* stack: task, site, message handler, function, arguments */
  lua_KContext task = (lua_KContext)lua_touserdata(L, 1);
  int nargs = lua_gettop(L) - HANDLER_AT - 1;
  return task_over(L, lua_pcallk(L, nargs, LUA_MULTRET, HANDLER_AT, task, task_over), task);
}

/* ---- names ---- */

void aioL_push_name(lua_State *L, LTask *t) {
  aioL_push_weak(L, t->c, SIDE_TASK_NAMES, "k");
  aioL_push_thread(L, t);
  lua_rawget(L, -2);
  lua_remove(L, -2);
}

void aioL_task_label(lua_State *L, LTask *t) {
  aioL_push_name(L, t);
  if (lua_isnil(L, -1)) {
    lua_pop(L, 1);
    if (t->state == L_BROKEN)
      lua_pushvalue(t->L, 3), lua_xmove(t->L, L, 1);
    else
      aioL_push_origin(L, t->L);
  }
  lua_pushfstring(L, "task '%s'", lua_isstring(L, -1) ? lua_tostring(L, -1) : "?");
  lua_remove(L, -2);
}

/* ---- what is waited for ---- */

static const char *waits_in(const LTask *t) {
  if (t->state != L_WAITING) return NULL;
  return t->ticket.ops ? t->ticket.ops->name : "coroutine.yield";
}

static lua_Number waits_since(const LTask *t) {
  return t->ticket.ops ? (lua_Number)(uint32_t)(aio_clock_coarse_ms() - t->ticket.since) / 1000 : 0;
}

/*** Its Lua stack, what it waits for, and where it was spawned; of a failed one, the stack as it was when it failed.
@function task:traceback
@treturn string */
int aioL_task_traceback(lua_State *L) {
  LTask *t = aioL_check_task(L, 1);
  if (t->state == L_BROKEN && lua_isstring(t->L, 2)) {
    lua_pushvalue(t->L, 2);
    return lua_xmove(t->L, L, 1), 1;
  }
  const char *where = waits_in(t);
  if (where) lua_pushfstring(L, "waiting in %s for %f s", where, waits_since(t));
  push_traceback(L, t, aioL_innermost(t), where ? lua_tostring(L, -1) : NULL);
  return 1;
}

/*** What is known of a task.
@function task:info
@treturn table id, parent (the id of the task that spawned it), name, status, and of a waiting one `waiting` (the operation)
  and `since` (seconds) */
int aioL_task_info(lua_State *L) {
  LTask *t = aioL_check_task(L, 1);
  lua_createtable(L, 0, 6);
  lua_pushinteger(L, t->born);
  lua_setfield(L, -2, "id");
  aioL_push_name(L, t);
  lua_setfield(L, -2, "name");
  lua_pushstring(L, aioL_state_names[t->state]);
  lua_setfield(L, -2, "status");
  if (waits_in(t)) {
    lua_pushstring(L, waits_in(t));
    lua_setfield(L, -2, "waiting");
    lua_pushnumber(L, waits_since(t));
    lua_setfield(L, -2, "since");
  }
  if (push_site_of(L, t)) {
    if (lua_istable(L, -1)) {
      lua_rawgeti(L, -1, 5);
      lua_setfield(L, -5, "parent");
    }
    lua_pop(L, SITE);
  }
  return 1;
}

/*** The tasks of a context that have not ended.
@function context:tasks
@treturn {task,...} in no order */
int aioL_ctx_tasks(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  lua_Integer n = 0;
  lua_newtable(L);
  for (uint32_t i = 1; i < c->nslots && !c->closed; i++) {
    LTask *t = aioL_task_at(c, i);
    if (!t || aioL_task_ended(t)) continue;
    aioL_push_task(L, t);
    lua_rawseti(L, -2, ++n);
  }
  return 1;
}

/* ---- deadlock ---- */

static void push_place(lua_State *L, lua_State *co) { /* [-0, +1, m] " at file:line", or "" */
  lua_Debug ar;
  for (int level = 0; lua_getstack(co, level, &ar); level++) {
    if (!lua_getinfo(co, "Sl", &ar) || ar.currentline <= 0) continue;
    lua_pushfstring(L, " at %s:%d", ar.short_src, ar.currentline);
    return;
  }
  lua_pushliteral(L, "");
}

enum { TOLD = 100 }; /* tasks, in a report */

/* A table keeps them: a finaliser may close the context while they are told of. */
static lua_Integer push_asleep(lua_State *L, const LContext *c) { /* [-0, +1, m] how many, up to one more than are told */
  lua_Integer n = 0;
  lua_newtable(L);
  for (uint32_t i = 1; i < c->nslots && n <= TOLD; i++) {
    LTask *t = aioL_task_at(c, i);
    if (!t || aioL_task_ended(t) || t->unref) continue;
    aioL_push_task(L, t);
    lua_rawseti(L, -2, ++n);
  }
  return n;
}

void aioL_deadlock(lua_State *L, LContext *c) {
  luaL_Buffer report;
  lua_Integer n = push_asleep(L, c);
  int tasks = lua_gettop(L);
  luaL_buffinit(L, &report);
  luaL_addstring(&report, "deadlock: nothing is left that could wake");
  for (lua_Integer i = 1; i <= n; i++) {
    if (i > TOLD) {
      luaL_addstring(&report, "\n\t...");
      break;
    }
    lua_rawgeti(L, tasks, i);
    LTask *t = lua_touserdata(L, -1);
    lua_pop(L, 1);
    if (aioL_task_ended(t)) continue;
    luaL_addstring(&report, "\n\t");
    aioL_task_label(L, t);
    luaL_addvalue(&report);
    luaL_addstring(&report, ", which waits in ");
    luaL_addstring(&report, waits_in(t) ? waits_in(t) : "nothing");
    push_place(L, aioL_innermost(t));
    luaL_addvalue(&report);
  }
  luaL_pushresult(&report);
  lua_error(L);
}
