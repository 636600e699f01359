/* Runs every function of the kernel on hostile bytes in buffers of exactly the right length, for the sanitizers. */
#include "planes.c"
#undef BLOCK
#include "differences.c"
#include <stdio.h>
#include <stdlib.h>

static u64 seed = 88172645463325252ULL;
static u8 chance(void) {
  seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
  return (u8)(seed >> 11);
}

static void *hostile(size_t size, int kind) {
  u8 *data = malloc(size ? size : 1);
  for (size_t i = 0; i < size; i++) data[i] = kind == 0 ? 0 : kind == 1 ? 255 : kind == 2 ? chance() : chance() & 1;
  return data;
}

static void require_same(const void *a, const void *b, size_t size, const char *what) {
  if (size && memcmp(a, b, size)) printf("%s: not the same\n", what), exit(1);
}

static void planes(int width, size_t n, int kind) {
  size_t size = n * (size_t)width;
  u8 *x = hostile(size, kind), *copy = hostile(size, 0), *plane[8];
  memcpy(copy, x, size);
  for (int j = 0; j < width; j++) plane[j] = hostile(n, 0);
  modelgit_full_split(width, x, n, plane);
  modelgit_full_join(width, (const u8 *const *)plane, n, x);
  require_same(x, copy, size, "planes");
  for (int j = 0; j < width; j++) free(plane[j]);
  free(x), free(copy);
}

static void bits(size_t n, int kind) {
  u8 *rows = hostile(8 * n, 0), *plane = hostile(8 * n, kind), *copy = hostile(8 * n, 0);
  memcpy(copy, plane, 8 * n);
  modelgit_bits_split(plane, n, rows);
  modelgit_bits_join(rows, n, plane);
  require_same(plane, copy, 8 * n, "bits");
  free(rows), free(plane), free(copy);
}

/* Frequencies of tokens for some contexts: all alike, or nearly all for one. */
static u16 *model(unsigned contexts, unsigned alphabet, int even) {
  u16 *f = malloc(2 * (size_t)contexts * alphabet);
  for (unsigned i = 0; i < contexts * alphabet; i++)
    f[i] = (u16)(even ? ONE / alphabet : i % alphabet ? 1 : ONE - (alphabet - 1));
  return f;
}

static void differences(int width, size_t n, int kind, size_t lanes, int wide) {
  size_t size = n * (size_t)width, blocks = (n + BLOCK - 1) / BLOCK, raw = 0;
  unsigned alphabet = 32u * (unsigned)width;
  u8 first = (u8)(kind ? 60 : 0), last = (u8)(kind ? 60 + 20 * kind : 255);
  unsigned contexts = (unsigned)(last - first) + 1;
  u8 *x = hostile(size, kind), *parent = hostile(size, (kind + 2) % 4), *work = hostile(size, 0);
  u8 *active = hostile(blocks, 0), *tokens = hostile(n, 0), *keys = hostile(n, 0), *room = hostile(size + 16, 0);
  size_t k = modelgit_residuals(width, x, parent, n, active, tokens, keys, room, &raw);
  u32 *table = calloc(2 * 256 * (size_t)alphabet, 4), *states = malloc(4 * lanes), *slots = malloc(4ul * ONE * contexts);
  modelgit_count(tokens, keys, k, alphabet, table);
  u16 *f = model(contexts, alphabet, kind & 1), *words = malloc(2 * (k + VECTOR));
  u32 *symbols = malloc(4 * (size_t)contexts * alphabet);
  size_t count = modelgit_encode(tokens, keys, k, alphabet, first, last, f, lanes, states, words, symbols, wide);
  u16 *exact = malloc(2 * count + !count);
  u8 *exact_raw = malloc(raw + !raw);
  memcpy(exact, words + k + VECTOR - count, 2 * count), memcpy(exact_raw, room, raw);
  if (size) memcpy(work, parent, size);
  if (modelgit_apply(width, work, work, n, active, alphabet, first, last, f, slots, states, lanes, exact, count,
                     exact_raw, raw, wide))
    puts("differences: refused"), exit(1);
  require_same(work, x, size, "differences");
  for (int round = 0; round < 6; round++) { /* what no writer made */
    size_t some = round & 1 ? count : count / 3, few = round & 2 ? raw : raw / 2;
    u16 *bad = hostile(2 * some, round % 3);
    u8 *bad_raw = hostile(few, 2), *bad_active = hostile(blocks, round & 1 ? 3 : 1);
    u32 *bad_states = hostile(4 * lanes, round % 3);
    modelgit_apply(width, work, parent, n, bad_active, alphabet, first, last, f, slots, bad_states, lanes, bad, some,
                   bad_raw, few, wide);
    free(bad), free(bad_raw), free(bad_active), free(bad_states);
  }
  free(x), free(parent), free(work), free(active), free(tokens), free(keys), free(room), free(table), free(states);
  free(slots), free(f), free(words), free(symbols), free(exact), free(exact_raw);
}

int main(void) {
  const size_t counts[] = {0, 1, 8, 63, 64, 65, 2049, 20001}, lanes[] = {1, 8, 256};
  for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
    for (int kind = 0; kind < 4; kind++) {
      bits(counts[c], kind);
      for (int width = 1; width <= 8; width *= 2) {
        planes(width, counts[c], kind);
        for (int i = 0; i < 3; i++)
          for (int wide = 0; wide <= modelgit_wide(); wide++) differences(width, counts[c], kind, lanes[i], wide);
      }
    }
  puts("sound");
  return 0;
}
