// Maximum flow on a network whose capacities change (Dinic, 1970), as in ../plain_flow.py.
#include <algorithm>
#include <cstring>

#include "problem.h"

namespace {

constexpr i64 SOURCE = 0, SINK = 1;

struct Network {
    const Rows out;
    const i64 *to;
    i64 *room;
    const i64 nodes;
    Ints steps, queue, turn, path;

    // Each node's distance to the sink along edges with room, as far as the source is; -1 beyond.
    void measure();
    // Fill shortest ways until there is none left: walk on where there is room, else back.
    void block();
    void push();
    void reach(std::uint8_t *reached);
};

void Network::measure() {
    steps.assign(nodes, -1);
    steps[SINK] = 0;
    queue.assign(1, SINK);
    for (std::size_t at = 0; at < queue.size() && queue[at] != SOURCE; ++at) {
        const i64 node = queue[at];
        for (i64 edge : row(out, node)) {
            if (steps[to[edge]] >= 0 || !room[edge ^ 1]) continue;
            steps[to[edge]] = steps[node] + 1;
            queue.push_back(to[edge]);
        }
    }
}

void Network::block() {
    turn.assign(nodes, 0);
    path.clear();
    i64 node = SOURCE;
    while (true) {
        if (node == SINK) {
            push();
            node = path.empty() ? SOURCE : to[path.back()];
            continue;
        }
        const i64 *edges = out.begin(node), count = out.count(node), closer = steps[node] - 1;
        i64 at = turn[node];
        while (at < count && !(steps[to[edges[at]]] == closer && room[edges[at]])) ++at;
        turn[node] = at;
        if (at < count) {
            path.push_back(edges[at]);
            node = to[edges[at]];
        } else if (!path.empty()) {
            steps[node] = -1;
            node = to[path.back() ^ 1];
            path.pop_back();
        } else {
            return;
        }
    }
}

// Send along the path what it can carry, and cut the path off before the first full edge.
void Network::push() {
    i64 flow = std::numeric_limits<i64>::max();
    for (i64 edge : path) flow = std::min(flow, room[edge]);
    std::size_t full = path.size();
    for (std::size_t at = 0; at < path.size(); ++at) {
        room[path[at]] -= flow;
        room[path[at] ^ 1] += flow;
        if (!room[path[at]]) full = std::min(full, at);
    }
    path.resize(full);
}

void Network::reach(std::uint8_t *reached) {
    std::memset(reached, 0, static_cast<std::size_t>(nodes));
    reached[SOURCE] = 1;
    queue.assign(1, SOURCE);
    for (std::size_t at = 0; at < queue.size(); ++at) {
        for (i64 edge : row(out, queue[at])) {
            if (reached[to[edge]] || !room[edge]) continue;
            reached[to[edge]] = 1;
            queue.push_back(to[edge]);
        }
    }
}

}  // namespace

// Whether each node is on the source's side of the minimum cut nearest to the source; `room` is what the flow leaves.
extern "C" void graphopt_cut(
    i64 nodes, const i64 *out_at, const i64 *out, const i64 *to, i64 *room, std::uint8_t *reached) {
    Network network{{out_at, out}, to, room, nodes, {}, {}, {}, {}};
    while (true) {
        network.measure();
        if (network.steps[SOURCE] < 0) break;
        network.block();
    }
    network.reach(reached);
}
