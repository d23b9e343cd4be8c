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

#define DEAF_NS INT64_C(10000000)

typedef struct Polled {
  gpointer tag;
  int fd;
  short events;
} Polled;

struct AioSource {
  GSource base;
  AioContext *ctx;  /* NULL: the context was closed */
  bool asked;       /* check has asked for fds; GLib leaves it out when prepare said ready */
  int64_t sweep_at; /* when to look for closed fds, monotonic ns; 0: not planned */
  Polled *polled, *fresh; /* what GLib polls for us: the notifier (or the backend's one fd), then by fd; room for the next list */
  uint32_t npolled, polled_cap, fresh_cap;
};

static AioSource *of(GSource *base) { return (AioSource *)(void *)base; }

static Polled add_fd(AioSource *s, int fd, short events) {
  GIOCondition cond = (events & POLLIN ? G_IO_IN : 0) | (events & POLLOUT ? G_IO_OUT : 0);
  return (Polled){glib.g_source_add_unix_fd(&s->base, fd, cond), fd, events};
}

static void forget_fd(AioSource *s, const Polled *p) { glib.g_source_remove_unix_fd(&s->base, p->tag); }

/* GLib wakes up from its next sleep for every change, so only what differs is changed. */
static void merge_fds(AioSource *s, const struct pollfd *v, uint32_t n) {
  uint32_t old = 0;
  for (uint32_t i = 0; i < n; i++) {
    while (i > 0 && old < s->npolled && s->polled[old].fd < v[i].fd) forget_fd(s, &s->polled[old++]);
    bool known = old < s->npolled && s->polled[old].fd == v[i].fd;
    bool same = known && s->polled[old].events == v[i].events;
    if (known && !same) forget_fd(s, &s->polled[old]);
    s->fresh[i] = same ? s->polled[old] : add_fd(s, v[i].fd, v[i].events);
    old += known;
  }
  while (old < s->npolled) forget_fd(s, &s->polled[old++]);
}

/* Backends epoll and io_uring are one fd for good; backend poll is one for each fd, compared with the last list before
 * every sleep. */
static bool tell_fds(AioSource *s) {
  AioContext *ctx = s->ctx;
  const struct pollfd one = {.fd = ctx->pollfd, .events = POLLIN};
  int n = ctx->pollfd >= 0 ? 1 : aio__pollfds_fill(ctx, true);
  if (n < 0 || aio__grow((void **)&s->fresh, &s->fresh_cap, (uint32_t)n, sizeof *s->fresh) < 0) return false;
  merge_fds(s, ctx->pollfd >= 0 ? &one : ctx->pollfds, (uint32_t)n);
  Polled *polled = s->polled;
  uint32_t cap = s->polled_cap;
  s->polled = s->fresh;
  s->polled_cap = s->fresh_cap;
  s->npolled = (uint32_t)n;
  s->fresh = polled;
  s->fresh_cap = cap;
  return true;
}

static int64_t now(void) { return aio_clock_now(AIO_CLOCK_MONOTONIC); }

static int64_t plan(AioSource *s) {
  AioContext *ctx = s->ctx;
  int64_t timeout = aio__plan(ctx);
  if (timeout > 0 && aio__vclock_jump(ctx)) timeout = aio__plan(ctx);
  if (!timeout || !ctx->mon->blind || !ctx->nwatches) return timeout;
  if (ctx->suspects && !s->sweep_at) s->sweep_at = now() + SWEEP_NS;
  if (!s->sweep_at) return timeout;
  int64_t left = s->sweep_at - now();
  return aio__earlier(timeout, left < 1 ? 1 : left);
}

/* Whatever else woke us may have closed fds. */
static void sweep_when_due(AioSource *s) {
  AioContext *ctx = s->ctx;
  if (!s->sweep_at) {
    aio__fds_suspect(ctx);
  } else if (now() >= s->sweep_at) {
    s->sweep_at = 0;
    aio__fds_sweep(ctx, SWEEP_ASLEEP);
  }
}

static gboolean prepare(GSource *base, gint *timeout_ms) {
  AioContext *ctx = of(base)->ctx;
  *timeout_ms = -1;
  if (!ctx) return FALSE;
  of(base)->asked = false;
  if (aio__defer_pending(ctx)) aio__defer_run(ctx); /* an iteration inside of a section: what it waits for may be among it */
  if (!of(base)->ctx) return FALSE;
  bool settled = aio__fds_settle(ctx), told = tell_fds(of(base)) && settled;
  aio__announce(ctx, 1);
  int64_t ns = atomic_load_explicit(&ctx->notified, memory_order_acquire) ? 0 : plan(of(base));
  if (!told) ns = aio__earlier(ns, DEAF_NS); /* no memory: what GLib does not wait for, check asks for */
  int64_t ms = ns / 1000000 + (ns % 1000000 != 0); /* up: down would spin through the last millisecond */
  if (ns != AIO_FOREVER) *timeout_ms = ms > G_MAXINT ? G_MAXINT : (gint)ms;
  return ns == 0;
}

static gboolean check(GSource *base) {
  AioContext *ctx = of(base)->ctx;
  if (!ctx) return FALSE;
  if (!ctx->exported) aio__withdraw(ctx, 1);
  aio__fds_wait(ctx, 0);
  of(base)->asked = true;
  aio__accept(ctx);
  if (ctx->mon->blind && ctx->nwatches) sweep_when_due(of(base));
  bool idle_due = !list_empty(&ctx->idle) && aio_clock_now(AIO_CLOCK_MONOTONIC) >= ctx->idle_from;
  return idle_due || aio__plan(ctx) == 0;
}

static void turn(void *opaque) { aio__dispatch(opaque); }

static gboolean dispatch(GSource *base, GSourceFunc callback, gpointer data) {
  (void)callback, (void)data;
  AioContext *ctx = of(base)->ctx;
  if (!ctx) return G_SOURCE_REMOVE;
  if (!ctx->exported) aio__withdraw(ctx, 1); /* check was left out, perhaps: nobody sleeps now */
  if (!of(base)->asked) aio__glance(ctx); /* or what is always ready would starve the fds */
  aio_context_ref(ctx); /* a callback may close it and drop the last handle */
  AioOuter outer;
  aio__nest(ctx, &outer, NULL, NULL);
  aio_context_set_home(ctx);
  aio__around(ctx, turn);
  aio__unnest(ctx, &outer);
  aio_context_unref(ctx);
  return G_SOURCE_CONTINUE;
}

static void finalize(GSource *base) {
  AioSource *s = of(base);
  if (s->ctx && s->ctx->source == s) s->ctx->source = NULL;
  aio__realloc(s->polled, 0);
  aio__realloc(s->fresh, 0);
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
