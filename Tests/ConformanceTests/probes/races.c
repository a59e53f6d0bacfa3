// Threads and signal handlers against each other: close beside every other call, handlers at any moment, waiters that sleep.
// What is decided by chance is decided by PROBE_SEED, which the runner draws and prints.
#include "probe.h"

#include <sched.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

static uint64_t seed_of(unsigned stream) {
  const char *text = getenv("PROBE_SEED");
  return (text ? strtoull(text, NULL, 0) : 1) * 0x9E3779B97F4A7C15u + stream * 0xD1B54A32D192ED03u + 1;
}
static uint32_t draw(uint64_t *state) { // xorshift64*
  *state ^= *state >> 12, *state ^= *state << 25, *state ^= *state >> 27;
  return (uint32_t)((*state * 0x2545F4914F6CDD1Du) >> 32);
}
/// How often: PROBE_ROUNDS times the least, for those who have the time.
static unsigned long rounds(unsigned long least) {
  const char *text = getenv("PROBE_ROUNDS");
  return least * (text ? strtoul(text, NULL, 0) : 1);
}
static uint64_t microseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

// A race on purpose, which ThreadSanitizer must report: a runtime that says nothing watches nothing. It comes before the descriptors
// that threads close under each other, so that the runtime's own, which it opens for its first report, is none of these.
#ifdef __SANITIZE_THREAD__
enum { SANITIZED = true };
#else
enum { SANITIZED = false };
#endif
static int canary;
static void *chirp(void *unused) { return canary++, NULL; }
static void wake_sanitizer(void) {
  pthread_t threads[2];
  for (int i = 0; SANITIZED && i < 2; i++) pthread_create(&threads[i], NULL, chirp, NULL);
  for (int i = 0; SANITIZED && i < 2; i++) pthread_join(threads[i], NULL);
}

/// After all that: two new sockets, a datagram each way.
static void still_works(void) {
  int a = udp("a"), b = udp("b");
  send_to(a, b, 1, 10);
  settle(b);
  show_recv("a new socket", b, 100, 0);
  send_to(b, a, 2, 10);
  settle(a);
  show_recv("and the other", a, 100, 0);
}

// ------------------------------------------------------------------------------------------- close against connect

static volatile int victim;
static volatile bool over;
static struct sockaddr_in target;

static void *connects(void *unused) {
  unsigned long strange = 0;
  while (!over) {
    int fd = victim;
    if (fd < 0) continue;
    if (connect(fd, (void *)&target, sizeof target) != 0 && errno != EBADF) strange++;
    struct sockaddr none = {AF_UNSPEC};
    if (connect(fd, &none, sizeof none) != 0 && errno != EBADF) strange++;
  }
  return (void *)strange;
}

CASE(case_20, "close against connect and disconnect in another thread (case 20)") {
  unsigned long count = rounds(1000);
  wake_sanitizer();
  target = name_of(udp("b"));
  pthread_t threads[2];
  over = false, victim = -1;
  for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, connects, NULL);
  for (unsigned long i = 0; i < count; i++) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    victim = fd;
    // Now in the middle of a call, now between two.
    for (unsigned spin = 0; spin < i % 64 * 8; spin++) __asm__ volatile("" ::: "memory");
    if (i % 16 == 0) sched_yield();
    if (close(fd) != 0) return say("  close: %s", strerror(errno));
    victim = -1;
  }
  over = true;
  unsigned long strange = 0;
  for (int i = 0; i < 2; i++) {
    void *result;
    pthread_join(threads[i], &result);
    strange += (unsigned long)result;
  }
  say("  all sockets closed, %lu strange errors", strange);
  still_works();
}

// ------------------------------------------------------------------------------------------- every call against close

enum { SLOTS = 6 };
static int watcher; /* an epoll that stays open */
static int post[2]; /* a pair of Unix sockets, for descriptors */
static volatile int slots[SLOTS]; /* descriptors that anybody may use and anybody may close */
static unsigned long errors_seen[256], calls_made;

static void note(long result) {
  __atomic_fetch_add(&calls_made, 1, __ATOMIC_RELAXED);
  if (result < 0) __atomic_fetch_add(&errors_seen[errno & 255], 1, __ATOMIC_RELAXED);
}

// Exported by libc for programs that were built with other macros or by an older compiler.
extern ssize_t __read_chk(int, void *, size_t, size_t), __recv_chk(int, void *, size_t, size_t, int);
extern ssize_t __recvfrom_chk(int, void *, size_t, size_t, int, struct sockaddr *, socklen_t *);
extern int __poll_chk(struct pollfd *, nfds_t, int, size_t), __sendmmsg(int, struct mmsghdr *, unsigned, int);
extern int __ppoll_chk(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *, size_t);

