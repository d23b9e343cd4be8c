/* SPDX-License-Identifier: MIT
 * The task handle: joining, and what a task tells about itself.
 *
 * Way      join -> LJoin in the task's list -> lwait.c; the end of the task (lco.c) takes the joiners' tickets -> results
 * Owner    an LJoin counts the task it waits for. A failed task's thread holds error, traceback and label. */
#include "lbind.h"

/*** Task handles.
@module aioloop.task */

static const char *const state_names[] = {"scheduled", "running", "waiting", "ended", "failed", "cancelled"};

static void join_leave(LTicket *tk) {
  LJoin *j = tk->op;
  LTask *t = j->t;
  *j->link = j->next;
  if (j->next) j->next->link = j->link;
  aioL_alloc(tk->c->rt->main, j, sizeof *j, 0);
  aioL_task_unref(t);
}

static LTask *check_task(lua_State *L) {
  LTaskBox *box = aioL_check(L, 1, L_TASK);
  if (!box->t) luaL_error(L, "attempt to use a closed task");
  return box->t;
}

static int join_results(lua_State *L, LTicket *tk) { /* the handle is the operation's first argument */
  UNUSED(tk);
  return aioL_task_results(L, check_task(L), false);
}

static int await_results(lua_State *L, LTicket *tk) {
  UNUSED(tk);
  return aioL_task_results(L, check_task(L), true) - 1;
}

static const LWaitOps join_ops = {.name = "task:join", .leave = join_leave, .results = join_results};
static const LWaitOps await_ops = {.name = "aio.await", .leave = join_leave, .results = await_results};

int aioL_task_push_error(lua_State *L, LTask *t) {
  lua_pushvalue(t->L, lua_toboolean(t->L, 2) ? 2 : 1);
  lua_xmove(t->L, L, 1);
  return 1;
}

int aioL_task_results(lua_State *L, LTask *t, bool raise) {
  t->joined = true;
  if (t->state == L_ENDED) {
    int n = lua_gettop(t->L);
    luaL_checkstack(L, n + 2, "too many results");
    luaL_checkstack(t->L, n + 2, "too many results");
    lua_pushboolean(L, 1);
    for (int i = 1; i <= n; i++) lua_pushvalue(t->L, i);
    lua_xmove(t->L, L, n);
    return n + 1;
  }
  if (!raise) lua_pushboolean(L, 0);
  if (t->state == L_CANCELLED) {
    lua_pushliteral(L, "cancelled");
  } else {
    lua_pushvalue(t->L, 1);
    lua_xmove(t->L, L, 1);
  }
  return raise ? lua_error(L) : 2;
}

static int join(lua_State *L, const LWaitOps *ops) {
  LTask *t = check_task(L);
  int64_t timeout = aioL_opt_ns(L, 2);
  lua_settop(L, 1);
  if (t->L == L || (aioL_runtime(L)->task == t)) return luaL_error(L, "a task cannot join itself");
  if (aioL_task_ended(t)) {
    int n = aioL_task_results(L, t, ops == &await_ops);
    return ops == &await_ops ? n - 1 : n;
  }
  LTicket *tk = aioL_ticket(L, t->c->rt->task ? aioL_current(L) : t->c, ops);
  LJoin *j = aioL_alloc(L, NULL, 0, sizeof *j);
  if (!j) {
    aioL_ticket_drop(tk);
    return luaL_error(L, "not enough memory");
  }
  LJoin **end = &t->joiners;
  while (*end) end = &(*end)->next;
  *j = (LJoin){.next = NULL, .link = end, .t = t, .tk = tk};
  *end = j;
  t->refs++;
  tk->op = j;
  return aioL_wait(L, tk, timeout);
}

/*** Waits for the task's end. Any number of times, before or after it.
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
  aioL_check(L, 1, L_TASK);
  lua_settop(L, 1);
  return join(L, &await_ops);
}

/* ---- what a task tells ---- */

/*** What it is doing.
@function task:status
@treturn string "scheduled", "running", "waiting", "ended", "failed" or "cancelled" */
static int task_status(lua_State *L) {
  const LTask *t = check_task(L);
  lua_pushstring(L, state_names[t->state]);
  return 1;
}

static void push_names(lua_State *L, LContext *c) { /* [-0, +1, m] thread -> name, weak */
  aioL_push_weak(L, c, SIDE_TASK_NAMES, "k");
}

