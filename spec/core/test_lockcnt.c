/* SPDX-License-Identifier: MIT
 * The count of walkers joined with a lock, alone and with threads that walk and free one list. */
#include "check.h"

static atomic_int others;

static void count(Loop *l) {
  AioLockCnt lc;
  (void)l;
  CHECK_EQ(aio_lockcnt_init(&lc), 0);
  CHECK_EQ(aio_lockcnt_count(&lc), 0);
  aio_lockcnt_inc(&lc);
  aio_lockcnt_inc(&lc);
  CHECK_EQ(aio_lockcnt_count(&lc), 2);
  CHECK(!aio_lockcnt_dec_and_lock(&lc));
  CHECK_EQ(aio_lockcnt_count(&lc), 1);
  CHECK(aio_lockcnt_dec_and_lock(&lc)); /* the last: holds the lock */
  CHECK_EQ(aio_lockcnt_count(&lc), 0);
  aio_lockcnt_unlock(&lc);
  aio_lockcnt_inc(&lc);
  aio_lockcnt_dec(&lc);
  CHECK_EQ(aio_lockcnt_count(&lc), 0);
  aio_lockcnt_destroy(&lc);
}

static void dec_if_lock(Loop *l) {
  AioLockCnt lc;
  (void)l;
  aio_lockcnt_init(&lc);
  aio_lockcnt_inc(&lc);
  aio_lockcnt_inc(&lc);
  CHECK(!aio_lockcnt_dec_if_lock(&lc)); /* nothing has changed, nothing is locked */
  CHECK_EQ(aio_lockcnt_count(&lc), 2);
  aio_lockcnt_lock(&lc);
  aio_lockcnt_unlock(&lc);
  aio_lockcnt_dec(&lc);
  CHECK(aio_lockcnt_dec_if_lock(&lc));
  CHECK_EQ(aio_lockcnt_count(&lc), 0);
  aio_lockcnt_inc_and_unlock(&lc);
  CHECK_EQ(aio_lockcnt_count(&lc), 1);
  CHECK(aio_lockcnt_dec_and_lock(&lc));
  aio_lockcnt_unlock(&lc);
  aio_lockcnt_destroy(&lc);
}

static void walk_under_lock(Loop *l) { /* a walker that is there already may be joined while the lock is held */
  AioLockCnt lc;
  (void)l;
  aio_lockcnt_init(&lc);
  aio_lockcnt_inc(&lc);
  aio_lockcnt_lock(&lc);
  aio_lockcnt_inc(&lc);
  CHECK_EQ(aio_lockcnt_count(&lc), 2);
  aio_lockcnt_unlock(&lc);
  CHECK(!aio_lockcnt_dec_and_lock(&lc));
  CHECK(aio_lockcnt_dec_and_lock(&lc));
  aio_lockcnt_unlock(&lc);
  aio_lockcnt_destroy(&lc);
}

static void *begin_walking(void *lc) {
  aio_lockcnt_inc(lc);
  atomic_fetch_add(&others, 1);
  return NULL;
}

/* At count 0 the lock keeps new walkers out. */
static void lock_keeps_walkers_out(Loop *l) {
  AioLockCnt lc;
  (void)l;
  aio_lockcnt_init(&lc);
  atomic_store(&others, 0);
  aio_lockcnt_lock(&lc);
  pthread_t t = start(begin_walking, &lc);
  for (int i = 0; i < 10000; i++) {
    sched_yield();
    CHECK_EQ(atomic_load(&others), 0);
    CHECK_EQ(aio_lockcnt_count(&lc), 0);
  }
  aio_lockcnt_unlock(&lc);
  pthread_join(t, NULL);
  CHECK_EQ(aio_lockcnt_count(&lc), 1);
  aio_lockcnt_destroy(&lc);
}

/* ---- a list that threads walk, mark and sweep ---- */

typedef struct Node {
  _Atomic(struct Node *) next;
  atomic_bool deleted;
  int poison; /* plain: a walker that meets a freed node reads it */
} Node;

static AioLockCnt guard;
static _Atomic(Node *) head;
static atomic_long freed, made;
static long rounds;

static void push_node(void) {
  Node *n = calloc(1, sizeof *n);
  n->poison = 42;
  Node *top = atomic_load(&head);
  do atomic_store(&n->next, top);
  while (!atomic_compare_exchange_weak(&head, &top, n));
  atomic_fetch_add(&made, 1);
}

/* Holding the lock with nobody walking. */
static void sweep(void) {
  _Atomic(Node *) *at = &head;
  for (Node *n; (n = atomic_load(at));) {
    if (!atomic_load(&n->deleted)) {
      at = &n->next;
      continue;
    }
    Node *top = n;
    if (!atomic_compare_exchange_strong(at, &top, atomic_load(&n->next))) continue; /* somebody pushed above */
    n->poison = 0;
    free(n);
    atomic_fetch_add(&freed, 1);
  }
}

static void *walk(void *opaque) {
  uint32_t seed = (uint32_t)(uintptr_t)opaque;
  for (long i = 0; i < rounds; i++) {
    aio_lockcnt_inc(&guard);
    if (atomic_load(&made) - atomic_load(&freed) < 32) push_node();
    for (Node *n = atomic_load(&head); n; n = atomic_load(&n->next)) {
      CHECK_EQ(n->poison, 42);
      if (rnd(&seed) % 4 == 0) atomic_store(&n->deleted, true);
    }
    if (rnd(&seed) % 4 == 0 && aio_lockcnt_dec_if_lock(&guard)) {
      sweep();
      aio_lockcnt_inc_and_unlock(&guard); /* goes on walking */
    }
    if (aio_lockcnt_dec_and_lock(&guard)) {
      sweep();
      aio_lockcnt_unlock(&guard);
    }
  }
  return NULL;
}

static void threads_walk_and_free(Loop *l) {
  pthread_t t[4];
  (void)l;
  rounds = check_scale(100000);
  atomic_store(&freed, 0);
  atomic_store(&made, 0);
  CHECK_EQ(aio_lockcnt_init(&guard), 0);
  for (uintptr_t i = 0; i < COUNT(t); i++) t[i] = start(walk, (void *)(i * 31 + 7));
  for (size_t i = 0; i < COUNT(t); i++) pthread_join(t[i], NULL);
  CHECK_EQ(aio_lockcnt_count(&guard), 0);
  for (Node *n = atomic_load(&head); n; n = atomic_load(&n->next)) atomic_store(&n->deleted, true);
  aio_lockcnt_lock(&guard);
  sweep();
  aio_lockcnt_unlock(&guard);
  CHECK_EQ(atomic_load(&freed), atomic_load(&made));
  CHECK(!atomic_load(&head));
  aio_lockcnt_destroy(&guard);
}

static const Test tests[] = {
  TEST_POLL(count),
  TEST_POLL(dec_if_lock),
  TEST_POLL(walk_under_lock),
  TEST_POLL(lock_keeps_walkers_out),
  TEST_POLL(threads_walk_and_free),
};

CHECK_MAIN(tests, "epoll")
