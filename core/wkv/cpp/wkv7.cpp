// WKV-7 on a CPU: forward and backward, vector lanes over the value dimension. Plain C interface, no headers but the
// standard library's: it compiles in a few seconds.

#include <atomic>

#include "backward.h"
#include "forward.h"
#include "threads.h"

namespace {

// Pieces of work are handed out one by one to whichever thread is free.
template <typename Work>
void share_out(const Wkv7Call& call, int64_t items, int64_t scratch_floats, Work work) {
  std::atomic<int64_t> next{0};
  on_threads(std::min(call.threads, items), call.pool, [&] {
    Scratch scratch(scratch_floats);
    for (int64_t item; (item = next++) < items;) work(item, scratch);
    finish_streams();
  });
}

// The same call over values first..first+count only: in the forward pass they do not depend on each other.
Wkv7Call part_of(const Wkv7Call& call, int64_t first, int64_t count) {
  Wkv7Call part = call;
  part.dim_v = count;
  auto advance = [&](Wkv7Tensor& x) { x.data = static_cast<char*>(x.data) + first * (x.type == kBfloat16 ? 2 : 4); };
  advance(part.v);
  advance(part.y);
  if (call.state) part.state += first * call.dim_k;
  if (call.final_state) part.final_state += first * call.dim_k;
  if (call.block_states) part.block_states += first;
  if (call.removed) part.removed += first;
  return part;
}

// Heads that one thread takes through the sequence together, and the pieces of work that makes.
struct Shares {
  int64_t groups, size, items;

  explicit Shares(const Wkv7Call& call) {
    constexpr int64_t kTogether = 8;  // heads whose states fit in the second-level cache with room to spare
    const int64_t wanted = std::max((call.heads + kTogether - 1) / kTogether,
                                    (call.threads + call.batch - 1) / call.batch);
    size = (call.heads + std::min(wanted, call.heads) - 1) / std::min(wanted, call.heads);
    groups = (call.heads + size - 1) / size;
    items = call.batch * groups;
  }
};

// Walks over the same heads follow each other on one thread, since they write to the same rows.
template <typename Work>
void walk_heads(const Wkv7Call& call, const Shares& shares, int64_t item, Work work) {
  const int64_t batch = item / shares.groups, first = item % shares.groups * shares.size;
  const int64_t last = std::min(first + shares.size, call.heads);
  if (!call.split)
    for (int64_t order = 0; order < call.orders; order++) work(batch, first, last, order);
  const int64_t own = call.heads / call.orders;  // heads of each order, where they are shared out
  for (int64_t head = first; call.split && head < last;) {
    const int64_t end = std::min(last, (head / own + 1) * own);
    work(batch, head, end, head / own);
    head = end;
  }
}

}  // namespace

extern "C" int wkv7_block() { return kBlock; }
extern "C" int wkv7_lanes() { return kLanes; }

extern "C" void wkv7_forward(const Wkv7Call* call) {
  const Shares shares(*call);
  const int64_t slices = (call->dim_v + kSliceWidth - 1) / kSliceWidth;
  const int64_t parts = std::min(slices, std::max<int64_t>(1, call->threads / shares.items));
  const int64_t width = (slices + parts - 1) / parts * kSliceWidth;
  const int64_t floats = shares.size * ForwardWalk::floats(*call);
  share_out(*call, shares.items * parts, floats, [&](int64_t item, Scratch& scratch) {
    const int64_t first = item % parts * width, count = std::min(width, call->dim_v - first);
    if (count <= 0) return;
    const Wkv7Call part = part_of(*call, first, count);
    walk_heads(part, shares, item / parts, [&](int64_t batch, int64_t head, int64_t end, int64_t order) {
      forward_heads(part, batch, head, end, order, scratch);
    });
  });
}

extern "C" void wkv7_backward(const Wkv7Call* call) {
  const Shares shares(*call);
  const int64_t floats = BackwardWalk::shared_floats(*call) + shares.size * BackwardWalk::floats(*call);
  share_out(*call, shares.items, floats, [&](int64_t item, Scratch& scratch) {
    walk_heads(*call, shares, item, [&](int64_t batch, int64_t head, int64_t end, int64_t order) {
      backward_heads(*call, batch, head, end, order, scratch);
    });
  });
}
