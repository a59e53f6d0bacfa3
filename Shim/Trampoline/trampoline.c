// The exported names of the shim. Each asks the descriptor table whether the call concerns an offloaded socket; if not,
// it is libc's own function with the caller's own arguments. Decisions are made in Swift (mn_hook_*).
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE

#include "trampoline.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <linux/sockios.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/single_threaded.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

// ------------------------------------------------------------------------------------------------ mirrors are true

#define SAME_FIELD(ours, our_field, theirs, their_field)                                                           \
  _Static_assert(offsetof(struct ours, our_field) == offsetof(struct theirs, their_field) &&                      \
                     sizeof(((struct ours *)0)->our_field) == sizeof(((struct theirs *)0)->their_field),          \
                 #ours "." #our_field)
_Static_assert(sizeof(struct mn_msghdr) == sizeof(struct msghdr), "msghdr");
SAME_FIELD(mn_msghdr, name, msghdr, msg_name);
SAME_FIELD(mn_msghdr, name_length, msghdr, msg_namelen);
SAME_FIELD(mn_msghdr, vectors, msghdr, msg_iov);
SAME_FIELD(mn_msghdr, vector_count, msghdr, msg_iovlen);
SAME_FIELD(mn_msghdr, control, msghdr, msg_control);
SAME_FIELD(mn_msghdr, control_length, msghdr, msg_controllen);
SAME_FIELD(mn_msghdr, flags, msghdr, msg_flags);
_Static_assert(sizeof(struct mn_mmsghdr) == sizeof(struct mmsghdr), "mmsghdr");
SAME_FIELD(mn_mmsghdr, length, mmsghdr, msg_len);
_Static_assert(sizeof(struct mn_iovec) == sizeof(struct iovec), "iovec");
_Static_assert(sizeof(struct mn_pollfd) == sizeof(struct pollfd), "pollfd");
_Static_assert(sizeof(struct mn_cmsghdr) == sizeof(struct cmsghdr), "cmsghdr");
_Static_assert(sizeof(struct mn_timespec) == sizeof(struct timespec), "timespec");

#define SAME(name) _Static_assert((long long)MN_##name == (long long)name, #name)
SAME(AF_UNSPEC); SAME(AF_INET); SAME(AF_INET6); SAME(SOCK_DGRAM); SAME(SOCK_NONBLOCK); SAME(SOCK_CLOEXEC);
SAME(IPPROTO_IP); SAME(IPPROTO_UDP); SAME(IPPROTO_IPV6); SAME(MSG_PEEK); SAME(MSG_DONTROUTE); SAME(MSG_CTRUNC); SAME(MSG_TRUNC);
SAME(MSG_DONTWAIT); SAME(MSG_WAITALL); SAME(MSG_CONFIRM); SAME(MSG_ERRQUEUE); SAME(MSG_NOSIGNAL); SAME(MSG_WAITFORONE);
SAME(MSG_CMSG_CLOEXEC); SAME(SOL_SOCKET); SAME(SO_ERROR); SAME(SO_REUSEPORT); SAME(SO_RCVTIMEO); SAME(SO_SNDTIMEO);
SAME(SO_DOMAIN); SAME(SO_BUF_LOCK); SAME(SO_TYPE); SAME(SO_PROTOCOL); SAME(SO_TIMESTAMP); SAME(SO_TIMESTAMPNS); SAME(SO_RXQ_OVFL); SAME(SO_COOKIE);
SAME(IP_TOS); SAME(IP_TTL); SAME(IP_PKTINFO); SAME(IP_MTU_DISCOVER); SAME(IP_RECVTTL); SAME(IP_RECVTOS); SAME(IP_FREEBIND);
SAME(IPV6_V6ONLY); SAME(IPV6_RECVPKTINFO); SAME(IPV6_PKTINFO); SAME(UDP_SEGMENT); SAME(UDP_GRO); SAME(IP_PMTUDISC_DO);
SAME(EPERM); SAME(EINTR); SAME(EIO); SAME(EBADF); SAME(EAGAIN); SAME(ENOMEM); SAME(EFAULT); SAME(EINVAL); SAME(EPIPE);
SAME(EDESTADDRREQ); SAME(EMSGSIZE); SAME(ENETDOWN); SAME(ENOTCONN); SAME(ETIMEDOUT); SAME(ECONNREFUSED); SAME(EAFNOSUPPORT);
SAME(ENETUNREACH); SAME(EISCONN); SAME(F_DUPFD); SAME(F_GETFL); SAME(F_SETFL); SAME(F_DUPFD_CLOEXEC); SAME(O_NONBLOCK);
SAME(FIONREAD); SAME(FIONBIO); SAME(TIOCOUTQ); SAME(POLLIN); SAME(POLLPRI); SAME(POLLOUT); SAME(POLLERR); SAME(POLLHUP);
SAME(POLLNVAL); SAME(POLLRDNORM); SAME(POLLWRNORM); SAME(EPOLLEXCLUSIVE); SAME(EPOLLONESHOT); SAME(EPOLL_CTL_ADD);
SAME(EPOLL_CTL_DEL); SAME(EPOLL_CTL_MOD); SAME(SHUT_RD); SAME(SHUT_WR); SAME(SHUT_RDWR); SAME(MSG_OOB); SAME(MSG_MORE); SAME(MSG_ZEROCOPY);
SAME(UDP_CORK); SAME(POLLWRBAND); SAME(POLLRDHUP); SAME(O_ASYNC); SAME(SO_ATTACH_FILTER); SAME(SO_ATTACH_BPF); SAME(SO_BINDTODEVICE);
SAME(SO_PEEK_OFF); SAME(SO_TIMESTAMPING); SAME(IP_RECVOPTS); SAME(IP_RETOPTS); SAME(IP_OPTIONS); SAME(IP_CHECKSUM); SAME(IP_PASSSEC);
SAME(IP_RECVORIGDSTADDR); SAME(IP_RECVFRAGSIZE); SAME(IP_MINTTL); SAME(UDP_ENCAP); SAME(SO_LOCK_FILTER); SAME(SO_RCVBUF); SAME(SO_RCVBUFFORCE);
_Static_assert(MN_EPOLLET == (uint32_t)EPOLLET, "EPOLLET");

// (noinline: what calls another exported name gets no part of it, and leaves no frame behind its system call.)
#define EXPORT __attribute__((visibility("default"), noinline))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

// ------------------------------------------------------------------------------------------------------ the Swift half

void mn_hook_start(void);
void mn_hook_socket_made(int fd, int domain, int type, int protocol);
void *mn_hook_checked(void *entry, int fd);
int mn_hook_bind(void *entry, int fd, const void *address, uint32_t length);
int mn_hook_connect(void *entry, int fd, const void *address, uint32_t length);
ssize_t mn_hook_sendto(void *entry, int fd, const void *data, size_t size, int flags, const void *address, uint32_t length);
ssize_t mn_hook_sendmsg(void *entry, int fd, const struct mn_msghdr *message, int flags);
int mn_hook_sendmmsg(void *entry, int fd, struct mn_mmsghdr *messages, unsigned count, int flags);
ssize_t mn_quick_sendto(void *entry, const void *data, size_t size, uint64_t call, const void *address, uint32_t length);
ssize_t mn_quick_recvfrom(void *entry, void *data, size_t size, uint64_t call, void *address, uint32_t *length);
ssize_t mn_hook_recvfrom(void *entry, int fd, void *data, size_t size, int flags, void *address, uint32_t *length);
ssize_t mn_hook_recvmsg(void *entry, int fd, struct mn_msghdr *message, int flags);
int mn_hook_recvmmsg(void *entry, int fd, struct mn_mmsghdr *messages, unsigned count, int flags, struct mn_timespec *timeout);
void mn_hook_closing(void *entry, int fd);
bool mn_hook_leaving(void *entry, int fd);
void mn_hook_left(void *entry, int fd, bool restored);
void mn_hook_cancelled(void *socket);
void mn_hook_epoll_cancelled(void *epoll);
void mn_hook_passing(void *entry, int fd);
void mn_hook_stream(void *entry, int fd);
void mn_hook_exec(void);
void mn_hook_inherited(int fd);
void mn_hook_duplicated(void *entry, int from, int to);
void mn_hook_flags_changed(void *entry, int fd);
int mn_hook_fionread(void *entry, int fd, int *value);
int mn_hook_outq(void *entry, int fd, int *value);
int mn_hook_stamp(void *entry, bool nanoseconds, int64_t *stamp, int result);
int mn_hook_getsockopt(void *entry, int fd, int level, int name, void *value, uint32_t *length);
int mn_hook_setsockopt(void *entry, int fd, int level, int name, const void *value, uint32_t length);
int mn_hook_getpeername(void *entry, int fd, void *address, uint32_t *length);
int mn_hook_shutdown(void *entry, int fd, int how);
int mn_hook_poll(struct mn_pollfd *entries, uint64_t count, const struct mn_timespec *timeout, const void *mask);
int mn_hook_select(int count, void *read, void *write, void *except, const struct mn_timespec *timeout, const void *mask,
                   struct mn_timespec *remaining);
int mn_hook_epoll_ctl(void *socket, int epfd, int operation, int fd, void *event);
void *mn_hook_epoll_met(int epfd);
int mn_hook_epoll_told(int epfd, void *events, int capacity, int told, int64_t timeout, const void *mask);
int mn_hook_epoll_wait(void *epoll, int epfd, void *events, int capacity, int64_t timeout, const void *mask);
void mn_hook_fork_prepare(void);
void mn_hook_fork_child(void);

// ------------------------------------------------------------------------------------------------------ the real calls

// (First those whose pointers are to lie in one cache line with the words above them.)
#define REAL_CALLS(X)                                                                                              \
  X(sendto, ssize_t, (int, const void *, size_t, int, const struct sockaddr *, socklen_t))                        \
  X(sendmsg, ssize_t, (int, const struct msghdr *, int))                                                          \
  X(send, ssize_t, (int, const void *, size_t, int))                                                              \
  X(recvfrom, ssize_t, (int, void *, size_t, int, struct sockaddr *, socklen_t *))                                \
  X(recvmsg, ssize_t, (int, struct msghdr *, int))                                                                \
  X(socket, int, (int, int, int))                                                                                 \
  X(bind, int, (int, const struct sockaddr *, socklen_t))                                                         \
  X(connect, int, (int, const struct sockaddr *, socklen_t))                                                      \
  X(sendmmsg, int, (int, struct mmsghdr *, unsigned, int))                                                        \
  X(recv, ssize_t, (int, void *, size_t, int))                                                                    \
  X(recvmmsg, int, (int, struct mmsghdr *, unsigned, int, struct timespec *))                                     \
  X(read, ssize_t, (int, void *, size_t))                                                                         \
  X(readv, ssize_t, (int, const struct iovec *, int))                                                             \
  X(write, ssize_t, (int, const void *, size_t))                                                                  \
  X(writev, ssize_t, (int, const struct iovec *, int))                                                            \
  X(preadv2, ssize_t, (int, const struct iovec *, int, off_t, int))                                               \
  X(pwritev2, ssize_t, (int, const struct iovec *, int, off_t, int))                                              \
  X(__read_chk, ssize_t, (int, void *, size_t, size_t))                                                           \
  X(__recv_chk, ssize_t, (int, void *, size_t, size_t, int))                                                      \
  X(__recvfrom_chk, ssize_t, (int, void *, size_t, size_t, int, struct sockaddr *, socklen_t *))                  \
  X(__poll_chk, int, (struct pollfd *, nfds_t, int, size_t))                                                      \
  X(__ppoll_chk, int, (struct pollfd *, nfds_t, const struct timespec *, const sigset_t *, size_t))               \
  X(open, int, (const char *, int, ...))                                                                          \
  X(open64, int, (const char *, int, ...))                                                                        \
  X(openat, int, (int, const char *, int, ...))                                                                   \
  X(openat64, int, (int, const char *, int, ...))                                                                 \
  X(pipe, int, (int *))                                                                                           \
  X(pipe2, int, (int *, int))                                                                                     \
  X(accept, int, (int, struct sockaddr *, socklen_t *))                                                           \
  X(accept4, int, (int, struct sockaddr *, socklen_t *, int))                                                     \
  X(fdopen, FILE *, (int, const char *))                                                                          \
  X(fclose, int, (FILE *))                                                                                        \
  X(close, int, (int))                                                                                            \
  X(dup, int, (int))                                                                                              \
  X(dup2, int, (int, int))                                                                                        \
  X(dup3, int, (int, int, int))                                                                                   \
  X(close_range, int, (unsigned, unsigned, int))                                                                  \
  X(closefrom, void, (int))                                                                                       \
  X(fcntl, int, (int, int, ...))                                                                                  \
  X(fcntl64, int, (int, int, ...))                                                                                \
  X(ioctl, int, (int, unsigned long, ...))                                                                        \
  X(getsockopt, int, (int, int, int, void *, socklen_t *))                                                        \
  X(setsockopt, int, (int, int, int, const void *, socklen_t))                                                    \
  X(getsockname, int, (int, struct sockaddr *, socklen_t *))                                                      \
  X(getpeername, int, (int, struct sockaddr *, socklen_t *))                                                      \
  X(shutdown, int, (int, int))                                                                                    \
  X(select, int, (int, fd_set *, fd_set *, fd_set *, struct timeval *))                                           \
  X(pselect, int, (int, fd_set *, fd_set *, fd_set *, const struct timespec *, const sigset_t *))                 \
  X(poll, int, (struct pollfd *, nfds_t, int))                                                                    \
  X(ppoll, int, (struct pollfd *, nfds_t, const struct timespec *, const sigset_t *))                             \
  X(epoll_create, int, (int))                                                                                     \
  X(epoll_create1, int, (int))                                                                                    \
  X(epoll_ctl, int, (int, int, int, struct epoll_event *))                                                        \
  X(epoll_wait, int, (int, struct epoll_event *, int, int))                                                       \
  X(epoll_pwait, int, (int, struct epoll_event *, int, int, const sigset_t *))                                    \
  X(epoll_pwait2, int, (int, struct epoll_event *, int, const struct timespec *, const sigset_t *))               \
  X(execve, int, (const char *, char *const *, char *const *))                                                    \
  X(execvpe, int, (const char *, char *const *, char *const *))                                                   \
  X(fexecve, int, (int, char *const *, char *const *))                                                            \
  X(posix_spawn, int, (pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,      \
                       char *const *, char *const *))                                                             \
  X(posix_spawnp, int, (pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,     \
                        char *const *, char *const *))                                                            \
  X(sigaction, int, (int, const struct sigaction *, struct sigaction *))                                          \
  X(signal, sighandler_t, (int, sighandler_t))                                                                    \
  X(sysv_signal, sighandler_t, (int, sighandler_t))                                                               \
  X(sigset, sighandler_t, (int, sighandler_t))                                                                    \
  X(siginterrupt, int, (int, int))                                                                                \
  X(mlockall, int, (int))                                                                                         \
  X(syscall, long, (long, ...))

// ------------------------------------------------------------------------------------------------------ state

// Behind the words at hand: the real calls, and the entries of low descriptors, which are nearly all.
enum { LOW_DESCRIPTORS = 1024 };
#define TYPE(name, result, arguments) typedef result(*real_##name) arguments;
#define PLACE(name, result, arguments) PLACE_##name,
REAL_CALLS(TYPE)
enum { REAL_CALLS(PLACE) REAL_COUNT };
static const uint32_t no_rules;
_Alignas(4096) struct mn_at_hand mn_at_hand = {.more = {[REAL_COUNT + LOW_DESCRIPTORS - 1] = NULL}};
#define real(name) ((real_##name)mn_at_hand.more[PLACE_##name])
#define LOW_TABLE (mn_at_hand.more + REAL_COUNT)
uint32_t mn_table_end;
void *mn_senders[MN_SENDERS], *mn_last_sender;
uint64_t mn_departed_limit;
void *mn_process;
struct mn_ring mn_empty_ring;

// Entries of higher descriptors.
static void **high_table;
static inline __attribute__((always_inline)) void *lookup_anywhere(int fd) {
  if (LIKELY((uint32_t)fd < LOW_DESCRIPTORS)) return __atomic_load_n(&LOW_TABLE[fd], __ATOMIC_ACQUIRE);
  return (uint32_t)fd >= MN_PEEK(mn_at_hand.table_length) ? NULL : __atomic_load_n(&high_table[fd], __ATOMIC_ACQUIRE);
}
// (preserve_most: callers keep what they were called with in registers, and need no frame. Clang 21 takes a register that is to be
// preserved for free where such a function calls nothing but another of its kind: none here does.)
static __attribute__((noinline, minsize, preserve_most)) void *lookup_high(int fd) { return lookup_anywhere(fd); }
// The entry of a descriptor: of low ones by one load.
static inline __attribute__((always_inline)) void *lookup(int fd) {
  return LIKELY((uint32_t)fd < LOW_DESCRIPTORS) ? __atomic_load_n(&LOW_TABLE[fd], __ATOMIC_ACQUIRE) : lookup_high(fd);
}
void *mn_table_get(int32_t fd) { return lookup(fd); }
static inline __attribute__((always_inline)) uint32_t watched_count(void) { return MN_PEEK(mn_at_hand.watched_count); }
// Entry of a socket or epoll; internal descriptors are not the program's to use.
static inline __attribute__((always_inline)) void *entry_of(int fd) {
  void *entry = lookup(fd);
  return LIKELY((uintptr_t)entry <= 1) ? NULL : entry;
}
// The same where no nanosecond counts.
static __attribute__((noinline, minsize, preserve_most)) void *found(int fd) {
  void *entry = lookup_anywhere(fd);
  return LIKELY((uintptr_t)entry <= 1) ? NULL : entry;
}

// Everything is resolved at once, so that a forked child of a threaded parent never meets the linker's lock.
static __attribute__((cold, noinline, preserve_most)) void resolve(void) {
#define NAME(name, result, arguments) #name "\0"
  static const char names[] = REAL_CALLS(NAME);
  int saved = errno;
  void **call = mn_at_hand.more;
  for (const char *name = names; *name; name += strlen(name) + 1) *call++ = dlsym(RTLD_NEXT, name);
  errno = saved;
}

// Calls may come before our constructor (from another library's), hence the check; it is never taken again.
#define REAL(name) (*({ if (UNLIKELY(!real(name))) resolve(); real(name); }))

static int log_level;

// What a program started by this one needs to find the shim and the daemon: "LD_PRELOAD=<path>", "MACHNET_SOCKET=<path>".
static char preload_setting[PATH_MAX + 16], socket_setting[160];
static const char *preload_path = preload_setting + sizeof "LD_PRELOAD=" - 1;

static __attribute__((minsize)) void remember_environment(void) {
  Dl_info self;
  if (dladdr((void *)remember_environment, &self) && self.dli_fname && self.dli_fname[0] == '/' &&
      strlen(self.dli_fname) < PATH_MAX) {
    strcpy(preload_setting, "LD_PRELOAD=");
    strcat(preload_setting, self.dli_fname);
  }
  const char *socket = secure_getenv("MACHNET_SOCKET");
  if (socket && strlen(socket) < 128) {
    strcpy(socket_setting, "MACHNET_SOCKET=");
    strcat(socket_setting, socket);
  }
}

// The process id of the memory's owner, in a page that a fork wipes and a vfork shares.
static uint64_t *home;
static void forked(void) {
  if (home) *home = (uint64_t)getpid();
  mn_hook_fork_child();
}
static void forking(void) {
  __atomic_store_n(&mn_at_hand.tagged, 1, __ATOMIC_RELAXED);
  mn_hook_fork_prepare();
}
bool mn_is_at_home(void) {
  uint64_t pid = (uint64_t)getpid();
  if (LIKELY(!home || *home == pid)) return true;
  if (*home) return false;
  forking();
  forked();
  return true;
}

__attribute__((constructor(101), minsize)) static void start(void) {
  if (!real(socket)) resolve();
  mn_at_hand.rules_word = &no_rules;
  const char *wanted = secure_getenv("MACHNET_LOG");
  if (wanted) log_level = !strcmp(wanted, "debug") ? 3 : !strcmp(wanted, "info") ? 2 : !strcmp(wanted, "error") ? 1 : 0;
  int saved = errno;
  remember_environment();
  home = mn_sys_map(4096);
  if (home && madvise(home, 4096, MADV_WIPEONFORK) != 0) home = NULL; // (older than Linux 4.14)
  if (home) *home = (uint64_t)getpid();
  mn_hook_start();
  errno = saved;
  pthread_atfork(forking, NULL, forked);
}

int32_t mn_get_errno(void) { return errno; }
void mn_set_errno(int32_t value) { errno = value; }

__thread uint32_t mn_thread_id_known __attribute__((tls_model("initial-exec")));
uint32_t mn_thread_id_ask(void) { return mn_thread_id_known = (uint32_t)gettid(); }
void mn_thread_id_forget(void) { mn_thread_id_known = 0; }
void mn_cancellation_point(void) { pthread_testcancel(); }

static __thread bool inside __attribute__((tls_model("initial-exec")));
bool mn_thread_is_inside(void) { return inside; }
void mn_thread_set_inside(bool value) {
  inside = value;
  __asm__ volatile("" ::: "memory"); // for this thread's handlers
}

// (Swift's half calls after our constructor only: no question whether they are resolved.)
int32_t mn_real_bind(int32_t fd, const void *a, uint32_t l) { return real(bind)(fd, a, l); }
int32_t mn_real_connect(int32_t fd, const void *a, uint32_t l) { return real(connect)(fd, a, l); }
int64_t mn_real_sendto(int32_t fd, const void *p, size_t n, int32_t f, const void *a, uint32_t l) {
  return real(sendto)(fd, p, n, f, a, l);
}
int64_t mn_real_sendmsg(int32_t fd, const struct mn_msghdr *m, int32_t f) { return real(sendmsg)(fd, (const void *)m, f); }
int64_t mn_real_recvfrom(int32_t fd, void *p, size_t n, int32_t f, void *a, uint32_t *l) {
  return real(recvfrom)(fd, p, n, f, a, l);
}
int64_t mn_real_recvmsg(int32_t fd, struct mn_msghdr *m, int32_t f) { return real(recvmsg)(fd, (void *)m, f); }
int32_t mn_real_getsockopt(int32_t fd, int32_t v, int32_t n, void *p, uint32_t *l) { return real(getsockopt)(fd, v, n, p, l); }
int32_t mn_real_setsockopt(int32_t fd, int32_t v, int32_t n, const void *p, uint32_t l) { return real(setsockopt)(fd, v, n, p, l); }
int32_t mn_real_getpeername(int32_t fd, void *a, uint32_t *l) { return real(getpeername)(fd, a, l); }
int32_t mn_real_shutdown(int32_t fd, int32_t how) { return real(shutdown)(fd, how); }
int32_t mn_real_ioctl(int32_t fd, uint64_t request, void *argument) { return real(ioctl)(fd, request, argument); }
int32_t mn_real_ppoll(struct mn_pollfd *e, uint64_t n, const struct mn_timespec *t, const void *m) {
  return real(ppoll)((void *)e, n, (const void *)t, m);
}
int32_t mn_sleep(struct mn_pollfd *e, uint64_t n, const struct mn_timespec *t, const void *m, void *held) {
  if (!held) return mn_real_ppoll(e, n, t, m);
  int32_t result;
  pthread_cleanup_push(mn_hook_cancelled, held);
  result = mn_real_ppoll(e, n, t, m);
  pthread_cleanup_pop(0);
  return result;
}
int32_t mn_real_pselect(int32_t n, void *r, void *w, void *x, const struct mn_timespec *t, const void *m) {
  return real(pselect)(n, r, w, x, (const void *)t, m);
}
int32_t mn_real_epoll_ctl(int32_t epfd, int32_t op, int32_t fd, void *event) { return real(epoll_ctl)(epfd, op, fd, event); }
__attribute__((minsize, noinline)) int32_t mn_real_epoll_wait(int32_t epfd, void *events, int32_t capacity, int64_t timeout, const void *mask) {
  bool is_whole = timeout <= 0 || timeout % 1000000 == 0;
  if (!is_whole && real(epoll_pwait2)) {
    struct timespec t = {timeout / 1000000000, timeout % 1000000000};
    int saved = errno, n = real(epoll_pwait2)(epfd, events, capacity, &t, mask);
    if (n >= 0 || errno != ENOSYS) return n;
    errno = saved;
  }
  int64_t ms = timeout < 0 ? -1 : timeout / 1000000 + !is_whole;
  return real(epoll_pwait)(epfd, events, capacity, ms > INT_MAX ? INT_MAX : (int)ms, mask);
}
__attribute__((minsize)) int32_t mn_epoll_sleep(int32_t epfd, void *events, int32_t capacity, int64_t timeout, const void *mask, void *held) {
  int32_t result;
  pthread_cleanup_push(mn_hook_epoll_cancelled, held);
  result = mn_real_epoll_wait(epfd, events, capacity, timeout, mask);
  pthread_cleanup_pop(0);
  return result;
}

// What is not called for each datagram is to be small.
#define SMALL_BEGIN _Pragma("clang attribute push(__attribute__((minsize)), apply_to = function)")
#define SMALL_END _Pragma("clang attribute pop")
SMALL_BEGIN

// ------------------------------------------------------------------------------------- system calls without errno

#if defined(__x86_64__)
static inline long raw(long number, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}
#elif defined(__aarch64__)
static inline long raw(long number, long a, long b, long c, long d, long e, long f) {
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
}
#endif
#define RAW(number, a, b, c, d, e, f) raw((number), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
// As libc's function returns it.
static __attribute__((cold, noinline, preserve_most)) int failed(long result) { return errno = (int)-result, -1; }
static inline __attribute__((always_inline)) int result_of(long result) { return LIKELY(result >= 0) ? (int)result : failed(result); }

int64_t mn_sys_recvfrom(int32_t fd, void *p, size_t n, int32_t f, void *a, uint32_t *l) { return RAW(SYS_recvfrom, fd, p, n, f, a, l); }
int64_t mn_sys_recvmsg(int32_t fd, struct mn_msghdr *m, int32_t f) { return RAW(SYS_recvmsg, fd, m, f, 0, 0, 0); }
int64_t mn_sys_sendmsg(int32_t fd, const struct mn_msghdr *m, int32_t f) { return RAW(SYS_sendmsg, fd, m, f, 0, 0, 0); }
int64_t mn_sys_read(int32_t fd, void *p, size_t n) { return RAW(SYS_read, fd, p, n, 0, 0, 0); }
int64_t mn_sys_write(int32_t fd, const void *p, size_t n) { return RAW(SYS_write, fd, p, n, 0, 0, 0); }
int32_t mn_sys_close(int32_t fd) { return (int32_t)RAW(SYS_close, fd, 0, 0, 0, 0, 0); }
int32_t mn_sys_fcntl(int32_t fd, int32_t c, int64_t v) { return (int32_t)RAW(SYS_fcntl, fd, c, v, 0, 0, 0); }
int32_t mn_sys_getsockopt(int32_t fd, int32_t v, int32_t n, void *p, uint32_t *l) { return (int32_t)RAW(SYS_getsockopt, fd, v, n, p, l, 0); }
int32_t mn_sys_setsockopt(int32_t fd, int32_t v, int32_t n, const void *p, uint32_t l) { return (int32_t)RAW(SYS_setsockopt, fd, v, n, p, l, 0); }
int32_t mn_sys_getsockname(int32_t fd, void *a, uint32_t *l) { return (int32_t)RAW(SYS_getsockname, fd, a, l, 0, 0, 0); }
int32_t mn_sys_getpeername(int32_t fd, void *a, uint32_t *l) { return (int32_t)RAW(SYS_getpeername, fd, a, l, 0, 0, 0); }
int32_t mn_sys_bind(int32_t fd, const void *a, uint32_t l) { return (int32_t)RAW(SYS_bind, fd, a, l, 0, 0, 0); }
int32_t mn_sys_ppoll(struct mn_pollfd *e, uint64_t n, const struct mn_timespec *t, const void *m) {
  struct timespec copy = {0, 0}; // the kernel writes the rest of the time back
  if (t) copy = (struct timespec){t->seconds, t->nanoseconds};
  return (int32_t)RAW(SYS_ppoll, e, n, t ? &copy : NULL, m, 8, 0);
}
int32_t mn_sys_epoll_ctl(int32_t epfd, int32_t op, int32_t fd, uint32_t bits, uint64_t data) {
  struct epoll_event event = {bits, {.u64 = data}};
  return (int32_t)RAW(SYS_epoll_ctl, epfd, op, fd, &event, 0, 0);
}
int32_t mn_real_epoll_ctl_of(int32_t epfd, int32_t op, int32_t fd, uint32_t bits, uint64_t data) {
  struct epoll_event event = {bits, {.u64 = data}};
  return real(epoll_ctl)(epfd, op, fd, &event);
}
int32_t mn_sys_epoll_look(int32_t epfd, void *events, int32_t capacity) { return (int32_t)RAW(SYS_epoll_pwait, epfd, events, capacity, 0, NULL, 8); }
int32_t mn_sys_eventfd(void) { return (int32_t)RAW(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK, 0, 0, 0, 0); }
void mn_sys_futex_wait(void *word, uint32_t value) { RAW(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, 0, 0); }
void mn_sys_futex_wake(void *word) { RAW(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0); }
int32_t mn_sys_yield(void) { return (int32_t)RAW(SYS_sched_yield, 0, 0, 0, 0, 0, 0); }

#define SIGNAL_BIT(number) (1ull << ((number) - 1))
// Synchronous signals tell of a fault of the thread itself; blocked, they would kill it without its handler.
static const uint64_t faults = SIGNAL_BIT(SIGSEGV) | SIGNAL_BIT(SIGBUS) | SIGNAL_BIT(SIGFPE) | SIGNAL_BIT(SIGILL) |
                               SIGNAL_BIT(SIGTRAP) | SIGNAL_BIT(SIGSYS) | SIGNAL_BIT(SIGABRT);

// libc's own, of cancellation and of setuid in all threads: it relies on nobody blocking them.
static const uint64_t internals = SIGNAL_BIT(__SIGRTMIN) | SIGNAL_BIT(__SIGRTMIN + 1);

void mn_sys_signals_block(void *old) {
  const uint64_t set = ~(faults | internals);
  RAW(SYS_rt_sigprocmask, SIG_BLOCK, &set, old, 8, 0, 0);
}
void mn_sys_signals_restore(const void *old) { RAW(SYS_rt_sigprocmask, SIG_SETMASK, old, NULL, 8, 0, 0); }

bool mn_sys_signals_restart(void) {
  // Which signal interrupted the sleep cannot be told; where the handlers differ, EINTR is what all must expect.
  struct { // the kernel's own sigaction
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    uint64_t mask;
  } action;
  for (int number = 1; number <= 64; number++) {
    if (RAW(SYS_rt_sigaction, number, NULL, &action, 8, 0, 0) != 0) continue;
    if (action.handler != SIG_DFL && action.handler != SIG_IGN && !(action.flags & SA_RESTART)) return false;
  }
  return true;
}

int32_t mn_sys_process_id(void) { return (int32_t)RAW(SYS_getpid, 0, 0, 0, 0, 0, 0); }
bool mn_sys_thread_is_gone(uint32_t tid) { return RAW(SYS_kill, tid, 0, 0, 0, 0, 0) == -ESRCH; }

void *mn_sys_map(size_t size) {
  long result = RAW(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return result < 0 && result > -4096 ? NULL : (void *)result;
}
// What is shared with the daemon, and the table of high descriptors: hundreds of megabytes of addresses, with memory behind few of them.
// They are neither filled by mlockall nor counted in what the process may lock; what is shared is no part of a core dump either.
static struct sparse_map {
  uintptr_t base;
  size_t size;
} sparse_maps[MN_CHANNELS_PER_PROCESS_MAX + 2];
static bool locks_what_comes;

#define EACH_MAP(map) for (struct sparse_map *map = sparse_maps; map < sparse_maps + sizeof sparse_maps / sizeof *sparse_maps; map++)

// (The caller holds the process's lock.)
static __attribute__((minsize)) void note_map(uintptr_t from, uintptr_t to, size_t size) {
  EACH_MAP(map) {
    if (map->base != from) continue;
    __atomic_store_n(&map->size, size, __ATOMIC_RELAXED);
    __atomic_store_n(&map->base, to, __ATOMIC_RELEASE);
    return;
  }
}
__attribute__((minsize)) void *mn_sys_map_shared(int32_t fd, size_t size, bool writable) {
  int access = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  // What comes locked is filled at once, unless it cannot be accessed.
  bool is_locked = MN_PEEK(locks_what_comes);
  long base = RAW(SYS_mmap, 0, size, is_locked ? PROT_NONE : access, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (base < 0 && base > -4096) return NULL;
  RAW(SYS_madvise, base, size, MADV_DONTDUMP, 0, 0, 0);
  if (is_locked && (RAW(SYS_munlock, base, size, 0, 0, 0, 0) != 0 || RAW(SYS_mprotect, base, size, access, 0, 0, 0) != 0)) {
    RAW(SYS_munmap, base, size, 0, 0, 0, 0);
    return NULL;
  }
  note_map(0, (uintptr_t)base, size);
  return (void *)base;
}
void mn_sys_unmap(void *base, size_t size) { RAW(SYS_munmap, base, size, 0, 0, 0, 0); }
void mn_sys_unmap_shared(void *base, size_t size) {
  note_map((uintptr_t)base, 0, 0);
  mn_sys_unmap(base, size);
}

static bool is_sparse_map(uintptr_t start, uintptr_t end) {
  EACH_MAP(map) {
    uintptr_t base = __atomic_load_n(&map->base, __ATOMIC_ACQUIRE);
    if (base && start < base + MN_PEEK(map->size) && end > base) return true;
  }
  return false;
}
/// Goes through /proc/self/maps.
///
/// @param lock MCL_ONFAULT or 0: locks all that is the program's; -1: only counts.
/// @return bytes that are the program's; 0: nobody knows.
static __attribute__((minsize)) size_t lock_mappings(int lock) {
  long fd = RAW(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0, 0, 0);
  if (fd < 0) return 0;
  char text[512];
  uintptr_t bounds[2] = {0, 0};
  size_t total = 0;
  int field = 0;
  for (long n; (n = RAW(SYS_read, fd, text, sizeof text, 0, 0, 0)) > 0 || n == -EINTR;) {
    for (long i = 0; i < n; i++) {
      char c = text[i];
      if (c == '\n') field = 0, bounds[0] = bounds[1] = 0;
      if (field == 2 || c == '\n') continue;
      if (c != '-' && c != ' ') {
        bounds[field] = bounds[field] << 4 | (uintptr_t)(c <= '9' ? c - '0' : c - 'a' + 10);
        continue;
      }
      // (The last one may be the kernel's own.)
      if (++field < 2 || (intptr_t)bounds[1] < 0 || is_sparse_map(bounds[0], bounds[1])) continue;
      total += bounds[1] - bounds[0];
      if (lock >= 0) RAW(SYS_mlock2, bounds[0], bounds[1] - bounds[0], lock ? MLOCK_ONFAULT : 0, 0, 0, 0);
    }
  }
  RAW(SYS_close, fd, 0, 0, 0, 0, 0);
  return total;
}
static bool may_lock(size_t size) {
  struct rlimit limit;
  struct { uint32_t version; int32_t pid; } header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct { uint32_t effective, permitted, inheritable; } sets[2] = {{0, 0, 0}, {0, 0, 0}};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && size <= limit.rlim_cur) return true;
  return RAW(SYS_capget, &header, sets, 0, 0, 0, 0) == 0 && sets[0].effective >> CAP_IPC_LOCK & 1;
}

uint64_t mn_sys_nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void mn_sender_note(void *socket) {
  static uint32_t turn;
  __atomic_store_n(&mn_last_sender, socket, __ATOMIC_RELAXED);
  // (Threads that alternate take more than one place each.)
  __atomic_store_n(&mn_senders[__atomic_fetch_add(&turn, 1, __ATOMIC_RELAXED) % MN_SENDERS], socket, __ATOMIC_RELAXED);
}

// Of the numbers that a set of select's can hold: those that have ever had an entry which is the program's.
static uint64_t once_ours[FD_SETSIZE / 64];

bool mn_table_set(int32_t fd, void *entry) {
  if ((uint32_t)fd >= mn_table_size()) return false;
  if (fd < FD_SETSIZE && (uintptr_t)entry > 1) __atomic_fetch_or(&once_ours[fd / 64], 1ull << fd % 64, __ATOMIC_RELAXED);
  uint32_t end = mn_table_used();
  while (entry && (uint32_t)fd >= end &&
         !__atomic_compare_exchange_n(&mn_table_end, &end, (uint32_t)fd + 1, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
  }
  // Release: what the entry says is there before it is found.
  __atomic_store_n(fd < LOW_DESCRIPTORS ? &LOW_TABLE[fd] : &high_table[fd], entry, __ATOMIC_RELEASE);
  return true;
}
void mn_table_open(void **table, uint32_t length) {
  high_table = table;
  note_map(0, (uintptr_t)table, length * sizeof *table);
  __atomic_store_n(&mn_at_hand.table_length, length, __ATOMIC_RELEASE);
}

uint32_t mn_sys_descriptor_limit(bool hard) {
  struct rlimit limit = {1024, 1024};
  RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, &limit, 0, 0);
  rlim_t n = hard ? limit.rlim_max : limit.rlim_cur;
  return n > 1u << 20 ? 1u << 20 : (uint32_t)n;
}

int32_t mn_sys_connect_control(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  size_t length = strlen(path);
  if (length == 0 || length >= sizeof address.sun_path) return -EINVAL;
  memcpy(address.sun_path, path, length + 1);
  long fd = RAW(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0, 0, 0);
  if (fd < 0) return (int32_t)fd;
  // A daemon that hangs must not hang the program: every step on this socket has a limit.
  struct timeval limit = {0, 500000};
  RAW(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit, 0);
  RAW(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit, 0);
  long result = RAW(SYS_connect, fd, &address, sizeof address, 0, 0, 0);
  if (result < 0) {
    RAW(SYS_close, fd, 0, 0, 0, 0, 0);
    return (int32_t)result;
  }
  return (int32_t)fd;
}

void mn_each_inherited(void) {
  char entries[1024] __attribute__((aligned(8)));
  long directory = RAW(SYS_openat, AT_FDCWD, "/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, 0, 0), length;
  while ((length = RAW(SYS_getdents64, directory, entries, sizeof entries, 0, 0, 0)) > 0)
    for (const char *at = entries; at < entries + length; at += ((const struct dirent64 *)at)->d_reclen) {
      const char *name = ((const struct dirent64 *)at)->d_name;
      if (*name != '.') mn_hook_inherited(atoi(name));
    }
  if (directory >= 0) RAW(SYS_close, directory, 0, 0, 0, 0, 0);
}

const char *mn_environment(const char *name) { return secure_getenv(name); }

void mn_program_names(char *executable, char *called) {
  char path[PATH_MAX];
  long n = RAW(SYS_readlink, "/proc/self/exe", path, sizeof path - 1, 0, 0, 0);
  path[n > 0 ? n : 0] = 0;
  const char *slash = strrchr(path, '/');
  strncpy(executable, slash ? slash + 1 : path, MN_PROGRAM_MAX - 1);
  executable[MN_PROGRAM_MAX - 1] = 0;
  strncpy(called, program_invocation_short_name ? program_invocation_short_name : "", MN_PROGRAM_MAX - 1);
  called[MN_PROGRAM_MAX - 1] = 0;
}

bool mn_log_enabled(int32_t level) { return level <= log_level; }
static size_t put_number(char *at, int64_t value) {
  char digits[24];
  size_t n = 0, length = 0;
  uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
  do digits[n++] = (char)('0' + rest % 10);
  while (rest /= 10);
  if (value < 0) at[length++] = '-';
  while (n) at[length++] = digits[--n];
  return length;
}
void mn_log(int32_t level, const char *text, int64_t a, int64_t b) {
  if (level > log_level) return;
  char line[256];
  size_t n = 0;
  memcpy(line, "machnet[", 8), n = 8;
  n += put_number(line + n, mn_sys_process_id());
  memcpy(line + n, "]: ", 3), n += 3;
  // Each '%' of the text takes the next argument.
  for (int taken = 0; *text && n < sizeof line - 32; text++)
    if (*text == '%') n += put_number(line + n, taken++ ? b : a);
    else line[n++] = *text;
  line[n++] = '\n';
  RAW(SYS_write, 2, line, n, 0, 0, 0);
}

size_t mn_epoll_event_size(void) { return sizeof(struct epoll_event); }
void mn_epoll_event_get(const void *event, uint32_t *bits, uint64_t *data) {
  const struct epoll_event *e = event;
  *bits = e->events, *data = e->data.u64;
}
void mn_epoll_event_set(void *event, uint32_t bits, uint64_t data) {
  struct epoll_event *e = event;
  e->events = bits, e->data.u64 = data;
}

SMALL_END

// ------------------------------------------------------------------------------------------------------ exported names

// The calls that programs make most often jump straight on when nothing of ours is concerned: no frame, nothing saved.
#define SLOW static __attribute__((noinline))
#define SMALL static __attribute__((noinline, minsize))
#define INLINE static inline __attribute__((always_inline))

// Whether the rules in force leave a datagram to `address` (NULL: the peer) to the kernel, as far as the head knows.
INLINE bool is_kernel_flow(const struct mn_head *head, uint64_t key) {
  return LIKELY(__atomic_load_n(&head->kernel_flows[mn_flow_place(key)], __ATOMIC_RELAXED) == key);
}
// That no rule can lead any datagram of the socket to Machnet, and it has no endpoint: one comparison.
INLINE bool is_kernels_always(const struct mn_head *head) {
  uint64_t way = __atomic_load_n((const uint64_t *)(const void *)&head->receive, __ATOMIC_ACQUIRE);
  return LIKELY((way | MN_RECEIVE_LOOK) == ((uint64_t)(MN_KERNEL_ALWAYS | mn_rules_now()) << 32 | MN_RECEIVE_CANDIDATE));
}
_Static_assert((MN_RECEIVE_KERNEL | MN_RECEIVE_LOOK) == MN_RECEIVE_CANDIDATE && (MN_RECEIVE_ASK | MN_RECEIVE_LOOK) == MN_RECEIVE_LOOK, "one comparison");
_Static_assert(offsetof(struct mn_head, receive) % 8 == 0 && offsetof(struct mn_head, kernel_always) == offsetof(struct mn_head, receive) + 4, "one load");
// (What follows in an epoll is no verdict, but beside ASK it is none in a socket either.)
_Static_assert(offsetof(struct mn_epoll, quick) == offsetof(struct mn_head, quick) && offsetof(struct mn_epoll, receive) == offsetof(struct mn_head, receive) && MN_RECEIVE_ASK == 0, "an epoll is no socket");
// Of the others the most frequent form alone: an unconnected AF_INET socket. Small enough for the callers to need no frame.
INLINE bool kernel_takes_plainly(const struct mn_head *head, const void *address, size_t length) {
  if (UNLIKELY(!address || length != sizeof(struct sockaddr_in))) return false;
  uint64_t key;
  memcpy(&key, address, sizeof key);
  return LIKELY(__atomic_load_n(&head->receive, __ATOMIC_ACQUIRE) != MN_RECEIVE_ASK) && is_kernel_flow(head, key ^ mn_rules_now());
}
INLINE struct mn_endpoint *endpoint_of(const struct mn_head *head) {
  return __atomic_load_n(&__atomic_load_n(&head->look, __ATOMIC_ACQUIRE)->endpoint, __ATOMIC_RELAXED);
}
// Of a socket that may be on Machnet, or come there; by what its receives may do, which is at hand.
INLINE bool has_endpoint(const struct mn_head *head) { return MN_PEEK(head->receive) == MN_RECEIVE_LOOK && endpoint_of(head); }
SLOW bool kernel_takes(const struct mn_head *head, const void *address, size_t length) {
  if (__atomic_load_n(&head->receive, __ATOMIC_ACQUIRE) == MN_RECEIVE_ASK) return false;
  uint16_t now = mn_rules_now();
  if (__atomic_load_n(&head->kernel_always, __ATOMIC_RELAXED) == (MN_KERNEL_ALWAYS | now)) return true;
  if (!address) {
    const struct mn_endpoint *endpoint = endpoint_of(head);
    if (!endpoint) return true;
    if (!(mn_endpoint_flags(endpoint) & MN_SOCKET_CONNECTED)) return false;
    return is_kernel_flow(head, mn_flow_key(mn_head_family(head), htons(mn_endpoint_peer_port(endpoint)), mn_endpoint_peer_address(endpoint), now));
  }
  uint32_t words[6] = {0};
  memcpy(words, address, length < sizeof words ? length : sizeof words);
  if ((uint16_t)words[0] == AF_INET && length >= sizeof(struct sockaddr_in))
    return is_kernel_flow(head, ((uint64_t)words[1] << 32 | words[0]) ^ now);
  if ((uint16_t)words[0] == AF_INET6 && length >= sizeof words && !words[2] && !words[3] && words[4] == htonl(0xffff))
    return is_kernel_flow(head, ((uint64_t)words[5] << 32 | words[0]) ^ now);
  return false;
}

INLINE ssize_t count_sent(const struct mn_head *head, ssize_t size) {
  struct mn_endpoint *endpoint = endpoint_of(head);
  if (endpoint && LIKELY(size >= 0)) mn_endpoint_count_sent(endpoint, size);
  return size;
}

// Whether a receive may ask the shadow alone: the rings hold nothing. That is only a look: whoever finds the shadow empty,
// too, goes the long way, which waits on both.
INLINE bool rings_are_empty(const struct mn_look *look) {
  if (!MN_PEEK(look->endpoint)) return true;
  const struct mn_endpoint *endpoint = __atomic_load_n(&look->endpoint, __ATOMIC_RELAXED);
  const uint8_t *ring = __atomic_load_n(&look->rings, __ATOMIC_RELAXED);
  uint64_t stride = __atomic_load_n(&look->stride, __ATOMIC_RELAXED);
  for (uint32_t left = __atomic_load_n(&look->count, __ATOMIC_RELAXED); left; left--, ring += stride)
    // Acquire: pairs with the engine's publish.
    if (__atomic_load_n((const uint64_t *)ring, __ATOMIC_ACQUIRE) != __atomic_load_n((const uint64_t *)(ring + 64), __ATOMIC_RELAXED))
      return false;
  return !__atomic_load_n(&endpoint->error, __ATOMIC_RELAXED);
}
// The end of a system call on the shadow that did not say EAGAIN.
INLINE ssize_t count_received(const struct mn_head *head, long result) {
  mn_look_ends();
  if (UNLIKELY(result < 0)) return errno = (int)-result, -1;
  struct mn_endpoint *endpoint = endpoint_of(head);
  if (endpoint) mn_endpoint_count_received(endpoint, result);
  return result;
}

// The kernel has just given out the number. Whatever it was of ours, libc or the kernel has closed that behind our back.
static __attribute__((noinline, minsize, preserve_most)) void forget_stale(void *stale, int fd) {
  if (stale == MN_TABLE_INTERNAL) mn_table_set(fd, NULL);
  else mn_hook_closing(stale, fd);
}
INLINE int made(int fd) {
  void *stale = mn_table_get(fd);
  if (UNLIKELY(stale != NULL)) forget_stale(stale, fd);
  return fd;
}
// A call that only sockets have was refused for what is no socket: the number is stale.
SLOW bool is_stale(int fd, int saved) {
  if (errno != ENOTSOCK) return false;
  void *stale = found(fd);
  if (stale) mn_hook_closing(stale, fd);
  errno = saved;
  return true;
}

EXPORT int socket(int domain, int type, int protocol) {
  int fd = made(REAL(socket)(domain, type, protocol));
  // The prefilter is cheap and wide; Swift decides.
  if (fd >= 0 && mn_process_get() && (type & MN_SOCK_TYPE_MASK) == SOCK_DGRAM && (domain == AF_INET || domain == AF_INET6))
    mn_hook_socket_made(fd, domain, type, protocol);
  return fd;
}

// Who names a socket has perhaps just been given its number by a way that nobody sees.
INLINE void *checked_entry_of(int fd) {
  void *entry = found(fd);
  return LIKELY(!entry) ? NULL : mn_hook_checked(entry, fd);
}
EXPORT int bind(int fd, const struct sockaddr *address, socklen_t length) {
  void *entry = checked_entry_of(fd);
  return LIKELY(!entry) ? REAL(bind)(fd, address, length) : mn_hook_bind(entry, fd, address, length);
}

EXPORT int connect(int fd, const struct sockaddr *address, socklen_t length) {
  void *entry = checked_entry_of(fd);
  return LIKELY(!entry) ? REAL(connect)(fd, address, length) : mn_hook_connect(entry, fd, address, length);
}

SLOW ssize_t shadow_sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
  struct mn_head *head = lookup(fd);
  ssize_t sent = real(sendto)(fd, data, size, flags, address, length);
  return LIKELY((uintptr_t)head > 1) ? count_sent(head, sent) : sent;
}
int64_t mn_slow_sendto(int fd, const void *data, size_t size, int flags, const void *address, uint32_t length) {
  struct mn_head *head = found(fd);
  if (!head) return REAL(sendto)(fd, data, size, flags, address, length);
  if (!kernel_takes(head, address, length)) return mn_hook_sendto(head, fd, data, size, flags, address, length);
  mn_head_set_quick(head, false);
  return shadow_sendto(fd, data, size, flags, address, length);
}
// Descriptor and flags in one register.
INLINE uint64_t quick_call(int fd, int flags) { return (uint64_t)(uint32_t)fd << 32 | (uint32_t)flags; }
// What has an entry, and is neither on Machnet nor the kernel's whatever the address.
SLOW ssize_t send_by_address(int fd, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
  const struct mn_head *head = entry_of(fd);
  if (!head || !kernel_takes_plainly(head, address, length)) return mn_slow_sendto(fd, data, size, flags, address, length);
  return has_endpoint(head) ? shadow_sendto(fd, data, size, flags, address, length) : real(sendto)(fd, data, size, flags, address, length);
}
INLINE ssize_t send_to(struct mn_head *head, int fd, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
  if (UNLIKELY(MN_PEEK(head->quick))) return mn_quick_sendto(head, data, size, quick_call(fd, flags), address, length);
  return is_kernels_always(head) ? real(sendto)(fd, data, size, flags, address, length) : send_by_address(fd, data, size, flags, address, length);
}
// A send of the kernel's leaves nothing of ours in the first-level caches. So each line of instructions counts that it touches: one
// where there is no entry, and one or two more where there is. (Where there is one, our constructor has run.)
#define HOT EXPORT __attribute__((aligned(64)))
HOT ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
  void *head = lookup(fd);
  if (UNLIKELY((uintptr_t)head > 1)) return send_to(head, fd, data, size, flags, address, length);
  return LIKELY(real(sendto)) ? real(sendto)(fd, data, size, flags, address, length) : mn_slow_sendto(fd, data, size, flags, address, length);
}
HOT ssize_t send(int fd, const void *data, size_t size, int flags) {
  void *head = lookup(fd);
  if (UNLIKELY((uintptr_t)head > 1)) return send_to(head, fd, data, size, flags, NULL, 0);
  return LIKELY(real(send)) ? real(send)(fd, data, size, flags) : mn_slow_sendto(fd, data, size, flags, NULL, 0);
}

// Descriptors among a message's control data (SCM_RIGHTS).
SMALL void each_passed(const struct msghdr *message, void (*body)(int fd)) {
  for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR((struct msghdr *)message, c)) {
    size_t room = (size_t)((char *)message->msg_control + message->msg_controllen - (char *)CMSG_DATA(c));
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len < CMSG_LEN(0)) continue;
    size_t size = c->cmsg_len - CMSG_LEN(0);
    for (size_t at = 0; at + sizeof(int) <= size && at + sizeof(int) <= room; at += sizeof(int)) {
      int fd;
      memcpy(&fd, CMSG_DATA(c) + at, sizeof fd);
      body(fd);
    }
  }
}
static void pass(int fd) {
  void *entry = entry_of(fd);
  if (entry) mn_hook_passing(entry, fd);
}
static void receive_made(int fd) { mn_hook_inherited(made(fd)); }
INLINE bool may_carry_descriptors(const struct msghdr *message) {
  return LIKELY(message != NULL) && UNLIKELY(message->msg_control != NULL) && message->msg_controllen >= CMSG_LEN(sizeof(int)) && mn_process_get();
}

