/* SPDX-License-Identifier: MIT
 * Reading from streams.
 *
 * Way      read -> look: are the pieces in what has arrived? -> aio_stream_fill, look -> ticket, watch -> on_readable: fill,
 *          look -> results: pieces.  readsome, readinto -> aio_stream_read at once -> ticket, watch -> on_readable ->
 *          results: aio_stream_read into the result itself
 * Owner    what a reader wants is in stream->reading, its delimiters copied: its own stack may be gone before the ticket.
 * Keep     nothing is taken from what has arrived before the results are made, so that a reader who gives up loses no byte.
 *          After a read that found less than it asked for, waiting comes first: another would find nothing. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lstream.h"

/*** Streams: connections, pipes, terminals.
@module aioloop.stream */

enum { SCRATCH = 64 << 10 };

typedef struct LReading {
  uint32_t cap;       /* bytes of this, at least */
  uint32_t n, found;  /* pieces */
  AioWant wants[];    /* behind them the delimiters */
} LReading;

/* ---- waiting ---- */

void aioL_read_close(LStream *s) {
  LTicket *tk = s->reader;
  s->reader = NULL;
  if (tk && !aioL_take_later(tk, L_CLOSED, 0)) tk->op = NULL; /* decided already: its results find no stream */
  aio_watch_close(&s->watch);
  free(s->reading);
  s->reading = NULL;
}

void aioL_read_leave(LTicket *tk) {
  LStream *s = tk->op;
  if (!s) return;
  aio_watch_close(&s->watch);
  if (tk->outcome != L_DONE) s->reader = NULL;
  if (s->s.filter) aioL_out_stir(s);
}

void aioL_read_revoke(lua_State *L, LTicket *tk) {
  UNUSED(L);
  if (tk->op) ((LStream *)tk->op)->reader = NULL;
}

void aioL_read_lost(LStream *s) {
  if (s->watch.lost == -EBADF)
    aioL_stream_close(s, true); /* the number may be somebody else's by now */
  else
    aioL_take(s->reader, L_FAILED, s->watch.lost);
}

static int look(LStream *s);
static size_t missing(const LStream *s);
static int direct_results(lua_State *L, LTicket *tk);
static int read_results(lua_State *L, LTicket *tk);

static const LWaitOps read_ops = {.name = "stream:read", .leave = aioL_read_leave, .results = read_results,
  .revoke = aioL_read_revoke};
static const LWaitOps some_ops = {.name = "stream:readsome", .leave = aioL_read_leave, .results = direct_results,
  .revoke = aioL_read_revoke};
static const LWaitOps into_ops = {.name = "stream:readinto", .leave = aioL_read_leave, .results = direct_results,
  .revoke = aioL_read_revoke};

static void on_readable(void *opaque);

/* Where the other half has the watch for what this one waits for, it will stir this one. */
int aioL_read_watch(LStream *s, LContext *c, AioFn *ready) {
  const AioFilter *f = s->s.filter;
  int rc = aioL_stream_watch(&s->watch, c, s, f ? (AioDir)f->wants[AIO_READ] : AIO_READ, ready);
  if (rc == -EEXIST && f && s->out) return 0;
  if (rc == 0 && f && f->more) aio_watch_stir(&s->watch);
  return rc;
}

static void watch_anew(LStream *s) {
  LTicket *tk = s->reader;
  if (tk->c->closed) return;
  aio_watch_close(&s->watch);
  aioL_out_stir(s);
  int rc = aioL_read_watch(s, tk->c, on_readable);
  if (rc < 0) aioL_take_later(tk, L_FAILED, rc);
}

void aioL_read_stir(LStream *s) {
  if (s->reader && !aio_watch_is_open(&s->watch)) watch_anew(s);
}

/* Not all is there: the filter may wait for something else now, or have more of which the fd knows nothing. */
static void go_on(LStream *s) {
  const AioFilter *f = s->s.filter;
  if (s->watch.dir != f->wants[AIO_READ])
    watch_anew(s);
  else if (f->more)
    aio_watch_stir(&s->watch);
}

/* A task reads for itself when it runs, unless it waits for pieces. Who polls must find the bytes when it is told; and what
 * a filter makes of some bytes may be nothing, for which nobody is to begin to wait again. */
