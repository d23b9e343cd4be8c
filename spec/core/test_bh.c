/* SPDX-License-Identifier: MIT
 * Bottom halves: once per scheduling, in order, from any thread, and gone when they are closed. */
#include "check.h"

/* wrap: realloc */

static bool no_memory;
void *__real_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size) { return no_memory ? NULL : __real_realloc(p, size); }

typedef struct Worker { /* a BH that schedules itself `again` more times */
  AioBH bh;
  int runs, again;
} Worker;

static void work(void *opaque) {
  Worker *w = opaque;
  w->runs++;
  if (w->again-- > 0) aio_bh_schedule(&w->bh);
}

static void count(void *opaque) { ++*(int *)opaque; }

static void schedule_runs_once(Loop *l) {
  int n = 0;
  AioBH bh;
  aio_bh_init(&bh, l->ctx, count, &n);
  CHECK(!aio_bh_scheduled(&bh));
  for (int i = 0; i < 5; i++) aio_bh_schedule(&bh);
  CHECK(aio_bh_scheduled(&bh));
  CHECK(turn(l, AIO_FOREVER));
  CHECK_EQ(n, 1);
  CHECK(!aio_bh_scheduled(&bh));
  CHECK_QUIET(l);
  CHECK_RESTS(l);
  CHECK_EQ(n, 1);
}

static void reschedules_itself_once_per_turn(Loop *l) {
  Worker w = {.again = 9};
  aio_bh_init(&w.bh, l->ctx, work, &w);
  aio_bh_schedule(&w.bh);
  for (int i = 1; i <= 10; i++) {
    CHECK(turn(l, AIO_FOREVER));
    CHECK_EQ(w.runs, i);
  }
  CHECK_QUIET(l);
  CHECK_EQ(w.runs, 10);
}

static void local_bh(Loop *l) {
  Worker w = {.again = 3};
  aio_context_set_home(l->ctx);
  aio_bh_init_local(&w.bh, l->ctx, work, &w);
  aio_bh_schedule(&w.bh);
  aio_bh_schedule(&w.bh);
  for (int i = 1; i <= 4; i++) CHECK(turn(l, 0));
  CHECK_EQ(w.runs, 4);
  CHECK_QUIET(l);
  aio_bh_schedule(&w.bh);
  aio_bh_cancel(&w.bh);
  CHECK_QUIET(l);
}

static void cancel_and_schedule(Loop *l) {
  int n = 0;
  AioBH bh;
  aio_bh_init(&bh, l->ctx, count, &n);
  aio_bh_schedule(&bh);
  aio_bh_cancel(&bh);
  CHECK(!aio_bh_scheduled(&bh));
  CHECK_QUIET(l);
  aio_bh_schedule(&bh);
  aio_bh_cancel(&bh);
  aio_bh_schedule(&bh);
  CHECK(turn(l, 0));
  CHECK_EQ(n, 1);
  CHECK_QUIET(l);
  aio_bh_cancel(&bh);
  aio_bh_cancel(&bh);
  aio_bh_close(&bh);
}

static void closed_does_not_run(Loop *l) {
  int n = 0;
  AioBH *bh = malloc(sizeof *bh);
  aio_bh_init(bh, l->ctx, count, &n);
  aio_bh_schedule(bh);
  aio_bh_close(bh);
  free(bh);
  CHECK_QUIET(l);
  CHECK_EQ(n, 0);
}

/* ---- closed within callbacks ---- */

static int alive;

static void work_and_free(void *opaque) {
  Worker *w = opaque;
  w->runs++;
  if (w->again-- > 0) {
    aio_bh_schedule(&w->bh);
    return;
  }
  if (w->runs % 2) aio_bh_schedule(&w->bh); /* pending or not when closed */
  aio_bh_close(&w->bh);
  alive--;
  free(w);
}

static void worker_that_frees_itself(Loop *l, int times) {
  Worker *w = calloc(1, sizeof *w);
  w->again = times - 1;
  aio_bh_init(&w->bh, l->ctx, work_and_free, w);
  aio_bh_schedule(&w->bh);
  alive++;
}

static void frees_itself(Loop *l) {
  worker_that_frees_itself(l, 1);
  CHECK(turn(l, 0));
  CHECK_EQ(alive, 0);
  CHECK_QUIET(l);
}

