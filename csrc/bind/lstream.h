/* SPDX-License-Identifier: MIT
 * What the files of streams, servers and connecting share.
 *
 * Owner    lstream.c. */
#ifndef LSTREAM_H
#define LSTREAM_H

#include "lbind.h"

typedef struct LStream {
  const void *mark; /* see aioL_test */
  LTicket *reader;           /* who reads, until its results have been fetched */
  struct LOut *out;          /* what is to be written; NULL: nothing */
  int64_t timeout;           /* of each operation */
  uint32_t bound;            /* so many bytes may be queued without waiting */
  uint16_t uses;             /* counts changes of the input */
  int16_t write_error;       /* -errno: a part of what was to be written is lost */
  AioStream s;
  AioWatch watch;            /* of who waits to read */
  struct LReading *reading;  /* what it wants, if that is pieces; memory for the next one when nobody reads */
} LStream;

/* ---- ltls.c ---- */

bool aioL_tls_doom(LStream *s);                          /* it is to be closed: true if that must wait, for its filter runs */
void aioL_tls_settle(LStream *s);                        /* is it so no more, the stream is closed */
/* Its filter goes, and unless it is kept, the fd with it; `writing`: what was being written is cut short. */
void aioL_tls_close(LStream *s, bool keep_fd, bool writing);
const char *aioL_tls_message(const LStream *s, int rc);  /* in LuaSec's words; NULL: none */
LOpen aioL_open_tls;

/* What is queued to be written. */
typedef enum LWriteKind {
  W_ALL,     /* pieces, all of them */
  W_SOME,    /* one piece, as much of it as the kernel takes */
  W_END,     /* no piece: shut down */
  W_CONNECT  /* no piece: until it is connected */
} LWriteKind;

LStream *aioL_stream_new(lua_State *L);                  /* [-0, +1, m] closed; aio_stream_open opens it */
void aioL_stream_close(LStream *s, bool keep_fd);        /* [-0, +0, -] wakes who waits */
int aioL_stream_fail(lua_State *L, LStream *s, int rc); /* [-0, +3, m] as aioL_fail, with its filter's words */
/* Each half of a stream with a filter may have to wait for what the other one watches; stirred, it looks again. */
void aioL_read_stir(LStream *s);
void aioL_out_stir(LStream *s);
int aioL_read_watch(LStream *s, LContext *c, AioFn *ready); /* for who reads; 0, -errno */
int aioL_read_wait(lua_State *L, LContext *c, LStream *s, const LWaitOps *ops, AioFn *ready); /* [-0, +n, e] who reads */
void aioL_out_retry(LStream *s);                         /* soon, whatever it waits for */
void aioL_read_leave(LTicket *tk);                       /* for LWaitOps of who reads; its op is the stream */
void aioL_read_revoke(lua_State *L, LTicket *tk);
void aioL_read_lost(LStream *s);                         /* its watch is: the reader hears of it */
void aioL_read_close(LStream *s);                        /* the reader has nil, "closed" */
void aioL_write_close(LStream *s);                       /* and so have the writers; what is queued is dropped */
void aioL_out_check(LStream *s);                         /* [-0, +0, -] what a closed context has queued is dropped */
size_t aioL_out_queued(const LStream *s);                /* bytes */
bool aioL_out_held(const LStream *s);                    /* a filter has begun with bytes that it did not count */
/* [-0, +n, e] stack: stream, n pieces. Of their bytes `done` are through. `again`: the next turn tries, without asking the
 * kernel before. */
int aioL_out_wait(lua_State *L, LContext *c, LStream *s, LWriteKind kind, const AioPiece *v, int n, size_t done, bool again);
/* The same without waiting. `kept`: the stream stays until all is written; else it says "timeout". */
int aioL_out_leave(lua_State *L, LContext *c, LStream *s, const AioPiece *v, int n, size_t done, bool kept);
int aioL_stream_watch(AioWatch *w, LContext *c, LStream *s, AioDir dir, AioFn *ready); /* 0; -EPERM: it cannot be watched; -errno */
bool aioL_select_step_aside(LRuntime *rt, int fd); /* lselect.c: whoever waits for it looks again; true: somebody does */
int aioL_stream_unwatchable(lua_State *L, LStream *s, int rc); /* [-0, +2 or 3, e] why it cannot be waited for; may close it */
void aioL_socket_options(lua_State *L, int idx, AioSocketOptions *o); /* [-0, +0, v] of a table, or nil */
int aioL_write_connected(lua_State *L);                  /* Lua function: waits for what aio_socket_begin has begun */
int aioL_server_hear(lua_State *L);                      /* Lua function: a stream's socket becomes a server's */
int aioL_select_ready(lua_State *L), aioL_select_wait(lua_State *L), aioL_select_closing(lua_State *L); /* Lua functions */
extern const luaL_Reg aioL_read_methods[], aioL_write_methods[];

#endif
