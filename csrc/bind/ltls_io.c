/* SPDX-License-Identifier: MIT
 * TLS: what LuaSec is asked for when bytes are to go through a connection, and what it says.
 *
 * Way      aio_stream_read, aio_stream_write -> aioL_tls_read, aioL_tls_write -> LuaSec's receive, send -> judge;
 *          aioL_tls_step -> LuaSec's dohandshake
 * Owner    ltls.c.
 * Keep     LuaSec runs in a thread of its own, in which its callbacks may raise but not wait. Finalisers may run in it: what
 *          closes the stream meanwhile is heeded when LuaSec has returned. After an error LuaSec is asked for nothing more:
 *          it might try for ever. */
#include <errno.h>
#include <string.h>

#include "ltls.h"

enum { CHUNK = 64 << 10 };

/* ---- LuaSec ---- */

bool aioL_tls_call(LTls *tls, LTlsCall fn, int nargs, int nresults) {
  lua_State *T = tls->lib->T;
  lua_rawgeti(T, LUA_REGISTRYINDEX, tls->lib->rt->objects);
  lua_rawgetp(T, -1, tls->s);
  lua_replace(T, -2);
  lua_rawgeti(T, LUA_REGISTRYINDEX, tls->lib->fns[fn]);
  lua_rawgeti(T, LUA_REGISTRYINDEX, tls->connection);
  lua_rotate(T, -nargs - 3, 3);
  AioSigpipe pipe;
  tls->busy = true;
  tls->reads = fn != T_SEND;
  aio_sigpipe_block(&pipe);
  errno = 0;
  bool fine = lua_pcall(T, nargs + 1, nresults, 0) == LUA_OK;
  int error = errno;
  aio_sigpipe_unblock(&pipe, fn != T_RECEIVE || error == EPIPE);
  tls->busy = false;
  errno = error;
  return fine;
}

static int break_off(LTls *tls, int rc, const char *message) {
  tls->broken = (int16_t)rc;
  strncpy(tls->message, message ? message : "", sizeof tls->message - 1);
  return rc;
}

/* Of what LuaSec has returned after false or nil: its word is at idx of lib->T. Socket errors have errno, too. */
static int judge(LTls *tls, AioDir half, int idx, int error) {
  const char *word = lua_tostring(tls->lib->T, idx);
  if (!word) return break_off(tls, -EPROTO, "unknown error of TLS");
  if (!strcmp(word, "wantread")) return tls->filter.wants[half] = AIO_READ, -EAGAIN;
  if (!strcmp(word, "wantwrite")) return tls->filter.wants[half] = AIO_WRITE, -EAGAIN;
  bool of_socket = !strcmp(word, "closed") || !strcmp(word, "timeout") || !strcmp(word, strerror(error));
  if (of_socket && error && error != EAGAIN) return break_off(tls, -error, NULL);
  if (!strcmp(word, "closed")) return break_off(tls, half == AIO_READ ? 0 : -EPIPE, NULL);
  return break_off(tls, -EPROTO, word);
}

static int raised(LTls *tls) { /* the error is on top of lib->T */
  const char *message = lua_type(tls->lib->T, -1) == LUA_TSTRING ? lua_tostring(tls->lib->T, -1) : "error in TLS";
  return break_off(tls, -EPROTO, message);
}

const char *aioL_tls_message(const LStream *s, int rc) {
  const LTls *tls = aioL_tls_of(s->s.filter);
  return rc == tls->broken && *tls->message ? tls->message : NULL;
}

/* 0, or why nothing can be asked of it. */
static int refuses(const LTls *tls, int busy) {
  if (tls->doomed) return -ESHUTDOWN;
  if (tls->busy) return busy; /* it is asked by a finaliser, or by a callback of its own */
  return !tls->connected ? -EALREADY : lua_checkstack(tls->lib->T, L_TLS_SLOTS) ? 0 : -ENOMEM;
}

/* ---- reading and writing ---- */

/* Bytes that have no place any more are lost, and with them the connection. */
static int64_t received(LTls *tls, void *buf, size_t len, uint16_t uses) {
  size_t n;
  const char *data = lua_tolstring(tls->lib->T, -1, &n);
  if (!data || !n) return 0;
  if (tls->doomed) return -ESHUTDOWN;
  if (tls->s->uses != uses || n > len) return break_off(tls, -EIO, "a finaliser has used the stream while it was read");
  memcpy(buf, data, n);
  return (int64_t)n;
}