static void four_free_themselves(Loop *l) {
  for (int n = 1; n <= 4; n++) worker_that_frees_itself(l, n);
  for (int n = 1; n <= 4; n++) {
    CHECK_EQ(alive, 5 - n);
    CHECK(turn(l, 0));
  }
  CHECK_EQ(alive, 0);
  CHECK_QUIET(l);
}

static AioBH *victims[3];

static void kill_victims(void *opaque) {
  note(opaque);
  for (size_t i = 0; i < COUNT(victims); i++) {
    if (!victims[i]) continue;
    aio_bh_close(victims[i]);
    free(victims[i]);
    victims[i] = NULL;
  }
}

static void frees_its_neighbours(Loop *l) {
  AioBH killer;
  aio_bh_init(&killer, l->ctx, kill_victims, "k");
  for (size_t i = 0; i < COUNT(victims); i++) {
    victims[i] = malloc(sizeof *victims[i]);
    aio_bh_init(victims[i], l->ctx, note, "v");
  }
  aio_bh_schedule(victims[0]); /* runs before */
  aio_bh_schedule(&killer);
  aio_bh_schedule(victims[1]);
  aio_bh_schedule_idle(victims[2]);
  turn(l, 0);
  CHECK_STR(check_log, "vk");
  CHECK_QUIET(l);
  CHECK_RESTS(l);
}

/* ---- order ---- */

static void fifo(Loop *l) {
  AioBH bh[6];
  static char *const names[] = {"a", "b", "c", "d", "e", "f"};
  static const int order[] = {3, 0, 5, 1, 4, 2, 0, 3};
  for (size_t i = 0; i < COUNT(bh); i++) aio_bh_init(&bh[i], l->ctx, note, names[i]);
  for (size_t i = 0; i < COUNT(order); i++) aio_bh_schedule(&bh[order[i]]);
  CHECK(turn(l, 0));
  CHECK_STR(check_log, "dafbec");
  log_reset();
  for (size_t i = 0; i < COUNT(order); i++) aio_bh_schedule(&bh[order[i]]);
  aio_bh_cancel(&bh[3]);
  aio_bh_schedule(&bh[3]); /* goes to the end */
  CHECK(turn(l, 0));
  CHECK_STR(check_log, "afbecd");
}

static AioBH followers[2];

static void schedule_followers(void *opaque) {
  note(opaque);
  aio_bh_schedule(&followers[0]);
  aio_bh_schedule(&followers[1]);
  aio_bh_oneshot(followers[0].ctx, note, "o");
}

static void scheduled_during_dispatch_waits(Loop *l) {
  AioBH a, b;
  aio_bh_init(&a, l->ctx, schedule_followers, "a");
  aio_bh_init(&b, l->ctx, note, "b");
  aio_bh_init(&followers[0], l->ctx, note, "1");
  aio_bh_init(&followers[1], l->ctx, note, "2");
  aio_bh_schedule(&a);
  aio_bh_schedule(&b);
  CHECK(turn(l, 0));
  CHECK_STR(check_log, "ab");
  CHECK(turn(l, AIO_FOREVER));
  CHECK_STR(check_log, "ab12o");
  CHECK_QUIET(l);
}

static Loop *nesting;
static AioBH nested_bh[3];

static void nest(void *opaque) {
  note(opaque);
  note("(");
  aio_bh_schedule(&nested_bh[2]);
  turn(nesting, 0);
  note(")");
}

static void nested_turn_drains_the_outer_batch_first(Loop *l) {
  AioBH a, z;
  nesting = l;
  aio_bh_init(&a, l->ctx, nest, "a");
  aio_bh_init(&nested_bh[0], l->ctx, nest, "b");
  aio_bh_init(&nested_bh[1], l->ctx, note, "c");
  aio_bh_init(&nested_bh[2], l->ctx, note, "x");
  aio_bh_init(&z, l->ctx, note, "z");
  aio_bh_schedule(&a);
  aio_bh_schedule(&nested_bh[0]);
  aio_bh_schedule(&nested_bh[1]);
  aio_bh_schedule(&z);
  CHECK(turn(l, 0));
  /* a nests: b of the outer batch runs and nests: c, z of the outer batch, then x; nothing is left for later. */
  CHECK_STR(check_log, "a(b(czx))");
  CHECK_QUIET(l);
}

static int64_t nested_timeout;

static void ask_timeout(void *opaque) { nested_timeout = aio_context_timeout(opaque); }