/// gcc 12's runtime keeps a record for each pipe and each epoll, frees it at their close, and dies where another thread's call on the
/// number is at it just then. So under it there is one epoll, by many numbers, and no pipe.
static bool may_make_records(void) { return !SANITIZED; }

/// A number that a call has given out is closed again.
static void note_made(int fd) {
  note(fd);
  if (fd >= 0) note(close(fd));
}

/// The descriptor goes to this very process, by a message.
static void pass(int fd) {
  char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
  struct iovec vector = {&byte, 1};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr *head = CMSG_FIRSTHDR(&message);
  *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
  memcpy(CMSG_DATA(head), &fd, sizeof fd);
  note(sendmsg(post[0], &message, MSG_DONTWAIT));
  message.msg_controllen = sizeof control;
  if (recvmsg(post[1], &message, MSG_DONTWAIT) != 1 || message.msg_controllen < CMSG_LEN(sizeof fd)) return;
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
  note_made(fd);
}

/// One call, chosen by chance, on a descriptor that may be closed under it.
static void any_call(uint64_t *dice) {
  int fd = slots[draw(dice) % SLOTS], other = slots[draw(dice) % SLOTS], value = 1, ends[2];
  // (What else would lead to another socket's end stays what it is: slot 0 is an epoll.)
  bool are_sockets = fd != other && fd != slots[0] && other != slots[0];
  unsigned char data[256] = {1};
  struct iovec vector = {data, sizeof data};
  struct sockaddr_in to = target, from;
  socklen_t length = sizeof from;
  struct msghdr message = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &vector, .msg_iovlen = 1};
  struct mmsghdr batch[2] = {{.msg_hdr = {.msg_iov = &vector, .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = &vector, .msg_iovlen = 1}}};
  struct pollfd entries[2] = {{fd, POLLIN | POLLOUT, 0}, {other, POLLIN, 0}};
  struct epoll_event event = {EPOLLIN | (draw(dice) % 2 ? (uint32_t)EPOLLET : 0) | (draw(dice) % 4 ? 0 : (uint32_t)EPOLLONESHOT), {.fd = fd}};
  struct timespec moment = {0, 100000};
  struct timeval limit = {0, 1000};
  char *const none[] = {NULL};
  FILE *stream;
  pid_t child;
  fd_set set;
  switch (draw(dice) % 82) {
  case 0: return note(send(fd, data, 20, MSG_DONTWAIT | MSG_NOSIGNAL));
  case 1: case 2: return note(sendto(fd, data, 20, MSG_DONTWAIT, (void *)&to, sizeof to));
  case 3: message.msg_name = &to; return note(sendmsg(fd, &message, MSG_DONTWAIT));
  case 4: case 34:
    batch[0].msg_hdr.msg_name = batch[1].msg_hdr.msg_name = &to, batch[0].msg_hdr.msg_namelen = batch[1].msg_hdr.msg_namelen = sizeof to;
    return note(draw(dice) % 2 ? sendmmsg(fd, batch, 2, MSG_DONTWAIT) : __sendmmsg(fd, batch, 2, MSG_DONTWAIT));
  case 5: case 6: return note(recvfrom(fd, data, sizeof data, MSG_DONTWAIT, (void *)&from, &length));
  case 7: return note(recv(fd, data, sizeof data, 0)); /* SO_RCVTIMEO */
  case 8: return note(recvmsg(fd, &message, MSG_DONTWAIT));
  case 9: return note(recvmmsg(fd, batch, 2, MSG_DONTWAIT, NULL));
  case 10: return note(read(fd, data, sizeof data));
  case 11: return note(readv(fd, &vector, 1));
  case 12: return note(write(fd, data, 20));
  case 13: return note(writev(fd, &vector, 1));
  case 14: case 35: return note(connect(fd, (void *)&to, sizeof to));
  case 15: to.sin_family = AF_UNSPEC; return note(connect(fd, (void *)&to, sizeof to));
  case 16: to.sin_port = 0; return note(bind(fd, (void *)&to, sizeof to));
  case 17: return note(setsockopt(fd, SOL_SOCKET, SO_TIMESTAMP, &value, sizeof value));
  case 18: length = sizeof value; return note(getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &length));
  case 19: return note(getsockname(fd, (void *)&from, &length));
  case 20: return note(getpeername(fd, (void *)&from, &length));
  case 21: return note(ioctl(fd, FIONREAD, &value));
  case 22: return note(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL)));
  case 23: return note(poll(entries, 2, 0));
  case 24: return note(ppoll(entries, 2, &moment, NULL));
  case 25: FD_ZERO(&set); FD_SET(fd, &set);
           return note(select(fd + 1, &set, NULL, NULL, &(struct timeval){0, 100}));
  case 26: case 36: return note(epoll_ctl(slots[0], EPOLL_CTL_ADD, fd, &event));
  case 27: return note(epoll_ctl(slots[0], EPOLL_CTL_MOD, fd, &event));
  case 28: return note(epoll_ctl(slots[0], EPOLL_CTL_DEL, fd, NULL));
  case 29: return note(epoll_wait(slots[0], &event, 1, 0));
  case 30: case 37: return note(epoll_wait(slots[0], &event, 1, 1));
  case 31: return note_made(dup(fd));
  case 32: return note(are_sockets ? dup2(fd, other) : 0);
  case 33: return note(draw(dice) % 4 ? 0 : shutdown(fd, SHUT_RDWR));
  case 38: return note(preadv2(fd, &vector, 1, -1, RWF_NOWAIT));
  case 39: vector.iov_len = 20; return note(pwritev2(fd, &vector, 1, -1, 0));
  case 40: return note(__read_chk(fd, data, sizeof data, sizeof data));
  case 41: return note(__recv_chk(fd, data, sizeof data, sizeof data, MSG_DONTWAIT));
  case 42: return note(__recvfrom_chk(fd, data, sizeof data, sizeof data, MSG_DONTWAIT, (void *)&from, &length));
  case 43: return note(__poll_chk(entries, 2, 1, sizeof entries));
  case 44: return note(__ppoll_chk(entries, 2, &moment, NULL, sizeof entries));
  case 45: FD_ZERO(&set); FD_SET(fd, &set); return note(pselect(fd + 1, &set, NULL, NULL, &moment, NULL));
  case 46: return note(are_sockets ? dup3(fd, other, O_CLOEXEC) : 0);
  case 47: return note_made(fcntl(fd, F_DUPFD, 0));
  case 48: return note_made(fcntl64(fd, F_DUPFD_CLOEXEC, 0));
  case 49: return note(close_range((unsigned)fd, (unsigned)fd, 0));
  case 50: stream = fdopen(fd, "r"); return note(stream ? fclose(stream) : -1);
  case 51: return note(ioctl(fd, SIOCOUTQ, &value));
  case 52: return note(ioctl(fd, SIOCGSTAMP, &(struct timeval){0, 0}));
  case 53: value = (int)(draw(dice) % 2); return note(ioctl(fd, FIONBIO, &value));
  case 54: return note(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
  case 55: return note(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit));
  case 56: value = 8192; return note(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &value, sizeof value));
  case 57: return note(setsockopt(fd, IPPROTO_IP, IP_TOS, &value, sizeof value));
  case 58: return note(setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &value, sizeof value));
  case 59: setsockopt(fd, IPPROTO_UDP, UDP_CORK, &value, sizeof value);
           value = 0; return note(setsockopt(fd, IPPROTO_UDP, UDP_CORK, &value, sizeof value));
  case 60: value = 0; return note(draw(dice) % 4 ? 0 : setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &value, sizeof value)); /* leaves Machnet */
  case 61: return note(send(fd, data, 20, MSG_DONTWAIT | MSG_MORE)), note(send(fd, data, 20, MSG_DONTWAIT));
  case 62: return note_made(socket(AF_INET, SOCK_DGRAM, 0));
  case 63: if (may_make_records()) note_made(epoll_create(1)); return;
  case 64: if (may_make_records()) note_made(epoll_create1(EPOLL_CLOEXEC)); return;
  case 65: return note(epoll_pwait(slots[0], &event, 1, 1, NULL));
  case 66: return note(epoll_pwait2(slots[0], &event, 1, &moment, NULL));
  case 67: return note_made(draw(dice) % 2 ? open("/dev/null", O_RDONLY) : open64("/dev/null", O_RDONLY));
  case 68: return note_made(draw(dice) % 2 ? openat(AT_FDCWD, "/dev/null", O_RDONLY) : openat64(AT_FDCWD, "/dev/null", O_RDONLY));
  case 69: if (!may_make_records()) return;
           note(draw(dice) % 2 ? pipe(ends) : pipe2(ends, O_CLOEXEC)); return note_made(ends[0]), note_made(ends[1]);
  case 70: return note_made(draw(dice) % 2 ? accept(fd, NULL, NULL) : accept4(fd, NULL, NULL, 0));
  case 71: return pass(fd);
  case 72: return note(draw(dice) % 8 ? 0 : execve("/nonexistent", none, environ)); /* sockets leave Machnet, and come back */
  case 73: return note(draw(dice) % 8 ? 0 : draw(dice) % 2 ? execvp("nonexistent", none) : execl("/nonexistent", "none", (char *)NULL));
  case 74: return note(draw(dice) % 8 ? 0 : -(posix_spawn(&child, "/nonexistent", NULL, NULL, none, environ) != ENOENT));
  case 75: return note(syscall(SYS_sendto, fd, data, 20, MSG_DONTWAIT, &to, sizeof to));
  case 76: return note(syscall(SYS_recvfrom, fd, data, sizeof data, MSG_DONTWAIT, NULL, NULL));
  case 77: return note(syscall(SYS_epoll_ctl, slots[0], EPOLL_CTL_ADD, fd, &event));
  case 78: return note_made((int)syscall(SYS_dup, fd));
  case 79: return note(syscall(SYS_close_range, fd, fd, 0));
  case 80: return note(recvfrom(fd, data, sizeof data, MSG_PEEK | MSG_DONTWAIT, (void *)&from, &length));
  case 81: return note(recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT));
  }
}
static volatile int callers;
static void *calls(void *stream) {
  uint64_t dice = seed_of((unsigned)(long)stream);
  while (!over) any_call(&dice);
  __atomic_fetch_sub(&callers, 1, __ATOMIC_SEQ_CST);
  return NULL;
}
static void nothing(int number) {}

