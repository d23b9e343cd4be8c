/* SPDX-License-Identifier: MIT
 * Timers, and the virtual clock.
 *
 * Way      arm -> aio_timer_arm -> the turn -> fire -> aioL_call; a repeating one is armed again before its function runs
 * Owner    the userdata holds the function in a user value and is anchored while armed. It has no finaliser, for they
 *          are dear where there are many: it does not count its LContext, but knows which life of it was meant.
 * Keep     a repeat is armed at deadline + n * every, so it does not drift; ticks that were missed are counted. */
#include <errno.h>

#include "lbind.h"

/*** Timers, and the virtual clock.
@module aioloop.timer */

typedef struct LTimer {
  AioTimer timer;
  LContext *c;       /* NULL: closed */
  int64_t every;     /* 0: once */
  int64_t due;       /* of a repeating one: the deadline it is armed for, before any clamping */
  uint32_t missed;   /* ticks skipped before the last call */
  uint32_t slot;     /* 0: not anchored */
  uint32_t life;     /* of c: a later one is another context, and this timer closed */
  bool packed, unref, counted;
} LTimer;

static void fire(void *opaque);

static bool is_open(const LTimer *t) { return t->c && t->c->life == t->life && !t->c->closed; }

static LTimer *check_timer(lua_State *L) {
  LTimer *t = lua_touserdata(L, 1);
  if (!t || lua_rawlen(L, 1) != sizeof *t || t->timer.fn != fire) t = aioL_check(L, 1, L_TIMER);
  if (!is_open(t)) luaL_error(L, "attempt to use a closed timer");
  return t;
}

/* What is armed is counted, unless unref'ed. */
static void count(LTimer *t) {
  LContext *c = t->c;
  bool counts = !c->closed && aio_timer_armed(&t->timer) && !t->unref;
  if (counts != t->counted && !c->closed) aioL_live(c, true, counts ? 1 : -1);
  t->counted = counts;
}

/* What is armed is anchored, and counted. */
static void settle(lua_State *L, LTimer *t) {
  if (!aio_timer_armed(&t->timer)) aioL_unanchor(L, t->c, &t->slot);
  count(t);
}

static void arm_next_tick(LTimer *t) {
  int64_t late = aio_timer_now(&t->timer) - t->due;
  int64_t missed = late > 0 ? late / t->every : 0;
  t->missed = missed > UINT32_MAX ? UINT32_MAX : (uint32_t)missed;
  t->due = aioL_after(t->due + missed * t->every, t->every); /* what was missed lies before now, and cannot overflow */
  aio_timer_arm(&t->timer, t->due); /* its place in the heap is still there */
}

static void fire(void *opaque) {
  LTimer *t = opaque;
  LContext *c = t->c;
  lua_State *L = c->L;
  lua_rawgeti(L, c->base, t->slot); /* keeps it alive while its function runs */
  lua_getiuservalue(L, -1, 1);
  if (t->every) arm_next_tick(t);
  aioL_call(c, t->packed ? aioL_unpack(L) : 0, "timer");
  if (t->c) { /* else its function closed it */
    if (!aio_timer_armed(&t->timer)) aioL_unanchor_here(c, &t->slot);
    count(t);
  }
  lua_pop(L, 1);
}

/* stack: context, options, ...; leaves: context, function, arguments */
static AioClock take_options(lua_State *L, AioClock clock) {
  static const char *const names[] = {"clock", NULL};
  luaL_argexpected(L, lua_istable(L, 2), 2, "function");
  int n = (int)lua_rawlen(L, 2);
  aioL_check_names(L, 2, (lua_Unsigned)n, names);
  lua_settop(L, 2);
  if (lua_getfield(L, 2, "clock") != LUA_TNIL) {
    luaL_argcheck(L, lua_type(L, -1) == LUA_TSTRING, 2, "clock must be a string");
    aioL_check_clock(L, -1, &clock);
  }
  lua_pop(L, 1);
  luaL_checkstack(L, n, "too many arguments");
  for (int i = 1; i <= n; i++) lua_rawgeti(L, 2, i);
  lua_remove(L, 2);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  return clock;
}

