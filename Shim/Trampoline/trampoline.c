#include "trampoline.h"
int mn_trampoline_probe(void){return 0;}
