/* SPDX-License-Identifier: MIT */
/* The clock of the limit programs, which have no loop library to ask. */
#include <lauxlib.h>
#include <lua.h>
#include <time.h>

/* require "limit_clock"() -> monotonic ns */
static int now_ns(lua_State *L)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	lua_pushinteger(L, ts.tv_sec * (lua_Integer)1000000000 + ts.tv_nsec);
	return 1;
}

int luaopen_limit_clock(lua_State *L)
{
	lua_pushcfunction(L, now_ns);
	return 1;
}
