/* The routed update, straight from the sub-blocks of the bank: y[token] += ΔW of its task x[token].
 *
 * bfloat16 in and out, sums in float32. A token's sums are made in an order that does not depend on the tokens beside
 * it, so its update is the same alone and in a batch. Compiled on the machine that serves (paired.py): with
 * tiles (AMX) where its processor has them, else with dot products of bfloat16. Both take pairs of neighbours, hence the
 * layout.
 */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t bf16;

enum { LANES = 16, MOST = 256, AT_ONCE = 64 }; /* MOST: of a block's size and of its rank, both multiples of LANES */

/* A sub-block: `size` outputs and inputs, `rank` between them. */
typedef struct {
    const bf16 *a;       /* [size / 2][rank][2]: pairs of inputs */
    const bf16 *b;       /* [rank / 2][size][2]: pairs of ranks */
    int32_t row, column; /* in W0's grid */
} block;

/* One projection's sub-blocks of one size and rank. */
typedef struct {
    const block *blocks;  /* task t's are first[t] to first[t + 1] - 1, by row */
    const int64_t *first; /* [tasks + 1] */
    int64_t size, rank;
} projection;

/* Tokens of one task: `rows`, or without them `count` neighbours from `start` on. */
typedef struct {
    const int64_t *rows;
    int64_t start, count, task;
} group;

/* A product's left side: at most TILE tokens' values, `stride` apart. */
typedef struct {
    const bf16 *values;
    int64_t stride;
    int count;
} tokens;

#ifdef __AMX_BF16__

enum { TILE = 16 };

/* How the tiles are cut, as the processor reads it: 0 holds x, 1 holds w, 4 to 7 hold sums. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tiles;

static inline int depth_of(const projection *p) { return (p->size | p->rank) % 32 ? 16 : 32; }

/* Whoever else computes with tiles may believe that they still are as it left them. Not the compiler's own functions:
 * GCC 12's name 8 of the 64 bytes, so it may leave out what is written to the others. */
static inline void save(tiles *before) { __asm__ volatile("sttilecfg %0" : "=m"(*before)); }
static inline void set(const tiles *wanted) { __asm__ volatile("ldtilecfg %0" : : "m"(*wanted)); }

/* For `count` tokens; of more than a tile's, the last may hold rows that are computed and not used. */
static inline void cut(const projection *p, int64_t count)
{
    tiles wanted = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        wanted.rows[tile] = (uint8_t)(tile == 1 ? depth_of(p) / 2 : count < TILE ? count : TILE);
        wanted.row_bytes[tile] = (uint16_t)(tile == 0 ? depth_of(p) * 2 : 4 * LANES);
    }
    set(&wanted);
}

#define TIMES(tile, column)                                                        \
    do {                                                                           \
        _tile_loadd(1, w + i * width + 2 * (j + (column)), width * sizeof(float)); \
        _tile_dpbf16ps(tile, 0, 1);                                                \
    } while (0)

/* sums [TILE][width] = x w, or += where not is_new; x [TILE][size], w [size / 2][width][2]. */
static inline void multiply(float *sums, int is_new, tokens x, const bf16 *w, int64_t size, int64_t width, int depth)
{
    const int64_t next = width * sizeof(float);
    __asm__ volatile("" : : : "memory"); /* it is not told what a tile is loaded from: all is written by here */
    for (int64_t j = 0; j < width; j += 4 * LANES) {
        int64_t left = (width - j) / LANES;
        if (is_new) {
            _tile_zero(4);
            _tile_zero(5);
            _tile_zero(6);
            _tile_zero(7);
        } else {
            _tile_loadd(4, sums + j, next);
            if (left > 1) _tile_loadd(5, sums + j + LANES, next);
            if (left > 2) _tile_loadd(6, sums + j + 2 * LANES, next);
            if (left > 3) _tile_loadd(7, sums + j + 3 * LANES, next);
        }
        for (int64_t i = 0; i < size; i += depth) {
            _tile_loadd(0, x.values + i, x.stride * sizeof(bf16));
            TIMES(4, 0);
            if (left > 1) TIMES(5, LANES);
            if (left > 2) TIMES(6, 2 * LANES);
            if (left > 3) TIMES(7, 3 * LANES);
        }
        _tile_stored(4, sums + j, next);
        if (left > 1) _tile_stored(5, sums + j + LANES, next);
        if (left > 2) _tile_stored(6, sums + j + 2 * LANES, next);
        if (left > 3) _tile_stored(7, sums + j + 3 * LANES, next);
    }
}

/* Linux gives tiles to a process that asks for them. 0 if they can be used. */
int seta_prepare(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return (int)syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
}

#else

enum { TILE = 4 };

typedef struct {
    char nothing;
} tiles;

static inline int depth_of(const projection *p) { return (void)p, 2; }
static inline void cut(const projection *p, int64_t count) { (void)p, (void)count; }
static inline void save(tiles *before) { (void)before; }
static inline void set(const tiles *wanted) { (void)wanted; }

