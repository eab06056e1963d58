// A spline layer on jets, and its adjoint, point by point with the r B-splines that are not zero.
//
//   y_k[q] = sum_p sum_l  L_k[p, l] C[first(p) + l, q],     L_k = sum_m b^(m)(s) g_{k,m}(z)
//
// for every component k of the jet; g are the polynomials of the chain rule. Nothing but the inputs
// and outputs is ever held for more than a tile of points.

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

constexpr int TILE = 32;  // points worked on together: the chain rule's vectors run over them
constexpr int MOST_FACTORS = 4;
constexpr int MOST_ORDERS = 6;  // b, b', .. b^(5)

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 32;  // two registers
#endif

template <typename T>
constexpr int LANES = VECTOR_BYTES / int(sizeof(T));

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

template <typename T>
struct Knots {
    const T* left;            // (channels, stride): left ends of the intervals, stride = n_max
    const int64_t* last;      // (channels,): number of the last interval
    const int64_t* first;     // (channels,): flat number of the first feature
    const T* scale;           // (channels,): of the local coordinate (x - left) * scale - shift
    const T* shift;           // (channels, stride), or (channels,) where knots are uniform
    const T* tables;          // (channels, stride, order, row), or (order, row): powers, functions
    int64_t stride;
};

template <typename T>
struct Arrays {
    const T* z;        // (components, points, channels)
    const T* squashed; // tanh(z_0) (points, channels), or null
    const T* weights;  // (outputs, features)
    T* y;              // (components, points, outputs)
    const T* y_adjoint;
    T* z_adjoint;       // like z, or null
    T* weights_adjoint; // like weights, or null
    T* tables_adjoint;  // like tables, or null
    T* shift_adjoint;   // like shift, or null
    uint8_t* used;      // (features,): set to 1 for those that are not zero at a point, or null
    const int64_t* columns; // (outputs, features): where in a row its derivative belongs
    T* rows;            // (points, row): of the outer products of y_adjoint and the features, or null
    int64_t row;        // numbers from one row to the next
};

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

// Derivatives of tanh as polynomials in its value.
template <typename T>
inline void tanh_derivatives(const T* s, int highest, T (*f)[TILE]) {
    for (int t = 0; t < TILE; ++t) {
        const T v = s[t], w = 1 - v * v;
        f[0][t] = v;
        f[1][t] = w;
        if (highest > 1) f[2][t] = -2 * v * w;
        if (highest > 2) f[3][t] = w * (6 * v * v - 2);
        if (highest > 3) f[4][t] = v * w * (16 - 24 * v * v);
        if (highest > 4) f[5][t] = w * (16 + v * v * (120 * v * v - 120));
    }
}

// The polynomials g of a tile, pair by pair: sums of the terms.
template <typename T>
inline void chain(const Shape& shape, const T (*z)[TILE], T (*g)[TILE]) {
    for (int number = 0; number < shape.n_terms; ++number) {
        const Term& term = shape.terms[number];
        const T *first = z[term.factors[0]], count = T(term.count);
        T* target = g[term.pair];
        T product[TILE];
        if (term.n_factors == 1) {
            for (int t = 0; t < TILE; ++t) product[t] = count * first[t];
        } else {
            const T* second = z[term.factors[1]];
            for (int t = 0; t < TILE; ++t) product[t] = count * first[t] * second[t];
            for (int f = 2; f < term.n_factors; ++f) {
                const T* factor = z[term.factors[f]];
                for (int t = 0; t < TILE; ++t) product[t] *= factor[t];
            }
        }
        if (term.begins)
            for (int t = 0; t < TILE; ++t) target[t] = product[t];
        else
            for (int t = 0; t < TILE; ++t) target[t] += product[t];
    }
}

