/* SPDX-License-Identifier: MIT
 * Names to addresses and back: getaddrinfo and getnameinfo in the pool, since they block; addresses written as numbers
 * need no thread.
 *
 * Way      aio_resolve -> numeric: at once; else aio_pool_submit -> ask, in a worker -> done.  aio_lookup -> ask_name -> done
 * Owner    the caller: AioResolve until done, the answer until aio_resolve_free. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "internal.h"

static void ask(void *opaque) {
  AioResolve *r = opaque;
  struct addrinfo hints = {.ai_family = r->family == AIO_INET ? AF_INET : r->family == AIO_INET6 ? AF_INET6 : AF_UNSPEC,
                           .ai_socktype = r->dgram ? SOCK_DGRAM : r->stream ? SOCK_STREAM : 0,
                           .ai_flags = (r->passive ? AI_PASSIVE : 0) | (r->canonical ? AI_CANONNAME : 0) |
                                       (r->numeric ? AI_NUMERICHOST | AI_NUMERICSERV : 0)};
  struct addrinfo *list = NULL;
  r->error = getaddrinfo(r->host, r->service, &hints, &list);
  r->system_errno = r->error == EAI_SYSTEM ? errno : 0;
  r->list = list;
}

static bool is_number(const char *s) { return !s || (*s && s[strspn(s, "0123456789")] == 0); }

/* The system's getaddrinfo makes a port of any number, by its lower 16 bits. */
static bool is_beyond_ports(const char *s) {
  char *end;
  if (!s || !*s) return false;
  long long n = strtoll(s, &end, 10); /* one that is too large is the largest */
  return !*end && (n < 0 || n > UINT16_MAX);
}

int aio_resolve(AioContext *ctx, AioResolve *r, AioFn *done) {
  r->list = NULL;
  r->system_errno = 0;
  r->error = is_beyond_ports(r->service) ? EAI_SERVICE : 0;
  if (r->error) return 1;
  if (is_number(r->service)) {
    r->numeric = true;
    ask(r);
    r->numeric = false;
    if (r->error != EAI_NONAME) return 1;
  }
  return aio_pool_submit(ctx, &r->job, ask, done, r);
}

bool aio_resolve_next(const AioResolve *r, const void **at, AioAddress *out) {
  const struct addrinfo *ai = *at ? ((const struct addrinfo *)*at)->ai_next : r->list;
  for (; ai; ai = ai->ai_next) {
    if (ai->ai_family != AF_INET && ai->ai_family != AF_INET6) continue;
    const struct sockaddr_in *in = (const void *)ai->ai_addr;
    const struct sockaddr_in6 *in6 = (const void *)ai->ai_addr;
    out->family = ai->ai_family == AF_INET ? AIO_INET : AIO_INET6;
    out->port = ntohs(ai->ai_family == AF_INET ? in->sin_port : in6->sin6_port);
    out->socktype = ai->ai_socktype == SOCK_STREAM ? "stream" : ai->ai_socktype == SOCK_DGRAM ? "dgram" : "raw";
    if (getnameinfo(ai->ai_addr, ai->ai_addrlen, out->addr, sizeof out->addr, NULL, 0, NI_NUMERICHOST)) continue;
    *at = ai;
    return true;
  }
  return false;
}

const char *aio_resolve_name(const AioResolve *r) {
  const struct addrinfo *first = r->list;
  return first ? first->ai_canonname : NULL;
}

const char *aio_resolve_error(const AioResolve *r) {
  return r->system_errno ? strerror(r->system_errno) : gai_strerror(r->error);
}

void aio_resolve_free(AioResolve *r) {
  if (r->list) freeaddrinfo(r->list);
  r->list = NULL;
}

/* ---- addresses to names ---- */

static void ask_name(void *opaque) {
  AioLookup *l = opaque;
  const struct sockaddr *sa = (const struct sockaddr *)(const void *)l->addr.data;
  l->error = getnameinfo(sa, l->addr.len, l->host, sizeof l->host, l->service, sizeof l->service, 0);
  l->system_errno = l->error == EAI_SYSTEM ? errno : 0;
}

int aio_lookup(AioContext *ctx, AioLookup *l, AioFn *done) { return aio_pool_submit(ctx, &l->job, ask_name, done, l); }

const char *aio_lookup_error(const AioLookup *l) {
  return l->system_errno ? strerror(l->system_errno) : gai_strerror(l->error);
}
