// Group norm, scale and shift, SiLU and dropout in one, forward and backward; features [B, N pixels, C], float32:
//
//     y = kept * silu(z),   z = xhat * gain + bias,   xhat = (x - mean) * rstd
//
// gain and bias are [B, C]; mean and rstd of an image and a group of neighbouring channels; kept is `scale` where bits
// reach the threshold, else 0. The backward pass computes z again from x.
// An image is cut into blocks of pixels, the same for any number of threads. A block is summed in float, blocks are
// added in order and in double, so the number of threads does not change the results. Inner loops run over channels,
// for the compiler to vectorise. Compile without -ffast-math: NaN must stay NaN, and `sigmoid` rounds by adding.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

using Index = int64_t;

struct Call {  // as in norm.py
    Index B, N, C, groups;
    int32_t threads, silu, threshold;
    float scale, eps;
    const int16_t* bits;  // none: no dropout
    const float *x, *gain, *bias;
    float *stats, *y;  // stats [B, 3, C]: mean, rstd, and the xhat of the mean as float32, which rounds
    const float* dy;
    float *dx, *dgain, *dbias;

    Index size() const { return std::max<Index>(16, 4096 / C); }  // pixels of a block
    Index blocks() const { return (N + size() - 1) / size(); }
    void average(std::vector<double>& sums) const {  // of channels; each becomes the mean over its group
        const Index width = C / groups;
        for (auto v = sums.begin(); v < sums.end(); v += width)
            std::fill_n(v, width, std::accumulate(v, v + width, 0.0) / (static_cast<double>(N) * width));
    }
};

// 1 / (1 + exp(-z)) for z no further from 0 than 80, beyond which products would be denormal and slow; relative error
// 3e-7. exp(-z) = 2^k exp(r), |r| <= log(2) / 2. Of NaN it is any number: the callers multiply by z.
static inline float sigmoid(float z) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: floats of this size are whole numbers, the last bits hold k
    z = std::max(-80.0f, std::min(80.0f, -z));
    const float shifted = z * 1.44269504f + magic, k = shifted - magic;
    const float r = z - k * 0.693359375f + k * 2.12194440e-4f;
    float e = 1.0f + r * (1.0f + r * (0.49999228f + r * (0.16667116f + r * (0.04189055f + r * 0.00831248f))));
    uint32_t bits, power;
    std::memcpy(&bits, &e, 4);
    std::memcpy(&power, &shifted, 4);
    bits += power << 23;
    std::memcpy(&e, &bits, 4);
    return 1.0f / (1.0f + e);
}

// What is done to a block of n pixels, the first of which is `pixel` of all images; `sums` [2, C] begin as zeros.

// Sums of d and d^2, d = x - (the first pixel): differences cancel less, however large the mean.
static void sum_block(const Call& a, Index, Index pixel, Index n, float* __restrict sums, const float*) {
    const Index C = a.C;
    const float *__restrict x = a.x + pixel * C, *first = x;
    const auto add = [&](Index pixels) {
#pragma omp simd
        for (Index c = 0; c < C; c++) {
            float sum = 0.0f, square = 0.0f;
            for (Index p = 0; p < pixels; p++) {
                const float d = x[p * C + c] - first[c];
                sum += d;
                square += d * d;
            }
            sums[c] += sum;
            sums[C + c] += square;
        }
        x += pixels * C;
    };
    for (; n >= 4; n -= 4) add(4);  // four at a time: sums are loaded and stored less often
    for (; n > 0; n--) add(1);
}

// Forward: y. Backward: dz in the place of dx, and the sums of dz and dz * xhat.
template <bool silu, bool drop, bool back>
static void map_block(const Call& a, Index b, Index pixel, Index n, float* __restrict sums, const float*) {
    const Index C = a.C, at = pixel * C;
    const int16_t* __restrict bits = drop ? a.bits + at : nullptr;
    const float *__restrict x = a.x + at, *__restrict dy = back ? a.dy + at : x;
    const float *__restrict gain = a.gain + b * C, *__restrict bias = a.bias + b * C;
    const float* __restrict stats = a.stats + b * 3 * C;
    float* __restrict out = (back ? a.dx : a.y) + at;
    const int threshold = a.threshold;
    const float scale = a.scale;
    for (; n > 0; n--, x += C, dy += C, out += C, bits += drop ? C : 0)
#pragma omp simd
        for (Index c = 0; c < C; c++) {
            const float xhat = (x[c] - stats[c]) * stats[C + c] + stats[2 * C + c];
            const float z = xhat * gain[c] + bias[c], s = silu ? sigmoid(z) : 1.0f;
            const float kept = drop ? bits[c] >= threshold ? scale : 0.0f : 1.0f;
            if (back) {
                const float dz = dy[c] * kept * s * (1.0f + z * (1.0f - s));  // without SiLU s is 1
                out[c] = dz;
                sums[c] += dz;
                sums[C + c] += dz * xhat;
            } else {
                out[c] = z * s * kept;
            }
        }
}

