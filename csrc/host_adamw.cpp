// Picks the instruction set of AdamW on host memory when the program runs.
//
// All sets give the same bits, those of the reference in kernels/adamw.py: the arithmetic is IEEE's, element by element,
// with exact roots and quotients, and no product is contracted with a sum.

#include "host_adamw.h"

#include <algorithm>

#include "host_adamw_lanes.h"

// AVX-512 has fused multiply-add within it, other targets by default.
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

namespace skytrain {
namespace {

// As in kernels/quantize.py.
constexpr float kSmallest = 1e-37f, kDithered = 16, kLeast = 2, kTiny = 0x1p-40f;
constexpr float kFirst = 127, kSecond = 255, kPerFirst = 1 / kFirst, kPerSecond = 1 / kSecond;
constexpr float kPerOffset = 0x1p-20f, kLastDither = 1 - kPerOffset;
constexpr uint32_t kCubeRoot = 709958130;
constexpr uint32_t kMask = (1u << 20) - 1, kPerElement = 791559, kPerStep = 648055, kPerTensor = 434335;

constexpr float kHalfACode = 0x1p-72f;  // whose eighth root is half a second moment's code
constexpr float kUnsure = 0x1p-13f;     // of a code

constexpr int64_t kChunk = 4;  // groups that are worked on at once: 4 KiB of moments

// HostStep, and the products that are the same for all elements of a tensor.
struct Constants {
  float scale, rest1, rest2, eps, root, decay, move;
  uint32_t dither;

  Constants(const HostTensor& tensor, const HostStep& s)
      : scale(s.scale), rest1(s.rest1), rest2(s.rest2), eps(s.eps), root(s.root), decay(s.rate * tensor.decay),
        move(s.rate * s.first),
        dither(static_cast<uint32_t>(s.step) * kPerStep + static_cast<uint32_t>(tensor.number) * kPerTensor) {}
};

// The scale of a group whose largest absolute value has these bits, and its inverse.
struct Range {
  float scale, inverse;

  explicit Range(int32_t bits)
      : scale(bit_cast<float>(std::max(bits, bit_cast<int32_t>(kSmallest)))), inverse(1 / scale) {}
};

}  // namespace

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
#pragma GCC target("avx512f")
namespace avx512 {
#include "host_adamw_kernel.h"
}
#pragma GCC pop_options

bool runs_here(Isa isa) {
  if (isa == Isa::kAvx512) return __builtin_cpu_supports("avx512f");
  return isa == Isa::kPlain || __builtin_cpu_supports("avx2");
}
#else
namespace avx2 = plain;
namespace avx512 = plain;
bool runs_here(Isa isa) { return isa == Isa::kPlain; }
#endif

void host_adamw(const HostTensor& tensor, const HostStep& step, int64_t begin, int64_t end, Isa isa) {
  const Constants constants(tensor, step);
  if (isa == Isa::kAvx512)
    avx512::update(constants, tensor, begin, end);
  else if (isa == Isa::kAvx2)
    avx2::update(constants, tensor, begin, end);
  else
    plain::update(constants, tensor, begin, end);
}

}  // namespace skytrain
