/* SPDX-License-Identifier: MIT
 * What the binding's files share: the runtime of a lua_State, the Lua side of a context, calls up, waits, arguments.
 *
 * Threads  everything here belongs to the thread that runs the lua_State.
 * Owner    an LContext is counted by its userdata and by every handle made on it but timers and spawned tasks; the core
 *          context goes with the last.
 * Keep     what is active is held in the context's anchor table, at the slot its C struct knows; nothing is keyed by address.
 *          Whatever can raise comes before C structures are linked. */
#ifndef LBIND_H
#define LBIND_H

#include <lauxlib.h>
#include <lua.h>

#include "aio.h"
#include "list.h"

#if LUA_VERSION_NUM < 504
#error "aioloop needs Lua 5.4"
#endif

typedef enum LKind {
  L_CONTEXT, L_BH, L_TIMER, L_WATCH, L_TASK, L_VCLOCK, L_SIGNAL, L_CANCEL, L_WRAP, L_GROUP, L_WILL,
  L_MUTEX, L_RWLOCK, L_CONDITION, L_SEMAPHORE, L_EVENT, L_QUEUE, L_BUFFER, L_FILE, L_STREAM, L_SERVER, L_UDP, L_TLS, L_KINDS
} LKind;

typedef struct LContext LContext;
typedef struct LTask LTask;
typedef struct LScope LScope;
typedef struct LWrap LWrap;

/* What surrounds the code that runs: in a task it is the task's (LTies), elsewhere that of the nesting level. */
typedef struct LFlow {
  LScope *scopes; /* innermost first, outside of any wrapped coroutine */
  LWrap *wrap;    /* the innermost wrapped coroutine that runs */
} LFlow;

/* One for each lua_State, first upvalue of every function; the second is the weak table of anchor tables. */
typedef struct LRuntime {
  const void *meta[L_KINDS]; /* addresses of the metatables, which the registry keeps alive */
  int meta_ref[L_KINDS];     /* registry: the same metatables, found without a string */
  int anchors;               /* registry: weak table, LContext id -> anchor table */
  int threads;               /* registry: ephemeron table, thread -> will of its task (ltask.c) */
  int def;                   /* registry: the default context, or LUA_NOREF */
  lua_Integer last_id;
  LContext *current;         /* whose turn is running, innermost */
  lua_State *main;
  lua_State *base;           /* the state in which callbacks run at this nesting level; NULL: no turn is running */
  LTask *task;               /* the loop coroutine that runs at this nesting level */
  LFlow flow;                /* of this nesting level, while no task runs */
  LScope *spare_scopes;      /* lscope.c: to be used again */
  uint64_t last_serial;      /* of scopes */
  struct LHold *spare_holds; /* lsync.c */
  struct LTies *spare_ties;  /* lco.c */
  struct LGroup *cancelling; /* lgroup.c: the last of those whose members are to be cancelled, while that is going on */
  int spare_ticket;          /* registry: the ticket for the next polling wait, or false (lwait.c) */
  bool ticket_laid;          /* it is there */
  int contexts;              /* registry: table that keeps the LContexts */
  int record;                /* registry: what lreport.c remembers of the task that has spawned last, or false */
  lua_Integer record_of;     /* that task: id of its context */
  uint32_t record_born;      /* and its number there */
  int objects;               /* registry: weak table, address of the struct (light) -> userdata that core events find by it */
  lua_State *lent;           /* runs the turns that the core takes by itself (vclock:advance); NULL: none is lent */
  LContext *erred;           /* collected an error in such a turn */
  LContext *spare, *made;    /* LContexts to be used again; all there are */
  AioVClock *vclock;
  struct LJobs *jobs;        /* lpool.c */
  struct LArrival *spare_arrival; /* ludp_io.c */
  AioLink selects;           /* lselect.c: those that wait */
  size_t buffers, buffers_limit; /* lbuffer.c: bytes that buffers hold, and with how many their garbage is collected */
} LRuntime;

/* A place in the anchor table: its owner, or the next free place. */
typedef union LSlot {
  LTask *task; /* NULL for other owners */
  intptr_t next_free;
} LSlot;

typedef struct LTaskQueue {
  LTask *first, *last;
} LTaskQueue;

/* Its memory lasts as long as the lua_State and is used for one context after the other: a timer tells by `life` whether
 * its own is still there. */
