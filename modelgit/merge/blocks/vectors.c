/* What merge methods do to blocks of float64: inner products, selection, trimming, sign election.
 *
 * Sizes are checked by the caller. `modelgit/merge/blocks/vectors.py` does the same in numpy: both must give the same
 * bytes, so sums keep its order and nothing is fused. */
#include "kernel.h"
#include <stdlib.h>

#define FOLD 16384 /* elements of an inner product at most */
#define BLOCK 512  /* elements of every vector worked on at once */

int modelgit_kernel_version(void) { return 5; }

/* The inner product of a and b: products, then halves folded onto each other. */
WIDE static double dot(const double *restrict a, const double *restrict b, size_t n, double *restrict sum) {
  size_t half = (n + 1) / 2;
  for (size_t i = 0; i < n - half; i++) sum[i] = a[i] * b[i] + a[half + i] * b[half + i];
  for (size_t i = n - half; i < half; i++) sum[i] = a[i] * b[i];
  for (size_t size = half; size > 1; size = half) {
    half = (size + 1) / 2;
    for (size_t i = 0; i < size - half; i++) sum[i] += sum[half + i];
  }
  return n ? sum[0] : 0.0;
}
/* The first three folds of FOLD products at once, for `n` of the places that are left. */
#define EIGHTH (FOLD / 8)
#define STRETCH 64 /* places worked on at once: eight stretches of a few vectors stay in the first-level cache */
#define PAIRS 36   /* inner products worked on at once */
#define FEW 8      /* vectors whose stretches fit into the first-level cache */
/* `step` is how far apart the eighths of a and b lie. */
WIDE static void eighths(const double *restrict a, const double *restrict b, size_t step, double *restrict sum) {
  for (size_t i = 0; i < STRETCH; i++) {
    const double *x = a + i, *y = b + i;
    double p0 = x[0] * y[0] + x[4 * step] * y[4 * step];
    double p1 = x[step] * y[step] + x[5 * step] * y[5 * step];
    double p2 = x[2 * step] * y[2 * step] + x[6 * step] * y[6 * step];
    double p3 = x[3 * step] * y[3 * step] + x[7 * step] * y[7 * step];
    sum[i] = (p0 + p2) + (p1 + p3);
  }
}
WIDE static double fold(double *restrict sum, size_t size) {
  for (size_t half; size > 1; size = half) {
    half = (size + 1) / 2;
    for (size_t i = 0; i < size - half; i++) sum[i] += sum[half + i];
  }
  return sum[0];
}
/* Three folds of each inner product x[left[k]], x[right[k]] of a whole block. The stretches of a few vectors are first
 * brought together: where they lie they would all fall into one place of the cache. */
static void some_pairs(const double *const *x, size_t vectors, size_t at, const u32 *left, const u32 *right,
                       size_t count, double *sums) {
  double near[FEW][8 * STRETCH];
  for (size_t s = 0; s < EIGHTH; s += STRETCH) {
    for (size_t v = 0; v < vectors && vectors <= FEW; v++)
      for (size_t k = 0; k < 8; k++)
        memcpy(near[v] + k * STRETCH, x[v] + at + s + k * EIGHTH, STRETCH * sizeof(double));
    for (size_t k = 0; k < count; k++) {
      double *sum = sums + k * EIGHTH + s;
      if (vectors <= FEW) eighths(near[right[k]], near[left[k]], STRETCH, sum);
      else eighths(x[right[k]] + at + s, x[left[k]] + at + s, EIGHTH, sum);
    }
  }
}

