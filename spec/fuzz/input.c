/* SPDX-License-Identifier: MIT
 * A fuzzer's view of the input: whatever bytes come, in whatever portions, and however many pieces are wanted, found,
 * taken or given up, each answer is that of a model which knows the bytes as a whole.
 *
 * Way      bytes -> a script of steps, and a text -> wants -> aio_input_find against `model` -> portions of the text ->
 *          found: take, or give up; now and then memory is refused
 * Keep     the model is written from aio.h, for being read, and shares nothing with input.c. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool no_memory;

void *aio__realloc(void *p, size_t size) { /* the core's only door to memory */
  if (size) return no_memory ? NULL : realloc(p, size);
  free(p);
  return NULL;
}

#define MUST(cond) ((cond) ? (void)0 : failed(__LINE__, #cond))

static _Noreturn void failed(int line, const char *what) {
  fprintf(stderr, "spec/fuzz/input.c:%d: %s\n", line, what);
  abort();
}

/* ---- the model: of the first n bytes, of which eof says whether they are all ---- */

typedef struct Answer {
  int rc;
  size_t skip, len, used;
} Answer;

static Answer piece(size_t skip, size_t len, size_t used) { return (Answer){1, skip, len, used}; }
static Answer no(int rc) { return (Answer){.rc = rc}; }

static Answer model_count(size_t n, bool eof, size_t limit) {
  if (n >= limit && n > 0) return piece(0, limit, limit);
  if (!eof) return no(0);
  return n ? piece(0, n, n) : no(-ENODATA);
}

static Answer model_some(size_t n, bool eof, size_t limit) {
  if (n == 0) return no(eof ? -ENODATA : 0);
  return n < limit ? piece(0, n, n) : piece(0, limit, limit);
}

static Answer model_all(size_t n, bool eof, size_t limit) {
  if (n > limit) return no(-EMSGSIZE);
  return eof ? piece(0, n, n) : no(0);
}

static Answer model_delim(const char *s, size_t n, bool eof, const AioWant *w) {
  for (size_t at = 0; at + w->delim_len <= n; at++) {
    if (memcmp(s + at, w->delim, w->delim_len) != 0) continue;
    if (at > w->limit) return no(-EMSGSIZE);
    return piece(0, w->keep ? at + w->delim_len : at, at + w->delim_len);
  }
  /* It may begin with the last bytes that came, all but one of its own. */
  if (!eof) return no(n >= w->delim_len && n - w->delim_len >= w->limit ? -EMSGSIZE : 0);
  if (n == 0) return no(-ENODATA);
  return n > w->limit ? no(-EMSGSIZE) : piece(0, n, n);
}

typedef enum Where { SIGN, FIRST, SECOND, WHOLE, FRACTION, EXPONENT_SIGN, EXPONENT, OVER } Where;

