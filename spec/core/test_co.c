/* SPDX-License-Identifier: MIT
 * Coroutines as the loop sees them: entered once for each scheduling, in order, in one loop that needs no C stack. */
#include <limits.h>

#include "check.h"

typedef struct Co { /* stands for a coroutine: each entry runs `step` */
  AioCo co;
  void (*step)(struct Co *c);
  struct Co *next, *also;
  long entries, limit;
  Loop *l;
  char *name;
} Co;

static void enter(void *opaque) {
  Co *c = opaque;
  CHECK(aio_co_running(c->l->ctx) == &c->co);
  c->entries++;
  if (c->name) note(c->name);
  if (c->step) c->step(c);
}

static void init(Co *c, Loop *l, void (*step)(Co *), char *name) {
  *c = (Co){.step = step, .l = l, .name = name};
  aio_co_init(&c->co, l->ctx, enter, c);
}

static void not_scheduled(Co *c) { CHECK(aio_co_scheduled_by(&c->co) == NULL); }

static void scheduled_once(Loop *l) {
  Co c;
  init(&c, l, not_scheduled, NULL);
  CHECK(aio_co_scheduled_by(&c.co) == NULL);
  CHECK_EQ(aio_co_schedule(&c.co, "first"), 0);
  CHECK_STR(aio_co_scheduled_by(&c.co), "first");
  CHECK_EQ(aio_co_schedule(&c.co, "second"), -EALREADY);
  CHECK_EQ(aio_co_wake(&c.co, "third"), -EALREADY);
  CHECK_STR(aio_co_scheduled_by(&c.co), "first");
  CHECK_EQ(c.entries, 0);
  CHECK(turn(l, AIO_FOREVER));
  CHECK_EQ(c.entries, 1);
  CHECK(aio_co_scheduled_by(&c.co) == NULL);
  CHECK(aio_co_running(l->ctx) == NULL);
  CHECK_QUIET(l);
  CHECK_EQ(aio_co_schedule(&c.co, "again"), 0);
  CHECK(turn(l, AIO_FOREVER));
  CHECK_EQ(c.entries, 2);
}

static void fifo_together_with_bhs(Loop *l) {
  Co c[3];
  init(&c[0], l, NULL, "a");
  init(&c[1], l, NULL, "b");
  init(&c[2], l, NULL, "c");
  aio_co_schedule(&c[1].co, "test");
  aio_bh_oneshot(l->ctx, note, "1");
  aio_co_schedule(&c[0].co, "test");
  aio_bh_oneshot(l->ctx, note, "2");
  aio_co_schedule(&c[2].co, "test");
  turn(l, 0);
  CHECK_STR(check_log, "b1a2c");
}

static void wake_next_and_also(Co *c) {
  if (c->next) CHECK_EQ(aio_co_wake(&c->next->co, "enter"), 0);
  if (c->also) CHECK_EQ(aio_co_wake(&c->also->co, "enter"), 0);
  note("."); /* the woken wait until this one has yielded */
}

static void order_of_interleavings(Loop *l) {
  Co a, b, c, d;
  init(&a, l, wake_next_and_also, "A");
  init(&b, l, wake_next_and_also, "B");
  init(&c, l, wake_next_and_also, "C");
  init(&d, l, wake_next_and_also, "D");
  a.next = &b;
  a.also = &d;
  b.next = &c;
  aio_co_schedule(&a.co, "test");
  aio_bh_oneshot(l->ctx, note, "!");
  turn(l, 0);
  CHECK_STR(check_log, "A.B.C.D.!");
  CHECK_QUIET(l);
}

static void wake_from_bh(void *opaque) {
  Co *c = opaque;
  note("(");
  CHECK_EQ(aio_co_wake(&c->co, "bh"), 0); /* outside of coroutines: entered now */
  note(")");
}