static void timeout_sees_the_outer_batch(Loop *l) {
  AioBH a, b;
  aio_bh_init(&a, l->ctx, ask_timeout, l->ctx);
  aio_bh_init(&b, l->ctx, note, "b");
  aio_bh_schedule(&a);
  aio_bh_schedule(&b);
  turn(l, 0);
  CHECK_EQ(nested_timeout, 0);
}

/* ---- idle ---- */

static void reschedule_idle(void *opaque) {
  Worker *w = opaque;
  w->runs++;
  aio_bh_schedule_idle(&w->bh);
}

static void idle_is_no_busy_loop(Loop *l) {
  Worker w = {.again = 0};
  aio_bh_init(&w.bh, l->ctx, reschedule_idle, &w);
  aio_bh_schedule_idle(&w.bh);
  int64_t from = now_ns();
  int turns = turns_in(l, 300 * MS);
  int64_t took = now_ns() - from;
  CHECK(w.runs <= took / (10 * MS) + 2);
  CHECK(w.runs >= 5); /* 30, on a machine that does nothing else */
  CHECK(turns <= 2 * w.runs + 8);
  aio_bh_close(&w.bh);
  CHECK_RESTS(l);
}

static void idle_runs_within_10_ms_without_progress(Loop *l) {
  int n = 0;
  AioBH bh;
  aio_bh_init(&bh, l->ctx, count, &n);
  aio_bh_schedule_idle(&bh);
  CHECK(aio_bh_scheduled(&bh));
  CHECK(aio_context_timeout(l->ctx) <= 10 * MS);
  int turns = 0;
  while (!n) {
    bool progress = turn(l, AIO_FOREVER);
    CHECK(++turns <= 5);
    if (!is_glib(l)) CHECK(!progress);
  }
  CHECK_QUIET(l);
  aio_bh_schedule_idle(&bh);
  aio_bh_cancel(&bh);
  CHECK(!aio_bh_scheduled(&bh));
  CHECK_QUIET(l);
  CHECK_EQ(n, 1);
}

static void idle_upgrade_and_downgrade(Loop *l) {
  int n = 0;
  AioBH bh;
  aio_bh_init(&bh, l->ctx, count, &n);
  aio_bh_schedule_idle(&bh);
  aio_bh_schedule(&bh);
  CHECK_EQ(aio_context_timeout(l->ctx), 0);
  CHECK(turn(l, 0));
  CHECK_EQ(n, 1);
  CHECK_QUIET(l);
  aio_bh_schedule(&bh);
  aio_bh_schedule_idle(&bh);
  CHECK(aio_context_timeout(l->ctx) > 0);
  bool progress = turn(l, 20 * MS);
  if (!is_glib(l)) CHECK(!progress);
  while (n < 2) turn(l, AIO_FOREVER);
  CHECK_EQ(n, 2);
  CHECK_QUIET(l);
}

static void *schedule_one(void *bh) {
  aio_bh_schedule(bh);
  return NULL;
}

static void idle_upgraded_by_another_thread(Loop *l) {
  Worker w = {.again = 0};
  aio_bh_init(&w.bh, l->ctx, work, &w);
  aio_bh_schedule_idle(&w.bh);
  pthread_join(start(schedule_one, &w.bh), NULL);
  CHECK_EQ(aio_context_timeout(l->ctx), 0);
  CHECK(turn(l, 0));
  CHECK_EQ(w.runs, 1);
  CHECK_QUIET(l);
}

/* ---- one-shots ---- */

static void close_context(void *ctx) { aio_context_close(ctx); }

static void oneshots(Loop *l) {
  CHECK_EQ(aio_bh_oneshot(l->ctx, note, "1"), 0);
  CHECK_EQ(aio_bh_oneshot(l->ctx, note, "2"), 0);
  no_memory = true;
  int rc = aio_bh_oneshot(l->ctx, note, "x");
  no_memory = false;
  CHECK_EQ(rc, -ENOMEM);
  CHECK_EQ(aio_bh_oneshot(l->ctx, note, "3"), 0);
  CHECK(turn(l, AIO_FOREVER));
  CHECK_STR(check_log, "123");
  CHECK_QUIET(l);
  aio_bh_oneshot(l->ctx, close_context, l->ctx);
  aio_bh_oneshot(l->ctx, note, "x");
  turn(l, 0);
  CHECK_EQ(aio_bh_oneshot(l->ctx, note, "x"), -ESHUTDOWN);
  CHECK_STR(check_log, "123");
}

/* ---- other threads ---- */

