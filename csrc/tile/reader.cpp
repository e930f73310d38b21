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

namespace dormant::tile {
namespace {

at::Tensor tile_of(void* data, int64_t count, c10::ScalarType dtype) {
  return at::from_blob(data, {count}, at::TensorOptions().dtype(dtype));
}

/// The part of `run` inside [begin, end); empty runs have count 0.
Run intersect(const Run& run, int64_t begin, int64_t end) {
  const auto first = std::max(run.begin, begin);
  const auto last = std::min(run.begin + run.count, end);
  return {first, std::max<int64_t>(last - first, 0)};
}

bool inside(Runs runs, int64_t begin, int64_t end) {
  return std::all_of(runs.begin(), runs.end(), [&](const Run& run) {
    return run.begin >= begin && run.begin + run.count <= end;
  });
}

/// The elements of an input that `runs` of the step's storage are made from.
std::vector<Run> wanted_of(const Input& input, const Step& step, Runs runs) {
  std::vector<Run> wanted;
  wanted.reserve(
      static_cast<size_t>(input.mapping.most_runs(total(runs), static_cast<int64_t>(runs.size()))));
  for (const auto& run : runs) {
    input.mapping.append(run.begin - step.begin, run.count, wanted);
  }
  return wanted;
}

}  // namespace

Reader::Reader(const Program& program) : program_(&program), states_(program.steps().size()) {
  for (size_t i = 0; i < states_.size(); ++i) {
    const auto& inputs = program.steps()[i].inputs;
    states_[i].inputs.reserve(inputs.size());
    for (const auto& input : inputs) {
      states_[i].inputs.emplace_back(*input.program);
    }
    states_[i].scratch.resize(inputs.size());
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
    if (inside(runs, step.begin, step.end)) {
      apply(step, states_[i], runs, out);
      continue;
    }
    // The step writes only some of the elements.
    auto* place = bytes;
    for (const auto& run : runs) {
      const auto part = intersect(run, step.begin, step.end);
      if (part.count > 0) {
        apply(step, states_[i], part,
              place + static_cast<size_t>(part.begin - run.begin) * itemsize);
      }
      place += static_cast<size_t>(run.count) * itemsize;
    }
  }
}

void Reader::apply(const Step& step, State& state, Runs runs, void* out) {
  switch (step.kind) {
    case StepKind::in_place:
      record::run_in_place(*step.node, tile_of(out, total(runs), program_->dtype()));
      return;
    case StepKind::copy:
      copy(step, state, runs, out);
      return;
    case StepKind::compute:
      compute(step, state, runs, out);
      return;
    case StepKind::read:
      fetch(step, runs, out);
      return;
    default:
      auto* place = static_cast<std::byte*>(out);
      for (const auto& run : runs) {
        draw(step, state, run.begin - step.begin, run.count, place);
        place += static_cast<size_t>(run.count) * program_->itemsize();
      }
  }
}

void Reader::draw(const Step& step, State& state, int64_t begin, int64_t count, void* out) {
  const auto dtype = program_->dtype();
  const auto n = static_cast<size_t>(count);
  if (step.kind == StepKind::normal) {
    if (!state.normal) {
      state.normal.emplace(random::Stream(step.node->position->engine()), dtype,
                           static_cast<uint64_t>(step.end - step.begin), step.a, step.b);
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
    if (!state.generator.defined() || begin != state.next) {
      state.generator = step.node->position->restore();
      auto* generator = state.generator.get<at::CPUGeneratorImpl>();
      auto engine = generator->engine().data();
      random::advance(engine, static_cast<uint64_t>(begin) * step.draws);
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

void Reader::fetch(const Step& step, Runs runs, void* out) {
  auto* place = static_cast<std::byte*>(out);
  const auto itemsize = program_->itemsize();
  for (const auto& run : runs) {
    const auto bytes = static_cast<size_t>(run.count) * itemsize;
    step.node->source->read(
        step.node->source_offset + static_cast<uint64_t>(run.begin) * itemsize, bytes, place);
    place += bytes;
  }
}

const void* Reader::read_input(const Step& step, State& state, size_t index, Runs runs) {
  const auto& input = step.inputs[index];
  const auto wanted = wanted_of(input, step, runs);
  auto& scratch = state.scratch[index];
  scratch.resize(
      std::max(scratch.size(), static_cast<size_t>(total(runs)) * input.program->itemsize()));
  state.inputs[index].read(wanted, scratch.data());
  return scratch.data();
}

void Reader::copy(const Step& step, State& state, Runs runs, void* out) {
  const auto& input = step.inputs.front();
  if (input.program->dtype() == program_->dtype()) {
    state.inputs.front().read(wanted_of(input, step, runs), out);
    return;
  }
  const auto count = total(runs);
  auto* source = const_cast<void*>(read_input(step, state, 0, runs));
  tile_of(out, count, program_->dtype()).copy_(tile_of(source, count, input.program->dtype()));
}

void Reader::compute(const Step& step, State& state, Runs runs, void* out) {
  const auto count = total(runs);
  std::vector<at::Tensor> tensors(step.node->operands.size());
  for (size_t i = 0; i < step.inputs.size(); ++i) {
    auto* data = const_cast<void*>(read_input(step, state, i, runs));
    tensors[step.inputs[i].operand] = tile_of(data, count, step.inputs[i].program->dtype());
  }
  tile_of(out, count, program_->dtype()).copy_(record::run_functional(*step.node, tensors));
}

}  // namespace dormant::tile
