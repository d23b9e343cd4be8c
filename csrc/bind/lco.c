/* SPDX-License-Identifier: MIT
 * A task's life: Lua coroutines mapped onto the core's scheduled ones.
 *
 * Way      made: lspawn.c, ladopt.c -> aio_co_schedule -> the turn -> enter -> lua_resume -> body; wait: lwait.c;
 *          end: finish -> joiners
 * Owner    an LTask is a userdata, which the loop anchors until it has ended, and holds its thread, afterwards with the
 *          results on its stack. It has no finaliser, for they are dear where there are many: when the loop lets go of a
 *          spawned task, nothing of it is in any queue. An adopted one has a will (ltask.c).
 * Keep     a task stays anchored until nothing of its end is left to do, even if its context is closed meanwhile; nothing
 *          touches a coroutine after entering another; a coroutine that was closed, resumed or killed behind our
 *          back is found out before it is resumed. An error that nobody joined is reported at the end of its turn. */
#include <errno.h>
#include <string.h>

#include "lbind.h"

int aioL_reset_thread(lua_State *co, lua_State *from) {
#if LUA_VERSION_NUM >= 505
  return lua_closethread(co, from);
#else
  UNUSED(from);
  return lua_resetthread(co);
#endif
}

/* ---- running ---- */

/* On top of what a task has left on its thread, which the script may have: who resumes it hears what it hears of others
 * that have ended, and nobody takes it for one that has not begun. */
static int sealed(lua_State *L) { return luaL_error(L, "cannot resume dead coroutine"); }

bool aioL_sealed(lua_State *co) { return lua_status(co) == LUA_OK && lua_gettop(co) > 0 && lua_tocfunction(co, -1) == sealed; }

static void seal(LTask *t) {
  int n = lua_gettop(t->L);
  if (t->state == L_ENDED) t->nargs = n;
  if (n > 0 && lua_checkstack(t->L, 1)) lua_pushcfunction(t->L, sealed);
}

bool aioL_fresh(lua_State *co) {
  lua_Debug ar;
  return lua_status(co) == LUA_OK && lua_gettop(co) > 0 && !lua_getstack(co, 0, &ar) && !aioL_sealed(co);
}

bool aioL_resumable(lua_State *co) { return lua_status(co) == LUA_YIELD || aioL_fresh(co); }

bool aioL_dead(lua_State *co) {
  lua_Debug ar;
  int status = lua_status(co);
  return status == LUA_OK ? !lua_getstack(co, 0, &ar) && (!lua_gettop(co) || aioL_sealed(co)) : status != LUA_YIELD;
}

/* Who joins many that end in this turn goes on when all of them have. */
static void take_joiners(LTask *t) {
  for (LTicket *tk; t->ties && (tk = aioL_ticket_first(&t->ties->joiners));) {
    const LTask *joiner = tk->polls ? NULL : aioL_task_of(tk);
    if (joiner && joiner->c != t->c)
      t->joined = true;
    else
      t->awaited |= !joiner || !aioL_dead(joiner->L);
    aioL_take_last(tk, L_DONE, 0); /* leaves the list */
  }
}

LTies *aioL_try_ties(LTask *t) {
  if (t->ties) return t->ties;
  LRuntime *rt = t->c->rt;
  LTies *ties = rt->spare_ties;
  if (ties)
    rt->spare_ties = ties->next_spare;
  else if (!(ties = aioL_alloc(rt->main, NULL, 0, sizeof *ties)))
    return NULL;
  *ties = (LTies){.member = NULL};
  list_init(&ties->joiners);
  list_init(&ties->held);
  return t->ties = ties;
}

LTies *aioL_ties(lua_State *L, LTask *t) {
  if (!aioL_try_ties(t)) luaL_error(L, "not enough memory");
  return t->ties;
}

static void drop_locks(LContext *c, LTask *t) {
  if (t->ties && !list_empty(&t->ties->held)) aioL_locks_drop(c, t);
}

