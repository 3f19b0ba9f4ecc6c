// Nodes of autograd's graph for our operators, built as torch builds its own: options and saved tensors are members, no
// dictionary, no wrapping of outputs; a call that asks for a gradient pays one allocation and an edge per input.
//
// What an operator keeps for its gradient, and how that is computed, is a struct:
//
//   struct ScaleGradient {
//     static constexpr const char* kName = "ScaleBackward";
//     static constexpr size_t kInputs = 1, kSaved = 1;  // that have gradients; tensors that are saved
//     int64_t factor = 0;                               // and so on: all else that it needs
//     template <typename Self, typename Visit>
//     static void each(Self& self, Visit& visit) { visit(self.factor); }
//     // gradients[i], of the i-th input, where it is wanted
//     void operator()(const Tensor& grad_output, const Tensor* saved, const bool* wanted, Tensor* gradients) const;
//   };
//   attach<ScaleGradient>(output, {&input}, {&other}, factor);  // the arguments of its constructor
//
// No gradient that comes in, none that goes out. A node is run by several threads at once if need be: what it keeps is
// locked only while it is read. Compiled autograd traces it as a call with what it keeps as constants.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <bit>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "arena.h"
#include "autograd.h"

namespace convext {

// An intrusive_ptr from torch 2.13 on, a shared_ptr before.
using NodePointer = std::decay_t<decltype(std::declval<const at::Tensor&>().grad_fn())>;

template <typename Node, typename... Args>
auto make_node(Args&&... args) {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<torch::autograd::Node>>)
    return std::shared_ptr<Node>(new Node(std::forward<Args>(args)...), [](Node* node) { deleteNode(node); });
  else
    return c10::make_intrusive<Node>(std::forward<Args>(args)...);
}

// What a gradient keeps, as numbers and a text, for compiled autograd: written, and read again.
class KeptWriter {
 public:
  std::vector<int64_t> numbers;
  std::string text;

  template <typename... Values>
  void operator()(const Values&... values) {
    (put(values), ...);
  }

 private:
  void put(int64_t value) { numbers.push_back(value); }
  void put(bool value) { numbers.push_back(value); }
  void put(double value) { put(std::bit_cast<int64_t>(value)); }
  void put(const std::optional<int64_t>& value) { put(int64_t(value.has_value())), put(value.value_or(0)); }
  void put(at::IntArrayRef values) {
    put(int64_t(values.size()));
    numbers.insert(numbers.end(), values.begin(), values.end());
  }
  void put(const std::string& value) { text = value; }
  template <typename Part>
  auto put(const Part& part) -> decltype(Part::each(part, *this)) {
    Part::each(part, *this);
  }
};

class KeptReader {
 public:
  KeptReader(const std::vector<int64_t>& numbers, const std::string& text) : next_(numbers.data()), text_(text) {}

  template <typename... Values>
  void operator()(Values&... values) {
    (take(values), ...);
  }

 private:
  void take(int64_t& value) { value = *next_++; }
  void take(double& value) {
    int64_t bits = 0;
    take(bits);
    value = std::bit_cast<double>(bits);
  }
  void take(bool& value) { value = *next_++ != 0; }
  void take(std::optional<int64_t>& value) {
    bool given = false;
    int64_t number = 0;
    take(given), take(number);
    value = given ? std::optional(number) : std::nullopt;
  }
  template <typename List>
  auto take(List& values) -> decltype(values.resize(1)) {
    int64_t count = 0;
    take(count);
    values.resize(size_t(count));
    for (int64_t& value : values) take(value);
  }
  void take(std::string& value) { value = text_; }
  template <typename Part>
  auto take(Part& part) -> decltype(Part::each(part, *this)) {
    Part::each(part, *this);
  }

  const int64_t* next_;
  const std::string& text_;
};

template <typename Gradient>
class OperatorNode final : public torch::autograd::Node {
 public:
  static constexpr size_t kInputs = Gradient::kInputs, kSaved = Gradient::kSaved;
  using Tensors = std::array<at::Tensor, kSaved>;
  using Wanted = std::array<bool, kInputs>;
  using variable_list = torch::autograd::variable_list;

  template <typename... Args>
  explicit OperatorNode(torch::autograd::edge_list&& edges, Args&&... args)
      : Node(std::move(edges)), gradient_(std::forward<Args>(args)...) {}

