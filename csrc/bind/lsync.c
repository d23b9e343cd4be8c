/* SPDX-License-Identifier: MIT
 * Locks between tasks: mutex and reader-writer lock.
 *
 * Way      lock -> free: hold; taken: ticket in the lock's queue -> unlock -> pass_on -> hold for the first -> its ticket
 *          a mutex given up by a condition's wait (lcondition.c) -> retake: into the mutex's queue -> pass_on -> the
 *          outcome that it had
 * Owner    a lock is a userdata, which every waiter has on its stack. A hold is in the lock and in its task.
 * Keep     first come, first served; a holder is known, so that others cannot unlock and a task's end cannot leave it locked.
 *          Whoever is not a task (main chunk, callbacks) counts as one holder. */
#include "lbind.h"

/*** Locks between tasks.
@module aioloop.sync */

/* A task, or all that is no task, holds a lock. */
typedef struct LHold {
  AioLink in_lock, in_task; /* in_task: not linked without a task */
  struct LLock *lock;
  LTask *task;
  struct LHold *next_spare;
} LHold;

struct LLock {
  const void *mark; /* see aioL_test */
  AioLink queue;   /* tickets; op is the hold to be, at the mode */
  AioLink holds;
  LHold first;     /* the only hold of a mutex */
  LRuntime *rt;
  bool exclusive;  /* held by one mutex owner or writer */
  bool is_rw;
};

/* A ticket's `at`: the mode in which it waits; it has given up a mutex; waits for it again, with this + outcome; has it. */
enum { READ, WRITE, PARTED, RETAKES = 100, LOCKED = 200 };

/* ---- holding ---- */

static LTask *holder(LRuntime *rt) { return rt->task; } /* NULL: not a task */

static bool compatible(const LLock *l, int mode) {
  return list_empty(&l->holds) || (mode == READ && !l->exclusive);
}

/* Made before it is needed, so that being given the lock cannot fail. */
static LHold *new_hold(lua_State *L, LLock *l) { /* [-0, +0, -] NULL: no memory */
  if (!l->is_rw) return &l->first;
  LHold *h = l->rt->spare_holds;
  if (h)
    l->rt->spare_holds = h->next_spare;
  else
    h = aioL_alloc(L, NULL, 0, sizeof *h);
  if (h) *h = (LHold){.lock = l};
  return h;
}

static void give_back(LHold *h) {
  LLock *l = h->lock;
  if (h == &l->first) return;
  h->next_spare = l->rt->spare_holds;
  l->rt->spare_holds = h;
}

static void hold(LHold *h, LTask *t, int mode) {
  LLock *l = h->lock;
  h->task = t;
  list_append(&l->holds, &h->in_lock);
  if (t) list_insert_after(&t->ties->held, &h->in_task);
  l->exclusive = mode == WRITE;
}

static void drop_hold(LHold *h) {
  LLock *l = h->lock;
  list_unlink(&h->in_lock);
  if (list_linked(&h->in_task)) list_unlink(&h->in_task);
  if (list_empty(&l->holds)) l->exclusive = false;
  give_back(h);
}

static LHold *find_hold(const LLock *l, const LTask *t) {
  for (const AioLink *n = l->holds.next; n != &l->holds; n = n->next) {
    LHold *h = container_of((AioLink *)(uintptr_t)n, LHold, in_lock);
    if (h->task == t) return h;
  }
  return NULL;
}

/* To the first in the queue; to all readers at its front. */
static void pass_on(LLock *l) {
  for (LTicket *tk; (tk = aioL_ticket_first(&l->queue));) {
    bool retakes = tk->at >= RETAKES;
    int mode = retakes ? WRITE : tk->at;
    if (!compatible(l, mode)) return;
    hold(tk->op, aioL_task_of(tk), mode);
    LOutcome outcome = retakes ? (LOutcome)(tk->at - RETAKES) : L_DONE;
    tk->at = LOCKED;
    aioL_take_later(tk, outcome, 0);
  }
}

static void release(LHold *h) {
  LLock *l = h->lock;
  drop_hold(h);
  pass_on(l);
}

