// The receiving calls: every flag, every size, every way to ask for less than there is.
#include "probe.h"

static const size_t sizes[] = {0, 1, 63, 64, 65, 1472, 1473, 9000, 65506, 65507};

CASE(every_size, "recvmsg: every size, from the other process") {
  int a = udp("a"), peer = peer_open("peer");
  for (size_t i = 0; i < LENGTH(sizes); i++) {
    peer_send(peer, a, (unsigned)i + 1, (uint32_t)sizes[i], 1);
    settle(a);
    show_recvmsg("recvmsg", a, 66000, 0, 128, 128);
  }
}

CASE(every_size_own, "recvfrom: every size, from a socket of the same process") {
  int a = udp("a"), b = udp("b");
  for (size_t i = 0; i < LENGTH(sizes); i++) {
    send_to(b, a, (unsigned)i + 1, sizes[i]);
    show_recvfrom("recvfrom", a, 66000, 0, 128);
  }
}

CASE(case_5, "recv: datagrams below and above the MTU in one flow keep their order (case 5)") {
  int a = udp("a"), peer = peer_open("peer");
  set(a, SOL_SOCKET, SO_RCVBUF, 1 << 20);
  static const uint32_t alternate[] = {1472, 1473, 65507, 1, 9000, 1472};
  for (unsigned round = 0; round < 3; round++)
    for (unsigned i = 0; i < LENGTH(alternate); i++) peer_send(peer, a, round * 10 + i + 1, alternate[i], 1);
  for (unsigned i = 0; i < 3 * LENGTH(alternate); i++) {
    settle(a);
    show_recv("recv", a, 66000, 0);
  }
}

CASE(truncated, "recvmsg: a buffer that is too small, with and without MSG_TRUNC") {
  int a = udp("a"), peer = peer_open("peer");
  static const size_t rooms[] = {0, 1, 99, 100, 101};
  for (unsigned i = 0; i < LENGTH(rooms); i++) {
    peer_send(peer, a, 1, 100, 2);
    settle(a);
    show_recvmsg("recvmsg", a, rooms[i], 0, 128, 64);
    settle(a);
    show_recvmsg("recvmsg MSG_TRUNC", a, rooms[i], MSG_TRUNC, 128, 64);
    peer_send(peer, a, 1, 100, 2);
    settle(a);
    show_recvfrom("recvfrom", a, rooms[i], 0, 16);
    settle(a);
    show_recvfrom("recvfrom MSG_TRUNC", a, rooms[i], MSG_TRUNC, 16);
  }
}

CASE(case_40, "recvmsg: every out-field, with names and controls of every room (case 40)") {
  int a = udp("a"), peer = peer_open("peer");
  static const int names[] = {-1, 0, 1, 2, 8, 15, 16, 17, 128}, controls[] = {-1, 0, 1, 64};
  for (unsigned n = 0; n < LENGTH(names); n++)
    for (unsigned c = 0; c < LENGTH(controls); c++) {
      peer_send(peer, a, n + 1, 20, 1);
      settle(a);
      show_recvmsg("recvmsg", a, 100, 0, names[n], controls[c]);
    }
  peer_send(peer, a, 7, 0, 1);
  settle(a);
  show_recvmsg("recvmsg of nothing", a, 100, 0, 128, 128);
  show_recvmsg("recvmsg on an empty queue", a, 100, MSG_DONTWAIT, 128, 128);
}

CASE(case_31, "recvfrom: names of every room (case 31)") {
  int a = udp("a"), peer = peer_open("peer");
  static const int names[] = {-1, 0, 1, 2, 8, 15, 16, 17, 28, 128};
  for (unsigned n = 0; n < LENGTH(names); n++) {
    peer_send(peer, a, n + 1, 20, 1);
    settle(a);
    show_recvfrom("recvfrom", a, 100, 0, names[n]);
  }
}

