// Between libc's callers and the Swift half of the shim. The trampoline file holds everything that needs C: exported
// names with variadic prototypes, symbol resolution, errno, thread ids, system calls that leave errno alone.
//
// Types of libc that the Swift half touches are mirrored here under our own names, so that the Embedded Swift module
// imports no system header; trampoline.c asserts that each mirror has the original's layout and each constant its value.
#ifndef MACHNET_TRAMPOLINE_H
#define MACHNET_TRAMPOLINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machnet_abi.h"
#include "machnet_atomic.h"

// ------------------------------------------------------------------------------------------------------ mirrors

struct mn_iovec {
  void *base;
  size_t length;
};

struct mn_msghdr {
  void *name;
  uint32_t name_length;
  struct mn_iovec *vectors;
  size_t vector_count;
  void *control;
  size_t control_length;
  int32_t flags;
};

struct mn_mmsghdr {
  struct mn_msghdr header;
  uint32_t length;
};

struct mn_cmsghdr {
  size_t length;
  int32_t level, type;
};

struct mn_timespec {
  int64_t seconds, nanoseconds;
};

struct mn_pollfd {
  int32_t descriptor;
  int16_t events, returned;
};

enum {
  MN_AF_UNSPEC = 0, MN_AF_INET = 2, MN_AF_INET6 = 10,
  MN_SOCK_DGRAM = 2, MN_SOCK_TYPE_MASK = 0xf, MN_SOCK_NONBLOCK = 04000, MN_SOCK_CLOEXEC = 02000000,
  MN_IPPROTO_IP = 0, MN_IPPROTO_UDP = 17, MN_IPPROTO_IPV6 = 41,
  MN_MSG_PEEK = 0x2, MN_MSG_DONTROUTE = 0x4, MN_MSG_CTRUNC = 0x8, MN_MSG_TRUNC = 0x20, MN_MSG_DONTWAIT = 0x40, MN_MSG_WAITALL = 0x100,
  MN_MSG_CONFIRM = 0x800, MN_MSG_ERRQUEUE = 0x2000, MN_MSG_NOSIGNAL = 0x4000, MN_MSG_WAITFORONE = 0x10000,
  MN_MSG_CMSG_CLOEXEC = 0x40000000, MN_MSG_OOB = 0x1, MN_MSG_PROBE = 0x10, MN_MSG_MORE = 0x8000, MN_MSG_SENDPAGE_NOTLAST = 0x20000,
  MN_MSG_ZEROCOPY = 0x4000000,
  MN_SOL_SOCKET = 1, MN_SO_ERROR = 4, MN_SO_REUSEPORT = 15, MN_SO_RCVTIMEO = 20, MN_SO_SNDTIMEO = 21,
  MN_SO_DOMAIN = 39, MN_SO_BUF_LOCK = 72, MN_SO_TYPE = 3, MN_SO_PROTOCOL = 38, MN_SO_TIMESTAMP = 29, MN_SO_TIMESTAMPNS = 35, MN_SO_RXQ_OVFL = 40, MN_SO_COOKIE = 57,
  MN_IP_TOS = 1, MN_IP_TTL = 2, MN_IP_PKTINFO = 8, MN_IP_MTU_DISCOVER = 10, MN_IP_RECVTTL = 12, MN_IP_RECVTOS = 13,
  MN_IP_FREEBIND = 15, MN_IPV6_V6ONLY = 26, MN_IPV6_RECVPKTINFO = 49, MN_IPV6_PKTINFO = 50, MN_UDP_CORK = 1, MN_UDP_SEGMENT = 103, MN_UDP_GRO = 104,
  MN_IP_PMTUDISC_DO = 2,
  MN_EPERM = 1, MN_EINTR = 4, MN_EIO = 5, MN_EBADF = 9, MN_EAGAIN = 11, MN_ENOMEM = 12, MN_EFAULT = 14, MN_EINVAL = 22, MN_EPIPE = 32,
  MN_EDESTADDRREQ = 89, MN_EMSGSIZE = 90, MN_ENETDOWN = 100, MN_ENOTCONN = 107, MN_ETIMEDOUT = 110, MN_ECONNREFUSED = 111,
  MN_EAFNOSUPPORT = 97, MN_ENETUNREACH = 101, MN_EISCONN = 106,
  MN_F_DUPFD = 0, MN_F_GETFL = 3, MN_F_SETFL = 4, MN_F_DUPFD_CLOEXEC = 1030, MN_O_NONBLOCK = 04000,
  MN_FIONREAD = 0x541B, MN_FIONBIO = 0x5421, MN_TIOCOUTQ = 0x5411,
  MN_POLLIN = 1, MN_POLLPRI = 2, MN_POLLOUT = 4, MN_POLLERR = 8, MN_POLLHUP = 16, MN_POLLNVAL = 32, MN_POLLRDNORM = 64,
  MN_POLLWRNORM = 256, MN_POLLWRBAND = 512, MN_POLLRDHUP = 0x2000, MN_O_ASYNC = 020000,
  MN_SO_ATTACH_FILTER = 26, MN_SO_ATTACH_BPF = 50, MN_SO_BINDTODEVICE = 25, MN_SO_PEEK_OFF = 42, MN_SO_TIMESTAMPING = 37,
  MN_SO_LOCK_FILTER = 44, MN_SO_RCVBUF = 8, MN_SO_RCVBUFFORCE = 33, MN_IP_RECVOPTS = 6, MN_IP_RETOPTS = 7, MN_IP_OPTIONS = 4, MN_IP_CHECKSUM = 23,
  MN_IP_PASSSEC = 18, MN_IP_RECVORIGDSTADDR = 20, MN_IP_RECVFRAGSIZE = 25, MN_IP_MINTTL = 21, MN_UDP_ENCAP = 100,
  MN_EPOLLEXCLUSIVE = 1 << 28, MN_EPOLLONESHOT = 1 << 30, MN_EPOLL_CTL_ADD = 1, MN_EPOLL_CTL_DEL = 2, MN_EPOLL_CTL_MOD = 3,
  MN_SHUT_RD = 0, MN_SHUT_WR = 1, MN_SHUT_RDWR = 2,
};
#define MN_EPOLLET 0x80000000u

