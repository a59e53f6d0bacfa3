// libnuma for Swift. Every call is harmless on a machine, or in a container, without NUMA.
#ifndef MACHNET_NUMA_H
#define MACHNET_NUMA_H

#include <stdbool.h>

bool mn_numa_is_available(void);
/// Node of a CPU, or -1.
int mn_numa_node_of_cpu(int cpu);
/// The node that the calling thread's memory comes from as long as it has some; -1: whichever it runs on.
void mn_numa_prefer(int node);
/// Keeps the calling thread on the node's CPUs. A negated errno value where that cannot be.
int mn_numa_run_on(int node);

#endif
