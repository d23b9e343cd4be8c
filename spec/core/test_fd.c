/* SPDX-License-Identifier: MIT
 * Watches on every backend: level-triggered, never an event for the wrong file, and no fd that makes the loop spin. */
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "pair.h"

/* wrap: epoll_ctl epoll_wait ppoll syscall realloc */

static int ctl_fails, waits_interrupted;
static bool no_memory;

int __real_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int __wrap_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int __wrap_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev) {
  if (ctl_fails && op != EPOLL_CTL_DEL) return errno = ctl_fails, -1;
  return __real_epoll_ctl(epfd, op, fd, ev);
}

static bool interrupted(void) {
  if (!waits_interrupted) return false;
  waits_interrupted--;
  errno = EINTR;
  return true;
}

int __real_epoll_wait(int epfd, struct epoll_event *ev, int n, int ms);
int __wrap_epoll_wait(int epfd, struct epoll_event *ev, int n, int ms);
int __wrap_epoll_wait(int epfd, struct epoll_event *ev, int n, int ms) {
  return interrupted() ? -1 : __real_epoll_wait(epfd, ev, n, ms);
}

long __real_syscall(long n, ...);
long __wrap_syscall(long n, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long n, long a, long b, long c, long d, long e, long f) { /* epoll_pwait2 alone comes this way */
  return interrupted() ? -1 : __real_syscall(n, a, b, c, d, e, f);
}

int __real_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *ts, const sigset_t *mask);
int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *ts, const sigset_t *mask);
int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *ts, const sigset_t *mask) {
  return interrupted() ? -1 : __real_ppoll(fds, n, ts, mask);
}

void *__real_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size) { return no_memory ? NULL : __real_realloc(p, size); }

/* ---- helpers ---- */

static Pair new_pipe(void) { /* a reads */
  int fds[2];
  CHECK(pipe2(fds, O_NONBLOCK) == 0);
  return (Pair){fds[0], fds[1]};
}

static void take(int fd) {
  char c;
  CHECK(read(fd, &c, 1) == 1);
}

static void fill(int fd) {
  char buf[4096] = {0};
  while (write(fd, buf, sizeof buf) > 0) {}
  while (write(fd, buf, 1) > 0) {}
}

static void drain(int fd) {
  char buf[4096];
  while (read(fd, buf, sizeof buf) > 0) {}
}

typedef struct Side { /* a watch that counts, and what its handler does on top */
  AioWatch w;
  int runs, lost;
  void (*then)(struct Side *s);
  struct Side *other;
  Loop *l;
  int64_t number;
} Side;

static void ready(void *opaque) {
  Side *s = opaque;
  s->runs++;
  s->lost += s->w.lost == -EBADF;
  if (s->then) s->then(s);
}

static int open_side(Side *s, Loop *l, int fd, AioDir dir, void (*then)(Side *)) {
  *s = (Side){.then = then, .l = l};
  return aio_watch_open(&s->w, l->ctx, fd, dir, ready, NULL, s);
}

static void take_one(Side *s) { take(s->w.fd); }
static void take_all(Side *s) { drain(s->w.fd); }
static void close_self(Side *s) { aio_watch_close(&s->w); }
static void close_other(Side *s) { aio_watch_close(&s->other->w); }

/* ---- one fd ---- */

static void level_triggered(Loop *l) {
  Pair p = new_pipe();
  Side s;
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, NULL), 0);
  CHECK(aio_watch_is_open(&s.w));
  CHECK_QUIET(l);
  put(p.b);
  for (int i = 1; i <= 5; i++) {
    CHECK(turn(l, AIO_FOREVER));
    CHECK_EQ(s.runs, i);
  }
  s.then = take_one;
  CHECK(turn(l, AIO_FOREVER));
  CHECK_EQ(s.runs, 6);
  CHECK_QUIET(l);
  CHECK_RESTS(l);
  put(p.b);
  aio_watch_close(&s.w);
  CHECK(!aio_watch_is_open(&s.w));
  aio_watch_close(&s.w);
  CHECK_QUIET(l);
  CHECK_RESTS(l); /* the registration that is left must not make it spin */
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, take_one), 0);
  RUN_UNTIL(l, s.runs == 1);
  CHECK_QUIET(l);
  aio_watch_close(&s.w);
  close_pair(p);
}

