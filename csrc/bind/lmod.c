/* SPDX-License-Identifier: MIT
 * The module aioloop.core: its opening, and how arguments and objects cross the wall.
 *
 * Way      luaopen_aioloop_core -> runtime in the registry (one for each lua_State, found again) -> each noun's functions
 * Keep     every function has the runtime as first upvalue; a class is recognised by its mark, or its metatable's address. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lbind.h"

#define RUNTIME_KEY "aioloop.runtime"
enum { HEAP_BLOCK = 4 << 20 };

void aioL_know(lua_State *L, const void *object) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, aioL_runtime(L)->objects);
  lua_pushvalue(L, -2);
  lua_rawsetp(L, -2, object);
  lua_pop(L, 1);
}

void aioL_push_runtime(lua_State *L, LRuntime *rt) {
  UNUSED(rt);
  lua_getfield(L, LUA_REGISTRYINDEX, RUNTIME_KEY);
}

LRuntime *aioL_find_runtime(lua_State *L) {
  lua_getfield(L, LUA_REGISTRYINDEX, RUNTIME_KEY);
  LRuntime *rt = lua_touserdata(L, -1);
  lua_pop(L, 1);
  return rt;
}

static const char *const class_names[L_KINDS] = {
  "aioloop.context", "aioloop.bh", "aioloop.timer", "aioloop.watch", "aioloop.task", "aioloop.clock", "aioloop.signal", "aioloop.cancelled", "aioloop.wrap",
  "aioloop.group", "aioloop.will", "aioloop.mutex", "aioloop.rwlock", "aioloop.condition", "aioloop.semaphore", "aioloop.event", "aioloop.queue",
  "aioloop.buffer", "aioloop.file", "aioloop.stream", "aioloop.server", "aioloop.udp",
  "aioloop.tls"};

const char aioL_marks[L_KINDS];

/* Its first word, which nobody else's has, tells sooner than its metatable what it is. */
static bool is_marked(LKind kind) { return kind >= L_MUTEX; }

void *aioL_test(lua_State *L, int idx, LKind kind) {
  void *p = lua_touserdata(L, idx);
  if (!p) return NULL;
  if (is_marked(kind)) return lua_rawlen(L, idx) >= sizeof(void *) && *(const void **)p == &aioL_marks[kind] ? p : NULL;
  if (!lua_getmetatable(L, idx)) return NULL;
  bool mine = lua_topointer(L, -1) == aioL_runtime(L)->meta[kind];
  lua_pop(L, 1);
  return mine ? p : NULL;
}

const char *aioL_kind_name(LKind kind) { return class_names[kind] + sizeof "aioloop." - 1; }

void *aioL_check(lua_State *L, int idx, LKind kind) {
  void *p = aioL_test(L, idx, kind);
  if (!p) luaL_typeerror(L, idx, class_names[kind]);
  return p;
}

void aioL_functions(lua_State *L, LRuntime *rt, const luaL_Reg *functions) {
  lua_getfield(L, LUA_REGISTRYINDEX, RUNTIME_KEY);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->anchors);
  luaL_setfuncs(L, functions, 2);
}

void aioL_functions_with(lua_State *L, LRuntime *rt, const luaL_Reg *functions, int idx) {
  idx = lua_absindex(L, idx);
  lua_getfield(L, LUA_REGISTRYINDEX, RUNTIME_KEY);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->anchors);
  lua_pushvalue(L, idx);
  luaL_setfuncs(L, functions, 3);
}

void aioL_class(lua_State *L, LRuntime *rt, LKind kind, const luaL_Reg *methods) {
  luaL_newmetatable(L, class_names[kind]);
  aioL_functions(L, rt, methods);
  lua_pushvalue(L, -1);
  lua_setfield(L, -2, "__index");
  rt->meta[kind] = lua_topointer(L, -1);
  if (rt->meta_ref[kind])
    lua_pop(L, 1); /* required again: the same table */
  else
    rt->meta_ref[kind] = luaL_ref(L, LUA_REGISTRYINDEX);
}

void aioL_set_class(lua_State *L, LRuntime *rt, LKind kind) {
  if (is_marked(kind)) *(const void **)lua_touserdata(L, -1) = &aioL_marks[kind];
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->meta_ref[kind]);
  lua_setmetatable(L, -2);
}

int aioL_fail(lua_State *L, int rc) {
  char text[128];
  luaL_pushfail(L);
  switch (rc) {
    case -ESHUTDOWN: lua_pushliteral(L, "closed"); break;
    case -ETIMEDOUT: lua_pushliteral(L, "timeout"); break;
    default: lua_pushstring(L, strerror_r(-rc, text, sizeof text)); break;
  }
  lua_pushinteger(L, -rc);
  return 3;
}

