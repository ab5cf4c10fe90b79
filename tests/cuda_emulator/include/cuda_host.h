// CUDA C++'s device side for g++: what a kernel's source needs so that it can be compiled as host code.
#pragma once
#include <assert.h>
#include <float.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <algorithm>
#include <cmath>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector_functions.h>
#include <vector_types.h>
#include "../engine/interface.h"
#include "qualifiers.h"
#include "threads.h"
#include "arithmetic.h"

// How the engine calls a kernel with an array of pointers to its arguments.
template <class... A> struct EmuSignature {
    template <void (*Kernel)(A...), size_t... I>
    EMU_UNCHECKED static void call(void** values, std::index_sequence<I...>) {
        (void)values;
        Kernel(*(std::remove_cv_t<std::remove_reference_t<A>>*)values[I]...);
    }
    template <void (*Kernel)(A...)> EMU_UNCHECKED static void entry(void** values) {
        call<Kernel>(values, std::index_sequence_for<A...>());
    }
    static constexpr size_t sizes[sizeof...(A) + 1] = {sizeof(A)...};
    static constexpr unsigned count = sizeof...(A);
};
template <class... A> EmuSignature<A...> emu_signature(void (*)(A...));

// NVRTC has no host headers, so a kernel must not use these.
#undef INFINITY
#undef NAN
