/* SPDX-License-Identifier: MIT
 * The io_uring engine: requests go to the kernel together, one system call a turn, and are answered in memory.
 *
 * Way      submit -> `waiting` -> flush, at the end of the turn -> io_uring_enter -> the answers are there already, or the
 *          ring's fd becomes readable -> reap -> `over` -> aio__file_leg_over
 * Threads  home.
 * Keep     no more requests are under way than there is room for answers; cancels are, and what overflows stays with the
 *          kernel until it is fetched. The ring is watched only while the kernel has something, since what is watched is
 *          asked for in every turn; busy polling looks at the memory.
 *          A ring that the kernel refuses to serve gives back what the kernel has not taken, and gets no more. If its fd
 *          was closed behind our back, its memory is still there, and is looked at now and then. */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "ring.h"

#ifdef AIO_HAVE_URING

enum { ENTRIES = 128, LOOK_MS = 10, LARGE = 128 << 10 };
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
  bool broken;           /* nothing is handed over any more; answers may still come */
} Uring;

static AioFileOp *op_at(AioLink *l) { return container_of(l, AioFileOp, link); }

/* ---- to the kernel ---- */

/* What is in the page cache is copied by the thread that submits. So much is not too much to be copied in one call; what is
 * large, and comes behind that, is left to the kernel's threads. */
static bool overdone(const AioFileOp *op, size_t *copied) {
  bool moves = op->kind == AIO_FILE_READ || op->kind == AIO_FILE_WRITE;
  if (!moves || op->leg_len < LARGE || aio__file_goes_direct(op->file)) return false;
  *copied += op->leg_len;
  return *copied > INLINE_BYTES;
}

static void fill(struct io_uring_sqe *sqe, AioFileOp *op) {
  switch (op->kind) {
    case AIO_FILE_READ: io_uring_prep_read(sqe, op->leg_fd, op->leg_buf, (unsigned)op->leg_len, (uint64_t)op->leg_offset); break;
    case AIO_FILE_WRITE: io_uring_prep_write(sqe, op->leg_fd, op->leg_buf, (unsigned)op->leg_len, (uint64_t)op->leg_offset); break;
    default: io_uring_prep_fsync(sqe, op->leg_fd, op->kind == AIO_FILE_DATASYNC ? IORING_FSYNC_DATASYNC : 0);
  }
  io_uring_sqe_set_data(sqe, op);
}

static unsigned taken_until(const Uring *u) { return u->ring.sq.sqe_tail - io_uring_sq_ready(&u->ring); }

/* The kernel takes them in order, and not always all: `word` is where the queue ended when the op had been put into it. */
static void sort_taken(Uring *u) {
  unsigned until = taken_until(u);
  while (!list_empty(&u->fresh) && (int)(until - (unsigned)op_at(u->fresh.next)->word) >= 0) {
    AioLink *l = u->fresh.next;
    list_unlink(l);
    list_append(&u->taken, l);
  }
}

/* The kernel will not see what it has not taken yet. */
static void forget_untaken(Uring *u) {
  u->used -= io_uring_sq_ready(&u->ring);
  u->ring.sq.sqe_tail = taken_until(u);
}

static void give_back(Uring *u, bool for_good) {
  AioLink all;
  list_init(&all);
  u->broken = for_good;
  forget_untaken(u);
  list_append_all(&all, &u->fresh);
  list_append_all(&all, &u->waiting);
  while (!list_empty(&all)) {
    AioFileOp *op = op_at(all.next);
    list_unlink(&op->link);
    aio__file_leg_refused(op, for_good);
  }
}

/* All that is prepared. EBUSY, EAGAIN, ENOMEM: the kernel wants its answers taken first, or has no memory: later, if there
 * is an answer that will say when. */
static void enter(Uring *u) {
  int rc = 0;
  while (!u->broken && io_uring_sq_ready(&u->ring)) {
    rc = u->lib->io_uring_submit(&u->ring);
    u->ctx->stats.submits++;
    sort_taken(u);
    if (rc <= 0 && rc != -EINTR) break;
  }
  if (!io_uring_sq_ready(&u->ring)) return;
  bool later = rc == 0 || rc == -EBUSY || rc == -EAGAIN || rc == -ENOMEM;
  if (!later || u->used == io_uring_sq_ready(&u->ring)) give_back(u, !later);
}

static struct io_uring_sqe *next_sqe(Uring *u) {
  struct io_uring_sqe *sqe = u->broken ? NULL : io_uring_get_sqe(&u->ring);
  if (sqe || u->broken) return sqe;
  enter(u);
  return u->broken ? NULL : io_uring_get_sqe(&u->ring);
}

static void ring_ready(void *opaque);

static bool has_answers(void *opaque) {
  Uring *u = opaque;
  return io_uring_cq_ready(&u->ring) > 0;
}

