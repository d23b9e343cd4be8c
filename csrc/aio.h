/* SPDX-License-Identifier: MIT
 * The wall between the event loop and whoever uses it: every type and function of the core that others may name.
 *
 * Way      aio_context_new -> init handles in place -> aio_poll in a loop -> close handles -> aio_context_unref
 * Threads  "home" is the one thread that polls a context (see aio_context_set_home). Functions marked [any] may be
 *          called by any thread that holds a reference; all others belong to the home thread.
 * Owner    AioBH, AioCo, AioTimer, AioWatch are the caller's memory: init links nothing, close unlinks at once.
 * Keep     functions return 0 or -errno; nothing prints, exits or knows a script language.
 * Source   the semantics follow QEMU's AioContext (util/async.c and its companions), restated and re-written. */
#ifndef AIO_H
#define AIO_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AIO_FOREVER INT64_MAX /* a wait or a deadline that never ends */

typedef struct AioContext AioContext;
typedef void AioFn(void *opaque);
typedef bool AioTestFn(void *opaque);

typedef struct AioLink {
  struct AioLink *prev, *next; /* both NULL: in no list */
} AioLink;

/* ---- context ---------------------------------------------------------------------------------------------- */

typedef struct AioVClock AioVClock;

typedef struct AioOptions {
  const char *backend;  /* "auto", "epoll", "poll" or "io_uring" (Linux 6.1); NULL is "auto" */
  AioVClock *vclock;    /* clock behind AIO_CLOCK_VIRTUAL; NULL: timers on that clock are refused. Must outlive ctx */
  int64_t poll_max_ns;  /* adaptive polling, see aio_set_polling */
  int64_t poll_grow, poll_shrink;
  unsigned ring_entries; /* of io_uring's submission queues, for files and for backend io_uring; 0: 128 */
  unsigned laio_batch;   /* requests of Linux AIO that are handed over together, at most; 0: 32 */
  uint64_t shuffle;     /* not 0: for tests, what is ready at the same time runs in an order drawn from this seed */
} AioOptions;

/* How a file's requests are done, see below. INLINE: by a call that does not wait, or where there are no threads, does. */
typedef enum AioEngine {
  AIO_ENGINE_AUTO, AIO_ENGINE_URING, AIO_ENGINE_LAIO, AIO_ENGINE_THREADS, AIO_ENGINE_INLINE, AIO_ENGINES
} AioEngine;

typedef struct AioStats {
  uint64_t polls;    /* turns taken, under either driver */
  uint64_t asks;     /* times the kernel was asked for fds */
  uint64_t wakeups;  /* times the notifier ended a wait */
  uint64_t bhs, timers, fds, entries; /* callbacks run; coroutine entries */
  uint64_t bhs_pending, timers_armed, watches; /* live now */
  int64_t poll_ns;   /* what adaptive polling has learned, ns */
  uint64_t file_ops[AIO_ENGINES]; /* requests done, by engine */
  uint64_t submits;  /* system calls that handed over requests */
} AioStats;

/* Makes a context with one reference. Returns 0, -EINVAL for an unknown backend, or what the kernel refused with;
 * *out is then NULL and nothing is left behind. opts may be NULL. */
int aio_context_new(AioContext **out, const AioOptions *opts);
void aio_context_ref(AioContext *ctx);     /* [any] */
void aio_context_unref(AioContext *ctx);   /* [any]; the last one closes (if need be) and frees */
/* Drops whatever is pending without calling it, and refuses new work from then on. Safe in any callback, and twice. */
void aio_context_close(AioContext *ctx);
bool aio_context_closed(const AioContext *ctx);
/* A recursive mutex for C threads that share the context; a coroutine is entered holding it. [any] */
void aio_context_acquire(AioContext *ctx);
void aio_context_release(AioContext *ctx);
/* Says that the calling thread alone will touch the context outside of aio_poll, so that scheduling from it costs no
 * atomics. Without this the thread inside aio_poll is home while it is there. */
void aio_context_set_home(AioContext *ctx);
const char *aio_context_backend(const AioContext *ctx);
void aio_context_stats(const AioContext *ctx, AioStats *out);
uint64_t aio_context_turns(const AioContext *ctx); /* begun so far, nested ones too: AioStats.polls */

/* One turn: plan, wait at most limit_ns (0: not at all, AIO_FOREVER: until progress or a notification), dispatch.
 * Returns true iff a non-idle BH, an fd handler or a timer ran. May be called from within any callback. */
bool aio_poll(AioContext *ctx, int64_t limit_ns);
/* Turn after turn without a limit, at least one, until over(opaque) says so or nothing is left that could wake a turn. */
void aio_run(AioContext *ctx, AioTestFn *over, void *opaque);
/* A turn that somebody other than the caller of aio_poll asks for (GLib, aio_vclock_advance) is run by `around`, which
 * prepares its world, calls turn(turn_opaque) and tidies up. */
