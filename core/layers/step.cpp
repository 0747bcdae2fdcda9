// One token through a stack of RWKV-7 blocks: every weight is read once, and reading them is all that takes time.
//
// The threads live for one call and meet at five barriers per layer. Between two of them, rows of the matrices are
// dealt out in small pieces to whoever is free, so that a thread that starts late or is held up delays nobody; what
// is per head stays with one thread. Vectors of a few thousand numbers are cheaper made twice than shared.
// Of several sequences each is one thread's alone, which finds weights in its cache that it has just read for another.
//
// Formulas: core/layers/time_mix.py and channel_mix.py, of which this is the float32 transcription for T = 1.
// Plain C interface, no headers but the standard library's.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <system_error>
#include <thread>
#include <vector>

extern "C" {

// Matrices (out, in) row by row, low-rank pairs (in, rank) and (rank, out); what a layer has not is null.
struct StepLayer {
  const float *ln0_w, *ln0_b, *ln1_w, *ln1_b, *ln2_w, *ln2_b, *gamma1, *gamma2;
  const float *x_r, *x_w, *x_k, *x_v, *x_a, *x_g;
  const float *w0, *w1, *w2, *a0, *a1, *a2, *v0, *v1, *v2, *g1, *g2;
  const float *k_k, *k_a, *r_k, *ln_x_w, *ln_x_b;
  const float *receptance, *key, *value, *output, *receptance_b, *key_b, *value_b, *output_b;
  const float *ffn_x_k, *ffn_key, *ffn_value;
  int64_t rank_w, rank_a, rank_v, rank_g, hidden;
  double ln_eps, gn_eps, iclr_scale;
};

// A layer's incoming state: (C), (H, V, K), (C) for each sequence; null is zero. The distances from one sequence's to
// the next one's are 0 where all share one.
struct StepState {
  const float *att_shift, *wkv, *ffn_shift;
  int64_t att_shift_next, wkv_next, ffn_shift_next;
};

struct StepCall {
  int64_t batch, layers, dim, heads, key_dim, value_dim, threads;
  const StepLayer* layer;
  const StepState* state;
  const float* x;                           // (B, C), embedded
  const float *ln_out_w, *ln_out_b;         // null: no norm at the end
  double ln_out_eps;
  float* y;                                 // (B, C)
  float *att_shift, *wkv, *ffn_shift;       // outgoing states (L, B, C), (L, B, H, V, K), (L, B, C)
};

// y (rows) = matrix (rows, columns) x + bias, which may be null
struct MatrixVector {
  const float *matrix, *x, *bias;
  float* y;
  int64_t rows, columns, threads;
};

}  // extern "C"

namespace {

constexpr int kLanes = 8;
constexpr int64_t kPiece = 12288;  // weights dealt out at a time
constexpr int64_t kTogether = 8;   // sequences that one thread follows at a time
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef float VecLoose __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const VecLoose*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<VecLoose*>(p) = x; }

inline float sum(Vec x) { return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7])); }

float dot(const float* w, const float* x, int64_t n) {
  Vec s[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int j = 0; j < 4; j++) s[j] += load(w + i + j * kLanes) * load(x + i + j * kLanes);
  for (; i + kLanes <= n; i += kLanes) s[0] += load(w + i) * load(x + i);
  float rest = 0;
  for (; i < n; i++) rest += w[i] * x[i];
  return sum((s[0] + s[1]) + (s[2] + s[3])) + rest;
}