static void woken_outside_is_entered_now(Loop *l) {
  Co a, b;
  init(&a, l, wake_next_and_also, "A");
  init(&b, l, NULL, "B");
  a.next = &b;
  aio_bh_oneshot(l->ctx, wake_from_bh, &a);
  turn(l, 0);
  CHECK_STR(check_log, "(A.B)");
  if (!is_glib(l)) { /* outside of any turn nobody is home: scheduled */
    CHECK_EQ(aio_co_wake(&a.co, "main"), 0);
    CHECK_EQ(a.entries, 1);
    turn(l, AIO_FOREVER);
    CHECK_EQ(a.entries, 2);
  }
  aio_context_set_home(l->ctx);
  long before = a.entries;
  CHECK_EQ(aio_co_wake(&a.co, "home"), 0);
  CHECK_EQ(a.entries, before + 1);
  CHECK_EQ(b.entries, before + 1);
  CHECK_QUIET(l);
}

static void *wake_it(void *opaque) {
  Co *c = opaque;
  CHECK_EQ(aio_co_wake(&c->co, "worker"), 0);
  return NULL;
}

static void *wake_back_and_forth(void *opaque) {
  Co *c = opaque;
  for (long i = 0; i < c->limit; i++)
    while (aio_co_wake(&c->co, "worker") == -EALREADY) sched_yield();
  return NULL;
}

static void worker_thread_wakes(Loop *l) {
  Co c;
  init(&c, l, NULL, NULL);
  pthread_join(start(wake_it, &c), NULL);
  CHECK_STR(aio_co_scheduled_by(&c.co), "worker");
  CHECK_EQ(c.entries, 0);
  turn(l, AIO_FOREVER);
  CHECK_EQ(c.entries, 1);
  c.limit = check_scale(20000);
  pthread_t t = start(wake_back_and_forth, &c);
  RUN_UNTIL(l, c.entries == 1 + c.limit);
  pthread_join(t, NULL);
  CHECK_QUIET(l);
}

/* ---- chains ---- */

static uintptr_t lowest, highest;

static void measure_stack(void) {
  uintptr_t here = (uintptr_t)__builtin_frame_address(0);
  if (!lowest || here < lowest) lowest = here;
  if (here > highest) highest = here;
}

static void wake_next(Co *c) {
  measure_stack();
  if (c->next && c->entries < c->limit) CHECK_EQ(aio_co_wake(&c->next->co, "chain"), 0);
}

static void chain_of(Loop *l, long n) {
  Co *c = calloc((size_t)n, sizeof *c);
  lowest = highest = 0;
  for (long i = 0; i < n; i++) {
    init(&c[i], l, wake_next, NULL);
    c[i].limit = 2;
    c[i].next = i + 1 < n ? &c[i + 1] : NULL;
  }
  aio_co_schedule(&c[0].co, "test");
  RUN_UNTIL(l, c[n - 1].entries == 1);
  for (long i = 0; i < n; i++) CHECK_EQ(c[i].entries, 1);
  CHECK(highest - lowest < 4096);
  free(c);
}

static void long_chains(Loop *l) {
  chain_of(l, 25000);
  chain_of(l, 100000);
}

static void mutual_wake_ups(Loop *l) {
  Co a, b;
  init(&a, l, wake_next, NULL);
  init(&b, l, wake_next, NULL);
  a.next = &b;
  b.next = &a;
  a.limit = b.limit = 100000;
  lowest = highest = 0;
  aio_co_schedule(&a.co, "test");
  RUN_UNTIL(l, a.entries == a.limit);
  CHECK_EQ(b.entries, b.limit - 1);
  CHECK(highest - lowest < 4096);
  CHECK_QUIET(l);
}

static void set_flag(void *flag) { *(bool *)flag = true; }

/* Two that wake each other for ever, and one that wakes itself, leave turns for the rest of the loop. */
static void endless_wake_ups_starve_nobody(Loop *l) {
  Co a, b, self;
  AioTimer t;
  bool fired = false;
  init(&a, l, wake_next, NULL);
  init(&b, l, wake_next, NULL);
  init(&self, l, wake_next, NULL);
  a.next = &b;
  b.next = &a;
  self.next = &self;
  a.limit = b.limit = self.limit = LONG_MAX;
  aio_timer_init(&t, l->ctx, AIO_CLOCK_MONOTONIC, set_flag, &fired);
  aio_timer_arm(&t, now_ns() + MS);
  aio_co_schedule(&a.co, "test");
  aio_co_schedule(&self.co, "test");
  RUN_UNTIL(l, fired);
  CHECK(aio_context_busy(l->ctx));
  aio_co_close(&a.co);
  aio_co_close(&b.co);
  aio_co_close(&self.co);
  CHECK_QUIET(l);
}

