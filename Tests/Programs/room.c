// One socket whose room is waited for beside its unread input, and beside another thread's wait for input, while the daemon PID does not
// run for a while. Prints what it saw.
//
//   room PID
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

static char data[8000];

static double thread_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}
static int wait_for(int fd, short events, int milliseconds) {
  struct pollfd entry = {fd, events, 0};
  int told = poll(&entry, 1, milliseconds);
  return told == 1 ? entry.revents : told;
}

static _Atomic int over;
static void *waits_for_input(void *socket) {
  int fd = *(int *)socket;
  char input[8];
  while (!over)
    if (wait_for(fd, POLLIN, 20) == POLLIN) recv(fd, input, sizeof input, MSG_DONTWAIT);
  return NULL;
}

static int bound(struct sockaddr_in *name) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  socklen_t length = sizeof *name;
  *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(fd, (void *)name, length) != 0 || getsockname(fd, (void *)name, &length) != 0) err(2, "bind");
  return fd;
}

int main(int count, char **arguments) {
  if (count != 2) errx(2, "usage: room PID");
  pid_t daemon = atoi(arguments[1]);
  struct sockaddr_in name, target;
  int fd = bound(&name), receiver = bound(&target);
  // (Who has waited in vain is told of the next input; that is what stays unread.)
  if (wait_for(fd, POLLIN, 50) != 0) errx(2, "input before any");
  for (int i = 0; i < 3; i++)
    if (sendto(receiver, "x", 1, 0, (void *)&name, sizeof name) != 1) err(2, "sendto");
  if (wait_for(fd, POLLIN, 20000) != POLLIN || connect(fd, (void *)&target, sizeof target) != 0) err(2, "no input");
  if (kill(daemon, SIGSTOP) != 0) err(2, "kill");
  while (send(fd, data, sizeof data, MSG_DONTWAIT) > 0) {}
  if (errno != EAGAIN) err(2, "send");
  double before = thread_seconds();
  printf("no room: %d\n", wait_for(fd, POLLOUT, 500));
  printf("slept beside unread input: %s\n", thread_seconds() - before < 0.25 ? "yes" : "NO");
  pthread_t thread;
  if (pthread_create(&thread, NULL, waits_for_input, &fd) != 0) errx(2, "no thread");
  if (kill(daemon, SIGCONT) != 0) err(2, "kill");
  // As often as the ring becomes full again.
  int late = 0;
  for (int full = 0, sent = 0; full < 100 && sent < 200000;) {
    if (send(fd, data, sizeof data, MSG_DONTWAIT) > 0) sent++;
    else if (errno != EAGAIN) err(2, "send");
    else if (full++, wait_for(fd, POLLOUT, 5000) != POLLOUT) late++;
  }
  printf("room that nobody told of: %d\n", late);
  over = 1;
  pthread_join(thread, NULL);
  return 0;
}
