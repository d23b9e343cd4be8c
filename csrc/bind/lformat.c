/* SPDX-License-Identifier: MIT
 * The formats of the io library: what a script asks for, as the core looks for it, and what was found, as a value.
 *
 * Source   Lua's manual, io.read. */
#include <string.h>

#include "lbind.h"

size_t aioL_count(lua_State *L, int idx, lua_Integer n) {
  luaL_argcheck(L, n >= 0 && n <= INT64_C(1) << 38, idx, "number of bytes out of range");
  return (size_t)n;
}

size_t aioL_check_count(lua_State *L, int idx) { return aioL_count(L, idx, luaL_checkinteger(L, idx)); }

void aioL_check_format(lua_State *L, int idx, AioWant *w) {
  *w = (AioWant){.kind = AIO_WANT_COUNT, .limit = SIZE_MAX};
  if (lua_type(L, idx) == LUA_TNUMBER) {
    w->limit = aioL_check_count(L, idx);
    return;
  }
  const char *s = luaL_checkstring(L, idx);
  if (*s == '*') s++; /* as in Lua 5.1 */
  switch (*s) {
    case 'l': case 'L':
      w->kind = AIO_WANT_DELIM;
      w->delim = "\n";
      w->delim_len = 1;
      w->keep = *s == 'L';
      break;
    case 'a': w->kind = AIO_WANT_ALL; break;
    case 'n': w->kind = AIO_WANT_NUMBER; break;
    default: luaL_argerror(L, idx, "invalid format");
  }
}

int aioL_to_piece(lua_State *L, const AioInput *in, size_t from, const AioWant *w) {
  char numeral[256];
  const char *s = aio_input_bytes(in) + from + w->skip;
  if (w->kind != AIO_WANT_NUMBER) return lua_pushlstring(L, w->len ? s : "", w->len), 1;
  memcpy(numeral, s, w->len);
  numeral[w->len] = 0;
  if (!lua_stringtonumber(L, numeral)) luaL_pushfail(L);
  return 1;
}
