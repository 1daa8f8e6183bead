// RoIAlign on a processor, vectorised over channels. Compiled once for each instruction set.
//
// The mean over a bin's samples separates: out = Wy F Wx^T for each channel, with a row of Wy (Wx) for each bin and in
// it what each pixel contributes. A row of pixels is combined into the bins along x, and that into the bins along y,
// so that each pixel is read about once however many samples there are. The gradient is the transpose.
//
// No inline function of another header is used: built with wide instructions, the linker might take it for all.
#if defined(KERAS_SEG_AVX512)
#define KERAS_SEG_NAMESPACE keras_seg_avx512
#elif defined(KERAS_SEG_AVX2)
#define KERAS_SEG_NAMESPACE keras_seg_avx2
#else
#define KERAS_SEG_NAMESPACE keras_seg_plain
#endif

#include "roi_align_cpu.h"

#include "roi_align.h"

#if defined(KERAS_SEG_AVX512) || defined(KERAS_SEG_AVX2)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace KERAS_SEG_NAMESPACE {
namespace {  // what is not the table of kernels at the end stays in this object

using keras_seg::Kernels;
using keras_seg::Number;
using keras_seg::Region;
using keras_seg::RoiAlign;
using keras_seg::Scratch;

// --- vectors ---

#if defined(KERAS_SEG_AVX512)
constexpr int kLanes = 16;
#elif defined(KERAS_SEG_AVX2)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef int32_t Numbers __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Shorts __attribute__((vector_size(2 * kLanes)));

// From and to any address.
template <typename Value>
inline Value get(const void* from) {
  Value value;
  memcpy(&value, from, sizeof(value));
  return value;
}

template <typename Value>
inline void store(void* to, Value value) {
  memcpy(to, &value, sizeof(value));
}

inline float fused(float a, float b, float c) { return a * b + c; }

inline Vector fused(Vector a, Vector b, Vector c) {
#if defined(KERAS_SEG_AVX512)
  return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(KERAS_SEG_AVX2)
  return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// `Lane` is a vector of channels, or one channel for those left over.
template <typename Lane>
struct Width {
  static constexpr int kCount = kLanes;
};
template <>
struct Width<float> {
  static constexpr int kCount = 1;
};

template <typename Lane>
inline Lane all(float value);
template <>
inline float all<float>(float value) {
  return value;
}
template <>
inline Vector all<Vector>(float value) {
  return Vector{} + value;
}

template <typename Lane, typename T>
struct Load;

template <typename T>
struct Load<float, T> {
  static float from(const T* values) { return to_float(*values); }
};

template <>
struct Load<Vector, float> {
  static Vector from(const float* values) { return get<Vector>(values); }
};

template <>
struct Load<Vector, BFloat16> {
  static Vector from(const BFloat16* values) {
    return (Vector)(__builtin_convertvector(get<Shorts>(values), Bits) << 16);
  }
};

template <>
struct Load<Vector, Half> {
  static Vector from(const Half* values) {
#if defined(KERAS_SEG_AVX512)
    return (Vector)_mm512_maskz_cvtph_ps(0xffff, get<__m256i>(values));
#elif defined(KERAS_SEG_AVX2)
    return (Vector)_mm256_cvtph_ps(get<__m128i>(values));
#else
    const Bits bits = __builtin_convertvector(get<Shorts>(values), Bits);
    const Bits magnitude = (bits & 0x7fffu) << 13, normal = magnitude + (112u << 23), special = normal + (112u << 23);
    const Vector least_normal = (Vector)(Bits{} + (113u << 23));
    const Bits tiny = (Bits)((Vector)(magnitude + (113u << 23)) - least_normal);
    const Bits is_special = (Bits)(magnitude >= (0x7c00u << 13)), is_tiny = (Bits)(magnitude < (0x0400u << 13));
    const Bits chosen = (is_special & special) | (is_tiny & tiny) | (~(is_special | is_tiny) & normal);
    return (Vector)(chosen | ((bits & 0x8000u) << 16));
#endif
  }
};

template <typename Lane>
inline Lane load(const float* values) {
  return Load<Lane, float>::from(values);
}

template <typename T>
void convert_to(const float* from, T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_float<T>(from[i]);
}

// --- which pixels a RoI reads, along one axis ---

// An entry of a sparse matrix: pixel and weight in a bin's row, or bin and weight in a pixel's row.
struct Entry {
  int32_t index;
  float weight;
};

struct Sparse {
  const Entry* entries;
  const int64_t* starts;  // of each row, and the end
};

// Each bin's pixels and their weights in the mean of its samples. False where memory has ended.
bool weigh(const Axis& axis, int32_t bins, Scratch* scratch, int block, Sparse* result) {
  auto* starts = static_cast<int64_t*>(scratch->block(block, sizeof(int64_t) * (bins + 1)));
  Entry* entries = static_cast<Entry*>(scratch->block(block + 1, sizeof(Entry) * 64));
  if (starts == nullptr || entries == nullptr) return false;
  int64_t room = scratch->sizes[block + 1] / sizeof(Entry), count = 0;
  for (int32_t bin = 0; bin < bins; ++bin) {
    const int64_t start = starts[bin] = count;
    int64_t first, end;
    samples_on_map(axis, bin, &first, &end);
    const float share = axis.samples < 1.0f ? 0.0f : 1.0f / axis.samples;
    for (int64_t number = first; number < end; ++number) {
      Sample sample;
      if (!make_sample(axis, position(axis, bin, number), &sample)) continue;
      if (count + 2 > room) {
        entries = static_cast<Entry*>(scratch->block(block + 1, sizeof(Entry) * (count + 2)));
        if (entries == nullptr) return false;
        room = scratch->sizes[block + 1] / sizeof(Entry);
      }
      const Entry pair[2] = {{sample.low, sample.low_weight * share}, {sample.high, sample.high_weight * share}};
      for (const Entry& entry : pair) {
        if (entry.weight == 0.0f) continue;
        // Samples run in one direction, so that a pixel met before is one of the last two.
        if (count > start && entries[count - 1].index == entry.index) {
          entries[count - 1].weight += entry.weight;
        } else if (count > start + 1 && entries[count - 2].index == entry.index) {
          entries[count - 2].weight += entry.weight;
        } else {
          entries[count++] = entry;
        }
      }
    }
  }
  starts[bins] = count;
  *result = Sparse{entries, starts};
  return true;
}

// Rows of pixels [first, first + rows) instead of bins.
bool transpose(const Sparse& by_bin, int32_t bins, int32_t first, int32_t rows, Scratch* scratch, int block,
               Sparse* result) {
  const int64_t count = by_bin.starts[bins];
  auto* starts = static_cast<int64_t*>(scratch->block(block, sizeof(int64_t) * (rows + 2)));
  auto* entries = static_cast<Entry*>(scratch->block(block + 1, sizeof(Entry) * (count + 1)));
  if (starts == nullptr || entries == nullptr) return false;
  for (int32_t row = 0; row < rows + 2; ++row) starts[row] = 0;
  for (int64_t i = 0; i < count; ++i) ++starts[by_bin.entries[i].index - first + 2];
  for (int32_t row = 2; row < rows + 2; ++row) starts[row] += starts[row - 1];
  for (int32_t bin = 0; bin < bins; ++bin) {
    for (int64_t i = by_bin.starts[bin]; i < by_bin.starts[bin + 1]; ++i) {
      const Entry& entry = by_bin.entries[i];
      entries[starts[entry.index - first + 1]++] = Entry{bin, entry.weight};
    }
  }
  *result = Sparse{entries, starts};
  return true;
}

Roi roi_of(const RoiAlign& problem, int64_t number) {
  const int32_t index = problem.box_levels[number];
  const keras_seg::Level& level = problem.levels[index];
  return make_roi(problem.boxes + 4 * number, level.scale, problem.box_indices[number], index, level.height,
                  level.width, problem.bins_y, problem.bins_x, problem.sampling_ratio, problem.aligned);
}

// --- sums of weighted vectors ---

// to[c] = sum of weight * from[index * stride + c]; count > 0. `kVectors` accumulators stay in registers.
template <typename Lane, int kVectors, typename T>
inline void combine_block(const Entry* entries, int64_t count, const T* from, int64_t stride, float* to) {
  constexpr int kStep = Width<Lane>::kCount;
  Lane sums[kVectors];
  for (int v = 0; v < kVectors; ++v) sums[v] = all<Lane>(0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const Lane weight = all<Lane>(entries[i].weight);
    const T* values = from + entries[i].index * stride;
    for (int v = 0; v < kVectors; ++v) sums[v] = fused(weight, Load<Lane, T>::from(values + v * kStep), sums[v]);
  }
  for (int v = 0; v < kVectors; ++v) store(to + v * kStep, sums[v]);
}

template <typename T>
void combine(const Entry* entries, int64_t count, const T* from, int64_t stride, int64_t channels, float* to) {
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
    combine_block<Vector, 4>(entries, count, from + c, stride, to + c);
  }
  for (; c + kLanes <= channels; c += kLanes) combine_block<Vector, 1>(entries, count, from + c, stride, to + c);
  for (; c < channels; ++c) combine_block<float, 1>(entries, count, from + c, stride, to + c);
}

// to[c] += weight * from[c]
void add(float weight, const float* from, int64_t channels, float* to) {
  int64_t c = 0;
  const Vector weights = all<Vector>(weight);
  for (; c + kLanes <= channels; c += kLanes) {
    store(to + c, fused(weights, load<Vector>(from + c), load<Vector>(to + c)));
  }
  for (; c < channels; ++c) to[c] = fused(weight, from[c], to[c]);
}

// to[c] += sum of weight * from[index * stride + c]
template <typename Lane, int kVectors>
inline void accumulate_block(const Entry* entries, int64_t count, const float* from, int64_t stride, float* to) {
  constexpr int kStep = Width<Lane>::kCount;
  Lane sums[kVectors];
  for (int v = 0; v < kVectors; ++v) sums[v] = load<Lane>(to + v * kStep);
  for (int64_t i = 0; i < count; ++i) {
    const Lane weight = all<Lane>(entries[i].weight);
    const float* values = from + entries[i].index * stride;
    for (int v = 0; v < kVectors; ++v) sums[v] = fused(weight, load<Lane>(values + v * kStep), sums[v]);
  }
  for (int v = 0; v < kVectors; ++v) store(to + v * kStep, sums[v]);
}

void accumulate(const Entry* entries, int64_t count, const float* from, int64_t stride, int64_t channels, float* to) {
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
    accumulate_block<Vector, 4>(entries, count, from + c, stride, to + c);
  }
  for (; c + kLanes <= channels; c += kLanes) accumulate_block<Vector, 1>(entries, count, from + c, stride, to + c);
  for (; c < channels; ++c) accumulate_block<float, 1>(entries, count, from + c, stride, to + c);
}

