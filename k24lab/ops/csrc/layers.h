/* Layers of one network on a tile of activations [features, COLUMNS]. */

#ifndef K24_LAYERS
#define K24_LAYERS

#include "common.h"

#define COLUMNS 64     /* of a tile */
#define DENSE_CHUNK 64 /* inputs of a dense matrix that stay in the nearest cache */

/* Rows of a dense matrix that are multiplied at once, so that each load of the tile serves all: three with NARROW columns,
 * six with fewer, as the sums must hide the latency of the units that multiply and add. */
#define AT_ONCE(width) ((width) == NARROW ? 3 : 6)
#define SUMS 12

typedef struct {
    const float *row[6];
    int64_t step; /* floats between inputs */
} rows;

INLINE void dense_rows(vec *restrict acc, const rows *w, int64_t inputs, const float *tile, const int width) {
    const int n = width / LANES, count = AT_ONCE(width);
    const int64_t step = w->step;
    const float *row[6];
    vec sum[SUMS];
    for (int r = 0; r < count; r++) row[r] = w->row[r];
    for (int j = 0; j < count * n; j++) sum[j] = all(0.0f);
    int64_t i = 0, at = 0;
    do { /* at least once: else the compiler keeps the sums in memory */
        const vec *x = (const vec *)(tile + i * COLUMNS);
        if (width == NARROW) { /* three weights and an input stay in registers, beside the sums */
            const vec a = all(row[0][at]), b = all(row[1][at]), c = all(row[2][at]);
            for (int j = 0; j < n; j++) {
                vec y = x[j];
                IN_REGISTER(y);
                sum[j] += a * y;
                sum[n + j] += b * y;
                sum[2 * n + j] += c * y;
            }
        } else
            for (int r = 0; r < count; r++)
                for (int j = 0; j < n; j++) sum[r * n + j] += all(row[r][at]) * x[j];
        at += step;
    } while (++i < inputs);
    for (int j = 0; j < count * n; j++) acc[j] += sum[j];
}

/* Not inlined, where the compiler runs out of registers. Features of a tile are COLUMNS floats apart. */
#define ROWS(width)                                                                                              \
    static __attribute__((noinline)) void dense_rows_##width(vec *restrict acc, const rows *w, int64_t inputs,      \
                                                             const float *tile) {                                \
        dense_rows(acc, w, inputs, tile, width);                                                                 \
    }
ROWS(32)
ROWS(16)
ROWS(8)

