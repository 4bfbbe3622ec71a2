// Values freed between two reads and computed again, the cheapest first; ../plain_lower.py says what it is. Pricing is
// what takes time, so an eviction is priced only as far as its turn has come: until then the seconds of those ops that it
// is known to need stand for its price.
#include <algorithm>
#include <queue>

#include "profile.h"
#include "result.h"
#include "spans.h"

namespace {

// Share of a value's bytes that keeping one of its op's inputs for it may take.
constexpr double SMALL_INPUT = 0.25;
// Inputs that are looked at in search of one round's evictions: so many an op, and some more.
constexpr i64 WORK = 12, LEAST_WORK = 2000;

// A stretch in which a value could be freed, and what covers it.
struct Gap {
    i64 value, start, stop, covered;
    double most, bound;
};

// The price of one gap as far as it was followed up.
struct Quote {
    bool known = false;
    Ints again, stack;
    double seconds = 0.0;
    i64 net_bytes = 0;
};

class Evictor {
  public:
    Evictor(const Spans &spans, i64 target, i64 longest)
        : spans_(spans), problem_(*spans.problem), target_(target), longest_(longest), maxima_(spans.memory),
          patience_(WORK * spans.problem->ops + LEAST_WORK), in_again_(spans.problem->ops, -1) {
        over_.reserve(spans.length + 1), over_.push_back(0);
        for (i64 step = 0; step < spans.length; ++step) {
            if (spans.memory[step] > target) steps_over_.push_back(step);
            over_.push_back(static_cast<i64>(steps_over_.size()));
        }
        sort_runs();
    }

    // The schedule with up to `moves` more evictions; false where none would help.
    bool lower(i64 moves, Ints &schedule);

  private:
    const Spans &spans_;
    const Problem &problem_;
    const i64 target_, longest_;
    const Maxima maxima_;
    i64 patience_;
    // For each op the quote in which it is known to run again.
    Ints in_again_;
    // The steps over the target, and for each step how many before it are.
    Ints steps_over_, over_;
    // Steps by op; those of op i begin at run_at_[i].
    Ints runs_, run_at_;
    // By value, where its op runs once: the last read; -1 elsewhere.
    Ints only_last_;
    std::vector<Gap> gaps_;
    std::vector<Quote> quotes_;
    // The gaps that were not looked at yet by their bounds, as a heap: the least in front.
    using Entry = std::pair<double, i64>;
    std::vector<Entry> fresh_;
    Ints memory_;
    std::vector<char> relied_on_;