// ------------------------------------------------------------------------------------------- the descriptor table

/// A word that another thread may change, looked at where each instruction counts. x86-64 does the same for either form, but a
/// compiler folds only the plain one into what is done with it. (Nothing here is read twice in one call.)
#if defined(__x86_64__) && !__has_feature(thread_sanitizer)
#define MN_PEEK(word) (word)
#else
#define MN_PEEK(word) __atomic_load_n(&(word), __ATOMIC_ACQUIRE)
#endif

/// Not looked up through the global offset table: the library's own.
#define MN_HIDDEN __attribute__((visibility("hidden")))

/// What calls look at before they turn to the kernel: in one cache line; and amid a page, because a system call drives the first lines
/// of pages, where much of the kernel's own lies, out of the first-level cache before all others.
struct mn_at_hand {
  uint64_t unused[256];
  /// The rules that verdicts were made by: the directory's generation, moved so that two directories never share a value.
  const uint32_t *rules_word;
  uint32_t rules_shift;
  /// Length of the table that says what a descriptor of this process is to the shim (`mn_table_get`); 0 until the shim is awake.
  uint32_t table_length;
  /// How many sockets of this process have an endpoint or may get one yet: 0 lets poll and select pass at once.
  uint32_t watched_count;
  /// Of all epolls what `mn_epoll.tagged` is of one. (Set at a fork as well: the other process may register its own in those that
  /// both have.)
  uint32_t tagged;
  void *more[]; /* trampoline.c's */
};
extern MN_HIDDEN struct mn_at_hand mn_at_hand;
/// No entry has ever been there or above: the table may be long (RLIMIT_NOFILE), and what was never looked at takes no memory.
extern MN_HIDDEN uint32_t mn_table_end;
/// The process's state, owned by the Swift half.
extern MN_HIDDEN void *mn_process;

/// A thread that is cancelled while it sleeps unwinds its stack, and runs the destructors that the program has there: each frame needs a
/// table. The compiler of Swift makes tables for all functions of a file, or for none, namely where the file has kept a function of C
/// that is to have one. Every file calls this one whose functions may be on the stack of a thread that sleeps.
static inline __attribute__((noinline)) void mn_has_unwind_tables(void) { __asm__ volatile(""); }

