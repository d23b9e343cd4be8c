/* SPDX-License-Identifier: MIT
 * What is to be written to a stream, and waits for the kernel to take it.
 *
 * Way      lwrite.c -> LWrite, in the stream's LOut -> ticket, watch -> on_writable -> pump -> push -> over -> tell -> results
 * Owner    an LWrite is malloc'ed and anchors its pieces in its context: its writer's stack may be gone before them. The LOut
 *          is there while something is queued; what was left to the loop anchors the stream itself.
 * Keep     first come, first served, and no two writes mix. A write that is given up before its first byte leaves nothing
 *          behind; one that has begun is finished by the loop, or the other end could not tell what is what. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lstream.h"

enum { ROUNDS = 16, BATCH = 1024 /* IOV_MAX */ };

typedef struct LOut {
  AioLink writes;    /* LWrite, oldest first */
  AioWatch watch;
  AioBH again;       /* for who has been served so often that others are to have their turn */
  LContext *c;       /* counted */
  size_t queued;     /* bytes */
  uint32_t slot;     /* anchors the stream, and keeps run going */
  bool pushing;      /* a filter may run finalisers meanwhile: nothing of this is freed */
} LOut;

typedef struct LWrite {
  AioLink link;
  LStream *s;
  LContext *c;       /* counted */
  LTicket *tk;       /* NULL: nobody waits */
  uint32_t slot;     /* anchors the pieces */
  uint32_t n, at;    /* pieces; the first that is not through */
  size_t left;       /* bytes */
  bool begun;
  bool given_up;     /* while it was pushed: if it has not begun then, it goes */
  uint8_t kind;
  int error;
  int done;          /* W_SOME: bytes */
  AioPiece v[];      /* behind them, for each its LBlock, or NULL */
} LWrite;

static LBlock **blocks_of(LWrite *w) { return (LBlock **)(void *)(w->v + w->n); }
static lua_State *state_of(const LContext *c) { return c->L ? c->L : c->rt->main; }

/* ---- life ---- */

/* Nobody waits for it, or not any more: its buffers are their owners' again. */
static void release_buffers(LWrite *w) {
  for (uint32_t i = 0; i < w->n; i++)
    if (blocks_of(w)[i]) aioL_block_leave(blocks_of(w)[i], false);
}

static void free_write(LWrite *w) {
  LContext *c = w->c;
  LBlock **blocks = blocks_of(w);
  for (uint32_t i = 0; i < w->n; i++) {
    if (!blocks[i]) continue;
    aioL_block_over(blocks[i], false);
    aioL_block_unref(blocks[i]);
  }
  if (w->tk) w->tk->op = NULL;
  aioL_unanchor(state_of(c), c, &w->slot);
  free(w);
  aioL_context_unref(c->rt->main, c);
}

static void let_stream_go(LOut *out) {
  if (!out->slot) return;
  aioL_unanchor(state_of(out->c), out->c, &out->slot);
  if (!out->c->closed) out->c->live--;
}

static void free_out(LStream *s) {
  LOut *out = s->out;
  LContext *c = out->c;
  s->out = NULL;
  aio_watch_close(&out->watch);
  if (c->core && !aio_context_closed(c->core)) aio_bh_close(&out->again);
  let_stream_go(out);
  free(out);
  if (s->s.filter) aioL_read_stir(s);
  aioL_context_unref(c->rt->main, c);
}

static void drop_write(LWrite *w) {
  LStream *s = w->s;
  list_unlink(&w->link);
  s->out->queued -= w->left;
  free_write(w);
}

void aioL_write_close(LStream *s) {
  if (!s->out) return;
  while (!list_empty(&s->out->writes)) {
    LWrite *w = container_of(s->out->writes.next, LWrite, link);
    LTicket *tk = w->tk;
    drop_write(w);
    if (tk) aioL_take_later(tk, L_CLOSED, 0);
  }
  free_out(s);
}

/* ---- handing over ---- */

static int shut_down(LWrite *w) {
  w->error = aio_stream_shutdown(&w->s->s);
  return 0;
}

static int find_outcome(LWrite *w) { /* its error is no other's */
  int rc = aio_socket_outcome(w->s->s.fd);
  if (rc == -EINPROGRESS) return -EAGAIN;
  w->error = rc;
  return 0;
}

