// Attention of bf16 with tiles. Included inside the namespace of isa.cpp.
//
// The query heads that share a key head, of consecutive rows of a sequence, are the lanes of tiles of 16. A part of a
// context is computed in blocks of 32 keys, which are counted from the beginning of the context:
//   scores [32 keys, lanes] = K [32, dim] x Q^T [dim, lanes];
//   weights [lanes, 32 keys], relative to the lane's highest score in the part, rounded to bf16;
//   sums [lanes, dim] += weights x V [32, dim], and the sums of the weights by a product with ones.
// Keys that a lane does not attend to have a weight of exactly 0, and a lane's sums are added in the order of the keys
// by the tiles. So a row's result is the same to the last bit in any batch, for prompts in any chunks and in decoding.
//
// In decoding a tile has few lanes, such as one for each of two heads. Its width is then the next power of two, and a
// vector holds the scores of several keys.

namespace tiles {

constexpr int64_t kLanesAtOnce = 128;       // maximum number of lanes that a thread computes together
constexpr float kNone = -__builtin_inff();  // the score of a key that a lane does not attend to

// Tiles 0 and 1: the scores of 2 x 16 keys; 2 and 3: the keys; 4: the queries.
void configure_scores(int64_t lanes) {
  TileConfig config;
  for (int tile = 0; tile < 5; tile++) config.set(tile, kTile, tile == 2 || tile == 3 ? 64 : lanes * 4);
  _tile_loadconfig(&config);
}

// Tiles 0 to 3: the sums of 4 x 16 dimensions; 4: weights; 5: values; 6: ones; 7: the sums of the weights.
void configure_values(int64_t lanes) {
  TileConfig config;
  for (int tile = 0; tile < 8; tile++) config.set(tile, tile == 5 || tile == 6 ? kTile : lanes, 64);
  _tile_loadconfig(&config);
}

int64_t tiles_of(const AttentionArguments& task, int64_t rows) {
  return (rows * shared_heads(task) + kTile - 1) / kTile;
}

int64_t rows_of_a_sequence(const AttentionArguments& task) {
  int64_t rows = kLanesAtOnce / shared_heads(task);
  return rows < 1 ? 1 : rows;
}

// The state of a tile: sums [kTile, dim], then the lanes' highest scores, then the sums of their weights.
int64_t tile_floats(const AttentionArguments& task) { return kTile * (task.dim + 2); }
int64_t state_floats(const AttentionArguments& task, int64_t rows) { return tiles_of(task, rows) * tile_floats(task); }

// The scratch space of a part: its keys and values in bf16, and for one tile the queries in bf16, the scores, and the
// weights in bf16.
int64_t attention_scratch(const AttentionArguments& task) {
  return kPart * task.dim + kTile * task.dim / 2 + kPart * kTile + kPart * kTile / 2;
}

// Copies keys, and values in pairs of keys: word d of a pair has dimension d of both. Keys outside [first, last) become
// zeros, since blocks of the cache may hold arbitrary values there.
void gather(const AttentionArguments& task, const QueryRow& row, int64_t kv_head, int64_t begin, int64_t end,
            int64_t first, int64_t last, uint16_t* keys, Word* values) {
  const int32_t* blocks = task.tables + row.sequence * task.table_stride;
  int64_t dim = task.dim;
  for (int64_t k = begin; k < end; k += 2) {
    const uint16_t* value[2];
    for (int64_t i = 0; i < 2; i++) {
      int64_t token = k + i;
      uint16_t* to = keys + (token - begin) * dim;
      bool there = first <= token && token < last;
      value[i] = nullptr;
      if (!there) {
        __builtin_memset(to, 0, dim * 2);
        continue;
      }
      int64_t place = blocks[token / task.block_size] * task.block_size + token % task.block_size;
      int64_t at = (place * task.kv_heads + kv_head) * dim;
      __builtin_memcpy(to, (const uint16_t*)task.keys + at, dim * 2);
      value[i] = (const uint16_t*)task.values + at;
    }
    for (int64_t d = 0; d < dim; d += kLanes) {
      Word pair = {};
      if (value[0]) pair = (Word)widen_lanes<kLanes>(value[0] + d) >> 16;
      if (value[1]) pair |= (Word)widen_lanes<kLanes>(value[1] + d);
      store(values++, pair);
    }
  }
}

// The lanes of a tile: each lane's query, and the keys that it attends to. A lane without a query attends to no keys.
struct Lanes {
  const uint16_t* query[kTile];
  int32_t first[kTile], last[kTile];

