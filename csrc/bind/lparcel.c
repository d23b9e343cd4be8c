/* SPDX-License-Identifier: MIT
 * Parcels: values copied from one lua_State to another that shares nothing with it.
 *
 * Way      pack: every value -> put_value; a table, function or long string met first gets the next number -> one
 *          number after the other, what is in it. unpack: in that order too, so that each is made where it is first
 *          named and filled when its turn comes. Nothing recurs, however deep the nesting.
 * Threads  a parcel belongs to no state: it may be unpacked and freed in any thread, by one at a time.
 * Owner    who packed it, until aioL_parcel_free. An error in packing frees it, one in unpacking does not.
 * Keep     everything is read raw: no metamethod runs. The list `order` keeps what has a number alive, and with it the
 *          upvalues, which are known by address. Sizes are counted: a border may be huge in a small table. */
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "lbind.h"

enum {
  SHORT = 40,      /* longer strings have a number, and are copied once */
  SMALL = 256,     /* bytes of a parcel that is made without much ado */
  PATH_STEPS = 16, /* the last ones, which a message names */
  SLOTS = 32       /* of stack, above the values */
};

typedef enum LTag {
  T_END, /* of the contents of a table or function */
  T_NIL, T_FALSE, T_TRUE,
  T_INTEGER,  /* lua_Integer */
  T_FLOAT,    /* lua_Number */
  T_STRING,   /* size_t, bytes */
  T_TABLE,    /* uint32_t[2]: array, hash; contents: key, value ... */
  T_FUNCTION, /* size_t, bytecode; contents: upvalues */
  T_BUFFER,   /* LBlock *, size_t: moved */
  T_CODE,     /* the parcel's `code`: a function that knows nothing but the globals */
  T_REF,      /* uint32_t: what has this number */
  T_GLOBALS,  /* as an upvalue: the globals table of either state */
  T_JOIN      /* as an upvalue: lua_Integer, place of the upvalue that is the same variable */
} LTag;

struct LParcel {
  size_t room;      /* in data */
  LCode *code;      /* of the first of them; NULL: there is none */
  LBlock *blocks;   /* the memory of buffers, counted, linked by `next` */
  size_t size;
  uint32_t objects; /* those with a number, from 1 */
  int values;
  bool simple;      /* unpacking it makes no object: it cannot fail */
  unsigned char data[];
};

/* ---- pack ---- */

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
  if (s && strlen(s) == lua_rawlen(L, idx) && strlen(s) <= SHORT)
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
  if (len > SHORT && put_ref(L, k)) return;
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

/* What it does depends on its arguments and the globals alone. */
static bool is_plain(lua_State *L, const LPacking *k) { /* [-0, +0, -] the function on top */
  if (!lua_getupvalue(L, -1, 1)) return true;
  bool globals = is_globals(L, k);
  lua_pop(L, 1);
  if (!globals || !lua_getupvalue(L, -1, 2)) return globals;
  return lua_pop(L, 1), false;
}