struct LContext {
  AioContext *core;   /* NULL: closed, and no turn on the C stack */
  LRuntime *rt;
  lua_State *L;       /* runs the callbacks of the innermost turn; NULL: none is running */
  int base;           /* L's stack: anchor table at base, message handler at base + 1 */
  const void *anchor; /* address of the anchor table */
  lua_Integer id;
  uint32_t refs;
  uint32_t life;      /* contexts it has been before */
  LContext *next_spare, *next_made; /* in rt->spare, while it is none; in rt->made */
  unsigned depth;     /* turns of this context on the C stack */
  unsigned runs;      /* ctx:run on the C stack */
  uint64_t live;      /* referenced things; keeps run going */
  uint32_t born;      /* tasks made so far */
  unsigned errors;    /* collected in the side table and not raised yet */
  bool closed, stopping;
  bool lost;          /* an error that could not be collected, for want of memory or of C stack, is in the side table */
  AioLink flights;    /* lpool.c: jobs in flight, and those whose results nobody has fetched */
  AioLink partings;   /* ltls_close.c: connections of TLS that wait for room to say goodbye */
  LTaskQueue failed;  /* lco.c: ended with an error in this turn, to be reported at its end, in their order */
  LTaskQueue awaited; /* the same, but somebody was told of it who is to take the error */
  bool reporting;     /* the failed are being told of */
  AioClock clock;     /* of sleeps, timeouts and timers that name none */
  LSlot *slots;       /* [0] is unused */
  uint32_t nslots, free_slot;
  struct LOneshot *spare, *oneshots; /* lbh.c: waiting to be used again; all there are */
  int glib;           /* registry: {thread, context userdata} while it has a GSource, else LUA_NOREF */
  bool glib_over;     /* to be let go of when no turn is running: the turn may run in that thread */
  lua_State *glib_L;  /* that thread */
};

/* The userdata; user value 1 is the anchor table. */
typedef struct LContextBox {
  const void *magic; /* &aioL_context_magic: recognised faster than by its metatable */
  LContext *c;
} LContextBox;

extern const char aioL_context_magic;

/* Keys of the side table, which is anchor[0]. */
enum { SIDE_ERRORS = 1, SIDE_LAST_ERRORS, SIDE_ON_ERROR, SIDE_NAME, SIDE_TASK_NAMES, SIDE_SCHEDULED_AT, SIDE_LOST,
  SIDE_CANCELS, SIDE_TRACES, SIDE_SITES };

/* ---- lmod.c: arguments and objects ---- */

#define UNUSED(x) ((void)(x))

static inline LRuntime *aioL_runtime(lua_State *L) { return lua_touserdata(L, lua_upvalueindex(1)); }

void aioL_know(lua_State *L, const void *object);                /* [-0, +0, m] the userdata on top, in rt->objects */
void aioL_push_runtime(lua_State *L, LRuntime *rt);             /* [-0, +1, m] as upvalue 1 */
LRuntime *aioL_find_runtime(lua_State *L);                       /* [-0, +0, m] where there is no upvalue: hooks, handlers */
extern const char aioL_marks[];                                 /* a kind's mark is an address here */
void *aioL_test(lua_State *L, int idx, LKind kind);              /* [-0, +0, -] NULL: something else */
void *aioL_check(lua_State *L, int idx, LKind kind);             /* [-0, +0, v] */
const char *aioL_kind_name(LKind kind);                          /* what aio.type says */
void aioL_class(lua_State *L, LRuntime *rt, LKind kind, const luaL_Reg *methods); /* [-0, +0, m] */
void aioL_set_class(lua_State *L, LRuntime *rt, LKind kind);     /* [-0, +0, -] of the userdata on top, its fields are set */
int aioL_fail(lua_State *L, int rc);                             /* [-0, +3, m] nil, message, errno; rc is -errno */
int64_t aioL_check_ns(lua_State *L, int idx);                    /* [-0, +0, v] seconds -> ns, rounded up; AIO_FOREVER */
int64_t aioL_opt_ns(lua_State *L, int idx);                      /* the same; absent: AIO_FOREVER */
int64_t aioL_after(int64_t now, int64_t ns);                     /* saturating sum */
void aioL_push_seconds(lua_State *L, int64_t ns);                /* [-0, +1, -] */
int aioL_check_fd(lua_State *L, int idx);                        /* [-0, +0, e] integer, file, or object with a method */
const char *aioL_check_clock(lua_State *L, int idx, AioClock *clock);
void *aioL_alloc(lua_State *L, void *p, size_t old, size_t size); /* through the state's allocator; NULL: no memory */
void aioL_pack(lua_State *L, int first);                         /* [-n, +1, m] function and arguments from `first` up */
int aioL_unpack(lua_State *L);                                   /* [-1, +n, m] what pack made; returns the argument count */

/* ---- lcontext.c ---- */

