/* SPDX-License-Identifier: MIT
 * Queues: what tasks pass to one another.
 *
 * Way      get -> an item: taken; none: ticket in the queue's getters -> put -> the item is laid aside for the first of
 *          them -> its ticket -> results. put on a full queue: the same the other way round
 * Owner    userdata, which every waiter has on its stack. A queue's items are in a ring: its user values, for those cost
 *          least, or, when they have been too many for that, the elements of a table. That is user value 1, and has at the
 *          address of a ticket what is laid aside for it, or what it waits to put.
 * Keep     first come, first served; an item that was given to one who will never take it goes back. */
#include "lbind.h"

/*** Semaphores, events and queues.
@module aioloop.sync */

static int yes(lua_State *L) { return lua_pushboolean(L, 1), 1; }

enum { TABLE = 1, RING, RING_SIZE = 16, RING_MOST = 64 }; /* user values: the first of the ring; how many of them */

typedef struct LQueue {
  const void *mark; /* see aioL_test */
  LRuntime *rt;
  AioLink getters, putters;
  uint64_t head, tail;  /* counts of items; item i of them is in the ring */
  uint64_t size;        /* of the ring: a power of two */
  uint64_t back;        /* so many of the first have come back */
  lua_Integer capacity; /* -1: none */
  bool closed;
  bool tabled;          /* the ring is in the table */
} LQueue;

static LQueue *check_queue(lua_State *L) { return aioL_check(L, 1, L_QUEUE); }
static lua_Integer count(const LQueue *q) { return (lua_Integer)(q->tail - q->head); }
static int place(const LQueue *q, uint64_t i) { return (int)(i & (q->size - 1)); }

/* Of the ring of the queue at 1. */
static int load(lua_State *L, const LQueue *q, uint64_t i) { /* [-0, +1, -] returns the type */
  if (!q->tabled) return lua_getiuservalue(L, 1, RING + place(q, i));
  lua_getiuservalue(L, 1, TABLE);
  int type = lua_rawgeti(L, -1, 1 + place(q, i));
  lua_replace(L, -2);
  return type;
}

static void store(lua_State *L, const LQueue *q, uint64_t i) { /* [-1, +0, m] what is on top */
  if (!q->tabled) {
    lua_setiuservalue(L, 1, RING + place(q, i));
    return;
  }
  lua_getiuservalue(L, 1, TABLE);
  lua_insert(L, -2);
  lua_rawseti(L, -2, 1 + place(q, i));
  lua_pop(L, 1);
}

static void forget(lua_State *L, const LQueue *q, uint64_t i) { /* [-0, +0, -] there is a place for it already */
  lua_pushnil(L);
  store(L, q, i);
}

/* Twice the ring, in the table. What had to be copied stands in both places until all of it does: memory may run out. */
static void grow(lua_State *L, LQueue *q) { /* [-0, +0, m] of the queue at 1 */
  LQueue old = *q, bigger = *q;
  bigger.size = 2 * q->size;
  bigger.tabled = true;
  for (uint64_t i = q->head; i != q->tail; i++) {
    if (old.tabled && place(&old, i) == place(&bigger, i)) continue;
    load(L, &old, i);
    store(L, &bigger, i);
  }
  *q = bigger;
  for (uint64_t i = q->head; i != q->tail; i++)
    if (!old.tabled || place(&old, i) != place(q, i)) forget(L, &old, i);
}

/* stack: queue, ..., item. At the end. */
static void append(lua_State *L, LQueue *q) { /* [-1, +0, m] */
  if ((uint64_t)count(q) == q->size) grow(L, q);
  store(L, q, q->tail);
  q->tail++;
}

static void push_table(lua_State *L) { lua_getiuservalue(L, 1, TABLE); } /* [-0, +1, -] of the queue at 1 */

/* The ticket's queue, which is on no stack here. false: it is being collected, or gone. */
static bool find_queue(lua_State *L, const LTicket *tk) { /* [-0, +1 or 0, -] */
  lua_rawgeti(L, LUA_REGISTRYINDEX, tk->c->rt->objects);
  if (lua_rawgetp(L, -1, tk->op) != LUA_TUSERDATA) return lua_pop(L, 2), false;
  lua_replace(L, -2);
  return true;
}

