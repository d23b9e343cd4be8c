/* SPDX-License-Identifier: MIT
 * The context: its life and death with work pending, what one turn does in which order, and that nothing starves. */
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "check.h"

/* wrap: epoll_create1 epoll_ctl eventfd realloc */

static int create_fails, ctl_fails, no_eventfd;
static int allocations_left = -1; /* -1: no limit */

int __real_epoll_create1(int flags);
int __wrap_epoll_create1(int flags);
int __wrap_epoll_create1(int flags) { return create_fails ? errno = create_fails, -1 : __real_epoll_create1(flags); }

int __real_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int __wrap_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int __wrap_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev) {
  return ctl_fails ? errno = ctl_fails, -1 : __real_epoll_ctl(epfd, op, fd, ev);
}

int __real_eventfd(unsigned initial, int flags);
int __wrap_eventfd(unsigned initial, int flags);
int __wrap_eventfd(unsigned initial, int flags) {
  return no_eventfd ? errno = ENOSYS, -1 : __real_eventfd(initial, flags);
}

void *__real_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size) {
  if (allocations_left == 0) return NULL;
  if (allocations_left > 0) allocations_left--;
  return __real_realloc(p, size);
}

static void count(void *n) { ++*(int *)n; }
static void clear_it(void *n) { aio_notifier_clear(n); }

/* ---- creation ---- */

static void options(Loop *l) {
  AioContext *ctx = l->ctx;
  CHECK_EQ(aio_context_new(&ctx, &(AioOptions){.backend = "kqueue"}), -EINVAL);
  CHECK(!ctx);
  CHECK_EQ(aio_context_new(&ctx, NULL), 0);
  CHECK_STR(aio_context_backend(ctx), "epoll"); /* the best that Linux always has */
  aio_context_unref(ctx);
  CHECK_EQ(aio_context_new(&ctx, &(AioOptions){.backend = "poll"}), 0);
  CHECK_STR(aio_context_backend(ctx), "poll");
  aio_context_unref(ctx);
  CHECK_STR(aio_context_backend(l->ctx), l->backend);
}

static void creation_fails(Loop *l) {
  AioContext *ctx;
  int fds = open_fds();
  create_fails = EMFILE;
  int rc = aio_context_new(&ctx, &(AioOptions){.backend = "epoll"});
  create_fails = 0;
  CHECK_EQ(rc, -EMFILE);
  CHECK(!ctx);
  ctl_fails = ENOMEM;
  rc = aio_context_new(&ctx, &(AioOptions){.backend = "epoll"});
  ctl_fails = 0;
  CHECK_EQ(rc, -ENOMEM);
  CHECK(!ctx);
  for (int room = 0;; room++) { /* one allocation more each time, until there is enough */
    allocations_left = room;
    rc = aio_context_new(&ctx, &(AioOptions){.backend = l->backend});
    AioVClock *vc = room ? NULL : aio_vclock_new();
    allocations_left = -1;
    CHECK(!vc);
    if (rc == 0) break;
    CHECK_EQ(rc, -ENOMEM);
    CHECK(!ctx);
  }
  aio_context_unref(ctx);
  CHECK_EQ(open_fds(), fds);
}

static void auto_takes_what_the_kernel_grants(Loop *l) {
  int n = 0;
  create_fails = ENOSYS;
  loop_close(l);
  CHECK_EQ(aio_context_new(&l->ctx, &(AioOptions){.backend = "auto"}), 0);
  create_fails = 0;
  l->driver->open(l);
  CHECK_STR(aio_context_backend(l->ctx), "poll");
  aio_bh_oneshot(l->ctx, count, &n);
  RUN_UNTIL(l, n == 1);
  no_eventfd = 1;
  loop_close(l);
  CHECK_EQ(aio_context_new(&l->ctx, NULL), 0);
  no_eventfd = 0;
  l->driver->open(l);
  aio_bh_oneshot(l->ctx, count, &n);
  RUN_UNTIL(l, n == 2);
}

/* ---- everything at once ---- */

enum { BH, IDLE, ONESHOT, CO, WOKEN, TIMER, READ, WRITE, LOST, KINDS };

typedef struct All All;

