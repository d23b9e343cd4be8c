/* SPDX-License-Identifier: MIT
 * Sockets of datagrams: UDP, and Unix sockets that keep messages apart.
 *
 * Way      aio_datagram_open, bind or connect -> aio_datagram_send, aio_datagram_receive
 * Threads  whoever owns the socket.
 * Owner    the caller; aio_datagram_close closes the fd and removes the path.
 * Keep     nothing here waits. A datagram that is longer than the memory for it shows its true length. */
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

static const struct sockaddr *sa_of(const AioSockaddr *a) { return (const struct sockaddr *)(const void *)a->data; }

/* ---- options ---- */

typedef struct Setting {
  int value, level, name;
} Setting;

static int set_all(int fd, const Setting *s, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (s[i].value >= 0 && setsockopt(fd, s[i].level, s[i].name, &s[i].value, sizeof s[i].value) < 0) return -errno;
  return 0;
}

static int set_common(int fd, const AioDatagramOptions *o) {
  const Setting all[] = {{o->broadcast, SOL_SOCKET, SO_BROADCAST}, {o->reuseaddr, SOL_SOCKET, SO_REUSEADDR},
    {o->sndbuf, SOL_SOCKET, SO_SNDBUF}, {o->rcvbuf, SOL_SOCKET, SO_RCVBUF}};
  return set_all(fd, all, sizeof all / sizeof *all);
}

/* Also for what a socket of IPv6 sends to addresses of IPv4. */
static int set_inet(int fd, const AioDatagramOptions *o) {
  const Setting all[] = {{o->reuseport, SOL_SOCKET, SO_REUSEPORT}, {o->ttl, IPPROTO_IP, IP_TTL},
    {o->multicast_ttl, IPPROTO_IP, IP_MULTICAST_TTL}, {o->multicast_loop, IPPROTO_IP, IP_MULTICAST_LOOP}};
  const struct ip_mreqn interface = {.imr_ifindex = o->multicast_interface};
  int rc = set_all(fd, all, sizeof all / sizeof *all);
  if (rc < 0 || o->multicast_interface <= 0) return rc;
  return setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &interface, sizeof interface) < 0 ? -errno : 0;
}

static int set_inet6(int fd, const AioDatagramOptions *o) {
  const Setting all[] = {{o->v6only, IPPROTO_IPV6, IPV6_V6ONLY}, {o->ttl, IPPROTO_IPV6, IPV6_UNICAST_HOPS},
    {o->multicast_ttl, IPPROTO_IPV6, IPV6_MULTICAST_HOPS}, {o->multicast_loop, IPPROTO_IPV6, IPV6_MULTICAST_LOOP},
    {o->multicast_interface > 0 ? o->multicast_interface : -1, IPPROTO_IPV6, IPV6_MULTICAST_IF}};
  return set_all(fd, all, sizeof all / sizeof *all);
}

static int set_options(const AioDatagram *d, const AioDatagramOptions *o) {
  int rc = set_common(d->fd, o);
  if (rc == 0 && d->family != AIO_UNIX) rc = set_inet(d->fd, o);
  if (rc == 0 && d->family == AIO_INET6) rc = set_inet6(d->fd, o);
  return rc;
}

/* ---- life ---- */

int aio_datagram_open(AioDatagram *d, int family, const AioDatagramOptions *o) {
  static const int domains[] = {[AIO_ANY_FAMILY] = AF_UNSPEC, [AIO_INET] = AF_INET, [AIO_INET6] = AF_INET6, [AIO_UNIX] = AF_UNIX};
  *d = (AioDatagram){.family = family};
  d->fd = socket(domains[family], SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (d->fd < 0) return -errno;
  int rc = set_options(d, o);
  if (rc < 0) aio_datagram_close(d, false);
  return rc;
}

void aio_datagram_close(AioDatagram *d, bool keep_fd) {
  aio__socket_remove_path(d->fd, &d->path);
  if (d->fd >= 0 && !keep_fd) close(d->fd);
  d->fd = -1;
}

/* ---- addresses ---- */

/* A socket of IPv6 speaks to IPv4, too; what has no place at all is told apart from what is wrong with the address. */
static bool fits(const AioDatagram *d, const AioSockaddr *a) {
  int family = aio_sockaddr_family(a);
  return family == d->family || (family == AIO_INET && d->family == AIO_INET6);
}

int aio_datagram_bind(AioDatagram *d, const AioSockaddr *a) {
  if (aio_sockaddr_family(a) != d->family) return -EAFNOSUPPORT;
  return aio__socket_bind(d->fd, SOCK_DGRAM, a, &d->path);
}

int aio_datagram_connect(AioDatagram *d, const AioSockaddr *a) {
  if (!fits(d, a)) return -EAFNOSUPPORT;
  int rc;
  do rc = connect(d->fd, sa_of(a), a->len);
  while (rc < 0 && errno == EINTR);
  return rc < 0 ? -errno : 0;
}

int aio_interface_number(const char *name) {
  unsigned n = if_nametoindex(name);
  return n ? (int)n : errno ? -errno : -ENODEV;
}

/* Else Linux gives a socket what is sent to any group that somebody on this machine has joined. */
static int hear_no_others(int fd, int level) {
  int all = 0;
  int rc = setsockopt(fd, level, level == IPPROTO_IP ? IP_MULTICAST_ALL : IPV6_MULTICAST_ALL, &all, sizeof all);
  return rc < 0 && errno != ENOPROTOOPT ? -errno : 0;
}

int aio_datagram_member(AioDatagram *d, bool join, const AioSockaddr *group, int interface) {
  struct group_req req = {.gr_interface = (uint32_t)interface};
  if (!fits(d, group) || d->family == AIO_UNIX) return -EAFNOSUPPORT;
  int level = aio_sockaddr_family(group) == AIO_INET ? IPPROTO_IP : IPPROTO_IPV6;
  memcpy(&req.gr_group, group->data, group->len);
  int rc = join ? hear_no_others(d->fd, level) : 0;
  if (rc < 0) return rc;
  return setsockopt(d->fd, level, join ? MCAST_JOIN_GROUP : MCAST_LEAVE_GROUP, &req, sizeof req) < 0 ? -errno : 0;
}

/* ---- sending and receiving ---- */

int aio_datagram_send(AioDatagram *d, const void *data, size_t len, const AioSockaddr *to) {
  ssize_t n;
  if (to && !fits(d, to)) return -EAFNOSUPPORT;
  do n = sendto(d->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL, to ? sa_of(to) : NULL, to ? to->len : 0);
  while (n < 0 && errno == EINTR);
  return n >= 0 ? 0 : errno == EWOULDBLOCK ? -EAGAIN : -errno;
}

int64_t aio_datagram_receive(AioDatagram *d, void *buf, size_t len, AioSockaddr *from) {
  struct sockaddr *sa = (struct sockaddr *)(void *)from->data;
  socklen_t size;
  ssize_t n;
  do {
    size = sizeof from->data;
    n = recvfrom(d->fd, buf, len, MSG_DONTWAIT | MSG_TRUNC, sa, &size);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return errno == EWOULDBLOCK ? -EAGAIN : -errno;
  if (size < sizeof sa->sa_family) sa->sa_family = AF_UNIX; /* it has no name */
  from->len = size < sizeof from->data ? size : sizeof from->data;
  return n;
}
