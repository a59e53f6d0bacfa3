// bind, connect, names, shutdown, errors that come back.
#include "probe.h"

static void show_names(const char *what, int fd) {
  unsigned char room[64];
  socklen_t length = sizeof room;
  memset(room, POISON, sizeof room);
  CALL("  getsockname = %s, %s (%u%s) " , getsockname(fd, (void *)room, &length), show_name(room, length), length, beyond(room + length, sizeof room - length));
  length = sizeof room;
  memset(room, POISON, sizeof room);
  const char *result = TRY(getpeername(fd, (void *)room, &length));
  bool named = result[0] != '-';
  say("  getpeername = %s, %s (%u%s): %s", result, named ? show_name(room, length) : "", length, beyond(room + (named ? length : 0), sizeof room - (named ? length : 0)), what);
}

CASE(name_rooms, "getsockname, getpeername: rooms of every size, NULL") {
  int a = udp("a"), b = udp("b");
  struct sockaddr_in name = name_of(b);
  connect(a, (void *)&name, sizeof name);
  for (socklen_t size = 0; size <= 20; size++) {
    unsigned char room[32];
    socklen_t length = size;
    memset(room, POISON, sizeof room);
    CALL("  getsockname = %s, length %u of %u%s, %s", getsockname(a, (void *)room, &length), length, size, beyond(room + size, sizeof room - size),
         show_name(room, length < size ? length : size));
    length = size;
    memset(room, POISON, sizeof room);
    CALL("  getpeername = %s, length %u of %u%s, %s", getpeername(a, (void *)room, &length), length, size, beyond(room + size, sizeof room - size),
         show_name(room, length < size ? length : size));
  }
  socklen_t length = (socklen_t)-1;
  CALL("  getsockname, negative length = %s", getsockname(a, (void *)&name, &length));
  CALL("  getpeername, negative length = %s", getpeername(a, (void *)&name, &length));
}

CASE(case_47, "bind twice, rebind, connect twice, AF_UNSPEC (case 47)") {
  int a = unbound(AF_INET, 0), b = udp("b"), c = udp("c"), peer = peer_open("peer");
  show_names("fresh", a);
  struct sockaddr_in any = ipv4("127.0.0.1", 0), foreign = ipv4("203.0.113.7", 0), taken = name_of(b), to_c = name_of(c), to_peer = peer_name(peer);
  struct sockaddr unspecified = {.sa_family = AF_UNSPEC};
  CALL("  bind to a foreign address = %s", bind(a, (void *)&foreign, sizeof foreign));
  CALL("  bind to a taken port = %s", bind(a, (void *)&taken, sizeof taken));
  CALL("  bind with a short name = %s", bind(a, (void *)&any, 8));
  CALL("  bind = %s", bind(a, (void *)&any, sizeof any));
  know(port_of(a), "a");
  show_names("bound", a);
  CALL("  bind again = %s", bind(a, (void *)&any, sizeof any));
  CALL("  AF_UNSPEC before connect = %s", connect(a, &unspecified, sizeof unspecified));
  CALL("  connect = %s", connect(a, (void *)&to_c, sizeof to_c));
  know(port_of(a), "a anew");
  show_names("connected", a);
  CALL("  send = %s", send(a, payload(1, 10), 10, 0));
  settle(c);
  show_recvmsg("at c", c, 100, 0, 128, 64);
  CALL("  connect elsewhere = %s", connect(a, (void *)&to_peer, sizeof to_peer));
  show_names("connected elsewhere", a);
  CALL("  send = %s", send(a, payload(2, 10), 10, 0));
  show_peer("at the peer", peer);
  send_to(c, a, 3, 10);
  show_recv("from c", a, 100, MSG_DONTWAIT);
  CALL("  sendto c while connected = %s", sendto(a, payload(4, 10), 10, 0, (void *)&to_c, sizeof to_c));
  settle(c);
  show_recvmsg("at c", c, 100, 0, 128, 64);
  CALL("  AF_UNSPEC = %s", connect(a, &unspecified, sizeof unspecified));
  show_names("dissolved: the port is gone", a);
  CALL("  send = %s", send(a, payload(5, 10), 10, 0));
  CALL("  sendto = %s", sendto(a, payload(5, 10), 10, 0, (void *)&to_c, sizeof to_c));
  know(port_of(a), "a once more");
  settle(c);
  show_recvmsg("at c", c, 100, 0, 128, 64);
  show_names("bound by the send", a);
  send_to(c, a, 6, 10);
  settle(a);
  show_recvmsg("from c", a, 100, 0, 128, 64);
  CALL("  connect with a short name = %s", connect(a, (void *)&to_c, 15));
  CALL("  connect with no name = %s", connect(a, (void *)&to_c, 0));
  struct sockaddr_in zero = ipv4("127.0.0.1", 0), nowhere = ipv4("0.0.0.0", port_of(c)), broadcast = ipv4("255.255.255.255", 1);
  CALL("  connect to port 0 = %s", connect(a, (void *)&zero, sizeof zero));
  show_names("connected to port 0", a);
  CALL("  send = %s", send(a, payload(7, 10), 10, 0));
  CALL("  connect to 0.0.0.0 = %s", connect(a, (void *)&nowhere, sizeof nowhere));
  show_names("connected to 0.0.0.0", a);
  CALL("  connect to broadcast = %s", connect(a, (void *)&broadcast, sizeof broadcast));
}

