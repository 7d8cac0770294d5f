/* checksum.h: a 64-bit checksum at the speed of memory; included by cache.pyx. */
#ifndef FASTDERIV_CHECKSUM_H
#define FASTDERIV_CHECKSUM_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(_MSC_VER) && !defined(__clang__)
# include <intrin.h>
#endif

#define PRIME UINT64_C(0x9E3779B185EBCA87)

/* The 128-bit product of a and b, its halves joined by exclusive or: the step of wyhash.
 * (Products of 64 bits alone let changes of two words cancel: small integers as float32 did so.) */
static uint64_t folded(uint64_t a, uint64_t b)
{
#if defined(__SIZEOF_INT128__)
    const unsigned __int128 p = (unsigned __int128)a * b;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
#elif defined(_M_X64)
    uint64_t high, low = _umul128(a, b, &high);
    return low ^ high;
#elif defined(_M_ARM64)
    return a * b ^ __umulh(a, b);
#else
    const uint64_t al = (uint32_t)a, ah = a >> 32, bl = (uint32_t)b, bh = b >> 32;
    const uint64_t m = ah * bl + (al * bl >> 32), k = al * bh + (uint32_t)m;
    return a * b ^ (ah * bh + (m >> 32) + (k >> 32));
#endif
}

/* The sum h after the two words at p. */
static uint64_t stir(uint64_t h, const unsigned char *p)
{
    uint64_t word[2];
    memcpy(word, p, sizeof word);
    return folded(word[0] ^ UINT64_C(0xE7037ED1A0B428DB), word[1] ^ h);
}

/* The checksum of n bytes: four sums run side by side, each of which takes two words at a time.
 * Contents that differ agree with a probability of about 2**-64.  It is no defence against those
 * who look for two contents that agree. */
static uint64_t checksum_of(const unsigned char *p, size_t n)
{
    uint64_t h0 = PRIME, h1 = 3 * PRIME, h2 = 5 * PRIME, h3 = 7 * PRIME, all = n * PRIME, last[4];
    unsigned char rest[64] = {0};
    int i;
    for (; n >= 64; n -= 64, p += 64) {
        h0 = stir(h0, p), h1 = stir(h1, p + 16);
        h2 = stir(h2, p + 32), h3 = stir(h3, p + 48);
    }
    memcpy(rest, p, n);
    last[0] = stir(h0, rest), last[1] = stir(h1, rest + 16);
    last[2] = stir(h2, rest + 32), last[3] = stir(h3, rest + 48);
    for (i = 0; i < 4; i++) all = folded(all ^ UINT64_C(0x8EBC6AF09C88C6E3), last[i] ^ PRIME);
    return all;
}

#endif
