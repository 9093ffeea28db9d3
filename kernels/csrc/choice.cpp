// The functions that Python calls when it loads the library: its build, its instruction sets, and the sizes of structs.
#include "kernels.h"

#if defined(OVERTONE_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace overtone {

#if defined(OVERTONE_AVX512BF16)
extern const Kernels avx512bf16;
#endif
#if defined(OVERTONE_AVX512)
extern const Kernels avx512;
#endif
#if defined(OVERTONE_AVX2)
extern const Kernels avx2;
#endif
extern const Kernels generic;

#if defined(OVERTONE_AMX)
extern const Kernels amx;

namespace {

// Returns whether the processor has AMX for bf16 and integers, and Linux lets this process use it. A process must ask
// for AMX, because its registers take 8 KB of each thread.
bool may_use_amx() {
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE, AMX-INT8
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kNeeded) != kNeeded) return false;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace
#endif

const Kernels* kernels_of(int64_t isa) {
  switch (isa) {
#if defined(OVERTONE_AMX) && defined(OVERTONE_AVX512BF16)
    case 4: {
      static const bool may = kernels_of(3) && may_use_amx();
      return may ? &amx : nullptr;
    }
#endif
#if defined(OVERTONE_AVX512BF16)
    case 3:
      return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512vnni")
                 ? &avx512bf16
                 : nullptr;
#endif
#if defined(OVERTONE_AVX512)
    case 2:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
                 ? &avx512
                 : nullptr;
#endif
#if defined(OVERTONE_AVX2)
    case 1:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
                 ? &avx2
                 : nullptr;
#endif
    case 0:
      return &generic;
    default:
      return nullptr;
  }
}

}  // namespace overtone

OVERTONE_EXPORT int overtone_supports(int isa) { return overtone::kernels_of(isa) != nullptr; }

// Returns the digest of the sources and flags of this build, computed by build.py.
OVERTONE_EXPORT const char* overtone_build() { return OVERTONE_BUILD; }

OVERTONE_STRUCT(Bank)
OVERTONE_STRUCT(LowRank)
OVERTONE_STRUCT(Quantised)
OVERTONE_STRUCT(Batch)
OVERTONE_STRUCT(SamplingRow)
OVERTONE_STRUCT(Layer)
