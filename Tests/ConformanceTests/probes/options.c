// Options: what is set is read back, and what it promises is kept.
#include "probe.h"

CASE(read_back, "getsockopt: every option of a fresh socket, a bound one and one that has talked") {
  static const struct { int level, name; const char *title; } options[] = {
      {SOL_SOCKET, SO_TYPE, "SO_TYPE"}, {SOL_SOCKET, SO_DOMAIN, "SO_DOMAIN"}, {SOL_SOCKET, SO_PROTOCOL, "SO_PROTOCOL"}, {SOL_SOCKET, SO_ERROR, "SO_ERROR"},
      {SOL_SOCKET, SO_ACCEPTCONN, "SO_ACCEPTCONN"}, {SOL_SOCKET, SO_RCVBUF, "SO_RCVBUF"}, {SOL_SOCKET, SO_SNDBUF, "SO_SNDBUF"},
      {SOL_SOCKET, SO_RCVLOWAT, "SO_RCVLOWAT"}, {SOL_SOCKET, SO_SNDLOWAT, "SO_SNDLOWAT"}, {SOL_SOCKET, SO_BROADCAST, "SO_BROADCAST"},
      {SOL_SOCKET, SO_KEEPALIVE, "SO_KEEPALIVE"}, {SOL_SOCKET, SO_PRIORITY, "SO_PRIORITY"}, {SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR"},
      {SOL_SOCKET, SO_TIMESTAMP, "SO_TIMESTAMP"}, {SOL_SOCKET, SO_TIMESTAMPNS, "SO_TIMESTAMPNS"}, {SOL_SOCKET, SO_TIMESTAMPING, "SO_TIMESTAMPING"},
      {SOL_SOCKET, SO_RXQ_OVFL, "SO_RXQ_OVFL"}, {SOL_SOCKET, SO_PEEK_OFF, "SO_PEEK_OFF"}, {SOL_SOCKET, SO_BUSY_POLL, "SO_BUSY_POLL"},
      {SOL_SOCKET, SO_INCOMING_CPU, "SO_INCOMING_CPU (is not printed)"}, {SOL_SOCKET, SO_MARK, "SO_MARK"}, {SOL_SOCKET, 9999, "an unknown one"},
      {IPPROTO_IP, IP_TTL, "IP_TTL"}, {IPPROTO_IP, IP_TOS, "IP_TOS"}, {IPPROTO_IP, IP_MTU_DISCOVER, "IP_MTU_DISCOVER"}, {IPPROTO_IP, IP_MTU, "IP_MTU"},
      {IPPROTO_IP, IP_PKTINFO, "IP_PKTINFO"}, {IPPROTO_IP, IP_RECVERR, "IP_RECVERR"}, {IPPROTO_IP, IP_RECVTTL, "IP_RECVTTL"}, {IPPROTO_IP, IP_RECVTOS, "IP_RECVTOS"},
      {IPPROTO_IP, IP_FREEBIND, "IP_FREEBIND"}, {IPPROTO_IP, IP_MULTICAST_TTL, "IP_MULTICAST_TTL"}, {IPPROTO_IP, 9999, "an unknown one"},
      {IPPROTO_UDP, UDP_CORK, "UDP_CORK"}, {IPPROTO_UDP, UDP_SEGMENT, "UDP_SEGMENT"}, {IPPROTO_UDP, 9999, "an unknown one"},
      {IPPROTO_IPV6, IPV6_V6ONLY, "IPV6_V6ONLY on AF_INET"}, {IPPROTO_TCP, 1, "TCP_NODELAY"}, {9999, 1, "an unknown level"}};
  int fresh = unbound(AF_INET, 0), bound = udp("bound"), busy = udp("busy"), other = udp("other");
  struct sockaddr_in name = name_of(other);
  connect(busy, (void *)&name, sizeof name);
  send(busy, "x", 1, 0);
  settle(other);
  int sockets[] = {fresh, bound, busy};
  for (unsigned o = 0; o < LENGTH(options); o++)
    for (int s = 0; s < 3; s++)
      if (options[o].name != SO_INCOMING_CPU || options[o].level != SOL_SOCKET) show_option(options[o].title, sockets[s], options[o].level, options[o].name);
}

CASE(option_rooms, "getsockopt, setsockopt: lengths of every size, NULL, unknown") {
  int a = udp("a");
  for (socklen_t size = 0; size < 10; size++) {
    int value[4];
    socklen_t length = size;
    memset(value, POISON, sizeof value);
    CALL("  SO_TYPE = %s, %#x length %u of %u", getsockopt(a, SOL_SOCKET, SO_TYPE, value, &length), (unsigned)value[0], length, size);
    length = size;
    memset(value, POISON, sizeof value);
    CALL("  SO_ERROR = %s, %#x length %u of %u", getsockopt(a, SOL_SOCKET, SO_ERROR, value, &length), (unsigned)value[0], length, size);
    length = size;
    memset(value, POISON, sizeof value);
    CALL("  IP_TTL = %s, %#x length %u of %u", getsockopt(a, IPPROTO_IP, IP_TTL, value, &length), (unsigned)value[0], length, size);
    int one[4] = {1, 0, 0, 0};
    CALL("  set SO_BROADCAST = %s, length %u", setsockopt(a, SOL_SOCKET, SO_BROADCAST, one, size), size);
    CALL("  set IP_RECVTTL = %s, length %u", setsockopt(a, IPPROTO_IP, IP_RECVTTL, one, size), size);
  }
  socklen_t length = (socklen_t)-1;
  int value;
  CALL("  negative length = %s", getsockopt(a, SOL_SOCKET, SO_TYPE, &value, &length));
}

CASE(case_33, "setsockopt of unknown options and levels (case 33)") {
  int a = udp("a");
  int one = 1;
  CALL("  SOL_SOCKET 9999 = %s", setsockopt(a, SOL_SOCKET, 9999, &one, sizeof one));
  CALL("  IPPROTO_IP 9999 = %s", setsockopt(a, IPPROTO_IP, 9999, &one, sizeof one));
  CALL("  IPPROTO_UDP 9999 = %s", setsockopt(a, IPPROTO_UDP, 9999, &one, sizeof one));
  CALL("  level 9999 = %s", setsockopt(a, 9999, 1, &one, sizeof one));
  CALL("  TCP_NODELAY = %s", setsockopt(a, IPPROTO_TCP, 1, &one, sizeof one));
  CALL("  SO_KEEPALIVE = %s", setsockopt(a, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one));
  CALL("  SO_LINGER, too short = %s", setsockopt(a, SOL_SOCKET, SO_LINGER, &one, sizeof one));
  CALL("  SO_TYPE = %s", setsockopt(a, SOL_SOCKET, SO_TYPE, &one, sizeof one));
  CALL("  IP_TTL 0 = %s", setsockopt(a, IPPROTO_IP, IP_TTL, &(int){0}, 4));
  CALL("  IP_TTL 256 = %s", setsockopt(a, IPPROTO_IP, IP_TTL, &(int){256}, 4));
  CALL("  IP_TTL -1 = %s", setsockopt(a, IPPROTO_IP, IP_TTL, &(int){-1}, 4));
  CALL("  IP_MTU_DISCOVER 9 = %s", setsockopt(a, IPPROTO_IP, IP_MTU_DISCOVER, &(int){9}, 4));
  CALL("  UDP_SEGMENT 65536 = %s", setsockopt(a, IPPROTO_UDP, UDP_SEGMENT, &(int){65536}, 4));
  CALL("  listen = %s", listen(a, 1));
  CALL("  accept = %s", accept(a, NULL, NULL));
}

CASE(ttl_tos, "IP_TTL and IP_TOS (with ECN), set before and after the first datagram") {
  int peer = peer_open("peer"), a = unbound(AF_INET, 0);
  struct sockaddr_in name = peer_name(peer);
  set(a, IPPROTO_IP, IP_TTL, 17);
  set(a, IPPROTO_IP, IP_TOS, 0xb9);
  CALL("  sendto = %s", sendto(a, payload(1, 10), 10, 0, (void *)&name, sizeof name));
  know(port_of(a), "a");
  show_peer("ttl 17, tos 0xb9", peer);
  show_option("IP_TOS", a, IPPROTO_IP, IP_TOS);
  set(a, IPPROTO_IP, IP_TTL, 255);
  set(a, IPPROTO_IP, IP_TOS, 0x02);
  CALL("  connect = %s", connect(a, (void *)&name, sizeof name));
  CALL("  send = %s", send(a, payload(2, 10), 10, 0));
  show_peer("ttl 255, tos 2", peer);
  set(a, IPPROTO_IP, IP_TTL, -1);
  set(a, IPPROTO_IP, IP_TOS, 0);
  CALL("  send = %s", send(a, payload(3, 10), 10, 0));
  show_peer("the defaults", peer);
  show_option("IP_TTL", a, IPPROTO_IP, IP_TTL);
  set(a, IPPROTO_IP, IP_TTL, 1);
  CALL("  send = %s", send(a, payload(4, 3000), 3000, 0));
  show_peer("ttl 1", peer);
}

CASE(receive_buffer, "SO_RCVBUF: doubled, bounded, and what fits in a small one") {
  int a = udp("a"), b = udp("b");
  static const int sizes[] = {0, 1, 2048, 4096, 10000};
  for (unsigned i = 0; i < LENGTH(sizes); i++) {
    set(a, SOL_SOCKET, SO_RCVBUF, sizes[i]);
    show_option("SO_RCVBUF", a, SOL_SOCKET, SO_RCVBUF);
    for (unsigned length = 1; length <= 1400; length += 1399) {
      int got = 0;
      for (int n = 0; n < 100; n++) send_to(b, a, 1, length);
      wait_sent(b);
      if (settle(a))
        while (recv(a, inbox, sizeof inbox, MSG_DONTWAIT) >= 0) got++;
      say("  of 100 datagrams of %u bytes %d fitted", length, got);
    }
  }
  set(a, SOL_SOCKET, SO_RCVBUF, 1 << 20);
  show_option("SO_RCVBUF", a, SOL_SOCKET, SO_RCVBUF);
}

CASE(receive_buffer_large, "SO_RCVBUF: the default holds what the kernel's holds") {
  int a = udp("a"), b = udp("b"), got = 0;
  for (int n = 0; n < 250; n++) send_to(b, a, 1, 1);
  wait_sent(b);
  settle(a);
  while (recv(a, inbox, sizeof inbox, MSG_DONTWAIT) >= 0) got++;
  say("  of 250 datagrams of 1 byte %d fitted", got);
  got = 0;
  for (int n = 0; n < 100; n++) send_to(b, a, 1, 1400);
  wait_sent(b);
  settle(a);
  while (recv(a, inbox, sizeof inbox, MSG_DONTWAIT) >= 0) got++;
  say("  of 90 datagrams of 1400 bytes %s fitted", got >= 90 ? "all" : "not all");
}

CASE(overflow, "SO_RXQ_OVFL: drops are counted, and told with the next datagram") {
  int a = udp("a"), b = udp("b");
  set(a, SOL_SOCKET, SO_RXQ_OVFL, 1);
  set(a, SOL_SOCKET, SO_RCVBUF, 0);
  send_to(b, a, 1, 100);
  settle(a);
  show_recvmsg("before any drop", a, 200, 0, 0, 128);
  for (int i = 0; i < 20; i++) send_to(b, a, 2, 1000);
  wait_sent(b);
  settle(a);
  while (recv(a, inbox, sizeof inbox, MSG_DONTWAIT) >= 0) {}
  send_to(b, a, 3, 100);
  settle(a);
  show_recvmsg("after drops", a, 200, 0, 0, 128);
}

CASE(send_buffer, "SO_SNDBUF: a small one still sends large datagrams") {
  int a = udp("a"), peer = peer_open("peer");
  struct sockaddr_in name = peer_name(peer);
  set(a, SOL_SOCKET, SO_SNDBUF, 0);
  show_option("SO_SNDBUF", a, SOL_SOCKET, SO_SNDBUF);
  CALL("  1000 = %s", sendto(a, payload(1, 1000), 1000, 0, (void *)&name, sizeof name));
  show_peer("arrived", peer);
  CALL("  20000 = %s", sendto(a, payload(2, 20000), 20000, MSG_DONTWAIT, (void *)&name, sizeof name));
  CALL("  60000 = %s", sendto(a, payload(3, 60000), 60000, MSG_DONTWAIT, (void *)&name, sizeof name));
}

CASE(low_water, "SO_RCVLOWAT changes nothing for datagrams") {
  int a = udp("a"), b = udp("b");
  CALL("  SO_RCVLOWAT = %s", setsockopt(a, SOL_SOCKET, SO_RCVLOWAT, &(int){1000}, 4));
  show_option("SO_RCVLOWAT", a, SOL_SOCKET, SO_RCVLOWAT);
  send_to(b, a, 1, 10);
  struct pollfd entry = {a, POLLIN, 0};
  CALL("  poll = %s, %#x", poll(&entry, 1, 1000), entry.revents);
  show_recv("recv", a, 100, 0);
}

CASE(busy_poll, "SO_BUSY_POLL, SO_PREFER_BUSY_POLL, SO_PRIORITY, SO_MARK: taken, and datagrams flow") {
  int a = udp("a"), b = udp("b");
  CALL("  SO_BUSY_POLL = %s", setsockopt(a, SOL_SOCKET, SO_BUSY_POLL, &(int){50}, 4));
  show_option("SO_BUSY_POLL", a, SOL_SOCKET, SO_BUSY_POLL);
  CALL("  SO_PRIORITY = %s", setsockopt(b, SOL_SOCKET, SO_PRIORITY, &(int){4}, 4));
  send_to(b, a, 1, 10);
  settle(a);
  show_recvmsg("recvmsg", a, 100, 0, 128, 128);
}

CASE(peek_offset, "SO_PEEK_OFF: peeks move on, receives move back") {
  int a = udp("a"), b = udp("b");
  CALL("  SO_PEEK_OFF = %s", setsockopt(a, SOL_SOCKET, SO_PEEK_OFF, &(int){0}, 4));
  show_option("SO_PEEK_OFF", a, SOL_SOCKET, SO_PEEK_OFF);
  send_to(b, a, 1, 10);
  send_to(b, a, 2, 10);
  settle(a);
  for (int i = 0; i < 6; i++) {
    ssize_t n = recv(a, inbox, 4, MSG_PEEK | MSG_DONTWAIT);
    say("  peek = %zd %s %02x", n, n < 0 ? strerrorname_np(errno) : "", n > 0 ? inbox[0] : 0);
  }
  show_recv("recv", a, 100, MSG_DONTWAIT);
  show_option("SO_PEEK_OFF", a, SOL_SOCKET, SO_PEEK_OFF);
}

CASE(peek_offset_late, "SO_PEEK_OFF set while datagrams wait") {
  int a = udp("a"), b = udp("b");
  send_to(b, a, 1, 10);
  settle(a);
  show_recv("peek", a, 4, MSG_PEEK);
  CALL("  SO_PEEK_OFF = %s", setsockopt(a, SOL_SOCKET, SO_PEEK_OFF, &(int){-1}, 4));
  show_recv("peek", a, 4, MSG_PEEK);
  show_recv("recv", a, 100, 0);
  CALL("  SO_PEEK_OFF = %s", setsockopt(a, SOL_SOCKET, SO_PEEK_OFF, &(int){2}, 4));
  send_to(b, a, 2, 10);
  settle(a);
  ssize_t n = recv(a, inbox, 4, MSG_PEEK);
  say("  peek = %zd, %s", n, identify_from(inbox, 4, 2));
  show_recv("recv", a, 100, 0);
}

CASE(device, "SO_BINDTODEVICE: the loopback, none, one that is not there") {
  int a = udp("a"), b = udp("b");
  char name[IFNAMSIZ];
  socklen_t length = sizeof name;
  CALL("  lo = %s", setsockopt(a, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3));
  memset(name, POISON, sizeof name);
  CALL("  read back = %s, %.2s length %u", getsockopt(a, SOL_SOCKET, SO_BINDTODEVICE, name, &length), name, length);
  send_to(b, a, 1, 10);
  settle(a);
  show_recv("to it", a, 100, 0);
  send_to(a, b, 2, 10);
  settle(b);
  show_recv("from it", b, 100, 0);
  CALL("  none = %s", setsockopt(a, SOL_SOCKET, SO_BINDTODEVICE, "", 0));
  CALL("  not there = %s", setsockopt(a, SOL_SOCKET, SO_BINDTODEVICE, "nonesuch0", 10));
  send_to(b, a, 3, 10);
  settle(a);
  show_recv("to it", a, 100, 0);
}

CASE(mtu, "IP_MTU, IP_MTU_DISCOVER and EMSGSIZE") {
  int a = udp("a"), b = udp("b");
  struct sockaddr_in name = name_of(b);
  show_option("IP_MTU, not connected", a, IPPROTO_IP, IP_MTU);
  connect(a, (void *)&name, sizeof name);
  show_option("IP_MTU", a, IPPROTO_IP, IP_MTU);
  static const int ways[] = {IP_PMTUDISC_DONT, IP_PMTUDISC_WANT, IP_PMTUDISC_DO, IP_PMTUDISC_PROBE};
  for (unsigned i = 0; i < LENGTH(ways); i++) {
    set(a, IPPROTO_IP, IP_MTU_DISCOVER, ways[i]);
    show_option("IP_MTU_DISCOVER", a, IPPROTO_IP, IP_MTU_DISCOVER);
    CALL("  1473 = %s", send(a, payload(1, 1473), 1473, 0));
    CALL("  65507 = %s", send(a, payload(2, 65507), 65507, 0));
    if (i != 3) CALL("  65508 = %s", send(a, payload(3, 65508), 65508, 0));
    settle(b);
    show_recv("recv", b, 66000, 0);
    settle(b);
    show_recv("recv", b, 66000, 0);
  }
}

CASE(error_queue, "IP_RECVERR, MSG_ERRQUEUE: a refused datagram in the queue, of a connected and an unconnected socket") {
  for (int connected = 0; connected < 2; connected++) {
    int a = udp("a"), gone = udp("gone");
    struct sockaddr_in name = name_of(gone);
    drop(gone);
    CALL("  IP_RECVERR = %s", setsockopt(a, IPPROTO_IP, IP_RECVERR, &(int){1}, 4));
    if (connected) connect(a, (void *)&name, sizeof name);
    CALL("  sendto = %s", connected ? send(a, payload(1, 10), 10, 0) : sendto(a, payload(1, 10), 10, 0, (void *)&name, sizeof name));
    struct pollfd entry = {a, POLLIN, 0};
    CALL("  poll = %s, %#x", poll(&entry, 1, 1000), entry.revents);
    show_recvmsg("recvmsg MSG_ERRQUEUE", a, 100, MSG_ERRQUEUE, 128, 512);
    show_recvmsg("again", a, 100, MSG_ERRQUEUE, 128, 512);
    show_recvmsg("recvmsg", a, 100, MSG_DONTWAIT, 128, 512);
    show_recvmsg("recvmsg", a, 100, MSG_DONTWAIT, 128, 512);
    CALL("  poll = %s, %#x", poll(&entry, 1, 0), entry.revents);
    CALL("  sendto = %s", connected ? send(a, payload(1, 10), 10, 0) : sendto(a, payload(1, 10), 10, 0, (void *)&name, sizeof name));
    show_recvmsg("recvmsg", a, 100, MSG_DONTWAIT, 128, 512);
    show_recvmsg("recvmsg MSG_ERRQUEUE, a small room", a, 4, MSG_ERRQUEUE, 128, 20);
    show_option("SO_ERROR", a, SOL_SOCKET, SO_ERROR);
  }
}

CASE(timestamps_by_ioctl, "SIOCGSTAMP, SIOCGSTAMPNS: before and after a datagram") {
  int a = udp("a"), b = udp("b");
  struct timeval t;
  struct timespec n;
  CALL("  nothing yet = %s", ioctl(a, SIOCGSTAMP, &t));
  send_to(b, a, 1, 10);
  settle(a);
  show_recv("recv", a, 100, 0);
  memset(&t, 0, sizeof t);
  CALL("  SIOCGSTAMP = %s, %s", ioctl(a, SIOCGSTAMP, &t), near_now(t.tv_sec, t.tv_usec * 1000));
  send_to(b, a, 2, 10);
  settle(a);
  show_recv("recv", a, 100, 0);
  memset(&n, 0, sizeof n);
  CALL("  SIOCGSTAMPNS = %s, %s", ioctl(a, SIOCGSTAMPNS, &n), near_now(n.tv_sec, n.tv_nsec));
  CALL("  an unknown ioctl = %s", ioctl(a, 0x1234, &n));
}

static volatile sig_atomic_t signals;
static volatile int signal_fd, signal_band;
static void on_io(int number, siginfo_t *info, void *context) {
  signals++;
  signal_fd = info->si_fd;
  signal_band = (int)info->si_band;
}
CASE(sigio, "O_ASYNC: SIGIO for a datagram, set before and after bind; FIOASYNC") {
  for (int late = 0; late < 2; late++) {
    int a = unbound(AF_INET, 0), b = udp("b");
    struct sockaddr_in name = ipv4("127.0.0.1", 0);
    struct sigaction action = {.sa_sigaction = on_io, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGRTMIN, &action, NULL);
    signals = 0;
    if (late) bind(a, (void *)&name, sizeof name);
    CALL("  F_SETOWN = %s", fcntl(a, F_SETOWN, getpid()));
    CALL("  F_SETSIG = %s", fcntl(a, F_SETSIG, SIGRTMIN));
    if (late) {
      CALL("  FIOASYNC = %s", ioctl(a, FIOASYNC, &(int){1}));
    } else {
      CALL("  F_SETFL = %s", fcntl(a, F_SETFL, O_ASYNC | O_NONBLOCK));
      bind(a, (void *)&name, sizeof name);
    }
    say("  F_GETFL %#x", fcntl(a, F_GETFL));
    send_to(b, a, 1, 10);
    for (uint64_t limit = now_ms() + 2000; signals == 0 && now_ms() < limit;) usleep(1000);
    say("  signals: %d, of this descriptor: %s, band %#x", signals > 0, signal_fd == a ? "yes" : "no", (unsigned)signal_band);
    show_recv("recv", a, 100, MSG_DONTWAIT);
    drop(a);
  }
}

CASE(segment_option, "UDP_SEGMENT: one send, several datagrams; limits") {
  int a = udp("a"), peer = peer_open("peer");
  struct sockaddr_in name = peer_name(peer);
  set(a, IPPROTO_UDP, UDP_SEGMENT, 1000);
  CALL("  sendto 2500 = %s", sendto(a, payload(1, 2500), 2500, 0, (void *)&name, sizeof name));
  for (int i = 0; i < 3; i++) show_peer("arrived", peer);
  CALL("  sendto 1000 = %s", sendto(a, payload(2, 1000), 1000, 0, (void *)&name, sizeof name));
  show_peer("arrived", peer);
  CALL("  sendto 0 = %s", sendto(a, payload(2, 0), 0, 0, (void *)&name, sizeof name));
  show_peer("arrived", peer);
  set(a, IPPROTO_UDP, UDP_SEGMENT, 10);
  CALL("  640 by 10 = %s", sendto(a, payload(3, 640), 640, 0, (void *)&name, sizeof name));
  for (int i = 0; i < 64; i += 1) show_peer("arrived", peer);
  CALL("  1290 by 10 = %s", sendto(a, payload(3, 1290), 1290, 0, (void *)&name, sizeof name));
  set(a, IPPROTO_UDP, UDP_SEGMENT, 0);
  CALL("  off = %s", sendto(a, payload(4, 2500), 2500, 0, (void *)&name, sizeof name));
}

CASE(cork, "UDP_CORK and MSG_MORE: parts become one datagram") {
  int a = udp("a"), peer = peer_open("peer");
  struct sockaddr_in name = peer_name(peer);
  connect(a, (void *)&name, sizeof name);
  unsigned char *data = payload(1, 300);
  CALL("  MSG_MORE = %s", send(a, data, 100, MSG_MORE));
  CALL("  the rest = %s", send(a, data + 100, 200, 0));
  show_peer("arrived", peer);
  CALL("  alone = %s", send(a, payload(2, 10), 10, 0));
  show_peer("arrived", peer);
  data = payload(3, 300);
  set(a, IPPROTO_UDP, UDP_CORK, 1);
  CALL("  corked = %s", send(a, data, 100, 0));
  CALL("  write = %s", write(a, data + 100, 100));
  CALL("  corked = %s", send(a, data + 200, 100, 0));
  set(a, IPPROTO_UDP, UDP_CORK, 0);
  show_peer("arrived", peer);
  CALL("  alone = %s", send(a, payload(4, 10), 10, 0));
  show_peer("arrived", peer);
  CALL("  MSG_MORE = %s", send(a, payload(5, 100), 100, MSG_MORE));
  set(a, IPPROTO_UDP, UDP_CORK, 1);
  set(a, IPPROTO_UDP, UDP_CORK, 0);
  show_peer("arrived", peer);
  CALL("  too much = %s", send(a, payload(6, 40000), 40000, MSG_MORE));
  CALL("  too much = %s", send(a, payload(6, 40000), 40000, 0));
  CALL("  alone = %s", send(a, payload(7, 10), 10, 0));
  show_peer("arrived", peer);
}

CASE(broadcast_option, "SO_BROADCAST and multicast stay with the kernel; the socket keeps its other flows (case 14)") {
  int a = bound_to("0.0.0.0", "a"), b = udp("b"), group = unbound(AF_INET, 0);
  set(group, SOL_SOCKET, SO_REUSEADDR, 1);
  struct sockaddr_in any = ipv4("0.0.0.0", 0);
  bind(group, (void *)&any, sizeof any);
  know(port_of(group), "group");
  struct ip_mreqn join = {.imr_multiaddr.s_addr = inet_addr("239.255.77.1"), .imr_ifindex = (int)if_nametoindex("lo")};
  CALL("  IP_ADD_MEMBERSHIP = %s", setsockopt(group, IPPROTO_IP, IP_ADD_MEMBERSHIP, &join, sizeof join));
  struct ip_mreqn out = {.imr_address.s_addr = inet_addr("127.0.0.1"), .imr_ifindex = (int)if_nametoindex("lo")};
  CALL("  IP_MULTICAST_IF = %s", setsockopt(a, IPPROTO_IP, IP_MULTICAST_IF, &out, sizeof out));
  struct sockaddr_in to = ipv4("239.255.77.1", port_of(group));
  CALL("  sendto the group = %s", sendto(a, payload(1, 10), 10, 0, (void *)&to, sizeof to));
  settle(group);
  show_recvmsg("at the group (case 15: from the address of IP_MULTICAST_IF)", group, 100, MSG_DONTWAIT, 128, 64);
  send_to(a, group, 2, 10);
  settle(group);
  show_recvmsg("and by its unicast address", group, 100, MSG_DONTWAIT, 128, 64);
  send_to(a, b, 3, 10);
  settle(b);
  show_recvmsg("elsewhere", b, 100, MSG_DONTWAIT, 128, 64);
  // Bound to one address: the group's datagrams are not for it (case 14).
  struct sockaddr_in to_b = ipv4("239.255.77.1", port_of(b));
  sendto(a, payload(4, 10), 10, 0, (void *)&to_b, sizeof to_b);
  show_recv("bound to an address", b, 100, MSG_DONTWAIT);
  CALL("  IP_DROP_MEMBERSHIP = %s", setsockopt(group, IPPROTO_IP, IP_DROP_MEMBERSHIP, &join, sizeof join));
}

CASE(attached_filter, "SO_ATTACH_FILTER, set before and after bind: what it drops is not delivered") {
  struct sock_filter_ { uint16_t code; uint8_t jt, jf; uint32_t k; } nothing[] = {{0x06, 0, 0, 0}};
  struct { unsigned short length; void *filter; } program = {1, nothing};
  int a = udp("a"), b = udp("b");
  send_to(b, a, 1, 10);
  settle(a);
  show_recv("before", a, 100, 0);
  CALL("  SO_ATTACH_FILTER = %s", setsockopt(a, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
  send_to(b, a, 2, 10);
  struct pollfd entry = {a, POLLIN, 0};
  CALL("  poll = %s", poll(&entry, 1, 30));
  show_recv("filtered", a, 100, MSG_DONTWAIT);
  CALL("  SO_DETACH_FILTER = %s", setsockopt(a, SOL_SOCKET, SO_DETACH_FILTER, &(int){0}, 4));
  send_to(b, a, 3, 10);
  settle(a);
  show_recv("after", a, 100, 0);
}
