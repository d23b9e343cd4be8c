/* SPDX-License-Identifier: MIT
 * Requests to files: the same results from io_uring, Linux AIO and threads, each told once, whatever is refused, cancelled
 * or closed meanwhile. */
#include <dlfcn.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <semaphore.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#if __has_include(<liburing.h>)
#include <liburing.h>
#endif
#if __has_include(<libaio.h>)
#include <libaio.h>
#endif

#include "check.h"

/* wrap: realloc aligned_alloc open pread pwrite eventfd pthread_create dlsym */

enum { GRID = AIO_FILE_ALIGN };

/* ---- what is refused ---- */

static struct {
  long fail_at, fail_from; /* allocations until one fails, until all do; negative: none */
  int create, eventfd, no_direct;
  int init, enter, setup, submit; /* errno of io_uring_queue_init_params, io_uring_submit, io_setup, io_submit */
  int enters, submits;            /* so many of them fail; 0: all */
  unsigned takes;                 /* io_uring_submit hands over so many at a time; 0: all */
  atomic_size_t shorten;          /* what is asked of the kernel at once; 0: all */
  bool unaligned;                 /* O_DIRECT wants more than our grid */
} refuse;

static atomic_int opens, preads, refused;
static bool gate_on, pretend;
static sem_t gate;
static pthread_t main_thread;

static void nothing_refused(void) {
  memset(&refuse, 0, sizeof refuse);
  refuse.fail_at = refuse.fail_from = -1;
}

static bool out_of_memory(void) {
  if (refuse.fail_at < 0 && refuse.fail_from < 0) return false;
  if (!pthread_equal(pthread_self(), main_thread)) return false;
  bool fails = refuse.fail_at == 0 || refuse.fail_from == 0;
  if (refuse.fail_at >= 0) refuse.fail_at--;
  if (refuse.fail_from > 0) refuse.fail_from--;
  if (fails) atomic_fetch_add(&refused, 1);
  return fails;
}

void *__real_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size) { return out_of_memory() ? NULL : __real_realloc(p, size); }

void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size) { return out_of_memory() ? NULL : __real_aligned_alloc(align, size); }

int __real_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg) {
  if (refuse.create) atomic_fetch_add(&refused, 1);
  return refuse.create ? refuse.create : __real_pthread_create(t, attr, fn, arg);
}

int __real_eventfd(unsigned n, int flags);
int __wrap_eventfd(unsigned n, int flags);
int __wrap_eventfd(unsigned n, int flags) {
  if (!refuse.eventfd) return __real_eventfd(n, flags);
  atomic_fetch_add(&refused, 1);
  return errno = refuse.eventfd, -1;
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, mode_t mode);
int __wrap_open(const char *path, int flags, mode_t mode) {
  if (refuse.no_direct && flags & O_DIRECT) {
    atomic_fetch_add(&refused, 1);
    return errno = EINVAL, -1;
  }
  int fd = __real_open(path, flags, mode);
  atomic_fetch_add(&opens, 1);
  return fd;
}

static bool wants_more(int fd) {
  if (!refuse.unaligned || !(fcntl(fd, F_GETFL) & O_DIRECT)) return false;
  atomic_fetch_add(&refused, 1);
  return true;
}

static size_t at_most(size_t n) {
  size_t most = atomic_load(&refuse.shorten);
  return most && n > most ? most : n;
}

ssize_t __real_pread(int fd, void *buf, size_t n, off_t offset);
ssize_t __wrap_pread(int fd, void *buf, size_t n, off_t offset);
ssize_t __wrap_pread(int fd, void *buf, size_t n, off_t offset) {
  atomic_fetch_add(&preads, 1);
  if (gate_on && !pthread_equal(pthread_self(), main_thread)) sem_wait(&gate);
  if (wants_more(fd)) return errno = EINVAL, -1;
  if (pretend) return (ssize_t)n;
  return __real_pread(fd, buf, at_most(n), offset);
}

ssize_t __real_pwrite(int fd, const void *buf, size_t n, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t n, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t n, off_t offset) {
  if (wants_more(fd)) return errno = EINVAL, -1;
  if (pretend) return (ssize_t)n;
  return __real_pwrite(fd, buf, at_most(n), offset);
}

static bool one_of(int *left) { /* 0: always; else so many times, then -1: no more */
  if (*left < 0) return false;
  if (*left > 0 && --*left == 0) *left = -1;
  atomic_fetch_add(&refused, 1);
  return true;
}

static void *real_function(const char *name);

#ifdef IORING_SETUP_DEFER_TASKRUN
static int my_init(unsigned entries, struct io_uring *ring, struct io_uring_params *p) {
  if (refuse.init) atomic_fetch_add(&refused, 1);
  if (refuse.init) return -refuse.init;
  int (*init)(unsigned, struct io_uring *, struct io_uring_params *);
  *(void **)&init = real_function("io_uring_queue_init_params");
  return init(entries, ring, p);
}

static void shorten_all(struct io_uring *ring) {
  for (unsigned i = *ring->sq.khead; i != ring->sq.sqe_tail; i++) {
    struct io_uring_sqe *sqe = &ring->sq.sqes[i & ring->sq.ring_mask];
    bool moves = sqe->opcode == IORING_OP_READ || sqe->opcode == IORING_OP_WRITE;
    if (moves) sqe->len = (unsigned)at_most(sqe->len);
  }
}

static int take_some(struct io_uring *ring) {
  unsigned n = ring->sq.sqe_tail - *ring->sq.khead;
  __atomic_store_n(ring->sq.ktail, ring->sq.sqe_tail, __ATOMIC_RELEASE);
  long rc = syscall(__NR_io_uring_enter, ring->ring_fd, n < refuse.takes ? n : refuse.takes, 0, 0, NULL, 8);
  return rc < 0 ? -errno : (int)rc;
}

static int my_enter(struct io_uring *ring) {
  shorten_all(ring);
  if (refuse.takes && !refuse.enter) return take_some(ring);
  if (refuse.takes && refuse.enter) { /* a part, and then no more */
    int rc = take_some(ring);
    refuse.takes = 0;
    return rc;
  }
  if (refuse.enter && one_of(&refuse.enters)) return -refuse.enter;
  int (*enter)(struct io_uring *);
  *(void **)&enter = real_function("io_uring_submit");
  return enter(ring);
}
#endif

#if __has_include(<libaio.h>)
static int my_setup(int n, io_context_t *io) {
  if (refuse.setup) atomic_fetch_add(&refused, 1);
  if (refuse.setup) return -refuse.setup;
  int (*setup)(int, io_context_t *);
  *(void **)&setup = real_function("io_setup");
  return setup(n, io);
}

static int my_submit(io_context_t io, long n, struct iocb **v) {
  for (long i = 0; i < n && refuse.unaligned; i++) {
    if (i) return (int)i;
    if (wants_more(v[0]->aio_fildes)) return -EINVAL;
  }
  if (refuse.submit && one_of(&refuse.submits)) return -refuse.submit;
  for (long i = 0; i < n; i++) v[i]->u.c.nbytes = at_most(v[i]->u.c.nbytes);
  int (*io_submit_)(io_context_t, long, struct iocb **);
  *(void **)&io_submit_ = real_function("io_submit");
  return io_submit_(io, refuse.takes && n > refuse.takes ? refuse.takes : n, v);
}
#endif

static struct {
  const char *name;
  void *mine, *real;
} functions[] = {
#ifdef IORING_SETUP_DEFER_TASKRUN
  {"io_uring_queue_init_params", (void *)(uintptr_t)my_init, NULL},
  {"io_uring_submit", (void *)(uintptr_t)my_enter, NULL},
#endif
#if __has_include(<libaio.h>)
  {"io_setup", (void *)(uintptr_t)my_setup, NULL},
  {"io_submit", (void *)(uintptr_t)my_submit, NULL},
#endif
  {"", NULL, NULL},
};

static void *real_function(const char *name) {
  for (size_t i = 0; i < COUNT(functions); i++)
    if (!strcmp(name, functions[i].name)) return functions[i].real;
  return NULL;
}

void *__real_dlsym(void *lib, const char *name);
void *__wrap_dlsym(void *lib, const char *name);
void *__wrap_dlsym(void *lib, const char *name) {
  void *real = __real_dlsym(lib, name);
  for (size_t i = 0; i < COUNT(functions); i++)
    if (real && !strcmp(name, functions[i].name)) return functions[i].real = real, functions[i].mine;
  return real;
}

/* ---- files and requests ---- */

typedef struct Mode {
  AioEngine engine;
  bool direct;
} Mode;

static const Mode modes[] = {
  {AIO_ENGINE_URING, false}, {AIO_ENGINE_URING, true}, {AIO_ENGINE_LAIO, true}, {AIO_ENGINE_THREADS, false},
  {AIO_ENGINE_THREADS, true}, {AIO_ENGINE_INLINE, false}, {AIO_ENGINE_AUTO, false}, {AIO_ENGINE_AUTO, true},
};

typedef struct Op {
  AioFileOp op;
  Loop *l;
  int done;
  void (*then)(struct Op *o);
  struct Op *other;
} Op;

static int done_total, submitting;

static void done(void *opaque) {
  Op *o = opaque;
  CHECK_EQ(submitting, 0); /* never inside submit */
  CHECK_EQ(++o->done, 1);
  done_total++;
  if (o->then) o->then(o);
}

static Op op_for(Loop *l, AioFile *f, AioFileKind kind) { return (Op){.l = l, .op = {.kind = kind, .file = f}}; }
static Op moving(Loop *l, AioFile *f, AioFileKind kind, void *buf, size_t len, int64_t offset) {
  Op o = op_for(l, f, kind);
  o.op.buf = buf;
  o.op.len = len;
  o.op.offset = offset;
  return o;
}

static int submit(Op *o) {
  o->op.done = done;
  o->op.opaque = o;
  o->done = 0;
  submitting++;
  int rc = aio_file_submit(o->l->ctx, &o->op);
  submitting--;
  return rc;
}

static int64_t finish(Op *o) {
  CHECK_EQ(submit(o), 0);
  RUN_UNTIL(o->l, o->done);
  return o->op.error ? o->op.error : (int64_t)o->op.moved;
}

static int64_t read_at(Loop *l, AioFile *f, void *buf, size_t len, int64_t offset) {
  Op o = moving(l, f, AIO_FILE_READ, buf, len, offset);
  return finish(&o);
}
static int64_t write_at(Loop *l, AioFile *f, const void *buf, size_t len, int64_t offset) {
  Op o = moving(l, f, AIO_FILE_WRITE, (char *)(uintptr_t)buf, len, offset);
  return finish(&o);
}
static int64_t truncate_to(Loop *l, AioFile *f, int64_t size) {
  Op o = moving(l, f, AIO_FILE_TRUNCATE, NULL, 0, size);
  return finish(&o);
}

