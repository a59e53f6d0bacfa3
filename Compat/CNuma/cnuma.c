#include "machnet_numa.h"
