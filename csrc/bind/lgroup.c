/* SPDX-License-Identifier: MIT
 * Groups: tasks that end before their scope does.
 *
 * Way      g:spawn -> a task with an LMember; it ends -> aioL_member_ended -> the others are cancelled if it failed; the
 *          last one wakes who waits. End of the scope -> __close -> children cancelled if need be -> wait for the last
 * Owner    the group holds its children in a table (user value 1, by address) until they end well;
 *          those that failed stay until somebody is told. Collected before that, they are reported like any other.
 * Keep     the wait of __close cannot be cancelled, since children must not outlive it: a cancel goes to the children.
 * Source   nurseries after Trio (N. J. Smith, "Notes on structured concurrency"). */
#include "lbind.h"

/*** Groups of tasks.
@module aioloop.group */

typedef struct LGroup {
  LRuntime *rt;
  AioLink members, failed; /* LMember; failed in the order of their ends */
  AioLink waiters;         /* tickets */
  struct LGroup *then;     /* to be cancelled after it */
  bool cancelled, listed;  /* listed: its members are to be cancelled, or just being */
  bool over;               /* its scope has ended */
  bool cut;                /* by a cancel of who waited for the end of the scope, or was about to */
  int told;                /* so often errors were taken: who has waited meanwhile is told, too */
} LGroup;

typedef struct LMember {
  AioLink link;
  LGroup *g;
  LTask *t; /* in the table */
} LMember;

static LMember *member_at(AioLink *l) { return container_of(l, LMember, link); }
static LGroup *check_group(lua_State *L) { return aioL_check(L, 1, L_GROUP); }

static void free_member(lua_State *L, LMember *m) {
  list_unlink(&m->link);
  aioL_alloc(L, m, sizeof *m, 0);
}

/* ---- children ---- */

static void cancel_members(LGroup *g) {
  for (AioLink *l = g->members.next, *next; l != &g->members; l = next) {
    next = l->next;
    aioL_cancel_quietly(member_at(l)->t); /* one that has not begun ends now, and leaves the list */
  }
}

/* A member that waits at the end of a group of its own passes the cancel on to that: one group after the other and not one
 * within the other, since they may be nested 100,000 deep. */
static void cancel_all(LGroup *g) {
  LRuntime *rt = g->rt;
  LGroup *last = rt->cancelling;
  g->cancelled = true;
  if (g->listed) return;
  g->listed = true;
  rt->cancelling = g;
  if (last) {
    last->then = g;
    return;
  }
  for (LGroup *next; g; g = next) {
    cancel_members(g);
    next = g->then;
    g->then = NULL;
    g->listed = false;
  }
  rt->cancelling = NULL;
}

static void forget_task(lua_State *L, LMember *m) { /* [-0, +0, -] */
  if (!lua_checkstack(L, 4)) return;
  lua_rawgeti(L, LUA_REGISTRYINDEX, m->g->rt->objects);
  if (lua_rawgetp(L, -1, m->g) == LUA_TUSERDATA) {
    lua_getiuservalue(L, -1, 1);
    lua_pushnil(L);
    lua_rawsetp(L, -2, m->t);
    lua_pop(L, 1);
  }
  lua_pop(L, 2);
}

void aioL_member_ended(LContext *c, LTask *t) {
  LMember *m = t->ties->member;
  LGroup *g = m->g;
  lua_State *L = c->L ? c->L : c->rt->main;
  t->ties->member = NULL;
  if (t->state == L_BROKEN) {
    list_unlink(&m->link);
    list_append(&g->failed, &m->link);
    if (!g->cancelled) cancel_all(g);
  } else {
    forget_task(L, m);
    free_member(L, m);
  }
  if (!list_empty(&g->members)) return;
  aioL_take_all(&g->waiters, L_DONE, 0);
}

/*** Makes a group. `local g <close> = aio.group()`: at the end of the block all its tasks have ended.
@function group
@treturn group */
static int mod_group(lua_State *L) {
  LRuntime *rt = aioL_runtime(L);
  LGroup *g = lua_newuserdatauv(L, sizeof *g, 2);
  *g = (LGroup){.rt = rt};
  list_init(&g->members);
  list_init(&g->failed);
  list_init(&g->waiters);
  lua_newtable(L);
  lua_setiuservalue(L, -2, 1);
  aioL_know(L, g);
  return aioL_set_class(L, rt, L_GROUP), 1;
}