SMALL ssize_t slow_sendmsg(int fd, const struct msghdr *message, int flags) {
  struct mn_head *head = found(fd);
  if (!head) {
    if (may_carry_descriptors(message)) each_passed(message, pass);
    return REAL(sendmsg)(fd, message, flags);
  }
  if (message && kernel_takes(head, message->msg_name, message->msg_namelen))
    return has_endpoint(head) ? count_sent(head, real(sendmsg)(fd, message, flags)) : real(sendmsg)(fd, message, flags);
  return mn_hook_sendmsg(head, fd, (const void *)message, flags);
}
// What has an entry, and is not the kernel's whatever the address.
SLOW ssize_t send_message(int fd, const struct msghdr *message, int flags) {
  struct mn_head *head = entry_of(fd);
  if (LIKELY(head && mn_head_quick(head))) return mn_hook_sendmsg(head, fd, (const void *)message, flags);
  return LIKELY(head && message && kernel_takes_plainly(head, message->msg_name, message->msg_namelen) && !has_endpoint(head))
             ? real(sendmsg)(fd, message, flags)
             : slow_sendmsg(fd, message, flags);
}
// (Aligned so that both lines of it, and of sendto, lie amid a page: ARCHITECTURE.md, Verdicts.)
HOT __attribute__((aligned(256))) ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
  void *head = lookup(fd);
  if (UNLIKELY((uintptr_t)head > 1)) return is_kernels_always(head) ? real(sendmsg)(fd, message, flags) : send_message(fd, message, flags);
  return LIKELY(real(sendmsg) && (!message || !message->msg_control)) ? real(sendmsg)(fd, message, flags) : slow_sendmsg(fd, message, flags);
}

