/* SPDX-License-Identifier: MIT
 * Options of sockets, by name. The names are LuaSocket's.
 *
 * Threads  any. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "internal.h"

static const struct Option {
  const char *name;
  int level, option;
  AioOptionKind kind;
  bool get, set;
} options[] = {
  {"keepalive", SOL_SOCKET, SO_KEEPALIVE, AIO_OPTION_BOOL, true, true},
  {"reuseaddr", SOL_SOCKET, SO_REUSEADDR, AIO_OPTION_BOOL, true, true},
  {"reuseport", SOL_SOCKET, SO_REUSEPORT, AIO_OPTION_BOOL, true, true},
  {"linger", SOL_SOCKET, SO_LINGER, AIO_OPTION_LINGER, true, true},
  {"error", SOL_SOCKET, SO_ERROR, AIO_OPTION_ERROR, true, false},
  {"recv-buffer-size", SOL_SOCKET, SO_RCVBUF, AIO_OPTION_INT, true, true},
  {"send-buffer-size", SOL_SOCKET, SO_SNDBUF, AIO_OPTION_INT, true, true},
  {"tcp-nodelay", IPPROTO_TCP, TCP_NODELAY, AIO_OPTION_BOOL, true, true},
  {"tcp-keepidle", IPPROTO_TCP, TCP_KEEPIDLE, AIO_OPTION_INT, true, true},
  {"tcp-keepcnt", IPPROTO_TCP, TCP_KEEPCNT, AIO_OPTION_INT, true, true},
  {"tcp-keepintvl", IPPROTO_TCP, TCP_KEEPINTVL, AIO_OPTION_INT, true, true},
  {"tcp-defer-accept", IPPROTO_TCP, TCP_DEFER_ACCEPT, AIO_OPTION_INT, false, true},
  {"tcp-fastopen", IPPROTO_TCP, TCP_FASTOPEN, AIO_OPTION_INT, false, true},
  {"tcp-fastopen-connect", IPPROTO_TCP, TCP_FASTOPEN_CONNECT, AIO_OPTION_INT, false, true},
  {"ipv6-v6only", IPPROTO_IPV6, IPV6_V6ONLY, AIO_OPTION_BOOL, true, true},
};

static const struct Option *find(const char *name) {
  for (size_t i = 0; i < sizeof options / sizeof *options; i++)
    if (!strcmp(options[i].name, name)) return &options[i];
  return NULL;
}

AioOptionKind aio_option_kind(const char *name, bool set) {
  const struct Option *o = find(name);
  return o && (set ? o->set : o->get) ? o->kind : AIO_OPTION_NONE;
}

int aio_option_get(int fd, const char *name, int value[2]) {
  const struct Option *o = find(name);
  struct linger linger = {0, 0};
  socklen_t len = sizeof linger, one = sizeof *value;
  value[0] = value[1] = 0;
  if (!o || !o->get) return -ENOPROTOOPT;
  if (o->kind != AIO_OPTION_LINGER) return getsockopt(fd, o->level, o->option, value, &one) < 0 ? -errno : 0;
  if (getsockopt(fd, o->level, o->option, &linger, &len) < 0) return -errno;
  value[0] = linger.l_onoff;
  value[1] = linger.l_linger;
  return 0;
}

int aio_option_set(int fd, const char *name, const int value[2]) {
  const struct Option *o = find(name);
  if (!o || !o->set) return -ENOPROTOOPT;
  const struct linger linger = {value[0], value[1]};
  bool lingers = o->kind == AIO_OPTION_LINGER;
  const void *data = lingers ? (const void *)&linger : value;
  return setsockopt(fd, o->level, o->option, data, lingers ? sizeof linger : sizeof *value) < 0 ? -errno : 0;
}