static void refusals(Loop *l) {
  Pair p = new_socketpair();
  Side s, other;
  char path[] = "/tmp/aioloop-test-XXXXXX";
  int file = mkstemp(path), dir = open("/", O_RDONLY);
  unlink(path);
  CHECK_EQ(open_side(&s, l, file, AIO_READ, NULL), -EPERM);
  CHECK_EQ(open_side(&s, l, dir, AIO_READ, NULL), -EPERM);
  CHECK_EQ(open_side(&s, l, -1, AIO_READ, NULL), -EBADF);
  CHECK_EQ(open_side(&s, l, 1 << 30, AIO_READ, NULL), -EBADF);
  CHECK(!aio_watch_is_open(&s.w));
  close(file);
  close(dir);
  CHECK_EQ(open_side(&s, l, file, AIO_READ, NULL), -EBADF);
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, take_one), 0);
  CHECK_EQ(open_side(&other, l, p.a, AIO_READ, NULL), -EEXIST);
  CHECK(!aio_watch_is_open(&other.w));
  aio_watch_close(&other.w); /* no-op: it never was open */
  put(p.b);
  RUN_UNTIL(l, s.runs == 1);
  CHECK_QUIET(l);
  aio_watch_close(&s.w);
  close_pair(p);
  aio_context_close(l->ctx);
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, NULL), -ESHUTDOWN);
}

static void both_directions(Loop *l) {
  Pair p = new_socketpair();
  Side r, w;
  CHECK_EQ(open_side(&w, l, p.a, AIO_WRITE, NULL), 0);
  CHECK_EQ(open_side(&r, l, p.a, AIO_READ, take_one), 0);
  turn(l, 0);
  CHECK(w.runs == 1 && r.runs == 0);
  put(p.b);
  turn(l, 0);
  CHECK(w.runs == 2 && r.runs == 1);
  aio_watch_close(&w.w);
  CHECK_QUIET(l);
  CHECK_RESTS(l);
  put(p.b);
  RUN_UNTIL(l, r.runs == 2);
  aio_watch_close(&r.w);
  close_pair(p);
}

static void note_read(Side *s) { note("r"), aio_watch_close(&s->w); }
static void note_write(Side *s) { note("w"), aio_watch_close(&s->w); }

static void error_runs_both_read_first(Loop *l) {
  Pair p = new_pipe();
  Side r, w;
  fill(p.b);
  CHECK_EQ(open_side(&w, l, p.b, AIO_WRITE, note_write), 0);
  CHECK_EQ(open_side(&r, l, p.b, AIO_READ, note_read), 0);
  CHECK_QUIET(l);
  close(p.a); /* the writing end now has POLLERR */
  RUN_UNTIL(l, w.runs);
  CHECK_STR(check_log, "rw");
  CHECK_QUIET(l);
  CHECK_RESTS(l);
  close(p.b);
}

static void read_handler_closes_the_write_watch(Loop *l) {
  Pair p = new_pipe();
  Side r, w;
  fill(p.b);
  CHECK_EQ(open_side(&r, l, p.b, AIO_READ, close_other), 0);
  CHECK_EQ(open_side(&w, l, p.b, AIO_WRITE, NULL), 0);
  r.other = &w;
  close(p.a);
  turn(l, AIO_FOREVER);
  turn(l, 0);
  CHECK(r.runs >= 1);
  CHECK_EQ(w.runs, 0);
  aio_watch_close(&r.w);
  CHECK_RESTS(l);
  close(p.b);
}

/* ---- hang-ups ---- */

static void hup_reaches_a_writer(Loop *l, Pair p) {
  Side w;
  CHECK_EQ(open_side(&w, l, p.a, AIO_WRITE, close_self), 0);
  CHECK_QUIET(l);
  close(p.b);
  RUN_UNTIL(l, w.runs == 1);
  CHECK_QUIET(l);
  CHECK_RESTS(l);
  close(p.a);
}

static void hup_reaches_a_writer_without_reader(Loop *l) {
  Pair p = new_socketpair();
  fill(p.a);
  hup_reaches_a_writer(l, p);
}

/* The reading end of a pipe is never writable: HUP is all that comes. */
static void hup_alone_reaches_a_writer(Loop *l) { hup_reaches_a_writer(l, new_pipe()); }