CASE(locked_port, "AF_UNSPEC: a port that the program chose stays") {
  int a = unbound(AF_INET, 0), b = udp("b"), c = udp("c");
  struct sockaddr_in chosen = name_of(b), to_c = name_of(c);
  struct sockaddr unspecified = {.sa_family = AF_UNSPEC};
  drop(b);
  CALL("  bind = %s", bind(a, (void *)&chosen, sizeof chosen));
  know(port_of(a), "a");
  for (int round = 0; round < 2; round++) {
    CALL("  connect = %s", connect(a, (void *)&to_c, sizeof to_c));
    CALL("  send = %s", send(a, payload(1, 10), 10, 0));
    settle(c);
    show_recvmsg("at c", c, 100, 0, 128, 64);
    CALL("  AF_UNSPEC = %s", connect(a, &unspecified, sizeof unspecified));
    show_names("dissolved", a);
    send_to(c, a, 2, 10);
    settle(a);
    show_recvmsg("from c", a, 100, 0, 128, 64);
  }
}

CASE(queued_before_connect, "what was queued before connect stays, whoever sent it") {
  int a = udp("a"), b = udp("b"), c = udp("c");
  send_to(b, a, 1, 10);
  settle(a);
  struct sockaddr_in to_c = name_of(c);
  CALL("  connect = %s", connect(a, (void *)&to_c, sizeof to_c));
  show_recvmsg("from b", a, 100, MSG_DONTWAIT, 128, 64);
  send_to(b, a, 2, 10);
  send_to(c, a, 3, 10);
  settle(a);
  show_recvmsg("from c", a, 100, MSG_DONTWAIT, 128, 64);
  show_recv("nothing", a, 100, MSG_DONTWAIT);
}

CASE(unbound_connect, "connect without bind: address and port; after AF_UNSPEC; bind then") {
  int a = unbound(AF_INET, 0), b = udp("b"), wild = bound_to("0.0.0.0", "wild");
  struct sockaddr_in to_b = name_of(b), any = ipv4("127.0.0.1", 0);
  struct sockaddr unspecified = {.sa_family = AF_UNSPEC};
  CALL("  connect = %s", connect(a, (void *)&to_b, sizeof to_b));
  know(port_of(a), "a");
  show_names("connected", a);
  CALL("  bind = %s", bind(a, (void *)&any, sizeof any));
  CALL("  send = %s", send(a, payload(1, 10), 10, 0));
  settle(b);
  show_recvmsg("at b", b, 100, 0, 128, 64);
  send_to(b, a, 2, 10);
  settle(a);
  show_recvmsg("from b", a, 100, 0, 128, 64);
  CALL("  AF_UNSPEC = %s", connect(a, &unspecified, sizeof unspecified));
  know(port_of(a), "a again");
  say("  has a port: %s", port_of(a) ? "yes" : "no");
  CALL("  bind = %s", bind(a, (void *)&any, sizeof any));
  know(port_of(a), "a anew");
  show_names("bound", a);
  send_to(b, a, 3, 10);
  settle(a);
  show_recvmsg("from b", a, 100, 0, 128, 64);
  show_names("wildcard", wild);
  CALL("  connect the wildcard = %s", connect(wild, (void *)&to_b, sizeof to_b));
  show_names("wildcard, connected", wild);
  CALL("  AF_UNSPEC = %s", connect(wild, &unspecified, sizeof unspecified));
  show_names("wildcard, dissolved: its port was the kernel's choice, and is gone", wild);
}