CASE(odd_names, "recvfrom: a NULL name with a length, a name without one, a negative length") {
  int a = udp("a"), peer = peer_open("peer");
  socklen_t length = 16;
  unsigned char name[16];
  char room[100];
  peer_send(peer, a, 1, 20, 1);
  settle(a);
  CALL("  NULL name: %s, length %u", recvfrom(a, room, sizeof room, 0, NULL, &length), length);
  peer_send(peer, a, 1, 20, 1);
  settle(a);
  length = (socklen_t)-1;
  CALL("  negative length: %s, length %d", recvfrom(a, room, sizeof room, 0, (void *)name, &length), (int)length);
  CALL("  then: %s", recv(a, room, sizeof room, MSG_DONTWAIT));
  peer_send(peer, a, 1, 20, 1);
  settle(a);
  struct iovec vector = {room, sizeof room};
  struct msghdr m = {.msg_name = name, .msg_namelen = (socklen_t)-5, .msg_iov = &vector, .msg_iovlen = 1};
  CALL("  recvmsg, negative length: %s, length %d", recvmsg(a, &m, 0), (int)m.msg_namelen);
  CALL("  then: %s", recv(a, room, sizeof room, MSG_DONTWAIT));
}

CASE(case_41, "zero-length datagrams: recv, peek, poll, FIONREAD (case 41)") {
  int a = udp("a"), peer = peer_open("peer");
  peer_send(peer, a, 1, 0, 1);
  struct pollfd entry = {a, POLLIN, 0};
  CALL("  poll = %s, revents %#x", poll(&entry, 1, 3000), entry.revents);
  int waiting = 99;
  CALL("  FIONREAD = %s, %d", ioctl(a, FIONREAD, &waiting), waiting);
  show_recvmsg("peek", a, 100, MSG_PEEK, 128, 64);
  show_recvmsg("peek again", a, 0, MSG_PEEK, 128, 64);
  show_recvmsg("recvmsg", a, 100, 0, 128, 64);
  show_recvmsg("recvmsg", a, 100, MSG_DONTWAIT, 128, 64);
  peer_send(peer, a, 1, 0, 2);
  settle(a);
  show_recvfrom("recvfrom", a, 100, 0, 16);
  settle(a);
  show_recv("recv into no room", a, 0, 0);
  show_recv("recv", a, 100, MSG_DONTWAIT);
}

CASE(no_room, "a datagram and a buffer of no bytes: recv takes it, read does not") {
  int a = udp("a"), peer = peer_open("peer");
  peer_send(peer, a, 1, 20, 3);
  settle(a);
  char room[100];
  CALL("  read of 0 = %s", read(a, room, 0));
  CALL("  read of 0 = %s", read(a, NULL, 0));
  show_recv("recv of 0", a, 0, 0);
  settle(a);
  struct iovec none[2] = {{room, 0}, {room, 0}};
  CALL("  readv of 0 = %s", readv(a, none, 2));
  CALL("  readv of no vector = %s", readv(a, none, 0));
  show_recv("recv", a, 100, MSG_DONTWAIT);
  settle(a);
  CALL("  recv NULL of 0 = %s", recv(a, NULL, 0, 0));
  show_recv("recv", a, 100, MSG_DONTWAIT);
}

CASE(peek, "MSG_PEEK: twice, into less room, with MSG_TRUNC, then for good") {
  int a = udp("a"), peer = peer_open("peer");
  peer_send(peer, a, 1, 100, 2);
  settle(a);
  show_recvmsg("peek", a, 200, MSG_PEEK, 128, 64);
  show_recvmsg("peek at 10", a, 10, MSG_PEEK, 128, 64);
  show_recvmsg("peek at 10 MSG_TRUNC", a, 10, MSG_PEEK | MSG_TRUNC, 128, 64);
  show_recvfrom("peek", a, 200, MSG_PEEK, 16);
  show_recv("recv", a, 200, 0);
  settle(a);
  show_recv("recv", a, 200, 0);
  show_recv("peek at nothing", a, 200, MSG_PEEK | MSG_DONTWAIT);
}