/*** Makes a timer, not armed.
@function context:timer
@tparam function|table fn what to call; or {clock="monotonic"|"realtime"|"boottime"|"virtual", fn, arguments...}
@param ... its arguments
@treturn timer */
int aioL_ctx_timer(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  AioClock clock = lua_isfunction(L, 2) ? c->clock : take_options(L, c->clock);
  bool packed = lua_gettop(L) > 2;
  if (packed) aioL_pack(L, 2);
  LTimer *t = lua_newuserdatauv(L, sizeof *t, 1);
  *t = (LTimer){.c = NULL};
  aioL_set_class(L, c->rt, L_TIMER);
  lua_pushvalue(L, 2);
  lua_setiuservalue(L, -2, 1);
  aio_timer_init(&t->timer, c->core, clock, fire, t);
  t->packed = packed;
  t->life = c->life;
  t->c = c;
  return 1;
}

static int arm_at(lua_State *L, LTimer *t, int64_t deadline, int64_t every) {
  if (deadline != AIO_FOREVER && !t->slot) t->slot = aioL_anchor(L, t->c, 1, NULL);
  int rc = aio_timer_arm(&t->timer, deadline);
  t->every = every;
  t->due = deadline < 0 ? 0 : deadline;
  if (rc < 0 || deadline == AIO_FOREVER || t->counted == t->unref) settle(L, t);
  if (rc < 0) return luaL_error(L, "not enough memory");
  lua_pushvalue(L, 1);
  return 1;
}

static int64_t check_interval(lua_State *L, int idx) { /* nil: none, 0 */
  if (lua_isnil(L, idx)) return 0;
  int64_t every = aioL_check_ns(L, idx);
  luaL_argcheck(L, every > 0, idx, "the interval must be greater than 0");
  return every == AIO_FOREVER ? 0 : every;
}

/*** Fires after a while; armed again, it moves.
@function timer:arm
@number after seconds; negative is now, infinite is never
@number[opt] every then fires again every so many seconds, without drift; > 0
@treturn timer itself */
static int timer_arm(lua_State *L) {
  LTimer *t = check_timer(L);
  int64_t after = aioL_check_ns(L, 2);
  int64_t every = lua_gettop(L) > 2 ? check_interval(L, 3) : 0;
  return arm_at(L, t, aioL_after(aio_timer_now(&t->timer), after), every);
}

/*** Fires once at a point in time of its clock.
@function timer:arm_at
@number t seconds
@treturn timer itself */
static int timer_arm_at(lua_State *L) {
  LTimer *t = check_timer(L);
  return arm_at(L, t, aioL_check_ns(L, 2), 0);
}

/*** Takes the arming back.
@function timer:disarm */
static int timer_disarm(lua_State *L) {
  LTimer *t = check_timer(L);
  aio_timer_disarm(&t->timer);
  settle(L, t);
  return 0;
}

/*** Whether it will fire.
@function timer:armed
@treturn boolean */
static int timer_armed(lua_State *L) {
  const LTimer *t = aioL_check(L, 1, L_TIMER);
  lua_pushboolean(L, is_open(t) && aio_timer_armed(&t->timer));
  return 1;
}

/*** How long until it fires.
@function timer:remaining
@treturn number seconds, 0 when it is due; nil when it is not armed */
static int timer_remaining(lua_State *L) {
  const LTimer *t = check_timer(L);
  if (!aio_timer_armed(&t->timer)) return luaL_pushfail(L), 1;
  int64_t left = aio_timer_deadline(&t->timer) - aio_timer_now(&t->timer);
  aioL_push_seconds(L, left < 0 ? 0 : left);
  return 1;
}

/*** How many ticks of a repeating timer were skipped before its last call.
@function timer:missed
@treturn integer */
static int timer_missed(lua_State *L) {
  const LTimer *t = aioL_check(L, 1, L_TIMER);
  lua_pushinteger(L, t->missed);
  return 1;
}

/*** Disarms it for good. Also `<close>`; twice is fine.
@function timer:close */
static int timer_close(lua_State *L) {
  LTimer *t = aioL_check(L, 1, L_TIMER);
  if (is_open(t)) {
    aio_timer_disarm(&t->timer);
    settle(L, t);
  }
  t->c = NULL;
  t->every = 0;
  lua_pushnil(L);
  lua_setiuservalue(L, 1, 1);
  return 0;
}

