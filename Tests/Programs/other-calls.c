// What the preload adds to calls that do not concern it, in ns: each is made through libc's own function and through the name that
// programs call, by turns, in one process; printed is the median of the differences. The process has one more UDP socket, bound to
// PORT of 127.0.0.1, and with "threads" another thread, which sleeps. Without a preload it prints how far from nothing it measures.
//
//   other-calls time|profile one|threads PORT ROUNDS [CALL...]
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <err.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { MOST_ROUNDS = 1001, CALLS = 200 };

#define FUNCTIONS(X)                                                                                                   \
  X(read) X(write) X(readv) X(writev) X(send) X(recv) X(sendto) X(recvfrom) X(sendmsg) X(recvmsg) X(sendmmsg) X(recvmmsg)   \
  X(poll) X(ppoll) X(select) X(pselect) X(epoll_wait) X(epoll_pwait) X(epoll_ctl) X(fcntl) X(ioctl) X(getsockopt)           \
  X(setsockopt) X(getsockname) X(getpeername) X(shutdown) X(close) X(dup) X(dup2) X(dup3) X(syscall) X(bind) X(connect)

#define POINTER(name) __typeof__(&name) name;
static struct functions { FUNCTIONS(POINTER) } libcs, names, now;

static int event, pair[2], udp, sink, quiet, ready, tcp, ends[2], null, zero;
static char data[64];
static struct sockaddr_in full; /* where `sink` never reads */
static struct iovec vector = {data, sizeof data};
static struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
static struct msghdr addressed = {.msg_name = &full, .msg_namelen = sizeof full, .msg_iov = &vector, .msg_iovlen = 1};
static struct mmsghdr messages = {.msg_hdr = {.msg_iov = &vector, .msg_iovlen = 1}};
static struct epoll_event told[8];

static int poll_one(int fd, int timeout) {
  struct pollfd one = {.fd = fd, .events = POLLIN};
  return now.poll(&one, 1, timeout);
}
static int ppoll_one(int fd) {
  struct pollfd one = {.fd = fd, .events = POLLIN};
  return now.ppoll(&one, 1, NULL, NULL);
}
static int select_one(int fd, struct timeval *limit) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(fd, &set);
  return now.select(fd + 1, &set, NULL, NULL, limit);
}
static int pselect_one(int fd) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(fd, &set);
  return now.pselect(fd + 1, &set, NULL, NULL, NULL, NULL);
}
static int modify(int epfd, int fd) {
  struct epoll_event one = {.events = EPOLLIN};
  return now.epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &one);
}
static int option_of(int fd) {
  int value;
  socklen_t length = sizeof value;
  return now.getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &value, &length);
}
static int set_option(int fd) {
  int value = 1;
  return now.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &value, sizeof value);
}
static int name_of(int fd) {
  struct sockaddr_storage name;
  socklen_t length = sizeof name;
  return now.getsockname(fd, (void *)&name, &length);
}
static int peer_of(int fd) {
  struct sockaddr_storage name;
  socklen_t length = sizeof name;
  return now.getpeername(fd, (void *)&name, &length);
}
static int waiting(int fd) {
  int bytes;
  return now.ioctl(fd, FIONREAD, &bytes);
}

