// Rounding weights to few bits. Included inside the namespace of isa.cpp.

// Rounds v to the nearest integer within [lowest, highest], half to even.
OVERTONE_INLINE Float nearest(Float v, float lowest, float highest) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer; larger values are clamped
  Float n = (v + kShift) - kShift;
  n = n < lowest ? Float{} + lowest : n;
  return n > highest ? Float{} + highest : n;
}

// Returns the sum of (v - scale * integer)^2 over a row. The integers are those of v * (1 / scale), which differ from
// those of v / scale only if two integers are equally near.
OVERTONE_INLINE float squared_error(const QuantiseArguments& task, const float* v, float scale) {
  float inverse = 1.0f / scale, lowest = float(task.lowest), highest = float(task.highest);
  Float sum{};
  for (int64_t k = 0; k < task.size; k += kLanes) {
    Float x = load_part(v + k, task.size - k);
    Float error = x - nearest(x * inverse, lowest, highest) * scale;
    sum += error * error;
  }
  return sum_lanes(sum);
}

void quantise(const QuantiseArguments& task, int64_t first, int64_t last) {
  using Bytes = Vectors<kLanes>::Byte;
  for (int64_t row = first; row < last; row++) {
    const float* v = task.value + row * task.size;
    const float* scales = task.scale + row * task.candidates;
    int64_t best = 0;
    float least = __builtin_inff();
    for (int64_t c = 0; c < task.candidates; c++) {
      float error = squared_error(task, v, scales[c]);
      if (error < least) least = error, best = c;
    }
    task.chosen[row] = best;
    int8_t* to = task.integer + row * task.size;
    for (int64_t k = 0; k < task.size; k += kLanes) {
      int64_t left = task.size - k;
      Float n = nearest(load_part(v + k, left) / scales[best], float(task.lowest), float(task.highest));
      Bytes bytes = __builtin_convertvector(n, Bytes);
      __builtin_memcpy(to + k, &bytes, left < kLanes ? left : kLanes);
    }
  }
}
