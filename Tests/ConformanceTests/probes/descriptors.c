// The number of a socket and the socket: closed, replaced and passed on while somebody uses it.
#include "probe.h"

#include <spawn.h>

extern char **environ;

#include <setjmp.h>
#include <sys/syscall.h>

// A thread that makes one blocking call on a descriptor.
struct blocked {
  int fd;
  long (*call)(int fd);
  volatile pid_t thread;
  pthread_t handle;
  char outcome[600];
};
static __thread unsigned char taken[100];

static void *block(void *raw) {
  struct blocked *b = raw;
  b->thread = gettid();
  memset(taken, POISON, sizeof taken);
  errno = NO_ERRNO;
  long n = b->call(b->fd);
  const char *result = outcome(n);
  snprintf(b->outcome, sizeof b->outcome, "%s%s%s", result, n > 0 ? ", " : "", n > 0 ? identify(taken, (size_t)n) : "");
  return NULL;
}
static char state_of(pid_t thread) {
  char path[64], text[256] = "";
  snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread);
  int fd = open(path, O_RDONLY);
  if (fd < 0) return '?';
  ssize_t n = read(fd, text, sizeof text - 1);
  close(fd);
  char *end = n > 0 ? strrchr(text, ')') : NULL;
  return end ? end[2] : '?';
}
/// Starts the call and waits until its thread sleeps: a shim may look at its rings for a while before.
static void start(struct blocked *b, int fd, long (*call)(int)) {
  *b = (struct blocked){.fd = fd, .call = call};
  if (pthread_create(&b->handle, NULL, block, b) != 0) give_up("pthread_create");
  for (int asleep = 0; asleep < 5;) {
    usleep(1000);
    asleep = b->thread && state_of(b->thread) == 'S' ? asleep + 1 : 0;
  }
}
static void finish(struct blocked *b, const char *what) {
  pthread_join(b->handle, NULL);
  say("  %s = %s", what, b->outcome);
}
static bool is_blocked(const struct blocked *b) { return !b->outcome[0]; }

static long by_recv(int fd) { return recv(fd, taken, sizeof taken, 0); }
static long by_read(int fd) { return read(fd, taken, sizeof taken); }
static long by_recvmsg(int fd) {
  struct iovec vector = {taken, sizeof taken};
  struct msghdr m = {.msg_iov = &vector, .msg_iovlen = 1};
  return recvmsg(fd, &m, 0);
}
static const struct { const char *name; long (*call)(int); } ways[] = {{"recv", by_recv}, {"read", by_read}, {"recvmsg", by_recvmsg}};

/// A datagram to a port of 127.0.0.1, from this process or (`peer` >= 0) from the other.
static void send_to_port(int from, int peer, uint16_t port, unsigned seed) {
  struct sockaddr_in name = ipv4("127.0.0.1", port);
  if (peer >= 0) ask_peer((struct peer_command){.kind = PEER_SEND, .index = peer, .port = port, .seed = seed, .size = 10, .count = 1});
  else if (sendto(from, payload(seed, 10), 10, 0, (void *)&name, sizeof name) != 10) give_up("sendto");
}

/// What may stand where the socket was.
static int replacement(int kind) {
  int fd = -1, pipes[2];
  if (kind == 0) {
    if (pipe(pipes) != 0) give_up("pipe");
    if (write(pipes[1], "wrong file", 10) != 10) give_up("write");
    fd = pipes[0], keep(pipes[1]);
  } else if (kind == 1) {
    fd = udp("the replacement");
    send_to(fd, fd, 66, 10);
    settle(fd);
    return fd;
  }
  return keep(fd);
}

CASE(case_37, "close and dup2 while another thread is blocked in the socket (case 37)") {
  static const char *const kinds[] = {"a pipe", "another socket"};
  int b = udp("b"), peer = peer_open("peer");
  for (unsigned w = 0; w < LENGTH(ways); w++)
    for (int by_peer = 0; by_peer < 2; by_peer++)
      for (int how = 0; how < 3; how++) {
        int a = udp("a"), other = replacement(how == 2);
        uint16_t port = port_of(a);
        struct blocked receiver;
        start(&receiver, a, ways[w].call);
        if (how == 0) {
          CALL("  close = %s, %s blocked", close(a), ways[w].name);
          // The number is somebody else's at once.
          if (dup(other) != a) give_up("another number");
        } else {
          CALL("  dup2 = %s, %s over a socket, %s blocked", dup2(other, a) - a, kinds[how - 1], ways[w].name);
        }
        struct sockaddr_in name = ipv4("127.0.0.1", port);
        int again = unbound(AF_INET, 0);
        CALL("  bind to its port = %s", bind(again, (void *)&name, sizeof name));
        say("  still blocked: %s", is_blocked(&receiver) ? "yes" : "no");
        send_to_port(b, by_peer ? peer : -1, port, 7);
        finish(&receiver, by_peer ? "a datagram from the peer" : "a datagram from b");
        CALL("  bind to its port = %s", bind(again, (void *)&name, sizeof name));
        show_recv("bound again", again, 100, MSG_DONTWAIT);
        drop(a), drop(again);
      }
}

static void nothing(int signal) {}
CASE(case_37_signal, "dup2 over a socket in which a thread is blocked, or close, and a signal to the thread (case 37, the JVM's close)") {
  for (int restart = 0; restart < 2; restart++) {
    struct sigaction action = {.sa_handler = nothing, .sa_flags = restart ? SA_RESTART : 0}, old;
    sigaction(SIGUSR1, &action, &old);
    int a = udp("a"), pipes[2];
    if (pipe(pipes) != 0) give_up("pipe");
    struct blocked receiver;
    start(&receiver, a, restart ? by_read : by_recv);
    // A call that is restarted finds its number closed.
    if (restart) CALL("  close = %s", close(a));
    else CALL("  dup2 = %s", dup2(pipes[0], a) - a);
    pthread_kill(receiver.handle, SIGUSR1);
    finish(&receiver, restart ? "read, SA_RESTART" : "recv");
    sigaction(SIGUSR1, &old, NULL);
    drop(a), close(pipes[0]), close(pipes[1]);
  }
}