static int open_path(Loop *l, AioFile *f, const char *path, int flags) {
  Op o = op_for(l, f, AIO_FILE_OPEN);
  o.op.path = path;
  o.op.flags = flags;
  o.op.mode = 0600;
  return (int)finish(&o);
}

static char *new_path(char *path) {
  const char *dir = getenv("TMPDIR");
  snprintf(path, PATH_MAX, "%s/aioloop-test-XXXXXX", dir && *dir ? dir : "/tmp");
  int fd = mkstemp(path);
  CHECK(fd >= 0);
  close(fd);
  return path;
}

static AioFile *new_file(Loop *l, const Mode *m, int flags) {
  char path[PATH_MAX];
  AioFile *f = aio_file_new(m->engine, m->direct);
  CHECK(f);
  CHECK_EQ(open_path(l, f, new_path(path), O_RDWR | flags), 0);
  unlink(path);
  CHECK(aio_file_is_open(f));
  return f;
}

static void free_file(AioFile *f) {
  aio_file_close(f);
  aio_file_unref(f);
}

/* A worker that was not given the CPU may say only now that it has finished what was taken from it long ago. */
static bool is_quiet(Loop *l) {
  for (int i = 0; i < 20; i++) {
    uint64_t before = runs(l);
    for (int k = 0; k < 3; k++) turn(l, 0);
    if (runs(l) == before) return true;
    usleep(2000);
  }
  return false;
}

static bool rests(Loop *l) {
  for (int i = 0; i < 4; i++)
    if (turns_in(l, 30 * MS) <= 8) return true;
  return false;
}

static void skip(const char *what) { printf("skip %s: %s\n", check_name, what); }

static bool has_engine(Loop *l, const Mode *m) {
  static bool said[AIO_ENGINES];
  AioFile *f = new_file(l, m, 0);
  AioEngine got = aio_file_engine(l->ctx, f);
  free_file(f);
  if (got == m->engine || m->engine == AIO_ENGINE_AUTO) return true;
  if (!said[m->engine]) printf("skip %s: not granted here, or not by this file system\n", aio_engine_name(m->engine));
  said[m->engine] = true;
  return false;
}

typedef void ModeFn(Loop *l, const Mode *m);

static void each_mode(Loop *l, ModeFn *fn) {
  for (size_t i = 0; i < COUNT(modes); i++) {
    nothing_refused();
    done_total = 0;
    if (has_engine(l, &modes[i])) done_total = 0, fn(l, &modes[i]);
    nothing_refused();
    if (aio_context_closed(l->ctx)) loop_reopen(l, NULL);
  }
}

static uint64_t ops_of(Loop *l, AioEngine e) {
  AioStats s;
  aio_context_stats(l->ctx, &s);
  return s.file_ops[e];
}

static uint64_t submits_of(Loop *l) {
  AioStats s;
  aio_context_stats(l->ctx, &s);
  return s.submits;
}

static char letter(int64_t at) { return (char)('a' + (at * 7 + at / 97 + at / GRID) % 26); }
static void letters(char *s, size_t n, int64_t at) {
  for (size_t i = 0; i < n; i++) s[i] = letter(at + (int64_t)i);
}
static bool are_letters(const char *s, size_t n, int64_t at) {
  for (size_t i = 0; i < n; i++)
    if (s[i] != letter(at + (int64_t)i)) return false;
  return true;
}

static AioFile *file_of_size(Loop *l, const Mode *m, size_t size) {
  AioFile *f = new_file(l, m, 0);
  char *s = malloc(size + 1);
  letters(s, size, 0);
  CHECK(__real_pwrite(aio_file_fd(f), s, size, 0) == (ssize_t)size);
  free(s);
  return f;
}

/* A terminal: io_uring waits for what is typed, and can be told to give up. */
typedef struct Terminal {
  int master;
  AioFile *f;
} Terminal;

static const Mode uring = {AIO_ENGINE_URING, false}, uring_direct = {AIO_ENGINE_URING, true}, laio = {AIO_ENGINE_LAIO, true};
static const Mode threads = {AIO_ENGINE_THREADS, false};

static bool open_terminal(Loop *l, Terminal *t) {
  char path[PATH_MAX];
  if (!has_engine(l, &uring)) return false;
  t->master = posix_openpt(O_RDWR | O_NOCTTY);
  if (t->master < 0 || grantpt(t->master) < 0 || unlockpt(t->master) < 0 || ptsname_r(t->master, path, sizeof path)) {
    if (t->master >= 0) close(t->master);
    return skip("no terminals here"), false;
  }
  t->f = aio_file_new(AIO_ENGINE_URING, false);
  CHECK_EQ(open_path(l, t->f, path, O_RDWR), 0);
  return true;
}

static void type(const Terminal *t, const char *line) { CHECK(write(t->master, line, strlen(line)) == (ssize_t)strlen(line)); }
static void close_terminal(Terminal *t) {
  free_file(t->f);
  close(t->master);
}

/* ---- the same from each ---- */

static void one_file(Loop *l, const Mode *m) {
  char buf[64] = "";
  AioFile *f = new_file(l, m, 0);
  AioEngine e = aio_file_engine(l->ctx, f);
  CHECK(m->engine == AIO_ENGINE_AUTO || e == m->engine);
  uint64_t by = ops_of(l, e);
  CHECK_EQ(write_at(l, f, "hello, world", 12, 0), 12);
  CHECK_EQ(read_at(l, f, buf, sizeof buf, 0), 12);
  CHECK_STR(buf, "hello, world");
  CHECK_EQ(read_at(l, f, buf, 5, 7), 5);
  CHECK(!memcmp(buf, "world", 5));
  CHECK(ops_of(l, e) > by);
  CHECK_EQ(read_at(l, f, buf, 5, 12), 0);
  CHECK_EQ(truncate_to(l, f, 5), 0);
  Op o = op_for(l, f, AIO_FILE_STAT);
  CHECK_EQ(finish(&o), 0);
  CHECK_EQ(o.op.stat.size, 5);
  CHECK_STR(o.op.stat.type, "file");
  CHECK_EQ(aio_file_size(f), 5);
  o = op_for(l, f, AIO_FILE_SYNC);
  CHECK_EQ(finish(&o), 0);
  o = op_for(l, f, AIO_FILE_DATASYNC);
  CHECK_EQ(finish(&o), 0);
  CHECK_EQ(truncate_to(l, f, -1), -EINVAL);
  CHECK_EQ(read_at(l, f, buf, 5, -1), -EINVAL);
  CHECK_EQ(write_at(l, f, "x", 1, -1), -EINVAL);
  CHECK_EQ(write_at(l, f, "x", 0, 0), 0);
  CHECK_EQ(read_at(l, f, buf, 0, 0), 0);
  CHECK_EQ(read_at(l, f, buf, 64, 0), 5);
  aio_file_close(f);
  CHECK(!aio_file_is_open(f) && aio_file_fd(f) == -1);
  o = moving(l, f, AIO_FILE_READ, buf, 1, 0);
  CHECK_EQ(submit(&o), -EBADF);
  aio_file_unref(f);
  CHECK(!aio_context_can_wake(l->ctx));
  CHECK(is_quiet(l));
}

static void every_kind_of_request(Loop *l) { each_mode(l, one_file); }

enum { MODEL = 40000 };

typedef struct Model {
  char bytes[MODEL];
  int64_t size;
} Model;

static size_t pick(uint32_t *seed, size_t max) { /* often on the grid, or near it */
  size_t n = rnd(seed) % (max + 1);
  uint32_t how = rnd(seed) % 4;
  if (how == 0) return n;
  n = n / GRID * GRID;
  return how == 1 && n > 0 ? n - 1 : how == 2 && n < max ? n + 1 : n;
}

static void random_request(Loop *l, AioFile *f, Model *model, char *buf, uint32_t *seed) {
  size_t offset = pick(seed, MODEL - 1), len = pick(seed, MODEL - offset);
  char *at = buf + (rnd(seed) % 2 ? 0 : rnd(seed) % 100);
  switch (rnd(seed) % 5) {
    case 0:
    case 1: {
      for (size_t i = 0; i < len; i++) at[i] = (char)rnd(seed);
      memcpy(model->bytes + offset, at, len);
      if (len && (int64_t)(offset + len) > model->size) model->size = (int64_t)(offset + len);
      CHECK_EQ(write_at(l, f, at, len, (int64_t)offset), len);
      break;
    }
    case 2:
      if (rnd(seed) % 4) break;
      if ((int64_t)offset < model->size) memset(model->bytes + offset, 0, MODEL - offset);
      model->size = (int64_t)offset;
      CHECK_EQ(truncate_to(l, f, (int64_t)offset), 0);
      break;
    default: {
      int64_t left = model->size - (int64_t)offset;
      int64_t expected = left < 0 ? 0 : left < (int64_t)len ? left : (int64_t)len;
      memset(at, '!', len + 8);
      CHECK_EQ(read_at(l, f, at, len, (int64_t)offset), expected);
      CHECK(!memcmp(at, model->bytes + offset, (size_t)expected));
      CHECK(!memcmp(at + len, "!!!!!!!!", 8));
    }
  }
  CHECK_EQ(aio_file_size(f), model->size);
}

static void random_requests(Loop *l, const Mode *m) {
  static Model model;
  uint32_t seed = 815;
  memset(&model, 0, sizeof model);
  char *buf = __real_aligned_alloc(GRID, 60 * 1024);
  AioFile *f = new_file(l, m, 0);
  for (long i = 0; i < 80; i++) {
    refuse.shorten = i % 3 ? 0 : GRID;
    random_request(l, f, &model, buf, &seed);
  }
  free_file(f);
  free(buf);
}

static void same_as_a_model(Loop *l) { each_mode(l, random_requests); }

