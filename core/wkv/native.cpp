// WKV-7 on a CPU: forward and backward, one head per work item, vector lanes over the value dimension.
//
// Forward: the recurrence itself, in coordinates scaled to the start of a block of 16 steps. With G the sum of
// log_w since the block's start and S~ = S e^-G (per key), the decay disappears from the inner loop:
//     S~ += sa b~' + v k~',   y = S~ r~,   next sa = S~ a~',    b~ = b e^-G, k~ = k e^-G, r~ = r e^G, a~ = a e^E
// Four fused multiply-adds per state element and step, the state in L1, no horizontal sums.
//
// Backward: the closed form of docs/wkv7.md over the same blocks as small matrix products. The states at block
// starts and sa are kept from the forward; nothing is as long as T times the state.
//
// Plain C interface, no headers but the standard library's: it compiles in about a second.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // SSE, NEON
#endif
constexpr int kBlock = 16;       // steps per block
constexpr int kAhead = 6;          // steps that inputs are fetched ahead
constexpr int kPair = 2 * kBlock;  // rows of a block's two kinds of queries, or of keys

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef float VecLoose __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t VecInt __attribute__((vector_size(4 * kLanes)));

inline Vec load(const float* p) { return *reinterpret_cast<const VecLoose*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<VecLoose*>(p) = x; }
inline Vec spread(float x) { return Vec{} + x; }

// Keeps a value in a register: GCC would rather load it again for each use, and loads are what is scarce.
#if defined(__x86_64__)
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

}  // namespace

extern "C" {

enum Wkv7Type : int32_t { kFloat32 = 0, kBfloat16 = 1 };

// (B, T, H, D) with unit stride in D; strides in elements.
struct Wkv7Tensor {
  void* data;
  int64_t batch, step, head;
  int64_t type;
};

struct Wkv7Call {
  int64_t batch, steps, heads, dim_k, dim_v, threads;
  Wkv7Tensor r, log_w, k, v, a, b;      // inputs
  const float* state;                   // (B or 1, H, V, K) or null
  int64_t state_batch;                  // its batch stride, 0 if shared
  const uint8_t* reset;                 // (B, T) or null
  Wkv7Tensor y;                         // output, or its gradient in the backward (null data: zero)
  float* final_state;                   // (B, H, V, K) or null; its gradient in the backward
  float* block_states;                  // (B, H, blocks, V, K) or null
  float* removed;                       // (B, T, H, V) or null
  Wkv7Tensor dr, dlog_w, dk, dv, da, db;  // gradients, backward only
  float* dstate;                        // (B, H, V, K), backward only
};

}  // extern "C"

namespace {

inline float to_float(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);  // NaN stays NaN
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);                 // round to nearest even
}

inline int64_t offset(const Wkv7Tensor& x, int64_t b, int64_t t, int64_t h) {
  return b * x.batch + t * x.step + h * x.head;
}

// One row of D values, zero-padded to whole vectors: where it lies if that will do, else a copy in `buffer`.
inline const float* row_of(const Wkv7Tensor& x, int64_t b, int64_t t, int64_t h, int64_t dim, float* buffer) {
  if (x.type == kBfloat16) {
    const uint16_t* p = static_cast<const uint16_t*>(x.data) + offset(x, b, t, h);
    for (int64_t i = 0; i < dim; i++) buffer[i] = to_float(p[i]);
    return buffer;
  }
  const float* p = static_cast<const float*>(x.data) + offset(x, b, t, h);
  if (dim % kLanes == 0) return p;
  std::memcpy(buffer, p, dim * 4);
  return buffer;
}

// The rows of one head lie far apart, where the hardware does not look ahead.
inline void prefetch(const Wkv7Tensor& x, int64_t b, int64_t t, int64_t h, int64_t dim) {
  const int64_t size = x.type == kBfloat16 ? 2 : 4;
  const char* p = static_cast<const char*>(x.data) + offset(x, b, t, h) * size;
  for (int64_t i = 0; i < dim * size; i += 64) __builtin_prefetch(p + i);
}

