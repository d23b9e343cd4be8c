/* SPDX-License-Identifier: MIT
 * Input: whatever the portions in which bytes come, the pieces are those of a naive search on the whole. */
#include <ctype.h>
#include <time.h>

#include "check.h"

/* wrap: realloc */

static bool no_memory;

void *__real_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size) { return no_memory ? NULL : __real_realloc(p, size); }

static void add(AioInput *in, const char *s, size_t n) {
  char *at = aio_input_room(in, n);
  CHECK(at);
  memcpy(at, s, n);
  aio_input_added(in, n);
}

static AioInput input_of(const char *s) {
  AioInput in = {.data = NULL};
  add(&in, s, strlen(s));
  return in;
}

static int find(const char *s, AioWant *w, bool eof) {
  AioInput in = input_of(s);
  int rc = aio_input_find(&in, 0, w, eof);
  aio_input_free(&in);
  return rc;
}

static AioWant want(AioWantKind kind, size_t limit) { return (AioWant){.kind = kind, .limit = limit}; }
static AioWant want_delim(const char *delim, size_t limit) {
  return (AioWant){.kind = AIO_WANT_DELIM, .limit = limit, .delim = delim, .delim_len = strlen(delim)};
}

/* ---- each kind by itself ---- */

static void nothing_there(Loop *l) {
  static const AioWantKind kinds[] = {AIO_WANT_COUNT, AIO_WANT_SOME, AIO_WANT_DELIM, AIO_WANT_NUMBER};
  (void)l;
  AioInput in = {.data = NULL};
  CHECK_EQ(aio_input_size(&in), 0);
  CHECK(aio_input_bytes(&in));
  for (size_t i = 0; i < COUNT(kinds); i++)
    for (size_t limit = 0; limit < 3; limit++) {
      AioWant w = want(kinds[i], limit);
      w.delim = "\n", w.delim_len = 1;
      CHECK_EQ(aio_input_find(&in, 0, &w, false), 0);
      CHECK_EQ(aio_input_find(&in, 0, &w, true), -ENODATA);
    }
  AioWant all = want(AIO_WANT_ALL, 0);
  CHECK_EQ(aio_input_find(&in, 0, &all, false), 0);
  CHECK_EQ(aio_input_find(&in, 0, &all, true), 1);
  CHECK(all.len == 0 && all.used == 0);
  CHECK(aio_input_room(&in, 0));
  aio_input_added(&in, 0);
  aio_input_take(&in, 0);
  aio_input_free(&in);
  aio_input_free(&in); /* twice is fine */
}

static void counts(Loop *l) {
  (void)l;
  AioWant w = want(AIO_WANT_COUNT, 3);
  CHECK_EQ(find("ab", &w, false), 0);
  CHECK(find("ab", &w, true) == 1 && w.len == 2 && w.used == 2);
  CHECK(find("abc", &w, false) == 1 && w.len == 3 && w.used == 3);
  CHECK(find("abcd", &w, false) == 1 && w.len == 3);
  w = want(AIO_WANT_COUNT, 0); /* is there anything? */
  CHECK(find("a", &w, false) == 1 && w.len == 0 && w.used == 0);
  w = want(AIO_WANT_COUNT, SIZE_MAX);
  CHECK_EQ(find("abc", &w, false), 0);
  CHECK(find("abc", &w, true) == 1 && w.len == 3);
  w = want(AIO_WANT_SOME, 2);
  CHECK(find("a", &w, false) == 1 && w.len == 1);
  CHECK(find("abc", &w, false) == 1 && w.len == 2 && w.used == 2);
  w = want(AIO_WANT_SOME, 0);
  CHECK(find("a", &w, false) == 1 && w.len == 0 && w.used == 0);
  w = want(AIO_WANT_ALL, 3);
  CHECK_EQ(find("abc", &w, false), 0);
  CHECK(find("abc", &w, true) == 1 && w.len == 3 && w.used == 3);
  CHECK_EQ(find("abcd", &w, false), -EMSGSIZE);
  CHECK_EQ(find("abcd", &w, true), -EMSGSIZE);
}

