/* SPDX-License-Identifier: MIT
 * Sending and receiving datagrams.
 *
 * Way      recvfrom -> aio_datagram_receive at once -> there is none: ticket, watch -> on_readable -> LArrival -> the first
 *          of those who wait -> deliver.  sendto -> aio_datagram_send at once -> no room: LSend, ticket, watch ->
 *          on_writable -> aio_datagram_send -> results
 * Owner    an LArrival is its ticket's until it has been delivered; an LSend, a copy of what is to be sent, is its ticket's
 *          until that is taken: the sender's own stack may be gone before.
 * Keep     first come, first served, in each direction. What cannot be delivered for want of memory is kept for the next. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ludp.h"

/*** Datagrams: UDP, and Unix sockets that keep messages apart.
@submodule aioloop.udp */

#define RETRY_NS INT64_C(5000000) /* a Unix socket that others are not connected with tells nobody when it has room */

struct LArrival {
  LArrival *next;
  size_t len; /* of the datagram; what is beyond `data` is lost */
  AioSockaddr from;
  char data[AIO_DATAGRAM_MAX];
};

typedef struct LSend {
  LUdp *s;
  bool connected; /* to the peer; else: */
  AioSockaddr to;
  size_t len;
  char data[];
} LSend;

/* ---- those who wait ---- */

static void close_side(LSide *side) {
  aioL_take_all(&side->waiting, L_CLOSED, 0);
  aio_watch_close(&side->watch);
}

static void fail_all(LSide *side, int rc) {
  aioL_take_all(&side->waiting, L_FAILED, rc);
}

static void lost(LUdp *s, LSide *side, int rc) {
  if (rc == -EBADF)
    aioL_udp_close(s, true); /* the number may be somebody else's by now */
  else
    fail_all(side, rc);
}

/* The first who can still be served; NULL: all were closed by coroutine.close. */
static void leave_side(LSide *side, LTicket *tk) {
  list_unlink(&tk->link);
  if (!list_empty(&side->waiting)) return;
  side->c = NULL;
  aio_watch_close(&side->watch);
}

static int watch(LUdp *s, LSide *side, LContext *c, AioDir dir, AioFn *ready) {
  int rc = aio_watch_again(&side->watch, c->core, s->d.fd, dir, ready, s);
  side->watch.nests = true; /* who is served may poll until the next one has been, too */
  return rc;
}

static void check_side(lua_State *L, const LSide *side, const LContext *c, const LWaitOps *ops) { /* [-0, +0, e] */
  if (side->c && side->c != c) luaL_error(L, "a task of another context waits in %s", ops->name);
}

/* Asked again when the ticket is there: a finaliser may have run. */
static int enter_side(LUdp *s, LSide *side, LContext *c, LTicket *tk, AioDir dir, AioFn *ready) {
  int rc = s->closed ? -ESHUTDOWN : side->c && side->c != c ? -EBUSY : 0;
  if (rc == 0 && list_empty(&side->waiting)) rc = watch(s, side, c, dir, ready);
  if (rc < 0) return rc;
  side->c = c;
  list_append(&side->waiting, &tk->link);
  return 0;
}

static int closed_by_others(lua_State *L, LUdp *s) { return aioL_udp_close(s, true), aioL_closed(L); } /* [-0, +2, -] */

static int unwatchable(lua_State *L, LUdp *s, int rc) { /* [-0, +2 or 3, e] */
  return rc == -EBADF ? closed_by_others(L, s) : aioL_unwatchable(L, s->d.fd, rc);
}

/* ---- what has arrived ---- */

/* They are large: one is laid aside, to be used over and over. */
static LArrival *new_arrival(LRuntime *rt) { /* NULL: no memory */
  LArrival *a = rt->spare_arrival;
  rt->spare_arrival = NULL;
  return a ? a : malloc(sizeof *a);
}

static void free_arrival(LRuntime *rt, LArrival *a) {
  if (rt->spare_arrival)
    free(a);
  else
    rt->spare_arrival = a;
}

void aioL_arrivals_free(LRuntime *rt) {
  free(rt->spare_arrival);
  rt->spare_arrival = NULL;
}

static int take_datagram(LUdp *s, LRuntime *rt, LArrival **out) {
  LArrival *a = new_arrival(rt);
  if (!a) return -ENOMEM;
  int64_t n = aio_datagram_receive(&s->d, a->data, sizeof a->data, &a->from);
  if (n < 0) return free_arrival(rt, a), (int)n;
  a->len = (size_t)n;
  *out = a;
  return 0;
}

static void hand_over(LUdp *s, LTicket *tk, LArrival *a, bool (*take)(LTicket *tk, LOutcome outcome, int err)) {
  s->handing = a;
  take(tk, L_DONE, 0);
}

