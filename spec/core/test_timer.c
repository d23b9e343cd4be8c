/* SPDX-License-Identifier: MIT
 * Timers: never early, in order, once for each arming, and no wait that spins through its last millisecond. */
#include <sys/syscall.h>
#include <time.h>

#include "check.h"

/* wrap: clock_gettime realloc syscall */

static int64_t realtime_offset; /* somebody sets the wall clock */
static bool no_memory, old_kernel;

int __real_clock_gettime(clockid_t id, struct timespec *ts);
int __wrap_clock_gettime(clockid_t id, struct timespec *ts);
int __wrap_clock_gettime(clockid_t id, struct timespec *ts) {
  int rc = __real_clock_gettime(id, ts);
  if (id == CLOCK_REALTIME) ts->tv_sec += realtime_offset / SEC;
  return rc;
}

void *__real_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size) { return no_memory ? NULL : __real_realloc(p, size); }

long __real_syscall(long n, ...);
long __wrap_syscall(long n, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long n, long a, long b, long c, long d, long e, long f) {
  if (old_kernel) return errno = ENOSYS, -1;
  return __real_syscall(n, a, b, c, d, e, f);
}

typedef struct Alarm { /* a timer that knows when it should fire, and what it does then */
  AioTimer t;
  int64_t deadline; /* as asked for */
  int runs;
  void (*then)(struct Alarm *a);
  struct Alarm *other;
  Loop *l;
} Alarm;

static void fire(void *opaque) {
  Alarm *a = opaque;
  CHECK(aio_timer_now(&a->t) >= a->deadline); /* never early */
  CHECK(!aio_timer_armed(&a->t));
  CHECK_EQ(aio_timer_deadline(&a->t), AIO_FOREVER);
  a->runs++;
  if (a->then) a->then(a);
}

static void set(Alarm *a, int64_t deadline) {
  a->deadline = deadline;
  CHECK_EQ(aio_timer_arm(&a->t, deadline), 0);
}

static void init(Alarm *a, Loop *l, void (*then)(Alarm *)) {
  *a = (Alarm){.then = then, .l = l};
  aio_timer_init(&a->t, l->ctx, AIO_CLOCK_MONOTONIC, fire, a);
}

static void fires_once_and_not_early(Loop *l) {
  Alarm a;
  init(&a, l, NULL);
  CHECK(!aio_timer_armed(&a.t));
  CHECK_EQ(aio_timer_deadline(&a.t), AIO_FOREVER);
  for (int i = 1; i <= 20; i++) {
    set(&a, now_ns() + i * 337777);
    CHECK(aio_timer_armed(&a.t));
    CHECK_EQ(aio_timer_deadline(&a.t), a.deadline);
    int turns = 0;
    for (; a.runs < i; turns++) turn(l, AIO_FOREVER);
    CHECK(turns <= 4); /* no spinning towards the deadline */
  }
  CHECK_QUIET(l);
  CHECK_RESTS(l);
  set(&a, now_ns() + MS);
  aio_timer_disarm(&a.t);
  aio_timer_disarm(&a.t);
  CHECK(!aio_timer_armed(&a.t));
  CHECK(turns_in(l, 30 * MS) <= 8);
  CHECK_EQ(a.runs, 20);
}

static void arm_again(Alarm *a) {
  if (a->runs < 3) set(a, now_ns() + 2 * MS);
}

static void rearmed_in_its_callback(Loop *l) {
  Alarm a;
  init(&a, l, arm_again);
  set(&a, now_ns());
  RUN_UNTIL(l, a.runs == 3);
  CHECK_QUIET(l);
  CHECK(turns_in(l, 20 * MS) <= 8);
  CHECK_EQ(a.runs, 3);
}

static void anticipate(Loop *l) {
  Alarm a;
  int64_t far = now_ns() + 3600 * SEC, near = far - 1800 * SEC;
  init(&a, l, NULL);
  CHECK_EQ(aio_timer_anticipate(&a.t, near), 0); /* not armed: arms */
  CHECK_EQ(aio_timer_deadline(&a.t), near);
  CHECK_EQ(aio_timer_anticipate(&a.t, far), 0);
  CHECK_EQ(aio_timer_deadline(&a.t), near);
  CHECK_EQ(aio_timer_anticipate(&a.t, near - 1), 0);
  CHECK_EQ(aio_timer_deadline(&a.t), near - 1);
  CHECK_EQ(aio_timer_arm(&a.t, far), 0);
  CHECK_EQ(aio_timer_deadline(&a.t), far);
  CHECK_EQ(aio_timer_anticipate(&a.t, AIO_FOREVER), 0);
  CHECK_EQ(aio_timer_deadline(&a.t), far);
  CHECK_EQ(aio_timer_arm(&a.t, AIO_FOREVER), 0);
  CHECK(!aio_timer_armed(&a.t));
  CHECK_QUIET(l);
}

