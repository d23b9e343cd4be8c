rockspec_format = "3.0"
package = "aioloop"
version = "scm-1"
source = {
   url = "git+file://.",
}
description = {
   summary = "A data-plane event loop for Lua, after QEMU's AioContext",
   detailed = "Bottom halves, timers, fd handlers, scheduled coroutines, adaptive polling, and a GLib source.",
   license = "MIT",
}
supported_platforms = { "linux" }
dependencies = {
   "lua >= 5.4",
}
build = {
   type = "make",
   build_variables = {
      CFLAGS = "$(CFLAGS)",
      LIBFLAG = "$(LIBFLAG)",
      LUA_INCDIR = "$(LUA_INCDIR)",
   },
   install_variables = {
      LUA_DIR = "$(LUADIR)",
      LIB_DIR = "$(LIBDIR)",
   },
}
