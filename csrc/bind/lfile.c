/* SPDX-License-Identifier: MIT
 * Files: opening and closing them, and what else is done with them but reading (lfile_at.c, lfile_seq.c).
 *
 * Way      aio.open -> a call (lfile_call.c) -> the userdata, made before the wait, has the body
 * Keep     closing wakes whoever waits; the descriptor is closed when the kernel has nothing more to do with it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "lfile.h"

/*** Files.
@module aioloop.file */

/* ---- what moves no bytes ---- */

static int plain_results(lua_State *L, LTicket *tk) {
  LFileCall *k = aioL_file_call_fetch(tk);
  if (!k) return aioL_closed(L);
  int error = k->op.error;
  aioL_flight_end(&k->f);
  if (error) return aioL_fail(L, error);
  return lua_pushboolean(L, 1), 1;
}

static const LWaitOps sync_ops = {.name = "file:sync", .leave = aioL_file_leave, .results = plain_results, .revoke = aioL_flight_revoke};
static const LWaitOps datasync_ops = {.name = "file:datasync", .leave = aioL_file_leave, .results = plain_results, .revoke = aioL_flight_revoke};
static const LWaitOps truncate_ops = {.name = "file:truncate", .leave = aioL_file_leave, .results = plain_results, .revoke = aioL_flight_revoke};

static int request(lua_State *L, const LWaitOps *ops, AioFileKind kind, int64_t offset) {
  aioL_check_file(L);
  LContext *c = aioL_waits_in(L);
  LFileCall *k = aioL_file_call(L, aioL_check_file(L), ops, kind, 0);
  k->op.offset = offset;
  return aioL_file_wait(L, c, k);
}

/*** Waits until what was written, and what is known of the file, is on the disk.
@function file:sync
@treturn boolean true; or nil, message, errno */
static int file_sync(lua_State *L) { return request(L, &sync_ops, AIO_FILE_SYNC, 0); }

/*** The same without what is not needed to read it again, such as its times.
@function file:datasync
@treturn boolean true; or nil, message, errno */
static int file_datasync(lua_State *L) { return request(L, &datasync_ops, AIO_FILE_DATASYNC, 0); }

/*** Cuts the file off, or fills it up with zeros.
@function file:truncate
@tparam integer size in bytes
@treturn boolean true; or nil, message, errno */
static int file_truncate(lua_State *L) {
  aioL_check_file(L);
  return request(L, &truncate_ops, AIO_FILE_TRUNCATE, aioL_check_offset(L, 2));
}

static void set_integer(lua_State *L, const char *name, int64_t value) {
  lua_pushinteger(L, value);
  lua_setfield(L, -2, name);
}

static void set_time(lua_State *L, const char *name, int64_t ns) {
  aioL_push_seconds(L, ns);
  lua_setfield(L, -2, name);
}

static int push_stat(lua_State *L) { /* stack: AioFileStat (light) -> table */
  const AioFileStat *st = lua_touserdata(L, 1);
  lua_createtable(L, 0, 13);
  lua_pushstring(L, st->type);
  lua_setfield(L, -2, "type");
  set_integer(L, "size", st->size);
  set_integer(L, "mode", st->mode);
  set_integer(L, "uid", st->uid);
  set_integer(L, "gid", st->gid);
  set_integer(L, "nlink", st->nlink);
  set_integer(L, "ino", st->ino);
  set_integer(L, "dev", st->dev);
  set_integer(L, "blocks", st->blocks);
  set_integer(L, "blksize", st->blksize);
  set_time(L, "atime", st->atime);
  set_time(L, "mtime", st->mtime);
  set_time(L, "ctime", st->ctime);
  return 1;
}

static int stat_results(lua_State *L, LTicket *tk) {
  LFileCall *k = aioL_file_call_fetch(tk);
  if (!k) return aioL_closed(L);
  AioFileStat st = k->op.stat;
  int error = k->op.error;
  luaL_checkstack(L, 4, NULL);
  aioL_flight_end(&k->f);
  if (error) return aioL_fail(L, error);
  lua_pushcfunction(L, push_stat);
  lua_pushlightuserdata(L, &st);
  return lua_call(L, 1, 1), 1;
}

