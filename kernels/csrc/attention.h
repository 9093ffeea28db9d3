// Attention of the query heads that share a key head, for one token. Included inside the namespace of isa.cpp.
//
// The keys of a context are divided into parts of kPart keys. The scores of a part are computed with keys in the lanes,
// and the weighted sum of its values with dimensions in the lanes, both in fp32. The result does not depend on other
// tokens or sequences.

// The products of queries and keys: the rows of kLanes keys are read as 32-bit words and transposed, so that a vector
// holds the same word of each key. Each vector is multiplied by that word of the query.
template <class X> struct Scores;
template <> struct Scores<float> {
  static constexpr int kElements = 1;  // elements of a word
  using Packed = float;
  static void pack(const float* query, int64_t dim, Packed* to) {
    for (int64_t i = 0; i < dim; i++) to[i] = query[i];
  }
  static OVERTONE_INLINE Float add(Float sum, Word key, const Packed* query) { return sum + (Float)key * *query; }
};
template <> struct Scores<uint16_t> {
  static constexpr int kElements = 2;
#if defined(__AVX512BF16__)
  using Packed = uint32_t;
  static void pack(const uint16_t* query, int64_t dim, Packed* to) {
    for (int64_t i = 0; i < dim; i += 2) to[i / 2] = query[i] | (i + 1 < dim ? uint32_t(query[i + 1]) << 16 : 0);
  }
  static OVERTONE_INLINE Float add(Float sum, Word key, const Packed* query) {
    return (Float)_mm512_dpbf16_ps((__m512)sum, (__m512bh)key, (__m512bh)_mm512_set1_epi32((int)*query));
  }
#else
  struct Packed {
    float even, odd;
  };
  static void pack(const uint16_t* query, int64_t dim, Packed* to) {
    for (int64_t i = 0; i < dim; i += 2) to[i / 2] = {widen(query[i]), i + 1 < dim ? widen(query[i + 1]) : 0.0f};
  }
  static OVERTONE_INLINE Float add(Float sum, Word key, const Packed* query) {
    sum += (Float)(key << 16) * query->even;
    return sum + (Float)(key & 0xffff0000u) * query->odd;
  }
#endif
};

int64_t words_of(const AttentionArguments& task) {
  int64_t elements = task.type == kFloat32 ? 1 : 2;
  return (task.dim + elements - 1) / elements;
}
int64_t up_to_lanes(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }
int64_t shared_heads(const AttentionArguments& task) { return task.heads / task.kv_heads; }

// The scratch space of `attend`: scores, transposed words of keys, packed queries, and the places of the part's keys.
int64_t attention_scratch(const AttentionArguments& task) {
  int64_t words = up_to_lanes(words_of(task));
  return shared_heads(task) * (kPart + 2 * words) + words * kLanes + 2 * kPart;
}

// The size of a state: for each head the weighted sum of values (padded to kLanes), then for each head its highest
// score, then for each head the sum of its weights.
int64_t state_floats(const AttentionArguments& task, int64_t) {
  return shared_heads(task) * (up_to_lanes(task.dim) + 2);
}

// Loads words [word, word + kLanes) of kLanes keys and transposes them.
template <class X>
OVERTONE_INLINE void turned_words(const X* keys, const int64_t* place, int64_t count, int64_t word, int64_t dim,
                                  Word* to) {
  constexpr int kElements = Scores<X>::kElements;
  Word v[kLanes];
  int64_t left = dim - word * kElements;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) {
    const X* row = keys + place[i < count ? i : count - 1] + word * kElements;
    if (left >= kLanes * kElements) {
      v[i] = load<Word>(row);
    } else {
      X part[kLanes * kElements] = {};
      for (int64_t e = 0; e < left; e++) part[e] = row[e];
      v[i] = load<Word>(part);
    }
  }
  turn<kLanes>(v);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) to[i] = v[i];
}

template <class X, int kHeads>
OVERTONE_INLINE void score_tile(const Word* turned, const typename Scores<X>::Packed* query, int64_t words,
                                int64_t query_stride, float scale, float* scores) {
  Float acc[kHeads] = {};
  for (int64_t w = 0; w < words; w++)
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; h++) acc[h] = Scores<X>::add(acc[h], turned[w], query + h * query_stride + w);
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; h++) store(scores + h * kPart, acc[h] * scale);
}

// sums[h] = the sum of weights[h][key] * values[key] over `count` keys, for kVectors vectors of dimensions.
template <class X, int kHeads, int kVectors>
OVERTONE_INLINE void weigh(const X* values, const int64_t* place, int64_t count, int64_t dims, const float* weights,
                           float* sums, int64_t stride) {
  Float acc[kHeads][kVectors] = {};
  for (int64_t k = 0; k < count; k++) {
    Float value[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) value[v] = load_part(values + place[k] + v * kLanes, dims - v * kLanes);
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; h++)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) acc[h][v] += value[v] * weights[h * kPart + k];
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; h++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) store(sums + h * stride + v * kLanes, acc[h][v]);
}

// Returns cap * tanh(score / cap).
OVERTONE_INLINE Float capped(Float score, float cap) {
  return cap - 2.0f * cap / (1.0f + exp_lanes(score * (2.0f / cap)));
}

template <int kValue> struct Number {
  static constexpr int value = kValue;
};

// Calls function(number, first head) for groups of heads that fit into the registers.
template <int kMost, class Function> OVERTONE_INLINE void in_tiles(int64_t first, int64_t heads, Function function) {
  for (; heads - first >= kMost; first += kMost) function(Number<kMost>{}, first);
  if constexpr (kMost > 1)
    if (first < heads) in_tiles<kMost - 1>(first, heads, function);
}

constexpr int kValueVectors = 4;
constexpr int kValueHeads = kLanes == 16 ? 7 : 2;  // heads with four vectors each that fit into 32 (or 16) registers