static bool is_digit(char c, bool hex) {
  return (c >= '0' && c <= '9') || (hex && ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')));
}

/* Where a numeral goes on behind c; OVER: c does not belong to it. */
static Where step(Where at, char c, bool *hex, bool *digits) {
  char e = *hex ? 'p' : 'e';
  bool begins_exponent = *digits && (c == e || c == e - 'a' + 'A');
  switch (at) {
    case SIGN:
      if (c == '+' || c == '-') return FIRST;
      /* fall through */
    case FIRST:
      if (c == '0') return *digits = true, SECOND;
      break;
    case SECOND:
      if (c == 'x' || c == 'X') return *hex = true, *digits = false, WHOLE;
      break;
    case EXPONENT_SIGN:
      if (c == '+' || c == '-') return EXPONENT;
      /* fall through */
    case EXPONENT: return is_digit(c, false) ? EXPONENT : OVER;
    default: break;
  }
  if (is_digit(c, *hex)) return *digits = true, at == FRACTION ? FRACTION : WHOLE;
  if (c == '.' && at != FRACTION) return FRACTION;
  return begins_exponent ? EXPONENT_SIGN : OVER;
}

static Answer model_number(const char *s, size_t n, bool eof) {
  size_t skip = 0, len = 0;
  bool hex = false, digits = false;
  while (skip < n && ((s[skip] >= '\t' && s[skip] <= '\r') || s[skip] == ' ')) skip++;
  Where at = SIGN;
  for (; len <= 200 && skip + len < n && at != OVER; len += at != OVER) at = step(at, s[skip + len], &hex, &digits);
  if (len > 200) return piece(skip, 0, skip + 200);
  if (at != OVER && !eof) return no(0);
  if (skip == n) return (Answer){-ENODATA, skip, 0, skip};
  return piece(skip, len, skip + len);
}

static Answer model(const char *s, size_t n, bool eof, const AioWant *w) {
  switch (w->kind) {
    case AIO_WANT_COUNT: return model_count(n, eof, w->limit);
    case AIO_WANT_SOME: return model_some(n, eof, w->limit);
    case AIO_WANT_ALL: return model_all(n, eof, w->limit);
    case AIO_WANT_DELIM: return model_delim(s, n, eof, w);
    default: return model_number(s, n, eof);
  }
}

static void same(Answer a, int rc, const AioWant *w) {
  MUST(rc == a.rc);
  if (rc == 1) MUST(w->skip == a.skip && w->len == a.len && w->used == a.used);
  if (rc == -ENODATA) MUST(w->used == a.used);
}

/* ---- what happens ---- */

enum { WANTS = 3, DELIM_MOST = 4 };

typedef struct World {
  const uint8_t *script;
  size_t steps, step;
  const char *text;
  size_t n, given, taken;
  AioInput in;
  bool eof;
  char delims[WANTS][DELIM_MOST];
} World;

static unsigned next(World *w) { return w->step < w->steps ? w->script[w->step++] : 0; }

static AioWant next_want(World *w, char *delim) {
  static const char *const delims[] = {"\n", "\r\n", "aab", "aa", "abab"};
  static const size_t limits[] = {SIZE_MAX, 0, 1, 2, 3, 7, 20, 250};
  unsigned kind = next(w), how = next(w);
  AioWant want = {.kind = (AioWantKind)(kind % 5), .keep = kind & 0x80, .limit = limits[how % 8]};
  unsigned which = how >> 3 & 7;
  if (which < 5) {
    want.delim_len = strlen(delims[which]);
    memcpy(delim, delims[which], want.delim_len);
  } else {
    want.delim_len = 1 + which - 5;
    for (size_t i = 0; i < want.delim_len; i++) delim[i] = (char)next(w);
  }
  want.delim = delim;
  return want;
}

static void check_bytes(const World *w) {
  MUST(aio_input_size(&w->in) == w->given - w->taken);
  MUST(!memcmp(aio_input_bytes(&w->in), w->text + w->taken, w->given - w->taken));
}

static void fill(World *w) {
  unsigned how = next(w);
  size_t left = w->n - w->given, more = how % 16 == 15 ? left : how % 16;
  if (w->step == w->steps) more = left ? 1 : 0; /* the script is over: the rest comes byte by byte */
  if (more > left) more = left;
  if (w->given == w->n) w->eof = true;
  no_memory = how & 0x80;
  char *at = aio_input_room(&w->in, more + (how >> 4 & 7) * 16);
  if (!at && no_memory) check_bytes(w);
  no_memory = false;
  if (!at) at = aio_input_room(&w->in, more);
  MUST(at);
  if (more) memcpy(at, w->text + w->given, more);
  aio_input_added(&w->in, more);
  w->given += more;
  check_bytes(w);
}

/* Answers that have been given do not depend on what comes later, but for `some`. */
static int ask(World *w, AioWant *want, size_t from) {
  size_t at = w->taken + from;
  int rc = aio_input_find(&w->in, from, want, w->eof);
  same(model(w->text + at, w->given - at, w->eof, want), rc, want);
  if (rc != 0 && want->kind != AIO_WANT_SOME) same(model(w->text + at, w->n - at, true, want), rc, want);
  return rc;
}

/* Several pieces, which are taken together when all are there, or given up. false: nothing is left to be read. */
static bool read_pieces(World *w) {
  unsigned how = next(w), count = 1 + how % WANTS;
  AioWant wants[WANTS];
  size_t from = 0;
  for (unsigned i = 0; i < count; i++) wants[i] = next_want(w, w->delims[i]);
  for (unsigned i = 0; i < count; i++) {
    int rc;
    while ((rc = ask(w, &wants[i], from)) == 0) {
      if (how & 0x10 && next(w) & 1) return true; /* his time is over */
      MUST(!w->eof);
      fill(w);
    }
    if (rc < 0) {
      if (rc == -ENODATA) from += wants[i].used; /* white space */
      break;
    }
    from += wants[i].used;
  }
  if (how & 0x20 && from) from = next(w) % from; /* somebody takes another part of it */
  aio_input_take(&w->in, from);
  w->taken += from;
  check_bytes(w);
  if (!aio_input_size(&w->in)) aio_input_free(&w->in); /* as streams do */
  return w->step < w->steps || (w->given < w->n && from);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2) return 0;
  World w = {.script = data + 1, .steps = data[0] < size - 1 ? data[0] : size - 1};
  char *text = malloc(size); /* of its own, so that what is read beyond it is found */
  w.n = size - 1 - w.steps;
  memcpy(text, data + 1 + w.steps, w.n);
  w.text = text;
  while (read_pieces(&w)) continue;
  aio_input_free(&w.in);
  free(text);
  return 0;
}
