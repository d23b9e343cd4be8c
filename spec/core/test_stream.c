/* SPDX-License-Identifier: MIT
 * Streams, addresses, servers and connecting, with the system calls behind them failing and giving little at a time. */
/* wrap: read recv send sendmsg write writev accept4 connect socket close unlink */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>

#include "check.h"

/* ---- system calls that fail ---- */

typedef struct Fault {
  int error, times;  /* fails so often with that */
  size_t most;       /* bytes that it moves at a time; 0: any */
  int calls, injected;
} Fault;

static Fault on_read, on_write, on_accept, on_connect, on_socket, on_unlink;
static int closes;

static bool fails(Fault *f) {
  f->calls++;
  if (f->times == 0) return false;
  f->times--;
  f->injected++;
  errno = f->error;
  return true;
}

static size_t least(const Fault *f, size_t n) { return f->most && f->most < n ? f->most : n; }

static void no_faults(void) {
  on_read = on_write = on_accept = on_connect = on_socket = on_unlink = (Fault){.error = 0};
  closes = 0;
}

ssize_t __real_read(int fd, void *buf, size_t n);
ssize_t __wrap_read(int fd, void *buf, size_t n);
ssize_t __wrap_read(int fd, void *buf, size_t n) { return fails(&on_read) ? -1 : __real_read(fd, buf, least(&on_read, n)); }

ssize_t __real_recv(int fd, void *buf, size_t n, int flags);
ssize_t __wrap_recv(int fd, void *buf, size_t n, int flags);
ssize_t __wrap_recv(int fd, void *buf, size_t n, int flags) {
  return fails(&on_read) ? -1 : __real_recv(fd, buf, least(&on_read, n), flags);
}

ssize_t __real_send(int fd, const void *buf, size_t n, int flags);
ssize_t __wrap_send(int fd, const void *buf, size_t n, int flags);
ssize_t __wrap_send(int fd, const void *buf, size_t n, int flags) {
  CHECK(flags & MSG_NOSIGNAL);
  return fails(&on_write) ? -1 : __real_send(fd, buf, least(&on_write, n), flags);
}

ssize_t __real_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags) {
  CHECK(flags & MSG_NOSIGNAL);
  if (fails(&on_write)) return -1;
  if (!on_write.most) return __real_sendmsg(fd, msg, flags);
  for (size_t i = 0; i < msg->msg_iovlen; i++)
    if (msg->msg_iov[i].iov_len) return __real_send(fd, msg->msg_iov[i].iov_base, least(&on_write, msg->msg_iov[i].iov_len), flags);
  return 0;
}

ssize_t __real_write(int fd, const void *buf, size_t n);
ssize_t __wrap_write(int fd, const void *buf, size_t n);
ssize_t __wrap_write(int fd, const void *buf, size_t n) { return fails(&on_write) ? -1 : __real_write(fd, buf, least(&on_write, n)); }

ssize_t __real_writev(int fd, const struct iovec *v, int n);
ssize_t __wrap_writev(int fd, const struct iovec *v, int n);
ssize_t __wrap_writev(int fd, const struct iovec *v, int n) { return fails(&on_write) ? -1 : __real_writev(fd, v, n); }

int __real_accept4(int fd, struct sockaddr *a, socklen_t *len, int flags);
int __wrap_accept4(int fd, struct sockaddr *a, socklen_t *len, int flags);
int __wrap_accept4(int fd, struct sockaddr *a, socklen_t *len, int flags) {
  CHECK_EQ(flags, SOCK_NONBLOCK | SOCK_CLOEXEC);
  return fails(&on_accept) ? -1 : __real_accept4(fd, a, len, flags);
}

int __real_connect(int fd, const struct sockaddr *a, socklen_t len);
int __wrap_connect(int fd, const struct sockaddr *a, socklen_t len);
int __wrap_connect(int fd, const struct sockaddr *a, socklen_t len) { return fails(&on_connect) ? -1 : __real_connect(fd, a, len); }

int __real_socket(int family, int type, int protocol);
int __wrap_socket(int family, int type, int protocol);
int __wrap_socket(int family, int type, int protocol) { return fails(&on_socket) ? -1 : __real_socket(family, type, protocol); }

int __real_unlink(const char *path);
int __wrap_unlink(const char *path);
int __wrap_unlink(const char *path) { return fails(&on_unlink) ? -1 : __real_unlink(path); }

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd) {
  closes++;
  return __real_close(fd);
}

/* ---- streams ---- */