inline void write_row(const Wkv7Tensor& x, int64_t b, int64_t t, int64_t h, int64_t dim, const float* row) {
  if (x.type == kBfloat16) {
    uint16_t* p = static_cast<uint16_t*>(x.data) + offset(x, b, t, h);
    for (int64_t i = 0; i < dim; i++) p[i] = to_bfloat16(row[i]);
  } else {
    std::memcpy(static_cast<float*>(x.data) + offset(x, b, t, h), row, dim * 4);
  }
}

// Zeroed, aligned rows for one thread, handed out in order.
class Scratch {
 public:
  explicit Scratch(int64_t floats) : memory_(floats + kLanes, 0.0f) {
    auto address = reinterpret_cast<uintptr_t>(memory_.data());
    next_ = memory_.data() + (-address / 4) % kLanes;
  }
  float* take(int64_t rows, int64_t columns) {
    float* p = next_;
    next_ += rows * columns;
    return p;
  }

 private:
  std::vector<float> memory_;
  float* next_;
};

// C (rows x columns) = or += A B, with A's element (i, j) at a[i * a_row + j * a_column], B and C row by row.
template <int kRows, int kVecs, bool kAdd>
inline void product_tile(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t ldb, float* c,
                         int64_t ldc, int64_t depth) {
  Vec sum[kRows][kVecs];
  for (int i = 0; i < kRows; i++)
    for (int j = 0; j < kVecs; j++) sum[i][j] = kAdd ? load(c + i * ldc + j * kLanes) : Vec{};
  for (int64_t d = 0; d < depth; d++) {
    Vec right[kVecs];
    for (int j = 0; j < kVecs; j++) {
      right[j] = load(b + d * ldb + j * kLanes);
      KEEP(right[j]);
    }
    for (int i = 0; i < kRows; i++) {
      float left = a[i * a_row + d * a_column];
      for (int j = 0; j < kVecs; j++) sum[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < kRows; i++)
    for (int j = 0; j < kVecs; j++) store(c + i * ldc + j * kLanes, sum[i][j]);
}

template <int kVecs, bool kAdd>
inline void product_columns(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b,
                            int64_t ldb, float* c, int64_t ldc) {
  int64_t i = 0;  // six rows by two vectors fill sixteen registers
  for (; i + 6 <= rows; i += 6) product_tile<6, kVecs, kAdd>(a + i * a_row, a_row, a_column, b, ldb, c + i * ldc, ldc, depth);
  for (; i + 2 <= rows; i += 2) product_tile<2, kVecs, kAdd>(a + i * a_row, a_row, a_column, b, ldb, c + i * ldc, ldc, depth);
  for (; i < rows; i++) product_tile<1, kVecs, kAdd>(a + i * a_row, a_row, a_column, b, ldb, c + i * ldc, ldc, depth);
}

template <bool kAdd>
__attribute__((noinline)) void product(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row,
                                       int64_t a_column, const float* b, int64_t ldb, float* c, int64_t ldc) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes)
    product_columns<2, kAdd>(rows, depth, a, a_row, a_column, b + j, ldb, c + j, ldc);
  for (; j < columns; j += kLanes) product_columns<1, kAdd>(rows, depth, a, a_row, a_column, b + j, ldb, c + j, ldc);
}

// out (columns x rows, ldo) = transpose of in (rows x columns, ldi).
inline void transpose(const float* in, int64_t ldi, int64_t rows, int64_t columns, float* out, int64_t ldo) {
  constexpr int64_t kTile = 16;
  for (int64_t i0 = 0; i0 < rows; i0 += kTile)
    for (int64_t j0 = 0; j0 < columns; j0 += kTile)
      for (int64_t i = i0; i < std::min(i0 + kTile, rows); i++)
        for (int64_t j = j0; j < std::min(j0 + kTile, columns); j++) out[j * ldo + i] = in[i * ldi + j];
}