void clear(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = 0.0f;
}

// Scratch blocks.
enum { kYStarts, kYEntries, kXStarts, kXEntries, kYTransposed, kYTransposedEntries, kXTransposed, kXTransposedEntries,
       kRow, kSums, kSamples, kWinners };

// --- average ---

template <typename T>
bool average_forward(const RoiAlign& problem, const Roi& roi, const T* map, int64_t channels, float* sums,
                     Scratch* scratch) {
  const int32_t bins_y = problem.bins_y, bins_x = problem.bins_x;
  clear(sums, channels * bins_y * bins_x);
  int32_t first_row, end_row, first_column, end_column;
  pixels_read(roi.y, bins_y, &first_row, &end_row);
  pixels_read(roi.x, bins_x, &first_column, &end_column);
  if (first_row >= end_row || first_column >= end_column) return true;
  Sparse y, x, rows;
  auto* line = static_cast<float*>(scratch->block(kRow, sizeof(float) * channels * bins_x));
  if (line == nullptr || !weigh(roi.y, bins_y, scratch, kYStarts, &y) ||
      !weigh(roi.x, bins_x, scratch, kXStarts, &x) ||
      !transpose(y, bins_y, first_row, end_row - first_row, scratch, kYTransposed, &rows)) {
    return false;
  }
  for (int32_t row = first_row; row < end_row; ++row) {
    const int64_t begin = rows.starts[row - first_row], end = rows.starts[row - first_row + 1];
    if (begin == end) continue;
    const T* pixels = map + static_cast<int64_t>(row) * roi.x.length * problem.channels;
    for (int32_t bin = 0; bin < bins_x; ++bin) {
      const int64_t start = x.starts[bin], count = x.starts[bin + 1] - start;
      if (count == 0) continue;
      combine(x.entries + start, count, pixels, problem.channels, channels, line + bin * channels);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t place = static_cast<int64_t>(rows.entries[i].index) * bins_x + bin;
        add(rows.entries[i].weight, line + bin * channels, channels, sums + place * channels);
      }
    }
  }
  return true;
}

