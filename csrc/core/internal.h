/* SPDX-License-Identifier: MIT
 * What the core's files share with one another and nobody else sees.
 *
 * Keep     every field of AioContext says who may touch it; "home" means the thread that polls. */
#ifndef AIO_INTERNAL_H
#define AIO_INTERNAL_H

#include "aio.h"
#include "list.h"

/* ---- memory: the one door, which may return NULL ------------------------------------------------------------- */

void *aio__realloc(void *p, size_t size); /* size 0 frees */
void *aio__aligned(size_t size);          /* for transfers past the page cache; of AIO_FILE_ALIGN, as is size */

/* Grows *v (elements of `size` bytes) so that it has room for `need`; -ENOMEM leaves it as it was. */
int aio__grow(void **v, uint32_t *cap, uint32_t need, size_t size);

#define SWEEP_NS INT64_C(20000000) /* asleep for so long: time to look for fds closed behind our back */
enum { SWEEP_ASLEEP = 64 };        /* and to verify so many numbers */

/* ---- fd monitors --------------------------------------------------------------------------------------------- */

enum { AIO_IN = 1, AIO_OUT = 2, AIO_ERR = 4, AIO_HUP = 8, AIO_NVAL = 16 };

typedef struct AioFdEntry {
  AioWatch *w[2];   /* by AioDir */
  uint32_t gen;     /* epoll: counts registrations of this number with the kernel; poll, io_uring: tells files apart */
  uint8_t kernel;   /* AIO_IN | AIO_OUT as the backend has it registered */
  uint8_t in_kernel;/* registered at all */
  uint8_t busy;     /* 1 << AioDir: its handler is on the C stack */
  uint8_t masked;   /* 1 << AioDir: left out of `kernel` until its handler has returned */
} AioFdEntry;

/* Of a watch: is there something, which the fd need not know yet? */
typedef struct AioTester {
  AioWatch *w;
  AioTestFn *test;
} AioTester;

/* A backend. It reports what it finds through aio__fd_found and the notifier through ctx->notifier_fired. */
typedef struct AioFdMon {
  const char *name;
  bool blind;                                /* does not report fds that were closed while registered */
  bool edge;                                 /* reports each write to the notifier once, be it read or not */
  bool holds;                                /* keeps a registered fd's file open: to be told when nobody wants it */
  bool tells_files;                          /* an entry's `gen` is that of the file, as it was when it was last verified */
  int (*init)(AioContext *ctx);
  void (*fini)(AioContext *ctx);
  /* Brings the kernel's idea of fd to `events` (0: none). `verify`: the number may have been reused since. */
  int (*update)(AioContext *ctx, int fd, unsigned events, bool verify);
  bool (*same)(AioContext *ctx, int fd);     /* or NULL: asks the kernel: is the number still that of the registered file? */
  int (*wait)(AioContext *ctx, int64_t timeout_ns); /* number of fds found, or -errno */
  bool (*settle)(AioContext *ctx); /* or NULL: tells the kernel what must not wait for the next wait; false: it cannot now */
  bool (*peek)(AioContext *ctx);   /* or NULL: memory alone: may `wait` find something? */
} AioFdMon;

extern const AioFdMon aio__fdmon_poll, aio__fdmon_epoll, aio__fdmon_uring;

typedef struct AioHeapNode {
  int64_t deadline;
  AioTimer *timer;
} AioHeapNode;

typedef struct AioHeap {
  AioHeapNode *v;
  uint32_t n, cap;
  bool running;     /* a run is on the C stack: what is armed now waits for the next one */
  int64_t run_now;
} AioHeap;

typedef struct AioSource AioSource;
typedef struct AioPool AioPool;
typedef struct AioFiles AioFiles;

/* One run of the loop that enters coroutines, which has one acquisition of the lock. */
typedef struct AioStretch {
  bool in_turn;  /* among a turn's BHs: those that are ready and due follow */
  int left;      /* who is woken may be entered so often, then the rest of the loop has its turn */
} AioStretch;