SMALL int slow_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags) {
  struct mn_head *head = found(fd);
  if (!head) {
    for (unsigned i = 0; messages && i < count; i++)
      if (may_carry_descriptors(&messages[i].msg_hdr)) each_passed(&messages[i].msg_hdr, pass);
    return REAL(sendmmsg)(fd, messages, count, flags);
  }
  // A batch that is the kernel's as a whole stays one system call.
  unsigned kernels = 0;
  while (messages && kernels < count && kernel_takes(head, messages[kernels].msg_hdr.msg_name, messages[kernels].msg_hdr.msg_namelen))
    kernels++;
  if (kernels == 0 || kernels != count) return mn_hook_sendmmsg(head, fd, (void *)messages, count, flags);
  if (!has_endpoint(head)) return real(sendmmsg)(fd, messages, count, flags);
  int sent = real(sendmmsg)(fd, messages, count, flags);
  for (int i = 0; i < sent; i++) count_sent(head, messages[i].msg_len);
  return sent;
}
EXPORT int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags) {
  return LIKELY(real(sendmmsg) && !MN_PEEK(mn_at_hand.table_length)) ? real(sendmmsg)(fd, messages, count, flags) : slow_sendmmsg(fd, messages, count, flags);
}
// glibc's resolver calls it by this name.
EXPORT int __sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags) {
  return sendmmsg(fd, messages, count, flags);
}

