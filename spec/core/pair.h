/* SPDX-License-Identifier: MIT
 * Two fds for the tests of watches: what is written to one end can be read from the other. */
#ifndef PAIR_H
#define PAIR_H

#include <sys/socket.h>
#include <unistd.h>

#include "check.h"

typedef struct Pair {
  int a, b;
} Pair;

static inline Pair new_socketpair(void) {
  int fds[2];
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
  return (Pair){fds[0], fds[1]};
}

static inline void close_pair(Pair p) {
  close(p.a);
  close(p.b);
}

static inline void put(int fd) { CHECK_EQ(write(fd, "x", 1), 1); }

#endif