static void on_readable(void *opaque) {
  LStream *s = opaque;
  LTicket *tk = s->reader;
  if (s->watch.lost) {
    aioL_read_lost(s);
    return;
  }
  if (s->s.filter) aioL_out_stir(s);
  bool direct = tk->ops != &read_ops;
  if (direct && !tk->polls && !s->s.filter) {
    aioL_take(tk, L_DONE, 0);
    return;
  }
  int64_t n = aio_stream_fill(&s->s, direct ? 0 : missing(s));
  if (s->reader != tk) { /* a finaliser has closed it, or ended the wait */
    aioL_tls_settle(s);
    return;
  }
  s->uses++;
  if (n == -ENOMEM && !s->s.error)
    aioL_take(tk, L_FAILED, -ENOMEM);
  else if (n != -EAGAIN && (direct || look(s)))
    aioL_take(tk, L_DONE, 0);
  else if (s->s.filter)
    go_on(s);
}

int aioL_read_wait(lua_State *L, LContext *c, LStream *s, const LWaitOps *ops, AioFn *ready) {
  uint16_t uses = s->uses;
  LTicket *tk = aioL_ticket(L, c, ops);
  int rc = s->s.fd < 0 ? -ESHUTDOWN : s->reader || s->uses != uses ? -EBUSY : 0; /* a finaliser, just now */
  if (rc == 0) rc = aioL_read_watch(s, c, ready);
  if (rc < 0) {
    aioL_ticket_drop(tk);
    return aioL_stream_unwatchable(L, s, rc);
  }
  s->reader = tk;
  tk->op = s;
  return aioL_wait(L, tk, s->timeout);
}

static LStream *check_reader(lua_State *L) { /* [-0, +0, v] */
  LStream *s = aioL_check(L, 1, L_STREAM);
  LTicket *tk = s->reader;
  if (tk && !tk->polls && aioL_dead(aioL_task_of(tk)->L)) aioL_take_later(tk, L_CLOSED, 0); /* closed by coroutine.close */
  if (s->reader) luaL_error(L, "another task is reading from the stream");
  return s;
}

/* By us: what came before others closed its fd is there still. */
static bool is_closed(const LStream *s) { return s->s.fd < 0 && !s->s.error; }

/* Whether to read before waiting; who does not wait tries at least once. */
static bool may_try(const LStream *s, LContext *c, bool again) {
  if (s->timeout <= 0) return !again || aio_may_try(c->core);
  return !s->s.drained && aio_may_try(c->core);
}

static int ended(lua_State *L, LStream *s, int rc) { /* [-0, +2 or 3, m] */
  if (rc == 0 || rc == -ENODATA) return aioL_eof(L);
  if (rc != -EMSGSIZE) return aioL_stream_fail(L, s, rc);
  return luaL_pushfail(L), lua_pushliteral(L, "too long"), lua_pushinteger(L, EMSGSIZE), 3;
}

/* ---- what is there ---- */

/* The kernel's bytes go through memory that is used over and over. Should there be none for the string, the stream is
 * broken: they are lost. */
static __attribute__((noinline)) int64_t push_some(lua_State *L, LStream *s, size_t max) { /* [-0, +1 if > 0, m] */
  char scratch[SCRATCH];
  int64_t n = aio_stream_read(&s->s, scratch, max < sizeof scratch ? max : sizeof scratch);
  if (n <= 0) return n;
  int16_t error = s->s.error;
  s->s.error = -ENOMEM;
  lua_pushlstring(L, scratch, (size_t)n);
  s->s.error = error;
  return n;
}

/* What a filter does may run finalisers: no memory of the buffer's is at stake meanwhile. */
static __attribute__((noinline)) int64_t into_buffer_filtered(lua_State *L, LStream *s) { /* [-0, +1 if > 0, v] */
  char scratch[SCRATCH];
  LBuffer *b = aioL_check_buffer(L, 2);
  size_t cap = b->cap;
  int64_t n = aio_stream_read(&s->s, scratch, cap < sizeof scratch ? cap : sizeof scratch);
  if (n <= 0) return n;
  b = aioL_check_buffer(L, 2);
  if (b->cap < cap) luaL_error(L, "the buffer was used by a finaliser");
  memcpy(aioL_buffer_block(L, b)->data, scratch, (size_t)n);
  return b->len = (size_t)n, lua_pushinteger(L, n), n;
}