/* ---- delivering it ---- */

static void into_buffer(lua_State *L, int idx, const char *data, size_t n) { /* [-0, +1, v] */
  LBuffer *b = aioL_check_buffer(L, idx);
  memcpy(aioL_buffer_block(L, b)->data, data, n);
  b->len = n;
  lua_pushinteger(L, (lua_Integer)n);
}

/* stack: arrival (light), maximum or buffer -> bytes or their number, host, port, the true length if that is more */
static int deliver(lua_State *L) {
  const LArrival *a = lua_touserdata(L, 1);
  bool wants_string = lua_isinteger(L, 2);
  size_t room = wants_string ? (size_t)lua_tointeger(L, 2) : ((const LBuffer *)lua_touserdata(L, 2))->cap;
  size_t n = a->len < sizeof a->data ? a->len : sizeof a->data;
  char text[AIO_NAME_MAX];
  int port, len = aio_sockaddr_text(&a->from, text, &port);
  if (n > room) n = room;
  lua_pushlstring(L, text, len < 0 ? 0 : (size_t)len);
  if (wants_string)
    lua_pushlstring(L, a->data, n);
  else
    into_buffer(L, 2, a->data, n);
  lua_insert(L, 3);
  if (port < 0 && n == a->len) return 2;
  lua_pushinteger(L, port);
  if (port < 0) lua_pushnil(L), lua_replace(L, -2);
  if (n == a->len) return 3;
  return lua_pushinteger(L, (lua_Integer)a->len), 4;
}

static void give_back(LUdp *s, LArrival *a) {
  LTicket *tk = aioL_ticket_first_alive(&s->in.waiting);
  if (tk) {
    hand_over(s, tk, a, aioL_take_later);
    return;
  }
  a->next = s->kept;
  s->kept = a;
}

/* A finaliser that receives in the midst of this gets the next one. stack: udp, maximum or buffer */
static int give(lua_State *L, LUdp *s, LArrival *a) { /* [-0, +n, v] */
  int top = lua_gettop(L);
  lua_pushvalue(L, lua_upvalueindex(3)); /* deliver */
  lua_pushlightuserdata(L, a);
  lua_pushvalue(L, 2);
  if (lua_pcall(L, 2, LUA_MULTRET, 0) != LUA_OK) return give_back(s, a), lua_error(L);
  free_arrival(aioL_runtime(L), a);
  return lua_gettop(L) - top;
}

/* ---- receiving ---- */

static void on_readable(void *opaque) {
  LUdp *s = opaque;
  LArrival *a;
  if (s->in.watch.lost) {
    lost(s, &s->in, s->in.watch.lost);
    return;
  }
  LTicket *tk = aioL_ticket_first_alive(&s->in.waiting);
  if (!tk) return;
  int rc = take_datagram(s, tk->c->rt, &a);
  if (rc == 0)
    hand_over(s, tk, a, aioL_take);
  else if (rc != -EAGAIN)
    aioL_take(tk, L_FAILED, rc);
}

static void leave_in(LTicket *tk) {
  LUdp *s = tk->op;
  tk->op = s->handing;
  s->handing = NULL;
  leave_side(&s->in, tk);
}

static int receive_results(lua_State *L, LTicket *tk) {
  lua_settop(L, 2);
  return give(L, lua_touserdata(L, 1), tk->op);
}

static void receive_revoke(lua_State *L, LTicket *tk) { /* who was to have it was killed */
  UNUSED(L);
  free(tk->op);
}

static const LWaitOps recv_ops = {.name = "udp:recvfrom", .leave = leave_in, .results = receive_results, .revoke = receive_revoke};
static const LWaitOps into_ops = {.name = "udp:recvinto", .leave = leave_in, .results = receive_results, .revoke = receive_revoke};

static int receive_now(lua_State *L, LUdp *s) { /* [-0, +n, v] 0: there is none */
  LArrival *a = s->kept;
  int rc = 0;
  if (a)
    s->kept = a->next;
  else
    rc = take_datagram(s, aioL_runtime(L), &a);
  if (rc == 0) return give(L, s, a);
  if (rc == -ENOMEM) return luaL_error(L, "not enough memory");
  if (rc == -EBADF) return closed_by_others(L, s);
  return rc == -EAGAIN ? 0 : aioL_fail(L, rc);
}

