/* SPDX-License-Identifier: MIT
 * The io_uring backend: a poll request for each fd, asked for and waited for by one system call per turn.
 *
 * Way      update -> list of changes -> flush: POLL_REMOVE, POLL_ADD -> enter -> collect -> verify -> aio__fd_found
 * Threads  home. A ring serves the thread that made it alone: another home makes a new one, under the same number.
 *          One more is made when others begin to sleep on it (GLib, aio_context_pollfd), for the kind that is better for
 *          us does not wake them.
 * Keep     a request answers once; the fd is then on the list of changes and asked for anew before the next sleep, so
 *          what is still ready is told again. What was answered before a turn began may be out of date (somebody has
 *          read since): the fds are then looked at before they are told of.
 *          A request holds its file open, whatever the script closes. So what nobody wants any more is taken back when
 *          the turn ends, at once outside of turns, and with the context: the peer then sees that its fd was closed.
 *          One that is closed without a word to the loop is found by the sweep (fd.c) or by the next request (EBADF).
 *          An answer carries fd and generation: one to a request that has been taken back means nothing.
 *          The kernel finds no circle of loops that watch one another by their rings; they would spin. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "ring.h"

#ifdef AIO_HAVE_URING

enum { ENTRIES = 128, ENTRIES_MIN = 8 }; /* room for requests; a change needs two */
enum { ROUNDS = 8 }; /* useless answers forgiven within one wait */
/* Linux 6.1. A bit in memory tells that there are answers to be fetched. */
#define FLAGS (IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL)
/* They are made when we fetch them: this thread is not disturbed in whatever else it does (but once for each ring that
 * it has closed, when the kernel dissolves it). */
#define OWN_FLAGS (FLAGS | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN)
/* They are made at once, which poll(2) sees; but this thread's epoll_wait and the like fail with EINTR for it. */
#define SHARED_FLAGS (FLAGS | IORING_SETUP_COOP_TASKRUN)
#define NOTIFIER_DATA (UINT64_C(1) << 31) /* never an fd */
#define REMOVE_DATA (NOTIFIER_DATA + 1)
#define LONGEST_NS (INT64_C(1) << 58) /* 9 years: the kernel adds the time of day to it */

typedef struct Reg {  /* an fd's registration */
  uint32_t gen;       /* of the latest request */
  int32_t next;       /* in the list of changes, or NONE */
  uint8_t want;       /* AIO_IN | AIO_OUT */
  uint8_t armed;      /* the same, of the request that has not been answered; 0: there is none */
  bool renew;         /* the number may belong to another file than the request does */
  bool changed;       /* in the list */
} Reg;

enum { NONE = -1 };

struct AioFdRing {
  const AioUring *lib;
  struct io_uring ring;
  uintptr_t owner;    /* the thread that made it */
  Reg *regs;          /* by fd number */
  uint32_t cap;
  int32_t first, last; /* of the list of changes */
  uint32_t nchanged;
  bool notifier_armed;
  bool held;          /* a file is held open that nobody wants */
  bool suspect;       /* what is collected now may be out of date */
  uint32_t nsuspects; /* in ctx->pollfds */
  int found;          /* since the wait began */
  uint32_t answers;   /* in this round of it */
};

typedef struct AioFdRing Ring;

static uint64_t data_of(int fd, uint32_t gen) { return (uint64_t)gen << 32 | (uint32_t)fd; }

/* ---- the list of changes ---- */

static void change(Ring *r, int fd) {
  Reg *g = &r->regs[fd];
  if (g->changed) return;
  g->changed = true;
  g->next = NONE;
  if (r->first == NONE)
    r->first = fd;
  else
    r->regs[r->last].next = fd;
  r->last = fd;
  r->nchanged++;
}

static int take_change(Ring *r) {
  int fd = r->first;
  r->first = r->regs[fd].next;
  r->regs[fd].changed = false;
  r->nchanged--;
  return fd;
}

