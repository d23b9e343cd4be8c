/* SPDX-License-Identifier: MIT
 * A task as scripts see it: finding it, joining, and what it tells about itself.
 *
 * Way      join -> ticket in the task's list -> lwait.c; the end of the task (lco.c) takes the joiners' tickets -> results
 * Owner    a task holds its thread; a joiner has the task on its stack. A failed task's thread holds error, traceback and
 *          label, a cancelled one's the error value. A will is a value with a finaliser that is collected together with the
 *          task, of which few need one: a kept one, to report its error, and an adopted one, to leave its queues. */
#include "lbind.h"

/*** Tasks as values.
@module aioloop.task */

/* ---- finding and making it ---- */

void aioL_push_weak(lua_State *L, LContext *c, int key, const char *mode) { /* [-0, +1, m] */
  aioL_push_side(L, c);
  if (lua_rawgeti(L, -1, key) == LUA_TNIL) {
    lua_pop(L, 1);
    lua_newtable(L);
    lua_createtable(L, 0, 1);
    lua_pushstring(L, mode);
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_rawseti(L, -3, key);
  }
  lua_remove(L, -2);
}

typedef struct LWill { LTask *t; } LWill; /* user value 1 is the task; NULL: not made yet, or carried out */

void aioL_make_will(lua_State *L, int idx) {
  LTask *t = lua_touserdata(L, idx);
  LRuntime *rt = t->c->rt;
  if (t->willed) return;
  LWill *w = lua_newuserdatauv(L, sizeof *w, 1);
  w->t = NULL;
  aioL_set_class(L, rt, L_WILL);
  lua_pushvalue(L, idx);
  lua_setiuservalue(L, -2, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->threads);
  lua_getiuservalue(L, idx, 1);
  lua_pushvalue(L, -3); /* stack: will, table, thread, will */
  lua_rawset(L, -3);
  lua_pop(L, 2);
  w->t = t;
  t->willed = true;
  if (t->adopted) aioL_context_ref(t->c);
}

LTask *aioL_willed(lua_State *L, LRuntime *rt, int idx) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->threads);
  lua_pushvalue(L, idx < 0 ? idx - 1 : idx);
  LTask *t = lua_rawget(L, -2) == LUA_TUSERDATA ? ((LWill *)lua_touserdata(L, -1))->t : NULL;
  lua_pop(L, 2);
  return t;
}

void aioL_push_thread(lua_State *L, LTask *t) { /* [-0, +1, m] */
  if (t->L == L)
    lua_pushthread(L);
  else
    lua_pushthread(t->L), lua_xmove(t->L, L, 1);
}

void aioL_push_task(lua_State *L, LTask *t) {
  if (t->slot && aioL_push_anchor(L, t->c)) {
    lua_rawgeti(L, -1, t->slot);
  } else {
    lua_rawgeti(L, LUA_REGISTRYINDEX, t->c->rt->threads);
    aioL_push_thread(L, t);
    lua_rawget(L, -2);
    lua_replace(L, -2);
    if (lua_isnil(L, -1)) return;
    lua_getiuservalue(L, -1, 1);
  }
  lua_replace(L, -2);
}

/* ---- joining and cancelling ---- */

/* The task is at 1. */
static int join_results(lua_State *L, LTicket *tk) { return aioL_task_results(L, tk->op, false); }
static int await_results(lua_State *L, LTicket *tk) { return aioL_task_results(L, tk->op, true) - 1; }

static const LWaitOps join_ops = {.name = "task:join", .results = join_results};
static const LWaitOps await_ops = {.name = "aio.await", .results = await_results};

/* The script has closed its thread, or resumed it, which it may. */
static bool robbed(const LTask *t) {
  bool left = t->state == L_ENDED ? t->nargs > 0 : t->state == L_BROKEN || t->ending == L_CANCELLED;
  return left && !aioL_sealed(t->L);
}

