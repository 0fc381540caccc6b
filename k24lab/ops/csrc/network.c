/* An agent network over whole sequences, fc1 -> GRU -> fc2 -> fc3 -> fc4, and its gradients.
 *
 * A tile of rows goes through all layers and time steps, COLUMNS columns (some time steps of its rows) at once: what a
 * layer hands to the next one stays in the nearest caches, as [features, COLUMNS]. Only what the backward pass and the
 * gradients of the weights need is written to arrays [K, features, T, R]. */

#include "layers.h"

enum { FC1, RNN_INPUT, RNN_HIDDEN, FC2, FC3, FC4, LAYERS };

/* What the forward pass keeps for the backward pass, all or nothing (NULL): what goes into the layers, h with the first
 * state, and of the GRU r, z, the hidden side of n, and n, tile by tile: [tile, T, 4H, width]. */
typedef struct {
    float *fc1, *h, *gates, *fc2, *fc3;
} kept;

/* Gradients to what each layer puts out, before a ReLU; of the GRU's two products `gates` and `side`, the hidden one. */
typedef struct {
    float *fc1, *gates, *side, *fc2, *fc3;
} gradients;

/* A tile: `left` rows of network k from `first` on, as `width` columns of each of `per` time steps. */
typedef struct {
    int64_t k, size, steps, batch, first, left, per;
    int width;
} tile;

/* Where row f of an array [K, features, time, R] has the tile's part of time step t. */
INLINE int64_t place(const tile *p, int64_t features, int64_t f, int64_t time, int64_t t) {
    return ((p->k * features + f) * time + t) * p->batch + p->first;
}

INLINE void read_block(float *to, const float *from, const tile *p, int64_t features, int64_t t, int64_t n, const int width) {
    for (int64_t f = 0; f < features; f++)
        for (int64_t s = 0; s < n; s++)
            read_row(to + f * COLUMNS + s * width, from + place(p, features, f, p->steps, t + s), p->left, width);
}

/* Write a block of time steps to an array with `time` steps; zero first what does not reach a layer through its ReLU, where
 * its activations `active` (or NULL) are given. */
INLINE void write_block(float *to, float *from, const float *active, const tile *p, int64_t features, int64_t time, int64_t t,
                        int64_t n, const int width) {
    for (int64_t f = 0; f < features; f++)
        for (int64_t s = 0; s < n; s++) {
            vec *block = (vec *)(from + f * COLUMNS + s * width);
            if (active) {
                float on[NARROW];
                read_row(on, active + place(p, features, f, time, t + s), p->left, width);
                for (int v = 0; v < width / LANES; v++) block[v] = either(load(on + v * LANES) <= all(0.0f), all(0.0f), block[v]);
            }
            write_row(to + place(p, features, f, time, t + s), block, p->left, width);
        }
}

/* Gates and next state of all units at one step, from both sides of the gates; keeps r, z, the hidden side of n, and n. */
INLINE void forward_step(int64_t size, const float *gate_x, const float *gate_h, const float *now, float *next, float *keep,
                         const int width) {
    const int n = width / LANES;
    const int64_t apart = size * COLUMNS / LANES;
    for (int64_t j = 0; j < size; j++)
        for (int v = 0; v < n; v++) {
            const int64_t at = j * COLUMNS + v * LANES;
            const vec *x = (const vec *)(gate_x + at), *h = (const vec *)(gate_h + at), before = *(const vec *)(now + at);
            const vec r = sigmoid(x[0] + h[0]), z = sigmoid(x[apart] + h[apart]), side = h[2 * apart];
            const vec candidate = tangent(x[2 * apart] + r * side);
            *(vec *)(next + at) = candidate + z * (before - candidate);
            if (keep) {
                vec *to = (vec *)(keep + j * width) + v;
                to[0] = r, to[size * n] = z, to[2 * size * n] = side, to[3 * size * n] = candidate;
            }
        }
}