CASE(flags, "receive flags: each alone, on a datagram and on nothing") {
  int a = udp("a"), peer = peer_open("peer");
  static const struct { int flag; const char *name; } flags[] = {
      {MSG_DONTWAIT, "MSG_DONTWAIT"}, {MSG_WAITALL, "MSG_WAITALL"}, {MSG_NOSIGNAL, "MSG_NOSIGNAL"}, {MSG_CMSG_CLOEXEC, "MSG_CMSG_CLOEXEC"},
      {MSG_OOB, "MSG_OOB"}, {MSG_CONFIRM, "MSG_CONFIRM"}, {MSG_MORE, "MSG_MORE"}, {MSG_WAITFORONE, "MSG_WAITFORONE"}, {MSG_DONTROUTE, "MSG_DONTROUTE"},
      {MSG_EOR, "MSG_EOR"}, {MSG_CTRUNC, "MSG_CTRUNC"}, {0x02000000, "an unknown flag"}};
  for (unsigned i = 0; i < LENGTH(flags); i++) {
    peer_send(peer, a, i + 1, 100, 2);
    settle(a);
    show_recvmsg(flags[i].name, a, 50, flags[i].flag, 128, 64);
    settle(a);
    show_recvfrom(flags[i].name, a, 50, flags[i].flag, 16);
    show_recvmsg(flags[i].name, a, 50, flags[i].flag | MSG_DONTWAIT, 128, 64);
  }
}

CASE(case_58, "empty queues: each call's errno, non-blocking by file and by flag (case 58, case 8)") {
  int a = udp("a");
  show_recvmsg("recvmsg MSG_DONTWAIT", a, 100, MSG_DONTWAIT, 128, 64);
  show_recvmsg("recvmsg MSG_ERRQUEUE", a, 100, MSG_ERRQUEUE, 128, 64);
  show_recvfrom("recvfrom MSG_DONTWAIT", a, 100, MSG_DONTWAIT, 16);
  nonblocking(a, true);
  char room[10];
  struct iovec vector = {room, 10};
  struct mmsghdr m = {.msg_hdr = {.msg_iov = &vector, .msg_iovlen = 1}};
  show_recvmsg("recvmsg", a, 100, 0, 128, 64);
  show_recvfrom("recvfrom", a, 100, 0, 16);
  show_recv("recv", a, 100, 0);
  show_recv("recv MSG_WAITALL", a, 100, MSG_WAITALL);
  CALL("  read = %s", read(a, room, 10));
  CALL("  readv = %s", readv(a, &vector, 1));
  CALL("  preadv2 = %s", preadv2(a, &vector, 1, -1, 0));
  CALL("  recvmmsg = %s", recvmmsg(a, &m, 1, 0, NULL));
  CALL("  pread = %s", pread(a, room, 10, 0));
}