static void delimiters(Loop *l) {
  (void)l;
  AioWant w = want_delim("\r\n", 3);
  CHECK(find("ab\r\ncd", &w, false) == 1 && w.len == 2 && w.used == 4 && w.skip == 0);
  w = want_delim("\r\n", 3), w.keep = true;
  CHECK(find("abc\r\n", &w, false) == 1 && w.len == 5 && w.used == 5);
  w = want_delim("\r\n", 3);
  CHECK(find("\r\n", &w, false) == 1 && w.len == 0 && w.used == 2);
  w = want_delim("\r\n", 3);
  CHECK_EQ(find("abcd\r\n", &w, false), -EMSGSIZE);
  w = want_delim("\r\n", 3);
  CHECK_EQ(find("abc\r", &w, false), 0); /* the next may be \n */
  w = want_delim("\r\n", 3);
  CHECK_EQ(find("abc\r", &w, true), -EMSGSIZE);
  w = want_delim("\r\n", 3);
  CHECK(find("ab\r", &w, true) == 1 && w.len == 3 && w.used == 3);
  w = want_delim("\r\n", 3);
  CHECK_EQ(find("abcde", &w, false), -EMSGSIZE); /* come what may */
  w = want_delim("\n", 0);
  CHECK(find("\nx", &w, false) == 1 && w.len == 0 && w.used == 1);
  w = want_delim("\n", 0);
  CHECK_EQ(find("x", &w, false), -EMSGSIZE);
  w = (AioWant){.kind = AIO_WANT_DELIM, .limit = 9, .delim = "\0", .delim_len = 1};
  AioInput in = {.data = NULL};
  add(&in, "ab\0cd", 5);
  CHECK(aio_input_find(&in, 0, &w, false) == 1 && w.len == 2 && w.used == 3);
  w.used = 0;
  CHECK_EQ(aio_input_find(&in, 3, &w, false), 0); /* beyond it */
  CHECK(aio_input_find(&in, 3, &w, true) == 1 && w.len == 2 && w.used == 2);
  aio_input_free(&in);
}

/* ---- numerals ---- */

typedef struct Numeral {
  const char *text;
  size_t skip, len;
} Numeral;

/* What Lua's io library takes of each: whether that is a number then, lua_stringtonumber says. */
static const Numeral numerals[] = {
  {"1", 0, 1}, {"12 3", 0, 2}, {"  \t\n\v\f\r42x", 7, 2}, {"-7,", 0, 2}, {"+7,", 0, 2}, {"--7", 0, 1}, {"-+7", 0, 1},
  {"0", 0, 1}, {"007", 0, 3}, {"0x", 0, 2}, {"0xg", 0, 2}, {"0x10", 0, 4}, {"0XfFg", 0, 4}, {"-0x1p4z", 0, 6}, {"x10", 0, 0},
  {"1.5.2", 0, 3}, {".5", 0, 2}, {".", 0, 1}, {"-.", 0, 2}, {"5.", 0, 2}, {".e1", 0, 1}, {"1e", 0, 2}, {"1e+", 0, 3},
  {"1e5e5", 0, 3}, {"1E-05x", 0, 5}, {"e5", 0, 0}, {"1p5", 0, 1}, {"0x1e5", 0, 5}, {"0x.8p1", 0, 6}, {"0xp1", 0, 2},
  {"0x1p-3f", 0, 6}, {"0x1p1a", 0, 5}, {"1_000", 0, 1}, {"nan", 0, 0}, {"inf", 0, 0}, {" x", 1, 0}, {"1 ", 0, 1}, {"0e0 ", 0, 3},
  {"00x1", 0, 2}, {"0.0.", 0, 3}, {"1..2", 0, 2}, {"\xff", 0, 0}, {"1\xff", 0, 1},
};

static void check_numeral(const Numeral *c, size_t portion) {
  AioInput in = {.data = NULL};
  AioWant w = want(AIO_WANT_NUMBER, SIZE_MAX);
  size_t n = strlen(c->text), at = 0;
  int rc = 0;
  while (rc == 0) {
    size_t more = n - at < portion ? n - at : portion;
    add(&in, c->text + at, more);
    at += more;
    rc = aio_input_find(&in, 0, &w, at == n);
  }
  CHECK_EQ(rc, 1);
  CHECK_EQ(w.skip, c->skip);
  CHECK_EQ(w.len, c->len);
  CHECK_EQ(w.used, c->skip + c->len);
  aio_input_free(&in);
}

