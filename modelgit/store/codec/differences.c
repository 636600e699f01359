/* Differences of a frame of weights to its parent's, entropy coded with the parent's exponent as context.
 *
 * The coder is rANS (Duda 2013, arXiv:1311.2540) with 12-bit frequencies, states of 31 bits that shed and take words
 * of 16, and many states, one after another, that share one stream of words: so eight can be worked on at once.
 * Sizes are checked by the caller. The decoder also stands hostile words: it never reads beyond their end.
 * `modelgit/store/codec/reference.py` does the same in numpy: both must give the same bytes. */
#include "kernel.h"

#define PROBABILITY_BITS 12
#define ONE (1u << PROBABILITY_BITS) /* the sum of a context's frequencies */
#define LOWEST (1u << 15)            /* a state is never below, nor above 2^31 */
#define SMALL 16                     /* smaller zigzag differences are tokens of their own */
#define BLOCK 64                     /* elements that are skipped together when none differs */
#define VECTOR 8

/* A larger difference has the token of its highest bit and the two below; the rest are raw bits. */
static inline unsigned raw_bits(unsigned token) { return (token - SMALL) / 4 + 2; }

/* The conversion to float finds the highest bit, and lets a compiler do several at once. Bits that could round it up
 * are cleared first: each that has a set bit three places above. */
static inline u32 float_token(u32 z) {
  float f = (float)(int32_t)(z & ~(z >> 3) & 0x7FFFFFFF);
  u32 bits;
  memcpy(&bits, &f, 4);
  return (bits >> 21) - 508;
}
static inline u8 token1(u8 z) {
  u32 large = float_token(z);
  return (u8)(z < SMALL ? z : large);
}
static inline u8 token2(u16 z) {
  u32 large = float_token(z);
  return (u8)(z < SMALL ? z : large);
}
static inline u8 token4(u32 z) {
  u32 large = float_token(z);
  large = z >> 31 ? SMALL + 4 * 27 + ((z >> 29) & 3) : large;
  return (u8)(z < SMALL ? z : large);
}
static inline u8 token8(u64 z) {
  unsigned high = 63u - (unsigned)__builtin_clzll(z | 8);
  return (u8)(z < SMALL ? z : SMALL + 4 * (high - 4) + ((z >> (high - 2)) & 3));
}

struct bit_writer {
  u8 *to;
  u64 held;
  unsigned count;
};
/* Up to 32 bits, the lowest first; writes up to 8 bytes beyond what is full. */
static inline void put_bits(struct bit_writer *w, u64 value, unsigned count) {
  w->held |= value << w->count, w->count += count;
  memcpy(w->to, &w->held, 8);
  w->to += w->count >> 3, w->held >>= w->count & ~7u, w->count &= 7;
}
static inline u64 bits_at(const u8 *bits, size_t size, size_t at) {
  u64 value = 0;
  size_t byte = at >> 3;
  if (byte + 8 <= size) memcpy(&value, bits + byte, 8);
  else if (byte < size) memcpy(&value, bits + byte, size - byte);
  return value >> (at & 7);
}

/* Which of up to 64 tokens raw bits follow. */
static inline u64 large_ones(const u8 *tokens, size_t n) {
  u64 found = 0;
#ifdef __SSE2__
  if (n == BLOCK) {
    const __m128i least = _mm_set1_epi8(SMALL);
    for (int i = 0; i < 4; i++) {
      __m128i t = _mm_loadu_si128((const __m128i *)(tokens + 16 * i));
      found |= (u64)(u32)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_max_epu8(t, least), t)) << (16 * i);
    }
    return found;
  }
#endif
  for (size_t i = 0; i < n; i++) found |= (u64)(tokens[i] >= SMALL) << i;
  return found;
}

static inline u8 context_of(u8 key, u8 first, u8 last) {
  return (u8)((key < first ? first : key > last ? last : key) - first);
}

/* ------------------------------------------------------------------ decoding */

struct decoder {
  const u32 *slots; /* for each context and the low bits of a state: token, frequency - 1, offset */
  u8 first, last;
  u32 *states;
  size_t lanes, lane;
  const u16 *word, *end;
  const u8 *bits;
  size_t bits_size;
  int wide, starved;
};