int64_t aioL_tls_read(AioFilter *f, void *buf, size_t len) {
  LTls *tls = aioL_tls_of(f);
  lua_State *T = tls->lib->T;
  int rc = refuses(tls, -EAGAIN), top = lua_gettop(T);
  f->more = false;
  f->wants[AIO_READ] = AIO_READ;
  if (rc < 0) return rc == -EALREADY ? -EAGAIN : rc;
  if (tls->broken) return tls->broken;
  uint16_t uses = tls->s->uses;
  lua_pushinteger(T, (lua_Integer)len);
  if (!aioL_tls_call(tls, T_RECEIVE, 1, 3)) return rc = raised(tls), lua_settop(T, top), rc;
  bool whole = lua_type(T, -3) == LUA_TSTRING;
  if (!whole) rc = judge(tls, AIO_READ, -2, errno);
  if (whole) lua_pushvalue(T, -3);
  int64_t n = received(tls, buf, len, uses);
  if (n > 0 && (!whole && rc != -EAGAIN)) f->more = true; /* the end, or an error */
  if (n > 0 && whole && aioL_tls_call(tls, T_DIRTY, 0, 1)) f->more = lua_toboolean(T, -1);
  lua_settop(T, top);
  return n ? n : rc;
}

/* lib->T: [-0, +1, m] a string of what comes first. The pieces' memory is not looked at again. */
static int push_chunk(lua_State *T) {
  const AioPiece *v = lua_touserdata(T, 1);
  size_t n = (size_t)lua_tointeger(T, 2), len = 0;
  char scratch[CHUNK];
  if (v->len >= CHUNK || n == 1) return lua_pushlstring(T, v->data, v->len < CHUNK ? v->len : CHUNK), 1;
  for (; n && len < CHUNK; n--, v++) {
    size_t part = v->len < CHUNK - len ? v->len : CHUNK - len;
    if (part) memcpy(scratch + len, v->data, part);
    len += part;
  }
  return lua_pushlstring(T, scratch, len), 1;
}

static bool take_chunk(LTls *tls, const AioPiece *v, size_t n) { /* lib->T: [-0, +1, -] */
  lua_State *T = tls->lib->T;
  if (tls->filter.held) return lua_rawgeti(T, LUA_REGISTRYINDEX, tls->held) == LUA_TSTRING;
  tls->sent = 0;
  lua_pushcfunction(T, push_chunk);
  lua_pushlightuserdata(T, (void *)(uintptr_t)v);
  lua_pushinteger(T, (lua_Integer)n);
  tls->busy = true;
  tls->reads = false;
  bool fine = lua_pcall(T, 2, 1, 0) == LUA_OK;
  tls->busy = false;
  return fine;
}

/* OpenSSL has made a record of bytes that the socket did not take: it must get the same again. */
static void hold(LTls *tls, int idx, bool held) {
  lua_State *T = tls->lib->T;
  if (!held && !tls->filter.held) return;
  if (held)
    lua_pushvalue(T, idx);
  else
    lua_pushboolean(T, 0);
  lua_rawseti(T, LUA_REGISTRYINDEX, tls->held);
  tls->filter.held = held;
}

int64_t aioL_tls_write(AioFilter *f, const AioPiece *v, size_t n) {
  LTls *tls = aioL_tls_of(f);
  lua_State *T = tls->lib->T;
  int rc = refuses(tls, -EBUSY), top = lua_gettop(T);
  if (rc < 0) return rc;
  if (tls->broken) return tls->broken;
  if (!take_chunk(tls, v, n)) return lua_settop(T, top), tls->doomed ? -ESHUTDOWN : -ENOMEM;
  if (tls->doomed) return lua_settop(T, top), -ESHUTDOWN;
  int chunk = top + 1;
  lua_pushvalue(T, chunk);
  lua_pushinteger(T, (lua_Integer)tls->sent + 1);
  f->wants[AIO_WRITE] = AIO_WRITE;
  size_t before = tls->sent;
  if (!aioL_tls_call(tls, T_SEND, 2, 3)) {
    rc = raised(tls);
  } else {
    bool whole = lua_type(T, -3) == LUA_TNUMBER;
    tls->sent = (size_t)lua_tointeger(T, whole ? -3 : -1);
    rc = whole ? 0 : judge(tls, AIO_WRITE, -2, errno);
    if (!tls->doomed) hold(tls, chunk, rc == -EAGAIN);
  }
  lua_settop(T, top);
  if (tls->doomed) return -ESHUTDOWN;
  return tls->sent > before ? (int64_t)(tls->sent - before) : rc;
}

/* ---- the handshake ---- */

static int shaken(LTls *tls) { /* LuaSec says true also of some that have failed */
  bool fine = aioL_tls_call(tls, T_FINISHED, 0, 1) && lua_type(tls->lib->T, -1) == LUA_TSTRING;
  if (!fine) return break_off(tls, -ECONNRESET, NULL);
  tls->connected = tls->filter.more = true;
  return 1;
}

int aioL_tls_step(LTls *tls) {
  lua_State *T = tls->lib->T;
  int top = lua_gettop(T), rc;
  if (tls->busy || !lua_checkstack(T, L_TLS_SLOTS)) return tls->busy ? -EBUSY : -ENOMEM;
  if (!aioL_tls_call(tls, T_HANDSHAKE, 0, 2))
    rc = raised(tls);
  else if (lua_toboolean(T, -2))
    rc = shaken(tls);
  else
    rc = judge(tls, AIO_READ, -1, errno);
  lua_settop(T, top);
  return rc ? rc : break_off(tls, -ECONNRESET, NULL);
}
