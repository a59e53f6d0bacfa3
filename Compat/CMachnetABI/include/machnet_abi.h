// The one contract of the engine, the preload shim and C clients: what lies in shared memory and what
// crosses the control socket. Layout only; the atomic accessors that both sides need are in machnet_atomic.h.
//
// Three kinds of shared memory:
//   directory  one per daemon, read-only for applications: engines, rules, interfaces, local endpoints
//   channel    one or more per attached process: ready bitmaps, endpoint blocks, rings
//   (the control socket carries struct mn_request and struct mn_reply, and file descriptors by SCM_RIGHTS)
//
// Whoever may write a word is named beside it. "app" is every process that has mapped the channel; "engine" is one
// engine thread; "control" is the daemon's control thread. A reader loads a foreign word once, checks it, then uses it.
#ifndef MACHNET_ABI_H
#define MACHNET_ABI_H

#include <stddef.h>
#include <stdint.h>

// Lets the Swift compiler accept these in functions that promise neither to lock nor to allocate.
#if __has_attribute(swift_attr)
#define MN_HOT __attribute__((swift_attr("@_noLocks"), swift_attr("@_noAllocation"), always_inline))
#else
#define MN_HOT __attribute__((always_inline))
#endif

#define MN_MAGIC 0x4d4e4554u /* "MNET" */
#define MN_ABI_VERSION 6u
#define MN_CACHE_LINE 64u
#define MN_PAGE 4096u

#define MN_ENGINES_MAX 16u
#define MN_RULES_MAX 1024u
#define MN_INTERFACES_MAX 16u
#define MN_HOST_ADDRESSES_MAX 64u
#define MN_LOCAL_SLOTS 65536u        /* power of two */
#define MN_CHANNEL_ENDPOINTS_MAX 256u /* per channel; a process opens further channels as it needs them */
#define MN_CHANNELS_PER_PROCESS_MAX 64u
#define MN_PROGRAM_MAX 64u
#define MN_DATAGRAM_MAX 65507u /* RFC 768 over RFC 791: 65,535 - 20 - 8 */
#define MN_RING_MIN 262144u    /* a record of MN_DATAGRAM_MAX and the pad before it take up to 131,136 */
#define MN_RING_MAX 67108864u

// ---------------------------------------------------------------------------------------------- addresses and rules

/// An IPv6 address, or an IPv4 address in its v4-mapped form (RFC 4291, 2.5.5.2). Network byte order.
struct mn_address {
  uint32_t words[4];
};

enum { MN_PATH_KERNEL = 0, MN_PATH_MACHNET = 1 };
enum { MN_TRANSPORT_UDP = 0, MN_TRANSPORT_MACHNET = 1 };
enum { MN_LOSS_KERNEL = 0, MN_LOSS_ERROR = 1 };

/// One line of the allowlist, compiled. Addresses and ports are in host byte order; a flow matches when
/// (address & mask) == network and low <= port <= high on both sides and the program name fits.
struct mn_rule {
  uint32_t local_network, local_mask;
  uint32_t remote_network, remote_mask;
  uint16_t local_port_low, local_port_high;
  uint16_t remote_port_low, remote_port_high;
  uint8_t path;           /* MN_PATH_* */
  uint8_t transport;      /* MN_TRANSPORT_* */
  uint8_t on_engine_loss; /* MN_LOSS_* */
  uint8_t reserved;
  uint32_t line;               /* where the config file says it */
  char program[MN_PROGRAM_MAX]; /* NUL-terminated; empty: any; a trailing '*' matches any ending */
};

// ---------------------------------------------------------------------------------------------- the directory

/// An interface that the daemon's engines own. Host byte order.
struct mn_interface {
  uint32_t address, mask, gateway; /* gateway 0: none */
  uint32_t mtu;                    /* of the IP layer, bytes */
};

/// What an app must know of an engine before it decides whether to ring its doorbell. A cache line.
struct mn_engine_word {
  uint32_t sleeping; /* engine: 1 while it sleeps or is about to; then a doorbell is owed */
  uint32_t reserved[15];
};

