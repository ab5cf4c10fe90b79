// Barriers, fences, warp operations and atomics. __LINE__ goes along, so that a fault can be placed.
#pragma once

#define __syncthreads() emu_barrier(__LINE__, 0, emu_vote_count)
#define __syncthreads_count(p) emu_barrier(__LINE__, (p), emu_vote_count)
#define __syncthreads_and(p) emu_barrier(__LINE__, (p), emu_vote_and)
#define __syncthreads_or(p) emu_barrier(__LINE__, (p), emu_vote_or)
#define __trap() emu_trap("__trap", __LINE__)
#undef assert
#define assert(e) ((e) ? (void)0 : emu_trap("assertion failed: " #e, __LINE__))
inline void __threadfence() { emu_fence(); }
inline void __threadfence_system() { emu_fence(); }
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}
inline long long clock64() { return 0; }

// Values travel between lanes as 64 bits.
template <class T> unsigned long long emu_bits(T x) {
    static_assert(sizeof(T) <= 8, "a value of a warp operation has at most 64 bits");
    unsigned long long bits = 0;
    memcpy(&bits, &x, sizeof x);
    return bits;
}
template <class T> EMU_UNCHECKED T emu_from(unsigned long long bits) {
    T x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// Shuffles. `inside`: whether the lane has a source; if not it keeps its own value.
template <class T> EMU_UNCHECKED T emu_shuffle(int line, unsigned mask, T value, unsigned source, bool inside) {
    const unsigned long long* values = emu_warp(line, mask, emu_bits(value), 0);
    if (!inside) return value;
    if (!(mask & emu_existing_lanes() & (1u << source))) emu_trap("a shuffle reads a lane that is not in the mask", line);
    return emu_from<T>(values[source]);
}
inline unsigned emu_segment(int width) { return emu_lane() & ~(width - 1); }
template <class T> T emu_shfl(int line, unsigned mask, T value, int source, int width = 32) {
    return emu_shuffle(line, mask, value, emu_segment(width) + (source & (width - 1)), true);
}
template <class T> T emu_shfl_up(int line, unsigned mask, T value, unsigned distance, int width = 32) {
    return emu_shuffle(line, mask, value, emu_lane() - distance, emu_lane() - emu_segment(width) >= distance);
}
template <class T> T emu_shfl_down(int line, unsigned mask, T value, unsigned distance, int width = 32) {
    unsigned source = emu_lane() + distance;
    return emu_shuffle(line, mask, value, source, source < emu_segment(width) + width);
}
template <class T> T emu_shfl_xor(int line, unsigned mask, T value, int bits, int width = 32) {
    unsigned source = emu_lane() ^ bits;
    return emu_shuffle(line, mask, value, source, source < emu_segment(width) + width);
}
#define __shfl_sync(...) emu_shfl(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) emu_shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) emu_shfl_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) emu_shfl_xor(__LINE__, __VA_ARGS__)

// Votes and reductions. Of these operations only __syncwarp orders memory.
EMU_UNCHECKED inline unsigned emu_ballot(int line, unsigned mask, int predicate) {
    const unsigned long long* values = emu_warp(line, mask, predicate != 0, 0);
    unsigned present = mask & emu_existing_lanes(), result = 0;
    for (int i = 0; i < 32; ++i)
        if (present >> i & 1 && values[i]) result |= 1u << i;
    return result;
}
inline bool emu_all(int line, unsigned mask, int predicate) {
    return emu_ballot(line, mask, predicate) == (mask & emu_existing_lanes());
}
template <class T, class F> EMU_UNCHECKED T emu_reduce(int line, unsigned mask, T x, F combine) {
    const unsigned long long* values = emu_warp(line, mask, emu_bits(x), 0);
    unsigned present = mask & emu_existing_lanes();
    bool first = true;
    T result = x;
    for (int i = 0; i < 32; ++i) {
        if (!(present >> i & 1)) continue;
        result = first ? emu_from<T>(values[i]) : combine(result, emu_from<T>(values[i]));
        first = false;
    }
    return result;
}
inline void emu_syncwarp(int line, unsigned mask = 0xffffffffu) { emu_warp(line, mask, 0, 1); }
#define __syncwarp(...) emu_syncwarp(__LINE__ __VA_OPT__(,) __VA_ARGS__)
#define __ballot_sync(mask, p) emu_ballot(__LINE__, mask, p)
#define __any_sync(mask, p) (emu_ballot(__LINE__, mask, p) != 0)
#define __all_sync(mask, p) emu_all(__LINE__, mask, p)
#define __reduce_add_sync(mask, x) emu_reduce(__LINE__, mask, x, [](auto a, auto b) { return a + b; })
#define __reduce_max_sync(mask, x) emu_reduce(__LINE__, mask, x, [](auto a, auto b) { return a > b ? a : b; })
#define __reduce_min_sync(mask, x) emu_reduce(__LINE__, mask, x, [](auto a, auto b) { return a < b ? a : b; })
#define __reduce_or_sync(mask, x) emu_reduce(__LINE__, mask, x, [](auto a, auto b) { return a | b; })
#define __reduce_and_sync(mask, x) emu_reduce(__LINE__, mask, x, [](auto a, auto b) { return a & b; })
inline unsigned __activemask() { return emu_live_lanes(); }  // a GPU may name fewer lanes

// Atomics. One thread runs at a time, so they are plain operations that the checks know of.
template <class T> struct EmuSame {
    using type = T;
};
template <class T, class F> EMU_UNCHECKED T emu_atomically(T* p, F next) {
    emu_atomic((void*)p, sizeof *p);
    T old = *p;
    *p = next(old);
    return old;
}
#define EMU_ATOMIC(name, expression) \
    template <class T> T name(T* p, typename EmuSame<T>::type v) { \
        return emu_atomically(p, [v](T old) -> T { return expression; }); \
    }
EMU_ATOMIC(atomicAdd, T(old + v))
EMU_ATOMIC(atomicSub, T(old - v))
EMU_ATOMIC(atomicExch, ((void)old, v))
EMU_ATOMIC(atomicMin, v < old ? v : old)
EMU_ATOMIC(atomicMax, v > old ? v : old)
EMU_ATOMIC(atomicAnd, T(old & v))
EMU_ATOMIC(atomicOr, T(old | v))
EMU_ATOMIC(atomicXor, T(old ^ v))
EMU_ATOMIC(atomicInc, old >= v ? T(0) : T(old + 1))
EMU_ATOMIC(atomicDec, old == 0 || old > v ? v : T(old - 1))
template <class T> T atomicCAS(T* p, typename EmuSame<T>::type compare, typename EmuSame<T>::type v) {
    return emu_atomically(p, [=](T old) { return old == compare ? v : old; });
}