CASE(refused, "a port where nobody is: ECONNREFUSED on send, recv, SO_ERROR and poll") {
  int a = udp("a"), gone = udp("gone");
  struct sockaddr_in name = name_of(gone);
  drop(gone);
  CALL("  sendto, not connected = %s", sendto(a, payload(1, 10), 10, 0, (void *)&name, sizeof name));
  show_recv("recv, not connected", a, 100, MSG_DONTWAIT);
  show_option("SO_ERROR", a, SOL_SOCKET, SO_ERROR);
  CALL("  connect = %s", connect(a, (void *)&name, sizeof name));
  CALL("  send = %s", send(a, payload(1, 10), 10, 0));
  show_recv("recv", a, 100, 0);
  show_recv("recv", a, 100, MSG_DONTWAIT);
  CALL("  send = %s", send(a, payload(1, 10), 10, 0));
  struct pollfd entry = {a, POLLIN | POLLOUT, 0};
  CALL("  poll = %s, %#x", poll(&entry, 1, 1000), entry.revents);
  show_option("SO_ERROR", a, SOL_SOCKET, SO_ERROR);
  show_option("SO_ERROR", a, SOL_SOCKET, SO_ERROR);
  CALL("  poll = %s, %#x", poll(&entry, 1, 0), entry.revents);
  CALL("  send = %s", send(a, payload(1, 10), 10, 0));
  CALL("  send = %s", send(a, payload(1, 10), 10, 0));
  CALL("  send = %s", send(a, payload(1, 10), 10, 0));
  show_recvmsg("recvmsg", a, 100, 0, 128, 64);
  show_recvmsg("recvmsg", a, 100, MSG_DONTWAIT, 128, 64);
}

CASE(refused_later, "the peer's socket goes away and comes back") {
  int a = udp("a"), b = udp("b");
  struct sockaddr_in name = name_of(b);
  CALL("  connect = %s", connect(a, (void *)&name, sizeof name));
  for (int round = 0; round < 3; round++) {
    CALL("  send = %s", send(a, payload(1, 10), 10, 0));
    settle(b);
    show_recv("at b", b, 100, 0);
    drop(b);
    CALL("  send = %s", send(a, payload(2, 10), 10, 0));
    show_recv("recv", a, 100, 0);
    b = unbound(AF_INET, 0);
    CALL("  bind again = %s", bind(b, (void *)&name, sizeof name));
  }
}

CASE(shut, "shutdown: each half, connected and not; poll after it; twice") {
  static const struct { int how; const char *name; } ways[] = {{SHUT_RD, "SHUT_RD"}, {SHUT_WR, "SHUT_WR"}, {SHUT_RDWR, "SHUT_RDWR"}};
  for (int connected = 0; connected < 2; connected++)
    for (unsigned w = 0; w < 3; w++) {
      int a = udp("a"), b = udp("b");
      struct sockaddr_in name = name_of(b);
      if (connected) connect(a, (void *)&name, sizeof name);
      say("  %s, %s", ways[w].name, connected ? "connected" : "not connected");
      CALL("  shutdown = %s", shutdown(a, ways[w].how));
      struct pollfd entry = {a, POLLIN | POLLOUT | POLLRDHUP, 0};
      CALL("  poll = %s, %#x", poll(&entry, 1, 0), entry.revents);
      show_recv("recv", a, 100, MSG_DONTWAIT);
      if (ways[w].how != SHUT_WR && connected) show_recv("recv that would wait", a, 100, 0);
      CALL("  send = %s", connected ? send(a, payload(1, 10), 10, MSG_NOSIGNAL) : sendto(a, payload(1, 10), 10, MSG_NOSIGNAL, (void *)&name, sizeof name));
      send_to(b, a, 2, 10);
      CALL("  poll = %s, %#x", poll(&entry, 1, 100), entry.revents);
      show_recv("recv", a, 100, MSG_DONTWAIT);
      CALL("  shutdown again = %s", shutdown(a, ways[w].how));
    }
  int a = udp("a");
  CALL("  shutdown 3 = %s", shutdown(a, 3));
  CALL("  shutdown -1 = %s", shutdown(a, -1));
}

