#include "machnet_abi.h"
#include "machnet_atomic.h"
