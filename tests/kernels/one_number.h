/* For the checks in C: random numbers, and 16-bit floats one by one, without vectors. */

#ifndef ONE_NUMBER_H
#define ONE_NUMBER_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state = 1;

static uint32_t draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static float uniform(void) { return (float)(draw() & 0xffff) / 32768 - 1; }

static void check(int holds, const char *what) {
    if (holds) return;
    printf("%s does not hold\n", what);
    exit(1);
}

static float float_of(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint32_t bits_of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

static inline uint16_t nearest_bf16(float f) {
    const uint32_t bits = bits_of(f);
    return (uint16_t)(f != f ? (bits | 0x400000) >> 16 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Halves below 2^-14 are subnormal: multiples of 2^-24. */
static float half_of(uint16_t h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    /* A power of two by its bits: ldexpf takes an emulated CPU several times as long. */
    const float unit = float_of((uint32_t)(127 - 25 + (exponent ? exponent : 1)) << 23);
    const float size = (float)(fraction + (exponent ? 1024 : 0)) * unit;
    return exponent == 31 ? fraction ? NAN : h >> 15 ? -INFINITY : INFINITY : h >> 15 ? -size : size;
}

#endif
