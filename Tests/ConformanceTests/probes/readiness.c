// poll and select over UDP sockets, pipes, timers and TCP in one set.
#include "probe.h"

static const char *show_set(const fd_set *set, int count, const int *fds, const char *const *names, int known) {
  char *text = scratch();
  *text = 0;
  for (int fd = 0; fd < count; fd++)
    if (FD_ISSET(fd, set)) {
      const char *name = "?";
      for (int i = 0; i < known; i++)
        if (fds[i] == fd) name = names[i];
      strcat(strcat(text, " "), name);
    }
  return *text ? text : " nothing";
}

CASE(poll_bits, "poll: each event bit asked for, with nothing and with a datagram there") {
  int a = udp("a"), b = udp("b");
  static const short wanted[] = {0, POLLIN, POLLOUT, POLLPRI, POLLRDNORM, POLLWRNORM, POLLRDBAND, POLLWRBAND, POLLERR, POLLHUP, POLLRDHUP, POLLIN | POLLOUT, 0x7fff};
  for (int round = 0; round < 2; round++) {
    for (unsigned i = 0; i < LENGTH(wanted); i++) {
      struct pollfd entry = {a, wanted[i], (short)0xA5A5};
      CALL("  poll = %s, revents %#x of %#x", poll(&entry, 1, 0), (unsigned)(unsigned short)entry.revents, (unsigned)(unsigned short)wanted[i]);
    }
    send_to(b, a, 1, 10);
    settle(a);
  }
}

CASE(poll_sets, "poll: negative, closed and doubled descriptors, an empty set, bad arguments") {
  int a = udp("a"), b = udp("b"), closed = udp("closed"), pipes[2];
  if (pipe(pipes) != 0) give_up("pipe");
  keep(pipes[0]), keep(pipes[1]);
  close(closed);
  send_to(b, a, 1, 10);
  settle(a);
  struct pollfd entries[] = {{-1, POLLIN, 99}, {a, POLLIN, 99}, {closed, POLLIN, 99}, {a, POLLOUT, 99}, {pipes[0], POLLIN, 99}, {pipes[1], POLLOUT, 99}, {a, POLLIN | POLLOUT, 99}, {1 << 20, POLLIN, 99}};
  CALL("  poll = %s: %#x %#x %#x %#x %#x %#x %#x %#x", poll(entries, 8, 0), entries[0].revents, entries[1].revents, entries[2].revents, entries[3].revents,
       entries[4].revents, entries[5].revents, entries[6].revents, entries[7].revents);
  CALL("  nothing to poll = %s", poll(NULL, 0, 10));
  struct timespec wrong = {0, 1000000000}, none = {0, 0};
  CALL("  ppoll, a wrong timeout = %s", ppoll(entries, 2, &wrong, NULL));
  CALL("  ppoll = %s", ppoll(entries, 2, &none, NULL));
#if !__USE_FORTIFY_LEVEL /* which ends the program */
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  CALL("  more than RLIMIT_NOFILE = %s", poll(entries, limit.rlim_cur + 1, 0));
#endif
}

CASE(poll_waits, "poll: a timeout that runs out, one that a datagram ends, one that another thread's does") {
  int a = udp("a"), peer = peer_open("peer");
  struct pollfd entry = {a, POLLIN, 0};
  uint64_t start = now_ms();
  CALL("  poll 30 = %s, %#x", poll(&entry, 1, 30), entry.revents);
  say("  waited: %s", now_ms() - start >= 29 ? "yes" : "no");
  peer_send(peer, a, 1, 10, 1);
  CALL("  poll = %s, %#x", poll(&entry, 1, 3000), entry.revents);
  CALL("  poll again = %s, %#x", poll(&entry, 1, 0), entry.revents);
  show_recv("recv", a, 100, 0);
  CALL("  poll = %s, %#x", poll(&entry, 1, 0), entry.revents);
  entry.events = POLLIN | POLLOUT;
  CALL("  poll = %s, %#x", poll(&entry, 1, -1), entry.revents);
  peer_send(peer, a, 2, 10, 1);
  settle(a);
  CALL("  poll = %s, %#x", poll(&entry, 1, -1), entry.revents);
}

