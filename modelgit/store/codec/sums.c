/* Weighted sums of raw weights: widened to float64, multiplied, added and divided one IEEE operation at a time, in the
 * order given, rounded once to nearest even. Compiled without contraction: no multiply-add is fused.
 *
 * `modelgit/store/codec/arithmetic.py` does the same in numpy: both must give the same bytes. */
#include "numbers.h"

#define BLOCK 256 /* elements worked on at once: their float64 stay in the first-level cache */

#define LOADS(NAME, T, VALUE)                                                                                        \
  WIDE static void times_##NAME(const T *restrict x, double c, size_t n, double *restrict to) {                      \
    for (size_t i = 0; i < n; i++) to[i] = (double)(VALUE)*c;                                                        \
  }                                                                                                                  \
  WIDE static void add_##NAME(const T *restrict x, double c, size_t n, double *restrict to) {                        \
    for (size_t i = 0; i < n; i++) to[i] += (double)(VALUE)*c;                                                       \
  }
FOR_VALUES(LOADS)

/* Float32 bits cut towards zero, last bit set where anything was cut off: rounding these again to a narrower type
 * equals one rounding (Boldo and Melquiond 2008, theorem 3). */
WIDE static void to_odd(const double *restrict x, size_t n, u32 *restrict bits) {
  for (size_t i = 0; i < n; i++) {
    float near = (float)x[i];
    u64 back = double_bits((double)near), value = double_bits(x[i]);
    u64 magnitude = back & 0x7FFFFFFFFFFFFFFFULL, wanted = value & 0x7FFFFFFFFFFFFFFFULL;
    u32 cut = (u32)((int64_t)magnitude > (int64_t)wanted), inexact = (u32)(back != value);
    bits[i] = (float_bits(near) - cut) | inexact;
  }
}
WIDE static void narrow_BF16(const double *restrict x, const u32 *restrict bits, size_t n, u16 *restrict to) {
  for (size_t i = 0; i < n; i++) {
    u32 v = bits[i];
    to[i] = x[i] != x[i] ? 0x7FC0 : (u16)((v + 0x7FFF + (v >> 16 & 1)) >> 16);
  }
}
WIDE static void narrow_F16(const double *restrict x, const u32 *restrict bits, size_t n, u16 *restrict to) {
  for (size_t i = 0; i < n; i++) {
    u32 v = bits[i] & 0x7FFFFFFF, sign = bits[i] >> 16 & 0x8000;
    u32 normal = (v - 0x38000000 + 0xFFF + (v >> 13 & 1)) >> 13;
    u32 small = float_bits(as_float(v) + 0.5f) - 0x3F000000; /* the sum rounds at the last place of subnormal halves */
    u32 half = v >= 0x47800000 ? 0x7C00 : v < 0x38800000 ? small : normal;
    to[i] = x[i] != x[i] ? 0x7E00 : (u16)(sign | half);
  }
}
WIDE static void narrow_F32(const double *restrict x, size_t n, u32 *restrict to) {
  for (size_t i = 0; i < n; i++) {
    u32 v = float_bits((float)x[i]);
    to[i] = x[i] != x[i] ? 0x7FC00000 : v;
  }
}
WIDE static void narrow_F64(const double *restrict x, size_t n, u64 *restrict to) {
  for (size_t i = 0; i < n; i++) {
    u64 v = double_bits(x[i]);
    to[i] = x[i] != x[i] ? 0x7FF8000000000000ULL : v;
  }
}
/* At once, by rounding the last 45 bits off the double, unless a value is too small for a normal number of the type: then
 * not zero comes back, and all is to be done as above. */
WIDE static u64 narrow_normal(const double *restrict x, size_t n, u16 *restrict to) {
  u64 small = 0;
  for (size_t i = 0; i < n; i++) {
    u64 v = double_bits(x[i]), size = v & 0x7FFFFFFFFFFFFFFFULL;
    u32 near = float_bits((float)as_double((v + 0xFFFFFFFFFFFULL + (v >> 45 & 1)) & ~0x1FFFFFFFFFFFULL));
    small |= (u64)((int64_t)size < 0x3810000000000000LL) & (u64)(size != 0);
    to[i] = x[i] != x[i] ? 0x7FC0 : (u16)(near >> 16);
  }
  return small;
}
static void narrow(int type, const double *x, size_t n, void *to) {
  u32 bits[BLOCK];
  if (type == BF16 && !narrow_normal(x, n, to)) return;
  if (type == F32) {
    narrow_F32(x, n, to);
  } else if (type == F64) {
    narrow_F64(x, n, to);
  } else {
    to_odd(x, n, bits);
    if (type == BF16) narrow_BF16(x, bits, n, to);
    else narrow_F16(x, bits, n, to);
  }
}

