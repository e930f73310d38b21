#include "tile/reader.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/copy.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "random/mt19937.h"
#include "record/replay.h"
#include "tile/read_ahead.h"

namespace dormant::tile {
namespace {

at::Tensor tile_of(void* data, int64_t count, c10::ScalarType dtype) {
  return at::from_blob(data, {count}, at::TensorOptions().dtype(dtype));
}

// Parts of a tile that are at least so long on average are made in place, one after the other;
// shorter ones are made together and then put in place.
constexpr int64_t kLongPart = 512;
// Random numbers that nobody wants are drawn where that costs less than another call.
constexpr int64_t kSmallGapOfKernels = 16;
constexpr int64_t kSmallGapOfOperators = 128;

// Of runs in the same or in neighboring units so much is decoded at once.
constexpr int64_t kLongestDecoded = 4096;

/// Whether no run meets the region: a program of many parts asks it for each.
bool outside(Runs runs, const Region& region) {
  return std::all_of(runs.begin(), runs.end(), [&](const Run& run) {
    return run.begin >= region.end() || run.begin + run.count <= region.begin();
  });
}

bool inside(Runs runs, const Region& region) {
  return region.dense() && std::all_of(runs.begin(), runs.end(), [&](const Run& run) {
           return run.begin >= region.begin() && run.begin + run.count <= region.end();
         });
}

/// The elements of an input that `places` of the step are made from.
std::vector<Run> wanted_of(const Input& input, Runs places) {
  std::vector<Run> wanted;
  wanted.reserve(static_cast<size_t>(
      input.mapping.most_runs(total(places), static_cast<int64_t>(places.size()))));
  for (const auto& run : places) {
    input.mapping.append(run.begin, run.count, wanted);
  }
  return wanted;
}

/// Space for `count` bytes; what it held is lost.
std::byte* grown(std::vector<std::byte>& scratch, size_t count) {
  if (scratch.size() < count) {
    scratch = std::vector<std::byte>(count);
  }
  return scratch.data();
}

}  // namespace

Reader::Reader(const Program& program, std::optional<uint64_t> fast_seed)
    : program_(&program), fast_seed_(fast_seed), states_(program.steps().size()) {
  for (size_t i = 0; i < states_.size(); ++i) {
    const auto& inputs = program.steps()[i].inputs;
    states_[i].inputs.reserve(inputs.size());
    for (const auto& input : inputs) {
      states_[i].inputs.emplace_back(*input.program, fast_seed);
    }
    if (program.steps()[i].kind == StepKind::decode) {
      for (const auto& part : program.steps()[i].node->decoder->parts()) {
        states_[i].parts.push_back(part.numel());
      }
    }
    states_[i].scratch.resize(inputs.size());
    states_[i].operands.resize(inputs.size());
  }
}

void Reader::read(Runs runs, void* out) {
  auto* bytes = static_cast<std::byte*>(out);
  const auto itemsize = program_->itemsize();
  if (program_->table().defined()) {
    const auto* table = static_cast<const std::byte*>(program_->table().const_data_ptr());
    for (const auto& run : runs) {
      std::memcpy(bytes, table + static_cast<size_t>(run.begin) * itemsize,
                  static_cast<size_t>(run.count) * itemsize);
      bytes += static_cast<size_t>(run.count) * itemsize;
    }
    return;
  }
  for (size_t i = 0; i < states_.size(); ++i) {
    const auto& step = program_->steps()[i];
    if (outside(runs, step.region)) {
      continue;
    }
    if (!inside(runs, step.region)) {
      apply_to_parts(step, states_[i], runs, bytes);
    } else if (step.region.begin() == 0) {
      apply(step, states_[i], runs, out);
    } else {
      auto places = runs.vec();
      for (auto& run : places) {
        run.begin -= step.region.begin();
      }
      apply(step, states_[i], places, out);
    }
  }
}

void Reader::apply_to_parts(const Step& step, State& state, Runs runs, std::byte* out) {
  const auto itemsize = program_->itemsize();
  std::vector<Region::Segment> parts;  // elements are those of `out` here, not of the storage
  int64_t before = 0;
  int64_t count = 0;
  for (const auto& run : runs) {
    const auto first = parts.size();
    step.region.intersect(run, parts);
    for (auto i = first; i < parts.size(); ++i) {
      parts[i].element += before - run.begin;
      count += parts[i].count;
    }
    before += run.count;
  }
  const auto at = [&](const Region::Segment& part) {
    return out + static_cast<size_t>(part.element) * itemsize;
  };
  if (count >= kLongPart * static_cast<int64_t>(parts.size())) {
    for (const auto& part : parts) {
      apply(step, state, Run{part.place, part.count}, at(part));
    }
    return;
  }
  std::vector<Run> places;
  for (const auto& part : parts) {
    if (!places.empty() && places.back().begin + places.back().count == part.place) {
      places.back().count += part.count;
    } else {
      places.push_back({part.place, part.count});
    }
  }
  auto* together = grown(together_, static_cast<size_t>(count) * itemsize);
  // The copies of single elements that this often comes down to are worth a size known beforehand.
  const auto for_each_part = [&](const auto& move) {
    auto* place = together;
    for (const auto& part : parts) {
      const auto nbytes = static_cast<size_t>(part.count) * itemsize;
      move(place, at(part), nbytes);
      place += nbytes;
    }
  };
  if (step.kind == StepKind::in_place) {
    for_each_part([](std::byte* to, const std::byte* from, size_t nbytes) {
      nbytes == sizeof(float) ? std::memcpy(to, from, sizeof(float))
                              : std::memcpy(to, from, nbytes);
    });
  }
  apply(step, state, places, together);
  for_each_part([](const std::byte* from, std::byte* to, size_t nbytes) {
    nbytes == sizeof(float) ? std::memcpy(to, from, sizeof(float)) : std::memcpy(to, from, nbytes);
  });
}

void Reader::apply(const Step& step, State& state, Runs places, void* out) {
  switch (step.kind) {
    case StepKind::in_place:
    case StepKind::compute:
      compute(step, state, places, out);
      return;
    case StepKind::copy:
      copy(step.inputs.front(), state, 0, places, program_->dtype(), out);
      return;
    case StepKind::read:
      fetch(step, places, out);
      return;
    case StepKind::decode:
      decode_all(step, state, places, static_cast<std::byte*>(out));
      return;
    default:
      draw_all(step, state, places, static_cast<std::byte*>(out));
  }
}

void Reader::draw_all(const Step& step, State& state, Runs places, std::byte* out) {
  const auto itemsize = program_->itemsize();
  const auto gap = step.kind == StepKind::draw ? kSmallGapOfOperators : kSmallGapOfKernels;
  for (size_t i = 0; i < places.size();) {
    // Runs that lie close together are drawn as one.
    const auto begin = places[i].begin;
    auto end = begin + places[i].count;
    auto next = i + 1;
    while (next < places.size() && places[next].begin >= end && places[next].begin - end <= gap &&
           places[next].begin + places[next].count - begin <= static_cast<int64_t>(kLongestSpan)) {
      end = places[next].begin + places[next].count;
      ++next;
    }
    if (next == i + 1) {
      draw(step, state, begin, end - begin, out);
      out += static_cast<size_t>(places[i++].count) * itemsize;
      continue;
    }
    auto* span = grown(state.span, kLongestSpan * itemsize);
    draw(step, state, begin, end - begin, span);
    for (; i < next; ++i) {
      const auto nbytes = static_cast<size_t>(places[i].count) * itemsize;
      std::memcpy(out, span + static_cast<size_t>(places[i].begin - begin) * itemsize, nbytes);
      out += nbytes;
    }
  }
}

void Reader::draw_fast(const Step& step, State& state, int64_t begin, int64_t count, void* out) {
  if (!state.fast) {
    state.fast.emplace(*fast_seed_, step.node->position->engine());
  }
  const auto dtype = program_->dtype();
  const auto first = static_cast<uint64_t>(begin);
  const auto n = static_cast<size_t>(count);
  if (step.kind == StepKind::uniform) {
    state.fast->uniform(dtype, out, first, n, step.a, step.b);
  } else if (step.kind == StepKind::normal) {
    state.fast->normal(dtype, out, first, n, step.a, step.b);
  } else {
    state.fast->bernoulli(dtype, out, first, n, step.a);
  }
}

void Reader::draw(const Step& step, State& state, int64_t begin, int64_t count, void* out) {
  if (fast_seed_ && step.kind != StepKind::draw) {
    draw_fast(step, state, begin, count, out);
    return;
  }
  const auto dtype = program_->dtype();
  const auto n = static_cast<size_t>(count);
  if (step.kind == StepKind::normal) {
    if (!state.normal) {
      state.normal.emplace(random::Stream(step.node->position->engine()), dtype,
                           static_cast<uint64_t>(step.region.numel()), step.a, step.b);
    }
    state.normal->read(static_cast<uint64_t>(begin), n, out);
    return;
  }
  if (step.kind == StepKind::uniform) {
    seek(step, state, begin, dtype == c10::ScalarType::Double ? 2 : 1);
    random::uniform(*state.stream, dtype, out, n, step.a, step.b);
  } else if (step.kind == StepKind::bernoulli) {
    seek(step, state, begin, 2);
    random::bernoulli(*state.stream, dtype, out, n, step.a);
  } else {
    if (!state.generator.defined() || begin < state.next) {
      state.generator = step.node->position->restore();
      state.next = 0;
    }
    if (begin != state.next) {
      auto* generator = state.generator.get<at::CPUGeneratorImpl>();
      auto engine = generator->engine().data();
      random::advance(engine, static_cast<uint64_t>(begin - state.next) * step.draws);
      at::mt19937 moved;
      moved.set_data(engine);
      const std::lock_guard<std::mutex> lock(generator->mutex_);
      generator->set_engine(moved);
    }
    record::run_in_place(*step.node, tile_of(out, count, dtype), state.generator);
  }
  state.next = begin + count;
}

void Reader::seek(const Step& step, State& state, int64_t element, uint64_t draws) {
  if (!state.stream || element < state.next) {
    state.stream.emplace(step.node->position->engine());
    state.next = 0;
  }
  state.stream->skip(static_cast<uint64_t>(element - state.next) * draws);
}

void Reader::fetch(const Step& step, Runs places, void* out) {
  auto* place = static_cast<std::byte*>(out);
  const auto itemsize = program_->itemsize();
  for (const auto& run : places) {
    const auto bytes = static_cast<size_t>(run.count) * itemsize;
    ReadAhead::read(*step.node->source,
                    step.node->source_offset + static_cast<uint64_t>(run.begin) * itemsize, bytes,
                    place);
    place += bytes;
  }
}

void Reader::decode_all(const Step& step, State& state, Runs places, std::byte* out) {
  const auto itemsize = program_->itemsize();
  const auto unit = step.node->decoder->unit();
  const auto numel = program_->numel();
  for (size_t i = 0; i < places.size();) {
    const auto begin = places[i].begin / unit * unit;
    const auto end_of = [&](const Run& run) {
      return std::min((run.begin + run.count + unit - 1) / unit * unit, numel);
    };
    auto end = end_of(places[i]);
    if (begin == places[i].begin && end == begin + places[i].count) {
      decode(step, state, begin, end - begin, out);
      out += static_cast<size_t>(places[i++].count) * itemsize;
      continue;
    }
    // What a unit has of the next runs is decoded with it.
    auto next = i + 1;
    while (next < places.size() && places[next].begin >= begin && places[next].begin < end &&
           end_of(places[next]) - begin <= std::max(end - begin, kLongestDecoded)) {
      end = std::max(end, end_of(places[next++]));
    }
    auto* span = grown(state.span, static_cast<size_t>(end - begin) * itemsize);
    decode(step, state, begin, end - begin, span);
    for (; i < next; ++i) {
      const auto nbytes = static_cast<size_t>(places[i].count) * itemsize;
      std::memcpy(out, span + static_cast<size_t>(places[i].begin - begin) * itemsize, nbytes);
      out += nbytes;
    }
  }
}

void Reader::decode(const Step& step, State& state, int64_t begin, int64_t count, void* out) {
  const auto& decoder = *step.node->decoder;
  c10::SmallVector<const void*, 6> parts;
  for (size_t i = 0; i < step.inputs.size(); ++i) {
    const auto& input = step.inputs[i];
    auto& wanted = state.wanted;
    wanted.clear();
    decoder.wanted(i, begin, count, parts, wanted);
    record::check_wanted(decoder, i, state.parts[i], wanted);
    const auto dtype = input.program->dtype();
    auto* elements =
        grown(state.operands[i], static_cast<size_t>(total(wanted)) * input.program->itemsize());
    copy(input, state, i, wanted, dtype, elements);
    parts.push_back(elements);
  }
  decoder.run(begin, count, parts, out);
}

void Reader::copy(const Input& input, State& state, size_t index, Runs places,
                  c10::ScalarType dtype, void* out) {
  auto& reader = state.inputs[index];
  const auto itemsize = input.program->itemsize();
  if (!input.mapping.in_rows()) {
    copy_boxes(input, state, index, places, dtype, out);
  } else if (input.program->dtype() == dtype) {
    reader.read(wanted_of(input, places), out);
  } else {
    const auto count = total(places);
    auto* elements = grown(state.scratch[index], static_cast<size_t>(count) * itemsize);
    reader.read(wanted_of(input, places), elements);
    tile_of(out, count, dtype).copy_(tile_of(elements, count, input.program->dtype()));
  }
}

void Reader::copy_boxes(const Input& input, State& state, size_t index, Runs places,
                        c10::ScalarType dtype, void* out) {
  std::vector<Box> boxes;
  input.mapping.append(places, boxes);
  for (const auto& box : boxes) {
    const auto reading = reading_of(box);
    auto* elements = grown(state.scratch[index],
                           static_cast<size_t>(total(reading.runs)) * input.program->itemsize());
    state.inputs[index].read(reading.runs, elements);
    c10::SmallVector<int64_t, 6> sizes;
    c10::SmallVector<int64_t, 6> strides;
    for (const auto& dimension : box.dimensions) {
      sizes.push_back(dimension.size);
      strides.push_back(dimension.out_stride);
    }
    auto* to =
        static_cast<std::byte*>(out) + static_cast<size_t>(box.out) * c10::elementSize(dtype);
    at::from_blob(to, sizes, strides, at::TensorOptions().dtype(dtype))
        .copy_(at::from_blob(elements, sizes, reading.strides,
                             at::TensorOptions().dtype(input.program->dtype())));
  }
}

void Reader::compute(const Step& step, State& state, Runs places, void* out) {
  const auto count = total(places);
  std::vector<at::Tensor> tensors(step.node->operands.size());
  const auto result = tile_of(out, count, program_->dtype());
  for (size_t i = 0; i < step.inputs.size(); ++i) {
    const auto& input = step.inputs[i];
    const auto dtype = input.program->dtype();
    auto* elements =
        grown(state.operands[i], static_cast<size_t>(count) * input.program->itemsize());
    copy(input, state, i, places, dtype, elements);
    tensors[input.operand] = tile_of(elements, count, dtype);
  }
  if (step.kind == StepKind::compute) {
    result.copy_(record::run_functional(*step.node, tensors));
    return;
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (step.node->operands[i].written) {
      tensors[i] = result;
    }
  }
  record::run_functional(*step.node, tensors);
}

}  // namespace dormant::tile
