// A tensor cut into boxes: whether they fill it, and which of them a range of its elements is in.
//
// Ranks cut tensors along their dimensions, so the boxes lie between straight cuts: along one
// dimension for FSDP, along two for tensor parallelism besides. A tree of such cuts finds the boxes
// of a range without looking at the others, and tells whether they overlap or leave a gap without
// comparing each with each.
#pragma once

#include <c10/util/ArrayRef.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace dormant::checkpoint {

/// Indices [begin[i], end[i]) in each dimension i.
struct Box {
  std::vector<int64_t> begin;
  std::vector<int64_t> end;

  bool empty() const;
};

class Partition {
 public:
  /// Of a tensor of `sizes`. Boxes lie inside it; empty ones are ignored. `what` names the tensor
  /// in messages. c10::ValueError where boxes overlap or elements are in none;
  /// c10::NotImplementedError where no straight cut divides some of them, which no rank does.
  Partition(c10::IntArrayRef sizes, c10::ArrayRef<Box> boxes, const std::string& what);

  /// Calls `visit` with the number of each box that has elements of `range`.
  void find(const Box& range, const std::function<void(size_t)>& visit) const;

 private:
  struct Node {
    size_t dimension = 0;
    std::vector<int64_t> cuts;     ///< begins of the children; empty where it is one box
    std::vector<size_t> children;  ///< in nodes_; of one box its number
  };

  size_t add(const Box& region, std::vector<size_t> numbers, int depth);
  void find(size_t node, const Box& range, const std::function<void(size_t)>& visit) const;

  c10::ArrayRef<Box> boxes_;  ///< while it is made
  const std::string* what_;   ///< likewise
  std::vector<Node> nodes_;
};

/// "[0:4, 8:16]", for messages.
std::string text_of(const Box& box);

}  // namespace dormant::checkpoint
