/* SPDX-License-Identifier: MIT
 * The end of TLS: a stream is closed at once, but its connection has still to say goodbye, or the peer takes what it has
 * read for cut short.
 *
 * Way      aioL_tls_close -> part; or, while the socket has no room for the alert, linger -> a turn -> on_room, on_limit
 *          -> part -> LuaSec's close, which closes the fd
 * Owner    the stream's LTls; one that lingers is kept by the registry and by the context in whose turns it does.
 * Keep     LuaSec makes the socket block before it sends the alert: it is asked to only where there is room, or where the
 *          connection has been shut down. */
#include "ltls.h"

#define LINGER_NS INT64_C(30000000000)

static bool has_room(int fd) { return aioL_fd_ready(fd, AIO_WRITE); }

/* The number may be somebody else's by now, and LuaSec would close it: better that its memory is lost. */
static void renounce(const LTls *tls) {
  lua_State *T = tls->lib->T;
  lua_rawgeti(T, LUA_REGISTRYINDEX, tls->connection);
  lua_pushnil(T);
  lua_setmetatable(T, -2);
  lua_pop(T, 1);
}

/* The kernel resets a connection that is closed with bytes unread, and the peer loses what it has not read yet. Of those that
 * nobody asked for, session tickets, TLS is to take what there is; nothing waits. */
static void take_tickets(LTls *tls) { /* lib->T: [-0, +n, -] */
  lua_pushinteger(tls->lib->T, 1);
  aioL_tls_call(tls, T_RECEIVE, 1, 0);
}

void aioL_tls_let_go(LTls *tls) {
  luaL_unref(tls->lib->T, LUA_REGISTRYINDEX, tls->connection);
  luaL_unref(tls->lib->T, LUA_REGISTRYINDEX, tls->held);
  tls->connection = tls->held = LUA_NOREF;
}

/* ---- while there is no room ---- */

static void end_lingering(LTls *tls) {
  LContext *c = tls->c;
  if (!c) return;
  aio_watch_close(&tls->watch);
  aio_timer_disarm(&tls->limit);
  list_unlink(&tls->link);
  aioL_live(c, true, -1);
  tls->c = NULL;
}

typedef enum LParting { P_CUT, P_SAY, P_SAY_AND_READ } LParting;

static void part(LTls *tls, int fd, LParting how) {
  lua_State *T = tls->lib->T;
  int top = lua_gettop(T);
  end_lingering(tls);
  if (!lua_checkstack(T, L_TLS_SLOTS)) return; /* LuaSec's finaliser will close it */
  if (how == P_CUT) aio_socket_shutdown(fd, true, true);
  if (how == P_SAY_AND_READ) take_tickets(tls);
  aioL_tls_call(tls, T_CLOSE, 0, 0);
  lua_settop(T, top);
  aioL_tls_let_go(tls);
}

static void on_room(void *opaque) {
  LTls *tls = opaque;
  if (!tls->watch.lost) {
    part(tls, tls->fd, P_SAY_AND_READ);
    return;
  }
  end_lingering(tls);
  renounce(tls);
  aioL_tls_let_go(tls);
}

static void on_limit(void *opaque) {
  LTls *tls = opaque;
  part(tls, tls->fd, P_CUT);
}

/* lib->T: [-0, +0, -] false: it is being finalised */
static bool keep_alive(LTls *tls) {
  lua_State *T = tls->lib->T;
  lua_rawgeti(T, LUA_REGISTRYINDEX, tls->lib->rt->objects);
  bool alive = lua_rawgetp(T, -1, tls) == LUA_TUSERDATA;
  if (alive)
    lua_rawseti(T, LUA_REGISTRYINDEX, tls->held); /* nothing else is held, and its place is there */
  else
    lua_pop(T, 1);
  lua_pop(T, 1);
  return alive;
}

/* Where no turn is running nobody may ever look. */
static bool linger(LTls *tls, int fd) {
  LContext *c = tls->lib->rt->current;
  if (!c || c->closed || !keep_alive(tls)) return false;
  tls->fd = fd;
  tls->watch = (AioWatch){.ctx = NULL};
  aio_timer_init(&tls->limit, c->core, AIO_CLOCK_MONOTONIC, on_limit, tls);
  if (aio_watch_open(&tls->watch, c->core, fd, AIO_WRITE, on_room, NULL, tls) < 0) return false;
  int64_t limit = aio_clock_now(AIO_CLOCK_MONOTONIC) + LINGER_NS;
  if (aio_timer_arm(&tls->limit, limit) < 0) return aio_watch_close(&tls->watch), false;
  tls->c = c;
  list_append(&c->partings, &tls->link);
  aioL_live(c, true, 1);
  return true;
}

/* No Lua is entered but LuaSec's. */
static void hurry(LTls *tls) { part(tls, tls->fd, has_room(tls->fd) ? P_SAY : P_CUT); }

void aioL_partings_drop(LContext *c) {
  while (!list_empty(&c->partings)) hurry(container_of(c->partings.next, LTls, link));
}

/* ---- the end ---- */

static void say_goodbye(LTls *tls, int fd, bool writing) {
  bool may = tls->connected && !tls->broken && !tls->filter.held;
  if (may && has_room(fd))
    part(tls, fd, P_SAY_AND_READ);
  else if (!may || writing || !linger(tls, fd))
    part(tls, fd, P_CUT);
}

void aioL_tls_close(LStream *s, bool keep_fd, bool writing) {
  LTls *tls = aioL_tls_of(s->s.filter);
  lua_State *T = tls->lib->T;
  int fd = s->s.fd;
  bool lost = keep_fd || fd < 0;
  tls->s = NULL;
  s->s.filter = NULL;
  if (!lua_checkstack(T, L_TLS_SLOTS)) return;
  if (tls->owns && !lost) {
    aio_stream_release(&s->s);
    say_goodbye(tls, fd, writing);
    return;
  }
  if (tls->owns) renounce(tls);
  aioL_tls_let_go(tls);
}

int aioL_tls_gc(lua_State *L) {
  LTls *tls = lua_touserdata(L, 1);
  if (tls->s) aioL_stream_close(tls->s, false);
  if (tls->c) hurry(tls);
  return 0;
}
