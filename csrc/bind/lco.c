/* SPDX-License-Identifier: MIT
 * Tasks: Lua coroutines mapped onto the core's scheduled ones, and plain coroutines that are adopted as such.
 *
 * Way      spawn -> aio_co_schedule -> the turn -> enter -> lua_resume -> body; wait: lwait.c; end: finish -> joiners
 *          wake -> values onto the coroutine's stack -> aio_co_wake -> enter
 * Owner    an LTask is counted by its handle and, until it has ended, by the loop. The thread is anchored while the task
 *          lives; afterwards its handle holds it, with the results on its stack. An adopted one is anchored only while it
 *          is scheduled or waits.
 * Keep     nothing touches a coroutine after entering another; a coroutine that was closed, resumed or killed behind our
 *          back is found out before it is resumed. An error that nobody joined is reported at the end of its turn. */
#include <errno.h>
#include <string.h>

#include "lbind.h"

/*** Tasks: coroutines that the loop runs.
@module aioloop.task */

typedef struct LJoin {
  struct LJoin *next, **link;
  LTask *t; /* counted */
  LTicket *tk;
} LJoin;

#if LUA_VERSION_NUM >= 505
#define reset_thread(co, from) lua_closethread(co, from)
#else
#define reset_thread(co, from) lua_resetthread(co)
#endif

static const char *const state_names[] = {"scheduled", "running", "waiting", "ended", "failed", "cancelled"};

void aioL_task_unref(LTask *t) {
  LContext *c = t->c;
  if (--t->refs) return;
  aioL_alloc(c->rt->main, t, sizeof *t, 0);
  aioL_context_unref(c->rt->main, c);
}

/* ---- handles ---- */

