/* Scores of weights, and 2:4 masks drawn from them (k24lab.ops.mask_draws). */

#include "common.h"

/* The six 2:4 patterns, as in k24lab.core.patterns. */
static const int FIRST[6] = {0, 0, 0, 1, 1, 2}, SECOND[6] = {1, 2, 3, 2, 3, 3};

/* Eight groups of four floats as four vectors, one of each place; and back. */
INLINE void to_planes(vec *planes, vec a, vec b, vec c, vec d) {
    const ivec low = {0, 4, 8, 12, 1, 5, 9, 13}, high = {2, 6, 10, 14, 3, 7, 11, 15};
    const ivec first = {0, 1, 2, 3, 8, 9, 10, 11}, second = {4, 5, 6, 7, 12, 13, 14, 15};
    const vec t0 = __builtin_shuffle(a, b, low), t1 = __builtin_shuffle(c, d, low);
    const vec t2 = __builtin_shuffle(a, b, high), t3 = __builtin_shuffle(c, d, high);
    planes[0] = __builtin_shuffle(t0, t1, first), planes[1] = __builtin_shuffle(t0, t1, second);
    planes[2] = __builtin_shuffle(t2, t3, first), planes[3] = __builtin_shuffle(t2, t3, second);
}

INLINE void from_planes(vec *groups, const vec *p) {
    const ivec first = {0, 1, 2, 3, 8, 9, 10, 11}, second = {4, 5, 6, 7, 12, 13, 14, 15};
    const ivec low = {0, 4, 8, 12, 1, 5, 9, 13}, high = {2, 6, 10, 14, 3, 7, 11, 15};
    const vec t0 = __builtin_shuffle(p[0], p[1], first), t1 = __builtin_shuffle(p[0], p[1], second);
    const vec t2 = __builtin_shuffle(p[2], p[3], first), t3 = __builtin_shuffle(p[2], p[3], second);
    groups[0] = __builtin_shuffle(t0, t2, low), groups[1] = __builtin_shuffle(t0, t2, high);
    groups[2] = __builtin_shuffle(t1, t3, low), groups[3] = __builtin_shuffle(t1, t3, high);
}

INLINE void read_groups(vec *planes, const float *groups, int64_t count) {
    float part[4 * LANES] = {0};
    if (count < LANES) memcpy(part, groups, 4 * count * sizeof(float));
    const float *from = count < LANES ? part : groups;
    to_planes(planes, load(from), load(from + LANES), load(from + 2 * LANES), load(from + 3 * LANES));
}

INLINE void write_groups(float *groups, const vec *planes, int64_t count) {
    vec part[4];
    from_planes(part, planes);
    if (count == LANES)
        for (int i = 0; i < 4; i++) store(groups + i * LANES, part[i]);
    else
        memcpy(groups, part, 4 * count * sizeof(float));
}

/* Draw one pattern for each of n groups of four scores: with `uniform` [n] from softmax(score of pattern /
 * temperature) by inverse transform sampling, without it the best one. Writes the index (unless it is NULL), the 0/1 mask
 * [n, 4], and unless it is NULL the distribution `probs`, six planes `plane` floats apart. */
static void draw_groups(int64_t n, const float *scores, float temperature, const float *uniform, int32_t *index, float *mask,
                        float *probs, int64_t plane) {
    const vec inverse = all(1.0f / temperature);
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
            for (int k = 0; k < 6; k++) total += p[k] = exponential((z[k] - best) * inverse);
            total = all(1.0f) / total;
            for (int k = 0; k < 6; k++) {
                p[k] *= total;
                store_part(probs + k * plane + at, p[k], count);
            }
        }
        if (uniform) {
            vec u = load_part(uniform + at, count), total = p[0];
            for (int k = 1; k < 6; k++) total += p[k];
            u *= total; /* rounding may leave the total a little off 1 */
            which = (ivec)all(0.0f);
            total = all(0.0f);
            for (int k = 0; k < 5; k++) {
                total += p[k];
                which -= total <= u;
            }
        }
        vec m[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
        for (int k = 0; k < 6; k++) {
            const vec drawn = either(which == k, all(1.0f), all(0.0f));
            m[FIRST[k]] += drawn;
            m[SECOND[k]] += drawn;
        }
        write_groups(mask + 4 * at, m, count);
        if (index) memcpy(index + at, &which, count * sizeof(int32_t));
    }
}

