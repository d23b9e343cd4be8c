/* SPDX-License-Identifier: MIT
 * What backend io_uring alone can get wrong: rings that are too small, answers that are errors or come too late, files
 * that a ring holds open, threads, and a kernel or a library that refuses.
 *
 * Keep     the library is reached through one table, and a test may put functions of its own into it. */
#include "ring.h"

#include "check.h"

/* wrap: dlopen */

#ifdef AIO_HAVE_URING

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static bool no_library;
void *__real_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags) { return no_library ? NULL : __real_dlopen(name, flags); }

/* ---- between the backend and the library ---- */

static AioUring real;
static int submits, waits;           /* calls that reached the kernel, or would have */
static int fails_with, fails_left;   /* the next calls fail so */
static int answer_with, answers_left; /* the next answers to poll requests say this, */
static int emptied = -1;              /* and this eventfd is read then */

static AioUring *table(void) {
  AioUring *lib;
  const AioUring *borrowed = aio__uring();
  memcpy(&lib, &borrowed, sizeof lib); /* it is const for its users only */
  return lib;
}

static bool fails(void) {
  if (!fails_left) return false;
  fails_left--;
  return true;
}

static void falsify(struct io_uring *ring) {
  unsigned head;
  struct io_uring_cqe *cqe;
  io_uring_for_each_cqe(ring, head, cqe) {
    if (!answers_left || cqe->user_data >> 31 & 1) continue; /* not about an fd */
    cqe->res = answer_with;
    answers_left--;
    if (emptied >= 0) CHECK(eventfd_read(emptied, &(eventfd_t){0}) == 0);
    emptied = -1;
  }
}

static struct io_uring *seen; /* by the latest call; a shared ring has answers before one is made */

static int counted_submit(struct io_uring *ring) {
  submits++;
  seen = ring;
  if (fails()) return fails_with;
  int rc = real.io_uring_submit_and_get_events(ring);
  falsify(ring);
  return rc;
}

static int counted_wait(struct io_uring *ring, struct io_uring_cqe **cqe, unsigned n, struct __kernel_timespec *ts,
                        sigset_t *mask) {
  waits++;
  seen = ring;
  if (fails()) return fails_with;
  int rc = real.io_uring_submit_and_wait_timeout(ring, cqe, n, ts, mask);
  falsify(ring);
  return rc;
}

static void step_between(void) {
  real = *table();
  submits = waits = fails_left = answers_left = 0;
  table()->io_uring_submit_and_get_events = counted_submit;
  table()->io_uring_submit_and_wait_timeout = counted_wait;
}

static void step_aside(void) { *table() = real; }

/* ---- helpers ---- */

typedef struct Bell { /* a watch of an eventfd */
  AioWatch w;
  int fd, runs, lost;
  bool keep; /* leave it set */
} Bell;

static void ring_it(int fd) { CHECK(eventfd_write(fd, 1) == 0); }

static void ring_falsely(int fd, int answer) {
  answer_with = answer;
  answers_left = 1;
  ring_it(fd);
  falsify(seen);
}

static void rung(void *opaque) {
  Bell *b = opaque;
  eventfd_t value;
  b->runs++;
  b->lost += b->w.lost == -EBADF;
  if (!b->keep && !b->w.lost) eventfd_read(b->fd, &value);
}

static void hang(Bell *b, Loop *l, int fd) {
  *b = (Bell){.fd = fd};
  CHECK(fd >= 0);
  CHECK_EQ(aio_watch_open(&b->w, l->ctx, fd, AIO_READ, rung, NULL, b), 0);
}

static void hang_new(Bell *b, Loop *l) { hang(b, l, eventfd(0, EFD_NONBLOCK)); }

static void unhang(Bell *b) {
  aio_watch_close(&b->w);
  close(b->fd);
}

static short poll_now(int fd) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  CHECK(poll(&p, 1, 0) >= 0);
  return p.revents;
}

/* ---- more than fits ---- */

enum { MANY = 5000 };
static Bell bells[MANY];

static int room_for_fds(void) {
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur < MANY + 100 ? (int)limit.rlim_cur - 100 : MANY;
}

