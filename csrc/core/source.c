/* SPDX-License-Identifier: MIT
 * The loop as a GSource: GLib's prepare, check and dispatch hung on the plan, accept and dispatch of a turn.
 *
 * Way      prepare (announce, plan) -> GLib sleeps on our fds -> check (withdraw, ask) -> dispatch -> aio__dispatch
 * Threads  home, which is the thread that runs the GMainContext.
 * Owner    the context holds a reference on the source, the GMainContext another while attached.
 * Keep     prepare may be called without check, so the announcement is a bit and not a count.
 *          GLib is loaded when first asked for, since most scripts never do and it costs as much as all the rest. */
#include <dlfcn.h>
#include <errno.h>
#include <glib.h>
#include <poll.h>
#include <string.h>

#include "internal.h"

#define GLIB_FUNCTIONS(X)                                                                                             \
  X(g_source_new) X(g_source_ref) X(g_source_unref) X(g_source_attach) X(g_source_destroy) X(g_source_get_context)    \
  X(g_source_set_can_recurse) X(g_source_set_priority) X(g_source_set_name) X(g_source_is_destroyed)                  \
  X(g_source_add_unix_fd) X(g_source_remove_unix_fd) X(g_main_context_iteration) X(g_log)

static struct {
#define X(name) __typeof__(&name) name;
  GLIB_FUNCTIONS(X)
#undef X
} glib;

static pthread_once_t loaded = PTHREAD_ONCE_INIT;
static bool have_glib;

