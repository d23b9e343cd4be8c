/* SPDX-License-Identifier: MIT
 * A context as a citizen of GLib: attach, detach, and its GSource.
 *
 * Way      attach -> anchored state in the registry -> GLib dispatches -> aioL_around -> the turn
 * Owner    while attached the registry holds the context and the state its callbacks run in. */
#include <errno.h>

#include "lbind.h"

/*** GLib: the loop as a source of a main context.
@module aioloop.source */

static void *opt_pointer(lua_State *L, int idx) {
  if (lua_isnoneornil(L, idx)) return NULL;
  luaL_argexpected(L, lua_islightuserdata(L, idx), idx, "light userdata (GMainContext) or nil");
  return lua_touserdata(L, idx);
}

static void anchor(lua_State *L, LContext *c) { /* [-0, +0, m] the context is at 1 */
  c->glib_over = false;
  if (c->glib != LUA_NOREF) return;
  lua_createtable(L, 2, 0);
  lua_State *co = lua_newthread(L);
  lua_rawseti(L, -2, 1);
  lua_pushvalue(L, 1);
  lua_rawseti(L, -2, 2);
  aioL_check_open(L, c); /* a finaliser may have closed it */
  c->glib = luaL_ref(L, LUA_REGISTRYINDEX);
  c->glib_L = co;
}

void aioL_glib_drop(lua_State *L, LContext *c) {
  c->glib_over = c->depth > 0;
  if (c->glib_over) return;
  luaL_unref(L, LUA_REGISTRYINDEX, c->glib);
  c->glib = LUA_NOREF;
  c->glib_L = NULL;
}

/*** Lets a GMainContext drive this context.
@function context:attach
@tparam[opt] lightuserdata main_context nil: the default one
@int[opt=0] priority
@treturn boolean true, or nil, message, errno: there is no GLib
@raise when attached already */
int aioL_ctx_attach(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  void *main_context = opt_pointer(L, 2);
  lua_Integer priority = luaL_optinteger(L, 3, 0);
  luaL_argcheck(L, priority >= INT32_MIN && priority <= INT32_MAX, 3, "priority out of range");
  if (aio_source_attached(c->core)) return luaL_error(L, "the context is attached already: detach it first");
  anchor(L, c);
  int rc = aio_source_attach(c->core, main_context, (int)priority);
  if (rc < 0) {
    aioL_glib_drop(L, c);
    return aioL_fail(L, rc);
  }
  lua_pushboolean(L, 1);
  return 1;
}

/*** Ends that. Safe in any callback, and when not attached.
@function context:detach */
int aioL_ctx_detach(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  aio_source_detach(c->core);
  aioL_glib_drop(L, c);
  return 0;
}

/*** The GSource, to be attached by other means. Borrowed: valid while the context is open and not detached.
@function context:source
@treturn lightuserdata or nil, message, errno */
int aioL_ctx_source(lua_State *L) {
  LContext *c = aioL_context(L, 1);
  anchor(L, c);
  void *source = aio_source_get(c->core);
  if (!source) {
    aioL_glib_drop(L, c);
    return aioL_fail(L, -ENOSYS);
  }
  lua_pushlightuserdata(L, source);
  return 1;
}

/*** One iteration of GLib's default main context, for scripts without a GLib binding.
@function glib_iterate
@bool[opt=false] may_block
@treturn boolean whether something was dispatched; or nil, message, errno: there is no GLib */
static int glib_iterate(lua_State *L) {
  int rc = aio_source_iterate(opt_pointer(L, 2), lua_toboolean(L, 1));
  if (rc < 0) return aioL_fail(L, rc);
  lua_pushboolean(L, rc);
  return 1;
}

void aioL_open_source(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg functions[] = {{"glib_iterate", glib_iterate}, {NULL, NULL}};
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
