/* SPDX-License-Identifier: MIT
 * Adaptive polling: its arithmetic, and that a spinning loop sees everything a sleeping one would.
 *
 * Keep     GLib does its own waiting: whatever needs a spin runs through aio_poll alone. */
#include "internal.h"

#include "check.h"

/* wrap: write */

static atomic_long writes;
ssize_t __real_write(int fd, const void *buf, size_t n);
ssize_t __wrap_write(int fd, const void *buf, size_t n);
ssize_t __wrap_write(int fd, const void *buf, size_t n) {
  atomic_fetch_add(&writes, 1);
  return __real_write(fd, buf, n);
}

static int64_t learned(const Loop *l) {
  AioStats s;
  aio_context_stats(l->ctx, &s);
  return s.poll_ns;
}

/* ---- the arithmetic ---- */

static void arithmetic(Loop *l) {
  static const struct {
    int64_t max, grow, shrink, cur, block, next;
  } table[] = {
    /* 1: the spin was long enough */
    {100000, 0, 0, 8000, 0, 8000},
    {100000, 0, 0, 8000, 7999, 8000},
    {100000, 0, 0, 8000, 8000, 8000},
    {100000, 0, 0, 100000, 100000, 100000},
    {100000, 0, 0, 0, 0, 0},
    /* 2: no spin would have been */
    {100000, 0, 0, 8000, 100001, 0},
    {100000, 0, 2, 8000, 100001, 4000},
    {100000, 0, 3, 100000, SEC, 33333},
    {100000, 0, 10, 5, SEC, 0},
    {100000, 0, 1, 8000, SEC, 8000},
    {100000, 0, 2, 0, SEC, 0},
    {100000, 0, 0, 100000, INT64_MAX, 0},
    /* 3: a longer one */
    {100000, 0, 0, 0, 1, 4000},
    {100000, 0, 0, 0, 99999, 4000},
    {100000, 5, 0, 0, 5000, 4000},
    {100000, 0, 0, 4000, 4001, 8000},
    {100000, 3, 0, 4000, 99999, 12000},
    {100000, 1, 0, 4000, 99999, 4000},
    {100000, 0, 0, 64000, 70000, 100000},
    {100000, 1000000, 0, 4000, 5000, 100000},
    {INT64_MAX, INT64_MAX, 0, 4000, 5000, INT64_MAX},
    {3000, 0, 0, 0, 1, 3000},
    {1, 0, 0, 0, 0, 0},
    /* 4: neither */
    {100000, 0, 0, 50000, 100000, 50000},
    {100000, 0, 0, 0, 100000, 0},
  };
  for (size_t i = 0; i < COUNT(table); i++) {
    CHECK_EQ(aio_set_polling(l->ctx, table[i].max, table[i].grow, table[i].shrink), 0);
    CHECK_EQ(learned(l), 0);
    atomic_store(&l->ctx->poll_ns, table[i].cur);
    aio__polling_learn(l->ctx, table[i].block);
    CHECK_EQ(learned(l), table[i].next);
  }
  aio_set_polling(l->ctx, 0, 0, 0);
}

static void grows_and_shrinks(Loop *l) {
  static const int64_t up[] = {4000, 8000, 16000, 32000, 64000, 100000, 100000};
  static const int64_t down[] = {50000, 25000, 12500, 6250};
  aio_set_polling(l->ctx, 100000, 2, 2);
  for (size_t i = 0; i < COUNT(up); i++) {
    aio__polling_learn(l->ctx, 99999);
    CHECK_EQ(learned(l), up[i]);
  }
  for (size_t i = 0; i < COUNT(down); i++) {
    aio__polling_learn(l->ctx, 200000);
    CHECK_EQ(learned(l), down[i]);
  }
  aio_set_polling(l->ctx, 0, 0, 0);
}

/* A fast source among slow wake-ups: polling is back after the first fast one, whatever shrink is. */
static void one_slow_and_one_fast_source(Loop *l) {
  for (int64_t shrink = 0; shrink <= 2; shrink += 2) {
    aio_set_polling(l->ctx, 100000, 2, shrink);
    for (int i = 0; i < 1000; i++) {
      bool slow = i % 10 == 9;
      aio__polling_learn(l->ctx, slow ? 10 * MS : 20000);
      if (!slow) CHECK(learned(l) >= 4000);
      if (i % 10 == 8) CHECK(learned(l) >= 20000); /* long enough for the fast one again */
    }
  }
  aio_set_polling(l->ctx, 0, 0, 0);
}

