/* SPDX-License-Identifier: MIT */
/* A flood of messages from another thread into a Lua function, through aioloop's core: each message is a BH that the
 * thread schedules and that calls the function; at most WINDOW are under way. And each a one-shot BH, in no window.
 *
 * Threads: a message belongs to the producer while it is free. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdint.h>

#include "../threads.h"
#include "aio.h"

enum { WINDOW = 4096, MESSAGES = 1000000 };

typedef struct Message {
	AioBH bh;
	long n;
	atomic_int busy;
} Message;

static Message messages[WINDOW];
static AioContext *ctx;
static lua_State *L; /* stack: traceback, fn, last */
static long got;

static void call(long n)
{
	lua_pushvalue(L, 2);
	lua_pushinteger(L, n);
	if (lua_pcall(L, 1, 0, 1) != LUA_OK)
		die(lua_tostring(L, -1));
	got++;
}

static void arrived(void *opaque)
{
	Message *m = opaque;
	long n = m->n;
	atomic_store_explicit(&m->busy, 0, memory_order_release);
	call(n);
}

static void arrived_once(void *opaque)
{
	call((long)(intptr_t)opaque);
}

static void *flood(void *unused)
{
	(void)unused;
	for (long n = 1; n <= MESSAGES; n++) {
		Message *m = &messages[n % WINDOW];
		while (atomic_load_explicit(&m->busy, memory_order_acquire))
			sched_yield();
		atomic_store_explicit(&m->busy, 1, memory_order_relaxed);
		m->n = n;
		aio_bh_schedule(&m->bh);
	}
	return NULL;
}

static void *flood_once(void *unused)
{
	(void)unused;
	for (long n = 1; n <= MESSAGES; n++)
		if (aio_bh_oneshot(ctx, arrived_once, (void *)(intptr_t)n) < 0)
			die("aio_bh_oneshot");
	return NULL;
}

static void report(const char *name, void *producer(void *))
{
	if (luaL_dostring(L, "local last = 0; return function(n) assert(n == last + 1) last = n end, function() return last end"))
		die(lua_tostring(L, -1));
	got = 0;
	double begin = now_ns();
	pthread_t thread = start_thread(producer, NULL);
	while (got < MESSAGES)
		aio_poll(ctx, AIO_FOREVER);
	double span = now_ns() - begin;
	pthread_join(thread, NULL);
	lua_call(L, 0, 1);
	if (lua_tointeger(L, -1) != MESSAGES)
		die("messages lost");
	lua_settop(L, 1);
	printf("%s %.1f\n", name, span / MESSAGES);
}

int main(void)
{
	L = luaL_newstate();
	luaL_openlibs(L);
	lua_getglobal(L, "debug");
	lua_getfield(L, -1, "traceback");
	lua_replace(L, 1);
	if (aio_context_new(&ctx, NULL) < 0)
		die("aio_context_new");
	aio_context_set_home(ctx);
	for (int i = 0; i < WINDOW; i++)
		aio_bh_init(&messages[i].bh, ctx, arrived, &messages[i]);
	report("flood", flood);
	report("flood_oneshot", flood_once);
	aio_context_unref(ctx);
	return 0;
}