// out += scale * row
inline void add_scaled(float* out, float scale, const float* row, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] += scale * row[i];
}

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// (x - mean) / sqrt(variance + eps) * weight + bias
void normalise(const float* x, int64_t n, double eps, const float* weight, const float* bias, float* out) {
  double total = 0, squares = 0;
  for (int64_t i = 0; i < n; i++) total += x[i];
  const double mean = total / n;
  for (int64_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
  const float shift = float(mean), scale = float(1.0 / std::sqrt(squares / n + eps));
  for (int64_t i = 0; i < n; i++) out[i] = (x[i] - shift) * scale * weight[i] + bias[i];
}

// x moved towards what came before by `mix` per channel.
inline void mix_shift(const float* x, const float* before, const float* mix, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i++) out[i] = x[i] + ((before ? before[i] : 0.0f) - x[i]) * mix[i];
}

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Threads that work on one call and wait for each other.
class Team {
 public:
  // Runs work(member) on up to `wanted` threads, the caller's among them; fewer if no more can be had.
  template <class Work>
  void run(int64_t wanted, const Work& work) {
    std::vector<std::thread> helpers;
    try {
      for (int64_t i = 1; i < wanted; i++)
        helpers.emplace_back([this, i, &work] {
          while (size_.load(std::memory_order_acquire) == 0) pause();
          work(i);
        });
    } catch (const std::system_error&) {
    }
    size_.store(int64_t(helpers.size()) + 1, std::memory_order_release);
    work(0);
    for (auto& helper : helpers) helper.join();
  }

  int64_t size() const { return size_.load(std::memory_order_relaxed); }

  void meet() {
    const int64_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; spins++) {
      if (spins < 4000)
        pause();
      else
        std::this_thread::yield();  // more threads than free cores
    }
  }

 private:
  std::atomic<int64_t> size_{0}, arrived_{0}, round_{0};
};

// do_row(i) for every row of `rows`, in pieces taken by whoever is free.
template <class Row>
void share(std::atomic<int64_t>& next, int64_t rows, int64_t columns, const Row& do_row) {
  const int64_t piece = std::max<int64_t>(1, kPiece / columns);
  for (int64_t start; (start = next.fetch_add(piece, std::memory_order_relaxed)) < rows;)
    for (int64_t i = start; i < std::min(start + piece, rows); i++) do_row(i);
}

// Numbers that all threads at work on one sequence see.
struct Shared {
  Shared(const StepCall& c, int64_t sequence, int64_t threads, int64_t ranks, int64_t hidden)
      : sequence(sequence), x(c.x + sequence * c.dim, c.x + (sequence + 1) * c.dim), r(c.dim), k(c.dim), v(c.heads * c.value_dim), v_first(v), y(v), hidden(hidden),
        low(threads, std::vector<float>(ranks)), next(4 * c.layers) {}

  const int64_t sequence;
  std::vector<float> x, r, k, v, v_first, y, hidden;
  std::vector<std::vector<float>> low;  // each thread's part of the low-rank maps' inner vectors: w, a, v, g
  std::vector<std::atomic<int64_t>> next;
  bool has_v_first = false;
};

// One thread's way through the stack.
class Member {
 public:
  Member(const StepCall& call, Shared& shared, Team& team, int64_t index)
      : c_(call), s_(shared), team_(team), index_(index), normed_(call.dim), decay_(call.dim), iclr_(call.dim),
        kk_(call.dim), b_(call.dim), gate_(shared.v.size()), mixed_(6, std::vector<float>(call.dim)) {}

  // A block in five phases, between which a team meets.
  void project(int64_t layer) {
    layer_ = layer;
    const StepLayer& l = c_.layer[layer];
    if (l.ln0_w) enter(l);
    normalise(s_.x.data(), c_.dim, l.ln_eps, l.ln1_w, l.ln1_b, normed_.data());
    if (index_ == 0) std::memcpy(c_.att_shift + place() * c_.dim, normed_.data(), c_.dim * sizeof(float));
    project(l, own(state().att_shift, state().att_shift_next), s_.next[4 * layer]);
  }
  void mix_heads() {
    float* next = c_.wkv + place() * c_.heads * c_.value_dim * c_.key_dim;
    mix_heads(c_.layer[layer_], own(state().wkv, state().wkv_next), next);
  }
  void put_out() {
    const StepLayer& l = c_.layer[layer_];
    add_rows(l.output, l.output_b, l.gamma1, s_.y, s_.next[4 * layer_ + 1]);
  }
  void widen() {
    const StepLayer& l = c_.layer[layer_];
    normalise(s_.x.data(), c_.dim, l.ln_eps, l.ln2_w, l.ln2_b, normed_.data());
    if (index_ == 0) std::memcpy(c_.ffn_shift + place() * c_.dim, normed_.data(), c_.dim * sizeof(float));
    widen(l, own(state().ffn_shift, state().ffn_shift_next), s_.next[4 * layer_ + 2]);
  }
  void narrow() {
    const StepLayer& l = c_.layer[layer_];
    add_rows(l.ffn_value, nullptr, l.gamma2, s_.hidden, s_.next[4 * layer_ + 3]);
  }

