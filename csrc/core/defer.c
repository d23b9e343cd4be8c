/* SPDX-License-Identifier: MIT
 * Defer sections: what many callers of one stretch of code ask for, such as a submission to the kernel, is done once, at
 * its end.
 *
 * Way      aio_defer_begin -> aio_defer, any number of times -> aio_defer_end, the outermost -> run
 *          A turn's dispatch is a section. A poll inside of one runs what has been deferred before it waits for it.
 * Threads  home.
 * Keep     a function and argument that are there already are not added. The list is taken away before it is run, so that
 *          what runs may have a section of its own, or close the context.
 * Source   QEMU's util/defer-call.c, by which block drivers batch their submissions. */
#include "internal.h"

void aio_defer_begin(AioContext *ctx) { ctx->sections++; }

void aio__defer_run(AioContext *ctx) {
  while (ctx->ndeferred) {
    AioDeferred *list = ctx->deferred;
    uint32_t n = ctx->ndeferred;
    ctx->deferred = NULL;
    ctx->ndeferred = ctx->deferred_cap = 0;
    for (uint32_t i = 0; i < n; i++) list[i].fn(list[i].opaque);
    if (ctx->deferred || aio_context_closed(ctx))
      aio__realloc(list, 0);
    else
      ctx->deferred = list, ctx->deferred_cap = n; /* to be used again; at least so many fit */
  }
}

void aio_defer_end(AioContext *ctx) {
  if (--ctx->sections == 0 && ctx->ndeferred) aio__defer_run(ctx);
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
}
