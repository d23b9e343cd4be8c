/* SPDX-License-Identifier: MIT
 * Addresses of sockets, and the sockets that are made with them.
 *
 * Threads  any.
 * Keep     every descriptor is close-on-exec and non-blocking from its first moment. The path of a Unix socket is removed
 *          by who has made it, and only while it is still the same. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "internal.h"

_Static_assert(sizeof(struct sockaddr_un) <= sizeof((AioSockaddr *)0)->data, "a path fits into an address");

static const struct sockaddr *sa_of(const AioSockaddr *a) { return (const struct sockaddr *)(const void *)a->data; }
static const struct sockaddr_in *in_of(const AioSockaddr *a) { return (const struct sockaddr_in *)(const void *)a->data; }
static const struct sockaddr_in6 *in6_of(const AioSockaddr *a) { return (const struct sockaddr_in6 *)(const void *)a->data; }
static const struct sockaddr_un *un_of(const AioSockaddr *a) { return (const struct sockaddr_un *)(const void *)a->data; }
static int family_of(const AioSockaddr *a) { return sa_of(a)->sa_family; }
static bool has_path(const AioSockaddr *a) { return family_of(a) == AF_UNIX && un_of(a)->sun_path[0]; }

/* ---- addresses ---- */

int aio_sockaddr_path(AioSockaddr *a, const char *path, size_t len) {
  struct sockaddr_un *un = (struct sockaddr_un *)(void *)a->data;
  bool abstract = len && (*path == '@' || !*path);
  *a = (AioSockaddr){.len = (uint32_t)(offsetof(struct sockaddr_un, sun_path) + len + !abstract)};
  if (!len || (!abstract && memchr(path, 0, len))) return -EINVAL;
  if (len + !abstract > sizeof un->sun_path) return -ENAMETOOLONG;
  un->sun_family = AF_UNIX;
  memcpy(un->sun_path, path, len);
  if (abstract) un->sun_path[0] = 0;
  return 0;
}

int aio_sockaddr_family(const AioSockaddr *a) {
  switch (family_of(a)) {
    case AF_INET: return AIO_INET;
    case AF_INET6: return AIO_INET6;
    case AF_UNIX: return AIO_UNIX;
    default: return AIO_ANY_FAMILY;
  }
}

/* What is written as usual, without asking getaddrinfo, which takes ten times as long. */
static bool plain(AioSockaddr *a, const char *host, int port) {
  struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
  if (inet_pton(AF_INET, host, &in.sin_addr) == 1) {
    a->len = sizeof in;
    memcpy(a->data, &in, sizeof in);
  } else if (inet_pton(AF_INET6, host, &in6.sin6_addr) == 1) {
    a->len = sizeof in6;
    memcpy(a->data, &in6, sizeof in6);
  } else {
    return false;
  }
  return true;
}

int aio_sockaddr_numeric(AioSockaddr *a, const char *host, int port) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV}, *list;
  char service[12];
  if (port < 0 || port > UINT16_MAX || !strcmp(host, "*")) return -EINVAL; /* which is no host at all to getaddrinfo */
  if (plain(a, host, port)) return 0;
  snprintf(service, sizeof service, "%d", port);
  if (getaddrinfo(host, service, &hints, &list)) return -EINVAL;
  *a = (AioSockaddr){.len = (uint32_t)list->ai_addrlen};
  memcpy(a->data, list->ai_addr, list->ai_addrlen);
  freeaddrinfo(list);
  return 0;
}

static void swap(AioSockaddr *a, AioSockaddr *b) {
  AioSockaddr c = *a;
  *a = *b;
  *b = c;
}

void aio_sockaddr_interleave(AioSockaddr *list, unsigned n) {
  for (unsigned i = 1; i < n; i++) {
    unsigned other = i;
    while (other < n && family_of(&list[other]) == family_of(&list[i - 1])) other++;
    if (other == n) return;
    for (; other > i; other--) swap(&list[other], &list[other - 1]);
  }
}

