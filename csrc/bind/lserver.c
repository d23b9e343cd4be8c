/* SPDX-License-Identifier: MIT
 * Servers: listening sockets.
 *
 * Way      listen -> aio_socket_listen; accept -> aio_socket_accept at once; nobody there -> ticket, watch -> on_ready ->
 *          accept4 -> the first of those who wait -> results: the stream that was made before it waited
 * Owner    the userdata has the fd. A connection is its ticket's until the results, and goes to another where there are none.
 * Keep     out of descriptors the server looks again later and later, and tells once: the kernel would report without end. */
#include <errno.h>
#include <string.h>

#include "lstream.h"

/*** Servers.
@module aioloop.stream */

#define PAUSE_LEAST INT64_C(100000000)
#define PAUSE_MOST INT64_C(1600000000)

typedef struct LServer {
  const void *mark; /* see aioL_test */
  AioListener l;
  AioWatch watch;
  AioTimer timer;     /* ends a pause */
  AioLink acceptors;  /* tickets */
  LContext *c;        /* of those who wait; NULL: nobody */
  int64_t pause;      /* ns of the last one, while there was no success since */
  int64_t timeout;
} LServer;

static LServer *check_server(lua_State *L) { return aioL_check(L, 1, L_SERVER); }

static bool is_short_of(int rc) { return rc == -EMFILE || rc == -ENFILE || rc == -ENOBUFS || rc == -ENOMEM; }

static void close_server(LServer *s, bool keep_fd) {
  aioL_take_all(&s->acceptors, L_CLOSED, 0);
  aio_watch_close(&s->watch);
  aio_timer_disarm(&s->timer);
  aio_socket_unlisten(&s->l, keep_fd);
}

/* ---- accepting ---- */

static void leave(LTicket *tk) {
  LServer *s = tk->op;
  list_unlink(&tk->link);
  if (!list_empty(&s->acceptors)) return;
  s->c = NULL;
  aio_watch_close(&s->watch);
  aio_timer_disarm(&s->timer);
}

static int raise_short(lua_State *L) {
  return luaL_error(L, "a server cannot accept connections, and will try again: %s", strerror((int)lua_tointeger(L, 1)));
}

/* stack effect on c->L: [-0, +0, -] */
static void tell(LContext *c, int rc) {
  lua_State *L = c->L;
  aioL_push_side(L, c);
  bool heard = lua_rawgeti(L, -1, SIDE_ON_ERROR) != LUA_TNIL;
  lua_pop(L, 2);
  if (!heard) { /* an error would end the program that has only to wait */
    lua_warning(L, "aioloop: a server cannot accept connections, and will try again: ", 1);
    lua_warning(L, strerror(-rc), 0);
    return;
  }
  lua_pushcfunction(L, raise_short);
  lua_pushinteger(L, -rc);
  aioL_call(c, 1, "server");
}

static void on_ready(void *opaque);

static int watch(LServer *s, LContext *c) {
  int rc = aio_watch_again(&s->watch, c->core, s->l.fd, AIO_READ, on_ready, s);
  s->watch.nests = true; /* who has got one may poll until the next has, too */
  return rc;
}

static void fail_all(LServer *s, int rc) {
  aioL_take_all(&s->acceptors, L_FAILED, rc);
}

static void cannot_watch(LServer *s, int rc) {
  if (rc == -EBADF)
    close_server(s, true); /* the number is somebody else's, or will be */
  else
    fail_all(s, rc);
}

static void pause_over(void *opaque) {
  LServer *s = opaque;
  int rc = watch(s, s->c);
  if (rc < 0) cannot_watch(s, rc);
}

static void pause_for(LServer *s, LContext *c, int rc) {
  bool first = s->pause == 0;
  s->pause = first ? PAUSE_LEAST : s->pause < PAUSE_MOST ? 2 * s->pause : PAUSE_MOST;
  aio_watch_close(&s->watch);
  aio_timer_init(&s->timer, c->core, AIO_CLOCK_MONOTONIC, pause_over, s);
  if (aio_timer_arm(&s->timer, aio_clock_now(AIO_CLOCK_MONOTONIC) + s->pause) < 0) fail_all(s, rc);
  if (first) tell(c, rc);
}

