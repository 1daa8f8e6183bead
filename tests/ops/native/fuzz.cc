// Random RoIs, odd ones among them: the processor's kernels in each instruction set against the bodies of the GPU's.
//
//     fuzz CASES SEED
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "roi_align_cpu.h"
#define KERAS_SEG_NAMESPACE keras_seg_elements
#include "roi_align_elements.h"

namespace {

using namespace keras_seg_elements;
using keras_seg::Number;
using keras_seg::Region;
using keras_seg::RoiAlign;

std::mt19937_64 generator;

int whole(int low, int high) { return low + static_cast<int>(generator() % (high - low + 1)); }
float real(float low, float high) {
  return low + (high - low) * static_cast<float>(generator() % 1000003) / 1000003.0f;
}

// Of exactly the size asked for, so that the sanitizer sees each step beyond it.
template <typename T>
using Array = std::unique_ptr<T[]>;

float odd_number() {
  switch (whole(0, 7)) {
    case 0: return NAN;
    case 1: return INFINITY;
    case 2: return -INFINITY;
    case 3: return 3e38f;
    case 4: return real(-2e9f, 2e9f);
    case 5: return real(-1e7f, 1e7f);
    case 6: return -0.0f;
    default: return static_cast<float>(whole(-2, 14));
  }
}

void random_box(float* box, float scale) {
  for (int i = 0; i < 2; ++i) {
    box[i] = real(-6, 16) / scale;
    box[i + 2] = box[i] + std::pow(real(0, 1), 2.0f) * 20 / scale;
  }
  switch (whole(0, 9)) {
    case 0: box[2] = box[0]; break;
    case 1: box[3] = box[1]; break;
    case 2: std::swap(box[0], box[2]); break;
    case 3: std::swap(box[0], box[2]), std::swap(box[1], box[3]); break;
    case 4: for (int i = 0; i < 4; ++i) box[i] = odd_number(); break;
    case 5: box[whole(0, 3)] = odd_number(); break;
    case 6: for (int i = 0; i < 4; ++i) box[i] = static_cast<float>(whole(-1, 13)) / scale; break;  // on the borders
    case 7: box[2] = box[0] + 1e-30f; break;
    case 8: box[0] = box[1] = -real(0, 1e5f), box[2] = box[3] = real(0, 1e5f); break;
    default: break;
  }
}

[[noreturn]] void fail(const RoiAlign& problem, const char* kernels, const char* what, float found, float expected) {
  std::printf("%s, %s: %.9g instead of %.9g; bins %dx%d, ratio %d, aligned %d, maximum %d, number %d, channels %d\n",
              kernels, what, found, expected, problem.bins_y, problem.bins_x, problem.sampling_ratio, problem.aligned,
              problem.maximum, static_cast<int>(problem.number), static_cast<int>(problem.channels));
  for (int64_t i = 0; i < problem.rois; ++i) {
    const float* box = problem.boxes + 4 * i;
    const keras_seg::Level& level = problem.levels[problem.box_levels[i]];
    std::printf("box %.9g %.9g %.9g %.9g on %dx%d at %.9g\n", box[0], box[1], box[2], box[3], level.height,
                level.width, level.scale);
  }
  std::exit(1);
}

void compare(const RoiAlign& problem, const char* kernels, const char* what, float found, float expected,
             float tolerance) {
  const bool same = std::isnan(expected) ? std::isnan(found)
                                         : std::fabs(found - expected) <= tolerance * (1 + std::fabs(expected));
  if (!same) fail(problem, kernels, what, found, expected);
}

struct Adder {
  float* map;
  void operator()(int64_t offset, float value) const { map[offset] += value; }
};

template <typename T>
void run_case(Number number, float rounding) {
  RoiAlign problem = {};
  problem.number = number;
  problem.channels = whole(0, 3) == 0 ? whole(65, 150) : whole(1, 40);
  problem.rois = whole(0, 5);
  problem.bins_y = whole(1, 4);
  problem.bins_x = whole(1, 4);
  problem.sampling_ratio = whole(0, 9) == 0 ? whole(15, 40) : whole(0, 3);
  problem.aligned = whole(0, 1);
  problem.maximum = whole(0, 1);
  const int batch = whole(1, 2), level_count = whole(1, 3);
  const int64_t channels = problem.channels, bins = problem.bins_y * problem.bins_x;

  std::vector<keras_seg::Level> levels;
  std::vector<Array<T>> features;
  std::vector<int64_t> sizes;
  for (int level = 0; level < level_count; ++level) {
    const int height = whole(1, 12), width = whole(1, 12);
    sizes.push_back(int64_t{batch} * height * width * channels);
    features.emplace_back(new T[sizes.back()]);
    for (int64_t i = 0; i < sizes.back(); ++i) features.back()[i] = from_float<T>(real(-1, 1));
    const float scales[] = {1.0f, 0.25f, 0.3f, 1.0f / 64};
    levels.push_back({features.back().get(), height, width, scales[whole(0, 3)]});
  }
  Array<float> boxes(new float[4 * problem.rois]);
  Array<int32_t> images(new int32_t[problem.rois]), places(new int32_t[problem.rois]);
  for (int64_t i = 0; i < problem.rois; ++i) {
    images[i] = whole(0, batch - 1);
    places[i] = whole(0, level_count - 1);
    random_box(boxes.get() + 4 * i, levels[places[i]].scale);
  }
  problem.levels = levels.data();
  problem.boxes = boxes.get();
  problem.box_indices = images.get();
  problem.box_levels = places.get();

  // by the elements
  const Shape shape{channels, problem.bins_y, problem.bins_x};
  const int64_t count = problem.rois * bins * channels;
  Array<float> expected(new float[count]);
  Array<SampleNumber> winners(new SampleNumber[count]);
  Array<T> upstream(new T[count]);
  std::vector<std::vector<float>> spread;
  for (int64_t size : sizes) spread.emplace_back(size);
  std::vector<Roi> rois;
  for (int64_t r = 0; r < problem.rois; ++r) {
    const keras_seg::Level& level = levels[places[r]];
    rois.push_back(make_roi(boxes.get() + 4 * r, level.scale, images[r], places[r], level.height, level.width,
                            problem.bins_y, problem.bins_x, problem.sampling_ratio, problem.aligned));
    const int64_t image = int64_t{images[r]} * level.height * level.width * channels;
    const T* map = features[places[r]].get() + image;
    const Adder add{spread[places[r]].data() + image};
    for (int64_t i = 0; i < bins * channels; ++i) {
      const int bin_y = i / channels / problem.bins_x, bin_x = i / channels % problem.bins_x, c = i % channels;
      const int64_t place = r * bins * channels + i;
      upstream[place] = from_float<T>(real(-1, 1));
      const float value = to_float(upstream[place]);
      if (problem.maximum) {
        expected[place] = maximum_of_bin(map, rois[r], shape, bin_y, bin_x, c, &winners[place]);
        spread_maximum(map, rois[r], shape, bin_y, bin_x, c, value, add);
      } else {
        expected[place] = average_of_bin(map, rois[r], shape, bin_y, bin_x, c);
        spread_average(rois[r], shape, bin_y, bin_x, c, value, add);
      }
    }
  }
  for (int level = 0; level < level_count; ++level) {
    for (int64_t i = 0; i < sizes[level]; ++i) {
      const int64_t pixel = i / channels, c = i % channels;
      const int column = pixel % levels[level].width, row = pixel / levels[level].width % levels[level].height;
      const int image = pixel / levels[level].width / levels[level].height;
      float sum = 0;
      for (int64_t r = 0; r < problem.rois; ++r) {
        if (rois[r].level != level || rois[r].image != image || !reads(rois[r], shape, row, column)) continue;
        const int64_t start = r * bins * channels;
        sum += problem.maximum
                   ? gather_maximum(upstream.get() + start, winners.get() + start, rois[r], shape, row, column, c)
                   : gather_average(upstream.get() + start, rois[r], shape, row, column, c);
      }
      compare(problem, "elements", "gathered gradient", sum, spread[level][i], 1e-4f);
    }
  }

  // by the kernels
  for (int set = 0; set < keras_seg::kInstructionSets; ++set) {
    const keras_seg::Kernels* kernels = keras_seg::kernels_of(set);
    if (kernels == nullptr) continue;
    keras_seg::Scratch scratch;
    const int64_t slice = whole(0, 1) ? keras_seg::kSlice : keras_seg::kLeastSlice;
    Array<T> output(new T[count]);
    for (int64_t r = 0; r < problem.rois; ++r) {
      for (int64_t c = 0; c < channels; c += slice) {
        const int64_t end = std::min(c + slice, channels);
        if (!kernels->forward(problem, r, c, end, output.get(), &scratch)) fail(problem, kernels->name, "memory", 0, 0);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      compare(problem, kernels->name, "output", to_float(output[i]), expected[i], rounding);
    }
    for (int level = 0; level < level_count; ++level) {
      Array<float> gradient(new float[sizes[level]]);
      for (int64_t i = 0; i < sizes[level]; ++i) gradient[i] = NAN;  // each must be set
      const int rows = whole(1, levels[level].height);
      for (int64_t c = 0; c < channels; c += slice) {
        for (int image = 0; image < batch; ++image) {
          for (int row = 0; row < levels[level].height; row += rows) {
            const Region region{level, image, row, std::min(row + rows, levels[level].height), c,
                                std::min(c + slice, channels)};
            if (!kernels->backward(problem, upstream.get(), region, gradient.get(), &scratch)) {
              fail(problem, kernels->name, "memory", 0, 0);
            }
          }
        }
      }
      for (int64_t i = 0; i < sizes[level]; ++i) {
        compare(problem, kernels->name, "gradient", gradient[i], spread[level][i], 1e-4f);
      }
    }
  }
}

// All 16-bit numbers, and numbers around the halves between them, in each instruction set.
template <typename T>
void check_numbers(Number number) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    T value;
    value.bits = static_cast<uint16_t>(bits);
    const float exact = to_float(value);
    const T back = from_float<T>(exact);
    const bool same = std::isnan(exact) ? std::isnan(to_float(back)) : back.bits == value.bits;
    if (!same) {
      std::printf("number %u of type %d comes back as %u\n", bits, static_cast<int>(number), back.bits);
      std::exit(1);
    }
    T next;
    next.bits = static_cast<uint16_t>(bits + 1);
    const float above = to_float(next);
    if (!std::isfinite(exact) || !std::isfinite(above) || (bits & 0x7fffu) == 0x7fffu) continue;
    const float middle = exact + (above - exact) / 2;  // exact in float32
    const float near[3] = {std::nextafter(middle, exact), middle, std::nextafter(middle, above)};
    const uint32_t rounded[3] = {bits, bits + (bits & 1), bits + 1};
    for (int i = 0; i < 3; ++i) {
      if (from_float<T>(near[i]).bits == rounded[i]) continue;
      std::printf("%.9g is rounded to %u, not to %u\n", near[i], from_float<T>(near[i]).bits, rounded[i]), std::exit(1);
    }
    for (int set = 0; set < keras_seg::kInstructionSets; ++set) {
      const keras_seg::Kernels* kernels = keras_seg::kernels_of(set);
      if (kernels == nullptr || bits % 16 != 0) continue;
      float values[17];
      T converted[17];
      for (int i = 0; i < 17; ++i) values[i] = i < 3 ? near[i] : exact;
      kernels->convert(number, values, converted, 17);
      for (int i = 0; i < 17; ++i) {
        if (converted[i].bits == (i < 3 ? rounded[i] : bits)) continue;
        std::printf("%s converts %.9g to %u\n", kernels->name, values[i], converted[i].bits), std::exit(1);
      }
    }
  }
}

}  // namespace

int main(int, char** arguments) {
  const int cases = std::atoi(arguments[1]);
  generator.seed(std::atoi(arguments[2]));
  check_numbers<Half>(Number::kHalf);
  check_numbers<BFloat16>(Number::kBFloat16);
  for (int i = 0; i < cases; ++i) {
    run_case<float>(Number::kFloat, 1e-5f);
    if (i % 3 == 0) run_case<Half>(Number::kHalf, 1.0f / 1024);
    if (i % 3 == 1) run_case<BFloat16>(Number::kBFloat16, 1.0f / 128);
  }
  for (int set = 0; set < keras_seg::kInstructionSets; ++set) {
    if (const keras_seg::Kernels* kernels = keras_seg::kernels_of(set)) std::printf("%s\n", kernels->name);
  }
  return 0;
}
