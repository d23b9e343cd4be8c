/* SPDX-License-Identifier: MIT */
/* The limit of bottom halves: an intrusive FIFO in C, one lua_pcall with traceback per callback.
 *
 * Way:   q:schedule(fn) or bh:schedule() -> queue_put -> q:run() -> call_oneshot or call_bh -> lua_pcall
 * Owner: a one-shot node belongs to the queue's free list, never to malloc again; a bh node lives in its userdata.
 * Keep:  what is scheduled sits in the anchor table (upvalue 1 of every function), what is idle does not.
 *        Arguments are not checked: this is a limit, not an API. */
#include <lauxlib.h>
#include <lua.h>
#include <stdlib.h>

#define ANCHOR lua_upvalueindex(1)

typedef struct Node Node;
struct Node {
	Node *next;
	int slot;    /* index in the anchor table, for the node's life */
	int oneshot; /* anchored is the function itself, else the userdata */
	int pending;
};

typedef struct Queue {
	Node *head, **tail;
	Node *free;
	int slots;
} Queue;

typedef struct Bh {
	Node node;
	Queue *queue;
} Bh;

static int traceback(lua_State *L)
{
	luaL_traceback(L, L, lua_tostring(L, 1), 1);
	return 1;
}

static void queue_put(Queue *q, Node *n)
{
	n->next = NULL;
	*q->tail = n;
	q->tail = &n->next;
}

static Node *node_get(lua_State *L, Queue *q)
{
	Node *n = q->free;
	if (n) {
		q->free = n->next;
		return n;
	}
	n = malloc(sizeof *n);
	if (!n)
		luaL_error(L, "out of memory");
	*n = (Node){.slot = ++q->slots, .oneshot = 1};
	return n;
}

/* q:schedule(fn) */
static int queue_schedule(lua_State *L)
{
	Queue *q = lua_touserdata(L, 1);
	Node *n = node_get(L, q);
	lua_settop(L, 2);
	lua_rawseti(L, ANCHOR, n->slot);
	queue_put(q, n);
	return 0;
}

/* bh:schedule() */
static int bh_schedule(lua_State *L)
{
	Bh *bh = lua_touserdata(L, 1);
	if (bh->node.pending)
		return 0;
	lua_settop(L, 1);
	lua_rawseti(L, ANCHOR, bh->node.slot);
	bh->node.pending = 1;
	queue_put(bh->queue, &bh->node);
	return 0;
}

static void unanchor(lua_State *L, int slot)
{
	lua_pushnil(L);
	lua_rawseti(L, ANCHOR, slot);
}

/* stack: q, traceback */
static void call_oneshot(lua_State *L, Queue *q, Node *n)
{
	lua_rawgeti(L, ANCHOR, n->slot);
	unanchor(L, n->slot);
	n->next = q->free;
	q->free = n;
	if (lua_pcall(L, 0, 0, 2) != LUA_OK)
		lua_error(L);
}

/* stack: q, traceback; the bh stays below its function while it runs */
static void call_bh(lua_State *L, Node *n)
{
	lua_rawgeti(L, ANCHOR, n->slot);
	unanchor(L, n->slot);
	n->pending = 0;
	lua_getiuservalue(L, -1, 1);
	if (lua_pcall(L, 0, 0, 2) != LUA_OK)
		lua_error(L);
	lua_pop(L, 1);
}

/* q:run() -> callbacks; a batch is what was scheduled before it began */
static int queue_run(lua_State *L)
{
	Queue *q = lua_touserdata(L, 1);
	lua_Integer count = 0;
	lua_pushcfunction(L, traceback);
	while (q->head) {
		Node *batch = q->head;
		q->head = NULL;
		q->tail = &q->head;
		while (batch) {
			Node *n = batch;
			batch = n->next;
			if (n->oneshot)
				call_oneshot(L, q, n);
			else
				call_bh(L, n);
			count++;
		}
	}
	lua_pushinteger(L, count);
	return 1;
}

/* q:bh(fn) -> bh */
static int queue_bh(lua_State *L)
{
	Queue *q = lua_touserdata(L, 1);
	Bh *bh = lua_newuserdatauv(L, sizeof *bh, 1);
	*bh = (Bh){.node = {.slot = ++q->slots}, .queue = q};
	lua_pushvalue(L, 2);
	lua_setiuservalue(L, -2, 1);
	luaL_setmetatable(L, "limit.bh");
	return 1;
}

static int queue_new(lua_State *L)
{
	Queue *q = lua_newuserdatauv(L, sizeof *q, 0);
	*q = (Queue){.tail = &q->head};
	luaL_setmetatable(L, "limit.queue");
	return 1;
}

/* stack: module, anchor; a class whose methods share the anchor */
static void new_class(lua_State *L, const char *name, const luaL_Reg *methods)
{
	luaL_newmetatable(L, name);
	lua_newtable(L);
	lua_pushvalue(L, 2);
	luaL_setfuncs(L, methods, 1);
	lua_setfield(L, -2, "__index");
	lua_pop(L, 1);
}

int luaopen_limit_bh(lua_State *L)
{
	static const luaL_Reg queue[] = {
		{"schedule", queue_schedule}, {"bh", queue_bh}, {"run", queue_run}, {NULL, NULL}};
	static const luaL_Reg bh[] = {{"schedule", bh_schedule}, {NULL, NULL}};
	lua_settop(L, 0);
	lua_newtable(L);
	lua_newtable(L);
	new_class(L, "limit.queue", queue);
	new_class(L, "limit.bh", bh);
	lua_pushcfunction(L, queue_new);
	lua_setfield(L, 1, "queue");
	lua_settop(L, 1);
	return 1;
}
