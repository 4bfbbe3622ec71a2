// Recomputations dropped, values evicted elsewhere until all fits again: ruin and recreate as in Christiaens and Vanden
// Berghe, Slack Induction by String Removals for Vehicle Routing Problems (2020). What is removed lies close together,
// and what comes instead is chosen greedily with some candidates overlooked at random. Which moves are taken is decided
// by annealing (Kirkpatrick et al., 1983).
#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>

#include "profile.h"
#include "result.h"
#include "track.h"

namespace {

// Ops that one eviction may ask to run again, and evictions that one move may make; values looked at and priced for one
// eviction.
constexpr i64 LONGEST = 40, MOST = 24, LOOKED_AT = 48, PRICED = 10;
// Attempts to bring a start that does not fit under the budget, and the evictions of each.
constexpr i64 ATTEMPTS = 6, MOST_AT_FIRST = 400;
// Chance to overlook a candidate, and to forbid the eviction that a move undoes.
constexpr double BLINK = 0.1, BANNED = 0.7;
// Recomputations dropped besides the first, and how far from it, in steps.
constexpr double MOST_DROPPED = 6.0, WIDEST = 64.0;
// First and last temperature, in what one recomputation of the start takes; a schedule is better if it is faster by more
// than rounding.
constexpr double HOT = 0.5, COLD = 0.01, LEAST_GAIN = 1e-9;

// The same numbers everywhere, which the standard's own distributions do not promise.
class Random {
  public:
    explicit Random(i64 seed) : words_(static_cast<std::uint64_t>(seed)) {}

    // From 0 up to 1.
    double uniform() { return static_cast<double>(words_() >> 11) * 0x1p-53; }
    // Of mean 0 and deviation 1 (Box and Muller, 1958).
    double normal() {
        const double length = std::sqrt(-2.0 * std::log(1.0 - uniform()));
        return length * std::cos(2.0 * 3.141592653589793 * uniform());
    }

  private:
    std::mt19937_64 words_;
};

struct Eviction {
    Label stop = 0;
    Ints again;
    double seconds = INFINITE;
};

struct Candidate {
    double rate;
    i64 value;
    Label start, stop;
    double gain;
};

// A value that may go, and the first and last stage at which it can be alive.
struct Alive {
    i64 value, begin, end;
    double rate;
};

// A change of the track that can be undone.
struct Change {
    Label label;
    i64 erased;  // the op, or -1 where it was inserted
};

class Search {
  public:
    Search(const Problem &problem, const i64 *schedule, i64 length, i64 budget, i64 seed);

    Track track;
    // Labels of recomputations; a track's `place` is the place in this list.
    Labels again;

    // Evict until all fits, where the start does not; true where that is so, in one of some attempts.
    bool begin(double most_seconds);
    // Drop some recomputations that lie close together, evict until all fits; true where that is taken.
    bool try_move(double temperature);

  private:
    const Problem &problem_;
    const i64 budget_;
    Random random_;
    // First runs never move: a label's stage is the number of those before it.
    Labels first_;
    std::vector<Alive> lives_;
    std::vector<Ints> at_stage_;
    std::vector<char> stage_known_, banned_;
    std::vector<Change> log_;
    Ints over_, in_again_;
    i64 question_ = 0;
    bool is_crowded_ = false;

