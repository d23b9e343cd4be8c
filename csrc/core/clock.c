/* SPDX-License-Identifier: MIT
 * Clocks: the kernel's three, and a virtual one that runs only when it is told to.
 *
 * Way      aio_vclock_advance -> next deadline of any context on the clock -> turns of that context -> next deadline
 * Threads  aio_clock_now: any. A virtual clock belongs to one thread, as do all contexts on it.
 * Owner    the caller; a clock that was freed lasts until its last context has left.
 * Keep     while it is paused, `now` is the time; while it runs, `now` is the time at monotonic `since`. */
#include <time.h>

#include "internal.h"

struct AioVClock {
  AioLink contexts;
  int64_t now, since;
  bool running, autojump, orphan;
};

int64_t aio_clock_now(AioClock clock) {
  static const clockid_t ids[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME};
  struct timespec ts;
  clock_gettime(ids[clock], &ts);
  return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

uint32_t aio_clock_coarse_ms(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
  return (uint32_t)(ts.tv_sec * INT64_C(1000) + ts.tv_nsec / 1000000);
}

AioVClock *aio_vclock_new(void) {
  AioVClock *vc = aio__realloc(NULL, sizeof *vc);
  if (!vc) return NULL;
  *vc = (AioVClock){.now = 0};
  list_init(&vc->contexts);
  return vc;
}

void aio_vclock_free(AioVClock *vc) {
  vc->orphan = true;
  if (list_empty(&vc->contexts)) aio__realloc(vc, 0);
}

int64_t aio_vclock_now(const AioVClock *vc) {
  return vc->running ? vc->now + aio_clock_now(AIO_CLOCK_MONOTONIC) - vc->since : vc->now;
}

static AioContext *context_at(AioLink *l) { return container_of(l, AioContext, vclock_link); }

/* What sleepers in other loops wait for has changed. */
static void changed(AioVClock *vc) {
  for (AioLink *l = vc->contexts.next; l != &vc->contexts; l = l->next) aio__kick(context_at(l));
}

void aio_vclock_pause(AioVClock *vc) {
  vc->now = aio_vclock_now(vc);
  vc->running = false;
  changed(vc);
}

void aio_vclock_resume(AioVClock *vc) {
  if (vc->running) return;
  vc->since = aio_clock_now(AIO_CLOCK_MONOTONIC);
  vc->running = true;
  changed(vc);
}

bool aio_vclock_autojump(AioVClock *vc, bool on) {
  bool was = vc->autojump;
  vc->autojump = on;
  changed(vc);
  return was;
}

/* Moves forward, never back. */
static void move_to(AioVClock *vc, int64_t t) {
  int64_t now = aio_vclock_now(vc);
  if (t <= now) return;
  vc->now = t;
  vc->since = vc->running ? aio_clock_now(AIO_CLOCK_MONOTONIC) : 0;
}

static int64_t first_deadline(const AioVClock *vc) {
  int64_t first = AIO_FOREVER;
  for (AioLink *l = vc->contexts.next; l != &vc->contexts; l = l->next)
    first = aio__earlier(first, aio__timers_first(context_at(l), AIO_CLOCK_VIRTUAL));
  return first;
}

/* The first context with a due timer or a pending BH; looked up anew each time, for a turn may close contexts. */
static AioContext *restless(const AioVClock *vc) {
  int64_t now = aio_vclock_now(vc);
  for (AioLink *l = vc->contexts.next; l != &vc->contexts; l = l->next) {
    AioContext *ctx = context_at(l);
    if (aio_context_busy(ctx) || aio__timers_first(ctx, AIO_CLOCK_VIRTUAL) <= now) return ctx;
  }
  return NULL;
}

static void turn(void *opaque) { aio_poll(opaque, 0); }

/* Runs what is due and what follows from it; bounded, for a BH may schedule itself for ever. */
static void settle(AioVClock *vc) {
  AioContext *ctx;
  for (int turns = 0; turns < 1000 && (ctx = restless(vc)); turns++) {
    list_unlink(&ctx->vclock_link);
    list_append(&vc->contexts, &ctx->vclock_link); /* the others are next */
    aio__around(ctx, turn);
  }
}

void aio_vclock_advance(AioVClock *vc, int64_t ns) {
  int64_t now = aio_vclock_now(vc);
  int64_t target = ns > AIO_FOREVER - 1 - now ? AIO_FOREVER - 1 : now + ns;
  settle(vc); /* what is pending happened before */
  for (int64_t t; (t = first_deadline(vc)) <= target && t > aio_vclock_now(vc);) {
    move_to(vc, t);
    settle(vc);
  }
  move_to(vc, target);
  settle(vc);
  changed(vc);
}

void aio__vclock_join(AioVClock *vc, AioContext *ctx) {
  ctx->vclock = vc;
  list_append(&vc->contexts, &ctx->vclock_link);
}

void aio__vclock_leave(AioContext *ctx) {
  AioVClock *vc = ctx->vclock;
  if (!vc) return;
  list_unlink(&ctx->vclock_link);
  ctx->vclock = NULL;
  if (vc->orphan && list_empty(&vc->contexts)) aio__realloc(vc, 0);
}

/* Not while threads or the kernel work for the context: their time is real, and whoever waits for them does not sleep. */
bool aio__vclock_jump(AioContext *ctx) {
  AioVClock *vc = ctx->vclock;
  if (!vc || !vc->autojump || aio__pool_jobs(ctx) || aio__file_ops(ctx)) return false;
  int64_t t = aio__timers_first(ctx, AIO_CLOCK_VIRTUAL);
  if (t == AIO_FOREVER) return false;
  move_to(vc, t);
  return true;
}

int64_t aio__vclock_timeout(const AioVClock *vc, int64_t deadline) {
  int64_t left = deadline - aio_vclock_now(vc);
  if (left <= 0) return 0;
  return vc->running ? left : AIO_FOREVER;
}
