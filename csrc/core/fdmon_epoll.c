/* SPDX-License-Identifier: MIT
 * The epoll backend: the kernel keeps the list of fds.
 *
 * Way      update -> epoll_ctl; wait -> epoll_wait -> aio__fd_found
 * Threads  home.
 * Keep     an event carries fd and generation: one that outlived its fd (a duplicate keeps the file open) is recognised,
 *          and since it cannot be removed by number any more, the whole set is then built anew. */
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

/* So often some of what is found is looked at: is the fd still open? And so often: is it still the same file's? */
enum { BATCH = 256, BATCHES_PER_LOOK = 4, BATCHES_PER_CHECK = 64, LOOKS = 4 };
#define NOTIFIER_DATA UINT64_MAX

static int ctl(AioContext *ctx, int op, int fd, unsigned events, uint64_t data) {
  struct epoll_event ev = {.events = (events & AIO_IN ? EPOLLIN : 0u) | (events & AIO_OUT ? EPOLLOUT : 0u), .data.u64 = data};
  return epoll_ctl(ctx->pollfd, op, fd, &ev) < 0 ? -errno : 0;
}

/* Told once of each write: what was told need not be read, nor is it looked at again before the next sleep. */
static int add_notifier(AioContext *ctx) {
  struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.u64 = NOTIFIER_DATA};
  return epoll_ctl(ctx->pollfd, EPOLL_CTL_ADD, ctx->notifier.rfd, &ev) < 0 ? -errno : 0;
}

static uint64_t data_of(int fd, uint32_t gen) { return (uint64_t)gen << 32 | (uint32_t)fd; }

static int init(AioContext *ctx) {
  ctx->pollfd = epoll_create1(EPOLL_CLOEXEC);
  if (ctx->pollfd < 0) return -errno;
  int rc = add_notifier(ctx);
  if (rc < 0) close(ctx->pollfd);
  return rc;
}

static void fini(AioContext *ctx) { close(ctx->pollfd); }

static int add(AioContext *ctx, int fd, AioFdEntry *e, unsigned events) {
  int rc = ctl(ctx, EPOLL_CTL_ADD, fd, events, data_of(fd, e->gen + 1));
  if (rc == -EEXIST) /* registered for a closed twin that came back under its number */
    rc = ctl(ctx, EPOLL_CTL_MOD, fd, events, data_of(fd, e->gen + 1));
  if (rc < 0) return rc;
  e->gen++;
  e->in_kernel = true;
  e->kernel = (uint8_t)events;
  return 0;
}

/* 1: the kernel had forgotten the fd, so it was closed and the number reused. */
static int update(AioContext *ctx, int fd, unsigned events, bool verify) {
  AioFdEntry *e = &ctx->fds[fd];
  if (!events) {
    if (e->in_kernel && ctl(ctx, EPOLL_CTL_DEL, fd, 0, 0) < 0) ctx->rebuild = true;
    e->in_kernel = false;
    return 0;
  }
  if (!e->in_kernel) return add(ctx, fd, e, events);
  if (!verify && e->kernel == events) return 0;
  int rc = ctl(ctx, EPOLL_CTL_MOD, fd, events, data_of(fd, e->gen));
  if (rc == 0) e->kernel = (uint8_t)events;
  if (rc != -ENOENT) return rc;
  e->in_kernel = false;
  rc = add(ctx, fd, e, events);
  if (rc < 0) aio__fd_lose(ctx, fd, -EBADF);
  return rc < 0 ? rc : 1;
}

static bool same(AioContext *ctx, int fd) {
  AioFdEntry *e = &ctx->fds[fd];
  if (!e->in_kernel) return true; /* nothing is expected of it */
  int rc = ctl(ctx, EPOLL_CTL_MOD, fd, e->kernel, data_of(fd, e->gen));
  if (rc == -ENOENT || rc == -EBADF) e->in_kernel = false;
  return e->in_kernel;
}

