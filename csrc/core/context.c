/* SPDX-License-Identifier: MIT
 * The context, and the order in which one turn of the loop runs things: the only place that says so.
 *
 * Way      aio_poll: plan -> (spin) -> wait -> accept -> BHs -> fd handlers -> timers. source.c runs the same pieces.
 * Threads  ref, unref, acquire, release: any. The rest: home.
 * Owner    whoever holds the last reference; a poller holds one throughout.
 * Keep     everything is re-examined between announcing a sleep and sleeping (notify.c). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { TURNS_PER_ASK = 2 }; /* while BHs keep coming, the kernel is asked for fds in every second turn */

void *aio__realloc(void *p, size_t size) {
  if (size) return realloc(p, size);
  free(p);
  return NULL;
}

void *aio__aligned(size_t size) { return aligned_alloc(AIO_FILE_ALIGN, size); }

int aio__grow(void **v, uint32_t *cap, uint32_t need, size_t size) {
  if (need <= *cap) return 0;
  uint64_t want = *cap ? *cap : 16;
  while (want < need) want *= 2;
  void *bigger = want > INT32_MAX ? NULL : aio__realloc(*v, want * size);
  if (!bigger) return -ENOMEM;
  *v = bigger;
  *cap = (uint32_t)want;
  return 0;
}

/* ---- life ---- */

/* "auto" is epoll, for io_uring is not better. bench/aioloop/pingpong.lua on Linux 6.18 (two virtual CPUs), CPU time of a
 * message in us, medians of 11 rounds; in brackets by epoll's in the same round:
 *                      epoll  io_uring    poll
 *   one pair           5.3    5.9 (1.19)  4.4 (0.91)
 *   1,000 pairs        6.5    7.0 (1.07)  6.8 (1.03) */
static const AioFdMon *find_backend(const char *name) {
  if (!name || !strcmp(name, "auto") || !strcmp(name, "epoll")) return &aio__fdmon_epoll;
  if (!strcmp(name, "io_uring")) return &aio__fdmon_uring;
  return strcmp(name, "poll") ? NULL : &aio__fdmon_poll;
}

static int open_backend(AioContext *ctx, const AioOptions *opts) {
  ctx->mon = find_backend(opts->backend);
  if (!ctx->mon) return -EINVAL;
  int rc = ctx->mon->init(ctx);
  bool may_choose = !opts->backend || !strcmp(opts->backend, "auto");
  if (rc < 0 && may_choose) {
    ctx->mon = &aio__fdmon_poll;
    rc = ctx->mon->init(ctx);
  }
  return rc;
}

int aio_context_new(AioContext **out, const AioOptions *opts) {
  static const AioOptions defaults;
  if (!opts) opts = &defaults;
  *out = NULL;
  AioContext *ctx = aio__realloc(NULL, sizeof *ctx);
  if (!ctx) return -ENOMEM;
  memset(ctx, 0, sizeof *ctx);
  static atomic_uint made;
  atomic_init(&ctx->refs, 1);
  ctx->number = atomic_fetch_add_explicit(&made, 1, memory_order_relaxed);
  list_init(&ctx->ready);
  list_init(&ctx->idle);
  list_init(&ctx->woken);
  list_init(&ctx->last);
  list_init(&ctx->fd_ready);
  list_init(&ctx->defer_runs);
  ctx->wake_at = &ctx->woken;
  ctx->shuffle = opts->shuffle;
  ctx->ring_entries = opts->ring_entries;
  ctx->laio_batch = opts->laio_batch;
  ctx->inline_left = INLINE_BYTES;
  int rc = -pthread_mutex_init(&ctx->lock, NULL);
  if (rc < 0) goto no_lock;
  rc = aio_notifier_open(&ctx->notifier);
  if (rc < 0) goto no_notifier;
  rc = aio_set_polling(ctx, opts->poll_max_ns, opts->poll_grow, opts->poll_shrink);
  if (rc == 0) rc = open_backend(ctx, opts);
  if (rc < 0) goto no_backend;
  atomic_store(&ctx->notified, false);
  if (opts->vclock) aio__vclock_join(opts->vclock, ctx);
  *out = ctx;
  return 0;
no_backend:
  aio_notifier_close(&ctx->notifier);
no_notifier:
  pthread_mutex_destroy(&ctx->lock);
no_lock:
  aio__realloc(ctx, 0);
  return rc;
}

