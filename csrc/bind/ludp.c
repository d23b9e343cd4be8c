/* SPDX-License-Identifier: MIT
 * Sockets of datagrams: making, naming and closing them. What is sent and received is ludp_io.c's.
 *
 * Way      aio.udp -> LUdp; bind, connect, sendto or join -> aioL_udp_make: the address tells the family -> the core.
 *          A name instead of numbers: by_name (lua/aioloop/udp.lua) -> aio.getaddrinfo -> the method again, in numbers
 * Owner    the userdata has the fd. Who waits has the userdata on its stack.
 * Keep     a socket belongs to no context: each wait is the business of the one that is current. */
#include <errno.h>
#include <string.h>

#include "ludp.h"

/*** Datagrams: UDP, and Unix sockets that keep messages apart.
@module aioloop.udp */

LUdp *aioL_check_udp(lua_State *L, int idx) { return aioL_check(L, idx, L_UDP); }

/* ---- options ---- */

static int flag_field(lua_State *L, int idx, const char *name) { /* [-0, +0, v] -1: absent */
  bool there = aioL_field(L, idx, name);
  lua_pop(L, 1);
  return there ? aioL_bool_field(L, idx, name, false) : -1;
}

static int number_field(lua_State *L, int idx, const char *name, int least, int most) { /* [-0, +0, v] -1: absent */
  int exact = true;
  lua_Integer n = -1;
  if (aioL_field(L, idx, name)) {
    n = lua_type(L, -1) == LUA_TNUMBER ? lua_tointegerx(L, -1, &exact) : least - 1;
    if (!exact || n < least || n > most) luaL_argerror(L, idx, lua_pushfstring(L, "%s must be an integer from %d to %d", name, least, most));
  }
  return lua_pop(L, 1), (int)n;
}

static int check_family(lua_State *L, int idx) { /* [-0, +0, v] AIO_ANY_FAMILY: absent */
  int family = AIO_ANY_FAMILY;
  if (aioL_field(L, idx, "family")) {
    const char *name = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
    family = !strcmp(name, "inet") ? AIO_INET : !strcmp(name, "inet6") ? AIO_INET6 : AIO_ANY_FAMILY;
    luaL_argcheck(L, family != AIO_ANY_FAMILY, idx, "family must be \"inet\" or \"inet6\"");
  }
  return lua_pop(L, 1), family;
}

/* [-0, +0, v] An interface's number, or -errno. stack: its name or number on top */
static int interface_of(lua_State *L, int arg) {
  int exact;
  lua_Integer n = lua_tointegerx(L, -1, &exact);
  if (lua_type(L, -1) == LUA_TSTRING) return aio_interface_number(lua_tostring(L, -1));
  luaL_argcheck(L, exact && n >= 0 && n <= INT32_MAX, arg, "an interface is a name or a number");
  return (int)n;
}

static int check_options(lua_State *L, int idx, AioDatagramOptions *o) { /* [-0, +0, v] 0, or -errno */
  static const char *const names[] = {"family", "broadcast", "reuseaddr", "reuseport", "v6only", "ttl", "multicast_ttl",
                                      "multicast_loop", "multicast_interface", "sndbuf", "rcvbuf", "timeout", NULL};
  aioL_check_names(L, idx, 0, names);
  o->broadcast = flag_field(L, idx, "broadcast");
  o->reuseaddr = flag_field(L, idx, "reuseaddr");
  o->reuseport = flag_field(L, idx, "reuseport");
  o->v6only = flag_field(L, idx, "v6only");
  o->ttl = number_field(L, idx, "ttl", 1, 255);
  o->multicast_ttl = number_field(L, idx, "multicast_ttl", 0, 255);
  o->multicast_loop = flag_field(L, idx, "multicast_loop");
  o->sndbuf = number_field(L, idx, "sndbuf", 1, INT32_MAX / 2);
  o->rcvbuf = number_field(L, idx, "rcvbuf", 1, INT32_MAX / 2);
  if (aioL_field(L, idx, "multicast_interface")) o->multicast_interface = interface_of(L, idx);
  lua_pop(L, 1);
  return o->multicast_interface < 0 ? o->multicast_interface : 0;
}

