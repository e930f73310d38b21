#include "checkpoint/file_storage.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "checkpoint/file.h"
#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

std::string numbers(size_t count) {
  std::string bytes;
  for (size_t i = 0; i < count; ++i) {
    bytes.push_back(static_cast<char>(i));
  }
  return bytes;
}

const c10::StorageImpl* storage_of(const at::Tensor& tensor) {
  return tensor.storage().unsafeGetStorageImpl();
}

TEST(FileStorage, GivesTheBytesOfTheFile) {
  const ScratchFolder folder;
  const auto file = File::open(folder.write("f", numbers(20)));
  FileStorage storage(file, at::kByte, 3, 10);
  const auto tensor = storage.tensor();
  EXPECT_TRUE(is_lazy(tensor));
  dormant::materialize(tensor);
  EXPECT_TRUE(tensor.equal(at::arange(3, 13, at::kByte)));
}

TEST(FileStorage, LazyTensorsShareOneStorage) {
  const ScratchFolder folder;
  const auto file = File::open(folder.write("f", numbers(20)));
  FileStorage storage(file, at::kByte, 0, 20);
  const auto first = storage.tensor();
  const auto second = storage.tensor();
  EXPECT_EQ(storage_of(first), storage_of(second));
  dormant::materialize(first);
  EXPECT_TRUE(second.equal(at::arange(20, at::kByte)));
}

TEST(FileStorage, WhatWasDoneToAnEarlierTensorIsNotSeen) {
  const ScratchFolder folder;
  const auto file = File::open(folder.write("f", numbers(20)));
  FileStorage storage(file, at::kByte, 0, 20);
  const auto written = storage.tensor();
  written.fill_(7);
  EXPECT_TRUE(is_lazy(written));
  const auto second = storage.tensor();
  EXPECT_NE(storage_of(written), storage_of(second));
  dormant::materialize(second);
  second.fill_(9);
  const auto third = storage.tensor();
  dormant::materialize({written, third});
  EXPECT_TRUE(third.equal(at::arange(20, at::kByte)));
  EXPECT_TRUE(written.equal(at::full({20}, 7, at::kByte)));
}

TEST(FileStorage, RefusesPartsOfElements) {
  const ScratchFolder folder;
  const auto file = File::open(folder.write("f", numbers(20)));
  EXPECT_THROW(FileStorage(file, at::kFloat, 0, 10), c10::ValueError);
}

TEST(FileStorage, ThreadsGetEqualTensors) {
  const ScratchFolder folder;
  FileStorage storage(File::open(folder.write("f", numbers(20))), at::kByte, 0, 20);
  std::vector<std::thread> threads;
  std::vector<at::Tensor> tensors(4);
  for (auto& tensor : tensors) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        tensor = storage.tensor();
      }
      dormant::materialize(tensor);
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  for (const auto& tensor : tensors) {
    EXPECT_TRUE(tensor.equal(at::arange(20, at::kByte)));
  }
}

}  // namespace
}  // namespace dormant::checkpoint
