// CUDA's words before a declaration. The headers of the CUDA run-time define them for the host; here they mean the device.
#pragma once
#undef __shared__
#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __launch_bounds__
#undef __cluster_dims__
#undef __grid_constant__
#undef __managed__
#undef __forceinline__
#undef __noinline__

#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __global__ __attribute__((noinline))
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
// One block runs at a time, or its variables are swapped in and out. So a static variable is shared by a block.
#define __shared__ static __attribute__((section("emu_shared")))

// For what reads the engine's own memory: no hooks of race checks.
#define EMU_UNCHECKED __attribute__((no_sanitize("thread")))
#pragma GCC diagnostic ignored "-Wattributes"

#define threadIdx emu_threadIdx
#define blockIdx emu_blockIdx
#define blockDim emu_blockDim
#define gridDim emu_gridDim
#define warpSize 32
