/* An agent network over whole sequences, fc1 -> GRU -> fc2 -> fc3 -> fc4, and its gradients.
 *
 * A tile of rows goes through all layers and time steps, COLUMNS columns (some time steps of its rows) at once: what a
 * layer hands to the next one stays in the nearest caches, as [features, COLUMNS]. Only what the backward pass and the
 * gradients of the weights need is written to arrays [K, features, T, R]. */

#include "layers.h"

#ifndef _WIN32
#include <pthread.h>
#endif

#define SHARE 16 /* rows that two threads share out at a time */

enum { FC1, RNN_INPUT, RNN_HIDDEN, FC2, FC3, FC4, LAYERS };

/* What the forward pass keeps for the backward pass, all or nothing (NULL): what goes into the layers, h with the first
 * state, and of the GRU r, z, the hidden side of n, and n, tile by tile: [tile, T, 4H, width]. */
typedef struct {
    float *fc1, *h, *gates, *fc2, *fc3;
} kept;

/* A tile: `left` rows of network k from `first` on, as `width` columns of each of `per` time steps. */
typedef struct {
    int64_t k, size, steps, batch, first, left, per;
    int width;
} tile;

/* Where row f of an array [K, features, time, R] has the tile's part of time step t. */
INLINE int64_t place(const tile *p, int64_t features, int64_t f, int64_t time, int64_t t) {
    return ((p->k * features + f) * time + t) * p->batch + p->first;
}

/* Read and write a block of `n` time steps of an array with `time` steps. */
INLINE void read_block(float *to, const float *from, const tile *p, int64_t features, int64_t time, int64_t t, int64_t n,
                       const int width) {
    for (int64_t f = 0; f < features; f++)
        for (int64_t s = 0; s < n; s++)
            read_row(to + f * COLUMNS + s * width, from + place(p, features, f, time, t + s), p->left, width);
}

INLINE void write_block(float *to, const float *from, const tile *p, int64_t features, int64_t time, int64_t t, int64_t n,
                        const int width) {
    for (int64_t f = 0; f < features; f++)
        for (int64_t s = 0; s < n; s++) {
            const vec *block = (const vec *)(from + f * COLUMNS + s * width);
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
        read_block(in, x, p, l[FC1].inputs, p->steps, t, n, width);
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
            write_block(to->fc1, fc1, p, size, p->steps, t, n, width);
            write_block(to->h, h, p, size, p->steps + 1, t + 1, n, width);
            write_block(to->fc2, fc2, p, size, p->steps, t, n, width);
            write_block(to->fc3, fc3, p, size, p->steps, t, n, width);
        }
        write_block(q, out, p, l[FC4].rows, p->steps, t, n, width);
    }
    for (int64_t j = 0; j < size; j++)
        write_row(last + (p->k * size + j) * p->batch + p->first, (vec *)(now + j * COLUMNS), p->left, width);
}

/* Gradients to the gates of all units at one step, to `by_x` and (of the hidden side) `by_h`, from the one to the state
 * after it: `by_state` from its layers, and of later steps `later` through their gates and `carry` past them. `carry`
 * becomes what goes past these gates. */
