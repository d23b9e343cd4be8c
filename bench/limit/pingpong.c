/* SPDX-License-Identifier: MIT */
/* The limit of fd dispatch: 1-byte messages over socketpairs with epoll_wait, read and write, no Lua.
 *
 * Way:   ring() writes the first bytes -> epoll_wait -> hop: read one end, write the byte on -> ...
 *        -> drain: the bytes are still there */
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_PAIRS = 1000, MAX_EVENTS = 1024 };

static int epfd;
static int pairs[MAX_PAIRS][2];

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

static void watch(int fd, int out)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = (unsigned long long)fd << 32 | (unsigned)out};
	if (epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) < 0)
		die("epoll_ctl");
}

static void hop(struct epoll_event *ev)
{
	char byte;
	if (read((int)(ev->data.u64 >> 32), &byte, 1) != 1)
		die("read");
	if (write((int)(ev->data.u64 & 0xffffffff), &byte, 1) != 1)
		die("write");
}

static double turn_until(long hops)
{
	struct epoll_event events[MAX_EVENTS];
	double begin = now_ns();
	long done = 0;
	while (done < hops) {
		int n = epoll_wait(epfd, events, MAX_EVENTS, -1);
		if (n < 0)
			die("epoll_wait");
		for (int i = 0; i < n; i++)
			hop(&events[i]);
		done += n;
	}
	return (now_ns() - begin) / (double)done;
}

/* The sum of the bytes still in flight; none may be lost or changed. */
static long drain(int count)
{
	long sum = 0;
	for (int i = 0; i < count; i++)
		for (int side = 0; side < 2; side++) {
			char byte;
			while (read(pairs[i][side], &byte, 1) == 1)
				sum += byte;
			close(pairs[i][side]);
		}
	return sum;
}

static void open_pairs(int count)
{
	if ((epfd = epoll_create1(EPOLL_CLOEXEC)) < 0)
		die("epoll_create1");
	for (int i = 0; i < count; i++)
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pairs[i]) < 0)
			die("socketpair");
}

static void report(const char *name, double ns, int count, long sent)
{
	if (drain(count) != sent)
		die("bytes lost or changed");
	close(epfd);
	printf("%s %.1f\n", name, ns);
}

static void one_pair(long hops)
{
	open_pairs(1);
	watch(pairs[0][0], pairs[0][0]);
	watch(pairs[0][1], pairs[0][1]);
	if (write(pairs[0][0], "a", 1) != 1)
		die("write");
	report("pingpong_1", turn_until(hops), 1, 'a');
}

/* A byte read from pair i is written to pair i + 1. */
static void ring(int count, int active, long hops)
{
	long sent = 0;
	open_pairs(count);
	for (int i = 0; i < count; i++)
		watch(pairs[i][0], pairs[(i + 1) % count][1]);
	for (int i = 0; i < active; i++) {
		char byte = (char)('a' + i % 26);
		if (write(pairs[i * (count / active)][1], &byte, 1) != 1)
			die("write");
		sent += byte;
	}
	report("pingpong_1000", turn_until(hops), count, sent);
}

int main(void)
{
	one_pair(200000);
	ring(1000, 100, 200000);
	return 0;
}