void aio_context_close(AioContext *ctx) {
  if (atomic_exchange(&ctx->closed, true)) return;
  aio__pool_stop(ctx);
  aio__files_stop(ctx);
  aio__co_drop(ctx);
  aio__bhs_drop(ctx);
  aio__pool_free(ctx);
  aio__files_free(ctx);
  aio__defer_drop(ctx);
  aio__fds_drop(ctx);
  aio__timers_drop(ctx);
  aio__vclock_leave(ctx);
  aio__source_drop(ctx);
  ctx->mon->fini(ctx); /* the notifier stays until nobody can be about to write to it */
}

void aio_context_ref(AioContext *ctx) { atomic_fetch_add_explicit(&ctx->refs, 1, memory_order_relaxed); }

void aio_context_unref(AioContext *ctx) {
  if (atomic_fetch_sub_explicit(&ctx->refs, 1, memory_order_acq_rel) != 1) return;
  aio_context_close(ctx);
  aio__bhs_drop(ctx); /* what another thread pushed while we closed */
  aio_notifier_close(&ctx->notifier);
  pthread_mutex_destroy(&ctx->lock);
  aio__realloc(ctx, 0);
}

bool aio_context_closed(const AioContext *ctx) { return atomic_load_explicit(&ctx->closed, memory_order_relaxed); }

/* Recursive by its owner's name and not by its type: glibc takes a plain mutex without an atomic operation while the
 * process has one thread. Nobody but the owner can find its own name there. */
void aio_context_acquire(AioContext *ctx) {
  if (atomic_load_explicit(&ctx->lock_owner, memory_order_relaxed) != aio__self()) {
    pthread_mutex_lock(&ctx->lock);
    atomic_store_explicit(&ctx->lock_owner, aio__self(), memory_order_relaxed);
  }
  ctx->lock_depth++;
}

void aio_context_release(AioContext *ctx) {
  if (atomic_load_explicit(&ctx->lock_owner, memory_order_relaxed) != aio__self() || --ctx->lock_depth) return;
  atomic_store_explicit(&ctx->lock_owner, 0, memory_order_relaxed);
  pthread_mutex_unlock(&ctx->lock);
}

void aio_context_set_home(AioContext *ctx) { atomic_store_explicit(&ctx->home, aio__self(), memory_order_relaxed); }
const char *aio_context_backend(const AioContext *ctx) { return ctx->mon->name; }

uint64_t aio_context_turns(const AioContext *ctx) { return ctx->stats.polls; }

void aio_context_stats(const AioContext *ctx, AioStats *out) {
  *out = ctx->stats;
  for (const AioLink *l = ctx->ready.next; l != &ctx->ready; l = l->next) out->bhs_pending++;
  for (const AioLink *l = ctx->idle.next; l != &ctx->idle; l = l->next) out->bhs_pending++;
  out->timers_armed = ctx->ntimers;
  out->watches = ctx->nwatches - ctx->own_watches;
  out->poll_ns = atomic_load_explicit(&ctx->poll_ns, memory_order_relaxed);
}

/* ---- an order drawn by lot ---- */

static uint64_t draw(uint64_t *state) { /* xorshift64, G. Marsaglia 2003 */
  *state ^= *state << 13;
  *state ^= *state >> 7;
  return *state ^= *state << 17;
}

/* Each pass sorts by one random bit, which is what sorting by a random number does. */
void aio__shuffle(AioContext *ctx, AioLink *list) {
  if (!ctx->shuffle) return;
  for (int pass = 0; pass < 32; pass++) {
    AioLink front, back;
    list_init(&front);
    list_init(&back);
    while (!list_empty(list)) {
      AioLink *l = list->next;
      list_unlink(l);
      list_append(draw(&ctx->shuffle) >> 40 & 1 ? &front : &back, l);
    }
    for (AioLink *half = &front; half; half = half == &front ? &back : NULL)
      while (!list_empty(half)) {
        AioLink *l = half->next;
        list_unlink(l);
        list_append(list, l);
      }
  }
}

/* ---- one turn ---- */

bool aio__work_seen(AioContext *ctx) {
  return aio__bhs_pending(ctx) || aio__cos_woken(ctx) || !list_empty(&ctx->fd_ready) ||
         atomic_load_explicit(&ctx->notified, memory_order_acquire);
}

bool aio_context_busy(AioContext *ctx) { return aio__bhs_pending(ctx) || aio__cos_woken(ctx); }

bool aio_context_can_wake(const AioContext *ctx) {
  return !list_empty(&ctx->ready) || !list_empty(&ctx->idle) || aio__cos_woken(ctx) || !list_empty(&ctx->fd_ready) ||
         atomic_load_explicit(&ctx->incoming, memory_order_acquire) || ctx->nwatches > ctx->own_watches || ctx->ntimers ||
         aio__pool_jobs(ctx) || aio__file_ops(ctx);
}

