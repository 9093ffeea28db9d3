// Products with weights of 8 or 4 bits. Included inside the namespace of isa.cpp.
//
// x is rounded to 16-bit integers with one scale for each token, a power of two. Products of the integers of x and of
// the weights are exact, and sums of integers do not depend on their order. So a token's result is the same in any
// batch, on any number of threads and, for 8 bits, on every processor. bf16 numbers of at least 2^-7 times the largest
// are not rounded.
//
// Weights are stored in blocks of 16 rows, with four neighbouring columns side by side, as unsigned integers. The
// offset that makes them unsigned is subtracted again as offset * sum(x). `vpdpbusd` multiplies unsigned bytes by
// signed bytes, so x is split into upper and lower bytes, both signed.

using Int = int32_t __attribute__((vector_size(kLanes * 4)));
using Words16 = int16_t __attribute__((vector_size(kLanes * 4)));
using Bytes8 = int8_t __attribute__((vector_size(kLanes * 2)));

#if defined(__AVX512VNNI__)
constexpr bool kBytesOfX = true;
#else
constexpr bool kBytesOfX = false;
#endif

constexpr int64_t kGroup = 32;              // columns of 4-bit weights that share a scale; rows are padded to it
constexpr int64_t kHeader = 32;             // 16-bit units before the integers of packed x: the scale, and their sum
constexpr int64_t kQuads = 4 * kRowBlock;   // bytes of four columns of a block
constexpr int64_t kNibbles = kGroup * kRowBlock / 2;
constexpr int64_t kGroupBytes = kNibbles + kRowBlock * 2;  // including the 16 scales
constexpr int kQuantisedVectors = kRowBlock / kLanes;

// The sums of one token for a block of rows.
struct RowSums {
  Int v[kQuantisedVectors];
};

OVERTONE_INLINE Float to_float(Int v) { return __builtin_convertvector(v, Float); }

inline int64_t padded_columns(int64_t columns) { return (columns + kGroup - 1) / kGroup * kGroup; }

// A token's x as integers: the scale, the sum of the integers, the integers (16 bits each, or all upper bytes and then
// all lower bytes), and the sum of each group.
struct PackedToken {
  const int16_t* at;
  int64_t padded;

  float scale() const { return number<float>(0); }
  int32_t sum() const { return number<int32_t>(2); }
  const int16_t* integers() const { return at + kHeader; }
  const int8_t* upper() const { return (const int8_t*)integers(); }
  const int8_t* lower() const { return upper() + padded; }
  int32_t group_sum(int64_t group) const { return number<int32_t>(kHeader + padded + 2 * group); }

  template <class Number> Number number(int64_t place) const {
    Number value;
    __builtin_memcpy(&value, at + place, sizeof value);
    return value;
  }
};

inline int64_t quantised_stride(int64_t columns) {
  int64_t padded = padded_columns(columns);
  return (kHeader + padded + 2 * (padded / kGroup) + 31) / 32 * 32;
}

// Returns the smallest power of two for which no integer exceeds 32639 (16 bits with a signed lower byte) and the sum
// of absolute values is below 2^24 (so that the sum of products with 8 bits fits into 32 bits). NaN if x is not finite.
template <class X> float scale_of_token(const X* from, int64_t columns) {
  Float largest = {}, sums = {};
  for (int64_t k = 0; k < columns; k += kLanes) {
    Float v = load_part(from + k, columns - k);
    v = (Float)((Word)v & 0x7fffffffu);
    largest = v > largest ? v : largest;
    sums += v;
  }
  float most = 0.0f;
  for (int i = 0; i < kLanes; i++) most = largest[i] > most ? largest[i] : most;
  float by_largest = most * (1.0f / 32638.0f);
  // Rounding adds at most half a unit for each column. The error of the sum in fp32 is less than a thousandth.
  float by_sum = sum_lanes(sums) * 1.001f / (16777215.0f - 0.5f * float(columns));
  float least = by_largest > by_sum ? by_largest : by_sum;
  uint32_t bits;
  __builtin_memcpy(&bits, &least, 4);
  bits = (bits + 0x007fffffu) & 0x7f800000u;
  if (bits < 0x01000000u) bits = 0x01000000u;  // 2^-125, whose inverse is a normal number
  if (bits >= 0x7f000000u || least != least) bits = 0x7fc00000u;
  float scale;
  __builtin_memcpy(&scale, &bits, 4);
  return scale;
}

