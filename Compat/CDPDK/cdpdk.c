#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "machnet_dpdk.h"

#include <errno.h>
#include <glob.h>
#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_interrupts.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

// ------------------------------------------------------------------------------------------------------ start

int mn_dpdk_start(int argc, const char *const *argv) {
  // The EAL permutes and may rewrite its arguments: it gets an array of its own.
  char *copy[64];
  if (argc > 63) return -E2BIG;
  for (int index = 0; index < argc; index++) copy[index] = (char *)argv[index];
  copy[argc] = NULL;
  // The EAL pins the thread that starts it; ours has other work, and its own place.
  cpu_set_t affinity;
  int has_affinity = sched_getaffinity(0, sizeof affinity, &affinity) == 0;
  int status = rte_eal_init(argc, copy) < 0 ? -rte_errno : 0;
  if (has_affinity) (void)sched_setaffinity(0, sizeof affinity, &affinity);
  return status;
}

int mn_dpdk_first_cpu(void) {
  cpu_set_t affinity;
  if (sched_getaffinity(0, sizeof affinity, &affinity) != 0) return 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &affinity)) return cpu;
  return 0;
}

uint64_t mn_dpdk_hugepage_bytes_free(void) {
  uint64_t total = 0;
  glob_t found;
  if (glob("/sys/kernel/mm/hugepages/hugepages-*kB", 0, NULL, &found) != 0) return 0;
  for (size_t index = 0; index < found.gl_pathc; index++) {
    char path[256];
    unsigned long long kilobytes = 0, pages = 0;
    const char *name = strrchr(found.gl_pathv[index], '/');
    snprintf(path, sizeof path, "%s/free_hugepages", found.gl_pathv[index]);
    FILE *file = fopen(path, "re");
    if (file != NULL && name != NULL && sscanf(name, "/hugepages-%llukB", &kilobytes) == 1 &&
        fscanf(file, "%llu", &pages) == 1)
      total += kilobytes * 1024 * pages;
    if (file != NULL) fclose(file);
  }
  globfree(&found);
  return total;
}

static ssize_t log_write(void *cookie, const char *text, size_t length) {
  void (*sink)(const char *, size_t) = (void (*)(const char *, size_t))cookie;
  size_t visible = length;
  while (visible > 0 && text[visible - 1] == '\n') visible--;
  if (visible > 0) sink(text, visible);
  return (ssize_t)length;
}

int mn_dpdk_log_to(void (*sink)(const char *text, size_t length), int level) {
  FILE *stream = fopencookie((void *)sink, "w", (cookie_io_functions_t){.write = log_write});
  if (stream == NULL) return -ENOMEM;
  setvbuf(stream, NULL, _IOLBF, 1024);
  rte_log_set_global_level((uint32_t)level);
  return rte_openlog_stream(stream);
}

int mn_dpdk_register_thread(void) { return rte_thread_register() < 0 ? -rte_errno : 0; }

void mn_dpdk_unregister_thread(void) { rte_thread_unregister(); }

int mn_dpdk_error(void) { return rte_errno; }

// ------------------------------------------------------------------------------------------------------ ports

int mn_dpdk_attach(const char *device) {
  struct rte_dev_iterator iterator;
  int status = rte_dev_probe(device);
  if (status < 0) return status == -1 ? -ENODEV : status;
  uint16_t port;
  int found = -ENODEV;
  RTE_ETH_FOREACH_MATCHING_DEV(port, device, &iterator) {
    found = port;
    rte_eth_iterator_cleanup(&iterator);
    break;
  }
  return found;
}

int mn_dpdk_detach(uint16_t port) {
  struct rte_eth_dev_info info;
  int status = rte_eth_dev_info_get(port, &info);
  if (status < 0) return status;
  status = rte_eth_dev_close(port);
  if (status < 0) return status;
  return rte_dev_remove(info.device);
}

int mn_dpdk_port_describe(uint16_t port, struct mn_dpdk_port *description) {
  struct rte_eth_dev_info info;
  struct rte_ether_addr mac;
  memset(description, 0, sizeof *description);
  int status = rte_eth_dev_info_get(port, &info);
  if (status < 0) return status;
  status = rte_eth_macaddr_get(port, &mac);
  if (status < 0) return status;
  for (int index = 0; index < RTE_ETHER_ADDR_LEN; index++)
    description->mac = description->mac << 8 | mac.addr_bytes[index];
  uint16_t mtu = 0;
  description->mtu = rte_eth_dev_get_mtu(port, &mtu) == 0 ? mtu : RTE_ETHER_MTU;
  description->max_queues = RTE_MIN(info.max_rx_queues, info.max_tx_queues);
  description->descriptors = MN_DPDK_DESCRIPTORS_MAX;
  description->socket = rte_eth_dev_socket_id(port);
  return 0;
}

