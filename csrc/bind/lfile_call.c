/* SPDX-License-Identifier: MIT
 * A call to a file: made, handed to the core, waited for, left to the kernel, done.
 *
 * Way      aioL_file_call -> aioL_file_wait -> ticket -> aio_file_submit -> aioL_file_done -> results
 * Owner    lfile.h. A call is freed by who takes its results, or by done when nobody waits any more.
 * Keep     who gives up waiting gives the position and the buffer back at once; the kernel keeps the memory. */
#include <errno.h>
#include <stdlib.h>

#include "lfile.h"

LFileBody *aioL_file_body_new(AioEngine engine, bool direct) { /* NULL: no memory */
  LFileBody *b = malloc(sizeof *b);
  if (!b) return NULL;
  *b = (LFileBody){.refs = 1, .file = aio_file_new(engine, direct)};
  list_init(&b->calls);
  if (b->file) return b;
  free(b);
  return NULL;
}

void aioL_file_body_unref(LFileBody *b) {
  if (--b->refs) return;
  aio_file_unref(b->file);
  aio_input_free(&b->in);
  free(b);
}

/* What was read ahead is to be read again, also by who is about to give back what he has. */
void aioL_file_changed(LFileBody *b) {
  b->changes++;
  aio_input_free(&b->in);
}

/* ---- calls ---- */

static void cancel(LFlight *f) { aio_file_cancel(&container_of(f, LFileCall, f)->op); }

static void release_position(LFileCall *k) {
  if (k->holds_position) k->b->in_use = NULL;
  k->holds_position = false;
}

void aioL_file_call_free(LFlight *f) {
  LFileCall *k = container_of(f, LFileCall, f);
  if (list_linked(&k->link)) list_unlink(&k->link);
  release_position(k);
  if (k->block) aioL_block_over(k->block, k->op.kind == AIO_FILE_READ);
  aioL_block_unref(k->block);
  if (k->op.kind == AIO_FILE_WRITE || k->op.kind == AIO_FILE_TRUNCATE) aioL_file_changed(k->b);
  aio_input_free(&k->in);
  aioL_file_body_unref(k->b);
  free(k);
}

void aioL_file_done(void *opaque) { aioL_flight_done(&((LFileCall *)opaque)->f); }

/* Nobody waits any more: the position and the buffer are free for others, the kernel keeps its memory. */
void aioL_file_leave(LTicket *tk) {
  LFileCall *k = container_of((LFlight *)tk->op, LFileCall, f);
  list_unlink(&k->link);
  if (k->f.over) return;
  if (k->block) aioL_block_leave(k->block, k->op.kind == AIO_FILE_READ);
  release_position(k);
  aioL_flight_leave(tk);
}

LFileCall *aioL_file_call(lua_State *L, LFileBody *b, const LWaitOps *ops, AioFileKind kind, size_t more) { /* [-0, +0, m] */
  LFileCall *k = malloc(sizeof *k + more);
  if (!k) luaL_error(L, "not enough memory");
  *k = (LFileCall){.b = b, .ops = ops, .op = {.kind = kind, .file = b->file, .done = aioL_file_done, .opaque = k}};
  b->refs++;
  return k;
}

/* Submits it and waits. Where no ticket can be had the call stays with the context, and stands in nobody's way. [-0, +n, e] */
int aioL_file_wait(lua_State *L, LContext *c, LFileCall *k) {
  aioL_flight_begin(L, &k->f, c, cancel, aioL_file_call_free);
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

LFileCall *aioL_file_call_fetch(LTicket *tk) {
  LFlight *f = aioL_flight_fetch(tk);
  return f ? container_of(f, LFileCall, f) : NULL;
}

LFileBody *aioL_check_file(lua_State *L) { /* [-0, +0, v] */
  const LFile *lf = aioL_check(L, 1, L_FILE);
  if (!lf->b) luaL_error(L, "the file is closed");
  return lf->b;
}

LBlock *aioL_file_block(lua_State *L, LFileCall *k, size_t size) { /* [-0, +0, e] frees the call where there is no memory */
  LBlock *block = aioL_block_new(size);
  if (block) return k->block = block;
  aioL_file_call_free(&k->f);
  luaL_error(L, "not enough memory");
  return NULL;
}

lua_Integer aioL_check_offset(lua_State *L, int idx) {
  lua_Integer at = luaL_checkinteger(L, idx);
  luaL_argcheck(L, at >= 0, idx, "an offset is not negative");
  return at;
}
