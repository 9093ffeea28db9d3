// Products with weights of 8 or 4 bits. Included inside the namespace of isa.cpp.
//
// x is rounded to integers of 16 bits with one scale a token, a power of two, and multiplied by the integers of the
// weights exactly: sums of integers have no order, so a token's result is the same in any company, on any number of
// threads and, for 8 bits, on every processor. The rounding of x is finer than that of bf16 relative to the largest
// number, and where that reaches the range of the sums, relative to the mean (`quantise_token`).
//
// Weights lie in blocks of 16 rows with neighbouring columns side by side, rows in the lanes: no sum runs across lanes.

template <int kWidth> struct Integers {
  typedef int32_t Word __attribute__((vector_size(kWidth * 4)));
  typedef int16_t Half __attribute__((vector_size(kWidth * 4)));   // pairs of columns
  typedef int8_t Byte __attribute__((vector_size(kWidth * 2)));
};
using Int = Integers<kLanes>::Word;
using Pairs = Integers<kLanes>::Half;

constexpr int64_t kGroup = 32;                    // columns of 4-bit weights that share a scale; rows are padded to it
constexpr int64_t kHeader = 32;                   // of packed x, in integers: holds the scale
constexpr int64_t kScales = kRowBlock * 2;        // bytes of the scales of a group in a block
constexpr int64_t kNibbles = kGroup * kRowBlock / 2;
constexpr int kQuantisedVectors = kRowBlock / kLanes;

// 2 * kLanes integers of 8 bits, widened.
OVERTONE_INLINE Pairs widen_pairs(const int8_t* from) {
#if defined(__AVX512BW__)
  return (Pairs)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (Pairs)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)from));
#else
  return __builtin_convertvector(load<Integers<kLanes>::Byte>(from), Pairs);
#endif
}

// sum + the products of the two columns of each lane.
OVERTONE_INLINE Int add_pairs(Int sum, Pairs w, Int x) {
#if defined(__AVX512VNNI__)
  return (Int)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVX512BW__)
  return sum + (Int)_mm512_madd_epi16((__m512i)w, (__m512i)x);
#elif defined(__AVX2__)
  return sum + (Int)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#elif defined(__SSE2__)
  return sum + (Int)_mm_madd_epi16((__m128i)w, (__m128i)x);
#else
  Int both = (Int)w;
  return sum + ((both << 16) >> 16) * ((x << 16) >> 16) + (both >> 16) * (x >> 16);
#endif
}

OVERTONE_INLINE Int both_columns(const int16_t* x) {
  int32_t pair;
  __builtin_memcpy(&pair, x, 4);
  return Int{} + pair;
}

OVERTONE_INLINE Float to_float(Int v) { return __builtin_convertvector(v, Float); }

inline int64_t padded_columns(const Task& task) { return (task.columns + kGroup - 1) / kGroup * kGroup; }

// x as integers, 0 after the last column. The scale is the smallest power of two with which neither a number leaves 16
// bits nor the sum of all leaves 24, so that the sum of products with 8 bits fits into 32.
template <class X> void quantise_token(const X* from, int64_t columns, int64_t padded, int16_t* to) {
  Float largest = {}, sums = {};
  for (int64_t k = 0; k < columns; k += kLanes) {
    Float v = load_part(from + k, columns - k);
    v = (Float)((Word)v & 0x7fffffffu);
    largest = v > largest ? v : largest;
    sums += v;
  }
  float most = 0.0f;
  for (int i = 0; i < kLanes; i++) most = largest[i] > most ? largest[i] : most;
  float by_largest = most * (1.0f / 32766.0f);
  // Rounding adds half a unit to each of the columns at most; sums in fp32 are off by less than the thousandth.
  float by_sum = sum_lanes(sums) * 1.001f / (16777215.0f - 0.5f * float(columns));
  float least = by_largest > by_sum ? by_largest : by_sum;
  uint32_t bits;
  __builtin_memcpy(&bits, &least, 4);
  bits = (bits + 0x007fffffu) & 0x7f800000u;
  if (bits < 0x01000000u) bits = 0x01000000u;  // 2^-125: its inverse is a normal number, too
  bool finite = bits < 0x7f000000u && least == least;
  if (!finite) bits = 0x7fc00000u;             // a NaN, and so is all that it is multiplied with
  float scale;
  __builtin_memcpy(&scale, &bits, 4);
  __builtin_memcpy(to, &scale, 4);
  float inverse = finite ? 1.0f / scale : 0.0f;
  to += kHeader;
  for (int64_t k = 0; k < padded; k += kLanes) {
    Float v = finite && k < columns ? load_part(from + k, columns - k) * inverse : Float{};
    // Adding 1.5 * 2^23 rounds to even; the integer is in the low bits.
    Word word = (Word)(v + 12582912.0f);
#if defined(__AVX512F__)
    store(to + k, _mm512_cvtepi32_epi16((__m512i)word));
#else
    store(to + k, __builtin_convertvector(word, Half));
#endif
  }
}

