// Vectors of neighbouring channels, and loops over channels and rows. Feature maps are stored as
// rows of channels. The number of channels is a multiple of eight. All arithmetic is in float32,
// for every dtype of the feature maps.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

namespace convnext {

using at::BFloat16;
using at::Tensor;
using std::optional;

struct Sixteen {
  using Floats = float __attribute__((vector_size(64)));
  using Words = uint32_t __attribute__((vector_size(64)));
  using Halves = uint16_t __attribute__((vector_size(32)));
};

struct Eight {
  using Floats = float __attribute__((vector_size(32)));
  using Words = uint32_t __attribute__((vector_size(32)));
  using Halves = uint16_t __attribute__((vector_size(16)));
};

template <typename L>
inline typename L::Floats load(const float* from) {
  typename L::Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

template <typename L>
inline typename L::Floats load(const BFloat16* from) {
  typename L::Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (typename L::Floats)(__builtin_convertvector(halves, typename L::Words) << 16);
}

template <typename L>
inline void store(float* to, typename L::Floats values) {
  std::memcpy(to, &values, sizeof values);
}

template <typename L>
inline void store(BFloat16* to, typename L::Floats values) {
  typename L::Words bits = (typename L::Words)values;
  bits += 0x7fff + ((bits >> 16) & 1);  // round to nearest, ties to even
  bits = values == values ? bits : 0x7fc00000 + typename L::Words{};
  const auto halves = __builtin_convertvector(bits >> 16, typename L::Halves);
  std::memcpy(to, &halves, sizeof halves);
}

template <typename L>
inline void add(float* to, typename L::Floats values) {
  store<L>(to, load<L>(to) + values);
}

// A sum over the channels of a pixel.
struct Total {
  Sixteen::Floats wide = {};
  Eight::Floats narrow = {};

  void add(Sixteen::Floats values) { wide += values; }
  void add(Eight::Floats values) { narrow += values; }

  float value() const {
    struct {
      Eight::Floats low, high;
    } halves;
    std::memcpy(&halves, &wide, sizeof wide);
    const Eight::Floats eight = halves.low + halves.high + narrow;
    using Four = float __attribute__((vector_size(16)));
    struct {
      Four low, high;
    } quarters;
    std::memcpy(&quarters, &eight, sizeof eight);
    const Four four = quarters.low + quarters.high;
    return (four[0] + four[2]) + (four[1] + four[3]);
  }
};

// Runs body(c, lanes) over the channels of a pixel.
template <typename Body>
inline void for_channels(int64_t channels, Body body) {
  int64_t c = 0;
#ifdef __AVX512F__  // with smaller registers, sixteen channels at a time need too many of them
  for (; c + 16 <= channels; c += 16) body(c, Sixteen());
#endif
  for (; c < channels; c += 8) body(c, Eight());
}

// Runs body(begin, end) over parts of the rows on all threads.
template <typename Body>
void for_rows(int64_t rows, int64_t row_size, Body body) {
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / row_size), body);
}

// Like for_rows, but body(begin, end, sums) adds to `count` sums. Returns the totals. Short blocks
// of rows have separate sums: one sum over a large feature map would lose digits in float32.
template <typename Body>
Tensor sum_rows(int64_t rows, int64_t pixels, int64_t channels, int64_t count, Body body) {
  const int64_t block = std::max<int64_t>(1, 256 / pixels);
  Tensor totals = at::zeros({at::get_num_threads(), count}, at::kFloat);
  float* all = totals.data_ptr<float>();
  for_rows(rows, pixels * channels, [&](int64_t begin, int64_t end) {
    float* total = all + at::get_thread_num() * count;
    std::vector<float> sums(count);
    for (int64_t row = begin; row < end; row += block) {
      std::fill(sums.begin(), sums.end(), 0.f);
      body(row, std::min(row + block, end), sums.data());
      for (int64_t i = 0; i < count; ++i) total[i] += sums[i];
    }
  });
  return totals.sum(0);
}

// Calls body with a value of the C++ type of `dtype`.
template <typename Body>
void with_type(at::ScalarType dtype, Body body) {
  if (dtype == at::kBFloat16) {
    body(BFloat16());
  } else {
    TORCH_CHECK(dtype == at::kFloat, "tensors must be float32 or bfloat16, got ", dtype);
    body(float());
  }
}

// Returns the memory of a tensor, which must be contiguous.
template <typename T>
T* data(const Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), "tensors must be contiguous, got shape ", tensor.sizes(),
              " with strides ", tensor.strides(), ": call contiguous()");
  return tensor.data_ptr<T>();
}

// Returns the memory of parameters or factors. There must be `count` of them.
inline const float* floats(const Tensor& tensor, int64_t count) {
  TORCH_CHECK(tensor.numel() == count, "expected ", count, " numbers, got ", tensor.numel());
  return data<float>(tensor);
}

inline const float* floats(const optional<Tensor>& tensor, int64_t count) {
  return tensor ? floats(*tensor, count) : nullptr;
}

inline int64_t channels_of(const Tensor& features) {
  TORCH_CHECK(features.size(-1) % 8 == 0, "the number of channels must be a multiple of 8, got ",
              features.size(-1));
  return features.size(-1);
}

}  // namespace convnext