/// Heads the directory; what follows is at the offsets below. Written by control, but for the engine words.
struct mn_directory {
  uint32_t magic, version;
  uint64_t size;  /* of the mapping, bytes */
  uint64_t epoch; /* random, drawn at the daemon's start */
  uint32_t engine_count;
  uint32_t stopping;         /* 1 once the daemon shuts down: endpoints are gone, use the kernel */
  uint32_t rule_count[2];    /* of either set */
  uint32_t interface_count;
  uint32_t host_address_count;   /* of the daemon's network namespace */
  uint32_t spin_nanoseconds;     /* how long a waiting call looks at the rings before it sleeps */
  uint32_t yield_while_spinning; /* 1: sched_yield between looks (hosts with few cores) */
  uint32_t departures;           /* moves on after a key has left the table of local endpoints */
};

enum {
  /// uint32_t: the set of rules in use is number (generation & 1). What each call looks at, so not at the start of a page: a system call
  /// drives that out of the first-level cache.
  MN_DIRECTORY_RULES_GENERATION = 2304,
  MN_DIRECTORY_ENGINES = 4096,        /* struct mn_engine_word [MN_ENGINES_MAX] */
  MN_DIRECTORY_INTERFACES = 8192,     /* struct mn_interface [MN_INTERFACES_MAX] */
  MN_DIRECTORY_HOST_ADDRESSES = 12288, /* uint32_t [MN_HOST_ADDRESSES_MAX], host byte order */
  MN_DIRECTORY_RULES = 16384,         /* struct mn_rule [2][MN_RULES_MAX]: a reload never changes the set in use */
  /// uint64_t [MN_LOCAL_SLOTS]: open addressing over mn_local_key(); 0 is empty, MN_LOCAL_TOMBSTONE was in use
  MN_DIRECTORY_LOCAL = 16384 + 2 * 1024 * 96,
  MN_DIRECTORY_SIZE = MN_DIRECTORY_LOCAL + 65536 * 8,
};

#define MN_LOCAL_TOMBSTONE UINT64_MAX

/// Key of an endpoint of this daemon: network namespace index (0 is the daemon's own), port, address (0: wildcard).
/// Host byte order. Never 0, because the port is not.
MN_HOT static inline uint64_t mn_local_key(uint16_t netns, uint32_t address, uint16_t port) {
  return ((uint64_t)netns << 48) | ((uint64_t)port << 32) | address;
}

/// First slot to look at for a key (Fibonacci hashing); the next is (slot + 1) mod MN_LOCAL_SLOTS.
MN_HOT static inline uint32_t mn_local_slot(uint64_t key) {
  return (uint32_t)((key * 0x9E3779B97F4A7C15ull) >> 48) & (MN_LOCAL_SLOTS - 1);
}

// ---------------------------------------------------------------------------------------------- the channel

enum { MN_RECORD_DATAGRAM = 1, MN_RECORD_PAD = 2 };
enum {
  MN_RECORD_LOCAL_ADDRESS = 1, /* TX: `local` names the source address (IP_PKTINFO); RX: always set */
  MN_RECORD_TTL = 2,           /* TX: `ttl` is to be used; RX: always set */
  MN_RECORD_TOS = 4,           /* likewise for `tos` */
  MN_RECORD_DONT_FRAGMENT = 8, /* TX: IP_MTU_DISCOVER asks for DF */
  MN_RECORD_MACHNET = 16,      /* TX: the rule says transport machnet */
  MN_RECORD_CHARGED = 32,      /* RX: counts against `receive_limit` until it is taken */
};

/// What precedes a datagram's payload in a ring, in both directions. Records start on cache lines; the next one
/// starts MN_RECORD_STRIDE(length) later. A pad record fills a ring to its end.
struct mn_record {
  uint32_t length; /* of the payload (or of a pad beyond this header), bytes */
  uint16_t kind;   /* MN_RECORD_DATAGRAM or MN_RECORD_PAD */
  uint16_t flags;
  uint16_t remote_port, local_port; /* host byte order */
  uint16_t segment;                 /* TX: UDP_SEGMENT size, RX: UDP_GRO size; 0: none */
  uint8_t ttl, tos;
  uint32_t interface; /* RX: index to report in IP_PKTINFO; 0: unknown */
  uint32_t reserved;
  uint64_t timestamp; /* RX: arrival, CLOCK_REALTIME ns */
  struct mn_address remote, local;
};

#define MN_RECORD_HEADER 64u
#define MN_RECORD_STRIDE(length) ((MN_RECORD_HEADER + (uint64_t)(length) + 63u) & ~(uint64_t)63u)

