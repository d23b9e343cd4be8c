/* SPDX-License-Identifier: MIT
 * Parcels: values copied from one lua_State to another that shares nothing with it.
 *
 * Way      aioL_parcel_pack -> small_pack: a few values of no size, without much ado; else lpack.c -> aioL_parcel_unpack
 *          (lunpack.c), in the other state -> aioL_parcel_free
 * Threads  a parcel belongs to no state: it may be unpacked, once, and freed in any thread, by one at a time.
 * Owner    who packed it, until aioL_parcel_free. An error in packing frees it, one in unpacking does not. */
#include <stdlib.h>
#include <string.h>

#include "lparcel.h"

enum { SMALL = 256 }; /* bytes of a parcel that is made without much ado */

/* ---- the shortest way, for what most jobs take and return ---- */

static void small_put(LParcel *p, LTag tag, const void *data, size_t size) {
  p->data[p->size++] = (unsigned char)tag;
  memcpy(p->data + p->size, data, size);
  p->size += size;
}

static bool may_be_small(lua_State *L, int idx) {
  int type = lua_type(L, idx);
  return type <= LUA_TNUMBER ? type != LUA_TLIGHTUSERDATA : type == LUA_TSTRING && lua_rawlen(L, idx) <= L_SHORT;
}

static LParcel *new_small(lua_State *L, int from, int to) { /* NULL: in vain, or no memory */
  for (int i = from; i <= to; i++)
    if (!may_be_small(L, i)) return NULL;
  return malloc(sizeof(LParcel) + SMALL);
}

/* [-0, +0, -] false: it is too large for this, or the values are. */
static bool small_value(lua_State *L, int idx, LParcel *p) {
  size_t len;
  if (p->size + L_SHORT + 16 > SMALL) return false;
  switch (lua_type(L, idx)) {
    case LUA_TNIL: small_put(p, T_NIL, "", 0); return true;
    case LUA_TBOOLEAN: small_put(p, lua_toboolean(L, idx) ? T_TRUE : T_FALSE, "", 0); return true;
    case LUA_TNUMBER:
      if (lua_isinteger(L, idx))
        small_put(p, T_INTEGER, &(lua_Integer){lua_tointeger(L, idx)}, sizeof(lua_Integer));
      else
        small_put(p, T_FLOAT, &(lua_Number){lua_tonumber(L, idx)}, sizeof(lua_Number));
      return true;
    case LUA_TSTRING: {
      const char *bytes = lua_tolstring(L, idx, &len);
      if (len > L_SHORT) return false;
      small_put(p, T_STRING, &len, sizeof len);
      memcpy(p->data + p->size, bytes, len);
      p->size += len;
      p->plain = false;
      return true;
    }
    default: return false;
  }
}

static void let_go(LParcel *p) {
  aioL_code_unref(p->code);
  for (uint32_t i = 0; i < p->nmoved; i++) aioL_block_unref(p->moved[i].block);
  free(p->moved);
  p->code = NULL;
  p->moved = NULL;
  p->nmoved = 0;
}

LParcel *aioL_parcel_pack_small(lua_State *L, int first, LCode *code, LParcel **reuse) {
  int top = lua_gettop(L);
  LParcel *p = reuse && *reuse && (*reuse)->room >= SMALL ? *reuse : new_small(L, first + (code != NULL), top);
  if (!p) return aioL_code_unref(code), NULL;
  bool fits = true, reused = reuse && p == *reuse;
  size_t room = reused ? p->room : SMALL;
  if (reused) let_go(p);
  *p = (LParcel){.room = room, .code = code, .values = top - first + 1, .plain = true};
  if (code) small_put(p, T_CODE, "", 0);
  for (int i = first + (code != NULL); i <= top && fits; i++) fits = small_value(L, i, p);
  if (fits) {
    if (reused) *reuse = NULL;
    lua_settop(L, first - 1);
    return p;
  }
  reused ? let_go(p) : aioL_parcel_free(p);
  return NULL;
}

LParcel *aioL_parcel_pack(lua_State *L, int first) {
  luaL_checkstack(L, L_SLOTS, "too many values to copy");
  LParcel *p = aioL_parcel_try_pack(L, first, "argument");
  if (p) return p;
  luaL_where(L, 1);
  lua_insert(L, -2);
  lua_concat(L, 2);
  return lua_error(L), NULL;
}

LParcel *aioL_parcel_pack_safe(lua_State *L, int first, const char *what, LParcel **reuse, bool *ok) {
  LParcel *p = aioL_parcel_pack_small(L, first, NULL, reuse);
  *ok = true;
  if (p) return p;
  bool stack = lua_checkstack(L, L_SLOTS);
  if (stack) p = aioL_parcel_try_pack(L, first, what);
  *ok = p != NULL;
  if (stack && !p) p = aioL_parcel_try_pack(L, first, "error"); /* the message */
  lua_settop(L, first - 1);
  return p;
}

LCode *aioL_parcel_code(const LParcel *p) { return p->values && p->data[0] == T_CODE ? p->code : NULL; }

bool aioL_parcel_clear(LParcel *p) {
  if (p->room < SMALL || p->room > 2 * SMALL) return false;
  let_go(p);
  return true;
}

void aioL_parcel_free(LParcel *p) {
  if (!p) return;
  let_go(p);
  free(p);
}