CASE(case_45, "a set of a pipe, a timer, an eventfd, TCP and UDP: all are seen while UDP is ready (case 45)") {
  int a = udp("a"), b = udp("b"), pipes[2], event = keep(eventfd(0, 0)), timer = keep(timerfd_create(CLOCK_MONOTONIC, 0));
  if (pipe(pipes) != 0) give_up("pipe");
  keep(pipes[0]), keep(pipes[1]);
  int listener = keep(socket(AF_INET, SOCK_STREAM, 0));
  struct sockaddr_in name = ipv4("127.0.0.1", 0);
  bind(listener, (void *)&name, sizeof name);
  listen(listener, 1);
  name = name_of(listener);
  int client = keep(socket(AF_INET, SOCK_STREAM, 0));
  connect(client, (void *)&name, sizeof name);
  int server = keep(accept(listener, NULL, NULL));
  struct pollfd entries[] = {{a, POLLIN, 0}, {pipes[0], POLLIN, 0}, {event, POLLIN, 0}, {timer, POLLIN, 0}, {server, POLLIN, 0}};
  CALL("  nothing = %s", poll(entries, 5, 0));
  for (int i = 0; i < 20; i++) send_to(b, a, 1, 10);
  struct itimerspec soon = {{0, 0}, {0, 1}};
  write(pipes[1], "x", 1);
  eventfd_write(event, 1);
  timerfd_settime(timer, 0, &soon, NULL);
  send(client, "x", 1, 0);
  settle(a);
  // Sixteen looks, a datagram taken at each: every descriptor must have been reported by then.
  unsigned seen = 0;
  for (int i = 0; i < 16; i++) {
    poll(entries, 5, 1000);
    for (int e = 0; e < 5; e++)
      if (entries[e].revents & POLLIN) seen |= 1u << e;
    recv(a, inbox, sizeof inbox, MSG_DONTWAIT);
  }
  say("  poll saw %#x", seen);
  seen = 0;
  for (int i = 0; i < 20; i++) send_to(b, a, 1, 10);
  settle(a);
  for (int i = 0; i < 16; i++) {
    fd_set set;
    FD_ZERO(&set);
    int high = 0;
    for (int e = 0; e < 5; e++) FD_SET(entries[e].fd, &set), high = entries[e].fd > high ? entries[e].fd : high;
    select(high + 1, &set, NULL, NULL, NULL);
    for (int e = 0; e < 5; e++)
      if (FD_ISSET(entries[e].fd, &set)) seen |= 1u << e;
    recv(a, inbox, sizeof inbox, MSG_DONTWAIT);
  }
  say("  select saw %#x", seen);
}