static void hup_without_any_watch_does_not_spin(Loop *l) {
  Pair p = new_pipe(), q = new_socketpair();
  Side r, s;
  CHECK_EQ(open_side(&r, l, p.a, AIO_READ, NULL), 0);
  CHECK_EQ(open_side(&s, l, q.a, AIO_READ, NULL), 0);
  turn(l, 0);
  aio_watch_close(&r.w);
  aio_watch_close(&s.w);
  close(p.b);
  close(q.b);
  CHECK(turns_in(l, 40 * MS) <= 8);
  CHECK_QUIET(l);
  CHECK_EQ(open_side(&r, l, p.a, AIO_READ, close_self), 0); /* and is told to whoever asks again */
  RUN_UNTIL(l, r.runs == 1);
  close(p.a);
  close(q.a);
}

/* What a closed watch has left registered must neither wake the loop again and again nor take its twin along. */
static void closed_reader_leaves_the_writer_alone(Loop *l) {
  Pair p = new_socketpair();
  Side r, w;
  fill(p.a);
  CHECK_EQ(open_side(&r, l, p.a, AIO_READ, NULL), 0);
  CHECK_EQ(open_side(&w, l, p.a, AIO_WRITE, close_self), 0);
  CHECK_QUIET(l);
  aio_watch_close(&r.w);
  put(p.b);
  CHECK(turns_in(l, 40 * MS) <= 8);
  CHECK_QUIET(l);
  drain(p.b);
  RUN_UNTIL(l, w.runs == 1);
  close_pair(p);
}

static void closed_writer_leaves_the_reader_alone(Loop *l) {
  Pair p = new_socketpair();
  Side r, w;
  CHECK_EQ(open_side(&r, l, p.a, AIO_READ, take_one), 0);
  CHECK_EQ(open_side(&w, l, p.a, AIO_WRITE, NULL), 0);
  turn(l, 0);
  aio_watch_close(&w.w);
  CHECK(turns_in(l, 40 * MS) <= 8);
  CHECK_QUIET(l);
  put(p.b);
  RUN_UNTIL(l, r.runs == 1);
  aio_watch_close(&r.w);
  close_pair(p);
}

/* ---- neighbours ---- */

static void replace_other(Side *s) {
  Side *o = s->other;
  int fd = o->w.fd;
  aio_watch_close(&o->w);
  CHECK_EQ(open_side(o, s->l, fd, AIO_READ, take_one), 0);
  s->then = take_one;
  take(s->w.fd);
}

static void replaced_while_ready(Loop *l) {
  Pair p = new_pipe(), q = new_pipe();
  Side first, second;
  CHECK_EQ(open_side(&first, l, p.a, AIO_READ, replace_other), 0);
  CHECK_EQ(open_side(&second, l, q.a, AIO_READ, NULL), 0);
  first.other = &second;
  put(p.b);
  turn(l, 0); /* replaces a handler that is not ready */
  CHECK(first.runs == 1 && second.runs == 0);
  first.then = replace_other;
  put(p.b);
  put(q.b);
  turn(l, 0); /* the order in which the two are found is the kernel's */
  CHECK_EQ(first.runs, 2);
  while (second.runs < 1 && turn(l, 0)) {}
  CHECK_QUIET(l);
  aio_watch_close(&first.w);
  aio_watch_close(&second.w);
  close_pair(p);
  close_pair(q);
}

/* Three ready at once; each handler closes one of the others: exactly two run, whatever the order. */
static void removed_by_a_neighbour(Loop *l) {
  Pair p[3];
  Side s[3];
  for (int i = 0; i < 3; i++) {
    p[i] = new_pipe();
    CHECK_EQ(open_side(&s[i], l, p[i].a, AIO_READ, NULL), 0);
  }
  for (int i = 0; i < 3; i++) {
    s[i].then = close_other;
    s[i].other = &s[(i + 1) % 3];
    put(p[i].b);
  }
  turn(l, AIO_FOREVER);
  int sum = s[0].runs + s[1].runs + s[2].runs;
  CHECK(sum == 1 || sum == 2);
  for (int i = 0; i < 3; i++) {
    CHECK(s[i].runs || !aio_watch_is_open(&s[i].w));
    aio_watch_close(&s[i].w);
    close_pair(p[i]);
  }
}

enum { MANY = 700 }; /* more than a backend takes at a time; one fd each, as a process may have no more than 1024 */