static void put_function(lua_State *L, LPacking *k) {
  size_t size = 0;
  if (lua_iscfunction(L, -1)) refuse(L, k, "a C function");
  if (!k->p->code && is_plain(L, k)) {
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
  struct { LBlock *block; size_t cap, len; } v;
  if (!b) {
    refuse(L, k, "a userdata");
    return;
  }
  if (b->block && b->block->busy) refuse(L, k, "a buffer that is being read into or written from");
  if (put_ref(L, k)) return;
  v.block = b->block;
  v.cap = b->cap;
  v.len = b->len;
  put(L, k, T_BUFFER, &v, sizeof v);
  if (!b->block) return;
  atomic_fetch_add_explicit(&b->block->refs, 1, memory_order_relaxed);
  b->block->next = k->p->blocks;
  k->p->blocks = b->block;
}

static void move_buffers(lua_State *L, const LPacking *k) { /* [-0, +0, -] */
  for (uint32_t i = 1; k->p->blocks && i <= k->p->objects; i++) {
    LBuffer *b = lua_rawgeti(L, k->order, i) == LUA_TUSERDATA ? lua_touserdata(L, -1) : NULL;
    if (b && b->block) {
      if (b->block->account) *b->block->account -= b->block->cap;
      b->block->account = NULL; /* it is nobody's until it has arrived */
      aioL_block_unref(b->block);
    }
    if (b) b->block = NULL, b->len = 0;
    lua_pop(L, 1);
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
  luaL_checkstack(L, SLOTS, "too many values to copy");
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

static void let_go(LParcel *p) {
  aioL_code_unref(p->code);
  for (LBlock *b = p->blocks, *next; b; b = next) next = b->next, aioL_block_unref(b);
}

/* ---- the shortest way, for what most jobs take and return: a few values of no size ---- */

typedef struct LSmall {
  unsigned char data[SMALL];
  size_t size;
  LCode *code;
  bool strings;
} LSmall;

static void small_put(LSmall *s, LTag tag, const void *data, size_t size) {
  s->data[s->size++] = (unsigned char)tag;
  memcpy(s->data + s->size, data, size);
  s->size += size;
}

/* [-0, +0, -] false: it is too large for this, or the values are. */
static bool small_value(lua_State *L, int idx, LSmall *s) {
  size_t len;
  if (s->size + SHORT + 16 > sizeof s->data) return false;
  switch (lua_type(L, idx)) {
    case LUA_TNIL: small_put(s, T_NIL, "", 0); return true;
    case LUA_TBOOLEAN: small_put(s, lua_toboolean(L, idx) ? T_TRUE : T_FALSE, "", 0); return true;
    case LUA_TNUMBER:
      if (lua_isinteger(L, idx))
        small_put(s, T_INTEGER, &(lua_Integer){lua_tointeger(L, idx)}, sizeof(lua_Integer));
      else
        small_put(s, T_FLOAT, &(lua_Number){lua_tonumber(L, idx)}, sizeof(lua_Number));
      return true;
    case LUA_TSTRING: {
      const char *bytes = lua_tolstring(L, idx, &len);
      if (len > SHORT) return false;
      small_put(s, T_STRING, &len, sizeof len);
      memcpy(s->data + s->size, bytes, len);
      s->size += len;
      return s->strings = true;
    }
    case LUA_TFUNCTION:
      if (s->code || !(s->code = aioL_known_code(L, idx))) return false;
      small_put(s, T_CODE, "", 0);
      return true;
    default: return false;
  }
}

/* [-0, +0, -] NULL: it cannot be done so. `reuse`: a parcel that is not needed any more, or NULL. */
static LParcel *small_pack(lua_State *L, int first, LParcel *reuse) {
  LSmall s = {.size = 0};
  int top = lua_gettop(L);
  bool fits = true;
  for (int i = first; i <= top && fits; i++) fits = small_value(L, i, &s);
  LParcel *p = !fits ? NULL : reuse && reuse->room >= s.size ? reuse : malloc(sizeof *p + SMALL);
  if (!p) return aioL_code_unref(s.code), NULL;
  if (p == reuse) let_go(p);
  *p = (LParcel){.room = p == reuse ? p->room : SMALL, .code = s.code, .size = s.size, .values = top - first + 1,
                 .simple = !s.code && !s.strings};
  memcpy(p->data, s.data, s.size);
  return p;
}

static LParcel *try_pack(lua_State *L, int first, const char *what) { /* [-n, +0|1, -] NULL: the error is on top */
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

LParcel *aioL_parcel_pack(lua_State *L, int first) {
  luaL_checkstack(L, SLOTS, "too many values to copy");
  LParcel *p = small_pack(L, first, NULL);
  if (p) return lua_settop(L, first - 1), p;
  p = try_pack(L, first, "argument");
  if (p) return p;
  luaL_where(L, 1);
  lua_insert(L, -2);
  lua_concat(L, 2);
  return lua_error(L), NULL;
}

LParcel *aioL_parcel_pack_safe(lua_State *L, int first, const char *what, LParcel **reuse, bool *ok) {
  bool stack = lua_checkstack(L, SLOTS);
  LParcel *p = stack ? small_pack(L, first, *reuse) : NULL;
  if (p && p == *reuse) *reuse = NULL;
  if (stack && !p) p = try_pack(L, first, what);
  *ok = p != NULL;
  if (stack && !p) p = try_pack(L, first, "error"); /* the message */
  lua_settop(L, first - 1);
  return p;
}

bool aioL_parcel_is_simple(const LParcel *p) { return p->simple; }

void aioL_parcel_free(LParcel *p) {
  if (!p) return;
  let_go(p);
  free(p);
}

/* ---- unpack ---- */

typedef struct LUnpacking {
  const unsigned char *at, *end;
  LCode *code;
  uint32_t made;
  int objects; /* stack: number -> object */
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

static void get_buffer(lua_State *L, LUnpacking *u) { /* [-0, +1, e] */
  struct { LBlock *block; size_t cap, len; } v;
  get(L, u, &v, sizeof v);
  LBuffer *b = lua_newuserdatauv(L, sizeof *b, 0);
  *b = (LBuffer){.cap = v.cap, .len = v.len};
  if (luaL_getmetatable(L, "aioloop.buffer") == LUA_TNIL) { /* a worker's state that knows nothing of it yet */
    lua_pop(L, 1);
    lua_getglobal(L, "require");
    lua_pushliteral(L, "aioloop.file");
    lua_call(L, 1, 0);
    luaL_getmetatable(L, "aioloop.buffer");
  }
  if (v.block) atomic_fetch_add_explicit(&v.block->refs, 1, memory_order_relaxed);
  b->block = v.block;
  lua_setmetatable(L, -2);
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
    case T_CODE: aioL_push_code(L, u->code); return;
    case T_STRING:
      get(L, u, &v.size, sizeof v.size);
      lua_pushlstring(L, take(L, u, v.size), v.size);
      if (v.size <= SHORT) return;
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

int aioL_parcel_unpack(lua_State *L, LParcel *p) {
  LUnpacking u = {.at = p->data, .end = p->data + p->size, .code = p->code,
                  .objects = lua_gettop(L) + 1};
  luaL_checkstack(L, p->values + SLOTS, "too many values to copy");
  if (p->objects)
    lua_createtable(L, (int)p->objects, 0);
  else
    lua_pushnil(L);
  for (int i = 0; i < p->values; i++) get_value(L, &u);
  for (uint32_t i = 1; i <= p->objects; i++) {
    lua_rawgeti(L, u.objects, i);
    get_contents(L, &u);
    lua_pop(L, 1);
  }
  lua_remove(L, u.objects);
  return p->values;
}