#define CALLS_MADE(X)                                                                                                  \
  X(read_zero, "read /dev/zero", now.read(zero, data, 1))                                                             \
  X(write_null, "write /dev/null", now.write(null, data, 1))                                                          \
  X(readv_zero, "readv /dev/zero", now.readv(zero, &vector, 1))                                                       \
  X(writev_null, "writev /dev/null", now.writev(null, &vector, 1))                                                    \
  X(read_eventfd_eagain, "read eventfd (EAGAIN)", now.read(event, data, 8))                                           \
  X(recv_af_unix_eagain, "recv AF_UNIX (EAGAIN)", now.recv(pair[0], data, 64, MSG_DONTWAIT))                          \
  X(recvmsg_af_unix_eagain, "recvmsg AF_UNIX (EAGAIN)", now.recvmsg(pair[0], &message, MSG_DONTWAIT))                 \
  X(send_tcp_epipe, "send TCP (EPIPE)", now.send(tcp, data, 1, MSG_NOSIGNAL))                                         \
  X(sendmsg_tcp_epipe, "sendmsg TCP (EPIPE)", now.sendmsg(tcp, &message, MSG_NOSIGNAL))                               \
  X(recv_udp_eagain, "recv UDP (EAGAIN)", now.recv(udp, data, 64, MSG_DONTWAIT))                                      \
  X(recvfrom_udp_eagain, "recvfrom UDP (EAGAIN)", now.recvfrom(udp, data, 64, MSG_DONTWAIT, NULL, NULL))              \
  X(read_udp_eagain, "read UDP (EAGAIN)", now.read(udp, data, 64))                                                    \
  X(recvmsg_udp_eagain, "recvmsg UDP (EAGAIN)", now.recvmsg(udp, &message, MSG_DONTWAIT))                             \
  X(recvmmsg_udp_eagain, "recvmmsg UDP (EAGAIN)", now.recvmmsg(udp, &messages, 1, MSG_DONTWAIT, NULL))                \
  X(sendto_udp, "sendto UDP", now.sendto(udp, data, 64, 0, (void *)&full, sizeof full))                               \
  X(sendmsg_udp, "sendmsg UDP", now.sendmsg(udp, &addressed, 0))                                                      \
  X(recv_udp_msg_peek, "recv UDP (MSG_PEEK)", now.recv(sink, data, 64, MSG_PEEK))                                     \
  X(recvmsg_udp_msg_peek, "recvmsg UDP (MSG_PEEK)", now.recvmsg(sink, &message, MSG_PEEK))                            \
  X(poll_nothing, "poll, nothing", poll_one(event, 0))                                                                \
  X(poll_ready, "poll, ready", poll_one(ends[0], -1))                                                                 \
  X(poll_udp_nothing, "poll UDP, nothing", poll_one(udp, 0))                                                          \
  X(ppoll_ready, "ppoll, ready", ppoll_one(ends[0]))                                                                  \
  X(select_nothing, "select, nothing", select_one(event, &(struct timeval){0, 0}))                                    \
  X(select_ready, "select, ready", select_one(ends[0], NULL))                                                         \
  X(pselect_ready, "pselect, ready", pselect_one(ends[0]))                                                            \
  X(epoll_wait_nothing, "epoll_wait, nothing", now.epoll_wait(quiet, told, 8, 0))                                     \
  X(epoll_wait_ready_no_time, "epoll_wait, ready, no time", now.epoll_wait(ready, told, 8, 0))                        \
  X(epoll_wait_ready, "epoll_wait, ready", now.epoll_wait(ready, told, 8, -1))                                        \
  X(epoll_pwait_ready, "epoll_pwait, ready", now.epoll_pwait(ready, told, 8, -1, NULL))                               \
  X(epoll_ctl_mod, "epoll_ctl MOD", modify(quiet, event))                                                             \
  X(fcntl_f_getfl, "fcntl F_GETFL", now.fcntl(event, F_GETFL))                                                        \
  X(fcntl_f_setfl, "fcntl F_SETFL", now.fcntl(event, F_SETFL, O_NONBLOCK))                                            \
  X(ioctl_fionread, "ioctl FIONREAD", waiting(ends[0]))                                                               \
  X(getsockopt, "getsockopt", option_of(tcp))                                                                         \
  X(setsockopt, "setsockopt", set_option(tcp))                                                                        \
  X(getsockname, "getsockname", name_of(tcp))                                                                         \
  X(getpeername, "getpeername", peer_of(pair[0]))                                                                     \
  X(shutdown_enotconn, "shutdown (ENOTCONN)", now.shutdown(tcp, SHUT_RD))                                             \
  X(bind_einval, "bind (EINVAL)", now.bind(tcp, (void *)&full, 1))                                                    \
  X(connect_einval, "connect (EINVAL)", now.connect(tcp, (void *)&full, 1))                                           \
  X(close_ebadf, "close (EBADF)", now.close(-1))                                                                      \
  X(dup_close, "dup and close, both", now.close(now.dup(event)))                                                      \
  X(dup2, "dup2", now.dup2(event, 100))                                                                               \
  X(dup3, "dup3", now.dup3(event, 100, O_CLOEXEC))                                                                    \
  X(syscall_getpid, "syscall getpid", now.syscall(SYS_getpid))

static int is_profile;
static double nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}
static int by_value(const void *a, const void *b) { return (*(double *)a > *(double *)b) - (*(double *)a < *(double *)b); }

