/* Byte planes and bit planes of one frame of weights.
 *
 * Sizes are checked by the caller; no function here reads or writes beyond n elements of the buffers it is given.
 * `modelgit/store/codec/reference.py` does the same in numpy: both must give the same bytes. */
#include "kernel.h"

int modelgit_kernel_version(void) { return 9; }

/* Bytes of n elements of W bytes, one plane a byte, lowest byte first. */
WIDE static void split8(const u64 *restrict x, size_t n, u8 *const *planes) {
  u8 *restrict a = planes[0], *restrict b = planes[1], *restrict c = planes[2], *restrict d = planes[3];
  u8 *restrict e = planes[4], *restrict f = planes[5], *restrict g = planes[6], *restrict h = planes[7];
  for (size_t i = 0; i < n; i++) {
    u64 v = x[i];
    a[i] = (u8)v, b[i] = (u8)(v >> 8), c[i] = (u8)(v >> 16), d[i] = (u8)(v >> 24);
    e[i] = (u8)(v >> 32), f[i] = (u8)(v >> 40), g[i] = (u8)(v >> 48), h[i] = (u8)(v >> 56);
  }
}
WIDE static void split4(const u32 *restrict x, size_t n, u8 *const *planes) {
  u8 *restrict a = planes[0], *restrict b = planes[1], *restrict c = planes[2], *restrict d = planes[3];
  for (size_t i = 0; i < n; i++) {
    u32 v = x[i];
    a[i] = (u8)v, b[i] = (u8)(v >> 8), c[i] = (u8)(v >> 16), d[i] = (u8)(v >> 24);
  }
}
WIDE static void split2(const u16 *restrict x, size_t n, u8 *const *planes) {
  u8 *restrict a = planes[0], *restrict b = planes[1];
  for (size_t i = 0; i < n; i++) a[i] = (u8)x[i], b[i] = (u8)(x[i] >> 8);
}
WIDE static void split1(const u8 *restrict x, size_t n, u8 *const *planes) { memcpy(planes[0], x, n); }

WIDE static void join8(const u8 *const *planes, size_t n, u64 *restrict x) {
  const u8 *restrict a = planes[0], *restrict b = planes[1], *restrict c = planes[2], *restrict d = planes[3];
  const u8 *restrict e = planes[4], *restrict f = planes[5], *restrict g = planes[6], *restrict h = planes[7];
  for (size_t i = 0; i < n; i++)
    x[i] = (u64)a[i] | (u64)b[i] << 8 | (u64)c[i] << 16 | (u64)d[i] << 24 | (u64)e[i] << 32 | (u64)f[i] << 40 |
           (u64)g[i] << 48 | (u64)h[i] << 56;
}
WIDE static void join4(const u8 *const *planes, size_t n, u32 *restrict x) {
  const u8 *restrict a = planes[0], *restrict b = planes[1], *restrict c = planes[2], *restrict d = planes[3];
  for (size_t i = 0; i < n; i++) x[i] = (u32)a[i] | (u32)b[i] << 8 | (u32)c[i] << 16 | (u32)d[i] << 24;
}
WIDE static void join2(const u8 *const *planes, size_t n, u16 *restrict x) {
  const u8 *restrict a = planes[0], *restrict b = planes[1];
  for (size_t i = 0; i < n; i++) x[i] = (u16)(a[i] | (u16)(b[i] << 8));
}
WIDE static void join1(const u8 *const *planes, size_t n, u8 *restrict x) { memcpy(x, planes[0], n); }

/* Work is done in blocks that stay in the first-level cache between two passes. */
#define BLOCK 2048

/* For each element width: the sign rotated to the lowest bit, the bytes dealt out. */
#define TRANSFORMS(T, W, BITS)                                                                                        \
  WIDE static void rotate##W(const T *restrict x, size_t n, T *restrict y) {                                         \
    for (size_t i = 0; i < n; i++) y[i] = (T)((T)(x[i] << 1) | (T)(x[i] >> (BITS - 1)));                             \
  }                                                                                                                  \
  WIDE static void unrotate##W(const T *restrict y, size_t n, T *restrict x) {                                       \
    for (size_t i = 0; i < n; i++) x[i] = (T)((T)(y[i] >> 1) | (T)(y[i] << (BITS - 1)));                             \
  }                                                                                                                  \
  static void full_split##W(const T *x, size_t n, u8 *const *planes) {                                               \
    T block[BLOCK];                                                                                                  \
    u8 *at[W];                                                                                                       \
    for (size_t i = 0; i < n; i += BLOCK) {                                                                          \
      size_t m = n - i < BLOCK ? n - i : BLOCK;                                                                      \
      for (int j = 0; j < W; j++) at[j] = planes[j] + i;                                                             \
      rotate##W(x + i, m, block), split##W(block, m, at);                                                            \
    }                                                                                                                \
  }                                                                                                                  \
  static void full_join##W(const u8 *const *planes, size_t n, T *x) {                                                \
    T block[BLOCK];                                                                                                  \
    const u8 *at[W];                                                                                                 \
    for (size_t i = 0; i < n; i += BLOCK) {                                                                          \
      size_t m = n - i < BLOCK ? n - i : BLOCK;                                                                      \
      for (int j = 0; j < W; j++) at[j] = planes[j] + i;                                                             \
      join##W(at, m, block), unrotate##W(block, m, x + i);                                                           \
    }                                                                                                                \
  }

TRANSFORMS(u8, 1, 8)
TRANSFORMS(u16, 2, 16)
TRANSFORMS(u32, 4, 32)
TRANSFORMS(u64, 8, 64)

/* x (n elements of `width` bytes, aligned) -> planes (`width` pointers to n bytes each). */
void modelgit_full_split(int width, const void *x, size_t n, u8 *const *planes) {
#define CALL(W, T) full_split##W((const T *)x, n, planes)
  FOR_WIDTH(CALL)
#undef CALL
}
void modelgit_full_join(int width, const u8 *const *planes, size_t n, void *x) {
#define CALL(W, T) full_join##W(planes, n, (T *)x)
  FOR_WIDTH(CALL)
#undef CALL
}

/* 8 x 8 bit matrix transposed (Warren, Hacker's Delight, section 7-3): bit k of byte j becomes bit j of byte k. */
static inline u64 transpose(u64 x) {
  u64 t = (x ^ (x >> 7)) & 0x00AA00AA00AA00AAULL;
  x ^= t ^ (t << 7);
  t = (x ^ (x >> 14)) & 0x0000CCCC0000CCCCULL;
  x ^= t ^ (t << 14);
  t = (x ^ (x >> 28)) & 0x00000000F0F0F0F0ULL;
  return x ^ t ^ (t << 28);
}
/* plane (8 * n bytes) -> bits (8 rows of n bytes): row k holds bit k of every byte, first byte in the lowest bit. */
void modelgit_bits_split(const u8 *plane, size_t n, u8 *bits) {
  for (size_t j = 0; j < n; j++) {
    u64 x;
    memcpy(&x, plane + 8 * j, 8);
    x = transpose(x);
    for (int k = 0; k < 8; k++) bits[k * n + j] = (u8)(x >> (8 * k));
  }
}
void modelgit_bits_join(const u8 *bits, size_t n, u8 *plane) {
  for (size_t j = 0; j < n; j++) {
    u64 x = 0;
    for (int k = 0; k < 8; k++) x |= (u64)bits[k * n + j] << (8 * k);
    x = transpose(x);
    memcpy(plane + 8 * j, &x, 8);
  }
}
