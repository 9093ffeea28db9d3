// The kernels of one instruction set. This file is compiled once for each, with the set's flags and its name as
// OVERTONE_ISA. It must not include templates of the standard library: the linker would share one copy of them between
// objects that are compiled for different processors.
#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace overtone {
namespace {

#include "numbers.h"

#include "lanes.h"

#if defined(__AMX_BF16__)
#include "amx.h"
#endif

#include "attention.h"
#if defined(__AMX_BF16__)
#include "attention_amx.h"
#endif
#include "elementwise.h"
#include "linear.h"
#include "rounding.h"

const AttentionKernels& attention_of(const AttentionArguments& task) {
#if defined(__AMX_BF16__)
  // A product of tiles sums over 32 elements of a head.
  if (task.type == kBfloat16 && task.dim % kDepth == 0) return tiles::attention;
#endif
  return attention;
}

}  // namespace

extern const Kernels OVERTONE_ISA;
const Kernels OVERTONE_ISA = {
    .packed_bytes = packed_bytes,
    .prepare = prepare,
    .shrink = shrink,
    .run = run,
    .scratch_floats = scratch_floats,
    .widest = widest,
    .attention = attention_of,
    .norm = norm,
    .bias = bias,
    .gated = gated,
    .rotary = rotary,
    .add = add,
    .sample = sampling::OVERTONE_ISA,
    .unpack = unpack,
    .quantise = quantise,
};

}  // namespace overtone
