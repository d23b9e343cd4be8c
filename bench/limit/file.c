/* SPDX-License-Identifier: MIT */
/* The limit of file reads of 4 KiB, no Lua: file pread|io_uring [direct|cold], from the file $BENCH_DATA.
 *
 * Way:  report -> pread_loop, one read after the other, or uring_loop: submit and wait -> each that is over begins the next
 * Keep: offsets are drawn as measure.lua draws them; every page must say where it was read from. */
#include <fcntl.h>
#include <liburing.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../cache.h"

enum { PAGE = 4096, MAX_DEPTH = 32 };

static int fd, cold;
static int64_t pages;
static uint32_t x;
static char *buffers; /* aligned, for O_DIRECT */
static int64_t offsets[MAX_DEPTH];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static int64_t next_offset(void)
{
	x = (x * 1103515245 + 12345) & 0x7fffffff;
	return (x >> 8) % pages * PAGE;
}

static void check(long bytes, const char *page, int64_t offset)
{
	if (bytes != PAGE || memcmp(page, &offset, 8) != 0 || memcmp(page + PAGE - 8, &offset, 8) != 0)
		die("wrong bytes");
}

static void pread_loop(long count, int depth)
{
	(void)depth;
	for (long i = 0; i < count; i++) {
		int64_t offset = next_offset();
		check(pread(fd, buffers, PAGE, offset), buffers, offset);
	}
}

static void begin_read(struct io_uring *ring, int slot)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	offsets[slot] = next_offset();
	io_uring_prep_read(sqe, fd, buffers + slot * PAGE, PAGE, (uint64_t)offsets[slot]);
	io_uring_sqe_set_data64(sqe, (uint64_t)slot);
}

static void uring_loop(long count, int depth)
{
	struct io_uring ring;
	struct io_uring_cqe *cqe;
	long begun = 0, ended = 0;
	if (io_uring_queue_init(MAX_DEPTH, &ring, 0) < 0)
		die("io_uring_queue_init");
	for (; begun < depth; begun++)
		begin_read(&ring, (int)begun);
	while (ended < count) {
		unsigned head, seen = 0;
		if (io_uring_submit_and_wait(&ring, 1) < 0)
			die("io_uring_submit_and_wait");
		io_uring_for_each_cqe(&ring, head, cqe) {
			int slot = (int)io_uring_cqe_get_data64(cqe);
			check(cqe->res, buffers + slot * PAGE, offsets[slot]);
			seen++;
			if (begun < count)
				begun++, begin_read(&ring, slot);
		}
		io_uring_cq_advance(&ring, seen);
		ended += seen;
	}
	io_uring_queue_exit(&ring);
	if (begun != count || ended != count)
		die("reads lost");
}

/* C has no strings to make: both variants of the row stand beside the same figure. */
static void report(void loop(long, int), long count, int depth)
{
	const char *why = cold ? cache_drop(getenv("BENCH_DATA")) : NULL;
	if (why) {
		fprintf(stderr, "%s\n", why);
		exit(1);
	}
	x = 12345;
	double begin = now_ns();
	loop(count, depth);
	double each = (now_ns() - begin) / (double)count;
	printf("file_%d %.1f\nfile_buffer_%d %.1f\n", depth, each, depth, each);
}

static void open_data(int flags)
{
	struct stat st;
	const char *path = getenv("BENCH_DATA");
	if (!path || (fd = open(path, O_RDONLY | O_CLOEXEC | flags)) < 0 || fstat(fd, &st) < 0)
		die("BENCH_DATA");
	pages = st.st_size / PAGE;
	if (!(buffers = aligned_alloc(PAGE, MAX_DEPTH * PAGE)))
		die("aligned_alloc");
	for (int64_t i = 0; i < pages && !(flags & O_DIRECT); i++)
		check(pread(fd, buffers, PAGE, i * PAGE), buffers, i * PAGE);
}

int main(int argc, char **argv)
{
	int direct = argc > 2 && strcmp(argv[2], "direct") == 0;
	cold = argc > 2 && strcmp(argv[2], "cold") == 0;
	void (*loop)(long, int) = argc > 1 && strcmp(argv[1], "io_uring") == 0 ? uring_loop : pread_loop;
	open_data(direct ? O_DIRECT : 0);
	if (!direct)
		report(loop, cold ? 5000 : 200000, 1);
	report(loop, direct || cold ? 5000 : 200000, MAX_DEPTH);
	return 0;
}