static void negative_is_now_and_huge_is_far(Loop *l) {
  Alarm a, b;
  init(&a, l, NULL);
  init(&b, l, NULL);
  CHECK_EQ(aio_timer_arm(&a.t, INT64_MIN), 0);
  CHECK_EQ(aio_timer_arm(&b.t, AIO_FOREVER - 1), 0);
  CHECK_EQ(aio_context_timeout(l->ctx), 0);
  CHECK(turn(l, AIO_FOREVER));
  CHECK_EQ(a.runs, 1);
  CHECK(turns_in(l, 30 * MS) <= 8);
  CHECK_EQ(b.runs, 0);
  aio_timer_disarm(&b.t);
}

static void equal_deadlines_fire_in_arming_order(Loop *l) {
  static char *const names[] = {"a", "b", "c", "d", "e", "f"};
  AioTimer t[6];
  int64_t when = now_ns() + 2 * MS;
  for (int i = 0; i < 6; i++) {
    aio_timer_init(&t[i], l->ctx, AIO_CLOCK_MONOTONIC, note, names[i]);
    aio_timer_arm(&t[i], when);
  }
  aio_timer_arm(&t[1], when); /* behind its equals */
  aio_timer_anticipate(&t[2], when); /* stays */
  aio_timer_disarm(&t[0]);
  aio_timer_arm(&t[0], when);
  while (strlen(check_log) < 6) turn(l, AIO_FOREVER);
  CHECK_STR(check_log, "cdefba");
  CHECK_QUIET(l);
}

/* ---- within a run ---- */

static void arm_in_the_past(Alarm *a) {
  note("p");
  a->deadline = 0;
  CHECK_EQ(aio_timer_arm(&a->t, a->runs % 2 ? 0 : -5), 0);
}

static void note_n(Alarm *a) { note("n"), set(a, 0); }

static void rearmed_in_the_past_waits_for_the_next_turn(Loop *l) {
  Alarm a, b;
  init(&a, l, arm_in_the_past);
  init(&b, l, note_n);
  set(&a, 0);
  set(&b, 1);
  for (int i = 1; i <= 5; i++) {
    turn(l, AIO_FOREVER);
    CHECK_EQ(a.runs, i);
    CHECK_EQ(b.runs, i); /* neither hides the other */
  }
  CHECK_STR(check_log, "pnpnpnpnpn");
  aio_timer_disarm(&a.t);
  aio_timer_disarm(&b.t);
  CHECK_QUIET(l);
}

static void arm_other_now(Alarm *a) { set(a->other, 0); }

static void armed_by_a_neighbour_waits(Loop *l) {
  Alarm a, b;
  init(&a, l, arm_other_now);
  init(&b, l, NULL);
  a.other = &b;
  set(&a, 0);
  turn(l, 0);
  CHECK(a.runs == 1 && b.runs == 0);
  turn(l, AIO_FOREVER);
  CHECK_EQ(b.runs, 1);
  CHECK_QUIET(l);
}

/* The same for a timer on a clock that the same run comes to later. */
static void armed_on_another_clock_waits(Loop *l) {
  Alarm a, b, c;
  init(&a, l, arm_other_now);
  init(&b, l, NULL);
  init(&c, l, NULL);
  aio_timer_init(&b.t, l->ctx, AIO_CLOCK_REALTIME, fire, &b);
  aio_timer_init(&c.t, l->ctx, AIO_CLOCK_REALTIME, fire, &c);
  a.other = &b;
  set(&a, 0);
  set(&c, 1);
  turn(l, 0);
  CHECK(a.runs == 1 && b.runs == 0);
  CHECK_EQ(c.runs, 1); /* due before, and not held up by the newcomer */
  turn(l, AIO_FOREVER);
  CHECK_EQ(b.runs, 1);
  CHECK_QUIET(l);
}

static void disarm_other(Alarm *a) { aio_timer_disarm(&a->other->t); }

static void cancelled_by_a_neighbour(Loop *l) {
  Alarm a, b;
  init(&a, l, disarm_other);
  init(&b, l, disarm_other);
  a.other = &b;
  b.other = &a;
  set(&a, 0);
  set(&b, 0);
  turn(l, 0);
  CHECK(a.runs == 1 && b.runs == 0);
  CHECK_QUIET(l);
  CHECK_EQ(b.runs, 0);
}

