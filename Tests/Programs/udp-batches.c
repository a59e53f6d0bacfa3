// COUNT times: 32 sends of 64 bytes on a connected socket, then as many receives at its peer, on loopback: by sendto and recvfrom,
// `messages` by sendmsg and recvmsg, which asks for the sender's name, `vectors` by one sendmmsg and one recvmmsg. Before it receives,
// it waits until the sender's queue is empty: no receive waits, so each does the same work (Scripts/overhead). MSG_NOSIGNAL means nothing
// to a receive, and sockperf says it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { BATCH = 32 };
static char message[BATCH][64];
static struct sockaddr_in names[BATCH];
static struct iovec vectors[BATCH];
static struct mmsghdr out_batch[BATCH], in_batch[BATCH];

static void send_one(int fd, int n, const char *how) {
  long sent = how ? sendmsg(fd, &out_batch[n].msg_hdr, 0) : sendto(fd, message[n], sizeof message[n], 0, NULL, 0);
  if (sent == sizeof message[n]) return;
  perror("send");
  exit(1);
}
static void receive_one(int fd, int n, const char *how) {
  in_batch[n].msg_hdr.msg_namelen = sizeof names[n];
  long received = how ? recvmsg(fd, &in_batch[n].msg_hdr, 0) : recvfrom(fd, message[n], sizeof message[n], MSG_NOSIGNAL, NULL, NULL);
  if (received == sizeof message[n] && (!how || names[n].sin_port != 0)) return;
  perror("receive");
  exit(1);
}

int main(int argc, char **argv) {
  long count = argc > 1 ? atol(argv[1]) : 10;
  const char *how = argc > 2 ? argv[2] : NULL;
  int in_vectors = how && !strcmp(how, "vectors");
  struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof name;
  int in = socket(AF_INET, SOCK_DGRAM, 0), out = socket(AF_INET, SOCK_DGRAM, 0);
  if (bind(in, (struct sockaddr *)&name, sizeof name) < 0 || getsockname(in, (struct sockaddr *)&name, &length) < 0 ||
      connect(out, (struct sockaddr *)&name, sizeof name) < 0) {
    perror("udp-batches");
    return 1;
  }
  for (int n = 0; n < BATCH; n++) {
    vectors[n] = (struct iovec){message[n], sizeof message[n]};
    out_batch[n].msg_hdr = in_batch[n].msg_hdr = (struct msghdr){.msg_iov = &vectors[n], .msg_iovlen = 1};
    in_batch[n].msg_hdr.msg_name = &names[n], in_batch[n].msg_hdr.msg_namelen = sizeof names[n];
  }
  for (long i = 0; i < count; i++) {
    if (in_vectors && sendmmsg(out, out_batch, BATCH, 0) != BATCH) return perror("sendmmsg"), 1;
    for (int n = 0; !in_vectors && n < BATCH; n++) send_one(out, n, how);
    for (int queued = 1; queued > 0; sched_yield()) ioctl(out, TIOCOUTQ, &queued);
    if (in_vectors && recvmmsg(in, in_batch, BATCH, 0, NULL) != BATCH) return perror("recvmmsg"), 1;
    for (int n = 0; !in_vectors && n < BATCH; n++) receive_one(in, n, how);
  }
  return 0;
}
