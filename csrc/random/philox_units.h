// Ranges of elements as units of Philox words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace dormant::random {

// Cuts elements [begin, begin + n) of `kBytes` bytes into units of `kElements`. Whole ones are
// written by whole(unit, units, out); the first and the last, if incomplete, by way of a buffer.
template <size_t kElements, size_t kBytes, class Whole>
void for_units(uint64_t begin, size_t n, void* out, Whole&& whole) {
  auto* to = static_cast<unsigned char*>(out);
  const auto part = [&](uint64_t unit, size_t first, size_t count) {
    alignas(64) unsigned char values[kElements * kBytes];
    whole(unit, size_t{1}, static_cast<void*>(values));
    std::memcpy(to, values + first * kBytes, count * kBytes);
    to += count * kBytes;
  };
  uint64_t unit = begin / kElements;
  if (const size_t first = begin % kElements; first != 0) {
    const size_t count = n < kElements - first ? n : kElements - first;
    part(unit++, first, count);
    n -= count;
  }
  if (const size_t units = n / kElements; units != 0) {
    whole(unit, units, static_cast<void*>(to));
    to += units * kElements * kBytes;
    unit += units;
    n %= kElements;
  }
  if (n != 0) {
    part(unit, 0, n);
  }
}

}  // namespace dormant::random