/* ---- life ---- */

static int alive;

static void free_self(Co *c) {
  alive--;
  free(c);
}

static void freed_by_its_own_entry(Loop *l) {
  for (int i = 0; i < 10; i++) {
    Co *c = malloc(sizeof *c);
    init(c, l, free_self, NULL);
    alive++;
    if (i % 2)
      aio_co_schedule(&c->co, "test");
    else
      pthread_join(start(wake_it, c), NULL);
  }
  turn(l, AIO_FOREVER);
  CHECK_EQ(alive, 0);
  CHECK_QUIET(l);
}

static void close_next(Co *c) {
  CHECK_EQ(aio_co_wake(&c->next->co, "x"), 0);
  CHECK_EQ(aio_co_wake(&c->also->co, "x"), 0);
  aio_co_close(&c->next->co);
  free(c->next);
}

static void closed_while_queued(Loop *l) {
  Co a, c, *b = malloc(sizeof *b);
  init(&a, l, close_next, "a");
  init(b, l, NULL, "b");
  init(&c, l, NULL, "c");
  a.next = b;
  a.also = &c;
  aio_co_schedule(&a.co, "test");
  turn(l, 0);
  CHECK_STR(check_log, "ac");
  b = malloc(sizeof *b);
  init(b, l, NULL, "b");
  aio_co_schedule(&b->co, "test");
  aio_co_close(&b->co);
  CHECK(aio_co_scheduled_by(&b->co) == NULL);
  pthread_join(start(wake_it, b), NULL);
  aio_co_close(&b->co);
  free(b);
  CHECK_QUIET(l);
}

/* The last in the queue is closed, then more are woken: they go where it was. */
static void close_last_and_wake(Co *c) {
  CHECK_EQ(aio_co_wake(&c->next->co, "x"), 0);
  CHECK_EQ(aio_co_wake(&c->also->co, "x"), 0);
  aio_co_close(&c->also->co);
  CHECK_EQ(aio_co_wake(&c->also->next->co, "x"), 0);
}

static void queue_goes_on_after_a_close(Loop *l) {
  Co a, b, c, d, e;
  init(&a, l, wake_next_and_also, "a");
  init(&b, l, close_last_and_wake, "b");
  init(&c, l, NULL, "c");
  init(&d, l, NULL, "d");
  init(&e, l, NULL, "e");
  a.next = &b;
  a.also = &e;
  b.next = &c;
  b.also = &d;
  d.next = &c; /* not entered: it is closed */
  Co f;
  init(&f, l, NULL, "f");
  d.next = &f;
  aio_co_schedule(&a.co, "test");
  turn(l, 0);
  CHECK_STR(check_log, "a.bcfe");
  CHECK_QUIET(l);
}

static void close_context(Co *c) {
  CHECK_EQ(aio_co_wake(&c->next->co, "x"), 0);
  aio_context_close(c->l->ctx);
  CHECK(aio_co_scheduled_by(&c->next->co) == NULL);
  CHECK_EQ(aio_co_wake(&c->next->co, "x"), -ESHUTDOWN);
  CHECK_EQ(aio_co_schedule(&c->next->co, "x"), -ESHUTDOWN);
}

static void context_closed_inside(Loop *l) {
  Co a, b, c;
  init(&a, l, close_context, "a");
  init(&b, l, NULL, "b");
  init(&c, l, NULL, "c");
  a.next = &b;
  aio_co_schedule(&a.co, "test");
  aio_co_schedule(&c.co, "test");
  turn(l, 0);
  turn(l, 0);
  CHECK_STR(check_log, "a");
  CHECK(aio_co_scheduled_by(&c.co) == NULL);
}

/* ---- behind the others that are due ---- */