typedef struct One {
  All *all;
  int kind, runs;
} One;

struct All {
  Loop *l;
  One one[KINDS];
  AioBH bh, idle, foreign;
  AioCo co, woken, waker;
  AioTimer timer, more[AIO_CLOCKS];
  AioWatch read, write, lost;
  AioNotifier bell;
  int sockets[2], doomed[2];
  void (*then)(One *o);
};

static void ran(void *opaque) {
  One *o = opaque;
  o->runs++;
  if (o->kind == READ) aio_notifier_clear(&o->all->bell);
  if (o->kind == WRITE) aio_watch_close(&o->all->write);
  if (o->all->then) o->all->then(o);
}

static void wake_the_other(void *opaque) {
  All *a = opaque;
  CHECK_EQ(aio_co_wake(&a->woken, "waker"), 0);
}

static void *schedule_it(void *bh) { return aio_bh_schedule(bh), NULL; }

static void all_init(All *a, Loop *l, void (*then)(One *)) {
  AioContext *ctx = l->ctx;
  *a = (All){.l = l, .then = then};
  for (int k = 0; k < KINDS; k++) a->one[k] = (One){.all = a, .kind = k};
  aio_bh_init(&a->bh, ctx, ran, &a->one[BH]);
  aio_bh_init(&a->idle, ctx, ran, &a->one[IDLE]);
  aio_bh_init(&a->foreign, ctx, note, "");
  aio_co_init(&a->co, ctx, ran, &a->one[CO]);
  aio_co_init(&a->woken, ctx, ran, &a->one[WOKEN]);
  aio_co_init(&a->waker, ctx, wake_the_other, a);
  aio_timer_init(&a->timer, ctx, AIO_CLOCK_MONOTONIC, ran, &a->one[TIMER]);
  for (AioClock c = 0; c < AIO_CLOCKS; c++) aio_timer_init(&a->more[c], ctx, c, note, "");
  CHECK_EQ(aio_notifier_open(&a->bell), 0);
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, a->sockets) == 0);
  CHECK(pipe2(a->doomed, O_NONBLOCK) == 0);
}

static void all_start(All *a, int kind) {
  AioContext *ctx = a->l->ctx;
  switch (kind) {
    case BH: aio_bh_schedule(&a->bh); break;
    case IDLE: aio_bh_schedule_idle(&a->idle); break;
    case ONESHOT: CHECK_EQ(aio_bh_oneshot(ctx, ran, &a->one[ONESHOT]), 0); break;
    case CO: CHECK_EQ(aio_co_schedule(&a->co, "test"), 0); break;
    case WOKEN: CHECK_EQ(aio_co_schedule(&a->waker, "test"), 0); break;
    case TIMER: CHECK_EQ(aio_timer_arm(&a->timer, 0), 0); break;
    case READ:
      aio_notifier_set(&a->bell);
      CHECK_EQ(aio_watch_open(&a->read, ctx, a->bell.rfd, AIO_READ, ran, NULL, &a->one[READ]), 0);
      break;
    case WRITE: CHECK_EQ(aio_watch_open(&a->write, ctx, a->sockets[0], AIO_WRITE, ran, NULL, &a->one[WRITE]), 0); break;
    default:
      CHECK_EQ(aio_watch_open(&a->lost, ctx, a->doomed[0], AIO_READ, ran, NULL, &a->one[LOST]), 0);
      close(a->doomed[0]);
      a->doomed[0] = -1;
  }
}

static void all_close_fds(All *a) {
  aio_notifier_close(&a->bell);
  close(a->sockets[0]);
  close(a->sockets[1]);
  close(a->doomed[1]);
  if (a->doomed[0] >= 0) close(a->doomed[0]);
}

static int all_runs(const All *a) {
  int n = 0;
  for (int k = 0; k < KINDS; k++) n += a->one[k].runs;
  return n;
}

/* ---- one turn ---- */

static void append_kind(One *o) {
  static char *const letters[KINDS] = {"b", "i", "o", "c", "w", "t", "r", "r", "l"};
  note(letters[o->kind]);
}