/*** Makes a socket of datagrams. Where the options do not say so, the first address that it is given tells whether it is one of
IPv4, of IPv6 (which speaks to IPv4, too), or, if that is a path, a Unix socket.
@function udp
@tparam[opt] table options family ("inet", "inet6"), broadcast (boolean), reuseaddr, reuseport (false), v6only (boolean), ttl
  (of what is sent to one), multicast_ttl, multicast_loop (boolean: whether this machine hears it, too), multicast_interface
  (name or number: where it is sent), sndbuf, rcvbuf (bytes), timeout (seconds, of each operation; as settimeout)
@treturn udp or nil, message, errno */
static int mod_udp(lua_State *L) {
  AioDatagramOptions o = {-1, -1, -1, -1, -1, -1, -1, -1, -1, 0};
  int family = AIO_ANY_FAMILY, rc = 0;
  lua_settop(L, 1);
  int64_t timeout = aioL_opt_timeout(L, 1);
  if (!lua_isnil(L, 1)) family = check_family(L, 1), rc = check_options(L, 1, &o);
  if (rc < 0) return aioL_fail(L, rc);
  LUdp *s = lua_newuserdatauv(L, sizeof *s, 0);
  *s = (LUdp){.d.fd = -1, .retry.pos = -1, .timeout = timeout, .opts = o};
  list_init(&s->in.waiting);
  list_init(&s->out.waiting);
  aioL_set_class(L, aioL_runtime(L), L_UDP);
  if (family != AIO_ANY_FAMILY) rc = aio_datagram_open(&s->d, family, &o);
  return rc < 0 ? aioL_fail(L, rc) : 1;
}

/*** Says how long an operation may wait: then it returns nil, "timeout".
@function udp:settimeout
@number[opt] seconds none: for ever, as at first; 0: not at all
@treturn udp itself */
static int udp_settimeout(lua_State *L) {
  LUdp *s = aioL_check_udp(L, 1);
  s->timeout = aioL_opt_ns(L, 2);
  return lua_settop(L, 1), 1;
}

/* ---- life ---- */

int aioL_udp_make(LUdp *s, const AioSockaddr *a, bool *made) {
  *made = s->d.fd < 0;
  if (!*made) return 0;
  s->in.watch = s->out.watch = (AioWatch){.ctx = NULL}; /* they were another fd's */
  return aio_datagram_open(&s->d, aio_sockaddr_family(a), &s->opts);
}

void aioL_udp_unmake(LUdp *s) { aio_datagram_close(&s->d, false); }

void aioL_udp_close(LUdp *s, bool keep_fd) {
  s->closed = true;
  aioL_udp_io_close(s);
  aio_datagram_close(&s->d, keep_fd);
}

/*** Closes it, and removes the path that it has made. Whoever waits has nil, "closed". Also `<close>`, and what the collector
does; twice is fine.
@function udp:close
@treturn boolean true */
static int udp_close(lua_State *L) { return aioL_udp_close(aioL_check_udp(L, 1), false), lua_pushboolean(L, 1), 1; }

/* ---- addresses ---- */

int aioL_check_address(lua_State *L, int idx, AioSockaddr *a) {
  size_t len;
  luaL_checktype(L, idx, LUA_TSTRING);
  const char *host = lua_tolstring(L, idx, &len);
  if (lua_isnoneornil(L, idx + 1)) return aio_sockaddr_path(a, host, len);
  luaL_argcheck(L, strlen(host) == len, idx, "a name has no zero byte");
  if (lua_type(L, idx + 1) == LUA_TSTRING) return 1; /* a service */
  return aio_sockaddr_numeric(a, host, aioL_check_port(L, idx + 1)) < 0;
}

static int resolved(lua_State *L, int status, lua_KContext ctx) {
  UNUSED(status);
  UNUSED(ctx);
  return lua_gettop(L);
}

/* stack: the method's arguments. by_name is the method's upvalue. */
int aioL_udp_by_name(lua_State *L, LUdp *s, const char *method) {
  int n = lua_gettop(L);
  lua_pushvalue(L, lua_upvalueindex(3));
  lua_pushstring(L, method);
  if (s->timeout == AIO_FOREVER)
    lua_pushnil(L);
  else
    aioL_push_seconds(L, s->timeout);
  lua_rotate(L, 1, 3);
  lua_callk(L, n + 2, LUA_MULTRET, 0, resolved);
  return lua_gettop(L);
}

/* stack: udp, host, port */
static int at_address(lua_State *L, const char *method, int (*fn)(AioDatagram *d, const AioSockaddr *a)) {
  LUdp *s = aioL_check_udp(L, 1);
  AioSockaddr a;
  bool made;
  lua_settop(L, 3);
  int rc = aioL_check_address(L, 2, &a);
  if (s->closed) return aioL_closed(L);
  if (rc > 0) return aioL_udp_by_name(L, s, method);
  if (rc == 0) rc = aioL_udp_make(s, &a, &made);
  if (rc < 0) return aioL_fail(L, rc);
  rc = fn(&s->d, &a);
  if (rc < 0 && made) aioL_udp_unmake(s);
  return rc < 0 ? aioL_fail(L, rc) : (lua_settop(L, 1), 1);
}

/*** Gives it an address of its own: what is sent there is received here. A name is asked for, which waits.
@function udp:bind
@tparam string host an address or a name; "*": all of this machine's; or the path of a Unix socket; "@name" is in the abstract
  namespace
@tparam integer|string|nil port a number (0: any that is free) or a service; nil: host is a path
@treturn udp itself; or nil, message, errno */
static int udp_bind(lua_State *L) { return at_address(L, "bind", aio_datagram_bind); }

