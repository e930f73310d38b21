// What is known about operators beyond their schemas and kernels, a row for those that are alike in
// all of it. Whoever handles calls asks `traits_of` (operator_traits.h), which finds the row of an
// operator once; how far a random operator moves the generator is said in random/draws.cpp.
#pragma once

#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <string_view>

namespace dormant::record {

/// What recording makes of an operator.
enum class Kind : uint8_t {
  by_schema,  ///< its schema and its kernels tell
  metadata,   ///< reads or changes only geometry
  factory,    ///< a composite kernel of empty and writes in place; reads no value of its arguments
  composite,  ///< a composite kernel of empty and copy_
  movement,   ///< moves or initializes data
  overwrite,  ///< the same, in place, and never reads what it overwrites
  real,       ///< never recorded
};

/// How the values of an index argument are bounded, so that an index error is raised at once, as in
/// eager.
enum class IndexRule : uint8_t {
  none,
  along_dim,    ///< 0 <= index < self.size(dim)
  first_dim,    ///< 0 <= index < weight.size(0)
  per_element,  ///< a list: the i-th index addresses dimension i, negative values count from the
                ///< end
};

/// What eager wants of the values of a tensor parameter of a random operator.
enum class ValueRule : uint8_t {
  none,
  deviation,    ///< std >= 0
  probability,  ///< 0 <= p <= 1; where there is no p, self
  weights,      ///< self is finite and >= 0, in each row not all 0
};

/// Where the geometry of a result comes from: the TensorIterator configuration that the structured
/// kernel uses (elementwise.h; ATen/native/BinaryOps.cpp, UnaryOps.cpp), or a rule of ours.
enum class GeometryRule : uint8_t {
  ask,  ///< of pointwise operators known_geometry.h, else the Meta kernel
  unary,
  unary_float,
  binary,
  sum,  ///< binary, with a factor alpha
  binary_float,
  comparison,
  cat,
  stack,
  index,  ///< the Meta kernel in C++ (infer.cpp)
  // What follows is in known_geometry.h.
  same_sizes,         ///< those of self, contiguous; in place self as it is
  reduction,          ///< over the dimensions `dim`, contiguous
  product,            ///< of matrices or vectors, contiguous
  vector_of_numbers,  ///< out= with `n` or `steps` elements
  matrix_of_numbers,  ///< out= with `n` rows and `m`, or `n`, columns
  broadcast,          ///< as of a pointwise operator
  repeat,             ///< the sizes of self times `repeats`, contiguous
};

/// When a write needs no kernel to be asked whether it is valid (validity.h).
enum class WriteRule : uint8_t {
  ask,       ///< never
  always,    ///<
  value,     ///< the value fits the dtype
  copy,      ///< the source is broadcast to what is written, dtypes are common
  floating,  ///< what is written is floating; so in the following
  normal,
  uniform,
  factor,
  summand,
  bounds,
  range,  ///< the length, which only its numbers tell, is known
};

/// How the elements that an operator writes can be made in tiles (tile/program.h).
enum class TileRule : uint8_t {
  none,  ///< not at all
  /// Elementwise, with a value that is the same wherever a tile starts (tests compare each). Not
  /// maximum and minimum, whose NaN has other bits in vectors than in the elements left over, nor
  /// what a mathematical library computes.
  compute,
  compute_functional,  ///< only where it returns a new tensor
  compute_in_place,    ///< only where it writes in place
  copy,
  join,
  pad,
  uniform,
  normal,
  bernoulli,
  draw_twice,    ///< two draws for each element
  draw_integer,  ///< one draw for each, or two in wide dtypes
};

struct OperatorFacts {
  Kind kind = Kind::by_schema;
  IndexRule index = IndexRule::none;
  ValueRule values = ValueRule::none;
  GeometryRule geometry = GeometryRule::ask;
  WriteRule write = WriteRule::ask;
  TileRule tile = TileRule::none;
};

struct OperatorRow {
  /// Names of operators, between spaces, without "aten::" and overload: the overloads of an
  /// operator are alike here. A name stands for the operator in place, too, unless that has a row
  /// of its own.
  const char* names;
  OperatorFacts facts;
};

c10::ArrayRef<OperatorRow> operator_table() noexcept;

/// Those of the operator with that name, without "aten::".
OperatorFacts facts_of(std::string_view name);

}  // namespace dormant::record
