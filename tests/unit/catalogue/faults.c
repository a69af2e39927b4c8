/* Preloaded: the nth call that changes something below a folder kills the process, fails, or succeeds and says it failed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NOTHING, KILL, EIO_, ENOSPC_, EDQUOT_, LATE_EIO };

static char root[PATH_MAX];
static long at, seen;
static int kind, no_links;

void fault_arm(const char *folder, long nth, int what, int links_errno) {
    snprintf(root, sizeof root, "%s/", folder);
    at = nth, kind = what, no_links = links_errno, seen = 0;
}

long fault_seen(void) { return seen; }

static int below(const char *path) { return root[0] && path && !strncmp(path, root, strlen(root)); }

static int fd_below(int fd) {
    char name[64], path[PATH_MAX];
    if (!root[0]) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(name, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return below(path);
}

/* 0: go on; 1: fail, errno is set; 2: do it and then fail. `grows`: it may be refused for want of room. */
static int fault(int ours, int grows) {
    if (!ours || kind == NOTHING) return 0;
    if ((kind == ENOSPC_ || kind == EDQUOT_) && !grows) return 0;
    if (++seen != at) return 0;
    if (kind == KILL) kill(getpid(), SIGKILL);
    errno = kind == ENOSPC_ ? ENOSPC : kind == EDQUOT_ ? EDQUOT : EIO;
    return kind == LATE_EIO ? 2 : 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRAP(name, ours, grows, call)              \
    switch (fault(ours, grows)) {                  \
        case 1: return -1;                         \
        case 2: REAL(name) call; errno = EIO; return -1; \
    }                                              \
    return REAL(name) call;
#define LINKS(path) if (no_links && below(path)) { errno = no_links; return -1; }

#define OPENS (flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC))
#define MODE mode_t mode = 0; if (flags & O_CREAT) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
/* An open that succeeds and fails would only leak a descriptor. */
#define OPEN(name, ours, call) MODE if (OPENS && kind != LATE_EIO && fault(ours, flags & O_CREAT)) return -1; return REAL(name) call;
int open(const char *path, int flags, ...) { OPEN(open, below(path), (path, flags, mode)) }
int open64(const char *path, int flags, ...) { OPEN(open64, below(path), (path, flags, mode)) }
int openat(int dir, const char *path, int flags, ...) { OPEN(openat, below(path), (dir, path, flags, mode)) }
int openat64(int dir, const char *path, int flags, ...) { OPEN(openat64, below(path), (dir, path, flags, mode)) }

int link(const char *from, const char *to) { LINKS(to) WRAP(link, below(to), 1, (from, to)) }
int linkat(int a, const char *from, int b, const char *to, int flags) { LINKS(to) WRAP(linkat, below(to), 1, (a, from, b, to, flags)) }
int rename(const char *from, const char *to) { WRAP(rename, below(to), 1, (from, to)) }
int renameat(int a, const char *from, int b, const char *to) { WRAP(renameat, below(to), 1, (a, from, b, to)) }
int unlink(const char *path) { WRAP(unlink, below(path), 0, (path)) }
int unlinkat(int dir, const char *path, int flags) { WRAP(unlinkat, below(path) || fd_below(dir), 0, (dir, path, flags)) }
int rmdir(const char *path) { WRAP(rmdir, below(path), 0, (path)) }
int mkdir(const char *path, mode_t mode) { WRAP(mkdir, below(path), 1, (path, mode)) }
int chmod(const char *path, mode_t mode) { WRAP(chmod, below(path), 0, (path, mode)) }
int fchmod(int fd, mode_t mode) { WRAP(fchmod, fd_below(fd), 0, (fd, mode)) }
int fchmodat(int dir, const char *path, mode_t mode, int flags) { WRAP(fchmodat, below(path), 0, (dir, path, mode, flags)) }
int fsync(int fd) { WRAP(fsync, fd_below(fd), 1, (fd)) }
int fdatasync(int fd) { WRAP(fdatasync, fd_below(fd), 1, (fd)) }
int ftruncate(int fd, off_t size) { WRAP(ftruncate, fd_below(fd), 1, (fd, size)) }
/* A write that succeeds and fails is a torn one: half of it is there. */
ssize_t write(int fd, const void *data, size_t size) {
    switch (fault(fd_below(fd), 1)) {
        case 1: return -1;
        case 2: REAL(write)(fd, data, size / 2); errno = EIO; return -1;
    }
    return REAL(write)(fd, data, size);
}