static void *shut_soon(void *fd) {
  usleep(30000);
  shutdown((int)(intptr_t)fd, SHUT_RDWR);
  return NULL;
}
CASE(shut_early, "shutdown before bind, and before the first send: it holds for what comes later") {
  int a = unbound(AF_INET, 0), b = udp("b"), c = unbound(AF_INET, 0);
  struct sockaddr_in name = ipv4("127.0.0.1", 0), to = name_of(b);
  CALL("  shutdown of an unbound socket = %s", shutdown(a, SHUT_RD));
  CALL("  bind = %s", bind(a, (void *)&name, sizeof name));
  know(port_of(a), "a");
  show_recv("a blocking receive", a, 100, 0);
  struct pollfd entry = {a, POLLIN | POLLRDHUP, 0};
  CALL("  poll = %s", poll(&entry, 1, 0));
  say("  revents %#x", (unsigned)entry.revents);
  CALL("  sendto = %s", sendto(a, payload(1, 10), 10, 0, (void *)&to, sizeof to));
  settle(b);
  show_recv("arrived", b, 100, 0);
  CALL("  shutdown of another = %s", shutdown(c, SHUT_WR));
  CALL("  sendto = %s", sendto(c, payload(1, 10), 10, MSG_NOSIGNAL, (void *)&to, sizeof to));
  CALL("  bind = %s", bind(c, (void *)&name, sizeof name));
  CALL("  sendto = %s", sendto(c, payload(1, 10), 10, MSG_NOSIGNAL, (void *)&to, sizeof to));
  show_recv("nothing", b, 100, MSG_DONTWAIT);
}

CASE(shut_wakes, "shutdown wakes a blocked receive and a poll") {
  int a = udp("a"), b = udp("b");
  struct sockaddr_in name = name_of(b);
  connect(a, (void *)&name, sizeof name);
  pthread_t thread;
  pthread_create(&thread, NULL, shut_soon, (void *)(intptr_t)a);
  show_recv("recv", a, 100, 0);
  pthread_join(thread, NULL);
  int c = udp("c");
  connect(c, (void *)&name, sizeof name);
  pthread_create(&thread, NULL, shut_soon, (void *)(intptr_t)c);
  struct pollfd entry = {c, POLLIN, 0};
  CALL("  poll = %s, %#x", poll(&entry, 1, 3000), entry.revents);
  pthread_join(thread, NULL);
}

CASE(case_27, "SO_REUSEPORT, SO_REUSEADDR: who may share a port (case 27)") {
  static const int options[] = {0, SO_REUSEADDR, SO_REUSEPORT};
  static const char *const names[] = {"neither", "SO_REUSEADDR", "SO_REUSEPORT"};
  for (int first = 0; first < 3; first++)
    for (int second = 0; second < 3; second++) {
      int a = unbound(AF_INET, 0), b = unbound(AF_INET, 0);
      struct sockaddr_in any = ipv4("127.0.0.1", 0);
      if (options[first]) set(a, SOL_SOCKET, options[first], 1);
      if (options[second]) set(b, SOL_SOCKET, options[second], 1);
      bind(a, (void *)&any, sizeof any);
      any = name_of(a);
      CALL("  bind = %s, the first with %s, the second with %s", bind(b, (void *)&any, sizeof any), names[first], names[second]);
    }
  int a = udp("a");
  show_option("SO_REUSEPORT", a, SOL_SOCKET, SO_REUSEPORT);
  show_option("SO_REUSEADDR", a, SOL_SOCKET, SO_REUSEADDR);
}

CASE(case_46, "an SO_REUSEPORT group: every datagram reaches one member; a member that leaves (case 46)") {
  int group[3], senders[32], total = 0;
  struct sockaddr_in name = ipv4("127.0.0.1", 0);
  for (int i = 0; i < 3; i++) {
    group[i] = unbound(AF_INET, SOCK_NONBLOCK);
    set(group[i], SOL_SOCKET, SO_REUSEPORT, 1);
    CALL("  bind = %s", bind(group[i], (void *)&name, sizeof name));
    name = name_of(group[0]);
  }
  for (int i = 0; i < 32; i++) senders[i] = udp("sender");
  for (int round = 0; round < 2; round++) {
    int counts[3] = {0};
    for (int i = 0; i < 32; i++) sendto(senders[i], "x", 1, 0, (void *)&name, sizeof name);
    uint64_t limit = now_ms() + 3000;
    for (total = 0; total < 32 && now_ms() < limit;)
      for (int i = round; i < 3; i++) {
        char x[4];
        if (recv(group[i], x, 4, 0) == 1) total++, counts[i]++;
      }
    say("  %d of 32, every member had some: %s", total, (round || counts[0]) && counts[1] && counts[2] ? "yes" : "no");
    if (!round) drop(group[0]);
    if (!round) name = name_of(group[1]);
  }
}

