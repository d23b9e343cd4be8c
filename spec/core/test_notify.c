/* SPDX-License-Identifier: MIT
 * Notifications: none lost, none swallowed, and no system call while nobody sleeps. */
#include <poll.h>
#include <sys/eventfd.h>

#include "check.h"

/* wrap: write read eventfd pipe2 */

static atomic_long writes, reads;
static atomic_int interruptions; /* of reads and writes */
static int eventfd_fails, pipe_fails;

static bool interrupted(void) {
  int n = atomic_load(&interruptions);
  while (n > 0 && !atomic_compare_exchange_weak(&interruptions, &n, n - 1)) {}
  if (n > 0) errno = EINTR;
  return n > 0;
}

ssize_t __real_write(int fd, const void *buf, size_t n);
ssize_t __wrap_write(int fd, const void *buf, size_t n);
ssize_t __wrap_write(int fd, const void *buf, size_t n) {
  atomic_fetch_add(&writes, 1);
  return interrupted() ? -1 : __real_write(fd, buf, n);
}

ssize_t __real_read(int fd, void *buf, size_t n);
ssize_t __wrap_read(int fd, void *buf, size_t n);
ssize_t __wrap_read(int fd, void *buf, size_t n) {
  atomic_fetch_add(&reads, 1);
  return interrupted() ? -1 : __real_read(fd, buf, n);
}

int __real_eventfd(unsigned initial, int flags);
int __wrap_eventfd(unsigned initial, int flags);
int __wrap_eventfd(unsigned initial, int flags) {
  return eventfd_fails ? errno = eventfd_fails, -1 : __real_eventfd(initial, flags);
}

int __real_pipe2(int fds[2], int flags);
int __wrap_pipe2(int fds[2], int flags);
int __wrap_pipe2(int fds[2], int flags) { return pipe_fails ? errno = pipe_fails, -1 : __real_pipe2(fds, flags); }

/* ---- the notifier by itself ---- */

static bool readable(int fd) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  CHECK(poll(&p, 1, 0) >= 0);
  return p.revents & POLLIN;
}

static void set_and_clear(AioNotifier *n, long times) {
  CHECK(!aio_notifier_clear(n));
  CHECK_EQ(aio_notifier_set(n), 0);
  CHECK(readable(n->rfd));
  CHECK(aio_notifier_clear(n));
  CHECK(!readable(n->rfd));
  CHECK(!aio_notifier_clear(n));
  for (long i = 0; i < times; i++) CHECK_EQ(aio_notifier_set(n), 0); /* full is as good as set */
  CHECK(aio_notifier_clear(n)); /* and flushing is finite */
  CHECK(!readable(n->rfd));
  atomic_store(&interruptions, 3);
  CHECK_EQ(aio_notifier_set(n), 0);
  CHECK_EQ(atomic_load(&interruptions), 0);
  atomic_store(&interruptions, 3);
  CHECK(aio_notifier_clear(n));
  CHECK_EQ(atomic_load(&interruptions), 0);
}

static void eventfd_notifier(Loop *l) {
  AioNotifier n;
  (void)l;
  CHECK_EQ(aio_notifier_open(&n), 0);
  CHECK_EQ(n.rfd, n.wfd);
  set_and_clear(&n, 1000);
  uint64_t almost_full = UINT64_MAX - 1;
  CHECK(write(n.wfd, &almost_full, 8) == 8);
  CHECK_EQ(aio_notifier_set(&n), 0);
  CHECK(aio_notifier_clear(&n));
  CHECK(!readable(n.rfd));
  aio_notifier_close(&n);
  aio_notifier_close(&n);
}

static void pipe_notifier(Loop *l) {
  AioNotifier n;
  (void)l;
  eventfd_fails = ENOSYS;
  int rc = aio_notifier_open(&n);
  eventfd_fails = 0;
  CHECK_EQ(rc, 0);
  CHECK(n.rfd != n.wfd);
  set_and_clear(&n, 20000); /* more than a pipe holds */
  aio_notifier_close(&n);
  aio_notifier_close(&n);
}

static void refusals(Loop *l) {
  static const int errors[] = {EMFILE, ENFILE, ENOMEM};
  AioContext *ctx;
  AioNotifier n;
  (void)l;
  for (size_t i = 0; i < COUNT(errors); i++) {
    eventfd_fails = errors[i];
    int rc = aio_notifier_open(&n), made = aio_context_new(&ctx, NULL);
    eventfd_fails = 0;
    CHECK_EQ(rc, -errors[i]);
    CHECK_EQ(made, -errors[i]);
    CHECK(!ctx);
    aio_notifier_close(&n);
    eventfd_fails = ENOSYS;
    pipe_fails = errors[i];
    rc = aio_notifier_open(&n);
    made = aio_context_new(&ctx, NULL);
    eventfd_fails = pipe_fails = 0;
    CHECK_EQ(rc, -errors[i]);
    CHECK_EQ(made, -errors[i]);
    CHECK(!ctx);
  }
}