/* stack: udp, maximum or buffer */
static int receive(lua_State *L, LUdp *s, const LWaitOps *ops) {
  LContext *c = aioL_waits_in(L);
  if (s->closed) return aioL_closed(L);
  if (s->d.fd < 0) return luaL_error(L, "a socket without an address receives nothing: bind or connect it before, or send");
  check_side(L, &s->in, c, ops);
  bool tries = list_empty(&s->in.waiting) && (s->kept || s->timeout <= 0 || aio_may_try(c->core));
  int n = tries ? receive_now(L, s) : 0;
  if (n) return n;
  if (s->timeout <= 0) return aioL_timed_out(L);
  LTicket *tk = aioL_ticket(L, c, ops);
  int rc = enter_side(s, &s->in, c, tk, AIO_READ, on_readable);
  if (rc < 0) return aioL_ticket_drop(tk), unwatchable(L, s, rc);
  tk->op = s;
  return aioL_wait(L, tk, s->timeout);
}

/*** Waits for a datagram; one that is empty counts. Several tasks may wait: first come, first served.
@function udp:recvfrom
@tparam[opt=65536] integer max bytes of it, at most
@treturn string what was sent; or nil, "timeout"; or nil, "closed"; or nil, message, errno: what the network said of an earlier one
  that was sent ("Connection refused": nobody is there); the socket stays usable
@treturn string the sender's host; or its path, "" if it has none
@treturn integer its port; of a path nil
@treturn integer only of one that is longer than `max`: how long it is. The rest of it is lost */
static int udp_recvfrom(lua_State *L) {
  LUdp *s = aioL_check_udp(L, 1);
  lua_Integer max = luaL_optinteger(L, 2, AIO_DATAGRAM_MAX);
  luaL_argcheck(L, max >= 0, 2, "number of bytes out of range");
  lua_settop(L, 1);
  lua_pushinteger(L, max);
  return receive(L, s, &recv_ops);
}

/*** The same into a buffer, in place of what was there.
@function udp:recvinto
@tparam buffer buf
@treturn integer how many bytes there are; or nil, "timeout", and so on as for `recvfrom`
@treturn string host or path
@treturn integer port
@treturn integer only of one that did not fit: how long it is */
static int udp_recvinto(lua_State *L) {
  LUdp *s = aioL_check_udp(L, 1);
  const LBuffer *b = aioL_check_buffer(L, 2);
  luaL_argcheck(L, b->cap > 0, 2, "the buffer has no room");
  lua_settop(L, 2);
  return receive(L, s, &into_ops);
}

/*** Another name of `recvfrom`.
@function udp:recv */

/* ---- sending ---- */

static void on_writable(void *opaque);

static void retry(void *opaque) {
  LUdp *s = opaque;
  int rc = watch(s, &s->out, s->out.c, AIO_WRITE, on_writable);
  if (rc < 0) lost(s, &s->out, rc);
}

/* It was said to be writable, and then it was not. */
static void retry_later(LUdp *s, LContext *c) {
  aio_watch_close(&s->out.watch);
  aio_timer_init(&s->retry, c->core, AIO_CLOCK_MONOTONIC, retry, s);
  int rc = aio_timer_arm(&s->retry, aio_clock_now(AIO_CLOCK_MONOTONIC) + RETRY_NS);
  if (rc < 0) fail_all(&s->out, rc);
}

static void on_writable(void *opaque) {
  LUdp *s = opaque;
  if (s->out.watch.lost) {
    lost(s, &s->out, s->out.watch.lost);
    return;
  }
  LTicket *tk = aioL_ticket_first_alive(&s->out.waiting);
  if (!tk) return;
  const LSend *w = tk->op;
  int rc = aio_datagram_send(&s->d, w->data, w->len, w->connected ? NULL : &w->to);
  if (rc == -EAGAIN)
    retry_later(s, tk->c);
  else
    aioL_take(tk, rc < 0 ? L_FAILED : L_DONE, rc);
}

static void leave_out(LTicket *tk) {
  LSend *w = tk->op;
  LUdp *s = w->s;
  tk->op = NULL;
  free(w);
  leave_side(&s->out, tk);
  if (!s->out.c) aio_timer_disarm(&s->retry);
}

static int send_results(lua_State *L, LTicket *tk) {
  UNUSED(tk);
  return lua_pushvalue(L, 1), 1;
}

static const LWaitOps send_ops = {.name = "udp:send", .leave = leave_out, .results = send_results};
static const LWaitOps sendto_ops = {.name = "udp:sendto", .leave = leave_out, .results = send_results};

/* stack: udp, data. Nothing is raised. NULL: no memory. */
static LSend *copy_data(lua_State *L, LUdp *s, const AioSockaddr *to) {
  const LBuffer *b = lua_touserdata(L, 2);
  size_t len = b ? b->len : lua_rawlen(L, 2);
  const char *data = b ? (b->block ? b->block->data : "") : lua_tostring(L, 2);
  LSend *w = malloc(sizeof *w + len);
  if (!w) return NULL;
  w->s = s;
  w->connected = !to;
  if (to) w->to = *to;
  w->len = len;
  memcpy(w->data, data, len);
  return w;
}