/* The best patterns of n groups of scores, as 0/1 masks. */
void k24_best(int64_t n, const float *scores, float *mask) { draw_groups(n, scores, 1.0f, NULL, NULL, mask, NULL, 0); }

/* Gradient of draw_groups to the scores [n, 4], straight-through: `by_mask` [n, 4] to the expected mask (or NULL),
 * `by_probs` to the distribution (or NULL). */
static void draw_groups_backward(int64_t n, float temperature, const float *probs, int64_t plane, const float *by_mask,
                                 const float *by_probs, float *by_scores) {
    const vec inverse = all(1.0f / temperature);
    for (int64_t at = 0; at < n; at += LANES) {
        const int64_t count = n - at < LANES ? n - at : LANES;
        vec m[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)}, out[4] = {m[0], m[0], m[0], m[0]}, p[6], g[6], mean = m[0];
        if (by_mask) read_groups(m, by_mask + 4 * at, count);
        for (int k = 0; k < 6; k++) {
            p[k] = load_part(probs + k * plane + at, count);
            g[k] = by_probs ? load_part(by_probs + k * plane + at, count) : all(0.0f);
            g[k] += m[FIRST[k]] + m[SECOND[k]];
            mean += p[k] * g[k];
        }
        for (int k = 0; k < 6; k++) {
            const vec by_z = p[k] * (g[k] - mean) * inverse;
            out[FIRST[k]] += by_z;
            out[SECOND[k]] += by_z;
        }
        write_groups(by_scores + 4 * at, out, count);
    }
}

/* A layer and what is drawn for it, as k24lab.ops.calls.Drawn: weight [rows, columns], alpha [M, rows, columns], ema
 * [M, columns] with `ema_stride` floats a mask (0: one for all) or NULL, whether |W| is part of the score; mask like alpha. In
 * the backward pass `mask` is the gradient to it (or NULL), and there are results like alpha and like weight (or NULL). */
typedef struct {
    const float *weight, *alpha, *ema;
    int64_t ema_stride, with_weight, rows, columns;
    float *mask, *by_alpha, *by_weight;
} drawn;

/* Rows of `columns` floats between arrays with rows of different lengths. */
static void copy_rows(float *to, int64_t to_row, const float *from, int64_t from_row, int64_t rows, int64_t columns) {
    for (int64_t o = 0; o < rows; o++) memcpy(to + o * to_row, from + o * from_row, columns * sizeof(float));
}

/* The factors of a score: |W| if `with_weight`, the running activation unless `ema` is NULL, and sigmoid(alpha). */
INLINE vec score_without_alpha(const float *weight, const float *ema, int64_t with_weight, int64_t count) {
    vec s = all(1.0f);
    if (with_weight) {
        const vec w = load_part(weight, count);
        s = either(w < all(0.0f), -w, w);
    }
    return ema ? s * load_part(ema, count) : s;
}

/* Scores of mask m of a layer, as groups: scale times |W| * EMA * sigmoid(alpha), where scale = logit_scale over their
 * mean. Entries that complete a group score `padding`. Returns the scale. */
static float score_groups(const drawn *l, int64_t m, float logit_scale, float smallest, float padding, float *scores) {
    const int64_t columns = l->columns, padded = (columns + 3) / 4 * 4;
    const float *ema = l->ema ? l->ema + m * l->ema_stride : NULL;
    double sum = 0.0;
    for (int64_t o = 0; o < l->rows; o++) {
        float *row = scores + o * padded;
        vec total = all(0.0f);
        for (int64_t i = 0; i < columns; i += LANES) {
            const int64_t count = columns - i < LANES ? columns - i : LANES;
            const vec rest = score_without_alpha(l->weight + o * columns + i, ema ? ema + i : NULL, l->with_weight, count);
            vec s = rest * sigmoid(load_part(l->alpha + (m * l->rows + o) * columns + i, count));
            store_part(row + i, s, count);
            total += load_part(row + i, count); /* lanes beyond the row must not count */
        }
        for (int j = 0; j < LANES; j++) sum += total[j];
    }
    const float mean = (float)(sum / (double)(l->rows * columns)), scale = logit_scale / (mean < smallest ? smallest : mean);
    for (int64_t o = 0; o < l->rows; o++) {
        for (int64_t i = 0; i < columns; i++) scores[o * padded + i] *= scale;
        for (int64_t i = columns; i < padded; i++) scores[o * padded + i] = padding;
    }
    return scale;
}

