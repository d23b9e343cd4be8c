/* SPDX-License-Identifier: MIT
 * Datagrams: what is sent arrives whole or is known to be cut, options and groups, with the system calls behind them failing. */
/* wrap: socket setsockopt bind connect sendto recvfrom close unlink if_nametoindex */
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "check.h"

/* ---- system calls that fail ---- */

typedef struct Fault {
  int error, times; /* fails so often with that */
  int after;        /* but not before so many calls */
  int calls, injected;
} Fault;

static Fault on_socket, on_setsockopt, on_bind, on_connect, on_send, on_receive, on_unlink, on_interface;
static int closes;

static bool fails(Fault *f) {
  if (f->calls++ < f->after || f->times == 0) return false;
  f->times--;
  f->injected++;
  errno = f->error;
  return true;
}

static void no_faults(void) {
  on_socket = on_setsockopt = on_bind = on_connect = on_send = on_receive = on_unlink = on_interface = (Fault){.error = 0};
  closes = 0;
}

int __real_socket(int family, int type, int protocol);
int __wrap_socket(int family, int type, int protocol);
int __wrap_socket(int family, int type, int protocol) {
  CHECK(type & SOCK_NONBLOCK && type & SOCK_CLOEXEC);
  return fails(&on_socket) ? -1 : __real_socket(family, type, protocol);
}

int __real_setsockopt(int fd, int level, int name, const void *value, socklen_t len);
int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t len);
int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t len) {
  return fails(&on_setsockopt) ? -1 : __real_setsockopt(fd, level, name, value, len);
}

int __real_bind(int fd, const struct sockaddr *a, socklen_t len);
int __wrap_bind(int fd, const struct sockaddr *a, socklen_t len);
int __wrap_bind(int fd, const struct sockaddr *a, socklen_t len) { return fails(&on_bind) ? -1 : __real_bind(fd, a, len); }

int __real_connect(int fd, const struct sockaddr *a, socklen_t len);
int __wrap_connect(int fd, const struct sockaddr *a, socklen_t len);
int __wrap_connect(int fd, const struct sockaddr *a, socklen_t len) { return fails(&on_connect) ? -1 : __real_connect(fd, a, len); }

ssize_t __real_sendto(int fd, const void *buf, size_t n, int flags, const struct sockaddr *a, socklen_t len);
ssize_t __wrap_sendto(int fd, const void *buf, size_t n, int flags, const struct sockaddr *a, socklen_t len);
ssize_t __wrap_sendto(int fd, const void *buf, size_t n, int flags, const struct sockaddr *a, socklen_t len) {
  CHECK_EQ(flags, MSG_NOSIGNAL | MSG_DONTWAIT);
  return fails(&on_send) ? -1 : __real_sendto(fd, buf, n, flags, a, len);
}

ssize_t __real_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *a, socklen_t *len);
ssize_t __wrap_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *a, socklen_t *len);
ssize_t __wrap_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *a, socklen_t *len) {
  CHECK_EQ(flags, MSG_TRUNC | MSG_DONTWAIT);
  if (!fails(&on_receive)) return __real_recvfrom(fd, buf, n, flags, a, len);
  *len = 0; /* the next attempt must not take that for the room there is */
  return -1;
}

int __real_unlink(const char *path);
int __wrap_unlink(const char *path);
int __wrap_unlink(const char *path) { return fails(&on_unlink) ? -1 : __real_unlink(path); }

unsigned __real_if_nametoindex(const char *name);
unsigned __wrap_if_nametoindex(const char *name);
unsigned __wrap_if_nametoindex(const char *name) { return fails(&on_interface) ? 0 : __real_if_nametoindex(name); }

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd) {
  closes++;
  return __real_close(fd);
}

/* ---- sockets ---- */

static const AioDatagramOptions defaults = {-1, -1, -1, -1, -1, -1, -1, -1, -1, 0};

static bool has_inet6(void) {
  AioDatagram d;
  AioSockaddr a;
  CHECK_EQ(aio_sockaddr_numeric(&a, "::1", 0), 0);
  bool there = aio_datagram_open(&d, AIO_INET6, &defaults) == 0 && aio_datagram_bind(&d, &a) == 0;
  aio_datagram_close(&d, false);
  if (!there) printf("skipped: no IPv6 here\n");
  return there;
}

