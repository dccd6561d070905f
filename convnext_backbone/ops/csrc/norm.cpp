// Layer normalisation over the channels of feature maps, and its gradient.

#include "norm.h"

namespace convnext {
namespace {

Tensor norm(const Tensor& features, const Tensor& weight, const Tensor& bias, double eps,
            bool channels_first) {
  const int64_t height = features.size(1), width = features.size(2);
  const int64_t channels = channels_of(features);
  const int64_t row_size = width * channels;
  const std::vector<int64_t> transposed{features.size(0), channels, height, width};
  const at::IntArrayRef shape = channels_first ? at::IntArrayRef(transposed) : features.sizes();
  Tensor output = at::empty(shape, features.options());
  const float *gamma = floats(weight, channels), *beta = floats(bias, channels);
  with_type(features.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* in = data<T>(features);
    T* out = data<T>(output);
    for_rows(features.size(0) * height, row_size, [&](int64_t begin, int64_t end) {
      Tensor scratch = at::empty({channels_first ? row_size : 0}, features.options());
      for (int64_t row = begin; row < end; ++row) {
        T* line = channels_first ? data<T>(scratch) : out + row * row_size;
        for (int64_t x = 0; x < width; ++x) {
          const T* pixel = in + row * row_size + x * channels;
          normalize(pixel, statistics(pixel, channels, eps), gamma, beta, channels,
                    line + x * channels);
        }
        if (!channels_first) continue;
        const int64_t sample = row / height, y = row % height;
        for (int64_t c = 0; c < channels; ++c) {
          T* to = out + ((sample * channels + c) * height + y) * width;
          for (int64_t x = 0; x < width; ++x) to[x] = line[x * channels + c];
        }
      }
    });
  });
  return output;
}

Tensor norm_backward_(Tensor& features, const Tensor& grad, const Tensor& norm_weight, double eps) {
  const int64_t channels = channels_of(features), rows = features.numel() / channels;
  const float* gamma = floats(norm_weight, channels);
  float* maps = data<float>(features);
  Tensor sums;
  with_type(grad.scalar_type(), [&](auto type) {
    const auto* grads = data<decltype(type)>(grad);
    sums = sum_rows(rows, 1, channels, 3 * channels, [&](int64_t begin, int64_t end, float* sum) {
      for (int64_t row = begin; row < end; ++row) {
        float* pixel = maps + row * channels;
        const auto* g = grads + row * channels;
        const Statistics s = statistics(pixel, channels, eps);
        Total inner_sum, product_sum;
        for_channels(channels, [&](int64_t c, auto lanes) {
          using L = decltype(lanes);
          const auto normed = (load<L>(pixel + c) - s.mean) * s.scale;
          const auto outer = load<L>(g + c), inner = outer * load<L>(gamma + c);
          inner_sum.add(inner);
          product_sum.add(inner * normed);
          add<L>(sum + c, outer * normed);
          add<L>(sum + channels + c, outer);
        });
        const float mean_inner = inner_sum.value() / channels;
        const float mean_product = product_sum.value() / channels;
        for_channels(channels, [&](int64_t c, auto lanes) {
          using L = decltype(lanes);
          const auto normed = (load<L>(pixel + c) - s.mean) * s.scale;
          const auto inner = load<L>(g + c) * load<L>(gamma + c);
          const auto result = (inner - mean_inner - normed * mean_product) * s.scale;
          store<L>(pixel + c, result);
          add<L>(sum + 2 * channels + c, result);
        });
      }
    });
  });
  return sums.view({3, channels});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(convnext_backbone, library) {
  library.def(
      "norm(Tensor features, Tensor weight, Tensor bias, float eps, bool channels_first) "
      "-> Tensor");
  library.def(
      "norm_backward_(Tensor(a!) features, Tensor grad, Tensor norm_weight, float eps) -> Tensor");
}

TORCH_LIBRARY_IMPL(convnext_backbone, CPU, library) {
  library.impl("norm", &norm);
  library.impl("norm_backward_", &norm_backward_);
}

}  // namespace convnext
