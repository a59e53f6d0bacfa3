// epoll: every kind of registration, nested, shared, and changed while somebody waits.
#include "probe.h"

#include <sys/syscall.h>

static int add(int e, int fd, unsigned bits, uint64_t data) {
  struct epoll_event event = {.events = bits, .data.u64 = data};
  return epoll_ctl(e, EPOLL_CTL_ADD, fd, &event);
}
static int change(int e, int fd, unsigned bits, uint64_t data) {
  struct epoll_event event = {.events = bits, .data.u64 = data};
  return epoll_ctl(e, EPOLL_CTL_MOD, fd, &event);
}
static int by_data(const void *x, const void *y) {
  uint64_t a = ((const struct epoll_event *)x)->data.u64, b = ((const struct epoll_event *)y)->data.u64;
  return a < b ? -1 : a > b;
}
static void show_wait(const char *what, int e, int capacity, int timeout) {
  struct epoll_event events[8];
  memset(events, POISON, sizeof events);
  errno = NO_ERRNO;
  int n = epoll_wait(e, events, capacity, timeout);
  const char *result = outcome(n);
  if (n > 1) qsort(events, (size_t)n, sizeof *events, by_data);
  char line[400] = "";
  for (int i = 0; i < n; i++) sprintf(line + strlen(line), " %#x of %llu", events[i].events, (unsigned long long)events[i].data.u64);
  int used = n < 0 ? 0 : n;
  say("  %s = %s:%s%s", what, result, line, used > capacity ? " TOO MANY" : "");
}

CASE(level, "level-triggered: until the queue is empty") {
  int a = udp("a"), peer = peer_open("peer"), e = keep(epoll_create1(0));
  CALL("  add = %s", add(e, a, EPOLLIN, 1));
  show_wait("nothing", e, 8, 0);
  peer_send(peer, a, 1, 10, 2);
  show_wait("one", e, 8, 3000);
  show_wait("still", e, 8, 0);
  show_recv("recv", a, 100, 0);
  show_wait("another", e, 8, 3000);
  show_recv("recv", a, 100, 0);
  show_wait("none", e, 8, 0);
  show_wait("none", e, 8, 20);
}

CASE(bits, "the bits that are reported: each asked for, nothing there, a datagram there, an error there") {
  static const unsigned wanted[] = {0, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLRDNORM, EPOLLWRNORM, EPOLLIN | EPOLLOUT, EPOLLIN | EPOLLET, EPOLLOUT | EPOLLET,
                                    EPOLLIN | EPOLLWAKEUP, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLONESHOT};
  int a = udp("a"), b = udp("b");
  for (int round = 0; round < 2; round++) {
    for (unsigned i = 0; i < LENGTH(wanted); i++) {
      int e = keep(epoll_create1(0));
      add(e, a, wanted[i], i);
      show_wait("wait", e, 8, 0);
      drop(e);
    }
    send_to(b, a, 1, 10);
    settle(a);
  }
  int gone = udp("gone");
  struct sockaddr_in name = name_of(gone);
  drop(gone);
  int c = udp("c"), e = keep(epoll_create1(0));
  connect(c, (void *)&name, sizeof name);
  add(e, c, EPOLLIN, 7);
  send(c, "x", 1, 0);
  show_wait("an error", e, 8, 3000);
  show_recv("recv", c, 10, MSG_DONTWAIT);
  show_wait("none", e, 8, 0);
}

CASE(case_44, "edge-triggered: once per arrival; one-shot: once per MOD; DEL with NULL (case 44)") {
  int a = udp("a"), peer = peer_open("peer"), e = keep(epoll_create1(0));
  peer_send(peer, a, 1, 10, 1);
  settle(a);
  CALL("  add EPOLLET with a datagram there = %s", add(e, a, EPOLLIN | EPOLLET, 1));
  show_wait("at once", e, 8, 3000);
  show_wait("not again", e, 8, 20);
  peer_send(peer, a, 2, 10, 1);
  show_wait("another", e, 8, 3000);
  show_wait("not again", e, 8, 20);
  show_recv("recv", a, 100, 0);
  show_wait("a receive is no edge", e, 8, 20);
  CALL("  modify = %s", change(e, a, EPOLLIN | EPOLLET, 2));
  show_wait("after modify", e, 8, 3000);
  show_wait("not again", e, 8, 20);
  show_recv("recv", a, 100, 0);
  CALL("  modify = %s", change(e, a, EPOLLIN | EPOLLONESHOT, 3));
  show_wait("nothing there", e, 8, 0);
  peer_send(peer, a, 3, 10, 1);
  show_wait("one-shot", e, 8, 3000);
  peer_send(peer, a, 4, 10, 1);
  settle(a);
  show_wait("not again", e, 8, 20);
  CALL("  modify = %s", change(e, a, EPOLLIN | EPOLLONESHOT, 4));
  show_wait("armed anew", e, 8, 3000);
  show_wait("not again", e, 8, 20);
  CALL("  delete with NULL = %s", epoll_ctl(e, EPOLL_CTL_DEL, a, NULL));
  show_wait("deleted", e, 8, 20);
  CALL("  delete again = %s", epoll_ctl(e, EPOLL_CTL_DEL, a, NULL));
  CALL("  add again = %s", add(e, a, EPOLLIN, 5));
  show_wait("added", e, 8, 3000);
}

