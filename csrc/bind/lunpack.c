/* SPDX-License-Identifier: MIT
 * Unpacking: what lpack.c has put, in the order in which it was put, so that each object is made where it is first named and
 * filled when its turn comes. */
#include <limits.h>
#include <string.h>

#include "lparcel.h"

typedef struct LUnpacking {
  const unsigned char *at, *end;
  LParcel *p;
  uint32_t made;
  int objects; /* stack: number -> object */
  int code;    /* stack: the function whose code the parcel has; nil: not yet */
} LUnpacking;

static const char *take(lua_State *L, LUnpacking *u, size_t size) {
  const unsigned char *at = u->at;
  if ((size_t)(u->end - at) < size) luaL_error(L, "truncated parcel");
  u->at += size;
  return (const char *)at;
}

static void get(lua_State *L, LUnpacking *u, void *to, size_t size) { memcpy(to, take(L, u, size), size); }

static bool next_is(lua_State *L, LUnpacking *u, LTag tag) { /* [-0, +0, e] true: and it is taken */
  if (*take(L, u, 1) == (char)tag) return true;
  return u->at--, false;
}

static LRuntime *buffers_runtime(lua_State *L) { /* [-0, +0, e] a worker's state may not know buffers yet */
  LRuntime *rt = aioL_find_runtime(L);
  if (rt && rt->meta_ref[L_BUFFER]) return rt;
  lua_getglobal(L, "require");
  lua_pushliteral(L, "aioloop.file");
  lua_call(L, 1, 0);
  rt = aioL_find_runtime(L);
  if (!rt || !rt->meta_ref[L_BUFFER]) luaL_error(L, "no buffer without aioloop.file");
  return rt;
}

static void get_buffer(lua_State *L, LUnpacking *u) { /* [-0, +1, e] */
  uint32_t place;
  get(L, u, &place, sizeof place);
  LMoved *m = u->p->moved + place;
  LRuntime *rt = buffers_runtime(L);
  LBuffer *b = aioL_push_buffer(L, rt, m->cap);
  b->block = m->block;
  b->len = m->len;
  m->block = NULL;
  aioL_buffer_count(L, rt, b);
}

static void get_code(lua_State *L, LUnpacking *u) { /* [-0, +1, e] */
  lua_pushvalue(L, u->code);
  if (!lua_isnil(L, -1)) return;
  lua_pop(L, 1);
  aioL_push_code(L, u->p->code);
  lua_copy(L, -1, u->code);
}

static void get_value(lua_State *L, LUnpacking *u) { /* [-0, +1, e] */
  union { lua_Integer integer; lua_Number number; size_t size; uint32_t ref, sizes[2]; } v;
  LTag tag = (LTag)*take(L, u, 1);
  switch (tag) {
    case T_NIL: lua_pushnil(L); return;
    case T_FALSE: case T_TRUE: lua_pushboolean(L, tag == T_TRUE); return;
    case T_INTEGER: get(L, u, &v.integer, sizeof v.integer); lua_pushinteger(L, v.integer); return;
    case T_FLOAT: get(L, u, &v.number, sizeof v.number); lua_pushnumber(L, v.number); return;
    case T_REF: get(L, u, &v.ref, sizeof v.ref); lua_rawgeti(L, u->objects, v.ref); return;
    case T_GLOBALS: lua_pushglobaltable(L); return;
    case T_CODE: get_code(L, u); return;
    case T_STRING:
      get(L, u, &v.size, sizeof v.size);
      lua_pushlstring(L, take(L, u, v.size), v.size);
      if (v.size <= L_SHORT) return;
      break;
    case T_BUFFER: get_buffer(L, u); break;
    case T_TABLE:
      get(L, u, v.sizes, sizeof v.sizes);
      lua_createtable(L, v.sizes[0] > INT_MAX ? 0 : (int)v.sizes[0], v.sizes[1] > INT_MAX ? 0 : (int)v.sizes[1]);
      break;
    case T_FUNCTION:
      get(L, u, &v.size, sizeof v.size);
      if (luaL_loadbufferx(L, take(L, u, v.size), v.size, "=parcel", "b") != LUA_OK) lua_error(L);
      break;
    default: luaL_error(L, "damaged parcel");
  }
  lua_pushvalue(L, -1);
  lua_rawseti(L, u->objects, ++u->made);
}

static void get_upvalue(lua_State *L, LUnpacking *u, int fn, int i) { /* [-0, +0, e] */
  lua_Integer place;
  if (!next_is(L, u, T_JOIN)) {
    get_value(L, u);
    if (!lua_setupvalue(L, fn, i)) luaL_error(L, "damaged parcel");
    return;
  }
  get(L, u, &place, sizeof place);
  lua_rawgeti(L, u->objects, place >> 8);
  lua_upvaluejoin(L, fn, i, -1, (int)(place & 0xff));
  lua_pop(L, 1);
}

static void get_field(lua_State *L, LUnpacking *u, int table, int i) { /* [-0, +0, e] */
  UNUSED(i);
  get_value(L, u);
  get_value(L, u);
  lua_rawset(L, table);
}

static void get_contents(lua_State *L, LUnpacking *u) { /* [-0, +0, e] of the object on top */
  int at = lua_gettop(L);
  if (lua_isstring(L, at) || lua_isuserdata(L, at)) return;
  for (int i = 1; !next_is(L, u, T_END); i++) (lua_istable(L, at) ? get_field : get_upvalue)(L, u, at, i);
}

/* The first `from` values, which are a T_CODE, are left out. */
static int unpack_plain(lua_State *L, const LParcel *p, int from, int max) {
  LUnpacking u = {.at = p->data + from, .end = p->data + p->size};
  if (!p->plain || p->values > max) return -1;
  for (int i = from; i < p->values; i++) get_value(L, &u);
  return p->values - from;
}

int aioL_parcel_unpack_plain(lua_State *L, const LParcel *p, int max) { return p->code ? -1 : unpack_plain(L, p, 0, max); }
int aioL_parcel_unpack_rest(lua_State *L, const LParcel *p, int max) { return unpack_plain(L, p, 1, max); }

int aioL_parcel_unpack(lua_State *L, LParcel *p, int fn) {
  int base = lua_gettop(L);
  LUnpacking u = {.at = p->data, .end = p->data + p->size, .p = p, .objects = base + 1, .code = base + 2};
  luaL_checkstack(L, p->values + L_SLOTS, "too many values to copy");
  if (p->objects)
    lua_createtable(L, (int)p->objects, 0);
  else
    lua_pushnil(L);
  if (fn)
    lua_pushvalue(L, fn);
  else
    lua_pushnil(L);
  for (int i = 0; i < p->values; i++) get_value(L, &u);
  for (uint32_t i = 1; i <= p->objects; i++) {
    lua_rawgeti(L, u.objects, i);
    get_contents(L, &u);
    lua_pop(L, 1);
  }
  lua_rotate(L, base + 1, -2);
  lua_pop(L, 2);
  return p->values;
}
