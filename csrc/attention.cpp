// Picks the instruction set of the attention kernel when the program runs.
//
// torch's own CPU attention costs 0.2 to 1 ms a call whatever the length, so a packed row of many short documents
// spends its time there. Here a document is a plain function call, grouped key/value heads are read in place, and
// blocks on the diagonal skip what the causal mask removes.

#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#define INLINE inline __attribute__((always_inline))
// Vectors wider than the plain target's registers change the ABI of functions, but these are all inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace skytrain {

namespace plain {
#include "attention_kernel.h"
}

#if defined(__x86_64__)
// Not target_clones: GCC splits vectors for the plain target before it clones, which made this 50 times slower.
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "attention_kernel.h"
}
#pragma GCC pop_options
static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
namespace avx2 = plain;
static const bool has_avx2 = false;
#endif

void attention_forward(const Attention& a, int64_t begin, int64_t end, int64_t head) {
  (has_avx2 ? avx2::forward : plain::forward)(a, begin, end, head);
}

void attention_backward(const Attention& a, const Rows& d_out, const Rows& dq, const Rows& dk, const Rows& dv,
                        int64_t begin, int64_t end, int64_t kv_head) {
  (has_avx2 ? avx2::backward : plain::backward)(a, d_out, dq, dk, dv, begin, end, kv_head);
}

}  // namespace skytrain
