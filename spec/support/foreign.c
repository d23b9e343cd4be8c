/* SPDX-License-Identifier: MIT
 * GLib sources that are not aioloop's, and main contexts of one's own, for the specs.
 *
 * Keep     a callback runs in the state that made its source, which must be the one that iterates; its errors are kept
 *          and raised by foreign.check. */
#include <glib.h>
#include <lauxlib.h>
#include <lua.h>

int luaopen_foreign(lua_State *L);

typedef struct Callback {
  lua_State *L;
  int fn; /* registry */
} Callback;

static gboolean called(gpointer data) {
  const Callback *cb = data;
  lua_State *L = cb->L;
  lua_rawgeti(L, LUA_REGISTRYINDEX, cb->fn);
  if (lua_pcall(L, 0, 1, 0) != LUA_OK) {
    lua_setfield(L, LUA_REGISTRYINDEX, "foreign.error");
    return G_SOURCE_REMOVE;
  }
  gboolean again = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return again;
}

static void forget(gpointer data) {
  Callback *cb = data;
  luaL_unref(cb->L, LUA_REGISTRYINDEX, cb->fn);
  g_free(cb);
}

static int add(lua_State *L, GSource *source, int fn) {
  Callback *cb = g_new(Callback, 1);
  luaL_checktype(L, fn, LUA_TFUNCTION);
  lua_pushvalue(L, fn);
  *cb = (Callback){L, luaL_ref(L, LUA_REGISTRYINDEX)};
  g_source_set_callback(source, called, cb, forget);
  lua_pushinteger(L, g_source_attach(source, NULL));
  g_source_unref(source);
  return 1;
}

/* fn -> id; called in every idle iteration as long as it returns true */
static int foreign_idle(lua_State *L) { return add(L, g_idle_source_new(), 1); }

/* milliseconds, fn -> id */
static int foreign_timeout(lua_State *L) { return add(L, g_timeout_source_new((guint)luaL_checkinteger(L, 1)), 2); }

static int foreign_remove(lua_State *L) { return lua_pushboolean(L, g_source_remove((guint)luaL_checkinteger(L, 1))), 1; }

static int foreign_check(lua_State *L) {
  if (lua_getfield(L, LUA_REGISTRYINDEX, "foreign.error") == LUA_TNIL) return 0;
  lua_pushnil(L);
  lua_setfield(L, LUA_REGISTRYINDEX, "foreign.error");
  return lua_error(L);
}

static int foreign_context_new(lua_State *L) { return lua_pushlightuserdata(L, g_main_context_new()), 1; }
static int foreign_context_unref(lua_State *L) { return g_main_context_unref(lua_touserdata(L, 1)), 0; }

static int foreign_source_attach(lua_State *L) { /* source, main context or nil */
  return lua_pushinteger(L, g_source_attach(lua_touserdata(L, 1), lua_touserdata(L, 2))), 1;
}

static int foreign_source_destroy(lua_State *L) { return g_source_destroy(lua_touserdata(L, 1)), 0; }
static int foreign_source_priority(lua_State *L) { return lua_pushinteger(L, g_source_get_priority(lua_touserdata(L, 1))), 1; }

__attribute__((visibility("default"))) int luaopen_foreign(lua_State *L) {
  static const luaL_Reg functions[] = {{"idle", foreign_idle}, {"timeout", foreign_timeout}, {"remove", foreign_remove},
    {"check", foreign_check}, {"context_new", foreign_context_new}, {"context_unref", foreign_context_unref},
    {"source_attach", foreign_source_attach}, {"source_destroy", foreign_source_destroy},
    {"source_priority", foreign_source_priority}, {NULL, NULL}};
  luaL_newlib(L, functions);
  return 1;
}