// A stretch of steps without a reset inside, its inputs scaled to its start.
struct Stretch {
  int64_t start, count;
  bool fresh;  // begins with a reset: the state before it does not matter
};

// The stretches of one block, in order; at most kBlock of them.
inline int stretches(const Wkv7Call& call, int64_t b, int64_t block, Stretch* out) {
  int64_t start = block * kBlock, end = std::min(start + kBlock, call.steps);
  const uint8_t* reset = call.reset ? call.reset + b * call.steps : nullptr;
  int found = 0;
  for (int64_t t = start; t < end; t++) {
    bool mark = reset && reset[t];
    if (t == start || mark) out[found++] = {t, 0, mark};
    out[found - 1].count++;
  }
  return found;
}

// target = a row of x times factor, per key.
inline void scale_row(const Wkv7Call& call, const Wkv7Tensor& x, int64_t b, int64_t t, int64_t h, const float* factor,
                      float* target, float* buffer) {
  const float* row = row_of(x, b, t, h, call.dim_k, buffer);
  for (int64_t j = 0; j < call.dim_k; j += kLanes) store(target + j, load(row + j) * load(factor + j));
}

// G, e^G and e^-G one step on.
inline void decay_row(const Wkv7Call& call, int64_t b, int64_t t, int64_t h, float* total, float* up, float* down,
                      float* buffer) {
  const float* log_w = row_of(call.log_w, b, t, h, call.dim_k, buffer);
  for (int64_t j = 0; j < call.dim_k; j += kLanes) {
    const Vec g = load(total + j) + load(log_w + j), grown = exp(g);
    store(total + j, g);
    store(up + j, grown);
    store(down + j, 1.0f / grown);
  }
}

// A stretch's inputs: rows 0..15 of `queries` are r~, 16..31 a~; of `keys` k~ and b~. `before` is e^E with e^G one
// row on, `down` e^-G.
struct Scaled {
  float *queries, *keys, *total, *before, *down;
};

void scale_stretch(const Wkv7Call& call, int64_t b, int64_t h, const Stretch& s, int64_t kp, const Scaled& out,
                   float* buffer) {
  for (int64_t j = 0; j < kp; j += kLanes) {
    store(out.before + j, spread(1.0f));
    store(out.total + j, Vec{});
  }
  for (int64_t i = 0; i < s.count; i++) {
    const int64_t t = s.start + i, ai = kBlock + i;
    float *before = out.before + i * kp, *up = before + kp, *down = out.down + i * kp;
    decay_row(call, b, t, h, out.total, up, down, buffer);
    scale_row(call, call.r, b, t, h, up, out.queries + i * kp, buffer);
    scale_row(call, call.a, b, t, h, before, out.queries + ai * kp, buffer);
    scale_row(call, call.k, b, t, h, down, out.keys + i * kp, buffer);
    scale_row(call, call.b, b, t, h, down, out.keys + ai * kp, buffer);
  }
}

void prefetch_step(const Wkv7Call& call, int64_t b, int64_t h, int64_t t) {
  if (t < 0 || t >= call.steps) return;
  for (const Wkv7Tensor* x : {&call.r, &call.log_w, &call.k, &call.a, &call.b}) prefetch(*x, b, t, h, call.dim_k);
  prefetch(call.v, b, t, h, call.dim_v);
}

