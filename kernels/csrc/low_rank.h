// The experts' low-rank residuals, y += gate * B (scale * A x). Included inside the namespace of isa.cpp.
//
// Every sum is made in one order whatever the tile: that of A x adds vectors of columns and then folds their lanes, that
// of B u adds one direction after another with rows in the lanes. So a token has the same bits alone and in company.

// u of kRows directions for kTokens tokens: the rows of A are read once for all of them.
template <class X, class Value, int kRows, int kTokens>
static void shrink_tile(const Value* a, const X* const* x, int64_t columns, const float* scale, float* u,
                        int64_t u_stride) {
  constexpr int kVectors = (kRows * kTokens + kLanes - 1) / kLanes;
  Float acc[kVectors * kLanes] = {};
  int64_t whole = columns / kLanes * kLanes, tail = columns - whole;
  for (int64_t column = 0; column < whole; column += kLanes) {
    Float rows[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++) {
      // The rows that come next, while these are read.
      __builtin_prefetch(a + (kRows + r) * columns + column, 0, 2);
      rows[r] = widen_lanes<kLanes>(a + r * columns + column);
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; t++) {
      Float inputs = widen_lanes<kLanes>(x[t] + column);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; r++) acc[t * kRows + r] += rows[r] * inputs;
    }
  }
  if (tail)
    for (int t = 0; t < kTokens; t++)
      for (int r = 0; r < kRows; r++)
        acc[t * kRows + r] += load_part(a + r * columns + whole, tail) * load_part(x[t] + whole, tail);
  float sums[kVectors * kLanes];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; v++) store(sums + v * kLanes, sums_of(acc + v * kLanes));
  for (int t = 0; t < kTokens; t++)
    for (int r = 0; r < kRows; r++) u[t * u_stride + r] = sums[t * kRows + r] * scale[r];
}

// Where a tile's 16 numbers of each token are: those of the t-th are `out + place[t] * kRowBlock`. Only the rows
// [first, last) of the block change.
struct Rows {
  float* out;
  const int32_t* place;
  int64_t first, last;
};

// Rows of kTokens tokens plus gate * B u.
template <class Value, int kTokens>
static void expand_tile(const Value* b, int64_t rank, const float* u, int64_t u_stride, const float* gate, Rows rows) {
  constexpr int kVectors = kRowBlock / kLanes;
  Float acc[kTokens][kVectors] = {};
  for (int64_t j = 0; j < rank; j++, b += kRowBlock) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      Float column = widen_lanes<kLanes>(b + v * kLanes);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; t++) acc[t][v] += column * u[t * u_stride + j];
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; t++) {
    float* to = rows.out + int64_t(rows.place[t]) * kRowBlock;
    if (rows.last - rows.first == kRowBlock) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) store(to + v * kLanes, load<Float>(to + v * kLanes) + acc[t][v] * gate[t]);
      continue;
    }
    float all[kRowBlock];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) store(all + v * kLanes, load<Float>(to + v * kLanes) + acc[t][v] * gate[t]);
    for (int64_t r = rows.first; r < rows.last; r++) to[r] = all[r];
  }
}

template <class Value, int kTokens, class... Arguments>
static void expand_tile_of(int32_t tokens, Arguments... arguments) {
  if constexpr (kTokens > 1)
    if (tokens < kTokens) return expand_tile_of<Value, kTokens - 1>(tokens, arguments...);
  expand_tile<Value, kTokens>(arguments...);
}

template <class Value> struct LowRankResidual {
  static constexpr int kTile = kLanes / 2;  // tokens whose sums of a block are in registers at once
  const Task& task;
  const LowRank& bank = *task.low_rank;
  const Batch& batch = *task.batch;

  const int32_t* ranks(const Run& run) const { return bank.ranks + batch.slot[run.group] * bank.segments; }

  // u of a share of all directions of all runs.
  template <class X> void shrink(int thread, int threads) const {
    int64_t all = 0;
    for (int32_t i = 0; i < task.runs; i++)
      for (int64_t s = 0; s < bank.segments; s++) all += ranks(task.run[i])[s];
    int64_t first = all * thread / threads, last = all * (thread + 1) / threads;
    for (int32_t i = 0; i < task.runs && last > 0; i++) {
      for (int64_t s = 0; s < bank.segments; s++) {
        int64_t rank = ranks(task.run[i])[s];
        int64_t from = first > 0 ? first : 0, to = last < rank ? last : rank;
        if (from < to) shrink_rows<X>(task.run[i], bank.segment[s].first_rank + from, to - from);
        first -= rank;
        last -= rank;
      }
    }
  }

  // u of directions [first, first + count) for a run's tokens.
  template <class X> void shrink_rows(const Run& run, int64_t first, int64_t count) const {
    int64_t slot = batch.slot[run.group];
    const Value* a = (const Value*)bank.a + (slot * bank.directions + first) * task.columns;
    const float* scale = bank.scale + slot * bank.directions + first;
    float* u = task.u + run.first * bank.directions + first;
    for (int64_t r = 0; r < count;) {
      int64_t rows = count - r >= 4 ? 4 : 1;
      for (int32_t t = 0; t < run.tokens;) {
        int32_t tokens = run.tokens - t >= 4 ? 4 : 1;
        const X* x[4];
        for (int32_t i = 0; i < tokens; i++) x[i] = (const X*)task.x + batch.token[run.first + t + i] * task.x_stride;
        auto tile = rows == 4 ? tokens == 4 ? shrink_tile<X, Value, 4, 4> : shrink_tile<X, Value, 4, 1>
                  : tokens == 4 ? shrink_tile<X, Value, 1, 4> : shrink_tile<X, Value, 1, 1>;
        tile(a + r * task.columns, x, task.columns, scale + r, u + t * bank.directions + r, bank.directions);
        t += tokens;
      }
      r += rows;
    }
  }

  // visit(segment, rank, B of the block) for each segment with rows in a block and directions in the run's slot.
  template <class Visit> OVERTONE_INLINE void each(const Run& run, int64_t block, Visit visit) const {
    const Value* b = (const Value*)bank.b + batch.slot[run.group] * bank.elements;
    int64_t row = block * kRowBlock;
    for (int64_t s = 0; s < bank.segments; s++) {
      const Segment& segment = bank.segment[s];
      int64_t rank = ranks(run)[s];
      if (rank && segment.first_row < row + kRowBlock && row < segment.last_row)
        visit(segment, rank, b + segment.start + (block - segment.first_row / kRowBlock) * rank * kRowBlock);
    }
  }

  void fetch(const Run& run, int64_t block) const {
    each(run, block, [](const Segment&, int64_t rank, const Value* b) {
      const char* at = (const char*)b;
      for (int64_t byte = 0; byte < rank * kRowBlock * int64_t(sizeof(Value)); byte += kLine)
        __builtin_prefetch(at + byte, 0, 2);
    });
  }

  // Add the residuals of a run's tokens in one block to `out`, where the t-th token is at `place[t]`.
  void add(const Run& run, int64_t block, float* out, const int32_t* place) const {
    each(run, block, [&](const Segment& segment, int64_t rank, const Value* b) {
      int64_t row = block * kRowBlock, first = segment.first_row - row, last = segment.last_row - row;
      const float* u = task.u + run.first * bank.directions + segment.first_rank;
      for (int32_t t = 0; t < run.tokens; t += kTile)
        expand_tile_of<Value, kTile>(
            run.tokens - t, b, rank, u + t * bank.directions, bank.directions, batch.gate + run.first + t,
            Rows{out, place + t, first > 0 ? first : 0, last < kRowBlock ? last : kRowBlock});
    });
  }
};
