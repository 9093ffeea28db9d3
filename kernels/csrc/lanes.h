// Vectors of this instruction set, and the operations that the kernels need. Included inside the namespace of isa.cpp.
// It uses the compiler's vector extensions, and intrinsics only for instructions that the extensions cannot express.

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

template <int... kNumber> struct Sequence {};
template <int kSize, int... kNumber> struct Counter : Counter<kSize - 1, kSize - 1, kNumber...> {};
template <int... kNumber> struct Counter<0, kNumber...> {
  using Type = Sequence<kNumber...>;
};
template <int kSize> using Count = typename Counter<kSize>::Type;

template <int kWidth> struct Vectors {
  typedef float Float __attribute__((vector_size(kWidth * 4)));
  typedef uint32_t Word __attribute__((vector_size(kWidth * 4)));
  typedef uint16_t Half __attribute__((vector_size(kWidth * 2)));
  typedef int8_t Byte __attribute__((vector_size(kWidth)));
};
using Float = Vectors<kLanes>::Float;
using Word = Vectors<kLanes>::Word;
using Half = Vectors<kLanes>::Half;

template <class V> OVERTONE_INLINE V load(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}
template <class V> OVERTONE_INLINE void store(void* to, V v) { __builtin_memcpy(to, &v, sizeof(V)); }

// Converts bf16 to fp32 lanes. Without the intrinsic, GCC computes 16 lanes in two halves.
template <int kWidth>
OVERTONE_INLINE typename Vectors<kWidth>::Float widen_lanes(typename Vectors<kWidth>::Half v) {
#if defined(__AVX512F__)
  if constexpr (kWidth == 16) return (Vectors<16>::Float)((Vectors<16>::Word)_mm512_cvtepu16_epi32((__m256i)v) << 16);
#endif
  return (typename Vectors<kWidth>::Float)(__builtin_convertvector(v, typename Vectors<kWidth>::Word) << 16);
}
template <int kWidth>
OVERTONE_INLINE typename Vectors<kWidth>::Float widen_lanes(typename Vectors<kWidth>::Float v) {
  return v;
}

template <int kWidth> OVERTONE_INLINE typename Vectors<kWidth>::Float widen_lanes(const uint16_t* from) {
  return widen_lanes<kWidth>(load<typename Vectors<kWidth>::Half>(from));
}
template <int kWidth> OVERTONE_INLINE typename Vectors<kWidth>::Float widen_lanes(const float* from) {
  return load<typename Vectors<kWidth>::Float>(from);
}
template <int kWidth> OVERTONE_INLINE typename Vectors<kWidth>::Float widen_lanes(const int8_t* from) {
#if defined(__AVX512F__)
  if constexpr (kWidth == 16)
    return (Vectors<16>::Float)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#endif
#if defined(__AVX2__)
  if constexpr (kWidth == 8)
    return (Vectors<8>::Float)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#endif
  return __builtin_convertvector(load<typename Vectors<kWidth>::Byte>(from), typename Vectors<kWidth>::Float);
}

template <class V, int... kLane> OVERTONE_INLINE auto join(V low, V high, Sequence<kLane...>) {
  return __builtin_shufflevector(low, high, kLane...);
}

// The lower (or upper) halves of all segments of kSegment lanes, first those of `a`, then those of `b`.
template <int kSegment, bool kUpper, int... kLane>
OVERTONE_INLINE Float halves(Float a, Float b, Sequence<kLane...>) {
  constexpr int kHalf = kSegment / 2;
  return __builtin_shufflevector(a, b, (kLane / kHalf * kSegment + kUpper * kHalf + kLane % kHalf)...);
}
template <int kSegment> OVERTONE_INLINE Float fold(Float a, Float b) {
  return halves<kSegment, false>(a, b, Count<kLanes>{}) + halves<kSegment, true>(a, b, Count<kLanes>{});
}

// Lane i of the result is the sum of the lanes of v[i], for kLanes vectors. Pairs of vectors are folded, then pairs of
// the results, and so on.
template <int kSize = kLanes> OVERTONE_INLINE Float sums_of(const Float* v) {
  if constexpr (kSize == 1)
    return v[0];
  else
    return fold<2 * kLanes / kSize>(sums_of<kSize / 2>(v), sums_of<kSize / 2>(v + kSize / 2));
}

