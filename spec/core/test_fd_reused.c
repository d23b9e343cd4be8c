/* SPDX-License-Identifier: MIT
 * Numbers that others close and use again, behind the back of who watches them: no wait hangs, no loop spins, and what is
 * well is left alone. */
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "pair.h"

/* wrap: epoll_ctl */

static int ctls;

int __real_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int __wrap_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int __wrap_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev) {
  ctls++;
  return __real_epoll_ctl(epfd, op, fd, ev);
}

/* ---- helpers ---- */


/* A reader that waits for one event at a time, with the same watch. */
typedef struct Reader {
  AioWatch w;
  int runs, lost, bytes;
} Reader;

static void on_ready(void *opaque) {
  Reader *r = opaque;
  char c;
  r->runs++;
  if (r->w.lost) {
    r->lost++;
    return;
  }
  ssize_t n = read(r->w.fd, &c, 1);
  if (n == 1) {
    r->bytes++;
    aio_watch_close(&r->w);
  }
}

static int again(Reader *r, Loop *l, int fd) { return aio_watch_again(&r->w, l->ctx, fd, AIO_READ, on_ready, r); }

static void wait_once(Reader *r, Loop *l, Pair p) {
  int bytes = r->bytes;
  CHECK_EQ(again(r, l, p.a), 0);
  put(p.b);
  RUN_UNTIL(l, r->bytes > bytes);
}

/* The number of `p` is q's from now on, and p's end is gone but for its duplicate, if there is one. */
static void take_number(Pair p, Pair *q) {
  CHECK_EQ(dup2(q->a, p.a), p.a);
  close(q->a);
  q->a = p.a;
}

static bool is(const Loop *l, const char *backend) { return !strcmp(l->backend, backend); }

static int turns_until_lost(Loop *l, const Reader *r) {
  int n = 0;
  for (int64_t end = now_ns() + 20 * SEC; !r->lost; n++) {
    CHECK(now_ns() < end);
    turn(l, end - now_ns());
  }
  return n;
}

/* ---- between waits, and while somebody waits ---- */

/* The registration that is trusted is another file's. */
static void reused_between_waits(Loop *l) {
  for (int ready = 0; ready < 2; ready++) {
    Reader r = {.runs = 0};
    Pair p = new_socketpair(), q = new_socketpair();
    for (int i = 0; i < 3; i++) wait_once(&r, l, p);
    CHECK_QUIET(l);
    take_number(p, &q);
    if (ready) put(q.b);
    int rc = again(&r, l, q.a);
    if (is(l, "epoll")) {
      CHECK_EQ(rc, 0);
      CHECK(turns_until_lost(l, &r) <= 6);
      CHECK_EQ(r.lost, 1);
    } else {
      CHECK_EQ(rc, -EBADF);
    }
    CHECK(!aio_watch_is_open(&r.w));
    CHECK_EQ(r.bytes, 3); /* nothing of the other's was touched */
    Reader fresh = {.runs = 0};
    if (!ready) put(q.b);
    CHECK_EQ(again(&fresh, l, q.a), 0);
    RUN_UNTIL(l, fresh.bytes == 1);
    CHECK_RESTS(l);
    close_pair(q);
    close(p.b);
  }
}

static void reused_while_somebody_waits(Loop *l) {
  Reader r = {.runs = 0};
  Pair p = new_socketpair(), q = new_socketpair();
  CHECK_EQ(again(&r, l, p.a), 0);
  CHECK_QUIET(l);
  turns_in(l, 60 * MS); /* it has looked for closed fds, and found none */
  CHECK_EQ(r.runs, 0);
  take_number(p, &q);
  if (is(l, "poll")) { /* knows nothing but numbers */
    put(q.b);
    RUN_UNTIL(l, r.bytes == 1);
  } else {
    CHECK(turns_until_lost(l, &r) <= 6);
    put(q.b);
    CHECK_RESTS(l);
    CHECK(r.runs == 1 && r.lost == 1);
  }
  close_pair(q);
  close(p.b);
}

