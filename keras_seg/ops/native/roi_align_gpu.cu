// RoIAlign on a GPU: a thread for each channel of a bin, or, in the deterministic gradient, of a pixel.
#define KERAS_SEG_NAMESPACE keras_seg_gpu

#include "roi_align_gpu.h"

#include <cuda_runtime.h>

#include "roi_align_elements.h"

namespace KERAS_SEG_NAMESPACE {
namespace {

using keras_seg::GpuRoiAlign;
using keras_seg::Number;

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;  // each thread then goes through several elements

int blocks_for(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<int>(blocks < 1 ? 1 : blocks < kMostBlocks ? blocks : kMostBlocks);
}

__device__ int64_t first_element() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ int64_t element_step() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// A RoI whose image or level does not exist gets level -1.
__global__ void place_rois(GpuRoiAlign problem, Roi* rois) {
  for (int64_t i = first_element(); i < problem.rois; i += element_step()) {
    const int32_t level = problem.box_levels[i], image = problem.box_indices[i];
    const bool exists = level >= 0 && level < problem.level_count && image >= 0 && image < problem.batch;
    const keras_seg::Level& map = problem.levels[exists ? level : 0];
    rois[i] = make_roi(problem.boxes + 4 * i, map.scale, image, exists ? level : -1, map.height, map.width,
                       problem.bins_y, problem.bins_x, problem.sampling_ratio, problem.aligned);
  }
}

// Of an element's number: its channel, bin and RoI.
struct Place {
  int64_t channel, roi;
  int32_t bin_y, bin_x;
};

__device__ Place place_of(const GpuRoiAlign& problem, int64_t element) {
  Place place;
  place.channel = element % problem.channels;
  const int64_t bin = element / problem.channels;
  place.bin_x = static_cast<int32_t>(bin % problem.bins_x);
  place.bin_y = static_cast<int32_t>(bin / problem.bins_x % problem.bins_y);
  place.roi = bin / problem.bins_x / problem.bins_y;
  return place;
}

__device__ int64_t image_offset(const GpuRoiAlign& problem, const Roi& roi) {
  return static_cast<int64_t>(roi.image) * roi.y.length * roi.x.length * problem.channels;
}

template <typename T>
__device__ const T* map_of(const GpuRoiAlign& problem, const Roi& roi) {
  return static_cast<const T*>(problem.levels[roi.level].features) + image_offset(problem, roi);
}

__device__ Shape shape_of(const GpuRoiAlign& problem) {
  return Shape{problem.channels, problem.bins_y, problem.bins_x};
}

__host__ __device__ int64_t output_size(const GpuRoiAlign& problem) {
  return problem.rois * problem.bins_y * problem.bins_x * problem.channels;
}

template <typename T>
__global__ void pool_bins(GpuRoiAlign problem, const Roi* rois, T* output) {
  for (int64_t i = first_element(); i < output_size(problem); i += element_step()) {
    const Place place = place_of(problem, i);
    const Roi& roi = rois[place.roi];
    float value;
    SampleNumber where;
    if (roi.level < 0) {
      value = from_bits(0x7fc00000u);
    } else if (problem.maximum) {
      value = maximum_of_bin(map_of<T>(problem, roi), roi, shape_of(problem), place.bin_y, place.bin_x, place.channel,
                             &where);
    } else {
      value = average_of_bin(map_of<T>(problem, roi), roi, shape_of(problem), place.bin_y, place.bin_x, place.channel);
    }
    output[i] = from_float<T>(value);
  }
}

struct Gradients {
  float* levels[keras_seg::kMostLevels];
};

struct AtomicAdd {
  float* map;
  __host__ __device__ void operator()(int64_t offset, float value) const {
#ifdef __CUDA_ARCH__
    atomicAdd(map + offset, value);
#endif
  }
};

template <typename T>
__global__ void spread_bins(GpuRoiAlign problem, const Roi* rois, const T* upstream, Gradients gradients) {
  for (int64_t i = first_element(); i < output_size(problem); i += element_step()) {
    const Place place = place_of(problem, i);
    const Roi& roi = rois[place.roi];
    if (roi.level < 0) continue;
    const float value = to_float(upstream[i]);
    const AtomicAdd add{gradients.levels[roi.level] + image_offset(problem, roi)};
    if (problem.maximum) {
      spread_maximum(map_of<T>(problem, roi), roi, shape_of(problem), place.bin_y, place.bin_x, place.channel, value,
                     add);
    } else {
      spread_average(roi, shape_of(problem), place.bin_y, place.bin_x, place.channel, value, add);
    }
  }
}

template <typename T>
__global__ void find_winners(GpuRoiAlign problem, const Roi* rois, SampleNumber* winners) {
  for (int64_t i = first_element(); i < output_size(problem); i += element_step()) {
    const Place place = place_of(problem, i);
    const Roi& roi = rois[place.roi];
    winners[i] = SampleNumber{-1, -1};
    if (roi.level < 0) continue;
    maximum_of_bin(map_of<T>(problem, roi), roi, shape_of(problem), place.bin_y, place.bin_x, place.channel,
                   winners + i);
  }
}

// Each thread owns a channel of a pixel and goes through the RoIs in their order.
template <typename T>
__global__ void gather_pixels(GpuRoiAlign problem, const Roi* rois, const SampleNumber* winners, const T* upstream,
                              int32_t level, float* gradient) {
  const keras_seg::Level& map = problem.levels[level];
  const int64_t pixels = static_cast<int64_t>(problem.batch) * map.height * map.width;
  const int64_t bins = static_cast<int64_t>(problem.bins_y) * problem.bins_x;
  const Shape shape = shape_of(problem);
  for (int64_t i = first_element(); i < pixels * problem.channels; i += element_step()) {
    const int64_t channel = i % problem.channels, pixel = i / problem.channels;
    const int32_t column = static_cast<int32_t>(pixel % map.width);
    const int32_t row = static_cast<int32_t>(pixel / map.width % map.height);
    const int32_t image = static_cast<int32_t>(pixel / map.width / map.height);
    float sum = 0.0f;
    for (int64_t number = 0; number < problem.rois; ++number) {
      const Roi& roi = rois[number];
      if (roi.level != level || roi.image != image || !reads(roi, shape, row, column)) continue;
      const T* from = upstream + number * bins * problem.channels;
      sum += problem.maximum
                 ? gather_maximum(from, winners + number * bins * problem.channels, roi, shape, row, column, channel)
                 : gather_average(from, roi, shape, row, column, channel);
    }
    gradient[i] = sum;
  }
}

template <typename T>
__global__ void convert_numbers(const float* from, T* to, int64_t count) {
  for (int64_t i = first_element(); i < count; i += element_step()) to[i] = from_float<T>(from[i]);
}

size_t rois_bytes(const GpuRoiAlign& problem) {
  return (sizeof(Roi) * problem.rois + 255) / 256 * 256;
}

const char* queued() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename T>
const char* forward_of(const GpuRoiAlign& problem, void* output, void* scratch, cudaStream_t stream) {
  Roi* rois = static_cast<Roi*>(scratch);
  place_rois<<<blocks_for(problem.rois), kThreads, 0, stream>>>(problem, rois);
  pool_bins<<<blocks_for(output_size(problem)), kThreads, 0, stream>>>(problem, rois, static_cast<T*>(output));
  return queued();
}

template <typename T>
const char* backward_of(const GpuRoiAlign& problem, const void* upstream, float* const* levels, void* scratch,
                        bool deterministic, cudaStream_t stream) {
  Roi* rois = static_cast<Roi*>(scratch);
  const T* from = static_cast<const T*>(upstream);
  const int bin_blocks = blocks_for(output_size(problem));
  if (problem.rois > 0) place_rois<<<blocks_for(problem.rois), kThreads, 0, stream>>>(problem, rois);
  SampleNumber* winners = reinterpret_cast<SampleNumber*>(static_cast<char*>(scratch) + rois_bytes(problem));
  if (deterministic && problem.maximum && problem.rois > 0) {
    find_winners<T><<<bin_blocks, kThreads, 0, stream>>>(problem, rois, winners);
  }
  Gradients gradients = {};
  for (int32_t level = 0; level < problem.level_count; ++level) {
    const keras_seg::Level& map = problem.levels[level];
    const int64_t count = static_cast<int64_t>(problem.batch) * map.height * map.width * problem.channels;
    gradients.levels[level] = levels[level];
    if (deterministic) {
      gather_pixels<<<blocks_for(count), kThreads, 0, stream>>>(problem, rois, winners, from, level, levels[level]);
    } else {
      const cudaError_t error = cudaMemsetAsync(levels[level], 0, sizeof(float) * count, stream);
      if (error != cudaSuccess) return cudaGetErrorString(error);
    }
  }
  if (!deterministic && problem.rois > 0) {
    spread_bins<<<bin_blocks, kThreads, 0, stream>>>(problem, rois, from, gradients);
  }
  return queued();
}

}  // namespace
}  // namespace KERAS_SEG_NAMESPACE