  Lanes(const AttentionArguments& task, const QueryRow* rows, int64_t count, int64_t kv_head, int64_t tile) {
    int64_t heads = shared_heads(task);
    for (int64_t i = 0; i < kTile; i++) {
      int64_t lane = tile * kTile + i, row = lane / heads;
      bool there = row < count;
      query[i] = nullptr;
      first[i] = last[i] = 0;
      if (!there) continue;
      query[i] = (const uint16_t*)task.query + rows[row].row * task.query_stride +
                 (kv_head * heads + lane % heads) * task.dim;
      first[i] = rows[row].first;
      last[i] = rows[row].last;
    }
  }
};

// Transposes the queries of a tile to [dim / 2 words, kTile].
void turn_queries(const Lanes& lanes, int64_t dim, Word* to) {
  for (int64_t d = 0; d < dim; d += 2 * kTile) {
    Word v[kTile];
#pragma GCC unroll 16
    for (int i = 0; i < kTile; i++) v[i] = lanes.query[i] ? load<Word>(lanes.query[i] + d) : Word{};
    turn<kTile>(v);
#pragma GCC unroll 16
    for (int i = 0; i < kTile; i++) store(to++, v[i]);
  }
}

// Computes the scores [blocks * kDepth, lanes] of the part's keys.
void score(const uint16_t* keys, const Word* query, int64_t blocks, int64_t dim, int64_t lanes, float* scores) {
  for (int64_t b = 0; b < blocks; b++, keys += kDepth * dim, scores += kDepth * lanes) {
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t d = 0; d < dim; d += 2 * kTile) {
      _tile_loadd(2, keys + d, dim * 2);
      _tile_loadd(3, keys + kTile * dim + d, dim * 2);
      _tile_loadd(4, query + d / 2, 64);
      _tile_dpbf16ps(0, 2, 4);
      _tile_dpbf16ps(1, 3, 4);
    }
    _tile_stored(0, scores, lanes * 4);
    _tile_stored(1, scores + kTile * lanes, lanes * 4);
  }
}

// Computes weights [blocks, kLanesOfTile, kDepth] in bf16 from the scores, and stores the lanes' highest scores.
template <int kLanesOfTile>
void weigh(const AttentionArguments& task, const Lanes& lanes, int64_t begin, int64_t blocks, float* scores,
           uint16_t* weights, float* highest) {
  using Int = int32_t __attribute__((vector_size(64)));
  using Halves = uint16_t __attribute__((vector_size(64)));
  constexpr int kKeysAtOnce = kTile / kLanesOfTile;  // keys of a vector of scores
  float scale = float(task.scale), cap = float(task.softcap);
  Int first, last, key;
  for (int i = 0; i < kTile; i++) {
    first[i] = lanes.first[i % kLanesOfTile];
    last[i] = lanes.last[i % kLanesOfTile];
    key[i] = int32_t(begin) + i / kLanesOfTile;
  }
  const Float none = Float{} + kNone;
  Float most = none;
  int64_t vectors = blocks * kDepth / kKeysAtOnce;
  for (int64_t v = 0; v < vectors; v++, key += kKeysAtOnce) {
    Float own = load<Float>(scores + v * kTile) * scale;
    if (cap != 0) own = capped(own, cap);
    own = key < first ? none : own;
    own = key < last ? own : none;
    most = own > most ? own : most;
    store(scores + v * kTile, own);
  }
  for (int i = kLanesOfTile; i < kTile; i++) {
    int lane = i % kLanesOfTile;
    most[lane] = most[i] > most[lane] ? most[i] : most[lane];
  }
  for (int i = kLanesOfTile; i < kTile; i++) most[i] = most[i % kLanesOfTile];
  store(highest, most);

  Float top = most == none ? Float{} : most;
  auto weight = [&](int64_t v) {
    Float own = load<Float>(scores + v * kTile), found = exp_lanes(own - top);
    return own == none ? Float{} : found;
  };
  // Two vectors of weights in bf16, in the order of lanes. Each lane's 2 * kKeysAtOnce keys keep their order.
  Halves by_lanes;
  for (int i = 0; i < 2 * kTile; i++)
    by_lanes[i] = uint16_t(i % (2 * kKeysAtOnce) * kLanesOfTile + i / (2 * kKeysAtOnce));
  auto pair = [&](int64_t v) {
    __m512bh both = _mm512_cvtne2ps_pbh((__m512)weight(v + 1), (__m512)weight(v));
    return (Word)_mm512_permutexvar_epi16((__m512i)by_lanes, (__m512i)both);
  };
  for (int64_t b = 0; b < blocks; b++, weights += kLanesOfTile * kDepth) {
    int64_t v = b * kDepth / kKeysAtOnce;
    if constexpr (kLanesOfTile == kTile) {
      Word turned[kTile];
      for (int i = 0; i < kTile; i++) turned[i] = pair(v + 2 * i);
      turn<kTile>(turned);
      for (int i = 0; i < kTile; i++) store(weights + i * kDepth, turned[i]);
    } else {
      constexpr int kChunk = 2 * kKeysAtOnce;
      for (int i = 0; i < kLanesOfTile; i++) {
        uint16_t made[2 * kTile];
        store(made, pair(v + 2 * i));
        for (int lane = 0; lane < kLanesOfTile; lane++)
          __builtin_memcpy(weights + lane * kDepth + i * kChunk, made + lane * kChunk, kChunk * 2);
      }
    }
  }
}

