// The gradient of layer normalisation.

#include "norm.h"

namespace convnext {
namespace {

Tensor norm_backward_(Tensor& map, const Tensor& grad, const Tensor& norm_weight, double eps) {
  const int64_t channels = map.size(-1), rows = map.numel() / channels;
  const float* gamma = data<float>(norm_weight);
  float* maps = data<float>(map);
  Tensor sums;
  with_type(grad.scalar_type(), [&](auto type) {
    const auto* grads = data<decltype(type)>(grad);
    sums = sum_rows(rows, channels, 3 * channels, [&](int64_t begin, int64_t end, float* sum) {
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
  library.def("norm_backward_(Tensor(a!) map, Tensor grad, Tensor norm_weight, float eps) -> Tensor",
              &norm_backward_);
}

}  // namespace convnext