int64_t mn_slow_recvfrom(int fd, void *data, size_t size, int flags, void *address, uint32_t *length) {
  struct mn_head *head = found(fd);
  if (!head) mn_look_ends();
  return !head ? REAL(recvfrom)(fd, data, size, flags, address, length)
               : mn_hook_recvfrom(head, fd, data, size, flags, address, length);
}
// Whether a receive that finds nothing in the shadow ends: there is nothing else, and it must not wait.
SMALL bool waits_not(const struct mn_head *head, int fd, int flags) {
  if (MN_PEEK(head->receive) != MN_RECEIVE_CANDIDATE) return false;
  return flags & MSG_DONTWAIT || (RAW(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0) & (O_NONBLOCK | LONG_MIN)) == O_NONBLOCK;
}
SLOW ssize_t shadow_recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *address, socklen_t *length) {
  struct mn_head *head = lookup(fd);
  if (UNLIKELY((uintptr_t)head <= 1 || flags & MSG_ERRQUEUE || !rings_are_empty(__atomic_load_n(&head->look, __ATOMIC_ACQUIRE))))
    return mn_slow_recvfrom(fd, data, size, flags, address, length);
  mn_look_begins();
  long result = RAW(SYS_recvfrom, fd, data, size, flags | MSG_DONTWAIT, address, length);
  return LIKELY(result != -EAGAIN) || waits_not(head, fd, flags) ? count_received(head, result)
                                                                 : mn_slow_recvfrom(fd, data, size, flags, address, length);
}
// Whether a receive is the kernel's alone: there are no rings, and will be none before it ends.
INLINE bool receives_by_kernel(uint32_t way, int flags) {
  return way == MN_RECEIVE_KERNEL || (way == MN_RECEIVE_CANDIDATE && flags & MSG_DONTWAIT);
}
INLINE ssize_t receive(struct mn_head *head, int fd, void *data, size_t size, int flags, struct sockaddr *address, socklen_t *length) {
  uint32_t way = __atomic_load_n(&head->receive, __ATOMIC_ACQUIRE);
  // Where the last datagram came by a ring, the next one will: no system call first.
  if (way == MN_RECEIVE_LOOK && !MN_PEEK(head->by_shadow))
    return mn_quick_recvfrom(head, data, size, quick_call(fd, flags), address, length);
  __asm__("" : "+r"(way)); // (Else the compiler makes one switch of all tests, and that above its last.)
  if (way == MN_RECEIVE_ASK) return mn_slow_recvfrom(fd, data, size, flags, address, length);
  return receives_by_kernel(way, flags) ? real(recvfrom)(fd, data, size, flags, address, length)
                                        : shadow_recvfrom(fd, data, size, flags, address, length);
}
EXPORT ssize_t recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *address, socklen_t *length) {
  void *head = lookup(fd);
  if (UNLIKELY((uintptr_t)head > 1)) return receive(head, fd, data, size, flags, address, length);
  return LIKELY(real(recvfrom)) ? real(recvfrom)(fd, data, size, flags, address, length) : mn_slow_recvfrom(fd, data, size, flags, address, length);
}
EXPORT ssize_t recv(int fd, void *data, size_t size, int flags) {
  void *head = lookup(fd);
  if (UNLIKELY((uintptr_t)head > 1)) return receive(head, fd, data, size, flags, NULL, NULL);
  return LIKELY(real(recv)) ? real(recv)(fd, data, size, flags) : mn_slow_recvfrom(fd, data, size, flags, NULL, NULL);
}

