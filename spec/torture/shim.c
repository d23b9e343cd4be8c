/* SPDX-License-Identifier: MIT
 * Stands between the module and the kernel (LD_PRELOAD): calls that core.so makes, and no others, move one byte at a
 * time, or are refused. Those of OpenSSL move a byte at a time, too.
 *
 * Way      SHIM=bytes: on sockets and pipes one byte for each call; SHIM_SEED=n: and between them EAGAIN and EINTR by lot;
 *          SHIM_REPORT=file: how much was done so, a line for each process.
 *          shim_arm(call, n, for_ever) -> the nth of these calls fails, or all from there on -> shim_disarm
 * Threads  any.
 * Keep     a call is the module's when its return address lies in it. What the module allocates and frees is counted:
 *          shim_live. Not for use with sanitizers, which stand in the same place. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* ---- whose call it is ---- */

typedef struct Code {
  const char *name;
  _Atomic(uintptr_t) from, to;
} Code;

static Code module = {.name = "aioloop/core.so"}, tls = {.name = "libcrypto.so"};

static int find(struct dl_phdr_info *info, size_t size, void *code) {
  Code *c = code;
  (void)size;
  if (!strstr(info->dlpi_name, c->name)) return 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &info->dlpi_phdr[i];
    if (p->p_type != PT_LOAD || !(p->p_flags & PF_X)) continue;
    atomic_store(&c->to, info->dlpi_addr + p->p_vaddr + p->p_memsz);
    atomic_store(&c->from, info->dlpi_addr + p->p_vaddr);
  }
  return 1;
}

static bool is_in(const Code *c, const void *address) {
  uintptr_t a = (uintptr_t)address, begin = atomic_load_explicit(&c->from, memory_order_relaxed);
  return begin && a >= begin && a < atomic_load_explicit(&c->to, memory_order_relaxed);
}

static bool is_mine(const void *address) { return is_in(&module, address); }

#define MINE is_mine(__builtin_return_address(0))

/* ---- what is to fail ---- */

/* A call, and what it fails with. */
#define CALLS(X) X(read, ECONNRESET) X(recv, ECONNRESET) X(write, EIO) X(writev, EIO) X(send, ENOBUFS) X(sendmsg, ENOBUFS) \
  X(accept4, EMFILE) X(socket, EMFILE) X(socketpair, EMFILE) X(connect, ENETUNREACH) X(bind, EACCES) X(listen, EADDRINUSE) \
  X(shutdown, ENOTCONN) X(epoll_create1, EMFILE) X(epoll_ctl, ENOMEM) X(epoll_wait, EINTR) X(eventfd, EMFILE) \
  X(pipe2, EMFILE) X(fcntl, ENOMEM) X(getsockopt, ENOBUFS) X(setsockopt, ENOBUFS) X(getsockname, ENOBUFS) \
  X(getpeername, ENOBUFS) X(fstat, ENOMEM) X(lstat, ENOMEM) X(unlink, EACCES) X(poll, EINTR) X(ppoll, EINTR) X(close, EINTR) \
  X(dup3, EMFILE) X(malloc, ENOMEM) X(realloc, ENOMEM) X(calloc, ENOMEM) X(aligned_alloc, ENOMEM) X(pthread_create, EAGAIN)

enum {
#define X(call, error) CALL_##call,
  CALLS(X)
#undef X
  NCALLS
};

static const char *const names[] = {
#define X(call, error) #call,
  CALLS(X)
#undef X
};

static const int errors[] = {
#define X(call, error) error,
  CALLS(X)
#undef X
};

static atomic_int armed = -1;
static atomic_long count, refused, at, live;
static atomic_bool for_ever;

static bool fails(int call) {
  if (atomic_load_explicit(&armed, memory_order_relaxed) != call) return false;
  long n = atomic_fetch_add(&count, 1) + 1;
  if (atomic_load(&for_ever) ? n < atomic_load(&at) : n != atomic_load(&at)) return false;
  atomic_fetch_add(&refused, 1);
  errno = errors[call];
  return true;
}

#define FAILS(call) (MINE && fails(CALL_##call))

/* The nth call named so is the name's index; NULL: no more. */
const char *shim_call(int i);
const char *shim_call(int i) { return i < NCALLS ? names[i] : NULL; }

/* The module is there by now. False: no such call. */
bool shim_arm(const char *call, long n, bool ever);
bool shim_arm(const char *call, long n, bool ever) {
  dl_iterate_phdr(find, &module);
  atomic_store(&count, 0);
  atomic_store(&refused, 0);
  atomic_store(&at, n);
  atomic_store(&for_ever, ever);
  for (int i = 0; i < NCALLS; i++)
    if (!strcmp(names[i], call)) return atomic_store(&armed, i), atomic_load(&module.from) != 0;
  return false;
}

