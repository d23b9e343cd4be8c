/* SPDX-License-Identifier: MIT
 * Parcels for the specs: there and back through a second lua_State, with memory that runs out, or cut short.
 *
 * Way      roundtrip: pack -> unpack in a new state -> call what `source` returns, if there is one -> pack -> unpack here
 * Keep     every block of a parcel is counted, so that a spec sees what leaks. */
#include <lualib.h>
#include <stdbool.h>
#include <stdlib.h>

static long blocks, allowed = -1; /* allowed: allocations until they fail; negative: none does */
static bool once;                 /* only one of a parcel fails, and none of a lua_State, which would try again */

static bool refused(void) {
  if (allowed > 0) return allowed--, false;
  if (allowed < 0) return false;
  if (once) allowed = -1;
  return true;
}

static void *counted_realloc(void *p, size_t size) {
  void *q = refused() ? NULL : realloc(p, size);
  if (!p && q) blocks++;
  return q;
}

static void *counted_malloc(size_t size) { return counted_realloc(NULL, size); }

static void counted_free(void *p) {
  if (p) blocks--;
  free(p);
}

#include "../../csrc/bind/lblock.c"
/* No state here knows of buffers: the specs of aio.work have them. */
LRuntime *aioL_find_runtime(lua_State *L) { return (void)L, NULL; }
LBuffer *aioL_push_buffer(lua_State *L, LRuntime *rt, size_t cap) { return (void)L, (void)rt, (void)cap, NULL; }
void aioL_buffer_count(lua_State *L, LRuntime *rt, LBuffer *b) { (void)L, (void)rt, (void)b; }
#include "../../csrc/bind/lcode.c" /* not counted: code stays as long as a state knows its function */

#define malloc counted_malloc
#define realloc counted_realloc
#define free counted_free
#include "../../csrc/bind/lpack.c"
#include "../../csrc/bind/lparcel.c"
#include "../../csrc/bind/lunpack.c"
#undef malloc
#undef realloc
#undef free

int luaopen_parcel(lua_State *L);

static void *failing_alloc(void *ud, void *p, size_t old, size_t size) { /* of a lua_State: shrinking never fails */
  (void)ud;
  if (!size) return free(p), NULL;
  if (!once && (!p || size > old) && refused()) return NULL;
  return realloc(p, size);
}

typedef struct Trip {
  LParcel *in, *out;
  const char *source;
} Trip;

static int visit(lua_State *L) { /* in the other state: Trip */
  Trip *t = lua_touserdata(L, 1);
  luaL_openlibs(L);
  if (t->source && luaL_dostring(L, t->source)) lua_error(L); /* stack: Trip, function */
  int n = aioL_parcel_unpack(L, t->in, 0);
  if (t->source) lua_call(L, n, LUA_MULTRET);
  t->out = aioL_parcel_pack(L, 2);
  return 0;
}

static int trip(lua_State *L, const char *source, int first) {
  Trip t = {.source = source, .in = aioL_parcel_pack(L, first)};
  lua_State *other = luaL_newstate();
  lua_pushcfunction(other, visit);
  lua_pushlightuserdata(other, &t);
  if (lua_pcall(other, 1, 0, 0) != LUA_OK) lua_pushstring(L, lua_tostring(other, -1));
  lua_close(other);
  aioL_parcel_free(t.in);
  if (!t.out) return lua_error(L);
  int n = aioL_parcel_unpack(L, t.out, 0);
  aioL_parcel_free(t.out);
  return n;
}

static int parcel_roundtrip(lua_State *L) { return trip(L, NULL, 1); } /* ... -> ... */

/* source, ... -> what the function that source returns there gives for them */
static int parcel_there(lua_State *L) { return trip(L, luaL_checkstring(L, 1), 2); }

/* what, ... -> whether they could be packed, and they or the message */
static int parcel_safe(lua_State *L) {
  bool ok;
  LParcel *none = NULL, *p = aioL_parcel_pack_safe(L, 2, luaL_checkstring(L, 1), &none, &ok);
  if (!p) return luaL_error(L, "not enough memory");
  if (lua_gettop(L) != 1) return luaL_error(L, "the stack is not as it was");
  lua_pushboolean(L, ok);
  int n = aioL_parcel_unpack(L, p, 0);
  aioL_parcel_free(p);
  return n + 1;
}

static int protected_unpack(lua_State *L) { return aioL_parcel_unpack(L, lua_touserdata(L, 1), 0); }

