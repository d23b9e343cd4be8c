/* SPDX-License-Identifier: MIT
 * The one way to wait: tickets, for which completion, timeout and cancel compete, and the two ways to suspend.
 *
 * Way      operation: aioL_ticket -> set itself up -> aioL_wait (task: yield; elsewhere: poll until the ticket is taken)
 *          completion: aioL_take -> leave the queue -> wake the waiter -> results
 *          cancel: the ticket is taken with L_CANCELLING -> results raises what lscope.c finds
 * Owner    a task's ticket is inside the task; any other is a userdata on the waiting C function's stack.
 * Keep     who takes an open ticket decides; it has left its queue before the waiter runs again, so that a late
 *          completion finds nothing to resume. */
#include <errno.h>
#include <string.h>

#include "lbind.h"

/*** Sleeping.
@module aioloop.wait */

/* ---- who may wait ---- */

/* [-0, +1, m] the name that a traceback has for a call: "function 'table.sort'" */
static const char *name_call(lua_State *L, int level) {
  luaL_traceback(L, L, NULL, level);
  const char *in = strstr(lua_tostring(L, -1), " in ");
  return in ? lua_pushlstring(L, in + 4, strcspn(in + 4, "\n")) : NULL;
}

/* The C function that stands between the coroutine's body and the wait. */
static const char *culprit(lua_State *L) { /* [-0, +n, m] */
  lua_Debug ar;
  for (int level = 1; lua_getstack(L, level, &ar); level++) {
    if (!lua_getinfo(L, "Sn", &ar) || *ar.what != 'C') continue;
    if (ar.name && (!strcmp(ar.name, "pcall") || !strcmp(ar.name, "xpcall"))) continue; /* these can be suspended */
    const char *name = name_call(L, level);
    if (name) return lua_pushfstring(L, "C %s", name);
  }
  return "a C function or metamethod";
}

static void refuse_c_call(lua_State *L, lua_State *where) {
  luaL_error(L, "cannot wait inside %s, which cannot be suspended: do the waiting before or after it, or spawn a task", culprit(where));
}

static const LWrap *wrap_of(const LTask *t) { return t->ties ? t->ties->flow.wrap : NULL; }

/* A wrapped coroutine is suspended together with all that called it: which of them cannot be; NULL: none. */
static lua_State *unyieldable(lua_State *L, const LTask *t) {
  if (!lua_isyieldable(L)) return L;
  for (const LWrap *w = wrap_of(t); w; w = w->outer)
    if (!lua_isyieldable(w->from)) return w->from;
  return NULL;
}

/* Whether one of them is a coroutine of the script's own, which would take the suspension for a yield to itself. */
static bool interposed(const LTask *t) {
  for (const LWrap *w = wrap_of(t); w; w = w->outer)
    if (w->from != (w->outer ? w->outer->co : t->L)) return true;
  return false;
}

LTask *aioL_waiter(lua_State *L, LContext *c) {
  LRuntime *rt = c->rt;
  LTask *t = rt->task;
  if (t && t->L == L && !wrap_of(t) && lua_isyieldable(L)) return t;
  if (t && aioL_innermost(t) == L && !interposed(t)) {
    lua_State *who = unyieldable(L, t);
    if (who) refuse_c_call(L, who);
    return t;
  }
  if (!t && rt->flow.wrap ? rt->flow.wrap->co == L : rt->base ? rt->base == L : rt->main == L) return NULL;
  luaL_error(L, "cannot wait inside a coroutine that the loop does not run: make it with aio.spawn, or use aio.wrap "
                "in place of coroutine.wrap");
  return NULL;
}

/* Whether a task can wait without more ado. Most can: what would find out why not need not be asked. */
static bool may_wait(lua_State *L, const LTask *t) { return aioL_at_ease(L, t) && lua_isyieldable(L); }

/* ---- cancelled before it waits ---- */

static int raise_later(lua_State *L, int status, lua_KContext ctx) {
  LRuntime *rt = aioL_runtime(L);
  LTask *t = rt->task;
  UNUSED(status);
  if (!t || aioL_innermost(t) != L) return lua_yieldk(L, 0, ctx, raise_later); /* somebody else's coroutine.resume */
  return aioL_raise_cancel(L, rt);
}

