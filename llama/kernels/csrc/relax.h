/* A pause within a loop that waits for another thread or process, which leaves the core to its other half. */

#ifndef LLAMA_RELAX_H
#define LLAMA_RELAX_H

#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

#endif
