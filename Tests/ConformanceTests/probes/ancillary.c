// Control messages, both ways.
#include "probe.h"

static void talk(const char *what, int from, int to, int flags, int control) {
  send_to(from, to, 1, 20);
  settle(to);
  show_recvmsg(what, to, 100, flags, 128, control);
}

CASE(each_alone, "receive options, each alone") {
  static const struct { int level, name; const char *title; } options[] = {
      {IPPROTO_IP, IP_PKTINFO, "IP_PKTINFO"}, {IPPROTO_IP, IP_RECVTTL, "IP_RECVTTL"}, {IPPROTO_IP, IP_RECVTOS, "IP_RECVTOS"},
      {SOL_SOCKET, SO_TIMESTAMP, "SO_TIMESTAMP"}, {SOL_SOCKET, SO_TIMESTAMPNS, "SO_TIMESTAMPNS"}, {SOL_SOCKET, SO_RXQ_OVFL, "SO_RXQ_OVFL"},
      {IPPROTO_UDP, UDP_GRO, "UDP_GRO"}, {IPPROTO_IP, IP_RECVOPTS, "IP_RECVOPTS"}, {IPPROTO_IP, IP_RETOPTS, "IP_RETOPTS"},
      {IPPROTO_IP, IP_RECVORIGDSTADDR, "IP_RECVORIGDSTADDR"}, {IPPROTO_IP, IP_CHECKSUM, "IP_CHECKSUM"}, {IPPROTO_IP, IP_RECVFRAGSIZE, "IP_RECVFRAGSIZE"},
      {IPPROTO_IP, IP_RECVERR, "IP_RECVERR"}};
  for (unsigned i = 0; i < LENGTH(options); i++) {
    int a = udp("a"), b = udp("b");
    set(a, options[i].level, options[i].name, 1);
    talk(options[i].title, b, a, 0, 256);
    set(a, options[i].level, options[i].name, 0);
    talk("off again", b, a, 0, 256);
  }
}

CASE(set_before_bind, "receive options that are set before bind") {
  int a = unbound(AF_INET, 0), b = udp("b");
  set(a, IPPROTO_IP, IP_PKTINFO, 1);
  set(a, IPPROTO_IP, IP_RECVTTL, 1);
  set(a, IPPROTO_IP, IP_RECVTOS, 1);
  set(a, SOL_SOCKET, SO_TIMESTAMPNS, 1);
  struct sockaddr_in name = ipv4("0.0.0.0", 0);
  bind(a, (void *)&name, sizeof name);
  talk("all", b, a, 0, 256);
  talk("peek", b, a, MSG_PEEK, 256);
  talk("after the peek", b, a, 0, 256);
}

CASE(together, "all receive options together, in rooms of every size") {
  int a = udp("a"), b = udp("b");
  set(a, IPPROTO_IP, IP_PKTINFO, 1);
  set(a, IPPROTO_IP, IP_RECVTTL, 1);
  set(a, IPPROTO_IP, IP_RECVTOS, 1);
  set(a, SOL_SOCKET, SO_TIMESTAMP, 1);
  set(b, IPPROTO_IP, IP_TOS, 0x28);
  for (int room = 0; room <= 136; room += room < 16 ? 8 : 4) talk("recvmsg", b, a, 0, room);
  talk("no room at all", b, a, 0, -1);
  talk("enough", b, a, 0, 512);
}

CASE(stamps, "timestamps: one form replaces the other; SO_TIMESTAMPING in software") {
  int a = udp("a"), b = udp("b");
  set(a, SOL_SOCKET, SO_TIMESTAMP, 1);
  talk("SO_TIMESTAMP", b, a, 0, 256);
  set(a, SOL_SOCKET, SO_TIMESTAMPNS, 1);
  talk("then SO_TIMESTAMPNS", b, a, 0, 256);
  show_option("SO_TIMESTAMP", a, SOL_SOCKET, SO_TIMESTAMP);
  set(a, SOL_SOCKET, SO_TIMESTAMP, 0);
  talk("then SO_TIMESTAMP off", b, a, 0, 256);
  set(a, SOL_SOCKET, SO_TIMESTAMPING, SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE);
  talk("SO_TIMESTAMPING", b, a, 0, 256);
  set(a, SOL_SOCKET, SO_TIMESTAMPNS, 1);
  talk("both", b, a, 0, 256);
  set(a, SOL_SOCKET, SO_TIMESTAMPNS, 0);
  set(a, SOL_SOCKET, SO_TIMESTAMPING, SOF_TIMESTAMPING_RX_SOFTWARE);
  talk("taken, not reported", b, a, 0, 256);
  set(a, SOL_SOCKET, SO_TIMESTAMPING, 0);
  talk("none", b, a, 0, 256);
}

