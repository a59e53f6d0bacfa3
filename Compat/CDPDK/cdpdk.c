#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "machnet_dpdk.h"

#include <errno.h>
#include <pthread.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <stdio.h>
#include <string.h>

/// Standard error, without the words about what was chosen: single processes have nobody to share devices with.
static ssize_t write_log(void *cookie, const char *text, size_t size) {
  (void)cookie;
  if (memmem(text, size, "mp action", 9) == NULL) (void)fwrite(text, 1, size, stderr);
  return (ssize_t)size;
}

int mn_dpdk_start(int count, char **arguments) {
  cpu_set_t before;
  const int known = pthread_getaffinity_np(pthread_self(), sizeof before, &before) == 0;
  FILE *log = fopencookie(NULL, "w", (cookie_io_functions_t){.write = write_log});
  if (log == NULL || setvbuf(log, NULL, _IOLBF, 0) != 0 || rte_openlog_stream(log) != 0) return -EIO;
  const int result = rte_eal_init(count, arguments);
  const int error = rte_errno;
  if (known) (void)pthread_setaffinity_np(pthread_self(), sizeof before, &before);
  return result < 0 ? -(error > 0 ? error : EIO) : 0;
}

int mn_dpdk_stop(void) { return rte_eal_cleanup(); }

bool mn_dpdk_may_use_cpu(unsigned int cpu) {
  cpu_set_t set;
  return cpu < CPU_SETSIZE && pthread_getaffinity_np(pthread_self(), sizeof set, &set) == 0 && CPU_ISSET(cpu, &set);
}

int mn_dpdk_adopt_thread(void) {
  if (rte_lcore_id() != LCORE_ID_ANY) return 0;
  return rte_thread_register() == 0 ? 0 : -rte_errno;
}

void mn_dpdk_release_thread(void) { rte_thread_unregister(); }

int mn_dpdk_probe(const char *device) { return rte_dev_probe(device); }

int mn_dpdk_port(const char *name) {
  uint16_t port;
  const int result = rte_eth_dev_get_port_by_name(name, &port);
  return result < 0 ? result : port;
}

int mn_dpdk_limits(uint16_t port, struct mn_dpdk_limits *limits) {
  struct rte_eth_dev_info info;
  const int result = rte_eth_dev_info_get(port, &info);
  if (result < 0) return result;
  uint16_t mtu = 0;
  (void)rte_eth_dev_get_mtu(port, &mtu);
  *limits = (struct mn_dpdk_limits){
      .rx_queues = info.max_rx_queues,
      .tx_queues = info.max_tx_queues,
      .mtu_min = info.min_mtu,
      .mtu_max = info.max_mtu,
      .mtu = mtu,
      .socket = rte_eth_dev_socket_id(port),
  };
  return 0;
}

int mn_dpdk_configure(uint16_t port, uint16_t queues, uint16_t descriptors, uint16_t mtu, void *pool, bool interrupts) {
  struct rte_eth_dev_info info;
  int result = rte_eth_dev_info_get(port, &info);
  if (result < 0) return result;
  struct rte_eth_conf conf;
  memset(&conf, 0, sizeof conf);
  conf.rxmode.mtu = mtu;
  conf.intr_conf.rxq = interrupts;
  if (queues > 1 && info.flow_type_rss_offloads != 0) {
    // Some drivers spread frames only when asked to; how, stays the device's own (default key and table).
    conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
    conf.rx_adv_conf.rss_conf.rss_hf =
        info.flow_type_rss_offloads & (RTE_ETH_RSS_IPV4 | RTE_ETH_RSS_NONFRAG_IPV4_UDP);
  }
  result = rte_eth_dev_configure(port, queues, queues, &conf);
  if (result < 0) return result;
  uint16_t rx = descriptors, tx = descriptors;
  result = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rx, &tx);
  if (result < 0) return result;
  const unsigned int socket = (unsigned int)rte_eth_dev_socket_id(port);
  for (uint16_t queue = 0; queue < queues; queue++) {
    result = rte_eth_rx_queue_setup(port, queue, rx, socket, NULL, (struct rte_mempool *)pool);
    if (result < 0) return result;
    result = rte_eth_tx_queue_setup(port, queue, tx, socket, NULL);
    if (result < 0) return result;
  }
  return 0;
}