static void untie(lua_State *L, LTask *t) {
  LTies *ties = t->ties;
  if (!ties) return;
  drop_locks(t->c, t); /* it has closed its context, and then locked */
  for (LWrap *w = ties->flow.wrap; w; w = w->outer) aioL_scopes_drop(L, &w->scopes), w->running = false;
  aioL_scopes_drop(L, &ties->flow.scopes);
  ties->next_spare = t->c->rt->spare_ties;
  t->c->rt->spare_ties = ties;
  t->ties = NULL;
}

void aioL_ties_free(lua_State *L, LRuntime *rt) {
  for (LTies *ties; (ties = rt->spare_ties);) {
    rt->spare_ties = ties->next_spare;
    aioL_alloc(L, ties, sizeof *ties, 0);
  }
}

/* stack: task (light). Puts the traceback above the error on the thread's stack, and runs its <close> variables. */
static int bury(lua_State *L) {
  LTask *t = lua_touserdata(L, 1);
  lua_State *co = t->L;
  lua_pushvalue(co, -1);
  lua_xmove(co, L, 1);
  if (t->cancelled && aioL_is_own_cancel(L, t)) t->ending = L_CANCELLED;
  lua_pop(L, 1);
  if (lua_type(co, -1) == LUA_TSTRING)
    luaL_traceback(L, co, lua_tostring(co, -1), 0);
  else
    lua_pushnil(L);
  aioL_push_origin(L, co);
  aioL_reset_thread(co, L); /* leaves the error, or that of a <close> variable */
  if (!lua_checkstack(co, 2)) return 0;
  lua_xmove(L, co, 2); /* thread's stack: error, traceback, label */
  return 0;
}

/* Of one that was not spawned: those that are end in aioL_task_main. */
static void begin_burial(LContext *c, LTask *t) {
  lua_State *L = c->L;
  LTask *outer = c->rt->task;
  if (lua_gettop(t->L) == 0 && lua_checkstack(t->L, 1)) lua_pushnil(t->L);
  c->rt->task = t; /* its <close> variables unlock what it has locked */
  lua_pushcfunction(L, bury);
  lua_pushlightuserdata(L, t);
  bool buried = lua_pcall(L, 1, 0, 0) == LUA_OK;
  if (!buried) {
    lua_pop(L, 1);
    aioL_reset_thread(t->L, L);
  }
  if (lua_gettop(t->L) > 3) {
    lua_rotate(t->L, 1, 3);
    lua_settop(t->L, 3);
  }
  if (lua_checkstack(t->L, 3))
    while (lua_gettop(t->L) < 3) lua_pushnil(t->L);
  c->rt->task = outer;
  if (t->ending) t->state = t->ending;
}

/* What it was given, and has not seen, goes to others. */
static void abandon_wait(lua_State *L, LTask *t) {
  if (!t->ticket.ops) return;
  aioL_take_quietly(&t->ticket, L_CLOSED, 0);
  aioL_ticket_abandon(L, &t->ticket);
}

void aioL_task_drop(lua_State *L, LTask *t) {
  abandon_wait(L, t);
  aioL_take_joiners(t);
  untie(L, t);
}

/* Its context was closed by it, and has dropped it. What it raised still has somewhere to go. */
static void report_orphan(LContext *c, LTask *t) {
  if (t->joined) return;
  t->joined = true;
  lua_pushnil(c->L);
  aioL_report(c, NULL, t);
}

static void append(LTaskQueue *q, LTask *t) {
  t->next_failed = NULL;
  *(q->first ? &q->last->next_failed : &q->first) = t;
  q->last = t;
}

static LTask *take_first(LTaskQueue *q) { /* NULL: there is none */
  LTask *t = q->first;
  if (t) q->first = t->next_failed;
  return t;
}

void aioL_report_soon(LContext *c, LTask *t) { append(&c->failed, t); }

/* Whoever was told of its end takes the error, in this turn or before the end of the next one. If not, it is reported then. */
static void end_awaiting(lua_State *L, LContext *c) {
  for (LTask *t; (t = take_first(&c->awaited));) {
    if (t->joined) {
      aioL_unanchor(L, c, &t->slot);
      continue;
    }
    aioL_report_soon(c, t);
    aio_notify(c->core); /* there may be no other reason for a turn */
  }
}

