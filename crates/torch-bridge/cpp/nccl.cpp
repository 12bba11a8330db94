// NCCL process group; compiled where the libtorch at hand has CUDA.

#include "failure.h"
#include "group.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

extern "C" int bridge_nccl_open(
    const BridgeStore* store,
    const char* prefix,
    int rank,
    int world_size,
    int device_index,
    uint64_t op_timeout_ms,
    BridgeGroup** out,
    char** message) {
  return bridge::guarded(message, [&] {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(op_timeout_ms);
    auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(
        c10::make_intrusive<c10d::PrefixStore>(prefix, store->store), rank, world_size, options);
    *out = new BridgeGroup{backend, at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device_index))};
  });
}
