/* SPDX-License-Identifier: MIT
 * Defer sections: what many callers of one stretch of code ask for, such as a submission to the kernel, is done once, at
 * its end.
 *
 * Way      aio_defer_begin -> aio_defer, any number of times -> aio_defer_end, the outermost -> run
 *          A turn's dispatch is a section. A poll inside of one runs what has been deferred before it waits for it.
 * Threads  home.
 * Keep     a function and argument that are there already are not added. The list is taken away before it is run, so that
 *          what runs may have a section of its own, or close the context: then the rest is not run. A list that is being
 *          run is linked in the context, where a poll within one of its calls finds what is left of it.
 * Source   QEMU's util/defer-call.c, by which block drivers batch their submissions. */
#include "internal.h"

typedef struct Run {
  AioLink link; /* in the context's list, the outermost first */
  AioDeferred *list;
  uint32_t at, n;
} Run;

void aio_defer_begin(AioContext *ctx) { ctx->sections++; }

static void run_rest(Run *r) {
  while (r->at < r->n) {
    AioDeferred d = r->list[r->at++];
    d.fn(d.opaque);
  }
}

static void run_own(AioContext *ctx) {
  while (ctx->ndeferred) {
    Run r = {.list = ctx->deferred, .n = ctx->ndeferred};
    uint32_t cap = ctx->deferred_cap;
    list_append(&ctx->defer_runs, &r.link);
    ctx->deferred = NULL;
    ctx->ndeferred = ctx->deferred_cap = 0;
    run_rest(&r);
    list_unlink(&r.link);
    if (ctx->deferred || aio_context_closed(ctx))
      aio__realloc(r.list, 0);
    else
      ctx->deferred = r.list, ctx->deferred_cap = cap; /* to be used again */
  }
}

void aio__defer_run(AioContext *ctx) {
  for (AioLink *l = ctx->defer_runs.next; l != &ctx->defer_runs; l = l->next) run_rest(container_of(l, Run, link));
  run_own(ctx);
}

bool aio__defer_pending(const AioContext *ctx) { return ctx->ndeferred || !list_empty(&ctx->defer_runs); }

void aio_defer_end(AioContext *ctx) {
  if (--ctx->sections == 0) run_own(ctx);
}

void aio_defer(AioContext *ctx, AioFn *fn, void *opaque) {
  for (uint32_t i = 0; i < ctx->ndeferred; i++)
    if (ctx->deferred[i].fn == fn && ctx->deferred[i].opaque == opaque) return;
  uint32_t need = ctx->ndeferred + 1;
  if (!ctx->sections || aio__grow((void **)&ctx->deferred, &ctx->deferred_cap, need, sizeof *ctx->deferred) < 0) {
    fn(opaque); /* no section, or no memory for the list: at once */
    return;
  }
  ctx->deferred[ctx->ndeferred++] = (AioDeferred){fn, opaque};
}

void aio__defer_drop(AioContext *ctx) {
  ctx->deferred = aio__realloc(ctx->deferred, 0);
  ctx->ndeferred = ctx->deferred_cap = 0;
  for (AioLink *l = ctx->defer_runs.next; l != &ctx->defer_runs; l = l->next) container_of(l, Run, link)->n = 0;
}