/* ---- notifiers in the loop ---- */

typedef struct Bell {
  AioNotifier n;
  AioWatch w;
  int rung, again;
} Bell;

static void ring(void *opaque) {
  Bell *b = opaque;
  CHECK(aio_notifier_clear(&b->n));
  b->rung++;
  if (b->again-- > 0) aio_notifier_set(&b->n);
}

static void hang(Bell *b, Loop *l) {
  *b = (Bell){.rung = 0};
  CHECK_EQ(aio_notifier_open(&b->n), 0);
  CHECK_EQ(aio_watch_open(&b->w, l->ctx, b->n.rfd, AIO_READ, ring, NULL, b), 0);
}

static void unhang(Bell *b) {
  aio_watch_close(&b->w);
  aio_notifier_close(&b->n);
}

static void added_and_removed(Loop *l) {
  Bell b;
  hang(&b, l);
  CHECK_QUIET(l);
  aio_notifier_set(&b.n);
  aio_notifier_set(&b.n);
  CHECK(turn(l, AIO_FOREVER)); /* set before the wait */
  CHECK_EQ(b.rung, 1);
  CHECK_QUIET(l);
  aio_watch_close(&b.w);
  aio_notifier_set(&b.n);
  CHECK_QUIET(l);
  CHECK_EQ(b.rung, 1);
  unhang(&b);
  CHECK_RESTS(l);
}

static void two_notifiers_exact_counts(Loop *l) {
  Bell a, b;
  hang(&a, l);
  hang(&b, l);
  for (int i = 0; i < 100; i++) {
    if (i % 2 == 0) aio_notifier_set(&a.n);
    if (i % 5 == 0) aio_notifier_set(&b.n);
    turn(l, 0);
    CHECK_QUIET(l);
  }
  CHECK_EQ(a.rung, 50);
  CHECK_EQ(b.rung, 20);
  unhang(&a);
  unhang(&b);
}

static void handler_sets_its_own_notifier(Loop *l) {
  Bell b;
  hang(&b, l);
  b.again = 9;
  aio_notifier_set(&b.n);
  for (int i = 1; i <= 10; i++) {
    CHECK(turn(l, AIO_FOREVER));
    CHECK_EQ(b.rung, i);
  }
  CHECK_QUIET(l);
  unhang(&b);
}

typedef struct Ringer {
  Bell *bell;
  atomic_int *heard;
  int times;
} Ringer;

static void *ring_often(void *opaque) {
  Ringer *r = opaque;
  for (int i = 0; i < r->times; i++) {
    while (atomic_load(r->heard) < i) sched_yield();
    aio_notifier_set(&r->bell->n);
  }
  return NULL;
}

static void set_by_another_thread(Loop *l) {
  Bell b;
  atomic_int heard = 0;
  Ringer r = {&b, &heard, (int)check_scale(5000)};
  hang(&b, l);
  pthread_t t = start(ring_often, &r);
  while (b.rung < r.times) {
    turn(l, AIO_FOREVER);
    atomic_store(&heard, b.rung);
  }
  pthread_join(t, NULL);
  CHECK_QUIET(l);
  unhang(&b);
}

/* ---- aio_notify ---- */

typedef struct Baton {
  AioContext *ctx;
  atomic_long asked, answered;
  long times;
} Baton;

static void *notify_often(void *opaque) {
  Baton *b = opaque;
  for (long i = 1; i <= b->times; i++) {
    atomic_store_explicit(&b->asked, i, memory_order_relaxed);
    aio_notify(b->ctx);
    while (atomic_load(&b->answered) < i) sched_yield();
  }
  return NULL;
}

/* A flag of our own and aio_notify: the turn returns, and the flag is seen. */
static void no_notification_is_lost(Loop *l) {
  Baton b = {.ctx = l->ctx, .times = check_scale(20000)};
  pthread_t t = start(notify_often, &b);
  for (long seen = 0; seen < b.times;) {
    bool progress = turn(l, AIO_FOREVER);
    if (!is_glib(l)) CHECK(!progress); /* being notified is none */
    seen = atomic_load_explicit(&b.asked, memory_order_relaxed);
    atomic_store(&b.answered, seen);
  }
  pthread_join(t, NULL);
  CHECK_QUIET(l);
}

