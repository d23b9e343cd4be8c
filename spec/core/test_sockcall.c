/* SPDX-License-Identifier: MIT
 * Sockets step by step, their options, and which of them are ready. */
/* wrap: poll getsockopt */
#include <poll.h>
#include <sys/socket.h>

#include "check.h"

static int poll_error, poll_times, getsockopt_times;

int __real_poll(struct pollfd *v, nfds_t n, int timeout);
int __wrap_poll(struct pollfd *v, nfds_t n, int timeout);
int __wrap_poll(struct pollfd *v, nfds_t n, int timeout) {
  if (!poll_times) return __real_poll(v, n, timeout);
  poll_times--;
  errno = poll_error;
  return -1;
}

int __real_getsockopt(int fd, int level, int name, void *value, socklen_t *len);
int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *len);
int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *len) {
  if (!getsockopt_times) return __real_getsockopt(fd, level, name, value, len);
  getsockopt_times--;
  errno = ENOMEM;
  return -1;
}

static void name(const char *what) { snprintf(check_name, sizeof check_name, "%s", what); }

static void take_steps(void) {
  name("steps");
  AioSockaddr a;
  char text[AIO_NAME_MAX];
  int port;
  CHECK_EQ(aio_sockaddr_numeric(&a, "127.0.0.1", 0), 0);
  int server = aio_socket_make(AIO_INET), client = aio_socket_make(AIO_INET);
  CHECK(server >= 0 && client >= 0);
  CHECK(fcntl(client, F_GETFL) & O_NONBLOCK);
  CHECK(fcntl(client, F_GETFD) & FD_CLOEXEC);
  CHECK_EQ(aio_socket_bind(server, &a), 0);
  CHECK_EQ(aio_socket_hear(server, 5), 0);
  CHECK(aio_socket_name(server, false, text, &port) > 0);
  CHECK_EQ(aio_sockaddr_numeric(&a, text, port), 0);
  CHECK_EQ(aio_socket_bind(client, &a), -EADDRINUSE);
  int rc = aio_socket_begin(client, &a);
  CHECK(rc == 0 || rc == -EINPROGRESS);
  while ((rc = aio_socket_outcome(client)) == -EINPROGRESS) {}
  CHECK_EQ(rc, 0);
  int peer;
  while ((peer = aio_socket_accept(server)) == -EAGAIN) {}
  CHECK(peer >= 0);
  CHECK_EQ(aio_socket_shutdown(client, false, true), 0);
  char c;
  ssize_t n;
  while ((n = read(peer, &c, 1)) < 0 && errno == EAGAIN) {}
  CHECK_EQ(n, 0);
  CHECK_EQ(aio_socket_shutdown(peer, true, true), 0);
  CHECK_EQ(aio_socket_shutdown(server, true, false) == 0 || errno == ENOTCONN, 1);
  getsockopt_times = 1;
  CHECK_EQ(aio_socket_outcome(client), -ENOMEM);
  close(peer), close(client), close(server);
  CHECK_EQ(aio_socket_begin(-1, &a), -EBADF);
  CHECK_EQ(aio_socket_hear(-1, 5), -EBADF);
  CHECK_EQ(aio_socket_shutdown(-1, true, true), -EBADF);
  CHECK(aio_host_name(text, sizeof text) == 0 && *text);
}

static void adopt(void) {
  name("adopt");
  AioListener l;
  AioSockaddr a;
  int fds[2], fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK_EQ(aio_socket_adopt(&l, fd), -EINVAL);
  CHECK_EQ(l.fd, -1);
  CHECK_EQ(aio_sockaddr_numeric(&a, "127.0.0.1", 0), 0);
  CHECK_EQ(aio_socket_bind(fd, &a), 0);
  CHECK_EQ(aio_socket_hear(fd, 1), 0);
  CHECK_EQ(aio_socket_adopt(&l, fd), 0);
  CHECK_EQ(l.fd, fd);
  CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
  aio_socket_unlisten(&l, false);
  CHECK_EQ(aio_socket_adopt(&l, fd), -EBADF);
  CHECK_EQ(aio_pipe_pair(fds), 0);
  CHECK_EQ(aio_socket_adopt(&l, fds[0]), -ENOTSOCK);
  close(fds[0]), close(fds[1]);
}

