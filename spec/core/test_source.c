/* SPDX-License-Identifier: MIT
 * The loop as a GSource: attached, detached, nested, starved and destroyed in every way that GLib allows. */
#include "check.h"

static void set_flag(void *flag) { *(bool *)flag = true; }
static void count(void *n) { ++*(int *)n; }

typedef struct Self { /* reschedules itself until told otherwise */
  AioBH bh;
  int runs;
  bool stop;
} Self;

static void again(void *opaque) {
  Self *s = opaque;
  s->runs++;
  if (!s->stop) aio_bh_schedule(&s->bh);
}

static void again_idle(void *opaque) {
  Self *s = opaque;
  s->runs++;
  if (!s->stop) aio_bh_schedule_idle(&s->bh);
}

static GSource *add_source(Loop *l, GSource *s, int priority, GSourceFunc fn, void *opaque) {
  g_source_set_callback(s, fn, opaque, NULL);
  g_source_set_priority(s, priority);
  g_source_attach(s, l->main);
  return s;
}

static void remove_source(GSource *s) {
  g_source_destroy(s);
  g_source_unref(s);
}

static gboolean count_on(gpointer n) { return ++*(int *)n, G_SOURCE_CONTINUE; }

/* ---- attached and detached ---- */

static void attached_once(Loop *l) {
  GMainContext *second = g_main_context_new();
  int n = 0;
  CHECK(aio_source_attached(l->ctx));
  CHECK_EQ(aio_source_attach(l->ctx, l->main, 0), -EBUSY);
  CHECK_EQ(aio_source_attach(l->ctx, second, 0), -EBUSY);
  aio_source_detach(l->ctx);
  aio_source_detach(l->ctx);
  CHECK(!aio_source_attached(l->ctx));
  aio_bh_oneshot(l->ctx, count, &n);
  g_main_context_iteration(l->main, FALSE);
  CHECK_EQ(n, 0);
  CHECK_EQ(aio_source_attach(l->ctx, second, G_PRIORITY_HIGH), 0);
  g_main_context_iteration(second, TRUE);
  CHECK_EQ(n, 1);
  g_main_context_unref(second); /* takes its source along */
  CHECK(!aio_source_attached(l->ctx));
  aio_bh_oneshot(l->ctx, count, &n);
  CHECK(aio_poll(l->ctx, 0)); /* and the loop goes on without */
  CHECK_EQ(n, 2);
  CHECK_EQ(aio_source_attach(l->ctx, l->main, 0), 0);
  aio_bh_oneshot(l->ctx, count, &n);
  turn(l, AIO_FOREVER);
  CHECK_EQ(n, 3);
  aio_context_close(l->ctx);
  CHECK(!aio_source_attached(l->ctx));
  CHECK_EQ(aio_source_attach(l->ctx, l->main, 0), -ESHUTDOWN);
  CHECK(!aio_source_get(l->ctx));
  g_main_context_iteration(l->main, FALSE);
}

static void source_attached_by_hand(Loop *l) {
  int n = 0;
  aio_source_detach(l->ctx);
  GSource *s = aio_source_get(l->ctx);
  CHECK(s);
  CHECK(aio_source_get(l->ctx) == s);
  CHECK(!aio_source_attached(l->ctx));
  g_source_attach(s, l->main);
  CHECK(aio_source_attached(l->ctx));
  CHECK_EQ(aio_source_attach(l->ctx, NULL, 0), -EBUSY);
  aio_bh_oneshot(l->ctx, count, &n);
  turn(l, AIO_FOREVER);
  CHECK_EQ(n, 1);
  g_source_destroy(s); /* by somebody else */
  CHECK(!aio_source_attached(l->ctx));
  s = aio_source_get(l->ctx);
  CHECK(s && !g_source_is_destroyed(s));
  CHECK_EQ(aio_source_attach(l->ctx, l->main, 0), 0);
  aio_bh_oneshot(l->ctx, count, &n);
  turn(l, AIO_FOREVER);
  CHECK_EQ(n, 2);
}

static void source_outlives_its_context(Loop *l) {
  GSource *s = g_source_ref(aio_source_get(l->ctx));
  aio_context_unref(l->ctx);
  l->ctx = NULL;
  CHECK(g_source_is_destroyed(s));
  g_main_context_iteration(l->main, FALSE);
  g_source_unref(s);
}

typedef struct Leaver {
  Loop *l;
  AioBH bh;
  AioCo co;
  AioTimer timer;
  AioWatch watch;
  AioNotifier n;
  int runs;
  bool drop; /* the last reference */
} Leaver;

