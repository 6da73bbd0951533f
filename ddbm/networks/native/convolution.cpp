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

#include "products.h"

namespace {
// f(begin, end, thread) on equal parts of 0 .. count, one a thread
template <class F> void parallel(long count, int threads, F f) {
#pragma omp parallel num_threads(threads)
  {
    long t = omp_get_thread_num(), all = omp_get_num_threads();
    f(count * t / all, count * (t + 1) / all, t);
  }
}

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

struct Layer {  // tensors and sizes of a call; float32, images channels last, 0 where not given
  const float *x, *w, *bias;  // w: the kernel is made from it; bias by field
  const float* other;         // the input, where x is the gradient at the output
  float *y, *dw;              // y 0: the kernel alone; dw: the weight's gradient, where other is given
  float *kernel, *gradient;   // `room` floats, and `copies` times as many, of 0
  const int *neighbour, *first, *entry;  // map t adds up the neighbours [first[t], first[t + 1]) of a field's channels
  long T, B, I, H, W, O, so, si, tile, rows, stack, room, threads, copies;  // maps; I, O: fields of x and y; so, si: their strides in w
};

// y = sum of maps(x) times kernel; with other given, also gradient[thread] = maps(x)^T other: [N][K] a block.
// f(first component of the block, its rows and cols, row, col) for every component
template <class G, class F> __attribute__((always_inline)) inline void components(F f) {
#pragma GCC unroll 5
  for (int b = 0; b < G::blocks; b++) {
    constexpr auto& block = G::block;
#pragma GCC unroll 2
    for (int r = 0; r < block[b].rows; r++)
#pragma GCC unroll 2
      for (int c = 0; c < block[b].cols; c++) f(block[b].first, block[b].rows, block[b].cols, r, c);
  }
}

template <class G, int L> void convolve(const Layer& a, const float* bias) {
  constexpr int n = G::n;
  const float *x = a.x, *other = a.other;
  const int* first = a.first;
  long T = a.T, H = a.H, W = a.W, I = a.I, O = a.O, R = a.rows, tile = a.tile;
  long bands = H / R, W2 = W + 2, whole = (R + 2) * W2 * n * I;  // a unit of work is a band, or `stack` images of one
  parallel((a.B + a.stack - 1) / a.stack * bands, a.copies, [&](long begin, long end, int thread) {
    auto buffer = [](long size) { return std::unique_ptr<float, decltype(&free)>(
        (float*)aligned_alloc(64, (size * 4 + 63) / 64 * 64), free); };
    auto padded_ = buffer(a.stack * whole), maps_ = buffer(tile * T * n * I), out_ = buffer(tile * n * O);
    auto hat_ = buffer(other ? tile * n * O : 16);
    float *padded = padded_.get(), *maps = maps_.get(), *out = out_.get(), *hat = hat_.get();
    float* grad = other ? a.gradient + thread * a.room : nullptr;
    long shift[9][n];
    for (int s = 0; s < first[T]; s++)
      for (int h = 0; h < n; h++) {
        int q = a.neighbour[s * n + h];
        shift[s][h] = ((q / 3) * W2 + q % 3) * n * I + h * I;
      }
    for (long unit = begin; unit < end; unit++) {
      long image = unit / bands * a.stack, row0 = unit % bands * R, images = std::min(a.stack, a.B - image);
      for (long r = 0; r < images * (R + 2); r++) {
        float* line = padded + r * W2 * n * I;
        long row = row0 + r % (R + 2) - 1;
        if (row < 0 || row >= H) { std::fill(line, line + W2 * n * I, 0.f); continue; }
        std::fill(line, line + n * I, 0.f);
        std::fill(line + (W + 1) * n * I, line + W2 * n * I, 0.f);
        const float* from = x + ((image + r / (R + 2)) * H + row) * W * n * I;
        for (long c = 0; c < W; c++)
          for (long i = 0; i < I; i += L) {
            vec<L> v[n];
            for (int j = 0; j < n; j++) v[j] = load<L>(from + c * n * I + i * n + L * j);
            transpose<G, L>(v);
            for (int j = 0; j < n; j++) store(line + (c + 1) * n * I + j * I + i, v[j]);
          }
      }
      long pixels = images * R * W;
      for (long p0 = 0; p0 < pixels; p0 += tile) {
        long M = std::min(tile, pixels - p0);
        for (long p = 0; p < M; p++) {
          long q = p0 + p, inside = q % (R * W);
          const float* at = padded + q / (R * W) * whole + (inside / W * W2 + inside % W) * n * I;
          for (int t = 0; t < T; t++)
            for (long i = 0; i < I; i += L) {
              vec<L> v[n];
#pragma GCC unroll 8
              for (int h = 0; h < n; h++) v[h] = load<L>(at + shift[first[t]][h] + i);
              for (int s = first[t] + 1; s < first[t + 1]; s++)
                for (int h = 0; h < n; h++) v[h] += load<L>(at + shift[s][h] + i);
              G::to(v);
              components<G>([&](long at, int rows, int cols, int r, int c) {
                store(maps + at * T * M * I + (p * rows + r) * T * cols * I + (t * cols + c) * I + i,
                      v[at + r * cols + c]);
              });
            }
        }
        const float* B = a.kernel;
        for (auto& b : G::block) {
          products<L>(maps + b.first * T * M * I, B, out + b.first * M * O, M * b.rows, T * b.cols * I, b.cols * O);
          B += T * b.cols * I * b.cols * O;
        }
        long pixel0 = image * H * W + row0 * W + p0;
        for (long p = 0; p < M; p++)
          for (long o = 0; o < O; o += L) {
            vec<L> v[n];
            components<G>([&](long at, int rows, int cols, int r, int c) {
              v[at + r * cols + c] = load<L>(out + at * M * O + (p * rows + r) * cols * O + c * O + o);
            });
            if (bias) v[0] += load<L>(bias + o);
            G::from(v);
            transpose<G, L>(v);
#pragma GCC unroll 8
            for (int j = 0; j < n; j++) store(a.y + (pixel0 + p) * n * O + o * n + L * j, v[j]);
          }
        if (!other) continue;
        for (long p = 0; p < M; p++)
          for (long o = 0; o < O; o += L) {
            vec<L> v[n];
#pragma GCC unroll 8
            for (int j = 0; j < n; j++) v[j] = load<L>(other + (pixel0 + p) * n * O + o * n + L * j);
            transpose<G, L>(v);
            G::to(v);
            components<G>([&](long at, int rows, int cols, int r, int c) {
              store(hat + at * M * O + (p * rows + r) * cols * O + c * O + o, v[at + r * cols + c]);
            });
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

struct Pairs {  // the weight of a pair of fields: w[field out * so + field in * si + entry]; map t takes the mean of entries
  long so, si;
  const int *entry, *first;
  long T, I, O;
};

// The kernel in the basis: blocks of [T cols I] x [cols O], in panels.
template <class G, int L> void prepare(const Pairs& a, const float* w, float* kernel, int threads) {
  constexpr int n = G::n;
  long entries = a.first[a.T] * n;
  auto pair = [&](long i, long o) {
    float values[9 * n][L] __attribute__((aligned(64)));
    for (int l = 0; l < L; l++) {
      const float* from = w + field<G, L>(o + l) * a.so + field<G, L>(i) * a.si;
      for (int e = 0; e < entries; e++) values[e][l] = from[e];
    }
    for (int t = 0; t < a.T; t++) {
      vec<L> v[n] = {};
      float share = 1.f / (a.first[t + 1] - a.first[t]);
      for (int s = a.first[t]; s < a.first[t + 1]; s++)
        for (int k = 0; k < n; k++) v[k] += share * load<L>(values[a.entry[s * n + k]]);
      G::to(v);
      float* B = kernel;
      for (auto& b : G::block) {
        long K = a.T * b.cols * a.I, N = b.cols * a.O, width = panel<L>(N);
        for (int c = 0; c < b.cols; c++)
          for (int d = 0; d < b.cols; d++) {
            vec<L> value = b.rows == b.cols ? v[b.first + d * b.cols + c]
                                            : (d == c ? v[b.first] : d < c ? v[b.first + 1] : -v[b.first + 1]);
            long at = d * a.O + o;
            store(B + at / width * K * width + ((t * b.cols + c) * a.I + i) * width + at % width, value * scale<G>(b));
          }
        B += K * N;
      }
    }
  };
  if (a.so > a.si)  // along the weight in memory
    parallel(a.O / L, threads, [&](long begin, long end, int) {
      for (long o = begin * L; o < end * L; o += L)
        for (long i = 0; i < a.I; i++) pair(i, o);
    });
  else
    parallel(a.I, threads, [&](long begin, long end, int) {
      for (long i = begin; i < end; i++)
        for (long o = 0; o < a.O; o += L) pair(i, o);
    });
}

// The adjoint, from gradients [N][K] a block, summed over `copies` of `size`.
template <class G, int L>
void restore(const Pairs& a, const float* gradient, long size, long copies, float* w, int threads) {
  constexpr int n = G::n;
  long entries = a.first[a.T] * n;
  auto pair = [&](long i, long o) {
    float values[9 * n][L] __attribute__((aligned(64)));
    for (int t = 0; t < a.T; t++) {
      vec<L> v[n] = {};
      for (long j = 0; j < copies; j++) {
        const float* D = gradient + j * size;
        for (auto& b : G::block) {
          long K = a.T * b.cols * a.I;
          for (int c = 0; c < b.cols; c++)
            for (int d = 0; d < b.cols; d++) {
              vec<L> value = scale<G>(b) * load<L>(D + (d * a.O + o) * K + (t * b.cols + c) * a.I + i);
              if (b.rows == b.cols) v[b.first + d * b.cols + c] += value;
              else if (d > c) v[b.first + 1] -= value;
              else v[b.first + (d < c)] += value;
            }
          D += K * b.cols * a.O;
        }
      }
      G::from(v);
      float share = 1.f / (a.first[t + 1] - a.first[t]);
      for (int s = a.first[t]; s < a.first[t + 1]; s++)
        for (int k = 0; k < n; k++) store(values[a.entry[s * n + k]], share * v[k]);
    }
    for (int l = 0; l < L; l++) {
      float* to = w + field<G, L>(o) * a.so + field<G, L>(i + l) * a.si;
      for (int e = 0; e < entries; e++) to[e] = values[e][l];
    }
  };
  parallel(a.I / L, threads, [&](long begin, long end, int) {
    for (long i = begin * L; i < end * L; i += L)
      for (long o = 0; o < a.O; o++) pair(i, o);
  });
}

template <class G, int L> void run(const Layer& a) {
  Pairs pairs{a.so, a.si, a.entry, a.first, a.T, a.I, a.O};
  if (a.w) prepare<G, L>(pairs, a.w, a.kernel, a.threads);
  if (!a.y) return;
  std::unique_ptr<float[]> shift(a.bias ? new float[a.O] : nullptr);  // the bias in the order of the lanes
  for (long o = 0; a.bias && o < a.O; o++) shift[o] = a.bias[field<G, L>(o)];
  convolve<G, L>(a, shift.get());
  if (a.other) restore<G, L>(pairs, a.gradient, a.room, a.copies, a.dw, a.threads);
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