template <class X> void quantise_token(const X* from, int64_t columns, int16_t* to) {
  int64_t padded = padded_columns(columns);
  float scale = scale_of_token(from, columns);
  bool finite = scale == scale;
  float inverse = finite ? 1.0f / scale : 0.0f;
  int32_t sum = 0;
  int8_t* upper = (int8_t*)(to + kHeader);
  int8_t* lower = upper + padded;
  for (int64_t k = 0; k < padded; k += kGroup) {
    int32_t own[kGroup];
    for (int64_t i = 0; i < kGroup; i += kLanes) {
      Float v = finite && k + i < columns ? load_part(from + k + i, columns - k - i) * inverse : Float{};
      // Adding 1.5 * 2^23 rounds to even; the integer is in the low bits.
      store(own + i, (Int)((Word)(v + 12582912.0f) << 16) >> 16);
    }
    int32_t of_group = 0;
    for (int64_t i = 0; i < kGroup; i++) of_group += own[i];
    for (int64_t i = 0; i < kGroup; i++) {
      if (kBytesOfX) {
        int32_t high = (own[i] + 128) >> 8;
        upper[k + i] = int8_t(high);
        lower[k + i] = int8_t(own[i] - high * 256);
      } else {
        to[kHeader + k + i] = int16_t(own[i]);
      }
    }
    __builtin_memcpy(to + kHeader + padded + k / kGroup * 2, &of_group, 4);
    sum += of_group;
  }
  __builtin_memcpy(to, &scale, 4);
  __builtin_memcpy(to + 2, &sum, 4);
}

template <class X> void quantise_tokens(const Task& task, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; t++)
    quantise_token((const X*)task.x + t * task.x_stride, task.columns,
                   (int16_t*)task.packed + t * task.packed_stride);
}

// The bytes of a block of rows.
inline int64_t block_bytes(const Quantised& weight, int64_t columns) {
  int64_t padded = padded_columns(columns);
  return weight.bits == 8 ? padded * kRowBlock : padded / kGroup * kGroupBytes;
}

constexpr int64_t kAhead = 4096;  // distance of prefetching, in bytes of weights

#if defined(__AVX512VNNI__)
OVERTONE_INLINE __m512i four_columns(const int8_t* x) {
  int32_t quad;
  __builtin_memcpy(&quad, x, 4);
  return _mm512_set1_epi32(quad);
}

// Sums of products of unsigned bytes and the upper bytes of x, and of unsigned bytes and the lower bytes of x.
struct ByteSums {
  __m512i upper, lower;
  OVERTONE_INLINE void add(__m512i w, const PackedToken& x, int64_t k) {
    upper = _mm512_dpbusd_epi32(upper, w, four_columns(x.upper() + k));
    lower = _mm512_dpbusd_epi32(lower, w, four_columns(x.lower() + k));
  }
  // The sums minus `offset_sum`, which is the offset of the weights times the sum of x.
  OVERTONE_INLINE RowSums less(int32_t offset_sum) const {
    return {{(Int)(((Word)upper << 8) + (Word)lower - uint32_t(offset_sum))}};
  }
};

