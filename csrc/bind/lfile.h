/* SPDX-License-Identifier: MIT
 * What the files of the noun "file" share: the file itself, and a call under way.
 *
 * Owner    the userdata and every call under way count the LFileBody. A call is a flight (lpool.c) with its own memory: who
 *          gives up waiting leaves it to the kernel. */
#ifndef LFILE_H
#define LFILE_H

#include "lbind.h"

typedef struct LFileBody {
  uint32_t refs;
  AioFile *file;
  AioInput in;        /* read ahead, from pos on */
  int64_t pos;
  uint32_t changes;   /* by what was written or cut off here: what was read before is not what is there now */
  AioLink calls;      /* for which somebody waits */
  bool append;
  const char *in_use; /* the operation that uses the position now, or NULL */
} LFileBody;

typedef struct LFile {
  const void *mark; /* see aioL_test */
  LFileBody *b; /* NULL: closed */
} LFile;

typedef struct LFileCall {
  LFlight f;
  AioLink link;      /* in body->calls */
  AioFileOp op;
  LFileBody *b;
  const LWaitOps *ops;
  LBlock *block;     /* of a buffer, or our own */
  bool moves_position, holds_position;
  int64_t start;     /* file:read: the position */
  uint32_t changes;  /* file:read: of the body, then */
  AioInput in;       /* file:read: what the body had, and more */
  bool eof;
  int error;         /* file:read */
  size_t nwants, found, taken; /* taken: bytes that the results have used up */
  AioWant wants[];   /* file:read; behind them the delimiters */
} LFileCall;

/* ---- lfile_call.c ---- */

LFileBody *aioL_file_body_new(AioEngine engine, bool direct); /* NULL: no memory */
void aioL_file_body_unref(LFileBody *b);
void aioL_file_changed(LFileBody *b);  /* what was read ahead is to be read again */
LFileBody *aioL_check_file(lua_State *L);                     /* [-0, +0, v] of the open file at 1 */
lua_Integer aioL_check_offset(lua_State *L, int idx);         /* [-0, +0, v] */
LFileCall *aioL_file_call(lua_State *L, LFileBody *b, const LWaitOps *ops, AioFileKind kind, size_t more); /* [-0, +0, m] */
LBlock *aioL_file_block(lua_State *L, LFileCall *k, size_t size); /* [-0, +0, e] frees the call where there is no memory */
int aioL_file_wait(lua_State *L, LContext *c, LFileCall *k);  /* [-0, +n, e] submits it and waits */
LFileCall *aioL_file_call_fetch(LTicket *tk);                /* aioL_flight_fetch */
void aioL_file_call_free(LFlight *f);
void aioL_file_leave(LTicket *tk);                            /* for LWaitOps */
void aioL_file_done(void *call);                              /* for AioFileOp */

/* ---- methods: lfile_at.c, lfile_seq.c ---- */

extern const luaL_Reg aioL_file_at_methods[], aioL_file_seq_methods[];

#endif