typedef void AioAroundFn(AioFn *turn, void *turn_opaque, void *opaque);
void aio_context_set_around(AioContext *ctx, AioAroundFn *around, void *opaque);
/* ns until the next turn has something to do: 0 now, AIO_FOREVER never by itself. */
int64_t aio_context_timeout(AioContext *ctx);
/* One fd that is readable whenever a turn would find work, for embedding in another loop; -ENOTSUP for backend "poll".
 * Who watches it by an epoll or an io_uring must add it again when what it stands for was made anew under the same
 * number: by backend epoll when an fd was closed behind the loop's back while a duplicate lives, by backend io_uring when
 * another thread polls the context. poll and select need not care. For a ring, epoll_wait in this very thread fails with
 * EINTR before it returns. */
int aio_context_pollfd(AioContext *ctx);
/* True while something can still make a turn run: a pending BH or coroutine, an armed timer, a watch. */
bool aio_context_can_wake(const AioContext *ctx);
/* True when the next turn needs no waiting: a BH or a woken coroutine is pending. */
bool aio_context_busy(AioContext *ctx);

/* Adaptive polling after QEMU: before sleeping, spin for a learned time of at most max_ns (0: off). The learned time
 * starts at 4 us, is multiplied by grow (0: 2) and divided by shrink (0: dropped to nothing). -EINVAL for negatives. [any] */
int aio_set_polling(AioContext *ctx, int64_t max_ns, int64_t grow, int64_t shrink);
/* Makes a sleeping (or the next) poll return and look at everything again. [any] */
void aio_notify(AioContext *ctx);

/* ---- bottom halves ----------------------------------------------------------------------------------------- */

typedef struct AioBH {
  AioLink link;             /* home: ready or idle list */
  _Atomic(struct AioBH *) pushed; /* next in the foreign threads' stack, while in it */
  AioContext *ctx;
  AioFn *fn;
  void *opaque;
  atomic_uint flags;
  uint32_t seq;             /* home: place in the FIFO, valid while ready */
} AioBH;

void aio_bh_init(AioBH *bh, AioContext *ctx, AioFn *fn, void *opaque);
/* The same for a BH that the home thread alone will schedule: saves two atomic operations a run. */
void aio_bh_init_local(AioBH *bh, AioContext *ctx, AioFn *fn, void *opaque);
/* Runs fn once in the home thread's next turn, in order of scheduling; again before that is the same run. The caller's
 * earlier writes are visible in fn. Wait-free. [any] */
void aio_bh_schedule(AioBH *bh);
/* The same within 10 ms, without waking anybody and without counting as progress. From within a callback it waits for
 * those 10 ms, so that a BH which does this to itself runs a hundred times a second. */
void aio_bh_schedule_idle(AioBH *bh);
void aio_bh_cancel(AioBH *bh);
void aio_bh_close(AioBH *bh);      /* as cancel; the memory is the caller's again. No other thread may be scheduling it */
bool aio_bh_scheduled(const AioBH *bh);
/* Allocates a BH, schedules it, and frees it before fn is called. [any] Returns 0, -ENOMEM or -ESHUTDOWN. */
int aio_bh_oneshot(AioContext *ctx, AioFn *fn, void *opaque);

/* ---- coroutines -------------------------------------------------------------------------------------------- */

typedef struct AioCo {
  AioBH bh;                          /* a scheduled coroutine is a BH that enters it */
  _Atomic(const char *) scheduled_by; /* who scheduled it; NULL when it is not scheduled */
} AioCo;

void aio_co_init(AioCo *co, AioContext *ctx, AioFn *enter, void *opaque);
/* The same for one that no other thread will schedule or wake while this one may: saves an atomic operation each time. */
void aio_co_init_local(AioCo *co, AioContext *ctx, AioFn *enter, void *opaque);
/* Enters co from a BH of its context. `who` names the caller for the error of the next one: -EALREADY when it is
 * scheduled already (aio_co_scheduled_by tells by whom), -ESHUTDOWN on a closed context. [any] */
int aio_co_schedule(AioCo *co, const char *who);
/* Enters co: at once outside of coroutines, after the running coroutine has yielded or ended inside of one, through
 * aio_co_schedule from any other thread. Constant C stack, however long the chain. [any] */
int aio_co_wake(AioCo *co, const char *who);
/* The same, but inside of a coroutine not before all others that are due in this turn. */
int aio_co_wake_last(AioCo *co, const char *who);
const char *aio_co_scheduled_by(const AioCo *co);
/* For an enter function, as the last thing that it does with its coroutine: the opaque of the one that is to be entered next,
 * which is then the running one, if it is entered by fn, too; NULL: return. Saves the way back to the loop and up again. */
