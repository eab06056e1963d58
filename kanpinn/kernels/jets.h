// Jets of a tile of points: the chain rule, its adjoint, and the squash in front of the basis.

#pragma once

#include <cstring>

#include "vectors.h"

namespace {

constexpr int MOST_FACTORS = 4;
constexpr int MOST_ORDERS = 6;  // b, b', .. b^(5)

// One term of the chain rule: count * f^(m)(z) * the product of the factors' components, in pair
// number `pair` of all (component, m); `begins` says that it is the pair's first.
struct Term {
    int32_t pair, begins, count, n_factors;
    int32_t factors[MOST_FACTORS];
};

// Everything but the numbers: sizes, and the chain rule's terms.
struct Shape {
    int64_t points, channels, outputs, features;
    int32_t components, derivatives, n_pairs, n_terms, squash, general;
    const Term* terms;
    const int32_t* pair_component;  // (n_pairs,)
    const int32_t* pair_m;          // (n_pairs,)
};

// Derivatives of tanh as polynomials in its value.
template <typename T>
inline void tanh_derivatives(const T* s, int highest, T (*f)[TILE]) {
    for (int t = 0; t < TILE; t += LANES<T>) {
        const Wide<T> v = load<Wide<T>>(s + t), w = 1 - v * v;
        auto keep = [&](int m, Wide<T> value) { store<Wide<T>>(f[m] + t, value); };
        keep(0, v);
        keep(1, w);
        if (highest > 1) keep(2, -2 * v * w);
        if (highest > 2) keep(3, w * (6 * v * v - 2));
        if (highest > 3) keep(4, v * w * (16 - 24 * v * v));
        if (highest > 4) keep(5, w * (16 + v * v * (120 * v * v - 120)));
    }
}

// target = count * first * the product of n other rows, or added to it.
template <typename T>
inline void multiply(T* target, bool adds, T count, const T* first, const T* const* others, int n) {
    auto put = [&](auto value) { adds ? add(target, value) : assign(target, value); };
    auto row = [&](const T* from, int t) { return load<Wide<T>>(from + t); };
    const T *a = others[0], *b = others[1], *c = others[2];
    switch (n) {
        case 0: return put([&](int t) { return count * row(first, t); });
        case 1: return put([&](int t) { return count * row(first, t) * row(a, t); });
        case 2: return put([&](int t) { return count * row(first, t) * row(a, t) * row(b, t); });
        default:
            put([&](int t) { return count * row(first, t) * row(a, t) * row(b, t) * row(c, t); });
    }
}

// The polynomials g of a tile, pair by pair: sums of the terms.
template <typename T>
inline void chain(const Shape& shape, const T (*z)[TILE], T (*g)[TILE]) {
    for (int number = 0; number < shape.n_terms; ++number) {
        const Term& term = shape.terms[number];
        const T* others[MOST_FACTORS] = {};
        for (int f = 1; f < term.n_factors; ++f) others[f - 1] = z[term.factors[f]];
        multiply(g[term.pair], !term.begins, T(term.count), z[term.factors[0]], others,
                 term.n_factors - 1);
    }
}

// Adjoint of z of what the chain rule composes. `slopes[pair]` is the adjoint's product with f^(m)
// of the pair, `next[pair]` that with f^(m + 1), `value` that of the value with f'.
template <typename T>
inline void chain_adjoint(const Shape& shape, const T (*z)[TILE], const T (*g)[TILE],
                          const T (*slopes)[TILE], const T (*next)[TILE], const T* value,
                          T (*result)[TILE]) {
    std::memset(result[0], 0, sizeof(T) * TILE * shape.components);
    assign(result[0], [&](int t) {
        Wide<T> sum = load<Wide<T>>(value + t);
        for (int pair = 0; pair < shape.n_pairs; ++pair)
            sum += load<Wide<T>>(next[pair] + t) * load<Wide<T>>(g[pair] + t);
        return sum;
    });
    for (int number = 0; number < shape.n_terms; ++number) {
        const Term& term = shape.terms[number];
        for (int f = 0; f < term.n_factors; ++f) {
            const T* others[MOST_FACTORS] = {};
            int n = 0;
            for (int other = 0; other < term.n_factors; ++other)
                if (other != f) others[n++] = z[term.factors[other]];
            multiply(result[term.factors[f]], true, T(term.count), slopes[term.pair], others, n);
        }
    }
}

// A tile's jets in as many channels as a cache line holds, with the points last.
template <typename T>
struct Channels {
    using Row = T[TILE];
    static constexpr int MOST = 64 / sizeof(T);
    int components;
    Numbers<T> numbers;  // (MOST, components, TILE)

    explicit Channels(int components)
        : components(components), numbers(size_t(MOST) * components * TILE, T(0)) {}

