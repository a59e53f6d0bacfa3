// The number of a socket and the socket: closed, replaced and passed on while somebody uses it.
#include "probe.h"

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