static void free_self_and_other(Alarm *a) {
  aio_timer_disarm(&a->other->t);
  free(a->other);
  free(a);
}

static void freed_in_a_callback(Loop *l) {
  Alarm *a = malloc(sizeof *a), *b = malloc(sizeof *b);
  init(a, l, free_self_and_other);
  init(b, l, free_self_and_other);
  a->other = b;
  b->other = a;
  set(a, 0);
  set(b, 0);
  turn(l, 0);
  CHECK_QUIET(l);
}

static void nest(Alarm *a) {
  note("(");
  set(a->other, 0);
  turn(a->l, 0);
  note(")");
}

static void note_other(Alarm *a) {
  note("o");
  (void)a;
}

static void nested_turn_runs_what_is_left(Loop *l) {
  Alarm a, b;
  AioTimer c;
  init(&a, l, nest);
  init(&b, l, note_other);
  aio_timer_init(&c, l->ctx, AIO_CLOCK_MONOTONIC, note, "c");
  a.other = &b;
  set(&a, 0);
  aio_timer_arm(&c, 0);
  turn(l, 0);
  CHECK_STR(check_log, "(co)");
  CHECK_EQ(a.runs, 1);
  CHECK_QUIET(l);
}

/* ---- clocks ---- */

static void every_clock(Loop *l) {
  for (AioClock clock = AIO_CLOCK_MONOTONIC; clock < AIO_CLOCK_VIRTUAL; clock++) {
    Alarm a;
    init(&a, l, NULL);
    aio_timer_init(&a.t, l->ctx, clock, fire, &a);
    int64_t from = aio_clock_now(clock);
    CHECK(aio_timer_now(&a.t) >= from);
    set(&a, from + 3 * MS);
    RUN_UNTIL(l, a.runs == 1);
    CHECK(aio_clock_now(clock) >= from + 3 * MS);
    CHECK_QUIET(l);
  }
}

static void set_wall_clock(void *seconds) { realtime_offset += (int64_t)(intptr_t)seconds * SEC; }

static void the_wall_clock_jumps(Loop *l) {
  Alarm wall, mono;
  init(&wall, l, NULL);
  init(&mono, l, NULL);
  aio_timer_init(&wall.t, l->ctx, AIO_CLOCK_REALTIME, fire, &wall);
  set(&mono, now_ns() + 20 * MS);
  set(&wall, aio_clock_now(AIO_CLOCK_REALTIME) + 3600 * SEC);
  aio_bh_oneshot(l->ctx, set_wall_clock, (void *)3601);
  RUN_UNTIL(l, wall.runs == 1);
  RUN_UNTIL(l, mono.runs == 1); /* which no jump moves */
  set(&wall, aio_clock_now(AIO_CLOCK_REALTIME) + 2 * MS);
  set(&mono, now_ns() + 30 * MS);
  aio_bh_oneshot(l->ctx, set_wall_clock, (void *)-7200);
  RUN_UNTIL(l, mono.runs == 2);
  CHECK_EQ(wall.runs, 1); /* two hours to go now */
  CHECK(aio_context_timeout(l->ctx) > 7000 * SEC);
  CHECK(turns_in(l, 30 * MS) <= 8);
  aio_timer_disarm(&wall.t);
}

/* ---- refusals ---- */

static void refusals(Loop *l) {
  Alarm a;
  init(&a, l, NULL);
  no_memory = true;
  int rc = aio_timer_arm(&a.t, 0);
  no_memory = false;
  CHECK_EQ(rc, -ENOMEM);
  CHECK(!aio_timer_armed(&a.t));
  CHECK_QUIET(l);
  aio_timer_init(&a.t, l->ctx, AIO_CLOCK_VIRTUAL, fire, &a);
  CHECK_EQ(aio_timer_arm(&a.t, 0), -EINVAL); /* the context has none */
  CHECK(!aio_timer_armed(&a.t));
  init(&a, l, NULL);
  set(&a, 0);
  aio_context_close(l->ctx);
  CHECK(!aio_timer_armed(&a.t));
  CHECK_EQ(aio_timer_arm(&a.t, 0), -ESHUTDOWN);
  aio_timer_disarm(&a.t);
}

/* ---- many ---- */

static int64_t last_deadline;
static uint32_t last_order, fired;

typedef struct Entry {
  AioTimer t;
  int64_t deadline;
  uint32_t order; /* of arming */
  bool live;
} Entry;

