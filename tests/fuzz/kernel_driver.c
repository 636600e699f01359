/* Runs every function of the kernel on hostile bytes in buffers of exactly the right length, for the sanitizers. */
#include "kernel.c"
#include <stdio.h>
#include <stdlib.h>

static u64 state = 88172645463325252ULL;
static u8 chance(void) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return (u8)(state >> 11);
}

static u8 *hostile(size_t size, int kind) {
  u8 *data = malloc(size ? size : 1);
  for (size_t i = 0; i < size; i++) data[i] = kind == 0 ? 0 : kind == 1 ? 255 : kind == 2 ? chance() : chance() & 1;
  return data;
}

static void one(int width, size_t n, int kind) {
  size_t size = n * (size_t)width;
  u8 *x = hostile(size, kind), *parent = hostile(size, (kind + 2) % 4), *sorted = hostile(size, 0), *planes[8];
  u8 *child = hostile(size, 0);
  memcpy(child, x, size);
  for (int j = 0; j < width; j++) planes[j] = hostile(n, 0);
  modelgit_full_split(width, x, n, planes);
  modelgit_full_join(width, (const u8 *const *)planes, n, x);
  if (memcmp(x, child, size)) puts("full: not the same"), exit(1);
  modelgit_delta_split(width, x, parent, n, sorted, planes);
  modelgit_delta_join(width, (const u8 *const *)planes, n, sorted, parent);
  if (memcmp(parent, child, size)) puts("delta: not the same"), exit(1);
  for (int j = 0; j < width; j++) {
    free(planes[j]);
    planes[j] = hostile(n, kind); /* planes that no writer made */
  }
  modelgit_delta_join(width, (const u8 *const *)planes, n, sorted, x);
  modelgit_full_join(width, (const u8 *const *)planes, n, x);
  u8 *bits = hostile(8 * n, 0), *plane = hostile(8 * n, kind), *copy = hostile(8 * n, 0);
  memcpy(copy, plane, 8 * n);
  modelgit_bits_split(plane, n, bits);
  modelgit_bits_join(bits, n, plane);
  if (memcmp(plane, copy, 8 * n)) puts("bits: not the same"), exit(1);
  for (int j = 0; j < width; j++) free(planes[j]);
  free(x), free(parent), free(sorted), free(child), free(bits), free(plane), free(copy);
}

int main(void) {
  const size_t counts[] = {0, 1, 7, 8, 9, 63, 2047, 2048, 2049, 4104, 70001};
  for (int width = 1; width <= 8; width *= 2)
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
      for (int kind = 0; kind < 4; kind++) one(width, counts[c], kind);
  puts("sound");
  return 0;
}