INLINE void backward_step(int64_t size, const float *h, const float *gates, const float *by_state, const float *later,
                          float *carry, float *by_x, float *by_h, const int width) {
    const int64_t apart = size * COLUMNS / LANES, n = width / LANES;
    for (int64_t j = 0; j < size; j++)
        for (int v = 0; v < n; v++) {
            const vec *saved = (const vec *)(gates + j * width) + v, one = all(1.0f);
            const vec r = saved[0], z = saved[size * n], side = saved[2 * size * n], candidate = saved[3 * size * n];
            const vec before = *((const vec *)(h + j * COLUMNS) + v);
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

/* Of a layer whose outputs have the gradient `grad`, before a ReLU: gradients to its parameters, from its inputs `seen`, and
 * to these inputs, unless `by_seen` is NULL. */
INLINE void layer_backward(const view *l, const layer *of, int64_t k, const float *grad, const float *seen, float *turned,
                           float *by_seen, int64_t columns) {
    turn(turned, seen, of->inputs, columns);
    add_gradients(of, k, grad, turned, columns);
    if (by_seen) run_layer(l, grad, by_seen, columns, 0);
}

/* Zero what does not reach a layer through its ReLU. */
INLINE void cut(float *grad, const float *active, int64_t features) {
    for (int64_t i = 0; i < features * COLUMNS; i += LANES)
        *(vec *)(grad + i) = either(*(const vec *)(active + i) <= all(0.0f), all(0.0f), *(vec *)(grad + i));
}

INLINE void backward_tile(const layer *of, const view *l, const tile *p, const float *x, const kept *from, const float *by_q,
                          const float *by_last, float *by_first, float *by_x, float *room, const int width) {
    const int64_t size = p->size, actions = of[FC4].rows, observed = of[FC1].inputs, steps = p->steps, k = p->k;
    float *out = take(&room, actions), *by_fc3 = take(&room, size), *by_fc2 = take(&room, size), *state = take(&room, size);
    float *by_gates = take(&room, 3 * size), *side = take(&room, 3 * size), *by_fc1 = take(&room, size);
    float *carry = take(&room, size), *later = take(&room, size), *seen = take(&room, observed > size ? observed : size);
    float *turned = take(&room, most_turned(size, observed)), *to_x = by_x ? take(&room, observed) : NULL;
    const float *gates = from->gates + gates_before(p) + 4 * size * width * steps;
    for (int64_t j = 0; j < size; j++) {
        if (by_last)
            read_row(carry + j * COLUMNS, by_last + (k * size + j) * p->batch + p->first, p->left, width);
        else
            memset(carry + j * COLUMNS, 0, width * sizeof(float));
        memset(later + j * COLUMNS, 0, width * sizeof(float));
    }
    for (int64_t t = (steps - 1) / p->per * p->per; t >= 0; t -= p->per) {
        const int64_t n = steps - t < p->per ? steps - t : p->per, columns = n * width;
        read_block(out, by_q, p, actions, steps, t, n, width);
        read_block(seen, from->fc3, p, size, steps, t, n, width);
        layer_backward(l + FC4, of + FC4, k, out, seen, turned, by_fc3, columns);
        cut(by_fc3, seen, size);
        read_block(seen, from->fc2, p, size, steps, t, n, width);
        layer_backward(l + FC3, of + FC3, k, by_fc3, seen, turned, by_fc2, columns);
        cut(by_fc2, seen, size);
        read_block(seen, from->h, p, size, steps + 1, t + 1, n, width);
        layer_backward(l + FC2, of + FC2, k, by_fc2, seen, turned, state, columns);
        read_block(seen, from->h, p, size, steps + 1, t, n, width);
        for (int64_t s = (n - 1) * width; s >= 0; s -= width) {
            gates -= 4 * size * width;
            backward_step(size, seen + s, gates, state + s, later, carry, by_gates + s, side + s, width);
            run_hidden(l + RNN_HIDDEN, side + s, later, width);
        }
        layer_backward(l + RNN_HIDDEN, of + RNN_HIDDEN, k, side, seen, turned, NULL, columns);
        read_block(seen, from->fc1, p, size, steps, t, n, width);
        layer_backward(l + RNN_INPUT, of + RNN_INPUT, k, by_gates, seen, turned, by_fc1, columns);
        cut(by_fc1, seen, size);
        read_block(seen, x, p, observed, steps, t, n, width);
        layer_backward(l + FC1, of + FC1, k, by_fc1, seen, turned, to_x, columns);
        if (by_x) write_block(by_x, to_x, p, observed, steps, t, n, width);
    }
    for (int64_t j = 0; j < size; j++) {
        vec *sum = (vec *)(carry + j * COLUMNS);
        for (int v = 0; v < width / LANES; v++) sum[v] += *((vec *)(later + j * COLUMNS) + v);
        write_row(by_first + (k * size + j) * p->batch + p->first, sum, p->left, width);
    }
}

#define TILES(width)                                                                                                  \
    static void forward_##width(const view *l, const tile *p, const float *x, const float *first, float *last,         \
                                const kept *to, float *q, float *room) {                                              \
        forward_tile(l, p, x, first, last, to, q, room, width);                                                       \
    }                                                                                                                 \
    static void backward_##width(const layer *of, const view *l, const tile *p, const float *x, const kept *from,      \
                                 const float *by_q, const float *by_last, float *by_first, float *by_x, float *room) { \
        backward_tile(of, l, p, x, from, by_q, by_last, by_first, by_x, room, width);                                  \
    }
TILES(32)
TILES(16)
TILES(8)

/* What a thread does of a call: rows `begin` to `end`, counted over all networks with `per` rows each (the last of them may
 * be beyond the batch). */
typedef struct {
    int64_t networks, steps, batch, per, begin, end;
    const layer *layers; /* with gradients that no other thread adds to */
    const float *x, *first, *by_q, *by_last;
    float *last, *q, *by_first, *by_x;
    kept keeps;
    int failed;
} part;

/* The rows of network k that a thread has. */
static int64_t row_begin(const part *p, int64_t k) { return p->begin > k * p->per ? p->begin - k * p->per : 0; }

static int64_t row_end(const part *p, int64_t k) {
    const int64_t end = p->end - k * p->per;
    return end < p->batch ? end : p->batch;
}

/* Its tile of network k from row `first` on, as narrow as its rows allow. */
static tile tile_at(const part *p, int64_t k, int64_t first) {
    const int64_t rows = row_end(p, k) - first, left = rows < NARROW ? rows : NARROW;
    const int width = left > 16 ? 32 : left > 8 ? 16 : 8;
    return (tile){k, p->layers[FC2].inputs, p->steps, p->batch, first, left, WIDE / width, width};
}

