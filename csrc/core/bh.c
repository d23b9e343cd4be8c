/* SPDX-License-Identifier: MIT
 * Bottom halves: callbacks that run once in the home thread's next turn, in the order in which they were scheduled.
 *
 * Way      home thread:   aio_bh_schedule -> enqueue -> `ready` -> aio__bhs_run -> fn
 *          other threads: aio_bh_schedule -> push -> `incoming` (the first also tells) -> take_incoming -> `ready`
 * Threads  schedule and oneshot: any, wait-free. The rest: home.
 * Owner    the caller, except for one-shots, which are freed before their function is called.
 * Keep     BH_PENDING: in a list or on the way into one; whoever sets it links the BH. Flags are cleared before fn is
 *          called, and the BH is not touched after. A run stops at the seq that was the last when it began, so what is
 *          scheduled meanwhile waits for the next turn, and a nested turn drains the rest of the outer one first. */
#include <errno.h>
#include <sched.h>

#include "internal.h"

enum {
  BH_PENDING = 1,
  BH_SCHEDULED = 2,  /* to be run; cancel takes it back while the BH may stay linked */
  BH_IDLE = 4,       /* in the idle list */
  BH_ONESHOT = 8,
  BH_CO = 16,        /* the BH of an AioCo */
  BH_LOCAL = 32,     /* no other thread schedules it: flags need no atomic read-modify-write */
  BH_QUEUED = BH_PENDING | BH_SCHEDULED | BH_IDLE
};

#define IDLE_NS INT64_C(10000000)

static AioBH being_pushed; /* mark: the producer is between taking its place and linking it */

static unsigned set_flags(AioBH *bh, unsigned bits) {
  unsigned old = atomic_load_explicit(&bh->flags, memory_order_relaxed);
  if (!(old & BH_LOCAL)) return atomic_fetch_or_explicit(&bh->flags, bits, memory_order_acq_rel);
  atomic_store_explicit(&bh->flags, old | bits, memory_order_relaxed);
  return old;
}

static unsigned clear_flags(AioBH *bh, unsigned bits) {
  unsigned old = atomic_load_explicit(&bh->flags, memory_order_relaxed);
  if (!(old & BH_LOCAL)) return atomic_fetch_and_explicit(&bh->flags, ~bits, memory_order_acq_rel);
  atomic_store_explicit(&bh->flags, old & ~bits, memory_order_relaxed);
  return old;
}

/* Of a BH that nobody else can touch now. */
static void set_own_flags(AioBH *bh, unsigned bits) {
  unsigned kept = atomic_load_explicit(&bh->flags, memory_order_relaxed) & (BH_CO | BH_LOCAL);
  atomic_store_explicit(&bh->flags, kept | bits, memory_order_relaxed);
}

static void init(AioBH *bh, AioContext *ctx, AioFn *fn, void *opaque, unsigned flags) {
  *bh = (AioBH){.ctx = ctx, .fn = fn, .opaque = opaque};
  atomic_init(&bh->flags, flags);
}

void aio_bh_init(AioBH *bh, AioContext *ctx, AioFn *fn, void *opaque) { init(bh, ctx, fn, opaque, 0); }
void aio_bh_init_local(AioBH *bh, AioContext *ctx, AioFn *fn, void *opaque) { init(bh, ctx, fn, opaque, BH_LOCAL); }

static void init_co(AioCo *co, AioContext *ctx, AioFn *enter, void *opaque, unsigned flags) {
  init(&co->bh, ctx, enter, opaque, flags);
  atomic_init(&co->scheduled_by, NULL);
}

void aio_co_init(AioCo *co, AioContext *ctx, AioFn *enter, void *opaque) { init_co(co, ctx, enter, opaque, BH_CO); }
void aio_co_init_local(AioCo *co, AioContext *ctx, AioFn *enter, void *opaque) { init_co(co, ctx, enter, opaque, BH_CO | BH_LOCAL); }

/* Any thread. Afterwards bh may be gone already. */
static void push(AioContext *ctx, AioBH *bh) {
  atomic_store_explicit(&bh->pushed, &being_pushed, memory_order_relaxed);
  AioBH *below = atomic_exchange_explicit(&ctx->incoming, bh, memory_order_acq_rel);
  atomic_store_explicit(&bh->pushed, below, memory_order_release);
  /* The home thread takes all that is there together: the first tells it, and it cannot fall asleep over what is there. */
  if (!below) aio__published(ctx);
}

static AioBH *pushed_below(AioBH *bh) {
  AioBH *below;
  for (unsigned tries = 0; (below = atomic_load_explicit(&bh->pushed, memory_order_acquire)) == &being_pushed;)
    if (++tries > 100) sched_yield(); /* its producer lost the CPU between two instructions */
  return below;
}

static void append(AioContext *ctx, AioBH *bh) {
  bh->seq = ++ctx->bh_seq;
  list_append(&ctx->ready, &bh->link);
}