// One step on kVecs * kLanes value lanes: update the state, read y, and sa for the next step. Even and odd keys
// sum apart, so that no sum waits for the one before.
template <int kVecs>
inline void step(float* state, int64_t vp, int64_t dim_k, const float* r, const float* next_a, const float* k,
                 const float* b, const float* v, float* sa, float* y) {
  Vec value[kVecs], remove[kVecs], read[2][kVecs], next[2][kVecs];
  for (int i = 0; i < kVecs; i++) {
    value[i] = load(v + i * kLanes);
    remove[i] = load(sa + i * kLanes);
    read[0][i] = read[1][i] = next[0][i] = next[1][i] = Vec{};
  }
  auto key = [&](int64_t j, int odd) {  // stores last: the compiler must reload what they might have changed
    float* p = state + j * vp;
    Vec s[kVecs];
    for (int i = 0; i < kVecs; i++) s[i] = load(p + i * kLanes) + remove[i] * b[j];
    for (int i = 0; i < kVecs; i++) s[i] += value[i] * k[j];
    for (int i = 0; i < kVecs; i++) read[odd][i] += s[i] * r[j];
    for (int i = 0; i < kVecs; i++) next[odd][i] += s[i] * next_a[j];
    for (int i = 0; i < kVecs; i++) store(p + i * kLanes, s[i]);
  };
  int64_t j = 0;
  for (; j + 2 <= dim_k; j += 2) {
    key(j, 0);
    key(j + 1, 1);
  }
  if (j < dim_k) key(j, 0);
  for (int i = 0; i < kVecs; i++) {
    store(y + i * kLanes, read[0][i] + read[1][i]);
    store(sa + i * kLanes, next[0][i] + next[1][i]);
  }
}

// state (K x V) *= factor by key.
inline void scale_keys(float* state, int64_t dim_k, int64_t vp, const float* factor) {
  for (int64_t j = 0; j < dim_k; j++)
    for (int64_t i = 0; i < vp; i += kLanes) store(state + j * vp + i, load(state + j * vp + i) * factor[j]);
}

// One step's inputs in scaled coordinates. A row of each is all that is kept: the state must stay in the L1 cache.
struct StepRows {
  float *total, *up, *down, *r, *a, *k, *b, *buffer;
};

void forward_stretch(const Wkv7Call& call, int64_t b, int64_t h, const Stretch& s, const StepRows& x, float* state,
                     float* sa, float* v, float* y) {
  const int64_t K = call.dim_k, V = call.dim_v, kp = padded(K), vp = padded(V);
  const bool direct = call.y.type == kFloat32 && V == vp;  // y's rows can be written where they belong
  if (s.fresh) std::memset(state, 0, kp * vp * 4);
  std::memset(x.total, 0, kp * 4);
  for (int64_t j = 0; j < kp; j += kLanes) store(x.up + j, spread(1.0f));
  scale_row(call, call.a, b, s.start, h, x.up, x.a, x.buffer);
  product<false>(1, vp, K, x.a, 0, 1, state, vp, sa, vp);
  for (int64_t t = s.start; t < s.start + s.count; t++) {
    prefetch_step(call, b, h, t + kAhead);
    decay_row(call, b, t, h, x.total, x.up, x.down, x.buffer);
    scale_row(call, call.r, b, t, h, x.up, x.r, x.buffer);
    scale_row(call, call.k, b, t, h, x.down, x.k, x.buffer);
    scale_row(call, call.b, b, t, h, x.down, x.b, x.buffer);
    if (t + 1 < s.start + s.count) scale_row(call, call.a, b, t + 1, h, x.up, x.a, x.buffer);
    if (call.removed) std::memcpy(call.removed + ((b * call.steps + t) * call.heads + h) * V, sa, V * 4);
    const float* value = row_of(call.v, b, t, h, V, v);
    float* read = direct ? static_cast<float*>(call.y.data) + offset(call.y, b, t, h) : y;
    int64_t j = 0;
    for (; j + 2 * kLanes <= vp; j += 2 * kLanes)
      step<2>(state + j, vp, K, x.r, x.a, x.k, x.b, value + j, sa + j, read + j);
    for (; j < vp; j += kLanes) step<1>(state + j, vp, K, x.r, x.a, x.k, x.b, value + j, sa + j, read + j);
    if (!direct) write_row(call.y, b, t, h, V, y);
  }
  scale_keys(state, K, vp, x.up);
}

