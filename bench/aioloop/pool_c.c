/* SPDX-License-Identifier: MIT */
/* Pool jobs in C through aioloop's core, without Lua: 256 in flight, and 1. */
#include <stdio.h>
#include <stdlib.h>

#include "aio.h"

enum { IN_FLIGHT = 256 };

typedef struct Sum {
	AioJob job;
	long in, out;
} Sum;

static AioContext *ctx;
static long limit, begun, ended, total;

static void die(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

static void work(void *opaque)
{
	Sum *sum = opaque;
	sum->out = sum->in + 1;
}

static void done(void *opaque);

static void submit(Sum *sum)
{
	sum->in = ++begun;
	if (aio_pool_submit(ctx, &sum->job, work, done, sum) < 0)
		die("aio_pool_submit");
}

static void done(void *opaque)
{
	Sum *sum = opaque;
	total += sum->out;
	ended++;
	if (begun < limit)
		submit(sum);
}

/* Runs `count` jobs, `depth` at a time, and sums up what they made of 1, 2, 3, ... */
static double run(long count, int depth)
{
	static Sum sums[IN_FLIGHT];
	limit = count;
	begun = ended = total = 0;
	int64_t begin = aio_clock_now(AIO_CLOCK_MONOTONIC);
	for (int i = 0; i < depth; i++)
		submit(&sums[i]);
	while (ended < count)
		aio_poll(ctx, AIO_FOREVER);
	int64_t span = aio_clock_now(AIO_CLOCK_MONOTONIC) - begin;
	if (total != count * (count + 3) / 2)
		die("sum of the results");
	return (double)span / (double)count;
}

int main(void)
{
	if (aio_context_new(&ctx, NULL) < 0)
		die("aio_context_new");
	aio_context_set_home(ctx);
	run(10000, IN_FLIGHT);
	printf("pool_256 %.1f\n", run(1000000, IN_FLIGHT));
	printf("pool_1 %.1f\n", run(50000, 1));
	aio_context_unref(ctx);
	return 0;
}
