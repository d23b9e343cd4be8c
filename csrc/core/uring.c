/* SPDX-License-Identifier: MIT
 * The io_uring engine: requests go to the kernel together, one system call a turn, and are answered in memory.
 *
 * Way      submit -> `waiting` -> flush, at the end of the turn -> io_uring_enter -> the answers are there already, or the
 *          ring's fd becomes readable -> reap -> `over` -> aio__file_leg_over
 * Threads  home.
 * Keep     no more requests are under way than there is room for answers, so none is lost. The ring is watched only while
 *          the kernel has something, since what is watched is asked for in every turn; busy polling looks at the memory.
 *          A ring that the kernel refuses to serve gives its requests back, and has no more. */
#include <errno.h>
#include <string.h>

#include "ring.h"

#ifdef AIO_HAVE_URING

enum { ENTRIES = 128 };
enum { WAITING, IN_RING, OVER }; /* an op's stage */

typedef struct Uring {
  AioContext *ctx;
  const AioUring *lib;
  struct io_uring ring;
  AioBH bh;              /* answers have been seen, or a submission is to be tried again */
  AioWatch watch;
  AioLink waiting;       /* ops without a place in the ring */
  AioLink fresh;         /* those that the kernel has not taken yet */
  AioLink taken;         /* those it has */
  AioLink over;
  unsigned places, used; /* for answers; cancels need one as well */
  bool broken;
} Uring;

static AioFileOp *op_at(AioLink *l) { return container_of(l, AioFileOp, link); }

static void move_all(AioLink *from, AioLink *to) {
  while (!list_empty(from)) {
    AioLink *l = from->next;
    list_unlink(l);
    list_append(to, l);
  }
}

/* ---- to the kernel ---- */

static void fill(struct io_uring_sqe *sqe, AioFileOp *op) {
  switch (op->kind) {
    case AIO_FILE_READ: io_uring_prep_read(sqe, op->leg_fd, op->leg_buf, (unsigned)op->leg_len, (uint64_t)op->leg_offset); break;
    case AIO_FILE_WRITE: io_uring_prep_write(sqe, op->leg_fd, op->leg_buf, (unsigned)op->leg_len, (uint64_t)op->leg_offset); break;
    default: io_uring_prep_fsync(sqe, op->leg_fd, op->kind == AIO_FILE_DATASYNC ? IORING_FSYNC_DATASYNC : 0);
  }
  io_uring_sqe_set_data(sqe, op);
}

static void give_back(Uring *u) {
  AioLink all;
  list_init(&all);
  u->broken = true;
  for (const AioLink *l = u->fresh.next; l != &u->fresh; l = l->next) u->used--;
  move_all(&u->fresh, &all);
  move_all(&u->waiting, &all);
  while (!list_empty(&all)) {
    AioFileOp *op = op_at(all.next);
    list_unlink(&op->link);
    aio__file_leg_refused(op);
  }
}

/* All that is prepared. EBUSY and EAGAIN: the kernel wants its answers taken first, or has no memory: later. */
static void enter(Uring *u) {
  int rc = 0;
  while (io_uring_sq_ready(&u->ring)) {
    rc = u->lib->io_uring_submit(&u->ring);
    u->ctx->stats.submits++;
    if (rc <= 0 && rc != -EINTR) break;
  }
  if (!io_uring_sq_ready(&u->ring))
    move_all(&u->fresh, &u->taken);
  else if (rc == -EBUSY || rc == -EAGAIN || rc == -ENOMEM || rc == 0)
    aio_bh_schedule(&u->bh);
  else
    give_back(u);
}

static void ring_ready(void *opaque);

static bool has_answers(void *opaque) {
  Uring *u = opaque;
  return io_uring_cq_ready(&u->ring) > 0;
}

/* What is not answered yet must be able to end the next sleep. */
static void expect_answers(Uring *u) {
  if (io_uring_cq_ready(&u->ring) || !list_empty(&u->over)) aio_bh_schedule(&u->bh);
  if (u->used <= io_uring_cq_ready(&u->ring) || aio_watch_is_open(&u->watch)) return;
  if (aio_watch_open(&u->watch, u->ctx, u->ring.ring_fd, AIO_READ, ring_ready, has_answers, u) == 0)
    u->ctx->own_watches++;
  else
    aio_bh_schedule_idle(&u->bh); /* no memory: look now and then */
}

static void flush(void *opaque) {
  Uring *u = opaque;
  while (!list_empty(&u->waiting) && u->used < u->places) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (!sqe) enter(u), sqe = u->broken ? NULL : io_uring_get_sqe(&u->ring);
    if (!sqe) break;
    AioFileOp *op = op_at(u->waiting.next);
    list_unlink(&op->link);
    list_append(&u->fresh, &op->link);
    fill(sqe, op);
    op->stage = IN_RING;
    u->used++;
  }
  if (!u->broken) enter(u);
  expect_answers(u);
}