static int wait_to_send(lua_State *L, LContext *c, LUdp *s, const AioSockaddr *to, const LWaitOps *ops) {
  LTicket *tk = aioL_ticket(L, c, ops);
  LSend *w = copy_data(L, s, to);
  int rc = w ? enter_side(s, &s->out, c, tk, AIO_WRITE, on_writable) : -ENOMEM;
  if (rc < 0) return free(w), aioL_ticket_drop(tk), unwatchable(L, s, rc);
  tk->op = w;
  return aioL_wait(L, tk, s->timeout);
}

/* stack: udp, data, ... `to` NULL: to the peer */
static int send_data(lua_State *L, LUdp *s, const AioSockaddr *to, const LWaitOps *ops) {
  bool made = false;
  size_t len;
  LContext *c = aioL_waits_in(L);
  const char *data = aioL_check_bytes(L, 2, &len);
  if (s->closed) return aioL_closed(L);
  int rc = to ? aioL_udp_make(s, to, &made) : s->d.fd < 0 ? -EDESTADDRREQ : 0;
  if (rc < 0) return aioL_fail(L, rc);
  check_side(L, &s->out, c, ops);
  bool tries = list_empty(&s->out.waiting) && (s->timeout <= 0 || aio_may_try(c->core));
  rc = tries ? aio_datagram_send(&s->d, data, len, to) : -EAGAIN;
  if (rc == 0) return lua_pushvalue(L, 1), 1;
  if (rc == -EAGAIN) return s->timeout <= 0 ? aioL_timed_out(L) : wait_to_send(L, c, s, to, ops);
  if (made) aioL_udp_unmake(s);
  return rc == -EBADF ? closed_by_others(L, s) : aioL_fail(L, rc);
}

/*** Sends a datagram: all of it, or nothing. Waits, if the kernel has no room for it; those that wait are sent in their order.
@function udp:sendto
@tparam string|number|buffer data may be empty
@tparam string host an address; a name, which is asked for each time; or the path of a Unix socket
@tparam integer|string|nil port a number or a service; nil: host is a path
@treturn udp itself; or nil, "timeout"; or nil, "closed"; or nil, message, errno: it was not sent. ECONNREFUSED may speak of an
  earlier one */
static int udp_sendto(lua_State *L) {
  LUdp *s = aioL_check_udp(L, 1);
  AioSockaddr to;
  size_t len;
  lua_settop(L, 4);
  aioL_check_bytes(L, 2, &len);
  int rc = aioL_check_address(L, 3, &to);
  if (s->closed) return aioL_closed(L);
  if (rc < 0) return aioL_fail(L, rc);
  return rc > 0 ? aioL_udp_by_name(L, s, "sendto") : send_data(L, s, &to, &sendto_ops);
}

/*** The same to who the socket is connected with.
@function udp:send
@tparam string|number|buffer data
@treturn udp itself; or nil, and so on as for `sendto` */
static int udp_send(lua_State *L) {
  LUdp *s = aioL_check_udp(L, 1);
  luaL_checkany(L, 2);
  lua_settop(L, 2);
  return send_data(L, s, NULL, &send_ops);
}

/* ---- the rest ---- */

void aioL_udp_io_close(LUdp *s) {
  close_side(&s->in);
  close_side(&s->out);
  for (LArrival *a; (a = s->kept);) s->kept = a->next, free(a);
}

/* stack: by_name, functions, class */
void aioL_udp_io_methods(lua_State *L) {
  static const luaL_Reg receivers[] = {{"recvfrom", udp_recvfrom}, {"recv", udp_recvfrom}, {"recvinto", udp_recvinto}, {NULL, NULL}};
  static const luaL_Reg sender[] = {{"send", udp_send}, {NULL, NULL}}, named[] = {{"sendto", udp_sendto}, {NULL, NULL}};
  static const luaL_Reg delivering[] = {{"deliver", deliver}, {NULL, NULL}};
  LRuntime *rt = aioL_runtime(L);
  lua_newtable(L);
  aioL_functions(L, rt, delivering);
  lua_getfield(L, -1, "deliver");
  lua_replace(L, -2); /* stack: by_name, functions, class, deliver */
  lua_pushvalue(L, -2);
  aioL_functions_with(L, rt, receivers, -2);
  aioL_functions_with(L, rt, named, 1);
  aioL_functions(L, rt, sender);
  lua_pop(L, 2);
}
