// Products of small matrices, float32, whose accumulators stay in registers; vectors of L floats.
#pragma once
#include <algorithm>

namespace {
template <int L> struct Lanes {
  typedef float v __attribute__((vector_size(4 * L)));
  typedef float unaligned __attribute__((vector_size(4 * L), aligned(4)));
  typedef int index __attribute__((vector_size(4 * L)));
};
template <int L> using vec = typename Lanes<L>::v;
template <int L> inline vec<L> load(const float* p) { return *reinterpret_cast<const typename Lanes<L>::unaligned*>(p); }
template <class V> inline void store(float* p, V v) {
  *reinterpret_cast<typename Lanes<sizeof(V) / 4>::unaligned*>(p) = v;
}
#ifdef __AVX512F__
constexpr int accumulators = 24, widest = 16;
#else
constexpr int accumulators = 12, widest = 8;
#endif

// C[m][n] = sum_k A[m][k] B[k][n]: MR rows m, NV vectors of columns n
template <int L, int MR, int NV>
__attribute__((noinline)) void product(const float* A, long lda, const float* B, float* C, long ldc, long K) {
  vec<L> acc[MR][NV] = {};
  for (long k = 0; k < K; k++) {
    vec<L> b[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) b[n] = load<L>(B + (k * NV + n) * L);
#pragma GCC unroll 32
    for (int m = 0; m < MR; m++) {
      vec<L> a = A[m * lda + k] - vec<L>{};
#pragma GCC unroll 4
      for (int n = 0; n < NV; n++) acc[m][n] += a * b[n];
    }
  }
#pragma GCC unroll 32
  for (int m = 0; m < MR; m++)
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) store(C + m * ldc + n * L, acc[m][n]);
}
template <int L, int NV>
void product_rows(const float* A, long lda, const float* B, float* C, long ldc, long M, long K) {
  constexpr int MR = accumulators / NV;
  long m = 0;
  for (; m + MR <= M; m += MR) product<L, MR, NV>(A + m * lda, lda, B, C + m * ldc, ldc, K);
  for (; m + 4 <= M; m += 4) product<L, 4, NV>(A + m * lda, lda, B, C + m * ldc, ldc, K);
  for (; m < M; m++) product<L, 1, NV>(A + m * lda, lda, B, C + m * ldc, ldc, K);
}
// B lies in panels of two vectors, or of one where N is an odd number of vectors
template <int L> long panel(long N) { return N % (2 * L) ? L : 2 * L; }
template <int L> void products(const float* A, const float* B, float* C, long M, long K, long N) {
  for (long n = 0; n < N; n += panel<L>(N))
    (panel<L>(N) == L ? product_rows<L, 1> : product_rows<L, 2>)(A, K, B + n * K, C + n, N, M, K);
}

// D[n][k] += sum_m A[m][k] C[m][n]: NR rows n, 3 vectors of columns k
template <int L, int NR>
__attribute__((noinline)) void adjoint(const float* A, long lda, const float* C, long ldc, float* D, long ldd, long M) {
  vec<L> acc[NR][3];
#pragma GCC unroll 16
  for (int n = 0; n < NR; n++)
#pragma GCC unroll 4
    for (int k = 0; k < 3; k++) acc[n][k] = load<L>(D + n * ldd + L * k);
  for (long m = 0; m < M; m++) {
    vec<L> a[3];
#pragma GCC unroll 4
    for (int k = 0; k < 3; k++) a[k] = load<L>(A + m * lda + L * k);
#pragma GCC unroll 16
    for (int n = 0; n < NR; n++) {
      vec<L> c = C[m * ldc + n] - vec<L>{};
#pragma GCC unroll 4
      for (int k = 0; k < 3; k++) acc[n][k] += a[k] * c;
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < NR; n++)
#pragma GCC unroll 4
    for (int k = 0; k < 3; k++) store(D + n * ldd + L * k, acc[n][k]);
}
template <int L> void adjoints(const float* A, const float* C, float* D, long M, long K, long N) {
  constexpr int NR = accumulators / 3;
  for (long k = 0; k < K; k += 3 * L)
    for (long n = 0; n < N; n += NR) adjoint<L, NR>(A + k, K, C + n, N, D + n * K + k, K, M);
}
}  // namespace
