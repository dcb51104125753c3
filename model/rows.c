/* y = x @ weight.T for a few rows of x: as fast as the weight is read from memory.

   x (M, K) and y (M, N) are fp32; weight (N, K) is fp32, bf16, fp16 or int8, and is widened in
   registers; scale (N), or NULL, multiplies the outputs. Sums are fp32. Compiled for the machine
   at hand by model/rows.py, which compares it with torch before it is used. */

#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8 /* On processors with narrower registers, the compiler takes two. */
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef int8_t i8_lanes __attribute__((vector_size(LANES)));
typedef uint16_t u16_lanes __attribute__((vector_size(2 * LANES)));
typedef _Float16 f16_lanes __attribute__((vector_size(2 * LANES)));

typedef float f32;
typedef uint16_t bf16;
typedef _Float16 f16;
typedef int8_t i8;

/* LANES weights from memory, and a single one, as fp32. */

static inline vec lanes_f32(const f32 *p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

static inline vec lanes_bf16(const bf16 *p) {
  u16_lanes v;
  memcpy(&v, p, sizeof v);
  return (vec)(__builtin_convertvector(v, ivec) << 16);
}

/* Compilers do not find these two instructions by themselves. */

static inline vec lanes_f16(const f16 *p) {
#if defined(__AVX512F__)
  return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
  return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
  f16_lanes v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vec);
#endif
}

static inline vec lanes_i8(const i8 *p) {
#if defined(__AVX512F__)
  return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
  return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
  i8_lanes v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vec);
#endif
}

static inline float one_f32(f32 w) { return w; }
static inline float one_f16(f16 w) { return (float)w; }
static inline float one_i8(i8 w) { return (float)w; }
static inline float one_bf16(bf16 w) {
  uint32_t bits = (uint32_t)w << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

static inline float total(vec v) {
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += v[i];
  return sum;
}

/* R weight rows times C rows of x, whose outputs are N apart. The R rows behind these are asked for
   meanwhile: they come next, and rows are too short for the processor to notice. */
#define TILE(R, C, T)                                                                             \
  static inline void tile_##R##_##C##_##T(const float *x, const T *w, const float *scale,         \
                                          float *y, int64_t N, int64_t K) {                       \
    vec sums[R][C];                                                                               \
    for (int r = 0; r < R; r++)                                                                   \
      for (int c = 0; c < C; c++) sums[r][c] = (vec){0};                                          \
    int64_t k = 0;                                                                                \
    for (; k + LANES <= K; k += LANES) {                                                          \
      vec xs[C];                                                                                  \
      for (int c = 0; c < C; c++) xs[c] = lanes_f32(x + c * K + k);                               \
      for (int r = 0; r < R; r++) {                                                               \
        __builtin_prefetch(w + (r + R) * K + k);                                                  \
        vec ws = lanes_##T(w + r * K + k);                                                        \
        for (int c = 0; c < C; c++) sums[r][c] += ws * xs[c];                                     \
      }                                                                                           \
    }                                                                                             \
    for (int r = 0; r < R; r++)                                                                   \
      for (int c = 0; c < C; c++) {                                                               \
        float sum = total(sums[r][c]);                                                            \
        for (int64_t j = k; j < K; j++) sum += one_##T(w[r * K + j]) * x[c * K + j];              \
        y[c * N + r] = scale ? sum * scale[r] : sum;                                              \
      }                                                                                           \
  }

/* Threads share the weight's rows in runs, four at a time. */
#define ROWS(T)                                                                                   \
  TILE(4, 1, T) TILE(4, 2, T) TILE(2, 4, T) TILE(1, 1, T)                                         \
  void rows_##T(const float *x, const T *weight, const float *scale, float *y, int64_t M,         \
                int64_t N, int64_t K, int threads) {                                              \
    int64_t fours = N / 4;                                                                        \
    _Pragma("omp parallel for num_threads(threads) schedule(static)")                             \
    for (int64_t four = 0; four < fours; four++) {                                                \
      int64_t n = 4 * four, m = 0;                                                                \
      const T *w = weight + n * K;                                                                \
      const float *s = scale ? scale + n : NULL;                                                  \
      for (; m + 4 <= M; m += 4) {                                                                \
        tile_2_4_##T(x + m * K, w, s, y + m * N + n, N, K);                                       \
        tile_2_4_##T(x + m * K, w + 2 * K, s ? s + 2 : s, y + m * N + n + 2, N, K);               \
      }                                                                                           \
      if (M - m >= 2) {                                                                           \
        tile_4_2_##T(x + m * K, w, s, y + m * N + n, N, K);                                       \
        m += 2;                                                                                   \
      }                                                                                           \
      if (m < M) tile_4_1_##T(x + m * K, w, s, y + m * N + n, N, K);                              \
    }                                                                                             \
    for (int64_t n = 4 * fours; n < N; n++)                                                       \
      for (int64_t m = 0; m < M; m++)                                                             \
        tile_1_1_##T(x + m * K, weight + n * K, scale ? scale + n : NULL, y + m * N + n, N, K);   \
  }

ROWS(f32)
ROWS(bf16)
ROWS(f16)
ROWS(i8)