template <typename T>
bool average_backward(const RoiAlign& problem, const Roi& roi, const T* upstream, const Region& region, float* map,
                      Scratch* scratch) {
  const int32_t bins_y = problem.bins_y, bins_x = problem.bins_x;
  int32_t first_row, end_row, first_column, end_column;
  pixels_read(roi.y, bins_y, &first_row, &end_row);
  pixels_read(roi.x, bins_x, &first_column, &end_column);
  if (greatest(first_row, region.first_row) >= least(end_row, region.end_row) || first_column >= end_column) {
    return true;
  }
  const int64_t channels = region.end_channel - region.first_channel, stride = problem.channels;
  Sparse y, x, rows, columns;
  auto* line = static_cast<float*>(scratch->block(kRow, sizeof(float) * channels * bins_x));
  if (line == nullptr || !weigh(roi.y, bins_y, scratch, kYStarts, &y) ||
      !weigh(roi.x, bins_x, scratch, kXStarts, &x) ||
      !transpose(y, bins_y, first_row, end_row - first_row, scratch, kYTransposed, &rows) ||
      !transpose(x, bins_x, first_column, end_column - first_column, scratch, kXTransposed, &columns)) {
    return false;
  }
  const int32_t from = greatest(first_row, region.first_row), to = least(end_row, region.end_row);
  for (int32_t row = from; row < to; ++row) {
    const int64_t begin = rows.starts[row - first_row], count = rows.starts[row - first_row + 1] - begin;
    if (count == 0) continue;
    for (int32_t bin = 0; bin < bins_x; ++bin) {
      combine(rows.entries + begin, count, upstream + bin * stride, stride * bins_x, channels, line + bin * channels);
    }
    float* pixels = map + (static_cast<int64_t>(row) * roi.x.length + first_column) * stride;
    for (int32_t column = 0; column < end_column - first_column; ++column) {
      const int64_t start = columns.starts[column], terms = columns.starts[column + 1] - start;
      if (terms != 0) accumulate(columns.entries + start, terms, line, channels, channels, pixels + column * stride);
    }
  }
  return true;
}

