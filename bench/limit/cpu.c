/* SPDX-License-Identifier: MIT */
/* Keeps a thread on a CPU, for programs whose threads have one each. */
#include <lauxlib.h>
#include <lua.h>
#include <sched.h>
#include <stdlib.h>

/* require "limit_cpu"(variable): the calling thread, on the CPU that this environment variable names */
static int use(lua_State *L)
{
	cpu_set_t set;
	const char *variable = luaL_checkstring(L, 1), *cpu = getenv(variable);
	CPU_ZERO(&set);
	CPU_SET(cpu ? atoi(cpu) : CPU_SETSIZE - 1, &set);
	if (sched_setaffinity(0, sizeof set, &set) < 0)
		return luaL_error(L, "%s: there is no such CPU", variable);
	return 0;
}

int luaopen_limit_cpu(lua_State *L)
{
	lua_pushcfunction(L, use);
	return 1;
}
