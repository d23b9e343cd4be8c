/* SPDX-License-Identifier: MIT
 * The poll backend: the list of fds is handed to the kernel at every wait. Nanoseconds, and no state to go stale.
 *
 * Way      wait -> aio__pollfds_fill -> ppoll -> aio__fd_found
 * Threads  home. */
#include <errno.h>
#include <poll.h>

#include "internal.h"

static int init(AioContext *ctx) {
  ctx->pollfd = -1;
  return aio__grow(&ctx->pollfds, &ctx->pollfds_cap, 16, sizeof(struct pollfd));
}

static void fini(AioContext *ctx) { (void)ctx; }

/* 1: the number belongs to another file than when it was last looked at. */
static int update(AioContext *ctx, int fd, unsigned events, bool verify) {
  AioFdEntry *e = &ctx->fds[fd];
  uint32_t before = e->gen;
  int rc = verify && events ? aio__fd_inspect(fd, &e->gen) : 0;
  return rc < 0 ? rc : (e->w[AIO_READ] || e->w[AIO_WRITE]) && e->gen != before;
}

static unsigned revents_of(short events) {
  return (events & (POLLIN | POLLPRI) ? AIO_IN : 0u) | (events & POLLOUT ? AIO_OUT : 0u) | (events & POLLERR ? AIO_ERR : 0u) |
         (events & POLLHUP ? AIO_HUP : 0u) | (events & POLLNVAL ? AIO_NVAL : 0u);
}

static int wait(AioContext *ctx, int64_t timeout_ns) {
  struct timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
  int n = aio__pollfds_fill(ctx, true), found = 0;
  if (n < 0) return n;
  struct pollfd *v = ctx->pollfds;
  if (ppoll(v, (nfds_t)n, timeout_ns == AIO_FOREVER ? NULL : &ts, NULL) < 0) return -errno;
  if (v[0].revents) ctx->notifier_fired = true;
  for (int i = 1; i < n; i++)
    if (v[i].revents) found += aio__fd_found(ctx, v[i].fd, revents_of(v[i].revents));
  return found;
}

const AioFdMon aio__fdmon_poll = {.name = "poll", .tells_files = true, .init = init, .fini = fini, .update = update,
                                   .wait = wait};