static void leave_loop(lua_State *L, LContext *c, LTask *t) {
  if (t->ties && t->ties->member) aioL_member_ended(c, t);
  untie(L, t);
  if (t->state == L_BROKEN && !t->joined) {
    append(t->awaited ? &c->awaited : &c->failed, t);
  } else {
    aioL_unanchor(L, c, &t->slot);
  }
}

void aioL_finish(LContext *c, LTask *t, LState state) {
  lua_State *L = c->L ? c->L : c->rt->main;
  t->state = (uint8_t)state;
  abandon_wait(L, t); /* it was closed behind our back */
  if (aio_co_scheduled_by(&t->co)) aio_co_close(&t->co); /* it had scheduled itself, and then ended */
  if (!t->unref) c->live--;
  aioL_forget_site(L, t);
  if (state == L_BROKEN && !t->ending) begin_burial(c, t);
  seal(t);
  if (c->closed) { /* by a <close> variable */
    if (t->state == L_BROKEN) report_orphan(c, t);
    return;
  }
  take_joiners(t);
  drop_locks(c, t);
  if (!c->closed)
    leave_loop(L, c, t);
  else if (t->state == L_BROKEN) /* on_error, told of a lock, has closed it */
    report_orphan(c, t);
}

static bool tied(const LTies *ties) {
  return ties && (ties->flow.scopes || ties->member || !list_empty(&ties->joiners) || !list_empty(&ties->held));
}

/* An adopted coroutine that merely sleeps is the script's to keep. */
static void park(LContext *c, LTask *t) {
  if (!t->adopted || !t->slot || tied(t->ties)) return; /* inside a scope it stays ours */
  if (!t->unref) c->live--;
  aioL_unanchor(c->L, c, &t->slot);
}

static void paused(LContext *c, LTask *t) { /* coroutine.yield */
  t->state = aio_co_scheduled_by(&t->co) ? L_SCHEDULED : L_WAITING;
  if (t->state == L_WAITING && !aioL_deliver(t)) park(c, t);
}

/* How it ended. aioL_task_main says so itself, and returns an error like a result. */
static LState ending(LTask *t, int status) {
  return status != LUA_OK ? L_BROKEN : t->ending ? (LState)t->ending : L_ENDED;
}

static void end_orphan(LContext *c, LTask *t, int status) {
  untie(c->L, t);
  if (status == LUA_YIELD) return;
  t->state = (uint8_t)ending(t, status);
  if (status != LUA_OK) begin_burial(c, t);
  seal(t);
  if (t->state == L_BROKEN) report_orphan(c, t);
}

/* Whether there is something to resume: it may have been closed or resumed behind our back, or wait for something else. */
static bool enterable(LContext *c, LTask *t) {
  lua_State *co = t->L;
  LTicket *tk = &t->ticket;
  if (aioL_task_ended(t)) return false;
  if (t->state == L_WAITING && tk->ops) {
    if (tk->ops == &aioL_suspend_ops && tk->outcome == L_PENDING) /* it had scheduled itself before */
      tk->at = lua_gettop(aioL_innermost(t)), aioL_take_quietly(tk, L_DONE, 0);
    if (tk->outcome == L_PENDING && aioL_resumable(co)) return false;
  }
  if (aioL_resumable(co)) return true;
  if (!aioL_dead(co)) return false;
  aioL_finish(c, t, L_CANCELLED); /* coroutine.close behind our back */
  return false;
}

/* The values on the stack of who waits: of the innermost wrapped coroutine, if there is one (lwrap.c takes them then). */
static int take_args(LTask *t) {
  if (!t->nargs || (t->ties && t->ties->flow.wrap)) return 0;
  int nargs = t->nargs, top = lua_gettop(t->L);
  t->nargs = 0;
  return nargs > top ? top : nargs; /* the script has resumed it, and the values are gone */
}

static void enter_one(LContext *c, LTask *t) {
  lua_State *L = c->L, *co = t->L;
  if (!enterable(c, t)) return;
  LRuntime *rt = c->rt;
  LTask *outer = rt->task;
  int nres, nargs = take_args(t);
  t->state = L_RUNNING;
  rt->task = t;
  int status = lua_resume(co, L, nargs, &nres);
  rt->task = outer;
  if (c->closed) {
    end_orphan(c, t, status);
  } else if (status == LUA_YIELD) {
    if (nres) lua_pop(co, nres);
    if (t->state == L_RUNNING) paused(c, t); /* else it is in lwait.c, or in aio.yield */
  } else {
    aioL_finish(c, t, ending(t, status));
  }
}

