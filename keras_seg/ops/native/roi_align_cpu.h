// RoIAlign on a processor: the kernels of each instruction set, and the choice between them. No TensorFlow in it.
#ifndef KERAS_SEG_ROI_ALIGN_CPU_H_
#define KERAS_SEG_ROI_ALIGN_CPU_H_

#include <stddef.h>
#include <stdint.h>

namespace keras_seg {

enum class Number { kFloat, kHalf, kBFloat16 };

// Channels that one piece of work covers: few enough for a RoI's sums to stay in a core's cache, and at best all of a
// pixel's, which lie side by side. Pieces of fewer serve many threads with little to do; they write to cache lines of
// their own.
constexpr int64_t kSlice = 256, kLeastSlice = 64;

struct Level {
  const void* features;  // [batch, height, width, channels]
  int32_t height, width;
  float scale;  // feature pixels an image pixel
};

// Arguments that were checked: indices within bounds, no axis empty.
struct RoiAlign {
  Number number;
  const Level* levels;
  int64_t channels;
  const float* boxes;          // [rois, 4]
  const int32_t* box_indices;  // [rois]
  const int32_t* box_levels;   // [rois]
  int64_t rois;
  int32_t bins_y, bins_x, sampling_ratio;
  bool aligned, maximum;
};

// Memory of one worker, kept from RoI to RoI. Its functions are compiled once, for any processor.
struct Scratch {
  static constexpr int kBlocks = 16;
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  // At least `bytes`, keeping what was there; null where memory has ended.
  void* block(int number, size_t bytes);
  void* blocks[kBlocks] = {};
  size_t sizes[kBlocks] = {};
};

// Rows [first_row, end_row) of one image on one level, channels [first_channel, end_channel).
struct Region {
  int32_t level, image, first_row, end_row;
  int64_t first_channel, end_channel;
};

struct Kernels {
  const char* name;
  // The pooled features of one RoI, channels [first, end), to output [rois, bins_y, bins_x, channels]. False where
  // memory has ended.
  bool (*forward)(const RoiAlign&, int64_t roi, int64_t first, int64_t end, void* output, Scratch*);
  // The gradient of all RoIs that read the region, added up in their order. gradient: float32, the level's
  // [batch, height, width, channels]; the region is set, nothing else is touched.
  bool (*backward)(const RoiAlign&, const void* upstream, const Region&, float* gradient, Scratch*);
  // float32 to the features' type.
  void (*convert)(Number, const float* from, void* to, int64_t count);
};

// From the plainest to the widest; those that this processor has not are null.
constexpr int kInstructionSets = 3;
const Kernels* kernels_of(int instruction_set);
// The widest that this processor has.
const Kernels& best_kernels();

}  // namespace keras_seg

#endif  // KERAS_SEG_ROI_ALIGN_CPU_H_