/* Epoll tells of each write once, which saves the read. */
static void epoll_spares_the_read(Loop *l) {
  bool epoll = strcmp(aio_context_backend(l->ctx), "epoll") == 0;
  long before = atomic_load(&reads);
  no_notification_is_lost(l);
  CHECK_EQ(atomic_load(&reads) == before, epoll);
}

static void *shoot_often(void *opaque) {
  Baton *b = opaque;
  for (long i = 0; i < b->times; i++) aio_bh_oneshot(b->ctx, note, "");
  return NULL;
}

static void *schedule_it(void *opaque) {
  aio_bh_schedule(opaque);
  return NULL;
}

static void let_another_thread_schedule(void *opaque) {
  long before = atomic_load(&writes);
  pthread_join(start(shoot_often, opaque), NULL);
  CHECK_EQ(atomic_load(&writes), before);
}

static void no_system_call_while_awake(Loop *l) {
  Baton b = {.ctx = l->ctx, .times = 1000};
  aio_bh_oneshot(l->ctx, let_another_thread_schedule, &b);
  turn(l, AIO_FOREVER); /* whatever was announced before is withdrawn by now */
  turn(l, AIO_FOREVER);
  CHECK_QUIET(l);
  aio_bh_oneshot(l->ctx, let_another_thread_schedule, &b);
  turn(l, 0);
  turn(l, 0);
  CHECK_QUIET(l);
}

/* Turns that do not wait look at what another thread's sleep on the exported fd may need, and say that they did. */
static void does_not_swallow(Loop *l) {
  Baton b = {.ctx = l->ctx, .times = 1};
  int fd = aio_context_pollfd(l->ctx);
  CHECK(fd >= 0);
  CHECK(!readable(fd));
  for (int i = 0; i < 100; i++) {
    uint64_t before = runs(l);
    pthread_join(start(shoot_often, &b), NULL);
    CHECK(readable(fd) || aio_context_timeout(l->ctx) == 0);
    turn(l, 0);
    CHECK_EQ(runs(l), before + 1);
    turn(l, 0);
    CHECK(!readable(fd));
  }
}

/* The home thread takes all that has come together: the first to come tells it. */
static void told_once_for_all_that_come_together(Loop *l) {
  Baton b = {.ctx = l->ctx, .times = 1000};
  CHECK(aio_context_pollfd(l->ctx) >= 0); /* from now on there is always somebody to be told */
  for (int i = 0; i < 3; i++) {
    uint64_t before = runs(l);
    long written = atomic_load(&writes);
    pthread_join(start(shoot_often, &b), NULL);
    CHECK_EQ(atomic_load(&writes), written + 1);
    turn(l, AIO_FOREVER);
    CHECK_EQ(runs(l), before + 1000);
    turn(l, 0);
  }
}

/* An idle BH is in a list already: who schedules it finds nothing to push. */
static void told_of_an_idle_one_too(Loop *l) {
  AioBH bh;
  aio_bh_init(&bh, l->ctx, note, "");
  CHECK(aio_context_pollfd(l->ctx) >= 0);
  aio_bh_schedule_idle(&bh);
  long written = atomic_load(&writes);
  pthread_join(start(schedule_it, &bh), NULL);
  CHECK_EQ(atomic_load(&writes), written + 1);
  uint64_t before = runs(l);
  turn(l, 0);
  CHECK_EQ(runs(l), before + 1);
  aio_bh_close(&bh);
}

static void works_over_a_pipe(Loop *l) {
  eventfd_fails = ENOSYS;
  loop_close(l);
  CHECK_EQ(aio_context_new(&l->ctx, &(AioOptions){.backend = l->backend}), 0);
  eventfd_fails = 0;
  l->driver->open(l);
  no_notification_is_lost(l);
  set_by_another_thread(l);
  CHECK_RESTS(l);
}

static const Test tests[] = {
  TEST(eventfd_notifier),
  TEST(pipe_notifier),
  TEST(refusals),
  TEST(added_and_removed),
  TEST(two_notifiers_exact_counts),
  TEST(handler_sets_its_own_notifier),
  TEST(set_by_another_thread),
  TEST(no_notification_is_lost),
  TEST(epoll_spares_the_read),
  TEST(no_system_call_while_awake),
  TEST(does_not_swallow),
  TEST(told_once_for_all_that_come_together),
  TEST(told_of_an_idle_one_too),
  TEST(works_over_a_pipe),
};

CHECK_MAIN(tests, "epoll +io_uring")
