// Echoes with several on their way at once (Scripts/ab).
//   udp-echoes serve ADDRESS PORT                         sends back what comes in
//   udp-echoes ask ADDRESS PORT SECONDS SIZE WINDOW [OWN]
//                                                         keeps WINDOW datagrams of SIZE bytes on their way; prints
//                                                         echoes=N lost=N rate=R (echoes per second) gbps=G (payload, one way)
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static char data[65507];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static int fail(const char *what) {
  perror(what);
  return 1;
}

static int serve(int s) {
  for (;;) {
    struct sockaddr_in from;
    socklen_t length = sizeof from;
    ssize_t size = recvfrom(s, data, sizeof data, 0, (struct sockaddr *)&from, &length);
    if (size < 0) return fail("recvfrom");
    if (sendto(s, data, size, 0, (struct sockaddr *)&from, length) != size && errno != ECONNREFUSED) return fail("sendto");
  }
}

static int ask(int s, double seconds, size_t size, long window) {
  struct timeval patience = {.tv_usec = 200000};
  if (setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0) return fail("SO_RCVTIMEO");
  long echoes = 0, lost = 0, flying = 0;
  double start = now(), end = start + seconds, time = start;
  for (unsigned turn = 0; (turn & 63) || (time = now()) < end; turn++) {
    for (; flying < window; flying++)
      if (send(s, data, size, 0) < 0) return fail("send");
    ssize_t got = recv(s, data, sizeof data, 0);
    if (got == (ssize_t)size) {
      echoes++, flying--;
    } else if (got < 0 && errno == EAGAIN) {
      // The echoes that are missing after so long are not on their way any more.
      lost += flying, flying = 0, turn |= 63;
    } else {
      return fail("recv");
    }
  }
  printf("echoes=%ld lost=%ld rate=%.0f gbps=%.3f\n", echoes, lost, echoes / (time - start), echoes / (time - start) * size * 8 / 1e9);
  return 0;
}

int main(int argc, char **argv) {
  struct sockaddr_in name = {.sin_family = AF_INET};
  int asks = (argc == 7 || argc == 8) && !strcmp(argv[1], "ask");
  if ((!asks && !(argc == 4 && !strcmp(argv[1], "serve"))) || !inet_pton(AF_INET, argv[2], &name.sin_addr)) {
    fputs("usage: udp-echoes serve ADDRESS PORT | ask ADDRESS PORT SECONDS SIZE WINDOW [OWN]\n", stderr);
    return 2;
  }
  name.sin_port = htons(atoi(argv[3]));
  int s = socket(AF_INET, SOCK_DGRAM, 0);
  if (!asks) return bind(s, (struct sockaddr *)&name, sizeof name) < 0 ? fail("bind") : serve(s);
  size_t size = strtoul(argv[5], NULL, 10);
  if (size < 1 || size > sizeof data) return fputs("udp-echoes: SIZE is 1 to 65507\n", stderr), 2;
  struct sockaddr_in own = {.sin_family = AF_INET};
  if (argc == 8 && (!inet_pton(AF_INET, argv[7], &own.sin_addr) || bind(s, (struct sockaddr *)&own, sizeof own) < 0)) return fail("bind");
  if (connect(s, (struct sockaddr *)&name, sizeof name) < 0) return fail("connect");
  return ask(s, atof(argv[4]), size, atol(argv[6]));
}