// Adjoint of z of what the chain rule composes. `slopes[pair]` is the adjoint's product with f^(m)
// of the pair, `next[pair]` that with f^(m + 1), `value` that of the value with f'.
template <typename T>
inline void chain_adjoint(const Shape& shape, const T (*z)[TILE], const T (*g)[TILE],
                          const T (*slopes)[TILE], const T (*next)[TILE], const T* value,
                          T (*result)[TILE]) {
    std::memset(result[0], 0, sizeof(T) * TILE * shape.components);
    for (int t = 0; t < TILE; ++t) result[0][t] = value[t];
    for (int pair = 0; pair < shape.n_pairs; ++pair)
        for (int t = 0; t < TILE; ++t) result[0][t] += next[pair][t] * g[pair][t];
    for (int number = 0; number < shape.n_terms; ++number) {
        const Term& term = shape.terms[number];
        const T *slope = slopes[term.pair], count = T(term.count);
        if (term.n_factors == 1) {
            T* target = result[term.factors[0]];
            for (int t = 0; t < TILE; ++t) target[t] += count * slope[t];
            continue;
        }
        for (int f = 0; f < term.n_factors; ++f) {
            T product[TILE];
            for (int t = 0; t < TILE; ++t) product[t] = count * slope[t];
            for (int other = 0; other < term.n_factors; ++other) {
                if (other == f) continue;
                const T* factor = z[term.factors[other]];
                for (int t = 0; t < TILE; ++t) product[t] *= factor[t];
            }
            T* target = result[term.factors[f]];
            for (int t = 0; t < TILE; ++t) target[t] += product[t];
        }
    }
}

// Calls visit(q, i) for all outputs q and features i, block by block: whoever transposes stays within
// the cache.
template <typename Visit>
void in_blocks(const Shape& shape, Visit visit) {
    constexpr int64_t BLOCK = 16;
    for (int64_t start = 0; start < shape.features; start += BLOCK) {
        const int64_t end = start + BLOCK < shape.features ? start + BLOCK : shape.features;
        for (int64_t q = 0; q < shape.outputs; ++q)
            for (int64_t i = start; i < end; ++i) visit(q, i);
    }
}

// Rows of a matrix, transposed and padded to whole vectors: (outputs, features) to (features, width).
template <typename T>
std::vector<T> padded_weights(const Shape& shape, const T* weights, int64_t width) {
    std::vector<T> result(shape.features * width, T(0));
    in_blocks(shape, [&](int64_t q, int64_t i) {
        result[i * width + q] = weights[q * shape.features + i];
    });
    return result;
}

template <typename T>
int64_t padded_width(const Shape& shape) {
    return (shape.outputs + LANES<T> - 1) / LANES<T> * LANES<T>;
}

// Scratch of a tile that depends on the number of components.
template <typename T>
struct Scratch {
    using Row = T[TILE];
    std::vector<T> memory;
    Row *inner, *z, *g, *inner_g, *slopes, *next, *z_adjoint, *inner_adjoint;

    explicit Scratch(const Shape& shape) {
        const int k = shape.components, pairs = shape.n_pairs;
        memory.assign(size_t(4 * k + 4 * pairs) * TILE, T(0));
        T* at = memory.data();
        auto take = [&at](int rows) {
            Row* result = reinterpret_cast<Row*>(at);
            at += size_t(rows) * TILE;
            return result;
        };
        inner = take(k), z = take(k), z_adjoint = take(k), inner_adjoint = take(k);
        g = take(pairs), inner_g = take(pairs), slopes = take(pairs), next = take(pairs);
    }
};

// Inputs of one channel: the tile's jets, squashed where the layer does so.
template <typename T>
void read_channel(const Shape& shape, const Arrays<T>& arrays, int64_t start, int count, int64_t p,
                  Scratch<T>& s) {
    for (int k = 0; k < shape.components; ++k) {
        const T* from = arrays.z + (k * shape.points + start) * shape.channels + p;
        for (int t = 0; t < count; ++t) s.inner[k][t] = from[t * shape.channels];
    }
    if (!shape.squash) {
        std::memcpy(s.z, s.inner, sizeof(T) * TILE * shape.components);
    } else {
        T value[TILE] = {}, f[MOST_ORDERS][TILE];
        const T* from = arrays.squashed + start * shape.channels + p;
        for (int t = 0; t < count; ++t) value[t] = from[t * shape.channels];
        tanh_derivatives(value, shape.derivatives > 0 ? shape.derivatives : 1, f);
        chain(shape, s.inner, s.inner_g);
        std::memset(s.z, 0, sizeof(T) * TILE * shape.components);
        std::memcpy(s.z[0], value, sizeof(value));
        for (int pair = 0; pair < shape.n_pairs; ++pair) {
            const T* slope = f[shape.pair_m[pair]];
            T* target = s.z[shape.pair_component[pair]];
            for (int t = 0; t < TILE; ++t) target[t] += slope[t] * s.inner_g[pair][t];
        }
    }
    chain(shape, s.z, s.g);
}