/* Floats before the GRU's part of the tile in what it keeps. */
static int64_t gates_before(const tile *p) {
    const int64_t rows = (p->batch + NARROW - 1) / NARROW * NARROW;
    return 4 * p->size * p->steps * (p->k * rows + p->first);
}

/* Buffers of one block, one after another. */
static float *take(float **room, int64_t features) {
    float *taken = *room;
    *room += features * COLUMNS;
    return taken;
}

INLINE void forward_tile(const view *l, const tile *p, const float *x, const float *first, float *last, const kept *to,
                         float *q, float *room, const int width) {
    const int64_t size = p->size;
    float *in = take(&room, l[FC1].inputs), *fc1 = take(&room, size), *gate_x = take(&room, 3 * size);
    float *gate_h = take(&room, 3 * size), *h = take(&room, size), *fc2 = take(&room, size), *fc3 = take(&room, size);
    float *out = take(&room, l[FC4].rows);
    float *gates = to->gates ? to->gates + gates_before(p) : NULL;
    float *now = h + (p->per - 1) * width; /* where the block before has its last state, and no block its first one */
    for (int64_t j = 0; j < size; j++) {
        read_row(now + j * COLUMNS, first + (p->k * size + j) * p->batch + p->first, p->left, width);
        if (to->h) write_row(to->h + place(p, size, j, p->steps + 1, 0), (vec *)(now + j * COLUMNS), p->left, width);
    }
    for (int64_t t = 0; t < p->steps; t += p->per) {
        const int64_t n = p->steps - t < p->per ? p->steps - t : p->per, columns = n * width;
        read_block(in, x, p, l[FC1].inputs, t, n, width);
        run_layer(l + FC1, in, fc1, columns, 1);
        run_layer(l + RNN_INPUT, fc1, gate_x, columns, 0);
        for (int64_t s = 0; s < n; s++) {
            run_hidden(l + RNN_HIDDEN, now, gate_h, width);
            forward_step(size, gate_x + s * width, gate_h, now, h + s * width, gates, width);
            now = h + s * width;
            if (gates) gates += 4 * size * width;
        }
        run_layer(l + FC2, h, fc2, columns, 1);
        run_layer(l + FC3, fc2, fc3, columns, 1);
        run_layer(l + FC4, fc3, out, columns, 0);
        if (to->h) {
            write_block(to->fc1, fc1, NULL, p, size, p->steps, t, n, width);
            write_block(to->h, h, NULL, p, size, p->steps + 1, t + 1, n, width);
            write_block(to->fc2, fc2, NULL, p, size, p->steps, t, n, width);
            write_block(to->fc3, fc3, NULL, p, size, p->steps, t, n, width);
        }
        write_block(q, out, NULL, p, l[FC4].rows, p->steps, t, n, width);
    }
    for (int64_t j = 0; j < size; j++)
        write_row(last + (p->k * size + j) * p->batch + p->first, (vec *)(now + j * COLUMNS), p->left, width);
}

/* Gradients to the gates of all units at one step, to `by_x` and (of the hidden side) `by_h`, from the one to the state
 * after it: `by_state` from its layers, and of later steps `later` through their gates and `carry` past them. `carry`
 * becomes what goes past these gates. */