static void ends_of(Loop *l, const Mode *m, int64_t size) {
  static const int64_t offsets[] = {0, 1, 511, 512, 4095, 4096, 4097, 8192, 9000, 13000};
  static const size_t lens[] = {1, 100, 4096, 8192, 20000};
  static Op ops[COUNT(offsets) * COUNT(lens)];
  AioFile *f = file_of_size(l, m, (size_t)size);
  size_t n = 0;
  char *bufs = __real_aligned_alloc(GRID, COUNT(ops) * 6 * GRID);
  done_total = 0;
  for (size_t i = 0; i < COUNT(offsets); i++)
    for (size_t k = 0; k < COUNT(lens); k++, n++) { /* all at once */
      char *buf = bufs + n * 6 * GRID + (n % 3 == 0 ? 0 : n % 64);
      memset(buf, '!', 5 * GRID);
      ops[n] = moving(l, f, AIO_FILE_READ, buf, lens[k], offsets[i]);
      CHECK_EQ(submit(&ops[n]), 0);
    }
  RUN_UNTIL(l, done_total == (int)n);
  for (size_t i = 0; i < n; i++) {
    const AioFileOp *op = &ops[i].op;
    int64_t left = size - op->offset, expected = left < 0 ? 0 : left < (int64_t)op->len ? left : (int64_t)op->len;
    CHECK_EQ(op->error, 0);
    CHECK_EQ(op->moved, expected);
    CHECK(are_letters(op->buf, op->moved, op->offset));
    CHECK_EQ(op->buf[op->len], '!');
  }
  free(bufs);
  free_file(f);
}

static void ends(Loop *l, const Mode *m) {
  static const int64_t sizes[] = {0, 1, 512, 4095, 4096, 4097, 8192, 8704, 12288, 12289};
  for (size_t i = 0; i < COUNT(sizes); i++) {
    refuse.shorten = i % 2 ? 0 : GRID;
    ends_of(l, m, sizes[i]);
  }
}

static void ends_on_the_grid_and_off_it(Loop *l) { each_mode(l, ends); }

static void far_away(Loop *l, const Mode *m) {
  static const int64_t offsets[] = {INT64_C(1) << 31, (INT64_C(1) << 32) - 3, (INT64_C(5) << 30) + 4097, INT64_C(3) << 40};
  char buf[16];
  for (size_t i = 0; i < COUNT(offsets); i++) {
    AioFile *f = new_file(l, m, 0);
    int64_t n = write_at(l, f, "far away", 8, offsets[i]);
    if (n == -EFBIG) { /* a file system of smaller files */
      free_file(f);
      continue;
    }
    CHECK_EQ(n, 8);
    CHECK_EQ(aio_file_size(f), offsets[i] + 8);
    memset(buf, '!', sizeof buf);
    CHECK_EQ(read_at(l, f, buf, sizeof buf, offsets[i] - 4), 12);
    CHECK(!memcmp(buf, "\0\0\0\0far away!", 13));
    CHECK_EQ(read_at(l, f, buf, sizeof buf, offsets[i] + 8), 0);
    CHECK_EQ(read_at(l, f, buf, 8, INT64_MAX - 100), 0);
    free_file(f);
  }
}

static void offsets_beyond_4_gib(Loop *l) { each_mode(l, far_away); }

static char *map_nothing(size_t n) { /* addresses without memory behind them until they are touched */
  char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

static void huge_reads(Loop *l, const Mode *m) {
  size_t len = ((size_t)5 << 30) + 17;
  char *buf = map_nothing(len + GRID);
  if (!buf) return skip("no addresses");
  AioFile *f = file_of_size(l, m, 10000);
  if (!m->direct) CHECK_EQ(read_at(l, f, buf, len, 0), 10000); /* past the page cache the kernel touches all of it */
  if (!m->direct) CHECK(are_letters(buf, 10000, 0));
  memset(buf, 0, 10000);
  CHECK_EQ(read_at(l, f, buf + 1, len - 1, 3), 9997);
  CHECK(are_letters(buf + 1, 9997, 3));
  munmap(buf, len + GRID);
  free_file(f);
}

static void lengths_beyond_2_gib(Loop *l) {
  each_mode(l, huge_reads);
  size_t len = ((size_t)5 << 30) + 17;
  char *buf = map_nothing(len);
  if (!buf) return;
  AioFile *f = new_file(l, &threads, 0);
  pretend = true; /* that all was read and written: how far does it come? */
  CHECK_EQ(read_at(l, f, buf, len, 0), len);
  CHECK_EQ(write_at(l, f, buf, len, 5), len);
  pretend = false;
  munmap(buf, len);
  free_file(f);
}

/* ---- not all of it ---- */

static void broken_off(Loop *l, const Mode *m) {
  enum { LEN = 32 * GRID };
  static const rlim_t limits[] = {16 * GRID, 16 * GRID + 100};
  struct rlimit before, now;
  char *buf = __real_aligned_alloc(GRID, LEN);
  CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
  for (size_t i = 0; i < 2 * COUNT(limits); i++) {
    AioFile *f = new_file(l, m, 0);
    size_t shift = i / 2; /* the second time it is not aligned */
    letters(buf, LEN, 0);
    now = (struct rlimit){limits[i % 2], before.rlim_max};
    CHECK(setrlimit(RLIMIT_FSIZE, &now) == 0);
    Op o = moving(l, f, AIO_FILE_WRITE, buf + shift, LEN - shift, (int64_t)shift);
    CHECK_EQ(submit(&o), 0);
    RUN_UNTIL(l, o.done);
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK_EQ(o.op.error, -EFBIG); /* and how far it came */
    CHECK_EQ(o.op.moved, limits[i % 2] - shift);
    CHECK_EQ(aio_file_size(f), limits[i % 2]);
    memset(buf, 0, LEN);
    CHECK_EQ(read_at(l, f, buf + shift, LEN - shift, (int64_t)shift), limits[i % 2] - shift);
    CHECK(are_letters(buf + shift, limits[i % 2] - shift, (int64_t)shift));
    free_file(f);
  }
  free(buf);
}

static void no_room(Loop *l, const Mode *m) {
  AioFile *f = aio_file_new(m->engine, m->direct);
  if (open_path(l, f, "/dev/full", O_RDWR) == 0) {
    CHECK_EQ(write_at(l, f, "x", 1, 0), -ENOSPC);
    CHECK_EQ(write_at(l, f, "x", 1, GRID), -ENOSPC);
  }
  free_file(f);
}

static void part_and_then_an_error(Loop *l) {
  signal(SIGXFSZ, SIG_IGN);
  each_mode(l, broken_off);
  each_mode(l, no_room);
}

static void in_small_pieces(Loop *l, const Mode *m) {
  enum { LEN = 50 * GRID };
  char *buf = __real_aligned_alloc(GRID, LEN);
  AioFile *f = new_file(l, m, 0);
  refuse.shorten = m->direct ? GRID : 1000;
  letters(buf, LEN, 0);
  CHECK_EQ(write_at(l, f, buf, LEN, 0), LEN);
  memset(buf, 0, LEN);
  CHECK_EQ(read_at(l, f, buf, LEN, 0), LEN);
  CHECK(are_letters(buf, LEN, 0));
  CHECK_EQ(read_at(l, f, buf, LEN - 300, 150), LEN - 300);
  CHECK(are_letters(buf, LEN - 300, 150));
  free_file(f);
  free(buf);
}

static void short_reads_and_writes(Loop *l) { each_mode(l, in_small_pieces); }

static void append(Loop *l, const Mode *m) {
  char *buf = __real_aligned_alloc(GRID, 4 * GRID), *got = __real_aligned_alloc(GRID, 8 * GRID);
  AioFile *f = new_file(l, m, O_APPEND);
  letters(buf, 4 * GRID, 0);
  size_t size = 0;
  for (size_t len = 1; len <= 4 * GRID; size += len, len = len == 1 ? GRID : len * 2) /* 1, and then aligned as far as we know */
    CHECK_EQ(write_at(l, f, buf, len, 0), len);
  CHECK_EQ(aio_file_size(f), size);
  CHECK_EQ(read_at(l, f, got, 8 * GRID, 0), size);
  CHECK(got[0] == buf[0] && !memcmp(got + 1, buf, GRID) && !memcmp(got + 1 + GRID, buf, 2 * GRID));
  CHECK(!memcmp(got + 1 + 3 * GRID, buf, 4 * GRID));
  Op o = moving(l, f, AIO_FILE_WRITE, buf, 1, 0);
  CHECK(!aio_file_try(l->ctx, &o.op)); /* half of it might be there twice */
  free_file(f);
  free(buf);
  free(got);
}

static void appending(Loop *l) { each_mode(l, append); }

/* ---- opening ---- */

static void openings(Loop *l, const Mode *m) {
  char path[PATH_MAX], buf[4];
  AioFile *f = aio_file_new(m->engine, m->direct);
  CHECK(!aio_file_is_open(f) && aio_file_fd(f) == -1);
  CHECK_EQ(aio_file_size(f), -EBADF);
  Op o = moving(l, f, AIO_FILE_READ, buf, 1, 0);
  CHECK_EQ(submit(&o), -EBADF);
  CHECK_EQ(open_path(l, f, "/nonexistent/file", O_RDONLY), -ENOENT);
  new_path(path);
  CHECK_EQ(open_path(l, f, path, O_RDONLY | O_CREAT | O_EXCL), -EEXIST);
  unlink(path);
  CHECK(mkfifo(path, 0600) == 0);
  CHECK_EQ(open_path(l, f, path, O_RDONLY), -ESPIPE); /* nobody writes: does not wait */
  CHECK_EQ(open_path(l, f, path, O_WRONLY), -ESPIPE);
  unlink(path);
  CHECK_EQ(open_path(l, f, path, O_WRONLY | O_CREAT | O_EXCL), 0); /* after all these */
  CHECK_EQ(read_at(l, f, buf, 1, 0), -EBADF);
  CHECK_EQ(write_at(l, f, "abc", 3, 0), 3);
  CHECK(fcntl(aio_file_fd(f), F_GETFD) & FD_CLOEXEC && !(fcntl(aio_file_fd(f), F_GETFL) & O_NONBLOCK));
  o = op_for(l, f, AIO_FILE_OPEN);
  o.op.path = path;
  CHECK_EQ(submit(&o), -EBADF); /* it is open */
  free_file(f);
  f = aio_file_new(m->engine, m->direct);
  CHECK_EQ(open_path(l, f, path, O_RDWR | O_TRUNC), 0);
  CHECK_EQ(aio_file_size(f), 0);
  free_file(f);
  unlink(path);
  f = aio_file_new(m->engine, m->direct);
  CHECK_EQ(open_path(l, f, "/", O_RDONLY), 0);
  o = op_for(l, f, AIO_FILE_STAT);
  CHECK_EQ(finish(&o), 0);
  CHECK_STR(o.op.stat.type, "directory");
  CHECK_EQ(read_at(l, f, buf, 1, 0), -EISDIR);
  free_file(f);
}

static void what_can_be_opened(Loop *l) { each_mode(l, openings); }

static void opened_twice_at_once(Loop *l) {
  char path[PATH_MAX];
  AioFile *f = aio_file_new(AIO_ENGINE_AUTO, true);
  Op a = op_for(l, f, AIO_FILE_OPEN), b = a, r = moving(l, f, AIO_FILE_READ, path, 1, 0);
  a.op.path = b.op.path = new_path(path);
  int before = atomic_load(&opens);
  CHECK_EQ(submit(&a), 0);
  CHECK_EQ(submit(&b), -EBADF);
  while (atomic_load(&opens) < before + 2) usleep(100); /* done, but not told yet */
  CHECK_EQ(submit(&b), -EBADF);
  CHECK_EQ(submit(&r), -EBADF);
  CHECK(!aio_file_is_open(f));
  RUN_UNTIL(l, a.done);
  CHECK(aio_file_is_open(f));
  unlink(path);
  free_file(f);
}

static void closed_while_it_opens(Loop *l) {
  char path[PATH_MAX];
  new_path(path);
  for (int how = 0; how < 4; how++) {
    AioFile *f = aio_file_new(AIO_ENGINE_AUTO, true);
    Op o = op_for(l, f, AIO_FILE_OPEN);
    o.op.path = path;
    int before = atomic_load(&opens), fds = open_fds();
    CHECK_EQ(submit(&o), 0);
    while (atomic_load(&opens) < before + 2) usleep(100);
    if (how == 1) aio_file_close(f);
    if (how == 2) aio_file_unref(f), f = NULL;
    if (how == 3) aio_context_close(l->ctx);
    if (how < 3) RUN_UNTIL(l, o.done);
    if (f) CHECK_EQ(aio_file_is_open(f), how == 0 || how == 3); /* who closes the context has a file that is open, or is not */
    if (f) aio_file_unref(f);
    if (how < 3) CHECK_EQ(open_fds(), fds); /* closed by the last that holds it; the pool has none */
  }
  unlink(path);
}

static void synchronous_past_the_page_cache(Loop *l) {
  if (!has_engine(l, &laio)) return;
  AioFile *f = new_file(l, &uring_direct, O_SYNC);
  int found = 0;
  for (int fd = aio_file_fd(f); fd < aio_file_fd(f) + 8; fd++) {
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && flags & O_DIRECT && (flags & O_SYNC) == O_SYNC) found++;
  }
  CHECK_EQ(found, 1);
  free_file(f);
}

