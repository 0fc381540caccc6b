/* Scores of weights, and 2:4 masks drawn from them (k24lab.sparsity.fused). */

#include "common.h"

/* The six 2:4 patterns, as in k24lab.sparsity.patterns. */
static const int FIRST[6] = {0, 0, 0, 1, 1, 2}, SECOND[6] = {1, 2, 3, 2, 3, 3};

INLINE void read_groups(vec *planes, const float *groups, int64_t count) {
    float part[4][LANES] = {{0}};
    for (int64_t g = 0; g < count; g++)
        for (int i = 0; i < 4; i++) part[i][g] = groups[4 * g + i];
    for (int i = 0; i < 4; i++) planes[i] = load(part[i]);
}

/* Draw one pattern for each of n groups of four scores: with `uniform` [n] from softmax(score of pattern /
 * temperature) by inverse transform sampling, without it the best one. Writes the index, the 0/1 mask [n, 4], and
 * unless it is NULL the distribution `probs` [6, n]. */
void k24_draw(int64_t n, const float *scores, float temperature, const float *uniform, int32_t *index, float *mask,
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
                store_part(probs + k * n + at, p[k], count);
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
        for (int64_t g = 0; g < count; g++) {
            for (int i = 0; i < 4; i++) mask[4 * (at + g) + i] = m[i][g];
            index[at + g] = which[g];
        }
    }
}

/* Gradient of k24_draw to the scores [n, 4], straight-through: `by_mask` [n, 4] to the expected mask, `by_probs` [6, n]
 * to the distribution (or NULL). */
void k24_draw_backward(int64_t n, float temperature, const float *probs, const float *by_mask, const float *by_probs,
                       float *by_scores) {
    for (int64_t at = 0; at < n; at += LANES) {
        const int64_t count = n - at < LANES ? n - at : LANES;
        vec m[4], p[6], g[6], mean = all(0.0f), out[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
        read_groups(m, by_mask + 4 * at, count);
        for (int k = 0; k < 6; k++) {
            p[k] = load_part(probs + k * n + at, count);
            g[k] = by_probs ? load_part(by_probs + k * n + at, count) : all(0.0f);
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

/* The factors of a score: |W| if `with_weight`, the running activation unless `ema` is NULL, and sigmoid(alpha). */
INLINE vec score_without_alpha(const float *weight, const float *ema, int64_t with_weight, int64_t count) {
    vec s = all(1.0f);
    if (with_weight) {
        const vec w = load_part(weight, count);
        s = either(w < all(0.0f), -w, w);
    }
    return ema ? s * load_part(ema, count) : s;
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
                vec s = rest * sigmoid(load_part(alpha + (m * rows + o) * columns + i, count));
                store_part(row + i, s, count);
                total += load_part(row + i, count); /* lanes beyond the row must not count */
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
                const vec open = sigmoid(load_part(alpha + at, count));
                const vec rest = score_without_alpha(w, mean, with_weight, count) * all(scale[m]);
                const vec a = load_part(by_scores + first + i, count) * rest * open * (all(1.0f) - open);
                store_part(by_alpha + at, a, count);
                if (by_weight) {
                    const vec signed_w = load_part(w, count), g = load_part(for_weight + first + i, count);
                    const vec size = g * open * (mean ? load_part(mean, count) : all(1.0f)) * all(scale[m]);
                    const vec sign = either(signed_w < all(0.0f), all(-1.0f), either(signed_w > all(0.0f), all(1.0f), all(0.0f)));
                    const vec sum = load_part(by_weight + o * columns + i, count) + size * sign;
                    store_part(by_weight + o * columns + i, sum, count);
                }
            }
        }
}
