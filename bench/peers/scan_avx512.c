/* A peer for bench_ssm.py: the float32 scan by hand in AVX-512 intrinsics, for one fixed case only.
 *
 * Contiguous u, delta, z, out (batch, D, L) and B, C (batch, N, L), D a multiple of 16, N of 4, L
 * of 64; skip, gate, bias and softplus always on.  Compiled with -O3 -march=native.
 * 2**x is computed by vrndscale and vscalef.
 */
#include <immintrin.h>
#include <stddef.h>

enum { T = 64 };
typedef __m512 v;
#define SET(x)       _mm512_set1_ps(x)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)

static inline v exp2v(v x)
{
    v k = _mm512_roundscale_ps(x, 8), f = _mm512_sub_ps(x, k), p = SET(0.0013264714f);
    p = FMA(p, f, SET(0.0096715139f));
    p = FMA(p, f, SET(0.0555073395f));
    p = FMA(p, f, SET(0.2402224242f));
    p = FMA(p, f, SET(0.6931470036f));
    p = FMA(p, f, SET(1.0f));
    return _mm512_scalef_ps(p, k);
}
static inline v softplus(v x)
{
    v e = exp2v(_mm512_mul_ps(_mm512_abs_ps(x), SET(-1.44269504f)));
    v s = _mm512_div_ps(e, _mm512_add_ps(e, SET(2))), q = _mm512_mul_ps(s, s), p = SET(1.0f / 15);
    p = FMA(p, q, SET(1.0f / 13));
    p = FMA(p, q, SET(1.0f / 11));
    p = FMA(p, q, SET(1.0f / 9));
    p = FMA(p, q, SET(1.0f / 7));
    p = FMA(p, q, SET(1.0f / 5));
    p = FMA(p, q, SET(1.0f / 3));
    p = FMA(p, q, SET(1.0f));
    return FMA(_mm512_add_ps(s, s), p, _mm512_max_ps(x, _mm512_setzero_ps()));
}
static inline v silu(v x)
{
    return _mm512_div_ps(x, _mm512_add_ps(SET(1), exp2v(_mm512_mul_ps(x, SET(-1.44269504f)))));
}
static inline void transpose(const float *src, ptrdiff_t ss, float *dst, ptrdiff_t ds)
{
    v a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_ps(src + i * ss);
#pragma GCC unroll 16
    for (int i = 0; i < 8; i++) {
        b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 16
        for (int j = 0; j < 2; j++) {
            a[4 * i + 2 * j] = _mm512_castpd_ps(
                _mm512_unpacklo_pd(_mm512_castps_pd(b[4 * i + j]),
                                   _mm512_castps_pd(b[4 * i + 2 + j])));
            a[4 * i + 2 * j + 1] = _mm512_castpd_ps(
                _mm512_unpackhi_pd(_mm512_castps_pd(b[4 * i + j]),
                                   _mm512_castps_pd(b[4 * i + 2 + j])));
        }
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_f32x4(a[i], a[4 + i], 0x88);
        b[4 + i] = _mm512_shuffle_f32x4(a[i], a[4 + i], 0xdd);
        b[8 + i] = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0x88);
        b[12 + i] = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_ps(dst + i * ds, _mm512_shuffle_f32x4(b[i], b[8 + i], 0x88));
        _mm512_storeu_ps(dst + (4 + i) * ds, _mm512_shuffle_f32x4(b[4 + i], b[12 + i], 0x88));
        _mm512_storeu_ps(dst + (8 + i) * ds, _mm512_shuffle_f32x4(b[i], b[8 + i], 0xdd));
        _mm512_storeu_ps(dst + (12 + i) * ds, _mm512_shuffle_f32x4(b[4 + i], b[12 + i], 0xdd));
    }
}

