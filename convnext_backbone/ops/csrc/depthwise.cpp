// The 7x7 depthwise convolution of a block and its gradients.

#include "norm.h"

namespace convnext {
namespace {

constexpr int64_t KERNEL = 7, RADIUS = 3, TAPS = KERNEL * KERNEL;
constexpr int64_t TILE = 8;  // pixels of a row that are computed together in registers

// The sizes of feature maps (N, H, W, C). Around a row, the kernel rows from first_tap to
// last_tap - 1 are inside the feature map.
struct Geometry {
  explicit Geometry(const Tensor& features)
      : rows(features.size(0) * features.size(1)),
        height(features.size(1)),
        width(features.size(2)),
        channels(channels_of(features)) {}

  int64_t first_tap(int64_t row) const { return std::max<int64_t>(0, RADIUS - row % height); }
  int64_t last_tap(int64_t row) const { return std::min(KERNEL, height + RADIUS - row % height); }

  int64_t rows, height, width, channels;
};

// Convolves PIXELS neighbouring pixels of a row, from x on. Their sums stay in registers.
template <typename L, int64_t PIXELS, typename In, typename Begin, typename End>
inline void convolve_tile(const In* features, const float* taps, const Geometry& size, int64_t row,
                          int64_t x, Begin begin, End end) {
  const int64_t width = size.width, channels = size.channels;
  typename L::Floats sums[PIXELS];
#pragma GCC unroll 16
  for (int64_t i = 0; i < PIXELS; ++i) sums[i] = begin(std::min(x + i, width - 1));
  for (int64_t ky = size.first_tap(row); ky < size.last_tap(row); ++ky) {
    const In* line = features + ((row + ky - RADIUS) * width + x - RADIUS) * channels;
    typename L::Floats tap[KERNEL];
#pragma GCC unroll 7
    for (int64_t kx = 0; kx < KERNEL; ++kx)
      tap[kx] = load<L>(taps + (ky * KERNEL + kx) * channels);
#pragma GCC unroll 22
    for (int64_t j = 0; j < PIXELS + KERNEL - 1; ++j) {
      if (x + j < RADIUS || x + j >= width + RADIUS) continue;
      const auto pixel = load<L>(line + j * channels);
#pragma GCC unroll 7
      for (int64_t kx = 0; kx < KERNEL; ++kx)
        if (j >= kx && j < kx + PIXELS) sums[j - kx] += pixel * tap[kx];
    }
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < PIXELS; ++i)
    if (x + i < width) end(x + i, sums[i]);
}

// Convolves one row. The sum for pixel x starts at begin(x); end(x, sum) stores it.
template <typename L, typename In, typename Begin, typename End>
inline void convolve_row(const In* features, const float* taps, const Geometry& size, int64_t row,
                         Begin begin, End end) {
  int64_t x = 0;
#ifdef __AVX512F__
  for (; x + TILE < size.width; x += 2 * TILE)
    convolve_tile<L, 2 * TILE>(features, taps, size, row, x, begin, end);
#endif
  for (; x < size.width; x += TILE)
    convolve_tile<L, TILE>(features, taps, size, row, x, begin, end);
}

// Adds to sums the products of a row of gradients and a row of the feature map, which is shifted by
// -3 to 3 pixels.
template <typename L, typename In>
inline void correlate_row(const In* features, const float* grad, float* sums, int64_t width,
                          int64_t channels) {
  typename L::Floats sum[KERNEL] = {};
  for (int64_t x = 0; x < width; x += TILE) {
    typename L::Floats grads[TILE];
#pragma GCC unroll 8
    for (int64_t i = 0; i < TILE; ++i)
      grads[i] = x + i < width ? load<L>(grad + (x + i) * channels) : typename L::Floats{};
#pragma GCC unroll 14
    for (int64_t j = 0; j < TILE + KERNEL - 1; ++j) {
      if (x + j < RADIUS || x + j >= width + RADIUS) continue;
      const auto pixel = load<L>(features + (x + j - RADIUS) * channels);
#pragma GCC unroll 7
      for (int64_t kx = 0; kx < KERNEL; ++kx)
        if (j >= kx && j < kx + TILE) sum[kx] += pixel * grads[j - kx];
    }
  }
  for (int64_t kx = 0; kx < KERNEL; ++kx) add<L>(sums + kx * channels, sum[kx]);
}

std::tuple<Tensor, Tensor> depthwise_norm(const Tensor& features, const Tensor& taps,
                                          const Tensor& bias, const Tensor& norm_weight, const Tensor& norm_bias,
                                          double eps, at::ScalarType dtype, bool keep) {
  const Geometry size(features);
  const int64_t channels = size.channels, row_size = size.width * channels;
  Tensor normed = at::empty(features.sizes(), features.options().dtype(dtype));
  Tensor convolved = at::empty(keep ? features.sizes() : at::IntArrayRef{0}, at::kFloat);
  const float *taps_ = floats(taps, TAPS * channels), *bias_ = floats(bias, channels);
  const float *gamma = floats(norm_weight, channels), *beta = floats(norm_bias, channels);
  with_type(features.scalar_type(), [&](auto in_type) {
    with_type(dtype, [&](auto out_type) {
      const auto* in = data<decltype(in_type)>(features);
      auto* out = data<decltype(out_type)>(normed);
      for_rows(size.rows, row_size, [&](int64_t begin, int64_t end) {
        Tensor scratch = at::empty({keep ? 0 : row_size}, at::kFloat);
        for (int64_t row = begin; row < end; ++row) {
          float* line = keep ? data<float>(convolved) + row * row_size : data<float>(scratch);
          for_channels(channels, [&](int64_t c, auto lanes) {
            using L = decltype(lanes);
            convolve_row<L>(
                in + c, taps_ + c, size, row, [&](int64_t) { return load<L>(bias_ + c); },
                [&](int64_t x, auto sum) { store<L>(line + x * channels + c, sum); });
          });
          for (int64_t x = 0; x < size.width; ++x) {
            const float* pixel = line + x * channels;
            normalize(pixel, statistics(pixel, channels, eps), gamma, beta, channels,
                      out + row * row_size + x * channels);
          }
        }
      });
    });
  });
  return {normed, convolved};
}

Tensor depthwise_input_grad(const Tensor& grad, const Tensor& taps, const Tensor& grad_output) {
  const Geometry size(grad);
  const Tensor flipped = taps.flip(0);
  const float *in = data<float>(grad), *taps_ = floats(flipped, TAPS * size.channels);
  Tensor grad_input = at::empty_like(grad_output);
  with_type(grad_output.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* residual = data<T>(grad_output);
    T* out = data<T>(grad_input);
    for_rows(size.rows, size.width * size.channels, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for_channels(size.channels, [&](int64_t c, auto lanes) {
          using L = decltype(lanes);
          const auto at = [&](int64_t x) { return (row * size.width + x) * size.channels + c; };
          convolve_row<L>(
              in + c, taps_ + c, size, row, [&](int64_t x) { return load<L>(residual + at(x)); },
              [&](int64_t x, auto sum) { store<L>(out + at(x), sum); });
        });
      }
    });
  });
  return grad_input;
}