template <int kTokens> OVERTONE_INLINE void bytes_sums(const int8_t* w, const PackedToken* x, RowSums* sums) {
  constexpr int kSplit = kTokens == 1 ? 2 : 1;  // two sums for a single token: an addition waits for the last one
  ByteSums acc[kTokens][kSplit] = {};
  for (int64_t k = 0; k < x[0].padded; k += 8, w += 2 * kQuads) {
    // A single token is one stream, which the hardware prefetcher handles better alone: with these instructions it took
    // 2.3 times as long. Eight tokens took 0.6 times as long.
    if constexpr (kTokens > 1) {
      __builtin_prefetch(w + kAhead, 0, 2);
      __builtin_prefetch(w + kAhead + kLine, 0, 2);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      __m512i weights = _mm512_loadu_si512(w + i * kQuads);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; t++) acc[t][i % kSplit].add(weights, x[t], k + 4 * i);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; t++) {
    ByteSums all = acc[t][0];
    if constexpr (kSplit == 2) {
      all.upper = _mm512_add_epi32(all.upper, acc[t][1].upper);
      all.lower = _mm512_add_epi32(all.lower, acc[t][1].lower);
    }
    sums[t] = all.less(int32_t(uint32_t(x[t].sum()) * 128u));
  }
}

template <int kTokens>
OVERTONE_INLINE void group_sums(const int8_t* w, const PackedToken* x, int64_t k, RowSums* sums) {
  ByteSums acc[kTokens] = {};
  const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    __m512i both = _mm512_loadu_si512(w + i * kQuads);
    __m512i low = _mm512_and_si512(both, mask), high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; t++) {
      acc[t].add(low, x[t], k + 8 * i);
      acc[t].add(high, x[t], k + 8 * i + 4);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; t++) sums[t] = acc[t].less(8 * x[t].group_sum(k / kGroup));
}
#else
// Without AVX512-VNNI: each lane adds two products of 16 bits, so a row has two lanes, whose sums are added at the end.
constexpr int kParts = 2 * kQuantisedVectors;

OVERTONE_INLINE Int add_products(Int sum, Words16 w, Words16 x) {
#if defined(__AVX512BW__)
  return sum + (Int)_mm512_madd_epi16((__m512i)w, (__m512i)x);
#elif defined(__AVX2__)
  return sum + (Int)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#elif defined(__SSE2__)
  return sum + (Int)_mm_madd_epi16((__m128i)w, (__m128i)x);
#else
  Int ours = (Int)w, theirs = (Int)x;
  return sum + ((ours << 16) >> 16) * ((theirs << 16) >> 16) + (ours >> 16) * (theirs >> 16);
#endif
}

OVERTONE_INLINE Words16 widen_bytes(Bytes8 v) {
#if defined(__AVX512BW__)
  return (Words16)_mm512_cvtepi8_epi16((__m256i)v);
#elif defined(__AVX2__)
  return (Words16)_mm256_cvtepi8_epi16((__m128i)v);
#else
  return __builtin_convertvector(v, Words16);
#endif
}

OVERTONE_INLINE Words16 four_columns(const int16_t* x) {
  typedef int64_t Long __attribute__((vector_size(kLanes * 4)));
  int64_t quad;
  __builtin_memcpy(&quad, x, 8);
  return (Words16)(Long{} + quad);
}

OVERTONE_INLINE void add_lanes(const Int* parts, RowSums& sums) {
  int32_t lanes[2 * kRowBlock], rows[kRowBlock];
  for (int p = 0; p < kParts; p++) store(lanes + p * kLanes, parts[p]);
  for (int r = 0; r < kRowBlock; r++) rows[r] = lanes[2 * r] + lanes[2 * r + 1];
  for (int v = 0; v < kQuantisedVectors; v++) sums.v[v] = load<Int>(rows + v * kLanes);
}

template <int kTokens> OVERTONE_INLINE void bytes_sums(const int8_t* w, const PackedToken* x, RowSums* sums) {
  Int acc[kTokens][kParts] = {};
  for (int64_t k = 0; k < x[0].padded; k += 4, w += kQuads) {
    __builtin_prefetch(w + kAhead, 0, 2);
#pragma GCC unroll 8
    for (int p = 0; p < kParts; p++) {
      Words16 weights = widen_bytes(load<Bytes8>(w + p * 2 * kLanes) ^ int8_t(-128));
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; t++) acc[t][p] = add_products(acc[t][p], weights, four_columns(x[t].integers() + k));
    }
  }
  for (int t = 0; t < kTokens; t++) add_lanes(acc[t], sums[t]);
}

