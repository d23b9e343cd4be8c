/* SPDX-License-Identifier: MIT
 * Cancelling: of tasks, and of what runs inside a scope (aio.timeout); shields against it.
 *
 * Way      task:cancel, or a scope's timer -> aioL_deliver -> the ticket is taken with L_CANCELLING -> results (lwait.c)
 *          -> aioL_raise_cancel -> the error unwinds to its scope, or to the end of the task
 * Owner    a scope belongs to the C call that opened it; the end of its task or wrapped coroutine takes it away.
 * Keep     a cancel stays: every later wait raises it again, unless a shield lies between. When several scopes have
 *          expired the outermost is raised, since it ends the others too. A scope knows its errors by number.
 * Source   level-triggered cancel scopes after Trio (N. J. Smith, "Timeouts and cancellation for humans"). */
#include "lbind.h"

/*** Cancelling and time limits.
@module aioloop.scope */

typedef struct LCancel { /* the error value; user value 1: the reason */
  const void *magic;
  uint64_t serial; /* of the scope; 0: of a task */
} LCancel;

static const char cancel_magic;

/* ---- the error value ---- */

static void push_value(lua_State *L, LRuntime *rt, uint64_t serial) { /* [-1, +1, m] the reason is on top */
  LCancel *e = lua_newuserdatauv(L, sizeof *e, 1);
  *e = (LCancel){&cancel_magic, serial};
  aioL_set_class(L, rt, L_CANCEL);
  lua_insert(L, -2);
  lua_setiuservalue(L, -2, 1);
}

static LCancel *test_value(lua_State *L, int idx) {
  LCancel *e = lua_type(L, idx) == LUA_TUSERDATA ? lua_touserdata(L, idx) : NULL;
  return e && lua_rawlen(L, idx) == sizeof *e && e->magic == &cancel_magic ? e : NULL;
}

bool aioL_is_cancel(lua_State *L, int idx) { return test_value(L, idx) != NULL; }

static void push_cancels(lua_State *L, LContext *c) { /* [-0, +1, m] thread -> error value */
  aioL_push_weak(L, c, SIDE_CANCELS, "k");
}

void aioL_push_cancel(lua_State *L, LTask *t) {
  push_cancels(L, t->c);
  aioL_push_thread(L, t);
  if (lua_rawget(L, -2) == LUA_TNIL) { /* closed behind our back */
    push_value(L, t->c->rt, 0);
    aioL_push_thread(L, t);
    lua_pushvalue(L, -2);
    lua_rawset(L, -4);
  }
  lua_remove(L, -2);
}

bool aioL_is_own_cancel(lua_State *L, LTask *t) {
  if (!aioL_is_cancel(L, -1)) return false;
  aioL_push_cancel(L, t);
  bool own = lua_rawequal(L, -1, -2);
  lua_pop(L, 1);
  return own;
}

/*** Whether a value is the error of a cancelled task or of an expired scope. Such an error has a field `reason`.
@function is_cancelled
@param err any value
@treturn boolean */
static int mod_is_cancelled(lua_State *L) {
  luaL_checkany(L, 1);
  lua_pushboolean(L, aioL_is_cancel(L, 1));
  return 1;
}

static int cancel_index(lua_State *L) {
  aioL_check(L, 1, L_CANCEL);
  if (lua_type(L, 2) == LUA_TSTRING && lua_compare(L, 2, lua_upvalueindex(3), LUA_OPEQ))
    lua_getiuservalue(L, 1, 1);
  else
    lua_pushnil(L);
  return 1;
}

static int cancel_tostring(lua_State *L) {
  aioL_check(L, 1, L_CANCEL);
  if (lua_getiuservalue(L, 1, 1) == LUA_TNIL)
    lua_pushliteral(L, "cancelled");
  else
    lua_pushfstring(L, "cancelled: %s", luaL_tolstring(L, -1, NULL));
  return 1;
}

/* ---- who is cancelled ---- */

