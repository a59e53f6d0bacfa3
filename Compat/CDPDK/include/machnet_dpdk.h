// DPDK for Swift: prefixed, no policy, the least common denominator of ethdev only (no rte_flow, no RSS keys or tables).
// Swift drops structs aligned above 16 bytes, so packets and pools are opaque here. Results are a value >= 0 or a
// negated errno value.
#ifndef MACHNET_DPDK_H
#define MACHNET_DPDK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

#define MN_DPDK_HOT __attribute__((swift_attr("@_noLocks"), swift_attr("@_noAllocation"), always_inline))

// MARK: The environment abstraction layer, once per process.

/// `arguments` as for a program's main; the layer keeps them. Leaves the calling thread on the CPUs where it was.
int mn_dpdk_start(int count, char **arguments);
int mn_dpdk_stop(void);
/// Whether the calling thread may run on that CPU.
bool mn_dpdk_may_use_cpu(unsigned int cpu);
/// Gives the calling thread a place in the pools' per-thread caches; without it every packet goes through a shared ring.
int mn_dpdk_adopt_thread(void);
void mn_dpdk_release_thread(void);
/// Adds a device: `net_DRIVER...[,key=value]...`.
int mn_dpdk_probe(const char *device);

// MARK: Ports

struct mn_dpdk_limits {
  uint16_t rx_queues;
  uint16_t tx_queues;
  uint16_t mtu_min;
  uint16_t mtu_max;
  uint16_t mtu;
  /// NUMA node of the device, or -1.
  int socket;
};

struct mn_dpdk_stats {
  uint64_t rx_packets, tx_packets, rx_bytes, tx_bytes;
  /// Packets lost because the queue was full, because they were broken, because the pool was empty.
  uint64_t rx_missed, rx_errors, rx_no_packet, tx_errors;
};

/// Number of the port on the device of that name (a virtual device's, or a PCI address).
int mn_dpdk_port(const char *name);
int mn_dpdk_limits(uint16_t port, struct mn_dpdk_limits *limits);
/// `queues` pairs of `descriptors` (adjusted to the driver's limits), all filled from `pool`; received frames are spread
/// over them as the device likes. `interrupts`: ask for receive interrupts; drivers without them refuse or ignore it.
int mn_dpdk_configure(uint16_t port, uint16_t queues, uint16_t descriptors, uint16_t mtu, void *pool, bool interrupts);
int mn_dpdk_port_start(uint16_t port);
void mn_dpdk_port_stop(uint16_t port);
/// Closes the port and removes its device.
void mn_dpdk_port_close(uint16_t port);
/// The port's Ethernet address in the 48 low bits, the first octet the highest.
int mn_dpdk_mac(uint16_t port, uint64_t *mac);
int mn_dpdk_mtu(uint16_t port);
bool mn_dpdk_link_is_up(uint16_t port) __attribute__((swift_attr("@_noLocks"), swift_attr("@_noAllocation")));
int mn_dpdk_stats(uint16_t port, struct mn_dpdk_stats *stats);
/// Descriptor of the queue's receive interrupt, or -1 where the driver has none.
int mn_dpdk_interrupt(uint16_t port, uint16_t queue);

/// A pool of `count` packets with room for `size` bytes behind the headroom, on a NUMA node (-1: any). NULL: `*error`.
void *mn_dpdk_pool(const char *name, uint32_t count, uint32_t size, int socket, int *error);
void mn_dpdk_pool_free(void *pool);
/// Packets that nobody holds.
uint32_t mn_dpdk_pool_available(const void *pool);

// MARK: The hot path

MN_DPDK_HOT static inline uint16_t mn_dpdk_receive(uint16_t port, uint16_t queue, void **packets, uint16_t count) {
  return rte_eth_rx_burst(port, queue, (struct rte_mbuf **)packets, count);
}

MN_DPDK_HOT static inline uint16_t mn_dpdk_transmit(uint16_t port, uint16_t queue, void **packets, uint16_t count) {
  return rte_eth_tx_burst(port, queue, (struct rte_mbuf **)packets, count);
}

/// All or nothing: 0, or -ENOENT when the pool holds fewer.
MN_DPDK_HOT static inline int mn_dpdk_allocate(void *pool, void **packets, uint16_t count) {
  return rte_pktmbuf_alloc_bulk((struct rte_mempool *)pool, (struct rte_mbuf **)packets, count);
}

MN_DPDK_HOT static inline void mn_dpdk_free(void **packets, uint16_t count) {
  rte_pktmbuf_free_bulk((struct rte_mbuf **)packets, count);
}

MN_DPDK_HOT static inline void *mn_dpdk_data(const void *packet) {
  return rte_pktmbuf_mtod((const struct rte_mbuf *)packet, void *);
}

/// Bytes of the frame in its first segment.
MN_DPDK_HOT static inline uint16_t mn_dpdk_length(const void *packet) {
  return ((const struct rte_mbuf *)packet)->data_len;
}

/// Bytes from the start of the data to the end of the buffer.
MN_DPDK_HOT static inline uint16_t mn_dpdk_capacity(const void *packet) {
  const struct rte_mbuf *m = (const struct rte_mbuf *)packet;
  return (uint16_t)(m->buf_len - m->data_off);
}

MN_DPDK_HOT static inline bool mn_dpdk_is_segmented(const void *packet) {
  return ((const struct rte_mbuf *)packet)->nb_segs != 1;
}

/// Moves all segments into the first: 0, or -1 where they do not fit.
MN_DPDK_HOT static inline int mn_dpdk_linearise(void *packet) {
  return rte_pktmbuf_linearize((struct rte_mbuf *)packet);
}

/// Makes the packet's only segment the `length` bytes at `data`. False: they do not lie in its buffer.
MN_DPDK_HOT static inline bool mn_dpdk_set_frame(void *packet, const void *data, uint32_t length) {
  struct rte_mbuf *m = (struct rte_mbuf *)packet;
  uint64_t offset = (uint64_t)((uintptr_t)data - (uintptr_t)m->buf_addr);
  if (offset > m->buf_len || length > m->buf_len - offset) return false;
  m->data_off = (uint16_t)offset;
  m->data_len = (uint16_t)length;
  m->pkt_len = length;
  m->ol_flags = 0;
  return true;
}

MN_DPDK_HOT static inline void mn_dpdk_prefetch(const void *data) { rte_prefetch0(data); }

/// System calls for most drivers: only before and after a sleep.
int mn_dpdk_arm(uint16_t port, uint16_t queue) __attribute__((swift_attr("@_noLocks"), swift_attr("@_noAllocation")));
int mn_dpdk_disarm(uint16_t port, uint16_t queue)
    __attribute__((swift_attr("@_noLocks"), swift_attr("@_noAllocation")));

/// Adds to a counter that one thread writes and others read.
MN_DPDK_HOT static inline void mn_dpdk_count(uint64_t *counter, uint64_t by) {
  __atomic_store_n(counter, *counter + by, __ATOMIC_RELAXED);
}
MN_DPDK_HOT static inline uint64_t mn_dpdk_counted(const uint64_t *counter) {
  return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

#endif
