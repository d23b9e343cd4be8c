/* SPDX-License-Identifier: MIT
 * Files: requests to read, write and so on, done by the best engine that the system grants.
 *
 * Way      aio_file_submit -> next_leg -> hand_over: io_uring (uring.c), Linux AIO (laio.c) or a thread of the pool ->
 *          aio__file_leg_over -> another leg, if the kernel has done a part only -> finish -> done
 *          aio_file_try: preadv2 with RWF_NOWAIT, which answers from the page cache or not at all.
 * Threads  home; `work` (file_call.c) runs in a thread of the pool.
 * Owner    an op is the caller's memory until done; a file is counted, once by each op that it has under way.
 * Keep     done is never called inside submit. An engine that fails hands its ops to the next one. A file that goes past
 *          the page cache has two descriptors: what is not aligned is read through a copy, and written by the other one. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "internal.h"

struct AioFile {
  uint32_t refs, ops;
  int fd, direct_fd;      /* -1: not open; -1: none */
  uint8_t engine;         /* asked for */
  bool direct, append, closed;
  bool opening;           /* an OPEN is under way */
  bool unaligned;         /* what is aligned for most is not for this file system */
  bool reads_now, writes_now; /* RWF_NOWAIT may be tried */
};

enum { OP_OVER, OP_UNDER_WAY, OP_CANCELLED };

typedef struct Engine {
  void *self;
  bool tried, failed; /* failed: it has given its ops back, and gets no more */
} Engine;

struct AioFiles {
  AioContext *ctx;
  Engine engines[AIO_ENGINES];
  AioLink live;   /* ops under way */
  AioLink later;  /* those of them whose leg is over, without an engine */
  AioBH bh;
  uint32_t nlive;
};

static const AioEngineOps *const engine_ops[AIO_ENGINES] = {[AIO_ENGINE_URING] = &aio__uring_engine, [AIO_ENGINE_LAIO] = &aio__laio_engine};

const char *aio_engine_name(AioEngine engine) {
  static const char *const names[AIO_ENGINES] = {"auto", "io_uring", "linux-aio", "threads", "inline"};
  return names[engine];
}

/* ---- a file ---- */

AioFile *aio_file_new(AioEngine engine, bool direct) {
  AioFile *f = aio__realloc(NULL, sizeof *f);
  bool best = engine == AIO_ENGINE_AUTO;
  if (f) *f = (AioFile){.refs = 1, .fd = -1, .direct_fd = -1, .engine = (uint8_t)engine, .direct = direct || engine == AIO_ENGINE_LAIO,
                        .reads_now = best && !direct, .writes_now = best && !direct};
  return f;
}

static void close_fds(AioFile *f) {
  if (f->fd >= 0) close(f->fd);
  if (f->direct_fd >= 0) close(f->direct_fd);
  f->fd = f->direct_fd = -1;
}

void aio_file_close(AioFile *f) {
  f->closed = true;
  if (!f->ops) close_fds(f);
}

void aio_file_ref(AioFile *f) { f->refs++; }

void aio_file_unref(AioFile *f) {
  if (--f->refs) return;
  aio_file_close(f);
  aio__realloc(f, 0);
}

bool aio_file_is_open(const AioFile *f) { return !f->closed && f->fd >= 0; }
bool aio__file_goes_direct(const AioFile *f) { return f->direct; }
int aio_file_fd(const AioFile *f) { return f->closed ? -1 : f->fd; }

int64_t aio_file_size(const AioFile *f) {
  struct stat st;
  return fstat(aio_file_fd(f), &st) < 0 ? -errno : st.st_size;
}

/* ---- by a thread ---- */

static void opened(AioFileOp *op) {
  AioFile *f = op->file;
  f->opening = false;
  if (op->word < 0) return;
  f->fd = (int)op->word;
  f->direct_fd = op->leg_fd;
  f->append = op->flags & O_APPEND;
  if (!op->stage) f->reads_now = f->writes_now = false; /* no regular file */
  if (f->append) f->writes_now = false; /* half of one, done again by an engine, would be there twice */
}

static bool moves(const AioFileOp *op) { return op->kind == AIO_FILE_READ || op->kind == AIO_FILE_WRITE; }

static void work(void *opaque) {
  AioFileOp *op = opaque;
  op->word = aio__file_call(op);
}

static void worked(void *opaque) {
  AioFileOp *op = opaque;
  aio__file_leg_over(op, op->job.result < 0 ? op->job.result : op->word);
}

