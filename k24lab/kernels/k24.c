/* 2:4 matrices times activations, and a GRU over whole sequences, for one CPU thread.
 *
 * Activations are stored feature by feature: x[k][f][c], where c runs over all columns (time steps times rows) of
 * network k. Then a weight is one broadcast and the activations of its input one run of full vectors, so that a
 * weight that a mask drops costs nothing at all. Tiles of 64 or 32 columns are copied to where they stay in the cache.
 *
 * A sparse matrix [P, Q] is cut into chunks of CHUNK columns. Of each row's part in a chunk the kept values come
 * first, with their places in the chunk: values[k][chunk][p][cap], places[...], counts[k][chunk][p].
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK 128
#define LANES 8
#define WIDE 64   /* columns of a tile of a linear layer: 128 inputs of it are 32 KiB */
#define NARROW 32 /* columns of a tile of the GRU, or of few columns */

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

INLINE vec all(float x) { return (vec){x, x, x, x, x, x, x, x}; }
INLINE vec load(const float *p) { return *(const loose_vec *)p; }
INLINE void store(float *p, vec x) { *(loose_vec *)p = x; }

INLINE vec either(ivec which, vec a, vec b) { return (vec)(((ivec)a & which) | ((ivec)b & ~which)); }

/* e^x to 2 units in the last place: a power of two times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes).
 * Zero below e^-87, e^88 at most. */
INLINE vec exponential(vec x) {
    const ivec vanishes = x < all(-87.0f);
    x = either(x > all(88.0f), all(88.0f), either(vanishes, all(-87.0f), x));
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
    return either(vanishes, all(0.0f), (vec)((ivec)p + ((ivec)shifted << 23)));
}

INLINE vec sigmoid(vec x) { return all(1.0f) / (all(1.0f) + exponential(-x)); }
INLINE vec tangent(vec x) { return all(1.0f) - all(2.0f) / (all(1.0f) + exponential(x + x)); }

/* acc += sum over one row's part in a chunk; two chains where a tile has few vectors, to hide the latency. */
INLINE void sparse_dot(vec *acc, const float *value, const uint8_t *place, int count, const float *tile, const int width) {
    const int n = width / LANES;
    int e = 0;
    if (width == NARROW) {
        vec second[NARROW / LANES];
        for (int j = 0; j < n; j++) second[j] = all(0.0f);
#pragma GCC unroll 2
        for (; e + 1 < count; e += 2) {
            const vec *a = (const vec *)tile + (size_t)place[e] * n, *b = (const vec *)tile + (size_t)place[e + 1] * n;
            const vec w = all(value[e]), v = all(value[e + 1]);
            for (int j = 0; j < n; j++) acc[j] += w * a[j];
            for (int j = 0; j < n; j++) second[j] += v * b[j];
        }
        for (int j = 0; j < n; j++) acc[j] += second[j];
    }
#pragma GCC unroll 4
    for (; e < count; e++) {
        const vec *a = (const vec *)tile + (size_t)place[e] * n, w = all(value[e]);
        for (int j = 0; j < n; j++) acc[j] += w * a[j];
    }
}

INLINE void sparse_row(vec *acc, const sparse *m, int64_t row, const float *tile, const int width) {
    for (int64_t c = 0; c < m->chunks; c++) {
        const int64_t at = c * m->rows + row;
        sparse_dot(acc, m->values + at * m->cap, m->places + at * m->cap, m->counts[at], tile + c * CHUNK * width, width);
    }
}

/* Three rows of a dense matrix at once, their weights interleaved: each load of the tile serves three. */
static __attribute__((noinline)) void dense_rows(vec *restrict acc, const float *weight, int64_t inputs, const float *tile) {
    const int n = NARROW / LANES;
    vec sum[3 * NARROW / LANES];
    for (int j = 0; j < 3 * n; j++) sum[j] = acc[j];
    for (int64_t i = 0; i < inputs; i++) {
        const vec a = all(weight[3 * i]), b = all(weight[3 * i + 1]), c = all(weight[3 * i + 2]);
        for (int j = 0; j < n; j++) {
            vec x = *(const vec *)(tile + i * NARROW + j * LANES);
            IN_REGISTER(x);
            sum[j] += a * x;
            sum[n + j] += b * x;
            sum[2 * n + j] += c * x;
        }
    }
    for (int j = 0; j < 3 * n; j++) acc[j] = sum[j];
}

