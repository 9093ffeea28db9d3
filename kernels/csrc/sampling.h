// Drawing a token from a row of logits. Included inside the namespace of isa_exact.cpp.
//
// A token's weight is an integer: 2^30 * exp((logit - highest logit) / temperature), rounded. Sums of integers do not
// depend on their order, and the exponential consists of separately rounded operations that torch can repeat
// (kernels/sampling/weights.py). So every path draws the same token from the same row.

constexpr float kNone = -__builtin_inff();
constexpr uint32_t kUnit = 1u << 30;  // the weight of the highest logit
constexpr int kMassBits = 46;         // lower bits of a table's word: the mass; the upper bits are the number of tokens
constexpr uint64_t kMassMask = (uint64_t(1) << kMassBits) - 1;
constexpr int64_t kSparse = 512;      // a bin is sparse if it has fewer than one token in this many
constexpr int64_t kTableTokens = int64_t(1) << 18;  // maximum in all tables: 2^15 weights of 2^30 are 2^45 in each

typedef int32_t Signed __attribute__((vector_size(kLanes * 4)));
typedef uint64_t Wide __attribute__((vector_size(kLanes * 4)));

#if defined(__AVX512F__)
constexpr Word kCounted = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// The selected lanes of a vector. `pack` writes them one after another. The memory after the last of them is undefined.
struct Picked {
  __mmask16 mask;
  OVERTONE_INLINE explicit Picked(Word hit) : mask(_mm512_test_epi32_mask((__m512i)hit, (__m512i)hit)) {}
  OVERTONE_INLINE bool none() const { return mask == 0; }
  OVERTONE_INLINE int count() const { return __builtin_popcount(mask); }
  OVERTONE_INLINE void pack(Word v, void* to) const { store(to, _mm512_maskz_compress_epi32(mask, (__m512i)v)); }
};
#elif defined(__AVX2__)
constexpr Word kCounted = {0, 1, 2, 3, 4, 5, 6, 7};

// For each mask, the numbers of its lanes in ascending order.
struct Orders {
  uint8_t lane[256][8] = {};
  constexpr Orders() {
    for (int mask = 0; mask < 256; mask++)
      for (int from = 0, to = 0; from < 8; from++)
        if (mask >> from & 1) lane[mask][to++] = uint8_t(from);
  }
};
constexpr Orders kOrders;

struct Picked {
  int mask;
  OVERTONE_INLINE explicit Picked(Word hit) : mask(_mm256_movemask_ps((__m256)hit)) {}
  OVERTONE_INLINE bool none() const { return mask == 0; }
  OVERTONE_INLINE int count() const { return __builtin_popcount(mask); }
  OVERTONE_INLINE void pack(Word v, void* to) const {
    __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)kOrders.lane[mask]));
    store(to, _mm256_permutevar8x32_epi32((__m256i)v, order));
  }
};
#else
constexpr Word kCounted = {0, 1, 2, 3};

struct Picked {
  Word hit;
  OVERTONE_INLINE explicit Picked(Word lanes) : hit(lanes & 1u) {}
  OVERTONE_INLINE int count() const { return int(hit[0] + hit[1] + hit[2] + hit[3]); }
  OVERTONE_INLINE bool none() const { return count() == 0; }
  OVERTONE_INLINE void pack(Word v, void* to) const {
    uint32_t* at = (uint32_t*)to;
    for (int lane = 0, place = 0; lane < kLanes; place += int(hit[lane++])) at[place] = v[lane];
  }
};
#endif

struct Extremes {
  float lowest, highest;
  bool broken;  // true if there is a NaN
};

// Converts the row's logits to fp32, padded with -inf, and returns their extremes.
template <class X> Extremes widen_row(const X* from, int64_t vocab, float* to) {
  Float low = Float{} - kNone, high = Float{} + kNone;
  Word odd = {};
  int64_t i = 0;
  for (; i + kLanes <= vocab; i += kLanes) {
    Float v = widen_lanes<kLanes>(from + i);
    store(to + i, v);
    low = v < low ? v : low;
    high = v > high ? v : high;
    odd |= (Word)(v != v);
  }
  Extremes found = {-kNone, kNone, false};
  for (int lane = 0; lane < kLanes; lane++) {
    found.lowest = low[lane] < found.lowest ? low[lane] : found.lowest;
    found.highest = high[lane] > found.highest ? high[lane] : found.highest;
    found.broken |= odd[lane] != 0;
  }
  for (; i < vocab; i++) {
    float v = widen(from[i]);
    to[i] = v;
    found.lowest = v < found.lowest ? v : found.lowest;
    found.highest = v > found.highest ? v : found.highest;
    found.broken |= v != v;
  }
  for (int64_t end = SamplingMemory::padded(vocab); i < end; i++) to[i] = kNone;
  return found;
}