static int64_t into_buffer(lua_State *L, LStream *s) { /* [-0, +1 if > 0, v] stack: stream, buffer */
  if (s->s.filter && !aio_input_size(&s->s.in)) return into_buffer_filtered(L, s);
  LBuffer *b = aioL_check_buffer(L, 2);
  char *data = aioL_buffer_block(L, b)->data;
  size_t have = aio_input_size(&s->s.in);
  int64_t n = (int64_t)(have < b->cap ? have : b->cap);
  if (have)
    memcpy(data, aio_input_bytes(&s->s.in), (size_t)n), aio_stream_take(&s->s, (size_t)n), s->uses++;
  else
    n = aio_stream_read(&s->s, data, b->cap);
  if (n > 0) b->len = (size_t)n, lua_pushinteger(L, n);
  return n;
}

static int64_t some(lua_State *L, LStream *s) { /* [-0, +1 if > 0, v] stack: stream, maximum */
  size_t max = (size_t)lua_tointeger(L, 2), have = aio_input_size(&s->s.in);
  if (!have) return push_some(L, s, max);
  size_t n = have < max ? have : max;
  uint16_t uses = s->uses;
  lua_pushlstring(L, aio_input_bytes(&s->s.in), n);
  if (s->uses != uses) luaL_error(L, "the stream was used by a finaliser");
  aio_stream_take(&s->s, n);
  s->uses++;
  return (int64_t)n;
}

static int direct(lua_State *L, LStream *s) { /* [-0, +n, v] 0: nothing is there */
  int64_t n = lua_isinteger(L, 2) ? some(L, s) : into_buffer(L, s);
  return n > 0 ? 1 : n == -EAGAIN ? 0 : ended(L, s, (int)n);
}

static int read_direct(lua_State *L, LStream *s, const LWaitOps *ops) {
  LContext *c = aioL_waits_in(L);
  if (is_closed(s)) return aioL_closed(L);
  int n = aio_input_size(&s->s.in) || s->s.eof || s->s.error || may_try(s, c, false) ? direct(L, s) : 0;
  if (n) return n;
  if (s->timeout <= 0) return aioL_timed_out(L);
  return aioL_read_wait(L, c, s, ops, on_readable);
}

static int direct_results(lua_State *L, LTicket *tk) {
  LStream *s = tk->op;
  LContext *c = tk->c;
  const LWaitOps *ops = lua_isinteger(L, 2) ? &some_ops : &into_ops;
  if (!s) return aioL_closed(L);
  s->reader = NULL;
  lua_settop(L, 2);
  int n = direct(L, s);
  if (n) return n;
  aioL_check_open(L, c);
  return aioL_read_wait(L, c, s, ops, on_readable); /* somebody else has read from the same file */
}

/*** Reads what is there, as soon as there is anything.
@function stream:readsome
@tparam[opt=65536] integer max bytes, at most
@treturn string at least a byte; or nil, "eof"; or nil, "timeout"; or nil, "closed"; or nil, message, errno */
static int stream_readsome(lua_State *L) {
  LStream *s = check_reader(L);
  lua_Integer max = luaL_optinteger(L, 2, SCRATCH);
  luaL_argcheck(L, max > 0, 2, "at least one byte");
  lua_settop(L, 1);
  lua_pushinteger(L, max);
  return read_direct(L, s, &some_ops);
}

/*** The same into a buffer, in place of what was there, without making a string.
@function stream:readinto
@tparam buffer buf
@treturn integer how many bytes there are; or nil, "eof", and so on as for `readsome` */
static int stream_readinto(lua_State *L) {
  LStream *s = check_reader(L);
  const LBuffer *b = aioL_check_buffer(L, 2);
  luaL_argcheck(L, b->cap > 0, 2, "the buffer has no room");
  lua_settop(L, 2);
  return read_direct(L, s, &into_ops);
}

/*** How many bytes have arrived and were not taken, because `read` needed more. `readsome` returns them at once.
@function stream:buffered
@treturn integer 0 also of a stream that is closed */
static int stream_buffered(lua_State *L) {
  const LStream *s = aioL_check(L, 1, L_STREAM);
  return lua_pushinteger(L, (lua_Integer)aio_input_size(&s->s.in)), 1;
}