CASE(case_1, "epoll_ctl: errors of ADD, MOD, DEL (case 1)") {
  int a = udp("a"), e = keep(epoll_create1(0)), file = keep(open("/dev/null", O_RDONLY));
  struct epoll_event event = {.events = EPOLLIN};
  CALL("  MOD before ADD = %s", change(e, a, EPOLLIN, 1));
  CALL("  DEL before ADD = %s", epoll_ctl(e, EPOLL_CTL_DEL, a, &event));
  CALL("  ADD = %s", add(e, a, EPOLLIN, 1));
  CALL("  ADD twice = %s", add(e, a, EPOLLIN, 1));
  CALL("  MOD = %s", change(e, a, EPOLLIN | EPOLLOUT, 2));
  CALL("  an unknown operation = %s", epoll_ctl(e, 9, a, &event));
  CALL("  ADD with NULL = %s", epoll_ctl(e, EPOLL_CTL_ADD, a, NULL));
  CALL("  MOD to EPOLLEXCLUSIVE = %s", change(e, a, EPOLLIN | EPOLLEXCLUSIVE, 2));
  CALL("  a descriptor that is none = %s", epoll_ctl(a, EPOLL_CTL_ADD, e, &event));
  CALL("  itself = %s", add(e, e, EPOLLIN, 1));
  CALL("  /dev/null = %s", add(e, file, EPOLLIN, 1));
  CALL("  -1 = %s", add(e, -1, EPOLLIN, 1));
  CALL("  DEL = %s", epoll_ctl(e, EPOLL_CTL_DEL, a, &event));
  CALL("  ADD exclusive and one-shot = %s", add(e, a, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 1));
  CALL("  ADD exclusive = %s", add(e, a, EPOLLIN | EPOLLEXCLUSIVE, 1));
  CALL("  MOD of an exclusive one = %s", change(e, a, EPOLLIN, 1));
  CALL("  wait for 0 events = %s", epoll_wait(e, &event, 0, 0));
  CALL("  wait for -1 events = %s", epoll_wait(e, &event, -1, 0));
  CALL("  wait on a socket = %s", epoll_wait(a, &event, 1, 0));
  CALL("  wait on -1 = %s", epoll_wait(-1, &event, 1, 0));
  struct timespec wrong = {0, -1};
  CALL("  epoll_pwait2, a wrong timeout = %s", epoll_pwait2(e, &event, 1, &wrong, NULL));
}

CASE(exclusive, "EPOLLEXCLUSIVE in two epolls: both know of a datagram that nobody takes") {
  int a = udp("a"), b = udp("b"), e = keep(epoll_create1(0)), f = keep(epoll_create1(0));
  CALL("  add = %s", add(e, a, EPOLLIN | EPOLLEXCLUSIVE, 1));
  CALL("  add = %s", add(f, a, EPOLLIN | EPOLLEXCLUSIVE, 2));
  send_to(b, a, 1, 10);
  show_wait("one", e, 8, 3000);
  show_recv("recv", a, 10, 0);
  show_wait("none", e, 8, 20);
  send_to(b, a, 2, 10);
  show_wait("again", e, 8, 3000);
  show_recv("recv", a, 10, 0);
}

CASE(case_2, "nested: an epoll in an epoll, in poll and in select (case 2)") {
  int a = udp("a"), peer = peer_open("peer"), inner = keep(epoll_create1(0)), outer = keep(epoll_create1(0));
  add(inner, a, EPOLLIN, 1);
  CALL("  add the inner = %s", add(outer, inner, EPOLLIN, 2));
  show_wait("nothing", outer, 8, 0);
  for (int round = 0; round < 3; round++) {
    peer_send(peer, a, 1, 10, 1);
    show_wait("outer", outer, 8, 3000);
    struct pollfd entry = {inner, POLLIN, 0};
    CALL("  poll = %s, %#x", poll(&entry, 1, 3000), entry.revents);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(inner, &set);
    CALL("  select = %s", select(inner + 1, &set, NULL, NULL, NULL));
    show_wait("inner", inner, 8, 3000);
    show_recv("recv", a, 100, 0);
    show_wait("inner", inner, 8, 0);
    show_wait("outer", outer, 8, 20);
  }
}

CASE(many_sockets, "forty sockets, room for three events: all are reported in the end (fairness)") {
  int e = keep(epoll_create1(0)), b = udp("b"), sockets[40], seen[40] = {0}, total = 0;
  for (int i = 0; i < 40; i++) {
    sockets[i] = udp("some");
    add(e, sockets[i], EPOLLIN, (uint64_t)i);
  }
  for (int i = 0; i < 40; i++) send_to(b, sockets[i], 1, 10);
  for (int i = 0; i < 40; i++) settle(sockets[i]);
  // Nobody reads: level-triggered reports go round, so forty sockets in threes need no more than a few rounds.
  for (int round = 0; round < 200 && total < 40; round++) {
    struct epoll_event events[3];
    int n = epoll_wait(e, events, 3, 1000);
    for (int i = 0; i < n; i++)
      if (!seen[events[i].data.u64]++) total++;
  }
  say("  %d sockets were reported", total);
  for (int i = 0; i < 40; i++) recv(sockets[i], inbox, sizeof inbox, MSG_DONTWAIT);
  show_wait("none", e, 8, 20);
}

CASE(case_45, "fairness: a pipe beside sockets that are always ready, and the reverse, as counts (case 45)") {
  int e = keep(epoll_create1(0)), a = udp("a"), b = udp("b"), pipes[2], count[2] = {0};
  if (pipe(pipes) != 0) give_up("pipe");
  keep(pipes[0]), keep(pipes[1]);
  add(e, a, EPOLLIN, 0);
  add(e, pipes[0], EPOLLIN, 1);
  write(pipes[1], "x", 1);
  send_to(b, a, 1, 10);
  settle(a);
  for (int round = 0; round < 160; round++) {
    struct epoll_event events[4];
    int n = epoll_wait(e, events, 4, 1000);
    for (int i = 0; i < n; i++) count[events[i].data.u64]++;
  }
  say("  the socket: %s, the pipe: %s", count[0] >= 10 ? "served" : "STARVED", count[1] >= 10 ? "served" : "STARVED");
  count[0] = count[1] = 0;
  for (int round = 0; round < 160; round++) {
    struct epoll_event event;
    if (epoll_wait(e, &event, 1, 1000) == 1) count[event.data.u64]++;
  }
  say("  one event at a time: the socket %s, the pipe %s", count[0] >= 10 ? "served" : "STARVED", count[1] >= 10 ? "served" : "STARVED");
}

static volatile bool flooding;
static struct flood { int from, to; } flood;
static void *floods(void *unused) {
  struct sockaddr_in to = name_of(flood.to);
  while (flooding)
    if (sendto(flood.from, "flood", 5, MSG_DONTWAIT, (void *)&to, sizeof to) < 0) sched_yield();
  return NULL;
}
/// One look at `a` (0) and `b` (1), by epoll, poll or select.
///
/// - Returns: a bit for each that is ready.
static unsigned look(int way, int e, int a, int b) {
  unsigned seen = 0;
  if (way == 0) {
    struct epoll_event events[4];
    int n = epoll_wait(e, events, 4, 1000);
    for (int i = 0; i < n; i++) seen |= 1u << events[i].data.u64;
  } else if (way == 1) {
    struct pollfd entries[2] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
    poll(entries, 2, 1000);
    for (int i = 0; i < 2; i++) seen |= entries[i].revents & POLLIN ? 1u << i : 0;
  } else {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(a, &set);
    FD_SET(b, &set);
    struct timeval limit = {1, 0};
    if (select((a > b ? a : b) + 1, &set, NULL, NULL, &limit) > 0) seen = (FD_ISSET(a, &set) ? 1 : 0) | (FD_ISSET(b, &set) ? 2 : 0);
  }
  return seen;
}

