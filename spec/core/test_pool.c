/* SPDX-License-Identifier: MIT
 * The thread pool: every job once, in order, cancelled only while it is queued, and nothing left behind. */
#include <semaphore.h>

#include "check.h"

/* wrap: pthread_create pthread_cond_timedwait realloc */

static int create_fails;
static bool no_memory;

int __real_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg) {
  return create_fails ? create_fails : __real_pthread_create(t, attr, fn, arg);
}

static atomic_bool hurry; /* ten seconds without work are over at once */

int __real_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until);
int __wrap_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until);
int __wrap_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until) {
  if (!atomic_load(&hurry) || (int64_t)until->tv_sec * SEC < now_ns() + 5 * SEC) return __real_pthread_cond_timedwait(c, m, until);
  pthread_mutex_unlock(m);
  usleep(100);
  pthread_mutex_lock(m);
  return ETIMEDOUT;
}

void *__real_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size) { return no_memory ? NULL : __real_realloc(p, size); }

typedef struct Task {
  AioJob job;
  Loop *l;
  sem_t *gate;        /* run waits for it */
  atomic_int ran;
  int done, result;
  bool closes;
} Task;

static int done_total, order[2000];
static atomic_int running;

static void run(void *opaque) {
  Task *t = opaque;
  atomic_fetch_add(&running, 1);
  if (t->gate) sem_wait(t->gate);
  atomic_fetch_add(&t->ran, 1);
  atomic_fetch_sub(&running, 1);
}

static Task *first_task;
static void done(void *opaque) {
  Task *t = opaque;
  t->done++;
  t->result = t->job.result;
  order[done_total++] = (int)(t - first_task);
  if (t->closes) aio_context_close(t->l->ctx);
}

static void submit(Loop *l, Task *t, sem_t *gate) {
  *t = (Task){.l = l, .gate = gate};
  CHECK_EQ(aio_pool_submit(l->ctx, &t->job, run, done, t), 0);
  CHECK_EQ(t->done, 0); /* never inside submit */
}

static void begin(Task *tasks) {
  first_task = tasks;
  done_total = 0;
}

static void every_job_once(Loop *l) {
  enum { N = 500 };
  Task *tasks = calloc(N, sizeof *tasks);
  begin(tasks);
  for (int i = 0; i < N; i++) submit(l, &tasks[i], NULL);
  CHECK(aio_context_can_wake(l->ctx));
  RUN_UNTIL(l, done_total == N);
  for (int i = 0; i < N; i++) CHECK(atomic_load(&tasks[i].ran) == 1 && tasks[i].done == 1 && tasks[i].result == 0);
  AioPoolStats s;
  aio_pool_stats(l->ctx, &s);
  CHECK(s.jobs == 0 && s.queued == 0 && s.threads <= 64);
  CHECK_QUIET(l);
  free(tasks);
}

static void one_thread_keeps_the_order(Loop *l) {
  enum { N = 100 };
  Task tasks[N];
  begin(tasks);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 0, 1), 0);
  for (int i = 0; i < N; i++) submit(l, &tasks[i], NULL);
  RUN_UNTIL(l, done_total == N);
  for (int i = 0; i < N; i++) CHECK_EQ(order[i], i);
}

static void a_full_pool_cancels_what_is_queued(Loop *l) {
  enum { THREADS = 4, N = 100 };
  Task tasks[N];
  sem_t gate;
  sem_init(&gate, 0, 0);
  begin(tasks);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 0, THREADS), 0);
  for (int i = 0; i < N; i++) submit(l, &tasks[i], &gate);
  while (atomic_load(&running) < THREADS) usleep(100);
  int cancelled = 0;
  for (int i = 0; i < N; i++) cancelled += aio_pool_cancel(&tasks[i].job);
  CHECK_EQ(cancelled, N - THREADS);
  CHECK_EQ(done_total, 0);
  RUN_UNTIL(l, done_total == cancelled);
  for (int i = 0; i < THREADS; i++) sem_post(&gate);
  RUN_UNTIL(l, done_total == N);
  for (int i = 0; i < N; i++) CHECK(tasks[i].done == 1 && (tasks[i].result == 0) == (atomic_load(&tasks[i].ran) == 1));
  for (int i = 0; i < N; i++) CHECK(!aio_pool_cancel(&tasks[i].job)); /* too late */
  sem_destroy(&gate);
}