CASE(reuse_flow, "SO_REUSEPORT: one flow stays with one member") {
  int group[4], a = udp("a"), counts[4] = {0};
  struct sockaddr_in name = ipv4("127.0.0.1", 0);
  for (int i = 0; i < 4; i++) {
    group[i] = unbound(AF_INET, SOCK_NONBLOCK);
    set(group[i], SOL_SOCKET, SO_REUSEPORT, 1);
    bind(group[i], (void *)&name, sizeof name);
    name = name_of(group[0]);
  }
  for (int i = 0; i < 20; i++) sendto(a, "x", 1, 0, (void *)&name, sizeof name);
  uint64_t limit = now_ms() + 3000;
  for (int total = 0; total < 20 && now_ms() < limit;)
    for (int i = 0; i < 4; i++) {
      char x[4];
      if (recv(group[i], x, 4, 0) == 1) total++, counts[i]++;
    }
  int members = 0, sum = 0;
  for (int i = 0; i < 4; i++) members += counts[i] > 0, sum += counts[i];
  say("  %d datagrams, %d member", sum, members);
}

CASE(reuse_addr_last, "SO_REUSEADDR: the socket bound last has the datagrams") {
  int a = unbound(AF_INET, 0), b = unbound(AF_INET, 0), c = udp("c");
  struct sockaddr_in name = ipv4("127.0.0.1", 0);
  set(a, SOL_SOCKET, SO_REUSEADDR, 1);
  set(b, SOL_SOCKET, SO_REUSEADDR, 1);
  bind(a, (void *)&name, sizeof name);
  name = name_of(a);
  CALL("  bind = %s", bind(b, (void *)&name, sizeof name));
  send_to(c, a, 1, 10);
  struct pollfd entries[] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
  CALL("  poll = %s, %#x %#x", poll(entries, 2, 1000), entries[0].revents, entries[1].revents);
}

CASE(specific, "lookup: connected before bound, address before wildcard") {
  int wild = unbound(AF_INET, 0), exact = unbound(AF_INET, 0), c = udp("c"), d = udp("d");
  set(wild, SOL_SOCKET, SO_REUSEADDR, 1);
  set(exact, SOL_SOCKET, SO_REUSEADDR, 1);
  struct sockaddr_in name = ipv4("0.0.0.0", 0);
  bind(wild, (void *)&name, sizeof name);
  name = ipv4("127.0.0.1", port_of(wild));
  CALL("  bind = %s", bind(exact, (void *)&name, sizeof name));
  send_to(c, wild, 1, 10);
  settle(exact);
  show_recv("at the exact one", exact, 100, MSG_DONTWAIT);
  show_recv("at the wildcard", wild, 100, MSG_DONTWAIT);
  struct sockaddr_in other = ipv4("127.0.0.5", port_of(wild));
  CALL("  to 127.0.0.5 = %s", sendto(c, payload(2, 10), 10, 0, (void *)&other, sizeof other));
  settle(wild);
  show_recv("at the wildcard", wild, 100, MSG_DONTWAIT);
  int connected = unbound(AF_INET, 0);
  set(connected, SOL_SOCKET, SO_REUSEADDR, 1);
  CALL("  bind = %s", bind(connected, (void *)&name, sizeof name));
  struct sockaddr_in to_c = name_of(c);
  CALL("  connect = %s", connect(connected, (void *)&to_c, sizeof to_c));
  send_to(c, wild, 3, 10);
  settle(connected);
  show_recv("from c at the connected one", connected, 100, MSG_DONTWAIT);
  send_to(d, wild, 4, 10);
  settle(exact);
  show_recv("from d at the exact one", exact, 100, MSG_DONTWAIT);
  show_recv("from d at the connected one", connected, 100, MSG_DONTWAIT);
}

