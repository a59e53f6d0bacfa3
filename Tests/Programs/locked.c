// locked before|after [UID]: locks its memory before its first socket or after, then as another user, who may lock 64 MB at the most. It
// prints the same on the kernel and on Machnet.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static void fail(const char *what) { perror(what), exit(1); }

/// The number that follows a name in a file of /proc/self; `unless`: the sum of those that no line with that word follows. kB.
static long read_number(const char *path, const char *name, const char *unless) {
  char line[512];
  long last = 0, sum = 0;
  FILE *file = fopen(path, "r");
  while (file && fgets(line, sizeof line, file)) {
    if (!strncmp(line, name, strlen(name))) last = atol(line + strlen(name));
    if (unless && !strncmp(line, "VmFlags:", 8) && !strstr(line, unless)) sum += last;
  }
  if (file) fclose(file);
  return unless ? sum : last;
}
/// A hundred datagrams from a new socket to itself.
static void exchange(void) {
  struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof name;
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  if (bind(fd, (void *)&name, sizeof name) != 0 || getsockname(fd, (void *)&name, &length) != 0) fail("bind");
  for (int i = 0, got = -1; i < 100; i++, got = -1)
    if (sendto(fd, &i, sizeof i, 0, (void *)&name, sizeof name) != sizeof i || recv(fd, &got, sizeof got, 0) != sizeof got || got != i)
      fail("a datagram");
  // (It stays open, and its ring is touched.)
}

int main(int count, char **words) {
  if (count < 2) return 2;
  int is_first = !strcmp(words[1], "before"), result = is_first ? mlockall(MCL_CURRENT | MCL_FUTURE) : 0;
  if (result != 0) fail("mlockall");
  exchange();
  if (count > 2) {
    struct rlimit limit;
    getrlimit(RLIMIT_MEMLOCK, &limit);
    if (limit.rlim_max > 64 << 20) limit.rlim_max = 64 << 20;
    limit.rlim_cur = limit.rlim_max;
    uid_t user = (uid_t)atoi(words[2]);
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0 || setgroups(0, NULL) != 0 || setresuid(user, user, user) != 0) fail("another user");
  }
  if (!is_first && mlockall(MCL_CURRENT | MCL_FUTURE) != 0) fail("mlockall");
  exchange();
  long locked = read_number("/proc/self/status", "VmLck:", NULL);
  printf("more than 1 MB locked: %d, 32 MB: %d; more than 32 MB resident: %d; more than 64 MB in a core dump: %d\n", locked > 1000,
         locked > 32000, read_number("/proc/self/status", "VmRSS:", NULL) > 32000,
         read_number("/proc/self/smaps", "Size:", " dd") > 64000);
  return 0;
}
