#include "machnet_linux.h"

#include <errno.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int value_or_errno(int value) { return value < 0 ? -errno : value; }

int mn_linux_eventfd(void) { return value_or_errno(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)); }

void mn_linux_eventfd_signal(int fd) {
  uint64_t one = 1;
  ssize_t written;
  do {
    written = write(fd, &one, sizeof one);
  } while (written < 0 && errno == EINTR);
}

uint64_t mn_linux_eventfd_take(int fd) {
  uint64_t count = 0;
  return read(fd, &count, sizeof count) == (ssize_t)sizeof count ? count : 0;
}

int mn_linux_epoll_create(void) { return value_or_errno(epoll_create1(EPOLL_CLOEXEC)); }

int mn_linux_epoll_add(int epoll, int fd, int edge) {
  struct epoll_event event = {.events = EPOLLIN | (edge ? EPOLLET : 0), .data.fd = fd};
  return value_or_errno(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

int mn_linux_epoll_remove(int epoll, int fd) { return value_or_errno(epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL)); }

int mn_linux_epoll_wait(int epoll, int64_t nanoseconds) {
  struct epoll_event events[MN_EPOLL_EVENTS_MAX];
  struct timespec limit = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
  int count = (int)syscall(SYS_epoll_pwait2, epoll, events, MN_EPOLL_EVENTS_MAX, nanoseconds < 0 ? NULL : &limit, NULL, 0);
  if (count < 0 && errno == ENOSYS) {
    // Linux before 5.11: milliseconds, rounded up.
    count = epoll_wait(epoll, events, MN_EPOLL_EVENTS_MAX,
                       nanoseconds < 0 ? -1 : (int)((nanoseconds + 999999) / 1000000));
  }
  return value_or_errno(count);
}

void mn_linux_close(int fd) { (void)close(fd); }

void mn_linux_yield(void) { (void)sched_yield(); }

static uint64_t nanoseconds_of(clockid_t clock) {
  struct timespec now;
  (void)clock_gettime(clock, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t mn_linux_monotonic(void) { return nanoseconds_of(CLOCK_MONOTONIC); }

uint64_t mn_linux_realtime(void) { return nanoseconds_of(CLOCK_REALTIME); }

void mn_linux_sleep(uint64_t nanoseconds) {
  struct timespec span = {.tv_sec = (time_t)(nanoseconds / 1000000000), .tv_nsec = (long)(nanoseconds % 1000000000)};
  (void)nanosleep(&span, NULL);
}

void *mn_linux_map(size_t size) {
  void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return base == MAP_FAILED ? NULL : base;
}

void mn_linux_unmap(void *base, size_t size) { (void)munmap(base, size); }

int mn_linux_pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return value_or_errno(sched_setaffinity(0, sizeof set, &set));
}