/* It was given the lock and will never know. What a task does not hold any more may have been collected. */
void aioL_lock_revoke(lua_State *L, LTicket *tk) {
  UNUSED(L);
  LHold *h = tk->op;
  LTies *ties = tk->polls ? NULL : aioL_task_of(tk)->ties;
  bool held = tk->polls && list_linked(&h->in_lock);
  for (AioLink *l = ties ? ties->held.next : NULL; l && l != &ties->held; l = l->next) held |= l == &h->in_task;
  if (held) release(h);
}

static void leave(LTicket *tk) {
  LHold *h = tk->op;
  LLock *l = h->lock;
  if (list_linked(&tk->link)) list_unlink(&tk->link);
  if (tk->at == LOCKED) return;
  give_back(h);
  pass_on(l); /* to the readers behind a writer that waits no more */
}

/* stack: task (light), lock's kind (light string) */
static int held_message(lua_State *L) {
  aioL_task_label(L, lua_touserdata(L, 1));
  lua_pushfstring(L, "%s ended while it held a %s", lua_tostring(L, -1), (const char *)lua_touserdata(L, 2));
  return 1;
}

void aioL_locks_drop(LContext *c, LTask *t) {
  while (t->ties && !list_empty(&t->ties->held)) { /* on_error may close the context */
    LHold *h = container_of(t->ties->held.next, LHold, in_task);
    const char *kind = h->lock->is_rw ? "rwlock" : "mutex";
    release(h);
    lua_State *L = c->L;
    if (c->closed || !L || !lua_checkstack(L, 8)) continue;
    lua_pushcfunction(L, held_message);
    lua_pushlightuserdata(L, t);
    lua_pushlightuserdata(L, (void *)(uintptr_t)kind);
    lua_pcall(L, 2, 1, 0);
    aioL_report(c, "lock", NULL);
  }
}

void aioL_holds_free(lua_State *L, LRuntime *rt) {
  for (LHold *h; (h = rt->spare_holds);) {
    rt->spare_holds = h->next_spare;
    aioL_alloc(L, h, sizeof *h, 0);
  }
}

/* ---- waiting for a lock ---- */

static int results_self(lua_State *L, LTicket *tk) { /* of a guard: the lock itself, whose __close unlocks it */
  UNUSED(tk);
  return lua_pushvalue(L, 1), 1;
}

#define LOCK_OPS(op_name, how) {.name = op_name, .leave = leave, .revoke = aioL_lock_revoke, .results = how}
static const LWaitOps mutex_ops[2] = {LOCK_OPS("mutex:lock", NULL), LOCK_OPS("mutex:guard", results_self)};
static const LWaitOps rwlock_ops[4] = {LOCK_OPS("rwlock:rdlock", NULL), LOCK_OPS("rwlock:wrlock", NULL),
                                       LOCK_OPS("rwlock:guard", results_self), LOCK_OPS("rwlock:upgrade", NULL)};

static int acquire(lua_State *L, LLock *l, int mode, int64_t timeout, const LWaitOps *ops) {
  bool guard = ops->results != NULL;
  LTask *t = holder(l->rt);
  aioL_checkpoint(L);
  bool free = list_empty(&l->queue) && compatible(l, mode);
  if (!free && find_hold(l, t)) return luaL_error(L, "deadlock: the caller holds this %s already", l->is_rw ? "rwlock" : "mutex");
  if (!free && timeout <= 0) return aioL_timed_out(L);
  if (t) aioL_ties(L, t);
  LTicket *tk = free ? NULL : aioL_ticket(L, aioL_current(L), ops);
  LHold *h = new_hold(L, l);
  if (!h) {
    if (tk) aioL_ticket_drop(tk);
    return luaL_error(L, "not enough memory");
  }
  if (!tk) {
    hold(h, t, mode);
    if (!guard) return lua_pushboolean(L, 1), 1;
    return lua_pushvalue(L, 1), 1;
  }
  tk->op = h;
  tk->at = mode;
  list_append(&l->queue, &tk->link);
  return aioL_wait(L, tk, timeout);
}

