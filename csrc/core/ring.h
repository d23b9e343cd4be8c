/* SPDX-License-Identifier: MIT
 * io_uring through liburing: its header when this is built, its library when a context first asks for a ring.
 *
 * Keep     where either is missing, AIO_HAVE_URING is undefined or aio__uring returns NULL, and another engine or backend
 *          takes its place. Only inline functions of the header and those of the table may be called. */
#ifndef AIO_RING_H
#define AIO_RING_H

#include "internal.h"

#if __has_include(<liburing.h>)
#include <liburing.h>
#endif

#ifdef IORING_SETUP_DEFER_TASKRUN /* liburing 2.3 or later */
#define AIO_HAVE_URING 1

#define AIO_URING_FUNCTIONS(X)                                                        \
  X(io_uring_queue_init_params) X(io_uring_queue_exit) X(io_uring_submit)              \
  X(io_uring_submit_and_wait_timeout) X(io_uring_get_events) X(io_uring_submit_and_get_events)

typedef struct AioUring {
#define X(name) __typeof__(&name) name;
  AIO_URING_FUNCTIONS(X)
#undef X
} AioUring;

const AioUring *aio__uring(void); /* [any] NULL: there is no library */

#endif
#endif