SLOW ssize_t slow_recvmsg(int fd, struct msghdr *message, int flags) {
  struct mn_head *head = found(fd);
  if (!head) {
    ssize_t n = REAL(recvmsg)(fd, message, flags);
    if (n >= 0 && may_carry_descriptors(message)) each_passed(message, receive_made);
    return n;
  }
  if (mn_head_receive(head) != MN_RECEIVE_ASK && mn_head_by_shadow(head) && !(flags & MSG_ERRQUEUE) && rings_are_empty(__atomic_load_n(&head->look, __ATOMIC_ACQUIRE))) {
    mn_look_begins();
    long result = RAW(SYS_recvmsg, fd, message, flags | MSG_DONTWAIT, 0, 0, 0);
    if (result != -EAGAIN || waits_not(head, fd, flags)) return count_received(head, result);
  }
  return mn_hook_recvmsg(head, fd, (void *)message, flags);
}
// As send_message.
SMALL ssize_t receive_message(int fd, struct msghdr *message, int flags) {
  struct mn_head *head = entry_of(fd);
  if (head && MN_PEEK(head->receive) == MN_RECEIVE_LOOK && !MN_PEEK(head->by_shadow)) return mn_hook_recvmsg(head, fd, (void *)message, flags);
  return slow_recvmsg(fd, message, flags);
}
EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags) {
  const struct mn_head *head = lookup(fd);
  if (UNLIKELY((uintptr_t)head > 1)) return receives_by_kernel(MN_PEEK(head->receive), flags) ? real(recvmsg)(fd, message, flags) : receive_message(fd, message, flags);
  return LIKELY(real(recvmsg) && (!message || !message->msg_control)) ? real(recvmsg)(fd, message, flags) : slow_recvmsg(fd, message, flags);
}

SMALL int slow_recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout) {
  struct mn_head *head = found(fd);
  if (!head) return REAL(recvmmsg)(fd, messages, count, flags, timeout);
  return mn_hook_recvmmsg(head, fd, (void *)messages, count, flags, (void *)timeout);
}
EXPORT int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout) {
  if (UNLIKELY(!real(recvmmsg))) return slow_recvmmsg(fd, messages, count, flags, timeout);
  const struct mn_head *head = found(fd);
  return LIKELY(!head) || receives_by_kernel(MN_PEEK(head->receive), flags) ? real(recvmmsg)(fd, messages, count, flags, timeout)
                                                          : slow_recvmmsg(fd, messages, count, flags, timeout);
}

// A zero-byte read of a datagram socket takes nothing from its queue, unlike a zero-byte recv (read(2)): the kernel answers.
SLOW ssize_t read_socket(void *head, int fd, void *data, size_t size) {
  int saved = errno;
  ssize_t n = receive(head, fd, data, size, 0, NULL, NULL);
  return LIKELY(n >= 0) || !is_stale(fd, saved) ? n : real(read)(fd, data, size);
}
EXPORT ssize_t read(int fd, void *data, size_t size) {
  if (UNLIKELY(!real(read))) return REAL(read)(fd, data, size);
  void *head = entry_of(fd);
  return LIKELY(!head || size == 0) ? real(read)(fd, data, size) : read_socket(head, fd, data, size);
}

SLOW ssize_t write_socket(void *head, int fd, const void *data, size_t size) {
  int saved = errno;
  ssize_t n = send_to(head, fd, data, size, 0, NULL, 0);
  return LIKELY(n >= 0) || !is_stale(fd, saved) ? n : real(write)(fd, data, size);
}
EXPORT ssize_t write(int fd, const void *data, size_t size) {
  if (UNLIKELY(!real(write))) return REAL(write)(fd, data, size);
  void *head = entry_of(fd);
  return LIKELY(!head) ? real(write)(fd, data, size) : write_socket(head, fd, data, size);
}

// Vectors of no bytes at all never reach a socket: the kernel answers, and takes or sends nothing.
static __attribute__((minsize)) bool is_for_kernel(const struct iovec *vectors, int count) {
  if (count < 0 || count > IOV_MAX) return true;
  size_t total = 0;
  for (int i = 0; i < count; i++) total |= vectors[i].iov_len;
  return total == 0;
}
SMALL ssize_t read_vectors(void *entry, int fd, const struct iovec *vectors, int count, int flags) {
  if (is_for_kernel(vectors, count)) return REAL(readv)(fd, vectors, count);
  struct msghdr message = {.msg_iov = (struct iovec *)vectors, .msg_iovlen = (size_t)count};
  int saved = errno;
  ssize_t n = mn_hook_recvmsg(entry, fd, (void *)&message, flags);
  return LIKELY(n >= 0) || !is_stale(fd, saved) ? n : REAL(readv)(fd, vectors, count);
}
SMALL ssize_t write_vectors(void *entry, int fd, const struct iovec *vectors, int count, int flags) {
  if (is_for_kernel(vectors, count)) return REAL(writev)(fd, vectors, count);
  struct msghdr message = {.msg_iov = (struct iovec *)vectors, .msg_iovlen = (size_t)count};
  int saved = errno;
  ssize_t n = mn_hook_sendmsg(entry, fd, (const void *)&message, flags);
  return LIKELY(n >= 0) || !is_stale(fd, saved) ? n : REAL(writev)(fd, vectors, count);
}
// What preadv2 and pwritev2 may ask of a socket; -1: what the kernel has to judge.
static int flags_of_rwf(int flags) {
  return flags & ~(RWF_HIPRI | RWF_NOWAIT) ? -1 : flags & RWF_NOWAIT ? MSG_DONTWAIT : 0;
}

EXPORT ssize_t readv(int fd, const struct iovec *vectors, int count) {
  void *entry = found(fd);
  return LIKELY(!entry) ? REAL(readv)(fd, vectors, count) : read_vectors(entry, fd, vectors, count, 0);
}
EXPORT ssize_t writev(int fd, const struct iovec *vectors, int count) {
  void *entry = found(fd);
  return LIKELY(!entry) ? REAL(writev)(fd, vectors, count) : write_vectors(entry, fd, vectors, count, 0);
}
// Offset -1 means the current position, the only one that a socket has.
EXPORT ssize_t preadv2(int fd, const struct iovec *vectors, int count, off_t offset, int flags) {
  void *entry = found(fd);
  int asked = flags_of_rwf(flags);
  return LIKELY(!entry || offset != -1 || asked < 0) ? REAL(preadv2)(fd, vectors, count, offset, flags)
                                                     : read_vectors(entry, fd, vectors, count, asked);
}
EXPORT ssize_t pwritev2(int fd, const struct iovec *vectors, int count, off_t offset, int flags) {
  void *entry = found(fd);
  int asked = flags_of_rwf(flags);
  return LIKELY(!entry || offset != -1 || asked < 0) ? REAL(pwritev2)(fd, vectors, count, offset, flags)
                                                     : write_vectors(entry, fd, vectors, count, asked);
}
EXPORT ssize_t preadv64v2(int fd, const struct iovec *v, int n, off64_t o, int f) { return preadv2(fd, v, n, o, f); }
EXPORT ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off64_t o, int f) { return pwritev2(fd, v, n, o, f); }

// The fortified forms: a size beyond the buffer is libc's to abort on.
EXPORT ssize_t __read_chk(int fd, void *data, size_t size, size_t room) {
  return LIKELY(!found(fd)) || size > room ? REAL(__read_chk)(fd, data, size, room) : read(fd, data, size);
}
EXPORT ssize_t __recv_chk(int fd, void *data, size_t size, size_t room, int flags) {
  return LIKELY(!found(fd)) || size > room ? REAL(__recv_chk)(fd, data, size, room, flags) : recv(fd, data, size, flags);
}
EXPORT ssize_t __recvfrom_chk(int fd, void *data, size_t size, size_t room, int flags, struct sockaddr *address, socklen_t *length) {
  return LIKELY(!found(fd)) || size > room ? REAL(__recvfrom_chk)(fd, data, size, room, flags, address, length)
                                              : recvfrom(fd, data, size, flags, address, length);
}

EXPORT int close(int fd) {
  void *entry = lookup(fd);
  if (LIKELY(!entry)) return REAL(close)(fd);
  if (entry == MN_TABLE_INTERNAL && mn_is_at_home()) return errno = EBADF, -1;
  if (entry != MN_TABLE_INTERNAL) mn_hook_closing(entry, fd);
  return REAL(close)(fd);
}

