/* What csrc/vectors.h says of one level, against plain C; compiled and run by test_levels.py. */

#include "one_number.h"
#include "vectors.h"

static void check_conversions(void) {
    for (uint32_t h = 0; h < 0x10000; h++) {
        uint16_t one[LANES], back[LANES];
        for (int i = 0; i < LANES; i++) one[i] = (uint16_t)h;
        const vf half = widen_f16(one), brain = widen_bf16(one);
        const float exact = half_of((uint16_t)h);
        check(half[LANES - 1] == exact || (exact != exact && half[0] != half[0]), "half to float");
        check(bits_of(brain[LANES - 1]) == h << 16, "bfloat16 to float");
        narrow_f16(back, half);
        check(back[0] == h || exact != exact, "float to half");
    }
    for (long i = 0; i < 200000; i++) {
        vf v;
        for (int j = 0; j < LANES; j++) {
            /* Bits of any kind; subnormal numbers may become 0. */
            uint32_t bits = draw() << 1 ^ draw();
            if (!(bits & 0x7f800000)) bits = 0;
            if (i % 8 == 0) bits |= 0x7f800000;
            v[j] = float_of(bits);
        }
        uint16_t narrow[LANES];
        narrow_bf16(narrow, v);
        const vf same = rounded_bf16(v);
        for (int j = 0; j < LANES; j++) {
            check(narrow[j] == nearest_bf16(v[j]), "float to bfloat16");
            check(bits_of(same[j]) >> 16 == narrow[j], "bfloat16 as float");
            check(upper_bf16(v)[j] >> 16 == narrow[j], "the upper half of a float");
        }
    }
}

static void check_arithmetic(void) {
    for (long i = 0; i < 100000; i++) {
        vf a, b, c;
        for (int j = 0; j < LANES; j++) a[j] = uniform(), b[j] = uniform(), c[j] = uniform();
        const vf r = fma_of(a, b, c), e = exponential(a * 50 - 50);
        for (int j = 0; j < LANES; j++) {
            check(r[j] == fmaf(a[j], b[j], c[j]), "fma");
            const double x = (double)(a[j] * 50 - 50), exact = exp(x);
            check(x < -87 ? e[j] == 0 : fabs(e[j] - exact) <= 4e-7 * exact, "e^x");
        }
        vf part[VECTORS];
        float all[GROUP];
        for (int j = 0; j < GROUP; j++) all[j] = uniform();
        memcpy(part, all, sizeof(all));
        const float total = total_of(part);
        for (int n = 8; n; n /= 2)
            for (int j = 0; j < n; j++) all[j] += all[j + n];
        check(total == all[0], "the sum of 16 parts");
    }
    check(exponential(broadcast(-INFINITY))[0] == 0 && exponential(broadcast(0))[0] == 1, "e^x at its ends");
    const vf nan = exponential(broadcast(NAN));
    check(nan[0] != nan[0], "e^NaN");
}

/* The instruction rounds by rules of its own: to within a few units of the greatest number that it adds. */
static void check_pairs(void) {
    for (long i = 0; i < 100000; i++) {
        vu a, b;
        vf sum;
        for (int j = 0; j < LANES; j++) {
            a[j] = nearest_bf16(uniform()) | (uint32_t)nearest_bf16(uniform()) << 16;
            b[j] = nearest_bf16(uniform()) | (uint32_t)nearest_bf16(uniform()) << 16;
            sum[j] = uniform();
        }
        const vf r = dot_pairs(sum, a, b);
        for (int j = 0; j < LANES; j++) {
            const float a0 = float_of(a[j] << 16), b0 = float_of(b[j] << 16);
            const float a1 = float_of(a[j] & 0xffff0000u), b1 = float_of(b[j] & 0xffff0000u);
            const float plain = fmaf(a1, b1, fmaf(a0, b0, sum[j])), size = fabsf(sum[j]) + fabsf(a0 * b0) + fabsf(a1 * b1);
            check(DOTS ? fabsf(r[j] - plain) <= 0x1p-22f * size : r[j] == plain, "the product of pairs");
        }
    }
}

int main(void) {
    check_conversions();
    check_arithmetic();
    check_pairs();
    return 0;
}