/* A weak table of the side table, made at first use. */
static void push_weak(lua_State *L, LContext *c, int key, const char *mode) { /* [-0, +1, m] */
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
static void push_handles(lua_State *L, LContext *c) { /* [-0, +1, m] */
  push_weak(L, c, SIDE_HANDLES, "v");
}

/* stack: ..., thread -> ..., thread, handle (without a task yet) */
static LTaskBox *new_handle(lua_State *L, LRuntime *rt) {
  LTaskBox *box = lua_newuserdatauv(L, sizeof *box, 1);
  box->t = NULL;
  aioL_set_class(L, rt, L_TASK);
  lua_pushvalue(L, -2);
  lua_setiuservalue(L, -2, 1);
  return box;
}

static void push_thread(lua_State *L, LTask *t) { /* [-0, +1, m] */
  if (t->L == L)
    lua_pushthread(L);
  else
    lua_pushthread(t->L), lua_xmove(t->L, L, 1);
}

static void push_handle(lua_State *L, LTask *t) { /* [-0, +1, m] */
  luaL_checkstack(L, 8, NULL);
  if (t->adopted) {
    lua_rawgeti(L, LUA_REGISTRYINDEX, t->c->rt->threads);
    push_thread(L, t);
    lua_rawget(L, -2);
    lua_remove(L, -2);
    return;
  }
  push_handles(L, t->c);
  if (lua_rawgeti(L, -1, t->slot) != LUA_TUSERDATA) {
    lua_pop(L, 1);
    push_thread(L, t);
    LTaskBox *box = new_handle(L, t->c->rt);
    lua_pushvalue(L, -1);
    lua_rawseti(L, -4, t->slot);
    lua_remove(L, -2);
    box->t = t;
    t->refs++;
  }
  lua_remove(L, -2);
}

static const LWaitOps suspend_ops;

/* ---- running ---- */

static bool fresh(lua_State *co) { /* a function that has not begun */
  lua_Debug ar;
  return lua_status(co) == LUA_OK && lua_gettop(co) > 0 && !lua_getstack(co, 0, &ar);
}

static bool resumable(lua_State *co) { return lua_status(co) == LUA_YIELD || fresh(co); }

static bool dead(lua_State *co) {
  lua_Debug ar;
  int status = lua_status(co);
  return status == LUA_OK ? !lua_gettop(co) && !lua_getstack(co, 0, &ar) : status != LUA_YIELD;
}

static void take_joiners(LTask *t) {
  while (t->joiners) {
    t->joined = true;
    aioL_take(t->joiners->tk, L_DONE, 0); /* leaves the list */
  }
}

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

/* Where the coroutine's function was defined. */
static void push_origin(lua_State *L, lua_State *co) { /* [-0, +1, m] string or nil */
  lua_Debug ar;
  int levels = depth_of(co);
  if (levels > 0 && lua_getstack(co, levels - 1, &ar) && lua_getinfo(co, "S", &ar))
    lua_pushfstring(L, "%s:%d", ar.short_src, ar.linedefined);
  else
    lua_pushnil(L);
}

/* stack: thread (light). Puts the traceback above the error on the thread's stack, and runs its <close> variables. */
static int bury(lua_State *L) {
  lua_State *co = lua_touserdata(L, 1);
  if (lua_type(co, -1) == LUA_TSTRING)
    luaL_traceback(L, co, lua_tostring(co, -1), 0);
  else
    lua_pushnil(L);
  push_origin(L, co);
  reset_thread(co, L); /* leaves the error, or that of a <close> variable */
  if (!lua_checkstack(co, 2)) return 0;
  lua_xmove(L, co, 2); /* thread's stack: error, traceback, label */
  return 0;
}

static void begin_burial(LContext *c, LTask *t) {
  lua_State *L = c->L;
  if (lua_gettop(t->L) == 0 && lua_checkstack(t->L, 1)) lua_pushnil(t->L);
  lua_pushcfunction(L, bury);
  lua_pushlightuserdata(L, t->L);
  bool buried = lua_pcall(L, 1, 0, 0) == LUA_OK;
  if (!buried) {
    lua_pop(L, 1);
    reset_thread(t->L, L);
  }
  if (lua_gettop(t->L) > 3) {
    lua_rotate(t->L, 1, 3);
    lua_settop(t->L, 3);
  }
  if (lua_checkstack(t->L, 3))
    while (lua_gettop(t->L) < 3) lua_pushnil(t->L);
}

/* Its thread stays where it is until the loop lets go of the task. */
static void let_go(lua_State *L, LTask *t) {
  aioL_unanchor(L, t->c, &t->slot);
  aioL_task_unref(t);
}

/* Its context was closed by it, and has dropped it. What it raised still has somewhere to go. */
static void report_orphan(LContext *c, LTask *t) {
  if (t->joined) return;
  t->joined = true;
  lua_pushnil(c->L);
  aioL_report(c, NULL, t);
}

static void finish(LContext *c, LTask *t, LState state) {
  t->state = (uint8_t)state;
  if (aio_co_scheduled_by(&t->co)) aio_co_close(&t->co); /* it had scheduled itself, and then ended */
  if (!t->unref) c->live--;
  if (state == L_BROKEN) begin_burial(c, t);
  if (c->closed) { /* by a <close> variable */
    report_orphan(c, t);
    return;
  }
  take_joiners(t);
  if (state == L_BROKEN && !t->joined) {
    t->next_failed = c->failed;
    c->failed = t;
  } else {
    let_go(c->L, t);
  }
}

/* An adopted coroutine that merely sleeps is the script's to keep. */
static void park(LContext *c, LTask *t) {
  if (!t->adopted || !t->slot) return;
  if (!t->unref) c->live--;
  aioL_unanchor(c->L, c, &t->slot);
  aioL_task_unref(t);
}

static void paused(LContext *c, LTask *t) { /* coroutine.yield */
  t->state = aio_co_scheduled_by(&t->co) ? L_SCHEDULED : L_WAITING;
  if (t->state == L_WAITING) park(c, t);
}

static void end_orphan(LContext *c, LTask *t, int status) {
  if (status == LUA_YIELD) return;
  t->state = status == LUA_OK ? L_ENDED : L_BROKEN;
  if (t->state == L_ENDED) return;
  begin_burial(c, t);
  report_orphan(c, t);
}

static void enter(void *opaque) {
  LTask *t = opaque;
  LContext *c = t->c;
  LRuntime *rt = c->rt;
  lua_State *L = c->L, *co = t->L;
  if (aioL_task_ended(t)) return;
  if (t->state == L_WAITING && t->ticket.ops == &suspend_ops)
    t->ticket.at = lua_gettop(co), aioL_take_quietly(&t->ticket, L_DONE, 0); /* it had scheduled itself before */
  if (t->state == L_WAITING && t->ticket.ops && t->ticket.outcome == L_PENDING && resumable(co))
    return; /* the same, but it waits for something else now */
  if (!resumable(co)) {
    if (dead(co)) finish(c, t, L_CANCELLED); /* coroutine.close behind our back */
    return;
  }
  int nres, nargs = t->nargs;
  LTask *outer = rt->task;
  if (nargs > lua_gettop(co)) nargs = lua_gettop(co); /* the script has resumed it, and the values are gone */
  t->nargs = 0;
  t->state = L_RUNNING;
  t->refs++; /* it may close its context */
  rt->task = t;
  lua_pushthread(co); /* on L's stack, since its anchor goes with the context that it may close */
  lua_xmove(co, L, 1);
  int status = lua_resume(co, L, nargs, &nres);
  rt->task = outer;
  if (c->closed) {
    end_orphan(c, t, status);
  } else if (status == LUA_YIELD) {
    lua_pop(co, nres);
    if (t->state == L_RUNNING) paused(c, t); /* else it is in lwait.c, or in aio.yield */
  } else {
    t->nargs = status == LUA_OK ? nres : 0;
    finish(c, t, status == LUA_OK ? L_ENDED : L_BROKEN);
  }
  lua_pop(L, 1);
  aioL_task_unref(t);
}

void aioL_report_unjoined(LContext *c) {
  lua_State *L = c->L;
  while (c->failed && !c->closed) {
    LTask *t = c->failed;
    c->failed = t->next_failed;
    t->refs++; /* on_error may close the context */
    if (!t->joined && !t->keep) {
      t->joined = true;
      lua_pushnil(L);
      aioL_report(c, NULL, t);
    }
    if (t->slot) let_go(L, t);
    aioL_task_unref(t);
  }
}

/* The task in a slot; NULL: free, or another kind of owner. */
static LTask *task_at(const LContext *c, uint32_t slot) {
  return (uintptr_t)c->slots[slot].next_free < c->nslots ? NULL : c->slots[slot].task;
}

/* Those who wait on another context, or by polling. No Lua is entered here. */
static void drop_joiners(LTask *t) {
  while (t->joiners) {
    LTicket *tk = t->joiners->tk;
    aioL_take_quietly(tk, L_DONE, 0);
    if (tk->task) aio_co_schedule(&tk->task->co, tk->ops->name);
  }
}

void aioL_tasks_drop(lua_State *L, LContext *c) {
  UNUSED(L);
  for (uint32_t i = 1; i < c->nslots; i++)
    if (task_at(c, i)) aioL_take_quietly(&task_at(c, i)->ticket, L_CLOSED, 0);
  for (uint32_t i = 1; i < c->nslots; i++) {
    LTask *t = task_at(c, i);
    if (!t) continue;
    if (!aioL_task_ended(t)) t->state = L_CANCELLED;
    drop_joiners(t);
    aio_co_close(&t->co); /* the core still holds the scheduled ones, and t may go now */
    t->slot = 0;
    c->slots[i].next_free = 0;
    aioL_task_unref(t);
  }
  c->failed = NULL;
}

/* ---- spawning ---- */

/* stack: thread on top. The reference is the caller's. */
static LTask *new_task(lua_State *L, LContext *c, lua_State *co) {
  LTask *t = aioL_alloc(L, NULL, 0, sizeof *t);
  if (!t) luaL_error(L, "not enough memory");
  memset(t, 0, sizeof *t);
  t->L = co;
  t->refs = 1;
  t->c = aioL_context_ref(c);
  aio_co_init(&t->co, c->core, enter, t);
  return t;
}

LTask *aioL_spawn(lua_State *L, LContext *c, int first, const char *who) {
  luaL_checktype(L, first, LUA_TFUNCTION);
  int n = lua_gettop(L) - first + 1;
  lua_State *co = lua_newthread(L);
  if (!lua_checkstack(co, n + 4)) luaL_error(L, "too many arguments");
  LTaskBox *box = new_handle(L, c->rt); /* stack: fn, args..., thread, handle */
  push_handles(L, c);
  aioL_check_open(L, c); /* a finaliser may have closed it */
  uint32_t slot = aioL_anchor(L, c, -3, NULL);
  lua_pushvalue(L, -2);
  lua_rawseti(L, -2, slot);
  lua_pop(L, 1);
  LTask *t = new_task(L, c, co);
  box->t = t;
  t->refs = 2;
  t->slot = slot;
  c->slots[slot].task = t;
  c->live++;
  lua_insert(L, first);
  lua_pop(L, 1);
  lua_xmove(L, co, n);
  t->nargs = n - 1;
  aio_co_schedule(&t->co, who);
  return t;
}

/*** Makes a task, to be started in the next turn.
@function spawn
@tparam function fn
@param ... its arguments
@treturn task */
static int mod_spawn(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  aioL_spawn(L, aioL_current(L), 1, "aio.spawn");
  return 1;
}

/*** The same on a given context.
@function context:spawn
@tparam function fn
@param ... its arguments
@treturn task */
int aioL_ctx_spawn(lua_State *L) {
  aioL_spawn(L, aioL_context(L, 1), 2, "ctx:spawn");
  return 1;
}

/* ---- finding the task behind a value ---- */

static LTask *known_to(const LContext *c, const lua_State *co) {
  for (uint32_t i = 1; i < c->nslots; i++)
    if (task_at(c, i) && task_at(c, i)->L == co) return task_at(c, i);
  return NULL;
}

/* A spawned task by its thread, of whatever context. Nobody has got hold of the thread before it began. */
static LTask *known(lua_State *L, LContext *c, lua_State *co) { /* [-0, +0, -] */
  LRuntime *rt = c->rt;
  if (rt->task && rt->task->L == co) return rt->task;
  if (fresh(co)) return NULL;
  LTask *t = known_to(c, co);
  if (t) return t;
  int top = lua_gettop(L);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->anchors);
  for (lua_pushnil(L); !t && lua_next(L, -2);) {
    const LContextBox *other = lua_touserdata(L, -1); /* NULL: an anchor table */
    if (other && other->c && !other->c->closed) t = known_to(other->c, co);
    lua_pop(L, 1);
  }
  lua_settop(L, top);
  return t;
}

