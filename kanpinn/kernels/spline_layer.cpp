// A spline layer on jets, and its adjoint, point by point with the r B-splines that are not zero.
//
//   y_k[q] = sum_p sum_l  L_k[p, l] C[first(p) + l, q],     L_k = sum_m b^(m)(s) g_{k,m}(z)
//
// for every component k of the jet; g are the polynomials of the chain rule. Beside inputs, outputs
// and a copy of the weights, with one row for each feature, nothing is held for more than a tile of
// points.

#include <cstdint>
#include <cstring>
#include <new>

#include "jets.h"
#include "vectors.h"

namespace {

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
    const T* weights;  // (outputs, features); null where nothing asked for depends on them
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

// Rows of a matrix, transposed and padded to whole vectors: (outputs, features) to (features, width).
template <typename T>
Numbers<T> padded_weights(const Shape& shape, const T* weights, int64_t width) {
    Numbers<T> result(shape.features * width, T(0));
    transpose(weights, shape.features, shape.outputs, shape.features, result.data(), width);
    return result;
}

template <typename T>
int64_t padded_width(const Shape& shape) {
    return (shape.outputs + LANES<T> - 1) / LANES<T> * LANES<T>;
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
    Numbers<T> local, adjoint;  // feature jets and their adjoint (components, R, TILE)

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
                                     : all(table[k * ROW<R> + l]);
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
        for (int l = 0; l < R; ++l) {
            auto product = [&](int t) {
                return load<Wide<T>>(values[l] + t) * load<Wide<T>>(g[pair] + t);
            };
            if (component != before) assign(target + l * TILE, product);  // its first pair
            else add(target + l * TILE, product);
        }
        before = component;
    }
}

// y_k += sum_l local_k[l] weights[l] for N components of one point and Q vectors of outputs.
template <typename T, int R, int N, int Q>
inline void contract(const T* local, const T* weights, int64_t width, T* y) {
    constexpr int V = LANES<T>;
    Wide<T> sum[N][Q];
    for (int k = 0; k < N; ++k)
        for (int q = 0; q < Q; ++q) sum[k][q] = load<Wide<T>>(y + k * width + q * V);
    for (int l = 0; l < R; ++l) {
        Wide<T> w[Q];
        for (int q = 0; q < Q; ++q) w[q] = held(load<Wide<T>>(weights + q * V));
        weights = next_row(weights, width);
        for (int k = 0; k < N; ++k)
            for (int q = 0; q < Q; ++q) sum[k][q] += local[(k * R + l) * TILE] * w[q];
    }
    for (int k = 0; k < N; ++k)
        for (int q = 0; q < Q; ++q) store<Wide<T>>(y + k * width + q * V, sum[k][q]);
}

// weights_adjoint[l] += sum_k local_k[l] y_k for N components of one point and Q vectors of outputs.
template <typename T, int R, int N, int Q>
inline void gather_weights(const T* local, const T* y, int64_t width, T* adjoint) {
    constexpr int V = LANES<T>;
    Wide<T> part[N][Q];
    for (int k = 0; k < N; ++k)
        for (int q = 0; q < Q; ++q) part[k][q] = held(load<Wide<T>>(y + k * width + q * V));
    for (int l = 0; l < R; ++l) {
        Wide<T> sum[Q];
        for (int q = 0; q < Q; ++q) sum[q] = load<Wide<T>>(adjoint + q * V);
        for (int k = 0; k < N; ++k)
            for (int q = 0; q < Q; ++q) sum[q] += local[(k * R + l) * TILE] * part[k][q];
        for (int q = 0; q < Q; ++q) store<Wide<T>>(adjoint + q * V, sum[q]);
        adjoint = next_row(adjoint, width);
    }
}

// local_adjoint_k[l] = sum_q y_k[q] weights[l, q] for N components of one point, four l at a time.
template <typename T, int R, int N, int START = 0>
inline void gather_local(const T* y, const T* weights, int64_t width, T* adjoint) {
    constexpr int L = R - START < 4 ? R - START : 4;
    Wide<T> sum[N * 4] = {};
    for (int64_t q = 0; q < width; q += LANES<T>) {
        Wide<T> part[N];
        for (int k = 0; k < N; ++k) part[k] = held(load<Wide<T>>(y + k * width + q));
        for (int l = 0; l < L; ++l) {
            const Wide<T> w = held(load<Wide<T>>(weights + (START + l) * width + q));
            for (int k = 0; k < N; ++k) sum[4 * k + l] += part[k] * w;
        }
    }
    constexpr int TOGETHER = LANES<T> / 4 < N ? (N == 3 ? 1 : LANES<T> / 4) : (N == 3 ? 1 : N);
    for (int k = 0; k < N; k += TOGETHER) {
        const Wide<T> total = sums<T, 4 * TOGETHER>(sum + 4 * k);
        for (int j = 0; j < TOGETHER; ++j)
            for (int l = 0; l < L; ++l)
                adjoint[((k + j) * R + START + l) * TILE] = total[4 * j + l];
    }
    if constexpr (START + 4 < R) gather_local<T, R, N, START + 4>(y, weights, width, adjoint);
}

