// What the preload adds to calls that do not concern it, in ns: each is made through libc's own function and through the name that
// programs call, by turns, in one process; printed is the median of the differences. The process has one more UDP socket, bound to
// PORT of 127.0.0.1, and with "threads" another thread, which sleeps.
//
//   other-calls one|threads PORT [CALL...]
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

enum { ROUNDS = 401, CALLS = 200 };

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
  X("read /dev/zero", now.read(zero, data, 1))                                                                        \
  X("write /dev/null", now.write(null, data, 1))                                                                      \
  X("readv /dev/zero", now.readv(zero, &vector, 1))                                                                   \
  X("writev /dev/null", now.writev(null, &vector, 1))                                                                 \
  X("read eventfd (EAGAIN)", now.read(event, data, 8))                                                                \
  X("recv AF_UNIX (EAGAIN)", now.recv(pair[0], data, 64, MSG_DONTWAIT))                                               \
  X("recvmsg AF_UNIX (EAGAIN)", now.recvmsg(pair[0], &message, MSG_DONTWAIT))                                         \
  X("send TCP (EPIPE)", now.send(tcp, data, 1, MSG_NOSIGNAL))                                                         \
  X("sendmsg TCP (EPIPE)", now.sendmsg(tcp, &message, MSG_NOSIGNAL))                                                  \
  X("recv UDP (EAGAIN)", now.recv(udp, data, 64, MSG_DONTWAIT))                                                       \
  X("recvfrom UDP (EAGAIN)", now.recvfrom(udp, data, 64, MSG_DONTWAIT, NULL, NULL))                                   \
  X("read UDP (EAGAIN)", now.read(udp, data, 64))                                                                     \
  X("recvmsg UDP (EAGAIN)", now.recvmsg(udp, &message, MSG_DONTWAIT))                                                 \
  X("recvmmsg UDP (EAGAIN)", now.recvmmsg(udp, &messages, 1, MSG_DONTWAIT, NULL))                                     \
  X("sendto UDP", now.sendto(udp, data, 64, 0, (void *)&full, sizeof full))                                           \
  X("sendmsg UDP", now.sendmsg(udp, &addressed, 0))                                                                   \
  X("recv UDP (MSG_PEEK)", now.recv(sink, data, 64, MSG_PEEK))                                                        \
  X("recvmsg UDP (MSG_PEEK)", now.recvmsg(sink, &message, MSG_PEEK))                                                  \
  X("poll, nothing", poll_one(event, 0))                                                                              \
  X("poll, ready", poll_one(ends[0], -1))                                                                             \
  X("poll UDP, nothing", poll_one(udp, 0))                                                                            \
  X("ppoll, ready", ppoll_one(ends[0]))                                                                               \
  X("select, nothing", select_one(event, &(struct timeval){0, 0}))                                                    \
  X("select, ready", select_one(ends[0], NULL))                                                                       \
  X("pselect, ready", pselect_one(ends[0]))                                                                           \
  X("epoll_wait, nothing", now.epoll_wait(quiet, told, 8, 0))                                                         \
  X("epoll_wait, ready, no time", now.epoll_wait(ready, told, 8, 0))                                                  \
  X("epoll_wait, ready", now.epoll_wait(ready, told, 8, -1))                                                          \
  X("epoll_pwait, ready", now.epoll_pwait(ready, told, 8, -1, NULL))                                                  \
  X("epoll_ctl MOD", modify(quiet, event))                                                                            \
  X("fcntl F_GETFL", now.fcntl(event, F_GETFL))                                                                       \
  X("fcntl F_SETFL", now.fcntl(event, F_SETFL, O_NONBLOCK))                                                           \
  X("ioctl FIONREAD", waiting(ends[0]))                                                                               \
  X("getsockopt", option_of(tcp))                                                                                     \
  X("setsockopt", set_option(tcp))                                                                                    \
  X("getsockname", name_of(tcp))                                                                                      \
  X("getpeername", peer_of(pair[0]))                                                                                  \
  X("shutdown (ENOTCONN)", now.shutdown(tcp, SHUT_RD))                                                                \
  X("bind (EINVAL)", now.bind(tcp, (void *)&full, 1))                                                                 \
  X("connect (EINVAL)", now.connect(tcp, (void *)&full, 1))                                                           \
  X("close (EBADF)", now.close(-1))                                                                                   \
  X("dup, close", now.close(now.dup(event)))                                                                          \
  X("dup2", now.dup2(event, 100))                                                                                     \
  X("dup3", now.dup3(event, 100, O_CLOEXEC))                                                                          \
  X("syscall getpid", now.syscall(SYS_getpid))

static double nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}
static int by_value(const void *a, const void *b) { return (*(double *)a > *(double *)b) - (*(double *)a < *(double *)b); }

static void show(const char *name, double plain[], double added[]) {
  qsort(plain, ROUNDS, sizeof *plain, by_value);
  qsort(added, ROUNDS, sizeof *added, by_value);
  printf("%-28s %8.1f %+8.1f\n", name, plain[ROUNDS / 2], added[ROUNDS / 2]);
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
  if (count < 3) errx(2, "usage: other-calls one|threads PORT [CALL...]");
  pthread_t sleeper;
  if (strcmp(arguments[1], "threads") == 0 && pthread_create(&sleeper, NULL, asleep, NULL) != 0) errx(2, "no thread");
  local.sin_port = htons((uint16_t)atoi(arguments[2]));
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
  static double plain[ROUNDS], added[ROUNDS];
  printf("%-28s %8s %8s\n", "ns of a call", "libc", "added");
#define MEASURE(name, call)                                                                                            \
  for (int round = is_asked(name, count - 3, arguments + 3) ? 0 : ROUNDS + 1; round <= ROUNDS; round++) {             \
    if (round == ROUNDS) {                                                                                            \
      show(name, plain, added);                                                                                       \
      break;                                                                                                          \
    }                                                                                                                 \
    double cost[2];                                                                                                   \
    for (int turn = 0; turn < 2; turn++) {                                                                            \
      int which = (turn + round) % 2;                                                                                 \
      now = which ? names : libcs;                                                                                    \
      double start = nanoseconds();                                                                                   \
      for (int i = 0; i < CALLS; i++) (void)(call);                                                                   \
      cost[which] = (nanoseconds() - start) / CALLS;                                                                  \
    }                                                                                                                 \
    plain[round] = cost[0];                                                                                           \
    added[round] = cost[1] - cost[0];                                                                                 \
  }
  CALLS_MADE(MEASURE)
  return 0;
}
