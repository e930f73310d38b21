// A small Llama in libtorch: built without memory, loaded from a GGUF file (Q4_K_M, say) or a
// folder of safetensors (fp8, GPTQ, bfloat16, ...), each weight decoded in small pieces on its way
// into the model. Prints the tokens that it chooses greedily:
//   llama MODEL TOKEN,TOKEN,... COUNT
// With a folder instead of tokens it writes the checkpoint there with its matrices in nf4 as
// bitsandbytes has them, in one pass and without ever holding a matrix in full precision:
//   llama MODEL --quantize FOLDER
#include <dormant/checkpoint.h>
#include <dormant/dormant.h>
#include <dormant/quantize.h>
#include <dormant/save.h>
#include <torch/torch.h>

#include <cmath>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace fs = std::filesystem;
using torch::Tensor;

struct Config {
  int64_t vocabulary = 0;
  int64_t width = 0;
  int64_t hidden = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t key_heads = 0;
  int64_t head_width = 0;
  double epsilon = 1e-5;
  double theta = 10000;
  bool ties_head = false;
  /// Of the pairs of numbers that are turned together: neighbors, as GGUF keeps them, or one of the
  /// first and one of the second half.
  bool turns_neighbors = false;
};

/// The first number under `key` in a config.json.
std::optional<double> number_in(const std::string& json, const std::string& key) {
  std::smatch found;
  const std::regex pattern("\"" + key + "\"\\s*:\\s*(-?[0-9][0-9.eE+-]*)");
  return std::regex_search(json, found, pattern) ? std::optional(std::stod(found[1]))
                                                 : std::nullopt;
}

double required(const std::optional<double>& number, const std::string& key) {
  if (!number) {
    throw std::runtime_error("the configuration has no value for " + key);
  }
  return *number;
}