static void next_plain(struct decoder *c, const u8 *contexts, size_t n, u8 *tokens) {
  size_t mask = c->lanes - 1;
  for (size_t i = 0; i < n; i++, c->lane = (c->lane + 1) & mask) {
    u32 state = c->states[c->lane];
    u32 slot = c->slots[(size_t)contexts[i] << PROBABILITY_BITS | (state & (ONE - 1))];
    tokens[i] = (u8)slot;
    state = (((slot >> 8) & (ONE - 1)) + 1) * (state >> PROBABILITY_BITS) + (slot >> 20);
    if (state < LOWEST) {
      if (c->word < c->end) state = state << 16 | *c->word++;
      else c->starved = 1;
    }
    c->states[c->lane] = state;
  }
}

#ifdef AVX2
/* Where each lane of a mask finds its word, and which lanes' words go to the end. */
static u32 spread[256][VECTOR], gathered[256][VECTOR];
__attribute__((constructor)) static void fill_permutations(void) {
  for (int mask = 0; mask < 256; mask++) {
    int count = 0, total = __builtin_popcount((unsigned)mask);
    for (int lane = 0; lane < VECTOR; lane++) {
      spread[mask][lane] = (u32)count;
      if (mask >> lane & 1) gathered[mask][VECTOR - total + count++] = (u32)lane;
    }
  }
}

AVX2 static void next_wide(struct decoder *c, const u8 *contexts, u8 *tokens) {
  const __m256i low = _mm256_set1_epi32(ONE - 1), one = _mm256_set1_epi32(1), lowest = _mm256_set1_epi32(LOWEST);
  const __m128i bytes = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const u16 *word = c->word;
  u32 *states = c->states + c->lane;
  for (size_t i = 0; i < BLOCK; i += VECTOR, states += VECTOR) {
    __m256i state = _mm256_loadu_si256((const __m256i *)states);
    __m256i context = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(contexts + i)));
    __m256i at = _mm256_or_si256(_mm256_slli_epi32(context, PROBABILITY_BITS), _mm256_and_si256(state, low));
    __m256i slot = _mm256_i32gather_epi32((const int *)c->slots, at, 4);
    __m256i frequency = _mm256_add_epi32(_mm256_and_si256(_mm256_srli_epi32(slot, 8), low), one);
    state = _mm256_mullo_epi32(frequency, _mm256_srli_epi32(state, PROBABILITY_BITS));
    state = _mm256_add_epi32(state, _mm256_srli_epi32(slot, 20));
    __m256i need = _mm256_cmpgt_epi32(lowest, state);
    unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(need));
    __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)word));
    words = _mm256_permutevar8x32_epi32(words, _mm256_loadu_si256((const __m256i *)spread[mask]));
    state = _mm256_blendv_epi8(state, _mm256_or_si256(_mm256_slli_epi32(state, 16), words), need);
    word += __builtin_popcount(mask);
    _mm256_storeu_si256((__m256i *)states, state);
    __m128i low_half = _mm_shuffle_epi8(_mm256_castsi256_si128(slot), bytes);
    __m128i high_half = _mm_shuffle_epi8(_mm256_extracti128_si256(slot, 1), bytes);
    _mm_storel_epi64((__m128i *)(tokens + i), _mm_unpacklo_epi32(low_half, high_half));
  }
  c->word = word;
  c->lane = (c->lane + BLOCK) & (c->lanes - 1);
}
#endif

#ifdef AVX2
/* The differences of a block of 16-bit elements: small tokens as they are, large ones with their raw bits, which begin
 * at bit `at`; eight at a time are within 16 bytes. Returns where the next block's begin, at most 488 bytes on. */
