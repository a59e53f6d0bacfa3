// The sending calls, looked at from both ends.
#include "probe.h"

static const size_t sizes[] = {0, 1, 63, 64, 1472, 1473, 9000, 65506, 65507, 65508, 69999};

CASE(sizes_sendto, "sendto: every size, and one byte too many") {
  int a = udp("a"), peer = peer_open("peer");
  struct sockaddr_in name = peer_name(peer);
  for (size_t i = 0; i < LENGTH(sizes); i++) {
    CALL("  sendto = %s of %zu", sendto(a, payload((unsigned)i + 1, sizes[i]), sizes[i], 0, (void *)&name, sizeof name), sizes[i]);
    if (sizes[i] <= 65507) show_peer("arrived", peer);
  }
}

static long by_send(int fd, void *data, size_t size) { return send(fd, data, size, 0); }
static long by_sendto(int fd, void *data, size_t size) { return sendto(fd, data, size, 0, NULL, 0); }
static long by_write(int fd, void *data, size_t size) { return write(fd, data, size); }
static long by_writev(int fd, void *data, size_t size) {
  struct iovec v[] = {{data, size / 2}, {NULL, 0}, {(char *)data + size / 2, size - size / 2}};
  return writev(fd, v, 3);
}
static long by_pwritev2(int fd, void *data, size_t size) {
  struct iovec v[] = {{data, size / 2}, {(char *)data + size / 2, size - size / 2}};
  return pwritev2(fd, v, 2, -1, 0);
}
static long by_sendmsg(int fd, void *data, size_t size) {
  struct iovec v[] = {{data, size / 3}, {(char *)data + size / 3, size - size / 3}};
  struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};
  return sendmsg(fd, &m, 0);
}
static long by_sendmmsg(int fd, void *data, size_t size) {
  struct iovec v = {data, size};
  struct mmsghdr m = {.msg_hdr = {.msg_iov = &v, .msg_iovlen = 1}};
  long n = sendmmsg(fd, &m, 1, 0);
  return n == 1 ? (long)m.msg_len : n;
}
static const struct { const char *name; long (*call)(int, void *, size_t); } forms[] = {
    {"send", by_send}, {"sendto NULL", by_sendto}, {"write", by_write}, {"writev", by_writev}, {"pwritev2", by_pwritev2},
    {"sendmsg", by_sendmsg}, {"sendmmsg", by_sendmmsg}};

CASE(connected_forms, "connected: send, sendto, write, writev, pwritev2, sendmsg, sendmmsg at the boundary sizes") {
  int a = udp("a"), peer = peer_open("peer");
  struct sockaddr_in name = peer_name(peer);
  CALL("  connect = %s", connect(a, (void *)&name, sizeof name));
  static const size_t few[] = {0, 1, 1472, 1473, 65507, 65508};
  for (size_t f = 0; f < LENGTH(forms); f++)
    for (size_t i = 0; i < LENGTH(few); i++) {
      const char *result = TRY(forms[f].call(a, payload((unsigned)(f * 10 + i), few[i]), few[i]));
      say("  %s %zu = %s", forms[f].name, few[i], result);
      // Vectors of no bytes send nothing; if they did, it would show in the place of the next.
      bool is_vector = forms[f].call == by_writev || forms[f].call == by_pwritev2;
      if (few[i] <= 65507 && !(few[i] == 0 && is_vector)) show_peer("arrived", peer);
    }
}

CASE(unconnected_forms, "unconnected and without a name: every call's errno, bound and not") {
  int a = udp("a"), b = unbound(AF_INET, 0);
  for (size_t f = 0; f < LENGTH(forms); f++) {
    say("  %s, bound = %s", forms[f].name, TRY(forms[f].call(a, payload(1, 10), 10)));
    say("  %s, not bound = %s", forms[f].name, TRY(forms[f].call(b, payload(1, 10), 10)));
  }
}