static void load_glib(void) {
  void *lib = dlopen("libglib-2.0.so.0", RTLD_NOW | RTLD_GLOBAL);
  if (!lib) return;
  have_glib = true;
#define X(name)                               \
  {                                           \
    void *symbol = dlsym(lib, #name);         \
    memcpy(&glib.name, &symbol, sizeof symbol); \
    have_glib = have_glib && symbol;          \
  }
  GLIB_FUNCTIONS(X)
#undef X
}

static bool use_glib(void) {
  pthread_once(&loaded, load_glib);
  return have_glib;
}

struct AioSource {
  GSource base;
  AioContext *ctx;  /* NULL: the context was closed */
  gpointer *tags;   /* one for each fd that GLib polls for us */
  uint32_t ntags, cap;
};

static AioSource *of(GSource *base) { return (AioSource *)(void *)base; }

static void forget_fds(AioSource *s) {
  while (s->ntags) glib.g_source_remove_unix_fd(&s->base, s->tags[--s->ntags]);
}

static void add_fd(AioSource *s, int fd, short events) {
  GIOCondition cond = (events & POLLIN ? G_IO_IN : 0) | (events & POLLOUT ? G_IO_OUT : 0);
  if (aio__grow((void **)&s->tags, &s->cap, s->ntags + 1, sizeof *s->tags) == 0)
    s->tags[s->ntags++] = glib.g_source_add_unix_fd(&s->base, fd, cond);
}

/* Backend epoll is one fd for good; backend poll is one for each fd, listed anew before every sleep. */
static void tell_fds(AioSource *s) {
  AioContext *ctx = s->ctx;
  if (ctx->epfd >= 0) {
    if (!s->ntags) add_fd(s, ctx->epfd, POLLIN);
    return;
  }
  int n = aio__pollfds_fill(ctx, true);
  const struct pollfd *v = ctx->pollfds;
  forget_fds(s);
  for (int i = 0; i < n; i++) add_fd(s, v[i].fd, v[i].events);
}

static int64_t plan(AioContext *ctx) {
  int64_t timeout = aio__plan(ctx);
  if (timeout > 0 && aio__vclock_jump(ctx)) timeout = aio__plan(ctx);
  bool sweep = ctx->mon->blind && ctx->sweep_due && ctx->nwatches;
  return sweep ? aio__earlier(timeout, 20000000) : timeout;
}

static gboolean prepare(GSource *base, gint *timeout_ms) {
  AioContext *ctx = of(base)->ctx;
  *timeout_ms = -1;
  if (!ctx) return FALSE;
  tell_fds(of(base));
  aio__announce(ctx, 1);
  int64_t ns = atomic_load_explicit(&ctx->notified, memory_order_acquire) ? 0 : plan(ctx);
  int64_t ms = ns / 1000000 + (ns % 1000000 != 0); /* up: down would spin through the last millisecond */
  if (ns != AIO_FOREVER) *timeout_ms = ms > G_MAXINT ? G_MAXINT : (gint)ms;
  return ns == 0;
}

static gboolean check(GSource *base) {
  AioContext *ctx = of(base)->ctx;
  if (!ctx) return FALSE;
  if (!ctx->exported) aio__withdraw(ctx, 1);
  aio__fds_wait(ctx, 0);
  aio__accept(ctx);
  if (ctx->sweep_due && list_empty(&ctx->fd_ready)) aio__fds_sweep(ctx);
  bool idle_due = !list_empty(&ctx->idle) && aio_clock_now(AIO_CLOCK_MONOTONIC) >= ctx->idle_from;
  return idle_due || aio__plan(ctx) == 0;
}

static void turn(void *opaque) { aio__dispatch(opaque); }

static gboolean dispatch(GSource *base, GSourceFunc callback, gpointer data) {
  (void)callback, (void)data;
  AioContext *ctx = of(base)->ctx;
  if (!ctx) return G_SOURCE_REMOVE;
  aio_context_ref(ctx); /* a callback may close it and drop the last handle */
  AioCo *outer_co = ctx->running;
  ctx->running = NULL;
  ctx->depth++;
  aio_context_set_home(ctx);
  aio__around(ctx, turn);
  ctx->depth--;
  ctx->running = outer_co;
  ctx->wake_at = &ctx->woken;
  aio_context_unref(ctx);
  return G_SOURCE_CONTINUE;
}

static void finalize(GSource *base) {
  AioSource *s = of(base);
  if (s->ctx && s->ctx->source == s) s->ctx->source = NULL;
  s->tags = aio__realloc(s->tags, 0);
}

static GSourceFuncs funcs = {prepare, check, dispatch, finalize, NULL, NULL};

static bool usable(AioContext *ctx) { return ctx->source && !glib.g_source_is_destroyed(&ctx->source->base); }

void *aio_source_get(AioContext *ctx) {
  if (aio_context_closed(ctx) || !use_glib()) return NULL;
  if (usable(ctx)) return &ctx->source->base;
  aio__source_drop(ctx); /* its GMainContext is gone, or somebody destroyed it */
  GSource *base = glib.g_source_new(&funcs, sizeof(AioSource));
  ctx->source = of(base);
  ctx->source->ctx = ctx;
  glib.g_source_set_can_recurse(base, TRUE);
  glib.g_source_set_name(base, "aioloop");
  return base;
}

bool aio_source_attached(const AioContext *ctx) {
  return ctx->source && !glib.g_source_is_destroyed(&ctx->source->base) && glib.g_source_get_context(&ctx->source->base);
}

int aio_source_attach(AioContext *ctx, void *main_context, int priority) {
  if (aio_context_closed(ctx)) return -ESHUTDOWN;
  if (!use_glib()) return -ENOSYS;
  if (aio_source_attached(ctx)) return -EBUSY;
  GSource *base = aio_source_get(ctx);
  if (!base) return -ENOMEM;
  glib.g_source_set_priority(base, priority);
  glib.g_source_attach(base, main_context);
  return 0;
}

void aio__source_drop(AioContext *ctx) {
  AioSource *s = ctx->source;
  if (!s) return;
  ctx->source = NULL;
  s->ctx = NULL;
  glib.g_source_destroy(&s->base);
  glib.g_source_unref(&s->base);
  if (!ctx->exported) aio__withdraw(ctx, 1);
}

void aio_source_detach(AioContext *ctx) { aio__source_drop(ctx); }

void aio_source_warn(const char *message) {
  if (use_glib()) glib.g_log("aioloop", G_LOG_LEVEL_WARNING, "%s", message);
}

int aio_source_iterate(void *main_context, bool may_block) {
  if (!use_glib()) return -ENOSYS;
  return glib.g_main_context_iteration(main_context, may_block);
}