void forward_head(const Wkv7Call& call, int64_t b, int64_t h, Scratch& scratch) {
  const int64_t K = call.dim_k, V = call.dim_v, kp = padded(K), vp = padded(V);
  const int64_t blocks = (call.steps + kBlock - 1) / kBlock, item = b * call.heads + h;
  float* state = scratch.take(kp, vp);
  auto row = [&] { return scratch.take(1, kp); };
  const StepRows x{row(), row(), row(), row(), row(), row(), row(), row()};
  float *v = scratch.take(1, vp), *sa = scratch.take(1, vp), *y = scratch.take(1, vp);
  if (call.state) transpose(call.state + b * call.state_batch + h * V * K, K, V, K, state, vp);
  for (int64_t block = 0; block < blocks; block++) {
    if (call.block_states) transpose(state, vp, K, V, call.block_states + (item * blocks + block) * V * K, K);
    Stretch parts[kBlock];
    const int found = stretches(call, b, block, parts);
    for (int n = 0; n < found; n++) forward_stretch(call, b, h, parts[n], x, state, sa, v, y);
  }
  if (call.final_state) transpose(state, vp, K, V, call.final_state + item * V * K, K);
}

int64_t forward_scratch(const Wkv7Call& call) {
  const int64_t kp = padded(call.dim_k), vp = padded(call.dim_v);
  return kp * vp + 8 * kp + 3 * vp + 16 * kLanes;
}

// Which rows of a block's products exist: r_i reads k_j and b_j for j <= i, a_i for j < i.
inline void keep_causal(float* p, int64_t count) {
  for (int64_t i = 0; i < kBlock; i++)
    for (int64_t j = 0; j < kBlock; j++) {
      const bool live = i < count && j < count;
      if (!(live && j <= i)) p[i * kPair + j] = p[i * kPair + kBlock + j] = 0.0f;
      if (!(live && j < i)) p[(kBlock + i) * kPair + j] = p[(kBlock + i) * kPair + kBlock + j] = 0.0f;
    }
}

struct BackwardRows {
  float *douts, *values, *values_t, *keys_t, *scores, *dscores, *dqueries, *dkeys, *through, *grad, *row, *row_v;
};

