/* SPDX-License-Identifier: MIT
 * Defer sections: once for each function and argument, in the order of the first call, at the end of the outermost one. */
#include "check.h"

/* wrap: realloc */

static bool no_memory;

void *__real_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size) { return no_memory ? NULL : __real_realloc(p, size); }

static Loop *loop;

static void outside_of_any_at_once(Loop *l) {
  aio_defer(l->ctx, note, "a");
  aio_defer(l->ctx, note, "a");
  CHECK_STR(check_log, "aa");
  CHECK_QUIET(l);
}

static void once_and_in_order(Loop *l) {
  static char a[] = "a", b[] = "b", c[] = "c";
  aio_defer_begin(l->ctx);
  aio_defer(l->ctx, note, b);
  aio_defer(l->ctx, note, a);
  aio_defer(l->ctx, note, b);
  aio_defer_begin(l->ctx);
  aio_defer(l->ctx, note, a);
  aio_defer(l->ctx, note, c);
  aio_defer_end(l->ctx);
  CHECK_STR(check_log, "");
  aio_defer(l->ctx, note, c);
  aio_defer_end(l->ctx);
  CHECK_STR(check_log, "bac");
  aio_defer_begin(l->ctx);
  aio_defer_end(l->ctx);
  CHECK_STR(check_log, "bac");
}

static void count(void *opaque) { ++*(int *)opaque; }

static void many_at_once(Loop *l) {
  static int counts[1000];
  memset(counts, 0, sizeof counts);
  for (int round = 1; round <= 3; round++) {
    aio_defer_begin(l->ctx);
    for (int twice = 0; twice < 2; twice++)
      for (size_t i = 0; i < COUNT(counts); i++) aio_defer(l->ctx, count, &counts[i]);
    aio_defer_end(l->ctx);
    for (size_t i = 0; i < COUNT(counts); i++) CHECK_EQ(counts[i], round);
  }
}

/* ---- sections within what runs ---- */

static void section_of_its_own(void *opaque) {
  (void)opaque;
  note("(");
  aio_defer_begin(loop->ctx);
  aio_defer(loop->ctx, note, "x");
  aio_defer(loop->ctx, note, "y");
  note("-");
  aio_defer_end(loop->ctx);
  note(")");
}

static void a_deferred_call_may_have_its_section(Loop *l) {
  loop = l;
  aio_defer_begin(l->ctx);
  aio_defer(l->ctx, note, "a");
  aio_defer(l->ctx, section_of_its_own, NULL);
  aio_defer(l->ctx, note, "b");
  aio_defer_end(l->ctx);
  CHECK_STR(check_log, "a(-xy)b");
}

static int again_left;
static void again(void *opaque) {
  note("r");
  if (again_left-- > 0) aio_defer(opaque, again, opaque);
}

static void deferred_anew_by_itself(Loop *l) {
  again_left = 3;
  aio_defer_begin(l->ctx);
  aio_defer(l->ctx, again, l->ctx);
  turn(l, 0); /* runs it, with the section still open */
  CHECK_STR(check_log, "rrrr");
  aio_defer_end(l->ctx);
  CHECK_STR(check_log, "rrrr");
}

/* ---- turns ---- */

static void defer_two(void *opaque) {
  (void)opaque;
  note("1");
  aio_defer(loop->ctx, note, "d");
  aio_defer(loop->ctx, note, "d");
}

static void defer_the_same(void *opaque) {
  (void)opaque;
  note("2");
  aio_defer(loop->ctx, note, "d");
}

static void a_turn_is_a_section(Loop *l) {
  AioBH a, b;
  AioTimer t;
  loop = l;
  aio_bh_init(&a, l->ctx, defer_two, NULL);
  aio_bh_init(&b, l->ctx, defer_the_same, NULL);
  aio_timer_init(&t, l->ctx, AIO_CLOCK_MONOTONIC, note, "t");
  aio_timer_arm(&t, 0);
  aio_bh_schedule(&a);
  aio_bh_schedule(&b);
  turn(l, AIO_FOREVER);
  CHECK_STR(check_log, "12td");
  CHECK_QUIET(l);
}

/* What is waited for in here happens only because of what was deferred before. */
static AioBH awaited;
static bool came;
static void come(void *opaque) { (void)opaque, came = true, note("c"); }
static void ask(void *opaque) { (void)opaque, note("d"), aio_bh_schedule(&awaited); }

static void wait_in_a_section(void *opaque) {
  (void)opaque;
  note("(");
  aio_defer(loop->ctx, ask, NULL);
  RUN_UNTIL(loop, came);
  note(")");
}

static void a_poll_runs_what_was_deferred_first(Loop *l) {
  loop = l;
  came = false;
  aio_bh_init(&awaited, l->ctx, come, NULL);
  aio_bh_oneshot(l->ctx, wait_in_a_section, NULL);
  RUN_UNTIL(l, came);
  CHECK_STR(check_log, "(dc)");
  came = false;
  aio_defer_begin(l->ctx); /* outside of a turn */
  aio_defer(l->ctx, ask, NULL);
  CHECK_EQ(aio_context_timeout(l->ctx), 0);
  RUN_UNTIL(l, came);
  aio_defer_end(l->ctx);
  CHECK_STR(check_log, "(dc)dc");
  CHECK_QUIET(l);
}

