// The experts' residuals of a block of rows. Included inside the namespace of isa.cpp.
//
// A row's entries are added one after another in the order of the bank. The lanes hold rows (for one token) or tokens
// (for several tokens that share the expert). The order of the sums is the same, so the bits are the same.

// Loads kWidth columns of x one by one. On Zen 4 this takes 0.24 ns for each column, and a gather instruction takes
// 0.36 ns. The columns are joined in registers, because a load that covers two recent stores waits until both are in
// the cache.
template <int kWidth>
OVERTONE_INLINE typename Vectors<kWidth>::Half pick(const uint16_t* x, const uint16_t* i) {
  using Half = typename Vectors<kWidth>::Half;
  if constexpr (kWidth == 4)
    return Half{x[i[0]], x[i[1]], x[i[2]], x[i[3]]};
  else if constexpr (kWidth == 8)
    return Half{x[i[0]], x[i[1]], x[i[2]], x[i[3]], x[i[4]], x[i[5]], x[i[6]], x[i[7]]};
  else
    return join(pick<kWidth / 2>(x, i), pick<kWidth / 2>(x, i + kWidth / 2), Count<kWidth>{});
}
template <int kWidth>
OVERTONE_INLINE typename Vectors<kWidth>::Float pick(const float* x, const uint16_t* i) {
  if constexpr (kWidth == 4)
    return typename Vectors<4>::Float{x[i[0]], x[i[1]], x[i[2]], x[i[3]]};
  else
    return join(pick<kWidth / 2>(x, i), pick<kWidth / 2>(x, i + kWidth / 2), Count<kWidth>{});
}

#if defined(__AVX512F__)
// The same with a gather instruction, which is faster on Intel processors. For bf16 it reads a word of two numbers and
// keeps one of them. So it reads nothing after the end of x if the number of columns is even.
OVERTONE_INLINE Float gather(const uint16_t* x, const uint16_t* i) {
  __m512i column = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)i));
  __m512i pair = _mm512_i32gather_epi32(_mm512_srli_epi32(column, 1), x, 4);
  __m512i shift = _mm512_slli_epi32(_mm512_andnot_epi32(column, _mm512_set1_epi32(1)), 4);
  return (Float)_mm512_and_epi32(_mm512_sllv_epi32(pair, shift), _mm512_set1_epi32(int32_t(0xffff0000u)));
}
OVERTONE_INLINE Float gather(const float* x, const uint16_t* i) {
  return (Float)_mm512_i32gather_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)i)), x, 4);
}
#endif

template <class X, class Value> struct Residual {
  const Task& task;
  const Bank& bank;
  const Batch& batch;
  bool compact;   // `out` holds only the piece's tokens, one after another; otherwise all tokens of the task
  int64_t step;   // bytes of weights to prefetch with each 16 entries: a cache line, or 0

  // The address of the 16 sums of a piece's t-th token.
  float* rows_of(const Columns& piece, int t, float* out) const {
    return out + int64_t(compact ? t : batch.token[piece.first + t]) * kRowBlock;
  }

  // The offset of the entries of a piece's slot for one block.
  int64_t offset(const Columns& piece, int64_t block) const {
    return (batch.slot[piece.group] * bank.blocks + block) * bank.entries * kRowBlock;
  }
  const float* scale(const Columns& piece, int64_t block) const {
    return bank.scale + (batch.slot[piece.group] * bank.blocks + block) * kRowBlock;
  }

  static OVERTONE_INLINE void fetch(const void* index, const void* value, const void* weights) {
    __builtin_prefetch(index, 0, 2);
    __builtin_prefetch(value, 0, 2);
    __builtin_prefetch(weights, 0, 2);
  }

  // Prefetches the scales of the block whose entries are being prefetched.
  void fetch_scale(const Columns& piece, int64_t block) const {
    if (bank.scale) __builtin_prefetch(scale(piece, block + kSpan), 0, 2);
  }

  // `columns` returns the elements of x at the columns of kLanes entries.
  template <class Load>
  OVERTONE_INLINE void rows_in_lanes(const Columns& piece, int64_t block, float* out, const char* ahead,
                                     Load columns) const {
    const uint16_t* index = bank.index + offset(piece, block);
    const Value* value = (const Value*)bank.value + offset(piece, block);
    int64_t next = int64_t(bank.entries) * kRowBlock * kSpan;
    constexpr int kVectors = kRowBlock / kLanes;
    Float acc[kVectors] = {};
    for (int32_t j = 0; j < bank.entries; j++, index += kRowBlock, value += kRowBlock) {
      fetch(index + next, value + next, ahead + step * j);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++)
        acc[v] += columns(index + v * kLanes) * widen_lanes<kLanes>(value + v * kLanes);
    }
    float gate = batch.gate[piece.first];
    float* to = rows_of(piece, 0, out);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      if (bank.scale) acc[v] *= load<Float>(scale(piece, block) + v * kLanes);
      store(to + v * kLanes, load<Float>(to + v * kLanes) + acc[v] * gate);
    }
  }

  void one_token(const Columns& piece, int64_t block, float* out, const char* ahead) const {
    const X* x = (const X*)task.x + batch.token[piece.first] * task.x_stride;
#if defined(__AVX512F__)
    if (gathers(task.columns)) return rows_in_lanes(piece, block, out, ahead, [&](const uint16_t* i) { return gather(x, i); });
#endif
    rows_in_lanes(piece, block, out, ahead,
                  [&](const uint16_t* i) { return widen_lanes<kLanes>(pick<kLanes>(x, i)); });
  }