/* Answers were dropped, nobody knows which: everything is asked anew. */
static void change_all(AioContext *ctx) {
  Ring *r = ctx->fdring;
  for (uint32_t fd = 0; fd < r->cap; fd++) {
    if (!r->regs[fd].armed) continue;
    r->regs[fd].renew = true;
    change(r, (int)fd);
  }
  r->notifier_armed = false; /* twice at worst */
  ctx->notifier_fired = true;
}

/* ---- answers ---- */

static short poll_of(unsigned events) { return (short)((events & AIO_IN ? POLLIN : 0) | (events & AIO_OUT ? POLLOUT : 0)); }

static unsigned revents_of(int events) {
  return (events & (POLLIN | POLLPRI) ? AIO_IN : 0u) | (events & POLLOUT ? AIO_OUT : 0u) | (events & POLLERR ? AIO_ERR : 0u) |
         (events & POLLHUP ? AIO_HUP : 0u) | (events & POLLNVAL ? AIO_NVAL : 0u);
}

/* Taken back by the kernel, or there was no memory: to be asked again. Any other error is the fd's. */
static bool may_ask_again(int res) { return res == -ECANCELED || res == -ENOMEM || res == -EAGAIN || res == -EINTR; }

static Reg *current(Ring *r, uint64_t data) {
  uint32_t fd = (uint32_t)data, gen = (uint32_t)(data >> 32);
  return fd < r->cap && r->regs[fd].armed && r->regs[fd].gen == gen ? &r->regs[fd] : NULL;
}

static void notifier_answered(AioContext *ctx, int res) {
  if (res < 0 && !may_ask_again(res)) return; /* somebody closed it: no request will mend that */
  ctx->fdring->notifier_armed = false;
  if (res >= 0) ctx->notifier_fired = true;
}

static void tell(AioContext *ctx, int fd, int events) {
  Ring *r = ctx->fdring;
  uint32_t n = r->nsuspects;
  if (r->suspect && aio__grow(&ctx->pollfds, &ctx->pollfds_cap, n + 1, sizeof(struct pollfd)) == 0) {
    ((struct pollfd *)ctx->pollfds)[n] = (struct pollfd){.fd = fd, .events = poll_of(r->regs[fd].want), .revents = (short)events};
    r->nsuspects++;
  } else {
    r->found += aio__fd_found(ctx, fd, revents_of(events));
  }
}

static void verify_suspects(AioContext *ctx) {
  Ring *r = ctx->fdring;
  struct pollfd *v = ctx->pollfds;
  if (r->nsuspects && poll(v, r->nsuspects, 0) != 0) /* refused: the answers have to do */
    for (uint32_t i = 0; i < r->nsuspects; i++)
      if (v[i].revents) r->found += aio__fd_found(ctx, v[i].fd, revents_of(v[i].revents));
  r->nsuspects = 0;
}

static void answered(AioContext *ctx, uint64_t data, int res) {
  Ring *r = ctx->fdring;
  r->answers++;
  if (data == NOTIFIER_DATA) {
    notifier_answered(ctx, res);
    return;
  }
  Reg *g = current(r, data);
  if (!g) return;
  int fd = (int)(uint32_t)data;
  g->armed = 0;
  change(r, fd);
  if (res >= 0) {
    tell(ctx, fd, res);
  } else if (!may_ask_again(res)) {
    g->want = 0;
    r->found += aio__fd_found(ctx, fd, AIO_NVAL);
  }
}

static bool has_more(const Ring *r) {
  return IO_URING_READ_ONCE(*r->ring.sq.kflags) & (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN);
}

/* Takes all answers. The kernel makes some 20 at a time, and keeps those for which the ring has no room. */
static void collect(AioContext *ctx) {
  Ring *r = ctx->fdring;
  for (;;) {
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;
    io_uring_for_each_cqe(&r->ring, head, cqe) {
      answered(ctx, cqe->user_data, cqe->res);
      n++;
    }
    io_uring_cq_advance(&r->ring, n);
    if (!has_more(r)) return;
    if (r->lib->io_uring_submit_and_get_events(&r->ring) == -EBADR) change_all(ctx); /* dropped for want of memory */
    if (!io_uring_cq_ready(&r->ring)) return;
  }
}

