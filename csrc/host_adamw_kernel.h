// AdamW of one tensor: formulas and order of operations of kernels/adamw.py, codes of kernels/quantize.py.
// Included by host_adamw.cpp once for each instruction set, in a namespace of its own; so no include guard here.
//
// Plain loops that the compiler vectorises. An 8-bit group is decoded, updated and coded while it is in the first cache.

constexpr float kTop = 1.875f, kPerTop = static_cast<float>(1 / 1.875), kSmallest = 1e-37f;
constexpr float kFirst = 0x1p-112f, kSecond = 0x1p-96f;
constexpr uint32_t kMask = (1u << 20) - 1, kPerElement = 791559, kPerStep = 648055, kPerTensor = 434335;

INLINE int32_t bits_of(float x) { return __builtin_bit_cast(int32_t, x); }
INLINE float of_bits(int32_t bits) { return __builtin_bit_cast(float, bits); }

INLINE float widen(float x) { return x; }
INLINE float widen(uint16_t bf16) { return of_bits(static_cast<int32_t>(static_cast<uint32_t>(bf16) << 16)); }

// To nearest, ties to even. NaN becomes the canonical one, since the nearest pattern of some NaNs is infinity's.
INLINE uint16_t narrow(float x) {
  const uint32_t bits = static_cast<uint32_t>(bits_of(x));
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

// HostStep with the products that are the same for all elements of a tensor.
struct Constants {
  float scale, rest1, rest2, eps, root, decay, move;

  Constants(const HostTensor& tensor, const HostStep& s)
      : scale(s.scale), rest1(s.rest1), rest2(s.rest2), eps(s.eps), root(s.root), decay(s.rate * tensor.decay),
        move(s.rate * s.first) {}
};

INLINE void advance(const Constants& c, float g, float& m, float& v, float& w) {
  g = g * c.scale;
  m = m + (g - m) * c.rest1;
  v = v + (g * g - v) * c.rest2;
  w = w - (w * c.decay + m / (__builtin_sqrtf(v) * c.root + c.eps) * c.move);
}

template <class Gradient, bool kOut>
INLINE void update_fp32(const HostTensor& tensor, const HostStep& step, int64_t begin, int64_t end) {
  const Constants c(tensor, step);
  float* __restrict w = tensor.weight;
  const Gradient* __restrict g = static_cast<const Gradient*>(tensor.gradient);
  float* __restrict m = static_cast<float*>(tensor.exp_avg);
  float* __restrict v = static_cast<float*>(tensor.exp_avg_sq);
  uint16_t* __restrict out = tensor.out;
  for (int64_t i = begin; i < end; ++i) {
    advance(c, widen(g[i]), m[i], v[i], w[i]);
    if constexpr (kOut) out[i] = narrow(w[i]);
  }
}

// (|x| / scale * unit)'s bits for each element; returns the group's scale. `largest`: the bits of the largest |x|, which
// order as the numbers do, with NaN above all.
struct Relative {
  float inverse, scale;

  explicit Relative(int32_t largest) {
    const float top = of_bits(largest > bits_of(kSmallest) ? largest : bits_of(kSmallest));
    inverse = kTop / top;
    scale = top * kPerTop;
  }
  INLINE uint32_t operator()(float x, float unit) const {
    return static_cast<uint32_t>(bits_of(std::fabs(x) * inverse * unit));
  }
};

INLINE float decode(int32_t code, float unit, float scale) {
  const int32_t size = code < 0 ? -code : code;
  const float x = of_bits(size << 20) * (1 / unit);
  return (code < 0 ? -x : x) * scale;
}

INLINE int32_t encode_first(const Relative& relative, float m) {
  const int32_t code = static_cast<int32_t>(relative(m, kFirst) + 0x80000) >> 20;
  const int32_t size = code < 127 ? code : 127;
  return m < 0 ? -size : size;
}

INLINE int32_t encode_second(const Relative& relative, float v, uint32_t offset) {
  int32_t code = static_cast<int32_t>(relative(v, kSecond) + offset) >> 20;
  code = code > 1 ? code : 1;
  code = code < 255 ? code : 255;
  return v > 0 ? code : 0;
}

// One group, elements [first, first + n) of the tensor.
template <class Gradient, bool kOut>
INLINE void update_group(const Constants& c, const HostTensor& tensor, int64_t group, int64_t first, int64_t n,
                         uint32_t start) {
  float* __restrict w = tensor.weight + first;
  const Gradient* __restrict g = static_cast<const Gradient*>(tensor.gradient) + first;
  int8_t* __restrict m_codes = static_cast<int8_t*>(tensor.exp_avg) + first;
  uint8_t* __restrict v_codes = static_cast<uint8_t*>(tensor.exp_avg_sq) + first;
  uint16_t* __restrict out = tensor.out + (kOut ? first : 0);
  const float m_scale = tensor.exp_avg_scale[group], v_scale = tensor.exp_avg_sq_scale[group];
  float m[kGroup], v[kGroup];
  int32_t m_largest = 0, v_largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    float mi = decode(m_codes[i], kFirst, m_scale), vi = decode(v_codes[i], kSecond, v_scale);
    advance(c, widen(g[i]), mi, vi, w[i]);
    if constexpr (kOut) out[i] = narrow(w[i]);
    const int32_t m_bits = bits_of(mi) & 0x7FFFFFFF, v_bits = bits_of(vi) & 0x7FFFFFFF;
    m_largest = m_bits > m_largest ? m_bits : m_largest;
    v_largest = v_bits > v_largest ? v_bits : v_largest;
    m[i] = mi;
    v[i] = vi;
  }
  const Relative m_relative(m_largest), v_relative(v_largest);
  tensor.exp_avg_scale[group] = m_relative.scale;
  tensor.exp_avg_sq_scale[group] = v_relative.scale;
  for (int64_t i = 0; i < n; ++i) m_codes[i] = static_cast<int8_t>(encode_first(m_relative, m[i]));
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t offset = (static_cast<uint32_t>(i) * kPerElement + start) & kMask;
    v_codes[i] = static_cast<uint8_t>(encode_second(v_relative, v[i], offset));
  }
}

