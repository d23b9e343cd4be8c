/* SPDX-License-Identifier: MIT
 * What the files of streams, servers and connecting share.
 *
 * Owner    lstream.c. */
#ifndef LSTREAM_H
#define LSTREAM_H

#include "lbind.h"

typedef struct LStream {
  AioStream s;
  AioWatch watch;            /* of who waits to read */
  const AioContext *watched; /* where it was last open */
  LTicket *reader;           /* who reads, until its results have been fetched */
  struct LReading *reading;  /* what it wants, if that is pieces; memory for the next one when nobody reads */
  struct LOut *out;          /* what is to be written; NULL: nothing */
  int64_t timeout;           /* of each operation */
  uint32_t bound;            /* so many bytes may be queued without waiting */
  uint16_t uses;             /* counts changes of the input */
  int16_t write_error;       /* -errno: a part of what was to be written is lost */
} LStream;

LStream *aioL_stream_new(lua_State *L);                  /* [-0, +1, m] closed; aio_stream_open opens it */
void aioL_stream_close(LStream *s, bool keep_fd);        /* [-0, +0, -] wakes who waits */
void aioL_read_close(LStream *s);                        /* the reader has nil, "closed" */
void aioL_write_close(LStream *s);                       /* and so have the writers; what is queued is dropped */
int aioL_unwatchable(lua_State *L, int fd, int rc);      /* [-0, +3, e] why an fd cannot be waited for */
int aioL_stream_unwatchable(lua_State *L, LStream *s, int rc); /* [-0, +2 or 3, e] and a stream, which may be closed by that */
void aioL_socket_options(lua_State *L, int idx, AioSocketOptions *o); /* [-0, +0, v] of a table, or nil */
int64_t aioL_opt_timeout(lua_State *L, int idx);         /* [-0, +0, v] field of a table, or nil */
bool aioL_field(lua_State *L, int idx, const char *name); /* [-0, +1, -] raw; false: nil */
extern const luaL_Reg aioL_read_methods[], aioL_write_methods[];

#endif
