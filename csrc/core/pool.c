/* SPDX-License-Identifier: MIT
 * The thread pool: jobs that may block, run by threads that come when they are needed and go when they are not.
 *
 * Way      aio_pool_submit -> held until the turn's end -> `queued` -> a worker -> run -> `finished` -> the pool's BH -> done
 * Threads  submit, cancel, set_threads, close: home. run: a worker. done: home, in a turn, never inside submit.
 * Owner    the job is the caller's memory until done has been called, or its context was closed. Workers are joined by
 *          the home thread: those that have left by the next one that calls, all of them by close.
 *          Threads are called one at a time. While some work, the next one called only watches the queue: it takes a job
 *          that has waited for PATIENCE_NS, unless those who work do BRISK ones meanwhile, and calls another. So short jobs
 *          are done by few threads, with few switches from one to the other, and those that block have as many as there
 *          may be within a moment.
 * Keep     jobs start in the order of submission, and done is called once for each, in the order in which they finished.
 *          One that is queued can be cancelled, one that runs runs to its end. Everything below `lock` belongs to who
 *          holds it; `home_*` belongs to the home thread. */
#include <errno.h>
#include <signal.h>
#include <time.h>

#include "internal.h"

enum {
  MAX_THREADS = 64,
  UNTOLD_MAX = 256, /* jobs finished, while others are queued, before home is told */
  HELD_MAX = 64,    /* jobs that a turn submits before they are queued without waiting for its end */
  BRISK = 64        /* so many jobs in PATIENCE_NS are too short to be done by more threads */
};
#define IDLE_NS INT64_C(10000000000) /* so long does a thread stay without work */
#define PATIENCE_NS INT64_C(200000)  /* a job that is queued for so long shows that those who work are too few */

typedef struct Worker {
  AioLink link; /* in `left` */
  pthread_t thread;
  struct AioPool *pool;
  void *local;  /* aio_pool_set_local */
  AioFn *free_local;
} Worker;

static _Thread_local Worker *this_worker;

struct AioPool {
  AioContext *ctx;
  AioBH bh, more; /* more: the same for what is left of home_done, when a nested turn comes in between */
  AioLink home_done; /* finished jobs whose done is still to be called */
  AioLink home_held; /* submitted in this turn, or defer section, to be queued together at its end */
  uint32_t home_jobs, home_nheld, home_batch; /* batch: how often they have been queued */
  pthread_mutex_t lock;
  pthread_cond_t work, watch, gone; /* what the idle, the one that watches, and close wait for */
  AioLink queued, finished; /* jobs */
  AioLink left;             /* workers to be joined */
  uint32_t nqueued, untold, taken;
  uint32_t overdue; /* so many of the first have been queued for PATIENCE_NS */
  int threads, idle, min, max;
  int working, between; /* threads with a job; those of them that are done with one and will look for the next */
  bool called;   /* one has been signalled, or started, and has not looked yet */
  bool watching; /* one waits to see whether the others are enough */
  bool promised; /* home holds jobs: the last thread stays */
  bool told;     /* home will look at `finished` */
  bool stopping;
};

static AioJob *job_at(AioLink *l) { return container_of(l, AioJob, link); }

/* ---- workers ---- */

/* Holding the lock, which it gives up for a moment. */
static void tell_home(AioPool *p) {
  p->told = true;
  p->untold = 0;
  pthread_mutex_unlock(&p->lock);
  aio_bh_schedule(&p->bh);
  pthread_mutex_lock(&p->lock);
}

static void tell_what_is_untold(AioPool *p) {
  if (!p->told && !list_empty(&p->finished)) tell_home(p);
}

static int start_worker(AioPool *p);

/* There is work, and somebody who has time should know. One at a time: he calls the next. The caller is to signal the
 * condition, if there is one, when it has let go of the lock, or who wakes up would have to wait for that. Who watches goes on
 * watching while others are idle: to take turns is dear. */
static bool may_call(const AioPool *p) { return !p->called && !(p->watching && p->working); }

