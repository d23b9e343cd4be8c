/* SPDX-License-Identifier: MIT
 * Streams: making, naming and closing them. What is read is lread.c's, what is written lwrite.c's.
 *
 * Way      aio.stream, aio.pipe, aio.socketpair; server:accept (lserver.c), aio.connect (lconnect.c) -> aioL_stream_new
 * Owner    the userdata has the fd. Who waits has the userdata on its stack; what is queued to be written may anchor it.
 * Keep     a stream belongs to no context: each wait is the business of the one that is current. */
#include <errno.h>
#include <string.h>

#include "lstream.h"

/*** Streams: connections, pipes, terminals.
@module aioloop.stream */

LStream *aioL_stream_new(lua_State *L) {
  LStream *s = lua_newuserdatauv(L, sizeof *s, 0);
  *s = (LStream){.s = {.fd = -1}, .timeout = AIO_FOREVER};
  aioL_set_class(L, aioL_runtime(L), L_STREAM);
  return s;
}

void aioL_stream_close(LStream *s, bool keep_fd) {
  if (s->s.filter && aioL_tls_doom(s)) return;
  bool writing = s->out;
  s->uses++;
  aioL_read_close(s);
  aioL_write_close(s);
  if (s->s.filter) aioL_tls_close(s, keep_fd, writing);
  if (keep_fd)
    aio_stream_forget(&s->s);
  else
    aio_stream_close(&s->s);
}

int aioL_stream_fail(lua_State *L, LStream *s, int rc) {
  if (rc == -ESHUTDOWN) return aioL_tls_settle(s), aioL_closed(L);
  if (rc == -EBADF && s->s.fd < 0) return aioL_closed(L); /* behind our back */
  const char *message = s->s.filter ? aioL_tls_message(s, rc) : NULL;
  if (!message) return aioL_fail(L, rc);
  return luaL_pushfail(L), lua_pushstring(L, message), lua_pushinteger(L, -rc), 3;
}

int aioL_stream_watch(AioWatch *w, LContext *c, LStream *s, AioDir dir, AioFn *ready) {
  int rc = aio_watch_again(w, c->core, s->s.fd, dir, ready, s);
  if (rc == -EEXIST && aioL_select_step_aside(c->rt, s->s.fd)) rc = aio_watch_again(w, c->core, s->s.fd, dir, ready, s);
  return rc == -EPERM ? aio_watch_always(w, c->core, s->s.fd, dir, ready, s) : rc;
}

/* A number that is not its own any more is left alone. */
int aioL_stream_unwatchable(lua_State *L, LStream *s, int rc) {
  if (rc != -EBADF) return aioL_unwatchable(L, s->s.fd, rc);
  aioL_stream_close(s, true);
  return aioL_closed(L);
}

/* ---- making ---- */

static int make_pair(lua_State *L, int (*make)(int fds[2]), bool socket) {
  int fds[2];
  lua_settop(L, 0);
  LStream *a = aioL_stream_new(L), *b = aioL_stream_new(L);
  int rc = make(fds);
  if (rc < 0) return aioL_fail(L, rc);
  aio_stream_open(&a->s, fds[0], socket);
  aio_stream_open(&b->s, fds[1], socket);
  return 2;
}

/*** Makes a pipe.
@function pipe
@treturn stream to read from; or nil, message, errno
@treturn stream to write to */
static int mod_pipe(lua_State *L) { return make_pair(L, aio_pipe_pair, false); }

/*** Makes two streams: what is written to one is read from the other.
@function socketpair
@treturn stream or nil, message, errno
@treturn stream */
static int mod_socketpair(lua_State *L) { return make_pair(L, aio_socket_pair, true); }

/*** Makes a stream of an fd that is there already. An integer above 2 is taken over: the stream closes it. Of 0, 1, 2, and of
what an object has, a duplicate is made, and the object stays usable. The fd is made non-blocking, with all its duplicates,
until the stream is closed.
@function stream
@tparam integer|object fd a number, a file of the io library, or an object with getfd(), fileno() or pollfd()
@treturn stream or nil, message, errno: it is a file or directory (see `aio.open`), or a socket of datagrams
or records (SOCK_SEQPACKET) */
static int mod_stream(lua_State *L) {
  lua_settop(L, 1);
  int fd = aioL_check_fd(L, 1);
  LStream *s = aioL_stream_new(L);
  int rc = aio_stream_adopt(&s->s, fd, fd <= 2 || lua_type(L, 1) != LUA_TNUMBER);
  if (rc == 0) return 1;
  aioL_fail(L, rc);
  if (rc == -EINVAL) lua_pushfstring(L, "fd %d is no stream", fd), lua_replace(L, -3);
  return 3;
}