static int set_unref(lua_State *L, bool unref) {
  LTimer *t = check_timer(L);
  t->unref = unref;
  settle(L, t);
  lua_settop(L, 1);
  return 1;
}

/*** Armed, it keeps `run` going (the default).
@function timer:ref
@treturn timer itself */
static int timer_ref(lua_State *L) { return set_unref(L, false); }

/*** It does not keep `run` going.
@function timer:unref
@treturn timer itself */
static int timer_unref(lua_State *L) { return set_unref(L, true); }

static int timer_tostring(lua_State *L) {
  const LTimer *t = aioL_check(L, 1, L_TIMER);
  const char *state = !is_open(t) ? "closed" : aio_timer_armed(&t->timer) ? "armed" : "idle";
  lua_pushfstring(L, "aioloop.timer (%s): %p", state, lua_topointer(L, 1));
  return 1;
}

/* ---- the virtual clock: a singleton of the runtime ---- */

static AioVClock *check_vclock(lua_State *L) {
  aioL_check(L, 1, L_VCLOCK);
  AioVClock *vc = aioL_runtime(L)->vclock;
  if (!vc) luaL_error(L, "attempt to use a closed clock"); /* by a finaliser in lua_close */
  return vc;
}

/*** Stops the virtual clock (it starts that way, at 0).
@function vclock:pause */
static int vclock_pause(lua_State *L) { return aio_vclock_pause(check_vclock(L)), 0; }

/*** Lets it run like a real one.
@function vclock:resume */
static int vclock_resume(lua_State *L) { return aio_vclock_resume(check_vclock(L)), 0; }

/*** Lets it jump to the next deadline whenever a poll would sleep, unless jobs of the pool or requests of files are under way.
@function vclock:autojump
@bool on
@treturn boolean whether it did so before */
static int vclock_autojump(lua_State *L) {
  AioVClock *vc = check_vclock(L);
  luaL_checktype(L, 2, LUA_TBOOLEAN);
  return lua_pushboolean(L, aio_vclock_autojump(vc, lua_toboolean(L, 2))), 1;
}

/*** The virtual time.
@function vclock:now
@treturn number seconds */
static int vclock_now(lua_State *L) { return aioL_push_seconds(L, aio_vclock_now(check_vclock(L))), 1; }

/*** Moves the clock forward, running what is due at each deadline on the way.
@function vclock:advance
@number seconds at least 0
@raise the first error of a callback, outside of any turn */
static int vclock_advance(lua_State *L) {
  AioVClock *vc = check_vclock(L);
  int64_t ns = aioL_check_ns(L, 2);
  luaL_argcheck(L, ns >= 0, 2, "the clock does not go back");
  LRuntime *rt = aioL_runtime(L);
  lua_State *outer = rt->lent;
  rt->lent = L;
  aio_vclock_advance(vc, ns);
  rt->lent = outer;
  LContext *erred = rt->erred;
  if (erred && !erred->depth) rt->erred = NULL;
  if (erred) aioL_raise(L, erred);
  return 0;
}

static int vclock_tostring(lua_State *L) {
  lua_pushfstring(L, "aioloop.clock (virtual, %f s)", (lua_Number)aio_vclock_now(check_vclock(L)) / 1e9);
  return 1;
}

void aioL_open_timer(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"arm", timer_arm}, {"arm_at", timer_arm_at}, {"disarm", timer_disarm},
    {"armed", timer_armed}, {"remaining", timer_remaining}, {"missed", timer_missed}, {"close", timer_close},
    {"ref", timer_ref}, {"unref", timer_unref}, {"__close", timer_close}, {"__tostring", timer_tostring}, {NULL, NULL}};
  static const luaL_Reg vclock_methods[] = {{"pause", vclock_pause}, {"resume", vclock_resume}, {"advance", vclock_advance},
    {"autojump", vclock_autojump}, {"now", vclock_now}, {"__tostring", vclock_tostring}, {NULL, NULL}};
  aioL_class(L, rt, L_TIMER, methods);
  aioL_class(L, rt, L_VCLOCK, vclock_methods);
  lua_createtable(L, 0, 1);
  lua_newuserdatauv(L, 1, 0);
  aioL_set_class(L, rt, L_VCLOCK);
  lua_setfield(L, -2, "virtual");
  lua_setfield(L, module, "clock");
}
