// The statistics of layer normalisation.
#pragma once

#include "lanes.h"

namespace convnext {

struct Statistics {
  float mean, scale;  // scale is the inverse of the standard deviation
};

template <typename T>
inline Statistics statistics(const T* pixel, int64_t channels, double eps) {
  Total sum, squares;
  for_channels(channels, [&](int64_t c, auto lanes) {
    sum.add(load<decltype(lanes)>(pixel + c));
  });
  const float mean = sum.value() / channels;
  for_channels(channels, [&](int64_t c, auto lanes) {
    const auto centred = load<decltype(lanes)>(pixel + c) - mean;
    squares.add(centred * centred);
  });
  const float variance = squares.value() / channels;
  // 1 / inf is 0, which would turn a variance that overflows into finite outputs.
  const float overflow = 0 * variance;  // 0, or NaN if the variance is infinite
  return {mean, 1 / std::sqrt(float(variance + eps)) + overflow};
}

// Normalises a pixel, given its statistics.
template <typename In, typename Out>
inline void normalize(const In* pixel, Statistics s, const float* weight, const float* bias,
                      int64_t channels, Out* out) {
  for_channels(channels, [&](int64_t c, auto lanes) {
    using L = decltype(lanes);
    store<L>(out + c, (load<L>(pixel + c) - s.mean) * s.scale * load<L>(weight + c) +
                          load<L>(bias + c));
  });
}

}  // namespace convnext
