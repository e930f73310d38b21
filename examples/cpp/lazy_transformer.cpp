// Builds a torch::nn model twice under one seed, eagerly and lazily, and compares them bit for bit.
#include <dormant/dormant.h>
#include <torch/torch.h>

#include <cstring>
#include <iostream>

namespace {

struct Block : torch::nn::Module {
  explicit Block(int64_t width)
      : norm(register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})))),
        up(register_module("up", torch::nn::Linear(width, 4 * width))),
        down(register_module("down", torch::nn::Linear(4 * width, width))),
        scale(register_buffer("scale", torch::full({1}, 0.5))) {}

  torch::Tensor forward(const torch::Tensor& x) {
    return x + scale * down(torch::gelu(up(norm(x))));
  }

  torch::nn::LayerNorm norm;
  torch::nn::Linear up;
  torch::nn::Linear down;
  torch::Tensor scale;
};

torch::nn::Sequential build() {
  torch::manual_seed(7);
  torch::nn::Sequential model;
  model->push_back(torch::nn::Embedding(1000, 128));
  for (int i = 0; i < 4; ++i) {
    model->push_back(std::make_shared<Block>(128));
  }
  return model;
}

bool same_bits(const torch::Tensor& a, const torch::Tensor& b) {
  return a.sizes() == b.sizes() && a.dtype() == b.dtype() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

}  // namespace

int main() {
  auto eager = build();
  torch::nn::Sequential model(nullptr);
  {
    const dormant::LazyInit lazy;
    model = build();
  }
  const auto parameters = model->parameters();
  if (!dormant::is_lazy(parameters.front())) {
    std::cerr << "the model is not lazy\n";
    return 1;
  }
  const auto report = dormant::materialize(model);
  std::cout << "materialized: " << report.storages << " storages, " << report.bytes << " bytes\n";

  const auto expected = eager->parameters();
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!same_bits(parameters[i], expected[i])) {
      std::cerr << "parameter " << i << " differs from eager construction\n";
      return 1;
    }
  }
  const auto tokens = torch::arange(12).reshape({2, 6});
  if (!torch::equal(model->forward(tokens), eager->forward(tokens))) {
    std::cerr << "the forward pass differs\n";
    return 1;
  }
  std::cout << "equal to eager construction, bit for bit: " << expected.size() << " parameters\n";
  return 0;
}
