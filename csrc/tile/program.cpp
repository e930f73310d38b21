#include "tile/program.h"

#include <algorithm>
#include <utility>

#include "tile/layout.h"
#include "tile/walk.h"

namespace dormant::tile {

using record::Geometry;

namespace {

bool has_fewer_bytes(const Geometry& one, const Geometry& other) {
  const auto bytes = [](const Geometry& part) {
    return part.numel() * static_cast<int64_t>(c10::elementSize(part.dtype));
  };
  return bytes(one) < bytes(other);
}

/// How many of `part` elements come before element `element` of `numel`, if they lie evenly.
int64_t share(int64_t element, int64_t numel, int64_t part) {
  const auto fraction = static_cast<double>(element) / static_cast<double>(numel);
  return std::min(part, static_cast<int64_t>(fraction * static_cast<double>(part)));
}

/// The elements of a part that `places` of a decoded tensor are made of: all of it where only
/// values say which.
std::vector<Run> wanted_of_part(const record::Decoder& decoder, size_t part, Runs places) {
  std::vector<Run> wanted;
  if (decoder.depends_on_earlier(part)) {
    wanted.push_back({0, decoder.parts()[part].numel()});
    return wanted;
  }
  const auto unit = decoder.unit();
  const auto numel = decoder.output().numel();
  for (const auto& run : places) {
    const auto begin = run.begin / unit * unit;
    const auto end = std::min((run.begin + run.count + unit - 1) / unit * unit, numel);
    decoder.wanted(part, begin, end - begin, {}, wanted);
  }
  return wanted;
}

}  // namespace

std::optional<Program::Range> Program::copied_range() const {
  const Program* program = this;
  int64_t begin = 0;
  while (program->steps_.size() == 1) {
    const auto& step = program->steps_[0];
    if (!step.region.dense() || step.region.begin() > begin || step.region.end() < begin + numel_ ||
        program->dtype_ != dtype_) {
      break;
    }
    if (step.kind == StepKind::read) {
      return program->read_range(begin, numel_);
    }
    if (step.kind != StepKind::copy || step.inputs[0].mapping.most_runs(numel_, 1) != 1) {
      break;
    }
    std::vector<Run> runs;
    step.inputs[0].mapping.append(begin - step.region.begin(), numel_, runs);
    begin = runs[0].begin;
    program = step.inputs[0].program.get();
  }
  return std::nullopt;
}

std::optional<Program::Range> Program::read_range(int64_t begin, int64_t count) const {
  constexpr int64_t kMostRuns = 4096;
  if (steps_.empty()) {
    return std::nullopt;
  }
  const auto& step = steps_.back();
  if (!step.region.dense() || begin < step.region.begin() || begin + count > step.region.end()) {
    return std::nullopt;
  }
  if (step.kind == StepKind::read) {
    return Range{step.node->source,
                 step.node->source_offset + static_cast<uint64_t>(begin) * itemsize_,
                 static_cast<size_t>(count) * itemsize_};
  }
  const Input* input = step.inputs.empty() ? nullptr : step.inputs.data();
  if (step.kind == StepKind::decode) {
    // About the elements of the largest part that these are made of.
    const auto parts = step.node->decoder->parts();
    const auto largest = std::max_element(parts.begin(), parts.end(), has_fewer_bytes);
    input = &step.inputs[static_cast<size_t>(largest - parts.begin())];
    const auto first = share(begin, numel_, largest->numel());
    count = share(begin + count, numel_, largest->numel()) - first;
    begin = first;
  } else if (step.kind == StepKind::copy) {
    begin -= step.region.begin();
  } else {
    return std::nullopt;
  }
  if (count == 0 || input->mapping.most_runs(count, 1) > kMostRuns) {
    return std::nullopt;
  }
  std::vector<Run> runs;
  input->mapping.append(begin, count, runs);
  int64_t first = runs.front().begin;
  int64_t last = first;
  for (const auto& run : runs) {
    first = std::min(first, run.begin);
    last = std::max(last, run.begin + run.count);
  }
  return input->program->read_range(first, last - first);
}

void Program::append_reads(Runs runs, std::vector<Range>& ranges) const {
  if (table_.defined()) {
    return;
  }
  std::vector<Region::Segment> parts;
  std::vector<Run> places;
  std::vector<Run> wanted;
  std::vector<Box> boxes;
  for (const auto& step : steps_) {
    if (step.kind != StepKind::read && step.inputs.empty()) {
      continue;
    }
    parts.clear();
    for (const auto& run : runs) {
      step.region.intersect(run, parts);
    }
    if (step.kind == StepKind::read) {
      for (const auto& part : parts) {
        ranges.push_back({step.node->source,
                          step.node->source_offset + static_cast<uint64_t>(part.place) * itemsize_,
                          static_cast<size_t>(part.count) * itemsize_});
      }
      continue;
    }
    places.clear();
    for (const auto& part : parts) {
      places.push_back({part.place, part.count});
    }
    if (places.empty()) {
      continue;
    }
    for (size_t i = 0; i < step.inputs.size(); ++i) {
      const auto& input = step.inputs[i];
      std::vector<Run> of_part;
      if (step.kind == StepKind::decode) {
        of_part = wanted_of_part(*step.node->decoder, i, places);
      }
      const Runs read = step.kind == StepKind::decode ? of_part : places;
      wanted.clear();
      if (input.mapping.in_rows()) {
        for (const auto& run : read) {
          input.mapping.append(run.begin, run.count, wanted);
        }
      } else {
        boxes.clear();
        input.mapping.append(read, boxes);
        for (const auto& box : boxes) {
          const auto reading = reading_of(box);
          wanted.insert(wanted.end(), reading.runs.begin(), reading.runs.end());
        }
      }
      input.program->append_reads(wanted, ranges);
    }
  }
}

Program::Origins Program::origins() const {
  Origins found;
  for (const auto& step : steps_) {
    const auto bytes = static_cast<size_t>(step.region.numel()) * itemsize_;
    if (step.kind == StepKind::read) {
      found.read += bytes;
      found.sources.insert(step.node->source.get());
      continue;
    }
    Origins inputs;
    for (const auto& input : step.inputs) {
      const auto origins = input.program->origins();
      inputs.read += origins.read;
      inputs.initialized += origins.initialized;
      found.sources.insert(origins.sources.begin(), origins.sources.end());
    }
    if (inputs.read > 0) {
      found.read += bytes;
    }
    // A table is of random numbers, or a captured tensor.
    if (inputs.initialized > 0 || (step.inputs.empty() && record::initializes(*step.node))) {
      found.initialized += bytes;
    }
  }
  if (table_.defined()) {
    found.initialized = static_cast<size_t>(numel_) * itemsize_;
  }
  return found;
}

size_t Program::scratch_of_parts(const Step& step, int64_t elements, int64_t ranges) const {
  const auto& decoder = *step.node->decoder;
  const auto parts = decoder.parts();
  // One range at a time, and at its ends whole units.
  const auto decoded = std::min(elements + 2 * (decoder.unit() - 1), numel_);
  size_t bytes = ranges > 1 || decoder.unit() > 1 ? static_cast<size_t>(decoded) * itemsize_ : 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& input = step.inputs[i];
    const auto numel = parts[i].numel();
    const auto dense = share(decoded, numel_, numel) + 1;
    // Of scales a row may be wanted for each row.
    const auto wanted = std::min(std::max(decoded, dense), numel);
    bytes += static_cast<size_t>(wanted) * input.program->itemsize() +
             input.program->scratch_bytes(wanted, input.mapping.most_runs(wanted, 1));
  }
  return bytes;
}

