/* SPDX-License-Identifier: MIT */
/* The limit of a flood of messages from another thread into a Lua function: a list with a lock, an eventfd, lua_pcall.
 * At most WINDOW messages are under way, so that memory does not decide.
 *
 * Way:     flood: claim a message -> the list -> eventfd, if the list was empty -> main: takes the list -> lua_pcall(fn, n)
 *          -> the message is free again
 * Threads: the list belongs to who holds `lock`; a message to the producer while it is free. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../threads.h"

enum { WINDOW = 4096, MESSAGES = 1000000 };

typedef struct Message {
	struct Message *next;
	long n;
	atomic_int busy;
} Message;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Message messages[WINDOW], *head, **tail = &head;
static int efd;

static void send(Message *m)
{
	uint64_t one = 1;
	m->next = NULL;
	pthread_mutex_lock(&lock);
	int first = !head;
	*tail = m;
	tail = &m->next;
	pthread_mutex_unlock(&lock);
	if (first && write(efd, &one, sizeof one) != sizeof one)
		die("write");
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
		send(m);
	}
	return NULL;
}

static Message *take_all(void)
{
	uint64_t count;
	if (read(efd, &count, sizeof count) != sizeof count)
		die("read");
	pthread_mutex_lock(&lock);
	Message *m = head;
	head = NULL;
	tail = &head;
	pthread_mutex_unlock(&lock);
	return m;
}

int main(void)
{
	lua_State *L = luaL_newstate();
	luaL_openlibs(L);
	if ((efd = eventfd(0, EFD_CLOEXEC)) < 0)
		die("eventfd");
	lua_getglobal(L, "debug");
	lua_getfield(L, -1, "traceback");
	if (luaL_dostring(L, "local last = 0; return function(n) assert(n == last + 1) last = n end, function() return last end"))
		die(lua_tostring(L, -1));
	pthread_t thread = start_thread(flood, NULL); /* stack: debug, traceback, fn, last */
	double begin = now_ns();
	for (long got = 0; got < MESSAGES;)
		for (Message *m = take_all(), *next; m; m = next) {
			next = m->next;
			lua_pushvalue(L, 3);
			lua_pushinteger(L, m->n);
			atomic_store_explicit(&m->busy, 0, memory_order_release);
			if (lua_pcall(L, 1, 0, 2) != LUA_OK)
				die(lua_tostring(L, -1));
			got++;
		}
	double span = now_ns() - begin;
	pthread_join(thread, NULL);
	lua_call(L, 0, 1);
	if (lua_tointeger(L, -1) != MESSAGES)
		die("messages lost");
	printf("flood %.1f\n", span / MESSAGES);
	return 0;
}
