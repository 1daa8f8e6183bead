// An RGB image to another size by Pillow's bilinear filter, to the bit, mirrored and padded on the way.
//
// Pillow resamples the width first, rounds to whole grey values, and then the height; weights are whole numbers of
// kBits bits after the point (Resample.c: precompute_coeffs, normalize_coeffs_8bpc). Here rows whose width is done are
// kept only as long as a row of the result needs them, so that they stay in a core's cache. Two taps are multiplied and
// added at once, as 16-bit numbers: the upper bits of their weights, and the lower ones.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace {

constexpr int kBits = 22, kLowBits = 8, kChannels = 3;
constexpr int kBytes = 16;  // that the height is resampled of at once; as many may be read beyond a row
constexpr int32_t kHalf = 1 << (kBits - 1);

// --- vectors: of x86-64's baseline, else by loops that a compiler understands ---

#ifdef __SSE2__
typedef __m128i Vector;
inline Vector load(const uint8_t* from) { return _mm_loadu_si128((const __m128i*)from); }
inline Vector load_pixel(const uint8_t* from) {
  int32_t bytes;
  memcpy(&bytes, from, 4);
  return _mm_cvtsi32_si128(bytes);
}
inline Vector repeat(int32_t value) { return _mm_set1_epi32(value); }
// The bytes of a and b by turns, as 16-bit numbers: the `eighth` eight of them.
template <int eighth>
inline Vector pairs(Vector a, Vector b) {
  const Vector bytes = eighth < 2 ? _mm_unpacklo_epi8(a, b) : _mm_unpackhi_epi8(a, b);
  return eighth % 2 == 0 ? _mm_unpacklo_epi8(bytes, _mm_setzero_si128())
                         : _mm_unpackhi_epi8(bytes, _mm_setzero_si128());
}
// sum + the pairs' products with the weights' upper and lower bits.
inline Vector add(Vector sum, Vector pixels, Vector upper, Vector lower) {
  const Vector high = _mm_slli_epi32(_mm_madd_epi16(pixels, upper), kLowBits);
  return _mm_add_epi32(_mm_add_epi32(sum, high), _mm_madd_epi16(pixels, lower));
}
inline Vector rounded(Vector a, Vector b) {
  return _mm_packs_epi32(_mm_srai_epi32(a, kBits), _mm_srai_epi32(b, kBits));
}
inline void store(Vector a, Vector b, Vector c, Vector d, uint8_t* to) {
  _mm_storeu_si128((__m128i*)to, _mm_packus_epi16(rounded(a, b), rounded(c, d)));
}
inline void store_pixel(Vector a, uint8_t* to) {
  const Vector words = rounded(a, a);
  const int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
  memcpy(to, &bytes, 4);
}
#else
struct Vector {
  union {
    uint8_t bytes[16];
    int16_t words[8];
    int32_t sums[4];
  };
};
inline Vector load(const uint8_t* from) {
  Vector vector;
  memcpy(vector.bytes, from, 16);
  return vector;
}
inline Vector load_pixel(const uint8_t* from) {
  Vector vector = {};
  memcpy(vector.bytes, from, 4);
  return vector;
}
inline Vector repeat(int32_t value) {
  Vector vector;
  for (int32_t& sum : vector.sums) sum = value;
  return vector;
}
template <int eighth>
inline Vector pairs(Vector a, Vector b) {
  Vector vector;
  for (int k = 0; k < 8; ++k) vector.words[k] = (k % 2 ? b : a).bytes[4 * eighth + k / 2];
  return vector;
}
inline Vector add(Vector sum, Vector pixels, Vector upper, Vector lower) {
  for (int k = 0; k < 8; ++k) {
    sum.sums[k / 2] += pixels.words[k] * (upper.words[k] * (1 << kLowBits) + lower.words[k]);
  }
  return sum;
}
inline void store_pixel(Vector a, uint8_t* to) {
  for (int k = 0; k < 4; ++k) to[k] = (uint8_t)(a.sums[k] >> kBits);
}
inline void store(Vector a, Vector b, Vector c, Vector d, uint8_t* to) {
  const Vector all[] = {a, b, c, d};
  for (int k = 0; k < 4; ++k) store_pixel(all[k], to + 4 * k);
}
#endif

// --- which old places make up a new one ---

// Two weights that lie side by side, as 16-bit numbers.
struct Pair {
  int32_t upper, lower;
};

struct Taps {
  int64_t most = 0;          // pairs
  int32_t* first = nullptr;  // [length], of the old places that count
  int32_t* count = nullptr;  // [length], pairs; the last one's second place may be one too many, and weighs nothing
  Pair* weights = nullptr;   // [length, most]
  ~Taps() {
    free(first);
    free(count);
    free(weights);
  }
  bool fill(int64_t old_length, int64_t length);
};

