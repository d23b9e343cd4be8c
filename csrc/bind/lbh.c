/* SPDX-License-Identifier: MIT
 * Bottom halves: ctx:schedule (one-shot) and ctx:bh.
 *
 * Way      schedule -> aio_bh_schedule -> the turn -> run_oneshot / run_bh -> aioL_call
 * Owner    a bh userdata holds its function in a user value, and is anchored while it is scheduled; a one-shot is a spare
 *          part of its context, and its function (or {function, arguments}) is what is anchored.
 * Keep     a place in the anchor table is emptied after the call, unless it is in use again: a chain of callbacks, each of
 *          which schedules the next, need not empty and fill it every time. */
#include "lbind.h"

/*** Bottom halves: callbacks that run once, in the next turn.
@module aioloop.bh */

typedef struct LBh {
  AioBH bh;
  LContext *c;   /* NULL: closed */
  uint32_t slot; /* its own from the first scheduling on; holds it until it has run */
  bool held;     /* by its slot */
  bool packed, unref, counted;
} LBh;

typedef struct LOneshot {
  AioBH bh;
  LContext *c;
  struct LOneshot *next, *made; /* in c->spare; in c->oneshots, for ever */
  uint32_t slot; /* its own for ever */
  bool packed;
} LOneshot;

/* ---- one-shots ---- */

static void run_oneshot(void *opaque) {
  LOneshot *o = opaque;
  LContext *c = o->c;
  lua_State *L = c->L;
  int nargs = 0;
  lua_rawgeti(L, c->base, o->slot);
  o->next = c->spare;
  c->spare = o;
  c->live--;
  if (o->packed) nargs = aioL_unpack(L);
  aioL_call(c, nargs, "schedule");
  if (c->closed || aio_bh_scheduled(&o->bh)) return; /* gone; or in use again */
  lua_pushboolean(L, 0);
  lua_rawseti(L, c->base, o->slot);
}

static void add_spare(lua_State *L, LContext *c) { /* [-0, +0, m] */
  lua_pushboolean(L, 0);
  uint32_t slot = aioL_anchor(L, c, -1, NULL);
  lua_pop(L, 1);
  LOneshot *o = aioL_alloc(L, NULL, 0, sizeof *o);
  if (!o) {
    aioL_unanchor(L, c, &slot);
    luaL_error(L, "not enough memory");
    return;
  }
  *o = (LOneshot){.c = c, .made = c->oneshots, .slot = slot};
  c->oneshots = c->spare = o;
  aio_bh_init_local(&o->bh, c->core, run_oneshot, o);
}

/*** Calls a function once, in the next turn, in the order of scheduling.
@function context:schedule
@tparam function fn
@param ... its arguments */
int aioL_ctx_schedule(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  if (lua_type(L, 2) != LUA_TFUNCTION) luaL_checktype(L, 2, LUA_TFUNCTION);
  bool packed = lua_gettop(L) > 2;
  if (packed) aioL_pack(L, 2), aioL_check_open(L, c); /* a finaliser may have closed it */
  if (!c->spare) add_spare(L, c);
  LOneshot *o = c->spare;
  lua_getiuservalue(L, 1, 1);
  lua_pushvalue(L, 2);
  lua_rawseti(L, -2, o->slot); /* its place is there: nothing can raise from here */
  c->spare = o->next;
  o->packed = packed;
  c->live++;
  aio_bh_schedule(&o->bh);
  return 0;
}

/* The core has forgotten the scheduled ones by now. */
void aioL_oneshots_drop(lua_State *L, LContext *c) {
  c->spare = NULL;
  for (LOneshot *o; (o = c->oneshots);) {
    c->oneshots = o->made;
    aioL_alloc(L, o, sizeof *o, 0);
  }
}

/* ---- bh objects ---- */

static void run_bh(void *opaque);

static LBh *check_bh(lua_State *L) {
  LBh *b = lua_touserdata(L, 1);
  if (!b || lua_rawlen(L, 1) != sizeof *b || b->bh.fn != run_bh) b = aioL_check(L, 1, L_BH);
  if (!b->c || b->c->closed) luaL_error(L, "attempt to use a closed bh");
  return b;
}

/* What is scheduled is counted, unless unref'ed. */
static void settle(LBh *b) {
  LContext *c = b->c;
  bool counts = !c->closed && aio_bh_scheduled(&b->bh) && !b->unref;
  if (counts != b->counted && !c->closed) aioL_live(c, true, counts ? 1 : -1);
  b->counted = counts;
}

