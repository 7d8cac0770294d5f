/* For bench_ssd.py: independent chains of fused multiply-adds in registers, the roof of a core.
 * Compiled with -march of the level that is measured. */
#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float vector __attribute__((vector_size(4 * LANES)));

/* Returns how many multiply-adds it has done; OUT sum keeps them from being left out. */
long fma_peak(long turns, float *sum)
{
    vector a[10], x = {0}, y = {0};
    int i;
    long t;
    x += 0.999f, y += 1e-3f;
    for (i = 0; i < 10; i++) a[i] = x + (float)(i + turns);
    for (t = 0; t < turns; t++) {
        a[0] = a[0] * x + y, a[1] = a[1] * x + y, a[2] = a[2] * x + y, a[3] = a[3] * x + y;
        a[4] = a[4] * x + y, a[5] = a[5] * x + y, a[6] = a[6] * x + y, a[7] = a[7] * x + y;
        a[8] = a[8] * x + y, a[9] = a[9] * x + y;
    }
    for (i = 1; i < 10; i++) a[0] += a[i];
    *sum = a[0][0];
    return turns * 10 * LANES;
}