/*** Says who it talks to: `send` sends there, and what others send is not received any more. Nothing is sent by this. It may be
done again, with another address.
@function udp:connect
@tparam string host an address, a name or a path, as for `bind`
@tparam integer|string|nil port
@treturn udp itself; or nil, message, errno */
static int udp_connect(lua_State *L) { return at_address(L, "connect", aio_datagram_connect); }

static int unmade(lua_State *L, const LUdp *s) { return s->closed ? aioL_closed(L) : aioL_fail(L, -ENOTCONN); }

/*** The address of the other end, if it is connected.
@function udp:getpeername
@treturn string host; or the path of a Unix socket, "" if it has none; or nil, message, errno
@treturn integer port; of a path none */
static int udp_getpeername(lua_State *L) {
  const LUdp *s = aioL_check_udp(L, 1);
  return s->d.fd < 0 ? unmade(L, s) : aioL_push_socket_name(L, s->d.fd, true);
}

/*** Its own address.
@function udp:getsockname
@treturn string host or path, as for `getpeername`
@treturn integer port */
static int udp_getsockname(lua_State *L) {
  const LUdp *s = aioL_check_udp(L, 1);
  return s->d.fd < 0 ? unmade(L, s) : aioL_push_socket_name(L, s->d.fd, false);
}

/*** Its descriptor.
@function udp:getfd
@treturn integer -1: it is closed, or has had no address yet that says what it is to be */
static int udp_getfd(lua_State *L) { return lua_pushinteger(L, aioL_check_udp(L, 1)->d.fd), 1; }

/* ---- multicast ---- */

/* stack: udp, group, interface */
static int change_membership(lua_State *L, bool join) {
  LUdp *s = aioL_check_udp(L, 1);
  AioSockaddr group;
  bool made = false;
  luaL_checktype(L, 2, LUA_TSTRING);
  lua_settop(L, 3);
  int interface = lua_isnil(L, 3) ? 0 : interface_of(L, 3);
  luaL_argcheck(L, aio_sockaddr_numeric(&group, lua_tostring(L, 2), 0) == 0, 2, "a group is an address in numbers");
  if (s->closed) return aioL_closed(L);
  int rc = interface < 0 ? interface : aioL_udp_make(s, &group, &made);
  if (rc < 0) return aioL_fail(L, rc);
  rc = aio_datagram_member(&s->d, join, &group, interface);
  if (rc < 0 && made) aioL_udp_unmake(s);
  return rc < 0 ? aioL_fail(L, rc) : (lua_settop(L, 1), 1);
}

/*** Joins a group of multicast: what is sent to it, and to the port to which the socket is bound, is received.
@function udp:join
@tparam string group its address, "239.1.2.3" or "ff02::1234"
@tparam[opt] string|integer interface name or number of the one to listen on; none: as the routes say
@treturn udp itself; or nil, message, errno */
static int udp_join(lua_State *L) { return change_membership(L, true); }

/*** Leaves it.
@function udp:leave
@tparam string group
@tparam[opt] string|integer interface as for `join`
@treturn udp itself; or nil, message, errno */
static int udp_leave(lua_State *L) { return change_membership(L, false); }

/* ---- the class ---- */

static int udp_text(lua_State *L) {
  const LUdp *s = aioL_check_udp(L, 1);
  if (s->d.fd < 0)
    lua_pushfstring(L, "aioloop.udp (%s): %p", s->closed ? "closed" : "new", lua_topointer(L, 1));
  else
    lua_pushfstring(L, "aioloop.udp (open, fd %d): %p", s->d.fd, lua_topointer(L, 1));
  return 1;
}

/* core.udps(by_name): made when a script first asks for it, as streams are. Returns the functions, and the methods. */
static int mod_udps(lua_State *L) {
  static const luaL_Reg methods[] = {{"settimeout", udp_settimeout}, {"getpeername", udp_getpeername},
    {"getsockname", udp_getsockname}, {"getfd", udp_getfd}, {"join", udp_join}, {"leave", udp_leave}, {"close", udp_close},
    {"__close", udp_close}, {"__gc", udp_close}, {"__tostring", udp_text}, {NULL, NULL}};
  static const luaL_Reg named[] = {{"bind", udp_bind}, {"connect", udp_connect}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"udp", mod_udp}, {NULL, NULL}};
  LRuntime *rt = aioL_runtime(L);
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  lua_newtable(L);
  aioL_functions(L, rt, functions);
  aioL_class(L, rt, L_UDP, methods);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->meta_ref[L_UDP]); /* stack: by_name, functions, class */
  aioL_functions_with(L, rt, named, 1);
  aioL_udp_io_methods(L);
  return 2;
}

void aioL_open_udps(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg functions[] = {{"udps", mod_udps}, {NULL, NULL}};
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