/*** Spawns a task in the group. If one of them fails, the others are cancelled.
@function group:spawn
@tparam function fn
@param ... its arguments
@treturn task */
static int group_spawn(lua_State *L) {
  LGroup *g = check_group(L);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  if (g->over) return luaL_error(L, "the scope of the group has ended");
  LTask *t = aioL_spawn(L, aioL_current(L), 2, "group:spawn"); /* stack: group, task */
  t->keep = true;
  aioL_make_will(L, 2);
  lua_getiuservalue(L, 1, 1);
  lua_pushvalue(L, 2);
  lua_rawsetp(L, -2, t);
  lua_settop(L, 2);
  if (aioL_task_ended(t)) return 1; /* a finaliser has just closed its context */
  LTies *ties = aioL_ties(L, t);
  LMember *m = aioL_alloc(L, NULL, 0, sizeof *m);
  if (!m) return luaL_error(L, "not enough memory");
  *m = (LMember){.g = g, .t = t};
  list_append(&g->members, &m->link);
  ties->member = m;
  if (g->cancelled) aioL_cancel_quietly(t);
  return 1;
}

/*** Cancels all its tasks, also those that are spawned from now on.
@function group:cancel
@param[opt] reason as for `task:cancel` */
static int group_cancel(lua_State *L) {
  LGroup *g = check_group(L);
  bool reason = !lua_isnoneornil(L, 2);
  lua_settop(L, 2);
  if (reason) {
    lua_getiuservalue(L, 1, 1);
    for (lua_pushnil(L); lua_next(L, 3);) { /* stack: group, reason, children, key, handle */
      LTask *t = lua_touserdata(L, -1);
      if (!aioL_task_ended(t)) aioL_cancel(L, t, 2);
      lua_pop(L, 1);
    }
  }
  cancel_all(g);
  return 0;
}

/* ---- waiting for them ---- */

/* [-0, +1 or 0, m] the first error; all of them become those of group:errors */
static bool take_errors(lua_State *L, LGroup *g) {
  if (list_empty(&g->failed)) return false;
  lua_newtable(L);
  lua_Integer n = 0;
  for (lua_createtable(L, 0, 1); !list_empty(&g->failed); lua_createtable(L, 0, 1)) { /* a finaliser may take them just now */
    LMember *m = member_at(g->failed.next);
    aioL_task_push_value(L, m->t);
    lua_setfield(L, -2, "error"); /* boxed: it may be nil */
    lua_rawseti(L, -2, ++n);
    m->t->joined = true;
    forget_task(L, m);
    free_member(L, m);
  }
  lua_pop(L, 1);
  if (!n) return false;
  lua_rawgeti(L, -1, 1);
  lua_getfield(L, -1, "error");
  lua_insert(L, -3);
  lua_pop(L, 1);
  lua_setiuservalue(L, 1, 2);
  return true;
}

/* [-0, +1 or 0, m] the first error, also one that somebody else has been told of since `told`. stack: group, ... */
static bool first_error(lua_State *L, LGroup *g, int told) {
  if (take_errors(L, g)) return g->told++, true;
  if (g->told == told || lua_getiuservalue(L, 1, 2) != LUA_TTABLE) return false;
  lua_rawgeti(L, -1, 1);
  lua_getfield(L, -1, "error");
  return true;
}

/* stack: group, ... */
static int all_ended(lua_State *L, LGroup *g, int told) {
  g->cancelled = false;
  if (first_error(L, g, told)) return lua_error(L);
  return lua_pushboolean(L, 1), 1;
}

static int wait_results(lua_State *L, LTicket *tk) { return all_ended(L, tk->op, tk->at); }

static const LWaitOps wait_ops = {.name = "group:wait", .results = wait_results};

/*** Waits until all tasks of the group have ended.
@function group:wait
@number[opt] timeout seconds
@treturn boolean true; or nil, "timeout"
@raise the error of the first that failed, the very value, for all who wait at that time; `group:errors` has all errors */
static int group_wait(lua_State *L) {
  LGroup *g = check_group(L);
  int64_t timeout = aioL_opt_ns(L, 2);
  lua_settop(L, 1);
  aioL_checkpoint(L);
  if (list_empty(&g->members)) return all_ended(L, g, g->told);
  LTicket *tk = aioL_ticket(L, aioL_current(L), &wait_ops);
  tk->op = g;
  tk->at = g->told;
  list_append(&g->waiters, &tk->link);
  return aioL_wait(L, tk, timeout);
}

