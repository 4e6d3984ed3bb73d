/* Ends this process at one of the system calls that change files below a directory, as a power cut would.
 *
 *   cc -shared -fPIC -O2 -o cut.so cut.c -ldl;  LD_PRELOAD=cut.so PROGRAM, which calls cut_arm()
 *
 * Counted are, in the order in which they happen: every call that makes, writes, names, removes or changes a
 * file below `root`, every fsync there, every connection to an Internet address and every start of another program
 * (what the program asks of others lies between two of them). At the call number `at` the process ends by SIGKILL; what it left is what
 * the next run finds. A system call that is not made through the C library is not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    BEFORE = 0, /* the call does not happen */
    HALF = 1,   /* of a write half of the octets arrive */
    LOST = 2,   /* the call does not happen, and files that were written and not flushed are empty */
};

enum { FILES_MAX = 64, HIGH = 500 };

static char root[PATH_MAX];
static size_t root_len;
static pid_t armed; /* a child of ours (a hook, before its exec) is not counted */
static long count, cut_at;
static int cut_how, trace = -1;
static int unflushed[FILES_MAX]; /* descriptors of our own */
static int unflushed_count;

static int below(const char *path)
{
    return strncmp(path, root, root_len) == 0 && (path[root_len] == '/' || path[root_len] == '\0');
}

static int active(void)
{
    return armed != 0 && armed == getpid();
}

/* The absolute path of `path` at the descriptor `at`; 1 when it is below the root. */
static int resolve(int at, const char *path, char out[PATH_MAX])
{
    char link[64];
    ssize_t len = 0;
    if (path && path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return below(out);
    }
    if (at == AT_FDCWD) {
        if (!getcwd(out, PATH_MAX))
            return 0;
        len = (ssize_t)strlen(out);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        len = readlink(link, out, PATH_MAX - 1);
        if (len < 0)
            return 0;
        out[len] = '\0';
    }
    if (path && path[0])
        snprintf(out + len, (size_t)(PATH_MAX - len), "/%s", path);
    return below(out);
}

static void say(const char *what, const char *first, const char *second, size_t size)
{
    char line[2 * PATH_MAX + 100];
    int len = snprintf(line, sizeof line, "%ld\t%s\t%zu\t%s\t%s\n", count, what, size, first, second);
    if (syscall(SYS_write, trace, line, (size_t)len) != len)
        abort();
}

static void lose(void)
{
    for (int i = 0; i < unflushed_count; i++)
        syscall(SYS_ftruncate, unflushed[i], 0);
}

