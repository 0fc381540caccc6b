/* A GRU over whole sequences: a tile of rows at a time goes through all time steps. */

#include "common.h"

/* The hidden side's matrix: dense with `stride` floats a network (0: one for all), or where that is NULL sparse. */
typedef struct {
    const float *dense;
    int64_t stride;
    const float *values;
    const uint8_t *places;
    const int32_t *counts;
    int64_t cap;
} matrix;

typedef struct {
    int64_t networks, size, steps, batch;
    const float *gate_x, *bias; /* forward: [K, 3H, T, R]; of the hidden side */
    int64_t bias_stride;
    const float *grad, *saved_before;     /* backward: [K, H, T, R]; what the forward pass saved */
    float *h, *saved;                     /* [K, H, T + 1, R]; [K, 4H, T, R]: r, z, hidden side of n, n */
    float *by_x, *by_n, *by_h0;           /* gradients: [K, 3H, T, R], [K, H, T, R], [K, H, R] */
} sequence;

INLINE sparse of_network(const matrix *w, int64_t k, int64_t rows, int64_t columns) {
    const int64_t chunks = (columns + CHUNK - 1) / CHUNK, at = k * chunks * rows;
    return (sparse){w->values + at * w->cap, w->places + at * w->cap, w->counts + at, rows, chunks, w->cap};
}

INLINE void sparse_row(vec *acc, const sparse *m, int64_t row, const float *tile, const int width) {
    for (int64_t c = 0; c < m->chunks; c++) {
        const int64_t at = c * m->rows + row;
        sparse_dot(acc, m->values + at * m->cap, m->places + at * m->cap, m->counts[at], tile + c * CHUNK * width, width);
    }
}

/* Three rows of a dense matrix at once, their weights interleaved: each load of the tile serves three. */
INLINE void dense_rows(vec *restrict acc, const float *weight, int64_t inputs, const float *tile, const int width) {
    const int n = width / LANES;
    vec sum[3 * NARROW / LANES];
    for (int j = 0; j < 3 * n; j++) sum[j] = acc[j];
    for (int64_t i = 0; i < inputs; i++) {
        const vec a = all(weight[3 * i]), b = all(weight[3 * i + 1]), c = all(weight[3 * i + 2]);
        for (int j = 0; j < n; j++) {
            vec x = *(const vec *)(tile + i * width + j * LANES);
            IN_REGISTER(x);
            sum[j] += a * x;
            sum[n + j] += b * x;
            sum[2 * n + j] += c * x;
        }
    }
    for (int j = 0; j < 3 * n; j++) acc[j] = sum[j];
}

/* Not inlined, where the compiler runs out of registers. */
#define ROWS(width)                                                                                              \
    static __attribute__((noinline)) void dense_rows_##width(vec *restrict acc, const float *weight, int64_t inputs, \
                                                             const float *tile) {                                \
        dense_rows(acc, weight, inputs, tile, width);                                                            \
    }
ROWS(32)
ROWS(16)
ROWS(8)

INLINE void dense_three(vec *acc, const float *weight, int64_t inputs, const float *tile, const int width) {
    (width == 32 ? dense_rows_32 : width == 16 ? dense_rows_16 : dense_rows_8)(acc, weight, inputs, tile);
}

/* Interleave rows j, j + step and j + 2 step of a [rows, inputs] matrix for j = 0, jump, ...; zeros beyond its end. */
static void interleave(const float *dense, int64_t rows, int64_t inputs, int64_t jump, int64_t step, float *to) {
    for (int64_t j = 0; j + (step > 1 ? 2 * step : 0) < rows; j += jump)
        for (int64_t i = 0; i < inputs; i++)
            for (int64_t g = 0; g < 3; g++) *to++ = j + g * step < rows ? dense[(j + g * step) * inputs + i] : 0.0f;
}