/* Has the answers made, for only then is a file closed whose request was taken back. And nobody who sleeps on the ring
 * is to be woken by those that mean nothing. */
static void finish(Ring *r) {
  struct io_uring_cqe *cqe;
  unsigned head, n = 0;
  for (uint32_t i = 0; i < r->cap && IO_URING_READ_ONCE(*r->ring.sq.kflags) & IORING_SQ_TASKRUN; i++)
    if (r->lib->io_uring_submit_and_get_events(&r->ring) < 0) break;
  io_uring_for_each_cqe(&r->ring, head, cqe) {
    if (cqe->user_data == NOTIFIER_DATA || current(r, cqe->user_data)) break;
    n++;
  }
  io_uring_cq_advance(&r->ring, n);
}

/* ---- requests ---- */

/* Hands over what is queued, and takes answers along; the kernel may refuse more until somebody has taken them. */
static int submit(AioContext *ctx) {
  Ring *r = ctx->fdring;
  int rc = r->lib->io_uring_submit_and_get_events(&r->ring);
  if (rc == -EBADR) change_all(ctx);
  if (rc != -EBUSY) return rc < 0 ? rc : 0;
  collect(ctx);
  rc = r->lib->io_uring_submit_and_get_events(&r->ring);
  return rc < 0 ? rc : 0;
}

static int make_room(AioContext *ctx, unsigned n) {
  Ring *r = ctx->fdring;
  if (io_uring_sq_space_left(&r->ring) >= n) return 0;
  int rc = submit(ctx);
  collect(ctx);
  return io_uring_sq_space_left(&r->ring) >= n ? 0 : rc < 0 ? rc : -EAGAIN;
}

static void ask(Ring *r, int fd, unsigned events, uint64_t data) {
  struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
  io_uring_prep_poll_add(sqe, fd, (unsigned)poll_of(events));
  io_uring_sqe_set_data64(sqe, data);
}

static void take_back(Ring *r, uint64_t data) {
  struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
  io_uring_prep_poll_remove(sqe, data);
  io_uring_sqe_set_data64(sqe, REMOVE_DATA);
  sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
}

static void apply(Ring *r, int fd) {
  Reg *g = &r->regs[fd];
  if (g->armed && (g->renew || g->armed != g->want)) {
    take_back(r, data_of(fd, g->gen));
    g->armed = 0;
  }
  g->renew = false;
  if (!g->want || g->armed) return;
  ask(r, fd, g->want, data_of(fd, ++g->gen));
  g->armed = g->want;
}

/* Queues all changes but those that come up on the way. */
static int flush(AioContext *ctx) {
  Ring *r = ctx->fdring;
  int rc = make_room(ctx, 1);
  if (rc < 0) return rc;
  if (!r->notifier_armed) ask(r, ctx->notifier.rfd, AIO_IN, NOTIFIER_DATA);
  r->notifier_armed = true;
  for (uint32_t n = r->nchanged; n; n--) {
    rc = make_room(ctx, 2);
    if (rc < 0) return rc;
    apply(r, take_change(r));
  }
  r->held = false;
  return 0;
}

/* ---- the backend ---- */

static unsigned wanted_flags(const AioContext *ctx) { return ctx->exported || ctx->source ? SHARED_FLAGS : OWN_FLAGS; }

static int open_ring(const AioContext *ctx, const AioUring *lib, struct io_uring *ring) {
  struct io_uring_params params = {.flags = wanted_flags(ctx)};
  unsigned entries = ctx->ring_entries ? ctx->ring_entries : ENTRIES;
  return lib->io_uring_queue_init_params(entries < ENTRIES_MIN ? ENTRIES_MIN : entries, ring, &params);
}

static int init(AioContext *ctx) {
  const AioUring *lib = aio__uring();
  if (!lib) return -ENOSYS;
  Ring *r = aio__realloc(NULL, sizeof *r);
  if (!r) return -ENOMEM;
  *r = (Ring){.lib = lib, .owner = aio__self(), .first = NONE};
  int rc = open_ring(ctx, lib, &r->ring);
  if (rc < 0) {
    aio__realloc(r, 0);
    return rc;
  }
  ctx->fdring = r;
  ctx->pollfd = r->ring.ring_fd;
  return 0;
}