/* stack: table -> table, value */
static void take_aside(lua_State *L, const LTicket *tk) {
  lua_rawgetp(L, -1, tk);
  lua_pushnil(L);
  lua_rawsetp(L, -3, tk);
}

static int get_results(lua_State *L, LTicket *tk) {
  push_table(L);
  take_aside(L, tk);
  return 1;
}

/* stack: queue, ..., item. To the front, but behind those that have come back before: they were given before. */
static void prepend(lua_State *L, LQueue *q) { /* [-1, +0, m] */
  if ((uint64_t)count(q) == q->size) grow(L, q);
  for (uint64_t i = 0; i < q->back; i++) load(L, q, q->head + i), store(L, q, q->head + i - 1);
  store(L, q, q->head + q->back - 1);
  q->head--;
  q->back++;
}

/* stack: queue, ticket (light). The item goes back to the front, or to another getter that waits. */
static int put_back(lua_State *L) {
  LTicket *tk = lua_touserdata(L, 2);
  LQueue *q = tk->op;
  LTicket *next = aioL_ticket_first(&q->getters);
  push_table(L);
  take_aside(L, tk);
  if (lua_isnil(L, -1)) return 0; /* another queue in the place of a collected one */
  if (next) {
    lua_rawsetp(L, -2, next);
    aioL_take_later(next, L_DONE, 0);
  } else {
    prepend(L, q);
  }
  return 0;
}

static void get_revoke(lua_State *L, LTicket *tk) {
  if (!lua_checkstack(L, 8)) return;
  lua_pushcfunction(L, put_back);
  if (!find_queue(L, tk)) {
    lua_pop(L, 1);
    return;
  }
  lua_pushlightuserdata(L, tk);
  if (lua_pcall(L, 2, 0, 0) != LUA_OK) lua_pop(L, 1); /* no memory for its place */
}

static void put_leave(LTicket *tk) { /* what it waited to put is forgotten, unless it has been taken */
  LContext *c = tk->c;
  lua_State *L = c->L ? c->L : c->rt->main;
  if (list_linked(&tk->link)) list_unlink(&tk->link);
  if (!lua_checkstack(L, 8) || !find_queue(L, tk)) return;
  lua_getiuservalue(L, -1, TABLE);
  take_aside(L, tk);
  lua_pop(L, 3);
}

static const LWaitOps get_ops = {.name = "queue:get", .results = get_results, .revoke = get_revoke};
static const LWaitOps put_ops = {.name = "queue:put", .leave = put_leave};

/*** Makes a queue.
@function queue
@tparam[opt] integer capacity then `put` waits; none: it never does; 0: until a `get` takes the item
@treturn queue; `#q` is the number of items */
static int mod_queue(lua_State *L) {
  lua_Integer capacity = luaL_optinteger(L, 1, -1);
  luaL_argcheck(L, capacity >= 0 || lua_isnoneornil(L, 1), 1, "the capacity cannot be negative");
  LRuntime *rt = aioL_runtime(L);
  uint64_t size = RING_SIZE;
  while (capacity <= RING_MOST && (lua_Integer)size < capacity) size *= 2;
  LQueue *q = lua_newuserdatauv(L, sizeof *q, RING - 1 + (int)size);
  *q = (LQueue){.rt = rt, .size = size, .capacity = capacity};
  list_init(&q->getters);
  list_init(&q->putters);
  lua_newtable(L);
  lua_setiuservalue(L, -2, TABLE);
  aioL_know(L, q);
  return aioL_set_class(L, rt, L_QUEUE), 1;
}

/* stack: queue, value. Somebody waits for it, or it is to wait for a place. */
static int put_otherwise(lua_State *L, LQueue *q, int64_t timeout) {
  LTicket *tk = aioL_ticket_first(&q->getters);
  if (!tk && timeout <= 0) return aioL_timed_out(L);
  push_table(L);
  if (tk) {
    lua_pushvalue(L, 2);
    lua_rawsetp(L, 3, tk);
    aioL_take_later(tk, L_DONE, 0);
    return yes(L);
  }
  tk = aioL_ticket(L, aioL_current(L), &put_ops);
  lua_pushvalue(L, 2);
  lua_rawsetp(L, 3, tk);
  tk->op = q;
  list_append(&q->putters, &tk->link);
  return aioL_wait(L, tk, timeout);
}

