/* SPDX-License-Identifier: MIT
 * TLS: a connection of LuaSec's between a stream and its socket. Its end is ltls_close.c's.
 *
 * Way      tls -> the library's functions. call: LuaSec makes contexts and connections. begin(stream, connection): the filter
 *          is in place -> shake: ticket, watch -> on_shake -> results; then bytes go through ltls_io.c
 * Owner    the stream has the LTls in a weak table, and that has the connection; the connection closes the fd. An LTls is made
 *          after its connection, and so finalised before it.
 * Keep     a stream that is closed while LuaSec is on the C stack is doomed: it is closed when LuaSec has returned. */
#include <errno.h>
#include <fcntl.h>

#include "ltls.h"

/*** Streams: connections, pipes, terminals.
@module aioloop.stream */

static const char *const call_names[] = {"receive", "send", "close", "dohandshake", "dirty", "getfinished", "setfd"};

static LTlsLib *lib_of(lua_State *L) { return lua_touserdata(L, lua_upvalueindex(3)); }

/* ---- the handshake ---- */

/* 1: done; -EAGAIN; else it is over, and so is the stream. */
static int shake(LStream *s) {
  LTls *tls = aioL_tls_of(s->s.filter);
  int rc = aioL_tls_step(tls);
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
    rc = aioL_read_watch(s, tk->c, on_shake);
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
  const LTls *tls = s->s.filter ? aioL_tls_of(s->s.filter) : NULL;
  if (tls && tls->doomed && !tls->busy) aioL_stream_close(s, false);
}

bool aioL_tls_doom(LStream *s) {
  LTls *tls = aioL_tls_of(s->s.filter);
  if (!tls->busy) return false;
  tls->doomed = true;
  if (tls->reads)
    aioL_out_retry(s);
  else
    aioL_read_close(s);
  return true;
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
  *tls = (LTls){.filter = {.read = aioL_tls_read, .write = aioL_tls_write, .wants = {AIO_READ, AIO_WRITE}}, .lib = lib,
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
  lua_pushvalue(L, 3);
  aioL_know(L, tls);
  int n = lua_checkstack(lib->T, L_TLS_SLOTS) ? check_fresh(L, s) : aioL_fail(L, -ENOMEM); /* finalisers have run */
  if (n) return aioL_tls_let_go(tls), n;
  tls->s = s;
  s->s.filter = &tls->filter;
  int top = lua_gettop(lib->T);
  lua_pushinteger(lib->T, s->s.fd);
  tls->owns = aioL_tls_call(tls, T_SET_FD, 1, 0);
  if (!tls->owns) lua_xmove(lib->T, L, 1), tls->doomed = true;
  lua_settop(lib->T, top);
  if (tls->doomed) aioL_stream_close(s, false);
  if (!tls->owns) return lua_error(L);
  return tls->s ? (lua_pushboolean(L, 1), 1) : aioL_closed(L);
}

/* connection(stream) -> LuaSec's connection; nil: it does not speak TLS */
static int tls_connection(lua_State *L) {
  const LStream *s = aioL_check(L, 1, L_STREAM);
  const LTls *tls = s->s.filter ? aioL_tls_of(s->s.filter) : NULL;
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
  static const luaL_Reg methods[] = {{"__gc", aioL_tls_gc}, {NULL, NULL}};
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
  lib->rt = aioL_runtime(L);
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