CASE(sent_stamps, "SO_TIMESTAMPING of sent datagrams: the error queue has them") {
  int a = udp("a"), b = udp("b");
  struct sockaddr_in name = name_of(b);
  connect(a, (void *)&name, sizeof name);
  set(a, SOL_SOCKET, SO_TIMESTAMPING, SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_OPT_ID | SOF_TIMESTAMPING_OPT_TSONLY);
  CALL("  send = %s", send(a, payload(1, 10), 10, 0));
  settle(b);
  show_recv("at b", b, 100, 0);
  struct pollfd entry = {a, POLLIN, 0};
  CALL("  poll = %s, %#x", poll(&entry, 1, 1000), entry.revents);
  show_recvmsg("MSG_ERRQUEUE", a, 100, MSG_ERRQUEUE | MSG_DONTWAIT, 128, 512);
}

static struct msghdr message_with(struct sockaddr_in *name, struct iovec *vector, void *control, size_t size) {
  return (struct msghdr){.msg_name = name, .msg_namelen = name ? sizeof *name : 0, .msg_iov = vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = size};
}
static size_t put(void *room, size_t at, int level, int type, const void *data, size_t size) {
  struct cmsghdr *c = (void *)((char *)room + at);
  c->cmsg_level = level;
  c->cmsg_type = type;
  c->cmsg_len = CMSG_LEN(size);
  memcpy(CMSG_DATA(c), data, size);
  return at + CMSG_SPACE(size);
}

CASE(sent, "sendmsg: IP_TTL, IP_TOS of either size, IP_PKTINFO, several, malformed ones") {
  int a = bound_to("0.0.0.0", "a"), peer = peer_open("peer");
  struct sockaddr_in name = peer_name(peer);
  static unsigned char room[512] __attribute__((aligned(8)));
  struct iovec vector = {payload(1, 20), 20};
  struct msghdr m;
  int ttl = 7, tos = 0x44, zero = 0, large = 256;
  unsigned char byte = 0x11;
#define SENT(title, size)                                                                                          \
  m = message_with(&name, &vector, room, size);                                                                    \
  CALL("  " title " = %s", sendmsg(a, &m, 0));                                                                     \
  if (errno == NO_ERRNO) show_peer("arrived", peer)
  SENT("IP_TTL", put(room, 0, IPPROTO_IP, IP_TTL, &ttl, 4));
  SENT("IP_TTL 0", put(room, 0, IPPROTO_IP, IP_TTL, &zero, 4));
  SENT("IP_TTL 256", put(room, 0, IPPROTO_IP, IP_TTL, &large, 4));
  SENT("IP_TTL of a byte", put(room, 0, IPPROTO_IP, IP_TTL, &byte, 1));
  SENT("IP_TOS", put(room, 0, IPPROTO_IP, IP_TOS, &tos, 4));
  SENT("IP_TOS of a byte", put(room, 0, IPPROTO_IP, IP_TOS, &byte, 1));
  SENT("IP_TOS 256", put(room, 0, IPPROTO_IP, IP_TOS, &large, 4));
  SENT("both", put(room, put(room, 0, IPPROTO_IP, IP_TOS, &tos, 4), IPPROTO_IP, IP_TTL, &ttl, 4));
  struct in_pktinfo info = {.ipi_spec_dst.s_addr = inet_addr("127.0.0.33")};
  SENT("IP_PKTINFO 127.0.0.33", put(room, 0, IPPROTO_IP, IP_PKTINFO, &info, sizeof info));
  info = (struct in_pktinfo){.ipi_ifindex = (int)if_nametoindex("lo")};
  SENT("IP_PKTINFO lo", put(room, 0, IPPROTO_IP, IP_PKTINFO, &info, sizeof info));
  info = (struct in_pktinfo){.ipi_spec_dst.s_addr = inet_addr("203.0.113.9")};
  SENT("IP_PKTINFO, a foreign address", put(room, 0, IPPROTO_IP, IP_PKTINFO, &info, sizeof info));
  info = (struct in_pktinfo){.ipi_addr.s_addr = inet_addr("127.0.0.44")};
  SENT("IP_PKTINFO, ipi_addr only", put(room, 0, IPPROTO_IP, IP_PKTINFO, &info, sizeof info));
  SENT("IP_PKTINFO too short", put(room, 0, IPPROTO_IP, IP_PKTINFO, &info, 8));
  SENT("of an unknown type", put(room, 0, IPPROTO_IP, 9999, &ttl, 4));
  SENT("of an unknown level", put(room, 0, 9999, 1, &ttl, 4));
  SENT("SCM_RIGHTS", put(room, 0, SOL_SOCKET, SCM_RIGHTS, &a, 4));
  put(room, 0, IPPROTO_IP, IP_TTL, &ttl, 4);
  ((struct cmsghdr *)room)->cmsg_len = 3;
  SENT("cmsg_len 3", 24);
  ((struct cmsghdr *)room)->cmsg_len = 1000;
  SENT("cmsg_len 1000", 24);
  ((struct cmsghdr *)room)->cmsg_len = CMSG_LEN(4);
  SENT("a room of 15", 15);
  SENT("a room of 16", 16);
  SENT("a room of 20", 20);
  m = message_with(&name, &vector, NULL, 24);
  CALL("  NULL control with a length = %s", sendmsg(a, &m, 0));
  memset(room, 0, sizeof room);
  SENT("zeroes", 0);
}

