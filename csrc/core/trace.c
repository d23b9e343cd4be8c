/* SPDX-License-Identifier: MIT
 * Trace points: one process-wide function that is told what the loop does; off, each point is one predictable branch.
 *
 * Threads  aio_trace_set before other threads use the loop; the function is called on whichever thread passes the point. */
#include "internal.h"

AioTracer aio__tracer;

static const char *const names[AIO_TRACE_POINTS] = {
  [AIO_TRACE_BH_RUN] = "bh_run",           [AIO_TRACE_CO_SCHEDULE] = "co_schedule", [AIO_TRACE_CO_ENTER] = "co_enter",
  [AIO_TRACE_TIMER_FIRE] = "timer_fire",   [AIO_TRACE_FD_DISPATCH] = "fd_dispatch", [AIO_TRACE_WAIT_BEGIN] = "wait_begin",
  [AIO_TRACE_WAIT_END] = "wait_end",       [AIO_TRACE_POLL_GROW] = "poll_grow",     [AIO_TRACE_POLL_SHRINK] = "poll_shrink",
};

const char *aio_trace_name(AioTracePoint point) { return (unsigned)point < AIO_TRACE_POINTS ? names[point] : NULL; }

void aio_trace_set(AioTraceFn *fn, void *opaque) {
  aio__tracer.opaque = opaque;
  atomic_store_explicit(&aio__tracer.fn, fn, memory_order_release);
}
