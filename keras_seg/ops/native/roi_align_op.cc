// The TensorFlow operations KerasSegRoiAlign and KerasSegRoiAlignGrad: checks, memory and threads.
#if GOOGLE_CUDA
#define EIGEN_USE_GPU
#include "unsupported/Eigen/CXX11/Tensor"
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <string>
#include <vector>

#include "roi_align_cpu.h"
#if GOOGLE_CUDA
#include "roi_align_gpu.h"
#endif
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace keras_seg {
namespace {

using tensorflow::DataType;
using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::errors::ResourceExhausted;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// More samples a bin and axis are hardly meant.
constexpr int32_t kMostSamples = 4096;
// float32 still tells pixels apart, and numbers of samples fit 32 bits.
constexpr int64_t kLongestSide = 1 << 24, kMostPixels = 1 << 28;
// Rows of the gradient that one task owns: what stays in the caches while it goes through all RoIs.
constexpr int64_t kBandBytes = 4 << 20, kLeastBand = 8;
// Pieces of work a thread, where there is enough to do: one that ends late then matters less.
constexpr int64_t kPiecesPerThread = 4;
// Less work than this stays on the calling thread: multiplications and additions, roughly.
constexpr int64_t kSmallWork = 100000;

// --- shapes ---

Status features_shape(InferenceContext* c, int count, DimensionHandle* channels) {
  ShapeHandle all;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &all));
  DimensionHandle batch = c->Dim(all, 0);
  *channels = c->Dim(all, 3);
  for (int level = 1; level < count; ++level) {
    ShapeHandle shape;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(level), 4, &shape));
    TF_RETURN_IF_ERROR(c->Merge(batch, c->Dim(shape, 0), &batch));
    TF_RETURN_IF_ERROR(c->Merge(*channels, c->Dim(shape, 3), channels));
  }
  return tensorflow::OkStatus();
}

Status boxes_shape(InferenceContext* c, int first, DimensionHandle* rois) {
  ShapeHandle boxes;
  DimensionHandle four;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(first), 2, &boxes));
  TF_RETURN_IF_ERROR(c->WithValue(c->Dim(boxes, 1), 4, &four));
  *rois = c->Dim(boxes, 0);
  for (int i = 1; i < 3; ++i) {
    ShapeHandle vector;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(first + i), 1, &vector));
    TF_RETURN_IF_ERROR(c->Merge(*rois, c->Dim(vector, 0), rois));
  }
  return tensorflow::OkStatus();
}

Status pooled_shape(InferenceContext* c, int count, ShapeHandle* shape) {
  DimensionHandle channels, rois;
  TF_RETURN_IF_ERROR(features_shape(c, count, &channels));
  TF_RETURN_IF_ERROR(boxes_shape(c, count, &rois));
  int32_t height, width;
  TF_RETURN_IF_ERROR(c->GetAttr("output_height", &height));
  TF_RETURN_IF_ERROR(c->GetAttr("output_width", &width));
  *shape = c->MakeShape({rois, c->MakeDim(height), c->MakeDim(width), channels});
  return tensorflow::OkStatus();
}

#define KERAS_SEG_ROI_ALIGN_INPUTS \
  Input("features: levels * T").Input("boxes: float").Input("box_indices: int32").Input("box_levels: int32")

#define KERAS_SEG_ROI_ALIGN_ATTRIBUTES       \
  Attr("T: {half, bfloat16, float}")         \
      .Attr("levels: int >= 1")              \
      .Attr("scales: list(float)")           \
      .Attr("output_height: int >= 1")       \
      .Attr("output_width: int >= 1")        \
      .Attr("sampling_ratio: int >= 0")      \
      .Attr("aligned: bool")                 \
      .Attr("pool: {'average', 'max'}")      \
      .Attr("deterministic: bool = false")

REGISTER_OP("KerasSegRoiAlign")
    .KERAS_SEG_ROI_ALIGN_INPUTS.KERAS_SEG_ROI_ALIGN_ATTRIBUTES.Output("pooled: T")
    .SetShapeFn([](InferenceContext* c) {
      int32_t count;
      TF_RETURN_IF_ERROR(c->GetAttr("levels", &count));
      ShapeHandle shape;
      TF_RETURN_IF_ERROR(pooled_shape(c, count, &shape));
      c->set_output(0, shape);
      return tensorflow::OkStatus();
    })
    .Doc(R"doc(
RoIAlign (He et al. 2017) of each box on one of several feature maps.

features: a [B, H, W, C] for each level.
boxes: [N, 4] as (x1, y1, x2, y2), image pixels.
box_indices: [N], each box's image.
box_levels: [N], each box's place in `features`.
scales: of each level, feature pixels an image pixel.
pooled: [N, output_height, output_width, C], computed in float32.
)doc");

