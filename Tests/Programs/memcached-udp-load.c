// Load for memcached over UDP: stores a few keys, then keeps a window of `get` requests outstanding on one connected
// socket and counts the answers that carry the right key and value. Plain POSIX.
//
//   memcached-udp-load ADDRESS PORT SECONDS [WINDOW [TIMEOUT]]
//
// A request without an answer for TIMEOUT ms (50) is counted, and its place is used again.
//
// Prints: gets=N errors=N timeouts=N seconds=S rate=R, and exits with 1 when an answer was wrong or none came.
//
// Every datagram starts with memcached's UDP frame header, 8 bytes, network order (memcached, doc/protocol.txt):
// request id, sequence number, number of datagrams, reserved (0).
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { KEYS = 64, VALUE = 32, WINDOW_MAX = 1024, FRAME = 8 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static size_t frame(char *out, unsigned id, const char *text) {
  const char header[FRAME] = {(char)(id >> 8), (char)id, 0, 0, 0, 1, 0, 0};
  memcpy(out, header, FRAME);
  size_t length = strlen(text);
  memcpy(out + FRAME, text, length);
  return FRAME + length;
}

static void value(char *out, unsigned key) { snprintf(out, VALUE + 1, "%0*u", VALUE, key * 2654435761u); }

/// Sends and waits for the answer, up to 20 times; for the few stores before the run.
static int exchange(int fd, unsigned id, const char *text, const char *expected) {
  char buffer[512];
  for (int attempt = 0; attempt < 20; attempt++) {
    if (send(fd, buffer, frame(buffer, id, text), 0) < 0 && errno != ECONNREFUSED) return -1;
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    while (poll(&waiting, 1, 200) > 0) {
      ssize_t length = recv(fd, buffer, sizeof buffer - 1, MSG_DONTWAIT);
      if (length < FRAME) break;
      buffer[length] = 0;
      if (((unsigned char)buffer[0] << 8 | (unsigned char)buffer[1]) != (int)id) continue;
      return strcmp(buffer + FRAME, expected) == 0 ? 0 : -1;
    }
  }
  return -1;
}

int main(int argc, char **argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: %s ADDRESS PORT SECONDS [WINDOW [TIMEOUT]]\n", argv[0]);
    return 2;
  }
  double seconds = atof(argv[3]);
  unsigned window = argc > 4 ? (unsigned)atoi(argv[4]) : 64;
  if (window < 1 || window > WINDOW_MAX) window = 64;
  int timeout = argc > 5 ? atoi(argv[5]) : 50;
  struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
  if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1) return 2;
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server) < 0) {
    perror("connect");
    return 1;
  }

  static char requests[KEYS][64], answers[KEYS][128];
  for (unsigned key = 0; key < KEYS; key++) {
    char text[128], expected[VALUE + 1];
    value(expected, key);
    snprintf(text, sizeof text, "set key-%u 0 0 %d\r\n%s\r\n", key, VALUE, expected);
    if (exchange(fd, key, text, "STORED\r\n") < 0) {
      fprintf(stderr, "memcached-udp-load: no answer to set\n");
      return 1;
    }
    snprintf(requests[key], sizeof requests[key], "get key-%u\r\n", key);
    snprintf(answers[key], sizeof answers[key], "VALUE key-%u 0 %d\r\n%s\r\nEND\r\n", key, VALUE, expected);
  }

  // Slot i has a request outstanding with an id that is i modulo the window's size, so a late answer is recognised.
  static struct { uint16_t id; double sent; int outstanding; } slots[WINDOW_MAX];
  uint64_t gets = 0, errors = 0, timeouts = 0;
  double start = now(), end = start + seconds, time = start;
  for (unsigned slot = 0; slot < window; slot++) slots[slot].id = (uint16_t)slot;
  while (time < end) {
    for (unsigned slot = 0; slot < window; slot++) {
      if (slots[slot].outstanding) {
        if (time - slots[slot].sent < timeout * 1e-3) continue;
        timeouts++;
        slots[slot].outstanding = 0;
      }
      unsigned id = slots[slot].id + window;
      slots[slot].id = (uint16_t)(id > UINT16_MAX ? slot : id);
      char buffer[128];
      size_t length = frame(buffer, slots[slot].id, requests[slots[slot].id % KEYS]);
      if (send(fd, buffer, length, MSG_DONTWAIT) < 0) break;
      slots[slot].outstanding = 1;
      slots[slot].sent = time;
    }
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    poll(&waiting, 1, timeout);
    for (;;) {
      char buffer[512];
      ssize_t length = recv(fd, buffer, sizeof buffer - 1, MSG_DONTWAIT);
      if (length < 0) break;
      if (length < FRAME) {
        errors++;
        continue;
      }
      buffer[length] = 0;
      unsigned id = (unsigned)((unsigned char)buffer[0] << 8 | (unsigned char)buffer[1]);
      unsigned slot = id % window;
      if (!slots[slot].outstanding || slots[slot].id != id) continue; // late
      slots[slot].outstanding = 0;
      if (strcmp(buffer + FRAME, answers[id % KEYS]) == 0) gets++;
      else errors++;
    }
    time = now();
  }
  double elapsed = now() - start;
  printf("gets=%llu errors=%llu timeouts=%llu seconds=%.3f rate=%.1f\n", (unsigned long long)gets,
         (unsigned long long)errors, (unsigned long long)timeouts, elapsed, (double)gets / elapsed);
  close(fd);
  return errors > 0 || gets == 0;
}
