/* SPDX-License-Identifier: MIT
 * Trace points: each has a name of its own, fires with the object it is about, and is silent when off. */
#include "check.h"

static int seen[AIO_TRACE_POINTS];
static const void *object[AIO_TRACE_POINTS];
static int64_t value[AIO_TRACE_POINTS];

static void record(AioTracePoint point, const void *obj, int64_t val, void *opaque) {
  CHECK(opaque == seen);
  CHECK((unsigned)point < AIO_TRACE_POINTS);
  seen[point]++;
  object[point] = obj;
  value[point] = val;
}

static void begin(void) {
  memset(seen, 0, sizeof seen);
  aio_trace_set(record, seen);
}

static void end(void) { aio_trace_set(NULL, NULL); }

static void names(Loop *l) {
  (void)l;
  for (int i = 0; i < AIO_TRACE_POINTS; i++) {
    const char *name = aio_trace_name((AioTracePoint)i);
    CHECK(name && *name);
    for (int j = 0; j < i; j++) CHECK(strcmp(name, aio_trace_name((AioTracePoint)j)));
  }
  CHECK(!aio_trace_name(AIO_TRACE_POINTS));
  CHECK(!aio_trace_name((AioTracePoint)-1));
}

static void nothing(void *opaque) { (void)opaque; }

static void bottom_halves(Loop *l) {
  AioBH bh;
  aio_bh_init(&bh, l->ctx, nothing, NULL);
  begin();
  aio_bh_schedule(&bh);
  turn(l, 0);
  end();
  CHECK_EQ(seen[AIO_TRACE_BH_RUN], 1);
  CHECK(object[AIO_TRACE_BH_RUN] == &bh);
  CHECK_EQ(value[AIO_TRACE_BH_RUN], 0);
  aio_bh_schedule_idle(&bh);
  begin();
  while (!seen[AIO_TRACE_BH_RUN]) turn(l, AIO_FOREVER);
  end();
  CHECK(value[AIO_TRACE_BH_RUN] != 0); /* an idle one */
}

static void coroutines(Loop *l) {
  AioCo co;
  aio_co_init(&co, l->ctx, nothing, NULL);
  begin();
  aio_co_schedule(&co, "trace");
  aio_co_schedule(&co, "trace"); /* refused: not traced */
  CHECK_EQ(seen[AIO_TRACE_CO_SCHEDULE], 1);
  CHECK_EQ(seen[AIO_TRACE_CO_ENTER], 0);
  turn(l, 0);
  end();
  CHECK_EQ(seen[AIO_TRACE_CO_ENTER], 1);
  CHECK(object[AIO_TRACE_CO_SCHEDULE] == &co && object[AIO_TRACE_CO_ENTER] == &co);
}

static void timers_and_fds(Loop *l) {
  AioTimer t;
  AioWatch w;
  AioNotifier n;
  CHECK_EQ(aio_notifier_open(&n), 0);
  aio_notifier_set(&n);
  CHECK_EQ(aio_watch_open(&w, l->ctx, n.rfd, AIO_READ, nothing, NULL, NULL), 0);
  aio_timer_init(&t, l->ctx, AIO_CLOCK_MONOTONIC, nothing, NULL);
  aio_timer_arm(&t, 0);
  begin();
  turn(l, 0);
  end();
  CHECK_EQ(seen[AIO_TRACE_TIMER_FIRE], 1);
  CHECK(object[AIO_TRACE_TIMER_FIRE] == &t);
  CHECK(value[AIO_TRACE_TIMER_FIRE] > 0);
  CHECK_EQ(seen[AIO_TRACE_FD_DISPATCH], 1);
  CHECK(object[AIO_TRACE_FD_DISPATCH] == &w);
  CHECK_EQ(value[AIO_TRACE_FD_DISPATCH], n.rfd);
  aio_watch_close(&w);
  aio_notifier_close(&n);
}

static void waits(Loop *l) {
  begin();
  turn(l, MS);
  turn(l, MS);
  end();
  CHECK_EQ(seen[AIO_TRACE_WAIT_BEGIN], 2);
  CHECK_EQ(seen[AIO_TRACE_WAIT_END], 2);
  CHECK(object[AIO_TRACE_WAIT_BEGIN] == l->ctx && object[AIO_TRACE_WAIT_END] == l->ctx);
}

static void polling(Loop *l) {
  aio_set_polling(l->ctx, 100 * MS, 2, 2);
  turn(l, 0);
  begin();
  turn(l, MS);
  CHECK_EQ(seen[AIO_TRACE_POLL_GROW], 1);
  CHECK_EQ(value[AIO_TRACE_POLL_GROW], 4000);
  turn(l, MS);
  CHECK_EQ(value[AIO_TRACE_POLL_GROW], 8000);
  turn(l, 101 * MS);
  end();
  CHECK_EQ(seen[AIO_TRACE_POLL_SHRINK], 1);
  CHECK_EQ(value[AIO_TRACE_POLL_SHRINK], 4000);
  CHECK(object[AIO_TRACE_POLL_GROW] == l->ctx && object[AIO_TRACE_POLL_SHRINK] == l->ctx);
}

static void off(Loop *l) {
  begin();
  end();
  aio_bh_oneshot(l->ctx, nothing, NULL);
  turn(l, 0);
  turn(l, MS);
  for (int i = 0; i < AIO_TRACE_POINTS; i++) CHECK_EQ(seen[i], 0);
}

static const Test tests[] = {
  TEST(names),
  TEST(bottom_halves),
  TEST(coroutines),
  TEST(timers_and_fds),
  TEST_POLL(waits),
  TEST_POLL(polling),
  TEST(off),
};

CHECK_MAIN(tests, "epoll")
