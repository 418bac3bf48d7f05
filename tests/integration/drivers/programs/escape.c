// Tries to get out of where it runs. Each argument is an attempt, `name` or `name:argument:argument`; of each, a line
// says how it went: "succeeded", the name of the error, or "signal N" if trying it was the end of whoever tried.
// Each is made by a child process, in namespaces of its own if it can have them: outside a sandbox, no harm is done.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int result(long value) { return value < 0 ? errno : 0; }

static int open_it(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0) return errno;
    char byte;
    if ((flags & O_ACCMODE) == O_RDONLY && read(fd, &byte, 1) < 0) return errno;
    return 0;
}

static int inet(int type, const char *host, const char *port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, host, &to.sin_addr);
    int fd = socket(AF_INET, type, 0);
    if (fd < 0) return errno;
    struct timeval patience = {.tv_sec = 2};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0) return errno;
    return type == SOCK_DGRAM ? result(send(fd, "x", 1, 0)) : 0;
}

static int local(const char *name, int abstract) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path + abstract, name, sizeof to.sun_path - 2);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) return errno;
    return result(connect(fd, (struct sockaddr *)&to, offsetof(struct sockaddr_un, sun_path) + abstract + strlen(name)));
}

static int read_memory(pid_t pid) {
    char here[8];
    struct iovec ours = {here, sizeof here}, theirs = {(void *)0x400000, sizeof here};
    return process_vm_readv(pid, &ours, 1, &theirs, 1, 0) < 0 && errno != EFAULT ? errno : 0;
}

static int bind_port(void) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return fd < 0 ? errno : result(bind(fd, (struct sockaddr *)&at, sizeof at));
}