/* Both directions hear of it, each once. */
static void reused_under_two(Loop *l) {
  if (is(l, "poll")) return;
  Reader r = {.runs = 0}, w = {.runs = 0};
  Pair p = new_socketpair(), q = new_socketpair();
  static const char block[4096];
  while (write(p.a, block, sizeof block) > 0) continue;
  CHECK_EQ(again(&r, l, p.a), 0);
  CHECK_EQ(aio_watch_again(&w.w, l->ctx, p.a, AIO_WRITE, on_ready, &w), 0);
  turn(l, 0);
  take_number(p, &q);
  CHECK(turns_until_lost(l, &r) <= 6);
  RUN_UNTIL(l, w.lost == 1);
  CHECK_QUIET(l);
  CHECK(r.lost == 1 && w.lost == 1 && r.runs == 1 && w.runs == 1);
  close_pair(q);
  close(p.b);
}

/* A duplicate keeps the old file, and the kernel reports it, without end, under the number that is another's. */
static void reused_with_the_old_file_alive(Loop *l) {
  for (int trusted = 0; trusted < 2; trusted++) {
    Reader r = {.runs = 0};
    Pair p = new_socketpair(), q = new_socketpair();
    int twin = dup(p.a), n = 0;
    wait_once(&r, l, p);
    if (!trusted) CHECK_EQ(again(&r, l, p.a), 0);
    CHECK_QUIET(l);
    take_number(p, &q);
    put(p.b); /* for the twin */
    int rc = trusted ? again(&r, l, q.a) : 0;
    if (is(l, "poll") ? trusted : rc < 0) {
      CHECK_EQ(rc, -EBADF);
    } else if (is(l, "poll")) {
      put(q.b);
      RUN_UNTIL(l, r.bytes == 2);
    } else {
      n = turns_until_lost(l, &r);
      CHECK(n <= 400);
      CHECK(r.bytes == 1 && r.lost == 1);
    }
    CHECK_RESTS(l);
    Reader fresh = {.runs = 0};
    CHECK_EQ(again(&fresh, l, q.a), 0);
    put(q.b);
    RUN_UNTIL(l, fresh.bytes == 1);
    CHECK_RESTS(l);
    close(twin);
    close_pair(q);
    close(p.b);
  }
}

/* ---- among many ---- */

enum { MANY = 150 };

static AioBH restless;
static void schedule_again(void *opaque) {
  (void)opaque;
  aio_bh_schedule(&restless);
}

/* However many are watched, and whether the loop sleeps or never does: it is found, and the others are well. */
static void found_among_many(Loop *l) {
  static Reader r[MANY];
  static Pair p[MANY];
  aio_bh_init(&restless, l->ctx, schedule_again, NULL);
  for (int busy = 0; busy < 2; busy++) {
    for (int i = 0; i < MANY; i++) {
      r[i] = (Reader){.runs = 0};
      p[i] = new_socketpair();
      CHECK_EQ(again(&r[i], l, p[i].a), 0);
    }
    if (busy) aio_bh_schedule(&restless);
    for (int k = 0; k < 3 && !is(l, "poll"); k++) {
      Pair q = new_socketpair();
      int victim = k == 0 ? 0 : k == 1 ? MANY - 1 : MANY / 2;
      take_number(p[victim], &q);
      turns_until_lost(l, &r[victim]);
      close(p[victim].b);
      p[victim] = q;
    }
    aio_bh_cancel(&restless);
    for (int i = 0; i < MANY; i++) {
      if (!r[i].lost) {
        CHECK(aio_watch_is_open(&r[i].w) && r[i].runs == 0);
        put(p[i].b);
        RUN_UNTIL(l, r[i].bytes == 1);
      }
      close_pair(p[i]);
    }
  }
  aio_bh_close(&restless);
  CHECK_QUIET(l);
}

/* ---- what it costs ---- */

static void watching_again_asks_nothing_of_the_kernel(Loop *l) {
  Reader r = {.runs = 0};
  Pair p = new_socketpair();
  wait_once(&r, l, p);
  int before = ctls;
  for (int i = 0; i < 2000; i++) wait_once(&r, l, p);
  CHECK(ctls - before <= 2000 / 20);
  CHECK_EQ(r.bytes, 2001);
  close_pair(p);
}

static const Test tests[] = {
  TEST(reused_between_waits), TEST(reused_while_somebody_waits), TEST(reused_under_two), TEST(reused_with_the_old_file_alive),
  TEST(found_among_many), TEST(watching_again_asks_nothing_of_the_kernel),
};

CHECK_MAIN(tests, "epoll +poll +io_uring")