static const LWaitOps stat_ops = {.name = "file:stat", .leave = aioL_file_leave, .results = stat_results, .revoke = aioL_flight_revoke};

/*** What the system knows of the file.
@function file:stat
@treturn table type ("file", "directory", "block", "char"), size, mode (permissions), uid, gid, nlink, ino, dev, blocks (of
  512 bytes), blksize, atime, mtime, ctime (seconds, as `aio.time`); or nil, message, errno */
static int file_stat(lua_State *L) { return request(L, &stat_ops, AIO_FILE_STAT, 0); }

/* ---- open and close ---- */

static int open_results(lua_State *L, LTicket *tk) {
  LFileCall *k = aioL_file_call_fetch(tk);
  if (!k) return aioL_closed(L);
  LFile *lf = lua_touserdata(L, 4); /* made before the wait, closed */
  int error = k->op.error;
  if (!error) (lf->b = k->b)->refs++;
  aioL_flight_end(&k->f);
  if (!error) return lua_pushvalue(L, 4), 1;
  aioL_fail(L, error); /* stack: ..., nil, message, errno */
  lua_pushfstring(L, "%s: %s", lua_tostring(L, 1), lua_tostring(L, -2));
  lua_replace(L, -3);
  return 3;
}

static const LWaitOps open_ops = {.name = "aio.open", .leave = aioL_file_leave, .results = open_results, .revoke = aioL_flight_revoke};

static int check_mode(lua_State *L, int idx) { /* [-0, +0, v] flags of open(2) */
  size_t len;
  const char *mode = luaL_optlstring(L, idx, "r", &len);
  bool plus = len && strchr(mode, '+'), binary = len && strchr(mode, 'b'), exclusive = len && strchr(mode, 'x');
  bool known = len && strchr("rwa", *mode) && strspn(mode + 1, "+bx") == len - 1;
  luaL_argcheck(L, known && len == (size_t)1 + plus + binary + exclusive && !(exclusive && *mode == 'r'), idx, "invalid mode");
  int flags = plus ? O_RDWR : *mode == 'r' ? O_RDONLY : O_WRONLY;
  return flags | (*mode == 'w' ? O_CREAT | O_TRUNC : *mode == 'a' ? O_CREAT | O_APPEND : 0) | (exclusive ? O_EXCL : 0);
}

static AioEngine check_engine(lua_State *L, int idx) { /* [-0, +0, v] option of the table at idx */
  static const char *const names[] = {"auto", "io_uring", "linux-aio", "threads"};
  int type = lua_getfield(L, idx, "engine"), found = 0;
  if (type == LUA_TNIL) return lua_pop(L, 1), AIO_ENGINE_AUTO;
  const char *name = type == LUA_TSTRING ? lua_tostring(L, -1) : "";
  while (found < 4 && strcmp(name, names[found])) found++;
  luaL_argcheck(L, found < 4, idx, "engine must be \"auto\", \"io_uring\", \"linux-aio\" or \"threads\"");
  return lua_pop(L, 1), (AioEngine)found;
}

static int check_permissions(lua_State *L, int idx) {
  int ok = true;
  lua_Integer mode = lua_getfield(L, idx, "perm") == LUA_TNIL ? 0666 : lua_tointegerx(L, -1, &ok);
  luaL_argcheck(L, ok && mode >= 0 && mode <= 07777, idx, "perm must be permissions, such as tonumber(\"644\", 8)");
  return lua_pop(L, 1), (int)mode;
}