typedef struct HandOver {
  AioBH bh;
  long produced, consumed, checked; /* plain: schedule orders them */
  atomic_long acknowledged;
  long items;
} HandOver;

static void take_item(void *opaque) {
  HandOver *h = opaque;
  CHECK_EQ(h->produced, h->consumed + 1);
  h->consumed = h->produced;
  atomic_store(&h->acknowledged, h->consumed);
}

static void *make_items(void *opaque) {
  HandOver *h = opaque;
  for (long i = 1; i <= h->items; i++) {
    h->produced = i;
    aio_bh_schedule(&h->bh);
    while (atomic_load(&h->acknowledged) < i) sched_yield();
  }
  return NULL;
}

static void data_is_visible_and_the_sleeper_wakes(Loop *l) {
  HandOver h = {.items = check_scale(20000)};
  aio_bh_init(&h.bh, l->ctx, take_item, &h);
  pthread_t t = start(make_items, &h);
  RUN_UNTIL(l, h.consumed == h.items);
  pthread_join(t, NULL);
  CHECK_QUIET(l);
}

static void cancelled_after_another_thread_scheduled_it(Loop *l) {
  int n = 0;
  AioBH bh;
  aio_bh_init(&bh, l->ctx, count, &n);
  pthread_join(start(schedule_one, &bh), NULL);
  CHECK(aio_bh_scheduled(&bh));
  aio_bh_cancel(&bh);
  CHECK_QUIET(l);
  pthread_join(start(schedule_one, &bh), NULL);
  aio_bh_cancel(&bh);
  pthread_join(start(schedule_one, &bh), NULL);
  RUN_UNTIL(l, n == 1);
  CHECK_QUIET(l);
  pthread_join(start(schedule_one, &bh), NULL);
  aio_bh_close(&bh);
}

/* FIFO holds across threads: what another one scheduled before comes before what we schedule. */
static void fifo_across_threads(Loop *l) {
  AioBH foreign, home;
  aio_context_set_home(l->ctx);
  aio_bh_init(&foreign, l->ctx, note, "f");
  aio_bh_init(&home, l->ctx, note, "h");
  for (int i = 0; i < 3; i++) {
    if (i) aio_bh_oneshot(l->ctx, note, "1");
    pthread_join(start(schedule_one, &foreign), NULL);
    aio_bh_schedule(&home);
    turn(l, AIO_FOREVER);
  }
  CHECK_STR(check_log, "fh1fh1fh");
}

enum { PRODUCERS = 4, OF_EACH = 64, ITEMS = 1000000 }; /* not scaled: a race that loses one is rare */

typedef struct Numbered {
  AioBH bh;
  atomic_long made; /* written before each schedule */
  long seen;        /* home */
} Numbered;

typedef struct Producer {
  AioContext *ctx;
  uint32_t seed;
  long items;
  Numbered bhs[OF_EACH];
  AioCo cos[OF_EACH];
  atomic_long co_accepted, shots;
  long shots_run, entered; /* home */
  bool finished;           /* home */
} Producer;

static void see(void *opaque) {
  Numbered *n = opaque;
  n->seen = atomic_load_explicit(&n->made, memory_order_relaxed);
}

static void shot(void *opaque) { ((Producer *)opaque)->shots_run++; }
static void entered(void *opaque) { ((Producer *)opaque)->entered++; }

/* The producer's last item: everything it made before must have run. */
static void last_shot(void *opaque) {
  Producer *p = opaque;
  for (int i = 0; i < OF_EACH; i++) CHECK_EQ(p->bhs[i].seen, atomic_load(&p->bhs[i].made));
  CHECK_EQ(p->shots_run, atomic_load(&p->shots));
  CHECK_EQ(p->entered, atomic_load(&p->co_accepted));
  p->finished = true;
}

/* Of its coroutines it takes the next one that is not scheduled, and waits for the loop when all are. */
static void schedule_a_coroutine(Producer *p, uint32_t i) {
  int rc;
  while ((rc = aio_co_schedule(&p->cos[i++ % OF_EACH], "producer")) == -EALREADY)
    if (i % OF_EACH == 0) sched_yield();
  CHECK_EQ(rc, 0);
  atomic_fetch_add(&p->co_accepted, 1);
}

