/* SPDX-License-Identifier: MIT */
/* The limit of messages between threads, to and fro: two eventfds, and, with a CPU for each thread, two words in memory
 * that are looked at without a pause. `cross`, or `cross two`.
 *
 * Keep:  `count` is handed over with the message, and belongs to who has it. */
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../threads.h"

typedef struct Side {
	int efd;
	_Alignas(64) atomic_long told;
} Side;

static Side sides[2];
static int two_cpus, spin;
static long rounds, count;

static void tell(Side *to, long n)
{
	uint64_t one = 1;
	if (spin)
		atomic_store_explicit(&to->told, n, memory_order_release);
	else if (write(to->efd, &one, sizeof one) != sizeof one)
		die("write");
}

static void wait_for(Side *me, long n)
{
	uint64_t got;
	if (!spin && (read(me->efd, &got, sizeof got) != sizeof got || got != 1))
		die("read");
	while (spin && atomic_load_explicit(&me->told, memory_order_acquire) != n)
		;
}

static void *answer(void *unused)
{
	(void)unused;
	if (two_cpus)
		use_cpu("BENCH_OTHER_CPU");
	for (long i = 1; i <= rounds; i++) {
		wait_for(&sides[1], i);
		count++;
		tell(&sides[0], i);
	}
	return NULL;
}

static void report(const char *name, long how_many, int how)
{
	rounds = how_many;
	spin = how;
	count = sides[0].told = sides[1].told = 0;
	pthread_t thread = start_thread(answer, NULL);
	double begin = now_ns();
	for (long i = 1; i <= rounds; i++) {
		count++;
		tell(&sides[1], i);
		wait_for(&sides[0], i);
	}
	double span = now_ns() - begin;
	pthread_join(thread, NULL);
	if (count != 2 * rounds)
		die("messages lost");
	printf("%s %.1f\n", name, span / (double)count);
}

int main(int argc, char **argv)
{
	two_cpus = argc > 1 && !strcmp(argv[1], "two");
	if (two_cpus)
		use_cpu("BENCH_CPU");
	for (int i = 0; i < 2; i++)
		if ((sides[i].efd = eventfd(0, EFD_CLOEXEC)) < 0)
			die("eventfd");
	report("cross", two_cpus ? 30000 : 100000, 0);
	if (two_cpus)
		report("cross_spinning", 1000000, 1);
	return 0;
}
