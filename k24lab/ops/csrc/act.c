/* Acting: one time step of a team for few rows at a time, where a vector holds eight outputs of a layer.
 *
 * A 2:4 matrix is stored by blocks of eight rows and groups of four inputs: values[block][group][2][8] are the two kept
 * values of each row, words[block][group / 8][8] their places, four bits of a row's word for each group. A group's four
 * inputs fill a register, in which every row picks its two: no gather, no branch. A dense matrix is
 * values[block][group][4][8]. Rows are padded to a multiple of 8 and inputs to a multiple of 4, with zeros.
 */

#include "common.h"

#if defined(__AVX2__)
#include <immintrin.h>
INLINE vec pick(vec x, ivec place) { return (vec)_mm256_permutevar_ps((__m256)x, (__m256i)place); }
INLINE vec four_twice(const float *p) { return (vec)_mm256_broadcast_ps((const __m128 *)p); }
#else
INLINE vec pick(vec x, ivec place) {
    vec y;
    for (int i = 0; i < LANES; i++) y[i] = x[place[i] & 3];
    return y;
}
INLINE vec four_twice(const float *p) { return (vec){p[0], p[1], p[2], p[3], p[0], p[1], p[2], p[3]}; }
#endif

#define FOUR 4
#define WORD 8 /* groups of a word */
#define TILE 4 /* rows of activations that share each load of a weight */

typedef struct {
    const float *values;
    const int32_t *words; /* NULL: a dense matrix */
    const float *bias;    /* [rows] */
    int64_t rows, groups; /* multiples of 8 outputs; of 4 inputs */
    int64_t per_values, per_words, per_bias; /* from network to network; 0: one for all */
    const float *gain, *own_bias;            /* [agents, rows], NULL: none; an agent's outputs are gain * (W x + b) + own_bias */
} matrix24;

INLINE int64_t words_of(int64_t groups) { return (groups + WORD - 1) / WORD; }
INLINE int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* Pack K matrices of `gates` parts of [rows, inputs] each; every part is padded to full blocks. `values` and `words` are
 * zeros before. Returns 1 for a group with more than two values, (row of all networks) * groups + group in `bad`. */
int k24_act_pack(int64_t networks, int64_t gates, int64_t rows, int64_t inputs, const float *dense, float *values,
                 int32_t *words, int64_t *bad) {
    const int64_t groups = (inputs + FOUR - 1) / FOUR, n_words = words_of(groups), padded = up(rows, LANES);
    for (int64_t k = 0; k < networks * gates; k++)
        for (int64_t r = 0; r < rows; r++, dense += inputs) {
            const int64_t at = k * padded + r, block = at / LANES, lane = at % LANES;
            float *to = values + block * groups * 2 * LANES + lane;
            int32_t *places = words + block * n_words * LANES + lane;
            for (int64_t g = 0; g < groups; g++, to += 2 * LANES) {
                const int64_t end = inputs - g * FOUR < FOUR ? inputs - g * FOUR : FOUR;
                int place[FOUR + 1] = {0}, kept = 0;
                for (int i = 0; i < end; i++) { /* no branch: which values are kept cannot be foretold */
                    place[kept] = i;
                    kept += dense[g * FOUR + i] != 0.0f;
                }
                if (kept > 2) {
                    *bad = (k * rows + r) * groups + g;
                    return 1;
                }
                to[0] = kept > 0 ? dense[g * FOUR + place[0]] : 0.0f;
                to[LANES] = kept > 1 ? dense[g * FOUR + place[1]] : 0.0f;
                places[g / WORD * LANES] |= (int32_t)((uint32_t)(place[0] | (kept > 1 ? place[1] : 0) << 2) << g % WORD * 4);
            }
        }
    return 0;
}

/* The same for dense matrices: `values` is zeros before. */
void k24_act_pack_dense(int64_t networks, int64_t gates, int64_t rows, int64_t inputs, const float *dense, float *values) {
    const int64_t columns = up(inputs, FOUR), padded = up(rows, LANES);
    for (int64_t k = 0; k < networks * gates; k++)
        for (int64_t r = 0; r < rows; r++, dense += inputs) {
            const int64_t at = k * padded + r;
            float *to = values + at / LANES * columns * LANES + at % LANES;
            for (int64_t i = 0; i < inputs; i++) to[i * LANES] = dense[i];
        }
}