int64_t aio__plan(AioContext *ctx) {
  if (aio__cos_woken(ctx) || !list_empty(&ctx->fd_ready)) return 0;
  int64_t timeout = aio__bhs_timeout(ctx);
  return timeout ? aio__earlier(timeout, aio__timers_timeout(ctx, true)) : 0;
}

static int sleep_announced(AioContext *ctx, int64_t timeout) {
  aio__announce(ctx, 2);
  if (aio__work_seen(ctx)) timeout = 0;
  aio__trace(AIO_TRACE_WAIT_BEGIN, ctx, timeout);
  int n = aio__fds_wait(ctx, timeout);
  aio__trace(AIO_TRACE_WAIT_END, ctx, n < 0 ? 0 : n);
  aio__withdraw(ctx, 2);
  return n;
}

/* As long as only the wish to look for closed fds ends the sleep, it is one sleep. */
static void sleep_for(AioContext *ctx, int64_t timeout) {
  while (ctx->mon->blind && ctx->suspects && ctx->nwatches && timeout > SWEEP_NS) {
    int n = sleep_announced(ctx, SWEEP_NS);
    if (n < 0 || ctx->notifier_fired || aio__work_seen(ctx)) return; /* n: a signal, whose handler wants a turn to end */
    aio__fds_sweep(ctx, SWEEP_ASLEEP);
    timeout = timeout == AIO_FOREVER ? timeout : timeout - SWEEP_NS;
    if (!list_empty(&ctx->fd_ready)) return;
  }
  sleep_announced(ctx, timeout);
}

static void wait(AioContext *ctx, int64_t timeout) {
  if (atomic_load_explicit(&ctx->poll_max, memory_order_relaxed) == 0) {
    sleep_for(ctx, timeout);
    return;
  }
  int64_t start = aio_clock_now(AIO_CLOCK_MONOTONIC);
  if (!aio__spin(ctx, timeout)) {
    int64_t spun = aio_clock_now(AIO_CLOCK_MONOTONIC) - start;
    sleep_for(ctx, timeout == AIO_FOREVER ? timeout : spun < timeout ? timeout - spun : 0);
  }
  aio__polling_learn(ctx, aio_clock_now(AIO_CLOCK_MONOTONIC) - start);
}

/* With nothing to watch but the notifier the kernel has nothing to tell; with BHs pending it is asked less often. */
void aio__glance(AioContext *ctx) {
  if (!ctx->nwatches && !ctx->exported) return;
  if (++ctx->skipped < TURNS_PER_ASK && aio__bhs_pending(ctx)) return;
  aio__fds_wait(ctx, 0);
}

static void wait_or_glance(AioContext *ctx, int64_t limit) {
  int64_t timeout = limit > 0 ? aio__earlier(limit, aio__plan(ctx)) : 0;
  if (timeout > 0 && ctx->vclock && aio__timers_first(ctx, AIO_CLOCK_VIRTUAL) != AIO_FOREVER) {
    aio__fds_wait(ctx, 0); /* only when everything sleeps does the virtual clock jump */
    if (ctx->notifier_fired) return;
    if (!aio__work_seen(ctx)) aio__vclock_jump(ctx);
    timeout = aio__earlier(limit, aio__plan(ctx));
    if (timeout == 0) return;
  }
  if (timeout > 0)
    wait(ctx, timeout);
  else
    aio__glance(ctx);
}

bool aio__dispatch(AioContext *ctx) {
  ctx->stats.polls++;
  ctx->inline_left = INLINE_BYTES;
  ctx->rounds = 0;
  aio_defer_begin(ctx);
  aio__accept(ctx);
  bool progress = aio__woken_run(ctx);
  progress |= aio__bhs_run(ctx);
  if (ctx->nwatches) progress |= aio__fds_run(ctx); /* the lost ones count until they are told */
  if (ctx->ntimers) progress |= aio__timers_run(ctx);
  if (progress) aio__fds_suspect(ctx);
  aio_defer_end(ctx);
  if (ctx->depth == 1) aio__fds_settle(ctx);
  return progress;
}

/* The next turn is begun where the last coroutine of this one has ended if there is nothing between them but to ask whether
 * the run is over; with fds and timers to look after, every second one. */