/* ---- legs over that no engine tells of ---- */

static void leg_over_later(AioFileOp *op, int64_t result) {
  op->word = result;
  op->engine = AIO_ENGINE_INLINE;
  list_append(&op->ctx->files->later, &op->link);
  aio_bh_schedule(&op->ctx->files->bh);
}

static void tell_later(void *opaque) { aio__file_legs_over(&((AioFiles *)opaque)->later, &((AioFiles *)opaque)->bh); }

/* While one is told, a nested turn may wait for the next: it finds the BH scheduled. */
bool aio__file_legs_over(AioLink *over, AioBH *bh) {
  AioContext *ctx = bh->ctx;
  const AioFiles *fs = ctx->files;
  int budget = 0; /* what is added meanwhile waits for the next turn */
  for (const AioLink *l = over->next; l != over; l = l->next) budget++;
  while (budget-- > 0 && !list_empty(over)) {
    AioFileOp *op = container_of(over->next, AioFileOp, link);
    list_unlink(&op->link);
    if (!list_empty(over)) aio_bh_schedule(bh);
    aio__file_leg_over(op, op->word);
    if (ctx->files != fs) return false; /* closed: all ops are the caller's again */
  }
  if (list_empty(over)) aio_bh_cancel(bh);
  return true;
}

/* ---- engines ---- */

static int files_of(AioContext *ctx) {
  if (ctx->files) return 0;
  AioFiles *fs = aio__realloc(NULL, sizeof *fs);
  if (!fs) return -ENOMEM;
  *fs = (AioFiles){.ctx = ctx};
  list_init(&fs->live);
  list_init(&fs->later);
  aio_bh_init_local(&fs->bh, ctx, tell_later, fs);
  ctx->files = fs;
  return 0;
}

static bool has_engine(AioContext *ctx, AioEngine engine) {
  Engine *e = &ctx->files->engines[engine];
  if (!e->tried) {
    e->tried = true;
    if (engine_ops[engine]->open(ctx, &e->self) < 0) e->self = NULL;
  }
  return e->self && !e->failed;
}

/* io_uring, Linux AIO (which waits unless it goes past the page cache), threads: the first from the one asked for on. */
static AioEngine engine_for(AioContext *ctx, const AioFile *f) {
  AioEngine e = f->engine == AIO_ENGINE_AUTO ? AIO_ENGINE_URING : (AioEngine)f->engine;
  if (e == AIO_ENGINE_URING && !has_engine(ctx, e)) e = AIO_ENGINE_LAIO;
  if (e == AIO_ENGINE_LAIO && (f->direct_fd < 0 || !has_engine(ctx, e))) e = AIO_ENGINE_THREADS;
  return e;
}

AioEngine aio_file_engine(AioContext *ctx, const AioFile *f) {
  if (aio_context_closed(ctx) || files_of(ctx) < 0) return AIO_ENGINE_THREADS;
  return engine_for(ctx, f);
}

static AioEngine engine_for_leg(AioContext *ctx, const AioFileOp *op) {
  if (op->kind == AIO_FILE_OPEN && op->file->engine != AIO_ENGINE_INLINE) return AIO_ENGINE_THREADS;
  AioEngine e = engine_for(ctx, op->file);
  bool syncs = op->kind == AIO_FILE_SYNC || op->kind == AIO_FILE_DATASYNC;
  if (e == AIO_ENGINE_URING && !moves(op) && !syncs) return AIO_ENGINE_THREADS;
  if (e == AIO_ENGINE_LAIO && (!moves(op) || op->leg_fd != op->file->direct_fd)) return AIO_ENGINE_THREADS;
  return e;
}

/* Without a thread to be had it is done here and now: late is better than never. */
static void use_threads(AioFileOp *op) {
  op->engine = AIO_ENGINE_THREADS;
  if (aio_pool_submit(op->ctx, &op->job, work, worked, op) < 0) leg_over_later(op, aio__file_call(op));
}

static void hand_over(AioFileOp *op) {
  AioEngine e = engine_for_leg(op->ctx, op);
  op->engine = (uint8_t)e;
  if (e == AIO_ENGINE_THREADS)
    use_threads(op);
  else if (e == AIO_ENGINE_INLINE)
    leg_over_later(op, aio__file_call(op));
  else
    engine_ops[e]->submit(op->ctx->files->engines[e].self, op);
}

void aio__file_leg_refused(AioFileOp *op, bool all) {
  if (all) op->ctx->files->engines[op->engine].failed = true;
  if (op->state == OP_CANCELLED)
    leg_over_later(op, -ECANCELED);
  else if (all)
    hand_over(op);
  else
    use_threads(op);
}

