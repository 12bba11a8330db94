// Optimizer step and autocast state.

#include "failure.h"

#include <vector>

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>

namespace {

// The kernels walk raw memory, so a gradient must lie as its parameter does.
at::Tensor laid_out_as(const at::Tensor& parameter, const at::Tensor& gradient) {
  if (gradient.strides() == parameter.strides() && gradient.scalar_type() == parameter.scalar_type()) return gradient;
  return at::empty_like(parameter).copy_(gradient);
}

void check_layout(const at::Tensor& parameter, const at::Tensor& moment, const char* name) {
  TORCH_CHECK(parameter.is_non_overlapping_and_dense(), "fused_adamw: a parameter overlaps itself or has gaps");
  TORCH_CHECK(
      moment.sizes() == parameter.sizes() && moment.strides() == parameter.strides() &&
          moment.scalar_type() == parameter.scalar_type(),
      "fused_adamw: ", name, " of shape ", moment.sizes(), " does not lie as its parameter of shape ",
      parameter.sizes());
}

} // namespace

extern "C" {

// The same fields as `AdamWStep` in src/adamw.rs.
struct BridgeAdamWStep {
  uint64_t step;
  double lr, beta1, beta2, eps, weight_decay, grad_divisor;
};

int bridge_fused_adamw(
    const at::Tensor* const* parameters,
    const at::Tensor* const* gradients,
    const at::Tensor* const* first_moments,
    const at::Tensor* const* second_moments,
    size_t count,
    const BridgeAdamWStep* hyper,
    char** message) {
  return bridge::guarded(message, [&] {
    if (count == 0) return;
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> params, grads, averages, squares;
    for (size_t i = 0; i < count; ++i) {
      const at::Tensor& parameter = *parameters[i];
      TORCH_CHECK(
          gradients[i]->sizes() == parameter.sizes(), "fused_adamw: gradient ", i, " of shape ",
          gradients[i]->sizes(), " for a parameter of shape ", parameter.sizes());
      check_layout(parameter, *first_moments[i], "exp_avg");
      check_layout(parameter, *second_moments[i], "exp_avg_sq");
      params.push_back(parameter);
      grads.push_back(laid_out_as(parameter, *gradients[i]));
      averages.push_back(*first_moments[i]);
      squares.push_back(*second_moments[i]);
    }
    // The kernels only read the step, so all parameters share one.
    const auto options = params[0].options().dtype(at::kFloat).requires_grad(false);
    const std::vector<at::Tensor> steps(count, at::full({}, static_cast<double>(hyper->step), options));
    std::optional<at::Tensor> divisor;
    if (hyper->grad_divisor != 1.0) divisor = at::full({}, hyper->grad_divisor, options);
    at::_fused_adamw_(
        params, grads, averages, squares, /*max_exp_avg_sqs=*/{}, steps, hyper->lr, hyper->beta1, hyper->beta2,
        hyper->weight_decay, hyper->eps, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/divisor);
  });
}

int bridge_drop_gradients(const at::Tensor* const* parameters, size_t count, char** message) {
  return bridge::guarded(message, [&] {
    for (size_t i = 0; i < count; ++i) parameters[i]->mutable_grad().reset();
  });
}

// What `bridge_autocast_leave` puts back.
struct BridgeAutocastState {
  int device_type;
  int enabled;
  int dtype;
};

// `dtype` < 0 switches autocast off.
int bridge_autocast_enter(int device_type, int dtype, BridgeAutocastState* previous, char** message) {
  return bridge::guarded(message, [&] {
    const auto device = static_cast<at::DeviceType>(device_type);
    previous->device_type = device_type;
    previous->enabled = at::autocast::is_autocast_enabled(device);
    previous->dtype = static_cast<int>(at::autocast::get_autocast_dtype(device));
    if (dtype >= 0) at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(dtype));
    at::autocast::set_autocast_enabled(device, dtype >= 0);
    at::autocast::increment_nesting();
  });
}

int bridge_autocast_leave(const BridgeAutocastState* previous, char** message) {
  return bridge::guarded(message, [&] {
    const auto device = static_cast<at::DeviceType>(previous->device_type);
    // Casts of weights are kept until the outermost region ends; after the next optimizer step they would be stale.
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(previous->dtype));
    at::autocast::set_autocast_enabled(device, previous->enabled != 0);
  });
}

void bridge_free_message(char* message) {
  std::free(message);
}

} // extern "C"
