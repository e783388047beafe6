// For functions that are compiled once for each instruction set.
#pragma once

#define INLINE inline __attribute__((always_inline))
// Vectors wider than the plain target's registers change the ABI of functions, but these are all inlined.
#pragma GCC diagnostic ignored "-Wpsabi"
