/* Layers of one network on a tile of activations [features, COLUMNS]. */

#ifndef K24_LAYERS
#define K24_LAYERS

#include "common.h"

#define COLUMNS 64     /* of a tile */
#define DENSE_CHUNK 64 /* inputs of a dense matrix that stay in the nearest cache */

/* Three rows of a dense matrix, so that each load of the tile serves three: as they are (step 1), or interleaved (step 3). */
typedef struct {
    const float *row[3];
    int64_t step;
} three;

INLINE void dense_rows(vec *restrict acc, const three *w, int64_t inputs, const float *tile, const int width) {
    const int n = width / LANES;
    const float *p = w->row[0], *q = w->row[1], *r = w->row[2];
    const int64_t step = w->step;
    vec sum[3 * NARROW / LANES];
    for (int j = 0; j < 3 * n; j++) sum[j] = all(0.0f);
    int64_t i = 0, at = 0;
    do { /* at least once: else the compiler keeps the sums in memory */
        const vec a = all(p[at]), b = all(q[at]), c = all(r[at]);
        for (int j = 0; j < n; j++) {
            vec x = *(const vec *)(tile + i * COLUMNS + j * LANES);
            IN_REGISTER(x);
            sum[j] += a * x;
            sum[n + j] += b * x;
            sum[2 * n + j] += c * x;
        }
        at += step;
    } while (++i < inputs);
    for (int j = 0; j < 3 * n; j++) acc[j] += sum[j];
}

/* Not inlined, where the compiler runs out of registers. Features of a tile are COLUMNS floats apart. */
#define ROWS(width)                                                                                              \
    static __attribute__((noinline)) void dense_rows_##width(vec *restrict acc, const three *w, int64_t inputs,     \
                                                             const float *tile) {                                \
        dense_rows(acc, w, inputs, tile, width);                                                                 \
    }
ROWS(32)
ROWS(16)
ROWS(8)

INLINE void dense_three(vec *acc, const three *w, int64_t inputs, const float *tile, const int width) {
    (width == 32 ? dense_rows_32 : width == 16 ? dense_rows_16 : dense_rows_8)(acc, w, inputs, tile);
}

/* The transpose of a matrix: packed, or three rows at a time side by side, which lie far apart in memory. */
typedef struct {
    sparse packed;
    const float *interleaved;
} transposed;

static float *scratch(int64_t floats) { return aligned_alloc(64, (floats + 15) / 16 * 64); }

/* Floats that the transpose [rows, inputs] of a network's matrix needs. */
static int64_t transposed_room(const matrix *w, int64_t rows, int64_t inputs) {
    const int64_t parts = (inputs + CHUNK - 1) / CHUNK * rows;
    return w->values ? parts * (CHUNK + 1) + (parts * CHUNK + 3) / 4 : (rows + 2) * inputs;
}

static transposed transpose(const matrix *w, int64_t k, int64_t rows, int64_t inputs, float *room) {
    const int64_t chunks = (inputs + CHUNK - 1) / CHUNK, parts = chunks * rows;
    const float *dense = w->dense + k * w->stride;
    if (w->values) {
        int32_t *counts = (int32_t *)(room + parts * CHUNK);
        uint8_t *places = (uint8_t *)(counts + parts);
        k24_pack_transposed(1, inputs, rows, CHUNK, dense, room, places, counts);
        return (transposed){{room, places, counts, rows, chunks, CHUNK}, NULL};
    }
    if (k == 0 || w->stride)
        for (int64_t j = 0; j < rows; j += 3)
            for (int64_t i = 0; i < inputs; i++)
                for (int64_t g = 0; g < 3; g++)
                    room[j * inputs + 3 * i + g] = j + g < rows ? dense[i * rows + j + g] : 0.0f;
    return (transposed){{0}, room};
}

/* A layer of K networks, as k24lab.ops.calls.Layer. */
typedef struct {
    matrix w;
    const float *bias;
    int64_t bias_stride, rows, inputs;
} layer;

/* The matrix of one network's layer, or its transpose. */
typedef struct {
    int is_packed;
    sparse packed;
    const float *dense;
    int64_t gap, step; /* floats from row to row, and from input to input */
    const float *bias;
    int64_t rows, inputs;
} view;

static view network_view(const layer *l, int64_t k) {
    return (view){l->w.values != NULL, packed_network(&l->w, k, l->rows, l->inputs), l->w.dense + k * l->w.stride, l->inputs,
                  1, l->bias + k * l->bias_stride, l->rows, l->inputs};
}

