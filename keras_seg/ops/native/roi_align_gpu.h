// RoIAlign on a GPU: functions that queue kernels on a stream. No TensorFlow in it, so that nvcc reads little.
#ifndef KERAS_SEG_ROI_ALIGN_GPU_H_
#define KERAS_SEG_ROI_ALIGN_GPU_H_

#include <stddef.h>
#include <stdint.h>

#include "roi_align_cpu.h"

struct CUstream_st;

namespace keras_seg {

constexpr int kMostLevels = 16;

// As `RoiAlign`, with pointers to the device's memory; by value, as kernels take it.
struct GpuRoiAlign {
  Number number;
  Level levels[kMostLevels];
  int32_t level_count, batch;
  int64_t channels;
  const float* boxes;
  const int32_t* box_indices;
  const int32_t* box_levels;
  int64_t rois;
  int32_t bins_y, bins_x, sampling_ratio;
  bool aligned, maximum;
};

// Bytes that the functions below need beside inputs and results.
size_t gpu_forward_scratch(const GpuRoiAlign&);
size_t gpu_backward_scratch(const GpuRoiAlign&, bool deterministic);

// All return null, or what CUDA has to say. A box whose image or level does not exist gives NaN, and no gradient.
const char* gpu_forward(const GpuRoiAlign&, void* output, void* scratch, CUstream_st*);
// gradients: float32 [batch, height, width, channels] of each level, set. deterministic: the same sums in each run.
const char* gpu_backward(const GpuRoiAlign&, const void* upstream, float* const* gradients, void* scratch,
                         bool deterministic, CUstream_st*);
// float32 to the features' type.
const char* gpu_convert(Number, const float* from, void* to, int64_t count, CUstream_st*);

}  // namespace keras_seg

#endif  // KERAS_SEG_ROI_ALIGN_GPU_H_