/* Gates and next state of unit j from the hidden side's three sums in `acc`. */
INLINE void forward_unit(const sequence *s, int64_t k, int64_t j, int64_t t, int64_t first, int64_t left, const vec *acc,
                         const float *now, float *next, const int width) {
    const int n = width / LANES;
    const int64_t size = s->size, columns = s->steps * s->batch, at = t * s->batch + first;
    float input[3 * NARROW];
    for (int g = 0; g < 3; g++) {
        const float *row = s->gate_x + (k * 3 * size + g * size + j) * columns + at;
        read_row(input + g * width, row, left, width);
        prefetch(row + s->batch, width);
    }
    vec out[4][NARROW / LANES], state[NARROW / LANES];
    for (int v = 0; v < n; v++) {
        out[0][v] = sigmoid(acc[v] + load(input + v * LANES));
        out[1][v] = sigmoid(acc[n + v] + load(input + width + v * LANES));
        out[2][v] = acc[2 * n + v];
        out[3][v] = tangent(load(input + 2 * width + v * LANES) + out[0][v] * out[2][v]);
        const vec before = *(const vec *)(now + j * width + v * LANES);
        state[v] = out[3][v] + out[1][v] * (before - out[3][v]);
        *(vec *)(next + j * width + v * LANES) = state[v];
    }
    write_row(s->h + (k * size + j) * (columns + s->batch) + at + s->batch, state, left, width);
    if (s->saved)
        for (int g = 0; g < 4; g++) {
            float *row = s->saved + (k * 4 * size + g * size + j) * columns + at;
            write_row(row, out[g], left, width);
            prefetch(row + s->batch, width);
        }
}

INLINE void forward_tile(const sequence *s, const matrix *w, int64_t k, int64_t first, int64_t left, const float *weight,
                         float *tile, const int width) {
    const int n = width / LANES;
    const int64_t size = s->size;
    const sparse m = of_network(w, k, 3 * size, size);
    const float *bias = s->bias + k * s->bias_stride;
    float *now = tile, *next = tile + m.chunks * CHUNK * width;
    for (int64_t j = 0; j < size; j++)
        read_row(now + j * width, s->h + (k * size + j) * (s->steps + 1) * s->batch + first, left, width);
    for (int64_t t = 0; t < s->steps; t++) {
        for (int64_t j = 0; j < size; j++) {
            vec acc[3 * NARROW / LANES];
            for (int g = 0; g < 3; g++)
                for (int v = 0; v < n; v++) acc[g * n + v] = all(bias[g * size + j]);
            if (w->dense)
                dense_three(acc, weight + j * 3 * size, size, now, width);
            else
                for (int g = 0; g < 3; g++) sparse_row(acc + g * n, &m, g * size + j, now, width);
            forward_unit(s, k, j, t, first, left, acc, now, next, width);
        }
        float *swap = now;
        now = next;
        next = swap;
    }
}

/* Gradients to the gates of unit j, into the tile `gates` and the results; what is left of the state's in `carry`. */
INLINE void backward_unit(const sequence *s, int64_t k, int64_t j, int64_t t, int64_t first, int64_t left, float *carry,
                          float *gates, const int width) {
    const int n = width / LANES;
    const int64_t size = s->size, columns = s->steps * s->batch, at = t * s->batch + first;
    float in[6 * NARROW]; /* grad, h before, r, z, hidden side of n, n */
    for (int g = 0; g < 6; g++) {
        const float *row = g == 0   ? s->grad + (k * size + j) * columns
                           : g == 1 ? s->h + (k * size + j) * (columns + s->batch)
                                    : s->saved_before + (k * 4 * size + (g - 2) * size + j) * columns;
        read_row(in + g * width, row + at, left, width);
        prefetch(row + at - s->batch, width);
    }
    vec out[4][NARROW / LANES];
    for (int v = 0; v < n; v++) {
        const float *p = in + v * LANES;
        const vec before = load(p + width), r = load(p + 2 * width), z = load(p + 3 * width);
        const vec side = load(p + 4 * width), tanh_n = load(p + 5 * width), one = all(1.0f);
        vec *kept = (vec *)(carry + j * width + v * LANES);
        const vec c = *kept + load(p);
        *kept = c * z;
        out[2][v] = (c - c * z) * (one - tanh_n * tanh_n);
        out[3][v] = out[2][v] * r;
        out[0][v] = out[2][v] * side * r * (one - r);
        out[1][v] = c * (before - tanh_n) * z * (one - z);
        *(vec *)(gates + j * width + v * LANES) = out[0][v];
        *(vec *)(gates + (size + j) * width + v * LANES) = out[1][v];
        *(vec *)(gates + (2 * size + j) * width + v * LANES) = out[3][v];
    }
    for (int g = 0; g < 3; g++) {
        float *row = s->by_x + (k * 3 * size + g * size + j) * columns + at;
        write_row(row, out[g], left, width);
        prefetch(row - s->batch, width);
    }
    write_row(s->by_n + (k * size + j) * columns + at, out[3], left, width);
}

