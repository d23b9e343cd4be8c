/* SPDX-License-Identifier: MIT
 * What every C test of the core uses: CHECK, and one loop that is turned either by aio_poll or by GLib.
 *
 * Way      main -> check_all -> for each driver and backend: a fresh Loop -> the test -> descriptors counted
 * Keep     nothing waits by luck: a test turns the loop without a limit until its condition holds, so a lost wake-up
 *          hangs, and the alarm names the test that did. */
#ifndef CHECK_H
#define CHECK_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "aio.h"

#define COUNT(v) (sizeof(v) / sizeof(v)[0])
#define MS INT64_C(1000000)
#define SEC INT64_C(1000000000)

static char check_name[128] = "start-up";

static inline _Noreturn void check_fail(const char *file, int line, const char *what) {
  fflush(stdout);
  fprintf(stderr, "%s:%d: %s: failed: %s\n", file, line, check_name, what);
  exit(1);
}

static inline void check_eq(const char *file, int line, const char *what, long long a, long long b) {
  if (a == b) return;
  fprintf(stderr, "%lld is not %lld\n", a, b);
  check_fail(file, line, what);
}

static inline void check_str(const char *file, int line, const char *what, const char *a, const char *b) {
  if (!strcmp(a, b)) return;
  fprintf(stderr, "\"%s\" is not \"%s\"\n", a, b);
  check_fail(file, line, what);
}

#define CHECK(cond) ((cond) ? (void)0 : check_fail(__FILE__, __LINE__, #cond))
#define CHECK_EQ(a, b) check_eq(__FILE__, __LINE__, #a " == " #b, (long long)(a), (long long)(b))
#define CHECK_STR(a, b) check_str(__FILE__, __LINE__, #a, a, b)

static inline int64_t now_ns(void) { return aio_clock_now(AIO_CLOCK_MONOTONIC); }

/* True under a tool that makes everything many times slower. */
static inline bool check_slow(void) {
#ifdef __SANITIZE_THREAD__
  return true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
  return true;
#endif
#endif
  const char *preload = getenv("LD_PRELOAD");
  return preload && strstr(preload, "vgpreload");
}

static inline long check_scale(long n) {
#ifdef __SANITIZE_ADDRESS__
  n /= 4;
#endif
  return check_slow() ? n / 20 : n;
}

static inline int open_fds(void) {
  DIR *dir = opendir("/proc/self/fd");
  int n = 0;
  CHECK(dir);
  while (readdir(dir)) n++;
  closedir(dir);
  return n;
}

static inline uint32_t rnd(uint32_t *state) { /* xorshift: never 0 */
  *state ^= *state << 13;
  *state ^= *state >> 17;
  return *state ^= *state << 5;
}

static inline pthread_t start(void *(*fn)(void *), void *arg) {
  pthread_t t;
  CHECK(pthread_create(&t, NULL, fn, arg) == 0);
  return t;
}

/* ---- a log of single letters, for orders ---- */

static char check_log[128];

static inline void log_reset(void) { check_log[0] = 0; }
static inline void note(void *letters) { /* an AioFn */
  CHECK(strlen(check_log) + strlen(letters) < sizeof check_log);
  strcat(check_log, letters);
}

/* ---- the loop and its two drivers ---- */

typedef struct Loop {
  AioContext *ctx;
  const struct Driver *driver;
  const char *backend;
  GMainContext *main; /* driver glib */
} Loop;

typedef struct Driver {
  const char *name;
  void (*open)(Loop *l);
  bool (*turn)(Loop *l, int64_t limit_ns); /* true: something was dispatched */
  void (*close)(Loop *l);
} Driver;

static inline void poll_open(Loop *l) { l->main = NULL; }
static inline bool poll_turn(Loop *l, int64_t limit_ns) { return aio_poll(l->ctx, limit_ns); }
static inline void poll_close(Loop *l) { (void)l; }

static _Thread_local int check_limit_ms; /* of the GLib iteration under way; -1: none */

static inline gint limited_poll(GPollFD *fds, guint n, gint timeout) {
  if (check_limit_ms >= 0 && (timeout < 0 || timeout > check_limit_ms)) timeout = check_limit_ms;
  return g_poll(fds, n, timeout);
}

static inline void glib_open(Loop *l) {
  l->main = g_main_context_new();
  g_main_context_set_poll_func(l->main, limited_poll);
  CHECK_EQ(aio_source_attach(l->ctx, l->main, G_PRIORITY_DEFAULT), 0);
}

static inline bool glib_turn(Loop *l, int64_t limit_ns) {
  int outer = check_limit_ms;
  check_limit_ms = limit_ns == AIO_FOREVER ? -1 : (int)((limit_ns + MS - 1) / MS);
  bool ran = g_main_context_iteration(l->main, limit_ns > 0);
  check_limit_ms = outer;
  return ran;
}

static inline void glib_close(Loop *l) { g_main_context_unref(l->main); }

static const Driver check_drivers[] = {
  {"poll", poll_open, poll_turn, poll_close},
  {"glib", glib_open, glib_turn, glib_close},
};

static inline bool is_glib(const Loop *l) { return l->main != NULL; }

