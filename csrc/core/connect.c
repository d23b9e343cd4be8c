/* SPDX-License-Identifier: MIT
 * Connecting: one attempt after the other, side by side when they take long, until one succeeds.
 *
 * Way      aio_connect -> start_next -> connect(2) -> watch, timer -> on_writable -> win, or fail and start_next -> done
 * Threads  home.
 * Owner    an AioConnect is the caller's from aio_connect on; its descriptors are its own, up to aio_connect_result.
 * Keep     done is called once, as the last thing, and never within aio_connect.
 * Source   RFC 8305, Happy Eyeballs. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

#define ATTEMPT_NS INT64_C(250000000)
#define RETRY_NS INT64_C(5000000) /* a Unix socket with a full backlog tells nobody when there is room */

typedef struct Attempt {
  AioConnect *k;
  AioWatch watch;
  int fd; /* -1: over */
} Attempt;

struct AioConnect {
  AioContext *ctx;
  AioFn *done;
  void *opaque;
  AioTimer timer;
  AioSocketOptions opts;
  Attempt *attempts;
  AioSockaddr *list;
  unsigned n, next, alive;
  int fd, error; /* of the winner; of the first that failed */
  bool over;
};

static void end_attempt(Attempt *a) {
  if (a->fd < 0) return;
  aio_watch_close(&a->watch);
  close(a->fd);
  a->fd = -1;
  a->k->alive--;
}

static void end_all(AioConnect *k) {
  aio_timer_disarm(&k->timer);
  for (unsigned i = 0; i < k->next; i++) end_attempt(&k->attempts[i]);
}

static void win(AioConnect *k, Attempt *a) {
  aio_watch_close(&a->watch);
  k->fd = a->fd;
  a->fd = -1;
  k->alive--;
  k->over = true;
  end_all(k);
}

static void failed(AioConnect *k, int error) {
  if (!k->error) k->error = error;
}

static void on_writable(void *opaque);

/* 1: connected; 0: under way; -errno; -EAGAIN: to be tried again. */
static int start(AioConnect *k, Attempt *a, const AioSockaddr *to) {
  *a = (Attempt){.k = k};
  int rc = aio__socket_connect(to, &k->opts, &a->fd);
  if (a->fd < 0) return rc;
  k->alive++;
  if (rc == 0) return 1;
  if (rc == -EINPROGRESS) rc = aio_watch_open(&a->watch, k->ctx, a->fd, AIO_WRITE, on_writable, NULL, a);
  if (rc < 0) end_attempt(a);
  return rc;
}

/* Until one is under way, or there is no more. */
static void start_next(AioConnect *k) {
  while (k->next < k->n && !k->over) {
    unsigned i = k->next++;
    int rc = start(k, &k->attempts[i], &k->list[i]);
    if (rc == 1) {
      win(k, &k->attempts[i]);
      return;
    }
    if (rc == -EAGAIN) k->next = i;
    if (rc == 0 || rc == -EAGAIN) {
      int64_t wait = rc ? RETRY_NS : ATTEMPT_NS;
      if (k->next < k->n) rc = aio_timer_arm(&k->timer, aio_clock_now(AIO_CLOCK_MONOTONIC) + wait);
      if (rc == 0 || rc == -EAGAIN) return;
    }
    failed(k, rc);
  }
  if (!k->alive) k->over = true;
}

static void go_on(AioConnect *k) {
  start_next(k);
  if (k->over) k->done(k->opaque);
}

static void on_timer(void *opaque) { go_on(opaque); }

static void on_writable(void *opaque) {
  Attempt *a = opaque;
  AioConnect *k = a->k;
  int rc = a->watch.lost ? a->watch.lost : aio__socket_error(a->fd);
  if (rc == -EINPROGRESS) return;
  if (rc == 0) {
    win(k, a);
    k->done(k->opaque);
    return;
  }
  if (a->watch.lost == -EBADF) a->fd = -1, k->alive--; /* the number is somebody else's */
  end_attempt(a);
  failed(k, rc);
  go_on(k);
}

int aio_connect(AioConnect **out, AioContext *ctx, const AioSockaddr *list, unsigned n, const AioSocketOptions *o, AioFn *done,
                void *opaque) {
  *out = NULL;
  if (aio_context_closed(ctx)) return -ESHUTDOWN;
  AioConnect *k = aio__realloc(NULL, sizeof *k + n * (sizeof *k->attempts + sizeof *k->list));
  if (!k) return -ENOMEM;
  *k = (AioConnect){.ctx = ctx, .done = done, .opaque = opaque, .opts = *o, .n = n, .fd = -1};
  k->list = (AioSockaddr *)(k + 1);
  k->attempts = (Attempt *)(k->list + n);
  if (n) memcpy(k->list, list, n * sizeof *list);
  aio_context_ref(ctx);
  aio_timer_init(&k->timer, ctx, AIO_CLOCK_MONOTONIC, on_timer, k);
  *out = k;
  start_next(k);
  return k->over;
}

int aio_connect_result(AioConnect *k) {
  int fd = k->fd;
  k->fd = -1;
  return fd >= 0 ? fd : k->error ? k->error : -EADDRNOTAVAIL;
}

void aio_connect_free(AioConnect *k) {
  if (!k) return;
  end_all(k);
  if (k->fd >= 0) close(k->fd);
  aio_context_unref(k->ctx);
  aio__realloc(k, 0);
}
