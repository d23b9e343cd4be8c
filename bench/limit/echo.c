/* SPDX-License-Identifier: MIT */
/* The limit of a TCP echo server: epoll_wait, read and write, no Lua; and the clients that every server is measured with.
 *
 * Way:   echo: for each load, listen -> popen "$BENCH_CLIENT client PORT CONNECTIONS SIZE MESSAGES" -> serve until all have
 *        hung up -> our own CPU time, per message
 *        echo latency: the same with "$BENCH_CLIENT latency PORT ROUNDS", asleep and spinning -> what the client has seen
 * Keep:  a client checks what comes back. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { MAX_EVENTS = 512, MAX_SIZE = 65536, ROUND_SIZE = 64 };

static char buf[MAX_SIZE], want[MAX_SIZE];

static void check(int ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	exit(1);
}

static void watch(int epfd, int fd)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.fd = fd};
	check(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) == 0, "epoll_ctl");
}

static double now_ns(clockid_t clock)
{
	struct timespec ts;
	clock_gettime(clock, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

/* ---- clients ---- */

static int dial(int port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	check(fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0, "connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return fd;
}

static void put(int fd, int size)
{
	check(write(fd, want, (size_t)size) == size, "client write");
}

static void client(int port, int connections, int size, long messages)
{
	struct epoll_event events[MAX_EVENTS];
	int epfd = epoll_create1(0), *have = calloc(4096, sizeof *have), open = connections;
	long begun = connections;
	for (int i = 0; i < connections; i++) {
		int fd = dial(port);
		watch(epfd, fd);
		put(fd, size);
	}
	while (open > 0) {
		int n = epoll_wait(epfd, events, MAX_EVENTS, -1);
		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;
			ssize_t got = read(fd, buf, (size_t)(size - have[fd]));
			check(got > 0 && !memcmp(buf, want + have[fd], (size_t)got), "client read");
			have[fd] += (int)got;
			if (have[fd] < size)
				continue;
			have[fd] = 0;
			if (begun < messages) {
				begun++;
				put(fd, size);
			} else {
				close(fd);
				open--;
			}
		}
	}
	puts("fine");
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

/* The median time of a message to come back, on one connection. */
static void latency(int port, int rounds)
{
	int fd = dial(port);
	double *times = calloc((size_t)rounds, sizeof *times);
	for (int i = 0; i < rounds; i++) {
		double begin = now_ns(CLOCK_MONOTONIC);
		put(fd, ROUND_SIZE);
		check(read(fd, buf, sizeof buf) == ROUND_SIZE && !memcmp(buf, want, ROUND_SIZE), "client read");
		times[i] = now_ns(CLOCK_MONOTONIC) - begin;
	}
	qsort(times, (size_t)rounds, sizeof *times, by_value);
	printf("fine %.0f\n", times[rounds / 2]);
}

/* ---- server ---- */

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

static FILE *start(const char *kind, int port, const char *arguments)
{
	char command[512];
	const char *program = getenv("BENCH_CLIENT");
	check(program != NULL, "BENCH_CLIENT");
	snprintf(command, sizeof command, "%s %s %d %s", program, kind, port, arguments);
	FILE *pipe = popen(command, "r");
	check(pipe != NULL, "popen");
	return pipe;
}

/* What the client had to say after "fine". */
static double finish(FILE *pipe)
{
	double value = 0;
	char line[64] = "";
	check(fgets(line, sizeof line, pipe) && !strncmp(line, "fine", 4) && pclose(pipe) == 0, "client");
	sscanf(line, "fine %lf", &value);
	return value;
}

/* Serves until `connections` of them have come and gone. */
static void serve(int server, int connections, int timeout)
{
	struct epoll_event events[MAX_EVENTS];
	int open = 0, seen = 0, epfd = epoll_create1(EPOLL_CLOEXEC);
	watch(epfd, server);
	while (open || seen < connections) {
		int n = epoll_wait(epfd, events, MAX_EVENTS, timeout);
		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;
			if (fd == server) {
				fd = accept4(server, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
				if (fd >= 0)
					watch(epfd, fd), open++, seen++;
				continue;
			}
			ssize_t got = read(fd, buf, sizeof buf);
			if (got > 0)
				check(write(fd, buf, (size_t)got) == got, "server write");
			else
				close(fd), open--;
		}
	}
	close(server);
	close(epfd);
}

static void measure(const char *name, int connections, int size, long messages)
{
	int port, server = listen_at(&port);
	char arguments[64];
	snprintf(arguments, sizeof arguments, "%d %d %ld", connections, size, messages);
	double begin = now_ns(CLOCK_PROCESS_CPUTIME_ID);
	FILE *pipe = start("client", port, arguments);
	serve(server, connections, -1);
	double span = now_ns(CLOCK_PROCESS_CPUTIME_ID) - begin;
	finish(pipe);
	printf("%s %.1f\n", name, span / (double)messages);
}

static void measure_latency(const char *name, const char *rounds, int timeout)
{
	int port, server = listen_at(&port);
	FILE *pipe = start("latency", port, rounds);
	serve(server, 1, timeout);
	printf("%s %.0f\n", name, finish(pipe));
}

int main(int argc, char **argv)
{
	for (int i = 0; i < MAX_SIZE; i++)
		want[i] = (char)(i * 7);
	if (argc == 6 && !strcmp(argv[1], "client")) {
		client(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atol(argv[5]));
	} else if (argc == 4 && !strcmp(argv[1], "latency")) {
		latency(atoi(argv[2]), atoi(argv[3]));
	} else if (argc == 2 && !strcmp(argv[1], "latency")) {
		measure_latency("latency", "20000", -1);
		measure_latency("latency_spinning", "20000", 0);
	} else {
		measure("echo_50", 50, 64, 100000);
		measure("echo_500", 500, 64, 100000);
		measure("echo_16k", 50, 16384, 50000);
	}
	return 0;
}