static void order_within_a_turn(Loop *l) {
  All a;
  all_init(&a, l, append_kind);
  all_start(&a, READ);
  all_start(&a, WRITE);
  for (int turns = 1; !a.one[READ].runs; turns++) { /* with BHs pending the kernel is asked in every other turn */
    CHECK(turns <= 2);
    log_reset();
    all_start(&a, TIMER);
    all_start(&a, ONESHOT);
    all_start(&a, CO);
    all_start(&a, BH);
    turn(l, 0);
  }
  CHECK_STR(check_log, "ocbrrt");
  aio_watch_close(&a.read);
  CHECK_QUIET(l);
  all_close_fds(&a);
}

static void what_is_progress(Loop *l) {
  for (int k = 0; k < KINDS; k++) {
    All a;
    bool progress = false;
    all_init(&a, l, NULL);
    all_start(&a, k);
    while (!a.one[k].runs) progress = turn(l, AIO_FOREVER);
    CHECK_EQ(progress, k != IDLE);
    aio_watch_close(&a.read);
    CHECK(!turn(l, 0));
    all_close_fds(&a);
  }
  aio_notify(l->ctx);
  CHECK(!turn(l, AIO_FOREVER)); /* being notified is none */
}

static void timeouts(Loop *l) {
  AioBH bh;
  AioTimer t;
  int n = 0;
  aio_bh_init(&bh, l->ctx, count, &n);
  aio_timer_init(&t, l->ctx, AIO_CLOCK_MONOTONIC, count, &n);
  CHECK_EQ(aio_context_timeout(l->ctx), AIO_FOREVER);
  CHECK(!aio_context_can_wake(l->ctx));
  aio_bh_schedule_idle(&bh);
  int64_t left = aio_context_timeout(l->ctx);
  CHECK(left >= 0 && left <= 10 * MS);
  CHECK(aio_context_can_wake(l->ctx));
  CHECK(!aio_context_busy(l->ctx));
  aio_bh_schedule(&bh);
  CHECK_EQ(aio_context_timeout(l->ctx), 0);
  CHECK(aio_context_busy(l->ctx));
  aio_bh_cancel(&bh);
  CHECK_EQ(aio_context_timeout(l->ctx), AIO_FOREVER);
  aio_timer_arm(&t, now_ns() + 3600 * SEC);
  left = aio_context_timeout(l->ctx);
  CHECK(left <= 3600 * SEC && left > 3000 * SEC);
  CHECK(aio_context_can_wake(l->ctx));
  aio_timer_arm(&t, 0);
  CHECK_EQ(aio_context_timeout(l->ctx), 0);
  aio_timer_disarm(&t);
  CHECK(!aio_context_can_wake(l->ctx));
}

static void statistics(Loop *l) {
  All a;
  AioStats before, s;
  all_init(&a, l, NULL);
  aio_context_stats(l->ctx, &before);
  aio_context_set_home(l->ctx);
  for (int k = 0; k < LOST; k++) all_start(&a, k);
  aio_timer_arm(&a.more[AIO_CLOCK_REALTIME], AIO_FOREVER - 1);
  aio_context_stats(l->ctx, &s);
  CHECK_EQ(s.bhs_pending, 5);
  CHECK_EQ(s.timers_armed, 2);
  CHECK_EQ(s.watches, 2);
  RUN_UNTIL(l, all_runs(&a) == LOST);
  aio_context_stats(l->ctx, &s);
  CHECK_EQ(s.bhs - before.bhs, 3);
  CHECK_EQ(s.entries - before.entries, 3);
  CHECK_EQ(s.timers - before.timers, 1);
  CHECK_EQ(s.fds - before.fds, 2);
  CHECK(s.polls > before.polls);
  CHECK_EQ(s.bhs_pending, 0);
  CHECK_EQ(s.timers_armed, 1);
  CHECK_EQ(s.watches, 1);
  aio_watch_close(&a.read);
  aio_timer_disarm(&a.more[AIO_CLOCK_REALTIME]);
  all_close_fds(&a);
}

static void *notify_it(void *ctx) { return aio_notify(ctx), NULL; }

static void really_blocks(Loop *l) {
  int64_t from = now_ns();
  CHECK(turns_in(l, 40 * MS) <= 4);
  CHECK(now_ns() - from >= 40 * MS);
  pthread_t t = start(notify_it, l->ctx);
  turn(l, AIO_FOREVER);
  pthread_join(t, NULL);
}

