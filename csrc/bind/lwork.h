/* SPDX-License-Identifier: MIT
 * What a job in Lua is, for those who submit it (lpool.c) and do it (lworker.c). */
#ifndef LWORK_H
#define LWORK_H

#include <stdatomic.h>

#include "lbind.h"

typedef struct LPaths { /* package.path and package.cpath */
  atomic_uint refs;
  size_t size, cpath; /* bytes in all; where the second begins */
  char text[];
} LPaths;

typedef struct LWork {
  LFlight f;
  AioJob job;
  LPaths *paths;     /* for a new state */
  LParcel *in, *out; /* out: what the function returned, or its error and traceback */
  const char *lost;  /* why there is no `out` */
  struct LWork *next_spare;
  bool failed;
} LWork;

void aioL_work_run(void *work); /* in a worker */

#endif