CASE(case_45_load, "fairness under full load, in calls: a pipe beside a socket that is flooded, and a datagram beside a full pipe (case 45)") {
  static const char *const ways[] = {"epoll_wait", "poll", "select"};
  enum { ROUNDS = 200, CALLS = 8 };
  for (int way = 0; way < 3; way++) {
    int e = keep(epoll_create1(0)), a = udp("a"), pipes[2], most = 0;
    flood = (struct flood){udp("b"), a};
    if (pipe(pipes) != 0) give_up("pipe");
    keep(pipes[0]), keep(pipes[1]);
    add(e, a, EPOLLIN, 0), add(e, pipes[0], EPOLLIN, 1);
    flooding = true;
    pthread_t thread;
    if (pthread_create(&thread, NULL, floods, NULL) != 0) give_up("pthread_create");
    for (int round = 0; round < ROUNDS; round++) {
      write(pipes[1], "x", 1);
      int calls = 1;
      // At each call a few datagrams are taken, as by a server.
      for (; !(look(way, e, a, pipes[0]) & 2) && calls < 1000; calls++)
        for (int i = 0; i < 4 && recv(a, inbox, sizeof inbox, MSG_DONTWAIT) > 0; i++) {}
      read(pipes[0], inbox, 1);
      // Until there is load again.
      for (int tries = 0; tries < 1000000 && recv(a, inbox, sizeof inbox, MSG_DONTWAIT) <= 0; tries++) sched_yield();
      most = calls > most ? calls : most;
    }
    flooding = false;
    pthread_join(thread, NULL);
    say("  %s: the pipe waits for %s calls", ways[way], most <= CALLS ? "a few" : "MANY");
    // The reverse: a pipe that is always ready.
    wait_sent(flood.from);
    while (recv(a, inbox, sizeof inbox, MSG_DONTWAIT) > 0) {}
    write(pipes[1], "x", 1);
    most = 0;
    for (int round = 0; round < ROUNDS; round++) {
      send_to(flood.from, a, 1, 10);
      settle(a);
      int calls = 1;
      for (; !(look(way, e, a, pipes[0]) & 1) && calls < 1000; calls++) {}
      if (recv(a, inbox, sizeof inbox, MSG_DONTWAIT) != 10) most = 1000;
      most = calls > most ? calls : most;
    }
    say("  %s: the datagram waits for %s calls", ways[way], most <= CALLS ? "a few" : "MANY");
  }
}

