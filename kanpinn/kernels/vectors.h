// Vectors of numbers, whatever the processor's registers hold, and what is done with them on tiles of
// points.

#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

// Whole cache lines: a vector's numbers that lie in two of them are read twice.
template <typename T>
struct Aligned {
    typedef T value_type;
    static constexpr std::align_val_t LINE{64};

    Aligned() = default;
    template <typename U>
    Aligned(const Aligned<U>&) {}

    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), LINE)); }
    void deallocate(T* at, size_t) { ::operator delete(at, LINE); }
    template <typename U>
    bool operator==(const Aligned<U>&) const { return true; }
    template <typename U>
    bool operator!=(const Aligned<U>&) const { return false; }
};

template <typename T>
using Numbers = std::vector<T, Aligned<T>>;

constexpr int TILE = 32;  // points worked on together: the chain rule's vectors run over them

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, REGISTERS = 32;
#else
constexpr int VECTOR_BYTES = 32, REGISTERS = 16;  // without AVX two registers make a vector
#endif

template <typename T>
constexpr int LANES = VECTOR_BYTES / int(sizeof(T));

// N numbers in one or several registers.
template <typename T, int N>
struct Vector {
    typedef T Type __attribute__((vector_size(N * sizeof(T)), aligned(sizeof(T)), may_alias));
};

template <typename T>
using Wide = typename Vector<T, LANES<T>>::Type;

template <typename V, typename T>
inline V load(const T* from) {
    return *reinterpret_cast<const V*>(from);
}

template <typename V, typename T>
inline void store(T* to, V value) {
    *reinterpret_cast<V*>(to) = value;
}

template <typename T>
inline Wide<T> all(T value) {
    return value - Wide<T>{};  // a sum with zeros would be computed: -0 is not kept by it
}

// Has a number that is used several times stay in a register: compilers fold a load into each of its
// uses, and run out of registers over it.
template <typename V>
inline V held(V value) {
#if defined(__AVX__)
    asm("" : "+v"(value));
#endif
    return value;
}

// The row below. Left to themselves, compilers keep the places of all rows and vectors in registers,
// of which there are too few.
template <typename T>
inline T* next_row(T* row, int64_t width) {
    row += width;
#if defined(__AVX__)
    asm("" : "+r"(row));
#endif
    return row;
}

// target[t] = value(t) or target[t] += value(t) for a tile, whose values are vectors.
template <typename T, typename Value>
inline void assign(T* target, Value value) {
    for (int t = 0; t < TILE; t += LANES<T>) store<Wide<T>>(target + t, value(t));
}

template <typename T, typename Value>
inline void add(T* target, Value value) {
    assign(target, [&](int t) { return load<Wide<T>>(target + t) + value(t); });
}

template <int N>
using Number = std::integral_constant<int, N>;

// Calls visit(Number<N>, start) for groups of N of `count` things, then of N - 1 of what is left, ..
template <int N, typename Visit>
inline void in_groups(int64_t count, Visit&& visit, int64_t start = 0) {
    for (; count - start >= N; start += N) visit(Number<N>{}, start);
    if constexpr (N > 1) in_groups<N - 1>(count, visit, start);
}

// Numbers I of a vector: those of a, then those of b.
template <typename T, int... I>
inline Wide<T> pick(Wide<T> a, Wide<T> b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, I...);
#else
    typedef std::conditional_t<sizeof(T) == 8, int64_t, int32_t> Index;
    return __builtin_shuffle(a, b, typename Vector<Index, LANES<T>>::Type{I...});
#endif
}

// Of two vectors of sums, each in WIDTH parts beside each other: one of all sums, in half as many.
template <typename T, int WIDTH, int... I>
inline Wide<T> halved(Wide<T> a, Wide<T> b, std::integer_sequence<int, I...>) {
    constexpr int HALF = WIDTH / 2;  // the place of part I % HALF of sum I / HALF
    return pick<T>(a, b, std::integer_sequence<int, (I / HALF * WIDTH + I % HALF)...>{}) +
           pick<T>(a, b, std::integer_sequence<int, (I / HALF * WIDTH + I % HALF + HALF)...>{});
}

// The sums of COUNT vectors, a power of two, beside each other.
template <typename T, int COUNT, int WIDTH = LANES<T>>
inline Wide<T> sums(const Wide<T>* v) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES<T>>{};
    if constexpr (WIDTH == 1) {
        return v[0];
    } else if constexpr (COUNT == 1) {
        const Wide<T> half = halved<T, WIDTH>(v[0], v[0], lanes);
        return sums<T, 1, WIDTH / 2>(&half);
    } else {
        Wide<T> half[COUNT / 2];
        for (int i = 0; i < COUNT / 2; ++i)
            half[i] = halved<T, WIDTH>(v[2 * i], v[2 * i + 1], lanes);
        return sums<T, COUNT / 2, WIDTH / 2>(half);
    }
}