Tensor depthwise_weight_grad(const Tensor& features, const Tensor& grad) {
  const Geometry size(features);
  const int64_t channels = size.channels, row_size = size.width * channels;
  const float* grads = data<float>(grad);
  Tensor sums;
  with_type(features.scalar_type(), [&](auto type) {
    const auto* in = data<decltype(type)>(features);
    sums = sum_rows(
        size.rows, size.width, channels, TAPS * channels,
        [&](int64_t begin, int64_t end, float* taps) {
          for (int64_t row = begin; row < end; ++row)
            for_channels(channels, [&](int64_t c, auto lanes) {
              for (int64_t ky = size.first_tap(row); ky < size.last_tap(row); ++ky)
                correlate_row<decltype(lanes)>(
                    in + (row + ky - RADIUS) * row_size + c, grads + row * row_size + c,
                    taps + ky * KERNEL * channels + c, size.width, channels);
            });
        });
  });
  return sums.view({TAPS, channels});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(convnext_backbone, library) {
  library.def(
      "depthwise_norm(Tensor features, Tensor taps, Tensor bias, Tensor norm_weight, "
      "Tensor norm_bias, float eps, ScalarType dtype, bool keep) -> (Tensor, Tensor)");
  library.def("depthwise_input_grad(Tensor grad, Tensor taps, Tensor grad_output) -> Tensor");
  library.def("depthwise_weight_grad(Tensor features, Tensor grad) -> Tensor");
}

TORCH_LIBRARY_IMPL(convnext_backbone, CPU, library) {
  library.impl("depthwise_norm", &depthwise_norm);
  library.impl("depthwise_input_grad", &depthwise_input_grad);
  library.impl("depthwise_weight_grad", &depthwise_weight_grad);
}

}  // namespace convnext