/// gcc 12's runtime reads /proc/self/maps for a report, and dies where the number is closed or put to another use meanwhile. So under it
/// what threads close under each other has numbers that no open gets.
static int set_apart(int fd) {
  if (!SANITIZED || fd < 0) return fd;
  int high = fcntl(fd, F_DUPFD, 64);
  close(fd);
  return high;
}

static int fresh(unsigned slot) {
  int fd = set_apart(slot != 0 ? socket(AF_INET, SOCK_DGRAM, 0) : may_make_records() ? epoll_create1(0) : dup(watcher));
  if (fd < 0) give_up("a descriptor");
  if (slot == 0) return fd;
  struct sockaddr_in name = ipv4("127.0.0.1", 0);
  struct timeval limit = {0, 1000};
  bind(fd, (void *)&name, sizeof name);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  return fd;
}

/// The descriptor of a slot is closed and another one takes its place; or another one is put over it; or the epoll changes its mind.
static void disturb(unsigned slot, uint64_t *dice) {
  int old = slots[slot], new;
  struct epoll_event event = {EPOLLIN, {.fd = old}};
  switch (draw(dice) % 4) {
  case 0: case 1:
    close(old);
    slots[slot] = fresh(slot);
    return;
  case 2:
    // (The number may be anybody's by now, or nobody's: it is the slot's again. The new one may have been closed as well, by who meant
    // another one of that number.)
    new = fresh(slot);
    if (dup2(new, old) == old && new != old) close(new);
    return;
  case 3:
    epoll_ctl(slots[0], EPOLL_CTL_ADD, old, &event);
    event.events |= EPOLLOUT;
    epoll_ctl(slots[0], EPOLL_CTL_MOD, old, &event);
    if (draw(dice) % 2) epoll_ctl(slots[0], EPOLL_CTL_DEL, old, NULL);
  }
}