/* Inner products of `count` vectors, the upper triangle of (count, count), for each FOLD elements of n in turn. */
void modelgit_gram(size_t count, const double *const *x, size_t n, double *products) {
  double *sums = malloc(PAIRS * EIGHTH * sizeof *sums + FOLD / 2 * sizeof *sums), *scratch = sums + PAIRS * EIGHTH;
  u32 left[PAIRS], right[PAIRS];
  if (!sums) return;
  for (size_t at = 0; at < n; at += FOLD, products += count * count) {
    size_t m = n - at < FOLD ? n - at : FOLD, filled = 0;
    for (size_t i = 0; i < count; i++)
      for (size_t j = i; j < count; j++) {
        if (m < FOLD) {
          products[i * count + j] = dot(x[j] + at, x[i] + at, m, scratch);
          continue;
        }
        left[filled] = (u32)i, right[filled++] = (u32)j;
        if (filled < PAIRS && (i + 1 < count || j + 1 < count)) continue;
        some_pairs(x, count, at, left, right, filled, sums);
        for (size_t k = 0; k < filled; k++) products[left[k] * count + right[k]] = fold(sums + k * EIGHTH, EIGHTH);
        filled = 0;
      }
  }
  free(sums);
}

static inline double size_of(double x) { return __builtin_fabs(x); }

/* Counts magnitudes above `high`, and writes those from `low` to `high` to `to`; returns how many these are. */
#define GROUP 64
WIDE static size_t within(const double *restrict x, double low, double high, u64 *above) {
  u64 inside = 0, over = 0;
  for (size_t i = 0; i < GROUP; i++) {
    double size = size_of(x[i]);
    inside += (u64)(size >= low) & (u64)(size <= high);
    over += (u64)(size > high);
  }
  *above += over;
  return inside;
}
size_t modelgit_band(const double *x, size_t n, double low, double high, double *to, size_t *above) {
  size_t found = 0, i = 0;
  u64 over = 0;
  for (; i + GROUP <= n; i += GROUP) {
    size_t inside = within(x + i, low, high, &over), end = found + inside;
    for (size_t k = i; found < end; k++) {
      double size = size_of(x[k]);
      to[found] = size;
      found += (size >= low) & (size <= high);
    }
  }
  for (; i < n; i++) {
    double size = size_of(x[i]);
    to[found] = size;
    found += (size >= low) & (size <= high);
    over += size > high;
  }
  *above = over;
  return found;
}

/* Zero where the magnitude is not from `low` to `high`. */
WIDE void modelgit_trim(double *restrict x, size_t n, double low, double high) {
  for (size_t i = 0; i < n; i++) x[i] = (size_of(x[i]) >= low) & (size_of(x[i]) <= high) ? x[i] : 0.0;
}

WIDE static void mix(size_t count, const double *const *x, const double *w, size_t n, double *restrict to) {
  for (size_t i = 0; i < n; i++) to[i] = w[0] * x[0][i];
  for (size_t j = 1; j < count; j++) {
    const double *restrict v = x[j];
    double c = w[j];
    for (size_t i = 0; i < n; i++) to[i] += c * v[i];
  }
}
WIDE static void agree(const double *restrict x, double w, const double *restrict total, size_t n,
                       double *restrict sum, double *restrict share) {
  for (size_t i = 0; i < n; i++) {
    double term = w * x[i];
    int agrees = total[i] > 0 ? term > 0 : term < 0;
    sum[i] += agrees ? term : 0.0;
    share[i] += agrees ? w : 0.0;
  }
}
WIDE static void divide(double *restrict sum, const double *restrict share, size_t n) {
  for (size_t i = 0; i < n; i++) sum[i] /= share[i] == 0 ? 1.0 : share[i];
}

/* sum w[j] * x[j] over all vectors. */
void modelgit_mix(size_t count, const double *const *x, const double *w, size_t n, double *to) {
  mix(count, x, w, n, to);
}

/* The same over the entries with the sign of sum votes[j] * x[j], or `even` where that is 0; divided by their weights
 * with `normalize`. */