void *aio_co_next(AioContext *ctx, AioFn *fn);
AioCo *aio_co_running(const AioContext *ctx); /* the coroutine that runs at this nesting level, or NULL */
void aio_co_close(AioCo *co);                 /* takes it out of every queue */

/* ---- clocks and timers ------------------------------------------------------------------------------------- */

typedef enum AioClock { AIO_CLOCK_MONOTONIC, AIO_CLOCK_REALTIME, AIO_CLOCK_BOOTTIME, AIO_CLOCK_VIRTUAL, AIO_CLOCKS } AioClock;

int64_t aio_clock_now(AioClock clock); /* ns; not for AIO_CLOCK_VIRTUAL [any] */
uint32_t aio_clock_coarse_ms(void);    /* monotonic, some ms behind, wraps; costs a quarter [any] */

/* A clock that runs only when told: starts paused at 0. Belongs to one thread, like the contexts that use it. */
AioVClock *aio_vclock_new(void); /* NULL: out of memory */
void aio_vclock_free(AioVClock *vc); /* its memory lasts as long as a context uses it */
int64_t aio_vclock_now(const AioVClock *vc);
void aio_vclock_pause(AioVClock *vc);
void aio_vclock_resume(AioVClock *vc);
/* Jump to the next deadline when a poll would sleep, unless jobs of the pool or requests of files are under way. Returns
 * whether it did so before. */
bool aio_vclock_autojump(AioVClock *vc, bool on);
/* Moves the clock ns forward, stopping at every deadline on the way to run what is due there (as turns that do not
 * wait, of each context concerned). May be called from a callback. */
void aio_vclock_advance(AioVClock *vc, int64_t ns);

typedef struct AioTimer {
  AioContext *ctx;
  AioFn *fn;
  void *opaque;
  uint64_t seq;  /* arming order, valid while armed */
  int32_t pos;   /* place in the heap; -1: not armed */
  uint8_t clock;
} AioTimer;

void aio_timer_init(AioTimer *t, AioContext *ctx, AioClock clock, AioFn *fn, void *opaque);
/* Fires once at `deadline`, ns on its clock, never earlier; armed again, it moves, behind its equals. AIO_FOREVER disarms.
 * 0, -ENOMEM (the timer is then not armed), -ESHUTDOWN, -EINVAL for a virtual clock that the context does not have. */
int aio_timer_arm(AioTimer *t, int64_t deadline);
int aio_timer_anticipate(AioTimer *t, int64_t deadline); /* as arm, but never moves a deadline later */
void aio_timer_disarm(AioTimer *t);
bool aio_timer_armed(const AioTimer *t);
int64_t aio_timer_deadline(const AioTimer *t); /* AIO_FOREVER when not armed */
int64_t aio_timer_now(const AioTimer *t);      /* its clock */

/* ---- watches: fd handlers ---------------------------------------------------------------------------------- */

typedef enum AioDir { AIO_READ, AIO_WRITE } AioDir;

typedef struct AioWatch {
  AioLink link;      /* ready list */
  AioContext *ctx;   /* where it is open, or was last, which may be gone */
  AioFn *ready;
  void *opaque;
  int fd;
  uint8_t dir;
  bool open : 1;
  bool tested : 1;   /* has a test */
  bool nests : 1;    /* set after opening: a turn inside of `ready` may call it again, which else it is spared */
  int16_t lost;      /* set before `ready` is called for the last time: -EBADF, the fd was closed behind our back; -errno:
                      * the kernel has no room for it any more, and the fd is what it was */
  uint32_t seq;      /* place in the ready list; closed: the number of ctx, for another may have its address */
  uint32_t gen;      /* of the registration that it had */
} AioWatch;

/* Calls `ready` in every turn that finds fd ready in direction dir (read: IN, HUP or ERR; write: OUT, ERR, or HUP without
 * a reader). Level-triggered. The loop never closes fd. With backend io_uring the kernel keeps the file of a watched fd
 * open: a peer sees that fd was closed when the watch is closed too, at the end of that turn. `test` is NULL, or what busy
 * polling asks whether there is something.
 * -EEXIST: the direction has a watch; -EPERM: an fd that cannot be watched, such as a regular file; -EBADF, -ELOOP,
 * -ENOMEM, -ENOSPC, -ESHUTDOWN. */
int aio_watch_open(AioWatch *w, AioContext *ctx, int fd, AioDir dir, AioFn *ready, AioTestFn *test, void *opaque);
/* The same for a watch that was open before on the same fd, and is all zero at first: while ctx is the same and the kernel
 * still has its registration, nothing is asked of it. -EBADF also when it is known that the number is another file's by
 * now; where it is not known yet, the watch is lost soon. */
int aio_watch_again(AioWatch *w, AioContext *ctx, int fd, AioDir dir, AioFn *ready, void *opaque);
/* For an fd that open has refused with -EPERM: a device that never blocks, such as /dev/null or /dev/zero, is ready in every
 * turn. Of such a watch close and stir make sense, and `fd` is -1. -EPERM: fd is no such device; -EBADF, -ESHUTDOWN. */