/*** The errors of the tasks that failed, when `wait` or the end of the scope has told the first.
@function group:errors
@treturn table a list; `n` is their number */
static int group_errors(lua_State *L) {
  check_group(L);
  lua_settop(L, 1);
  lua_newtable(L);
  lua_Integer n = 0;
  if (lua_getiuservalue(L, 1, 2) == LUA_TTABLE)
    for (n = (lua_Integer)lua_rawlen(L, -1); n > 0; n--) {
      lua_rawgeti(L, 3, n);
      lua_getfield(L, -1, "error");
      lua_rawseti(L, 2, n);
      lua_pop(L, 1);
    }
  lua_pushinteger(L, lua_istable(L, 3) ? (lua_Integer)lua_rawlen(L, 3) : 0);
  lua_setfield(L, 2, "n");
  lua_settop(L, 2);
  return 1;
}

/* A cancel that reaches the end of a scope ends the children, and the wait goes on until they have ended. */
static bool close_settle(LTicket *tk, LOutcome outcome) {
  LGroup *g = tk->op;
  if (outcome != L_CANCELLING) return true;
  g->cut = true;
  cancel_all(g);
  return false;
}

/* stack: group, error of the block or nil. A task's error is not put in the place of another one that is no cancel. Being a
 * wait, it raises what has cancelled it, now that nothing is left behind. */
static int closed(lua_State *L, LGroup *g, int told) {
  bool cut = g->cut;
  g->cancelled = g->cut = false;
  g->over = true;
  bool raises = lua_isnil(L, 2) || aioL_is_cancel(L, 2);
  if (raises && first_error(L, g, told)) return lua_error(L);
  while (!list_empty(&g->failed)) { /* the block's own error is on its way: these are reported when collected, now */
    LMember *m = member_at(g->failed.next);
    forget_task(L, m);
    free_member(L, m);
  }
  if (cut && lua_isnil(L, 2)) aioL_checkpoint(L); /* like any wait that a cancel has ended */
  return 0;
}

static int wait_for_members(lua_State *L, LGroup *g, int told);

/* Somebody else may have spawned another one since the last one ended. */
static int close_results(lua_State *L, LTicket *tk) { return wait_for_members(L, tk->op, tk->at); }

static const LWaitOps close_ops = {.name = "the end of a group", .results = close_results, .settle = close_settle, .immune = true};

static int wait_for_members(lua_State *L, LGroup *g, int told) {
  lua_settop(L, 2);
  if (list_empty(&g->members)) return closed(L, g, told);
  LTicket *tk = aioL_ticket(L, aioL_current(L), &close_ops);
  tk->op = g;
  tk->at = told;
  list_append(&g->waiters, &tk->link);
  return aioL_wait(L, tk, AIO_FOREVER);
}

static int group_close(lua_State *L) {
  LGroup *g = check_group(L);
  lua_settop(L, 2);
  g->cut = !list_empty(&g->members) && aioL_is_cancelled(L);
  if (!lua_isnil(L, 2) || g->cut) cancel_all(g);
  return wait_for_members(L, g, g->told);
}

/* Whoever lets go of a group without waiting leaves tasks like any other behind. */
static int group_gc(lua_State *L) {
  LGroup *g = check_group(L);
  aioL_take_all(&g->waiters, L_CLOSED, 0);
  while (!list_empty(&g->members)) {
    LMember *m = member_at(g->members.next);
    if (m->t->ties) m->t->ties->member = NULL;
    m->t->keep = false;
    free_member(L, m);
  }
  while (!list_empty(&g->failed)) free_member(L, member_at(g->failed.next));
  return 0;
}

void aioL_open_group(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"spawn", group_spawn}, {"cancel", group_cancel}, {"wait", group_wait},
    {"errors", group_errors}, {"__close", group_close}, {"__gc", group_gc}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"group", mod_group}, {NULL, NULL}};
  aioL_class(L, rt, L_GROUP, methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
