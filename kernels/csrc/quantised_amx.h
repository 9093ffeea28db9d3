// Products with weights of 8 bits with tiles. Included by quantised.h.
//
// A block stores four columns of 16 rows side by side, which is the layout of tile B: 64 columns are 16 of its rows.
// The rows of A are tokens, once with the upper and once with the lower bytes of x. Sums of integers do not depend on
// their order, so the results have the same bits as without tiles. Weights of 4 bits have a scale for each group of 32
// columns. That makes the products so small that tiles took 1.5 times as long as vectors for eight tokens.

constexpr int64_t kWide = 64;  // columns that a product of tiles sums over

// Tiles 0 and 1: the sums of the upper and the lower bytes, [tokens, 16 rows]; 2 and 3: these bytes of 64 columns;
// 4: their weights; 5 to 7: the same as 2 to 4 for 32 columns.
inline void configure_bytes(int64_t tokens) {
  TileConfig config;
  for (int tile = 0; tile < 4; tile++) config.set(tile, tokens, 64);
  config.set(4, kTile, 64);
  config.set(5, tokens, kGroup);
  config.set(6, tokens, kGroup);
  config.set(7, kTile / 2, 64);
  _tile_loadconfig(&config);
}

inline void bytes_of_tiles(const int8_t* w, const int8_t* upper, const int8_t* lower, int64_t stride, int64_t padded,
                           int32_t* sums) {
  _tile_zero(0);
  _tile_zero(1);
  int64_t k = 0;
  for (; k + kWide <= padded; k += kWide, w += kWide * kRowBlock) {
#pragma GCC unroll 16
    for (int line = 0; line < kTile; line++) __builtin_prefetch(w + kAhead + line * kLine, 0, 2);
    _tile_loadd(4, w, 64);
    _tile_loadd(2, upper + k, stride);
    _tile_dpbsud(0, 2, 4);
    _tile_loadd(3, lower + k, stride);
    _tile_dpbsud(1, 3, 4);
  }
  if (k < padded) {
    _tile_loadd(7, w, 64);
    _tile_loadd(5, upper + k, stride);
    _tile_dpbsud(0, 5, 7);
    _tile_loadd(6, lower + k, stride);
    _tile_dpbsud(1, 6, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kTile * kRowBlock, 64);
}

// out[t * kRowBlock + r] = weight[row + r] @ x[t], for the rows of a block.
inline void bytes_block(const Task& task, int64_t block, float* out) {
  const Quantised& weight = *task.quantised;
  const int8_t* w = (const int8_t*)weight.data + block * block_bytes(weight, task.columns);
  int64_t padded = padded_columns(task.columns);
  Float scale = load<Float>(weight.scale + block * kRowBlock);
  alignas(64) int32_t sums[2 * kTile * kRowBlock];
  for (int64_t first = 0; first < task.tokens; first += kTile) {
    PackedToken x{(const int16_t*)task.packed + first * task.packed_stride, padded};
    bytes_of_tiles(w, x.upper(), x.lower(), task.packed_stride * 2, padded, sums);
    for (int64_t t = 0; t < kTile && first + t < task.tokens; t++, x.at += task.packed_stride) {
      ByteSums all{load<__m512i>(sums + t * kRowBlock), load<__m512i>(sums + (kTile + t) * kRowBlock)};
      Int exact = all.less(int32_t(uint32_t(x.sum()) * 128u)).v[0];
      store(out + (first + t) * kRowBlock, to_float(exact) * (scale * x.scale()));
    }
  }
}