CASE(every_call, "every call against close, dup2 and epoll_ctl in another thread") {
  unsigned long count = rounds(800);
  wake_sanitizer();
  if (socketpair(AF_UNIX, SOCK_DGRAM, 0, post) != 0) give_up("socketpair");
  keep(post[0]), keep(post[1]);
  watcher = keep(epoll_create1(0));
  target = name_of(udp("b"));
  memset(errors_seen, 0, sizeof errors_seen), calls_made = 0;
  pthread_t threads[3];
  for (unsigned i = 0; i < SLOTS; i++) slots[i] = fresh(i);
  over = false, callers = 3;
  struct sigaction action = {.sa_handler = nothing};
  sigaction(SIGUSR1, &action, NULL);
  for (long i = 0; i < 3; i++) pthread_create(&threads[i], NULL, calls, (void *)(i + 1));
  uint64_t dice = seed_of(0);
  for (unsigned long i = 0; i < count || calls_made < 10 * count; i++) {
    disturb(draw(&dice) % SLOTS, &dice);
    for (unsigned spin = draw(&dice) % 2000; spin; spin--) __asm__ volatile("" ::: "memory");
    if (draw(&dice) % 8 == 0) sched_yield();
    // A receive may have met the number of a socket that had no timeout yet, and what is closed under a receive wakes nobody.
    if (i % 32 == 0) pthread_kill(threads[i / 32 % 3], SIGUSR1);
  }
  over = true;
  while (callers > 0) {
    for (int i = 0; i < 3; i++) pthread_kill(threads[i], SIGUSR1);
    usleep(1000);
  }
  for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
  // What these calls may say of a socket, an epoll, a closed number or one of another kind.
  static const int known[] = {EBADF, EAGAIN, EINVAL, ENOTSOCK, ENOTCONN, EDESTADDRREQ, ECONNREFUSED, EISCONN, ENOENT, EEXIST,
                              EPERM, EPIPE, EADDRINUSE, ENOTTY, EOPNOTSUPP, ELOOP, EINTR, EBUSY, ESPIPE};
  for (int i = 1; i < 256; i++) {
    bool expected = errors_seen[i] == 0;
    for (unsigned k = 0; k < LENGTH(known); k++) expected |= known[k] == i;
    if (!expected) say("  strange: %lu times %s", errors_seen[i], strerrorname_np(i));
  }
  say("  the calls ended as calls may");
  // (A number may have been closed under its slot and be anybody's now: only those of this case are closed.)
  for (unsigned i = 0; i < SLOTS; i++) close(slots[i]);
  still_works();
}

