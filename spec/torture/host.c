/* SPDX-License-Identifier: MIT
 * A Lua host without memory: runs a scenario again and again, and each time another allocation fails.
 *
 * Way      host SCRIPT MODE -> for N = 1, 2, 3 ... a child: a fresh state; the script, which returns a table; its function
 *          `scenario` with the Nth growing allocation failing -> memory is there again, `usable` must return true
 *          -> lua_close
 * Keep     MODE pair: the Nth and the next attempt fail (Lua tries again after a collection); persist: all from the Nth
 *          on. A child ends with 0, or 77 when nothing was left to fail. What it had allocated is freed. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static long count, fail_at;
static bool armed, persist;
static long failed, bytes;

static void *allocate(void *ud, void *p, size_t old, size_t size) {
  (void)ud;
  if (!p) old = 0;
  if (size == 0) {
    bytes -= (long)old;
    free(p);
    return NULL;
  }
  if (armed && size > old && fail_at) {
    count++;
    if (persist ? count >= fail_at : count == fail_at || count == fail_at + 1) {
      failed++;
      return NULL;
    }
  }
  void *q = realloc(p, size);
  if (q) bytes += (long)size - (long)old;
  return q;
}

/* The scenario's own error is fine as long as it is one that can be caught. */
static int child(const char *script, long n) {
  lua_State *L = lua_newstate(allocate, NULL);
  fail_at = n;
  luaL_openlibs(L);
  if (luaL_dofile(L, script) != LUA_OK) return fprintf(stderr, "%s\n", lua_tostring(L, -1)), 1;
  lua_getfield(L, 1, "usable");
  lua_getfield(L, 1, "scenario");
  armed = true;
  lua_pcall(L, 0, 0, 0);
  armed = false;
  lua_settop(L, 2);
  if (lua_pcall(L, 0, 1, 0) != LUA_OK || !lua_toboolean(L, -1))
    return fprintf(stderr, "allocation %ld: not usable afterwards: %s\n", n, luaL_tolstring(L, -1, NULL)), 1;
  lua_close(L);
  if (bytes) return fprintf(stderr, "allocation %ld: %ld bytes left\n", n, bytes), 1;
  return failed ? 0 : 77;
}

int main(int argc, char **argv) {
  if (argc < 3) return fprintf(stderr, "usage: host SCRIPT pair|persist [N]\n"), 2;
  persist = !strcmp(argv[2], "persist");
  if (argc > 3) return child(argv[1], atol(argv[3]));
  for (long n = 1;; n++) {
    pid_t pid = fork();
    if (pid < 0) return perror("fork"), 2;
    if (pid == 0) {
      alarm(20);
      exit(child(argv[1], n));
    }
    int status;
    waitpid(pid, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) return printf("%s %s: %ld allocations\n", argv[1], argv[2], n - 1), 0;
    if (status == 0) continue;
    if (WIFSIGNALED(status))
      fprintf(stderr, "allocation %ld: killed by signal %d\n", n, WTERMSIG(status));
    return fprintf(stderr, "%s %s: failed at allocation %ld\n", argv[1], argv[2], n), 1;
  }
}