static inline void loop_open(Loop *l, const AioOptions *wanted) {
  AioOptions opts = wanted ? *wanted : (AioOptions){.backend = NULL};
  if (!opts.backend) opts.backend = l->backend;
  CHECK_EQ(aio_context_new(&l->ctx, &opts), 0);
  l->driver->open(l);
}

/* For tests that drop the last reference themselves: l->ctx is NULL then. */
static inline void loop_close(Loop *l) {
  if (l->ctx) aio_context_unref(l->ctx);
  l->ctx = NULL;
  l->driver->close(l);
}

static inline void loop_reopen(Loop *l, const AioOptions *opts) {
  loop_close(l);
  loop_open(l, opts);
}

static inline bool turn(Loop *l, int64_t limit_ns) { return l->driver->turn(l, limit_ns); }

#define RUN_UNTIL(l, cond)                \
  do {                                    \
    while (!(cond)) turn(l, AIO_FOREVER); \
  } while (0)

/* Turns the loop for `ns`; how many turns that took tells whether it slept or span. */
static inline int turns_in(Loop *l, int64_t ns) {
  int n = 0;
  for (int64_t end = now_ns() + ns, left; (left = end - now_ns()) > 0; n++) turn(l, left);
  return n;
}

/* Left-over notifications and the search for closed fds may cost a few turns: a loop that spins takes thousands. */
#define CHECK_RESTS(l) CHECK(turns_in(l, 30 * MS) <= 8)

static inline uint64_t runs(const Loop *l) {
  AioStats s;
  aio_context_stats(l->ctx, &s);
  return s.bhs + s.timers + s.fds + s.entries;
}

static inline void check_quiet(Loop *l, const char *file, int line) {
  uint64_t before = runs(l);
  for (int i = 0; i < 3; i++) turn(l, 0);
  check_eq(file, line, "callbacks run by a loop that has nothing to do", (long long)(runs(l) - before), 0);
}

#define CHECK_QUIET(l) check_quiet(l, __FILE__, __LINE__)

/* ---- main ---- */

enum { POLL = 1, GLIB = 2, BOTH = 3 };

typedef struct Test {
  const char *name;
  void (*fn)(Loop *l);
  int drivers; /* 0: both */
} Test;

#define TEST(fn) {#fn, fn, BOTH}
#define TEST_POLL(fn) {#fn, fn, POLL}
#define TEST_GLIB(fn) {#fn, fn, GLIB}

static inline void check_hung(int sig) {
  static const char text[] = ": hung\n";
  (void)sig;
  if (write(2, check_name, strlen(check_name)) < 0 || write(2, text, sizeof text - 1) < 0) _exit(2);
  _exit(1);
}

static inline void check_one(const Test *t, const Driver *d, const char *backend) {
  Loop l = {.driver = d, .backend = backend};
  snprintf(check_name, sizeof check_name, "%s [%s, %s]", t->name, d->name, backend);
  alarm(check_slow() ? 110 : 50);
  int fds = open_fds();
  log_reset();
  loop_open(&l, NULL);
  t->fn(&l);
  loop_close(&l);
  check_eq(t->name, 0, "open descriptors afterwards", open_fds(), fds);
  alarm(0);
  printf("ok %s\n", check_name);
  fflush(stdout);
}

/* The kernel may refuse a ring (a sandbox, a sysctl): nothing is tested on it then, and the log says so. */
static inline bool check_granted(const char *backend) {
  AioContext *ctx;
  int rc = aio_context_new(&ctx, &(AioOptions){.backend = backend});
  if (rc == 0)
    aio_context_unref(ctx);
  else
    printf("skipped: backend %s is refused: %s\n", backend, strerror(-rc));
  return rc == 0;
}

static inline int check_on(const char *backend, const Test *tests, size_t n, const char *only) {
  int done = 0;
  for (size_t i = 0; i < n; i++)
    for (size_t d = 0; d < COUNT(check_drivers) && (!only || !strcmp(only, tests[i].name)); d++)
      if (tests[i].drivers & 1 << d) check_one(&tests[i], &check_drivers[d], backend), done++;
  return done;
}

/* `only`: names one test, for debugging; NULL: all. Rings come last: for each that is closed the kernel interrupts this
 * thread once, some ms later, which epoll_wait shows and a test that counts turns would notice. */
static inline int check_all(const Test *tests, size_t n, const char *backends, const char *only) {
  int done = 0;
  signal(SIGALRM, check_hung);
  signal(SIGPIPE, SIG_IGN);
  g_main_context_default(); /* stays open for good */
  if (strstr(backends, "epoll")) done += check_on("epoll", tests, n, only);
  if (strstr(backends, "+poll")) done += check_on("poll", tests, n, only);
  if (strstr(backends, "+io_uring") && check_granted("io_uring")) done += check_on("io_uring", tests, n, only);
  printf("%d passed\n", done);
  return done || !strcmp(backends, "+io_uring") ? 0 : 1;
}

#define CHECK_MAIN(tests, backends) \
  int main(int argc, char **argv) { return check_all(tests, COUNT(tests), backends, argc > 1 ? argv[1] : NULL); }

#endif
