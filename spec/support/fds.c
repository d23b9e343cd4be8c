/* SPDX-License-Identifier: MIT
 * Raw fds for the specs: pipes, socket pairs, numbers that are closed and used again, and how many are open; signals.
 *
 * Keep     all are non-blocking and close-on-exec; a refusal is nil, message, errno. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <lua.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

int luaopen_fds(lua_State *L);

static int check_fd(lua_State *L, int arg) { return (int)luaL_checkinteger(L, arg); }

static int integer_or_errno(lua_State *L, long value) {
  if (value < 0) return luaL_fileresult(L, 0, NULL);
  lua_pushinteger(L, value);
  return 1;
}

static int pair_or_errno(lua_State *L, int rc, const int *pair) {
  if (rc < 0) return luaL_fileresult(L, 0, NULL);
  lua_pushinteger(L, pair[0]);
  lua_pushinteger(L, pair[1]);
  return 2;
}

static int fds_pipe(lua_State *L) { /* read end, write end */
  int pair[2];
  int rc = pipe2(pair, O_NONBLOCK | O_CLOEXEC);
  return pair_or_errno(L, rc, pair);
}

/* ["seqpacket"] */
static int fds_socketpair(lua_State *L) {
  int type = lua_isnoneornil(L, 1) ? SOCK_STREAM : SOCK_SEQPACKET;
  int pair[2];
  int rc = socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair);
  return pair_or_errno(L, rc, pair);
}

static int fds_read(lua_State *L) { /* fd [, size]; "" at the end */
  char buf[65536];
  size_t size = (size_t)luaL_optinteger(L, 2, sizeof buf);
  ssize_t got = read(check_fd(L, 1), buf, size < sizeof buf ? size : sizeof buf);
  if (got < 0) return luaL_fileresult(L, 0, NULL);
  lua_pushlstring(L, buf, (size_t)got);
  return 1;
}

static int fds_write(lua_State *L) { /* how much was written */
  size_t size;
  const char *data = luaL_checklstring(L, 2, &size);
  return integer_or_errno(L, write(check_fd(L, 1), data, size));
}

static int fds_fill(lua_State *L) { /* writes until it would block; how much that was */
  static const char block[4096];
  int fd = check_fd(L, 1);
  long total = 0;
  for (size_t size = sizeof block; size; size /= 2)
    for (ssize_t n; (n = write(fd, block, size)) > 0;) total += n;
  return integer_or_errno(L, total);
}

static int fds_block(lua_State *L) { /* as another program may make it */
  int fd = check_fd(L, 1), flags = fcntl(fd, F_GETFL);
  return luaL_fileresult(L, flags >= 0 && fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0, NULL);
}

static int fds_close(lua_State *L) { return luaL_fileresult(L, close(check_fd(L, 1)) == 0, NULL); }
static int fds_dup(lua_State *L) { return integer_or_errno(L, fcntl(check_fd(L, 1), F_DUPFD_CLOEXEC, 0)); }
static int fds_dup2(lua_State *L) { return integer_or_errno(L, dup2(check_fd(L, 1), check_fd(L, 2))); }
static int fds_is_open(lua_State *L) { return lua_pushboolean(L, fcntl(check_fd(L, 1), F_GETFD) >= 0), 1; }

static int fds_count(lua_State *L) {
  DIR *dir = opendir("/proc/self/fd");
  lua_Integer n = -3; /* ".", ".." and dir's own */
  if (!dir) return luaL_fileresult(L, 0, NULL);
  while (readdir(dir)) n++;
  closedir(dir);
  lua_pushinteger(L, n);
  return 1;
}

static int fds_limit(lua_State *L) { /* raises the limit of open fds towards what is asked for; what it is now */
  rlim_t want = (rlim_t)luaL_checkinteger(L, 1);
  struct rlimit lim;
  getrlimit(RLIMIT_NOFILE, &lim);
  if (lim.rlim_cur < want) {
    struct rlimit more = {.rlim_cur = want, .rlim_max = want > lim.rlim_max ? want : lim.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &more) < 0) {
      lim.rlim_cur = lim.rlim_max;
      setrlimit(RLIMIT_NOFILE, &lim);
    }
    getrlimit(RLIMIT_NOFILE, &lim);
  }
  lua_pushinteger(L, lim.rlim_cur > INT32_MAX ? INT32_MAX : (lua_Integer)lim.rlim_cur);
  return 1;
}

/* A signal to this process. */
static int fds_kill(lua_State *L) { return luaL_fileresult(L, kill(getpid(), (int)luaL_checkinteger(L, 1)) == 0, NULL); }

__attribute__((visibility("default"))) int luaopen_fds(lua_State *L) {
  static const luaL_Reg functions[] = {{"pipe", fds_pipe}, {"socketpair", fds_socketpair}, {"read", fds_read},
    {"write", fds_write}, {"fill", fds_fill}, {"block", fds_block}, {"close", fds_close}, {"dup", fds_dup},
    {"dup2", fds_dup2},
    {"is_open", fds_is_open}, {"count", fds_count}, {"limit", fds_limit}, {"kill", fds_kill}, {NULL, NULL}};
  luaL_newlib(L, functions);
  return 1;
}
