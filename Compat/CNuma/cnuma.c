#include "machnet_numa.h"

#include <errno.h>
#include <numa.h>

bool mn_numa_is_available(void) { return numa_available() >= 0; }

int mn_numa_node_of_cpu(int cpu) { return mn_numa_is_available() ? numa_node_of_cpu(cpu) : -1; }

void mn_numa_prefer(int node) {
  if (!mn_numa_is_available()) return;
  if (node < 0 || node > numa_max_node()) {
    numa_set_localalloc();
  } else {
    numa_set_preferred(node);
  }
}

int mn_numa_run_on(int node) {
  if (!mn_numa_is_available()) return -ENOTSUP;
  return numa_run_on_node(node) == 0 ? 0 : -errno;
}