/// The sockets that sent last (`Wait.letLand`), and the last of them.
enum { MN_SENDERS = 4 };
extern MN_HIDDEN void *mn_senders[MN_SENDERS], *mn_last_sender;
static inline void *mn_sender(uint32_t place) { return __atomic_load_n(&mn_senders[place % MN_SENDERS], __ATOMIC_RELAXED); }
static inline bool mn_is_sender(const void *socket) { return __atomic_load_n(&mn_last_sender, __ATOMIC_RELAXED) == socket; }
void mn_sender_note(void *socket);

/// Until when it matters that this process has lately given up local names (`Socket.hasDeparted`), CLOCK_MONOTONIC ns; 0: it has not.
extern MN_HIDDEN uint64_t mn_departed_limit;
static inline uint64_t mn_departed_until(void) { return __atomic_load_n(&mn_departed_limit, __ATOMIC_ACQUIRE); }
/// Release: the names are there before.
static inline void mn_departed_begin(uint64_t until) { __atomic_store_n(&mn_departed_limit, until, __ATOMIC_RELEASE); }
/// Unless another has begun since.
static inline void mn_departed_end(uint64_t until) {
  __atomic_compare_exchange_n(&mn_departed_limit, &until, 0, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/// What is to be seen of a socket's rings without the Swift half, as by a trampoline that leaves a receive to the kernel. Never changed
/// once published.
struct mn_look {
  struct mn_endpoint *endpoint; /* NULL: none, and no rings */
  uint8_t *rings;               /* the first RX ring */
  uint64_t stride;              /* to the next */
  uint32_t count;
  uint32_t tx_capacity; /* of the TX ring, which is before the first RX ring */
};

/// What a receive may do without the Swift half. ASK: nothing. KERNEL: the shadow is all there is. LOOK: what lies in
/// the shadow may be taken while the rings (`mn_look`) are empty. CANDIDATE: as KERNEL, but there may be rings by the time that a
/// call has waited.
enum { MN_RECEIVE_ASK = 0, MN_RECEIVE_KERNEL = 1, MN_RECEIVE_LOOK = 2, MN_RECEIVE_CANDIDATE = 3 };

enum { MN_KERNEL_FLOWS = 8, MN_KERNEL_ALWAYS = 0x10000 };

enum { MN_KIND_FREE = 0, MN_KIND_SOCKET = 1, MN_KIND_EPOLL = 2 };
/// Heads a table entry. The Swift half writes verdicts into it, by which the trampolines pass calls of the kernel's on.
struct mn_head {
  uint32_t kind; /* MN_KIND_; memory of the one never becomes the other's */
  /// The last datagram went to a ring, and where the next one goes may be known (`Socket.plan`).
  uint32_t quick;
  uint32_t receive; /* ASK as well where the entry is no socket (any more): the rest has no meaning then */
  /// MN_KERNEL_ALWAYS | generation: no rule of that generation can lead any datagram of this socket to Machnet. (Looked at together
  /// with `receive`.)
  uint32_t kernel_always;
  const struct mn_look *look;
  /// The last datagram came by the shadow.
  uint32_t by_shadow;
  uint32_t family;
  uint32_t turn; /* the look in use */
  /// Flows that the rules leave to the kernel. A word is mn_flow_key() of destination and generation, so that a verdict
  /// is one atomic word and ends by itself when the rules change.
  uint64_t kernel_flows[MN_KERNEL_FLOWS];
  struct mn_look looks[2];
};

/// The high 16 bits of what is registered with the kernel's epolls for us: no address, and no descriptor.
enum { MN_EPOLL_TAG = 0x4d4e };
/// What an epoll's entry begins with: `quick` and `receive` lie where a socket has them, and say that its trampolines may do nothing.
struct mn_epoll {
  uint32_t kind;
  uint32_t quick;
  uint32_t receive;
  uint32_t tagged; /* 0: no event of ours was ever registered here, and all that it tells is the kernel's */
  uint32_t waiters, waiter, descriptors; /* see Epoll */
  uint32_t idle; /* calls that need not look before they sleep, since the last look was in vain */
};
static inline void mn_epoll_tag(void *epoll) {
  __atomic_store_n(&mn_at_hand.tagged, 1, __ATOMIC_RELAXED);
  __atomic_store_n(&((struct mn_epoll *)epoll)->tagged, 1, __ATOMIC_RELAXED);
}

/// The low 16 bits: a verdict that outlives 65,536 reloads unasked is not to be had.
static inline uint16_t mn_rules_now(void) {
  const uint32_t *word = __atomic_load_n(&mn_at_hand.rules_word, __ATOMIC_ACQUIRE);
  return (uint16_t)(__atomic_load_n(word, __ATOMIC_ACQUIRE) + MN_PEEK(mn_at_hand.rules_shift));
}
/// A new directory is in use.
static inline void mn_rules_follow(const void *word) {
  uint32_t last = mn_rules_now();
  __atomic_store_n(&mn_at_hand.rules_shift, last + 1 - __atomic_load_n((const uint32_t *)word, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
  __atomic_store_n(&mn_at_hand.rules_word, (const uint32_t *)word, __ATOMIC_RELEASE);
}
/// A generation of the directory in use, as `mn_rules_now` gives it.
static inline uint16_t mn_rules_as_now(uint32_t generation) {
  return (uint16_t)(generation + __atomic_load_n(&mn_at_hand.rules_shift, __ATOMIC_RELAXED));
}

/// Family, port and IPv4 address (both in network byte order, as in a sockaddr_in), with the generation on the family.
static inline uint64_t mn_flow_key(uint32_t family, uint16_t port, uint32_t address, uint16_t generation) {
  return ((uint64_t)address << 32 | (uint32_t)port << 16 | family) ^ generation;
}
/// The place of a key: the last bytes of port and address differ most.
static inline uint32_t mn_flow_place(uint64_t key) { return (uint32_t)(key >> 24 ^ key >> 56) % MN_KERNEL_FLOWS; }

static inline void mn_zero(void *words, size_t count) {
  for (uint64_t *word = (uint64_t *)words; count > 0; count--) __atomic_store_n(word++, 0, __ATOMIC_RELAXED);
}

// Words of a head that any call may change; the head is where the entry is.
static inline bool mn_head_by_shadow(const void *head) { return __atomic_load_n(&((const struct mn_head *)head)->by_shadow, __ATOMIC_RELAXED); }
static inline void mn_head_set_by_shadow(void *head, bool is) { __atomic_store_n(&((struct mn_head *)head)->by_shadow, is, __ATOMIC_RELAXED); }
static inline bool mn_head_quick(const void *head) { return __atomic_load_n(&((const struct mn_head *)head)->quick, __ATOMIC_RELAXED); }
static inline void mn_head_set_quick(void *head, bool is) { __atomic_store_n(&((struct mn_head *)head)->quick, is, __ATOMIC_RELAXED); }
static inline uint32_t mn_head_family(const void *head) { return __atomic_load_n(&((const struct mn_head *)head)->family, __ATOMIC_RELAXED); }
static inline uint32_t mn_head_receive(const void *head) { return __atomic_load_n(&((const struct mn_head *)head)->receive, __ATOMIC_ACQUIRE); }
/// A new socket's. (Word by word: a call on the one that was here before may not have ended.)
static inline void mn_head_start(void *start, uint32_t family) {
  struct mn_head *head = (struct mn_head *)start;
  __atomic_store_n(&head->kernel_always, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&head->family, family, __ATOMIC_RELAXED);
  __atomic_store_n(&head->by_shadow, 1, __ATOMIC_RELAXED);
  __atomic_store_n(&head->quick, 0, __ATOMIC_RELAXED);
  for (int i = 0; i < MN_KERNEL_FLOWS; i++) __atomic_store_n(&head->kernel_flows[i], 0, __ATOMIC_RELAXED);
  __atomic_store_n(&head->kind, MN_KIND_SOCKET, __ATOMIC_RELAXED);
}

/// Port and address in host byte order. The port is not 0, so that no key of an empty place ever matches.
static inline void mn_head_remember(void *start, uint32_t address, uint16_t port, uint32_t generation) {
  struct mn_head *head = (struct mn_head *)start;
  uint64_t key = mn_flow_key(mn_head_family(head), __builtin_bswap16(port), __builtin_bswap32(address), mn_rules_as_now(generation));
  __atomic_store_n(&head->kernel_flows[mn_flow_place(key)], key, __ATOMIC_RELAXED);
}
static inline void mn_head_always(void *head, uint32_t generation) {
  __atomic_store_n(&((struct mn_head *)head)->kernel_always, MN_KERNEL_ALWAYS | mn_rules_as_now(generation), __ATOMIC_RELAXED);
}
/// Changes what receives may do. The look before stays as it is for whoever is looking: it is used again only at the
/// change after the next, and changes of one socket are attachments and losses of a daemon.
static inline void mn_head_show(void *start, uint32_t receive, struct mn_endpoint *endpoint, void *rings, uint64_t stride,
                                uint32_t count, uint32_t tx_capacity) {
  struct mn_head *head = (struct mn_head *)start;
  struct mn_look *look = &head->looks[++head->turn & 1];
  __atomic_store_n(&look->endpoint, endpoint, __ATOMIC_RELAXED);
  __atomic_store_n(&look->rings, (uint8_t *)rings, __ATOMIC_RELAXED);
  __atomic_store_n(&look->stride, stride, __ATOMIC_RELAXED);
  __atomic_store_n(&look->count, count, __ATOMIC_RELAXED);
  __atomic_store_n(&look->tx_capacity, tx_capacity, __ATOMIC_RELAXED);
  __atomic_store_n(&head->look, look, __ATOMIC_RELEASE);
  __atomic_store_n(&head->receive, receive, __ATOMIC_RELEASE);
}

/// Has the lines brought near in which the next small datagram will come, if by the ring of that engine, and the one that answers it
/// be sent. (Where a ring begins anew they are others.)
static inline void mn_head_prefetch(const void *head, uint32_t engine) {
  const struct mn_look *look = __atomic_load_n(&((const struct mn_head *)head)->look, __ATOMIC_ACQUIRE);
  const struct mn_endpoint *endpoint = __atomic_load_n(&look->endpoint, __ATOMIC_RELAXED);
  if (!endpoint) return;
  const uint8_t *rings = __atomic_load_n(&look->rings, __ATOMIC_RELAXED);
  uint64_t stride = __atomic_load_n(&look->stride, __ATOMIC_RELAXED), tx = __atomic_load_n(&look->tx_capacity, __ATOMIC_RELAXED);
  const uint8_t *room = rings - tx + (__atomic_load_n(&endpoint->tx_tail, __ATOMIC_RELAXED) & (tx - 1));
  mn_prefetch_to_write(room);
  mn_prefetch_to_write(room + 64);
  const uint8_t *ring = rings + (engine < __atomic_load_n(&look->count, __ATOMIC_RELAXED) ? engine * stride : 0);
  const uint8_t *record = ring + sizeof(struct mn_ring);
  record += __atomic_load_n((const uint64_t *)(ring + 64), __ATOMIC_RELAXED) & (stride - sizeof(struct mn_ring) - 1);
  mn_prefetch(record);
  mn_prefetch(record + 64);
}

/// A ring that is empty for ever.
extern MN_HIDDEN struct mn_ring mn_empty_ring;
static inline void *mn_no_ring(void) { return &mn_empty_ring; }

/// Marks descriptors of the shim's own (control connection, eventfds): the program cannot close them.
#define MN_TABLE_INTERNAL ((void *)(uintptr_t)1)

// Swift cannot take these globals concurrently-safely by name; it goes through accessors.
static inline void *mn_process_get(void) { return __atomic_load_n(&mn_process, __ATOMIC_ACQUIRE); }
static inline void mn_process_set(void *process) { __atomic_store_n(&mn_process, process, __ATOMIC_RELEASE); }
/// Acquire: who finds a length finds the table.
static inline uint32_t mn_table_size(void) { return __atomic_load_n(&mn_at_hand.table_length, __ATOMIC_ACQUIRE); }
/// - Returns: NULL: nothing of ours, the kernel's business alone.
void *mn_table_get(int32_t fd);
static inline bool mn_table_is_internal(int32_t fd) { return mn_table_get(fd) == MN_TABLE_INTERNAL; }
/// - Returns: false when the table does not reach so far.
bool mn_table_set(int32_t fd, void *entry);
static inline void mn_table_set_internal(int32_t fd) { mn_table_set(fd, MN_TABLE_INTERNAL); }
static inline uint32_t mn_table_used(void) { return __atomic_load_n(&mn_table_end, __ATOMIC_ACQUIRE); }
/// `table`: zeros, for `length` descriptors.
void mn_table_open(void **table, uint32_t length);
static inline void mn_watched_add(int32_t change) { __atomic_fetch_add(&mn_at_hand.watched_count, (uint32_t)change, __ATOMIC_RELAXED); }

// Words of an endpoint that only applications write: any thread, and any process that shares it. (The quick path reads the eight
// bytes from peer_port on in one.)
#define MN_ENDPOINT_WORD(type, field)                                                                              \
  static inline type mn_endpoint_##field(const struct mn_endpoint *endpoint) {                                     \
    return __atomic_load_n(&endpoint->field, __ATOMIC_RELAXED);                                                    \
  }                                                                                                                \
  static inline void mn_endpoint_set_##field(struct mn_endpoint *endpoint, type value) {                           \
    __atomic_store_n(&endpoint->field, value, __ATOMIC_RELAXED);                                                   \
  }
MN_ENDPOINT_WORD(uint32_t, flags)
MN_ENDPOINT_WORD(uint32_t, references)
MN_ENDPOINT_WORD(uint64_t, receive_timeout)
MN_ENDPOINT_WORD(uint64_t, send_timeout)
MN_ENDPOINT_WORD(uint16_t, peer_port)
MN_ENDPOINT_WORD(uint16_t, segment)
MN_ENDPOINT_WORD(uint8_t, ttl)
MN_ENDPOINT_WORD(uint8_t, tos)
MN_ENDPOINT_WORD(uint8_t, ttl_set)
MN_ENDPOINT_WORD(uint8_t, tos_set)
MN_ENDPOINT_WORD(uint32_t, mtu_discover)
MN_ENDPOINT_WORD(uint32_t, receive_limit)
MN_ENDPOINT_WORD(uint32_t, receive_together)
#undef MN_ENDPOINT_WORD
/// Network byte order. (Peers are v4-mapped.)
static inline uint32_t mn_endpoint_peer_address(const struct mn_endpoint *endpoint) {
  return __atomic_load_n(&endpoint->peer.words[3], __ATOMIC_RELAXED);
}
static inline void mn_endpoint_set_peer(struct mn_endpoint *endpoint, struct mn_address peer) {
  for (int i = 0; i < 4; i++) __atomic_store_n(&endpoint->peer.words[i], peer.words[i], __ATOMIC_RELAXED);
}
/// `machnet status` shows what went by the shadow. (Threads may lose each other's counts: an atomic addition costs more than
/// all the rest.)
static inline void mn_count(uint64_t *word, uint64_t more) {
  __atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED) + more, __ATOMIC_RELAXED);
}
static inline void mn_endpoint_count_sent(struct mn_endpoint *endpoint, int64_t size) {
  mn_count(&endpoint->kernel_tx_datagrams, 1);
  mn_count(&endpoint->kernel_tx_bytes, (uint64_t)size);
}
static inline void mn_endpoint_count_received(struct mn_endpoint *endpoint, int64_t size) {
  mn_count(&endpoint->kernel_rx_datagrams, 1);
  mn_count(&endpoint->kernel_rx_bytes, (uint64_t)size);
}
static inline void mn_endpoint_count_wakeup(struct mn_endpoint *endpoint) { mn_count(&endpoint->app_wakeups, 1); }