static void check_each_ran(int n, int times) {
  for (int i = 0; i < n; i++) CHECK_EQ(bells[i].runs, times);
}

static void thousands(Loop *l, unsigned entries) {
  int n = room_for_fds();
  loop_reopen(l, &(AioOptions){.ring_entries = entries});
  for (int i = 0; i < n; i++) hang_new(&bells[i], l);
  CHECK_QUIET(l);
  for (int i = n - 1; i >= 0; i--) {
    bells[i].keep = true;
    ring_it(bells[i].fd); /* all of them asked for: the answers overflow */
  }
  for (int i = 1; i <= 3; i++) {
    turn(l, AIO_FOREVER);
    check_each_ran(n, i);
  }
  for (int i = 0; i < n; i++) bells[i].keep = false;
  turn(l, AIO_FOREVER);
  check_each_ran(n, 4);
  CHECK_QUIET(l);
  CHECK_RESTS(l);
  for (int i = 0; i < n; i += 2) ring_it(bells[i].fd);
  turn(l, AIO_FOREVER);
  for (int i = 0; i < n; i++) CHECK_EQ(bells[i].runs, i % 2 ? 4 : 5);
  for (int i = 0; i < n; i++) unhang(&bells[i]);
  CHECK_QUIET(l);
  CHECK_RESTS(l);
}

static void thousands_of_fds(Loop *l) {
  thousands(l, 0); /* 128 requests fit the ring, and 256 answers */
  thousands(l, 1); /* 8 and 16 */
}

static void close_odd(void *opaque) {
  for (int i = 1; i < *(int *)opaque; i += 2) aio_watch_close(&bells[i].w);
}

/* Their answers are there, or under way, when they are taken back. */
static void thousands_taken_back(Loop *l) {
  int n = room_for_fds();
  for (int i = 0; i < n; i++) hang_new(&bells[i], l);
  turn(l, 0);
  for (int i = 0; i < n; i++) ring_it(bells[i].fd);
  aio_bh_oneshot(l->ctx, close_odd, &n);
  turn(l, AIO_FOREVER);
  turn(l, 0);
  for (int i = 0; i < n; i++) CHECK_EQ(bells[i].runs, i % 2 ? 0 : 1);
  for (int i = 1; i < n; i += 2) CHECK_EQ(aio_watch_open(&bells[i].w, l->ctx, bells[i].fd, AIO_READ, rung, NULL, &bells[i]), 0);
  turn(l, AIO_FOREVER);
  check_each_ran(n, 1);
  CHECK_QUIET(l);
  for (int i = 0; i < n; i++) unhang(&bells[i]);
}

/* ---- what a turn costs ---- */

static void system_calls(Loop *l) {
  Bell a, b;
  hang_new(&a, l);
  hang_new(&b, l);
  turn(l, 0);
  step_between();
  for (int i = 0; i < 10; i++) turn(l, 0);
  CHECK_EQ(submits + waits, 0); /* memory says that there is nothing */
  for (int i = 1; i <= 100; i++) {
    ring_it(i % 3 ? a.fd : b.fd);
    turn(l, AIO_FOREVER);
    CHECK_EQ(a.runs + b.runs, i);
    CHECK_EQ(submits + waits, i); /* hands over what is to be asked anew, and waits */
  }
  a.keep = b.keep = true;
  ring_it(a.fd), ring_it(b.fd);
  turn(l, AIO_FOREVER);
  submits = waits = 0;
  for (int i = 1; i <= 100; i++) turn(l, i % 2 ? 0 : AIO_FOREVER);
  CHECK_EQ(submits + waits, 100);
  CHECK_EQ(a.runs + b.runs, 302);
  step_aside();
  unhang(&a);
  unhang(&b);
}

static void *ring_soon(void *opaque) {
  Bell *b = opaque;
  usleep(3000);
  ring_it(b->fd);
  return NULL;
}

