/* SPDX-License-Identifier: MIT
 * Coroutines, as the loop sees them: objects with an enter function, scheduled from any thread, entered by the home one.
 *
 * Way      aio_co_schedule (bh.c) -> BH -> aio__co_run -> enter; aio_co_wake -> `woken` -> the same loop
 * Threads  aio_co_schedule, aio_co_wake: any. Entering: home.
 * Owner    the caller; enter may free the object, so nothing touches it afterwards.
 * Keep     one loop enters one coroutine after the other, so a chain of wake-ups needs constant C stack. What a running
 *          coroutine wakes goes to the front, in its order: A wakes B and D, B wakes C: B C D. */
#include <errno.h>

#include "internal.h"

enum { ENTRIES_AT_A_STRETCH = 1 << 17 }; /* then the rest of the loop has its turn: two that wake each other never end */

static void enter(AioContext *ctx, AioCo *co) {
  AioFn *fn = co->bh.fn;
  void *opaque = co->bh.opaque;
  atomic_store_explicit(&co->scheduled_by, NULL, memory_order_release); /* may be scheduled again from now on */
  aio__trace(AIO_TRACE_CO_ENTER, co, 0);
  ctx->stats.entries++;
  ctx->wake_at = &ctx->woken;
  ctx->running = co;
  fn(opaque);
  ctx->running = NULL;
}

static AioCo *next_woken(AioContext *ctx) {
  if (list_empty(&ctx->woken)) return NULL;
  AioLink *l = ctx->woken.next;
  list_unlink(l);
  return container_of(l, AioCo, bh.link);
}

void aio__co_run_locked(AioContext *ctx, AioCo *co) {
  for (int budget = ENTRIES_AT_A_STRETCH; co; co = --budget ? next_woken(ctx) : NULL) enter(ctx, co);
}

void aio__co_run(AioContext *ctx, AioCo *co) {
  aio_context_acquire(ctx);
  aio__co_run_locked(ctx, co);
  aio_context_release(ctx);
}

bool aio__woken_run(AioContext *ctx) {
  AioCo *co = next_woken(ctx);
  if (co) aio__co_run(ctx, co);
  return co != NULL;
}

int aio_co_wake(AioCo *co, const char *who) {
  AioContext *ctx = co->bh.ctx;
  if (!aio__is_home(ctx) || (ctx->shuffle && ctx->running)) return aio_co_schedule(co, who);
  const char *nobody = NULL;
  if (atomic_load_explicit(&ctx->closed, memory_order_relaxed)) return -ESHUTDOWN;
  if (!atomic_compare_exchange_strong(&co->scheduled_by, &nobody, who)) return -EALREADY;
  if (ctx->running) {
    list_insert_after(ctx->wake_at, &co->bh.link);
    ctx->wake_at = &co->bh.link;
  } else {
    aio__co_run(ctx, co);
  }
  return 0;
}

const char *aio_co_scheduled_by(const AioCo *co) { return atomic_load_explicit(&co->scheduled_by, memory_order_acquire); }
AioCo *aio_co_running(const AioContext *ctx) { return ctx->running; }

void aio_co_close(AioCo *co) {
  AioContext *ctx = co->bh.ctx;
  if (ctx->wake_at == &co->bh.link) ctx->wake_at = co->bh.link.prev;
  aio_bh_cancel(&co->bh);
  atomic_store_explicit(&co->scheduled_by, NULL, memory_order_release);
}

void aio__co_drop(AioContext *ctx) {
  for (AioCo *co; (co = next_woken(ctx));) atomic_store(&co->scheduled_by, NULL);
  ctx->wake_at = &ctx->woken;
}
