/* SPDX-License-Identifier: MIT
 * Files: reading, writing and what else is done with them, suspended until the kernel has done it.
 *
 * Way      file:pread -> aio_file_try: the page cache has it, no wait; else LFileCall -> ticket -> aio_file_submit -> done ->
 *          results. file:read -> step: look for the pieces in what was read ahead, read more -> all there -> results
 * Owner    the userdata and every call under way count the LFileBody. A call is a flight (lpool.c) with its own memory: who
 *          gives up waiting leaves it to the kernel.
 * Keep     a position moves, and bytes are taken from what was read ahead, when a call's results are fetched, not before.
 *          One call at a time uses the position. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "lbind.h"

/*** Files.
@module aioloop.file */

typedef struct LFileBody {
  uint32_t refs;
  AioFile *file;
  AioInput in;        /* read ahead, from pos on */
  int64_t pos;
  uint32_t changes;   /* by what was written or cut off here: what was read before is not what is there now */
  AioLink calls;      /* for which somebody waits */
  bool append;
  const char *in_use; /* the operation that uses the position now, or NULL */
} LFileBody;

typedef struct LFile {
  LFileBody *b; /* NULL: closed */
} LFile;

enum { AHEAD = 16 << 10, SCRATCH = 16 << 10, KEEP = 64 << 10 };

typedef struct LFileCall {
  LFlight f;
  AioLink link;      /* in body->calls */
  AioFileOp op;
  LFileBody *b;
  const LWaitOps *ops;
  LBlock *block;     /* of a buffer, or our own */
  bool moves_position, holds_position;
  int64_t start;     /* file:read: the position */
  uint32_t changes;  /* file:read: of the body, then */
  AioInput in;       /* file:read: what the body had, and more */
  bool eof;
  int error;         /* file:read */
  size_t nwants, found, taken; /* taken: bytes that the results have used up */
  AioWant wants[];   /* file:read; behind them the delimiters */
} LFileCall;

static LFileBody *new_body(AioEngine engine, bool direct) { /* NULL: no memory */
  LFileBody *b = malloc(sizeof *b);
  if (!b) return NULL;
  *b = (LFileBody){.refs = 1, .file = aio_file_new(engine, direct)};
  list_init(&b->calls);
  if (b->file) return b;
  free(b);
  return NULL;
}

static void body_unref(LFileBody *b) {
  if (--b->refs) return;
  aio_file_unref(b->file);
  aio_input_free(&b->in);
  free(b);
}

/* What was read ahead is to be read again, also by who is about to give back what he has. */
static void changed(LFileBody *b) {
  b->changes++;
  aio_input_free(&b->in);
}

/* ---- calls ---- */

static void cancel(LFlight *f) { aio_file_cancel(&container_of(f, LFileCall, f)->op); }

static void release_position(LFileCall *k) {
  if (k->holds_position) k->b->in_use = NULL;
  k->holds_position = false;
}

static void free_call(LFlight *f) {
  LFileCall *k = container_of(f, LFileCall, f);
  if (list_linked(&k->link)) list_unlink(&k->link);
  release_position(k);
  if (k->block) aioL_block_over(k->block, k->op.kind == AIO_FILE_READ);
  aioL_block_unref(k->block);
  if (k->op.kind == AIO_FILE_WRITE || k->op.kind == AIO_FILE_TRUNCATE) changed(k->b);
  aio_input_free(&k->in);
  body_unref(k->b);
  free(k);
}

static void done(void *opaque) { aioL_flight_done(&((LFileCall *)opaque)->f); }

/* Nobody waits any more: the position and the buffer are free for others, the kernel keeps its memory. */
static void leave(LTicket *tk) {
  LFileCall *k = container_of((LFlight *)tk->op, LFileCall, f);
  list_unlink(&k->link);
  if (k->f.over) return;
  if (k->block) aioL_block_leave(k->block, k->op.kind == AIO_FILE_READ);
  release_position(k);
  aioL_flight_leave(tk);
}

