// Python's random.Random from its state on (Matsumoto and Nishimura, 1998): the same numbers.
#pragma once

#include <cmath>
#include <cstdint>

class Random {
  public:
    // 624 words and the place among them; the second of a pair of normal numbers, if there is one.
    Random(std::uint32_t *state, double *spare, std::uint8_t *has_spare)
        : state_(state), spare_(spare), has_spare_(has_spare) {}

    // From 0 up to 1, in 53 bits.
    double uniform() {
        const std::uint32_t high = word() >> 5, low = word() >> 6;
        return (high * 67108864.0 + low) * (1.0 / 9007199254740992.0);
    }

    // Of mean 0 and deviation 1, as random.gauss makes them.
    double normal() {
        if (*has_spare_) {
            *has_spare_ = 0;
            return *spare_;
        }
        const double angle = uniform() * (2.0 * 3.141592653589793), length = std::sqrt(-2.0 * std::log(1.0 - uniform()));
        *spare_ = std::sin(angle) * length;
        *has_spare_ = 1;
        return std::cos(angle) * length;
    }

  private:
    static constexpr int WORDS = 624, SHIFT = 397;
    std::uint32_t *state_;
    double *spare_;
    std::uint8_t *has_spare_;

    static std::uint32_t mixed(std::uint32_t high, std::uint32_t low) {
        const std::uint32_t y = (high & 0x80000000u) | (low & 0x7fffffffu);
        return (y >> 1) ^ ((low & 1u) ? 0x9908b0dfu : 0u);
    }

    std::uint32_t word() {
        if (state_[WORDS] >= WORDS) {
            for (int k = 0; k < WORDS; ++k)
                state_[k] = state_[(k + SHIFT) % WORDS] ^ mixed(state_[k], state_[(k + 1) % WORDS]);
            state_[WORDS] = 0;
        }
        std::uint32_t y = state_[state_[WORDS]++];
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680u;
        y ^= (y << 15) & 0xefc60000u;
        return y ^ (y >> 18);
    }
};
