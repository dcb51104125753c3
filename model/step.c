/* A few tokens through a model on a CPU, as fast as its weights are read from memory.

   What model/transformer.py computes, for tokens of any rows of a KV cache, each at its own place:
   all of a row's earlier tokens are seen, and those after it are not. Weights are fp32, bf16, fp16
   or int8 with a scale for each output, and are widened in registers; everything else is fp32. A
   token's numbers are the same to the last bit whatever others are computed with it. Compiled for
   the machine at hand by model/compiled.py; model/steps/cpu.py has the same structures and calls it.

   N tokens, D width, H heads, G of keys and values, K head size, F inner width. */

#include <math.h>
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
#define CHUNK 64 /* Earlier tokens that attention looks at together. */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef int8_t i8_lanes __attribute__((vector_size(LANES)));
typedef uint16_t u16_lanes __attribute__((vector_size(2 * LANES)));
typedef _Float16 f16_lanes __attribute__((vector_size(2 * LANES)));

typedef float f32;
typedef uint16_t bf16;
typedef _Float16 f16;
typedef int8_t i8;

typedef struct {
  const void *data;   /* (outputs, inputs) */
  const float *scale; /* (outputs), or NULL */
  int64_t outputs, inputs;
  int64_t kind; /* 0 fp32, 1 bf16, 2 fp16, 3 int8 */
} Weight;

typedef struct {
  const float *attention_norm, *mlp_norm; /* (D) */
  Weight q, k, v, o, gate, up, down;
} Layer;

typedef struct {
  const Layer *layers;
  int64_t num_layers;
  Weight embedding, head;
  const float *norm;                  /* (D), before the head */
  int64_t heads, kv_heads, head_size; /* H, G, K */
  int64_t spread;                     /* how weights are walked: see ORDER */
  float eps;
} Model;

typedef struct {
  float *keys, *values;                /* (layers, rows, G, room, K) */
  int64_t layer_step, row_step, room; /* from a layer and a row to the next, in floats */
} Cache;

/* LANES numbers from memory, and a single one, as fp32. */

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

/* Compilers do not find the next two instructions by themselves. */

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

/* R rows of a weight, `step` rows apart, times C tokens, whose outputs are N apart; added to what is
   there, if `add`. With step 1 the R rows behind these are asked for meanwhile: they come next, and
   rows are too short for the processor to notice. */
#define TILE(R, C, T)                                                                             \
  static inline void tile_##R##_##C##_##T(const float *x, const T *w, const float *scale,         \
                                          float *y, int64_t N, int64_t K, int64_t step,           \
                                          int add) {                                              \
    vec sums[R][C];                                                                               \
    for (int r = 0; r < R; r++)                                                                   \
      for (int c = 0; c < C; c++) sums[r][c] = (vec){0};                                          \
    int64_t k = 0;                                                                                \
    for (; k + LANES <= K; k += LANES) {                                                          \
      vec xs[C];                                                                                  \
      for (int c = 0; c < C; c++) xs[c] = lanes_f32(x + c * K + k);                               \
      for (int r = 0; r < R; r++) {                                                               \
        if (step == 1) __builtin_prefetch(w + (r + R) * K + k);                                   \
        vec ws = lanes_##T(w + r * step * K + k);                                                 \
        for (int c = 0; c < C; c++) sums[r][c] += ws * xs[c];                                     \
      }                                                                                           \
    }                                                                                             \
    for (int r = 0; r < R; r++)                                                                   \
      for (int c = 0; c < C; c++) {                                                               \
        float sum = total(sums[r][c]);                                                            \
        const T *row = w + r * step * K;                                                          \
        /* Rounded once, here and below, whatever the compiler makes of each tile. */             \
        for (int64_t j = k; j < K; j++) sum = fmaf(one_##T(row[j]), x[c * K + j], sum);           \
        float *out = y + c * N + r * step, before = add ? *out : 0;                               \
        *out = scale ? fmaf(sum, scale[r * step], before) : before + sum;                         \
      }                                                                                           \
  }

/* y (M, N) = x (M, K) @ w (N, K).T. Threads share the weight's rows, four at a time; they do not
   wait for each other at the end. ORDER: the four are neighbours, or, if `spread`, from each quarter
   of the weight one, which makes four long streams that processors may read ahead by themselves.
   Which is faster is a matter of the processor; the numbers are the same. */
#define PRODUCT(T)                                                                                \
  TILE(4, 1, T) TILE(4, 2, T) TILE(2, 4, T) TILE(1, 1, T)                                         \
  static void product_##T(const float *x, const T *weight, const float *scale, float *y,          \
                          int64_t M, int64_t N, int64_t K, int64_t spread, int add) {             \
    int64_t fours = N / 4, step = spread ? fours : 1;                                             \
    _Pragma("omp for schedule(static) nowait")                                                    \
    for (int64_t four = 0; four < fours; four++) {                                                \
      int64_t n = spread ? four : 4 * four, m = 0;                                                \
      const T *w = weight + n * K;                                                                \
      const float *s = scale ? scale + n : NULL;                                                  \
      for (; m + 4 <= M; m += 4) {                                                                \
        tile_2_4_##T(x + m * K, w, s, y + m * N + n, N, K, step, add);                            \
        tile_2_4_##T(x + m * K, w + 2 * step * K, s ? s + 2 * step : s, y + m * N + n + 2 * step, \
                     N, K, step, add);                                                            \
      }                                                                                           \
      if (M - m >= 2) {                                                                           \
        tile_4_2_##T(x + m * K, w, s, y + m * N + n, N, K, step, add);                            \
        m += 2;                                                                                   \
      }                                                                                           \
      if (m < M) tile_4_1_##T(x + m * K, w, s, y + m * N + n, N, K, step, add);                   \
    }                                                                                             \
    _Pragma("omp single nowait")                                                                  \
    for (int64_t n = 4 * fours; n < N; n++)                                                       \
      for (int64_t m = 0; m < M; m++)                                                             \
        tile_1_1_##T(x + m * K, weight + n * K, scale ? scale + n : NULL, y + m * N + n, N, K, 1, \
                     add);                                                                        \
  }