int64_t aioL_check_ns(lua_State *L, int idx) {
  if (lua_type(L, idx) != LUA_TNUMBER) luaL_checktype(L, idx, LUA_TNUMBER); /* no numeric strings */
  lua_Number ns = lua_tonumber(L, idx) * 1e9;
  luaL_argcheck(L, ns == ns, idx, "not a number of seconds (NaN)");
  if (ns >= 9.2e18) return AIO_FOREVER;
  if (ns <= -9.2e18) return INT64_MIN / 2;
  int64_t whole = (int64_t)ns;
  return whole + ((lua_Number)whole < ns); /* up */
}

int64_t aioL_opt_ns(lua_State *L, int idx) { return lua_isnoneornil(L, idx) ? AIO_FOREVER : aioL_check_ns(L, idx); }

int64_t aioL_after(int64_t now, int64_t ns) {
  if (ns <= 0) return now;
  return ns >= AIO_FOREVER - now ? AIO_FOREVER : now + ns;
}

void aioL_push_seconds(lua_State *L, int64_t ns) { lua_pushnumber(L, (lua_Number)ns / 1e9); }

static int fd_of_file(lua_State *L, int idx) {
  const luaL_Stream *file = luaL_testudata(L, idx, LUA_FILEHANDLE);
  if (!file) return -1;
  luaL_argcheck(L, file->closef != NULL, idx, "the file is closed");
  return fileno(file->f);
}

static int fd_of_integer(lua_State *L, int idx, int arg) {
  int exact; /* LuaSocket's getfd returns a float */
  lua_Integer fd = lua_tointegerx(L, idx, &exact);
  luaL_argcheck(L, exact, arg, "an fd is an integer");
  luaL_argcheck(L, fd >= 0 && fd <= INT32_MAX, arg, "fd out of range");
  return (int)fd;
}

static bool indexable(lua_State *L, int idx) {
  if (lua_istable(L, idx)) return true;
  if (!lua_isuserdata(L, idx) || luaL_getmetafield(L, idx, "__index") == LUA_TNIL) return false;
  lua_pop(L, 1);
  return true;
}

int aioL_check_fd(lua_State *L, int idx) {
  static const char *const methods[] = {"getfd", "fileno", "pollfd"};
  if (lua_type(L, idx) == LUA_TNUMBER) return fd_of_integer(L, idx, idx);
  int fd = fd_of_file(L, idx);
  if (fd >= 0) return fd;
  for (size_t i = 0; indexable(L, idx) && i < sizeof methods / sizeof *methods; i++) {
    if (lua_getfield(L, idx, methods[i]) != LUA_TFUNCTION) {
      lua_pop(L, 1);
      continue;
    }
    lua_pushvalue(L, idx);
    lua_call(L, 1, 1); /* an error of its own speaks for itself */
    luaL_argexpected(L, lua_type(L, -1) == LUA_TNUMBER, idx, "open object with an fd");
    fd = fd_of_integer(L, -1, idx);
    lua_pop(L, 1);
    return fd;
  }
  return luaL_typeerror(L, idx, "fd, or object with getfd, fileno or pollfd");
}

const char *aioL_check_clock(lua_State *L, int idx, AioClock *clock) {
  static const char *const names[] = {"monotonic", "realtime", "boottime", "virtual"};
  const char *name = luaL_checkstring(L, idx);
  for (int i = 0; i < AIO_CLOCKS; i++)
    if (!strcmp(name, names[i])) return *clock = (AioClock)i, names[i];
  luaL_error(L, "unknown clock '%s' (monotonic, realtime, boottime or virtual)", name);
  return NULL;
}

void *aioL_alloc(lua_State *L, void *p, size_t old, size_t size) {
  void *ud;
  lua_Alloc alloc = lua_getallocf(L, &ud);
  return alloc(ud, p, old, size);
}

void aioL_pack(lua_State *L, int first) {
  int n = lua_gettop(L) - first; /* arguments */
  if (n == 0) return;
  lua_createtable(L, n + 1, 1);
  lua_insert(L, first);
  for (int i = n + 1; i > 0; i--) lua_rawseti(L, first, i); /* the function is at 1 */
  lua_pushinteger(L, n);
  lua_rawseti(L, first, 0);
}

static int no_room(lua_State *L) { return luaL_error(L, "stack overflow (too many arguments)"); }