size_t Program::scratch_bytes(int64_t elements, int64_t ranges) const {
  // A stream and the generator or the copy of it that started it.
  constexpr size_t kPosition = 2 * (sizeof(at::mt19937_data_pod) + 64);
  const auto count = static_cast<size_t>(elements);
  size_t bytes = 0;
  size_t together = 0;
  for (const auto& step : steps_) {
    if (step.node && step.node->position) {
      bytes += kPosition + (ranges > 1 ? kLongestSpan * itemsize_ : 0);
    }
    // Parts of the result that are made apart, of one step after the other.
    if (!step.region.dense()) {
      together = count * (itemsize_ + sizeof(Region::Segment));
    }
    if (step.kind == StepKind::decode) {
      bytes += scratch_of_parts(step, elements, ranges);
      continue;
    }
    for (const auto& input : step.inputs) {
      const auto runs = input.mapping.most_runs(elements, ranges);
      const auto read = input.mapping.in_rows() ? elements : elements * kMostReadPerElement;
      bytes += static_cast<size_t>(runs) * sizeof(Run) + input.program->scratch_bytes(read, runs);
      if (!input.mapping.in_rows()) {
        bytes += static_cast<size_t>(read) * input.program->itemsize();
      }
      // A copy of the same dtype reads its input in place.
      if (step.kind != StepKind::copy ||
          (input.mapping.in_rows() && input.program->dtype() != dtype_)) {
        bytes += count * input.program->itemsize();
      }
    }
    if (step.kind == StepKind::compute) {
      bytes += count * itemsize_;
    }
  }
  return bytes + together;
}

}  // namespace dormant::tile