template <class X>
void attend_as(const AttentionArguments& task, const QueryRow& row, int64_t kv_head, int64_t first, int64_t last,
               float* scratch, float* state) {
  using Packed = typename Scores<X>::Packed;
  int64_t heads = shared_heads(task), dim = task.dim, count = last - first, words = words_of(task);
  float* scores = scratch;
  Packed* query = (Packed*)(scores + heads * kPart);
  Word* turned = (Word*)(scores + heads * (kPart + 2 * up_to_lanes(words)));
  int64_t* place = (int64_t*)(turned + up_to_lanes(words));

  const int32_t* blocks = task.tables + row.sequence * task.table_stride;
  for (int64_t k = 0; k < count; k++) {
    int64_t token = first + k;
    place[k] = (blocks[token / task.block_size] * task.block_size + token % task.block_size) * task.kv_heads * dim;
  }
  const X* from = (const X*)task.query + row.row * task.query_stride + kv_head * heads * dim;
  for (int64_t h = 0; h < heads; h++) Scores<X>::pack(from + h * dim, dim, query + h * words);

  const X* keys = (const X*)task.keys + kv_head * dim;
  for (int64_t k = 0; k < count; k += kLanes) {
    for (int64_t word = 0; word < words; word += kLanes)
      turned_words(keys, place + k, count - k, word, dim, turned + word);
    in_tiles<8>(0, heads, [&](auto number, int64_t h) {
      score_tile<X, decltype(number)::value>(turned, query + h * words, words, words, float(task.scale),
                                             scores + h * kPart + k);
    });
  }

  int64_t stride = up_to_lanes(dim);
  float* highest = state + heads * stride;
  for (int64_t h = 0; h < heads; h++) {
    float* own = scores + h * kPart;
    if (task.softcap != 0)
      for (int64_t k = 0; k < count; k += kLanes) store(own + k, capped(load<Float>(own + k), float(task.softcap)));
    for (int64_t k = count; k < (count + kLanes - 1) / kLanes * kLanes; k++) own[k] = -__builtin_inff();
    Float most = load<Float>(own), sum = {};
    for (int64_t k = kLanes; k < count; k += kLanes) {
      Float score = load<Float>(own + k);
      most = score > most ? score : most;
    }
    float top = most[0];
    for (int i = 1; i < kLanes; i++) top = most[i] > top ? most[i] : top;
    for (int64_t k = 0; k < count; k += kLanes) {
      Float weight = exp_lanes(load<Float>(own + k) - top);
      store(own + k, weight);
      for (int64_t i = count - k; i < kLanes; i++) weight[i] = 0;
      sum += weight;
    }
    highest[h] = top;
    highest[heads + h] = sum_lanes(sum);
  }

  const X* values = (const X*)task.values + kv_head * dim;
  for (int64_t d = 0; d < dim;) {
    bool wide = dim - d >= kValueVectors * kLanes;
    in_tiles<kValueHeads>(0, heads, [&](auto number, int64_t h) {
      constexpr int kHeads = decltype(number)::value;
      const float* weights = scores + h * kPart;
      float* sums = state + h * stride + d;
      if (wide)
        weigh<X, kHeads, kValueVectors>(values + d, place, count, kValueVectors * kLanes, weights, sums, stride);
      else
        weigh<X, kHeads, 1>(values + d, place, count, dim - d, weights, sums, stride);
    });
    d += wide ? kValueVectors * kLanes : kLanes;
  }
}

void attend(const AttentionArguments& task, const QueryRow* row, int64_t, int64_t kv_head, int64_t first, int64_t last,
            float* scratch, float* state) {
  if (task.type == kFloat32) return attend_as<float>(task, *row, kv_head, first, last, scratch, state);
  return attend_as<uint16_t>(task, *row, kv_head, first, last, scratch, state);
}

void join_states(const AttentionArguments& task, int64_t, float* state, const float* next) {
  int64_t heads = shared_heads(task), stride = up_to_lanes(task.dim);
  float* highest = state + heads * stride;
  const float* other = next + heads * stride;
  for (int64_t h = 0; h < heads; h++) {
    float top = highest[h] > other[h] ? highest[h] : other[h];
    float own = exp_lanes(Float{} + (highest[h] - top))[0], added = exp_lanes(Float{} + (other[h] - top))[0];
    for (int64_t d = h * stride; d < (h + 1) * stride; d += kLanes)
      store(state + d, load<Float>(state + d) * own + load<Float>(next + d) * added);
    highest[h] = top;
    highest[heads + h] = highest[heads + h] * own + other[heads + h] * added;
  }
}

template <class X> void finish_as(const AttentionArguments& task, const float* state, X* out) {
  int64_t heads = shared_heads(task), stride = up_to_lanes(task.dim);
  for (int64_t h = 0; h < heads; h++) {
    float inverse = 1.0f / state[heads * stride + heads + h];
    for (int64_t d = 0; d < task.dim; d += kLanes)
      store_part(out + h * task.dim + d, load<Float>(state + h * stride + d) * inverse, task.dim - d);
  }
}

void finish(const AttentionArguments& task, const QueryRow* row, int64_t, int64_t kv_head, const float* state) {
  int64_t at = row->row * task.heads * task.dim + kv_head * shared_heads(task) * task.dim;
  if (task.type == kFloat32) return finish_as(task, state, (float*)task.out + at);
  finish_as(task, state, (uint16_t*)task.out + at);
}

int64_t one_row(const AttentionArguments&) { return 1; }

const AttentionKernels attention = {
    .rows_at_once = one_row,
    .scratch = attention_scratch,
    .state_floats = state_floats,
    .attend = attend,
    .join = join_states,
    .finish = finish,
};
