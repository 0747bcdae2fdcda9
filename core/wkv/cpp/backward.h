// Backward: the closed form of docs/wkv7.md over the forward's blocks, as small matrix products. The states at block
// starts and what each step removed are kept from the forward; nothing is as long as T times the state.
#pragma once

#include "forward.h"
#include "product.h"

constexpr int kPair = 2 * kBlock;  // rows of a block's two kinds of queries (r, a), of keys (k, b), of values (v, u)

// Steps without a reset inside; `fresh`: begins with one, so that the state before it does not matter.
struct Stretch {
  int64_t start, count;
  bool fresh;
};

// The stretches of one block, in order; at most kBlock of them.
inline int stretches(const Wkv7Call& call, const Walk& walk, int64_t block, Stretch* out) {
  const int64_t start = block * kBlock, end = std::min(start + kBlock, call.steps);
  int found = 0;
  for (int64_t t = start; t < end; t++) {
    if (t == start || walk.fresh(t)) out[found++] = {t, 0, walk.fresh(t)};
    out[found - 1].count++;
  }
  return found;
}

// Which entries of a block's products exist: r_i reads k_j and b_j for j <= i, a_i for j < i. Masks, not factors: what
// lies outside may have overflown.
inline void keep_causal(float* p, int64_t count) {
  static_assert(kBlock % kLanes == 0, "a block is whole vectors");
  struct Masks {
    int32_t bits[2 * kBlock + kLanes] = {};
    Masks() { std::fill(bits, bits + kBlock, -1); }  // from kBlock - n on: n times all bits, then none
  };
  static const Masks masks;
  for (int64_t i = 0; i < kPair; i++) {
    const int64_t step = i % kBlock, reach = step >= count ? 0 : i < kBlock ? step + 1 : step;
    for (int64_t j = 0; j < kBlock; j += kLanes) {
      VecInt mask;
      std::memcpy(&mask, masks.bits + kBlock - reach + j, sizeof(mask));
      for (float* x : {p + i * kPair + j, p + i * kPair + kBlock + j})
        store(x, reinterpret_cast<Vec>(reinterpret_cast<VecInt>(load(x)) & mask));
    }
  }
}

// Space for one stretch at a time, shared by the heads that a thread works on.
struct Stage {
  float *queries, *keys, *dqueries, *dkeys, *total, *before, *down, *at_end;
  float *douts, *values, *through, *keys_t, *values_t, *scores, *dscores, *grad_t, *start_t, *row, *row_v;

  Stage(Scratch& scratch, int64_t kp, int64_t vp) {
    auto rows = [&](int64_t n, int64_t columns) { return scratch.take(n, columns); };
    queries = rows(kPair, kp), keys = rows(kPair, kp), dqueries = rows(kPair, kp), dkeys = rows(kPair, kp);
    total = rows(1, kp), before = rows(kBlock + 1, kp), down = rows(kBlock, kp), at_end = rows(1, kp);
    douts = rows(kPair, vp), values = rows(kPair, vp), through = rows(kPair, vp);
    keys_t = rows(kp, kPair), values_t = rows(vp, kPair), scores = rows(kPair, kPair), dscores = rows(kPair, kPair);
    grad_t = rows(vp, kp), start_t = rows(vp, kp), row = rows(1, kp), row_v = rows(1, vp);
  }
  static int64_t floats(int64_t kp, int64_t vp) {
    return 2 * kp * vp + kp * (5 * kPair + 2 * kBlock + 5) + vp * (4 * kPair + 1) + 2 * kPair * kPair + 24 * 16;
  }
};

class BackwardWalk : private Stage {
 public:
  BackwardWalk(const Wkv7Call& call, const Walk& walk, const Stage& stage, Scratch& scratch)
      : Stage(stage), walk(walk), call(call), K(call.dim_k), V(call.dim_v), kp(padded(K)), vp(padded(V)),
        grad(scratch.take(kp, vp)) {
    if (call.final_state) transpose(call.final_state + walk.number * V * K, K, V, K, grad, vp);
  }
  static int64_t floats(const Wkv7Call& call) { return padded(call.dim_k) * padded(call.dim_v) + 16; }
  static int64_t shared_floats(const Wkv7Call& call) { return Stage::floats(padded(call.dim_k), padded(call.dim_v)); }

