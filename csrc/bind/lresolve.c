/* SPDX-License-Identifier: MIT
 * aio.getaddrinfo and aio.getnameinfo: names to addresses and back, in the pool.
 *
 * Way      getaddrinfo -> aio_resolve -> numeric: results at once; else ticket -> done -> results
 *          getnameinfo -> aio_lookup -> ticket -> named -> name_results
 * Owner    an LResolve is malloc'ed with copies of the names, and a flight (lpool.c); so is an LLookup. */
#include <stdlib.h>
#include <string.h>

#include "lbind.h"

/*** Name resolution.
@module aioloop.resolve */

typedef struct LResolve {
  LFlight f;
  AioResolve r;
  char names[]; /* host, service */
} LResolve;

static void free_resolve(LFlight *f) {
  LResolve *lr = container_of(f, LResolve, f);
  aio_resolve_free(&lr->r);
  free(lr);
}

static void cancel(LFlight *f) { aio_pool_cancel(&container_of(f, LResolve, f)->r.job); }
static void done(void *opaque) { aioL_flight_done(&container_of((AioResolve *)opaque, LResolve, r)->f); }

/* stack: LResolve (light) -> list */
static int make_list(lua_State *L) {
  const LResolve *lr = lua_touserdata(L, 1);
  const void *at = NULL;
  AioAddress a;
  lua_newtable(L);
  for (lua_Integer n = 1; aio_resolve_next(&lr->r, &at, &a); n++) {
    lua_createtable(L, 0, 4);
    lua_pushstring(L, a.family == AIO_INET ? "inet" : "inet6");
    lua_setfield(L, -2, "family");
    lua_pushstring(L, a.addr);
    lua_setfield(L, -2, "addr");
    lua_pushinteger(L, a.port);
    lua_setfield(L, -2, "port");
    lua_pushstring(L, a.socktype);
    lua_setfield(L, -2, "socktype");
    lua_rawseti(L, -2, n);
  }
  if (lr->r.canonical && aio_resolve_name(&lr->r)) {
    lua_pushstring(L, aio_resolve_name(&lr->r));
    lua_setfield(L, -2, "canonname");
  }
  return 1;
}

static int answer(lua_State *L, LResolve *lr) { /* of one that has been fetched */
  luaL_checkstack(L, 4, NULL);
  if (lr->r.error) {
    luaL_pushfail(L);
    lua_pushstring(L, aio_resolve_error(&lr->r));
    lua_pushinteger(L, lr->r.error);
    aioL_flight_end(&lr->f);
    return 3;
  }
  lua_pushcfunction(L, make_list);
  lua_pushlightuserdata(L, lr);
  int status = lua_pcall(L, 1, 1, 0);
  aioL_flight_end(&lr->f);
  return status == LUA_OK ? 1 : lua_error(L);
}

static int results(lua_State *L, LTicket *tk) {
  LFlight *f = aioL_flight_fetch(tk);
  return f ? answer(L, container_of(f, LResolve, f)) : aioL_closed(L);
}

static const LWaitOps resolve_ops = {.name = "aio.getaddrinfo", .leave = aioL_flight_leave, .results = results,
                                     .revoke = aioL_flight_revoke};

static int check_option(lua_State *L, const char *field, const char *const names[]) { /* [-0, +0, e] 0: absent */
  if (lua_isnil(L, 3)) return 0;
  int type = lua_getfield(L, 3, field), found = 0;
  for (int i = 1; type == LUA_TSTRING && names[i]; i++)
    if (!strcmp(lua_tostring(L, -1), names[i])) found = i;
  luaL_argcheck(L, type == LUA_TNIL || found, 3, lua_pushfstring(L, "bad value for '%s'", field));
  lua_pop(L, 1);
  return found;
}

static LResolve *new_resolve(lua_State *L) { /* NULL: no memory */
  size_t host_len = 0, service_len = 0;
  const char *host = lua_tolstring(L, 1, &host_len), *service = lua_tolstring(L, 2, &service_len);
  LResolve *lr = malloc(sizeof *lr + host_len + service_len + 2);
  if (!lr) return NULL;
  *lr = (LResolve){.r = {.host = NULL}};
  if (host) lr->r.host = memcpy(lr->names, host, host_len + 1);
  if (service) lr->r.service = memcpy(lr->names + host_len + 1, service, service_len + 1);
  return lr;
}

static void check_name(lua_State *L, int idx) {
  if (lua_isnil(L, idx)) return;
  size_t len;
  const char *s = luaL_checklstring(L, idx, &len);
  luaL_argcheck(L, strlen(s) == len, idx, "a name has no zero byte");
}