static void refusals(Loop *l) {
  AioContext *ctx;
  CHECK_EQ(aio_set_polling(l->ctx, -1, 0, 0), -EINVAL);
  CHECK_EQ(aio_set_polling(l->ctx, 0, -1, 0), -EINVAL);
  CHECK_EQ(aio_set_polling(l->ctx, 0, 0, -1), -EINVAL);
  CHECK_EQ(aio_context_new(&ctx, &(AioOptions){.poll_max_ns = -1}), -EINVAL);
  CHECK(!ctx);
  CHECK_EQ(aio_context_new(&ctx, &(AioOptions){.poll_shrink = -1}), -EINVAL);
  CHECK(!ctx);
}

/* ---- parameters change ---- */

static void *change_parameters(void *ctx) {
  CHECK_EQ(aio_set_polling(ctx, 1000, 0, 0), 0);
  return NULL;
}

static void changed_while_asleep(Loop *l) {
  for (int i = 0; i < 100; i++) {
    pthread_t t = start(change_parameters, l->ctx);
    turn(l, AIO_FOREVER); /* returns only because it was notified */
    pthread_join(t, NULL);
    turns_in(l, 0);
    turn(l, 0);
    aio_set_polling(l->ctx, 0, 0, 0);
    turn(l, 0);
  }
}

/* ---- the spin ---- */

#define LONG_SPIN (20 * SEC) /* what must not wait for its end would hang the test for longer than any load explains */

typedef struct Tested { /* a watch whose test says when the loop spins */
  AioWatch w;
  AioNotifier n;
  atomic_bool spinning;
  int tests, runs;
  bool answer, nest;
  Loop *l;
} Tested;

static bool test(void *opaque) {
  Tested *t = opaque;
  t->tests++;
  atomic_store(&t->spinning, true);
  return t->answer;
}

static void tested_ready(void *opaque) {
  Tested *t = opaque;
  t->runs++;
  t->answer = false;
  aio_notifier_clear(&t->n);
}

static void open_tested(Tested *t, Loop *l) {
  *t = (Tested){.l = l};
  CHECK_EQ(aio_notifier_open(&t->n), 0);
  CHECK_EQ(aio_watch_open(&t->w, l->ctx, t->n.rfd, AIO_READ, tested_ready, test, t), 0);
}

static void close_tested(Tested *t) {
  aio_watch_close(&t->w);
  aio_notifier_close(&t->n);
}

static void spin_for_long(Loop *l) {
  aio_set_polling(l->ctx, LONG_SPIN, 2, 2);
  turn(l, 0); /* takes the notification */
  atomic_store(&l->ctx->poll_ns, LONG_SPIN);
}

typedef struct Helper {
  Tested *spin;
  AioBH *bh;
  AioNotifier *bell;
} Helper;

static void *help_when_it_spins(void *opaque) {
  Helper *h = opaque;
  while (!atomic_load(&h->spin->spinning)) sched_yield();
  if (h->bh) aio_bh_schedule(h->bh);
  if (h->bell) aio_notifier_set(h->bell);
  return NULL;
}

static void count(void *n) { ++*(int *)n; }

static void sees_a_bh_without_a_system_call(Loop *l) {
  Tested t;
  AioBH bh;
  int n = 0;
  Helper h = {.spin = &t, .bh = &bh};
  open_tested(&t, l);
  aio_bh_init(&bh, l->ctx, count, &n);
  spin_for_long(l);
  long before = atomic_load(&writes);
  int64_t from = now_ns();
  pthread_t thread = start(help_when_it_spins, &h);
  RUN_UNTIL(l, n == 1);
  pthread_join(thread, NULL);
  CHECK(now_ns() - from < LONG_SPIN);
  CHECK_EQ(atomic_load(&writes), before);
  CHECK_EQ(learned(l), LONG_SPIN); /* the spin was long enough */
  close_tested(&t);
}

static void test_finds_work(Loop *l) {
  Tested t;
  AioStats before, after;
  open_tested(&t, l);
  spin_for_long(l);
  aio_context_stats(l->ctx, &before);
  t.answer = true;
  CHECK(turn(l, AIO_FOREVER));
  aio_context_stats(l->ctx, &after);
  CHECK_EQ(t.runs, 1);
  CHECK_EQ(after.asks, before.asks); /* the kernel did not have to be asked */
  close_tested(&t);
}