CASE(two_handlers, "of two signals one has a handler that restarts calls: which of them ends a receive") {
  struct sigaction restarts = {.sa_handler = nothing, .sa_flags = SA_RESTART}, ends = {.sa_handler = nothing};
  sigaction(SIGUSR1, &restarts, NULL);
  sigaction(SIGUSR2, &ends, NULL);
  int a = udp("a"), b = udp("b");
  struct blocked receiver;
  start(&receiver, a, by_recv);
  pthread_kill(receiver.handle, SIGUSR1);
  for (int asleep = 0; asleep < 20 && is_blocked(&receiver); asleep++) usleep(1000);
  say("  after SIGUSR1 it is %s", is_blocked(&receiver) ? "blocked" : "over");
  send_to(b, a, 1, 10);
  finish(&receiver, "a datagram");
  start(&receiver, a, by_recv);
  pthread_kill(receiver.handle, SIGUSR2);
  finish(&receiver, "SIGUSR2");
  signal(SIGUSR1, SIG_DFL), signal(SIGUSR2, SIG_DFL);
}

CASE(case_37_restart, "a call that a signal restarts, after its number has got another file (case 37)") {
  struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART}, old;
  sigaction(SIGUSR1, &action, &old);
  for (unsigned w = 0; w < LENGTH(ways); w++)
    for (int kind = 0; kind < 2; kind++) {
      int a = udp("a"), other = replacement(kind);
      struct blocked receiver;
      start(&receiver, a, ways[w].call);
      CALL("  dup2 = %s, %s blocked", dup2(other, a) - a, ways[w].name);
      pthread_kill(receiver.handle, SIGUSR1);
      finish(&receiver, kind ? "restarted on a socket" : "restarted on a pipe");
      drop(a);
    }
  sigaction(SIGUSR1, &old, NULL);
}

static int waker[2];
static char selected[100];
/// What `fd` is in, by the bits of `asked`: 1 read, 2 write, 4 except.
static unsigned asked;
static long by_select(int fd) {
  fd_set sets[3];
  for (int i = 0; i < 3; i++) {
    FD_ZERO(&sets[i]);
    if (asked >> i & 1) FD_SET(fd, &sets[i]);
  }
  FD_SET(waker[0], &sets[0]);
  struct timeval limit = {10, 0};
  int n = select((fd > waker[0] ? fd : waker[0]) + 1, &sets[0], &sets[1], &sets[2], &limit);
  snprintf(selected, sizeof selected, "read %d, write %d, except %d, the pipe %d", FD_ISSET(fd, &sets[0]) != 0, FD_ISSET(fd, &sets[1]) != 0,
           FD_ISSET(fd, &sets[2]) != 0, FD_ISSET(waker[0], &sets[0]) != 0);
  return n < 0 ? n : 0;
}

CASE(select_closed, "select: a socket or a pipe that is closed before, or while it waits") {
  for (int kind = 0; kind < 2; kind++)
    for (asked = 1; asked < 8; asked++) {
      if (asked & 2) continue; // (there is room)
      int a = udp("a"), pipes[2];
      if (pipe(waker) != 0 || pipe(pipes) != 0) give_up("pipe");
      struct blocked waiter;
      start(&waiter, kind ? pipes[0] : a, by_select);
      CALL("  close = %s", close(waiter.fd));
      if (write(waker[1], "x", 1) != 1) give_up("write");
      finish(&waiter, kind ? "closed a pipe, select" : "closed a socket, select");
      say("  %s", selected);
      errno = NO_ERRNO;
      CALL("  again, select = %s", by_select(waiter.fd));
      close(waker[0]), close(waker[1]), close(pipes[1]);
      if (kind) drop(a);
      else close(pipes[0]);
    }
}

CASE(close_one_of_two, "close of the number that a thread is blocked on, while a dup stays") {
  int a = udp("a"), b = udp("b"), other = keep(dup(a));
  struct blocked receiver;
  start(&receiver, a, by_recv);
  CALL("  close = %s", close(a));
  int pipes[2];
  if (pipe(pipes) != 0 || pipes[0] != a) give_up("another number");
  send_to(b, other, 3, 10);
  finish(&receiver, "recv");
  send_to(b, other, 4, 10);
  settle(other);
  show_recv("by the dup", other, 100, MSG_DONTWAIT);
  close(pipes[0]), close(pipes[1]);
}

CASE(close_timeout, "close while a receive with a timeout waits: it times out") {
  int a = udp("a");
  struct timeval limit = {0, 200000};
  setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  uint16_t port = port_of(a);
  struct blocked receiver;
  start(&receiver, a, by_recv);
  CALL("  close = %s", close(a));
  finish(&receiver, "recv");
  struct sockaddr_in name = ipv4("127.0.0.1", port);
  int again = unbound(AF_INET, 0);
  CALL("  bind to its port = %s", bind(again, (void *)&name, sizeof name));
}

CASE(close_several, "close while three threads are blocked: each has its datagram") {
  int a = udp("a"), b = udp("b");
  uint16_t port = port_of(a);
  struct blocked receivers[3];
  for (int i = 0; i < 3; i++) start(&receivers[i], a, by_recv);
  CALL("  close = %s", close(a));
  for (int i = 0; i < 3; i++) send_to_port(b, -1, port, 5);
  for (int i = 0; i < 3; i++) finish(&receivers[i], "recv");
  struct sockaddr_in name = ipv4("127.0.0.1", port);
  int again = unbound(AF_INET, 0);
  CALL("  bind to its port = %s", bind(again, (void *)&name, sizeof name));
}

CASE(close_unbound, "close while a thread is blocked in a socket that has no port yet") {
  int a = unbound(AF_INET, 0), pipes[2];
  struct timeval limit = {0, 200000};
  setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  struct blocked receiver;
  start(&receiver, a, by_read);
  CALL("  close = %s", close(a));
  if (pipe(pipes) != 0 || pipes[0] != a || write(pipes[1], "wrong file", 10) != 10) give_up("another number");
  finish(&receiver, "read");
  close(pipes[0]), close(pipes[1]);
}

CASE(cancel_blocked, "pthread_cancel of a blocked receive: nothing of it stays") {
  int a = udp("a"), b = udp("b");
  uint16_t port = port_of(a);
  for (int round = 0; round < 2; round++) {
    struct blocked receiver;
    start(&receiver, a, by_recv);
    pthread_cancel(receiver.handle);
    void *result = NULL;
    pthread_join(receiver.handle, &result);
    say("  cancelled: %s", result == PTHREAD_CANCELED ? "yes" : "no");
    send_to(b, a, 1, 10);
    settle(a);
    show_recv("recv", a, 100, MSG_DONTWAIT);
  }
  CALL("  close = %s", close(a));
  struct sockaddr_in name = ipv4("127.0.0.1", port);
  int again = unbound(AF_INET, 0);
  CALL("  bind to its port = %s", bind(again, (void *)&name, sizeof name));
}