static void wake_next_last(Co *c) {
  CHECK_EQ(aio_co_wake_last(&c->next->co, "last"), 0);
  CHECK_STR(aio_co_scheduled_by(&c->next->co), "last");
  CHECK_EQ(aio_co_wake_last(&c->next->co, "twice"), -EALREADY);
  CHECK_EQ(aio_co_wake(&c->next->co, "twice"), -EALREADY);
  if (c->also) CHECK_EQ(aio_co_schedule(&c->also->co, "next turn"), 0);
  note(".");
}

static void last_is_behind_what_is_due(Loop *l) {
  Co a, b, c, d, e;
  init(&a, l, wake_next_last, "A");
  init(&b, l, wake_next_and_also, "B");
  init(&c, l, wake_next_last, "C");
  init(&d, l, NULL, "D");
  init(&e, l, NULL, "E");
  a.next = &c;
  a.also = &e; /* comes with the next turn */
  c.next = &d;
  aio_co_schedule(&a.co, "test");
  aio_bh_oneshot(l->ctx, note, "!");
  aio_co_schedule(&b.co, "test");
  aio_bh_oneshot(l->ctx, note, "?");
  turn(l, 0);
  CHECK_STR(check_log, "A.!B.?C.D");
  turn(l, 0);
  CHECK_STR(check_log, "A.!B.?C.DE");
  CHECK_QUIET(l);
}

static void last_outside_is_scheduled(Loop *l) {
  Co a;
  init(&a, l, NULL, "A");
  aio_context_set_home(l->ctx);
  CHECK_EQ(aio_co_wake_last(&a.co, "home"), 0);
  CHECK_EQ(a.entries, 0);
  turn(l, 0);
  CHECK_EQ(a.entries, 1);
  CHECK_QUIET(l);
}

static void wake_last_and_close(Co *c) {
  CHECK_EQ(aio_co_wake_last(&c->next->co, "x"), 0);
  CHECK_EQ(aio_co_wake_last(&c->also->co, "x"), 0);
  aio_co_close(&c->next->co);
  CHECK(aio_co_scheduled_by(&c->next->co) == NULL);
  free(c->next);
}

static void last_is_closed_while_queued(Loop *l) {
  Co a, c, *b = malloc(sizeof *b);
  init(&a, l, wake_last_and_close, "a");
  init(b, l, NULL, "b");
  init(&c, l, NULL, "c");
  a.next = b;
  a.also = &c;
  aio_co_schedule(&a.co, "test");
  turn(l, 0);
  CHECK_STR(check_log, "ac");
  CHECK_QUIET(l);
}

static void wake_last_and_nest(Co *c) {
  CHECK_EQ(aio_co_wake_last(&c->next->co, "x"), 0);
  CHECK(aio_context_busy(c->l->ctx));
  note("(");
  turn(c->l, AIO_FOREVER); /* does not wait: somebody is to be entered */
  note(")");
}

static void last_is_entered_by_a_nested_turn(Loop *l) {
  Co a, b;
  init(&a, l, wake_last_and_nest, "a");
  init(&b, l, NULL, "b");
  a.next = &b;
  aio_co_schedule(&a.co, "test");
  turn(l, 0);
  CHECK_STR(check_log, "a(b)");
  CHECK_QUIET(l);
}

static void wake_last_and_close_context(Co *c) {
  CHECK_EQ(aio_co_wake_last(&c->next->co, "x"), 0);
  aio_context_close(c->l->ctx);
  CHECK(aio_co_scheduled_by(&c->next->co) == NULL);
  CHECK_EQ(aio_co_wake_last(&c->next->co, "x"), -ESHUTDOWN);
}

static void context_closed_before_the_last(Loop *l) {
  Co a, b;
  init(&a, l, wake_last_and_close_context, "a");
  init(&b, l, NULL, "b");
  a.next = &b;
  aio_co_schedule(&a.co, "test");
  turn(l, 0);
  CHECK_STR(check_log, "a");
}

/* ---- nesting ---- */