/* A socket on this machine, and where it is. */
static void open_at(AioDatagram *d, int family, AioSockaddr *at, const AioDatagramOptions *o) {
  static int count;
  char text[AIO_NAME_MAX];
  int port;
  CHECK_EQ(aio_datagram_open(d, family, o), 0);
  if (family == AIO_UNIX) {
    snprintf(text, sizeof text, "@aioloop-test-%d-%d", (int)getpid(), ++count);
    CHECK_EQ(aio_sockaddr_path(at, text, strlen(text)), 0);
    CHECK_EQ(aio_datagram_bind(d, at), 0);
    return;
  }
  const char *host = family == AIO_INET ? "127.0.0.1" : "::1";
  CHECK_EQ(aio_sockaddr_numeric(at, host, 0), 0);
  CHECK_EQ(aio_datagram_bind(d, at), 0);
  CHECK(aio_socket_name(d->fd, false, text, &port) > 0);
  CHECK_STR(text, host);
  CHECK_EQ(aio_sockaddr_numeric(at, host, port), 0);
}

static int64_t receive(AioDatagram *d, void *buf, size_t len, AioSockaddr *from) {
  int64_t n;
  while ((n = aio_datagram_receive(d, buf, len, from)) == -EAGAIN) continue;
  return n;
}

static bool are_same(const AioSockaddr *a, const AioSockaddr *b) {
  char ta[AIO_NAME_MAX], tb[AIO_NAME_MAX];
  int pa, pb, na = aio_sockaddr_text(a, ta, &pa), nb = aio_sockaddr_text(b, tb, &pb);
  return na == nb && na >= 0 && pa == pb && !memcmp(ta, tb, (size_t)na);
}

static void test_back_and_forth(Loop *l) {
  static char long_one[70000], buf[AIO_DATAGRAM_MAX];
  (void)l;
  no_faults();
  memset(long_one, 'x', sizeof long_one);
  bool inet6 = has_inet6();
  for (int family = AIO_INET; family <= AIO_UNIX; family++) {
    AioDatagram a, b;
    AioSockaddr at_a, at_b, from;
    if (family == AIO_INET6 && !inet6) continue;
    open_at(&a, family, &at_a, &defaults);
    open_at(&b, family, &at_b, &defaults);
    CHECK_EQ(fcntl(a.fd, F_GETFD), FD_CLOEXEC);
    CHECK_EQ(aio_datagram_receive(&b, buf, sizeof buf, &from), -EAGAIN);
    size_t sizes[] = {5, 0, 1, 60000, 0};
    for (size_t i = 0; i < COUNT(sizes); i++) {
      CHECK_EQ(aio_datagram_send(&a, long_one, sizes[i], &at_b), 0);
      CHECK_EQ(receive(&b, buf, sizeof buf, &from), (long long)sizes[i]);
      CHECK(!memcmp(buf, long_one, sizes[i]));
      CHECK(are_same(&from, &at_a));
      CHECK_EQ(aio_datagram_send(&b, "back", 4, &from), 0);
      CHECK_EQ(receive(&a, buf, sizeof buf, &from), 4);
      CHECK(are_same(&from, &at_b));
    }
    /* Cut, and known to be. */
    memset(buf, 0, sizeof buf);
    CHECK_EQ(aio_datagram_send(&a, "12345", 5, &at_b), 0);
    CHECK_EQ(receive(&b, buf, 2, &from), 5);
    CHECK_STR(buf, "12");
    CHECK_EQ(aio_datagram_receive(&b, buf, sizeof buf, &from), -EAGAIN);
    if (family != AIO_UNIX) CHECK_EQ(aio_datagram_send(&a, long_one, sizeof long_one, &at_b), -EMSGSIZE);
    CHECK_EQ(aio_datagram_send(&a, "x", 1, NULL), family == AIO_UNIX ? -ENOTCONN : -EDESTADDRREQ);
    CHECK_EQ(aio_datagram_connect(&a, &at_b), 0);
    CHECK_EQ(aio_datagram_send(&a, "x", 1, NULL), 0);
    CHECK_EQ(receive(&b, buf, 1, &from), 1);
    aio_datagram_close(&a, false);
    aio_datagram_close(&b, false);
    aio_datagram_close(&b, false);
    CHECK_EQ(b.fd, -1);
  }
}