static void *look_on(void *fd) {
  while (fd) recv((int)(intptr_t)fd, taken, sizeof taken, MSG_DONTWAIT);
  return NULL;
}
CASE(cancel_looking, "pthread_cancel of a thread that receives without waiting, over and over") {
  int a = udp("a"), b = udp("b");
  send_to(b, a, 1, 10);
  settle(a);
  pthread_t thread;
  pthread_create(&thread, NULL, look_on, (void *)(intptr_t)a);
  struct pollfd entry = {a, POLLIN, 0};
  while (poll(&entry, 1, 0) != 0) usleep(1000);
  pthread_cancel(thread);
  void *result = NULL;
  pthread_join(thread, &result);
  say("  cancelled: %s", result == PTHREAD_CANCELED ? "yes" : "no");
  send_to(b, a, 2, 10);
  settle(a);
  show_recv("recv", a, 100, MSG_DONTWAIT);
}

static sigjmp_buf escape;
static void jump(int signal) { siglongjmp(escape, 1); }
CASE(jump_out, "siglongjmp out of a blocked receive: nothing of it stays") {
  struct sigaction action = {.sa_handler = jump}, old;
  sigaction(SIGALRM, &action, &old);
  int a = udp("a"), b = udp("b");
  uint16_t port = port_of(a);
  struct itimerval soon = {.it_value = {0, 50000}};
  if (sigsetjmp(escape, 1) == 0) {
    setitimer(ITIMER_REAL, &soon, NULL);
    show_recv("never returns", a, 100, 0);
  }
  send_to(b, a, 1, 10);
  settle(a);
  show_recv("recv", a, 100, 0);
  CALL("  close = %s", close(a));
  struct sockaddr_in name = ipv4("127.0.0.1", port);
  int again = unbound(AF_INET, 0);
  CALL("  bind to its port = %s", bind(again, (void *)&name, sizeof name));
  sigaction(SIGALRM, &old, NULL);
}

static long by_poll(int fd) {
  struct pollfd entry = {fd, POLLIN, 0};
  int n = poll(&entry, 1, -1);
  return n == 1 ? entry.revents : n;
}
CASE(close_polled, "close of a socket that another thread polls: it hears of the next datagram, and that the number is gone") {
  int a = udp("a"), b = udp("b");
  uint16_t port = port_of(a);
  struct blocked poller;
  start(&poller, a, by_poll);
  CALL("  close = %s", close(a));
  say("  still blocked: %s", is_blocked(&poller) ? "yes" : "no");
  send_to_port(b, -1, port, 1);
  pthread_join(poller.handle, NULL);
  say("  poll, its revents = %s", strtok(poller.outcome, ","));
}

CASE(dup2_fails, "dup2 and dup3 that fail leave the socket as it was") {
  int a = udp("a"), b = udp("b");
  send_to(b, a, 1, 10);
  settle(a);
  CALL("  dup2 of no descriptor = %s", dup2(-1, a));
  CALL("  dup2 of a closed one = %s", dup2(1 << 19, a));
  CALL("  dup3 with wrong flags = %s", dup3(b, a, 0x40));
  CALL("  dup3 onto itself = %s", dup3(a, a, 0));
  CALL("  dup2 onto itself = %s", dup2(a, a) - a);
  show_recv("what was queued", a, 100, MSG_DONTWAIT);
  send_to(b, a, 2, 10);
  settle(a);
  show_recv("what came later", a, 100, 0);
}

CASE(dup2_over, "dup2 and dup3 over a socket: of another socket, of its own dup, of a file, and back") {
  int a = udp("a"), b = udp("b"), c = udp("c"), pipes[2];
  uint16_t port = port_of(a);
  if (pipe(pipes) != 0) give_up("pipe");
  keep(pipes[0]), keep(pipes[1]);
  int twin = keep(dup(a));
  CALL("  its own dup = %s", dup2(twin, a) - a);
  send_to(b, a, 1, 10);
  settle(a);
  show_recv("recv", a, 100, 0);
  CALL("  another socket = %s", dup3(c, a, O_CLOEXEC) - a);
  send_to(b, c, 2, 10);
  send_to(b, twin, 3, 10);
  settle(a);
  show_recv("by its new name", a, 100, 0);
  settle(twin);
  show_recv("the old one", twin, 100, 0);
  CALL("  a pipe = %s", dup2(pipes[1], twin) - twin);
  CALL("  write = %s", write(twin, "to the pipe", 11));
  char text[12] = "";
  CALL("  read = %s: %s", read(pipes[0], text, 11), text);
  struct sockaddr_in name = ipv4("127.0.0.1", port);
  int again = unbound(AF_INET, 0);
  CALL("  the old port is free = %s", bind(again, (void *)&name, sizeof name));
  CALL("  the new one on the pipe's number = %s", dup2(again, twin) - twin);
  know(port, "again");
  send_to(b, again, 4, 10);
  settle(twin);
  show_recvmsg("there", twin, 100, 0, 128, 64);
}

// ------------------------------------------------------------------------------------------------------ stale numbers