// Computes sums [lanes, dim] = weights x values, for kTiles tiles of dimensions. If `totals` [lanes, kTile] is given,
// every column of it receives the sums of the weights.
template <int kTiles>
OVERTONE_INLINE void sum_tiles(const uint16_t* weights, const uint32_t* values, int64_t blocks, int64_t dim,
                               int64_t lanes, float* sums, float* totals) {
  alignas(64) uint32_t ones[kTile * kTile];
  for (uint32_t& pair : ones) pair = 0x3f803f80u;
  _tile_zero(0);
  if (kTiles > 1) _tile_zero(1);
  if (kTiles > 2) _tile_zero(2);
  if (kTiles > 3) _tile_zero(3);
  if (totals) {
    _tile_zero(7);
    _tile_loadd(6, ones, 64);
  }
  for (int64_t b = 0; b < blocks; b++, weights += lanes * kDepth, values += kTile * dim) {
    _tile_loadd(4, weights, 64);
    if (totals) _tile_dpbf16ps(7, 4, 6);
    _tile_loadd(5, values, dim * 4);
    _tile_dpbf16ps(0, 4, 5);
    if (kTiles > 1) {
      _tile_loadd(5, values + kTile, dim * 4);
      _tile_dpbf16ps(1, 4, 5);
    }
    if (kTiles > 2) {
      _tile_loadd(5, values + 2 * kTile, dim * 4);
      _tile_dpbf16ps(2, 4, 5);
    }
    if (kTiles > 3) {
      _tile_loadd(5, values + 3 * kTile, dim * 4);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  if (totals) _tile_stored(7, totals, 64);
  _tile_stored(0, sums, dim * 4);
  if (kTiles > 1) _tile_stored(1, sums + kTile, dim * 4);
  if (kTiles > 2) _tile_stored(2, sums + 2 * kTile, dim * 4);
  if (kTiles > 3) _tile_stored(3, sums + 3 * kTile, dim * 4);
}

// Computes one part of the keys for one tile.
template <int kLanesOfTile>
void attend_tile(const AttentionArguments& task, const Lanes& lanes, int64_t begin, int64_t blocks,
                 const uint16_t* keys, const uint32_t* values, float* scratch, float* state) {
  int64_t dim = task.dim;
  Word* query = (Word*)scratch;
  float* scores = scratch + kTile * dim / 2;
  uint16_t* weights = (uint16_t*)(scores + kPart * kTile);
  turn_queries(lanes, dim, query);
  configure_scores(kLanesOfTile);
  score(keys, query, blocks, dim, kLanesOfTile, scores);
  weigh<kLanesOfTile>(task, lanes, begin, blocks, scores, weights, state + kTile * dim);
  configure_values(kLanesOfTile);
  float totals[kTile * kTile];
  for (int64_t d = 0; d < dim;) {
    float* first = d == 0 ? totals : nullptr;
    if (dim - d >= 4 * kTile) {
      sum_tiles<4>(weights, values + d, blocks, dim, kLanesOfTile, state + d, first);
      d += 4 * kTile;
    } else {
      sum_tiles<2>(weights, values + d, blocks, dim, kLanesOfTile, state + d, first);
      d += 2 * kTile;
    }
  }
  for (int i = 0; i < kLanesOfTile; i++) state[kTile * (dim + 1) + i] = totals[i * kTile];
}

void attend(const AttentionArguments& task, const QueryRow* rows, int64_t count, int64_t kv_head, int64_t first,
            int64_t last, float* scratch, float* state) {
  int64_t dim = task.dim, begin = first / kDepth * kDepth, blocks = (last - begin + kDepth - 1) / kDepth;
  uint16_t* keys = (uint16_t*)scratch;
  uint16_t* values = keys + kPart * dim;
  float* own = (float*)(values + kPart * dim);
  gather(task, rows[0], kv_head, begin, begin + blocks * kDepth, first, last, keys, (Word*)values);
  const uint32_t* pairs = (const uint32_t*)values;
  Tiles tiles;
  int64_t count_of_lanes = count * shared_heads(task);
  for (int64_t tile = 0; tile < tiles_of(task, count); tile++, state += tile_floats(task)) {
    Lanes lanes(task, rows, count, kv_head, tile);
    if (count_of_lanes > 8)
      attend_tile<16>(task, lanes, begin, blocks, keys, pairs, own, state);
    else if (count_of_lanes > 4)
      attend_tile<8>(task, lanes, begin, blocks, keys, pairs, own, state);
    else if (count_of_lanes > 2)
      attend_tile<4>(task, lanes, begin, blocks, keys, pairs, own, state);
    else if (count_of_lanes > 1)
      attend_tile<2>(task, lanes, begin, blocks, keys, pairs, own, state);
    else
      attend_tile<1>(task, lanes, begin, blocks, keys, pairs, own, state);
  }
}

void join_states(const AttentionArguments& task, int64_t count, float* state, const float* next) {
  int64_t dim = task.dim, lanes = count * shared_heads(task);
  for (int64_t first = 0; first < lanes; first += kTile, state += tile_floats(task), next += tile_floats(task)) {
    float *highest = state + kTile * dim, *total = highest + kTile;
    Float own = load<Float>(highest), other = load<Float>(next + kTile * dim);
    Float top = own > other ? own : other;
    // If a lane attends to no key of one part, its state is that of the other part.
    Float keep = own == kNone ? Float{} : exp_lanes(own - top);
    Float gain = other == kNone ? Float{} : exp_lanes(other - top);
    for (int64_t i = 0; i < kTile && first + i < lanes; i++) {
      for (int64_t d = i * dim; d < (i + 1) * dim; d += kLanes)
        store(state + d, load<Float>(state + d) * keep[i] + load<Float>(next + d) * gain[i]);
      total[i] = total[i] * keep[i] + next[kTile * (dim + 1) + i] * gain[i];
    }
    store(highest, top);
  }
}

void finish(const AttentionArguments& task, const QueryRow* rows, int64_t count, int64_t kv_head, const float* state) {
  int64_t heads = shared_heads(task), dim = task.dim;
  for (int64_t lane = 0; lane < count * heads; lane++) {
    const float* tile = state + lane / kTile * tile_floats(task);
    const float* sums = tile + lane % kTile * dim;
    float inverse = 1.0f / tile[kTile * (dim + 1) + lane % kTile];
    uint16_t* out = (uint16_t*)task.out + (rows[lane / heads].row * task.heads + kv_head * heads + lane % heads) * dim;
    for (int64_t d = 0; d < dim; d += kLanes) store(out + d, narrow_lanes(load<Float>(sums + d) * inverse));
  }
}

const AttentionKernels attention = {
    .rows_at_once = rows_of_a_sequence,
    .scratch = attention_scratch,
    .state_floats = state_floats,
    .attend = attend,
    .join = join_states,
    .finish = finish,
};

}  // namespace tiles