static void wait_while_deferred(void *opaque) {
  (void)opaque;
  note("<");
  RUN_UNTIL(loop, came);
  note(">");
}

/* The one that polls waits for another of the same list, in the same section or one further out. */
static void a_poll_in_a_deferred_call_finds_the_rest(Loop *l) {
  loop = l;
  came = false;
  aio_bh_init(&awaited, l->ctx, come, NULL);
  aio_defer_begin(l->ctx);
  aio_defer(l->ctx, note, "a");
  aio_defer(l->ctx, wait_while_deferred, NULL);
  aio_defer(l->ctx, note, "b");
  aio_defer(l->ctx, ask, NULL);
  aio_defer_end(l->ctx);
  CHECK_STR(check_log, "a<bdc>");
  CHECK_QUIET(l);
}

static void wait_in_an_inner_section(void *opaque) {
  (void)opaque;
  aio_defer_begin(loop->ctx);
  aio_defer(loop->ctx, note, "i");
  aio_defer(loop->ctx, wait_while_deferred, NULL);
  aio_defer(loop->ctx, note, "j");
  aio_defer_end(loop->ctx);
}

static void and_that_of_the_lists_around_it(Loop *l) {
  loop = l;
  came = false;
  aio_bh_init(&awaited, l->ctx, come, NULL);
  aio_defer_begin(l->ctx);
  aio_defer(l->ctx, wait_in_an_inner_section, NULL);
  aio_defer(l->ctx, note, "b");
  aio_defer(l->ctx, ask, NULL);
  aio_defer_end(l->ctx);
  CHECK_STR(check_log, "i<bdjc>");
  CHECK_QUIET(l);
}

/* ---- ends ---- */

static void close_it(void *opaque) { note("x"), aio_context_close(opaque); }

static void closed_by_a_deferred_call(Loop *l) {
  aio_defer_begin(l->ctx);
  aio_defer(l->ctx, note, "a");
  aio_defer(l->ctx, close_it, l->ctx);
  aio_defer(l->ctx, note, "b");
  aio_defer_end(l->ctx);
  CHECK_STR(check_log, "ax");
}

static void closed_by_one_that_a_poll_runs(Loop *l) {
  aio_defer_begin(l->ctx);
  aio_defer(l->ctx, close_it, l->ctx);
  aio_defer(l->ctx, note, "b");
  turn(l, is_glib(l) ? 0 : AIO_FOREVER); /* does not wait on what is closed */
  CHECK(aio_context_closed(l->ctx));
  aio_defer(l->ctx, note, "c"); /* who does so must not lose memory */
  aio_defer_end(l->ctx);
  CHECK_STR(check_log, "xc");
}

static void closed_in_a_section(Loop *l) {
  aio_defer_begin(l->ctx);
  aio_defer(l->ctx, note, "a");
  aio_context_close(l->ctx);
  aio_defer_end(l->ctx);
  CHECK_STR(check_log, "");
}

static void closed_within_an_inner_list(void *opaque) {
  aio_defer_begin(opaque);
  aio_defer(opaque, close_it, opaque);
  aio_defer(opaque, note, "i");
  aio_defer_end(opaque);
}

static void closed_in_a_nested_section(Loop *l) {
  aio_defer_begin(l->ctx);
  aio_defer(l->ctx, closed_within_an_inner_list, l->ctx);
  aio_defer(l->ctx, note, "b");
  aio_defer_end(l->ctx);
  CHECK_STR(check_log, "x");
}

static void without_memory_at_once(Loop *l) {
  static char names[40][2];
  aio_defer_begin(l->ctx);
  no_memory = true;
  aio_defer(l->ctx, note, "a");
  no_memory = false;
  CHECK_STR(check_log, "a");
  for (int i = 0; i < 16; i++) aio_defer(l->ctx, note, names[i]); /* as many as are made room for at first */
  no_memory = true;
  aio_defer(l->ctx, note, "b");
  aio_defer(l->ctx, note, names[3]); /* is there already */
  no_memory = false;
  CHECK_STR(check_log, "ab");
  for (int i = 0; i < 40; i++) names[i][0] = (char)(i < 26 ? 'a' + i : 'A' + i - 26);
  aio_defer_end(l->ctx);
  CHECK_STR(check_log, "ababcdefghijklmnop");
}

static const Test tests[] = {
  TEST(outside_of_any_at_once),
  TEST(once_and_in_order),
  TEST(many_at_once),
  TEST(a_deferred_call_may_have_its_section),
  TEST(deferred_anew_by_itself),
  TEST(a_turn_is_a_section),
  TEST(a_poll_runs_what_was_deferred_first),
  TEST(a_poll_in_a_deferred_call_finds_the_rest),
  TEST(and_that_of_the_lists_around_it),
  TEST(closed_by_a_deferred_call),
  TEST(closed_by_one_that_a_poll_runs),
  TEST(closed_in_a_section),
  TEST(closed_in_a_nested_section),
  TEST(without_memory_at_once),
};

CHECK_MAIN(tests, "epoll +poll +io_uring")