static void spins_without_system_calls(Loop *l) {
  Bell b;
  hang_new(&b, l);
  turn(l, 0);
  aio_set_polling(l->ctx, 20 * SEC, 2, 2);
  turn(l, 0);
  atomic_store(&l->ctx->poll_ns, 20 * SEC);
  step_between();
  pthread_t t = start(ring_soon, &b);
  while (!b.runs) CHECK(turn(l, AIO_FOREVER));
  CHECK_EQ(waits, 0);
  CHECK(submits <= 2);
  step_aside();
  pthread_join(t, NULL);
  unhang(&b);
}

/* ---- answers that are errors ---- */

static void errors_are_no_events(Loop *l) {
  static const int passing[] = {-ECANCELED, -ENOMEM, -EAGAIN, -EINTR};
  Bell b;
  step_between();
  hang_new(&b, l);
  turn(l, 0);
  for (size_t i = 0; i < COUNT(passing); i++) { /* asked again: nothing is lost */
    ring_falsely(b.fd, passing[i]);
    RUN_UNTIL(l, b.runs == (int)i + 1);
    CHECK_EQ(answers_left, 0);
    CHECK_QUIET(l);
  }
  if (!is_glib(l)) {
    pthread_t t = start(ring_soon, &b); /* the answer comes while we wait: it is not verified */
    answer_with = -ECANCELED;
    answers_left = 1;
    emptied = b.fd;
    b.runs = 0;
    while (answers_left) CHECK(!turn(l, SEC));
    pthread_join(t, NULL);
    CHECK_QUIET(l);
    CHECK_EQ(b.runs, 0);
  }
  step_aside();
  CHECK_EQ(b.lost, 0);
  unhang(&b);
}

static void lasting_errors_end_the_watch(Loop *l) {
  static const int lasting[] = {-EBADF, -EINVAL, -EOPNOTSUPP};
  step_between();
  for (size_t i = 0; i < COUNT(lasting); i++) {
    Bell b;
    hang_new(&b, l);
    turn(l, 0);
    ring_falsely(b.fd, lasting[i]);
    RUN_UNTIL(l, b.lost == 1);
    CHECK_EQ(b.runs, 1);
    CHECK(!aio_watch_is_open(&b.w));
    CHECK_QUIET(l);
    unhang(&b);
  }
  step_aside();
}

static void closed_fd_is_noticed_when_asked_anew(Loop *l) {
  Bell b;
  hang_new(&b, l);
  b.keep = true;
  ring_it(b.fd);
  RUN_UNTIL(l, b.runs == 1);
  if (is_glib(l)) turn(l, 0); /* was asked anew already */
  int runs = b.runs;
  close(b.fd);
  turn(l, 0);
  CHECK_EQ(b.lost, 1);
  CHECK_EQ(b.runs, runs + 1);
  CHECK_QUIET(l);
}

/* Read between its answer and the turn: another file's reader may block on a word that is out of date. */
static void late_answers_are_verified(Loop *l) {
  Bell a, b;
  eventfd_t value;
  hang_new(&a, l);
  hang_new(&b, l);
  turn(l, 0);
  for (int i = 1; i <= 10; i++) {
    ring_it(a.fd);
    if (i % 2) ring_it(b.fd);
    eventfd_read(a.fd, &value);
    CHECK_EQ(turn(l, i % 2 ? AIO_FOREVER : 0), i % 2);
    CHECK_EQ(a.runs, 0);
    CHECK_EQ(b.runs, (i + 1) / 2);
  }
  ring_it(a.fd);
  eventfd_read(a.fd, &value);
  int64_t from = now_ns();
  CHECK(!turn(l, 5 * MS)); /* sleeps on */
  CHECK(now_ns() - from >= 5 * MS || is_glib(l));
  unhang(&a);
  unhang(&b);
}

/* ---- calls that fail ---- */

