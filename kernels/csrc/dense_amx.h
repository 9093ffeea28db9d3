// The dense product of a block of rows in bf16 with tiles. Included inside the namespace of isa.cpp.
//
// A product of tiles multiplies 16 rows of weights by up to 16 tokens. It takes 16 cycles for 1 KB of weights, so
// memory limits the speed for many tokens as well. Even and odd steps of 32 columns have separate sums, which are added
// at the end. A single chain of sums would take longer than reading the weights.

// Packed x: for each tile of tokens, words [columns / 2, lanes]. Up to 16 tokens are one tile, with a lane for each.
struct TileStep {
  using Weight = uint16_t;
  using Packed = uint16_t;
  static constexpr int kColumns = kDepth;
  static constexpr bool kRepack = true;
};

inline int64_t lanes_of(const Task& task) { return task.tokens < kTile ? task.tokens : kTile; }
inline int64_t tiles_of(const Task& task) { return (task.tokens + kTile - 1) / kTile; }

// Tiles 0 to 3: sums of rows, for even and odd steps of one tile of tokens, then of another; 4 and 5: weights of an
// even and an odd step; 6: x.
inline void configure_product(int64_t rows, int64_t lanes) {
  TileConfig config;
  for (int tile = 0; tile < 4; tile++) config.set(tile, rows, lanes * 4);
  for (int tile = 4; tile < 6; tile++) config.set(tile, rows, 64);
  config.set(6, kTile, lanes * 4);
  _tile_loadconfig(&config);
}

// Prefetches the part of the next block for one step, in the order of addresses.
OVERTONE_INLINE void fetch_step(const char* ahead) {
#pragma GCC unroll 16
  for (int line = 0; line < kTile; line++) __builtin_prefetch(ahead + line * kLine, 0, 2);
}

// Adds a step of columns to the sums of one or two tiles of tokens.
#define OVERTONE_TILE_STEP(weights, first, second)        \
  _tile_loadd(weights, w, w_stride);                      \
  _tile_loadd(6, x, lanes * 4);                           \
  _tile_dpbf16ps(first, weights, 6);                      \
  if (kTwo) {                                             \
    _tile_loadd(6, x + other, lanes * 4);                 \
    _tile_dpbf16ps(second, weights, 6);                   \
  }

// Computes the sums of one or two tiles of tokens over all columns, [even and odd, 16 rows, lanes] for each tile.
// `rest` holds the columns after the last whole step, padded with zeros, or is null. `other` is the number of words
// between the tiles of x.
template <bool kTwo>
void product_of_tiles(const uint16_t* w, int64_t w_stride, const Word* packed, int64_t other, int64_t lanes,
                      int64_t steps, const uint16_t* rest, const char* ahead, float* sums) {
  const uint32_t* x = (const uint32_t*)packed;
  _tile_zero(0);
  _tile_zero(1);
  if (kTwo) {
    _tile_zero(2);
    _tile_zero(3);
  }
  int64_t s = 0;
  for (; s + 2 <= steps; s += 2) {
    fetch_step(ahead);
    OVERTONE_TILE_STEP(4, 0, 2)
    w += kDepth, x += kTile * lanes;
    fetch_step(ahead + kTile * kLine);
    ahead += 2 * kTile * kLine;
    OVERTONE_TILE_STEP(5, 1, 3)
    w += kDepth, x += kTile * lanes;
  }
  if (s < steps) {
    fetch_step(ahead);
    OVERTONE_TILE_STEP(4, 0, 2)
    x += kTile * lanes;
    s++;
  }
  if (rest) {
    w = rest, w_stride = 2 * kDepth;
    if (s % 2) {
      OVERTONE_TILE_STEP(5, 1, 3)
    } else {
      OVERTONE_TILE_STEP(4, 0, 2)
    }
  }
  int64_t stride = lanes * 4, tile = kTile * lanes;
  _tile_stored(0, sums, stride);
  _tile_stored(1, sums + tile, stride);
  if (kTwo) {
    _tile_stored(2, sums + 2 * tile, stride);
    _tile_stored(3, sums + 3 * tile, stride);
  }
}
#undef OVERTONE_TILE_STEP