/// A byte ring with one writer and one reader. Indices run freely (mod 2^64) and are multiples of 64.
/// TX: app writes tail, engine writes head. RX: engine writes tail, app writes head. The data follow.
struct mn_ring {
  uint64_t tail;
  uint64_t mark; /* RX, control: the tail when the endpoint was opened or left. What came later came after the shadow's, then */
  uint64_t tail_reserved[6];
  uint64_t head;
  uint64_t charge_taken; /* RX, app: sum of mn_charge() of the charged records taken so far */
  uint64_t head_reserved[6];
};

/// What a datagram takes of SO_RCVBUF, bytes: the kernel's `truesize` of a buffer for it (struct sk_buff, headers and
/// shared info, rounded up as its allocator does), as of Linux 6.x.
MN_HOT static inline uint64_t mn_charge(uint32_t length) {
  uint32_t needed = length + 59 + 320;
  return 256 + (needed <= 576 ? 576 : 1u << (32 - __builtin_clz(needed - 1)));
}

/// State of one side's wait. app: AWAKE/SIGNALLED -> ARMED; engine: ARMED -> SIGNALLED, then writes the eventfd.
enum { MN_WAIT_AWAKE = 0, MN_WAIT_ARMED = 1, MN_WAIT_SIGNALLED = 2 };

enum {
  MN_SOCKET_NONBLOCK = 1,
  MN_SOCKET_CONNECTED = 2,
  MN_SOCKET_PKTINFO = 4,
  MN_SOCKET_RECVTTL = 8,
  MN_SOCKET_RECVTOS = 16,
  MN_SOCKET_TIMESTAMP = 32,
  MN_SOCKET_TIMESTAMPNS = 64,
  MN_SOCKET_RXQ_OVFL = 128,
  MN_SOCKET_SHUTDOWN_READ = 256,
  MN_SOCKET_SHUTDOWN_WRITE = 512,
  MN_SOCKET_GRO = 1024,
  MN_SOCKET_RECVPKTINFO6 = 2048,
  MN_SOCKET_TIMESTAMPING = 4096,
};

/// LEFT: given up by a close that keeps the block. No engine touches it any more, and its application reads on what the
/// RX rings hold; perhaps it is LIVE again later (MN_CLOSE_PASSING).
/// LEAVING, and WITHDRAWN once no engine touches it: given back to the kernel by the daemon. Its application reads on, and sends
/// by the shadow, first what the engine has not taken.
enum {
  MN_ENDPOINT_FREE = 0,
  MN_ENDPOINT_LIVE = 1,
  MN_ENDPOINT_CLOSED = 2,
  MN_ENDPOINT_LEFT = 3,
  MN_ENDPOINT_LEAVING = 4,
  MN_ENDPOINT_WITHDRAWN = 5,
};

/// One offloaded socket. 512 bytes; each line has one kind of writer.
struct mn_endpoint {
  // engine and control
  uint32_t state; /* control: MN_ENDPOINT_*; app: CLOSED, before it says so */
  uint32_t error;              /* engine sets, app exchanges with 0: pending SO_ERROR (an errno value) */
  uint64_t rx_drops;           /* engine: datagrams that found the RX ring full */
  uint32_t generation;         /* control: counts the uses of this block */
  uint32_t home_engine;        /* control: the engine that serves the TX ring */
  uint32_t reserved0[10];
  // wake-ups: app arms, engine signals
  uint32_t rx_wait;
  uint32_t tx_wait;
  // what the app wants of its receives; a lie harms itself alone
  uint32_t receive_limit;    /* SO_RCVBUF, where the program has set it; 0: the ring is the limit */
  uint32_t receive_together; /* UDP_GRO: 1 takes a segmented send of this host in one piece */
  uint32_t reserved1[12];
  // app only: the locks that several threads and forked processes share (0: free, else the owner's thread id)
  uint32_t tx_lock;
  uint32_t reserved2;
  uint64_t tx_tail; /* the TX ring's tail, for whoever writes it next: that one's line is where the engine polls it */
  uint64_t reserved6[6];
  uint32_t rx_lock;
  uint32_t reserved3[15];
  // app only: socket state that threads and forked processes share; the engine never reads it
  uint32_t flags; /* MN_SOCKET_* */
  uint32_t references;         /* processes that hold the endpoint */
  uint64_t receive_timeout, send_timeout; /* ns; 0: none */
  struct mn_address peer;
  uint16_t peer_port;
  uint16_t segment; /* UDP_SEGMENT */
  uint8_t ttl, tos, ttl_set, tos_set;
  uint32_t receive_count; /* drives the look at the shadow */
  uint32_t mtu_discover;
  uint64_t reserved4;
  // app only, read by `machnet status`: what the shadow carried
  uint64_t kernel_tx_datagrams;
  uint64_t kernel_tx_bytes, kernel_rx_datagrams, kernel_rx_bytes;
  uint64_t app_wakeups; /* times a thread slept and was woken */
  uint64_t reserved5[3 + 16];
};