int aio_watch_always(AioWatch *w, AioContext *ctx, int fd, AioDir dir, AioFn *ready, void *opaque);
void aio_watch_close(AioWatch *w);
/* Calls `ready` in this turn or the next, whether the fd is ready or not. */
void aio_watch_stir(AioWatch *w);
static inline bool aio_watch_is_open(const AioWatch *w) { return w->open; }

/* An event notifier: an eventfd, or a non-blocking pipe where there is none. */
typedef struct AioNotifier {
  int rfd, wfd;
} AioNotifier;

int aio_notifier_open(AioNotifier *n);
void aio_notifier_close(AioNotifier *n);
int aio_notifier_set(const AioNotifier *n);   /* [any]; saturation is harmless */
bool aio_notifier_clear(const AioNotifier *n); /* true if it was set; empties it wholly */

/* ---- signals ----------------------------------------------------------------------------------------------- */

typedef struct AioSignal {
  AioWatch watch;
  AioTimer again;     /* the kernel had no room for the watch any more: to be tried later */
  AioNotifier notifier;
  AioFn *fn;
  void *opaque;
  int signo;  /* 0: closed */
  int place;
} AioSignal;

/* Calls fn in the turn after the signal came, once however often it came meanwhile. Any number of contexts may ask for
 * one signal. -EINVAL: one that cannot be caught; -ENOSPC; what the notifier or the watch was refused with. */
int aio_signal_open(AioSignal *s, AioContext *ctx, int signo, AioFn *fn, void *opaque);
void aio_signal_close(AioSignal *s); /* twice is fine, also after its context was closed */

/* ---- the thread pool --------------------------------------------------------------------------------------- */

enum { AIO_JOB_OVER, AIO_JOB_QUEUED, AIO_JOB_RUNNING, AIO_JOB_FINISHED };

typedef struct AioJob {
  AioLink link;     /* the pool's */
  AioContext *ctx;
  AioFn *run, *done;
  void *opaque;
  int result;       /* in done: 0, or -ECANCELED: it did not run */
  int state;        /* the pool's */
  uint32_t batch;   /* the pool's */
} AioJob;

typedef struct AioPoolStats {
  int threads, idle, min, max;
  uint32_t queued, jobs; /* jobs: whose done has not been called */
} AioPoolStats;

/* Calls run(opaque) in a thread of the context's pool, then done(opaque) in a turn of the context, once. The job is the
 * caller's memory, and must stay until then, or until the context is closed, which waits for those that run and calls no
 * more done. Within a turn or a defer section the threads may get its jobs at its end only, all at once.
 * 0, -ENOMEM, -EAGAIN when no thread can be had, -ESHUTDOWN. */
int aio_pool_submit(AioContext *ctx, AioJob *job, AioFn *run, AioFn *done, void *opaque);
/* Takes back a job that no thread has begun: done is then called with result -ECANCELED. false: too late. */
bool aio_pool_cancel(AioJob *job);
/* min threads (0) stay when there is nothing to do, at most max (64) run. -EINVAL unless 0 <= min <= max and max > 0. */
int aio_pool_set_threads(AioContext *ctx, int min, int max);
void aio_pool_stats(AioContext *ctx, AioPoolStats *out);
/* Within run: what this worker keeps from one job to the next; free_local(local) is called when the thread ends. */
void *aio_pool_local(void);
void aio_pool_set_local(void *local, AioFn *free_local);

/* ---- defer sections ---------------------------------------------------------------------------------------- */

void aio_defer_begin(AioContext *ctx);
void aio_defer_end(AioContext *ctx);
/* Calls fn(opaque) at the end of the outermost section, once however often it is asked for meanwhile; outside of any,
 * at once. A turn's dispatch is a section, and a poll runs what was deferred before it waits. */
void aio_defer(AioContext *ctx, AioFn *fn, void *opaque);

/* ---- input: bytes that have arrived ------------------------------------------------------------------------ */

typedef struct AioInput { /* all zero: empty */
  char *data;
  size_t cap, begin, end;
} AioInput;

typedef enum AioWantKind { AIO_WANT_COUNT, AIO_WANT_SOME, AIO_WANT_ALL, AIO_WANT_DELIM, AIO_WANT_NUMBER } AioWantKind;

typedef struct AioWant {
  AioWantKind kind;
  bool keep;            /* the delimiter belongs to the piece */
  size_t limit;         /* COUNT: bytes; else at most so many */
  const char *delim;    /* DELIM, the caller's */
  size_t delim_len;
  size_t skip, len;     /* found: the piece begins there, and is so long */
  size_t used;          /* found: bytes that it takes from the input; until then: where the search goes on, 0 at first */
} AioWant;