static void many_ready_at_once(Loop *l) {
  static Side s[MANY];
  for (int i = 0; i < MANY; i++) {
    int fd = eventfd(1, EFD_NONBLOCK);
    CHECK(fd >= 0);
    CHECK_EQ(open_side(&s[i], l, fd, AIO_READ, NULL), 0);
  }
  for (int i = 0; i < 6; i++) turn(l, AIO_FOREVER);
  for (int i = 0; i < MANY; i++) CHECK(s[i].runs >= 2);
  for (int i = 0; i < MANY; i++) s[i].then = take_all;
  for (int i = 0; i < 3; i++) turn(l, 0);
  CHECK_QUIET(l);
  AioStats stats;
  aio_context_stats(l->ctx, &stats);
  CHECK_EQ(stats.watches, MANY);
  for (int i = 0; i < MANY; i++) {
    int fd = s[i].w.fd;
    aio_watch_close(&s[i].w);
    close(fd);
  }
}

/* ---- closed behind our back ---- */

/* Told once, with at most five turns more than the one that tells. */
static void check_lost(Side *s, int64_t within) {
  int turns = 0;
  for (int64_t end = now_ns() + within; !s->lost; turns++) {
    CHECK(now_ns() < end);
    turn(s->l, end - now_ns());
  }
  CHECK(turns <= 6);
  CHECK_EQ(s->lost, 1);
  CHECK(!aio_watch_is_open(&s->w));
  int runs_until_told = s->runs;
  CHECK_RESTS(s->l);
  CHECK_QUIET(s->l);
  CHECK_EQ(s->runs, runs_until_told);
  CHECK_EQ(s->lost, 1);
  aio_watch_close(&s->w);
}

static void close_fd(void *opaque) { close(((Side *)opaque)->w.fd); }

static void fd_closed_in_a_callback(Loop *l) {
  Pair p = new_pipe();
  Side s;
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, NULL), 0);
  CHECK_QUIET(l);
  aio_bh_oneshot(l->ctx, close_fd, &s);
  turn(l, 0);
  check_lost(&s, 5 * SEC);
  CHECK_EQ(s.runs, 1);
  close(p.b);
}

static void fd_closed_with_data_waiting(Loop *l) {
  Pair p = new_pipe();
  Side s;
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, NULL), 0);
  put(p.b);
  turn(l, 0);
  close(p.a);
  check_lost(&s, 5 * SEC);
  close(p.b);
}

static void fd_closed_in_its_own_handler(Loop *l) {
  Pair p = new_pipe();
  Side s;
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, NULL), 0);
  put(p.b);
  s.then = NULL;
  aio_bh_oneshot(l->ctx, close_fd, &s); /* BHs come before fds: it is closed when its handler runs, or before */
  turn(l, 0);
  check_lost(&s, 5 * SEC);
  close(p.b);
}

static void fd_closed_before_the_first_turn(Loop *l) {
  Pair p = new_pipe();
  Side s;
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, NULL), 0);
  close(p.a);
  check_lost(&s, 5 * SEC);
  close(p.b);
}

static void fd_closed_between_turns(Loop *l) {
  Pair p = new_pipe();
  Side s;
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, NULL), 0);
  turns_in(l, 60 * MS); /* it has looked for closed fds and found none */
  close(p.a);
  aio_notify(l->ctx); /* something happens in this thread, but nothing in this loop */
  check_lost(&s, 5 * SEC);
  close(p.b);
}

static void fd_closed_with_both_watches(Loop *l) {
  Pair p = new_socketpair();
  Side r, w;
  fill(p.a);
  CHECK_EQ(open_side(&r, l, p.a, AIO_READ, NULL), 0);
  CHECK_EQ(open_side(&w, l, p.a, AIO_WRITE, NULL), 0);
  CHECK_QUIET(l);
  aio_bh_oneshot(l->ctx, close_fd, &r);
  turn(l, 0);
  check_lost(&r, 5 * SEC);
  CHECK_EQ(w.lost, 1);
  CHECK_EQ(w.runs, 1);
  close(p.b);
}

static void lost_watch_closed_by_a_neighbour(Loop *l) {
  Pair p = new_socketpair();
  Side r, w;
  fill(p.a);
  CHECK_EQ(open_side(&r, l, p.a, AIO_READ, close_other), 0);
  CHECK_EQ(open_side(&w, l, p.a, AIO_WRITE, NULL), 0);
  r.other = &w;
  aio_bh_oneshot(l->ctx, close_fd, &r);
  turn(l, 0);
  check_lost(&r, 5 * SEC);
  CHECK_EQ(w.runs, 0);
  close(p.b);
}

