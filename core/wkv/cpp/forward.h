// Forward: the recurrence itself, in scaled coordinates that begin anew every few blocks of 16 steps. With G the sum of
// log_w since then and S~ = S e^-G (per key), the decay disappears from the inner loop:
//     S~ += u b~' + v k~',   y = S~ r~,   next u = S~ a~',    b~ = b e^-G, k~ = k e^-G, r~ = r e^G, a~ = a e^E
// Four fused multiply-adds per state element and step, the state in L1, no horizontal sums.
#pragma once

#include <vector>

#include "call.h"

constexpr int kPiece = 8;        // steps whose scaled inputs are gathered at once
constexpr float kDeep = -20.0f;  // of G at a block's start: coordinates begin anew, so that it stays exact to 10^-6
constexpr int kSlice = 2;  // vectors of values that are walked over together: a slice of the state, key by key
constexpr int64_t kSliceWidth = kSlice * kLanes;

// The scaled inputs of a piece, row by row, and its outputs; `next_a` is a step ahead of the others.
struct Piece {
  float *r, *next_a, *k, *b, *v, *y;

  Piece(Scratch& scratch, int64_t kp, int64_t vp)
      : r(scratch.take(kPiece, kp)), next_a(scratch.take(kPiece, kp)), k(scratch.take(kPiece, kp)),
        b(scratch.take(kPiece, kp)), v(scratch.take(kPiece, vp)), y(scratch.take(kPiece, vp)) {}
  static int64_t floats(int64_t kp, int64_t vp) { return kPiece * (4 * kp + 2 * vp) + 6 * 16; }
};

// One step on a slice of kVecs vectors: update the state, read y, and the next step's u. Even and odd keys sum apart,
// so that no sum waits for the one before.
template <int kVecs>
inline void step(float* state, int64_t dim_k, const float* r, const float* next_a, const float* k, const float* b,
                 const float* v, float* u, float* y) {
  Vec value[kVecs], remove[kVecs], read[2][kVecs], next[2][kVecs];
  for (int i = 0; i < kVecs; i++) {
    value[i] = load(v + i * kLanes);
    remove[i] = load(u + i * kLanes);
    read[0][i] = read[1][i] = next[0][i] = next[1][i] = Vec{};
  }
  auto key = [&](int64_t j, int odd) {  // stores last: the compiler must reload what they might have changed
    float* p = state + j * kSliceWidth;
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
    store(u + i * kLanes, next[0][i] + next[1][i]);
  }
}

// One head's state as slices of values, each (keys, kSliceWidth), and what the coming step removes from it.
class HeadState {
 public:
  HeadState(Scratch& scratch, int64_t dim_k, int64_t dim_v)
      : dim_k_(dim_k), dim_v_(dim_v), slices_((dim_v + kSliceWidth - 1) / kSliceWidth),
        data_(scratch.take(slices_, dim_k * kSliceWidth)), removed(scratch.take(slices_, kSliceWidth)) {}
  static int64_t floats(int64_t dim_k, int64_t dim_v) {
    return (dim_v + kSliceWidth - 1) / kSliceWidth * (dim_k + 1) * kSliceWidth + 32;
  }

  void clear() {
    std::memset(data_, 0, slices_ * dim_k_ * kSliceWidth * 4);
    std::memset(removed, 0, slices_ * kSliceWidth * 4);
  }
  void read(const float* in) {  // (V, K)
    for (int64_t s = 0; s < slices_; s++)
      transpose(in + s * kSliceWidth * dim_k_, dim_k_, width(s), dim_k_, slice(s), kSliceWidth);
  }
  void write(float* out) const {  // (V, K)
    for (int64_t s = 0; s < slices_; s++)
      transpose(slice(s), kSliceWidth, dim_k_, width(s), out + s * kSliceWidth * dim_k_, dim_k_);
  }
  void save(float* out, int64_t row, const float* factor, bool large) const {  // (K, V), scaled by key
    for (int64_t j = 0; j < dim_k_; j++)
      for (int64_t s = 0; s < slices_; s++)
        copy_row(out + j * row + s * kSliceWidth, slice(s) + j * kSliceWidth, width(s), factor[j], large);
  }
  void scale(const float* factor) {  // by key
    for (int64_t s = 0; s < slices_; s++)
      for (int64_t j = 0; j < dim_k_; j++)
        for (int64_t i = 0; i < kSliceWidth; i += kLanes) {
          float* p = slice(s) + j * kSliceWidth + i;
          store(p, load(p) * factor[j]);
        }
  }
  void remove(const float* a) {  // what a step with removal key `a` will take away
    for (int64_t s = 0; s < slices_; s++)
      for (int64_t i = 0; i < kSliceWidth; i += kLanes) {
        Vec sum{};
        for (int64_t j = 0; j < dim_k_; j++) sum += load(slice(s) + j * kSliceWidth + i) * a[j];
        store(removed + s * kSliceWidth + i, sum);
      }
  }