// Adjoint of the inputs of one channel from that of the squashed ones.
template <typename T>
void write_channel_adjoint(const Shape& shape, const Arrays<T>& arrays, int64_t start, int count,
                           int64_t p, Scratch<T>& s) {
    T(*result)[TILE] = s.z_adjoint;
    if (shape.squash) {
        T f[MOST_ORDERS][TILE], value[TILE];
        tanh_derivatives(s.z[0], shape.derivatives + 1, f);
        for (int t = 0; t < TILE; ++t) value[t] = s.z_adjoint[0][t] * f[1][t];
        for (int pair = 0; pair < shape.n_pairs; ++pair) {
            const int m = shape.pair_m[pair];
            const T* adjoint = s.z_adjoint[shape.pair_component[pair]];
            for (int t = 0; t < TILE; ++t) {
                s.slopes[pair][t] = adjoint[t] * f[m][t];
                s.next[pair][t] = adjoint[t] * f[m + 1][t];
            }
        }
        chain_adjoint(shape, s.inner, s.inner_g, s.slopes, s.next, value, s.inner_adjoint);
        result = s.inner_adjoint;
    }
    for (int k = 0; k < shape.components; ++k) {
        T* to = arrays.z_adjoint + (k * shape.points + start) * shape.channels + p;
        for (int t = 0; t < count; ++t) to[t * shape.channels] = result[k][t];
    }
}

// Number of the interval of a point among any knots.
template <typename T>
inline int64_t interval_of(const Knots<T>& knots, int64_t p, T x) {
    const T* left = knots.left + p * knots.stride;
    int64_t low = 0, high = knots.last[p];  // the count of interior knots not above x
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (left[middle] <= x) low = middle;
        else high = middle - 1;
    }
    return x == x ? low : knots.last[p];
}

// ---- What depends on the order R: pieces, and the products with the weights.

// One channel of a tile, with the points along the last axis everywhere.
template <typename T, int R>
struct Pieces {
    alignas(64) T values[MOST_ORDERS][R][TILE];  // b^(m) of the R functions
    alignas(64) T table[R][R][TILE];             // of unequal knots: powers, functions
    alignas(64) T v[TILE];                       // local coordinates
    int32_t interval[TILE];
    std::vector<T> local, adjoint;  // feature jets and their adjoint (components, R, TILE)

    explicit Pieces(const Shape& shape)
        : values(), table(), v(), interval(), local(shape.components * R * TILE, T(0)),
          adjoint(shape.components * R * TILE, T(0)) {}
};

template <int R>
constexpr int ROW = R <= 4 ? 4 : 8;  // numbers of a row of the tables: the R functions, padded

inline int64_t place(const Shape& shape, int64_t stride, int64_t p, int64_t interval) {
    return shape.general ? p * stride + interval : 0;
}

template <typename T, int R>
void locate(const Shape& shape, const Knots<T>& knots, int64_t p, int count, const T* x,
            Pieces<T, R>& pieces) {
    const T *left = knots.left + p * knots.stride, scale = knots.scale[p];
    if (!shape.general) {
        const T last = T(knots.last[p]), inverse = T(0.5) * scale, shift = knots.shift[p];
        for (int t = 0; t < TILE; ++t) {
            T step = (x[t] - left[0]) * inverse;
            step = step > 0 ? step : 0;  // NaN: 0
            pieces.interval[t] = int32_t(step < last ? step : last);
        }
        for (int t = 0; t < TILE; ++t)
            pieces.v[t] = (x[t] - left[pieces.interval[t]]) * scale - shift;
        return;
    }
    for (int t = 0; t < count; ++t) {
        const int64_t j = interval_of(knots, p, x[t]), at = place(shape, knots.stride, p, j);
        pieces.interval[t] = int32_t(j);
        pieces.v[t] = (x[t] - left[j]) * scale - knots.shift[at];
        const T* table = knots.tables + at * R * ROW<R>;
        for (int k = 0; k < R; ++k)
            for (int l = 0; l < R; ++l) pieces.table[k][l][t] = table[k * ROW<R> + l];
    }
}

