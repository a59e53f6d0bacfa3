// What the control plane asks of Linux and Swift cannot spell: control messages, seals, socket options. Thin, no policy.
// Functions that can fail return a negative errno value, as the kernel does, and never look at errno elsewhere.
#ifndef MACHNET_CONTROL_H
#define MACHNET_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// ---------------------------------------------------------------------------------------------- memory

/// A memfd of `size` bytes that may be sealed; close-on-exec. Returns the descriptor.
///
/// With `huge`, of huge pages of the default size, of which `size` must be a multiple; mapping it reserves them all.
int mnc_memfd(const char *name, uint64_t size, bool huge);

/// Bytes of a huge page of the default size, and how many of them nobody has reserved; 0 where there are none.
uint64_t mnc_huge_page_size(uint64_t *available);

/// Neither shrinks nor grows any more, and the seals are final.
int mnc_seal_size(int fd);

/// As above; besides, nobody maps it writable from now on. Existing writable mappings stay.
int mnc_seal_future_write(int fd);

/// As above, but nobody has it mapped writable, and it never changes again.
int mnc_seal_write(int fd);

/// The same memory behind a descriptor that is open for reading only.
int mnc_reopen_read_only(int fd);

/// A mapping of `size` bytes, NULL when there is none to be had (then *error is the errno value).
void *mnc_map(int fd, uint64_t size, bool writable, int *error);

/// Gives the pages that lie wholly inside back to the kernel; they read as zeros afterwards.
int mnc_punch_hole(int fd, uint64_t offset, uint64_t length);

// ---------------------------------------------------------------------------------------------- the control socket

/// What the kernel says about the process at the other end, when it connected.
struct mnc_peer {
  int32_t pid; /* 0: of a PID namespace that we do not see */
  uint32_t uid;
  uint32_t gid;
};

/// A SOCK_SEQPACKET socket bound to `path` with these permissions and listening. `gid` -1: the process's own.
int mnc_listen(const char *path, uint32_t mode, uint32_t gid);

/// A connection to the daemon at `path`. Blocking, close-on-exec.
int mnc_connect(const char *path);

/// The next connection, non-blocking and close-on-exec; -EAGAIN when there is none.
int mnc_accept(int listener, struct mnc_peer *peer);
/// Whether the process that connected was in a group then, by its gid or among its supplementary groups (SO_PEERGROUPS).
bool mnc_peer_is_in_group(int fd, const struct mnc_peer *peer, uint32_t gid);

#define MNC_DESCRIPTORS_MAX 32
/// As many as one message can carry (SCM_MAX_FD, unix(7)).
#define MNC_DESCRIPTORS_SENT_MAX 253

/// Receives one message and the descriptors that came with it (close-on-exec; surplus ones are closed).
///
/// Returns the message's true length, which is larger than `capacity` when it was cut; 0: the other side hung up.
/// *count is the number of descriptors stored; *cut is set when some were lost.
int64_t mnc_receive(int fd, void *data, size_t capacity, int *descriptors, int limit, int *count, bool *cut, bool wait);

/// Sends one message with descriptors. Never blocks: -EAGAIN when the other side does not read. No SIGPIPE.
int64_t mnc_send(int fd, const void *data, size_t length, const int *descriptors, int count);

// ---------------------------------------------------------------------------------------------- sockets

/// What the kernel says about a socket. Addresses are 16 bytes in network order, IPv4 in its v4-mapped form.
struct mnc_socket {
  bool is_udp; /* SOCK_DGRAM of protocol UDP */
  bool is_v6, only_v6, reuse_port, reuse_address;
  bool connected;
  uint64_t cookie;       /* SO_COOKIE: unique among all sockets since boot */
  uint64_t netns_cookie; /* SO_NETNS_COOKIE: of its network namespace */
  uint64_t inode;        /* as /proc/PID/fd names it: socket:[INODE]; filled whatever else fails */
  uint32_t local[4], peer[4];
  uint16_t local_port, peer_port; /* host byte order; 0: none */
};

/// -ENOTSOCK for what is no socket; -EAFNOSUPPORT for what is not of the internet families.
int mnc_inspect_socket(int fd, struct mnc_socket *socket);

/// The inode of the socket that `fd` is; 0: it is none.
uint64_t mnc_inode(int fd);

/// Whether a close of `fd` does not wait for anybody: that of a UDP socket.
bool mnc_closes_at_once(int fd);

/// The protocol of the socket that a path under /proc/PID/fd leads to, as the kernel names it (UDP, UDPv6, TCP, UNIX...),
/// with its NUL. Negative: it is no socket, or not for us to see.
int mnc_socket_protocol(const char *path, char *name, size_t size);

/// What another process's UDP socket wants of the kernel that no ring can give (`Socket.isKernelsAlone` in the shim): the name of
/// an option in `name`. 0: found one; -ENOENT: there is none; else the socket is not for us to see.
int mnc_kernel_option(int pid, int fd, char *name, size_t size);

/// SO_NETNS_COOKIE of the caller's network namespace. -ENOPROTOOPT before Linux 5.14.
int mnc_own_netns_cookie(uint64_t *cookie);

/// SO_COOKIE of every bound UDP socket of the caller's network namespace (sock_diag(7)), at most `limit` of them. Returns how many
/// there are, which may be more than `limit`; negative: the kernel does not tell (no udp_diag).
int mnc_udp_cookies(uint64_t *cookies, int limit);

/// The IPv4 addresses of the caller's network namespace that are up, host byte order. Returns how many were stored.
int mnc_host_addresses(uint32_t *addresses, int limit);

// ---------------------------------------------------------------------------------------------- the process

/// A descriptor that becomes readable on SIGHUP, SIGTERM and SIGINT, which the calling thread (and those that it
/// makes from now on) no longer handles.
int mnc_signal_descriptor(void);

/// The next such signal's number, or -EAGAIN.
int mnc_next_signal(int fd);

/// Raises RLIMIT_NOFILE to its hard limit; returns 0 and stores the limit.
int mnc_raise_descriptor_limit(uint64_t *limit);

/// Tells a service manager (sd_notify(3)) at `path` ('@': abstract). Errors are for it to notice.
int mnc_notify(const char *path, const char *text);

/// Stores up to `limit` numbers of CPUs that the process may run on; returns how many.
int mnc_allowed_cpus(int *cpus, int limit);

/// Names the calling thread (at most 15 bytes).
int mnc_name_thread(const char *name);

/// The id of a group, or -ENOENT.
int64_t mnc_group_id(const char *name);

/// `count` bytes of the kernel's randomness.
int mnc_random(void *data, size_t count);

/// Watches `fd` for input in an epoll set under a name of the caller's choice; 0 or -errno.
int mnc_epoll_watch(int epoll, int fd, uint64_t name);

/// Waits up to `milliseconds` (-1: for ever). Stores the names of descriptors with input or a hang-up and returns how
/// many; an interrupted wait is none.
int mnc_epoll_wait(int epoll, uint64_t *names, int limit, int milliseconds);

#endif