static bool watch(Uring *u) {
  if (aio_watch_is_open(&u->watch)) return true;
  if (u->ring.ring_fd < 0 || aio_watch_open(&u->watch, u->ctx, u->ring.ring_fd, AIO_READ, ring_ready, has_answers, u) < 0) return false;
  u->watch.nests = true;
  u->ctx->own_watches++;
  return true;
}

/* What is to be done, or not answered yet, must be able to end the next sleep. */
static void expect_answers(Uring *u) {
  bool unwatched = u->used > io_uring_cq_ready(&u->ring) && !watch(u); /* the fd is gone, or there is no memory */
  if (has_answers(u) || !list_empty(&u->over))
    aio_bh_schedule(&u->bh);
  else if (unwatched || io_uring_sq_ready(&u->ring))
    aio_bh_schedule_idle(&u->bh); /* now and then */
}

static void flush(void *opaque) {
  Uring *u = opaque;
  size_t copied = 0;
  while (!list_empty(&u->waiting) && u->used < u->places) {
    struct io_uring_sqe *sqe = next_sqe(u);
    if (!sqe) break;
    AioFileOp *op = op_at(u->waiting.next);
    list_unlink(&op->link);
    list_append(&u->fresh, &op->link);
    fill(sqe, op);
    if (overdone(op, &copied)) sqe->flags |= IOSQE_ASYNC;
    op->stage = IN_RING;
    op->word = u->ring.sq.sqe_tail;
    u->used++;
  }
  enter(u);
  expect_answers(u);
}

/* ---- and back ---- */

static void move_over(Uring *u, AioFileOp *op, int64_t result) {
  op->word = result;
  op->stage = OVER;
  list_unlink(&op->link);
  list_append(&u->over, &op->link);
}

static unsigned take_some(Uring *u) {
  struct io_uring_cqe *cqe;
  unsigned head, n = 0;
  io_uring_for_each_cqe(&u->ring, head, cqe) {
    AioFileOp *op = io_uring_cqe_get_data(cqe);
    n++;
    if (!op) continue; /* a cancel */
    move_over(u, op, cqe->res);
  }
  io_uring_cq_advance(&u->ring, n);
  u->used -= n;
  return n;
}

static void take_answers(Uring *u) {
  do {
    take_some(u);
    if (!(IO_URING_READ_ONCE(*u->ring.sq.kflags) & IORING_SQ_CQ_OVERFLOW)) return;
  } while (u->lib->io_uring_get_events(&u->ring) >= 0 && has_answers(u));
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
  if (aio__file_legs_over(&u->over, &u->bh)) expect_answers(u);
}

static void ring_ready(void *opaque) {
  Uring *u = opaque;
  if (u->watch.lost) u->ctx->own_watches--;
  if (u->watch.lost == -EBADF) u->ring.ring_fd = u->ring.enter_ring_fd = -1; /* closed: the number may be another file's soon */
  reap(u);
}

/* ---- the engine ---- */

static int open_engine(AioContext *ctx, void **self) {
  const AioUring *lib = aio__uring();
  if (!lib) return -ENOSYS;
  Uring *u = aio__realloc(NULL, sizeof *u);
  if (!u) return -ENOMEM;
  *u = (Uring){.ctx = ctx, .lib = lib};
  struct io_uring_params params = {.flags = IORING_SETUP_CLAMP}; /* as many entries as there can be */
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
  op->stage = WAITING;
  list_append(&u->waiting, &op->link);
  aio_defer(u->ctx, flush, u);
}

static void ask_to_cancel(Uring *u, AioFileOp *op) {
  struct io_uring_sqe *sqe = next_sqe(u);
  if (!sqe) return;
  io_uring_prep_cancel(sqe, op, 0);
  io_uring_sqe_set_data(sqe, NULL);
  u->used++;
}

static void cancel(void *self, AioFileOp *op) {
  Uring *u = self;
  if (op->stage == WAITING)
    move_over(u, op, -ECANCELED);
  else if (op->stage == IN_RING)
    ask_to_cancel(u, op);
  aio_defer(u->ctx, flush, u);
}

/* Also where the kernel no longer serves the ring. */
static void wait_for_answers(Uring *u) {
  struct io_uring_cqe *cqe;
  struct pollfd ring = {.fd = u->ring.ring_fd, .events = POLLIN};
  int rc = u->broken ? -EPERM : u->lib->io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, NULL, NULL);
  if (rc < 0 && rc != -EINTR) poll(&ring, 1, LOOK_MS);
}

/* The kernel writes into memory that is about to be freed: it is asked to stop, and waited for. */
static void stop(void *self) {
  Uring *u = self;
  unwatch(u);
  list_init(&u->waiting);
  list_init(&u->fresh);
  forget_untaken(u);
  u->broken = false; /* it may be served again, or for this */
  for (AioLink *l = u->taken.next; l != &u->taken; l = l->next) ask_to_cancel(u, op_at(l));
  enter(u);
  for (take_answers(u); !list_empty(&u->taken); take_answers(u)) wait_for_answers(u);
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
