// Threads and signal handlers against each other: close beside every other call, handlers at any moment, waiters that sleep.
// What is decided by chance is decided by PROBE_SEED, which the runner draws and prints.
#include "probe.h"

#include <sched.h>

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
static volatile int slots[SLOTS]; /* descriptors that anybody may use and anybody may close */
static unsigned long errors_seen[256], calls_made;

static void note(long result) {
  __atomic_fetch_add(&calls_made, 1, __ATOMIC_RELAXED);
  if (result < 0) __atomic_fetch_add(&errors_seen[errno & 255], 1, __ATOMIC_RELAXED);
}

/// One call, chosen by chance, on a descriptor that may be closed under it.
static void any_call(uint64_t *dice) {
  int fd = slots[draw(dice) % SLOTS], other = slots[draw(dice) % SLOTS], value = 1;
  unsigned char data[256] = {1};
  struct iovec vector = {data, sizeof data};
  struct sockaddr_in to = target, from;
  socklen_t length = sizeof from;
  struct msghdr message = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &vector, .msg_iovlen = 1};
  struct mmsghdr batch[2] = {{.msg_hdr = {.msg_iov = &vector, .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = &vector, .msg_iovlen = 1}}};
  struct pollfd entries[2] = {{fd, POLLIN | POLLOUT, 0}, {other, POLLIN, 0}};
  struct epoll_event event = {EPOLLIN | (draw(dice) % 2 ? (uint32_t)EPOLLET : 0), {.fd = fd}};
  struct timespec moment = {0, 100000};
  fd_set set;
  switch (draw(dice) % 34) {
  case 0: return note(send(fd, data, 20, MSG_DONTWAIT | MSG_NOSIGNAL));
  case 1: case 2: return note(sendto(fd, data, 20, MSG_DONTWAIT, (void *)&to, sizeof to));
  case 3: message.msg_name = &to; return note(sendmsg(fd, &message, MSG_DONTWAIT));
  case 4: batch[0].msg_hdr.msg_name = batch[1].msg_hdr.msg_name = &to, batch[0].msg_hdr.msg_namelen = batch[1].msg_hdr.msg_namelen = sizeof to;
          return note(sendmmsg(fd, batch, 2, MSG_DONTWAIT));
  case 5: case 6: return note(recvfrom(fd, data, sizeof data, MSG_DONTWAIT, (void *)&from, &length));
  case 7: return note(recv(fd, data, sizeof data, 0)); /* SO_RCVTIMEO */
  case 8: return note(recvmsg(fd, &message, MSG_DONTWAIT));
  case 9: return note(recvmmsg(fd, batch, 2, MSG_DONTWAIT, NULL));
  case 10: return note(read(fd, data, sizeof data));
  case 11: return note(readv(fd, &vector, 1));
  case 12: return note(write(fd, data, 20));
  case 13: return note(writev(fd, &vector, 1));
  case 14: return note(connect(fd, (void *)&to, sizeof to));
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
  case 26: return note(epoll_ctl(slots[0], EPOLL_CTL_ADD, fd, &event));
  case 27: return note(epoll_ctl(slots[0], EPOLL_CTL_MOD, fd, &event));
  case 28: return note(epoll_ctl(slots[0], EPOLL_CTL_DEL, fd, NULL));
  case 29: return note(epoll_wait(slots[0], &event, 1, 0));
  case 30: return note(epoll_wait(slots[0], &event, 1, 1));
  case 31: { int copy = dup(fd); note(copy); if (copy >= 0) note(close(copy)); return; }
  case 32: return note(fd == other || fd == slots[0] || other == slots[0] ? 0 : dup2(fd, other));
  case 33: return note(draw(dice) % 4 ? 0 : shutdown(fd, SHUT_RDWR));
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

static int fresh(unsigned slot) {
  int fd = slot == 0 ? epoll_create1(0) : socket(AF_INET, SOCK_DGRAM, 0);
  if (fd < 0) give_up("a descriptor");
  if (slot == 0) return fd;
  struct sockaddr_in name = ipv4("127.0.0.1", 0);
  struct timeval limit = {0, 1000};
  bind(fd, (void *)&name, sizeof name);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  return fd;
}

CASE(every_call, "every call against close in another thread") {
  unsigned long count = rounds(400);
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
    unsigned slot = draw(&dice) % SLOTS;
    int old = slots[slot];
    close(old);
    slots[slot] = fresh(slot);
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
                              EPERM, EPIPE, EADDRINUSE, ENOTTY, EOPNOTSUPP, ELOOP, EINTR, EBUSY};
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