/* Code that catches the error and waits again gets it again, but lets others run first: it may do so for ever. */
static void check_cancel(lua_State *L, LContext *c, LTask *t) {
  LRuntime *rt = c->rt;
  LScope *scope;
  const LFlow *flow = !t ? &rt->flow : t->ties ? &t->ties->flow : NULL;
  if ((!t || !t->cancelled) && (!flow || (!flow->scopes && !flow->wrap))) return;
  if (!aioL_cancelled(flow, t, &scope)) return;
  bool suspends = t && t->raised >= 2 && !interposed(t) && !unyieldable(L, t);
  if (suspends && aio_co_schedule(&t->co, "a cancelled wait") == 0) {
    t->state = L_SCHEDULED;
    aioL_suspend(L, t, 0, raise_later);
  }
  if (t)
    t->raised += t->raised < 2;
  else if (!c->closed)
    aioL_turn(L, c, 0);
  aioL_raise_cancel(L, rt);
}

/* The ticket of the next polling wait is made before its operation looks whether it must wait: a finaliser that runs in an
 * allocation may bring the very thing, and nobody would look again. */
static void lay_ticket_aside(lua_State *L, LRuntime *rt) { /* [-0, +0, m] */
  if (rt->ticket_laid) return;
  luaL_checkstack(L, 4, NULL);
  aioL_current(L); /* makes the default context */
  lua_newuserdatauv(L, sizeof(LTicket), 1);
  lua_rawseti(L, LUA_REGISTRYINDEX, rt->spare_ticket);
  rt->ticket_laid = true;
}

static LTicket *polling_ticket(lua_State *L, LRuntime *rt) { /* [-0, +1, m] */
  if (!rt->ticket_laid) return lua_newuserdatauv(L, sizeof(LTicket), 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->spare_ticket);
  lua_pushboolean(L, 0);
  lua_rawseti(L, LUA_REGISTRYINDEX, rt->spare_ticket);
  rt->ticket_laid = false;
  return lua_touserdata(L, -1);
}

void aioL_check_flow(lua_State *L, LRuntime *rt) {
  LTask *t = rt->task;
  if (t && aioL_innermost(t) == L) {
    check_cancel(L, t->c, t);
  } else if (!t) {
    lay_ticket_aside(L, rt);
    if (rt->flow.scopes || rt->flow.wrap) check_cancel(L, aioL_current(L), NULL);
  }
}

/* The same of a callback: it polls. */
static bool may_poll(const lua_State *L, const LRuntime *rt) {
  return !rt->task && rt->base == L && !rt->flow.scopes && !rt->flow.wrap && rt->ticket_laid;
}

LContext *aioL_waits_in(lua_State *L) {
  const LRuntime *rt = aioL_runtime(L);
  LContext *c = rt->current;
  if (c && !c->closed && (may_poll(L, rt) || may_wait(L, rt->task))) return c;
  c = aioL_current(L);
  aioL_check_flow(L, c->rt);
  aioL_waiter(L, c);
  aioL_check_open(L, c);
  return c;
}

/* ---- what they answer with ---- */

int aioL_closed(lua_State *L) { return luaL_pushfail(L), lua_pushliteral(L, "closed"), 2; }
int aioL_timed_out(lua_State *L) { return luaL_pushfail(L), lua_pushliteral(L, "timeout"), 2; }
int aioL_eof(lua_State *L) { return luaL_pushfail(L), lua_pushliteral(L, "eof"), 2; }

/* ---- tickets ---- */

LTicket *aioL_ticket(lua_State *L, LContext *c, const LWaitOps *ops) {
  LTask *t = c->rt->task;
  LTicket *tk;
  if (!may_wait(L, t)) {
    t = aioL_waiter(L, c);
    if (!ops->immune) check_cancel(L, c, t);
  }
  if (t) {
    aioL_check_open(L, t->c);
    tk = &t->ticket;
    lua_pushnil(L);
  } else {
    tk = polling_ticket(L, c->rt);
    aioL_push_box(L, c); /* the default context can be closed, and another take its place */
    lua_setiuservalue(L, -2, 1);
  }
  aioL_check_open(L, c); /* a finaliser may have closed it just now */
  tk->c = c;
  tk->polls = !t;
  tk->timed = false;
  tk->ops = ops;
  tk->outcome = L_PENDING;
  tk->link = (AioLink){NULL, NULL};
  tk->since = aio_clock_coarse_ms();
  return tk;
}

