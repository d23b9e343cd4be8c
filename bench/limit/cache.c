/* SPDX-License-Identifier: MIT */
/* ../cache.h for Lua. */
#include "../cache.h"

#include <lauxlib.h>
#include <lua.h>

/* require "limit_cache"(path) takes the file out of the page cache */
static int drop(lua_State *L)
{
	const char *why = cache_drop(luaL_checkstring(L, 1));
	return why ? luaL_error(L, "%s", why) : 0;
}

int luaopen_limit_cache(lua_State *L)
{
	lua_pushcfunction(L, drop);
	return 1;
}
