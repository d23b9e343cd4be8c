/* SPDX-License-Identifier: MIT
 * A count of walkers joined with a lock: lists are walked without the lock, and freed by whoever holds it at count 0.
 *
 * Threads  any.
 * Keep     the count leaves 0 only under the lock; above 0 it moves without it.
 * Source   QEMU's lockcnt, over a pthread mutex so that ThreadSanitizer understands it. */
#include "internal.h"

int aio_lockcnt_init(AioLockCnt *lc) {
  atomic_init(&lc->count, 0);
  return -pthread_mutex_init(&lc->mutex, NULL);
}

void aio_lockcnt_destroy(AioLockCnt *lc) { pthread_mutex_destroy(&lc->mutex); }

/* Adds `delta` unless the count is `forbidden`; false: it was. */
static bool add_unless(AioLockCnt *lc, int delta, int forbidden) {
  int seen = atomic_load_explicit(&lc->count, memory_order_relaxed);
  while (seen != forbidden)
    if (atomic_compare_exchange_weak_explicit(&lc->count, &seen, seen + delta, memory_order_acq_rel, memory_order_relaxed))
      return true;
  return false;
}

void aio_lockcnt_inc(AioLockCnt *lc) {
  if (add_unless(lc, 1, 0)) return;
  pthread_mutex_lock(&lc->mutex);
  aio_lockcnt_inc_and_unlock(lc);
}

void aio_lockcnt_dec(AioLockCnt *lc) { atomic_fetch_sub_explicit(&lc->count, 1, memory_order_acq_rel); }

bool aio_lockcnt_dec_and_lock(AioLockCnt *lc) {
  if (add_unless(lc, -1, 1)) return false;
  pthread_mutex_lock(&lc->mutex);
  if (atomic_fetch_sub_explicit(&lc->count, 1, memory_order_acq_rel) == 1) return true;
  pthread_mutex_unlock(&lc->mutex); /* somebody began to walk while we waited for the lock */
  return false;
}

bool aio_lockcnt_dec_if_lock(AioLockCnt *lc) {
  if (aio_lockcnt_count(lc) != 1) return false;
  pthread_mutex_lock(&lc->mutex);
  int last = 1;
  if (atomic_compare_exchange_strong_explicit(&lc->count, &last, 0, memory_order_acq_rel, memory_order_relaxed)) return true;
  pthread_mutex_unlock(&lc->mutex);
  return false;
}

void aio_lockcnt_lock(AioLockCnt *lc) { pthread_mutex_lock(&lc->mutex); }
void aio_lockcnt_unlock(AioLockCnt *lc) { pthread_mutex_unlock(&lc->mutex); }

void aio_lockcnt_inc_and_unlock(AioLockCnt *lc) {
  atomic_fetch_add_explicit(&lc->count, 1, memory_order_acq_rel);
  pthread_mutex_unlock(&lc->mutex);
}

int aio_lockcnt_count(const AioLockCnt *lc) { return atomic_load_explicit(&lc->count, memory_order_acquire); }
