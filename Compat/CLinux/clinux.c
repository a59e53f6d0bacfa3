#include "machnet_linux.h"
