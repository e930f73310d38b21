#include "checkpoint/partition.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

namespace dormant::checkpoint {
namespace {

// Ranks cut each dimension a few times, however many they are.
constexpr int kDeepest = 64;
// So many boxes are compared each with each, to tell those that overlap from others.
constexpr size_t kMostCompared = 1000;

bool overlap(const Box& a, const Box& b) {
  for (size_t i = 0; i < a.begin.size(); ++i) {
    if (a.begin[i] >= b.end[i] || b.begin[i] >= a.end[i]) {
      return false;
    }
  }
  return true;
}

/// Boxes between two cuts across a dimension.
struct Group {
  int64_t begin;
  int64_t end;
  std::vector<size_t> numbers;
};

std::vector<Group> divided(c10::ArrayRef<Box> boxes, std::vector<size_t> numbers, size_t dim) {
  std::sort(numbers.begin(), numbers.end(),
            [&](size_t a, size_t b) { return boxes[a].begin[dim] < boxes[b].begin[dim]; });
  std::vector<Group> groups;
  for (const auto number : numbers) {
    const auto& box = boxes[number];
    if (groups.empty() || box.begin[dim] >= groups.back().end) {
      groups.push_back({box.begin[dim], box.end[dim], {number}});
    } else {
      groups.back().end = std::max(groups.back().end, box.end[dim]);
      groups.back().numbers.push_back(number);
    }
  }
  return groups;
}

}  // namespace

bool Box::empty() const {
  for (size_t i = 0; i < begin.size(); ++i) {
    if (begin[i] >= end[i]) {
      return true;
    }
  }
  return false;
}

std::string text_of(const Box& box) {
  std::string text = "[";
  for (size_t i = 0; i < box.begin.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(box.begin[i]) + ":" + std::to_string(box.end[i]);
  }
  return text + "]";
}

Partition::Partition(c10::IntArrayRef sizes, c10::ArrayRef<Box> boxes, const std::string& what)
    : boxes_(boxes), what_(&what) {
  const Box whole{std::vector<int64_t>(sizes.size(), 0), sizes.vec()};
  if (!whole.empty()) {
    std::vector<size_t> numbers;
    for (size_t i = 0; i < boxes.size(); ++i) {
      if (!boxes[i].empty()) {
        numbers.push_back(i);
      }
    }
    add(whole, std::move(numbers), 0);
  }
  boxes_ = {};
  what_ = nullptr;
}

size_t Partition::add(const Box& region, std::vector<size_t> numbers, int depth) {
  const auto refuse_gap = [&](const Box& gap) {
    TORCH_CHECK_VALUE(false, "open_checkpoint: ", *what_, " has no piece with elements ",
                      text_of(gap),
                      ", expected pieces that cover the whole tensor. Cause: files of some ranks "
                      "are missing from the checkpoint. Next: save it again.");
  };
  const auto place = nodes_.size();
  nodes_.emplace_back();
  if (numbers.empty()) {
    refuse_gap(region);
  }
  if (numbers.size() == 1) {
    const auto& box = boxes_[numbers.front()];
    for (size_t i = 0; i < box.begin.size(); ++i) {
      auto gap = region;
      if (box.begin[i] > region.begin[i]) {
        gap.end[i] = box.begin[i];
        refuse_gap(gap);
      }
      if (box.end[i] < region.end[i]) {
        gap.begin[i] = box.end[i];
        refuse_gap(gap);
      }
    }
    nodes_[place].children = std::move(numbers);
    return place;
  }
  for (size_t dim = 0; dim < region.begin.size() && depth < kDeepest; ++dim) {
    auto groups = divided(boxes_, numbers, dim);
    if (groups.size() < 2) {
      continue;
    }
    auto part = region;
    auto before = region.begin[dim];
    nodes_[place].dimension = dim;
    for (auto& group : groups) {
      part.begin[dim] = before;
      part.end[dim] = group.begin;
      if (before < group.begin) {
        refuse_gap(part);
      }
      part.begin[dim] = group.begin;
      part.end[dim] = before = group.end;
      const auto child = add(part, std::move(group.numbers), depth + 1);
      nodes_[place].cuts.push_back(group.begin);
      nodes_[place].children.push_back(child);
    }
    part.begin[dim] = before;
    part.end[dim] = region.end[dim];
    if (before < region.end[dim]) {
      refuse_gap(part);
    }
    return place;
  }
  const auto compared = std::min(numbers.size(), kMostCompared);
  for (size_t i = 0; i < compared; ++i) {
    for (size_t k = 0; k < i; ++k) {
      const auto& a = boxes_[numbers[k]];
      const auto& b = boxes_[numbers[i]];
      TORCH_CHECK_VALUE(!overlap(a, b), "open_checkpoint: ", *what_, " has pieces ", text_of(a),
                        " and ", text_of(b),
                        " that overlap, expected each element in one piece. Next: save it again.");
    }
  }
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "open_checkpoint: ", *what_, " has ", numbers.size(), " pieces in ", text_of(region),
      " that no straight cut separates, expected dimensions that are divided among ranks. Next: "
      "load it with torch.distributed.checkpoint and save it again.");
}

void Partition::find(const Box& range, const std::function<void(size_t)>& visit) const {
  if (!nodes_.empty() && !range.empty()) {
    find(0, range, visit);
  }
}

void Partition::find(size_t place, const Box& range,
                     const std::function<void(size_t)>& visit) const {
  const auto& [dim, cuts, children] = nodes_[place];
  if (cuts.empty()) {
    visit(children.front());
    return;
  }
  // The children from the one in which the range begins to the one in which it ends.
  const auto first = std::upper_bound(cuts.begin(), cuts.end(), range.begin[dim]) - cuts.begin();
  for (auto i = static_cast<size_t>(std::max<std::ptrdiff_t>(first - 1, 0));
       i < cuts.size() && cuts[i] < range.end[dim]; ++i) {
    find(children[i], range, visit);
  }
}

}  // namespace dormant::checkpoint