void aioL_task_push_value(lua_State *L, LTask *t) {
  if (robbed(t))
    lua_pushliteral(L, "the error is gone: the task's coroutine was closed or resumed after its end");
  else
    lua_pushvalue(t->L, 1), lua_xmove(t->L, L, 1);
}

int aioL_task_push_error(lua_State *L, LTask *t) {
  if (robbed(t)) return aioL_task_push_value(L, t), 1;
  lua_pushvalue(t->L, lua_type(t->L, 1) == LUA_TSTRING && lua_toboolean(t->L, 2) ? 2 : 1);
  lua_xmove(t->L, L, 1);
  return 1;
}

int aioL_task_results(lua_State *L, LTask *t, bool raise) {
  t->joined = true;
  if (t->state == L_ENDED) {
    int n = t->nargs;
    if (robbed(t)) return luaL_error(L, "the results are gone: the task's coroutine was closed or resumed after its end");
    luaL_checkstack(L, n + 2, "too many results");
    if (n > LUA_MINSTACK / 2 - 2) luaL_checkstack(t->L, n + 2, "too many results"); /* else there is room: asking costs */
    lua_pushboolean(L, 1);
    for (int i = 1; i <= n; i++) lua_pushvalue(t->L, i);
    lua_xmove(t->L, L, n);
    return n + 1;
  }
  if (!raise) lua_pushboolean(L, 0);
  if (t->state == L_CANCELLED && (t->ending != L_CANCELLED || robbed(t))) /* or it never began, or its context was closed */
    aioL_push_cancel(L, t);
  else
    aioL_task_push_value(L, t);
  return raise ? lua_error(L) : 2;
}

static int join(lua_State *L, const LWaitOps *ops) {
  LTask *t = aioL_check_task(L, 1);
  int64_t timeout = aioL_opt_ns(L, 2);
  lua_settop(L, 1);
  LContext *c = t->c;
  LRuntime *rt = c->rt;
  if (t->L == L || rt->task == t) return luaL_error(L, "a task cannot join itself");
  if (!rt->task || aioL_task_ended(t)) aioL_checkpoint(L); /* else aioL_ticket sees to it */
  if (aioL_task_ended(t)) {
    int n = aioL_task_results(L, t, ops == &await_ops);
    return ops == &await_ops ? n - 1 : n;
  }
  LTies *ties = aioL_ties(L, t);
  LTicket *tk = aioL_ticket(L, rt->task ? aioL_current(L) : c, ops);
  if (t->ties != ties) { /* a finaliser has just closed its context */
    aioL_ticket_drop(tk);
    return aioL_task_results(L, t, ops == &await_ops);
  }
  list_append(&ties->joiners, &tk->link);
  tk->op = t;
  return aioL_wait(L, tk, timeout);
}

/*** Waits for the task's end. Any number of times, before or after it. Whoever waits goes on in the turn in which it ends, when
the others that are due have run: so one who joins many that end together waits once.
@function task:join
@number[opt] timeout seconds
@return true and its results; false and its error; nil, "timeout" */
static int task_join(lua_State *L) { return join(L, &join_ops); }

/*** Waits for a task's end.
@function await
@tparam task task
@return its results
@raise its error, the very value */
static int mod_await(lua_State *L) {
  aioL_check_task(L, 1);
  lua_settop(L, 1);
  return join(L, &await_ops);
}

/*** Cancels the task: its present wait, or its next one, raises an error value that `aio.is_cancelled` knows, and so does
every later wait outside of `aio.shield`. A task that has not begun never begins.
@function task:cancel
@param[opt] reason any value, in the error's field `reason`
@treturn boolean false: it has ended already */
static int task_cancel(lua_State *L) {
  LTask *t = aioL_check_task(L, 1);
  bool reason = !lua_isnoneornil(L, 2);
  lua_settop(L, 2);
  lua_pushboolean(L, aioL_cancel(L, t, reason ? 2 : 0));
  return 1;
}

/* ---- what a task tells ---- */