REGISTER_OP("KerasSegRoiAlignGrad")
    .KERAS_SEG_ROI_ALIGN_INPUTS.Input("upstream: T")
    .KERAS_SEG_ROI_ALIGN_ATTRIBUTES.Output("gradients: levels * T")
    .SetShapeFn([](InferenceContext* c) {
      int32_t count;
      TF_RETURN_IF_ERROR(c->GetAttr("levels", &count));
      ShapeHandle shape;
      TF_RETURN_IF_ERROR(pooled_shape(c, count, &shape));
      TF_RETURN_IF_ERROR(c->Merge(shape, c->input(count + 3), &shape));
      for (int level = 0; level < count; ++level) c->set_output(level, c->input(level));
      return tensorflow::OkStatus();
    })
    .Doc(R"doc(
The gradient of KerasSegRoiAlign with respect to its features.

upstream: that of its result.
gradients: of each level, of the features' shape; added up in float32.
)doc");

// --- what both operations do, on both devices ---

Number number_of(DataType type) {
  switch (type) {
    case tensorflow::DT_HALF:
      return Number::kHalf;
    case tensorflow::DT_BFLOAT16:
      return Number::kBFloat16;
    default:
      return Number::kFloat;
  }
}

class RoiAlignKernel : public OpKernel {
 public:
  explicit RoiAlignKernel(OpKernelConstruction* context) : OpKernel(context) {
    int32_t levels;
    DataType type;
    std::string pool;
    OP_REQUIRES_OK(context, context->GetAttr("levels", &levels));
    OP_REQUIRES_OK(context, context->GetAttr("T", &type));
    OP_REQUIRES_OK(context, context->GetAttr("scales", &scales_));
    OP_REQUIRES_OK(context, context->GetAttr("output_height", &problem_.bins_y));
    OP_REQUIRES_OK(context, context->GetAttr("output_width", &problem_.bins_x));
    OP_REQUIRES_OK(context, context->GetAttr("sampling_ratio", &problem_.sampling_ratio));
    OP_REQUIRES_OK(context, context->GetAttr("aligned", &problem_.aligned));
    OP_REQUIRES_OK(context, context->GetAttr("pool", &pool));
    OP_REQUIRES_OK(context, context->GetAttr("deterministic", &deterministic_));
    problem_.number = number_of(type);
    problem_.maximum = pool == "max";
    OP_REQUIRES(context, static_cast<int32_t>(scales_.size()) == levels,
                InvalidArgument(name(), ": ", levels, " feature maps and ", scales_.size(),
                                " scales, but each map needs its own"));
    for (float scale : scales_) {
      OP_REQUIRES(context, scale > 0 && std::isfinite(scale),
                  InvalidArgument(name(), ": scales must be positive, got ", scale));
    }
    OP_REQUIRES(context, problem_.sampling_ratio <= kMostSamples,
                InvalidArgument(name(), ": sampling_ratio must be at most ", kMostSamples, ", got ",
                                problem_.sampling_ratio));
  }