PRODUCT(f32)
PRODUCT(bf16)
PRODUCT(f16)
PRODUCT(i8)

static void multiply(const Weight *w, const float *x, float *y, int64_t M, int64_t spread, int add) {
  int64_t N = w->outputs, K = w->inputs;
  switch (w->kind) {
    case 0: product_f32(x, w->data, w->scale, y, M, N, K, spread, add); break;
    case 1: product_bf16(x, w->data, w->scale, y, M, N, K, spread, add); break;
    case 2: product_f16(x, w->data, w->scale, y, M, N, K, spread, add); break;
    case 3: product_i8(x, w->data, w->scale, y, M, N, K, spread, add); break;
  }
}

static float dot(const float *a, const float *b, int64_t size) {
  vec sums = {0};
  int64_t k = 0;
  for (; k + LANES <= size; k += LANES) sums += lanes_f32(a + k) * lanes_f32(b + k);
  float sum = total(sums);
  for (; k < size; k++) sum += a[k] * b[k];
  return sum;
}

/* y (D) is row n of a weight. */
static void take_row(const Weight *w, int64_t n, float *y) {
  int64_t D = w->inputs;
  float scale = w->scale ? w->scale[n] : 1;
  switch (w->kind) {
    case 0: memcpy(y, (const f32 *)w->data + n * D, D * sizeof(f32)); break;
    case 1: for (int64_t d = 0; d < D; d++) y[d] = one_bf16(((const bf16 *)w->data)[n * D + d]); break;
    case 2: for (int64_t d = 0; d < D; d++) y[d] = one_f16(((const f16 *)w->data)[n * D + d]); break;
    case 3: for (int64_t d = 0; d < D; d++) y[d] = scale * ((const i8 *)w->data)[n * D + d]; break;
  }
}

/* y = x / sqrt(mean(x^2) + eps) * weight, for each of N tokens: those at `places`, or the first. */
static void norm(const float *x, const int64_t *places, const float *weight, float eps, float *y,
                 int64_t N, int64_t D) {
#pragma omp for schedule(static)
  for (int64_t n = 0; n < N; n++) {
    const float *in = x + (places ? places[n] : n) * D;
    float factor = 1 / sqrtf(dot(in, in, D) / (float)D + eps);
    for (int64_t d = 0; d < D; d++) y[n * D + d] = in[d] * factor * weight[d];
  }
}

/* Turn each pair (x[i], x[i + K/2]) by its angle. */
static void rotate(float *x, const float *cos, const float *sin, int64_t K) {
  for (int64_t i = 0; i < K / 2; i++) {
    float left = x[i], right = x[i + K / 2];
    x[i] = left * cos[i] - right * sin[i];
    x[i + K / 2] = right * cos[i] + left * sin[i];
  }
}