// ------------------------------------------------------------------------------------------- close at every instruction

enum { REST, CLOSE, CLOSED, PAST };
static struct stage {
  volatile int fd, steps, order; /* REST; CLOSE: the number to another socket; CLOSED: done; PAST: the call has fewer instructions */
  volatile bool in_call, over;
  volatile int tracer_ready; /* 1: it traces; -1: it may not */
} *stage;

/// A process of its own: runs the thread `traced` instruction by instruction from its signal on, and has the number replaced where it stands.
static void trace(pid_t traced) {
  int status;
  stage->tracer_ready = ptrace(PTRACE_SEIZE, traced, NULL, NULL) == 0 ? 1 : -1;
  while (stage->tracer_ready > 0 && waitpid(traced, &status, __WALL) == traced && WIFSTOPPED(status)) {
    siginfo_t about;
    if (WSTOPSIG(status) != SIGTRAP || ptrace(PTRACE_GETSIGINFO, traced, NULL, &about) != 0 || about.si_code != SI_TKILL) {
      ptrace(PTRACE_CONT, traced, NULL, WSTOPSIG(status));
      continue;
    }
    bool began = false;
    for (int done = 0; done <= stage->steps && (stage->in_call || !began); done += stage->in_call) {
      began |= stage->in_call;
      if (stage->in_call && done == stage->steps) break;
      if (ptrace(PTRACE_SINGLESTEP, traced, NULL, NULL) != 0 || waitpid(traced, &status, __WALL) != traced) _exit(1);
    }
    stage->order = stage->in_call ? CLOSE : PAST;
    // (What waits for the thread that stands is done when that goes on.)
    for (uint64_t end = microseconds() + 100000; stage->order == CLOSE && microseconds() < end;) sched_yield();
    ptrace(PTRACE_CONT, traced, NULL, NULL);
  }
  _exit(0);
}

static void *replaces(void *unused) {
  while (!stage->over) {
    if (stage->order == CLOSE) {
      close(stage->fd);
      int new = socket(AF_INET, SOCK_DGRAM, 0);
      if (new != stage->fd) dup2(new, stage->fd), close(new);
      stage->order = CLOSED;
    }
    sched_yield();
  }
  return NULL;
}

/// - Returns: how many calls ended as none may, or left a socket that does not work.
static unsigned long step_through(bool sends, int other, struct sockaddr_in name) {
  unsigned long strange = 0;
  unsigned char data[256] = {1};
  for (stage->order = REST, stage->steps = 0; stage->order != PAST && stage->steps < 400; stage->steps++) {
    int fd = stage->fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in own = ipv4("127.0.0.1", 0);
    bind(fd, (void *)&own, sizeof own);
    own = name_of(fd);
    // As often as it takes for the next call to be as the last one was.
    for (int i = 0; i < 3; i++) {
      if (sends) sendto(fd, data, 20, 0, (void *)&name, sizeof name);
      else sendto(other, data, 20, 0, (void *)&own, sizeof own), settle(fd), i < 2 && recv(fd, data, sizeof data, 0);
    }
    stage->order = REST;
    syscall(SYS_tgkill, getpid(), gettid(), SIGTRAP);
    stage->in_call = true;
    ssize_t n = sends ? sendto(fd, data, 20, MSG_DONTWAIT, (void *)&name, sizeof name) : recv(fd, data, sizeof data, MSG_DONTWAIT);
    int error = errno;
    stage->in_call = false;
    while (stage->order == CLOSE) sched_yield();
    if (n != 20 && !(n == -1 && (error == EBADF || error == EAGAIN))) strange++;
    if (sendto(fd, data, 20, 0, (void *)&name, sizeof name) != 20 || close(fd) != 0) strange++;
    while (recv(other, data, sizeof data, MSG_DONTWAIT) >= 0) {}
  }
  return strange;
}

