#include "machnet_dpdk.h"