/* ---- at once ---- */

static void tried(Loop *l) {
  AioFile *f = file_of_size(l, &(Mode){AIO_ENGINE_AUTO, false}, 100000);
  char buf[1000];
  Op o = moving(l, f, AIO_FILE_READ, buf, sizeof buf, 500);
  turn(l, 0);
  if (!aio_file_try(l->ctx, &o.op)) {
    free_file(f);
    return skip("RWF_NOWAIT");
  }
  CHECK(o.op.moved == sizeof buf && o.op.error == 0 && are_letters(buf, sizeof buf, 500) && !o.done);
  CHECK_EQ(ops_of(l, AIO_ENGINE_INLINE), 1);
  o.op.offset = 99500; /* the end */
  CHECK(aio_file_try(l->ctx, &o.op) && o.op.moved == 500);
  o.op.offset = 100001;
  CHECK(aio_file_try(l->ctx, &o.op) && o.op.moved == 0 && o.op.error == 0);
  o.op.offset = -1; /* not the kernel's own position */
  CHECK(!aio_file_try(l->ctx, &o.op));
  o.op.offset = 0;
  int tries = 0;
  while (tries < 1000 && aio_file_try(l->ctx, &o.op)) tries++;
  CHECK(tries > 0 && tries < 1000); /* so much in a turn */
  aio_bh_oneshot(l->ctx, note, "");
  turn(l, AIO_FOREVER);
  CHECK(aio_file_try(l->ctx, &o.op));
  o.op.len = 1 << 20;
  CHECK(!aio_file_try(l->ctx, &o.op));
  o.op.len = 10;
  aio_file_close(f);
  CHECK(!aio_file_try(l->ctx, &o.op));
  aio_file_unref(f);
}

/* ---- many ---- */

static void many_of(Loop *l, const Mode *m, int n, const AioOptions *opts) {
  loop_reopen(l, opts);
  AioFile *f = file_of_size(l, m, 64 * GRID);
  Op *ops = calloc((size_t)n, sizeof *ops);
  char *bufs = __real_aligned_alloc(GRID, (size_t)n * GRID);
  done_total = 0;
  for (int i = 0; i < n; i++) {
    ops[i] = moving(l, f, AIO_FILE_READ, bufs + (size_t)i * GRID, GRID, i % 64 * GRID);
    CHECK_EQ(submit(&ops[i]), 0);
  }
  RUN_UNTIL(l, done_total == n);
  for (int i = 0; i < n; i++) CHECK(ops[i].op.error == 0 && ops[i].op.moved == GRID && are_letters(ops[i].op.buf, GRID, ops[i].op.offset));
  CHECK_EQ(ops_of(l, aio_file_engine(l->ctx, f)) >= (uint64_t)n, 1);
  CHECK(is_quiet(l));
  CHECK(rests(l));
  CHECK(!aio_context_can_wake(l->ctx));
  free(bufs);
  free(ops);
  free_file(f);
}

static void thousand_over_a_small_ring(Loop *l, const Mode *m) {
  many_of(l, m, 1000, &(AioOptions){.ring_entries = 8});
  if (m->engine == AIO_ENGINE_URING) many_of(l, m, 100, &(AioOptions){.ring_entries = 1});
  if (m->engine == AIO_ENGINE_URING && strcmp(l->backend, "io_uring")) many_of(l, m, 100, &(AioOptions){.ring_entries = 1 << 30}); /* as many as there can be */
  if (m->engine == AIO_ENGINE_LAIO) many_of(l, m, 3000, NULL); /* beyond what may be in flight */
}

static void more_than_there_is_room_for(Loop *l) { each_mode(l, thousand_over_a_small_ring); }

static Op *batch;
static int batch_n;
static void submit_batch(void *opaque) {
  (void)opaque;
  for (int i = 0; i < batch_n; i++) CHECK_EQ(submit(&batch[i]), 0);
}

static void check_batch(Loop *l, const Mode *m, const AioOptions *opts, uint64_t expected) {
  enum { N = 100 };
  static Op ops[N];
  loop_reopen(l, opts);
  AioFile *f = file_of_size(l, m, N * GRID);
  char *bufs = __real_aligned_alloc(GRID, N * GRID);
  done_total = 0;
  for (int i = 0; i < N; i++) ops[i] = moving(l, f, AIO_FILE_READ, bufs + i * GRID, GRID, i * GRID);
  batch = ops, batch_n = N;
  uint64_t before = submits_of(l);
  aio_bh_oneshot(l->ctx, submit_batch, NULL);
  RUN_UNTIL(l, done_total == N);
  CHECK_EQ(submits_of(l) - before, expected);
  free(bufs);
  free_file(f);
}

static void one_system_call_for_many(Loop *l) {
  nothing_refused();
  if (has_engine(l, &uring)) check_batch(l, &uring, NULL, 1);
  if (has_engine(l, &uring_direct)) check_batch(l, &uring_direct, NULL, 1);
  if (!has_engine(l, &laio)) return;
  check_batch(l, &laio, NULL, 4); /* of 32 at most */
  check_batch(l, &laio, &(AioOptions){.laio_batch = 10}, 10);
  check_batch(l, &laio, &(AioOptions){.laio_batch = 1}, 100);
  check_batch(l, &laio, &(AioOptions){.laio_batch = 1000}, 1);
  refuse.takes = 3; /* the kernel takes three at a time */
  check_batch(l, &laio, &(AioOptions){.laio_batch = 50}, 34);
}

/* ---- cancelled ---- */

static void cancel_before_it_is_handed_over(Loop *l, const Mode *m) {
  enum { N = 10 };
  Op ops[N];
  char bufs[N][8];
  AioFile *f = file_of_size(l, m, 100);
  done_total = 0;
  aio_defer_begin(l->ctx);
  for (int i = 0; i < N; i++) {
    ops[i] = moving(l, f, AIO_FILE_READ, bufs[i], 8, i);
    CHECK_EQ(submit(&ops[i]), 0);
    if (i % 2) aio_file_cancel(&ops[i].op), aio_file_cancel(&ops[i].op);
  }
  CHECK_EQ(done_total, 0);
  CHECK(aio_context_can_wake(l->ctx));
  aio_defer_end(l->ctx);
  RUN_UNTIL(l, done_total == N);
  bool queues = aio_file_engine(l->ctx, f) == AIO_ENGINE_URING || aio_file_engine(l->ctx, f) == AIO_ENGINE_LAIO;
  for (int i = 0; i < N; i++) {
    bool cancelled = ops[i].op.error == -ECANCELED;
    CHECK(cancelled || (ops[i].op.error == 0 && ops[i].op.moved == 8 && are_letters(bufs[i], 8, i)));
    CHECK(i % 2 ? cancelled || !queues : !cancelled);
    aio_file_cancel(&ops[i].op); /* too late */
  }
  free_file(f);
  CHECK(is_quiet(l));
}

static void cancel_other(Op *o) { aio_file_cancel(&o->other->op), aio_file_cancel(&o->op); }

static void cancel_when_it_is_over(Loop *l, const Mode *m) {
  Op a, b;
  char buf[2][8];
  AioFile *f = file_of_size(l, m, 100);
  a = moving(l, f, AIO_FILE_READ, buf[0], 8, 0);
  b = moving(l, f, AIO_FILE_READ, buf[1], 8, 8);
  a.other = &b, b.other = &a;
  a.then = b.then = cancel_other; /* each when the other is told, or about to be */
  aio_defer_begin(l->ctx);
  CHECK_EQ(submit(&a), 0);
  CHECK_EQ(submit(&b), 0);
  aio_defer_end(l->ctx);
  RUN_UNTIL(l, a.done && b.done);
  CHECK(a.op.error == 0 || b.op.error == 0);
  a.then = b.then = NULL;
  for (int turns = 0; turns < 4; turns++) { /* handed over, and on its way back */
    CHECK_EQ(submit(&a), 0);
    for (int i = 0; i < turns && !a.done; i++) turn(l, MS);
    aio_file_cancel(&a.op);
    RUN_UNTIL(l, a.done);
    CHECK(a.op.error == -ECANCELED || (a.op.error == 0 && a.op.moved == 8));
  }
  free_file(f);
  CHECK(is_quiet(l));
  CHECK(rests(l));
}

static void cancelled_at_any_time(Loop *l) {
  each_mode(l, cancel_before_it_is_handed_over);
  each_mode(l, cancel_when_it_is_over);
}

