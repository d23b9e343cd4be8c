/* SPDX-License-Identifier: MIT */
/* Messages between threads, to and fro, through aioloop's core without Lua: each thread polls a context of its own, and
 * schedules a BH of the other's. `cross`, or `cross two`: with a CPU and adaptive polling for each.
 *
 * Keep:  `count` is handed over with the message, and belongs to who has it. */
#include <string.h>

#include "../threads.h"
#include "aio.h"

typedef struct Side {
	AioContext *ctx;
	AioBH bh;
	struct Side *other;
	const char *cpu;
	long got;
} Side;

static Side sides[2] = {{.other = &sides[1], .cpu = "BENCH_CPU"}, {.other = &sides[0], .cpu = "BENCH_OTHER_CPU"}};
static int two_cpus;
static long rounds, count;

static void told(void *opaque)
{
	Side *me = opaque;
	me->got++;
	if (++count < 2 * rounds)
		aio_bh_schedule(&me->other->bh);
}

static void *turns(void *opaque)
{
	Side *me = opaque;
	if (two_cpus)
		use_cpu(me->cpu);
	aio_context_set_home(me->ctx);
	while (me->got < rounds)
		aio_poll(me->ctx, AIO_FOREVER);
	return NULL;
}

int main(int argc, char **argv)
{
	two_cpus = argc > 1 && !strcmp(argv[1], "two");
	rounds = two_cpus ? 1000000 : 100000;
	AioOptions options = {.poll_max_ns = two_cpus ? 200000 : 0};
	for (int i = 0; i < 2; i++) {
		if (aio_context_new(&sides[i].ctx, &options) < 0)
			die("aio_context_new");
		aio_bh_init(&sides[i].bh, sides[i].ctx, told, &sides[i]);
	}
	pthread_t thread = start_thread(turns, &sides[1]);
	double begin = now_ns();
	aio_bh_schedule(&sides[1].bh);
	turns(&sides[0]);
	double span = now_ns() - begin;
	pthread_join(thread, NULL);
	if (count != 2 * rounds || sides[0].got != rounds || sides[1].got != rounds)
		die("messages lost");
	printf("cross %.1f\n", span / (double)count);
	for (int i = 0; i < 2; i++)
		aio_context_unref(sides[i].ctx);
	return 0;
}