CASE(select_sets, "select: sets, counts, NULLs, errors, the time that is left") {
  int a = udp("a"), b = udp("b"), pipes[2];
  if (pipe(pipes) != 0) give_up("pipe");
  keep(pipes[0]), keep(pipes[1]);
  int fds[] = {a, b, pipes[0], pipes[1]};
  static const char *const names[] = {"a", "b", "pipe", "pipe's end"};
  fd_set r, w, x;
  struct timeval t = {0, 20000};
#define FRESH                                                                                                      \
  do {                                                                                                             \
    FD_ZERO(&r); FD_ZERO(&w); FD_ZERO(&x);                                                                         \
    FD_SET(a, &r); FD_SET(pipes[0], &r); FD_SET(b, &w); FD_SET(a, &x);                                             \
  } while (0)
#define SETS show_set(&r, FD_SETSIZE, fds, names, 4), show_set(&w, FD_SETSIZE, fds, names, 4), show_set(&x, FD_SETSIZE, fds, names, 4)
  int high = 0;
  for (int i = 0; i < 4; i++) high = fds[i] > high ? fds[i] : high;
  FRESH;
  CALL("  select = %s, r%s, w%s, x%s", select(high + 1, &r, &w, &x, &t), SETS);
  FRESH;
  FD_ZERO(&w);
  t = (struct timeval){0, 20000};
  CALL("  nothing ready = %s, r%s, w%s, x%s", select(high + 1, &r, &w, &x, &t), SETS);
  say("  time left %ld.%06ld", (long)t.tv_sec, (long)t.tv_usec);
  send_to(b, a, 1, 10);
  write(pipes[1], "x", 1);
  settle(a);
  for (int i = 0; i < 9; i++) {
    FRESH;
    t = (struct timeval){5, 0};
    select(high + 1, &r, &w, &x, &t);
  }
  CALL("  select = %s, r%s, w%s, x%s", select(high + 1, &r, &w, &x, &t), SETS);
  say("  time left: %s", t.tv_sec == 4 || (t.tv_sec == 5 && t.tv_usec == 0) ? "most" : "too little");
  FRESH;
  CALL("  read set alone = %s, r%s, w%s, x%s", select(high + 1, &r, NULL, NULL, NULL), SETS);
  FRESH;
  CALL("  below them = %s, r%s, w%s, x%s", select(0, &r, &w, &x, &(struct timeval){0, 0}), SETS);
  CALL("  -1 = %s", select(-1, &r, &w, &x, &t));
  CALL("  a negative timeout = %s", select(high + 1, &r, &w, &x, &(struct timeval){-1, 0}));
  CALL("  a long timeout in microseconds = %s", select(high + 1, &r, NULL, NULL, &(struct timeval){0, 5000000}));
  FRESH;
  struct timespec n = {0, 1000000000};
  CALL("  pselect, a wrong timeout = %s", pselect(high + 1, &r, &w, &x, &n, NULL));
  n = (struct timespec){5, 0};
  CALL("  pselect = %s", pselect(high + 1, &r, NULL, NULL, &n, NULL));
  say("  its timeout is untouched: %s", n.tv_sec == 5 && n.tv_nsec == 0 ? "yes" : "no");
  int closed = udp("closed");
  close(closed);
  FRESH;
  FD_SET(closed, &r);
  CALL("  a closed descriptor = %s", select((closed > high ? closed : high) + 1, &r, &w, &x, &(struct timeval){0, 0}));
}

CASE(case_49, "descriptors of 1024 and more: poll, epoll, and select with a set that is large enough (case 49)") {
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_max < 4096) return say("skip: the hard limit of descriptors is too low");
  limit.rlim_cur = limit.rlim_max < 65536 ? limit.rlim_max : 65536;
  setrlimit(RLIMIT_NOFILE, &limit);
  // Sixteen below the limit: a shim may have some of its own there.
  const int high = (int)limit.rlim_cur - 16;
  int small = udp("a"), b = udp("b"), a = keep(dup2(small, high)), c = keep(fcntl(small, F_DUPFD, 1024));
  drop(small);
  send_to(b, a, 1, 10);
  // (One socket by two numbers: a poll that begins before the datagram is there may find it by the second alone, as it may on a network.)
  settle(a);
  struct pollfd entries[] = {{a, POLLIN, 0}, {c, POLLIN, 0}};
  CALL("  poll = %s, %#x %#x", poll(entries, 2, 3000), entries[0].revents, entries[1].revents);
  int e = keep(epoll_create1(0));
  struct epoll_event event = {.events = EPOLLIN, .data.fd = a};
  CALL("  epoll_ctl = %s", epoll_ctl(e, EPOLL_CTL_ADD, a, &event));
  CALL("  epoll_wait = %s, %d", epoll_wait(e, &event, 1, 3000), event.data.fd);
  static unsigned long set[1024];
  memset(set, 0, sizeof set);
  set[c / 64] |= 1ul << c % 64;
  set[a / 64] |= 1ul << a % 64;
  // Not FD_SET, which stops at FD_SETSIZE: programs that select beyond it make sets of their own.
  CALL("  select = %s, %d %d", select(a + 1, (fd_set *)set, NULL, NULL, NULL), !!(set[c / 64] & 1ul << c % 64), !!(set[a / 64] & 1ul << a % 64));
  show_recv("recv", a, 100, 0);
  send_to(a, b, 2, 10);
  settle(b);
  show_recv("at b", b, 100, 0);
}

