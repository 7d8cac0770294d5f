/* tile_sum.h: checksums of tiles, by which a scan's cache is told from that of other arguments
 * (derivations §6.8); included by _remembered.pxi.
 *
 * They are taken in the loops that read the tiles anyway, and take 2 % of a scan.  Those of
 * _core/checksum.h, which reads an array once more and needs it contiguous, would take 9 %. */
#ifndef FASTDERIV_TILE_SUM_H
#define FASTDERIV_TILE_SUM_H
#include "simd.h"

#define SUM_STEPS 32 /* rows of a tile that one sum is of: every block begins at a multiple */

/* The words of a row of a tile, and of a sum on its way. */
#if VB
typedef uint64_t words_t __attribute__((vector_size(VB)));
# define WORDS ((int)(VB / sizeof(uint64_t)))
#else
typedef uint64_t words_t;
# define WORDS 1
#endif

static const uint64_t WORD_KEYS[8] = {UINT64_C(0x9E3779B185EBCA87), UINT64_C(0xE7037ED1A0B428DB),
                                      UINT64_C(0x8EBC6AF09C88C6E3), UINT64_C(0x589965CC75374CC3),
                                      UINT64_C(0xA0761D6478BD642F), UINT64_C(0xC2B2AE3D27D4EB4F),
                                      UINT64_C(0x165667B19E3779F9), UINT64_C(0x27D4EB2F165667C5)};

/* Every word's halves exchanged. */
VINL words_t halves_exchanged(words_t y)
{
#if VB == 64
    return (words_t)_mm512_shuffle_epi32((__m512i)y, (_MM_PERM_ENUM)0xB1);
#elif VB == 32
    return (words_t)_mm256_shuffle_epi32((__m256i)y, 0xB1);
#elif VB == 16 && defined(__x86_64__)
    return (words_t)_mm_shuffle_epi32((__m128i)y, 0xB1);
#else
    return y << 32 | y >> 32;
#endif
}

/* The product of the low halves of every two words. */
VINL words_t product_of_halves(words_t a, words_t b)
{
#if VB == 64
    return (words_t)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif VB == 32
    return (words_t)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif VB == 16 && defined(__x86_64__)
    return (words_t)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    const words_t low = (words_t){0} + UINT64_C(0xFFFFFFFF);
    return (a & low) * (b & low);
#endif
}

/* The sums h after one more row: with y = h ^ row, the product of y's halves and y's halves
 * exchanged.  (The product alone would lose a half where the other is zero.) */
VINL words_t stirred(words_t h, words_t row)
{
    const words_t y = h ^ row, x = halves_exchanged(y);
    return product_of_halves(y, x) + x;
}

VINL words_t row_of(const real *p)
{
    words_t row = {0};
    memcpy(&row, p, VL * sizeof(real));
    return row;
}

/* Checksums of one or two tiles [time, lane] on their way through a loop over time. */
typedef struct {
    words_t first, second, first_total, second_total;
    uint64_t place;
} Stir;

VINL words_t word_keys(void)
{
    words_t keys;
    memcpy(&keys, WORD_KEYS, sizeof keys);
    return keys;
}

/* Begin sums of SUM_STEPS rows, the first of which has the number `place` in its array. */
VINL void stir_seed(Stir *s, uint64_t place)
{
    uint64_t seed = (place + 1) * WORD_KEYS[0];
    seed = (seed ^ seed >> 32) * WORD_KEYS[1];
    s->first = s->second = word_keys() + (seed ^ seed >> 29);
}

/* End sums, adding them to the totals. */
VINL void stir_end(Stir *s)
{
    s->first_total += stirred(s->first, word_keys());
    s->second_total += stirred(s->second, word_keys());
}

VINL void stir_begin(Stir *s, uint64_t place)
{
    s->place = place;
    s->first_total = s->second_total = (words_t){0};
    stir_seed(s, place);
}

/* Row t of both tiles; there is one tile if `second` is NULL. */
VINL void stir(Stir *s, const real *first, const real *second, ptrdiff_t t)
{
    s->first = stirred(s->first, row_of(first));
    if (second) s->second = stirred(s->second, row_of(second));
    if (t % SUM_STEPS == SUM_STEPS - 1) {
        stir_end(s);
        stir_seed(s, s->place + (uint64_t)t + 1);
    }
}

VINL uint64_t sum_of_words(words_t total)
{
    uint64_t parts[WORDS], sum = 0;
    int i;
    memcpy(parts, &total, sizeof total);
    for (i = 0; i < WORDS; i++) sum += parts[i];
    return sum;
}

/* The sums of tiles of so many steps.  Sums of tiles add up, modulo 2**64, to one that does not
 * depend on how time was cut into blocks at multiples of SUM_STEPS.  Contents that differ agree by
 * chance only, one in about 2**64. */
VINL uint64_t stirred_first(const Stir *s, ptrdiff_t steps)
{
    const words_t rest = stirred(s->first, word_keys());
    return sum_of_words(steps % SUM_STEPS ? s->first_total + rest : s->first_total);
}

VINL uint64_t stirred_second(const Stir *s, ptrdiff_t steps)
{
    const words_t rest = stirred(s->second, word_keys());
    return sum_of_words(steps % SUM_STEPS ? s->second_total + rest : s->second_total);
}

#endif
