/* SPDX-License-Identifier: MIT
 * Adaptive polling: spin for a learned while before sleeping, because a sleep and a wake-up cost more than most waits.
 *
 * Way      aio_poll -> aio__spin (memory, tests, now and then the kernel) -> sleep -> aio__polling_learn
 * Threads  aio_set_polling: any. The rest: home.
 * Keep     a spin never outlasts the next deadline, and asks the kernel too, so fds without a test do not starve.
 * Source   the arithmetic is QEMU's: grow while waits are short, shrink when one was longer than the maximum. */
#include <errno.h>

#include "internal.h"

#define FIRST_NS INT64_C(4000)
enum { LOOKS_PER_ASK = 16 }; /* looks at memory, for each time the kernel is asked */

int aio_set_polling(AioContext *ctx, int64_t max_ns, int64_t grow, int64_t shrink) {
  if (max_ns < 0 || grow < 0 || shrink < 0) return -EINVAL;
  atomic_store(&ctx->poll_max, max_ns);
  atomic_store(&ctx->poll_grow, grow);
  atomic_store(&ctx->poll_shrink, shrink);
  atomic_store(&ctx->poll_ns, 0);
  if (aio__is_home(ctx))
    aio__kick(ctx);
  else
    aio_notify(ctx);
  return 0;
}

static bool ask(AioContext *ctx) { return aio__fds_wait(ctx, 0) > 0 || ctx->notifier_fired; }

/* A test may close the context: then there is nothing to sleep on any more. */
static bool look(AioContext *ctx) {
  if (aio__work_seen(ctx) || aio__fds_test(ctx) || aio_context_closed(ctx)) return true;
  return ctx->nwatches && ctx->mon->peek && ctx->mon->peek(ctx) && ask(ctx);
}

bool aio__spin(AioContext *ctx, int64_t timeout_ns) {
  int64_t now = aio_clock_now(AIO_CLOCK_MONOTONIC);
  int64_t span = aio__earlier(atomic_load_explicit(&ctx->poll_ns, memory_order_relaxed), timeout_ns);
  bool must_ask = ctx->nwatches && !ctx->mon->peek;
  for (int64_t end = now + span; now < end; now = aio_clock_now(AIO_CLOCK_MONOTONIC)) {
    for (int i = 0; i < LOOKS_PER_ASK; i++)
      if (look(ctx)) return true;
    if (must_ask && ask(ctx)) return true;
  }
  return look(ctx);
}

static void set_learned(AioContext *ctx, AioTracePoint point, int64_t ns) {
  atomic_store_explicit(&ctx->poll_ns, ns, memory_order_relaxed);
  aio__trace(point, ctx, ns);
}

void aio__polling_learn(AioContext *ctx, int64_t block) {
  int64_t cur = atomic_load_explicit(&ctx->poll_ns, memory_order_relaxed);
  int64_t max = atomic_load_explicit(&ctx->poll_max, memory_order_relaxed);
  int64_t grow = atomic_load_explicit(&ctx->poll_grow, memory_order_relaxed);
  int64_t shrink = atomic_load_explicit(&ctx->poll_shrink, memory_order_relaxed);
  if (block <= cur) return;
  if (block > max) {
    if (cur) set_learned(ctx, AIO_TRACE_POLL_SHRINK, shrink ? cur / shrink : 0);
  } else if (cur < max && block < max) {
    int64_t factor = grow ? grow : 2;
    int64_t next = !cur ? FIRST_NS : cur > max / factor ? max : cur * factor;
    set_learned(ctx, AIO_TRACE_POLL_GROW, aio__earlier(next, max));
  }
}
