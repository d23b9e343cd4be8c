/* SPDX-License-Identifier: MIT
 * Coroutines, as the loop sees them: objects with an enter function, scheduled from any thread, entered by the home one.
 *
 * Way      aio_co_schedule (bh.c) -> BH -> aio__cos_run -> enter; aio_co_wake -> `woken` -> the same loop. An enter function
 *          may ask aio_co_next for the next one itself: who has left a coroutine by longjmp returns dearly, for the
 *          processor has forgotten where to. aio_co_wake_last -> `last` -> `woken`, when nobody else is due.
 * Threads  aio_co_schedule, aio_co_wake: any. Entering: home.
 * Owner    the caller; enter may free the object, so nothing touches it afterwards.
 * Keep     one loop enters one coroutine after the other, so a chain of wake-ups needs constant C stack. What a running
 *          coroutine wakes goes to the front, in its order: A wakes B and D, B wakes C: B C D. */
#include <errno.h>

#include "internal.h"

enum { ENTRIES_AT_A_STRETCH = 1 << 17 }; /* then the rest of the loop has its turn: two that wake each other never end */

/* From here until it returns, or asks for the next one, co is the one that runs. */
static void begin(AioContext *ctx, AioCo *co) {
  atomic_store_explicit(&co->scheduled_by, NULL, memory_order_release); /* may be scheduled again from now on */
  aio__trace(AIO_TRACE_CO_ENTER, co, 0);
  ctx->stats.entries++;
  ctx->wake_at = &ctx->woken;
  ctx->running = co;
}

static AioLink *due(AioContext *ctx) { return aio__bhs_due(ctx) || aio__next_round(ctx) ? aio__bhs_ready_co(ctx) : NULL; }

/* Before whoever is woken still when the stretch is over: they may wake one another for ever. */
void aio__wake_last(AioContext *ctx) {
  list_append_all(&ctx->last, &ctx->woken);
  list_append_all(&ctx->woken, &ctx->last);
}

/* Who comes next, taken from its queue: somebody who was woken, or who is due in this turn; `fn`: if it is entered by that. */
static AioCo *next(AioContext *ctx, AioFn *fn) {
  AioStretch *s = ctx->stretch;
  AioLink *l = ctx->woken.next;
  bool woken = l != &ctx->woken && --s->left > 0;
  if (!woken && !(l = s->in_turn ? due(ctx) : NULL)) {
    if (list_empty(&ctx->last) || aio__bhs_due(ctx)) return NULL;
    aio__wake_last(ctx);
    return next(ctx, fn);
  }
  AioCo *co = container_of(l, AioCo, bh.link);
  if (fn && co->bh.fn != fn) return NULL;
  list_unlink(l);
  if (!woken) aio__bhs_take_co(co), s->left = ENTRIES_AT_A_STRETCH;
  return co;
}

static void enter_all(AioContext *ctx, AioCo *co, bool in_turn) {
  AioStretch stretch = {.in_turn = in_turn, .left = ENTRIES_AT_A_STRETCH}, *outer = ctx->stretch;
  ctx->stretch = &stretch;
  aio_context_acquire(ctx);
  for (; co; co = next(ctx, NULL)) {
    begin(ctx, co);
    co->bh.fn(co->bh.opaque);
    ctx->running = NULL;
  }
  aio_context_release(ctx);
  ctx->stretch = outer;
}

void aio__co_run(AioContext *ctx, AioCo *co) { enter_all(ctx, co, false); }
void aio__cos_run(AioContext *ctx, AioCo *co) { enter_all(ctx, co, true); }

void *aio_co_next(AioContext *ctx, AioFn *fn) {
  ctx->running = NULL;
  AioCo *co = next(ctx, fn);
  if (!co) return NULL;
  begin(ctx, co);
  return co->bh.opaque;
}

bool aio__cos_woken(const AioContext *ctx) { return !list_empty(&ctx->woken) || !list_empty(&ctx->last); }

bool aio__woken_run(AioContext *ctx) {
  aio__wake_last(ctx);
  if (list_empty(&ctx->woken)) return false;
  AioLink *l = ctx->woken.next;
  list_unlink(l);
  aio__co_run(ctx, container_of(l, AioCo, bh.link));
  return true;
}

int aio_co_wake(AioCo *co, const char *who) {
  AioContext *ctx = co->bh.ctx;
  if (!aio__is_home(ctx) || (ctx->shuffle && ctx->running)) return aio_co_schedule(co, who);
  if (atomic_load_explicit(&ctx->closed, memory_order_relaxed)) return -ESHUTDOWN;
  if (!aio__co_claim(co, who)) return -EALREADY;
  if (ctx->running) {
    list_insert_after(ctx->wake_at, &co->bh.link);
    ctx->wake_at = &co->bh.link;
  } else {
    aio__co_run(ctx, co);
  }
  return 0;
}

int aio_co_wake_last(AioCo *co, const char *who) {
  AioContext *ctx = co->bh.ctx;
  if (!aio__is_home(ctx) || ctx->shuffle || !ctx->running) return aio_co_schedule(co, who);
  if (atomic_load_explicit(&ctx->closed, memory_order_relaxed)) return -ESHUTDOWN;
  if (!aio__co_claim(co, who)) return -EALREADY;
  list_append(&ctx->last, &co->bh.link);
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
  aio__wake_last(ctx);
  while (!list_empty(&ctx->woken)) {
    AioLink *l = ctx->woken.next;
    list_unlink(l);
    atomic_store(&container_of(l, AioCo, bh.link)->scheduled_by, NULL);
  }
  ctx->wake_at = &ctx->woken;
}