static void in_order(void *opaque) {
  Entry *e = opaque;
  CHECK(e->live);
  CHECK(now_ns() >= e->deadline);
  CHECK(e->deadline > last_deadline || (e->deadline == last_deadline && e->order > last_order));
  e->live = false;
  last_deadline = e->deadline;
  last_order = e->order;
  fired++;
}

static void ten_thousand_deadlines(Loop *l) {
  enum { N = 10000 };
  Entry *e = calloc(N, sizeof *e);
  uint32_t seed = 99;
  int64_t from = now_ns() + 20 * MS;
  last_deadline = fired = 0;
  for (uint32_t i = 0; i < N; i++) {
    e[i] = (Entry){.deadline = from + rnd(&seed) % (400 * MS), .order = i + 1, .live = true};
    aio_timer_init(&e[i].t, l->ctx, AIO_CLOCK_MONOTONIC, in_order, &e[i]);
    CHECK_EQ(aio_timer_arm(&e[i].t, e[i].deadline), 0);
  }
  uint32_t turns = 0, hits = 0;
  for (uint32_t before; fired < N; turns++, hits += fired > before) before = fired, turn(l, AIO_FOREVER);
  CHECK(turns <= 2 * hits + 8); /* at most one wake-up too many for each that found something due */
  CHECK_QUIET(l);
  free(e);
}

/* A million live; then half as many random changes; what is left fires in the order of a comparison sort. */
static void a_million_timers(Loop *l) {
  uint32_t n = (uint32_t)check_scale(1000000), seed = 1234, order = 0, live = 0;
  Entry *e = calloc(n, sizeof *e);
  last_deadline = fired = 0;
  int64_t from = now_ns() + 3600 * SEC; /* nothing is due while they are arranged */
  for (uint32_t i = 0; i < n; i++) {
    aio_timer_init(&e[i].t, l->ctx, AIO_CLOCK_MONOTONIC, in_order, &e[i]);
    e[i] = (Entry){.t = e[i].t, .deadline = from + rnd(&seed) % 500000, .order = ++order, .live = true};
    CHECK_EQ(aio_timer_arm(&e[i].t, e[i].deadline), 0);
  }
  AioStats stats;
  aio_context_stats(l->ctx, &stats);
  CHECK_EQ(stats.timers_armed, n);
  for (uint32_t k = 0; k < n / 2; k++) {
    Entry *x = &e[rnd(&seed) % n];
    if (rnd(&seed) % 3 == 0) {
      aio_timer_disarm(&x->t);
      x->live = false;
    } else {
      x->deadline = from + rnd(&seed) % 500000;
      x->order = ++order;
      x->live = true;
      CHECK_EQ(aio_timer_arm(&x->t, x->deadline), 0);
    }
  }
  for (uint32_t i = 0; i < n; i++) { /* the whole window comes down to the near future, in two halves */
    if (!e[i].live) continue;
    live++;
    e[i].deadline = e[i].deadline - from + (i % 2 ? 1 : now_ns());
    e[i].order = ++order;
    CHECK_EQ(aio_timer_arm(&e[i].t, e[i].deadline), 0);
  }
  RUN_UNTIL(l, fired == live);
  CHECK_QUIET(l);
  for (uint32_t i = 0; i < n; i++) CHECK(!aio_timer_armed(&e[i].t));
  free(e);
}

/* Last: without epoll_pwait2 waits are in milliseconds, rounded up, and the process remembers. */
static void old_kernels_have_milliseconds(Loop *l) {
  Alarm a;
  old_kernel = true;
  init(&a, l, NULL);
  for (int i = 1; i <= 10; i++) {
    set(&a, now_ns() + i * 377777);
    int turns = 0;
    for (; a.runs < i; turns++) turn(l, AIO_FOREVER);
    CHECK(turns <= 4);
  }
  CHECK_RESTS(l);
  old_kernel = false;
}

static const Test tests[] = {
  TEST(fires_once_and_not_early),
  TEST(rearmed_in_its_callback),
  TEST(anticipate),
  TEST(negative_is_now_and_huge_is_far),
  TEST(equal_deadlines_fire_in_arming_order),
  TEST(rearmed_in_the_past_waits_for_the_next_turn),
  TEST(armed_by_a_neighbour_waits),
  TEST(armed_on_another_clock_waits),
  TEST(cancelled_by_a_neighbour),
  TEST(freed_in_a_callback),
  TEST(nested_turn_runs_what_is_left),
  TEST(every_clock),
  TEST(the_wall_clock_jumps),
  TEST(refusals),
  TEST(ten_thousand_deadlines),
  TEST(a_million_timers),
  TEST(old_kernels_have_milliseconds),
};

CHECK_MAIN(tests, "epoll +poll +io_uring")