static void numerals_after_the_rules_of_lua(Loop *l) {
  (void)l;
  for (size_t i = 0; i < COUNT(numerals); i++)
    for (size_t portion = 1; portion < 5; portion++) check_numeral(&numerals[i], portion);
}

static void a_numeral_waits_for_what_may_belong_to_it(Loop *l) {
  static const char *const open[] = {"1", "-", "0", "0x", "1.", "1e", "1e+", "  ", ".5"};
  (void)l;
  for (size_t i = 0; i < COUNT(open); i++) {
    AioWant w = want(AIO_WANT_NUMBER, SIZE_MAX);
    CHECK_EQ(find(open[i], &w, false), 0);
  }
  AioWant w = want(AIO_WANT_NUMBER, SIZE_MAX);
  CHECK_EQ(find("   ", &w, true), -ENODATA);
}

/* 200 characters at most: of more, 200 are taken, and are none. */
static void long_numerals(Loop *l) {
  char text[302];
  (void)l;
  for (int lead = 0; lead < 3; lead++)
    for (size_t n = 195; n < 206; n++) {
      memset(text, ' ', (size_t)lead);
      memset(text + lead, '7', n);
      strcpy(text + (size_t)lead + n, "x");
      AioWant w = want(AIO_WANT_NUMBER, SIZE_MAX);
      CHECK_EQ(find(text, &w, false), 1);
      CHECK_EQ(w.used, (size_t)lead + (n <= 200 ? n : 200));
      CHECK_EQ(w.len, n <= 200 ? n : 0);
      text[(size_t)lead + n] = 0;
      w = want(AIO_WANT_NUMBER, SIZE_MAX);
      CHECK_EQ(find(text, &w, true), 1);
      CHECK_EQ(w.len, n <= 200 ? n : 0);
      w = want(AIO_WANT_NUMBER, SIZE_MAX);
      CHECK_EQ(find(text, &w, false), n > 200);
    }
}

/* Written down from the rules: each step either takes a character or does not. */
static size_t naive_numeral(const char *s, size_t n, size_t *skip, size_t *len) {
  size_t at = 0, digits = 0;
  while (at < n && isspace((unsigned char)s[at])) at++;
  *skip = at;
#define PEEK(set) (at < n && s[at] && strchr(set, s[at]))
#define DIGIT(hex) (at < n && ((hex) ? isxdigit((unsigned char)s[at]) : isdigit((unsigned char)s[at])))
  if (PEEK("+-")) at++;
  bool hex = false;
  if (PEEK("0")) {
    at++, digits++;
    if (PEEK("xX")) at++, hex = true, digits = 0;
  }
  for (; DIGIT(hex); at++) digits++;
  if (PEEK(".")) at++;
  else goto exponent;
  for (; DIGIT(hex); at++) digits++;
exponent:
  if (digits && PEEK(hex ? "pP" : "eE")) {
    at++;
    if (PEEK("+-")) at++;
    while (DIGIT(false)) at++;
  }
  *len = at - *skip <= 200 ? at - *skip : 0;
  return at - *skip <= 200 ? at : *skip + 200;
}

/* ---- against the naive search on the whole ---- */

typedef struct Answer {
  int rc;
  size_t skip, len, used;
} Answer;

static Answer naive(const char *s, size_t n, const AioWant *w) {
  Answer a = {.rc = 1};
  switch (w->kind) {
    case AIO_WANT_COUNT:
    case AIO_WANT_SOME:
      if (!n) return (Answer){.rc = -ENODATA};
      a.len = a.used = n < w->limit ? n : w->limit;
      return a;
    case AIO_WANT_ALL:
      if (n > w->limit) return (Answer){.rc = -EMSGSIZE};
      a.len = a.used = n;
      return a;
    case AIO_WANT_DELIM:
      if (!n) return (Answer){.rc = -ENODATA};
      for (a.len = 0; a.len < n; a.len++)
        if (n - a.len >= w->delim_len && !memcmp(s + a.len, w->delim, w->delim_len)) break;
      if (a.len > w->limit) return (Answer){.rc = -EMSGSIZE};
      a.used = a.len < n ? a.len + w->delim_len : n;
      if (w->keep) a.len = a.used;
      return a;
    default:
      a.used = naive_numeral(s, n, &a.skip, &a.len);
      return a.used == n && a.skip == n ? (Answer){.rc = -ENODATA} : a;
  }
}

