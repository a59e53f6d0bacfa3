// Datagrams between two sockets for as long as asked for, while sockets that share an epoll with the receiver come, are
// modified, closed and replaced. Every datagram must arrive once and in order: the sender waits when a window is unread, so
// nothing may be lost.
//
//   soak COUNT SEED     receives in turn by read, recv, recvfrom, recvmsg and recvmmsg; prints a line per tenth
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { WINDOW = 128, STRANGERS = 8, BATCH = 16 };
static uint64_t count, seed;
static int from, to, epfd;
static struct sockaddr_in at_to;
static _Atomic uint64_t arrived, churned;
static _Atomic bool over;

static void fail(const char *what) {
  fprintf(stderr, "soak: after %llu datagrams: %s: %s\n", (unsigned long long)arrived, what, strerror(errno));
  exit(1);
}
static uint32_t draw(uint64_t *state) {
  *state ^= *state >> 12, *state ^= *state << 25, *state ^= *state >> 27;
  return (uint32_t)((*state * 0x2545F4914F6CDD1Du) >> 32);
}
static int bound(struct sockaddr_in *name) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  socklen_t length = sizeof *name;
  *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  if (fd < 0 || bind(fd, (void *)name, sizeof *name) != 0 || getsockname(fd, (void *)name, &length) != 0) fail("a socket");
  return fd;
}

static void *send_all(void *unused) {
  uint64_t dice = seed * 2 + 1;
  for (uint64_t i = 0; i < count;) {
    while (i - arrived >= WINDOW) sched_yield();
    uint64_t data[8] = {i, i * 0x9E3779B97F4A7C15u};
    if (sendto(from, data, 16 + draw(&dice) % 48, 0, (void *)&at_to, sizeof at_to) < 16) fail("sendto");
    i++;
  }
  return NULL;
}

/// Other sockets in the same epoll: added, modified, taken out, closed with and without that, one number after the other.
static void *churn(void *unused) {
  uint64_t dice = seed * 2 + 3;
  int fds[STRANGERS];
  struct sockaddr_in name;
  memset(fds, -1, sizeof fds);
  while (!over) {
    int *fd = &fds[draw(&dice) % STRANGERS];
    struct epoll_event event = {EPOLLIN | (draw(&dice) % 2 ? (uint32_t)EPOLLET : 0), {.u64 = 1}};
    if (*fd < 0) {
      *fd = bound(&name);
      if (epoll_ctl(epfd, EPOLL_CTL_ADD, *fd, &event) != 0) fail("EPOLL_CTL_ADD");
      if (draw(&dice) % 2 && sendto(*fd, "x", 1, 0, (void *)&name, sizeof name) != 1) fail("sendto");
      continue;
    }
    switch (draw(&dice) % 4) {
    case 0:
      if (epoll_ctl(epfd, EPOLL_CTL_MOD, *fd, &event) != 0) fail("EPOLL_CTL_MOD");
      continue;
    case 1:
      if (epoll_ctl(epfd, EPOLL_CTL_DEL, *fd, NULL) != 0) fail("EPOLL_CTL_DEL");
      break;
    case 2: {
      char byte;
      recv(*fd, &byte, 1, MSG_DONTWAIT);
      continue;
    }
    }
    if (close(*fd) != 0) fail("close");
    *fd = -1;
    churned++;
  }
  for (int i = 0; i < STRANGERS; i++)
    if (fds[i] >= 0) close(fds[i]);
  return NULL;
}

static uint64_t data[BATCH][8];
static bool is_next(int at, ssize_t size) {
  if (size < 16 || data[at][0] != arrived || data[at][1] != arrived * 0x9E3779B97F4A7C15u) {
    fprintf(stderr, "soak: expected number %llu, got %llu in %zd bytes\n", (unsigned long long)arrived,
            (unsigned long long)data[at][0], size);
    return false;
  }
  arrived++;
  return true;
}

/// - Returns: how many were there; 0: none.
static int take(unsigned way) {
  struct iovec vectors[BATCH];
  struct mmsghdr batch[BATCH];
  struct msghdr message = {.msg_iov = vectors, .msg_iovlen = 1};
  struct sockaddr_in name;
  socklen_t length = sizeof name;
  ssize_t n = -1;
  for (int i = 0; i < BATCH; i++) {
    vectors[i] = (struct iovec){data[i], sizeof data[i]};
    batch[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &vectors[i], .msg_iovlen = 1}};
  }
  switch (way) {
  case 0: n = read(to, data[0], sizeof data[0]); break; /* blocks: there is always one more to come */
  case 1: n = recv(to, data[0], sizeof data[0], MSG_DONTWAIT); break;
  case 2: n = recvfrom(to, data[0], sizeof data[0], MSG_DONTWAIT, (void *)&name, &length); break;
  case 3: n = recvmsg(to, &message, MSG_DONTWAIT); break;
  case 4: {
    int many = recvmmsg(to, batch, BATCH, MSG_DONTWAIT, NULL);
    for (int i = 0; i < many; i++)
      if (!is_next(i, batch[i].msg_len)) exit(1);
    if (many < 0 && errno != EAGAIN) fail("recvmmsg");
    return many < 0 ? 0 : many;
  }
  }
  if (n < 0 && errno != EAGAIN) fail("a receive");
  if (n >= 0 && !is_next(0, n)) exit(1);
  return n >= 0;
}

int main(int words, char **argument) {
  count = words > 1 ? strtoull(argument[1], NULL, 0) : 100000;
  seed = words > 2 ? strtoull(argument[2], NULL, 0) : 1;
  struct sockaddr_in name;
  from = bound(&name), to = bound(&at_to), epfd = epoll_create1(0);
  struct epoll_event event = {EPOLLIN, {.u64 = 0}}, events[4];
  if (epoll_ctl(epfd, EPOLL_CTL_ADD, to, &event) != 0) fail("epoll_ctl");
  pthread_t sender, churner;
  pthread_create(&sender, NULL, send_all, NULL);
  pthread_create(&churner, NULL, churn, NULL);
  uint64_t dice = seed + 5, told = 0;
  while (arrived < count) {
    int n = epoll_wait(epfd, events, 4, 5000);
    if (n <= 0) fail("epoll_wait: nothing for 5 s");
    for (int i = 0; i < n; i++) {
      if (events[i].data.u64 != 0) continue;
      // Now and then all that is there, else a few.
      unsigned way = draw(&dice) % 5;
      for (unsigned left = draw(&dice) % 64; arrived < count && take(way) && left > 0; left--) way = way == 0 ? 1 : way;
    }
    if (arrived * 10 / count > told) {
      told = arrived * 10 / count;
      printf("%llu datagrams, %llu sockets came and went\n", (unsigned long long)arrived, (unsigned long long)churned);
      fflush(stdout);
    }
  }
  over = true;
  pthread_join(sender, NULL);
  pthread_join(churner, NULL);
  if (recv(to, data[0], 1, MSG_DONTWAIT) >= 0) fail("one datagram too many");
  puts("each once and in order");
  return 0;
}