LContext *aioL_context(lua_State *L, int idx);     /* [-0, +0, v] an open context */
LContext *aioL_current(lua_State *L);              /* [-0, +0, m] the one being polled, else the default one */
void aioL_push_current(lua_State *L);               /* [-0, +1, m] its userdata */
void aioL_contexts_drop(lua_State *L, LRuntime *rt); /* what lua_close inside a turn has left */
LContext *aioL_context_ref(LContext *c);
void aioL_context_unref(lua_State *L, LContext *c);
bool aioL_push_anchor(lua_State *L, LContext *c);  /* [-0, +1, -] false (and nothing pushed): c is being collected */
#define L_ANCHORS lua_upvalueindex(2)
void aioL_push_box(lua_State *L, LContext *c);     /* [-0, +1, -] the userdata, which keeps c from being collected */
void aioL_push_side(lua_State *L, LContext *c);    /* [-0, +1, -] */
uint32_t aioL_anchor(lua_State *L, LContext *c, int idx, LTask *task); /* [-0, +0, m] returns the slot */
void aioL_unanchor(lua_State *L, LContext *c, uint32_t *slot);         /* [-0, +0, -] sets *slot to 0 */
void aioL_unanchor_here(LContext *c, uint32_t *slot); /* the same on c->L, in a function that the core has called */
void aioL_anchors_clear(lua_State *L, LContext *c);    /* [-0, +0, -] it is closed */
static inline bool aioL_open(const LContext *c) { return !c->closed; }
void aioL_check_open(lua_State *L, const LContext *c); /* [-0, +0, v] */

/* ---- lcall.c: the one way up ---- */

typedef struct LFrame {
  LContext *c, *current;
  lua_State *L, *base_L;
  LTask *task;
  LFlow flow;
  int base;
} LFrame;

bool aioL_enter(lua_State *L, LContext *c, LFrame *f);  /* [-0, +2, -] before anything that may call up; false: no stack */
void aioL_leave(lua_State *L, LFrame *f);               /* [-0, +0, -] */
void aioL_call(LContext *c, int nargs, const char *where); /* c->L: [-(nargs+1), +0, -] */
/* c->L: [-1, +0, -] the error on top goes to where errors go. `where` lives for ever; a task is named itself. */
void aioL_report(LContext *c, const char *where, LTask *task);
void aioL_report_in(lua_State *L, LContext *c, LTask *task); /* [-0, +0, -] outside of a turn, or deep inside */
void aioL_raise(lua_State *L, LContext *c);             /* [-0, +0, e] outermost: raises the first collected error */
void aioL_warn_errors(LContext *c);                     /* under GLib, with nobody to raise to */
void aioL_around(AioFn *turn, void *turn_opaque, void *c); /* AioAroundFn of every context */
bool aioL_turn(lua_State *L, LContext *c, int64_t limit_ns); /* [-0, +0, v] one poll, entered and left */
/* [-0, +0, -] turns until `done`, an error that can be raised, or nothing is left that could wake the loop */
void aioL_turns(lua_State *L, LContext *c, bool (*done)(const LContext *, const LTask *), const LTask *main);

/* ---- lwait.c: the one way to wait ---- */

typedef struct LTicket LTicket;

typedef enum LOutcome { L_PENDING, L_DONE, L_TIMEOUT, L_CLOSED, L_FAILED, L_CANCELLING } LOutcome;

typedef struct LWaitOps {
  const char *name;                           /* of the operation, for reports */
  void (*leave)(LTicket *tk);                 /* takes it out of its queue, once, whoever wins; NULL: link is unlinked */
  int (*results)(lua_State *L, LTicket *tk);  /* [-0, +n, m] of a completed operation; NULL: true */
  void (*revoke)(lua_State *L, LTicket *tk);  /* [-0, +0, -] completed, but nobody will take the result; NULL: no loss */
  bool (*settle)(LTicket *tk, LOutcome outcome); /* false: there is more to wait for, with this outcome; NULL: never */
  bool immune;                                /* no cancel raises before it waits */
} LWaitOps;

struct LTicket {
  LContext *c;
  const LWaitOps *ops;  /* NULL: nobody waits */
  void *op;             /* the operation's own */
  AioLink link;         /* in the queue of what it waits for */
  int err;              /* L_FAILED: -errno; aio.suspend: number of its results */
  int at;               /* aio.suspend, when it is over: its results are above this place of the stack */
  uint32_t since;       /* ms, coarse: when the wait began */
  uint8_t outcome;
  bool polls : 1;       /* of no task: waits by polling */
  bool timed : 1;       /* has a timer */
  AioTimer timer;       /* timeout, or the sleep itself */
};

static inline void aioL_ticket_untime(LTicket *tk) {
  if (tk->timed && tk->c->core) aio_timer_disarm(&tk->timer);
  tk->timed = false;
}

/* Opens a ticket for the caller, which must then set up its operation and call aioL_wait. Raises where waiting is
 * impossible. Pushes one value, which keeps the ticket alive. */
