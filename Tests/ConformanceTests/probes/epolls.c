// epoll: every kind of registration, nested, shared, and changed while somebody waits.
#include "probe.h"

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

struct epoll_waiter { int epoll, timeout, count; uint64_t data; volatile pid_t thread; pthread_t handle; };
static void *wait_in_epoll(void *raw) {
  struct epoll_waiter *w = raw;
  struct epoll_event event = {0};
  w->thread = gettid();
  w->count = epoll_wait(w->epoll, &event, 1, w->timeout);
  w->data = event.data.u64;
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
      struct epoll_waiter waiter = {.epoll = first, .timeout = how == 2 ? 300 : 5000};
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
