/* SPDX-License-Identifier: MIT
 * Unix signals: a handler that does nothing but set notifiers, which the loop watches like any other fd.
 *
 * Way      aio_signal_open -> sigaction, a place in `places`; signal -> on_signal -> eventfd -> the turn -> ready -> fn
 * Threads  open and close: home. on_signal: whichever thread the signal interrupts.
 * Owner    the caller. The action that stood before comes back with the last AioSignal of its number.
 *          A watch that the kernel has no room for any more is opened again, later if need be: a signal is not missed for it.
 * Keep     on_signal touches only `places`, and is counted while it does: whoever takes a place away waits until nobody
 *          can be about to write to its fd, whose number may be another file's the next moment. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "internal.h"

enum { PLACES = 256, SIGNALS = 65 };
#define AGAIN_NS INT64_C(50000000)

static struct {
  atomic_int signo; /* 0: free */
  atomic_int wfd;
} places[PLACES];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* everything below, and changes of `places` */
static unsigned users[SIGNALS];
static struct sigaction before[SIGNALS];
static atomic_uint handlers_running; /* lock-free, as a handler needs it */

static void on_signal(int signo) {
  int saved = errno;
  atomic_fetch_add(&handlers_running, 1);
  for (int i = 0; i < PLACES; i++) {
    if (atomic_load(&places[i].signo) != signo) continue;
    AioNotifier n = {-1, atomic_load(&places[i].wfd)};
    if (n.wfd >= 0) aio_notifier_set(&n);
  }
  atomic_fetch_sub(&handlers_running, 1);
  errno = saved;
}

static int take_place(int signo, int wfd) {
  for (int i = 0; i < PLACES; i++) {
    if (atomic_load(&places[i].signo)) continue;
    atomic_store(&places[i].wfd, wfd);
    atomic_store(&places[i].signo, signo);
    return i;
  }
  return -ENOSPC;
}

static void leave_place(int place) {
  atomic_store(&places[place].wfd, -1);
  atomic_store(&places[place].signo, 0);
  while (atomic_load(&handlers_running)) sched_yield();
}

static int catch(int signo) {
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  sigfillset(&action.sa_mask);
  if (users[signo]) return users[signo]++, 0;
  if (sigaction(signo, &action, &before[signo]) < 0) return -errno;
  users[signo] = 1;
  return 0;
}

static void release(int signo) {
  if (--users[signo] == 0) sigaction(signo, &before[signo], NULL);
}

static void ready(void *opaque);

static int watch(AioSignal *s) {
  return aio_watch_open(&s->watch, s->again.ctx, s->notifier.rfd, AIO_READ, ready, NULL, s);
}

static void watch_again(void *opaque) {
  AioSignal *s = opaque;
  if (watch(s) < 0) aio_timer_arm(&s->again, aio_timer_now(&s->again) + AGAIN_NS);
}

static void ready(void *opaque) {
  AioSignal *s = opaque;
  if (s->watch.lost) watch_again(s);
  if (aio_notifier_clear(&s->notifier)) s->fn(s->opaque);
}

int aio_signal_open(AioSignal *s, AioContext *ctx, int signo, AioFn *fn, void *opaque) {
  s->signo = 0;
  if (signo < 1 || signo >= SIGNALS) return -EINVAL;
  int rc = aio_notifier_open(&s->notifier);
  if (rc < 0) return rc;
  s->fn = fn;
  s->opaque = opaque;
  aio_timer_init(&s->again, ctx, AIO_CLOCK_MONOTONIC, watch_again, s);
  rc = watch(s);
  if (rc < 0) goto no_watch;
  pthread_mutex_lock(&lock);
  rc = s->place = take_place(signo, s->notifier.wfd);
  if (rc >= 0 && (rc = catch(signo)) < 0) leave_place(s->place);
  pthread_mutex_unlock(&lock);
  if (rc < 0) goto no_signal;
  s->signo = signo;
  return 0;
no_signal:
  aio_watch_close(&s->watch);
no_watch:
  aio_notifier_close(&s->notifier);
  return rc;
}

void aio_signal_close(AioSignal *s) {
  if (!s->signo) return;
  pthread_mutex_lock(&lock);
  release(s->signo);
  leave_place(s->place);
  pthread_mutex_unlock(&lock);
  s->signo = 0;
  aio_timer_disarm(&s->again);
  aio_watch_close(&s->watch);
  aio_notifier_close(&s->notifier);
}