// b^(m)(x) of the R functions, m = 0 .. H, by one Horner scheme.
template <typename T, int R, int H>
void evaluate(const Shape& shape, const T* table, T scale, Pieces<T, R>& pieces) {
    for (int l = 0; l < R; ++l)
        for (int start = 0; start < TILE; start += LANES<T>) {
            const Wide<T> v = load<Wide<T>>(pieces.v + start);
            auto coefficient = [&](int k) {
                return shape.general ? load<Wide<T>>(pieces.table[k][l] + start)
                                     : Wide<T>{} + table[k * ROW<R> + l];
            };
            Wide<T> sum[H + 1] = {};
            sum[0] = coefficient(R - 1);
            for (int k = R - 2; k >= 0; --k) {
                for (int m = H; m > 0; --m)
                    if (m <= R - 1 - k) sum[m] = sum[m - 1] + sum[m] * v;
                sum[0] = coefficient(k) + sum[0] * v;
            }
            T factor = 1;
            store<Wide<T>>(pieces.values[0][l] + start, sum[0]);
            for (int m = 1; m <= H; ++m) {
                factor *= T(m) * scale;
                store<Wide<T>>(pieces.values[m][l] + start, sum[m] * factor);
            }
        }
}

template <typename T, int R>
void evaluate(const Shape& shape, const Knots<T>& knots, int64_t p, int highest,
              Pieces<T, R>& pieces) {
    const T scale = knots.scale[p];
    switch (highest) {
        case 0: return evaluate<T, R, 0>(shape, knots.tables, scale, pieces);
        case 1: return evaluate<T, R, 1>(shape, knots.tables, scale, pieces);
        case 2: return evaluate<T, R, 2>(shape, knots.tables, scale, pieces);
        case 3: return evaluate<T, R, 3>(shape, knots.tables, scale, pieces);
        case 4: return evaluate<T, R, 4>(shape, knots.tables, scale, pieces);
        default: return evaluate<T, R, 5>(shape, knots.tables, scale, pieces);
    }
}

// The feature jets from the pieces and the chain rule.
template <typename T, int R>
void make_features(const Shape& shape, const T (*g)[TILE], Pieces<T, R>& pieces) {
    T* local = pieces.local.data();
    std::memcpy(local, pieces.values[0], sizeof(T) * R * TILE);
    for (int pair = 0, before = 0; pair < shape.n_pairs; ++pair) {
        const int component = shape.pair_component[pair];
        const T(*values)[TILE] = pieces.values[shape.pair_m[pair]];
        T* target = local + component * R * TILE;
        if (component != before) {  // a component's first pair
            for (int l = 0; l < R; ++l)
                for (int t = 0; t < TILE; ++t) target[l * TILE + t] = values[l][t] * g[pair][t];
        } else {
            for (int l = 0; l < R; ++l)
                for (int t = 0; t < TILE; ++t) target[l * TILE + t] += values[l][t] * g[pair][t];
        }
        before = component;
    }
}

// y_k += sum_l local_k[l] weights[l] for N components of one point.
template <typename T, int R, int N>
inline void contract(const T* local, const T* weights, int64_t width, T* y) {
    for (int64_t q = 0; q < width; q += LANES<T>) {
        Wide<T> sum[N];
        for (int k = 0; k < N; ++k) sum[k] = load<Wide<T>>(y + k * width + q);
        for (int l = 0; l < R; ++l) {
            const Wide<T> w = load<Wide<T>>(weights + l * width + q);
            for (int k = 0; k < N; ++k) sum[k] += local[(k * R + l) * TILE] * w;
        }
        for (int k = 0; k < N; ++k) store<Wide<T>>(y + k * width + q, sum[k]);
    }
}

// weights_adjoint[l] += sum_k local_k[l] y_k for N components of one point.
template <typename T, int R, int N>
inline void gather_weights(const T* local, const T* y, int64_t width, T* adjoint) {
    for (int64_t q = 0; q < width; q += LANES<T>) {
        Wide<T> part[N];
        for (int k = 0; k < N; ++k) part[k] = load<Wide<T>>(y + k * width + q);
        for (int l = 0; l < R; ++l) {
            Wide<T> sum = load<Wide<T>>(adjoint + l * width + q);
            for (int k = 0; k < N; ++k) sum += local[(k * R + l) * TILE] * part[k];
            store<Wide<T>>(adjoint + l * width + q, sum);
        }
    }
}

