/* SPDX-License-Identifier: MIT
 * What tasks tell one another: semaphores, which count permits, and events, which say that something has happened.
 *
 * Way      acquire, wait -> it is there: taken; else a ticket in the waiters -> release, set -> its ticket -> results
 * Owner    userdata, which every waiter has on its stack.
 * Keep     first come, first served; a permit that was given to one who will never take it goes back. */
#include "lbind.h"

/*** Semaphores, events and queues.
@module aioloop.sync */

static int yes(lua_State *L) { return lua_pushboolean(L, 1), 1; }

/* ---- semaphore ---- */

typedef struct LSemaphore {
  const void *mark; /* see aioL_test */
  AioLink waiters;
  AioLink given; /* tickets with a permit that their task has not seen yet */
  lua_Integer permits;
} LSemaphore;

static LSemaphore *check_semaphore(lua_State *L) { return aioL_check(L, 1, L_SEMAPHORE); }

static void give_permit(LSemaphore *s) {
  LTicket *tk = aioL_ticket_first(&s->waiters);
  if (tk)
    aioL_take_later(tk, L_DONE, 0);
  else
    s->permits++;
}

static void semaphore_leave(LTicket *tk) {
  LSemaphore *s = tk->op;
  list_unlink(&tk->link);
  if (tk->outcome == L_DONE) list_append(&s->given, &tk->link);
}

static int semaphore_results(lua_State *L, LTicket *tk) {
  if (list_linked(&tk->link)) list_unlink(&tk->link);
  return yes(L);
}

static void revoke_permit(lua_State *L, LTicket *tk) {
  UNUSED(L);
  if (!list_linked(&tk->link)) return; /* the semaphore was collected: its waiter was closed behind our back */
  list_unlink(&tk->link);
  give_permit(tk->op);
}

static const LWaitOps semaphore_ops = {.name = "semaphore:acquire", .leave = semaphore_leave, .results = semaphore_results,
  .revoke = revoke_permit};

/*** Makes a semaphore.
@function semaphore
@tparam integer n permits, at least 0
@treturn semaphore */
static int mod_semaphore(lua_State *L) {
  lua_Integer n = luaL_checkinteger(L, 1);
  luaL_argcheck(L, n >= 0, 1, "permits cannot be negative");
  LSemaphore *s = lua_newuserdatauv(L, sizeof *s, 0);
  *s = (LSemaphore){.permits = n};
  list_init(&s->waiters);
  list_init(&s->given);
  return aioL_set_class(L, aioL_runtime(L), L_SEMAPHORE), 1;
}

/*** Waits for a permit, and takes it.
@function semaphore:acquire
@number[opt] timeout seconds
@treturn boolean true; or nil, "timeout" */
static int semaphore_acquire(lua_State *L) {
  LSemaphore *s = check_semaphore(L);
  int64_t timeout = aioL_opt_ns(L, 2);
  aioL_checkpoint(L);
  if (s->permits > 0) return s->permits--, yes(L);
  if (timeout <= 0) return aioL_timed_out(L);
  return aioL_wait_in(L, &s->waiters, &semaphore_ops, s, timeout);
}

/*** Gives a permit: to who has waited longest, if anybody has.
@function semaphore:release */
static int semaphore_release(lua_State *L) { return give_permit(check_semaphore(L)), 0; }

static int semaphore_gc(lua_State *L) {
  LSemaphore *s = check_semaphore(L);
  aioL_take_all(&s->waiters, L_CLOSED, 0);
  while (!list_empty(&s->given)) list_unlink(s->given.next);
  return 0;
}

/* ---- event ---- */

typedef struct LEvent {
  const void *mark; /* see aioL_test */
  AioLink waiters;
  bool set;
} LEvent;

static LEvent *check_event(lua_State *L) { return aioL_check(L, 1, L_EVENT); }

static const LWaitOps event_ops = {.name = "event:wait"};

/*** Makes an event, not set.
@function event
@treturn event */
static int mod_event(lua_State *L) {
  LEvent *e = lua_newuserdatauv(L, sizeof *e, 0);
  e->set = false;
  list_init(&e->waiters);
  return aioL_set_class(L, aioL_runtime(L), L_EVENT), 1;
}

/*** Waits until it is set.
@function event:wait
@number[opt] timeout seconds
@treturn boolean true; or nil, "timeout" */
static int event_wait(lua_State *L) {
  LEvent *e = check_event(L);
  int64_t timeout = aioL_opt_ns(L, 2);
  aioL_checkpoint(L);
  if (e->set) return yes(L);
  if (timeout <= 0) return aioL_timed_out(L);
  return aioL_wait_in(L, &e->waiters, &event_ops, e, timeout);
}

/*** Sets it: all who wait go on, and who comes later does not wait.
@function event:set */
static int event_set(lua_State *L) {
  LEvent *e = check_event(L);
  e->set = true;
  aioL_take_all(&e->waiters, L_DONE, 0);
  return 0;
}

/*** Takes that back.
@function event:clear */
static int event_clear(lua_State *L) { return check_event(L)->set = false, 0; }

/*** Whether it is set.
@function event:is_set
@treturn boolean */
static int event_is_set(lua_State *L) { return lua_pushboolean(L, check_event(L)->set), 1; }

static int event_gc(lua_State *L) { return aioL_take_all(&check_event(L)->waiters, L_CLOSED, 0), 0; }

void aioL_open_semaphore(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg semaphore[] = {{"acquire", semaphore_acquire}, {"release", semaphore_release}, {"__gc", semaphore_gc},
    {NULL, NULL}};
  static const luaL_Reg event[] = {{"wait", event_wait}, {"set", event_set}, {"clear", event_clear}, {"is_set", event_is_set},
    {"__gc", event_gc}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"semaphore", mod_semaphore}, {"event", mod_event}, {NULL, NULL}};
  aioL_class(L, rt, L_SEMAPHORE, semaphore);
  aioL_class(L, rt, L_EVENT, event);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