/// A system call that no shim can see.
static long raw_call(long number, long a, long b, long c) {
#if defined(__x86_64__)
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
  return x0;
#endif
}
/// An offloaded, connected socket that has been used, closed behind everybody's back. Returns its number.
static int closed_unseen(int way, int peer) {
  int a = udp("a"), b = udp("b");
  send_to(b, a, 1, 10);
  settle(a);
  recv(a, inbox, 100, 0);
  struct sockaddr_in name = peer_name(peer);
  if (connect(a, (void *)&name, sizeof name) != 0) give_up("connect");
  if (send(a, "x", 1, 0) != 1) give_up("send");
  drop(b);
  FILE *file = way == 1 ? fdopen(a, "r+") : NULL;
  if (way == 1 ? fclose(file) != 0 : raw_call(SYS_close, a, 0, 0) != 0) give_up("close");
  return a;
}
static int tcp_pair(int *other, bool accepted) {
  int listener = socket(AF_INET, SOCK_STREAM, 0), ends[2];
  struct sockaddr_in name = ipv4("127.0.0.1", 0);
  socklen_t length = sizeof name;
  if (bind(listener, (void *)&name, sizeof name) || listen(listener, 1) || getsockname(listener, (void *)&name, &length)) give_up("listen");
  // The listener may have the number that is free.
  int moved = fcntl(listener, F_DUPFD, 300);
  close(listener);
  int client = accepted ? fcntl(socket(AF_INET, SOCK_STREAM, 0), F_DUPFD, 300) : socket(AF_INET, SOCK_STREAM, 0);
  if (connect(client, (void *)&name, sizeof name) != 0) give_up("connect");
  ends[0] = client;
  ends[1] = accept(moved, NULL, NULL);
  close(moved);
  *other = ends[!accepted];
  return ends[accepted];
}
/// Both ends of a stream or pipe carry bytes as they should.
static void show_carries(const char *what, int from, int to) {
  char text[16] = "";
  const char *wrote = TRY(write(from, "twelve bytes", 12)), *got = TRY(read(to, text, sizeof text - 1));
  say("  %s: write = %s, read = %s, %s", what, wrote, got, text);
}

CASE(case_38, "a number that was closed unseen (fclose, a raw system call) and is another file by now (case 38)") {
  static const char *const ways[] = {"a raw close", "fclose"};
  int peer = peer_open("peer");
  for (int way = 0; way < 2; way++)
    for (int kind = 0; kind < 6; kind++) {
      int a = closed_unseen(way, peer), other = -1, fd = -1;
      switch (kind) {
      case 0: fd = tcp_pair(&other, false); break;
      case 1: {
        // The accepting end has the number: it was free when accept returned.
        int client = -1;
        fd = tcp_pair(&client, true);
        other = client;
        break;
      }
      case 2: {
        int ends[2];
        if (pipe(ends) != 0) give_up("pipe");
        fd = ends[0], other = ends[1];
        break;
      }
      case 3: {
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) != 0) give_up("pipe2");
        fd = ends[0], other = ends[1];
        break;
      }
      case 4: fd = open("/tmp", O_TMPFILE | O_RDWR, 0600); break;
      case 5: fd = openat(AT_FDCWD, "/proc/self/cmdline", O_RDONLY); break;
      }
      say("  %s, kind %d: the same number: %s", ways[way], kind, fd == a ? "yes" : kind == 1 ? "perhaps" : "no");
      if (kind < 2) show_carries("outward", fd, other), show_carries("inward", other, fd);
      else if (kind < 4) show_carries("inward", other, fd);
      else if (kind == 4) {
        CALL("  write = %s", write(fd, "text", 4));
        char text[8] = "";
        CALL("  pread = %s, %s", pread(fd, text, 4, 0), text);
      } else {
        char text[8] = "";
        say("  read = %s", read(fd, text, 4) == 4 ? "4" : strerrorname_np(errno));
      }
      close(fd);
      if (other >= 0) close(other);
    }
}

CASE(case_38_udp, "a number that was closed unseen and is another UDP socket by now (case 38)") {
  int peer = peer_open("peer"), b = udp("b");
  for (int way = 0; way < 2; way++) {
    int old = closed_unseen(way, peer), c = udp("c");
    say("  the same number: %s", old == c ? "yes" : "no");
    send_to(b, c, 2, 10);
    settle(c);
    show_recvmsg("recvmsg", c, 100, 0, 128, 64);
    send_to(c, b, 3, 10);
    settle(b);
    show_recvmsg("at b", b, 100, 0, 128, 64);
    show_recv("nothing", c, 100, MSG_DONTWAIT);
    drop(c);
  }
}

CASE(case_38_unseen, "a number that was closed and given out again unseen: what comes in is its own (case 38)") {
  int peer = peer_open("peer");
  for (int kind = 0; kind < 4; kind++) {
    int a = closed_unseen(0, peer), ends[2], fd = -1, other = -1;
    if (kind < 2) {
      // A pipe and a file, made by the kernel itself.
      if (kind == 0) {
        raw_call(SYS_pipe2, (long)ends, 0, 0);
        fd = ends[0], other = ends[1];
      } else fd = (int)raw_call(SYS_openat, AT_FDCWD, (long)"/dev/zero", O_RDONLY);
    } else {
      // A datagram socket, with a deadline.
      fd = (int)raw_call(SYS_socket, AF_INET, SOCK_DGRAM | (kind == 2 ? SOCK_NONBLOCK : 0), 0);
      struct sockaddr_in name = ipv4("127.0.0.1", 0);
      socklen_t length = sizeof name;
      raw_call(SYS_bind, fd, (long)&name, sizeof name);
      raw_call(SYS_getsockname, fd, (long)&name, (long)&length);
      know(ntohs(name.sin_port), "unseen");
      if (kind == 2) show_recv("nothing yet", fd, 100, 0);
      else {
        struct timeval limit = {0, 50000};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        show_recv("nothing, in time", fd, 100, 0);
      }
      int sender = (int)raw_call(SYS_socket, AF_INET, SOCK_DGRAM, 0);
      sendto(sender, payload(8, 10), 10, 0, (void *)&name, sizeof name);
      raw_call(SYS_close, sender, 0, 0);
      show_recv("the datagram", fd, 100, 0);
    }
    say("  kind %d: the same number: %s", kind, fd == a ? "yes" : "no");
    if (kind == 0) show_carries("inward", other, fd);
    if (kind == 1) {
      char text[8] = "";
      CALL("  read = %s", read(fd, text, 8));
    }
    close(fd);
    if (other >= 0) close(other);
  }
}