static int threads_of(Loop *l) {
  AioPoolStats s;
  aio_pool_stats(l->ctx, &s);
  return s.threads;
}

static void resized_while_it_works(Loop *l) {
  Task tasks[300];
  begin(tasks);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 3, 8), 0);
  CHECK_EQ(threads_of(l), 3); /* warm */
  for (int i = 0; i < 300; i++) {
    submit(l, &tasks[i], NULL);
    if (i % 50 == 0) CHECK_EQ(aio_pool_set_threads(l->ctx, i % 100 ? 1 : 2, i % 100 ? 2 : 16), 0);
  }
  RUN_UNTIL(l, done_total == 300);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 0, 1), 0);
  while (threads_of(l) > 1) usleep(100);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 2, 1), -EINVAL);
  CHECK_EQ(aio_pool_set_threads(l->ctx, -1, 1), -EINVAL);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 0, 0), -EINVAL);
}

static void idle_threads_leave_but_the_warm_stay(Loop *l) {
  Task tasks[8];
  begin(tasks);
  atomic_store(&hurry, true);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 2, 8), 0);
  for (int i = 0; i < 8; i++) submit(l, &tasks[i], NULL);
  RUN_UNTIL(l, done_total == 8);
  while (threads_of(l) > 2) usleep(100);
  CHECK_EQ(threads_of(l), 2);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 0, 8), 0);
  while (threads_of(l) > 0) usleep(100);
  submit(l, &tasks[0], NULL); /* and come again */
  RUN_UNTIL(l, done_total == 9);
  atomic_store(&hurry, false);
}

enum { TOGETHER = 12 };
static pthread_barrier_t barrier;

static void meet(void *opaque) {
  pthread_barrier_wait(&barrier);
  atomic_fetch_add(&((Task *)opaque)->ran, 1);
}

/* Each of them waits for all the others: nobody may be left in the queue because others work. */
static void jobs_that_block_have_a_thread_each(Loop *l) {
  static Task tasks[TOGETHER + 1];
  for (int round = 0; round < 3; round++) {
    begin(tasks);
    pthread_barrier_init(&barrier, NULL, TOGETHER);
    submit(l, &tasks[TOGETHER], NULL); /* of no length, so that a thread is between two jobs */
    for (int i = 0; i < TOGETHER; i++) {
      tasks[i] = (Task){.l = l};
      CHECK_EQ(aio_pool_submit(l->ctx, &tasks[i].job, meet, done, &tasks[i]), 0);
    }
    RUN_UNTIL(l, done_total == TOGETHER + 1);
    pthread_barrier_destroy(&barrier);
  }
}

static Task *awaited;
static void wait_for_another(void *opaque) {
  Task *t = opaque;
  t->done++;
  while (!awaited->done) aio_poll(t->l->ctx, AIO_FOREVER);
}

/* Both have ended when the first is told, and a turn inside of that waits for the second. */
static void a_nested_turn_is_told_of_the_rest(Loop *l) {
  Task tasks[2];
  begin(tasks);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 0, 1), 0);
  tasks[0] = tasks[1] = (Task){.l = l};
  awaited = &tasks[1];
  CHECK_EQ(aio_pool_submit(l->ctx, &tasks[0].job, run, wait_for_another, &tasks[0]), 0);
  CHECK_EQ(aio_pool_submit(l->ctx, &tasks[1].job, run, done, &tasks[1]), 0);
  while (atomic_load(&tasks[1].ran) == 0) usleep(100);
  RUN_UNTIL(l, tasks[0].done && tasks[1].done);
  CHECK_QUIET(l);
}

static void set_flag(void *opaque) { *(bool *)opaque = true; }