template <class X> void quantise_tokens(const Task& task, int64_t first, int64_t last) {
  int64_t padded = padded_columns(task);
  for (int64_t t = first; t < last; t++)
    quantise_token((const X*)task.x + t * task.x_stride, task.columns, padded,
                   (int16_t*)task.packed + t * task.packed_stride);
}

// Bytes of a block of rows.
inline int64_t block_bytes(const Task& task) {
  int64_t padded = padded_columns(task);
  return task.quantised->bits == 8 ? padded * kRowBlock : padded / kGroup * (kNibbles + kScales);
}

constexpr int64_t kAhead = 4096;  // bytes of weights that are fetched before they are used

// Sums of 8-bit products of kTokens tokens; few tokens have several sums each, since one waits for the one before.
template <int kTokens>
static void bytes_tile(const int8_t* w, const float* scale, const int16_t* x, int64_t stride, int64_t padded,
                       float* out) {
  constexpr int kSplit = kTokens == 1 ? 4 : kTokens <= 3 ? 2 : 1;
  for (int v = 0; v < kQuantisedVectors; v++) {
    Int acc[kTokens][kSplit] = {};
    const int8_t* from = w + v * 2 * kLanes;
    for (int64_t k = 0; k < padded; k += 8, from += 8 * kRowBlock) {
      if (v == 0) {
        __builtin_prefetch(from + kAhead, 0, 2);
        __builtin_prefetch(from + kAhead + kLine, 0, 2);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        Pairs weights = widen_pairs(from + i * 2 * kRowBlock);
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; t++)
          acc[t][i % kSplit] =
              add_pairs(acc[t][i % kSplit], weights, both_columns(x + t * stride + kHeader + k + 2 * i));
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; t++) {
      Int sum = acc[t][0];
#pragma GCC unroll 4
      for (int i = 1; i < kSplit; i++) sum += acc[t][i];
      float own;
      __builtin_memcpy(&own, x + t * stride, 4);
      store(out + t * kRowBlock + v * kLanes, to_float(sum) * (load<Float>(scale + v * kLanes) * own));
    }
  }
}

// The same with 4 bits: a byte has one column's integer in its upper half and that of the column two further in its
// lower half, and the 16 scales of a group follow its integers.
template <int kTokens>
static void nibbles_tile(const int8_t* w, const int16_t* x, int64_t stride, int64_t padded, float* out) {
  constexpr int kSplit = kTokens <= 3 ? 2 : 1;
  for (int v = 0; v < kQuantisedVectors; v++) {
    Float sums[kTokens] = {};
    const int8_t* from = w;
    for (int64_t k = 0; k < padded; k += kGroup, from += kNibbles + kScales) {
      Int acc[kTokens][kSplit] = {};
      if (v == 0)
#pragma GCC unroll 5
        for (int line = 0; line < 5; line++) __builtin_prefetch(from + kAhead + line * kLine, 0, 2);
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) {
        Pairs both = widen_pairs(from + i * 2 * kRowBlock + v * 2 * kLanes);
        Pairs upper = both >> 4, lower = (both << 12) >> 12;
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; t++) {
          const int16_t* column = x + t * stride + kHeader + k + 4 * i;
          acc[t][0] = add_pairs(acc[t][0], upper, both_columns(column));
          acc[t][kSplit - 1] = add_pairs(acc[t][kSplit - 1], lower, both_columns(column + 2));
        }
      }
      Float scale = widen_lanes<kLanes>((const uint16_t*)(from + kNibbles) + v * kLanes);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; t++) {
        Int sum = kSplit == 2 ? acc[t][0] + acc[t][kSplit - 1] : acc[t][0];
        sums[t] += to_float(sum) * scale;
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; t++) {
      float own;
      __builtin_memcpy(&own, x + t * stride, 4);
      store(out + t * kRowBlock + v * kLanes, sums[t] * own);
    }
  }
}