static __attribute__((noinline)) void take_all_incoming(AioContext *ctx) {
  AioBH *oldest = NULL, *bh = atomic_exchange_explicit(&ctx->incoming, NULL, memory_order_acquire);
  while (bh) { /* the stack has the newest on top */
    AioBH *below = pushed_below(bh);
    atomic_store_explicit(&bh->pushed, oldest, memory_order_relaxed);
    oldest = bh;
    bh = below;
  }
  for (; oldest; oldest = bh) {
    bh = atomic_load_explicit(&oldest->pushed, memory_order_relaxed);
    append(ctx, oldest);
  }
}

static void take_incoming(AioContext *ctx) {
  if (atomic_load_explicit(&ctx->incoming, memory_order_relaxed)) take_all_incoming(ctx);
}

static void enqueue(AioContext *ctx, AioBH *bh) {
  take_incoming(ctx); /* they were first */
  append(ctx, bh);
  aio__kick(ctx);
}

static void schedule_home(AioContext *ctx, AioBH *bh) {
  unsigned old = set_flags(bh, BH_PENDING | BH_SCHEDULED);
  if (old & BH_IDLE) {
    clear_flags(bh, BH_IDLE);
    list_unlink(&bh->link);
    enqueue(ctx, bh);
  } else if (!(old & BH_PENDING)) {
    enqueue(ctx, bh);
  }
}

static void schedule_foreign(AioContext *ctx, AioBH *bh) {
  unsigned old = set_flags(bh, BH_PENDING | BH_SCHEDULED);
  if (!(old & BH_PENDING))
    push(ctx, bh);
  else if (!(old & BH_SCHEDULED))
    aio__published(ctx); /* it is in a list, idle or taken back */
}

void aio_bh_schedule(AioBH *bh) {
  AioContext *ctx = bh->ctx;
  if (atomic_load_explicit(&ctx->closed, memory_order_relaxed)) return;
  if (aio__is_home(ctx))
    schedule_home(ctx, bh);
  else
    schedule_foreign(ctx, bh);
}

int aio_bh_oneshot(AioContext *ctx, AioFn *fn, void *opaque) {
  if (atomic_load_explicit(&ctx->closed, memory_order_relaxed)) return -ESHUTDOWN;
  AioBH *bh = aio__realloc(NULL, sizeof *bh);
  if (!bh) return -ENOMEM;
  init(bh, ctx, fn, opaque, BH_ONESHOT);
  aio__is_home(ctx) ? schedule_home(ctx, bh) : schedule_foreign(ctx, bh); /* closed meanwhile: unref frees it */
  return 0;
}

void aio_bh_schedule_idle(AioBH *bh) {
  AioContext *ctx = bh->ctx;
  if (atomic_load_explicit(&ctx->closed, memory_order_relaxed)) return;
  aio_bh_cancel(bh);
  if (set_flags(bh, BH_PENDING | BH_IDLE) & BH_PENDING) {
    clear_flags(bh, BH_IDLE);
    set_flags(bh, BH_SCHEDULED); /* another thread is scheduling it this very moment, and cancel took that back */
    return;
  }
  bh->seq = ctx->depth > 0; /* 1: waits for idle_from */
  list_append(&ctx->idle, &bh->link);
  aio__kick(ctx);
}

void aio_bh_cancel(AioBH *bh) {
  take_incoming(bh->ctx);
  if (list_linked(&bh->link)) {
    list_unlink(&bh->link);
    clear_flags(bh, BH_QUEUED);
  } else {
    clear_flags(bh, BH_SCHEDULED | BH_IDLE);
  }
}

void aio_bh_close(AioBH *bh) { aio_bh_cancel(bh); }

bool aio_bh_scheduled(const AioBH *bh) {
  return atomic_load_explicit(&bh->flags, memory_order_relaxed) & (BH_SCHEDULED | BH_IDLE);
}

/* ---- what a turn does with them ---- */

static AioBH *first(const AioLink *head) { return container_of(head->next, AioBH, link); }

/* Another thread that schedules an idle BH can only set its flag: here it is moved over. */
static void promote_idle(AioContext *ctx) {
  for (AioLink *l = ctx->idle.next, *next; l != &ctx->idle; l = next) {
    next = l->next;
    AioBH *bh = container_of(l, AioBH, link);
    if (!(atomic_load_explicit(&bh->flags, memory_order_acquire) & BH_SCHEDULED)) continue;
    clear_flags(bh, BH_IDLE);
    list_unlink(l);
    append(ctx, bh);
  }
}

bool aio__bhs_pending(AioContext *ctx) {
  if (!list_empty(&ctx->idle)) promote_idle(ctx);
  return !list_empty(&ctx->ready) || atomic_load_explicit(&ctx->incoming, memory_order_acquire) != NULL;
}

int64_t aio__bhs_timeout(AioContext *ctx) {
  if (aio__bhs_pending(ctx)) return 0;
  if (list_empty(&ctx->idle)) return AIO_FOREVER;
  int64_t soonest = IDLE_NS;
  for (AioLink *l = ctx->idle.next; l != &ctx->idle; l = l->next) {
    if (!container_of(l, AioBH, link)->seq) continue;
    int64_t left = ctx->idle_from - aio_clock_now(AIO_CLOCK_MONOTONIC);
    return left < 0 ? 0 : aio__earlier(left, soonest);
  }
  return soonest;
}

