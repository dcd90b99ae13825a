/* Random quantized weights, for check_level.c. */

#ifndef CHECK_QUANTIZED_H
#define CHECK_QUANTIZED_H

#include "matrix.h"

/* A weight of a format (out, columns), in groups of `group`, its codes packed by llama_pack_blocks. Where `ordered`, x is
 * read in another order; always so where columns are not whole blocks. To be freed by free_quantized. */
matrix_t random_quantized(int format, long out, long columns, long group, int ordered);
void free_quantized(const matrix_t *m);

/* Products in all quantized formats against plain C, bit for bit -> a number for the results. */
uint64_t check_quantized(void);

#endif