CASE(mixed_set, "a pipe, a timer, an eventfd, TCP and UDP in one epoll") {
  int e = keep(epoll_create1(0)), a = udp("a"), b = udp("b"), pipes[2], event = keep(eventfd(0, EFD_NONBLOCK)), timer = keep(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
  if (pipe(pipes) != 0) give_up("pipe");
  keep(pipes[0]), keep(pipes[1]);
  add(e, a, EPOLLIN, 1), add(e, pipes[0], EPOLLIN, 2), add(e, event, EPOLLIN, 3), add(e, timer, EPOLLIN, 4);
  char x[8];
  for (int round = 0; round < 3; round++) {
    show_wait("nothing", e, 8, 10);
    send_to(b, a, 1, 10);
    show_wait("UDP", e, 8, 3000);
    show_recv("recv", a, 100, 0);
    write(pipes[1], "x", 1);
    show_wait("a pipe", e, 8, 3000);
    read(pipes[0], x, 1);
    eventfd_write(event, 1);
    show_wait("an eventfd", e, 8, 3000);
    read(event, x, 8);
    struct itimerspec soon = {{0, 0}, {0, 5000000}};
    timerfd_settime(timer, 0, &soon, NULL);
    show_wait("a timer", e, 8, 3000);
    read(timer, x, 8);
  }
}

static int shared_epoll, late_socket;
static void *add_late(void *unused) {
  usleep(30000);
  add(shared_epoll, late_socket, EPOLLIN, 2);
  return NULL;
}
static void *change_late(void *unused) {
  usleep(30000);
  change(shared_epoll, late_socket, EPOLLIN, 3);
  return NULL;
}
CASE(case_19, "ADD and MOD from another thread while one waits (case 19)") {
  int a = udp("a"), b = udp("b"), first = udp("first");
  pthread_t thread;
  shared_epoll = keep(epoll_create1(0));
  late_socket = a;
  add(shared_epoll, first, EPOLLIN, 1);
  send_to(b, a, 1, 10);
  settle(a);
  pthread_create(&thread, NULL, add_late, NULL);
  show_wait("added meanwhile", shared_epoll, 8, 3000);
  pthread_join(thread, NULL);
  change(shared_epoll, a, 0, 2);
  show_wait("no events wanted", shared_epoll, 8, 20);
  pthread_create(&thread, NULL, change_late, NULL);
  show_wait("wanted meanwhile", shared_epoll, 8, 3000);
  pthread_join(thread, NULL);
}

CASE(first_added, "the first socket of an epoll is added from another thread while one waits") {
  int a = udp("a"), b = udp("b"), pipes[2];
  pthread_t thread;
  if (pipe(pipes) != 0) give_up("pipe");
  keep(pipes[0]), keep(pipes[1]);
  send_to(b, a, 1, 10);
  settle(a);
  late_socket = a;
  // Anew each time, and then one that has had a socket.
  for (int i = 0; i < 3; i++) {
    if (i < 2) shared_epoll = keep(epoll_create1(0)), add(shared_epoll, pipes[0], EPOLLIN, 1);
    pthread_create(&thread, NULL, add_late, NULL);
    show_wait("added meanwhile", shared_epoll, 8, i == 0 ? -1 : 3000);
    pthread_join(thread, NULL);
    CALL("  delete = %s", epoll_ctl(shared_epoll, EPOLL_CTL_DEL, a, NULL));
    show_wait("nothing", shared_epoll, 8, 0);
  }
}

CASE(closing, "closing a registered socket, its dup, and the epoll") {
  int a = udp("a"), b = udp("b"), e = keep(epoll_create1(0)), c = keep(dup(a));
  add(e, a, EPOLLIN, 1);
  send_to(b, a, 1, 10);
  show_wait("one", e, 8, 3000);
  drop(a);
  show_wait("the dup keeps it", e, 8, 20);
  drop(c);
  show_wait("gone", e, 8, 20);
  int d = udp("d");
  CALL("  add another under what may be the same number = %s", add(e, d, EPOLLIN, 2));
  show_wait("nothing", e, 8, 20);
  send_to(b, d, 2, 10);
  show_wait("it", e, 8, 3000);
  drop(e);
  show_recv("recv", d, 100, 0);
  e = keep(epoll_create1(0));
  add(e, d, EPOLLIN, 3);
  send_to(b, d, 3, 10);
  show_wait("in a new epoll", e, 8, 3000);
}

struct epoll_waiter { int epoll, timeout, count; uint64_t data; bool in_time; volatile pid_t thread; pthread_t handle; };
static void *wait_in_epoll(void *raw) {
  struct epoll_waiter *w = raw;
  struct epoll_event event = {0};
  uint64_t end = now_ms() + (uint64_t)w->timeout;
  w->thread = gettid();
  w->count = epoll_wait(w->epoll, &event, 1, w->timeout);
  w->data = event.data.u64;
  // (Found at the very end, it has not been woken.)
  w->in_time = now_ms() < end;
  return NULL;
}
static bool is_asleep(pid_t thread) {
  char path[64], text[256] = "";
  snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread);
  FILE *file = fopen(path, "r");
  if (!file) return false;
  size_t n = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[n] = 0;
  char *end = strrchr(text, ')');
  return end && end[2] == 'S';
}
CASE(closed_waiting, "an epoll that is closed while a thread waits in it, and another one made at once: each hears of its own") {
  for (int how = 0; how < 3; how++)
    for (int edge = 0; edge < 2; edge++) {
      int a = udp("a"), b = udp("b"), c = udp("c"), first = epoll_create1(0);
      struct epoll_event event = {.events = edge ? EPOLLIN | EPOLLET : EPOLLIN, .data.u64 = 1};
      // Both have been on Machnet, where there is one.
      send_to(b, a, 1, 10), settle(a), recv(a, inbox, 100, 0);
      send_to(b, c, 1, 10), settle(c), recv(c, inbox, 100, 0);
      if (epoll_ctl(first, EPOLL_CTL_ADD, a, &event) != 0) give_up("epoll_ctl");
      struct epoll_waiter waiter = {.epoll = first, .timeout = how == 2 ? 1000 : 5000};
      if (pthread_create(&waiter.handle, NULL, wait_in_epoll, &waiter) != 0) give_up("pthread_create");
      for (int asleep = 0; asleep < 5;) {
        usleep(1000);
        asleep = waiter.thread && is_asleep(waiter.thread) ? asleep + 1 : 0;
      }
      int second = how == 1 ? keep(epoll_create1(0)) : -1;
      close(first);
      // Of the same number, or of another one.
      if (second < 0) second = keep(epoll_create1(0));
      event.data.u64 = 2;
      if (epoll_ctl(second, EPOLL_CTL_ADD, c, &event) != 0) give_up("epoll_ctl");
      struct epoll_event found = {0};
      for (unsigned i = 2; i < 4; i++) {
        send_to(b, c, i, 10);
        int count = epoll_wait(second, &found, 1, 3000);
        say("  the second: %d, data %d", count, (int)found.data.u64);
        show_recv("of the second", c, 100, MSG_DONTWAIT);
      }
      if (how != 2) send_to(b, a, 4, 10);
      pthread_join(waiter.handle, NULL);
      say("  the first: %d, data %d", waiter.count, (int)waiter.data);
      if (how != 2) show_recv("of the first", a, 100, MSG_DONTWAIT);
      send_to(b, a, 5, 10);
      settle(a);
      int count = epoll_wait(second, &found, 1, 0);
      say("  the second: %d", count);
      drop(a), drop(b), drop(c), drop(second);
    }
}

CASE(both_descriptors, "a socket and its dup in one epoll, with data of their own") {
  int a = udp("a"), b = udp("b"), e = keep(epoll_create1(0)), c = keep(dup(a));
  CALL("  add = %s", add(e, a, EPOLLIN, 1));
  CALL("  add the dup = %s", add(e, c, EPOLLIN, 2));
  send_to(b, a, 1, 10);
  settle(a);
  show_wait("both", e, 8, 3000);
  CALL("  delete the first = %s", epoll_ctl(e, EPOLL_CTL_DEL, a, NULL));
  show_wait("the second", e, 8, 3000);
  show_recv("recv", a, 10, 0);
  show_wait("none", e, 8, 20);
  send_to(b, a, 2, 10);
  show_wait("the second", e, 8, 3000);
}

CASE(dup_epoll, "a dup of an epoll, the first closed") {
  int a = udp("a"), b = udp("b"), e = keep(epoll_create1(0));
  add(e, a, EPOLLIN, 1);
  int f = keep(dup(e));
  send_to(b, a, 1, 10);
  show_wait("by the dup", f, 8, 3000);
  drop(e);
  show_wait("still", f, 8, 3000);
  show_recv("recv", a, 10, 0);
  show_wait("none", f, 8, 20);
  CALL("  modify by the dup = %s", change(f, a, EPOLLIN | EPOLLET, 2));
  send_to(b, a, 2, 10);
  show_wait("by the dup", f, 8, 3000);
  show_wait("once", f, 8, 20);
}

CASE(early_dup, "a dup of an epoll that was made before its first socket") {
  int e = keep(epoll_create1(0)), f = keep(dup(e)), a = udp("a"), b = udp("b");
  add(e, a, EPOLLIN, 1);
  send_to(b, a, 1, 10);
  show_wait("by the dup", f, 8, 3000);
  show_wait("by the first", e, 8, 3000);
}

CASE(closed_dup, "a dup of an epoll, by which all was registered, is closed before anybody waits by the first") {
  int e = keep(epoll_create1(0)), f = keep(dup(e)), a = udp("a"), b = udp("b");
  send_to(b, a, 1, 10), settle(a), recv(a, inbox, 10, 0);
  add(f, a, EPOLLIN, 1);
  drop(f);
  send_to(b, a, 2, 10), settle(a);
  show_wait("by the first", e, 8, 1000);
  show_recv("recv", a, 10, 0);
  show_wait("none", e, 8, 0);
}