static bool look(const LScope *s, LScope **found) { /* true: a shield */
  for (; s; s = s->outer) {
    if (s->shield) return true;
    if (s->expired) *found = (LScope *)(uintptr_t)s;
  }
  return false;
}

bool aioL_cancelled(const LFlow *flow, const LTask *t, LScope **scope) {
  bool shielded = false;
  *scope = NULL;
  if (flow) {
    for (const LWrap *w = flow->wrap; w && !shielded; w = w->outer) shielded = look(w->scopes, scope);
    if (!shielded) shielded = look(flow->scopes, scope);
  }
  if (t && t->cancelled && !shielded) return *scope = NULL, true;
  return *scope != NULL;
}

static const LFlow *flow_of(const LTask *t) { return t->ties ? &t->ties->flow : NULL; }

int aioL_raise_cancel(lua_State *L, LRuntime *rt) {
  LTask *t = rt->task;
  LScope *scope;
  luaL_checkstack(L, 8, NULL);
  bool any = aioL_cancelled(t ? flow_of(t) : &rt->flow, t, &scope);
  if (any && !scope) {
    aioL_push_cancel(L, t);
  } else {
    lua_pushliteral(L, "timeout");
    push_value(L, rt, scope ? scope->serial : UINT64_MAX);
  }
  return lua_error(L);
}

/* A coroutine that waits in a plain coroutine.yield has no C function of ours that could raise for it: the return from
 * the yield does, so that pcall(coroutine.yield) catches it too. */
static void raise_in_hook(lua_State *L, lua_Debug *ar) {
  LRuntime *rt = aioL_find_runtime(L);
  LTask *t = rt ? rt->task : NULL;
  UNUSED(ar);
  lua_sethook(L, NULL, 0, 0);
  if (!t || aioL_innermost(t) != L) return;
  if (t->ties && t->ties->hook.fn) lua_sethook(L, t->ties->hook.fn, t->ties->hook.mask, t->ties->hook.count);
  aioL_raise_cancel(L, rt);
}

static bool set_hook(LTask *t) {
  lua_State *co = aioL_innermost(t);
  lua_Hook fn = lua_gethook(co);
  if (fn == raise_in_hook) return true;
  LTies *ties = fn ? aioL_try_ties(t) : t->ties;
  if (fn && !ties) return false; /* no memory to remember somebody else's hook, which is more than a cancel */
  if (ties) ties->hook = (LHook){fn, lua_gethookmask(co), lua_gethookcount(co)};
  lua_sethook(co, raise_in_hook, LUA_MASKRET, 0);
  return true;
}

bool aioL_deliver(LTask *t) {
  LScope *scope;
  if (t->state != L_WAITING || !aioL_cancelled(flow_of(t), t, &scope)) return false;
  if (t->ticket.ops) return aioL_take_later(&t->ticket, L_CANCELLING, 0);
  return set_hook(t) && aio_co_schedule(&t->co, "a cancel") == 0;
}

/* It never begins. What it is told it ended with is made when somebody asks. */
static void end_unborn(LTask *t) {
  lua_settop(t->L, 0);
  t->nargs = 0;
  aio_co_close(&t->co);
  aioL_finish(t->c, t, L_CANCELLED);
}

void aioL_cancel_quietly(LTask *t) {
  t->cancelled = true;
  if (t->state == L_SCHEDULED && aioL_fresh(t->L))
    end_unborn(t);
  else
    aioL_deliver(t);
}

bool aioL_is_cancelled(lua_State *L) {
  LRuntime *rt = aioL_runtime(L);
  LScope *scope;
  return aioL_cancelled(rt->task ? flow_of(rt->task) : &rt->flow, rt->task, &scope);
}

bool aioL_cancel(lua_State *L, LTask *t, int reason) {
  LContext *c = t->c;
  if (aioL_task_ended(t) || c->closed) return false;
  if (t->cancelled) return true;
  luaL_checkstack(L, 8, NULL);
  aioL_revive(L, t);
  push_cancels(L, c);
  aioL_push_thread(L, t);
  if (reason)
    lua_pushvalue(L, reason);
  else
    lua_pushnil(L);
  push_value(L, c->rt, 0);
  lua_rawset(L, -3); /* stack: cancels */
  lua_pop(L, 1);
  if (aioL_task_ended(t) || c->closed) return false; /* by a finaliser */
  aioL_cancel_quietly(t);
  return true;
}

