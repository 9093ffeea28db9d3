// Vectors of this instruction set and the few operations the kernels need. Included inside the namespace of isa.cpp.
// Written with the compiler's vector extensions; intrinsics only where those have no word for an instruction.

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

#define OVERTONE_INLINE inline __attribute__((always_inline))

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

template <class V> OVERTONE_INLINE V load(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}
template <class V> OVERTONE_INLINE void store(void* to, V v) { __builtin_memcpy(to, &v, sizeof(V)); }

OVERTONE_INLINE float widen(uint16_t bits) {
  uint32_t word = uint32_t(bits) << 16;
  float value;
  __builtin_memcpy(&value, &word, 4);
  return value;
}
OVERTONE_INLINE float widen(float value) { return value; }

// Round to nearest even, as torch does; a NaN stays one.
OVERTONE_INLINE uint16_t narrow(float value) {
  uint32_t word;
  __builtin_memcpy(&word, &value, 4);
  uint32_t rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  return value != value ? uint16_t(0x7fc0) : uint16_t(rounded);
}

// bf16 bits as fp32 lanes. GCC makes 16 lanes of two halves unless told the instruction.
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
  return __builtin_convertvector(load<typename Vectors<kWidth>::Byte>(from), typename Vectors<kWidth>::Float);
}

template <class V, int... kLane> OVERTONE_INLINE auto join(V low, V high, Sequence<kLane...>) {
  return __builtin_shufflevector(low, high, kLane...);
}

// The lower (or upper) halves of all segments of kSegment lanes, those of `a` before those of `b`.
template <int kSegment, bool kUpper, int... kLane>
OVERTONE_INLINE Float halves(Float a, Float b, Sequence<kLane...>) {
  constexpr int kHalf = kSegment / 2;
  return __builtin_shufflevector(a, b, (kLane / kHalf * kSegment + kUpper * kHalf + kLane % kHalf)...);
}
template <int kSegment> OVERTONE_INLINE Float fold(Float a, Float b) {
  return halves<kSegment, false>(a, b, Count<kLanes>{}) + halves<kSegment, true>(a, b, Count<kLanes>{});
}

// Lane i of the result is the sum of the lanes of v[i], for kLanes vectors: folds of pairs, then pairs of those, ...
template <int kSize = kLanes> OVERTONE_INLINE Float sums_of(const Float* v) {
  if constexpr (kSize == 1)
    return v[0];
  else
    return fold<2 * kLanes / kSize>(sums_of<kSize / 2>(v), sums_of<kSize / 2>(v + kSize / 2));
}