CASE(forked_epoll, "an epoll that is inherited by fork, used by the child and then by the parent") {
  int a = udp("a"), b = udp("b"), e = keep(epoll_create1(0));
  add(e, a, EPOLLIN, 1);
  send_to(b, a, 1, 10);
  show_wait("before", e, 8, 3000);
  show_recv("recv", a, 10, 0);
  pid_t child = fork();
  if (child == 0) {
    send_to(b, a, 2, 10);
    struct epoll_event event;
    int n = epoll_wait(e, &event, 1, 3000);
    _exit(n == 1 && event.data.u64 == 1 && recv(a, inbox, 10, 0) == 10 ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  say("  the child saw it: %s", status == 0 ? "yes" : "no");
  show_wait("and took it", e, 8, 20);
  send_to(b, a, 3, 10);
  show_wait("the parent goes on", e, 8, 3000);
  show_recv("recv", a, 10, 0);
}

CASE(case_28, "a plain wildcard server on epoll: receive, answer, again (case 28)") {
  int server = bound_to("0.0.0.0", "server"), e = keep(epoll_create1(EPOLL_CLOEXEC)), client = udp("client");
  nonblocking(server, true);
  add(e, server, EPOLLIN | EPOLLET, 1);
  struct sockaddr_in to = ipv4("127.0.0.1", port_of(server)), from;
  for (unsigned round = 0; round < 5; round++) {
    for (unsigned i = 0; i < 3; i++) sendto(client, payload(i, 10), 10, 0, (void *)&to, sizeof to);
    int answered = 0;
    while (answered < 3) {
      struct epoll_event event;
      if (epoll_wait(e, &event, 1, 3000) != 1) return say("  no event");
      socklen_t length = sizeof from;
      ssize_t n;
      while ((n = recvfrom(server, inbox, sizeof inbox, 0, (void *)&from, &length)) >= 0) {
        answered += sendto(server, inbox, (size_t)n, 0, (void *)&from, length) == n;
        length = sizeof from;
      }
    }
    for (int i = 0; i < 3; i++) show_recv("answer", client, 100, 0);
  }
}

CASE(before_endpoint, "registered before bind and connect") {
  int a = unbound(AF_INET, 0), b = udp("b"), e = keep(epoll_create1(0));
  CALL("  add an unbound socket = %s", add(e, a, EPOLLIN | EPOLLOUT, 1));
  show_wait("unbound", e, 8, 0);
  change(e, a, EPOLLIN, 1);
  struct sockaddr_in to = name_of(b);
  CALL("  sendto = %s", sendto(a, payload(1, 10), 10, 0, (void *)&to, sizeof to));
  know(port_of(a), "a");
  settle(b);
  struct sockaddr_in from;
  socklen_t length = sizeof from;
  recvfrom(b, inbox, sizeof inbox, 0, (void *)&from, &length);
  from.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CALL("  answer = %s", sendto(b, payload(2, 10), 10, 0, (void *)&from, sizeof from));
  show_wait("the answer", e, 8, 3000);
  show_recvmsg("recvmsg", a, 100, 0, 128, 64);
}

CASE(hup, "shutdown and epoll") {
  int a = udp("a"), b = udp("b"), e = keep(epoll_create1(0));
  struct sockaddr_in to = name_of(b);
  connect(a, (void *)&to, sizeof to);
  add(e, a, EPOLLIN | EPOLLRDHUP, 1);
  show_wait("nothing", e, 8, 0);
  CALL("  shutdown = %s", shutdown(a, SHUT_RD));
  show_wait("SHUT_RD", e, 8, 0);
  CALL("  shutdown = %s", shutdown(a, SHUT_WR));
  show_wait("SHUT_RDWR", e, 8, 0);
}

// ------------------------------------------------------------------------------------------- two ways into one queue

// A datagram of the peer comes by the socket's own queue where the peer has no shim, one of this process by a ring. Neither may be told
// of where the other has been told once.
static int wait_by(int way, int e, struct epoll_event *events, int capacity, int timeout) {
  struct timespec limit = {timeout / 1000, timeout % 1000 * 1000000L};
  return way == 0 ? epoll_wait(e, events, capacity, timeout)
                  : way == 1 ? epoll_pwait(e, events, capacity, timeout, NULL) : epoll_pwait2(e, events, capacity, &limit, NULL);
}
static const char *const ways_to_wait[] = {"epoll_wait", "epoll_pwait", "epoll_pwait2"};
static void show_way(const char *what, int way, int e, int timeout) {
  struct epoll_event events[8];
  memset(events, POISON, sizeof events);
  int n = wait_by(way, e, events, 8, timeout);
  if (n > 1) qsort(events, (size_t)n, sizeof *events, by_data);
  char line[400] = "";
  for (int i = 0; i < n; i++) sprintf(line + strlen(line), " %#x of %llu", events[i].events, (unsigned long long)events[i].data.u64);
  say("    %s: %d%s", what, n, line);
}
static void send_by(bool peers, int peer, int b, int to, unsigned seed) {
  if (peers) peer_send(peer, to, seed, 10, 1);
  else send_to(b, to, seed, 10);
}
static void take(int fd) {
  settle(fd);
  while (recv(fd, inbox, sizeof inbox, MSG_DONTWAIT) >= 0) {}
}

CASE(one_shot_ways, "one-shot: told by one way, then a datagram by the other; armed anew by MOD only") {
  int b = udp("b"), peer = peer_open("peer");
  for (int way = 0; way < 3; way++)
    for (unsigned kind = 0; kind < 16; kind++) {
      unsigned bits = EPOLLIN | EPOLLONESHOT | (kind & 1 ? (unsigned)EPOLLET : 0);
      bool peers = kind & 2, taken = kind & 4, early = kind & 8;
      int a = udp("a"), e = keep(epoll_create1(0));
      send_by(true, peer, b, a, 1), take(a), send_by(false, peer, b, a, 1), take(a);
      say("  %s%s, first by %s, %s, %s", ways_to_wait[way], kind & 1 ? ", EPOLLET" : "", peers ? "the peer" : "this process", taken ? "taken" : "not taken",
          early ? "there before ADD" : "later");
      if (early) send_by(peers, peer, b, a, 2), settle(a);
      add(e, a, bits, 1);
      if (!early) send_by(peers, peer, b, a, 2);
      show_way("told", way, e, 3000);
      if (taken) take(a);
      send_by(!peers, peer, b, a, 3), settle(a);
      show_way("not again", way, e, 10);
      change(e, a, bits, 2);
      show_way("armed anew", way, e, 3000);
      take(a);
      send_by(peers, peer, b, a, 4), settle(a);
      show_way("not again", way, e, 0);
      drop(a), drop(e);
    }
}

CASE(one_shot_several, "one-shot, several sockets that say the same, and one of them by two numbers, the first closed") {
  int b = udp("b"), peer = peer_open("peer"), e = keep(epoll_create1(0)), sockets[3];
  for (int i = 0; i < 3; i++) {
    sockets[i] = udp("some");
    send_by(true, peer, b, sockets[i], 1), take(sockets[i]), send_by(false, peer, b, sockets[i], 1), take(sockets[i]);
    add(e, sockets[i], EPOLLIN | EPOLLONESHOT, 7);
  }
  for (int i = 0; i < 3; i++) {
    send_by(i % 2, peer, b, sockets[i], 1), settle(sockets[i]);
    show_way("told", 0, e, 3000);
    send_by(i % 2 == 0, peer, b, sockets[i], 2), settle(sockets[i]);
    show_way("not again", 0, e, 10);
  }
  int other = keep(dup(sockets[0]));
  change(e, sockets[0], EPOLLIN | EPOLLONESHOT, 8);
  take(sockets[0]);
  drop(sockets[0]);
  send_by(false, peer, b, other, 3);
  show_way("told by a number that is closed", 0, e, 3000);
  take(other);
  send_by(true, peer, b, other, 4), settle(other);
  show_way("not again", 0, e, 10);
  for (int i = 1; i < 3; i++) change(e, sockets[i], EPOLLIN | EPOLLONESHOT, 9);
  int told = 0;
  struct epoll_event event;
  while (told < 9 && epoll_wait(e, &event, 1, 20) == 1) told++;
  say("    the other two: %d", told);
}

static int shared_way;
static volatile int told_by_now;
static volatile bool waits_end;
static void *waits(void *unused) {
  struct epoll_event event;
  while (!waits_end)
    if (wait_by(shared_way, shared_epoll, &event, 1, 20) == 1) __atomic_fetch_add(&told_by_now, 1, __ATOMIC_RELAXED);
  return NULL;
}
static int told_until(int wanted) {
  for (int i = 0; i < 3000 && told_by_now < wanted; i++) usleep(1000);
  usleep(3000);
  return told_by_now;
}
CASE(one_shot_threads, "one-shot, two threads in the wait, datagrams by both ways: each time one is told once") {
  int b = udp("b"), peer = peer_open("peer"), a = udp("a");
  send_by(true, peer, b, a, 1), take(a), send_by(false, peer, b, a, 1), take(a);
  for (shared_way = 0; shared_way < 3; shared_way++)
    for (int edge = 0; edge < 2; edge++) {
      unsigned bits = EPOLLIN | EPOLLONESHOT | (edge ? (unsigned)EPOLLET : 0);
      shared_epoll = keep(epoll_create1(0));
      add(shared_epoll, a, bits, 1);
      pthread_t threads[2];
      waits_end = false, told_by_now = 0;
      for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, waits, NULL);
      int wrong = 0;
      for (int round = 0; round < 20; round++) {
        send_by(round % 2, peer, b, a, 2);
        send_by(round % 2 == 0, peer, b, a, 3);
        wrong += told_until(round + 1) != round + 1;
        take(a);
        send_by(round % 3, peer, b, a, 4), settle(a);
        wrong += told_until(round + 1) != round + 1;
        take(a);
        change(shared_epoll, a, bits, 1);
      }
      waits_end = true;
      for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
      say("  %s%s: %d of 20 wrong", ways_to_wait[shared_way], edge ? ", EPOLLET" : "", wrong);
    }
}

static void until_asleep(struct epoll_waiter *waiter) {
  for (int asleep = 0; asleep < 5;) {
    usleep(1000);
    asleep = waiter->thread && is_asleep(waiter->thread) ? asleep + 1 : 0;
  }
}
static void start_waiter(struct epoll_waiter *waiter) {
  if (pthread_create(&waiter->handle, NULL, wait_in_epoll, waiter) != 0) give_up("pthread_create");
  until_asleep(waiter);
}

CASE(both_asleep, "a socket and its dup in one epoll, one deleted, told or of no interest: a thread that sleeps hears of the other") {
  for (int how = 0; how < 4; how++) {
    int a = udp("a"), b = udp("b"), e = keep(epoll_create1(0)), c = keep(dup(a));
    send_to(b, a, 1, 10), take(a);
    add(e, a, how == 1 ? EPOLLIN | EPOLLONESHOT : EPOLLIN, 1);
    add(e, c, how == 2 ? EPOLLIN | EPOLLONESHOT : EPOLLIN, 2);
    if (how == 0) epoll_ctl(e, EPOLL_CTL_DEL, a, NULL);
    if (how == 3) change(e, a, 0, 1);
    if (how == 1 || how == 2) {
      send_to(b, a, 1, 10), settle(a);
      show_wait("both", e, 8, 3000);
      show_wait("one", e, 8, 3000);
      take(a);
    }
    struct epoll_waiter waiter = {.epoll = e, .timeout = 5000};
    start_waiter(&waiter);
    send_to(b, a, 2, 10);
    pthread_join(waiter.handle, NULL);
    say("  %d: %d, data %d, %s", how, waiter.count, (int)waiter.data, waiter.in_time ? "woken" : "NOT WOKEN");
    drop(a), drop(b), drop(c), drop(e);
  }
}

CASE(two_epolls, "two epolls with one socket, a thread asleep in each: both hear of a datagram that nobody takes") {
  for (int how = 0; how < 4; how++) {
    int a = udp("a"), b = udp("b"), wrong = 0;
    send_to(b, a, 1, 10), take(a);
    struct epoll_waiter waiters[2] = {{.timeout = 5000}, {.timeout = 5000}};
    for (int i = 0; i < 2; i++) {
      waiters[i].epoll = keep(epoll_create1(0));
      add(waiters[i].epoll, a, how >> i & 1 ? EPOLLIN | EPOLLET : EPOLLIN, (uint64_t)i + 1);
    }
    for (int round = 0; round < 10; round++) {
      for (int i = 0; i < 2; i++) waiters[i].thread = 0, start_waiter(&waiters[i]);
      send_to(b, a, 2, 10);
      for (int i = 0; i < 2; i++) pthread_join(waiters[i].handle, NULL), wrong += waiters[i].count != 1 || waiters[i].data != (uint64_t)i + 1 || !waiters[i].in_time;
      take(a);
    }
    say("  %s, %s: %d wrong", how & 1 ? "edge" : "level", how & 2 ? "edge" : "level", wrong);
    for (int i = 0; i < 2; i++) drop(waiters[i].epoll);
    drop(a), drop(b);
  }
}

static double thread_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}
CASE(nothing_wanted, "a datagram that nobody wants to hear of costs a wait no time of the processor") {
  static const unsigned wanted[] = {0, EPOLLPRI, EPOLLRDHUP | EPOLLET, EPOLLIN | EPOLLONESHOT};
  for (unsigned i = 0; i < LENGTH(wanted); i++) {
    int a = udp("a"), b = udp("b"), e = keep(epoll_create1(0));
    send_to(b, a, 1, 10), take(a);
    add(e, a, wanted[i], 1);
    if (wanted[i] & EPOLLONESHOT) send_to(b, a, 1, 10), show_wait("told", e, 8, 3000);
    send_to(b, a, 1, 10), settle(a);
    double before = thread_seconds();
    show_wait("nothing", e, 8, 300);
    say("  it slept: %s", thread_seconds() - before < 0.15 ? "yes" : "NO");
    change(e, a, EPOLLIN, 2);
    show_wait("wanted", e, 8, 3000);
    drop(a), drop(b), drop(e);
  }
}