/* What a nested turn puts aside. */
typedef struct AioOuter {
  AioCo *running;
  AioTestFn *over;
  void *opaque;
} AioOuter;

typedef struct AioDeferred {
  AioFn *fn;
  void *opaque;
} AioDeferred;

struct AioContext {
  atomic_uint refs;              /* any */
  atomic_bool closed;            /* written by home */
  _Atomic(uintptr_t) home;       /* any reads; the id of the home thread, 0: none */
  pthread_mutex_t lock;          /* any */
  _Atomic(uintptr_t) lock_owner; /* written by who holds the lock; 0: nobody */
  unsigned lock_depth;           /* who holds the lock */

  /* notify.c */
  atomic_uint notify_me;         /* written by home: 2 per sleeper, bit 0 for the GSource; read by any */
  atomic_bool notified;          /* any sets, home clears */
  AioNotifier notifier;
  bool notifier_fired;           /* home: the backend saw it */
  bool exported;                 /* home: another loop waits on our fd */

  /* bh.c */
  _Atomic(AioBH *) incoming;     /* any pushes, home takes all */
  AioLink ready, idle;           /* home */
  uint32_t bh_seq, bh_due;       /* home: of the last that was made ready, of the last that is due in this turn */
  int64_t idle_from;             /* home: no idle BH runs before, monotonic ns */

  /* co.c */
  AioLink woken, last;           /* home: to be entered by the enter loop, before and behind what is due in this turn */
  AioLink *wake_at;              /* home: where the running coroutine's wake-ups go */
  AioCo *running;                /* home */
  AioStretch *stretch;           /* home: the innermost on the C stack */
  AioTestFn *over;               /* home: of aio_run, while a turn of its own is the innermost */
  void *over_opaque;
  unsigned rounds;               /* home: turns that have passed in this one, see aio__next_round */

  /* timer.c, clock.c */
  AioHeap heap[AIO_CLOCKS];      /* home */
  uint64_t timer_seq;
  uint32_t ntimers;              /* armed, on all clocks */
  AioVClock *vclock;
  AioLink vclock_link;           /* in the clock's list of contexts */

  /* fd.c and the backends */
  const AioFdMon *mon;
  AioFdEntry *fds;               /* by fd number */
  uint32_t nfds;
  AioLink fd_ready;              /* watches */
  AioTester *testers;
  uint32_t ntesters, testers_cap;
  uint32_t next_tester;          /* while the tests are asked: where to go on */
  bool asking;
  AioWatch *asked;               /* NULL: none, or closed meanwhile */
  uint32_t fd_seq, nwatches;
  uint32_t number;               /* no other context has it */
  unsigned skipped;              /* turns since the kernel was asked */
  uint32_t suspects;             /* so many of the watched fds are not verified since others' code ran; more: all */
  int next_suspect;              /* from which number on */
  unsigned since_sweep;
  int pollfd;                    /* of the backend, readable when it has something to tell; -1: it has none */
  bool rebuild;                  /* epoll: a registration has outlived its fd, or the notifier's could not be made */
  unsigned batches;              /* epoll: waits that found something */
  void *pollfds;                 /* poll, sweep: struct pollfd[] */
  uint32_t pollfds_cap;
  struct AioFdRing *fdring;      /* io_uring */

  /* polling.c */
  _Atomic(int64_t) poll_max, poll_grow, poll_shrink; /* any */
  _Atomic(int64_t) poll_ns;      /* home writes */

  AioSource *source;             /* source.c */
  AioPool *pool;                 /* pool.c */
  AioFiles *files;               /* file.c */
  unsigned ring_entries, laio_batch; /* as the options have it */
  unsigned own_watches;          /* home: those of the engines, which by themselves wake nobody */
  size_t inline_left;            /* home: bytes that may still be read or written at once in this turn */
  uint64_t try_run;              /* home: stream.c: what ran when a stream was last tried */
  unsigned tries;
  AioDeferred *deferred;         /* home: defer.c */
  uint32_t ndeferred, deferred_cap;
  AioLink defer_runs;            /* home: lists taken away and being run */
  unsigned sections;
  AioAroundFn *around;           /* home */
  void *around_opaque;