/* ---- scopes ---- */

static void expire(void *opaque) {
  LScope *s = opaque;
  s->expired = true;
  if (s->task)
    aioL_deliver(s->task);
  else if (s->polled)
    aioL_take(s->polled, L_CANCELLING, 0);
}

/* Those that a shield keeps from the waiting code do not learn of its ticket. */
void aioL_polls(LRuntime *rt, LTicket *tk) {
  bool shielded = false;
  for (LWrap *w = rt->flow.wrap; w; w = w->outer)
    for (LScope *s = w->scopes; s; s = s->outer) s->polled = (shielded |= s->shield) ? NULL : tk;
  for (LScope *s = rt->flow.scopes; s; s = s->outer) s->polled = (shielded |= s->shield) ? NULL : tk;
}

static LScope **head_of(LFlow *flow) { return flow->wrap ? &flow->wrap->scopes : &flow->scopes; }

static LFlow *current_flow(lua_State *L, LRuntime *rt) { /* [-0, +0, e] */
  LTask *t = rt->task;
  LFlow *flow = t ? &aioL_ties(L, t)->flow : &rt->flow;
  const lua_State *innermost = flow->wrap ? flow->wrap->co : t ? t->L : rt->base ? rt->base : rt->main;
  if (innermost != L)
    luaL_error(L, "no scope can be opened inside a coroutine that the loop does not run: make it with aio.wrap");
  return flow;
}

static LScope *open_scope(lua_State *L, LContext *c, void (*on_expiry)(void *)) {
  LRuntime *rt = c->rt;
  LScope **head = head_of(current_flow(L, rt));
  LScope *s = rt->spare_scopes;
  if (s)
    rt->spare_scopes = s->outer;
  else if (!(s = aioL_alloc(L, NULL, 0, sizeof *s)))
    luaL_error(L, "not enough memory");
  *s = (LScope){.outer = *head, .c = aioL_context_ref(c), .task = rt->task, .deadline = AIO_FOREVER,
                .serial = ++rt->last_serial};
  aio_timer_init(&s->timer, c->core, c->clock, on_expiry, s);
  *head = s;
  return s;
}

static void drop_scope(lua_State *L, LScope *s) {
  LRuntime *rt = s->c->rt;
  if (s->c->core) aio_timer_disarm(&s->timer);
  aioL_context_unref(L, s->c);
  s->outer = rt->spare_scopes;
  rt->spare_scopes = s;
}

static void move(lua_State *L, LScope *s, LContext *c) {
  if (s->deadline == AIO_FOREVER || s->expired || (s->c == c && aio_timer_armed(&s->timer))) return;
  LContext *from = s->c;
  if (from->core) aio_timer_disarm(&s->timer);
  s->c = aioL_context_ref(c);
  aio_timer_init(&s->timer, c->core, (AioClock)s->timer.clock, expire, s);
  aio_timer_arm(&s->timer, s->deadline); /* without memory for it the limit is found when the next one is looked at */
  aioL_context_unref(L, from);
}

/* Outside of tasks a wait polls its own context, which need not be the one that was current when the scope was opened. */
void aioL_scopes_move(lua_State *L, LContext *c) {
  const LRuntime *rt = c->rt;
  if (c->closed) return;
  for (LWrap *w = rt->flow.wrap; w; w = w->outer)
    for (LScope *s = w->scopes; s; s = s->outer) move(L, s, c);
  for (LScope *s = rt->flow.scopes; s; s = s->outer) move(L, s, c);
}

void aioL_scopes_drop(lua_State *L, LScope **scopes) {
  for (LScope *s; (s = *scopes);) {
    *scopes = s->outer;
    drop_scope(L, s);
  }
}