static void calls_fail(Loop *l) {
  static const int errors[] = {-EINTR, -EAGAIN, -EBUSY, -EBADR, -ENOMEM, 0}; /* 0: nothing handed over, nothing come */
  Bell b, other;
  hang_new(&b, l);
  step_between();
  for (size_t i = 0; i < COUNT(errors); i++)
    for (int times = 1; times <= 3; times++) {
      hang_new(&other, l);
      fails_with = errors[i];
      fails_left = times;
      b.runs = 0;
      ring_it(b.fd);
      RUN_UNTIL(l, b.runs == 1);
      fails_left = 0;
      ring_it(other.fd);
      RUN_UNTIL(l, other.runs == 1);
      CHECK_QUIET(l);
      unhang(&other);
    }
  step_aside();
  CHECK_EQ(b.lost, 0);
  unhang(&b);
}

static int drop_answers(struct io_uring *ring) {
  int rc = counted_submit(ring);
  if (!io_uring_cq_ready(ring)) return rc;
  io_uring_cq_advance(ring, io_uring_cq_ready(ring));
  step_aside();
  return -EBADR;
}

/* The kernel had no memory to keep answers in, and says so. */
static void dropped_answers(Loop *l) {
  Bell b[10];
  for (int i = 0; i < 10; i++) hang_new(&b[i], l);
  turn(l, 0);
  for (int round = 1; round <= 3; round++) {
    step_between();
    table()->io_uring_submit_and_get_events = drop_answers;
    for (int i = 0; i < 10; i++) ring_it(b[i].fd);
    turn(l, 0);
    step_aside();
    for (int i = 0; i < 10; i++) RUN_UNTIL(l, b[i].runs == round);
    CHECK_QUIET(l);
  }
  CHECK_RESTS(l);
  for (int i = 0; i < 10; i++) unhang(&b[i]);
}

/* ---- files that are let go ---- */

typedef struct Ended {
  AioWatch w;
  int fd, peer;
} Ended;

static void no_run(void *opaque) {
  (void)opaque;
  CHECK(!"nothing has come");
}

