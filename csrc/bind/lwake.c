/* SPDX-License-Identifier: MIT
 * Suspending and waking: what a coroutine does to itself and others do to it.
 *
 * Way      aio.suspend -> lwait.c; wake -> values onto the coroutine's stack -> aio_co_wake -> enter (lco.c)
 * Keep     whatever can raise comes before the coroutine is touched; who is in another wait is not disturbed. */
#include <errno.h>

#include "lbind.h"

/*** Suspending and waking coroutines.
@module aioloop.task */

static int suspend_results(lua_State *L, LTicket *tk) {
  lua_settop(L, tk->at + tk->err); /* as many values as its waker put there; the script may have resumed it with more */
  return tk->err;
}

const LWaitOps aioL_suspend_ops = {.name = "aio.suspend", .results = suspend_results};

static bool suspended(const LTask *t) {
  if (t->state != L_WAITING || t->c->closed) return false;
  if (t->ticket.ops) return t->ticket.ops == &aioL_suspend_ops && t->ticket.outcome == L_PENDING;
  return !aio_co_scheduled_by(&t->co) && aioL_resumable(t->L);
}

void aioL_revive(lua_State *L, LTask *t) {
  if (t->slot) return;
  luaL_checkstack(L, 4, NULL);
  aioL_push_task(L, t);
  uint32_t slot = aioL_anchor(L, t->c, -1, t);
  lua_pop(L, 1);
  if (t->slot || aioL_task_ended(t)) { /* a finaliser has woken it */
    aioL_unanchor(L, t->c, &slot);
    return;
  }
  t->slot = slot;
  if (!t->unref) t->c->live++;
}

/* Whatever can raise, or run a finaliser that wakes it, too; then hand_over cannot. false: it is not suspended any more. */
static bool prepare(lua_State *L, LTask *t, int n) { /* [-0, +0, m] */
  if (!lua_checkstack(aioL_innermost(t), n + 4)) luaL_error(L, "too many values");
  aioL_revive(L, t);
  return suspended(t);
}

/* stack: ..., n values -> moved to the suspended coroutine's stack; its wait is over */
static void hand_over(lua_State *L, LTask *t, int n) {
  lua_State *co = aioL_innermost(t);
  t->ticket.at = lua_gettop(co);
  lua_xmove(L, co, n);
  t->nargs = n;
  if (t->ticket.ops) aioL_take_quietly(&t->ticket, L_DONE, n);
  t->state = L_SCHEDULED;
}

void aioL_wake_task(LTask *t, const char *who) {
  if (t->c->rt->current == t->c)
    aio_co_wake(&t->co, who);
  else
    aio_co_schedule(&t->co, who); /* its context is not the one whose turn is running */
}

void aioL_wake_later(LTask *t, const char *who) {
  if (t->c->rt->current == t->c && aio_co_running(t->c->core))
    aio_co_wake(&t->co, who);
  else
    aio_co_schedule(&t->co, who);
}

void aioL_wake_last(LTask *t, const char *who) {
  if (t->c->rt->current == t->c)
    aio_co_wake_last(&t->co, who);
  else
    aio_co_schedule(&t->co, who);
}

static bool wake(lua_State *L, LTask *t, int n, const char *who) {
  LContext *c = t->c;
  LFrame f;
  bool framed = !c->rt->current;
  int top = lua_gettop(L) - n;
  if (!prepare(L, t, n)) return false;
  if (framed) {
    if (!aioL_enter(L, c, &f)) luaL_error(L, "stack overflow");
    lua_rotate(L, top + 1, 2); /* what the frame needs goes below the values */
    c->base = top + 1;
  }
  hand_over(L, t, n);
  aioL_wake_task(t, who);
  if (!framed) return true;
  aioL_leave(L, &f);
  return lua_settop(L, top), true;
}

static int wake_any(lua_State *L, LTask *t, const char *who) { /* stack: co, values... */
  if (suspended(t) && wake(L, t, lua_gettop(L) - 1, who)) return lua_pushboolean(L, 1), 1;
  return luaL_pushfail(L), lua_pushliteral(L, "not suspended"), 2;
}

/*** Wakes a suspended coroutine, on its own context: at once from the main chunk or a callback, after the caller has
yielded or ended from a coroutine.
@function wake
@tparam task|thread co
@param ... what its suspend returns
@treturn boolean true, or nil, "not suspended" */
static int mod_wake(lua_State *L) { return wake_any(L, aioL_check_co(L, 1, aioL_current(L)), "aio.wake"); }

/*** The same as a method.
@function task:wake
@param ... what its suspend returns
@treturn boolean true, or nil, "not suspended" */
int aioL_task_wake(lua_State *L) {
  aioL_check_task(L, 1);
  return wake_any(L, aioL_check_co(L, 1, aioL_current(L)), "task:wake");
}

static const char by_co_schedule[] = "ctx:co_schedule";