/* For a number of tokens that the compiler knows: their sums stay in registers. */
static inline __attribute__((always_inline)) void multiply_some(float *sums, int is_new, tokens x, const bf16 *w,
                                                                int64_t size, int64_t width, int count)
{
    for (int64_t j = 0; j < width; j += LANES) {
        __m512 parts[TILE];
        for (int k = 0; k < count; k++)
            parts[k] = is_new ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + k * width + j);
        for (int64_t i = 0; i < size; i += 2) {
            __m512bh values = (__m512bh)_mm512_loadu_si512(w + i * width + 2 * j);
            for (int k = 0; k < count; k++) {
                int32_t pair;
                memcpy(&pair, x.values + k * x.stride + i, sizeof pair);
                parts[k] = _mm512_dpbf16_ps(parts[k], (__m512bh)_mm512_set1_epi32(pair), values);
            }
        }
        for (int k = 0; k < count; k++)
            _mm512_storeu_ps(sums + k * width + j, parts[k]);
    }
}

/* As above, for the tokens that there are. */
static inline void multiply(float *sums, int is_new, tokens x, const bf16 *w, int64_t size, int64_t width, int depth)
{
    (void)depth;
    switch (x.count) {
    case 1: multiply_some(sums, is_new, x, w, size, width, 1); break;
    case 2: multiply_some(sums, is_new, x, w, size, width, 2); break;
    case 3: multiply_some(sums, is_new, x, w, size, width, 3); break;
    default: multiply_some(sums, is_new, x, w, size, width, TILE);
    }
}

int seta_prepare(void) { return 0; }

#endif

/* y += x, rounded to nearest, ties to even. */
static inline void add_rounded(bf16 *y, const float *x, int64_t size)
{
    for (int64_t i = 0; i < size; i += LANES) {
        __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(y + i))), 16);
        __m512 sum = _mm512_add_ps(_mm512_castsi512_ps(bits), _mm512_loadu_ps(x + i));
        _mm256_storeu_si256((__m256i *)(y + i), (__m256i)_mm512_cvtneps_pbh(sum));
    }
}

static inline void round_to(bf16 *y, const float *x, int64_t size)
{
    for (int64_t i = 0; i < size; i += LANES)
        _mm256_storeu_si256((__m256i *)(y + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + i)));
}

static inline int64_t row_of(const group *g, int64_t token) { return g->rows ? g->rows[token] : g->start + token; }

/* A tile's inputs of one block: where they are, or picked where they do not fill a tile side by side. */
static inline tokens inputs(const bf16 *x, int64_t x_stride, const group *g, int64_t first, int64_t size, bf16 *picked)
{
    int count = g->count - first < TILE ? (int)(g->count - first) : TILE;
    if (!g->rows && count == TILE)
        return (tokens){x + (g->start + first) * x_stride, x_stride, count};
    for (int k = 0; k < count; k++)
        memcpy(picked + k * size, x + row_of(g, first + k) * x_stride, size * sizeof(bf16));
    return (tokens){picked, size, count};
}

/* Tokens `from` to `to - 1` of a group, at most AT_ONCE: each block is read once for all of them. */
static void add_some(bf16 *y, int64_t y_stride, const bf16 *x, int64_t x_stride, const projection *p, const group *g,
                     int64_t from, int64_t to)
{
    float sums[AT_ONCE * MOST], shrunk[AT_ONCE * MOST];
    bf16 narrow[AT_ONCE * MOST], picked[TILE * MOST];
    const block *one = p->blocks + p->first[g->task], *stop = p->blocks + p->first[g->task + 1];
    int depth = depth_of(p);
    cut(p, to - from);
    while (one < stop) {
        int32_t row = one->row;
        for (int is_new = 1; one < stop && one->row == row; one++, is_new = 0) {
            /* All tiles take each step before the next one: what a step waits for is long done then. */
            for (int64_t first = from; first < to; first += TILE) {
                tokens t = inputs(x + one->column * p->size, x_stride, g, first, p->size, picked);
                multiply(shrunk + (first - from) * p->rank, 1, t, one->a, p->size, p->rank, depth);
            }
            round_to(narrow, shrunk, (to - from) * p->rank);
            for (int64_t first = from; first < to; first += TILE) {
                tokens t = {narrow + (first - from) * p->rank, p->rank, to - first < TILE ? (int)(to - first) : TILE};
                multiply(sums + (first - from) * p->size, is_new, t, one->b, p->rank, p->size, depth);
            }
        }
        for (int64_t token = from; token < to; token++)
            add_rounded(y + row_of(g, token) * y_stride + row * p->size, sums + (token - from) * p->size, p->size);
    }
}

/* Rows of y are `y_stride` values apart, x likewise. */
void seta_add(bf16 *y, int64_t y_stride, const bf16 *x, int64_t x_stride, const projection *p, const group *groups,
              int64_t num_groups)
{
    tiles before;
    save(&before);
    for (const group *g = groups; g < groups + num_groups; g++)
        for (int64_t from = 0; from < g->count; from += AT_ONCE)
            add_some(y, y_stride, x, x_stride, p, g, from, from + AT_ONCE < g->count ? from + AT_ONCE : g->count);
    set(&before);
}