template <int kTokens>
OVERTONE_INLINE void group_sums(const int8_t* w, const PackedToken* x, int64_t k, RowSums* sums) {
  Int acc[kTokens][kParts] = {};
  for (int i = 0; i < 4; i++)
#pragma GCC unroll 8
    for (int p = 0; p < kParts; p++) {
      Bytes8 both = load<Bytes8>(w + i * kQuads + p * 2 * kLanes);
      Words16 low = widen_bytes((both & 15) - 8), high = widen_bytes(((both >> 4) & 15) - 8);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; t++) {
        const int16_t* column = x[t].integers() + k + 8 * i;
        acc[t][p] = add_products(acc[t][p], low, four_columns(column));
        acc[t][p] = add_products(acc[t][p], high, four_columns(column + 4));
      }
    }
  for (int t = 0; t < kTokens; t++) add_lanes(acc[t], sums[t]);
}
#endif

// Computes the 16 results of kTokens tokens, one token after another. The sum of a row is one integer, which is scaled
// once.
template <int kTokens>
static void bytes_tile(const int8_t* w, const float* scale, const PackedToken* x, float* out) {
  RowSums sums[kTokens];
  bytes_sums<kTokens>(w, x, sums);
  for (int t = 0; t < kTokens; t++)
    for (int v = 0; v < kQuantisedVectors; v++)
      store(out + t * kRowBlock + v * kLanes, to_float(sums[t].v[v]) * (load<Float>(scale + v * kLanes) * x[t].scale()));
}

// The same with 4 bits. The sum of a group is one integer, which is scaled and added in fp32.
template <int kTokens> static void nibbles_tile(const int8_t* w, const PackedToken* x, float* out) {
  Float all[kTokens][kQuantisedVectors] = {};
  for (int64_t k = 0; k < x[0].padded; k += kGroup, w += kGroupBytes) {
#pragma GCC unroll 5
    for (int line = 0; line < 5; line++) __builtin_prefetch(w + kAhead + line * kLine, 0, 2);
    RowSums sums[kTokens];
    group_sums<kTokens>(w, x, k, sums);
#pragma GCC unroll 4
    for (int v = 0; v < kQuantisedVectors; v++) {
      Float scale = widen_lanes<kLanes>((const uint16_t*)(w + kNibbles) + v * kLanes);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; t++) all[t][v] += to_float(sums[t].v[v]) * scale;
    }
  }
  for (int t = 0; t < kTokens; t++)
    for (int v = 0; v < kQuantisedVectors; v++) store(out + t * kRowBlock + v * kLanes, all[t][v] * x[t].scale());
}

template <int kTokens> static void quantised_tile(const Task& task, int64_t block, int64_t token, float* out) {
  const Quantised& weight = *task.quantised;
  const int8_t* w = (const int8_t*)weight.data + block * block_bytes(weight, task.columns);
  PackedToken x[kTokens];
  for (int t = 0; t < kTokens; t++)
    x[t] = {(const int16_t*)task.packed + (token + t) * task.packed_stride, padded_columns(task.columns)};
  if (weight.bits == 8)
    bytes_tile<kTokens>(w, weight.scale + block * kRowBlock, x, out);
  else
    nibbles_tile<kTokens>(w, x, out);
}

#if defined(__AMX_INT8__)
#include "quantised_amx.h"

// Returns whether the task uses tiles. They are configured only for layers in bf16.
template <class X> bool takes_tiles(const Task& task) { return sizeof(X) == 2 && task.quantised->bits == 8; }
#endif