/*** What it is doing.
@function task:status
@treturn string "scheduled", "running", "waiting", "ended", "failed" or "cancelled" */
static int task_status(lua_State *L) {
  const LTask *t = aioL_check_task(L, 1);
  lua_pushstring(L, aioL_state_names[t->state]);
  return 1;
}

/*** Its name, for reports.
@function task:name
@string[opt] name sets it
@treturn string name, or nil; with an argument, the task */
static int task_name(lua_State *L) {
  LTask *t = aioL_check_task(L, 1);
  if (lua_isnoneornil(L, 2)) {
    aioL_push_name(L, t);
    return 1;
  }
  luaL_checkstring(L, 2);
  lua_settop(L, 2);
  aioL_push_weak(L, t->c, SIDE_TASK_NAMES, "k");
  aioL_push_thread(L, t);
  lua_pushvalue(L, 2);
  lua_rawset(L, -3);
  lua_settop(L, 1);
  return 1;
}

/*** Promises a join: an error is then reported only if the handle is collected unjoined.
@function task:keep
@treturn task itself */
static int task_keep(lua_State *L) {
  LTask *t = aioL_check_task(L, 1);
  lua_settop(L, 1);
  aioL_make_will(L, 1);
  t->keep = true;
  return 1;
}

static int set_unref(lua_State *L, bool off) {
  LTask *t = aioL_check_task(L, 1);
  if (t->slot && !aioL_task_ended(t) && t->unref != off && !t->c->closed) aioL_live(t->c, true, off ? -1 : 1);
  t->unref = off;
  lua_settop(L, 1);
  return 1;
}

/*** Until it has ended, it keeps `run` going (the default).
@function task:ref
@treturn task itself */
static int task_ref(lua_State *L) { return set_unref(L, false); }

/*** It does not keep `run` going.
@function task:unref
@treturn task itself */
static int task_unref(lua_State *L) { return set_unref(L, true); }

/* ---- wills ---- */

/* Nobody will join it any more. This may be lua_close, so no Lua is entered: the end of the next turn reports it. */
static void report_later(lua_State *L, LTask *t) { /* [-0, +0, m] the will is at 1 */
  lua_getiuservalue(L, 1, 1);
  t->slot = aioL_anchor(L, t->c, -1, t);
  lua_pop(L, 1);
  t->keep = false;
  aioL_report_soon(t->c, t);
  aio_notify(t->c->core); /* there may be no other reason for a turn */
}

/* What is anchored goes together with its context, which sees to it. */
static int will_gc(lua_State *L) {
  LWill *w = aioL_check(L, 1, L_WILL);
  LTask *t = w->t;
  if (!t) return 0;
  LContext *c = t->c;
  w->t = NULL;
  t->willed = false;
  if (t->adopted && !t->slot) {
    if (!aioL_task_ended(t)) t->state = L_CANCELLED; /* another finaliser may still find it */
    aioL_task_drop(L, t);
  }
  bool open = c->life == t->life && !c->closed && aioL_push_anchor(L, c);
  if (open && !t->slot && t->state == L_BROKEN && !t->joined && t->keep) report_later(L, t);
  if (t->adopted) aioL_context_unref(L, c);
  return 0;
}

static int task_tostring(lua_State *L) {
  const LTask *t = aioL_check_task(L, 1);
  lua_pushfstring(L, "aioloop.task (%s): %p", aioL_state_names[t->state], lua_topointer(L, 1));
  return 1;
}

void aioL_open_task(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"join", task_join}, {"cancel", task_cancel}, {"status", task_status}, {"name", task_name},
    {"traceback", aioL_task_traceback}, {"info", aioL_task_info}, {"wake", aioL_task_wake}, {"keep", task_keep}, {"ref", task_ref}, {"unref", task_unref},
    {"__tostring", task_tostring}, {NULL, NULL}};
  static const luaL_Reg wills[] = {{"__gc", will_gc}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"await", mod_await}, {NULL, NULL}};
  aioL_class(L, rt, L_TASK, methods);
  aioL_class(L, rt, L_WILL, wills);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