/* Looks for the piece w in the input, beyond its first `from` bytes. 1: it is there; 0: more must come; -ENODATA: nothing
 * is left, and nothing will come (eof); -EMSGSIZE: it is longer than its limit. A last piece may be shorter. */
int aio_input_find(const AioInput *in, size_t from, AioWant *w, bool eof);
size_t aio_input_size(const AioInput *in);
const char *aio_input_bytes(const AioInput *in);
char *aio_input_room(AioInput *in, size_t room); /* where so many bytes can be put; NULL: no memory */
void aio_input_added(AioInput *in, size_t n);
void aio_input_take(AioInput *in, size_t n);
void aio_input_free(AioInput *in);

/* ---- files ------------------------------------------------------------------------------------------------- */

enum { AIO_FILE_ALIGN = 4096 }; /* memory, offset and length that go past the page cache without a copy */

typedef struct AioFile AioFile;

typedef enum AioFileKind {
  AIO_FILE_OPEN, AIO_FILE_READ, AIO_FILE_WRITE, AIO_FILE_SYNC, AIO_FILE_DATASYNC, AIO_FILE_TRUNCATE, AIO_FILE_STAT
} AioFileKind;

typedef struct AioFileStat {
  int64_t size, blocks, blksize, ino, dev, nlink;
  unsigned mode, uid, gid;
  const char *type; /* "file", "directory", "block", "char", ... */
  int64_t atime, mtime, ctime; /* wall clock, ns */
} AioFileStat;

typedef struct AioFileOp {
  AioFileKind kind;
  AioFile *file;
  AioFn *done;
  void *opaque;
  char *buf;          /* READ, WRITE */
  size_t len;
  int64_t offset;     /* of bytes; TRUNCATE: the new size */
  const char *path;   /* OPEN */
  int flags, mode;    /* OPEN: of open(2), to which O_CLOEXEC is added */
  AioFileStat stat;   /* STAT: result */
  size_t moved;       /* result: bytes read or written */
  int error;          /* result: -errno of what ended it; there may be bytes all the same. 0 and fewer bytes: the end */
  /* file.c and the engines */
  AioContext *ctx;
  AioJob job;
  AioLink link, live;
  void *bounce;
  int64_t word;       /* the engine's */
  char *leg_buf;      /* what is asked of the kernel now */
  size_t leg_len;
  int64_t leg_offset;
  int leg_fd;
  uint8_t engine;     /* that has it now */
  uint8_t stage;      /* the engine's */
  uint8_t state;
} AioFileOp;

/* A file that is not open yet: an OPEN on it comes first. `direct`: past the page cache, where the file system can do
 * that, whatever offsets and lengths are used. NULL: no memory. Counted; the last unref closes. */
AioFile *aio_file_new(AioEngine engine, bool direct);
void aio_file_ref(AioFile *f);
void aio_file_unref(AioFile *f);
/* No new request is taken; the descriptor is closed when those that the kernel has are done. Twice is fine. */
void aio_file_close(AioFile *f);
bool aio_file_is_open(const AioFile *f);
int aio_file_fd(const AioFile *f);
int64_t aio_file_size(const AioFile *f); /* now, in bytes; or -errno */
/* Which engine works for this file in this context: what was asked for, or the next that the system grants. */
AioEngine aio_file_engine(AioContext *ctx, const AioFile *f);
const char *aio_engine_name(AioEngine engine);
/* Tries to do a READ or WRITE in the page cache, without waiting; for AIO_ENGINE_AUTO. true: done is not called, the
 * results are there. A turn does so much and no more, so that nobody is kept waiting. */
bool aio_file_try(AioContext *ctx, AioFileOp *op);
/* done(opaque) will be called once in a turn of the context; op and what it names stay until then, or until the context
 * is closed, which waits for the kernel and calls no more done. 0, -EBADF: closed; -ENOMEM, -ESHUTDOWN. */
int aio_file_submit(AioContext *ctx, AioFileOp *op);
/* Asks for it to end early, with error -ECANCELED; it may also end well. */
void aio_file_cancel(AioFileOp *op);

/* ---- names to addresses ------------------------------------------------------------------------------------ */

enum { AIO_ANY_FAMILY, AIO_INET, AIO_INET6, AIO_UNIX };

typedef struct AioResolve {
  AioJob job;
  const char *host, *service; /* the caller's, until done; NULL: none */
  int family;                 /* AIO_ANY_FAMILY, AIO_INET or AIO_INET6 */
  bool stream, dgram, passive;
  bool canonical;             /* the canonical name is asked for, too */
  bool numeric;               /* resolve.c */
  int error, system_errno;    /* of getaddrinfo */
  void *list;
} AioResolve;

typedef struct AioAddress {
  int family, port;
  const char *socktype; /* "stream", "dgram", "raw" */
  char addr[64];        /* with the interface of a link-local one */
} AioAddress;