// local_adjoint_k[l] = sum_q y_k[q] weights[l, q] for N components of one point.
template <typename T, int R, int N>
inline void gather_local(const T* y, const T* weights, int64_t width, T* adjoint) {
    for (int start = 0; start < R; start += 4) {
        const int count = R - start < 4 ? R - start : 4;
        Wide<T> sum[N * 4] = {};
        for (int64_t q = 0; q < width; q += LANES<T>) {
            Wide<T> w[4];
            for (int l = 0; l < count; ++l)
                w[l] = load<Wide<T>>(weights + (start + l) * width + q);
            for (int k = 0; k < N; ++k) {
                const Wide<T> part = load<Wide<T>>(y + k * width + q);
                for (int l = 0; l < count; ++l) sum[4 * k + l] += part * w[l];
            }
        }
        constexpr int TOGETHER = LANES<T> / 4 < N ? (N == 3 ? 1 : LANES<T> / 4) : (N == 3 ? 1 : N);
        for (int k = 0; k < N; k += TOGETHER) {
            const Wide<T> total = sums<T, 4 * TOGETHER>(sum + 4 * k);
            for (int j = 0; j < TOGETHER; ++j)
                for (int l = 0; l < count; ++l)
                    adjoint[((k + j) * R + start + l) * TILE] = total[4 * j + l];
        }
    }
}

// The same for all components, four at a time: as many as the registers hold.
#define BY_FOURS(NAME, ...)                                         \
    for (int k = 0; k < shape.components;) {                        \
        const int left = shape.components - k;                      \
        if (left >= 4) { NAME<T, R, 4>(__VA_ARGS__); k += 4; }      \
        else if (left == 3) { NAME<T, R, 3>(__VA_ARGS__); k += 3; } \
        else if (left == 2) { NAME<T, R, 2>(__VA_ARGS__); k += 2; } \
        else { NAME<T, R, 1>(__VA_ARGS__); k += 1; }                \
    }

// Layers with many outputs: vectors run over them, and the tile holds (TILE, components, width).
template <typename T, int R>
struct ManyOutputs {
    const Shape& shape;
    int64_t width, stride;
    std::vector<T> weights, gathered, tile;

    ManyOutputs(const Shape& shape, const Arrays<T>& arrays)
        : shape(shape), width(padded_width<T>(shape)), stride(shape.components * width),
          weights(padded_weights(shape, arrays.weights, width)),
          gathered(arrays.weights_adjoint ? shape.features * width : 0, T(0)),
          tile(TILE * stride, T(0)) {}

    void clear() { std::memset(tile.data(), 0, sizeof(T) * tile.size()); }

    void read(const T* y, int64_t start, int count) {
        for (int t = 0; t < count; ++t)
            for (int k = 0; k < shape.components; ++k)
                std::memcpy(tile.data() + t * stride + k * width,
                            y + (k * shape.points + start + t) * shape.outputs,
                            sizeof(T) * shape.outputs);
    }

    void write(T* y, int64_t start, int count) {
        for (int t = 0; t < count; ++t)
            for (int k = 0; k < shape.components; ++k)
                std::memcpy(y + (k * shape.points + start + t) * shape.outputs,
                            tile.data() + t * stride + k * width, sizeof(T) * shape.outputs);
    }

    void add(const Pieces<T, R>& pieces, int64_t first, int count) {
        for (int t = 0; t < count; ++t) {
            const T* local = pieces.local.data() + t;
            const T* rows = weights.data() + (first + pieces.interval[t]) * width;
            T* y = tile.data() + t * stride;
            BY_FOURS(contract, local + k * R * TILE, rows, width, y + k * width)
        }
    }

    void add_to_weights(const Pieces<T, R>& pieces, int64_t first, int count) {
        for (int t = 0; t < count; ++t) {
            const T* local = pieces.local.data() + t;
            T* rows = gathered.data() + (first + pieces.interval[t]) * width;
            const T* y = tile.data() + t * stride;
            BY_FOURS(gather_weights, local + k * R * TILE, y + k * width, width, rows)
        }
    }

    void features_adjoint(Pieces<T, R>& pieces, int64_t first, int count) {
        for (int t = 0; t < count; ++t) {
            T* adjoint = pieces.adjoint.data() + t;
            const T* rows = weights.data() + (first + pieces.interval[t]) * width;
            const T* y = tile.data() + t * stride;
            BY_FOURS(gather_local, y + k * width, rows, width, adjoint + k * R * TILE)
        }
    }

    void finish(T* adjoint) {
        in_blocks(shape, [&](int64_t q, int64_t i) {
            adjoint[q * shape.features + i] = gathered[i * width + q];
        });
    }
};