static void see_who_is_ready(void) {
  name("ready");
  enum { PAIRS = 100 }; /* more than are asked for at a time */
  AioReady v[2 * PAIRS];
  int fds[PAIRS][2];
  for (int i = 0; i < PAIRS; i++) {
    CHECK_EQ(aio_socket_pair(fds[i]), 0);
    v[2 * i] = (AioReady){.fd = fds[i][0], .wanted = 1 << AIO_READ};
    v[2 * i + 1] = (AioReady){.fd = fds[i][1], .wanted = 1 << AIO_READ};
  }
  CHECK_EQ(aio_ready(v, 0), 0);
  CHECK_EQ(aio_ready(v, 2 * PAIRS), 0);
  CHECK_EQ(write(fds[0][0], "x", 1), 1);
  CHECK_EQ(write(fds[PAIRS - 1][0], "x", 1), 1);
  CHECK_EQ(aio_ready(v, 2 * PAIRS), 2);
  CHECK_EQ(v[1].ready, 1 << AIO_READ);
  CHECK_EQ(v[0].ready, 0);
  CHECK_EQ(v[2 * PAIRS - 1].ready, 1 << AIO_READ);
  v[2].wanted = 3;
  CHECK_EQ(aio_ready(v, 2 * PAIRS), 3);
  CHECK_EQ(v[2].ready, 1 << AIO_WRITE);
  close(fds[1][1]);
  CHECK_EQ(aio_ready(v, 2 * PAIRS), 4);
  CHECK_EQ(v[2].ready, 3); /* its peer has gone */
  CHECK_EQ(v[3].ready, 1 << AIO_READ); /* it is no fd any more */
  poll_error = EINTR, poll_times = 3;
  CHECK_EQ(aio_ready(v, 2 * PAIRS), 4);
  poll_error = ENOMEM, poll_times = 1;
  CHECK_EQ(aio_ready(v, 2 * PAIRS), -ENOMEM);
  for (int i = 0; i < PAIRS; i++) {
    close(fds[i][0]);
    if (i != 1) close(fds[i][1]);
  }
}

static void set_options(void) {
  name("options");
  int fd = aio_socket_make(AIO_INET), value[2] = {1, 0};
  CHECK_EQ(aio_option_kind("none", true), AIO_OPTION_NONE);
  CHECK_EQ(aio_option_kind("error", true), AIO_OPTION_NONE);
  CHECK_EQ(aio_option_kind("error", false), AIO_OPTION_ERROR);
  CHECK_EQ(aio_option_kind("tcp-fastopen", false), AIO_OPTION_NONE);
  CHECK_EQ(aio_option_set(fd, "none", value), -ENOPROTOOPT);
  CHECK_EQ(aio_option_get(fd, "none", value), -ENOPROTOOPT);
  value[0] = 1;
  CHECK_EQ(aio_option_set(fd, "tcp-nodelay", value), 0);
  CHECK_EQ(aio_option_get(fd, "tcp-nodelay", value), 0);
  CHECK(value[0] != 0);
  value[0] = 1, value[1] = 7;
  CHECK_EQ(aio_option_set(fd, "linger", value), 0);
  value[0] = value[1] = 0;
  CHECK_EQ(aio_option_get(fd, "linger", value), 0);
  CHECK(value[0] == 1 && value[1] == 7);
  getsockopt_times = 2;
  CHECK_EQ(aio_option_get(fd, "linger", value), -ENOMEM);
  CHECK_EQ(aio_option_get(fd, "error", value), -ENOMEM);
  close(fd);
  CHECK_EQ(aio_option_set(-1, "keepalive", value), -EBADF);
}

int main(void) {
  take_steps();
  adopt();
  see_who_is_ready();
  set_options();
  return 0;
}