/* A duplicate keeps the file open, so the kernel goes on reporting a number that is closed. */
static void duplicate_keeps_the_closed_fd_alive(Loop *l) {
  Pair p = new_pipe(), q = new_pipe();
  Side s, other;
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, NULL), 0);
  CHECK_EQ(open_side(&other, l, q.a, AIO_READ, take_one), 0);
  CHECK_QUIET(l);
  int twin = dup(p.a);
  aio_bh_oneshot(l->ctx, close_fd, &s);
  turn(l, 0);
  check_lost(&s, 5 * SEC);
  put(p.b); /* for nobody */
  CHECK(turns_in(l, 40 * MS) <= 8);
  put(q.b); /* the others are served still */
  RUN_UNTIL(l, other.runs == 1);
  CHECK_QUIET(l);
  aio_watch_close(&other.w);
  close(twin);
  close(p.b);
  close_pair(q);
}

static void duplicate_with_data_is_noticed(Loop *l) {
  Pair p = new_pipe();
  Side s;
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, NULL), 0);
  int twin = dup(p.a);
  turn(l, 0);
  put(p.b);
  close(p.a);
  int turns = 0;
  for (; !s.lost; turns++) turn(l, AIO_FOREVER);
  CHECK(turns <= 300); /* its handler is called meanwhile, and gets EBADF from the kernel */
  CHECK(turns_in(l, 40 * MS) <= 8);
  close(twin);
  close(p.b);
}

/* ---- numbers that come back ---- */

static Pair reused;
static Side newcomer;

/* Closes the other's fd as one should, and gets the same number for another file. */
static void reuse_number_of_other(Side *s) {
  int fd = s->other->w.fd;
  aio_watch_close(&s->w);
  aio_watch_close(&s->other->w);
  close(fd);
  reused = new_pipe();
  if (reused.a != fd) {
    CHECK_EQ(dup2(reused.a, fd), fd);
    close(reused.a);
    reused.a = fd;
  }
  CHECK_EQ(open_side(&newcomer, s->l, fd, AIO_READ, take_one), 0);
}

static void number_reused_within_a_batch(Loop *l) {
  for (int round = 0; round < 20; round++) {
    Pair p = new_pipe(), q = new_pipe();
    Side a, b;
    CHECK_EQ(open_side(&a, l, p.a, AIO_READ, reuse_number_of_other), 0);
    CHECK_EQ(open_side(&b, l, q.a, AIO_READ, reuse_number_of_other), 0);
    a.other = &b;
    b.other = &a;
    newcomer = (Side){.runs = 0};
    put(p.b);
    put(q.b);
    turn(l, AIO_FOREVER);
    CHECK_EQ(a.runs + b.runs, 1);
    CHECK_QUIET(l);
    CHECK_EQ(newcomer.runs, 0);
    put(reused.b);
    RUN_UNTIL(l, newcomer.runs == 1);
    aio_watch_close(&newcomer.w);
    close_pair(reused);
    close(p.b);
    close(q.b);
    close(a.runs ? p.a : q.a);
  }
}

static void number_reused_after_close(Loop *l) {
  Side s;
  Pair p = new_pipe();
  int number = p.a;
  for (int round = 0; round < 20; round++) {
    CHECK_EQ(open_side(&s, l, p.a, AIO_READ, take_one), 0);
    put(p.b);
    if (round % 2) RUN_UNTIL(l, s.runs == 1);
    aio_watch_close(&s.w);
    if (round % 3 == 0) turn(l, 0);
    close_pair(p);
    if (round % 5 == 0) turn(l, 0);
    p = round % 2 ? new_pipe() : new_socketpair();
    CHECK_EQ(p.a, number);
  }
  close_pair(p);
}

