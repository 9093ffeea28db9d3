// The dense product of a block of rows. Included inside the namespace of isa.cpp.
//
// Every (row, token) has one vector of partial sums. The columns are added to it in the same order in every tile size.
// So a token's result is the same to the last bit for any number of tokens in the call.

// One step of columns: `Weight` is the type of stored weights, `Packed` the type of packed x.
struct Float32Step {
  using Weight = float;
  using Packed = float;
  static constexpr int kColumns = kLanes;
  static constexpr bool kRepack = false;
  using Loaded = Float;
  static OVERTONE_INLINE Loaded weights(const Weight* w) { return load<Float>(w); }
  static OVERTONE_INLINE Float add(Float sum, Loaded w, const Packed* x) { return sum + w * load<Float>(x); }
};

#if defined(__AVX512BF16__)
struct Bfloat16Step {
  using Weight = uint16_t;
  using Packed = uint16_t;
  static constexpr int kColumns = 2 * kLanes;
  static constexpr bool kRepack = false;
  using Loaded = __m512i;
  static OVERTONE_INLINE Loaded weights(const Weight* w) { return _mm512_loadu_si512(w); }
  static OVERTONE_INLINE Float add(Float sum, Loaded w, const Packed* x) {
    return (Float)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_loadu_si512(x));
  }
};
#else
// Without bf16 instructions, a shift and a mask split a vector of pairs into its even and odd columns. x is packed in
// fp32, with the even columns of each step before the odd ones.
struct Bfloat16Step {
  using Weight = uint16_t;
  using Packed = float;
  static constexpr int kColumns = 2 * kLanes;
  static constexpr bool kRepack = true;
  struct Loaded {
    Float even, odd;
  };
  static OVERTONE_INLINE Loaded weights(const Weight* w) {
    Word pairs = load<Word>(w);
    return {(Float)(pairs << 16), (Float)(pairs & 0xffff0000u)};
  }
  static OVERTONE_INLINE Float add(Float sum, Loaded w, const Packed* x) {
    sum += w.even * load<Float>(x);
    return sum + w.odd * load<Float>(x + kLanes);
  }
};
#endif

// The memory of a tile's sums between two chunks of columns, and the memory of its results after the last chunk.
struct Place {
  Float* sums;  // [tokens][kRowBlock]
  float* out;   // [tokens][kRowBlock]
  bool first, last;
};

// Returns whether a tile's sums nearly fill the lanes of their results. If they do, their lanes are summed in registers
// at the end of the tile, which overlaps with the next tile's products. Summing them at the end of a block took a third
// of the time of eight tokens.
constexpr bool sums_up(int64_t rows, int64_t tokens) { return 4 * rows * tokens >= 3 * kLanes; }
constexpr int64_t rows_at_once(int64_t tokens) { return tokens <= 4 ? 4 : 2; }

// Adds `steps` steps of columns to the sums of kRows rows and kTokens tokens, and prefetches the memory at `ahead`.
template <class Step, int kRows, int kTokens, bool kFetch>
static void tile(Place place, const typename Step::Weight* w, int64_t w_stride, const typename Step::Packed* x,
                 int64_t x_stride, int64_t steps, const char* ahead) {
  constexpr int64_t kBytes = Step::kColumns * sizeof(typename Step::Weight);
  Float acc[kRows][kTokens];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; t++) acc[r][t] = place.first ? Float{} : place.sums[t * kRowBlock + r];
  for (int64_t s = 0; s < steps; s++) {
    typename Step::Loaded loaded[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++) {
      if constexpr (kFetch) __builtin_prefetch(ahead + (s * kRows + r) * kBytes, 0, 2);
      loaded[r] = Step::weights(w + r * w_stride + s * Step::kColumns);
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; t++) {
      const typename Step::Packed* column = x + t * x_stride + s * Step::kColumns;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; r++) acc[r][t] = Step::add(acc[r][t], loaded[r], column);
    }
  }
  if constexpr (sums_up(kRows, kTokens)) {
    if (place.last) {
      constexpr int kVectors = (kRows * kTokens + kLanes - 1) / kLanes;
      Float all[kVectors * kLanes] = {};
#pragma GCC unroll 8
      for (int r = 0; r < kRows; r++)
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; t++) all[t * kRows + r] = acc[r][t];
      float results[kVectors * kLanes];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v++) store(results + v * kLanes, sums_of(all + v * kLanes));
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; t++)
        __builtin_memcpy(place.out + t * kRowBlock, results + t * kRows, kRows * sizeof(float));
      return;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; t++) place.sums[t * kRowBlock + r] = acc[r][t];
}

