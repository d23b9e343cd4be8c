/* SPDX-License-Identifier: MIT
 * Clocks: the kernel's go forward, the virtual one goes when it is told to and stops at every deadline on the way. */
#include "check.h"

static AioVClock *clock_under_test;

typedef struct Mark { /* a virtual timer that remembers when it fired */
  AioTimer t;
  int64_t fired_at;
  int runs, again;
  int64_t step; /* after the first time */
} Mark;

static void mark(void *opaque) {
  Mark *m = opaque;
  m->fired_at = aio_timer_now(&m->t);
  m->runs++;
  if (m->again-- > 0) aio_timer_arm(&m->t, m->fired_at + m->step);
}

static void init(Mark *m, AioContext *ctx) {
  *m = (Mark){.runs = 0};
  aio_timer_init(&m->t, ctx, AIO_CLOCK_VIRTUAL, mark, m);
}

static void loop_on_clock(Loop *l) {
  clock_under_test = aio_vclock_new();
  CHECK(clock_under_test);
  loop_reopen(l, &(AioOptions){.vclock = clock_under_test});
}

static void done(Loop *l) {
  aio_context_close(l->ctx);
  aio_vclock_free(clock_under_test);
}

static void kernel_clocks_go_forward(Loop *l) {
  (void)l;
  for (AioClock c = AIO_CLOCK_MONOTONIC; c < AIO_CLOCK_VIRTUAL; c++) {
    int64_t last = aio_clock_now(c);
    CHECK(last > 0);
    for (int i = 0; i < 1000; i++) {
      int64_t t = aio_clock_now(c);
      CHECK(t >= last || c == AIO_CLOCK_REALTIME);
      last = t;
    }
  }
}

static void paused_until_advanced(Loop *l) {
  Mark m;
  loop_on_clock(l);
  init(&m, l->ctx);
  CHECK_EQ(aio_vclock_now(clock_under_test), 0);
  CHECK_EQ(aio_timer_arm(&m.t, 100), 0);
  CHECK_EQ(aio_context_timeout(l->ctx), AIO_FOREVER);
  CHECK(turns_in(l, 20 * MS) <= 4);
  aio_vclock_advance(clock_under_test, 99);
  CHECK_EQ(m.runs, 0);
  aio_vclock_advance(clock_under_test, 1);
  CHECK_EQ(m.runs, 1);
  CHECK_EQ(m.fired_at, 100);
  aio_vclock_advance(clock_under_test, 0);
  aio_vclock_advance(clock_under_test, -50);
  CHECK_EQ(aio_vclock_now(clock_under_test), 100);
  CHECK_EQ(m.runs, 1);
  aio_timer_arm(&m.t, 100); /* due at once, though the clock stands */
  CHECK_EQ(aio_context_timeout(l->ctx), 0);
  turn(l, AIO_FOREVER);
  CHECK_EQ(m.runs, 2);
  CHECK_QUIET(l);
  done(l);
}

static void advance_stops_at_every_deadline(Loop *l) {
  Mark m, other;
  loop_on_clock(l);
  init(&m, l->ctx);
  init(&other, l->ctx);
  m.again = 99;
  m.step = 10;
  aio_timer_arm(&m.t, 10);
  aio_timer_arm(&other.t, 555);
  aio_vclock_advance(clock_under_test, 605);
  CHECK_EQ(m.runs, 60);
  CHECK_EQ(m.fired_at, 600);
  CHECK_EQ(other.fired_at, 555);
  CHECK_EQ(aio_vclock_now(clock_under_test), 605);
  aio_vclock_advance(clock_under_test, AIO_FOREVER);
  CHECK_EQ(m.runs, 100);
  CHECK_EQ(m.fired_at, 1000);
  aio_vclock_advance(clock_under_test, AIO_FOREVER); /* no overflow */
  CHECK(aio_vclock_now(clock_under_test) > 1000);
  done(l);
}

static void note_time(void *letter) { note(letter); }

static void bh_from_timer(void *opaque) {
  note("t");
  aio_bh_oneshot(opaque, note_time, "b");
}

/* What a timer sets off has happened before the clock moves on. */
static void consequences_come_before_the_next_deadline(Loop *l) {
  AioTimer a, z;
  loop_on_clock(l);
  aio_timer_init(&a, l->ctx, AIO_CLOCK_VIRTUAL, bh_from_timer, l->ctx);
  aio_timer_init(&z, l->ctx, AIO_CLOCK_VIRTUAL, note, "z");
  aio_timer_arm(&a, 10);
  aio_timer_arm(&z, 11);
  aio_bh_oneshot(l->ctx, note, "p");
  aio_vclock_advance(clock_under_test, 1000);
  CHECK_STR(check_log, "ptbz");
  CHECK_QUIET(l);
  done(l);
}

