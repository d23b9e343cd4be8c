/* SPDX-License-Identifier: MIT */
/* Raw non-blocking socketpairs for Lua, so that aioloop and cqueues are measured without their stream layers. */
#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <sys/socket.h>
#include <unistd.h>

static int refuse(lua_State *L)
{
	lua_pushnil(L);
	lua_pushinteger(L, errno);
	return 2;
}

/* socketpair() -> fd, fd | nil, errno */
static int pair_socketpair(lua_State *L)
{
	int fds[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0)
		return refuse(L);
	lua_pushinteger(L, fds[0]);
	lua_pushinteger(L, fds[1]);
	return 2;
}

/* read(fd, max) -> string | nil, errno; max is at most 4096 */
static int pair_read(lua_State *L)
{
	char buf[4096];
	int fd = (int)luaL_checkinteger(L, 1);
	lua_Integer max = luaL_checkinteger(L, 2);
	luaL_argcheck(L, max > 0 && max <= (lua_Integer)sizeof buf, 2, "out of range");
	ssize_t n = read(fd, buf, (size_t)max);
	if (n < 0)
		return refuse(L);
	lua_pushlstring(L, buf, (size_t)n);
	return 1;
}

/* write(fd, string) -> bytes | nil, errno */
static int pair_write(lua_State *L)
{
	size_t len;
	int fd = (int)luaL_checkinteger(L, 1);
	const char *s = luaL_checklstring(L, 2, &len);
	ssize_t n = write(fd, s, len);
	if (n < 0)
		return refuse(L);
	lua_pushinteger(L, n);
	return 1;
}

int luaopen_limit_pair(lua_State *L)
{
	static const luaL_Reg functions[] = {
		{"socketpair", pair_socketpair}, {"read", pair_read}, {"write", pair_write}, {NULL, NULL}};
	luaL_newlib(L, functions);
	return 1;
}
