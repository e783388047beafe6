// Picks the instruction set of the cross-entropy of a row when the program runs.
//
// torch makes a pass over memory, and a thread barrier, for each of maximum, difference, exponential, sum and product.
// Here a thread takes a whole row through all of them in its own cache.

#include "cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "inline.h"

namespace skytrain {

namespace plain {
#include "lanes_kernel.h"
#include "cross_entropy_kernel.h"
}

#if defined(__x86_64__)
// Not target_clones: see attention.cpp.
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "lanes_kernel.h"
#include "cross_entropy_kernel.h"
}
#pragma GCC pop_options
static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
namespace avx2 = plain;
static const bool has_avx2 = false;
#endif

RowLoss cross_entropy_row(float* z, int64_t columns, int64_t label, float coefficient, bool gradient) {
  return (has_avx2 ? avx2::row : plain::row)(z, columns, label, coefficient, gradient);
}

}  // namespace skytrain