#if defined(__AVX512F__)
  // Returns whether gather instructions are faster on this processor and read nothing after the end of x.
  static bool gathers(int64_t columns) { return columns % 2 == 0 && __builtin_cpu_is("intel"); }

  // Computes tokens in half of the lanes. The sums of two rows, half a block apart, share a vector when they are
  // transposed.
  void half_lanes(const Columns& piece, int64_t block, float* out, const char* ahead) const {
    constexpr int kWidth = kLanes / 2, kRows = kRowBlock / 2;
    static_assert(kRows == kWidth, "a row from each half of the block has a place in a vector");
    using Sums = typename Vectors<kWidth>::Float;
    float sums[kRows][2][kWidth];
    const X* columns = (const X*)piece.data;
    int64_t next = int64_t(bank.entries) * kRowBlock * kSpan;
    for (int half = 0; half < 2; half++) {
      const uint16_t* index = bank.index + offset(piece, block) + half * kRows;
      const Value* value = (const Value*)bank.value + offset(piece, block) + half * kRows;
      Sums acc[kRows] = {};
      for (int32_t j = 0; j < bank.entries; j++, index += kRowBlock, value += kRowBlock) {
        if (half == 0) fetch(index + next, value + next, ahead + step * j);
        float wide[kRows];
        store(wide, widen_lanes<kRows>(value));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++) acc[r] += widen_lanes<kWidth>(columns + int64_t(index[r]) * kWidth) * wide[r];
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; r++) {
        if (bank.scale) acc[r] *= scale(piece, block)[half * kRows + r];
        store(sums[r][half], acc[r]);
      }
    }
    Float rows[kWidth];
#pragma GCC unroll 8
    for (int r = 0; r < kWidth; r++) rows[r] = load<Float>(sums[r]);
    turn<kWidth>(rows);
    for (int t = 0; t < piece.tokens; t++) {
      float* to = rows_of(piece, t, out);
      store(to, load<Float>(to) + rows[t] * batch.gate[piece.first + t]);
    }
  }
