// NUMA placement by libnuma, for Swift. Where the machine has no NUMA, everything is node 0 and nothing needs doing.
#ifndef MACHNET_NUMA_H
#define MACHNET_NUMA_H

/// Node of a CPU; 0 where there is no NUMA.
int mn_numa_node_of_cpu(int cpu);
/// Lets the calling thread take memory from `node` first, and run on its CPUs only. -1: no wish. Returns 0, or a negated
/// errno value.
int mn_numa_prefer(int node);
/// The same for memory only: for a thread that is pinned.
void mn_numa_prefer_memory(int node);

#endif
