/* SPDX-License-Identifier: MIT
 * The Linux AIO engine, for files that go past the page cache (for others its submission waits).
 *
 * Way      submit -> `waiting` -> flush, at the end of the turn or when a batch is full -> io_submit -> eventfd -> reap ->
 *          io_getevents -> `over` -> aio__file_leg_over
 * Threads  home.
 * Keep     a request that is refused is done by a thread, or fails there, alone; EAGAIN waits for an answer. What the kernel
 *          has written is seen in its ring, in memory, before the eventfd is read: busy polling needs no system call. The
 *          ring is looked at now and then when the eventfd cannot be watched.
 *          libaio is loaded when a context first asks for it; without it, or its header, another engine takes its place. */
#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#include "internal.h"

#if __has_include(<libaio.h>)

#include <libaio.h>

enum { IN_FLIGHT = 1024, BATCH = 32, BATCH_MAX = 256, TAKE = 64 };

#define LIBAIO_FUNCTIONS(X) X(io_setup) X(io_destroy) X(io_submit) X(io_getevents) X(io_cancel)

static struct {
#define X(name) __typeof__(&name) name;
  LIBAIO_FUNCTIONS(X)
#undef X
} lib;

static bool have_lib;
static pthread_once_t loaded = PTHREAD_ONCE_INIT;