static void end(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

/* Counts a call, which is about to happen; does not return from the one at which the process ends, but for a
   write that is to happen by half: that returns 1. */
static int gate(const char *what, const char *first, const char *second, size_t size)
{
    count++;
    if (trace >= 0)
        say(what, first, second, size);
    if (count != cut_at)
        return 0;
    if (cut_how == HALF && size > 1)
        return 1;
    if (cut_how == LOST)
        lose();
    end();
    return 0;
}

static int same_file(int a, int b)
{
    struct stat x, y;
    return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static void note_written(int fd)
{
    for (int i = 0; i < unflushed_count; i++)
        if (same_file(unflushed[i], fd))
            return;
    if (unflushed_count == FILES_MAX)
        abort();
    unflushed[unflushed_count++] = fcntl(fd, F_DUPFD_CLOEXEC, HIGH);
}

static void note_flushed(int fd)
{
    for (int i = 0; i < unflushed_count; i++)
        if (same_file(unflushed[i], fd)) {
            close(unflushed[i]);
            unflushed[i] = unflushed[--unflushed_count];
            return;
        }
}

/* From now on calls below `directory` are counted. at: 0 for never. trace_fd: each call is a line there: number,
   name, size of a write, path, second path; -1 for none. */
void cut_arm(const char *directory, long at, int how, int trace_fd)
{
    snprintf(root, sizeof root, "%s", directory);
    root_len = strlen(root);
    count = 0;
    cut_at = at;
    cut_how = how;
    trace = trace_fd;
    armed = getpid();
}

#define NEXT(type, name, params)                                                                                     \
    static type(*real) params;                                                                                       \
    if (!real)                                                                                                       \
    real = (type(*) params)dlsym(RTLD_NEXT, #name)

static void opening(int at, const char *path, int flags)
{
    char full[PATH_MAX];
    struct stat info;
    if (!active() || !(flags & (O_CREAT | O_TRUNC)) || !resolve(at, path, full))
        return;
    /* a lock file that is there already does not change */
    if (lstat(full, &info) == 0 && !(flags & (O_EXCL | O_TRUNC)))
        return;
    gate("create", full, "", 0);
}

#define OPEN(name)                                                                                                   \
    int name(const char *path, int flags, ...)                                                                       \
    {                                                                                                                \
        NEXT(int, name, (const char *, int, ...));                                                                   \
        va_list more;                                                                                                \
        va_start(more, flags);                                                                                       \
        unsigned mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, unsigned) : 0;                                \
        va_end(more);                                                                                                \
        opening(AT_FDCWD, path, flags);                                                                              \
        return real(path, flags, mode);                                                                              \
    }

#define OPENAT(name)                                                                                                 \
    int name(int at, const char *path, int flags, ...)                                                               \
    {                                                                                                                \
        NEXT(int, name, (int, const char *, int, ...));                                                              \
        va_list more;                                                                                                \
        va_start(more, flags);                                                                                       \
        unsigned mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, unsigned) : 0;                                \
        va_end(more);                                                                                                \
        opening(at, path, flags);                                                                                    \
        return real(at, path, flags, mode);                                                                          \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

/* 1 when half of it is to be written and then the end. */
static int writing(int fd, size_t size)
{
    char full[PATH_MAX];
    int half = 0;
    if (active() && resolve(fd, "", full)) {
        half = gate("write", full, "", size);
        note_written(fd);
    }
    return half;
}

ssize_t write(int fd, const void *data, size_t size)
{
    NEXT(ssize_t, write, (int, const void *, size_t));
    if (writing(fd, size)) {
        real(fd, data, size / 2);
        end();
    }
    return real(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    NEXT(ssize_t, pwrite64, (int, const void *, size_t, off64_t));
    if (writing(fd, size)) {
        real(fd, data, size / 2, at);
        end();
    }
    return real(fd, data, size, at);
}

ssize_t writev(int fd, const struct iovec *parts, int number)
{
    NEXT(ssize_t, writev, (int, const struct iovec *, int));
    if (writing(fd, number > 0 ? parts[0].iov_len : 0)) {
        real(fd, parts, (number + 1) / 2);
        end();
    }
    return real(fd, parts, number);
}

/* A call with one path at a directory's descriptor, and one with a descriptor alone. */
ssize_t sendfile64(int to, int from, off64_t *at, size_t size)
{
    NEXT(ssize_t, sendfile64, (int, int, off64_t *, size_t));
    if (writing(to, size)) {
        real(to, from, at, size / 2);
        end();
    }
    return real(to, from, at, size);
}

static void path_call(const char *what, int at, const char *path)
{
    char full[PATH_MAX];
    if (active() && resolve(at, path, full))
        gate(what, full, "", 0);
}

static void pair_call(const char *what, int from, const char *old, int to, const char *new)
{
    char first[PATH_MAX], second[PATH_MAX];
    int in = active() && resolve(from, old, first);
    if (active() && (resolve(to, new, second) || in))
        gate(what, first, second, 0);
}

/* 0 when a call would change nothing: the mode is so already, or the path is not there. */
static int changes(const char *what, int at, const char *path, mode_t mode)
{
    char full[PATH_MAX];
    struct stat info;
    if (!active() || !resolve(at, path, full))
        return 0;
    if (strcmp(what, "mkdir") == 0)
        return lstat(full, &info) != 0;
    return lstat(full, &info) == 0 && (strcmp(what, "chmod") != 0 || (info.st_mode & 07777) != mode);
}

#define ONE(name, what, at, path, params, args)                                                                      \
    int name params                                                                                                  \
    {                                                                                                                \
        NEXT(int, name, params);                                                                                     \
        if (changes(what, at, path, MODE))                                                                           \
            path_call(what, at, path);                                                                               \
        return real args;                                                                                            \
    }

#define MODE 0
ONE(unlink, "unlink", AT_FDCWD, path, (const char *path), (path))
ONE(unlinkat, "unlink", at, path, (int at, const char *path, int flags), (at, path, flags))
ONE(rmdir, "rmdir", AT_FDCWD, path, (const char *path), (path))
ONE(mkdir, "mkdir", AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
ONE(mkdirat, "mkdir", at, path, (int at, const char *path, mode_t mode), (at, path, mode))
#undef MODE
#define MODE mode
ONE(chmod, "chmod", AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
ONE(fchmod, "chmod", fd, "", (int fd, mode_t mode), (fd, mode))
ONE(fchmodat, "chmod", at, path, (int at, const char *path, mode_t mode, int flags), (at, path, mode, flags))
#undef MODE
#define MODE 0
ONE(chown, "chown", AT_FDCWD, path, (const char *path, uid_t uid, gid_t gid), (path, uid, gid))
ONE(lchown, "chown", AT_FDCWD, path, (const char *path, uid_t uid, gid_t gid), (path, uid, gid))
ONE(fchown, "chown", fd, "", (int fd, uid_t uid, gid_t gid), (fd, uid, gid))
ONE(fchownat, "chown", at, path, (int at, const char *path, uid_t uid, gid_t gid, int flags),
    (at, path, uid, gid, flags))
ONE(truncate, "truncate", AT_FDCWD, path, (const char *path, off_t size), (path, size))
ONE(truncate64, "truncate", AT_FDCWD, path, (const char *path, off64_t size), (path, size))
ONE(ftruncate, "truncate", fd, "", (int fd, off_t size), (fd, size))
ONE(ftruncate64, "truncate", fd, "", (int fd, off64_t size), (fd, size))

int symlink(const char *target, const char *path)
{
    NEXT(int, symlink, (const char *, const char *));
    path_call("symlink", AT_FDCWD, path);
    return real(target, path);
}

int symlinkat(const char *target, int at, const char *path)
{
    NEXT(int, symlinkat, (const char *, int, const char *));
    path_call("symlink", at, path);
    return real(target, at, path);
}

#define TWO(name, what, from, to, params, args)                                                                      \
    int name params                                                                                                  \
    {                                                                                                                \
        NEXT(int, name, params);                                                                                     \
        pair_call(what, from, old, to, new);                                                                         \
        return real args;                                                                                            \
    }

TWO(rename, "rename", AT_FDCWD, AT_FDCWD, (const char *old, const char *new), (old, new))
TWO(renameat, "rename", from, to, (int from, const char *old, int to, const char *new), (from, old, to, new))
TWO(renameat2, "rename", from, to, (int from, const char *old, int to, const char *new, unsigned flags),
    (from, old, to, new, flags))
TWO(link, "link", AT_FDCWD, AT_FDCWD, (const char *old, const char *new), (old, new))
TWO(linkat, "link", from, to, (int from, const char *old, int to, const char *new, int flags),
    (from, old, to, new, flags))

/* The disk itself is not asked: what a cut leaves is decided here. */
static int flushing(int fd)
{
    char full[PATH_MAX];
    if (!active() || !resolve(fd, "", full))
        return 0;
    gate("fsync", full, "", 0);
    note_flushed(fd);
    return 1;
}

int fsync(int fd)
{
    NEXT(int, fsync, (int));
    return flushing(fd) ? 0 : real(fd);
}

int fdatasync(int fd)
{
    NEXT(int, fdatasync, (int));
    return flushing(fd) ? 0 : real(fd);
}

/* What a child does (a hook) lies behind the pipe that Python makes for it. */
int pipe2(int ends[2], int flags)
{
    NEXT(int, pipe2, (int[2], int));
    if (active())
        gate("start", "", "", 0);
    return real(ends, flags);
}

int connect(int fd, const struct sockaddr *to, socklen_t size)
{
    NEXT(int, connect, (int, const struct sockaddr *, socklen_t));
    if (active() && (to->sa_family == AF_INET || to->sa_family == AF_INET6))
        gate("connect", "", "", 0);
    return real(fd, to, size);
}