AVX2 static size_t large_wide(const u8 *bits, size_t at, const u8 *tokens, u16 *z) {
  const __m256i one = _mm256_set1_epi32(1), leading = _mm256_set1_epi32(4);
  const __m256i low = _mm256_set1_epi32(7), two = _mm256_set1_epi32(3), last = _mm256_set1_epi32(VECTOR / 2 - 1);
  const __m256i upper = _mm256_setr_epi32(0, 0, 0, 0, -1, -1, -1, -1);
  const __m256i every = _mm256_set1_epi32(0x01010101), four = _mm256_set1_epi32(0x03020100);
  for (size_t i = 0; i < BLOCK; i += VECTOR) {
    __m256i token = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(tokens + i)));
    __m256i large = _mm256_cmpgt_epi32(token, _mm256_set1_epi32(SMALL - 1));
    __m256i count = _mm256_srli_epi32(_mm256_sub_epi32(token, _mm256_set1_epi32(SMALL - 8)), 2);
    count = _mm256_and_si256(count, large);
    __m256i sum = _mm256_add_epi32(count, _mm256_slli_si256(count, 4)); /* of the counts up to each */
    sum = _mm256_add_epi32(sum, _mm256_slli_si256(sum, 8));
    sum = _mm256_add_epi32(sum, _mm256_and_si256(_mm256_permutevar8x32_epi32(sum, last), upper));
    __m256i place = _mm256_add_epi32(_mm256_sub_epi32(sum, count), _mm256_set1_epi32((int)(at & 7)));
    __m256i window = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(bits + (at >> 3))));
    __m256i bytes = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_srli_epi32(place, 3), every), four);
    __m256i value = _mm256_srlv_epi32(_mm256_shuffle_epi8(window, bytes), _mm256_and_si256(place, low));
    value = _mm256_and_si256(value, _mm256_sub_epi32(_mm256_sllv_epi32(one, count), one));
    __m256i high = _mm256_or_si256(_mm256_and_si256(token, two), leading);
    value = _mm256_blendv_epi8(token, _mm256_or_si256(value, _mm256_sllv_epi32(high, count)), large);
    value = _mm256_permute4x64_epi64(_mm256_packus_epi32(value, value), 0x08);
    _mm_storeu_si128((__m128i *)(z + i), _mm256_castsi256_si128(value));
    at += (size_t)_mm256_extract_epi32(sum, VECTOR - 1);
  }
  return at;
}
#endif

/* Whether more than VECTOR bits are set: fewer are sooner done one by one. */
static inline int many(u64 bits) {
  for (int i = 0; i < VECTOR; i++) bits &= bits - 1;
  return bits != 0;
}

static inline int large_at_once(const struct decoder *c, const u8 *tokens, size_t n, size_t *at, void *z) {
#ifdef AVX2
  if (c->wide && n == BLOCK && (*at >> 3) + 512 <= c->bits_size) {
    *at = large_wide(c->bits, *at, tokens, (u16 *)z);
    return 1;
  }
#endif
  return 0;
}

static inline void next_tokens(struct decoder *c, const u8 *contexts, size_t n, u8 *tokens) {
#ifdef AVX2
  if (c->wide && n == BLOCK && c->lanes >= BLOCK && c->end - c->word >= BLOCK + VECTOR) {
    next_wide(c, contexts, tokens);
    return;
  }
#endif
  next_plain(c, contexts, n, tokens);
}

/* ------------------------------------------------------------------ for each element width */