CASE(vectors, "iovec shapes: empty ones between, many, too many, none, a NULL base of no length") {
  int a = udp("a"), peer = peer_open("peer");
  static struct iovec many[1025];
  unsigned char small[3], big[1000];
  peer_send(peer, a, 1, 100, 1);
  settle(a);
  memset(small, POISON, 3), memset(big, POISON, sizeof big);
  struct iovec shape[] = {{NULL, 0}, {small, 3}, {small, 0}, {big, 1000}};
  struct msghdr m = {.msg_iov = shape, .msg_iovlen = 4};
  CALL("  recvmsg = %s, %s + %s%s", recvmsg(a, &m, 0), identify(small, 3), identify_from(big, 97, 3), beyond(big + 97, 903));
  peer_send(peer, a, 2, 100, 1);
  settle(a);
  memset(big, POISON, sizeof big);
  for (int i = 0; i < 1025; i++) many[i] = (struct iovec){big + (i < 1000 ? i : 0), i < 1000};
  m = (struct msghdr){.msg_iov = many, .msg_iovlen = 1025};
  CALL("  1025 vectors: %s", recvmsg(a, &m, MSG_DONTWAIT));
  m.msg_iovlen = 1024;
  CALL("  1024 vectors: %s, %s", recvmsg(a, &m, MSG_DONTWAIT), identify(big, 100));
  peer_send(peer, a, 3, 100, 3);
  settle(a);
  m = (struct msghdr){.msg_iov = NULL, .msg_iovlen = 0};
  CALL("  no vector: %s, flags %#x", recvmsg(a, &m, 0), (unsigned)m.msg_flags);
  settle(a);
  m = (struct msghdr){.msg_iov = many, .msg_iovlen = (size_t)-1};
  CALL("  a negative count: %s", recvmsg(a, &m, 0));
  CALL("  readv of 1025: %s", readv(a, many, 1025));
  CALL("  readv of -1: %s", readv(a, many, -1));
  memset(big, POISON, sizeof big);
  CALL("  readv of 1024: %s, %s", readv(a, many, 1024), identify(big, 100));
  settle(a);
  struct iovec one = {big, 1000};
  memset(big, POISON, sizeof big);
  CALL("  preadv2 at -1: %s, %s", preadv2(a, &one, 1, -1, 0), identify(big, 100));
  CALL("  preadv2 at 0: %s", preadv2(a, &one, 1, 0, 0));
  CALL("  preadv at 0: %s", preadv(a, &one, 1, 0));
  peer_send(peer, a, 4, 100, 2);
  settle(a);
  memset(big, POISON, sizeof big);
  CALL("  preadv2 RWF_NOWAIT: %s, %s", preadv2(a, &one, 1, -1, RWF_NOWAIT), identify(big, 100));
  CALL("  preadv2 RWF_HIPRI: %s", preadv2(a, &one, 1, -1, RWF_HIPRI));
  CALL("  preadv2 with nothing there, RWF_NOWAIT: %s", preadv2(a, &one, 1, -1, RWF_NOWAIT));
}

CASE(read_forms, "read, readv: sizes and truncation") {
  int a = udp("a"), peer = peer_open("peer");
  peer_send(peer, a, 1, 1000, 3);
  unsigned char x[600], y[600];
  settle(a);
  memset(x, POISON, sizeof x);
  CALL("  read 600 = %s, %s", read(a, x, 600), identify(x, 600));
  settle(a);
  struct iovec two[] = {{x, 600}, {y, 600}};
  memset(y, POISON, sizeof y);
  CALL("  readv = %s, %s + %s%s", readv(a, two, 2), identify(x, 600), identify_from(y, 400, 600), beyond(y + 400, 200));
  settle(a);
  CALL("  read 600 = %s, %s", read(a, x, 600), identify(x, 600));
  nonblocking(a, true);
  CALL("  read = %s", read(a, x, 600));
}

static void show_batch(const char *what, int fd, unsigned count, int flags, struct timespec *timeout) {
  static unsigned char rooms[8][64], names[8][32];
  struct iovec vectors[8];
  struct mmsghdr m[8];
  memset(rooms, POISON, sizeof rooms), memset(names, POISON, sizeof names), memset(m, POISON, sizeof m);
  for (int i = 0; i < 8; i++) {
    vectors[i] = (struct iovec){rooms[i], 64};
    m[i].msg_hdr.msg_name = names[i];
    m[i].msg_hdr.msg_namelen = 32;
    m[i].msg_hdr.msg_iov = &vectors[i];
    m[i].msg_hdr.msg_iovlen = 1;
    m[i].msg_hdr.msg_control = NULL;
    m[i].msg_hdr.msg_controllen = 0;
  }
  errno = NO_ERRNO;
  int n = recvmmsg(fd, m, count, flags, timeout);
  say("  %s = %s", what, outcome(n));
  for (int i = 0; i < (n < 0 ? 1 : n < 8 ? n + 1 : 8); i++)
    say("    %d: len %u namelen %u controllen %zu flags %#x %s name %s", i, m[i].msg_len, m[i].msg_hdr.msg_namelen,
        m[i].msg_hdr.msg_controllen, (unsigned)m[i].msg_hdr.msg_flags, i < n ? identify(rooms[i], m[i].msg_len < 64 ? m[i].msg_len : 64) : beyond(rooms[i], 64),
        i < n ? show_name(names[i], 16) : beyond(names[i], 32));
}

