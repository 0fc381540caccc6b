/* Packing of sparse matrices and their products with activations; what a layer does besides. */

#include "common.h"

/* Pack the matrices of a layer of K networks. Returns 1 if a row has more values in a chunk than there is room for. */
static int pack(int64_t networks, const layer *l) {
    const int64_t rows = l->rows, columns = l->inputs, chunks = (columns + CHUNK - 1) / CHUNK, cap = l->w.cap;
    for (int64_t k = 0; k < networks; k++)
        for (int64_t c = 0; c < chunks; c++)
            for (int64_t p = 0; p < rows; p++) {
                const int64_t start = c * CHUNK, size = columns - start < CHUNK ? columns - start : CHUNK;
                const int64_t at = (k * chunks + c) * rows + p;
                const float *row = l->w.dense + (k * rows + p) * columns + start;
                float value[CHUNK + 1];
                uint8_t place[CHUNK + 1];
                int count = 0;
                for (int64_t i = 0; i < size; i++) { /* no branch: which values are kept cannot be foretold */
                    value[count] = row[i];
                    place[count] = (uint8_t)i;
                    count += row[i] != 0.0f;
                }
                if (count > cap) return 1;
                memcpy((float *)l->w.values + at * cap, value, count * sizeof(float));
                memcpy((uint8_t *)l->w.places + at * cap, place, count);
                ((int32_t *)l->w.counts)[at] = count;
            }
    return 0;
}

/* Pack the matrices of all layers, of `networks` networks or one for all. Returns 0, or the number of the first layer that
 * cannot be packed, from 1 on. */
int k24_pack(int64_t networks, int64_t n_layers, const layer *layers) {
    for (int64_t i = 0; i < n_layers; i++)
        if (pack(layers[i].w.stride ? networks : 1, layers + i)) return i + 1;
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
            sparse_dot(acc, m->values + at * m->cap, m->places + at * m->cap, m->counts[at], tile, width, width);
            if (relu && c == m->chunks - 1)
                for (int j = 0; j < n; j++) acc[j] = either(acc[j] < all(0.0f), all(0.0f), acc[j]);
            write_row(y + p * ldy, acc, columns, width);
        }
    }
}

/* y[k] = W[k] x[k] + bias[k] of packed matrices: x [K, inputs, columns] with strides kx, ldx; y [K, rows, columns] without
 * gaps. bias has `kb` floats a network (0: one bias for all) or is NULL. Returns 1 where memory is short. */
int k24_matmul(int64_t networks, int64_t rows, int64_t inputs, int64_t columns, const matrix *w, const float *x,
               int64_t kx, int64_t ldx, const float *bias, int64_t kb, int64_t relu, float *y) {
    float *tile = aligned_alloc(64, CHUNK * WIDE * sizeof(float));
    if (!tile) return 1;
    for (int64_t k = 0; k < networks; k++) {
        const sparse m = packed_network(w, k, rows, inputs);
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
