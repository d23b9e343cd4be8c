/* SPDX-License-Identifier: MIT
 * Sockets step by step, for who wants to do between two steps what connect.c and aio_socket_listen do in one.
 *
 * Way      aio_socket_make -> aio_socket_bind -> aio_socket_begin -> (writable) aio_socket_outcome, or -> aio_socket_hear
 * Threads  any.
 * Keep     nothing here waits. */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

static const struct sockaddr *sa_of(const AioSockaddr *a) { return (const struct sockaddr *)(const void *)a->data; }

int aio_socket_make(int family) {
  int domain = family == AIO_INET ? AF_INET : family == AIO_INET6 ? AF_INET6 : AF_UNIX;
  int fd = socket(domain, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  return fd < 0 ? -errno : fd;
}

int aio_socket_bind(int fd, const AioSockaddr *a) { return bind(fd, sa_of(a), a->len) < 0 ? -errno : 0; }

int aio_socket_begin(int fd, const AioSockaddr *a) {
  int rc;
  do rc = connect(fd, sa_of(a), a->len);
  while (rc < 0 && errno == EINTR);
  return rc < 0 ? -errno : 0;
}

int aio_socket_outcome(int fd) { return aio__socket_error(fd); }
int aio_socket_hear(int fd, int backlog) { return listen(fd, backlog) < 0 ? -errno : 0; }

int aio_socket_shutdown(int fd, bool reading, bool writing) {
  int how = !writing ? SHUT_RD : reading ? SHUT_RDWR : SHUT_WR;
  return shutdown(fd, how) < 0 ? -errno : 0;
}

int aio_host_name(char *name, size_t size) {
  if (gethostname(name, size) < 0) return -errno;
  name[size - 1] = 0;
  return 0;
}

/* ---- which of them are ready ---- */

enum { FEW = 64 };

static unsigned note(AioReady *r, short got) {
  unsigned failed = got & (POLLERR | POLLNVAL) ? r->wanted : 0;
  r->ready = failed | (got & (POLLIN | POLLHUP) ? r->wanted & 1U << AIO_READ : 0);
  if (got & POLLOUT) r->ready |= r->wanted & 1U << AIO_WRITE;
  return r->ready != 0;
}

static int ask_few(AioReady *v, unsigned n) {
  struct pollfd p[FEW];
  unsigned count = 0;
  for (unsigned i = 0; i < n; i++) {
    short events = (short)((v[i].wanted & 1U << AIO_READ ? POLLIN : 0) | (v[i].wanted & 1U << AIO_WRITE ? POLLOUT : 0));
    p[i] = (struct pollfd){.fd = v[i].fd, .events = events};
  }
  int rc;
  do rc = poll(p, n, 0);
  while (rc < 0 && errno == EINTR);
  if (rc < 0) return -errno;
  for (unsigned i = 0; i < n; i++) count += note(&v[i], p[i].revents);
  return (int)count;
}

int aio_ready(AioReady *v, unsigned n) {
  int count = 0;
  for (unsigned i = 0; i < n; i += FEW) {
    int rc = ask_few(v + i, n - i < FEW ? n - i : FEW);
    if (rc < 0) return rc;
    count += rc;
  }
  return count;
}