void aioL_ticket_drop(LTicket *tk) {
  aioL_ticket_untime(tk);
  tk->ops = NULL;
}

void aioL_ticket_abandon(lua_State *L, LTicket *tk) {
  if (tk->ops && tk->outcome == L_DONE && tk->ops->revoke) tk->ops->revoke(L, tk);
  tk->ops = NULL;
}

bool aioL_take_quietly(LTicket *tk, LOutcome outcome, int err) {
  if (!tk->ops || tk->outcome != L_PENDING) return false;
  if (tk->ops->settle && !tk->ops->settle(tk, outcome)) return false;
  tk->outcome = (uint8_t)outcome;
  tk->err = err;
  aioL_ticket_untime(tk);
  if (tk->ops->leave)
    tk->ops->leave(tk);
  else if (list_linked(&tk->link))
    list_unlink(&tk->link);
  return true;
}

bool aioL_take(LTicket *tk, LOutcome outcome, int err) {
  if (!aioL_take_quietly(tk, outcome, err)) return false;
  if (!tk->polls) aioL_wake_task(aioL_task_of(tk), tk->ops->name); /* scheduled already: it will be entered anyway */
  return true;
}

LTicket *aioL_ticket_first_alive(AioLink *queue) {
  LTicket *tk;
  while ((tk = aioL_ticket_first(queue)) && !tk->polls && aioL_dead(aioL_task_of(tk)->L)) aioL_take_later(tk, L_CLOSED, 0);
  return tk;
}

bool aioL_take_last(LTicket *tk, LOutcome outcome, int err) {
  if (!aioL_take_quietly(tk, outcome, err)) return false;
  if (!tk->polls) aioL_wake_last(aioL_task_of(tk), tk->ops->name);
  return true;
}

bool aioL_take_later(LTicket *tk, LOutcome outcome, int err) {
  if (!aioL_take_quietly(tk, outcome, err)) return false;
  if (!tk->polls) aioL_wake_later(aioL_task_of(tk), tk->ops->name);
  return true;
}

void aioL_take_all(AioLink *queue, LOutcome outcome, int err) {
  for (LTicket *tk; (tk = aioL_ticket_first(queue));) aioL_take_later(tk, outcome, err);
}

/* ---- waiting ---- */

static int results(lua_State *L, LTicket *tk) {
  const LWaitOps *ops = tk->ops;
  tk->ops = NULL;
  switch (tk->outcome) {
    case L_DONE:
      if (ops->results) return ops->results(L, tk);
      return lua_pushboolean(L, 1), 1;
    case L_TIMEOUT: return aioL_timed_out(L);
    case L_CLOSED: return aioL_closed(L);
    case L_CANCELLING: return aioL_raise_cancel(L, tk->c->rt);
    default: return aioL_fail(L, tk->err);
  }
}

/* Only the loop may end a wait: somebody else's coroutine.resume finds the coroutine waiting on. The ticket is looked at
 * when it is known to be there: the task of a coroutine that others hold may be gone. */
static int resumed(lua_State *L, int status, lua_KContext ctx) {
  LTicket *tk = (LTicket *)ctx;
  LTask *t = aioL_runtime(L)->task;
  UNUSED(status);
  if (!t || aioL_innermost(t) != L || tk != &t->ticket || !tk->ops || tk->outcome == L_PENDING) return lua_yieldk(L, 0, ctx, resumed);
  return results(L, tk);
}