// --- maximum ---

// A bin's samples that count along one axis.
struct Samples {
  const Sample* samples;
  const int64_t* starts;
};

bool list_samples(const Axis& axis, int32_t bins, Scratch* scratch, int block, Samples* result) {
  auto* starts = static_cast<int64_t*>(scratch->block(block, sizeof(int64_t) * (bins + 1)));
  auto* samples = static_cast<Sample*>(scratch->block(block + 1, sizeof(Sample) * 64));
  if (starts == nullptr || samples == nullptr) return false;
  int64_t room = scratch->sizes[block + 1] / sizeof(Sample), count = 0;
  for (int32_t bin = 0; bin < bins; ++bin) {
    starts[bin] = count;
    int64_t first, end;
    samples_on_map(axis, bin, &first, &end);
    for (int64_t number = first; number < end; ++number) {
      if (count == room) {
        samples = static_cast<Sample*>(scratch->block(block + 1, sizeof(Sample) * (count + 1)));
        if (samples == nullptr) return false;
        room = scratch->sizes[block + 1] / sizeof(Sample);
      }
      if (make_sample(axis, position(axis, bin, number), samples + count)) ++count;
    }
  }
  starts[bins] = count;
  *result = Samples{samples, starts};
  return true;
}

template <typename Lane, typename T>
inline Lane read(const T* map, int64_t row_stride, int64_t stride, const Sample& y, const Sample& x) {
  const T* low = map + y.low * row_stride;
  const T* high = map + y.high * row_stride;
  const Lane left = all<Lane>(x.low_weight), right = all<Lane>(x.high_weight);
  const int64_t at_left = x.low * stride, at_right = x.high * stride;
  const Lane upper = left * Load<Lane, T>::from(low + at_left) + right * Load<Lane, T>::from(low + at_right);
  const Lane lower = left * Load<Lane, T>::from(high + at_left) + right * Load<Lane, T>::from(high + at_right);
  return all<Lane>(y.low_weight) * upper + all<Lane>(y.high_weight) * lower;
}