static int call_a_worker(AioPool *p, pthread_cond_t **signal) {
  *signal = NULL;
  if (!may_call(p) || (uint32_t)p->between >= p->nqueued) return 0;
  if (!p->idle && !p->watching && p->threads >= p->max) return 0;
  int rc = p->idle || p->watching ? 0 : start_worker(p);
  *signal = p->idle ? &p->work : p->watching ? &p->watch : NULL;
  p->called = rc == 0;
  return rc;
}

static bool wait_until(AioPool *p, pthread_cond_t *cond, int64_t ns) { /* false: so late is it now */
  struct timespec until = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
  return pthread_cond_timedwait(cond, &p->lock, &until) != ETIMEDOUT;
}

/* false: there has been nothing to do for a while. */
static bool wait_idle(AioPool *p) {
  p->idle++;
  bool in_time = wait_until(p, &p->work, aio_clock_now(AIO_CLOCK_MONOTONIC) + IDLE_NS);
  p->idle--;
  p->called = false;
  return in_time || !list_empty(&p->queued) || p->promised || p->threads <= p->min;
}

/* Others work. Whether they are enough shows after a while: are jobs still queued that were before it? */
static bool is_overdue(AioPool *p) {
  if (p->overdue) return true;
  if (p->watching) return false;
  uint32_t taken = p->taken, queued = p->nqueued;
  p->watching = true;
  bool called = wait_until(p, &p->watch, aio_clock_now(AIO_CLOCK_MONOTONIC) + PATIENCE_NS);
  p->watching = p->called = false;
  tell_what_is_untold(p);
  taken = p->taken - taken;
  if (!called && taken < queued && taken < BRISK) p->overdue = queued - taken;
  return false; /* look again */
}

/* true: the first job is the caller's. `works`: he has just done another one. */
static bool wait_for_work(AioPool *p, bool works) {
  while (!p->stopping && p->threads <= p->max) {
    if (list_empty(&p->queued)) {
      if (works) p->working--, p->between--;
      works = false;
      p->overdue = 0;
      tell_what_is_untold(p);
      if (list_empty(&p->queued) && !p->stopping && !wait_idle(p)) return false;
    } else if (works || !p->working) {
      p->working += !works;
      p->between -= works;
      return true;
    } else if (is_overdue(p)) {
      p->working++;
      return true;
    } else if (p->watching && !wait_idle(p)) {
      return false;
    }
  }
  if (works) p->working--, p->between--;
  return false;
}

/* Home is told when there is nothing else to do, or somebody watches who will do it soon: so one wake-up serves many. */
static void finish(AioPool *p, AioJob *job) {
  job->state = AIO_JOB_FINISHED;
  list_append(&p->finished, &job->link);
  if (p->told) return; /* the BH is on its way */
  if (list_empty(&p->queued) || !p->watching || ++p->untold >= UNTOLD_MAX) tell_home(p);
}

static void run_first(AioPool *p) {
  AioJob *job = job_at(p->queued.next);
  list_unlink(&job->link);
  p->nqueued--;
  p->taken++;
  if (p->overdue) p->overdue--;
  job->state = AIO_JOB_RUNNING;
  pthread_cond_t *signal = NULL;
  if (p->nqueued) call_a_worker(p, &signal);
  pthread_mutex_unlock(&p->lock);
  if (signal) pthread_cond_signal(signal);
  job->run(job->opaque);
  pthread_mutex_lock(&p->lock);
  p->between++;
  finish(p, job);
}

static void *work(void *opaque) {
  Worker *w = opaque;
  AioPool *p = w->pool;
  this_worker = w;
  pthread_mutex_lock(&p->lock);
  p->called = false;
  for (bool works = false; wait_for_work(p, works); works = true) run_first(p);
  tell_what_is_untold(p);
  if (w->local) {
    pthread_mutex_unlock(&p->lock);
    w->free_local(w->local);
    pthread_mutex_lock(&p->lock);
  }
  list_append(&p->left, &w->link);
  p->threads--;
  pthread_cond_t *signal = NULL;
  if (p->nqueued && !p->stopping) call_a_worker(p, &signal);
  if (signal) pthread_cond_signal(signal);
  pthread_cond_signal(&p->gone);
  pthread_mutex_unlock(&p->lock);
  return NULL;
}

void *aio_pool_local(void) { return this_worker->local; }

