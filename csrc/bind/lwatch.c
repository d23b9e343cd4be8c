/* SPDX-License-Identifier: MIT
 * Watches: ctx:watch, and the waits for one fd.
 *
 * Way      watch -> aio_watch_open for each direction -> the turn -> on_read / on_write -> aioL_call
 *          wait_readable -> ticket -> aio_watch_open -> the turn -> aioL_take -> results
 * Owner    the userdata holds callbacks and the object behind the fd in user values, and is anchored while it has a callback.
 * Keep     an fd that was closed behind our back, or cannot be watched on, is reported once, and the watch is closed. */
#include <errno.h>
#include <string.h>

#include "lbind.h"

/*** Watches: callbacks and waits for fds.
@module aioloop.watch */

enum { UV_READ = 1, UV_WRITE, UV_POLL, UV_OBJECT, UVS = UV_OBJECT };

typedef struct LWatch {
  LContext *c;   /* NULL: closed */
  int fd;
  uint32_t slot;
  bool unref, counted;
  AioWatch w[2]; /* by AioDir */
} LWatch;

static bool active(const LWatch *w) {
  return !w->c->closed && (aio_watch_is_open(&w->w[AIO_READ]) || aio_watch_is_open(&w->w[AIO_WRITE]));
}

static void settle(lua_State *L, LWatch *w) {
  LContext *c = w->c;
  bool counts = active(w) && !w->unref;
  if (!active(w)) aioL_unanchor(L, c, &w->slot);
  if (counts != w->counted && !c->closed) aioL_live(c, true, counts ? 1 : -1);
  w->counted = counts;
}

static void close_watch(lua_State *L, LWatch *w) {
  LContext *c = w->c;
  if (!c) return;
  if (!c->closed) {
    aio_watch_close(&w->w[AIO_READ]);
    aio_watch_close(&w->w[AIO_WRITE]);
  }
  settle(L, w);
  w->c = NULL;
  aioL_context_unref(L, c);
}

static int raise_lost(lua_State *L) { /* stack: fd, -errno */
  int fd = (int)lua_tointeger(L, 1), rc = (int)lua_tointeger(L, 2);
  if (rc == -EBADF) return luaL_error(L, "fd %d was closed while it was watched", fd);
  return luaL_error(L, "fd %d cannot be watched any more: %s", fd, strerror(-rc));
}

static void lost(LContext *c, LWatch *w, int rc) {
  lua_State *L = c->L;
  lua_pushcfunction(L, raise_lost);
  lua_pushinteger(L, w->fd);
  lua_pushinteger(L, rc);
  close_watch(L, w);
  aioL_call(c, 2, "watch");
}

/* stack effect on c->L: [-0, +0, -] */
static void ready(LWatch *w, AioDir dir) {
  LContext *c = w->c;
  lua_State *L = c->L;
  lua_rawgeti(L, c->base, w->slot); /* keeps it alive while its function runs */
  if (w->w[dir].lost) {
    lost(c, w, w->w[dir].lost);
  } else {
    lua_getiuservalue(L, -1, dir == AIO_READ ? UV_READ : UV_WRITE);
    aioL_call(c, 0, "watch");
  }
  lua_pop(L, 1);
}

static void on_read(void *opaque) { ready(opaque, AIO_READ); }
static void on_write(void *opaque) { ready(opaque, AIO_WRITE); }

/* The script's readiness test, called while the loop spins; true: read is called. */
static bool on_test(void *opaque) {
  LWatch *w = opaque;
  LContext *c = w->c;
  lua_State *L = c->L;
  if (!L) return false;
  lua_rawgeti(L, c->base, w->slot);
  lua_getiuservalue(L, -1, UV_POLL);
  bool yes = false;
  if (lua_pcall(L, 0, 1, c->base + 1) != LUA_OK) {
    aioL_report(c, "watch", NULL);
    lua_pop(L, 1);
    if (!c->closed) aio_notify(c->core); /* the turn is over */
    return false;
  }
  yes = lua_toboolean(L, -1);
  lua_pop(L, 2);
  return yes;
}

/* stack: ..., callbacks table at `idx`. Checks everything before anything is changed. */
static void check_callbacks(lua_State *L, int idx) {
  static const char *const names[] = {"read", "write", "poll", NULL};
  aioL_check_names(L, idx, 0, names);
  for (int i = 0; i < 3; i++) {
    int type = lua_getfield(L, idx, names[i]);
    if (type != LUA_TNIL && type != LUA_TFUNCTION) luaL_error(L, "%s must be a function", names[i]);
    lua_pop(L, 1);
  }
  if (lua_getfield(L, idx, "poll") != LUA_TNIL && lua_getfield(L, idx, "read") == LUA_TNIL)
    luaL_error(L, "poll= needs read=, which is called when it returns true");
  lua_settop(L, idx);
}