/* ---- and back ---- */

static void move_over(Uring *u, AioFileOp *op, int64_t result) {
  op->word = result;
  op->stage = OVER;
  list_unlink(&op->link);
  list_append(&u->over, &op->link);
}

static void take_answers(Uring *u) {
  struct io_uring_cqe *cqe;
  unsigned head, n = 0;
  if (*u->ring.sq.kflags & IORING_SQ_CQ_OVERFLOW) u->lib->io_uring_get_events(&u->ring);
  io_uring_for_each_cqe(&u->ring, head, cqe) {
    AioFileOp *op = io_uring_cqe_get_data(cqe);
    n++;
    if (!op) continue; /* a cancel */
    move_over(u, op, cqe->res);
  }
  io_uring_cq_advance(&u->ring, n);
  u->used -= n;
}

static void unwatch(Uring *u) {
  if (!aio_watch_is_open(&u->watch)) return;
  aio_watch_close(&u->watch);
  u->ctx->own_watches--;
}

static void reap(void *opaque) {
  Uring *u = opaque;
  take_answers(u);
  if (!u->used) unwatch(u);
  if (!list_empty(&u->waiting) || io_uring_sq_ready(&u->ring)) aio_defer(u->ctx, flush, u);
  aio__file_legs_over(&u->over, &u->bh);
}

static void ring_ready(void *opaque) {
  Uring *u = opaque;
  if (u->watch.lost) u->ctx->own_watches--; /* somebody has closed our fd */
  reap(u);
}

/* ---- the engine ---- */

static int open_engine(AioContext *ctx, void **self) {
  const AioUring *lib = aio__uring();
  if (!lib) return -ENOSYS;
  Uring *u = aio__realloc(NULL, sizeof *u);
  if (!u) return -ENOMEM;
  *u = (Uring){.ctx = ctx, .lib = lib};
  struct io_uring_params params = {.flags = 0};
  int rc = lib->io_uring_queue_init_params(ctx->ring_entries ? ctx->ring_entries : ENTRIES, &u->ring, &params);
  if (rc == 0 && !(params.features & IORING_FEAT_RW_CUR_POS)) { /* before Linux 5.6, without plain reads and writes */
    lib->io_uring_queue_exit(&u->ring);
    rc = -ENOSYS;
  }
  if (rc < 0) return aio__realloc(u, 0), rc;
  list_init(&u->waiting);
  list_init(&u->fresh);
  list_init(&u->taken);
  list_init(&u->over);
  u->places = params.cq_entries;
  aio_bh_init_local(&u->bh, ctx, reap, u);
  *self = u;
  return 0;
}

static void submit(void *self, AioFileOp *op) {
  Uring *u = self;
  if (u->broken) {
    aio__file_leg_refused(op);
    return;
  }
  op->stage = WAITING;
  list_append(&u->waiting, &op->link);
  aio_defer(u->ctx, flush, u);
}

static void ask_to_cancel(Uring *u, uint64_t data, unsigned flags) {
  struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
  if (!sqe) enter(u), sqe = u->broken ? NULL : io_uring_get_sqe(&u->ring);
  if (!sqe) return;
  io_uring_prep_cancel64(sqe, data, (int)flags);
  io_uring_sqe_set_data(sqe, NULL);
  u->used++;
}

static void cancel(void *self, AioFileOp *op) {
  Uring *u = self;
  if (op->stage == WAITING)
    move_over(u, op, -ECANCELED);
  else if (op->stage == IN_RING)
    ask_to_cancel(u, (uint64_t)(uintptr_t)op, 0);
  aio_defer(u->ctx, flush, u);
}

/* The kernel writes into memory that is about to be freed: it is asked to stop, and waited for. */
static void stop(void *self) {
  Uring *u = self;
  unwatch(u);
  for (AioLink *l = u->taken.next; l != &u->taken; l = l->next) ask_to_cancel(u, (uint64_t)(uintptr_t)op_at(l), 0);
  if (io_uring_sq_ready(&u->ring)) enter(u);
  while (!list_empty(&u->taken) && !u->broken) {
    struct io_uring_cqe *cqe;
    int rc = u->lib->io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, NULL, NULL);
    take_answers(u);
    if (rc < 0 && rc != -EINTR && rc != -EBUSY && rc != -EAGAIN) break;
  }
}

static void free_engine(void *self) {
  Uring *u = self;
  u->lib->io_uring_queue_exit(&u->ring);
  aio__realloc(u, 0);
}

const AioEngineOps aio__uring_engine = {.open = open_engine, .stop = stop, .free = free_engine, .submit = submit, .cancel = cancel};

#else

static int open_engine(AioContext *ctx, void **self) { return (void)ctx, (void)self, -ENOSYS; }

const AioEngineOps aio__uring_engine = {.open = open_engine};

#endif
