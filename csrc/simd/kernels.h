// The one place that chooses kernels.
//
// A unit with kernels declares a table: a struct of function pointers, and a function at() for each
// level that returns the table of that level. NAME_simd.cpp beside it is compiled once for each
// level (cmake/SourceFlags.cmake) and defines at(Compiled), the level of vector.h.
#pragma once

#include <vector>

#include "simd/level.h"

namespace dormant::simd {

template <class Table>
const Table& kernels(Level level = highest()) {
  switch (level) {
#if defined(__x86_64__)
    case Level::avx512:
      return Table::at(At<Level::avx512>());
    case Level::avx2:
      return Table::at(At<Level::avx2>());
#endif
    default:
      return Table::at(At<Level::portable>());
  }
}

// Of every level that this processor has, in ascending order.
template <class Table>
std::vector<const Table*> available_kernels() {
  std::vector<const Table*> tables;
  for (const Level level : kLevels) {
    if (available(level)) {
      tables.push_back(&kernels<Table>(level));
    }
  }
  return tables;
}

}  // namespace dormant::simd
