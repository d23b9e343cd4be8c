/* SPDX-License-Identifier: MIT
 * Watches: who is to be called when an fd is ready, whichever backend finds that out.
 *
 * Way      aio_watch_open -> table by fd number -> backend -> aio__fd_found -> `fd_ready` -> aio__fds_run -> ready
 * Threads  home.
 * Owner    the caller; a watch is unlinked before `ready` is called and not touched after, so it may close itself.
 * Keep     closing a watch leaves the kernel's registration until it next reports: a wait per message would pay for it.
 *          So opening always verifies with the kernel: the number may belong to another file by now. Opening again
 *          trusts the registration that the watch had.
 *          The search for closed fds asks for all at once. A number that is another file's by now is found by asking for
 *          each, which costs too much to be done for many: a few at a time, one after the other.
 *          A handler that is on the C stack is masked when it is found ready, so that a nested turn can sleep. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>

#include "internal.h"

/* A busy loop looks for closed fds this often, and verifies so many numbers; an idle one does when it falls asleep. */
enum { SWEEP_TURNS = 256, SWEEP_BUSY = 8 };

static const unsigned wanted_bit[2] = {[AIO_READ] = AIO_IN, [AIO_WRITE] = AIO_OUT};

static unsigned wanted(const AioFdEntry *e) {
  unsigned events = 0;
  for (int dir = AIO_READ; dir <= AIO_WRITE; dir++)
    if (e->w[dir] && !(e->masked & 1 << dir)) events |= wanted_bit[dir];
  return events;
}

static void make_ready(AioContext *ctx, AioWatch *w) {
  if (list_linked(&w->link)) return;
  w->seq = ++ctx->fd_seq;
  list_append(&ctx->fd_ready, &w->link);
}

/* Out of the table now, told once in this turn's dispatch or the next. */
static void lose(AioContext *ctx, AioFdEntry *e, AioDir dir, int16_t why) {
  AioWatch *w = e->w[dir];
  if (!w) return;
  e->w[dir] = NULL;
  e->masked &= (uint8_t) ~(1 << dir);
  e->busy &= (uint8_t) ~(1 << dir);
  w->lost = why;
  make_ready(ctx, w);
}

static void lose_both(AioContext *ctx, AioFdEntry *e, int16_t why) {
  lose(ctx, e, AIO_READ, why);
  lose(ctx, e, AIO_WRITE, why);
}

/* Where there is no room the fd is still its owner's. Any other answer means that it is gone, for it could be watched once. */
void aio__fd_lose(AioContext *ctx, int fd, int rc) {
  lose_both(ctx, &ctx->fds[fd], rc == -ENOMEM || rc == -ENOSPC ? (int16_t)rc : -EBADF);
}

/* A backend that holds files open must not wait until it has something to tell of them. */
static void let_go(AioContext *ctx, int fd) {
  if (ctx->mon->holds) ctx->mon->update(ctx, fd, wanted(&ctx->fds[fd]), false);
}

int aio__fd_inspect(int fd, uint32_t *file) {
  struct stat st;
  if (fstat(fd, &st) < 0) return -errno;
  if (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) return -EPERM; /* always "ready": as epoll, say so */
  *file = (uint32_t)st.st_ino * 31 + (uint32_t)st.st_dev;
  return 0;
}

static int grow_table(AioContext *ctx, int fd) {
  uint32_t old = ctx->nfds;
  int rc = aio__grow((void **)&ctx->fds, &ctx->nfds, (uint32_t)fd + 1, sizeof *ctx->fds);
  for (uint32_t i = old; rc == 0 && i < ctx->nfds; i++) ctx->fds[i] = (AioFdEntry){.gen = 0};
  return rc;
}

static int room_for_tester(AioContext *ctx) {
  return aio__grow((void **)&ctx->testers, &ctx->testers_cap, ctx->ntesters + 1, sizeof *ctx->testers);
}

static void add_tester(AioContext *ctx, AioWatch *w, AioTestFn *test) {
  ctx->testers[ctx->ntesters++] = (AioTester){w, test};
  w->tested = true;
}

static void remove_tester(AioContext *ctx, AioWatch *w) {
  uint32_t i = 0;
  while (ctx->testers[i].w != w) i++;
  memmove(&ctx->testers[i], &ctx->testers[i + 1], (--ctx->ntesters - i) * sizeof *ctx->testers);
  if (i < ctx->next_tester) ctx->next_tester--;
  if (ctx->asked == w) ctx->asked = NULL;
  w->tested = false;
}

