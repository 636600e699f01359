/* What merge methods do to blocks: inner products of raw weights; selection, trimming, sign election of float64.
 *
 * Sizes are checked by the caller. `modelgit/merge/blocks/vectors.py` does the same in numpy: both must give the same
 * bytes, so sums keep its order and nothing is fused. */
#include "numbers.h"

#define FOLD 16384 /* elements of an inner product at most */
#define BLOCK 512  /* elements of every vector worked on at once */

int modelgit_kernel_version(void) { return 7; }

/* -------------------------------------------------------------------------------------------- inner products */

#define EIGHTH (FOLD / 8)
#define STRETCH 64            /* places of each eighth worked on at once */
#define NEAR (8 * STRETCH)    /* values of an input that are brought together, to stay in the first-level cache */
#define ROW (EIGHTH + STRETCH) /* of a pair's sums: each in other places of the cache than the one before */
#define TILE 4                /* inputs whose products with as many others are worked on at once */

/* Has the processor fetch `size` bytes that will be read soon. They may lie beyond the end: nothing comes of it. */
#define LINE 64
static inline void fetch(const u8 *x, size_t size) {
  for (size_t at = 0; at < size; at += LINE) __builtin_prefetch(x + at);
}

/* Halves folded onto each other. */
WIDE static double fold(double *restrict sum, size_t size) {
  for (size_t half; size > 1; size = half) {
    half = (size + 1) / 2;
    for (size_t i = 0; i < size - half; i++) sum[i] += sum[half + i];
  }
  return sum[0];
}
/* The inner product of a and b. */
WIDE static double dot(const double *restrict a, const double *restrict b, size_t n, double *restrict sum) {
  for (size_t i = 0; i < n; i++) sum[i] = a[i] * b[i];
  return fold(sum, n);
}
/* The first three folds of FOLD products at once, for a few of the places that are left. */
WIDE static void eighths(const double *restrict a, const double *restrict b, double *restrict sum) {
  for (size_t i = 0; i < STRETCH; i++) {
    const double *x = a + i, *y = b + i;
    double p0 = x[0] * y[0] + x[4 * STRETCH] * y[4 * STRETCH];
    double p1 = x[STRETCH] * y[STRETCH] + x[5 * STRETCH] * y[5 * STRETCH];
    double p2 = x[2 * STRETCH] * y[2 * STRETCH] + x[6 * STRETCH] * y[6 * STRETCH];
    double p3 = x[3 * STRETCH] * y[3 * STRETCH] + x[7 * STRETCH] * y[7 * STRETCH];
    sum[i] = (p0 + p2) + (p1 + p3);
  }
}

/* Inner products of `count` inputs of n elements of a type, (count, count) for each FOLD elements in turn, the upper
 * triangle; with `base`, of what they are less it. `scratch` holds 4 * FOLD float64. */
struct products {
  const u8 *const *x;
  const u8 *base;
  double *scratch, *products;
  size_t count, n;
  int type;
};

/* Brings stretches of an input's eighths together, from element `at` of the first on: where they lie they would all fall
 * into one place of the cache. What comes next is fetched meanwhile. */
static void bring(int type, const u8 *x, size_t at, const double *origin, double *near) {
  for (size_t k = 0; k < 8; k++) {
    const u8 *from = x + (at + k * EIGHTH) * WIDTHS[type];
    fetch(from + STRETCH * WIDTHS[type], STRETCH * WIDTHS[type]);
    values(type, from, origin ? origin + k * STRETCH : NULL, STRETCH, near + k * STRETCH);
  }
}

/* Products over FOLD elements from `at` on, of a few inputs from `left` on with those from `right` on. */
static void tile(const struct products *job, size_t at, size_t left, size_t right, double *products) {
  double near[2 * TILE * NEAR], base[NEAR], *origin = job->base ? base : NULL;
  double *others = left == right ? near : near + TILE * NEAR, *sum = job->scratch;
  size_t count = job->count, end = left + TILE < count ? left + TILE : count;
  size_t stop = right + TILE < count ? right + TILE : count;
  for (size_t s = 0; s < EIGHTH; s += STRETCH, sum = job->scratch + s) {
    if (origin) bring(job->type, job->base, at + s, NULL, origin);
    for (size_t i = left; i < end; i++) bring(job->type, job->x[i], at + s, origin, near + (i - left) * NEAR);
    if (others != near)
      for (size_t j = right; j < stop; j++) bring(job->type, job->x[j], at + s, origin, others + (j - right) * NEAR);
    for (size_t i = left; i < end; i++)
      for (size_t j = left == right ? i : right; j < stop; j++, sum += ROW)
        eighths(others + (j - right) * NEAR, near + (i - left) * NEAR, sum);
  }
  sum = job->scratch;
  for (size_t i = left; i < end; i++)
    for (size_t j = left == right ? i : right; j < stop; j++, sum += ROW) products[i * count + j] = fold(sum, EIGHTH);
}