inline int32_t select(bool condition, int32_t yes, int32_t no) { return condition ? yes : no; }
inline float select(bool condition, float yes, float no) { return condition ? yes : no; }
inline Numbers select(Numbers condition, Numbers yes, Numbers no) { return (condition & yes) | (~condition & no); }
inline Vector select(Numbers condition, Vector yes, Vector no) {
  return (Vector)select(condition, (Numbers)yes, (Numbers)no);
}
inline bool either(bool a, bool b) { return a || b; }
inline Numbers either(Numbers a, Numbers b) { return a | b; }

template <typename Lane>
struct Indices {
  typedef Numbers Type;
  static Numbers all(int32_t value) { return Numbers{} + value; }
};
template <>
struct Indices<float> {
  typedef int32_t Type;
  static int32_t all(int32_t value) { return value; }
};

// The greatest sample of a bin, and its number among those that count (-1: a sample outside, which is 0, or none).
template <typename Lane, typename T>
inline void greatest_sample(const T* map, int64_t row_stride, int64_t stride, const Sample* y, int64_t count_y,
                            const Sample* x, int64_t count_x, bool some_outside, float* best, int32_t* winner) {
  typedef typename Indices<Lane>::Type Index;
  Lane value = all<Lane>(0.0f);
  Index where = Indices<Lane>::all(-1);
  int32_t number = 0;
  for (int64_t i = 0; i < count_y; ++i) {
    for (int64_t j = 0; j < count_x; ++j, ++number) {
      const Lane here = read<Lane, T>(map, row_stride, stride, y[i], x[j]);
      const Index index = Indices<Lane>::all(number);
      if (number == 0) {
        value = here;
        where = index;
        continue;
      }
      const auto greater = either(here > value, here != here);  // NaN stays
      value = select(greater, here, value);
      where = select(greater, index, where);
    }
  }
  if (some_outside) {
    const auto below = value < all<Lane>(0.0f);
    value = select(below, all<Lane>(0.0f), value);
    where = select(below, Indices<Lane>::all(-1), where);
  }
  store(best, value);
  store(winner, where);
}