 private:
  const StepState& state() const { return c_.state[layer_]; }
  int64_t place() const { return layer_ * c_.batch + s_.sequence; }
  const float* own(const float* state, int64_t next) const { return state ? state + s_.sequence * next : nullptr; }

  // The norm before the first block, on the residual stream itself.
  void enter(const StepLayer& l) {
    normalise(s_.x.data(), c_.dim, l.ln_eps, l.ln0_w, l.ln0_b, normed_.data());
    team_.meet();
    if (index_ == 0) s_.x = normed_;
    team_.meet();
  }

  // Receptance, key, value, and the first halves of the low-rank maps.
  void project(const StepLayer& l, const float* before, std::atomic<int64_t>& next) {
    const int64_t dim = c_.dim, values = s_.v.size();
    const float* mixes[] = {l.x_r, l.x_k, l.x_v, l.x_w, l.x_a, l.x_g};
    for (int j = 0; j < 6; j++)
      if (mixes[j]) mix_shift(normed_.data(), before, mixes[j], dim, mixed_[j].data());
    float* low = s_.low[index_].data();
    std::fill(low, low + l.rank_w + l.rank_a + l.rank_v + l.rank_g, 0.0f);
    // Sums over channels go to threads in fixed shares, so that the same call gives the same bits each time.
    for (int64_t i = dim * index_ / team_.size(); i < dim * (index_ + 1) / team_.size(); i++) {
      float* out = low;
      add_scaled(out, mixed_[3][i], l.w1 + i * l.rank_w, l.rank_w);
      add_scaled(out += l.rank_w, mixed_[4][i], l.a1 + i * l.rank_a, l.rank_a);
      if (l.v1) add_scaled(out + l.rank_a, mixed_[2][i], l.v1 + i * l.rank_v, l.rank_v);
      if (l.g1) add_scaled(out + l.rank_a + l.rank_v, mixed_[5][i], l.g1 + i * l.rank_g, l.rank_g);
    }
    share(next, 2 * dim + values, dim, [&](int64_t i) {
      if (i < dim) return row(l.receptance, l.receptance_b, i, mixed_[0], s_.r);
      if ((i -= dim) < dim) return row(l.key, l.key_b, i, mixed_[1], s_.k);
      row(l.value, l.value_b, i - dim, mixed_[2], s_.v);
    });
  }

  void row(const float* matrix, const float* bias, int64_t i, const std::vector<float>& in, std::vector<float>& out) {
    out[i] = dot(matrix + i * in.size(), in.data(), in.size()) + (bias ? bias[i] : 0.0f);
  }

  // Residual x += gamma * (matrix in + bias).
  void add_rows(const float* matrix, const float* bias, const float* gamma, const std::vector<float>& in,
                std::atomic<int64_t>& next) {
    share(next, c_.dim, in.size(), [&](int64_t i) {
      const float y = dot(matrix + i * in.size(), in.data(), in.size()) + (bias ? bias[i] : 0.0f);
      s_.x[i] += gamma ? gamma[i] * y : y;
    });
  }

  // relu(key(...))^2
  void widen(const StepLayer& l, const float* before, std::atomic<int64_t>& next) {
    mix_shift(normed_.data(), before, l.ffn_x_k, c_.dim, mixed_[0].data());
    share(next, l.hidden, c_.dim, [&](int64_t i) {
      const float h = dot(l.ffn_key + i * c_.dim, mixed_[0].data(), c_.dim);
      s_.hidden[i] = h < 0.0f ? 0.0f : h * h;  // NaN stays NaN
    });
  }

