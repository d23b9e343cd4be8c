/* SPDX-License-Identifier: MIT */
/* Takes a file out of the page cache, and looks whether it is out: on a file system in memory it stays. */
#ifndef CACHE_H
#define CACHE_H

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* How many pages of the file are in the cache, or -1. */
static inline long cache_pages(int fd, size_t size)
{
	size_t n = (size + 4095) / 4096;
	long count = 0;
	unsigned char *there = malloc(n);
	void *at = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	if (!there || at == MAP_FAILED || mincore(at, size, there) < 0)
		count = -1;
	for (size_t i = 0; count >= 0 && i < n; i++)
		count += there[i] & 1;
	if (at != MAP_FAILED)
		munmap(at, size);
	free(there);
	return count;
}

/* NULL, or why it is not out. What has not been written to the disk yet would stay, too. */
static inline const char *cache_drop(const char *path)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return "cannot open the file";
	const char *why = NULL;
	if (fdatasync(fd) < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
		why = "the file cannot be taken out of the page cache";
	else if (cache_pages(fd, (size_t)st.st_size) != 0)
		why = "the file stays in memory: is it on a disk?";
	close(fd);
	return why;
}

#endif