CASE(ephemeral, "ephemeral ports: distinct, in the range, free again after close") {
  uint16_t ports[64];
  bool distinct = true, range = true;
  int low = 0, high = 0;
  FILE *file = fopen("/proc/sys/net/ipv4/ip_local_port_range", "r");
  if (!file || fscanf(file, "%d %d", &low, &high) != 2) give_up("ip_local_port_range");
  fclose(file);
  for (int i = 0; i < 64; i++) {
    int fd = udp("some");
    ports[i] = port_of(fd);
    range &= ports[i] >= low && ports[i] <= high;
    for (int j = 0; j < i; j++) distinct &= ports[j] != ports[i];
  }
  say("  distinct: %s, in the range: %s", distinct ? "yes" : "no", range ? "yes" : "no");
  int a = udp("a");
  struct sockaddr_in name = name_of(a);
  drop(a);
  int b = unbound(AF_INET, 0);
  CALL("  bind to a port just closed = %s", bind(b, (void *)&name, sizeof name));
}

CASE(dup_forms, "descriptors made by dup: closed in any order, options shared") {
  int a = udp("a"), b = udp("b"), c = keep(dup(a)), d = keep(fcntl(a, F_DUPFD, 100)), e = keep(dup2(a, 150));
  say("  F_DUPFD gives %s", d >= 100 ? "at least 100" : "too little");
  send_to(b, a, 1, 10);
  settle(c);
  show_recv("through the dup", c, 100, 0);
  drop(a);
  nonblocking(d, true);
  show_recv("non-blocking through another", c, 100, 0);
  nonblocking(d, false);
  send_to(b, c, 2, 10);
  settle(e);
  show_recv("through the third", e, 100, 0);
  struct sockaddr_in to_b = name_of(b);
  CALL("  connect through one = %s", connect(c, (void *)&to_b, sizeof to_b));
  CALL("  send through another = %s", send(d, payload(3, 10), 10, 0));
  settle(b);
  show_recvmsg("at b", b, 100, 0, 128, 64);
  drop(c);
  drop(d);
  send_to(b, e, 4, 10);
  settle(e);
  show_recv("through the last", e, 100, 0);
  uint16_t port = port_of(e);
  drop(e);
  int again = unbound(AF_INET, 0);
  struct sockaddr_in name = ipv4("127.0.0.1", port);
  CALL("  the port is free = %s", bind(again, (void *)&name, sizeof name));
}

CASE(domain, "AF_INET6: native peers, the wildcard, V6ONLY") {
  int a = unbound(AF_INET6, 0), b = unbound(AF_INET6, 0);
  struct sockaddr_in6 one = ipv6("::1", 0);
  CALL("  bind ::1 = %s", bind(a, (void *)&one, sizeof one));
  know(port_of(a), "a");
  CALL("  bind ::1 = %s", bind(b, (void *)&one, sizeof one));
  know(port_of(b), "b");
  show_names("native", a);
  struct sockaddr_in6 to_a = ipv6("::1", port_of(a));
  CALL("  sendto ::1 = %s", sendto(b, payload(1, 10), 10, 0, (void *)&to_a, sizeof to_a));
  settle(a);
  show_recvmsg("recvmsg", a, 100, 0, 128, 64);
  int wild = udp6("::", "wild"), four = udp("four");
  struct sockaddr_in6 to_wild = ipv6("::1", port_of(wild));
  CALL("  sendto the wildcard by ::1 = %s", sendto(b, payload(2, 10), 10, 0, (void *)&to_wild, sizeof to_wild));
  settle(wild);
  show_recvmsg("recvmsg", wild, 100, 0, 128, 64);
  send_to(four, wild, 3, 10);
  settle(wild);
  show_recvmsg("recvmsg", wild, 100, 0, 128, 64);
  int only = unbound(AF_INET6, 0);
  set(only, IPPROTO_IPV6, IPV6_V6ONLY, 1);
  struct sockaddr_in6 any = ipv6("::", 0), v4 = mapped(0);
  CALL("  V6ONLY, bind to a mapped address = %s", bind(only, (void *)&v4, sizeof v4));
  CALL("  V6ONLY, bind = %s", bind(only, (void *)&any, sizeof any));
  struct sockaddr_in to_only = ipv4("127.0.0.1", port_of(only));
  connect(four, (void *)&to_only, sizeof to_only);
  CALL("  to a V6ONLY socket by IPv4 = %s", send(four, payload(4, 10), 10, 0));
  show_recv("recv", four, 100, 0);
  CALL("  connect a mapped one to native = %s", connect(wild, (void *)&to_a, sizeof to_a));
  show_names("native peer", wild);
  struct sockaddr_in6 to_four = mapped(port_of(four));
  CALL("  and to IPv4 = %s", connect(wild, (void *)&to_four, sizeof to_four));
  show_names("mapped peer", wild);
}