INLINE void backward_step(const tile *p, int64_t t, const float *h, const float *gates, const float *by_state,
                          const float *later, float *carry, float *by_x, float *by_h, const int width) {
    const int64_t size = p->size, apart = size * COLUMNS / LANES, n = width / LANES;
    for (int64_t j = 0; j < size; j++) {
        float before_row[NARROW];
        read_row(before_row, h + place(p, size, j, p->steps + 1, t), p->left, width);
        for (int v = 0; v < n; v++) {
            const vec *saved = (const vec *)(gates + j * width) + v, one = all(1.0f);
            const vec r = saved[0], z = saved[size * n], side = saved[2 * size * n], candidate = saved[3 * size * n];
            const vec before = load(before_row + v * LANES);
            vec *past = (vec *)(carry + j * COLUMNS) + v, *to_x = (vec *)(by_x + j * COLUMNS) + v;
            vec *to_h = (vec *)(by_h + j * COLUMNS) + v;
            const vec c = *past + *((const vec *)(later + j * COLUMNS) + v) + *((const vec *)(by_state + j * COLUMNS) + v);
            *past = c * z;
            const vec by_n = (c - c * z) * (one - candidate * candidate);
            to_x[0] = to_h[0] = by_n * side * r * (one - r);
            to_x[apart] = to_h[apart] = c * (before - candidate) * z * (one - z);
            to_x[2 * apart] = by_n;
            to_h[2 * apart] = by_n * r;
        }
    }
}

INLINE void backward_tile(const view *l, const tile *p, const kept *from, const float *by_q, const float *by_last,
                          const gradients *to, float *by_first, float *room, const int width) {
    const int64_t size = p->size;
    float *out = take(&room, l[FC4].inputs), *fc3 = take(&room, size), *fc2 = take(&room, size), *state = take(&room, size);
    float *gates = take(&room, 3 * size), *side = take(&room, 3 * size), *fc1 = take(&room, size), *carry = take(&room, size);
    float *later = take(&room, size);
    const float *saved = from->gates + gates_before(p) + 4 * size * width * p->steps;
    for (int64_t j = 0; j < size; j++) {
        if (by_last)
            read_row(carry + j * COLUMNS, by_last + (p->k * size + j) * p->batch + p->first, p->left, width);
        else
            memset(carry + j * COLUMNS, 0, width * sizeof(float));
        memset(later + j * COLUMNS, 0, width * sizeof(float));
    }
    for (int64_t t = (p->steps - 1) / p->per * p->per; t >= 0; t -= p->per) {
        const int64_t n = p->steps - t < p->per ? p->steps - t : p->per, columns = n * width;
        read_block(out, by_q, p, l[FC4].inputs, t, n, width);
        run_layer(l + FC4, out, fc3, columns, 0);
        write_block(to->fc3, fc3, from->fc3, p, size, p->steps, t, n, width);
        run_layer(l + FC3, fc3, fc2, columns, 0);
        write_block(to->fc2, fc2, from->fc2, p, size, p->steps, t, n, width);
        run_layer(l + FC2, fc2, state, columns, 0);
        for (int64_t s = n - 1; s >= 0; s--) {
            saved -= 4 * size * width;
            backward_step(p, t + s, from->h, saved, state + s * width, later, carry, gates + s * width, side + s * width, width);
            run_hidden(l + RNN_HIDDEN, side + s * width, later, width);
        }
        write_block(to->gates, gates, NULL, p, 3 * size, p->steps, t, n, width);
        write_block(to->side, side, NULL, p, 3 * size, p->steps, t, n, width);
        run_layer(l + RNN_INPUT, gates, fc1, columns, 0);
        write_block(to->fc1, fc1, from->fc1, p, size, p->steps, t, n, width);
    }
    for (int64_t j = 0; j < size; j++) {
        vec *sum = (vec *)(carry + j * COLUMNS);
        for (int v = 0; v < width / LANES; v++) sum[v] += *((vec *)(later + j * COLUMNS) + v);
        write_row(by_first + (p->k * size + j) * p->batch + p->first, sum, p->left, width);
    }
}

#define TILES(width)                                                                                                  \
    static void forward_##width(const view *l, const tile *p, const float *x, const float *first, float *last,         \
                                const kept *to, float *q, float *room) {                                              \
        forward_tile(l, p, x, first, last, to, q, room, width);                                                       \
    }                                                                                                                 \
    static void backward_##width(const view *l, const tile *p, const kept *from, const float *by_q,                    \
                                 const float *by_last, const gradients *to, float *by_first, float *room) {           \
        backward_tile(l, p, from, by_q, by_last, to, by_first, room, width);                                          \
    }