/* Asks getaddrinfo. 1: answered at once, for host and service are numbers; 0: done(r) will be called in a turn of the
 * context, with r->job.result; or what aio_pool_submit says. Afterwards r->error is 0, or tells why there is no answer. */
int aio_resolve(AioContext *ctx, AioResolve *r, AioFn *done);
/* Walks the answer: *at is NULL at first. false: no more. */
bool aio_resolve_next(const AioResolve *r, const void **at, AioAddress *out);
const char *aio_resolve_name(const AioResolve *r); /* canonical; NULL: none */
const char *aio_resolve_error(const AioResolve *r);
void aio_resolve_free(AioResolve *r);

/* ---- streams ----------------------------------------------------------------------------------------------- */

typedef struct AioPiece { /* laid out as a struct iovec */
  const void *data;
  size_t len;
} AioPiece;

/* What stands between a stream and its fd, as TLS does. Reading and writing are as aio_stream_read and aio_stream_write say. */
typedef struct AioFilter {
  int64_t (*read)(struct AioFilter *f, void *buf, size_t len);
  int64_t (*write)(struct AioFilter *f, const AioPiece *v, size_t n);
  uint8_t wants[2];     /* AioDir that reading, and writing, waits for since its last -EAGAIN */
  bool more;            /* it has bytes to be read of which the fd knows nothing */
  bool held;            /* writing has begun with bytes that it did not count: they must be the next to come again */
} AioFilter;

typedef struct AioStream {
  AioInput in;          /* arrived, and not taken yet; no memory while there is nothing */
  AioFilter *filter;    /* NULL: none; the caller's */
  int fd;               /* -1: closed; with an error: by others */
  int16_t error;        /* -errno that ended reading, or 0 */
  uint8_t chunk;        /* log2 of how many bytes are asked for next */
  bool socket : 1;
  bool eof : 1;         /* there will be no more */
  bool drained : 1;     /* the last read found no more than it got: to try again now would be in vain */
  bool restore : 1;     /* was blocking when it was adopted, or later, and will be so again */
  bool shared : 1;      /* adopted, and no socket: others may make it block */
} AioStream;

/* Takes a non-blocking fd, which aio_stream_close closes. */
void aio_stream_open(AioStream *s, int fd, bool socket);
void aio_stream_close(AioStream *s); /* twice is fine */
void aio_stream_forget(AioStream *s); /* as close, and the fd stays as it is */
int aio_stream_release(AioStream *s); /* as close, but it is the caller who closes the fd */
/* Takes an fd of somebody else's: makes it non-blocking, or with `copy` a duplicate of it. 0, -EINVAL: what is no stream
 * (a file, a directory, a socket of datagrams or records), -EBADF, -EMFILE. */
int aio_stream_adopt(AioStream *s, int fd, bool copy);
/* Reads past the input: bytes, 0 at the end, -EAGAIN, -errno. */
int64_t aio_stream_read(AioStream *s, void *buf, size_t len);
/* Reads into the input, a chunk, or more if so much is wanted; also -ENOMEM, which is not the end. */
int64_t aio_stream_fill(AioStream *s, size_t want);
void aio_stream_take(AioStream *s, size_t n); /* from the input */
/* Writes what the kernel takes at once: bytes, -EAGAIN, -errno. No SIGPIPE. */
int64_t aio_stream_write(AioStream *s, const AioPiece *v, size_t n);
int aio_stream_shutdown(AioStream *s); /* its writing half; -EOPNOTSUPP: not through a filter */
typedef struct AioSigpipe {
  bool blocked, theirs;
} AioSigpipe;

/* Around what may write to a pipe or socket that nobody reads: no signal comes of it. `raised`: there may be one. */
void aio_sigpipe_block(AioSigpipe *p);
void aio_sigpipe_unblock(const AioSigpipe *p, bool raised);
/* Steps over n bytes of the pieces; returns how many pieces are through, the next is shortened. */
size_t aio_pieces_skip(AioPiece *v, size_t count, size_t n);
/* Whether a stream may be tried without waiting: so many times for each callback or coroutine entry, so that who always
 * finds something lets others run. */
bool aio_may_try(AioContext *ctx);

typedef struct AioSockaddr {
  uint32_t len;
  _Alignas(8) char data[128]; /* a struct sockaddr */
} AioSockaddr;

typedef struct AioSocketOptions {
  int backlog;
  bool reuseaddr, reuseport, nodelay;
  int keepalive;    /* seconds of silence before the first probe; -1: none, 0: the system's */
  int v6only;       /* -1: the system's */
} AioSocketOptions;

typedef struct AioPath { /* of a Unix socket, that it has made */
  uint64_t dev, ino; /* 0: none */
} AioPath;

typedef struct AioListener {
  int fd;
  AioPath path;
} AioListener;

enum { AIO_NAME_MAX = 112 };