/*** Opens a file.
@function open
@tparam string path
@tparam[opt="r"] string mode "r", "w", "a", "r+", "w+", "a+" as in io.open; with "x" the file must not be there
@tparam[opt] table options engine ("auto", "io_uring", "linux-aio", "threads": where the system refuses it, the next one
  works), direct (boolean: past the page cache, where the file system can do that; "linux-aio" means it), perm (of a new file,
  less the umask)
@treturn file or nil, message with the path, errno */
static int mod_open(lua_State *L) {
  size_t len;
  const char *path = luaL_checklstring(L, 1, &len);
  luaL_argcheck(L, strlen(path) == len, 1, "a path has no zero byte");
  int flags = check_mode(L, 2), perm = 0666;
  AioEngine engine = AIO_ENGINE_AUTO;
  bool direct = false;
  lua_settop(L, 3);
  if (!lua_isnil(L, 3)) {
    static const char *const names[] = {"engine", "direct", "perm", NULL};
    aioL_check_names(L, 3, 0, names);
    engine = check_engine(L, 3);
    perm = check_permissions(L, 3);
    lua_getfield(L, 3, "direct");
    direct = lua_toboolean(L, -1);
    lua_settop(L, 3);
  }
  LContext *c = aioL_waits_in(L);
  LFile *lf = lua_newuserdatauv(L, sizeof *lf, 0);
  lf->b = NULL;
  aioL_set_class(L, c->rt, L_FILE);
  LFileBody *b = aioL_file_body_new(engine, direct);
  if (!b) return luaL_error(L, "not enough memory");
  b->append = flags & O_APPEND;
  LFileCall *k = malloc(sizeof *k + len + 1);
  if (!k) return aioL_file_body_unref(b), luaL_error(L, "not enough memory");
  *k = (LFileCall){.b = b, .ops = &open_ops, .op = {.kind = AIO_FILE_OPEN, .file = b->file, .done = aioL_file_done, .opaque = k}};
  k->op.path = memcpy(k->wants, path, len + 1);
  k->op.flags = flags;
  k->op.mode = perm;
  return aioL_file_wait(L, c, k);
}

/* Whoever waits is told; what the kernel has is asked to end. */
static void close_body(LFileBody *b) {
  aio_file_close(b->file);
  while (!list_empty(&b->calls)) {
    LFileCall *k = container_of(b->calls.next, LFileCall, link);
    if (!k->f.tk || !aioL_take_later(k->f.tk, L_CLOSED, 0)) list_unlink(&k->link);
  }
}

/*** Closes the file. Whoever waits for it has nil, "closed"; what the kernel has begun may still be done.
@function file:close
@treturn boolean true */
static int file_close(lua_State *L) {
  LFile *lf = aioL_check(L, 1, L_FILE);
  LFileBody *b = lf->b;
  lf->b = NULL;
  if (b) close_body(b), aioL_file_body_unref(b);
  return lua_pushboolean(L, 1), 1;
}

/*** What does its work: "io_uring", "linux-aio" or "threads".
@function file:engine
@treturn string */
static int file_engine(lua_State *L) {
  aioL_check_file(L);
  LContext *c = aioL_current(L);
  aioL_check_open(L, c);
  return lua_pushstring(L, aio_engine_name(aio_file_engine(c->core, aioL_check_file(L)->file))), 1;
}

/*** Its descriptor.
@function file:getfd
@treturn integer */
static int file_getfd(lua_State *L) { return lua_pushinteger(L, aio_file_fd(aioL_check_file(L)->file)), 1; }

static int file_text(lua_State *L) {
  const LFile *lf = aioL_check(L, 1, L_FILE);
  lua_pushfstring(L, "aioloop.file (%s): %p", lf->b ? "open" : "closed", lua_topointer(L, 1));
  return 1;
}

void aioL_open_file(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg methods[] = {{"sync", file_sync}, {"datasync", file_datasync}, {"truncate", file_truncate}, {"stat", file_stat},
    {"close", file_close}, {"engine", file_engine}, {"getfd", file_getfd}, {"__close", file_close}, {"__gc", file_close},
    {"__tostring", file_text}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"open", mod_open}, {NULL, NULL}};
  aioL_class(L, rt, L_FILE, methods);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->meta_ref[L_FILE]);
  aioL_functions(L, rt, aioL_file_at_methods);
  aioL_functions(L, rt, aioL_file_seq_methods);
  lua_pop(L, 1);
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}

/* The classes are made when a script first asks for one of these functions: it would cost every `require`. */
static int mod_files(lua_State *L) {
  LRuntime *rt = aioL_runtime(L);
  lua_settop(L, 0);
  lua_newtable(L);
  aioL_open_buffer(L, rt, 1);
  aioL_open_file(L, rt, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rt->meta_ref[L_FILE]);
  return 2;
}

void aioL_open_files(lua_State *L, LRuntime *rt, int module) {
  static const luaL_Reg functions[] = {{"files", mod_files}, {NULL, NULL}};
  lua_pushvalue(L, module);
  aioL_functions(L, rt, functions);
  lua_pop(L, 1);
}
