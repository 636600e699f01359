/* What the parts of the kernel share. */
#ifndef MODELGIT_KERNEL_H
#define MODELGIT_KERNEL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#define AVX2 __attribute__((target("avx2,popcnt")))
#include <immintrin.h>
#else
#define WIDE
#endif

/* Before a loop whose steps do not need one another's results, though the compiler cannot know it. */
#ifdef __clang__
#define APART _Pragma("clang loop vectorize(assume_safety)")
#else
#define APART _Pragma("GCC ivdep")
#endif

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* Calls `CALL(width, type)` for the element type of that width. */
#define FOR_WIDTH(CALL)                                                                                              \
  switch (width) {                                                                                                   \
  case 1: CALL(1, u8); break;                                                                                        \
  case 2: CALL(2, u16); break;                                                                                       \
  case 4: CALL(4, u32); break;                                                                                       \
  case 8: CALL(8, u64); break;                                                                                       \
  }

#endif