/* Closed without telling the loop, and a duplicate keeps the old file readable: the newcomer must not hear of it. */
static void number_reused_with_the_old_file_alive(Loop *l) {
  Pair p = new_pipe();
  Side old;
  CHECK_EQ(open_side(&old, l, p.a, AIO_READ, NULL), 0);
  turn(l, 0);
  int number = p.a, twin = dup(p.a);
  aio_watch_close(&old.w);
  close(p.a);
  Pair q = new_pipe();
  CHECK_EQ(q.a, number);
  CHECK_EQ(open_side(&newcomer, l, q.a, AIO_READ, take_one), 0);
  put(p.b);
  CHECK(turns_in(l, 40 * MS) <= 8);
  CHECK_EQ(newcomer.runs, 0);
  put(q.b);
  RUN_UNTIL(l, newcomer.runs == 1);
  CHECK_QUIET(l);
  aio_watch_close(&newcomer.w);
  close_pair(q);
  close(twin);
  close(p.b);
}

/* The same number is the same file again, by way of its duplicate. */
static void number_returns_to_the_same_file(Loop *l) {
  Pair p = new_pipe();
  Side s;
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, NULL), 0);
  turn(l, 0);
  int twin = dup(p.a);
  aio_watch_close(&s.w);
  close(p.a);
  put(p.b);
  CHECK(turns_in(l, 40 * MS) <= 8); /* silences what nobody wants, though it has no number */
  CHECK_EQ(dup2(twin, p.a), p.a);
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, take_one), 0);
  RUN_UNTIL(l, s.runs == 1);
  CHECK_QUIET(l);
  aio_watch_close(&s.w);
  close(twin);
  close_pair(p);
}

/* Closed without telling the loop; whoever watches the new file in the other direction makes that known. */
static void number_reused_for_the_other_direction(Loop *l) {
  Pair p = new_pipe();
  Side r, w;
  int number = p.a;
  CHECK_EQ(open_side(&r, l, p.a, AIO_READ, NULL), 0);
  turn(l, 0);
  close(p.a);
  Pair q = new_socketpair();
  CHECK_EQ(q.a, number);
  CHECK_EQ(open_side(&w, l, q.a, AIO_WRITE, close_self), 0);
  RUN_UNTIL(l, r.lost && w.runs);
  CHECK(r.lost == 1 && r.runs == 1 && w.runs == 1 && !w.lost);
  put(q.b);
  CHECK_QUIET(l);
  CHECK_RESTS(l);
  close(p.b);
  close_pair(q);
}

/* ---- nested turns ---- */

static int nested_turns;

static void nest_without_reading(Side *s) {
  CHECK_EQ(s->number++, 0); /* not re-entered */
  nested_turns = turns_in(s->l, 40 * MS);
  take(s->w.fd);
  s->number = 0;
}

static void handler_is_not_reentered(Loop *l) {
  Pair p = new_pipe();
  Side s;
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, nest_without_reading), 0);
  for (int i = 1; i <= 2; i++) {
    put(p.b);
    RUN_UNTIL(l, s.runs == i);
    CHECK(nested_turns <= 8);
    CHECK_QUIET(l);
  }
  aio_watch_close(&s.w);
  close_pair(p);
}

static void hup_in_nested_turn(Loop *l) {
  Pair p = new_pipe();
  Side s;
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, nest_without_reading), 0);
  put(p.b);
  close(p.b); /* HUP cannot be masked, only taken out */
  RUN_UNTIL(l, s.runs == 1);
  CHECK(nested_turns <= 8);
  s.then = close_self;
  RUN_UNTIL(l, s.runs == 2); /* and it is back in */
  CHECK_RESTS(l);
  close(p.a);
}

static void wait_for_other(Side *s) {
  RUN_UNTIL(s->l, s->other->runs);
  take(s->w.fd);
}

static void drain_peer(void *opaque) { drain(*(int *)opaque); }

static void other_fds_are_served_in_a_nested_turn(Loop *l) {
  Pair p = new_pipe(), q = new_pipe();
  Side s, other;
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, wait_for_other), 0);
  CHECK_EQ(open_side(&other, l, q.a, AIO_READ, take_one), 0);
  s.other = &other;
  put(p.b);
  put(q.b);
  RUN_UNTIL(l, s.runs == 1);
  CHECK_EQ(other.runs, 1);
  CHECK_QUIET(l);
  aio_watch_close(&s.w);
  aio_watch_close(&other.w);
  close_pair(p);
  close_pair(q);
}

