#include "tile/sink.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/imag.h>
#include <ATen/ops/zeros.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "quantize/four_bit.h"
#include "quantize/int8_rows.h"
#include "record/source_node.h"
#include "tile/eager_comparison.h"
#include "tile/engine.h"
#include "tile/held_tensors.h"

namespace dormant::tile {
namespace {

using at::Tensor;

/// A file without a name that is gone with the object.
class TemporaryFile {
 public:
  TemporaryFile() : file_(std::tmpfile()) { TORCH_CHECK(file_ != nullptr); }
  ~TemporaryFile() { std::fclose(file_); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  FileSink sink() const { return {fileno(file_), "the temporary file"}; }

  std::vector<char> bytes(size_t count, int64_t offset) const {
    std::vector<char> found(count);
    EXPECT_EQ(::pread(fileno(file_), found.data(), count, offset), static_cast<ssize_t>(count));
    return found;
  }

 private:
  std::FILE* file_;
};

/// The elements of a real tensor in logical order.
std::vector<char> bytes_of(const Tensor& tensor) {
  const auto plain = tensor.resolve_conj().resolve_neg().contiguous();
  const auto* data = static_cast<const char*>(plain.const_data_ptr());
  return {data, data + plain.nbytes()};
}

Tensor whole() { return at::empty({300, 517}).normal_(); }

/// Views of lazy storages, with a program and without.
const std::vector<Build>& builds() {
  static const std::vector<Build> all = {
      [] { return whole(); },
      [] { return whole().narrow(1, 3, 100); },
      [] { return whole().slice(1, 0, 517, 5); },
      [] { return whole().t(); },
      [] { return whole().t().contiguous(); },
      [] { return whole().cumsum(0).narrow(0, 7, 20); },
      [] { return whole().narrow(0, 5, 1).expand({3, 517}); },
      [] { return at::empty({40}, at::kLong).random_(); },
      [] { return at::empty({}).fill_(3); },
      [] { return at::empty({0, 4}).normal_(); },
      [] { return at::empty({50}, at::kComplexFloat).normal_().conj(); },
      [] { return at::imag(at::zeros({50}, at::kComplexFloat).normal_().conj()); },
  };
  return all;
}

TEST(Sink, GetsTheBytesOfEagerWhereverTheyAreWantedAndTensorsStayLazy) {
  constexpr int64_t kFirst = 13;  // no alignment is asked for
  for (size_t i = 0; i < builds().size(); ++i) {
    SCOPED_TRACE(i);
    const TemporaryFile file;
    const auto lazy = lazily(builds()[i]);
    ASSERT_TRUE(record::is_lazy(lazy));
    const auto expected = bytes_of(eagerly(builds()[i]));
    write({{lazy, kFirst}, {lazy, kFirst + static_cast<int64_t>(expected.size())}}, file.sink());
    EXPECT_TRUE(record::is_lazy(lazy));
    EXPECT_EQ(file.bytes(expected.size(), kFirst), expected);
    EXPECT_EQ(file.bytes(expected.size(), kFirst + static_cast<int64_t>(expected.size())),
              expected);
  }
}

/// The smallest budget for a tensor, by the message about a smaller one.
size_t least_budget(const Tensor& tensor, const Sink& sink) {
  try {
    write({{tensor, 0}}, sink, {1, {}});
  } catch (const c10::ValueError& error) {
    const std::string message = error.what();
    const std::string before = "the minimum for these tensors is ";
    const auto at = message.find(before);
    EXPECT_NE(at, std::string::npos) << message;
    return std::stoul(message.substr(at + before.size()));
  }
  return 1;
}

TEST(Sink, GetsTheSameBytesUnderTheSmallestBudget) {
  for (size_t i = 0; i < builds().size(); ++i) {
    SCOPED_TRACE(i);
    const TemporaryFile file;
    const auto lazy = lazily(builds()[i]);
    const auto least = least_budget(lazy, file.sink());
    if (lazy.numel() > 0) {
      EXPECT_THROW(write({{lazy, 0}}, file.sink(), {least - 1, {}}), c10::ValueError);
    }
    write({{lazy, 0}}, file.sink(), {least, {}});
    const auto expected = bytes_of(eagerly(builds()[i]));
    EXPECT_EQ(file.bytes(expected.size(), 0), expected);
  }
}

TEST(Sink, WritesATransposedTensorInRectangles) {
  // Larger than the sources that may be gone through again for each tile.
  const Build transposed = [] { return at::empty({700, 1100}).normal_().t(); };
  const Build stacked = [] {
    return at::empty({3, 400, 1100}).uniform_(0, 1).to(at::kBFloat16).transpose(1, 2);
  };
  for (const auto& build : {transposed, stacked}) {
    const TemporaryFile file;
    const auto lazy = lazily(build);
    // Whole, it would take much more.
    EXPECT_LT(least_budget(lazy, file.sink()), lazy.nbytes() / 4);
    const auto expected = bytes_of(eagerly(build));
    for (const std::optional<size_t> budget : {std::optional<size_t>(), {lazy.nbytes() / 4}}) {
      write({{lazy, 5}}, file.sink(), {budget, {}});
      EXPECT_EQ(file.bytes(expected.size(), 5), expected);
    }
  }
}

TEST(Sink, ATensorThatComesToLifeMeanwhileIsWrittenAllTheSame) {
  const auto first = lazily([] { return whole(); });
  const auto second = lazily([] { return whole().cumsum(0); });
  const auto expected = bytes_of(eagerly([] { return whole().cumsum(0); }));
  const TemporaryFile file;
  write({{first, 0}, {second, static_cast<int64_t>(first.nbytes())}}, file.sink(),
        {std::nullopt, [&](size_t, size_t) {
           if (record::is_lazy(second)) {
             materialize({second.storage()}, {});
           }
         }});
  EXPECT_FALSE(record::is_lazy(second));
  EXPECT_EQ(file.bytes(expected.size(), static_cast<int64_t>(first.nbytes())), expected);
}

TEST(Sink, GetsRealTensorsHoweverTheyLie) {
  const auto base = eagerly([] { return whole(); });
  const auto complex = eagerly([] { return at::empty({9}, at::kComplexDouble).normal_(); });
  for (const auto& tensor : {base, base.t(), base.narrow(1, 2, 5), base.select(0, 3),
                             complex.conj(), complex.select(0, 2), base.narrow(0, 0, 0)}) {
    const TemporaryFile file;
    write({{tensor, 0}}, file.sink());
    const auto expected = bytes_of(tensor);
    EXPECT_EQ(file.bytes(expected.size(), 0), expected) << tensor.sizes() << tensor.strides();
  }
}

TEST(Sink, WhatNobodyInitialisedIsZero) {
  const TemporaryFile file;
  const auto lazy = lazily([] {
    auto tensor = at::empty({1000});
    tensor.narrow(0, 100, 50).fill_(7);
    return tensor;
  });
  write({{lazy, 0}}, file.sink());
  auto expected = at::zeros({1000});
  expected.narrow(0, 100, 50).fill_(7);
  EXPECT_EQ(file.bytes(expected.nbytes(), 0), bytes_of(expected));
}

/// The outputs of quantizing what `build` gives: lazy ones, and real ones of the same bytes.
std::pair<std::vector<Tensor>, std::vector<Tensor>> quantized(
    const Build& build, const std::shared_ptr<const record::Quantizer>& quantizer =
                            std::make_shared<quantization::Int8Rows>()) {
  const auto source = eagerly(build).contiguous();
  std::vector<Tensor> real;
  for (const auto& geometry : quantizer->outputs(source.sizes())) {
    real.push_back(at::empty(geometry.sizes, at::TensorOptions().dtype(geometry.dtype)));
  }
  record::run_whole(*quantizer, source, real, 1);
  return {record::quantize(lazily(build), quantizer), real};
}

TEST(Sink, PackedElementsAreWrittenAsTheyAreMade) {
  const auto [lazy, real] = quantized([] { return whole(); });
  const auto codes = static_cast<int64_t>(real[0].nbytes());
  const std::vector<Output> all = {{lazy[0], 5}, {lazy[1], 5 + codes}};
  const std::vector<Output> twice = {{lazy[0], 5}, {lazy[0], 5 + codes}};
  for (const auto& outputs : {all, twice, {all[0]}, {all[1]}}) {
    const TemporaryFile file;
    write(outputs, file.sink());
    for (const auto& output : outputs) {
      const auto expected = bytes_of(output.tensor.is_same(lazy[0]) ? real[0] : real[1]);
      EXPECT_EQ(file.bytes(expected.size(), output.offset), expected);
      EXPECT_TRUE(record::is_lazy(output.tensor));
    }
    // The scales, a row of tiles and their codes: never all codes.
    EXPECT_LT(least_budget(lazy[0], file.sink()), static_cast<size_t>(codes) / 4);
  }
}

TEST(Sink, PackedElementsOfATransposedTensorAreWrittenInRectangles) {
  std::vector<float> values;
  for (int i = 0; i < 16; ++i) {
    values.push_back((static_cast<float>(i) - 7.5F) / 7.5F);
  }
  const auto [lazy, real] = quantized([] { return at::empty({2, 1024, 700}).normal_().mT(); },
                                      std::make_shared<quantization::FourBit>("fp4", 64, values));
  const auto codes = static_cast<int64_t>(real[0].nbytes());
  const TemporaryFile nothing;
  const auto least = least_budget(lazy[0], nothing.sink());
  // Whole, the elements in full precision would take eight times the bytes of the codes.
  EXPECT_LT(least, static_cast<size_t>(codes) * 4);
  for (const std::optional<size_t> budget : {std::optional<size_t>(), {least}}) {
    const TemporaryFile file;
    write({{lazy[0], 5}}, file.sink(), {budget, {}});
    write({{lazy[0], 5 + codes}, {lazy[1], 5 + 2 * codes}}, file.sink());
    for (const auto place : {int64_t{5}, 5 + codes}) {
      EXPECT_EQ(file.bytes(real[0].nbytes(), place), bytes_of(real[0]));
    }
    EXPECT_EQ(file.bytes(real[1].nbytes(), 5 + 2 * codes), bytes_of(real[1]));
  }
}

TEST(Sink, APartOfPackedElementsIsWrittenFromAllOfThem) {
  const auto [lazy, real] = quantized([] { return whole(); });
  const TemporaryFile file;
  write({{lazy[0].narrow(0, 7, 20), 3}, {lazy[0], 20000}}, file.sink());
  EXPECT_EQ(file.bytes(real[0].narrow(0, 7, 20).nbytes(), 3), bytes_of(real[0].narrow(0, 7, 20)));
  EXPECT_EQ(file.bytes(real[0].nbytes(), 20000), bytes_of(real[0]));
}

TEST(Sink, PackedElementsOfWhatCanOnlyBeReplayedAreWrittenWhole) {
  const auto [lazy, real] = quantized([] { return whole().cumsum(0); });
  const TemporaryFile file;
  const auto codes = static_cast<int64_t>(real[0].nbytes());
  write({{lazy[0], 0}, {lazy[1], codes}}, file.sink());
  EXPECT_EQ(file.bytes(real[0].nbytes(), 0), bytes_of(real[0]));
  EXPECT_EQ(file.bytes(real[1].nbytes(), codes), bytes_of(real[1]));
}

TEST(SinkThreads, ProgressEndsWithEverythingAndMayStop) {
  const auto large = lazily([] { return at::empty({20 << 20}).uniform_(0, 1); });
  const auto replayed = lazily([] { return whole().cumsum(0); });
  const TemporaryFile file;
  size_t last = 0;
  const auto all = large.nbytes() + replayed.nbytes();
  write({{large, 0}, {replayed, static_cast<int64_t>(large.nbytes())}}, file.sink(),
        {std::nullopt, [&](size_t done, size_t total) {
           EXPECT_GE(done, last);
           EXPECT_LE(done, total);
           EXPECT_EQ(total, all);
           last = done;
         }});
  EXPECT_EQ(last, all);
  size_t calls = 0;
  EXPECT_THROW(write({{large, 0}}, file.sink(),
                     {std::nullopt,
                      [&](size_t, size_t) {
                        if (++calls == 2) {
                          throw std::runtime_error("stop");
                        }
                      }}),
               std::runtime_error);
  EXPECT_TRUE(record::is_lazy(large));
}

TEST(SinkThreads, ARealTensorIsWrittenWhileAnotherThreadHoldsIt) {
  const auto contiguous = at::empty({64}).fill_(3);
  const auto transposed = at::arange(6).view({2, 3}).t();
  const std::vector<char> expected[] = {bytes_of(contiguous), bytes_of(transposed)};
  const std::jthread holder([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      HeldTensors held({contiguous, transposed});
      held.restore();
    }
  });
  const TemporaryFile file;
  size_t wrong = 0;
  for (int i = 0; i < 20000; ++i) {
    // As a state dict has them: other tensors over the same storages.
    write({{contiguous.detach(), 0}, {transposed.detach(), 256}}, file.sink());
    wrong += file.bytes(expected[0].size(), 0) != expected[0] ||
                     file.bytes(expected[1].size(), 256) != expected[1]
                 ? 1
                 : 0;
  }
  EXPECT_EQ(wrong, 0);
}

TEST(SinkThreads, AFileThatCannotBeWrittenIsNamedWithTheSystemsReason) {
  const int descriptor = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(descriptor, 0);
  const auto lazy = lazily([] { return whole(); });
  try {
    write({{lazy, 64}}, FileSink(descriptor, "folder/model.safetensors"));
    ADD_FAILURE() << "writing to a file opened for reading succeeded";
  } catch (const std::system_error& error) {
    EXPECT_EQ(error.code().value(), EBADF);
    const std::string message = error.what();
    EXPECT_NE(message.find("folder/model.safetensors"), std::string::npos) << message;
    EXPECT_NE(message.find("at offset 64"), std::string::npos) << message;
  }
  EXPECT_TRUE(record::is_lazy(lazy));
  ::close(descriptor);
}

}  // namespace
}  // namespace dormant::tile