static void cancelled_while_the_kernel_has_it(Loop *l) {
  Terminal t;
  char buf[8], other[8];
  nothing_refused();
  if (!open_terminal(l, &t)) return;
  Op o = moving(l, t.f, AIO_FILE_READ, buf, 4, 0), p = moving(l, t.f, AIO_FILE_READ, other, 4, 0);
  CHECK_EQ(submit(&o), 0);
  CHECK_EQ(submit(&p), 0);
  turns_in(l, 5 * MS);
  CHECK(!o.done && aio_context_can_wake(l->ctx));
  AioStats s;
  aio_context_stats(l->ctx, &s);
  CHECK_EQ(s.watches, 0); /* our own does not count */
  CHECK(rests(l));
  aio_file_cancel(&o.op);
  RUN_UNTIL(l, o.done);
  CHECK_EQ(o.op.error, -ECANCELED);
  CHECK(!p.done);
  type(&t, "abc\n");
  RUN_UNTIL(l, p.done);
  CHECK(p.op.moved == 4 && p.op.error == 0 && !memcmp(other, "abc\n", 4));
  aio_defer_begin(l->ctx); /* handed over, and cancelled in the same section */
  CHECK_EQ(submit(&o), 0);
  turn(l, 0);
  aio_file_cancel(&o.op);
  aio_defer_end(l->ctx);
  RUN_UNTIL(l, o.done);
  CHECK_EQ(o.op.error, -ECANCELED);
  CHECK(!aio_context_can_wake(l->ctx));
  CHECK(is_quiet(l));
  close_terminal(&t);
}

static void all_cancelled(Loop *l, AioFile *f, int n, bool section) {
  Op *ops = calloc((size_t)n, sizeof *ops);
  char *buf = calloc((size_t)n, 1);
  done_total = 0;
  if (section) aio_defer_begin(l->ctx);
  for (int i = 0; i < n; i++) {
    ops[i] = moving(l, f, AIO_FILE_READ, buf + i, 1, 0);
    CHECK_EQ(submit(&ops[i]), 0);
  }
  for (int i = 0; i < n; i++) aio_file_cancel(&ops[i].op);
  if (section) aio_defer_end(l->ctx);
  RUN_UNTIL(l, done_total == n);
  for (int i = 0; i < n; i++) CHECK(ops[i].op.error == -ECANCELED || ops[i].op.moved == 1);
  free(buf);
  free(ops);
}

static void hundred_thousand_of(Loop *l, const Mode *m) {
  int n = (int)check_scale(100000);
  if (m->engine == AIO_ENGINE_AUTO) return;
  if (strcmp(l->backend, "epoll")) n /= 10; /* which has little to do with it */
  AioFile *f = file_of_size(l, m, 100);
  if (m->engine == AIO_ENGINE_INLINE) n /= 10; /* has done them all before the first can be cancelled */
  if (m->engine == AIO_ENGINE_THREADS) n /= m->direct ? 10 : 5; /* the threads run a race with us */
  all_cancelled(l, f, 1000, false); /* warm */
  for (int section = 0; section < 2; section++) {
    int64_t t0 = now_ns();
    all_cancelled(l, f, n / 10, section);
    int64_t t1 = now_ns();
    all_cancelled(l, f, n, section);
    CHECK(now_ns() - t1 < 50 * (t1 - t0) + 2 * SEC); /* linear: a quadratic one takes minutes */
  }
  free_file(f);
}

static void hundred_thousand_cancelled(Loop *l) { each_mode(l, hundred_thousand_of); }

/* ---- closed ---- */

static void close_the_file(Op *o) { aio_file_close(o->op.file); }

static void file_closed(Loop *l, const Mode *m) {
  enum { N = 20 };
  Op ops[N];
  char bufs[N][16];
  for (int turns = 0; turns < 4; turns++) {
    AioFile *f = file_of_size(l, m, 100);
    int fds = open_fds();
    done_total = 0;
    aio_defer_begin(l->ctx);
    for (int i = 0; i < N; i++) {
      ops[i] = moving(l, f, AIO_FILE_READ, bufs[i], 8, i);
      CHECK_EQ(submit(&ops[i]), 0);
      if (turns == 3) ops[i].then = close_the_file;
    }
    if (turns == 0) aio_file_close(f);
    aio_defer_end(l->ctx);
    if (turns == 1) aio_file_close(f);
    if (turns == 2) turn(l, 0), aio_file_close(f);
    aio_file_unref(f); /* the requests hold it */
    RUN_UNTIL(l, done_total == N);
    for (int i = 0; i < N; i++) CHECK(ops[i].op.error == 0 && ops[i].op.moved == 8 && are_letters(bufs[i], 8, i));
    CHECK(open_fds() < fds);
  }
}

static void the_file_is_closed_at_any_time(Loop *l) { each_mode(l, file_closed); }

static void close_the_context(Op *o) { aio_context_close(o->l->ctx); }

static void context_closed(Loop *l, const Mode *m) {
  enum { N = 40 };
  for (int how = 0; how < 6; how++) {
    Op *ops = calloc(N, sizeof *ops); /* all gone when close returns */
    char *bufs = __real_aligned_alloc(GRID, N * GRID);
    AioFile *f = file_of_size(l, m, N * GRID);
    done_total = 0;
    aio_defer_begin(l->ctx);
    for (int i = 0; i < N; i++) {
      ops[i] = moving(l, f, i % 5 == 4 ? AIO_FILE_DATASYNC : AIO_FILE_READ, bufs + i * GRID, GRID, i * GRID);
      CHECK_EQ(submit(&ops[i]), 0);
      if (how == 3 || how == 4) ops[i].then = close_the_context;
    }
    if (how == 0) aio_context_close(l->ctx); /* not handed over */
    aio_defer_end(l->ctx);
    if (how == 2) turn(l, 0);
    if (how == 3) RUN_UNTIL(l, aio_context_closed(l->ctx));
    if (how == 4) aio_file_unref(f), f = NULL;
    if (how == 4) RUN_UNTIL(l, aio_context_closed(l->ctx));
    if (how == 5)
      for (int i = 0; i < N; i += 3) aio_file_cancel(&ops[i].op);
    aio_context_close(l->ctx);
    if (how == 3 || how == 4) CHECK_EQ(done_total, 1);
    int told = done_total;
    memset(bufs, '!', N * GRID);
    usleep(1000);
    for (int i = 0; i < N * GRID; i++) CHECK_EQ(bufs[i], '!'); /* the kernel has let go of it */
    turn(l, 0);
    CHECK_EQ(done_total, told);
    if (f) CHECK_EQ(submit(&ops[0]), -ESHUTDOWN);
    if (f) aio_file_engine(l->ctx, f);
    if (f) free_file(f);
    free(bufs);
    free(ops);
    loop_reopen(l, NULL);
  }
}

static void the_context_is_closed_at_any_time(Loop *l) { each_mode(l, context_closed); }

static void closed_while_the_kernel_has_it(Loop *l) {
  for (int how = 0; how < 4; how++) {
    Terminal t;
    char *buf = calloc(8, 1);
    Op *o = calloc(2, sizeof *o);
    nothing_refused();
    if (!open_terminal(l, &t)) return free(buf), free(o);
    for (int i = 0; i < 2; i++) {
      o[i] = moving(l, t.f, AIO_FILE_READ, buf, 4, 0);
      CHECK_EQ(submit(&o[i]), 0);
    }
    if (how == 1) turns_in(l, 5 * MS);
    if (how == 2) aio_file_cancel(&o[0].op);
    if (how == 3) refuse.enter = EPERM; /* it can neither be told to stop nor waited for there */
    if (how == 3) type(&t, "abc\nabc\n");
    aio_context_close(l->ctx);
    CHECK(!o[0].done && !o[1].done);
    memset(buf, '!', 8);
    type(&t, "abc\n");
    usleep(2000);
    CHECK(!memcmp(buf, "!!!!!!!!", 8));
    free(buf);
    free(o);
    close_terminal(&t);
    nothing_refused();
    loop_reopen(l, NULL);
  }
}

/* ---- turns within done ---- */

static void read_again_inside(Op *o) {
  char buf[16];
  Op inner = moving(o->l, o->op.file, AIO_FILE_READ, buf, 8, 40);
  CHECK_EQ(submit(&inner), 0);
  RUN_UNTIL(o->l, inner.done && (!o->other || o->other->done)); /* and those that were over with it */
  CHECK(inner.op.moved == 8 && are_letters(buf, 8, 40));
}

static void nested(Loop *l, const Mode *m) {
  enum { N = 12 };
  Op ops[N];
  char bufs[N][16];
  AioFile *f = file_of_size(l, m, 100);
  done_total = 0;
  for (int i = 0; i < N; i++) {
    ops[i] = moving(l, f, AIO_FILE_READ, bufs[i], 8, i);
    ops[i].other = i < N - 1 ? &ops[i + 1] : NULL;
    ops[i].then = read_again_inside;
  }
  batch = ops, batch_n = N;
  aio_bh_oneshot(l->ctx, submit_batch, NULL);
  RUN_UNTIL(l, ops[0].done);
  RUN_UNTIL(l, done_total == 2 * N);
  for (int i = 0; i < N; i++) CHECK(ops[i].done == 1 && ops[i].op.moved == 8);
  CHECK(is_quiet(l));
  free_file(f);
}

static void a_turn_within_done(Loop *l) { each_mode(l, nested); }

static Terminal typed;

static void type_for_another(Op *o) { /* whichever that is */
  int before = done_total;
  if (before == 3) return;
  type(&typed, "xyz\n");
  RUN_UNTIL(o->l, done_total > before);
}

/* The ring has something all the time: its watch stays open, and is the one that calls done. */
static void a_turn_within_done_while_the_kernel_has_more(Loop *l) {
  char buf[3][8];
  Op ops[3];
  nothing_refused();
  if (!open_terminal(l, &typed)) return;
  for (int i = 0; i < 3; i++) {
    ops[i] = moving(l, typed.f, AIO_FILE_READ, buf[i], 4, 0);
    ops[i].then = type_for_another;
    CHECK_EQ(submit(&ops[i]), 0);
  }
  turns_in(l, 2 * MS);
  done_total = 0;
  type(&typed, "xyz\n");
  RUN_UNTIL(l, done_total == 3);
  for (int i = 0; i < 3; i++) CHECK(ops[i].done == 1 && ops[i].op.moved == 4 && !memcmp(buf[i], "xyz\n", 4));
  CHECK(is_quiet(l));
  close_terminal(&typed);
}

/* ---- busy polling ---- */