/* SHIFT takes the parent's bits to the eight that give the context: a float's exponent, all of them for W = 1. */
#define DIFFERENCES(T, S, W, SHIFT)                                                                                  \
  WIDE static void tokens##W(const T *restrict x, const T *restrict p, size_t n, u8 *restrict tokens,                \
                             u8 *restrict keys, T *restrict z) {                                                     \
    for (size_t i = 0; i < n; i++) {                                                                                 \
      T d = (T)(x[i] - p[i]);                                                                                        \
      z[i] = (T)((T)(d << 1) ^ (T)((S)d >> (8 * W - 1)));                                                            \
      keys[i] = (u8)(p[i] >> SHIFT), tokens[i] = token##W(z[i]);                                                     \
    }                                                                                                                \
  }                                                                                                                  \
  static size_t residuals##W(const T *x, const T *p, size_t n, u8 *active, u8 *tokens, u8 *keys, u8 *bits,           \
                             size_t *bits_size) {                                                                    \
    struct bit_writer w = {bits, 0, 0};                                                                              \
    size_t k = 0;                                                                                                    \
    T z[BLOCK];                                                                                                      \
    for (size_t start = 0; start < n; start += BLOCK) {                                                              \
      size_t m = n - start < BLOCK ? n - start : BLOCK;                                                              \
      int same = !memcmp(x + start, p + start, m * W);                                                               \
      *active++ = (u8)!same;                                                                                         \
      if (same) continue;                                                                                            \
      tokens##W(x + start, p + start, m, tokens + k, keys + k, z);                                                   \
      for (u64 large = large_ones(tokens + k, m); large; large &= large - 1) {                                       \
        int i = __builtin_ctzll(large);                                                                              \
        unsigned count = raw_bits(tokens[k + i]);                                                                    \
        u64 rest = (u64)z[i] & ((1ull << count) - 1);                                                                \
        if (W == 8 && count > 32) put_bits(&w, rest & 0xFFFFFFFFu, 32), rest >>= 32, count -= 32;                    \
        put_bits(&w, rest, count);                                                                                   \
      }                                                                                                              \
      k += m;                                                                                                        \
    }                                                                                                                \
    *bits_size = (size_t)(w.to - bits) + (w.count > 0);                                                              \
    return k;                                                                                                        \
  }                                                                                                                  \
  WIDE static void contexts##W(const T *restrict p, size_t n, u8 first, u8 last, u8 *restrict contexts) {            \
    for (size_t i = 0; i < n; i++) contexts[i] = context_of((u8)(p[i] >> SHIFT), first, last);                       \
  }                                                                                                                  \
  WIDE static void widen##W(const u8 *restrict tokens, size_t n, T *restrict z) {                                    \
    for (size_t i = 0; i < n; i++) z[i] = (T)tokens[i];                                                              \
  }                                                                                                                  \
  WIDE static void add##W(const T *restrict z, size_t n, const T *p, T *x) {                                         \
    APART /* p may be x itself */                                                                                    \
    for (size_t i = 0; i < n; i++) x[i] = (T)(p[i] + (T)((T)(z[i] >> 1) ^ (T)(0 - (T)(z[i] & 1))));                  \
  }                                                                                                                  \
  static int apply##W(struct decoder *c, T *x, const T *p, size_t n, const u8 *active) {                                         \
    u8 contexts[BLOCK], tokens[BLOCK];                                                                               \
    T z[BLOCK];                                                                                                      \
    size_t at = 0;                                                                                                   \
    for (size_t start = 0; start < n; start += BLOCK) {                                                              \
      size_t m = n - start < BLOCK ? n - start : BLOCK;                                                              \
      if (!*active++) {                                                                                              \
        if (x != p) memcpy(x + start, p + start, m * W);                                                             \
        continue;                                                                                                    \
      }                                                                                                              \
      contexts##W(p + start, m, c->first, c->last, contexts);                                                        \
      next_tokens(c, contexts, m, tokens);                                                                           \
      u64 large = large_ones(tokens, m);                                                                             \
      if (W == 2 && many(large) && large_at_once(c, tokens, m, &at, z)) large = 0;                                   \
      else widen##W(tokens, m, z);                                                                                   \
      for (; large; large &= large - 1) {                                                                            \
        int i = __builtin_ctzll(large);                                                                              \
        unsigned count = raw_bits(tokens[i]);                                                                        \
        u64 rest = bits_at(c->bits, c->bits_size, at);                                                               \
        if (W == 8 && count > 32)                                                                                    \
          rest = (rest & 0xFFFFFFFFu) | bits_at(c->bits, c->bits_size, at + 32) << 32;                               \
        at += count;                                                                                                 \
        z[i] = (T)((u64)(4 + (tokens[i] & 3)) << count | (rest & ((1ull << count) - 1)));                            \
      }                                                                                                              \
      add##W(z, m, p + start, x + start);                                                                                       \
    }                                                                                                                \
    int wrong = c->starved || c->word != c->end || (at + 7) / 8 != c->bits_size;                                     \
    for (size_t lane = 0; lane < c->lanes; lane++) wrong |= c->states[lane] != LOWEST;                               \
    return wrong;                                                                                                    \
  }