/* ... -> at how many of the lengths at which the parcel may end too early unpacking raises, how many there are */
static int parcel_cut(lua_State *L) {
  LParcel *p = aioL_parcel_pack(L, 1);
  size_t size = p->size, step = size / 2000 + 1, tried = 0, raised = 0;
  for (size_t i = 0; i < size; i += step, tried++) {
    LParcel *part = malloc(sizeof *part + i); /* of that very size: a sanitizer sees who reads on */
    *part = *p;
    part->size = i;
    memcpy(part->data, p->data, i);
    lua_pushcfunction(L, protected_unpack);
    lua_pushlightuserdata(L, part);
    raised += lua_pcall(L, 1, 0, 0) != LUA_OK;
    free(part);
    lua_settop(L, 0);
  }
  aioL_parcel_free(p);
  lua_pushinteger(L, (lua_Integer)raised);
  lua_pushinteger(L, (lua_Integer)tried);
  return 2;
}

static int prepare(lua_State *L) {
  luaL_openlibs(L);
  return luaL_dostring(L, lua_touserdata(L, 1)) ? lua_error(L) : lua_gettop(L) - 1;
}

static int protected_pack(lua_State *L) { /* packs all but the first */
  LParcel **out = lua_touserdata(L, 1);
  LParcel *p = aioL_parcel_pack(L, 2);
  *out = p;
  return 0;
}

static LParcel *pack_in(lua_State *from, long at, bool *safe_ok) { /* stack: values; NULL: it raised */
  LParcel *p = NULL;
  int n = lua_gettop(from);
  luaL_checkstack(from, 2 * n + 40, NULL);
  for (int i = 1; i <= n; i++) lua_pushvalue(from, i);
  allowed = at;
  if (safe_ok) {
    p = aioL_parcel_pack_safe(from, n + 1, "result", &(LParcel *){NULL}, safe_ok);
  } else {
    lua_pushcfunction(from, protected_pack);
    lua_insert(from, n + 1);
    lua_pushlightuserdata(from, &p);
    lua_insert(from, n + 2);
    lua_pcall(from, n + 1, 0, 0);
  }
  allowed = -1;
  lua_settop(from, n);
  return p;
}

static bool unpack_in(LParcel *p, long at) { /* a new state each time, whose memory is as small as it gets */
  lua_State *to = lua_newstate(failing_alloc, NULL);
  lua_pushcfunction(to, protected_unpack);
  lua_pushlightuserdata(to, p);
  allowed = at;
  bool ok = lua_pcall(to, 1, LUA_MULTRET, 0) == LUA_OK;
  allowed = -1;
  lua_close(to);
  return ok;
}

/* source, once -> at how many allocations memory had to end (once: fail) until what source returns was packed, packed by
 * aioL_parcel_pack_safe, and unpacked; and blocks that have leaked */
static int parcel_poor(lua_State *L) {
  long before = blocks, at[3] = {0, 0, 0};
  bool ok = false;
  LParcel *p = NULL;
  once = lua_toboolean(L, 2);
  lua_State *from = lua_newstate(failing_alloc, NULL);
  lua_pushcfunction(from, prepare);
  lua_pushlightuserdata(from, (void *)(uintptr_t)luaL_checkstring(L, 1));
  if (lua_pcall(from, 1, LUA_MULTRET, 0) != LUA_OK) return luaL_error(L, "%s", lua_tostring(from, -1));
  lua_gc(from, LUA_GCSTOP);
  for (; !(p = pack_in(from, at[0], NULL)); at[0]++) lua_gc(from, LUA_GCCOLLECT);
  aioL_parcel_free(p);
  for (; (p = pack_in(from, at[1], &ok)), !ok; at[1]++) aioL_parcel_free(p);
  while (!unpack_in(p, at[2])) at[2]++;
  aioL_parcel_free(p);
  lua_close(from);
  for (int i = 0; i < 3; i++) lua_pushinteger(L, at[i]);
  lua_pushinteger(L, blocks - before);
  return 4;
}

static int parcel_blocks(lua_State *L) { return lua_pushinteger(L, blocks), 1; } /* parcels that have not been freed */

static int parcel_light(lua_State *L) { return lua_pushlightuserdata(L, &blocks), 1; }

__attribute__((visibility("default"))) int luaopen_parcel(lua_State *L) {
  static const luaL_Reg functions[] = {{"roundtrip", parcel_roundtrip}, {"there", parcel_there}, {"safe", parcel_safe},
    {"cut", parcel_cut}, {"poor", parcel_poor}, {"blocks", parcel_blocks}, {"light", parcel_light}, {NULL, NULL}};
  luaL_newlib(L, functions);
  return 1;
}