/* Division by a power of two is a product with its inverse, to the last bit, while that is a normal number. */
WIDE static void divide(const double *restrict x, double divisor, size_t n, double *restrict to) {
  u64 bits = double_bits(divisor), exponent = bits >> 52 & 0x7FF;
  double inverse = 1.0 / divisor;
  if ((bits & 0xFFFFFFFFFFFFFULL) == 0 && exponent > 1 && exponent < 2045)
    for (size_t i = 0; i < n; i++) to[i] = x[i] * inverse;
  else
    for (size_t i = 0; i < n; i++) to[i] = x[i] / divisor;
}

static void add(int type, const void *x, double c, size_t n, double *to, int first) {
#define CALL(NAME, T) first ? times_##NAME((const T *)x, c, n, to) : add_##NAME((const T *)x, c, n, to)
  FOR_TYPE(CALL)
#undef CALL
}

void modelgit_widen(int type, const void *x, size_t n, double *to) { values(type, x, NULL, n, to); }

/* Adds c[i] * x[i] for each of `count` inputs to `total`; with `first` it is overwritten by the first. */
void modelgit_accumulate(int type, size_t count, const u8 *const *x, const double *c, size_t n, double *total,
                         int first) {
  for (size_t i = 0; i < n; i += BLOCK) {
    size_t m = n - i < BLOCK ? n - i : BLOCK;
    for (size_t j = 0; j < count; j++) add(type, x[j] + i * WIDTHS[type], c[j], m, total + i, first && j == 0);
  }
}

/* total / divisor, rounded. */
void modelgit_finish(int type, const double *total, double divisor, size_t n, u8 *to) {
  double quotient[BLOCK];
  for (size_t i = 0; i < n; i += BLOCK) {
    size_t m = n - i < BLOCK ? n - i : BLOCK;
    divide(total + i, divisor, m, quotient), narrow(type, quotient, m, to + i * WIDTHS[type]);
  }
}

/* Both at once, with nothing in between but what is in the cache. For `modelgit_safely`. */
struct combination {
  const u8 *const *x;
  const double *c;
  u8 *to;
  size_t count, n;
  double divisor;
  int type;
};
void modelgit_combine(const struct combination *job) {
  double total[BLOCK];
  size_t width = WIDTHS[job->type];
  for (size_t i = 0; i < job->n; i += BLOCK) {
    size_t m = job->n - i < BLOCK ? job->n - i : BLOCK;
    for (size_t j = 0; j < job->count; j++)
      add(job->type, job->x[j] + i * width, job->c[j], m, total, j == 0);
    modelgit_finish(job->type, total, job->divisor, m, job->to + i * width);
  }
}

/* The largest magnitude's bit pattern: infinity's and above it those of what is no number are the largest. */
#define LANES 64
#define PEAK(NAME, T, MASK)                                                                                          \
  WIDE static u64 peak_##NAME(const T *restrict x, size_t n) {                                                       \
    T top[LANES] = {0}, all = 0;                                                                                     \
    size_t i = 0;                                                                                                    \
    for (; i + LANES <= n; i += LANES)                                                                               \
      for (int k = 0; k < LANES; k++) {                                                                              \
        T size = x[i + k] & MASK;                                                                                    \
        top[k] = size > top[k] ? size : top[k];                                                                      \
      }                                                                                                              \
    for (; i < n; i++) all = (T)(x[i] & MASK) > all ? (T)(x[i] & MASK) : all;                                        \
    for (int k = 0; k < LANES; k++) all = top[k] > all ? top[k] : all;                                               \
    return all;                                                                                                      \
  }
PEAK(16, u16, 0x7FFF)
PEAK(32, u32, 0x7FFFFFFF)
PEAK(64, u64, 0x7FFFFFFFFFFFFFFFULL)
u64 modelgit_peak(int type, const void *x, size_t n) {
  return type == F64 ? peak_64(x, n) : type == F32 ? peak_32(x, n) : peak_16(x, n);
}

/* The values of `count` inputs, row by row; with `minus`, all rows but the last less the last. `peak` becomes the largest
 * magnitude's bit pattern. For `modelgit_safely`. */
struct spreading {
  const u8 *const *x;
  double *to;
  u64 *peak;
  size_t count, n;
  int minus, type;
};
void modelgit_spread(const struct spreading *job) {
  size_t width = WIDTHS[job->type], last = job->count - 1;
  u64 top = 0;
  for (size_t i = 0; i < job->n; i += BLOCK) {
    size_t m = job->n - i < BLOCK ? job->n - i : BLOCK;
    const double *from = job->to + last * job->n + i;
    for (size_t j = job->count; j-- > 0;) {
      const u8 *x = job->x[j] + i * width;
      double *row = job->to + j * job->n + i;
      u64 size = modelgit_peak(job->type, x, m);
      top = size > top ? size : top;
      values(job->type, x, job->minus && j < last ? from : NULL, m, row);
    }
  }
  *job->peak = top;
}
