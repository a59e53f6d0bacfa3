// A program of many kinds, as many as HostTests builds and starts of it. Each prints one line, the same on the kernel and on
// Machnet, and ends with 0.
//
//   host echo COUNT            two threads answer each other, with a heap in motion
//   host cycles COUNT          socket, bind, send, close, over and over; says how much the process has grown
//   host many COUNT            COUNT sockets, each sends to the next; waits for a line on its input
//   host high                  the same with the largest numbers that the limit of descriptors allows
//   host ranges                closes all descriptors from 900 on, and says how many pages that has brought in
//   host leave DIRECTORY UID   chroot and another user after its start, then old and new sockets
//   host filtered HOW          a seccomp filter that refuses what only the shim needs: errno|trap, then old and new sockets
//   host exec                  becomes itself by exec with three datagrams unread, and goes on with the socket
//   host share UID             starts itself as another user, and both use one socket
//   host hand PROGRAM...       becomes another program with three datagrams unread
//   host outlive               waits for a line, then sends, also from a destructor after exit
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static void fail(const char *what) {
  fprintf(stderr, "host: %s: %s\n", what, strerror(errno));
  exit(1);
}

static int bound_to(in_addr_t address, struct sockaddr_in *name) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  socklen_t length = sizeof *name;
  *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(address)}};
  if (fd < 0 || bind(fd, (void *)name, sizeof *name) != 0 || getsockname(fd, (void *)name, &length) != 0) fail("a socket");
  return fd;
}
static int bound(struct sockaddr_in *name) { return bound_to(INADDR_LOOPBACK, name); }
static void send_number(int fd, const struct sockaddr_in *to, long number) {
  if (sendto(fd, &number, sizeof number, 0, (const void *)to, sizeof *to) != sizeof number) fail("sendto");
}
static void expect_number(int fd, long wanted) {
  struct pollfd entry = {fd, POLLIN, 0};
  long number = -1;
  if (poll(&entry, 1, 5000) != 1) fail("nothing came");
  if (recv(fd, &number, sizeof number, 0) != sizeof number || number != wanted) fail("recv");
}
/// A datagram each way between two sockets that are there, and between two new ones.
static void exercise(int a, const struct sockaddr_in *at_a, int b, const struct sockaddr_in *at_b) {
  struct sockaddr_in at_c;
  for (long i = 0; i < 100; i++) {
    send_number(a, at_b, i), expect_number(b, i);
    send_number(b, at_a, -i), expect_number(a, -i);
    int c = bound(&at_c);
    send_number(a, &at_c, i), expect_number(c, i);
    send_number(c, at_a, i), expect_number(a, i);
    close(c);
  }
  // A wait in epoll, on an old socket and a new one.
  int epfd = epoll_create1(0), c = bound(&at_c);
  struct epoll_event event = {EPOLLIN, {.fd = a}};
  if (epoll_ctl(epfd, EPOLL_CTL_ADD, a, &event) != 0) fail("epoll_ctl");
  event.data.fd = c;
  if (epoll_ctl(epfd, EPOLL_CTL_ADD, c, &event) != 0) fail("epoll_ctl");
  for (long i = 0; i < 100; i++) {
    int to = i % 2 ? a : c;
    send_number(b, i % 2 ? at_a : &at_c, i);
    if (epoll_wait(epfd, &event, 1, 5000) != 1 || event.data.fd != to) fail("epoll_wait");
    expect_number(to, i);
  }
  close(epfd), close(c);
}

// ---------------------------------------------------------------------------------------------------------- echo

