/* SPDX-License-Identifier: MIT
 * Signals: told in the loop, to all who asked, as long as they ask, and by whichever thread they come. */
#include <signal.h>

#include "check.h"

/* wrap: sigaction eventfd */

static int sigaction_fails, eventfd_fails;

int __real_sigaction(int signo, const struct sigaction *action, struct sigaction *old);
int __wrap_sigaction(int signo, const struct sigaction *action, struct sigaction *old);
int __wrap_sigaction(int signo, const struct sigaction *action, struct sigaction *old) {
  return sigaction_fails ? errno = sigaction_fails, -1 : __real_sigaction(signo, action, old);
}

int __real_eventfd(unsigned initial, int flags);
int __wrap_eventfd(unsigned initial, int flags);
int __wrap_eventfd(unsigned initial, int flags) {
  return eventfd_fails ? errno = eventfd_fails, -1 : __real_eventfd(initial, flags);
}

static void count(void *opaque) { ++*(int *)opaque; }

static void told_once_for_many(Loop *l) {
  AioSignal s;
  int told = 0;
  CHECK_EQ(aio_signal_open(&s, l->ctx, SIGUSR1, count, &told), 0);
  CHECK_QUIET(l);
  for (int i = 0; i < 3; i++) raise(SIGUSR1);
  RUN_UNTIL(l, told);
  CHECK_EQ(told, 1);
  CHECK_QUIET(l);
  raise(SIGUSR1);
  RUN_UNTIL(l, told == 2);
  aio_signal_close(&s);
  aio_signal_close(&s);
}

static void everybody_is_told(Loop *l) {
  AioSignal a, b, other;
  int told_a = 0, told_b = 0, told_other = 0;
  CHECK_EQ(aio_signal_open(&a, l->ctx, SIGUSR1, count, &told_a), 0);
  CHECK_EQ(aio_signal_open(&b, l->ctx, SIGUSR1, count, &told_b), 0);
  CHECK_EQ(aio_signal_open(&other, l->ctx, SIGUSR2, count, &told_other), 0);
  raise(SIGUSR1);
  RUN_UNTIL(l, told_a && told_b);
  aio_signal_close(&a);
  raise(SIGUSR1);
  RUN_UNTIL(l, told_b == 2);
  CHECK_EQ(told_a, 1);
  CHECK_EQ(told_other, 0);
  aio_signal_close(&b);
  aio_signal_close(&other);
}

static volatile sig_atomic_t handled;
static void old_handler(int signo) { handled += signo == SIGUSR1; }

static void what_was_before_comes_back(Loop *l) {
  AioSignal s;
  int told = 0;
  signal(SIGUSR1, old_handler);
  CHECK_EQ(aio_signal_open(&s, l->ctx, SIGUSR1, count, &told), 0);
  handled = 0;
  raise(SIGUSR1);
  CHECK_EQ(handled, 0);
  aio_signal_close(&s);
  raise(SIGUSR1);
  CHECK_EQ(handled, 1);
  CHECK_EQ(told, 0);
  signal(SIGUSR1, SIG_DFL);
}

static void closed_by_itself(void *opaque) { aio_signal_close(opaque); }

static void closed_in_its_callback_and_with_its_context(Loop *l) {
  AioSignal s, left;
  int told = 0;
  CHECK_EQ(aio_signal_open(&s, l->ctx, SIGUSR1, closed_by_itself, &s), 0);
  raise(SIGUSR1);
  RUN_UNTIL(l, s.signo == 0);
  CHECK_EQ(aio_signal_open(&left, l->ctx, SIGUSR1, count, &told), 0);
  raise(SIGUSR1);
  aio_context_close(l->ctx);
  aio_signal_close(&left);
  CHECK_EQ(told, 0);
  CHECK_EQ(aio_signal_open(&left, l->ctx, SIGUSR1, count, &told), -ESHUTDOWN);
}

static atomic_bool sending;
static void *send_many(void *target) {
  while (atomic_load(&sending)) pthread_kill(*(pthread_t *)target, SIGUSR1), usleep(50);
  return NULL;
}

static void sleeper_is_woken_while_others_come_and_go(Loop *l) {
  AioSignal s;
  int told = 0;
  pthread_t me = pthread_self();
  CHECK_EQ(aio_signal_open(&s, l->ctx, SIGUSR1, count, &told), 0);
  atomic_store(&sending, true);
  pthread_t sender = start(send_many, &me);
  for (int i = 0, more = 0; i < 200; i++) {
    AioSignal passing;
    CHECK_EQ(aio_signal_open(&passing, l->ctx, SIGUSR1, count, &more), 0);
    turn(l, AIO_FOREVER);
    aio_signal_close(&passing);
  }
  RUN_UNTIL(l, told >= 20);
  atomic_store(&sending, false);
  pthread_join(sender, NULL);
  aio_signal_close(&s);
}

static void refusals(Loop *l) {
  AioSignal s;
  int told = 0;
  CHECK_EQ(aio_signal_open(&s, l->ctx, SIGKILL, count, &told), -EINVAL);
  CHECK_EQ(aio_signal_open(&s, l->ctx, 0, count, &told), -EINVAL);
  CHECK_EQ(aio_signal_open(&s, l->ctx, 1000, count, &told), -EINVAL);
  sigaction_fails = EINVAL;
  CHECK_EQ(aio_signal_open(&s, l->ctx, SIGUSR1, count, &told), -EINVAL);
  sigaction_fails = 0;
  eventfd_fails = EMFILE;
  CHECK_EQ(aio_signal_open(&s, l->ctx, SIGUSR1, count, &told), -EMFILE);
  eventfd_fails = 0;
  aio_signal_close(&s);
  AioSignal *many = calloc(300, sizeof *many);
  int n = 0, rc;
  while ((rc = aio_signal_open(&many[n], l->ctx, SIGUSR1, count, &told)) == 0) n++;
  CHECK_EQ(rc, -ENOSPC);
  CHECK_EQ(n, 256);
  while (n) aio_signal_close(&many[--n]);
  free(many);
}

static const Test tests[] = {
  TEST(told_once_for_many),
  TEST(everybody_is_told),
  TEST(what_was_before_comes_back),
  TEST(closed_in_its_callback_and_with_its_context),
  TEST(sleeper_is_woken_while_others_come_and_go),
  TEST(refusals),
};

CHECK_MAIN(tests, "epoll +poll +io_uring")
