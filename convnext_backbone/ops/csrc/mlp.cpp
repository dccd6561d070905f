// The operations between the matrix products of the inverted bottleneck, and the end of a block.

#include "lanes.h"

namespace convnext {
namespace {

// exp(x) for x <= 0 as 2**n * exp(f) with |f| <= log(2) / 2; relative error below 3e-7. Below -87,
// where n would be too small for float32, it is 0.
template <typename L>
inline typename L::Floats exp_negative(typename L::Floats power) {
  using Floats = typename L::Floats;
  const Floats x = power < -87.f ? -87.f + Floats{} : power;
  const float magic = 12582912.f;  // 1.5 * 2**23: adding it rounds to an integer
  const Floats shifted = x * 1.44269504f + magic, n = shifted - magic;
  const Floats f = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = f * (1 / 5040.f) + 1 / 720.f;
  p = p * f + 1 / 120.f;
  p = p * f + 1 / 24.f;
  p = p * f + 1 / 6.f;
  p = p * f + 0.5f;
  p = p * f + 1.f;
  p = p * f + 1.f;
  const auto result = (Floats)((typename L::Words)p + ((typename L::Words)shifted << 23));
  return power < -87.f ? Floats{} : result;
}

template <typename L>
struct Normal {
  typename L::Floats cumulative, slope;
};

// The cumulative distribution function of the normal distribution, and x times its density (slope).
// gelu(x) is x * cumulative, its derivative is cumulative + slope. The error function is formula
// 7.1.26 of Abramowitz and Stegun, with an error below 1.5e-7.
template <typename L>
inline Normal<L> normal(typename L::Floats x) {
  const auto z = x < 0.f ? -x : x;
  const auto t = 1.f / (1.f + 0.23164189f * z);
  const auto bell = exp_negative<L>(-0.5f * z * z);
  auto p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const auto tail = 0.5f * p * t * bell;
  return {x < 0.f ? tail : 1.f - tail, x * bell * 0.39894228f};
}

std::tuple<Tensor, Tensor> gelu_backward_(Tensor& grad, const Tensor& inner,
                                          const optional<Tensor>& scale,
                                          const optional<Tensor>& shift) {
  const int64_t channels = channels_of(inner), rows = inner.numel() / channels;
  const int64_t num_samples = scale ? scale->size(0) : 1, sample_rows = rows / num_samples;
  const float* scales = floats(scale, num_samples * channels);
  const float* shifts = floats(shift, num_samples * channels);
  Tensor output = at::empty_like(inner);
  Tensor sums;
  with_type(inner.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* in = data<T>(inner);
    T *out = data<T>(output), *grads = data<T>(grad);
    sums = sum_rows(rows, 1, channels, channels, [&](int64_t begin, int64_t end, float* sum) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t sample = row / sample_rows * channels;
        for_channels(channels, [&](int64_t c, auto lanes) {
          using L = decltype(lanes);
          const int64_t at = row * channels + c;
          const auto x = load<L>(in + at);
          const Normal<L> n = normal<L>(x);
          auto outer = load<L>(grads + at);
          if (scales)
            outer = outer * load<L>(scales + sample + c) +
                    x * n.cumulative * load<L>(shifts + sample + c);
          const auto result = outer * (n.cumulative + n.slope);
          store<L>(out + at, x * n.cumulative);
          store<L>(grads + at, result);
          add<L>(sum + c, result);
        });
      }
    });
  });
  return {output, sums};
}

// Returns the factors of the channels from c on, or ones if there are no factors.
template <typename L>
inline typename L::Floats factor(const float* factors, int64_t c) {
  return factors ? load<L>(factors + c) : 1.f + typename L::Floats{};
}

void add_branch_(Tensor& output, const Tensor& features, const Tensor& branch,
                 const optional<Tensor>& scale, const optional<Tensor>& keep) {
  const int64_t channels = channels_of(features), rows = features.numel() / channels;
  const float *scale_ = floats(scale, channels), *keep_ = floats(keep, rows);
  with_type(output.scalar_type(), [&](auto out_type) {
    with_type(features.scalar_type(), [&](auto features_type) {
      with_type(branch.scalar_type(), [&](auto branch_type) {
        auto* out = data<decltype(out_type)>(output);
        const auto* maps = data<decltype(features_type)>(features);
        const auto* branches = data<decltype(branch_type)>(branch);
        for_rows(rows, channels, [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row)
            for_channels(channels, [&](int64_t c, auto lanes) {
              using L = decltype(lanes);
              const int64_t at = row * channels + c;
              const auto scaled = load<L>(branches + at) * factor<L>(scale_, c);
              store<L>(out + at, load<L>(maps + at) + scaled * (keep_ ? keep_[row] : 1.f));
            });
        });
      });
    });
  });
}