static void leave(void *opaque) {
  Leaver *v = opaque;
  v->runs++;
  aio_notifier_clear(&v->n);
  if (!v->drop) {
    aio_source_detach(v->l->ctx);
    return;
  }
  aio_watch_close(&v->watch);
  aio_context_unref(v->l->ctx);
  v->l->ctx = NULL;
}

static void begin_leaving(Leaver *v, Loop *l, int kind) {
  *v = (Leaver){.l = l};
  CHECK_EQ(aio_notifier_open(&v->n), 0);
  aio_bh_init(&v->bh, l->ctx, leave, v);
  aio_co_init(&v->co, l->ctx, leave, v);
  aio_timer_init(&v->timer, l->ctx, AIO_CLOCK_MONOTONIC, leave, v);
  switch (kind) {
    case 0: aio_bh_schedule(&v->bh); break;
    case 1: aio_bh_schedule_idle(&v->bh); break;
    case 2: aio_co_schedule(&v->co, "test"); break;
    case 3: aio_timer_arm(&v->timer, now_ns() + MS); break;
    case 4: aio_bh_oneshot(l->ctx, leave, v); break;
    default:
      CHECK_EQ(aio_watch_open(&v->watch, l->ctx, v->n.rfd, AIO_READ, leave, NULL, v), 0);
      aio_notifier_set(&v->n);
  }
}

static void detached_in_every_callback(Loop *l) {
  for (int kind = 0; kind <= 5; kind++) {
    Leaver v;
    int n = 0;
    begin_leaving(&v, l, kind);
    RUN_UNTIL(l, v.runs == 1);
    CHECK(!aio_source_attached(l->ctx));
    aio_watch_close(&v.watch);
    aio_bh_oneshot(l->ctx, count, &n);
    g_main_context_iteration(l->main, FALSE);
    CHECK_EQ(n, 0);
    aio_poll(l->ctx, 0);
    CHECK_EQ(n, 1);
    CHECK_EQ(aio_source_attach(l->ctx, l->main, 0), 0);
    aio_notifier_close(&v.n);
  }
}

static void dropped_in_every_callback(Loop *l) {
  for (int kind = 0; kind <= 5; kind++) {
    Leaver v;
    begin_leaving(&v, l, kind);
    v.drop = true;
    RUN_UNTIL(l, v.runs == 1);
    CHECK(!l->ctx);
    g_main_context_iteration(l->main, FALSE);
    aio_notifier_close(&v.n);
    loop_reopen(l, NULL);
  }
}

/* ---- between the phases ---- */

static gboolean start_a_timer(gpointer t) { return aio_timer_arm(t, now_ns() + 2 * MS), G_SOURCE_REMOVE; }
static gboolean start_a_bh(gpointer bh) { return aio_bh_schedule(bh), G_SOURCE_REMOVE; }
static gboolean start_an_idle_bh(gpointer bh) { return aio_bh_schedule_idle(bh), G_SOURCE_REMOVE; }
static gboolean start_a_co(gpointer co) { return aio_co_schedule(co, "glib"), G_SOURCE_REMOVE; }

typedef struct Opening {
  AioWatch w;
  AioNotifier n;
  Loop *l;
  int runs;
} Opening;

static void opened(void *opaque) {
  Opening *o = opaque;
  aio_notifier_clear(&o->n);
  o->runs++;
}

static gboolean start_a_watch(gpointer opaque) {
  Opening *o = opaque;
  return aio_watch_open(&o->w, o->l->ctx, o->n.rfd, AIO_READ, opened, NULL, o), G_SOURCE_REMOVE;
}

/* Whatever a foreign callback starts needs no further event, whether it comes before or after our own source. */
static void started_by_foreign_callbacks(Loop *l) {
  static const int priorities[] = {G_PRIORITY_HIGH, G_PRIORITY_DEFAULT, G_PRIORITY_LOW};
  for (size_t i = 0; i < COUNT(priorities); i++) {
    int p = priorities[i], n = 0;
    AioTimer t;
    AioBH bh;
    AioCo co;
    Opening o = {.l = l};
    aio_timer_init(&t, l->ctx, AIO_CLOCK_MONOTONIC, count, &n);
    aio_bh_init(&bh, l->ctx, count, &n);
    aio_co_init(&co, l->ctx, count, &n);
    CHECK_EQ(aio_notifier_open(&o.n), 0);
    aio_notifier_set(&o.n);
    g_source_unref(add_source(l, g_idle_source_new(), p, start_a_timer, &t));
    RUN_UNTIL(l, n == 1);
    g_source_unref(add_source(l, g_idle_source_new(), p, start_a_bh, &bh));
    RUN_UNTIL(l, n == 2);
    g_source_unref(add_source(l, g_idle_source_new(), p, start_an_idle_bh, &bh));
    RUN_UNTIL(l, n == 3);
    g_source_unref(add_source(l, g_idle_source_new(), p, start_a_co, &co));
    RUN_UNTIL(l, n == 4);
    g_source_unref(add_source(l, g_idle_source_new(), p, start_a_watch, &o));
    RUN_UNTIL(l, o.runs == 1);
    CHECK_RESTS(l);
    aio_watch_close(&o.w);
    aio_notifier_close(&o.n);
  }
}