CASE(streams, "streams of libc's on a socket: what they read and write is a datagram each") {
  int a = udp("a"), b = udp("b");
  send_to(b, a, 1, 10);
  settle(a);
  show_recv("before", a, 100, 0);
  struct sockaddr_in name = name_of(b);
  CALL("  connect = %s", connect(a, (void *)&name, sizeof name));
  FILE *in = fdopen(dup(a), "r"), *out = fdopen(dup(a), "w");
  if (!in || !out) give_up("fdopen");
  for (unsigned i = 2; i < 5; i++) {
    char text[100] = "";
    name = name_of(a);
    sendto(b, "a line\n", 7, 0, (void *)&name, sizeof name);
    say("  fgets = %.6s", fgets(text, sizeof text, in) ? text : "nothing");
    fprintf(out, "answer %u", i);
    fflush(out);
    settle(b);
    show_recv("at b", b, 100, 0);
  }
  fclose(in), fclose(out);
}

CASE(recvmmsg_counts, "recvmmsg: fewer, as many and more than wanted; MSG_WAITFORONE; MSG_DONTWAIT; count 0") {
  int a = udp("a"), b = udp("b");
  for (unsigned i = 0; i < 5; i++) send_to(b, a, i + 1, 30 + i * 20);
  show_batch("3 of 5", a, 3, 0, NULL);
  show_batch("8 of 2, MSG_WAITFORONE", a, 8, MSG_WAITFORONE, NULL);
  show_batch("8 of 0, MSG_DONTWAIT", a, 8, MSG_DONTWAIT, NULL);
  send_to(b, a, 7, 10);
  show_batch("8 of 1, MSG_DONTWAIT", a, 8, MSG_DONTWAIT, NULL);
  show_batch("none wanted", a, 0, 0, NULL);
  send_to(b, a, 8, 100);
  send_to(b, a, 9, 0);
  show_batch("MSG_TRUNC, too large and empty", a, 2, MSG_TRUNC, NULL);
  send_to(b, a, 10, 10);
  show_batch("MSG_PEEK", a, 2, MSG_PEEK | MSG_DONTWAIT, NULL);
  show_batch("after it", a, 2, MSG_DONTWAIT, NULL);
}

CASE(case_42, "recvmmsg and timeouts; SO_RCVTIMEO of nothing (case 42)") {
  int a = udp("a"), b = udp("b");
  struct timespec none = {0, 0}, half = {0, 500000000}, wrong = {0, 1000000000}, before = {-1, 0};
  for (unsigned i = 0; i < 3; i++) send_to(b, a, i + 1, 30);
  show_batch("timeout 0, 3 there", a, 8, 0, &none);
  show_batch("timeout 0, 2 there", a, 1, 0, &none);
  show_batch("a timeout that is none", a, 8, 0, &wrong);
  show_batch("a negative timeout", a, 8, 0, &before);
  show_batch("timeout 0.5 s, 1 there, MSG_WAITFORONE", a, 8, MSG_WAITFORONE, &half);
  say("    left: %s", half.tv_sec == 0 && half.tv_nsec > 0 && half.tv_nsec < 500000000 ? "less" : half.tv_nsec == 500000000 ? "as much" : "nothing");
  struct timespec more = {0, 20000000};
  show_batch("MSG_DONTWAIT with a timeout, nothing there", a, 8, MSG_DONTWAIT, &more);
  struct timeval zero = {0, 0}, little = {0, 30000};
  CALL("  SO_RCVTIMEO {0,0} = %s", setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &zero, sizeof zero));
  send_to(b, a, 4, 10);
  show_recv("recv", a, 100, 0);
  CALL("  SO_RCVTIMEO {0,30000} = %s", setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &little, sizeof little));
  uint64_t start = now_ms();
  show_recv("recv", a, 100, 0);
  say("  waited: %s", now_ms() - start >= 25 ? "yes" : "no");
  send_to(b, a, 5, 10);
  show_batch("8 wanted, 1 there, SO_RCVTIMEO", a, 8, 0, NULL);
  struct timeval odd = {0, 1000000}, less = {-1, 0};
  CALL("  a timeval that is none = %s", setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &odd, sizeof odd));
  CALL("  a negative one = %s", setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &less, sizeof less));
  show_recv("recv", a, 100, 0);
}

