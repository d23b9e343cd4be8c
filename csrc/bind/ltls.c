/* SPDX-License-Identifier: MIT
 * TLS: a connection of LuaSec's between a stream and its socket.
 *
 * Way      tls -> the library's functions. call: LuaSec makes contexts and connections. begin(stream, connection): the filter
 *          is in place -> shake: ticket, watch -> on_shake -> results; then aio_stream_read, aio_stream_write -> filter_read,
 *          filter_write -> LuaSec's receive, send
 * Owner    the stream has the LTls in a weak table, and that has the connection; the connection closes the fd. An LTls is made
 *          after its connection, and so finalised before it.
 * Keep     LuaSec runs in a thread of its own, in which its callbacks may raise but not wait. Finalisers may run in it: what
 *          closes the stream meanwhile is heeded when LuaSec has returned. After an error LuaSec is asked for nothing more:
 *          it might try for ever. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "lstream.h"

/*** Streams: connections, pipes, terminals.
@module aioloop.stream */

enum { CHUNK = 64 << 10, SLOTS = 16 /* of T's stack, for a call and its results */ };

typedef enum LTlsCall { T_RECEIVE, T_SEND, T_CLOSE, T_HANDSHAKE, T_DIRTY, T_FINISHED, T_SET_FD, T_CALLS } LTlsCall;

static const char *const call_names[] = {"receive", "send", "close", "dohandshake", "dirty", "getfinished", "setfd"};

/* One for each lua_State; third upvalue of the functions. */
typedef struct LTlsLib {
  lua_State *T;    /* in the registry */
  int of;          /* registry: weak table, stream -> its LTls */
  int objects;     /* registry: LRuntime's */
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
} LTls;

static LTlsLib *lib_of(lua_State *L) { return lua_touserdata(L, lua_upvalueindex(3)); }
static LTls *tls_of(AioFilter *f) { return container_of(f, LTls, filter); }

/* ---- LuaSec ---- */

/* lib->T: [-nargs, +1+nresults, -]; the arguments behind the connection are on top. false, and a message: it has raised.
 * The stream stays beneath: who has it on his stack may be gone when this returns. */
static bool call(LTls *tls, LTlsCall fn, int nargs, int nresults) {
  lua_State *T = tls->lib->T;
  lua_rawgeti(T, LUA_REGISTRYINDEX, tls->lib->objects);
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
  const LTls *tls = tls_of(s->s.filter);
  return rc == tls->broken && *tls->message ? tls->message : NULL;
}