/* A path; "@name" and "\0name" are names in the abstract namespace. -ENAMETOOLONG, -EINVAL: none, or a zero byte in it. */
int aio_sockaddr_path(AioSockaddr *a, const char *path, size_t len);
int aio_sockaddr_numeric(AioSockaddr *a, const char *host, int port); /* -EINVAL: not an address in numbers */
int aio_sockaddr_family(const AioSockaddr *a); /* AIO_INET, AIO_INET6, AIO_UNIX; AIO_ANY_FAMILY: another one */
/* As text: its length, *port is -1 for a path; -EAFNOSUPPORT. A Unix socket without a name has an empty one. */
int aio_sockaddr_text(const AioSockaddr *a, char text[AIO_NAME_MAX], int *port);
/* Mixes the families, so that one that leads nowhere holds up the other no longer than one attempt. */
void aio_sockaddr_interleave(AioSockaddr *list, unsigned n);
/* The name of a socket, or of its peer: length of the text, *port is -1 for a path; -errno. */
int aio_socket_name(int fd, bool peer, char text[AIO_NAME_MAX], int *port);
int aio_socket_listen(AioListener *l, const AioSockaddr *a, const AioSocketOptions *o);
void aio_socket_unlisten(AioListener *l, bool keep_fd); /* closes it, and removes its path */
int aio_socket_adopt(AioListener *l, int fd); /* one that listens already, which it makes non-blocking; -EINVAL: it does not */
/* fd with the listener's options, -EAGAIN: nobody is there, -errno. What befell only the one that was to be accepted is passed over. */
int aio_socket_accept(int fd);
void aio_socket_close(int fd); /* an accepted one that nobody wants */

/* ---- sockets step by step ---- */

int aio_socket_make(int family); /* AIO_INET, AIO_INET6, AIO_UNIX: an fd that is not connected, or -errno */
int aio_socket_bind(int fd, const AioSockaddr *a);
/* 0: connected; -EINPROGRESS: its outcome is known when it is writable; -EAGAIN: a Unix socket has no room now; -errno. */
int aio_socket_begin(int fd, const AioSockaddr *a);
int aio_socket_outcome(int fd); /* 0, -EINPROGRESS, -errno */
int aio_socket_hear(int fd, int backlog); /* listen(2) */
int aio_socket_shutdown(int fd, bool reading, bool writing);
int aio_host_name(char *name, size_t size);

typedef struct AioReady {
  int fd;
  unsigned wanted, ready; /* 1 << AIO_READ, 1 << AIO_WRITE */
} AioReady;

/* Which of these fds are ready now; one that is none is ready for all that was wanted. How many, or -errno. */
int aio_ready(AioReady *v, unsigned n);

typedef enum AioOptionKind { AIO_OPTION_NONE, AIO_OPTION_BOOL, AIO_OPTION_INT, AIO_OPTION_LINGER, AIO_OPTION_ERROR } AioOptionKind;

AioOptionKind aio_option_kind(const char *name, bool set); /* AIO_OPTION_NONE: there is none that can be read, or set */
/* LINGER has two values, whether and for how many seconds; ERROR is an errno, and is taken. 0, -errno. */
int aio_option_get(int fd, const char *name, int value[2]);
int aio_option_set(int fd, const char *name, const int value[2]);

int aio_socket_pair(int fds[2]);
int aio_pipe_pair(int fds[2]); /* to read, to write */

enum { AIO_HOST_MAX = 1025, AIO_SERVICE_MAX = 32 };

/* Asks getnameinfo for the name of an address, in the pool; the caller's memory until done. */
typedef struct AioLookup {
  AioJob job;
  AioSockaddr addr;
  int error, system_errno; /* of getnameinfo */
  char host[AIO_HOST_MAX], service[AIO_SERVICE_MAX];
} AioLookup;

/* done(l) will be called in a turn of the context, with l->job.result. 0, or what aio_pool_submit says. */
int aio_lookup(AioContext *ctx, AioLookup *l, AioFn *done);
const char *aio_lookup_error(const AioLookup *l);

typedef struct AioConnect AioConnect;

/* Tries the addresses in their order, each when the one before has failed or is 250 ms old; the first that answers wins.
 * 1: over; 0: done(opaque) will be called in a turn; -ENOMEM, -ESHUTDOWN. The list is copied. */
int aio_connect(AioConnect **out, AioContext *ctx, const AioSockaddr *list, unsigned n, const AioSocketOptions *o, AioFn *done,
                void *opaque);
int aio_connect_result(AioConnect *k); /* fd, now the caller's; or -errno of the first attempt */
void aio_connect_free(AioConnect *k);  /* at any time: closes what is not the caller's; NULL is fine */

/* ---- datagrams --------------------------------------------------------------------------------------------- */

enum { AIO_DATAGRAM_MAX = 65536 }; /* none of UDP is longer */