/* A source above ours that is always ready: ours is prepared, and not checked. */
static void prepared_without_check(Loop *l) {
  int above = 0, n = 0;
  GSource *busy = add_source(l, g_idle_source_new(), G_PRIORITY_HIGH, count_on, &above);
  AioTimer t;
  aio_timer_init(&t, l->ctx, AIO_CLOCK_MONOTONIC, count, &n);
  for (int i = 0; i < 100; i++) {
    aio_bh_oneshot(l->ctx, count, &n);
    turn(l, AIO_FOREVER);
  }
  aio_timer_arm(&t, now_ns());
  turn(l, AIO_FOREVER);
  CHECK_EQ(above, 101);
  remove_source(busy);
  RUN_UNTIL(l, n == 101);
  CHECK_QUIET(l);
  CHECK_RESTS(l);
}

static Loop *between;
static void (*between_fn)(void);
static int between_n;
static AioTimer between_timer;
static AioBH between_bh;

/* Stands for whatever runs after prepare and before the sleep. */
static gint poll_after_something(GPollFD *fds, guint n, gint timeout) {
  void (*fn)(void) = between_fn;
  between_fn = NULL;
  if (fn) fn();
  return g_poll(fds, n, timeout);
}

static void arm_between(void) { aio_timer_arm(&between_timer, now_ns() + MS); }
static void schedule_between(void) { aio_bh_schedule(&between_bh); }
static void idle_between(void) { aio_bh_schedule_idle(&between_bh); }
static void *schedule_it(void *bh) { return aio_bh_schedule(bh), NULL; }
static void thread_between(void) { pthread_join(start(schedule_it, &between_bh), NULL); }
static void schedule_more(void *opaque) {
  (void)opaque;
  aio_bh_oneshot(between->ctx, count, &between_n);
}

/* The turn takes the wake-up that was meant for GLib's sleep, and leaves work behind. */
static void turn_between(void) {
  CHECK_EQ(aio_bh_oneshot(between->ctx, schedule_more, NULL), 0);
  CHECK(aio_poll(between->ctx, 0));
}

static void waiting_turn_between(void) {
  CHECK_EQ(aio_bh_oneshot(between->ctx, schedule_more, NULL), 0);
  CHECK(aio_poll(between->ctx, MS));
}

static void changed_between_prepare_and_sleep(Loop *l) {
  static void (*const changes[])(void) = {arm_between,    schedule_between, idle_between,
                                          thread_between, turn_between,     waiting_turn_between};
  between = l;
  g_main_context_set_poll_func(l->main, poll_after_something);
  aio_timer_init(&between_timer, l->ctx, AIO_CLOCK_MONOTONIC, count, &between_n);
  aio_bh_init(&between_bh, l->ctx, count, &between_n);
  for (int round = 0; round < 3; round++)
    for (size_t i = 0; i < COUNT(changes); i++) {
      between_n = 0;
      CHECK_QUIET(l);
      between_fn = changes[i];
      RUN_UNTIL(l, between_n == 1);
    }
  g_main_context_set_poll_func(l->main, limited_poll);
}

/* ---- who starves ---- */

static void busy_bh_starves_nobody(Loop *l) {
  Self s = {.runs = 0};
  Opening o = {.l = l};
  AioTimer t;
  int equal = 0, fired = 0;
  GSource *other = add_source(l, g_idle_source_new(), G_PRIORITY_DEFAULT, count_on, &equal);
  aio_bh_init(&s.bh, l->ctx, again, &s);
  aio_bh_schedule(&s.bh);
  CHECK_EQ(aio_notifier_open(&o.n), 0);
  CHECK_EQ(aio_watch_open(&o.w, l->ctx, o.n.rfd, AIO_READ, opened, NULL, &o), 0);
  aio_timer_init(&t, l->ctx, AIO_CLOCK_MONOTONIC, count, &fired);
  for (int i = 1; i <= 20; i++) {
    aio_notifier_set(&o.n);
    aio_timer_arm(&t, 0);
    for (int turns = 0; turns < 4; turns++) turn(l, AIO_FOREVER);
    CHECK_EQ(o.runs, i);
    CHECK_EQ(fired, i);
  }
  CHECK(equal >= 70 && s.runs >= 70);
  aio_bh_close(&s.bh);
  remove_source(other);
  aio_watch_close(&o.w);
  aio_notifier_close(&o.n);
}