static void load(void) {
  void *so = dlopen("libaio.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!so) so = dlopen("libaio.so.1t64", RTLD_NOW | RTLD_LOCAL); /* Debian 13 */
  have_lib = so != NULL;
#define X(name)                                   \
  {                                               \
    void *symbol = so ? dlsym(so, #name) : NULL;  \
    memcpy(&lib.name, &symbol, sizeof symbol);    \
    have_lib = have_lib && symbol;                \
  }
  LIBAIO_FUNCTIONS(X)
#undef X
}

typedef struct Laio {
  AioContext *ctx;
  io_context_t io;
  AioNotifier notifier;
  AioBH bh;
  AioWatch watch;
  AioLink waiting, taken, over; /* ops */
  unsigned nwaiting, used, batch;
  bool full;                    /* EAGAIN: an answer comes first */
} Laio;

enum { WAITING, TAKEN, OVER }; /* an op's stage */

/* What the kernel shares with us behind an io_context_t: its documented layout, and the only one since Linux 2.5. */
typedef struct Shared {
  unsigned id, nr;
  _Atomic(unsigned) head, tail;
  unsigned magic;
} Shared;

#define SHARED_MAGIC 0xa10a10a1

static AioFileOp *op_at(AioLink *l) { return container_of(l, AioFileOp, link); }

static bool has_answers(void *opaque) {
  const Laio *a = opaque;
  const Shared *s = (const void *)a->io;
  return s->magic == SHARED_MAGIC && atomic_load_explicit(&s->head, memory_order_relaxed) != atomic_load_explicit(&s->tail, memory_order_acquire);
}

static void over(Laio *a, AioFileOp *op, int64_t result) {
  op->word = result;
  op->stage = OVER;
  list_unlink(&op->link);
  list_append(&a->over, &op->link);
}

static void ready(void *opaque);

static bool watch(Laio *a) {
  if (aio_watch_is_open(&a->watch)) return true;
  if (aio_watch_open(&a->watch, a->ctx, a->notifier.rfd, AIO_READ, ready, has_answers, a) < 0) return false;
  a->watch.nests = true;
  a->ctx->own_watches++;
  return true;
}

/* What is to be done, or not answered yet, must be able to end the next sleep. */
static void expect_answers(Laio *a) {
  bool unwatched = a->used && !watch(a); /* the eventfd is gone, or there is no memory */
  if (!list_empty(&a->over) || has_answers(a))
    aio_bh_schedule(&a->bh);
  else if (unwatched || a->full)
    aio_bh_schedule_idle(&a->bh); /* now and then */
}

static void refuse(Laio *a, AioFileOp *op, int rc) {
  list_unlink(&op->link);
  a->nwaiting--;
  aio__file_leg_refused(op, a->notifier.wfd < 0 || rc == -ENOSYS || rc == -EPERM);
}

/* One batch. Returns how many were taken or refused; 0: no more now. */
static int hand_over(Laio *a) {
  struct iocb cbs[BATCH_MAX], *list[BATCH_MAX];
  AioLink *l = a->waiting.next;
  int n = 0;
  for (; l != &a->waiting && n < (int)a->batch && a->used + (unsigned)n < IN_FLIGHT; l = l->next, n++) {
    AioFileOp *op = op_at(l);
    if (op->kind == AIO_FILE_READ)
      io_prep_pread(&cbs[n], op->leg_fd, op->leg_buf, op->leg_len, op->leg_offset);
    else
      io_prep_pwrite(&cbs[n], op->leg_fd, op->leg_buf, op->leg_len, op->leg_offset);
    io_set_eventfd(&cbs[n], a->notifier.wfd);
    cbs[n].data = op;
    list[n] = &cbs[n];
  }
  if (!n) return 0;
  int rc = lib.io_submit(a->io, n, list);
  a->ctx->stats.submits++;
  a->full = (rc == -EAGAIN || rc == 0) && a->used > 0;
  if (a->full) return 0;
  if (rc == -EINTR) return 1;
  if (rc <= 0) return refuse(a, op_at(a->waiting.next), rc), 1; /* the first of them; or there is no answer to wait for */
  for (int i = 0; i < rc; i++) {
    AioFileOp *op = op_at(a->waiting.next);
    list_unlink(&op->link);
    list_append(&a->taken, &op->link);
    op->stage = TAKEN;
    a->nwaiting--;
    a->used++;
  }
  return rc;
}

static void flush(void *opaque) {
  Laio *a = opaque;
  while (hand_over(a) > 0) continue;
  expect_answers(a);
}

static void take_answers(Laio *a) {
  struct io_event ev[TAKE];
  struct timespec now = {0, 0};
  int n;
  do {
    n = lib.io_getevents(a->io, 0, TAKE, ev, &now);
    for (int i = 0; i < n; i++) over(a, ev[i].data, (long)ev[i].res);
    if (n > 0) a->used -= (unsigned)n, a->full = false;
  } while (n == TAKE || n == -EINTR);
}

static void unwatch(Laio *a) {
  if (!aio_watch_is_open(&a->watch)) return;
  aio_watch_close(&a->watch);
  a->ctx->own_watches--;
}

static void reap(void *opaque) {
  Laio *a = opaque;
  take_answers(a);
  if (!a->used) unwatch(a);
  if (a->nwaiting) aio_defer(a->ctx, flush, a);
  if (aio__file_legs_over(&a->over, &a->bh)) expect_answers(a);
}

static void ready(void *opaque) {
  Laio *a = opaque;
  if (a->watch.lost) a->ctx->own_watches--;
  if (a->watch.lost == -EBADF) /* somebody has closed our fd: the number may be another file's soon */
    a->notifier.rfd = a->notifier.wfd = -1;
  else
    aio_notifier_clear(&a->notifier); /* before the answers are taken: those that come later set it again */
  reap(a);
}

/* ---- the engine ---- */

static void free_engine(void *self) {
  Laio *a = self;
  aio_notifier_close(&a->notifier);
  aio__realloc(a, 0);
}

static int open_engine(AioContext *ctx, void **self) {
  pthread_once(&loaded, load);
  if (!have_lib) return -ENOSYS;
  Laio *a = aio__realloc(NULL, sizeof *a);
  if (!a) return -ENOMEM;
  *a = (Laio){.ctx = ctx, .batch = ctx->laio_batch ? ctx->laio_batch : BATCH};
  if (a->batch > BATCH_MAX) a->batch = BATCH_MAX;
  int rc = aio_notifier_open(&a->notifier);
  if (rc < 0) return aio__realloc(a, 0), rc;
  rc = a->notifier.rfd == a->notifier.wfd ? lib.io_setup(IN_FLIGHT, &a->io) : -ENOSYS; /* only an eventfd will do */
  if (rc < 0) return free_engine(a), rc;
  list_init(&a->waiting);
  list_init(&a->taken);
  list_init(&a->over);
  aio_bh_init_local(&a->bh, ctx, reap, a);
  *self = a;
  return 0;
}

static void submit(void *self, AioFileOp *op) {
  Laio *a = self;
  op->stage = WAITING;
  list_append(&a->waiting, &op->link);
  if (++a->nwaiting >= a->batch && !a->full)
    flush(a);
  else
    aio_defer(a->ctx, flush, a);
}

/* The kernel cancels next to nothing of what it has, so only what it has not is taken back. */
static void cancel(void *self, AioFileOp *op) {
  Laio *a = self;
  if (op->stage != WAITING) return;
  a->nwaiting--;
  over(a, op, -ECANCELED);
  aio_bh_schedule(&a->bh);
}

static void stop(void *self) {
  Laio *a = self;
  unwatch(a);
  lib.io_destroy(a->io); /* waits for what is under way */
}

const AioEngineOps aio__laio_engine = {.open = open_engine, .stop = stop, .free = free_engine, .submit = submit, .cancel = cancel};

#else

static int open_engine(AioContext *ctx, void **self) { return (void)ctx, (void)self, -ENOSYS; }

const AioEngineOps aio__laio_engine = {.open = open_engine};

#endif
