// Conversions between bf16 and fp32. Included inside a namespace of each file that needs it, so that every instruction
// set has its own copies.

#define OVERTONE_INLINE inline __attribute__((always_inline))

OVERTONE_INLINE float widen(uint16_t bits) {
  uint32_t word = uint32_t(bits) << 16;
  float value;
  __builtin_memcpy(&value, &word, 4);
  return value;
}
OVERTONE_INLINE float widen(float value) { return value; }

// Rounds to nearest even, as torch does. A NaN stays a NaN.
OVERTONE_INLINE uint16_t narrow(float value) {
  uint32_t word;
  __builtin_memcpy(&word, &value, 4);
  uint32_t rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  return value != value ? uint16_t(0x7fc0) : uint16_t(rounded);
}

OVERTONE_INLINE void store_value(float* to, float value) { *to = value; }
OVERTONE_INLINE void store_value(uint16_t* to, float value) { *to = narrow(value); }