/* ---- pieces ---- */

/* Bytes of the input that those found take. */
static size_t taken(const LReading *r) {
  size_t n = 0;
  for (uint32_t i = 0; i < r->found; i++) n += r->wants[i].used;
  return n;
}

/* 1: all are there; 0: more must come; -ENODATA, -EMSGSIZE, -errno: why there is no more than those found. */
static int look(LStream *s) {
  LReading *r = s->reading;
  for (size_t from = taken(r); r->found < r->n; r->found++) {
    AioWant *w = &r->wants[r->found];
    int rc = aio_input_find(&s->s.in, from, w, s->s.eof);
    if (rc == 0) return s->s.error;
    if (rc < 0) return rc;
    from += w->used;
  }
  return 1;
}

/* How many bytes more there must be, at least; a guess. */
static size_t missing(const LStream *s) {
  const LReading *r = s->reading;
  const AioWant *w = &r->wants[r->found];
  size_t have = aio_input_size(&s->s.in) - taken(r);
  if (w->kind == AIO_WANT_COUNT) return w->limit > have ? w->limit - have : 0;
  return w->kind == AIO_WANT_ALL ? SIZE_MAX : 0;
}

/* Makes the results, and then takes what they are made of. A finaliser that interferes is found out. */
static int give(lua_State *L, LStream *s, int code) {
  LReading *r = s->reading;
  uint16_t uses = s->uses;
  size_t from = 0, found = r->found;
  bool no_number = false;
  int top = lua_gettop(L);
  luaL_checkstack(L, found < INT32_MAX - 8 ? (int)found + 8 : INT32_MAX, "too many results");
  for (size_t i = 0; i < found && !no_number; i++) {
    aioL_to_piece(L, &s->s.in, from, &r->wants[i]);
    if (s->uses != uses) return luaL_error(L, "the stream was used by a finaliser");
    from += r->wants[i].used;
    no_number = lua_isnil(L, -1); /* what comes behind it stays where it is */
  }
  if (code == -ENODATA) from += r->wants[found].used; /* white space before a number that is not there */
  aio_stream_take(&s->s, from);
  s->uses++;
  if (no_number)
    lua_pushliteral(L, "not a number");
  else if (code < 0)
    ended(L, s, code);
  return lua_gettop(L) - top;
}

static int read_results(lua_State *L, LTicket *tk) {
  LStream *s = tk->op;
  if (!s) return aioL_closed(L);
  s->reader = NULL;
  return give(L, s, look(s));
}

/* Room for n wants and their delimiters. */
static LReading *reading(lua_State *L, LStream *s, size_t n, size_t more) { /* [-0, +0, m] */
  size_t size = sizeof(LReading) + n * sizeof(AioWant) + more;
  if (!s->reading || s->reading->cap < size) {
    LReading *r = realloc(s->reading, size);
    if (!r) luaL_error(L, "not enough memory");
    r->cap = size < UINT32_MAX ? (uint32_t)size : UINT32_MAX;
    s->reading = r;
  }
  s->uses++;
  s->reading->n = (uint32_t)n;
  s->reading->found = 0;
  return s->reading;
}

static size_t check_max(lua_State *L, int idx) { /* [-0, +0, v] on top */
  int whole = 0;
  lua_Integer max = lua_type(L, -1) == LUA_TNUMBER ? lua_tointegerx(L, -1, &whole) : 0;
  luaL_argcheck(L, whole, idx, "max must be a number of bytes");
  return aioL_count(L, idx, max);
}

/* Goes through the table at idx once: it may come with every read. The delimiter stays on top. */
static void check_delim(lua_State *L, int idx, AioWant *w) { /* [-0, +1, v] */
  static const char *const names[] = {"until_", "max", "keep", NULL};
  *w = (AioWant){.kind = AIO_WANT_DELIM, .limit = SIZE_MAX};
  lua_pushnil(L);
  int delim = lua_gettop(L);
  for (lua_pushnil(L); lua_next(L, idx); lua_pop(L, 1)) {
    const char *name = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "";
    if (!strcmp(name, "until_"))
      lua_copy(L, -1, delim);
    else if (!strcmp(name, "max"))
      w->limit = check_max(L, idx);
    else if (!strcmp(name, "keep"))
      w->keep = lua_toboolean(L, -1);
    else
      aioL_check_names(L, idx, 0, names); /* raises */
  }
  if (lua_type(L, delim) == LUA_TSTRING) w->delim = lua_tolstring(L, delim, &w->delim_len);
  luaL_argcheck(L, w->delim_len, idx, "until_ must be a string of at least one byte");
}