// Layers with one output, or few: vectors run over the points; the tile holds (components, outputs,
// TILE). From two outputs on ManyOutputs was measured to be faster.
template <typename T, int R>
struct FewOutputs {
    const Shape& shape;
    const T* weights;
    std::vector<T> gathered, tile;
    alignas(64) T rows[R][TILE];

    FewOutputs(const Shape& shape, const Arrays<T>& arrays)
        : shape(shape), weights(arrays.weights),
          gathered(arrays.weights_adjoint ? shape.features * shape.outputs : 0, T(0)),
          tile(shape.components * shape.outputs * TILE, T(0)), rows() {}

    void clear() { std::memset(tile.data(), 0, sizeof(T) * tile.size()); }

    T* row(int k, int64_t q) { return tile.data() + (k * shape.outputs + q) * TILE; }

    void read(const T* y, int64_t start, int count) {
        for (int k = 0; k < shape.components; ++k)
            for (int64_t q = 0; q < shape.outputs; ++q)
                for (int t = 0; t < count; ++t)
                    row(k, q)[t] = y[(k * shape.points + start + t) * shape.outputs + q];
    }

    void write(T* y, int64_t start, int count) {
        for (int k = 0; k < shape.components; ++k)
            for (int64_t q = 0; q < shape.outputs; ++q)
                for (int t = 0; t < count; ++t)
                    y[(k * shape.points + start + t) * shape.outputs + q] = row(k, q)[t];
    }

    void gather_rows(const Pieces<T, R>& pieces, int64_t first, int count, int64_t q) {
        for (int t = 0; t < count; ++t) {
            const T* from = weights + q * shape.features + first + pieces.interval[t];
            for (int l = 0; l < R; ++l) rows[l][t] = from[l];
        }
    }

    void add(const Pieces<T, R>& pieces, int64_t first, int count) {
        for (int64_t q = 0; q < shape.outputs; ++q) {
            gather_rows(pieces, first, count, q);
            for (int k = 0; k < shape.components; ++k) {
                T* y = row(k, q);
                const T* local = pieces.local.data() + k * R * TILE;
                for (int l = 0; l < R; ++l)
                    for (int t = 0; t < TILE; ++t) y[t] += local[l * TILE + t] * rows[l][t];
            }
        }
    }

    void add_to_weights(const Pieces<T, R>& pieces, int64_t first, int count) {
        for (int64_t q = 0; q < shape.outputs; ++q) {
            for (int l = 0; l < R; ++l) {
                for (int t = 0; t < TILE; ++t) rows[l][t] = 0;
                for (int k = 0; k < shape.components; ++k) {
                    const T* local = pieces.local.data() + (k * R + l) * TILE;
                    const T* y = row(k, q);
                    for (int t = 0; t < TILE; ++t) rows[l][t] += local[t] * y[t];
                }
            }
            T* to = gathered.data() + q * shape.features + first;
            for (int t = 0; t < count; ++t)
                for (int l = 0; l < R; ++l) to[pieces.interval[t] + l] += rows[l][t];
        }
    }

    void features_adjoint(Pieces<T, R>& pieces, int64_t first, int count) {
        std::memset(pieces.adjoint.data(), 0, sizeof(T) * pieces.adjoint.size());
        for (int64_t q = 0; q < shape.outputs; ++q) {
            gather_rows(pieces, first, count, q);
            for (int k = 0; k < shape.components; ++k) {
                const T* y = row(k, q);
                T* adjoint = pieces.adjoint.data() + k * R * TILE;
                for (int l = 0; l < R; ++l)
                    for (int t = 0; t < TILE; ++t) adjoint[l * TILE + t] += y[t] * rows[l][t];
            }
        }
    }

    void finish(T* adjoint) { std::memcpy(adjoint, gathered.data(), sizeof(T) * gathered.size()); }
};

template <typename T, int R, typename Outputs>
void forward(const Shape& shape, const Knots<T>& knots, const Arrays<T>& arrays) {
    Outputs outputs(shape, arrays);
    Pieces<T, R> pieces(shape);
    Scratch<T> s(shape);
    for (int64_t start = 0; start < shape.points; start += TILE) {
        const int count = shape.points - start < TILE ? int(shape.points - start) : TILE;
        outputs.clear();
        for (int64_t p = 0; p < shape.channels; ++p) {
            read_channel(shape, arrays, start, count, p, s);
            locate(shape, knots, p, count, s.z[0], pieces);
            evaluate<T, R>(shape, knots, p, shape.derivatives, pieces);
            make_features(shape, s.g, pieces);
            outputs.add(pieces, knots.first[p], count);
        }
        outputs.write(arrays.y, start, count);
    }
}