// Calls visit(Number<N>, k, Number<Q>, q) for all components k, N at a time, and outputs q, Q vectors
// at a time: as many as the registers hold.
template <typename T, typename Visit>
inline void in_registers(const Shape& shape, int64_t width, Visit visit) {
    in_groups<4>(shape.components, [&](auto n, int64_t k) {
        constexpr int Q = n > 2 && REGISTERS < 32 ? 2 : 4;
        in_groups<Q>(width / LANES<T>, [&](auto m, int64_t q) { visit(n, k, m, q * LANES<T>); });
    });
}

// Layers with many outputs: vectors run over them, and the tile holds (TILE, components, width).
template <typename T, int R>
struct ManyOutputs {
    const Shape& shape;
    int64_t width, stride;
    bool far;
    Numbers<T> weights, gathered, tile;

    ManyOutputs(const Shape& shape, const Arrays<T>& arrays)
        : shape(shape), width(padded_width<T>(shape)), stride(shape.components * width),
          far(shape.features / shape.channels * width * int64_t(sizeof(T)) > 32768),
          weights(arrays.weights ? padded_weights(shape, arrays.weights, width) : Numbers<T>()),
          gathered(arrays.weights_adjoint ? shape.features * width : 0, T(0)),
          tile(TILE * stride, T(0)) {}

    void clear() { std::memset(tile.data(), 0, sizeof(T) * tile.size()); }

    // A point's rows of `matrix`. Where a channel has more of them than the first-level cache holds,
    // those of a point to come are called for, since nothing else foretells them.
    template <typename U>
    U* rows(U* matrix, const Pieces<T, R>& pieces, int64_t first, int t, int count) const {
        constexpr int AHEAD = 2, LINE = 64 / sizeof(T);
        if (far && t + AHEAD < count) {
            const T* next = matrix + (first + pieces.interval[t + AHEAD]) * width;
            for (int64_t i = 0; i < R * width; i += LINE) __builtin_prefetch(next + i);
        }
        return matrix + (first + pieces.interval[t]) * width;
    }

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
            const T* w = rows(weights.data(), pieces, first, t, count);
            T* y = tile.data() + t * stride;
            in_registers<T>(shape, width, [&](auto n, int64_t k, auto m, int64_t q) {
                contract<T, R, n, m>(local + k * R * TILE, w + q, width, y + k * width + q);
            });
        }
    }

    void add_to_weights(const Pieces<T, R>& pieces, int64_t first, int count) {
        for (int t = 0; t < count; ++t) {
            const T* local = pieces.local.data() + t;
            T* w = rows(gathered.data(), pieces, first, t, count);
            const T* y = tile.data() + t * stride;
            in_registers<T>(shape, width, [&](auto n, int64_t k, auto m, int64_t q) {
                gather_weights<T, R, n, m>(local + k * R * TILE, y + k * width + q, width, w + q);
            });
        }
    }

    void features_adjoint(Pieces<T, R>& pieces, int64_t first, int count) {
        for (int t = 0; t < count; ++t) {
            T* adjoint = pieces.adjoint.data() + t;
            const T* w = rows(weights.data(), pieces, first, t, count);
            const T* y = tile.data() + t * stride;
            in_groups<REGISTERS / 8>(shape.components, [&](auto n, int64_t k) {
                gather_local<T, R, n>(y + k * width, w, width, adjoint + k * R * TILE);
            });
        }
    }

    void finish(T* adjoint) {
        transpose(gathered.data(), width, shape.features, shape.outputs, adjoint, shape.features);
    }
};

// sum_l a[l] b[l] of rows of a tile, R of each.
template <typename T, int R>
inline Wide<T> dot(const T* a, const T (*b)[TILE], int t) {
    Wide<T> sum = load<Wide<T>>(a + t) * load<Wide<T>>(b[0] + t);
    for (int l = 1; l < R; ++l) sum += load<Wide<T>>(a + l * TILE + t) * load<Wide<T>>(b[l] + t);
    return sum;
}

// Layers with one output: vectors run over the points, and the tile holds (components, TILE). From
// two outputs on ManyOutputs was measured to be faster.
template <typename T, int R>
struct OneOutput {
    const Shape& shape;
    const T* weights;
    Numbers<T> gathered, tile;
    alignas(64) T rows[R][TILE];

    OneOutput(const Shape& shape, const Arrays<T>& arrays)
        : shape(shape), weights(arrays.weights),
          gathered(arrays.weights_adjoint ? shape.features : 0, T(0)),
          tile(shape.components * TILE, T(0)), rows() {}

    void clear() { std::memset(tile.data(), 0, sizeof(T) * tile.size()); }

    void read(const T* y, int64_t start, int count) {
        for (int k = 0; k < shape.components; ++k)
            std::memcpy(tile.data() + k * TILE, y + k * shape.points + start, sizeof(T) * count);
    }