/* One connection for each time that it is ready: whoever gets it will ask for more. */
static void on_ready(void *opaque) {
  LServer *s = opaque;
  LTicket *tk = aioL_ticket_first_alive(&s->acceptors);
  if (!tk) return; /* closed by coroutine.close, all of them */
  int fd = s->watch.lost ? s->watch.lost : aio_socket_accept(s->l.fd);
  if (fd == -EAGAIN) return;
  if (s->watch.lost || fd == -EBADF) {
    cannot_watch(s, fd);
    return;
  }
  if (is_short_of(fd)) {
    pause_for(s, s->c, fd);
    return;
  }
  s->pause = 0;
  aioL_take(tk, fd < 0 ? L_FAILED : L_DONE, fd);
}

/* stack: server, timeout, stream */
static int open_stream(lua_State *L, int fd) {
  LStream *st = lua_touserdata(L, 3);
  aio_stream_open(&st->s, fd, true);
  return lua_pushvalue(L, 3), 1;
}

static int results(lua_State *L, LTicket *tk) { return open_stream(L, tk->err); }

static void revoke(lua_State *L, LTicket *tk) {
  UNUSED(L);
  aio_socket_close(tk->err); /* who was to have it was killed; the server may be gone, too */
}

static const LWaitOps accept_ops = {.name = "server:accept", .leave = leave, .results = results, .revoke = revoke};

/*** Waits for a connection.
@function server:accept
@number[opt] timeout seconds; else the server's
@treturn stream or nil, "timeout"; or nil, "closed"; or nil, message, errno */
static int server_accept(lua_State *L) {
  LServer *s = check_server(L);
  int64_t timeout = lua_isnoneornil(L, 2) ? s->timeout : aioL_check_ns(L, 2);
  lua_settop(L, 2);
  LContext *c = aioL_waits_in(L);
  aioL_stream_new(L); /* what is accepted must not get lost for want of memory */
  if (s->l.fd < 0) return aioL_closed(L);
  if (s->c && s->c != c) return luaL_error(L, "a task of another context waits in server:accept");
  bool tries = list_empty(&s->acceptors) && (timeout <= 0 || aio_may_try(c->core));
  int fd = tries ? aio_socket_accept(s->l.fd) : -EAGAIN;
  if (fd >= 0) return s->pause = 0, open_stream(L, fd);
  if (fd == -EBADF) return close_server(s, true), aioL_closed(L);
  if (timeout <= 0 && fd == -EAGAIN) return aioL_timed_out(L);
  if (fd != -EAGAIN && !(is_short_of(fd) && timeout > 0)) return aioL_fail(L, fd);
  LTicket *tk = aioL_ticket(L, c, &accept_ops);
  int rc = s->l.fd < 0 ? -ESHUTDOWN : s->c && s->c != c ? -EBUSY : 0; /* a finaliser, just now */
  if (rc == 0 && !aio_watch_is_open(&s->watch) && !aio_timer_armed(&s->timer)) rc = watch(s, c);
  if (rc < 0) aioL_ticket_drop(tk);
  if (rc == -EBADF) return close_server(s, true), aioL_closed(L);
  if (rc < 0) return aioL_unwatchable(L, s->l.fd, rc);
  s->c = c;
  tk->op = s;
  list_append(&s->acceptors, &tk->link);
  return aioL_wait(L, tk, timeout);
}

/* ---- the rest ---- */

static LServer *new_server(lua_State *L) { /* [-0, +1, m] closed */
  LServer *s = lua_newuserdatauv(L, sizeof *s, 0);
  *s = (LServer){.l.fd = -1, .timer.pos = -1, .timeout = AIO_FOREVER};
  list_init(&s->acceptors);
  return aioL_set_class(L, aioL_runtime(L), L_SERVER), s;
}