void modelgit_elect(size_t count, const double *const *x, const double *w, const double *votes, size_t n, double even,
                    int normalize, double *to) {
  double total[BLOCK], share[BLOCK];
  const double *at[count];
  for (size_t i = 0; i < n; i += BLOCK) {
    size_t m = n - i < BLOCK ? n - i : BLOCK;
    for (size_t j = 0; j < count; j++) at[j] = x[j] + i;
    mix(count, at, votes, m, total);
    for (size_t k = 0; k < m; k++) total[k] = total[k] == 0 ? even : total[k], to[i + k] = 0.0, share[k] = 0.0;
    for (size_t j = 0; j < count; j++) agree(at[j], w[j], total, m, to + i, share);
    if (normalize) divide(to + i, share, m);
  }
}

/* Keeps x[i] / density where draws[i] < limit, else 0. */
WIDE void modelgit_drop(double *restrict x, size_t n, const u32 *restrict draws, u64 limit, double density) {
  for (size_t i = 0; i < n; i++) x[i] = draws[i] < limit ? x[i] / density : 0.0;
}

/* Ranks of the magnitudes of each row of n, 0 for the smallest; equal ones share their mean rank. Dealt into buckets by
 * value, which leaves them almost in order. `scratch` holds n items of 16 bytes, `counts` SPREAD * n + 2. */
#define SPREAD 1
typedef struct {
  double size;
  u64 place;
} Item;
static int by_size(const void *a, const void *b) {
  double x = ((const Item *)a)->size, y = ((const Item *)b)->size;
  return (x > y) - (x < y);
}
static void sort_items(Item *items, size_t n) {
  for (size_t i = 1, moves = 0; i < n; i++) {
    Item item = items[i];
    size_t j = i;
    for (; j > 0 && items[j - 1].size > item.size; j--) items[j] = items[j - 1];
    items[j] = item;
    if ((moves += i - j) > 32 * n) {
      qsort(items, n, sizeof *items, by_size);
      return;
    }
  }
}
WIDE static double largest(const double *restrict x, size_t n) {
  double most[16] = {0}, all = 0.0;
  size_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int k = 0; k < 16; k++) most[k] = size_of(x[i + k]) > most[k] ? size_of(x[i + k]) : most[k];
  for (; i < n; i++) all = size_of(x[i]) > all ? size_of(x[i]) : all;
  for (int k = 0; k < 16; k++) all = most[k] > all ? most[k] : all;
  return all;
}
static void rank_row(const double *x, size_t n, void *scratch, u32 *counts, double *ranks) {
  Item *items = scratch;
  double most = largest(x, n), scale = most > 0 ? (double)(SPREAD * n) / most : 0.0;
  if (!(scale < 1e300)) scale = 0.0;
  memset(counts, 0, (SPREAD * n + 2) * sizeof *counts);
  for (size_t i = 0; i < n; i++) counts[(int)(size_of(x[i]) * scale) + 1]++;
  for (size_t i = 0; i <= SPREAD * n; i++) counts[i + 1] += counts[i];
  for (size_t i = 0; i < n; i++) items[counts[(int)(size_of(x[i]) * scale)]++] = (Item){size_of(x[i]), i};
  sort_items(items, n);
  for (size_t i = 0, end; i < n; i = end) {
    for (end = i + 1; end < n && items[end].size == items[i].size; end++) {}
    double rank = 0.5 * (double)(i + end - 1);
    for (size_t k = i; k < end; k++) ranks[items[k].place] = rank;
  }
}
void modelgit_ranks(const double *x, size_t rows, size_t n, void *scratch, u32 *counts, double *ranks) {
  for (size_t i = 0; i < rows; i++) rank_row(x + i * n, n, scratch, counts, ranks + i * n);
}

/* Keeps x[i] / p where draws[i] is below p, else 0; p = low + slope * ranks[i]. Draws are fractions of 2^32. */
WIDE void modelgit_drop_ranked(double *restrict x, size_t n, const u32 *restrict draws, const double *restrict ranks,
                               double low, double slope) {
  for (size_t i = 0; i < n; i++) {
    double p = low + slope * ranks[i];
    x[i] = (double)draws[i] * 0x1p-32 < p ? x[i] / p : 0.0;
  }
}
