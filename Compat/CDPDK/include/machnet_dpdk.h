// DPDK as Swift sees it: numbers, and mbufs and pools by opaque pointer (Swift drops C structs aligned above 16 bytes).
// The least common denominator of ethdev and nothing else: bursts, start, stop, MTU, MAC, link, rx interrupts.
// Results are a value >= 0, or a negated errno value.
#ifndef MACHNET_DPDK_H
#define MACHNET_DPDK_H

#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <stddef.h>
#include <stdint.h>

#define MN_DPDK_BURST 32
#define MN_DPDK_DESCRIPTORS_MAX 256

// ------------------------------------------------------------------------------------------------------ start

/// Starts the EAL with `argc` arguments (the program's name first). At most once per process.
int mn_dpdk_start(int argc, const char *const *argv);
/// The first CPU that the calling thread may run on.
int mn_dpdk_first_cpu(void);
/// Bytes in hugepages that nobody uses.
uint64_t mn_dpdk_hugepage_bytes_free(void);
/// Sends what DPDK logs (level 1...8, see rte_log.h; 5 is warning) to `sink`, a line at a time, instead of stdout and
/// syslog. Before the start. `sink` may be called by any thread of DPDK's.
int mn_dpdk_log_to(void (*sink)(const char *text, size_t length), int level);
/// Makes the calling thread one that DPDK knows, so that it has a cache of its own in packet pools.
int mn_dpdk_register_thread(void);
void mn_dpdk_unregister_thread(void);
/// Why the last call that does not say so itself has failed.
int mn_dpdk_error(void);

// ------------------------------------------------------------------------------------------------------ ports

/// Adds a device by PCI address or as a virtual device ("net_memif0,role=server"); returns its port.
int mn_dpdk_attach(const char *device);
int mn_dpdk_detach(uint16_t port);

struct mn_dpdk_port {
  uint64_t mac; /* in the 48 low bits */
  uint32_t mtu; /* of the IP layer, bytes */
  uint16_t max_queues;
  uint16_t descriptors; /* per queue, as granted */
  int32_t socket; /* NUMA node; -1: any */
  int32_t has_rx_interrupt;
};

int mn_dpdk_port_describe(uint16_t port, struct mn_dpdk_port *description);
/// Sets a stopped port up with `queues` rx and tx queues of at most 256 descriptors that take packets from `pools` (one
/// per queue), with whatever spreading the driver has by itself, and starts it. `mtu` 0 keeps the driver's.
int mn_dpdk_port_start(uint16_t port, uint16_t queues, void *const *pools, uint32_t mtu,
                       struct mn_dpdk_port *description);
int mn_dpdk_port_stop(uint16_t port);
int mn_dpdk_port_is_up(uint16_t port);

/// Descriptor that an rx interrupt makes readable, or a negated errno value.
int mn_dpdk_interrupt_descriptor(uint16_t port, uint16_t queue);
int mn_dpdk_interrupt_enable(uint16_t port, uint16_t queue);
int mn_dpdk_interrupt_disable(uint16_t port, uint16_t queue);

/// A pool of `count` packets with `room` bytes each for the frame, on NUMA node `socket` (-1: any); NULL: see
/// mn_dpdk_error.
void *mn_dpdk_pool_make(const char *name, uint32_t count, uint16_t room, int32_t socket);
void mn_dpdk_pool_free(void *pool);
uint32_t mn_dpdk_pool_in_use(const void *pool);

// ------------------------------------------------------------------------------------------------------ packets

static inline uint16_t mn_dpdk_receive(uint16_t port, uint16_t queue, void **packets, uint16_t count) {
  return rte_eth_rx_burst(port, queue, (struct rte_mbuf **)packets, count);
}

static inline uint16_t mn_dpdk_transmit(uint16_t port, uint16_t queue, void **packets, uint16_t count) {
  return rte_eth_tx_burst(port, queue, (struct rte_mbuf **)packets, count);
}

/// Takes all of `count` packets, or none.
static inline int mn_dpdk_allocate(void *pool, void **packets, uint16_t count) {
  return rte_pktmbuf_alloc_bulk((struct rte_mempool *)pool, (struct rte_mbuf **)packets, count);
}

static inline void mn_dpdk_free(void **packets, uint16_t count) {
  rte_pktmbuf_free_bulk((struct rte_mbuf **)packets, count);
}

static inline void *mn_dpdk_data(void *packet) { return rte_pktmbuf_mtod((struct rte_mbuf *)packet, void *); }

static inline uint32_t mn_dpdk_length(const void *packet) { return ((const struct rte_mbuf *)packet)->data_len; }

static inline uint16_t mn_dpdk_segments(const void *packet) { return ((const struct rte_mbuf *)packet)->nb_segs; }

/// Bytes from the start of the data to the end of the buffer.
static inline uint32_t mn_dpdk_capacity(const void *packet) {
  const struct rte_mbuf *mbuf = (const struct rte_mbuf *)packet;
  return (uint32_t)mbuf->buf_len - mbuf->data_off;
}

static inline void mn_dpdk_set_length(void *packet, uint32_t length) {
  struct rte_mbuf *mbuf = (struct rte_mbuf *)packet;
  mbuf->data_len = (uint16_t)length;
  mbuf->pkt_len = length;
}

#endif