/* ---- nested turns ---- */

static int nesting_kind;

static void turn_inside(One *o) {
  if (o->kind != nesting_kind) return;
  nesting_kind = -1;
  while (all_runs(o->all) < KINDS - 1) turn(o->all->l, AIO_FOREVER); /* all but the lost one */
}

static void nested_in_every_callback(Loop *l) {
  for (int k = 0; k < LOST; k++) {
    All a;
    all_init(&a, l, turn_inside);
    nesting_kind = k;
    all_start(&a, k); /* first, so that the others are left for its nested turns where order allows */
    for (int other = 0; other < LOST; other++)
      if (other != k) all_start(&a, other);
    RUN_UNTIL(l, all_runs(&a) == LOST && nesting_kind < 0);
    for (int other = 0; other < LOST; other++) CHECK_EQ(a.one[other].runs, 1);
    aio_watch_close(&a.read);
    CHECK_QUIET(l);
    all_close_fds(&a);
  }
}

/* ---- starvation ---- */

typedef struct Restless {
  AioBH bh;
  AioTimer t;
  AioWatch w;
} Restless;

static void again_bh(void *opaque) { aio_bh_schedule(&((Restless *)opaque)->bh); }
static void again_timer(void *opaque) { aio_timer_arm(&((Restless *)opaque)->t, 0); }
static void again_write(void *opaque) { (void)opaque; }

/* A BH, a zero timer and a writer that never rest: whatever else is ready has its turn within three. */
static void nobody_starves(Loop *l) {
  for (int restless = 1; restless < 8; restless++) { /* every combination */
    Restless r;
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    aio_bh_init(&r.bh, l->ctx, again_bh, &r);
    aio_timer_init(&r.t, l->ctx, AIO_CLOCK_MONOTONIC, again_timer, &r);
    CHECK_EQ(aio_watch_open(&r.w, l->ctx, pair[0], AIO_WRITE, again_write, NULL, &r), 0);
    if (restless & 1) aio_bh_schedule(&r.bh);
    if (restless & 2) aio_timer_arm(&r.t, 0);
    if (!(restless & 4)) aio_watch_close(&r.w);
    for (int i = 0; i < 10; i++) {
      All a;
      all_init(&a, l, NULL);
      for (int k = 0; k < LOST; k++)
        if (k != IDLE) all_start(&a, k);
      for (int turns = 0; turns < 3; turns++) turn(l, AIO_FOREVER);
      for (int k = 0; k < LOST; k++)
        if (k != IDLE) CHECK_EQ(a.one[k].runs, 1);
      aio_watch_close(&a.read);
      all_close_fds(&a);
    }
    aio_bh_close(&r.bh);
    aio_timer_disarm(&r.t);
    aio_watch_close(&r.w);
    close(pair[0]);
    close(pair[1]);
  }
}

/* ---- death ---- */

static void check_refuses(AioContext *ctx) {
  AioTimer t;
  AioCo co;
  AioBH bh;
  AioWatch w;
  CHECK(aio_context_closed(ctx));
  aio_bh_init(&bh, ctx, note, "x");
  aio_bh_schedule(&bh);
  aio_bh_schedule_idle(&bh);
  CHECK(!aio_bh_scheduled(&bh));
  CHECK_EQ(aio_bh_oneshot(ctx, note, "x"), -ESHUTDOWN);
  aio_co_init(&co, ctx, note, "x");
  CHECK_EQ(aio_co_schedule(&co, "x"), -ESHUTDOWN);
  CHECK_EQ(aio_co_wake(&co, "x"), -ESHUTDOWN);
  aio_timer_init(&t, ctx, AIO_CLOCK_MONOTONIC, note, "x");
  CHECK_EQ(aio_timer_arm(&t, 0), -ESHUTDOWN);
  CHECK_EQ(aio_watch_open(&w, ctx, 0, AIO_READ, note, NULL, "x"), -ESHUTDOWN);
  CHECK_EQ(aio_context_pollfd(ctx), -ESHUTDOWN);
  CHECK_EQ(aio_context_timeout(ctx), AIO_FOREVER);
  CHECK(!aio_context_can_wake(ctx));
  CHECK(!aio_context_busy(ctx));
  CHECK(!aio_poll(ctx, AIO_FOREVER)); /* does not even block */
  aio_notify(ctx);
  aio_bh_cancel(&bh);
  aio_timer_disarm(&t);
}