/* stack: callbacks at idx, watch userdata at `self`. Returns 0 or -errno with the watch without callbacks. */
static int set_callbacks(lua_State *L, LWatch *w, int self, int idx) {
  static const char *const names[] = {"read", "write", "poll"};
  LContext *c = w->c;
  for (int i = 0; i < 3; i++) {
    lua_getfield(L, idx, names[i]);
    lua_setiuservalue(L, self, UV_READ + i);
  }
  if (!w->c || c->closed) luaL_error(L, "attempt to use a closed watch"); /* a metamethod has closed it */
  bool want[2] = {lua_getiuservalue(L, self, UV_READ) != LUA_TNIL, lua_getiuservalue(L, self, UV_WRITE) != LUA_TNIL};
  bool tests = lua_getiuservalue(L, self, UV_POLL) != LUA_TNIL;
  lua_pop(L, 3);
  if ((want[AIO_READ] || want[AIO_WRITE]) && !w->slot) w->slot = aioL_anchor(L, c, self, NULL);
  int rc = 0;
  for (int dir = AIO_READ; dir <= AIO_WRITE; dir++) {
    aio_watch_close(&w->w[dir]);
    if (rc < 0 || !want[dir]) continue;
    rc = aio_watch_open(&w->w[dir], c->core, w->fd, (AioDir)dir, dir == AIO_READ ? on_read : on_write,
                        dir == AIO_READ && tests ? on_test : NULL, w);
  }
  if (rc < 0) aio_watch_close(&w->w[AIO_READ]);
  settle(L, w);
  return rc;
}

static int fail(lua_State *L, int fd, int rc) {
  if (rc == -EEXIST) return luaL_error(L, "fd %d has a watch for that direction already", fd);
  if (rc == -ENOMEM) return luaL_error(L, "not enough memory");
  aioL_fail(L, rc);
  if (rc == -EPERM) lua_pushfstring(L, "fd %d cannot be watched (a regular file is always ready)", fd), lua_replace(L, -3);
  if (rc == -ELOOP || rc == -EINVAL)
    lua_pushfstring(L, "fd %d cannot be watched: a loop inside itself, or beyond the kernel's limit of nested epolls (about 5)",
                    fd), lua_replace(L, -3);
  return 3;
}

/*** Watches an fd.
@function context:watch
@param fd an integer, a file, or an object with getfd(), fileno() or pollfd()
@tparam table callbacks read=, write=: called (without arguments) in every turn that finds it ready;
  poll=: a test for adaptive polling, which answers true when read is to be called
@treturn watch or nil, message, errno: an fd that cannot be watched
@raise when the fd has a watch for that direction */
int aioL_ctx_watch(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  lua_settop(L, 3);
  check_callbacks(L, 3);
  int fd = aioL_check_fd(L, 2);
  LWatch *w = lua_newuserdatauv(L, sizeof *w, UVS);
  *w = (LWatch){.c = NULL, .fd = fd};
  aioL_set_class(L, c->rt, L_WATCH);
  lua_pushvalue(L, 2);
  lua_setiuservalue(L, 4, UV_OBJECT); /* or the collector would close the fd */
  aioL_check_open(L, c);
  w->c = aioL_context_ref(c);
  int rc = set_callbacks(L, w, 4, 3);
  if (rc == 0) return 1;
  close_watch(L, w);
  return fail(L, fd, rc);
}

static LWatch *check_watch(lua_State *L) {
  LWatch *w = aioL_check(L, 1, L_WATCH);
  if (!w->c || w->c->closed) luaL_error(L, "attempt to use a closed watch");
  return w;
}

/*** Replaces all callbacks; none: the fd is not watched until the next set.
@function watch:set
@tparam table callbacks as for `context:watch`
@treturn watch itself, or nil, message, errno */
static int watch_set(lua_State *L) {
  LWatch *w = check_watch(L);
  lua_settop(L, 2);
  check_callbacks(L, 2);
  int rc = set_callbacks(L, w, 1, 2);
  if (rc < 0) return fail(L, w->fd, rc);
  lua_settop(L, 1);
  return 1;
}

/*** Ends it; the fd stays open. Also `<close>`; twice is fine.
@function watch:close */
static int watch_close(lua_State *L) {
  LWatch *w = aioL_check(L, 1, L_WATCH);
  close_watch(L, w);
  for (int i = 1; i <= UVS; i++) {
    lua_pushnil(L);
    lua_setiuservalue(L, 1, i);
  }
  return 0;
}

static int set_unref(lua_State *L, bool unref) {
  LWatch *w = check_watch(L);
  w->unref = unref;
  settle(L, w);
  lua_settop(L, 1);
  return 1;
}