static void attach(AioWatch *w, AioContext *ctx, AioFdEntry *e) {
  e->w[w->dir] = w;
  w->ctx = ctx;
  w->open = true;
  ctx->nwatches++;
  aio__kick(ctx);
}

int aio_watch_open(AioWatch *w, AioContext *ctx, int fd, AioDir dir, AioFn *ready, AioTestFn *test, void *opaque) {
  *w = (AioWatch){.ready = ready, .opaque = opaque, .fd = fd, .dir = (uint8_t)dir};
  if (atomic_load_explicit(&ctx->closed, memory_order_relaxed)) return -ESHUTDOWN;
  if (fd < 0) return -EBADF;
  if ((uint32_t)fd >= ctx->nfds) {
    if (fcntl(fd, F_GETFD) < 0) return -errno; /* before a table is grown for a number out of the blue */
    if (grow_table(ctx, fd) < 0) return -ENOMEM;
  }
  if (test && room_for_tester(ctx) < 0) return -ENOMEM;
  AioFdEntry *e = &ctx->fds[fd];
  unsigned before = wanted(e);
  int rc = ctx->mon->update(ctx, fd, before | wanted_bit[dir], true);
  if (rc < 0) return rc;
  if (rc > 0) lose_both(ctx, e, -EBADF);
  if (e->w[dir]) return -EEXIST;
  if (test) add_tester(ctx, w, test);
  w->gen = e->gen;
  attach(w, ctx, e);
  return 0;
}

static bool was_open_in(const AioWatch *w, const AioContext *ctx, int fd) {
  return w->ctx == ctx && w->seq == ctx->number && w->fd == fd && w->gen;
}

/* The registration that it had is there still: so the number is still the file's, unless somebody else has closed it. */
static bool still_registered(const AioContext *ctx, const AioWatch *w, int fd, AioDir dir) {
  if (!was_open_in(w, ctx, fd) || (uint32_t)fd >= ctx->nfds) return false;
  const AioFdEntry *e = &ctx->fds[fd];
  return e->gen == w->gen && e->in_kernel && e->kernel & wanted_bit[dir] && !e->w[dir];
}

/* Without a registration to trust; where files are told apart, one that has come in place of another is found at once. One
 * that cannot be watched is another in any case. */
static int open_anew(AioWatch *w, AioContext *ctx, int fd, AioDir dir, AioFn *ready, void *opaque) {
  uint32_t was = was_open_in(w, ctx, fd) ? w->gen : 0;
  int rc = aio_watch_open(w, ctx, fd, dir, ready, NULL, opaque);
  if (rc == -EPERM && was) return -EBADF;
  if (rc < 0 || !was || !ctx->mon->tells_files || w->gen == was) return rc;
  aio_watch_close(w);
  return -EBADF;
}

int aio_watch_again(AioWatch *w, AioContext *ctx, int fd, AioDir dir, AioFn *ready, void *opaque) {
  if (!still_registered(ctx, w, fd, dir)) return open_anew(w, ctx, fd, dir, ready, opaque);
  w->ready = ready;
  w->opaque = opaque;
  attach(w, ctx, &ctx->fds[fd]);
  return 0;
}

int aio_watch_always(AioWatch *w, AioContext *ctx, int fd, AioDir dir, AioFn *ready, void *opaque) {
  struct stat st;
  *w = (AioWatch){.ready = ready, .opaque = opaque, .fd = -1, .dir = (uint8_t)dir};
  if (atomic_load_explicit(&ctx->closed, memory_order_relaxed)) return -ESHUTDOWN;
  if (fstat(fd, &st) < 0) return -errno;
  if (!S_ISCHR(st.st_mode)) return -EPERM;
  w->ctx = ctx;
  w->open = true;
  ctx->nwatches++;
  aio_watch_stir(w);
  return 0;
}

static void detach(AioWatch *w) {
  if (list_linked(&w->link)) list_unlink(&w->link);
  if (w->tested) remove_tester(w->ctx, w);
  w->ctx->nwatches--;
  w->seq = w->ctx->number;
  w->open = false;
}