  // out[from..to) = start + low @ up, columns from..to of a (rank, width) matrix
  static void raise(const float* start, const float* low, int64_t rank, const float* up, int64_t width, int64_t from,
                    int64_t to, float* out) {
    for (int64_t i = from; i < to; i++) out[i] = start ? start[i] : 0.0f;
    for (int64_t j = 0; j < rank; j++) add_scaled(out + from, low[j], up + j * width + from, to - from);
  }

  // This thread's heads, from the low-rank maps' second halves to the gated output.
  void mix_heads(const StepLayer& l, const float* state, float* new_state) {
    const int64_t first = c_.heads * index_ / team_.size(), last = c_.heads * (index_ + 1) / team_.size();
    const int64_t dim = c_.dim, values = s_.v.size();
    const int64_t k0 = first * c_.key_dim, k1 = last * c_.key_dim, v0 = first * c_.value_dim, v1 = last * c_.value_dim;
    std::vector<float> low(s_.low[0]);
    for (int64_t i = 1; i < team_.size(); i++) add_scaled(low.data(), 1.0f, s_.low[i].data(), low.size());
    float *low_w = low.data(), *low_a = low_w + l.rank_w, *low_v = low_a + l.rank_a, *low_g = low_v + l.rank_v;
    for (int64_t j = 0; j < l.rank_w; j++) low_w[j] = std::tanh(low_w[j]);
    for (int64_t j = 0; j < l.rank_g; j++) low_g[j] = sigmoid(low_g[j]);
    raise(l.w0, low_w, l.rank_w, l.w2, dim, k0, k1, decay_.data());
    raise(l.a0, low_a, l.rank_a, l.a2, dim, k0, k1, iclr_.data());
    if (l.v0) {
      raise(l.v0, low_v, l.rank_v, l.v2, values, v0, v1, gate_.data());
      for (int64_t i = v0; i < v1; i++) s_.v[i] += (s_.v_first[i] - s_.v[i]) * sigmoid(gate_[i]);
    } else if (first_value_) {
      std::copy(s_.v.begin() + v0, s_.v.begin() + v1, s_.v_first.begin() + v0);
    }
    first_value_ = false;
    if (l.g1) raise(nullptr, low_g, l.rank_g, l.g2, values, v0, v1, gate_.data());
    for (int64_t i = k0; i < k1; i++) {
      decay_[i] = std::exp(-0.6065306597126334f * sigmoid(decay_[i]));
      iclr_[i] = sigmoid(iclr_[i]);
      kk_[i] = s_.k[i] * l.k_k[i];
      s_.k[i] *= 1.0f + (iclr_[i] - 1.0f) * l.k_a[i];
    }
    const int64_t size = c_.key_dim * c_.value_dim;
    for (int64_t h = first; h < last; h++) {
      step_head(l, h, state ? state + h * size : nullptr, new_state + h * size);
      read_head(l, h);
    }
  }

  // The recurrence: removal, decay, write, read-out.
  void step_head(const StepLayer& l, int64_t h, const float* state, float* next) {
    const int64_t n = c_.key_dim, at = h * n;
    const float *w = &decay_[at], *k = &s_.k[at], *r = &s_.r[at], *v = &s_.v[h * c_.value_dim];
    float *kk = &kk_[at], *b = &b_[at], *y = &s_.y[h * c_.value_dim];
    const float scale = 1.0f / std::max(std::sqrt(dot(kk, kk, n)), 1e-12f);
    for (int64_t j = 0; j < n; j++) {
      kk[j] *= scale;
      b[j] = kk[j] * iclr_[at + j] * float(l.iclr_scale);
    }
    for (int64_t i = 0; i < c_.value_dim; i++, next += n) {
      if (state) {
        const float removed = -dot(state, kk, n);
        for (int64_t j = 0; j < n; j++) next[j] = state[j] * w[j] + removed * b[j] + v[i] * k[j];
        state += n;
      } else {
        for (int64_t j = 0; j < n; j++) next[j] = v[i] * k[j];
      }
      y[i] = dot(next, r, n);
    }
  }