/* The turns of a wait outside of tasks. Nothing may raise while the ticket is in its queue. */
static int poll_until_taken(lua_State *L, LTicket *tk) {
  LContext *c = tk->c;
  LRuntime *rt = c->rt;
  const char *name = tk->ops->name;
  bool stuck = false, errors = false;
  aioL_scopes_move(L, c);
  aioL_polls(rt, tk);
  while (tk->outcome == L_PENDING && !stuck && !errors) {
    if (c->closed)
      aioL_take_quietly(tk, L_CLOSED, 0);
    else if (!(stuck = !aio_context_can_wake(c->core) || !lua_checkstack(L, 20)))
      aioL_turn(L, c, AIO_FOREVER);
    errors = (c->errors || c->lost) && !c->depth;
  }
  aioL_polls(rt, NULL);
  if (!stuck && !errors) return results(L, tk);
  bool settles = tk->ops->settle; /* a condition's mutex is locked again, if it can be had at once: the caller goes on */
  if (settles) aioL_take_quietly(tk, L_TIMEOUT, 0);
  aioL_take_quietly(tk, L_CLOSED, 0);
  if (!settles) aioL_ticket_abandon(L, tk);
  aioL_ticket_drop(tk);
  if (errors) aioL_raise(L, c);
  return luaL_error(L, "deadlock: %s waits and nothing is left that could end it", name);
}

static void time_is_up(void *opaque) { aioL_take(opaque, L_TIMEOUT, 0); }

/* What happens at a ticket's time; when that is, its clock tells. */
static AioTimer *timer_of(LTicket *tk, AioFn *fn) {
  aio_timer_init(&tk->timer, tk->c->core, tk->c->clock, fn, tk);
  tk->timed = true;
  return &tk->timer;
}

int aioL_wait(lua_State *L, LTicket *tk, int64_t timeout_ns) {
  if (timeout_ns != AIO_FOREVER && tk->outcome == L_PENDING) {
    AioTimer *timer = timer_of(tk, time_is_up);
    int rc = aio_timer_arm(timer, aioL_after(aio_timer_now(timer), timeout_ns));
    if (rc < 0 && aioL_take_quietly(tk, L_FAILED, rc)) { /* else it goes on to wait for what it must have before */
      aioL_ticket_drop(tk);
      luaL_error(L, "not enough memory");
    }
  }
  if (tk->polls) return poll_until_taken(L, tk);
  if (tk->outcome != L_PENDING) return results(L, tk);
  LTask *t = aioL_task_of(tk);
  t->state = L_WAITING;
  return aioL_suspend(L, t, (lua_KContext)tk, resumed);
}

int aioL_wait_in(lua_State *L, AioLink *queue, const LWaitOps *ops, void *op, int64_t timeout_ns) {
  LTicket *tk = aioL_ticket(L, aioL_current(L), ops);
  tk->op = op;
  list_append(queue, &tk->link);
  return aioL_wait(L, tk, timeout_ns);
}

/* ---- the waits that need nothing but a ticket ---- */

static void sleep_over(void *opaque) { aioL_take(opaque, L_DONE, 0); }

static const LWaitOps sleep_ops = {.name = "aio.sleep"};

static int sleep_at(lua_State *L, LTicket *tk, int64_t deadline) {
  if (aio_timer_arm(&tk->timer, deadline) < 0) {
    aioL_ticket_drop(tk);
    return luaL_error(L, "not enough memory");
  }
  return aioL_wait(L, tk, AIO_FOREVER);
}

/*** Suspends the caller for a while. Never returns early.
@function sleep
@number seconds how long; 0 or less: until the timers of this turn or the next have run
@treturn boolean true, or nil, "closed" */
static int wait_sleep(lua_State *L) {
  int64_t ns = aioL_check_ns(L, 1);
  LTicket *tk = aioL_ticket(L, aioL_current(L), &sleep_ops);
  return sleep_at(L, tk, aioL_after(aio_timer_now(timer_of(tk, sleep_over)), ns));
}

/*** Suspends the caller until a point in time.
@function sleep_until
@number t seconds on the clock of `aio.now`
@treturn boolean true, or nil, "closed" */
static int wait_sleep_until(lua_State *L) {
  int64_t ns = aioL_check_ns(L, 1);
  LTicket *tk = aioL_ticket(L, aioL_current(L), &sleep_ops);
  timer_of(tk, sleep_over);
  return sleep_at(L, tk, ns);
}

void aioL_open_wait(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg functions[] = {{"sleep", wait_sleep}, {"sleep_until", wait_sleep_until}, {NULL, NULL}};
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
