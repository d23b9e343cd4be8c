/* SPDX-License-Identifier: MIT
 * Packing: any values that can be copied, however they hang together.
 *
 * Way      every value -> put_value; a table, function or long string met first gets the next number -> one number after
 *          the other, what is in it. Nothing recurs, however deep the nesting.
 * Keep     everything is read raw: no metamethod runs. The list `order` keeps what has a number alive, and with it the
 *          upvalues, which are known by address. Sizes are counted: a border may be huge in a small table. */
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "lparcel.h"

enum { PATH_STEPS = 16 }; /* the last ones, which a message names */

typedef struct LPacking {
  LParcel *p;
  size_t room;      /* in data */
  uint32_t at;      /* whose contents are being put; 0: the values themselves are */
  int seen;         /* stack: object -> number, address of an upvalue -> its place, number << 8 | index */
  int order;        /* stack: number -> object */
  int parents;      /* stack: number -> in what it was met first, or 0 */
  const char *what; /* "argument", for messages */
  const void *globals, *plain; /* plain: the function whose code the parcel has */
} LPacking;

static int no_memory(lua_State *L) { return luaL_error(L, "not enough memory"); }

static bool make_room(LPacking *k, size_t more) {
  size_t used = k->p ? k->p->size : 0;
  if (k->p && more <= k->room - used) return true;
  if (more > SIZE_MAX / 4 || used > SIZE_MAX / 4) return false;
  size_t room = used + (more > used ? more : used) + 128;
  LParcel *p = realloc(k->p, sizeof *p + room);
  if (!p) return false;
  if (!k->p) *p = (LParcel){.size = 0};
  k->p = p;
  k->room = room;
  return true;
}

static int write_bytes(lua_State *L, const void *data, size_t size, void *packing) { /* a lua_Writer: 0, or it failed */
  LPacking *k = packing;
  UNUSED(L);
  if (!make_room(k, size)) return 1;
  memcpy(k->p->data + k->p->size, data, size);
  k->p->size += size;
  return 0;
}

static void put(lua_State *L, LPacking *k, LTag tag, const void *data, size_t size) { /* [-0, +0, e] */
  unsigned char byte = (unsigned char)tag;
  if (write_bytes(L, &byte, 1, k) || write_bytes(L, data, size, k)) no_memory(L);
}

static void put_tag(lua_State *L, LPacking *k, LTag tag) { put(L, k, tag, "", 0); }

/* ---- the path of what cannot be copied ---- */

static bool is_name(const char *s) {
  if (!*s || strchr("0123456789", *s)) return false;
  return !s[strspn(s, "_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")];
}

static void push_key(lua_State *L, int idx) { /* [-0, +1, m] */
  int type = lua_type(L, idx);
  const char *s = type == LUA_TSTRING ? lua_tostring(L, idx) : NULL;
  if (s && strlen(s) == lua_rawlen(L, idx) && strlen(s) <= L_SHORT)
    lua_pushfstring(L, is_name(s) ? ".%s" : "[\"%s\"]", s);
  else if (type == LUA_TNUMBER && lua_isinteger(L, idx))
    lua_pushfstring(L, "[%I]", (LUAI_UACINT)lua_tointeger(L, idx));
  else if (type == LUA_TNUMBER)
    lua_pushfstring(L, "[%f]", (LUAI_UACNUMBER)lua_tonumber(L, idx));
  else if (type == LUA_TBOOLEAN)
    lua_pushstring(L, lua_toboolean(L, idx) ? "[true]" : "[false]");
  else
    lua_pushfstring(L, "[a %s]", lua_typename(L, type));
}

static void push_field(lua_State *L, int table, int child) { /* [-0, +n, m] the text is on top */
  for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
    if (lua_rawequal(L, -2, child)) return (void)lua_pushliteral(L, " (a key)");
    if (lua_rawequal(L, -1, child)) return push_key(L, lua_gettop(L) - 1);
  }
  lua_pushliteral(L, "[?]"); /* a finalizer has taken it out meanwhile */
}

static void push_upvalue(lua_State *L, int fn, int child) { /* [-0, +n, m] the text is on top */
  const char *name;
  for (int i = 1; (name = lua_getupvalue(L, fn, i)); lua_pop(L, 1))
    if (lua_rawequal(L, -1, child)) return (void)lua_pushfstring(L, " (upvalue %s)", name);
  lua_pushliteral(L, " (an upvalue)");
}

/* [-0, +0, e] The value on top, found in what is at k->at, and that in its parent, up to one of the values. */
static void refuse(lua_State *L, LPacking *k, const char *kind) {
  int child = lua_gettop(L), path = child + 1, parent = child + 2, steps = 0, value = 1;
  lua_pushliteral(L, "");
  for (uint32_t at = k->at; at; steps++) {
    lua_rawgeti(L, k->order, at);
    if (steps < PATH_STEPS) {
      (lua_isfunction(L, parent) ? push_upvalue : push_field)(L, parent, child);
      lua_pushvalue(L, path);
      lua_concat(L, 2);
      lua_replace(L, path);
      lua_settop(L, parent);
    }
    lua_replace(L, child);
    lua_rawgeti(L, k->parents, at);
    at = (uint32_t)lua_tointeger(L, -1);
    lua_settop(L, path);
  }
  while (value < k->p->values && !lua_rawequal(L, value, child)) value++;
  const char *cut = steps > PATH_STEPS ? " ... " : "";
  luaL_error(L, "cannot copy %s: %s %d%s%s", kind, k->what, value, cut, lua_tostring(L, path));
}