static int not_enterable(lua_State *L, LTask *t) {
  const char *by = aio_co_scheduled_by(&t->co);
  if (by) {
    aioL_push_side(L, t->c);
    lua_rawgeti(L, -1, SIDE_SCHEDULED_AT);
    const char *at = NULL;
    if (lua_istable(L, -1) && by == by_co_schedule) {
      aioL_push_thread(L, t);
      lua_rawget(L, -2);
      at = lua_tostring(L, -1);
    }
    return luaL_error(L, "the coroutine is already scheduled by %s%s%s", by, at ? " at " : "", at ? at : "");
  }
  const char *what = t->state == L_RUNNING ? "running" : aioL_task_ended(t) || aioL_dead(t->L) ? "dead" :
                     t->ticket.ops ? t->ticket.ops->name : "not suspended";
  if (t->ticket.ops) return luaL_error(L, "cannot enter a coroutine that waits in %s", what);
  return luaL_error(L, "cannot enter a coroutine that is %s", what);
}

/*** Enters a coroutine: as `wake`, but what cannot be entered is an error.
@function enter
@tparam task|thread co
@param ... its arguments, or what its suspend returns
@treturn boolean true */
static int mod_enter(lua_State *L) {
  LTask *t = aioL_check_co(L, 1, aioL_current(L));
  if (!suspended(t)) return not_enterable(L, t);
  return wake_any(L, t, "aio.enter");
}

/* Remembers where, for the error of whoever schedules it a second time. */
static void note_place(lua_State *L, LTask *t) { /* [-0, +0, m] */
  aioL_push_weak(L, t->c, SIDE_SCHEDULED_AT, "k");
  aioL_push_thread(L, t);
  luaL_where(L, 1);
  lua_rawset(L, -3);
  lua_pop(L, 1);
}

/*** Schedules a coroutine: it is entered from a bottom half of this context.
@function context:co_schedule
@tparam task|thread co suspended; or the running one, which must then yield
@param ... its arguments, or what its suspend returns
@treturn boolean true
@raise when it is scheduled already, saying by whom; when it cannot be entered */
int aioL_ctx_co_schedule(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  lua_remove(L, 1);
  LTask *t = aioL_check_co(L, 1, c);
  int n = lua_gettop(L) - 1;
  if (t->c != c) return luaL_error(L, "the coroutine belongs to another context");
  bool self = t->state == L_RUNNING && aioL_innermost(t) == L && !aio_co_scheduled_by(&t->co);
  if (!self && !suspended(t)) return not_enterable(L, t);
  if (self && n) return luaL_error(L, "a running coroutine cannot be given values: it is not suspended yet");
  note_place(L, t);
  bool ready = self || prepare(L, t, n);
  aioL_check_open(L, c); /* a finaliser may have closed it, or have woken the coroutine */
  if (!ready || aio_co_scheduled_by(&t->co)) return not_enterable(L, t);
  if (!self) hand_over(L, t, n);
  aio_co_schedule(&t->co, by_co_schedule);
  lua_settop(L, 0);
  lua_pushboolean(L, 1);
  return 1;
}

/*** Suspends the running task until somebody wakes it.
@function suspend
@number[opt] timeout seconds
@return the values given to `wake`; or nil, "timeout" */
static int mod_suspend(lua_State *L) {
  int64_t timeout = aioL_opt_ns(L, 1);
  LTicket *tk = aioL_ticket(L, aioL_current(L), &aioL_suspend_ops);
  return aioL_wait(L, tk, timeout);
}

static int yielded(lua_State *L, int status, lua_KContext ctx) {
  LRuntime *rt = (LRuntime *)ctx;
  const LTask *t = rt->task;
  LScope *scope;
  UNUSED(status);
  if (!t || aioL_innermost(t) != L) return lua_yieldk(L, 0, ctx, yielded); /* somebody else's coroutine.resume */
  if (t->cancelled || t->ties)
    if (aioL_cancelled(t->ties ? &t->ties->flow : NULL, t, &scope)) return aioL_raise_cancel(L, rt);
  return 0;
}

/*** Lets everything else that is ready run first.
@function yield */
static int mod_yield(lua_State *L) {
  LRuntime *rt = aioL_runtime(L);
  LTask *t = rt->task;
  if (!t || t->L != L || !lua_isyieldable(L)) t = aioL_waiter(L, aioL_current(L)); /* raises where waiting is impossible */
  if (!t) {
    LContext *c = aioL_current(L);
    aioL_checkpoint(L);
    aioL_push_box(L, c);
    aioL_turn(L, c, 0);
    aioL_raise(L, c);
    return 0;
  }
  if (t->cancelled || t->ties) aioL_checkpoint(L);
  if (aio_co_schedule(&t->co, "aio.yield") == -ESHUTDOWN) return luaL_error(L, "attempt to use a closed context");
  t->state = L_SCHEDULED;
  return aioL_suspend(L, t, (lua_KContext)rt, yielded);
}

/*** The running task.
@function self
@treturn task or nil outside of tasks */
static int mod_self(lua_State *L) {
  LTask *t = aioL_runtime(L)->task;
  if (!t || t->c->closed)
    luaL_pushfail(L);
  else
    luaL_checkstack(L, 4, NULL), aioL_push_task(L, t);
  return 1;
}

void aioL_open_wake(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg functions[] = {{"wake", mod_wake}, {"enter", mod_enter}, {"suspend", mod_suspend},
    {"yield", mod_yield}, {"self", mod_self}, {NULL, NULL}};
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