/* Products over the last n elements, from `at` on: fewer than FOLD. */
static void rest(const struct products *job, size_t at, size_t n, double *products) {
  double *origin = job->base ? job->scratch : NULL, *a = job->scratch + FOLD, *b = a + FOLD;
  size_t start = at * WIDTHS[job->type];
  if (origin) values(job->type, job->base + start, NULL, n, origin);
  for (size_t i = 0; i < job->count; i++) {
    values(job->type, job->x[i] + start, origin, n, a);
    for (size_t j = i; j < job->count; j++) {
      if (j > i) values(job->type, job->x[j] + start, origin, n, b);
      products[i * job->count + j] = dot(j > i ? b : a, a, n, b + FOLD);
    }
  }
}

/* For `modelgit_safely`. */
void modelgit_gram(const struct products *job) {
  double *products = job->products;
  for (size_t at = 0; at < job->n; at += FOLD, products += job->count * job->count) {
    if (job->n - at < FOLD) {
      rest(job, at, job->n - at, products);
      return;
    }
    for (size_t i = 0; i < job->count; i += TILE)
      for (size_t j = i; j < job->count; j += TILE) tile(job, at, i, j, products);
  }
}

/* ------------------------------------------------------------------------------------------------ float64 blocks */

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
 * value, which leaves them almost in order. `scratch` holds 16 bytes for each of n: magnitudes, then which bucket each
 * is for, then where each came from; `counts` has SPREAD * n + 2. */
#define SPREAD 2
/* Sorts what is `gap` apart by insertion. Returns 0, half-way, after more than `most` moves. */
static int insert(double *sizes, u32 *places, size_t n, size_t gap, size_t most) {
  for (size_t i = gap, moves = 0; i < n; i++) {
    double size = sizes[i];
    if (!(sizes[i - gap] > size)) continue;
    u32 place = places[i];
    size_t j = i;
    for (; j >= gap && sizes[j - gap] > size; j -= gap) sizes[j] = sizes[j - gap], places[j] = places[j - gap];
    sizes[j] = size, places[j] = place;
    if ((moves += (i - j) / gap) > most) return 0;
  }
  return 1;
}
static void sort_sizes(double *sizes, u32 *places, size_t n) {
  if (insert(sizes, places, n, 1, 32 * n)) return;
  for (size_t gap = n / 2; gap > 0; gap = gap * 5 / 11) insert(sizes, places, n, gap, SIZE_MAX);
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
WIDE static void choose(const double *restrict x, size_t n, double scale, u32 *restrict bucket) {
  for (size_t i = 0; i < n; i++) bucket[i] = (u32)(int)(size_of(x[i]) * scale);
}
static void rank_row(const double *x, size_t n, void *scratch, u32 *counts, double *ranks) {
  double *sizes = scratch;
  u32 *bucket = (u32 *)(sizes + n), *places = bucket + n;
  double most = largest(x, n), scale = most > 0 ? (double)(SPREAD * n) / most : 0.0;
  if (!(scale < 1e300)) scale = 0.0;
  choose(x, n, scale, bucket);
  memset(counts, 0, (SPREAD * n + 2) * sizeof *counts);
  for (size_t i = 0; i < n; i++) counts[bucket[i] + 1]++;
  for (size_t i = 0; i <= SPREAD * n; i++) counts[i + 1] += counts[i];
  for (size_t i = 0; i < n; i++) {
    u32 at = counts[bucket[i]]++;
    sizes[at] = size_of(x[i]), places[at] = (u32)i;
  }
  sort_sizes(sizes, places, n);
  for (size_t i = 0, end; i < n; i = end) {
    for (end = i + 1; end < n && sizes[end] == sizes[i]; end++) {}
    double rank = 0.5 * (double)(i + end - 1);
    for (size_t k = i; k < end; k++) ranks[places[k]] = rank;
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