static void begin_end(Ended *e, Loop *l) {
  int fds[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
  *e = (Ended){.fd = fds[0], .peer = fds[1]};
  CHECK_EQ(aio_watch_open(&e->w, l->ctx, e->fd, AIO_READ, no_run, NULL, e), 0);
  turn(l, 0);
  CHECK_EQ(poll_now(e->peer), 0);
}

static void end_it(void *opaque) {
  Ended *e = opaque;
  aio_watch_close(&e->w);
  close(e->fd);
}

static void end_it_backwards(void *opaque) {
  Ended *e = opaque;
  close(e->fd);
  aio_watch_close(&e->w);
}

static void check_ended(const Ended *e) {
  CHECK(poll_now(e->peer) & POLLHUP);
  close(e->peer);
}

static void peer_sees_the_end_at_once(Loop *l) {
  static AioFn *const ways[] = {end_it, end_it_backwards};
  for (size_t i = 0; i < COUNT(ways); i++) {
    Ended e;
    begin_end(&e, l);
    ways[i](&e);
    check_ended(&e); /* without a turn */
    begin_end(&e, l);
    aio_bh_oneshot(l->ctx, ways[i], &e);
    turn(l, 0);
    check_ended(&e);
  }
  CHECK_QUIET(l);
  CHECK_RESTS(l);
}

static void close_all(void *opaque) {
  for (Ended *e = opaque; e->fd >= 0; e++) end_it(e);
}

static void peers_see_many_ends(Loop *l) {
  Ended e[351]; /* more than the ring takes at a time, and more than the kernel answers at a time in the last part */
  e[350].fd = -1;
  for (int i = 0; i < 350; i++) begin_end(&e[i], l);
  aio_bh_oneshot(l->ctx, close_all, e);
  turn(l, 0);
  for (int i = 0; i < 350; i++) check_ended(&e[i]);
  CHECK_QUIET(l);
  CHECK_RESTS(l);
}

static void peer_sees_the_end_of_the_context(Loop *l) {
  Ended e[350];
  for (size_t i = 0; i < COUNT(e); i++) begin_end(&e[i], l);
  aio_context_close(l->ctx);
  for (size_t i = 0; i < COUNT(e); i++) {
    close(e[i].fd);
    check_ended(&e[i]);
  }
}

static void ignore(void *opaque) { (void)opaque; }

static void peer_sees_the_end_of_what_was_just_closed(Loop *l) {
  Ended e;
  begin_end(&e, l);
  aio_watch_close(&e.w);
  CHECK_EQ(aio_watch_open(&e.w, l->ctx, e.fd, AIO_READ, ignore, NULL, &e), 0);
  turns_in(l, 40 * MS);
  close(e.fd);
  aio_notify(l->ctx); /* something happens in this thread */
  while (aio_watch_is_open(&e.w)) turn(l, AIO_FOREVER); /* found by the sweep */
  check_ended(&e);
}

/* ---- numbers that come back ---- */

typedef struct Swap { /* the old file stays alive, by its twin */
  Bell bell;
  Loop *l;
  int twin;
} Swap;

static void swap_files(void *opaque) {
  Swap *s = opaque;
  aio_watch_close(&s->bell.w);
  s->twin = dup(s->bell.fd);
  int fresh = eventfd(0, EFD_NONBLOCK);
  CHECK(dup2(fresh, s->bell.fd) == s->bell.fd);
  close(fresh);
  hang(&s->bell, s->l, s->bell.fd);
}

static void number_is_another_file_in_the_same_turn(Loop *l) {
  Swap s = {.l = l};
  hang_new(&s.bell, l);
  turn(l, 0);
  aio_bh_oneshot(l->ctx, swap_files, &s);
  turn(l, 0);
  ring_it(s.bell.fd);
  RUN_UNTIL(l, s.bell.runs == 1);
  ring_it(s.twin);
  CHECK_QUIET(l);
  CHECK_EQ(s.bell.runs, 1);
  CHECK_EQ(s.bell.lost, 0);
  unhang(&s.bell);
  close(s.twin);
}

/* ---- threads ---- */

typedef struct Hop {
  Loop *l;
  Bell *bell;
  int until;
} Hop;

static void *wait_in_a_thread(void *opaque) {
  Hop *h = opaque;
  RUN_UNTIL(h->l, h->bell->runs == h->until);
  return NULL;
}

/* Every other turn is taken by another thread, which has ended by the next. */
static void home_moves(Loop *l) {
  Bell a, b;
  int runs = 0;
  hang_new(&a, l);
  hang_new(&b, l);
  for (int i = 0; i < 20; i++) {
    Hop h = {.l = l, .bell = &a, .until = ++runs};
    ring_it(a.fd);
    pthread_join(start(wait_in_a_thread, &h), NULL);
    if (i % 2) CHECK_QUIET(l);
    ring_it(a.fd);
    runs++;
    RUN_UNTIL(l, a.runs == runs);
    h.until = ++runs;
    pthread_t t = start(wait_in_a_thread, &h); /* asleep, perhaps, when it is rung */
    usleep(i * 100);
    ring_it(a.fd);
    pthread_join(t, NULL);
  }
  CHECK_QUIET(l);
  CHECK_EQ(b.runs, 0);
  ring_it(b.fd);
  RUN_UNTIL(l, b.runs == 1);
  CHECK_EQ(a.lost + b.lost, 0);
  unhang(&a);
  unhang(&b);
}

static void home_moves_while_shared(Loop *l) {
  int fd = aio_context_pollfd(l->ctx);
  home_moves(l);
  CHECK_EQ(aio_context_pollfd(l->ctx), fd);
  CHECK(!poll_now(fd));
}

static void *open_in_a_thread(void *opaque) {
  AioContext **ctx = opaque;
  CHECK_EQ(aio_context_new(ctx, &(AioOptions){.backend = "io_uring"}), 0);
  aio_poll(*ctx, 0);
  return NULL;
}

static void made_by_a_thread_that_ended(Loop *l) {
  Bell b;
  aio_context_unref(l->ctx);
  l->driver->close(l);
  pthread_join(start(open_in_a_thread, &l->ctx), NULL);
  l->driver->open(l);
  hang_new(&b, l);
  ring_it(b.fd);
  RUN_UNTIL(l, b.runs == 1);
  CHECK_QUIET(l);
  CHECK_RESTS(l);
  unhang(&b);
}

static void *close_it(void *ctx) {
  aio_context_close(ctx);
  return NULL;
}

static void closed_by_another_thread(Loop *l) {
  Bell b;
  hang_new(&b, l);
  turn(l, 0);
  aio_source_detach(l->ctx);
  pthread_join(start(close_it, l->ctx), NULL);
  CHECK(!aio_watch_is_open(&b.w));
  close(b.fd);
}

/* ---- who else sleeps on the ring ---- */

static void pollfd_is_level_triggered(Loop *l) {
  Bell b;
  int fd = aio_context_pollfd(l->ctx);
  CHECK(fd >= 0);
  CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
  hang_new(&b, l);
  turn(l, 0);
  turn(l, 0);
  CHECK(!poll_now(fd));
  b.keep = true;
  ring_it(b.fd);
  for (int i = 1; i <= 5; i++) {
    CHECK(poll_now(fd)); /* as long as it has not been read */
    turn(l, 0);
    CHECK_EQ(b.runs, i);
  }
  b.keep = false;
  turn(l, 0);
  turn(l, 0);
  CHECK(!poll_now(fd));
  unhang(&b);
  CHECK(!poll_now(fd)); /* what was taken back wakes nobody */
}

/* Whoever sleeps on the ring is woken; epoll_wait may have to be called again. */
static void wakes_an_epoll(Loop *l) {
  Bell b;
  int fd = aio_context_pollfd(l->ctx), epfd = epoll_create1(EPOLL_CLOEXEC), n;
  struct epoll_event ev = {.events = EPOLLIN};
  CHECK(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) == 0);
  hang_new(&b, l);
  turn(l, 0);
  for (int i = 1; i <= 20; i++) {
    while (epoll_wait(epfd, &ev, 1, 0)) turn(l, 0);
    pthread_t t = start(ring_soon, &b);
    while ((n = epoll_wait(epfd, &ev, 1, -1)) < 0) CHECK(errno == EINTR);
    CHECK_EQ(n, 1);
    pthread_join(t, NULL);
    turn(l, 0);
    CHECK_EQ(b.runs, i);
  }
  close(epfd);
  unhang(&b);
}