CASE(room_unwanted, "room that nobody waits for costs a wait for input no time of the processor") {
  int a = udp("a"), b = udp("b");
  struct sockaddr_in name = name_of(b);
  char data[1000] = {0};
  // (The kernel drops what the receiver has no room for; an engine may say EAGAIN for a while.)
  for (int i = 0; i < 5000 && sendto(a, data, sizeof data, MSG_DONTWAIT, (void *)&name, sizeof name) > 0; i++) {}
  usleep(100000);
  struct pollfd entry = {a, POLLIN, 0};
  double before = thread_seconds();
  CALL("  poll = %s", poll(&entry, 1, 300));
  say("  it slept: %s", thread_seconds() - before < 0.15 ? "yes" : "NO");
  fd_set set;
  FD_ZERO(&set);
  FD_SET(a, &set);
  struct timeval limit = {0, 300000};
  before = thread_seconds();
  CALL("  select = %s", select(a + 1, &set, NULL, NULL, &limit));
  say("  it slept: %s", thread_seconds() - before < 0.15 ? "yes" : "NO");
  drop(a), drop(b);
}

CASE(shut, "shutdown, then a datagram: what is reported with it") {
  static const unsigned wanted[] = {EPOLLIN, EPOLLIN | EPOLLRDHUP, EPOLLRDHUP, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, EPOLLIN | EPOLLRDHUP | EPOLLONESHOT};
  for (int how = 0; how < 3; how++)
    for (unsigned i = 0; i < LENGTH(wanted); i++) {
      int a = udp("a"), b = udp("b"), e = keep(epoll_create1(0));
      struct sockaddr_in to = name_of(b);
      connect(a, (void *)&to, sizeof to);
      shutdown(a, how);
      send_to(b, a, 1, 10);
      for (int tries = 0, queued = 0; tries < 1000 && queued == 0; tries++) usleep(1000), ioctl(a, FIONREAD, &queued);
      add(e, a, wanted[i], 1);
      show_wait("a datagram", e, 8, 3000);
      show_wait("again", e, 8, 0);
      take(a);
      show_wait("taken", e, 8, 0);
      drop(a), drop(b), drop(e);
    }
}