/* `own` is where the outputs of an agent's gain and bias lie in those of all agents; negative: there are none. */
INLINE void finish(const matrix24 *m, float *y, vec sum, int64_t own, int relu) {
    if (own >= 0) sum = sum * load(m->gain + own) + load(m->own_bias + own);
    store(y, relu ? either(sum < all(0.0f), all(0.0f), sum) : sum);
}

/* `blocks` blocks of rows times `n` activations x[c][ldx] to y[c][ldy]. */
INLINE void sparse_blocks(const matrix24 *m, const float *values, const int32_t *words, const float *bias, const float *x,
                          int64_t ldx, float *y, int64_t ldy, const int64_t *own, int64_t b, int relu, const int blocks,
                          const int n) {
    const int64_t groups = m->groups;
    vec first[8], second[8];
    for (int j = 0; j < blocks; j++)
        for (int c = 0; c < n; c++) first[j * n + c] = load(bias + j * LANES), second[j * n + c] = all(0.0f);
    const int64_t n_words = words_of(groups);
    for (int64_t w = 0; w < n_words; w++) {
        ivec place[4];
        for (int j = 0; j < blocks; j++) place[j] = (ivec)load((const float *)(words + (j * n_words + w) * LANES));
        const int64_t left = groups - w * WORD, end = left < WORD ? left : WORD;
        const float *v = values + w * WORD * 2 * LANES, *in = x + w * WORD * FOUR;
#pragma GCC unroll 2
        for (int64_t g = 0; g < end; g++) {
            vec four[4];
            for (int c = 0; c < n; c++) four[c] = four_twice(in + c * ldx + g * FOUR);
            for (int j = 0; j < blocks; j++) {
                const float *at = v + (j * groups + g) * 2 * LANES;
                const vec a = load(at), b = load(at + LANES);
                const ivec next = place[j] >> 2;
                for (int c = 0; c < n; c++) {
                    first[j * n + c] += a * pick(four[c], place[j]);
                    second[j * n + c] += b * pick(four[c], next);
                }
                place[j] >>= 4;
            }
        }
    }
    for (int j = 0; j < blocks; j++)
        for (int c = 0; c < n; c++)
            finish(m, y + c * ldy + j * LANES, first[j * n + c] + second[j * n + c],
                   m->gain ? own[c] * m->rows + (b + j) * LANES : -1, relu);
}

INLINE void dense_blocks(const matrix24 *m, const float *values, const float *bias, const float *x, int64_t ldx, float *y,
                         int64_t ldy, const int64_t *own, int64_t b, int relu, const int blocks, const int n) {
    const int64_t groups = m->groups;
    vec first[8], second[8];
    for (int j = 0; j < blocks; j++)
        for (int c = 0; c < n; c++) first[j * n + c] = load(bias + j * LANES), second[j * n + c] = all(0.0f);
#pragma GCC unroll 2
    for (int64_t i = 0; i < groups * FOUR; i += 2)
        for (int c = 0; c < n; c++) {
            const vec p = all(x[c * ldx + i]), q = all(x[c * ldx + i + 1]);
            for (int j = 0; j < blocks; j++) {
                const float *at = values + (j * groups * FOUR + i) * LANES;
                first[j * n + c] += load(at) * p;
                second[j * n + c] += load(at + LANES) * q;
            }
        }
    for (int j = 0; j < blocks; j++)
        for (int c = 0; c < n; c++)
            finish(m, y + c * ldy + j * LANES, first[j * n + c] + second[j * n + c],
                   m->gain ? own[c] * m->rows + (b + j) * LANES : -1, relu);
}

INLINE void blocks_of(const matrix24 *m, const float *values, const int32_t *words, const float *bias, int64_t b,
                      const float *x, int64_t ldx, float *y, int64_t ldy, const int64_t *own, int relu, const int blocks,
                      const int n) {
    if (m->words)
        sparse_blocks(m, values + b * m->groups * 2 * LANES, words + b * words_of(m->groups) * LANES, bias + b * LANES, x,
                      ldx, y + b * LANES, ldy, own, b, relu, blocks, n);
    else
        dense_blocks(m, values + b * m->groups * FOUR * LANES, bias + b * LANES, x, ldx, y + b * LANES, ldy, own, b, relu,
                     blocks, n);
}