static void test_nameless(Loop *l) {
  (void)l;
  AioDatagram a, b;
  AioSockaddr at, from;
  char text[AIO_NAME_MAX], buf[4];
  int port;
  no_faults();
  open_at(&a, AIO_UNIX, &at, &defaults);
  CHECK_EQ(aio_datagram_open(&b, AIO_UNIX, &defaults), 0);
  memset(&from, 0xff, sizeof from);
  CHECK_EQ(aio_datagram_send(&b, "x", 1, &at), 0);
  CHECK_EQ(receive(&a, buf, sizeof buf, &from), 1);
  CHECK_EQ(aio_sockaddr_text(&from, text, &port), 0);
  CHECK_EQ(port, -1);
  aio_datagram_close(&a, false);
  aio_datagram_close(&b, false);
}

/* A socket of IPv6 speaks to IPv4, but no other two families go together. */
static void test_families(Loop *l) {
  (void)l;
  AioDatagram inet, inet6, un;
  AioSockaddr at, at6, at_un, from;
  char buf[4], text[AIO_NAME_MAX];
  int port;
  no_faults();
  open_at(&inet, AIO_INET, &at, &defaults);
  open_at(&un, AIO_UNIX, &at_un, &defaults);
  CHECK_EQ(aio_datagram_send(&inet, "x", 1, &at_un), -EAFNOSUPPORT);
  CHECK_EQ(aio_datagram_send(&un, "x", 1, &at), -EAFNOSUPPORT);
  CHECK_EQ(aio_datagram_connect(&un, &at), -EAFNOSUPPORT);
  CHECK_EQ(aio_datagram_bind(&inet, &at_un), -EAFNOSUPPORT);
  CHECK_EQ(aio_datagram_member(&un, true, &at_un, 0), -EAFNOSUPPORT);
  if (has_inet6()) {
    CHECK_EQ(aio_sockaddr_numeric(&at6, "::1", 9), 0);
    CHECK_EQ(aio_datagram_send(&inet, "x", 1, &at6), -EAFNOSUPPORT);
    CHECK_EQ(aio_datagram_member(&inet, true, &at6, 0), -EAFNOSUPPORT);
    CHECK_EQ(aio_datagram_open(&inet6, AIO_INET6, &defaults), 0);
    CHECK_EQ(aio_datagram_bind(&inet6, &at), -EAFNOSUPPORT);
    CHECK_EQ(aio_datagram_send(&inet6, "x", 1, &at), 0);
    CHECK_EQ(receive(&inet, buf, 4, &from), 1);
    CHECK_EQ(aio_datagram_send(&inet, "y", 1, &from), 0);
    CHECK_EQ(receive(&inet6, buf, 4, &from), 1);
    CHECK(aio_sockaddr_text(&from, text, &port) > 0);
    CHECK_STR(text, "::ffff:127.0.0.1");
    CHECK_EQ(aio_datagram_send(&inet6, "z", 1, &from), 0);
    CHECK_EQ(receive(&inet, buf, 4, &from), 1);
    aio_datagram_close(&inet6, false);
    AioDatagramOptions only = defaults;
    only.v6only = 1;
    CHECK_EQ(aio_datagram_open(&inet6, AIO_INET6, &only), 0);
    CHECK_EQ(aio_datagram_send(&inet6, "x", 1, &at), -ENETUNREACH);
    aio_datagram_close(&inet6, false);
  }
  aio_datagram_close(&inet, false);
  aio_datagram_close(&un, false);
}

/* ---- system calls ---- */