static void close_inside(One *o) {
  AioContext *ctx = o->all->l->ctx;
  aio_context_close(ctx);
  check_refuses(ctx);
  aio_context_close(ctx);
}

static void closed_in_every_callback(Loop *l) {
  for (int k = 0; k < KINDS; k++) {
    All a;
    all_init(&a, l, close_inside);
    all_start(&a, k);
    for (int other = KINDS - 1; other >= 0; other--)
      if (other != k) all_start(&a, other);
    while (!all_runs(&a)) turn(l, 100 * MS);
    CHECK_EQ(all_runs(&a), 1); /* nothing after it */
    turn(l, 0);
    CHECK_EQ(all_runs(&a), 1);
    CHECK(!aio_watch_is_open(&a.read) && !aio_watch_is_open(&a.write) && !aio_watch_is_open(&a.lost));
    CHECK(!aio_timer_armed(&a.timer) && !aio_bh_scheduled(&a.bh) && !aio_bh_scheduled(&a.idle));
    aio_watch_close(&a.read); /* closing afterwards is nothing */
    aio_bh_close(&a.bh);
    aio_co_close(&a.co);
    aio_timer_disarm(&a.timer);
    all_close_fds(&a);
    loop_reopen(l, NULL);
  }
}

/* The same with each kind alone, so that it is the one to close. */
static void closed_in_this_very_callback(Loop *l) {
  for (int k = 0; k < KINDS; k++) {
    All a;
    all_init(&a, l, close_inside);
    all_start(&a, k);
    RUN_UNTIL(l, a.one[k].runs == 1);
    CHECK(aio_context_closed(l->ctx));
    turn(l, 0);
    all_close_fds(&a);
    loop_reopen(l, NULL);
  }
}

static void close_it(void *ctx) { aio_context_close(ctx); }

static void nest_and_close(void *opaque) {
  Loop *l = opaque;
  aio_bh_oneshot(l->ctx, close_it, l->ctx);
  turn(l, 0);
  CHECK(aio_context_closed(l->ctx));
  turn(l, 0);
}

static void closed_in_a_nested_turn(Loop *l) {
  for (int kind = 0; kind < 4; kind++) {
    AioTimer t;
    AioCo co;
    AioWatch w;
    AioNotifier n;
    CHECK_EQ(aio_notifier_open(&n), 0);
    aio_notifier_set(&n);
    aio_timer_init(&t, l->ctx, AIO_CLOCK_MONOTONIC, nest_and_close, l);
    aio_co_init(&co, l->ctx, nest_and_close, l);
    if (kind == 0) aio_bh_oneshot(l->ctx, nest_and_close, l);
    if (kind == 1) aio_timer_arm(&t, 0);
    if (kind == 2) aio_co_schedule(&co, "test");
    if (kind == 3) CHECK_EQ(aio_watch_open(&w, l->ctx, n.rfd, AIO_READ, nest_and_close, NULL, l), 0);
    while (!aio_context_closed(l->ctx)) turn(l, AIO_FOREVER);
    turn(l, 0);
    aio_notifier_close(&n);
    loop_reopen(l, NULL);
  }
}