static void pair_open(AioStream *a, AioStream *b, bool socket) {
  int fds[2];
  CHECK_EQ(socket ? aio_socket_pair(fds) : aio_pipe_pair(fds), 0);
  CHECK(fcntl(fds[0], F_GETFL) & O_NONBLOCK);
  CHECK_EQ(fcntl(fds[1], F_GETFD), FD_CLOEXEC);
  aio_stream_open(a, fds[0], socket);
  aio_stream_open(b, fds[1], socket);
}

static void pair_close(AioStream *a, AioStream *b) {
  aio_stream_close(a);
  aio_stream_close(b);
  CHECK_EQ(a->fd, -1);
  aio_stream_close(a);
  CHECK(!a->in.data && !b->in.data);
}

static AioPiece piece(const char *s) { return (AioPiece){s, strlen(s)}; }

static void test_bytes(Loop *l) {
  (void)l;
  for (int socket = 0; socket < 2; socket++) {
    AioStream r, w;
    char buf[100];
    no_faults();
    pair_open(&r, &w, socket);
    CHECK_EQ(aio_stream_read(&r, buf, sizeof buf), -EAGAIN);
    CHECK(r.drained);
    AioPiece v[] = {piece("one "), piece(""), piece("two")};
    CHECK_EQ(aio_stream_write(&w, v, 3), 7);
    CHECK_EQ(aio_stream_write(&w, v, 1), 4);
    CHECK_EQ(aio_stream_read(&r, buf, 4), 4);
    CHECK(!r.drained);
    CHECK_EQ(aio_stream_fill(&r, 0), 7);
    CHECK_EQ(aio_input_size(&r.in), 7);
    CHECK(!memcmp(aio_input_bytes(&r.in), "twoone ", 7));
    aio_stream_take(&r, 3);
    CHECK(r.in.data);
    aio_stream_take(&r, 4);
    CHECK(!r.in.data); /* what is idle holds no memory */
    aio_stream_close(&w);
    CHECK_EQ(aio_stream_fill(&r, 0), 0);
    CHECK(r.eof && !r.in.data);
    CHECK_EQ(aio_stream_read(&r, buf, 1), 0);
    pair_close(&r, &w);
  }
}

/* Calls are repeated when a signal comes, an error is told again, and so much less is moved as the kernel likes. */
static void test_faults(Loop *l) {
  (void)l;
  for (int socket = 0; socket < 2; socket++) {
    AioStream r, w;
    char buf[100];
    no_faults();
    pair_open(&r, &w, socket);
    on_write = (Fault){.error = EINTR, .times = 3, .most = 1};
    on_read = (Fault){.error = EINTR, .times = 3, .most = 1};
    AioPiece v[] = {piece(""), piece("ab"), piece("c")};
    size_t n = COUNT(v), at = 0;
    while (at < n) {
      int64_t got = aio_stream_write(&w, v + at, n - at > 1 && socket ? n - at : 1);
      CHECK(got >= 0);
      at += aio_pieces_skip(v + at, n - at, (size_t)got);
    }
    CHECK_EQ(on_write.injected, 3);
    for (int i = 1; i <= 3; i++) CHECK_EQ(aio_stream_fill(&r, 0), 1);
    CHECK_EQ(on_read.injected, 3);
    CHECK(!memcmp(aio_input_bytes(&r.in), "abc", 3));
    on_read = (Fault){.error = EIO, .times = 1};
    CHECK_EQ(aio_stream_fill(&r, 0), -EIO);
    CHECK_EQ(aio_stream_fill(&r, 0), -EIO);
    CHECK_EQ(aio_stream_read(&r, buf, 1), -EIO);
    CHECK_EQ(aio_input_size(&r.in), 3);
    on_write = (Fault){.error = ENOBUFS, .times = 1};
    CHECK_EQ(aio_stream_write(&w, v, 1), -ENOBUFS);
    on_write = (Fault){.error = EAGAIN, .times = 1};
    CHECK_EQ(aio_stream_write(&w, v, 1), -EAGAIN);
    pair_close(&r, &w);
  }
}