static int unlock(lua_State *L, LLock *l, bool must) {
  LHold *h = find_hold(l, holder(l->rt));
  if (!h && must) return luaL_error(L, "attempt to unlock a %s that the caller does not hold", l->is_rw ? "rwlock" : "mutex");
  if (h) release(h);
  return 0;
}

static LLock *new_lock(lua_State *L, LKind kind) {
  LLock *l = lua_newuserdatauv(L, sizeof *l, 0);
  *l = (LLock){.rt = aioL_runtime(L), .is_rw = kind == L_RWLOCK, .first = {.lock = l}};
  list_init(&l->queue);
  list_init(&l->holds);
  aioL_set_class(L, l->rt, kind);
  return l;
}

/* Only coroutines that were closed behind our back can be in its queues. */
static void collect(LLock *l) {
  aioL_take_all(&l->queue, L_CLOSED, 0);
  while (!list_empty(&l->holds)) drop_hold(container_of(l->holds.next, LHold, in_lock));
}

/* ---- mutex ---- */

LLock *aioL_check_mutex(lua_State *L, int idx) { return aioL_check(L, idx, L_MUTEX); }

/*** Makes a mutex. It is not recursive; who waits is served first come, first served.
@function mutex
@treturn mutex */
static int mod_mutex(lua_State *L) { return new_lock(L, L_MUTEX), 1; }

/*** Waits until the mutex is free, and holds it.
@function mutex:lock
@number[opt] timeout seconds
@treturn boolean true; or nil, "timeout"
@raise when the caller holds it already */
static int mutex_lock(lua_State *L) { return acquire(L, aioL_check_mutex(L, 1), WRITE, aioL_opt_ns(L, 2), &mutex_ops[0]); }

/*** The same, for `local held <close> = m:guard()`.
@function mutex:guard
@number[opt] timeout seconds
@treturn mutex itself, which is unlocked when the variable goes out of scope; or nil, "timeout" */
static int mutex_guard(lua_State *L) { return acquire(L, aioL_check_mutex(L, 1), WRITE, aioL_opt_ns(L, 2), &mutex_ops[1]); }

/*** Passes it on to who has waited longest.
@function mutex:unlock
@raise when the caller does not hold it */
static int mutex_unlock(lua_State *L) { return unlock(L, aioL_check_mutex(L, 1), true); }

/*** Whether somebody holds it.
@function mutex:locked
@treturn boolean */
static int mutex_locked(lua_State *L) { return lua_pushboolean(L, !list_empty(&aioL_check_mutex(L, 1)->holds)), 1; }

static int mutex_close(lua_State *L) { return unlock(L, aioL_check_mutex(L, 1), false); }
static int mutex_gc(lua_State *L) { return collect(aioL_check_mutex(L, 1)), 0; }

/* ---- rwlock ---- */

static LLock *check_rwlock(lua_State *L) { return aioL_check(L, 1, L_RWLOCK); }

/*** Makes a reader-writer lock: many may read, one may write; readers queue behind a writer that waits.
@function rwlock
@treturn rwlock */
static int mod_rwlock(lua_State *L) { return new_lock(L, L_RWLOCK), 1; }

/*** Waits until it may be read, and holds it for reading.
@function rwlock:rdlock
@number[opt] timeout seconds
@treturn boolean true; or nil, "timeout" */
static int rwlock_rdlock(lua_State *L) { return acquire(L, check_rwlock(L), READ, aioL_opt_ns(L, 2), &rwlock_ops[0]); }

/*** Waits until nobody else holds it, and holds it for writing.
@function rwlock:wrlock
@number[opt] timeout seconds
@treturn boolean true; or nil, "timeout" */
static int rwlock_wrlock(lua_State *L) { return acquire(L, check_rwlock(L), WRITE, aioL_opt_ns(L, 2), &rwlock_ops[1]); }

/*** Either, for `local held <close> = rw:guard("r")`.
@function rwlock:guard
@string mode "r" or "w"
@number[opt] timeout seconds
@treturn rwlock itself; or nil, "timeout" */
static int rwlock_guard(lua_State *L) {
  static const char *const modes[] = {"r", "w", NULL};
  LLock *l = check_rwlock(L);
  int mode = luaL_checkoption(L, 2, NULL, modes);
  return acquire(L, l, mode, aioL_opt_ns(L, 3), &rwlock_ops[2]);
}