LTicket *aioL_ticket(lua_State *L, LContext *c, const LWaitOps *ops);  /* [-0, +1, e] */
void aioL_ticket_drop(LTicket *tk);                                    /* the set-up failed */
void aioL_ticket_abandon(lua_State *L, LTicket *tk);                   /* [-0, +0, -] nobody will look at its outcome */
/* Waits at most timeout_ns; `return aioL_wait(...)` from a C function, whose results it makes. */
int aioL_wait(lua_State *L, LTicket *tk, int64_t timeout_ns);          /* [-0, +n, e] */
int aioL_wait_in(lua_State *L, AioLink *queue, const LWaitOps *ops, void *op, int64_t timeout_ns); /* the same, at a queue's end */
/* The first to take an open ticket decides its outcome and wakes the waiter; false: it was gone. */
bool aioL_take(LTicket *tk, LOutcome outcome, int err);
bool aioL_take_later(LTicket *tk, LOutcome outcome, int err);   /* the same, but the waiter never runs within this call */
bool aioL_take_last(LTicket *tk, LOutcome outcome, int err);    /* and not before the others that are due in this turn */
bool aioL_take_quietly(LTicket *tk, LOutcome outcome, int err); /* the same without waking */
void aioL_take_all(AioLink *queue, LOutcome outcome, int err);  /* of a queue of tickets; later, too */
/* For an operation that need not wait now: a cancelled caller does not get that far. Raises as aioL_ticket. */
static inline void aioL_checkpoint(lua_State *L); /* [-0, +0, e] */
static inline LTicket *aioL_ticket_first(AioLink *queue) { /* first come, first served */
  return list_empty(queue) ? NULL : container_of(queue->next, LTicket, link);
}
LTicket *aioL_ticket_first_alive(AioLink *queue); /* the same; those whose coroutine was closed by coroutine.close leave */
/* [-0, +0, e] The context in which to wait, or an error where that is impossible or cancelled. It may be made now, and
 * finalisers run then: what is known of the arguments is to be asked again. */
LContext *aioL_waits_in(lua_State *L);
int aioL_closed(lua_State *L);    /* [-0, +2, -] nil, "closed" */
int aioL_timed_out(lua_State *L); /* [-0, +2, -] nil, "timeout" */
int aioL_eof(lua_State *L);       /* [-0, +2, -] nil, "eof" */
LTask *aioL_waiter(lua_State *L, LContext *c); /* [-0, +0, e] the task to suspend; NULL: wait by polling; raises: neither */

/* ---- tasks: lco.c runs and ends them ---- */

typedef enum LState { L_SCHEDULED, L_RUNNING, L_WAITING, L_ENDED, L_BROKEN, L_CANCELLED } LState;

typedef struct LHook {
  lua_Hook fn;
  int mask, count;
} LHook;

/* What few tasks have, or not for long. */
typedef struct LTies {
  LFlow flow;
  AioLink joiners;         /* tickets */
  struct LMember *member;  /* lgroup.c */
  AioLink held;            /* locks: LHold, lsync.c */
  LHook hook;              /* somebody else's, while a cancel needs its place (lscope.c) */
  struct LTies *next_spare;
} LTies;

/* The userdata; user value 1 is the thread. While the task is spawned, scheduled or waits, it is anchored, and on the
 * bottom of its thread's stack. */
struct LTask {
  LContext *c;
  lua_State *L;
  LTies *ties;        /* NULL: none */
  union {
    int nargs;          /* values on the waiting state's stack for the next resume; of one that has ended: results */
    LTask *next_failed; /* of one that has failed: in c->failed or c->awaited */
  };
  uint32_t slot;      /* anchors it; 0: not anchored */
  uint32_t life;      /* of c: a later one is another context */
  uint32_t born;      /* counts the context's tasks */
  uint8_t state;
  uint8_t ending;     /* how its body ended, or 0 */
  uint8_t raised;     /* how often a cancel was raised in it, up to 2 */
  bool unref : 1, keep : 1, adopted : 1, joined : 1, cancelled : 1;
  bool willed : 1;    /* has a will */
  bool awaited : 1;   /* somebody was told of its end who is to take the error */
  AioCo co;
  LTicket ticket;
};

static inline LTask *aioL_task_of(LTicket *tk) { return tk->polls ? NULL : container_of(tk, LTask, ticket); }

