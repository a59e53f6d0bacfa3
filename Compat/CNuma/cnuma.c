#include "machnet_numa.h"

#include <errno.h>
#include <numa.h>

int mn_numa_node_of_cpu(int cpu) {
  if (numa_available() < 0) return 0;
  int node = numa_node_of_cpu(cpu);
  return node < 0 ? 0 : node;
}

int mn_numa_prefer(int node) {
  if (node < 0 || numa_available() < 0) return 0;
  numa_set_preferred(node);
  return numa_run_on_node(node) < 0 ? -errno : 0;
}

void mn_numa_prefer_memory(int node) {
  if (node >= 0 && numa_available() >= 0) numa_set_preferred(node);
}
