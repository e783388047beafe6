// Eight fp32 numbers at a time, and e^x of them. Included once for each instruction set, in a namespace of its own; so
// no include guard here.

typedef float Lanes __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t IntLanes __attribute__((vector_size(32)));
constexpr int64_t kLanes = 8;

INLINE Lanes& lanes(float* p) { return *reinterpret_cast<Lanes*>(p); }
INLINE const Lanes& lanes(const float* p) { return *reinterpret_cast<const Lanes*>(p); }

// e^x for x <= 0 to about 1 ulp: 2^n times the Taylor series of e^r, |r| <= ln(2) / 2. NaN stays NaN.
INLINE Lanes exp_lanes(Lanes x) {
  const Lanes low = Lanes{} - 87.0f;   // e^-87 is the smallest result that is not subnormal
  x = x < low ? low : x;               // this order keeps NaN, which the trainer's guard must see
  const float shift = 12582912.0f;     // 1.5 x 2^23: adding it rounds to an integer, held in the low bits
  const Lanes shifted = x * 1.44269504f + shift;
  const Lanes n = shifted - shift;
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  Lanes e = Lanes{} + 1.0f / 5040;
  e = e * r + 1.0f / 720;
  e = e * r + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  IntLanes bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127 << 23);  // the shift's own bits fall out at the top
  Lanes power;
  std::memcpy(&power, &bits, sizeof bits);
  return e * power;
}