/* listen_at(path, nil, options) or (address in numbers, port, options); lua/aioloop/stream.lua has the rest. */
static int mod_listen_at(lua_State *L) {
  AioSocketOptions o;
  AioSockaddr a;
  size_t len;
  const char *name = luaL_checklstring(L, 1, &len);
  lua_settop(L, 3);
  int port = lua_isnil(L, 2) ? -1 : aioL_check_port(L, 2);
  aioL_socket_options(L, 3, &o);
  int64_t timeout = aioL_opt_timeout(L, 3);
  int rc = port < 0 ? aio_sockaddr_path(&a, name, len) : aio_sockaddr_numeric(&a, name, port);
  if (rc < 0) return aioL_fail(L, rc);
  LServer *s = new_server(L);
  s->timeout = timeout;
  rc = aio_socket_listen(&s->l, &a, &o);
  return rc < 0 ? aioL_fail(L, rc) : 1;
}

/* Makes a server of a stream's socket, which is bound: the stream is closed then, and has no fd. */
int aioL_server_hear(lua_State *L) { /* hear(stream, backlog) */
  LStream *st = aioL_check(L, 1, L_STREAM);
  lua_Integer backlog = luaL_checkinteger(L, 2);
  if (backlog > INT32_MAX || backlog < 0) backlog = INT32_MAX;
  LServer *s = new_server(L);
  if (st->s.fd < 0) return aioL_fail(L, -EBADF);
  if (st->reader || st->out) return luaL_error(L, "cannot listen on a stream that somebody waits for");
  int rc = aio_socket_hear(st->s.fd, (int)backlog);
  if (rc < 0) return aioL_fail(L, rc);
  s->l.fd = st->s.fd;
  aioL_stream_close(st, true);
  return 1;
}

/*** Its address.
@function server:getsockname
@treturn string host; or the path of a Unix socket; or nil, message, errno
@treturn integer port; of a path none */
static int server_getsockname(lua_State *L) { return aioL_push_socket_name(L, check_server(L)->l.fd, false); }

/*** Its descriptor.
@function server:getfd
@treturn integer -1: it is closed */
static int server_getfd(lua_State *L) { return lua_pushinteger(L, check_server(L)->l.fd), 1; }

/*** Gives its descriptor away, to whoever has it by `getfd`, and takes another one over, of a socket that listens. A path that
it has made stays.
@function server:setfd
@tparam integer fd -1: none; the server is closed then
@treturn server itself; or nil, message, errno: it is closed then
@raise when somebody waits for it */
static int server_setfd(lua_State *L) {
  LServer *s = check_server(L);
  lua_Integer fd = luaL_checkinteger(L, 2);
  luaL_argcheck(L, fd >= -1 && fd <= INT32_MAX, 2, "fd out of range");
  if (!list_empty(&s->acceptors)) return luaL_error(L, "cannot change the fd of a server that somebody waits for");
  s->l.path.ino = 0;
  close_server(s, true);
  s->watch = (AioWatch){.ctx = NULL};
  int rc = fd < 0 ? 0 : aio_socket_adopt(&s->l, (int)fd);
  return rc < 0 ? aioL_fail(L, rc) : (lua_settop(L, 1), 1);
}

/*** Closes it, and removes the path that it has made. Whoever waits has nil, "closed"; accepted streams stay. Also `<close>`, and
what the collector does; twice is fine.
@function server:close
@treturn boolean true */
static int server_close(lua_State *L) { return close_server(check_server(L), false), lua_pushboolean(L, 1), 1; }

static int server_text(lua_State *L) {
  const LServer *s = check_server(L);
  if (s->l.fd < 0)
    lua_pushfstring(L, "aioloop.server (closed): %p", lua_topointer(L, 1));
  else
    lua_pushfstring(L, "aioloop.server (open, fd %d): %p", s->l.fd, lua_topointer(L, 1));
  return 1;
}

void aioL_open_server(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"accept", server_accept}, {"getsockname", server_getsockname}, {"getfd", server_getfd},
    {"setfd", server_setfd}, {"close", server_close}, {"__close", server_close}, {"__gc", server_close}, {"__tostring", server_text}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"listen_at", mod_listen_at}, {NULL, NULL}};
  aioL_class(L, rt, L_SERVER, methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