static view transposed_view(const layer *l, int64_t k, float *room) {
    const transposed t = transpose(&l->w, k, l->inputs, l->rows, room);
    return (view){l->w.values != NULL, t.packed, t.interleaved, 1, 3, NULL, l->inputs, l->rows};
}

/* Rows j, j + 1 and j + 2 of a dense matrix from input `start` on; beyond the last row the first of them again. */
INLINE three rows_of(const view *l, int64_t j, int64_t start) {
    const float *row = l->dense + j * l->inputs + start * l->step;
    const int64_t left = l->rows - j;
    return (three){{row, left > 1 ? row + l->gap : row, left > 2 ? row + 2 * l->gap : row}, l->step};
}

/* A row's sums begin with what is there, or with the bias before the first inputs. */
INLINE void begin_row(vec *acc, const float *to, const float *bias, int64_t row, int64_t start, const int width) {
    for (int j = 0; j < width / LANES; j++) acc[j] = start ? *((const vec *)to + j) : all(bias ? bias[row] : 0.0f);
}

INLINE void end_row(float *to, const vec *acc, int relu, const int width) {
    for (int j = 0; j < width / LANES; j++)
        *((vec *)to + j) = relu ? either(acc[j] < all(0.0f), all(0.0f), acc[j]) : acc[j];
}

/* `width` columns of out [rows, COLUMNS] = W in + bias, or the positive part: some inputs after another, so that they stay
 * in the nearest cache. */
INLINE void packed_layer(const view *l, const float *in, float *out, int relu, const int width) {
    const sparse *m = &l->packed;
    for (int64_t c = 0; c < m->chunks; c++)
        for (int64_t row = 0; row < l->rows; row++) {
            const int64_t at = c * m->rows + row;
            const float *part = in + c * CHUNK * COLUMNS;
            vec acc[COLUMNS / LANES];
            begin_row(acc, out + row * COLUMNS, l->bias, row, c, width);
            sparse_dot(acc, m->values + at * m->cap, m->places + at * m->cap, m->counts[at], part, width, COLUMNS);
            end_row(out + row * COLUMNS, acc, relu && c == m->chunks - 1, width);
        }
}

/* The same of a dense matrix. */
INLINE void dense_layer(const view *l, const float *in, float *out, int64_t columns, int relu, const int width) {
    const int n = width / LANES;
    for (int64_t start = 0; start < l->inputs; start += DENSE_CHUNK) {
        const int64_t left = l->inputs - start, size = left < DENSE_CHUNK ? left : DENSE_CHUNK;
        for (int64_t row = 0; row < l->rows; row += 3) {
            const three rows = rows_of(l, row, start);
            const int64_t some = l->rows - row < 3 ? l->rows - row : 3;
            if (row + 3 < l->rows) { /* large matrices come from far away, a few short runs at a time */
                const three next = rows_of(l, row + 3, start);
                for (int64_t i = 0; i < size; i += 16)
                    for (int g = 0; g < 3; g++) __builtin_prefetch(next.row[g] + i * l->step + (l->step == 1 ? 0 : 16 * g));
            }
            for (int64_t c = 0; c < columns; c += width) {
                float *to = out + row * COLUMNS + c;
                vec acc[3 * NARROW / LANES];
                for (int64_t g = 0; g < 3; g++) {
                    const int64_t r = g < some ? g : 0;
                    begin_row(acc + g * n, to + r * COLUMNS, l->bias, row + r, start, width);
                }
                dense_three(acc, &rows, size, in + start * COLUMNS + c, width);
                for (int64_t g = 0; g < some; g++) end_row(to + g * COLUMNS, acc + g * n, relu && size == left, width);
            }
        }
    }
}

/* `columns` columns of a layer. */
static void run_layer(const view *l, const float *in, float *out, int64_t columns, int relu) {
    if (!l->is_packed)
        dense_layer(l, in, out, columns, relu, NARROW);
    else if (columns > NARROW)
        packed_layer(l, in, out, relu, WIDE);
    else
        packed_layer(l, in, out, relu, NARROW);
}

/* The GRU's hidden side: the columns of one time step. */
INLINE void run_hidden(const view *l, const float *in, float *out, const int width) {
    if (l->is_packed)
        packed_layer(l, in, out, 0, width);
    else
        dense_layer(l, in, out, width, 0, width);
}

#endif