    void find_lives();
    const Ints &alive_at(Label label);
    void enlist(i64 rank);
    void strike(Label label);
    void insert(Label label, i64 id);
    void erase(Label label);
    void undo();
    void drop(Label label);
    Labels neighbours(Label first);
    bool recreate(double most_seconds, i64 most);
    bool choose(i64 rank, i64 excess, double allowed, Eviction &best);
    bool find_gap(i64 value, Label label, Label &start, Label &stop) const;
    std::vector<Candidate> look(i64 rank, i64 excess, double allowed);
    bool price(const Candidate &gap, double allowed, Eviction &found);
    bool fits(i64 needed, Label before, const Candidate &gap) const;
};

Search::Search(const Problem &problem, const i64 *schedule, i64 length, i64 budget, i64 seed)
    : track(problem, schedule, length), problem_(problem), budget_(budget), random_(seed),
      banned_(problem.values, 0), in_again_(problem.ops, 0) {
    for (i64 rank = 0; rank < track.count(); ++rank) {
        if (track.runs[track.op[rank]].front() == track.labels[rank])
            first_.push_back(track.labels[rank]);
        else
            enlist(rank);
    }
    find_lives();
    at_stage_.resize(first_.size() + 1), stage_known_.resize(first_.size() + 1);
}

void Search::find_lives() {
    Ints stage(problem_.ops);
    for (std::size_t at = 0; at < first_.size(); ++at) stage[track.op[track.rank(first_[at])]] = static_cast<i64>(at);
    std::vector<char> output(problem_.values, 0);
    for (i64 at = 0; at < problem_.outputs; ++at) output[problem_.output[at]] = 1;
    for (i64 value = 0; value < problem_.values; ++value) {
        const i64 maker = problem_.producer[value];
        if (maker < 0 || !problem_.repeatable[maker] || !problem_.size[value]) continue;
        i64 last = -1;
        for (i64 reader : row(problem_.readers, value)) last = std::max(last, stage[reader]);
        if (output[value]) last = static_cast<i64>(first_.size());
        const double rate = problem_.seconds[maker] / static_cast<double>(problem_.size[value]);
        lives_.push_back({value, stage[maker] + 1, last, rate});
    }
    std::sort(lives_.begin(), lives_.end(), [](const Alive &a, const Alive &b) {
        return a.rate != b.rate ? a.rate < b.rate : a.value < b.value;
    });
}

// Values that may be alive at a label and gone from it, the cheapest per byte first.
const Ints &Search::alive_at(Label label) {
    const i64 stage = std::lower_bound(first_.begin(), first_.end(), label) - first_.begin();
    if (!stage_known_[stage]) {
        stage_known_[stage] = 1;
        for (const Alive &life : lives_)
            if (life.begin <= stage && stage <= life.end) at_stage_[stage].push_back(life.value);
    }
    return at_stage_[stage];
}

void Search::enlist(i64 rank) {
    track.place[rank] = static_cast<i64>(again.size());
    again.push_back(track.labels[rank]);
}

void Search::strike(Label label) {
    const i64 at = track.place[track.rank(label)];
    const Label last = again.back();
    again.pop_back();
    if (last != label) {
        again[at] = last;
        track.place[track.rank(last)] = at;
    }
}

void Search::insert(Label label, i64 id) {
    enlist(track.insert(label, id));
    log_.push_back({label, -1});
}

void Search::erase(Label label) {
    log_.push_back({label, track.op[track.rank(label)]});
    strike(label);
    track.erase(label);
}

void Search::undo() {
    for (auto change = log_.rbegin(); change != log_.rend(); ++change) {
        if (change->erased < 0) {
            strike(change->label);
            track.erase(change->label);
        } else {
            enlist(track.insert(change->label, change->erased));
        }
    }
    log_.clear();
}

// Delete a recomputation and those that served only it.
void Search::drop(Label given) {
    Labels stack{given};
    while (!stack.empty()) {
        const Label label = stack.back();
        stack.pop_back();
        const i64 rank = track.rank_of_recomputation(label);
        if (rank < 0) continue;
        const i64 id = track.op[rank];
        erase(label);
        for (i64 value : row(problem_.inputs, id)) {
            const Labels &made = track.runs[problem_.producer[value]];
            const Label source = *(std::lower_bound(made.begin(), made.end(), label) - 1);
            if (source != made.front() && !track.serves(source)) stack.push_back(source);
        }
    }
}

bool Search::begin(double most_seconds) {
    for (i64 attempt = 0; attempt < ATTEMPTS; ++attempt) {
        if (is_crowded_) {
            track.renumber({&again, &first_});
            is_crowded_ = false;
        }
        if (recreate(most_seconds, MOST_AT_FIRST)) {
            log_.clear();
            return true;
        }
        undo();
    }
    return false;
}

bool Search::try_move(double temperature) {
    if (is_crowded_) {
        track.renumber({&again, &first_});
        is_crowded_ = false;
    }
    const double most_seconds = track.seconds - temperature * std::log(1 - random_.uniform());
    const Label first = again[static_cast<i64>(random_.uniform() * static_cast<double>(again.size()))];
    const i64 undone = track.op[track.rank(first)];
    const bool bans = random_.uniform() < BANNED;
    for (Label label : neighbours(first)) drop(label);
    if (bans)
        for (i64 value : row(problem_.made, undone)) banned_[value] = 1;
    const bool taken = recreate(most_seconds, MOST);
    if (bans)
        for (i64 value : row(problem_.made, undone)) banned_[value] = 0;
    if (taken)
        log_.clear();
    else
        undo();
    return taken;
}

// A recomputation and some of those around it, few more often than many.
Labels Search::neighbours(Label first) {
    const i64 rank = track.rank(first);
    const double width = WIDEST * std::pow(random_.uniform(), 2.0);
    const i64 count = static_cast<i64>(MOST_DROPPED * std::pow(random_.uniform(), 3.0));
    Labels found{first};
    for (i64 at = 0; at < count; ++at) {
        const i64 place = rank + static_cast<i64>(random_.normal() * width);
        if (0 <= place && place < track.count()) found.push_back(track.labels[place]);
    }
    return found;
}

// Evict until the budget holds; false where that fails or takes too long.
bool Search::recreate(double most_seconds, i64 most) {
    for (i64 turn = 0; turn < most; ++turn) {
        const i64 rank = std::max_element(track.memory.begin(), track.memory.end()) - track.memory.begin();
        const i64 excess = track.memory[rank] - budget_;
        if (excess <= 0) return track.seconds < most_seconds;
        Eviction found;
        if (!choose(rank, excess, most_seconds - track.seconds, found)) return false;
        const Labels room = track.room_before(found.stop, static_cast<i64>(found.again.size()));
        if (room.empty()) {
            is_crowded_ = true;
            return false;
        }
        for (std::size_t at = 0; at < room.size(); ++at) insert(room[at], found.again[at]);
    }
    return false;
}

// The last read (or birth) before `label` and the first one after it; false if it does not lie in between.
bool Search::find_gap(i64 value, Label label, Label &start, Label &stop) const {
    const Labels &made = track.runs[problem_.producer[value]], &read = track.reads[value];
    const i64 next = std::lower_bound(read.begin(), read.end(), label) - read.begin();
    if (next == static_cast<i64>(read.size()) || read[next] == label) return false;
    const i64 at = std::lower_bound(made.begin(), made.end(), label) - made.begin();
    if (!at || (at < static_cast<i64>(made.size()) && made[at] < read[next])) return false;
    start = next && read[next - 1] > made[at - 1] ? read[next - 1] : made[at - 1];
    stop = read[next];
    return true;
}

// Evictions that free bytes at `rank`, the cheapest for what they cover first, not priced yet.
std::vector<Candidate> Search::look(i64 rank, i64 excess, double allowed) {
    const Label label = rank < track.count() ? track.labels[rank] : track.end;
    over_.clear();
    i64 above = 0;
    for (i64 bytes : track.memory) over_.push_back(above += bytes > budget_);
    std::vector<Candidate> found;
    for (i64 value : alive_at(label)) {
        const double cost = problem_.seconds[problem_.producer[value]];
        if (banned_[value] || cost > allowed || random_.uniform() < BLINK) continue;
        Label start, stop;
        if (!find_gap(value, label, start, stop)) continue;
        const i64 covered = over_[track.rank(stop) - 1] - over_[track.rank(start)];
        const double gain =
            static_cast<double>(std::min(problem_.size[value], excess)) * static_cast<double>(covered);
        found.push_back({cost / gain, value, start, stop, gain});
        if (static_cast<i64>(found.size()) >= LOOKED_AT) break;
    }
    std::sort(found.begin(), found.end(), [](const Candidate &a, const Candidate &b) {
        return a.rate != b.rate ? a.rate < b.rate : a.value < b.value;
    });
    return found;
}

bool Search::choose(i64 rank, i64 excess, double allowed, Eviction &best) {
    const std::vector<Candidate> found = look(rank, excess, allowed);
    double best_rate = INFINITE;
    Eviction priced;
    for (std::size_t at = 0; at < found.size() && at < PRICED; ++at) {
        const Candidate &gap = found[at];
        if (gap.rate >= best_rate) break;
        if (!price(gap, std::min(allowed, best_rate * gap.gain), priced)) continue;
        if (priced.seconds / gap.gain < best_rate) {
            best_rate = priced.seconds / gap.gain;
            std::swap(best, priced);
        }
    }
    return best_rate < INFINITE;
}

// What must run right before the gap's end for the value to be there; false if it takes more than allowed.
bool Search::price(const Candidate &gap, double allowed, Eviction &found) {
    found.stop = gap.stop, found.seconds = 0.0, found.again.clear();
    ++question_;
    Ints stack{problem_.producer[gap.value]};
    while (!stack.empty()) {
        const i64 maker = stack.back();
        stack.pop_back();
        if (in_again_[maker] == question_) continue;
        if (!problem_.repeatable[maker] || static_cast<i64>(found.again.size()) > LONGEST) return false;
        in_again_[maker] = question_;
        found.again.push_back(maker);
        found.seconds += problem_.seconds[maker];
        if (found.seconds > allowed) return false;
        for (i64 needed : row(problem_.inputs, maker)) {
            const i64 source = problem_.producer[needed];
            if (in_again_[source] == question_) continue;
            const Track::Life life = track.life(needed, gap.stop);
            if (life.last < gap.stop && !fits(needed, life.before, gap)) stack.push_back(source);
        }
    }
    std::sort(found.again.begin(), found.again.end());
    return true;
}

// Whether `needed` can stay until the gap's end in the room that evicting its value makes.
bool Search::fits(i64 needed, Label before, const Candidate &gap) const {
    const i64 size = problem_.size[needed], freed = problem_.size[gap.value];
    if (!size) return true;
    const i64 low = track.rank(before) + 1, high = track.rank(gap.start) + 1, stop = track.rank(gap.stop);
    const i64 *memory = track.memory.data();
    if (low < high && any_above(memory, low, high, budget_ - size)) return false;
    if (size >= freed) return false;
    return size * 4 <= freed || !any_above(memory, std::max(low, high), stop, budget_ - size + freed);
}

using Clock = std::chrono::steady_clock;

}  // namespace

