/* SPDX-License-Identifier: MIT
 * Timers: one heap per clock, ordered by deadline and then by arming, with the place kept in the timer.
 *
 * Way      aio_timer_arm -> heap -> aio__timers_run (last phase of a turn) -> fn
 * Threads  home.
 * Owner    the caller; a timer is unlinked before fn is called and not touched after.
 * Keep     v[t->pos].timer == t for every armed timer. What is armed while timers run sorts behind all that is due in
 *          that run and has a later seq, so the run stops before it: re-arming in the past cannot livelock. */
#include <errno.h>

#include "internal.h"

enum { ARITY = 4 }; /* half the levels of a binary heap, and the four children share a cache line */

static bool before(const AioHeapNode *a, const AioHeapNode *b) {
  return a->deadline != b->deadline ? a->deadline < b->deadline : a->timer->seq < b->timer->seq;
}

static void put(AioHeap *h, uint32_t pos, AioHeapNode node) {
  h->v[pos] = node;
  node.timer->pos = (int32_t)pos;
}

static void sift_up(AioHeap *h, uint32_t pos, AioHeapNode node) {
  while (pos > 0) {
    uint32_t parent = (pos - 1) / ARITY;
    if (!before(&node, &h->v[parent])) break;
    put(h, pos, h->v[parent]);
    pos = parent;
  }
  put(h, pos, node);
}

static void sift_down(AioHeap *h, uint32_t pos, AioHeapNode node) {
  for (;;) {
    uint32_t child = pos * ARITY + 1;
    if (child >= h->n) break;
    uint32_t best = child, end = child + ARITY < h->n ? child + ARITY : h->n;
    for (uint32_t c = child + 1; c < end; c++)
      if (before(&h->v[c], &h->v[best])) best = c;
    if (!before(&h->v[best], &node)) break;
    put(h, pos, h->v[best]);
    pos = best;
  }
  put(h, pos, node);
}

/* Puts node where pos is free. */
static void settle(AioHeap *h, uint32_t pos, AioHeapNode node) {
  if (pos > 0 && before(&node, &h->v[(pos - 1) / ARITY]))
    sift_up(h, pos, node);
  else
    sift_down(h, pos, node);
}

static void unlink_timer(AioHeap *h, AioTimer *t) {
  uint32_t pos = (uint32_t)t->pos;
  AioHeapNode last = h->v[--h->n];
  t->ctx->ntimers--;
  t->pos = -1;
  if (last.timer != t) settle(h, pos, last);
}

static AioHeap *heap_of(const AioTimer *t) { return &t->ctx->heap[t->clock]; }

void aio_timer_init(AioTimer *t, AioContext *ctx, AioClock clock, AioFn *fn, void *opaque) {
  *t = (AioTimer){.ctx = ctx, .fn = fn, .opaque = opaque, .pos = -1, .clock = (uint8_t)clock};
}

bool aio_timer_armed(const AioTimer *t) { return t->pos >= 0; }
int64_t aio_timer_deadline(const AioTimer *t) { return t->pos < 0 ? AIO_FOREVER : heap_of(t)->v[t->pos].deadline; }

static int64_t now_of(const AioContext *ctx, AioClock clock) {
  if (clock != AIO_CLOCK_VIRTUAL) return aio_clock_now(clock);
  return ctx->vclock ? aio_vclock_now(ctx->vclock) : 0;
}

int64_t aio_timer_now(const AioTimer *t) { return now_of(t->ctx, t->clock); }

void aio_timer_disarm(AioTimer *t) {
  if (t->pos >= 0) unlink_timer(heap_of(t), t);
}