/* Every kind pending, some of them started by other threads, when the last reference goes. */
static void pending_everything(Loop *l) {
  for (int turns = 0; turns < 3; turns++) {
    All a;
    AioVClock *vc = aio_vclock_new();
    loop_reopen(l, &(AioOptions){.vclock = vc, .poll_max_ns = 1000});
    all_init(&a, l, NULL);
    for (int k = 0; k < KINDS; k++) all_start(&a, k);
    for (AioClock c = 0; c < AIO_CLOCKS; c++) CHECK_EQ(aio_timer_arm(&a.more[c], AIO_FOREVER - 1), 0);
    pthread_join(start(schedule_it, &a.foreign), NULL);
    if (turns == 2 && strcmp(l->backend, "poll")) CHECK(aio_context_pollfd(l->ctx) >= 0);
    for (int i = 0; i < turns; i++) { /* what has run is pending again */
      turn(l, 0);
      all_start(&a, BH);
      all_start(&a, ONESHOT);
      all_start(&a, TIMER);
      all_start(&a, CO);
      pthread_join(start(schedule_it, &a.foreign), NULL);
    }
    loop_close(l);
    aio_vclock_free(vc);
    CHECK_EQ(a.one[BH].runs, turns);
    CHECK(!aio_watch_is_open(&a.read));
    CHECK(!aio_timer_armed(&a.timer));
    all_close_fds(&a);
    loop_open(l, NULL);
  }
}

static void a_thousand_one_after_the_other(Loop *l) {
  int fds = open_fds();
  for (long i = 0; i < (check_slow() ? 100 : 1000); i++) {
    All a;
    loop_reopen(l, NULL);
    all_init(&a, l, NULL);
    for (int k = 0; k < LOST; k++) all_start(&a, k);
    if (i % 3) turn(l, 0);
    loop_reopen(l, NULL);
    all_close_fds(&a);
    CHECK_EQ(open_fds(), fds);
  }
}

static void a_thousand_at_once(Loop *l) {
  enum { N = 1000 };
  struct rlimit limit;
  static AioContext *ctx[N];
  int n = N, ran_once = 0;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < 2 * N + 100) n = (int)(limit.rlim_cur - 100) / 2;
  for (int i = 0; i < n; i++) {
    CHECK_EQ(aio_context_new(&ctx[i], &(AioOptions){.backend = l->backend}), 0);
    if (is_glib(l) && i < 100) CHECK_EQ(aio_source_attach(ctx[i], l->main, 0), 0);
    aio_bh_oneshot(ctx[i], count, &ran_once);
  }
  if (is_glib(l)) {
    while (ran_once < 100 && ran_once < n) turn(l, AIO_FOREVER);
    for (int i = 100; i < n; i++) aio_poll(ctx[i], AIO_FOREVER);
  } else {
    for (int i = 0; i < n; i++) aio_poll(ctx[i], AIO_FOREVER); /* one thread may poll several */
  }
  CHECK_EQ(ran_once, n);
  for (int i = n - 1; i >= 0; i--) aio_context_unref(ctx[i]);
}

/* ---- threads ---- */

static void *hold_and_drop(void *opaque) {
  AioContext *ctx = opaque;
  for (int i = 0; i < 10000; i++) {
    aio_context_ref(ctx);
    aio_bh_oneshot(ctx, note, "");
    aio_context_unref(ctx);
  }
  aio_context_unref(ctx);
  return NULL;
}

static void last_reference_in_another_thread(Loop *l) {
  pthread_t t[3];
  for (int i = 0; i < 3; i++) {
    aio_context_ref(l->ctx);
    t[i] = start(hold_and_drop, l->ctx);
  }
  for (int i = 0; i < 10; i++) turn(l, 0);
  aio_source_detach(l->ctx); /* the GMainContext is its thread's */
  aio_context_unref(l->ctx);
  l->ctx = NULL;
  for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
}

static long guarded;

static void *contend(void *opaque) {
  AioContext *ctx = opaque;
  for (int i = 0; i < 10000; i++) {
    aio_context_acquire(ctx);
    aio_context_acquire(ctx);
    guarded++;
    aio_context_release(ctx);
    aio_context_release(ctx);
  }
  return NULL;
}

static void acquire_and_release(Loop *l) {
  pthread_t t[4];
  guarded = 0;
  for (int i = 0; i < 4; i++) t[i] = start(contend, l->ctx);
  for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
  CHECK_EQ(guarded, 40000);
}

/* ---- signals ---- */

typedef struct Poker {
  pthread_t whom;
  pid_t tid;
  atomic_bool about_to_sleep;
} Poker;

static void nothing(int sig) { (void)sig; }

static bool asleep(pid_t tid) {
  char path[64], line[256] = "";
  snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)tid);
  FILE *f = fopen(path, "r");
  CHECK(f && fgets(line, sizeof line, f));
  fclose(f);
  return strstr(line, ") S");
}

