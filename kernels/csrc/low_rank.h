// The experts' low-rank residuals, y += gate * B (scale * A x). Included inside the namespace of isa.cpp.
//
// Every sum has the same order in every tile size: A x adds vectors of columns and then folds their lanes, and B u adds
// one direction after another with rows in the lanes. So a token has the same bits alone and in a batch.

// Computes u of kRows directions for kTokens tokens. It reads the rows of A once for all tokens, and prefetches the
// same number of rows at `ahead`.
template <class X, class Value, int kRows, int kTokens>
static void shrink_tile(const Value* a, const Value* ahead, const X* const* x, int64_t columns, const float* scale,
                        float* u, int64_t u_stride) {
  constexpr int kVectors = (kRows * kTokens + kLanes - 1) / kLanes;
  constexpr int64_t kLineColumns = kLine / sizeof(Value);
  Float acc[kVectors * kLanes] = {};
  int64_t whole = columns / kLanes * kLanes, tail = columns - whole;
  for (int64_t column = 0; column < whole; column += kLanes) {
    if (column % kLineColumns == 0)
#pragma GCC unroll 4
      for (int r = 0; r < kRows; r++) __builtin_prefetch(ahead + r * columns + column, 0, 2);
    Float rows[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) rows[r] = widen_lanes<kLanes>(a + r * columns + column);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      Float inputs = widen_lanes<kLanes>(x[t] + column);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; r++) acc[t * kRows + r] += rows[r] * inputs;
    }
  }
  if (tail)
    for (int t = 0; t < kTokens; t++)
      for (int r = 0; r < kRows; r++)
        acc[t * kRows + r] += load_part(a + r * columns + whole, tail) * load_part(x[t] + whole, tail);
  float sums[kVectors * kLanes];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; v++) store(sums + v * kLanes, sums_of(acc + v * kLanes));
  for (int t = 0; t < kTokens; t++)
    for (int r = 0; r < kRows; r++) u[t * u_stride + r] = sums[t * kRows + r] * scale[r];
}

// The memory of a tile's sums. The 16 sums of the t-th token in the tile's first block are at `out + place[t] *
// kRowBlock`, and the sums of each following block are `stride` further. Only rows [first, last) of a block are
// changed.
struct Sums {
  float* out;
  int64_t stride;
  const int32_t* place;
  int64_t first, last;
};

// Adds gate * B u to the sums of kTokens tokens in kBlocks blocks.
template <class Value, int kTokens, int kBlocks>
static void expand_tile(const Value* b, int64_t rank, const float* u, int64_t u_stride, const float* gate, Sums sums) {
  constexpr int kVectors = kRowBlock / kLanes;
  Float acc[kTokens][kBlocks][kVectors] = {};
  for (int64_t j = 0; j < rank; j++, b += kRowBlock) {
#pragma GCC unroll 4
    for (int block = 0; block < kBlocks; block++)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        Float column = widen_lanes<kLanes>(b + block * rank * kRowBlock + v * kLanes);
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; t++) acc[t][block][v] += column * u[t * u_stride + j];
      }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; t++)
#pragma GCC unroll 4
    for (int block = 0; block < kBlocks; block++) {
      float* to = sums.out + int64_t(sums.place[t]) * kRowBlock + block * sums.stride;
      Float whole[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) whole[v] = load<Float>(to + v * kLanes) + acc[t][block][v] * gate[t];
      if (sums.last - sums.first == kRowBlock)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) store(to + v * kLanes, whole[v]);
      else
        for (int64_t r = sums.first; r < sums.last; r++) to[r] = whole[r / kLanes][r % kLanes];
    }
}

template <class Value, int kTokens, class... Arguments>
static void expand_tile_of(int32_t tokens, Arguments... arguments) {
  if constexpr (kTokens > 1)
    if (tokens < kTokens) return expand_tile_of<Value, kTokens - 1>(tokens, arguments...);
  expand_tile<Value, kTokens, 1>(arguments...);
}