bool Taps::fill(int64_t old_length, int64_t length) {
  const double scale = (double)old_length / (double)length, support = scale < 1 ? 1 : scale, shrink = 1.0 / support;
  most = (int64_t)ceil(support) + 1;
  first = (int32_t*)malloc(length * sizeof(int32_t));
  count = (int32_t*)malloc(length * sizeof(int32_t));
  weights = (Pair*)malloc(length * most * sizeof(Pair));
  double* const shares = (double*)malloc(2 * most * sizeof(double));
  const bool memory = first && count && weights && shares;
  for (int64_t place = 0; memory && place < length; ++place) {
    const double centre = ((double)place + 0.5) * scale;
    int64_t low = (int64_t)(centre - support + 0.5), high = (int64_t)(centre + support + 0.5);
    if (low < 0) low = 0;
    if (high > old_length) high = old_length;
    double sum = 0;
    for (int64_t tap = 0; tap < high - low; ++tap) {
      const double distance = fabs(((double)(tap + low) - centre + 0.5) * shrink);
      shares[tap] = distance < 1 ? 1 - distance : 0;
      sum += shares[tap];
    }
    first[place] = (int32_t)low;
    count[place] = (int32_t)((high - low + 1) / 2);
    for (int64_t pair = 0; pair < count[place]; ++pair) {
      uint32_t upper = 0, lower = 0;
      for (int64_t side = 0; side < 2; ++side) {
        const int64_t tap = 2 * pair + side;
        const double share = tap >= high - low ? 0 : sum != 0 ? shares[tap] / sum : shares[tap];
        const uint32_t weight = (uint32_t)(0.5 + share * (1 << kBits));
        upper |= (weight >> kLowBits) << (16 * side);
        lower |= (weight & ((1 << kLowBits) - 1)) << (16 * side);
      }
      weights[place * most + pair] = {(int32_t)upper, (int32_t)lower};
    }
  }
  free(shares);
  return memory;
}

// --- rows ---

struct Work {
  Taps across, down;
  uint8_t* row = nullptr;           // an old one, with space behind
  uint8_t* ring = nullptr;          // rows whose width is done, the newest `kept`
  const uint8_t** lines = nullptr;  // those of them that make up a row of the result
  int64_t ring_bytes = 0, kept = 0;
  ~Work() {
    free(row);
    free(ring);
    free(lines);
  }
};

// result: with space for another byte, which is written.
void resample_width(const Taps& taps, const uint8_t* row, int64_t length, bool mirror, uint8_t* result) {
  for (int64_t place = 0; place < length; ++place) {
    const int64_t x = mirror ? length - 1 - place : place;
    const uint8_t* from = row + kChannels * taps.first[x];
    const Pair* weights = taps.weights + x * taps.most;
    Vector sum = repeat(kHalf);
    for (int32_t pair = 0; pair < taps.count[x]; ++pair, from += 2 * kChannels) {
      const Vector pixels = pairs<0>(load_pixel(from), load_pixel(from + kChannels));
      sum = add(sum, pixels, repeat(weights[pair].upper), repeat(weights[pair].lower));
    }
    store_pixel(sum, result + kChannels * place);  // its fourth byte is overwritten by the next
  }
}

// lines: with kBytes behind them.
void resample_height(const Pair* weights, int32_t count, const uint8_t* const* lines, int64_t bytes, uint8_t* result) {
  for (int64_t place = 0; place < bytes; place += kBytes) {
    Vector a = repeat(kHalf), b = a, c = a, d = a;
    for (int32_t pair = 0; pair < count; ++pair) {
      const Vector one = load(lines[2 * pair] + place), other = load(lines[2 * pair + 1] + place);
      const Vector upper = repeat(weights[pair].upper), lower = repeat(weights[pair].lower);
      a = add(a, pairs<0>(one, other), upper, lower);
      b = add(b, pairs<1>(one, other), upper, lower);
      c = add(c, pairs<2>(one, other), upper, lower);
      d = add(d, pairs<3>(one, other), upper, lower);
    }
    if (place + kBytes <= bytes) {
      store(a, b, c, d, result + place);
    } else {
      uint8_t last[kBytes];
      store(a, b, c, d, last);
      memcpy(result + place, last, bytes - place);
    }
  }
}

}  // namespace

// pixels: [height, width, 3]; output: [rows, columns, 3], zero beyond the new size, which must fit; no side is empty.
// False where memory has ended.
extern "C" bool keras_seg_resize(const uint8_t* pixels, int64_t height, int64_t width, int64_t new_height,
                                 int64_t new_width, bool mirror, uint8_t* output, int64_t rows, int64_t columns) {
  Work work;
  if (!work.across.fill(width, new_width) || !work.down.fill(height, new_height)) return false;
  const int64_t old_bytes = kChannels * width, bytes = kChannels * new_width, all = kChannels * columns;
  work.ring_bytes = bytes + kBytes;
  work.kept = 2 * work.down.most;
  work.row = (uint8_t*)calloc(old_bytes + 2 * kBytes, 1);
  work.ring = (uint8_t*)calloc(work.kept, work.ring_bytes);
  work.lines = (const uint8_t**)malloc(work.kept * sizeof(uint8_t*));
  if (!work.row || !work.ring || !work.lines) return false;
  int64_t done = 0;
  for (int64_t y = 0; y < new_height; ++y) {
    const int64_t first = work.down.first[y], taps = 2 * (int64_t)work.down.count[y];
    const int64_t end = first + taps < height ? first + taps : height;
    for (done = done < first ? first : done; done < end; ++done) {
      memcpy(work.row, pixels + old_bytes * done, old_bytes);
      resample_width(work.across, work.row, new_width, mirror, work.ring + done % work.kept * work.ring_bytes);
    }
    for (int64_t tap = 0; tap < taps; ++tap) work.lines[tap] = work.ring + (first + tap) % work.kept * work.ring_bytes;
    uint8_t* const result = output + all * y;
    resample_height(work.down.weights + y * work.down.most, work.down.count[y], work.lines, bytes, result);
    memset(result + bytes, 0, all - bytes);
  }
  memset(output + all * new_height, 0, all * (rows - new_height));
  return true;
}
