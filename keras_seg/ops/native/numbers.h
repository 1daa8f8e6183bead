// float16 and bfloat16 as bits, converted without branches so that loops over them vectorise.
//
// Everything is in the namespace that the including file names: it is compiled for several instruction sets, and the
// linker must not merge the copies.
#ifndef KERAS_SEG_NUMBERS_H_
#define KERAS_SEG_NUMBERS_H_

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define KERAS_SEG_HD __host__ __device__ inline
#else
#define KERAS_SEG_HD inline
#endif

#ifndef KERAS_SEG_NAMESPACE
#define KERAS_SEG_NAMESPACE keras_seg_plain
#endif

namespace KERAS_SEG_NAMESPACE {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

KERAS_SEG_HD float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

KERAS_SEG_HD uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

KERAS_SEG_HD float to_float(float value) { return value; }

KERAS_SEG_HD float to_float(BFloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }

KERAS_SEG_HD float to_float(Half value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t normal = magnitude + (112u << 23);
  // Infinity and NaN keep the greatest exponent. Numbers below 2^-14 are a difference of normal float32 numbers, as
  // threads may treat float32's own tiny numbers as 0.
  const uint32_t special = normal + (112u << 23);
  const uint32_t tiny = to_bits(from_bits(magnitude + (113u << 23)) - from_bits(113u << 23));
  const uint32_t bits = magnitude >= (0x7c00u << 13) ? special : magnitude < (0x0400u << 13) ? tiny : normal;
  return from_bits(bits | sign);
}

template <typename T>
KERAS_SEG_HD T from_float(float value);

template <>
KERAS_SEG_HD float from_float<float>(float value) {
  return value;
}

// Rounded to nearest, halves to even.
template <>
KERAS_SEG_HD BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return BFloat16{static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}

template <>
KERAS_SEG_HD Half from_float<Half>(float value) {
  const uint32_t bits = to_bits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t tiny = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);  // the addition rounds at 2^-24
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t half = magnitude >= (143u << 23) ? special : magnitude < (113u << 23) ? tiny : normal;
  return Half{static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u))};
}

}  // namespace KERAS_SEG_NAMESPACE

#endif  // KERAS_SEG_NUMBERS_H_
