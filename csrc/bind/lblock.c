/* SPDX-License-Identifier: MIT
 * Blocks: the memory of buffers, and of what the kernel or another state works on meanwhile.
 *
 * Threads  counted from any; one that has an account is freed where its state runs.
 * Owner    everybody who counts it; the last one frees. */
#include <stdatomic.h>
#include <stdlib.h>

#include "lbind.h"

void aioL_block_unref(LBlock *block) {
  if (!block || atomic_fetch_sub_explicit(&block->refs, 1, memory_order_acq_rel) != 1) return;
  if (block->account) *block->account -= block->cap;
  free(block->data);
  free(block);
}

/* Aligned as files past the page cache want it, if it is large enough to matter. */
static char *new_data(size_t cap) {
  if (cap < AIO_FILE_ALIGN) return malloc(cap ? cap : 1);
  return aligned_alloc(AIO_FILE_ALIGN, (cap + AIO_FILE_ALIGN - 1) / AIO_FILE_ALIGN * AIO_FILE_ALIGN);
}

LBlock *aioL_block_new(size_t cap) { /* NULL: no memory */
  LBlock *block = malloc(sizeof *block);
  if (!block) return NULL;
  *block = (LBlock){.data = new_data(cap), .cap = cap};
  atomic_init(&block->refs, 1);
  if (block->data) return block;
  free(block);
  return NULL;
}

void aioL_block_wait(LBlock *block) { block->busy = block->waited = true; }

void aioL_block_leave(LBlock *block, bool read) {
  block->lost |= block->waited && read;
  block->waited = false;
}

void aioL_block_over(LBlock *block, bool read) {
  aioL_block_leave(block, read);
  block->busy = false;
}
