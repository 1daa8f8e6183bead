// RoIAlign's arithmetic (He et al. 2017, Section 3): where samples lie and what they read.
//
// One text for the processor's kernels, the GPU's and the tests of both; no TensorFlow in it. Coordinates are in
// feature pixels with the centre of pixel i at i. Compile without contraction of a * b + c (-ffp-contract=off,
// --fmad=false), so that positions are rounded as the portable implementations round them.
#ifndef KERAS_SEG_ROI_ALIGN_H_
#define KERAS_SEG_ROI_ALIGN_H_

#include <math.h>

#include "numbers.h"

namespace KERAS_SEG_NAMESPACE {

// A RoI along one axis of its feature map.
struct Axis {
  float start;
  float bin;       // length of a bin; negative in an inverted box
  float samples;   // a bin, a whole number; 0: the RoI has no extent
  int32_t length;  // pixels of the feature map
};

struct Roi {
  Axis y, x;
  int32_t image, level;
};

// The two pixels that a sample lies between, and their weights.
struct Sample {
  int32_t low, high;
  float low_weight, high_weight;
};

// Up to so many samples of a bin are looked at one by one; of more, those on the map are searched for.
constexpr int64_t kFewSamples = 16;
// A box with a coordinate beyond this (or NaN) is taken as lying at kOutside, where no sample counts.
constexpr float kFarthest = 1e9f;
constexpr float kOutside = -10.0f;

KERAS_SEG_HD int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
KERAS_SEG_HD int32_t greatest(int32_t a, int32_t b) { return a > b ? a : b; }
KERAS_SEG_HD float clamp(float value, float low, float high) {
  return value < low ? low : value > high ? high : value;
}

// low, high: a side of the box, feature pixels from the map's edge. sampling_ratio 0: a sample a pixel, rounded up.
KERAS_SEG_HD Axis make_axis(float low, float high, bool finite, int32_t bins, int32_t length, int32_t sampling_ratio,
                            bool aligned) {
  const float shift = aligned ? 0.5f : 0.0f;
  const float start = low - shift;
  float extent = (high - shift) - start;
  if (!aligned && !(extent >= 1.0f)) extent = 1.0f;
  Axis axis;
  axis.start = finite ? start : kOutside;
  axis.bin = finite ? extent / static_cast<float>(bins) : 0.0f;
  const float whole = ceilf(axis.bin);
  axis.samples = sampling_ratio > 0 ? static_cast<float>(sampling_ratio) : whole > 0.0f ? whole : 0.0f;
  axis.length = length;
  return axis;
}

// box: x1, y1, x2, y2 in image pixels.
KERAS_SEG_HD Roi make_roi(const float* box, float scale, int32_t image, int32_t level, int32_t height, int32_t width,
                          int32_t bins_y, int32_t bins_x, int32_t sampling_ratio, bool aligned) {
  float scaled[4];
  bool finite = true;
  for (int i = 0; i < 4; ++i) {
    scaled[i] = box[i] * scale;
    finite = finite && fabsf(scaled[i]) < kFarthest;  // false for NaN
  }
  Roi roi;
  roi.y = make_axis(scaled[1], scaled[3], finite, bins_y, height, sampling_ratio, aligned);
  roi.x = make_axis(scaled[0], scaled[2], finite, bins_x, width, sampling_ratio, aligned);
  roi.image = image;
  roi.level = level;
  return roi;
}

// Of sample `number` of a bin. Each operation is monotone in the number, so positions never turn back.
KERAS_SEG_HD float position(const Axis& axis, int32_t bin, int64_t number) {
  const float start = axis.start + static_cast<float>(bin) * axis.bin;
  const float along = (static_cast<float>(number) + 0.5f) * axis.bin;
  return start + along / axis.samples;
}

// Up to one pixel outside the map counts as on its border; false beyond.
KERAS_SEG_HD bool make_sample(const Axis& axis, float position, Sample* sample) {
  if (!(position >= -1.0f && position <= static_cast<float>(axis.length))) return false;
  const float clamped = clamp(position, 0.0f, static_cast<float>(axis.length - 1));
  const float low = floorf(clamped);
  sample->low = static_cast<int32_t>(low);
  sample->high = least(sample->low + 1, axis.length - 1);
  sample->high_weight = clamped - low;
  sample->low_weight = 1.0f - sample->high_weight;
  return true;
}

// The first sample of a bin that is at `limit` or past it, in the direction in which the positions run.
KERAS_SEG_HD int64_t first_sample_at(const Axis& axis, int32_t bin, float limit, bool past) {
  int64_t low = 0, high = static_cast<int64_t>(axis.samples);
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    const float here = position(axis, bin, middle);
    const float ahead = axis.bin < 0.0f ? limit - here : here - limit;
    const bool reached = past ? ahead > 0.0f : ahead >= 0.0f;
    if (reached) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Numbers [first, end) that hold all samples of a bin within [from, to]. A box of 10^8 pixels has few on a map.
KERAS_SEG_HD void samples_between(const Axis& axis, int32_t bin, float from, float to, int64_t* first, int64_t* end) {
  *first = 0;
  *end = static_cast<int64_t>(axis.samples);
  if (*end <= kFewSamples) return;
  const bool falls = axis.bin < 0.0f;
  *first = first_sample_at(axis, bin, falls ? to : from, false);
  *end = first_sample_at(axis, bin, falls ? from : to, true);
}

KERAS_SEG_HD void samples_on_map(const Axis& axis, int32_t bin, int64_t* first, int64_t* end) {
  samples_between(axis, bin, -1.0f, static_cast<float>(axis.length), first, end);
}

// What a pixel contributes to the mean of a bin's samples along this axis.
KERAS_SEG_HD float pixel_weight(const Axis& axis, int32_t bin, int32_t pixel) {
  const float from = static_cast<float>(pixel - 1);  // -1 for the first pixel, which has the border's samples too
  const float to = static_cast<float>(pixel + 1);
  if (axis.samples < 1.0f) return 0.0f;
  int64_t first, end;
  samples_between(axis, bin, from, to, &first, &end);
  float sum = 0.0f;
  for (int64_t number = first; number < end; ++number) {
    Sample sample;
    if (!make_sample(axis, position(axis, bin, number), &sample)) continue;
    if (sample.low == pixel) sum += sample.low_weight;
    if (sample.high == pixel) sum += sample.high_weight;  // 0 where both are the last pixel
  }
  return sum / axis.samples;
}

// Pixels [first, end) that hold all those that a RoI's samples read along this axis.
KERAS_SEG_HD void pixels_read(const Axis& axis, int32_t bins, int32_t* first, int32_t* end) {
  *first = *end = 0;
  if (axis.samples < 1.0f) return;
  const float one = position(axis, 0, 0);
  const float other = position(axis, bins - 1, static_cast<int64_t>(axis.samples) - 1);
  const float low = one < other ? one : other, high = one < other ? other : one;
  const float length = static_cast<float>(axis.length);
  if (!(high >= -1.0f && low <= length)) return;
  *first = static_cast<int32_t>(floorf(clamp(low, 0.0f, length - 1.0f)));
  *end = least(static_cast<int32_t>(floorf(clamp(high, 0.0f, length - 1.0f))) + 2, axis.length);
}

}  // namespace KERAS_SEG_NAMESPACE

#endif  // KERAS_SEG_ROI_ALIGN_H_