// out[t * kRowBlock + r] = weight[row + r] @ x[t] + bias[row + r], for the rows of a block.
template <class X> void quantised_block(const Task& task, int64_t block, int64_t count, float* out) {
  int64_t t = 0;
#if defined(__AMX_INT8__)
  if (takes_tiles<X>(task)) {
    bytes_block(task, block, out);
    t = task.tokens;
  }
#endif
  for (; t < task.tokens; t += kMaxTile) {
    float* to = out + t * kRowBlock;
    switch (task.tokens - t) {
      case 1: quantised_tile<1>(task, block, t, to); break;
      case 2: quantised_tile<2>(task, block, t, to); break;
      case 3: quantised_tile<3>(task, block, t, to); break;
      case 4: quantised_tile<4>(task, block, t, to); break;
      case 5: quantised_tile<5>(task, block, t, to); break;
      case 6: quantised_tile<6>(task, block, t, to); break;
      case 7: quantised_tile<7>(task, block, t, to); break;
      default: quantised_tile<8>(task, block, t, to); break;
    }
  }
  add_bias<X>(task, block * kRowBlock, count, out);
}

// Loads columns [k, k + 4 * kLanes) of kLanes rows. A lane of each vector has the bytes of four columns of a row.
OVERTONE_INLINE void load_columns(const Quantised& weight, const int8_t* block, int64_t padded, int64_t k, int v,
                                  Word* columns) {
  for (int i = 0; i < kLanes; i++) columns[i] = Word{};
  if (weight.bits == 8) {
    for (int i = 0; i < kLanes && k + 4 * i < padded; i++)
      columns[i] = load<Word>(block + (k / 4 + i) * kQuads + v * kLanes * 4);
    return;
  }
  for (int i = 0; i < kLanes && k + 4 * i < padded; i += 2) {
    int64_t column = k + 4 * i;
    Word both = load<Word>(block + column / kGroup * kGroupBytes + column % kGroup / 8 * kQuads + v * kLanes * 4);
    columns[i] = both & 0x0f0f0f0fu;
    columns[i + 1] = (both >> 4) & 0x0f0f0f0fu;
  }
}

// Dequantises blocks [first, last) of rows.
template <class X> void unpack_as(const UnpackArguments& task, int64_t first, int64_t last) {
  const Quantised& weight = *task.quantised;
  int64_t padded = padded_columns(task.columns), bytes = block_bytes(weight, task.columns);
  float offset = weight.bits == 8 ? 0.0f : 8.0f;
  for (int64_t block = first; block < last; block++) {
    const int8_t* from = (const int8_t*)weight.data + block * bytes;
    for (int64_t k = 0; k < task.columns; k += 4 * kLanes)
      for (int v = 0; v < kQuantisedVectors; v++) {
        Word columns[kLanes];
        load_columns(weight, from, padded, k, v, columns);
        turn<kLanes>(columns);
        for (int r = 0; r < kLanes; r++) {
          int64_t row = block * kRowBlock + v * kLanes + r;
          if (row >= task.rows) break;
          int8_t own[4 * kLanes];  // flipping the upper bit of 8 bits subtracts their offset, 128
          store(own, weight.bits == 8 ? columns[r] ^ 0x80808080u : columns[r]);
          for (int64_t column = k; column < k + 4 * kLanes && column < task.columns; column += kLanes) {
            const int8_t* scales = from + column / kGroup * kGroupBytes + kNibbles;
            float scale = weight.bits == 8 ? weight.scale[row] : widen(((const uint16_t*)scales)[v * kLanes + r]);
            Float wide = widen_lanes<kLanes>(own + (column - k)) - offset;
            store_part((X*)task.out + row * task.columns + column, wide * scale, task.columns - column);
          }
        }
      }
  }
}

void unpack(const UnpackArguments& task, int64_t first, int64_t last) {
  if (task.type == kFloat32) return unpack_as<float>(task, first, last);
  return unpack_as<uint16_t>(task, first, last);
}
