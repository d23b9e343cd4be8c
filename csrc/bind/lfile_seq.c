/* SPDX-License-Identifier: MIT
 * Reading and writing at the file's position, as the io library does.
 *
 * Way      file:read -> step: look for the pieces in what was read ahead, read more -> all there -> results
 * Keep     the position moves, and bytes are taken from what was read ahead, when a call's results are fetched, not before.
 *          One call at a time uses the position. */
#include <errno.h>
#include <string.h>

#include "lfile.h"

/*** Files.
@module aioloop.file */

enum { AHEAD = 16 << 10, KEEP = 64 << 10 };

/* ---- read ---- */

static void use_position(lua_State *L, LFileBody *b, const char *name) { /* [-0, +0, v] */
  if (b->in_use) luaL_error(L, "%s: another task is in %s, which uses the file's position", name, b->in_use);
}

/* Looks for the pieces, one after the other. 1: all are there, or no more will be; 0: more is to be read. */
static int look(LFileCall *k, size_t *used) {
  *used = 0;
  for (size_t i = 0; i < k->found; i++) *used += k->wants[i].used;
  while (k->found < k->nwants) {
    AioWant *w = &k->wants[k->found];
    int rc = aio_input_find(&k->in, *used, w, k->eof);
    if (rc <= 0) return rc < 0;
    *used += w->used;
    k->found++;
  }
  return 1;
}

/* How much to read for the piece that is looked for: a byte more than the file has shows that this is its end. */
static size_t portion(const LFileCall *k, size_t used) {
  const AioWant *w = &k->wants[k->found];
  size_t have = aio_input_size(&k->in) - used, want = AHEAD;
  if (w->kind == AIO_WANT_ALL || (w->kind == AIO_WANT_COUNT && w->limit > have)) want = w->limit - have;
  if (want <= AHEAD) return AHEAD;
  int64_t left = aio_file_size(k->b->file) - k->start - (int64_t)aio_input_size(&k->in);
  if (left < AHEAD) return AHEAD;
  return want <= (size_t)left ? want : (size_t)left + 1;
}

/* Up to the next reading that must be waited for: 0, and k->op is to be submitted. 1: the call is over. */
static int step(LFileCall *k, LContext *c) {
  size_t used;
  while (!look(k, &used)) {
    size_t room = portion(k, used);
    k->op.buf = aio_input_room(&k->in, room);
    k->op.len = room;
    k->op.offset = k->start + (int64_t)aio_input_size(&k->in);
    if (!k->op.buf) return k->error = -ENOMEM, 1;
    if (!aio_file_try(c->core, &k->op)) return 0;
    aio_input_added(&k->in, k->op.moved);
    k->eof = k->op.moved < room;
    if (k->op.error) return k->error = k->op.error, 1;
  }
  return 1;
}

static void more_read(void *opaque) {
  LFileCall *k = opaque;
  LContext *c = k->f.c;
  aio_input_added(&k->in, k->op.moved);
  k->eof = k->op.moved < k->op.len;
  k->error = k->op.error;
  if (!k->error && k->f.tk && !step(k, c)) {
    int rc = aio_file_submit(c->core, &k->op);
    if (rc == 0) return;
    k->error = rc;
  }
  aioL_flight_done(&k->f);
}

/* stack: LFileCall (light) -> pieces, and nil and why in place of the first that is not there. What comes behind something
 * that is no number stays where it is. */
static int push_pieces(lua_State *L) {
  LFileCall *k = lua_touserdata(L, 1);
  lua_settop(L, 0);
  luaL_checkstack(L, (int)k->found + 4, "too many results");
  k->taken = 0;
  for (size_t i = 0; i < k->found; i++) {
    aioL_to_piece(L, &k->in, k->taken, &k->wants[i]);
    k->taken += k->wants[i].used;
    if (!lua_isnil(L, -1)) continue;
    lua_pushliteral(L, "not a number");
    return lua_gettop(L);
  }
  if (k->found == k->nwants) return lua_gettop(L);
  if (k->error) {
    aioL_fail(L, k->error);
  } else {
    k->taken += k->wants[k->found].used; /* white space before a number that is not there */
    aioL_eof(L);
  }
  return lua_gettop(L);
}

/* What its pieces have used is taken; the rest is the file's again. */
static int read_end(lua_State *L, LFileCall *k, int base, int status) {
  LFileBody *b = k->b;
  size_t used = status == LUA_OK ? k->taken : 0;
  aio_input_take(&k->in, used);
  b->pos = k->start + (int64_t)used;
  aio_input_free(&b->in);
  if (k->changes == b->changes && (aio_input_size(&k->in) || k->in.cap <= KEEP)) { /* large memory is not kept for nothing */
    b->in = k->in;
    k->in = (AioInput){.data = NULL};
  }
  return status == LUA_OK ? lua_gettop(L) - base : -1;
}

static int read_results(lua_State *L, LTicket *tk) {
  LFileCall *k = aioL_file_call_fetch(tk);
  if (!k) return aioL_closed(L);
  int base = lua_gettop(L);
  luaL_checkstack(L, 4, NULL);
  lua_pushcfunction(L, push_pieces);
  lua_pushlightuserdata(L, k);
  int n = read_end(L, k, base, lua_pcall(L, 1, LUA_MULTRET, 0));
  aioL_flight_end(&k->f);
  return n < 0 ? lua_error(L) : n;
}

static const LWaitOps read_ops = {.name = "file:read", .leave = aioL_file_leave, .results = read_results, .revoke = aioL_flight_revoke};

