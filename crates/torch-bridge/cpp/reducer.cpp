// c10d's Reducer over one list of parameters: gradients are summed over ranks, bucket by bucket, while the backward pass
// still computes.

#include "failure.h"
#include "group.h"

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include <ATen/ops/full_like.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

namespace {

using Clock = std::chrono::steady_clock;
using Ready = void (*)(void* context);

double seconds(Clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

// The same fields as `Reduction` in src/reducer.rs.
struct Reduction {
  uint64_t bytes;
  double busy_seconds;
  double exposed_seconds;
};

// When messages of the host's backend were under way. The backward pass and the backend's threads write it.
class Meter {
 public:
  void sent() {
    const std::lock_guard lock(mutex_);
    last_sent_ = Clock::now();
    if (under_way_++ == 0) since_ = last_sent_;
  }

  void arrived() {
    const std::lock_guard lock(mutex_);
    last_arrived_ = Clock::now();
    if (--under_way_ > 0) return;
    busy_ += last_arrived_ - since_;
    settled_.notify_all();
  }

  // The sum of the times in which at least one message was under way, and the time behind the last one's start, when
  // there was nothing left to compute. A waiter can be up before the backend's thread has called `arrived`.
  void read(Reduction& into) {
    std::unique_lock lock(mutex_);
    settled_.wait(lock, [&] { return under_way_ == 0; });
    into.busy_seconds = seconds(busy_);
    into.exposed_seconds = std::max(0.0, seconds(last_arrived_ - last_sent_));
  }

 private:
  std::mutex mutex_;
  std::condition_variable settled_;
  int under_way_ = 0;
  Clock::time_point since_, last_sent_, last_arrived_;
  Clock::duration busy_{};
};

// What one backward pass sends; new for each, so that nothing of a failed one is left.
struct Pass {
  Pass(Ready ready, void* context) : ready(ready), context(context) {}

  Ready ready;
  void* context;
  uint64_t bytes = 0;
  Meter meter;
  // NCCL's: the device does them, and its clock tells how long.
  std::vector<c10::intrusive_ptr<c10d::Work>> on_device;
  std::optional<c10::Event> computed;
};

struct Link {
  BridgeGroup group;
  bool bf16;
  std::shared_ptr<Pass> pass;
};

// Sums a bucket over ranks as it is, or rounded to bf16. c10d's own hooks divide by the number of ranks in a pass over
// all gradients; here the loss is divided instead.
class Sum : public c10d::CommHookInterface {
 public:
  explicit Sum(std::shared_ptr<Link> link) : link_(std::move(link)) {}

  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override {
    const std::shared_ptr<Pass> pass = link_->pass;
    std::vector<at::Tensor> message{link_->bf16 ? bucket.getBuffer().to(at::kBFloat16) : bucket.getBuffer()};
    pass->bytes += message[0].nbytes();
    if (!link_->group.cuda) pass->meter.sent();
    const auto work = link_->group.backend->allreduce(message);
    auto future = work->getFuture();
    if (link_->group.cuda) {
      pass->on_device.push_back(work);
    } else {
      future->addCallback([pass](c10::ivalue::Future&) { pass->meter.arrived(); });
    }
    if (bucket.isLast()) all_sent(*pass);
    return future;
  }

  at::Tensor parseHookResult(const c10::IValue& result) override {
    return c10d::detail::parseCppCommHookResult(result);
  }

 private:
  // Every gradient of this rank is there.
  void all_sent(Pass& pass) const {
    if (link_->group.cuda) {
      const c10::impl::VirtualGuardImpl device(at::kCUDA);
      pass.computed.emplace(at::kCUDA);
      pass.computed->record(device.getStream(*link_->group.cuda));
    }
    pass.ready(pass.context);
  }

  std::shared_ptr<Link> link_;
};

// The host's time from the end of the computation to the end of the last message, and the device's time in messages.
void read_device(Pass& pass, Reduction& into) {
  if (pass.computed) pass.computed->synchronize();
  const auto computed = Clock::now();
  for (const auto& work : pass.on_device) bridge::finish_on_device(work);
  into.exposed_seconds = seconds(Clock::now() - computed);
  for (const auto& work : pass.on_device) into.busy_seconds += work->getDuration() / 1000.0;
}

// c10d warns of a search for unused parameters that finds none, which is how it should be.
struct Quiet : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

void backward(const at::Tensor& loss, double divisor) {
  torch::autograd::backward({loss}, {at::full_like(loss, 1.0 / divisor)});
}

} // namespace

struct BridgeReducer {
  std::shared_ptr<Link> link;
  std::unique_ptr<c10d::Reducer> reducer;
  int ranks;
};

extern "C" {

// Every rank gives parameters of the same shapes in the same order, which is the order in which buckets travel.
int bridge_reducer_open(
    const BridgeGroup* group,
    const at::Tensor* const* parameters,
    size_t count,
    int64_t bucket_bytes,
    int bf16,
    BridgeReducer** out,
    char** message) {
  return bridge::guarded(message, [&] {
    std::vector<at::Tensor> params;
    for (size_t i = 0; i < count; ++i) params.push_back(*parameters[i]);
    const auto& backend = group->backend;
    auto process_group = c10::make_intrusive<c10d::ProcessGroup>(backend->getRank(), backend->getSize());
    TORCH_CHECK(count > 0, "a reducer without parameters");
    process_group->setBackend(
        params[0].device().type(),
        group->cuda ? c10d::ProcessGroup::BackendType::NCCL : c10d::ProcessGroup::BackendType::GLOO, backend);
    if (group->cuda) backend->enableCollectivesTiming();
    c10d::verify_params_across_processes(process_group, params, std::nullopt);
    // A small first bucket: the first message starts early.
    const int64_t first = std::min<int64_t>(bucket_bytes, c10d::kDefaultFirstBucketBytes);
    auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(
        params, {static_cast<size_t>(first), static_cast<size_t>(bucket_bytes)}));
    // Buckets are never built anew from the order of a first pass: where a number lies in its message decides in which
    // order Gloo and NCCL sum it, and a resumed run must sum as the one before did.
    auto reducer = std::make_unique<c10d::Reducer>(
        params, std::move(buckets), process_group, std::vector<bool>(count, false), bucket_bytes,
        /*find_unused_parameters=*/true, /*gradient_as_bucket_view=*/true,
        std::unordered_map<size_t, std::string>(), first, /*skip_all_reduce_unused_params=*/false,
        /*use_python_reducer=*/false, std::vector<int64_t>());
    auto link = std::make_shared<Link>(Link{*group, bf16 != 0, nullptr});
    reducer->register_comm_hook(std::make_unique<Sum>(link));
    *out = new BridgeReducer{std::move(link), std::move(reducer), backend->getSize()};
  });
}

void bridge_reducer_free(BridgeReducer* reducer) {
  char* message = nullptr;
  bridge::guarded(&message, [&] { delete reducer; });
  std::free(message);
}

// The backward pass of a micro-batch that others follow: gradients add up on this rank.
int bridge_reducer_accumulate(const BridgeReducer* reducer, const at::Tensor* loss, char** message) {
  return bridge::guarded(message, [&] { backward(*loss, reducer->ranks); });
}

// The backward pass of a step's last micro-batch. `ready` is called once, when this rank has only to wait for others.
int bridge_reducer_reduce(
    const BridgeReducer* reducer, const at::Tensor* loss, Ready ready, void* context, Reduction* out, char** message) {
  return bridge::guarded(message, [&] {
    auto pass = std::make_shared<Pass>(ready, context);
    reducer->link->pass = pass;
    reducer->reducer->prepare_for_forward();
    {
      Quiet quiet;
      const c10::WarningUtils::WarningHandlerGuard guard(&quiet);
      reducer->reducer->prepare_for_backward({*loss});
    }
    backward(*loss, reducer->ranks);
    *out = Reduction{pass->bytes, 0.0, 0.0};
    if (reducer->link->group.cuda) {
      read_device(*pass, *out);
    } else {
      pass->meter.read(*out);
    }
  });
}

} // extern "C"