void aio_pool_set_local(void *local, AioFn *free_local) {
  this_worker->local = local;
  this_worker->free_local = free_local;
}

/* Holding the lock. Signals are for the threads that were there before. */
static int start_worker(AioPool *p) {
  sigset_t all, before;
  Worker *w = aio__realloc(NULL, sizeof *w);
  if (!w) return -ENOMEM;
  *w = (Worker){.pool = p};
  p->threads++;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int rc = pthread_create(&w->thread, NULL, work, w);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (rc == 0) return 0;
  p->threads--;
  aio__realloc(w, 0);
  return -rc;
}

/* Those that have left need only a moment more. */
static void join_left(AioPool *p) {
  AioLink gone;
  list_init(&gone);
  pthread_mutex_lock(&p->lock);
  list_append_all(&gone, &p->left);
  pthread_mutex_unlock(&p->lock);
  while (!list_empty(&gone)) {
    Worker *w = container_of(gone.next, Worker, link);
    list_unlink(&w->link);
    pthread_join(w->thread, NULL);
    aio__realloc(w, 0);
  }
}

/* ---- home ---- */

static void tell(void *opaque) {
  AioPool *p = opaque;
  AioContext *ctx = p->ctx;
  pthread_mutex_lock(&p->lock);
  p->told = false;
  list_append_all(&p->home_done, &p->finished);
  pthread_mutex_unlock(&p->lock);
  while (!list_empty(&p->home_done)) {
    AioJob *job = job_at(p->home_done.next);
    list_unlink(&job->link);
    job->state = AIO_JOB_OVER;
    p->home_jobs--;
    if (!list_empty(&p->home_done)) aio_bh_schedule(&p->more);
    job->done(job->opaque); /* may free the job, or close the context */
    if (ctx->pool != p) return;
  }
  aio_bh_cancel(&p->more);
}

static int new_pool(AioContext *ctx) {
  pthread_condattr_t monotonic;
  AioPool *p = aio__realloc(NULL, sizeof *p);
  if (!p) return -ENOMEM;
  *p = (AioPool){.ctx = ctx, .max = MAX_THREADS};
  list_init(&p->home_done);
  list_init(&p->home_held);
  list_init(&p->queued);
  list_init(&p->finished);
  list_init(&p->left);
  aio_bh_init(&p->bh, ctx, tell, p);
  aio_bh_init_local(&p->more, ctx, tell, p);
  pthread_mutex_init(&p->lock, NULL); /* neither these nor the next can fail on Linux */
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&p->work, &monotonic);
  pthread_cond_init(&p->watch, &monotonic);
  pthread_cond_init(&p->gone, NULL);
  pthread_condattr_destroy(&monotonic);
  ctx->pool = p;
  return 0;
}

static int pool_of(AioContext *ctx) {
  if (aio_context_closed(ctx)) return -ESHUTDOWN;
  return ctx->pool ? 0 : new_pool(ctx);
}

/* Queues what is held, and then this one; holding the lock. */
static int queue(AioPool *p, AioJob *job, pthread_cond_t **signal) {
  list_append_all(&p->queued, &p->home_held);
  p->nqueued += p->home_nheld;
  p->home_nheld = 0;
  p->home_batch++;
  p->promised = false;
  if (job) list_append(&p->queued, &job->link), p->nqueued++;
  *signal = NULL;
  return p->nqueued ? call_a_worker(p, signal) : 0;
}

static void queue_held(void *opaque) {
  pthread_cond_t *signal;
  AioPool *p = opaque;
  pthread_mutex_lock(&p->lock);
  queue(p, NULL, &signal); /* there is a thread, so it cannot fail */
  pthread_mutex_unlock(&p->lock);
  if (signal) pthread_cond_signal(signal);
}

static bool promise(AioPool *p) {
  pthread_mutex_lock(&p->lock);
  bool left = !list_empty(&p->left), promised = p->promised = p->threads > 0;
  pthread_mutex_unlock(&p->lock);
  if (left) join_left(p);
  return promised;
}

