// The experts' residuals of a block of rows. Included inside the namespace of isa.cpp.
//
// A row's entries are added one after another in the order of the bank, with rows in the lanes (one token) or tokens
// in the lanes (several that share the expert): the same sums in the same order, so the same bits either way.

// kWidth columns of x, loaded one by one: on Zen 4 that takes 0.24 ns a column, a gather instruction 0.36. They are
// joined in registers: two stores read back by one load would wait for both to reach the cache.
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

template <class X, class Value> struct Residual {
  const Task& task;
  const Bank& bank;
  const Batch& batch;
  bool compact;   // `out` holds the piece's tokens only, one after another; otherwise all tokens of the task
  int64_t step;   // bytes of weights to fetch with each 16 entries: a cache line, or 0 where none are needed

  // The 16 rows of a piece's t-th token.
  float* rows_of(const Columns& piece, int t, float* out) const {
    return out + int64_t(compact ? t : batch.token[piece.first + t]) * kRowBlock;
  }

  // Where the entries of one group's slot for one block begin.
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

  void one_token(const Columns& piece, int64_t block, float* out, const char* ahead) const {
    const X* x = (const X*)task.x + batch.token[piece.first] * task.x_stride;
    const uint16_t* index = bank.index + offset(piece, block);
    const Value* value = (const Value*)bank.value + offset(piece, block);
    int64_t next = int64_t(bank.entries) * kRowBlock * kSpan;
    constexpr int kVectors = kRowBlock / kLanes;
    Float acc[kVectors] = {};
    for (int32_t j = 0; j < bank.entries; j++, index += kRowBlock, value += kRowBlock) {
      fetch(index + next, value + next, ahead + step * j);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++)
        acc[v] += widen_lanes<kLanes>(pick<kLanes>(x, index + v * kLanes)) * widen_lanes<kLanes>(value + v * kLanes);
    }
    float gate = batch.gate[piece.first];
    float* to = rows_of(piece, 0, out);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      if (bank.scale) acc[v] *= load<Float>(scale(piece, block) + v * kLanes);
      store(to + v * kLanes, load<Float>(to + v * kLanes) + acc[v] * gate);
    }
  }

  template <int kWidth>
  void many_tokens(const Columns& piece, int64_t block, float* out, const char* ahead) const {
    using Wide = typename Vectors<kWidth>::Float;
    constexpr int kRows = 8;
    float turned[kRowBlock * kWidth];
    int64_t next = int64_t(bank.entries) * kRowBlock * kSpan;
    for (int first = 0; first < kRowBlock; first += kRows) {
      const uint16_t* index = bank.index + offset(piece, block) + first;
      const Value* value = (const Value*)bank.value + offset(piece, block) + first;
      Wide acc[kRows] = {};
      for (int32_t j = 0; j < bank.entries; j++, index += kRowBlock, value += kRowBlock) {
        if (first == 0) fetch(index + next, value + next, ahead + step * j);
        float wide[kRows];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r += 4) store(wide + r, widen_lanes<4>(value + r));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++) acc[r] += load<Wide>(piece.data + int64_t(index[r]) * kWidth) * wide[r];
      }
      for (int r = 0; r < kRows; r++) {
        if (bank.scale) acc[r] *= scale(piece, block)[first + r];
        store(turned + (first + r) * kWidth, acc[r]);
      }
    }
    for (int t = 0; t < piece.tokens; t++) {
      float* to = rows_of(piece, t, out);
      float gate = batch.gate[piece.first + t];
      for (int r = 0; r < kRowBlock; r++) to[r] += turned[r * kWidth + t] * gate;
    }
  }

  void add(const Columns& piece, int64_t block, float* out, const char* ahead) const {
    switch (piece.width) {
      case 0: return one_token(piece, block, out, ahead);
      case 4: return many_tokens<4>(piece, block, out, ahead);
#if defined(__AVX512F__)
      case 16: return many_tokens<16>(piece, block, out, ahead);
#endif
      default: return many_tokens<8>(piece, block, out, ahead);
    }
  }
};

template <class X> OVERTONE_INLINE void lay4(const X* const* rows, int64_t column, float* to) {
  store(to, Vectors<4>::Float{widen(rows[0][column]), widen(rows[1][column]), widen(rows[2][column]),
                              widen(rows[3][column])});
}

// Columns [first, last) of a piece's tokens, side by side; lanes without a token repeat the first.
template <class X> static void lay_side_by_side(const Task& task, const Columns& piece, int64_t first, int64_t last) {
  const X* rows[16];
  for (int t = 0; t < piece.width; t++) {
    int32_t lane = t < piece.tokens ? t : 0;
    rows[t] = (const X*)task.x + task.batch->token[piece.first + lane] * task.x_stride;
  }
  for (int64_t column = first; column < last; column++)
    for (int t = 0; t < piece.width; t += 4) lay4(rows + t, column, piece.data + column * piece.width + t);
}
