/* SPDX-License-Identifier: MIT */
/* The limit of timers: a binary heap in C, one userdata with one user value per timer, one lua_pcall per expiry.
 *
 * Way:   t:arm(s) -> heap -> h:run() -> fire -> lua_pcall with traceback
 * Owner: the timer lives in its userdata; the heap's array belongs to the process.
 * Keep:  an armed timer sits in the anchor table (upvalue 1 of every function), an idle one does not.
 *        Arguments are not checked: this is a limit, not an API. */
#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#define ANCHOR lua_upvalueindex(1)
#define IDLE UINT32_MAX

typedef struct Timer {
	uint32_t pos;  /* in the heap, or IDLE */
	uint32_t slot; /* index in the anchor table, for the timer's life */
} Timer;

typedef struct Entry {
	int64_t deadline;
	Timer *timer;
} Entry;

static struct {
	Entry *at;
	uint32_t len, cap, slots;
} heap;

static int64_t now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

static int traceback(lua_State *L)
{
	luaL_traceback(L, L, lua_tostring(L, 1), 1);
	return 1;
}

static void place(uint32_t pos, Entry e)
{
	heap.at[pos] = e;
	e.timer->pos = pos;
}

static void sift_up(uint32_t pos, Entry e)
{
	while (pos > 0) {
		uint32_t parent = (pos - 1) / 2;
		if (heap.at[parent].deadline <= e.deadline)
			break;
		place(pos, heap.at[parent]);
		pos = parent;
	}
	place(pos, e);
}

static void sift_down(uint32_t pos, Entry e)
{
	for (;;) {
		uint32_t child = 2 * pos + 1;
		if (child >= heap.len)
			break;
		if (child + 1 < heap.len && heap.at[child + 1].deadline < heap.at[child].deadline)
			child++;
		if (e.deadline <= heap.at[child].deadline)
			break;
		place(pos, heap.at[child]);
		pos = child;
	}
	place(pos, e);
}

static void settle(uint32_t pos, Entry e)
{
	if (pos > 0 && e.deadline < heap.at[(pos - 1) / 2].deadline)
		sift_up(pos, e);
	else
		sift_down(pos, e);
}

static void heap_remove(Timer *t)
{
	Entry last = heap.at[--heap.len];
	uint32_t pos = t->pos;
	t->pos = IDLE;
	if (last.timer != t)
		settle(pos, last);
}

static void heap_grow(lua_State *L)
{
	uint32_t cap = heap.cap ? heap.cap * 2 : 64;
	Entry *at = realloc(heap.at, cap * sizeof *at);
	if (!at)
		luaL_error(L, "out of memory");
	heap.at = at;
	heap.cap = cap;
}

/* t:arm(seconds) */
static int timer_arm(lua_State *L)
{
	Timer *t = lua_touserdata(L, 1);
	Entry e = {now_ns() + (int64_t)(luaL_checknumber(L, 2) * 1e9), t};
	if (t->pos != IDLE) {
		settle(t->pos, e);
		return 0;
	}
	if (heap.len == heap.cap)
		heap_grow(L);
	lua_settop(L, 1);
	lua_rawseti(L, ANCHOR, t->slot);
	sift_up(heap.len++, e);
	return 0;
}

static void unanchor(lua_State *L, Timer *t)
{
	lua_pushnil(L);
	lua_rawseti(L, ANCHOR, t->slot);
}

/* t:disarm() */
static int timer_disarm(lua_State *L)
{
	Timer *t = lua_touserdata(L, 1);
	if (t->pos == IDLE)
		return 0;
	heap_remove(t);
	unanchor(L, t);
	return 0;
}

/* t:armed() -> boolean */
static int timer_armed(lua_State *L)
{
	lua_pushboolean(L, ((Timer *)lua_touserdata(L, 1))->pos != IDLE);
	return 1;
}

/* new(fn) -> timer */
static int timer_new(lua_State *L)
{
	Timer *t = lua_newuserdatauv(L, sizeof *t, 1);
	*t = (Timer){IDLE, ++heap.slots};
	lua_pushvalue(L, 1);
	lua_setiuservalue(L, -2, 1);
	luaL_setmetatable(L, "limit.timer");
	return 1;
}

/* stack: traceback; the timer stays below its function while it runs */
static void fire(lua_State *L, Timer *t)
{
	heap_remove(t);
	lua_rawgeti(L, ANCHOR, t->slot);
	unanchor(L, t);
	lua_getiuservalue(L, -1, 1);
	if (lua_pcall(L, 0, 0, 1) != LUA_OK)
		lua_error(L);
	lua_pop(L, 1);
}

/* run() -> callbacks: fires what is due now, in order */
static int run(lua_State *L)
{
	int64_t now = now_ns();
	lua_Integer count = 0;
	lua_pushcfunction(L, traceback);
	while (heap.len && heap.at[0].deadline <= now) {
		fire(L, heap.at[0].timer);
		count++;
	}
	lua_pushinteger(L, count);
	return 1;
}

int luaopen_limit_timer(lua_State *L)
{
	static const luaL_Reg functions[] = {{"new", timer_new}, {"run", run}, {NULL, NULL}};
	static const luaL_Reg methods[] = {
		{"arm", timer_arm}, {"disarm", timer_disarm}, {"armed", timer_armed}, {NULL, NULL}};
	lua_newtable(L); /* stack: anchor */
	luaL_newmetatable(L, "limit.timer");
	luaL_newlibtable(L, methods);
	lua_pushvalue(L, -3);
	luaL_setfuncs(L, methods, 1);
	lua_setfield(L, -2, "__index");
	lua_pop(L, 1);
	luaL_newlibtable(L, functions);
	lua_pushvalue(L, -2);
	luaL_setfuncs(L, functions, 1);
	return 1;
}
