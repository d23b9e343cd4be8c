# SPDX-License-Identifier: MIT
# aioloop: build, try, test, install.
#
#   make            build the module              make test      set up, build, run every test
#   make demo       set up, build, run the demo   make bench     measure
#   make install    PREFIX=/usr/local DESTDIR=    make clean
#   make check-c    the core's C tests alone      make check-lua the specs alone
#   make asan, tsan, valgrind, gc, torture, shim, fuzz, lint    what .ci/run checks besides
#
# CC=clang, CFLAGS=…, WERROR=1, SAN=-fsanitize=… and BUILD=folder vary the build; each variant wants its own BUILD.

BUILD   = build
CFLAGS  = -O2 -g
LIBFLAG = -shared
LUA     = lua5.4
PREFIX  = /usr/local
LUA_DIR = $(PREFIX)/share/lua/5.4
LIB_DIR = $(PREFIX)/lib/lua/5.4

# Asked for when a recipe needs them, because pkg-config may not be there before `make deps`.
lua_cflags  = $(if $(LUA_INCDIR),-I$(LUA_INCDIR),$(shell pkg-config --cflags lua5.4))
glib_cflags = $(shell pkg-config --cflags glib-2.0)
glib_libs   = $(shell pkg-config --libs glib-2.0)

warnings = -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes $(if $(WERROR),-Werror)
# gcc inlines across files. The objects hold plain code, too, which the C tests are linked from.
lto     := $(if $(SAN),,$(if $(findstring Free Software Foundation,$(shell $(CC) --version 2>/dev/null)),-flto=auto -ffat-lto-objects))
# Every second line calls Lua: without a stub in between (-fno-plt).
compile  = $(CC) -std=c11 -D_GNU_SOURCE $(CFLAGS) -fPIC -fno-plt -fvisibility=hidden -pthread $(warnings) $(SAN) -MMD -MP -MT $@
link     = -pthread $(SAN) -Wl,-z,nodelete -ldl

