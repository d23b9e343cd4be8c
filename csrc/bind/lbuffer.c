/* SPDX-License-Identifier: MIT
 * aio.buffer: memory that is read into again and again, so that no string is made of what only passes through.
 *
 * Owner    an LBuffer is a userdata and has an LBlock, which is counted: while the kernel has it, the operation holds it.
 * Keep     a block that the kernel has is not touched. Where nobody waits for that any more, the buffer lets go of it when
 *          it is next used: one that was being read into is empty then, one that was being written has the same bytes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lbind.h"

/*** Buffers.
@module aioloop.buffer */

enum { LIMIT_MIN = 16 << 20 };

/* Lua sees a few bytes only of what a buffer holds: when that has doubled it is time to look for garbage. */
static void count(LRuntime *rt, LBlock *block) {
  block->account = &rt->buffers;
  rt->buffers += block->cap;
}

static LBlock *counted_block(LRuntime *rt, size_t cap) { /* NULL: no memory */
  LBlock *block = aioL_block_new(cap);
  if (block) count(rt, block);
  return block;
}

static void collect_garbage(lua_State *L, LRuntime *rt) { /* [-0, +0, -] runs finalisers */
  if (rt->buffers <= LIMIT_MIN || rt->buffers <= rt->buffers_limit) return;
  rt->buffers_limit = SIZE_MAX; /* what finalisers make is not collected in the middle of this */
  lua_gc(L, LUA_GCCOLLECT);
  rt->buffers_limit = 2 * rt->buffers;
}

LBuffer *aioL_push_buffer(lua_State *L, LRuntime *rt, size_t cap) {
  LBuffer *b = lua_newuserdatauv(L, sizeof *b, 0);
  *b = (LBuffer){.cap = cap};
  aioL_set_class(L, rt, L_BUFFER);
  return b;
}

void aioL_buffer_count(lua_State *L, LRuntime *rt, LBuffer *b) {
  if (b->block) count(rt, b->block);
  collect_garbage(L, rt);
}

/* [-0, +0, e] What is left of a wait that was given up is the kernel's. */
static void let_go(lua_State *L, LBuffer *b) {
  LBlock *old = b->block;
  if (!old || (!old->busy && !old->lost)) return;
  b->block = old->lost ? NULL : counted_block(aioL_runtime(L), b->cap);
  if (old->lost)
    b->len = 0;
  else if (b->block)
    memcpy(b->block->data, old->data, b->len);
  else
    b->block = old, luaL_error(L, "not enough memory");
  aioL_block_unref(old);
}

LBuffer *aioL_check_buffer(lua_State *L, int idx) {
  LBuffer *b = aioL_check(L, idx, L_BUFFER);
  if (b->block && b->block->waited) luaL_error(L, "the buffer is being read into or written from");
  let_go(L, b);
  return b;
}

void aioL_buffer_filled(LBuffer *b, LBlock *block, size_t len) {
  block->waited = false;
  if (b->block == block) b->len = len; /* else it was finalised by hand */
}

LBlock *aioL_buffer_block(lua_State *L, LBuffer *b) {
  if (!b->block) b->block = counted_block(aioL_runtime(L), b->cap);
  if (!b->block) luaL_error(L, "not enough memory");
  return b->block;
}

const char *aioL_check_bytes(lua_State *L, int idx, size_t *len) {
  if (lua_type(L, idx) == LUA_TUSERDATA && aioL_test(L, idx, L_BUFFER)) {
    const LBuffer *b = aioL_check_buffer(L, idx);
    *len = b->len;
    return b->block ? b->block->data : "";
  }
  if (lua_type(L, idx) != LUA_TSTRING && lua_type(L, idx) != LUA_TNUMBER) luaL_typeerror(L, idx, "string, number or buffer");
  return lua_tolstring(L, idx, len);
}

/*** Makes a buffer. It may be given to `read`-like operations in place of a number, and to those that write in place of a
string.
@function buffer
@tparam integer n how many bytes fit
@treturn buffer empty */
static int mod_buffer(lua_State *L) {
  lua_Integer n = luaL_checkinteger(L, 1);
  luaL_argcheck(L, n >= 0 && n <= INT64_C(1) << 38, 1, "size out of range");
  aioL_buffer_block(L, aioL_push_buffer(L, aioL_runtime(L), (size_t)n));
  collect_garbage(L, aioL_runtime(L));
  return 1;
}

/*** Puts a string into it, in place of what was there.
@function buffer:set
@tparam string s no longer than its capacity
@treturn buffer itself */
static int buffer_set(lua_State *L) {
  aioL_check(L, 1, L_BUFFER);
  size_t len;
  const char *s = luaL_checklstring(L, 2, &len); /* first, for what makes a string of a number runs finalisers */
  LBuffer *b = aioL_check_buffer(L, 1);
  luaL_argcheck(L, len <= b->cap, 2, "does not fit into the buffer");
  memcpy(aioL_buffer_block(L, b)->data, s, len);
  b->len = len;
  return lua_settop(L, 1), 1;
}

/* As string.sub has it. */
static size_t place(lua_State *L, int idx, lua_Integer def, size_t len, bool first) {
  lua_Integer at = luaL_optinteger(L, idx, def), n = (lua_Integer)len;
  if (at < 0) at = at < -n ? 0 : n + at + 1;
  if (first && at == 0) at = 1;
  return (size_t)(at > n + first ? n + first : at);
}

/*** Its bytes as a string.
@function buffer:tostring
@tparam[opt=1] integer i the first, as in string.sub
@tparam[opt=-1] integer j the last
@treturn string */
static int buffer_tostring(lua_State *L) {
  const LBuffer *b = aioL_check_buffer(L, 1);
  size_t i = place(L, 2, 1, b->len, true), j = place(L, 3, -1, b->len, false);
  lua_pushlstring(L, i <= j ? b->block->data + i - 1 : "", i <= j ? j - i + 1 : 0);
  return 1;
}

/*** How many bytes fit.
@function buffer:capacity
@treturn integer */
static int buffer_capacity(lua_State *L) {
  return lua_pushinteger(L, (lua_Integer)((LBuffer *)aioL_check(L, 1, L_BUFFER))->cap), 1;
}

static int buffer_len(lua_State *L) { return lua_pushinteger(L, (lua_Integer)aioL_check_buffer(L, 1)->len), 1; }

static int buffer_text(lua_State *L) {
  const LBuffer *b = aioL_check(L, 1, L_BUFFER);
  lua_pushfstring(L, "aioloop.buffer (%I of %I bytes): %p", (LUAI_UACINT)b->len, (LUAI_UACINT)b->cap, lua_topointer(L, 1));
  return 1;
}

static int buffer_gc(lua_State *L) {
  LBuffer *b = aioL_check(L, 1, L_BUFFER);
  aioL_block_unref(b->block);
  b->block = NULL;
  b->len = 0;
  return 0;
}

void aioL_open_buffer(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"set", buffer_set}, {"tostring", buffer_tostring}, {"capacity", buffer_capacity},
    {"__len", buffer_len}, {"__tostring", buffer_text}, {"__gc", buffer_gc}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"buffer", mod_buffer}, {NULL, NULL}};
  aioL_class(L, rt, L_BUFFER, methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