/* One head of one token on `seen` keys and values (seen, K): the mean of values, weighted by
   softmax(q . k / sqrt(K)), in chunks whose largest score may still grow. */
static void attend(const float *q, const float *keys, const float *values, float *y, int64_t seen,
                   int64_t K) {
  float scores[CHUNK], largest = -INFINITY, sum = 0, per_key = 1 / sqrtf((float)K);
  for (int64_t k = 0; k < K; k++) y[k] = 0;
  for (int64_t first = 0; first < seen; first += CHUNK) {
    int64_t size = seen - first < CHUNK ? seen - first : CHUNK;
    float before = largest;
    for (int64_t j = 0; j < size; j++) {
      scores[j] = dot(q, keys + (first + j) * K, K) * per_key;
      if (scores[j] > largest) largest = scores[j];
    }
    float shrink = expf(before - largest);
    sum *= shrink;
    for (int64_t k = 0; k < K; k++) y[k] *= shrink;
    for (int64_t j = 0; j < size; j++) {
      float p = expf(scores[j] - largest);
      const float *v = values + (first + j) * K;
      sum += p;
      for (int64_t k = 0; k < K; k++) y[k] += p * v[k];
    }
  }
  for (int64_t k = 0; k < K; k++) y[k] /= sum;
}

/* N tokens through the model. Token n is the one at positions[n] of row rows[n]; its keys and
   values are written there, and its rotation is the row angles[n] of cos and sin (any, K / 2). Of
   the tokens at P `places`, the logits (P, V) of what comes next are found. `scratch` has room for
   N * (2 D + 2 H K + 2 G K + 2 F) floats. */
void velocity_step(const Model *model, const Cache *cache, const int64_t *tokens,
                   const int64_t *rows, const int64_t *positions, int64_t N, const float *cos,
                   const float *sin, const int64_t *angles, const int64_t *places, int64_t P,
                   float *logits, float *scratch, int threads) {
  int64_t H = model->heads, G = model->kv_heads, K = model->head_size;
  int64_t D = model->embedding.inputs, F = model->layers[0].gate.outputs, S = model->spread;
  float *x = scratch, *normed = x + N * D, *q = normed + N * D, *mixed = q + N * H * K;
  float *k = mixed + N * H * K, *v = k + N * G * K, *gate = v + N * G * K, *up = gate + N * F;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t n = 0; n < N; n++) take_row(&model->embedding, tokens[n], x + n * D);
    for (int64_t l = 0; l < model->num_layers; l++) {
      const Layer *layer = model->layers + l;
      float *keys = cache->keys + l * cache->layer_step;
      float *values = cache->values + l * cache->layer_step;
      norm(x, NULL, layer->attention_norm, model->eps, normed, N, D);
      multiply(&layer->q, normed, q, N, S, 0);
      multiply(&layer->k, normed, k, N, S, 0);
      multiply(&layer->v, normed, v, N, S, 0);
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t n = 0; n < N; n++) {
        const float *c = cos + angles[n] * K / 2, *s = sin + angles[n] * K / 2;
        for (int64_t h = 0; h < H; h++) rotate(q + (n * H + h) * K, c, s, K);
        for (int64_t g = 0; g < G; g++) {
          float *new_key = k + (n * G + g) * K;
          int64_t place = rows[n] * cache->row_step + (g * cache->room + positions[n]) * K;
          rotate(new_key, c, s, K);
          memcpy(keys + place, new_key, K * sizeof(float));
          memcpy(values + place, v + (n * G + g) * K, K * sizeof(float));
        }
      }
#pragma omp for collapse(2) schedule(static)
      for (int64_t n = 0; n < N; n++)
        for (int64_t h = 0; h < H; h++) {
          int64_t head = rows[n] * cache->row_step + h / (H / G) * cache->room * K;
          attend(q + (n * H + h) * K, keys + head, values + head, mixed + (n * H + h) * K,
                 positions[n] + 1, K);
        }
      multiply(&layer->o, mixed, x, N, S, 1);
#pragma omp barrier
      norm(x, NULL, layer->mlp_norm, model->eps, normed, N, D);
      multiply(&layer->gate, normed, gate, N, S, 0);
      multiply(&layer->up, normed, up, N, S, 0);
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t i = 0; i < N * F; i++) gate[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
      multiply(&layer->down, gate, x, N, S, 1);
#pragma omp barrier
    }
    norm(x, places, model->norm, model->eps, normed, P, D);
    multiply(&model->head, normed, logits, P, S, 0);
  }
}