/* The kernel dissolves a ring some time after it was closed: its files are let go before, unless it is another thread's.
 * Answers that come meanwhile mean nothing. */
static void take_all_back(AioContext *ctx) {
  Ring *r = ctx->fdring;
  for (uint32_t fd = 0; fd < r->cap; fd++) {
    Reg *g = &r->regs[fd];
    if (!g->armed) continue;
    g->armed = 0;
    g->renew = true;
    change(r, (int)fd);
  }
  for (uint32_t fd = 0; fd < r->cap && make_room(ctx, 1) == 0; fd++)
    if (r->regs[fd].renew) take_back(r, data_of((int)fd, r->regs[fd].gen));
  submit(ctx);
  collect(ctx); /* a request is over, and its file closed, when its answer has been made */
}

static void fini(AioContext *ctx) {
  Ring *r = ctx->fdring;
  take_all_back(ctx);
  ctx->fdring = NULL;
  r->lib->io_uring_queue_exit(&r->ring);
  aio__realloc(r->regs, 0);
  aio__realloc(r, 0);
}

static bool ring_fits(const AioContext *ctx) {
  return ctx->fdring->owner == aio__self() && ctx->fdring->ring.flags == wanted_flags(ctx);
}

static int move_ring(AioContext *ctx) {
  Ring *r = ctx->fdring;
  struct io_uring fresh;
  int rc = open_ring(ctx, r->lib, &fresh);
  if (rc < 0) return rc;
  take_all_back(ctx);
  r->notifier_armed = false;
  int temporary = fresh.ring_fd;
  dup3(temporary, ctx->pollfd, O_CLOEXEC); /* others may hold the number */
  fresh.ring_fd = fresh.enter_ring_fd = ctx->pollfd;
  r->ring.ring_fd = r->ring.enter_ring_fd = temporary; /* exit unmaps the old one and closes this */
  r->lib->io_uring_queue_exit(&r->ring);
  r->ring = fresh;
  r->owner = aio__self();
  return 0;
}

static int grow_regs(Ring *r, int fd) {
  uint32_t old = r->cap;
  int rc = aio__grow((void **)&r->regs, &r->cap, (uint32_t)fd + 1, sizeof *r->regs);
  for (uint32_t i = old; rc == 0 && i < r->cap; i++) r->regs[i] = (Reg){.next = NONE};
  return rc;
}

static int inspect(const AioContext *ctx, int fd, uint32_t *file) {
  int rc = aio__fd_inspect(fd, file);
  return rc == 0 && fd == ctx->pollfd ? -ELOOP : rc;
}

static bool same(AioContext *ctx, int fd) {
  uint32_t file = 0;
  return inspect(ctx, fd, &file) == 0 && file == ctx->fds[fd].gen;
}

static bool settle(AioContext *ctx);

/* 1: the number belongs to another file than when it was last looked at. */
static int update(AioContext *ctx, int fd, unsigned events, bool verify) {
  Ring *r = ctx->fdring;
  bool reused = false;
  uint32_t file = 0;
  int rc = verify ? inspect(ctx, fd, &file) : 0;
  if (rc == 0) rc = grow_regs(r, fd);
  if (rc < 0) return rc;
  Reg *g = &r->regs[fd];
  if (verify) {
    reused = g->want && ctx->fds[fd].gen != file;
    ctx->fds[fd].gen = file;
    g->renew = true;
  }
  g->want = (uint8_t)events;
  change(r, fd);
  if (!events && g->armed) r->held = true;
  if (r->held && !ctx->depth) settle(ctx);
  return reused;
}

static int hand_over(AioContext *ctx) {
  int rc = flush(ctx);
  return rc == 0 ? submit(ctx) : rc;
}