/* While nobody does, the kernel's work on our behalf does not look like a signal to other calls. It dissolves the rings
 * of the tests before this one, which does. */
static void other_sleeps_are_not_interrupted(Loop *l) {
  Bell b;
  struct epoll_event ev;
  int epfd = epoll_create1(EPOLL_CLOEXEC), quiet = 0;
  hang_new(&b, l);
  for (int i = 1; i <= 30; i++) {
    turn(l, 0);
    pthread_t t = start(ring_soon, &b);
    quiet += epoll_wait(epfd, &ev, 1, 10) == 0;
    pthread_join(t, NULL);
    RUN_UNTIL(l, b.runs == i);
  }
  CHECK(quiet > 20);
  close(epfd);
  unhang(&b);
}

/* The ring is replaced when others begin to sleep on it, and when nobody does any more. */
static void shared_and_not(Loop *l) {
  Bell b;
  Ended e;
  GMainContext *main = g_main_context_new();
  hang_new(&b, l);
  for (int i = 1; i <= 6; i++) {
    begin_end(&e, l);
    if (i % 2) {
      CHECK_EQ(aio_source_attach(l->ctx, main, 0), 0);
      ring_it(b.fd);
      while (b.runs < i) g_main_context_iteration(main, TRUE);
    } else {
      aio_source_detach(l->ctx);
      ring_it(b.fd);
      RUN_UNTIL(l, b.runs == i);
    }
    end_it(&e);
    check_ended(&e);
    CHECK_QUIET(l);
  }
  CHECK(!poll_now(aio_context_pollfd(l->ctx)));
  unhang(&b);
  g_main_context_unref(main);
}

