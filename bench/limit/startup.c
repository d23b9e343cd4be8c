/* SPDX-License-Identifier: MIT */
/* Prints what require of a module adds to the run time of a bare lua5.4, as the difference of two medians.
 *
 * Way:   startup <module> -> bare, module, bare, module, ... -> medians */
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

enum { RUNS = 100 };

extern char **environ;

static double now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static double run(char *code)
{
	char *argv[] = {"lua5.4", "-e", code, NULL};
	pid_t pid;
	int status;
	double begin = now_ns();
	if (posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ) != 0)
		exit(1);
	if (waitpid(pid, &status, 0) != pid || status != 0)
		exit(1);
	return now_ns() - begin;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *times)
{
	qsort(times, RUNS, sizeof *times, by_value);
	return times[RUNS / 2];
}

int main(int argc, char **argv)
{
	static double bare[RUNS], with[RUNS];
	char code[128];
	if (argc != 2)
		return 2;
	snprintf(code, sizeof code, "assert(require '%s')", argv[1]);
	for (int i = 0; i < RUNS; i++) {
		bare[i] = run("");
		with[i] = run(code);
	}
	printf("require %.0f\n", median(with) - median(bare));
	return 0;
}