void aio_watch_close(AioWatch *w) {
  AioContext *ctx = w->ctx;
  if (!w->open) return;
  if (w->fd < 0) {
    detach(w);
    return;
  }
  AioFdEntry *e = &ctx->fds[w->fd];
  bool registered = e->w[w->dir] == w;
  if (registered) {
    e->w[w->dir] = NULL;
    e->busy &= (uint8_t) ~(1 << w->dir);
    e->masked &= (uint8_t) ~(1 << w->dir);
  }
  detach(w);
  if (registered) let_go(ctx, w->fd);
}

void aio_watch_stir(AioWatch *w) {
  make_ready(w->ctx, w);
  aio__kick(w->ctx);
}

/* ---- what a turn does with them ---- */

bool aio__fd_found(AioContext *ctx, int fd, unsigned revents) {
  if ((uint32_t)fd >= ctx->nfds) return false;
  AioFdEntry *e = &ctx->fds[fd];
  if (revents & AIO_NVAL) return lose_both(ctx, e, -EBADF), true;
  bool has_reader = e->w[AIO_READ] && !(e->busy & 1 << AIO_READ);
  if (revents & AIO_HUP && !has_reader) revents |= AIO_OUT; /* or nobody would hear of it, and the loop would spin */
  const unsigned mine[2] = {AIO_IN | AIO_HUP | AIO_ERR, AIO_OUT | AIO_ERR};
  uint8_t found = 0, masked = e->masked;
  for (int dir = AIO_READ; dir <= AIO_WRITE; dir++) {
    if (!e->w[dir] || !(revents & mine[dir])) continue;
    if (e->busy & 1 << dir) {
      e->masked |= (uint8_t)(1 << dir);
    } else {
      found |= (uint8_t)(1 << dir);
      make_ready(ctx, e->w[dir]);
    }
  }
  /* Nobody is left for it, or only what is on the C stack. Nothing wanted at all takes it out of the kernel, which
   * reports HUP and ERR unasked; otherwise these find the direction that is left. */
  if (found && e->masked == masked) return true;
  int rc = ctx->mon->update(ctx, fd, wanted(e), false);
  if (rc) aio__fd_lose(ctx, fd, rc);
  return found || rc;
}

int aio__fds_wait(AioContext *ctx, int64_t timeout_ns) {
  ctx->stats.asks++;
  ctx->skipped = 0;
  return ctx->mon->wait(ctx, timeout_ns);
}

bool aio__fds_settle(AioContext *ctx) { return !ctx->mon->settle || ctx->mon->settle(ctx); }

static int put_fd(struct pollfd *v, int n, int fd, unsigned events) {
  v[n] = (struct pollfd){.fd = fd, .events = (short)((events & AIO_IN ? POLLIN : 0) | (events & AIO_OUT ? POLLOUT : 0))};
  return n + 1;
}

int aio__pollfds_fill(AioContext *ctx, bool with_notifier) {
  if (aio__grow(&ctx->pollfds, &ctx->pollfds_cap, ctx->nwatches + 1, sizeof(struct pollfd)) < 0) return -ENOMEM;
  int n = 0;
  if (with_notifier) n = put_fd(ctx->pollfds, n, ctx->notifier.rfd, AIO_IN);
  for (uint32_t fd = 0; ctx->nwatches && fd < ctx->nfds; fd++) {
    const AioFdEntry *e = &ctx->fds[fd];
    if (!e->w[AIO_READ] && !e->w[AIO_WRITE]) continue;
    if (with_notifier && !wanted(e)) continue; /* masked: ppoll would report its HUP all the same */
    n = put_fd(ctx->pollfds, n, (int)fd, wanted(e));
  }
  return n;
}

static void lose_fd(AioContext *ctx, int fd) {
  lose_both(ctx, &ctx->fds[fd], -EBADF);
  let_go(ctx, fd);
}

/* Goes on where the last time ended. */
static void verify_some(AioContext *ctx, const struct pollfd *v, uint32_t n, uint32_t most) {
  uint32_t i = 0, left = most < n ? most : n;
  while (i < n && v[i].fd < ctx->next_suspect) i++;
  ctx->suspects = (ctx->suspects < n ? ctx->suspects : n) - (left < ctx->suspects ? left : ctx->suspects);
  for (; left; left--, i++) {
    if (i == n) i = 0;
    ctx->next_suspect = v[i].fd + 1;
    if (!(v[i].revents & POLLNVAL) && !ctx->mon->same(ctx, v[i].fd)) lose_fd(ctx, v[i].fd);
  }
}

