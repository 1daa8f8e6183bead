// What one GPU thread computes, written so that a test can run the same on a processor.
//
// N RoIs, h x w bins, feature maps [B, H, W, C] channels last. Sums are float32 in any type of features.
#ifndef KERAS_SEG_ROI_ALIGN_ELEMENTS_H_
#define KERAS_SEG_ROI_ALIGN_ELEMENTS_H_

#include "roi_align.h"

namespace KERAS_SEG_NAMESPACE {

struct Shape {
  int64_t channels;
  int32_t bins_y, bins_x;
};

// A bin's sample by its numbers along y and x; y < 0: no sample (0 is the maximum, of samples outside, or of none).
struct SampleNumber {
  int32_t y, x;
};

// map: the RoI's image on its level, [H, W, C].
template <typename T>
KERAS_SEG_HD float read_sample(const T* map, const Roi& roi, int64_t channels, int64_t channel, const Sample& y,
                               const Sample& x) {
  const T* low = map + static_cast<int64_t>(y.low) * roi.x.length * channels + channel;
  const T* high = map + static_cast<int64_t>(y.high) * roi.x.length * channels + channel;
  const int64_t left = x.low * channels, right = x.high * channels;
  const float upper = x.low_weight * to_float(low[left]) + x.high_weight * to_float(low[right]);
  const float lower = x.low_weight * to_float(high[left]) + x.high_weight * to_float(high[right]);
  return y.low_weight * upper + y.high_weight * lower;
}

// visit(number_y, number_x, sample_y, sample_x) for each sample of a bin that counts, row by row; returns how many.
template <typename Visit>
KERAS_SEG_HD int64_t for_each_sample(const Roi& roi, int32_t bin_y, int32_t bin_x, const Visit& visit) {
  int64_t first_y, end_y, first_x, end_x, count = 0;
  samples_on_map(roi.y, bin_y, &first_y, &end_y);
  samples_on_map(roi.x, bin_x, &first_x, &end_x);
  for (int64_t i = first_y; i < end_y; ++i) {
    Sample y;
    if (!make_sample(roi.y, position(roi.y, bin_y, i), &y)) continue;
    for (int64_t j = first_x; j < end_x; ++j) {
      Sample x;
      if (!make_sample(roi.x, position(roi.x, bin_x, j), &x)) continue;
      visit(static_cast<int32_t>(i), static_cast<int32_t>(j), y, x);
      ++count;
    }
  }
  return count;
}

template <typename T>
struct SumSamples {
  const T* map;
  const Roi& roi;
  int64_t channels, channel;
  float* sum;
  KERAS_SEG_HD void operator()(int32_t, int32_t, const Sample& y, const Sample& x) const {
    *sum += read_sample(map, roi, channels, channel, y, x);
  }
};

template <typename T>
struct GreatestSample {
  const T* map;
  const Roi& roi;
  int64_t channels, channel;
  float* best;
  SampleNumber* where;
  KERAS_SEG_HD void operator()(int32_t i, int32_t j, const Sample& y, const Sample& x) const {
    const float value = read_sample(map, roi, channels, channel, y, x);
    if (where->y < 0 || value > *best || value != value) {  // NaN stays
      *best = value;
      *where = SampleNumber{i, j};
    }
  }
};

template <typename T>
KERAS_SEG_HD float average_of_bin(const T* map, const Roi& roi, Shape shape, int32_t bin_y, int32_t bin_x,
                                  int64_t channel) {
  float sum = 0.0f;
  if (roi.y.samples < 1.0f || roi.x.samples < 1.0f) return sum;
  for_each_sample(roi, bin_y, bin_x, SumSamples<T>{map, roi, shape.channels, channel, &sum});
  return sum / roi.y.samples / roi.x.samples;
}

template <typename T>
KERAS_SEG_HD float maximum_of_bin(const T* map, const Roi& roi, Shape shape, int32_t bin_y, int32_t bin_x,
                                  int64_t channel, SampleNumber* where) {
  float best = 0.0f;
  *where = SampleNumber{-1, -1};
  if (roi.y.samples < 1.0f || roi.x.samples < 1.0f) return best;
  const int64_t count =
      for_each_sample(roi, bin_y, bin_x, GreatestSample<T>{map, roi, shape.channels, channel, &best, where});
  const int64_t all = static_cast<int64_t>(roi.y.samples) * static_cast<int64_t>(roi.x.samples);
  if (count < all && best < 0.0f) {  // the samples outside are 0
    best = 0.0f;
    *where = SampleNumber{-1, -1};
  }
  return best;
}

// --- gradient by adding: add(pixel's offset in the map, value) ---

template <typename Add>
KERAS_SEG_HD void add_sample(const Roi& roi, int64_t channels, int64_t channel, const Sample& y, const Sample& x,
                             float value, const Add& add) {
  const int64_t low = static_cast<int64_t>(y.low) * roi.x.length, high = static_cast<int64_t>(y.high) * roi.x.length;
  add((low + x.low) * channels + channel, y.low_weight * x.low_weight * value);
  if (x.high_weight != 0.0f) add((low + x.high) * channels + channel, y.low_weight * x.high_weight * value);
  if (y.high_weight == 0.0f) return;
  add((high + x.low) * channels + channel, y.high_weight * x.low_weight * value);
  if (x.high_weight != 0.0f) add((high + x.high) * channels + channel, y.high_weight * x.high_weight * value);
}

template <typename Add>
struct AddSamples {
  const Roi& roi;
  int64_t channels, channel;
  float value;
  const Add& add;
  KERAS_SEG_HD void operator()(int32_t, int32_t, const Sample& y, const Sample& x) const {
    add_sample(roi, channels, channel, y, x, value, add);
  }
};

template <typename Add>
KERAS_SEG_HD void spread_average(const Roi& roi, Shape shape, int32_t bin_y, int32_t bin_x, int64_t channel,
                                 float upstream, const Add& add) {
  if (roi.y.samples < 1.0f || roi.x.samples < 1.0f) return;
  const float share = upstream / roi.y.samples / roi.x.samples;
  for_each_sample(roi, bin_y, bin_x, AddSamples<Add>{roi, shape.channels, channel, share, add});
}

template <typename T, typename Add>
KERAS_SEG_HD void spread_maximum(const T* map, const Roi& roi, Shape shape, int32_t bin_y, int32_t bin_x,
                                 int64_t channel, float upstream, const Add& add) {
  SampleNumber where;
  maximum_of_bin(map, roi, shape, bin_y, bin_x, channel, &where);
  if (where.y < 0) return;
  Sample y, x;
  make_sample(roi.y, position(roi.y, bin_y, where.y), &y);
  make_sample(roi.x, position(roi.x, bin_x, where.x), &x);
  add_sample(roi, shape.channels, channel, y, x, upstream, add);
}

// --- gradient by gathering: what one pixel gets from one RoI; the same sum in every run ---

KERAS_SEG_HD bool reads(const Roi& roi, Shape shape, int32_t row, int32_t column) {
  int32_t first, end;
  pixels_read(roi.y, shape.bins_y, &first, &end);
  if (row < first || row >= end) return false;
  pixels_read(roi.x, shape.bins_x, &first, &end);
  return column >= first && column < end;
}

// upstream: the RoI's, [h, w, C].
template <typename T>
KERAS_SEG_HD float gather_average(const T* upstream, const Roi& roi, Shape shape, int32_t row, int32_t column,
                                  int64_t channel) {
  float sum = 0.0f;
  for (int32_t bin_y = 0; bin_y < shape.bins_y; ++bin_y) {
    const float weight_y = pixel_weight(roi.y, bin_y, row);
    if (weight_y == 0.0f) continue;
    for (int32_t bin_x = 0; bin_x < shape.bins_x; ++bin_x) {
      const float weight_x = pixel_weight(roi.x, bin_x, column);
      if (weight_x == 0.0f) continue;
      const int64_t bin = static_cast<int64_t>(bin_y) * shape.bins_x + bin_x;
      sum += weight_y * weight_x * to_float(upstream[bin * shape.channels + channel]);
    }
  }
  return sum;
}

// where: `maximum_of_bin`'s of each bin and channel of the RoI, [h, w, C].
template <typename T>
KERAS_SEG_HD float gather_maximum(const T* upstream, const SampleNumber* where, const Roi& roi, Shape shape,
                                  int32_t row, int32_t column, int64_t channel) {
  float sum = 0.0f;
  for (int32_t bin_y = 0; bin_y < shape.bins_y; ++bin_y) {
    for (int32_t bin_x = 0; bin_x < shape.bins_x; ++bin_x) {
      const int64_t bin = (static_cast<int64_t>(bin_y) * shape.bins_x + bin_x) * shape.channels + channel;
      const SampleNumber number = where[bin];
      Sample y, x;
      if (number.y < 0 || !make_sample(roi.y, position(roi.y, bin_y, number.y), &y)) continue;
      if (row != y.low && row != y.high) continue;
      if (!make_sample(roi.x, position(roi.x, bin_x, number.x), &x)) continue;
      if (column != x.low && column != x.high) continue;
      const float weight_y = row == y.low ? y.low_weight : y.high_weight;
      const float weight_x = column == x.low ? x.low_weight : x.high_weight;
      sum += weight_y * weight_x * to_float(upstream[bin]);
    }
  }
  return sum;
}

}  // namespace KERAS_SEG_NAMESPACE

#endif  // KERAS_SEG_ROI_ALIGN_ELEMENTS_H_