SMALL_BEGIN

// What libc's streams read and write, they read and write by calls that nobody sees.
EXPORT FILE *fdopen(int fd, const char *mode) {
  void *entry = found(fd);
  if (entry) mn_hook_stream(entry, fd);
  return REAL(fdopen)(fd, mode);
}
// Closes without close(2) as others see it.
EXPORT int fclose(FILE *stream) {
  if (UNLIKELY(MN_PEEK(mn_at_hand.table_length) != 0)) {
    int saved = errno, fd = fileno(stream);
    void *entry = found(fd);
    // What it still holds goes out by the shadow.
    if (entry) mn_hook_closing(entry, fd);
    errno = saved;
  }
  return REAL(fclose)(stream);
}

// Calls that give out the numbers which were closed by ways that nobody sees (a raw system call, io_uring).
EXPORT int accept(int fd, struct sockaddr *address, socklen_t *length) { return made(REAL(accept)(fd, address, length)); }
EXPORT int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags) {
  return made(REAL(accept4)(fd, address, length, flags));
}
EXPORT int pipe(int *ends) {
  int result = REAL(pipe)(ends);
  if (result == 0) made(ends[0]), made(ends[1]);
  return result;
}
EXPORT int pipe2(int *ends, int flags) {
  int result = REAL(pipe2)(ends, flags);
  if (result == 0) made(ends[0]), made(ends[1]);
  return result;
}
// (Allocators open files while they start, which is no time to resolve symbols: the kernel itself, then.)
static int open_by(int (*call)(int, const char *, int, ...), int directory, const char *path, int flags, unsigned mode) {
  if (LIKELY(call)) return made(call(directory, path, flags, mode));
  return result_of(RAW(SYS_openat, directory, path, flags, mode, 0, 0));
}
// (Variadic functions, with as many arguments as any caller gives. Without O_CREAT the mode is anything, and nobody's.)
#define OPENAT(name)                                                                                               \
  EXPORT int mn_##name(int directory, const char *path, int flags, unsigned mode) __asm__(#name);                  \
  EXPORT int mn_##name(int directory, const char *path, int flags, unsigned mode) {                                \
    return open_by(real(name), directory, path, flags, mode);                                                       \
  }
OPENAT(openat)
OPENAT(openat64)
#define OPEN(name)                                                                                                 \
  EXPORT int mn_##name(const char *path, int flags, unsigned mode) __asm__(#name);                                 \
  EXPORT int mn_##name(const char *path, int flags, unsigned mode) {                                               \
    return LIKELY(real(name)) ? made(real(name)(path, flags, mode)) : open_by(NULL, AT_FDCWD, path, flags, mode);    \
  }
OPEN(open)
OPEN(open64)

// Tokio waits on an epoll and registers by a dup of it. An epoll is known as soon as it is duplicated; what was before there was a table
// is remembered (the last ones). Numbers that once were an epoll's are marked, so that no other duplicate is asked about.
#define EARLY 64
static uint64_t early[EARLY]; /* both numbers in one word */
static uint32_t early_count;
static uint8_t was_epoll[1 << 16];
static bool may_be_epoll(int fd) { return (unsigned)fd >= sizeof was_epoll || __atomic_load_n(&was_epoll[fd], __ATOMIC_RELAXED); }
int32_t mn_early_duplicate(uint32_t index) {
  uint32_t count = __atomic_load_n(&early_count, __ATOMIC_RELAXED);
  if (index / 2 >= (count < EARLY ? count : EARLY)) return -1;
  return (int32_t)(__atomic_load_n(&early[index / 2], __ATOMIC_RELAXED) >> (index % 2 * 32));
}

// Nothing of ours, and no epoll: looked up before the system call, so that nothing is left to do behind it.
static __attribute__((noinline, preserve_most)) bool is_plain(int fd) { return LIKELY((uintptr_t)lookup_anywhere(fd) <= 1) && LIKELY(!may_be_epoll(fd)); }
// The same of `from`, and nothing at all at `to`.
static __attribute__((noinline, preserve_most)) bool may_replace_plainly(int from, int to) {
  return LIKELY((uintptr_t)lookup_anywhere(from) <= 1) && LIKELY(!lookup_anywhere(to)) && LIKELY(!may_be_epoll(from));
}
SMALL int duplicated(int from, int to) {
  if (to < 0 || to == from || is_plain(from)) return to;
  void *entry = found(from);
  if (!entry && !MN_PEEK(mn_at_hand.table_length)) {
    uint32_t place = __atomic_fetch_add(&early_count, 1, __ATOMIC_RELAXED) % EARLY;
    __atomic_store_n(&early[place], (uint64_t)(uint32_t)to << 32 | (uint32_t)from, __ATOMIC_RELAXED);
  } else if (!entry) entry = mn_hook_epoll_met(from);
  if (entry) mn_hook_duplicated(entry, from, to);
  if ((unsigned)to < sizeof was_epoll) __atomic_store_n(&was_epoll[to], 1, __ATOMIC_RELAXED);
  return to;
}
SMALL int dup_known(int fd) { return duplicated(fd, made(REAL(dup)(fd))); }
EXPORT int dup(int fd) { return is_plain(fd) ? made(result_of(RAW(SYS_dup, fd, 0, 0, 0, 0, 0))) : dup_known(fd); }
// What stood there leaves the table first, and comes back if the call fails.
SMALL int replaced(int from, int to, int flags) {
  void *old = mn_table_get(to);
  if (old == MN_TABLE_INTERNAL && mn_is_at_home()) return errno = EBUSY, -1;
  bool leaves = (uintptr_t)old > 1 && from != to && mn_hook_leaving(old, to);
  int result = flags < 0 ? REAL(dup2)(from, to) : REAL(dup3)(from, to, flags);
  if (leaves) mn_hook_left(old, to, result < 0);
  return duplicated(from, result);
}
EXPORT int dup2(int from, int to) {
#ifdef SYS_dup2
  if (LIKELY(may_replace_plainly(from, to))) return result_of(RAW(SYS_dup2, from, to, 0, 0, 0, 0));
#endif
  return replaced(from, to, -1);
}
EXPORT int dup3(int from, int to, int flags) {
  if (LIKELY(may_replace_plainly(from, to)) || flags < 0) return result_of(RAW(SYS_dup3, from, to, flags, 0, 0, 0));
  return replaced(from, to, flags);
}

// Ranges are closed around the shim's own descriptors.
EXPORT int close_range(unsigned first, unsigned last, int flags) {
  if (!MN_PEEK(mn_at_hand.table_length) || (flags & ~CLOSE_RANGE_UNSHARE) || first > last || !mn_is_at_home()) return REAL(close_range)(first, last, flags);
  unsigned begin = first;
  for (unsigned fd = first; fd <= last && fd < mn_table_used(); fd++) {
    void *entry = mn_table_get((int)fd);
    if (!entry) continue;
    if (entry != MN_TABLE_INTERNAL) {
      mn_hook_closing(entry, (int)fd);
      continue;
    }
    if (begin < fd && REAL(close_range)(begin, fd - 1, flags) != 0) return -1;
    begin = fd + 1;
  }
  return begin <= last ? REAL(close_range)(begin, last, flags) : 0;
}
EXPORT void closefrom(int first) {
  if (!MN_PEEK(mn_at_hand.table_length)) return REAL(closefrom)(first);
  (void)close_range(first < 0 ? 0u : (unsigned)first, ~0u, 0);
}

// Variadic as well: what is the kernel's goes on to libc's own by a jump. (After a system call each return to an older caller costs a
// misprediction on many processors.)
SMALL int control_descriptor(int (*call)(int, int, ...), int fd, int command, void *argument) {
  int result = call(fd, command, argument);
  if (command != F_SETFL) return duplicated(fd, made(result));
  void *entry = found(fd);
  if (entry && result >= 0) mn_hook_flags_changed(entry, fd);
  return result;
}
INLINE bool is_ours(int fd, int command) {
  return command == F_DUPFD || command == F_DUPFD_CLOEXEC || (command == F_SETFL && found(fd));
}
EXPORT int mn_fcntl(int fd, int command, void *argument) __asm__("fcntl");
EXPORT int mn_fcntl(int fd, int command, void *argument) {
  if (UNLIKELY(is_ours(fd, command))) return control_descriptor(REAL(fcntl), fd, command, argument);
  return REAL(fcntl)(fd, command, argument);
}
EXPORT int mn_fcntl64(int fd, int command, void *argument) __asm__("fcntl64");
EXPORT int mn_fcntl64(int fd, int command, void *argument) {
  if (UNLIKELY(!REAL(fcntl64))) return mn_fcntl(fd, command, argument);
  if (UNLIKELY(is_ours(fd, command))) return control_descriptor(real(fcntl64), fd, command, argument);
  return real(fcntl64)(fd, command, argument);
}
SMALL int socket_ioctl(void *entry, int fd, unsigned long request, void *argument) {
  if (request == FIONREAD && argument) return mn_hook_fionread(entry, fd, argument);
  if (request == TIOCOUTQ && argument) return mn_hook_outq(entry, fd, argument);
  int saved = errno, result = REAL(ioctl)(fd, request, argument);
  if ((request == FIONBIO || request == FIOASYNC) && result == 0) mn_hook_flags_changed(entry, fd);
  if (request == SIOCGSTAMP || request == SIOCGSTAMPNS) {
    result = mn_hook_stamp(entry, request == SIOCGSTAMPNS, argument, result);
    if (result == 0) errno = saved;
  }
  return result;
}
EXPORT int mn_ioctl(int fd, unsigned long request, void *argument) __asm__("ioctl");
EXPORT int mn_ioctl(int fd, unsigned long request, void *argument) {
  void *entry = found(fd);
  return LIKELY(!entry) ? REAL(ioctl)(fd, request, argument) : socket_ioctl(entry, fd, request, argument);
}

EXPORT int getsockopt(int fd, int level, int name, void *value, socklen_t *length) {
  void *entry = found(fd);
  return LIKELY(!entry) ? REAL(getsockopt)(fd, level, name, value, length)
                        : mn_hook_getsockopt(entry, fd, level, name, value, length);
}
EXPORT int setsockopt(int fd, int level, int name, const void *value, socklen_t length) {
  void *entry = found(fd);
  return LIKELY(!entry) ? REAL(setsockopt)(fd, level, name, value, length)
                        : mn_hook_setsockopt(entry, fd, level, name, value, length);
}
// The shadow's own name is the truth; exported so that the list of intercepted calls is whole.
EXPORT int getsockname(int fd, struct sockaddr *address, socklen_t *length) { return REAL(getsockname)(fd, address, length); }
EXPORT int getpeername(int fd, struct sockaddr *address, socklen_t *length) {
  void *entry = found(fd);
  return LIKELY(!entry) ? REAL(getpeername)(fd, address, length) : mn_hook_getpeername(entry, fd, address, length);
}
EXPORT int shutdown(int fd, int how) {
  void *entry = found(fd);
  return LIKELY(!entry) ? REAL(shutdown)(fd, how) : mn_hook_shutdown(entry, fd, how);
}

SMALL_END
// Whether the kernel alone can tell of a descriptor: no socket that is on Machnet, or may come there while the call waits.
INLINE bool is_kernels(int fd, bool waits) {
  const struct mn_head *head = lookup(fd);
  if (LIKELY((uintptr_t)head <= 1)) return true;
  uint32_t way = MN_PEEK(head->receive);
  return way == MN_RECEIVE_KERNEL || (way == MN_RECEIVE_CANDIDATE && !waits);
}
INLINE bool are_kernels(const struct pollfd *entries, nfds_t count, bool waits) {
  if (UNLIKELY(!entries)) return true;
  // (None, or so many that the kernel is likely to refuse them: not looked at here.)
  if (UNLIKELY(count - 1 >= MN_PEEK(mn_at_hand.table_length))) return false;
  for (;;) {
    if (UNLIKELY(!is_kernels(entries->fd, waits))) return false;
    if (LIKELY(!--count)) return true;
    entries++;
  }
}
static __attribute__((noinline, minsize, preserve_most)) bool are_kernels_sets(int count, const fd_set *read, const fd_set *write, const fd_set *except) {
  if (count > 1 << 20) return true;
  const uint64_t *r = (const void *)read, *w = (const void *)write, *x = (const void *)except;
  for (int first = 0; first < count; first += 64) {
    uint64_t bits = 0;
    if (r) bits = *r++;
    if (w) bits |= *w++;
    if (x) bits |= *x++;
    if (first < FD_SETSIZE) bits &= __atomic_load_n(&once_ours[first / 64], __ATOMIC_RELAXED);
    for (; bits; bits &= bits - 1) {
      int fd = first + __builtin_ctzll(bits);
      if (fd < count && UNLIKELY(!is_kernels(fd, true))) return false;
    }
  }
  return true;
}
INLINE uint64_t first_word(const fd_set *set) { return set ? *(const uint64_t *)(const void *)set : 0; }
INLINE bool sets_are_kernels(int count, const fd_set *read, const fd_set *write, const fd_set *except) {
  if (LIKELY((unsigned)count - 1 < 64) &&
      LIKELY(!((first_word(read) | first_word(write) | first_word(except)) & __atomic_load_n(&once_ours[0], __ATOMIC_RELAXED))))
    return true;
  return are_kernels_sets(count, read, write, except);
}
// (`begun`: when the call began. What it takes to look at a set is part of it.)
SMALL int ppoll_ours(struct pollfd *entries, nfds_t count, const struct timespec *timeout, const sigset_t *mask, struct mn_handled begun) {
  mn_look_began(begun);
  int result = mn_hook_poll((void *)entries, count, (const void *)timeout, mask);
  mn_look_ends();
  return result;
}
SMALL int poll_milliseconds(struct pollfd *entries, nfds_t count, int timeout, struct mn_handled begun) {
  struct timespec limit = {timeout / 1000, timeout % 1000 * 1000000L};
  return ppoll_ours(entries, count, timeout < 0 ? NULL : &limit, NULL, begun);
}
EXPORT int poll(struct pollfd *entries, nfds_t count, int timeout) {
  if (watched_count()) {
    struct mn_handled begun = mn_handled_now();
    if (UNLIKELY(!are_kernels(entries, count, timeout != 0))) return poll_milliseconds(entries, count, timeout, begun);
  }
  return REAL(poll)(entries, count, timeout);
}
EXPORT int ppoll(struct pollfd *entries, nfds_t count, const struct timespec *timeout, const sigset_t *mask) {
  if (watched_count()) {
    struct mn_handled begun = mn_handled_now();
    if (UNLIKELY(!are_kernels(entries, count, true))) return ppoll_ours(entries, count, timeout, mask, begun);
  }
  return REAL(ppoll)(entries, count, timeout, mask);
}
SMALL_BEGIN
EXPORT int __poll_chk(struct pollfd *entries, nfds_t count, int timeout, size_t room) {
  return room / sizeof *entries < count ? REAL(__poll_chk)(entries, count, timeout, room) : poll(entries, count, timeout);
}
EXPORT int __ppoll_chk(struct pollfd *entries, nfds_t count, const struct timespec *timeout, const sigset_t *mask, size_t room) {
  return room / sizeof *entries < count ? REAL(__ppoll_chk)(entries, count, timeout, mask, room) : ppoll(entries, count, timeout, mask);
}