 protected:
  // Checked arguments: the problem, with pointers into the inputs, and its levels.
  Status read(OpKernelContext* context, RoiAlign* problem, std::vector<Level>* levels, int64_t* batch) const {
    OpInputList features;
    const Tensor *boxes, *box_indices, *box_levels;
    TF_RETURN_IF_ERROR(context->input_list("features", &features));
    TF_RETURN_IF_ERROR(context->input("boxes", &boxes));
    TF_RETURN_IF_ERROR(context->input("box_indices", &box_indices));
    TF_RETURN_IF_ERROR(context->input("box_levels", &box_levels));
    for (int i = 0; i < features.size(); ++i) {
      const TensorShape& shape = features[i].shape();
      if (shape.dims() != 4 || shape.num_elements() == 0) {
        return InvalidArgument(name(), ": features of level ", i, " must be [B, H, W, C] with no empty axis, got ",
                               shape.DebugString());
      }
      if (shape.dim_size(0) != features[0].dim_size(0) || shape.dim_size(3) != features[0].dim_size(3)) {
        return InvalidArgument(name(), ": levels 0 and ", i, " differ in batch or channels: ",
                               features[0].shape().DebugString(), " and ", shape.DebugString());
      }
      const int64_t height = shape.dim_size(1), width = shape.dim_size(2);
      if (height > kLongestSide || width > kLongestSide || height * width > kMostPixels) {
        return InvalidArgument(name(), ": features of level ", i, " have too many pixels: ", shape.DebugString());
      }
      levels->push_back(Level{features[i].tensor_data().data(), static_cast<int32_t>(height),
                              static_cast<int32_t>(width), scales_[i]});
    }
    if (boxes->dims() != 2 || boxes->dim_size(1) != 4) {
      return InvalidArgument(name(), ": boxes must be [N, 4], got ", boxes->shape().DebugString());
    }
    const int64_t rois = boxes->dim_size(0);
    for (const Tensor* each : {box_indices, box_levels}) {
      if (each->dims() != 1 || each->dim_size(0) != rois) {
        return InvalidArgument(name(), ": ", each == box_indices ? "box_indices" : "box_levels", " must be [", rois,
                               "], one for each box, got ", each->shape().DebugString());
      }
    }
    *problem = problem_;
    *batch = features[0].dim_size(0);
    problem->levels = levels->data();
    problem->channels = features[0].dim_size(3);
    problem->boxes = boxes->flat<float>().data();
    problem->box_indices = box_indices->flat<int32_t>().data();
    problem->box_levels = box_levels->flat<int32_t>().data();
    problem->rois = rois;
    return tensorflow::OkStatus();
  }

  Status output_shape(const RoiAlign& problem, TensorShape* shape) const {
    return TensorShape::BuildTensorShape({problem.rois, problem.bins_y, problem.bins_x, problem.channels}, shape);
  }

  Status check_upstream(const Tensor& upstream, const RoiAlign& problem) const {
    TensorShape expected;
    TF_RETURN_IF_ERROR(output_shape(problem, &expected));
    if (upstream.shape() == expected) return tensorflow::OkStatus();
    return InvalidArgument(name(), ": upstream must be ", expected.DebugString(), ", got ",
                           upstream.shape().DebugString());
  }

  // float32 memory for each level's gradient: the output itself, where that is float32.
  Status allocate_gradients(OpKernelContext* context, std::vector<Tensor>* sums, std::vector<float*>* pointers) const {
    OpInputList features;
    TF_RETURN_IF_ERROR(context->input_list("features", &features));
    for (int i = 0; i < features.size(); ++i) {
      Tensor* output;
      TF_RETURN_IF_ERROR(context->allocate_output(i, features[i].shape(), &output));
      Tensor sum;
      if (problem_.number == Number::kFloat) {
        sum = *output;
      } else {
        TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DT_FLOAT, features[i].shape(), &sum));
      }
      sums->push_back(sum);
      pointers->push_back(sums->back().flat<float>().data());
    }
    return tensorflow::OkStatus();
  }

  static void* data_of(Tensor* tensor) { return const_cast<char*>(tensor->tensor_data().data()); }

  RoiAlign problem_ = {};
  std::vector<float> scales_;
  bool deterministic_ = false;
};

// --- processor ---

int64_t pieces(int64_t whole, int64_t piece) { return (whole + piece - 1) / piece; }

// work(item, scratch) for each item, on all threads; the next free thread takes the next item. ResourceExhausted where
// one returns false.
template <typename Work>
Status in_parallel(OpKernelContext* context, int64_t items, bool small, const Work& work) {
  const auto& workers = *context->device()->tensorflow_cpu_worker_threads();
  const int64_t threads = small ? 1 : std::min<int64_t>(workers.num_threads, items);
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const auto worker = [&](int64_t, int64_t) {
    Scratch scratch;
    for (int64_t item = next++; item < items && !failed; item = next++) {
      if (!work(item, &scratch)) failed = true;
    }
  };
  if (threads > 1) {
    constexpr int64_t kMuch = 1000000000;  // cycles, so that each thread gets one worker
    tensorflow::Shard(static_cast<int>(threads), workers.workers, threads, kMuch, worker);
  } else {
    worker(0, 1);
  }
  if (failed) return ResourceExhausted("out of memory for the pixels that a box reads");
  return tensorflow::OkStatus();
}

class RoiAlignCpuKernel : public RoiAlignKernel {
 public:
  using RoiAlignKernel::RoiAlignKernel;