/* What cannot wait for the next wait: files to be let go, and all that somebody who sleeps on the ring must hear of. */
static bool settle(AioContext *ctx) {
  Ring *r = ctx->fdring;
  if (!r || (!r->held && !ctx->exported && !ctx->source)) return true;
  bool fits = ring_fits(ctx);
  if (fits && !r->nchanged && r->notifier_armed) return true;
  r->suspect = false;
  int rc = fits ? hand_over(ctx) : -EEXIST;
  if (rc == -EEXIST && (rc = move_ring(ctx)) == 0) rc = hand_over(ctx);
  finish(r);
  return rc == 0;
}

/* Memory alone: is there a reason to ask the kernel? */
static bool peek(AioContext *ctx) {
  const Ring *r = ctx->fdring;
  return r->nchanged || !r->notifier_armed || io_uring_cq_ready(&r->ring) || has_more(r);
}

static int enter(AioContext *ctx, int64_t ns) {
  Ring *r = ctx->fdring;
  if (ns == 0) return io_uring_sq_ready(&r->ring) || has_more(r) ? submit(ctx) : 0;
  ns = aio__earlier(ns, LONGEST_NS);
  struct __kernel_timespec ts = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
  struct io_uring_cqe *cqe;
  /* Without a timeout the library would go on sleeping when a signal has come. */
  int rc = r->lib->io_uring_submit_and_wait_timeout(&r->ring, &cqe, 1, &ts, NULL);
  if (rc == -EBADR) change_all(ctx);
  return rc == -ETIME ? 0 : rc;
}

static int once(AioContext *ctx, int64_t ns) {
  Ring *r = ctx->fdring;
  r->suspect = io_uring_cq_ready(&r->ring) || has_more(r);
  r->answers = 0;
  int rc = flush(ctx);
  if (rc == 0) rc = enter(ctx, r->found || ctx->notifier_fired ? 0 : ns);
  collect(ctx);
  verify_suspects(ctx);
  return rc;
}

static int wait(AioContext *ctx, int64_t timeout_ns) {
  Ring *r = ctx->fdring;
  if (!r) return 0;
  bool sleeps = timeout_ns > 0, forever = timeout_ns == AIO_FOREVER;
  int64_t end = sleeps && !forever ? aio_clock_now(AIO_CLOCK_MONOTONIC) + timeout_ns : 0;
  r->found = 0;
  int rc = ring_fits(ctx) ? once(ctx, timeout_ns) : -EEXIST;
  if (rc == -EEXIST && (rc = move_ring(ctx)) == 0) rc = once(ctx, timeout_ns);
  /* Woken by answers that mean nothing: to go on sleeping is cheaper than another turn. */
  for (int i = 0; i < ROUNDS && sleeps && rc >= 0 && !r->found && !ctx->notifier_fired; i++) {
    int64_t left = forever ? AIO_FOREVER : end - aio_clock_now(AIO_CLOCK_MONOTONIC);
    if (left <= 0) break;
    rc = r->answers ? once(ctx, left) : -EINTR; /* of which the kernel says nothing when it was handed something */
  }
  return r->found ? r->found : rc < 0 ? rc : 0;
}

#else

static int init(AioContext *ctx) { return (void)ctx, -ENOSYS; }
static void fini(AioContext *ctx) { (void)ctx; }
static int update(AioContext *ctx, int fd, unsigned events, bool verify) {
  return (void)ctx, (void)fd, (void)events, (void)verify, -ENOSYS;
}
static int wait(AioContext *ctx, int64_t timeout_ns) { return (void)ctx, (void)timeout_ns, -ENOSYS; }
static bool same(AioContext *ctx, int fd) { return (void)ctx, (void)fd, true; }
static bool settle(AioContext *ctx) { return (void)ctx, true; }
static bool peek(AioContext *ctx) { return (void)ctx, true; }

#endif

const AioFdMon aio__fdmon_uring = {.name = "io_uring", .blind = true, .holds = true, .tells_files = true, .init = init, .fini = fini,
                                   .update = update, .same = same, .wait = wait, .settle = settle, .peek = peek};