/* ---- values ---- */

/* Few parcels need them: made when the first thing comes that can have a number. */
static void make_tables(lua_State *L, LPacking *k) { /* [-0, +0, m] */
  if (lua_istable(L, k->seen)) return;
  for (int i = k->seen; i <= k->parents; i++) {
    lua_newtable(L);
    lua_replace(L, i);
  }
}

/* [-0, +0, e] The value on top has a number: that is put. Otherwise it gets one. */
static bool put_ref(lua_State *L, LPacking *k) {
  make_tables(L, k);
  lua_pushvalue(L, -1);
  lua_rawget(L, k->seen);
  uint32_t number = (uint32_t)lua_tointeger(L, -1);
  lua_pop(L, 1);
  if (number) return put(L, k, T_REF, &number, sizeof number), true;
  if (k->p->objects == INT_MAX) no_memory(L);
  number = ++k->p->objects;
  lua_pushinteger(L, k->at);
  lua_rawseti(L, k->parents, number);
  lua_pushvalue(L, -1);
  lua_rawseti(L, k->order, number);
  lua_pushvalue(L, -1);
  lua_pushinteger(L, number);
  lua_rawset(L, k->seen);
  return false;
}

static void put_string(lua_State *L, LPacking *k) {
  size_t len;
  const char *s = lua_tolstring(L, -1, &len);
  if (len > L_SHORT && put_ref(L, k)) return;
  put(L, k, T_STRING, &len, sizeof len);
  if (write_bytes(L, s, len, k)) no_memory(L);
}

static bool is_globals(lua_State *L, const LPacking *k) { return lua_topointer(L, -1) == k->globals; }

static void put_table(lua_State *L, LPacking *k) {
  uint32_t sizes[2] = {0, 0};
  if (is_globals(L, k)) refuse(L, k, "the globals table");
  if (lua_getmetatable(L, -1)) lua_pop(L, 1), refuse(L, k, "a table with a metatable");
  if (put_ref(L, k)) return;
  for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1))
    sizes[!lua_isinteger(L, -2) || lua_tointeger(L, -2) != (lua_Integer)sizes[0] + 1]++;
  put(L, k, T_TABLE, sizes, sizeof sizes);
}

static void put_function(lua_State *L, LPacking *k) {
  size_t size = 0;
  if (lua_iscfunction(L, -1)) refuse(L, k, "a C function");
  if (!k->p->code && aioL_is_plain(L, -1)) {
    k->p->code = aioL_code_of(L);
    if (!k->p->code) no_memory(L);
    k->plain = lua_topointer(L, -1);
  }
  if (k->p->code && lua_topointer(L, -1) == k->plain) {
    put_tag(L, k, T_CODE);
    return;
  }
  if (put_ref(L, k)) return;
  put(L, k, T_FUNCTION, &size, sizeof size);
  size_t at = k->p->size;
  if (lua_dump(L, write_bytes, k, 0) != 0) no_memory(L);
  size = k->p->size - at;
  memcpy(k->p->data + at - sizeof size, &size, sizeof size);
}

/* Its memory goes over when all could be packed (move_buffers). */
static void put_buffer(lua_State *L, LPacking *k) {
  LBuffer *b = luaL_testudata(L, -1, "aioloop.buffer");
  LParcel *p = k->p;
  if (!b) {
    refuse(L, k, "a userdata");
    return;
  }
  if (b->block && b->block->busy) refuse(L, k, "a buffer that is being read into or written from");
  if (put_ref(L, k)) return;
  LMoved *more = realloc(p->moved, (p->nmoved + 1) * sizeof *more);
  if (!more) no_memory(L);
  p->moved = more;
  put(L, k, T_BUFFER, &p->nmoved, sizeof p->nmoved);
  k->p->moved[k->p->nmoved++] = (LMoved){b->block, b->cap, b->len};
  if (b->block) atomic_fetch_add_explicit(&b->block->refs, 1, memory_order_relaxed);
}

static LBuffer *buffer_at(lua_State *L, const LPacking *k, uint32_t number) { /* [-0, +0, -] NULL: another object has it */
  LBuffer *b = lua_rawgeti(L, k->order, number) == LUA_TUSERDATA ? lua_touserdata(L, -1) : NULL;
  lua_pop(L, 1);
  return b;
}