enum { WHOLE = 700 };

static size_t random_text(char *s, uint32_t *seed) {
  static const char *const alphabets[] = {"ab", "aab\r\n", "0123456789 .-+exXpPaf", "01 ", "a\nb\0c"};
  static const size_t sizes[] = {2, 5, 21, 3, 5};
  size_t n = rnd(seed) % 8 ? rnd(seed) % 40 : rnd(seed) % WHOLE, which = rnd(seed) % COUNT(alphabets);
  for (size_t i = 0; i < n; i++) s[i] = alphabets[which][rnd(seed) % sizes[which]];
  return n;
}

static AioWant random_want(uint32_t *seed, char *delim) {
  static const size_t limits[] = {0, 1, 3, 10, SIZE_MAX, SIZE_MAX};
  AioWant w = want((AioWantKind)(rnd(seed) % 5), limits[rnd(seed) % COUNT(limits)]);
  w.keep = rnd(seed) % 2;
  w.delim = delim;
  w.delim_len = 1 + rnd(seed) % 4;
  for (size_t i = 0; i < w.delim_len; i++) delim[i] = "ab\r\n0"[rnd(seed) % 5];
  return w;
}

/* A reader of several pieces takes none before all are there, as the binding does. `some` depends on the portions by its
 * nature, and is checked for being a prefix. */
static void one_round(uint32_t *seed) {
  char text[WHOLE], delims[4][4];
  size_t n = random_text(text, seed), given = 0, taken = 0;
  AioInput in = {.data = NULL};
  bool eof = false;
  for (bool ended = false; !ended;) {
    AioWant wants[4];
    size_t nwants = 1 + rnd(seed) % 4, found = 0, from = 0;
    for (size_t i = 0; i < nwants; i++) wants[i] = random_want(seed, delims[i]);
    while (found < nwants) {
      AioWant *w = &wants[found];
      Answer a = naive(text + taken + from, n - taken - from, w);
      int rc = aio_input_find(&in, from, w, eof);
      if (rc == 0) {
        CHECK(!eof);
        size_t more = rnd(seed) % 3 ? rnd(seed) % 3 : rnd(seed) % 50, room = rnd(seed) % 4 ? more : more + 100;
        if (more > n - given) more = n - given;
        char *at = aio_input_room(&in, room + 1);
        CHECK(at);
        memcpy(at, text + given, more);
        aio_input_added(&in, more);
        given += more;
        if (given == n && rnd(seed) % 2) eof = true;
        CHECK(!memcmp(aio_input_bytes(&in), text + taken, aio_input_size(&in)));
        continue;
      }
      if (rc == 1 && w->kind == AIO_WANT_SOME) {
        CHECK(w->len <= a.len && w->used == w->len && (w->len > 0 || w->limit == 0));
      } else {
        CHECK_EQ(rc, a.rc);
        if (rc == 1) CHECK(w->skip == a.skip && w->len == a.len && w->used == a.used);
      }
      if (rc < 0) {
        ended = true;
        break;
      }
      from += w->used;
      found++;
      if (eof && from == 0 && found == nwants) ended = true; /* nothing but pieces of nothing */
    }
    aio_input_take(&in, from);
    taken += from;
    CHECK_EQ(aio_input_size(&in), given - taken);
    if (rnd(seed) % 50 == 0 && eof) ended = true;
  }
  aio_input_free(&in);
}

static void same_as_a_naive_search(Loop *l) {
  uint32_t seed = 20240607;
  (void)l;
  for (long i = check_scale(60000); i > 0; i--) one_round(&seed);
}

/* ---- memory ---- */