    void sort_runs();
    void find_gaps();
    bool wanted(const Gap &gap) const;
    bool price(i64 number, double allowed);
    bool fits(i64 size, i64 last, i64 start, i64 stop, i64 freed) const;
    i64 last_before(i64 value, i64 source, i64 stop) const;
    void insert_into(Ints &schedule, std::vector<std::pair<i64, i64>> &made) const;
};

void Evictor::sort_runs() {
    run_at_.assign(problem_.ops + 1, 0);
    for (i64 id : spans_.op) ++run_at_[id + 1];
    for (i64 id = 0; id < problem_.ops; ++id) run_at_[id + 1] += run_at_[id];
    Ints next(run_at_.begin(), run_at_.end() - 1);
    runs_.resize(spans_.length);
    for (i64 step = 0; step < spans_.length; ++step) runs_[next[spans_.op[step]]++] = step;
    only_last_.assign(problem_.values, -1);
    for (std::size_t cell = 0; cell < spans_.cell_value.size(); ++cell) {
        const i64 value = spans_.cell_value[cell], maker = problem_.producer[value];
        if (run_at_[maker + 1] - run_at_[maker] == 1) only_last_[value] = spans_.last[cell];
    }
}

// All stretches over steps that are over the target, by what they cost per byte and step at best.
void Evictor::find_gaps() {
    Ints reader_at, reader;
    spans_.sort_reads(reader_at, reader);
    const i64 excess = spans_.peak - target_;
    for (std::size_t cell = 0; cell < spans_.cell_value.size(); ++cell) {
        const i64 value = spans_.cell_value[cell];
        if (!problem_.free[value]) continue;
        i64 start = spans_.cell_step[cell];
        for (i64 read = reader_at[cell]; read < reader_at[cell + 1]; ++read) {
            const i64 stop = reader[read];
            if (stop - start > 1) {
                const i64 covered = over_[stop] - over_[start + 1];
                if (covered) {
                    const double most = static_cast<double>(std::min(problem_.size[value], excess)) * covered;
                    gaps_.push_back(
                        {value, start, stop, covered, most, problem_.seconds[problem_.producer[value]] / most});
                }
            }
            start = stop;
        }
    }
    fresh_.reserve(gaps_.size());
    for (std::size_t at = 0; at < gaps_.size(); ++at) fresh_.emplace_back(gaps_[at].bound, static_cast<i64>(at));
    std::make_heap(fresh_.begin(), fresh_.end(), std::greater<Entry>());
}

bool Evictor::wanted(const Gap &gap) const {
    if (relied_on_[gap.value]) return false;
    if (memory_[steps_over_[over_[gap.start + 1]]] > target_) return true;
    return any_above(memory_.data(), gap.start + 1, gap.stop, target_);
}

// The last read of a value, as its op last produced it before `stop`.
i64 Evictor::last_before(i64 value, i64 source, i64 stop) const {
    if (only_last_[value] >= 0) return only_last_[value];
    const i64 *first = runs_.data() + run_at_[source], *end = runs_.data() + run_at_[source + 1];
    return spans_.last[spans_.cell_at[*(std::lower_bound(first, end, stop) - 1)] + problem_.slot[value]];
}

bool Evictor::fits(i64 size, i64 last, i64 start, i64 stop, i64 freed) const {
    if (last < start && maxima_.of(last + 1, start + 1) + size > target_) return false;
    if (static_cast<double>(size) <= SMALL_INPUT * static_cast<double>(freed)) return true;
    if (spans_.peak - freed + size <= target_) return true;
    const i64 inside = std::max(last, start) + 1;
    return inside >= stop || maxima_.of(inside, stop) - freed + size <= target_;
}

// Follow up what must run before the gap's end, until its seconds exceed `allowed`; false if it is no use.
bool Evictor::price(i64 number, double allowed) {
    const Gap &gap = gaps_[number];
    Quote &quote = quotes_[number];
    for (i64 op : quote.again) in_again_[op] = number;
    const i64 freed = problem_.size[gap.value], over_before = over_[gap.start + 1];
    while (!quote.stack.empty()) {
        if (quote.seconds > allowed) return true;
        const i64 maker = problem_.producer[quote.stack.back()];
        quote.stack.pop_back();
        if (in_again_[maker] == number) continue;
        if (!problem_.recomputable[maker] || static_cast<i64>(quote.again.size()) > longest_) return false;
        in_again_[maker] = number;
        quote.again.push_back(maker);
        quote.seconds += problem_.seconds[maker];
        patience_ -= problem_.all_inputs[maker];
        for (i64 needed : row(problem_.inputs, maker)) {
            const i64 source = problem_.producer[needed];
            if (in_again_[source] == number) continue;
            const i64 last = last_before(needed, source, gap.stop);
            if (last >= gap.stop) continue;
            if (last < gap.start && over_before > over_[last + 1])
                quote.stack.push_back(needed);
            else if (fits(problem_.size[needed], last, gap.start, gap.stop, freed))
                quote.net_bytes -= problem_.size[needed];
            else
                quote.stack.push_back(needed);
        }
    }
    return quote.net_bytes > 0;
}

bool Evictor::lower(i64 moves, Ints &schedule) {
    find_gaps();
    quotes_.resize(gaps_.size());
    memory_ = spans_.memory;
    relied_on_.assign(problem_.values, 0);
    const i64 excess = spans_.peak - target_;
    std::priority_queue<Entry, std::vector<Entry>, std::greater<Entry>> heap;
    std::size_t reached = 0;
    const auto next_gap = [&] {
        if (fresh_.empty()) return;
        std::pop_heap(fresh_.begin(), fresh_.end(), std::greater<Entry>());
        heap.push(fresh_.back());
        fresh_.pop_back();
    };
    next_gap();
    std::vector<std::pair<i64, i64>> made;
    i64 count = 0;
    while (!heap.empty() && patience_ > 0) {
        const auto [bound, number] = heap.top();
        heap.pop();
        const Gap &gap = gaps_[number];
        Quote &quote = quotes_[number];
        if (!quote.known) {
            quote.known = true;
            quote.net_bytes = problem_.size[gap.value];
            quote.stack.push_back(gap.value);
            next_gap();
        } else if (quote.stack.empty()) {
            if (!wanted(gap)) continue;
            for (i64 at = gap.start + 1; at < gap.stop; ++at) memory_[at] -= quote.net_bytes;
            for (i64 op : quote.again) {
                made.emplace_back(gap.stop, op);
                for (i64 value : row(problem_.inputs, op)) relied_on_[value] = 1;
            }
            ++count;
            // Memory only falls here: what is under the target stays there.
            while (reached < steps_over_.size() && memory_[steps_over_[reached]] <= target_) ++reached;
            if (count >= moves || reached == steps_over_.size()) break;
            continue;
        }
        if (!wanted(gap)) continue;
        const double allowed = std::max(4 * bound, heap.empty() ? INFINITE : heap.top().first) * gap.most;
        if (!price(number, allowed)) continue;
        const double gain = quote.stack.empty()
            ? static_cast<double>(std::min(quote.net_bytes, excess)) * static_cast<double>(gap.covered)
            : gap.most;
        heap.emplace(quote.seconds / gain, number);
    }
    if (!count) return false;
    insert_into(schedule, made);
    return true;
}

// Each op that must run again goes in once before each stop, in the order of ids.
void Evictor::insert_into(Ints &schedule, std::vector<std::pair<i64, i64>> &made) const {
    std::sort(made.begin(), made.end());
    made.erase(std::unique(made.begin(), made.end()), made.end());
    schedule.clear();
    schedule.reserve(spans_.length + made.size());
    auto next = made.begin();
    for (i64 step = 0; step <= spans_.length; ++step) {
        for (; next != made.end() && next->first == step; ++next) schedule.push_back(next->second);
        if (step < spans_.length) schedule.push_back(spans_.op[step]);
    }
}

}  // namespace

// The length of the schedule lowered, or -1 where nothing helps.
extern "C" i64 graphopt_lower(
    const Problem *problem, const i64 *schedule, i64 length, i64 target, i64 moves, i64 longest) {
    const Spans spans(*problem, Ints(schedule, schedule + length));
    Ints lowered;
    return Evictor(spans, target, longest).lower(moves, lowered) ? keep(std::move(lowered)) : -1;
}