DIFFERENCES(u8, int8_t, 1, 0)
DIFFERENCES(u16, int16_t, 2, 7)
DIFFERENCES(u32, int32_t, 4, 23)
DIFFERENCES(u64, int64_t, 8, 52)

/* The elements of x (n of `width` bytes) less those of the parent: for each block of 64 whether it is active, and for
 * the elements of active blocks token and key (n bytes each), their raw bits (width * n + 16 bytes). Returns how many
 * elements those are. */
size_t modelgit_residuals(int width, const void *x, const void *parent, size_t n, u8 *active, u8 *tokens, u8 *keys,
                          u8 *bits, size_t *bits_size) {
#define CALL(W, T) return residuals##W((const T *)x, (const T *)parent, n, active, tokens, keys, bits, bits_size)
  FOR_WIDTH(CALL)
#undef CALL
  return 0;
}

/* table (2 * 256 * alphabet zeros) -> in its first half, how often each token comes with each key. */
void modelgit_count(const u8 *tokens, const u8 *keys, size_t n, unsigned alphabet, u32 *table) {
  u32 *odd = table + 256 * (size_t)alphabet; /* so that a counter is seldom read right after its write */
  size_t i = 0;
  for (; i + 2 <= n; i += 2) {
    table[keys[i] * alphabet + tokens[i]]++;
    odd[keys[i + 1] * alphabet + tokens[i + 1]]++;
  }
  if (i < n) table[keys[i] * alphabet + tokens[i]]++;
  for (i = 0; i < 256 * (size_t)alphabet; i++) table[i] += odd[i];
}

/* ------------------------------------------------------------------ encoding: from the last element to the first */

struct encoder {
  const u32 *symbols; /* for each context and token: frequency - 1, and the sum of those before << 16 */
  unsigned alphabet, alphabet_bits;
  u8 first, last;
  u32 *states;
  size_t mask; /* lanes - 1 */
  u16 *to;     /* written backwards */
};

static void encode_plain(struct encoder *c, const u8 *tokens, const u8 *keys, size_t from, size_t end) {
  for (size_t k = end; k-- > from;) {
    u32 symbol = c->symbols[context_of(keys[k], c->first, c->last) * c->alphabet + tokens[k]];
    u32 f = (symbol & 0xFFFF) + 1, x = c->states[k & c->mask];
    if (x > (f << 19) - 1) *--c->to = (u16)x, x >>= 16;
    c->states[k & c->mask] = x / f * (ONE - f) + x + (symbol >> 16);
  }
}

#ifdef AVX2
/* n is a multiple of 8. The quotient of x + 1/2 in double precision is exact enough: x < 2^31, f <= 2^12. */
AVX2 static void encode_wide(struct encoder *c, const u8 *tokens, const u8 *keys, size_t n) {
  const __m256i one = _mm256_set1_epi32(1), whole = _mm256_set1_epi32(ONE), low = _mm256_set1_epi32(0xFFFF);
  const __m128i first = _mm_set1_epi8((char)c->first), last = _mm_set1_epi8((char)c->last);
  const __m128i shift = _mm_cvtsi32_si128((int)c->alphabet_bits);
  const __m256d half = _mm256_set1_pd(0.5);
  for (size_t k = n; k > 0;) {
    k -= VECTOR;
    __m128i key = _mm_loadl_epi64((const __m128i *)(keys + k));
    key = _mm_sub_epi8(_mm_min_epu8(_mm_max_epu8(key, first), last), first);
    __m256i at = _mm256_sll_epi32(_mm256_cvtepu8_epi32(key), shift);
    at = _mm256_add_epi32(at, _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(tokens + k))));
    __m256i symbol = _mm256_i32gather_epi32((const int *)c->symbols, at, 4);
    __m256i f = _mm256_add_epi32(_mm256_and_si256(symbol, low), one);
    __m256i *states = (__m256i *)(c->states + (k & c->mask));
    __m256i x = _mm256_loadu_si256(states);
    __m256i shed = _mm256_cmpgt_epi32(x, _mm256_sub_epi32(_mm256_slli_epi32(f, 19), one));
    unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(shed));
    __m256i order = _mm256_loadu_si256((const __m256i *)gathered[mask]);
    __m256i words = _mm256_permutevar8x32_epi32(_mm256_and_si256(x, low), order);
    words = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0xD8);
    _mm_storeu_si128((__m128i *)(c->to - VECTOR), _mm256_castsi256_si128(words));
    c->to -= __builtin_popcount(mask);
    x = _mm256_blendv_epi8(x, _mm256_srli_epi32(x, 16), shed);
    __m256d x0 = _mm256_add_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(x)), half);
    __m256d x1 = _mm256_add_pd(_mm256_cvtepi32_pd(_mm256_extracti128_si256(x, 1)), half);
    __m128i q0 = _mm256_cvttpd_epi32(_mm256_div_pd(x0, _mm256_cvtepi32_pd(_mm256_castsi256_si128(f))));
    __m128i q1 = _mm256_cvttpd_epi32(_mm256_div_pd(x1, _mm256_cvtepi32_pd(_mm256_extracti128_si256(f, 1))));
    __m256i q = _mm256_inserti128_si256(_mm256_castsi128_si256(q0), q1, 1);
    x = _mm256_add_epi32(_mm256_mullo_epi32(q, _mm256_sub_epi32(whole, f)), x);
    _mm256_storeu_si256(states, _mm256_add_epi32(x, _mm256_srli_epi32(symbol, 16)));
  }
}
#endif

