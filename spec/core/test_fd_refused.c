/* SPDX-License-Identifier: MIT
 * Watches that the kernel has no room for any more: they end and say so, and their fd is not taken to be closed. */
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "internal.h"
#include "pair.h"

/* wrap: epoll_ctl */

static int refused_fd = -1, refusal;
static bool no_notifier; /* is taken in */

int __real_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int __wrap_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int __wrap_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev) {
  if (op == EPOLL_CTL_ADD && fd == refused_fd) return errno = refusal, -1;
  if (op == EPOLL_CTL_ADD && no_notifier && ev->data.u64 == UINT64_MAX) return errno = ENOSPC, -1;
  return __real_epoll_ctl(epfd, op, fd, ev);
}

typedef struct Side {
  AioWatch w;
  int runs, lost;
  void (*then)(struct Side *s);
  Loop *l;
} Side;

static void ready(void *opaque) {
  Side *s = opaque;
  s->runs++;
  s->lost = s->w.lost;
  if (s->then) s->then(s);
}

static int open_side(Side *s, Loop *l, int fd, AioDir dir, void (*then)(Side *)) {
  *s = (Side){.then = then, .l = l};
  return aio_watch_open(&s->w, l->ctx, fd, dir, ready, NULL, s);
}

static void close_self(Side *s) { aio_watch_close(&s->w); }

static void refuse(int fd, int error) {
  refused_fd = fd;
  refusal = error;
}

/* What is ready all the time is taken out of the kernel for as long as its handler takes turns of its own. */
static void nest(Side *s) {
  s->then = NULL;
  CHECK_RESTS(s->l);
}

static void is_lost(Loop *l, Side *s, int why) {
  RUN_UNTIL(l, s->lost);
  CHECK_EQ(s->lost, why);
  CHECK(!aio_watch_is_open(&s->w));
  CHECK_QUIET(l);
}

static void after_a_nested_turn(Loop *l) {
  static const struct { int error, told; } cases[] = {
    {ENOSPC, -ENOSPC}, {ENOMEM, -ENOMEM}, {EBADF, -EBADF}, {EPERM, -EBADF}};
  for (size_t i = 0; i < COUNT(cases); i++) {
    Pair p = new_socketpair();
    Side r;
    CHECK_EQ(open_side(&r, l, p.a, AIO_READ, nest), 0);
    close(p.b);
    turn(l, 0);
    CHECK(r.runs == 1 && !r.lost); /* nothing was refused: it is taken in again */
    CHECK(aio_watch_is_open(&r.w));
    r.then = nest;
    refuse(p.a, cases[i].error);
    is_lost(l, &r, cases[i].told);
    refuse(-1, 0);
    CHECK_EQ(open_side(&r, l, p.a, AIO_READ, close_self), 0);
    RUN_UNTIL(l, r.runs == 1);
    CHECK_EQ(r.lost, 0);
    close(p.a);
  }
}

/* Both directions of it: each is told. */
static void both_directions(Loop *l) {
  Pair p = new_socketpair();
  Side r, w;
  CHECK_EQ(open_side(&r, l, p.a, AIO_READ, nest), 0);
  CHECK_EQ(open_side(&w, l, p.a, AIO_WRITE, nest), 0);
  close(p.b);
  refuse(p.a, ENOSPC);
  RUN_UNTIL(l, r.lost && w.lost);
  refuse(-1, 0);
  CHECK(r.lost == -ENOSPC && w.lost == -ENOSPC);
  CHECK_QUIET(l);
  CHECK_RESTS(l);
  close(p.a);
}

/* A registration that has outlived its number makes the next turn build the set anew. Returns who keeps its file. */
static int outlive(Loop *l, Pair p) {
  Side stale;
  CHECK_EQ(open_side(&stale, l, p.a, AIO_READ, NULL), 0);
  turn(l, 0);
  int twin = dup(p.a);
  aio_watch_close(&stale.w);
  close(p.a);
  CHECK(write(p.b, "x", 1) == 1);
  return twin;
}

static void when_the_set_is_built_anew(Loop *l) {
  Pair p = new_socketpair(), q = new_socketpair();
  Side s;
  CHECK_EQ(open_side(&s, l, q.a, AIO_READ, close_self), 0);
  int twin = outlive(l, p);
  refuse(q.a, ENOSPC);
  is_lost(l, &s, -ENOSPC);
  refuse(-1, 0);
  CHECK(write(q.b, "x", 1) == 1);
  CHECK_EQ(open_side(&s, l, q.a, AIO_READ, close_self), 0);
  RUN_UNTIL(l, s.runs == 1);
  CHECK_EQ(s.lost, 0);
  close(twin);
  close(p.b);
  close_pair(q);
}

