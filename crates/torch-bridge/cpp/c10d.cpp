// Rendezvous store, Gloo process group and the collectives of either backend.

#include "failure.h"
#include "group.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace {

// c10d's own `abort` does nothing for Gloo: what is under way would wait for a peer that has gone on without us. Gloo's
// `closeConnections` tells the peers only: what waits here for a peer that lives waits on, and with it whoever joins the
// backend's threads. So each connection is ended as Gloo ends it where it fails. Its transport is TCP, with or without TLS.
class Gloo : public c10d::ProcessGroupGloo {
 public:
  using c10d::ProcessGroupGloo::ProcessGroupGloo;

  void abort() override {
    for (const auto& context : contexts_) {
      for (int rank = 0; rank < getSize(); ++rank) {
        auto* pair = context->getPair(rank).get();
        if (pair == nullptr) continue;
        reinterpret_cast<gloo::transport::tcp::Pair*>(pair)->signalExceptionExternal("this rank has left");
      }
    }
  }
};

} // namespace

namespace bridge {

// An all-gather as one broadcast from each rank, straight into its place. c10d's own for Gloo receives all parts in a tensor
// that its thread allocates each time and copies; between small things that live longer, each may lie elsewhere than
// the last, so that a process grew by 20 of them.
static std::vector<c10::intrusive_ptr<c10d::Work>> broadcast_parts(
    const BridgeGroup& group, const at::Tensor& gathered, const at::Tensor& own) {
  const int ranks = group.backend->getSize();
  const auto parts = gathered.view({ranks, -1});
  parts[group.backend->getRank()].copy_(own.view(-1));
  std::vector<c10::intrusive_ptr<c10d::Work>> works;
  for (int rank = 0; rank < ranks; ++rank) {
    std::vector<at::Tensor> part{parts[rank]};
    c10d::BroadcastOptions options;
    options.rootRank = rank;
    works.push_back(group.backend->broadcast(part, options));
  }
  return works;
}

} // namespace bridge

extern "C" {

// `listen_fd` >= 0: this process serves the store on that bound socket, which the store then owns; all of `world_size`
// processes must come within the timeout. Otherwise joins the one at `host`:`port`.
int bridge_store_open(
    const char* host,
    uint16_t port,
    int listen_fd,
    size_t world_size,
    uint64_t timeout_ms,
    BridgeStore** out,
    char** message) {
  return bridge::guarded(message, [&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = listen_fd >= 0;
    options.numWorkers = world_size;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    if (listen_fd >= 0) options.masterListenFd = listen_fd;
    *out = new BridgeStore{c10::make_intrusive<c10d::TCPStore>(host, options)};
  });
}

void bridge_store_free(BridgeStore* store) {
  delete store;
}

// `host` names the address of this machine that the peers reach; Gloo listens there and nowhere else.
int bridge_gloo_open(
    const BridgeStore* store,
    const char* prefix,
    int rank,
    int world_size,
    const char* host,
    uint64_t init_timeout_ms,
    uint64_t op_timeout_ms,
    BridgeGroup** out,
    char** message) {
  return bridge::guarded(message, [&] {
    auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::milliseconds(init_timeout_ms));
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(host));
    auto backend = c10::make_intrusive<Gloo>(
        c10::make_intrusive<c10d::PrefixStore>(prefix, store->store), rank, world_size, options);
    // Through the base class: the call goes to libtorch's vtable, where the real gloo::Context is known.
    c10::intrusive_ptr<c10d::Backend> base = backend;
    base->setTimeout(std::chrono::milliseconds(op_timeout_ms));
    *out = new BridgeGroup{std::move(base), std::nullopt};
  });
}

// Ends what is under way, here and on peers that wait for this rank; the group is of no more use.
void bridge_group_abort(const BridgeGroup* group) {
  char* message = nullptr;
  bridge::guarded(&message, [&] { group->backend->abort(); });
  std::free(message);
}

// Joins the backend's threads. What they have in flight ends first, at the latest with the group's timeout.
void bridge_group_free(BridgeGroup* group) {
  char* message = nullptr;
  bridge::guarded(&message, [&] { delete group; });
  std::free(message);
}

int bridge_all_reduce_sum(const BridgeGroup* group, const at::Tensor* tensor, char** message) {
  return bridge::guarded(message, [&] {
    std::vector<at::Tensor> tensors{*tensor};
    bridge::finish(*group, group->backend->allreduce(tensors));
  });
}

int bridge_all_gather(const BridgeGroup* group, const at::Tensor* output, const at::Tensor* input, char** message) {
  return bridge::guarded(message, [&] {
    at::Tensor gathered = *output, own = *input;
    bridge::finish(*group, group->backend->_allgather_base(gathered, own));
  });
}

// As `bridge_all_gather`, but returns while the message is under way.
int bridge_gather_start(
    const BridgeGroup* group, const at::Tensor* output, const at::Tensor* input, BridgeGathering** out, char** message) {
  return bridge::guarded(message, [&] {
    at::Tensor gathered = *output, own = *input;
    auto works = group->cuda ? std::vector{group->backend->_allgather_base(gathered, own)}
                             : bridge::broadcast_parts(*group, gathered, own);
    *out = new BridgeGathering{*group, std::move(works), std::move(own)};
  });
}

int bridge_gather_finish(const BridgeGathering* gathering, char** message) {
  return bridge::guarded(message, [&] {
    for (const auto& work : gathering->works) bridge::finish(gathering->group, work);
  });
}

// One that is not finished goes on without us: the work holds its tensors itself.
void bridge_gather_free(BridgeGathering* gathering) {
  char* message = nullptr;
  bridge::guarded(&message, [&] { delete gathering; });
  std::free(message);
}

int bridge_broadcast(const BridgeGroup* group, const at::Tensor* tensor, int root, char** message) {
  return bridge::guarded(message, [&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    bridge::finish(*group, group->backend->broadcast(tensors, options));
  });
}

// Rank r's `input_rows[q]` rows go to rank q, behind those for the ranks before it; what comes lies in rank order.
int bridge_all_to_all(
    const BridgeGroup* group,
    const at::Tensor* output,
    const at::Tensor* input,
    const int64_t* output_rows,
    const int64_t* input_rows,
    char** message) {
  return bridge::guarded(message, [&] {
    at::Tensor received = *output, own = *input;
    const int ranks = group->backend->getSize();
    std::vector<int64_t> from(output_rows, output_rows + ranks), to(input_rows, input_rows + ranks);
    bridge::finish(*group, group->backend->alltoall_base(received, own, from, to));
  });
}

int bridge_barrier(const BridgeGroup* group, char** message) {
  return bridge::guarded(message, [&] {
    c10d::BarrierOptions options;
    options.device = group->cuda;
    if (group->cuda) options.device_ids = {group->cuda->index()};
    bridge::finish(*group, group->backend->barrier(options));
  });
}

} // extern "C"