// Adds the even and the odd sums of a tile, [even and odd, 16 rows, lanes], and transposes them to out [tokens, 16
// rows].
inline void store_tile(const float* sums, int64_t lanes, int64_t tokens, float* out) {
  const float* odd = sums + kTile * lanes;
  if (lanes == 1) return store(out, load<Float>(sums) + load<Float>(odd));
  Float row[kTile];
  for (int64_t r = 0; r < kTile; r++) row[r] = load<Float>(sums + r * lanes) + load<Float>(odd + r * lanes);
  turn<kTile>(row);
  for (int64_t t = 0; t < tokens; t++) store(out + t * kRowBlock, row[t]);
}

inline void dense_block(const Task& task, const Walk<TileStep>& walk, int64_t row, int64_t count, Float*, float* out) {
  int64_t lanes = lanes_of(task), steps = task.columns / kDepth, tail = task.columns % kDepth;
  int64_t words = (steps + (tail > 0)) * kTile;
  const uint16_t* weight = walk.weight + row * walk.stride;
  alignas(64) uint16_t rest[kTile * kDepth] = {};
  for (int64_t r = 0; tail && r < count; r++)
    __builtin_memcpy(rest + r * kDepth, weight + r * walk.stride + steps * kDepth, tail * 2);
  if (count < kRowBlock) configure_product(count, lanes);
  // `store_tile` reads beyond the last row of a narrow tile. It ignores what it reads there.
  alignas(64) float sums[5 * kTile * kTile];
  for (int64_t tile = 0; tile < tiles_of(task); tile += 2) {
    bool two = tile + 1 < tiles_of(task);
    const Word* x = (const Word*)((const uint32_t*)task.packed + tile * words * lanes);
    const char* ahead = tile ? (const char*)weight : walk.ahead(row, 0, 0, task.columns);
    const uint16_t* last = tail ? rest : nullptr;
    if (two)
      product_of_tiles<true>(weight, walk.stride * 2, x, words * lanes, lanes, steps, last, ahead, sums);
    else
      product_of_tiles<false>(weight, walk.stride * 2, x, 0, lanes, steps, last, ahead, sums);
    for (int64_t i = 0; i <= two; i++) {
      int64_t first = (tile + i) * kTile, tokens = task.tokens - first < kTile ? task.tokens - first : kTile;
      store_tile(sums + i * 2 * kTile * lanes, lanes, tokens, out + first * kRowBlock);
    }
  }
  if (count < kRowBlock) configure_product(kRowBlock, lanes);
  add_bias<uint16_t>(task, row, count, out);
}

// A single token needs no packing if its columns are a multiple of a step.
template <> bool needs_packing<TileStep>(const Task& task) { return task.tokens > 1 || task.columns % kDepth; }
template <> int64_t packed_bytes_of<TileStep>(const Task& task) {
  return tiles_of(task) * lanes_of(task) * task.packed_stride * int64_t(sizeof(uint16_t));
}

template <> struct Configured<TileStep> {
  Tiles tiles;
  explicit Configured(const Task& task) {
    if (task.quantised)
      configure_bytes(lanes_of(task));
    else
      configure_product(kRowBlock, lanes_of(task));
  }
};

// Packs this thread's share of the steps of columns, padded with zeros after the last column and the last token.
template <> void pack<TileStep>(const Task& task, int thread, int threads) {
  int64_t lanes = lanes_of(task), steps = (task.columns + kDepth - 1) / kDepth;
  int64_t first = steps * thread / threads, last = steps * (thread + 1) / threads;
  uint32_t* packed = (uint32_t*)task.packed;
  __mmask16 kept = __mmask16((1u << lanes) - 1);
  for (int64_t tile = 0; tile < tiles_of(task); tile++) {
    for (int64_t step = first; step < last; step++) {
      int64_t left = task.columns - step * kDepth;
      Word word[kTile];
      for (int64_t i = 0; i < kTile; i++) {
        int64_t token = tile * kTile + i;
        word[i] = Word{};
        if (token >= task.tokens) continue;
        const uint16_t* from = (const uint16_t*)task.x + token * task.x_stride + step * kDepth;
        __builtin_memcpy(word + i, from, (left < kDepth ? left : kDepth) * 2);
      }
      turn<kTile>(word);
      uint32_t* to = packed + ((tile * steps + step) * kTile) * lanes;
      for (int64_t i = 0; i < kTile; i++) _mm512_mask_storeu_epi32(to + i * lanes, kept, (__m512i)word[i]);
    }
  }
}