CASE(segment_control, "UDP_SEGMENT as a control message; UDP_GRO at the receiver") {
  int a = udp("a"), b = udp("b");
  struct sockaddr_in name = name_of(b);
  static unsigned char room[64] __attribute__((aligned(8)));
  uint16_t size = 500;
  struct iovec vector = {payload(1, 1700), 1700};
  struct msghdr m = message_with(&name, &vector, room, put(room, 0, IPPROTO_UDP, UDP_SEGMENT, &size, 2));
  CALL("  sendmsg = %s", sendmsg(a, &m, 0));
  for (int i = 0; i < 4; i++) {
    settle(b);
    ssize_t n = recv(b, inbox, sizeof inbox, MSG_DONTWAIT);
    say("  recv = %zd, %s", n, n > 0 ? identify_from(inbox, (size_t)n, (size_t)i * 500) : "");
  }
  show_recv("no more", b, 100, MSG_DONTWAIT);
  set(b, IPPROTO_UDP, UDP_GRO, 1);
  CALL("  sendmsg = %s", sendmsg(a, &m, 0));
  settle(b);
  show_recvmsg("with UDP_GRO", b, 66000, 0, 128, 128);
  show_recv("no more", b, 100, MSG_DONTWAIT);
  talk("a plain datagram", a, b, 0, 128);
  CALL("  sendmsg = %s", sendmsg(a, &m, 0));
  settle(b);
  show_recvmsg("into less room", b, 1200, 0, 128, 128);
  show_recv("no more", b, 100, MSG_DONTWAIT);
  CALL("  sendmsg = %s", sendmsg(a, &m, 0));
  settle(b);
  show_recvmsg("no room for the control message", b, 66000, 0, 128, 0);
  set(b, IPPROTO_UDP, UDP_GRO, 0);
  size = 0;
  m.msg_controllen = put(room, 0, IPPROTO_UDP, UDP_SEGMENT, &size, 2);
  vector.iov_len = 100;
  CALL("  a segment of 0 = %s", sendmsg(a, &m, 0));
  settle(b);
  show_recv("recv", b, 2000, MSG_DONTWAIT);
  int wide = 500;
  m.msg_controllen = put(room, 0, IPPROTO_UDP, UDP_SEGMENT, &wide, 4);
  CALL("  a segment of 4 bytes = %s", sendmsg(a, &m, 0));
}