static LFileCall *new_call(lua_State *L, LFileBody *b, const LWaitOps *ops, AioFileKind kind, size_t more) { /* [-0, +0, m] */
  LFileCall *k = malloc(sizeof *k + more);
  if (!k) luaL_error(L, "not enough memory");
  *k = (LFileCall){.b = b, .ops = ops, .op = {.kind = kind, .file = b->file, .done = done, .opaque = k}};
  b->refs++;
  return k;
}

/* Submits it and waits. Where no ticket can be had the call stays with the context, and stands in nobody's way. [-0, +n, e] */
static int wait_for(lua_State *L, LContext *c, LFileCall *k) {
  aioL_flight_begin(&k->f, c, cancel, free_call);
  LTicket *tk = aioL_ticket(L, c, k->ops);
  int rc = aio_file_submit(c->core, &k->op);
  if (rc < 0) {
    aioL_ticket_drop(tk);
    aioL_flight_end(&k->f);
    return rc == -EBADF ? aioL_closed(L) : aioL_fail(L, rc); /* by a finaliser, just now */
  }
  list_append(&k->b->calls, &k->link);
  if (k->block) aioL_block_wait(k->block);
  if (k->moves_position) k->b->in_use = k->ops->name, k->holds_position = true;
  aioL_flight_wait(&k->f, tk);
  return aioL_wait(L, tk, AIO_FOREVER);
}

static LFileCall *call_of(LTicket *tk) { return container_of((LFlight *)tk->op, LFileCall, f); }

static LFileBody *check_file(lua_State *L) { /* [-0, +0, v] */
  const LFile *lf = aioL_check(L, 1, L_FILE);
  if (!lf->b) luaL_error(L, "the file is closed");
  return lf->b;
}

/* ---- pread ---- */

static int push_block(lua_State *L) { /* stack: LFileCall (light) -> string */
  const LFileCall *k = lua_touserdata(L, 1);
  return lua_pushlstring(L, k->block->data, k->op.moved), 1;
}