INLINE void multiply_rows(vec *acc, const rows *w, int64_t inputs, const float *tile, const int width) {
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

/* `is_first`: no other network's was made in this room; one matrix for all networks is made once. */
static transposed transpose(const matrix *w, int64_t k, int is_first, int64_t rows, int64_t inputs, float *room) {
    const int64_t chunks = (inputs + CHUNK - 1) / CHUNK, parts = chunks * rows;
    const float *dense = w->dense + k * w->stride;
    if (w->values) {
        int32_t *counts = (int32_t *)(room + parts * CHUNK);
        uint8_t *places = (uint8_t *)(counts + parts);
        k24_pack_transposed(1, inputs, rows, CHUNK, dense, room, places, counts);
        return (transposed){{room, places, counts, rows, chunks, CHUNK}, NULL};
    }
    if (is_first || w->stride)
        for (int64_t j = 0; j < rows; j += 3)
            for (int64_t i = 0; i < inputs; i++)
                for (int64_t g = 0; g < 3; g++)
                    room[j * inputs + 3 * i + g] = j + g < rows ? dense[i * rows + j + g] : 0.0f;
    return (transposed){{0}, room};
}

/* The matrix of one network's layer, or its transpose. */
typedef struct {
    int is_packed;
    sparse packed;
    const float *dense;
    int64_t step; /* 1: rows as they are, 3: of three rows at a time, side by side */
    const float *bias;
    int64_t rows, inputs;
} view;

static view network_view(const layer *l, int64_t k) {
    const sparse packed = packed_network(&l->w, l->w.stride ? k : 0, l->rows, l->inputs);
    return (view){l->w.values != NULL, packed, l->w.dense + k * l->w.stride, 1, l->bias + k * l->bias_stride, l->rows,
                  l->inputs};
}

static view transposed_view(const layer *l, int64_t k, int is_first, float *room) {
    const transposed t = transpose(&l->w, k, is_first, l->inputs, l->rows, room);
    return (view){l->w.values != NULL, t.packed, t.interleaved, 3, NULL, l->inputs, l->rows};
}

/* Rows of a dense matrix from row j and input `start` on; beyond the last row the first of them again. */
INLINE rows rows_at(const view *l, int64_t j, int64_t start, const int count) {
    rows found = {.step = l->step};
    for (int r = 0; r < count; r++) {
        const int64_t i = j + r < l->rows ? j + r : j;
        found.row[r] = l->step == 1 ? l->dense + i * l->inputs + start : l->dense + i / 3 * 3 * l->inputs + i % 3 + 3 * start;
    }
    return found;
}

/* Large matrices come from far away, a few short runs at a time: fetch what the next rows will need. */
INLINE void prefetch_rows(const view *l, int64_t j, int64_t start, int64_t size, const int count) {
    for (int64_t r = j; r < j + count && r < l->rows; r++) {
        const rows next = rows_at(l, r, start, 1);
        if (l->step == 1 || r % 3 == 0)
            for (int64_t i = 0; i < size * l->step; i += 16) __builtin_prefetch(next.row[0] + i);
    }
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
    const int n = width / LANES, count = AT_ONCE(width);
    for (int64_t start = 0; start < l->inputs; start += DENSE_CHUNK) {
        const int64_t left = l->inputs - start, size = left < DENSE_CHUNK ? left : DENSE_CHUNK;
        for (int64_t row = 0; row < l->rows; row += count) {
            const rows some = rows_at(l, row, start, count);
            prefetch_rows(l, row + count, start, size, count);
            for (int64_t c = 0; c < columns; c += width) {
                float *to = out + row * COLUMNS + c;
                vec acc[SUMS];
                for (int r = 0; r < count; r++) {
                    const int64_t there = row + r < l->rows ? r : 0;
                    begin_row(acc + r * n, to + there * COLUMNS, l->bias, row + there, start, width);
                }
                multiply_rows(acc, &some, size, in + start * COLUMNS + c, width);
                for (int r = 0; r < count && row + r < l->rows; r++)
                    end_row(to + r * COLUMNS, acc + r * n, relu && size == left, width);
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

/* Floats of a block of `features` that was turned, in rows of COLUMNS. */
static int64_t most_turned(int64_t size, int64_t observed) {
    const int64_t most = size > observed ? size : observed;
    return (most + COLUMNS - 1) / COLUMNS * COLUMNS;
}

/* Eight rows of eight floats become columns. */
INLINE void turn_eight(float *to, const float *from) {
    vec a[LANES], b[LANES];
    const ivec low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};
    const ivec even = {0, 1, 8, 9, 4, 5, 12, 13}, odd = {2, 3, 10, 11, 6, 7, 14, 15};
    const ivec left = {0, 1, 2, 3, 8, 9, 10, 11}, right = {4, 5, 6, 7, 12, 13, 14, 15};
    for (int i = 0; i < LANES; i++) a[i] = *(const vec *)(from + i * COLUMNS);
    for (int i = 0; i < LANES; i += 2) {
        b[i] = __builtin_shuffle(a[i], a[i + 1], low);
        b[i + 1] = __builtin_shuffle(a[i], a[i + 1], high);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = __builtin_shuffle(b[i + j], b[i + j + 2], even);
            a[i + 2 * j + 1] = __builtin_shuffle(b[i + j], b[i + j + 2], odd);
        }
    for (int i = 0; i < 4; i++) {
        *(vec *)(to + i * COLUMNS) = __builtin_shuffle(a[i], a[i + 4], left);
        *(vec *)(to + (i + 4) * COLUMNS) = __builtin_shuffle(a[i], a[i + 4], right);
    }
}

/* [features, COLUMNS] turned into blocks [columns, COLUMNS of the features]; of features beyond the last one anything. */
static void turn(float *to, const float *from, int64_t features, int64_t columns) {
    for (int64_t f = 0; f < features; f += LANES)
        for (int64_t c = 0; c < columns; c += LANES)
            turn_eight(to + f / COLUMNS * COLUMNS * COLUMNS + c * COLUMNS + f % COLUMNS, from + f * COLUMNS + c);
}

/* Add the gradients of network k's parameters, from the gradient to what its rows put out [rows, COLUMNS] and its inputs
 * turned. */
static void add_gradients(const layer *l, int64_t k, const float *grad, const float *turned, int64_t columns) {
    float *by_weight = l->by_weight + k * l->w.stride, *by_bias = l->by_bias + k * l->bias_stride;
    const int n = NARROW / LANES;
    for (int64_t i = 0; i < l->inputs; i += NARROW) {
        const int64_t left = l->inputs - i < NARROW ? l->inputs - i : NARROW;
        const float *tile = turned + i / COLUMNS * COLUMNS * COLUMNS + i % COLUMNS;
        for (int64_t row = 0; row < l->rows; row += 3) {
            const int64_t some = l->rows - row < 3 ? l->rows - row : 3;
            const float *first = grad + row * COLUMNS;
            const rows three = {{first, some > 1 ? first + COLUMNS : first, some > 2 ? first + 2 * COLUMNS : first}, 1};
            vec acc[SUMS];
            for (int64_t g = 3; g < 6; g++) prefetch(by_weight + (row + g) * l->inputs + i, NARROW);
            for (int64_t g = 0; g < 3; g++)
                read_row((float *)(acc + g * n), by_weight + (row + (g < some ? g : 0)) * l->inputs + i, left, NARROW);
            multiply_rows(acc, &three, columns, tile, NARROW);
            for (int64_t g = 0; g < some; g++)
                write_row(by_weight + (row + g) * l->inputs + i, acc + g * n, left, NARROW);
        }
    }
    for (int64_t row = 0; row < l->rows; row++) {
        vec sum = all(0.0f);
        for (int64_t c = 0; c < columns; c += LANES) sum += *(const vec *)(grad + row * COLUMNS + c);
        for (int j = 0; j < LANES; j++) by_bias[row] += sum[j];
    }
}

#endif