// best: [bins_y, bins_x, channels]; winners the same of one bin. visit(bin, y's samples, x's samples) after each bin.
template <typename T, typename Visit>
bool maximum(const RoiAlign& problem, const Roi& roi, const T* map, int64_t channels, float* best, int32_t* winners,
             Scratch* scratch, const Visit& visit) {
  const int32_t bins_y = problem.bins_y, bins_x = problem.bins_x;
  Samples y, x;
  if (!list_samples(roi.y, bins_y, scratch, kYStarts, &y) || !list_samples(roi.x, bins_x, scratch, kXStarts, &x)) {
    return false;
  }
  const int64_t stride = problem.channels, row_stride = roi.x.length * stride;
  const int64_t all_y = static_cast<int64_t>(roi.y.samples), all_x = static_cast<int64_t>(roi.x.samples);
  for (int32_t bin_y = 0; bin_y < bins_y; ++bin_y) {
    const Sample* here_y = y.samples + y.starts[bin_y];
    const int64_t count_y = y.starts[bin_y + 1] - y.starts[bin_y];
    for (int32_t bin_x = 0; bin_x < bins_x; ++bin_x) {
      const Sample* here_x = x.samples + x.starts[bin_x];
      const int64_t count_x = x.starts[bin_x + 1] - x.starts[bin_x];
      const bool some_outside = count_y < all_y || count_x < all_x;
      const int64_t bin = static_cast<int64_t>(bin_y) * bins_x + bin_x;
      int64_t c = 0;
      for (; c + kLanes <= channels; c += kLanes) {
        greatest_sample<Vector, T>(map + c, row_stride, stride, here_y, count_y, here_x, count_x, some_outside,
                                   best + bin * channels + c, winners + c);
      }
      for (; c < channels; ++c) {
        greatest_sample<float, T>(map + c, row_stride, stride, here_y, count_y, here_x, count_x, some_outside,
                                  best + bin * channels + c, winners + c);
      }
      visit(bin, here_y, here_x, count_x);
    }
  }
  return true;
}

struct Nothing {
  void operator()(int64_t, const Sample*, const Sample*, int64_t) const {}
};

template <typename T>
struct AddWinners {
  const T* upstream;  // from the region's first channel
  int64_t channels, stride, row_stride;
  int32_t first_row, end_row;
  const int32_t* winners;
  float* map;

  void operator()(int64_t bin, const Sample* ys, const Sample* xs, int64_t count_x) const {
    for (int64_t c = 0; c < channels; ++c) {
      if (winners[c] < 0) continue;
      const Sample& y = ys[winners[c] / count_x];
      const Sample& x = xs[winners[c] % count_x];
      const float value = to_float(upstream[bin * stride + c]);
      for (int side = 0; side < 2; ++side) {
        const int32_t row = side == 0 ? y.low : y.high;
        const float weight = side == 0 ? y.low_weight : y.high_weight;
        if (weight == 0.0f || row < first_row || row >= end_row) continue;
        float* pixels = map + row * row_stride + c;
        pixels[x.low * stride] += weight * x.low_weight * value;
        if (x.high_weight != 0.0f) pixels[x.high * stride] += weight * x.high_weight * value;
      }
    }
  }
};

template <typename T>
bool maximum_backward(const RoiAlign& problem, const Roi& roi, const T* features, const T* upstream,
                      const Region& region, float* map, Scratch* scratch) {
  int32_t first_row, end_row;
  pixels_read(roi.y, problem.bins_y, &first_row, &end_row);
  if (greatest(first_row, region.first_row) >= least(end_row, region.end_row)) return true;
  const int64_t channels = region.end_channel - region.first_channel, stride = problem.channels;
  const int64_t bins = static_cast<int64_t>(problem.bins_y) * problem.bins_x;
  auto* best = static_cast<float*>(scratch->block(kSums, sizeof(float) * channels * bins));
  auto* winners = static_cast<int32_t*>(scratch->block(kWinners, sizeof(int32_t) * channels));
  if (best == nullptr || winners == nullptr) return false;
  const AddWinners<T> add_winners{upstream,         channels,        stride,  roi.x.length * stride,
                                  region.first_row, region.end_row, winners, map};
  return maximum(problem, roi, features, channels, best, winners, scratch, add_winners);
}

// --- the kernels ---