static void produce_one(Producer *p) {
  uint32_t dice = rnd(&p->seed), i = dice / 3 % OF_EACH;
  switch (dice % 3) {
    case 0:
      atomic_fetch_add_explicit(&p->bhs[i].made, 1, memory_order_relaxed);
      aio_bh_schedule(&p->bhs[i].bh);
      break;
    case 1:
      CHECK_EQ(aio_bh_oneshot(p->ctx, shot, p), 0);
      atomic_fetch_add(&p->shots, 1);
      break;
    default:
      schedule_a_coroutine(p, i);
  }
}

static void *produce(void *opaque) {
  Producer *p = opaque;
  long pause_at = 0;
  for (long i = 0; i < p->items; i++) {
    if (i >= pause_at) { /* lets the loop fall asleep, or spin, in between */
      pause_at = i + 1 + rnd(&p->seed) % 128;
      nanosleep(&(struct timespec){.tv_nsec = rnd(&p->seed) % 60000}, NULL);
    }
    produce_one(p);
  }
  CHECK_EQ(aio_bh_oneshot(p->ctx, last_shot, p), 0);
  return NULL;
}

static int finished(const Producer *p) {
  int n = 0;
  for (int i = 0; i < PRODUCERS; i++) n += p[i].finished;
  return n;
}

static void many_threads_lose_nothing(Loop *l) {
  static Producer p[PRODUCERS];
  pthread_t threads[PRODUCERS];
  for (int spin = 0; spin <= 1; spin++) {
    CHECK_EQ(aio_set_polling(l->ctx, spin ? 100000 : 0, 0, 2), 0);
    memset(p, 0, sizeof p);
    for (int i = 0; i < PRODUCERS; i++) {
      p[i].ctx = l->ctx;
      p[i].seed = (uint32_t)(i + 1) * 7919;
      p[i].items = ITEMS / PRODUCERS;
      for (int j = 0; j < OF_EACH; j++) {
        aio_bh_init(&p[i].bhs[j].bh, l->ctx, see, &p[i].bhs[j]);
        aio_co_init(&p[i].cos[j], l->ctx, entered, &p[i]);
      }
      threads[i] = start(produce, &p[i]);
    }
    RUN_UNTIL(l, finished(p) == PRODUCERS);
    for (int i = 0; i < PRODUCERS; i++) pthread_join(threads[i], NULL);
    CHECK_QUIET(l);
  }
}

static atomic_bool stop;

static void *shoot(void *opaque) {
  AioContext *ctx = opaque;
  for (int i = 0; i < 2000; i++) aio_bh_oneshot(ctx, note, ""); /* bounded: two can be faster than one loop */
  while (!atomic_load(&stop)) sched_yield();
  for (int i = 0; i < 10; i++) CHECK_EQ(aio_bh_oneshot(ctx, note, ""), -ESHUTDOWN);
  aio_context_unref(ctx);
  return NULL;
}

/* What is being scheduled at that moment is refused or freed, never run and never leaked. */
static void closed_under_producers(Loop *l) {
  for (long i = 0; i < check_scale(200); i++) {
    pthread_t t[2];
    atomic_store(&stop, false);
    for (int j = 0; j < 2; j++) {
      aio_context_ref(l->ctx);
      t[j] = start(shoot, l->ctx);
    }
    turn(l, AIO_FOREVER); /* by now they are at it */
    turn(l, 0);
    aio_context_close(l->ctx);
    atomic_store(&stop, true);
    for (int j = 0; j < 2; j++) pthread_join(t[j], NULL);
    loop_reopen(l, NULL);
  }
}

static const Test tests[] = {
  TEST(schedule_runs_once),
  TEST(reschedules_itself_once_per_turn),
  TEST(local_bh),
  TEST(cancel_and_schedule),
  TEST(closed_does_not_run),
  TEST(frees_itself),
  TEST(four_free_themselves),
  TEST(frees_its_neighbours),
  TEST(fifo),
  TEST(scheduled_during_dispatch_waits),
  TEST(nested_turn_drains_the_outer_batch_first),
  TEST(timeout_sees_the_outer_batch),
  TEST(idle_is_no_busy_loop),
  TEST(idle_runs_within_10_ms_without_progress),
  TEST(idle_upgrade_and_downgrade),
  TEST(idle_upgraded_by_another_thread),
  TEST(oneshots),
  TEST(data_is_visible_and_the_sleeper_wakes),
  TEST(cancelled_after_another_thread_scheduled_it),
  TEST(fifo_across_threads),
  TEST(many_threads_lose_nothing),
  TEST(closed_under_producers),
};

CHECK_MAIN(tests, "epoll +io_uring")
