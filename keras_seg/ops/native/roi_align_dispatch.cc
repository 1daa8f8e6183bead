// The choice of an instruction set, and scratch memory: compiled for any processor.
#include <stdlib.h>

#include "roi_align_cpu.h"

namespace keras_seg_plain {
extern const keras_seg::Kernels kKernels;
}
#ifdef KERAS_SEG_X86
namespace keras_seg_avx2 {
extern const keras_seg::Kernels kKernels;
}
namespace keras_seg_avx512 {
extern const keras_seg::Kernels kKernels;
}
#endif

namespace keras_seg {

Scratch::~Scratch() {
  for (void* block : blocks) free(block);
}

void* Scratch::block(int number, size_t bytes) {
  if (bytes > sizes[number] || blocks[number] == nullptr) {
    const size_t size = bytes + bytes / 2 + 64;
    void* grown = realloc(blocks[number], size);
    if (grown == nullptr) return nullptr;
    blocks[number] = grown;
    sizes[number] = size;
  }
  return blocks[number];
}

const Kernels* kernels_of(int instruction_set) {
  if (instruction_set == 0) return &keras_seg_plain::kKernels;
#ifdef KERAS_SEG_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (instruction_set == 1 && avx2) return &keras_seg_avx2::kKernels;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (instruction_set == 2 && avx512) return &keras_seg_avx512::kKernels;
#endif
  return nullptr;
}

const Kernels& best_kernels() {
  static const Kernels* const best = [] {
    const Kernels* found = nullptr;
    for (int set = 0; set < kInstructionSets; ++set) {
      if (const Kernels* kernels = kernels_of(set)) found = kernels;
    }
    return found;
  }();
  return *best;
}

}  // namespace keras_seg