Config read_config(const fs::path& path) {
  std::ifstream file(path);
  const std::string json((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto integer = [&](const char* key) {
    return static_cast<int64_t>(required(number_in(json, key), key));
  };
  // Scaled positions are computed otherwise.
  if (std::regex_search(json,
                        std::regex(R"("(rope_)?type"\s*:\s*"(llama3|linear|dynamic|yarn))"))) {
    throw std::runtime_error("this example does not support scaled rotary positions");
  }
  Config config;
  config.vocabulary = integer("vocab_size");
  config.width = integer("hidden_size");
  config.hidden = integer("intermediate_size");
  config.layers = integer("num_hidden_layers");
  config.heads = integer("num_attention_heads");
  config.key_heads = static_cast<int64_t>(
      number_in(json, "num_key_value_heads").value_or(static_cast<double>(config.heads)));
  config.head_width = static_cast<int64_t>(
      number_in(json, "head_dim").value_or(static_cast<double>(config.width / config.heads)));
  config.epsilon = required(number_in(json, "rms_norm_eps"), "rms_norm_eps");
  config.theta = number_in(json, "rope_theta").value_or(config.theta);
  config.ties_head = std::regex_search(json, std::regex(R"("tie_word_embeddings"\s*:\s*true)"));
  return config;
}

Config read_config(const dormant::Checkpoint& gguf) {
  const auto number = [&](const std::string& key) -> std::optional<double> {
    const auto found = gguf.metadata().find("llama." + key);
    return found == gguf.metadata().end() ? std::nullopt : std::optional(std::stod(found->second));
  };
  const auto integer = [&](const char* key) {
    return static_cast<int64_t>(required(number(key), key));
  };
  Config config;
  config.width = integer("embedding_length");
  config.hidden = integer("feed_forward_length");
  config.layers = integer("block_count");
  config.heads = integer("attention.head_count");
  config.key_heads = static_cast<int64_t>(
      number("attention.head_count_kv").value_or(static_cast<double>(config.heads)));
  config.head_width = config.width / config.heads;
  config.epsilon =
      required(number("attention.layer_norm_rms_epsilon"), "attention.layer_norm_rms_epsilon");
  config.theta = number("rope.freq_base").value_or(config.theta);
  config.vocabulary = gguf.entry("token_embd.weight").sizes.at(0);
  config.ties_head = !gguf.contains("output.weight");
  config.turns_neighbors = true;
  return config;
}

/// What transformers calls a tensor of a GGUF file; std::nullopt for tables that are computed here.
std::optional<std::string> name_of_gguf(const std::string& name) {
  static const std::vector<std::pair<std::string, std::string>> kNames = {
      {"token_embd", "model.embed_tokens"},
      {"output_norm", "model.norm"},
      {"output", "lm_head"},
      {"attn_norm", "input_layernorm"},
      {"attn_q", "self_attn.q_proj"},
      {"attn_k", "self_attn.k_proj"},
      {"attn_v", "self_attn.v_proj"},
      {"attn_output", "self_attn.o_proj"},
      {"ffn_norm", "post_attention_layernorm"},
      {"ffn_gate", "mlp.gate_proj"},
      {"ffn_up", "mlp.up_proj"},
      {"ffn_down", "mlp.down_proj"},
  };
  if (name == "rope_freqs.weight") {
    return std::nullopt;
  }
  static const std::regex kParts(R"((?:blk\.(\d+)\.)?(\w+)\.weight)");
  std::smatch parts;
  if (std::regex_match(name, parts, kParts)) {
    for (const auto& [theirs, ours] : kNames) {
      if (parts[2] == theirs) {
        const auto layer = parts[1].matched ? "model.layers." + parts[1].str() + "." : "";
        return layer + ours + ".weight";
      }
    }
  }
  return name;  // the load will say that the model has no such tensor
}

struct Norm : torch::nn::Module {
  Norm(int64_t width, double epsilon)
      : weight(register_parameter("weight", torch::ones({width}))), epsilon(epsilon) {}

  Tensor forward(const Tensor& x) {
    return weight * (x * torch::rsqrt(x.pow(2).mean(-1, true) + epsilon));
  }

  Tensor weight;
  double epsilon;
};

/// Turns pairs of numbers of each head by angles that grow with the position.
Tensor rotated(const Tensor& x, const Tensor& angles, bool neighbors) {
  const auto cosine = angles.cos();
  const auto sine = angles.sin();
  const auto half = x.size(-1) / 2;
  const auto first = neighbors ? x.slice(-1, 0, x.size(-1), 2) : x.slice(-1, 0, half);
  const auto second = neighbors ? x.slice(-1, 1, x.size(-1), 2) : x.slice(-1, half);
  const auto a = first * cosine - second * sine;
  const auto b = second * cosine + first * sine;
  return neighbors ? torch::stack({a, b}, -1).flatten(-2) : torch::cat({a, b}, -1);
}

torch::nn::Linear matrix(int64_t inputs, int64_t outputs) {
  return torch::nn::Linear(torch::nn::LinearOptions(inputs, outputs).bias(false));
}

/// Grouped-query attention that keeps the keys and values of earlier positions.
struct Attention : torch::nn::Module {
  explicit Attention(const Config& config)
      : config(config),
        q_proj(register_module("q_proj", matrix(config.width, config.heads * config.head_width))),
        k_proj(
            register_module("k_proj", matrix(config.width, config.key_heads * config.head_width))),
        v_proj(
            register_module("v_proj", matrix(config.width, config.key_heads * config.head_width))),
        o_proj(register_module("o_proj", matrix(config.heads * config.head_width, config.width))) {}

  Tensor forward(const Tensor& x, const Tensor& angles) {
    const auto heads = [&](const Tensor& y, int64_t count) {
      return y.view({x.size(0), count, config.head_width}).transpose(0, 1);
    };
    const auto turned = [&](const Tensor& y) { return rotated(y, angles, config.turns_neighbors); };
    const auto queries = turned(heads(q_proj(x), config.heads));
    const auto new_keys = turned(heads(k_proj(x), config.key_heads));
    const auto new_values = heads(v_proj(x), config.key_heads);
    keys = keys.defined() ? torch::cat({keys, new_keys}, 1) : new_keys;
    values = values.defined() ? torch::cat({values, new_values}, 1) : new_values;

    const auto group = config.heads / config.key_heads;
    auto scores = queries.matmul(keys.repeat_interleave(group, 0).transpose(1, 2)) /
                  std::sqrt(static_cast<double>(config.head_width));
    // Position i of the new ones sees the earlier ones and the new ones up to itself.
    const auto hidden =
        torch::ones({x.size(0), keys.size(1)}, torch::kBool).triu(keys.size(1) - x.size(0) + 1);
    scores = scores.masked_fill(hidden, -INFINITY);
    const auto mixed = scores.softmax(-1).matmul(values.repeat_interleave(group, 0));
    return o_proj(mixed.transpose(0, 1).flatten(1));
  }

  Config config;
  torch::nn::Linear q_proj;
  torch::nn::Linear k_proj;
  torch::nn::Linear v_proj;
  torch::nn::Linear o_proj;
  Tensor keys;  // not registered: it is not part of the checkpoint
  Tensor values;
};

struct SwiGlu : torch::nn::Module {
  explicit SwiGlu(const Config& config)
      : gate_proj(register_module("gate_proj", matrix(config.width, config.hidden))),
        up_proj(register_module("up_proj", matrix(config.width, config.hidden))),
        down_proj(register_module("down_proj", matrix(config.hidden, config.width))) {}

  Tensor forward(const Tensor& x) { return down_proj(torch::silu(gate_proj(x)) * up_proj(x)); }

  torch::nn::Linear gate_proj;
  torch::nn::Linear up_proj;
  torch::nn::Linear down_proj;
};

struct Layer : torch::nn::Module {
  explicit Layer(const Config& config)
      : input_layernorm(register_module("input_layernorm",
                                        std::make_shared<Norm>(config.width, config.epsilon))),
        self_attn(register_module("self_attn", std::make_shared<Attention>(config))),
        post_attention_layernorm(register_module(
            "post_attention_layernorm", std::make_shared<Norm>(config.width, config.epsilon))),
        mlp(register_module("mlp", std::make_shared<SwiGlu>(config))) {}

  Tensor forward(const Tensor& x, const Tensor& angles) {
    const auto seen = x + self_attn->forward(input_layernorm->forward(x), angles);
    return seen + mlp->forward(post_attention_layernorm->forward(seen));
  }

  std::shared_ptr<Norm> input_layernorm;
  std::shared_ptr<Attention> self_attn;
  std::shared_ptr<Norm> post_attention_layernorm;
  std::shared_ptr<SwiGlu> mlp;
};

struct Decoder : torch::nn::Module {
  explicit Decoder(const Config& config)
      : embed_tokens(
            register_module("embed_tokens", torch::nn::Embedding(config.vocabulary, config.width))),
        layers(register_module("layers", torch::nn::ModuleList())),
        norm(register_module("norm", std::make_shared<Norm>(config.width, config.epsilon))) {
    for (int64_t i = 0; i < config.layers; ++i) {
      layers->push_back(std::make_shared<Layer>(config));
    }
  }

  Tensor forward(const Tensor& tokens, const Tensor& angles) {
    auto x = embed_tokens(tokens);
    for (const auto& layer : *layers) {
      x = layer->as<Layer>()->forward(x, angles);
    }
    return norm->forward(x);
  }

  torch::nn::Embedding embed_tokens;
  torch::nn::ModuleList layers;
  std::shared_ptr<Norm> norm;
};

struct Llama : torch::nn::Module {
  explicit Llama(const Config& config)
      : config(config),
        model(register_module("model", std::make_shared<Decoder>(config))),
        lm_head(register_module("lm_head", matrix(config.width, config.vocabulary))) {
    if (config.ties_head) {
      lm_head->weight.set_data(model->embed_tokens->weight);
    }
  }

  /// The scores of the token after the last one of `tokens`, which begin at a position.
  Tensor forward(const Tensor& tokens, int64_t position) {
    const auto places = torch::arange(position, position + tokens.size(0), torch::kFloat);
    const auto powers = torch::arange(0, config.head_width, 2, torch::kFloat) / config.head_width;
    auto frequencies = 1.0 / torch::pow(config.theta, powers);
    if (factors.defined()) {
      frequencies = frequencies / factors;
    }
    const auto angles = places.unsqueeze(1) * frequencies;
    return lm_head(model->forward(tokens, angles).select(0, -1));
  }

  Config config;
  std::shared_ptr<Decoder> model;
  torch::nn::Linear lm_head;
  Tensor factors;  ///< of Llama 3's long contexts, where a GGUF file has them
};

std::vector<int64_t> generate(Llama& llama, std::vector<int64_t> tokens, int64_t count) {
  const torch::NoGradGuard values_only;
  std::vector<int64_t> chosen;
  int64_t position = 0;
  while (static_cast<int64_t>(chosen.size()) < count) {
    const auto scores = llama.forward(torch::tensor(tokens, torch::kLong), position);
    position += static_cast<int64_t>(tokens.size());
    chosen.push_back(scores.argmax().item<int64_t>());
    tokens = {chosen.back()};
  }
  return chosen;
}

/// GGUF keeps the rows of queries and keys with neighbors in pairs; transformers in halves.
Tensor in_halves(const Tensor& weight, int64_t heads) {
  return weight.view({heads, weight.size(0) / heads / 2, 2, weight.size(1)})
      .transpose(1, 2)
      .reshape(weight.sizes());
}

void write_config(const Config& config, const fs::path& path) {
  std::ofstream file(path);
  file.precision(17);
  file << R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16",)"
       << "\n \"vocab_size\": " << config.vocabulary << ", \"hidden_size\": " << config.width
       << ", \"intermediate_size\": " << config.hidden
       << ", \"num_hidden_layers\": " << config.layers
       << ", \"num_attention_heads\": " << config.heads
       << ",\n \"num_key_value_heads\": " << config.key_heads
       << ", \"head_dim\": " << config.head_width << ", \"rms_norm_eps\": " << config.epsilon
       << ", \"rope_theta\": " << config.theta
       << ", \"tie_word_embeddings\": " << (config.ties_head ? "true" : "false")
       << ",\n \"quantization_config\": {\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": "
          "true, \"bnb_4bit_quant_type\": \"nf4\", \"bnb_4bit_use_double_quant\": true, "
          "\"bnb_4bit_compute_dtype\": \"bfloat16\"}}\n";
}

/// One pass from the checkpoint to files: every tensor stays lazy.
void quantize(const dormant::Checkpoint& checkpoint, const Config& config,
              const std::string& folder) {
  dormant::NamedTensors state;
  for (const auto& name : checkpoint.names()) {
    const auto ours = config.turns_neighbors ? name_of_gguf(name) : name;
    if (!ours) {
      continue;
    }
    auto weight = checkpoint[name].to(torch::kBFloat16);
    if (config.turns_neighbors && ours->ends_with("q_proj.weight")) {
      weight = in_halves(weight, config.heads);
    } else if (config.turns_neighbors && ours->ends_with("k_proj.weight")) {
      weight = in_halves(weight, config.key_heads);
    }
    if (!ours->ends_with("_proj.weight")) {
      state.emplace_back(*ours, weight);
      continue;
    }
    for (const auto& entry : dormant::quantize(weight, dormant::FourBit{}).named_tensors(*ours)) {
      state.push_back(entry);
    }
  }
  const auto report = dormant::save(state, folder);
  write_config(config, fs::path(folder) / "config.json");
  std::cout << "wrote " << report.bytes << " bytes of tensors\n";
}

int run(const std::vector<std::string>& arguments) {
  if (arguments.size() != 3) {
    std::cerr << "llama MODEL TOKEN,TOKEN,... COUNT\nllama MODEL --quantize FOLDER\n";
    return 2;
  }
  const auto& path = arguments[0];
  const auto checkpoint = dormant::open_checkpoint(path);
  const bool is_gguf = !fs::is_directory(path);
  const auto config =
      is_gguf ? read_config(checkpoint) : read_config(fs::path(path) / "config.json");
  if (arguments[1] == "--quantize") {
    quantize(checkpoint, config, arguments[2]);
    return 0;
  }

  std::optional<Llama> llama;
  {
    const dormant::LazyInit lazy;
    llama.emplace(config);
  }
  dormant::LoadOptions options;
  options.missing = dormant::Missing::error;
  if (is_gguf) {
    options.rename = name_of_gguf;
  }
  const auto report = dormant::load(*llama, checkpoint, options);
  std::cerr << "loaded " << report.loaded.size() << " tensors, " << report.bytes << " bytes\n";
  if (is_gguf && checkpoint.contains("rope_freqs.weight")) {
    llama->factors = checkpoint["rope_freqs.weight"];
  }

  std::vector<int64_t> tokens;
  std::istringstream list(arguments[1]);
  for (std::string token; std::getline(list, token, ',');) {
    tokens.push_back(std::stoll(token));
  }
  const char* separator = "";
  for (const auto token : generate(*llama, tokens, std::stoll(arguments[2]))) {
    std::cout << separator << token;
    separator = ",";
  }
  std::cout << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
