/* SPDX-License-Identifier: MIT
 * Writing to streams.
 *
 * Way      write -> aio_stream_write at once -> all is gone: no wait; else aioL_out_wait, or aioL_out_leave (lout.c)
 *          writesome, shutdown, and connecting, go the same way
 * Keep     nothing is tried past what is queued. */
#include <errno.h>

#include "lstream.h"

/*** Streams: connections, pipes, terminals.
@module aioloop.stream */

enum { FEW = 16, RECORD = 16384 /* of TLS */ };

/* Making a string of a number may run a finaliser, which may use a buffer: where the bytes are is asked when none can run. */
static size_t gather(lua_State *L, AioPiece *v, int n) { /* [-0, +0, v] returns the number of bytes */
  size_t total = 0;
  bool numbers = false;
  for (int i = 0; i < n; i++) {
    numbers |= lua_type(L, i + 2) == LUA_TNUMBER;
    v[i].data = aioL_check_bytes(L, i + 2, &v[i].len);
    total += v[i].len;
  }
  return numbers ? gather(L, v, n) : total;
}

/*** Writes all pieces as one, and waits until the kernel has them (see `setbound`). Writes of several tasks come one after the
other. One that is cancelled or timed out before its first byte went out has written nothing; later, the loop writes what is
left of it, as long as the stream is open.
@function stream:write
@tparam string|number|buffer ... pieces; a buffer must not be changed while it is being written
@treturn stream itself; or nil, "timeout"; or nil, "closed"; or nil, message, errno */
static int stream_write(lua_State *L) {
  LStream *s = aioL_check(L, 1, L_STREAM);
  int n = lua_gettop(L) - 1;
  AioPiece few[FEW], *v = n <= FEW ? few : lua_newuserdatauv(L, (size_t)n * sizeof *v, 0);
  LContext *c = aioL_waits_in(L);
  size_t total = gather(L, v, n), done = 0;
  if (s->s.fd < 0) return aioL_closed(L);
  aioL_out_check(s);
  if (s->write_error) return aioL_fail(L, s->write_error);
  if (!total) return lua_settop(L, 1), 1;
  bool tries = !s->out && (s->timeout <= 0 || aio_may_try(c->core));
  if (tries) {
    int64_t got = aio_stream_write(&s->s, v, n > 0 ? (size_t)n : 0);
    if (got == (int64_t)total) return lua_settop(L, 1), 1;
    if (got < 0 && got != -EAGAIN) return aioL_stream_fail(L, s, (int)got);
    done = got < 0 ? 0 : (size_t)got;
  }
  bool kept = total - done + aioL_out_queued(s) <= s->bound, begun = done > 0 || (tries && aioL_out_held(s));
  if (s->timeout <= 0 && !kept && !begun) return aioL_timed_out(L);
  if (begun) s->write_error = -ENOMEM; /* should there be none for the rest */
  if (kept || s->timeout <= 0) return aioL_out_leave(L, c, s, v, n, done, kept);
  return aioL_out_wait(L, c, s, W_ALL, v, n, done, !tries && !s->out);
}

/*** Ends the writing half, when all that was written before is gone: the other end reads nil, "eof". Reading goes on.
@function stream:shutdown
@tparam[opt="w"] string how "w"
@treturn stream itself; or nil, message, errno: it is no socket */
static int stream_shutdown(lua_State *L) {
  static const char *const names[] = {"w", NULL};
  LStream *s = aioL_check(L, 1, L_STREAM);
  luaL_checkoption(L, 2, "w", names);
  lua_settop(L, 1);
  LContext *c = aioL_waits_in(L);
  if (s->s.fd < 0) return aioL_closed(L);
  aioL_out_check(s);
  if (s->write_error) return aioL_fail(L, s->write_error);
  if (!s->out) {
    int rc = aio_stream_shutdown(&s->s);
    return rc < 0 ? aioL_fail(L, rc) : 1;
  }
  if (s->timeout <= 0) return aioL_timed_out(L);
  return aioL_out_wait(L, c, s, W_END, NULL, 0, 0, false);
}

/* Bytes i to j of a piece, as string.sub has them. */
static void cut(lua_State *L, AioPiece *v) { /* [-0, +0, v] stack: stream, piece, i, j */
  lua_Integer size = (lua_Integer)v->len, i = luaL_optinteger(L, 3, 1), j = luaL_optinteger(L, 4, -1);
  if (i < 0) i = i < -size ? 1 : size + i + 1;
  if (i == 0) i = 1;
  if (j < 0) j = j < -size ? 0 : size + j + 1;
  if (j > size) j = size;
  if (j - i >= INT32_MAX && i <= j) j = i + INT32_MAX - 1;
  v->data = i <= j ? (const char *)v->data + i - 1 : v->data;
  v->len = i <= j ? (size_t)(j - i + 1) : 0;
}

/*** Writes as much as the kernel takes, as soon as it takes anything, and says how much: `readsome`'s other half. Cancelled
or timed out it has written nothing.
@function stream:writesome
@tparam string|number|buffer data
@tparam[opt=1] integer i its first byte, as for `string.sub`
@tparam[opt=-1] integer j its last byte
@treturn integer how many bytes; or nil, "timeout"; or nil, "closed"; or nil, message, errno */
static int stream_writesome(lua_State *L) {
  LStream *s = aioL_check(L, 1, L_STREAM);
  AioPiece v;
  lua_settop(L, 4);
  LContext *c = aioL_waits_in(L);
  gather(L, &v, 1);
  cut(L, &v);
  if (s->s.filter && v.len > RECORD) v.len = RECORD;
  size_t len = v.len;
  if (s->s.fd < 0) return aioL_closed(L);
  aioL_out_check(s);
  if (s->write_error) return aioL_fail(L, s->write_error);
  bool tries = !s->out && (s->timeout <= 0 || aio_may_try(c->core));
  int64_t got = !v.len ? 0 : tries ? aio_stream_write(&s->s, &v, 1) : -EAGAIN;
  if (got < 0 && got != -EAGAIN) return aioL_stream_fail(L, s, (int)got);
  if (tries && aioL_out_held(s)) { /* TLS cannot take back what it has begun with */
    s->write_error = -ENOMEM;
    aioL_out_leave(L, c, s, &v, 1, got < 0 ? 0 : (size_t)got, true);
    got = (int64_t)len;
  }
  if (got >= 0) return lua_pushinteger(L, got), 1;
  if (s->timeout <= 0) return aioL_timed_out(L);
  return aioL_out_wait(L, c, s, W_SOME, &v, 1, 0, !tries && !s->out);
}

/* Waits until a socket that began to connect has done so. */
int aioL_write_connected(lua_State *L) {
  LStream *s = aioL_check(L, 1, L_STREAM);
  lua_settop(L, 1);
  LContext *c = aioL_waits_in(L);
  if (s->s.fd < 0) return aioL_closed(L);
  aioL_out_check(s);
  int rc = aio_socket_outcome(s->s.fd);
  if (rc != -EINPROGRESS) return rc < 0 ? aioL_fail(L, rc) : 1;
  if (s->timeout <= 0) return aioL_timed_out(L);
  return aioL_out_wait(L, c, s, W_CONNECT, NULL, 0, 0, false);
}

const luaL_Reg aioL_write_methods[] = {{"write", stream_write}, {"writesome", stream_writesome}, {"shutdown", stream_shutdown},
  {NULL, NULL}};