CASE(every_instruction, "another socket takes the number at any instruction of a send or a receive") {
  if (SANITIZED) return say("skip: the runtime's instructions are too many");
  stage = mmap(NULL, sizeof *stage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
  pid_t probe = getpid(), tracer = fork();
  if (tracer == 0) trace(probe);
  while (stage->tracer_ready == 0) sched_yield();
  if (stage->tracer_ready < 0) return say("skip: ptrace is not permitted");
  pthread_t thread;
  pthread_create(&thread, NULL, replaces, NULL);
  int other = udp("b");
  for (int sends = 1; sends >= 0; sends--) {
    unsigned long strange = step_through(sends, other, name_of(other));
    say("  %s: %lu strange", sends ? "sendto" : "recv", strange);
    if (stage->steps < 3) say("  only %d instructions", stage->steps);
  }
  stage->over = true;
  pthread_join(thread, NULL);
  kill(tracer, SIGKILL);
  waitpid(tracer, NULL, 0);
  still_works();
}

// ------------------------------------------------------------------------------------------- several waiters at one epoll

static int crowded;
static bool crowd_is_polite;
static unsigned long told, told_wrongly;
static void *asks(void *data) {
  struct epoll_event event;
  while (!over)
    if (epoll_wait(crowded, &event, 1, 0) == 1) {
      if (event.data.u64 != (uint64_t)(uintptr_t)data) __atomic_fetch_add(&told_wrongly, 1, __ATOMIC_RELAXED);
      __atomic_fetch_add(&told, 1, __ATOMIC_RELAXED);
    } else if (crowd_is_polite) sched_yield();
  return NULL;
}

CASE(one_of_many, "several threads at one epoll: a one-shot event and an edge are told to one of them") {
  static const struct { const char *name; uint32_t bits; } kinds[] = {{"EPOLLONESHOT", EPOLLONESHOT}, {"EPOLLET", EPOLLET}};
  unsigned long count = rounds(200);
  for (unsigned kind = 0; kind < LENGTH(kinds); kind++) {
    int a = udp("a"), b = udp("b");
    unsigned long once = 0;
    struct sockaddr_in name = name_of(a);
    struct epoll_event event = {EPOLLIN | kinds[kind].bits, {.u64 = 7}};
    crowded = keep(epoll_create1(0));
    epoll_ctl(crowded, EPOLL_CTL_ADD, a, &event);
    pthread_t threads[3];
    over = false, crowd_is_polite = true;
    for (int i = 0; i < 3; i++) pthread_create(&threads[i], NULL, asks, (void *)7);
    for (unsigned long i = 0; i < count; i++) {
      unsigned long before = __atomic_load_n(&told, __ATOMIC_RELAXED), more = 0;
      sendto(b, &i, sizeof i, 0, (void *)&name, sizeof name);
      for (uint64_t end = microseconds() + 1000000; more == 0 && microseconds() < end; sched_yield())
        more = __atomic_load_n(&told, __ATOMIC_RELAXED) - before;
      // The others have had their turn.
      for (uint64_t end = microseconds() + 200; microseconds() < end;) sched_yield();
      if (__atomic_load_n(&told, __ATOMIC_RELAXED) - before == 1) once++;
      recv(a, &more, sizeof more, MSG_DONTWAIT);
      if (kinds[kind].bits == EPOLLONESHOT) epoll_ctl(crowded, EPOLL_CTL_MOD, a, &event);
    }
    over = true;
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    say("  %s: %s", kinds[kind].name, once == count ? "each once" : "NOT EACH ONCE");
    if (once != count) say("  %lu of %lu", once, count);
  }
}

CASE(own_registrations, "a socket goes to and fro between two epolls: each tells what was registered with it") {
  int a = udp("a"), b = udp("b"), other = keep(epoll_create1(0));
  unsigned long count = rounds(20000);
  struct epoll_event ours = {EPOLLIN, {.u64 = 7}}, theirs = {EPOLLIN, {.u64 = 8}};
  crowded = keep(epoll_create1(0));
  send_to(b, a, 1, 10);
  settle(a);
  pthread_t threads[2];
  over = crowd_is_polite = false, told_wrongly = 0;
  for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, asks, (void *)7);
  for (unsigned long i = 0; i < count; i++) {
    epoll_ctl(crowded, EPOLL_CTL_ADD, a, &ours);
    epoll_ctl(crowded, EPOLL_CTL_DEL, a, NULL);
    epoll_ctl(other, EPOLL_CTL_ADD, a, &theirs);
    epoll_ctl(other, EPOLL_CTL_DEL, a, NULL);
  }
  over = true;
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  say("  %lu of another epoll", told_wrongly);
}