static void nest(Co *c) {
  CHECK_EQ(aio_co_wake(&c->next->co, "x"), 0);
  note("(");
  turn(c->l, 0); /* enters what is woken */
  note(")");
  CHECK(aio_co_running(c->l->ctx) == &c->co);
  CHECK_EQ(aio_co_wake(&c->also->co, "x"), 0);
  note(".");
}

static void not_inside(void *opaque) {
  Loop *l = opaque;
  CHECK(aio_co_running(l->ctx) == NULL); /* a callback of a nested turn is in no coroutine */
  note("n");
}

static void nested_turn_in_a_coroutine(Loop *l) {
  Co a, b, c;
  init(&a, l, nest, "a");
  init(&b, l, NULL, "b");
  init(&c, l, NULL, "c");
  a.next = &b;
  a.also = &c;
  aio_co_schedule(&a.co, "test");
  aio_bh_oneshot(l->ctx, not_inside, l);
  turn(l, 0);
  CHECK_STR(check_log, "a(bn).c");
  CHECK_QUIET(l);
}

/* ---- the context's lock ---- */

static atomic_bool about_to_acquire, has_left;

static void *acquire_it(void *opaque) {
  AioContext *ctx = opaque;
  atomic_store(&about_to_acquire, true);
  aio_context_acquire(ctx);
  CHECK(atomic_load(&has_left));
  aio_context_release(ctx);
  return NULL;
}

static pthread_t contender;

static void be_contended(Co *c) {
  aio_context_acquire(c->l->ctx); /* recursive */
  contender = start(acquire_it, c->l->ctx);
  while (!atomic_load(&about_to_acquire)) sched_yield();
  for (int i = 0; i < 1000; i++) sched_yield();
  aio_context_release(c->l->ctx);
  for (int i = 0; i < 1000; i++) sched_yield();
  atomic_store(&has_left, true);
}

static void entered_holding_the_context(Loop *l) {
  Co c;
  atomic_store(&about_to_acquire, false);
  atomic_store(&has_left, false);
  init(&c, l, be_contended, NULL);
  aio_co_schedule(&c.co, "test");
  turn(l, AIO_FOREVER);
  pthread_join(contender, NULL);
}

/* ---- several contexts ---- */

typedef struct Player { /* a coroutine in its own thread's loop that wakes the other one */
  Co co;
  AioContext *ctx;
  struct Player *other;
  Loop loop;
  bool serves_last;
} Player;

enum { RALLIES = 20000 };
static long rallies;

static void hit(Co *c) {
  Player *p = (Player *)(void *)c;
  if (p->co.entries < p->co.limit || p->serves_last) CHECK_EQ(aio_co_wake(&p->other->co.co, "player"), 0);
}

static void *play(void *opaque) {
  Player *p = opaque;
  p->loop.driver->open(&p->loop);
  RUN_UNTIL(&p->loop, p->co.entries == rallies);
  loop_close(&p->loop);
  return NULL;
}

static void threads_wake_each_other(Loop *l) {
  static Player p[2];
  pthread_t t[2];
  rallies = check_scale(RALLIES);
  for (int i = 0; i < 2; i++) {
    p[i] = (Player){.other = &p[1 - i], .loop = {.driver = l->driver, .backend = l->backend}};
    CHECK_EQ(aio_context_new(&p[i].loop.ctx, NULL), 0);
    p[i].ctx = p[i].loop.ctx;
    init(&p[i].co, &p[i].loop, hit, NULL);
    p[i].co.limit = rallies;
    aio_context_ref(p[i].ctx); /* the other one may be a step behind */
  }
  p[0].serves_last = true;
  for (int i = 0; i < 2; i++) t[i] = start(play, &p[i]);
  CHECK_EQ(aio_co_wake(&p[0].co.co, "service"), 0);
  for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
  CHECK(p[0].co.entries == rallies && p[1].co.entries == rallies);
  for (int i = 0; i < 2; i++) aio_context_unref(p[i].ctx);
}

static void wake_in_another_context(Co *c) {
  CHECK_EQ(aio_co_wake(&c->next->co, "x"), 0);
  CHECK_EQ(c->next->entries, 0); /* scheduled there, not entered here */
}