/* [-0, +0, e] Numbers and places go up together. */
static void move_buffers(lua_State *L, const LPacking *k) {
  const LMoved *m = k->p->moved;
  for (uint32_t i = 1; i <= k->p->objects && k->p->nmoved; i++) {
    const LBuffer *b = buffer_at(L, k, i);
    if (!b) continue;
    if (b->block != m->block || b->len != m->len || (b->block && b->block->busy))
      luaL_error(L, "cannot copy a buffer that a finalizer uses meanwhile");
    m++;
  }
  for (uint32_t i = 1; i <= k->p->objects && k->p->nmoved; i++) {
    LBuffer *b = buffer_at(L, k, i);
    if (!b || !b->block) continue;
    if (b->block->account) *b->block->account -= b->block->cap;
    b->block->account = NULL; /* it is nobody's until it has arrived */
    aioL_block_unref(b->block);
    b->block = NULL;
    b->len = 0;
  }
}

static void put_number(lua_State *L, LPacking *k) {
  if (lua_isinteger(L, -1))
    put(L, k, T_INTEGER, &(lua_Integer){lua_tointeger(L, -1)}, sizeof(lua_Integer));
  else
    put(L, k, T_FLOAT, &(lua_Number){lua_tonumber(L, -1)}, sizeof(lua_Number));
}

static void put_value(lua_State *L, LPacking *k) { /* [-1, +0, e] */
  switch (lua_type(L, -1)) {
    case LUA_TNIL: put_tag(L, k, T_NIL); break;
    case LUA_TBOOLEAN: put_tag(L, k, lua_toboolean(L, -1) ? T_TRUE : T_FALSE); break;
    case LUA_TNUMBER: put_number(L, k); break;
    case LUA_TSTRING: put_string(L, k); break;
    case LUA_TTABLE: put_table(L, k); break;
    case LUA_TFUNCTION: put_function(L, k); break;
    case LUA_TLIGHTUSERDATA: refuse(L, k, "a light userdata"); break;
    case LUA_TTHREAD: refuse(L, k, "a thread"); break;
    default: put_buffer(L, k); break;
  }
  lua_pop(L, 1);
}

static void put_fields(lua_State *L, LPacking *k, int table) { /* [-0, +0, e] */
  for (lua_pushnil(L); lua_next(L, table);) {
    lua_pushvalue(L, -2); /* stack: key, value, key */
    put_value(L, k);
    put_value(L, k);
  }
}

/* A variable that several functions share goes once: those that come later are joined to the first. */
static void put_upvalues(lua_State *L, LPacking *k, int fn) { /* [-0, +0, e] */
  for (int i = 1; lua_getupvalue(L, fn, i); i++) {
    const void *id = lua_upvalueid(L, fn, i);
    lua_Integer place = lua_rawgetp(L, k->seen, id) == LUA_TNIL ? 0 : lua_tointeger(L, -1);
    lua_pushinteger(L, place ? place : (lua_Integer)k->at << 8 | i); /* there are at most 255 */
    lua_rawsetp(L, k->seen, id);
    lua_pop(L, 1);
    if (place)
      put(L, k, T_JOIN, &place, sizeof place);
    else if (is_globals(L, k))
      put_tag(L, k, T_GLOBALS);
    else
      lua_pushvalue(L, -1), put_value(L, k);
    lua_pop(L, 1);
  }
}

static void put_contents(lua_State *L, LPacking *k) { /* [-0, +0, e] of the object on top */
  if (lua_isstring(L, -1) || lua_isuserdata(L, -1)) return;
  (lua_istable(L, -1) ? put_fields : put_upvalues)(L, k, lua_gettop(L));
  put_tag(L, k, T_END);
}

static int pack_values(lua_State *L) { /* values, LPacking */
  LPacking *k = lua_touserdata(L, -1);
  int values = lua_gettop(L) - 1;
  lua_settop(L, values);
  luaL_checkstack(L, L_SLOTS, "too many values to copy");
  if (!make_room(k, 1)) no_memory(L);
  k->p->values = values;
  lua_pushglobaltable(L);
  k->globals = lua_topointer(L, -1);
  lua_pop(L, 1);
  for (int i = 0; i < 3; i++) lua_pushnil(L);
  k->seen = values + 1, k->order = values + 2, k->parents = values + 3;
  for (int i = 1; i <= values; i++) {
    lua_pushvalue(L, i);
    put_value(L, k);
  }
  while (k->at < k->p->objects) {
    lua_rawgeti(L, k->order, ++k->at);
    put_contents(L, k);
    lua_pop(L, 1);
  }
  move_buffers(L, k);
  return 0;
}

LParcel *aioL_parcel_try_pack(lua_State *L, int first, const char *what) {
  LPacking k = {.what = what};
  int n = lua_gettop(L) - first + 1;
  lua_pushcfunction(L, pack_values);
  lua_insert(L, first);
  lua_pushlightuserdata(L, &k);
  if (lua_pcall(L, n + 1, 0, 0) != LUA_OK) return aioL_parcel_free(k.p), NULL;
  LParcel *fit = realloc(k.p, sizeof *fit + k.p->size);
  if (!fit) return k.p;
  fit->room = fit->size;
  return fit;
}