int aioL_unpack(lua_State *L) {
  if (lua_type(L, -1) != LUA_TTABLE) return 0;
  int at = lua_gettop(L);
  lua_rawgeti(L, at, 0);
  int n = (int)lua_tointeger(L, -1);
  lua_pop(L, 1);
  if (!lua_checkstack(L, n + 4)) {
    lua_pop(L, 1);
    lua_pushcfunction(L, no_room); /* to be called instead, so that the error goes where errors go */
    return 0;
  }
  for (int i = 1; i <= n + 1; i++) lua_rawgeti(L, at, i);
  lua_remove(L, at);
  return n;
}

static int weak_table(lua_State *L, const char *mode) { /* [-0, +0, m] returns a registry reference */
  lua_newtable(L);
  lua_createtable(L, 0, 1);
  lua_pushstring(L, mode);
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
  return luaL_ref(L, LUA_REGISTRYINDEX);
}

static int runtime_gc(lua_State *L) {
  LRuntime *rt = lua_touserdata(L, 1);
  aioL_contexts_drop(L, rt);
  aioL_scopes_free(L, rt);
  aioL_holds_free(L, rt);
  aioL_ties_free(L, rt);
  aioL_jobs_drop(rt);
  aioL_arrivals_free(rt);
  if (rt->vclock) aio_vclock_free(rt->vclock);
  rt->vclock = NULL;
  return 0;
}

/* A collector frees much at once, and glibc gives what is free at the heap's end back to the kernel from 128 KiB on, only to
 * ask for it again, page fault by page fault: a third of the time of a program that spawns many tasks. glibc raises that
 * limit to twice the size of the largest mapped block that was ever freed; here is one. Who sets MALLOC_TRIM_THRESHOLD_ or
 * MALLOC_MMAP_THRESHOLD_ has his way: there is no such raising then. Source: mallopt(3). */
static void keep_heap(void) {
  void *volatile block = malloc(HEAP_BLOCK);
  free(block);
}

static LRuntime *new_runtime(lua_State *L) { /* [-0, +0, m] */
  keep_heap();
  LRuntime *rt = lua_newuserdatauv(L, sizeof *rt, 0);
  *rt = (LRuntime){.def = LUA_NOREF};
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, runtime_gc);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  rt->main = lua_tothread(L, -1);
  lua_pop(L, 1);
  list_init(&rt->selects);
  rt->vclock = aio_vclock_new();
  if (!rt->vclock) luaL_error(L, "not enough memory");
  rt->anchors = weak_table(L, "v");
  rt->threads = weak_table(L, "k");
  rt->objects = weak_table(L, "v");
  lua_newtable(L);
  rt->contexts = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_pushboolean(L, 0);
  rt->spare_ticket = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_pushboolean(L, 0);
  rt->record = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_setfield(L, LUA_REGISTRYINDEX, RUNTIME_KEY);
  return rt;
}

__attribute__((visibility("default"))) int luaopen_aioloop_core(lua_State *L);

int luaopen_aioloop_core(lua_State *L) {
  lua_settop(L, 0);
  luaL_checkversion(L);
  lua_getfield(L, LUA_REGISTRYINDEX, RUNTIME_KEY); /* required a second time: the same world */
  LRuntime *rt = lua_touserdata(L, -1);
  if (!rt) rt = new_runtime(L);
  lua_settop(L, 0);
  lua_newtable(L);
  aioL_open_context(L, rt, 1);
  aioL_open_run(L, rt, 1);
  aioL_open_bh(L, rt, 1);
  aioL_open_timer(L, rt, 1);
  aioL_open_watch(L, rt, 1);
  aioL_open_signal(L, rt, 1);
  aioL_open_pool(L, rt, 1);
  aioL_open_resolve(L, rt, 1);
  aioL_open_spawn(L, rt, 1);
  aioL_open_wake(L, rt, 1);
  aioL_open_task(L, rt, 1);
  aioL_open_scope(L, rt, 1);
  aioL_open_wrap(L, rt, 1);
  aioL_open_sync(L, rt, 1);
  aioL_open_condition(L, rt, 1);
  aioL_open_semaphore(L, rt, 1);
  aioL_open_queue(L, rt, 1);
  aioL_open_group(L, rt, 1);
  aioL_open_wait(L, rt, 1);
  aioL_open_source(L, rt, 1);
  aioL_open_files(L, rt, 1);
  aioL_open_streams(L, rt, 1);
  aioL_open_udps(L, rt, 1);
  aioL_open_sockets(L, rt, 1);
  lua_settop(L, 1);
  return 1;
}
