/* SPDX-License-Identifier: MIT
 * Conditions: tasks that give up a mutex until they are told that what they want may have come true.
 *
 * Way      wait -> ticket in the condition's queue, mutex passed on -> signal, timeout or cancel -> settle: into the
 *          mutex's queue (lsync.c) -> the outcome that it had
 * Owner    a condition is a userdata, which every waiter has on its stack.
 * Keep     all who wait at a time have given up the same mutex; whoever comes back holds it again. */
#include "lbind.h"

/*** Locks between tasks.
@module aioloop.sync */

typedef struct LCondition {
  const void *mark; /* see aioL_test */
  AioLink queue;
  LLock *mutex; /* of those who wait; user value 1, since a waiter may be closed behind our back */
} LCondition;

static const LWaitOps wait_ops = {.name = "condition:wait", .settle = aioL_mutex_retake, .revoke = aioL_lock_revoke};

static LCondition *check_condition(lua_State *L) { return aioL_check(L, 1, L_CONDITION); }

/*** Makes a condition.
@function condition
@treturn condition */
static int mod_condition(lua_State *L) {
  LCondition *cond = lua_newuserdatauv(L, sizeof *cond, 1);
  *cond = (LCondition){.mutex = NULL};
  list_init(&cond->queue);
  return aioL_set_class(L, aioL_runtime(L), L_CONDITION), 1;
}

static const char *refuse(const LCondition *cond, const LLock *m) {
  if (!aioL_mutex_held(m)) return "condition:wait needs the mutex held by the caller";
  if (!list_empty(&cond->queue) && cond->mutex != m) return "others wait on this condition with another mutex";
  return NULL;
}

/*** Unlocks the mutex, waits for a signal, and locks it again: also after a timeout, and before a cancel is raised. Where a wait
outside of tasks ends with the error of a callback, it is locked again unless somebody else has it.
@function condition:wait
@tparam mutex mutex held by the caller; the same for all who wait at a time
@number[opt] timeout seconds
@treturn boolean true; or nil, "timeout" */
static int condition_wait(lua_State *L) {
  LCondition *cond = check_condition(L);
  LLock *m = aioL_check_mutex(L, 2);
  int64_t timeout = aioL_opt_ns(L, 3);
  const char *refusal = refuse(cond, m);
  if (refusal) return luaL_error(L, refusal);
  LTicket *tk = aioL_ticket(L, aioL_current(L), &wait_ops);
  refusal = refuse(cond, m); /* again: a finaliser may have unlocked it just now */
  if (refusal) return aioL_ticket_drop(tk), luaL_error(L, refusal);
  lua_pushvalue(L, 2);
  lua_setiuservalue(L, 1, 1);
  cond->mutex = m;
  list_append(&cond->queue, &tk->link);
  aioL_mutex_part(m, tk);
  return aioL_wait(L, tk, timeout);
}

/*** Wakes who has waited longest; without a waiter it is forgotten.
@function condition:signal */
static int condition_signal(lua_State *L) {
  LTicket *tk = aioL_ticket_first(&check_condition(L)->queue);
  if (tk) aioL_take_later(tk, L_DONE, 0);
  return 0;
}

/*** Wakes all who wait.
@function condition:broadcast */
static int condition_broadcast(lua_State *L) {
  LCondition *cond = check_condition(L);
  aioL_take_all(&cond->queue, L_DONE, 0);
  return 0;
}

static int condition_gc(lua_State *L) {
  LCondition *cond = check_condition(L);
  aioL_take_all(&cond->queue, L_CLOSED, 0);
  return 0;
}

void aioL_open_condition(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"wait", condition_wait}, {"signal", condition_signal}, {"broadcast", condition_broadcast},
    {"__gc", condition_gc}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"condition", mod_condition}, {NULL, NULL}};
  aioL_class(L, rt, L_CONDITION, methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