static void several_contexts_share_a_clock(Loop *l) {
  AioContext *second;
  AioTimer t[4];
  static char *const names[] = {"1", "2", "3", "4"};
  loop_on_clock(l);
  CHECK_EQ(aio_context_new(&second, &(AioOptions){.vclock = clock_under_test, .backend = l->backend}), 0);
  for (int i = 0; i < 4; i++) {
    aio_timer_init(&t[i], i % 2 ? second : l->ctx, AIO_CLOCK_VIRTUAL, note, names[i]);
    aio_timer_arm(&t[i], (i + 1) * 100);
  }
  aio_vclock_advance(clock_under_test, 300);
  CHECK_STR(check_log, "123");
  aio_context_unref(second); /* with a timer armed */
  aio_vclock_advance(clock_under_test, 300);
  CHECK_STR(check_log, "123");
  done(l);
}

static void advance_inside(void *opaque) {
  (void)opaque;
  note("(");
  aio_vclock_advance(clock_under_test, 100);
  note(")");
}

static void advanced_from_a_callback(Loop *l) {
  AioTimer t;
  loop_on_clock(l);
  aio_timer_init(&t, l->ctx, AIO_CLOCK_VIRTUAL, note, "t");
  aio_timer_arm(&t, 50);
  aio_bh_oneshot(l->ctx, advance_inside, NULL);
  turn(l, 0);
  CHECK_STR(check_log, "(t)");
  CHECK_EQ(aio_vclock_now(clock_under_test), 100);
  CHECK_QUIET(l);
  done(l);
}

static void runs_while_resumed(Loop *l) {
  Mark m;
  loop_on_clock(l);
  init(&m, l->ctx);
  aio_timer_arm(&m.t, 5 * MS);
  int64_t from = now_ns();
  aio_vclock_resume(clock_under_test);
  aio_vclock_resume(clock_under_test);
  CHECK(aio_context_timeout(l->ctx) <= 5 * MS);
  int turns = 0;
  for (; !m.runs; turns++) turn(l, AIO_FOREVER);
  CHECK(turns <= 4);
  CHECK(now_ns() - from >= 5 * MS);
  CHECK(m.fired_at >= 5 * MS);
  aio_vclock_pause(clock_under_test);
  int64_t stands_at = aio_vclock_now(clock_under_test);
  aio_vclock_pause(clock_under_test);
  aio_timer_arm(&m.t, stands_at + 1);
  CHECK(turns_in(l, 20 * MS) <= 4);
  CHECK_EQ(aio_vclock_now(clock_under_test), stands_at);
  CHECK_EQ(m.runs, 1);
  aio_vclock_resume(clock_under_test);
  aio_vclock_advance(clock_under_test, 3600 * SEC);
  CHECK_EQ(m.runs, 2);
  CHECK(aio_vclock_now(clock_under_test) >= 3600 * SEC);
  done(l);
}

static void *notify_later(void *ctx) {
  aio_notify(ctx);
  return NULL;
}

static void autojump_skips_the_wait(Loop *l) {
  Mark m;
  loop_on_clock(l);
  init(&m, l->ctx);
  aio_vclock_autojump(clock_under_test, true);
  m.again = 23;
  m.step = 3600 * SEC;
  aio_timer_arm(&m.t, 3600 * SEC);
  aio_bh_oneshot(l->ctx, note, "b");
  turn(l, AIO_FOREVER);
  CHECK_EQ(m.runs, 0); /* there was something to do first */
  RUN_UNTIL(l, m.runs == 24);
  CHECK_EQ(m.fired_at, 24 * 3600 * SEC);
  aio_vclock_autojump(clock_under_test, false);
  pthread_t t = start(notify_later, l->ctx);
  turn(l, AIO_FOREVER);
  pthread_join(t, NULL);
  done(l);
}

static void close_all(void *ctx) { aio_context_close(ctx); }

static void closed_while_advancing(Loop *l) {
  AioTimer a, b;
  loop_on_clock(l);
  aio_timer_init(&a, l->ctx, AIO_CLOCK_VIRTUAL, close_all, l->ctx);
  aio_timer_init(&b, l->ctx, AIO_CLOCK_VIRTUAL, note, "x");
  aio_timer_arm(&a, 10);
  aio_timer_arm(&b, 20);
  aio_vclock_advance(clock_under_test, 100);
  CHECK_STR(check_log, "");
  CHECK_EQ(aio_vclock_now(clock_under_test), 100);
  done(l);
}

static void reschedule(void *opaque) { aio_bh_schedule(opaque); }

static void advance_ends_though_a_bh_never_rests(Loop *l) {
  AioBH bh;
  Mark m;
  loop_on_clock(l);
  aio_bh_init(&bh, l->ctx, reschedule, &bh);
  init(&m, l->ctx);
  aio_bh_schedule(&bh);
  aio_timer_arm(&m.t, 10);
  aio_vclock_advance(clock_under_test, 100);
  CHECK_EQ(m.fired_at, 10);
  done(l);
}

static const Test tests[] = {
  TEST(kernel_clocks_go_forward),
  TEST(paused_until_advanced),
  TEST(advance_stops_at_every_deadline),
  TEST(consequences_come_before_the_next_deadline),
  TEST(several_contexts_share_a_clock),
  TEST(advanced_from_a_callback),
  TEST(runs_while_resumed),
  TEST(autojump_skips_the_wait),
  TEST(closed_while_advancing),
  TEST(advance_ends_though_a_bh_never_rests),
};

CHECK_MAIN(tests, "epoll +io_uring")