template <int kTokens> static void quantised_tile(const Task& task, int64_t block, int64_t token, float* out) {
  const int8_t* w = (const int8_t*)task.quantised->data + block * block_bytes(task);
  const int16_t* x = (const int16_t*)task.packed + token * task.packed_stride;
  int64_t padded = padded_columns(task);
  if (task.quantised->bits == 8)
    bytes_tile<kTokens>(w, task.quantised->scale + block * kRowBlock, x, task.packed_stride, padded, out);
  else
    nibbles_tile<kTokens>(w, x, task.packed_stride, padded, out);
}

// out[t * kRowBlock + r] = weight[row + r] @ x[t] + bias[row + r], for the rows of a block.
template <class X> void quantised_block(const Task& task, int64_t block, int64_t count, float* out) {
  for (int64_t t = 0; t < task.tokens; t += kMaxTile) {
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
  if (!task.bias) return;
  float bias[kRowBlock] = {};
  for (int64_t r = 0; r < count; r++) bias[r] = widen(((const X*)task.bias)[block * kRowBlock + r]);
  for (int64_t t = 0; t < task.tokens; t++)
    for (int r = 0; r < kRowBlock; r += kLanes)
      store(out + t * kRowBlock + r, load<Float>(out + t * kRowBlock + r) + load<Float>(bias + r));
}

// Columns [k, k + 2 * kLanes) of kLanes rows as pairs, a vector of rows for each two columns.
OVERTONE_INLINE void load_columns(const Quantised& weight, const int8_t* block, int64_t k, int v, Word* pairs) {
  if (weight.bits == 8) {
    for (int i = 0; i < kLanes; i++)
      pairs[i] = (Word)widen_pairs(block + (k / 2 + i) * 2 * kRowBlock + v * 2 * kLanes);
    return;
  }
  const int8_t* group = block + k / kGroup * (kNibbles + kScales) + k % kGroup / 4 * 2 * kRowBlock;
  for (int i = 0; i < kLanes; i += 2) {
    Pairs both = widen_pairs(group + i * kRowBlock + v * 2 * kLanes);
    pairs[i] = (Word)(both >> 4);
    pairs[i + 1] = (Word)((both << 12) >> 12);
  }
}

// Blocks [first, last) of rows multiplied out.
template <class X> void unpack_as(const UnpackArguments& task, int64_t first, int64_t last) {
  const Quantised& weight = *task.quantised;
  int64_t padded = (task.columns + kGroup - 1) / kGroup * kGroup;
  int64_t bytes = weight.bits == 8 ? padded * kRowBlock : padded / kGroup * (kNibbles + kScales);
  for (int64_t block = first; block < last; block++) {
    const int8_t* from = (const int8_t*)weight.data + block * bytes;
    for (int64_t k = 0; k < task.columns; k += 2 * kLanes)
      for (int v = 0; v < kQuantisedVectors; v++) {
        Word pairs[kLanes];
        load_columns(weight, from, k, v, pairs);
        turn<kLanes>(pairs);
        Float scale = weight.bits == 8
                          ? load<Float>(weight.scale + block * kRowBlock + v * kLanes)
                          : widen_lanes<kLanes>((const uint16_t*)(from + k / kGroup * (kNibbles + kScales) + kNibbles) +
                                                v * kLanes);
        for (int r = 0; r < kLanes; r++) {
          int64_t row = block * kRowBlock + v * kLanes + r;
          if (row >= task.rows) break;
          int16_t own[2 * kLanes];
          store(own, pairs[r]);
          for (int half = 0; half < 2; half++) {
            int64_t column = k + half * kLanes;
            if (column >= task.columns) break;
            Float wide;
            for (int i = 0; i < kLanes; i++) wide[i] = float(own[half * kLanes + i]);
            store_part((X*)task.out + row * task.columns + column, wide * scale[r], task.columns - column);
          }
        }
      }
  }
}

void unpack(const UnpackArguments& task, int64_t first, int64_t last) {
  if (task.type == kFloat32) return unpack_as<float>(task, first, last);
  return unpack_as<uint16_t>(task, first, last);
}