template <class Value> struct LowRankResidual {
  static constexpr int kTile = kLanes / 2;  // tokens whose sums of a block are in registers at once
  static constexpr int64_t kAtOnce = 4;     // blocks of a single token, and rows of A, in registers at once
  const Task& task;
  const LowRank& bank = *task.low_rank;
  const Batch& batch = *task.batch;

  // Directions [first, first + count) of a run's slot.
  struct Share {
    const Run* run;
    int64_t first, count;
  };

  const int32_t* ranks(const Run& run) const { return bank.ranks + batch.slot[run.group] * bank.segments; }
  const Value* a_of(const Share& share) const {
    return (const Value*)bank.a + (batch.slot[share.run->group] * bank.directions + share.first) * task.columns;
  }

  // Computes a thread's share of u. All directions of all runs are divided among the threads.
  template <class X> void shrink(int thread, int threads) const {
    int64_t all = 0;
    for (int32_t i = 0; i < task.runs; i++)
      for (int64_t s = 0; s < bank.segments; s++) all += ranks(task.run[i])[s];
    int64_t begin = all * thread / threads, end = all * (thread + 1) / threads;
    Share last{nullptr, 0, 0};
    for (int32_t i = 0; i < task.runs && end > 0; i++) {
      for (int64_t s = 0; s < bank.segments; s++) {
        int64_t rank = ranks(task.run[i])[s], to = end < rank ? end : rank;
        for (int64_t from = begin > 0 ? begin : 0; from < to;) {
          Share next{&task.run[i], bank.segment[s].first_rank + from, to - from >= kAtOnce ? kAtOnce : 1};
          if (last.run) shrink_share<X>(last, a_of(next));
          last = next;
          from += next.count;
        }
        begin -= rank;
        end -= rank;
      }
    }
    if (last.run) shrink_share<X>(last, a_of(last));
  }

  template <class X> void shrink_share(const Share& share, const Value* ahead) const {
    const Run& run = *share.run;
    const Value* a = a_of(share);
    const float* scale = bank.scale + batch.slot[run.group] * bank.directions + share.first;
    float* u = task.u + run.first * bank.directions + share.first;
    for (int32_t t = 0; t < run.tokens;) {
      int32_t tokens = run.tokens - t >= 4 ? 4 : 1;
      const X* x[4];
      for (int32_t i = 0; i < tokens; i++) x[i] = (const X*)task.x + batch.token[run.first + t + i] * task.x_stride;
      auto tile = share.count == kAtOnce ? tokens == 4 ? shrink_tile<X, Value, kAtOnce, 4> : shrink_tile<X, Value, kAtOnce, 1>
                  : tokens == 4 ? shrink_tile<X, Value, 1, 4> : shrink_tile<X, Value, 1, 1>;
      tile(a, ahead, x, task.columns, scale, u + t * bank.directions, bank.directions);
      t += tokens;
    }
  }

  // The blocks in [first, last) that have rows of a segment, and the address of B of the first of them.
  struct Blocks {
    int64_t first, last;
    const Value* b;
  };
  Blocks blocks_of(const Segment& segment, const Run& run, int64_t rank, int64_t first, int64_t last) const {
    int64_t begin = segment.first_row / kRowBlock, end = (segment.last_row + kRowBlock - 1) / kRowBlock;
    int64_t from = first > begin ? first : begin;
    const Value* b = (const Value*)bank.b + batch.slot[run.group] * bank.elements + segment.start;
    return {from, last < end ? last : end, b + (from - begin) * rank * kRowBlock};
  }

  // Prefetches all of B that the runs read for one block.
  void fetch(int64_t block) const {
    for (int32_t i = 0; i < task.runs; i++) fetch_run(task.run[i], block, block + 1);
  }

  void fetch_run(const Run& run, int64_t first, int64_t last) const {
    for (int64_t s = 0; s < bank.segments; s++) {
      int64_t rank = ranks(run)[s];
      auto [begin, end, b] = blocks_of(bank.segment[s], run, rank, first, last);
      for (int64_t byte = 0; byte < (end - begin) * rank * kRowBlock * int64_t(sizeof(Value)); byte += kLine)
        __builtin_prefetch((const char*)b + byte, 0, 2);
    }
  }

  // Adds the residuals of a run's tokens in blocks [first, last) to `out`. `Sums` describes `out`, `stride` and
  // `place`.
  void add(const Run& run, int64_t first, int64_t last, float* out, int64_t stride, const int32_t* place) const {
    for (int64_t s = 0; s < bank.segments; s++) {
      const Segment& segment = bank.segment[s];
      int64_t rank = ranks(run)[s];
      if (!rank) continue;
      auto [block, end, b] = blocks_of(segment, run, rank, first, last);
      const float* u = task.u + run.first * bank.directions + segment.first_rank;
      const float* gate = batch.gate + run.first;
      while (block < end) {
        int64_t begins = segment.first_row - block * kRowBlock, ends = segment.last_row - block * kRowBlock;
        Sums sums{out + (block - first) * stride, stride, place, begins > 0 ? begins : 0,
                  ends < kRowBlock ? ends : kRowBlock};
        int64_t done = 1;
        if (run.tokens == 1 && begins <= 0 && ends >= kAtOnce * kRowBlock && end - block >= kAtOnce) {
          done = kAtOnce;
          expand_tile<Value, 1, kAtOnce>(b, rank, u, bank.directions, gate, sums);
        } else {
          for (int32_t t = 0; t < run.tokens; t += kTile, sums.place += kTile)
            expand_tile_of<Value, kTile>(run.tokens - t, b, rank, u + t * bank.directions, bank.directions, gate + t,
                                         sums);
        }
        block += done;
        b += done * rank * kRowBlock;
      }
    }
  }
};