static void idle_bh_does_not_keep_lower_priorities_out(Loop *l) {
  Self s = {.runs = 0};
  int below = 0;
  GSource *low = add_source(l, g_idle_source_new(), G_PRIORITY_LOW, count_on, &below);
  aio_bh_init(&s.bh, l->ctx, again_idle, &s);
  aio_bh_schedule_idle(&s.bh);
  while (s.runs < 5) turn(l, AIO_FOREVER);
  CHECK(below > 20); /* it had all the time in between */
  s.stop = true;
  remove_source(low);
  while (aio_bh_scheduled(&s.bh)) turn(l, AIO_FOREVER);
}

static void sleeps_with_fds(Loop *l) {
  Opening o = {.l = l};
  CHECK_EQ(aio_notifier_open(&o.n), 0);
  CHECK_EQ(aio_watch_open(&o.w, l->ctx, o.n.rfd, AIO_READ, opened, NULL, &o), 0);
  CHECK(turns_in(l, 60 * MS) <= 8);
  aio_watch_close(&o.w);
  CHECK(turns_in(l, 60 * MS) <= 8);
  aio_notifier_close(&o.n);
}

/* ---- nested main loops ---- */

static GMainLoop *inner;

static void quit_inner(void *n) {
  ++*(int *)n;
  g_main_loop_quit(inner);
}

static void run_inner(void *opaque) {
  Loop *l = opaque;
  int n = 0;
  AioTimer t;
  note("(");
  aio_timer_init(&t, l->ctx, AIO_CLOCK_MONOTONIC, quit_inner, &n);
  aio_timer_arm(&t, now_ns() + 2 * MS);
  aio_bh_oneshot(l->ctx, note, "i");
  inner = g_main_loop_new(l->main, FALSE);
  g_main_loop_run(inner);
  g_main_loop_unref(inner);
  CHECK_EQ(n, 1);
  note(")");
}

static void nested_main_loops(Loop *l) {
  AioTimer t;
  AioCo co;
  aio_bh_oneshot(l->ctx, run_inner, l);
  aio_bh_oneshot(l->ctx, note, "o");
  turn(l, AIO_FOREVER);
  CHECK_STR(check_log, "(oi)");
  log_reset();
  aio_timer_init(&t, l->ctx, AIO_CLOCK_MONOTONIC, run_inner, l);
  aio_timer_arm(&t, 0);
  turn(l, AIO_FOREVER);
  CHECK_STR(check_log, "(i)");
  log_reset();
  aio_co_init(&co, l->ctx, run_inner, l);
  aio_co_schedule(&co, "test");
  turn(l, AIO_FOREVER);
  CHECK_STR(check_log, "(i)");
  CHECK_QUIET(l);
  CHECK_RESTS(l);
}

static void close_and_run_inner(void *opaque) {
  Loop *l = opaque;
  aio_context_close(l->ctx);
  for (int i = 0; i < 3; i++) g_main_context_iteration(l->main, FALSE);
}

static void closed_with_nested_loop(Loop *l) {
  aio_bh_oneshot(l->ctx, close_and_run_inner, l);
  aio_bh_oneshot(l->ctx, note, "x");
  turn(l, AIO_FOREVER);
  CHECK_STR(check_log, "");
}

/* ---- the rest ---- */

static void around(AioFn *run, void *run_opaque, void *opaque) {
  note("<");
  run(run_opaque);
  note(opaque);
}

static void dispatch_is_wrapped(Loop *l) {
  aio_context_set_around(l->ctx, around, ">");
  aio_bh_oneshot(l->ctx, note, "a");
  turn(l, AIO_FOREVER);
  CHECK_STR(check_log, "<a>");
  aio_bh_oneshot(l->ctx, run_inner, l);
  log_reset();
  turn(l, AIO_FOREVER);
  CHECK(!strncmp(check_log, "<(<i", 4));
  aio_context_set_around(l->ctx, NULL, NULL);
  log_reset();
  aio_bh_oneshot(l->ctx, note, "a");
  turn(l, AIO_FOREVER);
  CHECK_STR(check_log, "a");
}

