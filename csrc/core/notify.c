/* SPDX-License-Identifier: MIT
 * The notify protocol: how a thread that publishes work wakes the one that sleeps, with no system call in between times.
 *
 * Way      producer: publish work, aio__published (fence, look at notify_me, write the eventfd)
 *          waiter:   aio__announce (notify_me, fence), look for work, sleep, aio__withdraw, aio__accept, process
 * Threads  aio_notify, aio__published and aio_notifier_set: any. The rest: home.
 * Keep     the two fences pair with one another: of producer and waiter at least one sees what the other wrote.
 *          Accept comes before processing, so what arrives later finds the eventfd clear, or (epoll) is told as another
 *          event. Whoever asks the kernel accepts before the next sleep. A producer never skips its
 *          write because `notified` is set already: that flag may be about to be cleared; only who pushes a BH on top of others
 *          leaves it to the first of them (bh.c). doc/model checks this. */
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "internal.h"

int aio_notifier_open(AioNotifier *n) {
  n->rfd = n->wfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (n->rfd >= 0) return 0;
  if (errno != ENOSYS && errno != EINVAL) return -errno;
  int fds[2];
  if (pipe2(fds, O_NONBLOCK | O_CLOEXEC) < 0) return -errno;
  n->rfd = fds[0];
  n->wfd = fds[1];
  return 0;
}

static bool is_pipe(const AioNotifier *n) { return n->wfd != n->rfd; }

void aio_notifier_close(AioNotifier *n) {
  if (n->rfd < 0) return;
  close(n->rfd);
  if (is_pipe(n)) close(n->wfd);
  n->rfd = n->wfd = -1;
}

int aio_notifier_set(const AioNotifier *n) {
  const uint64_t one = 1;
  for (;;) {
    if (write(n->wfd, &one, sizeof one) >= 0 || errno == EAGAIN) return 0; /* full: whoever reads will wake anyway */
    if (errno != EINTR) return -errno;
  }
}

bool aio_notifier_clear(const AioNotifier *n) {
  char buf[512];
  bool was_set = false;
  for (;;) {
    ssize_t got = read(n->rfd, buf, sizeof buf);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return was_set;
    was_set = true;
    if (got < (ssize_t)sizeof buf) return true; /* an eventfd gives 8 bytes, a pipe may hold more than we asked */
  }
}

void aio__announce(AioContext *ctx, unsigned n) {
  if (n == 1)
    atomic_fetch_or_explicit(&ctx->notify_me, 1, memory_order_relaxed);
  else
    atomic_fetch_add_explicit(&ctx->notify_me, n, memory_order_relaxed);
  atomic_thread_fence(memory_order_seq_cst); /* pairs with aio__published */
}

void aio__withdraw(AioContext *ctx, unsigned n) {
  if (n == 1)
    atomic_fetch_and_explicit(&ctx->notify_me, ~1u, memory_order_release);
  else
    atomic_fetch_sub_explicit(&ctx->notify_me, n, memory_order_release);
}

void aio__published(AioContext *ctx) {
  atomic_thread_fence(memory_order_seq_cst); /* pairs with aio__announce */
  if (atomic_load_explicit(&ctx->notify_me, memory_order_relaxed)) aio_notifier_set(&ctx->notifier);
}

void aio_notify(AioContext *ctx) {
  atomic_store_explicit(&ctx->notified, true, memory_order_release);
  aio__published(ctx);
}

/* An eventfd has room for 2^64 writes that nobody reads, a pipe has not. */
bool aio__accept(AioContext *ctx) {
  if (ctx->notifier_fired) {
    ctx->notifier_fired = false;
    ctx->stats.wakeups++;
    if (!ctx->mon->edge || is_pipe(&ctx->notifier)) aio_notifier_clear(&ctx->notifier);
  }
  /* Clear before looking for work, so that a later aio_notify is seen by the next turn. */
  if (!atomic_load_explicit(&ctx->notified, memory_order_relaxed)) return false;
  return atomic_exchange_explicit(&ctx->notified, false, memory_order_acq_rel);
}

void aio__kick(AioContext *ctx) {
  if (!ctx->depth && (ctx->exported || atomic_load_explicit(&ctx->notify_me, memory_order_relaxed)))
    aio_notifier_set(&ctx->notifier);
}
