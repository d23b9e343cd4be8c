/* SPDX-License-Identifier: MIT
 * Files: the calls that block, for a thread of the pool.
 *
 * Way      file.c has chosen the op's leg -> aio__file_call -> the kernel's answer
 * Threads  any, while no other looks at the op. The home thread may be looking at its file meanwhile. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

static int64_t ns_of(struct timespec t) { return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec; }

static const char *type_of(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFREG: return "file";
    case S_IFDIR: return "directory";
    case S_IFBLK: return "block";
    case S_IFCHR: return "char";
    case S_IFIFO: return "fifo";
    case S_IFSOCK: return "socket";
    default: return "other";
  }
}

static int64_t call_stat(AioFileOp *op) {
  struct stat st;
  if (fstat(op->leg_fd, &st) < 0) return -errno;
  op->stat = (AioFileStat){.size = st.st_size, .blocks = st.st_blocks, .blksize = st.st_blksize, .ino = (int64_t)st.st_ino,
    .dev = (int64_t)st.st_dev, .nlink = (int64_t)st.st_nlink, .mode = st.st_mode & 07777, .uid = st.st_uid, .gid = st.st_gid,
    .type = type_of(st.st_mode), .atime = ns_of(st.st_atim), .mtime = ns_of(st.st_mtim), .ctime = ns_of(st.st_ctim)};
  return 0;
}

/* Opened without waiting for the other end of a FIFO, which is then refused: it has no offsets, and is a stream's. The
 * home thread may be looking at the file, which gets all this when the op is over. */
static int64_t call_open(AioFileOp *op) {
  enum { ONCE = O_CREAT | O_EXCL | O_TRUNC, KEPT = O_ACCMODE | O_APPEND | O_NOATIME };
  struct stat st, same;
  int fd = open(op->path, op->flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, op->mode);
  if (fd < 0) return errno == ENXIO ? -ESPIPE : -errno;
  int rc = fstat(fd, &st) < 0 ? -errno : S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode) ? -ESPIPE : 0;
  if (rc < 0) return close(fd), rc;
  fcntl(fd, F_SETFL, op->flags & KEPT);
  op->stage = S_ISREG(st.st_mode);
  op->leg_fd = -1;
  if (!aio__file_goes_direct(op->file)) return fd;
  int direct = open(op->path, (op->flags & ~ONCE) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_DIRECT);
  if (direct < 0) return fd;
  bool usable = fstat(direct, &same) == 0 && same.st_ino == st.st_ino && same.st_dev == st.st_dev;
  if (usable && fcntl(direct, F_SETFL, (op->flags & KEPT) | O_DIRECT) == 0)
    op->leg_fd = direct;
  else
    close(direct);
  return fd;
}

int64_t aio__file_call(AioFileOp *op) {
  int64_t n = 0;
  switch (op->kind) {
    case AIO_FILE_OPEN: return call_open(op);
    case AIO_FILE_READ: n = pread(op->leg_fd, op->leg_buf, op->leg_len, op->leg_offset); break;
    case AIO_FILE_WRITE: n = pwrite(op->leg_fd, op->leg_buf, op->leg_len, op->leg_offset); break;
    case AIO_FILE_SYNC: n = fsync(op->leg_fd); break;
    case AIO_FILE_DATASYNC: n = fdatasync(op->leg_fd); break;
    case AIO_FILE_TRUNCATE: n = ftruncate(op->leg_fd, op->offset); break;
    case AIO_FILE_STAT: return call_stat(op);
  }
  return n < 0 ? -errno : n;
}
