// Small matrix products on register tiles: what the backward pass consists of.
#pragma once

#include "vector.h"

// A's element (i, j) lies at data[i * row + j * column]: a matrix or its transpose.
struct Left {
  const float* data;
  int64_t row, column;
  Left from(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
};

// C (rows x columns) = or += A B over `depth`, B and C row by row; columns in whole vectors.
template <int kRows, int kVecs, bool kAdd>
inline void product_tile(const Left& a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t depth) {
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
      const float left = a.data[i * a.row + d * a.column];
      for (int j = 0; j < kVecs; j++) sum[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < kRows; i++)
    for (int j = 0; j < kVecs; j++) store(c + i * ldc + j * kLanes, sum[i][j]);
}

// Six rows by two vectors fill AVX2's sixteen registers; four rows are the fewest that hide an addition's latency.
template <int kVecs, bool kAdd>
inline void product_columns(int64_t rows, const Left& a, const float* b, int64_t ldb, float* c, int64_t ldc,
                            int64_t depth) {
  int64_t i = 0;
  for (; rows - i >= 6 && rows - i != 8; i += 6)
    product_tile<6, kVecs, kAdd>(a.from(i, 0), b, ldb, c + i * ldc, ldc, depth);
  for (; rows - i >= 4; i += 4) product_tile<4, kVecs, kAdd>(a.from(i, 0), b, ldb, c + i * ldc, ldc, depth);
  for (; rows - i >= 1; i += 1) product_tile<1, kVecs, kAdd>(a.from(i, 0), b, ldb, c + i * ldc, ldc, depth);
}

template <bool kAdd>
__attribute__((noinline)) void product(int64_t rows, int64_t columns, int64_t depth, Left a, const float* b,
                                       int64_t ldb, float* c, int64_t ldc) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes) product_columns<2, kAdd>(rows, a, b + j, ldb, c + j, ldc, depth);
  for (; j < columns; j += kLanes) product_columns<1, kAdd>(rows, a, b + j, ldb, c + j, ldc, depth);
}

// One row of C += a row of A times B: eight vectors at once, since a single row has no other sums to overlap.
inline void add_row_product(int64_t columns, int64_t depth, const float* a, int64_t step, const float* b, int64_t ldb,
                            float* c) {
  int64_t j = 0;
  for (; j + 8 * kLanes <= columns; j += 8 * kLanes) product_tile<1, 8, true>({a, 0, step}, b + j, ldb, c + j, 0, depth);
  for (; j + 4 * kLanes <= columns; j += 4 * kLanes) product_tile<1, 4, true>({a, 0, step}, b + j, ldb, c + j, 0, depth);
  for (; j < columns; j += kLanes) product_tile<1, 1, true>({a, 0, step}, b + j, ldb, c + j, 0, depth);
}