static int push_some(LWrite *w) {
  int64_t n = aio_stream_write(&w->s->s, w->v, 1);
  if (n < 0) return (int)n;
  w->done = (int)n;
  w->s->out->queued -= w->left;
  w->left = 0;
  return 0;
}

/* 0: it is through; -EAGAIN; -errno. */
static int push(LWrite *w) {
  if (w->c->closed) return -ECANCELED;
  if (w->kind == W_END) return shut_down(w);
  if (w->kind == W_CONNECT) return find_outcome(w);
  if (w->kind == W_SOME && !w->s->s.filter) return push_some(w);
  for (int i = 0; i < ROUNDS && w->left; i++) {
    size_t batch = w->n - w->at < BATCH ? w->n - w->at : BATCH, asked = 0;
    for (size_t k = 0; k < batch; k++) asked += w->v[w->at + k].len;
    if (w->c->closed) return -ECANCELED; /* its pieces have gone with its context */
    int64_t n = aio_stream_write(&w->s->s, w->v + w->at, batch);
    w->begun |= aioL_out_held(w->s);
    if (n < 0) return (int)n;
    w->at += (uint32_t)aio_pieces_skip(w->v + w->at, w->n - w->at, (size_t)n);
    w->left -= (size_t)n;
    w->s->out->queued -= (size_t)n;
    w->begun = true;
    if (w->kind == W_SOME) w->done += (int)n;
    if ((size_t)n < asked) return -EAGAIN;
  }
  return w->left ? -EAGAIN : 0;
}

/* Moves what is through, or has failed, to `over`. */
static void push_all(LStream *s, AioLink *over) {
  LOut *out = s->out;
  int rc = 0;
  for (int i = 0; i < ROUNDS && !list_empty(&out->writes); i++) {
    LWrite *w = container_of(out->writes.next, LWrite, link);
    if (rc == 0) rc = push(w);
    if (rc == -EAGAIN) return;
    if (rc < 0) i = 0, w->error = rc; /* all that is queued has failed */
    list_unlink(&w->link);
    out->queued -= w->left;
    list_append(over, &w->link);
  }
}

static void on_writable(void *opaque);

/* Sees to it that what is queued will be gone on with. Where who reads has the watch that this needs, he stirs this half. */
static int go_on_later(LStream *s) {
  LOut *out = s->out;
  const AioFilter *f = s->s.filter;
  AioDir dir = f ? (AioDir)f->wants[AIO_WRITE] : AIO_WRITE;
  if (aio_watch_is_open(&out->watch) && out->watch.dir == dir) return 0;
  if (s->s.fd < 0) return -ESHUTDOWN;
  aio_watch_close(&out->watch);
  int rc = aioL_stream_watch(&out->watch, out->c, s, dir, on_writable);
  out->watch.nests = true; /* who is through may poll until the next is, too */
  if (!f) return rc;
  aioL_read_stir(s);
  return rc == -EEXIST && s->reader ? 0 : rc;
}

void aioL_out_retry(LStream *s) {
  if (s->out && !s->out->c->closed) aio_bh_schedule(&s->out->again);
}

void aioL_out_stir(LStream *s) {
  if (s->out && !aio_watch_is_open(&s->out->watch)) aioL_out_retry(s);
}

static void fail_all(LStream *s, int rc, AioLink *over) {
  while (!list_empty(&s->out->writes)) {
    LWrite *w = container_of(s->out->writes.next, LWrite, link);
    w->error = rc;
    list_unlink(&w->link);
    s->out->queued -= w->left;
    list_append(over, &w->link);
  }
}

static void take(LTicket *tk, int error, int done, bool last) {
  LOutcome outcome = error ? L_FAILED : L_DONE;
  if (last)
    aioL_take(tk, outcome, error ? error : done);
  else
    aioL_take_later(tk, outcome, error ? error : done);
}

/* Tells them, in their order; the stream may be gone afterwards. */
static void tell(LStream *s, AioLink *over) {
  int waiting = 0;
  for (const AioLink *l = over->next; l != over; l = l->next) waiting += container_of(l, LWrite, link)->tk != NULL;
  bool alone = waiting == 1;
  while (!list_empty(over)) {
    LWrite *w = container_of(over->next, LWrite, link);
    LTicket *tk = w->tk;
    int error = w->error, done = w->done;
    list_unlink(&w->link);
    if (error && (w->begun || !tk) && w->kind == W_ALL) s->write_error = (int16_t)error;
    free_write(w);
    if (!tk) continue;
    tk->op = NULL;
    if (alone && list_empty(over)) {
      take(tk, error, done, true);
      return;
    }
    take(tk, error, done, false);
  }
}