/*** The addresses of a host.
@function getaddrinfo
@tparam string|nil host a name, or an address in numbers, which is answered at once; nil: this host
@tparam[opt] string|integer service a name or a port
@tparam[opt] table options family ("inet", "inet6"), socktype ("stream", the default, or "dgram"), passive (boolean), canonname
  (boolean: the list has a field of that name)
@treturn {table,...} of family, addr, port, socktype, in the system's order; or nil, message, code of getaddrinfo */
static int mod_getaddrinfo(lua_State *L) {
  static const char *const families[] = {"", "inet", "inet6", NULL}, *const types[] = {"", "stream", "dgram", NULL};
  lua_settop(L, 3);
  check_name(L, 1);
  check_name(L, 2);
  luaL_argcheck(L, !lua_isnil(L, 1) || !lua_isnil(L, 2), 1, "host and service cannot both be absent");
  static const char *const names[] = {"family", "socktype", "passive", "canonname", NULL};
  if (!lua_isnil(L, 3)) aioL_check_names(L, 3, 0, names);
  int family = check_option(L, "family", families), type = check_option(L, "socktype", types);
  bool passive = !lua_isnil(L, 3) && (lua_getfield(L, 3, "passive"), lua_toboolean(L, -1));
  bool canonical = !lua_isnil(L, 3) && (lua_getfield(L, 3, "canonname"), lua_toboolean(L, -1));
  lua_settop(L, 3);
  LContext *c = aioL_waits_in(L);
  LResolve *lr = new_resolve(L);
  if (!lr) return luaL_error(L, "not enough memory");
  lr->r.family = family;
  lr->r.stream = type != 2;
  lr->r.dgram = type == 2;
  lr->r.passive = passive;
  lr->r.canonical = canonical;
  aioL_flight_begin(L, &lr->f, c, cancel, free_resolve);
  LTicket *tk = aioL_ticket(L, c, &resolve_ops);
  int rc = aio_resolve(c->core, &lr->r, done);
  if (rc == 0) {
    aioL_flight_wait(&lr->f, tk);
    return aioL_wait(L, tk, AIO_FOREVER);
  }
  aioL_ticket_drop(tk);
  if (rc == 1) return list_unlink(&lr->f.link), answer(L, lr);
  aioL_flight_end(&lr->f);
  return aioL_fail(L, rc);
}

/* ---- addresses to names ---- */

typedef struct LLookup {
  LFlight f;
  AioLookup l;
} LLookup;

static void free_lookup(LFlight *f) { free(container_of(f, LLookup, f)); }
static void cancel_lookup(LFlight *f) { aio_pool_cancel(&container_of(f, LLookup, f)->l.job); }
static void named(void *opaque) { aioL_flight_done(&container_of((AioLookup *)opaque, LLookup, l)->f); }

/* stack: LLookup (light) -> host, service; or nil, message, code */
static int make_names(lua_State *L) {
  const LLookup *ll = lua_touserdata(L, 1);
  if (!ll->l.error) return lua_pushstring(L, ll->l.host), lua_pushstring(L, ll->l.service), 2;
  luaL_pushfail(L);
  lua_pushstring(L, aio_lookup_error(&ll->l));
  return lua_pushinteger(L, ll->l.error), 3;
}

static int name_results(lua_State *L, LTicket *tk) {
  LFlight *f = aioL_flight_fetch(tk);
  if (!f) return aioL_closed(L);
  LLookup *ll = container_of(f, LLookup, f);
  int top = lua_gettop(L);
  luaL_checkstack(L, 4, NULL);
  lua_pushcfunction(L, make_names);
  lua_pushlightuserdata(L, ll);
  int status = lua_pcall(L, 1, LUA_MULTRET, 0);
  aioL_flight_end(&ll->f);
  return status == LUA_OK ? lua_gettop(L) - top : lua_error(L);
}

static const LWaitOps name_ops = {.name = "aio.getnameinfo", .leave = aioL_flight_leave, .results = name_results,
                                  .revoke = aioL_flight_revoke};

/*** The name of a host.
@function getnameinfo
@tparam string addr an address in numbers
@tparam[opt=0] integer port
@treturn string a name, or the address, if it has none; or nil, message, code of getnameinfo
@treturn string the service at that port, or the port */
static int mod_getnameinfo(lua_State *L) {
  AioSockaddr a;
  const char *addr = luaL_checkstring(L, 1);
  lua_Integer port = luaL_optinteger(L, 2, 0);
  luaL_argcheck(L, port >= 0 && port <= UINT16_MAX, 2, "a port is an integer from 0 to 65535");
  luaL_argcheck(L, aio_sockaddr_numeric(&a, addr, (int)port) == 0, 1, "not an address in numbers");
  LContext *c = aioL_waits_in(L);
  LLookup *ll = malloc(sizeof *ll);
  if (!ll) return luaL_error(L, "not enough memory");
  *ll = (LLookup){.l = {.addr = a}};
  aioL_flight_begin(L, &ll->f, c, cancel_lookup, free_lookup);
  LTicket *tk = aioL_ticket(L, c, &name_ops);
  int rc = aio_lookup(c->core, &ll->l, named);
  if (rc == 0) {
    aioL_flight_wait(&ll->f, tk);
    return aioL_wait(L, tk, AIO_FOREVER);
  }
  aioL_ticket_drop(tk);
  aioL_flight_end(&ll->f);
  return aioL_fail(L, rc);
}

void aioL_open_resolve(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg functions[] = {{"getaddrinfo", mod_getaddrinfo}, {"getnameinfo", mod_getnameinfo}, {NULL, NULL}};
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