// Gradients of one stretch. `grad` (K x V) and `grad_t` (V x K): of its end state on entry, of its start on return.
void backward_stretch(const Wkv7Call& call, int64_t b, int64_t h, const Stretch& s, const float* start_t, const Scaled& x,
                      const BackwardRows& m, float* grad, float* grad_t) {
  const int64_t K = call.dim_k, V = call.dim_v, kp = padded(K), vp = padded(V), count = s.count;
  std::memset(x.queries, 0, kPair * kp * 4);
  std::memset(x.keys, 0, kPair * kp * 4);
  std::memset(m.douts, 0, kPair * vp * 4);
  std::memset(m.values, 0, kPair * vp * 4);
  scale_stretch(call, b, h, s, kp, x, m.row);
  for (int64_t i = 0; i < count; i++) {
    const int64_t t = s.start + i;
    if (call.y.data) std::memcpy(m.douts + i * vp, row_of(call.y, b, t, h, V, m.row_v), V * 4);
    std::memcpy(m.values + i * vp, row_of(call.v, b, t, h, V, m.row_v), V * 4);
    std::memcpy(m.values + (kBlock + i) * vp, call.removed + ((b * call.steps + t) * call.heads + h) * V, V * 4);
  }
  const float* end = x.before + count * kp;
  scale_keys(grad, K, vp, end);  // from the end state to the scaled one
  for (int64_t i = 0; i < V; i++)
    for (int64_t j = 0; j < kp; j += kLanes) store(grad_t + i * kp + j, load(grad_t + i * kp + j) * load(end + j));

  transpose(x.keys, kp, kPair, K, m.keys_t, kPair);
  product<false>(kPair, kPair, K, x.queries, kp, 1, m.keys_t, kPair, m.scores, kPair);
  keep_causal(m.scores, count);

  // What arrives at k and b from the end state: rows of keys @ grad; then the triangular system, last step first.
  product<false>(kPair, vp, K, x.keys, kp, 1, grad, vp, m.through, vp);
  float *dz = m.douts + kBlock * vp, *dv = m.through;
  for (int64_t i = count - 1; i >= 0; i--) {
    float* out = dz + i * vp;
    std::memcpy(out, m.through + (kBlock + i) * vp, vp * 4);
    const float* column = m.scores + kBlock + i;
    product<true>(1, vp, count - i, column + i * kPair, 0, kPair, m.douts + i * vp, vp, out, vp);
    if (i + 1 < count)
      product<true>(1, vp, count - i - 1, column + (kBlock + i + 1) * kPair, 0, kPair, dz + (i + 1) * vp, vp, out, vp);
  }
  product<true>(kBlock, vp, kPair, m.scores, 1, kPair, m.douts, vp, dv, vp);

  transpose(m.values, vp, kPair, V, m.values_t, kPair);
  product<false>(kPair, kPair, V, m.douts, vp, 1, m.values_t, kPair, m.dscores, kPair);
  keep_causal(m.dscores, count);

  product<false>(kPair, kp, kPair, m.dscores, kPair, 1, x.keys, kp, m.dqueries, kp);
  if (start_t) product<true>(kPair, kp, V, m.douts, vp, 1, start_t, kp, m.dqueries, kp);
  product<false>(kPair, kp, V, m.values, vp, 1, grad_t, kp, m.dkeys, kp);

  // Decay: the end's share first, while dkeys holds values @ grad alone.
  float* at_end = m.row;
  for (int64_t j = 0; j < kp; j += kLanes) {
    Vec sum{};
    for (int64_t i = 0; i < kPair; i++) sum += load(x.keys + i * kp + j) * load(m.dkeys + i * kp + j);
    if (start_t)
      for (int64_t i = 0; i < V; i++) sum += load(start_t + i * kp + j) * load(grad_t + i * kp + j);
    store(at_end + j, sum);
  }
  product<true>(kPair, kp, kPair, m.dscores, 1, kPair, x.queries, kp, m.dkeys, kp);
  product<true>(K, vp, kPair, x.queries, 1, kp, m.douts, vp, grad, vp);
  transpose(grad, vp, K, V, grad_t, kp);

  for (int64_t i = count - 1; i >= 0; i--) {
    const int64_t t = s.start + i, ai = kBlock + i;
    float *dr = m.dqueries + i * kp, *da = m.dqueries + ai * kp, *dk = m.dkeys + i * kp, *db = m.dkeys + ai * kp;
    for (int64_t j = 0; j < kp; j += kLanes) {
      Vec sum = load(at_end + j);
      sum += load(dr + j) * load(x.queries + i * kp + j) - load(dk + j) * load(x.keys + i * kp + j) -
             load(db + j) * load(x.keys + ai * kp + j);
      store(m.grad + j, sum);
      store(at_end + j, sum + load(da + j) * load(x.queries + ai * kp + j));
      store(dr + j, load(dr + j) * load(x.before + (i + 1) * kp + j));
      store(da + j, load(da + j) * load(x.before + i * kp + j));
      store(dk + j, load(dk + j) * load(x.down + i * kp + j));
      store(db + j, load(db + j) * load(x.down + i * kp + j));
    }
    if (s.fresh && i == 0) std::memset(m.grad, 0, kp * 4);  // nothing came in to decay: exactly zero
    write_row(call.dr, b, t, h, K, dr);
    write_row(call.dlog_w, b, t, h, K, m.grad);
    write_row(call.dk, b, t, h, K, dk);
    write_row(call.dv, b, t, h, V, dv + i * vp);
    write_row(call.da, b, t, h, K, da);
    write_row(call.db, b, t, h, K, db);
  }
}

