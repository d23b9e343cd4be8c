/* SPDX-License-Identifier: MIT */
/* The limit of a TCP echo server: epoll_wait, read and write, no Lua; and the client that every server is measured with.
 *
 * Way:   echo: for each load, listen -> fork, exec "echo client PORT CONNECTIONS SIZE MESSAGES" -> serve until all have
 *        hung up -> our own CPU time, per message
 * Keep:  server and client have a CPU each where there are two; the client checks what comes back. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_EVENTS = 512, MAX_SIZE = 65536 };

static char buf[MAX_SIZE], want[MAX_SIZE];

static void check(int ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	exit(1);
}

static void use_cpu(int n)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(n, &set);
	sched_setaffinity(0, sizeof set, &set);
}

static void watch(int epfd, int fd)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.fd = fd};
	check(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) == 0, "epoll_ctl");
}

/* ---- client ---- */

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

static int client(int port, int connections, int size, long messages)
{
	struct epoll_event events[MAX_EVENTS];
	int epfd = epoll_create1(0), *have = calloc(4096, sizeof *have), open = connections;
	long begun = connections;
	use_cpu(1);
	for (int i = 0; i < size; i++)
		want[i] = (char)(i * 7);
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
	return 0;
}

/* ---- server ---- */

static double cpu_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static void start_client(const char *self, int port, int connections, int size, long messages)
{
	char args[4][24];
	long values[4] = {port, connections, size, messages};
	for (int i = 0; i < 4; i++)
		snprintf(args[i], sizeof args[i], "%ld", values[i]);
	if (fork() == 0) {
		execl(self, self, "client", args[0], args[1], args[2], args[3], (char *)NULL);
		_exit(1);
	}
}

static void serve(const char *self, const char *name, int connections, int size, long messages)
{
	struct epoll_event events[MAX_EVENTS];
	struct sockaddr_in at = {.sin_family = AF_INET};
	socklen_t len = sizeof at;
	int one = 1, open = 0, seen = 0, status, epfd = epoll_create1(EPOLL_CLOEXEC);
	int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	check(bind(server, (struct sockaddr *)&at, len) == 0 && listen(server, 1024) == 0, "listen");
	getsockname(server, (struct sockaddr *)&at, &len);
	setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	watch(epfd, server);
	start_client(self, ntohs(at.sin_port), connections, size, messages);
	double begin = cpu_ns();
	while (open || seen < connections) {
		int n = epoll_wait(epfd, events, MAX_EVENTS, -1);
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
	double span = cpu_ns() - begin;
	wait(&status);
	check(status == 0, "client");
	close(server);
	close(epfd);
	printf("%s %.1f\n", name, span / (double)messages);
}

int main(int argc, char **argv)
{
	if (argc > 5)
		return client(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atol(argv[5]));
	use_cpu(0);
	serve(argv[0], "echo_50", 50, 64, 100000);
	serve(argv[0], "echo_500", 500, 64, 100000);
	serve(argv[0], "echo_16k", 50, 16384, 50000);
	return 0;
}