/* Returns how many did not get in again. */
static int rebuild(AioContext *ctx) {
  int fresh = epoll_create1(EPOLL_CLOEXEC), lost = 0;
  if (fresh < 0) return 0; /* the next stale event tries again */
  ctx->rebuild = false;
  dup3(fresh, ctx->pollfd, O_CLOEXEC); /* under the old number, which others may hold */
  close(fresh);
  if (add_notifier(ctx) < 0) ctx->rebuild = true;
  for (uint32_t fd = 0; fd < ctx->nfds; fd++) {
    AioFdEntry *e = &ctx->fds[fd];
    unsigned events = e->in_kernel ? e->kernel : 0;
    e->in_kernel = false;
    if (!events || (!e->w[AIO_READ] && !e->w[AIO_WRITE])) continue;
    int rc = add(ctx, (int)fd, e, events);
    if (rc < 0) aio__fd_lose(ctx, (int)fd, rc), lost++;
  }
  return lost;
}

/* Until it has been done, the notifier may be missing. */
static bool settle(AioContext *ctx) { return !ctx->rebuild; }

static bool lacks_pwait2;

static int wait_ns(AioContext *ctx, struct epoll_event *ev, int64_t ns) {
  if (ns == 0) return epoll_wait(ctx->pollfd, ev, BATCH, 0);
  if (ns == AIO_FOREVER) return epoll_wait(ctx->pollfd, ev, BATCH, -1);
#ifdef SYS_epoll_pwait2
  if (!lacks_pwait2 && ns % 1000000) {
    struct timespec ts = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    int n = (int)syscall(SYS_epoll_pwait2, ctx->pollfd, ev, BATCH, &ts, NULL, 0);
    if (n >= 0 || (errno != ENOSYS && errno != EPERM)) return n;
    lacks_pwait2 = true; /* an old kernel, or a sandbox that knows no better */
  }
#endif
  int64_t ms = ns / 1000000 + (ns % 1000000 != 0);
  return epoll_wait(ctx->pollfd, ev, BATCH, ms > INT32_MAX ? INT32_MAX : (int)ms);
}

static unsigned revents_of(uint32_t events) {
  return (events & (EPOLLIN | EPOLLPRI) ? AIO_IN : 0u) | (events & EPOLLOUT ? AIO_OUT : 0u) | (events & EPOLLERR ? AIO_ERR : 0u) |
         (events & EPOLLHUP ? AIO_HUP : 0u);
}

/* Which of n events are looked at now: the first, and how many from there on, round about. Each is among them some time. */
static int looks(AioContext *ctx, int n, int *first) {
  if (n <= 0 || ++ctx->batches % BATCHES_PER_LOOK) return 0;
  *first = (int)((ctx->batches * 2654435761u >> 16) % (uint32_t)n); /* scattered, as by D. Knuth's multiplicative hash */
  return n < LOOKS ? n : LOOKS;
}

static bool is_gone(AioContext *ctx, int fd) { /* but a duplicate keeps the file open */
  return ctx->batches % BATCHES_PER_CHECK ? fcntl(fd, F_GETFD) < 0 : !same(ctx, fd);
}

static int wait(AioContext *ctx, int64_t timeout_ns) {
  struct epoll_event ev[BATCH];
  int found = ctx->rebuild ? rebuild(ctx) : 0, first = 0;
  if (ctx->rebuild) timeout_ns = aio__earlier(timeout_ns, SWEEP_NS);
  int n = wait_ns(ctx, ev, found ? 0 : timeout_ns);
  if (n < 0) return -errno;
  int nlooks = looks(ctx, n, &first);
  for (int i = 0; i < n; i++) {
    if (ev[i].data.u64 == NOTIFIER_DATA) {
      ctx->notifier_fired = true;
      continue;
    }
    uint32_t fd = (uint32_t)ev[i].data.u64, gen = (uint32_t)(ev[i].data.u64 >> 32);
    bool current = fd < ctx->nfds && ctx->fds[fd].in_kernel && ctx->fds[fd].gen == gen;
    bool look = nlooks && (i >= first ? i - first : i - first + n) < nlooks;
    bool gone = current && look && is_gone(ctx, (int)fd);
    if (current) found += aio__fd_found(ctx, (int)fd, gone ? AIO_NVAL : revents_of(ev[i].events));
    if (!current || gone) ctx->rebuild = true;
  }
  return found;
}

const AioFdMon aio__fdmon_epoll = {.name = "epoll", .blind = true, .edge = true, .init = init, .fini = fini, .update = update,
                                    .same = same, .wait = wait, .settle = settle};