/* Interleave rows j, j + step and j + 2 step of a [rows, inputs] matrix for j = 0, jump, ...; zeros beyond its end. */
static void interleave(const float *dense, int64_t rows, int64_t inputs, int64_t jump, int64_t step, float *to) {
    for (int64_t j = 0; j + (step > 1 ? 2 * step : 0) < rows; j += jump)
        for (int64_t i = 0; i < inputs; i++)
            for (int64_t g = 0; g < 3; g++) *to++ = j + g * step < rows ? dense[(j + g * step) * inputs + i] : 0.0f;
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

/* Pack the [rows, columns] matrices of K networks. Returns 1 if a row has more than `cap` values in a chunk. */
int k24_pack(int64_t networks, int64_t rows, int64_t columns, int64_t cap, const float *dense, float *values,
             uint8_t *places, int32_t *counts) {
    const int64_t chunks = (columns + CHUNK - 1) / CHUNK;
    for (int64_t k = 0; k < networks; k++)
        for (int64_t c = 0; c < chunks; c++)
            for (int64_t p = 0; p < rows; p++) {
                const int64_t start = c * CHUNK, size = columns - start < CHUNK ? columns - start : CHUNK;
                const int64_t at = (k * chunks + c) * rows + p;
                const float *row = dense + (k * rows + p) * columns + start;
                float value[CHUNK + 1];
                uint8_t place[CHUNK + 1];
                int count = 0;
                for (int64_t i = 0; i < size; i++) { /* no branch: which values are kept cannot be foretold */
                    value[count] = row[i];
                    place[count] = (uint8_t)i;
                    count += row[i] != 0.0f;
                }
                if (count > cap) return 1;
                memcpy(values + at * cap, value, count * sizeof(float));
                memcpy(places + at * cap, place, count);
                counts[at] = count;
            }
    return 0;
}

/* Pack the transposes of K dense [rows, columns] matrices; `cap` is CHUNK, or `rows` if that is less. */
void k24_pack_transposed(int64_t networks, int64_t rows, int64_t columns, int64_t cap, const float *dense,
                         float *values, uint8_t *places, int32_t *counts) {
    const int64_t chunks = (rows + CHUNK - 1) / CHUNK;
    for (int64_t k = 0; k < networks; k++)
        for (int64_t c = 0; c < chunks; c++) {
            const int64_t first = (k * chunks + c) * columns, start = c * CHUNK;
            const int64_t end = rows < start + CHUNK ? rows : start + CHUNK;
            int32_t *count = counts + first;
            memset(count, 0, columns * sizeof(int32_t));
            for (int64_t p = start; p < end; p++) {
                const float *row = dense + (k * rows + p) * columns;
                for (int64_t i = 0; i < columns; i++) {
                    const int64_t at = (first + i) * cap + count[i];
                    values[at] = row[i];
                    places[at] = (uint8_t)(p - start);
                    count[i] += row[i] != 0.0f;
                }
            }
        }
}

/* One chunk of inputs after another, so that what is read again and again stays in the nearest cache. */
INLINE void matmul_tile(const sparse *m, int64_t inputs, const float *x, int64_t ldx, const float *bias, int64_t relu,
                        float *y, int64_t ldy, int64_t columns, float *tile, const int width) {
    const int n = width / LANES;
    for (int64_t c = 0; c < m->chunks; c++) {
        const int64_t start = c * CHUNK, size = inputs - start < CHUNK ? inputs - start : CHUNK;
        for (int64_t i = 0; i < size; i++) read_row(tile + i * width, x + (start + i) * ldx, columns, width);
        for (int64_t p = 0; p < m->rows; p++) {
            vec acc[WIDE / LANES];
            if (c == 0)
                for (int j = 0; j < n; j++) acc[j] = all(bias ? bias[p] : 0.0f);
            else
                read_row((float *)acc, y + p * ldy, columns, width);
            if (p < size) prefetch(x + (start + p) * ldx + width, width);
            prefetch(y + p * ldy + width, width);
            const int64_t at = c * m->rows + p;
            sparse_dot(acc, m->values + at * m->cap, m->places + at * m->cap, m->counts[at], tile, width);
            if (relu && c == m->chunks - 1)
                for (int j = 0; j < n; j++) acc[j] = either(acc[j] < all(0.0f), all(0.0f), acc[j]);
            write_row(y + p * ldy, acc, columns, width);
        }
    }
}

/* y[k] = W[k] x[k] + bias[k]: x [K, inputs, columns] with strides kx, ldx; y [K, rows, columns] without gaps.
 * bias has `kb` floats a network (0: one bias for all) or is NULL. Returns 1 where memory is short. */
int k24_matmul(int64_t networks, int64_t rows, int64_t inputs, int64_t columns, int64_t cap,
                         const float *values, const uint8_t *places, const int32_t *counts, const float *x, int64_t kx,
                         int64_t ldx, const float *bias, int64_t kb, int64_t relu, float *y) {
    const int64_t chunks = (inputs + CHUNK - 1) / CHUNK;
    float *tile = aligned_alloc(64, CHUNK * WIDE * sizeof(float));
    if (!tile) return 1;
    for (int64_t k = 0; k < networks; k++) {
        const int64_t at = k * chunks * rows;
        const sparse m = {values + at * cap, places + at * cap, counts + at, rows, chunks, cap};
        for (int64_t c = 0; c < columns; c += WIDE) {
            const int64_t left = columns - c;
            const float *from = x + k * kx + c, *b = bias ? bias + k * kb : NULL;
            float *to = y + k * rows * columns + c;
            if (left <= NARROW)
                matmul_tile(&m, inputs, from, ldx, b, relu, to, columns, left, tile, NARROW);
            else
                matmul_tile(&m, inputs, from, ldx, b, relu, to, columns, left < WIDE ? left : WIDE, tile, WIDE);
        }
    }
    free(tile);
    return 0;
}

/* Hidden states of whole sequences: gate_x [K, 3H, T, R] (r, z, n; what the input contributes), h [K, H, T + 1, R]
 * whose first step is given, saved [K, 4H, T, R] (r, z, the hidden side of n, n) or NULL. The hidden side's matrix
 * is dense [Kw, 3H, H] with `kw` floats a network (0: one for all), or where `dense` is NULL sparse. */
int k24_gru(int64_t networks, int64_t size, int64_t steps, int64_t batch, const float *gate_x,
                      const float *bias, int64_t kb, const float *dense, int64_t kw, const float *values,
                      const uint8_t *places, const int32_t *counts, int64_t cap, float *h, float *saved) {
    const int64_t chunks = (size + CHUNK - 1) / CHUNK, columns = steps * batch, columns_h = (steps + 1) * batch;
    const int n = NARROW / LANES;
    const size_t room = 2 * (size_t)chunks * CHUNK * NARROW;
    float *tile = aligned_alloc(64, (room + (dense ? (size_t)(3 * size + 16) * size : 0) + 15) / 16 * 64);
    if (!tile) return 1;
    float *weight = tile + room;
    for (int64_t k = 0; k < networks; k++) {
        const int64_t at = k * chunks * 3 * size;
        const sparse m = {values + at * cap, places + at * cap, counts + at, 3 * size, chunks, cap};
        const float *b = bias + k * kb;
        if (dense && (k == 0 || kw)) interleave(dense + k * kw, 3 * size, size, 1, size, weight);
        for (int64_t first = 0; first < batch; first += NARROW) {
            const int64_t left = batch - first < NARROW ? batch - first : NARROW;
            float *now = tile, *next = tile + chunks * CHUNK * NARROW;
            for (int64_t j = 0; j < size; j++)
                read_row(now + j * NARROW, h + (k * size + j) * columns_h + first, left, NARROW);
            for (int64_t t = 0; t < steps; t++) {
                for (int64_t j = 0; j < size; j++) {
                    vec acc[3 * NARROW / LANES];
                    for (int g = 0; g < 3; g++)
                        for (int v = 0; v < n; v++) acc[g * n + v] = all(b[g * size + j]);
                    if (dense)
                        dense_rows(acc, weight + j * 3 * size, size, now);
                    else
                        for (int g = 0; g < 3; g++) sparse_row(acc + g * n, &m, g * size + j, now, NARROW);
                    float input[3 * NARROW];
                    for (int g = 0; g < 3; g++) {
                        const float *row = gate_x + (k * 3 * size + g * size + j) * columns + t * batch + first;
                        read_row(input + g * NARROW, row, left, NARROW);
                        prefetch(row + batch, NARROW);
                    }
                    vec out[4][NARROW / LANES], state[NARROW / LANES];
                    for (int v = 0; v < n; v++) {
                        out[0][v] = sigmoid(acc[v] + load(input + v * LANES));
                        out[1][v] = sigmoid(acc[n + v] + load(input + NARROW + v * LANES));
                        out[2][v] = acc[2 * n + v];
                        out[3][v] = tangent(load(input + 2 * NARROW + v * LANES) + out[0][v] * out[2][v]);
                        const vec before = *(const vec *)(now + j * NARROW + v * LANES);
                        state[v] = out[3][v] + out[1][v] * (before - out[3][v]);
                        *(vec *)(next + j * NARROW + v * LANES) = state[v];
                    }
                    write_row(h + (k * size + j) * columns_h + (t + 1) * batch + first, state, left, NARROW);
                    if (saved)
                        for (int g = 0; g < 4; g++) {
                            float *row = saved + (k * 4 * size + g * size + j) * columns + t * batch + first;
                            write_row(row, out[g], left, NARROW);
                            prefetch(row + batch, NARROW);
                        }
                }
                float *swap = now;
                now = next;
                next = swap;
            }
        }
    }
    free(tile);
    return 0;
}

/* Gradients of k24_gru: grad [K, H, T, R] to the hidden states; by_x [K, 3H, T, R] to gate_x, by_n [K, H, T, R] to
 * the hidden side of n (its r and z are those of by_x), by_h0 [K, H, R] to the first state. The matrix is the
 * transposed one: dense [Kw, H, 3H], or where `dense` is NULL sparse. */
int k24_gru_backward(int64_t networks, int64_t size, int64_t steps, int64_t batch, const float *grad,
                               const float *h, const float *saved, const float *dense, int64_t kw, const float *values,
                               const uint8_t *places, const int32_t *counts, int64_t cap, float *by_x, float *by_n,
                               float *by_h0) {
    const int64_t inputs = 3 * size, chunks = (inputs + CHUNK - 1) / CHUNK;
    const int64_t columns = steps * batch, columns_h = (steps + 1) * batch;
    const int n = NARROW / LANES;
    const size_t room = (size_t)(size + chunks * CHUNK) * NARROW;
    float *carry = aligned_alloc(64, (room + (dense ? (size_t)(size + 2) * inputs : 0) + 15) / 16 * 64);
    if (!carry) return 1;
    float *gates = carry + size * NARROW, *weight = carry + room;
    for (int64_t k = 0; k < networks; k++) {
        const int64_t at = k * chunks * size;
        const sparse m = {values + at * cap, places + at * cap, counts + at, size, chunks, cap};
        if (dense && (k == 0 || kw)) interleave(dense + k * kw, size, inputs, 3, 1, weight);
        for (int64_t first = 0; first < batch; first += NARROW) {
            const int64_t left = batch - first < NARROW ? batch - first : NARROW;
            memset(carry, 0, (size_t)size * NARROW * sizeof(float));
            for (int64_t t = steps - 1; t >= 0; t--) {
                for (int64_t j = 0; j < size; j++) {
                    float in[6 * NARROW]; /* grad, h before, r, z, hidden side of n, n */
                    read_row(in, grad + (k * size + j) * columns + t * batch + first, left, NARROW);
                    read_row(in + NARROW, h + (k * size + j) * columns_h + t * batch + first, left, NARROW);
                    for (int g = 0; g < 4; g++) {
                        const float *row = saved + (k * 4 * size + g * size + j) * columns + t * batch + first;
                        read_row(in + (2 + g) * NARROW, row, left, NARROW);
                        prefetch(row - batch, NARROW);
                    }
                    prefetch(grad + (k * size + j) * columns + (t - 1) * batch + first, NARROW);
                    prefetch(h + (k * size + j) * columns_h + (t - 1) * batch + first, NARROW);
                    vec out[4][NARROW / LANES];
                    for (int v = 0; v < n; v++) {
                        const float *p = in + v * LANES;
                        const vec before = load(p + NARROW), r = load(p + 2 * NARROW), z = load(p + 3 * NARROW);
                        const vec side = load(p + 4 * NARROW), tanh_n = load(p + 5 * NARROW), one = all(1.0f);
                        vec *kept = (vec *)(carry + j * NARROW + v * LANES);
                        const vec c = *kept + load(p);
                        *kept = c * z;
                        out[2][v] = (c - c * z) * (one - tanh_n * tanh_n);
                        out[3][v] = out[2][v] * r;
                        out[0][v] = out[2][v] * side * r * (one - r);
                        out[1][v] = c * (before - tanh_n) * z * (one - z);
                        *(vec *)(gates + j * NARROW + v * LANES) = out[0][v];
                        *(vec *)(gates + (size + j) * NARROW + v * LANES) = out[1][v];
                        *(vec *)(gates + (2 * size + j) * NARROW + v * LANES) = out[3][v];
                    }
                    for (int g = 0; g < 3; g++) {
                        float *row = by_x + (k * inputs + g * size + j) * columns + t * batch + first;
                        write_row(row, out[g], left, NARROW);
                        prefetch(row - batch, NARROW);
                    }
                    write_row(by_n + (k * size + j) * columns + t * batch + first, out[3], left, NARROW);
                }
                if (dense)
                    for (int64_t j = 0; j < size; j += 3) {
                        vec acc[3 * NARROW / LANES];
                        for (int v = 0; v < 3 * n; v++) acc[v] = all(0.0f);
                        dense_rows(acc, weight + j * inputs, inputs, gates);
                        for (int64_t i = 0; i < 3 && j + i < size; i++)
                            for (int v = 0; v < n; v++) *(vec *)(carry + (j + i) * NARROW + v * LANES) += acc[i * n + v];
                    }
                else
                    for (int64_t j = 0; j < size; j++) sparse_row((vec *)(carry + j * NARROW), &m, j, gates, NARROW);
            }
            for (int64_t j = 0; j < size; j++)
                memcpy(by_h0 + (k * size + j) * batch + first, carry + j * NARROW, left * sizeof(float));
        }
    }
    free(carry);
    return 0;
}

/* y = y + bias or its positive part, in place: y [K, rows, columns] without gaps, bias as in k24_matmul. */
void k24_bias(int64_t networks, int64_t rows, int64_t columns, const float *bias, int64_t kb, int64_t relu, float *y) {
    for (int64_t k = 0; k < networks; k++)
        for (int64_t p = 0; p < rows; p++, y += columns) {
            const float b = bias[k * kb + p];
            if (relu)
                for (int64_t c = 0; c < columns; c++) {
                    const float sum = y[c] + b;
                    y[c] = sum < 0.0f ? 0.0f : sum;
                }
            else
                for (int64_t c = 0; c < columns; c++) y[c] += b;
        }
}

/* Weighted sums of |x|: x [K, features, columns] with strides kx, ldx, weight [K, columns], sums [K, features]. */
void k24_abs_sum(int64_t networks, int64_t features, int64_t columns, const float *x, int64_t kx, int64_t ldx,
                 const float *weight, float *sums) {
    for (int64_t k = 0; k < networks; k++)
        for (int64_t i = 0; i < features; i++) {
            const float *row = x + k * kx + i * ldx, *w = weight + k * columns;
            vec sum[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
            const ivec magnitude = (ivec)all(0.0f) + 0x7fffffff;
            int64_t c = 0;
            for (; c + 4 * LANES <= columns; c += 4 * LANES)
                for (int j = 0; j < 4; j++)
                    sum[j] += load(w + c + j * LANES) * (vec)((ivec)load(row + c + j * LANES) & magnitude);
            vec total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            float rest = 0.0f;
            for (; c < columns; c++) rest += w[c] * (row[c] < 0.0f ? -row[c] : row[c]);
            for (int j = 0; j < LANES; j++) rest += total[j];
            sums[k * features + i] = rest;
        }
}

/* The six 2:4 patterns, as in k24lab.sparsity.patterns. */
static const int FIRST[6] = {0, 0, 0, 1, 1, 2}, SECOND[6] = {1, 2, 3, 2, 3, 3};

INLINE void read_groups(vec *planes, const float *groups, int64_t count) {
    for (int64_t g = 0; g < LANES; g++)
        for (int i = 0; i < 4; i++) planes[i][g] = g < count ? groups[4 * g + i] : 0.0f;
}

/* Draw one pattern for each of n groups of four scores: with `uniform` [n] from softmax(score of pattern /
 * temperature) by inverse transform sampling, without it the best one. Writes the index, the 0/1 mask [n, 4], and
 * unless it is NULL the law `probs` [6, n]. */
void k24_draw(int64_t n, const float *scores, float temperature, const float *uniform, int64_t *index, float *mask,
              float *probs) {
    for (int64_t at = 0; at < n; at += LANES) {
        const int64_t count = n - at < LANES ? n - at : LANES;
        vec s[4], z[6], p[6];
        read_groups(s, scores + 4 * at, count);
        for (int k = 0; k < 6; k++) z[k] = s[FIRST[k]] + s[SECOND[k]];
        vec best = z[0];
        ivec which = (ivec)all(0.0f);
        for (int k = 1; k < 6; k++) {
            const ivec better = z[k] > best;
            which = (which & ~better) | (better & k);
            best = either(better, z[k], best);
        }
        if (probs) {
            vec total = all(0.0f);
            for (int k = 0; k < 6; k++) total += p[k] = exponential((z[k] - best) / all(temperature));
            for (int k = 0; k < 6; k++) {
                p[k] /= total;
                if (count == LANES)
                    store(probs + k * n + at, p[k]);
                else
                    memcpy(probs + k * n + at, &p[k], count * sizeof(float));
            }
        }
        if (uniform) {
            vec u = all(0.0f), total = p[0];
            memcpy(&u, uniform + at, count * sizeof(float));
            for (int k = 1; k < 6; k++) total += p[k];
            u *= total; /* rounding may leave the total a little off 1 */
            which = (ivec)all(0.0f);
            total = all(0.0f);
            for (int k = 0; k < 5; k++) {
                total += p[k];
                which -= total <= u;
            }
        }
        for (int64_t g = 0; g < count; g++) {
            float *m = mask + 4 * (at + g);
            m[0] = m[1] = m[2] = m[3] = 0.0f;
            m[FIRST[which[g]]] = m[SECOND[which[g]]] = 1.0f;
            index[at + g] = which[g];
        }
    }
}

/* Gradient of k24_draw to the scores [n, 4], straight-through: `by_mask` [n, 4] to the expected mask, `by_probs` [6, n]
 * to the law (or NULL). */
void k24_draw_backward(int64_t n, float temperature, const float *probs, const float *by_mask, const float *by_probs,
                       float *by_scores) {
    for (int64_t at = 0; at < n; at += LANES) {
        const int64_t count = n - at < LANES ? n - at : LANES;
        vec m[4], p[6], g[6], mean = all(0.0f), out[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
        read_groups(m, by_mask + 4 * at, count);
        for (int k = 0; k < 6; k++) {
            p[k] = g[k] = all(0.0f);
            memcpy(&p[k], probs + k * n + at, count * sizeof(float));
            if (by_probs) memcpy(&g[k], by_probs + k * n + at, count * sizeof(float));
            g[k] += m[FIRST[k]] + m[SECOND[k]];
            mean += p[k] * g[k];
        }
        for (int k = 0; k < 6; k++) {
            const vec by_z = p[k] * (g[k] - mean) / all(temperature);
            out[FIRST[k]] += by_z;
            out[SECOND[k]] += by_z;
        }
        for (int64_t j = 0; j < count; j++)
            for (int i = 0; i < 4; i++) by_scores[4 * (at + j) + i] = out[i][j];
    }
}

INLINE vec read_part(const float *from, int64_t count) {
    vec x = all(0.0f);
    memcpy(&x, from, count * sizeof(float));
    return x;
}

/* The factors of a score: |W| if `with_weight`, the running activation unless `ema` is NULL, and sigmoid(alpha). */
INLINE vec score_without_alpha(const float *weight, const float *ema, int64_t with_weight, int64_t count) {
    vec s = all(1.0f);
    if (with_weight) {
        const vec w = read_part(weight, count);
        s = either(w < all(0.0f), -w, w);
    }
    return ema ? s * read_part(ema, count) : s;
}

/* Scores of one layer, scale[m] times |W| * EMA * sigmoid(alpha), where scale[m] = logit_scale over the mean score of
 * mask m: weight [rows, columns], alpha [M, rows, columns], ema [M, columns] with `ke` floats a mask (0: one for all).
 * They are written to `scores`, groups of four of all layers [M, groups, 4], from group `offset` on; entries that
 * complete a group score `padding`. */
void k24_scores(int64_t masks, int64_t rows, int64_t columns, const float *weight, const float *alpha, const float *ema,
                int64_t ke, int64_t with_weight, float logit_scale, float smallest, float padding, int64_t groups,
                int64_t offset, float *scores, float *scale) {
    const int64_t row_groups = (columns + 3) / 4;
    for (int64_t m = 0; m < masks; m++) {
        float *mine = scores + 4 * (m * groups + offset);
        double sum = 0.0;
        for (int64_t o = 0; o < rows; o++) {
            float *row = mine + 4 * o * row_groups;
            vec total = all(0.0f);
            for (int64_t i = 0; i < columns; i += LANES) {
                const int64_t count = columns - i < LANES ? columns - i : LANES;
                const vec rest = score_without_alpha(weight + o * columns + i, ema ? ema + m * ke + i : NULL, with_weight, count);
                vec s = rest * sigmoid(read_part(alpha + (m * rows + o) * columns + i, count));
                if (count < LANES) { /* lanes beyond the row must not count */
                    vec kept = all(0.0f);
                    memcpy(&kept, &s, count * sizeof(float));
                    s = kept;
                }
                memcpy(row + i, &s, count * sizeof(float));
                total += s;
            }
            for (int64_t i = columns; i < 4 * row_groups; i++) row[i] = padding;
            for (int j = 0; j < LANES; j++) sum += total[j];
        }
        const float mean = (float)(sum / (double)(rows * columns));
        scale[m] = logit_scale / (mean < smallest ? smallest : mean);
        for (int64_t o = 0; o < rows; o++)
            for (int64_t i = 0; i < columns; i++) mine[4 * o * row_groups + i] *= scale[m];
    }
}

/* Gradients of k24_scores: `by_alpha` [M, rows, columns] from `by_scores` [M, groups, 4], and unless it is NULL
 * `by_weight` [rows, columns] from `for_weight`, laid out alike. */
void k24_scores_backward(int64_t masks, int64_t rows, int64_t columns, const float *weight, const float *alpha,
                         const float *ema, int64_t ke, int64_t with_weight, const float *scale, int64_t groups,
                         int64_t offset, const float *by_scores, const float *for_weight, float *by_alpha,
                         float *by_weight) {
    const int64_t row_groups = (columns + 3) / 4;
    if (by_weight) memset(by_weight, 0, rows * columns * sizeof(float));
    for (int64_t m = 0; m < masks; m++)
        for (int64_t o = 0; o < rows; o++) {
            const int64_t first = 4 * (m * groups + offset + o * row_groups);
            for (int64_t i = 0; i < columns; i += LANES) {
                const int64_t count = columns - i < LANES ? columns - i : LANES;
                const float *w = weight + o * columns + i, *mean = ema ? ema + m * ke + i : NULL;
                const int64_t at = (m * rows + o) * columns + i;
                const vec open = sigmoid(read_part(alpha + at, count));
                const vec rest = score_without_alpha(w, mean, with_weight, count) * all(scale[m]);
                const vec a = read_part(by_scores + first + i, count) * rest * open * (all(1.0f) - open);
                memcpy(by_alpha + at, &a, count * sizeof(float));
                if (by_weight) {
                    const vec signed_w = read_part(w, count), g = read_part(for_weight + first + i, count);
                    const vec size = g * open * (mean ? read_part(mean, count) : all(1.0f)) * all(scale[m]);
                    const vec sign = either(signed_w < all(0.0f), all(-1.0f), either(signed_w > all(0.0f), all(1.0f), all(0.0f)));
                    const vec sum = read_part(by_weight + o * columns + i, count) + size * sign;
                    memcpy(by_weight + o * columns + i, &sum, count * sizeof(float));
                }
            }
        }
}
