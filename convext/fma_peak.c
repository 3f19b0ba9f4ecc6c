/* The arithmetic peak of one core: chains of multiply-adds in registers, enough of them to hide the latency. Compiled and
   called by machine.py. Each of the `rounds` is CHAINS vector multiply-adds; returns how many FLOP a round is. */
#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#define CHAINS 12

typedef float vec __attribute__((vector_size(WIDTH * sizeof(float))));

long fma_rounds(long rounds, float* sink) {
  vec sums[CHAINS], factor, term;
  for (int i = 0; i < WIDTH; ++i) {
    factor[i] = 0.999f;
    term[i] = *sink;
  }
  for (int c = 0; c < CHAINS; ++c) sums[c] = term + (float)c;
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int c = 0; c < CHAINS; ++c) sums[c] = sums[c] * factor + term;
  }
  float total = 0;
  for (int c = 0; c < CHAINS; ++c)
    for (int i = 0; i < WIDTH; ++i) total += sums[c][i];
  *sink = total;
  return 2L * CHAINS * WIDTH;
}