static void without_memory(Loop *l) {
  (void)l;
  AioInput in = {.data = NULL};
  no_memory = true;
  CHECK(!aio_input_room(&in, 10));
  no_memory = false;
  CHECK(!aio_input_room(&in, SIZE_MAX));
  CHECK(!aio_input_room(&in, SIZE_MAX / 2));
  add(&in, "abcdef", 6);
  aio_input_take(&in, 2);
  no_memory = true;
  CHECK(!aio_input_room(&in, 1000));
  no_memory = false;
  CHECK(!aio_input_room(&in, SIZE_MAX - 3));
  CHECK(aio_input_size(&in) == 4 && !memcmp(aio_input_bytes(&in), "cdef", 4)); /* as it was */
  aio_input_free(&in);
}

/* What is in front and was taken is used again, before more is asked for. */
static void the_room_of_what_was_taken_is_used_again(Loop *l) {
  (void)l;
  AioInput in = {.data = NULL};
  char block[1000] = {0};
  for (int i = 0; i < 4; i++) add(&in, block, sizeof block);
  aio_input_take(&in, 3 * sizeof block);
  size_t cap = in.cap;
  for (int i = 0; i < 10000; i++) {
    add(&in, block, sizeof block);
    aio_input_take(&in, sizeof block);
    CHECK_EQ(aio_input_size(&in), sizeof block);
  }
  CHECK(in.cap <= 2 * cap);
  aio_input_free(&in);
}

static int64_t cpu_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec * SEC + t.tv_nsec;
}

/* n bytes, one at a time into a room of `room`, looking each time for a delimiter that comes at the end. */
static int64_t trickle(size_t n, size_t room, const char *delim, bool from_behind) {
  AioInput in = {.data = NULL};
  AioWant w = want_delim(delim, SIZE_MAX);
  size_t from = 0;
  int64_t start = cpu_ns();
  if (from_behind) add(&in, "0123456789", from = 10), aio_input_take(&in, 5), from = 5;
  for (size_t i = 0; i < n; i++) {
    CHECK_EQ(aio_input_find(&in, from, &w, false), 0);
    *aio_input_room(&in, room) = *delim == 'x' ? '-' : *delim;
    aio_input_added(&in, 1);
  }
  add(&in, delim, strlen(delim));
  CHECK_EQ(aio_input_find(&in, from, &w, false), 1);
  CHECK(w.len == n || *delim != 'x');
  aio_input_free(&in);
  return cpu_ns() - start;
}

/* A quadratic one takes minutes for this. */
static void small_portions_cost_no_more(Loop *l) {
  size_t n = (size_t)check_scale(8000000);
  (void)l;
  trickle(n, 1, "x", false);
  trickle(n, 4096, "xyz", true);
  trickle(n, 1 << 16, "x", false);
  trickle(n / 2, 1 << 20, "x", true);
  trickle(n / 4, 1, "aaaaaaab", false);
  int64_t once = trickle(n / 8, 1 << 16, "x", false), eightfold = trickle(n, 1 << 16, "x", false);
  CHECK(eightfold < 40 * once + 100 * MS);
}

/* Much is there always, and little comes and goes: it is not moved each time. */
static void compaction_is_linear(Loop *l) {
  enum { STOCK = 4 << 20 };
  AioInput in = {.data = NULL};
  (void)l;
  memset(aio_input_room(&in, STOCK), 'x', STOCK);
  aio_input_added(&in, STOCK);
  for (long i = check_scale(4000000); i > 0; i--) {
    add(&in, "0123456789", 10);
    aio_input_take(&in, 10);
  }
  CHECK_EQ(aio_input_size(&in), STOCK);
  CHECK(in.cap <= 4 * STOCK);
  aio_input_free(&in);
}

static const Test tests[] = {
  TEST_POLL(nothing_there),
  TEST_POLL(counts),
  TEST_POLL(delimiters),
  TEST_POLL(numerals_after_the_rules_of_lua),
  TEST_POLL(a_numeral_waits_for_what_may_belong_to_it),
  TEST_POLL(long_numerals),
  TEST_POLL(same_as_a_naive_search),
  TEST_POLL(without_memory),
  TEST_POLL(the_room_of_what_was_taken_is_used_again),
  TEST_POLL(small_portions_cost_no_more),
  TEST_POLL(compaction_is_linear),
};

CHECK_MAIN(tests, "epoll") /* it knows no loop */