// Each kind of call has two functions of its own, so that a profile tells what they cost: by libc's function, and by the name. Time
// is taken of one of them for both: two loops of the same instructions at different places differ by several ns, by what the kernel
// leaves of them in the caches.
#define FUNCTION(way, call)                                                                                            \
  static __attribute__((noinline)) void way(void) {                                                                   \
    for (int i = 0; i < CALLS; i++) (void)(call);                                                                     \
  }
#define BOTH_FUNCTIONS(kind, name, call) FUNCTION(libc_##kind, call) FUNCTION(name_##kind, call)
CALLS_MADE(BOTH_FUNCTIONS)

static void measure(const char *name, void (*by_libc)(void), void (*by_name)(void), int rounds) {
  static double plain[MOST_ROUNDS], added[MOST_ROUNDS];
  for (int round = 0; round < rounds; round++) {
    double cost[2];
    for (int turn = 0; turn < 2; turn++) {
      int which = (turn + round) % 2;
      now = which ? names : libcs;
      double start = nanoseconds();
      (which || !is_profile ? by_name : by_libc)();
      cost[which] = (nanoseconds() - start) / CALLS;
    }
    plain[round] = cost[0];
    added[round] = cost[1] - cost[0];
  }
  qsort(plain, (size_t)rounds, sizeof *plain, by_value);
  qsort(added, (size_t)rounds, sizeof *added, by_value);
  printf("%-28s %8.1f %+8.1f\n", name, plain[rounds / 2], added[rounds / 2]);
}
static int is_asked(const char *name, int count, char **asked) {
  for (int i = 0; i < count; i++)
    if (strstr(name, asked[i])) return 1;
  return count == 0;
}

static void *asleep(void *unused) {
  for (;;) pause();
  return unused;
}

int main(int count, char **arguments) {
  void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
  if (!libc) errx(2, "%s", dlerror());
#define FIND(name) libcs.name = (__typeof__(&name))dlsym(libc, #name), names.name = name;
  FUNCTIONS(FIND)
  struct sockaddr_in local = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int rounds = count > 4 ? atoi(arguments[4]) : 0;
  is_profile = count > 1 && strcmp(arguments[1], "profile") == 0;
  if (rounds < 1 || rounds > MOST_ROUNDS) errx(2, "usage: other-calls time|profile one|threads PORT ROUNDS [CALL...]");
  pthread_t sleeper;
  if (strcmp(arguments[2], "threads") == 0 && pthread_create(&sleeper, NULL, asleep, NULL) != 0) errx(2, "no thread");
  local.sin_port = htons((uint16_t)atoi(arguments[3]));
  int other = socket(AF_INET, SOCK_DGRAM, 0);
  if (bind(other, (void *)&local, sizeof local) != 0) err(2, "bind");
  local.sin_port = 0;
  int sent = 0;
  socklen_t length = sizeof full;
  struct epoll_event one = {.events = EPOLLIN};
  event = eventfd(0, EFD_NONBLOCK);
  tcp = socket(AF_INET, SOCK_STREAM, 0);
  udp = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
  sink = socket(AF_INET, SOCK_DGRAM, 0);
  null = open("/dev/null", O_WRONLY);
  zero = open("/dev/zero", O_RDONLY);
  quiet = epoll_create1(0);
  ready = epoll_create1(0);
  if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) != 0 || pipe(ends) != 0 || write(ends[1], "x", 1) != 1 ||
      bind(udp, (void *)&local, sizeof local) != 0 || bind(sink, (void *)&local, sizeof local) != 0 ||
      getsockname(sink, (void *)&full, &length) != 0 ||
      epoll_ctl(quiet, EPOLL_CTL_ADD, event, &one) != 0 || epoll_ctl(ready, EPOLL_CTL_ADD, ends[0], &one) != 0)
    err(2, "set-up");
  while (sendto(udp, data, 64, 0, (void *)&full, sizeof full) == 64 && sent++ < 2000) {}
  printf("%-28s %8s %8s\n", "ns of a call", "libc", "added");
#define MEASURE(kind, name, call)                                                                                      \
  if (is_asked(name, count - 5, arguments + 5)) measure(name, libc_##kind, name_##kind, rounds);
  CALLS_MADE(MEASURE)
  return 0;
}