void aioL_scopes_pass(LScope *scopes, LTask *t) {
  for (LScope *s = scopes; s; s = s->outer) s->task = t, s->polled = NULL;
}

void aioL_scopes_free(lua_State *L, LRuntime *rt) {
  for (LScope *s; (s = rt->spare_scopes);) {
    rt->spare_scopes = s->outer;
    aioL_alloc(L, s, sizeof *s, 0);
  }
}

/* With all that was opened inside and left in some odd way. It is not there when its context was closed, or when somebody
 * else's coroutine.resume ran its function to the end. */
static void drop_from(lua_State *L, LScope **head, lua_KContext serial) {
  const LScope *mine = *head;
  while (mine && (lua_KContext)mine->serial != serial) mine = mine->outer;
  for (bool last = !mine; !last;) {
    LScope *inner = *head;
    last = inner == mine;
    *head = inner->outer;
    drop_scope(L, inner);
  }
}

/* stack: message handler, results or error */
static int leave_scope(lua_State *L, int status, lua_KContext serial) {
  LRuntime *rt = aioL_runtime(L);
  if (!rt->task || rt->task->ties) drop_from(L, head_of(rt->task ? &rt->task->ties->flow : &rt->flow), serial);
  if (status == LUA_OK || status == LUA_YIELD) return lua_gettop(L) - 1;
  const LCancel *e = test_value(L, -1);
  if (!e || (lua_KContext)e->serial != serial) return lua_error(L);
  luaL_pushfail(L);
  lua_pushliteral(L, "timeout");
  return 2;
}

/* stack: message handler, function, arguments */
static int call_in_scope(lua_State *L, lua_KContext serial) {
  return leave_scope(L, lua_pcallk(L, lua_gettop(L) - 2, LUA_MULTRET, 1, serial, leave_scope), serial);
}

/*** Calls a function under a time limit: when it is over, the function's present wait, or its next one, raises an error
that ends the function and arrives here. Limits nest; the one that is over first wins.
@function timeout
@number seconds from now
@tparam function fn
@param ... its arguments
@return the results of fn; or nil, "timeout" */
static int mod_timeout(lua_State *L) {
  int64_t ns = aioL_check_ns(L, 1);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  LContext *c = aioL_current(L);
  LScope *s = open_scope(L, c, expire);
  s->expired = ns <= 0;
  if (ns > 0) s->deadline = aioL_after(aio_timer_now(&s->timer), ns);
  if (ns > 0 && aio_timer_arm(&s->timer, s->deadline) < 0) {
    *head_of(current_flow(L, c->rt)) = s->outer;
    drop_scope(L, s);
    return luaL_error(L, "not enough memory");
  }
  lua_pushcfunction(L, aioL_traceback);
  lua_replace(L, 1);
  return call_in_scope(L, (lua_KContext)s->serial);
}

/*** Calls a function whose waits no cancel from outside of it ends: for clean-up that has to wait. The cancel is raised by
the next wait after it.
@function shield
@tparam function fn
@param ... its arguments
@return the results of fn */
static int mod_shield(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  LScope *s = open_scope(L, aioL_current(L), expire);
  s->shield = true;
  lua_pushcfunction(L, aioL_traceback);
  lua_insert(L, 1);
  return call_in_scope(L, (lua_KContext)s->serial);
}

void aioL_open_scope(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"__tostring", cancel_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"timeout", mod_timeout}, {"shield", mod_shield}, {"is_cancelled", mod_is_cancelled},
    {NULL, NULL}};
  aioL_class(L, rt, L_CANCEL, methods);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->meta_ref[L_CANCEL]);
  aioL_push_runtime(L, rt);
  lua_pushnil(L);
  lua_pushliteral(L, "reason");
  lua_pushcclosure(L, cancel_index, 3);
  lua_setfield(L, -2, "__index");
  lua_pushliteral(L, "cancelled");
  lua_setfield(L, -2, "__metatable"); /* unforgeable */
  lua_pop(L, 1);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
