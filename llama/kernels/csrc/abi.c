#include "abi.h"

EXPORT int llama_abi(void) { return ABI; }
