/* The version of a compiled library, in each of them. */

#ifndef LLAMA_ABI_H
#define LLAMA_ABI_H

#define EXPORT __attribute__((visibility("default")))

/* Raise it, here and in levels.py, with every change of a symbol, a signature, a structure or a layout in any of
 * these files. */
enum { ABI = 13 };

#endif