LTask *aioL_new_task(lua_State *L, LRuntime *rt);      /* [-0, +1, m] its thread and context are still to come */
void aioL_begin_task(LTask *t, LContext *c, lua_State *co);
LTask *aioL_test_task(lua_State *L, int idx);          /* [-0, +0, -] NULL: something else */
LTask *aioL_check_task(lua_State *L, int idx);         /* [-0, +0, v] */
void aioL_task_drop(lua_State *L, LTask *t);           /* [-0, +0, -] nothing of it is left in any queue */
void aioL_take_joiners(LTask *t);                      /* [-0, +0, -] of one that will never end; no Lua is entered */
LTask *aioL_task_at(const LContext *c, uint32_t slot); /* NULL: free, or another kind of owner */
LTies *aioL_try_ties(LTask *t);                      /* [-0, +0, -] made at first use; NULL: no memory */
LTies *aioL_ties(lua_State *L, LTask *t);            /* [-0, +0, m] */
void aioL_ties_free(lua_State *L, LRuntime *rt);     /* the spare ones */
static inline bool aioL_task_ended(const LTask *t) { return t->state >= L_ENDED; }
void aioL_finish(LContext *c, LTask *t, LState state);
void aioL_tasks_drop(lua_State *L, LContext *c);     /* [-0, +0, -] the context is closing */
void aioL_report_soon(LContext *c, LTask *t);        /* an anchored one that has failed: at the end of the turn, unless it is joined */
void aioL_report_unjoined(lua_State *L, LContext *c); /* [-0, +0, -] at the end of a turn */
void aioL_report_closing(lua_State *L, LContext *c); /* [-0, +0, -] there will be no end of this turn */
bool aioL_fresh(lua_State *co);                      /* a function that has not begun */
bool aioL_sealed(lua_State *co);                     /* it has what an ended task has left, below a value that is not its own */
bool aioL_resumable(lua_State *co);
bool aioL_dead(lua_State *co);
int aioL_reset_thread(lua_State *co, lua_State *from); /* its <close> variables run; leaves an error or nothing */

/* ---- lspawn.c, ladopt.c: where tasks come from ---- */

LTask *aioL_spawn(lua_State *L, LContext *c, int first, const char *who); /* [-n, +1, m] fn, args from `first` -> task */
LTask *aioL_check_co(lua_State *L, int idx, LContext *c); /* [-0, +0, e] any coroutine; a plain one is adopted by c */

/* ---- ltask.c: the handle ---- */

void aioL_push_task(lua_State *L, LTask *t);         /* [-0, +1, -] one that is anchored, or adopted */
void aioL_make_will(lua_State *L, int idx);          /* [-0, +0, m] of the task at idx */
LTask *aioL_willed(lua_State *L, LRuntime *rt, int idx); /* [-0, +0, -] by its thread; NULL: none that has a will */
void aioL_push_thread(lua_State *L, LTask *t);       /* [-0, +1, m] */
void aioL_push_weak(lua_State *L, LContext *c, int key, const char *mode); /* [-0, +1, m] of the side table, made at first use */
void aioL_task_push_value(lua_State *L, LTask *t);   /* [-0, +1, -] the error of a failed one */
int aioL_task_push_error(lua_State *L, LTask *t);    /* [-0, +1, -] of a failed one, with its traceback if it is a string */
int aioL_task_results(lua_State *L, LTask *t, bool raise); /* [-0, +n, e] true, ... | false, err; or raises err */
int aioL_task_wake(lua_State *L), aioL_task_traceback(lua_State *L), aioL_task_info(lua_State *L); /* in lwake.c, lreport.c */

/* ---- lwake.c: suspending and waking ---- */

extern const LWaitOps aioL_suspend_ops;
void aioL_wake_task(LTask *t, const char *who);      /* its wait is over: enters or schedules it */
void aioL_wake_later(LTask *t, const char *who);     /* the same, never within this call */
void aioL_wake_last(LTask *t, const char *who);      /* behind the others that are due in this turn */
void aioL_revive(lua_State *L, LTask *t);            /* [-0, +0, m] what runs or waits is anchored and counted, also if it is adopted */

/* ---- lpool.c: what a thread of the pool, or the kernel, does for a waiter; lparcel.c, lpack.c, lunpack.c: values on their way to another state ---- */

typedef struct LFlight {
  AioLink link;  /* in c->flights */
  LContext *c;
  LTicket *tk;   /* its op is the flight; NULL: nobody waits any more */
  void (*cancel)(struct LFlight *f); /* asks for it to end early */
  void (*free)(struct LFlight *f);
  bool over;     /* done has been called */
} LFlight;

/* [-0, +0, e] On a context that a finaliser has just closed it is freed, and that is an error. */
void aioL_flight_begin(lua_State *L, LFlight *f, LContext *c, void (*cancel)(LFlight *f), void (*free)(LFlight *f));
void aioL_flight_wait(LFlight *f, LTicket *tk);     /* the job has been submitted */
void aioL_flight_done(LFlight *f);
LFlight *aioL_flight_fetch(LTicket *tk);            /* for results: it is theirs, who end it; NULL: its context was closed */
void aioL_flight_end(LFlight *f);                   /* its results have been fetched, or it was not submitted */
void aioL_flight_leave(LTicket *tk);                /* for LWaitOps */
void aioL_flight_revoke(lua_State *L, LTicket *tk);