typedef struct AioDatagram {
  int fd;     /* -1: none */
  int family; /* AIO_INET, AIO_INET6, AIO_UNIX */
  AioPath path;
} AioDatagram;

/* Negative: the system's. Sockets of AIO_UNIX take what they know of. */
typedef struct AioDatagramOptions {
  int broadcast, reuseaddr, reuseport, v6only;
  int ttl, multicast_ttl, multicast_loop;
  int sndbuf, rcvbuf;      /* bytes */
  int multicast_interface; /* its number; 0: as the routes say */
} AioDatagramOptions;

/* 0, or -errno: there is no socket then. It is close-on-exec and non-blocking. */
int aio_datagram_open(AioDatagram *d, int family, const AioDatagramOptions *o);
void aio_datagram_close(AioDatagram *d, bool keep_fd); /* removes the path that it has made; twice is fine */
int aio_datagram_bind(AioDatagram *d, const AioSockaddr *a); /* 0, -errno; a path that nobody has any more is replaced */
int aio_datagram_connect(AioDatagram *d, const AioSockaddr *a); /* 0, -errno; may be done again */
/* Sends all or nothing; to NULL: to who it is connected with. 0, -EAGAIN: there is no room; -errno, which may be what
 * became of an earlier one (-ECONNREFUSED), and is told once. No SIGPIPE. */
int aio_datagram_send(AioDatagram *d, const void *data, size_t len, const AioSockaddr *to);
/* Takes one, and as much of it as fits. How long it is, be it more than that; -EAGAIN: there is none; -errno. */
int64_t aio_datagram_receive(AioDatagram *d, void *buf, size_t len, AioSockaddr *from);
/* Joins or leaves a group of multicast, on the interface of that number; 0: as the routes say. 0, -errno. Who has joined one
 * hears of no other. */
int aio_datagram_member(AioDatagram *d, bool join, const AioSockaddr *group, int interface);
int aio_interface_number(const char *name); /* -errno: there is none */

/* ---- GSource ----------------------------------------------------------------------------------------------- */

/* The loop as a GSource on the given GMainContext (NULL: the default one). GLib is loaded at the first call.
 * 0, -EBUSY when attached already, -ENOSYS without GLib, -ESHUTDOWN, -ENOMEM. */
int aio_source_attach(AioContext *ctx, void *main_context, int priority);
void aio_source_detach(AioContext *ctx);
bool aio_source_attached(const AioContext *ctx);
/* The GSource itself, borrowed, valid while the context is open; made when there is none yet, NULL on failure. */
void *aio_source_get(AioContext *ctx);
/* Prints through g_warning. */
void aio_source_warn(const char *message);
/* Runs one iteration of a GMainContext (NULL: default): 1 dispatched, 0 nothing, -ENOSYS. */
int aio_source_iterate(void *main_context, bool may_block);

/* ---- lockcnt: a count of walkers with a lock ------------------------------------------------------------- */

typedef struct AioLockCnt {
  atomic_int count;
  pthread_mutex_t mutex;
} AioLockCnt;

int aio_lockcnt_init(AioLockCnt *lc);
void aio_lockcnt_destroy(AioLockCnt *lc);
void aio_lockcnt_inc(AioLockCnt *lc);          /* begin walking */
void aio_lockcnt_dec(AioLockCnt *lc);          /* end walking */
bool aio_lockcnt_dec_and_lock(AioLockCnt *lc); /* true: was the last walker, and the lock is held */
bool aio_lockcnt_dec_if_lock(AioLockCnt *lc);  /* only if the last walker: count 0, lock held; else nothing changed */
void aio_lockcnt_lock(AioLockCnt *lc);         /* keeps new walkers out once the count is 0 */
void aio_lockcnt_unlock(AioLockCnt *lc);
void aio_lockcnt_inc_and_unlock(AioLockCnt *lc);
int aio_lockcnt_count(const AioLockCnt *lc);

/* ---- trace points ------------------------------------------------------------------------------------------ */

typedef enum AioTracePoint {
  AIO_TRACE_BH_RUN, AIO_TRACE_CO_SCHEDULE, AIO_TRACE_CO_ENTER, AIO_TRACE_TIMER_FIRE, AIO_TRACE_FD_DISPATCH,
  AIO_TRACE_WAIT_BEGIN, AIO_TRACE_WAIT_END, AIO_TRACE_POLL_GROW, AIO_TRACE_POLL_SHRINK, AIO_TRACE_POINTS
} AioTracePoint;

typedef void AioTraceFn(AioTracePoint point, const void *object, int64_t value, void *opaque);

const char *aio_trace_name(AioTracePoint point);
/* Sets or (NULL) clears the process's one trace function; set it before other threads use the loop. Off: one branch. */
void aio_trace_set(AioTraceFn *fn, void *opaque);

#endif