/// The ready bitmap of one home engine: app sets bit `endpoint` when it has filled a TX ring, engine clears it.
struct mn_ready {
  uint64_t bits[MN_CHANNEL_ENDPOINTS_MAX / 64];
  uint64_t reserved[4];
};

/// Heads a channel; struct mn_ready [MN_ENGINES_MAX] follows at MN_CHANNEL_READY.
struct mn_channel {
  uint32_t magic, version;
  uint64_t size; /* of the mapping, bytes */
  uint32_t identifier;
  uint32_t endpoint_capacity;
  uint32_t engine_count;
  uint32_t tx_capacity, rx_capacity; /* bytes of a ring's data, powers of two */
  uint32_t damaged;                  /* engine: 1 after a lie was found; every endpoint is dead */
  uint64_t token;                    /* proves on another connection (after fork) that the sender maps this channel */
};

#define MN_CHANNEL_READY 1024u
#define MN_CHANNEL_HEADER 4096u /* endpoint blocks follow from here */

MN_HOT static inline uint64_t mn_ring_stride(uint64_t capacity) { return sizeof(struct mn_ring) + capacity; }

MN_HOT static inline uint64_t mn_endpoint_offset(uint32_t index) {
  return MN_CHANNEL_HEADER + (uint64_t)index * sizeof(struct mn_endpoint);
}

/// Where the rings of endpoint `index` start: its TX ring, then one RX ring per engine. Page-aligned.
MN_HOT static inline uint64_t mn_rings_offset(uint32_t index, uint32_t endpoint_capacity, uint32_t engine_count,
                                       uint32_t tx_capacity, uint32_t rx_capacity) {
  uint64_t first = (mn_endpoint_offset(endpoint_capacity) + (MN_PAGE - 1)) & ~(uint64_t)(MN_PAGE - 1);
  uint64_t stride = mn_ring_stride(tx_capacity) + (uint64_t)engine_count * mn_ring_stride(rx_capacity);
  stride = (stride + (MN_PAGE - 1)) & ~(uint64_t)(MN_PAGE - 1);
  return first + index * stride;
}

MN_HOT static inline uint64_t mn_channel_size(uint32_t endpoint_capacity, uint32_t engine_count, uint32_t tx_capacity,
                                       uint32_t rx_capacity) {
  return mn_rings_offset(endpoint_capacity, endpoint_capacity, engine_count, tx_capacity, rx_capacity);
}

// ---------------------------------------------------------------------------------------------- captures

#define MN_CAPTURE_INTERFACES 17u /* the ports of an engine, then its local deliveries */
#define MN_CAPTURE_DATA 4194304u  /* bytes of the ring, a power of two */
enum { MN_CAPTURE_LOCAL = 16, MN_CAPTURE_IN = 1, MN_CAPTURE_OUT = 2 };

/// What one engine copies of its traffic while somebody captures; MN_CAPTURE_DATA bytes of records follow at MN_PAGE.
/// The engine goes by its own copies of `tail` and the counters; what the reader writes to `head` it checks.
struct mn_capture {
  uint32_t magic, version;
  uint32_t snap; /* bytes of a frame that are kept */
  uint32_t interface_count; /* ports of the engine */
  uint64_t reserved0[6];
  uint64_t tail; /* engine: free-running, a multiple of 32 */
  uint64_t reserved1[7];
  uint64_t head; /* reader */
  uint64_t reserved2[7];
  uint64_t seen[MN_CAPTURE_INTERFACES];    /* engine: frames that the filter let through */
  uint64_t dropped[MN_CAPTURE_INTERFACES]; /* engine: those of them that found the ring full */
};