/* Floats of the largest layer's groups. */
static int64_t most_scores(int64_t n_layers, const drawn *layers) {
    int64_t most = 0;
    for (int64_t l = 0; l < n_layers; l++) {
        const int64_t size = layers[l].rows * ((layers[l].columns + 3) / 4 * 4);
        most = size > most ? size : most;
    }
    return (most + 15) / 16 * 16;
}

/* Draw the masks of all layers. `uniform`, `index` [M, groups] and `probs` [6, M, groups] run over the groups of all layers
 * and may be NULL; scale is [layers, M]. Returns 1 where memory is short. */
int k24_draw(int64_t n_layers, int64_t masks, int64_t groups, const drawn *layers, float logit_scale, float smallest,
             float padding, float temperature, const float *uniform, float *scale, int32_t *index, float *probs) {
    const int64_t most = most_scores(n_layers, layers);
    float *scores = aligned_alloc(64, 2 * most * sizeof(float)), *grouped = scores + most;
    if (!scores) return 1;
    for (int64_t m = 0, at = 0; m < masks; m++)
        for (int64_t k = 0; k < n_layers; k++) {
            const drawn *l = layers + k;
            const int64_t padded = (l->columns + 3) / 4 * 4, n = l->rows * padded / 4;
            float *mask = l->mask + m * l->rows * l->columns, *to = padded == l->columns ? mask : grouped;
            scale[k * masks + m] = score_groups(l, m, logit_scale, smallest, padding, scores);
            draw_groups(n, scores, temperature, uniform ? uniform + at : NULL, index ? index + at : NULL, to,
                        probs ? probs + at : NULL, masks * groups);
            if (to != mask) copy_rows(mask, l->columns, to, padded, l->rows, l->columns);
            at += n;
        }
    free(scores);
    return 0;
}

/* Gradients of one layer's scores under mask m: to alpha from `by_scores`, and unless `for_weight` is NULL added to that to
 * the weight; both are groups. */
static void scores_backward(const drawn *l, int64_t m, float scale, const float *by_scores, const float *for_weight) {
    const int64_t columns = l->columns, padded = (columns + 3) / 4 * 4;
    for (int64_t o = 0; o < l->rows; o++)
        for (int64_t i = 0; i < columns; i += LANES) {
            const int64_t count = columns - i < LANES ? columns - i : LANES, at = (m * l->rows + o) * columns + i;
            const float *w = l->weight + o * columns + i, *mean = l->ema ? l->ema + m * l->ema_stride + i : NULL;
            const vec open = sigmoid(load_part(l->alpha + at, count));
            const vec rest = score_without_alpha(w, mean, l->with_weight, count) * all(scale);
            const vec a = load_part(by_scores + o * padded + i, count) * rest * open * (all(1.0f) - open);
            store_part(l->by_alpha + at, a, count);
            if (for_weight) {
                const vec signed_w = load_part(w, count), g = load_part(for_weight + o * padded + i, count);
                const vec size = g * open * (mean ? load_part(mean, count) : all(1.0f)) * all(scale);
                const vec sign = either(signed_w < all(0.0f), all(-1.0f), either(signed_w > all(0.0f), all(1.0f), all(0.0f)));
                float *to = l->by_weight + o * columns + i;
                store_part(to, load_part(to, count) + size * sign, count);
            }
        }
}

/* Gradients of k24_draw: to alpha from the masks and from `by_probs` (or NULL), to the weights from the masks and, if
 * `all_teach`, from by_probs too. Returns 1 where memory is short. */
