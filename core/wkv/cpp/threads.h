// Where work runs: on PyTorch's own OpenMP threads, or on threads that live for one call.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

// Runs `body` on up to `threads` threads at once, the caller's among them. PyTorch's OpenMP threads wait for work in a
// busy loop: others would compete with them for the processor's cores. `pool` false: not in a forked child, where
// OpenMP's threads are gone.
template <typename Body>
void on_threads(int64_t threads, bool pool, Body body) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (threads > 1 && pool && parallel) {
    parallel([](void* data) { (*static_cast<Body*>(data))(); }, &body, unsigned(threads), 0);
    return;
  }
  std::vector<std::thread> others;
  try {
    for (int64_t n = 1; n < threads; n++) others.emplace_back(body);
  } catch (const std::system_error&) {
    // No more threads to be had (a container's limit, say): those there are do the work.
  }
  body();
  for (auto& thread : others) thread.join();
}