static int namespace_by_clone(int flag) {
    long pid = syscall(SYS_clone, flag | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    if (pid > 0) waitpid(pid, NULL, 0);
    return result(pid);
}

static int namespace_by_clone3(int flag) {
    struct { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls; } how = {0};
    how.flags = flag;
    how.exit_signal = SIGCHLD;
    long pid = syscall(SYS_clone3, &how, sizeof how);
    if (pid == 0) _exit(0);
    if (pid > 0) waitpid(pid, NULL, 0);
    return result(pid);
}

static int exhaust_files(void) {
    int count = 0;
    while (dup(2) >= 0) count++;
    printf("files %d\n", count);
    return errno;
}

static int setuid_program(const char *self) {
    // As whoever owns a program that says so; ours is our own, so nothing may come of it.
    int from = open(self, O_RDONLY), to = open("setuid-copy", O_WRONLY | O_CREAT | O_TRUNC, 0755);
    char buffer[65536];
    ssize_t size;
    while ((size = read(from, buffer, sizeof buffer)) > 0) write(to, buffer, size);
    fchmod(to, 04755);
    close(to);
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    int bound = 0, capable = 0;
    while (status && fgets(line, sizeof line, status)) {
        if (!strncmp(line, "NoNewPrivs:\t1", 13)) bound = 1;
        if (!strncmp(line, "CapBnd:", 7) || !strncmp(line, "CapEff:", 7))
            if (strtoull(line + 8, NULL, 16)) capable = 1;
    }
    return bound && !capable ? EPERM : 0;
}

static int count_processes(void) {
    DIR *folder = opendir("/proc");
    int count = 0;
    for (struct dirent *one; folder && (one = readdir(folder));) count += one->d_name[0] >= '1' && one->d_name[0] <= '9';
    printf("processes %d\n", count);
    return 0;
}

static int list(const char *path) {
    DIR *folder = opendir(path);
    if (!folder) return errno;
    for (struct dirent *one; (one = readdir(folder));)
        if (one->d_name[0] != '.') printf("entry %s%s%s\n", path, path[1] ? "/" : "", one->d_name);
    return 0;
}

static int compatible_call(void) {
#ifdef __x86_64__
    long number = 20, found;  // getpid, in the table of 32-bit programs, which has other numbers for all
    __asm__ volatile("int $0x80" : "=a"(found) : "a"(number) : "memory");
    return found > 0 ? 0 : (int)-found;
#else
    return ENOSYS;
#endif
}

static int fork_bomb(void) {
    for (;;) fork();
}

static int take_inodes(void) {
    char name[32];
    for (int n = 0;; n++) {
        snprintf(name, sizeof name, "/tmp/inode-%d", n);
        int fd = open(name, O_CREAT | O_WRONLY, 0600);
        if (fd < 0) return errno;
        close(fd);
    }
}

static int take_pages(int fd) {
    static char piece[1 << 16];
    for (;;)
        if (write(fd, piece, sizeof piece) < 0) return errno;
}

static int take_shared_memory(void) {
    int id = shmget(IPC_PRIVATE, 1 << 30, IPC_CREAT | 0600);
    char *memory = id < 0 ? (char *)-1 : shmat(id, NULL, 0);
    if (memory == (char *)-1) return errno;
    memset(memory, 1, 1 << 30);
    return 0;
}

static int own_mounts(void) {
    if (unshare(CLONE_NEWNS) == 0) mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    return result(mount("none", "/tmp", "tmpfs", 0, NULL));
}

static int attempt(const char *self, char **word) {
    const char *name = word[0], *first = word[1], *second = word[2];
    int found;
#define IS(text) (!strcmp(name, text))
    if (IS("read")) return open_it(first, O_RDONLY);
    if (IS("write")) return open_it(first, O_WRONLY);
    if (IS("create")) return open_it(first, O_WRONLY | O_CREAT);
    if (IS("list")) return list(first);
    if (IS("processes")) return count_processes();
    if (IS("tcp")) return inet(SOCK_STREAM, first, second);
    if (IS("udp")) return inet(SOCK_DGRAM, first, second);
    if (IS("listen")) return bind_port();
    if (IS("unix")) return local(first, 0);
    if (IS("abstract")) return local(first, 1);
    if (IS("family")) return result(socket(atoi(first), atoi(second), 0));
    if (IS("raw")) return result(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    if (IS("netlink")) return result(socket(AF_NETLINK, SOCK_RAW, atoi(first)));
    if (IS("kill")) return result(kill(atoi(first), atoi(second)));
    if (IS("trace")) return result(ptrace(PTRACE_SEIZE, atoi(first), 0, 0));
    if (IS("memory")) return read_memory(atoi(first));
    if (IS("file-of")) return result(syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, atoi(first), 0), 0, 0));
    if (IS("mount")) return own_mounts();
    if (IS("unmount")) return unshare(CLONE_NEWNS) < 0 ? result(umount2("/proc", MNT_DETACH)) : 0;
    if (IS("chroot")) return result(chroot("/proc"));
    if (IS("filesystem")) return result(syscall(SYS_fsopen, "tmpfs", 0));
    if (IS("unshare")) return result(unshare(strtol(first, NULL, 16)));
    if (IS("clone")) return namespace_by_clone(strtol(first, NULL, 16));
    if (IS("clone3")) return namespace_by_clone3(strtol(first, NULL, 16));
    if (IS("enter")) return (found = open(first, O_RDONLY)) < 0 ? errno : result(setns(found, 0));
    if (IS("key")) return result(syscall(SYS_add_key, "user", "nex", "x", 1, -1));
    if (IS("keys")) return result(syscall(SYS_keyctl, 0, -3, 1));
    if (IS("bpf")) {
        uint32_t map[18] = {2, 4, 4, 1};
        return result(syscall(SYS_bpf, 0, map, sizeof map));
    }
    if (IS("uring")) {
        char parameters[120] = {0};
        return result(syscall(SYS_io_uring_setup, 2, parameters));
    }
    if (IS("aio")) {
        unsigned long context = 0;
        return result(syscall(SYS_io_setup, 1, &context));
    }
    if (IS("faults")) return result(syscall(SYS_userfaultfd, O_CLOEXEC));
    if (IS("counters")) {
        struct { uint32_t type, size; char rest[112]; } event = {1, sizeof event, {0}};
        return result(syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
    }
    if (IS("secret-memory")) return result(syscall(447, 0));
    if (IS("handle")) {
        char handle[136] = {0};
        *(uint32_t *)handle = 128;
        return result(syscall(SYS_name_to_handle_at, AT_FDCWD, "/", handle, &found, 0));
    }
    if (IS("host-name")) {
        unshare(CLONE_NEWUTS);
        return result(sethostname("x", 1));
    }
    if (IS("log")) return result(syscall(SYS_syslog, 3, &found, 0));
    if (IS("persona")) return result(syscall(SYS_personality, 0x0400000));
    if (IS("newest-call")) return syscall(atoi(first), 0, 0, 0, 0, 0, 0) < 0 ? errno : 0;
    if (IS("32-bit-call")) return compatible_call();
    if (IS("device")) return result(mknod("a-device", S_IFCHR | 0600, makedev(1, 3)));
    if (IS("user")) return result(setuid(atoi(first)));
    if (IS("privileges")) return setuid_program(self);
    if (IS("files")) return exhaust_files();
    if (IS("priority")) return result(setpriority(PRIO_PROCESS, 0, -5));
    if (IS("more-files")) {
        struct rlimit limit = {1 << 18, 1 << 18};
        return result(setrlimit(RLIMIT_NOFILE, &limit));
    }
    if (IS("type")) return result(ioctl(atoi(first), TIOCSTI, "x"));
    if (IS("fork-bomb")) return fork_bomb();
    if (IS("inodes")) return take_inodes();
    if (IS("anonymous-file")) return take_pages(memfd_create("pages", 0));
    if (IS("shared-memory")) return take_shared_memory();
    return ENOENT;
}

static void report(const char *what, const char *how) {
    printf("%s: %s\n", what, how);
    fflush(stdout);
}

static const char *error_name(int code) {
    static const struct { int code; const char *name; } names[] = {
        {EPERM, "EPERM"}, {EACCES, "EACCES"}, {ENOENT, "ENOENT"}, {ESRCH, "ESRCH"}, {ENOSYS, "ENOSYS"},
        {EROFS, "EROFS"}, {EINVAL, "EINVAL"}, {ENETUNREACH, "ENETUNREACH"}, {ECONNREFUSED, "ECONNREFUSED"},
        {EMFILE, "EMFILE"}, {ENODEV, "ENODEV"}, {ENXIO, "ENXIO"}, {ENOTTY, "ENOTTY"}, {EBADF, "EBADF"}, {ENOSPC, "ENOSPC"},
        {EAFNOSUPPORT, "EAFNOSUPPORT"}, {EPROTONOSUPPORT, "EPROTONOSUPPORT"}, {EOPNOTSUPP, "EOPNOTSUPP"}, {EIO, "EIO"},
        {ENOTDIR, "ENOTDIR"}, {ETIMEDOUT, "ETIMEDOUT"}, {EAGAIN, "EAGAIN"},
    };
    static char other[16];
    for (unsigned n = 0; n < sizeof names / sizeof *names; n++)
        if (names[n].code == code) return names[n].name;
    snprintf(other, sizeof other, "error %d", code);
    return other;
}

static void try(const char *self, const char *text) {
    pid_t child = fork();
    if (child == 0) {
        char copy[512], *word[4] = {0}, *at = copy;
        snprintf(copy, sizeof copy, "%s", text);
        for (int n = 0; n < 3 && at; n++) word[n] = strsep(&at, ":");
        int code = attempt(self, word);
        report(text, code ? error_name(code) : "succeeded");
        _exit(0);
    }
    int status = 0;
    if (child < 0) {
        report(text, error_name(errno));
        return;
    }
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) {
        char how[32];
        snprintf(how, sizeof how, "signal %d", WTERMSIG(status));
        report(text, how);
    }
}

int main(int count, char **argument) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int n = 1; n < count; n++) try(argument[0], argument[n]);
    report("all", "tried");
    pause();  // until the node has looked around
}