/* ---- options ---- */

static int seconds_field(lua_State *L, int idx, const char *name) { /* [-0, +0, v] true: 0; absent, false: -1 */
  int value = -1, exact = true;
  if (aioL_field(L, idx, name)) {
    lua_Integer n = lua_isboolean(L, -1) ? (lua_toboolean(L, -1) ? 0 : -1) : lua_tointegerx(L, -1, &exact);
    bool fine = exact && lua_type(L, -1) != LUA_TSTRING && n <= 32767 && (n > 0 || lua_isboolean(L, -1));
    luaL_argcheck(L, fine, idx, lua_pushfstring(L, "%s must be a boolean or whole seconds", name));
    value = (int)n;
  }
  return lua_pop(L, 1), value;
}

void aioL_socket_options(lua_State *L, int idx, AioSocketOptions *o) {
  *o = (AioSocketOptions){.backlog = 128, .reuseaddr = true, .nodelay = true, .keepalive = -1, .v6only = -1};
  if (lua_isnoneornil(L, idx)) return;
  static const char *const names[] = {"backlog", "reuseaddr", "reuseport", "nodelay", "keepalive", "v6only", "timeout", NULL};
  aioL_check_names(L, idx, 0, names);
  o->reuseaddr = aioL_bool_field(L, idx, "reuseaddr", true);
  o->reuseport = aioL_bool_field(L, idx, "reuseport", false);
  o->nodelay = aioL_bool_field(L, idx, "nodelay", true);
  o->keepalive = seconds_field(L, idx, "keepalive");
  if (aioL_field(L, idx, "v6only")) o->v6only = aioL_bool_field(L, idx, "v6only", false);
  lua_pop(L, 1);
  if (aioL_field(L, idx, "backlog")) {
    int exact;
    lua_Integer n = lua_tointegerx(L, -1, &exact);
    luaL_argcheck(L, exact && n >= 0 && n <= INT32_MAX, idx, "backlog must be a number of connections");
    o->backlog = (int)n;
  }
  lua_pop(L, 1);
}

/* check_options(options): raises. lua/aioloop/stream.lua says whose mistake that is. */
static int mod_check_options(lua_State *L) {
  AioSocketOptions o;
  aioL_socket_options(L, 1, &o);
  aioL_opt_timeout(L, 1);
  return 0;
}

/*** Says how long an operation may wait, reading or writing, for all that it has to do: then it returns nil, "timeout", and
what has arrived is kept. `aio.timeout(seconds, stream.write, stream, …)` limits one of them alone.
@function stream:settimeout
@number[opt] seconds none: for ever, as at first; 0: not at all
@treturn stream itself */
static int stream_settimeout(lua_State *L) {
  LStream *s = aioL_check(L, 1, L_STREAM);
  s->timeout = aioL_opt_ns(L, 2);
  return lua_settop(L, 1), 1;
}

/*** Says how many bytes `write` may leave to the loop without waiting. They are written in their order; an error comes with
the next `write`, and `shutdown` waits for them. Closing the stream drops them.
@function stream:setbound
@tparam integer n 0, as at first: `write` returns when the kernel has all
@treturn stream itself */
static int stream_setbound(lua_State *L) {
  LStream *s = aioL_check(L, 1, L_STREAM);
  lua_Integer n = luaL_checkinteger(L, 2);
  luaL_argcheck(L, n >= 0 && n <= UINT32_MAX, 2, "number of bytes out of range");
  s->bound = (uint32_t)n;
  return lua_settop(L, 1), 1;
}

/* ---- names ---- */

/*** The address of the other end.
@function stream:getpeername
@treturn string host; or the path of a Unix socket, "" if it has none; or nil, message, errno
@treturn integer port; of a path none */
static int stream_getpeername(lua_State *L) {
  const LStream *s = aioL_check(L, 1, L_STREAM);
  return aioL_push_socket_name(L, s->s.fd, true);
}