static int ends[2];
static struct sockaddr_in names[2];
static long rounds;
static void *answer(void *unused) {
  for (long i = 0; i < rounds; i++) {
    char *block = malloc((size_t)(64 + i % 4000));
    memset(block, (int)i, 64);
    expect_number(ends[1], i);
    block = realloc(block, (size_t)(8000 + i % 100));
    send_number(ends[1], &names[0], -i);
    free(block);
  }
  return NULL;
}
static int echo(long count) {
  pthread_t other;
  rounds = count;
  for (int i = 0; i < 2; i++) ends[i] = bound(&names[i]);
  if (pthread_create(&other, NULL, answer, NULL) != 0) fail("a thread");
  for (long i = 0; i < count; i++) {
    char *block = calloc(1, (size_t)(1 + i % 9000));
    send_number(ends[0], &names[1], i);
    expect_number(ends[0], -i);
    free(block);
  }
  pthread_join(other, NULL);
  printf("ok %ld\n", count);
  return 0;
}

// ---------------------------------------------------------------------------------------------------------- cycles

static long resident(void) { /* kB */
  char line[256];
  long found = -1;
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file))
    if (!strncmp(line, "VmRSS:", 6)) found = atol(line + 6);
  if (file) fclose(file);
  return found;
}
static int cycles(long count) {
  long before = 0, warm = 8000; /* the quarantine of closed sockets is full by then */
  struct sockaddr_in at_a, at_b;
  int a = bound(&at_a);
  for (long i = 0; i < warm + count; i++) {
    if (i == warm) before = resident();
    int b = bound(&at_b);
    if (i % 16 == 0) send_number(b, &at_a, i), expect_number(a, i);
    if (close(b) != 0) fail("close");
  }
  long grown = resident() - before;
  printf("%ld cycles, grown by %ld kB\n", count, grown);
  return grown > 2000;
}

// ---------------------------------------------------------------------------------------------------------- many

static int many(long count) {
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  struct sockaddr_in *at = calloc((size_t)count, sizeof *at);
  int *fds = calloc((size_t)count, sizeof *fds);
  // (An address has 28,232 ports that the kernel gives out.)
  for (long i = 0; i < count; i++) fds[i] = bound_to(INADDR_LOOPBACK + (in_addr_t)(i / 20000), &at[i]);
  for (long i = 0; i < count; i++) send_number(fds[i], &at[(i + 1) % count], i);
  for (long i = 0; i < count; i++) expect_number(fds[(i + 1) % count], i);
  printf("ok %ld\n", count);
  fflush(stdout);
  char line[64];
  if (!fgets(line, sizeof line, stdin)) return 1;
  for (long i = 0; i < count; i++) close(fds[i]);
  return 0;
}

/// Descriptors with the largest numbers. The table of all of them is there, and must cost nothing where nothing is.
static int high(void) {
  struct rlimit limit;
  struct sockaddr_in at_a, at_b;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) fail("the limit");
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) fail("the limit");
  int a = bound(&at_a), b = bound(&at_b), top = (int)limit.rlim_max - 1;
  exercise(a, &at_a, b, &at_b);
  long before = resident();
  if (dup2(a, top) != top || dup2(b, top / 2) != top / 2) fail("dup2");
  close(a), close(b);
  exercise(top, &at_a, top / 2, &at_b);
  if (close_range(1000, ~0u, 0) != 0 || send(top, "", 1, 0) != -1 || errno != EBADF) fail("close_range");
  long grown = resident() - before;
  printf("ok, grown by %s\n", grown < 1000 ? "little" : "much");
  return grown >= 1000;
}
/// What the shim knows of descriptors is as long as their limit; what is not in use must cost nothing.
static int ranges(void) {
  struct sockaddr_in at;
  struct rusage before, after;
  bound(&at);
  close_range(900, 901, 0); // (its code is there from now on)
  getrusage(RUSAGE_SELF, &before);
  if (close_range(900, ~0u, 0) != 0) fail("close_range");
  getrusage(RUSAGE_SELF, &after);
  printf("%ld pages\n", after.ru_minflt - before.ru_minflt);
  return after.ru_minflt - before.ru_minflt > 8;
}

// ---------------------------------------------------------------------------------------------------------- rights

static int leave(const char *directory, uid_t uid) {
  struct sockaddr_in at_a, at_b;
  int a = bound(&at_a), b = bound(&at_b);
  if (chroot(directory) != 0 || chdir("/") != 0) fail("chroot");
  if (setgroups(0, NULL) != 0 || setgid(uid) != 0 || setuid(uid) != 0) fail("setuid");
  exercise(a, &at_a, b, &at_b);
  puts("ok");
  return 0;
}