static void test_faults(Loop *l) {
  (void)l;
  AioDatagram a, b;
  AioSockaddr at, from;
  char buf[8];
  no_faults();
  open_at(&a, AIO_INET, &at, &defaults);
  CHECK_EQ(aio_datagram_open(&b, AIO_INET, &defaults), 0);
  on_connect = (Fault){.error = EINTR, .times = 2};
  CHECK_EQ(aio_datagram_connect(&b, &at), 0);
  CHECK_EQ(on_connect.injected, 2);
  on_send = (Fault){.error = EINTR, .times = 3};
  CHECK_EQ(aio_datagram_send(&b, "x", 1, NULL), 0);
  CHECK_EQ(on_send.injected, 3);
  on_receive = (Fault){.error = EINTR, .times = 3};
  CHECK_EQ(receive(&a, buf, sizeof buf, &from), 1);
  CHECK_EQ(on_receive.injected, 3);
  CHECK_EQ(aio_sockaddr_family(&from), AIO_INET);
  int told[] = {EAGAIN, ENOBUFS, ENOMEM, ECONNREFUSED, EPERM, EIO};
  for (size_t i = 0; i < COUNT(told); i++) {
    on_send = on_receive = on_bind = on_connect = (Fault){.error = told[i], .times = 1};
    CHECK_EQ(aio_datagram_send(&b, "x", 1, NULL), -told[i]);
    CHECK_EQ(aio_datagram_receive(&a, buf, sizeof buf, &from), -told[i]);
    CHECK_EQ(aio_datagram_bind(&b, &at), -told[i]);
    CHECK_EQ(aio_datagram_connect(&b, &at), -told[i]);
  }
  CHECK_EQ(aio_datagram_send(&b, "y", 1, NULL), 0); /* and it is as good as before */
  CHECK_EQ(receive(&a, buf, sizeof buf, &from), 1);
  CHECK_EQ(*buf, 'y');
  int before = closes, fd = a.fd;
  aio_datagram_close(&a, true);
  CHECK_EQ(closes, before);
  CHECK(fcntl(fd, F_GETFD) >= 0);
  CHECK_EQ(a.fd, -1);
  aio_datagram_close(&b, false);
  CHECK_EQ(closes, before + 1);
  close(fd);
  on_interface = (Fault){.error = ENOMEM, .times = 1};
  CHECK_EQ(aio_interface_number("lo"), -ENOMEM);
  CHECK(aio_interface_number("lo") > 0);
  CHECK_EQ(aio_interface_number("no such one"), -ENODEV);
}

/* Nobody is there: told once, to whoever comes next, and the socket goes on. */
static void test_refused(Loop *l) {
  (void)l;
  AioDatagram a, gone;
  AioSockaddr at, from;
  char buf[8];
  no_faults();
  open_at(&gone, AIO_INET, &at, &defaults);
  CHECK_EQ(aio_datagram_open(&a, AIO_INET, &defaults), 0);
  CHECK_EQ(aio_datagram_connect(&a, &at), 0);
  aio_datagram_close(&gone, false);
  CHECK_EQ(aio_datagram_send(&a, "x", 1, NULL), 0);
  CHECK_EQ(receive(&a, buf, 8, &from), -ECONNREFUSED);
  CHECK_EQ(aio_datagram_receive(&a, buf, 8, &from), -EAGAIN);
  CHECK_EQ(aio_datagram_send(&a, "x", 1, NULL), 0);
  int rc;
  while ((rc = aio_datagram_send(&a, "x", 1, NULL)) == 0) continue;
  CHECK_EQ(rc, -ECONNREFUSED);
  CHECK_EQ(aio_datagram_open(&gone, AIO_INET, &defaults), 0);
  CHECK_EQ(aio_datagram_bind(&gone, &at), 0);
  while ((rc = aio_datagram_send(&a, "here", 4, NULL)) == -ECONNREFUSED) continue;
  CHECK_EQ(rc, 0);
  CHECK_EQ(receive(&gone, buf, 8, &from), 4);
  aio_datagram_close(&a, false);
  aio_datagram_close(&gone, false);
}

/* ---- options ---- */

static int option(int fd, int level, int name) {
  int value = -1;
  socklen_t len = sizeof value;
  CHECK_EQ(getsockopt(fd, level, name, &value, &len), 0);
  return value;
}