/* ---- legs ---- */

enum { LEG_MAX = INT32_MAX / AIO_FILE_ALIGN * AIO_FILE_ALIGN, COPY_MAX = 1 << 20 }; /* as the kernel has it; of memory */

static bool is_aligned(const AioFileOp *op) {
  return !(((uintptr_t)op->leg_buf | op->leg_len | (uint64_t)op->leg_offset) % AIO_FILE_ALIGN);
}

/* What is left, past the page cache where that can be. -ENOMEM: no room for a copy. */
static int next_leg(AioFileOp *op) {
  AioFile *f = op->file;
  op->leg_fd = f->fd;
  if (!moves(op)) return 0;
  op->leg_buf = op->buf + op->moved;
  op->leg_len = op->len - op->moved;
  op->leg_offset = op->offset + (int64_t)op->moved;
  if (op->leg_len > LEG_MAX) op->leg_len = LEG_MAX;
  if (f->direct_fd < 0 || f->unaligned || (f->append && op->kind == AIO_FILE_WRITE)) return 0; /* appended: where is unknown */
  bool aligned = is_aligned(op);
  if (aligned || op->kind == AIO_FILE_READ) op->leg_fd = f->direct_fd;
  if (aligned || op->kind == AIO_FILE_WRITE) return 0;
  size_t before = (uint64_t)op->leg_offset % AIO_FILE_ALIGN;
  if (op->leg_len > COPY_MAX - before) op->leg_len = COPY_MAX - before;
  size_t len = (before + op->leg_len + AIO_FILE_ALIGN - 1) / AIO_FILE_ALIGN * AIO_FILE_ALIGN;
  op->bounce = aio__aligned(len);
  if (!op->bounce) return -ENOMEM;
  op->leg_buf = op->bounce;
  op->leg_len = len;
  op->leg_offset -= (int64_t)before;
  return 0;
}

/* How many bytes of the op a leg has moved. */
static size_t gained(AioFileOp *op, int64_t result) {
  if (!op->bounce) return (size_t)result;
  size_t before = (uint64_t)(op->offset + (int64_t)op->moved) % AIO_FILE_ALIGN, left = op->len - op->moved;
  size_t got = (size_t)result > before ? (size_t)result - before : 0;
  if (got > left) got = left;
  memcpy(op->buf + op->moved, (char *)op->bounce + before, got);
  return got;
}

static void release(AioFileOp *op) {
  AioFile *f = op->file;
  if (op->kind == AIO_FILE_OPEN) opened(op);
  aio__realloc(op->bounce, 0);
  op->bounce = NULL;
  op->state = OP_OVER;
  list_unlink(&op->live);
  op->ctx->files->nlive--;
  if (--f->ops == 0 && f->closed) close_fds(f);
}

static void finish(AioFileOp *op) {
  AioFile *f = op->file;
  op->ctx->stats.file_ops[op->engine]++;
  release(op);
  op->done(op->opaque); /* may look at the file, though nobody else holds it */
  aio_file_unref(f);
}

/* A direct leg that ends off the grid has come to the end of the file. */
static bool at_end(const AioFileOp *op, int64_t result) {
  return result == 0 || (op->leg_fd == op->file->direct_fd && op->kind == AIO_FILE_READ && result % AIO_FILE_ALIGN);
}

/* What is to be done by a thread: a device will not have it done asynchronously, or the kernel has broken it off, for the
 * thread that asked for it has ended. */
static bool needs_thread(const AioFileOp *op, int64_t result) {
  bool async = op->engine == AIO_ENGINE_URING || op->engine == AIO_ENGINE_LAIO;
  return async && (result == -EAGAIN || (result == -ECANCELED && op->state != OP_CANCELLED));
}

void aio__file_leg_over(AioFileOp *op, int64_t result) {
  bool by_thread = needs_thread(op, result), again = result == -EINTR || by_thread;
  if (result == -EINVAL && op->offset >= 0 && moves(op) && op->leg_fd == op->file->direct_fd) op->file->unaligned = again = true;
  if (moves(op) && result > 0) op->moved += gained(op, result);
  if (result < 0 && !again) op->error = (int)result;
  if (op->kind == AIO_FILE_WRITE && result == 0 && op->len) op->error = -ENOSPC;
  bool more = moves(op) && op->moved < op->len && !op->error && (again || !at_end(op, result));
  if (op->state == OP_CANCELLED && (more || again)) op->error = -ECANCELED, more = again = false;
  aio__realloc(op->bounce, 0);
  op->bounce = NULL;
  if (!more && !(again && !moves(op))) {
    finish(op);
    return;
  }
  if (next_leg(op) < 0) {
    op->error = -ENOMEM;
    finish(op);
  } else if (by_thread) {
    use_threads(op);
  } else {
    hand_over(op);
  }
}