static void several_contexts_in_one_main_loop(Loop *l) {
  Self s[5];
  AioContext *ctx[5];
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(aio_context_new(&ctx[i], &(AioOptions){.backend = l->backend}), 0);
    CHECK_EQ(aio_source_attach(ctx[i], l->main, 0), 0);
    s[i] = (Self){.runs = 0};
    aio_bh_init(&s[i].bh, ctx[i], again, &s[i]);
    aio_bh_schedule(&s[i].bh);
  }
  for (int i = 0; i < 20; i++) turn(l, AIO_FOREVER);
  for (int i = 0; i < 5; i++) {
    CHECK(s[i].runs >= 15);
    aio_context_unref(ctx[i]);
  }
}

static void default_main_context(Loop *l) {
  int n = 0;
  aio_source_detach(l->ctx);
  CHECK_EQ(aio_source_attach(l->ctx, NULL, 0), 0);
  aio_bh_oneshot(l->ctx, count, &n);
  while (!n) CHECK(aio_source_iterate(NULL, true) >= 0);
  CHECK_EQ(aio_source_iterate(l->main, false), 0);
  aio_source_detach(l->ctx);
  while (aio_source_iterate(NULL, false) > 0) {}
}

static char warned[64];

static void remember_warning(const gchar *domain, GLogLevelFlags level, const gchar *message, gpointer opaque) {
  CHECK_STR(domain, "aioloop");
  CHECK(level & G_LOG_LEVEL_WARNING);
  snprintf(warned, sizeof warned, "%s", message);
  (void)opaque;
}

static void warnings(Loop *l) {
  (void)l;
  guint id = g_log_set_handler("aioloop", G_LOG_LEVEL_WARNING, remember_warning, NULL);
  aio_source_warn("100% of %s");
  CHECK_STR(warned, "100% of %s");
  g_log_remove_handler("aioloop", id);
}

static void poll_and_glib_by_turns(Loop *l) {
  Self s = {.runs = 0};
  aio_bh_init(&s.bh, l->ctx, again, &s);
  aio_bh_schedule(&s.bh);
  for (int i = 1; i <= 100; i++) {
    if (i % 2)
      aio_poll(l->ctx, i % 3 ? 0 : MS);
    else
      turn(l, i % 3 ? 0 : AIO_FOREVER);
    CHECK_EQ(s.runs, i);
  }
  s.stop = true;
  aio_poll(l->ctx, 0);
  CHECK_QUIET(l);
  CHECK_RESTS(l);
}

static void *run_the_loop(void *opaque) {
  g_main_loop_run(opaque);
  return NULL;
}

static void quit_outer(void *loop) { g_main_loop_quit(loop); }

static void run_by_another_thread(Loop *l) {
  GMainLoop *loop = g_main_loop_new(l->main, FALSE);
  bool ran = false;
  pthread_t t = start(run_the_loop, loop);
  CHECK_EQ(aio_bh_oneshot(l->ctx, set_flag, &ran), 0);
  CHECK_EQ(aio_bh_oneshot(l->ctx, quit_outer, loop), 0); /* stopping travels as a BH */
  pthread_join(t, NULL);
  CHECK(ran);
  g_main_loop_unref(loop);
}

static const Test tests[] = {
  TEST_GLIB(attached_once),
  TEST_GLIB(source_attached_by_hand),
  TEST_GLIB(source_outlives_its_context),
  TEST_GLIB(detached_in_every_callback),
  TEST_GLIB(dropped_in_every_callback),
  TEST_GLIB(started_by_foreign_callbacks),
  TEST_GLIB(prepared_without_check),
  TEST_GLIB(changed_between_prepare_and_sleep),
  TEST_GLIB(busy_bh_starves_nobody),
  TEST_GLIB(idle_bh_does_not_keep_lower_priorities_out),
  TEST_GLIB(sleeps_with_fds),
  TEST_GLIB(nested_main_loops),
  TEST_GLIB(closed_with_nested_loop),
  TEST_GLIB(dispatch_is_wrapped),
  TEST_GLIB(several_contexts_in_one_main_loop),
  TEST_GLIB(default_main_context),
  TEST_GLIB(warnings),
  TEST_GLIB(poll_and_glib_by_turns),
  TEST_GLIB(run_by_another_thread),
};

CHECK_MAIN(tests, "epoll +poll +io_uring")