CASE(case_53, "sendto before bind: the port that it gets stays (case 53)") {
  int a = unbound(AF_INET, 0), peer = peer_open("peer");
  struct sockaddr_in name = peer_name(peer);
  say("  bound before: %s", port_of(a) ? "yes" : "no");
  CALL("  sendto = %s", sendto(a, payload(1, 10), 10, 0, (void *)&name, sizeof name));
  uint16_t port = port_of(a);
  know(port, "a");
  say("  bound after: %s", port ? "yes" : "no");
  show_peer("arrived", peer);
  peer_send(peer, a, 2, 10, 1);
  settle(a);
  show_recvmsg("answer", a, 100, 0, 128, 64);
  CALL("  sendto = %s", sendto(a, payload(3, 10), 10, 0, (void *)&name, sizeof name));
  show_peer("arrived", peer);
  say("  same port: %s", port_of(a) == port ? "yes" : "no");
  struct sockaddr_in any = ipv4("127.0.0.1", 0);
  CALL("  bind now = %s", bind(a, (void *)&any, sizeof any));
}

CASE(odd_names, "destinations: port 0, address 0, short and long names, other families, NULL with a length") {
  int a = udp("a"), peer = peer_open("peer");
  uint16_t port = peer_port(peer);
  char x[10];
  fill(x, 1, 10);
  struct sockaddr_in zero_port = ipv4("127.0.0.1", 0), any = ipv4("0.0.0.0", port), name = ipv4("127.0.0.1", port), broadcast = ipv4("255.255.255.255", port);
  CALL("  port 0 = %s", sendto(a, x, 10, 0, (void *)&zero_port, sizeof zero_port));
  CALL("  address 0 = %s", sendto(a, x, 10, 0, (void *)&any, sizeof any));
  show_peer("arrived", peer);
  for (socklen_t length = 0; length <= 20; length += length == 0 ? 1 : length < 15 ? 7 : 1) {
    struct sockaddr_storage room;
    memset(&room, 0, sizeof room);
    memcpy(&room, &name, sizeof name);
    CALL("  sendto = %s, a name of %u", sendto(a, x, 10, 0, (void *)&room, length), length);
    if (length >= 16) show_peer("arrived", peer);
  }
  struct sockaddr_storage room;
  memset(&room, 0, sizeof room);
  memcpy(&room, &name, sizeof name);
  CALL("  a name of 128 = %s", sendto(a, x, 10, 0, (void *)&room, 128));
  show_peer("arrived", peer);
  CALL("  a name of 129 = %s", sendto(a, x, 10, 0, (void *)&room, 129));
  CALL("  a negative length = %s", sendto(a, x, 10, 0, (void *)&room, (socklen_t)-1));
  struct sockaddr_in other = name;
  other.sin_family = AF_UNSPEC;
  CALL("  AF_UNSPEC = %s", sendto(a, x, 10, 0, (void *)&other, sizeof other));
  show_peer("arrived", peer);
  other.sin_family = AF_UNIX;
  CALL("  AF_UNIX = %s", sendto(a, x, 10, 0, (void *)&other, sizeof other));
  struct sockaddr_in6 six = mapped(port);
  CALL("  AF_INET6 on an AF_INET socket = %s", sendto(a, x, 10, 0, (void *)&six, sizeof six));
  CALL("  NULL with a length = %s", sendto(a, x, 10, 0, NULL, 16));
  CALL("  broadcast without SO_BROADCAST = %s", sendto(a, x, 10, 0, (void *)&broadcast, sizeof broadcast));
  struct sockaddr_in dirty = name;
  memset(dirty.sin_zero, 0xff, sizeof dirty.sin_zero);
  CALL("  padding not zero = %s", sendto(a, x, 10, 0, (void *)&dirty, sizeof dirty));
  show_peer("arrived", peer);
}