// ------------------------------------------------------------------------------------------------- the real calls

/// The long ways, for the short ones to fall back on.
int64_t mn_slow_sendto(int32_t fd, const void *data, size_t size, int32_t flags, const void *address, uint32_t length);
int64_t mn_slow_recvfrom(int32_t fd, void *data, size_t size, int32_t flags, void *address, uint32_t *length);

int32_t mn_get_errno(void);
void mn_set_errno(int32_t value);
/// This thread's kernel id, cached in initial-exec TLS.
extern MN_HIDDEN __thread uint32_t mn_thread_id_known __attribute__((tls_model("initial-exec")));
uint32_t mn_thread_id_ask(void);
static inline uint32_t mn_thread_id(void) {
  uint32_t known = mn_thread_id_known;
  return __builtin_expect(known != 0, 1) ? known : mn_thread_id_ask();
}
void mn_thread_id_forget(void);
/// A call that waits for nothing is a cancellation point all the same, where it has time for that.
void mn_cancellation_point(void);
/// Signal handlers of the program that have run on this thread: all, and those without SA_RESTART; modulo 2^32.
struct mn_handled { uint32_t all, interrupting; };
extern MN_HIDDEN __thread struct mn_handled mn_handled __attribute__((tls_model("initial-exec")));
static inline struct mn_handled mn_handled_now(void) {
  // (A handler may run between any two instructions.)
  const volatile struct mn_handled *now = &mn_handled;
  return (struct mn_handled){now->all, now->interrupting};
}
/// A call that first looks at the kernel's alone, or has come a long way, began then.
extern MN_HIDDEN __thread struct mn_handled mn_looked_at __attribute__((tls_model("initial-exec")));
extern MN_HIDDEN __thread bool mn_has_looked __attribute__((tls_model("initial-exec")));
static inline void mn_look_began(struct mn_handled then) { mn_looked_at = then, mn_has_looked = true; }
static inline void mn_look_begins(void) { mn_look_began(mn_handled_now()); }
static inline void mn_look_ends(void) { mn_has_looked = false; }
/// As mn_handled_now, when the call began that goes on here.
static inline struct mn_handled mn_handled_at_begin(void) {
  if (!mn_has_looked) return mn_handled_now();
  mn_has_looked = false;
  return mn_looked_at;
}
/// Whether this thread is at the process's lock (or waits for it): what interrupts it must not wait.
bool mn_thread_is_inside(void);
void mn_thread_set_inside(bool inside);
/// Whether this process is the one that the shim's memory belongs to. Not so in the child of a vfork, which only borrows it.
/// A child that was made behind libc's back (clone) becomes a process of its own here, late.
bool mn_is_at_home(void);