static void push_name(lua_State *L, LTask *t) { /* [-0, +1, m] string or nil */
  push_names(L, t->c);
  aioL_push_thread(L, t);
  lua_rawget(L, -2);
  lua_remove(L, -2);
}

/*** Its name, for reports.
@function task:name
@string[opt] name sets it
@treturn string name, or nil; with an argument, the task */
static int task_name(lua_State *L) {
  LTask *t = check_task(L);
  if (lua_isnoneornil(L, 2)) {
    push_name(L, t);
    return 1;
  }
  luaL_checkstring(L, 2);
  lua_settop(L, 2);
  push_names(L, t->c);
  aioL_push_thread(L, t);
  lua_pushvalue(L, 2);
  lua_rawset(L, -3);
  lua_settop(L, 1);
  return 1;
}

void aioL_task_label(lua_State *L, LTask *t) {
  push_name(L, t);
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

/*** Its Lua stack; of a failed one, as it was when it failed.
@function task:traceback
@treturn string */
static int task_traceback(lua_State *L) {
  LTask *t = check_task(L);
  if (t->state == L_BROKEN) return aioL_task_push_error(L, t);
  luaL_traceback(L, t->L, NULL, 0);
  return 1;
}

/*** Promises a join: an error is then reported only if the handle is collected unjoined.
@function task:keep
@treturn task itself */
static int task_keep(lua_State *L) {
  check_task(L)->keep = true;
  lua_settop(L, 1);
  return 1;
}

static int set_unref(lua_State *L, bool off) {
  LTask *t = check_task(L);
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

/* Nobody will join it any more. This may be lua_close, so no Lua is entered: the end of the next turn reports it. */
static void report_later(lua_State *L, LTask *t) { /* [-0, +0, m] the handle is at 1 */
  lua_getiuservalue(L, 1, 1);
  t->slot = aioL_anchor(L, t->c, -1, t);
  lua_pop(L, 1);
  t->keep = false;
  t->next_failed = t->c->failed; /* which takes over the handle's reference */
  t->c->failed = t;
  aio_notify(t->c->core); /* there may be no other reason for a turn */
}

static int task_gc(lua_State *L) {
  LTaskBox *box = aioL_check(L, 1, L_TASK);
  LTask *t = box->t;
  if (!t) return 0;
  box->t = NULL;
  if (t->state == L_BROKEN && !t->joined && t->keep && !t->c->closed) {
    report_later(L, t);
  } else {
    aioL_task_unref(t);
  }
  return 0;
}

static int task_tostring(lua_State *L) {
  const LTaskBox *box = aioL_check(L, 1, L_TASK);
  const char *state = !box->t ? "closed" : state_names[box->t->state];
  lua_pushfstring(L, "aioloop.task (%s): %p", state, lua_topointer(L, 1));
  return 1;
}

/* ---- deadlock ---- */

static void add_place(lua_State *L, luaL_Buffer *report, lua_State *co) {
  lua_Debug ar;
  for (int level = 0; lua_getstack(co, level, &ar); level++) {
    if (!lua_getinfo(co, "Sl", &ar) || ar.currentline <= 0) continue;
    lua_pushfstring(L, " at %s:%d", ar.short_src, ar.currentline);
    luaL_addvalue(report);
    return;
  }
}

void aioL_deadlock(lua_State *L, LContext *c) {
  luaL_Buffer report;
  luaL_buffinit(L, &report);
  luaL_addstring(&report, "deadlock: nothing is left that could wake");
  for (uint32_t i = 1, n = 0; i < c->nslots; i++) {
    LTask *t = aioL_task_at(c, i);
    if (!t || aioL_task_ended(t) || t->unref) continue;
    if (++n > 100) {
      luaL_addstring(&report, "\n\t...");
      break;
    }
    luaL_addstring(&report, "\n\t");
    aioL_task_label(L, t);
    luaL_addvalue(&report);
    luaL_addstring(&report, ", which waits in ");
    luaL_addstring(&report, t->ticket.ops ? t->ticket.ops->name : "coroutine.yield");
    add_place(L, &report, t->L);
  }
  luaL_pushresult(&report);
  lua_error(L);
}

void aioL_open_task(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"join", task_join}, {"status", task_status}, {"name", task_name},
    {"traceback", task_traceback}, {"wake", aioL_task_wake}, {"keep", task_keep}, {"ref", task_ref}, {"unref", task_unref},
    {"__gc", task_gc}, {"__tostring", task_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"await", mod_await}, {NULL, NULL}};
  aioL_class(L, rt, L_TASK, "aioloop.task", methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
