// The Linux calls of the engine thread, for Swift: no policy. Results are a value >= 0, or a negated errno value.
#ifndef MACHNET_LINUX_H
#define MACHNET_LINUX_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stddef.h>
#include <stdint.h>

#define MN_LINUX_HOT __attribute__((swift_attr("@_noLocks"), swift_attr("@_noAllocation")))

#define MN_EPOLL_EVENTS_MAX 64

/// A non-blocking, close-on-exec eventfd with count 0.
int mn_linux_eventfd(void);
/// Adds 1 to an eventfd. A full counter is as good as one more: the other side is due to wake anyway.
void mn_linux_eventfd_signal(int fd) MN_LINUX_HOT;

/// Wakes other processes by eventfds that they hold, too. They could clear O_NONBLOCK, which belongs to the open file, and
/// fill the counter: then write(2) would sleep. (RWF_NOWAIT is no help: eventfds refuse pwritev2 with flags.) The kernel's own
/// way to signal an eventfd never sleeps and lets a full counter be full; here it is had as the completion of an
/// asynchronous poll (io_submit(2), IOCB_FLAG_RESFD) of a descriptor that is always ready. For one thread at a time.
struct mn_linux_waker {
  uint64_t context; /* aio_context_t; 0: the kernel has no AIO to give */
  int32_t ready;
};
/// Without AIO the waker works by write(2), after a look at O_NONBLOCK.
void mn_linux_waker_open(struct mn_linux_waker *waker);
void mn_linux_waker_close(struct mn_linux_waker *waker);
/// Adds 1 to an eventfd; never sleeps.
void mn_linux_waker_signal(const struct mn_linux_waker *waker, int fd) MN_LINUX_HOT;
/// Takes what an eventfd holds; 0 when it holds nothing.
uint64_t mn_linux_eventfd_take(int fd) MN_LINUX_HOT;

int mn_linux_epoll_create(void);
/// Watches `fd` for input: one event per write, so that nobody has to read the descriptor empty. `told`: the bits that such an event
/// stands for.
int mn_linux_epoll_add(int epoll, int fd, uint64_t told);
int mn_linux_epoll_remove(int epoll, int fd);
/// Sleeps for at most `nanoseconds` (negative: for ever).
///
/// Returns how many descriptors have input (at most MN_EPOLL_EVENTS_MAX), or a negated errno value; their bits go to `told`.
int mn_linux_epoll_wait(int epoll, int64_t nanoseconds, uint64_t *told) MN_LINUX_HOT;

void mn_linux_close(int fd);
void mn_linux_yield(void) MN_LINUX_HOT;
/// CLOCK_MONOTONIC and CLOCK_REALTIME, ns; no system call where there is a vDSO.
uint64_t mn_linux_monotonic(void) MN_LINUX_HOT;
uint64_t mn_linux_realtime(void) MN_LINUX_HOT;
void mn_linux_sleep(uint64_t nanoseconds);

/// Zeroed pages that cost nothing until they are touched; NULL when there is no memory.
void *mn_linux_map(size_t size);
void mn_linux_unmap(void *base, size_t size);

/// Pins the calling thread to a CPU.
int mn_linux_pin(int cpu);

#endif