static void drop_given_up(LOut *out) {
  for (AioLink *l = out->writes.next, *next; l != &out->writes; l = next) {
    LWrite *w = container_of(l, LWrite, link);
    next = l->next;
    if (w->given_up && !w->begun) drop_write(w);
  }
}

static void pump(LStream *s) {
  AioLink over;
  int rc = 0;
  list_init(&over);
  s->out->pushing = true;
  push_all(s, &over);
  s->out->pushing = false;
  drop_given_up(s->out);
  if (!list_empty(&s->out->writes)) rc = go_on_later(s);
  if (rc < 0) fail_all(s, rc, &over);
  if (list_empty(&s->out->writes)) free_out(s);
  if (rc == -EBADF) aioL_stream_close(s, true);
  aioL_tls_settle(s);
  tell(s, &over);
}

static void on_writable(void *opaque) {
  LStream *s = opaque;
  if (s->out->watch.lost == -EBADF) {
    aioL_stream_close(s, true);
    return;
  }
  if (s->s.filter && s->reader && !aio_watch_is_open(&s->watch)) { /* who reads has waited for this, too, and goes first */
    aio_watch_close(&s->out->watch);
    aioL_read_stir(s);
    return;
  }
  pump(s);
}

static void on_again(void *opaque) { pump(opaque); }

/* ---- waiting ---- */

/* It is given up: what has begun is finished all the same, and its buffers are nobody's until then. */
static void leave(LTicket *tk) {
  LWrite *w = tk->op;
  if (!w) return;
  LStream *s = w->s;
  w->tk = NULL;
  w->given_up = true;
  if (w->begun || s->out->pushing) {
    release_buffers(w);
    return;
  }
  drop_write(w);
  if (list_empty(&s->out->writes)) free_out(s);
}

static int write_results(lua_State *L, LTicket *tk) {
  UNUSED(tk);
  return lua_pushvalue(L, 1), 1;
}

static int some_results(lua_State *L, LTicket *tk) { return lua_pushinteger(L, tk->err), 1; }

static const LWaitOps wait_ops[] = {
  [W_ALL] = {.name = "stream:write", .leave = leave, .results = write_results},
  [W_SOME] = {.name = "stream:writesome", .leave = leave, .results = some_results},
  [W_END] = {.name = "stream:shutdown", .leave = leave, .results = write_results},
  [W_CONNECT] = {.name = "socket:connect", .leave = leave, .results = write_results}};

void aioL_out_check(LStream *s) {
  AioLink over;
  if (!s->out || !s->out->c->closed || s->out->pushing) return;
  list_init(&over);
  fail_all(s, -ECANCELED, &over);
  free_out(s);
  tell(s, &over);
}

static LOut *new_out(LContext *c, LStream *s) { /* NULL: no memory */
  LOut *out = malloc(sizeof *out);
  if (!out) return NULL;
  *out = (LOut){.c = aioL_context_ref(c)};
  list_init(&out->writes);
  aio_bh_init_local(&out->again, c->core, on_again, s);
  return out;
}

/* stack: stream, pieces. Anchors them; their bytes are not copied. */
static uint32_t anchor_pieces(lua_State *L, LContext *c, int n) { /* [-0, +0, m] */
  if (n == 0) return 0;
  if (n == 1) return aioL_anchor(L, c, 2, NULL);
  lua_createtable(L, n, 0);
  for (int i = 1; i <= n; i++) lua_pushvalue(L, i + 1), lua_rawseti(L, -2, i);
  uint32_t slot = aioL_anchor(L, c, -1, NULL);
  lua_pop(L, 1);
  return slot;
}

/* Whether the pieces are where they were found. A finaliser has run since, and may have given a buffer other memory. */
static bool unmoved(lua_State *L, const AioPiece *v, int n) {
  for (int i = 0; i < n; i++) {
    const LBuffer *b = lua_type(L, i + 2) == LUA_TUSERDATA ? lua_touserdata(L, i + 2) : NULL;
    if (!b || !v[i].len) continue;
    const char *data = b->block ? b->block->data : NULL, *piece = v[i].data;
    if (!data || piece < data || piece + v[i].len > data + b->len) return false;
  }
  return true;
}

