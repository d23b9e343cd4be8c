/* SPDX-License-Identifier: MIT
 * The code of functions that know nothing but the globals: dumped once for each, and loaded once in each state that it
 * comes to as a job. Jobs are mostly the same few functions, over and over.
 *
 * Way      pack: aioL_code_of -> by the function, or dump. unpack: aioL_push_job -> by the hash, or aioL_push_code
 * Threads  an LCode may be read and let go of in any; its memory is counted. The rest: who runs the state.
 * Keep     the same code may be loaded under one hash only; what is found by it is compared, byte by byte if need be.
 *          What is kept is asked each time whether it still knows the globals only: a function may assign to its _ENV. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "lbind.h"

struct LCode {
  atomic_uint refs;
  uint64_t hash;
  size_t size;
  char bytes[];
};

enum { CODES_MAX = 256 };          /* loaded in a state; then it begins anew */
static const char dumped_key, loaded_key; /* registry: weak table, function -> LCodeBox; hash -> LCodeBox */

typedef struct LCodeBox { LCode *code; } LCodeBox; /* userdata; user value 1 is the loaded function */

LCode *aioL_code_ref(LCode *code) {
  atomic_fetch_add_explicit(&code->refs, 1, memory_order_relaxed);
  return code;
}

void aioL_code_unref(LCode *code) {
  if (code && atomic_fetch_sub_explicit(&code->refs, 1, memory_order_acq_rel) == 1) free(code);
}

static int box_gc(lua_State *L) {
  LCodeBox *box = lua_touserdata(L, 1);
  aioL_code_unref(box->code);
  box->code = NULL;
  return 0;
}

static void push_table(lua_State *L, const void *key, const char *mode) { /* [-0, +1, m] of the registry, made at first use */
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, key) == LUA_TTABLE) return;
  lua_pop(L, 1);
  lua_newtable(L);
  lua_createtable(L, 0, 1);
  lua_pushstring(L, mode);
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, key);
}

static LCodeBox *push_box(lua_State *L) { /* [-0, +1, m] */
  LCodeBox *box = lua_newuserdatauv(L, sizeof *box, 1);
  box->code = NULL;
  if (luaL_newmetatable(L, "aioloop.code")) {
    lua_pushcfunction(L, box_gc);
    lua_setfield(L, -2, "__gc");
  }
  lua_setmetatable(L, -2);
  return box;
}

static int append_code(lua_State *L, const void *data, size_t size, void *code) { /* a lua_Writer */
  LCode **c = code;
  LCode *bigger = realloc(*c, sizeof **c + (*c)->size + size);
  UNUSED(L);
  if (!bigger) return 1;
  memcpy(bigger->bytes + bigger->size, data, size);
  bigger->size += size;
  *c = bigger;
  return 0;
}

static uint64_t hash_of(const char *s, size_t n) { /* FNV-1a, by eight bytes */
  uint64_t h = 14695981039346656037u, word;
  for (; n >= sizeof word; s += sizeof word, n -= sizeof word) {
    memcpy(&word, s, sizeof word);
    h = (h ^ word) * 1099511628211u;
  }
  for (; n; s++, n--) h = (h ^ (unsigned char)*s) * 1099511628211u;
  return h ^ h >> 29;
}

static LCode *dump(lua_State *L) { /* [-0, +0, -] the function on top; NULL: no memory */
  LCode *code = malloc(sizeof *code);
  if (!code) return NULL;
  *code = (LCode){.size = 0};
  atomic_init(&code->refs, 1);
  if (lua_dump(L, append_code, &code, 0) != 0) return free(code), NULL;
  code->hash = hash_of(code->bytes, code->size);
  return code;
}

bool aioL_is_plain(lua_State *L, int idx) {
  idx = lua_absindex(L, idx);
  if (!lua_getupvalue(L, idx, 1)) return true;
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
  bool globals = lua_rawequal(L, -1, -2);
  lua_pop(L, 2);
  if (!globals || !lua_getupvalue(L, idx, 2)) return globals;
  return lua_pop(L, 1), false;
}

LCode *aioL_known_code(lua_State *L, int idx) {
  const LCodeBox *box = NULL;
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &dumped_key) == LUA_TTABLE) {
    lua_pushvalue(L, idx);
    lua_rawget(L, -2);
    box = lua_touserdata(L, -1);
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  return box && box->code ? aioL_code_ref(box->code) : NULL;
}

LCode *aioL_code_of(lua_State *L) {
  push_table(L, &dumped_key, "k");
  lua_pushvalue(L, -2);
  lua_rawget(L, -2);
  LCodeBox *box = lua_touserdata(L, -1);
  if (!box) {
    lua_pop(L, 1);
    lua_pushvalue(L, -2); /* stack: function, table, function */
    box = push_box(L);
    lua_pushvalue(L, -2);
    box->code = dump(L);
    lua_pop(L, 1);
    lua_rawset(L, -3);
    lua_pushnil(L);
  }
  lua_pop(L, 2);
  return box->code ? aioL_code_ref(box->code) : NULL;
}

static bool same_code(const LCode *a, const LCode *b) {
  return a == b || (a->size == b->size && !memcmp(a->bytes, b->bytes, a->size));
}

void aioL_push_code(lua_State *L, const LCode *code) {
  if (luaL_loadbufferx(L, code->bytes, code->size, "=parcel", "b") != LUA_OK) lua_error(L);
}

static void load_code(lua_State *L, LCode *code) { /* [-0, +1, e] stack: table of loaded ones on top */
  LCodeBox *box = push_box(L);
  aioL_push_code(L, code);
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, -3, 1);
  lua_insert(L, -2); /* stack: table, function, box */
  box->code = aioL_code_ref(code);
  lua_Integer n = lua_rawgeti(L, -3, 0) == LUA_TNUMBER ? lua_tointeger(L, -1) : 0;
  lua_pop(L, 1);
  if (n >= CODES_MAX) {
    lua_pushnil(L);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &loaded_key);
  }
  lua_pushinteger(L, n + 1);
  lua_rawseti(L, -4, 0);
  lua_rawseti(L, -3, (lua_Integer)(code->hash | 1));
}

void aioL_push_job(lua_State *L, LCode *code) {
  push_table(L, &loaded_key, "");
  lua_rawgeti(L, -1, (lua_Integer)(code->hash | 1));
  const LCodeBox *box = lua_touserdata(L, -1);
  if (box && same_code(box->code, code)) {
    lua_getiuservalue(L, -1, 1);
    if (aioL_is_plain(L, -1)) {
      lua_replace(L, -3);
      lua_pop(L, 1);
      return;
    }
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  load_code(L, code);
  lua_remove(L, -2);
}
