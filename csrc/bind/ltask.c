/* SPDX-License-Identifier: MIT
 * The task handle: finding it, joining, and what a task tells about itself.
 *
 * Way      join -> ticket in the task's list -> lwait.c; the end of the task (lco.c) takes the joiners' tickets -> results
 * Owner    a handle holds its task's thread; a joiner's ticket counts the task. A failed task's thread holds error,
 *          traceback and label, a cancelled one's the error value. */
#include "lbind.h"

/*** Task handles.
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

/* A spawned task's handles are known weakly by slot, an adopted one's by thread. */
void aioL_push_handles(lua_State *L, LContext *c) { /* [-0, +1, m] */
  aioL_push_weak(L, c, SIDE_HANDLES, "v");
}

LTaskBox *aioL_new_handle(lua_State *L, LRuntime *rt) {
  LTaskBox *box = lua_newuserdatauv(L, sizeof *box, 1);
  box->t = NULL;
  aioL_set_class(L, rt, L_TASK);
  lua_pushvalue(L, -2);
  lua_setiuservalue(L, -2, 1);
  return box;
}

void aioL_push_thread(lua_State *L, LTask *t) { /* [-0, +1, m] */
  if (t->L == L)
    lua_pushthread(L);
  else
    lua_pushthread(t->L), lua_xmove(t->L, L, 1);
}

void aioL_push_task(lua_State *L, LTask *t) { /* [-0, +1, m] */
  luaL_checkstack(L, 8, NULL);
  if (t->adopted) {
    lua_rawgeti(L, LUA_REGISTRYINDEX, t->c->rt->threads);
    aioL_push_thread(L, t);
    lua_rawget(L, -2);
    lua_remove(L, -2);
    return;
  }
  aioL_push_handles(L, t->c);
  if (lua_rawgeti(L, -1, t->slot) != LUA_TUSERDATA) {
    lua_pop(L, 1);
    aioL_push_thread(L, t);
    LTaskBox *box = aioL_new_handle(L, t->c->rt);
    lua_pushvalue(L, -1);
    lua_rawseti(L, -4, t->slot);
    lua_remove(L, -2);
    box->t = t;
    t->refs++;
  }
  lua_remove(L, -2);
}

/* ---- joining and cancelling ---- */

static void join_leave(LTicket *tk) {
  list_unlink(&tk->link);
  aioL_task_unref(tk->op);
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
  lua_pushvalue(t->L, lua_type(t->L, 1) == LUA_TSTRING && lua_toboolean(t->L, 2) ? 2 : 1);
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
  if (t->state == L_CANCELLED && t->ending != L_CANCELLED) { /* it never began, or was closed, or its context was */
    aioL_push_cancel(L, t);
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
  aioL_checkpoint(L);
  if (aioL_task_ended(t)) {
    int n = aioL_task_results(L, t, ops == &await_ops);
    return ops == &await_ops ? n - 1 : n;
  }
  LTies *ties = aioL_ties(L, t);
  LTicket *tk = aioL_ticket(L, t->c->rt->task ? aioL_current(L) : t->c, ops);
  if (t->ties != ties) { /* a finaliser has just closed its context */
    aioL_ticket_drop(tk);
    return aioL_task_results(L, t, ops == &await_ops);
  }
  list_append(&ties->joiners, &tk->link);
  t->refs++;
  tk->op = t;
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

/*** Cancels the task: its present wait, or its next one, raises an error value that `aio.is_cancelled` knows, and so does
every later wait outside of `aio.shield`. A task that has not begun never begins.
@function task:cancel
@param[opt] reason any value, in the error's field `reason`
@treturn boolean false: it has ended already */
static int task_cancel(lua_State *L) {
  LTask *t = check_task(L);
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
  const LTask *t = check_task(L);
  lua_pushstring(L, aioL_state_names[t->state]);
  return 1;
}

/*** Its name, for reports.
@function task:name
@string[opt] name sets it
@treturn string name, or nil; with an argument, the task */
static int task_name(lua_State *L) {
  LTask *t = check_task(L);
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
  if (t->slot) t->keep = false; /* nobody can join it any more: should it fail, or has it in this turn, that is reported */
  if (t->state == L_BROKEN && !t->joined && t->keep && !t->c->closed && aioL_push_anchor(L, t->c)) {
    lua_pop(L, 1);
    report_later(L, t);
  } else {
    aioL_task_unref(t);
  }
  return 0;
}

static int task_tostring(lua_State *L) {
  const LTaskBox *box = aioL_check(L, 1, L_TASK);
  const char *state = !box->t ? "closed" : aioL_state_names[box->t->state];
  lua_pushfstring(L, "aioloop.task (%s): %p", state, lua_topointer(L, 1));
  return 1;
}

void aioL_open_task(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"join", task_join}, {"cancel", task_cancel}, {"status", task_status}, {"name", task_name},
    {"traceback", aioL_task_traceback}, {"info", aioL_task_info}, {"wake", aioL_task_wake}, {"keep", task_keep}, {"ref", task_ref}, {"unref", task_unref},
    {"__gc", task_gc}, {"__tostring", task_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"await", mod_await}, {NULL, NULL}};
  aioL_class(L, rt, L_TASK, methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