static int pread_results(lua_State *L, LTicket *tk) {
  if (!tk->op) return aioL_closed(L);
  LFileCall *k = call_of(tk);
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

static const LWaitOps pread_ops = {.name = "file:pread", .leave = leave, .results = pread_results, .revoke = aioL_flight_revoke};

static lua_Integer check_offset(lua_State *L, int idx) {
  lua_Integer at = luaL_checkinteger(L, idx);
  luaL_argcheck(L, at >= 0, idx, "an offset is not negative");
  return at;
}

static LBlock *own_block(lua_State *L, LFileCall *k, size_t size) { /* [-0, +0, e] frees the call where there is no memory */
  LBlock *block = aioL_block_new(size);
  if (block) return k->block = block;
  free_call(&k->f);
  luaL_error(L, "not enough memory");
  return NULL;
}

/*** Reads at an offset. The file's position stays where it is.
@function file:pread
@tparam integer|buffer n how many bytes; or what to read them into, as many as fit
@tparam integer offset in bytes
@treturn string fewer bytes than asked for only at the end; the number of bytes, if it was a buffer; or nil, "eof"; or nil,
  message, errno; or nil, "closed" */
static int file_pread(lua_State *L) {
  check_file(L);
  lua_settop(L, 3);
  bool into = lua_type(L, 2) == LUA_TUSERDATA;
  size_t n = into ? aioL_check_buffer(L, 2)->cap : aioL_check_count(L, 2);
  int64_t offset = check_offset(L, 3);
  LContext *c = aioL_waits_in(L);
  LFileBody *b = check_file(L);
  LBuffer *buf = into ? aioL_check_buffer(L, 2) : NULL;
  char scratch[SCRATCH];
  LBlock *block = buf ? aioL_buffer_block(L, buf) : NULL;
  if (n == 0) return buf ? lua_pushinteger(L, 0) : (void)lua_pushliteral(L, ""), 1;
  AioFileOp op = {.kind = AIO_FILE_READ, .file = b->file, .buf = block ? block->data : scratch, .len = n, .offset = offset};
  if ((block || n <= sizeof scratch) && aio_file_try(c->core, &op)) {
    if (buf) buf->len = op.moved;
    if (!op.moved) return op.error ? aioL_fail(L, op.error) : aioL_eof(L);
    return buf ? lua_pushinteger(L, (lua_Integer)op.moved) : (void)lua_pushlstring(L, scratch, op.moved), 1;
  }
  LFileCall *k = new_call(L, b, &pread_ops, AIO_FILE_READ, 0);
  if (block)
    atomic_fetch_add(&(k->block = block)->refs, 1);
  else
    own_block(L, k, n);
  k->op.buf = k->block->data;
  k->op.len = n;
  k->op.offset = offset;
  return wait_for(L, c, k);
}

/* ---- pwrite ---- */

static int count_results(lua_State *L, LTicket *tk) {
  if (!tk->op) return aioL_closed(L);
  LFileCall *k = call_of(tk);
  size_t n = k->op.moved;
  int error = k->op.error;
  aioL_flight_end(&k->f);
  if (error && !n) return aioL_fail(L, error);
  return lua_pushinteger(L, (lua_Integer)n), 1;
}

static const LWaitOps pwrite_ops = {.name = "file:pwrite", .leave = leave, .results = count_results, .revoke = aioL_flight_revoke};

/*** Writes at an offset. The file's position stays where it is.
@function file:pwrite
@tparam string|buffer data
@tparam integer offset in bytes
@treturn integer number of bytes written: fewer than there are if an error came in between; or nil, message, errno; or nil,
  "closed" */
static int file_pwrite(lua_State *L) {
  check_file(L);
  lua_settop(L, 3);
  size_t n;
  aioL_check_bytes(L, 2, &n);
  int64_t offset = check_offset(L, 3);
  LContext *c = aioL_waits_in(L);
  LFileBody *b = check_file(L);
  const char *data = aioL_check_bytes(L, 2, &n);
  if (n == 0) return lua_pushinteger(L, 0), 1;
  AioFileOp op = {.kind = AIO_FILE_WRITE, .file = b->file, .buf = (char *)(uintptr_t)data, .len = n, .offset = offset};
  if (aio_file_try(c->core, &op)) return changed(b), lua_pushinteger(L, (lua_Integer)op.moved), 1;
  LFileCall *k = new_call(L, b, &pwrite_ops, AIO_FILE_WRITE, 0);
  LBuffer *buf = aioL_test(L, 2, L_BUFFER);
  if (buf)
    atomic_fetch_add(&(k->block = buf->block)->refs, 1);
  else
    memcpy(own_block(L, k, n)->data, data, n);
  k->op.buf = k->block->data;
  k->op.len = n;
  k->op.offset = offset;
  return wait_for(L, c, k);
}

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
  if (!tk->op) return aioL_closed(L);
  LFileCall *k = call_of(tk);
  int base = lua_gettop(L);
  luaL_checkstack(L, 4, NULL);
  lua_pushcfunction(L, push_pieces);
  lua_pushlightuserdata(L, k);
  int n = read_end(L, k, base, lua_pcall(L, 1, LUA_MULTRET, 0));
  aioL_flight_end(&k->f);
  return n < 0 ? lua_error(L) : n;
}

static const LWaitOps read_ops = {.name = "file:read", .leave = leave, .results = read_results, .revoke = aioL_flight_revoke};

