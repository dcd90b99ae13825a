/* Prints what csrc/features.c says of the CPU that runs this; compiled and run by test_levels.py, on emulated CPUs. */

#include <stdio.h>

long llama_features(void);

int main(void) {
    printf("%ld\n", llama_features());
    return 0;
}