typedef struct LParcel LParcel;
typedef struct LCode LCode;
LParcel *aioL_parcel_pack(lua_State *L, int first); /* [-n, +0, e] from `first` up; raises the path of what cannot be copied */
/* [-n, +0, -] the same where nothing may be raised; *ok is false if the parcel holds the message instead; NULL: no memory.
 * *reuse may become the parcel, and is then NULL. */
LParcel *aioL_parcel_pack_safe(lua_State *L, int first, const char *what, LParcel **reuse, bool *ok);
/* [-0|n, +0, -] a few values of no size, the first of which may be a function with `code`, which it then has; NULL: it cannot
 * be done so. *reuse may become the parcel; `reuse` may be NULL. */
LParcel *aioL_parcel_pack_small(lua_State *L, int first, LCode *code, LParcel **reuse);
LCode *aioL_parcel_code(const LParcel *p);          /* of the first value; NULL: that is something else */
bool aioL_parcel_clear(LParcel *p);                 /* to be used again; false: it cannot be */
/* [-0, +n, -] all of it if that needs no memory, and no more stack than `max` values do; -1, and anything pushed: else */
int aioL_parcel_unpack_plain(lua_State *L, const LParcel *p, int max);
int aioL_parcel_unpack_rest(lua_State *L, const LParcel *p, int max); /* the same but for the first value */
int aioL_parcel_unpack(lua_State *L, LParcel *p, int fn); /* [-0, +n, e] once; fn: where the function of `code` is, or 0 */
LCode *aioL_known_code(lua_State *L, int idx);      /* [-0, +0, -] counted; NULL: it has not been dumped yet */
LCode *aioL_code_of(lua_State *L);                  /* [-0, +0, m] of the function on top, counted; NULL: no memory */
bool aioL_is_plain(lua_State *L, int idx);          /* [-0, +0, -] what the function does depends on its arguments and globals alone */
void aioL_push_code(lua_State *L, const LCode *code); /* [-0, +1, e] the function, which nobody else has */
void aioL_push_job(lua_State *L, LCode *code);      /* [-0, +1, e] the function, as it may be kept from the last time */
LCode *aioL_code_ref(LCode *code);                  /* any thread */
void aioL_code_unref(LCode *code);                  /* any thread; NULL is fine */
void aioL_parcel_free(LParcel *p);                  /* any thread; NULL is fine */

/* ---- lbuffer.c: memory that the kernel fills ---- */

typedef struct LBlock {
  char *data;
  size_t cap;
  atomic_uint refs;
  bool busy;      /* the kernel has it */
  bool waited;    /* and somebody waits for what it does with it */
  bool lost;      /* it was read into, and nobody has seen how far */
  size_t *account; /* where its bytes are counted; NULL: nowhere */
} LBlock;

typedef struct LBuffer {
  const void *mark; /* see aioL_test */
  LBlock *block;  /* NULL: none yet */
  size_t cap, len;
} LBuffer;

LBuffer *aioL_check_buffer(lua_State *L, int idx);       /* [-0, +0, v] one that nobody is using */
LBuffer *aioL_push_buffer(lua_State *L, LRuntime *rt, size_t cap); /* [-0, +1, m] empty, without memory */
void aioL_buffer_count(lua_State *L, LRuntime *rt, LBuffer *b);   /* [-0, +0, -] its memory has come from elsewhere */
LBlock *aioL_buffer_block(lua_State *L, LBuffer *b);     /* [-0, +0, m] its memory */
LBlock *aioL_block_new(size_t cap);                      /* NULL: no memory */
void aioL_block_unref(LBlock *block);                    /* any thread; NULL is fine */
void aioL_block_wait(LBlock *block);                     /* it goes to the kernel */
void aioL_block_leave(LBlock *block, bool read);         /* nobody waits any more; `read`: it is read into */
void aioL_block_over(LBlock *block, bool read);          /* the kernel has it no more */
void aioL_buffer_filled(LBuffer *b, LBlock *block, size_t len); /* and b is told of it */
/* [-0, +0, v] the bytes of a string, number or buffer */
const char *aioL_check_bytes(lua_State *L, int idx, size_t *len);

/* ---- lformat.c: the formats of the io library ---- */

size_t aioL_check_count(lua_State *L, int idx);                 /* [-0, +0, v] a number of bytes */
size_t aioL_count(lua_State *L, int idx, lua_Integer n);        /* [-0, +0, v] the same, given with argument idx */
void aioL_check_format(lua_State *L, int idx, AioWant *w);      /* [-0, +0, v] a number, "l", "L", "n" or "a" */
int aioL_to_piece(lua_State *L, const AioInput *in, size_t from, const AioWant *w); /* [-0, +1, m] what was found */