CASE(case_38_written, "a number that was closed and given out again unseen, then connected or bound, and written to first (case 38)") {
  int peer = peer_open("peer"), c = udp("c");
  struct sockaddr_in to_c = name_of(c), any = ipv4("127.0.0.1", 0);
  for (int kind = 0; kind < 3; kind++) {
    int a = closed_unseen(0, peer), listener = -1, other = -1;
    show_peer("of the old socket", peer);
    int fd = (int)raw_call(SYS_socket, AF_INET, kind == 2 ? SOCK_STREAM : SOCK_DGRAM, 0);
    say("  kind %d: the same number: %s", kind, fd == a ? "yes" : "no");
    if (kind == 0) {
      CALL("  connect = %s", connect(fd, (void *)&to_c, sizeof to_c));
      know(port_of(fd), "unseen");
      CALL("  send = %s", send(fd, payload(4, 10), 10, 0));
    } else if (kind == 1) {
      CALL("  bind = %s", bind(fd, (void *)&any, sizeof any));
      know(port_of(fd), "unseen");
      CALL("  sendto = %s", sendto(fd, payload(4, 10), 10, 0, (void *)&to_c, sizeof to_c));
    } else {
      struct sockaddr_in name = any;
      socklen_t length = sizeof name;
      listener = fcntl(socket(AF_INET, SOCK_STREAM, 0), F_DUPFD, 300);
      if (bind(listener, (void *)&name, sizeof name) || listen(listener, 1) || getsockname(listener, (void *)&name, &length)) give_up("listen");
      CALL("  connect = %s", connect(fd, (void *)&name, sizeof name));
      other = accept(listener, NULL, NULL);
      show_carries("outward", fd, other);
      close(other), close(listener);
    }
    if (kind < 2) {
      settle(c);
      show_recvmsg("at c", c, 100, 0, 128, 64);
    }
    close(fd);
  }
}

// ------------------------------------------------------------------------------------------------------ passed on

/// What poll, epoll and a receive that does not wait have to say of a socket.
static void show_ready(const char *what, int fd, int epoll) {
  struct pollfd entry = {fd, POLLIN, 0};
  struct epoll_event event = {0};
  int polled = poll(&entry, 1, 0);
  say("  %s: poll = %d %#x", what, polled, entry.revents);
  CALL("  epoll_wait = %s, %#x", epoll_wait(epoll, &event, 1, 0), event.events);
}

CASE(passed, "SCM_RIGHTS: what was queued is there for the sender, what comes later for both") {
  for (int batched = 0; batched < 2; batched++) {
    int a = udp("a"), b = udp("b"), epoll = keep(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, a, &event) != 0) give_up("epoll_ctl");
    // Enough to go through the rings more than once.
    for (int i = 0; i < 300; i++) {
      send_to(b, a, 9, 1400);
      settle(a);
      recv(a, inbox, sizeof inbox, 0);
    }
    for (unsigned i = 1; i <= 3; i++) send_to(b, a, i, 10);
    settle(a);
    wait_sent(b);
    int index = peer_adopt(&a, 1, batched);
    for (unsigned i = 4; i <= 5; i++) send_to(b, a, i, 10);
    wait_sent(b);
    for (int i = 0; i < 5; i++) {
      show_ready("queued", a, epoll);
      show_recvmsg("in order", a, 100, MSG_DONTWAIT, 128, 64);
    }
    show_ready("nothing", a, epoll);
    show_recv("nothing", a, 100, MSG_DONTWAIT);
    send_to(b, a, 6, 10);
    show_peer("at the peer", index);
    send_to(b, a, 7, 10);
    settle(a);
    show_recv("at the sender", a, 100, 0);
    struct sockaddr_in to_b = name_of(b);
    CALL("  sendto = %s", sendto(a, payload(8, 10), 10, 0, (void *)&to_b, sizeof to_b));
    settle(b);
    show_recvmsg("at b", b, 100, 0, 128, 64);
    struct sockaddr_in name = name_of(a);
    drop(a);
    sendto(b, payload(9, 10), 10, 0, (void *)&name, sizeof name);
    show_peer("after the sender's close", index);
    int again = unbound(AF_INET, 0);
    CALL("  bind to the port = %s", bind(again, (void *)&name, sizeof name));
    peer_close(index);
    CALL("  bind to the port = %s", bind(again, (void *)&name, sizeof name));
    drop(again);
  }
}

CASE(passed_on, "SCM_RIGHTS: who passes a socket closes it; what was queued, and what comes, is the receiver's") {
  for (int batched = 0; batched < 2; batched++) {
    int a = udp("a"), b = udp("b");
    uint16_t port = port_of(a);
    for (unsigned i = 1; i <= 3; i++) send_to(b, a, i, 10);
    settle(a);
    wait_sent(b);
    int index = peer_adopt(&a, 1, batched);
    drop(a);
    for (int i = 0; i < 3; i++) show_peer("queued", index);
    for (unsigned i = 4; i <= 6; i++) {
      send_to_port(b, -1, port, i);
      show_peer("after that", index);
    }
    peer_close(index);
    drop(b);
  }
}

CASE(passed_blocked, "SCM_RIGHTS while a thread is blocked in the socket") {
  int a = udp("a"), b = udp("b");
  send_to(b, a, 1, 10);
  settle(a);
  recv(a, inbox, 100, 0);
  struct blocked receiver;
  start(&receiver, a, by_recv);
  int index = peer_adopt(&a, 1, false);
  send_to(b, a, 2, 10);
  finish(&receiver, "recv");
  send_to(b, a, 3, 10);
  show_peer("at the peer", index);
}

static long after_poll(int fd) {
  struct pollfd entry = {fd, POLLIN, 0};
  return poll(&entry, 1, 5000) == 1 ? recv(fd, taken, sizeof taken, MSG_DONTWAIT) : -1;
}
static long after_select(int fd) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(fd, &set);
  struct timeval limit = {5, 0};
  return select(fd + 1, &set, NULL, NULL, &limit) == 1 ? recv(fd, taken, sizeof taken, MSG_DONTWAIT) : -1;
}
static int waiting_epoll;
static long after_epoll(int fd) {
  struct epoll_event event;
  return epoll_wait(waiting_epoll, &event, 1, 5000) == 1 ? recv(fd, taken, sizeof taken, MSG_DONTWAIT) : -1;
}
CASE(passed_waiting, "SCM_RIGHTS while a thread waits for the socket, and the receiver has it and does not read") {
  static const struct { const char *name; long (*call)(int); } waits[] = {
      {"recv", by_recv}, {"poll", after_poll}, {"select", after_select}, {"epoll_wait", after_epoll}};
  for (unsigned w = 0; w < LENGTH(waits); w++) {
    int a = udp("a"), b = udp("b"), late = keep(epoll_create1(0));
    waiting_epoll = keep(epoll_create1(0));
    struct epoll_event event = {.events = w % 2 ? EPOLLIN : EPOLLIN | EPOLLET};
    if (epoll_ctl(waiting_epoll, EPOLL_CTL_ADD, a, &event) != 0) give_up("epoll_ctl");
    send_to(b, a, 1, 10);
    settle(a);
    recv(a, inbox, 100, 0);
    struct blocked waiter;
    start(&waiter, a, waits[w].call);
    int index = peer_adopt(&a, 1, false);
    peer_port(index);
    send_to(b, a, 2, 10);
    finish(&waiter, waits[w].name);
    // And one that begins to wait when the receiver has it.
    if (epoll_ctl(late, EPOLL_CTL_ADD, a, &event) != 0) give_up("epoll_ctl");
    waiting_epoll = late;
    start(&waiter, a, waits[w].call);
    send_to(b, a, 3, 10);
    finish(&waiter, waits[w].name);
    struct sockaddr_in to_b = name_of(b);
    CALL("  sendto = %s", sendto(a, payload(4, 10), 10, 0, (void *)&to_b, sizeof to_b));
    settle(b);
    show_recvmsg("at b", b, 100, 0, 128, 64);
    send_to(b, a, 5, 10);
    show_peer("at the peer", index);
    peer_close(index);
    send_to(b, a, 6, 10);
    settle(a);
    show_recv("after the receiver's close", a, 100, 0);
    drop(a);
  }
}

