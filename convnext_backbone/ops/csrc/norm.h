// The statistics of layer normalisation.
#pragma once

#include "lanes.h"

namespace convnext {

struct Statistics {
  float mean, scale;  // scale is the inverse of the deviation
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
  return {mean, 1 / std::sqrt(float(squares.value() / channels + eps))};
}

}  // namespace convnext
