#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <dormant/checkpoint.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "checkpoint/scratch_folder.h"
#include "record/lazy_storage.h"

namespace dormant {
namespace {

using checkpoint::contains;
using checkpoint::message_of;
using checkpoint::safetensors_file;
using checkpoint::ScratchFolder;

constexpr uint64_t kSeed = 3;

/// A file with these float32 tensors, by PyTorch's own memory.
std::string file_of(const NamedTensors& tensors) {
  std::string header = "{";
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    std::ostringstream entry;
    entry << (data.empty() ? "" : ",") << '"' << name << R"(":{"dtype":"F32","shape":[)";
    for (int64_t i = 0; i < tensor.dim(); ++i) {
      entry << (i == 0 ? "" : ",") << tensor.size(i);
    }
    entry << R"(],"data_offsets":[)" << data.size() << ',';
    data.append(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
    entry << data.size() << "]}";
    header += entry.str();
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');  // as safetensors aligns the data
  return safetensors_file(header, data);
}

NamedTensors build() {
  at::manual_seed(kSeed);
  return {{"a", at::randn({17, 5})}, {"b", at::ones({300})}, {"c", at::randn({4})}};
}

NamedTensors build_lazily() {
  const LazyInit guard;
  return build();
}

TEST(Load, ReadsWhatTheCheckpointHasAndInitialisesTheRest) {
  const ScratchFolder folder;
  const auto a = at::rand({17, 5});
  const auto path = folder.write("model.safetensors", file_of({{"a", a}}));
  const auto model = build_lazily();
  const auto report = load(model, path);
  const auto eager = build();
  EXPECT_TRUE(model[0].second.equal(a));
  EXPECT_TRUE(model[1].second.equal(eager[1].second));
  EXPECT_TRUE(model[2].second.equal(eager[2].second));
  EXPECT_EQ(report.loaded, std::vector<std::string>{"a"});
  EXPECT_EQ(report.initialized, (std::vector<std::string>{"b", "c"}));
  EXPECT_FALSE(record::carries_key(model[0].second));
}

TEST(Load, CastsOnTheWay) {
  const ScratchFolder folder;
  const auto a = at::rand({17, 5});
  const auto path = folder.write("m", file_of({{"a", a}}));
  const NamedTensors lazy = [] {
    const LazyInit guard;
    return NamedTensors{{"a", at::empty({17, 5}, at::kBFloat16)}};
  }();
  const NamedTensors real{{"a", at::zeros({17, 5}, at::kDouble)}};
  load(lazy, path);
  load(real, path);
  EXPECT_TRUE(lazy[0].second.equal(a.to(at::kBFloat16)));
  EXPECT_TRUE(real[0].second.equal(a.to(at::kDouble)));
}

TEST(Load, WritesRealTensorsInPlaceAndKeepsOthers) {
  const ScratchFolder folder;
  const auto a = at::rand({17, 5});
  const auto path = folder.write("m", file_of({{"a", a}}));
  const auto model = build();
  auto leaf = model[0].second;
  leaf.requires_grad_(true);
  const auto* memory = leaf.const_data_ptr();
  const auto before = model[1].second.clone();
  const auto report = load(model, path);
  EXPECT_EQ(leaf.const_data_ptr(), memory);
  EXPECT_TRUE(leaf.equal(a));
  EXPECT_TRUE(leaf.requires_grad());
  EXPECT_TRUE(model[1].second.equal(before));
  EXPECT_EQ(report.kept, (std::vector<std::string>{"b", "c"}));
}

TEST(Load, AllNamesThatDoNotFitAreListedAndNothingChanges) {
  const ScratchFolder folder;
  const auto path = folder.write(
      "m", file_of({{"a", at::rand({5, 17})}, {"x", at::rand({1})}, {"y", at::rand({1})}}));
  const auto model = build_lazily();
  auto text = message_of<c10::IndexError>([&] { load(model, path); });
  EXPECT_TRUE(contains(text, "'a' has sizes [5, 17] in " + path + " at byte "));
  EXPECT_TRUE(contains(text, ", expected [17, 5]"));
  EXPECT_TRUE(contains(text, "2 tensors of the checkpoint are not in the module: 'x', 'y'."));

  LoadOptions options;
  options.mismatched = Mismatched::initialize;
  text = message_of<c10::IndexError>([&] { load(model, path, options); });
  EXPECT_TRUE(contains(text, "2 tensors of the checkpoint are not in the module: 'x', 'y'"));

  options.missing = Missing::error;
  text = message_of<c10::IndexError>([&] { load(model, path, options); });
  EXPECT_TRUE(contains(text, "2 names of the module are not in the checkpoint: 'b', 'c'"));
  for (const auto& [name, tensor] : model) {
    EXPECT_TRUE(is_lazy(tensor)) << name;
  }

  options.missing = Missing::initialize;
  options.unexpected = Unexpected::ignore;
  const auto report = load(model, path, options);
  EXPECT_EQ(report.ignored, (std::vector<std::string>{"x", "y"}));
  EXPECT_TRUE(model[0].second.equal(build()[0].second));
}

TEST(Load, RenamesTensors) {
  const ScratchFolder folder;
  const auto a = at::rand({17, 5});
  const auto path = folder.write("m", file_of({{"model.a", a}}));
  const auto model = build_lazily();
  LoadOptions options;
  options.rename = [](const std::string& name) { return name.substr(6); };
  load(model, path, options);
  EXPECT_TRUE(model[0].second.equal(a));
  options.rename = [](const std::string&) { return std::string("a"); };
  const auto two = folder.write("n", file_of({{"p", a}, {"q", a}}));
  EXPECT_TRUE(contains(message_of<c10::ValueError>([&] { load(model, two, options); }),
                       "rename gives 'a' for two tensors of the checkpoint, 'p' and 'q'"));
}

TEST(Load, ATensorRenamedToNothingIsLeftOut) {
  const ScratchFolder folder;
  const auto a = at::rand({17, 5});
  const auto path = folder.write("m", file_of({{"a", a}, {"b", at::rand({2})}}));
  const auto model = build_lazily();
  LoadOptions options;
  options.rename = [](const std::string& name) {
    return name == "b" ? std::nullopt : std::optional(name);
  };
  const auto report = load(model, path, options);
  EXPECT_TRUE(model[0].second.equal(a));
  EXPECT_TRUE(model[1].second.equal(build()[1].second));
  EXPECT_TRUE(report.ignored.empty());
}

/// Whether the process has a mapping of the file: what the tensor shows, then.
bool is_mapped(const std::string& path) {
  std::ifstream maps("/proc/self/maps");
  const std::string text((std::istreambuf_iterator<char>(maps)), std::istreambuf_iterator<char>());
  return contains(text, path);
}

TEST(Load, AFileIsShownInPlaceOnlyWhereThatIsAllowed) {
  const ScratchFolder folder;
  const auto a = at::rand({17, 5});
  for (const auto mmap : {Mmap::never, Mmap::always}) {
    const auto path = folder.write(mmap == Mmap::never ? "n" : "m", file_of({{"a", a}}));
    const NamedTensors loaded{build_lazily().front()};
    LoadOptions options;
    options.mmap = mmap;
    load(loaded, path, options);
    EXPECT_EQ(is_mapped(path), mmap == Mmap::always);
    EXPECT_TRUE(loaded.front().second.equal(a));

    const auto read = open_checkpoint(path)["a"];
    MaterializeOptions how;
    how.mmap = mmap;
    materialize(read, how);
    EXPECT_EQ(is_mapped(path), mmap == Mmap::always);
    EXPECT_TRUE(read.equal(a));
  }
}

TEST(Load, OneNameOfTiedTensorsIsEnough) {
  const ScratchFolder folder;
  const auto a = at::rand({17, 5});
  const auto path = folder.write("m", file_of({{"tied", a}}));
  auto model = build_lazily();
  model.emplace_back("tied", model[0].second.detach());
  LoadOptions options;
  options.missing = Missing::error;
  model.erase(model.begin() + 1, model.begin() + 3);
  const auto report = load(model, path, options);
  EXPECT_TRUE(model[0].second.equal(a));
  EXPECT_EQ(report.loaded, (std::vector<std::string>{"a", "tied"}));
}

TEST(Load, TiedTensorsThatDifferAreRefused) {
  const ScratchFolder folder;
  const auto a = at::rand({17, 5});
  auto other = a.clone();
  auto model = build_lazily();
  model.emplace_back("tied", model[0].second.detach());
  const auto equal = folder.write("equal", file_of({{"a", a}, {"tied", other}}));
  other.view(-1)[84].add_(1);
  const auto different = folder.write("different", file_of({{"a", a}, {"tied", other}}));
  EXPECT_TRUE(contains(message_of<c10::ValueError>([&] { load(model, different); }),
                       "'a' and 'tied' are one tensor in the module"));
  EXPECT_TRUE(is_lazy(model[0].second));
  load(model, equal);
  EXPECT_TRUE(model[0].second.equal(a));
}

TEST(Load, ChangedFileLeavesEverythingAsItWas) {
  const ScratchFolder folder;
  const auto a = at::rand({17, 5});
  const auto path = folder.write("m", file_of({{"a", a}}));
  const auto opened = open_checkpoint(path);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 4);
  const auto lazy = build_lazily();
  const auto real = build();
  EXPECT_TRUE(contains(message_of<c10::ValueError>([&] { load(lazy, opened); }), "expected"));
  EXPECT_THROW(load(real, opened), c10::ValueError);
  const auto eager = build();
  for (size_t i = 0; i < eager.size(); ++i) {
    EXPECT_TRUE(is_lazy(lazy[i].second));
    EXPECT_FALSE(is_lazy(real[i].second));
    EXPECT_TRUE(real[i].second.equal(eager[i].second));
  }
  folder.write("m", file_of({{"a", a}}));
  load(lazy, path);
  EXPECT_TRUE(lazy[0].second.equal(a));
  EXPECT_TRUE(lazy[2].second.equal(eager[2].second));
}

TEST(Load, ReadThatFailsMidwayNamesWhatWasWritten) {
  const ScratchFolder folder;
  const auto a = at::rand({1 << 20});
  const auto path = folder.write("m", file_of({{"a", a}}));
  const auto size = std::filesystem::file_size(path);
  LoadOptions options;
  options.on_step = [&](size_t, size_t) { std::filesystem::resize_file(path, size / 2); };
  const NamedTensors real{{"a", at::zeros({1 << 20})}};
  auto text = message_of<c10::ValueError>([&] { load(real, path, options); });
  EXPECT_TRUE(contains(text, path + ": the file ends at byte " + std::to_string(size / 2)));
  EXPECT_TRUE(contains(text, "were written in whole or in part: 'a'")) << text;
  EXPECT_FALSE(is_lazy(real[0].second));

  folder.write("m", file_of({{"a", a}}));
  const NamedTensors lazy = [] {
    const LazyInit guard;
    return NamedTensors{{"a", at::empty({1 << 20}, at::kHalf)}};
  }();
  text = message_of<c10::ValueError>([&] { load(lazy, path, options); });
  EXPECT_TRUE(contains(text, "the file ends at byte")) << text;
  EXPECT_TRUE(is_lazy(lazy[0].second));
}

TEST(Load, InterruptedLoadLeavesAModelLazyAndASecondOneWorks) {
  const ScratchFolder folder;
  const auto a = at::rand({17, 5});
  const auto path = folder.write("m", file_of({{"a", a}}));
  const auto model = build_lazily();
  LoadOptions options;
  options.on_step = [](size_t done, size_t) {
    if (done > 0) {
      throw std::runtime_error("interrupted");
    }
  };
  EXPECT_THROW(load(model, path, options), std::runtime_error);
  for (const auto& [name, tensor] : model) {
    EXPECT_TRUE(is_lazy(tensor)) << name;
  }
  load(model, path);
  EXPECT_TRUE(model[0].second.equal(a));
  EXPECT_TRUE(model[2].second.equal(build()[2].second));
}

TEST(Checkpoint, IsLazyTensorsByName) {
  const ScratchFolder folder;
  const auto a = at::rand({17, 5});
  const auto b = at::rand({3, 5});
  const auto path = folder.write("m", file_of({{"b", b}, {"a", a}}));
  const auto opened = open_checkpoint(path);
  EXPECT_EQ(opened.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(opened.contains("a"));
  EXPECT_EQ(opened.entry("a").sizes, (std::vector<int64_t>{17, 5}));
  EXPECT_EQ(opened.entry("a").file, path);
  const auto joined = at::cat({opened["a"], opened["b"]}).t().to(at::kHalf);
  EXPECT_TRUE(is_lazy(joined));
  dormant::materialize(joined);
  EXPECT_TRUE(joined.equal(at::cat({a, b}).t().to(at::kHalf)));
  EXPECT_TRUE(contains(message_of<c10::IndexError>([&] { opened["z"]; }),
                       "the checkpoint has no tensor 'z'"));
}

}  // namespace
}  // namespace dormant
