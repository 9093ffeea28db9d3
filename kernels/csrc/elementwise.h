// The element-wise operations between the linear layers. Included inside the namespace of isa.cpp.

// Returns the sum of gates[j] * delta[slots[j]] over a token's experts, for kLanes elements starting at `i`.
OVERTONE_INLINE Float shift_of(const Batch& batch, const float* delta, int64_t token, int64_t size, int64_t i) {
  Float shift = {};
  for (int32_t j = 0; j < batch.width; j++) {
    int32_t slot = batch.slots[token * batch.width + j];
    if (slot >= 0) shift += load_part(delta + slot * size + i, size - i) * batch.gates[token * batch.width + j];
  }
  return shift;
}

template <class X> void norm_as(const NormArguments& task, int64_t first, int64_t last) {
  int64_t size = task.size;
  const X* weight = (const X*)task.weight;
  for (int64_t t = first; t < last; t++) {
    for (int64_t h = 0; h < task.heads; h++) {
      const X* x = (const X*)task.x + t * task.token_stride + h * task.head_stride;
      X* out = (X*)task.out + (t * task.heads + h) * size;
      Float squares = {};
      for (int64_t i = 0; i < size; i += kLanes) {
        Float v = load_part(x + i, size - i);
        squares += v * v;
      }
      float inverse = 1.0f / __builtin_sqrtf(sum_lanes(squares) / float(size) + float(task.eps));
      for (int64_t i = 0; i < size; i += kLanes) {
        Float own = load_part(weight + i, size - i);
        if (task.delta) own = round_as(weight, own + shift_of(*task.batch, task.delta, t, size, i));
        Float normed = load_part(x + i, size - i) * inverse;
        Float made = task.offset != 0 ? normed * (own + float(task.offset)) : round_as(x, normed) * own;
        store_part(out + i, made, size - i);
      }
    }
  }
}

template <class X> void bias_as(const BiasArguments& task, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; t++) {
    const X* y = (const X*)task.y + t * task.y_stride;
    X* out = (X*)task.out + t * task.size;
    for (int64_t i = 0; i < task.size; i += kLanes) {
      Float shift = shift_of(*task.batch, task.delta, t, task.size, i);
      store_part(out + i, load_part(y + i, task.size - i) + shift, task.size - i);
    }
  }
}

// SiLU, x / (1 + e^-x), or the tanh approximation of GELU, x (1 + tanh u) / 2 = x / (1 + e^-2u).
OVERTONE_INLINE Float activated(int64_t activation, Float x) {
  Float exponent = activation == kSilu ? x : x * (1.5957691216f + 0.0713548163f * x * x);
  return x / (1.0f + exp_lanes(-exponent));
}

template <class X> void gated_as(const GatedArguments& task, int64_t first, int64_t last) {
  for (int64_t at = first; at < last;) {
    int64_t t = at / task.size, begin = at % task.size;
    int64_t end = begin + last - at < task.size ? begin + last - at : task.size;
    const X* x = (const X*)task.x + t * task.x_stride;
    X* out = (X*)task.out + t * task.size;
    for (int64_t i = begin; i < end; i += kLanes) {
      Float gate = load_part(x + i, end - i), up = load_part(x + task.size + i, end - i);
      store_part(out + i, activated(task.activation, gate) * up, end - i);
    }
    at += end - begin;
  }
}

// y = x * cos + swap(x) * sin for the first `rotated` of `dim` elements, where `swap` exchanges their halves. The other
// elements are copied.
template <class X>
void rotate_head(const X* x, const X* cos, const X* sin, int64_t rotated, int64_t dim, X* y) {
  int64_t half = rotated / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    int64_t left = half - i;
    Float low = load_part(x + i, left), high = load_part(x + half + i, left);
    store_part(y + i, low * load_part(cos + i, left) + high * load_part(sin + i, left), left);
    store_part(y + half + i, high * load_part(cos + half + i, left) + low * load_part(sin + half + i, left), left);
  }
  if (rotated < dim) __builtin_memcpy(y + rotated, x + rotated, (dim - rotated) * sizeof(X));
}

template <class X> void rotary_as(const RotaryArguments& task, int64_t first, int64_t last) {
  int64_t dim = task.dim, width = task.kv_heads * dim;
  for (int64_t t = first; t < last; t++) {
    const X* cos = (const X*)task.cos + t * task.rotated;
    const X* sin = (const X*)task.sin + t * task.rotated;
    const X* query = (const X*)task.query + t * task.query_stride;
    const X* key = (const X*)task.key + t * task.key_stride;
    for (int64_t h = 0; h < task.heads; h++)
      rotate_head(query + h * dim, cos, sin, task.rotated, dim, (X*)task.out + (t * task.heads + h) * dim);
    for (int64_t h = 0; h < task.kv_heads; h++)
      rotate_head(key + h * dim, cos, sin, task.rotated, dim, (X*)task.keys + task.places[t] * width + h * dim);
    __builtin_memcpy((X*)task.values + task.places[t] * width, (const X*)task.value + t * task.value_stride,
                     width * sizeof(X));
  }
}

// x += y * scale. The product and the sum are each rounded to the type of x.
template <class X> void add_as(const AddArguments& task, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; t++) {
    X* x = (X*)task.x + t * task.size;
    const X* y = (const X*)task.y + t * task.size;
    for (int64_t i = 0; i < task.size; i += kLanes) {
      Float part = load_part(y + i, task.size - i);
      if (task.scale != 1) part = round_as(x, part * float(task.scale));
      store_part(x + i, load_part(x + i, task.size - i) + part, task.size - i);
    }
  }
}

void norm(const NormArguments& task, int64_t first, int64_t last) {
  task.type == kFloat32 ? norm_as<float>(task, first, last) : norm_as<uint16_t>(task, first, last);
}
void bias(const BiasArguments& task, int64_t first, int64_t last) {
  task.type == kFloat32 ? bias_as<float>(task, first, last) : bias_as<uint16_t>(task, first, last);
}
void gated(const GatedArguments& task, int64_t first, int64_t last) {
  task.type == kFloat32 ? gated_as<float>(task, first, last) : gated_as<uint16_t>(task, first, last);
}
void rotary(const RotaryArguments& task, int64_t first, int64_t last) {
  task.type == kFloat32 ? rotary_as<float>(task, first, last) : rotary_as<uint16_t>(task, first, last);
}
void add(const AddArguments& task, int64_t first, int64_t last) {
  task.type == kFloat32 ? add_as<float>(task, first, last) : add_as<uint16_t>(task, first, last);
}
