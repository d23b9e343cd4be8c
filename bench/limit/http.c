/* SPDX-License-Identifier: MIT */
/* The limit of an HTTP server: epoll_wait, read, look for the end of the head, write; no Lua.
 *
 * Way:   for each load, listen -> popen "$BENCH_WRK ..." -> serve until all have hung up -> our own CPU time, per request
 * Keep:  wrk opens a connection to see whether there is a server, closes it, and then opens those that it uses. It checks
 *        the answers; its count is compared with ours. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { MAX_EVENTS = 512, MAX_HEAD = 8192, CONNECTIONS = 64 };

typedef struct Connection {
	int fd;
	size_t have;
	char head[MAX_HEAD];
} Connection;

static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!";
static int epfd, open_now, seen;
static long served;

static void check(int ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	exit(1);
}

static double cpu_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static void watch(int fd, void *ptr)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = ptr};
	check(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) == 0, "epoll_ctl");
}

static int listen_at(int *port)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	socklen_t len = sizeof at;
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	check(bind(fd, (struct sockaddr *)&at, len) == 0 && listen(fd, 1024) == 0, "listen");
	check(getsockname(fd, (struct sockaddr *)&at, &len) == 0, "getsockname");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	*port = ntohs(at.sin_port);
	return fd;
}

static void take(int server)
{
	int fd = accept4(server, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return;
	Connection *c = malloc(sizeof *c);
	check(c != NULL, "malloc");
	c->fd = fd;
	c->have = 0;
	watch(fd, c);
	open_now++;
	seen++;
}

static void drop(Connection *c)
{
	close(c->fd);
	free(c);
	open_now--;
}

/* Answers what is complete; 0: it is no request. */
static int parse(Connection *c)
{
	char *at = c->head, *end;
	size_t left = c->have;
	while ((end = memmem(at, left, "\r\n\r\n", 4))) {
		if (memcmp(at, "GET ", 4) != 0)
			return 0;
		served++;
		check(write(c->fd, answer, sizeof answer - 1) == sizeof answer - 1, "write");
		left -= (size_t)(end + 4 - at);
		at = end + 4;
	}
	memmove(c->head, at, left);
	c->have = left;
	return 1;
}

static void attend(Connection *c)
{
	ssize_t got = read(c->fd, c->head + c->have, MAX_HEAD - c->have);
	if (got > 0) {
		c->have += (size_t)got;
		if (parse(c))
			return;
	}
	drop(c);
}

static void serve(int server)
{
	struct epoll_event events[MAX_EVENTS];
	epfd = epoll_create1(EPOLL_CLOEXEC);
	watch(server, NULL);
	open_now = seen = 0;
	served = 0;
	while (open_now || seen <= CONNECTIONS) {
		int n = epoll_wait(epfd, events, MAX_EVENTS, -1);
		for (int i = 0; i < n; i++)
			if (events[i].data.ptr)
				attend(events[i].data.ptr);
			else
				take(server);
	}
	close(server);
	close(epfd);
}

/* What wrk says, which must be fine. */
static void finish(FILE *pipe)
{
	char line[256], last[256] = "";
	long counted = -1;
	while (fgets(line, sizeof line, pipe)) {
		sscanf(line, "fine %ld", &counted);
		memcpy(last, line, sizeof last);
	}
	pclose(pipe);
	if (counted >= 0 && served >= counted && served <= counted + CONNECTIONS)
		return;
	fprintf(stderr, "%ld requests served, wrk says: %s\n", served, last);
	exit(1);
}

static double load(int seconds, const char *more)
{
	char command[512];
	const char *wrk = getenv("BENCH_WRK");
	int port, server = listen_at(&port);
	check(wrk != NULL, "BENCH_WRK");
	snprintf(command, sizeof command, "%s -d%ds http://127.0.0.1:%d/ %s", wrk, seconds, port, more);
	double begin = cpu_ns();
	FILE *pipe = popen(command, "r");
	check(pipe != NULL, "popen");
	serve(server);
	double span = cpu_ns() - begin;
	finish(pipe);
	return span / (double)served;
}

int main(void)
{
	load(1, "-- check");
	printf("http %.1f\n", load(2, ""));
	return 0;
}