static void a_clock_that_jumps_waits_for_jobs(Loop *l) {
  AioVClock *vc = aio_vclock_new();
  AioOptions opts = {.vclock = vc};
  AioTimer timer;
  bool fired = false;
  Task task;
  sem_t gate;
  Loop own = *l;
  CHECK_EQ(aio_context_new(&own.ctx, &opts), 0);
  sem_init(&gate, 0, 0);
  begin(&task);
  aio_vclock_autojump(vc, true);
  aio_timer_init(&timer, own.ctx, AIO_CLOCK_VIRTUAL, set_flag, &fired);
  CHECK_EQ(aio_timer_arm(&timer, 3600 * SEC), 0);
  submit(&own, &task, &gate);
  for (int i = 0; i < 5; i++) aio_poll(own.ctx, MS / 10);
  CHECK(!fired && !task.done && aio_vclock_now(vc) == 0);
  sem_post(&gate);
  while (!task.done) aio_poll(own.ctx, AIO_FOREVER);
  CHECK_EQ(aio_vclock_now(vc), 0);
  while (!fired) aio_poll(own.ctx, AIO_FOREVER);
  CHECK_EQ(aio_vclock_now(vc), 3600 * SEC);
  aio_context_unref(own.ctx);
  aio_vclock_free(vc);
  sem_destroy(&gate);
}

static void closed_with_work_in_every_state(Loop *l) {
  static Task tasks[20]; /* nobody may call done, but a worker may still look at its job until close has returned */
  sem_t gate;
  sem_init(&gate, 0, 2);
  begin(tasks);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 0, 2), 0);
  for (int i = 0; i < 20; i++) submit(l, &tasks[i], i < 2 ? NULL : &gate);
  while (atomic_load(&tasks[0].ran) == 0 || atomic_load(&running) == 0) usleep(100);
  for (int i = 0; i < 20; i++) sem_post(&gate);
  aio_context_close(l->ctx);
  CHECK_EQ(done_total, 0);
  CHECK_EQ(aio_pool_submit(l->ctx, &tasks[0].job, run, done, &tasks[0]), -ESHUTDOWN);
  sem_destroy(&gate);
}

static void closed_by_a_completion(Loop *l) {
  Task tasks[50];
  begin(tasks);
  for (int i = 0; i < 50; i++) submit(l, &tasks[i], NULL), tasks[i].closes = true;
  RUN_UNTIL(l, aio_context_closed(l->ctx));
  CHECK_EQ(done_total, 1);
}

/* ---- what a section submits is held until its end ---- */

static void of_a_section_in_order_but_for_the_cancelled(Loop *l) {
  enum { N = 200, LEFT = 200 - (200 + 2) / 3 };
  Task tasks[N + 1];
  sem_t gate;
  sem_init(&gate, 0, 0);
  begin(tasks);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 0, 1), 0);
  submit(l, &tasks[N], &gate); /* there is a thread, which works */
  while (atomic_load(&running) == 0) usleep(100);
  aio_defer_begin(l->ctx);
  for (int i = 0; i < N; i++) submit(l, &tasks[i], NULL);
  for (int i = 0; i < N; i += 3) CHECK(aio_pool_cancel(&tasks[i].job)); /* of those held, and of those queued */
  for (int i = 0; i < N; i += 3) CHECK(!aio_pool_cancel(&tasks[i].job));
  AioPoolStats s;
  aio_pool_stats(l->ctx, &s);
  CHECK(s.queued == LEFT && s.jobs == N + 1);
  aio_defer_end(l->ctx);
  aio_pool_stats(l->ctx, &s);
  CHECK_EQ(s.queued, LEFT);
  for (int i = 1; i < N; i += 3) CHECK(aio_pool_cancel(&tasks[i].job));
  aio_pool_stats(l->ctx, &s);
  CHECK_EQ(s.queued, N / 3);
  sem_post(&gate);
  RUN_UNTIL(l, done_total == N + 1);
  for (int i = 0; i < N; i++) CHECK(tasks[i].done == 1 && (tasks[i].result == 0) == (i % 3 == 2) && tasks[i].ran == (i % 3 == 2));
  sem_destroy(&gate);
  CHECK_QUIET(l);
}