/* What a turn submits costs one lock, and one call to a thread. */
static bool hold(AioPool *p, AioJob *job) {
  if (!p->ctx->sections || p->home_nheld == HELD_MAX || (!p->home_nheld && !promise(p))) return false;
  job->batch = p->home_batch;
  list_append(&p->home_held, &job->link);
  if (!p->home_nheld++) aio_defer(p->ctx, queue_held, p);
  return true;
}

int aio_pool_submit(AioContext *ctx, AioJob *job, AioFn *run, AioFn *done, void *opaque) {
  int rc = pool_of(ctx);
  if (rc < 0) return rc;
  AioPool *p = ctx->pool;
  *job = (AioJob){.ctx = ctx, .run = run, .done = done, .opaque = opaque, .state = AIO_JOB_QUEUED, .batch = p->home_batch - 1};
  p->home_jobs++;
  if (hold(p, job)) return 0;
  pthread_cond_t *signal;
  pthread_mutex_lock(&p->lock);
  bool somebody_left = !list_empty(&p->left);
  rc = queue(p, job, &signal);
  if (rc < 0 && p->threads > 0) rc = 0; /* those that are there will come to it */
  if (rc < 0) list_unlink(&job->link), p->nqueued--;
  pthread_mutex_unlock(&p->lock);
  if (signal) pthread_cond_signal(signal);
  if (somebody_left) join_left(p);
  if (rc < 0) job->state = AIO_JOB_OVER, p->home_jobs--;
  return rc;
}

bool aio_pool_cancel(AioJob *job) {
  AioPool *p = job->ctx->pool;
  if (!p || aio_context_closed(job->ctx)) return false;
  pthread_mutex_lock(&p->lock);
  bool queued = job->state == AIO_JOB_QUEUED, held = job->batch == p->home_batch;
  if (queued) {
    list_unlink(&job->link);
    *(held ? &p->home_nheld : &p->nqueued) -= 1;
    job->result = -ECANCELED;
    finish(p, job);
    tell_what_is_untold(p);
  }
  pthread_mutex_unlock(&p->lock);
  return queued;
}

int aio_pool_set_threads(AioContext *ctx, int min, int max) {
  if (min < 0 || max <= 0 || min > max) return -EINVAL;
  int rc = pool_of(ctx);
  if (rc < 0) return rc;
  AioPool *p = ctx->pool;
  join_left(p);
  pthread_mutex_lock(&p->lock);
  p->min = min;
  p->max = max;
  while (rc == 0 && p->threads < min) rc = start_worker(p);
  pthread_cond_broadcast(&p->work); /* who is too much leaves */
  pthread_cond_broadcast(&p->watch);
  pthread_mutex_unlock(&p->lock);
  return rc;
}

void aio_pool_stats(AioContext *ctx, AioPoolStats *out) {
  AioPool *p = ctx->pool;
  *out = (AioPoolStats){.max = MAX_THREADS};
  if (!p) return;
  pthread_mutex_lock(&p->lock);
  *out = (AioPoolStats){p->threads, p->idle + p->watching, p->min, p->max, p->nqueued + p->home_nheld, p->home_jobs};
  pthread_mutex_unlock(&p->lock);
}

uint32_t aio__pool_jobs(const AioContext *ctx) { return ctx->pool ? ctx->pool->home_jobs : 0; }

void aio__pool_stop(AioContext *ctx) {
  AioPool *p = ctx->pool;
  if (!p) return;
  pthread_mutex_lock(&p->lock);
  p->stopping = true;
  while (!list_empty(&p->queued)) list_unlink(p->queued.next);
  while (!list_empty(&p->home_held)) list_unlink(p->home_held.next);
  pthread_cond_broadcast(&p->work);
  pthread_cond_broadcast(&p->watch);
  while (p->threads > 0) pthread_cond_wait(&p->gone, &p->lock);
  pthread_mutex_unlock(&p->lock);
  join_left(p);
}

void aio__pool_free(AioContext *ctx) {
  AioPool *p = ctx->pool;
  if (!p) return;
  ctx->pool = NULL;
  pthread_cond_destroy(&p->gone);
  pthread_cond_destroy(&p->watch);
  pthread_cond_destroy(&p->work);
  pthread_mutex_destroy(&p->lock);
  aio__realloc(p, 0);
}