int aio_timer_arm(AioTimer *t, int64_t deadline) {
  AioContext *ctx = t->ctx;
  AioHeap *h = heap_of(t);
  if (atomic_load_explicit(&ctx->closed, memory_order_relaxed)) return -ESHUTDOWN;
  if (t->clock == AIO_CLOCK_VIRTUAL && !ctx->vclock) return -EINVAL;
  if (deadline == AIO_FOREVER) return aio_timer_disarm(t), 0;
  if (h->running && deadline < h->run_now) deadline = h->run_now;
  if (deadline < 0) deadline = 0;
  AioHeapNode node = {deadline, t};
  if (t->pos >= 0) {
    t->seq = ++ctx->timer_seq;
    settle(h, (uint32_t)t->pos, node);
  } else {
    if (h->n == h->cap && aio__grow((void **)&h->v, &h->cap, h->n + 1, sizeof *h->v) < 0) return -ENOMEM;
    t->seq = ++ctx->timer_seq;
    ctx->ntimers++;
    sift_up(h, h->n++, node);
  }
  if (t->pos == 0) aio__kick(ctx);
  return 0;
}

int aio_timer_anticipate(AioTimer *t, int64_t deadline) {
  return aio_timer_armed(t) && aio_timer_deadline(t) <= deadline ? 0 : aio_timer_arm(t, deadline);
}

/* ---- what a turn does with them ---- */

int64_t aio__timers_first(const AioContext *ctx, AioClock clock) {
  const AioHeap *h = &ctx->heap[clock];
  return h->n ? h->v[0].deadline : AIO_FOREVER;
}

int64_t aio__timers_timeout(AioContext *ctx, bool with_virtual) {
  int64_t soonest = AIO_FOREVER;
  if (!ctx->ntimers) return soonest;
  for (int c = 0; c < AIO_CLOCK_VIRTUAL; c++) {
    if (!ctx->heap[c].n) continue;
    int64_t left = aio__timers_first(ctx, (AioClock)c) - aio_clock_now((AioClock)c);
    soonest = aio__earlier(soonest, left < 0 ? 0 : left);
  }
  if (with_virtual && ctx->heap[AIO_CLOCK_VIRTUAL].n)
    soonest = aio__earlier(soonest, aio__vclock_timeout(ctx->vclock, aio__timers_first(ctx, AIO_CLOCK_VIRTUAL)));
  return soonest;
}

static bool run_heap(AioContext *ctx, AioHeap *h, uint64_t last) {
  bool progress = false;
  while (h->n && h->v[0].deadline <= h->run_now && h->v[0].timer->seq <= last) {
    AioTimer *t = h->v[0].timer;
    unlink_timer(h, t);
    ctx->stats.timers++;
    aio__trace(AIO_TRACE_TIMER_FIRE, t, h->run_now);
    progress = true;
    t->fn(t->opaque);
  }
  return progress;
}

/* All clocks are read before the first timer fires: what is armed meanwhile, on whichever clock, is not of this run. */
bool aio__timers_run(AioContext *ctx) {
  struct { bool running; int64_t now; } outer[AIO_CLOCKS];
  bool progress = false;
  uint64_t last = ctx->timer_seq;
  for (int c = 0; c < AIO_CLOCKS; c++) {
    AioHeap *h = &ctx->heap[c];
    outer[c].running = h->running;
    outer[c].now = h->run_now;
    h->running = true;
    h->run_now = h->n ? now_of(ctx, (AioClock)c) : -1; /* nothing there: nothing is due, and nothing will be clamped */
  }
  for (int c = 0; c < AIO_CLOCKS; c++) progress |= run_heap(ctx, &ctx->heap[c], last);
  for (int c = 0; c < AIO_CLOCKS; c++) {
    ctx->heap[c].running = outer[c].running;
    ctx->heap[c].run_now = outer[c].now;
  }
  return progress;
}

void aio__timers_drop(AioContext *ctx) {
  for (int c = 0; c < AIO_CLOCKS; c++) {
    AioHeap *h = &ctx->heap[c];
    while (h->n) h->v[--h->n].timer->pos = -1;
    h->v = aio__realloc(h->v, 0);
    h->cap = 0;
    ctx->ntimers = 0;
  }
}