template <class Step, int kRows, bool kFetch, class... Arguments>
static void tile_of(int64_t tokens, Arguments... arguments) {
  switch (tokens) {
    case 1: return tile<Step, kRows, 1, kFetch>(arguments...);
    case 2: return tile<Step, kRows, 2, kFetch>(arguments...);
    case 3: return tile<Step, kRows, 3, kFetch>(arguments...);
    case 4: return tile<Step, kRows, 4, kFetch>(arguments...);
    default: break;
  }
  if constexpr (kRows <= 2) {
    switch (tokens) {
      case 5: return tile<Step, kRows, 5, kFetch>(arguments...);
      case 6: return tile<Step, kRows, 6, kFetch>(arguments...);
      case 7: return tile<Step, kRows, 7, kFetch>(arguments...);
      default: return tile<Step, kRows, 8, kFetch>(arguments...);
    }
  }
}

constexpr int64_t kChunkBytes = 16384;  // of x: about half of the smallest L1 cache

// The order in which a thread reads weights: for each block of rows, for each chunk of columns, for each row. The chunk
// of x of a tile of tokens stays in the L1 cache for all rows of the block.
template <class Step> struct Walk {
  const typename Step::Weight* weight;
  int64_t stride, chunk, columns, last_row;

  Walk(const Task& task, int64_t last_block) {
    weight = (const typename Step::Weight*)task.weight;
    stride = task.weight_stride;
    columns = task.columns;
    last_row = last_block * kRowBlock < task.rows ? last_block * kRowBlock : task.rows;
    int64_t tokens = task.tokens < kMaxTile ? task.tokens : kMaxTile;
    int64_t fits = kChunkBytes / int64_t(tokens * sizeof(typename Step::Packed));
    chunk = columns <= fits + fits / 2 ? columns : fits / Step::kColumns * Step::kColumns;
  }

  bool whole_rows() const { return chunk == columns; }

  // Returns the address to prefetch. The next block is prefetched in the order of its addresses, because that is the
  // fastest order for memory, and not in the order in which it will be read. `r` rows of the chunk [column, column +
  // width) are done.
  const char* ahead(int64_t row, int64_t r, int64_t column, int64_t width) const {
    if (row + 2 * kRowBlock > last_row) return (const char*)(weight + (row + r) * stride + column);
    int64_t done = column * kRowBlock + r * width;
    return (const char*)(weight + (row + kRowBlock + done / columns) * stride + done % columns);
  }
};

// Adds the bias of a block's rows to `out`, if there is one.
template <class X> static void add_bias(const Task& task, int64_t row, int64_t count, float* out) {
  if (!task.bias) return;
  float bias[kRowBlock] = {};
  for (int64_t r = 0; r < count; r++) bias[r] = widen(((const X*)task.bias)[row + r]);
  for (int64_t t = 0; t < task.tokens; t++)
    for (int r = 0; r < kRowBlock; r += kLanes)
      store(out + t * kRowBlock + r, load<Float>(out + t * kRowBlock + r) + load<Float>(bias + r));
}