// Rows of LANES vectors become columns: of 2 x 2 blocks, of 4 x 4 blocks, ..
template <typename T, int STEP, int... I>
inline void transpose(Wide<T>* v, std::integer_sequence<int, I...> lanes) {
    constexpr int N = LANES<T>;
    for (int i = 0; i < N; ++i) {
        if (i & STEP) continue;
        const Wide<T> a = v[i], b = v[i + STEP];
        v[i] = pick<T>(a, b, std::integer_sequence<int, (I & STEP ? N + I - STEP : I)...>{});
        v[i + STEP] = pick<T>(a, b, std::integer_sequence<int, (I & STEP ? N + I : I + STEP)...>{});
    }
    if constexpr (2 * STEP < N) transpose<T, 2 * STEP>(v, lanes);
}

// to[c, r] = from[r, c], with given distances from row to row.
template <typename T>
void transpose(const T* from, int64_t from_row, int64_t rows, int64_t columns, T* to,
               int64_t to_row) {
    constexpr int N = LANES<T>;
    const int64_t whole_rows = rows / N * N, whole_columns = columns / N * N;
    for (int64_t c = 0; c < whole_columns; c += N)
        for (int64_t r = 0; r < whole_rows; r += N) {
            Wide<T> v[N];
            for (int i = 0; i < N; ++i) v[i] = load<Wide<T>>(from + (r + i) * from_row + c);
            transpose<T, 1>(v, std::make_integer_sequence<int, N>{});
            for (int i = 0; i < N; ++i) store<Wide<T>>(to + (c + i) * to_row + r, v[i]);
        }
    auto one_by_one = [&](int64_t from_r, int64_t from_c, int64_t last_r, int64_t last_c) {
        for (int64_t r = from_r; r < last_r; ++r)
            for (int64_t c = from_c; c < last_c; ++c) to[c * to_row + r] = from[r * from_row + c];
    };
    one_by_one(0, whole_columns, whole_rows, columns);
    one_by_one(whole_rows, 0, rows, columns);
}

// 1 / k! for k = 0 .. COUNT - 1.
template <typename T, int COUNT>
struct InverseFactorials {
    T numbers[COUNT];

    constexpr InverseFactorials() : numbers() {
        numbers[0] = 1;
        for (int k = 1; k < COUNT; ++k) numbers[k] = numbers[k - 1] / k;
    }
};

// Of the exponential function for tanh: the terms of expm1 up to ln(2) / 2, ln(2) in two parts of
// which a multiple of the first is exact, and from where on tanh is one.
template <typename T>
struct Exponential;

template <>
struct Exponential<double> {
    typedef int64_t Bits;
    static constexpr int TERMS = 13, MANTISSA = 52, BIAS = 1023;
    static constexpr double LN2 = 0x1.62e42feep-1, LN2_REST = 0x1.a39ef35793c76p-33, LAST = 20;
};

template <>
struct Exponential<float> {
    typedef int32_t Bits;
    static constexpr int TERMS = 7, MANTISSA = 23, BIAS = 127;
    static constexpr float LN2 = 0x1.62e4p-1f, LN2_REST = 0x1.7f7d1cp-20f, LAST = 10;
};

// tanh |x| = -t / (t + 2), where t = exp(-2 |x|) - 1 = 2^n (expm1(f) + 1) - 1, f = -2 |x| - n ln(2).
template <typename T>
inline Wide<T> hyperbolic_tangent(Wide<T> x) {
    using E = Exponential<T>;
    typedef typename Vector<typename E::Bits, LANES<T>>::Type Bits;
    constexpr T ROUND = T(1.5) * (typename E::Bits(1) << E::MANTISSA);  // the last bit counts ones
    Wide<T> y = x < 0 ? -x : x;
    y = T(-2) * (y > E::LAST ? all<T>(E::LAST) : y);  // NaN stays
    const Wide<T> rounded = y * T(1.4426950408889634) + ROUND, n = rounded - ROUND;
    const Wide<T> f = (y - n * E::LN2) - n * E::LN2_REST;
    static constexpr InverseFactorials<T, E::TERMS + 1> factors;
    Wide<T> series = all(factors.numbers[E::TERMS]);
    for (int k = E::TERMS - 1; k > 1; --k) series = series * f + factors.numbers[k];
    const Wide<T> power = (Wide<T>)(((Bits)rounded << E::MANTISSA) +
                                    (typename E::Bits(E::BIAS) << E::MANTISSA));
    const Wide<T> t = power * (f + f * f * series) + (power - 1), result = -t / (t + 2);
    return x < 0 ? -result : result;
}

template <typename T>
inline void hyperbolic_tangent(const T* x, T* result) {
    for (int t = 0; t < TILE; t += LANES<T>)
        store<Wide<T>>(result + t, hyperbolic_tangent<T>(load<Wide<T>>(x + t)));
}

}  // namespace