static bool is_co(const AioBH *bh) { return atomic_load_explicit(&bh->flags, memory_order_relaxed) & BH_CO; }

bool aio__bhs_due(const AioContext *ctx) {
  return !list_empty(&ctx->ready) && (int32_t)(first(&ctx->ready)->seq - ctx->bh_due) <= 0;
}

AioLink *aio__bhs_ready_co(AioContext *ctx) {
  return !list_empty(&ctx->ready) && is_co(first(&ctx->ready)) ? ctx->ready.next : NULL;
}

void aio__bhs_take_co(AioCo *co) { set_own_flags(&co->bh, 0); }

static bool run(AioContext *ctx, AioBH *bh) {
  AioFn *fn = bh->fn;
  void *opaque = bh->opaque;
  unsigned flags = clear_flags(bh, BH_QUEUED); /* acquires what was written before schedule */
  if (flags & BH_ONESHOT) aio__realloc(bh, 0);
  if (!(flags & (BH_SCHEDULED | BH_IDLE))) return false;
  ctx->stats.bhs++;
  aio__trace(AIO_TRACE_BH_RUN, bh, flags & BH_IDLE);
  fn(opaque);
  return flags & BH_SCHEDULED;
}

/* Those that are due stay in the context's list, at its front, where close, cancel and a nested turn find them: a
 * callback of this run can only add behind them, with a seq. */
static void run_idle(AioContext *ctx) {
  int64_t now = aio_clock_now(AIO_CLOCK_MONOTONIC);
  bool from_passed = now >= ctx->idle_from;
  AioLink *due = &ctx->idle;
  for (AioLink *l = ctx->idle.next, *next; l != &ctx->idle; l = next) {
    next = l->next;
    AioBH *bh = container_of(l, AioBH, link);
    if (bh->seq && !from_passed) continue;
    bh->seq = 0;
    list_unlink(l);
    list_insert_after(due, l);
    due = l;
  }
  if (due == &ctx->idle) return;
  ctx->idle_from = now + IDLE_NS;
  while (!list_empty(&ctx->idle) && !first(&ctx->idle)->seq) {
    AioBH *bh = first(&ctx->idle);
    list_unlink(&bh->link);
    run(ctx, bh);
  }
}

bool aio__bhs_run(AioContext *ctx) {
  bool progress = false;
  take_incoming(ctx);
  if (!list_empty(&ctx->idle)) promote_idle(ctx);
  aio__shuffle(ctx, &ctx->ready);
  ctx->bh_due = ctx->bh_seq;
  while (aio__bhs_due(ctx)) {
    AioBH *bh = first(&ctx->ready);
    list_unlink(&bh->link);
    if (is_co(bh))
      aio__bhs_take_co(container_of(bh, AioCo, bh)), aio__cos_run(ctx, container_of(bh, AioCo, bh)), progress = true;
    else
      progress |= run(ctx, bh);
  }
  while (!list_empty(&ctx->last)) aio__woken_run(ctx);
  if (!list_empty(&ctx->idle)) run_idle(ctx);
  return progress;
}

static void drop(AioLink *head) {
  while (!list_empty(head)) {
    AioBH *bh = first(head);
    list_unlink(&bh->link);
    unsigned flags = clear_flags(bh, BH_QUEUED);
    if (flags & BH_CO) atomic_store(&container_of(bh, AioCo, bh)->scheduled_by, NULL);
    if (flags & BH_ONESHOT) aio__realloc(bh, 0);
  }
}

void aio__bhs_drop(AioContext *ctx) {
  take_incoming(ctx);
  drop(&ctx->ready);
  drop(&ctx->idle);
}

/* ---- the half of co.c that needs to know BHs ---- */

bool aio__co_claim(AioCo *co, const char *who) {
  const char *nobody = NULL;
  if (!(atomic_load_explicit(&co->bh.flags, memory_order_relaxed) & BH_LOCAL))
    return atomic_compare_exchange_strong_explicit(&co->scheduled_by, &nobody, who, memory_order_acq_rel, memory_order_relaxed);
  if (atomic_load_explicit(&co->scheduled_by, memory_order_relaxed)) return false;
  atomic_store_explicit(&co->scheduled_by, who, memory_order_relaxed);
  return true;
}

int aio_co_schedule(AioCo *co, const char *who) {
  AioContext *ctx = co->bh.ctx;
  if (atomic_load_explicit(&ctx->closed, memory_order_relaxed)) return -ESHUTDOWN;
  if (!aio__co_claim(co, who)) return -EALREADY;
  aio__trace(AIO_TRACE_CO_SCHEDULE, co, 0);
  set_own_flags(&co->bh, BH_PENDING | BH_SCHEDULED); /* having claimed it, we alone link it */
  if (aio__is_home(ctx)) {
    enqueue(ctx, &co->bh);
  } else {
    push(ctx, &co->bh);
  }
  return 0;
}