// out[t * kRowBlock + r] = weight[row + r] @ x[t] + bias[row + r], for `count` rows starting at `row`.
template <class Step>
static void dense_block(const Task& task, const Walk<Step>& walk, int64_t row, int64_t count, Float* sums,
                        float* out) {
  using Weight = typename Step::Weight;
  using Packed = typename Step::Packed;
  const Packed* x = (const Packed*)task.packed;
  int64_t stride = task.packed_stride;
  int64_t whole = task.columns / Step::kColumns * Step::kColumns, tail = task.columns - whole;
  // The hardware prefetcher works best if whole rows are read one after another.
  bool single = walk.whole_rows() && task.tokens == 1;
  bool sums_up_tiles = !tail && count == kRowBlock;
  for (int64_t column = 0; column < whole; column += walk.chunk) {
    int64_t end = column + walk.chunk < whole ? column + walk.chunk : whole;
    int64_t steps = (end - column) / Step::kColumns;
    for (int64_t t = 0; t < task.tokens; t += kMaxTile) {
      int64_t tokens = task.tokens - t < kMaxTile ? task.tokens - t : kMaxTile;
      const Packed* columns = x + t * stride + column;
      for (int64_t r = 0; r < count;) {
        const Weight* w = walk.weight + (row + r) * walk.stride + column;
        const char* ahead = t == 0 ? walk.ahead(row, r, column, end - column) : (const char*)w;
        Place place{sums + t * kRowBlock + r, out + t * kRowBlock + r, column == 0, sums_up_tiles && end == whole};
        int64_t rows = single ? 1 : rows_at_once(tokens);
        if (rows == 4 && count - r >= 4) {
          tile_of<Step, 4, true>(tokens, place, w, walk.stride, columns, stride, steps, ahead);
          r += 4;
        } else if (rows > 1 && count - r >= 2) {
          tile_of<Step, 2, true>(tokens, place, w, walk.stride, columns, stride, steps, ahead);
          r += 2;
        } else {
          tile_of<Step, 1, false>(tokens, place, w, walk.stride, columns, stride, steps, ahead);
          r += 1;
        }
      }
    }
  }
  for (int64_t r = 0; tail && r < count; r++) {
    Weight last[Step::kColumns] = {};
    __builtin_memcpy(last, walk.weight + (row + r) * walk.stride + whole, tail * sizeof(Weight));
    for (int64_t t = 0; t < task.tokens; t++) {
      Place place{sums + t * kRowBlock + r, nullptr, whole == 0, false};
      tile<Step, 1, 1, false>(place, last, 0, x + t * stride + whole, 0, 1, nullptr);
    }
  }
  for (int64_t t = 0; t < task.tokens; t++) {
    int64_t tile_tokens = task.tokens - t / kMaxTile * kMaxTile;
    if (tile_tokens > kMaxTile) tile_tokens = kMaxTile;
    if (sums_up_tiles && !single && sums_up(rows_at_once(tile_tokens), tile_tokens)) continue;
    for (int r = 0; r < kRowBlock; r += kLanes) store(out + t * kRowBlock + r, sums_of(sums + t * kRowBlock + r));
  }
  add_bias<Weight>(task, row, count, out);
}

// What a thread sets up before it computes products, and restores after them. Only tiles need it.
template <class Step> struct Configured {
  explicit Configured(const Task&) {}
};

// Copies this thread's share of x into the packed form, with zeros after the last column.
template <class Step> static void pack(const Task& task, int thread, int threads) {
  using Weight = typename Step::Weight;
  using Packed = typename Step::Packed;
  for (int64_t t = task.tokens * thread / threads; t < task.tokens * (thread + 1) / threads; t++) {
    const Weight* from = (const Weight*)task.x + t * task.x_stride;
    Packed* to = (Packed*)task.packed + t * task.packed_stride;
    for (int64_t column = 0; column < task.columns; column += Step::kColumns) {
      Weight step[Step::kColumns] = {};
      int64_t left = task.columns - column < Step::kColumns ? task.columns - column : Step::kColumns;
      __builtin_memcpy(step, from + column, left * sizeof(Weight));
      if constexpr (Step::kRepack) {
        for (int i = 0; i < kLanes; i++) {
          to[column + i] = widen(step[2 * i]);
          to[column + kLanes + i] = widen(step[2 * i + 1]);
        }
      } else {
        __builtin_memcpy(to + column, step, sizeof step);
      }
    }
  }
}