/* 0, or why nothing can be asked of it. */
static int refuses(const LTls *tls, int busy) {
  if (tls->doomed) return -ESHUTDOWN;
  if (tls->busy) return busy; /* it is asked by a finaliser, or by a callback of its own */
  return !tls->connected ? -EALREADY : lua_checkstack(tls->lib->T, SLOTS) ? 0 : -ENOMEM;
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

static int64_t filter_read(AioFilter *f, void *buf, size_t len) {
  LTls *tls = tls_of(f);
  lua_State *T = tls->lib->T;
  int rc = refuses(tls, -EAGAIN), top = lua_gettop(T);
  f->more = false;
  f->wants[AIO_READ] = AIO_READ;
  if (rc < 0) return rc == -EALREADY ? -EAGAIN : rc;
  if (tls->broken) return tls->broken;
  uint16_t uses = tls->s->uses;
  lua_pushinteger(T, (lua_Integer)len);
  if (!call(tls, T_RECEIVE, 1, 3)) return rc = raised(tls), lua_settop(T, top), rc;
  bool whole = lua_type(T, -3) == LUA_TSTRING;
  if (!whole) rc = judge(tls, AIO_READ, -2, errno);
  if (whole) lua_pushvalue(T, -3);
  int64_t n = received(tls, buf, len, uses);
  if (n > 0 && (!whole && rc != -EAGAIN)) f->more = true; /* the end, or an error */
  if (n > 0 && whole && call(tls, T_DIRTY, 0, 1)) f->more = lua_toboolean(T, -1);
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

static int64_t filter_write(AioFilter *f, const AioPiece *v, size_t n) {
  LTls *tls = tls_of(f);
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
  if (!call(tls, T_SEND, 2, 3)) {
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
  bool fine = call(tls, T_FINISHED, 0, 1) && lua_type(tls->lib->T, -1) == LUA_TSTRING;
  if (!fine) return break_off(tls, -ECONNRESET, NULL);
  tls->connected = tls->filter.more = true;
  return 1;
}

static int step(LTls *tls) { /* 1: done; -EAGAIN; -errno */
  lua_State *T = tls->lib->T;
  int top = lua_gettop(T), rc;
  if (tls->busy || !lua_checkstack(T, SLOTS)) return tls->busy ? -EBUSY : -ENOMEM;
  if (!call(tls, T_HANDSHAKE, 0, 2))
    rc = raised(tls);
  else if (lua_toboolean(T, -2))
    rc = shaken(tls);
  else
    rc = judge(tls, AIO_READ, -1, errno);
  lua_settop(T, top);
  return rc ? rc : break_off(tls, -ECONNRESET, NULL);
}

/* 1: done; -EAGAIN; else it is over, and so is the stream. */
static int shake(LStream *s) {
  LTls *tls = tls_of(s->s.filter);
  int rc = step(tls);
  return tls->doomed ? -ESHUTDOWN : rc;
}

static int shake_results(lua_State *L, LTicket *tk) {
  LStream *s = tk->op;
  if (!s) return aioL_closed(L);
  s->reader = NULL;
  if (tk->err == 1) return lua_pushvalue(L, 1), 1;
  return aioL_stream_fail(L, s, tk->err);
}

static const LWaitOps shake_ops = {.name = "stream:starttls", .leave = aioL_read_leave, .results = shake_results,
  .revoke = aioL_read_revoke};

static void on_shake(void *opaque) {
  LStream *s = opaque;
  LTicket *tk = s->reader;
  if (s->watch.lost) {
    aioL_read_lost(s);
    return;
  }
  int rc = shake(s);
  if (s->reader != tk) { /* a callback has ended the wait */
    aioL_tls_settle(s);
    return;
  }
  if (rc == -EAGAIN && s->watch.dir == s->s.filter->wants[AIO_READ]) return;
  if (rc == -EAGAIN) {
    aio_watch_close(&s->watch);
    rc = aioL_read_watch(s, tk->c->core, on_shake);
    if (rc == 0) return;
  }
  aioL_take(tk, L_DONE, rc);
}

/* shake(stream) -> stream; or nil, message, errno; or nil, "timeout"; or nil, "closed": all but the first are the end of it */
static int tls_shake(lua_State *L) {
  LStream *s = aioL_check(L, 1, L_STREAM);
  lua_settop(L, 1);
  LContext *c = aioL_waits_in(L);
  if (s->s.fd < 0 || !s->s.filter) return aioL_closed(L);
  int rc = shake(s);
  if (rc == 1) return 1;
  if (rc != -EAGAIN) return aioL_stream_fail(L, s, rc);
  if (s->timeout <= 0) return aioL_timed_out(L);
  return aioL_read_wait(L, c, s, &shake_ops, on_shake);
}

/* ---- life ---- */

void aioL_tls_settle(LStream *s) {
  const LTls *tls = s->s.filter ? tls_of(s->s.filter) : NULL;
  if (tls && tls->doomed && !tls->busy) aioL_stream_close(s, false);
}

bool aioL_tls_doom(LStream *s) {
  LTls *tls = tls_of(s->s.filter);
  if (!tls->busy) return false;
  tls->doomed = true;
  if (tls->reads)
    aioL_out_retry(s);
  else
    aioL_read_close(s);
  return true;
}

/* Sending the alert must not block, as it would where LuaSec makes the socket wait for room. */
static bool may_notify(const LTls *tls, int fd) {
  AioReady ready = {.fd = fd, .wanted = 1U << AIO_WRITE};
  return tls->connected && !tls->broken && !tls->filter.held && aio_ready(&ready, 1) == 1;
}

/* The number may be somebody else's by now, and LuaSec would close it: better that its memory is lost. */
static void renounce(const LTls *tls) {
  lua_State *T = tls->lib->T;
  lua_rawgeti(T, LUA_REGISTRYINDEX, tls->connection);
  lua_pushnil(T);
  lua_setmetatable(T, -2);
  lua_pop(T, 1);
}

static void let_go(LTls *tls) {
  luaL_unref(tls->lib->T, LUA_REGISTRYINDEX, tls->connection);
  luaL_unref(tls->lib->T, LUA_REGISTRYINDEX, tls->held);
  tls->connection = tls->held = LUA_NOREF;
}

void aioL_tls_close(LStream *s, bool keep_fd) {
  LTls *tls = tls_of(s->s.filter);
  lua_State *T = tls->lib->T;
  bool lost = keep_fd || s->s.fd < 0;
  int top = lua_gettop(T);
  tls->s = NULL;
  s->s.filter = NULL;
  if (!lua_checkstack(T, SLOTS)) return;
  if (tls->owns && lost) renounce(tls);
  if (tls->owns && !lost) {
    if (!may_notify(tls, s->s.fd)) aio_socket_shutdown(s->s.fd, true, true);
    aio_stream_release(&s->s);
    call(tls, T_CLOSE, 0, 0);
  }
  lua_settop(T, top);
  let_go(tls);
}

static int tls_gc(lua_State *L) {
  LTls *tls = lua_touserdata(L, 1);
  if (tls->s) aioL_stream_close(tls->s, false);
  return 0;
}

static int check_fresh(lua_State *L, const LStream *s) { /* [-0, +0 or n, e] */
  if (s->s.fd < 0) return aioL_closed(L);
  if (s->reader || s->out) return luaL_error(L, "cannot begin TLS on a stream that somebody waits for");
  if (s->s.filter) return luaL_error(L, "the stream speaks TLS already");
  if (!s->s.socket) return aioL_fail(L, -ENOTSOCK);
  lua_Integer unread = (lua_Integer)aio_input_size(&s->s.in);
  if (!unread) return 0;
  luaL_pushfail(L);
  lua_pushfstring(L, "%I bytes have arrived before TLS has begun, and are not read", unread);
  return lua_pushinteger(L, EPROTO), 3;
}

/* fresh(stream) -> true; or nil, message, errno: TLS cannot begin */
static int tls_fresh(lua_State *L) {
  int n = check_fresh(L, aioL_check(L, 1, L_STREAM));
  return n ? n : (lua_pushboolean(L, 1), 1);
}

/* begin(stream, connection) -> true; or nil, message, errno */
static int tls_begin(lua_State *L) {
  LTlsLib *lib = lib_of(L);
  LStream *s = aioL_check(L, 1, L_STREAM);
  luaL_checktype(L, 2, LUA_TUSERDATA);
  lua_settop(L, 2);
  LTls *tls = lua_newuserdatauv(L, sizeof *tls, 0);
  *tls = (LTls){.filter = {.read = filter_read, .write = filter_write, .wants = {AIO_READ, AIO_WRITE}}, .lib = lib,
    .connection = LUA_NOREF, .held = LUA_NOREF};
  aioL_set_class(L, aioL_runtime(L), L_TLS);
  lua_rawgeti(L, LUA_REGISTRYINDEX, lib->of);
  lua_pushvalue(L, 1);
  lua_pushvalue(L, 3);
  lua_rawset(L, -3);
  lua_pushboolean(L, 0);
  tls->held = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_pushvalue(L, 2);
  tls->connection = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_pushvalue(L, 1);
  aioL_know(L, s);
  int n = lua_checkstack(lib->T, SLOTS) ? check_fresh(L, s) : aioL_fail(L, -ENOMEM); /* finalisers have run */
  if (n) return let_go(tls), n;
  tls->s = s;
  s->s.filter = &tls->filter;
  int top = lua_gettop(lib->T);
  lua_pushinteger(lib->T, s->s.fd);
  tls->owns = call(tls, T_SET_FD, 1, 0);
  if (!tls->owns) lua_xmove(lib->T, L, 1), tls->doomed = true;
  lua_settop(lib->T, top);
  if (tls->doomed) aioL_stream_close(s, false);
  if (!tls->owns) return lua_error(L);
  return tls->s ? (lua_pushboolean(L, 1), 1) : aioL_closed(L);
}

/* connection(stream) -> LuaSec's connection; nil: it does not speak TLS */
static int tls_connection(lua_State *L) {
  const LStream *s = aioL_check(L, 1, L_STREAM);
  const LTls *tls = s->s.filter ? tls_of(s->s.filter) : NULL;
  if (tls && tls->connected) return lua_rawgeti(L, LUA_REGISTRYINDEX, tls->connection), 1;
  return luaL_pushfail(L), 1;
}

/* call(fn, ...) -> what it returns. LuaSec notes in which thread its contexts are made, and runs callbacks there. */
static int tls_call(lua_State *L) {
  lua_State *T = lib_of(L)->T;
  int n = lua_gettop(L), base = L == T ? 0 : lua_gettop(T);
  luaL_checkany(L, 1);
  if (!lua_checkstack(T, n + 10)) return luaL_error(L, "stack overflow");
  lua_xmove(L, T, L == T ? 0 : n);
  bool fine = lua_pcall(T, n - 1, LUA_MULTRET, 0) == LUA_OK;
  n = lua_gettop(T) - base;
  if (!lua_checkstack(L, n + 1)) return lua_settop(T, base), luaL_error(L, "too many results");
  if (L != T) lua_xmove(T, L, n);
  return fine ? n : lua_error(L);
}

/* tls(methods of a LuaSec connection, setfd) -> functions */
static int mod_tls(lua_State *L) {
  static const luaL_Reg functions[] = {{"fresh", tls_fresh}, {"begin", tls_begin}, {"shake", tls_shake},
    {"connection", tls_connection}, {"call", tls_call}, {NULL, NULL}};
  static const luaL_Reg methods[] = {{"__gc", tls_gc}, {NULL, NULL}};
  luaL_checktype(L, 1, LUA_TTABLE);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_settop(L, 2);
  aioL_class(L, aioL_runtime(L), L_TLS, methods);
  LTlsLib *lib = lua_newuserdatauv(L, sizeof *lib, 0);
  lib->T = lua_newthread(L);
  lua_sethook(lib->T, NULL, 0, 0);
  luaL_ref(L, LUA_REGISTRYINDEX);
  lua_newtable(L);
  lua_createtable(L, 0, 1);
  lua_pushliteral(L, "k");
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
  lib->of = luaL_ref(L, LUA_REGISTRYINDEX);
  lib->objects = aioL_runtime(L)->objects;
  for (int i = 0; i < T_CALLS; i++) {
    if (i == T_SET_FD)
      lua_pushvalue(L, 2);
    else
      lua_getfield(L, 1, call_names[i]);
    luaL_argcheck(L, lua_isfunction(L, -1), 1, lua_pushfstring(L, "no method '%s'", call_names[i]));
    lib->fns[i] = luaL_ref(L, LUA_REGISTRYINDEX);
  }
  lua_pushvalue(L, 3);
  luaL_ref(L, LUA_REGISTRYINDEX);
  lua_newtable(L);
  aioL_functions_with(L, aioL_runtime(L), functions, 3);
  return 1;
}

void aioL_open_tls(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg functions[] = {{"tls", mod_tls}, {NULL, NULL}};
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
