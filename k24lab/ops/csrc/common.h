/* What the kernels share: 2:4 matrices times activations, and networks over whole sequences.
 *
 * Activations are stored feature by feature: x[k][f][c], where c runs over all columns (time steps times rows) of
 * network k. Then a weight is one broadcast and the activations of its input one run of full vectors, so that a
 * weight that a mask drops costs nothing at all. Tiles of at most 64 columns are copied to where they stay in the cache.
 *
 * A sparse matrix [P, Q] is cut into chunks of CHUNK columns. Of each row's part in a chunk the kept values come
 * first, with their places in the chunk: values[k][chunk][p][cap], places[...], counts[k][chunk][p].
 */

#ifndef K24_COMMON
#define K24_COMMON

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK 128
#define LANES 8
#define WIDE 64   /* columns of a tile of a linear layer: 128 inputs of it are 32 KiB */
#define NARROW 32 /* columns of a tile of the GRU, or of few columns */
#define CHAINS 8  /* sums that run side by side, to hide the latency of the units that multiply and add */

typedef float vec __attribute__((vector_size(32)));
typedef int32_t ivec __attribute__((vector_size(32)));
typedef float loose_vec __attribute__((vector_size(32), aligned(4)));

/* Keeps the compiler from reading x from memory again at each use. */
#if defined(__AVX2__)
#define IN_REGISTER(x) __asm__("" : "+x"(x))
#else
#define IN_REGISTER(x)
#endif

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    const float *values;
    const uint8_t *places;
    const int32_t *counts;
    int64_t rows, chunks, cap;
} sparse;

/* The matrices [rows, inputs] of K networks: dense with `stride` floats a network (0: one for all, also if it is packed),
 * and where `values` is not NULL once more packed. */
typedef struct {
    const float *dense;
    int64_t stride;
    const float *values;
    const uint8_t *places;
    const int32_t *counts;
    int64_t cap;
} matrix;

/* A layer of K networks, as k24lab.ops.calls.Layer. */
typedef struct {
    matrix w;
    const float *bias;
    int64_t bias_stride, rows, inputs;
    float *by_weight, *by_bias; /* gradients, in the backward pass */
} layer;

void k24_pack_transposed(int64_t networks, int64_t rows, int64_t columns, int64_t cap, const float *dense,
                         float *values, uint8_t *places, int32_t *counts);

INLINE vec all(float x) { return (vec){x, x, x, x, x, x, x, x}; }
INLINE vec load(const float *p) { return *(const loose_vec *)p; }
INLINE void store(float *p, vec x) { *(loose_vec *)p = x; }

INLINE vec either(ivec which, vec a, vec b) { return (vec)(((ivec)a & which) | ((ivec)b & ~which)); }

/* e^x of x in [-87, 88], to 2 units in the last place: a power of two times a polynomial on [-ln 2 / 2, ln 2 / 2]
 * (Cephes). */
INLINE vec exponential_in_range(vec x) {
    const vec rounder = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    vec shifted = x * all(1.44269504f) + rounder;
    vec n = shifted - rounder;
    vec r = x - n * all(0.693359375f) - n * all(-2.12194440e-4f);
    vec p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

INLINE vec in_range(vec x) {
    return either(x > all(88.0f), all(88.0f), either(x < all(-87.0f), all(-87.0f), x));
}

/* Zero below e^-87, e^88 at most. */
INLINE vec exponential(vec x) { return either(x < all(-87.0f), all(0.0f), exponential_in_range(in_range(x))); }

INLINE vec sigmoid(vec x) { return all(1.0f) / (all(1.0f) + exponential_in_range(in_range(-x))); }
INLINE vec tangent(vec x) { return all(1.0f) - all(2.0f) / (all(1.0f) + exponential_in_range(in_range(x + x))); }

/* The first `count` floats of a vector, the others zero. */
INLINE vec load_part(const float *from, int64_t count) {
    if (count == LANES) return load(from);
    float part[LANES] = {0};
    for (int64_t i = 0; i < count; i++) part[i] = from[i];
    return load(part);
}

INLINE void store_part(float *to, vec x, int64_t count) {
    if (count == LANES)
        store(to, x);
    else
        for (int64_t i = 0; i < count; i++) to[i] = x[i];
}

/* Rows lie pages apart, where no hardware sees a stream: fetch what the next tile or time step will need. */
INLINE void prefetch(const float *row, const int width) {
    for (int j = 0; j < width; j += 16) __builtin_prefetch(row + j);
}

INLINE void read_row(float *to, const float *from, int64_t columns, const int width) {
    if (columns == width)
        for (int j = 0; j < width; j += LANES) store(to + j, load(from + j));
    else {
        memset(to, 0, width * sizeof(float));
        memcpy(to, from, columns * sizeof(float));
    }
}

INLINE void write_row(float *to, const vec *from, int64_t columns, const int width) {
    if (columns == width)
        for (int j = 0; j < width / LANES; j++) store(to + j * LANES, from[j]);
    else
        memcpy(to, from, columns * sizeof(float));
}

INLINE sparse packed_network(const matrix *w, int64_t k, int64_t rows, int64_t columns) {
    const int64_t chunks = (columns + CHUNK - 1) / CHUNK, at = k * chunks * rows;
    return (sparse){w->values + at * w->cap, w->places + at * w->cap, w->counts + at, rows, chunks, w->cap};
}

/* acc += sum over one row's part in a chunk, of `width` columns; features of the tile are `apart` floats apart. */
INLINE void sparse_dot(vec *acc, const float *value, const uint8_t *place, int count, const float *tile, const int width,
                       const int apart) {
    const int n = width / LANES, chains = CHAINS / n;
    vec sum[CHAINS];
    int e = 0;
    for (int j = 0; j < CHAINS; j++) sum[j] = j < n ? acc[j] : all(0.0f);
#pragma GCC unroll 4
    for (; e + chains <= count; e += chains)
        for (int c = 0; c < chains; c++) {
            const vec *x = (const vec *)tile + (size_t)place[e + c] * (apart / LANES), w = all(value[e + c]);
            for (int j = 0; j < n; j++) sum[c * n + j] += w * x[j];
        }
    for (; e < count; e++) {
        const vec *x = (const vec *)tile + (size_t)place[e] * (apart / LANES), w = all(value[e]);
        for (int j = 0; j < n; j++) sum[j] += w * x[j];
    }
    for (int j = 0; j < n; j++) {
        acc[j] = sum[j];
        for (int c = 1; c < chains; c++) acc[j] += sum[c * n + j];
    }
}

#endif
