/* SPDX-License-Identifier: MIT
 * Loads liburing, which few scripts need and `require` should not wait for. */
#include <dlfcn.h>
#include <string.h>

#include "ring.h"

#ifdef AIO_HAVE_URING

static AioUring uring;
static bool have_uring;
static pthread_once_t loaded = PTHREAD_ONCE_INIT;

static void load(void) {
  void *lib = dlopen("liburing.so.2", RTLD_NOW | RTLD_LOCAL);
  have_uring = lib != NULL;
#define X(name)                                              \
  {                                                          \
    void *symbol = lib ? dlsym(lib, #name) : NULL;           \
    memcpy(&uring.name, &symbol, sizeof symbol);             \
    have_uring = have_uring && symbol;                       \
  }
  AIO_URING_FUNCTIONS(X)
#undef X
}

const AioUring *aio__uring(void) {
  pthread_once(&loaded, load);
  return have_uring ? &uring : NULL;
}

#else
typedef int AioNoUring; /* a translation unit may not be empty */
#endif