CASE(send_flags, "send flags: each alone") {
  int a = udp("a"), peer = peer_open("peer");
  struct sockaddr_in name = peer_name(peer);
  static const struct { int flag; const char *name; } flags[] = {
      {MSG_DONTWAIT, "MSG_DONTWAIT"}, {MSG_CONFIRM, "MSG_CONFIRM"}, {MSG_NOSIGNAL, "MSG_NOSIGNAL"}, {MSG_DONTROUTE, "MSG_DONTROUTE"},
      {MSG_EOR, "MSG_EOR"}, {MSG_PEEK, "MSG_PEEK"}, {MSG_TRUNC, "MSG_TRUNC"}, {MSG_WAITALL, "MSG_WAITALL"}, {MSG_ERRQUEUE, "MSG_ERRQUEUE"},
      {MSG_PROXY, "MSG_PROXY"}, {MSG_ZEROCOPY, "MSG_ZEROCOPY"}, {MSG_FASTOPEN, "MSG_FASTOPEN"}, {0x02000000, "an unknown flag"}};
  for (unsigned i = 0; i < LENGTH(flags); i++) {
    CALL("  sendto = %s", sendto(a, payload(i + 1, 100), 100, flags[i].flag, (void *)&name, sizeof name));
    // A probe of the path (the same bit as MSG_PROXY) is not delivered.
    if (flags[i].flag != MSG_PROXY) show_peer(flags[i].name, peer);
  }
  CALL("  MSG_OOB = %s", sendto(a, payload(99, 100), 100, MSG_OOB, (void *)&name, sizeof name));
}

CASE(case_58, "sendmsg: many vectors are one datagram; too many, none, sizes that overflow (case 58)") {
  int a = udp("a"), peer = peer_open("peer");
  struct sockaddr_in name = peer_name(peer);
  static struct iovec many[1025];
  unsigned char *data = payload(1, 70000);
  for (int i = 0; i < 1025; i++) many[i] = (struct iovec){data + i * 10, 10};
  struct msghdr m = {.msg_name = &name, .msg_namelen = sizeof name, .msg_iov = many, .msg_iovlen = 2};
  CALL("  2 vectors = %s", sendmsg(a, &m, 0));
  show_peer("arrived", peer);
  m.msg_iovlen = 1024;
  CALL("  1024 vectors = %s", sendmsg(a, &m, 0));
  show_peer("arrived", peer);
  m.msg_iovlen = 1025;
  CALL("  1025 vectors = %s", sendmsg(a, &m, 0));
  m.msg_iovlen = (size_t)-1;
  CALL("  a negative count = %s", sendmsg(a, &m, 0));
  m.msg_iovlen = 0;
  m.msg_iov = NULL;
  CALL("  no vector = %s", sendmsg(a, &m, 0));
  show_peer("arrived", peer);
  struct iovec huge[] = {{data, (size_t)-1}}, sum[] = {{data, SSIZE_MAX}, {data, 100}}, gaps[] = {{NULL, 0}, {data, 10}, {NULL, 0}, {data + 10, 10}};
  m.msg_iov = huge;
  m.msg_iovlen = 1;
  CALL("  a negative size = %s", sendmsg(a, &m, 0));
  m.msg_iov = sum;
  m.msg_iovlen = 2;
  CALL("  a sum that overflows = %s", sendmsg(a, &m, 0));
  m.msg_iov = gaps;
  m.msg_iovlen = 4;
  CALL("  with gaps = %s", sendmsg(a, &m, 0));
  show_peer("arrived", peer);
  CALL("  the same again, msghdr untouched = %s", sendmsg(a, &m, 0));
  show_peer("arrived", peer);
  CALL("  writev of -1 = %s", writev(a, gaps, -1));
  CALL("  writev of 1025 = %s", writev(a, many, 1025));
  CALL("  writev of none = %s", writev(a, gaps, 0));
  m.msg_namelen = (socklen_t)-1;
  CALL("  a negative name length = %s", sendmsg(a, &m, 0));
  m.msg_namelen = 200;
  CALL("  a name of 200 = %s", sendmsg(a, &m, 0));
  m = (struct msghdr){.msg_name = NULL, .msg_namelen = 16, .msg_iov = gaps, .msg_iovlen = 4};
  CALL("  NULL name with a length = %s", sendmsg(a, &m, 0));
  m = (struct msghdr){.msg_name = &name, .msg_namelen = 0, .msg_iov = gaps, .msg_iovlen = 4};
  CALL("  a name of length 0 = %s", sendmsg(a, &m, 0));
  m = (struct msghdr){.msg_name = &name, .msg_namelen = 16, .msg_iov = gaps, .msg_iovlen = 4, .msg_flags = -1};
  CALL("  msg_flags set = %s", sendmsg(a, &m, 0));
  show_peer("arrived", peer);
}