int mn_dpdk_port_start(uint16_t port, uint16_t queues, void *const *pools, uint32_t mtu,
                       struct mn_dpdk_port *description) {
  // Zero says: one plain queue mode, no spreading of ours, no offloads. What the driver does by itself is its own.
  struct rte_eth_conf conf;
  memset(&conf, 0, sizeof conf);
  conf.intr_conf.rxq = 1;
  int interrupts = 1;
  int status = rte_eth_dev_configure(port, queues, queues, &conf);
  if (status < 0) {
    conf.intr_conf.rxq = 0;
    interrupts = 0;
    status = rte_eth_dev_configure(port, queues, queues, &conf);
    if (status < 0) return status;
  }
  uint16_t rx = MN_DPDK_DESCRIPTORS_MAX, tx = MN_DPDK_DESCRIPTORS_MAX;
  status = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rx, &tx);
  if (status < 0) return status;
  if (mtu != 0) {
    uint16_t current = 0;
    // A driver that cannot be told is asked for no more than it has.
    if (rte_eth_dev_set_mtu(port, (uint16_t)mtu) < 0 &&
        (rte_eth_dev_get_mtu(port, &current) < 0 || current < mtu))
      return -EMSGSIZE;
  }
  unsigned socket = (unsigned)rte_eth_dev_socket_id(port);
  for (uint16_t queue = 0; queue < queues; queue++) {
    status = rte_eth_rx_queue_setup(port, queue, rx, socket, NULL, (struct rte_mempool *)pools[queue]);
    if (status < 0) return status;
    status = rte_eth_tx_queue_setup(port, queue, tx, socket, NULL);
    if (status < 0) return status;
  }
  status = rte_eth_dev_start(port);
  if (status < 0 && interrupts) {
    // Some drivers take the wish for interrupts and refuse it only here.
    conf.intr_conf.rxq = 0;
    interrupts = 0;
    status = rte_eth_dev_configure(port, queues, queues, &conf);
    for (uint16_t queue = 0; status >= 0 && queue < queues; queue++) {
      status = rte_eth_rx_queue_setup(port, queue, rx, socket, NULL, (struct rte_mempool *)pools[queue]);
      if (status >= 0) status = rte_eth_tx_queue_setup(port, queue, tx, socket, NULL);
    }
    if (status >= 0) status = rte_eth_dev_start(port);
  }
  if (status < 0) return status;
  status = mn_dpdk_port_describe(port, description);
  if (status < 0) return status;
  if (mtu != 0) description->mtu = mtu;
  description->descriptors = rx;
  description->has_rx_interrupt = interrupts;
  return 0;
}

int mn_dpdk_port_stop(uint16_t port) { return rte_eth_dev_stop(port); }

int mn_dpdk_port_is_up(uint16_t port) {
  struct rte_eth_link link;
  if (rte_eth_link_get_nowait(port, &link) < 0) return 0;
  return link.link_status == RTE_ETH_LINK_UP;
}

int mn_dpdk_interrupt_descriptor(uint16_t port, uint16_t queue) {
  int fd = rte_eth_dev_rx_intr_ctl_q_get_fd(port, queue);
  return fd < 0 ? -ENOTSUP : fd;
}

int mn_dpdk_interrupt_enable(uint16_t port, uint16_t queue) { return rte_eth_dev_rx_intr_enable(port, queue); }

int mn_dpdk_interrupt_disable(uint16_t port, uint16_t queue) { return rte_eth_dev_rx_intr_disable(port, queue); }

void *mn_dpdk_pool_make(const char *name, uint32_t count, uint16_t room, int32_t socket) {
  return rte_pktmbuf_pool_create(name, count, MN_DPDK_DESCRIPTORS_MAX, 0, (uint16_t)(RTE_PKTMBUF_HEADROOM + room),
                                 socket);
}

void mn_dpdk_pool_free(void *pool) { rte_mempool_free((struct rte_mempool *)pool); }

uint32_t mn_dpdk_pool_in_use(const void *pool) { return rte_mempool_in_use_count((const struct rte_mempool *)pool); }