// The first `moves` moves of a round of `length`, for so many seconds; a start that does not fit is brought under the
// budget first. The length of the best schedule that is faster than `best_seconds`, which become its own, or -1.
extern "C" i64 graphopt_anneal(
    const Problem *problem, const i64 *schedule, i64 steps, i64 budget, i64 seed, i64 length, i64 moves,
    double seconds_left, double *best_seconds) {
    const auto start = Clock::now();
    Search search(*problem, schedule, steps, budget, seed);
    if (!search.begin(std::min(search.track.seconds, *best_seconds) + *best_seconds)) return -1;
    Ints best;
    const auto offer = [&] {
        if (search.track.seconds < *best_seconds * (1 - LEAST_GAIN)) {
            *best_seconds = search.track.seconds;
            best = search.track.op;
        }
    };
    offer();
    const double extra = search.track.seconds - problem->total_seconds;
    const double hot = HOT * extra / static_cast<double>(search.again.size());
    for (i64 move = 0; move < moves && !search.again.empty(); ++move) {
        const double part = static_cast<double>(move) / static_cast<double>(length);
        if (search.try_move(hot * std::pow(COLD / HOT, part))) offer();
        if (move % 64 == 0 && std::chrono::duration<double>(Clock::now() - start).count() > seconds_left) break;
    }
    return best.empty() ? -1 : keep(std::move(best));
}
