// 3x3 convolutions that commute with a group, float32, channels last: a sum over maps of an image of its product with a
// matrix each. The maps of a tile of pixels stay in the cache.
//
// Regular features: the values around a pixel, turned along with the group index, are 9 copies of the regular
// representation. `to` takes each into components that the group mixes only within blocks, so a layer of D4 takes 12 * 9
// products a pair of fields instead of 64 * 9: one matrix product a block. Scalar features with tied kernels: one
// component, and a map for each value of the kernel, the sum of the pixels that share it.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <omp.h>

namespace {
// f(begin, end, thread) on equal parts of 0 .. count, one a thread
template <class F> void parallel(long count, int threads, F f) {
#pragma omp parallel num_threads(threads)
  {
    long t = omp_get_thread_num(), all = omp_get_num_threads();
    f(count * t / all, count * (t + 1) / all, t);
  }
}

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

struct Block { int first, rows, cols; };  // components first .. first + rows * cols, [rows][cols]

// to: components of the values over the group (unnormalised); from: its adjoint.
struct D4 {
  static constexpr int n = 8, bits = 3, blocks = 5;
  static constexpr Block block[] = {{0, 1, 1}, {1, 1, 1}, {2, 1, 1}, {3, 1, 1}, {4, 2, 2}};
  template <class V> static inline void to(V* a) {
    V s0 = a[0] + a[2], d0 = a[0] - a[2], s1 = a[1] + a[3], d1 = a[1] - a[3];
    V t0 = a[4] + a[6], e0 = a[4] - a[6], t1 = a[5] + a[7], e1 = a[5] - a[7];
    V p = s0 + s1, q = t0 + t1, r = s0 - s1, s = t0 - t1;
    a[0] = p + q; a[1] = p - q; a[2] = r + s; a[3] = r - s;
    a[4] = d0 - e0; a[5] = d1 + e1; a[6] = e1 - d1; a[7] = d0 + e0;
  }
  template <class V> static inline void from(V* a) {
    V p = a[0] + a[1], q = a[0] - a[1], r = a[2] + a[3], s = a[2] - a[3];
    V s0 = p + r, s1 = p - r, t0 = q + s, t1 = q - s;
    V d0 = a[4] + a[7], e0 = a[7] - a[4], d1 = a[5] - a[6], e1 = a[5] + a[6];
    a[0] = s0 + d0; a[2] = s0 - d0; a[1] = s1 + d1; a[3] = s1 - d1;
    a[4] = t0 + e0; a[6] = t0 - e0; a[5] = t1 + e1; a[7] = t1 - e1;
  }
};
struct Scalar {
  static constexpr int n = 1, bits = 0, blocks = 1;
  static constexpr Block block[] = {{0, 1, 1}};
  template <class V> static inline void to(V*) {}
  template <class V> static inline void from(V*) {}
};
struct C4 {
  static constexpr int n = 4, bits = 2, blocks = 3;
  static constexpr Block block[] = {{0, 1, 1}, {1, 1, 1}, {2, 1, 2}};
  template <class V> static inline void to(V* a) {
    V s0 = a[0] + a[2], d0 = a[0] - a[2], s1 = a[1] + a[3], d1 = a[1] - a[3];
    a[0] = s0 + s1; a[1] = s0 - s1; a[2] = d0; a[3] = d1;
  }
  template <class V> static inline void from(V* a) {
    V s0 = a[0] + a[1], s1 = a[0] - a[1], d0 = a[2], d1 = a[3];
    a[0] = s0 + d0; a[2] = s0 - d0; a[1] = s1 + d1; a[3] = s1 - d1;
  }
};
struct D2 {
  static constexpr int n = 4, bits = 2, blocks = 4;
  static constexpr Block block[] = {{0, 1, 1}, {1, 1, 1}, {2, 1, 1}, {3, 1, 1}};
  template <class V> static inline void to(V* a) {
    V s0 = a[0] + a[1], d0 = a[0] - a[1], s1 = a[2] + a[3], d1 = a[2] - a[3];
    a[0] = s0 + s1; a[1] = s0 - s1; a[2] = d0 + d1; a[3] = d0 - d1;
  }
  template <class V> static inline void from(V* a) {
    V s0 = a[0] + a[1], s1 = a[0] - a[1], d0 = a[2] + a[3], d1 = a[2] - a[3];
    a[0] = s0 + d0; a[1] = s0 - d0; a[2] = s1 + d1; a[3] = s1 - d1;
  }
};
struct Z2 {
  static constexpr int n = 2, bits = 1, blocks = 2;
  static constexpr Block block[] = {{0, 1, 1}, {1, 1, 1}};
  template <class V> static inline void to(V* a) { V s = a[0] + a[1], d = a[0] - a[1]; a[0] = s; a[1] = d; }
  template <class V> static inline void from(V* a) { to(a); }
};

// L fields x n values (n vectors) to n vectors of L fields and back: bit s of the vector's number and of the lane
// change places.
template <int s, int L> inline void swap_bit(vec<L>& a, vec<L>& b) {
  typename Lanes<L>::index x, y;
  for (int e = 0; e < L; e++) {
    x[e] = (e >> s & 1) ? L + (e ^ (1 << s)) : e;
    y[e] = (e >> s & 1) ? L + e : e | (1 << s);
  }
  vec<L> p = __builtin_shuffle(a, b, x), q = __builtin_shuffle(a, b, y);
  a = p; b = q;
}
template <class G, int L> inline void transpose(vec<L>* v) {
  if constexpr (G::bits > 0)
    for (int j = 0; j < G::n; j += 2) swap_bit<0, L>(v[j], v[j + 1]);
  if constexpr (G::bits > 1)
    for (int j = 0; j < G::n; j++) if (!(j & 2)) swap_bit<1, L>(v[j], v[j + 2]);
  if constexpr (G::bits > 2)
    for (int j = 0; j < G::n; j++) if (!(j & 4)) swap_bit<2, L>(v[j], v[j + 4]);
}

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

// y = sum of maps(x) times kernel; with other given, also gradient[thread] = maps(x)^T other: [N][K] a block.
template <class G, int L>
void convolve(const float* x, const float* kernel, float* y, const float* other, float* gradient, long gradient_size,
              const int* neighbour, const int* first, long T, const float* bias, long batch, long H, long W, long I, long O, long tile, long R,
              int threads) {
  constexpr int n = G::n;
  long bands = H / R, W2 = W + 2, pixels = R * W;
  parallel(batch * bands, threads, [&](long begin, long end, int thread) {
    auto buffer = [](long size) { return std::unique_ptr<float, decltype(&free)>(
        (float*)aligned_alloc(64, (size * 4 + 63) / 64 * 64), free); };
    auto padded_ = buffer((R + 2) * W2 * n * I), maps_ = buffer(tile * T * n * I), out_ = buffer(tile * n * O);
    auto hat_ = buffer(other ? tile * n * O : 16);
    float *padded = padded_.get(), *maps = maps_.get(), *out = out_.get(), *hat = hat_.get();
    float* grad = other ? gradient + thread * gradient_size : nullptr;
    long shift[9][n];
    for (int s = 0; s < first[T]; s++)
      for (int h = 0; h < n; h++) {
        int q = neighbour[s * n + h];
        shift[s][h] = ((q / 3) * W2 + q % 3) * n * I + h * I;
      }
    for (long unit = begin; unit < end; unit++) {
      long image = unit / bands, row0 = unit % bands * R;
      for (long r = 0; r < R + 2; r++) {
        float* line = padded + r * W2 * n * I;
        long row = row0 + r - 1;
        if (row < 0 || row >= H) { std::fill(line, line + W2 * n * I, 0.f); continue; }
        std::fill(line, line + n * I, 0.f);
        std::fill(line + (W + 1) * n * I, line + W2 * n * I, 0.f);
        const float* from = x + (image * H + row) * W * n * I;
        for (long c = 0; c < W; c++)
          for (long i = 0; i < I; i += L) {
            vec<L> v[n];
            for (int j = 0; j < n; j++) v[j] = load<L>(from + c * n * I + i * n + L * j);
            transpose<G, L>(v);
            for (int j = 0; j < n; j++) store(line + (c + 1) * n * I + j * I + i, v[j]);
          }
      }
      for (long p0 = 0; p0 < pixels; p0 += tile) {
        long M = std::min(tile, pixels - p0);
        for (long p = 0; p < M; p++) {
          const float* at = padded + ((p0 + p) / W * W2 + (p0 + p) % W) * n * I;
          for (int t = 0; t < T; t++)
            for (long i = 0; i < I; i += L) {
              vec<L> v[n];
#pragma GCC unroll 8
              for (int h = 0; h < n; h++) v[h] = load<L>(at + shift[first[t]][h] + i);
              for (int s = first[t] + 1; s < first[t + 1]; s++)
                for (int h = 0; h < n; h++) v[h] += load<L>(at + shift[s][h] + i);
              G::to(v);
#pragma GCC unroll 5
              for (int b = 0; b < G::blocks; b++) {
                constexpr auto& block = G::block;
                int rows = block[b].rows, cols = block[b].cols;
                float* to = maps + block[b].first * T * M * I;
#pragma GCC unroll 2
                for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                  for (int c = 0; c < cols; c++)
                    store(to + (p * rows + r) * T * cols * I + (t * cols + c) * I + i, v[block[b].first + r * cols + c]);
              }
            }
        }
        const float* B = kernel;
        for (auto& b : G::block) {
          products<L>(maps + b.first * T * M * I, B, out + b.first * M * O, M * b.rows, T * b.cols * I, b.cols * O);
          B += T * b.cols * I * b.cols * O;
        }
        long pixel0 = image * H * W + row0 * W + p0;
        for (long p = 0; p < M; p++)
          for (long o = 0; o < O; o += L) {
            vec<L> v[n];
#pragma GCC unroll 5
            for (int b = 0; b < G::blocks; b++) {
              constexpr auto& block = G::block;
              int rows = block[b].rows, cols = block[b].cols;
#pragma GCC unroll 2
              for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (int c = 0; c < cols; c++)
                  v[block[b].first + r * cols + c] =
                      load<L>(out + block[b].first * M * O + (p * rows + r) * cols * O + c * O + o);
            }
            if (bias) v[0] += load<L>(bias + o);
            G::from(v);
            transpose<G, L>(v);
#pragma GCC unroll 8
            for (int j = 0; j < n; j++) store(y + (pixel0 + p) * n * O + o * n + L * j, v[j]);
          }
        if (!other) continue;
        for (long p = 0; p < M; p++)
          for (long o = 0; o < O; o += L) {
            vec<L> v[n];
#pragma GCC unroll 8
            for (int j = 0; j < n; j++) v[j] = load<L>(other + (pixel0 + p) * n * O + o * n + L * j);
            transpose<G, L>(v);
            G::to(v);
#pragma GCC unroll 5
            for (int b = 0; b < G::blocks; b++) {
              constexpr auto& block = G::block;
              int rows = block[b].rows, cols = block[b].cols;
#pragma GCC unroll 2
              for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (int c = 0; c < cols; c++)
                  store(hat + block[b].first * M * O + (p * rows + r) * cols * O + c * O + o,
                        v[block[b].first + r * cols + c]);
            }
          }
        float* D = grad;
        for (auto& b : G::block) {
          adjoints<L>(maps + b.first * T * M * I, hat + b.first * M * O, D, M * b.rows, T * b.cols * I, b.cols * O);
          D += T * b.cols * I * b.cols * O;
        }
      }
    }
  });
}


template <class G, int L> inline long field(long lane) { return lane / L * L + lane % G::n * (L / G::n) + lane % L / G::n; }
template <class G> constexpr float scale(Block b) { return b.rows == b.cols ? float(b.cols) / G::n : 2.f / G::n; }

// The kernel in the basis, from w[field out * so + field in * si + entry]: blocks of [T cols I] x [cols O], in panels.
template <class G, int L> void prepare(const float* w, long so, long si, const int* index, float* kernel, long T, long I, long O,
                                          int threads) {
  constexpr int n = G::n;
  parallel(I, threads, [&](long begin, long end, int) {
    float values[9 * n][L] __attribute__((aligned(64)));
    for (long i = begin; i < end; i++)
      for (long o = 0; o < O; o += L) {
        for (int l = 0; l < L; l++) {
          const float* from = w + field<G, L>(o + l) * so + field<G, L>(i) * si;
          for (int e = 0; e < T * n; e++) values[e][l] = from[e];
        }
        for (int t = 0; t < T; t++) {
          vec<L> v[n];
          for (int k = 0; k < n; k++) v[k] = load<L>(values[index[t * n + k]]);
          G::to(v);
          float* B = kernel;
          for (auto& b : G::block) {
            long K = T * b.cols * I, N = b.cols * O, width = panel<L>(N);
            for (int c = 0; c < b.cols; c++)
              for (int d = 0; d < b.cols; d++) {
                vec<L> value = b.rows == b.cols ? v[b.first + d * b.cols + c]
                                             : (d == c ? v[b.first] : d < c ? v[b.first + 1] : -v[b.first + 1]);
                long at = d * O + o;
                store(B + at / width * K * width + ((t * b.cols + c) * I + i) * width + at % width, value * scale<G>(b));
              }
            B += K * N;
          }
        }
      }
  });
}
// The adjoint, from gradients [N][K] a block, summed over `copies`.
template <class G, int L> void restore(const float* gradient, long size, long copies, float* w, long so, long si,
                                const int* index, long T, long I, long O, int threads) {
  constexpr int n = G::n;
  parallel(O, threads, [&](long begin, long end, int) {
    float values[9 * n][L] __attribute__((aligned(64)));
    for (long o = begin; o < end; o++)
      for (long i = 0; i < I; i += L) {
        for (int t = 0; t < T; t++) {
          vec<L> v[n] = {};
          for (long j = 0; j < copies; j++) {
            const float* D = gradient + j * size;
            for (auto& b : G::block) {
              long K = T * b.cols * I;
              for (int c = 0; c < b.cols; c++)
                for (int d = 0; d < b.cols; d++) {
                  vec<L> value = scale<G>(b) * load<L>(D + (d * O + o) * K + (t * b.cols + c) * I + i);
                  if (b.rows == b.cols) v[b.first + d * b.cols + c] += value;
                  else if (d > c) v[b.first + 1] -= value;
                  else v[b.first + (d < c)] += value;
                }
              D += K * b.cols * O;
            }
          }
          G::from(v);
          for (int k = 0; k < n; k++) store(values[index[t * n + k]], v[k]);
        }
        for (int l = 0; l < L; l++) {
          float* to = w + field<G, L>(o) * so + field<G, L>(i + l) * si;
          for (int e = 0; e < T * n; e++) to[e] = values[e][l];
        }
      }
  });
}

struct Layer {  // tensors and sizes of a call; float32, images channels last, 0 where not given
  const float *x, *w, *bias;  // w: the kernel is made from it; bias by field
  const float* other;         // the input, where x is the gradient at the output
  float *y, *dw;              // y 0: the kernel alone; dw: the weight's gradient, where other is given
  float *kernel, *gradient;   // `room` floats, and as many a thread, of 0
  const int *neighbour, *first, *index;  // map t adds up the neighbours [first[t], first[t + 1]) of a field's channels
  long T, B, I, H, W, O, so, si, tile, rows, room, threads;  // maps; I, O: fields of x and y; so, si: their strides in w
};

template <class G, int L> void run(const Layer& a) {
  if (a.w) prepare<G, L>(a.w, a.so, a.si, a.index, a.kernel, a.T, a.I, a.O, a.threads);
  if (!a.y) return;
  std::unique_ptr<float[]> shift(a.bias ? new float[a.O] : nullptr);  // the bias in the order of the lanes
  for (long o = 0; a.bias && o < a.O; o++) shift[o] = a.bias[field<G, L>(o)];
  convolve<G, L>(a.x, a.kernel, a.y, a.other, a.gradient, a.room, a.neighbour, a.first, a.T, shift.get(), a.B, a.H, a.W, a.I, a.O, a.tile,
                 a.rows, a.threads);
  if (a.other) restore<G, L>(a.gradient, a.room, a.threads, a.dw, a.so, a.si, a.index, a.T, a.I, a.O, a.threads);
}
template <class G> void run(const Layer& a) {
  (a.I % widest == 0 && a.O % widest == 0 ? run<G, widest> : run<G, 8>)(a);
}
}  // namespace

// y = the convolution of x by the weight; with other given, x is the gradient at the output, and y that of the input.
extern "C" {
void tied(const Layer* a) { run<Scalar>(*a); }
void regular_D4(const Layer* a) { run<D4>(*a); }
void regular_C4(const Layer* a) { run<C4>(*a); }
void regular_D2(const Layer* a) { run<D2>(*a); }
void regular_Z2(const Layer* a) { run<Z2>(*a); }
}
