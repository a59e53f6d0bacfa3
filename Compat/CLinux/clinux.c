#include "machnet_linux.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
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

// What io_setup maps: completions that we have no use for. The reader's index is ours to move (as the kernel's own
// fs/aio.c and every user-space reader of this ring do).
struct aio_ring {
  unsigned identifier, count, head, tail, magic;
};

void mn_linux_waker_open(struct mn_linux_waker *waker) {
  aio_context_t context = 0;
  waker->context = 0;
  waker->ready = value_or_errno(eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC));
  if (waker->ready < 0 || syscall(SYS_io_setup, 8, &context) != 0) return;
  if (((struct aio_ring *)context)->magic == 0xa10a10a1) waker->context = context;
  else (void)syscall(SYS_io_destroy, context);
}

void mn_linux_waker_close(struct mn_linux_waker *waker) {
  if (waker->context) (void)syscall(SYS_io_destroy, waker->context);
  if (waker->ready >= 0) (void)close(waker->ready);
  *waker = (struct mn_linux_waker){0, -1};
}

void mn_linux_waker_signal(const struct mn_linux_waker *waker, int fd) {
  if (!waker->context) {
    if (fcntl(fd, F_GETFL) & O_NONBLOCK) mn_linux_eventfd_signal(fd);
    return;
  }
  struct iocb block;
  memset(&block, 0, sizeof block);
  block.aio_lio_opcode = IOCB_CMD_POLL;
  block.aio_fildes = (uint32_t)waker->ready;
  block.aio_buf = POLLIN;
  block.aio_flags = IOCB_FLAG_RESFD;
  block.aio_resfd = (uint32_t)fd;
  struct iocb *list = &block;
  (void)syscall(SYS_io_submit, waker->context, 1L, &list);
  struct aio_ring *ring = (struct aio_ring *)waker->context;
  __atomic_store_n(&ring->head, __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
}

uint64_t mn_linux_eventfd_take(int fd) {
  uint64_t count = 0;
  return read(fd, &count, sizeof count) == (ssize_t)sizeof count ? count : 0;
}

int mn_linux_epoll_create(void) { return value_or_errno(epoll_create1(EPOLL_CLOEXEC)); }

int mn_linux_epoll_add(int epoll, int fd, uint64_t told) {
  struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = told};
  return value_or_errno(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

int mn_linux_epoll_remove(int epoll, int fd) { return value_or_errno(epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL)); }

int mn_linux_epoll_wait(int epoll, int64_t nanoseconds, uint64_t *told) {
  struct epoll_event events[MN_EPOLL_EVENTS_MAX];
  struct timespec limit = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
  int count = (int)syscall(SYS_epoll_pwait2, epoll, events, MN_EPOLL_EVENTS_MAX, nanoseconds < 0 ? NULL : &limit, NULL, 0);
  if (count < 0 && errno == ENOSYS) {
    // Linux before 5.11: milliseconds, rounded up.
    count = epoll_wait(epoll, events, MN_EPOLL_EVENTS_MAX,
                       nanoseconds < 0 ? -1 : (int)((nanoseconds + 999999) / 1000000));
  }
  *told = 0;
  for (int i = 0; i < count; i++) *told |= events[i].data.u64;
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
