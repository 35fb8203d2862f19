/* y[rows] += x[rows] wT for a few rows of bfloat16: sums in float32, rounded once at the end.
 *
 * A library's matrix product costs more to call than these take. A row's sums are made in an order that does not depend
 * on the other rows, so a request's tokens are the same alone and in a batch.
 *
 * Compiled by few_rows.py for processors with dot products of bfloat16.
 */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

enum { ROWS_AT_ONCE = 4, LANES = 32 };

static inline float widened(bf16 value)
{
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

/* To nearest, ties to even; not-a-number stays one. */
static inline bf16 rounded(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (bf16)(bits >> 16 | 0x40u);
    return (bf16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* The dot product of w with each of `count` rows of x. */
static inline void dots(const bf16 *const *x, const bf16 *w, int64_t size, int count, float *sums)
{
    __m512 parts[ROWS_AT_ONCE];
    int64_t i = 0;
    for (int k = 0; k < count; k++)
        parts[k] = _mm512_setzero_ps();
    for (; i + LANES <= size; i += LANES) {
        __m512bh values = (__m512bh)_mm512_loadu_si512(w + i);
        for (int k = 0; k < count; k++)
            parts[k] = _mm512_dpbf16_ps(parts[k], (__m512bh)_mm512_loadu_si512(x[k] + i), values);
    }
    for (int k = 0; k < count; k++)
        sums[k] = _mm512_reduce_add_ps(parts[k]);
    for (; i < size; i++)
        for (int k = 0; k < count; k++)
            sums[k] += widened(w[i]) * widened(x[k][i]);
}

static inline void add_some(bf16 *const *y, const bf16 *const *x, const bf16 *w, int64_t d_out, int64_t d_in, int count)
{
    for (int64_t out = 0; out < d_out; out++) {
        float sums[ROWS_AT_ONCE];
        dots(x, w + out * d_in, d_in, count, sums);
        for (int k = 0; k < count; k++)
            y[k][out] = rounded(widened(y[k][out]) + sums[k]);
    }
}

/* y: rows `y_stride` values apart, x likewise; w [d_out, d_in]; rows [num_rows], or null for the first num_rows. */
void seta_add_few_rows(bf16 *y, int64_t y_stride, const bf16 *x, int64_t x_stride, const bf16 *w, const int64_t *rows,
                       int64_t num_rows, int64_t d_out, int64_t d_in)
{
    for (int64_t first = 0; first < num_rows; first += ROWS_AT_ONCE) {
        bf16 *to[ROWS_AT_ONCE];
        const bf16 *from[ROWS_AT_ONCE];
        int count = num_rows - first < ROWS_AT_ONCE ? (int)(num_rows - first) : ROWS_AT_ONCE;
        for (int k = 0; k < count; k++) {
            int64_t row = rows ? rows[first + k] : first + k;
            to[k] = y + row * y_stride;
            from[k] = x + row * x_stride;
        }
        switch (count) { /* constants, so that the compiler keeps the sums in registers */
        case 1: add_some(to, from, w, d_out, d_in, 1); break;
        case 2: add_some(to, from, w, d_out, d_in, 2); break;
        case 3: add_some(to, from, w, d_out, d_in, 3); break;
        default: add_some(to, from, w, d_out, d_in, ROWS_AT_ONCE);
        }
    }
}
