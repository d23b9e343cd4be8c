/* SPDX-License-Identifier: MIT
 * What streams, servers and sockets of datagrams have in common: options in a table, ports, names, refusals. */
#include <errno.h>
#include <string.h>

#include "lbind.h"

/* Pushes "read, write, poll". */
static const char *list_names(lua_State *L, const char *const names[]) { /* [-0, +1, m] */
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  for (int i = 0; names[i]; i++) {
    if (i) luaL_addstring(&b, ", ");
    luaL_addstring(&b, names[i]);
  }
  return luaL_pushresult(&b), lua_tostring(L, -1);
}

static bool is_one_of(const char *name, const char *const names[]) {
  while (*names && strcmp(name, *names)) names++;
  return *names;
}

void aioL_check_names(lua_State *L, int idx, lua_Unsigned places, const char *const names[]) {
  luaL_checktype(L, idx, LUA_TTABLE);
  for (lua_pushnil(L); lua_next(L, idx); lua_pop(L, 1)) {
    int type = lua_type(L, -2);
    if (type == LUA_TSTRING && is_one_of(lua_tostring(L, -2), names)) continue;
    if (lua_isinteger(L, -2) && (lua_Unsigned)lua_tointeger(L, -2) - 1 < places) continue;
    const char *what = type == LUA_TSTRING || type == LUA_TNUMBER ? luaL_tolstring(L, -2, NULL) : lua_typename(L, type);
    luaL_argerror(L, idx, lua_pushfstring(L, "unknown option '%s'; there are %s", what, list_names(L, names)));
  }
}

bool aioL_field(lua_State *L, int idx, const char *name) {
  lua_pushstring(L, name);
  return lua_rawget(L, idx) != LUA_TNIL;
}

bool aioL_bool_field(lua_State *L, int idx, const char *name, bool value) {
  if (aioL_field(L, idx, name)) {
    if (!lua_isboolean(L, -1)) luaL_argerror(L, idx, lua_pushfstring(L, "%s must be a boolean", name));
    value = lua_toboolean(L, -1);
  }
  return lua_pop(L, 1), value;
}

int64_t aioL_opt_timeout(lua_State *L, int idx) {
  int64_t ns = AIO_FOREVER;
  if (lua_isnoneornil(L, idx)) return ns;
  luaL_checktype(L, idx, LUA_TTABLE);
  if (aioL_field(L, idx, "timeout")) {
    bool number = lua_type(L, -1) == LUA_TNUMBER && lua_compare(L, -1, -1, LUA_OPEQ); /* not NaN */
    luaL_argcheck(L, number, idx, "timeout must be seconds");
    ns = aioL_check_ns(L, lua_gettop(L));
  }
  return lua_pop(L, 1), ns;
}

int aioL_check_port(lua_State *L, int idx) {
  int exact;
  lua_Integer port = lua_tointegerx(L, idx, &exact);
  luaL_argcheck(L, exact && port >= 0 && port <= UINT16_MAX, idx, "a port is an integer from 0 to 65535");
  return (int)port;
}

int aioL_push_socket_name(lua_State *L, int fd, bool peer) {
  char text[AIO_NAME_MAX];
  int port;
  if (fd < 0) return aioL_closed(L);
  int len = aio_socket_name(fd, peer, text, &port);
  if (len < 0) return aioL_fail(L, len);
  lua_pushlstring(L, text, (size_t)len);
  if (port < 0) return 1;
  return lua_pushinteger(L, port), 2;
}

int aioL_unwatchable(lua_State *L, int fd, int rc) {
  if (rc == -EEXIST) return luaL_error(L, "fd %d has a watch for that direction already", fd);
  if (rc == -ENOMEM) return luaL_error(L, "not enough memory");
  return aioL_fail(L, rc);
}
