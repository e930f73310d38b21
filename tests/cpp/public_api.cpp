// Does by the public C++ interface what Python's does, so that a test can compare:
//   public_api copy FROM TO [raw] [untie] [shard BYTES] [key KEY] [budget BYTES]
//     opens a checkpoint and saves its tensors, each of tied ones, too, with `untie`
//   public_api quantize FROM TO SCHEME BLOCK_SIZE NESTED
//     the same with all of its tensors quantized, each as bitsandbytes saves it
// An error is printed with its kind, and the status is 1.
#include <dormant/checkpoint.h>
#include <dormant/quantize.h>
#include <dormant/save.h>

#include <c10/util/Exception.h>

#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

namespace {

using Arguments = std::vector<std::string>;

int copy(const Arguments& arguments) {
  dormant::OpenOptions how;
  dormant::SaveOptions options;
  bool untie = false;
  for (size_t i = 3; i < arguments.size(); ++i) {
    if (arguments[i] == "raw") {
      how.decode = false;
    } else if (arguments[i] == "untie") {
      untie = true;
    } else if (arguments[i] == "shard") {
      options.max_shard_size = std::stoull(arguments.at(++i));
    } else if (arguments[i] == "key") {
      how.key = arguments.at(++i);
    } else if (arguments[i] == "budget") {
      options.memory_budget = std::stoull(arguments.at(++i));
    } else {
      throw std::invalid_argument(arguments[i]);
    }
  }
  const auto checkpoint = dormant::open_checkpoint(arguments.at(1), how);
  dormant::NamedTensors tensors;
  for (const auto& name : checkpoint.names()) {
    const auto tensor = checkpoint[name];
    tensors.emplace_back(name, untie ? tensor.clone() : tensor);
    if (!dormant::is_lazy(tensors.back().second)) {
      throw std::logic_error("a tensor is not lazy");
    }
  }
  dormant::save(tensors, arguments.at(2), options);
  return 0;
}

int quantize(const Arguments& arguments) {
  const auto checkpoint = dormant::open_checkpoint(arguments.at(1));
  const auto& scheme = arguments.at(3);
  dormant::NamedTensors tensors;
  for (const auto& name : checkpoint.names()) {
    const auto weight = checkpoint[name];
    const auto quantized =
        scheme == "int8"
            ? dormant::quantize(weight, dormant::Int8{})
            : dormant::quantize(
                  weight, dormant::FourBit{scheme == "nf4" ? dormant::FourBitKind::nf4
                                                           : dormant::FourBitKind::fp4,
                                           std::stoll(arguments.at(4)), arguments.at(5) == "true"});
    if (!dormant::is_lazy(quantized.codes)) {
      throw std::logic_error("the codes are not lazy");
    }
    const auto state = quantized.named_tensors(name);
    if (!dormant::is_lazy(quantized.codes)) {
      throw std::logic_error("the codes are no longer lazy");
    }
    tensors.insert(tensors.end(), state.begin(), state.end());
  }
  dormant::save(tensors, arguments.at(2));
  return 0;
}

int run(const Arguments& arguments) {
  if (arguments.at(0) == "copy") {
    return copy(arguments);
  }
  if (arguments.at(0) == "quantize") {
    return quantize(arguments);
  }
  throw std::invalid_argument(arguments[0]);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const c10::ValueError& error) {
    std::cerr << "ValueError: " << error.what_without_backtrace() << "\n";
  } catch (const c10::IndexError& error) {
    std::cerr << "KeyError: " << error.what_without_backtrace() << "\n";
  } catch (const c10::NotImplementedError& error) {
    std::cerr << "NotImplementedError: " << error.what_without_backtrace() << "\n";
  } catch (const std::system_error& error) {
    std::cerr << "OSError: " << error.what() << "\n";
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
  }
  return 1;
}