// libc's own implementations (errno, cancellation points and all), found by RTLD_NEXT.
int32_t mn_real_bind(int32_t fd, const void *address, uint32_t length);
int32_t mn_real_connect(int32_t fd, const void *address, uint32_t length);
int64_t mn_real_sendto(int32_t fd, const void *data, size_t size, int32_t flags, const void *address, uint32_t length);
int64_t mn_real_sendmsg(int32_t fd, const struct mn_msghdr *message, int32_t flags);
int64_t mn_real_recvfrom(int32_t fd, void *data, size_t size, int32_t flags, void *address, uint32_t *length);
int64_t mn_real_recvmsg(int32_t fd, struct mn_msghdr *message, int32_t flags);
int32_t mn_real_getsockopt(int32_t fd, int32_t level, int32_t name, void *value, uint32_t *length);
int32_t mn_real_setsockopt(int32_t fd, int32_t level, int32_t name, const void *value, uint32_t length);
int32_t mn_real_getpeername(int32_t fd, void *address, uint32_t *length);
int32_t mn_real_shutdown(int32_t fd, int32_t how);
int32_t mn_real_ioctl(int32_t fd, uint64_t request, void *argument);
int32_t mn_real_ppoll(struct mn_pollfd *entries, uint64_t count, const struct mn_timespec *timeout, const void *mask);
/// ppoll as well; a thread that is cancelled in it lets `held` go (NULL: nothing).
int32_t mn_sleep(struct mn_pollfd *entries, uint64_t count, const struct mn_timespec *timeout, const void *mask, void *held);
int32_t mn_real_pselect(int32_t count, void *read, void *write, void *except, const struct mn_timespec *timeout, const void *mask);
int32_t mn_real_epoll_ctl(int32_t epfd, int32_t operation, int32_t fd, void *event);
int32_t mn_real_epoll_ctl_of(int32_t epfd, int32_t operation, int32_t fd, uint32_t bits, uint64_t data);
/// timeout in ns, negative: for ever. Falls back to millisecond waits on kernels before 5.11.
int32_t mn_real_epoll_wait(int32_t epfd, void *events, int32_t capacity, int64_t timeout, const void *mask);
/// The same; a thread that is cancelled in it lets `held` go.
int32_t mn_epoll_sleep(int32_t epfd, void *events, int32_t capacity, int64_t timeout, const void *mask, void *held);
/// As a call of the program's that begins now, whatever the number means.
int32_t mn_epoll_begin(int32_t epfd, void *events, int32_t capacity, int64_t timeout, const void *mask);