/* A read handler that waits in a nested turn until it can write on the same socket: unread input must not hide that. */
static void writer_is_served_while_its_reader_nests(Loop *l) {
  Pair p = new_socketpair();
  Side r, w;
  AioTimer later;
  fill(p.a);
  CHECK_EQ(open_side(&r, l, p.a, AIO_READ, wait_for_other), 0);
  CHECK_EQ(open_side(&w, l, p.a, AIO_WRITE, close_self), 0);
  r.other = &w;
  put(p.b);
  aio_timer_init(&later, l->ctx, AIO_CLOCK_MONOTONIC, drain_peer, &p.b);
  aio_timer_arm(&later, now_ns() + 20 * MS); /* fires in the nested turns */
  RUN_UNTIL(l, r.runs == 1);
  CHECK_EQ(w.runs, 1);
  CHECK_QUIET(l);
  put(p.b);
  r.then = take_one;
  RUN_UNTIL(l, r.runs == 2);
  aio_watch_close(&r.w);
  close_pair(p);
}

static void close_and_nest(Side *s) {
  int fd = s->w.fd;
  aio_watch_close(&s->w);
  CHECK_EQ(open_side(s->other, s->l, fd, AIO_READ, take_one), 0);
  RUN_UNTIL(s->l, s->other->runs); /* another watch: may run in here */
}

static void replaced_in_its_own_handler(Loop *l) {
  Pair p = new_pipe();
  Side first, second;
  CHECK_EQ(open_side(&first, l, p.a, AIO_READ, close_and_nest), 0);
  first.other = &second;
  put(p.b);
  RUN_UNTIL(l, first.runs);
  CHECK_EQ(second.runs, 1);
  put(p.b);
  RUN_UNTIL(l, second.runs == 2);
  CHECK_EQ(first.runs, 1);
  aio_watch_close(&second.w);
  close_pair(p);
}

/* ---- against a model: after every random step, exactly what poll(2) calls ready is called ---- */

enum { FDS = 12 };

static bool would_be_ready(int fd, int dir) {
  struct pollfd pfd = {.fd = fd, .events = dir == AIO_READ ? POLLIN : POLLOUT};
  CHECK(poll(&pfd, 1, 0) >= 0);
  return pfd.revents & ((dir == AIO_READ ? POLLIN | POLLHUP : POLLOUT) | POLLERR);
}

static Pair pairs[FDS];
static Side sides[FDS][2];

static void random_step(Loop *l, uint32_t *seed) {
  uint32_t r = rnd(seed);
  int i = (int)(r >> 8) % FDS, dir = (int)(r >> 16) % 2;
  Side *s = &sides[i][dir];
  switch (r % 7) {
    case 0:
    case 1:
      if (aio_watch_is_open(&s->w))
        aio_watch_close(&s->w);
      else
        CHECK_EQ(open_side(s, l, pairs[i].a, dir, NULL), 0);
      break;
    case 2: fill(pairs[i].a); break;
    case 3: drain(pairs[i].b); break;
    case 4: put(pairs[i].b); break;
    case 5: drain(pairs[i].a); break;
    default: /* another file under the same number */
      aio_watch_close(&sides[i][0].w);
      aio_watch_close(&sides[i][1].w);
      close_pair(pairs[i]);
      pairs[i] = new_socketpair();
  }
}

static void same_as_poll(Loop *l) {
  uint32_t seed = 4711;
  for (int i = 0; i < FDS; i++) pairs[i] = new_socketpair();
  for (long step = 0; step < check_scale(20000); step++) {
    random_step(l, &seed);
    if (rnd(&seed) % 4 == 0) random_step(l, &seed);
    bool expected[FDS][2];
    for (int i = 0; i < FDS; i++)
      for (int dir = 0; dir < 2; dir++) {
        sides[i][dir].runs = 0;
        expected[i][dir] = aio_watch_is_open(&sides[i][dir].w) && would_be_ready(pairs[i].a, dir);
      }
    turn(l, 0);
    for (int i = 0; i < FDS; i++)
      for (int dir = 0; dir < 2; dir++) {
        CHECK_EQ(sides[i][dir].runs, expected[i][dir]);
        CHECK_EQ(sides[i][dir].lost, 0);
      }
  }
  for (int i = 0; i < FDS; i++) {
    aio_watch_close(&sides[i][0].w);
    aio_watch_close(&sides[i][1].w);
    close_pair(pairs[i]);
  }
}

/* ---- the kernel refuses ---- */