static int waits_begun;
static void count_waits(AioTracePoint point, const void *object, int64_t value, void *opaque) {
  (void)object, (void)opaque;
  if (point == AIO_TRACE_WAIT_BEGIN && value != 0) waits_begun++;
}

static void found_without_sleeping(Loop *l, const Mode *m) {
  char *buf = __real_aligned_alloc(GRID, GRID);
  AioFile *f = file_of_size(l, m, 64 * GRID);
  CHECK_EQ(aio_set_polling(l->ctx, SEC, 2, 0), 0);
  int without = 0, reads = 0;
  aio_trace_set(count_waits, NULL);
  for (; without < 5 && reads < 5000; reads++) { /* it learns how long they take */
    waits_begun = 0;
    CHECK_EQ(read_at(l, f, buf, GRID, reads % 64 * GRID), GRID);
    without += waits_begun == 0;
  }
  aio_trace_set(NULL, NULL);
  CHECK_EQ(without, 5);
  CHECK_EQ(aio_set_polling(l->ctx, 0, 0, 0), 0);
  free_file(f);
  free(buf);
}

static void busy_polling(Loop *l) { each_mode(l, found_without_sleeping); }

/* What the page cache has is answered by the call that hands it over: nobody is asked for fds, nobody is woken. */
static void answered_at_once(Loop *l) {
  char buf[GRID];
  AioStats before, after;
  nothing_refused();
  if (!has_engine(l, &uring)) return;
  AioFile *f = file_of_size(l, &uring, 64 * GRID);
  struct iovec first = {buf, 1};
  if (preadv2(aio_file_fd(f), &first, 1, 0, RWF_NOWAIT) < 0) {
    free_file(f);
    return skip("RWF_NOWAIT");
  }
  CHECK_EQ(read_at(l, f, buf, 1, 0), 1);
  aio_context_stats(l->ctx, &before);
  for (int i = 0; i < 100; i++) CHECK_EQ(read_at(l, f, buf, GRID, i % 64 * GRID), GRID);
  aio_context_stats(l->ctx, &after);
  CHECK_EQ(after.submits - before.submits, 100);
  CHECK_EQ(after.wakeups - before.wakeups, 0);
  if (!is_glib(l)) CHECK(after.asks - before.asks <= 4); /* unless a page was not there */
  free_file(f);
}

/* ---- refused ---- */

static void works(Loop *l, const Mode *m, AioEngine first, AioEngine then) {
  enum { N = 20 };
  static Op ops[N];
  char buf[64] = "";
  AioFile *f = new_file(l, m, 0);
  CHECK_EQ(aio_file_engine(l->ctx, f), first);
  CHECK_EQ(write_at(l, f, "refused", 7, 0), 7);
  CHECK_EQ(read_at(l, f, buf, sizeof buf, 0), 7);
  CHECK_STR(buf, "refused");
  char *bufs = __real_aligned_alloc(GRID, N * GRID);
  letters(bufs, N * GRID, 0);
  CHECK_EQ(write_at(l, f, bufs, N * GRID, 0), N * GRID);
  memset(bufs, 0, N * GRID);
  done_total = 0;
  for (int i = 0; i < N; i++) {
    ops[i] = moving(l, f, AIO_FILE_READ, bufs + i * GRID, GRID, i * GRID);
    CHECK_EQ(submit(&ops[i]), 0);
  }
  RUN_UNTIL(l, done_total == N);
  CHECK(are_letters(bufs, N * GRID, 0));
  CHECK_EQ(aio_file_engine(l->ctx, f), then);
  free(bufs);
  Op o = op_for(l, f, AIO_FILE_SYNC);
  CHECK_EQ(finish(&o), 0);
  free_file(f);
  CHECK(is_quiet(l));
  CHECK(rests(l));
}

static const Mode best = {AIO_ENGINE_AUTO, false}, best_direct = {AIO_ENGINE_AUTO, true};

static size_t some(const Loop *l, size_t n) { return is_glib(l) || strcmp(l->backend, "epoll") || check_slow() ? 1 : n; } /* the rest is the same */

static bool refused_some(void) { return atomic_exchange(&refused, 0) > 0; }

static void reopen(Loop *l) {
  nothing_refused();
  loop_reopen(l, NULL);
  turn(l, 0); /* backend io_uring has its ring then that GLib can sleep on */
}

static void engines_that_cannot_be_made(Loop *l) {
  static const int errors[] = {EPERM, ENOSYS, ENOMEM, EMFILE, EAGAIN};
  nothing_refused();
  bool rings = has_engine(l, &uring), laios = has_engine(l, &laio);
  for (size_t i = 0; i < some(l, COUNT(errors)); i++) {
    reopen(l);
    refuse.init = errors[i];
    works(l, &best, AIO_ENGINE_THREADS, AIO_ENGINE_THREADS);
    if (rings) CHECK(refused_some());
    AioEngine direct = laios ? AIO_ENGINE_LAIO : AIO_ENGINE_THREADS;
    works(l, &best_direct, direct, direct);
    reopen(l);
    refuse.init = refuse.setup = errors[i];
    works(l, &best_direct, AIO_ENGINE_THREADS, AIO_ENGINE_THREADS);
    if (laios) CHECK(refused_some());
    reopen(l);
    refuse.init = EPERM;
    refuse.eventfd = errors[i];
    works(l, &best_direct, AIO_ENGINE_THREADS, AIO_ENGINE_THREADS);
    if (laios) CHECK(refused_some());
    reopen(l);
    refuse.init = EPERM;
    refuse.create = EAGAIN; /* and no thread either: it waits, but it works */
    works(l, &best, AIO_ENGINE_THREADS, AIO_ENGINE_THREADS);
    CHECK(refused_some());
    CHECK(ops_of(l, AIO_ENGINE_INLINE) > 20 && ops_of(l, AIO_ENGINE_THREADS) == 0);
    nothing_refused();
  }
}

static void a_ring_that_is_refused_later(Loop *l) {
  static const int errors[] = {EPERM, ENOSYS, EINVAL, EBADF};
  nothing_refused();
  if (!has_engine(l, &uring)) return;
  for (size_t i = 0; i < some(l, COUNT(errors)); i++) {
    loop_reopen(l, NULL);
    refused_some();
    works(l, &best, AIO_ENGINE_URING, AIO_ENGINE_URING);
    refuse.enter = errors[i];
    works(l, &best, AIO_ENGINE_URING, AIO_ENGINE_THREADS);
    works(l, &best_direct, has_engine(l, &laio) ? AIO_ENGINE_LAIO : AIO_ENGINE_THREADS, has_engine(l, &laio) ? AIO_ENGINE_LAIO : AIO_ENGINE_THREADS);
    CHECK(refused_some());
    nothing_refused();
  }
}

/* For a while, or for ever: then each goes to a thread, and the ring is asked again for the next. */
static void a_ring_without_memory(Loop *l) {
  static const int errors[] = {EAGAIN, ENOMEM, EBUSY};
  nothing_refused();
  if (!has_engine(l, &uring)) return;
  for (size_t i = 0; i < some(l, COUNT(errors)); i++)
    for (int times = 0; times < 3; times++) {
      loop_reopen(l, NULL);
      refused_some();
      refuse.enter = errors[i];
      refuse.enters = times;
      works(l, &best, AIO_ENGINE_URING, AIO_ENGINE_URING);
      CHECK(refused_some());
      CHECK(ops_of(l, AIO_ENGINE_THREADS) > (times ? 0 : 20));
      nothing_refused();
      works(l, &best, AIO_ENGINE_URING, AIO_ENGINE_URING);
    }
}

/* Some are in the kernel when it says so: its answers are waited for, and nothing is done twice. */
static void a_ring_that_takes_a_part(Loop *l) {
  enum { N = 8 };
  static const int errors[] = {EAGAIN, EBUSY, EPERM, ENOSYS};
  nothing_refused();
  for (size_t i = 0; i < some(l, COUNT(errors)); i++)
    for (unsigned takes = 1; takes < 5; takes++) {
      Terminal t;
      char bufs[N][8];
      Op ops[N], o;
      loop_reopen(l, NULL);
      if (!open_terminal(l, &t)) return;
      AioFile *f = file_of_size(l, &uring, 100);
      o = moving(l, t.f, AIO_FILE_READ, bufs[0], 4, 0);
      CHECK_EQ(submit(&o), 0);
      done_total = 0;
      aio_defer_begin(l->ctx);
      for (int k = 0; k < N; k++) {
        ops[k] = moving(l, f, AIO_FILE_READ, bufs[k], 8, k);
        if (k) CHECK_EQ(submit(&ops[k]), 0);
      }
      refuse.takes = takes;
      refuse.enter = errors[i];
      refuse.enters = 3;
      aio_defer_end(l->ctx);
      RUN_UNTIL(l, done_total == N - 1);
      for (int k = 1; k < N; k++) CHECK(ops[k].op.error == 0 && ops[k].op.moved == 8 && are_letters(bufs[k], 8, k));
      CHECK(!o.done);
      nothing_refused();
      if (takes % 2) { /* a broken ring still answers */
        type(&t, "abc\n");
        RUN_UNTIL(l, o.done);
        CHECK(!memcmp(bufs[0], "abc\n", 4));
        CHECK(!aio_context_can_wake(l->ctx));
        CHECK(is_quiet(l));
      } else {
        aio_context_close(l->ctx); /* and is waited for, though it may not be told to stop */
      }
      CHECK_EQ(done_total, takes % 2 ? N : N - 1);
      free_file(f);
      close_terminal(&t);
    }
}

static void linux_aio_that_refuses_some(Loop *l) {
  static const int errors[] = {EAGAIN, EINVAL, EBADF, ENOSYS, EPERM, EINTR};
  nothing_refused();
  if (!has_engine(l, &laio)) return;
  for (size_t i = 0; i < some(l, COUNT(errors)); i++)
    for (int times = 0; times < 4; times++) {
      if (errors[i] == EINTR && times == 0) continue;
      loop_reopen(l, NULL);
      refused_some();
      refuse.submit = errors[i];
      refuse.submits = times;
      bool for_good = errors[i] == ENOSYS || errors[i] == EPERM; /* for all requests that come */
      works(l, &laio, AIO_ENGINE_LAIO, for_good ? AIO_ENGINE_THREADS : AIO_ENGINE_LAIO);
      CHECK(refused_some());
      CHECK((ops_of(l, AIO_ENGINE_LAIO) == 0) == (times == 0 || for_good));
      nothing_refused();
    }
}