// ------------------------------------------------------------------------------------------- wake-ups

struct party { int fd, epfd; struct sockaddr_in other; unsigned way; unsigned long count; uint64_t dice; bool first; };

/// Waits for a datagram in the party's way, takes it, answers. -1 when nothing came for 3 s.
static int await(struct party *me, uint64_t wanted) {
  uint64_t number = 0;
  struct pollfd entry = {me->fd, POLLIN, 0};
  struct epoll_event event;
  fd_set set;
  ssize_t n = -1;
  for (uint64_t end = microseconds() + 3000000; n < 0 && microseconds() < end;) {
    switch (me->way) {
    case 1: if (poll(&entry, 1, 3000) != 1) return -1; break;
    case 2: case 3: if (epoll_wait(me->epfd, &event, 1, 3000) != 1) return -1; break;
    case 4: FD_ZERO(&set); FD_SET(me->fd, &set);
            if (select(me->fd + 1, &set, NULL, NULL, &(struct timeval){3, 0}) != 1) return -1;
    }
    n = recv(me->fd, &number, sizeof number, me->way == 0 ? 0 : MSG_DONTWAIT);
    if (me->way == 0 && n < 0) return -1; /* SO_RCVTIMEO */
  }
  return n == sizeof number && number == wanted ? 0 : -1;
}
static void *play(void *argument) {
  struct party *me = argument;
  for (uint64_t i = 0; i < me->count; i++) {
    if (!me->first && await(me, i) != 0) return (void *)(long)i;
    // From far too early for the other's sleep to far too late.
    uint64_t until = microseconds() + (draw(&me->dice) % 4 ? 0 : draw(&me->dice) % 120);
    while (microseconds() < until) {}
    if (sendto(me->fd, &i, sizeof i, 0, (void *)&me->other, sizeof me->other) != sizeof i) return (void *)(long)i;
    if (me->first && await(me, i) != 0) return (void *)(long)i;
  }
  return (void *)(long)me->count;
}