core_objects := $(patsubst csrc/%.c,$(BUILD)/obj/%.o,$(wildcard csrc/core/*.c))
bind_objects := $(patsubst csrc/%.c,$(BUILD)/obj/%.o,$(wildcard csrc/bind/*.c))
c_tests      := $(patsubst spec/core/%.c,$(BUILD)/test/%,$(wildcard spec/core/test_*.c))
spec_helpers := $(patsubst spec/support/%.c,$(BUILD)/%.so,$(wildcard spec/support/*.c))
lua_files    := $(wildcard lua/aioloop/*.lua)
module       := $(BUILD)/aioloop/core.so

# The tree's own module comes first, for everything that a recipe starts.
export LUA_PATH  = $(CURDIR)/lua/?.lua;$(CURDIR)/lua/?/init.lua;;
export LUA_CPATH = $(CURDIR)/$(BUILD)/?.so;;

.DELETE_ON_ERROR:
.PHONY: all doc deps demo test check check-c check-lua bench asan tsan valgrind gc torture shim fuzz lint luacheck cppcheck install clean

all: $(module)

# ---- build -----------------------------------------------------------------------------------------------------

$(module): $(core_objects) $(bind_objects)
	@mkdir -p $(@D)
	$(CC) $(LIBFLAG) $(CFLAGS) $(lto) -o $@ $^ $(link)

$(BUILD)/obj/core/%.o: csrc/core/%.c
	@mkdir -p $(@D)
	$(compile) $(lto) -Icsrc -Icsrc/core $(headers) -c -o $@ $<

# The binding cannot even find the core's internal.h.
$(BUILD)/obj/bind/%.o: csrc/bind/%.c
	@mkdir -p $(@D)
	$(compile) $(lto) -Icsrc $(lua_cflags) -c -o $@ $<

# Headers only: GLib itself is loaded with dlopen when a script first attaches to it.
$(BUILD)/obj/core/source.o: headers = $(glib_cflags)

# ---- test ------------------------------------------------------------------------------------------------------

# A C test links the core without Lua. A line `/* wrap: epoll_ctl eventfd */` in it asks for -Wl,--wrap of those calls.
wraps = $(shell sed -n '/^\/\* wrap: /{s///;s/ *\*\/.*//;s/[^ ][^ ]*/-Wl,--wrap=&/g;p}' $<)

$(BUILD)/test/%: spec/core/%.c $(core_objects)
	@mkdir -p $(@D)
	$(compile) -MF $@.d -Icsrc -Icsrc/core -Ispec/core $(glib_cflags) -o $@ $< $(core_objects) \
	  $(wraps) $(link) $(if $(lto),-fno-lto -fno-use-linker-plugin) -Wl,--as-needed $(glib_libs)

# What the specs need from C and the module has no reason to offer: raw fds, sources of GLib's own.
$(spec_helpers): $(BUILD)/%.so: spec/support/%.c
	@mkdir -p $(@D)
	$(compile) -MF $@.d -Icsrc $(lua_cflags) $(glib_cflags) $(LIBFLAG) -o $@ $< -Wl,--as-needed $(glib_libs)

check: $(module) $(c_tests) $(spec_helpers)
	@sh spec/run.sh $(BUILD) c lua

check-c: $(c_tests)
	@sh spec/run.sh $(BUILD) c

check-lua: $(module) $(spec_helpers)
	@sh spec/run.sh $(BUILD) lua

# Both start another make: what the set-up installs must be there before anything is asked of it.
test: deps
	@$(MAKE) --no-print-directory check

demo: deps
	@$(MAKE) --no-print-directory all
	@DRIVER=$(DRIVER) $(LUA) examples/demo.lua

deps:
	@sh .ci/setup

# Pages of the API, in doc/api.
doc:
	ldoc -c doc/config.ld .

bench: $(module)
	@$(LUA) bench/run.lua

# ---- check -----------------------------------------------------------------------------------------------------

# $(RUN) stands before every program that spec/run.sh starts.
# Without frame pointers in Lua the slow unwinder would see more, at five times the price.
asan:
	@RUN="env LD_PRELOAD=$$($(CC) -print-file-name=libasan.so)" \
	ASAN_OPTIONS=exitcode=99:fast_unwind_on_malloc=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	SPEC_SECONDS=300 $(MAKE) --no-print-directory check BUILD=build-asan SAN="-fsanitize=address,undefined -fno-omit-frame-pointer"

# Its shadow memory does not fit the address layout of newer kernels unless that is fixed by setarch.
tsan:
	@RUN="setarch -R" TSAN_OPTIONS=exitcode=66 \
	$(MAKE) --no-print-directory check-c BUILD=build-tsan SAN=-fsanitize=thread

# What allocates in C; under valgrind the rest takes too long, and asan, which knows leaks too, runs all of it.
grounds = bh timer wait watch cancel scope group wrap queue pool signal buffer
valgrind:
	@RUN="valgrind -q --leak-check=full --errors-for-leak-kinds=definite --keep-debuginfo=yes --error-exitcode=9" \
	SPEC_SECONDS=280 BUSTED=--exclude-tags=slow SPECS="$(grounds:%=spec/bind/%_spec.lua)" $(MAKE) --no-print-directory check-lua

# The specs of what waits, with the collector at work at every step.
waits = matrix cancel scope group wrap sync queue random file buffer udp socket tls
gc: $(module) $(spec_helpers)
	@for mode in generational incremental; do \
	  echo "$$mode:"; \
	  GC_MODE=$$mode BUSTED=--helper=spec/support/collect.lua SPECS="$(waits:%=spec/bind/%_spec.lua)" \
	    sh spec/run.sh $(BUILD) lua || exit 1; \
	done

# A host in which every allocation fails once, and then all from there on.
$(BUILD)/torture: spec/torture/host.c
	@mkdir -p $(@D)
	$(CC) -std=c11 -D_GNU_SOURCE $(CFLAGS) $(warnings) $(lua_cflags) -o $@ $< -Wl,-E -llua5.4

torture: $(module) $(BUILD)/torture
	for life in life files udp streams work; do for mode in pair persist; do \
	  $(BUILD)/torture spec/torture/$$life.lua $$mode || exit 1; \
	done; done

# Between the module and the kernel: a byte at a time; and then calls refused by lot, too.
$(BUILD)/shim.so: spec/torture/shim.c
	@mkdir -p $(@D)
	$(CC) -std=c11 -D_GNU_SOURCE $(CFLAGS) -fPIC -pthread $(warnings) $(LIBFLAG) -o $@ $< -ldl

shimmed = env SHIM=bytes SHIM_REPORT=$(BUILD)/shim.report LD_PRELOAD=$(CURDIR)/$(BUILD)/shim.so
unaware = stream server connect reused
shim: $(module) $(spec_helpers) $(BUILD)/shim.so
	@rm -f $(BUILD)/shim.report
	@RUN="$(shimmed)" BUSTED="--filter=on.epoll --exclude-tags=whole" \
	  SPECS="$(unaware:%=spec/bind/%_spec.lua)" sh spec/run.sh $(BUILD) lua
	@RUN="$(shimmed) SHIM_SEED=1" BUSTED="--filter=poll.on.epoll --exclude-tags=whole,first" \
	  SPECS="$(unaware:%=spec/bind/%_spec.lua)" sh spec/run.sh $(BUILD) lua
	@RUN="$(shimmed)" BUSTED="--filter=through.poll --exclude-tags=whole" SPECS=spec/bind/tls_spec.lua sh spec/run.sh $(BUILD) lua
	@cat $(BUILD)/shim.report
	@awk '{ cut += $$1; refused += $$5 } END { exit !(cut > 100000 && refused > 10000) }' $(BUILD)/shim.report

# Finds what nobody thought of, for so many seconds; what it has found before is kept, and tried first.
FUZZ_SECONDS = 20
build-fuzz/%: spec/fuzz/%.c csrc/core/%.c csrc/aio.h csrc/core/internal.h
	@mkdir -p $(@D)
	clang -std=c11 -D_GNU_SOURCE -O2 -g $(warnings) -Icsrc -Icsrc/core -fsanitize=fuzzer,address,undefined \
	  -fno-sanitize-recover=undefined -o $@ $< csrc/core/$*.c

fuzz: build-fuzz/input
	@mkdir -p build-fuzz/corpus
	build-fuzz/input -max_total_time=$(FUZZ_SECONDS) -max_len=300 -timeout=10 -verbosity=0 -print_final_stats=1 \
	  -artifact_prefix=build-fuzz/ build-fuzz/corpus

lint: luacheck cppcheck

luacheck:
	luacheck -q --no-color .

# aio__realloc(p, 0) frees, which cppcheck takes for memory that nobody keeps.
cppcheck:
	cppcheck -q -j2 --std=c11 --enable=warning,performance,portability --error-exitcode=1 \
	  --inline-suppr --suppress=leakReturnValNotUsed \
	  -D_GNU_SOURCE -DLUA_VERSION_NUM=504 -Icsrc -Icsrc/core csrc

# ---- install ---------------------------------------------------------------------------------------------------

install: $(module)
	mkdir -p $(DESTDIR)$(LUA_DIR)/aioloop $(DESTDIR)$(LIB_DIR)/aioloop
	install -m 644 $(lua_files) $(DESTDIR)$(LUA_DIR)/aioloop
	install -m 755 $(module) $(DESTDIR)$(LIB_DIR)/aioloop

clean:
	rm -rf build build-*

-include $(core_objects:.o=.d) $(bind_objects:.o=.d) $(c_tests:=.d) $(spec_helpers:=.d)