// System calls that leave errno alone and are no cancellation points; negative errno on failure.
int64_t mn_sys_recvfrom(int32_t fd, void *data, size_t size, int32_t flags, void *address, uint32_t *length);
int64_t mn_sys_recvmsg(int32_t fd, struct mn_msghdr *message, int32_t flags);
int64_t mn_sys_sendmsg(int32_t fd, const struct mn_msghdr *message, int32_t flags);
int64_t mn_sys_read(int32_t fd, void *data, size_t size);
int64_t mn_sys_write(int32_t fd, const void *data, size_t size);
int32_t mn_sys_close(int32_t fd);
int32_t mn_sys_fcntl(int32_t fd, int32_t command, int64_t argument);
int32_t mn_sys_getsockopt(int32_t fd, int32_t level, int32_t name, void *value, uint32_t *length);
int32_t mn_sys_setsockopt(int32_t fd, int32_t level, int32_t name, const void *value, uint32_t length);
int32_t mn_sys_getsockname(int32_t fd, void *address, uint32_t *length);
int32_t mn_sys_getpeername(int32_t fd, void *address, uint32_t *length);
int32_t mn_sys_bind(int32_t fd, const void *address, uint32_t length);
int32_t mn_sys_ppoll(struct mn_pollfd *entries, uint64_t count, const struct mn_timespec *timeout, const void *mask);
int32_t mn_sys_epoll_ctl(int32_t epfd, int32_t operation, int32_t fd, uint32_t bits, uint64_t data);
int32_t mn_sys_epoll_look(int32_t epfd, void *events, int32_t capacity);
int32_t mn_sys_eventfd(void); /* non-blocking, close-on-exec */
int32_t mn_sys_yield(void);
/// Sleeps while the word, private to this process, has this value; wakes all who do.
void mn_sys_futex_wait(void *word, uint32_t value);
void mn_sys_futex_wake(void *word);
/// Numbers that were duplicated before there was a table, one after the other; -1: no more.
int32_t mn_early_duplicate(uint32_t index);
/// Blocks every signal that may be blocked without hiding a fault; the old mask (8 bytes) goes to `old`.
void mn_sys_signals_block(void *old);
void mn_sys_signals_restore(const void *old);
/// Whether an interrupted call is to go on: every handler that this process has installed says SA_RESTART.
bool mn_sys_signals_restart(void);
/// Whether the thread `tid` of this process, or of a process that shares the channel, is gone.
bool mn_sys_thread_is_gone(uint32_t tid);
int32_t mn_sys_process_id(void);
/// Anonymous memory, zeroed, never returned by accident to a malloc; NULL on failure.
void *mn_sys_map(size_t size);
void mn_sys_unmap(void *base, size_t size);
/// What the daemon shares: never locked, and not dumped. The caller holds the process's lock.
void *mn_sys_map_shared(int32_t fd, size_t size, bool writable);
void mn_sys_unmap_shared(void *base, size_t size);
uint64_t mn_sys_nanoseconds(void); /* CLOCK_MONOTONIC */
/// Limit of descriptor numbers: RLIMIT_NOFILE, hard or soft, at most 2^20 (fs.nr_open's default).
uint32_t mn_sys_descriptor_limit(bool hard);
/// Connects a SOCK_SEQPACKET socket to `path`; close-on-exec; negative errno on failure.
int32_t mn_sys_connect_control(const char *path);
/// Shows mn_hook_inherited each descriptor that is open.
void mn_each_inherited(void);
/// The value of an environment variable; NULL in a secure-execution process (setuid) or when unset.
const char *mn_environment(const char *name);
/// File name of the executable, and the name it was called by; NUL-terminated in buffers of MN_PROGRAM_MAX bytes.
void mn_program_names(char *executable, char *called);

/// Copies payload; memcpy of libc (an ifunc, resolved eagerly by -z now).
static inline void mn_copy(void *to, const void *from, size_t size) { __builtin_memcpy(to, from, size); }

/// One line to stderr when `level` is enabled by MACHNET_LOG (1 error, 2 info, 3 debug); async-signal-safe.
void mn_log(int32_t level, const char *text, int64_t a, int64_t b);
bool mn_log_enabled(int32_t level);

// epoll_event is packed on x86-64 only; its fields go through these.
size_t mn_epoll_event_size(void);
static inline void *mn_epoll_event_at(void *events, int32_t index) { return (char *)events + (size_t)index * mn_epoll_event_size(); }
void mn_epoll_event_get(const void *event, uint32_t *bits, uint64_t *data);
void mn_epoll_event_set(void *event, uint32_t bits, uint64_t data);

#endif