    Row* at(int64_t p) {
        return reinterpret_cast<Row*>(numbers.data() + p % MOST * components * TILE);
    }

    // Components k of `array` (components, points, channels) of a channel and those beside it.
    template <typename U, typename Visit>
    void in_array(const Shape& shape, U* array, int64_t start, int64_t p, Visit visit) {
        const int64_t begin = p / MOST * MOST, left = shape.channels - begin;
        for (int k = 0; k < components; ++k)
            visit(array + (k * shape.points + start) * shape.channels + begin,
                  numbers.data() + k * TILE, left < MOST ? left : MOST);
    }

    // The jets of a channel; they are read when it is the first of a line.
    Row* read(const Shape& shape, const T* array, int64_t start, int count, int64_t p) {
        if (p % MOST == 0)
            in_array(shape, array, start, p, [&](const T* from, T* to, int64_t width) {
                transpose(from, shape.channels, count, width, to, int64_t(components) * TILE);
            });
        return at(p);
    }

    // They are written when a channel is the last of a line.
    void write(const Shape& shape, T* array, int64_t start, int count, int64_t p) {
        if ((p + 1) % MOST != 0 && p + 1 != shape.channels) return;
        in_array(shape, array, start, p, [&](T* to, const T* from, int64_t width) {
            transpose(from, int64_t(components) * TILE, width, count, to, shape.channels);
        });
    }
};

// Scratch of a tile that depends on the number of components.
template <typename T>
struct Scratch {
    using Row = T[TILE];
    Channels<T> inputs, inputs_adjoint;
    Numbers<T> memory;
    Row *inner, *squashed, *z, *z_adjoint, *g, *inner_g, *slopes, *next;

    explicit Scratch(const Shape& shape)
        : inputs(shape.components), inputs_adjoint(shape.components) {
        const int k = shape.components, pairs = shape.n_pairs;
        memory.assign(size_t(2 * k + 4 * pairs) * TILE, T(0));
        T* at = memory.data();
        auto take = [&at](int rows) {
            Row* result = reinterpret_cast<Row*>(at);
            at += size_t(rows) * TILE;
            return result;
        };
        squashed = take(k), z_adjoint = take(k);
        g = take(pairs), inner_g = take(pairs), slopes = take(pairs), next = take(pairs);
        inner = z = inputs.at(0);
    }
};

// Inputs of one channel: the tile's jets, squashed where the layer does so.
template <typename T>
void read_channel(const Shape& shape, const T* from, int64_t start, int count, int64_t p,
                  Scratch<T>& s) {
    s.inner = s.z = s.inputs.read(shape, from, start, count, p);
    if (shape.squash) {
        alignas(64) T f[MOST_ORDERS][TILE];
        s.z = s.squashed;
        std::memset(s.z, 0, sizeof(T) * TILE * shape.components);
        hyperbolic_tangent(s.inner[0], s.z[0]);
        tanh_derivatives(s.z[0], shape.derivatives > 0 ? shape.derivatives : 1, f);
        chain(shape, s.inner, s.inner_g);
        for (int pair = 0; pair < shape.n_pairs; ++pair) {
            const T* slope = f[shape.pair_m[pair]];
            T* target = s.z[shape.pair_component[pair]];
            add(target, [&](int t) {
                return load<Wide<T>>(slope + t) * load<Wide<T>>(s.inner_g[pair] + t);
            });
        }
    }
    chain(shape, s.z, s.g);
}

// Adjoint of the inputs of one channel from that of the squashed ones.
template <typename T>
void write_channel_adjoint(const Shape& shape, T* to, int64_t start, int count, int64_t p,
                           Scratch<T>& s) {
    T(*result)[TILE] = s.inputs_adjoint.at(p);
    if (!shape.squash) {
        std::memcpy(result, s.z_adjoint, sizeof(T) * TILE * shape.components);
    } else {
        alignas(64) T f[MOST_ORDERS][TILE], value[TILE];
        tanh_derivatives(s.z[0], shape.derivatives + 1, f);
        auto times = [&](T* target, const T* adjoint, const T* slope) {
            assign(target, [&](int t) {
                return load<Wide<T>>(adjoint + t) * load<Wide<T>>(slope + t);
            });
        };
        times(value, s.z_adjoint[0], f[1]);
        for (int pair = 0; pair < shape.n_pairs; ++pair) {
            const int m = shape.pair_m[pair];
            const T* adjoint = s.z_adjoint[shape.pair_component[pair]];
            times(s.slopes[pair], adjoint, f[m]);
            times(s.next[pair], adjoint, f[m + 1]);
        }
        chain_adjoint(shape, s.inner, s.inner_g, s.slopes, s.next, value, result);
    }
    s.inputs_adjoint.write(shape, to, start, count, p);
}

}  // namespace