/* Any coroutine; a plain one is adopted by context c. The loop's own main chunk is none. */
static LTask *check_co(lua_State *L, int idx, LContext *c) {
  LTaskBox *box = aioL_test(L, idx, L_TASK);
  if (box) {
    if (!box->t) luaL_error(L, "attempt to use a closed task");
    return box->t;
  }
  lua_State *co = lua_tothread(L, idx);
  luaL_argexpected(L, co, idx, "task or coroutine");
  luaL_argcheck(L, co != c->rt->main, idx, "the main chunk is not a coroutine");
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->rt->threads);
  lua_pushvalue(L, idx);
  LTask *t = NULL;
  if (lua_rawget(L, -2) == LUA_TUSERDATA) t = ((LTaskBox *)lua_touserdata(L, -1))->t;
  lua_pop(L, 2);
  if (!t || t->c->closed) t = known(L, c, co); /* or its handle, or its context, is gone: it is adopted anew */
  if (t) return t;
  if (!resumable(co) && !dead(co) && co != L) luaL_argerror(L, idx, "the coroutine is running and not the loop's");
  lua_pushvalue(L, idx);
  box = new_handle(L, c->rt);
  t = new_task(L, c, co);
  t->adopted = true;
  t->state = L_WAITING;
  box->t = t;
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->rt->threads); /* stack: thread, handle, table */
  lua_insert(L, -3);
  lua_rawset(L, -3);
  lua_pop(L, 1);
  return t;
}