// sum_l adjoint[l] values[l], point by point.
template <typename T, int R>
inline void dot(const T* adjoint, const T (*values)[TILE], T* result) {
    for (int t = 0; t < TILE; ++t) result[t] = adjoint[t] * values[0][t];
    for (int l = 1; l < R; ++l)
        for (int t = 0; t < TILE; ++t) result[t] += adjoint[l * TILE + t] * values[l][t];
}

// Adjoint of the inputs from that of the features, through pieces and chain rule.
template <typename T, int R>
void inputs_adjoint(const Shape& shape, const Pieces<T, R>& pieces, Scratch<T>& s) {
    T value[TILE];
    dot<T, R>(pieces.adjoint.data(), pieces.values[1], value);
    for (int pair = 0; pair < shape.n_pairs; ++pair) {
        const T* adjoint = pieces.adjoint.data() + shape.pair_component[pair] * R * TILE;
        const int m = shape.pair_m[pair];
        dot<T, R>(adjoint, pieces.values[m], s.slopes[pair]);
        dot<T, R>(adjoint, pieces.values[m + 1], s.next[pair]);
    }
    chain_adjoint(shape, s.z, s.g, s.slopes, s.next, value, s.z_adjoint);
}

// Adjoint of the tables and shifts of the intervals that a tile's points lie in.
template <typename T, int R>
void add_to_knots(const Shape& shape, const Knots<T>& knots, const Arrays<T>& arrays, int64_t p,
                  int count, const Pieces<T, R>& pieces, const Scratch<T>& s) {
    for (int t = 0; t < count; ++t) {
        const int64_t at = place(shape, knots.stride, p, pieces.interval[t]);
        T* table = arrays.tables_adjoint + at * R * ROW<R>;
        for (int l = 0; l < R; ++l) {
            T by_order[MOST_ORDERS] = {};
            by_order[0] = pieces.adjoint[l * TILE + t];
            for (int pair = 0; pair < shape.n_pairs; ++pair)
                by_order[shape.pair_m[pair]] +=
                    pieces.adjoint[(shape.pair_component[pair] * R + l) * TILE + t] * s.g[pair][t];
            for (int k = 0; k < R; ++k) {
                T factor = 1;  // k! / (k - m)!
                for (int m = 0; m <= shape.derivatives && m <= k; ++m) {
                    T power = factor;
                    for (int i = 0; i < k - m; ++i) power *= pieces.v[t];
                    table[k * ROW<R> + l] += by_order[m] * power;
                    factor *= T(k - m);
                }
            }
        }
        arrays.shift_adjoint[at] -= s.z_adjoint[0][t];
    }
}

template <typename T, int R, typename Outputs>
void backward(const Shape& shape, const Knots<T>& knots, const Arrays<T>& arrays) {
    Outputs outputs(shape, arrays);
    Pieces<T, R> pieces(shape);
    Scratch<T> s(shape);
    const bool inner = arrays.z_adjoint || arrays.tables_adjoint;
    for (int64_t start = 0; start < shape.points; start += TILE) {
        const int count = shape.points - start < TILE ? int(shape.points - start) : TILE;
        outputs.read(arrays.y_adjoint, start, count);
        for (int64_t p = 0; p < shape.channels; ++p) {
            read_channel(shape, arrays, start, count, p, s);
            locate(shape, knots, p, count, s.z[0], pieces);
            evaluate<T, R>(shape, knots, p, shape.derivatives + (inner ? 1 : 0), pieces);
            if (arrays.weights_adjoint) {
                make_features(shape, s.g, pieces);
                outputs.add_to_weights(pieces, knots.first[p], count);
            }
            if (!inner) continue;
            outputs.features_adjoint(pieces, knots.first[p], count);
            inputs_adjoint(shape, pieces, s);
            if (arrays.tables_adjoint)
                add_to_knots(shape, knots, arrays, p, count, pieces, s);
            if (arrays.z_adjoint) write_channel_adjoint(shape, arrays, start, count, p, s);
        }
    }
    if (arrays.weights_adjoint) outputs.finish(arrays.weights_adjoint);
}