/// In a child: takes a descriptor from `channel` when it is told to, then receives `count` datagrams on it and tells what they were.
static void receive_passed(int channel, int go, unsigned count) {
  char byte, room[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
  struct iovec vector = {&byte, 1};
  struct msghdr m = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
  int fd;
  if (read(go, &byte, 1) != 1 || recvmsg(channel, &m, 0) != 1) _exit(1);
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
  if (write(channel, "h", 1) != 1 || read(go, &byte, 1) != 1) _exit(1);
  struct timeval limit = {3, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  char story[400] = "";
  for (unsigned i = 0; i < count; i++) {
    ssize_t n = recv(fd, inbox, 100, 0);
    snprintf(story + strlen(story), 30, " %s", n < 0 ? strerrorname_np(errno) : identify(inbox, (size_t)n));
  }
  if (write(channel, story, strlen(story)) < 0) _exit(1);
  _exit(0);
}
CASE(passed_order, "SCM_RIGHTS: what came before, on the way and after is in order, for the receiver and for the sender") {
  for (int reader = 0; reader < 2; reader++)
    for (int members = 1; members <= 2; members++) {
      int pairs[2][2], go[2][2], b = udp("b");
      pid_t children[2];
      for (int i = 0; i < members; i++) {
        if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pairs[i]) != 0 || pipe(go[i]) != 0) give_up("socketpair");
        if ((children[i] = fork()) == 0) receive_passed(pairs[i][1], go[i][0], reader == 0 && i == 0 ? 9 : 0);
      }
      int a = udp("a");
      for (unsigned i = 1; i <= 3; i++) send_to(b, a, i, 10);
      settle(a);
      wait_sent(b);
      for (int i = 0; i < members; i++) {
        char byte = 'x', room[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
        struct iovec vector = {&byte, 1};
        struct msghdr m = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(c), &a, sizeof a);
        if (sendmsg(pairs[i][0], &m, 0) != 1) give_up("sendmsg");
      }
      for (unsigned i = 4; i <= 6; i++) send_to(b, a, i, 10);
      wait_sent(b);
      char story[500] = "";
      for (int i = 0; i < members; i++)
        if (write(go[i][1], "x", 1) != 1 || read(pairs[i][0], story, 1) != 1) give_up("a child");
      for (unsigned i = 7; i <= 9; i++) send_to(b, a, i, 10);
      wait_sent(b);
      for (int i = 0; reader == 1 && i < 9; i++) {
        settle(a);
        show_recv("at the sender", a, 100, MSG_DONTWAIT);
      }
      for (int i = 0; i < members; i++) {
        ssize_t n = 0;
        if (write(go[i][1], "x", 1) != 1 || (reader == 0 && i == 0 && (n = read(pairs[i][0], story, sizeof story - 1)) < 0)) give_up("a child");
        story[n] = 0;
        if (n) say("  the receiver:%s", story);
        waitpid(children[i], NULL, 0);
        close(pairs[i][0]), close(pairs[i][1]), close(go[i][0]), close(go[i][1]);
      }
      show_recv("nothing more", a, 100, MSG_DONTWAIT);
      drop(a), drop(b);
    }
}

CASE(passed_kinds, "SCM_RIGHTS: sockets that are not bound, connected, one of two descriptors, several at once") {
  int fresh = unbound(AF_INET, 0), connected = udp("connected"), two = udp("two"), b = udp("b"), twin = keep(dup(two));
  struct sockaddr_in to_b = name_of(b), any = ipv4("127.0.0.1", 0);
  connect(connected, (void *)&to_b, sizeof to_b);
  int all[] = {fresh, connected, twin, b};
  int index = peer_adopt(all, 4, false);
  CALL("  bind = %s", bind(fresh, (void *)&any, sizeof any));
  know(port_of(fresh), "fresh");
  send_to(two, fresh, 1, 10);
  show_peer("fresh", index);
  send_to(b, connected, 2, 10);
  show_peer("connected", index + 1);
  CALL("  send = %s", send(connected, payload(3, 10), 10, 0));
  show_peer("b", index + 3);
  send_to(b, two, 4, 10);
  show_peer("twin", index + 2);
  send_to(b, two, 5, 10);
  settle(two);
  show_recv("two", two, 100, 0);
}