/* ---- lsocket.c: what sockets of all kinds have in common ---- */

/* [-0, +0, v] At idx is a table, without fields of other names; it may have that many places in a list. */
void aioL_check_names(lua_State *L, int idx, lua_Unsigned places, const char *const names[]);
bool aioL_field(lua_State *L, int idx, const char *name);        /* [-0, +1, -] of a table, raw; false: nil */
bool aioL_bool_field(lua_State *L, int idx, const char *name, bool value); /* [-0, +0, v] value: if it is absent */
int64_t aioL_opt_timeout(lua_State *L, int idx);                 /* [-0, +0, v] the field of a table, or of nil */
int aioL_check_port(lua_State *L, int idx);                      /* [-0, +0, v] */
int aioL_push_socket_name(lua_State *L, int fd, bool peer);      /* [-0, +n, m] host, port; path; or nil, message, errno */

int aioL_unwatchable(lua_State *L, int fd, int rc);              /* [-0, +3, e] why an fd cannot be waited for */

/* ---- ludp_io.c ---- */

void aioL_arrivals_free(LRuntime *rt); /* the spare one */

/* ---- lscope.c: cancelling, and scopes ---- */

struct LScope {
  LScope *outer;
  LContext *c;        /* counted */
  LTask *task;        /* NULL: of a nesting level */
  LTicket *polled;    /* the nesting level waits by polling, with this ticket */
  AioTimer timer;
  int64_t deadline;   /* AIO_FOREVER: none */
  uint64_t serial;    /* of its error values */
  bool expired, shield;
};

/* Whether the code that runs is cancelled, and by which scope, the outermost first; NULL: the task itself. */
bool aioL_cancelled(const LFlow *flow, const LTask *t, LScope **scope);
int aioL_raise_cancel(lua_State *L, LRuntime *rt);           /* [-0, +0, e] what runs is cancelled */
void aioL_scopes_move(lua_State *L, LContext *c);            /* [-0, +0, -] c is to be polled: their limits are its timers now */
void aioL_polls(LRuntime *rt, LTicket *tk);                  /* scopes around a polling wait know its ticket; NULL: it is over */
void aioL_push_cancel(lua_State *L, LTask *t);               /* [-0, +1, m] the error value of a cancelled task */
bool aioL_is_own_cancel(lua_State *L, LTask *t);             /* [-0, +0, m] is it the value on top? */
bool aioL_is_cancelled(lua_State *L);                        /* [-0, +0, -] would a wait here be cancelled? */
void aioL_cancel_quietly(LTask *t);                          /* [-0, +0, -] without a reason; raises nothing */
bool aioL_is_cancel(lua_State *L, int idx);                  /* [-0, +0, -] an error value of a cancel or of a scope? */
bool aioL_cancel(lua_State *L, LTask *t, int reason);        /* [-0, +0, m] reason: stack index, 0: none. false: too late */
void aioL_scopes_drop(lua_State *L, LScope **scopes);        /* [-0, +0, -] */
void aioL_scopes_pass(LScope *scopes, LTask *t);             /* to whom runs their coroutine now; NULL: no task does */
bool aioL_deliver(LTask *t);                                 /* [-0, +0, -] it waits: true if that ends, for it is cancelled */
void aioL_scopes_free(lua_State *L, LRuntime *rt);           /* the spare ones */

/* ---- lwrap.c: coroutines in which one may wait ---- */

struct LWrap {
  lua_State *co;
  lua_State *from;  /* who called it */
  LWrap *outer;
  LFlow *flow;      /* while it runs */
  LScope *scopes;
  bool running, waits; /* waits: it was left by a wait and not by coroutine.yield */
  bool failed;         /* its function has raised an error */
};

/* The state whose code runs or waits: the task's own, or that of its innermost wrapped coroutine. */
static inline lua_State *aioL_innermost(const LTask *t) {
  return t->ties && t->ties->flow.wrap ? t->ties->flow.wrap->co : t->L;
}
int aioL_suspend(lua_State *L, LTask *t, lua_KContext ctx, lua_KFunction k); /* lua_yieldk, to the loop */
/* Whether L runs the task itself, and nothing can have cancelled it: it is in no scope, nor in a wrapped coroutine. */
static inline bool aioL_at_ease(const lua_State *L, const LTask *t) {
  if (!t || t->L != L || t->cancelled) return false;
  return !t->ties || (!t->ties->flow.scopes && !t->ties->flow.wrap);
}
void aioL_check_flow(lua_State *L, LRuntime *rt); /* [-0, +0, e] aioL_checkpoint's, for all others */
static inline void aioL_checkpoint_in(lua_State *L, LRuntime *rt) { /* [-0, +0, e] of who knows the runtime */
  if (!aioL_at_ease(L, rt->task)) aioL_check_flow(L, rt);
}
static inline void aioL_checkpoint(lua_State *L) { aioL_checkpoint_in(L, aioL_runtime(L)); }