CASE(mapped_options, "AF_INET6: what IPv4 datagrams bring with them") {
  static const struct { int level, name; const char *title; } options[] = {
      {IPPROTO_IPV6, IPV6_RECVPKTINFO, "IPV6_RECVPKTINFO"}, {IPPROTO_IPV6, IPV6_RECVHOPLIMIT, "IPV6_RECVHOPLIMIT"}, {IPPROTO_IPV6, IPV6_RECVTCLASS, "IPV6_RECVTCLASS"},
      {IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, "IPV6_RECVORIGDSTADDR"}, {IPPROTO_IP, IP_PKTINFO, "IP_PKTINFO"}, {IPPROTO_IP, IP_RECVTTL, "IP_RECVTTL"},
      {IPPROTO_IP, IP_RECVTOS, "IP_RECVTOS"}, {SOL_SOCKET, SO_TIMESTAMP, "SO_TIMESTAMP"}, {IPPROTO_IPV6, IPV6_2292PKTINFO, "IPV6_2292PKTINFO"}};
  int b = udp("b");
  for (unsigned i = 0; i < LENGTH(options); i++) {
    int a = udp6("::", "a");
    set(a, options[i].level, options[i].name, 1);
    talk(options[i].title, b, a, 0, 256);
  }
  int a = udp6("::", "a");
  for (unsigned i = 0; i < 8; i++) set(a, options[i].level, options[i].name, 1);
  talk("all of them", b, a, 0, 512);
}

CASE(mapped_sent, "AF_INET6: IPV6_PKTINFO, IPV6_HOPLIMIT, IPV6_TCLASS and their IPv4 forms, sent to IPv4") {
  int a = udp6("::", "a"), peer = peer_open("peer");
  struct sockaddr_in6 name = mapped(peer_port(peer));
  static unsigned char room[512] __attribute__((aligned(8)));
  struct iovec vector = {payload(1, 20), 20};
  struct msghdr m = {.msg_name = &name, .msg_namelen = sizeof name, .msg_iov = &vector, .msg_iovlen = 1, .msg_control = room};
#undef SENT
#define SENT(title, size)                                                                                          \
  m.msg_controllen = size;                                                                                         \
  CALL("  " title " = %s", sendmsg(a, &m, 0));                                                                     \
  if (errno == NO_ERRNO) show_peer("arrived", peer)
  struct in6_pktinfo info = {.ipi6_addr = ipv6("::ffff:127.0.0.33", 0).sin6_addr};
  SENT("IPV6_PKTINFO", put(room, 0, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info));
  info = (struct in6_pktinfo){.ipi6_ifindex = if_nametoindex("lo")};
  SENT("IPV6_PKTINFO lo", put(room, 0, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info));
  info = (struct in6_pktinfo){.ipi6_addr = ipv6("::1", 0).sin6_addr};
  SENT("IPV6_PKTINFO ::1", put(room, 0, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info));
  int ttl = 9, tos = 0x20;
  SENT("IPV6_HOPLIMIT", put(room, 0, IPPROTO_IPV6, IPV6_HOPLIMIT, &ttl, 4));
  SENT("IPV6_TCLASS", put(room, 0, IPPROTO_IPV6, IPV6_TCLASS, &tos, 4));
  SENT("IP_TTL", put(room, 0, IPPROTO_IP, IP_TTL, &ttl, 4));
  SENT("IP_TOS", put(room, 0, IPPROTO_IP, IP_TOS, &tos, 4));
  struct in_pktinfo four = {.ipi_spec_dst.s_addr = inet_addr("127.0.0.34")};
  SENT("IP_PKTINFO", put(room, 0, IPPROTO_IP, IP_PKTINFO, &four, sizeof four));
  set(a, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 5);
  set(a, IPPROTO_IPV6, IPV6_TCLASS, 0x10);
  m.msg_controllen = 0;
  CALL("  IPV6_UNICAST_HOPS, IPV6_TCLASS as options = %s", sendmsg(a, &m, 0));
  show_peer("arrived", peer);
  set(a, IPPROTO_IP, IP_TTL, 6);
  set(a, IPPROTO_IP, IP_TOS, 0x30);
  CALL("  IP_TTL, IP_TOS as options = %s", sendmsg(a, &m, 0));
  show_peer("arrived", peer);
}

CASE(between_sizes, "control messages of a datagram that is cut") {
  int a = udp("a"), b = udp("b");
  set(a, IPPROTO_IP, IP_PKTINFO, 1);
  set(a, IPPROTO_IP, IP_RECVTTL, 1);
  send_to(b, a, 1, 100);
  settle(a);
  show_recvmsg("cut data and control", a, 10, 0, 4, 30);
  send_to(b, a, 1, 0);
  settle(a);
  show_recvmsg("no data", a, 0, 0, 128, 128);
}