/*** Reads at the file's position, as the io library does.
@function file:read
@tparam[opt="l"] string|integer ... formats: "l" a line, "L" with its end, "n" a numeral, "a" all that is left, a number of bytes
@return what was read, a value for each format; nil, "eof" (or nil, message, errno) in place of the first that could not be */
static int file_read(lua_State *L) {
  check_file(L);
  if (lua_gettop(L) == 1) lua_pushliteral(L, "l");
  int n = lua_gettop(L) - 1;
  for (int i = 0; i < n; i++) aioL_check_format(L, i + 2, &(AioWant){.limit = 0});
  LContext *c = aioL_waits_in(L);
  LFileBody *b = check_file(L);
  use_position(L, b, "file:read");
  LFileCall *k = new_call(L, b, &read_ops, AIO_FILE_READ, (size_t)n * sizeof *k->wants);
  k->op.done = more_read;
  for (int i = 0; i < n; i++) aioL_check_format(L, i + 2, &k->wants[i]);
  k->nwants = (size_t)n;
  k->moves_position = true;
  k->start = b->pos;
  k->changes = b->changes;
  k->in = b->in;
  b->in = (AioInput){.data = NULL};
  if (!step(k, c)) return wait_for(L, c, k);
  int base = lua_gettop(L);
  lua_pushcfunction(L, push_pieces);
  lua_pushlightuserdata(L, k);
  n = read_end(L, k, base, lua_pcall(L, 1, LUA_MULTRET, 0));
  free_call(&k->f);
  return n < 0 ? lua_error(L) : n;
}

/* ---- write ---- */

/* After what was appended, the position is the end. */
static void written(LFileBody *b, size_t n) {
  int64_t size = b->append ? aio_file_size(b->file) : -1;
  b->pos = size >= 0 ? size : b->pos + (int64_t)n;
}

static int write_end(lua_State *L, LFileBody *b, const AioFileOp *op) {
  changed(b);
  written(b, op->moved);
  if (op->error) return aioL_fail(L, op->error);
  return lua_pushvalue(L, 1), 1;
}

static int write_results(lua_State *L, LTicket *tk) {
  if (!tk->op) return aioL_closed(L);
  LFileCall *k = call_of(tk);
  luaL_checkstack(L, 4, NULL);
  AioFileOp op = k->op;
  LFileBody *b = k->b;
  b->refs++;
  aioL_flight_end(&k->f);
  int n = write_end(L, b, &op);
  body_unref(b);
  return n;
}

static const LWaitOps write_ops = {.name = "file:write", .leave = leave, .results = write_results, .revoke = aioL_flight_revoke};

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
  check_file(L);
  int last = lua_gettop(L);
  size_t size = 0, n;
  for (int i = 2; i <= last; i++) aioL_check_bytes(L, i, &n); /* numbers become strings, and finalisers may run */
  LContext *c = aioL_waits_in(L);
  LFileBody *b = check_file(L);
  use_position(L, b, "file:write");
  for (int i = 2; i <= last; i++) aioL_check_bytes(L, i, &n), size += n; /* nothing runs from here to `gather` */
  if (size == 0) return lua_settop(L, 1), 1;
  AioFileOp op = {.kind = AIO_FILE_WRITE, .file = b->file, .len = size, .offset = b->pos};
  if (last == 2) op.buf = (char *)(uintptr_t)aioL_check_bytes(L, 2, &n);
  if (last == 2 && aio_file_try(c->core, &op)) return write_end(L, b, &op);
  LFileCall *k = new_call(L, b, &write_ops, AIO_FILE_WRITE, 0);
  gather(L, own_block(L, k, size), last);
  k->op.buf = k->block->data;
  k->op.len = size;
  k->op.offset = b->pos;
  k->moves_position = true;
  return wait_for(L, c, k);
}