static void check_inet(int fd) {
  CHECK_EQ(option(fd, SOL_SOCKET, SO_BROADCAST), 1);
  CHECK_EQ(option(fd, SOL_SOCKET, SO_REUSEADDR), 1);
  CHECK_EQ(option(fd, SOL_SOCKET, SO_REUSEPORT), 1);
  CHECK_EQ(option(fd, SOL_SOCKET, SO_SNDBUF), 2 * 8000);
  CHECK_EQ(option(fd, SOL_SOCKET, SO_RCVBUF), 2 * 9000);
  CHECK_EQ(option(fd, IPPROTO_IP, IP_TTL), 7);
  CHECK_EQ(option(fd, IPPROTO_IP, IP_MULTICAST_TTL), 3);
  CHECK_EQ(option(fd, IPPROTO_IP, IP_MULTICAST_LOOP), 0);
}

static void test_options(Loop *l) {
  (void)l;
  AioDatagram d;
  no_faults();
  int lo = aio_interface_number("lo");
  const AioDatagramOptions all = {.broadcast = 1, .reuseaddr = 1, .reuseport = 1, .v6only = 1, .ttl = 7, .multicast_ttl = 3,
    .multicast_loop = 0, .sndbuf = 8000, .rcvbuf = 9000, .multicast_interface = lo};
  bool inet6 = has_inet6();
  for (int family = AIO_INET; family <= AIO_UNIX; family++) {
    if (family == AIO_INET6 && !inet6) continue;
    no_faults();
    CHECK_EQ(aio_datagram_open(&d, family, &all), 0);
    int calls = on_setsockopt.calls;
    if (family != AIO_UNIX) check_inet(d.fd);
    if (family == AIO_INET6) {
      CHECK_EQ(option(d.fd, IPPROTO_IPV6, IPV6_V6ONLY), 1);
      CHECK_EQ(option(d.fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS), 7);
      CHECK_EQ(option(d.fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS), 3);
      CHECK_EQ(option(d.fd, IPPROTO_IPV6, IPV6_MULTICAST_LOOP), 0);
      CHECK_EQ(option(d.fd, IPPROTO_IPV6, IPV6_MULTICAST_IF), lo);
    }
    aio_datagram_close(&d, false);
    /* Each of them refused: there is no socket then. */
    CHECK(calls >= 4);
    for (int i = 0; i < calls; i++) {
      no_faults();
      on_setsockopt = (Fault){.error = EPERM, .times = 1, .after = i};
      CHECK_EQ(aio_datagram_open(&d, family, &all), -EPERM);
      CHECK_EQ(on_setsockopt.injected, 1);
      CHECK_EQ(d.fd, -1);
      CHECK_EQ(closes, 1);
    }
    no_faults();
    CHECK_EQ(aio_datagram_open(&d, family, &defaults), 0);
    CHECK_EQ(on_setsockopt.calls, 0); /* what is the system's is not asked for */
    aio_datagram_close(&d, false);
    on_socket = (Fault){.error = EMFILE, .times = 1};
    CHECK_EQ(aio_datagram_open(&d, family, &all), -EMFILE);
    CHECK_EQ(d.fd, -1);
  }
}

/* ---- groups ---- */