static void the_last_thread_stays_for_what_is_held(Loop *l) {
  Task tasks[2];
  begin(tasks);
  submit(l, &tasks[0], NULL);
  RUN_UNTIL(l, done_total == 1);
  CHECK_EQ(threads_of(l), 1);
  aio_defer_begin(l->ctx);
  submit(l, &tasks[1], NULL);
  create_fails = EAGAIN; /* no other will come */
  atomic_store(&hurry, true);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 0, 8), 0); /* who is idle looks at the clock again */
  usleep(5000);
  CHECK_EQ(threads_of(l), 1);
  aio_defer_end(l->ctx);
  RUN_UNTIL(l, done_total == 2);
  CHECK(atomic_load(&tasks[1].ran) == 1 && tasks[1].result == 0);
  while (threads_of(l) > 0) usleep(100);
  atomic_store(&hurry, false);
  create_fails = 0;
}

static void closed_with_some_held(Loop *l) {
  Task tasks[11];
  begin(tasks);
  submit(l, &tasks[10], NULL);
  RUN_UNTIL(l, done_total == 1);
  aio_defer_begin(l->ctx);
  for (int i = 0; i < 10; i++) submit(l, &tasks[i], NULL);
  aio_context_close(l->ctx);
  CHECK_EQ(done_total, 1);
  for (int i = 0; i < 10; i++) CHECK_EQ(tasks[i].ran, 0);
}

static void refusals(Loop *l) {
  Task t;
  begin(&t);
  no_memory = true;
  CHECK_EQ(aio_pool_submit(l->ctx, &t.job, run, done, &t), -ENOMEM);
  no_memory = false;
  create_fails = EAGAIN;
  CHECK_EQ(aio_pool_submit(l->ctx, &t.job, run, done, &t), -EAGAIN);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 1, 2), -EAGAIN);
  create_fails = 0;
  submit(l, &t, NULL);
  RUN_UNTIL(l, t.done);
  create_fails = EAGAIN; /* one thread is there: it will do */
  static Task more[3];
  begin(more);
  for (int i = 0; i < 3; i++) submit(l, &more[i], NULL);
  RUN_UNTIL(l, done_total == 3);
  create_fails = 0;
}

static void many_completions_wake_once(Loop *l) {
  enum { N = 200 };
  static Task tasks[N];
  AioStats before, after;
  sem_t gate;
  sem_init(&gate, 0, 0);
  begin(tasks);
  CHECK_EQ(aio_pool_set_threads(l->ctx, 0, 1), 0);
  for (int i = 0; i < N; i++) submit(l, &tasks[i], i ? NULL : &gate);
  aio_context_stats(l->ctx, &before);
  sem_post(&gate);
  while (atomic_load(&tasks[N - 1].ran) == 0) usleep(100);
  RUN_UNTIL(l, done_total == N);
  aio_context_stats(l->ctx, &after);
  CHECK(after.bhs - before.bhs <= 3);
  sem_destroy(&gate);
}

static const Test tests[] = {
  TEST(every_job_once),
  TEST(one_thread_keeps_the_order),
  TEST(a_full_pool_cancels_what_is_queued),
  TEST(resized_while_it_works),
  TEST(idle_threads_leave_but_the_warm_stay),
  TEST(jobs_that_block_have_a_thread_each),
  TEST(a_nested_turn_is_told_of_the_rest),
  TEST(a_clock_that_jumps_waits_for_jobs),
  TEST(closed_with_work_in_every_state),
  TEST(closed_by_a_completion),
  TEST(of_a_section_in_order_but_for_the_cancelled),
  TEST(the_last_thread_stays_for_what_is_held),
  TEST(closed_with_some_held),
  TEST(refusals),
  TEST(many_completions_wake_once),
};

CHECK_MAIN(tests, "epoll +poll +io_uring")