void aio__fds_sweep(AioContext *ctx, uint32_t most) {
  ctx->since_sweep = 0;
  int n = aio__pollfds_fill(ctx, false);
  struct pollfd *v = ctx->pollfds;
  if (n <= 0) ctx->suspects = 0;
  if (n <= 0 || poll(v, (nfds_t)n, 0) < 0) return;
  for (int i = 0; i < n; i++)
    if (v[i].revents & POLLNVAL) lose_fd(ctx, v[i].fd);
  verify_some(ctx, v, (uint32_t)n, most);
}

/* The handler has returned, and its watch may be gone. */
static void unmask(AioContext *ctx, int fd, AioDir dir) {
  if ((uint32_t)fd >= ctx->nfds) return; /* the context was closed in it */
  AioFdEntry *e = &ctx->fds[fd];
  e->busy &= (uint8_t) ~(1 << dir);
  if (!e->masked) return;
  e->masked = 0;
  int rc = wanted(e) ? ctx->mon->update(ctx, fd, wanted(e), false) : 0;
  if (rc) aio__fd_lose(ctx, fd, rc);
}

static void run(AioContext *ctx, AioWatch *w) {
  AioFn *ready = w->ready;
  void *opaque = w->opaque;
  int fd = w->fd;
  AioDir dir = (AioDir)w->dir;
  list_unlink(&w->link);
  ctx->stats.fds++;
  aio__trace(AIO_TRACE_FD_DISPATCH, w, fd);
  if (w->lost || fd < 0) {
    if (w->lost)
      detach(w);
    else
      aio_watch_stir(w); /* always ready: in the next turn, too */
    ready(opaque);
    return;
  }
  if (!w->nests) ctx->fds[fd].busy |= (uint8_t)(1 << dir);
  ready(opaque);
  unmask(ctx, fd, dir);
}

bool aio__fds_run(AioContext *ctx) {
  bool progress = false;
  uint32_t last = ctx->fd_seq;
  if (ctx->mon->blind && ++ctx->since_sweep >= SWEEP_TURNS && ctx->nwatches) aio__fds_sweep(ctx, SWEEP_BUSY);
  aio__shuffle(ctx, &ctx->fd_ready);
  while (!list_empty(&ctx->fd_ready)) {
    AioWatch *w = container_of(ctx->fd_ready.next, AioWatch, link);
    if ((int32_t)(w->seq - last) > 0) break;
    run(ctx, w);
    progress = true;
  }
  return progress;
}

/* A test is only to look, but nobody can keep it from opening and closing watches: the cursor follows. */
bool aio__fds_test(AioContext *ctx) {
  bool found = false;
  if (ctx->asking) return false; /* a nested turn asks nobody */
  ctx->asking = true;
  for (ctx->next_tester = 0; ctx->next_tester < ctx->ntesters;) {
    AioTester t = ctx->testers[ctx->next_tester++];
    ctx->asked = t.w;
    bool may_ask = !t.w->lost && !(ctx->fds[t.w->fd].busy & 1 << t.w->dir);
    if (!may_ask || !t.test(t.w->opaque) || ctx->asked != t.w) continue; /* closed by its own test: no longer there */
    make_ready(ctx, t.w);
    found = true;
  }
  ctx->asked = NULL;
  ctx->asking = false;
  return found;
}

void aio__fds_drop(AioContext *ctx) {
  while (!list_empty(&ctx->fd_ready)) detach(container_of(ctx->fd_ready.next, AioWatch, link)); /* the lost among them */
  for (uint32_t fd = 0; fd < ctx->nfds; fd++)
    for (int dir = AIO_READ; dir <= AIO_WRITE; dir++)
      if (ctx->fds[fd].w[dir] && ctx->fds[fd].w[dir]->open) detach(ctx->fds[fd].w[dir]);
  ctx->fds = aio__realloc(ctx->fds, 0);
  ctx->nfds = 0;
  ctx->pollfds = aio__realloc(ctx->pollfds, 0);
  ctx->pollfds_cap = 0;
  ctx->testers = aio__realloc(ctx->testers, 0);
  ctx->testers_cap = 0;
}