/// Before each frame's bytes, which may wrap; padded to a multiple of 32.
struct mn_capture_record {
  uint32_t length;   /* bytes that are kept */
  uint32_t original; /* bytes of the frame */
  uint64_t timestamp; /* CLOCK_REALTIME, ns */
  uint16_t interface, direction;
  uint32_t reserved;
  uint64_t reserved1;
};

// ---------------------------------------------------------------------------------------------- the control socket

/// SOCK_SEQPACKET; one request, one reply, in order, except where "no reply" is said.
enum {
  MN_REQUEST_HELLO = 1,    /* program -> reply + directory fd (read-only) */
  MN_REQUEST_CHANNEL = 2,  /* -> reply{channel,size} + channel memfd + one doorbell eventfd per engine */
  /// channel + shadow fd -> reply{channel,endpoint,engine,netns,local...} + the endpoint's eventfd. Where another process has the
  /// socket on Machnet, the endpoint is that one, with a reference more, in that process's channel: size is set, and its memfd and
  /// doorbells follow.
  MN_REQUEST_OPEN = 3,
  MN_REQUEST_CONNECT = 4,  /* channel, endpoint, token, peer (port 0: disconnect) + shadow fd -> reply{local...} */
  MN_REQUEST_CLOSE = 5,    /* channel, endpoint, token; no reply. From who has joined: always; else from the last who holds it */
  MN_REQUEST_STATUS = 6,   /* -> reply{size} + memfd with JSON text, perhaps after replies to later requests */
  MN_REQUEST_RELOAD = 7,   /* -> reply{status,size} + memfd with a message: what is wrong when status is not 0, else perhaps a note */
  MN_REQUEST_CAPTURE = 8,  /* peer, peer_port (0: any), snap -> one memfd with struct mn_capture per engine; ends with the connection */
};

enum {
  MN_OPEN_PEER = 1,        /* peer/peer_port are set: the kernel could not connect the shadow itself */
  MN_OPEN_REUSEPORT = 2,
  MN_OPEN_KNOWN = 8, /* only if the socket has had an endpoint, and datagrams of that are left; else ENOENT */
  MN_CLOSE_KEEPING = 4, /* the block stays the application's until it closes it again, or the channel ends */
  /// with KEEPING: a descriptor of the socket goes to another process now. Who shows it to the daemon (OPEN) joins; once all that went
  /// have been shown, the endpoint is LIVE again.
  MN_CLOSE_PASSING = 32,
  MN_CLOSE_LEAVING = 16, /* with KEEPING, before an exec: what is unread is for whoever opens the socket next, if another process does */
};

struct mn_request {
  uint32_t magic;
  uint16_t version, kind;
  uint32_t sequence;
  uint32_t channel, endpoint;
  uint32_t flags;
  uint64_t token;
  struct mn_address peer;
  uint16_t peer_port; /* host byte order */
  uint16_t snap; /* CAPTURE: bytes of a frame to keep */
  uint16_t reserved[2];
  uint64_t deadline; /* CHANNEL, OPEN: CLOCK_MONOTONIC ns when the asker has given up; 0: never */
  char program[MN_PROGRAM_MAX];
};

struct mn_reply {
  uint32_t magic;
  uint16_t version, kind;
  uint32_t sequence;
  int32_t status; /* 0, or an errno value */
  uint32_t channel, endpoint;
  uint32_t engine; /* home engine of the endpoint */
  uint32_t netns;  /* index for mn_local_key */
  uint64_t size;
  struct mn_address local; /* as granted: the shadow's own name */
  uint16_t local_port;     /* host byte order */
  uint16_t fd_count;
  uint32_t reserved;
};