void scan(const float *u, const float *delta, const float *A, const float *B, const float *C,
          const float *D, const float *z, const float *bias, float *out, ptrdiff_t batch,
          ptrdiff_t dim, ptrdiff_t N, ptrdiff_t L)
{
    float a[256 * 16] __attribute__((aligned(64))), h[256 * 16] __attribute__((aligned(64)));
    float td[T * 16] __attribute__((aligned(64))), tx[T * 16] __attribute__((aligned(64)));
    float ty[T * 16] __attribute__((aligned(64))), tz[T * 16] __attribute__((aligned(64)));
    for (ptrdiff_t b = 0; b < batch; b++)
        for (ptrdiff_t d = 0; d < dim; d += 16) {
            for (ptrdiff_t n = 0; n < N; n++)
                for (int i = 0; i < 16; i++) {
                    a[n * 16 + i] = A[(d + i) * N + n] * 1.44269504f;
                    h[n * 16 + i] = 0;
                }
            v vD = _mm512_loadu_ps(D + d), vb = _mm512_loadu_ps(bias + d);
            for (ptrdiff_t l = 0; l < L; l += T) {
                const ptrdiff_t o = (b * dim + d) * L + l;
                for (int t = 0; t < T; t += 16) {
                    transpose(delta + o + t, L, td + t * 16, 16);
                    transpose(u + o + t, L, tx + t * 16, 16);
                    transpose(z + o + t, L, tz + t * 16, 16);
                }
                for (int t = 0; t < T; t++) {
                    v dt = softplus(_mm512_add_ps(_mm512_load_ps(td + t * 16), vb)),
                      x = _mm512_load_ps(tx + t * 16);
                    _mm512_store_ps(ty + t * 16, _mm512_mul_ps(x, vD));
                    _mm512_store_ps(td + t * 16, dt);
                    _mm512_store_ps(tx + t * 16, _mm512_mul_ps(dt, x));
                }
                for (ptrdiff_t n = 0; n < N; n += 4) {
                    const float *pb = B + (b * N + n) * L + l, *pc = C + (b * N + n) * L + l;
                    v a0 = _mm512_load_ps(a + n * 16), a1 = _mm512_load_ps(a + n * 16 + 16);
                    v a2 = _mm512_load_ps(a + n * 16 + 32), a3 = _mm512_load_ps(a + n * 16 + 48);
                    v h0 = _mm512_load_ps(h + n * 16), h1 = _mm512_load_ps(h + n * 16 + 16);
                    v h2 = _mm512_load_ps(h + n * 16 + 32), h3 = _mm512_load_ps(h + n * 16 + 48);
                    for (int t = 0; t < T; t++) {
                        v dt = _mm512_load_ps(td + t * 16), x = _mm512_load_ps(tx + t * 16),
                          s = _mm512_load_ps(ty + t * 16);
                        h0 = FMA(exp2v(_mm512_mul_ps(dt, a0)), h0, _mm512_mul_ps(x, SET(pb[t])));
                        h1 = FMA(exp2v(_mm512_mul_ps(dt, a1)), h1,
                                 _mm512_mul_ps(x, SET(pb[t + L])));
                        h2 = FMA(exp2v(_mm512_mul_ps(dt, a2)), h2,
                                 _mm512_mul_ps(x, SET(pb[t + 2 * L])));
                        h3 = FMA(exp2v(_mm512_mul_ps(dt, a3)), h3,
                                 _mm512_mul_ps(x, SET(pb[t + 3 * L])));
                        s = FMA(h0, SET(pc[t]), s);
                        s = FMA(h1, SET(pc[t + L]), s);
                        s = FMA(h2, SET(pc[t + 2 * L]), s);
                        s = FMA(h3, SET(pc[t + 3 * L]), s);
                        _mm512_store_ps(ty + t * 16, s);
                    }
                    _mm512_store_ps(h + n * 16, h0);
                    _mm512_store_ps(h + n * 16 + 16, h1);
                    _mm512_store_ps(h + n * 16 + 32, h2);
                    _mm512_store_ps(h + n * 16 + 48, h3);
                }
                for (int t = 0; t < T; t++)
                    _mm512_store_ps(ty + t * 16, _mm512_mul_ps(_mm512_load_ps(ty + t * 16),
                                                               silu(_mm512_load_ps(tz + t * 16))));
                for (int t = 0; t < T; t += 16) transpose(ty + t * 16, 16, out + o + t, L);
            }
        }
}