static void test_chunk_adapts(Loop *l) {
  (void)l;
  static char block[1 << 17];
  AioStream r, w;
  no_faults();
  pair_open(&r, &w, true);
  CHECK(aio_stream_write(&w, &(AioPiece){block, sizeof block}, 1) == sizeof block);
  size_t sizes[] = {1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
  for (size_t i = 0; i < COUNT(sizes); i++) {
    CHECK_EQ(aio_stream_fill(&r, 0), (long long)sizes[i]);
    aio_stream_take(&r, sizes[i]);
  }
  CHECK_EQ(r.chunk, 16);
  while (aio_stream_fill(&r, SIZE_MAX) > 0) continue;
  for (int i = 0; i < 10; i++) {
    CHECK_EQ(aio_stream_write(&w, &(AioPiece){block, 1}, 1), 1);
    CHECK_EQ(aio_stream_fill(&r, 0), 1);
  }
  CHECK_EQ(r.chunk, 10);
  pair_close(&r, &w);
}

static int sigpipes;
static void count_sigpipe(int sig) { sigpipes += sig == SIGPIPE; }

static void test_no_sigpipe(Loop *l) {
  (void)l;
  struct sigaction count = {.sa_handler = count_sigpipe}, old;
  sigset_t pipe, before, pending;
  sigaction(SIGPIPE, &count, &old);
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  for (int socket = 0; socket < 2; socket++) {
    AioStream r, w;
    AioPiece v[] = {piece("a"), piece("b")};
    no_faults();
    sigpipes = 0;
    pair_open(&r, &w, socket);
    aio_stream_close(&r);
    CHECK_EQ(aio_stream_write(&w, v, 1), -EPIPE);
    CHECK_EQ(aio_stream_write(&w, v, 2), -EPIPE);
    CHECK_EQ(sigpipes, 0);
    pthread_sigmask(SIG_BLOCK, &pipe, &before);
    CHECK_EQ(aio_stream_write(&w, v, 1), -EPIPE);
    sigpending(&pending);
    CHECK(!sigismember(&pending, SIGPIPE));
    raise(SIGPIPE); /* somebody else's */
    CHECK_EQ(aio_stream_write(&w, v, 1), -EPIPE);
    sigpending(&pending);
    CHECK(sigismember(&pending, SIGPIPE));
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    CHECK_EQ(sigpipes, 1);
    pair_close(&r, &w);
  }
  sigaction(SIGPIPE, &old, NULL);
}

static void test_adopt(Loop *l) {
  (void)l;
  AioStream s;
  int fds[2];
  no_faults();
  CHECK_EQ(pipe(fds), 0);
  CHECK_EQ(aio_stream_adopt(&s, fds[0], true), 0);
  CHECK(s.fd != fds[0] && fcntl(fds[0], F_GETFL) & O_NONBLOCK);
  aio_stream_close(&s);
  CHECK(!(fcntl(fds[0], F_GETFL) & O_NONBLOCK));
  CHECK_EQ(aio_stream_adopt(&s, fds[0], false), 0);
  CHECK_EQ(s.fd, fds[0]);
  aio_stream_close(&s);
  CHECK_EQ(aio_stream_adopt(&s, fds[0], false), -EBADF);
  close(fds[1]);
  int file = open("/proc/self/exe", O_RDONLY), dgram = socket(AF_UNIX, SOCK_DGRAM, 0);
  CHECK_EQ(aio_stream_adopt(&s, file, false), -EINVAL);
  CHECK_EQ(aio_stream_adopt(&s, dgram, true), -EINVAL);
  close(file);
  close(dgram);
}

/* Whoever shares a socket may have made it block: that is the file's, not the descriptor's. */
static void test_made_to_block(Loop *l) {
  (void)l;
  AioStream r, w;
  char buf[4096] = {0};
  const AioPiece v[] = {{buf, sizeof buf}, {buf, sizeof buf}};
  no_faults();
  pair_open(&r, &w, true);
  CHECK_EQ(fcntl(r.fd, F_SETFL, fcntl(r.fd, F_GETFL) & ~O_NONBLOCK), 0);
  CHECK_EQ(fcntl(w.fd, F_SETFL, fcntl(w.fd, F_GETFL) & ~O_NONBLOCK), 0);
  CHECK_EQ(aio_stream_read(&r, buf, sizeof buf), -EAGAIN);
  int64_t n;
  while ((n = aio_stream_write(&w, v, 2)) > 0) {}
  CHECK_EQ(n, -EAGAIN);
  CHECK_EQ(aio_stream_write(&w, v, 1), -EAGAIN);
  pair_close(&r, &w);
}

static int tried;
static void try_many(void *opaque) {
  tried = 0;
  while (aio_may_try(opaque)) tried++;
}

static void test_may_try(Loop *l) {
  for (int i = 0; i < 3; i++) {
    tried = 0;
    CHECK_EQ(aio_bh_oneshot(l->ctx, try_many, l->ctx), 0);
    RUN_UNTIL(l, tried);
    CHECK(tried > 8 && tried < 1000);
  }
}

/* ---- a watch that is opened again ---- */

static int ready;
static void count_ready(void *opaque) {
  ready++;
  aio_watch_close(opaque);
}

static void test_watch_again(Loop *l) {
  AioStream r, w;
  AioWatch watch = {.ctx = NULL};
  char buf[8];
  no_faults();
  pair_open(&r, &w, true);
  for (int i = 1; i <= 5; i++) {
    ready = 0;
    CHECK_EQ(aio_watch_again(&watch, l->ctx, r.fd, AIO_READ, count_ready, &watch), 0);
    AioWatch other = {.ctx = NULL};
    CHECK_EQ(aio_watch_again(&other, l->ctx, r.fd, AIO_READ, count_ready, &other), -EEXIST);
    CHECK_EQ(aio_stream_write(&w, &(AioPiece){"x", 1}, 1), 1);
    RUN_UNTIL(l, ready);
    CHECK_EQ(aio_stream_read(&r, buf, 8), 1);
    CHECK_QUIET(l);
  }
  /* Ready while nobody waits: the registration goes, and comes back. */
  CHECK_EQ(aio_stream_write(&w, &(AioPiece){"x", 1}, 1), 1);
  CHECK_RESTS(l);
  ready = 0;
  CHECK_EQ(aio_watch_again(&watch, l->ctx, r.fd, AIO_READ, count_ready, &watch), 0);
  RUN_UNTIL(l, ready);
  /* The number is another's now. */
  int fd = r.fd;
  aio_stream_close(&r);
  AioStream r2, w2;
  pair_open(&r2, &w2, true);
  AioStream *mine = r2.fd == fd ? &r2 : &w2, *peer = mine == &r2 ? &w2 : &r2;
  CHECK_EQ(mine->fd, fd);
  ready = 0;
  AioWatch fresh = {.ctx = NULL};
  CHECK_EQ(aio_watch_again(&fresh, l->ctx, fd, AIO_READ, count_ready, &fresh), 0);
  CHECK_EQ(aio_stream_write(peer, &(AioPiece){"x", 1}, 1), 1);
  RUN_UNTIL(l, ready);
  pair_close(&r2, &w2);
  pair_close(&r, &w);
}

/* ---- addresses ---- */

static const AioSocketOptions defaults = {.backlog = 16, .reuseaddr = true, .nodelay = true, .keepalive = -1, .v6only = -1};

static void test_addresses(Loop *l) {
  (void)l;
  AioSockaddr a;
  char longest[108];
  memset(longest, 'x', sizeof longest);
  CHECK_EQ(aio_sockaddr_path(&a, longest, sizeof longest), -ENAMETOOLONG);
  CHECK_EQ(aio_sockaddr_path(&a, longest, sizeof longest - 1), 0);
  longest[0] = '@';
  CHECK_EQ(aio_sockaddr_path(&a, longest, sizeof longest), 0);
  CHECK_EQ(aio_sockaddr_path(&a, "", 0), -EINVAL);
  CHECK_EQ(aio_sockaddr_path(&a, "a\0b", 3), -EINVAL);
  CHECK_EQ(aio_sockaddr_numeric(&a, "::1", 80), 0);
  CHECK_EQ(aio_sockaddr_numeric(&a, "localhost", 80), -EINVAL);
  CHECK_EQ(aio_sockaddr_numeric(&a, "1.2.3.4", 65536), -EINVAL);
  const char *hosts[] = {"::1", "::2", "::3", "1.1.1.1", "2.2.2.2"}, *want[] = {"::1", "1.1.1.1", "::2", "2.2.2.2", "::3"};
  AioSockaddr list[5];
  for (int i = 0; i < 5; i++) CHECK_EQ(aio_sockaddr_numeric(&list[i], hosts[i], 80), 0);
  aio_sockaddr_interleave(list, 5);
  for (int i = 0; i < 5; i++) {
    char text[64];
    const struct sockaddr *sa = (const void *)list[i].data;
    const void *addr = sa->sa_family == AF_INET ? (const void *)&((const struct sockaddr_in *)(const void *)sa)->sin_addr
                                                : (const void *)&((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr;
    CHECK_STR(inet_ntop(sa->sa_family, addr, text, sizeof text), want[i]);
  }
}

static void listen_any(AioListener *server, AioSockaddr *at) {
  char text[AIO_NAME_MAX];
  int port;
  CHECK_EQ(aio_sockaddr_numeric(at, "127.0.0.1", 0), 0);
  CHECK_EQ(aio_socket_listen(server, at, &defaults), 0);
  CHECK(aio_socket_name(server->fd, false, text, &port) > 0);
  CHECK_EQ(aio_sockaddr_numeric(at, "127.0.0.1", port), 0);
}

/* ---- listening and accepting ---- */

static void test_accept(Loop *l) {
  (void)l;
  AioListener server;
  AioSockaddr at;
  no_faults();
  listen_any(&server, &at);
  CHECK_EQ(aio_socket_accept(server.fd), -EAGAIN);
  int client = socket(AF_INET, SOCK_STREAM, 0);
  CHECK_EQ(connect(client, (const struct sockaddr *)(const void *)at.data, at.len), 0);
  int passed_over[] = {ECONNABORTED, EINTR, EPROTO, ENETDOWN, EHOSTUNREACH};
  for (size_t i = 0; i < COUNT(passed_over); i++) {
    on_accept = (Fault){.error = passed_over[i], .times = 2};
    int got = aio_socket_accept(server.fd);
    CHECK(i == 0 ? got >= 0 : got == -EAGAIN);
    CHECK_EQ(on_accept.injected, 2);
    if (got >= 0) aio_socket_close(got);
  }
  int told[] = {EMFILE, ENFILE, ENOBUFS, ENOMEM};
  for (size_t i = 0; i < COUNT(told); i++) {
    on_accept = (Fault){.error = told[i], .times = 1};
    CHECK_EQ(aio_socket_accept(server.fd), -told[i]);
  }
  on_accept = (Fault){.error = EINTR, .times = -1};
  CHECK_EQ(aio_socket_accept(server.fd), -EAGAIN); /* not for ever */
  no_faults();
  aio_socket_unlisten(&server, false);
  aio_socket_unlisten(&server, false);
  CHECK_EQ(closes, 1);
  close(client);
}

static void test_paths(Loop *l) {
  (void)l;
  char path[] = "/tmp/aioloop-XXXXXX";
  AioSockaddr at;
  AioListener one, two;
  struct stat st;
  no_faults();
  close(mkstemp(path));
  CHECK_EQ(aio_sockaddr_path(&at, path, strlen(path)), 0);
  CHECK_EQ(aio_socket_listen(&one, &at, &defaults), -EADDRINUSE); /* a file is left alone */
  CHECK_EQ(stat(path, &st), 0);
  unlink(path);
  CHECK_EQ(aio_socket_listen(&one, &at, &defaults), 0);
  CHECK_EQ(aio_socket_listen(&two, &at, &defaults), -EADDRINUSE);
  CHECK_EQ(two.fd, -1);
  close(one.fd); /* died */
  on_unlink = (Fault){.error = EACCES, .times = 1};
  CHECK_EQ(aio_socket_listen(&two, &at, &defaults), -EADDRINUSE);
  CHECK_EQ(aio_socket_listen(&two, &at, &defaults), 0);
  aio_socket_unlisten(&two, false);
  CHECK(stat(path, &st) < 0);
  on_socket = (Fault){.error = EMFILE, .times = 1};
  CHECK_EQ(aio_socket_listen(&one, &at, &defaults), -EMFILE);
}

/* ---- connecting ---- */

static int over;
static void count_over(void *opaque) { ++*(int *)opaque; }

static int connect_all(Loop *l, AioConnect **k, const AioSockaddr *list, unsigned n) {
  over = 0;
  int rc = aio_connect(k, l->ctx, list, n, &defaults, count_over, &over);
  CHECK(rc >= 0);
  if (rc == 0) RUN_UNTIL(l, over);
  return aio_connect_result(*k);
}

static void test_connect(Loop *l) {
  AioListener server, dead;
  AioSockaddr to[3], nowhere;
  AioConnect *k;
  no_faults();
  listen_any(&server, &to[0]);
  listen_any(&dead, &nowhere);
  aio_socket_unlisten(&dead, false);
  for (unsigned n = 1; n <= 3; n++) { /* the last of them answers */
    to[n - 1] = to[0];
    for (unsigned i = 0; i + 1 < n; i++) to[i] = nowhere;
    int fd = connect_all(l, &k, to, n);
    CHECK(fd >= 0);
    aio_connect_free(k);
    CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
    aio_socket_close(fd);
    AioSockaddr live = to[n - 1];
    to[0] = live;
  }
  AioSockaddr none[] = {nowhere, nowhere};
  CHECK_EQ(connect_all(l, &k, none, 2), -ECONNREFUSED);
  aio_connect_free(k);
  CHECK_EQ(connect_all(l, &k, none, 0), -EADDRNOTAVAIL);
  aio_connect_free(k);
  on_socket = (Fault){.error = EMFILE, .times = 1};
  CHECK_EQ(connect_all(l, &k, none, 1), -EMFILE);
  aio_connect_free(k);
  on_connect = (Fault){.error = ENETUNREACH, .times = 1};
  none[1] = to[0];
  int fd = connect_all(l, &k, none, 2);
  CHECK(fd >= 0);
  aio_socket_close(fd);
  aio_connect_free(k);
  /* One that nobody wants any more, at any time. */
  CHECK(aio_connect(&k, l->ctx, to, 1, &defaults, count_over, &over) >= 0);
  aio_connect_free(k);
  CHECK(aio_connect(&k, l->ctx, to, 1, &defaults, count_over, &over) >= 0);
  RUN_UNTIL(l, over);
  aio_connect_free(k); /* with a connection that was not taken */
  aio_connect_free(NULL);
  aio_socket_unlisten(&server, false);
  CHECK_QUIET(l);
}

/* An address that does not answer holds up the next for 250 ms. */
static void test_connect_slow(Loop *l) {
  AioListener full, server;
  AioSockaddr to[2];
  AioSocketOptions least_backlog = defaults;
  AioConnect *k, *filling[16];
  int n = 0, filled[16];
  no_faults();
  CHECK_EQ(aio_sockaddr_numeric(&to[0], "127.0.0.1", 0), 0);
  least_backlog.backlog = 0;
  CHECK_EQ(aio_socket_listen(&full, &to[0], &least_backlog), 0);
  char text[AIO_NAME_MAX];
  int port;
  aio_socket_name(full.fd, false, text, &port);
  CHECK_EQ(aio_sockaddr_numeric(&to[0], "127.0.0.1", port), 0);
  listen_any(&server, &to[1]);
  for (; n < 16; n++) { /* until one gets no answer */
    over = 0;
    CHECK(aio_connect(&filling[n], l->ctx, &to[0], 1, &defaults, count_over, &over) >= 0);
    int64_t end = now_ns() + 50 * MS;
    while (!over && now_ns() < end) turn(l, 5 * MS);
    if (!over) break;
    filled[n] = aio_connect_result(filling[n]);
    aio_connect_free(filling[n]);
  }
  CHECK(n < 16);
  aio_connect_free(filling[n]);
  int64_t from = now_ns();
  int fd = connect_all(l, &k, to, 2);
  CHECK(fd >= 0);
  CHECK(now_ns() - from >= 250 * MS);
  CHECK(now_ns() - from < 2 * SEC);
  CHECK(aio_socket_name(fd, true, text, &port) > 0);
  int want;
  aio_socket_name(server.fd, false, text, &want);
  CHECK_EQ(port, want);
  aio_socket_close(fd);
  aio_connect_free(k);
  while (n > 0) aio_socket_close(filled[--n]);
  aio_socket_unlisten(&full, false);
  aio_socket_unlisten(&server, false);
  CHECK_QUIET(l);
}

static void test_connect_closed(Loop *l) {
  AioListener server;
  AioSockaddr to;
  AioConnect *k;
  no_faults();
  listen_any(&server, &to);
  over = 0;
  CHECK(aio_connect(&k, l->ctx, &to, 1, &defaults, count_over, &over) >= 0);
  aio_context_close(l->ctx);
  aio_connect_free(k);
  CHECK_EQ(over, 0);
  CHECK_EQ(aio_connect(&k, l->ctx, &to, 1, &defaults, count_over, &over), -ESHUTDOWN);
  CHECK(!k);
  aio_socket_unlisten(&server, false);
}

static const Test tests[] = {
  TEST_POLL(test_bytes), TEST_POLL(test_faults), TEST_POLL(test_chunk_adapts), TEST_POLL(test_no_sigpipe), TEST_POLL(test_adopt),
  TEST_POLL(test_made_to_block), TEST(test_may_try), TEST(test_watch_again), TEST_POLL(test_addresses),
  TEST_POLL(test_accept), TEST_POLL(test_paths),
  TEST(test_connect), TEST(test_connect_slow), TEST(test_connect_closed),
};

CHECK_MAIN(tests, "epoll+poll")
