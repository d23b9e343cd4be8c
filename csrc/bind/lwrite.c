/* SPDX-License-Identifier: MIT
 * Writing to streams.
 *
 * Way      write -> aio_stream_write at once -> all is gone: no wait; else LWrite, in the stream's LOut -> ticket, watch ->
 *          on_writable -> aio_stream_write -> over -> results
 * Owner    an LWrite is malloc'ed and anchors its pieces in its context: its writer's stack may be gone before them. The LOut
 *          is there while something is queued; what was left to the loop anchors the stream itself.
 * Keep     first come, first served, and no two writes mix. A write that is given up before its first byte leaves nothing
 *          behind; one that has begun is finished by the loop, or the other end could not tell what is what. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lstream.h"

/*** Streams: connections, pipes, terminals.
@module aioloop.stream */

enum { FEW = 16, ROUNDS = 16, BATCH = 1024 /* IOV_MAX */ };

typedef struct LOut {
  AioLink writes;    /* LWrite, oldest first */
  AioWatch watch;
  AioBH again;       /* for who has been served so often that others are to have their turn */
  LContext *c;       /* counted */
  size_t queued;     /* bytes */
  uint32_t slot;     /* anchors the stream, and keeps run going */
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
  bool ends;         /* no pieces: shut down */
  int error;
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

/* 0: it is through; -EAGAIN; -errno. */
static int push(LWrite *w) {
  if (w->ends) return shut_down(w);
  for (int i = 0; i < ROUNDS && w->left; i++) {
    size_t batch = w->n - w->at < BATCH ? w->n - w->at : BATCH, asked = 0;
    for (size_t k = 0; k < batch; k++) asked += w->v[w->at + k].len;
    int64_t n = aio_stream_write(&w->s->s, w->v + w->at, batch);
    if (n < 0) return (int)n;
    w->at += (uint32_t)aio_pieces_skip(w->v + w->at, w->n - w->at, (size_t)n);
    w->left -= (size_t)n;
    w->s->out->queued -= (size_t)n;
    w->begun = true;
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
    if (rc == 0) rc = w->c->closed ? -ECANCELED : push(w); /* its pieces have gone with its context */
    if (rc == -EAGAIN) return;
    if (rc < 0) i = 0, w->error = rc; /* all that is queued has failed */
    list_unlink(&w->link);
    out->queued -= w->left;
    list_append(over, &w->link);
  }
}

static void on_writable(void *opaque);

/* Sees to it that what is queued will be gone on with. */
static int go_on_later(LStream *s) {
  LOut *out = s->out;
  if (aio_watch_is_open(&out->watch)) return 0;
  if (s->s.fd < 0) return -ESHUTDOWN;
  return aio_watch_again(&out->watch, out->c->core, s->s.fd, AIO_WRITE, on_writable, s);
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

static void take(LTicket *tk, int error, bool last) {
  LOutcome outcome = error ? L_FAILED : L_DONE;
  if (last)
    aioL_take(tk, outcome, error);
  else
    aioL_take_later(tk, outcome, error);
}

/* Tells them, in their order; the stream may be gone afterwards. */
static void tell(LStream *s, AioLink *over) {
  int waiting = 0;
  for (const AioLink *l = over->next; l != over; l = l->next) waiting += container_of(l, LWrite, link)->tk != NULL;
  bool alone = waiting == 1;
  while (!list_empty(over)) {
    LWrite *w = container_of(over->next, LWrite, link);
    LTicket *tk = w->tk;
    int error = w->error;
    list_unlink(&w->link);
    if (error && (w->begun || !tk) && !w->ends) s->write_error = (int16_t)error;
    free_write(w);
    if (!tk) continue;
    tk->op = NULL;
    if (alone && list_empty(over)) {
      take(tk, error, true);
      return;
    }
    take(tk, error, false);
  }
}

static void pump(LStream *s) {
  AioLink over;
  int rc = 0;
  list_init(&over);
  push_all(s, &over);
  if (!list_empty(&s->out->writes)) rc = go_on_later(s);
  if (rc < 0) fail_all(s, rc, &over);
  if (list_empty(&s->out->writes)) free_out(s);
  if (rc == -EBADF) aioL_stream_close(s, true);
  tell(s, &over);
}

static void on_writable(void *opaque) {
  LStream *s = opaque;
  if (s->out->watch.lost)
    aioL_stream_close(s, true);
  else
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
  if (w->begun && !w->ends) {
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

static const LWaitOps write_ops = {.name = "stream:write", .leave = leave, .results = write_results};
static const LWaitOps shutdown_ops = {.name = "stream:shutdown", .leave = leave, .results = write_results};

/* The context that was to go on with it is closed. */
static void end_orphan(LStream *s) {
  AioLink over;
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
  w->begun = done > 0;
}

static int cannot_go_on(lua_State *L, LStream *s, LWrite *w, int rc) {
  if (w->begun) s->write_error = (int16_t)rc;
  drop_write(w);
  if (list_empty(&s->out->writes)) free_out(s);
  return aioL_stream_unwatchable(L, s, rc);
}

/* Its writer does not wait for it. stack: stream, ... `kept`: the stream stays until all is written. */
static int leave_to_loop(lua_State *L, LContext *c, LStream *s, const AioPiece *v, int n, size_t done, bool kept) {
  uint32_t stream_slot = kept && !(s->out && s->out->slot) ? aioL_anchor(L, c, 1, NULL) : 0;
  uint32_t slot = anchor_pieces(L, c, n);
  LWrite *w = s->s.fd < 0 ? NULL : enqueue(L, c, s, slot, v, n);
  if (!w || s->out->slot || s->out->c != c) aioL_unanchor(L, c, &stream_slot);
  if (!w) return luaL_error(L, "not enough memory");
  if (stream_slot) s->out->slot = stream_slot, c->live++;
  s->write_error = 0;
  begin(w, done);
  release_buffers(w);
  int rc = go_on_later(s);
  if (rc < 0) return cannot_go_on(L, s, w, rc);
  return kept ? (lua_settop(L, 1), 1) : aioL_timed_out(L);
}

/* `again`: in the next turn, without asking whether the kernel can take it. */
static int wait_for(lua_State *L, LContext *c, LStream *s, const AioPiece *v, int n, size_t done, bool again) {
  uint32_t slot = anchor_pieces(L, c, n);
  LTicket *tk = aioL_ticket(L, c, v ? &write_ops : &shutdown_ops);
  LWrite *w = s->s.fd < 0 ? NULL : enqueue(L, c, s, slot, v, n);
  if (!w) return aioL_ticket_drop(tk), luaL_error(L, "not enough memory");
  s->write_error = 0;
  begin(w, done);
  w->ends = !v;
  int rc = again ? 0 : go_on_later(s);
  if (rc < 0) return aioL_ticket_drop(tk), cannot_go_on(L, s, w, rc);
  if (again) aio_bh_schedule(&s->out->again);
  w->tk = tk;
  tk->op = w;
  return aioL_wait(L, tk, s->timeout);
}

static size_t gather(lua_State *L, AioPiece *v, int n) { /* [-0, +0, v] returns the number of bytes */
  size_t total = 0;
  for (int i = 0; i < n; i++) {
    v[i].data = aioL_check_bytes(L, i + 2, &v[i].len);
    total += v[i].len;
  }
  return total;
}

/*** Writes all pieces as one, and waits until the kernel has them (see `setbound`). Writes of several tasks come one after the
other. One that is cancelled or timed out before its first byte went out has written nothing; later, the loop writes what is
left of it, as long as the stream is open.
@function stream:write
@tparam string|number|buffer ... pieces; a buffer must not be changed while it is being written
@treturn stream itself; or nil, "timeout"; or nil, "closed"; or nil, message, errno */
static int stream_write(lua_State *L) {
  LStream *s = aioL_check(L, 1, L_STREAM);
  int n = lua_gettop(L) - 1;
  AioPiece few[FEW], *v = n <= FEW ? few : lua_newuserdatauv(L, (size_t)n * sizeof *v, 0);
  LContext *c = aioL_waits_in(L);
  size_t total = gather(L, v, n), done = 0;
  if (s->s.fd < 0) return aioL_closed(L);
  if (s->out && s->out->c->closed) end_orphan(s);
  if (s->write_error) return aioL_fail(L, s->write_error);
  if (!total) return lua_settop(L, 1), 1;
  bool tries = !s->out && (s->timeout <= 0 || aio_may_try(c->core));
  if (tries) {
    int64_t got = aio_stream_write(&s->s, v, n > 0 ? (size_t)n : 0);
    if (got == (int64_t)total) return lua_settop(L, 1), 1;
    if (got < 0 && got != -EAGAIN) return aioL_fail(L, (int)got);
    done = got < 0 ? 0 : (size_t)got;
  }
  bool kept = total - done + (s->out ? s->out->queued : 0) <= s->bound, begun = done > 0;
  if (s->timeout <= 0 && !kept && !begun) return aioL_timed_out(L);
  if (begun) s->write_error = -ENOMEM; /* should there be none for the rest */
  if (kept || s->timeout <= 0) return leave_to_loop(L, c, s, v, n, done, kept);
  return wait_for(L, c, s, v, n, done, !tries && !s->out);
}

/*** Ends the writing half, when all that was written before is gone: the other end reads nil, "eof". Reading goes on.
@function stream:shutdown
@tparam[opt="w"] string how "w"
@treturn stream itself; or nil, message, errno: it is no socket */
static int stream_shutdown(lua_State *L) {
  static const char *const names[] = {"w", NULL};
  LStream *s = aioL_check(L, 1, L_STREAM);
  luaL_checkoption(L, 2, "w", names);
  lua_settop(L, 1);
  LContext *c = aioL_waits_in(L);
  if (s->s.fd < 0) return aioL_closed(L);
  if (s->out && s->out->c->closed) end_orphan(s);
  if (s->write_error) return aioL_fail(L, s->write_error);
  if (!s->out) {
    int rc = aio_stream_shutdown(&s->s);
    return rc < 0 ? aioL_fail(L, rc) : 1;
  }
  if (s->timeout <= 0) return aioL_timed_out(L);
  return wait_for(L, c, s, NULL, 0, 0, false);
}

const luaL_Reg aioL_write_methods[] = {{"write", stream_write}, {"shutdown", stream_shutdown}, {NULL, NULL}};