  // The steps of one block; meanwhile the rows of `coming`'s block are fetched.
  void run(int64_t block, const Walk& coming, int64_t coming_block) {
    Stretch parts[kBlock]{};
    const int found = stretches(call, walk, block, parts);
    if (!parts[0].fresh)
      transpose(call.block_states + (walk.number * blocks_of(call) + block) * V * K, V, K, V, start_t, kp);
    fetched = 0;
    for (int n = found - 1; n >= 0; n--) {
      stretch(parts[n], coming, coming_block);
      if (parts[n].fresh) std::memset(grad, 0, kp * vp * 4);
    }
  }
  void finish() { transpose(grad, vp, K, V, call.dstate + walk.number * V * K, K); }

  const Walk walk;

 private:
  // `grad` (K x V): gradient of the end state on entry, of the start on return.
  void stretch(const Stretch& s, const Walk& coming, int64_t coming_block) {
    gather(s);
    fetch(coming, coming_block);
    turn_to_scaled(s.count);
    product<false>(kPair, kPair, K, {queries, kp, 1}, keys_t, kPair, scores, kPair);
    keep_causal(scores, s.count);
    fetch(coming, coming_block);
    product<false>(kPair, vp, K, {keys, kp, 1}, grad, vp, through, vp);  // what arrives at v and u from the end state
    fetch(coming, coming_block);
    solve(s.count);
    product<true>(kBlock, vp, kPair, {scores, 1, kPair}, douts, vp, through, vp);  // dv
    product<false>(kPair, kPair, V, {douts, vp, 1}, values_t, kPair, dscores, kPair);
    keep_causal(dscores, s.count);
    fetch(coming, coming_block);
    product<false>(kPair, kp, kPair, {dscores, kPair, 1}, keys, kp, dqueries, kp);
    if (!s.fresh) product<true>(kPair, kp, V, {douts, vp, 1}, start_t, kp, dqueries, kp);
    fetch(coming, coming_block);
    product<false>(kPair, kp, V, {values, vp, 1}, grad_t, kp, dkeys, kp);
    fetch(coming, coming_block);
    decay_at_end(s.fresh);  // while dkeys holds values @ grad alone
    product<true>(kPair, kp, kPair, {dscores, 1, kPair}, queries, kp, dkeys, kp);
    product<true>(K, vp, kPair, {queries, 1, kp}, douts, vp, grad, vp);
    fetch(coming, coming_block);
    finish(s);
  }

  // The stretch's rows: inputs scaled to its start in `queries` (r, then a) and `keys` (k, b); `before` is e^E, e^G one
  // row on; `down` e^-G.
  void gather(const Stretch& s) {
    if (s.count < kBlock) {
      for (float* p : {queries, keys}) std::memset(p, 0, kPair * kp * 4);
      for (float* p : {douts, values}) std::memset(p, 0, kPair * vp * 4);
    }
    std::memset(total, 0, kp * 4);
    for (int64_t j = 0; j < kp; j++) before[j] = 1.0f;
    const float* removed = call.removed + (walk.number * call.steps + s.start) * V;
    for (int64_t i = 0; i < s.count; i++) {
      const int64_t token = walk.token(s.start + i), second = kBlock + i;
      float *lasting = before + i * kp, *up = lasting + kp, *back = down + i * kp;
      const float* log_w = row_of(call.log_w, walk, token, K, row);
      for (int64_t j = 0; j < kp; j += kLanes) {
        const Vec g = load(total + j) + load(log_w + j), grown = exp(g);
        store(total + j, g);
        store(up + j, grown);
        store(back + j, 1.0f / grown);
      }
      scale_row(call.r, token, up, queries + i * kp);
      scale_row(call.a, token, lasting, queries + second * kp);
      scale_row(call.k, token, back, keys + i * kp);
      scale_row(call.b, token, back, keys + second * kp);
      const float* v = row_of(call.v, walk, token, V, row_v);
      for (int64_t j = 0; j < vp; j += kLanes) store(values + i * vp + j, load(v + j));
      std::memcpy(values + second * vp, removed + i * V, V * 4);
      if (!call.y.data) continue;
      const float* dy = row_of(call.y, walk, token, V, row_v);
      for (int64_t j = 0; j < vp; j += kLanes) store(douts + i * vp + j, load(dy + j) * walk.share);
    }
  }

  void scale_row(const Wkv7Tensor& x, int64_t token, const float* factor, float* target) {
    const float* in = row_of(x, walk, token, K, row);
    for (int64_t j = 0; j < kp; j += kLanes) store(target + j, load(in + j) * load(factor + j));
  }

  void turn_to_scaled(int64_t count) {
    const float* end = before + count * kp;
    for (int64_t j = 0; j < K; j++)
      for (int64_t i = 0; i < vp; i += kLanes) store(grad + j * vp + i, load(grad + j * vp + i) * end[j]);
    transpose(grad, vp, K, V, grad_t, kp);
    transpose(keys, kp, kPair, K, keys_t, kPair);
    transpose(values, vp, kPair, V, values_t, kPair);
  }