  void save(size_t i, const at::Tensor& tensor, bool is_output) {
    saved_[i] = torch::autograd::SavedVariable(tensor, is_output);
    is_output_[i] = is_output;
  }

  std::string name() const override { return Gradient::kName; }

  variable_list apply(variable_list&& grads) override { return run(gradient_, grads, unpack(), wanted()); }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (torch::autograd::SavedVariable& saved : saved_) saved.reset_data();
  }

  // Compiled autograd -------------------------------------------------------------------------------------------------

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    for (size_t i = 0; i < kSaved; ++i) args.collect(saved_[i], is_output_[i]);
    KeptWriter kept;
    kept(gradient_);
    args.collect(kept.numbers);
    args.collect(kept.text);
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& traced) override {
    for (torch::autograd::SavedVariable& saved : saved_) traced.before(saved);
    std::vector<c10::IValue> args;
    for (const at::Tensor& tensor : unpack()) args.emplace_back(tensor);
    KeptWriter kept;
    for (bool wants : wanted()) kept(wants);
    kept(gradient_);
    args.emplace_back(kept.numbers);
    args.emplace_back(kept.text);
    std::vector<at::TypePtr> schema;
    for (const c10::IValue& value : args)
      schema.push_back(value.isTensor() ? at::TypePtr(at::TensorType::get()) : value.type());
    using namespace torch::dynamo::autograd;
    const auto sizes = IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
        get_input_metadata(next_edges()));
    const auto& python = getPyCompilerInterface();
    const std::string function = python->bind_function(traced.get_py_compiler(), Gradient::kName, run_traced, schema,
                                                       /*is_custom_function=*/true, /*is_traceable=*/true);
    variable_list gradients =
        python->call_function(traced.get_py_compiler(), "apply_functional", function, grads, args, sizes);
    for (torch::autograd::SavedVariable& saved : saved_) traced.after(saved);
    return gradients;
  }

 private:
  Tensors unpack() {
    Tensors tensors;
    if constexpr (kSaved != 0) {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = 0; i < kSaved; ++i) tensors[i] = saved_[i].unpack(is_output_[i] ? getptr() : nullptr);
    }
    return tensors;
  }

  Wanted wanted() const {
    Wanted wanted;
    for (size_t i = 0; i < kInputs; ++i) wanted[i] = task_should_compute_output(i);
    return wanted;
  }

  static variable_list run(const Gradient& gradient, const variable_list& grads, const Tensors& saved,
                           const Wanted& wanted) {
    variable_list gradients(kInputs);
    const ArenaScope memory;
    if (grads[0].defined()) gradient(grads[0], saved.data(), wanted.data(), gradients.data());
    return gradients;
  }

  static variable_list run_traced(const variable_list& grads, const std::vector<c10::IValue>& args) {
    Tensors saved;
    for (size_t i = 0; i < kSaved; ++i) saved[i] = args[i].toTensor();
    const std::vector<int64_t> numbers = args[kSaved].toIntVector();
    const std::string text = args[kSaved + 1].toStringRef();
    KeptReader kept(numbers, text);
    Wanted wanted;
    for (bool& wants : wanted) kept(wants);
    Gradient gradient;
    kept(gradient);
    return run(gradient, grads, saved, wanted);
  }

  Gradient gradient_;
  std::array<torch::autograd::SavedVariable, kSaved> saved_;
  std::array<bool, kSaved> is_output_ = {};
};

// Makes `output`, fresh from an operator, a function of `inputs`, with what its gradient reads: tensors, nullptr for
// none, and the rest.
template <typename Gradient, typename... Args>
void attach(const at::Tensor& output, const std::array<const at::Tensor*, Gradient::kInputs>& inputs,
            const std::array<const at::Tensor*, Gradient::kSaved>& saved, Args&&... args) {
  torch::autograd::edge_list edges;
  edges.reserve(inputs.size());
  for (const at::Tensor* input : inputs)
    edges.push_back(input == nullptr ? torch::autograd::Edge() : torch::autograd::impl::gradient_edge(*input));
  const auto node = make_node<OperatorNode<Gradient>>(std::move(edges), std::forward<Args>(args)...);
  torch::autograd::set_history(output, node);
  for (size_t i = 0; i < saved.size(); ++i)
    if (saved[i] != nullptr) node->save(i, *saved[i], saved[i] == &output);
#if __has_include(<torch/csrc/autograd/node_creation_hook.h>)
  torch::autograd::fire_node_creation_hooks(node);
#endif
}

}  // namespace convext