static void count(void *opaque) { ++*(int *)opaque; }

/* Its own watch: what came meanwhile is told when there is room again. */
static void of_a_signal(Loop *l) {
  AioSignal s;
  int told = 0;
  Pair p = new_socketpair();
  CHECK_EQ(aio_signal_open(&s, l->ctx, SIGUSR1, count, &told), 0);
  refuse(s.notifier.rfd, ENOSPC);
  int twin = outlive(l, p);
  RUN_UNTIL(l, !aio_watch_is_open(&s.watch));
  raise(SIGUSR1);
  CHECK_QUIET(l);
  CHECK_EQ(told, 0);
  refuse(-1, 0);
  RUN_UNTIL(l, told);
  raise(SIGUSR1);
  RUN_UNTIL(l, told == 2);
  aio_signal_close(&s);
  close(twin);
  close(p.b);
}

/* When the loop is about to sleep, or does so. */
static void *schedule(void *opaque) {
  AioBH *bh = opaque;
  while (!atomic_load(&bh->ctx->notify_me)) sched_yield();
  return aio_bh_schedule(bh), NULL;
}

/* Without its notifier it is not deaf: it does not sleep for long until that is in again. */
static void the_notifier(Loop *l) {
  Pair p = new_socketpair(), q = new_socketpair();
  Side s;
  AioBH bh;
  int ran = 0;
  CHECK_EQ(open_side(&s, l, q.a, AIO_READ, NULL), 0);
  aio_bh_init(&bh, l->ctx, count, &ran);
  int twin = outlive(l, p);
  no_notifier = true;
  for (int i = 1; i <= 10; i++) {
    pthread_t t = start(schedule, &bh);
    RUN_UNTIL(l, ran == i);
    pthread_join(t, NULL);
  }
  no_notifier = false;
  turns_in(l, 40 * MS);
  CHECK_RESTS(l);
  pthread_t t = start(schedule, &bh);
  RUN_UNTIL(l, ran == 11);
  pthread_join(t, NULL);
  CHECK_EQ(s.runs, 0);
  aio_bh_close(&bh);
  aio_watch_close(&s.w);
  close(twin);
  close(p.b);
  close_pair(q);
}

/* The number is another file's, for which there is no room: who watched the old one hears that this is gone. */
static void with_a_number_used_again(Loop *l) {
  Pair p = new_socketpair();
  Side r, w;
  int number = p.a;
  CHECK_EQ(open_side(&r, l, p.a, AIO_READ, close_self), 0);
  turn(l, 0);
  close(p.a);
  Pair q = new_socketpair();
  CHECK_EQ(q.a, number);
  refuse(q.a, ENOSPC);
  CHECK_EQ(open_side(&w, l, q.a, AIO_WRITE, NULL), -ENOSPC);
  refuse(-1, 0);
  is_lost(l, &r, -EBADF);
  close(p.b);
  close_pair(q);
}

/* One that was watched, and has become a file, is not what it was. */
static void and_one_that_cannot_be_watched(Loop *l) {
  char path[] = "/tmp/aioloop-test-XXXXXX";
  Pair p = new_socketpair(), q = new_socketpair();
  AioWatch w = {.ctx = NULL};
  Side other;
  CHECK_EQ(open_side(&other, l, q.a, AIO_READ, NULL), 0); /* or the kernel would not be asked */
  CHECK_EQ(aio_watch_again(&w, l->ctx, p.a, AIO_READ, ready, NULL), 0);
  turn(l, 0);
  aio_watch_close(&w);
  close(p.b);
  turn(l, 0); /* reported once, and taken out */
  int file = mkstemp(path);
  CHECK_EQ(dup2(file, p.a), p.a);
  CHECK_EQ(aio_watch_again(&w, l->ctx, p.a, AIO_READ, ready, NULL), -EBADF);
  CHECK_EQ(aio_watch_again(&w, l->ctx, file, AIO_READ, ready, NULL), -EPERM);
  aio_watch_close(&other.w);
  unlink(path);
  close(file);
  close(p.a);
  close_pair(q);
}

static const Test tests[] = {
  TEST(after_a_nested_turn),
  TEST(both_directions),
  TEST(when_the_set_is_built_anew),
  TEST(of_a_signal),
  TEST(the_notifier),
  TEST(with_a_number_used_again),
  TEST(and_one_that_cannot_be_watched),
};

CHECK_MAIN(tests, "epoll")