CASE(own_name_mapped, "AF_INET6 and IPv4 peers: names in their v4-mapped form") {
  int a = udp6("::", "a"), peer = peer_open("peer");
  static const int names[] = {-1, 0, 8, 16, 24, 27, 28, 29, 128};
  for (unsigned n = 0; n < LENGTH(names); n++) {
    peer_send(peer, a, n + 1, 20, 2);
    settle(a);
    show_recvmsg("recvmsg", a, 100, 0, names[n], 64);
    settle(a);
    show_recvfrom("recvfrom", a, 100, 0, names[n]);
  }
  int b = udp6("::ffff:127.0.0.1", "b");
  peer_send(peer, b, 1, 20, 1);
  settle(b);
  show_recvmsg("bound to the mapped address", b, 100, 0, 128, 64);
}

CASE(connected, "a connected socket takes its peer's datagrams and no others'") {
  int a = udp("a"), peer = peer_open("peer"), other = peer_open("other");
  struct sockaddr_in name = peer_name(peer);
  CALL("  connect = %s", connect(a, (void *)&name, sizeof name));
  peer_send(other, a, 1, 10, 1);
  peer_send(peer, a, 2, 10, 1);
  settle(a);
  show_recvmsg("recvmsg", a, 100, 0, 128, 64);
  show_recvmsg("recvmsg", a, 100, MSG_DONTWAIT, 128, 64);
}

CASE(case_36, "a signal that interrupts a receive: with and without SA_RESTART, with SO_RCVTIMEO (case 36, case 3)") {
  int a = udp("a");
  struct itimerval soon = {{0, 0}, {0, 30000}};
  struct sigaction action = {.sa_handler = (void (*)(int))clean_up};
  extern void count_alarm(int);
  action.sa_handler = count_alarm;
  sigaction(SIGALRM, &action, NULL);
  setitimer(ITIMER_REAL, &soon, NULL);
  show_recv("recv", a, 100, 0);
  setitimer(ITIMER_REAL, &soon, NULL);
  show_recvmsg("recvmsg", a, 100, 0, 128, 64);
  setitimer(ITIMER_REAL, &soon, NULL);
  char room[10];
  CALL("  read = %s", read(a, room, 10));
  struct iovec vector = {room, 10};
  struct mmsghdr m = {.msg_hdr = {.msg_iov = &vector, .msg_iovlen = 1}};
  setitimer(ITIMER_REAL, &soon, NULL);
  CALL("  recvmmsg = %s", recvmmsg(a, &m, 1, 0, NULL));
  action.sa_flags = SA_RESTART;
  sigaction(SIGALRM, &action, NULL);
  struct timeval limit = {0, 100000};
  setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setitimer(ITIMER_REAL, &soon, NULL);
  show_recv("SA_RESTART, SO_RCVTIMEO", a, 100, 0);
  signal(SIGALRM, SIG_DFL);
}
static volatile int alarms;
void count_alarm(int number) { alarms++; }

