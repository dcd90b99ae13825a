/* Norms and rotary positions of single rows, also for the fused layers. norms.c documents them. */

#ifndef LLAMA_NORMS_H
#define LLAMA_NORMS_H

void norm_row(int dtype, const void *x, const void *weight, void *y, long n, float eps);
void rotate_row(int dtype, void *x, const float *table, long heads, long dim);

#endif