namespace keras_seg {

namespace gpu = KERAS_SEG_NAMESPACE;

size_t gpu_forward_scratch(const GpuRoiAlign& problem) { return gpu::rois_bytes(problem); }

size_t gpu_backward_scratch(const GpuRoiAlign& problem, bool deterministic) {
  const size_t winners = deterministic && problem.maximum ? sizeof(gpu::SampleNumber) * gpu::output_size(problem) : 0;
  return gpu::rois_bytes(problem) + winners;
}

const char* gpu_forward(const GpuRoiAlign& problem, void* output, void* scratch, CUstream_st* stream) {
  switch (problem.number) {
    case Number::kFloat:
      return gpu::forward_of<float>(problem, output, scratch, stream);
    case Number::kHalf:
      return gpu::forward_of<gpu::Half>(problem, output, scratch, stream);
    default:
      return gpu::forward_of<gpu::BFloat16>(problem, output, scratch, stream);
  }
}

const char* gpu_backward(const GpuRoiAlign& problem, const void* upstream, float* const* gradients, void* scratch,
                         bool deterministic, CUstream_st* stream) {
  switch (problem.number) {
    case Number::kFloat:
      return gpu::backward_of<float>(problem, upstream, gradients, scratch, deterministic, stream);
    case Number::kHalf:
      return gpu::backward_of<gpu::Half>(problem, upstream, gradients, scratch, deterministic, stream);
    default:
      return gpu::backward_of<gpu::BFloat16>(problem, upstream, gradients, scratch, deterministic, stream);
  }
}

const char* gpu_convert(Number number, const float* from, void* to, int64_t count, CUstream_st* stream) {
  const int blocks = gpu::blocks_for(count);
  if (number == Number::kHalf) {
    gpu::convert_numbers<<<blocks, gpu::kThreads, 0, stream>>>(from, static_cast<gpu::Half*>(to), count);
  } else if (number == Number::kBFloat16) {
    gpu::convert_numbers<<<blocks, gpu::kThreads, 0, stream>>>(from, static_cast<gpu::BFloat16*>(to), count);
  }
  return gpu::queued();
}

}  // namespace keras_seg
