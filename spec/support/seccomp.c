/* SPDX-License-Identifier: MIT
 * Refuses system calls, for good: a sandbox as strict as a spec wants it.
 *
 * Keep     for this process alone, which is a child that a spec has started. */
#include <errno.h>
#include <lauxlib.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <lua.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

int luaopen_seccomp(lua_State *L);

typedef struct Name {
  const char *name;
  int value;
} Name;

static const Name calls[] = {
  {"io_uring_setup", SYS_io_uring_setup}, {"io_uring_enter", SYS_io_uring_enter}, {"io_setup", SYS_io_setup},
  {"io_submit", SYS_io_submit}, {"clone", SYS_clone}, {"clone3", SYS_clone3}, {"preadv2", SYS_preadv2},
  {"pwritev2", SYS_pwritev2}, {"epoll_ctl", SYS_epoll_ctl}, {NULL, 0}};

static const Name errors[] = {{"EPERM", EPERM}, {"ENOSYS", ENOSYS}, {"ENOMEM", ENOMEM}, {"EAGAIN", EAGAIN}, {"ENOSPC", ENOSPC},
  {NULL, 0}};

static int check_name(lua_State *L, int arg, const Name *names) {
  const char *name = luaL_checkstring(L, arg);
  while (names->name && strcmp(names->name, name)) names++;
  luaL_argcheck(L, names->name, arg, "unknown name");
  return names->value;
}

static int refuse(lua_State *L) { /* name of a system call, of an error */
  struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)check_name(L, 1, calls), 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)check_name(L, 2, errors)),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
    return luaL_fileresult(L, 0, NULL);
  lua_pushboolean(L, 1);
  return 1;
}

__attribute__((visibility("default"))) int luaopen_seccomp(lua_State *L) {
  static const luaL_Reg functions[] = {{"refuse", refuse}, {NULL, NULL}};
  luaL_newlib(L, functions);
  return 1;
}