  // A piece's steps. Slices go two by two: the one's sums are complete while the other's are being made. `meanwhile`(i,
  // first, last), for things to be fetched, is called before step i on the first pair and on the last one.
  template <class Meanwhile>
  void run(const Piece& x, int64_t count, int64_t kp, int64_t vp, float* saved, int64_t saved_row,
           Meanwhile meanwhile) {
    for (int64_t s = 0; s < slices_; s += 2)
      for (int64_t i = 0; i < count; i++) {
        const bool first = s == 0, last = s + 2 >= slices_;
        if (first || last) meanwhile(i, first, last);
        for (int64_t n = s; n < std::min(s + 2, slices_); n++) {
          const int64_t first = n * kSliceWidth, key = i * kp, value = i * vp + first;
          float* u = removed + first;
          if (saved) copy_row(saved + i * saved_row + first, u, width(n), 1.0f, false);
          const auto walk = first + kSliceWidth <= vp ? step<kSlice> : step<1>;
          walk(slice(n), dim_k_, x.r + key, x.next_a + key, x.k + key, x.b + key, x.v + value, u, x.y + value);
        }
      }
  }

 private:
  float* slice(int64_t s) const { return data_ + s * dim_k_ * kSliceWidth; }
  int64_t width(int64_t s) const { return std::min(kSliceWidth, dim_v_ - s * kSliceWidth); }

  int64_t dim_k_, dim_v_, slices_;
  float* data_;

 public:
  float* removed;
};

// A step's input rows, or half of them.
enum Half { kFirstHalf = 1, kSecondHalf = 2, kBothHalves = 3 };
template <int kHalf = kBothHalves>
inline void prefetch_step(const Wkv7Call& call, const Walk& walk, int64_t step) {
  if (step < 0 || step >= call.steps) return;
  const int64_t token = walk.token(step);
  if (kHalf & kFirstHalf) {
    prefetch(call.r, walk, token, call.dim_k);
    prefetch(call.log_w, walk, token, call.dim_k);
    prefetch(call.k, walk, token, call.dim_k);
  }
  if (kHalf & kSecondHalf) {
    prefetch(call.a, walk, token, call.dim_k);
    prefetch(call.b, walk, token, call.dim_k);
    prefetch(call.v, walk, token, call.dim_v);
  }
}

class ForwardWalk {
 public:
  ForwardWalk(const Wkv7Call& call, const Walk& walk, Scratch& scratch)
      : call_(call), walk_(walk), K_(call.dim_k), V_(call.dim_v), kp_(padded(K_)), vp_(padded(V_)),
        size_(call.state_v * K_), state_(scratch, K_, V_), x_(scratch, kp_, vp_), total_(scratch.take(1, kp_)),
        up_(scratch.take(1, kp_)), before_(scratch.take(1, kp_)), up_before_(scratch.take(1, kp_)),
        begin_(scratch.take(1, kp_)), rows_(scratch.take(5, kp_)), row_v_(scratch.take(1, vp_)) {
    restart();
    if (!call.state) return;
    state_.read(call.state + walk.batch * call.state_batch + walk.local * size_);
    state_.remove(row_of(call.a, walk, walk.token(0), K_, rows_));
  }
  static int64_t floats(const Wkv7Call& call) {
    const int64_t kp = padded(call.dim_k), vp = padded(call.dim_v);
    return HeadState::floats(call.dim_k, call.dim_v) + Piece::floats(kp, vp) + 10 * kp + vp + 7 * 16;
  }

  // Before a block, or a reset inside one.
  void enter(bool fresh) {
    check();
    if (fresh || least([&](int64_t j) { return load(total_ + j); }) < kDeep) rescale();
    if (fresh) state_.clear();
    for (int64_t j = 0; j < kp_; j += kLanes) store(begin_ + j, load(total_ + j));
  }
  void save(int64_t block) const {
    state_.save(call_.block_states + (walk_.number * blocks_of(call_) + block) * size_, call_.state_v, up_,
                walk_.large);
  }