int mn_dpdk_port_start(uint16_t port) { return rte_eth_dev_start(port); }

void mn_dpdk_port_stop(uint16_t port) { (void)rte_eth_dev_stop(port); }

void mn_dpdk_port_close(uint16_t port) {
  struct rte_eth_dev_info info;
  const int known = rte_eth_dev_info_get(port, &info) == 0;
  // Removing the device closes its port; a device that cannot be removed is closed where it is.
  if (!known || rte_dev_remove(info.device) != 0) (void)rte_eth_dev_close(port);
}

int mn_dpdk_mac(uint16_t port, uint64_t *mac) {
  struct rte_ether_addr address;
  const int result = rte_eth_macaddr_get(port, &address);
  if (result < 0) return result;
  *mac = 0;
  for (int octet = 0; octet < RTE_ETHER_ADDR_LEN; octet++) *mac = *mac << 8 | address.addr_bytes[octet];
  return 0;
}

int mn_dpdk_mtu(uint16_t port) {
  uint16_t mtu;
  const int result = rte_eth_dev_get_mtu(port, &mtu);
  return result < 0 ? result : mtu;
}

bool mn_dpdk_link_is_up(uint16_t port) {
  struct rte_eth_link link;
  memset(&link, 0, sizeof link);
  return rte_eth_link_get_nowait(port, &link) == 0 && link.link_status == RTE_ETH_LINK_UP;
}

int mn_dpdk_stats(uint16_t port, struct mn_dpdk_stats *stats) {
  struct rte_eth_stats all;
  const int result = rte_eth_stats_get(port, &all);
  if (result < 0) return result;
  *stats = (struct mn_dpdk_stats){
      .rx_packets = all.ipackets,
      .tx_packets = all.opackets,
      .rx_bytes = all.ibytes,
      .tx_bytes = all.obytes,
      .rx_missed = all.imissed,
      .rx_errors = all.ierrors,
      .rx_no_packet = all.rx_nombuf,
      .tx_errors = all.oerrors,
  };
  return 0;
}

int mn_dpdk_interrupt(uint16_t port, uint16_t queue) {
  // Most virtual devices have none, and the library would complain about each of them.
  const int type = rte_log_register("lib.ethdev");
  const int level = rte_log_get_level(type);
  (void)rte_log_set_level(type, RTE_LOG_CRIT);
  const int fd = rte_eth_dev_rx_intr_ctl_q_get_fd(port, queue);
  (void)rte_log_set_level(type, level < 0 ? RTE_LOG_WARNING : (uint32_t)level);
  return fd;
}

void *mn_dpdk_pool(const char *name, uint32_t count, uint32_t size, int socket, int *error) {
  const unsigned int cache = count >= 4 * RTE_MEMPOOL_CACHE_MAX_SIZE ? 256 : 0;
  struct rte_mempool *pool =
      rte_pktmbuf_pool_create(name, count, cache, 0, (uint16_t)(size + RTE_PKTMBUF_HEADROOM), socket);
  if (pool == NULL) *error = rte_errno;
  return pool;
}

void mn_dpdk_pool_free(void *pool) { rte_mempool_free((struct rte_mempool *)pool); }

uint32_t mn_dpdk_pool_available(const void *pool) { return rte_mempool_avail_count((const struct rte_mempool *)pool); }

int mn_dpdk_arm(uint16_t port, uint16_t queue) { return rte_eth_dev_rx_intr_enable(port, queue); }

int mn_dpdk_disarm(uint16_t port, uint16_t queue) { return rte_eth_dev_rx_intr_disable(port, queue); }