bool aio__next_round(AioContext *ctx) {
  bool others = ctx->nwatches || ctx->ntimers || ctx->exported;
  if (!ctx->over || (others && ctx->rounds) || ctx->shuffle) return false;
  if (aio__cos_woken(ctx) || !list_empty(&ctx->idle) || !list_empty(&ctx->fd_ready)) return false;
  if (aio__defer_pending(ctx)) return false;
  if (ctx->notifier_fired || atomic_load_explicit(&ctx->notified, memory_order_relaxed)) return false;
  if (atomic_load_explicit(&ctx->incoming, memory_order_relaxed) || !aio__bhs_ready_co(ctx)) return false;
  if (ctx->over(ctx->over_opaque) || aio_context_closed(ctx)) return false;
  ctx->rounds = 1;
  ctx->bh_due = ctx->bh_seq;
  ctx->skipped++;
  ctx->stats.polls++;
  ctx->inline_left = INLINE_BYTES;
  return true;
}

void aio__nest(AioContext *ctx, AioOuter *outer, AioTestFn *over, void *opaque) {
  *outer = (AioOuter){ctx->running, ctx->over, ctx->over_opaque};
  aio__wake_last(ctx); /* what a nested turn waits for may need them */
  ctx->running = NULL; /* a callback in a nested turn is not inside the coroutine that polls */
  ctx->over = over;
  ctx->over_opaque = opaque;
  ctx->depth++;
}

void aio__unnest(AioContext *ctx, const AioOuter *outer) {
  ctx->depth--;
  ctx->over = outer->over;
  ctx->over_opaque = outer->opaque;
  ctx->running = outer->running;
  ctx->wake_at = &ctx->woken;
}

static bool take_turn(AioContext *ctx, int64_t limit_ns, AioTestFn *over, void *opaque) {
  if (aio_context_closed(ctx)) return false;
  uintptr_t outer_home = atomic_load_explicit(&ctx->home, memory_order_relaxed);
  AioOuter outer;
  aio_context_set_home(ctx);
  aio__nest(ctx, &outer, over, opaque);
  if (ctx->depth == 1) aio__fds_suspect(ctx); /* the caller may have closed fds */
  if (aio__defer_pending(ctx)) aio__defer_run(ctx); /* what is waited for may be among it */
  if (!aio_context_closed(ctx)) wait_or_glance(ctx, limit_ns);
  bool progress = aio__dispatch(ctx);
  aio__unnest(ctx, &outer);
  atomic_store_explicit(&ctx->home, outer_home, memory_order_relaxed);
  if (ctx->exported && !ctx->depth && aio__work_seen(ctx)) aio_notifier_set(&ctx->notifier); /* left for the next turn */
  /* Polled between GLib's prepare and its sleep: what it planned may be out of date, and its wake-up accepted here. */
  if (!limit_ns && progress && !ctx->depth && ctx->source && !ctx->exported &&
      atomic_load_explicit(&ctx->notify_me, memory_order_relaxed))
    aio_notifier_set(&ctx->notifier);
  return progress;
}

/* Whoever has left a coroutine by longjmp, as Lua does, returns dearly: the processor has forgotten where to, frame by frame.
 * Hence a turn and all that it calls are one function each of these two. */
__attribute__((flatten)) bool aio_poll(AioContext *ctx, int64_t limit_ns) { return take_turn(ctx, limit_ns, NULL, NULL); }

__attribute__((flatten)) void aio_run(AioContext *ctx, AioTestFn *over, void *opaque) {
  do take_turn(ctx, AIO_FOREVER, over, opaque);
  while (!over(opaque) && aio_context_can_wake(ctx));
}

void aio_context_set_around(AioContext *ctx, AioAroundFn *around, void *opaque) {
  ctx->around = around;
  ctx->around_opaque = opaque;
}

void aio__around(AioContext *ctx, AioFn *turn) {
  if (ctx->around)
    ctx->around(turn, ctx, ctx->around_opaque);
  else
    turn(ctx);
}

int64_t aio_context_timeout(AioContext *ctx) {
  if (aio_context_closed(ctx)) return AIO_FOREVER;
  return aio__defer_pending(ctx) ? 0 : aio__plan(ctx); /* a turn begins with what was deferred */
}

int aio_context_pollfd(AioContext *ctx) {
  if (aio_context_closed(ctx)) return -ESHUTDOWN;
  if (ctx->pollfd < 0) return -ENOTSUP;
  ctx->exported = true;
  aio__announce(ctx, 1); /* for good: the other loop may be asleep on it at any time */
  aio__fds_settle(ctx);
  if (aio__work_seen(ctx)) aio_notifier_set(&ctx->notifier);
  return ctx->pollfd;
}