/* y[c] = W[k] x[c] + bias for `n` activations, of which `own` has the agents. */
INLINE void linear(const matrix24 *m, int64_t k, const float *x, int64_t ldx, float *y, int64_t ldy, const int64_t *own,
                   int relu, const int n) {
    const float *values = m->values + k * m->per_values, *bias = m->bias + k * m->per_bias;
    const int32_t *words = m->words + k * m->per_words;
    const int64_t blocks = m->rows / LANES;
    const int most = n > 2 ? 1 : n == 2 ? 2 : 4;
    int64_t b = 0;
    for (; b + most <= blocks; b += most) blocks_of(m, values, words, bias, b, x, ldx, y, ldy, own, relu, most, n);
    for (; b < blocks; b++) blocks_of(m, values, words, bias, b, x, ldx, y, ldy, own, relu, 1, n);
}

static void linear_any(const matrix24 *m, int64_t k, const float *x, int64_t ldx, float *y, int64_t ldy,
                       const int64_t *own, int relu, int64_t n) {
    if (n == 4) linear(m, k, x, ldx, y, ldy, own, relu, 4);
    else if (n == 2) linear(m, k, x, ldx, y, ldy, own, relu, 2);
    else for (int64_t c = 0; c < n; c++) linear(m, k, x + c * ldx, ldx, y + c * ldy, ldy, own + c, relu, 1);
}

/* x [K, batch, inputs] -> y [K, batch, rows] (padded sizes), of a matrix without gains. */
void k24_act_linear(int64_t networks, int64_t batch, const matrix24 *m, const float *x, int64_t relu, float *y) {
    const int64_t ldx = m->groups * FOUR, own[TILE] = {0};
    for (int64_t k = 0; k < networks; k++)
        for (int64_t c = 0; c < batch; c += TILE) {
            const int64_t at = k * batch + c, n = batch - c < TILE ? batch - c : TILE;
            linear_any(m, k, x + at * ldx, ldx, y + at * m->rows, m->rows, own, (int)relu, n);
        }
}

/* One time step: x [K, batch, inputs], h [K, batch, H] in place, q [K, batch, actions], all without padding but h, whose H is
 * the padded one. With gains K is 1 and the batch holds `per_agent` rows of each agent. Layers: fc1, GRU input, GRU hidden (three gates of H rows), fc2, fc3, fc4. `scratch`: TILE * (inputs + 8 H + rows of fc4). */
void k24_act_step(int64_t networks, int64_t batch, int64_t inputs, int64_t actions, int64_t per_agent,
                  const matrix24 *layers, const float *x, float *h, float *q, float *scratch) {
    const int64_t size = layers[0].rows, padded = layers[0].groups * FOUR, outputs = layers[5].rows;
    float *in = scratch, *a = in + TILE * padded, *gx = a + TILE * size, *gh = gx + TILE * 3 * size, *b = gh + TILE * 3 * size,
          *out = b + TILE * size;
    for (int64_t k = 0; k < networks; k++)
        for (int64_t c = 0; c < batch; c += TILE) {
            const int64_t at = k * batch + c, n = batch - c < TILE ? batch - c : TILE;
            float *state = h + at * size;
            int64_t own[TILE];
            for (int64_t i = 0; i < n; i++) own[i] = (c + i) / per_agent;
            for (int64_t i = 0; i < n; i++) {
                memcpy(in + i * padded, x + (at + i) * inputs, inputs * sizeof(float));
                memset(in + i * padded + inputs, 0, (padded - inputs) * sizeof(float));
            }
            linear_any(layers, k, in, padded, a, size, own, 1, n);
            linear_any(layers + 1, k, a, size, gx, 3 * size, own, 0, n);
            linear_any(layers + 2, k, state, size, gh, 3 * size, own, 0, n);
            for (int64_t i = 0; i < n; i++)
                for (int64_t j = 0; j < size; j += LANES) {
                    const float *s = gx + i * 3 * size + j, *t = gh + i * 3 * size + j;
                    const vec r = sigmoid(load(s) + load(t)), z = sigmoid(load(s + size) + load(t + size));
                    const vec g = tangent(load(s + 2 * size) + r * load(t + 2 * size)), old = load(state + i * size + j);
                    store(state + i * size + j, g + z * (old - g));
                }
            linear_any(layers + 3, k, state, size, a, size, own, 1, n);
            linear_any(layers + 4, k, a, size, b, size, own, 1, n);
            linear_any(layers + 5, k, b, size, out, outputs, own, 0, n);
            for (int64_t i = 0; i < n; i++) memcpy(q + (at + i) * actions, out + i * outputs, actions * sizeof(float));
        }
}
