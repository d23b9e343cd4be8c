/* SPDX-License-Identifier: MIT
 * Parcels: values copied from one lua_State to another that shares nothing with it.
 *
 * Way      aioL_parcel_pack -> small_pack: a few values of no size, without much ado; else lpack.c -> aioL_parcel_unpack
 *          (lunpack.c), in the other state -> aioL_parcel_free
 * Threads  a parcel belongs to no state: it may be unpacked and freed in any thread, by one at a time.
 * Owner    who packed it, until aioL_parcel_free. An error in packing frees it, one in unpacking does not. */
#include <stdlib.h>
#include <string.h>

#include "lparcel.h"

enum { SMALL = 256 }; /* bytes of a parcel that is made without much ado */

/* ---- the shortest way, for what most jobs take and return ---- */

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
  if (s->size + L_SHORT + 16 > sizeof s->data) return false;
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
      if (len > L_SHORT) return false;
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

static void let_go(LParcel *p) {
  aioL_code_unref(p->code);
  for (LBlock *b = p->blocks, *next; b; b = next) next = b->next, aioL_block_unref(b);
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

LParcel *aioL_parcel_pack(lua_State *L, int first) {
  luaL_checkstack(L, L_SLOTS, "too many values to copy");
  LParcel *p = small_pack(L, first, NULL);
  if (p) return lua_settop(L, first - 1), p;
  p = aioL_parcel_try_pack(L, first, "argument");
  if (p) return p;
  luaL_where(L, 1);
  lua_insert(L, -2);
  lua_concat(L, 2);
  return lua_error(L), NULL;
}

LParcel *aioL_parcel_pack_safe(lua_State *L, int first, const char *what, LParcel **reuse, bool *ok) {
  bool stack = lua_checkstack(L, L_SLOTS);
  LParcel *p = stack ? small_pack(L, first, *reuse) : NULL;
  if (p && p == *reuse) *reuse = NULL;
  if (stack && !p) p = aioL_parcel_try_pack(L, first, what);
  *ok = p != NULL;
  if (stack && !p) p = aioL_parcel_try_pack(L, first, "error"); /* the message */
  lua_settop(L, first - 1);
  return p;
}

bool aioL_parcel_is_simple(const LParcel *p) { return p->simple; }

void aioL_parcel_free(LParcel *p) {
  if (!p) return;
  let_go(p);
  free(p);
}
