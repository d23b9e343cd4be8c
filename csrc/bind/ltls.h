/* SPDX-License-Identifier: MIT
 * What the files of TLS share.
 *
 * Owner    ltls.c. */
#ifndef LTLS_H
#define LTLS_H

#include "lstream.h"

enum { L_TLS_SLOTS = 16 }; /* of T's stack, for a call and its results */

typedef enum LTlsCall { T_RECEIVE, T_SEND, T_CLOSE, T_HANDSHAKE, T_DIRTY, T_FINISHED, T_SET_FD, T_CALLS } LTlsCall;

/* One for each lua_State; third upvalue of the functions. */
typedef struct LTlsLib {
  lua_State *T;    /* in the registry */
  int of;          /* registry: weak table, stream -> its LTls */
  LRuntime *rt;
  int fns[T_CALLS]; /* registry */
} LTlsLib;

typedef struct LTls {
  const void *mark; /* see aioL_test */
  AioFilter filter;
  LTlsLib *lib;
  LStream *s;       /* NULL: closed */
  int connection;   /* registry */
  int held;         /* registry: the string of which a part must be sent again, if filter.held */
  size_t sent;      /* bytes of it */
  int16_t broken;   /* -errno: what ended it */
  bool owns;        /* the connection has the fd */
  bool connected;
  bool busy, reads; /* LuaSec is on the C stack, to read or shake hands */
  bool doomed;      /* the stream was closed meanwhile */
  char message[120]; /* of `broken`, unless errno says it */
  int fd;           /* of one that lingers */
  LContext *c;      /* in whose turns it waits for room to say goodbye; NULL: it does not */
  AioLink link;     /* in c->partings */
  AioWatch watch;   /* of that */
  AioTimer limit;
} LTls;

static inline LTls *aioL_tls_of(AioFilter *f) { return container_of(f, LTls, filter); }

/* lib->T: [-nargs, +1+nresults, -]; the arguments behind the connection are on top. false, and a message: it has raised.
 * The stream stays beneath: who has it on his stack may be gone when this returns. There must be room for L_TLS_SLOTS. */
bool aioL_tls_call(LTls *tls, LTlsCall fn, int nargs, int nresults);
void aioL_tls_let_go(LTls *tls); /* of what the registry has of it */
int aioL_tls_gc(lua_State *L);   /* its finaliser */
int aioL_tls_step(LTls *tls); /* of the handshake. 1: done; -EAGAIN; -errno */
int64_t aioL_tls_read(AioFilter *f, void *buf, size_t len); /* for AioFilter */
int64_t aioL_tls_write(AioFilter *f, const AioPiece *v, size_t n);

#endif