void backward_head(const Wkv7Call& call, int64_t b, int64_t h, Scratch& scratch) {
  const int64_t K = call.dim_k, V = call.dim_v, kp = padded(K), vp = padded(V);
  const int64_t blocks = (call.steps + kBlock - 1) / kBlock, item = b * call.heads + h;
  float *grad = scratch.take(kp, vp), *grad_t = scratch.take(vp, kp), *start = scratch.take(vp, kp);
  Scaled x{scratch.take(kPair + 1, kp), scratch.take(kPair, kp), scratch.take(1, kp), scratch.take(kBlock + 1, kp),
           scratch.take(kBlock, kp)};
  BackwardRows m{scratch.take(kPair, vp),    scratch.take(kPair, vp),    scratch.take(vp, kPair), scratch.take(kp, kPair),
                 scratch.take(kPair, kPair), scratch.take(kPair, kPair), scratch.take(kPair, kp), scratch.take(kPair, kp),
                 scratch.take(kPair, vp),    scratch.take(1, kp),        scratch.take(1, kp),     scratch.take(1, vp)};
  if (call.final_state) {
    const float* dfinal = call.final_state + item * V * K;
    for (int64_t i = 0; i < V; i++) std::memcpy(grad_t + i * kp, dfinal + i * K, K * 4);
    transpose(dfinal, K, V, K, grad, vp);
  }
  for (int64_t block = blocks - 1; block >= 0; block--) {
    for (int64_t t = (block - 1) * kBlock; t < block * kBlock; t++) prefetch_step(call, b, h, t);
    Stretch parts[kBlock];
    const int found = stretches(call, b, block, parts);
    const float* saved = call.block_states + (item * blocks + block) * V * K;
    for (int64_t i = 0; i < V; i++) std::memcpy(start + i * kp, saved + i * K, K * 4);
    for (int n = found - 1; n >= 0; n--) {
      backward_stretch(call, b, h, parts[n], parts[n].fresh ? nullptr : start, x, m, grad, grad_t);
      if (parts[n].fresh) {
        std::memset(grad, 0, kp * vp * 4);
        std::memset(grad_t, 0, kp * vp * 4);
      }
    }
  }
  for (int64_t i = 0; i < V; i++) std::memcpy(call.dstate + (item * V + i) * K, grad_t + i * kp, K * 4);
}

int64_t backward_scratch(const Wkv7Call& call) {
  const int64_t kp = padded(call.dim_k), vp = padded(call.dim_v);
  return 3 * kp * vp + kp * (4 * kPair + kPair + 2 * kBlock + 8) + vp * (4 * kPair + 1) + 2 * kPair * kPair + 32 * kLanes;
}

// Heads are handed out one by one; threads live for one call, so that nothing survives a fork.
template <typename Work>
void for_each_head(const Wkv7Call& call, int64_t scratch_floats, Work work) {
  const int64_t items = call.batch * call.heads;
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t item; (item = next++) < items;) {
      Scratch scratch(scratch_floats);
      work(call, item / call.heads, item % call.heads, scratch);
    }
  };
  std::vector<std::thread> others;
  try {
    for (int64_t n = 1; n < std::min(call.threads, items); n++) others.emplace_back(run);
  } catch (const std::system_error&) {
    // No more threads to be had (a container's limit, say): those there are do the work.
  }
  run();
  for (auto& thread : others) thread.join();
}

}  // namespace

extern "C" int wkv7_block() { return kBlock; }
extern "C" int wkv7_lanes() { return kLanes; }
extern "C" void wkv7_forward(const Wkv7Call* call) { for_each_head(*call, forward_scratch(*call), forward_head); }
extern "C" void wkv7_backward(const Wkv7Call* call) { for_each_head(*call, backward_scratch(*call), backward_head); }