CASE(sendmmsg_counts, "sendmmsg: counts, lengths, an error in the middle, more than UIO_MAXIOV") {
  int a = udp("a"), peer = peer_open("peer");
  struct sockaddr_in name = peer_name(peer);
  static struct mmsghdr m[1030];
  static struct iovec vectors[1030];
  memset(m, 0, sizeof m);
  for (unsigned i = 0; i < 1030; i++) {
    vectors[i] = (struct iovec){payload(1, 100), 10 + i % 3};
    m[i] = (struct mmsghdr){.msg_hdr = {.msg_name = &name, .msg_namelen = sizeof name, .msg_iov = &vectors[i], .msg_iovlen = 1}, .msg_len = 0xA5A5A5A5};
  }
  CALL("  3 = %s: %u %u %u %#x", sendmmsg(a, m, 3, 0), m[0].msg_len, m[1].msg_len, m[2].msg_len, m[3].msg_len);
  for (int i = 0; i < 3; i++) show_peer("arrived", peer);
  CALL("  0 = %s", sendmmsg(a, m, 0, 0));
  vectors[1].iov_len = 65508;
  m[0].msg_len = m[1].msg_len = m[2].msg_len = 0xA5A5A5A5;
  CALL("  3, the second too large = %s: %u %#x %#x", sendmmsg(a, m, 3, 0), m[0].msg_len, m[1].msg_len, m[2].msg_len);
  show_peer("arrived", peer);
  CALL("  the first too large = %s", sendmmsg(a, m + 1, 2, 0));
  vectors[1].iov_len = 11;
  m[1].msg_hdr.msg_iovlen = 1025;
  CALL("  3, the second with 1025 vectors = %s", sendmmsg(a, m, 3, 0));
  show_peer("arrived", peer);
  CALL("  MSG_OOB = %s", sendmmsg(a, m, 1, MSG_OOB));
  int sink = udp("sink");
  struct sockaddr_in away = name_of(sink);
  for (unsigned i = 0; i < 1030; i++) m[i].msg_hdr.msg_name = &away, m[i].msg_hdr.msg_iovlen = 1;
  CALL("  1030 = %s", sendmmsg(a, m, 1030, 0));
}

CASE(mapped_destinations, "AF_INET6: to v4-mapped addresses, to ::, from sockets bound to either") {
  int peer = peer_open("peer");
  uint16_t port = peer_port(peer);
  char x[10];
  fill(x, 1, 10);
  struct sockaddr_in6 four = mapped(port), any = ipv6("::", port), six = ipv6("::1", port), short_name = four;
  struct sockaddr_in old = ipv4("127.0.0.1", port);
  int a = udp6("::", "a"), b = udp6("::ffff:127.0.0.1", "b"), c = unbound(AF_INET6, 0), only = unbound(AF_INET6, 0);
  set(only, IPPROTO_IPV6, IPV6_V6ONLY, 1);
  CALL("  from :: = %s", sendto(a, x, 10, 0, (void *)&four, sizeof four));
  show_peer("arrived", peer);
  CALL("  from ::ffff:127.0.0.1 = %s", sendto(b, x, 10, 0, (void *)&four, sizeof four));
  show_peer("arrived", peer);
  CALL("  not bound = %s", sendto(c, x, 10, 0, (void *)&four, sizeof four));
  know(port_of(c), "c");
  show_peer("arrived", peer);
  CALL("  V6ONLY = %s", sendto(only, x, 10, 0, (void *)&four, sizeof four));
  CALL("  to :: = %s", sendto(a, x, 10, 0, (void *)&any, sizeof any));
  CALL("  mapped to :: = %s", sendto(b, x, 10, 0, (void *)&any, sizeof any));
  show_peer("arrived", peer);
  CALL("  mapped to ::1 = %s", sendto(b, x, 10, 0, (void *)&six, sizeof six));
  CALL("  AF_INET name = %s", sendto(a, x, 10, 0, (void *)&old, sizeof old));
  show_peer("arrived", peer);
  CALL("  a name of 24 bytes = %s", sendto(a, x, 10, 0, (void *)&short_name, 24));
  show_peer("arrived", peer);
  CALL("  a name of 23 bytes = %s", sendto(a, x, 10, 0, (void *)&short_name, 23));
  CALL("  connect = %s", connect(a, (void *)&four, sizeof four));
  for (size_t f = 0; f < LENGTH(forms); f++) {
    say("  %s = %s", forms[f].name, TRY(forms[f].call(a, payload((unsigned)f, 20), 20)));
    show_peer("arrived", peer);
  }
  struct sockaddr_storage room;
  socklen_t length = sizeof room;
  memset(&room, POISON, sizeof room);
  CALL("  getpeername = %s, %s", getpeername(a, (void *)&room, &length), show_name(&room, length));
  length = sizeof room;
  CALL("  getsockname = %s, %s", getsockname(a, (void *)&room, &length), show_name(&room, length));
}

