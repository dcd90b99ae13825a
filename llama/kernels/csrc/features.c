/* What this CPU can do, for the choice of a level, and the version of the libraries. Runs on any CPU. */

#include "abi.h"

#include <stdint.h>

/* Bits of `llama_features`; as Feature in levels.py. */
enum {
    AVX2 = 1 << 0,   /* with FMA, F16C, BMI1, BMI2, LZCNT, MOVBE: x86-64-v3 */
    AVX512 = 1 << 1, /* F, BW, CD, DQ, VL: x86-64-v4 */
    AVX_VNNI = 1 << 2,
    AVX512_VNNI = 1 << 3,
    AVX512_BF16 = 1 << 4,
    NEON = 1 << 5,
    DOTPROD = 1 << 6,
    BF16_I8MM = 1 << 7,
};

#if defined(__x86_64__)

#include <cpuid.h>

static int has(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

/* Which registers the system keeps when it switches threads. */
static uint32_t kept_registers(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static long features(void) {
    enum { FMA = 1 << 12, MOVBE = 1 << 22, XSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29, LZCNT = 1 << 5 };
    enum { BMI1 = 1 << 3, AVX2_BIT = 1 << 5, BMI2 = 1 << 8, F = 1 << 16, DQ = 1 << 17, CD = 1 << 28, BW = 1 << 30 };
    enum { YMM = 6, ZMM = 0xe6, VNNI = 1 << 11 };
    const uint32_t vl = 1u << 31;
    uint32_t a, b, c, d, found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, FMA | MOVBE | XSAVE | AVX | F16C)) return 0;
    const uint32_t kept = kept_registers();
    if (!has(kept, YMM) || !__get_cpuid(0x80000001, &a, &b, &c, &d) || !has(c, LZCNT)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has(b, BMI1 | AVX2_BIT | BMI2)) return 0;
    const uint32_t wide = has(kept, ZMM) && has(b, F | DQ | CD | BW) && has(b, vl), vnni = has(c, VNNI);
    const uint32_t more = __get_cpuid_count(7, 1, &a, &b, &c, &d) ? a : 0;
    found = AVX2 | (has(more, 1 << 4) ? AVX_VNNI : 0);
    if (wide) found |= AVX512 | (vnni ? AVX512_VNNI : 0) | (has(more, 1 << 5) ? AVX512_BF16 : 0);
    return found;
}

#elif defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>

static long features(void) {
    const unsigned long one = getauxval(16), two = getauxval(26); /* AT_HWCAP, AT_HWCAP2 */
    const int dots = one >> 20 & 1, i8mm = two >> 13 & 1, bf16 = two >> 14 & 1;
    return NEON | (dots ? DOTPROD : 0) | (dots && i8mm && bf16 ? BF16_I8MM : 0);
}

#elif defined(__aarch64__) && defined(__APPLE__)

#include <sys/sysctl.h>

static int has(const char *name) {
    int value = 0;
    size_t size = sizeof(value);
    return !sysctlbyname(name, &value, &size, 0, 0) && value;
}

static long features(void) {
    const int dots = has("hw.optional.arm.FEAT_DotProd");
    const int both = has("hw.optional.arm.FEAT_BF16") && has("hw.optional.arm.FEAT_I8MM");
    return NEON | (dots ? DOTPROD : 0) | (dots && both ? BF16_I8MM : 0);
}

#else

static long features(void) { return 0; }

#endif

EXPORT long llama_features(void) { return features(); }
