/* SPDX-License-Identifier: MIT
 * What lua/aioloop/socket*.lua makes LuaSocket's objects of: sockets step by step, their options, readiness. No script sees
 * these functions.
 *
 * Way      sockets() -> make -> stream -> bind, begin, connected; or bind, hear -> server
 * Keep     the stream has the fd from its first moment on. */
#include <errno.h>
#include <string.h>

#include "lstream.h"

/* make("inet", "inet6" or "unix") -> stream */
static int face_make(lua_State *L) {
  static const char *const names[] = {"inet", "inet6", "unix", NULL};
  static const int families[] = {AIO_INET, AIO_INET6, AIO_UNIX};
  int family = families[luaL_checkoption(L, 1, NULL, names)];
  LStream *s = aioL_stream_new(L);
  int fd = aio_socket_make(family);
  if (fd < 0) return aioL_fail(L, fd);
  aio_stream_open(&s->s, fd, true);
  return 1;
}

/* stack: stream, path or address in numbers, nil or port */
static int check_address(lua_State *L, AioSockaddr *a) { /* [-0, +0, v] 0 or -errno */
  size_t len;
  const char *name = luaL_checklstring(L, 2, &len);
  if (lua_isnoneornil(L, 3)) return aio_sockaddr_path(a, name, len);
  lua_Integer port = luaL_checkinteger(L, 3);
  luaL_argcheck(L, port >= 0 && port <= UINT16_MAX, 3, "a port is an integer from 0 to 65535");
  return aio_sockaddr_numeric(a, name, (int)port);
}

static int with_address(lua_State *L, int (*call)(int fd, const AioSockaddr *a)) {
  const LStream *s = aioL_check(L, 1, L_STREAM);
  AioSockaddr a;
  int rc = check_address(L, &a);
  if (rc == 0) rc = s->s.fd < 0 ? -EBADF : call(s->s.fd, &a);
  return rc < 0 ? aioL_fail(L, rc) : (lua_pushboolean(L, 1), 1);
}

static int face_bind(lua_State *L) { return with_address(L, aio_socket_bind); }
static int face_begin(lua_State *L) { return aioL_waits_in(L), with_address(L, aio_socket_begin); }

/* may_try() -> boolean: false when it is time to let others run. Raises where waiting is impossible, or cancelled. */
static int face_may_try(lua_State *L) { return lua_pushboolean(L, aio_may_try(aioL_waits_in(L)->core)), 1; }

static int check_fd(lua_State *L) { /* [-0, +0, v] */
  lua_Integer fd = luaL_checkinteger(L, 1);
  luaL_argcheck(L, fd >= -1 && fd <= INT32_MAX, 1, "fd out of range");
  return (int)fd;
}

/* shutdown(fd, "receive", "send" or "both") */
static int face_shutdown(lua_State *L) {
  static const char *const names[] = {"receive", "send", "both", NULL};
  int fd = check_fd(L), how = luaL_checkoption(L, 2, "both", names);
  int rc = aio_socket_shutdown(fd, how != 1, how != 0);
  return rc < 0 ? aioL_fail(L, rc) : (lua_pushboolean(L, 1), 1);
}

/* hostname() */
static int face_hostname(lua_State *L) {
  char name[AIO_HOST_MAX];
  int rc = aio_host_name(name, sizeof name);
  return rc < 0 ? aioL_fail(L, rc) : (lua_pushstring(L, name), 1);
}

/* ---- options ---- */

/* kind(name, whether it is to be set) -> "boolean", "number", "linger", "error"; nil: there is none */
static int face_kind(lua_State *L) {
  static const char *const names[] = {NULL, "boolean", "number", "linger", "error"};
  lua_pushstring(L, names[aio_option_kind(luaL_checkstring(L, 1), lua_toboolean(L, 2))]);
  return 1;
}

static int integer_of(lua_State *L, int idx) { /* [-0, +0, v] */
  if (lua_isboolean(L, idx)) return lua_toboolean(L, idx);
  lua_Number n = luaL_optnumber(L, idx, 0);
  luaL_argcheck(L, n >= INT32_MIN && n <= INT32_MAX, idx, "number out of range");
  return (int)n;
}

/* setoption(fd, name, value, seconds to linger) */
static int face_setoption(lua_State *L) {
  int fd = check_fd(L);
  const char *name = luaL_checkstring(L, 2);
  const int value[2] = {integer_of(L, 3), integer_of(L, 4)};
  int rc = aio_option_set(fd, name, value);
  return rc < 0 ? aioL_fail(L, rc) : (lua_pushboolean(L, 1), 1);
}

/* getoption(fd, name) -> integer; "linger": whether, seconds; "error": errno, message */
static int face_getoption(lua_State *L) {
  int value[2], fd = check_fd(L);
  const char *name = luaL_checkstring(L, 2);
  int rc = aio_option_get(fd, name, value);
  if (rc < 0) return aioL_fail(L, rc);
  lua_pushinteger(L, value[0]);
  if (aio_option_kind(name, false) == AIO_OPTION_ERROR)
    lua_pushstring(L, strerror(value[0]));
  else
    lua_pushinteger(L, value[1]);
  return 2;
}

static int mod_sockets(lua_State *L) {
  static const luaL_Reg functions[] = {{"make", face_make}, {"bind", face_bind}, {"begin", face_begin},
    {"connected", aioL_write_connected}, {"hear", aioL_server_hear}, {"shutdown", face_shutdown}, {"hostname", face_hostname},
    {"may_try", face_may_try}, {"kind", face_kind}, {"setoption", face_setoption}, {"getoption", face_getoption}, {"ready", aioL_select_ready},
    {"wait_any", aioL_select_wait}, {"closing", aioL_select_closing}, {NULL, NULL}};
  lua_newtable(L);
  aioL_functions(L, aioL_runtime(L), functions);
  return 1;
}

void aioL_open_sockets(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg functions[] = {{"sockets", mod_sockets}, {NULL, NULL}};
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