    void write(T* y, int64_t start, int count) {
        for (int k = 0; k < shape.components; ++k)
            std::memcpy(y + k * shape.points + start, tile.data() + k * TILE, sizeof(T) * count);
    }

    void gather_rows(const Pieces<T, R>& pieces, int64_t first, int count) {
        for (int t = 0; t < count; ++t) {
            const T* from = weights + first + pieces.interval[t];
            for (int l = 0; l < R; ++l) rows[l][t] = from[l];
        }
    }

    void add(const Pieces<T, R>& pieces, int64_t first, int count) {
        gather_rows(pieces, first, count);
        for (int k = 0; k < shape.components; ++k) {
            const T* local = pieces.local.data() + k * R * TILE;
            ::add(tile.data() + k * TILE, [&](int t) { return dot<T, R>(local, rows, t); });
        }
    }

    void add_to_weights(const Pieces<T, R>& pieces, int64_t first, int count) {
        for (int l = 0; l < R; ++l)
            assign(rows[l], [&](int t) {
                Wide<T> sum = {};
                for (int k = 0; k < shape.components; ++k)
                    sum += load<Wide<T>>(pieces.local.data() + (k * R + l) * TILE + t) *
                           load<Wide<T>>(tile.data() + k * TILE + t);
                return sum;
            });
        T* to = gathered.data() + first;
        for (int t = 0; t < count; ++t)
            for (int l = 0; l < R; ++l) to[pieces.interval[t] + l] += rows[l][t];
    }

    void features_adjoint(Pieces<T, R>& pieces, int64_t first, int count) {
        gather_rows(pieces, first, count);
        for (int k = 0; k < shape.components; ++k)
            for (int l = 0; l < R; ++l)
                assign(pieces.adjoint.data() + (k * R + l) * TILE, [&](int t) {
                    return load<Wide<T>>(tile.data() + k * TILE + t) * load<Wide<T>>(rows[l] + t);
                });
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
            read_channel(shape, arrays.z, start, count, p, s);
            locate(shape, knots, p, count, s.z[0], pieces);
            evaluate<T, R>(shape, knots, p, shape.derivatives, pieces);
            make_features(shape, s.g, pieces);
            outputs.add(pieces, knots.first[p], count);
        }
        outputs.write(arrays.y, start, count);
    }
}

// Adjoint of the inputs from that of the features, through pieces and chain rule.
template <typename T, int R>
void inputs_adjoint(const Shape& shape, const Pieces<T, R>& pieces, Scratch<T>& s) {
    alignas(64) T value[TILE];
    auto dots = [&](T* target, const T* adjoint, const T (*values)[TILE]) {
        assign(target, [&](int t) { return dot<T, R>(adjoint, values, t); });
    };
    dots(value, pieces.adjoint.data(), pieces.values[1]);
    for (int pair = 0; pair < shape.n_pairs; ++pair) {
        const T* adjoint = pieces.adjoint.data() + shape.pair_component[pair] * R * TILE;
        const int m = shape.pair_m[pair];
        dots(s.slopes[pair], adjoint, pieces.values[m]);
        dots(s.next[pair], adjoint, pieces.values[m + 1]);
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
            read_channel(shape, arrays.z, start, count, p, s);
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
            if (arrays.z_adjoint)
                write_channel_adjoint(shape, arrays.z_adjoint, start, count, p, s);
        }
    }
    if (arrays.weights_adjoint) outputs.finish(arrays.weights_adjoint);
}

// Which features have one of the points in their support: all others are zero at all of them.
template <typename T, int R>
void mark(const Shape& shape, const Knots<T>& knots, const Arrays<T>& arrays) {
    Pieces<T, R> pieces(shape);
    Channels<T> inputs(1);
    for (int64_t start = 0; start < shape.points; start += TILE) {
        const int count = shape.points - start < TILE ? int(shape.points - start) : TILE;
        for (int64_t p = 0; p < shape.channels; ++p) {
            alignas(64) T squashed[TILE];
            const T* x = inputs.read(shape, arrays.z, start, count, p)[0];
            if (shape.squash) hyperbolic_tangent(x, squashed), x = squashed;
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
            read_channel(shape, arrays.z, start, count, p, s);
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
    if (shape.outputs == 1) return run<T, R, OneOutput<T, R>>(shape, knots, arrays);
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

// Forward into y, or with y_adjoint backward or into rows; or which features are used. 0: done;
// 1: no such order; 2: no memory.
template <typename T>
int answer(const Shape& shape, const Knots<T>& knots, const Arrays<T>& arrays, int order) {
    try {
        return run<T>(shape, knots, arrays, order);
    } catch (const std::bad_alloc&) {
        return 2;
    }
}

}  // namespace

extern "C" int kanpinn_spline_layer_float64(const Shape* shape, const Knots<double>* knots,
                                            const Arrays<double>* arrays, int order) {
    return answer<double>(*shape, *knots, *arrays, order);
}

extern "C" int kanpinn_spline_layer_float32(const Shape* shape, const Knots<float>* knots,
                                            const Arrays<float>* arrays, int order) {
    return answer<float>(*shape, *knots, *arrays, order);
}