// Applies the penalties to the tokens in `seen`, which has no duplicates. Returns false if one is outside the
// vocabulary. It uses vectors, because branches on the signs of logits are often mispredicted.
bool penalise(const SamplingRow& row, int64_t vocab, float* logits) {
  float repetition = float(row.repetition), once = float(row.presence), each = float(row.frequency);
  for (int64_t i = 0; i < row.seen_count; i++)
    if (row.seen[i] < 0 || row.seen[i] >= vocab) return false;
  for (int64_t first = 0; first < row.seen_count; first += kLanes) {
    int64_t left = row.seen_count - first, some = left < kLanes ? left : kLanes;
    Float v = {}, times = load_part(row.times + first, left);
    for (int64_t i = 0; i < some; i++) v[i] = logits[row.seen[first + i]];
    v = v > 0.0f ? v / repetition : v * repetition;
    v = times > 0.0f ? v - (once + each * times) : v;
    for (int64_t i = 0; i < some; i++) logits[row.seen[first + i]] = v[i];
  }
  return true;
}

// Returns the first token with the highest logit, or the first token with a NaN if there is one.
int64_t highest_of(const float* logits, int64_t vocab, const Extremes& extremes) {
  for (int64_t i = 0; i < vocab; i += kLanes) {  // the padding follows the last logit
    Float v = load<Float>(logits + i);
    Word hit = extremes.broken ? (Word)(v != v) : (Word)(v == extremes.highest);
    if (Picked(hit).none()) continue;
    for (int lane = 0; lane < kLanes; lane++)
      if (hit[lane]) return i + lane;
  }
  return 0;
}

// round(2^30 * 2^((z - highest) * scale)). Each operation is rounded to fp32, and no operations are fused
// (-ffp-contract=off).
OVERTONE_INLINE Word weight_of(Float z, float highest, float scale) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  Float y = (z - highest) * scale;
  y = y > -40.0f ? y : Float{} - 40.0f;  // a NaN, the result of -inf * 0, also becomes -40
  Float shifted = y + kShift;
  Float f = y - (shifted - kShift);
  Float p = f * 0.001326472731307149f + 0.009671512991189957f;
  p = p * f + 0.05550733581185341f;
  p = p * f + 0.24022242426872253f;
  p = p * f + 0.6931470036506653f;
  p = p * f + 1.0f;
  Float power = (Float)(((Word)shifted << 23) + (157u << 23));  // 2^(30 + the integer)
  return (Word)__builtin_convertvector(p * power + 0.5f, Signed);
}

OVERTONE_INLINE Wide sum_of(Word w) { return ((Wide)w & 0xffffffffu) + ((Wide)w >> 32); }

OVERTONE_INLINE uint64_t added_up(Wide v) {
  uint64_t sum = 0;
  for (int i = 0; i < kLanes / 2; i++) sum += v[i];
  return sum;
}

// The bins of the first search. The bits of a weight as a float select its bin, so a bin covers a fraction of a power
// of two. Bin 0 holds only weights of 0.
struct Binning {
  int32_t base;
  int shift;
  OVERTONE_INLINE Word of(Word w) const {
    Signed key = (Signed)__builtin_convertvector((Signed)w, Float) - base;
    return (Word)((key > 0 ? key : Signed{}) >> shift);
  }
};