CASE(case_43, "a receiver that does not read: a blocking and a non-blocking sender both go on (case 43)") {
  int a = udp("a"), peer = peer_open("peer");
  struct sockaddr_in name = peer_name(peer);
  long wrong = 0;
  for (int i = 0; i < 3000; i++) wrong += sendto(a, payload(1, 1000), 1000, 0, (void *)&name, sizeof name) != 1000;
  say("  blocking: %ld refused", wrong);
  struct pollfd entry = {a, POLLOUT, 0};
  for (int i = 0; i < 3000; i++) {
    // On the kernel's loopback the send buffer never fills; here EAGAIN and then POLLOUT would be as right.
    long n = sendto(a, payload(1, 1000), 1000, MSG_DONTWAIT, (void *)&name, sizeof name);
    if (n < 0 && errno == EAGAIN) n = poll(&entry, 1, 3000) == 1 && entry.revents == POLLOUT ? 1000 : -1;
    wrong += n != 1000;
  }
  say("  non-blocking: %ld refused", wrong);
  show_peer("arrived", peer);
}

CASE(case_55, "same host: to the loopback's other addresses and from them (case 55)") {
  int peer = peer_open("peer");
  int a = bound_to("127.0.0.9", "a"), b = bound_to("0.0.0.0", "b"), c = bound_to("127.1.2.3", "c");
  struct sockaddr_in name = peer_name(peer), to_c = ipv4("127.1.2.3", port_of(c)), wrong = ipv4("127.0.0.8", port_of(c));
  CALL("  from 127.0.0.9 = %s", sendto(a, payload(1, 10), 10, 0, (void *)&name, sizeof name));
  show_peer("arrived", peer);
  CALL("  from 0.0.0.0 = %s", sendto(b, payload(2, 10), 10, 0, (void *)&name, sizeof name));
  show_peer("arrived", peer);
  CALL("  to 127.1.2.3 = %s", sendto(b, payload(3, 10), 10, 0, (void *)&to_c, sizeof to_c));
  settle(c);
  show_recvmsg("recvmsg", c, 100, 0, 128, 64);
  CALL("  to an address that it is not bound to = %s", sendto(b, payload(4, 10), 10, 0, (void *)&wrong, sizeof wrong));
  show_recv("recv", c, 100, MSG_DONTWAIT);
}

CASE(timeouts, "SO_SNDTIMEO and a send that does not wait") {
  int a = udp("a"), peer = peer_open("peer");
  struct sockaddr_in name = peer_name(peer);
  struct timeval limit = {0, 50000};
  CALL("  SO_SNDTIMEO = %s", setsockopt(a, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit));
  CALL("  sendto = %s", sendto(a, payload(1, 10), 10, 0, (void *)&name, sizeof name));
  show_peer("arrived", peer);
}

CASE(bad_descriptors, "descriptors that are closed, negative, no sockets") {
  int a = udp("a"), file = keep(open("/dev/null", O_RDWR));
  struct sockaddr_in name = name_of(a);
  char x[10];
  close(a);
  CALL("  sendto closed = %s", sendto(a, x, 10, 0, (void *)&name, sizeof name));
  CALL("  recv closed = %s", recv(a, x, 10, 0));
  CALL("  send -1 = %s", send(-1, x, 10, 0));
  CALL("  sendto /dev/null = %s", sendto(file, x, 10, 0, (void *)&name, sizeof name));
  CALL("  recv /dev/null = %s", recv(file, x, 10, 0));
  CALL("  connect closed = %s", connect(a, (void *)&name, sizeof name));
  CALL("  close again = %s", close(a));
}
