/* SPDX-License-Identifier: MIT */
/* The limit of pool jobs: a queue with a lock and a condition variable, an eventfd back, no Lua. One worker, for there is
 * one CPU: four take four times as long.
 *
 * Way:     submit -> work: run -> the list of finished jobs -> eventfd, if that list was empty -> wait_for_finished
 *          -> submit it again
 * Threads: everything below `lock` belongs to who holds it. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { IN_FLIGHT = 256 };

typedef struct Job {
	struct Job *next;
	long in, out;
} Job;

typedef struct List {
	Job *head, **tail;
} List;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work_to_do = PTHREAD_COND_INITIALIZER;
static List queued = {.tail = &queued.head}, finished = {.tail = &finished.head};
static int idle; /* the worker waits, and nobody has called it yet */
static int efd;

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

static void put(List *list, Job *job)
{
	job->next = NULL;
	*list->tail = job;
	list->tail = &job->next;
}

static Job *take(List *list)
{
	Job *job = list->head;
	if (!(list->head = job->next))
		list->tail = &list->head;
	return job;
}

static void wake_home(void)
{
	uint64_t one = 1;
	if (write(efd, &one, sizeof one) != sizeof one)
		die("write");
}

static void *work(void *unused)
{
	(void)unused;
	pthread_mutex_lock(&lock);
	for (;;) {
		while (!queued.head) {
			idle = 1;
			pthread_cond_wait(&work_to_do, &lock);
		}
		Job *job = take(&queued);
		pthread_mutex_unlock(&lock);
		job->out = job->in + 1;
		pthread_mutex_lock(&lock);
		int first = !finished.head;
		put(&finished, job);
		if (first) {
			pthread_mutex_unlock(&lock);
			wake_home();
			pthread_mutex_lock(&lock);
		}
	}
	return NULL;
}

static void submit(Job *job, long in)
{
	job->in = in;
	pthread_mutex_lock(&lock);
	put(&queued, job);
	int call = idle;
	idle = 0;
	pthread_mutex_unlock(&lock);
	if (call)
		pthread_cond_signal(&work_to_do);
}

static Job *wait_for_finished(void)
{
	uint64_t count;
	if (read(efd, &count, sizeof count) != sizeof count)
		die("read");
	pthread_mutex_lock(&lock);
	Job *jobs = finished.head;
	finished = (List){.tail = &finished.head};
	pthread_mutex_unlock(&lock);
	return jobs;
}

/* Runs `count` jobs, `depth` at a time, and sums up what they made of 1, 2, 3, ... */
static double run(long count, int depth)
{
	static Job jobs[IN_FLIGHT];
	long begun = 0, ended = 0, sum = 0;
	double begin = now_ns();
	while (begun < depth) {
		begun++;
		submit(&jobs[begun - 1], begun);
	}
	while (ended < count)
		for (Job *job = wait_for_finished(), *next; job; job = next) {
			next = job->next;
			sum += job->out;
			ended++;
			if (begun < count)
				submit(job, ++begun);
		}
	double span = now_ns() - begin;
	if (sum != count * (count + 3) / 2)
		die("sum of the results");
	return span / (double)count;
}

int main(void)
{
	pthread_t thread;
	if ((efd = eventfd(0, EFD_CLOEXEC)) < 0)
		die("eventfd");
	if (pthread_create(&thread, NULL, work, NULL) != 0)
		die("pthread_create");
	run(10000, IN_FLIGHT);
	printf("pool_256 %.1f\n", run(2000000, IN_FLIGHT));
	printf("pool_1 %.1f\n", run(100000, 1));
	return 0;
}