CASE(case_34, "ping-pong of single datagrams, each waiter asleep or about to be: no wake-up is lost (case 34)") {
  static const char *ways[] = {"recv", "poll", "epoll", "epoll, edge-triggered", "select"};
  unsigned long count = rounds(600);
  for (unsigned way = 0; way < LENGTH(ways); way++) {
    struct party parties[2];
    int fds[2] = {udp("a"), udp("b")};
    for (int i = 0; i < 2; i++) {
      parties[i] = (struct party){fds[i], keep(epoll_create1(0)), name_of(fds[1 - i]), way, count, seed_of(way * 2 + (unsigned)i), i == 0};
      struct epoll_event event = {EPOLLIN | (way == 3 ? (uint32_t)EPOLLET : 0), {0}};
      epoll_ctl(parties[i].epfd, EPOLL_CTL_ADD, fds[i], &event);
      struct timeval limit = {3, 0};
      setsockopt(fds[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    }
    pthread_t second;
    pthread_create(&second, NULL, play, &parties[1]);
    void *first = play(&parties[0]), *other;
    pthread_join(second, &other);
    say("  %s: %s", ways[way], (unsigned long)first == count && (unsigned long)other == count ? "all came back" : "LOST");
    for (int i = 0; i < 2; i++) drop(fds[i]), drop(parties[i].epfd);
  }
}

// ------------------------------------------------------------------------------------------- signal handlers

static int storm_from, storm_to, storm_epoll;
static struct sockaddr_in storm_name;
static volatile unsigned long handled, sent_by_handler, received_by_handler, wrong_in_handler, on_its_stack;
static char *handler_stack;
enum { HANDLER_STACK = 32768 };

// Armed again at its end: a handler that takes longer than the time between two would leave the program none.
static int storm_timer;
static void arm_storm(long microseconds) {
  struct itimerval once = {{0, 0}, {0, microseconds}};
  setitimer(storm_timer, &once, NULL);
}
static volatile bool calm;

static void handler(int number) {
  int saved = errno, mark;
  unsigned char data[64] = {0};
  socklen_t length = sizeof storm_name;
  struct sockaddr_in from;
  handled++;
  if ((char *)&mark >= handler_stack && (char *)&mark < handler_stack + HANDLER_STACK) on_its_stack++;
  if (sendto(storm_from, data, 32, MSG_DONTWAIT, (void *)&storm_name, sizeof storm_name) == 32) sent_by_handler++;
  else if (errno != EAGAIN) wrong_in_handler++;
  if (handled % 2 && recvfrom(storm_to, data, sizeof data, MSG_DONTWAIT, (void *)&from, &length) == 32) received_by_handler++;
  struct pollfd entry = {storm_to, POLLIN, 0};
  if (poll(&entry, 1, 0) < 0 && errno != EINTR) wrong_in_handler++;
  if (handled % 4 == 0) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in name = storm_name;
    name.sin_port = 0;
    if (fd < 0 || bind(fd, (void *)&name, sizeof name) != 0) wrong_in_handler++;
    if (sendto(fd, data, 32, MSG_DONTWAIT, (void *)&storm_name, sizeof storm_name) == 32) sent_by_handler++;
    if (close(fd) != 0) wrong_in_handler++;
  }
  if (!calm) arm_storm(100);
  errno = saved;
}

static void storm(int signal_number, int timer, const char *name) {
  unsigned long sent = 0, received = 0, wrong = 0, count = rounds(1500);
  handled = sent_by_handler = received_by_handler = wrong_in_handler = on_its_stack = 0;
  storm_from = udp("a"), storm_to = udp("b"), storm_epoll = keep(epoll_create1(0));
  storm_name = name_of(storm_to);
  struct epoll_event event = {EPOLLIN, {0}};
  epoll_ctl(storm_epoll, EPOLL_CTL_ADD, storm_to, &event);
  stack_t stack = {.ss_sp = handler_stack = malloc(HANDLER_STACK), .ss_size = HANDLER_STACK}, off = {.ss_flags = SS_DISABLE};
  sigaltstack(&stack, NULL);
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_RESTART};
  sigaction(signal_number, &action, NULL);
  calm = false, storm_timer = timer;
  arm_storm(100);
  unsigned char data[64] = {0};
  // Long enough for the handler to have met every call; the kernel's own clock makes few of ITIMER_PROF's ticks.
  for (unsigned long i = 0; i < count || (handled < 40 && i < 100 * count); i++) {
    if (sendto(storm_from, data, 32, 0, (void *)&storm_name, sizeof storm_name) == 32) sent++;
    else wrong++;
    int n = epoll_wait(storm_epoll, &event, 1, 0);
    if (n < 0 && errno != EINTR) wrong++;
    while (recv(storm_to, data, sizeof data, MSG_DONTWAIT) == 32) received++;
    if (errno != EAGAIN) wrong++;
    struct pollfd entry = {storm_to, POLLIN, 0};
    if (i % 4 == 0 && poll(&entry, 1, 0) < 0 && errno != EINTR) wrong++;
    if (i % 8 == 0) {
      int fd = socket(AF_INET, SOCK_DGRAM, 0);
      struct sockaddr_in any = storm_name;
      any.sin_port = 0;
      if (bind(fd, (void *)&any, sizeof any) != 0) wrong++;
      epoll_ctl(storm_epoll, EPOLL_CTL_ADD, fd, &event);
      if (sendto(fd, data, 32, 0, (void *)&storm_name, sizeof storm_name) == 32) sent++;
      if (close(fd) != 0) wrong++;
    }
  }
  calm = true;
  arm_storm(0);
  signal(signal_number, SIG_IGN);
  sigaltstack(&off, NULL);
  while (sent + sent_by_handler > received + received_by_handler && settle(storm_to))
    if (recv(storm_to, data, sizeof data, MSG_DONTWAIT) == 32) received++;
  say("  %s: the handler ran %s, on %s; %lu and %lu wrong; every datagram arrived once: %s", name,
      handled >= 40 ? "often" : "seldom", on_its_stack == handled ? "its own stack" : "another stack", wrong, wrong_in_handler,
      sent + sent_by_handler == received + received_by_handler ? "yes" : "NO");
  if (sent + sent_by_handler != received + received_by_handler)
    say("  sent %lu + %lu, received %lu + %lu", sent, sent_by_handler, received, received_by_handler);
  free(handler_stack);
}

CASE(case_50, "socket calls from signal handlers, at any moment, on a stack of their own (case 50)") {
  storm(SIGALRM, ITIMER_REAL, "SIGALRM");
  storm(SIGPROF, ITIMER_PROF, "SIGPROF");
  still_works();
}
