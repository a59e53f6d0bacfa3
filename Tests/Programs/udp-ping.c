// COUNT times: a sendto and a recvfrom of 64 bytes between two sockets of this process, on loopback. What is counted
// per pair is the program's own work and libc's (Scripts/overhead). With a second argument, prints the nanoseconds that a
// pair took.
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

static double nanoseconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1e9 + time.tv_nsec;
}

int main(int argc, char **argv) {
  long count = argc > 1 ? atol(argv[1]) : 1000;
  struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof name;
  int in = socket(AF_INET, SOCK_DGRAM, 0), out = socket(AF_INET, SOCK_DGRAM, 0);
  if (bind(in, (struct sockaddr *)&name, sizeof name) < 0 || getsockname(in, (struct sockaddr *)&name, &length) < 0) {
    perror("bind");
    return 1;
  }
  char message[64] = {0};
  double start = nanoseconds();
  for (long i = 0; i < count; i++) {
    struct sockaddr_in from;
    socklen_t from_length = sizeof from;
    if (sendto(out, message, sizeof message, 0, (struct sockaddr *)&name, sizeof name) != sizeof message ||
        recvfrom(in, message, sizeof message, 0, (struct sockaddr *)&from, &from_length) != sizeof message) {
      perror("udp-ping");
      return 1;
    }
  }
  if (argc > 2) printf("%.1f\n", (nanoseconds() - start) / (double)count);
  return 0;
}