/* ---- requests ---- */

int aio_file_submit(AioContext *ctx, AioFileOp *op) {
  AioFile *f = op->file;
  if (aio_context_closed(ctx)) return -ESHUTDOWN;
  if (f->closed || f->opening || (op->kind == AIO_FILE_OPEN) != (f->fd < 0)) return -EBADF;
  if (files_of(ctx) < 0) return -ENOMEM;
  op->ctx = ctx;
  op->moved = 0;
  op->error = 0;
  op->bounce = NULL;
  op->link = (AioLink){NULL, NULL};
  op->word = -ECANCELED;
  if (next_leg(op) < 0) return -ENOMEM;
  f->opening = op->kind == AIO_FILE_OPEN;
  op->state = OP_UNDER_WAY;
  list_append(&ctx->files->live, &op->live);
  ctx->files->nlive++;
  f->ops++;
  aio_file_ref(f);
  if (moves(op) && op->offset < 0)
    leg_over_later(op, -EINVAL); /* the kernel may take -1 for a position of its own */
  else
    hand_over(op);
  return 0;
}

void aio_file_cancel(AioFileOp *op) {
  if (op->state != OP_UNDER_WAY) return;
  op->state = OP_CANCELLED;
  if (op->engine == AIO_ENGINE_THREADS)
    aio_pool_cancel(&op->job);
  else if (engine_ops[op->engine])
    engine_ops[op->engine]->cancel(op->ctx->files->engines[op->engine].self, op);
}

/* ---- at once ---- */

static ssize_t transfer_now(AioFileOp *op) {
  struct iovec iov = {op->buf + op->moved, op->len - op->moved};
  int64_t at = op->offset + (int64_t)op->moved;
  return op->kind == AIO_FILE_READ ? preadv2(op->file->fd, &iov, 1, at, RWF_NOWAIT) : pwritev2(op->file->fd, &iov, 1, at, RWF_NOWAIT);
}

bool aio_file_try(AioContext *ctx, AioFileOp *op) {
  AioFile *f = op->file;
  bool *may = op->kind == AIO_FILE_READ ? &f->reads_now : &f->writes_now;
  size_t cost = op->len < 4096 ? 4096 : op->len;
  op->moved = 0;
  op->error = 0;
  if (!*may || f->closed || f->fd < 0 || cost > ctx->inline_left || aio_context_closed(ctx)) return false;
  if (op->offset < 0 || op->offset > INT64_MAX - (int64_t)op->len) return false; /* EINVAL, which says nothing of the file */
  do {
    ssize_t n = transfer_now(op);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) { /* EAGAIN: not in the cache. Else the file system, or a sandbox, knows no such thing; or the engine tells what */
      *may = errno == EAGAIN;
      return false;
    }
    if (n == 0) break;
    op->moved += (size_t)n;
  } while (op->moved < op->len);
  if (op->kind == AIO_FILE_WRITE && op->moved < op->len) return false; /* the engine tells why, and how far it came */
  ctx->inline_left -= cost;
  ctx->stats.file_ops[AIO_ENGINE_INLINE]++;
  return true;
}

/* ---- the end of a context ---- */

uint32_t aio__file_ops(const AioContext *ctx) { return ctx->files ? ctx->files->nlive : 0; }

void aio__files_stop(AioContext *ctx) {
  AioFiles *fs = ctx->files;
  if (!fs) return;
  for (int e = 0; e < AIO_ENGINES; e++)
    if (fs->engines[e].self) engine_ops[e]->stop(fs->engines[e].self);
  while (!list_empty(&fs->live)) {
    AioFileOp *op = container_of(fs->live.next, AioFileOp, live);
    release(op);
    aio_file_unref(op->file);
  }
}

void aio__files_free(AioContext *ctx) {
  AioFiles *fs = ctx->files;
  if (!fs) return;
  ctx->files = NULL;
  for (int e = 0; e < AIO_ENGINES; e++)
    if (fs->engines[e].self) engine_ops[e]->free(fs->engines[e].self);
  aio__realloc(fs, 0);
}