  // The triangular system, last step first: dz, what arrives at each removal.
  void solve(int64_t count) {
    float* dz = douts + kBlock * vp;
    for (int64_t i = count - 1; i >= 0; i--) {
      const float* column = scores + kBlock + i;  // how b_i is read by the r, then by the a of later steps
      float* out = dz + i * vp;
      std::memcpy(out, through + (kBlock + i) * vp, vp * 4);
      add_row_product(vp, count - i, column + i * kPair, kPair, douts + i * vp, vp, out);
      add_row_product(vp, count - i - 1, column + (kBlock + i + 1) * kPair, kPair, dz + (i + 1) * vp, vp, out);
    }
  }

  void decay_at_end(bool fresh) {
    for (int64_t j = 0; j < kp; j += kLanes) {
      Vec even{}, odd{};
      auto add = [&](int64_t rows, const float* x, const float* y) {
        for (int64_t i = 0; i < rows; i += 2) even += load(x + i * kp + j) * load(y + i * kp + j);
        for (int64_t i = 1; i < rows; i += 2) odd += load(x + i * kp + j) * load(y + i * kp + j);
      };
      add(kPair, keys, dkeys);
      if (!fresh) add(V, start_t, grad_t);
      store(at_end + j, even + odd);
    }
  }

  // From scaled coordinates to the inputs' own, and the decays' sums over what follows.
  void finish(const Stretch& s) {
    for (int64_t i = s.count - 1; i >= 0; i--) {
      const int64_t token = walk.token(s.start + i), second = kBlock + i;
      float *dr = dqueries + i * kp, *da = dqueries + second * kp, *dk = dkeys + i * kp, *db = dkeys + second * kp;
      for (int64_t j = 0; j < kp; j += kLanes) {
        const Vec r = load(dr + j), a = load(da + j), k = load(dk + j), b = load(db + j);
        const Vec sum = load(at_end + j) + (r * load(queries + i * kp + j) - k * load(keys + i * kp + j) -
                                            b * load(keys + second * kp + j));
        store(row + j, sum);
        store(at_end + j, sum + a * load(queries + second * kp + j));
        const Vec back = load(down + i * kp + j);
        store(dr + j, r * load(before + (i + 1) * kp + j));
        store(da + j, a * load(before + i * kp + j));
        store(dk + j, k * back);
        store(db + j, b * back);
      }
      if (s.fresh && i == 0) std::memset(row, 0, kp * 4);  // nothing came in to decay: exactly zero
      write_row(call.dr, walk, token, K, dr, 1.0f, walk.large);
      write_row(call.dlog_w, walk, token, K, row, 1.0f, walk.large);
      write_row(call.dk, walk, token, K, dk, 1.0f, walk.large);
      write_row(call.dv, walk, token, V, through + i * vp, 1.0f, walk.large);
      write_row(call.da, walk, token, K, da, 1.0f, walk.large);
      write_row(call.db, walk, token, K, db, 1.0f, walk.large);
    }
  }

  // A few steps of the coming block, while the products keep the processor busy.
  void fetch(const Walk& coming, int64_t coming_block) {
    constexpr int kSteps = 3;
    for (int i = 0; i < kSteps && fetched < kBlock; i++, fetched++) {
      const int64_t t = coming_block * kBlock + fetched;
      if (t < 0 || t >= call.steps) continue;
      prefetch_step(call, coming, t);
      if (call.y.data) prefetch(call.y, coming, coming.token(t), V);
    }
  }

  const Wkv7Call& call;
  const int64_t K, V, kp, vp;
  float* grad;
  int fetched = 0;  // steps of the coming block
};

inline void backward_heads(const Wkv7Call& call, int64_t batch, int64_t first, int64_t last, int64_t order,
                           Scratch& scratch) {
  scratch.clear();
  const Stage stage(scratch, padded(call.dim_k), padded(call.dim_v));
  std::vector<BackwardWalk> heads;
  heads.reserve(last - first);
  for (int64_t head = first; head < last; head++)
    heads.emplace_back(call, walk_of(call, batch, head, order), stage, scratch);
  const size_t count = heads.size();
  for (int64_t block = blocks_of(call) - 1; block >= 0; block--)
    for (size_t n = 0; n < count; n++)
      heads[n].run(block, heads[(n + 1) % count].walk, block - int64_t((n + 1) / count));
  for (BackwardWalk& head : heads) head.finish();
}
