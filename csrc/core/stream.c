/* SPDX-License-Identifier: MIT
 * Streams: bytes in and out of a non-blocking fd, and what has arrived and was not taken yet.
 *
 * Way      aio_stream_read, or aio_stream_fill -> the input -> aio_input_find -> aio_stream_take; aio_stream_write
 * Threads  whoever owns the stream; aio_may_try: home.
 * Owner    the caller; aio_stream_close closes the fd and frees the input.
 * Keep     nothing here waits, whoever makes the file block meanwhile. A number that is known to be closed is never closed
 *          again. Writing never raises SIGPIPE, and leaves the one alone that somebody else is to get. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

/* The least is what the C library allocates most quickly, and large enough for a request or a line. */
enum { CHUNK_LEAST = 10, CHUNK_MOST = 16, TRIES = 32 };
enum { MOST_AT_ONCE = 1 << 20 }; /* or a device that never runs out would keep others waiting */

_Static_assert(sizeof(AioPiece) == sizeof(struct iovec) && offsetof(AioPiece, len) == offsetof(struct iovec, iov_len),
               "a piece is a struct iovec");

/* ---- life ---- */

void aio_stream_open(AioStream *s, int fd, bool socket) { *s = (AioStream){.fd = fd, .chunk = CHUNK_LEAST, .socket = socket}; }

void aio_stream_forget(AioStream *s) {
  s->fd = -1;
  s->filter = NULL;
  s->error = 0;
  s->restore = false;
  aio_input_free(&s->in);
}

/* Whoever closed it left a number that may be another's soon. What has arrived is there still. */
static int failed(AioStream *s, int error) {
  if (error != EBADF || fcntl(s->fd, F_GETFD) >= 0) return -error;
  s->fd = -1;
  s->restore = false;
  if (!s->error) s->error = (int16_t)-error;
  return -error;
}

int aio_stream_release(AioStream *s) {
  int fd = s->fd;
  if (fd >= 0 && s->restore) {
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0) fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
  }
  aio_stream_forget(s);
  return fd;
}

void aio_stream_close(AioStream *s) {
  int fd = aio_stream_release(s);
  if (fd >= 0) close(fd); /* once, also when a signal interrupts it */
}

static int check_kind(int fd, bool *socket) {
  struct stat st;
  if (fstat(fd, &st) < 0) return -errno;
  if (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) || S_ISBLK(st.st_mode)) return -EINVAL;
  *socket = S_ISSOCK(st.st_mode);
  if (!*socket) return 0;
  int type = 0;
  socklen_t len = sizeof type;
  if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0) return -errno;
  return type == SOCK_STREAM ? 0 : -EINVAL;
}

int aio_stream_adopt(AioStream *s, int fd, bool copy) {
  bool socket = false;
  int rc = check_kind(fd, &socket);
  if (rc < 0) return rc;
  int mine = copy ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : fd;
  int flags = mine < 0 ? -1 : fcntl(mine, F_GETFL);
  if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(mine, F_SETFL, flags | O_NONBLOCK) < 0)) {
    rc = -errno;
    if (copy && mine >= 0) close(mine);
    return rc;
  }
  aio_stream_open(s, mine, socket);
  s->restore = !(flags & O_NONBLOCK);
  s->shared = !socket;
  return 0;
}

/* Whoever else has the file may make it block: another stream of ours that is closed, a child program. */
static void keep_from_blocking(AioStream *s) {
  int flags = s->shared ? fcntl(s->fd, F_GETFL) : -1;
  if (flags >= 0 && !(flags & O_NONBLOCK) && fcntl(s->fd, F_SETFL, flags | O_NONBLOCK) == 0) s->restore = true;
}

/* ---- reading ---- */

static int64_t read_filtered(AioStream *s, void *buf, size_t len) {
  AioFilter *f = s->filter;
  int64_t n = f->read(f, buf, len);
  if (s->filter != f) return -ESHUTDOWN; /* closed in it */
  s->drained = !f->more;
  if (n == 0 && len) s->eof = true;
  if (n >= 0 || n == -EAGAIN) return n;
  return s->error = (int16_t)failed(s, (int)-n);
}

/* recv costs less than read; and who has made a socket's other descriptors block does not block us. */
static ssize_t receive(const AioStream *s, void *buf, size_t len) {
  return s->socket ? recv(s->fd, buf, len, MSG_DONTWAIT) : read(s->fd, buf, len);
}