/* ---- lreport.c: who waits on what, where, and who made it ---- */

extern const char *const aioL_state_names[];
void aioL_push_name(lua_State *L, LTask *t);         /* [-0, +1, m] string or nil */
void aioL_push_origin(lua_State *L, lua_State *co);  /* [-0, +1, m] where its function was defined, or nil */
void aioL_task_label(lua_State *L, LTask *t);        /* [-0, +1, m] "task 'name'" */
void aioL_deadlock(lua_State *L, LContext *c);       /* [-0, +0, e] */
int aioL_task_main(lua_State *L);                    /* body of every spawned task */
void aioL_push_site(lua_State *L, LContext *c); /* [-0, +3, m] function and line that spawn, the record of the task that does */
void aioL_forget_site(lua_State *L, const LTask *t); /* [-0, +0, -] it spawns no more */
int aioL_traceback(lua_State *L);                    /* message handler of a task */
void aioL_note(lua_State *L, lua_State *co);         /* [-0, +0, m] the error on top was raised in co */

/* ---- lsync.c: locks; a condition gives up a mutex for a time ---- */

typedef struct LLock LLock;

void aioL_locks_drop(LContext *c, LTask *t);   /* it ends, or its context closes; what it holds is passed on, and reported */
void aioL_holds_free(lua_State *L, LRuntime *rt);
LLock *aioL_check_mutex(lua_State *L, int idx);              /* [-0, +0, v] */
bool aioL_mutex_held(const LLock *m);                        /* by the caller */
void aioL_mutex_part(LLock *m, LTicket *tk);                 /* the caller gives it up; tk is how he gets it back */
bool aioL_mutex_retake(LTicket *tk, LOutcome outcome);       /* for LWaitOps */
void aioL_lock_revoke(lua_State *L, LTicket *tk);

/* ---- lgroup.c ---- */

void aioL_member_ended(LContext *c, LTask *t); /* its group takes note */

/* ---- what each file adds to the module ---- */

typedef void LOpen(lua_State *L, LRuntime *rt, int module); /* [-0, +0, m] the module's functions table is at `module` */
LOpen aioL_open_context, aioL_open_run /* after the class */, aioL_open_bh, aioL_open_timer, aioL_open_watch, aioL_open_signal,
  aioL_open_pool, aioL_open_resolve, aioL_open_buffer, aioL_open_file, aioL_open_files,
  aioL_open_streams, aioL_open_sockets, aioL_open_server, aioL_open_connect, aioL_open_udps, aioL_open_spawn, aioL_open_wake,
  aioL_open_task, aioL_open_scope, aioL_open_wrap, aioL_open_sync, aioL_open_condition, aioL_open_semaphore, aioL_open_queue,
  aioL_open_group, aioL_open_wait, aioL_open_source;
/* Adds functions that know the runtime to the table on top of the stack. */
void aioL_functions(lua_State *L, LRuntime *rt, const luaL_Reg *functions);
/* [-0, +0, m] The same; the value at idx is their third upvalue. */
void aioL_functions_with(lua_State *L, LRuntime *rt, const luaL_Reg *functions, int idx);

/* ---- a context's methods, and what it lets go of, that live with their noun ---- */

typedef int LMethod(lua_State *L);
LMethod aioL_ctx_schedule, aioL_ctx_bh, aioL_ctx_timer, aioL_ctx_watch, aioL_ctx_spawn, aioL_ctx_co_schedule, aioL_ctx_tasks,
  aioL_ctx_signal, aioL_ctx_set_threads, aioL_ctx_attach, aioL_ctx_detach, aioL_ctx_source;
void aioL_jobs_drop(LRuntime *rt);
void aioL_flights_drop(LContext *c);               /* the pool is closed */
void aioL_partings_drop(LContext *c);              /* it is about to close */
void aioL_oneshots_drop(lua_State *L, LContext *c);
void aioL_glib_drop(lua_State *L, LContext *c);    /* [-0, +0, -] at the latest when no turn is running */

static inline bool aioL_fd_ready(int fd, AioDir dir) { /* now; the kernel is asked */
  AioReady ready = {.fd = fd, .wanted = 1U << dir};
  return aio_ready(&ready, 1) == 1;
}

static inline void aioL_live(LContext *c, bool counted, int delta) {
  if (counted) c->live += (uint64_t)(int64_t)delta;
}

#endif