/// Each of many datagrams arrives once, whatever becomes of the socket meanwhile that sends them.
static struct {
  int from, to;
  struct sockaddr_in at;
  atomic_long sent, taken;
  atomic_bool ends;
} stream;
static void *stream_out(void *unused) {
  while (!stream.ends) {
    if (stream.sent - stream.taken < 32) send_number(stream.from, &stream.at, stream.sent), stream.sent++;
    else sched_yield();
  }
  return NULL;
}
static void *stream_in(void *unused) {
  static bool seen[1 << 24];
  while (!stream.ends || stream.taken < stream.sent) {
    struct pollfd entry = {stream.to, POLLIN, 0};
    long number = -1;
    if (poll(&entry, 1, 20) != 1) {
      if (stream.ends && stream.taken < stream.sent && poll(&entry, 1, 5000) != 1) fail("a datagram of the stream");
      continue;
    }
    if (recv(stream.to, &number, sizeof number, 0) != sizeof number || number < 0 || number >= 1 << 24 || seen[number]) fail("the stream");
    seen[number] = true, stream.taken++;
  }
  return NULL;
}

/// What comes to a socket that two programs have is for whoever reads it; here that is the other one.
static int share(const char *uid) {
  struct sockaddr_in at_a, at_b;
  int a = bound(&at_a), b = bound(&at_b), ready[2], status;
  char socket[16], tell[16], told;
  pthread_t out, in;
  exercise(a, &at_a, b, &at_b);
  stream.from = a, stream.to = bound(&stream.at);
  if (pthread_create(&out, NULL, stream_out, NULL) != 0 || pthread_create(&in, NULL, stream_in, NULL) != 0) fail("a thread");
  while (stream.taken < 1000) sched_yield();
  if (pipe(ready) != 0) fail("a pipe");
  snprintf(socket, sizeof socket, "%d", a), snprintf(tell, sizeof tell, "%d", ready[1]);
  pid_t other = fork();
  if (other == 0) {
    uid_t user = (uid_t)atoi(uid);
    close(b), close(stream.to); /* only one is for both */
    if (setgroups(0, NULL) != 0 || setgid(user) != 0 || setuid(user) != 0) fail("setuid");
    execl("/proc/self/exe", "host", "shared", socket, tell, (char *)NULL);
    fail("exec");
  }
  if (read(ready[0], &told, 1) != 1) fail("the other program");
  for (long i = 0; i < 50; i++) {
    send_number(b, &at_a, i), expect_number(b, -i);
    send_number(a, &at_b, i), expect_number(b, i);
  }
  if (waitpid(other, &status, 0) != other || status != 0) fail("the other program's end");
  stream.ends = true;
  if (pthread_join(out, NULL) != 0 || pthread_join(in, NULL) != 0) fail("a thread's end");
  exercise(a, &at_a, b, &at_b);
  puts("ok");
  return 0;
}
static int shared(int fd, int tell) {
  for (long i = 0; i < 50; i++) {
    struct pollfd entry = {fd, POLLIN, 0};
    struct sockaddr_in from;
    socklen_t length = sizeof from;
    long number = -1;
    if (i == 0 && write(tell, "", 1) != 1) fail("write");
    if (poll(&entry, 1, 5000) != 1) fail("nothing came to both");
    if (recvfrom(fd, &number, sizeof number, 0, (void *)&from, &length) != sizeof number || number != i) fail("recvfrom");
    send_number(fd, &from, -i);
  }
  return 0;
}