  uint64_t shuffle;              /* home: state of the generator; 0: first come, first served */
  unsigned depth;                /* home: polls on the C stack */
  AioStats stats;
};

/* Others' code ran: what is watched may have been closed. */
static inline void aio__fds_suspect(AioContext *ctx) { ctx->suspects = UINT32_MAX; }

static inline uintptr_t aio__self(void) { return (uintptr_t)pthread_self(); }
static inline bool aio__is_home(AioContext *ctx) {
  return atomic_load_explicit(&ctx->home, memory_order_relaxed) == aio__self();
}

/* notify.c */
void aio__announce(AioContext *ctx, unsigned n);
void aio__withdraw(AioContext *ctx, unsigned n);
bool aio__accept(AioContext *ctx);  /* true if somebody had notified */
void aio__published(AioContext *ctx); /* after work was made visible: wakes the sleeper if there is one [any] */
void aio__kick(AioContext *ctx);    /* home changed what an outer loop waits for */

/* bh.c */
bool aio__bhs_pending(AioContext *ctx);     /* a non-idle one */
int64_t aio__bhs_timeout(AioContext *ctx);
bool aio__bhs_run(AioContext *ctx);         /* true: progress */
bool aio__bhs_due(const AioContext *ctx);   /* the first that is ready is of this turn */
AioLink *aio__bhs_ready_co(AioContext *ctx); /* the first that is ready, if it is a coroutine's; NULL */
void aio__bhs_take_co(AioCo *co);           /* which has been unlinked */
bool aio__co_claim(AioCo *co, const char *who); /* false: it is scheduled already */
void aio__bhs_drop(AioContext *ctx);

/* co.c */
void aio__co_run(AioContext *ctx, AioCo *co);  /* enters co, then all it woke */
void aio__cos_run(AioContext *ctx, AioCo *co); /* and those that are due behind it */
bool aio__cos_woken(const AioContext *ctx);
void aio__wake_last(AioContext *ctx);          /* those behind what is due come next */
bool aio__woken_run(AioContext *ctx);          /* all of them */
void aio__co_drop(AioContext *ctx);

/* timer.c */
int64_t aio__timers_timeout(AioContext *ctx, bool with_virtual);
bool aio__timers_run(AioContext *ctx);
void aio__timers_drop(AioContext *ctx);
int64_t aio__timers_first(const AioContext *ctx, AioClock clock); /* deadline, or AIO_FOREVER */

/* clock.c */
void aio__vclock_join(AioVClock *vc, AioContext *ctx);
void aio__vclock_leave(AioContext *ctx);
bool aio__vclock_jump(AioContext *ctx);      /* autojump: true if the clock has moved */
int64_t aio__vclock_timeout(const AioVClock *vc, int64_t deadline);

/* fd.c */
bool aio__fd_found(AioContext *ctx, int fd, unsigned revents); /* false: nobody is interested */
void aio__fd_lose(AioContext *ctx, int fd, int rc);            /* of whose update that is: its watches end, and are told why */
int aio__fds_wait(AioContext *ctx, int64_t timeout_ns);        /* asks the backend; EINTR ends the wait, no more */
bool aio__fds_settle(AioContext *ctx);                         /* before others may sleep; false: they may be deaf */
void aio__fds_sweep(AioContext *ctx, uint32_t most);           /* finds fds closed behind our back; verifies so many numbers */
int aio__fd_inspect(int fd, uint32_t *file);                   /* 0: it can be watched, *file tells its file from others */
bool aio__fds_run(AioContext *ctx);
void aio__fds_drop(AioContext *ctx);
bool aio__fds_test(AioContext *ctx);                           /* busy polling: ask the tests */
int aio__pollfds_fill(AioContext *ctx, bool with_notifier);    /* count, or -ENOMEM */

/* polling.c */
bool aio__spin(AioContext *ctx, int64_t timeout_ns);           /* true: found something */
void aio__polling_learn(AioContext *ctx, int64_t block_ns);