static void without_o_direct(Loop *l) {
  for (size_t i = 0; i < COUNT(modes); i++) {
    if (!modes[i].direct) continue;
    loop_reopen(l, NULL);
    nothing_refused();
    bool rings = has_engine(l, &uring);
    refuse.no_direct = 1;
    refused_some();
    AioEngine e = rings && modes[i].engine != AIO_ENGINE_LAIO && modes[i].engine != AIO_ENGINE_THREADS ? AIO_ENGINE_URING : AIO_ENGINE_THREADS;
    works(l, &modes[i], e, e);
    CHECK(refused_some());
    nothing_refused();
  }
}

static void aligned_for_most_is_not_enough(Loop *l) {
  static const Mode some[] = {{AIO_ENGINE_LAIO, true}, {AIO_ENGINE_THREADS, true}};
  for (size_t i = 0; i < COUNT(some); i++) {
    loop_reopen(l, NULL);
    nothing_refused();
    if (!has_engine(l, &laio)) return;
    refuse.unaligned = true;
    refused_some();
    works(l, &some[i], some[i].engine, some[i].engine);
    CHECK(refused_some());
    nothing_refused();
  }
}

/* ---- refused by a sandbox, in a process of its own ---- */

static bool sandbox(const long *calls, size_t n, int error) {
  struct sock_filter f[16];
  size_t k = 0;
  f[k++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
  for (size_t i = 0; i < n; i++) {
    f[k++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i], 0, 1);
    f[k++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error);
  }
  f[k++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  struct sock_fprog prog = {(unsigned short)k, f};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

typedef struct Sandbox {
  const char *name;
  long calls[2];
  size_t n;
  bool later;                     /* after the first requests */
  AioEngine first, then, direct, direct_then; /* of what is granted here */
} Sandbox;

static const Sandbox sandboxes[] = {
  {"io_uring_setup", {SYS_io_uring_setup}, 1, false, AIO_ENGINE_THREADS, AIO_ENGINE_THREADS, AIO_ENGINE_LAIO, AIO_ENGINE_LAIO},
  {"io_uring_setup, io_setup", {SYS_io_uring_setup, SYS_io_setup}, 2, false, AIO_ENGINE_THREADS, AIO_ENGINE_THREADS, AIO_ENGINE_THREADS, AIO_ENGINE_THREADS},
  {"io_uring_enter", {SYS_io_uring_enter}, 1, false, AIO_ENGINE_URING, AIO_ENGINE_THREADS, AIO_ENGINE_LAIO, AIO_ENGINE_LAIO},
  {"io_uring_enter later", {SYS_io_uring_enter}, 1, true, AIO_ENGINE_URING, AIO_ENGINE_THREADS, AIO_ENGINE_LAIO, AIO_ENGINE_LAIO},
  {"io_uring_enter, io_submit later", {SYS_io_uring_enter, SYS_io_submit}, 2, true, AIO_ENGINE_URING, AIO_ENGINE_THREADS, AIO_ENGINE_LAIO, AIO_ENGINE_THREADS},
};

static void in_a_sandbox(Loop *outer, const Sandbox *s, int error, bool direct_is_laio) {
  Loop l = {.driver = outer->driver, .backend = outer->backend};
  loop_open(&l, NULL);
  if (s->later) works(&l, &best, AIO_ENGINE_URING, AIO_ENGINE_URING);
  if (!sandbox(s->calls, s->n, error)) _exit(77);
  bool asked_again = error == ENOMEM && s->then != s->first; /* no memory now: the ring is asked again */
  works(&l, &best, s->first, asked_again ? s->first : s->then);
  if (!asked_again) works(&l, &best_direct, direct_is_laio ? s->direct : AIO_ENGINE_THREADS, direct_is_laio ? s->direct_then : AIO_ENGINE_THREADS);
  CHECK(ops_of(&l, AIO_ENGINE_THREADS) > 20);
  loop_close(&l);
  fflush(stdout);
  _exit(0);
}

static void sandboxed(Loop *l) {
  static const int errors[] = {EPERM, ENOSYS, ENOMEM};
  nothing_refused();
  if (!strcmp(l->backend, "io_uring")) return; /* it cannot be there */
  bool rings = has_engine(l, &uring), laios = has_engine(l, &laio);
  loop_reopen(l, NULL); /* no threads */
  for (size_t i = 0; i < COUNT(sandboxes); i++)
    for (size_t k = 0; k < some(l, COUNT(errors)); k++) {
      if (!rings && sandboxes[i].first == AIO_ENGINE_URING) continue;
      fflush(stdout);
      pid_t pid = fork();
      CHECK(pid >= 0);
      if (pid == 0) {
        alarm(40);
        snprintf(check_name, sizeof check_name, "%s: %s", sandboxes[i].name, strerror(errors[k]));
        in_a_sandbox(l, &sandboxes[i], errors[k], laios);
      }
      int status;
      CHECK(waitpid(pid, &status, 0) == pid);
      if (WIFEXITED(status) && WEXITSTATUS(status) == 77) return skip("no seccomp");
      CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

/* ---- descriptors closed behind our back ---- */

static bool is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

/* The one that asking for the engine has opened. */
static int fd_of_engine(Loop *l, const AioFile *f) {
  bool before[1024];
  for (int fd = 0; fd < 1024; fd++) before[fd] = is_open(fd);
  aio_file_engine(l->ctx, f);
  for (int fd = 0; fd < 1024; fd++)
    if (is_open(fd) && !before[fd]) return fd;
  return -1;
}

static void the_ring_is_closed_behind_our_back(Loop *l) {
  Terminal t;
  char buf[8], other[8];
  nothing_refused();
  for (int how = 0; how < 3; how++) {
    if (!has_engine(l, &uring)) return;
    loop_reopen(l, NULL);
    AioFile *probe = new_file(l, &uring, 0);
    int ring = fd_of_engine(l, probe);
    CHECK(ring >= 0);
    free_file(probe);
    if (!open_terminal(l, &t)) return;
    Op o = moving(l, t.f, AIO_FILE_READ, buf, 4, 0);
    CHECK_EQ(submit(&o), 0);
    turn(l, 0);
    close(ring);
    if (how == 0) { /* nothing more happens but the answer */
      type(&t, "abc\n");
      RUN_UNTIL(l, o.done);
    } else {
      if (how == 1) turns_in(l, 100 * MS); /* has noticed */
      AioFile *f = file_of_size(l, &(Mode){AIO_ENGINE_URING, false}, 100);
      CHECK_EQ(read_at(l, f, other, 8, 3), 8);
      CHECK(are_letters(other, 8, 3));
      CHECK_EQ(aio_file_engine(l->ctx, f), AIO_ENGINE_THREADS);
      free_file(f);
      CHECK(!o.done);
      type(&t, "abc\n");
      RUN_UNTIL(l, o.done);
    }
    CHECK(o.op.error == 0 && !memcmp(buf, "abc\n", 4));
    CHECK(!aio_context_can_wake(l->ctx));
    AioStats s;
    aio_context_stats(l->ctx, &s);
    CHECK_EQ(s.watches, 0);
    if (how == 1) { /* the number is another file's now */
      int fd = open("/dev/null", O_RDONLY);
      CHECK(fd >= 0 && dup2(fd, ring) == ring);
      if (fd != ring) close(fd);
      aio_context_close(l->ctx);
      CHECK(is_open(ring));
      close(ring);
    }
    close_terminal(&t);
    if (how != 1) aio_context_close(l->ctx);
    loop_reopen(l, NULL);
  }
}

static void the_eventfd_is_closed_behind_our_back(Loop *l) {
  enum { N = 50 };
  static Op ops[N];
  nothing_refused();
  for (int how = 0; how < 3; how++) {
    if (!has_engine(l, &laio)) return;
    loop_reopen(l, NULL);
    AioFile *f = file_of_size(l, &laio, N * GRID);
    int efd = fd_of_engine(l, f);
    CHECK(efd >= 0);
    char *bufs = __real_aligned_alloc(GRID, N * GRID);
    done_total = 0;
    if (how == 0) close(efd);
    for (int i = 0; i < N; i++) {
      ops[i] = moving(l, f, AIO_FILE_READ, bufs + i * GRID, GRID, i * GRID);
      CHECK_EQ(submit(&ops[i]), 0);
      if (how == 1 && i == N / 2) close(efd);
    }
    if (how == 2) close(efd);
    RUN_UNTIL(l, done_total == N);
    CHECK(are_letters(bufs, N * GRID, 0));
    CHECK_EQ(read_at(l, f, bufs, GRID, GRID), GRID);
    CHECK(!aio_context_can_wake(l->ctx));
    CHECK(rests(l));
    AioStats s;
    aio_context_stats(l->ctx, &s);
    CHECK_EQ(s.watches, 0);
    free(bufs);
    free_file(f);
    loop_reopen(l, NULL);
  }
}

/* ---- memory ---- */

static int step(Loop *l, Op *o, bool lasting) { /* -ENOMEM, or what it ends with */
  int rc = submit(o);
  if (rc < 0) return rc;
  for (int turns = 0; lasting && turns < 50 && !o->done; turns++) turn(l, MS);
  if (lasting && !o->done) refuse.fail_at = refuse.fail_from = -1; /* a backend may be deaf while there is none */
  RUN_UNTIL(l, o->done);
  return o->op.error;
}

static bool all_but_memory(Loop *l, const Mode *m, long n, bool lasting) {
  char path[PATH_MAX], buf[64];
  new_path(path);
  int rc[3] = {0};
  refused_some();
  *(lasting ? &refuse.fail_from : &refuse.fail_at) = n;
  AioFile *f = aio_file_new(m->engine, m->direct);
  if (f) {
    Op o = op_for(l, f, AIO_FILE_OPEN);
    o.op.path = path, o.op.flags = O_RDWR;
    rc[0] = step(l, &o, lasting);
    Op w = moving(l, f, AIO_FILE_WRITE, path, 20, 1);
    if (rc[0] == 0) rc[1] = step(l, &w, lasting);
    Op r = moving(l, f, AIO_FILE_READ, buf, sizeof buf, 1);
    if (rc[0] == 0 && rc[1] == 0) rc[2] = step(l, &r, lasting);
    if (rc[0] == 0 && rc[1] == 0 && rc[2] == 0) CHECK(r.op.moved == 20 && !memcmp(buf, path, 20));
    refuse.fail_at = refuse.fail_from = -1;
    if (aio_file_is_open(f)) CHECK(write_at(l, f, path, 20, 1) == 20 && read_at(l, f, buf, sizeof buf, 1) == 20); /* as ever */
    free_file(f);
  }
  refuse.fail_at = refuse.fail_from = -1;
  for (int i = 0; i < 3; i++) CHECK(rc[i] == 0 || rc[i] == -ENOMEM);
  unlink(path);
  CHECK(!aio_context_can_wake(l->ctx));
  CHECK(is_quiet(l));
  return refused_some();
}

static void no_memory_at(Loop *l, const Mode *m) {
  for (int lasting = 0; lasting < 2; lasting++) {
    long n = 0;
    do loop_reopen(l, NULL);
    while (all_but_memory(l, m, n++, lasting));
    CHECK(n > 2);
  }
}

static void memory_failing_anywhere(Loop *l) { each_mode(l, no_memory_at); }

/* The ring cannot be watched: it is looked at now and then, until its answer is there. */
static void no_memory_to_watch(Loop *l) {
  Terminal t;
  char buf[8];
  nothing_refused();
  loop_reopen(l, NULL);
  if (!open_terminal(l, &t)) return;
  Op o = moving(l, t.f, AIO_FILE_READ, buf, 4, 0);
  refuse.fail_from = 0;
  CHECK_EQ(submit(&o), 0);
  refuse.fail_from = -1;
  refused_some();
  int n = turns_in(l, 60 * MS);
  CHECK(!o.done && n < 60);
  type(&t, "abc\n");
  RUN_UNTIL(l, o.done);
  CHECK(!memcmp(buf, "abc\n", 4));
  CHECK(rests(l));
  close_terminal(&t);
}

/* ---- and also ---- */

static void *submit_and_end(void *opaque) {
  Op *o = opaque;
  aio_context_set_home(o->l->ctx);
  CHECK_EQ(submit(o), 0);
  return NULL;
}

/* The kernel breaks off what it has of a thread that ends: nobody has asked for that. */
static void the_thread_that_asked_has_ended(Loop *l) {
  Terminal t;
  char buf[8];
  nothing_refused();
  if (!open_terminal(l, &t)) return;
  Op o = moving(l, t.f, AIO_FILE_READ, buf, 4, 0);
  pretend = true; /* a terminal has no offsets, for pread */
  pthread_t thread = start(submit_and_end, &o);
  CHECK(pthread_join(thread, NULL) == 0);
  aio_context_set_home(l->ctx);
  turns_in(l, 5 * MS);
  if (!o.done) type(&t, "abc\n"); /* interrupted, and asked for anew */
  RUN_UNTIL(l, o.done);
  pretend = false;
  CHECK(o.op.error == 0 && o.op.moved == 4);
  close_terminal(&t);
}

static void wait_with_glib(void *opaque) {
  Op *o = opaque;
  CHECK_EQ(submit(o), 0);
  while (!o->done) g_main_context_iteration(o->l->main, TRUE);
}

/* An iteration of GLib's, inside of a turn: what it waits for has not been handed over yet. */
static void an_iteration_within_a_turn(Loop *l) {
  char buf[8];
  nothing_refused();
  for (size_t i = 0; i < COUNT(modes); i++) {
    AioFile *f = file_of_size(l, &modes[i], 100);
    Op o = moving(l, f, AIO_FILE_READ, buf, 8, 0);
    aio_bh_oneshot(l->ctx, wait_with_glib, &o);
    RUN_UNTIL(l, o.done);
    CHECK_EQ(o.op.moved, 8);
    free_file(f);
  }
}

static void gated(Loop *l) {
  enum { N = 10 };
  Op ops[N];
  char bufs[N][8];
  nothing_refused();
  sem_init(&gate, 0, 0);
  gate_on = true;
  CHECK_EQ(aio_pool_set_threads(l->ctx, 0, 1), 0);
  AioFile *f = file_of_size(l, &threads, 100), *g = aio_file_new(AIO_ENGINE_AUTO, false);
  done_total = 0;
  int before = atomic_load(&preads);
  for (int i = 0; i < N; i++) {
    ops[i] = moving(l, f, AIO_FILE_READ, bufs[i], 8, i);
    CHECK_EQ(submit(&ops[i]), 0);
  }
  Op o = op_for(l, g, AIO_FILE_OPEN);
  o.op.path = "/dev/null";
  CHECK_EQ(submit(&o), 0);
  while (atomic_load(&preads) == before) usleep(100);
  for (int i = 0; i < N; i++) aio_file_cancel(&ops[i].op);
  aio_file_cancel(&o.op);
  RUN_UNTIL(l, done_total == N);
  CHECK(!ops[0].done && o.op.error == -ECANCELED && !aio_file_is_open(g));
  for (int i = 1; i < N; i++) CHECK_EQ(ops[i].op.error, -ECANCELED);
  sem_post(&gate);
  RUN_UNTIL(l, ops[0].done);
  CHECK(ops[0].op.error == 0 && ops[0].op.moved == 8); /* it ran, and ended well */
  gate_on = false;
  CHECK_EQ(open_path(l, g, "/dev/null", O_RDONLY), 0);
  free_file(g);
  free_file(f);
  sem_destroy(&gate);
}

/* ---- all together: each is told once, and tells the truth ---- */

enum { SLOTS = 60, FILE_LEN = 20 * GRID };

typedef struct Slot {
  Op o;
  char *buf;
  bool busy;
} Slot;

static Slot slots[SLOTS];
static long told;

static void slot_done(Op *o) {
  Slot *s = (Slot *)(void *)o;
  const AioFileOp *op = &o->op;
  CHECK(s->busy);
  s->busy = false;
  told++;
  if (op->error != -ECANCELED) CHECK_EQ(op->error, 0);
  if (op->kind != AIO_FILE_READ) return;
  CHECK(are_letters(op->buf, op->moved, op->offset));
  int64_t left = FILE_LEN - op->offset, all = left < (int64_t)op->len ? left : (int64_t)op->len;
  if (!op->error) CHECK_EQ(op->moved, all);
}

static void random_step(Loop *l, AioFile **files, uint32_t *seed) {
  static const AioFileKind kinds[] = {AIO_FILE_READ, AIO_FILE_READ, AIO_FILE_READ, AIO_FILE_WRITE, AIO_FILE_WRITE, AIO_FILE_DATASYNC, AIO_FILE_STAT};
  Slot *s = &slots[rnd(seed) % SLOTS];
  size_t which = rnd(seed) % COUNT(modes);
  if (s->busy) {
    if (rnd(seed) % 3 == 0) aio_file_cancel(&s->o.op);
    return;
  }
  size_t offset = pick(seed, FILE_LEN - 1), len = pick(seed, FILE_LEN - offset);
  s->o = moving(l, files[which], kinds[rnd(seed) % COUNT(kinds)], s->buf + (rnd(seed) % 2 ? 0 : 7), len, (int64_t)offset);
  s->o.then = slot_done;
  if (s->o.op.kind == AIO_FILE_WRITE && modes[which].direct) { /* what others have in the page cache then, is theirs to spoil */
    s->o.op.buf = s->buf;
    s->o.op.len = len / GRID * GRID;
    s->o.op.offset = (int64_t)(offset / GRID * GRID);
  }
  if (s->o.op.kind == AIO_FILE_WRITE) letters(s->o.op.buf, s->o.op.len, s->o.op.offset); /* what is there already */
  s->busy = true;
  CHECK_EQ(submit(&s->o), 0);
}

static void all_together(Loop *l) {
  uint32_t seed = 99;
  nothing_refused();
  loop_reopen(l, &(AioOptions){.ring_entries = 8, .laio_batch = 5});
  AioFile *files[COUNT(modes)];
  for (size_t i = 0; i < COUNT(modes); i++) files[i] = file_of_size(l, &modes[i], FILE_LEN);
  for (int i = 0; i < SLOTS; i++) slots[i] = (Slot){.buf = __real_aligned_alloc(GRID, FILE_LEN + GRID)};
  for (long i = check_scale(3000); i > 0; i--) {
    refuse.shorten = rnd(&seed) % 4 ? 0 : GRID;
    random_step(l, files, &seed);
    if (rnd(&seed) % 8 == 0) turn(l, rnd(&seed) % 2 ? 0 : MS);
  }
  for (int i = 0; i < SLOTS; i++) RUN_UNTIL(l, !slots[i].busy);
  CHECK(is_quiet(l));
  CHECK(!aio_context_can_wake(l->ctx));
  for (long i = 0; i < 200; i++) random_step(l, files, &seed); /* and closed in the midst of it */
  aio_context_close(l->ctx);
  for (int i = 0; i < SLOTS; i++) free(slots[i].buf);
  for (size_t i = 0; i < COUNT(modes); i++) free_file(files[i]);
}

static const Test tests[] = {
  TEST(every_kind_of_request),
  TEST(same_as_a_model),
  TEST(ends_on_the_grid_and_off_it),
  TEST(offsets_beyond_4_gib),
  TEST(lengths_beyond_2_gib),
  TEST(part_and_then_an_error),
  TEST(short_reads_and_writes),
  TEST(appending),
  TEST(what_can_be_opened),
  TEST(opened_twice_at_once),
  TEST(closed_while_it_opens),
  TEST_POLL(synchronous_past_the_page_cache),
  TEST(tried),
  TEST(more_than_there_is_room_for),
  TEST(one_system_call_for_many),
  TEST(cancelled_at_any_time),
  TEST(cancelled_while_the_kernel_has_it),
  TEST_POLL(hundred_thousand_cancelled),
  TEST(the_file_is_closed_at_any_time),
  TEST(the_context_is_closed_at_any_time),
  TEST(closed_while_the_kernel_has_it),
  TEST(a_turn_within_done),
  TEST(a_turn_within_done_while_the_kernel_has_more),
  TEST_POLL(busy_polling),
  TEST(answered_at_once),
  TEST(engines_that_cannot_be_made),
  TEST_POLL(a_ring_that_is_refused_later),
  TEST(a_ring_without_memory),
  TEST(a_ring_that_takes_a_part),
  TEST_POLL(linux_aio_that_refuses_some),
  TEST(without_o_direct),
  TEST(aligned_for_most_is_not_enough),
  TEST_POLL(sandboxed),
  TEST(the_ring_is_closed_behind_our_back),
  TEST(the_eventfd_is_closed_behind_our_back),
  TEST(memory_failing_anywhere),
  TEST(no_memory_to_watch),
  TEST(the_thread_that_asked_has_ended),
  TEST_GLIB(an_iteration_within_a_turn),
  TEST(gated),
  TEST(all_together),
};

int main(int argc, char **argv) {
  main_thread = pthread_self();
  nothing_refused();
  return check_all(tests, COUNT(tests), check_slow() ? "epoll +io_uring" : "epoll +poll +io_uring", argc > 1 ? argv[1] : NULL);
}
