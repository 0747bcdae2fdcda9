// Vectors of floats as GCC and Clang know them: AVX-512, AVX2, SSE and NEON from one source.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(WKV7_LANES)  // another width than the processor's own: for tests
constexpr int kLanes = WKV7_LANES;
#elif defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // SSE, NEON
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef float VecLoose __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t VecInt __attribute__((vector_size(4 * kLanes)));

inline Vec load(const float* p) { return *reinterpret_cast<const VecLoose*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<VecLoose*>(p) = x; }
inline Vec spread(float x) { return Vec{} + x; }

// Writes past the caches, to a whole vector's boundary: for what will not be read before the caches have turned over.
inline void stream(float* p, Vec x) {
#if defined(WKV7_LANES)
  store(p, x);
#elif defined(__clang__)
  __builtin_nontemporal_store(x, reinterpret_cast<Vec*>(p));
#elif defined(__AVX512F__)
  __builtin_ia32_movntps512(p, x);
#elif defined(__AVX__)
  __builtin_ia32_movntps256(p, x);
#elif defined(__SSE__)
  __builtin_ia32_movntps(p, x);
#else
  store(p, x);
#endif
}

// Makes streamed writes visible to other threads.
inline void finish_streams() {
#if defined(__SSE__)
  __builtin_ia32_sfence();
#endif
}

// Keeps a value in a register: GCC would rather load it again for each use, and loads are what is scarce.
#if defined(WKV7_LANES)
#define KEEP(x) (void)(x)
#elif defined(__x86_64__)
#define KEEP(x) asm("" : "+x"(x))
#elif defined(__aarch64__)
#define KEEP(x) asm("" : "+w"(x))
#else
#define KEEP(x) (void)(x)
#endif

inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// e^x by range reduction and a degree-5 polynomial (Cephes' expf coefficients); |x| <= 87.
inline Vec exp(Vec x) {
  const Vec magic = spread(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec shifted = x * 1.44269504088896341f + magic;
  VecInt exponent = reinterpret_cast<VecInt>(shifted) << 23;
  Vec n = shifted - magic;
  Vec f = x - n * 0.693359375f;
  f -= n * -2.12194440e-4f;
  Vec p = 1.9875691500e-4f * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * (f * f) + f + 1.0f;
  return reinterpret_cast<Vec>(reinterpret_cast<VecInt>(p) + exponent);
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_SHUFFLE 1
#endif
#endif

#ifdef HAS_SHUFFLE
// Lane i of x and y zipped by runs of `kRun` lanes within each group of `kGroup`: the lower half's runs, or the upper's.
template <int kRun, int kGroup, bool kUpper, std::size_t... kLane>
inline Vec zip(Vec x, Vec y, std::index_sequence<kLane...>) {
  constexpr auto from = [](int lane) {
    const int place = lane % kGroup, run = place / kRun;
    const int source = lane / kGroup * kGroup + (kUpper ? kGroup / 2 : 0) + run / 2 * kRun + place % kRun;
    return source + run % 2 * kLanes;
  };
  return __builtin_shufflevector(x, y, from(int(kLane))...);
}

template <int kRun, int kGroup>
inline void zip_rows(Vec* x, int distance) {
  constexpr auto lanes = std::make_index_sequence<kLanes>{};
  for (int i = 0; i < kLanes; i++)
    if (!(i & distance)) {
      const Vec one = x[i], other = x[i + distance];
      x[i] = zip<kRun, kGroup, false>(one, other, lanes);
      x[i + distance] = zip<kRun, kGroup, true>(one, other, lanes);
    }
}

// A square of kLanes x kLanes: 4 x 4 blocks are turned within their 128 bits, where shuffles are cheap, then swapped.
inline void transpose_square(const float* in, int64_t ldi, float* out, int64_t ldo) {
  Vec x[kLanes];
  for (int i = 0; i < kLanes; i++) x[i] = load(in + i * ldi);
  zip_rows<1, 4>(x, 2);
  zip_rows<1, 4>(x, 1);
  if constexpr (kLanes >= 8) zip_rows<4, 8>(x, 4);
  if constexpr (kLanes >= 16) zip_rows<8, 16>(x, 8);
  for (int i = 0; i < kLanes; i++) store(out + i * ldo, x[i]);
}
#else
inline void transpose_square(const float* in, int64_t ldi, float* out, int64_t ldo) {
  for (int i = 0; i < kLanes; i++)
    for (int j = 0; j < kLanes; j++) out[j * ldo + i] = in[i * ldi + j];
}
#endif

// out (columns x rows, ldo) = transpose of in (rows x columns, ldi).
inline void transpose(const float* in, int64_t ldi, int64_t rows, int64_t columns, float* out, int64_t ldo) {
  const int64_t whole_rows = rows / kLanes * kLanes, whole_columns = columns / kLanes * kLanes;
  for (int64_t i = 0; i < whole_rows; i += kLanes)
    for (int64_t j = 0; j < whole_columns; j += kLanes) transpose_square(in + i * ldi + j, ldi, out + j * ldo + i, ldo);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; j++) out[j * ldo + i] = in[i * ldi + j];
}