static void *ends(void *unused) { return unused; }
CASE(limits, "what is asked for: events beyond any array, times, data that are anything") {
  int a = udp("a"), b = udp("b"), e = keep(epoll_create1(0)), pipes[2];
  if (pipe(pipes) != 0) give_up("pipe");
  keep(pipes[0]), keep(pipes[1]);
  struct epoll_event events[8];
  struct timespec none = {0, 0}, wrong = {0, 1000000000}, before = {-1, 0}, late = {INT64_MAX, 999999999};
  // With one thread; with others; with a socket.
  for (int round = 0; round < 3; round++) {
    pthread_t other;
    if (round == 1 && (pthread_create(&other, NULL, ends, NULL) != 0 || pthread_join(other, NULL) != 0)) give_up("pthread_create");
    CALL("  INT_MAX = %s", epoll_wait(e, events, INT_MAX, 0));
    CALL("  INT_MAX by epoll_pwait2 = %s", epoll_pwait2(e, events, INT_MAX, &none, NULL));
    CALL("  too many by one = %s", epoll_wait(e, events, INT_MAX / (int)sizeof *events + 1, 0));
    CALL("  none = %s", epoll_wait(e, events, 0, 0));
    CALL("  none, -22 ms = %s", epoll_wait(e, events, 0, -EINVAL));
    CALL("  no epoll, -22 ms = %s", epoll_wait(pipes[0], events, 8, -EINVAL));
    CALL("  no descriptor, -9 ms = %s", epoll_wait(-1, events, 8, -EBADF));
    CALL("  INT_MIN = %s", epoll_wait(e, events, INT_MIN, -1));
    CALL("  a second of a thousand million = %s", epoll_pwait2(e, events, 8, &wrong, NULL));
    CALL("  before = %s", epoll_pwait2(e, events, 8, &before, NULL));
    if (round == 1) {
      add(e, a, EPOLLIN, 0x4d4e000000000000), add(e, pipes[0], EPOLLIN, 0x4d4e000000000000 + 4 * 31680);
      send_to(b, a, 1, 10), settle(a);
    }
  }
  CALL("  late = %s", epoll_pwait2(e, events, 8, &late, NULL));
  CALL("  INT_MIN ms = %s", epoll_wait(e, events, 8, INT_MIN));
  CALL("  by syscall = %s", syscall(SYS_epoll_pwait2, e, events, 8, &none, NULL, 8));
  say("  %#x of %llx", events[0].events, (unsigned long long)events[0].data.u64);
  show_recv("recv", a, 100, 0);
  write(pipes[1], "x", 1);
  for (int round = 0; round < 9; round++) {
    memset(events, POISON, sizeof events);
    CALL("  the pipe = %s", epoll_wait(e, events, 8, 300));
    say("  %#x of %llx", events[0].events, (unsigned long long)events[0].data.u64);
  }
}