static void coroutine_of_another_context_is_scheduled(Loop *l) {
  Loop second = {.driver = l->driver, .backend = l->backend};
  Co a, b;
  loop_open(&second, NULL);
  init(&a, l, wake_in_another_context, "a");
  init(&b, &second, NULL, "b");
  a.next = &b;
  aio_co_schedule(&a.co, "test");
  turn(l, 0);
  CHECK_STR(check_log, "a");
  turn(&second, AIO_FOREVER);
  CHECK_STR(check_log, "ab");
  loop_close(&second);
}

/* As a binding does it: without going back to the loop in between. */
static void enter_on_and_on(void *opaque) {
  Co *c = opaque;
  AioContext *ctx = c->l->ctx;
  do {
    CHECK(aio_co_running(ctx) == &c->co);
    CHECK(aio_co_scheduled_by(&c->co) == NULL);
    c->entries++;
    if (c->name) note(c->name);
    if (c->step) c->step(c);
  } while ((c = aio_co_next(ctx, enter_on_and_on)));
  CHECK(aio_co_running(ctx) == NULL);
}

static void init_local(Co *c, Loop *l, void (*step)(Co *), char *name) {
  *c = (Co){.step = step, .l = l, .name = name};
  aio_co_init_local(&c->co, l->ctx, enter_on_and_on, c);
}

static void next_keeps_the_order(Loop *l) {
  Co a, b, c, d, e, f;
  init_local(&a, l, wake_next_and_also, "A");
  init_local(&b, l, wake_next_and_also, "B");
  init(&c, l, wake_next_and_also, "C"); /* entered otherwise: the loop does it */
  init_local(&d, l, wake_next_and_also, "D");
  init_local(&e, l, NULL, "E");
  init_local(&f, l, NULL, "F");
  a.next = &b;
  a.also = &d;
  b.next = &c;
  aio_co_schedule(&a.co, "test");
  aio_co_schedule(&e.co, "test");
  CHECK_EQ(aio_co_schedule(&e.co, "again"), -EALREADY);
  CHECK_STR(aio_co_scheduled_by(&e.co), "test");
  aio_bh_oneshot(l->ctx, note, "!");
  aio_co_schedule(&f.co, "test");
  turn(l, 0);
  CHECK_STR(check_log, "A.B.C.D.E!F");
  CHECK_QUIET(l);
}

static void schedule_itself(Co *c) { CHECK_EQ(aio_co_schedule(&c->co, "itself"), 0); }

static void next_ends_with_the_turn(Loop *l) {
  Co a, b;
  init_local(&a, l, schedule_itself, "a");
  init_local(&b, l, NULL, "b");
  aio_co_schedule(&a.co, "test");
  aio_co_schedule(&b.co, "test");
  turn(l, 0);
  CHECK_STR(check_log, "ab");
  turn(l, 0);
  CHECK_STR(check_log, "aba");
  aio_co_close(&a.co);
  CHECK_QUIET(l);
}

typedef struct Busy {
  Co co;
  long fd_at, timer_at, bh_at, idle_at; /* entries of co when they ran */
  AioBH idle;
  int pipe[2];
} Busy;

static void fd_ran(void *opaque) {
  Busy *b = opaque;
  char byte;
  CHECK_EQ(read(b->pipe[0], &byte, 1), 1);
  b->fd_at = b->co.entries;
}

static void timer_ran(void *opaque) { ((Busy *)opaque)->timer_at = ((Busy *)opaque)->co.entries; }
static void bh_ran(void *opaque) { ((Busy *)opaque)->bh_at = ((Busy *)opaque)->co.entries; }
static void idle_ran(void *opaque) { ((Busy *)opaque)->idle_at = ((Busy *)opaque)->co.entries; }
static bool all_ran(void *opaque) {
  const Busy *b = opaque;
  return b->fd_at && b->timer_at && b->bh_at && b->idle_at;
}

static void *bh_from_a_thread(void *opaque) {
  Busy *b = opaque;
  usleep(2000);
  CHECK_EQ(aio_bh_oneshot(b->co.l->ctx, bh_ran, b), 0);
  return NULL;
}