SMALL_END
SMALL int select_ours(int count, fd_set *read, fd_set *write, fd_set *except, struct timeval *timeout, struct mn_handled begun) {
  struct mn_timespec limit = {0, 0}, remaining = {0, 0};
  if (timeout) limit = (struct mn_timespec){timeout->tv_sec + timeout->tv_usec / 1000000, timeout->tv_usec % 1000000 * 1000};
  mn_look_began(begun);
  int result = mn_hook_select(count, read, write, except, timeout ? &limit : NULL, NULL, &remaining);
  mn_look_ends();
  // Linux's select reports the time that was left.
  if (timeout) *timeout = (struct timeval){remaining.seconds, remaining.nanoseconds / 1000};
  return result;
}
EXPORT int select(int count, fd_set *read, fd_set *write, fd_set *except, struct timeval *timeout) {
  if (watched_count()) {
    struct mn_handled begun = mn_handled_now();
    if (UNLIKELY(!sets_are_kernels(count, read, write, except)) && !(timeout && (timeout->tv_sec < 0 || timeout->tv_usec < 0)))
      return select_ours(count, read, write, except, timeout, begun);
  }
  return REAL(select)(count, read, write, except, timeout);
}
SMALL int pselect_ours(int count, fd_set *read, fd_set *write, fd_set *except, const struct timespec *timeout, const sigset_t *mask,
                       struct mn_handled begun) {
  struct mn_timespec remaining;
  mn_look_began(begun);
  int result = mn_hook_select(count, read, write, except, (const void *)timeout, mask, &remaining);
  mn_look_ends();
  return result;
}
EXPORT int pselect(int count, fd_set *read, fd_set *write, fd_set *except, const struct timespec *timeout, const sigset_t *mask) {
  if (watched_count()) {
    struct mn_handled begun = mn_handled_now();
    if (UNLIKELY(!sets_are_kernels(count, read, write, except))) return pselect_ours(count, read, write, except, timeout, mask, begun);
  }
  return REAL(pselect)(count, read, write, except, timeout, mask);
}

SMALL_BEGIN
static int made_epoll(int fd) {
  if ((unsigned)fd < sizeof was_epoll) __atomic_store_n(&was_epoll[fd], 1, __ATOMIC_RELAXED);
  return made(fd);
}
EXPORT int epoll_create(int size) { return made_epoll(REAL(epoll_create)(size)); }
EXPORT int epoll_create1(int flags) { return made_epoll(REAL(epoll_create1)(flags)); }
EXPORT int epoll_ctl(int epfd, int operation, int fd, struct epoll_event *event) {
  if (LIKELY(!MN_PEEK(mn_at_hand.table_length))) return REAL(epoll_ctl)(epfd, operation, fd, event);
  void *socket = found(fd);
  return LIKELY(!socket) ? REAL(epoll_ctl)(epfd, operation, fd, event)
                         : mn_hook_epoll_ctl(socket, epfd, operation, fd, event);
}
// What the kernel has told may have come from an epoll that is not the one it was, or has got a socket of ours meanwhile.
SMALL int told(int epfd, struct epoll_event *events, int capacity, int told, int64_t timeout, const sigset_t *mask) {
  if (LIKELY(!MN_PEEK(mn_at_hand.table_length))) return told;
  for (int i = 0; i < told; i++)
    if (UNLIKELY(events[i].data.u64 >> 48 == MN_EPOLL_TAG)) return mn_hook_epoll_told(epfd, events, capacity, told, timeout, mask);
  return told;
}
static int64_t nanoseconds_of(int timeout) { return timeout < 0 ? -1 : timeout * 1000000LL; }
// Without a table, but with other threads, who may open one: libc's epoll_wait, but that the caller is the only one to return to. (While
// libc waits, a thread may be cancelled at any time, too.)
SMALL int epoll_asleep(int epfd, struct epoll_event *events, int capacity, int timeout, const sigset_t *mask, long number) {
  int type, ignored;
  struct mn_handled begun = mn_handled_at_begin();
  pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &type);
  long now = mn_handled_now().all != begun.all ? -EINTR : RAW(number, epfd, events, capacity, timeout, mask, _NSIG / 8);
  pthread_setcanceltype(type, &ignored);
  return now < 0 ? failed(now) : told(epfd, events, capacity, (int)now, nanoseconds_of(timeout), mask);
}
SMALL_END
// Once the table is open, each epoll that somebody waits in is in it (or cannot be).
int32_t mn_epoll_begin(int32_t epfd, void *events, int32_t capacity, int64_t timeout, const void *mask) {
  void *epoll = found(epfd);
  if (!epoll) epoll = mn_hook_epoll_met(epfd);
  return epoll ? mn_hook_epoll_wait(epoll, epfd, events, capacity, timeout, mask) : mn_real_epoll_wait(epfd, events, capacity, timeout, mask);
}
// The kernel has told of `now` events; negative: an errno value. The call that goes on began when `begun` was so.
SMALL int epoll_go_on(int epfd, struct epoll_event *events, int capacity, int timeout, const sigset_t *mask, long now, struct mn_handled begun) {
  if (now < 0) return failed(now);
  if (now > 0) return told(epfd, events, capacity, (int)now, nanoseconds_of(timeout), mask);
  mn_look_began(begun);
  int result = mn_epoll_begin(epfd, events, capacity, nanoseconds_of(timeout), mask);
  mn_look_ends();
  return result;
}
// Sleeps in an epoll with nothing of ours, which stays what it is meanwhile (Epoll.hold, Epoll.letGo).
SMALL int epoll_held(struct mn_epoll *epoll, int epfd, struct epoll_event *events, int capacity, int timeout, const sigset_t *mask, struct mn_handled begun) {
  int result = -1;
  __atomic_store_n(&epoll->waiter, mn_thread_id(), __ATOMIC_RELAXED);
  __atomic_fetch_add(&epoll->waiters, 1, __ATOMIC_SEQ_CST);
  __atomic_thread_fence(__ATOMIC_SEQ_CST); // (Pairs with what takes the entry away, and then looks whether anybody waits.)
  bool is_same = mn_table_get(epfd) == epoll;
  if (is_same && mn_handled_now().all != begun.all) errno = EINTR;
  else if (is_same) {
    pthread_cleanup_push(mn_hook_epoll_cancelled, epoll);
    result = mask ? real(epoll_pwait)(epfd, events, capacity, timeout, mask) : real(epoll_wait)(epfd, events, capacity, timeout);
    pthread_cleanup_pop(0);
  }
  if (__atomic_fetch_sub(&epoll->waiters, 1, __ATOMIC_SEQ_CST) == 1 && __atomic_load_n(&epoll->descriptors, __ATOMIC_SEQ_CST) == 0) {
    __atomic_fetch_add(&epoll->waiters, 1, __ATOMIC_SEQ_CST);
    mn_hook_epoll_cancelled(epoll);
  }
  if (!is_same) return epoll_go_on(epfd, events, capacity, timeout, mask, 0, begun);
  return told(epfd, events, capacity, result, nanoseconds_of(timeout), mask);
}
// An epoll with nothing of ours is looked at before a call sleeps in it: it need not be held for that. (By the system call itself, and
// with nothing to be saved across it, see mn_fcntl.) Where that was in vain, it is not done each time.
SLOW int epoll_look(int epfd, struct epoll_event *events, int capacity, int timeout, const sigset_t *mask, long number) {
  struct mn_handled begun = mn_handled_now();
  struct mn_epoll *epoll = entry_of(epfd);
  // (A socket may have been given the number of an epoll that another thread has closed.)
  if (UNLIKELY(!epoll) || UNLIKELY(MN_PEEK(epoll->kind) != MN_KIND_EPOLL) || MN_PEEK(epoll->tagged)) return epoll_go_on(epfd, events, capacity, timeout, mask, 0, begun);
  uint32_t idle = MN_PEEK(epoll->idle);
  if (timeout == 0 || !idle) {
    long now = RAW(number, epfd, events, capacity, 0, mask, _NSIG / 8);
    if (LIKELY(now > 0) ? LIKELY(!MN_PEEK(epoll->tagged)) : !(now | timeout)) return (int)now;
    if (now != 0) return epoll_go_on(epfd, events, capacity, timeout, mask, now, begun);
    idle = 8;
  }
  __atomic_store_n(&epoll->idle, idle - 1, __ATOMIC_RELAXED);
  return epoll_held(epoll, epfd, events, capacity, timeout, mask, begun);
}
// As epoll_look, without a table. (To be cancelled at any time costs more than a look.)
static __attribute__((noinline)) int epoll_look_first(int epfd, struct epoll_event *events, int capacity, int timeout, const sigset_t *mask, long number) {
  static __thread uint32_t idle __attribute__((tls_model("initial-exec")));
  if (timeout == 0 || !idle) {
    struct mn_handled begun = mn_handled_now();
    long now = RAW(number, epfd, events, capacity, 0, mask, _NSIG / 8);
    if (LIKELY(now > 0)) return LIKELY(!MN_PEEK(mn_at_hand.table_length)) ? (int)now : told(epfd, events, capacity, (int)now, nanoseconds_of(timeout), mask);
    if (now | !timeout) return result_of(now);
    mn_look_began(begun);
    idle = 8;
  } else idle--;
  return epoll_asleep(epfd, events, capacity, timeout, mask, number);
}
static __attribute__((noinline, preserve_most)) void cancellation_point(void) { pthread_testcancel(); }
// With one thread, nobody registers anything of ours meanwhile but a signal handler, after which no event is told: libc's alone.
EXPORT int epoll_pwait(int epfd, struct epoll_event *events, int capacity, int timeout, const sigset_t *mask) {
  if (LIKELY(__libc_single_threaded)) {
    if (LIKELY(!MN_PEEK(mn_at_hand.tagged)) || !MN_PEEK(mn_at_hand.table_length)) return REAL(epoll_pwait)(epfd, events, capacity, timeout, mask);
  } else {
    cancellation_point();
    if (!MN_PEEK(mn_at_hand.table_length)) return epoll_look_first(epfd, events, capacity, timeout, mask, SYS_epoll_pwait);
  }
  return epoll_look(epfd, events, capacity, timeout, mask, SYS_epoll_pwait);
}
#ifdef SYS_epoll_wait
EXPORT int epoll_wait(int epfd, struct epoll_event *events, int capacity, int timeout) {
  if (LIKELY(__libc_single_threaded)) {
    if (LIKELY(!MN_PEEK(mn_at_hand.tagged)) || !MN_PEEK(mn_at_hand.table_length)) return REAL(epoll_wait)(epfd, events, capacity, timeout);
  } else {
    cancellation_point();
    if (!MN_PEEK(mn_at_hand.table_length)) return epoll_look_first(epfd, events, capacity, timeout, NULL, SYS_epoll_wait);
  }
  return epoll_look(epfd, events, capacity, timeout, NULL, SYS_epoll_wait);
}
#else
EXPORT int epoll_wait(int epfd, struct epoll_event *events, int capacity, int timeout) {
  return epoll_pwait(epfd, events, capacity, timeout, NULL);
}
#endif
SMALL_BEGIN
EXPORT int epoll_pwait2(int epfd, struct epoll_event *events, int capacity, const struct timespec *timeout, const sigset_t *mask) {
  bool is_wrong = timeout && ((uint64_t)timeout->tv_nsec >= 1000000000u || timeout->tv_sec < 0);
  // Beyond about 290 years the nanoseconds would not fit: for ever.
  int64_t limit = !timeout || is_wrong || timeout->tv_sec > INT64_MAX / 1000000000 - 1 ? -1 : timeout->tv_sec * 1000000000 + timeout->tv_nsec;
  if (__libc_single_threaded && !MN_PEEK(mn_at_hand.tagged)) return REAL(epoll_pwait2)(epfd, events, capacity, timeout, mask);
  if (MN_PEEK(mn_at_hand.table_length) && !is_wrong) return mn_epoll_begin(epfd, events, capacity, limit, mask);
  return told(epfd, events, capacity, REAL(epoll_pwait2)(epfd, events, capacity, timeout, mask), limit, mask);
}