int k24_draw_backward(int64_t n_layers, int64_t masks, int64_t groups, const drawn *layers, const float *scale,
                      float temperature, const float *probs, const float *by_probs, int64_t all_teach) {
    const int64_t most = most_scores(n_layers, layers), plane = masks * groups;
    float *by_mask = aligned_alloc(64, 3 * most * sizeof(float)), *by_scores = by_mask + most, *masks_only = by_scores + most;
    if (!by_mask) return 1;
    for (int64_t k = 0; k < n_layers; k++)
        if (layers[k].by_weight) memset(layers[k].by_weight, 0, layers[k].rows * layers[k].columns * sizeof(float));
    for (int64_t m = 0, at = 0; m < masks; m++)
        for (int64_t k = 0; k < n_layers; k++) {
            const drawn *l = layers + k;
            const int64_t padded = (l->columns + 3) / 4 * 4, n = l->rows * padded / 4;
            const float *given = l->mask ? l->mask + m * l->rows * l->columns : NULL, *for_weight = by_scores;
            if (given && padded != l->columns) {
                memset(by_mask, 0, 4 * n * sizeof(float));
                copy_rows(by_mask, padded, given, l->columns, l->rows, l->columns);
                given = by_mask;
            }
            draw_groups_backward(n, temperature, probs + at, plane, given, by_probs ? by_probs + at : NULL, by_scores);
            if (l->by_weight && by_probs && !all_teach) {
                draw_groups_backward(n, temperature, probs + at, plane, given, NULL, masks_only);
                for_weight = masks_only;
            }
            scores_backward(l, m, scale[k * masks + m], by_scores, l->by_weight ? for_weight : NULL);
            at += n;
        }
    free(by_mask);
    return 0;
}

/* A weight [size] seen through masks [M, size], as k24lab.ops.calls.Seen: their product, or in the backward pass the
 * gradient to it, and the gradients to the weight and to the masks. */
typedef struct {
    const float *weight, *mask;
    float *product, *by_weight, *by_mask;
    int64_t masks, size;
} seen;

void k24_seen(int64_t n_layers, const seen *layers) {
    for (const seen *l = layers; l < layers + n_layers; l++)
        for (int64_t m = 0; m < l->masks; m++)
            for (int64_t i = 0; i < l->size; i++) l->product[m * l->size + i] = l->weight[i] * l->mask[m * l->size + i];
}

void k24_seen_backward(int64_t n_layers, const seen *layers) {
    for (const seen *l = layers; l < layers + n_layers; l++) {
        const float *restrict weight = l->weight;
        float *restrict by_weight = l->by_weight;
        memset(by_weight, 0, l->size * sizeof(float));
        for (int64_t m = 0; m < l->masks; m++) {
            const float *restrict grad = l->product + m * l->size, *restrict mask = l->mask + m * l->size;
            float *restrict by_mask = l->by_mask + m * l->size;
            for (int64_t i = 0; i < l->size; i++) {
                by_weight[i] += grad[i] * mask[i];
                by_mask[i] = grad[i] * weight[i];
            }
        }
    }
}

/* Sum over groups and ordered pairs of masks of pi_a . pi_b, of probs [6, M, groups]. */
void k24_pairs(int64_t masks, int64_t groups, const float *probs, float *result) {
    double sum = 0.0;
    for (int k = 0; k < 6; k++, probs += masks * groups)
        for (int64_t g = 0; g < groups; g += LANES) {
            vec total = all(0.0f), squares = all(0.0f);
            for (int64_t m = 0; m < masks; m++) {
                const vec p = load_part(probs + m * groups + g, groups - g < LANES ? groups - g : LANES);
                total += p;
                squares += p * p;
            }
            total = total * total - squares;
            for (int j = 0; j < LANES; j++) sum += total[j];
        }
    *result = (float)sum;
}

/* Its gradient, times `factor`: twice the sum of the other masks. */
void k24_pairs_backward(int64_t masks, int64_t groups, const float *probs, float factor, float *grad) {
    for (int k = 0; k < 6; k++, probs += masks * groups, grad += masks * groups)
        for (int64_t g = 0; g < groups; g += LANES) {
            const int64_t count = groups - g < LANES ? groups - g : LANES;
            vec total = all(0.0f);
            for (int64_t m = 0; m < masks; m++) total += load_part(probs + m * groups + g, count);
            for (int64_t m = 0; m < masks; m++) {
                const vec others = total - load_part(probs + m * groups + g, count);
                store_part(grad + m * groups + g, others * all(2.0f * factor), count);
            }
        }
}
