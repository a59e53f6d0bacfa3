// The other process of a case: opens sockets, sends and receives as the probe tells it.
#define main probe_main
#include "probe.h"
#undef main

static int sockets[64], used;

static void receive(int fd, struct peer_reply *reply) {
  static unsigned char data[70000];
  struct pollfd entry = {fd, POLLIN, 0};
  struct sockaddr_in name;
  struct iovec vector = {data, sizeof data};
  unsigned char control[256] __attribute__((aligned(8)));
  struct msghdr m = {.msg_name = &name, .msg_namelen = sizeof name, .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  reply->result = -1;
  if (poll(&entry, 1, 3000) != 1) return (void)snprintf(reply->text, sizeof reply->text, "nothing arrived");
  ssize_t n = recvmsg(fd, &m, 0);
  if (n < 0) return (void)snprintf(reply->text, sizeof reply->text, "%s", strerrorname_np(errno));
  int ttl = -1, tos = -1;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
    if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL) memcpy(&ttl, CMSG_DATA(c), 4);
    if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) tos = *CMSG_DATA(c);
  }
  char number[64];
  inet_ntop(AF_INET, &name.sin_addr, number, sizeof number);
  snprintf(reply->text, sizeof reply->text, "%zd bytes %s ttl %d tos %d by %s", n, identify(data, (size_t)n), ttl, tos, number);
  reply->port = ntohs(name.sin_port);
  reply->result = n;
}

int main(void) {
  struct peer_command command;
  memset(sockets, -1, sizeof sockets);
  struct iovec vector = {&command, sizeof command};
  char room[CMSG_SPACE(8 * sizeof(int))] __attribute__((aligned(8)));
  struct msghdr m = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = room};
  while (m.msg_controllen = sizeof room, recvmsg(PEER_FD, &m, 0) == sizeof command) {
    struct peer_reply reply = {0};
    int fd = command.index >= 0 && command.index < used ? sockets[command.index] : -1;
    switch (command.kind) {
    case PEER_OPEN: {
      int on = 1;
      struct sockaddr_in name = ipv4("127.0.0.1", 0);
      if (used == 64) used = 0;
      reply.result = used;
      fd = sockets[used++] = socket(AF_INET, SOCK_DGRAM, 0);
      setsockopt(fd, IPPROTO_IP, IP_RECVTTL, &on, sizeof on);
      setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &on, sizeof on);
      if (bind(fd, (void *)&name, sizeof name) != 0) reply.result = -1;
      reply.port = port_of(fd);
      break;
    }
    case PEER_CLOSE + 100: reply.port = port_of(fd); break;
    case PEER_CLOSE:
      for (int i = 0; i < used; i++)
        if ((command.index < 0 || command.index == i) && sockets[i] >= 0) close(sockets[i]), sockets[i] = -1;
      if (command.index < 0) used = 0;
      break;
    case PEER_SEND: {
      struct sockaddr_in name = ipv4("127.0.0.1", command.port);
      for (unsigned i = 0; i < command.count; i++)
        if (sendto(fd, payload(command.seed + i, command.size), command.size, 0, (void *)&name, sizeof name) == (ssize_t)command.size) reply.result++;
      break;
    }
    case PEER_CONNECT: {
      struct sockaddr_in name = ipv4("127.0.0.1", command.port);
      reply.result = connect(fd, (void *)&name, sizeof name);
      break;
    }
    case PEER_OPTION: reply.result = setsockopt(fd, command.level, command.name, &command.value, sizeof command.value); break;
    case PEER_RECEIVE: receive(fd, &reply); break;
    case PEER_ADOPT:
      reply.result = used;
      for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
        for (size_t at = 0; CMSG_LEN(at) < c->cmsg_len && used < 64; at += sizeof(int)) memcpy(&sockets[used++], CMSG_DATA(c) + at, sizeof(int));
      break;
    }
    reply.error = errno;
    if (write(PEER_FD, &reply, sizeof reply) != sizeof reply) return 1;
  }
  return 0;
}