TILES(32)
TILES(16)
TILES(8)

/* Tile of network k from row `first` on, as narrow as its rows allow. */
static tile tile_at(int64_t k, int64_t size, int64_t steps, int64_t batch, int64_t first) {
    const int64_t left = batch - first < NARROW ? batch - first : NARROW;
    const int width = left > 16 ? 32 : left > 8 ? 16 : 8;
    return (tile){k, size, steps, batch, first, left, WIDE / width, width};
}

/* Q-values q [K, A, T, R] from x [K, inputs, T, R] and the first state [K, H, R], and the last state. Returns 1 where
 * memory is short. */
int k24_network(int64_t networks, int64_t steps, int64_t batch, const layer *layers, const float *x, const float *first,
                float *last, float *fc1, float *h, float *gates, float *fc2, float *fc3, float *q) {
    const int64_t size = layers[FC2].inputs;
    const kept to = {fc1, h, gates, fc2, fc3};
    float *room = scratch((layers[FC1].inputs + 10 * size + layers[FC4].rows) * COLUMNS);
    if (!room) return 1;
    for (int64_t k = 0; k < networks; k++) {
        view l[LAYERS];
        for (int i = 0; i < LAYERS; i++) l[i] = network_view(layers + i, k);
        for (int64_t at = 0; at < batch; at += NARROW) {
            const tile p = tile_at(k, size, steps, batch, at);
            (p.width == 32 ? forward_32 : p.width == 16 ? forward_16 : forward_8)(l, &p, x, first, last, &to, q, room);
        }
    }
    free(room);
    return 0;
}

/* The gradients of k24_network, from those to q and to the last state (or NULL): to what each layer puts out, and to the
 * first state. */
int k24_network_backward(int64_t networks, int64_t steps, int64_t batch, const layer *layers, float *fc1, float *h,
                         float *gates, float *fc2, float *fc3, const float *by_q, const float *by_last, float *by_fc3,
                         float *by_fc2, float *by_gates, float *by_side, float *by_fc1, float *by_first) {
    const int64_t size = layers[FC2].inputs, buffers = (layers[FC4].rows + 12 * size) * COLUMNS;
    const kept from = {fc1, h, gates, fc2, fc3};
    const gradients to = {by_fc1, by_gates, by_side, by_fc2, by_fc3};
    int64_t need = buffers;
    for (int i = RNN_INPUT; i < LAYERS; i++) need += transposed_room(&layers[i].w, layers[i].inputs, layers[i].rows);
    float *room = scratch(need);
    if (!room) return 1;
    for (int64_t k = 0; k < networks; k++) {
        view l[LAYERS];
        float *at = room + buffers;
        for (int i = RNN_INPUT; i < LAYERS; i++) {
            l[i] = transposed_view(layers + i, k, at);
            at += transposed_room(&layers[i].w, layers[i].inputs, layers[i].rows);
        }
        for (int64_t first = 0; first < batch; first += NARROW) {
            const tile p = tile_at(k, size, steps, batch, first);
            (p.width == 32   ? backward_32
             : p.width == 16 ? backward_16
                             : backward_8)(l, &p, &from, by_q, by_last, &to, by_first, room);
        }
    }
    free(room);
    return 0;
}

/* Sums over the columns of x [rows, columns], for the gradients of biases. */
void k24_row_sums(int64_t rows, int64_t columns, const float *x, float *sums) {
    for (int64_t r = 0; r < rows; r++, x += columns) {
        vec sum[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
        int64_t c = 0;
        for (; c + 4 * LANES <= columns; c += 4 * LANES)
            for (int j = 0; j < 4; j++) sum[j] += load(x + c + j * LANES);
        const vec total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        float rest = 0.0f;
        for (; c < columns; c++) rest += x[c];
        for (int j = 0; j < LANES; j++) rest += total[j];
        sums[r] = rest;
    }
}