/* Nothing is raised here, and no finaliser runs. Takes the anchor. NULL: no memory. */
static LWrite *enqueue(lua_State *L, LContext *c, LStream *s, uint32_t slot, const AioPiece *v, int n) {
  LWrite *w = malloc(sizeof *w + (size_t)n * (sizeof *v + sizeof(LBlock *)));
  if (w && !s->out) s->out = new_out(c, s);
  if (!w || !s->out) {
    free(w);
    return aioL_unanchor(L, c, &slot), NULL;
  }
  *w = (LWrite){.s = s, .c = aioL_context_ref(c), .slot = slot, .n = (uint32_t)n};
  for (int i = 0; i < n; i++) {
    const LBuffer *b = lua_type(L, i + 2) == LUA_TUSERDATA ? lua_touserdata(L, i + 2) : NULL;
    LBlock *block = blocks_of(w)[i] = b ? b->block : NULL;
    w->v[i] = v[i];
    w->left += v[i].len;
    if (block) atomic_fetch_add(&block->refs, 1), aioL_block_wait(block);
  }
  list_append(&s->out->writes, &w->link);
  s->out->queued += w->left;
  return w;
}

static void begin(LWrite *w, size_t done) {
  w->s->out->queued -= done;
  w->left -= done;
  w->at = (uint32_t)aio_pieces_skip(w->v, w->n, done);
  w->begun = done > 0 || (aioL_out_held(w->s) && w->s->out->writes.next == &w->link);
}

static int cannot_go_on(lua_State *L, LStream *s, LWrite *w, int rc) {
  if (w->begun) s->write_error = (int16_t)rc;
  drop_write(w);
  if (list_empty(&s->out->writes)) free_out(s);
  return aioL_stream_unwatchable(L, s, rc);
}

bool aioL_out_held(const LStream *s) { return s->s.filter && s->s.filter->held; }

size_t aioL_out_queued(const LStream *s) { return s->out ? s->out->queued : 0; }

/* Nothing was queued: a finaliser has interfered, or (fine) there was no memory. */
static int refuse(lua_State *L, LContext *c, const LStream *s, uint32_t slot, bool fine) { /* [-0, +2, v] */
  if (!fine) aioL_unanchor(L, c, &slot);
  if (s->s.fd < 0) return aioL_closed(L);
  return luaL_error(L, fine ? "not enough memory" : "a buffer was changed while it was being written");
}

int aioL_out_leave(lua_State *L, LContext *c, LStream *s, const AioPiece *v, int n, size_t done, bool kept) {
  uint32_t stream_slot = kept && !(s->out && s->out->slot) ? aioL_anchor(L, c, 1, NULL) : 0;
  uint32_t slot = anchor_pieces(L, c, n);
  bool fine = s->s.fd >= 0 && unmoved(L, v, n);
  LWrite *w = fine ? enqueue(L, c, s, slot, v, n) : NULL;
  if (!w || s->out->slot || s->out->c != c) aioL_unanchor(L, c, &stream_slot);
  if (!w) return refuse(L, c, s, slot, fine);
  if (stream_slot) s->out->slot = stream_slot, c->live++;
  s->write_error = 0;
  begin(w, done);
  release_buffers(w);
  int rc = go_on_later(s);
  if (rc < 0) return cannot_go_on(L, s, w, rc);
  return kept ? (lua_settop(L, 1), 1) : aioL_timed_out(L);
}

int aioL_out_wait(lua_State *L, LContext *c, LStream *s, LWriteKind kind, const AioPiece *v, int n, size_t done, bool again) {
  uint32_t slot = anchor_pieces(L, c, n);
  LTicket *tk = aioL_ticket(L, c, &wait_ops[kind]);
  bool fine = s->s.fd >= 0 && unmoved(L, v, n);
  LWrite *w = fine ? enqueue(L, c, s, slot, v, n) : NULL;
  if (!w) return aioL_ticket_drop(tk), refuse(L, c, s, slot, fine);
  s->write_error = 0;
  begin(w, done);
  w->kind = (uint8_t)kind;
  if (kind == W_SOME) w->done = (int)done;
  int rc = again ? 0 : go_on_later(s);
  if (rc < 0) return aioL_ticket_drop(tk), cannot_go_on(L, s, w, rc);
  if (again) aio_bh_schedule(&s->out->again);
  w->tk = tk;
  tk->op = w;
  return aioL_wait(L, tk, s->timeout);
}