// Programs that start others with an environment of their own making would leave the shim behind: what is missing of
// it is added. On the stack, because the caller may be the child of a vfork.
static bool starts_with(const char *text, const char *start) { return strncmp(text, start, strlen(start)) == 0; }

static bool keeps_preload(char *const *environment) {
  if (!preload_setting[0] || !environment) return true;
  for (; *environment; environment++)
    if (starts_with(*environment, "LD_PRELOAD=") && strstr(*environment, preload_path)) return true;
  return false;
}
static size_t setting_count(char *const *environment) {
  size_t count = 0;
  while (environment[count]) count++;
  return count;
}
// `room` for the old settings, two more and the end; `joined` for an LD_PRELOAD that names others as well.
static char *const *with_preload(char *const *environment, char **room, char *joined) {
  size_t count = 0;
  bool named = false, socket = !socket_setting[0];
  for (; *environment; environment++) {
    char *setting = *environment;
    if (starts_with(setting, "MACHNET_SOCKET=")) socket = true;
    if (!named && starts_with(setting, "LD_PRELOAD=")) {
      named = true;
      strcpy(joined, setting);
      if (setting[sizeof "LD_PRELOAD=" - 1]) strcat(joined, ":");
      strcat(joined, preload_path);
      setting = joined;
    }
    room[count++] = setting;
  }
  if (!named) room[count++] = preload_setting;
  if (!socket) room[count++] = socket_setting;
  room[count] = NULL;
  return room;
}
static size_t joined_size(char *const *environment) {
  size_t longest = 0;
  for (; *environment; environment++)
    if (starts_with(*environment, "LD_PRELOAD=") && strlen(*environment) > longest) longest = strlen(*environment);
  return longest + sizeof preload_setting + 2;
}
#define KEEPING(environment)                                                                                       \
  if (UNLIKELY(!keeps_preload(environment)))                                                                       \
  environment = with_preload(environment, __builtin_alloca((setting_count(environment) + 3) * sizeof(char *)),     \
                             __builtin_alloca(joined_size(environment)))

static int become(int (*call)(const char *, char *const *, char *const *), const char *path, int fd, char *const *arguments,
                  char *const *environment) {
  mn_hook_exec();
  KEEPING(environment);
  return call ? call(path, arguments, environment) : REAL(fexecve)(fd, arguments, environment);
}
EXPORT int execve(const char *path, char *const *arguments, char *const *environment) {
  return become(REAL(execve), path, -1, arguments, environment);
}
EXPORT int execvpe(const char *file, char *const *arguments, char *const *environment) {
  return become(REAL(execvpe), file, -1, arguments, environment);
}
EXPORT int fexecve(int fd, char *const *arguments, char *const *environment) {
  return become(NULL, NULL, fd, arguments, environment);
}
// The forms without an environment of their own pass on what the process has, which unsetenv may have changed.
EXPORT int execv(const char *path, char *const *arguments) { return execve(path, arguments, environ); }
EXPORT int execvp(const char *file, char *const *arguments) { return execvpe(file, arguments, environ); }
// The arguments one by one, as libc's own make of them (which then call past us). After the last, execle has the environment.
static int exec_list(bool searches, bool has_environment, const char *name, const char *first, va_list list) {
  va_list ahead;
  size_t count = 1;
  va_copy(ahead, list);
  while (va_arg(ahead, char *)) count++;
  va_end(ahead);
  char **arguments = __builtin_alloca((count + 1) * sizeof(char *));
  arguments[0] = (char *)first;
  for (size_t i = 1; i <= count; i++) arguments[i] = va_arg(list, char *);
  char *const *environment = has_environment ? va_arg(list, char *const *) : environ;
  return searches ? execvpe(name, arguments, environment) : execve(name, arguments, environment);
}
#define EXEC_LIST(searches, has_environment, name)                                                                 \
  va_list list;                                                                                                    \
  va_start(list, first);                                                                                           \
  int result = exec_list(searches, has_environment, name, first, list);                                            \
  va_end(list);                                                                                                    \
  return result
EXPORT int execl(const char *path, const char *first, ...) { EXEC_LIST(false, false, path); }
EXPORT int execlp(const char *file, const char *first, ...) { EXEC_LIST(true, false, file); }
EXPORT int execle(const char *path, const char *first, ...) { EXEC_LIST(false, true, path); }
static int spawn(__typeof__(real(posix_spawn)) call, pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                 const posix_spawnattr_t *attributes, char *const *arguments, char *const *environment) {
  KEEPING(environment);
  return call(pid, path, actions, attributes, arguments, environment);
}
EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                       const posix_spawnattr_t *attributes, char *const *arguments, char *const *environment) {
  return spawn(REAL(posix_spawn), pid, path, actions, attributes, arguments, environment);
}
EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
                        const posix_spawnattr_t *attributes, char *const *arguments, char *const *environment) {
  return spawn(REAL(posix_spawnp), pid, file, actions, attributes, arguments, environment);
}

// Where a call of ours waits, the program's signal handlers may run between two looks at the rings. They are counted, so
// that the call knows of it (mn_handled), without two system calls that block signals: the kernel calls `handle`, which
// calls the program's own. Programs see theirs only. A handler installed by a system call of its own is not counted; it is
// noticed as long as signals are blocked, which is soon.
__thread struct mn_handled mn_handled __attribute__((tls_model("initial-exec"))), mn_looked_at __attribute__((tls_model("initial-exec")));
__thread bool mn_has_looked __attribute__((tls_model("initial-exec")));
static void (*handlers[_NSIG])(int, siginfo_t *, void *);
static uint64_t restarting; // SIGNAL_BIT: its handler says SA_RESTART

static void handle(int number, siginfo_t *info, void *context) {
  mn_handled.all++;
  if (!(__atomic_load_n(&restarting, __ATOMIC_RELAXED) & SIGNAL_BIT(number))) mn_handled.interrupting++;
  // A receive that it interrupts may have begun to look; one of its own begins anew.
  struct mn_handled looked_at = mn_looked_at;
  bool has_looked = mn_has_looked;
  mn_has_looked = false;
  __atomic_load_n(&handlers[number], __ATOMIC_RELAXED)(number, info, context);
  mn_looked_at = looked_at;
  mn_has_looked = has_looked;
}

// (What tells of a fault interrupts no call that waits.)
static bool counts(int number) {
  return number > 0 && number < _NSIG && !(SIGNAL_BIT(number) & (faults | internals | SIGNAL_BIT(SIGKILL) | SIGNAL_BIT(SIGSTOP)));
}

EXPORT int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
  struct sigaction ours;
  __typeof__(&handle) before = counts(number) ? __atomic_load_n(&handlers[number], __ATOMIC_RELAXED) : NULL;
  // The child of a vfork has handlers of its own, in memory that it only borrows.
  if (action && action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN && counts(number) && mn_is_at_home()) {
    ours = *action;
    action = &ours;
    if (ours.sa_sigaction != handle) __atomic_store_n(&handlers[number], ours.sa_sigaction, __ATOMIC_RELAXED);
    ours.sa_sigaction = handle;
    if (ours.sa_flags & SA_RESTART) __atomic_fetch_or(&restarting, SIGNAL_BIT(number), __ATOMIC_RELAXED);
    else __atomic_fetch_and(&restarting, ~SIGNAL_BIT(number), __ATOMIC_RELAXED);
  }
  int result = REAL(sigaction)(number, action, old);
  if (result == 0 && old && old->sa_sigaction == handle) old->sa_sigaction = before;
  return result;
}
EXPORT int __sigaction(int number, const struct sigaction *action, struct sigaction *old) { return sigaction(number, action, old); }

// libc's other ways to install a handler go past us; what they have done is done again.
static void recount(int number) {
  struct sigaction now;
  if (counts(number) && REAL(sigaction)(number, NULL, &now) == 0) sigaction(number, &now, NULL);
}
static sighandler_t install(sighandler_t (*call)(int, sighandler_t), int number, sighandler_t handler) {
  sighandler_t before = counts(number) ? (sighandler_t)(void *)__atomic_load_n(&handlers[number], __ATOMIC_RELAXED) : NULL;
  sighandler_t old = call(number, handler);
  recount(number);
  return old == (sighandler_t)(void *)handle ? before : old;
}
EXPORT sighandler_t signal(int number, sighandler_t handler) { return install(REAL(signal), number, handler); }
EXPORT __attribute__((alias("signal"))) sighandler_t bsd_signal(int number, sighandler_t handler);
EXPORT __attribute__((alias("signal"))) sighandler_t ssignal(int number, sighandler_t handler);
EXPORT sighandler_t sysv_signal(int number, sighandler_t handler) { return install(REAL(sysv_signal), number, handler); }
EXPORT __attribute__((alias("sysv_signal"))) sighandler_t __sysv_signal(int number, sighandler_t handler);
EXPORT sighandler_t sigset(int number, sighandler_t disposition) { return install(REAL(sigset), number, disposition); }
EXPORT int siginterrupt(int number, int interrupts) {
  int result = REAL(siginterrupt)(number, interrupts);
  if (result == 0) recount(number);
  return result;
}

// Where something is shared with the daemon, what is mapped is locked piece by piece, all but that.
EXPORT __attribute__((minsize)) int mlockall(int flags) {
  int result = 0;
  size_t size = 0;
  bool is_valid = flags & MCL_CURRENT && !(flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT));
  if (is_valid && mn_process_get()) size = lock_mappings(-1);
  bool is_piecemeal = size != 0 && may_lock(size);
  if (is_piecemeal && flags & MCL_FUTURE) result = REAL(mlockall)(flags & ~MCL_CURRENT);
  // (As the kernel's: nothing is locked where not everything may be. It has the error.)
  if (result == 0 && !(is_piecemeal && lock_mappings(flags & MCL_ONFAULT))) result = REAL(mlockall)(flags);
  if (result == 0) __atomic_store_n(&locks_what_comes, (flags & MCL_FUTURE) != 0, __ATOMIC_RELAXED);
  return result;
}

// libuv, some runtimes and test suites name these calls by number.
EXPORT long mn_syscall(long number, long a, long b, long c, long d, long e, long f) __asm__("syscall");
EXPORT long mn_syscall(long number, long a, long b, long c, long d, long e, long f) {
  __typeof__(&mn_syscall) call = (void *)REAL(syscall);
  if (LIKELY(!MN_PEEK(mn_at_hand.table_length)) && number != SYS_epoll_create1) __attribute__((musttail)) return call(number, a, b, c, d, e, f);
  switch (number) {
  case SYS_socket: return socket((int)a, (int)b, (int)c);
  case SYS_bind: return bind((int)a, (void *)b, (socklen_t)c);
  case SYS_connect: return connect((int)a, (void *)b, (socklen_t)c);
  case SYS_sendto: return sendto((int)a, (void *)b, (size_t)c, (int)d, (void *)e, (socklen_t)f);
  case SYS_sendmsg: return sendmsg((int)a, (void *)b, (int)c);
  case SYS_sendmmsg: return sendmmsg((int)a, (void *)b, (unsigned)c, (int)d);
  case SYS_recvfrom: return recvfrom((int)a, (void *)b, (size_t)c, (int)d, (void *)e, (void *)f);
  case SYS_recvmsg: return recvmsg((int)a, (void *)b, (int)c);
  case SYS_recvmmsg: return recvmmsg((int)a, (void *)b, (unsigned)c, (int)d, (void *)e);
  case SYS_read: return read((int)a, (void *)b, (size_t)c);
  case SYS_write: return write((int)a, (void *)b, (size_t)c);
  case SYS_readv: return readv((int)a, (void *)b, (int)c);
  case SYS_writev: return writev((int)a, (void *)b, (int)c);
  case SYS_close: return close((int)a);
  case SYS_dup: return dup((int)a);
  case SYS_dup3: return dup3((int)a, (int)b, (int)c);
  case SYS_close_range: return close_range((unsigned)a, (unsigned)b, (int)c);
  case SYS_getsockopt: return getsockopt((int)a, (int)b, (int)c, (void *)d, (void *)e);
  case SYS_setsockopt: return setsockopt((int)a, (int)b, (int)c, (void *)d, (socklen_t)e);
  case SYS_getpeername: return getpeername((int)a, (void *)b, (void *)c);
  case SYS_shutdown: return shutdown((int)a, (int)b);
  case SYS_mlockall: return mlockall((int)a);
  case SYS_epoll_create1: return epoll_create1((int)a);
  case SYS_epoll_ctl: return epoll_ctl((int)a, (int)b, (int)c, (void *)d);
  case SYS_epoll_pwait: return epoll_pwait((int)a, (void *)b, (int)c, (int)d, (void *)e);
  case SYS_epoll_pwait2: return epoll_pwait2((int)a, (void *)b, (int)c, (void *)d, (void *)e);
#ifdef SYS_epoll_wait
  case SYS_epoll_wait: return epoll_wait((int)a, (void *)b, (int)c, (int)d);
#endif
#ifdef SYS_poll
  case SYS_poll: return poll((void *)a, (nfds_t)b, (int)c);
#endif
#ifdef SYS_dup2
  case SYS_dup2: return dup2((int)a, (int)b);
#endif
  default: __attribute__((musttail)) return call(number, a, b, c, d, e, f);
  }
}

SMALL_END
