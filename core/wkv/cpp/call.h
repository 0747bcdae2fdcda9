// What a call hands over, and how its rows are read and written.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>

#include "vector.h"

constexpr float kFloor = -80.0f;  // of a key's log_w summed over a block: float32 then has 10^3 left before e^80 overflows
constexpr int kBlock = 16;  // steps between two saved states, and between two starts of the scaled coordinates

extern "C" {

enum Wkv7Type : int64_t { kFloat32 = 0, kBfloat16 = 1 };

// (B, T, H, D) with unit stride in D; strides in elements.
struct Wkv7Tensor {
  void* data;
  int64_t batch, step, head, type;
};

// The S = heads * orders recurrences of a sequence (S = heads if the orders share out the heads) are numbered order
// by order.
struct Wkv7Call {
  int64_t batch, steps, heads, dim_k, dim_v;
  int64_t threads, pool;            // how many, and whether PyTorch's may be used
  int64_t state_v;                  // values of a state: dim_v, or more where a call covers a part of them
  int64_t orders, split;            // walks over the tokens; whether each takes a share of the heads
  const int32_t* index;             // (orders, T): the token met at each step; null: one walk from first to last
  Wkv7Tensor r, log_w, k, v, a, b;  // inputs
  const float* state;               // (B or 1, S, V, K) or null
  int64_t state_batch;              // its batch stride, 0 if shared
  const uint8_t* reset;             // (orders, B, T) by step, or null
  Wkv7Tensor y;                     // output, or its gradient in the backward (null data: zero)
  float* final_state;               // (B, S, V, K) or null; its gradient in the backward
  float* block_states;              // (B, S, blocks, K, V) or null
  float* removed;                   // (B, S, T, V) or null
  Wkv7Tensor dr, dlog_w, dk, dv, da, db;  // gradients, backward only
  float* dstate;                          // (B, S, V, K), backward only
  int32_t* beyond;                        // set to 1 where decays are beyond kFloor, forward only
};

}  // extern "C"

// One of the S recurrences of one sequence.
struct Walk {
  int64_t batch, head;
  int64_t local, number;  // among the sequence's recurrences, and among the whole batch's
  const int32_t* index;
  const uint8_t* reset;
  bool first;   // of those that write to the same output
  float share;  // of the output: orders over the same heads are averaged
  bool large;   // more than caches hold: what is written is streamed

  int64_t token(int64_t step) const { return index ? index[step] : step; }
  bool fresh(int64_t step) const { return reset && reset[step]; }
};

inline Walk walk_of(const Wkv7Call& call, int64_t batch, int64_t head, int64_t order) {
  const int64_t walks = call.split ? call.heads : call.heads * call.orders;
  const int64_t local = call.split ? head : order * call.heads + head;
  return {batch,
          head,
          local,
          batch * walks + local,
          call.index ? call.index + order * call.steps : nullptr,
          call.reset ? call.reset + (order * call.batch + batch) * call.steps : nullptr,
          call.split || order == 0,
          call.split ? 1.0f : 1.0f / float(call.orders),
          call.batch * call.steps * call.heads * call.dim_k > int64_t(1) << 18};
}

inline int64_t blocks_of(const Wkv7Call& call) { return (call.steps + kBlock - 1) / kBlock; }

inline float to_float(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
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

template <typename T>
inline T* row_at(const Wkv7Tensor& x, const Walk& walk, int64_t token) {
  return static_cast<T*>(x.data) + walk.batch * x.batch + token * x.step + walk.head * x.head;
}

// One row of `dim` floats, readable in whole vectors: where it lies if that will do, else a zero-padded copy.
inline const float* row_of(const Wkv7Tensor& x, const Walk& walk, int64_t token, int64_t dim, float* buffer) {
  if (x.type == kBfloat16) {
    const uint16_t* p = row_at<uint16_t>(x, walk, token);
    for (int64_t i = 0; i < dim; i++) buffer[i] = to_float(p[i]);
    return buffer;
  }
  const float* p = row_at<float>(x, walk, token);
  if (dim % kLanes == 0) return p;
  std::memcpy(buffer, p, dim * 4);
  return buffer;
}

// `to` = row * factor, streamed where that is worth it and `to` lies at a vector's boundary.
inline void copy_row(float* to, const float* row, int64_t dim, float factor, bool large) {
  if (large && dim % kLanes == 0 && reinterpret_cast<uintptr_t>(to) % sizeof(Vec) == 0)
    for (int64_t i = 0; i < dim; i += kLanes) stream(to + i, load(row + i) * factor);
  else
    for (int64_t i = 0; i < dim; i++) to[i] = row[i] * factor;
}

// A row = or, unless it is the first to arrive there, += `row` times `factor`. Only float32 is added to.
inline void write_row(const Wkv7Tensor& x, const Walk& walk, int64_t token, int64_t dim, const float* row,
                      float factor, bool large) {
  if (x.type == kBfloat16) {
    uint16_t* p = row_at<uint16_t>(x, walk, token);
    for (int64_t i = 0; i < dim; i++) p[i] = to_bfloat16(row[i] * factor);
    return;
  }
  float* p = row_at<float>(x, walk, token);
  if (walk.first)
    copy_row(p, row, dim, factor, large);
  else
    for (int64_t i = 0; i < dim; i++) p[i] += row[i] * factor;
}

// Rows of one head lie far apart, where the hardware does not look ahead.
constexpr int kToRead = 0, kToWrite = 1;
template <int kPurpose = kToRead>
inline void prefetch(const Wkv7Tensor& x, const Walk& walk, int64_t token, int64_t dim) {
  const int64_t size = x.type == kBfloat16 ? 2 : 4;
  const char* p = static_cast<const char*>(x.data) + (walk.batch * x.batch + token * x.step + walk.head * x.head) * size;
  for (int64_t i = 0; i < dim * size; i += 64) __builtin_prefetch(p + i, kPurpose);
  asm volatile("");  // GCC drops calls of a function that does nothing but prefetch
}

// One thread's memory: aligned rows of zeros, handed out in order, anew for each piece of work.
class Scratch {
 public:
  explicit Scratch(int64_t floats) : size_(floats + kAlign), memory_(new float[size_ + kAlign]) {}
  void clear() {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    next_ = memory_.get() + (-address / 4) % kAlign;
    std::memset(next_, 0, size_ * 4);
  }
  float* take(int64_t rows, int64_t columns) {
    float* p = next_;
    next_ += (rows * columns + kAlign - 1) / kAlign * kAlign;
    return p;
  }

 private:
  static constexpr int64_t kAlign = 16;  // a cache line
  int64_t size_;
  std::unique_ptr<float[]> memory_;
  float* next_ = nullptr;
};
