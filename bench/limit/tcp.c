/* SPDX-License-Identifier: MIT */
/* Raw TCP sockets for Lua: the other ends of connections, and both ends where there is no loop library. */
#include <arpa/inet.h>
#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <sys/socket.h>
#include <unistd.h>

static int integer_or_errno(lua_State *L, int value)
{
	if (value >= 0)
		return lua_pushinteger(L, value), 1;
	lua_pushnil(L);
	lua_pushinteger(L, errno);
	return 2;
}

static struct sockaddr_in loopback(int port)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return at;
}

/* listen() -> fd, port | nil, errno */
static int tcp_listen(lua_State *L)
{
	struct sockaddr_in at = loopback(0);
	socklen_t len = sizeof at;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&at, len) < 0 || listen(fd, 1024) < 0)
		return integer_or_errno(L, -1);
	getsockname(fd, (struct sockaddr *)&at, &len);
	lua_pushinteger(L, fd);
	lua_pushinteger(L, ntohs(at.sin_port));
	return 2;
}

/* accept(fd) -> fd | nil, errno */
static int tcp_accept(lua_State *L)
{
	return integer_or_errno(L, accept4((int)luaL_checkinteger(L, 1), NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

/* dial(port) -> fd | nil, errno. It ends by a reset, so that nothing of it lingers in the kernel. */
static int tcp_dial(lua_State *L)
{
	struct sockaddr_in to = loopback((int)luaL_checkinteger(L, 1));
	struct linger at_once = {.l_onoff = 1};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
		return integer_or_errno(L, -1);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
	return integer_or_errno(L, fd);
}

/* write(fd, string) -> bytes | nil, errno */
static int tcp_write(lua_State *L)
{
	size_t len;
	const char *s = luaL_checklstring(L, 2, &len);
	return integer_or_errno(L, (int)write((int)luaL_checkinteger(L, 1), s, len));
}

int luaopen_limit_tcp(lua_State *L)
{
	static const luaL_Reg functions[] = {
		{"listen", tcp_listen}, {"accept", tcp_accept}, {"dial", tcp_dial}, {"write", tcp_write}, {NULL, NULL}};
	luaL_newlib(L, functions);
	return 1;
}
