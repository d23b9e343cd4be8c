/* SPDX-License-Identifier: MIT
 * What the files of datagrams share.
 *
 * Owner    ludp.c. */
#ifndef LUDP_H
#define LUDP_H

#include "lbind.h"

typedef struct LArrival LArrival; /* a datagram that has been received */

/* Those who wait to receive, or to send. */
typedef struct LSide {
  AioWatch watch;
  AioLink waiting;           /* tickets, first come first served */
  LContext *c;               /* theirs; NULL: nobody waits */
} LSide;

typedef struct LUdp {
  const void *mark;   /* see aioL_test */
  AioDatagram d;      /* no fd: closed, or its family is not known yet */
  LSide in, out;
  AioTimer retry;     /* of who waits to send, when the kernel does not tell */
  LArrival *handing;  /* goes to the ticket that is being taken */
  LArrival *kept;     /* there was no memory for what a script was to have; the next one gets it */
  int64_t timeout;    /* of each operation */
  AioDatagramOptions opts;
  bool closed;
} LUdp;

LUdp *aioL_check_udp(lua_State *L, int idx);  /* [-0, +0, v] */
/* [-0, +0, v] host and port at idx; a path, if there is no port. 1: it is not in numbers; 0; -errno. */
int aioL_check_address(lua_State *L, int idx, AioSockaddr *a);
/* Sees to it that there is a socket, for such an address if there was none; *made tells. */
int aioL_udp_make(LUdp *s, const AioSockaddr *a, bool *made);
void aioL_udp_unmake(LUdp *s);                /* it was made in vain */
void aioL_udp_close(LUdp *s, bool keep_fd);
int aioL_udp_by_name(lua_State *L, LUdp *s, const char *method); /* [-all, +n, e] calls it with each of the addresses */
void aioL_udp_io_close(LUdp *s);              /* who waits has nil, "closed" */
void aioL_udp_io_methods(lua_State *L);       /* [-0, +0, m] adds them to the class on top; by_name is at 1 */

#endif