static void run_starves_nobody(Loop *l) {
  if (is_glib(l)) return;
  Busy b = {.fd_at = 0};
  AioWatch watch;
  AioTimer timer;
  init_local(&b.co, l, schedule_itself, NULL);
  CHECK_EQ(pipe(b.pipe), 0);
  CHECK_EQ(write(b.pipe[1], "x", 1), 1);
  CHECK_EQ(aio_watch_open(&watch, l->ctx, b.pipe[0], AIO_READ, fd_ran, NULL, &b), 0);
  aio_timer_init(&timer, l->ctx, AIO_CLOCK_MONOTONIC, timer_ran, &b);
  CHECK_EQ(aio_timer_arm(&timer, now_ns()), 0);
  aio_bh_init(&b.idle, l->ctx, idle_ran, &b);
  aio_bh_schedule_idle(&b.idle);
  aio_co_schedule(&b.co.co, "test");
  pthread_t t = start(bh_from_a_thread, &b);
  aio_run(l->ctx, all_ran, &b);
  pthread_join(t, NULL);
  CHECK(b.fd_at <= 3 && b.timer_at <= 3);
  aio_watch_close(&watch);
  aio_bh_close(&b.idle);
  aio_co_close(&b.co.co);
  close(b.pipe[0]), close(b.pipe[1]);
}

typedef struct Count {
  Co co;
  long asked, limit;
} Count;

static bool enough(void *opaque) { return ++((Count *)opaque)->asked >= ((Count *)opaque)->limit; }
static bool never(void *opaque) { return (void)opaque, false; }

static void run_asks_after_every_turn(Loop *l) {
  if (is_glib(l)) return;
  Count c = {.limit = 1000};
  init_local(&c.co, l, schedule_itself, NULL);
  aio_co_schedule(&c.co.co, "test");
  aio_run(l->ctx, enough, &c);
  CHECK(c.co.entries <= c.limit && c.co.entries >= c.limit - 1); /* it is asked again where the first answer was for a turn inside */
  AioStats before, after;
  aio_context_stats(l->ctx, &before);
  long entries = c.co.entries;
  c.asked = 0;
  aio_run(l->ctx, enough, &c);
  aio_context_stats(l->ctx, &after);
  CHECK_EQ(after.polls - before.polls, (uint64_t)(c.co.entries - entries)); /* each entry a turn */
  aio_co_close(&c.co.co);
}

static void close_the_context_soon(Co *c) {
  if (c->entries == 5) aio_context_close(c->l->ctx);
  if (c->entries < 5) schedule_itself(c);
}

static void closed_in_a_run(Loop *l) {
  if (is_glib(l)) return;
  Co c;
  init_local(&c, l, close_the_context_soon, NULL);
  aio_co_schedule(&c.co, "test");
  aio_run(l->ctx, never, NULL); /* ends, for nothing is left that could wake it */
  CHECK_EQ(c.entries, 5);
  CHECK(aio_context_closed(l->ctx));
}

static const Test tests[] = {
  TEST(scheduled_once),
  TEST(fifo_together_with_bhs),
  TEST(order_of_interleavings),
  TEST(woken_outside_is_entered_now),
  TEST(worker_thread_wakes),
  TEST(long_chains),
  TEST(mutual_wake_ups),
  TEST(endless_wake_ups_starve_nobody),
  TEST(freed_by_its_own_entry),
  TEST(closed_while_queued),
  TEST(queue_goes_on_after_a_close),
  TEST(context_closed_inside),
  TEST(last_is_behind_what_is_due),
  TEST(last_outside_is_scheduled),
  TEST(last_is_closed_while_queued),
  TEST(last_is_entered_by_a_nested_turn),
  TEST(context_closed_before_the_last),
  TEST(nested_turn_in_a_coroutine),
  TEST(entered_holding_the_context),
  TEST(threads_wake_each_other),
  TEST(coroutine_of_another_context_is_scheduled),
  TEST(next_keeps_the_order),
  TEST(next_ends_with_the_turn),
  TEST(run_starves_nobody),
  TEST(run_asks_after_every_turn),
  TEST(closed_in_a_run),
};

CHECK_MAIN(tests, "epoll +io_uring")