long shim_disarm(void); /* how many calls were refused */
long shim_disarm(void) { return atomic_store(&armed, -1), atomic_load(&refused); }

long shim_live(void); /* allocations of the module that it has not freed */
long shim_live(void) { return atomic_load(&live); }

/* ---- one byte at a time ---- */

static bool small;
static atomic_uint lot; /* 0: no hiccups */
static atomic_long cut, hiccups;

__attribute__((constructor)) static void begin(void) {
  const char *mode = getenv("SHIM"), *seed = getenv("SHIM_SEED");
  small = mode && !strcmp(mode, "bytes");
  if (seed) atomic_store(&lot, (unsigned)atoi(seed) * 2 + 1);
}

__attribute__((destructor)) static void end(void) {
  const char *name = getenv("SHIM_REPORT");
  FILE *f = name && atomic_load(&cut) ? fopen(name, "a") : NULL;
  if (!f) return;
  fprintf(f, "%ld calls cut short, %ld refused for once\n", atomic_load(&cut), atomic_load(&hiccups));
  fclose(f);
}

static bool moves_bytes(int fd) {
  struct stat st;
  int error = errno;
  bool fine = fstat(fd, &st) == 0 && (S_ISSOCK(st.st_mode) || S_ISFIFO(st.st_mode));
  errno = error;
  return fine;
}

static bool is_cut(int fd, const void *caller) {
  if (!small) return false;
  if (!atomic_load_explicit(&module.from, memory_order_relaxed)) dl_iterate_phdr(find, &module);
  if (!atomic_load_explicit(&tls.from, memory_order_relaxed)) dl_iterate_phdr(find, &tls);
  return (is_mine(caller) || is_in(&tls, caller)) && moves_bytes(fd);
}

static bool hiccup(int fd) {
  unsigned seed = atomic_load_explicit(&lot, memory_order_relaxed);
  if (!seed) return false;
  seed = seed * 1664525 + 1013904223;
  atomic_store_explicit(&lot, seed ? seed : 1, memory_order_relaxed);
  unsigned draw = seed >> 28;
  if (draw > 3 || (draw < 2 && !(fcntl(fd, F_GETFL) & O_NONBLOCK))) return false;
  atomic_fetch_add(&hiccups, 1);
  errno = draw < 2 ? EAGAIN : EINTR;
  return true;
}

#define CUT(fd) is_cut(fd, __builtin_return_address(0))

static size_t one(size_t n) {
  if (n > 1) atomic_fetch_add(&cut, 1);
  return n > 1 ? 1 : n;
}

static struct iovec first_of(const struct iovec *v, size_t n) {
  struct iovec got = {.iov_len = 0};
  for (size_t i = 0; i < n && !got.iov_len; i++) got = v[i];
  if (n > 1 && got.iov_len == 1) atomic_fetch_add(&cut, 1);
  got.iov_len = one(got.iov_len);
  return got;
}

/* ---- the calls ---- */