template <class Gradient, bool kOut>
INLINE void update_8bit(const HostTensor& tensor, const HostStep& step, int64_t begin, int64_t end) {
  const Constants c(tensor, step);
  const int64_t per_row = tensor.groups_per_row();
  const uint32_t dither = static_cast<uint32_t>(step.step) * kPerStep + static_cast<uint32_t>(tensor.number) * kPerTensor;
  for (int64_t group = begin; group < end; ++group) {
    const int64_t column = group % per_row * kGroup, first = group / per_row * tensor.columns + column;
    const uint32_t start = static_cast<uint32_t>(first) * kPerElement + dither;
    const int64_t n = tensor.columns - column;
    // Two copies: with a length that the compiler knows there is no epilogue.
    if (n >= kGroup)
      update_group<Gradient, kOut>(c, tensor, group, first, kGroup, start);
    else
      update_group<Gradient, kOut>(c, tensor, group, first, n, start);
  }
}

template <class Gradient, bool kOut>
INLINE void update_as(const HostTensor& tensor, const HostStep& step, int64_t begin, int64_t end) {
  if (tensor.exp_avg_scale) return update_8bit<Gradient, kOut>(tensor, step, begin, end);
  const int64_t last = end * kGroup;
  update_fp32<Gradient, kOut>(tensor, step, begin * kGroup, last < tensor.elements ? last : tensor.elements);
}

void update(const HostTensor& tensor, const HostStep& step, int64_t begin, int64_t end) {
  if (tensor.bf16_gradient && tensor.out)
    update_as<uint16_t, true>(tensor, step, begin, end);
  else if (tensor.bf16_gradient)
    update_as<uint16_t, false>(tensor, step, begin, end);
  else if (tensor.out)
    update_as<float, true>(tensor, step, begin, end);
  else
    update_as<float, false>(tensor, step, begin, end);
}
