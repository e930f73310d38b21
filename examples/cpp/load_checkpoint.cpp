// Loads a safetensors checkpoint into a lazy torch::nn model: what the file has is read once, the
// rest initialized as eager construction would. Run with a folder to write the checkpoint to.
#include <dormant/checkpoint.h>
#include <dormant/dormant.h>
#include <torch/torch.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>

namespace {

torch::nn::Sequential build() {
  torch::manual_seed(7);
  return torch::nn::Sequential(torch::nn::Linear(64, 256), torch::nn::BatchNorm1d(256),
                               torch::nn::Linear(256, 10));
}

/// A file of one layer's tensors, as any writer of safetensors would make it.
void write_layer(const std::string& path, const std::string& name, const torch::Tensor& weight,
                 const torch::Tensor& bias) {
  const auto describe = [](const torch::Tensor& tensor, const char* dtype, size_t begin) {
    std::string sizes;
    for (const auto size : tensor.sizes()) {
      sizes += (sizes.empty() ? "" : ",") + std::to_string(size);
    }
    return std::string(R"({"dtype":")") + dtype + R"(","shape":[)" + sizes +
           R"(],"data_offsets":[)" + std::to_string(begin) + "," +
           std::to_string(begin + tensor.nbytes()) + "]}";
  };
  const auto header = "{\"" + name + ".weight\":" + describe(weight, "BF16", 0) + ",\"" + name +
                      ".bias\":" + describe(bias, "F32", weight.nbytes()) + "}";
  const uint64_t length = header.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file << header;
  for (const auto& tensor : {weight, bias}) {
    file.write(static_cast<const char*>(tensor.const_data_ptr()),
               static_cast<std::streamsize>(tensor.nbytes()));
  }
}

bool same_bits(const torch::Tensor& a, const torch::Tensor& b) {
  return a.sizes() == b.sizes() && a.dtype() == b.dtype() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  const auto folder =
      argc > 1 ? std::filesystem::path(argv[1]) : std::filesystem::temp_directory_path();
  const auto path = (folder / "head.safetensors").string();
  const auto weight = torch::randn({10, 256}, torch::kBFloat16);
  const auto bias = torch::randn({10});
  write_layer(path, "head", weight, bias);

  torch::nn::Sequential model(nullptr);
  {
    const dormant::LazyInit lazy;
    model = build();
  }
  dormant::LoadOptions options;
  options.rename = [](const std::string& name) { return "2" + name.substr(4); };  // head.weight
  options.mmap = dormant::Mmap::never;  // the file may be overwritten while the model lives
  const auto report = dormant::load(model, path, options);

  const auto eager = build();
  {
    const torch::NoGradGuard values_only;
    eager->named_parameters()["2.weight"].copy_(weight);
    eager->named_parameters()["2.bias"].copy_(bias);
  }
  const auto parameters = model->named_parameters();
  for (const auto& expected : eager->named_parameters()) {
    if (!same_bits(parameters[expected.key()], expected.value())) {
      std::cerr << expected.key() << " differs from eager construction and copy_\n";
      return 1;
    }
  }
  const auto buffers = model->named_buffers();
  for (const auto& expected : eager->named_buffers()) {
    if (!same_bits(buffers[expected.key()], expected.value())) {
      std::cerr << expected.key() << " differs from eager construction\n";
      return 1;
    }
  }
  std::cout << "loaded " << report.loaded.size() << ", initialized " << report.initialized.size()
            << ", kept " << report.kept.size()
            << ": equal to eager construction and copy_, bit for bit\n";
  return 0;
}