INLINE void backward_tile(const sequence *s, const matrix *w, int64_t k, int64_t first, int64_t left, const float *weight,
                          float *tile, const int width) {
    const int n = width / LANES;
    const int64_t size = s->size, inputs = 3 * size;
    const sparse m = of_network(w, k, size, inputs);
    float *carry = tile, *gates = tile + size * width;
    memset(carry, 0, (size_t)size * width * sizeof(float));
    for (int64_t t = s->steps - 1; t >= 0; t--) {
        for (int64_t j = 0; j < size; j++) backward_unit(s, k, j, t, first, left, carry, gates, width);
        if (w->dense)
            for (int64_t j = 0; j < size; j += 3) {
                vec acc[3 * NARROW / LANES];
                for (int v = 0; v < 3 * n; v++) acc[v] = all(0.0f);
                dense_three(acc, weight + j * inputs, inputs, gates, width);
                for (int64_t i = 0; i < 3 && j + i < size; i++)
                    for (int v = 0; v < n; v++) *(vec *)(carry + (j + i) * width + v * LANES) += acc[i * n + v];
            }
        else
            for (int64_t j = 0; j < size; j++) sparse_row((vec *)(carry + j * width), &m, j, gates, width);
    }
    for (int64_t j = 0; j < size; j++)
        memcpy(s->by_h0 + (k * size + j) * s->batch + first, carry + j * width, left * sizeof(float));
}

#define TILES(width)                                                                                             \
    static void forward_##width(const sequence *s, const matrix *w, int64_t k, int64_t first, int64_t left,       \
                                const float *weight, float *tile) {                                              \
        forward_tile(s, w, k, first, left, weight, tile, width);                                                 \
    }                                                                                                            \
    static void backward_##width(const sequence *s, const matrix *w, int64_t k, int64_t first, int64_t left,      \
                                 const float *weight, float *tile) {                                             \
        backward_tile(s, w, k, first, left, weight, tile, width);                                                \
    }
TILES(32)
TILES(16)
TILES(8)

/* All tiles of all networks, the last one as narrow as its rows allow. Returns 1 where memory is short. */
INLINE int run(const sequence *s, const matrix *w, const int backward) {
    const int64_t size = s->size, inputs = backward ? 3 * size : size;
    const size_t room = (size_t)(2 * size + 4 * CHUNK + inputs) * NARROW, weights = (size_t)(3 * size + 8) * (size + 3);
    float *tile = aligned_alloc(64, (room + weights + 15) / 16 * 64);
    if (!tile) return 1;
    float *weight = tile + room;
    for (int64_t k = 0; k < s->networks; k++) {
        if (w->dense && (k == 0 || w->stride)) {
            const float *mine = w->dense + k * w->stride;
            if (backward)
                interleave(mine, size, inputs, 3, 1, weight);
            else
                interleave(mine, 3 * size, size, 1, size, weight);
        }
        for (int64_t first = 0; first < s->batch; first += NARROW) {
            const int64_t left = s->batch - first < NARROW ? s->batch - first : NARROW;
            const int width = left > 16 ? 32 : left > 8 ? 16 : 8;
            if (backward)
                (width == 32   ? backward_32
                 : width == 16 ? backward_16
                               : backward_8)(s, w, k, first, left, weight, tile);
            else
                (width == 32   ? forward_32
                 : width == 16 ? forward_16
                               : forward_8)(s, w, k, first, left, weight, tile);
        }
    }
    free(tile);
    return 0;
}

/* Hidden states of whole sequences, of which the first is given. The matrix is [3H, H] for each network. */
int k24_gru(int64_t networks, int64_t size, int64_t steps, int64_t batch, const float *gate_x, const float *bias,
            int64_t bias_stride, const float *dense, int64_t stride, const float *values, const uint8_t *places,
            const int32_t *counts, int64_t cap, float *h, float *saved) {
    const matrix w = {dense, stride, values, places, counts, cap};
    const sequence s = {.networks = networks, .size = size, .steps = steps, .batch = batch, .gate_x = gate_x,
                        .bias = bias, .bias_stride = bias_stride, .h = h, .saved = saved};
    return run(&s, &w, 0);
}

/* Gradients of k24_gru. The matrix is the transposed one, [H, 3H]; `by_n` is that to the hidden side of n, whose r and
 * z are those of `by_x`. */
int k24_gru_backward(int64_t networks, int64_t size, int64_t steps, int64_t batch, const float *grad, float *h,
                     const float *saved, const float *dense, int64_t stride, const float *values,
                     const uint8_t *places, const int32_t *counts, int64_t cap, float *by_x, float *by_n, float *by_h0) {
    const matrix w = {dense, stride, values, places, counts, cap};
    const sequence s = {.networks = networks, .size = size, .steps = steps, .batch = batch, .grad = grad, .h = h,
                        .saved_before = saved, .by_x = by_x, .by_n = by_n, .by_h0 = by_h0};
    return run(&s, &w, 1);
}