static void registration_fails(Loop *l) {
  static const int errors[] = {ENOMEM, ENOSPC, ELOOP};
  Pair p = new_pipe();
  Side s;
  if (strcmp(l->backend, "epoll")) return close_pair(p);
  for (size_t i = 0; i < COUNT(errors); i++) {
    ctl_fails = errors[i];
    int rc = open_side(&s, l, p.a, AIO_READ, take_one);
    ctl_fails = 0;
    CHECK_EQ(rc, -errors[i]);
    CHECK(!aio_watch_is_open(&s.w));
    put(p.b);
    CHECK_QUIET(l);
    CHECK_EQ(open_side(&s, l, p.a, AIO_READ, take_one), 0);
    RUN_UNTIL(l, s.runs == 1);
    aio_watch_close(&s.w);
    CHECK_QUIET(l);
  }
  close_pair(p);
}

/* The second direction is refused: the first goes on. */
static void second_registration_fails(Loop *l) {
  Pair p = new_socketpair();
  Side r, w;
  if (strcmp(l->backend, "epoll")) return close_pair(p);
  CHECK_EQ(open_side(&r, l, p.a, AIO_READ, take_one), 0);
  ctl_fails = ENOMEM;
  int rc = open_side(&w, l, p.a, AIO_WRITE, NULL);
  ctl_fails = 0;
  CHECK_EQ(rc, -ENOMEM);
  put(p.b);
  RUN_UNTIL(l, r.runs == 1);
  CHECK_QUIET(l);
  aio_watch_close(&r.w);
  close_pair(p);
}

static void table_cannot_grow(Loop *l) {
  Pair p = new_pipe();
  Side s;
  no_memory = true;
  int rc = open_side(&s, l, p.a, AIO_READ, take_one);
  no_memory = false;
  CHECK_EQ(rc, -ENOMEM);
  CHECK(!aio_watch_is_open(&s.w));
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, take_one), 0);
  put(p.b);
  RUN_UNTIL(l, s.runs == 1);
  aio_watch_close(&s.w);
  close_pair(p);
}

static void interrupted_wait(Loop *l) {
  Pair p = new_pipe();
  Side s;
  if (!strcmp(l->backend, "io_uring")) return close_pair(p); /* test_fdmon_uring.c */
  CHECK_EQ(open_side(&s, l, p.a, AIO_READ, take_one), 0);
  for (int i = 1; i <= 3; i++) {
    put(p.b);
    waits_interrupted = i;
    RUN_UNTIL(l, s.runs == i);
    CHECK_EQ(waits_interrupted, 0);
  }
  CHECK_QUIET(l);
  aio_watch_close(&s.w);
  close_pair(p);
}

static const Test tests[] = {
  TEST(level_triggered),
  TEST(refusals),
  TEST(both_directions),
  TEST(error_runs_both_read_first),
  TEST(read_handler_closes_the_write_watch),
  TEST(hup_reaches_a_writer_without_reader),
  TEST(hup_alone_reaches_a_writer),
  TEST(hup_without_any_watch_does_not_spin),
  TEST(closed_reader_leaves_the_writer_alone),
  TEST(closed_writer_leaves_the_reader_alone),
  TEST(replaced_while_ready),
  TEST(removed_by_a_neighbour),
  TEST(many_ready_at_once),
  TEST(fd_closed_in_a_callback),
  TEST(fd_closed_with_data_waiting),
  TEST(fd_closed_in_its_own_handler),
  TEST(fd_closed_before_the_first_turn),
  TEST(fd_closed_between_turns),
  TEST(fd_closed_with_both_watches),
  TEST(lost_watch_closed_by_a_neighbour),
  TEST(duplicate_keeps_the_closed_fd_alive),
  TEST(duplicate_with_data_is_noticed),
  TEST(number_reused_within_a_batch),
  TEST(number_reused_after_close),
  TEST(number_reused_with_the_old_file_alive),
  TEST(number_returns_to_the_same_file),
  TEST(number_reused_for_the_other_direction),
  TEST(handler_is_not_reentered),
  TEST(hup_in_nested_turn),
  TEST(other_fds_are_served_in_a_nested_turn),
  TEST(writer_is_served_while_its_reader_nests),
  TEST(replaced_in_its_own_handler),
  TEST(same_as_poll),
  TEST(registration_fails),
  TEST(second_registration_fails),
  TEST(table_cannot_grow),
  TEST(interrupted_wait),
};

CHECK_MAIN(tests, "epoll +poll +io_uring")