int64_t aio_stream_read(AioStream *s, void *buf, size_t len) {
  if (s->error) return s->error;
  if (s->eof) return 0;
  if (s->filter) return read_filtered(s, buf, len);
  ssize_t n;
  keep_from_blocking(s);
  do n = receive(s, buf, len);
  while (n < 0 && errno == EINTR);
  s->drained = n < (ssize_t)len;
  if (n == 0 && len) s->eof = true;
  if (n >= 0) return n;
  if (errno == EAGAIN || errno == EWOULDBLOCK) return -EAGAIN;
  return s->error = (int16_t)failed(s, errno);
}

/* Much is asked of who has sent much, little of others. */
static void adapt(AioStream *s, size_t got) {
  size_t chunk = (size_t)1 << s->chunk;
  if (got >= chunk && s->chunk < CHUNK_MOST) s->chunk++;
  if (got < chunk / 4 && s->chunk > CHUNK_LEAST) s->chunk--;
}

int64_t aio_stream_fill(AioStream *s, size_t want) {
  size_t room = (size_t)1 << s->chunk, have = aio_input_size(&s->in);
  if (s->error || s->eof) return s->error;
  if (want > room && have > room) room = want < have ? want : have; /* what has come so far is as good as a promise */
  if (room > MOST_AT_ONCE) room = MOST_AT_ONCE;
  char *at = aio_input_room(&s->in, room);
  if (!at) return -ENOMEM;
  int64_t n = aio_stream_read(s, at, room);
  if (n > 0) {
    aio_input_added(&s->in, (size_t)n);
    adapt(s, (size_t)n);
  } else if (!have) {
    aio_input_free(&s->in);
  }
  return n;
}

void aio_stream_take(AioStream *s, size_t n) {
  aio_input_take(&s->in, n);
  if (!aio_input_size(&s->in)) aio_input_free(&s->in);
}

bool aio_may_try(AioContext *ctx) {
  uint64_t run = ctx->stats.polls + ctx->stats.entries + ctx->stats.bhs + ctx->stats.timers + ctx->stats.fds;
  if (ctx->try_run != run) {
    ctx->try_run = run;
    ctx->tries = 0;
  }
  return ctx->tries++ < TRIES;
}

/* ---- writing ---- */

static ssize_t send_pieces(int fd, const AioPiece *v, size_t n) {
  if (n == 1) return send(fd, v->data, v->len, MSG_NOSIGNAL | MSG_DONTWAIT);
  struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)v, .msg_iovlen = n};
  return sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static sigset_t only_pipe(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGPIPE);
  return set;
}

/* The signal is the thread's own. One that is pending before is so because it is blocked, and belongs to somebody. */
void aio_sigpipe_block(AioSigpipe *p) {
  sigset_t pipe = only_pipe(), old, pending;
  pthread_sigmask(SIG_BLOCK, &pipe, &old);
  p->blocked = sigismember(&old, SIGPIPE);
  p->theirs = p->blocked && sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE);
}

void aio_sigpipe_unblock(const AioSigpipe *p, bool raised) {
  static const struct timespec now;
  sigset_t pipe = only_pipe();
  if (raised && !p->theirs) sigtimedwait(&pipe, NULL, &now);
  if (!p->blocked) pthread_sigmask(SIG_UNBLOCK, &pipe, NULL);
}

static ssize_t write_pieces(int fd, const AioPiece *v, size_t n) {
  AioSigpipe pipe;
  aio_sigpipe_block(&pipe);
  ssize_t got = n == 1 ? write(fd, v->data, v->len) : writev(fd, (const struct iovec *)v, (int)n);
  int error = errno;
  aio_sigpipe_unblock(&pipe, got < 0 && error == EPIPE);
  errno = error;
  return got;
}

int64_t aio_stream_write(AioStream *s, const AioPiece *v, size_t n) {
  ssize_t got;
  if (s->filter) return s->filter->write(s->filter, v, n);
  if (n > IOV_MAX) n = IOV_MAX;
  keep_from_blocking(s);
  do got = s->socket ? send_pieces(s->fd, v, n) : write_pieces(s->fd, v, n);
  while (got < 0 && errno == EINTR);
  if (got >= 0) return got;
  return errno == EWOULDBLOCK ? -EAGAIN : failed(s, errno);
}

size_t aio_pieces_skip(AioPiece *v, size_t count, size_t n) {
  size_t i = 0;
  for (; i < count && n >= v[i].len; i++) n -= v[i].len;
  if (i < count) {
    v[i].data = (const char *)v[i].data + n;
    v[i].len -= n;
  }
  return i;
}

int aio_stream_shutdown(AioStream *s) {
  if (s->filter) return -EOPNOTSUPP;
  return shutdown(s->fd, SHUT_WR) < 0 ? -errno : 0;
}