CASE(case_4, "FIONREAD with nothing, one, two; after a peek; SIOCOUTQ (case 4)") {
  int a = udp("a"), peer = peer_open("peer"), value = 77;
  CALL("  nothing: %s, %d", ioctl(a, FIONREAD, &value), value);
  peer_send(peer, a, 1, 100, 1);
  settle(a);
  peer_send(peer, a, 2, 50, 1);
  CALL("  two: %s, %d", ioctl(a, FIONREAD, &value), value);
  CALL("  SIOCINQ: %s, %d", ioctl(a, SIOCINQ, &value), value);
  show_recv("peek", a, 10, MSG_PEEK);
  CALL("  after a peek: %s, %d", ioctl(a, FIONREAD, &value), value);
  show_recv("recv", a, 10, 0);
  settle(a);
  CALL("  one: %s, %d", ioctl(a, FIONREAD, &value), value);
  show_recv("recv", a, 100, 0);
  CALL("  none: %s, %d", ioctl(a, FIONREAD, &value), value);
  CALL("  SIOCOUTQ: %s, %d", ioctl(a, SIOCOUTQ, &value), value);
}

CASE(case_52, "O_NONBLOCK by fcntl, FIONBIO and SOCK_NONBLOCK; FD_CLOEXEC (case 52)") {
  int a = udp("a"), on = 1, off = 0;
  say("  flags %#x, descriptor flags %d", fcntl(a, F_GETFL), fcntl(a, F_GETFD));
  CALL("  FIONBIO 1 = %s, flags %#x", ioctl(a, FIONBIO, &on), fcntl(a, F_GETFL));
  show_recv("recv", a, 10, 0);
  CALL("  FIONBIO 0 = %s, flags %#x", ioctl(a, FIONBIO, &off), fcntl(a, F_GETFL));
  struct timeval limit = {0, 20000};
  setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  uint64_t start = now_ms();
  show_recv("recv", a, 10, 0);
  say("  waited: %s", now_ms() - start >= 15 ? "yes" : "no");
  int b = keep(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_UDP));
  struct sockaddr_in any = ipv4("127.0.0.1", 0);
  bind(b, (void *)&any, sizeof any);
  say("  flags %#x, descriptor flags %d", fcntl(b, F_GETFL), fcntl(b, F_GETFD));
  show_recv("recv", b, 10, 0);
  CALL("  FIOCLEX = %s, descriptor flags %d", ioctl(a, FIOCLEX), fcntl(a, F_GETFD));
  CALL("  F_SETFD 0 = %s, descriptor flags %d", fcntl(a, F_SETFD, 0), fcntl(a, F_GETFD));
}

CASE(case_9, "errno is left alone by what succeeds (case 9)") {
  int a = udp("a"), b = udp("b");
  struct sockaddr_in name = name_of(a);
  char room[100];
  struct iovec vector = {room, 100};
  for (int round = 0; round < 3; round++) {
    CALL("  sendto %s", sendto(b, "x", 1, 0, (void *)&name, sizeof name));
    CALL("  recv %s", recv(a, room, 100, 0));
    struct msghdr m = {.msg_name = &name, .msg_namelen = sizeof name, .msg_iov = &vector, .msg_iovlen = 1};
    CALL("  sendmsg %s", sendmsg(b, &m, 0));
    struct pollfd entry = {a, POLLIN, 0};
    CALL("  poll %s", poll(&entry, 1, 1000));
    CALL("  recvmsg %s", recvmsg(a, &m, 0));
    fd_set set;
    FD_ZERO(&set);
    FD_SET(a, &set);
    struct timeval none = {0, 1000};
    CALL("  select %s", select(a + 1, &set, NULL, NULL, &none));
    CALL("  poll %s", poll(&entry, 1, 1));
    name = name_of(a);
  }
}
