// Picks the instruction set of AdamW on host memory when the program runs.
//
// All sets give the same bits, those of the reference in kernels/adamw.py: the arithmetic is IEEE's, element by element,
// with exact roots and quotients, and no product is contracted with a sum. That costs nothing, since memory is the
// bottleneck.

#include "host_adamw.h"

#include <cmath>

#define INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#pragma clang fp contract(off)
#else
// Without errno a root is one instruction, and a loop around it can be vectorised.
#pragma GCC optimize("fp-contract=off", "no-math-errno")
#endif

namespace skytrain {

namespace plain {
#include "host_adamw_kernel.h"
}

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#include "host_adamw_kernel.h"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace avx512 {
#include "host_adamw_kernel.h"
}
#pragma GCC pop_options

bool runs_here(Isa isa) {
  if (isa == Isa::kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return isa == Isa::kPlain || __builtin_cpu_supports("avx2");
}
#else
namespace avx2 = plain;
namespace avx512 = plain;
bool runs_here(Isa isa) { return isa == Isa::kPlain; }
#endif

void host_adamw(const HostTensor& tensor, const HostStep& step, int64_t begin, int64_t end, Isa isa) {
  if (isa == Isa::kAvx512)
    avx512::update(tensor, step, begin, end);
  else if (isa == Isa::kAvx2)
    avx2::update(tensor, step, begin, end);
  else
    plain::update(tensor, step, begin, end);
}

}  // namespace skytrain