static void *forward_part(void *given) {
    part *p = given;
    float *room = scratch((p->layers[FC1].inputs + 10 * p->layers[FC2].inputs + p->layers[FC4].rows) * COLUMNS);
    p->failed = !room;
    for (int64_t k = p->begin / p->per; room && k * p->per < p->end; k++) {
        view l[LAYERS];
        for (int i = 0; i < LAYERS; i++) l[i] = network_view(p->layers + i, k);
        for (int64_t at = row_begin(p, k); at < row_end(p, k); at += NARROW) {
            const tile t = tile_at(p, k, at);
            (t.width == 32   ? forward_32
             : t.width == 16 ? forward_16
                             : forward_8)(l, &t, p->x, p->first, p->last, &p->keeps, p->q, room);
        }
    }
    free(room);
    return NULL;
}

static void *backward_part(void *given) {
    part *p = given;
    const layer *layers = p->layers;
    const int64_t size = layers[FC2].inputs, observed = layers[FC1].inputs, from = p->begin / p->per;
    const int64_t buffers = (layers[FC4].rows + 13 * size + 2 * observed + most_turned(size, observed)) * COLUMNS;
    const int lowest = p->by_x ? FC1 : RNN_INPUT; /* layer whose transpose is needed */
    int64_t need = buffers;
    for (int i = lowest; i < LAYERS; i++) need += transposed_room(&layers[i].w, layers[i].inputs, layers[i].rows);
    float *room = scratch(need);
    p->failed = !room;
    for (int64_t k = from; room && k * p->per < p->end; k++) {
        view l[LAYERS];
        float *at = room + buffers;
        for (int i = lowest; i < LAYERS; i++) {
            l[i] = transposed_view(layers + i, k, k == from, at);
            at += transposed_room(&layers[i].w, layers[i].inputs, layers[i].rows);
        }
        for (int64_t row = row_begin(p, k); row < row_end(p, k); row += NARROW) {
            const tile t = tile_at(p, k, row);
            (t.width == 32   ? backward_32
             : t.width == 16 ? backward_16
                             : backward_8)(layers, l, &t, p->x, &p->keeps, p->by_q, p->by_last, p->by_first, p->by_x, room);
        }
    }
    free(room);
    return NULL;
}

/* Do a call as a whole, or in two halves, side by side if a second thread can be had. Returns 1 where memory is short. */
static int share_out(void *(*work)(void *), part *parts, int64_t threads) {
    const int64_t rows = parts[0].networks * parts[0].per;
    parts[0].end = threads == 2 ? rows / SHARE / 2 * SHARE : rows;
    parts[1].begin = parts[0].end, parts[1].end = rows;
#ifndef _WIN32
    pthread_t second;
    if (threads == 2 && pthread_create(&second, NULL, work, parts + 1) == 0) {
        work(parts);
        pthread_join(second, NULL);
        return parts[0].failed || parts[1].failed;
    }
#endif
    for (int i = 0; i < threads; i++) work(parts + i);
    return parts[0].failed || (threads == 2 && parts[1].failed);
}

/* Q-values q [K, A, T, R] from x [K, inputs, T, R] and the first state [K, H, R], and the last state, with one thread or two.
 * Returns 1 where memory is short. */
int k24_network(int64_t threads, int64_t networks, int64_t steps, int64_t batch, const layer *layers, const float *x,
                const float *first, float *last, float *fc1, float *h, float *gates, float *fc2, float *fc3, float *q) {
    const int64_t per = (batch + SHARE - 1) / SHARE * SHARE;
    part parts[2] = {{networks, steps, batch, per, .layers = layers, .x = x, .first = first, .last = last, .q = q,
                      .keeps = {fc1, h, gates, fc2, fc3}}};
    parts[1] = parts[0];
    return share_out(forward_part, parts, threads);
}

/* The gradients of k24_network, from those to q and to the last state (or NULL): added to those of the layers, and written
 * to those to the first state and to x (unless it is NULL). The second of two threads adds to the gradients of `others`;
 * the forward pass had as many threads. Returns 1 where memory is short. */
int k24_network_backward(int64_t threads, int64_t networks, int64_t steps, int64_t batch, const layer *layers,
                         const layer *others, const float *x, float *fc1, float *h, float *gates, float *fc2, float *fc3,
                         const float *by_q, const float *by_last, float *by_first, float *by_x) {
    const int64_t per = (batch + SHARE - 1) / SHARE * SHARE;
    part parts[2] = {{networks, steps, batch, per, .layers = layers, .x = x, .by_q = by_q, .by_last = by_last,
                      .by_first = by_first, .by_x = by_x, .keeps = {fc1, h, gates, fc2, fc3}}};
    parts[1] = parts[0];
    parts[1].layers = others;
    return share_out(backward_part, parts, threads);
}
