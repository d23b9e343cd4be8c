/* SPDX-License-Identifier: MIT */
/* What the C programs with two threads share. */
#ifndef THREADS_H
#define THREADS_H

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline void die(const char *what)
{
	perror(what);
	exit(1);
}

static inline double now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

/* Keeps the calling thread on the CPU that this environment variable names; there must be two for `cross two`. */
static inline void use_cpu(const char *variable)
{
	cpu_set_t set;
	const char *cpu = getenv(variable);
	CPU_ZERO(&set);
	CPU_SET(cpu ? atoi(cpu) : CPU_SETSIZE - 1, &set);
	if (sched_setaffinity(0, sizeof set, &set) < 0)
		die(variable);
}

static inline pthread_t start_thread(void *(*fn)(void *), void *opaque)
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, fn, opaque) != 0)
		die("pthread_create");
	return thread;
}

#endif