#define REAL(call) \
  static __typeof__(&call) real; \
  if (!real) *(void **)&real = dlsym(RTLD_NEXT, #call)

ssize_t read(int fd, void *buf, size_t n) {
  REAL(read);
  if (FAILS(read)) return -1;
  if (!CUT(fd)) return real(fd, buf, n);
  return hiccup(fd) ? -1 : real(fd, buf, one(n));
}

ssize_t recv(int fd, void *buf, size_t n, int flags) {
  REAL(recv);
  if (FAILS(recv)) return -1;
  if (!CUT(fd)) return real(fd, buf, n, flags);
  return hiccup(fd) ? -1 : real(fd, buf, one(n), flags);
}

ssize_t write(int fd, const void *buf, size_t n) {
  REAL(write);
  if (FAILS(write)) return -1;
  if (!CUT(fd)) return real(fd, buf, n);
  return hiccup(fd) ? -1 : real(fd, buf, one(n));
}

ssize_t send(int fd, const void *buf, size_t n, int flags) {
  REAL(send);
  if (FAILS(send)) return -1;
  if (!CUT(fd)) return real(fd, buf, n, flags);
  return hiccup(fd) ? -1 : real(fd, buf, one(n), flags);
}

ssize_t writev(int fd, const struct iovec *v, int n) {
  REAL(writev);
  if (FAILS(writev)) return -1;
  if (!CUT(fd)) return real(fd, v, n);
  struct iovec piece = first_of(v, (size_t)n);
  return hiccup(fd) ? -1 : real(fd, &piece, 1);
}

ssize_t sendmsg(int fd, const struct msghdr *msg, int flags) {
  REAL(sendmsg);
  if (FAILS(sendmsg)) return -1;
  if (!CUT(fd)) return real(fd, msg, flags);
  struct iovec piece = first_of(msg->msg_iov, msg->msg_iovlen);
  struct msghdr less = *msg;
  less.msg_iov = &piece;
  less.msg_iovlen = 1;
  return hiccup(fd) ? -1 : real(fd, &less, flags);
}

int accept4(int fd, struct sockaddr *a, socklen_t *len, int flags) {
  REAL(accept4);
  if (FAILS(accept4)) return -1;
  return CUT(fd) && hiccup(fd) ? -1 : real(fd, a, len, flags);
}

int close(int fd) { /* it is closed all the same */
  REAL(close);
  bool fail = FAILS(close);
  int rc = real(fd);
  return fail ? (errno = errors[CALL_close], -1) : rc;
}

int fcntl(int fd, int command, ...) {
  REAL(fcntl);
  va_list list;
  va_start(list, command);
  long arg = va_arg(list, long);
  va_end(list);
  return FAILS(fcntl) ? -1 : real(fd, command, arg);
}

long syscall(long n, ...) { /* of the module's, epoll_pwait2 alone comes this way */
  REAL(syscall);
  va_list list;
  va_start(list, n);
  long arg[6];
  for (int i = 0; i < 6; i++) arg[i] = va_arg(list, long);
  va_end(list);
  return FAILS(epoll_wait) ? -1 : real(n, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
}

#define FAILING(type, call, parameters, arguments) \
  type call parameters {                           \
    REAL(call);                                    \
    return FAILS(call) ? -1 : real arguments;      \
  }

FAILING(int, socket, (int a, int b, int c), (a, b, c))
FAILING(int, socketpair, (int a, int b, int c, int v[2]), (a, b, c, v))
FAILING(int, connect, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n))
FAILING(int, bind, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n))
FAILING(int, listen, (int fd, int n), (fd, n))
FAILING(int, shutdown, (int fd, int how), (fd, how))
FAILING(int, epoll_create1, (int flags), (flags))
FAILING(int, epoll_ctl, (int e, int op, int fd, struct epoll_event *ev), (e, op, fd, ev))
FAILING(int, epoll_wait, (int e, struct epoll_event *ev, int n, int ms), (e, ev, n, ms))
FAILING(int, eventfd, (unsigned n, int flags), (n, flags))
FAILING(int, pipe2, (int v[2], int flags), (v, flags))
FAILING(int, getsockopt, (int fd, int level, int name, void *v, socklen_t *n), (fd, level, name, v, n))
FAILING(int, setsockopt, (int fd, int level, int name, const void *v, socklen_t n), (fd, level, name, v, n))
FAILING(int, getsockname, (int fd, struct sockaddr *a, socklen_t *n), (fd, a, n))
FAILING(int, getpeername, (int fd, struct sockaddr *a, socklen_t *n), (fd, a, n))
FAILING(int, fstat, (int fd, struct stat *st), (fd, st))
FAILING(int, lstat, (const char *path, struct stat *st), (path, st))
FAILING(int, unlink, (const char *path), (path))
FAILING(int, poll, (struct pollfd *v, nfds_t n, int ms), (v, n, ms))
FAILING(int, ppoll, (struct pollfd *v, nfds_t n, const struct timespec *t, const sigset_t *s), (v, n, t, s))
FAILING(int, dup3, (int a, int b, int flags), (a, b, flags))

int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg) {
  REAL(pthread_create);
  return FAILS(pthread_create) ? EAGAIN : real(t, a, fn, arg);
}

/* ---- memory: dlsym itself wants some, so it is glibc's own that is asked ---- */

extern void *__libc_malloc(size_t n), *__libc_calloc(size_t n, size_t size), *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t align, size_t n);
extern void __libc_free(void *p);

static void *counted(void *p, bool mine) {
  if (p && mine) atomic_fetch_add(&live, 1);
  return p;
}

void *malloc(size_t n) { return FAILS(malloc) ? NULL : counted(__libc_malloc(n), MINE); }
void *calloc(size_t n, size_t size) { return FAILS(calloc) ? NULL : counted(__libc_calloc(n, size), MINE); }
void *aligned_alloc(size_t align, size_t n) { return FAILS(aligned_alloc) ? NULL : counted(__libc_memalign(align, n), MINE); }

void *realloc(void *p, size_t n) {
  if (FAILS(realloc)) return NULL;
  void *q = __libc_realloc(p, n);
  return p ? q : counted(q, MINE);
}

void free(void *p) {
  if (p && MINE) atomic_fetch_sub(&live, 1);
  __libc_free(p);
}