static void ring(void *opaque) {
  Tested *t = opaque;
  aio_notifier_clear(&t->n);
  t->runs++;
}

static void fd_without_a_test_does_not_starve(Loop *l) {
  Tested t, plain = {.runs = 0};
  Helper h = {.spin = &t, .bell = &plain.n};
  open_tested(&t, l);
  CHECK_EQ(aio_notifier_open(&plain.n), 0);
  CHECK_EQ(aio_watch_open(&plain.w, l->ctx, plain.n.rfd, AIO_READ, ring, NULL, &plain), 0);
  spin_for_long(l);
  int64_t from = now_ns();
  pthread_t thread = start(help_when_it_spins, &h);
  RUN_UNTIL(l, plain.runs == 1);
  pthread_join(thread, NULL);
  CHECK(now_ns() - from < LONG_SPIN);
  close_tested(&plain);
  close_tested(&t);
}

static void timer_is_not_delayed(Loop *l) {
  AioTimer timer;
  int n = 0;
  spin_for_long(l);
  int64_t from = now_ns();
  aio_timer_init(&timer, l->ctx, AIO_CLOCK_MONOTONIC, count, &n);
  aio_timer_arm(&timer, from + 3 * MS);
  RUN_UNTIL(l, n == 1);
  CHECK(now_ns() - from >= 3 * MS);
  CHECK(now_ns() - from < LONG_SPIN);
}

static void limit_is_kept(Loop *l) {
  spin_for_long(l);
  int64_t from = now_ns();
  turn(l, 3 * MS);
  CHECK(now_ns() - from >= 3 * MS);
  CHECK(now_ns() - from < LONG_SPIN);
}

static void nest(void *opaque) {
  Tested *t = opaque;
  CHECK_EQ(t->runs++, 0); /* not re-entered */
  int tests = t->tests;
  turn(t->l, 5 * MS); /* spins */
  CHECK_EQ(t->tests, tests); /* not asked either */
  t->answer = false;
}

static void test_is_not_reentered(Loop *l) {
  Tested t = {.l = l};
  CHECK_EQ(aio_notifier_open(&t.n), 0);
  CHECK_EQ(aio_watch_open(&t.w, l->ctx, t.n.rfd, AIO_READ, nest, test, &t), 0);
  spin_for_long(l);
  t.answer = true;
  CHECK(turn(l, AIO_FOREVER));
  CHECK_EQ(t.runs, 1);
  close_tested(&t);
}

static void off_never_asks_the_tests(Loop *l) {
  Tested t;
  open_tested(&t, l);
  t.answer = true;
  turn(l, MS);
  turn(l, 0);
  CHECK_EQ(t.tests, 0);
  CHECK_EQ(t.runs, 0);
  CHECK_EQ(learned(l), 0);
  close_tested(&t);
}

static void learns_from_real_waits(Loop *l) {
  aio_set_polling(l->ctx, 10 * SEC, 2, 2);
  turn(l, 0);
  for (int64_t expected = 4000; expected < MS; expected *= 2) {
    turn(l, 5 * MS);
    CHECK_EQ(learned(l), expected);
  }
  aio_set_polling(l->ctx, MS, 2, 2); /* starts anew */
  turn(l, 0);
  CHECK_EQ(learned(l), 0);
  turn(l, 5 * MS);
  CHECK_EQ(learned(l), 0); /* longer than the maximum */
}

static const Test tests[] = {
  TEST_POLL(arithmetic),
  TEST_POLL(grows_and_shrinks),
  TEST_POLL(one_slow_and_one_fast_source),
  TEST_POLL(refusals),
  TEST(changed_while_asleep),
  TEST_POLL(sees_a_bh_without_a_system_call),
  TEST_POLL(test_finds_work),
  TEST_POLL(fd_without_a_test_does_not_starve),
  TEST_POLL(timer_is_not_delayed),
  TEST_POLL(limit_is_kept),
  TEST_POLL(test_is_not_reentered),
  TEST_POLL(off_never_asks_the_tests),
  TEST_POLL(learns_from_real_waits),
};

CHECK_MAIN(tests, "epoll +poll +io_uring")