static void one_inside_the_other(Loop *l) {
  AioContext *inner;
  AioWatch w;
  Bell b;
  Loop in = {.driver = &check_drivers[0], .backend = l->backend};
  CHECK_EQ(aio_context_new(&inner, &(AioOptions){.backend = "io_uring"}), 0);
  in.ctx = inner;
  hang_new(&b, &in);
  int fd = aio_context_pollfd(inner);
  CHECK_EQ(aio_watch_open(&w, inner, fd, AIO_READ, ignore, NULL, NULL), -ELOOP);
  CHECK_EQ(aio_watch_open(&w, l->ctx, fd, AIO_READ, ignore, NULL, NULL), 0);
  while (turn(l, 0)) aio_poll(inner, 0);
  for (int i = 1; i <= 10; i++) {
    ring_it(b.fd);
    CHECK(turn(l, AIO_FOREVER));
    while (b.runs < i) aio_poll(inner, 0);
    while (turn(l, 0)) aio_poll(inner, 0);
  }
  aio_watch_close(&w);
  unhang(&b);
  aio_context_unref(inner);
}

/* ---- refused ---- */

static void refuse_rings(int error) {
  struct sock_filter filter[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {.len = COUNT(filter), .filter = filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) _exit(77);
}

static int refused_with(void) { /* -errno, or what went wrong: positive */
  AioContext *ctx = NULL;
  int fds = open_fds(), rc = aio_context_new(&ctx, &(AioOptions){.backend = "io_uring"});
  if (ctx || rc >= 0) return 1;
  if (aio_context_new(&ctx, NULL) < 0) return 2; /* "auto" is granted something */
  aio_context_unref(ctx);
  return open_fds() == fds ? rc : 3;
}

static int in_a_child(int error) {
  int status;
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) {
    if (error) refuse_rings(error);
    _exit(-refused_with() & 0xff);
  }
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECK(WIFEXITED(status));
  return WEXITSTATUS(status);
}

static void refused_by_the_kernel(Loop *l) {
  static const int errors[] = {EPERM, ENOSYS, ENOMEM, EINVAL, EMFILE};
  (void)l;
  for (size_t i = 0; i < COUNT(errors); i++) {
    int rc = in_a_child(errors[i]);
    if (rc == 77) printf("skipped: no seccomp filter can be installed\n");
    CHECK(rc == errors[i] || rc == 77);
  }
}

/* Before anything has loaded it. */
static void refused_for_want_of_the_library(void) {
  no_library = true;
  CHECK_EQ(in_a_child(0), ENOSYS);
  no_library = false;
}

static const Test tests[] = {
  TEST(thousands_of_fds),
  TEST(thousands_taken_back),
  TEST_POLL(system_calls),
  TEST_POLL(spins_without_system_calls),
  TEST(errors_are_no_events),
  TEST(lasting_errors_end_the_watch),
  TEST(closed_fd_is_noticed_when_asked_anew),
  TEST_POLL(late_answers_are_verified),
  TEST(calls_fail),
  TEST(dropped_answers),
  TEST(peer_sees_the_end_at_once),
  TEST(peers_see_many_ends),
  TEST(peer_sees_the_end_of_the_context),
  TEST(peer_sees_the_end_of_what_was_just_closed),
  TEST(number_is_another_file_in_the_same_turn),
  TEST_POLL(home_moves),
  TEST_POLL(home_moves_while_shared),
  TEST(made_by_a_thread_that_ended),
  TEST(closed_by_another_thread),
  TEST_POLL(pollfd_is_level_triggered),
  TEST_POLL(wakes_an_epoll),
  TEST_POLL(other_sleeps_are_not_interrupted),
  TEST_POLL(shared_and_not),
  TEST(one_inside_the_other),
  TEST_POLL(refused_by_the_kernel),
};

int main(int argc, char **argv) {
  refused_for_want_of_the_library();
  return check_all(tests, COUNT(tests), "+io_uring", argc > 1 ? argv[1] : NULL);
}

#else

void *__real_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags) { return __real_dlopen(name, flags); }

static void absent(Loop *l) {
  AioContext *ctx;
  CHECK_EQ(aio_context_new(&ctx, &(AioOptions){.backend = "io_uring"}), -ENOSYS);
  CHECK(!ctx);
  (void)l;
}

static const Test tests[] = {TEST_POLL(absent)};
CHECK_MAIN(tests, "epoll")

#endif
