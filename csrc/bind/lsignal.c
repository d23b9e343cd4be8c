/* SPDX-License-Identifier: MIT
 * Signals: ctx:signal (a callback) and aio.wait_signal.
 *
 * Way      ctx:signal -> aio_signal_open -> the turn after the signal -> run_signal -> aioL_call
 *          wait_signal -> ticket -> aio_signal_open -> aioL_take -> results
 * Owner    a signal userdata holds its function in a user value and is anchored while it is open. */
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "lbind.h"

/*** Unix signals.
@module aioloop.signal */

typedef struct LSignal {
  AioSignal sig;
  LContext *c;   /* NULL: closed */
  uint32_t slot;
  bool packed, unref;
} LSignal;

static const struct { const char *name; int signo; } names[] = {
  {"HUP", SIGHUP}, {"INT", SIGINT}, {"QUIT", SIGQUIT}, {"USR1", SIGUSR1}, {"USR2", SIGUSR2}, {"PIPE", SIGPIPE},
  {"ALRM", SIGALRM}, {"TERM", SIGTERM}, {"CHLD", SIGCHLD}, {"CONT", SIGCONT}, {"TSTP", SIGTSTP}, {"TTIN", SIGTTIN},
  {"TTOU", SIGTTOU}, {"URG", SIGURG}, {"WINCH", SIGWINCH}, {"IO", SIGIO}, {"PWR", SIGPWR}};

static int check_signo(lua_State *L, int idx) {
  if (lua_type(L, idx) == LUA_TSTRING) {
    const char *name = lua_tostring(L, idx);
    if (!strncmp(name, "SIG", 3)) name += 3;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
      if (!strcmp(name, names[i].name)) return names[i].signo;
    luaL_argerror(L, idx, "unknown signal, or one that cannot be handled");
  }
  lua_Integer signo = luaL_checkinteger(L, idx);
  bool fatal = signo == SIGSEGV || signo == SIGBUS || signo == SIGFPE || signo == SIGILL; /* would come again for ever */
  luaL_argcheck(L, signo > 0 && signo <= SIGRTMAX && !fatal, idx, "no signal that can be handled");
  return (int)signo;
}

/* ---- callbacks ---- */

static void run_signal(void *opaque) {
  LSignal *s = opaque;
  LContext *c = s->c;
  lua_State *L = c->L;
  lua_rawgeti(L, c->base, s->slot); /* keeps it alive while its function runs */
  lua_getiuservalue(L, -1, 1);
  aioL_call(c, s->packed ? aioL_unpack(L) : 0, "signal");
  lua_pop(L, 1);
}

static LSignal *check_signal(lua_State *L) {
  LSignal *s = aioL_check(L, 1, L_SIGNAL);
  if (!s->c || s->c->closed) luaL_error(L, "attempt to use a closed signal");
  return s;
}

/*** Calls a function in the turn after a signal came; once, however often it came meanwhile.
@function context:signal
@tparam integer|string signal a number, or a name such as "TERM"
@tparam function fn
@param ... its arguments
@treturn signal which keeps `run` going until it is closed or unref'ed; or nil, message, errno */
int aioL_ctx_signal(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  int signo = check_signo(L, 2);
  luaL_checktype(L, 3, LUA_TFUNCTION);
  bool packed = lua_gettop(L) > 3;
  if (packed) aioL_pack(L, 3);
  LSignal *s = lua_newuserdatauv(L, sizeof *s, 1);
  *s = (LSignal){.packed = packed};
  aioL_set_class(L, c->rt, L_SIGNAL);
  lua_pushvalue(L, 3);
  lua_setiuservalue(L, -2, 1);
  aioL_check_open(L, c); /* a finaliser may have closed it */
  uint32_t slot = aioL_anchor(L, c, -1, NULL);
  int rc = aio_signal_open(&s->sig, c->core, signo, run_signal, s);
  if (rc < 0) {
    aioL_unanchor(L, c, &slot);
    return aioL_fail(L, rc);
  }
  s->c = aioL_context_ref(c);
  s->slot = slot;
  c->live++;
  return 1;
}

/*** Stops listening; what the signal did before, it does again when nobody else listens. Also `<close>`; twice is fine.
@function signal:close */
static int signal_close(lua_State *L) {
  LSignal *s = aioL_check(L, 1, L_SIGNAL);
  LContext *c = s->c;
  if (!c) return 0;
  s->c = NULL;
  aio_signal_close(&s->sig);
  if (!c->closed) {
    aioL_unanchor(L, c, &s->slot);
    if (!s->unref) c->live--;
  }
  lua_pushnil(L);
  lua_setiuservalue(L, 1, 1);
  aioL_context_unref(L, c);
  return 0;
}

static int set_unref(lua_State *L, bool unref) {
  LSignal *s = check_signal(L);
  if (unref != s->unref) aioL_live(s->c, true, unref ? -1 : 1);
  s->unref = unref;
  lua_settop(L, 1);
  return 1;
}

/*** It keeps `run` going (the default).
@function signal:ref
@treturn signal itself */
static int signal_ref(lua_State *L) { return set_unref(L, false); }

/*** It does not keep `run` going.
@function signal:unref
@treturn signal itself */
static int signal_unref(lua_State *L) { return set_unref(L, true); }

static int signal_tostring(lua_State *L) {
  const LSignal *s = aioL_check(L, 1, L_SIGNAL);
  if (s->c && !s->c->closed)
    lua_pushfstring(L, "aioloop.signal (%d): %p", s->sig.signo, lua_topointer(L, 1));
  else
    lua_pushfstring(L, "aioloop.signal (closed): %p", lua_topointer(L, 1));
  return 1;
}

/* ---- waiting for one ---- */

typedef struct LSignalWait {
  AioSignal sig;
  LTicket *tk;
} LSignalWait;

static void wait_leave(LTicket *tk) {
  LSignalWait *sw = tk->op;
  aio_signal_close(&sw->sig);
  aioL_alloc(tk->c->rt->main, sw, sizeof *sw, 0);
}

static void wait_over(void *opaque) { aioL_take(((LSignalWait *)opaque)->tk, L_DONE, 0); }

static const LWaitOps wait_ops = {.name = "aio.wait_signal", .leave = wait_leave};

/*** Waits for a signal. One that comes while nobody waits does what it always does.
@function wait_signal
@tparam integer|string signal a number, or a name such as "TERM"
@number[opt] timeout seconds
@treturn boolean true; or nil, "timeout"; or nil, message, errno */
static int wait_signal(lua_State *L) {
  int signo = check_signo(L, 1);
  int64_t timeout = aioL_opt_ns(L, 2);
  LContext *c = aioL_current(L);
  LTicket *tk = aioL_ticket(L, c, &wait_ops);
  LSignalWait *sw = aioL_alloc(L, NULL, 0, sizeof *sw);
  int rc = sw ? aio_signal_open(&sw->sig, c->core, signo, wait_over, sw) : -ENOMEM;
  if (rc < 0) {
    if (sw) aioL_alloc(L, sw, sizeof *sw, 0);
    aioL_ticket_drop(tk);
    return aioL_fail(L, rc);
  }
  sw->tk = tk;
  tk->op = sw;
  return aioL_wait(L, tk, timeout);
}

void aioL_open_signal(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"close", signal_close}, {"ref", signal_ref}, {"unref", signal_unref},
    {"__gc", signal_close}, {"__close", signal_close}, {"__tostring", signal_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"wait_signal", wait_signal}, {NULL, NULL}};
  aioL_class(L, rt, L_SIGNAL, methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