static void enter(void *opaque) {
  LContext *c = ((LTask *)opaque)->c;
  AioContext *core = c->core; /* its poller has both */
  for (LTask *t = opaque; t; t = aio_co_next(core, enter)) enter_one(c, t);
}

LTask *aioL_new_task(lua_State *L, LRuntime *rt) {
  LTask *t = lua_newuserdatauv(L, sizeof *t, 1);
  memset(t, 0, sizeof *t);
  aioL_set_class(L, rt, L_TASK);
  return t;
}

void aioL_begin_task(LTask *t, LContext *c, lua_State *co) {
  t->c = c;
  t->life = c->life;
  t->L = co;
  aio_co_init_local(&t->co, c->core, enter, t);
}

LTask *aioL_test_task(lua_State *L, int idx) {
  LTask *t = lua_touserdata(L, idx);
  return t && lua_rawlen(L, idx) == sizeof *t && t->co.bh.fn == enter ? t : NULL;
}

LTask *aioL_check_task(lua_State *L, int idx) {
  LTask *t = aioL_test_task(L, idx);
  return t ? t : aioL_check(L, idx, L_TASK);
}

static void report_failed(lua_State *L, LContext *c) {
  if (c->reporting) return; /* the handler has closed the context, or polled */
  c->reporting = true;
  while (c->failed.first && !c->closed) {
    LTask *t = take_first(&c->failed);
    aioL_push_task(L, t); /* the handler may close the context */
    if (!t->joined && !t->keep) {
      t->joined = true;
      aioL_report_in(L, c, t);
    }
    aioL_unanchor(L, c, &t->slot);
    lua_pop(L, 1);
  }
  c->reporting = false;
}

void aioL_report_unjoined(lua_State *L, LContext *c) {
  if (!c->failed.first && !c->awaited.first) return;
  if (c->closed || !lua_checkstack(L, 4)) return;
  report_failed(L, c);
  if (!c->closed) end_awaiting(L, c);
}

void aioL_report_closing(lua_State *L, LContext *c) {
  if ((!c->failed.first && !c->awaited.first) || c->closed || !lua_checkstack(L, 4)) return;
  end_awaiting(L, c);
  report_failed(L, c);
}

/* The task in a slot; NULL: free, or another kind of owner. */
LTask *aioL_task_at(const LContext *c, uint32_t slot) {
  return (uintptr_t)c->slots[slot].next_free < c->nslots ? NULL : c->slots[slot].task;
}

/* Those who wait on another context, or by polling. */
void aioL_take_joiners(LTask *t) {
  for (LTicket *tk; t->ties && (tk = aioL_ticket_first(&t->ties->joiners));) {
    aioL_take_quietly(tk, L_DONE, 0);
    if (!tk->polls) aio_co_schedule(&aioL_task_of(tk)->co, tk->ops->name);
  }
}

void aioL_tasks_drop(lua_State *L, LContext *c) {
  for (uint32_t i = 1; i < c->nslots; i++)
    if (aioL_task_at(c, i)) aioL_take_quietly(&aioL_task_at(c, i)->ticket, L_CLOSED, 0);
  for (uint32_t i = 1; i < c->nslots; i++) {
    LTask *t = aioL_task_at(c, i);
    if (!t) continue;
    bool runs = t->state == L_RUNNING;
    if (!aioL_task_ended(t)) t->state = L_CANCELLED;
    aioL_ticket_abandon(L, &t->ticket); /* what it was given, and has not seen, goes to others */
    aioL_take_joiners(t);
    aioL_forget_site(L, t);
    drop_locks(c, t);
    if (t->ties && t->ties->member) aioL_member_ended(c, t);
    if (!runs) untie(L, t); /* else what runs still looks at it */
    aio_co_close(&t->co); /* the core still holds the scheduled ones, and t may go now */
    t->slot = 0;
    c->slots[i].next_free = 0;
  }
  c->failed = c->awaited = (LTaskQueue){.first = NULL};
}
