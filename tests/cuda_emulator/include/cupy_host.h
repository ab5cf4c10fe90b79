// cuda_host.h, and the headers that CuPy's own kernels include.
#pragma once
#include "cuda_host.h"
#include <cupy/complex.cuh>
#include <cupy/carray.cuh>
#include <cupy/atomics.cuh>
#include <cupy/math_constants.h>