static int path_of(const AioSockaddr *a, char text[AIO_NAME_MAX]) {
  if (a->len <= offsetof(struct sockaddr_un, sun_path)) return 0;
  size_t len = a->len - offsetof(struct sockaddr_un, sun_path);
  memcpy(text, un_of(a)->sun_path, len);
  if (*text) return (int)strnlen(text, len);
  *text = '@';
  return (int)len;
}

int aio_sockaddr_text(const AioSockaddr *a, char text[AIO_NAME_MAX], int *port) {
  int family = family_of(a);
  *port = -1;
  if (family == AF_UNIX) return path_of(a, text);
  if (family != AF_INET && family != AF_INET6) return -EAFNOSUPPORT;
  const void *addr = family == AF_INET ? (const void *)&in_of(a)->sin_addr : (const void *)&in6_of(a)->sin6_addr;
  bool scoped = family == AF_INET6 && in6_of(a)->sin6_scope_id; /* the name of an interface belongs to it */
  *port = ntohs(family == AF_INET ? in_of(a)->sin_port : in6_of(a)->sin6_port);
  if (scoped ? getnameinfo(sa_of(a), a->len, text, AIO_NAME_MAX, NULL, 0, NI_NUMERICHOST) != 0
             : !inet_ntop(family, addr, text, AIO_NAME_MAX))
    return -EAFNOSUPPORT;
  return (int)strlen(text);
}

int aio_socket_name(int fd, bool peer, char text[AIO_NAME_MAX], int *port) {
  AioSockaddr a = {.len = 0};
  socklen_t len = sizeof a.data;
  int rc = peer ? getpeername(fd, (struct sockaddr *)(void *)a.data, &len) : getsockname(fd, (struct sockaddr *)(void *)a.data, &len);
  if (rc < 0) return -errno;
  a.len = len < sizeof a.data ? len : sizeof a.data;
  return aio_sockaddr_text(&a, text, port);
}

/* ---- making sockets ---- */

static void set_flag(int fd, int level, int name, int value) { setsockopt(fd, level, name, &value, sizeof value); }

static bool is_tcp(int family) { return family == AF_INET || family == AF_INET6; }