// Rounds all lanes as `narrow` does.
OVERTONE_INLINE Half narrow_lanes(Float v) {
  Word word = (Word)v;
  Word made = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  made = v != v ? Word{} + 0x7fc0u : made;
#if defined(__AVX512F__)
  return (Half)_mm512_cvtepi32_epi16((__m512i)made);
#else
  return __builtin_convertvector(made, Half);
#endif
}

// Loads kLanes elements from an array of bf16 or fp32 of which `count` elements are left, with zeros after the last
// one. `store_part` is the inverse.
template <class X> OVERTONE_INLINE Float load_part(const X* from, int64_t count) {
  if (count >= kLanes) return widen_lanes<kLanes>(from);
  X part[kLanes] = {};
  for (int64_t i = 0; i < count; i++) part[i] = from[i];
  return widen_lanes<kLanes>(part);
}
OVERTONE_INLINE void store_part(float* to, Float v, int64_t count) {
  if (count >= kLanes) return store(to, v);
  for (int64_t i = 0; i < count; i++) to[i] = v[i];
}
OVERTONE_INLINE void store_part(uint16_t* to, Float v, int64_t count) {
  Half half = narrow_lanes(v);
  if (count >= kLanes) return store(to, half);
  for (int64_t i = 0; i < count; i++) to[i] = half[i];
}

// Rounds v to the element type of the pointer, and returns it as fp32.
OVERTONE_INLINE Float round_as(const float*, Float v) { return v; }
OVERTONE_INLINE Float round_as(const uint16_t*, Float v) { return widen_lanes<kLanes>(narrow_lanes(v)); }

// e^x to 2 units in the last place: 2^n times a polynomial in the remainder f, |f| <= ln(2) / 2. x is clamped so that
// the result is a normal number.
OVERTONE_INLINE Float exp_lanes(Float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  x = x < -87.0f ? Float{} - 87.0f : x;
  x = x > 88.0f ? Float{} + 88.0f : x;
  Float shifted = x * 1.44269504f + kShift;
  Float n = shifted - kShift;
  Float f = x - n * 0.693359375f + n * 2.12194440e-4f;
  Float p = Float{} + 1.9875691e-4f;
  p = p * f + 1.3981999e-3f;
  p = p * f + 8.3334519e-3f;
  p = p * f + 4.1665795e-2f;
  p = p * f + 1.6666665e-1f;
  p = p * f + 5.0e-1f;
  p = p * f * f + f + 1.0f;
  return (Float)((Word)p + ((Word)shifted << 23));
}

OVERTONE_INLINE float sum_lanes(Float v) {
  float sum = 0;
  for (int i = 0; i < kLanes; i++) sum += v[i];
  return sum;
}

// One step of the transposition in `turn`: `kUpper` selects the lanes with bit kBit set, or those without it. Result
// lanes without the bit come from `a`, those with it from `b`.
template <int kBit, bool kUpper, int... kLane> OVERTONE_INLINE Word mixed(Word a, Word b, Sequence<kLane...>) {
  if constexpr (kUpper)
    return __builtin_shufflevector(a, b, (kLane & kBit ? kLanes + kLane : kLane + kBit)...);
  else
    return __builtin_shufflevector(a, b, (kLane & kBit ? kLanes + kLane - kBit : kLane)...);
}

// Transposes kWidth vectors: in each group of kWidth lanes, lane i of vector j becomes lane j of vector i.
template <int kWidth, int kBit = kWidth / 2> OVERTONE_INLINE void turn(Word* v) {
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; i++) {
    if (i & kBit) continue;
    Word low = mixed<kBit, false>(v[i], v[i + kBit], Count<kLanes>{});
    v[i + kBit] = mixed<kBit, true>(v[i], v[i + kBit], Count<kLanes>{});
    v[i] = low;
  }
  if constexpr (kBit > 1) turn<kWidth, kBit / 2>(v);
}
template <int kWidth> OVERTONE_INLINE void turn(Float* v) {
  Word words[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; i++) words[i] = (Word)v[i];
  turn<kWidth>(words);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; i++) v[i] = (Float)words[i];
}