/* context.c */
int64_t aio__plan(AioContext *ctx);      /* ns until the next deadline */
void aio__glance(AioContext *ctx);       /* asks for fds without waiting, unless it was done a moment ago */
void aio__nest(AioContext *ctx, AioOuter *outer, AioTestFn *over, void *opaque); /* before aio__dispatch */
void aio__unnest(AioContext *ctx, const AioOuter *outer);
bool aio__dispatch(AioContext *ctx);
bool aio__next_round(AioContext *ctx);   /* true: a turn has ended, and the next begun, without leaving the enter loop */
void aio__around(AioContext *ctx, AioFn *turn); /* turn(ctx), in the user's world */
void aio__shuffle(AioContext *ctx, AioLink *list); /* if the context is to; for tests */
bool aio__work_seen(AioContext *ctx);    /* memory alone: is there a reason not to sleep? */

/* pool.c */
uint32_t aio__pool_jobs(const AioContext *ctx); /* whose done has not been called */
void aio__pool_stop(AioContext *ctx);           /* waits for those that run */
void aio__pool_free(AioContext *ctx);

/* defer.c */
bool aio__defer_pending(const AioContext *ctx);
void aio__defer_run(AioContext *ctx);        /* all of them, also within a section; may close the context */
void aio__defer_drop(AioContext *ctx);

/* file.c, uring.c, laio.c */
enum { INLINE_BYTES = 1 << 20 };                 /* in a turn: some 200 us of page cache in pieces of 4 KiB */
uint32_t aio__file_ops(const AioContext *ctx);   /* whose done has not been called */
void aio__files_stop(AioContext *ctx);           /* waits for the kernel */
void aio__files_free(AioContext *ctx);

typedef struct AioEngineOps {
  int (*open)(AioContext *ctx, void **self);     /* the first time a context asks for it */
  void (*stop)(void *self);                      /* nothing of it is used by the kernel afterwards */
  void (*free)(void *self);
  void (*submit)(void *self, AioFileOp *op);     /* its leg; the answer comes by aio__file_leg_over, in a turn */
  void (*cancel)(void *self, AioFileOp *op);
} AioEngineOps;

extern const AioEngineOps aio__uring_engine, aio__laio_engine;
int64_t aio__file_call(AioFileOp *op);                  /* any thread; blocks: bytes, an fd, or -errno */
bool aio__file_goes_direct(const AioFile *f);           /* any thread: wants a descriptor past the page cache, too */
void aio__file_leg_over(AioFileOp *op, int64_t result); /* bytes, or -errno; may free op, or close the context */
/* Each with its `word`; bh calls this again for what is left, and is cancelled if that is nothing. false: ctx was closed. */
bool aio__file_legs_over(AioLink *over, AioBH *bh);
void aio__file_leg_refused(AioFileOp *op, bool all); /* another engine is to do it; all: and all that comes */

/* sockaddr.c */
int aio__socket_connect(const AioSockaddr *a, const AioSocketOptions *o, int *fd); /* *fd < 0: none was made */
int aio__socket_error(int fd); /* 0: connected; -EINPROGRESS; -errno */
int aio__socket_bind(int fd, int type, const AioSockaddr *a, AioPath *path); /* type: SOCK_... */
void aio__socket_remove_path(int fd, AioPath *path); /* what bind has made there */

/* source.c */
void aio__source_drop(AioContext *ctx);

/* trace.c */
typedef struct AioTracer {
  _Atomic(AioTraceFn *) fn;
  void *opaque;
} AioTracer;
extern AioTracer aio__tracer;

static inline void aio__trace(AioTracePoint point, const void *object, int64_t value) {
  AioTraceFn *fn = atomic_load_explicit(&aio__tracer.fn, memory_order_relaxed);
  if (__builtin_expect(fn != NULL, 0)) fn(point, object, value, aio__tracer.opaque);
}

static inline int64_t aio__earlier(int64_t a, int64_t b) { return a < b ? a : b; }

#endif