 protected:
  Status read_boxes(OpKernelContext* context, RoiAlign* problem, std::vector<Level>* levels, int64_t* batch) const {
    TF_RETURN_IF_ERROR(read(context, problem, levels, batch));
    for (int64_t i = 0; i < problem->rois; ++i) {
      const int32_t image = problem->box_indices[i], level = problem->box_levels[i];
      if (image < 0 || image >= *batch) {
        return InvalidArgument(name(), ": box_indices[", i, "] is ", image, ", but the features have the images 0 to ",
                               *batch - 1);
      }
      if (level < 0 || level >= static_cast<int64_t>(levels->size())) {
        return InvalidArgument(name(), ": box_levels[", i, "] is ", level, ", but the levels are 0 to ",
                               levels->size() - 1);
      }
    }
    return tensorflow::OkStatus();
  }

  static bool is_small(const RoiAlign& problem) {
    return problem.rois * problem.bins_y * problem.bins_x * problem.channels < kSmallWork / 8;
  }
};

class RoiAlignForward : public RoiAlignCpuKernel {
 public:
  using RoiAlignCpuKernel::RoiAlignCpuKernel;

  void Compute(OpKernelContext* context) override {
    RoiAlign problem;
    std::vector<Level> levels;
    int64_t batch;
    TensorShape shape;
    Tensor* output;
    OP_REQUIRES_OK(context, read_boxes(context, &problem, &levels, &batch));
    OP_REQUIRES_OK(context, output_shape(problem, &shape));
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &output));
    if (problem.rois == 0) return;
    const int64_t threads = context->device()->tensorflow_cpu_worker_threads()->num_threads;
    int64_t slice = kSlice;
    while (slice > kLeastSlice && problem.rois * pieces(problem.channels, slice) < kPiecesPerThread * threads) {
      slice /= 2;
    }
    const int64_t slices = pieces(problem.channels, slice);
    const std::vector<int64_t> order = from_top_to_bottom(problem);
    void* const to = data_of(output);
    const Kernels& kernels = best_kernels();
    const auto work = [&](int64_t item, Scratch* scratch) {
      const int64_t first = item / problem.rois * slice;
      return kernels.forward(problem, order[item % problem.rois], first, std::min(first + slice, problem.channels), to,
                             scratch);
    };
    OP_REQUIRES_OK(context, in_parallel(context, slices * problem.rois, is_small(problem), work));
  }

 private:
  // RoIs that follow each other read the same rows, which the caches then still have.
  static std::vector<int64_t> from_top_to_bottom(const RoiAlign& problem) {
    std::vector<std::array<int64_t, 4>> keys(problem.rois);
    for (int64_t i = 0; i < problem.rois; ++i) {
      const float top = problem.boxes[4 * i + 1];
      const int64_t pixel = top > 0 && top < 1e9f ? static_cast<int64_t>(top) : 0;  // NaN has no order
      keys[i] = {problem.box_levels[i], problem.box_indices[i], pixel, i};
    }
    std::sort(keys.begin(), keys.end());
    std::vector<int64_t> order(problem.rois);
    for (int64_t i = 0; i < problem.rois; ++i) order[i] = keys[i][3];
    return order;
  }
};

class RoiAlignBackward : public RoiAlignCpuKernel {
 public:
  using RoiAlignCpuKernel::RoiAlignCpuKernel;

  void Compute(OpKernelContext* context) override {
    RoiAlign problem;
    std::vector<Level> levels;
    int64_t batch;
    const Tensor* upstream;
    std::vector<Tensor> sums;
    std::vector<float*> gradients;
    OP_REQUIRES_OK(context, read_boxes(context, &problem, &levels, &batch));
    OP_REQUIRES_OK(context, context->input("upstream", &upstream));
    OP_REQUIRES_OK(context, check_upstream(*upstream, problem));
    OP_REQUIRES_OK(context, allocate_gradients(context, &sums, &gradients));
    // A task owns some rows and channels of one image, so that threads never meet, and adds up the RoIs in order, so
    // that the result does not depend on the number of threads.
    const int64_t threads = context->device()->tensorflow_cpu_worker_threads()->num_threads;
    const std::vector<Region> regions = divide_among(problem, levels, batch, threads);
    const void* const from = upstream->tensor_data().data();
    const Kernels& kernels = best_kernels();
    const auto work = [&](int64_t item, Scratch* scratch) {
      const Region& region = regions[item];
      return kernels.backward(problem, from, region, gradients[region.level], scratch);
    };
    int64_t pixels = 0;
    for (const Level& level : levels) pixels += static_cast<int64_t>(level.height) * level.width;
    const bool small = is_small(problem) && batch * pixels * problem.channels < kSmallWork;
    OP_REQUIRES_OK(context, in_parallel(context, regions.size(), small, work));
    if (problem.number == Number::kFloat) return;
    for (size_t level = 0; level < levels.size(); ++level) {
      constexpr int64_t kPiece = 1 << 16;
      const int64_t count = sums[level].NumElements();
      char* const to = static_cast<char*>(data_of(context->mutable_output(level)));
      const auto convert = [&](int64_t piece, Scratch*) {
        const int64_t first = piece * kPiece;
        kernels.convert(problem.number, gradients[level] + first, to + 2 * first, std::min(kPiece, count - first));
        return true;
      };
      OP_REQUIRES_OK(context, in_parallel(context, pieces(count, kPiece), small, convert));
    }
  }