static void *send_soon(void *arguments) {
  int *fds = arguments;
  usleep(30000);
  struct sockaddr_in name = name_of(fds[1]);
  sendto(fds[0], "soon", 4, 0, (void *)&name, sizeof name);
  return NULL;
}
CASE(waits_for_thread, "another thread's datagram wakes recv, poll, select, epoll_wait and read") {
  int a = udp("a"), b = udp("b"), fds[2] = {b, a}, e = keep(epoll_create1(0));
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
  epoll_ctl(e, EPOLL_CTL_ADD, a, &event);
  for (int way = 0; way < 5; way++) {
    pthread_t thread;
    pthread_create(&thread, NULL, send_soon, fds);
    struct pollfd entry = {a, POLLIN, 0};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(a, &set);
    if (way == 1) CALL("  poll = %s, %#x", poll(&entry, 1, 5000), entry.revents);
    if (way == 2) CALL("  select = %s, %d", select(a + 1, &set, NULL, NULL, NULL), FD_ISSET(a, &set));
    if (way == 3) CALL("  epoll_wait = %s, %d", epoll_wait(e, &event, 1, -1), (int)event.data.u64);
    char x[10];
    if (way == 4) CALL("  read = %s", read(a, x, 10));
    else CALL("  recv = %s", recv(a, x, 10, 0));
    pthread_join(thread, NULL);
  }
}

static volatile sig_atomic_t caught;
static void catch(int number) { caught = number; }
CASE(case_3, "signals end poll, ppoll, select, pselect and epoll_wait; masks let them through (case 3, case 36)") {
  int a = udp("a"), e = keep(epoll_create1(0));
  struct epoll_event event = {.events = EPOLLIN};
  epoll_ctl(e, EPOLL_CTL_ADD, a, &event);
  struct itimerval soon = {{0, 0}, {0, 30000}};
  for (int restart = 0; restart < 2; restart++) {
    struct sigaction action = {.sa_handler = catch, .sa_flags = restart ? SA_RESTART : 0};
    sigaction(SIGALRM, &action, NULL);
    struct pollfd entry = {a, POLLIN, 0};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(a, &set);
    sigset_t blocked, none;
    sigemptyset(&none);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGALRM);
    setitimer(ITIMER_REAL, &soon, NULL);
    CALL("  poll = %s", poll(&entry, 1, 3000));
    setitimer(ITIMER_REAL, &soon, NULL);
    CALL("  select = %s", select(a + 1, &set, NULL, NULL, NULL));
    setitimer(ITIMER_REAL, &soon, NULL);
    CALL("  epoll_wait = %s", epoll_wait(e, &event, 1, 3000));
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    setitimer(ITIMER_REAL, &soon, NULL);
    CALL("  blocked, poll = %s", poll(&entry, 1, 60));
    CALL("  then ppoll with an open mask = %s", ppoll(&entry, 1, &(struct timespec){3, 0}, &none));
    setitimer(ITIMER_REAL, &soon, NULL);
    CALL("  pselect = %s", pselect(a + 1, &set, NULL, NULL, &(struct timespec){3, 0}, &none));
    setitimer(ITIMER_REAL, &soon, NULL);
    CALL("  epoll_pwait = %s", epoll_pwait(e, &event, 1, 3000, &none));
    setitimer(ITIMER_REAL, &soon, NULL);
    CALL("  epoll_pwait2 = %s", epoll_pwait2(e, &event, 1, &(struct timespec){3, 0}, &none));
    caught = 0;
    setitimer(ITIMER_REAL, &soon, NULL);
    show_recv("recv with SO_RCVTIMEO, blocked", (setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){0, 60000}, sizeof(struct timeval)), a), 10, 0);
    say("  handler ran: %s", caught ? "yes" : "no");
    sigprocmask(SIG_UNBLOCK, &blocked, NULL);
    say("  handler ran: %s", caught ? "yes" : "no");
    setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){0, 0}, sizeof(struct timeval));
  }
  signal(SIGALRM, SIG_DFL);
}