/// Offsets of the words that are loaded and stored atomically.
enum {
  MN_OFFSET_DIRECTORY_STOPPING = offsetof(struct mn_directory, stopping),
  MN_OFFSET_DIRECTORY_DEPARTURES = offsetof(struct mn_directory, departures),
  MN_OFFSET_RULE_PROGRAM = offsetof(struct mn_rule, program),
  MN_OFFSET_CHANNEL_DAMAGED = offsetof(struct mn_channel, damaged),
  MN_OFFSET_ENDPOINT_STATE = offsetof(struct mn_endpoint, state),
  MN_OFFSET_ENDPOINT_ERROR = offsetof(struct mn_endpoint, error),
  MN_OFFSET_ENDPOINT_RX_DROPS = offsetof(struct mn_endpoint, rx_drops),
  MN_OFFSET_ENDPOINT_RX_WAIT = offsetof(struct mn_endpoint, rx_wait),
  MN_OFFSET_ENDPOINT_TX_WAIT = offsetof(struct mn_endpoint, tx_wait),
  MN_OFFSET_ENDPOINT_RECEIVE_LIMIT = offsetof(struct mn_endpoint, receive_limit),
  MN_OFFSET_ENDPOINT_RECEIVE_TOGETHER = offsetof(struct mn_endpoint, receive_together),
  MN_OFFSET_RING_MARK = offsetof(struct mn_ring, mark),
  MN_OFFSET_RING_CHARGE_TAKEN = offsetof(struct mn_ring, charge_taken),
  MN_OFFSET_ENDPOINT_TX_LOCK = offsetof(struct mn_endpoint, tx_lock),
  MN_OFFSET_ENDPOINT_TX_TAIL = offsetof(struct mn_endpoint, tx_tail),
  MN_OFFSET_ENDPOINT_RX_LOCK = offsetof(struct mn_endpoint, rx_lock),
  MN_OFFSET_ENDPOINT_FLAGS = offsetof(struct mn_endpoint, flags),
  MN_OFFSET_ENDPOINT_PEER_ADDRESS = offsetof(struct mn_endpoint, peer) + 12,
  MN_OFFSET_ENDPOINT_PEER_PORT = offsetof(struct mn_endpoint, peer_port),
  MN_OFFSET_ENDPOINT_REFERENCES = offsetof(struct mn_endpoint, references),
};

_Static_assert(sizeof(struct mn_rule) == 96, "rule");
_Static_assert(sizeof(struct mn_record) == MN_RECORD_HEADER, "record header is one cache line");
_Static_assert(sizeof(struct mn_ring) == 128, "ring header is two cache lines");
_Static_assert(sizeof(struct mn_endpoint) == 512, "endpoint block");
_Static_assert(offsetof(struct mn_endpoint, rx_wait) == 64, "endpoint lines");
_Static_assert(offsetof(struct mn_endpoint, flags) == 256, "endpoint lines");
_Static_assert(offsetof(struct mn_endpoint, peer_port) % 8 == 0 && offsetof(struct mn_endpoint, tos_set) % 8 == 7,
               "peer_port to tos_set are one word");
_Static_assert(offsetof(struct mn_endpoint, kernel_tx_datagrams) == 320, "endpoint lines");
_Static_assert(sizeof(struct mn_ready) == 64, "ready line");
_Static_assert(sizeof(struct mn_channel) <= MN_CHANNEL_READY, "channel header");
_Static_assert(MN_CHANNEL_READY + MN_ENGINES_MAX * sizeof(struct mn_ready) <= MN_CHANNEL_HEADER, "channel page");
_Static_assert(sizeof(struct mn_directory) <= MN_DIRECTORY_RULES_GENERATION, "directory header");
_Static_assert(MN_ENGINES_MAX * sizeof(struct mn_engine_word) <= 4096, "directory engines");
_Static_assert(MN_INTERFACES_MAX * sizeof(struct mn_interface) <= 4096, "directory interfaces");
_Static_assert(MN_HOST_ADDRESSES_MAX * sizeof(uint32_t) <= 4096, "directory host addresses");
_Static_assert(MN_DIRECTORY_LOCAL == MN_DIRECTORY_RULES + 2 * MN_RULES_MAX * sizeof(struct mn_rule), "directory rules");
_Static_assert(MN_DIRECTORY_SIZE == MN_DIRECTORY_LOCAL + MN_LOCAL_SLOTS * 8, "directory local endpoints");
_Static_assert(sizeof(struct mn_engine_word) == 64, "engine word");
_Static_assert(sizeof(struct mn_capture_record) == 32, "capture record");
_Static_assert(sizeof(struct mn_capture) <= MN_PAGE && offsetof(struct mn_capture, tail) == 64, "capture header");
_Static_assert(offsetof(struct mn_capture, head) == 128 && offsetof(struct mn_capture, seen) == 192, "capture header");
_Static_assert(sizeof(struct mn_request) == 128, "request");
_Static_assert(sizeof(struct mn_reply) == 64, "reply");

#endif
