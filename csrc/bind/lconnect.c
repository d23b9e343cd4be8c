/* SPDX-License-Identifier: MIT
 * Connecting to addresses; names are resolved before (lua/aioloop/stream.lua).
 *
 * Way      connect_to -> aio_connect -> connected at once: no wait; else ticket -> done -> aioL_take -> results
 * Owner    the AioConnect is the ticket's: freed by the results, or by who takes the ticket otherwise. */
#include <errno.h>

#include "lstream.h"

static void done(void *opaque) { aioL_take(opaque, L_DONE, 0); }

static void leave(LTicket *tk) {
  if (tk->outcome != L_DONE) aio_connect_free(tk->op);
}

/* stack: list, options, stream, ... */
static int finish(lua_State *L, AioConnect *k) {
  LStream *st = lua_touserdata(L, 3);
  int fd = aio_connect_result(k);
  aio_connect_free(k);
  if (fd < 0) return aioL_fail(L, fd);
  aio_stream_open(&st->s, fd, true);
  return lua_pushvalue(L, 3), 1;
}

static int results(lua_State *L, LTicket *tk) { return finish(L, tk->op); }

static void revoke(lua_State *L, LTicket *tk) {
  UNUSED(L);
  aio_connect_free(tk->op);
}

static const LWaitOps connect_ops = {.name = "aio.connect", .leave = leave, .results = results, .revoke = revoke};

/* stack: list of {addr=, port=} at 1 -> ..., addresses (userdata). Those that make no sense are left out. */
static AioSockaddr *check_list(lua_State *L, unsigned *count) { /* [-0, +1, v] */
  lua_Unsigned n = lua_rawlen(L, 1);
  luaL_argcheck(L, n > 0 && n < 1 << 16, 1, "addresses expected");
  AioSockaddr *list = lua_newuserdatauv(L, n * sizeof *list, 0);
  *count = 0;
  for (lua_Unsigned i = 1; i <= n; i++) {
    lua_rawgeti(L, 1, (lua_Integer)i);
    luaL_checktype(L, -1, LUA_TTABLE);
    int at = lua_gettop(L);
    aioL_field(L, at, "addr");
    aioL_field(L, at, "port");
    if (aio_sockaddr_numeric(&list[*count], luaL_checkstring(L, -2), (int)luaL_checkinteger(L, -1)) == 0) ++*count;
    lua_settop(L, at - 1);
  }
  aio_sockaddr_interleave(list, *count);
  return list;
}

/* stack: path at 1 -> ..., address (userdata) */
static AioSockaddr *check_path(lua_State *L, unsigned *count, int *rc) { /* [-0, +1, v] */
  size_t len;
  const char *path = luaL_checklstring(L, 1, &len);
  AioSockaddr *a = lua_newuserdatauv(L, sizeof *a, 0);
  *rc = aio_sockaddr_path(a, path, len);
  *count = 1;
  return a;
}

/* connect_to(path or list of {addr=, port=}, options) */
static int mod_connect_to(lua_State *L) {
  AioSocketOptions o;
  AioConnect *k;
  unsigned n;
  int rc = 0;
  lua_settop(L, 2);
  aioL_socket_options(L, 2, &o);
  LContext *c = aioL_waits_in(L);
  aioL_stream_new(L);
  const AioSockaddr *list = lua_istable(L, 1) ? check_list(L, &n) : check_path(L, &n, &rc);
  if (rc < 0) return aioL_fail(L, rc);
  LTicket *tk = aioL_ticket(L, c, &connect_ops);
  rc = aio_connect(&k, c->core, list, n, &o, done, tk);
  if (rc != 0) aioL_ticket_drop(tk);
  if (rc < 0) return aioL_fail(L, rc);
  if (rc > 0) return finish(L, k);
  tk->op = k;
  return aioL_wait(L, tk, AIO_FOREVER);
}

void aioL_open_connect(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg functions[] = {{"connect_to", mod_connect_to}, {NULL, NULL}};
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