/*** Puts a value at the end; waits while the queue is full.
@function queue:put
@param value not nil
@number[opt] timeout seconds
@treturn boolean true; or nil, "timeout"; or nil, "closed" */
static int queue_put(lua_State *L) {
  LQueue *q = check_queue(L);
  luaL_argcheck(L, !lua_isnoneornil(L, 2), 2, "a queue holds no nil");
  int64_t timeout = AIO_FOREVER;
  if (lua_gettop(L) > 2) timeout = aioL_opt_ns(L, 3), lua_settop(L, 2);
  aioL_checkpoint_in(L, q->rt);
  if (q->closed) return aioL_closed(L);
  if (!list_empty(&q->getters) || (uint64_t)count(q) >= (uint64_t)q->capacity) return put_otherwise(L, q, timeout);
  append(L, q);
  return yes(L);
}

/* stack: queue, ... The first item leaves, and who waits to put may put. What can raise comes first. `collectable`: it keeps
 * something alive until its place is written over. */
static void leave_first(lua_State *L, LQueue *q, LTicket *putter, bool collectable) { /* [-0, +0, m] */
  bool full = (uint64_t)count(q) == q->size; /* the place of the next is that of the first */
  if (putter && count(q) > q->capacity) putter = NULL; /* items have come back */
  if (putter) {
    push_table(L);
    lua_rawgetp(L, -1, putter);
    store(L, q, q->tail);
    lua_pop(L, 1);
    q->tail++;
  }
  if (collectable && !(full && putter)) forget(L, q, q->head);
  q->head++;
  if (q->back) q->back--;
  if (putter) aioL_take_later(putter, L_DONE, 0);
}

/* stack: queue, ... -> the first item */
static bool take_first(lua_State *L, LQueue *q) { /* [-0, +1 or 0, m] */
  LTicket *putter = aioL_ticket_first(&q->putters);
  if (count(q)) {
    int type = load(L, q, q->head);
    leave_first(L, q, putter, type > LUA_TNUMBER);
  } else if (putter) {
    push_table(L);
    lua_rawgetp(L, -1, putter);
    lua_replace(L, -2);
    aioL_take_later(putter, L_DONE, 0);
  } else {
    return false;
  }
  return true;
}

static int get(lua_State *L, LQueue *q, int64_t timeout) {
  aioL_checkpoint_in(L, q->rt);
  if (take_first(L, q)) return 1;
  if (q->closed) return aioL_closed(L);
  if (timeout <= 0) return aioL_timed_out(L);
  return aioL_wait_in(L, &q->getters, &get_ops, q, timeout);
}

/*** Takes the first value; waits while there is none.
@function queue:get
@number[opt] timeout seconds
@return the value; or nil, "timeout"; or nil, "closed": no more will come */
static int queue_get(lua_State *L) {
  LQueue *q = check_queue(L);
  return get(L, q, aioL_opt_ns(L, 2));
}

/*** Says that no more will be put. What is in the queue can still be taken.
@function queue:close */
static int queue_close(lua_State *L) {
  LQueue *q = check_queue(L);
  q->closed = true;
  aioL_take_all(&q->getters, L_CLOSED, 0);
  aioL_take_all(&q->putters, L_CLOSED, 0);
  return 0;
}

static int next_item(lua_State *L) {
  return get(L, check_queue(L), AIO_FOREVER);
}

/*** For loops: `for value in q:iter() do`. Ends when the queue is closed and empty.
@function queue:iter
@treturn function */
static int queue_iter(lua_State *L) {
  check_queue(L);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_pushcclosure(L, next_item, 2);
  lua_pushvalue(L, 1);
  return 2;
}

static int queue_len(lua_State *L) { return lua_pushinteger(L, count(check_queue(L))), 1; }

static int queue_gc(lua_State *L) {
  LQueue *q = check_queue(L);
  aioL_take_all(&q->getters, L_CLOSED, 0);
  aioL_take_all(&q->putters, L_CLOSED, 0);
  return 0;
}

void aioL_open_queue(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg queue[] = {{"put", queue_put}, {"get", queue_get}, {"close", queue_close}, {"iter", queue_iter},
    {"__len", queue_len}, {"__gc", queue_gc}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"queue", mod_queue}, {NULL, NULL}};
  aioL_class(L, rt, L_QUEUE, queue);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
