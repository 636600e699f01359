/* Elements of each type as raw bytes, and their values. */
#ifndef MODELGIT_NUMBERS_H
#define MODELGIT_NUMBERS_H

#include "kernel.h"

enum { BF16, F16, F32, F64 };

static inline float as_float(u32 bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static inline u32 float_bits(float value) {
  u32 bits;
  memcpy(&bits, &value, 4);
  return bits;
}
static inline double as_double(u64 bits) {
  double value;
  memcpy(&value, &bits, 8);
  return value;
}
static inline u64 double_bits(double value) {
  u64 bits;
  memcpy(&bits, &value, 8);
  return bits;
}

/* Half precision: the exponent's bias is corrected by a product, which is exact, for subnormal numbers too. */
static inline float half_value(u16 half) {
  u32 magnitude = (u32)(half & 0x7FFF) << 13, sign = (u32)(half & 0x8000) << 16;
  u32 scaled = float_bits(as_float(magnitude) * 0x1p112f);
  u32 special = magnitude | 0x7F800000;
  return as_float(sign | ((half & 0x7C00) == 0x7C00 ? special : scaled));
}

/* Calls `MAKE(name, type of the bits, value of x[i])` for each type. */
#define FOR_VALUES(MAKE)                                                                                             \
  MAKE(BF16, u16, as_float((u32)x[i] << 16))                                                                         \
  MAKE(F16, u16, half_value(x[i]))                                                                                   \
  MAKE(F32, float, x[i])                                                                                             \
  MAKE(F64, double, x[i])

#define FOR_TYPE(CALL)                                                                                               \
  switch (type) {                                                                                                    \
  case BF16: CALL(BF16, u16); break;                                                                                 \
  case F16: CALL(F16, u16); break;                                                                                   \
  case F32: CALL(F32, float); break;                                                                                 \
  case F64: CALL(F64, double); break;                                                                                \
  }
static const size_t WIDTHS[] = {2, 2, 4, 8};

#define VALUES(NAME, T, VALUE)                                                                                       \
  WIDE static void widen_##NAME(const T *restrict x, size_t n, double *restrict to) {                                \
    for (size_t i = 0; i < n; i++) to[i] = (double)(VALUE);                                                          \
  }                                                                                                                  \
  WIDE static void minus_##NAME(const T *restrict x, const double *restrict from, size_t n, double *restrict to) {   \
    for (size_t i = 0; i < n; i++) to[i] = (double)(VALUE)-from[i];                                                  \
  }
FOR_VALUES(VALUES)
/* The values of n elements, less those of `from` if it is given. */
static void values(int type, const u8 *x, const double *from, size_t n, double *to) {
#define CALL(NAME, T) from ? minus_##NAME((const T *)x, from, n, to) : widen_##NAME((const T *)x, n, to)
  FOR_TYPE(CALL)
#undef CALL
}

#endif