static void test_multicast(Loop *l) {
  (void)l;
  AioDatagram a, b;
  AioSockaddr any, group, from;
  AioDatagramOptions o = defaults;
  char buf[8], text[AIO_NAME_MAX];
  int port;
  no_faults();
  o.multicast_interface = aio_interface_number("lo");
  o.reuseaddr = 1;
  CHECK_EQ(aio_sockaddr_numeric(&any, "0.0.0.0", 0), 0);
  CHECK_EQ(aio_datagram_open(&a, AIO_INET, &o), 0);
  CHECK_EQ(aio_datagram_bind(&a, &any), 0);
  CHECK(aio_socket_name(a.fd, false, text, &port) > 0);
  CHECK_EQ(aio_sockaddr_numeric(&any, "0.0.0.0", port), 0);
  CHECK_EQ(aio_datagram_open(&b, AIO_INET, &o), 0);
  CHECK_EQ(aio_datagram_bind(&b, &any), 0);
  CHECK_EQ(aio_sockaddr_numeric(&group, "239.255.77.1", port), 0);
  AioDatagram *both[] = {&a, &b};
  for (int i = 0; i < 2; i++) CHECK_EQ(aio_datagram_member(both[i], true, &group, o.multicast_interface), 0);
  CHECK_EQ(aio_datagram_member(&a, true, &group, o.multicast_interface), -EADDRINUSE); /* it is one of them already */
  CHECK_EQ(aio_datagram_send(&a, "all", 3, &group), 0);
  for (int i = 0; i < 2; i++) CHECK_EQ(receive(both[i], buf, 8, &from), 3);
  CHECK_EQ(aio_datagram_member(&b, false, &group, o.multicast_interface), 0);
  CHECK_EQ(aio_datagram_member(&b, false, &group, o.multicast_interface), -EADDRNOTAVAIL);
  CHECK_EQ(aio_datagram_send(&a, "one", 3, &group), 0);
  CHECK_EQ(receive(&a, buf, 8, &from), 3);
  CHECK_EQ(aio_datagram_receive(&b, buf, 8, &from), -EAGAIN); /* though its neighbour is one of them */
  for (int i = 0; i < 2; i++) {
    on_setsockopt = (Fault){.error = ENOBUFS, .times = 1, .after = i};
    CHECK_EQ(aio_datagram_member(&b, true, &group, o.multicast_interface), -ENOBUFS);
  }
  on_setsockopt = (Fault){.error = ENOPROTOOPT, .times = 1}; /* a kernel that does not know of that */
  CHECK_EQ(aio_datagram_member(&b, true, &group, o.multicast_interface), 0);
  CHECK_EQ(aio_sockaddr_numeric(&any, "127.0.0.1", 0), 0);
  CHECK_EQ(aio_datagram_member(&b, true, &any, 0), -EINVAL); /* no group */
  aio_datagram_close(&a, false);
  aio_datagram_close(&b, false);
}

/* The kernel knows of a group of IPv6 by /proc/net/igmp6. */
static bool is_member6(const char *group) {
  char line[256];
  bool found = false;
  FILE *f = fopen("/proc/net/igmp6", "r");
  while (f && fgets(line, sizeof line, f)) found |= strstr(line, group) != NULL;
  if (f) fclose(f);
  return found;
}

static void test_multicast6(Loop *l) {
  (void)l;
  AioDatagram d;
  AioSockaddr group;
  no_faults();
  if (!has_inet6()) return;
  int lo = aio_interface_number("lo");
  CHECK_EQ(aio_sockaddr_numeric(&group, "ff02::a10a:100b", 0), 0);
  CHECK_EQ(aio_datagram_open(&d, AIO_INET6, &defaults), 0);
  CHECK_EQ(aio_datagram_member(&d, true, &group, lo), 0);
  CHECK(is_member6("ff0200000000000000000000a10a100b"));
  CHECK_EQ(aio_datagram_member(&d, false, &group, lo), 0);
  CHECK(!is_member6("ff0200000000000000000000a10a100b"));
  aio_datagram_close(&d, false);
}

/* ---- paths ---- */

static void test_paths(Loop *l) {
  (void)l;
  char path[] = "/tmp/aioloop-XXXXXX";
  AioSockaddr at, from;
  AioDatagram one, two;
  AioListener server;
  struct stat st;
  char buf[8];
  no_faults();
  close(mkstemp(path));
  CHECK_EQ(aio_sockaddr_path(&at, path, strlen(path)), 0);
  CHECK_EQ(aio_datagram_open(&one, AIO_UNIX, &defaults), 0);
  CHECK_EQ(aio_datagram_open(&two, AIO_UNIX, &defaults), 0);
  CHECK_EQ(aio_datagram_bind(&one, &at), -EADDRINUSE); /* a file is left alone */
  unlink(path);
  CHECK_EQ(aio_datagram_send(&two, "x", 1, &at), -ENOENT);
  CHECK_EQ(aio_datagram_bind(&one, &at), 0);
  CHECK_EQ(aio_datagram_bind(&two, &at), -EADDRINUSE);
  CHECK_EQ(aio_socket_listen(&server, &at, &(AioSocketOptions){.backlog = 1, .keepalive = -1, .v6only = -1}), -EADDRINUSE);
  CHECK_EQ(aio_datagram_send(&two, "x", 1, &at), 0);
  CHECK_EQ(receive(&one, buf, 8, &from), 1);
  close(one.fd); /* died */
  CHECK_EQ(aio_datagram_send(&two, "x", 1, &at), -ECONNREFUSED);
  on_unlink = (Fault){.error = EACCES, .times = 1};
  CHECK_EQ(aio_datagram_bind(&two, &at), -EADDRINUSE);
  CHECK_EQ(aio_datagram_bind(&two, &at), 0);
  CHECK_EQ(stat(path, &st), 0);
  aio_datagram_close(&two, false);
  CHECK(stat(path, &st) < 0);
}