  // Per-head norm, bonus of the current token, gate.
  void read_head(const StepLayer& l, int64_t h) {
    const int64_t n = c_.value_dim, at = h * n, key = h * c_.key_dim;
    float* y = &s_.y[at];
    if (l.ln_x_w) normalise(y, n, l.gn_eps, l.ln_x_w + at, l.ln_x_b + at, y);
    if (l.r_k) {
      float bonus = 0;
      for (int64_t j = key; j < key + c_.key_dim; j++) bonus += s_.r[j] * s_.k[j] * l.r_k[j];
      add_scaled(y, bonus, &s_.v[at], n);
    }
    if (l.g1)
      for (int64_t i = 0; i < n; i++) y[i] *= gate_[at + i];
  }

  const StepCall& c_;
  Shared& s_;
  Team& team_;
  const int64_t index_;
  int64_t layer_ = 0;
  bool first_value_ = true;
  std::vector<float> normed_, decay_, iclr_, kk_, b_, gate_;
  std::vector<std::vector<float>> mixed_;  // r, k, v, w, a, g
};

// The stack for sequences that one team follows together, a phase of all before the next: the weights of a phase stay
// in the cache meanwhile.
void walk(int64_t layers, std::vector<Member>& members, Team& team) {
  for (int64_t i = 0; i < layers; i++) {
    for (auto& m : members) m.project(i);
    team.meet();
    for (auto& m : members) m.mix_heads();
    team.meet();
    for (auto& m : members) m.put_out();
    team.meet();
    for (auto& m : members) m.widen();
    team.meet();
    for (auto& m : members) m.narrow();
    team.meet();
  }
}

}  // namespace

extern "C" {

void rwkv7_step(const StepCall* call) {
  const StepCall& c = *call;
  int64_t ranks = 0, hidden = 0;
  for (int64_t i = 0; i < c.layers; i++) {
    const StepLayer& l = c.layer[i];
    ranks = std::max(ranks, l.rank_w + l.rank_a + l.rank_v + l.rank_g);
    hidden = std::max(hidden, l.hidden);
  }
  const auto through = [&](int64_t first, int64_t count, int64_t threads) {
    std::deque<Shared> shared;
    for (int64_t i = first; i < first + count; i++) shared.emplace_back(c, i, threads, ranks, hidden);
    Team team;
    team.run(threads, [&](int64_t index) {
      std::vector<Member> members;
      for (auto& s : shared) members.emplace_back(c, s, team, index);
      walk(c.layers, members, team);
    });
    for (const auto& s : shared) {
      float* y = c.y + s.sequence * c.dim;
      if (c.ln_out_w)
        normalise(s.x.data(), c.dim, c.ln_out_eps, c.ln_out_w, c.ln_out_b, y);
      else
        std::memcpy(y, s.x.data(), c.dim * sizeof(float));
    }
  };
  if (c.batch == 1) return through(0, 1, c.threads);
  const int64_t piece = std::min(kTogether, (c.batch + c.threads - 1) / c.threads);
  std::atomic<int64_t> next{0};
  Team().run(c.threads, [&](int64_t) {
    for (int64_t i; (i = next.fetch_add(piece, std::memory_order_relaxed)) < c.batch;)
      through(i, std::min(piece, c.batch - i), 1);
  });
}

void matrix_vector(const MatrixVector* call) {
  const MatrixVector& c = *call;
  std::atomic<int64_t> next{0};
  Team().run(c.threads, [&](int64_t) {
    share(next, c.rows, c.columns, [&](int64_t i) {
      c.y[i] = dot(c.matrix + i * c.columns, c.x, c.columns) + (c.bias ? c.bias[i] : 0.0f);
    });
  });
}

}  // extern "C"