// dx = dz * line[0] + (x - mean) * line[1] + line[2], in the place of dz.
static void finish_block(const Call& a, Index b, Index pixel, Index n, float*, const float* __restrict line) {
    const Index C = a.C;
    const float *__restrict x = a.x + pixel * C, *__restrict mean = a.stats + b * 3 * C;
    float* __restrict dx = a.dx + pixel * C;
    for (; n > 0; n--, x += C, dx += C)
#pragma omp simd
        for (Index c = 0; c < C; c++) dx[c] = dx[c] * line[c] + (x[c] - mean[c]) * line[C + c] + line[2 * C + c];
}

// What is done to an image between its blocks, from the sums of the blocks.

static void statistics(const Call& a, Index b, const float* sums, float*) {
    const Index C = a.C, size = a.size();
    std::vector<double> mean(C), square(C);
    for (int pass = 0; pass < 2; pass++) {  // the mean, then the mean of squares of differences from it
        for (Index i = 0; i < a.blocks(); i++) {
            const float *first = a.x + (b * a.N + i * size) * C, *sum = sums + i * 2 * C;
            const double n = std::min(size, a.N - i * size);
            for (Index c = 0; c < C; c++) {
                const double d = first[c] - mean[c];
                (pass ? square : mean)[c] += pass ? sum[C + c] + d * (2.0 * sum[c] + n * d) : sum[c] + n * first[c];
            }
        }
        a.average(pass ? square : mean);
    }
    float* stats = a.stats + b * 3 * C;
    for (Index c = 0; c < C; c++) {
        const double rstd = 1.0 / std::sqrt(std::max(square[c], 0.0) + a.eps);  // max of NaN and 0 is its first
        stats[c] = mean[c];
        stats[C + c] = rstd;
        stats[2 * C + c] = (stats[c] - mean[c]) * rstd;
    }
}

// dgain and dbias, and the lines of dx = rstd * (gain * dz - mean(gain * dz) - xhat * mean(gain * dz * xhat)).
static void gradients(const Call& a, Index b, const float* sums, float* line) {
    const Index C = a.C;
    std::vector<double> sum(C), product(C);
    for (Index i = 0; i < a.blocks(); i++, sums += 2 * C)
        for (Index c = 0; c < C; c++) sum[c] += sums[c], product[c] += sums[C + c];
    const float *gain = a.gain + b * C, *rstd = a.stats + (b * 3 + 1) * C, *rest = rstd + C;
    for (Index c = 0; c < C; c++) {
        a.dbias[b * C + c] = sum[c], a.dgain[b * C + c] = product[c];
        sum[c] *= gain[c], product[c] *= gain[c];
    }
    a.average(sum), a.average(product);
    for (Index c = 0; c < C; c++) {
        line[c] = rstd[c] * gain[c];
        line[C + c] = -rstd[c] * rstd[c] * product[c];
        line[2 * C + c] = -rstd[c] * (sum[c] + rest[c] * product[c]);
    }
}

using Block = void(const Call&, Index b, Index pixel, Index n, float* sums, const float* line);
using Image = void(const Call&, Index b, const float* sums, float* line);

static void run(const Call& a, Index from, Index images, int threads, Block sum, Image image, Block finish) {
    const Index C = a.C, blocks = a.blocks();
    std::vector<float> sums(images * blocks * 2 * C), lines(images * 3 * C);
    const auto each = [&](Block work) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (Index i = 0; i < images * blocks; i++) {
            const Index b = i / blocks, first = i % blocks * a.size(), n = std::min(a.size(), a.N - first);
            work(a, from + b, (from + b) * a.N + first, n, &sums[i * 2 * C], &lines[b * 3 * C]);
        }
    };
    each(sum);
#pragma omp parallel for num_threads(threads) if (threads > 1 && images > 1)
    for (Index b = 0; b < images; b++) image(a, from + b, &sums[b * blocks * 2 * C], &lines[b * 3 * C]);
    each(finish);
}

// Threads take whole images while there are enough, and share the blocks of those that remain.
static void share(const Call& a, Block sum, Image image, Block finish) {
    const Index values = a.B * a.N * a.C;
    if (values == 0) return;
    const int threads = values < 1 << 14 ? 1 : a.threads;
    const Index whole = a.B - a.B % threads;
#pragma omp parallel for num_threads(threads) if (threads > 1 && whole)
    for (Index b = 0; b < whole; b++) run(a, b, 1, 1, sum, image, finish);
    if (whole < a.B) run(a, whole, a.B - whole, threads, sum, image, finish);
}

template <bool back> static Block* map(const Call& a) {
    return a.silu ? a.bits ? map_block<true, true, back> : map_block<true, false, back>
                  : a.bits ? map_block<false, true, back> : map_block<false, false, back>;
}
extern "C" void norm_forward(const Call& a) { share(a, sum_block, statistics, map<false>(a)); }
extern "C" void norm_backward(const Call& a) { share(a, map<true>(a), gradients, finish_block); }
