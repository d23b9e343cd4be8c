/* SPDX-License-Identifier: MIT
 * Waiting for the first of several fds, as select does; lua/aioloop/socket_select.lua makes it one.
 *
 * Way      ready -> aio_ready -> none: wait_any -> ticket, a watch for each -> on_ready -> true -> ready
 * Owner    an LSelect is allocated by the wait, and freed when its ticket leaves.
 * Keep     an fd that is closed must not be watched on: its number may be another's soon. Who closes it says so to `closing`.
 *          Who reads or writes has the watch, and makes who only looks step aside: he looks again and again then. */
#include <errno.h>

#include "lstream.h"

enum { LOOK_NS = 5000000 }; /* how often, where another has the watch */

typedef struct LSelectItem {
  AioWatch w;
  struct LSelect *of;
} LSelectItem;

typedef struct LSelect {
  AioLink link; /* rt->selects */
  LTicket *tk;
  size_t n;     /* watches that are open */
  bool blind;   /* for some another has the watch */
  size_t size;  /* bytes of this */
  LSelectItem items[];
} LSelect;

static size_t count_fds(lua_State *L) { /* [-0, +0, v] stack: fds, what is wanted of each, ... */
  luaL_checktype(L, 1, LUA_TTABLE);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_Unsigned n = lua_rawlen(L, 1);
  luaL_argcheck(L, n <= INT32_MAX && n == lua_rawlen(L, 2), 2, "two lists of the same length expected");
  return (size_t)n;
}

static AioReady check_item(lua_State *L, size_t i) { /* [-0, +0, v] */
  int is_fd, is_mask;
  lua_rawgeti(L, 1, (lua_Integer)i + 1);
  lua_rawgeti(L, 2, (lua_Integer)i + 1);
  lua_Integer fd = lua_tointegerx(L, -2, &is_fd), wanted = lua_tointegerx(L, -1, &is_mask);
  luaL_argcheck(L, is_fd && fd >= 0 && fd <= INT32_MAX, 1, "an fd is an integer");
  luaL_argcheck(L, is_mask && wanted >= 1 && wanted <= 3, 2, "1, 2 or 3 is wanted");
  return lua_pop(L, 2), (AioReady){.fd = (int)fd, .wanted = (unsigned)wanted};
}

/* ready(fds, wanted) -> list of what each is ready for; or nil: none of them; or nil, message, errno. 1: to be read, 2: to be
 * written, 3: both. */
int aioL_select_ready(lua_State *L) {
  size_t n = count_fds(L);
  lua_settop(L, 2);
  aioL_waits_in(L);
  AioReady *v = lua_newuserdatauv(L, n * sizeof *v, 0);
  for (size_t i = 0; i < n; i++) v[i] = check_item(L, i);
  int rc = aio_ready(v, (unsigned)n);
  if (rc < 0) return aioL_fail(L, rc);
  if (rc == 0) return luaL_pushfail(L), 1;
  lua_createtable(L, (int)n, 0);
  for (size_t i = 0; i < n; i++) lua_pushinteger(L, v[i].ready), lua_rawseti(L, -2, (lua_Integer)i + 1);
  return 1;
}

/* ---- waiting ---- */

static void free_select(LRuntime *rt, LSelect *s) {
  for (size_t i = 0; i < s->n; i++) aio_watch_close(&s->items[i].w);
  aioL_alloc(rt->main, s, s->size, 0);
}

static void leave(LTicket *tk) {
  LSelect *s = tk->op;
  list_unlink(&s->link);
  free_select(tk->c->rt, s);
}

static const LWaitOps select_ops = {.name = "socket.select", .leave = leave};

static void on_ready(void *opaque) {
  LSelectItem *item = opaque;
  aioL_take(item->of->tk, L_DONE, 0);
}

static int open_watches(LContext *c, LSelect *s, const AioReady *v, size_t n, int *fd) {
  for (size_t i = 0; i < n; i++)
    for (int dir = AIO_READ; dir <= AIO_WRITE; dir++) {
      LSelectItem *item = &s->items[s->n];
      if (!(v[i].wanted & 1U << dir)) continue;
      item->of = s;
      int rc = aio_watch_open(&item->w, c->core, v[i].fd, (AioDir)dir, on_ready, NULL, item);
      if (rc < 0 && rc != -EEXIST) return *fd = v[i].fd, rc;
      if (rc == 0) s->n++;
      s->blind |= rc == -EEXIST;
    }
  return 0;
}

/* wait_any(fds, wanted, seconds or nil) -> true: one of them may be ready; or nil, "timeout"; or nil, message, errno */
int aioL_select_wait(lua_State *L) {
  size_t n = count_fds(L);
  int64_t timeout = aioL_opt_ns(L, 3);
  lua_settop(L, 3);
  AioReady *v = lua_newuserdatauv(L, n * sizeof *v, 0);
  for (size_t i = 0; i < n; i++) v[i] = check_item(L, i);
  LContext *c = aioL_current(L);
  LTicket *tk = aioL_ticket(L, c, &select_ops);
  size_t size = sizeof(LSelect) + 2 * n * sizeof(LSelectItem);
  LSelect *s = aioL_alloc(L, NULL, 0, size);
  int fd = -1, rc = s ? 0 : -ENOMEM;
  if (s) {
    *s = (LSelect){.tk = tk, .size = size};
    rc = open_watches(c, s, v, n, &fd);
    if (rc < 0) free_select(c->rt, s);
  }
  if (rc < 0) return aioL_ticket_drop(tk), aioL_unwatchable(L, fd, rc);
  list_append(&c->rt->selects, &s->link);
  tk->op = s;
  return aioL_wait(L, tk, s->blind && timeout > LOOK_NS ? LOOK_NS : timeout);
}

static bool has(const LSelect *s, int fd) {
  for (size_t i = 0; i < s->n; i++)
    if (s->items[i].w.fd == fd) return true;
  return false;
}

bool aioL_select_step_aside(LRuntime *rt, int fd) {
  bool any = false;
  for (AioLink *l = rt->selects.next, *next; l != &rt->selects; l = next) {
    LSelect *s = container_of(l, LSelect, link);
    next = l->next;
    if (has(s, fd)) any |= aioL_take_later(s->tk, L_DONE, 0);
  }
  return any;
}

/* closing(fd): whoever waits for it has to look again. */
int aioL_select_closing(lua_State *L) {
  lua_Integer fd = luaL_checkinteger(L, 1);
  if (fd >= 0 && fd <= INT32_MAX) aioL_select_step_aside(aioL_runtime(L), (int)fd);
  return 0;
}