/* ---- a full buffer ---- */

static int ready;
static void count_ready(void *opaque) {
  ready++;
  aio_watch_close(opaque);
}

static void test_full(Loop *l) {
  AioDatagram a, b;
  AioSockaddr at, from;
  AioWatch watch = {.ctx = NULL};
  char buf[8];
  int sent = 0, rc;
  no_faults();
  open_at(&b, AIO_UNIX, &at, &defaults);
  CHECK_EQ(aio_datagram_open(&a, AIO_UNIX, &defaults), 0);
  CHECK_EQ(aio_datagram_connect(&a, &at), 0);
  while ((rc = aio_datagram_send(&a, "12345678", 8, NULL)) == 0) sent++;
  CHECK_EQ(rc, -EAGAIN);
  CHECK(sent > 0);
  ready = 0;
  CHECK_EQ(aio_watch_again(&watch, l->ctx, a.fd, AIO_WRITE, count_ready, &watch), 0);
  CHECK_RESTS(l);
  CHECK_EQ(ready, 0);
  CHECK_EQ(receive(&b, buf, 8, &from), 8);
  RUN_UNTIL(l, ready);
  CHECK_EQ(aio_datagram_send(&a, "x", 1, NULL), 0);
  for (int i = 0; i < sent - 1; i++) CHECK_EQ(receive(&b, buf, 8, &from), 8);
  CHECK_EQ(receive(&b, buf, 8, &from), 1);
  aio_datagram_close(&a, false);
  aio_datagram_close(&b, false);
  CHECK_QUIET(l);
}

/* ---- addresses as text ---- */

static void test_text(Loop *l) {
  (void)l;
  AioSockaddr a;
  char text[AIO_NAME_MAX];
  int port;
  const char *same[] = {"127.0.0.1", "255.255.255.255", "::", "::1", "fe80::1%lo", "ff02::fb", "2001:db8::a:b", "::ffff:1.2.3.4"};
  for (size_t i = 0; i < COUNT(same); i++) {
    CHECK_EQ(aio_sockaddr_numeric(&a, same[i], 65535), 0);
    CHECK_EQ(aio_sockaddr_text(&a, text, &port), (long long)strlen(same[i]));
    CHECK_STR(text, same[i]);
    CHECK_EQ(port, 65535);
  }
  CHECK_EQ(aio_sockaddr_numeric(&a, "127.1", 0), 0); /* as the C library has it */
  CHECK_EQ(aio_sockaddr_text(&a, text, &port), 9);
  const char *none[] = {"", "*", "localhost", "1.2.3.4.5", "::1::", "fe80::1%no-such-one", " 1.2.3.4"};
  for (size_t i = 0; i < COUNT(none); i++) CHECK_EQ(aio_sockaddr_numeric(&a, none[i], 0), -EINVAL);
  CHECK_EQ(aio_sockaddr_numeric(&a, "1.2.3.4", -1), -EINVAL);
  a = (AioSockaddr){.len = sizeof a.data};
  CHECK_EQ(aio_sockaddr_family(&a), AIO_ANY_FAMILY);
  CHECK_EQ(aio_sockaddr_text(&a, text, &port), -EAFNOSUPPORT);
}

static const Test tests[] = {
  TEST_POLL(test_back_and_forth), TEST_POLL(test_nameless), TEST_POLL(test_families), TEST_POLL(test_faults),
  TEST_POLL(test_refused), TEST_POLL(test_options), TEST_POLL(test_multicast), TEST_POLL(test_multicast6),
  TEST_POLL(test_paths), TEST(test_full), TEST_POLL(test_text),
};

CHECK_MAIN(tests, "epoll+poll")
