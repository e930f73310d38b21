#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <dormant/checkpoint.h>
#include <dormant/dormant.h>
#include <dormant/save.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "checkpoint/scratch_folder.h"
#include "system/faults.h"

namespace dormant {
namespace {

namespace fs = std::filesystem;
using checkpoint::contains;
using checkpoint::message_of;
using checkpoint::ScratchFolder;

using Files = std::map<std::string, std::string>;

std::string bytes_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// What lies below a folder, hidden files too.
Files files_in(const std::string& folder) {
  Files files;
  for (const auto& found : fs::recursive_directory_iterator(folder)) {
    const auto name = fs::relative(found.path(), folder).string();
    files[name] = found.is_directory() ? "a folder" : bytes_of(found.path());
  }
  return files;
}

/// Three tensors of 40 bytes each, their values by the seed.
NamedTensors build(uint64_t seed) {
  at::manual_seed(seed);
  return {{"a", at::randn({10})}, {"b", at::randn({2, 5})}, {"c", at::randn({10, 1})}};
}

NamedTensors build_lazily(uint64_t seed) {
  const LazyInit guard;
  return build(seed);
}

void expect_read_back(const std::string& path, const NamedTensors& expected) {
  const auto checkpoint = open_checkpoint(path);
  EXPECT_EQ(checkpoint.names().size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    const auto found = checkpoint[name];
    EXPECT_EQ(found.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(found.equal(tensor)) << name;
  }
}

TEST(Save, LazyTensorsAreWrittenAndStayLazy) {
  const ScratchFolder folder;
  const auto path = folder.path("m.safetensors");
  const auto model = build_lazily(3);
  const auto report = save(model, path);
  for (const auto& [name, tensor] : model) {
    EXPECT_TRUE(is_lazy(tensor)) << name;
  }
  EXPECT_EQ(report.files, std::vector<std::string>{path});
  EXPECT_EQ(report.saved, (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(report.bytes, 120u);
  expect_read_back(path, build(3));
  EXPECT_EQ(files_in(folder.path("")).size(), 1u);
}

TEST(Save, EveryDtypeAndGeometryIsReadBack) {
  const ScratchFolder folder;
  const auto path = folder.path("m.safetensors");
  const auto numbers = at::arange(60).reshape({5, 12});
  const NamedTensors tensors = {{"transposed", numbers.t()},
                                {"scalar", numbers.select(0, 1).select(0, 2)},
                                {"nothing", at::zeros({0, 3})},
                                {"every second", numbers.slice(1, 0, 12, 2)},
                                {"half", numbers.to(at::kHalf)},
                                {"bfloat", numbers.to(at::kBFloat16)},
                                {"double", numbers.to(at::kDouble)},
                                {"byte", numbers.to(at::kByte)},
                                {"bool", numbers.to(at::kBool)},
                                {"complex", at::complex(at::ones({3}), at::ones({3})).conj()}};
  save(tensors, path);
  expect_read_back(path, tensors);
}

TEST(Save, TiedTensorsAreWrittenOnceUnderTheFirstName) {
  const ScratchFolder folder;
  auto model = build_lazily(3);
  const auto a = model[0].second;
  model.emplace_back("tied", a.detach());
  model.emplace_back("view", a.view({5, 2}));  // another tensor of the same storage
  model.emplace_back("no bias", at::Tensor());
  const auto report = save(model, folder.path("m.safetensors"));
  EXPECT_EQ(report.saved, (std::vector<std::string>{"a", "b", "c", "view"}));
  EXPECT_EQ(report.tied, (std::map<std::string, std::string>{{"tied", "a"}}));
  auto expected = build(3);
  expected.emplace_back("view", expected[0].second.view({5, 2}));
  expect_read_back(folder.path("m.safetensors"), expected);
}

TEST(Save, FilesSayWhatTheyAreAskedToSay) {
  const ScratchFolder folder;
  const auto path = folder.path("m.safetensors");
  save(build(3), path);
  EXPECT_EQ(open_checkpoint(path).metadata(),
            (std::map<std::string, std::string>{{"format", "pt"}}));
  SaveOptions options;
  options.metadata = {{"step", "\"7\"\n"}};
  save(build(3), path, options);
  EXPECT_EQ(open_checkpoint(path).metadata(),
            (std::map<std::string, std::string>{{"format", "pt"}, {"step", "\"7\"\n"}}));
}

TEST(Save, WhatTheFormatCannotHoldIsListedAndNothingIsWritten) {
  const ScratchFolder folder;
  const NamedTensors bad = {{"sparse", at::eye(2).to_sparse()},
                            {"wide", at::zeros({1}, at::kComplexDouble)},
                            {"meta", at::zeros({1}, at::kMeta)},
                            {"__metadata__", at::zeros({1})},
                            {"\xff", at::zeros({1})},
                            {"a", at::zeros({1})},
                            {"a", at::zeros({1})}};
  const auto text =
      message_of<c10::ValueError>([&] { save(bad, folder.path("new/m.safetensors")); });
  for (const auto* part :
       {"cannot hold 6 of 7 entries", "'sparse': its layout is Sparse",
        "'wide': the format has no ComplexDouble", "'meta': it is on device 'meta'",
        "'__metadata__': the format reserves", "its name is not UTF-8", "'a': the name is given"}) {
    EXPECT_TRUE(contains(text, part)) << part << " in " << text;
  }
  EXPECT_TRUE(files_in(folder.path("")).empty());
}

TEST(Save, PathsThatNameNothingToWriteAreRefused) {
  const ScratchFolder folder;
  EXPECT_TRUE(contains(message_of<c10::ValueError>([] { save(build(3), ""); }), "empty path"));
  EXPECT_TRUE(
      contains(message_of<c10::NotImplementedError>([&] { save(build(3), folder.path("m.pt")); }),
               "names a file of torch.save"));
  SaveOptions options;
  options.max_shard_size = 0;
  EXPECT_THROW(save(build(3), folder.path("m"), options), c10::ValueError);
  folder.write("file", "");
  EXPECT_THROW(save(build(3), folder.path("file/m.safetensors")), std::system_error);
  EXPECT_EQ(files_in(folder.path("")).size(), 1u);
}

TEST(Save, AFolderHasShardsAndAnIndex) {
  const ScratchFolder folder;
  SaveOptions options;
  options.max_shard_size = 80;
  const auto report = save(build_lazily(3), folder.path("new/model"), options);
  EXPECT_EQ(report.files.size(), 2u);
  const auto files = files_in(folder.path("new/model"));
  EXPECT_EQ(files.size(), 3u);
  EXPECT_TRUE(files.contains("model-00002-of-00002.safetensors"));
  EXPECT_EQ(files.at("model.safetensors.index.json"),
            "{\n  \"metadata\": {\n    \"total_size\": 120\n  },\n  \"weight_map\": {\n"
            "    \"a\": \"model-00001-of-00002.safetensors\",\n"
            "    \"b\": \"model-00001-of-00002.safetensors\",\n"
            "    \"c\": \"model-00002-of-00002.safetensors\"\n  }\n}\n");
  expect_read_back(folder.path("new/model"), build(3));
}

TEST(Save, AnotherDivisionReplacesTheEarlierOne) {
  const ScratchFolder folder;
  const auto path = folder.path("model");
  uint64_t seed = 0;
  // Every step from one number of files to another, and to the same.
  for (const uint64_t limit : {40, 80, 1000, 40, 40, 1000, 1000, 80, 80}) {
    SaveOptions options;
    options.max_shard_size = limit;
    save(build_lazily(++seed), path, options);
    const size_t files = limit == 40 ? 4 : limit == 80 ? 3 : 1;
    EXPECT_EQ(files_in(path).size(), files);
    expect_read_back(path, build(seed));
  }
}

TEST(Save, OtherFilesOfAFolderStay) {
  const ScratchFolder folder;
  folder.write("config.json", "{}");
  folder.write("other-00001-of-00002.safetensors", "x");
  folder.write("model-00001-of-00002.safetensors", "of an earlier save");
  folder.write("model-00001-of-00002.0a1b2c3d.safetensors", "of one that was killed");
  save(build(3), folder.path(""));
  const auto files = files_in(folder.path(""));
  EXPECT_EQ(files.size(), 3u);
  EXPECT_TRUE(files.contains("config.json"));
  EXPECT_TRUE(files.contains("other-00001-of-00002.safetensors"));
}

TEST(Save, AnyCallThatFailsLeavesTheEarlierFilesAsTheyWere) {
  const auto limits = {uint64_t{40}, uint64_t{80}, uint64_t{1000}};
  for (const auto earlier : limits) {
    for (const auto later : limits) {
      for (const std::string kind : {"write", "publish"}) {
        const ScratchFolder folder;
        SaveOptions options;
        options.max_shard_size = earlier;
        save(build(1), folder.path(""), options);
        const auto before = files_in(folder.path(""));
        options.max_shard_size = later;
        const auto model = build_lazily(2);
        size_t failures = 0;
        while (true) {
          system::set_faults(kind + ":" + std::to_string(failures + 1));
          bool failed = false;
          try {
            save(model, folder.path(""), options);
          } catch (const std::system_error& error) {
            failed = true;
            EXPECT_EQ(error.code().value(), kind == "write" ? ENOSPC : EIO);
            EXPECT_TRUE(contains(error.what(), "save: ")) << error.what();
          }
          system::set_faults("");
          if (!failed) {
            break;
          }
          ++failures;
          ASSERT_EQ(files_in(folder.path("")), before)
              << earlier << " to " << later << " bytes: " << kind << " " << failures;
        }
        EXPECT_GT(failures, kind == "write" ? 1u : 6u);
        expect_read_back(folder.path(""), build(2));
        EXPECT_TRUE(is_lazy(model[0].second));
      }
    }
  }
}

TEST(Save, AFilesystemWithoutSecondNamesGetsTheSameContents) {
  const auto limits = {uint64_t{40}, uint64_t{80}, uint64_t{1000}};
  for (const auto earlier : limits) {
    for (const auto later : limits) {
      const ScratchFolder folder;
      system::set_faults("link:1+");
      SaveOptions options;
      for (const auto limit : {earlier, later}) {
        options.max_shard_size = limit;
        save(build_lazily(limit), folder.path(""), options);
        expect_read_back(folder.path(""), build(limit));
      }
      system::set_faults("");
      const size_t files = later == 40 ? 4 : later == 80 ? 3 : 1;
      EXPECT_EQ(files_in(folder.path("")).size(), files) << earlier << " to " << later;
    }
  }
}

TEST(Save, AnErrorRemovesTheFoldersThatWereMade) {
  const ScratchFolder folder;
  SaveOptions options;
  options.on_step = [](size_t done, size_t) {
    if (done > 0) {
      throw std::runtime_error("interrupted");
    }
  };
  const auto model = build_lazily(3);
  EXPECT_THROW(save(model, folder.path("a/b/m.safetensors"), options), std::runtime_error);
  EXPECT_TRUE(files_in(folder.path("")).empty());
  EXPECT_TRUE(is_lazy(model[0].second));
}

TEST(Save, TellsHowFarItIs) {
  const ScratchFolder folder;
  SaveOptions options;
  options.max_shard_size = 40;
  size_t last = 0;
  options.on_step = [&](size_t done, size_t total) {
    EXPECT_EQ(total, 120u);
    EXPECT_GE(done, last);
    last = done;
  };
  save(build_lazily(3), folder.path("m"), options);
  EXPECT_EQ(last, 120u);
}

TEST(Save, ABudgetTooSmallToWorkInIsRefusedBeforeAnythingIsWritten) {
  const ScratchFolder folder;
  NamedTensors model;
  {
    const LazyInit guard;
    model.emplace_back("a", at::randn({1 << 20}));
  }
  SaveOptions options;
  options.memory_budget = 1;
  EXPECT_TRUE(contains(
      message_of<c10::ValueError>([&] { save(model, folder.path("new/m.safetensors"), options); }),
      "memory_budget"));
  EXPECT_TRUE(files_in(folder.path("")).empty());
  options.memory_budget = 4 << 20;
  save(model, folder.path("m.safetensors"), options);
  materialize(model[0].second);
  expect_read_back(folder.path("m.safetensors"), model);
}

TEST(Save, ReplacesAFileThatTheModelReadsAndKeepsItsPermissions) {
  const ScratchFolder folder;
  const auto path = folder.path("m.safetensors");
  save(build(3), path);
  ASSERT_EQ(::chmod(path.c_str(), 0640), 0);
  const auto checkpoint = open_checkpoint(path);
  NamedTensors doubled;
  for (const auto& name : checkpoint.names()) {
    doubled.emplace_back(name, at::cat({checkpoint[name], checkpoint[name]}));
  }
  save(doubled, path);
  struct stat status{};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0640u);
  NamedTensors expected;
  for (const auto& [name, tensor] : build(3)) {
    expected.emplace_back(name, at::cat({tensor, tensor}));
  }
  expect_read_back(path, expected);
}

TEST(Save, ALinkIsReplacedAndNotFollowed) {
  const ScratchFolder folder;
  folder.write("target", "mine");
  fs::create_symlink("target", folder.path("m.safetensors"));
  save(build(3), folder.path("m.safetensors"));
  EXPECT_EQ(bytes_of(folder.path("target")), "mine");
  EXPECT_FALSE(fs::is_symlink(folder.path("m.safetensors")));
}

TEST(Save, WhatAKilledSaveLeftGoesWithTheNext) {
  const ScratchFolder folder;
  save(build(1), folder.path("m.safetensors"));
  const auto before = files_in(folder.path(""));
  const auto child = ::fork();
  if (child == 0) {
    SaveOptions options;
    options.on_step = [](size_t done, size_t) {
      if (done > 0) {
        ::raise(SIGKILL);
      }
    };
    save(build_lazily(2), folder.path("m.safetensors"), options);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  auto left = files_in(folder.path(""));
  EXPECT_GT(left.size(), before.size());
  EXPECT_EQ(left.at("m.safetensors"), before.at("m.safetensors"));
  save(build(3), folder.path("n.safetensors"));
  left = files_in(folder.path(""));
  EXPECT_EQ(left.size(), 2u);
}

TEST(SaveThreads, TwoIntoOneFolderLeaveOneOfThemWhole) {
  const ScratchFolder folder;
  std::atomic<int> failures = 0;
  const auto work = [&](uint64_t seed, uint64_t limit) {
    try {
      for (int round = 0; round < 20; ++round) {
        SaveOptions options;
        options.max_shard_size = limit;
        NamedTensors model = {{"a", at::full({10}, static_cast<float>(seed))},
                              {"b", at::full({10}, static_cast<float>(seed))}};
        save(model, folder.path("m"), options);
      }
    } catch (const std::exception&) {
      ++failures;
    }
  };
  std::thread one(work, 1, 40);
  std::thread two(work, 2, 1000);
  one.join();
  two.join();
  EXPECT_EQ(failures, 0);
  const auto checkpoint = open_checkpoint(folder.path("m"));
  EXPECT_TRUE(checkpoint["a"].equal(checkpoint["b"]));
  const auto files = files_in(folder.path("m"));
  EXPECT_EQ(files.size(), files.contains("model.safetensors") ? 1u : 3u);
}

TEST(SaveThreads, TwoMaySaveOneLazyModel) {
  const ScratchFolder folder;
  const auto model = build_lazily(3);
  std::thread one([&] { save(model, folder.path("1.safetensors")); });
  std::thread two([&] { save(model, folder.path("2.safetensors")); });
  one.join();
  two.join();
  expect_read_back(folder.path("1.safetensors"), build(3));
  expect_read_back(folder.path("2.safetensors"), build(3));
}

}  // namespace
}  // namespace dormant