/*** The address of this end.
@function stream:getsockname
@treturn string host or path, as for `getpeername`
@treturn integer port */
static int stream_getsockname(lua_State *L) {
  const LStream *s = aioL_check(L, 1, L_STREAM);
  return aioL_push_socket_name(L, s->s.fd, false);
}

/*** Its descriptor, for others to use while nobody waits here.
@function stream:getfd
@treturn integer -1: it is closed */
static int stream_getfd(lua_State *L) {
  const LStream *s = aioL_check(L, 1, L_STREAM);
  return lua_pushinteger(L, s->s.fd), 1;
}

/*** Gives its descriptor away, to whoever has it by `getfd`, and takes another one over, as `aio.stream` does, for
good. What has arrived and was not read, and what is queued to be written, is dropped.
@function stream:setfd
@tparam integer fd -1: none; the stream is closed then
@treturn stream itself; or nil, message, errno: it is closed then
@raise when somebody waits for it, or it speaks TLS */
static int stream_setfd(lua_State *L) {
  LStream *s = aioL_check(L, 1, L_STREAM);
  lua_Integer fd = luaL_checkinteger(L, 2);
  luaL_argcheck(L, fd >= -1 && fd <= INT32_MAX, 2, "fd out of range");
  if (s->reader || s->out) return luaL_error(L, "cannot change the fd of a stream that somebody waits for");
  if (s->s.filter) return luaL_error(L, "cannot change the fd of a stream that speaks TLS");
  aioL_stream_close(s, true);
  s->watch = (AioWatch){.ctx = NULL};
  s->write_error = 0;
  int rc = fd < 0 ? 0 : aio_stream_adopt(&s->s, (int)fd, fd <= 2);
  if (rc < 0) return aioL_fail(L, rc);
  if (fd > 2) s->s.restore = false;
  return lua_settop(L, 1), 1;
}

/*** Closes it. Whoever waits for it has nil, "closed". Also `<close>`, and what the collector does; twice is fine. One that
speaks TLS tells the other end that this is all, unless a write is cut short; where its socket has no room for that, the context
whose turn is running does so as soon as there is some, for at most 30 seconds, and goes on meanwhile.
@function stream:close
@treturn boolean true */
static int stream_close(lua_State *L) {
  aioL_stream_close(aioL_check(L, 1, L_STREAM), false);
  return lua_pushboolean(L, 1), 1;
}

static int stream_text(lua_State *L) {
  const LStream *s = aioL_check(L, 1, L_STREAM);
  if (s->s.fd < 0)
    lua_pushfstring(L, "aioloop.stream (closed): %p", lua_topointer(L, 1));
  else
    lua_pushfstring(L, "aioloop.stream (open, fd %d): %p", s->s.fd, lua_topointer(L, 1));
  return 1;
}

static void open_stream(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"settimeout", stream_settimeout}, {"setbound", stream_setbound},
    {"getpeername", stream_getpeername}, {"getsockname", stream_getsockname}, {"getfd", stream_getfd}, {"setfd", stream_setfd},
    {"close", stream_close}, {"__close", stream_close}, {"__gc", stream_close}, {"__tostring", stream_text}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"pipe", mod_pipe}, {"socketpair", mod_socketpair}, {"stream", mod_stream},
                                       {"check_options", mod_check_options}, {NULL, NULL}};
  aioL_class(L, rt, L_STREAM, methods);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->meta_ref[L_STREAM]);
  aioL_functions(L, rt, aioL_read_methods);
  aioL_functions(L, rt, aioL_write_methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 2);
}

/* The classes are made when a script first asks for one of these functions: it would cost every `require`. Returns the
 * functions, and the methods of streams and of servers. */
static int mod_streams(lua_State *L) {
  LRuntime *rt = aioL_runtime(L);
  lua_settop(L, 0);
  lua_newtable(L);
  open_stream(L, rt, 1);
  aioL_open_server(L, rt, 1);
  aioL_open_connect(L, rt, 1);
  aioL_open_tls(L, rt, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->meta_ref[L_STREAM]);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->meta_ref[L_SERVER]);
  return 3;
}

void aioL_open_streams(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg functions[] = {{"streams", mod_streams}, {NULL, NULL}};
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