static void refuse(int number, siginfo_t *info, void *context) {
#ifdef __x86_64__
  ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = -EPERM;
#else
  ((ucontext_t *)context)->uc_mcontext.regs[0] = (unsigned long)-EPERM;
#endif
}
static int filtered(bool trap) {
  struct sockaddr_in at_a, at_b;
  int a = bound(&at_a), b = bound(&at_b);
  struct sigaction action = {.sa_sigaction = refuse, .sa_flags = SA_SIGINFO};
  sigaction(SIGSYS, &action, NULL);
  unsigned no = trap ? SECCOMP_RET_TRAP : SECCOMP_RET_ERRNO | EPERM;
#define REFUSE(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, no)
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      REFUSE(SYS_memfd_create), REFUSE(SYS_eventfd2), REFUSE(SYS_kcmp), REFUSE(SYS_prlimit64), REFUSE(SYS_sched_yield),
      REFUSE(SYS_connect), REFUSE(SYS_sendmsg), REFUSE(SYS_recvmsg), REFUSE(SYS_fcntl), REFUSE(SYS_kill), REFUSE(SYS_readlink),
      // Shared mappings only: every allocator has private ones.
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[3])),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MAP_SHARED, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, no),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) fail("seccomp");
  exercise(a, &at_a, b, &at_b);
  puts("ok");
  return 0;
}

// ---------------------------------------------------------------------------------------------------------- exec

static int with_unread(void) {
  struct sockaddr_in at;
  int fd = bound(&at);
  for (long i = 0; i < 3; i++) send_number(fd, &at, i);
  return fd;
}
static int become_itself(const char *inherited) {
  if (!inherited) {
    char number[16];
    snprintf(number, sizeof number, "%d", with_unread());
    execl("/proc/self/exe", "host", "exec", number, (char *)NULL);
    fail("exec");
  }
  int fd = atoi(inherited);
  struct sockaddr_in at;
  socklen_t length = sizeof at;
  if (getsockname(fd, (void *)&at, &length) != 0) fail("what was inherited");
  for (long i = 0; i < 3; i++) expect_number(fd, i);
  for (long i = 0; i < 100; i++) send_number(fd, &at, i), expect_number(fd, i);
  puts("ok");
  return 0;
}
static int hand(char **words) {
  with_unread();
  execv(words[0], words);
  fail(words[0]);
  return 1;
}

// ---------------------------------------------------------------------------------------------------------- the end

static int last = -1;
static struct sockaddr_in at_last;
__attribute__((destructor)) static void at_the_end(void) {
  if (last < 0) return;
  struct sockaddr_in at;
  send_number(last, &at_last, 7), expect_number(last, 7);
  int fd = bound(&at);
  send_number(fd, &at_last, 8), expect_number(last, 8);
  close(fd), close(last);
  if (write(1, "and the end\n", 12) != 12) _exit(1);
}
static void registered(void) { send_number(last, &at_last, 5), expect_number(last, 5); }
static int outlive(void) {
  char line[64];
  last = bound(&at_last);
  send_number(last, &at_last, 6), expect_number(last, 6);
  atexit(registered); /* as static objects of C++ do */
  puts("ready");
  fflush(stdout);
  return fgets(line, sizeof line, stdin) ? 0 : 1;
}

int main(int count, char **words) {
  const char *mode = count > 1 ? words[1] : "";
  long number = count > 2 ? atol(words[2]) : 0;
  if (!strcmp(mode, "echo")) return echo(number);
  if (!strcmp(mode, "cycles")) return cycles(number);
  if (!strcmp(mode, "many")) return many(number);
  if (!strcmp(mode, "high")) return high();
  if (!strcmp(mode, "ranges")) return ranges();
  if (!strcmp(mode, "leave") && count == 4) return leave(words[2], (uid_t)atoi(words[3]));
  if (!strcmp(mode, "share") && count == 3) return share(words[2]);
  if (!strcmp(mode, "shared") && count == 4) return shared((int)number, atoi(words[3]));
  if (!strcmp(mode, "filtered")) return filtered(count > 2 && !strcmp(words[2], "trap"));
  if (!strcmp(mode, "exec")) return become_itself(words[2]);
  if (!strcmp(mode, "hand") && count > 2) return hand(words + 2);
  if (!strcmp(mode, "outlive")) return outlive();
  fprintf(stderr, "host: what?\n");
  return 2;
}