#endif

  // Computes tokens in all lanes of kHalves vectors. The sums of kRows rows stay in registers and are then transposed
  // into rows of each token. `columns` loads the vectors of a column.
  template <int kHalves, class Load>
  OVERTONE_INLINE void full_lanes(const Columns& piece, int64_t block, float* out, const char* ahead,
                                  Load columns) const {
    constexpr int kRows = kLanes / kHalves;
    int64_t next = int64_t(bank.entries) * kRowBlock * kSpan;
    Float sums[kHalves][kLanes];
    for (int first = 0; first < kRowBlock; first += kRows) {
      const uint16_t* index = bank.index + offset(piece, block) + first;
      const Value* value = (const Value*)bank.value + offset(piece, block) + first;
      Float acc[kRows][kHalves] = {};
      for (int32_t j = 0; j < bank.entries; j++, index += kRowBlock, value += kRowBlock) {
        if (first == 0) fetch(index + next, value + next, ahead + step * j);
        float wide[kRows];
        store(wide, widen_lanes<kRows>(value));
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++) {
          Float column[kHalves];
          columns(index[r], column);
#pragma GCC unroll 2
          for (int h = 0; h < kHalves; h++) acc[r][h] += column[h] * wide[r];
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++)
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; h++)
          sums[h][first % kLanes + r] = bank.scale ? acc[r][h] * scale(piece, block)[first + r] : acc[r][h];
      if ((first + kRows) % kLanes) continue;
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; h++) {
        turn<kLanes>(sums[h]);
        for (int t = 0; t < kLanes && h * kLanes + t < piece.tokens; t++) {
          float* to = rows_of(piece, h * kLanes + t, out) + (first + kRows - kLanes);
          store(to, load<Float>(to) + sums[h][t] * batch.gate[piece.first + h * kLanes + t]);
        }
      }
    }
  }

  void add(const Columns& piece, int64_t block, float* out, const char* ahead) const {
    fetch_scale(piece, block);
    switch (piece.width) {
      case 0: return one_token(piece, block, out, ahead);
      case kLanes:
        return full_lanes<1>(piece, block, out, ahead, [&](int64_t column, Float* halves) {
          halves[0] = widen_lanes<kLanes>((const X*)piece.data + column * kLanes);
        });
#if defined(__AVX512F__)
      case 32:
        return full_lanes<2>(piece, block, out, ahead, [&](int64_t column, Float* halves) {
          Word pairs = load<Word>((const uint32_t*)piece.data + column * kLanes);
          halves[0] = (Float)(pairs << 16);
          halves[1] = (Float)(pairs & 0xffff0000u);
        });
      case 8: return half_lanes(piece, block, out, ahead);
#endif
      default: __builtin_unreachable();
    }
  }
};

// Transposes columns [first, last) of a piece's tokens. Lanes without a token repeat the first token.
template <class X, int kWidth>
static void lay(const Task& task, const Columns& piece, int64_t first, int64_t last) {
  const X* rows[kWidth];
  for (int t = 0; t < kWidth; t++) {
    int32_t lane = t < piece.tokens ? t : 0;
    rows[t] = (const X*)task.x + task.batch->token[piece.first + lane] * task.x_stride;
  }
  for (int64_t column = first; column < last; column += kLanes) {
    int64_t left = last - column < kLanes ? last - column : kLanes;
    Float v[kWidth];
#pragma GCC unroll 16
    for (int t = 0; t < kWidth; t++) v[t] = load_part(rows[t] + column, left);
    turn<kWidth>(v);
    X* to = (X*)piece.data + column * kWidth;
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; i++) {
      X lanes[kLanes];
      store_part(lanes, v[i], kLanes);
#pragma GCC unroll 4
      for (int c = i; c < kLanes; c += kWidth)
        if (c < left) __builtin_memcpy(to + c * kWidth, lanes + c / kWidth * kWidth, kWidth * sizeof(X));
    }
  }
}

#if defined(__AVX512F__)
// The same for 32 tokens of bf16 in pairs.
static void lay_pairs(const Task& task, const Columns& piece, int64_t first, int64_t last) {
  const uint16_t* rows[32];
  for (int t = 0; t < 32; t++) {
    int32_t lane = t < piece.tokens ? t : 0;
    rows[t] = (const uint16_t*)task.x + task.batch->token[piece.first + lane] * task.x_stride;
  }
  for (int64_t column = first; column < last; column += kLanes) {
    int64_t left = last - column < kLanes ? last - column : kLanes;
    Word v[kLanes];
#pragma GCC unroll 16
    for (int t = 0; t < kLanes; t++)
      v[t] = (Word)load_part(rows[t] + column, left) >> 16 | (Word)load_part(rows[t + 16] + column, left);
    turn<kLanes>(v);
    uint32_t* to = (uint32_t*)piece.data + column * kLanes;
#pragma GCC unroll 16
    for (int c = 0; c < kLanes; c++)
      if (c < left) store(to + c * kLanes, v[c]);
  }
}
#endif

template <class X> static void lay_side_by_side(const Task& task, const Columns& piece, int64_t first, int64_t last) {
  switch (piece.width) {
    case kLanes: return lay<X, kLanes>(task, piece, first, last);
#if defined(__AVX512F__)
    case 32: return lay_pairs(task, piece, first, last);
    case 8: return lay<X, 8>(task, piece, first, last);
#endif
    default: __builtin_unreachable();
  }
}