CASE(same_data, "two sockets with the same data, one datagram by each way: two events") {
  for (int once = 0; once < 2; once++) {
    unsigned bits = EPOLLIN | (once ? EPOLLONESHOT : 0);
    int a = udp("a"), b = udp("b"), c = udp("c"), e = keep(epoll_create1(0)), peer = peer_open("peer"), told = 0;
    send_to(b, a, 1, 10), take(a), send_to(b, c, 1, 10), take(c);
    add(e, a, bits, 5), add(e, c, bits, 5);
    send_to(b, a, 1, 10), settle(a);
    peer_send(peer, c, 1, 10, 1), settle(c);
    // All in all: what is ready may be told in two calls.
    struct epoll_event events[8];
    for (int n = 1; n > 0 && told < 20 && (once || told < 2); told += n) n = epoll_wait(e, events, 8, 20);
    say("  %d", told);
    drop(a), drop(b), drop(c), drop(e);
  }
}

CASE(loops, "epolls in epolls: loops and depth are the kernel's to judge, with a socket in the innermost") {
  int a = udp("a"), b = udp("b"), chain[7];
  for (int i = 0; i < 7; i++) chain[i] = keep(epoll_create1(0));
  CALL("  the socket = %s", add(chain[0], a, EPOLLIN, 1));
  for (int i = 1; i < 7; i++) CALL("  one deeper = %s", add(chain[i], chain[i - 1], EPOLLIN, (uint64_t)i + 1));
  CALL("  a loop = %s", add(chain[0], chain[3], EPOLLIN, 9));
  CALL("  itself = %s", add(chain[0], chain[0], EPOLLIN, 9));
  CALL("  exclusive = %s", add(chain[6], chain[0], EPOLLIN | EPOLLEXCLUSIVE, 9));
  send_to(b, a, 1, 10);
  for (int i = 4; i >= 0; i--) show_wait("it", chain[i], 8, 3000);
  show_recv("recv", a, 100, 0);
  for (int i = 0; i < 5; i++) show_wait("none", chain[i], 8, 0);
}

CASE(closed_unwatched, "an epoll that had none of our sockets when a thread began to wait in it, and is closed meanwhile") {
  for (int how = 0; how < 8; how++) {
    bool adds = how & 1, reuses = how & 2, piped = how & 4;
    int a = udp("a"), b = udp("b"), c = udp("c"), first = epoll_create1(0), pipes[2];
    if (pipe(pipes) != 0) give_up("pipe");
    keep(pipes[0]), keep(pipes[1]);
    send_to(b, a, 1, 10), take(a), send_to(b, c, 1, 10), take(c);
    add(first, pipes[0], EPOLLIN, 3);
    struct epoll_waiter waiter = {.epoll = first, .timeout = 2000};
    start_waiter(&waiter);
    if (adds) add(first, a, EPOLLIN, 1);
    close(first);
    int second = keep(epoll_create1(0));
    add(second, c, EPOLLIN, 2);
    if (reuses) {
      send_to(b, c, 2, 10), settle(c);
      show_wait("the second", second, 8, 3000);
      take(c);
    }
    if (!adds || piped) write(pipes[1], "x", 1);
    else send_to(b, a, 4, 10);
    pthread_join(waiter.handle, NULL);
    say("  the first: %d, data %d", waiter.count, (int)waiter.data);
    send_to(b, c, 5, 10), settle(c);
    show_wait("the second", second, 8, 3000);
    drop(a), drop(b), drop(c), drop(second), drop(pipes[0]), drop(pipes[1]);
  }
}

CASE(shared_by_fork, "a child adds sockets of its own to an epoll that it shares with its parent, which goes on with its own") {
  int e = keep(epoll_create1(0)), a = udp("a"), b = udp("b"), gate[2];
  send_to(b, a, 1, 10), take(a);
  add(e, a, EPOLLIN, 1);
  if (pipe(gate) != 0) give_up("pipe");
  add(e, gate[0], EPOLLIN, 2);
  pid_t child = fork();
  if (child == 0) {
    // More than there is memory for, as it was.
    for (int i = 0; i < 90; i++) {
      int c = udp("c");
      if (add(e, c, EPOLLIN, 3) != 0) _exit(1);
      send_to(b, c, 1, 10), settle(c);
    }
    write(gate[1], "x", 1);
    usleep(100000);
    _exit(0);
  }
  struct epoll_event events[128];
  bool heard = false;
  for (uint64_t end = now_ms() + 5000; !heard && now_ms() < end;) {
    int n = epoll_wait(e, events, 128, 1000);
    for (int i = 0; i < n; i++) heard |= events[i].data.u64 == 2;
  }
  int status = -1;
  waitpid(child, &status, 0);
  say("  the parent heard of the pipe: %s; the child ended with %d", heard ? "yes" : "NO", status);
  close(gate[0]), close(gate[1]);
}

CASE(closed_by_child, "a child closes what it has from its parent, epoll and sockets: the parent's thread, asleep in it, is woken all the same") {
  for (int how = 0; how < 4; how++) {
    int a = udp("a"), b = udp("b"), e = keep(epoll_create1(0));
    send_to(b, a, 1, 10), take(a);
    add(e, a, how == 3 ? EPOLLIN | EPOLLONESHOT : EPOLLIN, 1);
    pid_t child = fork();
    if (child == 0) {
      if (how == 0) close(a);
      else if (how == 1) close(e);
      else close_range(3, ~0u, 0);
      _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    struct epoll_waiter waiter = {.epoll = e, .timeout = 5000};
    start_waiter(&waiter);
    send_to(b, a, 2, 10);
    pthread_join(waiter.handle, NULL);
    say("  %d: %d, data %d, %s", how, waiter.count, (int)waiter.data, waiter.in_time ? "woken" : "NOT WOKEN");
    take(a);
    drop(a), drop(b), drop(e);
  }
}