OVERTONE_INLINE int32_t float_bits(uint32_t w) {
  float value = float(int32_t(w));
  int32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

Binning binning_of(float lowest, float highest, float scale) {
  uint32_t least = weight_of(Float{} + lowest, highest, scale)[0];
  // At the boundary between two powers of two, a lower logit can have a weight that is a few units higher.
  int32_t low = float_bits(least ? least : 1) - 16, high = float_bits(kUnit);
  Binning made = {0, 0};
  while (((high - low) >> made.shift) + 1 >= kBins) made.shift++;
  made.base = low - (1 << made.shift);
  return made;
}

// The result of a search: the tokens of equal weight that contain the target.
struct Ties {
  uint64_t mass, count;  // of all tokens with larger weights
  uint32_t weight;
  int64_t tokens;        // number of them; their ids are in `memory.id`, ascending
};

class Draw {
 public:
  Draw(const SamplingRow& row, int64_t vocab, const SamplingMemory& memory, const Extremes& extremes)
      : row_(row), vocab_(vocab), size_(SamplingMemory::padded(vocab)), memory_(memory), extremes_(extremes),
        scale_(float(row.scale)) {}

  int64_t token() {
    bool by_top_k = row_.top_k > 0 && row_.top_k < vocab_;
    if (!by_top_k && row_.top_p >= 1.0 && row_.min_p <= 0.0) return in_order();
    uint64_t total = fill_bins(), whole = total, positive = 0;
    for (int64_t bin = 1; bin < kBins; bin++) positive += memory_.count[bin];
    keep_bins();
    if (by_top_k && uint64_t(row_.top_k) < positive) {
      Ties at = search<true>(row_.top_k - 1);
      whole = at.mass + (row_.top_k - at.count) * at.weight;
    }
    uint64_t kept = whole;
    if (row_.top_p < 1.0) {
      double wanted = row_.top_p * double(whole);
      uint64_t limit = uint64_t(wanted);
      if (double(limit) < wanted) limit++;
      Ties at = search<false>(limit - 1);
      uint64_t through = at.mass + ((limit - 1 - at.mass) / at.weight + 1) * at.weight;
      kept = through < kept ? through : kept;
    }
    if (row_.min_p > 0.0) {
      uint64_t above = mass_from(row_.min_p);
      kept = above < kept ? above : kept;
    }
    uint64_t target = place_in(kept);
    Ties at = search<false>(target);
    return memory_.id[(target - at.mass) / at.weight];
  }

 private:
  uint64_t place_in(uint64_t mass) const {
    uint64_t place = uint64_t(row_.uniform * double(mass));
    return place < mass ? place : mass - 1;
  }

  // Draws without filters. The candidates are in the order of their ids.
  int64_t in_order() {
    uint64_t total = 0;
    for (int64_t first = 0; first < size_; first += kSpan) {
      Wide sum = {};
      for (int64_t i = first; i < first + kSpan; i += kLanes) {
        Word w = weight_of(load<Float>(memory_.weight + i), extremes_.highest, scale_);
        store(memory_.weight + i, w);
        sum += sum_of(w);
      }
      total += memory_.sums[first / kSpan] = added_up(sum);
    }
    uint64_t left = place_in(total);
    int64_t span = 0, token = 0;
    while (memory_.sums[span] <= left) left -= memory_.sums[span++];
    for (token = span * kSpan; memory_.weight[token] <= left; token++) left -= memory_.weight[token];
    return token;
  }

  // Computes the weights, and the mass and the number of tokens of each bin. Returns the mass of all tokens.
  uint64_t fill_bins() {
    binning_ = binning_of(extremes_.lowest, extremes_.highest, scale_);
    clear_bins();
    alignas(kLine) uint32_t bin[kSpan];
    for (int64_t first = 0; first < size_; first += kSpan) {
      if (first % kTableTokens == 0 && first) flush_tables();
      for (int64_t i = 0; i < kSpan; i += kLanes) {
        Word w = weight_of(load<Float>(memory_.weight + first + i), extremes_.highest, scale_);
        store(memory_.weight + first + i, w);
        store(bin + i, binning_.of(w));
      }
      const uint32_t* weight = memory_.weight + first;
      for (int64_t i = 0; i < kSpan; i += kTables)
#pragma GCC unroll 8
        for (int64_t t = 0; t < kTables; t++)
          memory_.tables[t * kBins + bin[i + t]] += (uint64_t(1) << kMassBits) + weight[i + t];
    }
    flush_tables();
    uint64_t total = 0;
    for (int64_t i = 0; i < kBins; i++) total += memory_.mass[i];
    return total;
  }

  void clear_bins() {
    for (int64_t i = 0; i < kTables * kBins; i++) memory_.tables[i] = 0;
    for (int64_t i = 0; i < kBins; i++) memory_.mass[i] = memory_.count[i] = 0;
  }

  void flush_tables() {
    for (int64_t t = 0; t < kTables; t++)
      for (int64_t i = 0; i < kBins; i++) {
        uint64_t word = memory_.tables[t * kBins + i];
        memory_.mass[i] += word & kMassMask;
        memory_.count[i] += word >> kMassBits;
        memory_.tables[t * kBins + i] = 0;
      }
  }

  // Keeps a copy of the bins of the whole row. Every search begins with them.
  void keep_bins() {
    for (int64_t i = 0; i < kBins; i++) {
      mass_[i] = memory_.mass[i];
      count_[i] = memory_.count[i];
    }
  }

  // Finds the first token at which the running sum of masses (or the running number of tokens) exceeds `target`. Tokens
  // are in descending order of weight, and in ascending order of id within a weight. The total must exceed `target`.
  template <bool kByCount> Ties search(uint64_t target) {
    Ties at = {0, 0, 0, 0};
    int64_t bin = descend<kByCount>(mass_, count_, target, at);
    if (bin != collected_) candidates_ = int64_t(count_[bin]) > size_ / kSparse ? collect<true>(bin) : collect<false>(bin);
    collected_ = bin;
    at.tokens = candidates_;
    while (true) {
      uint32_t low = ~0u, high = 0;
      for (int64_t i = 0; i < at.tokens; i++) {
        low = memory_.value[i] < low ? memory_.value[i] : low;
        high = memory_.value[i] > high ? memory_.value[i] : high;
      }
      at.weight = low;
      if (low == high) return at;
      int shift = 0;
      while ((high - low) >> shift >= kBins) shift++;
      clear_bins();
      for (int64_t i = 0; i < at.tokens; i++) {
        if (i % kTableTokens == 0 && i) flush_tables();
        memory_.tables[i % kTables * kBins + ((memory_.value[i] - low) >> shift)] +=
            (uint64_t(1) << kMassBits) + memory_.value[i];
      }
      flush_tables();
      bin = descend<kByCount>(memory_.mass, memory_.count, target, at);
      collected_ = -1;
      int64_t left = 0;
      for (int64_t i = 0; i < at.tokens; i++) {
        memory_.value[left] = memory_.value[i];
        memory_.id[left] = memory_.id[i];
        left += ((memory_.value[i] - low) >> shift) == bin;
      }
      at.tokens = left;
    }
  }

  template <bool kByCount>
  static int64_t descend(const uint64_t* mass, const uint64_t* count, uint64_t target, Ties& at) {
    int64_t bin = kBins - 1;
    while (bin > 0 && (kByCount ? at.count + count[bin] : at.mass + mass[bin]) <= target) {
      at.mass += mass[bin];
      at.count += count[bin];
      bin--;
    }
    return bin;
  }

  // Collects the tokens of one bin and their weights, in the order of their ids. If the bin is sparse, vectors without
  // such a token are skipped. Otherwise that branch is often mispredicted, so every vector is packed.
  template <bool kDense> int64_t collect(uint32_t bin) {
    const Binning binning = binning_;
    const uint32_t* weight = memory_.weight;
    uint32_t* value = memory_.value;
    int32_t* id = memory_.id;
    int64_t found = 0, size = size_;
    for (int64_t i = 0; i < size; i += kLanes) {
      Word w = load<Word>(weight + i);
      Picked picked((Word)(binning.of(w) == bin));
      if (!kDense && picked.none()) continue;
      picked.pack(w, value + found);
      picked.pack(uint32_t(i) + kCounted, id + found);
      found += picked.count();
    }
    return found;
  }

  // Returns the mass of the tokens that are at least `share` times as likely as the most likely token.
  uint64_t mass_from(double share) const {
    double wanted = share * double(kUnit);
    uint32_t floor = uint32_t(wanted);
    if (double(floor) < wanted) floor++;
    Wide sum = {};
    for (int64_t i = 0; i < size_; i += kLanes) {
      Word w = load<Word>(memory_.weight + i);
      sum += sum_of(w >= floor ? w : Word{});
    }
    return added_up(sum);
  }

  const SamplingRow& row_;
  int64_t vocab_, size_;
  const SamplingMemory& memory_;
  const Extremes extremes_;
  float scale_;
  Binning binning_ = {0, 0};
  uint64_t mass_[kBins], count_[kBins];
  int64_t collected_ = -1, candidates_ = 0;  // the bin whose tokens are in `memory_.id`, and their number
};

template <class X> int64_t sample_as(const SamplingRow& row, int64_t vocab, char* at) {
  SamplingMemory memory(at, vocab);
  float* logits = (float*)memory.weight;
  Extremes extremes = widen_row((const X*)row.logits, vocab, logits);
  if (row.seen_count) {
    if (!penalise(row, vocab, logits)) return -1;
    extremes = widen_row(logits, vocab, logits);
  }
  if (row.scale == 0.0) return highest_of(logits, vocab, extremes);
  bool none = extremes.broken || !(extremes.highest > kNone) || !(extremes.highest < -kNone);
  return none ? 0 : Draw(row, vocab, memory, extremes).token();
}