 private:
  static std::vector<Region> divide_among(const RoiAlign& problem, const std::vector<Level>& levels, int64_t batch,
                                          int64_t threads) {
    int64_t slice = kSlice, rows = kMostPixels;
    std::vector<Region> regions = divide(problem, levels, batch, slice, rows);
    // More pieces for more threads: of fewer rows, then of fewer channels. The search for maxima is repeated in each.
    while (static_cast<int64_t>(regions.size()) < kPiecesPerThread * threads &&
           (rows > kLeastBand || slice > kLeastSlice)) {
      if (rows > kLeastBand) {
        rows = std::max(kLeastBand, std::min<int64_t>(rows, tallest(levels)) / 2);
      } else {
        slice /= 2;
      }
      regions = divide(problem, levels, batch, slice, rows);
    }
    return regions;
  }

  static int64_t tallest(const std::vector<Level>& levels) {
    int64_t height = 1;
    for (const Level& level : levels) height = std::max<int64_t>(height, level.height);
    return height;
  }

  static std::vector<Region> divide(const RoiAlign& problem, const std::vector<Level>& levels, int64_t batch,
                                    int64_t slice, int64_t most_rows) {
    std::vector<Region> regions;
    for (int32_t level = 0; level < static_cast<int32_t>(levels.size()); ++level) {
      const int32_t height = levels[level].height;
      const int64_t row_bytes = std::min(problem.channels, slice) * levels[level].width * sizeof(float);
      int64_t rows = std::min(most_rows, problem.maximum ? kMostPixels : std::max<int64_t>(1, kBandBytes / row_bytes));
      rows = std::min<int64_t>(rows, height);
      for (int64_t channel = 0; channel < problem.channels; channel += slice) {
        for (int32_t image = 0; image < batch; ++image) {
          for (int64_t row = 0; row < height; row += rows) {
            regions.push_back(Region{level, image, static_cast<int32_t>(row),
                                     static_cast<int32_t>(std::min<int64_t>(row + rows, height)), channel,
                                     std::min(channel + slice, problem.channels)});
          }
        }
      }
    }
    return regions;
  }
};

#define KERAS_SEG_REGISTER_TYPE(device, type, forward, backward)                                          \
  REGISTER_KERNEL_BUILDER(Name("KerasSegRoiAlign").Device(device).TypeConstraint<type>("T"), forward);    \
  REGISTER_KERNEL_BUILDER(Name("KerasSegRoiAlignGrad").Device(device).TypeConstraint<type>("T"), backward)

#define KERAS_SEG_REGISTER(device, forward, backward)                            \
  KERAS_SEG_REGISTER_TYPE(device, float, forward, backward);                     \
  KERAS_SEG_REGISTER_TYPE(device, Eigen::half, forward, backward);               \
  KERAS_SEG_REGISTER_TYPE(device, tensorflow::bfloat16, forward, backward)

KERAS_SEG_REGISTER(tensorflow::DEVICE_CPU, RoiAlignForward, RoiAlignBackward);

// --- GPU ---

#if GOOGLE_CUDA

class RoiAlignGpuKernel : public RoiAlignKernel {
 public:
  using RoiAlignKernel::RoiAlignKernel;

