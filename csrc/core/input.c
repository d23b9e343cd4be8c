/* SPDX-License-Identifier: MIT
 * Input: bytes that have arrived and nobody has taken yet, and the search for the piece that a reader wants of them.
 *
 * Way      aio_input_find -> 0: aio_input_room, fill it, aio_input_added, find again -> 1: the piece -> aio_input_take
 * Threads  whoever owns it.
 * Owner    the caller; aio_input_free frees the memory.
 * Keep     nothing is taken before all of a reader's pieces are there: whoever gives up waiting has lost no byte. A search
 *          goes on where the last one stopped, however small the portions in which the bytes come. */
#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "internal.h"

enum { NUMERAL_MAX = 200 }; /* longest numeral, as in Lua's io library */
enum { SPARE = 1 << 16 };
enum { SHORT_DELIM = 8 };

size_t aio_input_size(const AioInput *in) { return in->end - in->begin; }
const char *aio_input_bytes(const AioInput *in) { return in->data ? in->data + in->begin : ""; }

char *aio_input_room(AioInput *in, size_t room) {
  size_t size = aio_input_size(in);
  if (in->data && in->cap - in->end >= room) return in->data + in->end;
  if (room > SIZE_MAX / 4 || size > SIZE_MAX / 4) return NULL;
  if (in->data && in->cap >= size + room && in->begin >= size) { /* enough in front, and each byte is moved but once in a while */
    memcpy(in->data, in->data + in->begin, size);
  } else {
    size_t cap = size + room + !room;
    if (size) cap += size + (room < SPARE ? room : SPARE); /* the portions may be far smaller than the room for them */
    char *data = aio__realloc(NULL, cap);
    if (!data) return NULL;
    if (size) memcpy(data, in->data + in->begin, size);
    aio__realloc(in->data, 0);
    in->data = data;
    in->cap = cap;
  }
  in->begin = 0;
  in->end = size;
  return in->data + size;
}

void aio_input_added(AioInput *in, size_t n) { in->end += n; }

void aio_input_take(AioInput *in, size_t n) {
  in->begin += n;
  if (in->begin == in->end) in->begin = in->end = 0;
}

void aio_input_free(AioInput *in) {
  aio__realloc(in->data, 0);
  *in = (AioInput){.data = NULL};
}

/* ---- searches: `s` has `n` bytes; 1, 0 or -errno as aio_input_find ---- */

static int piece(AioWant *w, size_t len, size_t used) {
  w->len = len;
  w->used = used;
  return 1;
}

static int find_count(AioWant *w, size_t n, bool eof) { /* none at all: only whether there is something */
  size_t len = n < w->limit ? n : w->limit;
  if (n && (len == w->limit || eof)) return piece(w, len, len);
  return eof ? -ENODATA : 0;
}

static int find_some(AioWant *w, size_t n, bool eof) {
  size_t len = n < w->limit ? n : w->limit;
  if (n) return piece(w, len, len);
  return eof ? -ENODATA : 0;
}

static int find_all(AioWant *w, size_t n, bool eof) {
  if (n > w->limit) return -EMSGSIZE;
  return eof ? piece(w, n, n) : 0;
}

/* By its last byte, where it is short: the C library looks for one byte with vectors, and for several one by one. */
static const char *find_bytes(const char *s, size_t n, const char *delim, size_t len) {
  if (n < len) return NULL;
  if (len > SHORT_DELIM) return memmem(s, n, delim, len);
  const char *end = s + n, *at = s + len - 1;
  for (; (at = memchr(at, delim[len - 1], (size_t)(end - at))); at++) {
    size_t i = 1;
    while (i < len && at[-(ptrdiff_t)i] == delim[len - 1 - i]) i++;
    if (i == len) return at - len + 1;
  }
  return NULL;
}

/* Whether a piece is too long does not depend on the portions: what may be the beginning of the delimiter is not counted. */
static int find_delim(AioWant *w, const char *s, size_t n, bool eof) {
  size_t back = w->used < w->delim_len ? 0 : w->used - w->delim_len + 1; /* it may have begun in what was seen */
  const char *at = find_bytes(s + back, n - back, w->delim, w->delim_len);
  size_t len = at ? (size_t)(at - s) : n;
  w->used = n;
  if (len > w->limit && (at || eof || len - w->limit >= w->delim_len)) return -EMSGSIZE;
  if (at) return piece(w, w->keep ? len + w->delim_len : len, len + w->delim_len);
  if (!eof) return 0;
  return n ? piece(w, n, n) : -ENODATA;
}

/* ---- a numeral, after the rules of Lua's io library: the longest prefix that looks like one ---- */

typedef struct Scan {
  const char *s;
  size_t at, n;
} Scan;

static bool is_one_of(const Scan *k, const char *set) { return k->at < k->n && k->s[k->at] && strchr(set, k->s[k->at]); }
static bool skip_one_of(Scan *k, const char *set) { return is_one_of(k, set) ? k->at++, true : false; }

static size_t skip_digits(Scan *k, bool hex) {
  size_t from = k->at;
  while (k->at < k->n && (hex ? isxdigit : isdigit)((unsigned char)k->s[k->at])) k->at++;
  return k->at - from;
}

static void skip_numeral(Scan *k) {
  bool hex = false;
  size_t digits = 0;
  skip_one_of(k, "+-");
  if (skip_one_of(k, "0")) {
    hex = skip_one_of(k, "xX");
    digits = !hex;
  }
  digits += skip_digits(k, hex);
  if (skip_one_of(k, ".")) digits += skip_digits(k, hex);
  if (digits && skip_one_of(k, hex ? "pP" : "eE")) {
    skip_one_of(k, "+-");
    skip_digits(k, false);
  }
}

/* One that is too long is none, and its beginning is used up. White space is used up also where nothing follows. */
static int find_number(AioWant *w, const char *s, size_t n, bool eof) {
  while (w->used < n && isspace((unsigned char)s[w->used])) w->used++;
  size_t left = n - w->used;
  Scan k = {s + w->used, 0, left <= NUMERAL_MAX ? left : NUMERAL_MAX + 1};
  skip_numeral(&k);
  if (k.at == left && !eof && left <= NUMERAL_MAX) return 0; /* it may go on */
  w->skip = w->used;
  if (!left) return -ENODATA;
  if (k.at > NUMERAL_MAX) return piece(w, 0, w->used + NUMERAL_MAX);
  return piece(w, k.at, w->used + k.at);
}

int aio_input_find(const AioInput *in, size_t from, AioWant *w, bool eof) {
  const char *s = aio_input_bytes(in) + from;
  size_t n = aio_input_size(in) - from;
  switch (w->kind) {
    case AIO_WANT_COUNT: return find_count(w, n, eof);
    case AIO_WANT_SOME: return find_some(w, n, eof);
    case AIO_WANT_ALL: return find_all(w, n, eof);
    case AIO_WANT_DELIM: return find_delim(w, s, n, eof);
    default: return find_number(w, s, n, eof);
  }
}
