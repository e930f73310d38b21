// Drives a libFuzzer target where libFuzzer is not available: mutates the files of a corpus, the
// same way for the same seed, without looking at coverage.
//
//   fuzz_index --seconds 5 --seed 1 fuzz/corpus/index      mutates
//   fuzz_index failing-input                               runs one input
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
/// A target may know better how to change its inputs.
extern "C" __attribute__((weak)) size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size,
                                                                size_t limit, unsigned int seed);

/// A target may count the inputs that it did not refuse, to tell how deep they reach.
extern "C" __attribute__((weak)) uint64_t fuzz_accepted;

namespace {

constexpr const char* kFailure = "failing-input";
constexpr size_t kLongest = 16384;

// What mutations of single bytes rarely find.
constexpr std::array<std::string_view, 30> kTokens = {"{",
                                                      "}",
                                                      "[",
                                                      "]",
                                                      ",",
                                                      ":",
                                                      "\"\"",
                                                      "{}",
                                                      "[]",
                                                      "null",
                                                      "true",
                                                      "-1",
                                                      "-0",
                                                      "1e9",
                                                      "0",
                                                      "4294967296",
                                                      "9223372036854775807",
                                                      "18446744073709551615",
                                                      "18446744073709551616",
                                                      "\"dtype\":\"F64\"",
                                                      "\"shape\":[0]",
                                                      "\"data_offsets\":[0,0]",
                                                      "\"__metadata__\"",
                                                      "\"weight_map\"",
                                                      "\"metadata\"",
                                                      "../",
                                                      "/",
                                                      "\\u0000",
                                                      "\\ud800",
                                                      "\xff"};

std::string current;

void save_failure() {
  const int descriptor = ::open(kFailure, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (descriptor >= 0) {
    static_cast<void>(!::write(descriptor, current.data(), current.size()));
    ::close(descriptor);
  }
}

extern "C" void on_signal(int signal) {
  save_failure();
  std::signal(signal, SIG_DFL);
  static_cast<void>(std::raise(signal));
}

class Mutator {
 public:
  Mutator(uint64_t seed, std::vector<std::string> corpus)
      : random_(seed), corpus_(std::move(corpus)) {}

  std::string next() {
    auto text = corpus_[below(corpus_.size())];
    if (LLVMFuzzerCustomMutator != nullptr && below(4) != 0) {
      const auto size = text.size();
      text.resize(kLongest);
      text.resize(LLVMFuzzerCustomMutator(reinterpret_cast<uint8_t*>(text.data()), size, kLongest,
                                          static_cast<unsigned int>(random_())));
      return text;
    }
    for (auto left = 1 + below(6); left > 0; --left) {
      mutate(text);
    }
    text.resize(std::min(text.size(), kLongest));
    return text;
  }

 private:
  size_t below(size_t limit) { return limit == 0 ? 0 : random_() % limit; }

  void mutate(std::string& text) {
    const auto place = below(text.size() + 1);
    const auto count = std::min(1 + below(16), text.size() - place);
    switch (below(7)) {
      case 0:
        if (!text.empty()) {
          text[below(text.size())] ^= static_cast<char>(1 << below(8));
        }
        return;
      case 1:
        text.insert(place, 1, static_cast<char>(below(256)));
        return;
      case 2:
        text.erase(place, count);
        return;
      case 3:
        text.insert(below(text.size() + 1), text.substr(place, count));
        return;
      case 4:
        text.insert(place, kTokens[below(kTokens.size())]);
        return;
      case 5:
        text.replace(place, count, kTokens[below(kTokens.size())]);
        return;
      default: {
        const auto& other = corpus_[below(corpus_.size())];
        text = text.substr(0, place) + other.substr(below(other.size() + 1));
      }
    }
  }

  std::mt19937_64 random_;
  std::vector<std::string> corpus_;
};

std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<std::string> read_corpus(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> corpus;
  for (const auto& path : paths) {
    corpus.push_back(bytes_of(path));
  }
  return corpus;
}

/// False, after a message, where the target throws.
bool run(const std::string& input) {
  current = input;
  try {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(current.data()), current.size());
    return true;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
  }
  save_failure();
  std::cerr << "the input is in ./" << kFailure << '\n';
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 2;
  uint64_t seed = 1;
  std::filesystem::path corpus;
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--seconds" && i + 1 < arguments.size()) {
      seconds = std::stod(arguments[++i]);
    } else if (arguments[i] == "--seed" && i + 1 < arguments.size()) {
      seed = std::stoull(arguments[++i]);
    } else {
      corpus = arguments[i];
    }
  }
  for (const int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL}) {
    std::signal(signal, on_signal);
  }
  if (std::filesystem::is_regular_file(corpus)) {
    return run(bytes_of(corpus)) ? 0 : 1;
  }
  const auto inputs = read_corpus(corpus);
  if (inputs.empty()) {
    std::cerr << "no corpus in " << corpus << '\n';
    return 2;
  }
  for (const auto& input : inputs) {
    if (!run(input)) {
      return 1;
    }
  }
  Mutator mutator(seed, inputs);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  uint64_t count = 0;
  while (std::chrono::steady_clock::now() < end) {
    if (!run(mutator.next())) {
      std::cerr << "seed " << seed << ", input " << count << '\n';
      return 1;
    }
    ++count;
  }
  std::cout << count << " inputs of seed " << seed;
  if (&fuzz_accepted != nullptr) {
    std::cout << ", " << fuzz_accepted << " accepted";
  }
  std::cout << '\n';
  return 0;
}
