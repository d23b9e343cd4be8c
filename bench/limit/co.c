/* SPDX-License-Identifier: MIT */
/* The limit of a coroutine switch: a C queue of lua_State, resumed by lua_resume, left by a C function that yields.
 *
 * Way:   start(co) or yield() -> put -> run() -> lua_resume
 * Owner: the script holds the coroutines.
 * Keep:  the link of the queue is the coroutine's extra space, so a switch allocates nothing. */
#include <lauxlib.h>
#include <lua.h>
#include <string.h>

static struct {
	lua_State *head, *tail;
} queue;

static void link_set(lua_State *co, lua_State *next)
{
	memcpy(lua_getextraspace(co), &next, sizeof next);
}

static lua_State *link_get(lua_State *co)
{
	lua_State *next;
	memcpy(&next, lua_getextraspace(co), sizeof next);
	return next;
}

static void put(lua_State *co)
{
	link_set(co, NULL);
	if (queue.head)
		link_set(queue.tail, co);
	else
		queue.head = co;
	queue.tail = co;
}

static lua_State *take(void)
{
	lua_State *co = queue.head;
	queue.head = link_get(co);
	return co;
}

/* start(co) */
static int start(lua_State *L)
{
	put(lua_tothread(L, 1));
	return 0;
}

/* yield() */
static int yield(lua_State *L)
{
	put(L);
	return lua_yield(L, 0);
}

static int fail(lua_State *L, lua_State *co)
{
	luaL_traceback(L, co, lua_tostring(co, -1), 0);
	return lua_error(L);
}

/* run() -> resumes */
static int run(lua_State *L)
{
	lua_Integer count = 0;
	while (queue.head) {
		lua_State *co = take();
		int results;
		if (lua_resume(co, L, 0, &results) > LUA_YIELD)
			return fail(L, co);
		lua_pop(co, results);
		count++;
	}
	lua_pushinteger(L, count);
	return 1;
}

int luaopen_limit_co(lua_State *L)
{
	static const luaL_Reg functions[] = {{"start", start}, {"yield", yield}, {"run", run}, {NULL, NULL}};
	luaL_newlib(L, functions);
	return 1;
}