 protected:
  Status read_gpu(OpKernelContext* context, RoiAlign* problem, GpuRoiAlign* gpu) const {
    std::vector<Level> levels;
    int64_t batch;
    TF_RETURN_IF_ERROR(read(context, problem, &levels, &batch));
    if (levels.size() > kMostLevels) {
      return InvalidArgument(name(), ": at most ", kMostLevels, " levels on a GPU, got ", levels.size());
    }
    *gpu = GpuRoiAlign{};
    gpu->number = problem->number;
    std::copy(levels.begin(), levels.end(), gpu->levels);
    gpu->level_count = static_cast<int32_t>(levels.size());
    gpu->batch = static_cast<int32_t>(batch);
    gpu->channels = problem->channels;
    gpu->boxes = problem->boxes;
    gpu->box_indices = problem->box_indices;
    gpu->box_levels = problem->box_levels;
    gpu->rois = problem->rois;
    gpu->bins_y = problem->bins_y;
    gpu->bins_x = problem->bins_x;
    gpu->sampling_ratio = problem->sampling_ratio;
    gpu->aligned = problem->aligned;
    gpu->maximum = problem->maximum;
    return tensorflow::OkStatus();
  }

  static Status allocate_scratch(OpKernelContext* context, size_t bytes, Tensor* scratch) {
    return context->allocate_temp(tensorflow::DT_UINT8, TensorShape({static_cast<int64_t>(bytes)}), scratch);
  }

  static auto stream_of(OpKernelContext* context) { return context->eigen_device<Eigen::GpuDevice>().stream(); }

  Status queued(const char* error) const {
    if (error == nullptr) return tensorflow::OkStatus();
    return tensorflow::errors::Internal(name(), ": CUDA: ", error);
  }
};

class RoiAlignGpuForward : public RoiAlignGpuKernel {
 public:
  using RoiAlignGpuKernel::RoiAlignGpuKernel;

  void Compute(OpKernelContext* context) override {
    RoiAlign problem;
    GpuRoiAlign gpu;
    TensorShape shape;
    Tensor* output;
    Tensor scratch;
    OP_REQUIRES_OK(context, read_gpu(context, &problem, &gpu));
    OP_REQUIRES_OK(context, output_shape(problem, &shape));
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &output));
    if (problem.rois == 0) return;
    OP_REQUIRES_OK(context, allocate_scratch(context, gpu_forward_scratch(gpu), &scratch));
    OP_REQUIRES_OK(context, queued(gpu_forward(gpu, data_of(output), data_of(&scratch), stream_of(context))));
  }
};

class RoiAlignGpuBackward : public RoiAlignGpuKernel {
 public:
  using RoiAlignGpuKernel::RoiAlignGpuKernel;

  void Compute(OpKernelContext* context) override {
    RoiAlign problem;
    GpuRoiAlign gpu;
    const Tensor* upstream;
    Tensor scratch;
    std::vector<Tensor> sums;
    std::vector<float*> gradients;
    OP_REQUIRES_OK(context, read_gpu(context, &problem, &gpu));
    OP_REQUIRES_OK(context, context->input("upstream", &upstream));
    OP_REQUIRES_OK(context, check_upstream(*upstream, problem));
    OP_REQUIRES_OK(context, allocate_gradients(context, &sums, &gradients));
    OP_REQUIRES_OK(context, allocate_scratch(context, gpu_backward_scratch(gpu, deterministic_), &scratch));
    OP_REQUIRES_OK(context, queued(gpu_backward(gpu, upstream->tensor_data().data(), gradients.data(),
                                                data_of(&scratch), deterministic_, stream_of(context))));
    if (problem.number == Number::kFloat) return;
    for (size_t level = 0; level < sums.size(); ++level) {
      OP_REQUIRES_OK(context,
                     queued(gpu_convert(problem.number, gradients[level], data_of(context->mutable_output(level)),
                                        sums[level].NumElements(), stream_of(context))));
    }
  }
};

KERAS_SEG_REGISTER(tensorflow::DEVICE_GPU, RoiAlignGpuForward, RoiAlignGpuBackward);

#endif  // GOOGLE_CUDA

}  // namespace
}  // namespace keras_seg

// --- for library.py and doctor.py ---

extern "C" {

const char* keras_seg_instruction_set() { return keras_seg::best_kernels().name; }

int keras_seg_has_cuda() {
#if GOOGLE_CUDA
  return 1;
#else
  return 0;
#endif
}

// The digest of the sources, set by whoever compiles.
const char* keras_seg_sources() {
#ifdef KERAS_SEG_SOURCES
  return KERAS_SEG_SOURCES;
#else
  return "";
#endif
}
}