/*** With a callback, it keeps `run` going (the default).
@function watch:ref
@treturn watch itself */
static int watch_ref(lua_State *L) { return set_unref(L, false); }

/*** It does not keep `run` going.
@function watch:unref
@treturn watch itself */
static int watch_unref(lua_State *L) { return set_unref(L, true); }

static int watch_tostring(lua_State *L) {
  const LWatch *w = aioL_check(L, 1, L_WATCH);
  const char *state = !w->c || w->c->closed ? "closed" : active(w) ? "active" : "idle";
  lua_pushfstring(L, "aioloop.watch (%s, fd %d): %p", state, w->fd, lua_topointer(L, 1));
  return 1;
}

/* ---- waiting for one fd ---- */

typedef struct LFdWait {
  AioWatch w;
  LTicket *tk;
} LFdWait;

static void fd_wait_leave(LTicket *tk) {
  LFdWait *fw = tk->op;
  aio_watch_close(&fw->w);
  aioL_alloc(tk->c->rt->main, fw, sizeof *fw, 0);
}

static void fd_wait_ready(void *opaque) {
  LFdWait *fw = opaque;
  int rc = fw->w.lost;
  aioL_take(fw->tk, rc == -EBADF ? L_CLOSED : rc ? L_FAILED : L_DONE, rc);
}

static const LWaitOps wait_ops[2] = {{.name = "aio.wait_readable", .leave = fd_wait_leave},
                                     {.name = "aio.wait_writable", .leave = fd_wait_leave}};

/* An object that is a loop itself says how long it can be slept on. */
static int64_t own_timeout(lua_State *L, int idx, int64_t limit) { /* [-0, +0, e] */
  if (lua_type(L, idx) != LUA_TUSERDATA && lua_type(L, idx) != LUA_TTABLE) return limit;
  int64_t own = AIO_FOREVER;
  if (luaL_getmetafield(L, idx, "__index") == LUA_TNIL && !lua_istable(L, idx)) return limit;
  lua_settop(L, 2);
  if (lua_getfield(L, idx, "pollfd") == LUA_TFUNCTION && lua_getfield(L, idx, "timeout") == LUA_TFUNCTION) {
    lua_pushvalue(L, idx);
    lua_call(L, 1, 1);
    if (lua_type(L, -1) == LUA_TNUMBER) own = aioL_check_ns(L, lua_gettop(L));
  }
  lua_settop(L, 2);
  return own < limit ? own : limit;
}

static int wait_fd(lua_State *L, AioDir dir) {
  lua_settop(L, 2);
  int fd = aioL_check_fd(L, 1);
  int64_t timeout = own_timeout(L, 1, aioL_opt_ns(L, 2));
  LContext *c = aioL_current(L); /* after the object's own methods, which may close it */
  LTicket *tk = aioL_ticket(L, c, &wait_ops[dir]);
  LFdWait *fw = aioL_alloc(L, NULL, 0, sizeof *fw);
  int rc = -ENOMEM;
  if (fw) rc = aio_watch_open(&fw->w, c->core, fd, dir, fd_wait_ready, NULL, fw);
  if (rc < 0) {
    if (fw) aioL_alloc(L, fw, sizeof *fw, 0);
    aioL_ticket_drop(tk);
    return fail(L, fd, rc);
  }
  fw->tk = tk;
  tk->op = fw;
  if (timeout > 0 || !aioL_fd_ready(fd, dir)) return aioL_wait(L, tk, timeout); /* it is over before a turn has asked */
  fd_wait_leave(tk);
  aioL_ticket_drop(tk);
  return lua_pushboolean(L, 1), 1;
}

/*** Waits until an fd can be read without blocking (or has ended, or failed).
@function wait_readable
@param fd an integer, a file, or an object with getfd(), fileno() or pollfd()
@number[opt] timeout seconds
@treturn boolean true; or nil, "timeout"; nil, "closed": the fd was closed meanwhile; nil, message, errno: it cannot be watched */
static int wait_readable(lua_State *L) { return wait_fd(L, AIO_READ); }

/*** Waits until an fd can be written without blocking.
@function wait_writable
@param fd as for `wait_readable`
@number[opt] timeout seconds
@treturn boolean as for `wait_readable` */
static int wait_writable(lua_State *L) { return wait_fd(L, AIO_WRITE); }

void aioL_open_watch(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"set", watch_set}, {"close", watch_close}, {"ref", watch_ref}, {"unref", watch_unref},
    {"__gc", watch_close}, {"__close", watch_close}, {"__tostring", watch_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"wait_readable", wait_readable}, {"wait_writable", wait_writable}, {NULL, NULL}};
  aioL_class(L, rt, L_WATCH, methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
