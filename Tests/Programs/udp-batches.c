// COUNT times: 32 sends of 64 bytes on a connected socket, then as many receives at its peer, on loopback. Before it
// receives, it waits until the sender's queue is empty: no receive waits, so each does the same work (Scripts/overhead).
#include <arpa/inet.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { BATCH = 32 };

int main(int argc, char **argv) {
  long count = argc > 1 ? atol(argv[1]) : 10;
  struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof name;
  int in = socket(AF_INET, SOCK_DGRAM, 0), out = socket(AF_INET, SOCK_DGRAM, 0);
  if (bind(in, (struct sockaddr *)&name, sizeof name) < 0 || getsockname(in, (struct sockaddr *)&name, &length) < 0 ||
      connect(out, (struct sockaddr *)&name, sizeof name) < 0) {
    perror("udp-batches");
    return 1;
  }
  char message[64] = {0};
  for (long i = 0; i < count; i++) {
    for (int n = 0; n < BATCH; n++)
      if (sendto(out, message, sizeof message, 0, NULL, 0) != sizeof message) {
        perror("sendto");
        return 1;
      }
    for (int queued = 1; queued > 0; sched_yield()) ioctl(out, TIOCOUTQ, &queued);
    for (int n = 0; n < BATCH; n++)
      if (recvfrom(in, message, sizeof message, 0, NULL, NULL) != sizeof message) {
        perror("recvfrom");
        return 1;
      }
  }
  return 0;
}