/*** Reads at the file's position, as the io library does.
@function file:read
@tparam[opt="l"] string|integer ... formats: "l" a line, "L" with its end, "n" a numeral, "a" all that is left, a number of bytes
@return what was read, a value for each format; nil, "eof" (or nil, message, errno) in place of the first that could not be */
static int file_read(lua_State *L) {
  aioL_check_file(L);
  if (lua_gettop(L) == 1) lua_pushliteral(L, "l");
  int n = lua_gettop(L) - 1;
  for (int i = 0; i < n; i++) aioL_check_format(L, i + 2, &(AioWant){.limit = 0});
  LContext *c = aioL_waits_in(L);
  LFileBody *b = aioL_check_file(L);
  use_position(L, b, "file:read");
  LFileCall *k = aioL_file_call(L, b, &read_ops, AIO_FILE_READ, (size_t)n * sizeof *k->wants);
  k->op.done = more_read;
  for (int i = 0; i < n; i++) aioL_check_format(L, i + 2, &k->wants[i]);
  k->nwants = (size_t)n;
  k->moves_position = true;
  k->start = b->pos;
  k->changes = b->changes;
  k->in = b->in;
  b->in = (AioInput){.data = NULL};
  if (!step(k, c)) return aioL_file_wait(L, c, k);
  int base = lua_gettop(L);
  lua_pushcfunction(L, push_pieces);
  lua_pushlightuserdata(L, k);
  n = read_end(L, k, base, lua_pcall(L, 1, LUA_MULTRET, 0));
  aioL_file_call_free(&k->f);
  return n < 0 ? lua_error(L) : n;
}

/* ---- write ---- */

/* After what was appended, the position is the end. */
static void written(LFileBody *b, size_t n) {
  int64_t size = b->append ? aio_file_size(b->file) : -1;
  b->pos = size >= 0 ? size : b->pos + (int64_t)n;
}

static int write_end(lua_State *L, LFileBody *b, const AioFileOp *op) {
  aioL_file_changed(b);
  written(b, op->moved);
  if (op->error) return aioL_fail(L, op->error);
  return lua_pushvalue(L, 1), 1;
}

static int write_results(lua_State *L, LTicket *tk) {
  LFileCall *k = aioL_file_call_fetch(tk);
  if (!k) return aioL_closed(L);
  luaL_checkstack(L, 4, NULL);
  AioFileOp op = k->op;
  LFileBody *b = k->b;
  b->refs++;
  aioL_flight_end(&k->f);
  int n = write_end(L, b, &op);
  aioL_file_body_unref(b);
  return n;
}

static const LWaitOps write_ops = {.name = "file:write", .leave = aioL_file_leave, .results = write_results, .revoke = aioL_flight_revoke};

static void gather(lua_State *L, LBlock *block, int last) {
  size_t at = 0, n;
  for (int i = 2; i <= last; i++) {
    const char *s = aioL_check_bytes(L, i, &n);
    memcpy(block->data + at, s, n);
    at += n;
  }
}

/*** Writes at the file's position, or at its end if it was opened for appending.
@function file:write
@tparam string|number|buffer ... pieces, written as one
@treturn file itself; or nil, message, errno; or nil, "closed" */
static int file_write(lua_State *L) {
  aioL_check_file(L);
  int last = lua_gettop(L);
  size_t size = 0, n;
  for (int i = 2; i <= last; i++) aioL_check_bytes(L, i, &n); /* numbers become strings, and finalisers may run */
  LContext *c = aioL_waits_in(L);
  LFileBody *b = aioL_check_file(L);
  use_position(L, b, "file:write");
  for (int i = 2; i <= last; i++) aioL_check_bytes(L, i, &n), size += n; /* nothing runs from here to `gather` */
  if (size == 0) return lua_settop(L, 1), 1;
  AioFileOp op = {.kind = AIO_FILE_WRITE, .file = b->file, .len = size, .offset = b->pos};
  if (last == 2) op.buf = (char *)(uintptr_t)aioL_check_bytes(L, 2, &n);
  if (last == 2 && aio_file_try(c->core, &op)) return write_end(L, b, &op);
  LFileCall *k = aioL_file_call(L, b, &write_ops, AIO_FILE_WRITE, 0);
  gather(L, aioL_file_block(L, k, size), last);
  k->op.buf = k->block->data;
  k->op.len = size;
  k->op.offset = b->pos;
  k->moves_position = true;
  return aioL_file_wait(L, c, k);
}

/*** Says where the next `read` or `write` goes on. Does not wait.
@function file:seek
@tparam[opt="cur"] string whence "set", "cur" or "end"
@tparam[opt=0] integer offset in bytes
@treturn integer the position, from the beginning; or nil, message, errno */
static int file_seek(lua_State *L) {
  static const char *const names[] = {"set", "cur", "end", NULL};
  LFileBody *b = aioL_check_file(L);
  int whence = luaL_checkoption(L, 2, "cur", names);
  lua_Integer offset = luaL_optinteger(L, 3, 0);
  use_position(L, b, "file:seek");
  int64_t from = whence == 0 ? 0 : whence == 1 ? b->pos : aio_file_size(b->file);
  if (from < 0) return aioL_fail(L, (int)from);
  if (offset > INT64_MAX - from || from + offset < 0) return aioL_fail(L, -EINVAL);
  if (from + offset != b->pos) aio_input_free(&b->in);
  b->pos = from + offset;
  return lua_pushinteger(L, b->pos), 1;
}

const luaL_Reg aioL_file_seq_methods[] = {{"read", file_read}, {"write", file_write}, {"seek", file_seek}, {NULL, NULL}};