static void *poke_once_asleep(void *opaque) {
  Poker *p = opaque;
  while (!atomic_load(&p->about_to_sleep) || !asleep(p->tid)) sched_yield();
  pthread_kill(p->whom, SIGUSR1);
  return NULL;
}

/* One signal ends the wait and the turn, or a script could not be interrupted: also when something had to be registered
 * before, and while the loop would still look for closed fds. */
static void signal_ends_the_wait(Loop *l) {
  struct sigaction sa = {.sa_handler = nothing}, old;
  Poker p = {.whom = pthread_self(), .tid = (pid_t)syscall(SYS_gettid)};
  AioNotifier n;
  AioWatch w;
  sigaction(SIGUSR1, &sa, &old);
  CHECK_EQ(aio_notifier_open(&n), 0);
  for (int i = 0; i <= 20; i++) {
    if (i == 1) CHECK_EQ(aio_watch_open(&w, l->ctx, n.rfd, AIO_READ, clear_it, NULL, &n), 0);
    atomic_store(&p.about_to_sleep, false);
    pthread_t t = start(poke_once_asleep, &p);
    if (i % 2) {
      aio_notifier_set(&n);
      CHECK(turn(l, AIO_FOREVER));
    }
    atomic_store(&p.about_to_sleep, true);
    CHECK(!turn(l, i % 3 != 1 ? AIO_FOREVER : 100 * SEC));
    pthread_join(t, NULL);
  }
  aio_watch_close(&w);
  aio_notifier_close(&n);
  sigaction(SIGUSR1, &old, NULL);
}

/* ---- embedding through one fd ---- */

static int sleep_on(int fd, int64_t ns) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  int64_t ms = ns == AIO_FOREVER ? -1 : (ns + MS - 1) / MS;
  CHECK(poll(&p, 1, (int)ms) >= 0);
  return p.revents & POLLIN;
}

static void *start_from_outside(void *opaque) {
  for (int i = 0; i < 1000; i++) aio_bh_oneshot(opaque, note, "");
  aio_bh_oneshot(opaque, note, "t");
  return NULL;
}

static void embedded_in_another_loop(Loop *l) {
  All a;
  int fd = aio_context_pollfd(l->ctx);
  if (!strcmp(l->backend, "poll")) {
    CHECK_EQ(fd, -ENOTSUP);
    return;
  }
  CHECK(fd >= 0);
  CHECK(!sleep_on(fd, 0));
  all_init(&a, l, NULL);
  aio_context_set_home(l->ctx);
  for (int k = 0; k < LOST; k++) { /* started by the home thread, outside of any turn */
    all_start(&a, k);
    CHECK(sleep_on(fd, 0) || aio_context_timeout(l->ctx) <= 10 * MS);
    while (!a.one[k].runs) sleep_on(fd, aio_context_timeout(l->ctx)), aio_poll(l->ctx, 0);
    while (sleep_on(fd, 0)) aio_poll(l->ctx, 0);
  }
  pthread_t t = start(start_from_outside, l->ctx);
  while (!*check_log) sleep_on(fd, aio_context_timeout(l->ctx)), aio_poll(l->ctx, 0);
  pthread_join(t, NULL);
  aio_watch_close(&a.read);
  all_close_fds(&a);
}

static const Test tests[] = {
  TEST(options),
  TEST(creation_fails),
  TEST(auto_takes_what_the_kernel_grants),
  TEST(order_within_a_turn),
  TEST_POLL(what_is_progress),
  TEST(timeouts),
  TEST(statistics),
  TEST(really_blocks),
  TEST(nested_in_every_callback),
  TEST(nobody_starves),
  TEST(closed_in_every_callback),
  TEST(closed_in_this_very_callback),
  TEST(closed_in_a_nested_turn),
  TEST(pending_everything),
  TEST(a_thousand_one_after_the_other),
  TEST(a_thousand_at_once),
  TEST(last_reference_in_another_thread),
  TEST(acquire_and_release),
  TEST_POLL(signal_ends_the_wait),
  TEST_POLL(embedded_in_another_loop),
};

CHECK_MAIN(tests, "epoll +poll +io_uring")