static void set_options(int fd, int family, const AioSocketOptions *o) {
  if (!is_tcp(family)) return;
  if (o->nodelay) set_flag(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  if (o->keepalive >= 0) set_flag(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  if (o->keepalive > 0) set_flag(fd, IPPROTO_TCP, TCP_KEEPIDLE, o->keepalive);
}

static int new_socket(int family, int type) {
  int fd = socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  return fd < 0 ? -errno : fd;
}

int aio__socket_connect(const AioSockaddr *a, const AioSocketOptions *o, int *fd) {
  *fd = new_socket(family_of(a), SOCK_STREAM);
  if (*fd < 0) return *fd;
  set_options(*fd, family_of(a), o);
  int rc;
  do rc = connect(*fd, sa_of(a), a->len);
  while (rc < 0 && errno == EINTR);
  return rc < 0 ? -errno : 0;
}

int aio__socket_error(int fd) {
  int error = 0;
  socklen_t len = sizeof error;
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0) return -errno;
  if (error) return -error;
  AioSockaddr peer;
  len = sizeof peer.data;
  if (getpeername(fd, (struct sockaddr *)(void *)peer.data, &len) == 0) return 0;
  return errno == ENOTCONN ? -EINPROGRESS : -errno;
}

/* ---- binding ---- */

/* A path that nobody is bound to any more was left by one that died. */
static bool is_stale(const AioSockaddr *a, int type) {
  struct stat st;
  if (!has_path(a) || lstat(un_of(a)->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode)) return false;
  int fd = new_socket(AF_UNIX, type);
  if (fd < 0) return false;
  bool refused = connect(fd, sa_of(a), a->len) < 0 && errno == ECONNREFUSED;
  close(fd);
  return refused;
}

static int bind_to(int fd, int type, const AioSockaddr *a) {
  if (bind(fd, sa_of(a), a->len) == 0) return 0;
  if (errno != EADDRINUSE) return -errno;
  if (!is_stale(a, type) || unlink(un_of(a)->sun_path) < 0) return -EADDRINUSE;
  return bind(fd, sa_of(a), a->len) < 0 ? -errno : 0;
}

int aio__socket_bind(int fd, int type, const AioSockaddr *a, AioPath *path) {
  struct stat st;
  int rc = bind_to(fd, type, a);
  if (rc == 0 && has_path(a) && lstat(un_of(a)->sun_path, &st) == 0) *path = (AioPath){st.st_dev, st.st_ino};
  return rc;
}

void aio__socket_remove_path(int fd, AioPath *path) {
  AioSockaddr a = {.len = 0};
  socklen_t len = sizeof a.data;
  struct stat st;
  if (fd >= 0 && path->ino && getsockname(fd, (struct sockaddr *)(void *)a.data, &len) == 0 &&
      lstat(un_of(&a)->sun_path, &st) == 0 && st.st_dev == path->dev && st.st_ino == path->ino)
    unlink(un_of(&a)->sun_path);
  *path = (AioPath){0, 0};
}

/* ---- listening ---- */

int aio_socket_listen(AioListener *l, const AioSockaddr *a, const AioSocketOptions *o) {
  int family = family_of(a);
  *l = (AioListener){.fd = new_socket(family, SOCK_STREAM)};
  if (l->fd < 0) return l->fd;
  if (is_tcp(family) && o->reuseaddr) set_flag(l->fd, SOL_SOCKET, SO_REUSEADDR, 1);
  if (is_tcp(family) && o->reuseport) set_flag(l->fd, SOL_SOCKET, SO_REUSEPORT, 1);
  if (family == AF_INET6 && o->v6only >= 0) set_flag(l->fd, IPPROTO_IPV6, IPV6_V6ONLY, o->v6only);
  set_options(l->fd, family, o); /* what it accepts has them too */
  int rc = aio__socket_bind(l->fd, SOCK_STREAM, a, &l->path);
  if (rc == 0 && listen(l->fd, o->backlog) < 0) rc = -errno;
  if (rc == 0) return 0;
  aio_socket_unlisten(l, false);
  return rc;
}

void aio_socket_unlisten(AioListener *l, bool keep_fd) {
  aio__socket_remove_path(l->fd, &l->path);
  if (l->fd >= 0 && !keep_fd) close(l->fd);
  *l = (AioListener){.fd = -1};
}

int aio_socket_adopt(AioListener *l, int fd) {
  int listens = 0, flags = fcntl(fd, F_GETFL);
  socklen_t len = sizeof listens;
  *l = (AioListener){.fd = -1};
  if (flags < 0 || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) < 0) return -errno;
  if (!listens) return -EINVAL;
  if (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) return -errno;
  l->fd = fd;
  return 0;
}

/* Errors of the network that accept reports in place of the connection that they befell; see accept(2). */
static bool befell_one(int error) {
  switch (error) {
    case ECONNABORTED: case EINTR: case EPROTO: case ENETDOWN: case ENOPROTOOPT: case EHOSTDOWN: case ENONET:
    case EHOSTUNREACH: case ENETUNREACH: case EPERM: return true;
    default: return false;
  }
}

int aio_socket_accept(int fd) {
  for (int i = 0; i < 64; i++) {
    int got = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (got >= 0) return got;
    if (!befell_one(errno)) return errno == EWOULDBLOCK ? -EAGAIN : -errno;
  }
  return -EAGAIN; /* others are to have their turn */
}

void aio_socket_close(int fd) { close(fd); }
int aio_socket_pair(int fds[2]) { return socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0 ? -errno : 0; }
int aio_pipe_pair(int fds[2]) { return pipe2(fds, O_NONBLOCK | O_CLOEXEC) < 0 ? -errno : 0; }