std::tuple<Tensor, Tensor> branch_grad(const Tensor& grad, const optional<Tensor>& keep,
                                       at::ScalarType dtype, const optional<Tensor>& scale) {
  const int64_t channels = channels_of(grad), rows = grad.numel() / channels;
  const float *keep_ = floats(keep, rows), *scale_ = floats(scale, channels);
  Tensor result = at::empty(grad.sizes(), grad.options().dtype(dtype));
  Tensor sums;
  with_type(grad.scalar_type(), [&](auto in_type) {
    with_type(dtype, [&](auto out_type) {
      const auto* in = data<decltype(in_type)>(grad);
      auto* out = data<decltype(out_type)>(result);
      sums = sum_rows(rows, 1, channels, channels, [&](int64_t begin, int64_t end, float* sum) {
        for (int64_t row = begin; row < end; ++row)
          for_channels(channels, [&](int64_t c, auto lanes) {
            using L = decltype(lanes);
            const int64_t at = row * channels + c;
            const auto scaled = load<L>(in + at) * factor<L>(scale_, c);
            const auto kept = scaled * (keep_ ? keep_[row] : 1.f);
            store<L>(out + at, kept);
            add<L>(sum + c, kept);
          });
      });
    });
  });
  return {result, sums};
}

Tensor row_products(const Tensor& first, const Tensor& second) {
  const int64_t rows = first.size(0), channels = channels_of(first);
  Tensor products = at::empty({rows}, at::kFloat);
  float* out = data<float>(products);
  with_type(first.scalar_type(), [&](auto first_type) {
    with_type(second.scalar_type(), [&](auto second_type) {
      const auto* a = data<decltype(first_type)>(first);
      const auto* b = data<decltype(second_type)>(second);
      for_rows(rows, channels, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          Total sum;
          for_channels(channels, [&](int64_t c, auto lanes) {
            using L = decltype(lanes);
            sum.add(load<L>(a + row * channels + c) * load<L>(b + row * channels + c));
          });
          out[row] = sum.value();
        }
      });
    });
  });
  return products;
}

Tensor column_products(const Tensor& first, const Tensor& second, int64_t num_samples) {
  const int64_t rows = first.size(0), channels = channels_of(first);
  const int64_t sample_rows = rows / num_samples;
  Tensor sums;
  with_type(first.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *a = data<T>(first), *b = data<T>(second);
    sums = sum_rows(rows, 1, channels, num_samples * channels,
                    [&](int64_t begin, int64_t end, float* sum) {
                      for (int64_t row = begin; row < end; ++row)
                        for_channels(channels, [&](int64_t c, auto lanes) {
                          using L = decltype(lanes);
                          const int64_t at = row * channels + c;
                          add<L>(sum + row / sample_rows * channels + c,
                                 load<L>(a + at) * load<L>(b + at));
                        });
                    });
  });
  return sums.view({num_samples, channels});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(convnext_backbone, library) {
  library.def(
      "gelu_backward_(Tensor(a!) grad, Tensor inner, Tensor? scale, Tensor? shift) "
      "-> (Tensor, Tensor)");
  library.def(
      "add_branch_(Tensor(a!) output, Tensor features, Tensor branch, Tensor? scale, Tensor? keep) "
      "-> ()");
  library.def(
      "branch_grad(Tensor grad, Tensor? keep, ScalarType dtype, Tensor? scale=None) "
      "-> (Tensor, Tensor)");
  library.def("row_products(Tensor first, Tensor second) -> Tensor");
  library.def("column_products(Tensor first, Tensor second, int num_samples) -> Tensor");
}

TORCH_LIBRARY_IMPL(convnext_backbone, CPU, library) {
  library.impl("gelu_backward_", &gelu_backward_);
  library.impl("add_branch_", &add_branch_);
  library.impl("branch_grad", &branch_grad);
  library.impl("row_products", &row_products);
  library.impl("column_products", &column_products);
}

}  // namespace convnext
