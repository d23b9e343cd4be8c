/* SPDX-License-Identifier: MIT
 * Reading and writing at an offset.
 *
 * Way      file:pread -> aio_file_try: the page cache has it, no wait; else a call (lfile_call.c) -> results
 * Keep     the file's position is not looked at. A string is copied before it is written, a buffer lends its block. */
#include <string.h>

#include "lfile.h"

/*** Files.
@module aioloop.file */

enum { SCRATCH = 16 << 10 };

/* ---- pread ---- */

static int push_block(lua_State *L) { /* stack: LFileCall (light) -> string */
  const LFileCall *k = lua_touserdata(L, 1);
  return lua_pushlstring(L, k->block->data, k->op.moved), 1;
}

static int pread_results(lua_State *L, LTicket *tk) {
  LFileCall *k = aioL_file_call_fetch(tk);
  if (!k) return aioL_closed(L);
  size_t n = k->op.moved;
  int error = k->op.error, status = LUA_OK;
  LBuffer *b = aioL_test(L, 2, L_BUFFER);
  luaL_checkstack(L, 4, NULL);
  if (b) {
    aioL_buffer_filled(b, k->block, n);
    lua_pushinteger(L, (lua_Integer)n);
  } else if (n) {
    lua_pushcfunction(L, push_block);
    lua_pushlightuserdata(L, k);
    status = lua_pcall(L, 1, 1, 0);
  }
  aioL_flight_end(&k->f);
  if (status != LUA_OK) return lua_error(L);
  if (n) return 1;
  return error ? aioL_fail(L, error) : aioL_eof(L);
}

static const LWaitOps pread_ops = {.name = "file:pread", .leave = aioL_file_leave, .results = pread_results, .revoke = aioL_flight_revoke};

/*** Reads at an offset. The file's position stays where it is.
@function file:pread
@tparam integer|buffer n how many bytes; or what to read them into, as many as fit
@tparam integer offset in bytes
@treturn string fewer bytes than asked for only at the end; the number of bytes, if it was a buffer; or nil, "eof"; or nil,
  message, errno; or nil, "closed" */
static int file_pread(lua_State *L) {
  LContext *c = aioL_waits_in(L); /* first, for it may run finalisers */
  LFileBody *b = aioL_check_file(L);
  if (lua_gettop(L) != 3) lua_settop(L, 3);
  LBuffer *buf = lua_type(L, 2) == LUA_TUSERDATA ? aioL_check_buffer(L, 2) : NULL;
  size_t n = buf ? buf->cap : aioL_check_count(L, 2);
  int64_t offset = aioL_check_offset(L, 3);
  char scratch[SCRATCH];
  LBlock *block = buf ? aioL_buffer_block(L, buf) : NULL;
  if (n == 0) return buf ? lua_pushinteger(L, 0) : (void)lua_pushliteral(L, ""), 1;
  AioFileOp op = {.kind = AIO_FILE_READ, .file = b->file, .buf = block ? block->data : scratch, .len = n, .offset = offset};
  if ((block || n <= sizeof scratch) && aio_file_try(c->core, &op)) {
    if (buf) buf->len = op.moved;
    if (!op.moved) return op.error ? aioL_fail(L, op.error) : aioL_eof(L);
    return buf ? lua_pushinteger(L, (lua_Integer)op.moved) : (void)lua_pushlstring(L, scratch, op.moved), 1;
  }
  LFileCall *k = aioL_file_call(L, b, &pread_ops, AIO_FILE_READ, 0);
  if (block)
    atomic_fetch_add(&(k->block = block)->refs, 1);
  else
    aioL_file_block(L, k, n);
  k->op.buf = k->block->data;
  k->op.len = n;
  k->op.offset = offset;
  return aioL_file_wait(L, c, k);
}

/* ---- pwrite ---- */

static int count_results(lua_State *L, LTicket *tk) {
  LFileCall *k = aioL_file_call_fetch(tk);
  if (!k) return aioL_closed(L);
  size_t n = k->op.moved;
  int error = k->op.error;
  aioL_flight_end(&k->f);
  if (error && !n) return aioL_fail(L, error);
  return lua_pushinteger(L, (lua_Integer)n), 1;
}

static const LWaitOps pwrite_ops = {.name = "file:pwrite", .leave = aioL_file_leave, .results = count_results, .revoke = aioL_flight_revoke};

/*** Writes at an offset. The file's position stays where it is.
@function file:pwrite
@tparam string|buffer data
@tparam integer offset in bytes
@treturn integer number of bytes written: fewer than there are if an error came in between; or nil, message, errno; or nil,
  "closed" */
static int file_pwrite(lua_State *L) {
  size_t n;
  LContext *c = aioL_waits_in(L); /* first, for it may run finalisers */
  LFileBody *b = aioL_check_file(L);
  if (lua_gettop(L) != 3) lua_settop(L, 3);
  int64_t offset = aioL_check_offset(L, 3);
  const char *data = aioL_check_bytes(L, 2, &n); /* last: what makes a string of a number does, too */
  b = aioL_check_file(L);
  if (n == 0) return lua_pushinteger(L, 0), 1;
  AioFileOp op = {.kind = AIO_FILE_WRITE, .file = b->file, .buf = (char *)(uintptr_t)data, .len = n, .offset = offset};
  if (aio_file_try(c->core, &op)) return aioL_file_changed(b), lua_pushinteger(L, (lua_Integer)op.moved), 1;
  LFileCall *k = aioL_file_call(L, b, &pwrite_ops, AIO_FILE_WRITE, 0);
  LBuffer *buf = aioL_test(L, 2, L_BUFFER);
  if (buf)
    atomic_fetch_add(&(k->block = buf->block)->refs, 1);
  else
    memcpy(aioL_file_block(L, k, n)->data, data, n);
  k->op.buf = k->block->data;
  k->op.len = n;
  k->op.offset = offset;
  return aioL_file_wait(L, c, k);
}

const luaL_Reg aioL_file_at_methods[] = {{"pread", file_pread}, {"pwrite", file_pwrite}, {NULL, NULL}};