/*** Says where the next `read` or `write` goes on. Does not wait.
@function file:seek
@tparam[opt="cur"] string whence "set", "cur" or "end"
@tparam[opt=0] integer offset in bytes
@treturn integer the position, from the beginning; or nil, message, errno */
static int file_seek(lua_State *L) {
  static const char *const names[] = {"set", "cur", "end", NULL};
  LFileBody *b = check_file(L);
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

/* ---- what moves no bytes ---- */

static int plain_results(lua_State *L, LTicket *tk) {
  if (!tk->op) return aioL_closed(L);
  LFileCall *k = call_of(tk);
  int error = k->op.error;
  aioL_flight_end(&k->f);
  if (error) return aioL_fail(L, error);
  return lua_pushboolean(L, 1), 1;
}

static const LWaitOps sync_ops = {.name = "file:sync", .leave = leave, .results = plain_results, .revoke = aioL_flight_revoke};
static const LWaitOps datasync_ops = {.name = "file:datasync", .leave = leave, .results = plain_results, .revoke = aioL_flight_revoke};
static const LWaitOps truncate_ops = {.name = "file:truncate", .leave = leave, .results = plain_results, .revoke = aioL_flight_revoke};

static int request(lua_State *L, const LWaitOps *ops, AioFileKind kind, int64_t offset) {
  check_file(L);
  LContext *c = aioL_waits_in(L);
  LFileCall *k = new_call(L, check_file(L), ops, kind, 0);
  k->op.offset = offset;
  return wait_for(L, c, k);
}

/*** Waits until what was written, and what is known of the file, is on the disk.
@function file:sync
@treturn boolean true; or nil, message, errno */
static int file_sync(lua_State *L) { return request(L, &sync_ops, AIO_FILE_SYNC, 0); }

/*** The same without what is not needed to read it again, such as its times.
@function file:datasync
@treturn boolean true; or nil, message, errno */
static int file_datasync(lua_State *L) { return request(L, &datasync_ops, AIO_FILE_DATASYNC, 0); }

/*** Cuts the file off, or fills it up with zeros.
@function file:truncate
@tparam integer size in bytes
@treturn boolean true; or nil, message, errno */
static int file_truncate(lua_State *L) {
  check_file(L);
  return request(L, &truncate_ops, AIO_FILE_TRUNCATE, check_offset(L, 2));
}

static void set_integer(lua_State *L, const char *name, int64_t value) {
  lua_pushinteger(L, value);
  lua_setfield(L, -2, name);
}

static void set_time(lua_State *L, const char *name, int64_t ns) {
  aioL_push_seconds(L, ns);
  lua_setfield(L, -2, name);
}

static int push_stat(lua_State *L) { /* stack: AioFileStat (light) -> table */
  const AioFileStat *st = lua_touserdata(L, 1);
  lua_createtable(L, 0, 13);
  lua_pushstring(L, st->type);
  lua_setfield(L, -2, "type");
  set_integer(L, "size", st->size);
  set_integer(L, "mode", st->mode);
  set_integer(L, "uid", st->uid);
  set_integer(L, "gid", st->gid);
  set_integer(L, "nlink", st->nlink);
  set_integer(L, "ino", st->ino);
  set_integer(L, "dev", st->dev);
  set_integer(L, "blocks", st->blocks);
  set_integer(L, "blksize", st->blksize);
  set_time(L, "atime", st->atime);
  set_time(L, "mtime", st->mtime);
  set_time(L, "ctime", st->ctime);
  return 1;
}

static int stat_results(lua_State *L, LTicket *tk) {
  if (!tk->op) return aioL_closed(L);
  LFileCall *k = call_of(tk);
  AioFileStat st = k->op.stat;
  int error = k->op.error;
  luaL_checkstack(L, 4, NULL);
  aioL_flight_end(&k->f);
  if (error) return aioL_fail(L, error);
  lua_pushcfunction(L, push_stat);
  lua_pushlightuserdata(L, &st);
  return lua_call(L, 1, 1), 1;
}

static const LWaitOps stat_ops = {.name = "file:stat", .leave = leave, .results = stat_results, .revoke = aioL_flight_revoke};

/*** What the system knows of the file.
@function file:stat
@treturn table type ("file", "directory", "block", "char"), size, mode (permissions), uid, gid, nlink, ino, dev, blocks (of
  512 bytes), blksize, atime, mtime, ctime (seconds, as `aio.time`); or nil, message, errno */
static int file_stat(lua_State *L) { return request(L, &stat_ops, AIO_FILE_STAT, 0); }

/* ---- open and close ---- */

static int open_results(lua_State *L, LTicket *tk) {
  if (!tk->op) return aioL_closed(L);
  LFileCall *k = call_of(tk);
  LFile *lf = lua_touserdata(L, 4); /* made before the wait, closed */
  int error = k->op.error;
  if (!error) (lf->b = k->b)->refs++;
  aioL_flight_end(&k->f);
  if (!error) return lua_pushvalue(L, 4), 1;
  aioL_fail(L, error); /* stack: ..., nil, message, errno */
  lua_pushfstring(L, "%s: %s", lua_tostring(L, 1), lua_tostring(L, -2));
  lua_replace(L, -3);
  return 3;
}

static const LWaitOps open_ops = {.name = "aio.open", .leave = leave, .results = open_results, .revoke = aioL_flight_revoke};

static int check_mode(lua_State *L, int idx) { /* [-0, +0, v] flags of open(2) */
  size_t len;
  const char *mode = luaL_optlstring(L, idx, "r", &len);
  bool plus = len && strchr(mode, '+'), binary = len && strchr(mode, 'b'), exclusive = len && strchr(mode, 'x');
  bool known = len && strchr("rwa", *mode) && strspn(mode + 1, "+bx") == len - 1;
  luaL_argcheck(L, known && len == (size_t)1 + plus + binary + exclusive && !(exclusive && *mode == 'r'), idx, "invalid mode");
  int flags = plus ? O_RDWR : *mode == 'r' ? O_RDONLY : O_WRONLY;
  return flags | (*mode == 'w' ? O_CREAT | O_TRUNC : *mode == 'a' ? O_CREAT | O_APPEND : 0) | (exclusive ? O_EXCL : 0);
}

static AioEngine check_engine(lua_State *L, int idx) { /* [-0, +0, v] option of the table at idx */
  static const char *const names[] = {"auto", "io_uring", "linux-aio", "threads"};
  int type = lua_getfield(L, idx, "engine"), found = 0;
  if (type == LUA_TNIL) return lua_pop(L, 1), AIO_ENGINE_AUTO;
  const char *name = type == LUA_TSTRING ? lua_tostring(L, -1) : "";
  while (found < 4 && strcmp(name, names[found])) found++;
  luaL_argcheck(L, found < 4, idx, "engine must be \"auto\", \"io_uring\", \"linux-aio\" or \"threads\"");
  return lua_pop(L, 1), (AioEngine)found;
}

static int check_permissions(lua_State *L, int idx) {
  int ok = true;
  lua_Integer mode = lua_getfield(L, idx, "perm") == LUA_TNIL ? 0666 : lua_tointegerx(L, -1, &ok);
  luaL_argcheck(L, ok && mode >= 0 && mode <= 07777, idx, "perm must be permissions, such as tonumber(\"644\", 8)");
  return lua_pop(L, 1), (int)mode;
}

/*** Opens a file.
@function open
@tparam string path
@tparam[opt="r"] string mode "r", "w", "a", "r+", "w+", "a+" as in io.open; with "x" the file must not be there
@tparam[opt] table options engine ("auto", "io_uring", "linux-aio", "threads": where the system refuses it, the next one
  works), direct (boolean: past the page cache, where the file system can do that; "linux-aio" means it), perm (of a new file,
  less the umask)
@treturn file or nil, message with the path, errno */
static int mod_open(lua_State *L) {
  size_t len;
  const char *path = luaL_checklstring(L, 1, &len);
  luaL_argcheck(L, strlen(path) == len, 1, "a path has no zero byte");
  int flags = check_mode(L, 2), perm = 0666;
  AioEngine engine = AIO_ENGINE_AUTO;
  bool direct = false;
  lua_settop(L, 3);
  if (!lua_isnil(L, 3)) {
    luaL_checktype(L, 3, LUA_TTABLE);
    engine = check_engine(L, 3);
    perm = check_permissions(L, 3);
    lua_getfield(L, 3, "direct");
    direct = lua_toboolean(L, -1);
    lua_settop(L, 3);
  }
  LContext *c = aioL_waits_in(L);
  LFile *lf = lua_newuserdatauv(L, sizeof *lf, 0);
  lf->b = NULL;
  aioL_set_class(L, c->rt, L_FILE);
  LFileBody *b = new_body(engine, direct);
  if (!b) return luaL_error(L, "not enough memory");
  b->append = flags & O_APPEND;
  LFileCall *k = malloc(sizeof *k + len + 1);
  if (!k) return body_unref(b), luaL_error(L, "not enough memory");
  *k = (LFileCall){.b = b, .ops = &open_ops, .op = {.kind = AIO_FILE_OPEN, .file = b->file, .done = done, .opaque = k}};
  k->op.path = memcpy(k->wants, path, len + 1);
  k->op.flags = flags;
  k->op.mode = perm;
  return wait_for(L, c, k);
}

/* Whoever waits is told; what the kernel has is asked to end. */
static void close_body(LFileBody *b) {
  aio_file_close(b->file);
  while (!list_empty(&b->calls)) {
    LFileCall *k = container_of(b->calls.next, LFileCall, link);
    if (!k->f.tk || !aioL_take_later(k->f.tk, L_CLOSED, 0)) list_unlink(&k->link);
  }
}

/*** Closes the file. Whoever waits for it has nil, "closed"; what the kernel has begun may still be done.
@function file:close
@treturn boolean true */
static int file_close(lua_State *L) {
  LFile *lf = aioL_check(L, 1, L_FILE);
  LFileBody *b = lf->b;
  lf->b = NULL;
  if (b) close_body(b), body_unref(b);
  return lua_pushboolean(L, 1), 1;
}

/*** What does its work: "io_uring", "linux-aio" or "threads".
@function file:engine
@treturn string */
static int file_engine(lua_State *L) {
  check_file(L);
  LContext *c = aioL_current(L);
  aioL_check_open(L, c);
  return lua_pushstring(L, aio_engine_name(aio_file_engine(c->core, check_file(L)->file))), 1;
}

/*** Its descriptor.
@function file:getfd
@treturn integer */
static int file_getfd(lua_State *L) { return lua_pushinteger(L, aio_file_fd(check_file(L)->file)), 1; }

static int file_text(lua_State *L) {
  const LFile *lf = aioL_check(L, 1, L_FILE);
  lua_pushfstring(L, "aioloop.file (%s): %p", lf->b ? "open" : "closed", lua_topointer(L, 1));
  return 1;
}

void aioL_open_file(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"pread", file_pread}, {"pwrite", file_pwrite}, {"read", file_read}, {"write", file_write},
    {"seek", file_seek}, {"sync", file_sync}, {"datasync", file_datasync}, {"truncate", file_truncate}, {"stat", file_stat},
    {"close", file_close}, {"engine", file_engine}, {"getfd", file_getfd}, {"__close", file_close}, {"__gc", file_close},
    {"__tostring", file_text}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"open", mod_open}, {NULL, NULL}};
  aioL_class(L, rt, L_FILE, methods);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}

/* The classes are made when a script first asks for one of these functions: it would cost every `require`. */
static int mod_files(lua_State *L) {
  LRuntime *rt = aioL_runtime(L);
  lua_settop(L, 0);
  lua_newtable(L);
  aioL_open_buffer(L, rt, 1);
  aioL_open_file(L, rt, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->meta_ref[L_FILE]);
  return 2;
}

void aioL_open_files(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg functions[] = {{"files", mod_files}, {NULL, NULL}};
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
