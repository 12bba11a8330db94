// A piece of the forward pass that keeps only its inputs and runs again in the backward pass (Chen et al. 2016,
// arXiv 1604.06174).
//
// Parameters are inputs of the node: their gradients leave through the outer graph, as if nothing was recomputed, so
// hooks on them (c10d's Reducer) fire as always.

#include "failure.h"

#include <memory>
#include <optional>
#include <vector>

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Puts its results where `outputs` points, one tensor in each place; 0 or an error.
using Call = int (*)(void* closure, at::Tensor* const* inputs, size_t inputs_len, at::Tensor* const* outputs, size_t outputs_len);
using Drop = void (*)(void* closure);

// The closure on the Rust side, which ends with the graph.
struct Piece : torch::CustomClassHolder {
  Piece(void* closure, Call call, Drop drop, size_t outputs) : closure(closure), call(call), drop(drop), outputs(outputs) {}
  ~Piece() override { drop(closure); }

  variable_list run(const variable_list& inputs) const {
    variable_list ins = inputs;
    variable_list outs(outputs);
    std::vector<at::Tensor*> in_places, out_places;
    for (auto& tensor : ins) in_places.push_back(&tensor);
    for (auto& tensor : outs) out_places.push_back(&tensor);
    const int code = call(closure, in_places.data(), in_places.size(), out_places.data(), out_places.size());
    TORCH_CHECK(code == 0, "recomputed: the piece failed; its own message stands above");
    return outs;
  }

  void* closure;
  Call call;
  Drop drop;
  size_t outputs;
};

// What a forward pass depends on beside its inputs.
struct Surroundings {
  at::DeviceType device_type;
  at::Device device;
  at::Tensor generator;
  bool autocast;
  at::ScalarType autocast_dtype;

  static at::Generator generator_of(at::Device device) {
    return at::globalContext().defaultGenerator(device);
  }

  static Surroundings now(at::Device device) {
    return {
        device.type(), device, generator_of(device).get_state(), at::autocast::is_autocast_enabled(device.type()),
        at::autocast::get_autocast_dtype(device.type())};
  }

  void enter() const {
    generator_of(device).set_state(generator);
    at::autocast::set_autocast_dtype(device_type, autocast_dtype);
    at::autocast::set_autocast_enabled(device_type, autocast);
  }
};

// Enters other surroundings for as long as it lives.
class Within {
 public:
  explicit Within(const Surroundings& then) : now_(Surroundings::now(then.device)) {
    then.enter();
    at::autocast::increment_nesting();
  }
  ~Within() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    now_.enter();
  }
  Within(const Within&) = delete;
  Within& operator=(const Within&) = delete;

 private:
  Surroundings now_;
};

struct Kept : torch::CustomClassHolder {
  Kept(c10::intrusive_ptr<Piece> piece, size_t inputs, Surroundings then)
      : piece(std::move(piece)), inputs(inputs), then(std::move(then)) {}
  c10::intrusive_ptr<Piece> piece;
  size_t inputs;
  Surroundings then;
};

struct Recomputed : torch::autograd::Function<Recomputed> {
  // `all` is the inputs, then the parameters.
  static variable_list forward(AutogradContext* ctx, at::TensorList all, const c10::intrusive_ptr<Kept>& kept) {
    ctx->saved_data["kept"] = c10::IValue::make_capsule(kept);
    ctx->save_for_backward(all.vec());
    return kept->piece->run(all.slice(0, kept->inputs).vec());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto kept = c10::static_intrusive_pointer_cast<Kept>(ctx->saved_data["kept"].toCapsule());
    const variable_list all = ctx->get_saved_variables();
    variable_list inputs, wanted;
    std::vector<size_t> places;
    for (size_t i = 0; i < all.size(); ++i) {
      const bool is_input = i < kept->inputs;
      at::Tensor tensor = is_input ? all[i].detach() : all[i];
      if (is_input) inputs.push_back(tensor);
      if (!all[i].requires_grad()) continue;
      tensor.requires_grad_(true);
      wanted.push_back(tensor);
      places.push_back(i);
    }
    variable_list results(all.size() + 1);  // One more for `kept`, which has no gradient.
    at::AutoGradMode with_gradient(true);
    variable_list reached, from;
    {
      const Within then(kept->then);
      const variable_list outputs = kept->piece->run(inputs);
      for (size_t i = 0; i < outputs.size(); ++i) {
        if (!gradients[i].defined() || !outputs[i].requires_grad()) continue;
        reached.push_back(outputs[i]);
        from.push_back(gradients[i]);
      }
    }
    if (reached.empty()) return results;
    const variable_list found = torch::autograd::grad(
        reached, wanted, from, /*retain_graph=*/std::nullopt, /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0; i < places.size(); ++i) results[places[i]] = found[i];
    return results;
  }
};

} // namespace

extern "C" {

// Owns `closure` from here on, also when it fails. `outputs` are places for the results.
int bridge_recomputed(
    void* closure, Call call, Drop drop, const at::Tensor* const* inputs, size_t inputs_len,
    const at::Tensor* const* parameters, size_t parameters_len, at::Tensor* const* outputs, size_t outputs_len,
    char** message) {
  return bridge::guarded(message, [&] {
    auto piece = c10::make_intrusive<Piece>(closure, call, drop, outputs_len);
    TORCH_CHECK(inputs_len > 0, "recomputed: a piece without inputs");
    variable_list all;
    for (size_t i = 0; i < inputs_len; ++i) all.push_back(*inputs[i]);
    for (size_t i = 0; i < parameters_len; ++i) all.push_back(*parameters[i]);
    auto kept = c10::make_intrusive<Kept>(std::move(piece), inputs_len, Surroundings::now(all[0].device()));
    const variable_list results = Recomputed::apply(at::TensorList(all), kept);
    for (size_t i = 0; i < outputs_len; ++i) *outputs[i] = results[i];
  });
}

// `*to = *from`: both then are the same tensor.
void bridge_share(at::Tensor* to, const at::Tensor* from) {
  *to = *from;
}

} // extern "C"