  // The rows of `count` steps, scaled: the piece. Should they leave what float32 holds, coordinates begin with it.
  void gather(int64_t start, int64_t count) {
    for (int64_t j = 0; j < kp_; j += kLanes) {
      store(before_ + j, load(total_ + j));
      store(up_before_ + j, load(up_ + j));
    }
    for (bool again = true;; again = false) {
      for (int64_t i = 0; i < count; i++) gather_step(start + i, i);
      if (!again || least([&](int64_t j) { return load(total_ + j); }) >= kFloor) return;
      for (int64_t j = 0; j < kp_; j += kLanes) {
        store(begin_ + j, load(begin_ + j) - load(before_ + j));
        store(up_ + j, load(up_before_ + j));
      }
      rescale();
    }
  }
  void run(int64_t start, int64_t count) {
    float* saved = call_.removed ? call_.removed + (walk_.number * call_.steps + start) * call_.state_v : nullptr;
    // The next piece's rows, and those that this one's outputs go to, are fetched a few at a time: a core waits as soon
    // as more than a few lines are on their way.
    state_.run(x_, count, kp_, vp_, saved, call_.state_v, [&](int64_t i, bool first, bool last) {
      const int64_t coming = start + kPiece + i;
      if (first) prefetch<kToWrite>(call_.y, walk_, walk_.token(start + i), V_);
      if (first) prefetch_step<kFirstHalf>(call_, walk_, coming);
      if (last) prefetch_step<kSecondHalf>(call_, walk_, coming);
    });
  }
  void write(int64_t t, int64_t i) const {
    write_row(call_.y, walk_, walk_.token(t), V_, x_.y + i * vp_, walk_.share, false);  // soon to be read
  }
  void finish() {
    check();
    state_.scale(up_);
    if (call_.final_state) state_.write(call_.final_state + walk_.number * size_);
  }

 private:
  // Step t's rows, scaled, as row i of the piece.
  void gather_step(int64_t t, int64_t i) {
    const int64_t token = walk_.token(t), following = walk_.token(std::min(t + 1, call_.steps - 1));
    const float* log_w = row_of(call_.log_w, walk_, token, K_, rows_);
    const float* r = row_of(call_.r, walk_, token, K_, rows_ + kp_);
    const float* k = row_of(call_.k, walk_, token, K_, rows_ + 2 * kp_);
    const float* b = row_of(call_.b, walk_, token, K_, rows_ + 3 * kp_);
    const float* a = row_of(call_.a, walk_, following, K_, rows_ + 4 * kp_);
    for (int64_t j = 0; j < kp_; j += kLanes) {
      const Vec g = load(total_ + j) + load(log_w + j), up = exp(g), down = 1.0f / up;
      store(total_ + j, g);
      store(up_ + j, up);
      store(x_.r + i * kp_ + j, load(r + j) * up);
      store(x_.next_a + i * kp_ + j, load(a + j) * up);
      store(x_.k + i * kp_ + j, load(k + j) * down);
      store(x_.b + i * kp_ + j, load(b + j) * down);
    }
    const float* v = row_of(call_.v, walk_, token, V_, row_v_);
    for (int64_t j = 0; j < vp_; j += kLanes) store(x_.v + i * vp_ + j, load(v + j));
  }
  // Of all keys; 0 where all are above.
  template <class Row>
  float least(Row row) const {
    Vec low{};
    for (int64_t j = 0; j < kp_; j += kLanes) {
      const Vec x = row(j);
      low = x < low ? x : low;
    }
    float found = 0.0f;
    for (int i = 0; i < kLanes; i++) found = std::min(found, low[i]);
    return found;
  }
  // That the backward, whose coordinates begin with every block, can hold its decays.
  void check() const {
    const float sum = least([&](int64_t j) { return load(total_ + j) - load(begin_ + j); });
    if (sum < kFloor) __atomic_store_n(call_.beyond, 1, __ATOMIC_RELAXED);
  }
  // Scaled coordinates begin anew; what the coming step removes is the same in all.
  void rescale() {
    state_.scale(up_);
    restart();
  }
  void restart() {
    std::memset(total_, 0, kp_ * 4);
    for (int64_t j = 0; j < kp_; j++) up_[j] = 1.0f;
  }

  const Wkv7Call& call_;
  const Walk walk_;
  const int64_t K_, V_, kp_, vp_, size_;
  HeadState state_;
  Piece x_;
  float *total_, *up_, *before_, *up_before_;  // G and e^G of the last step gathered, and of the last before the piece
  float* begin_;  // G at the block's start, in the coordinates of now
  float *rows_, *row_v_;
};

// Heads next to each other, piece by piece: their rows lie together in memory.
inline void forward_heads(const Wkv7Call& call, int64_t batch, int64_t first, int64_t last, int64_t order,
                          Scratch& scratch) {
  scratch.clear();
  const Walk way = walk_of(call, batch, first, order);
  std::vector<ForwardWalk> heads;
  heads.reserve(last - first);
  for (int64_t head = first; head < last; head++) heads.emplace_back(call, walk_of(call, batch, head, order), scratch);
  for (int64_t t = 0, end; t < call.steps; t = end) {
    const bool block = t % kBlock == 0, fresh = way.fresh(t);
    for (ForwardWalk& head : heads) {
      if (block && call.block_states) head.save(t / kBlock);
      if (block || fresh) head.enter(fresh);
    }
    end = t + 1;
    while (end < call.steps && end % kPiece && !way.fresh(end)) end++;
    for (ForwardWalk& head : heads) {
      head.gather(t, end - t);
      head.run(t, end - t);
      for (int64_t i = 0; i < end - t; i++) head.write(t + i, i);
    }
  }
  for (ForwardWalk& head : heads) head.finish();
}