static void check_format(lua_State *L, int idx, AioWant *w) { /* [-0, +0 or 1, v] */
  if (lua_type(L, idx) == LUA_TTABLE)
    check_delim(L, idx, w);
  else
    aioL_check_format(L, idx, w);
}

/* The formats are at 2 and above; a number behind the only one that has no length of its own is its maximum, nil is none. */
static void check_formats(lua_State *L, LStream *s) { /* [-0, +n, v] */
  int n = lua_gettop(L) - 1;
  if (n == 2 && lua_isnil(L, 3)) n = 1;
  bool max = n == 2 && lua_type(L, 3) == LUA_TNUMBER && lua_type(L, 2) != LUA_TNUMBER;
  size_t limit = max ? aioL_check_count(L, 3) : 0, more = 0;
  AioWant few[4], *wants = few;
  if (max) n = 1;
  if (n > 4) wants = lua_newuserdatauv(L, (size_t)n * sizeof *wants, 0);
  luaL_checkstack(L, n + 8, "too many formats");
  for (int i = 0; i < n; i++) check_format(L, i + 2, &wants[i]), more += wants[i].delim_len;
  if (max && wants->kind == AIO_WANT_NUMBER) luaL_argerror(L, 3, "a numeral has no maximum");
  if (max) wants->limit = limit;
  LReading *r = reading(L, s, (size_t)n, more);
  char *delims = (char *)(r->wants + n);
  for (int i = 0; i < n; i++) {
    r->wants[i] = wants[i];
    if (!wants[i].delim_len) continue;
    r->wants[i].delim = memcpy(delims, wants[i].delim, wants[i].delim_len);
    delims += wants[i].delim_len;
  }
}

/*** Reads pieces; waits until all of them are there, and takes them together. A last one may be shorter: at the end of the
stream a line, or what comes before a string, is returned also when its end is missing ("L" and `keep` tell).
@function stream:read
@tparam[opt="l"] string|integer|table ... formats: "l" a line, "L" with its end, "n" a numeral, "a" all up to the end, a number
  of bytes (0: "", as soon as there is anything to read, which stays there), or {until_=string, max=bytes, keep=boolean}: what
  comes before that string, and with `keep` the string, too
@tparam[opt] integer max behind the only format "l", "L", "a" or table: how many bytes that piece may have at most, without
  its end
@return a value for each format; in place of the first that there is none for: nil, "eof"; nil, "too long", errno (nothing of it
  is taken); nil, message, errno. Or nil, "timeout"; nil, "closed": nothing is taken */
static int stream_read(lua_State *L) {
  LStream *s = check_reader(L);
  if (lua_gettop(L) == 1) lua_pushliteral(L, "l");
  LContext *c = aioL_waits_in(L);
  if (is_closed(s)) return aioL_closed(L);
  if (s->reader) return luaL_error(L, "another task is reading from the stream");
  check_formats(L, s);
  int code;
  for (bool again = false; (code = look(s)) == 0 && may_try(s, c, again); again = true) {
    uint16_t uses = s->uses;
    int64_t n = aio_stream_fill(&s->s, missing(s));
    if (n == -ESHUTDOWN) return ended(L, s, (int)n);
    if (s->uses != uses) return luaL_error(L, "the stream was used by a finaliser");
    s->uses++;
    if (n == -ENOMEM && !s->s.error) return luaL_error(L, "not enough memory");
    if (n == -EAGAIN) break;
  }
  if (code) return give(L, s, code);
  if (s->timeout <= 0) return aioL_timed_out(L);
  return aioL_read_wait(L, c, s, &read_ops, on_readable);
}

const luaL_Reg aioL_read_methods[] = {{"read", stream_read}, {"readsome", stream_readsome}, {"readinto", stream_readinto},
  {"buffered", stream_buffered}, {NULL, NULL}};