/* Codes n tokens with the frequencies (last - first + 1 contexts of `alphabet` tokens). states: `lanes` of them, a
 * power of two; words: n + 8, filled from the end; symbols: scratch as long as the frequencies. Returns how many words
 * were written. */
size_t modelgit_encode(const u8 *tokens, const u8 *keys, size_t n, unsigned alphabet, u8 first, u8 last,
                       const u16 *frequencies, size_t lanes, u32 *states, u16 *words, u32 *symbols, int wide) {
  for (unsigned context = 0; context <= (unsigned)(last - first); context++) {
    u32 sum = 0;
    for (unsigned i = context * alphabet; i < (context + 1) * alphabet; i++) {
      symbols[i] = ((frequencies[i] - 1u) & 0xFFFF) | sum << 16;
      sum += frequencies[i];
    }
  }
  struct encoder c = {symbols, alphabet, (unsigned)__builtin_ctz(alphabet), first, last, states, lanes - 1,
                      words + n + VECTOR};
  for (size_t lane = 0; lane < lanes; lane++) states[lane] = LOWEST;
  size_t in_vectors = 0;
#ifdef AVX2
  if (wide && lanes >= VECTOR) in_vectors = n & ~(size_t)(VECTOR - 1);
#endif
  encode_plain(&c, tokens, keys, in_vectors, n);
#ifdef AVX2
  if (in_vectors) encode_wide(&c, tokens, keys, in_vectors);
#endif
  return (size_t)(words + n + VECTOR - c.to);
}

/* Undoes it all: x (n elements) becomes the child of the parent, which may lie in it. slots: scratch, 4096 for each context. The
 * frequencies of a context add up to 4096: the caller has checked. Returns 0 unless words or bits do not fit. */
int modelgit_apply(int width, void *x, const void *parent, size_t n, const u8 *active, unsigned alphabet, u8 first, u8 last,
                   const u16 *frequencies, u32 *slots, u32 *states, size_t lanes, const u16 *words, size_t word_count,
                   const u8 *bits, size_t bits_size, int wide) {
  u32 *slot = slots;
  for (size_t i = 0; i < (size_t)(last - first + 1) * alphabet; i++)
    for (u32 k = 0, f = frequencies[i]; k < f; k++) *slot++ = (u32)(i % alphabet) | (f - 1) << 8 | k << 20;
  struct decoder c = {slots, first, last, states, lanes, 0, words, words + word_count, bits, bits_size, wide, 0};
#define CALL(W, T) return apply##W(&c, (T *)x, (const T *)parent, n, active)
  FOR_WIDTH(CALL)
#undef CALL
  return 1;
}

/* Whether this processor has what the wide functions need. */
int modelgit_wide(void) {
#ifdef AVX2
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
#else
  return 0;
#endif
}