template <typename T>
bool forward_of(const RoiAlign& problem, int64_t number, int64_t first, int64_t end, T* output, Scratch* scratch) {
  const Roi roi = roi_of(problem, number);
  const int64_t channels = end - first, bins = static_cast<int64_t>(problem.bins_y) * problem.bins_x;
  const keras_seg::Level& level = problem.levels[roi.level];
  const T* map = static_cast<const T*>(level.features) + first +
                 static_cast<int64_t>(roi.image) * level.height * level.width * problem.channels;
  auto* sums = static_cast<float*>(scratch->block(kSums, sizeof(float) * channels * bins));
  if (sums == nullptr) return false;
  if (problem.maximum) {
    auto* winners = static_cast<int32_t*>(scratch->block(kWinners, sizeof(int32_t) * channels));
    if (winners == nullptr || !maximum(problem, roi, map, channels, sums, winners, scratch, Nothing())) return false;
  } else if (!average_forward(problem, roi, map, channels, sums, scratch)) {
    return false;
  }
  T* to = output + number * bins * problem.channels + first;
  for (int64_t bin = 0; bin < bins; ++bin) convert_to(sums + bin * channels, to + bin * problem.channels, channels);
  return true;
}

template <typename T>
bool backward_of(const RoiAlign& problem, const T* upstream, const Region& region, float* gradient,
                 Scratch* scratch) {
  const keras_seg::Level& level = problem.levels[region.level];
  const int64_t stride = problem.channels, channels = region.end_channel - region.first_channel;
  const int64_t image = static_cast<int64_t>(region.image) * level.height * level.width * stride;
  float* map = gradient + image + region.first_channel;
  const T* features = static_cast<const T*>(level.features) + image + region.first_channel;
  for (int64_t pixel = static_cast<int64_t>(region.first_row) * level.width;
       pixel < static_cast<int64_t>(region.end_row) * level.width; ++pixel) {
    clear(map + pixel * stride, channels);
  }
  const int64_t bins = static_cast<int64_t>(problem.bins_y) * problem.bins_x;
  for (int64_t number = 0; number < problem.rois; ++number) {
    if (problem.box_levels[number] != region.level || problem.box_indices[number] != region.image) continue;
    const Roi roi = roi_of(problem, number);
    const T* from = upstream + number * bins * stride + region.first_channel;
    const bool done = problem.maximum ? maximum_backward(problem, roi, features, from, region, map, scratch)
                                      : average_backward(problem, roi, from, region, map, scratch);
    if (!done) return false;
  }
  return true;
}

bool forward(const RoiAlign& problem, int64_t roi, int64_t first, int64_t end, void* output, Scratch* scratch) {
  switch (problem.number) {
    case Number::kFloat:
      return forward_of(problem, roi, first, end, static_cast<float*>(output), scratch);
    case Number::kHalf:
      return forward_of(problem, roi, first, end, static_cast<Half*>(output), scratch);
    default:
      return forward_of(problem, roi, first, end, static_cast<BFloat16*>(output), scratch);
  }
}

bool backward(const RoiAlign& problem, const void* upstream, const Region& region, float* gradient,
              Scratch* scratch) {
  switch (problem.number) {
    case Number::kFloat:
      return backward_of(problem, static_cast<const float*>(upstream), region, gradient, scratch);
    case Number::kHalf:
      return backward_of(problem, static_cast<const Half*>(upstream), region, gradient, scratch);
    default:
      return backward_of(problem, static_cast<const BFloat16*>(upstream), region, gradient, scratch);
  }
}

void convert(Number number, const float* from, void* to, int64_t count) {
  switch (number) {
    case Number::kFloat:
      return convert_to(from, static_cast<float*>(to), count);
    case Number::kHalf:
      return convert_to(from, static_cast<Half*>(to), count);
    default:
      return convert_to(from, static_cast<BFloat16*>(to), count);
  }
}

#if defined(KERAS_SEG_AVX512)
#define KERAS_SEG_NAME "AVX-512"
#elif defined(KERAS_SEG_AVX2)
#define KERAS_SEG_NAME "AVX2"
#elif defined(__x86_64__)
#define KERAS_SEG_NAME "SSE2"
#elif defined(__aarch64__)
#define KERAS_SEG_NAME "NEON"
#else
#define KERAS_SEG_NAME "plain"
#endif

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {KERAS_SEG_NAME, forward, backward, convert};

}  // namespace KERAS_SEG_NAMESPACE
