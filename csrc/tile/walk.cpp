#include "tile/walk.h"

#include <algorithm>

namespace dormant::tile {
namespace {

// A source so small can be gone through again for each of its few tiles.
constexpr int64_t kSmall = 64 * 1024;
// So many times as well: passing over a random number costs a tenth of drawing it.
constexpr int64_t kPasses = 16;

bool draws(const Program& program) {
  return std::any_of(program.steps().begin(), program.steps().end(), [](const Step& step) {
    return (step.node && step.node->position) ||
           std::any_of(step.inputs.begin(), step.inputs.end(),
                       [](const Input& input) { return draws(*input.program); });
  });
}

/// The walk in places of an input whose own can be in memory order.
Walk walk_of(const Mapping& mapping, bool drawn) {
  const auto sizes = mapping.sizes();
  const auto strides = mapping.strides();
  // The dimension in which the source lies closest together.
  size_t closest = sizes.size() - 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    if (strides[i] != 0 && (strides[closest] == 0 || strides[i] < strides[closest])) {
      closest = i;
    }
  }
  // Other dimensions of which each step begins anew, because a later one has gone further.
  int64_t passes = 1;
  int64_t furthest = 0;
  for (size_t i = sizes.size(); i-- > 0;) {
    if (i != closest && strides[i] != 0) {
      passes *= strides[i] < furthest ? sizes[i] : 1;
      furthest = std::max(furthest, strides[i]);
    }
  }
  if (passes > kPasses && drawn) {
    return {false, std::nullopt};
  }
  int64_t columns = 1;
  bool moves = false;
  for (auto i = closest + 1; i < sizes.size(); ++i) {
    columns *= sizes[i];
    moves = moves || strides[i] != 0;
  }
  return {true, moves ? std::make_optional(Transposed{sizes[closest], columns}) : std::nullopt};
}

/// The walk in places of an input.
Walk walk_of(const Input& input) {
  const auto source = walk_of(*input.program);
  if (input.program->numel() <= kSmall) {
    return {};
  }
  const auto sizes = input.mapping.sizes();
  if (!source.transposed && source.possible) {
    return walk_of(input.mapping, draws(*input.program));
  }
  if (!source.possible || !input.mapping.in_rows()) {
    return {false, std::nullopt};
  }
  if (sizes.size() == 1) {
    return source;
  }
  // Some columns, and some rows.
  const auto rows = sizes.size() - 2;
  const bool follows = input.mapping.strides()[rows] % source.transposed->columns == 0;
  return {follows, Transposed{sizes[rows], sizes[rows + 1]}};
}

/// The same of the storage that a step writes.
Walk in_storage(Walk walk, const Region& region) {
  if (walk.transposed && !region.dense()) {
    const auto columns = region.row_distance(walk.transposed->columns);
    walk.possible = walk.possible && columns > 0;
    walk.transposed->columns = columns;
  }
  return walk;
}

}  // namespace

Walk walk_of(const Program& program) {
  Walk walk;
  for (const auto& step : program.steps()) {
    for (const auto& input : step.inputs) {
      if (step.kind == StepKind::decode) {
        // Parts are read in order.
        walk.possible = walk.possible && input.mapping.in_rows() &&
                        !walk_of(*input.program).transposed && walk_of(*input.program).possible;
        continue;
      }
      const auto wanted = in_storage(walk_of(input), step.region);
      walk.possible = walk.possible && wanted.possible;
      if (!wanted.transposed) {
        continue;
      }
      if (!walk.transposed) {
        walk.transposed = wanted.transposed;
      } else if (walk.transposed->columns != wanted.transposed->columns) {
        walk.possible = false;
      } else if (*walk.transposed != *wanted.transposed) {
        walk.transposed->rows = std::max(walk.transposed->rows, wanted.transposed->rows);
      }
    }
  }
  if (walk.possible && walk.transposed) {
    auto& [rows, columns] = *walk.transposed;
    if (program.numel() % (rows * columns) != 0) {
      rows = program.numel() / columns;
    }
    walk.possible = program.numel() % (rows * columns) == 0;
  }
  return walk;
}

int64_t rectangle_width(const Transposed& transposed, int64_t elements, int64_t unit) {
  constexpr int64_t kLine = 16;
  const auto columns = std::clamp<int64_t>(elements / transposed.rows, 1, transposed.columns);
  if (unit == 0) {
    unit = columns < kLine ? 1 : kLine;
  }
  return std::max<int64_t>(columns / unit, 1) * unit;
}

int64_t cut_rectangle(const Transposed& transposed, int64_t column, int64_t most,
                      std::vector<Run>& runs) {
  const auto matrix = column / transposed.columns;
  const auto first = column % transposed.columns;
  const auto count = std::min(most, transposed.columns - first);
  runs.clear();
  for (int64_t row = 0; row < transposed.rows; ++row) {
    runs.push_back({(matrix * transposed.rows + row) * transposed.columns + first, count});
  }
  return count;
}

}  // namespace dormant::tile