static void run_bh(void *opaque) {
  LBh *b = opaque;
  LContext *c = b->c;
  lua_State *L = c->L;
  lua_rawgeti(L, c->base, b->slot); /* keeps it alive should its function close it */
  lua_getiuservalue(L, -1, 1);
  if (b->counted) b->counted = false, c->live--;
  aioL_call(c, b->packed ? aioL_unpack(L) : 0, "bh");
  if (b->slot && !aio_bh_scheduled(&b->bh)) {
    lua_pushboolean(L, 0);
    lua_rawseti(L, c->base, b->slot);
    b->held = false;
  }
  lua_pop(L, 1);
}

/*** Makes a bottom half.
@function context:bh
@tparam function fn called once for each scheduling
@param ... its arguments
@treturn bh */
int aioL_ctx_bh(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  bool packed = lua_gettop(L) > 2;
  if (packed) aioL_pack(L, 2);
  LBh *b = lua_newuserdatauv(L, sizeof *b, 1);
  *b = (LBh){.c = NULL};
  aioL_set_class(L, c->rt, L_BH);
  lua_pushvalue(L, 2);
  lua_setiuservalue(L, -2, 1);
  aio_bh_init_local(&b->bh, c->core, run_bh, b);
  b->packed = packed;
  b->c = aioL_context_ref(c);
  return 1;
}

static int schedule(lua_State *L, void (*how)(AioBH *)) {
  LBh *b = check_bh(L);
  if (!b->slot) {
    b->slot = aioL_anchor(L, b->c, 1, NULL);
  } else if (!b->held && lua_rawgeti(L, L_ANCHORS, b->c->id) == LUA_TTABLE) {
    lua_pushvalue(L, 1);
    lua_rawseti(L, -2, b->slot);
  }
  b->held = true;
  how(&b->bh);
  if (!b->counted && !b->unref) {
    b->counted = true;
    b->c->live++;
  }
  return 0;
}

/*** Runs it once in the next turn; again before that is the same run.
@function bh:schedule */
static int bh_schedule(lua_State *L) { return schedule(L, aio_bh_schedule); }

/*** Runs it within 10 ms, without counting as progress; when it does this to itself, about 100 times a second.
@function bh:schedule_idle */
static int bh_schedule_idle(lua_State *L) { return schedule(L, aio_bh_schedule_idle); }

/*** Takes the scheduling back.
@function bh:cancel */
static int bh_cancel(lua_State *L) {
  LBh *b = check_bh(L);
  aio_bh_cancel(&b->bh);
  if (b->slot && lua_rawgeti(L, L_ANCHORS, b->c->id) == LUA_TTABLE) {
    lua_pushboolean(L, 0);
    lua_rawseti(L, -2, b->slot);
    b->held = false;
  }
  settle(b);
  return 0;
}

/*** Whether it will run.
@function bh:scheduled
@treturn boolean */
static int bh_scheduled(lua_State *L) {
  const LBh *b = aioL_check(L, 1, L_BH);
  lua_pushboolean(L, b->c && !b->c->closed && aio_bh_scheduled(&b->bh));
  return 1;
}

/*** Cancels it for good. Also `<close>`; twice is fine.
@function bh:close */
static int bh_close(lua_State *L) {
  LBh *b = aioL_check(L, 1, L_BH);
  LContext *c = b->c;
  if (!c) return 0;
  if (!c->closed) aio_bh_close(&b->bh);
  settle(b);
  aioL_unanchor(L, c, &b->slot);
  b->c = NULL;
  lua_pushnil(L);
  lua_setiuservalue(L, 1, 1);
  aioL_context_unref(L, c);
  return 0;
}

static int set_unref(lua_State *L, bool unref) {
  LBh *b = check_bh(L);
  b->unref = unref;
  settle(b);
  lua_settop(L, 1);
  return 1;
}

/*** Scheduled, it keeps `run` going (the default).
@function bh:ref
@treturn bh itself */
static int bh_ref(lua_State *L) { return set_unref(L, false); }

/*** It does not keep `run` going.
@function bh:unref
@treturn bh itself */
static int bh_unref(lua_State *L) { return set_unref(L, true); }

static int bh_tostring(lua_State *L) {
  const LBh *b = aioL_check(L, 1, L_BH);
  const char *state = !b->c || b->c->closed ? "closed" : aio_bh_scheduled(&b->bh) ? "scheduled" : "idle";
  lua_pushfstring(L, "aioloop.bh (%s): %p", state, lua_topointer(L, 1));
  return 1;
}

void aioL_open_bh(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"schedule", bh_schedule}, {"schedule_idle", bh_schedule_idle}, {"cancel", bh_cancel},
    {"scheduled", bh_scheduled}, {"close", bh_close}, {"ref", bh_ref}, {"unref", bh_unref}, {"__gc", bh_close},
    {"__close", bh_close}, {"__tostring", bh_tostring}, {NULL, NULL}};
  UNUSED(module);
  aioL_class(L, rt, L_BH, methods);
}