// Which features have one of the points in their support: all others are zero at all of them.
template <typename T, int R>
void mark(const Shape& shape, const Knots<T>& knots, const Arrays<T>& arrays) {
    Pieces<T, R> pieces(shape);
    const T* values = shape.squash ? arrays.squashed : arrays.z;
    for (int64_t start = 0; start < shape.points; start += TILE) {
        const int count = shape.points - start < TILE ? int(shape.points - start) : TILE;
        for (int64_t p = 0; p < shape.channels; ++p) {
            T x[TILE] = {};
            for (int t = 0; t < count; ++t) x[t] = values[(start + t) * shape.channels + p];
            locate(shape, knots, p, count, x, pieces);
            uint8_t* used = arrays.used + knots.first[p];
            for (int t = 0; t < count; ++t) std::memset(used + pieces.interval[t], 1, R);
        }
    }
}

// Every point's own derivatives with respect to the weights, added to the columns of its row.
template <typename T, int R>
void outer(const Shape& shape, const Knots<T>& knots, const Arrays<T>& arrays) {
    Pieces<T, R> pieces(shape);
    Scratch<T> s(shape);
    for (int64_t start = 0; start < shape.points; start += TILE) {
        const int count = shape.points - start < TILE ? int(shape.points - start) : TILE;
        for (int64_t p = 0; p < shape.channels; ++p) {
            read_channel(shape, arrays, start, count, p, s);
            locate(shape, knots, p, count, s.z[0], pieces);
            evaluate<T, R>(shape, knots, p, shape.derivatives, pieces);
            make_features(shape, s.g, pieces);
            for (int t = 0; t < count; ++t) {
                T* row = arrays.rows + (start + t) * arrays.row;
                const int64_t* columns = arrays.columns + knots.first[p] + pieces.interval[t];
                for (int64_t q = 0; q < shape.outputs; ++q, columns += shape.features) {
                    T sum[R] = {};
                    for (int k = 0; k < shape.components; ++k) {
                        const T y = arrays.y_adjoint[(k * shape.points + start + t) * shape.outputs + q];
                        const T* local = pieces.local.data() + k * R * TILE + t;
                        for (int l = 0; l < R; ++l) sum[l] += y * local[l * TILE];
                    }
                    for (int l = 0; l < R; ++l) row[columns[l]] += sum[l];
                }
            }
        }
    }
}

template <typename T, int R, typename Outputs>
int run(const Shape& shape, const Knots<T>& knots, const Arrays<T>& arrays) {
    if (arrays.y_adjoint) backward<T, R, Outputs>(shape, knots, arrays);
    else forward<T, R, Outputs>(shape, knots, arrays);
    return 0;
}

template <typename T, int R>
int run(const Shape& shape, const Knots<T>& knots, const Arrays<T>& arrays) {
    if (arrays.used) return mark<T, R>(shape, knots, arrays), 0;
    if (arrays.rows) return outer<T, R>(shape, knots, arrays), 0;
    if (shape.outputs == 1) return run<T, R, FewOutputs<T, R>>(shape, knots, arrays);
    return run<T, R, ManyOutputs<T, R>>(shape, knots, arrays);
}

template <typename T>
int run(const Shape& shape, const Knots<T>& knots, const Arrays<T>& arrays, int order) {
    switch (order) {
        case 2: return run<T, 2>(shape, knots, arrays);
        case 3: return run<T, 3>(shape, knots, arrays);
        case 4: return run<T, 4>(shape, knots, arrays);
        case 5: return run<T, 5>(shape, knots, arrays);
        case 6: return run<T, 6>(shape, knots, arrays);
        case 7: return run<T, 7>(shape, knots, arrays);
        case 8: return run<T, 8>(shape, knots, arrays);
        default: return 1;
    }
}

}  // namespace

// Forward into y, or with y_adjoint backward or into rows; or which features are used. 0: done;
// 1: no such order.
extern "C" int kanpinn_spline_layer_float64(const Shape* shape, const Knots<double>* knots,
                                            const Arrays<double>* arrays, int order) {
    return run<double>(*shape, *knots, *arrays, order);
}

extern "C" int kanpinn_spline_layer_float32(const Shape* shape, const Knots<float>* knots,
                                            const Arrays<float>* arrays, int order) {
    return run<float>(*shape, *knots, *arrays, order);
}