/* ---- waking ---- */

static int suspend_results(lua_State *L, LTicket *tk) {
  lua_settop(L, tk->at + tk->err); /* as many values as its waker put there; the script may have resumed it with more */
  return tk->err;
}

static const LWaitOps suspend_ops = {.name = "aio.suspend", .results = suspend_results};

static bool suspended(const LTask *t) {
  if (t->state != L_WAITING || t->c->closed) return false;
  if (t->ticket.ops) return t->ticket.ops == &suspend_ops && t->ticket.outcome == L_PENDING;
  return !aio_co_scheduled_by(&t->co) && resumable(t->L);
}

/* What runs is anchored and counted, also if it is adopted. */
static void revive(lua_State *L, LTask *t) { /* [-0, +0, m] */
  if (t->slot) return;
  push_thread(L, t);
  t->slot = aioL_anchor(L, t->c, -1, t);
  lua_pop(L, 1);
  t->refs++;
  if (!t->unref) t->c->live++;
}

/* Whatever can raise; then hand_over cannot. */
static void prepare(lua_State *L, LTask *t, int n) { /* [-0, +0, m] */
  if (!lua_checkstack(t->L, n + 4)) luaL_error(L, "too many values");
  revive(L, t);
}

/* stack: ..., n values -> moved to the suspended coroutine's stack; its wait is over */
static void hand_over(lua_State *L, LTask *t, int n) {
  t->ticket.at = lua_gettop(t->L);
  lua_xmove(L, t->L, n);
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

static void wake(lua_State *L, LTask *t, int n, const char *who) {
  LContext *c = t->c;
  LFrame f;
  bool framed = !c->rt->current;
  int top = lua_gettop(L) - n;
  prepare(L, t, n);
  if (framed) {
    if (!aioL_enter(L, c, &f)) luaL_error(L, "stack overflow");
    lua_rotate(L, top + 1, 2); /* what the frame needs goes below the values */
    c->base = top + 1;
  }
  hand_over(L, t, n);
  aioL_wake_task(t, who);
  if (!framed) return;
  aioL_leave(L, &f);
  lua_settop(L, top);
}

static int wake_any(lua_State *L, LTask *t, const char *who) { /* stack: co, values... */
  if (!suspended(t)) {
    luaL_pushfail(L);
    lua_pushliteral(L, "not suspended");
    return 2;
  }
  wake(L, t, lua_gettop(L) - 1, who);
  lua_pushboolean(L, 1);
  return 1;
}

/*** Wakes a suspended coroutine, on its own context: at once from the main chunk or a callback, after the caller has
yielded or ended from a coroutine.
@function wake
@tparam task|thread co
@param ... what its suspend returns
@treturn boolean true, or nil, "not suspended" */
static int mod_wake(lua_State *L) { return wake_any(L, check_co(L, 1, aioL_current(L)), "aio.wake"); }

/*** The same as a method.
@function task:wake
@param ... what its suspend returns
@treturn boolean true, or nil, "not suspended" */
static int task_wake(lua_State *L) {
  aioL_check(L, 1, L_TASK);
  return wake_any(L, check_co(L, 1, aioL_current(L)), "task:wake");
}

static const char by_co_schedule[] = "ctx:co_schedule";

static int not_enterable(lua_State *L, LTask *t) {
  const char *by = aio_co_scheduled_by(&t->co);
  if (by) {
    aioL_push_side(L, t->c);
    lua_rawgeti(L, -1, SIDE_SCHEDULED_AT);
    const char *at = NULL;
    if (lua_istable(L, -1) && by == by_co_schedule) {
      push_thread(L, t);
      lua_rawget(L, -2);
      at = lua_tostring(L, -1);
    }
    return luaL_error(L, "the coroutine is already scheduled by %s%s%s", by, at ? " at " : "", at ? at : "");
  }
  const char *what = t->state == L_RUNNING ? "running" : aioL_task_ended(t) || dead(t->L) ? "dead" :
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
  LTask *t = check_co(L, 1, aioL_current(L));
  if (!suspended(t)) return not_enterable(L, t);
  return wake_any(L, t, "aio.enter");
}

/* Remembers where, for the error of whoever schedules it a second time. */
static void note_place(lua_State *L, LTask *t) { /* [-0, +0, m] */
  push_weak(L, t->c, SIDE_SCHEDULED_AT, "k");
  push_thread(L, t);
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
  LTask *t = check_co(L, 1, c);
  int n = lua_gettop(L) - 1;
  if (t->c != c) return luaL_error(L, "the coroutine belongs to another context");
  bool self = t->state == L_RUNNING && t->L == L && !aio_co_scheduled_by(&t->co);
  if (!self && !suspended(t)) return not_enterable(L, t);
  if (self && n) return luaL_error(L, "a running coroutine cannot be given values: it is not suspended yet");
  note_place(L, t);
  aioL_check_open(L, c); /* a finaliser may have closed it */
  if (!self) {
    prepare(L, t, n);
    hand_over(L, t, n);
  }
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
  LTicket *tk = aioL_ticket(L, aioL_current(L), &suspend_ops);
  return aioL_wait(L, tk, timeout);
}

static int yielded(lua_State *L, int status, lua_KContext ctx) {
  const LTask *t = aioL_runtime(L)->task;
  UNUSED(status);
  return t && t->L == L ? 0 : lua_yieldk(L, 0, ctx, yielded); /* somebody else's coroutine.resume */
}

/*** Lets everything else that is ready run first.
@function yield */
static int mod_yield(lua_State *L) {
  LTask *t = aioL_runtime(L)->task;
  if (!t || t->L != L || !lua_isyieldable(L)) {
    LContext *c = aioL_current(L);
    aioL_waiter(L, c); /* raises where waiting is impossible */
    aioL_push_box(L, c);
    aioL_turn(L, c, 0);
    aioL_raise(L, c);
    return 0;
  }
  if (aio_co_schedule(&t->co, "aio.yield") == -ESHUTDOWN) return luaL_error(L, "attempt to use a closed context");
  t->state = L_SCHEDULED;
  return lua_yieldk(L, 0, 0, yielded);
}

/*** The running task.
@function self
@treturn task or nil outside of tasks */
static int mod_self(lua_State *L) {
  LTask *t = aioL_runtime(L)->task;
  if (!t || t->c->closed)
    luaL_pushfail(L);
  else
    push_handle(L, t);
  return 1;
}

/* ---- joining ---- */

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
  push_weak(L, c, SIDE_TASK_NAMES, "k");
}

static void push_name(lua_State *L, LTask *t) { /* [-0, +1, m] string or nil */
  push_names(L, t->c);
  push_thread(L, t);
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
  push_thread(L, t);
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
      push_origin(L, t->L);
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
    LTask *t = task_at(c, i);
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

void aioL_open_co(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"join", task_join}, {"status", task_status}, {"name", task_name},
    {"traceback", task_traceback}, {"wake", task_wake}, {"keep", task_keep}, {"ref", task_ref}, {"unref", task_unref},
    {"__gc", task_gc}, {"__tostring", task_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"spawn", mod_spawn}, {"await", mod_await}, {"wake", mod_wake}, {"enter", mod_enter},
    {"suspend", mod_suspend}, {"yield", mod_yield}, {"self", mod_self}, {NULL, NULL}};
  aioL_class(L, rt, L_TASK, "aioloop.task", methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