/*** Lets go of it, whichever way it is held.
@function rwlock:unlock
@raise when the caller does not hold it */
static int rwlock_unlock(lua_State *L) { return unlock(L, check_rwlock(L), true); }

static bool holds_twice(const LLock *l, const LHold *h) {
  for (const AioLink *n = l->holds.next; n != &l->holds; n = n->next) {
    const LHold *other = container_of(n, LHold, in_lock);
    if (other != h && other->task == h->task) return true;
  }
  return false;
}

/*** Turns a reader into a writer. Other writers may come in between; when its wait ends by a timeout or a cancel,
nothing is held.
@function rwlock:upgrade
@number[opt] timeout seconds
@treturn boolean true; or nil, "timeout" */
static int rwlock_upgrade(lua_State *L) {
  LLock *l = check_rwlock(L);
  int64_t timeout = aioL_opt_ns(L, 2);
  LHold *h = find_hold(l, holder(l->rt));
  if (!h || l->exclusive) return luaL_error(L, "only who holds it for reading can upgrade a rwlock");
  if (holds_twice(l, h)) return luaL_error(L, "deadlock: the caller holds this rwlock twice");
  aioL_checkpoint(L); /* cancelled before: nothing has changed */
  release(h);
  return acquire(L, l, WRITE, timeout, &rwlock_ops[3]);
}

/*** Turns a writer into a reader, at once; readers at the front of the queue come in too.
@function rwlock:downgrade
@treturn boolean true */
static int rwlock_downgrade(lua_State *L) {
  LLock *l = check_rwlock(L);
  if (!l->exclusive || !find_hold(l, holder(l->rt))) return luaL_error(L, "only who holds it for writing can downgrade a rwlock");
  l->exclusive = false;
  pass_on(l);
  return lua_pushboolean(L, 1), 1;
}

static int rwlock_close(lua_State *L) { return unlock(L, check_rwlock(L), false); }
static int rwlock_gc(lua_State *L) { return collect(check_rwlock(L)), 0; }

/* ---- a mutex given up for a time ---- */

bool aioL_mutex_held(const LLock *m) { return find_hold(m, holder(m->rt)) != NULL; }

void aioL_mutex_part(LLock *m, LTicket *tk) {
  tk->op = &m->first;
  tk->at = PARTED;
  release(&m->first);
}

/* Whatever ends the wait, the mutex comes first. */
bool aioL_mutex_retake(LTicket *tk, LOutcome outcome) {
  if (outcome == L_CLOSED || tk->at == LOCKED) return true;
  if (tk->at != PARTED) return false;
  LHold *h = tk->op;
  LLock *m = h->lock;
  list_unlink(&tk->link);
  aioL_ticket_untime(tk);
  if (list_empty(&m->queue) && compatible(m, WRITE)) {
    hold(h, aioL_task_of(tk), WRITE);
    tk->at = LOCKED;
    return true;
  }
  tk->at = RETAKES + (int)outcome;
  list_append(&m->queue, &tk->link);
  return false;
}

void aioL_open_sync(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg mutex[] = {{"lock", mutex_lock}, {"unlock", mutex_unlock}, {"guard", mutex_guard}, {"locked", mutex_locked},
    {"__close", mutex_close}, {"__gc", mutex_gc}, {NULL, NULL}};
  static const luaL_Reg rwlock[] = {{"rdlock", rwlock_rdlock}, {"wrlock", rwlock_wrlock}, {"unlock", rwlock_unlock},
    {"guard", rwlock_guard}, {"upgrade", rwlock_upgrade}, {"downgrade", rwlock_downgrade}, {"__close", rwlock_close},
    {"__gc", rwlock_gc}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"mutex", mod_mutex}, {"rwlock", mod_rwlock}, {NULL, NULL}};
  aioL_class(L, rt, L_MUTEX, mutex);
  aioL_class(L, rt, L_RWLOCK, rwlock);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