// descriptors --receive FD: what an exec leads to.
__attribute__((constructor)) static void inherited(int count, char **words) {
  if (count != 3 || strcmp(words[1], "--receive")) return;
  int fd = atoi(words[2]);
  struct timeval limit = {5, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  ssize_t n = recv(fd, content, sizeof content, 0);
  printf("    received %zd, %s\n", n, n > 0 ? identify(content, (size_t)n) : strerrorname_np(errno));
  fflush(stdout);
  _exit(0);
}
CASE(exec_inherits, "exec: the new program has the socket, and what arrives from then on") {
  int b = udp("b");
  for (int round = 0; round < 10; round++) {
    int up[2], ended[2];
    if (pipe2(up, O_CLOEXEC) != 0 || pipe2(ended, O_CLOEXEC) != 0) give_up("pipe2");
    pid_t child = fork();
    if (child == 0) {
      int a = udp("a");
      char number[16];
      // It is used before: by the rings, where there are rings.
      send_to(a, a, 1, 10);
      settle(a);
      recv(a, inbox, 100, 0);
      uint16_t port = port_of(a);
      if (write(up[1], &port, sizeof port) != sizeof port) _exit(1);
      snprintf(number, sizeof number, "%d", a);
      execl("/proc/self/exe", "descriptors", "--receive", number, (char *)NULL);
      _exit(1);
    }
    close(up[1]);
    uint16_t port = 0;
    if (read(up[0], &port, sizeof port) != sizeof port) give_up("the child");
    // Its descriptors with FD_CLOEXEC are closed: the exec has happened.
    char byte;
    if (read(up[0], &byte, 1) != 0) give_up("exec");
    send_to_port(b, -1, port, 20 + (unsigned)round);
    int status = 0;
    waitpid(child, &status, 0);
    say("  exit status %d", WEXITSTATUS(status));
    close(up[0]), close(ended[0]), close(ended[1]);
  }
}

// descriptors --inherit FD UP COUNT WAITING: a program that was started with a socket. It takes `WAITING` datagrams that must be
// there, tells UP, and then receives until it has COUNT.
__attribute__((constructor)) static void inherit(int count, char **words) {
  if (count != 6 || strcmp(words[1], "--inherit")) return;
  int fd = atoi(words[2]), up = atoi(words[3]), all = atoi(words[4]), waiting = atoi(words[5]);
  for (int i = 0; i < all; i++) {
    if (i == waiting && write(up, "r", 1) != 1) _exit(1);
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    int polled = poll(&entry, 1, i < waiting ? 0 : 5000);
    struct sockaddr_in from = {0};
    socklen_t length = sizeof from;
    ssize_t n = recvfrom(fd, content, sizeof content, MSG_DONTWAIT, (void *)&from, &length);
    printf("    poll %d %#x, %zd bytes, %s, name of %u bytes\n", polled, entry.revents, n,
           n > 0 ? identify(content, (size_t)n) : n < 0 ? strerrorname_np(errno) : "", length);
    fflush(stdout);
    // The sender is who it was.
    if (n > 0 && i >= waiting && sendto(fd, content, (size_t)n, 0, (void *)&from, length) != n) printf("    no answer\n");
  }
  ssize_t n = recv(fd, content, sizeof content, MSG_DONTWAIT);
  printf("    then %zd, %s\n", n, n < 0 ? strerrorname_np(errno) : "");
  fflush(stdout);
  _exit(0);
}
static void become_heir(int fd, int up, int all, int waiting) {
  char words[4][16];
  int values[] = {fd, up, all, waiting};
  for (int i = 0; i < 4; i++) snprintf(words[i], sizeof words[i], "%d", values[i]);
  execl("/proc/self/exe", "descriptors", "--inherit", words[0], words[1], words[2], words[3], (char *)NULL);
  _exit(1);
}
static void await(int fd) {
  char byte;
  if (read(fd, &byte, 1) != 1) give_up("the other program");
}

CASE(exec_unread, "exec: what was unread goes along, in order; the socket goes on with what arrives then") {
  for (int how = 0; how < 3; how++) {
    int b = udp("b"), up[2], down[2];
    if (pipe(up) != 0 || pipe(down) != 0) give_up("pipe");
    pid_t child = fork();
    if (child == 0) {
      int a = udp("a");
      // Twice the same socket (inetd has it as 0 and 1), and a limit of its own.
      if (how == 1) dup2(a, 150);
      int room = 30000;
      if (how == 2 && setsockopt(a, SOL_SOCKET, SO_RCVBUF, &room, sizeof room) != 0) _exit(1);
      uint16_t port = port_of(a);
      if (write(up[1], &port, sizeof port) != sizeof port) _exit(1);
      await(down[0]);
      settle(a);
      become_heir(how == 1 ? 150 : a, up[1], 5, 3);
    }
    uint16_t port = 0;
    if (read(up[0], &port, sizeof port) != sizeof port) give_up("the child");
    for (unsigned i = 1; i <= 3; i++) send_to_port(b, -1, port, i);
    wait_sent(b);
    if (write(down[1], "g", 1) != 1) give_up("write");
    await(up[0]);
    know(port, "a");
    int status = 0;
    for (unsigned i = 4; i <= 5; i++) {
      send_to_port(b, -1, port, i);
      if (i == 5) waitpid(child, &status, 0);
      settle(b);
      show_recv("answer", b, 100, 0);
    }
    say("  exit status %d", WEXITSTATUS(status));
    close(up[0]), close(up[1]), close(down[0]), close(down[1]);
  }
}

// How a super-server may start the server of a socket.
enum { BY_FORK, BY_VFORK, BY_SPAWN, BY_SPAWN_AS_0, WAYS };
static pid_t start_server(int way, int fd, int up, int all, int waiting) {
  char words[4][16];
  int values[] = {way == BY_SPAWN_AS_0 ? 0 : fd, up, all, waiting};
  for (int i = 0; i < 4; i++) snprintf(words[i], sizeof words[i], "%d", values[i]);
  char *all_words[] = {"descriptors", "--inherit", words[0], words[1], words[2], words[3], NULL};
  pid_t child = way == BY_FORK ? fork() : way == BY_VFORK ? vfork() : -1;
  if (child == 0) {
    execv("/proc/self/exe", all_words);
    _exit(1);
  }
  if (way < BY_SPAWN) return child;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (way == BY_SPAWN_AS_0) {
    posix_spawn_file_actions_adddup2(&actions, fd, 0);
    posix_spawn_file_actions_addclose(&actions, fd);
  }
  if (posix_spawn(&child, "/proc/self/exe", &actions, NULL, all_words, environ) != 0) give_up("posix_spawn");
  posix_spawn_file_actions_destroy(&actions);
  return child;
}

CASE(super_server, "inetd: who waits for a datagram starts a server, which receives it and more; then it waits again") {
  for (int way = 0; way < WAYS; way++) {
    int a = udp("a"), b = udp("b"), up[2], status = 0;
    uint16_t port = port_of(a);
    if (pipe(up) != 0) give_up("pipe");
    for (unsigned round = 0; round < 3; round++) {
      unsigned first = round * 10;
      send_to(b, a, first + 1, 10);
      struct pollfd entry = {.fd = a, .events = POLLIN};
      CALL("  poll = %s, %#x", poll(&entry, 1, 5000), entry.revents);
      // (The datagrams that wait must be there when the server looks.)
      send_to(b, a, first + 2, 10);
      wait_sent(b);
      pid_t child = start_server(way, a, up[1], 4, 2);
      await(up[0]);
      for (unsigned i = first + 3; i <= first + 4; i++) {
        send_to(b, a, i, 10);
        if (i == first + 4) waitpid(child, &status, 0);
        settle(b);
        show_recv("answer", b, 100, 0);
      }
      say("  exit status %d", WEXITSTATUS(status));
    }
    show_recv("nothing is left", a, 100, MSG_DONTWAIT);
    send_to(b, a, 99, 10);
    settle(a);
    show_recv("the super-server's", a, 100, 0);
    drop(a);
    int again = unbound(AF_INET, 0);
    struct sockaddr_in name = ipv4("127.0.0.1", port);
    CALL("  bind to the port = %s", bind(again, (void *)&name, sizeof name));
    know(port, "again");
    for (unsigned i = 100; i < 103; i++) {
      send_to(b, again, i, 10);
      settle(again);
      show_recv("at the new socket", again, 100, MSG_DONTWAIT);
    }
    drop(again), drop(b);
    close(up[0]), close(up[1]);
  }
}

CASE(activated, "a server is started with a socket that its starter closes at once; datagrams before, between and after") {
  for (int way = 0; way < WAYS; way++) {
    int a = udp("a"), b = udp("b"), up[2], status = 0;
    uint16_t port = port_of(a);
    if (pipe(up) != 0) give_up("pipe");
    for (unsigned i = 1; i <= 3; i++) send_to(b, a, i, 10);
    wait_sent(b);
    pid_t child = start_server(way, a, up[1], 6, 3);
    drop(a);
    know(port, "a");
    await(up[0]);
    for (unsigned i = 4; i <= 6; i++) {
      send_to_port(b, -1, port, i);
      if (i == 6) waitpid(child, &status, 0);
      settle(b);
      show_recv("answer", b, 100, 0);
    }
    say("  exit status %d", WEXITSTATUS(status));
    drop(b);
    close(up[0]), close(up[1]);
  }
}

CASE(fork_exec, "a forked child that execs has no part in the parent's socket") {
  int a = udp("a"), b = udp("b");
  uint16_t port = port_of(a);
  fcntl(a, F_SETFD, FD_CLOEXEC);
  send_to(b, a, 1, 10);
  settle(a);
  recv(a, inbox, 100, 0);
  int held[2];
  if (pipe(held) != 0) give_up("pipe");
  pid_t child = fork();
  if (child == 0) {
    dup2(held[0], 0);
    close(held[1]);
    execlp("cat", "cat", (char *)NULL);
    _exit(1);
  }
  close(held[0]);
  fcntl(held[1], F_SETFD, FD_CLOEXEC);
  // The child is another program when its standard input is all that it reads.
  for (char path[64], name[32] = ""; strncmp(name, "cat", 3);) {
    snprintf(path, sizeof path, "/proc/%d/comm", child);
    int fd = open(path, O_RDONLY);
    if (fd < 0 || read(fd, name, sizeof name - 1) < 0) give_up("comm");
    close(fd);
  }
  send_to(b, a, 2, 10);
  settle(a);
  show_recv("the parent's", a, 100, 0);
  CALL("  close = %s", close(a));
  int again = unbound(AF_INET, 0);
  struct sockaddr_in name = ipv4("127.0.0.1", port);
  CALL("  bind to the port = %s", bind(again, (void *)&name, sizeof name));
  know(port, "again");
  for (unsigned i = 3; i < 6; i++) {
    send_to(b, again, i, 10);
    settle(again);
    show_recv("at the new socket", again, 100, MSG_DONTWAIT);
  }
  CALL("  close = %s", close(again));
  CALL("  connect = %s", connect(b, (void *)&name, sizeof name));
  CALL("  send = %s", send(b, "x", 1, 0));
  show_recv("refused", b, 100, 0);
  close(held[1]);
  waitpid(child, NULL, 0);
}

CASE(vfork_closes, "vfork: what the child closes, replaces and duplicates stays the parent's (case 7)") {
  int a = udp("a"), b = udp("b"), c = udp("c"), epoll = keep(epoll_create1(0));
  struct epoll_event event = {.events = EPOLLIN};
  epoll_ctl(epoll, EPOLL_CTL_ADD, a, &event);
  send_to(b, a, 1, 10);
  settle(a);
  volatile int fds[] = {a, b, c, epoll};
  pid_t child = vfork();
  if (child == 0) {
    dup2(fds[1], fds[2]);
    dup2(0, fds[1]);
    close(fds[0]);
    close(fds[3]);
    close_range(3, ~0u, 0);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  say("  exit status %d", WEXITSTATUS(status));
  CALL("  epoll_wait = %s", epoll_wait(epoll, &event, 1, 1000));
  show_recv("what was queued", a, 100, MSG_DONTWAIT);
  send_to(b, a, 2, 10);
  settle(a);
  show_recvmsg("from b", a, 100, 0, 128, 64);
  send_to(b, c, 3, 10);
  settle(c);
  show_recv("c is not b", c, 100, 0);
}

CASE(fork_exits, "a forked child that has ended has no part in the parent's socket (cases 24, 26)") {
  for (int how = 0; how < 3; how++) {
    int a = udp("a"), b = udp("b");
    uint16_t port = port_of(a);
    send_to(b, a, 1, 10);
    settle(a);
    recv(a, inbox, 100, 0);
    for (int i = 0; i < 3; i++) {
      pid_t child = fork();
      if (child == 0) {
        if (how == 1) close(a);
        if (how == 2) kill(getpid(), SIGKILL);
        _exit(0);
      }
      waitpid(child, NULL, 0);
    }
    send_to(b, a, 2, 10);
    settle(a);
    show_recv("the parent's", a, 100, 0);
    drop(a);
    struct sockaddr_in name = ipv4("127.0.0.1", port);
    int again = unbound(AF_INET, 0);
    CALL("  bind to the port = %s", bind(again, (void *)&name, sizeof name));
    know(port, "again");
    for (unsigned i = 3; i < 6; i++) {
      send_to(b, again, i, 10);
      settle(again);
      show_recv("at the new socket", again, 100, MSG_DONTWAIT);
    }
    drop(again);
    CALL("  connect = %s", connect(b, (void *)&name, sizeof name));
    CALL("  send = %s", send(b, "x", 1, 0));
    show_recv("refused", b, 100, MSG_DONTWAIT);
    drop(b);
  }
}
